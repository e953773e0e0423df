from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import GitBox

from sandbox_engine import Engine, Outcome, Verdict, promotion
from sandbox_engine.errors import (
    LocalChangesError,
    PromotionError,
    SandboxError,
    StaleBaseError,
    UsageError,
)
from sandbox_engine.slot_sandbox import SlotSandbox
from sandbox_engine.verdict import TreeId

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


def test_a_moved_branch_is_refused(project: GitBox, engine: Engine, passed: Verdict) -> None:
    head = project.commit({"other.txt": "moved\n"})
    with pytest.raises(StaleBaseError, match="moved"):
        engine.promote(passed, branch="main")
    assert project.head == head
    assert status(project) == ""


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
    forged = dataclasses.replace(passed, tree=TreeId(project.git("rev-parse", "HEAD^{tree}")))
    with pytest.raises(PromotionError, match="not among those that passed"):
        engine.promote(forged, branch="main")


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
