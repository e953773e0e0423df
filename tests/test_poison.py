"""Poison in a short form: each attack once, in the strongest tier that this machine has."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from script import run


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """The folder that the script takes for the machine's temporary one."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    return folder


def _run(temporary: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run("poison", temporary, *arguments)


def test_the_next_run_gets_a_fresh_checkout(temporary: Path) -> None:
    done = _run(temporary, "--tiers", "best", "--times", "1", "--seed", "7", "--json")
    assert done.stdout, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert len(rows) >= 12
    assert all(row["runs"] == 1 and row["steps"] for row in rows)
    lost = {row["attack"]: row["losses"] for row in rows if row["losses"]}
    assert lost == {}
    assert done.returncode == 0


def test_every_planted_fault_is_noticed(temporary: Path) -> None:
    done = _run(temporary, "--planted")
    assert done.returncode == 0, done.stdout + done.stderr
    count, _, total = done.stdout.splitlines()[-1].split()[:3]
    assert count == total != "0"
