from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jsonschema
import pytest

from sandbox_engine.verdict import (
    AtomRecord,
    Cause,
    CommitId,
    Culprit,
    Explanation,
    Outcome,
    StepResult,
    TestOutcome,
    TestRecord,
    TreeId,
    Verdict,
    judge,
)

PASSED = StepResult("syntax", Outcome.PASSED, reason="2 changed files checked")
FAILED = StepResult("pytest", Outcome.FAILED, reason="1 test failed", hint="read it")
UNSURE = StepResult("command", Outcome.INCONCLUSIVE, reason="took too long", recurs=False)
VERDICT = Verdict(Outcome.FAILED, "S", CommitId("c" * 40), TreeId("b" * 40), TreeId("t" * 40))


def test_the_worst_step_decides() -> None:
    assert judge([PASSED])[:3] == (Outcome.PASSED, "syntax: 2 changed files checked", None)
    judged = judge([PASSED, FAILED, UNSURE])
    assert judged[:3] == (Outcome.FAILED, "pytest: 1 test failed", "read it")
    assert judge([UNSURE, PASSED])[0] is Outcome.INCONCLUSIVE


def test_nothing_run_is_nothing_proved() -> None:
    outcome, reason, hint, cause = judge([])
    assert outcome is Outcome.INCONCLUSIVE
    assert "nothing was proved" in reason
    assert hint and cause is Cause.UNPROVED


def test_the_evidence_of_all_steps_is_told() -> None:
    more = StepResult("pytest", Outcome.PASSED, reason="1 of 2 tests passed")
    bare = StepResult("files-exist", Outcome.PASSED)
    told = "syntax: 2 changed files checked; pytest: 1 of 2 tests passed; files-exist: ok"
    assert judge([PASSED, more, bare])[1] == told


@pytest.mark.parametrize("outcome", Outcome)
def test_only_what_must_recur_is_final(outcome: Outcome) -> None:
    verdict = dataclasses.replace(VERDICT, outcome=outcome)
    assert verdict.is_final is (outcome in (Outcome.PASSED, Outcome.FAILED))
    assert not dataclasses.replace(verdict, steps=(UNSURE,)).is_final


def test_red_tests_are_collected_from_all_steps() -> None:
    red = TestRecord("a", TestOutcome.ERROR)
    green = TestRecord("b", TestOutcome.XFAILED)
    step = dataclasses.replace(FAILED, tests=(red, green))
    assert dataclasses.replace(VERDICT, steps=(PASSED, step)).red_tests == (red,)


@pytest.mark.parametrize("record", [{}, {"schema": 2}, {"schema": 1}, {"schema": 1, "outcome": 3}])
def test_what_is_no_verdict_is_refused(record: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        Verdict.from_json(record)


EXPLANATION = Explanation(
    (Culprit(("t.py::a", "t.py::b"), (1,)),),
    (0, 2),
    ("t.py::c",),
    7,
    True,
    (AtomRecord(1, "calc.py", 14, "calc.py, hunk 1 of 2"), AtomRecord(2, "b", None, "b, deleted")),
)


@pytest.mark.parametrize(
    "explanation",
    [None, EXPLANATION, Explanation(), dataclasses.replace(EXPLANATION, passing=None)],
)
def test_an_explanation_survives_its_json_form(explanation: Explanation | None) -> None:
    verdict = dataclasses.replace(VERDICT, tree=TreeId("a" * 40), explanation=explanation)
    record = json.loads(json.dumps(verdict.to_json()))
    schema = Path(__file__).parent.parent / "docs" / "verdict.schema.json"
    jsonschema.validate(record, json.loads(schema.read_text()))
    assert Verdict.from_json(record) == verdict


def test_a_verdict_from_before_explanations_has_none() -> None:
    record = VERDICT.to_json()
    del record["explanation"]
    assert Verdict.from_json(record).explanation is None
