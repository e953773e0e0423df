from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import GitBox

from sandbox_engine import Config, Engine, Outcome, Recipe, Step, StepKind, Verdict, promotion
from sandbox_engine.errors import (
    BranchMovedError,
    LocalChangesError,
    NoteError,
    PromotionError,
    SandboxError,
    StaleBaseError,
    UsageError,
)
from sandbox_engine.receipt import Receipt, seal
from sandbox_engine.slot_sandbox import SlotSandbox
from sandbox_engine.verdict import TreeId

pytestmark = pytest.mark.usefixtures("no_reruns")

GOOD = {"calc.py": "def add(a, b):\n    return b + a\n", "new/file.py": "x = 1\n"}


@pytest.fixture
def passed(project: GitBox, engine: Engine) -> Verdict:
    """A verdict on a patch that changes `calc.py`, adds a file and deletes `tests/old.txt`."""
    project.commit({"tests/old.txt": "old\n", "other.txt": "other\n"})
    text = project.diff_to({**GOOD, "tests/old.txt": None})
    verdict = engine.validate(text, strategy="SYNTAX_ONLY")
    assert verdict.outcome is Outcome.PASSED
    return verdict


def tree_of(project: GitBox, revision: str) -> str:
    return project.git("rev-parse", f"{revision}^{{tree}}")


def status(project: GitBox) -> str:
    return project.git("status", "--porcelain", "--ignored")


def test_exactly_the_judged_tree_lands(project: GitBox, engine: Engine, passed: Verdict) -> None:
    commit = engine.promote(passed, branch="main", message="Swap the operands")
    assert project.head == commit
    assert tree_of(project, "HEAD") == passed.tree
    assert project.git("log", "-1", "--format=%an %ae %s %P") == (
        f"Ada ada@example.org Swap the operands {passed.base}"
    )
    assert status(project) == ""
    assert not (project.top / "tests" / "old.txt").exists()
    assert project.git("fsck", "--strict", "--no-dangling") == ""


def test_other_edits_of_the_user_stay(project: GitBox, engine: Engine, passed: Verdict) -> None:
    project.write({"other.txt": "edited\n", "staged.txt": "staged\n", "loose.txt": "untracked\n"})
    project.git("add", "staged.txt")
    before = status(project)
    engine.promote(passed, branch="main")
    assert status(project) == before
    assert (project.top / "other.txt").read_text() == "edited\n"


@pytest.mark.parametrize(
    "edit",
    [
        {"calc.py": "mine = 1\n"},
        {"new/file.py": "mine = 1\n"},
        {"new": "a file where a folder is needed\n"},
        {"tests/old.txt": "mine\n"},
    ],
    ids=lambda edit: next(iter(edit)),
)
@pytest.mark.parametrize("kind", ["unstaged", "staged", "ignored"])
def test_an_edit_that_would_be_lost_is_refused(
    project: GitBox, engine: Engine, passed: Verdict, edit: dict[str, str], kind: str
) -> None:
    project.write(edit)
    if kind == "staged":
        project.git("add", *edit)
    if kind == "ignored":
        (project.top / ".git" / "info").mkdir(exist_ok=True)
        (project.top / ".git" / "info" / "exclude").write_text("new\ncalc.py\n")
    before = project.snapshot()
    before.pop(".git/index")
    with pytest.raises(LocalChangesError, match="edits"):
        engine.promote(passed, branch="main")
    after = project.snapshot()
    after.pop(".git/index")
    assert after == before


@pytest.mark.parametrize("flag", ["--assume-unchanged", "--skip-worktree"])
def test_an_edit_that_git_does_not_see_is_refused(
    project: GitBox, engine: Engine, passed: Verdict, flag: str
) -> None:
    project.git("update-index", flag, "calc.py")
    project.write({"calc.py": "mine = 1\n"})
    with pytest.raises(LocalChangesError, match=r"calc\.py"):
        engine.promote(passed, branch="main")
    assert (project.top / "calc.py").read_text() == "mine = 1\n"


def test_a_lock_of_another_git_is_left_and_named(
    project: GitBox, engine: Engine, passed: Verdict
) -> None:
    (project.top / ".git" / "index.lock").touch()
    with pytest.raises(SandboxError, match=r"index\.lock"):
        engine.promote(passed, branch="main")
    assert (project.top / ".git" / "index.lock").exists()
    assert project.head == passed.base


