"""Where the watcher of a work tree is found."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from sandbox_engine.store import cache_home


@dataclass(frozen=True, slots=True)
class Place:
    """The folder of one work tree's watcher, which only its owner may enter."""

    folder: Path

    @property
    def lock(self) -> Path:
        """Held for as long as the watcher lives."""
        return self.folder / "lock"

    @property
    def socket(self) -> Path:
        return self.folder / "socket"

    @property
    def cookies(self) -> Path:
        """What the watcher writes to see that it has seen all that came before."""
        return self.folder / "cookies"

    @property
    def log(self) -> Path:
        return self.folder / "log"


def place_of(top: Path) -> Place:
    """Return the place of the watcher of the work tree at `top`."""
    real = os.path.realpath(top)
    digest = hashlib.sha256(os.fsencode(real)).hexdigest()[:16]
    name = "".join(
        char if char.isascii() and char.isalnum() else "-" for char in os.path.basename(real)
    )
    return Place(cache_home() / "watch" / f"{name[:32]}-{digest}")
