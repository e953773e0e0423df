"""Ignored files that tests need: generated versions, compiled extensions, local settings.

A fresh worktree has none of them. They are carried over by pattern and never unless named, as
copies: a test that writes to one must not write to the user's. Sandboxes in layers share one copy
for as long as the files stay as they are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sandbox_engine import disk, git
from sandbox_engine.errors import ConfigError, GitError
from sandbox_engine.git import Repository
from sandbox_engine.shelf import Place, open_shelf
from sandbox_engine.store import Store

_MOST = 1_000
_KEPT = 2
"""How many states of the carried files stay on disk when no sandbox needs more."""


@dataclass(frozen=True, slots=True)
class Carried:
    """The ignored files to bring along: paths relative to `top`, and a digest of their state.

    `others` come along from elsewhere; where both have a path, these do not.
    """

    top: Path
    paths: tuple[str, ...] = ()
    fingerprint: str = ""
    others: tuple[Carried, ...] = ()

    @property
    def all_paths(self) -> tuple[str, ...]:
        """The paths of all that comes along."""
        return (*self.paths, *(path for other in self.others for path in other.paths))

    def beside(self, other: Carried) -> Carried:
        """Return this with `other`, which is no more than a list of files, along."""
        fingerprint = f"{self.fingerprint} {other.fingerprint}"
        return dataclasses.replace(self, others=(other,), fingerprint=fingerprint)


def find_carried(repository: Repository, patterns: Sequence[str]) -> Carried:
    """Return the ignored files of the work tree that `patterns` name.

    Patterns are git's, with `*`, `**` and `?`; a folder's name means all in it. Raise ConfigError
    for one that leaves the repository.
    """
    if not patterns or repository.top is None:
        return Carried(repository.top or Path("/"))
    for pattern in patterns:
        if pattern.startswith("/") or ".." in pattern.split("/"):
            raise _outside(f"`{pattern}` leaves the repository")
    specs = [f":(top,glob){pattern.rstrip('/')}" for pattern in patterns]
    specs += [f":(top,glob){pattern.rstrip('/')}/**" for pattern in patterns]
    question = ["ls-files", "-z", "--others", "--ignored", "--exclude-standard", "--", *specs]
    try:
        output = git.run_git(["-C", repository.top, *question])
    except GitError as error:
        raise _outside(error.problem) from error
    paths = tuple(sorted(os.fsdecode(path) for path in output.split(b"\0") if path))
    return Carried(repository.top, paths, _fingerprint(repository.top, paths))


def _outside(what: str) -> ConfigError:
    return ConfigError(
        f"`carry` cannot be followed: {what}",
        remedy="name paths inside the repository, relative to its top folder",
    )


def _fingerprint(top: Path, paths: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        try:
            status = os.lstat(top / path)
        except FileNotFoundError:
            continue
        state = (status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        digest.update(f"{path}\0{state}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


@contextlib.contextmanager
def held_layer(store: Store, carried: Carried) -> Iterator[Place | None]:
    """Hold a folder with a copy of the carried files as they are now; None where there are none."""
    if not carried.all_paths:
        yield None
        return
    shelf = open_shelf(store.folder / "carried", most=_MOST, kept=_KEPT)

    def make(folder: Path, before: str | None, lease: int) -> None:
        disk.remove_tree(folder)
        (folder / "files").mkdir(parents=True)
        place(carried, folder / "files")

    held = shelf.find(carried.fingerprint)
    if held is None:
        with store.locked("carried", wait_s=git.TIME_OUT_S):
            held = shelf.find(carried.fingerprint) or shelf.fill(carried.fingerprint, make)
    assert held is not None, "there are more places than sandboxes, so one is free"
    try:
        yield held
    finally:
        os.close(held.lease)


def place(carried: Carried, root: Path) -> None:
    """Copy every carried file below `root` where the tree has nothing; links stay links."""
    for one in (carried, *carried.others):
        _place(one, root)


def _place(carried: Carried, root: Path) -> None:
    for path in carried.paths:
        target = root / path
        if os.path.lexists(target) or not _make_parents(root, target.parent):
            continue
        source = carried.top / path
        # It may have gone since it was listed.
        with contextlib.suppress(FileNotFoundError):
            kind = source.lstat().st_mode
            if stat.S_ISLNK(kind) or stat.S_ISREG(kind):
                shutil.copy2(source, target, follow_symlinks=False)


def _make_parents(root: Path, folder: Path) -> bool:
    """Make `folder` below `root`; return False where a file or a link is in the way."""
    current = root
    for part in folder.relative_to(root).parts:
        current /= part
        if not os.path.lexists(current):
            current.mkdir()
        elif not stat.S_ISDIR(current.lstat().st_mode):
            return False
    return True
