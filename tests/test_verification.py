"""Receipts looked at later: what holds, what has changed since, and what was never true."""

from __future__ import annotations

import dataclasses
import json
import shutil
import venv
from pathlib import Path
from typing import Any

import pytest
from conftest import GitBox
from test_receipt import GOOD, RECEIPT, receipt_of

from sandbox_engine import Config, Engine, Receipt, Recipe, Step, StepKind, UsageError
from sandbox_engine.receipt import seal
from sandbox_engine.verification import (
    Standing,
    prepare_receipt,
    read_receipt,
    summary,
    verify,
    worst,
    write_receipt,
)

NAMES = {
    *("digest", "base", "base_tree", "tree", "recipe", "engine_version", "verdict"),
    *("interpreter", "distributions", "lock_files", "platform", "isolation", "environment"),
}


@pytest.fixture
def given(project: GitBox, engine: Engine) -> Receipt:
    """A receipt of a patch that passed, of a project with an environment of its own."""
    venv.create(project.top / ".venv", symlinks=True)
    return receipt_of(Engine(project.top).validate(GOOD, strategy="SYNTAX_ONLY"))


def bad(project: GitBox, receipt: Receipt, config: Config | None = None) -> dict[str, Standing]:
    """Return the claims that do not hold."""
    claims = verify(receipt, project.top, config)
    return {claim.name: claim.standing for claim in claims if claim.standing is not Standing.HOLDS}


def test_every_claim_of_a_receipt_holds_until_something_changes(
    project: GitBox, given: Receipt
) -> None:
    before = project.snapshot()
    claims = verify(given, project.top)
    assert project.snapshot() == before
    assert {claim.name for claim in claims} == NAMES
    assert (worst(claims), summary(claims)) == (Standing.HOLDS, "the receipt holds")
    project.commit({"other.txt": "a branch that moves is no matter\n"})
    assert bad(project, given) == {}


def test_what_was_run_and_isolated_holds_too(project: GitBox, engine: Engine) -> None:
    receipt = receipt_of(engine.validate(GOOD))
    assert bad(project, receipt) == {}
    bare = bad(project, receipt, Config(isolation="none"))
    if receipt.environment["isolation"] != "none":
        assert bare == {"isolation": Standing.CHANGED, "environment": Standing.CHANGED}


@pytest.mark.parametrize(
    ("field", "value", "also"),
    [
        ("base_tree", "0" * 40, {"base_tree": Standing.FALSE}),
        ("base", "0" * 40, {"base": Standing.CHANGED}),
        ("tree", "0" * 40, {"tree": Standing.CHANGED}),
        ("recipe", "0" * 64, {"recipe": Standing.CHANGED}),
        ("strategy", "GONE", {"recipe": Standing.CHANGED}),
        ("demands", {"more": 1}, {"recipe": Standing.CHANGED}),
        ("engine_version", "0.0.1", {"engine_version": Standing.CHANGED}),
        ("outcomes", {"passed": 10_000}, {}),
        ("categories", {"fixed": 1}, {}),
    ],
)
def test_an_edit_is_seen_also_when_its_digest_was_made_to_fit(
    project: GitBox, given: Receipt, field: str, value: Any, also: dict[str, Standing]
) -> None:
    edited = dataclasses.replace(given, **{field: value})
    found = bad(project, edited)
    assert (found.pop("digest"), found.pop("verdict")) == (Standing.FALSE, Standing.CHANGED)
    assert found == also
    found = bad(project, seal(edited))
    assert found.pop("verdict") == Standing.CHANGED
    assert found == also


def test_lock_files_that_the_tree_has_not_are_false(project: GitBox, given: Receipt) -> None:
    facts = {**given.environment, "lock_files": "0" * 64}
    forged = seal(dataclasses.replace(given, environment=facts))
    assert bad(project, forged) == {"lock_files": Standing.FALSE, "verdict": Standing.CHANGED}
    claims = verify(forged, project.top)
    assert summary(claims) == "the receipt is false (lock_files): do not believe it"


