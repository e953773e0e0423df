"""Which files of a folder count.

In a repository git says which: tracked files, and untracked ones that no rule ignores. Elsewhere
hidden folders, environments and caches are left out. Nested repositories and submodules are
projects of their own and are left out too.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sandbox_engine import git
from sandbox_engine.errors import NoRepositoryError, RepositoryError, UsageError

_LEFT_OUT = frozenset({"__pycache__", "node_modules"})
# What git remembers of the work tree from earlier is not asked: this has to be fresh.
_GIT = ("-c", "core.fsmonitor=false", "-c", "core.untrackedCache=false")


@dataclass(frozen=True, slots=True)
class Place:
    """A folder that is scanned; `prefix` leads to it from the top of its work tree, as `a/b/`."""

    root: Path
    repository: git.Repository | None = None
    prefix: str = ""

    @property
    def top(self) -> Path | None:
        """The top of the work tree, None outside of a repository."""
        return None if self.repository is None else self.repository.top


def find_place(path: str | os.PathLike[str]) -> Place:
    """Return the folder at `path` and the repository that it is in, if it is in one.

    Raise UsageError if it is no folder, RepositoryError if its repository cannot be used.
    """
    root = Path(path)
    if not root.is_dir():
        raise UsageError(f"`{root}` is not a folder", remedy="give the folder of a project")
    root = root.resolve()
    try:
        repository = git.find_repository(root)
    except NoRepositoryError:
        return Place(root)
    top = None if repository.top is None else repository.top.resolve()
    if top is None or not root.is_relative_to(top):
        raise RepositoryError(
            f"`{root}` is not in the work tree of a repository, but in what git keeps",
            remedy="give a folder of a work tree; `git worktree add` makes one",
        )
    below = root.relative_to(top).as_posix()
    return Place(root, repository, "" if below == "." else f"{below}/")


def list_names(place: Place, within: Sequence[str] = ()) -> Iterator[str]:
    """Yield the paths of the files that count, relative to the root, in no order.

    With `within` only those of these paths, and of those that end with `/` what is below. Files
    that are tracked and gone are among them. Raise GitError if git cannot say.
    """
    if place.repository is None:
        yield from _walked(os.fspath(place.root), within)
        return
    output = git.run_git(
        [*_GIT, "ls-files", "-co", "--exclude-standard", "--deduplicate", "-z", "--", *within],
        cwd=place.root,
        env=git.plain_environment(GIT_LITERAL_PATHSPECS="1"),
    )
    for name in os.fsdecode(output).split("\0"):
        # A nested repository is named as a folder.
        if name and not name.endswith("/"):
            yield name


@dataclass(frozen=True, slots=True)
class TreeFile:
    """A file of a tree of git's: its path below the root, and its blob; a link is one too."""

    path: str
    blob: str
    is_link: bool


def list_tree(place: Place, tree: str) -> Iterator[TreeFile]:
    """Yield the files that a tree of the repository has below the root."""
    output = git.run_git(
        ["ls-tree", "-r", "-z", "--full-tree", tree, "--", *([place.prefix] * bool(place.prefix))],
        cwd=place.root,
        env=git.plain_environment(GIT_LITERAL_PATHSPECS="1"),
    )
    for line in os.fsdecode(output).split("\0"):
        mode, _, blob_and_path = line.partition(" blob ")
        if blob_and_path:
            blob, _, path = blob_and_path.partition("\t")
            yield TreeFile(path.removeprefix(place.prefix), blob, mode == "120000")


def _walked(root: str, within: Sequence[str]) -> Iterator[str]:
    wanted = tuple(within)
    pending = [""]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(os.path.join(root, folder)) as found:
                entries = list(found)
        except OSError:
            # It is gone already, or nobody may look into it.
            continue
        if any(entry.name == "pyvenv.cfg" for entry in entries):
            continue
        for entry in entries:
            name = folder + entry.name
            if not entry.is_dir(follow_symlinks=False):
                if not wanted or name.startswith(wanted):
                    yield name
            elif not entry.name.startswith(".") and entry.name not in _LEFT_OUT:
                pending.append(f"{name}/")


def statuses(root: Path, names: Iterable[str]) -> dict[str, os.stat_result]:
    """Return what `lstat` says of those of `names` that are files or links, and not behind one."""
    top = os.fspath(root)
    real: dict[str, bool] = {"": True}

    def is_real(folder: str) -> bool:
        if folder not in real:
            real[folder] = is_real(folder.rpartition("/")[0]) and stat.S_ISDIR(
                mode_of(os.path.join(top, folder))
            )
        return real[folder]

    found = {}
    for name in names:
        if is_real(name.rpartition("/")[0]):
            try:
                status = os.lstat(f"{top}/{name}")
            except OSError:
                continue
            # A folder may be where a file was, and a submodule has the name of its folder.
            if stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
                found[name] = status
    return found


def mode_of(path: str) -> int:
    """Return type and permissions of what is at `path`, no link followed; 0 for nothing."""
    try:
        return os.lstat(path).st_mode
    except OSError:
        return 0
