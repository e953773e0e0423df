"""Several candidates, each judged by itself, side by side and ended early."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import GitBox

from sandbox_engine import Cancellation, DiskFullError, Engine, Outcome, UsageError, Verdict
from sandbox_engine.batch import (
    Candidate,
    Observer,
    Terms,
    branch,
    commits,
    judge,
    judge_all,
    patches_in,
)
from sandbox_engine.progress import Progress, Watch
from sandbox_engine.reports import Judged
from sandbox_engine.verdict import CommitId, TreeId

GOOD = {"calc.py": "def add(a, b):\n    return b + a\n"}
BAD = {"calc.py": "def add(a, b):\n    return a - b\n"}
FOUR = [Candidate(str(number), "HEAD", b"") for number in range(4)]
pytestmark = pytest.mark.usefixtures("no_reruns")


def verdict(outcome: Outcome) -> Verdict:
    return Verdict(outcome, "NONE", CommitId("0" * 40), TreeId("0" * 40))


class Noting(Observer):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, int]] = []
        self.phases: set[str] = set()

    def begun(self, number: int) -> None:
        self.notes.append(("begun", number))

    def progress(self, number: int, progress: Progress) -> None:
        self.phases.add(progress.phase)

    def ended(self, number: int, judged: Judged) -> None:
        self.notes.append(("ended", number))


def test_patches_are_judged_side_by_side_in_the_order_they_were_given(
    project: GitBox, engine: Engine
) -> None:
    patches = [project.diff_to(files) for files in (BAD, GOOD)] + [b"no patch", b"{}"]
    candidates = [Candidate(f"p{n}", "HEAD", patch) for n, patch in enumerate(patches)]
    observer, before = Noting(), project.snapshot()
    done = judge_all(
        candidates,
        lambda one, cancellation, watch: judge(engine, one, Terms(), cancellation, watch),
        observer,
        jobs=2,
    )
    assert [one.outcome for one in done.done] == [
        Outcome.FAILED,
        Outcome.PASSED,
        Outcome.REJECTED,
        Outcome.REJECTED,
    ]
    assert [one.name for one in done.done] == ["p0", "p1", "p2", "p3"]
    assert sorted(observer.notes) == sorted(
        (kind, number) for kind in ("begun", "ended") for number in range(4)
    )
    assert "tests" in observer.phases and done.ended is None
    assert project.snapshot() == before


def test_what_a_patch_changes_comes_with_it(project: GitBox, engine: Engine) -> None:
    terms = Terms(strategy="SYNTAX_ONLY", diff=True)
    patch = project.diff_to(GOOD)
    told = judge(engine, Candidate("p", "HEAD", patch), terms).diff
    assert told is not None and b"+    return b + a" in told
    broken = project.diff_to({"calc.py": "def add(:\n"})
    judged = judge(engine, Candidate("p", "HEAD", broken), terms)
    assert judged.outcome is Outcome.REJECTED and judged.diff and b"+def add(:" in judged.diff
    assert judge(engine, Candidate("p", "HEAD", b"none"), terms).diff is None
    commit = CommitId(project.commit(GOOD))
    told = judge(engine, Candidate("c", None, commit=commit), terms).diff
    assert told is not None and b"+    return b + a" in told


def test_a_broken_world_is_told_and_a_wrong_question_ends_all() -> None:
    def work(one: Candidate, cancellation: Cancellation, watch: Watch) -> Judged:
        if one.name == "1":
            raise DiskFullError("no space is left", remedy="free some")
        return Judged(one.name, verdict(Outcome.PASSED))

    done = judge_all(FOUR, work, Observer())
    assert [one.outcome for one in done.done].count(Outcome.PASSED) == 3
    assert (done.done[1].trouble, done.done[1].hint) == ("no space is left", "free some")

    def wrong(one: Candidate, cancellation: Cancellation, watch: Watch) -> Judged:
        raise UsageError("no such base", remedy="name another")

    observer = Noting()
    with pytest.raises(UsageError, match="no such base"):
        judge_all(FOUR, wrong, observer)
    assert len(observer.notes) < 4


def test_the_first_that_does_not_pass_ends_the_others_where_that_is_wanted() -> None:
    done = judge_all(FOUR, waiting_but_for(0, Outcome.FAILED), Observer(), jobs=2, fail_fast=True)
    assert [one and one.name for one in done.judged] == ["0", None, None, None]
    assert done.ended is None


def test_an_interrupt_keeps_what_is_done() -> None:
    class Interrupting(Observer):
        def ended(self, number: int, judged: Judged) -> None:
            raise KeyboardInterrupt

    started = time.monotonic()
    done = judge_all(FOUR, waiting_but_for(0, Outcome.PASSED), Interrupting(), jobs=2)
    assert isinstance(done.ended, KeyboardInterrupt)
    assert [one and one.name for one in done.judged] == ["0", None, None, None]
    assert time.monotonic() - started < 10


def waiting_but_for(
    number: int, outcome: Outcome
) -> Callable[[Candidate, Cancellation, Watch], Judged]:
    """Return what judges one candidate at once, and the others when they are cancelled."""
    others = threading.Event()

    def work(one: Candidate, cancellation: Cancellation, watch: Watch) -> Judged:
        if one.name == str(number):
            others.wait(5)
            return Judged(one.name, verdict(outcome))
        others.set()
        while True:
            cancellation.check()
            time.sleep(0.01)

    return work


def test_a_folder_of_patches_is_not_a_folder_to_lay_over_the_tree(tmp_path: Path) -> None:
    folder = tmp_path / "patches"
    folder.mkdir()
    for name in ("2.diff", "1.patch", ".hidden"):
        (folder / name).write_text("x")
    found = patches_in(str(folder), "HEAD")
    assert [one.patch for one in found] == [folder / "1.patch", folder / "2.diff"]
    assert [one.patch for one in patches_in(str(folder), "HEAD", format="files")] == [folder]
    (folder / "code.py").write_text("x = 1\n")
    assert [one.patch for one in patches_in(str(folder), "HEAD")] == [folder]
    (folder / "empty").mkdir()
    assert [one.name for one in patches_in(str(folder / "empty"), "HEAD")] == [
        str(folder / "empty")
    ]
    with pytest.raises(UsageError, match="cannot be read"):
        patches_in(str(folder / "gone"), "HEAD")


def test_a_branch_and_a_range_are_found(project: GitBox, engine: Engine) -> None:
    base = project.head
    project.git("switch", "-qc", "topic")
    bad, good = CommitId(project.commit(BAD, "Worse")), CommitId(project.commit(GOOD, "Better"))
    assert branch(engine, "topic", "main") == [Candidate("topic", base, commit=good)]
    assert commits(engine, "main..topic") == [
        Candidate(f"{bad[:12]} Worse", None, commit=bad),
        Candidate(f"{good[:12]} Better", None, commit=good),
    ]
