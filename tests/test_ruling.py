from __future__ import annotations

import dataclasses

import pytest

from sandbox_engine.recipe import Demands
from sandbox_engine.ruling import Session, rule, tampered
from sandbox_engine.verdict import Category, Cause, Outcome, TestOutcome, TestRecord

P, F, E, S = TestOutcome.PASSED, TestOutcome.FAILED, TestOutcome.ERROR, TestOutcome.SKIPPED
NONE = Demands()
SESSION = Session(1, 1, False, False, frozenset({"calc"}), False)
GREEN = TestRecord("t.py::green", P, category=Category.PASSED, base=P)
FIXED = TestRecord("t.py::fixed", P, category=Category.FIXED, base=F)
RED = TestRecord("t.py::red", F, message="assert 1", category=Category.REGRESSED, base=P)
OLD = TestRecord("t.py::old", F, category=Category.PRE_EXISTING, base=F)


def ruled(
    *tests: TestRecord,
    demands: Demands = NONE,
    session: Session = SESSION,
    unstable: frozenset[str] = frozenset(),
) -> tuple[Outcome, Cause | None, str]:
    found = rule(tests, demands, session, unstable)
    assert found.outcome is Outcome.PASSED or found.hint
    return found.outcome, found.cause, found.reason


def test_what_is_not_the_patchs_doing_does_not_count() -> None:
    flaky = dataclasses.replace(RED, node_id="f", category=Category.FLAKY)
    gone = TestRecord("g", None, category=Category.REMOVED, base=P)
    assert ruled(GREEN, OLD, flaky, gone, FIXED) == (
        Outcome.PASSED,
        None,
        "2 of 4 tests passed, 1 pre-existing, 1 removed, 1 flaky",
    )


@pytest.mark.parametrize("category", [Category.REGRESSED, Category.NEW_FAILED])
def test_what_is_blamed_fails(category: Category) -> None:
    outcome, cause, reason = ruled(GREEN, OLD, dataclasses.replace(RED, category=category))
    assert (outcome, cause) == (Outcome.FAILED, None)
    assert "t.py::red" in reason and "t.py::old" not in reason


@pytest.mark.parametrize(
    "message",
    [
        "OSError: [Errno 28] No space left on device",
        "E   ModuleNotFoundError: No module named 'numpy.linalg'",
        "    x = bytearray(2**40)\nE   MemoryError",
    ],
)
def test_what_stood_in_the_way_is_not_blamed(message: str) -> None:
    stopped = dataclasses.replace(RED, message=message)
    assert ruled(GREEN, stopped)[:2] == (Outcome.INCONCLUSIVE, Cause.INFRA)
    # Beside a test that is blamed it changes nothing.
    assert ruled(stopped, RED)[0] is Outcome.FAILED


def test_a_module_of_the_project_that_is_missing_is_the_patchs_doing() -> None:
    message = "ModuleNotFoundError: No module named 'calc.more'"
    assert ruled(dataclasses.replace(RED, message=message))[0] is Outcome.FAILED


def test_what_the_base_cannot_collect_either() -> None:
    broken = TestRecord("u.py", E, category=Category.PRE_EXISTING, base=E)
    assert ruled(GREEN, broken)[:2] == (Outcome.INCONCLUSIVE, Cause.INFRA)
    assert ruled(GREEN, broken, RED)[0] is Outcome.FAILED


@pytest.mark.parametrize(
    ("test", "outcome"),
    [
        (FIXED, Outcome.PASSED),
        (dataclasses.replace(OLD, node_id=FIXED.node_id), Outcome.FAILED),
        (dataclasses.replace(GREEN, node_id=FIXED.node_id), Outcome.INCONCLUSIVE),
        (GREEN, Outcome.INCONCLUSIVE),
        (TestRecord(FIXED.node_id, None, category=Category.REMOVED), Outcome.INCONCLUSIVE),
        (TestRecord(FIXED.node_id, S, category=Category.SKIPPED), Outcome.INCONCLUSIVE),
    ],
)
def test_what_is_to_be_fixed(test: TestRecord, outcome: Outcome) -> None:
    assert ruled(GREEN, test, demands=Demands(fixed=(FIXED.node_id,)))[0] is outcome