def moving(project: GitBox, counter: Path, times: int) -> None:
    """Install a hook that moves `main` while the first `times` promotions are under way."""
    move = "git update-ref refs/heads/main $(git commit-tree -p main -m meanwhile 'main^{tree}')"
    script = f"echo x >> {counter}; [ $(wc -l < {counter}) -gt {times} ] || {move}"
    install_hook(project, "pre-commit", script)


def test_a_tree_lands_on_no_other_commit_than_its_base(
    project: GitBox, engine: Engine, passed: Verdict
) -> None:
    head = project.commit({"more.txt": "moved\n"})
    making = promotion.Making("Swap", lambda: engine._lease(passed))
    with pytest.raises(BranchMovedError, match="moved away from"):
        promotion.promote(engine.store, passed, "main", making)
    assert project.head == head
    assert status(project) == ""


def test_a_branch_that_moves_during_a_promotion_is_looked_at_again(
    project: GitBox, engine: Engine, passed: Verdict, tmp_path: Path
) -> None:
    moving(project, tmp_path / "count", 1)
    commit = engine.promote(passed, branch="main", message="Swap")
    assert project.git("log", "--format=%s") == "Swap\nmeanwhile\nchange\nchange"
    assert (project.head, tree_of(project, "HEAD")) == (commit, passed.tree)
    assert status(project) == ""


def test_a_branch_that_never_rests_is_refused(
    project: GitBox, engine: Engine, passed: Verdict, tmp_path: Path
) -> None:
    moving(project, tmp_path / "count", 100)
    with pytest.raises(StaleBaseError, match="moved meanwhile"):
        engine.promote(passed, branch="main")
    assert (tmp_path / "count").read_text() == "x\n" * 3
    assert project.git("log", "--format=%s", f"{passed.base}..") == "meanwhile\n" * 2 + "meanwhile"
    assert (tree_of(project, "HEAD"), status(project)) == (passed.base_tree, "")


def test_a_branch_that_is_not_checked_out_moves_alone(
    project: GitBox, engine: Engine, passed: Verdict
) -> None:
    project.git("branch", "side")
    before = status(project), project.head
    commit = engine.promote(passed, branch="side")
    assert (status(project), project.head) == before
    assert project.git("rev-parse", "side") == commit


def test_a_branch_in_a_linked_worktree_moves_with_its_files(
    project: GitBox, engine: Engine, passed: Verdict, tmp_path: Path
) -> None:
    project.git("worktree", "add", "-q", "-b", "side", str(tmp_path / "linked"))
    engine.promote(passed, branch="side")
    assert (tmp_path / "linked" / "calc.py").read_text() == GOOD["calc.py"]
    assert (project.top / "calc.py").read_text() != GOOD["calc.py"]


@pytest.mark.parametrize("branch", ["gone", "-x", "a..b", "HEAD"])
def test_a_branch_that_does_not_exist_is_refused(
    engine: Engine, passed: Verdict, branch: str
) -> None:
    with pytest.raises((StaleBaseError, UsageError)):
        engine.promote(passed, branch=branch)


@pytest.mark.parametrize("outcome", [o for o in Outcome if o is not Outcome.PASSED])
def test_only_what_passed_is_promoted(engine: Engine, passed: Verdict, outcome: Outcome) -> None:
    with pytest.raises(PromotionError, match="only what PASSED"):
        engine.promote(dataclasses.replace(passed, outcome=outcome), branch="main")


def test_a_merge_under_way_is_refused(project: GitBox, engine: Engine, passed: Verdict) -> None:
    (project.top / ".git" / "MERGE_HEAD").write_text(project.head + "\n")
    with pytest.raises(PromotionError, match="a merge of `main` is under way"):
        engine.promote(passed, branch="main")


def install_hook(project: GitBox, name: str, script: str) -> None:
    hook = project.top / ".git" / "hooks" / name
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\n{script}\n")
    hook.chmod(0o755)


def test_hooks_see_the_commit_and_may_refuse_it(
    project: GitBox, engine: Engine, passed: Verdict, tmp_path: Path
) -> None:
    install_hook(project, "pre-commit", f"git diff --cached --name-only HEAD > {tmp_path}/seen")
    install_hook(project, "commit-msg", 'echo "Reviewed: yes" >> "$1"')
    install_hook(project, "post-commit", f"git rev-parse HEAD > {tmp_path}/post")
    commit = engine.promote(passed, branch="main", message="Swap")
    assert (tmp_path / "seen").read_text().split() == ["calc.py", "new/file.py", "tests/old.txt"]
    assert "Reviewed: yes" in project.git("log", "-1", "--format=%B")
    assert (tmp_path / "post").read_text().strip() == commit


