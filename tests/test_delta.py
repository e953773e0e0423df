from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence, Set

import pytest

from sandbox_engine import delta
from sandbox_engine.delta import BaseTests
from sandbox_engine.verdict import Category, TestOutcome, TestRecord

P, F, E, S, XF, XP = (
    TestOutcome.PASSED,
    TestOutcome.FAILED,
    TestOutcome.ERROR,
    TestOutcome.SKIPPED,
    TestOutcome.XFAILED,
    TestOutcome.XPASSED,
)
T = "t.py::test"


def records(outcomes: Mapping[str, TestOutcome]) -> list[TestRecord]:
    return [TestRecord(node, outcome) for node, outcome in outcomes.items()]


def compared(
    base: BaseTests | Mapping[str, TestOutcome | None],
    tests: Sequence[TestRecord] | Mapping[str, TestOutcome],
    *,
    broken: Sequence[str] = (),
    renames: Mapping[str, str] | None = None,
    changed: Set[str] = frozenset(),
    removed: Set[str] = frozenset(),
) -> dict[str, Category | None]:
    found = delta.compare(
        base if isinstance(base, BaseTests) else BaseTests(base),
        records(tests) if isinstance(tests, Mapping) else tests,
        [TestRecord(node, E) for node in broken],
        renames=renames or {},
        changed=changed,
        removed=lambda lost: removed & set(lost),
    )
    return {test.node_id: test.category for test in found}


@pytest.mark.parametrize(
    ("before", "after", "category"),
    [
        (P, P, Category.PASSED),
        (P, XP, Category.PASSED),
        (XP, P, Category.PASSED),
        (S, P, Category.PASSED),
        (XF, P, Category.PASSED),
        (None, P, Category.PASSED),
        (F, P, Category.FIXED),
        (E, P, Category.FIXED),
        (P, F, Category.REGRESSED),
        (P, E, Category.REGRESSED),
        (S, F, Category.REGRESSED),
        (XF, F, Category.REGRESSED),
        (None, F, Category.REGRESSED),
        (F, F, Category.PRE_EXISTING),
        (F, E, Category.PRE_EXISTING),
        (P, S, Category.SKIPPED),
        (P, XF, Category.SKIPPED),
        (F, S, Category.SKIPPED),
        (S, S, Category.SKIPPED),
    ],
)
def test_each_test_gets_a_category(
    before: TestOutcome | None, after: TestOutcome, category: Category
) -> None:
    assert compared({T: before}, {T: after}) == {T: category}


@pytest.mark.parametrize(
    ("after", "category"),
    [(P, Category.NEW_PASSED), (F, Category.NEW_FAILED), (S, Category.SKIPPED)],
)
def test_what_the_base_has_not_is_new(after: TestOutcome, category: Category) -> None:
    assert compared({}, {T: after}) == {T: category}


@pytest.mark.parametrize("after", [P, F])
def test_what_is_flaky_on_the_base_is_flaky(after: TestOutcome) -> None:
    base = BaseTests({T: F}, flaky=frozenset({T}))
    assert compared(base, {T: after}) == {T: Category.FLAKY}


def test_what_is_gone_was_removed_or_has_vanished() -> None:
    base = {"t.py::test_a": P, "t.py::test_b": None, "t.py::test_c": F}
    assert compared(base, {"t.py::test_c": F}, removed={"t.py::test_b"}) == {
        "t.py::test_a": Category.VANISHED,
        "t.py::test_b": Category.REMOVED,
        "t.py::test_c": Category.PRE_EXISTING,
    }


def test_renames_are_followed() -> None:
    base = BaseTests({"a/t.py::C::test[x::y]": F, "a/t.py::test_b": P})
    after = {"b/u.py::C::test[x::y]": F, "b/u.py::test_b": F}
    assert compared(base, after, renames={"a/t.py": "b/u.py"}) == {
        "b/u.py::C::test[x::y]": Category.PRE_EXISTING,
        "b/u.py::test_b": Category.REGRESSED,
    }


def test_a_repeated_id_counts_by_its_worst_and_is_missed() -> None:
    base = delta.base_tests([*records({T: P}), *records({T: F}), *records({T: P})], [T] * 3, [])
    assert base.outcomes == {T: F} and base.repeated == {T: 3}
    thrice = [*records({T: P})] * 3
    assert compared(base, thrice) == {T: Category.FIXED}
    found = delta.compare(
        base, thrice[:2], [], renames={}, changed=frozenset(), removed=lambda lost: frozenset()
    )
    assert [test.category for test in found] == [Category.FIXED, Category.VANISHED]


