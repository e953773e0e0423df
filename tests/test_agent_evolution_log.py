"""The evolution log: one row for each cycle, and the original's columns first."""

from __future__ import annotations

import csv
import threading
from pathlib import Path

import pytest

from agent.evolution_log import ADDED, ORIGINAL, Cycle, append, read
from sandbox_engine import SandboxError

CYCLE = Cycle(
    3,
    'Split "a", and\nb',
    True,
    12.34567,
    "2026-05-04T03:02:01+00:00",
    "2026-05-04T03:02:14+00:00",
    strategy="SYNTAX_AND_PYTEST",
    phases=(("architect", 1.5), ("validation", 10.25)),
    llm_calls=2,
    llm_tokens=345,
    attempts=1,
    verdict="PASSED",
    tree="a" * 40,
    engine_seconds=9.75,
)


def test_a_row_has_the_columns_that_its_users_know(tmp_path: Path) -> None:
    append(tmp_path / "log.csv", CYCLE)
    with (tmp_path / "log.csv").open(newline="") as file:
        head, row = csv.reader(file)
    assert tuple(head) == (*ORIGINAL, *ADDED)
    assert row[:10] == [
        *("3", 'Split "a", and\nb', "sucesso", "12.346", "", "SYNTAX_AND_PYTEST"),
        *("2026-05-04T03:02:01+00:00", "2026-05-04T03:02:14+00:00", "", ""),
    ]
    (found,) = read(tmp_path / "log.csv")
    assert (found["seconds_architect"], found["seconds_commit"]) == ("1.500", "")
    assert (found["verdict"], found["engine_seconds"]) == ("PASSED", "9.750")


def test_a_file_of_the_original_gets_the_new_columns_to_the_right(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(",".join(ORIGINAL) + "\n1,old,falha,2,0.5,DISCARD,x,y,why,z\n")
    append(path, CYCLE)
    old, new = read(path)
    assert (old["objetivo"], old["contexto_status"], old["verdict"]) == ("old", "z", "")
    assert new["objetivo"] == CYCLE.objective
    before = path.read_bytes()
    append(path, CYCLE)
    # From now on a row is only ever added.
    assert path.read_bytes().startswith(before) and len(read(path)) == 3


def test_own_columns_and_a_torn_line_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(",".join((*ORIGINAL, "own", *ADDED)) + "\r\n1,torn")
    append(path, CYCLE)
    torn, whole = read(path)
    assert torn["objetivo"] == "torn"
    assert whole["own"] == "" and whole["verdict"] == "PASSED"


def test_rows_of_several_agents_are_all_there(tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=lambda: [append(tmp_path / "log.csv", CYCLE) for _ in range(10)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read(tmp_path / "log.csv")) == 40


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    assert read(tmp_path / "log.csv") == []
    with pytest.raises(SandboxError, match="cannot be written: No such file"):
        append(tmp_path / "none" / "log.csv", CYCLE)
