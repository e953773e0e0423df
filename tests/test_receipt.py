"""Receipts as values: the digest, the JSON form, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import pytest

from sandbox_engine.receipt import Receipt, parse_receipt, seal
from sandbox_engine.verdict import (
    Category,
    Outcome,
    StepResult,
    TestOutcome,
    TestRecord,
    count_categories,
    count_outcomes,
)

RECEIPT = seal(
    Receipt(
        base="c" * 40,
        base_tree="b" * 40,
        tree="a" * 40,
        strategy="SYNTAX_AND_PYTEST",
        recipe="f" * 64,
        demands={"fixed": ["test_a"], "max_new_skips": 0.0},
        environment={"interpreter": "cpython-311 3.11.7", "isolation": "full"},
        categories={"passed": 2},
        outcomes={},
        engine_version="0.2.0",
    )
)


def test_a_receipt_comes_back_from_its_json() -> None:
    record = json.loads(json.dumps(RECEIPT.to_json(), indent=2))
    assert Receipt.from_json(record) == RECEIPT


def test_the_digest_is_what_anybody_can_compute() -> None:
    record = RECEIPT.to_json()
    digest = record.pop("digest")
    canonical = json.dumps(record, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(canonical.encode()).hexdigest() == digest


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("base", "0" * 40),
        ("base_tree", "0" * 40),
        ("tree", "0" * 40),
        ("strategy", "SYNTAX_ONLY"),
        ("recipe", "0" * 64),
        ("demands", {}),
        ("environment", {**RECEIPT.environment, "isolation": "none"}),
        ("categories", {"passed": 3}),
        ("outcomes", {"passed": 1}),
        ("engine_version", "9"),
        ("digest", "0" * 64),
    ],
)
def test_every_field_that_is_altered_is_seen(name: str, value: Any) -> None:
    record = {**RECEIPT.to_json(), name: value}
    with pytest.raises(ValueError, match="digest"):
        Receipt.from_json(record)
    altered = parse_receipt(record)
    assert not altered.is_sound
    assert seal(altered).is_sound
    assert name == "digest" or seal(altered).digest != RECEIPT.digest


@pytest.mark.parametrize(
    "record",
    [
        None,
        [],
        "receipt",
        {},
        {"schema": 1},
        {**RECEIPT.to_json(), "schema": 2},
        {**RECEIPT.to_json(), "more": 1},
        {**RECEIPT.to_json(), "tree": "HEAD"},
        {**RECEIPT.to_json(), "tree": None},
        {**RECEIPT.to_json(), "strategy": 1},
        {**RECEIPT.to_json(), "environment": {"isolation": {}}},
        {**RECEIPT.to_json(), "categories": []},
    ],
)
def test_what_is_no_receipt_is_refused(record: Any) -> None:
    with pytest.raises(ValueError):
        parse_receipt(record)


def test_tests_are_counted_by_category_and_else_by_outcome() -> None:
    tests = (
        TestRecord("a", TestOutcome.PASSED, category=Category.FIXED),
        TestRecord("b", TestOutcome.PASSED, category=Category.PASSED),
        TestRecord("c", None, category=Category.REMOVED),
        TestRecord("d", TestOutcome.PASSED),
        TestRecord("e", TestOutcome.SKIPPED),
        TestRecord("f", TestOutcome.PASSED),
        TestRecord("g", None),
    )
    steps = (
        StepResult("pytest", Outcome.PASSED, tests=tests[:4]),
        StepResult("new-tests", Outcome.PASSED, tests=tests[4:]),
    )
    assert count_categories(steps) == {"fixed": 1, "passed": 1, "removed": 1}
    assert count_outcomes(steps) == {"passed": 2, "skipped": 1}


def test_an_altered_copy_is_no_longer_sound() -> None:
    assert RECEIPT.is_sound
    assert not dataclasses.replace(RECEIPT, tree="0" * 40).is_sound
