"""A file system for one sandbox: read-only layers, and writes that are thrown away.

It exists only in the keeper's own mount namespace, inside a user namespace that an ordinary user
may make, so it costs what the patch costs and is gone with the keeper, however that ends
(docs/adr/0005-layers-and-tiers.md). Two tmpfs hold what is not on disk: `layer` the candidate's
files, which the engine wrote; `space`, of a bounded size, all that runs write.

    root = space/upper/root over layer/candidate over the base's files over what is carried

What runs see is put together here too, in `layer/view`: a direct call for each mount costs
microseconds, and bubblewrap takes all of it along at once.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
from typing import Any

from . import linux

_FLAGS = linux.MS_NOSUID | linux.MS_NODEV
VIEW = b"view"
MAP_POPULATE = getattr(mmap, "MAP_POPULATE", 0)
_OPAQUE = "user.overlay.opaque"
_SPACE_FOLDERS = ((b"tmp", 0o1777), (b"var-tmp", 0o1777), (b"shm", 0o1777), (b"home", 0o700))
_PART_BYTES = 1024 * 1024
_FOLDER = os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK


class Overlay:
    """The mounts of one sandbox, as a `prepare` message describes them.

    `layer` and `space` are empty folders to mount on. `files` are the candidate's: path, mode and
    content, a link's target for one; `gone` are paths that it does not have; `index` are bytes, or
    ranges of `old_index`, of its git index but for the checksum. `mounts` are name,
    lower folders from the top down, and the place below the root, empty for none; the first is
    the root itself. `shown` are place, source, whether it is writable, and whether it is a link.
    `home` are the files of HOME. Sizes are in bytes.
    """

    def __init__(self, fields: dict[str, Any]) -> None:
        self.layer: bytes = fields["layer"]
        self.space: bytes = fields["space"]
        self.options = b"size=%d,nr_inodes=%d,mode=755" % (fields["disk_bytes"], fields["inodes"])
        self.mounts: list[tuple[bytes, list[bytes], bytes]] = fields["mounts"]
        self.home: list[tuple[bytes, bytes]] = fields["home"]
        self.shown: list[tuple[bytes, bytes, bool, bool]] = fields["shown"]
        self.candidate = os.path.join(self.layer, b"candidate")
        self.root = os.path.join(self.space, self.mounts[0][0])
        enter_namespaces()
        linux.mount(b"sandbox-engine", self.layer, b"tmpfs", _FLAGS, b"mode=755")
        write_layer(self.candidate, fields["files"], fields["gone"], fields["mtime_ns"])
        if fields["index"]:
            target = os.path.join(self.candidate, b".git", b"index")
            write_index(target, fields["old_index"], fields["index"])
        self.mounts[0][1].insert(0, self.candidate)
        self._mount()

    def _mount(self) -> None:
        linux.mount(b"sandbox-engine", self.space, b"tmpfs", _FLAGS, self.options)
        for name, mode in _SPACE_FOLDERS:
            os.mkdir(os.path.join(self.space, name))
            os.chmod(os.path.join(self.space, name), mode)
        write_file(os.path.join(self.space, b"empty"), b"", 0o444)
        for path, content in self.home:
            write_file(os.path.join(self.space, b"home", path), content, 0o644)
        for name, lowers, place in self.mounts:
            self._overlay(name, lowers, os.path.join(self.root, place) if place else b"")
        show(os.path.join(self.layer, VIEW), self.shown)

    def _overlay(self, name: bytes, lowers: list[bytes], target: bytes) -> None:
        target = target or os.path.join(self.space, name)
        # Named by descriptor, or from here: a path may hold what separates options.
        os.chdir(self.space)
        upper, work = (os.path.join(part, name) for part in (b"upper", b"work"))
        for folder in (upper, work, target):
            os.makedirs(folder, exist_ok=True)
        opened = [os.open(folder, os.O_PATH) for folder in lowers]
        try:
            lower = b":".join(b"/proc/self/fd/%d" % fd for fd in opened)
            options = b"userxattr,lowerdir=%b,upperdir=%b,workdir=%b" % (lower, upper, work)
            linux.mount(b"sandbox-engine", target, b"overlay", _FLAGS, options)
        finally:
            for fd in opened:
                os.close(fd)
            os.chdir("/")

    def reset(self) -> None:
        """Throw away all that runs have written."""
        linux.umount(os.path.join(self.layer, VIEW), linux.MNT_DETACH)
        linux.umount(self.space, linux.MNT_DETACH)
        self._mount()

    def read(self, path: bytes) -> bytes | None:
        """Return the bytes of the regular file at `path`, or None; links are not followed."""
        *folders, name = path.split(b"/")
        fd = os.open(self.root, os.O_PATH)
        try:
            for folder in folders:
                fd = _moved(fd, os.open(folder, _FOLDER, dir_fd=fd))
            fd = _moved(fd, os.open(name, _FILE, dir_fd=fd))
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return None
            with open(fd, "rb", closefd=False) as file:
                return file.read()
        except OSError:
            return None
        finally:
            os.close(fd)

    def changes(self) -> list[bytes]:
        """Return the paths at which a run has changed what the tree has there.

        Only what was written is looked at, and only where the tree has something.
        """
        upper = os.path.join(self.space, b"upper", self.mounts[0][0])
        found: list[bytes] = []
        folders = [b""]
        while folders:
            folder = folders.pop()
            with os.scandir(os.path.join(upper, folder)) as entries:
                paths = [os.path.join(folder, entry.name) for entry in entries]
            for path in paths:
                lower = self._lower(path)
                if lower is None or path == b".git":
                    continue
                now, before = os.path.join(upper, path), os.path.join(lower, path)
                if differs(now, before):
                    found.append(path)
                elif stat.S_ISDIR(os.lstat(now).st_mode):
                    folders.append(path)
        return found

    def _lower(self, path: bytes) -> bytes | None:
        """Return the layer that has the tree's `path`, or None when it is not the tree's."""
        for layer in self.mounts[0][1][:2]:
            current = layer
            for part in path.split(b"/"):
                current = os.path.join(current, part)
                try:
                    mode = os.lstat(current).st_mode
                except OSError:
                    break
                if stat.S_ISCHR(mode):
                    return None
            else:
                return layer
        return None


def enter_namespaces() -> None:
    """Move this process into a user namespace of its own, as itself, and a mount namespace."""
    uid, gid = os.geteuid(), os.getegid()
    linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWNS)
    for name, content in (
        ("setgroups", b"deny"),
        ("uid_map", b"%d %d 1" % (uid, uid)),
        ("gid_map", b"%d %d 1" % (gid, gid)),
    ):
        fd = os.open(f"/proc/self/{name}", os.O_WRONLY)
        try:
            os.write(fd, content)
        finally:
            os.close(fd)
    linux.mount(None, b"/", None, linux.MS_REC | linux.MS_PRIVATE, None)


def show(view: bytes, shown: list[tuple[bytes, bytes, bool, bool]]) -> None:
    """Mount on the folder `view` a tree in which everything is at its place."""
    os.makedirs(view, exist_ok=True)
    linux.mount(b"sandbox-engine", view, b"tmpfs", _FLAGS, b"mode=755")
    for name in (b"proc", b"dev"):
        os.mkdir(os.path.join(view, name))
    made = set()
    for place, source, is_writable, is_link in shown:
        target = view + place
        folder = os.path.dirname(target)
        if folder not in made:
            os.makedirs(folder, exist_ok=True)
            made.add(folder)
        if is_link:
            os.symlink(source, target)
            continue
        status = os.stat(source)
        is_small = stat.S_ISREG(status.st_mode) and not is_writable
        if is_small and not os.path.lexists(target):
            # A mount costs every run; these are small settings.
            with open(source, "rb", buffering=0) as file:
                write_file(target, file.read(), stat.S_IMODE(status.st_mode))
            continue
        make_mount_point(target, status.st_mode)
        linux.mount(source, target, None, linux.MS_BIND | linux.MS_REC, None)
        attributes = linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV
        if not is_writable:
            attributes |= linux.MOUNT_ATTR_RDONLY
        linux.set_mount(target, attributes, recursive=True)
    linux.set_mount(view, linux.MOUNT_ATTR_RDONLY, recursive=False)


def make_mount_point(target: bytes, mode: int) -> None:
    """Make something at `target` that what has `mode` can be mounted on, unless it is there."""
    if os.path.lexists(target):
        return
    if stat.S_ISDIR(mode):
        os.mkdir(target)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))


def write_layer(
    folder: bytes, files: list[tuple[bytes, int, bytes]], gone: list[bytes], mtime_ns: int
) -> None:
    """Write what a layer has, and mark what it hides of those below it."""
    os.mkdir(folder)
    for path, mode, content in files:
        target = os.path.join(folder, path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if stat.S_ISLNK(mode):
            os.symlink(content, target)
        elif stat.S_ISDIR(mode):
            os.makedirs(target, exist_ok=True)
            continue
        else:
            write_file(target, content, stat.S_IMODE(mode))
        os.utime(target, ns=(mtime_ns, mtime_ns), follow_symlinks=False)
    for path in gone:
        target = os.path.join(folder, path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        # What overlayfs calls a whiteout; it takes no privilege to make one.
        os.mknod(target, stat.S_IFCHR, os.makedev(0, 0))


def write_index(path: bytes, old: bytes, parts: list[bytes | tuple[int, int]]) -> None:
    """Write a git index out of bytes and of ranges of an old one, with its checksum.

    It is most of what grows with the repository, so nothing is copied on the way.
    """
    digest = hashlib.sha1(usedforsecurity=False)
    flags = mmap.MAP_PRIVATE | MAP_POPULATE
    with (
        open(old, "rb") as source,
        open(path, "xb", buffering=0) as file,
        mmap.mmap(source.fileno(), 0, flags=flags, prot=mmap.PROT_READ) as mapped,
        memoryview(mapped) as whole,
    ):
        for part in parts:
            with memoryview(part) if isinstance(part, bytes) else whole[slice(*part)] as content:
                digest.update(content)
                file.write(content)
        file.write(digest.digest())


def write_file(path: bytes, content: bytes, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(fd, "wb", buffering=0) as file:
        view = memoryview(content)
        while view:
            view = view[file.write(view) :]


def differs(now: bytes, before: bytes) -> bool:
    """Tell whether what git tracks of a file differs, or a folder hides the one before."""
    status, old = os.lstat(now), os.lstat(before)
    if stat.S_IFMT(status.st_mode) != stat.S_IFMT(old.st_mode):
        return True
    if stat.S_ISDIR(status.st_mode):
        return is_opaque(now)
    if stat.S_ISLNK(status.st_mode):
        return os.readlink(now) != os.readlink(before)
    if (status.st_mode ^ old.st_mode) & stat.S_IXUSR or status.st_size != old.st_size:
        return True
    return not same_content(now, before)


def is_opaque(folder: bytes) -> bool:
    """Tell whether a folder was removed and made again, so that nothing below shows through."""
    try:
        return os.getxattr(folder, _OPAQUE) == b"y"
    except OSError:
        return False


def same_content(one: bytes, other: bytes) -> bool:
    with open(one, "rb") as first, open(other, "rb") as second:
        while (part := first.read(_PART_BYTES)) == second.read(_PART_BYTES):
            if not part:
                return True
    return False


def _moved(old: int, new: int) -> int:
    os.close(old)
    return new