@pytest.mark.parametrize("name", ["pre-commit", "commit-msg", "prepare-commit-msg"])
def test_a_hook_that_refuses_leaves_everything(
    project: GitBox, engine: Engine, passed: Verdict, name: str
) -> None:
    install_hook(project, name, "echo no good >&2; exit 1")
    before = project.head, status(project)
    with pytest.raises(PromotionError, match="no good"):
        engine.promote(passed, branch="main")
    assert (project.head, status(project)) == before
    assert engine.promote(passed, branch="main", hooks=False) == project.head


def test_a_hook_that_edits_the_commit_is_refused(
    project: GitBox, engine: Engine, passed: Verdict
) -> None:
    install_hook(project, "pre-commit", "echo x > z; git add z")
    with pytest.raises(PromotionError, match="not what was judged"):
        engine.promote(passed, branch="main")
    assert project.head == passed.base


def test_a_lock_that_was_given_back_is_handed_to_no_hook(
    project: GitBox, engine: Engine, passed: Verdict, tmp_path: Path
) -> None:
    install_hook(project, "pre-commit", "true")
    install_hook(project, "post-commit", f"ls -l /proc/$$/fd > {tmp_path}/seen")
    # The number of the lock is among the low ones that the process's next pipes do not get.
    with contextlib.ExitStack() as low:
        for _ in range(40):
            low.enter_context(open(os.devnull))

        @contextlib.contextmanager
        def sandbox() -> Iterator[SlotSandbox]:
            low.close()
            with engine._lease(passed) as leased:
                yield leased

        promotion.promote(engine.store, passed, "main", promotion.Making("Swap", sandbox))
    assert "promotion.lock" not in (tmp_path / "seen").read_text()


def test_hooks_see_the_judged_files_and_the_users_stay(
    project: GitBox, engine: Engine, passed: Verdict, tmp_path: Path
) -> None:
    """What pre-commit does when it finds edits that are not staged: it puts them aside."""
    install_hook(
        project,
        "pre-commit",
        f"git diff --exit-code && cat calc.py > {tmp_path}/seen && git checkout -q -- .",
    )
    project.write({"other.txt": "mine\n"})
    engine.promote(passed, branch="main")
    assert (tmp_path / "seen").read_text() == GOOD["calc.py"]
    assert (project.top / "other.txt").read_text() == "mine\n"


def test_a_hook_without_a_first_line_is_run_by_the_shell(
    project: GitBox, engine: Engine, passed: Verdict
) -> None:
    install_hook(project, "pre-commit", "")
    (project.top / ".git" / "hooks" / "pre-commit").write_text("echo bare >&2; exit 1\n")
    with pytest.raises(PromotionError, match="bare"):
        engine.promote(passed, branch="main")
    install_hook(project, "post-commit", "")
    (project.top / ".git" / "hooks" / "post-commit").write_text("#!/no/such/program\n")
    (project.top / ".git" / "hooks" / "pre-commit").unlink()
    assert engine.promote(passed, branch="main") == project.head


@pytest.mark.parametrize(
    ("path", "content"),
    [("new/file.py", "x"), ("new/file.py", ""), ("calc.py", ""), ("calc.py", "mine = 1\n")],
)
@pytest.mark.parametrize("is_ignored", [False, True])
def test_an_edit_made_while_hooks_run_is_not_lost(
    project: GitBox,
    engine: Engine,
    passed: Verdict,
    path: str,
    content: str,
    is_ignored: bool,
) -> None:
    (project.top / ".git" / "info").mkdir(exist_ok=True)
    (project.top / ".git" / "info" / "exclude").write_text("new\n" if is_ignored else "")
    target = project.top / path
    script = f"mkdir -p {target.parent}; printf '%s' '{content}' > {target}"
    install_hook(project, "pre-commit", script)
    with pytest.raises(LocalChangesError):
        engine.promote(passed, branch="main")
    assert target.read_text() == content
    assert project.head == passed.base


