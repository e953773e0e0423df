from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from sandbox_engine import lock
from sandbox_engine.errors import SandboxBusyError


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first = lock.try_lock(path)
    assert first is not None
    assert lock.try_lock(path) is None
    os.close(first)
    again = lock.try_lock(path)
    assert again is not None
    os.close(again)


def test_waiting_ends_with_the_name_of_what_is_locked(tmp_path: Path) -> None:
    held = lock.try_lock(tmp_path / "lock")
    assert held is not None
    started = time.monotonic()
    with (
        pytest.raises(SandboxBusyError, match="the store stayed locked for 0.1 s"),
        lock.locked(tmp_path / "lock", timeout_s=0.1, what="the store"),
    ):
        pass
    assert time.monotonic() - started < 5
    os.close(held)


def test_a_child_that_inherits_the_lock_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    held = lock.try_lock(path)
    assert held is not None
    with subprocess.Popen(["sleep", "30"], pass_fds=[held]) as child:
        os.close(held)
        assert lock.try_lock(path) is None
        child.kill()
    freed = lock.try_lock(path)
    assert freed is not None
    os.close(freed)
