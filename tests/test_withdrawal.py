"""A promoted commit is taken off again: exactly that commit, and nothing of the user's."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import GitBox

from sandbox_engine import (
    Engine,
    LocalChangesError,
    PromotionError,
    StaleBaseError,
    UsageError,
    promotion,
)
from sandbox_engine.verdict import CommitId


@pytest.fixture
def landed(project: GitBox, engine: Engine) -> CommitId:
    """A promoted commit that changes `calc.py`, adds a file and removes `old.txt`."""
    project.commit({"old.txt": "old\n", "mine.txt": "mine\n"})
    files = {"calc.py": "def add(a, b):\n    return b + a\n", "new/file.py": "x = 1\n"}
    patch = project.diff_to({**files, "old.txt": None})
    verdict = engine.validate(patch, strategy="SYNTAX_ONLY")
    return engine.promote(verdict, branch="main")


def test_branch_and_files_are_as_before_and_the_users_edits_stay(
    project: GitBox, engine: Engine, landed: CommitId
) -> None:
    parent = project.git("rev-parse", f"{landed}^")
    project.write({"mine.txt": "edited\n", "untracked.txt": "new\n"})
    assert engine.withdraw(landed, branch="main") == parent == project.head
    assert project.git("status", "--porcelain") == " M mine.txt\n?? untracked.txt"
    assert project.files("HEAD")["old.txt"] == (project.top / "old.txt").read_bytes()
    assert not (project.top / "new").exists()


def test_a_branch_that_is_not_checked_out_moves_alone(
    project: GitBox, engine: Engine, landed: CommitId
) -> None:
    parent = project.git("rev-parse", f"{landed}^")
    project.git("switch", "-q", "-c", "other")
    before = project.files()
    assert engine.withdraw(landed[:12], branch="main") == parent
    assert project.git("rev-parse", "main", "other").split() == [parent, landed]
    assert project.files() == before


def test_a_branch_that_moved_on_is_left(project: GitBox, engine: Engine, landed: CommitId) -> None:
    tip = project.commit({"more.txt": "more\n"})
    before = project.snapshot()
    with pytest.raises(StaleBaseError, match="cannot be taken off"):
        engine.withdraw(landed, branch="main")
    assert project.head == tip and project.snapshot() == before


@pytest.mark.parametrize("name", ["calc.py", "new/file.py", "old.txt"])
def test_an_edit_that_would_be_lost_is_refused(
    project: GitBox, engine: Engine, landed: CommitId, name: str
) -> None:
    project.write({name: "an edit of the user's\n"})
    before = project.snapshot()
    with pytest.raises(LocalChangesError):
        engine.withdraw(landed, branch="main")
    after = project.snapshot()
    assert project.head == landed
    assert {path: after[path] for path in before if ".git" not in path} == {
        path: state for path, state in before.items() if ".git" not in path
    }


def test_a_commit_that_no_promotion_made_is_refused(project: GitBox, engine: Engine) -> None:
    root = project.head
    with pytest.raises(PromotionError, match="0 parents"):
        engine.withdraw(root, branch="main")
    project.git("switch", "-q", "-c", "side")
    project.commit({"side.txt": "side\n"})
    project.git("switch", "-q", "main")
    project.commit({"main.txt": "main\n"})
    project.git("merge", "-q", "--no-edit", "side")
    with pytest.raises(PromotionError, match="2 parents"):
        engine.withdraw(project.head, branch="main")
    with pytest.raises(UsageError):
        engine.withdraw("gone", branch="main")


def test_what_a_kill_left_is_completed_or_undone(
    project: GitBox, engine: Engine, landed: CommitId, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files are written and then the process dies: the next engine puts them back."""
    files = {path: (project.top / path) for path in ("calc.py", "old.txt", "new/file.py")}
    before = {name: path.read_bytes() for name, path in files.items() if path.exists()}
    monkeypatch.setattr(promotion, "_recover", lambda kept, held: None)
    write = promotion._write_files

    def die(*arguments: object) -> None:
        write(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(promotion, "_write_files", die)
    with pytest.raises(KeyboardInterrupt):
        engine.withdraw(landed, branch="main")
    assert (project.top / "old.txt").exists()
    monkeypatch.undo()
    Engine(project.top, cache_home=Path(engine.store.folder).parent)
    assert project.head == landed
    assert {name: path.read_bytes() for name, path in files.items() if path.exists()} == before
    assert project.git("status", "--porcelain") == ""
