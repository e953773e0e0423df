"""From the records of a candidate's tests to an outcome: which of them count, and for what.

FAILED means that a test regressed or a new one failed, or that a demand was not met. What else
is short of a proof is INCONCLUSIVE, with its cause. All is pure.
"""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

from sandbox_engine import delta
from sandbox_engine.recipe import Demands
from sandbox_engine.verdict import Category, Cause, Outcome, TestOutcome, TestRecord

_NAMED = 5
_RAN = (TestOutcome.PASSED, TestOutcome.FAILED, TestOutcome.ERROR, TestOutcome.XPASSED)
_NO_MODULE = re.compile(r"ModuleNotFoundError: No module named '([^'.]+)")
_NO_MEMORY = re.compile(r"^(E\s+)?MemoryError\b", re.MULTILINE)
_NO_SPACE = re.compile(r"\[Errno 28\]|No space left on device")
ALLOW = "if that is meant, allow it: `--allow-test-changes`"


@dataclass(frozen=True, slots=True)
class Session:
    """What a ruling needs of the session, beside its records.

    `collected` and `reported` are numbers of tests. `is_gated` says that pytest ended with 1
    although no test failed, `was_gated` that it does so on the base. `provided` are the top-level
    modules of the project, `steers` says that the patch changes what steers the tests.
    """

    collected: int
    reported: int
    is_gated: bool
    was_gated: bool
    provided: Set[str]
    steers: bool


@dataclass(frozen=True, slots=True)
class Ruling:
    """An outcome, the reason in a sentence, and what to do."""

    outcome: Outcome
    reason: str
    hint: str | None = None
    cause: Cause | None = None


def rule(
    tests: Sequence[TestRecord], demands: Demands, session: Session, unstable: Set[str]
) -> Ruling:
    """Return what `tests` say of the patch; the first of these that holds.

    `unstable` are those that failed among the others each time, and passed alone.
    """
    rulings = (
        _blamed(tests, session.provided),
        _unmet(tests, demands),
        _obstructed(tests, session.provided),
        _unstable(unstable),
        _unproved(tests, session),
        _vanished(tests),
        _skipped(tests, demands, session),
    )
    return next(filter(None, rulings), Ruling(Outcome.PASSED, _evidence(tests)))


def tampered(tests: Iterable[TestRecord]) -> Ruling | None:
    """Return that the patch's version of what steers the tests hides failures, if it does."""
    found = [test for test in tests if test.category is Category.TAMPERED]
    if not found:
        return None
    return _doubtful(
        Cause.TAMPERED,
        f"{_count(found, 'test')} {_verb(found, 'fail')} with the base's version of the tests, "
        f"and not with the patch's: {_named(found)}",
        f"let the code pass the tests as they were; {ALLOW}",
    )


def inseparable(tests: Sequence[str]) -> Ruling:
    """Return that tests cannot be tried as they were: they lie among code that changes too."""
    more = f" and {len(tests) - 1} more" if len(tests) > 1 else ""
    return _doubtful(
        Cause.TAMPERED,
        f"the patch changes code and a test in the same file, so the code cannot be tried with "
        f"the test as it was: {tests[0]}{more}",
        f"leave the test as it is; {ALLOW}",
    )


def uncontrolled(reason: str) -> Ruling:
    """Return that the base's version of what steers the tests cannot be run."""
    return _doubtful(
        Cause.TAMPERED,
        f"with the base's version of the tests the patched code cannot be tested: {reason}",
        f"let the code pass the tests as they were; {ALLOW}",
    )


def _blamed(tests: Sequence[TestRecord], provided: Set[str]) -> Ruling | None:
    blamed = [test for test in tests if _is_blamed(test) and not _obstacle(test, provided)]
    if not blamed:
        return None
    return Ruling(
        Outcome.FAILED,
        f"{len(blamed)} of {_count(tests, 'test')} {_verb(blamed, 'fail')} because of the patch: "
        f"{_named(blamed)}",
        "the assertion texts above say what each test expected",
    )


def _is_blamed(test: TestRecord) -> bool:
    return test.category is not None and test.category.is_blamed


def _unmet(tests: Sequence[TestRecord], demands: Demands) -> Ruling | None:
    by_id = {test.node_id: test for test in tests}
    for node in demands.fixed:
        if ruling := _unfixed(node, by_id.get(node)):
            return ruling
    for pattern in demands.keep:
        kept = [test for test in tests if _is_like(test.node_id, pattern)]
        if not kept:
            return _doubtful(
                Cause.UNPROVED,
                f"no test is named like `{pattern}`, which is to be kept",
                "correct it: a node id, the beginning of one up to `::`, or one with `*` in it",
            )
        for test in kept:
            if test.is_red:
                return Ruling(
                    Outcome.FAILED,
                    f"`{test.node_id}` is to be kept green, and is {test.category}",
                    "its assertion text says what it expected",
                )
            if not test.is_green:
                return _doubtful(
                    Cause.UNPROVED,
                    f"`{test.node_id}` is to be kept green, and is {test.category}",
                    "let it run and pass",
                )
    return None


def _is_like(node_id: str, pattern: str) -> bool:
    """Tell whether a pattern, or a node id of a file, a class or a test, stands for a test."""
    return (
        fnmatch.fnmatchcase(node_id, pattern)
        or node_id == pattern
        or any(node_id.startswith(pattern + mark) for mark in ("::", "/", "["))
    )


