"""The judgement of a patch, as values: outcomes, findings, step results, the verdict.

Everything a caller learns about a patch is in here and is immutable, so that a verdict can be
cached, printed and compared; `docs/verdict.schema.json` describes the JSON form, which carries
`schema` so that readers can tell versions apart.
"""

from __future__ import annotations

import dataclasses
import enum
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NewType, TypeVar

from sandbox_engine.receipt import Receipt

TreeId = NewType("TreeId", str)
CommitId = NewType("CommitId", str)
BlobId = NewType("BlobId", str)
_Word = TypeVar("_Word", bound=enum.StrEnum)

SCHEMA = 1
"""Version of the JSON form; it changes when a field changes meaning or goes away."""


class Outcome(enum.StrEnum):
    """What is known about a patch, or about one step of its validation."""

    PASSED = "PASSED"
    FAILED = "FAILED"
    REJECTED = "REJECTED"
    INCONCLUSIVE = "INCONCLUSIVE"


class Tier(enum.StrEnum):
    """How far a run is kept from all that is not its own; the first is the best.

    What each promises is in `docs/isolation.md`.
    """

    FULL = "full"
    LANDLOCK = "landlock"
    NONE = "none"

    def is_less_than(self, other: str) -> bool:
        order = list(Tier)
        return order.index(self) > order.index(Tier(other))


class TestOutcome(enum.StrEnum):
    """What became of one test; `ERROR` covers set-up, tear-down and collection."""

    __test__ = False

    PASSED = "passed"
    FAILED = "failed"
    ERROR = "error"
    SKIPPED = "skipped"
    XFAILED = "xfailed"
    XPASSED = "xpassed"

    @property
    def is_red(self) -> bool:
        return self in (TestOutcome.FAILED, TestOutcome.ERROR)


class Category(enum.StrEnum):
    """What a patch did to one test, by what became of it with the patch and without.

    `PASSED` is green on both, `FIXED` red before, `REGRESSED` green before and red now,
    `PRE_EXISTING` red on both. `NEW_PASSED` and `NEW_FAILED` were not there before. `REMOVED` was
    taken out by the patch, `VANISHED` should still be there and is not. `FLAKY` ends now so, now
    otherwise. `SKIPPED` was not run, or was expected to fail. `TAMPERED` is red with the base's
    version of what steers the tests, and not with the patch's.
    """

    PASSED = "passed"
    FIXED = "fixed"
    REGRESSED = "regressed"
    PRE_EXISTING = "pre-existing"
    NEW_PASSED = "new-passed"
    NEW_FAILED = "new-failed"
    REMOVED = "removed"
    VANISHED = "vanished"
    FLAKY = "flaky"
    SKIPPED = "skipped"
    TAMPERED = "tampered"

    @property
    def is_blamed(self) -> bool:
        """Whether it counts against the patch."""
        return self in (Category.REGRESSED, Category.NEW_FAILED)


