"""Files of the agent's on disk: whole writes, locks that die with their process, and set-asides.

The engine has such floors too, and they are not part of its face; these are the few that what
the agent remembers needs.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from sandbox_engine import DiskFullError, SandboxBusyError, SandboxError

LOCK_WAIT_S = 10.0
_POLL_S = 0.02
_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_whole(path: Path, content: bytes) -> None:
    """Replace the file at `path` in one step that survives a loss of power.

    A reader sees the old content or the new. The mode of a file that is there is kept, and a
    symbolic link stays one: what it points at is replaced.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f"{target.name}.{os.getpid()}-{threading.get_native_id()}.new")
    try:
        with temporary.open("wb") as file:
            with contextlib.suppress(FileNotFoundError):
                os.fchmod(file.fileno(), target.stat().st_mode & 0o777)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def sweep_halves(path: Path) -> None:
    """Remove what `write_whole` left beside `path` in processes that were killed."""
    target = Path(os.path.realpath(path))
    for half in target.parent.glob(f"{_literal(target.name)}.*-*.new"):
        pid = half.name.removeprefix(f"{target.name}.").partition("-")[0]
        if pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
            half.unlink(missing_ok=True)


def set_aside(path: Path, word: str, content: bytes | None = None) -> Path:
    """Return where the file at `path` was moved to: `NAME.WORD-1`, or the next that is free.

    With `content` it stays, and this is what is kept. Nothing is ever overwritten.
    """
    kept = _reserved(path, word)
    if content is None:
        path.replace(kept)
    else:
        with kept.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    _sync_folder(path.parent)
    return kept


def _reserved(path: Path, word: str) -> Path:
    for number in itertools.count(1):
        kept = path.with_name(f"{path.name}.{word}-{number}")
        with contextlib.suppress(FileExistsError):
            os.close(os.open(kept, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            return kept
    raise AssertionError("numbers do not end")


@contextlib.contextmanager
def locked(path: Path, *, timeout_s: float = LOCK_WAIT_S) -> Iterator[None]:
    """Hold the lock of `path`; raise SandboxBusyError when another one keeps it for too long.

    The lock is a file beside it that stays: whoever unlinks one lets two hold the same.
    """
    lock = path.with_name(f"{path.name}.lock")
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + timeout_s
        while not _try_lock(descriptor):
            if time.monotonic() >= deadline:
                raise SandboxBusyError(
                    f"`{path}` stayed locked for {timeout_s:g} s (`{lock}`)",
                    remedy="wait for the other agent that uses it to end, or end it",
                )
            time.sleep(_POLL_S)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def told(path: Path, what: str) -> Iterator[None]:
    """Turn what the system says of `path` into our errors; `what` is a verb, as `written`."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFullError(
                f"`{path}` cannot be {what}: {error.strerror}", remedy="free some space"
            ) from error
        raise SandboxError(
            f"`{path}` cannot be {what}: {error.strerror or error}",
            remedy="check that its folder exists and that you may write there",
        ) from error


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _literal(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