def _unfixed(node: str, test: TestRecord | None) -> Ruling | None:
    if test is None or test.outcome is None:
        return _doubtful(
            Cause.UNPROVED,
            f"`{node}` is to be fixed, and did not run",
            "give the node id as pytest prints it; the strategy has to select it",
        )
    if test.is_red:
        return Ruling(
            Outcome.FAILED,
            f"`{node}` is to be fixed, and fails still",
            "its assertion text says what it expected",
        )
    if test.category is not Category.FIXED:
        return _doubtful(
            Cause.UNPROVED,
            f"`{node}` is to be fixed, and did not fail on the base: it is {test.category}",
            "name a test that fails without the patch",
        )
    return None


def _obstructed(tests: Iterable[TestRecord], provided: Set[str]) -> Ruling | None:
    for test in tests:
        if _is_blamed(test) and (obstacle := _obstacle(test, provided)):
            reason, hint = obstacle
            return _doubtful(Cause.INFRA, f"`{test.node_id}` fails because {reason}", hint)
    broken = [
        test
        for test in tests
        if test.category is Category.PRE_EXISTING
        and test.outcome is TestOutcome.ERROR
        and "::" not in test.node_id
    ]
    if broken:
        return _doubtful(
            Cause.INFRA,
            f"tests could not be collected, on the base neither: {_named(broken)}",
            "mend the base first: its own output says what is wrong",
        )
    return None


def _obstacle(test: TestRecord, provided: Set[str]) -> tuple[str, str] | None:
    """Return what stood in the way of a test that is not the patch's doing, and what to do."""
    message = test.message or ""
    if _NO_SPACE.search(message):
        return "no space was left", "free some space, or raise `disk_bytes`"
    if _NO_MEMORY.search(message):
        return "no memory was left", "look for what takes it, or raise `memory_bytes`"
    missing = _NO_MODULE.search(message)
    if missing and missing[1] not in provided:
        return (
            f"`{missing[1]}` is not installed, and is no part of the project",
            "install it into the interpreter's environment, or import what is there",
        )
    return None


def _unstable(unstable: Set[str]) -> Ruling | None:
    if not unstable:
        return None
    return _doubtful(
        Cause.UNSTABLE,
        f"a test fails among the others each time, and passes alone: {sorted(unstable)[0]}",
        "look for what one test leaves for another",
    )


def _unproved(tests: Sequence[TestRecord], session: Session) -> Ruling | None:
    if not any(test.outcome in _RAN for test in tests):
        return _doubtful(
            Cause.UNPROVED,
            "no test ran, so nothing was proved",
            "check `testpaths` and the step's arguments",
        )
    if not any(test.is_green for test in tests):
        return _doubtful(
            Cause.UNPROVED,
            "no test passed, so nothing was proved: all that ran fail on the base too",
            "mend the base first",
        )
    if session.reported < session.collected:
        return _doubtful(
            Cause.UNPROVED,
            f"{session.collected} tests were collected and only {session.reported} reported",
            "look for a crash in the output, or for an option that ends the session early",
        )
    if session.is_gated and not session.was_gated:
        return _doubtful(
            Cause.UNPROVED,
            "pytest exited with 1 although no test failed, as a coverage gate does",
            "its output says why",
        )
    return None


def _vanished(tests: Iterable[TestRecord]) -> Ruling | None:
    found = [test for test in tests if test.category is Category.VANISHED]
    if not found:
        return None
    are = "is" if len(found) == 1 else "are"
    return _doubtful(
        Cause.VANISHED,
        f"{_count(found, 'test')} of the base {are} gone, and the patch does not remove "
        f"{'it' if len(found) == 1 else 'them'}: {_named(found)}",
        "let every test of the base be collected, or delete it where it is written",
    )


def _skipped(tests: Sequence[TestRecord], demands: Demands, session: Session) -> Ruling | None:
    if demands.allow_test_changes and session.steers:
        return None
    found = delta.newly_skipped(tests)
    ran_before = [test for test in tests if test.base in _RAN]
    if len(found) <= demands.max_new_skips * len(ran_before):
        return None
    are = "is" if len(found) == 1 else "are"
    return _doubtful(
        Cause.SKIPPED,
        f"{_count(found, 'test')} that the base runs {are} skipped, or expected to fail: "
        f"{_named(found)}",
        "let them run, or raise `max_new_skips`" + (f"; {ALLOW}" if session.steers else ""),
    )


def _evidence(tests: Sequence[TestRecord]) -> str:
    counts = Counter(test.category for test in tests if test.category is not None)
    passed = sum(counts.pop(category, 0) for category in _GOOD)
    ran = [test for test in tests if test.outcome is not None]
    others = "".join(
        f", {counts[category]} {category}" for category in Category if counts[category]
    )
    return f"{passed} of {len(ran)} tests passed{others}"


_GOOD = (Category.PASSED, Category.FIXED, Category.NEW_PASSED)


def _doubtful(cause: Cause, reason: str, hint: str) -> Ruling:
    return Ruling(Outcome.INCONCLUSIVE, reason, hint, cause)


def _count(tests: Sequence[TestRecord], noun: str) -> str:
    return f"{len(tests)} {noun}{'' if len(tests) == 1 else 's'}"


def _verb(tests: Sequence[TestRecord], verb: str) -> str:
    return f"{verb}s" if len(tests) == 1 else verb


def _named(tests: Sequence[TestRecord]) -> str:
    named = ", ".join(test.node_id for test in tests[:_NAMED])
    return named + (f" and {len(tests) - _NAMED} more" if len(tests) > _NAMED else "")