def test_a_removed_file_is_not_brought_back(
    project: GitBox, engine: Engine, passed: Verdict
) -> None:
    project.write({"calc.py": None})
    with pytest.raises(LocalChangesError, match=r"`calc\.py` was removed"):
        engine.promote(passed, branch="main")


def promoted_in(folder: Path, hook: str) -> None:
    """Promote a patch that would be a hook, were the git folder taken for a work tree."""
    text = {"file_path": hook, "operation": "REPLACE", "content": "#!/bin/sh\n"}
    engine = Engine(folder)
    verdict = engine.validate(json.dumps([text]), strategy="SYNTAX_ONLY")
    engine.promote(verdict, branch="main")
    assert (folder / hook).exists()


def test_a_submodule_is_promoted_in_its_own_files(project: GitBox, tmp_path: Path) -> None:
    outer = GitBox(tmp_path / "outer")
    outer.commit({"a.txt": "a\n"})
    outer.git(
        "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(project.top), "inner"
    )
    outer.git("-C", "inner", "config", "user.name", "Ada")
    outer.git("-C", "inner", "config", "user.email", "ada@example.org")
    promoted_in(outer.top / "inner", "hooks/post-checkout")
    assert outer.git("-C", "inner", "status", "--porcelain") == ""
    assert not (outer.top / ".git/modules/inner/hooks/post-checkout").exists()


def test_a_git_folder_apart_is_never_written_into(project: GitBox, tmp_path: Path) -> None:
    project.git("init", "-q", "--separate-git-dir", str(tmp_path / "apart.git"))
    promoted_in(project.top, "hooks/post-checkout")
    assert status(project) == ""
    assert not (tmp_path / "apart.git" / "hooks" / "post-checkout").exists()
    project.git("worktree", "add", "-q", "-b", "side", str(tmp_path / "linked"))
    engine = Engine(tmp_path / "linked")
    edit = json.dumps([{"file_path": "a", "operation": "INSERT", "content": "a"}])
    verdict = engine.validate(edit, strategy="SYNTAX_ONLY")
    with pytest.raises(PromotionError, match="git does not say where"):
        engine.promote(verdict, branch="main")


def test_a_renamed_branch_that_is_a_link_moves_with_its_files(
    project: GitBox, engine: Engine, passed: Verdict
) -> None:
    project.git("branch", "-m", "main", "trunk")
    project.git("symbolic-ref", "refs/heads/main", "refs/heads/trunk")
    commit = engine.promote(passed, branch="main")
    assert project.git("rev-parse", "trunk") == commit
    assert status(project) == ""


def test_a_branch_that_is_being_rebased_is_refused(
    project: GitBox, engine: Engine, passed: Verdict
) -> None:
    project.git("checkout", "-q", "--detach")
    (project.top / ".git" / "rebase-merge").mkdir()
    (project.top / ".git" / "rebase-merge" / "head-name").write_text("refs/heads/main\n")
    with pytest.raises(PromotionError, match="a rebase of `main` is under way"):
        engine.promote(passed, branch="main")


def test_a_branch_in_two_work_trees_is_refused(
    project: GitBox, engine: Engine, passed: Verdict, tmp_path: Path
) -> None:
    project.git("worktree", "add", "-q", "-f", str(tmp_path / "linked"), "main")
    with pytest.raises(PromotionError, match="checked out in"):
        engine.promote(passed, branch="main")


def test_a_tree_that_never_passed_is_refused(
    project: GitBox, engine: Engine, passed: Verdict
) -> None:
    tree = TreeId(project.git("rev-parse", "HEAD^{tree}"))
    forged = dataclasses.replace(passed, tree=tree, receipt=resealed(passed, tree=tree))
    with pytest.raises(PromotionError, match="not among those that passed"):
        engine.promote(forged, branch="main")


def resealed(verdict: Verdict, **fields: str) -> Receipt:
    assert verdict.receipt is not None
    return seal(dataclasses.replace(verdict.receipt, **fields))  # type: ignore[arg-type]


