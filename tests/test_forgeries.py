"""Forgeries in a short form: a choice of ways once, in the strongest tier that this machine has."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from script import run

_WAYS = (
    *("control/exit", "control/forged-by-gc", "control/wrap-makereport", "control/entry-points"),
    *("control/other-code", "code/exit-at-exit", "code/forged-by-gc"),
    *("code/probe-line", "code/stand-in"),
)


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """The folder that the script takes for the machine's temporary one."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    return folder


def _run(temporary: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run("forgeries", temporary, *arguments)


def test_no_forgery_is_believed(temporary: Path) -> None:
    options = ("--tiers", "best", "--times", "1", "--seed", "7", "--layout", "src", "--json")
    done = _run(temporary, *options, "--only", *_WAYS)
    assert done.stdout, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert {row["way"] for row in rows} == set(_WAYS)
    assert {row["way"]: row["losses"] for row in rows if row["losses"]} == {}
    assert all(sum(row["outcomes"].values()) == 1 for row in rows)
    # Plain pytest says that all is well.
    assert [row["way"] for row in rows if row["plain"] != 0] == []
    assert done.returncode == 0


def test_a_forgery_that_is_believed_is_told(temporary: Path) -> None:
    # What cannot be noticed is a planted fault, once it is counted.
    options = ("--tiers", "best", "--times", "1", "--layout", "top", "--only", "beyond/equals-all")
    done = _run(temporary, *options)
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if "equals-all" in line).split()
    assert row[2:5] == ["0", "1", "."]
