"""Which edits break which tests: delta debugging over the edits of a patch.

The algorithm is `ddmin` of Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing
Input" (IEEE Transactions on Software Engineering 28(2), 2002, figure 3). It needs nothing but
answers for sets of edits, and neither that failures add up nor that every set can be judged. One
answer tells of all tests, and none is asked for twice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sandbox_engine.verdict import Culprit, Explanation

Edits = frozenset[int]
TrySubset = Callable[[Edits], Mapping[str, bool] | None]
"""Tells of each test whether it fails with these edits alone; None where that cannot be judged."""


class _BudgetSpent(Exception):
    """No further run is allowed."""


@dataclass(slots=True)
class _Trials:
    """What has been tried, and how many runs are left."""

    tests: tuple[str, ...]
    try_subset: TrySubset
    left: int
    answers: dict[Edits, Mapping[str, bool] | None]
    runs: int = 0

    def answer(self, edits: Edits) -> Mapping[str, bool] | None:
        """Return what is known of `edits`, by a run if need be; raise where none is left."""
        if edits not in self.answers:
            if self.left < 1:
                raise _BudgetSpent
            self.left -= 1
            self.runs += 1
            self.answers[edits] = self.try_subset(edits)
        return self.answers[edits]

    def fails(self, test: str, edits: Edits) -> bool:
        return (self.answer(edits) or {}).get(test) is True

    def passes(self, edits: Edits) -> bool:
        return self.is_passing(self.answer(edits))

    def is_passing(self, answer: Mapping[str, bool] | None) -> bool:
        """Return whether `answer` tells of every test that it passes."""
        return answer is not None and all(answer.get(test) is False for test in self.tests)

    def smallest_failing(self, test: str, within: Edits) -> Edits | None:
        """Return the smallest part of `within` that was seen to break `test`."""
        failing = (
            edits
            for edits, answer in self.answers.items()
            if answer and answer.get(test) is True and edits <= within
        )
        return min(failing, key=_by_size, default=None)

    def largest_passing(self) -> Edits:
        passing = (edits for edits, answer in self.answers.items() if self.is_passing(answer))
        return min(passing, key=lambda edits: (-len(edits), sorted(edits)))


def _by_size(edits: Edits) -> tuple[int, list[int]]:
    return len(edits), sorted(edits)


def explain(
    count: int, regressed: Sequence[str], try_subset: TrySubset, budget: int
) -> Explanation:
    """Return which of `count` edits break each of `regressed`, and the most that break none.

    Each test passes without any edit and fails with all of them. `try_subset` is called at most
    `budget` times; when more were needed, the answer is the best so far and not complete. A test
    that does not fail with all edits when it is tried again is left unexplained.
    """
    tests = tuple(dict.fromkeys(regressed))
    nothing: Edits = frozenset()
    trials = _Trials(tests, try_subset, budget, {nothing: dict.fromkeys(tests, False)})
    found: dict[Edits, list[str]] = {}
    is_complete = True
    every = frozenset(range(count))
    try:
        for test in tests:
            if trials.fails(test, every):
                found.setdefault(_ddmin(trials, test, every), []).append(test)
        if found:
            _grow(trials, every, _remainder(trials, every, found), found)
    except _BudgetSpent:
        is_complete = False
        _add_best(trials, every, found)
    known = {test for broken in found.values() for test in broken}
    passing = tuple(sorted(trials.largest_passing())) if found else ()
    return Explanation(
        tuple(Culprit(tuple(broken), tuple(sorted(edits))) for edits, broken in found.items()),
        passing or None,
        tuple(test for test in tests if test not in known),
        trials.runs,
        is_complete,
    )


def _ddmin(trials: _Trials, test: str, within: Edits) -> Edits:
    """Return a part of `within`, which fails, of which no edit can be left out.

    It starts from the smallest part that is known to fail, whichever test it was tried for.
    """
    edits = trials.smallest_failing(test, within) or within
    parts = 2
    while len(edits) > 1:
        chunks = list(_split(edits, parts))
        for chunk in chunks:
            if trials.fails(test, chunk):
                edits, parts = chunk, 2
                break
        else:
            for chunk in chunks:
                if trials.fails(test, edits - chunk):
                    edits, parts = edits - chunk, max(parts - 1, 2)
                    break
            else:
                if parts >= len(edits):
                    break
                parts = min(2 * parts, len(edits))
    return edits


def _split(edits: Edits, parts: int) -> Iterator[Edits]:
    """Yield `edits` in `parts` of neighbours, of much the same size."""
    ordered = sorted(edits)
    for part in range(parts):
        start, end = (len(ordered) * edge // parts for edge in (part, part + 1))
        yield frozenset(ordered[start:end])


def _remainder(trials: _Trials, every: Edits, found: dict[Edits, list[str]]) -> Edits:
    """Return edits without a culprit that pass, or none where what is left cannot be judged.

    A test that still fails is broken in one more way, which is added to `found`.
    """
    rest = every.difference(*found)
    while not trials.passes(rest):
        broken = next((test for test in trials.tests if trials.fails(test, rest)), None)
        if broken is None:
            return frozenset()
        culprit = _ddmin(trials, broken, rest)
        found.setdefault(culprit, []).append(broken)
        rest -= culprit
    return rest


def _grow(trials: _Trials, every: Edits, start: Edits, culprits: Collection[Edits]) -> None:
    """Try to add edits to what passes, starting from `start` or the most that is known to pass.

    What could be added is halved until it passes. A set that holds a culprit is not tried. An edit
    may need another one, so all are tried again until nothing more is added.
    """
    base = max(start, trials.largest_passing(), key=len)
    while True:
        size = len(base)
        pending = [every - base]
        while pending:
            more = pending.pop()
            grown = base | more
            if more and not any(culprit <= grown for culprit in culprits) and trials.passes(grown):
                base = grown
            elif len(more) > 1:
                pending += reversed(list(_split(more, 2)))
        if len(base) == size:
            return


def _add_best(trials: _Trials, every: Edits, found: dict[Edits, list[str]]) -> None:
    """Give every test without a culprit the smallest set that was seen to break it."""
    known = {test for broken in found.values() for test in broken}
    for test in trials.tests:
        edits = None if test in known else trials.smallest_failing(test, every)
        if edits is not None:
            found.setdefault(edits, []).append(test)
