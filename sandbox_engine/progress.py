"""How far a validation is, for somebody who waits for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """What is being done, in a few words, and how many tests have ended so far in it."""

    phase: str
    tests: int = 0


Watch = Callable[[Progress], None]
"""Is told how far it is, from the thread that validates; it must return at once."""


def unwatched(progress: Progress) -> None:
    """Tell nobody."""