class Cause(enum.StrEnum):
    """Why a patch could not be judged.

    `INFRA`: what is not the patch's doing, as far as is known: its base cannot be judged either, a
    dependency is missing, the disk is full. `LIMIT`: its run was stopped at a limit. `UNTRUSTED`:
    what came back cannot be believed. `UNPROVED`: nothing speaks against it, and too little for
    it. `VANISHED`, `SKIPPED`, `TAMPERED`: tests did, or were. `UNSTABLE`: a test fails among the
    others and passes alone.
    """

    INFRA = "infra"
    LIMIT = "limit"
    UNTRUSTED = "untrusted"
    UNPROVED = "unproved"
    VANISHED = "vanished"
    SKIPPED = "skipped"
    TAMPERED = "tampered"
    UNSTABLE = "unstable"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, where it is, and what to do about it.

    `line` and `column` are 1-based; `source` is the offending line without its line ending.
    `detail` shows more in several lines, as a small diff against the nearest text; `corrected` is
    an edit to send instead, in the patch's own format, where it is certain.
    """

    code: str
    message: str
    path: str | None = None
    line: int | None = None
    column: int | None = None
    source: str | None = None
    hint: str | None = None
    detail: str | None = None
    corrected: str | None = None


@dataclass(frozen=True, slots=True)
class EditRecord:
    """What became of one edit of the patch: `status` in one word, `message` in a sentence.

    `index` counts from 0. `rung` says how close the text was to what was sought: exact, moved,
    whitespace, indentation or fuzzy; None where nothing was sought. `line` is 1-based.
    """

    index: int
    path: str
    status: str
    rung: str | None = None
    line: int | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class AtomRecord:
    """One edit that can be made or left out by itself, as a hunk; `index` counts from 0.

    `line` is the 1-based line of the patch's text, None where it is not known.
    """

    index: int
    path: str
    line: int | None
    description: str


@dataclass(frozen=True, slots=True)
class Culprit:
    """Tests that fail when only `edits` are made, which are named by index.

    A test that is broken in several ways is in several.
    """

    tests: tuple[str, ...]
    edits: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Which edits of a patch break which tests, as far as it was tried.

    `passing` are edits that break none of these tests when they alone are made; None where none
    were seen. Neither they nor a culprit are inferred: each was run. `unexplained` are tests of
    which no culprit is known, as one that does not fail when it is run again. `runs` is how many
    runs it took. With `is_complete` none of a culprit's edits can be left out: with one less, its
    tests pass or cannot be judged. Without, there was more to try. `edits` describes what the
    indices name.
    """

    culprits: tuple[Culprit, ...] = ()
    passing: tuple[int, ...] | None = None
    unexplained: tuple[str, ...] = ()
    runs: int = 0
    is_complete: bool = False
    edits: tuple[AtomRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class Author:
    """Who made a patch that came as mail; `date` is ISO 8601, "" where the mail has none."""

    name: str
    email: str
    date: str = ""


@dataclass(frozen=True, slots=True)
class TestRecord:
    """One test as the session in the sandbox reported it; `message` is its assertion text.

    `outcome` is None for one that did not run on the patched code, and `base` is what became of
    it without the patch, None where that is not known. `category` is None where nothing was
    compared.
    """

    __test__ = False

    node_id: str
    outcome: TestOutcome | None
    duration_s: float = 0.0
    message: str | None = None
    category: Category | None = None
    base: TestOutcome | None = None

    @property
    def is_red(self) -> bool:
        return self.outcome is not None and self.outcome.is_red

    @property
    def is_green(self) -> bool:
        return self.outcome in (TestOutcome.PASSED, TestOutcome.XPASSED)


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step of a strategy found; `output` is the tail of what it wrote.

    `elapsed_s` is the time of what the step ran; opening the sandbox is not in it.

    `recurs` is False where the same run could end otherwise (a time-out, a crash), so that it is
    never kept in the verdict cache. `cause` says why it is INCONCLUSIVE.
    """

    name: str
    outcome: Outcome
    elapsed_s: float = 0.0
    reason: str | None = None
    hint: str | None = None
    findings: tuple[Finding, ...] = ()
    tests: tuple[TestRecord, ...] = ()
    output: str = ""
    recurs: bool = True
    cause: Cause | None = None

    @property
    def red_tests(self) -> tuple[TestRecord, ...]:
        return tuple(test for test in self.tests if test.is_red)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to "is this patch good?", with the evidence for it.

    `base` and `base_tree` are what the patch was applied to, `tree` is exactly what was judged
    and what a promotion lands; it is None when no tree could be built. `isolation` is the
    tier of what was run, `openings` what those runs could reach outside of the sandbox. `cause`
    says why it is INCONCLUSIVE. `test_control` are the changed paths that steer the tests.
    `explanation` tells which edits broke tests, None where nobody asked. `receipt` goes with
    PASSED alone. Times are in seconds.
    """

    outcome: Outcome
    strategy: str
    base: CommitId
    base_tree: TreeId
    tree: TreeId | None = None
    reason: str = ""
    hint: str | None = None
    findings: tuple[Finding, ...] = ()
    steps: tuple[StepResult, ...] = ()
    edits: tuple[EditRecord, ...] = ()
    changed_paths: tuple[str, ...] = ()
    summary: str = ""
    author: Author | None = None
    isolation: str = Tier.NONE
    openings: tuple[str, ...] = ()
    cause: Cause | None = None
    test_control: tuple[str, ...] = ()
    explanation: Explanation | None = None
    receipt: Receipt | None = None
    environment: str = ""
    engine_version: str = ""
    elapsed_s: float = 0.0
    is_cached: bool = False

    @property
    def is_final(self) -> bool:
        """Whether judging the same tree again must end the same way."""
        return self.outcome in (Outcome.PASSED, Outcome.FAILED) and all(
            step.recurs for step in self.steps
        )

    @property
    def red_tests(self) -> tuple[TestRecord, ...]:
        return tuple(test for step in self.steps for test in step.red_tests)

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as JSON values, in the form of `docs/verdict.schema.json`."""
        record = dataclasses.asdict(self)
        record["steps"] = [_listed(step) for step in record["steps"]]
        if record["explanation"] is not None:
            record["explanation"] = _listed_deep(record["explanation"])
        record["receipt"] = None if self.receipt is None else self.receipt.to_json()
        return {"schema": SCHEMA, **_listed(record)}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Verdict:
        """Return the verdict that `to_json` wrote; raise ValueError for another schema."""
        if record.get("schema") != SCHEMA:
            raise ValueError(f"verdict of schema {record.get('schema')!r}, wanted {SCHEMA}")
        try:
            fields = {key: value for key, value in record.items() if key != "schema"}
            fields["outcome"] = Outcome(fields["outcome"])
            fields["findings"] = _findings(fields["findings"])
            fields["edits"] = tuple(EditRecord(**edit) for edit in fields.get("edits", ()))
            author = fields.get("author")
            fields["author"] = None if author is None else Author(**author)
            fields["steps"] = tuple(_step(step) for step in fields["steps"])
            for name in ("changed_paths", "openings", "test_control"):
                fields[name] = tuple(fields.get(name, ()))
            fields["cause"] = _optional(Cause, fields.get("cause"))
            explanation = fields.get("explanation")
            fields["explanation"] = None if explanation is None else _explanation(explanation)
            receipt = fields.get("receipt")
            fields["receipt"] = None if receipt is None else Receipt.from_json(receipt)
            return cls(**fields)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a verdict: {error}") from error


class Judgement(NamedTuple):
    """What steps prove together, the reason in a sentence, and a hint."""

    outcome: Outcome
    reason: str
    hint: str | None = None
    cause: Cause | None = None


def judge(steps: Sequence[StepResult]) -> Judgement:
    """Return what `steps` prove together.

    The worst outcome counts: REJECTED, then FAILED, then INCONCLUSIVE. Without a step nothing is
    proved, so the outcome is INCONCLUSIVE.
    """
    if not steps:
        return Judgement(
            Outcome.INCONCLUSIVE,
            "the strategy has no steps, so nothing was proved",
            "choose a strategy with steps: `sandbox-engine strategies` lists them",
            Cause.UNPROVED,
        )
    for outcome in (Outcome.REJECTED, Outcome.FAILED, Outcome.INCONCLUSIVE):
        for step in steps:
            if step.outcome is outcome:
                return Judgement(outcome, f"{step.name}: {step.reason}", step.hint, step.cause)
    return Judgement(Outcome.PASSED, _evidence(steps))


def count_categories(steps: Iterable[StepResult]) -> dict[str, int]:
    """Return how many tests are of each category."""
    return _counted(test.category for step in steps for test in step.tests)


def count_outcomes(steps: Iterable[StepResult]) -> dict[str, int]:
    """Return how many of the tests that have no category ended in each way."""
    tests = (test for step in steps for test in step.tests)
    return _counted(test.outcome for test in tests if test.category is None)


def _counted(words: Iterable[enum.StrEnum | None]) -> dict[str, int]:
    return dict(Counter(str(word) for word in words if word is not None))


def _evidence(steps: Iterable[StepResult]) -> str:
    return "; ".join(f"{step.name}: {step.reason or 'ok'}" for step in steps)


def _listed(record: dict[str, Any]) -> dict[str, Any]:
    """Return `record` with lists for tuples and texts for enumerations, as JSON has them."""
    plain = {
        key: list(value) if isinstance(value, tuple) else value for key, value in record.items()
    }
    for key, value in plain.items():
        if isinstance(value, enum.StrEnum):
            plain[key] = str(value)
    if "tests" in plain:
        plain["tests"] = [_listed(test) for test in plain["tests"]]
    return plain


def _listed_deep(value: Any) -> Any:
    """Return `value` with lists for tuples, in all that it holds."""
    if isinstance(value, dict):
        return {key: _listed_deep(inner) for key, inner in value.items()}
    return [_listed_deep(inner) for inner in value] if isinstance(value, tuple) else value


def _findings(records: Iterable[dict[str, Any]]) -> tuple[Finding, ...]:
    return tuple(Finding(**record) for record in records)


def _step(record: dict[str, Any]) -> StepResult:
    return StepResult(
        **{
            **record,
            "outcome": Outcome(record["outcome"]),
            "cause": _optional(Cause, record.get("cause")),
            "findings": _findings(record["findings"]),
            "tests": tuple(map(_test, record["tests"])),
        }
    )


def _explanation(record: dict[str, Any]) -> Explanation:
    passing = record["passing"]
    return Explanation(
        **{
            **record,
            "culprits": tuple(
                Culprit(tuple(culprit["tests"]), tuple(culprit["edits"]))
                for culprit in record["culprits"]
            ),
            "passing": None if passing is None else tuple(passing),
            "unexplained": tuple(record["unexplained"]),
            "edits": tuple(AtomRecord(**edit) for edit in record["edits"]),
        }
    )


def _test(record: dict[str, Any]) -> TestRecord:
    return TestRecord(
        **{
            **record,
            "outcome": _optional(TestOutcome, record["outcome"]),
            "category": _optional(Category, record.get("category")),
            "base": _optional(TestOutcome, record.get("base")),
        }
    )


def _optional(kind: type[_Word], value: str | None) -> _Word | None:
    return None if value is None else kind(value)
