"""Streams as the probe writes them, then torn, forged and nonsensical ones."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_engine.pytest_report import MAX_ID_CHARS, MAX_MESSAGE_CHARS, parse_report
from sandbox_engine.verdict import TestOutcome, TestRecord

BEGIN = {"kind": "begin", "nonce": ""}
START = {"kind": "start", "python": "3.12.1", "pytest": "9.0.3", "xdist": False}
COLLECTED = {"kind": "collected", "ids": ["t.py::a", "t.py::b"]}
A = {"kind": "test", "id": "t.py::a", "outcome": "passed", "duration_s": 0.5, "message": None}
B = {"kind": "test", "id": "t.py::b", "outcome": "failed", "duration_s": 1, "message": "no"}
PATCHED = {"kind": "patched", "names": ["_pytest.runner.x"]}
MODULES = {"kind": "modules", "modules": {"m": "/box/m.py"}}
END = {"kind": "end", "nonce": "", "exit": 1, "counts": {"passed": 1, "failed": 1}}
WHOLE = [BEGIN, START, COLLECTED, A, B, PATCHED, MODULES, END]


def stream(*lines: dict[str, Any]) -> bytes:
    return b"".join(
        json.dumps({**line, "n": number}).encode() + b"\n" for number, line in enumerate(lines)
    )


def test_whole_session() -> None:
    report = parse_report(stream(*WHOLE))
    assert (report.started, report.ended, report.exit_code, report.torn) == (True, True, 1, None)
    assert (report.python, report.pytest) == ("3.12.1", "9.0.3")
    assert report.tests == (
        TestRecord("t.py::a", TestOutcome.PASSED, 0.5),
        TestRecord("t.py::b", TestOutcome.FAILED, 1.0, "no"),
    )
    assert (report.collected, report.ids) == (2, ("t.py::a", "t.py::b"))
    assert report.modules == {"m": "/box/m.py"}
    assert report.patched == ("_pytest.runner.x",)


def test_code_of_tests_and_what_reached_for_them() -> None:
    reached = {"kind": "reached", "call": "gc.get_objects", "path": "m.py"}
    coded = {**A, "code": "0f"}, {**B, "code": ""}
    # Code may reach for objects before the session starts, and at any time after.
    report = parse_report(stream(BEGIN, reached, START, COLLECTED, *coded, *WHOLE[5:]))
    assert (report.ended, report.torn) == (True, None)
    assert report.codes == {"t.py::a": "0f", "t.py::b": ""}
    assert report.reached == {"m.py": "gc.get_objects"}
    assert parse_report(stream(*WHOLE)).codes == {}
    assert parse_report(stream(reached)).torn and parse_report(stream(*WHOLE, reached)).torn


def test_no_session() -> None:
    report = parse_report(b"")
    assert (report.started, report.ended, report.collected, report.torn) == (
        *(False, False, None, None),
    )


def test_session_that_stops_early_is_not_torn() -> None:
    for length in range(1, len(WHOLE)):
        report = parse_report(stream(*WHOLE[:length]))
        assert (report.started, report.ended, report.torn) == (length > 1, False, None)


@pytest.mark.parametrize("nonce", ["", "1", "22"])
def test_report_with_another_nonce_is_torn(nonce: str) -> None:
    own = stream(*({**line, "nonce": "2"} for line in WHOLE))
    assert parse_report(own, "2").torn is None
    report = parse_report(own, nonce)
    assert (report.torn, report.started) == (
        "somebody else than the probe wrote its beginning or its end",
        False,
    )


def test_report_without_its_beginning_is_torn() -> None:
    for lines in ([START], [A], [END]):
        assert parse_report(stream(*lines)).torn == "it has no beginning"


def test_collection_error() -> None:
    error = {"kind": "collect-error", "id": "t.py", "message": "SyntaxError"}
    report = parse_report(stream(BEGIN, START, error))
    assert report.collect_errors == (TestRecord("t.py", TestOutcome.ERROR, 0.0, "SyntaxError"),)


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ([COLLECTED], "no session"),
        ([BEGIN, START], "two probes"),
        ([{**BEGIN, "nonce": "1"}], "two probes"),
        ([START, A, B, MODULES, {**END, "nonce": "1"}], "somebody else"),
        ([START, A, B, MODULES, {**END, "nonce": None}], "somebody else"),
        ([START, START], "two sessions"),
        ([START, COLLECTED, COLLECTED], "doubled"),
        ([START, MODULES, MODULES], "doubled"),
        ([START, {**PATCHED, "names": []}, PATCHED], "doubled"),
        ([START, {**PATCHED, "names": None}], "malformed"),
        ([START, {**PATCHED, "names": [None]}], "no text"),
        ([*WHOLE[1:], A], "after its end"),
        ([*WHOLE[1:], START], "after its end"),
        ([*WHOLE[1:], END], "after its end"),
        ([START, END], "without a list of modules"),
        ([START, A, MODULES, END], "counts"),
        ([START, A, B, B, MODULES, END], "counts"),
        ([START, MODULES, {**END, "counts": None}], "counts"),
        ([START, A, B, MODULES, {**END, "exit": "0"}], "exit code"),
        ([START, A, B, MODULES, {**END, "exit": True}], "exit code"),
        ([START, A, B, MODULES, {**END, "exit": 10**400}], "exit code"),
        ([START, {"kind": "verdict"}], "no known kind"),
        ([START, {"kind": ["test"]}], "no known kind"),
        ([START, {**A, "id": None}], "no text"),
        ([START, {**A, "id": 7}], "no text"),
        ([START, {**A, "message": {}}], "no text"),
        ([START, {**A, "outcome": "PASSED"}], "outcome"),
        ([START, {**A, "duration_s": "1"}], "duration"),
        ([START, {**A, "duration_s": True}], "duration"),
        ([START, {**A, "duration_s": float("nan")}], "duration"),
        ([START, {**A, "duration_s": float("inf")}], "duration"),
        ([START, {**A, "duration_s": 10**300}], "duration"),
        ([START, {**A, "duration_s": 10**400}], "duration"),
        ([START, {"kind": "collected", "ids": "t.py::a"}], "collected tests"),
        ([START, {"kind": "collected", "ids": [None]}], "no text"),
        ([START, {"kind": "modules", "modules": []}], "modules"),
        ([START, {"kind": "modules", "modules": {"m": None}}], "no text"),
    ],
)
def test_forged_streams_are_torn(lines: list[dict[str, Any]], why: str) -> None:
    report = parse_report(stream(BEGIN, *lines))
    assert report.torn is not None
    assert why in report.torn


@pytest.mark.parametrize(
    ("end", "why"),
    [
        (b"\n", "not JSON"),
        (b"\0\xff\n", "not JSON"),
        (b"[" * 100_000 + b"\n", "not JSON"),
        (b'{"a":' * 100_000 + b"\n", "not JSON"),
        (b"1" * 10_000 + b"\n", "not JSON"),
        (b"[]\n", "not an object"),
        (b"null\n", "not an object"),
        (b'{"kind": "test"}\n', "out of order"),
        (b'{"kind": "test", "n": true}\n', "out of order"),
        (b'{"kind": "test", "n": 1.0}\n', "out of order"),
        (b'{"kind": "test", "n": 4}\n', "out of order"),
        (b'{"kind": "te', "middle of a line"),
    ],
)
def test_garbage_is_torn_and_what_came_before_is_kept(end: bytes, why: str) -> None:
    report = parse_report(stream(BEGIN, START) + end)
    assert report.torn is not None
    assert why in report.torn
    assert report.started


def test_every_missing_or_doubled_line_is_noticed() -> None:
    lines = stream(*WHOLE).splitlines(keepends=True)
    for number in range(len(lines) - 1):
        for kept in ([*lines[:number], *lines[number + 1 :]], [lines[number], *lines]):
            assert parse_report(b"".join(kept)).torn is not None


def test_long_and_unprintable_text_is_bounded() -> None:
    test = {**A, "id": "i" * 10**6, "message": "m" * 10**6 + "\udcff"}
    surrogate = {**A, "id": "\udcff"}
    report = parse_report(stream(BEGIN, START, test, surrogate))
    assert report.torn is None
    assert len(report.tests[0].node_id) == MAX_ID_CHARS
    assert len(report.tests[0].message or "") == MAX_MESSAGE_CHARS
    assert report.tests[1].node_id == "\\udcff"


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
VALUES = (
    SCALARS
    | st.lists(SCALARS, max_size=3)
    | st.dictionaries(st.text(max_size=3), SCALARS, max_size=3)
)
FIELDS = st.sampled_from(
    ["kind", "id", "ids", "outcome", "duration_s", "message", "modules", "names", "exit", "counts"]
)


@given(st.lists(st.tuples(st.integers(0, 7), FIELDS, VALUES), max_size=4))
def test_reading_never_raises(changes: list[tuple[int, str, Any]]) -> None:
    lines: list[dict[str, Any]] = [dict(line) for line in WHOLE]
    for number, name, value in changes:
        lines[number][name] = value
    parse_report(stream(*lines))


@given(st.binary(max_size=200))
def test_reading_never_raises_for_bytes(garbage: bytes) -> None:
    parse_report(garbage)
    parse_report(stream(BEGIN, START) + garbage)
