"""Branches to land on, and what has landed on them already."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import GitBox

from sandbox_engine import Engine, PromotionError, StaleBaseError, UsageError, Verdict


@pytest.fixture
def passed(project: GitBox, engine: Engine) -> Verdict:
    patch = project.diff_to(
        {"calc.py": "def add(a, b):\n    return b + a\n", "bin": b"\0\1"}, "--binary"
    )
    return engine.validate(patch, strategy="SYNTAX_ONLY")


def test_a_branch_is_the_one_that_is_named_or_checked_out(project: GitBox, engine: Engine) -> None:
    assert engine.require_branch() == "main"
    head = project.head
    project.git("branch", "old")
    tip = project.commit({"more.txt": "more\n"})
    assert engine.require_branch("old") == "old" and engine.tip("old") == head
    assert engine.require_branch("agent/tidy") == "agent/tidy" and engine.tip("agent/tidy") == tip
    assert engine.parent(tip) == head
    assert project.git("status", "--porcelain") == ""
    assert "sandbox-engine: branch" in project.git("reflog", "agent/tidy")


def test_a_branch_that_cannot_be_is_refused(
    project: GitBox, engine: Engine, tmp_path: Path
) -> None:
    before = project.git("for-each-ref")
    for name in ("-x", "HEAD", "a..b", "main/below", ""):
        with pytest.raises(UsageError):
            engine.require_branch(name)
    project.git("switch", "-q", "--detach")
    with pytest.raises(UsageError, match="no branch is checked out"):
        engine.require_branch()
    with pytest.raises(UsageError):
        engine.tip("gone")
    assert project.git("for-each-ref") == before
    with pytest.raises(UsageError, match="no commit yet"):
        Engine(GitBox(tmp_path / "empty").top).require_branch("new")
    with pytest.raises(PromotionError, match="0 parents"):
        engine.parent(project.head)


def test_what_has_landed_is_found_and_nothing_else_is(
    project: GitBox, engine: Engine, passed: Verdict
) -> None:
    assert engine.find_landed(passed, branch="main") is None
    project.commit({"unrelated.txt": "x\n"})
    assert engine.find_landed(passed, branch="main") is None
    commit = engine.promote(passed, branch="main")
    project.commit({"later.txt": "x\n"})
    assert engine.find_landed(passed, branch="main") == commit
    project.git("branch", "elsewhere", passed.base)
    assert engine.find_landed(passed, branch="elsewhere") is None
    with pytest.raises(StaleBaseError):
        engine.find_landed(passed, branch="gone")


def test_a_like_change_to_another_file_is_no_landing(
    project: GitBox, engine: Engine, passed: Verdict
) -> None:
    project.commit({"copy.py": "def add(a, b):\n    return b + a\n", "bin": b"\0\1"})
    assert engine.find_landed(passed, branch="main") is None
