"""Delta debugging against what trying every set of edits tells."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping

from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox_engine.explain import explain
from sandbox_engine.verdict import Culprit, Explanation

Answers = Callable[[frozenset[int]], Mapping[str, bool] | None]


class Project:
    """Answers as `answers` does, and remembers what was asked."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self.asked: list[frozenset[int]] = []

    def __call__(self, edits: frozenset[int]) -> Mapping[str, bool] | None:
        self.asked.append(edits)
        return self.answers(edits)


def broken_by(**culprits: list[set[int]]) -> Answers:
    """Return the answers of tests that each fail where all edits of one of its sets are made."""
    return lambda edits: {
        test: any(culprit <= edits for culprit in sets) for test, sets in culprits.items()
    }


def subsets(count: int) -> list[frozenset[int]]:
    every = range(count)
    return [
        frozenset(edits)
        for size in range(count + 1)
        for edits in itertools.combinations(every, size)
    ]


def test_one_edit_among_many_is_found_in_few_runs() -> None:
    project = Project(broken_by(a=[{37}]))
    explanation = explain(64, ["a"], project, 100)
    assert explanation.culprits == (Culprit(("a",), (37,)),)
    assert explanation.passing == tuple(sorted({*range(64)} - {37}))
    assert explanation.is_complete
    assert explanation.runs == len(project.asked) <= 1 + 2 * 6 + 1
    assert project.asked[-1] == frozenset(explanation.passing)


def test_tests_share_their_runs_and_those_with_the_same_culprit_are_told_together() -> None:
    project = Project(broken_by(a=[{3}], b=[{3}], c=[{9}]))
    explanation = explain(16, ["a", "b", "c"], project, 100)
    assert explanation.culprits == (Culprit(("a", "b"), (3,)), Culprit(("c",), (9,)))
    assert len(project.asked) == len(set(project.asked)) <= 18
    assert project.asked[-1] == frozenset(explanation.passing or ())


def test_edits_that_break_a_test_only_together_are_named_together() -> None:
    explanation = explain(8, ["a"], broken_by(a=[{1, 6}]), 100)
    assert explanation.culprits == (Culprit(("a",), (1, 6)),)
    assert explanation.passing is not None
    assert len(explanation.passing) == 7


def test_a_test_that_is_broken_in_several_ways_is_told_each() -> None:
    explanation = explain(8, ["a"], broken_by(a=[{1}, {4}, {6}]), 100)
    assert {culprit.edits for culprit in explanation.culprits} == {(1,), (4,), (6,)}
    assert explanation.passing == (0, 2, 3, 5, 7)
    assert explanation.unexplained == ()


def test_edits_that_need_one_another_are_tried_together() -> None:
    """Edit 2 does not apply without edit 1, and 1 breaks nothing."""

    def answers(edits: frozenset[int]) -> Mapping[str, bool] | None:
        return None if 2 in edits and 1 not in edits else {"a": {1, 2} <= edits}

    explanation = explain(4, ["a"], answers, 100)
    assert explanation.culprits == (Culprit(("a",), (1, 2)),)
    assert explanation.passing == (0, 1, 3)


def test_what_passes_is_built_up_where_the_rest_cannot_be_judged() -> None:
    """Without edit 0, which breaks the test, none of the edits 1 to 3 applies."""

    def answers(edits: frozenset[int]) -> Mapping[str, bool] | None:
        return None if edits & {1, 2, 3} and 0 not in edits else {"a": 0 in edits}

    explanation = explain(6, ["a"], answers, 100)
    assert explanation.culprits == (Culprit(("a",), (0,)),)
    assert explanation.passing == (4, 5)


def test_what_can_be_added_only_after_others_is_tried_again() -> None:
    """Edit 1 does not apply without 3, nor 2 without 0, which breaks the test."""
    needs = {1: 3, 2: 0}

    def answers(edits: frozenset[int]) -> Mapping[str, bool] | None:
        is_whole = all(needs.get(edit, edit) in edits for edit in edits)
        return {"a": 0 in edits} if is_whole else None

    assert explain(5, ["a"], answers, 100).passing == (1, 3, 4)


def test_a_test_that_does_not_fail_again_is_not_explained() -> None:
    explanation = explain(3, ["a", "b"], broken_by(a=[{1}], b=[]), 100)
    assert explanation.culprits == (Culprit(("a",), (1,)),)
    assert explanation.unexplained == ("b",)
    nothing = explain(3, ["b"], broken_by(b=[]), 100)
    assert nothing == Explanation((), None, ("b",), 1, True)


