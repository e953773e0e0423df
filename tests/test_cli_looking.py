"""`log` and `show`: verdicts that were given are found again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import GitBox
from test_cli import BREAKING, GOOD, SYNTAX, run

from sandbox_engine import Engine, Outcome, UsageError

pytestmark = pytest.mark.usefixtures("no_reruns")


def test_what_was_given_is_listed_and_shown_again(project: GitBox, tmp_path: Path) -> None:
    given = [
        run("validate", "-", "--output", "json", cwd=project.top, text=text).stdout
        for text in (GOOD, BREAKING, SYNTAX, GOOD)
    ]
    done = run("log", cwd=project.top, check=0)
    outcomes = [line.split()[4] for line in done.stdout.splitlines()]
    assert outcomes == ["PASSED", "REJECTED", "FAILED", "PASSED"]
    lines = json.loads(run("log", "-n", "3", "--output", "json", cwd=project.top).stdout)
    assert len(lines) == 3
    shown = run("show", lines[2]["id"][:8], "--output", "json", cwd=project.top, check=0)
    assert shown.stdout == given[1]
    assert run("show", "--output", "json", cwd=project.top, check=0).stdout == given[3]
    by_tree = run("show", lines[2]["tree"], cwd=project.top, check=0).stdout
    assert by_tree.startswith("FAILED: ") and "assert -1 == 3" in by_tree
    junit = tmp_path / "j.xml"
    run("show", "--output", "junit", "-o", str(junit), cwd=project.top, check=0)
    assert junit.read_text().startswith("<?xml")
    done = run("show", "zz", cwd=project.top, check=2)
    assert "there is no verdict with `zz`" in done.stderr


def test_a_log_without_verdicts_is_empty(project: GitBox) -> None:
    assert run("log", cwd=project.top, check=0).stdout == ""
    assert "no verdict yet" in run("show", cwd=project.top, check=2).stderr


def test_what_fits_several_is_refused(project: GitBox, engine: Engine) -> None:
    for _ in range(20):
        engine.validate("x", strategy="SYNTAX_ONLY")
    first = [line.id[0] for line in engine.log(20)]
    twice = next(char for char in first if first.count(char) > 1)
    with pytest.raises(UsageError, match="is the beginning of"):
        engine.recall(twice)
    assert engine.recall().outcome is Outcome.REJECTED