def test_names_that_change_in_every_session_are_the_same_cases() -> None:
    base = {"t.py::test[0x1]": F, "t.py::test[0x2]": P, "t.py::other": P}
    after = {"t.py::test[0x3]": F, "t.py::test[0x4]": P, "t.py::other": P}
    expected = {
        "t.py::test[0x3]": Category.PRE_EXISTING,
        "t.py::test[0x4]": Category.PASSED,
        "t.py::other": Category.PASSED,
    }
    assert compared(base, after) == expected
    # In a file that the patch changes it may have changed the cases.
    changed = compared(base, after, changed={"t.py"}, removed=base.keys())
    assert changed["t.py::test[0x3]"] is Category.NEW_FAILED
    assert changed["t.py::test[0x1]"] is Category.REMOVED
    named = compared(
        {"t.py::test[beta]": P}, {"t.py::test[gamma]": P}, removed={"t.py::test[beta]"}
    )
    assert named == {"t.py::test[gamma]": Category.NEW_PASSED, "t.py::test[beta]": Category.REMOVED}
    fewer = compared(base, {"t.py::test[0x3]": P, "t.py::other": P})
    assert fewer["t.py::test[0x1]"] is fewer["t.py::test[0x2]"] is Category.VANISHED


def test_a_file_that_cannot_be_collected() -> None:
    base = {"a/t.py::test": P, "u.py::test": P}
    assert compared(base, {"u.py::test": P}, broken=["a/t.py"]) == {
        "a/t.py": Category.REGRESSED,
        "u.py::test": Category.PASSED,
    }
    assert compared(base, {"u.py::test": P}, broken=["a"])["a"] is Category.REGRESSED
    assert compared(base, {**base, "n.py::t": P}, broken=["n.py"])["n.py"] is Category.NEW_FAILED


def test_a_file_that_the_base_cannot_collect() -> None:
    base = BaseTests({}, broken=frozenset({"a.py"}))
    assert compared(base, {}, broken=["a.py"]) == {"a.py": Category.PRE_EXISTING}
    assert compared(base, {"a.py::test": P, "a.py::red": F}) == {
        "a.py::test": Category.FIXED,
        "a.py::red": Category.PRE_EXISTING,
    }
    renamed = compared(base, {}, broken=["b.py"], renames={"a.py": "b.py"})
    assert renamed == {"b.py": Category.PRE_EXISTING}


def test_other_code_from_the_same_file_is_altered() -> None:
    codes = delta.codes_by_function({"t.py::a[1]": "1", "t.py::a[2]": "1", "t.py::b": ""})
    assert codes == {"t.py::a": "1"}
    assert delta.codes_by_function({"t.py::a[1]": "1", "t.py::a[2]": "2"}) == {}
    base = BaseTests(codes=codes)
    ran = [TestRecord(node, P) for node in ("t.py::a[1]", "t.py::a[3]", "t.py::b")]
    same = {"t.py::a[1]": "1", "t.py::a[3]": "1", "t.py::b": "9"}
    assert delta.find_altered(base, ran, same, set()) == []
    assert delta.find_altered(base, ran, {**same, "t.py::a[3]": ""}, set()) == ["t.py::a[3]"]
    # It passed, and its code was not seen to run.
    assert delta.find_altered(base, ran, {"t.py::a[3]": "1"}, set()) == ["t.py::a[1]"]
    assert delta.find_altered(base, ran, {}, {"t.py"}) == []
    failed = [TestRecord("t.py::a[1]", F)]
    assert delta.find_altered(base, failed, {}, set()) == []


def test_a_base_survives_json() -> None:
    base = BaseTests(
        {"a": P, "b": F, "c": None, "d": XF},
        {"a": 2},
        frozenset("b"),
        {"a": 3},
        frozenset({"x.py"}),
        frozenset({"_pytest.runner.f"}),
        {"a": "0f"},
        frozenset({"c.py"}),
        is_gated=True,
    )
    assert BaseTests.from_json(json.loads(json.dumps(base.to_json()))) == base
    assert base.red == {"b", "x.py"}
    assert dataclasses.replace(base, outcomes={"t/a.py::x": P}).files == {"t/a.py", "x.py"}


def test_only_skips_that_the_base_has_not_are_new() -> None:
    tests = [
        TestRecord("a", S, category=Category.SKIPPED, base=P),
        TestRecord("b", S, category=Category.SKIPPED, base=S),
        TestRecord("c", XF, category=Category.SKIPPED, base=F),
        TestRecord("d", S, category=Category.SKIPPED),
    ]
    assert [test.node_id for test in delta.newly_skipped(tests)] == ["a", "c"]


def test_what_was_run_again_is_added_up() -> None:
    base = BaseTests({"a": P, "b": P, "c": P}, flaky=frozenset("c"), steady={"a": 2, "b": 1})
    more = delta.with_reruns(base, {"b", "not there"}, {"a": 3, "c": 1})
    assert (more.flaky, more.steady) == ({"b", "c"}, {"a": 5})
