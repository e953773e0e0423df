"""Receipts as values, and as an engine gives them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import sys
from typing import Any

import pytest
from conftest import GitBox

from sandbox_engine import Config, Engine, Recipe, Step, StepKind, Verdict
from sandbox_engine.cache import Cache, Key
from sandbox_engine.errors import UsageError
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


def edit(content: str, path: str = "calc.py") -> str:
    return json.dumps([{"file_path": path, "operation": "REPLACE", "content": content}])


GOOD = edit("def add(a, b):\n    return b + a\n")
BREAKING = edit("def add(a, b):\n    return a - b\n")


def receipt_of(verdict: Verdict) -> Receipt:
    assert verdict.receipt is not None, verdict
    return verdict.receipt


def test_what_passed_has_a_receipt_that_says_what_and_how(project: GitBox, engine: Engine) -> None:
    verdict = engine.validate(GOOD)
    receipt = receipt_of(verdict)
    assert receipt.is_sound
    assert (receipt.base, receipt.base_tree, receipt.tree) == (
        project.head,
        project.git("rev-parse", "HEAD^{tree}"),
        verdict.tree,
    )
    recipe = engine.config.recipe()
    assert (receipt.strategy, receipt.recipe) == (recipe.name, recipe.fingerprint())
    assert engine.config.recipe_of(receipt) == recipe
    counted = {**receipt.categories, **receipt.outcomes}
    assert counted == {"passed": 2}
    assert receipt.environment["isolation"] == verdict.isolation
    assert receipt.environment["environment"] == verdict.environment
    assert receipt.environment["interpreter"].endswith(f" {sys.executable}")
    assert platform.release() in receipt.environment["platform"]
    assert receipt.engine_version == verdict.engine_version


@pytest.mark.parametrize("patch", [BREAKING, edit("def add(a"), edit("x = 1\n", "../x.py"), "?"])
def test_what_did_not_pass_has_none(engine: Engine, patch: str) -> None:
    assert engine.validate(patch).receipt is None


def test_a_known_verdict_comes_back_with_its_receipt(project: GitBox, engine: Engine) -> None:
    first = engine.validate(GOOD)
    again = Engine(project.top).validate(GOOD)
    assert again.is_cached
    assert again.receipt == first.receipt
    assert engine.cache.find_receipt(receipt_of(first).digest) is not None


@pytest.mark.parametrize("strategy", ["SYNTAX_ONLY", "SYNTAX_AND_PYTEST"])
def test_another_base_of_the_same_tree_has_another_receipt(
    project: GitBox, engine: Engine, strategy: str
) -> None:
    first = receipt_of(engine.validate(GOOD, strategy=strategy))
    project.commit({}, "nothing new")
    second = receipt_of(engine.validate(GOOD, strategy=strategy))
    assert (first.tree, first.base_tree) == (second.tree, second.base_tree)
    assert (second.base, second.digest != first.digest) == (project.head, True)


def test_a_passed_verdict_that_was_kept_without_a_receipt_is_not_believed(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = Cache.keep

    def keep_bare(cache: Cache, key: Key, verdict: Verdict) -> None:
        keep(cache, key, dataclasses.replace(verdict, receipt=None))

    with monkeypatch.context() as patch:
        patch.setattr(Cache, "keep", keep_bare)
        engine.validate(GOOD, strategy="SYNTAX_ONLY")
    verdict = engine.validate(GOOD, strategy="SYNTAX_ONLY")
    assert (verdict.is_cached, receipt_of(verdict).is_sound) == (False, True)
    assert engine.validate(GOOD, strategy="SYNTAX_ONLY").is_cached


def test_lock_files_of_the_candidate_count(project: GitBox, engine: Engine) -> None:
    project.commit({"requirements.txt": "a==1\n", "docs/uv.lock": "x\n"})

    def digest(path: str) -> str:
        patch = edit("b==2\n", path)
        receipt = receipt_of(engine.validate(patch, strategy="SYNTAX_ONLY"))
        return receipt.environment["lock_files"]

    unchanged = digest("readme.txt")
    assert digest("docs/uv.lock") == unchanged
    names = ["requirements.txt", "requirements-dev.txt", "uv.lock", "poetry.lock", "pdm.lock"]
    assert len({unchanged, *map(digest, [*names, "Pipfile.lock"])}) == 7


def test_the_receipt_is_of_the_demands_that_were_made(engine: Engine) -> None:
    recipe = engine.config.recipe("TEST_FIX_STRATEGY")
    receipt = receipt_of(engine.validate(GOOD, strategy="TEST_FIX_STRATEGY"))
    assert receipt.demands["allow_test_changes"] is True
    assert engine.config.recipe_of(receipt).demands == recipe.demands
    for demands in ({}, {**receipt.demands, "more": 1}, {**receipt.demands, "keep": 1}):
        strange = seal(dataclasses.replace(receipt, demands=demands))
        with pytest.raises(UsageError, match="does not know"):
            engine.config.recipe_of(strange)


def test_the_newest_words_are_kept_with_a_known_verdict(engine: Engine) -> None:
    record = {"analysis": "one", "patches_to_apply": json.loads(GOOD)}
    digest = receipt_of(engine.validate(json.dumps(record), strategy="SYNTAX_ONLY")).digest
    record["analysis"] = "two"
    assert engine.validate(json.dumps(record), strategy="SYNTAX_ONLY").is_cached
    known = engine.cache.find_receipt(digest)
    assert known is not None
    assert (known.summary, known.is_cached) == ("two", False)


def test_what_is_set_otherwise_is_another_environment(project: GitBox, engine: Engine) -> None:
    step = Step(StepKind.COMMAND, ("true",))
    recipe = Recipe("OWN", (step,))
    digests = set()
    for isolation in ("none", "auto"):
        config = Config(strategy="OWN", strategies={"OWN": recipe}, isolation=isolation)
        verdict = Engine(project.top, config=config).validate(GOOD)
        assert receipt_of(verdict).environment["isolation"] == verdict.isolation
        digests.add(verdict.environment)
        assert verdict.isolation == "none" or len(digests) == 2
