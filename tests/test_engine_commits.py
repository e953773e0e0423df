"""Commits that are made already, judged as they are, and what is told while they are."""

from __future__ import annotations

import os

import pytest
from conftest import GitBox

from sandbox_engine import Engine, Outcome, Progress, UsageError

GOOD = {"calc.py": "def add(a, b):\n    return b + a\n"}
BAD = {"calc.py": "def add(a, b):\n    return a - b\n"}


def test_each_commit_of_a_range_is_judged_on_its_parent(project: GitBox, engine: Engine) -> None:
    base = project.head
    ids = [project.commit(BAD), project.commit(GOOD)]
    assert engine.commits(f"{base}..") == dict.fromkeys(ids, "change")
    verdicts = [engine.validate_commit(commit) for commit in ids]
    assert [verdict.outcome for verdict in verdicts] == [Outcome.FAILED, Outcome.PASSED]
    assert [verdict.base for verdict in verdicts] == [base, ids[0]]
    assert verdicts[1].tree == project.git("rev-parse", f"{ids[1]}^{{tree}}").strip()
    author = verdicts[1].author
    assert author is not None and author.date.startswith("20")
    with pytest.raises(UsageError, match="no commit is in"):
        engine.commits(f"..{base}")
    for word in ("nothing..", "--all", "-h"):
        with pytest.raises(UsageError, match="no range"):
            engine.commits(word)


def test_a_branch_is_judged_beside_where_it_left(project: GitBox, engine: Engine) -> None:
    base = project.head
    project.git("switch", "-qc", "topic")
    project.commit(BAD)
    tip = project.commit(GOOD)
    project.git("switch", "-q", "main")
    project.commit({"other.py": "x = 1\n"})
    assert engine.merge_base("main", "topic") == base
    verdict = engine.validate_commit("topic", base=base)
    assert verdict.outcome is Outcome.PASSED
    assert (verdict.base, verdict.changed_paths) == (base, ("calc.py",))
    assert engine.promote(verdict, branch="main")
    assert "b + a" in project.git("show", "main:calc.py")
    assert project.git("rev-parse", "topic").strip() == tip


def test_a_first_commit_and_what_no_patch_may_change(box: GitBox) -> None:
    (box.top / "test_it.py").write_text("def test_it():\n    assert True\n")
    os.symlink("test_it.py", box.top / "link.py")
    first = box.commit({"a.txt": "a\n"})
    verdict = Engine(box.top).validate_commit(first, allow_test_changes=True)
    assert verdict.outcome is Outcome.PASSED
    assert set(verdict.changed_paths) == {"a.txt", "link.py", "test_it.py"}
    stranger = box.git("commit-tree", "-m", "x", f"{first}^{{tree}}").strip()
    with pytest.raises(UsageError, match="no commit in common"):
        Engine(box.top).merge_base(first, stranger)


def test_what_is_being_done_is_told(project: GitBox, engine: Engine) -> None:
    seen: list[Progress] = []
    engine.validate(project.diff_to(BAD), watch=seen.append)
    phases = [one.phase for one in seen]
    assert phases[0] == "the patch"
    assert {"a sandbox", "tests", "tests without the patch", "tests again"} <= set(phases)
    assert max(one.tests for one in seen if one.phase == "tests") > 0
