"""What git ignores in a work tree, and the files that decide it besides the tree's own."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sandbox_engine import git

IN_TREE = (".gitignore", ".git")
"""Names in the work tree whose coming, changing and going may change what counts."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The files beside those of the work tree that decide what counts, as they were."""

    paths: tuple[str, ...]
    states: tuple[tuple[int, ...], ...]

    def hold(self) -> bool:
        """Tell whether none of the files has changed since."""
        return self.states == _states(self.paths)

    def hold_but_for(self, names: Collection[str]) -> bool:
        """Tell whether all files that have changed since are called one of `names`."""
        pairs = zip(self.paths, self.states, _states(self.paths), strict=True)
        return all(one == other or Path(path).name in names for path, one, other in pairs)


def read_rules(repository: git.Repository, folder: Path) -> Rules:
    """Return the rules for what is below `folder` of the work tree; they come before any listing.

    Among them are the index, as what is tracked is never ignored, and the ignore files above
    `folder`.
    """
    git_dir, common_dir = repository.git_dir, repository.common_dir
    paths = {
        *(os.fspath(git_dir / name) for name in ("index", "HEAD", "config.worktree")),
        *(os.fspath(common_dir / name) for name in ("config", "info/exclude")),
        *_configured(folder),
    }
    home = os.path.expanduser("~")
    settings = os.environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    paths.add(os.path.join(home, ".gitconfig"))
    paths |= {os.path.join(settings, "git", name) for name in ("config", "ignore")}
    top = repository.top
    while top is not None and folder != top.resolve() and folder != folder.parent:
        folder = folder.parent
        paths.add(os.fspath(folder / ".gitignore"))
    ordered = tuple(sorted(paths))
    return Rules(ordered, _states(ordered))


def _configured(folder: Path) -> Iterator[str]:
    """Yield the files that git's configuration comes from, and those that it names."""
    output = git.run_git(["config", "--list", "--show-origin", "-z"], cwd=folder)
    words = os.fsdecode(output).split("\0")
    for origin, setting in zip(words[::2], words[1::2], strict=False):
        kind, _, path = origin.partition(":")
        if kind == "file":
            yield os.path.join(folder, path)
        name, _, value = setting.partition("\n")
        if name == "core.excludesfile":
            yield os.path.join(folder, os.path.expanduser(value))


def _states(paths: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    return tuple(_state(path) for path in paths)


def _state(path: str) -> tuple[int, ...]:
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def ignored_folders(top: Path, folders: Collection[str]) -> set[str]:
    """Return those of `folders`, by their paths below `top`, that git does not look into.

    One that holds tracked files is looked into, whatever the rules say. Raise GitError if git
    cannot say.
    """
    if not folders:
        return set()
    output = git.run_git(
        ["check-ignore", "--no-index", "-z", "--stdin"],
        # Without the index, in which git would look for each folder from the start.
        cwd=top,
        # A path that begins with a colon would be magic.
        input=b"".join(b"./%s\0" % os.fsencode(folder) for folder in folders),
        accept=(0, 1),
    )
    ignored = {name[2:] for name in os.fsdecode(output).split("\0") if name}
    return ignored - with_tracked_files(top, ignored)


def with_tracked_files(top: Path, folders: Collection[str]) -> set[str]:
    """Return those of `folders` that hold tracked files."""
    if not folders:
        return set()
    output = git.run_git(
        ["-c", "core.fsmonitor=false", "ls-files", "-c", "-z", "--", *sorted(folders)],
        cwd=top,
        env=git.plain_environment(GIT_LITERAL_PATHSPECS="1"),
    )
    found = set()
    for name in os.fsdecode(output).split("\0"):
        while name := name.rpartition("/")[0]:
            found.add(name)
    return found.intersection(folders)
