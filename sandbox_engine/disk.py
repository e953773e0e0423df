"""Files and folders on disk: whole writes, and removal of what untrusted code left behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from pathlib import Path


def write_whole(path: Path, content: bytes, *, durable: bool = False) -> None:
    """Replace the file at `path` in one step; a reader sees the old content or the new.

    With `durable` the content and the name survive a loss of power from here on.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    with temporary.open("wb") as file:
        file.write(content)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    temporary.replace(path)
    if durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_if_changed(path: Path, content: bytes) -> None:
    """Make `path` hold `content`; a file that does already is left alone."""
    try:
        if path.read_bytes() == content:
            return
    except FileNotFoundError:
        pass
    write_whole(path, content)


def remove_tree(folder: Path) -> None:
    """Remove `folder` and all in it, also folders that their owner may not enter.

    Nothing outside is touched: links are removed, never followed. A missing folder is no error.
    """
    try:
        status = folder.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(status.st_mode):
        folder.unlink()
        return
    try:
        shutil.rmtree(folder)
    except PermissionError:
        make_enterable(folder)
        shutil.rmtree(folder)


def make_enterable(folder: Path) -> None:
    """Let the owner list and change every folder below `folder`; links are not followed."""
    os.chmod(folder, 0o700)
    for parent, names, _ in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            if not os.path.islink(path):
                os.chmod(path, 0o700)


def size_of(folder: Path) -> int:
    """Return how many bytes the files below `folder` take on disk."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(parent, name)).st_blocks * 512
    return total
