"""The tests of a candidate on trial: beside its base's, again where they fail, and under control.

A red test is blamed on the patch when the base's is green, it fails each time that it is run
again, and the base's does not. Green tests count when they are so with the base's version too of
what steers them (docs/adr/0006-judged-by-difference.md).
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Protocol

from sandbox_engine import control, delta, mixed, removal, ruling, tree
from sandbox_engine.delta import BaseTests
from sandbox_engine.patch import File
from sandbox_engine.pytest_step import PYTEST_NEEDS, Doubt, Observed, tail
from sandbox_engine.recipe import Recipe
from sandbox_engine.removal import Changes
from sandbox_engine.ruling import Ruling
from sandbox_engine.tree import CandidateTree
from sandbox_engine.verdict import (
    Category,
    Cause,
    Outcome,
    StepResult,
    TestOutcome,
    TestRecord,
)

_MOST_RERUN = 50
"""Of so many tests that fail at once, the others fail with them if one of these does."""
_BASE_RERUNS = 4
"""For each rerun with the patch so many without it: where that are eight, a test that fails in
half of all sessions has failed by then, but for one in 256."""
_BASE_RERUN_S = 10.0
"""When it took longer than this, no further one of them is begun."""
_FULL_RERUNS = 2


class Observe(Protocol):
    """Run the tests that `arguments` select, of `only` these where given, on a tree."""

    def __call__(
        self,
        where: CandidateTree,
        arguments: Sequence[str],
        *,
        only: Sequence[str] | None = None,
        expected: Set[str] = frozenset(),
    ) -> Observed: ...


@dataclass(frozen=True, slots=True)
class Court:
    """What a trial works with.

    `known` tells what the tests that some arguments select do on the base, and `learn` is told
    which of them were red there when they were run again, and how often others were green.
    `provided` are the top-level modules of the project, `read` returns a file of the candidate,
    `restored` the candidate with some paths as in the base, and `spent_s` how long test sessions
    have taken so far.
    """

    candidate: CandidateTree
    recipe: Recipe
    observe: Observe
    known: Callable[[Sequence[str]], BaseTests | Doubt]
    learn: Callable[[Sequence[str], Set[str], Mapping[str, int]], None]
    provided: Callable[[], Set[str]]
    read: Callable[[bytes], File | None]
    restored: Callable[[Set[bytes]], CandidateTree]
    spent_s: Callable[[], float]


def find_base(
    observe: Observe, base: CandidateTree, arguments: Sequence[str], reruns: int
) -> BaseTests | Doubt:
    """Return what the tests of a base do; those that fail are run again to find the flaky ones."""
    seen = observe(base, arguments)
    if seen.doubt is not None:
        return seen.doubt
    report = seen.report
    found = delta.base_tests(report.tests, report.ids, report.collect_errors)
    left = [node for node in sorted(found.red) if node not in found.broken][:_MOST_RERUN]
    flaky: set[str] = set()
    deadline = time.monotonic() + _BASE_RERUN_S
    for number in range(_BASE_RERUNS * reruns):
        if not left or (number >= reruns and time.monotonic() > deadline):
            break
        flaky |= _green_again(observe(base, arguments, only=left), left)
        left = [node for node in left if node not in flaky]
    return dataclasses.replace(
        found,
        flaky=frozenset(flaky),
        patched=frozenset(report.patched),
        codes=delta.codes_by_function(report.codes),
        reached=frozenset(report.reached),
        is_gated=seen.done.code == 1 and not found.red,
    )


def try_tests(
    name: str, court: Court, arguments: Sequence[str], *, is_alone: bool = False
) -> StepResult:
    """Return what the tests that `arguments` select say of the candidate.

    With `is_alone` they are not compared with the base's: it has none of them.
    """
    started_s = court.spent_s()
    result = _try_tests(name, court, arguments, is_alone=is_alone)
    return dataclasses.replace(result, elapsed_s=court.spent_s() - started_s)


def _try_tests(name: str, court: Court, arguments: Sequence[str], *, is_alone: bool) -> StepResult:
    blank = StepResult(name, Outcome.INCONCLUSIVE, recurs=False)
    base = BaseTests() if is_alone else court.known(arguments)
    if isinstance(base, Doubt):
        reason = f"the base cannot be judged: {base.reason}"
        return _unjudged(blank, dataclasses.replace(base, reason=reason, cause=Cause.INFRA))
    candidate = court.candidate
    changes = _changes(candidate)

    def read(path: str) -> bytes | None:
        file = court.read(os.fsencode(path))
        return file.content if file else None

    seen = court.observe(candidate, arguments, expected=base.red)
    report, records = seen.report, seen.report.tests
    blank = dataclasses.replace(blank, tests=_all(seen), output=tail(seen.done))
    if seen.refusal is not None and base.outcomes:
        # It starts without the patch, so that each test fails because of it.
        records = _refused(base, changes, seen.refusal)
    elif doubt := seen.doubt or _replaced(report.patched, base):
        return _unjudged(blank, doubt)
    tests = delta.compare(
        base,
        records,
        report.collect_errors,
        renames=changes.renames,
        changed=changes.after.keys(),
        removed=lambda lost: removal.find_removed(lost, changes, read),
    )
    tests, unstable = _settled(court, arguments, base, tests, changes)
    nodes = base.outcomes.keys() | base.broken | set(report.ids)
    before, after = candidate.before, candidate.after
    steering = control.find_control(before, after, nodes, PYTEST_NEEDS, court.read, arguments)
    session = ruling.Session(
        collected=len(report.ids),
        reported=len(report.tests),
        is_gated=seen.done.code == 1 and not seen.red,
        was_gated=base.is_gated,
        provided=court.provided(),
        steers=bool(steering),
    )
    demands = court.recipe.demands
    ruled = ruling.rule(tests, demands, session, unstable)
    if ruled.outcome is Outcome.PASSED and not demands.allow_test_changes:
        # Under control it is seen there: settings may change how tests compile.
        doubt = None if steering else _altered(seen, base, changes.after.keys())
        if doubt := doubt or _reaching(seen, base, court):
            return _unjudged(dataclasses.replace(blank, tests=tests), doubt)
        if steering and not is_alone:
            tests, hidden = _controlled(court, arguments, base, tests, changes, steering)
            ruled = hidden or ruled
    return dataclasses.replace(
        blank,
        **dataclasses.asdict(ruled),
        tests=tests,
        recurs=ruled.outcome is not Outcome.INCONCLUSIVE,
    )


def _unjudged(blank: StepResult, doubt: Doubt) -> StepResult:
    return dataclasses.replace(
        blank,
        reason=doubt.reason,
        hint=doubt.hint,
        cause=doubt.cause,
        findings=doubt.findings,
    )


def _all(seen: Observed) -> tuple[TestRecord, ...]:
    return (*seen.report.collect_errors, *seen.report.tests)


def _refused(base: BaseTests, changes: Changes, said: str) -> tuple[TestRecord, ...]:
    """Return a red record for each test of a base whose session the patch keeps from starting."""
    nodes = (delta.renamed(node, changes.renames) for node in base.outcomes)
    return tuple(TestRecord(node, TestOutcome.ERROR, message=said) for node in nodes)


def _replaced(patched: Sequence[str], base: BaseTests) -> Doubt | None:
    """Return that the patch replaces functions of pytest, if it does; some projects always do."""
    new = [name for name in patched if name not in base.patched]
    if not new:
        return None
    return Doubt(
        f"the patched code replaces `{new[0]}`, which decides what passes",
        "leave pytest's own functions as they are",
        Cause.UNTRUSTED,
    )


def _altered(seen: Observed, base: BaseTests, changed: Set[str]) -> Doubt | None:
    """Return that a test passed which is not the one that is written in its file, if one did."""
    altered = delta.find_altered(base, seen.report.tests, seen.report.codes, changed)
    if not altered:
        return None
    return Doubt(
        f"`{altered[0]}` passed, but what ran is not what its file says, and the file is the "
        "base's: something changed it on the way",
        "let the code leave the tests as they are written",
        Cause.UNTRUSTED,
    )


def _reaching(seen: Observed, base: BaseTests, court: Court) -> Doubt | None:
    """Return that code under test looked for what judges it, if it did and the base's does not.

    With the collector it finds the report, and can write the rest of it. Tests may look for
    leaks; where the patch changes them, the base's version is run too.
    """
    new = seen.report.reached.keys() - base.reached - base.files
    if new:
        before, after = court.candidate.before, court.candidate.after
        # The report may be forged: what it names as tests does not count.
        tests = control.find_control(before, after, base.files, PYTEST_NEEDS, court.read)
        new -= set(map(os.fsdecode, tests))
    if not new:
        return None
    path = min(new)
    return Doubt(
        f"the patched code calls `{seen.report.reached[path]}` in `{path}`: what asks for all "
        "objects may change what is reported",
        f"do without it; {ruling.ALLOW}",
        Cause.UNTRUSTED,
    )


def _green_again(seen: Observed, wanted: Sequence[str]) -> frozenset[str]:
    """Return those of `wanted` that pass this time; of a file, that it was collected."""
    if seen.doubt is not None:
        return frozenset()
    passed = delta.green(seen.report.tests)
    files = {delta.file_of(node) for node in seen.report.ids} - seen.red
    return frozenset(node for node in wanted if node in passed or node in files)


def _settled(
    court: Court,
    arguments: Sequence[str],
    base: BaseTests,
    tests: tuple[TestRecord, ...],
    changes: Changes,
) -> tuple[tuple[TestRecord, ...], frozenset[str]]:
    """Run again what seems to fail because of the patch; return what is left of that.

    The second value are those that failed among the others each time and passed alone.
    """
    suspects = [test for test in tests if test.category and test.category.is_blamed]
    if not suspects or not court.recipe.reruns:
        return tests, frozenset()
    nodes = [test.node_id for test in suspects]
    alone = _green_alone(court, arguments, nodes[:_MOST_RERUN])
    if alone.issuperset(nodes[:_MOST_RERUN]):
        alone |= _green_alone(court, arguments, nodes[_MOST_RERUN:])
    new = {test.node_id for test in suspects if test.category is Category.NEW_FAILED}
    left = [node for node in nodes if node not in alone][:_MOST_RERUN]
    on_base = _named_before([node for node in (*left, *alone) if node not in new], changes)
    red, leaning = _learned(court, arguments, base, frozenset(on_base.values()))
    failing_there = {node for node, old in on_base.items() if old in red}
    by_others = frozenset(node for node in left if on_base.get(node) in leaning)
    healed = by_others - _red_among_others(court, court.candidate, arguments, by_others)
    tests = delta.with_category(tests, alone | failing_there | healed, Category.FLAKY)
    if any(test.category and test.category.is_blamed for test in tests):
        return tests, frozenset()
    return tests, _red_among_others(court, court.candidate, arguments, alone - failing_there)


def _green_alone(court: Court, arguments: Sequence[str], nodes: Sequence[str]) -> frozenset[str]:
    """Return those of `nodes` that pass when they alone are run again."""
    green: frozenset[str] = frozenset()
    for _ in range(court.recipe.reruns):
        if left := [node for node in nodes if node not in green]:
            green |= _green_again(court.observe(court.candidate, arguments, only=left), left)
    return green


def names_in(some: CandidateTree, whole: CandidateTree, tests: Sequence[str]) -> dict[str, str]:
    """Return what `some`, of the same base as `whole`, calls each of the tests of `whole`."""
    before = _named_before(tests, _changes(whole))
    renames = _changes(some).renames
    return {test: delta.renamed(node, renames) for test, node in before.items()}


def _changes(candidate: CandidateTree) -> Changes:
    return removal.changes_of(candidate.before, candidate.after, candidate.renames)


def _named_before(nodes: Sequence[str], changes: Changes) -> dict[str, str]:
    """Return what the base calls each of `nodes`."""
    old = {new: path for path, new in changes.renames.items()}
    files = {node: delta.file_of(node) for node in nodes}
    return {node: old.get(file, file) + node[len(file) :] for node, file in files.items()}


def _again_on_base(
    court: Court, arguments: Sequence[str], base: BaseTests, nodes: Set[str]
) -> tuple[frozenset[str], Mapping[str, int]]:
    """Run tests of the base again; return those that were red, and how often others were green."""
    where = tree.unchanged(court.candidate)
    red: set[str] = set()
    green: Counter[str] = Counter()
    deadline = time.monotonic() + _BASE_RERUN_S
    enough = _BASE_RERUNS * court.recipe.reruns
    for number in range(enough):
        left = sorted(node for node in nodes - red if base.steady.get(node, 0) + number < enough)
        if not left or (number and time.monotonic() > deadline):
            break
        seen = court.observe(where, arguments, only=left)
        red |= seen.red & nodes
        green.update(_green_again(seen, left))
    return frozenset(red), green


def _learned(
    court: Court, arguments: Sequence[str], base: BaseTests, nodes: Set[str]
) -> tuple[frozenset[str], frozenset[str]]:
    """Run tests of the base again; return those that are flaky, and those that lean on others."""
    red, green = _again_on_base(court, arguments, base, nodes)
    leaning = _leaning(court, arguments, red - green.keys())
    red -= leaning
    if red or green:
        court.learn(arguments, red, green)
    return red, leaning


def _flaky_on_base(
    court: Court, arguments: Sequence[str], base: BaseTests, nodes: Set[str]
) -> frozenset[str]:
    """Return those of `nodes` that were green on the base and turn out to be flaky there."""
    green = {node for node in nodes if (known := base.outcomes.get(node)) and not known.is_red}
    if not 0 < len(green) <= _MOST_RERUN:
        return frozenset()
    return _learned(court, arguments, base, green)[0]


def _leaning(court: Court, arguments: Sequence[str], nodes: Set[str]) -> frozenset[str]:
    """Return those of `nodes`, red alone on the base, that are so each time, and green among all.

    They need what an earlier test leaves. That they fail alone says nothing about a patch.
    """
    where = tree.unchanged(court.candidate)
    left = frozenset(nodes)
    for _ in range(court.recipe.reruns):
        if left:
            left -= _green_again(court.observe(where, arguments, only=sorted(left)), sorted(left))
    for _ in range(_FULL_RERUNS):
        if left and (seen := court.observe(where, arguments)).doubt is None:
            left &= _green_again(seen, sorted(left))
    return left


def _red_among_others(
    court: Court, where: CandidateTree, arguments: Sequence[str], nodes: Set[str]
) -> frozenset[str]:
    """Return those of `nodes` that fail each time that all tests of a tree run."""
    left = frozenset(nodes)
    for _ in range(_FULL_RERUNS):
        if left and (seen := court.observe(where, arguments)).doubt is None:
            left &= seen.red
    return left


def _controlled(
    court: Court,
    arguments: Sequence[str],
    base: BaseTests,
    tests: tuple[TestRecord, ...],
    changes: Changes,
    steering: Sequence[bytes],
) -> tuple[tuple[TestRecord, ...], Ruling | None]:
    """Run the base's version of what steers the tests over the patched code.

    Return `tests` with the category TAMPERED for those that are red there and not with the
    patch's version (green, skipped or taken out), and the ruling that follows.
    """
    if rewritten := mixed.find_rewritten(changes, base.outcomes.keys() - base.red):
        return tests, ruling.inseparable(sorted(rewritten))
    red = _red_under_control(court, arguments, base, steering)
    if isinstance(red, Doubt):
        return tests, ruling.uncontrolled(red.reason)
    tests = _with_tampered(tests, red - base.flaky, base, changes.renames)
    return tests, ruling.tampered(tests)


def _with_tampered(
    tests: tuple[TestRecord, ...], red: Set[str], base: BaseTests, renames: Mapping[str, str]
) -> tuple[TestRecord, ...]:
    """Return `tests` with those told that are in `red`, and not red by themselves.

    One of `red` that has another name with the patch gets a record of its own.
    """
    broken = {delta.renamed(node, renames) for node in red if "::" not in node}
    names = {delta.renamed(node, renames): node for node in red if "::" in node}
    tampered = set()
    for test in tests:
        # Of a file that could not be collected there, only what is new was not there.
        is_in = not broken.isdisjoint(delta.parents(test.node_id))
        is_in = is_in and test.category is not Category.NEW_PASSED
        if not test.is_red and (is_in or test.node_id in names):
            tampered.add(test.node_id)
    known = {test.node_id for test in tests}
    red_anyway = {delta.function_of(test.node_id) for test in tests if test.is_red}
    others = (
        TestRecord(name, None, category=Category.TAMPERED, base=base.outcomes.get(node))
        for name, node in sorted(names.items())
        if name not in known and delta.function_of(name) not in red_anyway
    )
    return (*delta.with_category(tests, tampered, Category.TAMPERED), *others)


def _red_under_control(
    court: Court, arguments: Sequence[str], base: BaseTests, steering: Sequence[bytes]
) -> frozenset[str] | Doubt:
    """Return what is red each time with the base's version of what steers the tests.

    All tests run: what a test file does when it is imported reaches those of every other.
    """
    where = court.restored(frozenset(steering))
    if where.id == where.base_tree:
        return base.red
    seen = court.observe(where, arguments, expected=base.red)
    if doubt := seen.doubt or _altered(seen, base, frozenset()):
        return doubt
    red = seen.red - delta.unexpected_passes(base, seen.report.tests)
    alone: frozenset[str] = frozenset()
    for _ in range(court.recipe.reruns if len(red) <= _MOST_RERUN else 0):
        if left := sorted(red - alone):
            alone |= _green_again(court.observe(where, arguments, only=left), left)
    found = (red - alone) | _red_among_others(court, where, arguments, alone)
    return found - _flaky_on_base(court, arguments, base, found)
