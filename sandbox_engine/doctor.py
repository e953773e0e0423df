"""Is all that is needed here: git, a repository, an interpreter with pytest, room for the store."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sandbox_engine import disk, git, isolation, store
from sandbox_engine.cache import Cache
from sandbox_engine.config import load_config
from sandbox_engine.errors import SandboxError
from sandbox_engine.interpreter import choose_interpreter, describe_interpreter, require_pytest
from sandbox_engine.verdict import Tier

_ROOM_WANTED = 2**30


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at, and what to do about it when it is not well."""

    name: str
    is_well: bool
    detail: str
    remedy: str | None = None


def examine(repo: str | os.PathLike[str] = ".", config_file: Path | None = None) -> list[Check]:
    """Return what was found; a check that cannot be made because of an earlier one is left out."""
    checks: list[Check] = []
    _git(checks)
    if checks[-1].is_well:
        _repository(checks, repo, config_file)
    return checks


def _git(checks: list[Check]) -> None:
    def look() -> str:
        version = git.version()
        if version < git.OLDEST_GIT:
            oldest = ".".join(map(str, git.OLDEST_GIT))
            raise SandboxError(
                f"{'.'.join(map(str, version))} is too old", remedy=f"install git {oldest} or later"
            )
        return ".".join(map(str, version))

    _look(checks, "git", look)


def _repository(checks: list[Check], repo: str | os.PathLike[str], file: Path | None) -> None:
    found: list[store.Store] = []

    def look() -> str:
        repository = git.find_repository(repo)
        git.resolve_commit(repository, "HEAD")
        found.append(store.open_store(repository))
        return str(repository.top or repository.git_dir)

    _look(checks, "repository", look)
    if found:
        _look(checks, "store", lambda: _room(found[0].folder))
        _look(checks, "interpreter", lambda: _interpreter(found[0], file))
        _look(checks, "limits", lambda: _limits(found[0], file))
        try:
            checks += _isolation(found[0], file)
        except SandboxError as error:
            checks.append(Check("isolation", False, error.problem, error.remedy))


def _room(folder: Path) -> str:
    free = shutil.disk_usage(folder).free
    if free < _ROOM_WANTED:
        raise SandboxError(
            f"only {free / 2**20:.0f} MiB are free at `{folder}`",
            remedy="free some space, or set XDG_CACHE_HOME to a folder on another disk",
        )
    size = disk.size_of(folder)
    return f"{folder}, {size / 2**20:.1f} MiB, {free / 2**30:.0f} GiB free"


def _interpreter(opened: store.Store, file: Path | None) -> str:
    config = load_config(opened.repository.top, file=file)
    executable = choose_interpreter(config.python, opened.repository)
    interpreter = describe_interpreter(executable, Cache(opened.database))
    require_pytest(interpreter)
    version = ".".join(map(str, interpreter.version))
    xdist = f"pytest-xdist {interpreter.xdist}" if interpreter.xdist else "no pytest-xdist"
    return f"{executable}, Python {version}, pytest {interpreter.pytest}, {xdist}"


def _limits(opened: store.Store, file: Path | None) -> str:
    """Tell what a run may use, or which limit is more than there is."""
    config = load_config(opened.repository.top, file=file)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for name, wanted, there in (
        ("memory_bytes", config.memory_bytes, memory),
        ("open_files", config.open_files, _most(resource.RLIMIT_NOFILE)),
        ("processes", config.processes, _most(resource.RLIMIT_NPROC)),
    ):
        if there is not None and wanted > there:
            raise SandboxError(
                f"`{name}` is {wanted}, and there are {there} here",
                remedy=f"set `{name}` to less, or raise what the system allows",
            )
    return (
        f"{config.timeout_s:g} s, {config.memory_bytes / 2**20:g} MiB of memory, "
        f"{config.processes} processes, {config.disk_bytes / 2**20:g} MiB of disk"
    )


def _most(kind: int) -> int | None:
    _, hard = resource.getrlimit(kind)
    return None if hard == resource.RLIM_INFINITY else hard


def _isolation(opened: store.Store, file: Path | None) -> Iterator[Check]:
    """Yield what each tier needs; well is the one that runs will have."""
    found = isolation.survey(Cache(opened.database), opened.folder)
    config = load_config(opened.repository.top, file=file)
    chosen = config.wanted_tier or found.best
    is_there = chosen not in found.obstacles
    is_enough = is_there and not chosen.is_less_than(config.min_isolation)
    least = f"`min_isolation` in the configuration asks for `{config.min_isolation}`"
    yield Check(
        "isolation",
        is_enough,
        f"{chosen}: {_PROMISES[chosen]}" if is_there else f"{chosen} is wanted, and not to be had",
        None if is_enough else (least if is_there else found.obstacles[chosen].remedy),
    )
    for tier, obstacle in found.obstacles.items():
        yield Check(
            f"isolation {tier}",
            is_enough,
            f"cannot be had: {obstacle.problem}",
            obstacle.remedy,
        )


_PROMISES = {
    Tier.FULL: "runs see a file system, a network and processes of their own",
    Tier.LANDLOCK: "runs cannot write, signal or connect elsewhere; what is left is in "
    "docs/isolation.md",
    Tier.NONE: "runs are ended whole, but can reach whatever you can: validate only patches whose "
    "tests you would run yourself",
}


def _look(checks: list[Check], name: str, look: Callable[[], str]) -> None:
    try:
        checks.append(Check(name, True, look()))
    except SandboxError as error:
        checks.append(Check(name, False, error.problem, error.remedy))
