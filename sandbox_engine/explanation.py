"""Which edits of a patch that FAILED broke which tests: sets of its edits are tried by themselves.

Only tests that regressed are run, on trees that are built in memory; what became of them on a tree
is kept.
"""

from __future__ import annotations

import dataclasses

from sandbox_engine.errors import PatchError
from sandbox_engine.patch import Match, atoms, select
from sandbox_engine.patch.paths import show
from sandbox_engine.precheck import precheck
from sandbox_engine.run import Run
from sandbox_engine.store import Store
from sandbox_engine.tree import CandidateTree, build_tree
from sandbox_engine.verdict import AtomRecord, Category, Explanation, Outcome, Verdict


def explain_failure(store: Store, run: Run, verdict: Verdict, match: Match) -> Explanation | None:
    """Return which edits of the candidate of `run` broke tests, None where there is no choice."""
    candidate, recipe = run.candidate, run.recipe
    reading = candidate.reading
    red = [test.node_id for test in verdict.red_tests if test.category is Category.REGRESSED]
    if verdict.outcome is not Outcome.FAILED or not red or reading is None:
        return None
    parts = atoms(reading)
    if len(parts) < 2:
        return None

    def build(edits: frozenset[int]) -> CandidateTree | None:
        try:
            chosen = select(reading, edits)
            some = build_tree(store, candidate.base, candidate.base_tree, chosen, match=match)
        except PatchError:
            return None
        is_wrong = precheck(some, recipe.policy, lambda: run.interpreter)
        return None if is_wrong else some

    failed = recipe.steps[len(verdict.steps) - 1]
    told = run.explain(failed, red, len(parts), build)
    records = [
        AtomRecord(part.index, show(part.path), part.line, part.description) for part in parts
    ]
    return dataclasses.replace(told, edits=tuple(records))
