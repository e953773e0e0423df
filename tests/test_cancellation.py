"""A validation is ended from another thread: at once, and with nothing left."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import GitBox

from sandbox_engine import Cancellation, CancelledError, Config, Engine, Outcome, Tier, Verdict
from sandbox_engine.process import RUN_VARIABLE

PATCH = '{"patches_to_apply": [{"file_path": "new.txt", "operation": "INSERT", "content": "x"}]}'
SLOW = "import time\n\ndef test_slow(): time.sleep({})\n"


@pytest.fixture(params=[Tier.FULL, Tier.NONE], ids=str)
def engine(box: GitBox, request: pytest.FixtureRequest) -> Engine:
    if request.param is Tier.FULL:
        request.getfixturevalue("full_tier")
    box.commit({"test_slow.py": SLOW.format(60)})
    return Engine(box.top, config=Config(isolation=request.param, slots=1))


def runs(engine: Engine) -> list[int]:
    """Return the processes of all runs in the engine's sandboxes."""
    mark = f"{RUN_VARIABLE}={engine.store.folder.name}/".encode()
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if mark in Path(f"/proc/{name}/environ").read_bytes():
                found.append(int(name))
    return found


def started(engine: Engine, cancellation: Cancellation) -> Future[Verdict]:
    """Begin to validate a patch in another thread, and return when its tests run."""
    future = ThreadPoolExecutor(1).submit(engine.validate, PATCH, cancellation=cancellation)
    while not runs(engine) and not future.done():
        time.sleep(0.02)
    return future


def test_a_run_is_ended_at_once_and_its_sandbox_is_free(engine: Engine, box: GitBox) -> None:
    before, cancellation = box.snapshot(), Cancellation()
    running = started(engine, cancellation)
    time.sleep(0.5)
    began = time.monotonic()
    cancellation.cancel()
    with pytest.raises(CancelledError):
        running.result(timeout=20)
    assert time.monotonic() - began < 5
    assert not runs(engine)
    # The only sandbox is free, and works.
    added = PATCH.replace("new.txt", "test_new.py").replace('"x"', '"def test_new(): pass"')
    verdict = engine.validate(added, strategy="CREATE_NEW_TEST_FILE_STRATEGY")
    assert verdict.outcome is Outcome.PASSED
    assert box.snapshot() == before


def test_what_is_cancelled_already_runs_nothing(engine: Engine) -> None:
    cancellation = Cancellation()
    cancellation.cancel()
    began = time.monotonic()
    with pytest.raises(CancelledError):
        engine.validate(PATCH, cancellation=cancellation)
    assert time.monotonic() - began < 10


def test_one_that_waits_for_a_sandbox_is_cancelled_and_the_other_goes_on(box: GitBox) -> None:
    box.commit({"test_slow.py": SLOW.format(2)})
    engine = Engine(box.top, config=Config(isolation=Tier.NONE, slots=1))
    first = started(engine, Cancellation())
    waiting = Cancellation()
    other = PATCH.replace("new.txt", "other.txt")
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(engine.validate, other, cancellation=waiting)
        threading.Timer(0.5, waiting.cancel).start()
        with pytest.raises(CancelledError):
            second.result(timeout=20)
    assert not first.done()
    assert first.result(timeout=60).outcome is Outcome.PASSED
