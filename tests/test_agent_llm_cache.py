"""Answers that were paid for: kept in memory and on disk, and never made up."""

from __future__ import annotations

import multiprocessing
import os
import random
from pathlib import Path

import pytest

from agent.utils.answer_file import AnswerFile, KeptAnswer
from agent.utils.llm_cache import Bounds, LlmCache


def answer(number: int) -> KeptAnswer:
    return KeptAnswer(f"answer {number} é \ud800", number, 0.5, 1.5)


def test_what_is_kept_is_found_by_another_process(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "answers.sqlite3"
    with LlmCache(path) as cache:
        cache.keep("a", answer(1))
        assert cache.find("a") == answer(1) and cache.find("b") is None
    with LlmCache(path) as other:
        assert other.find("a") == answer(1)
        other.forget("a")
        assert other.find("a") is None
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    with LlmCache(tmp_path / "answers.sqlite3", Bounds(in_memory=2, answers=5)) as cache:
        for number in range(5):
            cache.keep(str(number), answer(number))
        assert cache.find("0") == answer(0)
        for number in range(5, 8):
            cache.keep(str(number), answer(number))
        assert cache.holding().answers == 5
        assert [number for number in range(8) if cache.find(str(number))] == [0, 4, 5, 6, 7]


def test_bytes_are_bounded_too(tmp_path: Path) -> None:
    with LlmCache(tmp_path / "answers.sqlite3", Bounds(in_memory=1, bytes=10_000)) as cache:
        for number in range(20):
            cache.keep(str(number), KeptAnswer("x" * 3_000))
        assert 1 <= cache.holding().answers <= 4


def test_in_memory_alone_it_works_the_same() -> None:
    cache = LlmCache(bounds=Bounds(in_memory=2))
    for number in range(3):
        cache.keep(str(number), answer(number))
    assert cache.find("0") is None and cache.find("2") == answer(2)
    cache.clear()
    assert cache.find("2") is None


def test_a_damaged_file_costs_answers_and_invents_none(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite3"
    with LlmCache(path) as cache:
        for number in range(50):
            cache.keep(str(number), answer(number))
    whole = path.read_bytes()
    numbers = random.Random(2)
    for _ in range(40):
        content = bytearray(whole)
        for _ in range(numbers.choice((1, 30, 3_000))):
            content[numbers.randrange(len(content))] = numbers.randrange(256)
        path.write_bytes(content[: numbers.choice((len(content), numbers.randrange(len(content))))])
        with LlmCache(path, Bounds(in_memory=1)) as cache:
            for number in range(50):
                assert cache.find(str(number)) in (None, answer(number))
            cache.keep("new", answer(7))
            assert cache.find("new") == answer(7)


def test_a_file_that_cannot_be_used_leaves_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    cache = LlmCache(tmp_path / "file" / "answers.sqlite3")
    cache.keep("a", answer(1))
    assert cache.find("a") == answer(1)
    assert "answers are kept in memory alone from here on" in caplog.text
    assert len(caplog.records) == 1


def _keep_in_a_child(path: Path, file: AnswerFile) -> None:
    file.keep("child", answer(2), answers=10, bytes=10**6)
    os._exit(0)


def test_a_fork_shares_no_connection(tmp_path: Path) -> None:
    file = AnswerFile(tmp_path / "answers.sqlite3")
    file.keep("parent", answer(1), answers=10, bytes=10**6)
    child = multiprocessing.get_context("fork").Process(
        target=_keep_in_a_child, args=(tmp_path, file)
    )
    child.start()
    child.join(20)
    assert child.exitcode == 0
    assert file.find("child") == answer(2) and file.find("parent") == answer(1)
    file.close()
