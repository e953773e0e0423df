"""Files and folders on disk: whole writes, and removal of what untrusted code left behind."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import stat
import threading
from pathlib import Path

from sandbox_engine import process
from sandbox_engine.errors import SandboxError

_REMOVE_S = 600.0


def write_whole(path: Path, content: bytes, *, durable: bool = False) -> None:
    """Replace the file at `path` in one step; a reader sees the old content or the new.

    With `durable` the content and the name survive a loss of power from here on.
    """
    # Threads of one process may write the same file at the same time.
    temporary = path.with_name(f"{path.name}.{threading.get_native_id()}.{os.getpid()}.new")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


@functools.cache
def umask() -> int:
    """Return this process's umask, which git inherits; to ask `os.umask` would change it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)


def sweep_halves(folder: Path) -> None:
    """Remove what `write_whole` left in `folder` in processes that were killed."""
    for path in folder.glob("*.new"):
        pid = path.name.split(".")[-2]
        if pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
            path.unlink(missing_ok=True)


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
    except (OSError, RecursionError):
        # Folders that may not be entered, or nested deeper than a path or our stack is long.
        for argv in (["chmod", "-R", "u+rwX"], ["rm", "-rf"]):
            done = process.run_tool([*argv, "--", str(folder)], timeout_s=_REMOVE_S)
        if os.path.lexists(folder):
            said = done.stderr.decode("utf-8", "replace").strip().splitlines()
            raise SandboxError(
                f"`{folder}` cannot be removed" + (f": {said[-1]}" if said else ""),
                remedy="remove it by hand, as the user that owns what is in it",
            ) from None


def size_of(folder: Path) -> int:
    """Return how many bytes the files below `folder` take on disk."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(parent, name)).st_blocks * 512
    return total