def test_a_verdict_is_promoted_with_its_own_receipt_alone(
    project: GitBox, engine: Engine, passed: Verdict
) -> None:
    other = engine.validate(project.diff_to({"calc.py": "x = 1\n"}), strategy="SYNTAX_ONLY")
    assert passed.receipt is not None
    altered = dataclasses.replace(passed.receipt, categories={"passed": 9})
    for receipt, complaint in (
        (None, "has no receipt"),
        (altered, "was altered"),
        (other.receipt, "the receipt is of the tree"),
        (resealed(passed, base="0" * 40), "the receipt is of the tree"),
        (resealed(passed, base_tree="0" * 40), "the receipt is of the tree"),
    ):
        with pytest.raises(PromotionError, match=complaint):
            engine.promote(dataclasses.replace(passed, receipt=receipt), branch="main")
    assert project.head == passed.base


def noted(project: GitBox, commit: str) -> Receipt:
    text = project.git("notes", "--ref=refs/notes/sandbox-engine", "show", commit)
    return Receipt.from_json(json.loads(text))


def test_the_receipt_is_noted_on_the_commit_when_asked_for(
    project: GitBox, engine: Engine, passed: Verdict
) -> None:
    commit = engine.promote(passed, branch="main", note=True)
    assert noted(project, commit) == passed.receipt
    # The note leans on nothing that the user's database has not.
    engine.cache.close()
    shutil.rmtree(engine.store.folder)
    assert project.git("fsck", "--strict", "--no-dangling") == ""
    assert noted(project, commit) == passed.receipt


def test_without_a_word_no_note_is_written(
    project: GitBox, engine: Engine, passed: Verdict
) -> None:
    engine.promote(passed, branch="main")
    assert project.git("for-each-ref", "refs/notes") == ""


def test_a_note_that_cannot_be_written_does_not_hide_the_commit(
    project: GitBox, engine: Engine, passed: Verdict
) -> None:
    project.git("update-ref", "refs/notes", "HEAD")
    with pytest.raises(NoteError, match="landed on `main`, but the note") as caught:
        engine.promote(passed, branch="main", note=True)
    assert caught.value.commit == project.head
    assert tree_of(project, "HEAD") == passed.tree
    assert status(project) == ""


@pytest.fixture
def tested(project: GitBox, engine: Engine, tmp_path: Path) -> Engine:
    """An engine whose strategy writes a line outside of the sandbox for each of its runs."""
    (tmp_path / "out").mkdir()
    steps = (
        Step(StepKind.COMMAND, ("sh", "-c", f"echo ran >> {tmp_path}/out/runs")),
        Step(StepKind.PYTEST),
    )
    recipe = Recipe("OWN", steps, writable=(str(tmp_path / "out"),))
    engine.config = Config(strategy="OWN", strategies={"OWN": recipe})
    return engine


LONG = "def add(a, b):\n    return a + b\n" + "\n" * 9 + "def sub(a, b):\n    return a - b\n"
SWAPPED = LONG.replace("a + b", "b + a")
MOVED = LONG.replace("a - b", "-b + a")


def judged(project: GitBox, engine: Engine, files: dict[str, str | None]) -> Verdict:
    """Return the verdict on a patch that passed, and of which the user has a commit too."""
    verdict = engine.validate(project.diff_to(files))
    assert verdict.outcome is Outcome.PASSED, verdict.reason
    return verdict


def picked(project: GitBox, files: dict[str, str | None], base: str) -> str:
    """Return the tree that git makes of the change to `files` of `base` on HEAD."""
    head = project.head
    project.git("checkout", "-q", "--detach", base)
    change = project.commit(files)
    project.git("checkout", "-q", "main")
    project.git("cherry-pick", change)
    tree = tree_of(project, "HEAD")
    project.git("reset", "-q", "--hard", head)
    return tree


def test_on_a_moved_branch_the_change_is_merged_and_judged_again(
    project: GitBox, tested: Engine, tmp_path: Path
) -> None:
    project.commit({"calc.py": LONG})
    verdict = judged(project, tested, {"calc.py": SWAPPED, "new.txt": "n\n"})
    tip = project.commit({"calc.py": MOVED, "other.txt": "moved\n"})
    wanted = picked(project, {"calc.py": SWAPPED, "new.txt": "n\n"}, verdict.base)
    project.write({"other.txt": "mine\n"})
    before = (tmp_path / "out" / "runs").read_text()
    commit = tested.promote(verdict, branch="main", message="Swap", note=True)
    assert (project.head, tree_of(project, "HEAD")) == (commit, wanted)
    assert project.git("log", "-1", "--format=%an %s %P") == f"Ada Swap {tip}"
    assert project.blob("HEAD:calc.py").decode() == MOVED.replace("a + b", "b + a")
    assert (tmp_path / "out" / "runs").read_text() > before
    assert status(project) == " M other.txt"
    receipt = noted(project, commit)
    assert (receipt.base, receipt.tree) == (tip, wanted)
    assert receipt != verdict.receipt


