"""Shelves: numbered folders that hold what is costly to make, used by many and changed by one.

Each place has a label that says what is on it, written last, and a lock: users hold it shared,
whoever changes what is there holds it alone. So nothing is taken away under a user, a place that
was left half-made has no label, and the number of places bounds what is on disk.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sandbox_engine import disk, lock

_LABEL = "label"


@dataclass(frozen=True)
class Place:
    """A folder that stays as it is for as long as `lease` is open."""

    folder: Path
    label: str
    lease: int


@dataclass(frozen=True)
class Shelf:
    """The places `0` to `most` in `folder`, of which `kept` are filled before one is reused."""

    folder: Path
    most: int
    kept: int

    def labels(self) -> dict[int, str]:
        """Return the label of each place that has one."""
        numbers = [int(name) for name in os.listdir(self.folder) if name.isdigit()]
        found = {number: _label_of(self._place(number)) for number in sorted(numbers)}
        return {number: label for number, label in found.items() if label is not None}

    def hold(self, number: int, accept: Callable[[str], bool]) -> Place | None:
        """Return a place if nobody changes it and its label is accepted, once it is held."""
        folder = self._place(number)
        lease = lock.try_lock(folder.with_suffix(".lock"), shared=True)
        if lease is None:
            return None
        try:
            label = _label_of(folder)
            if label is not None and accept(label):
                os.utime(folder / _LABEL)
                return Place(folder, label, lease)
        except BaseException:
            os.close(lease)
            raise
        os.close(lease)
        return None

    def find(self, label: str) -> Place | None:
        """Return the place that has exactly `label`, held, or None."""
        for number, found in self.labels().items():
            if found == label and (place := self.hold(number, label.__eq__)):
                return place
        return None

    def fill(self, label: str, make: Callable[[Path, str | None, int], None]) -> Place | None:
        """Put `label` on a place that nobody uses, and return it held; None without a free one.

        `make` gets the folder, what was on it, None for nothing that is whole, and the lock. The
        caller sees to it that only one process is here at a time.
        """
        for number in self._by_use():
            folder = self._place(number)
            alone = lock.try_lock(folder.with_suffix(".lock"))
            if alone is None:
                continue
            try:
                before = _label_of(folder)
                (folder / _LABEL).unlink(missing_ok=True)
                disk.sweep_halves(folder)
                make(folder, before, alone)
                disk.write_whole(folder / _LABEL, label.encode())
            except BaseException:
                # It is not whole, and may be what fills the disk.
                disk.remove_tree(folder)
                raise
            finally:
                os.close(alone)
            if place := self.hold(number, label.__eq__):
                return place
        return None

    def _place(self, number: int) -> Path:
        return self.folder / str(number)

    def _by_use(self) -> Iterator[int]:
        """Yield all numbers: empty places first while few are filled, then the least used."""
        used: dict[int, int] = {}
        for number in self.labels():
            with contextlib.suppress(FileNotFoundError):
                used[number] = (self._place(number) / _LABEL).stat().st_mtime_ns
        empty = [number for number in range(self.most + 1) if number not in used]
        old = sorted(used, key=lambda number: used[number])
        yield from (*empty, *old) if len(used) < self.kept else (*old, *empty)


def open_shelf(folder: Path, *, most: int, kept: int) -> Shelf:
    """Return the shelf in `folder`, which is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return Shelf(folder, most, kept)


def unused(folder: Path, before: float) -> list[Path]:
    """Return the places in `folder` that nobody has used since `before`, in seconds since 1970."""
    if not folder.is_dir():
        return []
    found = []
    for path in folder.iterdir():
        if path.name.isdigit():
            with contextlib.suppress(FileNotFoundError):
                label = path / _LABEL
                if (label if label.exists() else path).stat().st_mtime < before:
                    found.append(path)
    return found


def _label_of(folder: Path) -> str | None:
    try:
        return (folder / _LABEL).read_text()
    except FileNotFoundError:
        return None
