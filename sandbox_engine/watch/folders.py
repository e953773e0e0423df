"""Which folders of a work tree the kernel tells changes of, and which have to be looked at.

A folder that is new is watched first and looked into afterwards, so that nothing in it is missed:
what came before is seen by looking, and what comes later is told. A watch follows its folder when
it is moved, so whoever hears of a move leaves the old place and enters the new one.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from inotify_simple import Event, INotify, flags

from sandbox_engine.errors import GitError, SandboxError
from sandbox_engine.ignoring import ignored_folders

_MASK = (
    *(flags.CREATE, flags.DELETE, flags.MOVED_FROM, flags.MOVED_TO, flags.MODIFY),
    *(flags.CLOSE_WRITE, flags.ATTRIB, flags.DELETE_SELF, flags.MOVE_SELF),
    *(flags.ONLYDIR, flags.DONT_FOLLOW),
)
_LIMITS = Path("/proc/sys/fs/inotify")
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_REMOTE = (
    *("9p", "afs", "ceph", "cifs", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "smb3", "smbfs"),
    *("virtiofs", "vboxsf", "fuse"),
)
"""File systems that others may write to without our kernel being told."""


class Folders:
    """The folders below `top` that are watched; paths are relative to it, and "" is itself.

    `excluded` are those that git does not look into, `swept` those that cannot be watched and
    why: both stand for all that is below them. At most `most` are watched. What went wrong on the
    way is in `complaints` until somebody clears them.
    """

    def __init__(self, top: Path, most: float = math.inf) -> None:
        self.excluded: set[str] = set()
        self.swept: dict[str, str] = {}
        self.complaints: list[str] = []
        self._top = os.fspath(top)
        self._most = most
        self._paths: dict[int, str] = {}
        self._numbers: dict[str, int] = {}
        self._apart: dict[str, str] = {}
        try:
            self._inotify = INotify(nonblocking=True)
        except OSError as error:
            raise _no_instance(error) from error

    def __len__(self) -> int:
        return len(self._numbers)

    def fileno(self) -> int:
        descriptor: int = self._inotify.fileno()
        return descriptor

    def close(self) -> None:
        self._inotify.close()

    def watch_apart(self, folder: Path) -> int:
        """Watch a folder that is not of the work tree; return the number its events have."""
        return int(self._inotify.add_watch(os.fspath(folder), flags.CREATE))

    def read(self) -> list[Event]:
        """Return what has happened and was not told yet."""
        return list(self._inotify.read(timeout=0))

    def path_of(self, event: Event) -> str | None:
        """Return the folder that an event is of, None if it is watched no more."""
        if event.mask & flags.IGNORED:
            path = self._paths.pop(event.wd, None)
            if path is not None and self._numbers.get(path) == event.wd:
                del self._numbers[path]
            return None
        return self._paths.get(event.wd)

    def enter(self, folders: Iterable[str]) -> set[str]:
        """Watch folders and all below them; return those that are watched or to be swept now."""
        entered: set[str] = set()
        level = list(folders)
        while level:
            ignored = self._ignored([folder for folder in level if folder])
            self.excluded |= ignored
            wanted = [folder for folder in level if folder not in ignored]
            level = []
            for folder in wanted:
                self.excluded.discard(folder)
                if self._watch(folder):
                    entered.add(folder)
                    level += self._folders_in(folder)
                elif folder in self.swept:
                    entered.add(folder)
        return entered

    def enter_anew(self) -> set[str]:
        """Watch what is to be watched by the rules of now, and nothing else; return what is new."""
        before = set(self._numbers)
        self._apart = dict(_mounts_below(self._top))
        self.excluded.clear()
        self.swept.clear()
        entered = self.enter([""])
        for folder in before - entered:
            self._drop(folder)
        return entered - before

    def leave(self, folder: str) -> None:
        """Watch a folder and all below it no more."""
        below = f"{folder}/"
        for path in [one for one in self._numbers if one == folder or one.startswith(below)]:
            self._drop(path)
        for known in (self.excluded, self.swept):
            for path in [one for one in known if one == folder or one.startswith(below)]:
                known.discard(path) if isinstance(known, set) else known.pop(path)

    def _drop(self, folder: str) -> None:
        number = self._numbers.pop(folder, None)
        if number is not None and self._paths.get(number) == folder:
            del self._paths[number]
            # It is gone already if its folder is.
            with contextlib.suppress(OSError):
                self._inotify.rm_watch(number)

    def _ignored(self, folders: Collection[str]) -> set[str]:
        try:
            return ignored_folders(Path(self._top), folders)
        except GitError as error:
            # A folder became a link in this moment, say: to watch too much does no harm.
            self.complaints.append(f"git does not say what is ignored: {error.problem}")
            return set()

    def _watch(self, folder: str) -> bool:
        """Watch one folder; tell whether it is. If it is there and is not, it is to be swept."""
        self.swept.pop(folder, None)
        if (reason := self._apart.get(folder)) is not None:
            self.swept[folder] = reason
            return False
        try:
            if len(self._numbers) >= self._most and folder not in self._numbers:
                raise OSError(errno.ENOSPC, "the limit that was asked for")
            number = self._inotify.add_watch(os.path.join(self._top, folder), _mask())
        except OSError as error:
            if error.errno not in _GONE:
                self.swept[folder] = _why(error)
            return False
        self._set(folder, number)
        return True

    def _set(self, folder: str, number: int) -> None:
        if self._numbers.get(folder, number) != number:
            self._drop(folder)
        # The kernel has one watch for a folder, whatever its path was when it was set.
        if (path := self._paths.get(number, folder)) != folder:
            self._numbers.pop(path, None)
        self._paths[number] = folder
        self._numbers[folder] = number

    def _folders_in(self, folder: str) -> Iterator[str]:
        """Yield the folders in a folder; of one that is a repository of its own, none."""
        try:
            with os.scandir(os.path.join(self._top, folder)) as entries:
                found = [(one.name, one.is_dir(follow_symlinks=False)) for one in entries]
        except OSError:
            # It is gone, and its parent is told; or nobody may look into it.
            return
        if folder and any(name == ".git" for name, _ in found):
            return
        for name, is_folder in found:
            if is_folder and name != ".git":
                yield f"{folder}/{name}" if folder else name


def _mask() -> int:
    mask = 0
    for flag in _MASK:
        mask |= flag
    return mask


def _why(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        name = "max_user_watches"
        return f"the limit of watches is reached (fs.inotify.{name} is {_limit(name)})"
    return f"it cannot be watched: {error.strerror}"


def remedy_for(reason: str) -> str:
    """Return what to do about the reason why a folder is not watched, "" if nothing can be done."""
    if "max_user_watches" not in reason:
        return ""
    wanted = max(524_288, 2 * int(_limit("max_user_watches") or 0))
    return f"sudo sysctl fs.inotify.max_user_watches={wanted}"


def _limit(name: str) -> str:
    return (_LIMITS / name).read_text().strip()


def _no_instance(error: OSError) -> SandboxError:
    if error.errno != errno.EMFILE:
        return SandboxError(
            f"the kernel gives no watches: {error.strerror}",
            remedy="work without the watcher: scans look at every file then",
        )
    name = "max_user_instances"
    wanted = 2 * int(_limit(name))
    return SandboxError(
        f"the limit of inotify instances is reached (fs.inotify.{name} is {_limit(name)})",
        remedy=f"`sudo sysctl fs.inotify.{name}={wanted}`, or end another program that watches",
    )


def is_remote(top: Path) -> str:
    """Return the kind of file system that `top` is on if others may write to it, else ""."""
    kinds = {"": ""}
    for point, kind in _mounts():
        if point == "/" or os.fspath(top) == point or os.fspath(top).startswith(f"{point}/"):
            kinds[point.rstrip("/")] = kind
    kind = kinds[max(kinds, key=len)]
    return kind if kind.split(".")[0] in _REMOTE else ""


def _mounts_below(top: str) -> Iterator[tuple[str, str]]:
    for point, kind in _mounts():
        if point.startswith(f"{top}/"):
            yield point[len(top) + 1 :], f"another file system is mounted there ({kind})"


def _mounts() -> Iterator[tuple[str, str]]:
    """Yield mount points and their kinds."""
    for line in mount_table().splitlines():
        fields = line.split()
        point = fields[4].decode("unicode_escape").encode("latin-1")
        yield os.fsdecode(point), os.fsdecode(fields[fields.index(b"-") + 1])


def mount_table() -> bytes:
    """Return what is mounted where, in the form of proc_pid_mountinfo(5)."""
    return Path("/proc/self/mountinfo").read_bytes()