def test_what_is_known_of_the_merged_tree_is_not_run_again(
    project: GitBox, tested: Engine, tmp_path: Path
) -> None:
    project.commit({"calc.py": LONG})
    verdict = judged(project, tested, {"calc.py": SWAPPED})
    project.commit({"other.txt": "moved\n"})
    again = judged(project, tested, {"calc.py": SWAPPED})
    before = (tmp_path / "out" / "runs").read_text()
    tested.promote(verdict, branch="main")
    assert tree_of(project, "HEAD") == again.tree
    assert (tmp_path / "out" / "runs").read_text() == before


def refused(project: GitBox, engine: Engine, verdict: Verdict) -> StaleBaseError:
    """Return why `verdict` is not promoted; the user's repository stays bit for bit as it was."""
    before = project.snapshot()
    with pytest.raises(StaleBaseError) as caught:
        engine.promote(verdict, branch="main")
    assert project.snapshot() == before
    return caught.value


def test_a_change_that_merges_and_then_fails_is_refused(project: GitBox, tested: Engine) -> None:
    project.commit({"tests/test_calc.py": "import calc\n\n\ndef test_it():\n    assert calc\n"})
    verdict = judged(project, tested, {"calc.py": "def plus(a, b):\n    return a + b\n"})
    user = "import calc\n\n\ndef test_add():\n    assert calc.add(1, 1) == 2\n"
    tip = project.commit({"tests/test_user.py": user})
    error = refused(project, tested, verdict)
    assert f"`main` moved to {tip[:12]}, and there the change is FAILED: pytest" in error.problem
    assert "tests/test_user.py::test_add" in error.problem


def test_a_conflict_names_the_paths(project: GitBox, tested: Engine) -> None:
    verdict = judged(project, tested, {"calc.py": "def add(a, b):\n    return b + a\n"})
    project.commit({"calc.py": "def add(a, b):\n    return sum((a, b))\n", "x.txt": "x\n"})
    error = refused(project, tested, verdict)
    assert "conflicts with it in `calc.py`" in error.problem
    assert "make the patch anew on `main`" in error.remedy


def test_a_change_that_is_there_already_is_told(project: GitBox, tested: Engine) -> None:
    verdict = judged(project, tested, {"calc.py": "def add(a, b):\n    return b + a\n"})
    tested.promote(verdict, branch="main")
    assert "has the change already" in refused(project, tested, verdict).problem


def test_a_strategy_that_was_changed_needs_a_new_validation(
    project: GitBox, tested: Engine
) -> None:
    verdict = judged(project, tested, {"calc.py": "def add(a, b):\n    return b + a\n"})
    project.commit({"other.txt": "moved\n"})
    for strategies in ({}, {"OWN": Recipe("OWN", (Step(StepKind.SYNTAX),))}):
        tested.config = Config(strategies=strategies)
        error = refused(project, tested, verdict)
        assert "`OWN` is no longer what the patch passed" in error.problem
        assert "validate the patch again" in error.remedy


def test_a_lock_of_a_live_git_is_not_removed(
    project: GitBox, engine: Engine, passed: Verdict
) -> None:
    journal = {
        "reference": "refs/heads/main",
        "old": passed.base,
        "new": passed.base,
        "work_tree": str(project.top),
        "git_dir": str(project.top / ".git"),
        "started_s": time.time() - 20,
    }
    (engine.store.folder / "promotion.json").write_text(json.dumps(journal))
    (project.top / ".git" / "index.lock").touch()
    assert Engine(project.top).store.folder == engine.store.folder
    assert (project.top / ".git" / "index.lock").exists()


