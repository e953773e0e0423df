"""Stamps: when equal ones prove equal content."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from sandbox_engine.analysis.stamps import Stamp

NOW = 1_800_000_000_123_456_789
MS = 1_000_000


def test_a_file_is_settled_once_its_clock_must_have_moved_on() -> None:
    for age_ms, is_settled in ((0, False), (4, False), (19, False), (21, True), (5_000, True)):
        stamp = Stamp(1, NOW - age_ms * MS, NOW - age_ms * MS, 7)
        assert stamp.is_settled(NOW) == is_settled, age_ms


def test_a_time_that_was_put_back_does_not_settle_a_file() -> None:
    assert not Stamp(1, 0, NOW, 7).is_settled(NOW)
    assert not Stamp(1, NOW, NOW - 100 * MS, 7).is_settled(NOW)
    # Nor does one that was put forward, ever.
    assert not Stamp(1, NOW + 10**12, NOW - 100 * MS, 7).is_settled(NOW)


def test_whole_seconds_need_more_time() -> None:
    whole = NOW // 10**9 * 10**9
    assert not Stamp(1, whole, whole, 7).is_settled(whole + 2_000 * MS)
    assert Stamp(1, whole, whole, 7).is_settled(whole + 2_200 * MS)


def test_a_status_has_the_stamp_that_is_made_of_it(tmp_path: Path) -> None:
    status = tmp_path.stat()
    stamp = Stamp.of(status)
    assert stamp.is_of(status)
    for name in ("size", "mtime_ns", "ctime_ns", "inode"):
        other = dataclasses.replace(stamp, **{name: getattr(stamp, name) + 1})
        assert not other.is_of(status)


def test_a_change_of_content_is_a_change_of_stamp_or_is_not_settled(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"0000")
    for number in range(1, 300):
        before = path.stat()
        settled = Stamp.of(before).is_settled(before.st_ctime_ns)
        path.write_bytes(b"%04d" % number)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert Stamp.of(path.stat()) != Stamp.of(before) or not settled
