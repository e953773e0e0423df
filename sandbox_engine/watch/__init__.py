"""What may have changed below a folder, as a process says that watches it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Changes:
    """Paths that may have changed since a clock value, None for any; and the value from now on.

    They are relative to the top of the work tree; one that ends with `/` is all that is below.
    """

    clock: str
    paths: frozenset[str] | None


def ask(top: Path, since: str | None, *, timeout_s: float = 1.0) -> Changes | None:
    """Return what may have changed below `top`; None where nobody watches it."""
    return None
