"""What the agent remembers: the original's file, written in the background, and nothing lost."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Literal

import pytest

from agent.history import summary_of
from agent.memory import Memory
from sandbox_engine import SandboxError

BACKENDS: list[Literal["json", "sqlite"]] = ["json", "sqlite"]
both = pytest.mark.parametrize("backend", BACKENDS)


def path_of(folder: Path) -> Path:
    return folder / "HEPHAESTUS_MEMORY.json"


def test_the_file_has_the_fields_that_its_users_know(tmp_path: Path) -> None:
    with Memory(path_of(tmp_path)) as memory:
        memory.add_completed_objective("Refactor a", "SYNTAX_AND_PYTEST", "went well")
        memory.add_failed_objective("Refactor b", "PYTEST_FAILURE", "one test")
        memory.add_capability("can refactor", "Refactor a")
    record = json.loads(path_of(tmp_path).read_text())
    assert set(record) == {
        *("completed_objectives", "failed_objectives", "acquired_capabilities"),
        "recent_objectives_log",
    }
    (completed,) = record["completed_objectives"]
    assert list(completed) == ["objective", "details", "strategy_used", "date", "status"]
    assert record["failed_objectives"][0]["reason"] == "PYTEST_FAILURE"
    assert record["failed_objectives"][0]["status"] == "failure"
    assert record["acquired_capabilities"][0]["related_objective"] == "Refactor a"
    assert [one["status"] for one in record["recent_objectives_log"]] == ["success", "failure"]


@both
def test_what_is_added_is_remembered_at_once_and_by_the_next(
    tmp_path: Path, backend: Literal["json", "sqlite"]
) -> None:
    with Memory(path_of(tmp_path), backend=backend) as memory:
        for number in range(3):
            memory.add_failed_objective("the same", f"reason {number}")
            assert memory.history.failures_in_a_row("the same") == number + 1
        memory.add_completed_objective("another", "DISCARD")
        said = memory.summary()
        assert "1 objectives completed, 3 failed" in said and "- completed: another" in said
    with Memory(path_of(tmp_path), backend=backend) as memory:
        assert memory.summary() == said
        assert [one.objective for one in memory.search("ANOTHÉR".lower())] == ["another"]
        assert memory.search("nothing of the kind") == ()
    with Memory(tmp_path / "none.json", backend=backend) as memory:
        assert memory.summary() == "Nothing has been tried yet."


def test_json_is_cleaned_up_and_sqlite_forgets_nothing(tmp_path: Path) -> None:
    for backend in BACKENDS:
        with Memory(path_of(tmp_path / backend), backend=backend) as memory:
            (tmp_path / backend).mkdir()
            for number in range(60):
                memory.add_completed_objective(f"objective {number % 40}", "DISCARD", str(number))
            memory.flush()
            history = memory.history
            assert len(history.recent_objectives_log) == 5
            newest = [one.details for one in history.completed_objectives][-5:]
            assert newest == ["55", "56", "57", "58", "59"]
            count = history.count("completed_objectives")
            assert count <= 24 if backend == "json" else count == 60


def test_sqlite_takes_over_what_the_file_remembers(tmp_path: Path) -> None:
    with Memory(path_of(tmp_path)) as memory:
        memory.add_completed_objective("old", "DISCARD")
    before = path_of(tmp_path).read_bytes()
    for _ in range(2):
        with Memory(path_of(tmp_path), backend="sqlite") as memory:
            assert [one.objective for one in memory.history.tried] == ["old"]
    assert path_of(tmp_path).read_bytes() == before


def test_many_additions_are_few_writes(tmp_path: Path) -> None:
    with Memory(path_of(tmp_path), backend="sqlite") as memory:
        started = time.monotonic()
        for number in range(1_000):
            memory.add_completed_objective(f"objective {number}", "DISCARD")
        added_s = time.monotonic() - started
        memory.flush()
        assert memory.history.count("completed_objectives") == 1_000
    # Whoever adds does not wait for a disk a thousand times.
    assert added_s < 0.5


@both
def test_threads_and_processes_lose_nothing_of_each_other(
    tmp_path: Path, backend: Literal["json", "sqlite"]
) -> None:
    def add(name: str) -> None:
        with Memory(path_of(tmp_path), backend=backend) as memory:
            for number in range(4):
                memory.add_completed_objective(f"{name} {number}", "DISCARD")
                memory.flush()

    threads = [threading.Thread(target=add, args=(str(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with Memory(path_of(tmp_path), backend=backend) as memory:
        assert len({one.objective for one in memory.history.tried}) == 16


WRITER = """
import signal, sys
from pathlib import Path
from agent.memory import Memory

signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
memory = Memory(Path(sys.argv[1]), backend=sys.argv[2])
for number in range(int(sys.argv[3]), 100_000):
    memory.add_completed_objective(f"objective {number}", "DISCARD")
    if sys.argv[4] == "flush":
        memory.flush()
    print(number, flush=True)
"""


def _writer(path: Path, backend: str, start: int, how: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", WRITER, str(path), backend, str(start), how]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@both
def test_nothing_that_was_flushed_is_lost_in_a_kill(
    tmp_path: Path, backend: Literal["json", "sqlite"]
) -> None:
    numbers = random.Random(4)
    start = 0
    for _ in range(8):
        child = _writer(path_of(tmp_path), backend, start, "flush")
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(numbers.random() * 0.1)
        child.kill()
        said, errors = child.communicate()
        assert errors == ""
        last = int(said.split()[-1]) if said.split() else start
        with Memory(path_of(tmp_path), backend=backend) as memory:
            found = {one.objective for one in memory.history.tried}
        assert {f"objective {number}" for number in range(max(start, last - 14), last + 1)} <= found
        start = last + 2
    assert not list(tmp_path.glob("*.damaged*"))


def test_a_signal_that_ends_a_process_in_order_loses_nothing(tmp_path: Path) -> None:
    child = _writer(path_of(tmp_path), "sqlite", 0, "wait")
    assert child.stdout is not None
    child.stdout.readline()
    time.sleep(0.1)
    child.send_signal(signal.SIGTERM)
    said, errors = child.communicate(timeout=20)
    assert (child.returncode, errors) == (3, "")
    with Memory(path_of(tmp_path), backend="sqlite") as memory:
        assert memory.history.count("completed_objectives") >= int(said.split()[-1]) + 1


@pytest.mark.parametrize(
    "content", [b"{", b"[1]", b"\xff\xfe", b'{"completed_objectives": 5}', b"7"]
)
def test_a_damaged_file_is_set_aside_and_not_overwritten(tmp_path: Path, content: bytes) -> None:
    path_of(tmp_path).write_bytes(content)
    with Memory(path_of(tmp_path)) as memory:
        memory.add_capability("new")
    (kept,) = tmp_path.glob("*.damaged-*")
    assert kept.read_bytes() == content
    with Memory(path_of(tmp_path)) as memory:
        assert [one.description for one in memory.history.acquired_capabilities] == ["new"]


def test_a_damaged_database_is_set_aside(tmp_path: Path) -> None:
    path = path_of(tmp_path).with_suffix(".sqlite3")
    path.write_bytes(b"no database" * 500)
    with Memory(path_of(tmp_path), backend="sqlite") as memory:
        memory.add_capability("new")
    (kept,) = tmp_path.glob("*.damaged-*")
    assert kept.read_bytes() == b"no database" * 500


def test_fields_and_texts_of_older_files_are_carried_along(tmp_path: Path) -> None:
    path_of(tmp_path).write_text(
        json.dumps(
            {"completed_objectives": ["just a text", {"objective": "x", "mood": 7}], "own": 1}
        )
    )
    with Memory(path_of(tmp_path)) as memory:
        memory.add_capability("new")
    record = json.loads(path_of(tmp_path).read_text())
    assert record["own"] == 1 and record["completed_objectives"][1]["mood"] == 7
    assert record["completed_objectives"][0]["objective"] == "just a text"


def test_what_cannot_be_written_is_said_and_written_later(tmp_path: Path) -> None:
    memory = Memory(path_of(tmp_path / "later"))
    memory.add_capability("kept")
    with pytest.raises(SandboxError, match=r"cannot be written: No such file"):
        memory.flush()
    with pytest.raises(SandboxError, match=r"cannot be written: No such file"):
        memory.close()
    assert memory.history.acquired_capabilities[0].description == "kept"
    (tmp_path / "later").mkdir()
    memory.close()
    assert "kept" in path_of(tmp_path / "later").read_text()


def _add_in_a_child(memory: Memory) -> None:
    memory.add_capability("of the child")
    memory.flush()
    os._exit(0)


@both
def test_a_forked_child_writes_for_itself_alone(
    tmp_path: Path, backend: Literal["json", "sqlite"]
) -> None:
    with Memory(path_of(tmp_path), backend=backend) as memory:
        memory.add_capability("of the parent")
        memory.flush()
        child = multiprocessing.get_context("fork").Process(target=_add_in_a_child, args=(memory,))
        child.start()
        child.join(20)
        assert child.exitcode == 0
        memory.add_capability("of the parent, later")
    with Memory(path_of(tmp_path), backend=backend) as memory:
        known = [one.description for one in memory.history.acquired_capabilities]
        assert known == ["of the parent", "of the child", "of the parent, later"]
        assert summary_of(memory.history).count("of the child") == 1