@pytest.mark.parametrize("pattern", ["t.py", "t.py::green", "*green", "t.py::*"])
def test_what_is_to_be_kept(pattern: str) -> None:
    demands = Demands(keep=(pattern,))
    assert ruled(GREEN, demands=demands)[0] is Outcome.PASSED
    gone = TestRecord(GREEN.node_id, None, category=Category.REMOVED, base=P)
    assert ruled(gone, FIXED, demands=demands)[:2] == (Outcome.INCONCLUSIVE, Cause.UNPROVED)
    red = dataclasses.replace(OLD, node_id=GREEN.node_id)
    assert ruled(red, FIXED, demands=demands)[0] is Outcome.FAILED
    assert ruled(TestRecord("u.py::x", P), demands=demands)[0] is Outcome.INCONCLUSIVE


def test_a_pattern_may_be_an_id_with_brackets() -> None:
    test = dataclasses.replace(GREEN, node_id="t.py::p[a-1]")
    assert ruled(test, demands=Demands(keep=("t.py::p[a-1]",)))[0] is Outcome.PASSED
    assert ruled(test, demands=Demands(keep=("t.py::p",)))[0] is Outcome.PASSED


def test_too_little_proves_nothing() -> None:
    skipped = TestRecord("s", S, category=Category.SKIPPED, base=S)
    assert ruled()[:2] == ruled(skipped)[:2] == (Outcome.INCONCLUSIVE, Cause.UNPROVED)
    assert ruled(OLD)[:2] == (Outcome.INCONCLUSIVE, Cause.UNPROVED)
    fewer = dataclasses.replace(SESSION, collected=2)
    assert ruled(GREEN, session=fewer)[:2] == (Outcome.INCONCLUSIVE, Cause.UNPROVED)
    gone = TestRecord("g", None, category=Category.VANISHED, base=P)
    assert ruled(GREEN, gone)[:2] == (Outcome.INCONCLUSIVE, Cause.VANISHED)
    assert ruled(GREEN, unstable=frozenset("x"))[:2] == (Outcome.INCONCLUSIVE, Cause.UNSTABLE)


def test_a_gate_that_the_base_fails_too_is_not_the_patchs_doing() -> None:
    gated = dataclasses.replace(SESSION, is_gated=True)
    assert ruled(GREEN, session=gated)[:2] == (Outcome.INCONCLUSIVE, Cause.UNPROVED)
    before = dataclasses.replace(gated, was_gated=True)
    assert ruled(GREEN, session=before)[0] is Outcome.PASSED


def test_new_skips_count_by_their_share() -> None:
    greens = [dataclasses.replace(GREEN, node_id=f"g{number}") for number in range(9)]
    skipped = TestRecord("s", S, category=Category.SKIPPED, base=P)
    assert ruled(*greens, skipped)[:2] == (Outcome.INCONCLUSIVE, Cause.SKIPPED)
    assert ruled(*greens, skipped, demands=Demands(max_new_skips=0.1))[0] is Outcome.PASSED
    assert ruled(*greens, skipped, demands=Demands(max_new_skips=0.09))[1] is Cause.SKIPPED
    allowed = Demands(allow_test_changes=True)
    assert ruled(*greens, skipped, demands=allowed)[1] is Cause.SKIPPED
    steers = dataclasses.replace(SESSION, steers=True)
    assert ruled(*greens, skipped, demands=allowed, session=steers)[0] is Outcome.PASSED


def test_what_is_hidden_is_named() -> None:
    assert tampered([GREEN, RED]) is None
    found = tampered([GREEN, dataclasses.replace(FIXED, category=Category.TAMPERED)])
    assert found is not None and found.cause is Cause.TAMPERED
    assert "1 test fails with the base's version" in found.reason and "t.py::fixed" in found.reason
