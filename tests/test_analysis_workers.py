"""Processes that analyse: a crash, a hang or a flood hurts nobody else."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from sandbox_engine import Analyser, NotAnalysableError, Unknown
from sandbox_engine.analysis.analysers import resolve
from sandbox_engine.analysis.workers import Answer, Job, Workers

MODULE = """
import os, sys, time


def length(content):
    return len(content)


def pid(content):
    return os.getpid()


def crash(content):
    os.abort()


def hang(content):
    time.sleep(60)


def hog(content):
    return len([bytearray(2**24) for _ in range(1000)])


def talk(content):
    print("noise" * 1000)
    os.write(1, b"more noise")
    sys.stdout.flush()
    return "said"


def odd(content):
    return {1, 2}


def deep(content):
    return deep(content) + 1
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ways.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))


def way(name: str) -> Analyser:
    return Analyser(name, "1", f"ways:{name}")


def answers(workers: Workers, *names: str, content: bytes = b"abc") -> tuple[Answer, ...]:
    ((_, found),) = workers.run([Job("key", content, tuple(map(way, names)))])
    return found


def test_every_job_is_answered_with_its_key() -> None:
    workers = Workers(2)
    jobs = [Job(number, b"x" * number, (way("length"),)) for number in range(50)]
    found = {job.key: answer.value for job, (answer,) in workers.run(jobs)}
    assert found == {number: number for number in range(50)}
    workers.close()


def test_workers_are_used_again_and_ended() -> None:
    workers = Workers(1)
    pids = {answers(workers, "pid")[0].value for _ in range(5)}
    assert len(pids) == 1
    workers.close()
    assert not os.path.exists(f"/proc/{pids.pop()}")
    # The next run starts a new one.
    assert answers(workers, "length") == (Answer(3),)
    workers.close()


def test_a_crash_is_unknown_and_the_next_file_is_analysed() -> None:
    workers = Workers(1)
    assert answers(workers, "crash") == (
        Answer(Unknown("the analysis crashed (exit code -6)"), recurs=False),
    )
    assert answers(workers, "length") == (Answer(3),)
    workers.close()


def test_what_takes_too_long_is_ended() -> None:
    workers = Workers(1, timeout_s=0.5)
    started = time.monotonic()
    (answer,) = answers(workers, "hang")
    assert answer == Answer(Unknown("the analysis took too long"), recurs=False)
    assert time.monotonic() - started < 5
    workers.close()


def test_memory_and_depth_are_bounded() -> None:
    workers = Workers(1)
    for name in ("hog", "deep"):
        (answer,) = answers(workers, name)
        assert isinstance(answer.value, Unknown) and answer.recurs
        assert answer.value.reason == "nested too deeply, or too large, to be analysed"
    assert answers(workers, "length") == (Answer(3),)
    workers.close()


def test_source_that_is_nested_deeply_is_unknown_and_nothing_dies() -> None:
    workers = Workers(1)
    for content in (b"(" * 100_000, b"-" * 100_000 + b"1", b"x = " + b"[" * 90 + b"]" * 90):
        ((_, found),) = workers.run([Job(0, content, resolve(["metrics", "skeleton"]))])
        for answer in found:
            assert answer.recurs
    assert not isinstance(found[0].value, Unknown)
    workers.close()


def test_what_a_function_prints_is_not_taken_for_its_answer() -> None:
    workers = Workers(1)
    assert [one.value for one in answers(workers, "talk", "length")] == ["said", 3]
    workers.close()


def test_what_is_no_json_and_what_does_not_exist_is_said() -> None:
    workers = Workers(1)
    odd, missing = answers(workers, "odd", "nothing")
    assert "the analyser failed: TypeError: Object of type set is not JSON" in str(odd.value)
    assert "the analyser failed: AttributeError" in str(missing.value)
    assert not odd.recurs and not missing.recurs
    workers.close()


def test_functions_that_cannot_be_imported_are_run_here() -> None:
    def refuse(content: bytes) -> None:
        raise NotAnalysableError("not today")

    def fail(content: bytes) -> None:
        raise ZeroDivisionError("oh")

    here = [
        Analyser("pid", "1", lambda content: os.getpid()),
        Analyser("tuple", "1", lambda content: (1, 2)),
        Analyser("refuse", "1", refuse),
        Analyser("fail", "1", fail),
    ]
    workers = Workers(1)
    ((_, found),) = workers.run([Job(0, b"", tuple(here))])
    assert found == (
        Answer(os.getpid()),
        Answer([1, 2]),
        Answer(Unknown("not today")),
        Answer(Unknown("the analyser failed: ZeroDivisionError: oh"), recurs=False),
    )
    workers.close()


def test_a_run_that_nobody_follows_to_its_end_ends_its_processes() -> None:
    workers = Workers(2)
    run = workers.run(Job(number, b"", (way("pid"),)) for number in range(100))
    pids = {next(run)[1][0].value, next(run)[1][0].value}
    run.close()
    deadline = time.monotonic() + 5
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_many_open_files_are_no_obstacle() -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2_000:
        pytest.skip(f"no more than {hard} files may be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (2_000, hard))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1_100)]
    try:
        workers = Workers(1)
        assert answers(workers, "length") == (Answer(3),)
        workers.close()
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_worker_imports_what_this_process_does_and_nothing_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "json.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert str(tmp_path / "elsewhere") not in sys.path
    workers = Workers(1)
    assert answers(workers, "length") == (Answer(3),)
    workers.close()
