"""Trees that were judged, kept as work trees to look at and work in, until they are taken away.

Each is a repository of its own beside the store's slots, on a branch with the judged commit on its
base, so that `git diff HEAD~` in it is the patch. It borrows the store's objects, which are held by
a reference for as long as it is there. What is done in it is nobody's verdict, and isolated from
nothing: it is a folder of the user's.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from sandbox_engine import disk, git
from sandbox_engine import store as store_module
from sandbox_engine.errors import GitError, UsageError
from sandbox_engine.store import Store
from sandbox_engine.verdict import Verdict

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_REFS = "refs/kept"
_BRANCH = "candidate"


@dataclass(frozen=True, slots=True)
class Kept:
    """A kept work tree: since when, in seconds since 1970, and how many bytes it takes."""

    name: str
    folder: Path
    since: float
    bytes: int


def folder_of(store: Store, name: str) -> Path:
    """Return where the work tree `name` is, or would be; raise UsageError for no name."""
    if not _NAME.fullmatch(name) or name.endswith((".lock", ".")) or ".." in name:
        raise UsageError(
            f"`{name}` is no name for a kept sandbox",
            remedy="use letters, digits, and `.`, `_` and `-` between them",
        )
    return store.folder / "kept" / name


def find_kept(store: Store) -> list[Kept]:
    """Return all that is kept of the repository, by name."""
    folder = store.folder / "kept"
    if not folder.is_dir():
        return []
    return [
        Kept(path.name, path, path.stat().st_ctime, disk.size_of(path))
        for path in sorted(folder.iterdir())
        if _NAME.fullmatch(path.name)
    ]


def keep(store: Store, verdict: Verdict, name: str) -> Path:
    """Make a work tree of what was judged, and return its folder.

    Raise UsageError where the name is taken, or the tree is gone: what did not pass is not held.
    """
    folder = folder_of(store, name)
    if folder.exists():
        raise UsageError(
            f"`{name}` is kept already, in `{folder}`",
            remedy=f"choose another name, or `sandbox-engine sandbox rm {name}`",
        )
    commit = _commit_of(store, verdict)
    half = folder.with_name(f".{name}.{os.getpid()}.new")
    try:
        git.run_store_git(store.git_dir, ["update-ref", f"{_REFS}/{name}", commit])
        _make(store, half, commit)
        half.rename(folder)
    except BaseException:
        disk.remove_tree(half)
        git.run_store_git(store.git_dir, ["update-ref", "-d", f"{_REFS}/{name}"])
        raise
    return folder


def _commit_of(store: Store, verdict: Verdict) -> str:
    if verdict.tree is None:
        raise UsageError(
            "the patch did not fit, so there is no tree of it",
            remedy="`sandbox-engine show` tells why",
        )
    try:
        git.run_store_git(
            store.git_dir, ["rev-list", "--objects", "--quiet", f"{verdict.tree}^{{tree}}"]
        )
    except GitError as error:
        raise UsageError(
            f"the tree {verdict.tree[:12]} is no longer kept",
            remedy="validate the patch again, with `--no-cache` where it is known",
        ) from error
    return store_module.commit_candidate(store, verdict.base, verdict.tree)


def _make(store: Store, folder: Path, commit: str) -> None:
    disk.remove_tree(folder)
    folder.mkdir(parents=True, mode=0o700)
    environment = git.sealed_environment()
    words = ["init", "-q", "--template=", f"--initial-branch={_BRANCH}"]
    git.run_git([*words, os.fspath(folder)], env=environment)
    alternates = folder / ".git" / "objects" / "info" / "alternates"
    disk.write_whole(alternates, os.fsencode(store.git_dir / "objects") + b"\n")
    store_module.mirror_file(store.git_dir / "shallow", folder / ".git" / "shallow")
    git.run_git(["reset", "-q", "--hard", commit], cwd=folder, env=environment)


def remove(store: Store, name: str) -> int:
    """Take a kept work tree away, and return how many bytes that freed."""
    folder = folder_of(store, name)
    if not folder.is_dir():
        raise UsageError(
            f"no sandbox `{name}` is kept", remedy="`sandbox-engine sandbox list` lists them"
        )
    size = disk.size_of(folder)
    disk.remove_tree(folder)
    git.run_store_git(store.git_dir, ["update-ref", "-d", f"{_REFS}/{name}"])
    return size


def is_changed(folder: Path) -> bool:
    """Tell whether something was done in a kept work tree: a file differs, or a commit was made."""
    environment = git.sealed_environment()
    status = git.run_git(["status", "--porcelain"], cwd=folder, env=environment)
    made = git.run_git(["reflog", "show", "--format=%h", _BRANCH], cwd=folder, env=environment)
    return bool(status) or made.count(b"\n") > 1


def free_name(store: Store, stem: str) -> str:
    """Return `stem`, or that with a number, so that nothing is kept by that name."""
    names = {one.name for one in find_kept(store)}
    numbers = (f"{stem}-{number}" for number in range(2, len(names) + 3))
    return next(name for name in (stem, *numbers) if name not in names)


def age_s(kept: Kept) -> float:
    """Return how long it has been kept, in seconds."""
    return max(0.0, time.time() - kept.since)
