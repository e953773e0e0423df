"""Locks that die with their process: `flock` on a file that stays.

The file is never removed: whoever unlinks a lock file lets two processes hold two locks of one
name. The descriptor may be handed to child processes, and then the lock lives until the last of
them is gone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from sandbox_engine.cancellation import Cancellation
from sandbox_engine.errors import SandboxBusyError

_POLL_S = 0.02


def try_lock(path: Path, *, shared: bool = False) -> int | None:
    """Return a descriptor that holds the lock on `path`, or None when another one holds it.

    Any number may hold it `shared` while none holds it alone.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return None
        raise
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextlib.contextmanager
def locked(
    path: Path,
    *,
    timeout_s: float,
    what: str,
    cancellation: Cancellation | None = None,
    shared: bool = False,
) -> Iterator[int]:
    """Hold the lock on `path`; raise SandboxBusyError naming `what` after `timeout_s` seconds.

    Raise CancelledError when that comes first. Any number may hold it `shared`.
    """
    deadline = time.monotonic() + timeout_s
    while (descriptor := try_lock(path, shared=shared)) is None:
        if time.monotonic() >= deadline:
            raise SandboxBusyError(
                f"{what} stayed locked for {timeout_s:g} s (`{path}`)",
                remedy="wait for the other sandbox-engine process to end, or end it",
            )
        if cancellation is not None:
            cancellation.check()
        time.sleep(_POLL_S)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
