"""What a person sees of a cycle: the phase, how long it has taken, and what it waits for.

On a terminal it is one line that is written over and over; elsewhere a line at the end of each
phase.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO

from agent.history import short

_TICK_S = 0.2
_CLEAR = "\r\x1b[K"


class Progress:
    """Tells of phases on `stream`; several may be under way at once. Safe to share."""

    def __init__(self, stream: TextIO | None = None, *, is_quiet: bool = False) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._is_live = self._stream.isatty() and not is_quiet
        self._is_quiet = is_quiet
        self._lock = threading.Lock()
        self._keys = itertools.count()
        self._running: dict[int, tuple[str, str, float]] = {}
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def say(self, line: str) -> None:
        """Write a line of its own."""
        if not self._is_quiet:
            with self._lock:
                self._write(f"{_CLEAR if self._is_live else ''}{line}\n")

    @contextlib.contextmanager
    def phase(self, name: str, waits_for: str = "") -> Iterator[None]:
        """Show that a phase is under way while the block lasts, and what it waits for."""
        started_s = time.monotonic()
        with self._lock:
            key = next(self._keys)
            self._running[key] = (name, waits_for, started_s)
        self._show()
        try:
            yield
        finally:
            with self._lock:
                del self._running[key]
            if not self._is_live:
                what = f" ({waits_for})" if waits_for else ""
                self.say(f"  {name:<10} {time.monotonic() - started_s:6.1f} s{what}")

    def close(self) -> None:
        """End the line that is written over."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            with self._lock:
                self._write(_CLEAR)

    def _show(self) -> None:
        if self._is_live and self._thread is None:
            self._ended.clear()
            self._thread = threading.Thread(target=self._tick, name="progress", daemon=True)
            self._thread.start()

    def _tick(self) -> None:
        while not self._ended.wait(_TICK_S):
            with self._lock:
                now_s = time.monotonic()
                parts = [
                    f"{name} {now_s - started_s:.1f} s" + (f", waits for {what}" if what else "")
                    for name, what, started_s in self._running.values()
                ]
                columns = shutil.get_terminal_size().columns - 1
                self._write(_CLEAR + short(" | ".join(parts), max(10, columns - 1)))

    def _write(self, text: str) -> None:
        # A terminal that is gone must not end a cycle.
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
            self._stream.flush()