def test_one_edit_is_its_own_culprit() -> None:
    explanation = explain(1, ["a"], broken_by(a=[{0}]), 9)
    assert explanation == Explanation((Culprit(("a",), (0,)),), None, (), 1, True)


def test_without_a_run_nothing_is_told() -> None:
    assert explain(4, ["a"], broken_by(a=[{1}]), 0) == Explanation((), None, ("a",), 0, False)


def test_a_spent_budget_gives_the_best_that_was_seen() -> None:
    """All edits, then both halves, of which the first fails; then its first half passes."""
    explanation = explain(16, ["a"], broken_by(a=[{5}]), 3)
    assert explanation.culprits == (Culprit(("a",), tuple(range(8))),)
    assert explanation.passing == (0, 1, 2, 3)
    assert not explanation.is_complete


tables = st.tuples(st.integers(1, 6), st.integers(0, 2**32), st.integers(1, 3))


def random_table(
    count: int, seed: int, tests: int, *, is_monotone: bool, unresolved: float
) -> dict[frozenset[int], Mapping[str, bool] | None]:
    """Return answers for every set: all tests pass without edits and fail with all of them."""
    rng = random.Random(seed)
    names = [f"t{number}" for number in range(tests)]
    every = subsets(count)
    culprits = {name: rng.sample(every[1:], min(2, len(every) - 1)) for name in names}
    share = rng.random()
    table: dict[frozenset[int], Mapping[str, bool] | None] = {}
    for edits in every:
        table[edits] = {
            name: any(culprit <= edits for culprit in culprits[name])
            if is_monotone
            else rng.random() < share
            for name in names
        }
        if rng.random() < unresolved:
            table[edits] = None
    table[every[0]] = dict.fromkeys(names, False)
    table[every[-1]] = dict.fromkeys(names, True)
    return table


def check(
    table: dict[frozenset[int], Mapping[str, bool] | None], count: int, tests: int, budget: int
) -> Explanation:
    """Return the explanation of `table`, of which all that can be told without luck is true."""
    names = [f"t{number}" for number in range(tests)]
    project = Project(table.__getitem__)
    explanation = explain(count, names, project, budget)
    assert explanation.runs == len(project.asked) <= budget
    assert len(set(project.asked)) == len(project.asked)
    assert frozenset() not in project.asked
    for culprit in explanation.culprits:
        edits = frozenset(culprit.edits)
        assert edits in project.asked
        for test in culprit.tests:
            assert (table[edits] or {})[test]
            for edit in edits if explanation.is_complete else ():
                assert not (table[edits - {edit}] or {}).get(test)
    if explanation.passing is not None:
        passing = frozenset(explanation.passing)
        assert passing in project.asked
        assert table[passing] == dict.fromkeys(names, False)
    told = {test for culprit in explanation.culprits for test in culprit.tests}
    assert told | set(explanation.unexplained) == set(names)
    assert told.isdisjoint(explanation.unexplained)
    sets = [culprit.edits for culprit in explanation.culprits]
    assert len(sets) == len(set(sets))
    assert explanation == explain(count, names, table.__getitem__, budget)
    return explanation


@settings(max_examples=300, deadline=None)
@given(tables, st.booleans(), st.sampled_from([0.0, 0.2, 0.6]), st.integers(0, 40))
def test_what_is_told_was_seen_whatever_the_answers_are(
    shape: tuple[int, int, int], is_monotone: bool, unresolved: float, budget: int
) -> None:
    count, seed, tests = shape
    table = random_table(count, seed, tests, is_monotone=is_monotone, unresolved=unresolved)
    check(table, count, tests, budget)


@settings(max_examples=300, deadline=None)
@given(tables, st.booleans(), st.sampled_from([0.0, 0.3]))
def test_with_runs_enough_it_is_complete(
    shape: tuple[int, int, int], is_monotone: bool, unresolved: float
) -> None:
    count, seed, tests = shape
    table = random_table(count, seed, tests, is_monotone=is_monotone, unresolved=unresolved)
    explanation = check(table, count, tests, 2**count)
    assert explanation.is_complete
    assert explanation.unexplained == ()


@settings(max_examples=300, deadline=None)
@given(tables)
def test_where_failures_add_up_no_edit_more_would_pass(shape: tuple[int, int, int]) -> None:
    count, seed, tests = shape
    table = random_table(count, seed, tests, is_monotone=True, unresolved=0)
    explanation = check(table, count, tests, 2**count)
    passing = frozenset(explanation.passing or ())
    for edit in set(range(count)) - passing:
        assert any((table[passing | {edit}] or {}).values())
