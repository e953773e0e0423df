"""How a validation is ended from another thread: what it runs is killed, what it holds given back.

A wait for a run watches a descriptor, so it ends at once; a wait for a lock looks now and then.
"""

from __future__ import annotations

import os
import weakref

from sandbox_engine.errors import CancelledError


class Cancellation:
    """Ends each validation that it was given to, once `cancel` is called; it stays cancelled."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._is_cancelled = False
        weakref.finalize(self, os.close, self._fd)

    def cancel(self) -> None:
        """End what it was given to; return at once. From any thread, or a signal handler."""
        self._is_cancelled = True
        os.eventfd_write(self._fd, 1)

    def fileno(self) -> int:
        """Return a descriptor that can be read from as soon as `cancel` was called."""
        return self._fd

    def check(self) -> None:
        """Raise CancelledError if `cancel` was called."""
        if self._is_cancelled:
            raise CancelledError(
                "the validation was cancelled", remedy="validate the patch again, if it matters"
            )