def test_a_missing_identity_is_named(
    project: GitBox, engine: Engine, passed: Verdict, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.git("config", "user.useConfigOnly", "true")
    project.git("config", "--unset", "user.email")
    with pytest.raises(PromotionError, match="who the author"):
        engine.promote(passed, branch="main")


def test_signing_is_honoured_unless_told_not_to(
    project: GitBox, engine: Engine, passed: Verdict
) -> None:
    project.git("config", "commit.gpgSign", "true")
    project.git("config", "gpg.program", "false")
    with pytest.raises(PromotionError, match="signed"):
        engine.promote(passed, branch="main")
    assert engine.promote(passed, branch="main", sign=False) == project.head


def test_the_verdict_of_an_earlier_process_can_be_promoted(
    project: GitBox, engine: Engine, passed: Verdict
) -> None:
    again = Verdict.from_json(passed.to_json())
    assert Engine(project.top).promote(again, branch="main") == project.head


def test_objects_enter_the_users_database_only_at_promotion(
    project: GitBox, engine: Engine
) -> None:
    plan = {"file_path": "never/seen.txt", "operation": "INSERT", "content": "never seen"}
    verdict = engine.validate(json.dumps([plan]), strategy="SYNTAX_ONLY")
    blob = project.git("hash-object", "--stdin", text="never seen\n")
    have = subprocess.run(["git", "cat-file", "-e", blob], cwd=project.top, check=False)
    assert have.returncode != 0
    engine.promote(verdict, branch="main")
    project.git("cat-file", "-e", blob)


KILLED = """
import json, sys
from sandbox_engine import Engine, Verdict
verdict = Verdict.from_json(json.load(open(sys.argv[1])))
engine = Engine(sys.argv[2])
print("ready", flush=True)
engine.promote(verdict, branch="main")
"""


@pytest.mark.parametrize("with_git", [False, True], ids=["engine", "engine-and-git"])
def test_a_kill_at_any_moment_is_recovered(project: GitBox, tmp_path: Path, with_git: bool) -> None:
    """12 kills at moments spread over a promotion: nothing lost, all of it or none of it there."""
    big = {f"pkg/m{n}.py": f"n = {n}\n" * 200 for n in range(60)}
    project.commit({**big, "gone.txt": "gone\n"})
    changed: dict[str, str | None] = {name: text + "more = 1\n" for name, text in big.items()}
    text = project.diff_to({**changed, "added/new.py": "x = 1\n", "gone.txt": None})
    engine = Engine(project.top)
    verdict = engine.validate(text, strategy="SYNTAX_ONLY")
    record = tmp_path / "verdict.json"
    record.write_text(json.dumps(verdict.to_json()))
    project.write({"mine.txt": "untracked\n", "calc.py": "edited = 1\n"})
    mine = status(project)
    landed = 0
    for number in range(12):
        delay_s = 0.06 * number / 11
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(record), str(project.top)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(delay_s)
            children = _children(child.pid) if with_git else []
            for pid in [child.pid, *children]:
                _kill(pid)
        Engine(project.top)
        assert status(project) == mine, delay_s
        assert project.git("rev-parse", "HEAD^{tree}") in (verdict.base_tree, verdict.tree)
        assert not list((project.top / ".git").rglob("*.lock"))
        if project.head != verdict.base:
            landed += 1
            project.git("reset", "-q", "--soft", verdict.base)
            project.git("checkout", "-q", verdict.base, "--", "pkg", "gone.txt")
            project.git("rm", "-q", "-f", "added/new.py")
        assert status(project) == mine
    assert engine.promote(verdict, branch="main") == project.head
    assert status(project) == mine


def _children(pid: int) -> list[int]:
    try:
        return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def test_a_mail_lands_as_git_am_would_make_it(
    project: GitBox, engine: Engine, tmp_path: Path
) -> None:
    base = project.head
    project.write({"calc.py": "def add(a, b):\n    return b + a\n"})
    project.git(
        "-c", "user.name=Grace Höpper", "-c", "user.email=grace@example.org",
        "commit", "-q", "-a", "-m", "Swap the operands\n\nThey commute.",
        "--date=2025-03-04T05:06:07+0200",
    )  # fmt: skip
    mail = project.git("format-patch", "--stdout", "-1")
    wanted = project.git("log", "-1", "--format=%an|%ae|%aI|%B")
    tree = project.git("rev-parse", "HEAD^{tree}")
    project.git("reset", "-q", "--hard", base)
    verdict = engine.validate(mail + "\n", strategy="SYNTAX_ONLY")
    engine.promote(verdict, branch="main")
    assert project.git("log", "-1", "--format=%an|%ae|%aI|%B") == wanted
    assert project.git("log", "-1", "--format=%cn") == "Ada"
    assert project.git("rev-parse", "HEAD^{tree}") == tree
    assert Verdict.from_json(verdict.to_json()) == verdict
