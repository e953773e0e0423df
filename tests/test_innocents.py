"""Innocent and breaking patches on a base that is partly red, in a short form."""

from __future__ import annotations

import random
from types import ModuleType

import pytest
from script import loaded

from sandbox_engine import Outcome, Verdict
from sandbox_engine.verdict import Category, CommitId, StepResult, TestOutcome, TestRecord, TreeId


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return loaded("innocents")


def test_the_innocent_pass_and_the_breaking_fail(
    script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(["--each", "2", "--seed", "7"]) == 0, capsys.readouterr().out
    out = capsys.readouterr().out
    assert "innocent PASSED            2" in out and "breaking FAILED            2" in out


def test_a_wrong_verdict_is_noticed(script: ModuleType) -> None:
    chance = random.Random(1)
    case = script.breaking(chance, 1)
    named = sorted(case.broken)

    def verdict(outcome: Outcome, nodes: list[str]) -> Verdict:
        tests = tuple(
            TestRecord(node, TestOutcome.FAILED, category=Category.REGRESSED) for node in nodes
        )
        step = StepResult("pytest", outcome, tests=tests)
        return Verdict(outcome, "S", CommitId("c"), TreeId("t"), steps=(step,))

    assert script.fault(case, verdict(Outcome.FAILED, named)) is None
    assert script.fault(case, verdict(Outcome.FAILED, named[1:]))
    assert script.fault(case, verdict(Outcome.FAILED, [*named, "x"]))
    assert script.fault(case, verdict(Outcome.PASSED, []))
    innocent = script.innocent(chance, 2)
    assert script.fault(innocent, verdict(Outcome.PASSED, [])) is None
    assert script.fault(innocent, verdict(Outcome.FAILED, ["x"]))
    assert script.fault(innocent, verdict(Outcome.INCONCLUSIVE, []))
