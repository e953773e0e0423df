"""What has changed since when: the watcher's memory, without the watching.

A clock value is `<instance>:<number>`. What is not known, because it was before this instance or
is forgotten, may be anything.
"""

from __future__ import annotations

import secrets

MOST_PATHS = 100_000


class Journal:
    """Paths and the numbers of their last changes; one that ends with `/` is all that is below."""

    def __init__(self, most: int = MOST_PATHS) -> None:
        self._instance = secrets.token_hex(8)
        self._most = most
        self._now = 0
        self._floor = 0
        """Of what was before this number nothing is known."""
        self._changes: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._changes)

    @property
    def clock(self) -> str:
        """The value that stands for now."""
        return f"{self._instance}:{self._now}"

    def mark(self, path: str) -> None:
        """Note that `path` has changed, or may have."""
        self._now += 1
        # The last one is the one that changed last.
        self._changes.pop(path, None)
        self._changes[path] = self._now
        if len(self._changes) > self._most:
            oldest = next(iter(self._changes))
            self._floor = self._changes.pop(oldest)

    def doubt(self) -> None:
        """Note that anything may have changed."""
        self._now += 1
        self._floor = self._now
        self._changes.clear()

    def since(self, clock: object) -> frozenset[str] | None:
        """Return the paths that have changed since `clock`, None if it may be any."""
        instance, _, number = str(clock).partition(":")
        if instance != self._instance or not number.isdecimal():
            return None
        if not self._floor <= int(number) <= self._now:
            return None
        found = set()
        for path, change in reversed(self._changes.items()):
            if change <= int(number):
                break
            found.add(path)
        return frozenset(found)
