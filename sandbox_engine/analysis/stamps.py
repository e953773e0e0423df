"""Stamps: what the file system says of a file, and when that proves that it is what it was.

Equal stamps prove equal content only if the file could not change any more without its times
changing too. A kernel's clock for files stands still for some milliseconds, so a file that was
changed in this moment may be changed again and look the same: git calls it racy, see
https://git-scm.com/docs/racy-git. The time of a change of status counts, as programs put back the
other one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

_TICK_NS = 20_000_000
"""Longer than any kernel's clock for files stands still; the usual are 1, 4 and 10 ms."""
_COARSE_NS = 2_100_000_000
"""The same for a file system that keeps whole seconds, or every other, as FAT does."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """Size in bytes, times in nanoseconds since the epoch, and inode of a regular file."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @staticmethod
    def of(status: os.stat_result) -> Stamp:
        """Return the stamp in what `os.lstat` or `os.fstat` returned."""
        return Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)

    def is_of(self, status: os.stat_result) -> bool:
        """Tell whether `status` has this stamp; `of` for each file would cost more."""
        return (
            status.st_ctime_ns == self.ctime_ns
            and status.st_mtime_ns == self.mtime_ns
            and status.st_size == self.size
            and status.st_ino == self.inode
        )

    def is_settled(self, now_ns: int) -> bool:
        """Tell whether a file that was read at `now_ns`, or later, cannot change unseen."""
        is_coarse = self.ctime_ns % 1_000_000_000 == 0
        newest = max(self.mtime_ns, self.ctime_ns)
        return newest + (_COARSE_NS if is_coarse else _TICK_NS) < now_ns