@pytest.mark.parametrize("change", [{"platform": "Minix"}, {"platform": ""}, {"more": "x"}])
def test_facts_that_are_others_now_are_named(
    project: GitBox, given: Receipt, change: dict[str, str]
) -> None:
    other = seal(dataclasses.replace(given, environment={**given.environment, **change}))
    assert bad(project, other).keys() == {*change, "verdict"}


def test_an_installed_distribution_is_noticed(project: GitBox, given: Receipt) -> None:
    sites = next((project.top / ".venv" / "lib").glob("python*/site-packages"))
    (sites / "thing-1.2.dist-info").mkdir()
    (sites / "thing-1.2.dist-info" / "METADATA").write_text("Name: thing\nVersion: 1.2\n")
    changed = {"distributions": Standing.CHANGED, "environment": Standing.CHANGED}
    assert bad(project, given) == changed
    again = receipt_of(Engine(project.top).validate(GOOD, strategy="SYNTAX_ONLY"))
    assert bad(project, again) == {}
    assert bad(project, given) == changed


def test_another_interpreter_is_noticed_and_one_that_is_gone(
    project: GitBox, given: Receipt, tmp_path: Path
) -> None:
    venv.create(tmp_path / "other", symlinks=True)
    changed = bad(project, given, Config(python=str(tmp_path / "other")))
    assert changed.keys() >= {"interpreter", "environment"}
    assert bad(project, given, Config(python="./gone")) == {"environment": Standing.CHANGED}


def test_a_strategy_that_is_set_otherwise_is_noticed(project: GitBox, engine: Engine) -> None:
    engine.config = Config(strategies={"OWN": Recipe("OWN", (Step(StepKind.SYNTAX),))})
    receipt = receipt_of(engine.validate(GOOD, strategy="OWN"))
    assert bad(project, receipt, engine.config) == {}
    steps = (Step(StepKind.SYNTAX), Step(StepKind.FILES_EXIST))
    other = Config(strategies={"OWN": Recipe("OWN", steps)})
    assert bad(project, receipt, other) == {"recipe": Standing.CHANGED}


def test_what_the_store_has_forgotten_is_told(
    project: GitBox, engine: Engine, given: Receipt
) -> None:
    shutil.rmtree(engine.store.folder)
    assert bad(project, given) == {"tree": Standing.CHANGED, "verdict": Standing.CHANGED}


def test_a_receipt_of_another_repository_is_none_of_this(given: Receipt, tmp_path: Path) -> None:
    other = GitBox(tmp_path / "other")
    other.commit({"a.txt": "a\n"})
    claims = verify(given, other.top)
    assert bad(other, given) == dict.fromkeys(("base", "verdict"), Standing.CHANGED)
    assert summary(claims) == (
        "the receipt no longer holds (base, verdict): validate the patch again"
    )


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, json.dumps({"schema": 1}).encode()]
)
def test_a_file_that_is_no_receipt_is_wrong_usage(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(UsageError, match="is no receipt"):
        read_receipt(tmp_path / "r.json")
    with pytest.raises(UsageError, match="cannot be read"):
        read_receipt(tmp_path / "gone.json")


def test_a_receipt_is_written_whole_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write_receipt(path, RECEIPT)
    assert read_receipt(path) == RECEIPT
    assert [entry.name for entry in tmp_path.glob("r.json*")] == ["r.json"]


def test_an_older_receipt_is_removed_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    prepare_receipt(path)
    for old in (json.dumps({**RECEIPT.to_json(), "schema": 9}), ""):
        path.write_text(old)
        prepare_receipt(path)
        assert not path.exists()
    for work in ("diff --git a/a b/a\n", "{}", "[1]"):
        path.write_text(work)
        with pytest.raises(UsageError, match="is no receipt"):
            prepare_receipt(path)
        assert path.read_text() == work
    (tmp_path / "link").symlink_to("/dev/null")
    for other in (tmp_path, tmp_path / "link"):
        with pytest.raises(UsageError, match="is no receipt"):
            prepare_receipt(other)
    assert (tmp_path / "link").is_symlink()
    for lost in (tmp_path / "gone" / "r.json", path / "r.json"):
        with pytest.raises(UsageError, match="there is no folder"):
            prepare_receipt(lost)
