"""Verdicts of every kind for tests of reports, some of them with hostile text in all places."""

from __future__ import annotations

import dataclasses

from sandbox_engine.reports import Judged
from sandbox_engine.verdict import (
    Category,
    Cause,
    CommitId,
    Finding,
    Outcome,
    StepResult,
    TestOutcome,
    TestRecord,
    TreeId,
    Verdict,
)

HOSTILE = (
    "\n::error::x\r\n::set-output name=a::b </details><script>alert(1)</script> | a | ``` %0A "
    "\x1b[2J\x00\u202e\udcff ]]> &amp; @someone [x](http://y)"
)
BLANK = Verdict(
    Outcome.PASSED,
    "SYNTAX_AND_PYTEST",
    CommitId("1" * 40),
    TreeId("2" * 40),
    TreeId("3" * 40),
    elapsed_s=1.5,
)
ENDS = {
    Category.PASSED: TestOutcome.PASSED,
    Category.FIXED: TestOutcome.PASSED,
    Category.NEW_PASSED: TestOutcome.PASSED,
    Category.SKIPPED: TestOutcome.SKIPPED,
    Category.REMOVED: None,
    Category.VANISHED: None,
}


def every_category(text: str = "E   assert 1 == 2") -> tuple[TestRecord, ...]:
    """Return a test of each category; those that are red have `text` as their message."""
    records = []
    for category in Category:
        outcome = ENDS.get(category, TestOutcome.FAILED)
        message = text if outcome is TestOutcome.FAILED else None
        node_id = f"tests/test_{category.replace('-', '_')}.py::test_it"
        records.append(TestRecord(node_id, outcome, 0.25, message, category))
    return tuple(records)


def failed(text: str = "E   assert 1 == 2", name: str = "a.diff") -> Judged:
    """Return a candidate with tests of every category, which so has FAILED."""
    step = StepResult("pytest", Outcome.FAILED, 1.0, "2 tests fail", tests=every_category(text))
    return Judged(
        name,
        dataclasses.replace(BLANK, outcome=Outcome.FAILED, reason="2 tests fail", steps=(step,)),
    )


def rejected(text: str = "the block was not found", path: str = "src/a b.py") -> Judged:
    """Return a candidate that does not fit."""
    finding = Finding("no-match", text, path, 3, 5, "x = (", "read the file", "detail", "corrected")
    verdict = dataclasses.replace(
        BLANK, outcome=Outcome.REJECTED, reason=text, findings=(finding,), tree=None, hint=text
    )
    return Judged("b.diff", verdict)


def inconclusive() -> Judged:
    """Return a candidate whose tests took too long."""
    step = StepResult("pytest", Outcome.INCONCLUSIVE, 9.0, "too slow", output="the end\n")
    verdict = dataclasses.replace(
        BLANK, outcome=Outcome.INCONCLUSIVE, reason="too slow", steps=(step,), cause=Cause.LIMIT
    )
    return Judged("c.diff", verdict)


def several(text: str = "wrong") -> list[Judged]:
    """Return a candidate of every outcome, with `text` wherever a patch has a say."""
    return [
        Judged("good.diff", BLANK),
        failed(text, name=text),
        rejected(text, path=text),
        inconclusive(),
        Judged("d.diff", trouble=text, hint=text),
    ]
