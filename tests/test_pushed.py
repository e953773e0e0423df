"""What is judged of a push: by git's lines, by what pre-commit says, and by real pushes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from conftest import CODE, TESTS, GitBox

from sandbox_engine import Engine, Outcome, UsageError, batch, commit_hooks, git, pushed
from sandbox_engine.cli import main
from sandbox_engine.pushed import Push
from sandbox_engine.verdict import CommitId

pytestmark = pytest.mark.usefixtures("no_reruns")

ZERO = "0" * 40


@pytest.fixture
def remote(project: GitBox, tmp_path: Path) -> Path:
    """A remote called `origin`, which has `main`."""
    path = tmp_path / "remote.git"
    project.git("init", "-q", "--bare", str(path))
    project.git("remote", "add", "origin", str(path))
    project.git("push", "-q", "-u", "origin", "main")
    return path


def push(box: GitBox, *words: str, **variables: str) -> tuple[int, str]:
    """Push as a person does, and return the exit code and what was shown."""
    done = subprocess.run(
        ["git", "push", "-q", *words],
        cwd=box.top,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "" and "Traceback" not in done.stderr
    return done.returncode, done.stderr


def told(box: GitBox, *lines: str, remote: str = "origin") -> list[Push]:
    text = "".join(f"{one}\n" for one in lines)
    return list(pushed.pushes(git.find_repository(box.top), remote, text))


def line(local: str, ref: str = "refs/heads/main", theirs: str = ZERO) -> str:
    return f"refs/heads/any {local} {ref} {theirs}"


def test_a_branch_is_judged_beside_what_the_remote_has(project: GitBox, remote: Path) -> None:
    first = project.head
    second = project.commit({"calc.py": "X = 1\n"})
    assert told(project, line(second, theirs=first)) == [Push("refs/heads/main", second, first)]
    # What the remote has, and was never fetched, is as good as unknown.
    assert told(project, line(second, theirs="1" * 40)) == [Push("refs/heads/main", second, first)]


def test_a_new_branch_is_judged_beside_the_nearest_commit_that_the_remote_has(
    project: GitBox, remote: Path
) -> None:
    first = project.head
    project.git("switch", "-q", "-c", "feature")
    project.commit({"f.py": "F = 1\n"})
    project.git("switch", "-q", "main")
    second = project.commit({"calc.py": "X = 1\n"})
    project.git("push", "-q", "origin", "main")
    project.git("switch", "-q", "feature")
    tip = project.commit({"g.py": "G = 1\n"})
    assert [one.base for one in told(project, line(tip, "refs/heads/feature"))] == [first]
    project.git("merge", "-q", "--no-edit", "main")
    merged = project.head
    assert [one.base for one in told(project, line(merged, "refs/heads/feature"))] == [second]
    # Where nothing is known of the remote itself, others count.
    other = told(project, line(merged, "refs/heads/feature"), remote="https://example.org/x")
    assert [one.base for one in other] == [second]


def test_what_is_new_to_every_remote_is_judged_beside_nothing(project: GitBox) -> None:
    assert told(project, line(project.head)) == [Push("refs/heads/main", project.head, None)]


def test_what_needs_no_judging_is_passed_over(project: GitBox, remote: Path) -> None:
    known = project.head
    project.git("tag", "-a", "v1", "-m", "one")
    project.git("notes", "add", "-m", "note")
    blob = project.git("hash-object", "-w", "calc.py")
    assert (
        told(
            project,
            f"(delete) {ZERO} refs/heads/gone {known}",
            line(project.git("rev-parse", "v1"), "refs/tags/v1"),
            line(blob, "refs/tags/blob"),
            line(project.git("rev-parse", "refs/notes/commits"), "refs/notes/commits"),
            line(known, "refs/heads/same"),
            line(known, theirs=known),
        )
        == []
    )


def test_a_tag_of_new_commits_is_judged_and_two_names_of_one_commit_once(
    project: GitBox, remote: Path
) -> None:
    first, second = project.head, project.commit({"calc.py": "X = 1\n"})
    project.git("tag", "-a", "v1", "-m", "one")
    tag = project.git("rev-parse", "v1")
    assert told(project, line(tag, "refs/tags/v1"), line(second)) == [
        Push("refs/tags/v1", second, first)
    ]


def test_a_name_with_spaces_is_read(project: GitBox, remote: Path) -> None:
    first, second = project.head, project.commit({"calc.py": "X = 1\n"})
    words = f"HEAD^{{/a b c}} {second} refs/heads/main {first}"
    assert told(project, words) == [Push("refs/heads/main", second, first)]
    with pytest.raises(UsageError, match="not what git tells"):
        told(project, "nonsense")


def test_what_pre_commit_says_is_judged(project: GitBox, remote: Path) -> None:
    repository = git.find_repository(project.top)
    first, second = project.head, project.commit({"calc.py": "X = 1\n"})
    assert pushed.push_of_pre_commit(repository, {}) is None
    names = {"PRE_COMMIT_FROM_REF": first, "PRE_COMMIT_TO_REF": "HEAD"}
    assert pushed.push_of_pre_commit(repository, names) == Push("HEAD", second, first)
    # `--from-ref main` of a branch that main has left is meant from where it began.
    project.git("switch", "-q", "-c", "old", first)
    old = project.commit({"o.py": "O = 1\n"})
    names = {"PRE_COMMIT_FROM_REF": "main", "PRE_COMMIT_TO_REF": old}
    assert pushed.push_of_pre_commit(repository, names) == Push(old, old, first)
    names = {
        "PRE_COMMIT_LOCAL_BRANCH": "refs/heads/old",
        "PRE_COMMIT_REMOTE_BRANCH": "refs/heads/new",
        "PRE_COMMIT_REMOTE_NAME": "origin",
    }
    assert pushed.push_of_pre_commit(repository, names) == Push("refs/heads/new", old, first)
    project.git("update-ref", "-d", "refs/remotes/origin/main")
    assert pushed.push_of_pre_commit(repository, names) == Push("refs/heads/new", old, None)
    with pytest.raises(UsageError, match="no commit of the repository"):
        pushed.push_of_pre_commit(repository, {"PRE_COMMIT_TO_REF": "gone"})


def test_a_push_is_refused_and_another_goes(project: GitBox, remote: Path) -> None:
    assert main(["hook", "install", "--pre-push", "--repo", str(project.top)]) == 0
    assert not commit_hooks.status(project.top).is_installed
    good = project.commit({"calc.py": CODE.replace("a + b", "b + a")})
    # Neither what is staged nor what is in the work tree is pushed.
    project.write({"calc.py": "def (\n"})
    project.git("add", ".")
    code, said = push(project, "origin", "main")
    assert code == 0 and said.startswith("sandbox-engine: PASSED") and said.count("\n") == 1
    assert project.git("ls-remote", "origin", "main").split()[0] == good
    bad = project.commit({"calc.py": CODE.replace("a + b", "a - b")})
    code, said = push(project, "origin", "main")
    assert code == 1 and "sandbox-engine: FAILED" in said and "test_add" in said
    assert "`SKIP_SANDBOX_ENGINE=1 git push ...` pushes all the same" in said
    assert project.git("ls-remote", "origin", "main").split()[0] == good
    code, said = push(project, "origin", "main", SKIP_SANDBOX_ENGINE="1")
    assert code == 0 and "passed over" in said
    assert project.git("ls-remote", "origin", "main").split()[0] == bad
    # Nothing to push, and what is deleted.
    assert push(project, "origin", "main") == (0, "")
    project.git("push", "-q", "--no-verify", "origin", f"{bad}:refs/heads/gone")
    assert push(project, "origin", ":gone") == (0, "")


def test_each_of_several_branches_is_judged_and_told(project: GitBox, remote: Path) -> None:
    commit_hooks.install(project.top, ["--strategy", "SYNTAX_ONLY"], name=commit_hooks.PUSH)
    project.git("switch", "-q", "-c", "good")
    project.commit({"good.py": "G = 1\n"})
    project.git("switch", "-q", "-c", "bad", "main")
    project.commit({"bad.py": "def (\n"})
    code, said = push(project, "origin", "good", "bad")
    assert code == 1
    assert "sandbox-engine: good: PASSED" in said and "sandbox-engine: bad: REJECTED" in said
    assert push(project, "origin", "good")[0] == 0


def test_a_first_push_is_judged(project: GitBox, tmp_path: Path) -> None:
    commit_hooks.install(project.top, name=commit_hooks.PUSH)
    project.git("init", "-q", "--bare", str(tmp_path / "remote.git"))
    project.commit({"tests/test_calc.py": TESTS.replace("== 3", "== 4")})
    code, said = push(project, str(tmp_path / "remote.git"), "main")
    assert code == 1 and "test_add" in said
    project.commit({"tests/test_calc.py": TESTS})
    code, said = push(project, str(tmp_path / "remote.git"), "main")
    assert code == 0 and "2 of 2 tests passed" in said


def test_what_a_remote_cannot_have_judged_is_let_pass_where_that_was_allowed(
    box: GitBox, tmp_path: Path
) -> None:
    box.commit({"calc.py": CODE})
    box.git("init", "-q", "--bare", str(tmp_path / "remote.git"))
    commit_hooks.install(box.top, name=commit_hooks.PUSH)
    code, said = push(box, str(tmp_path / "remote.git"), "main")
    assert code == 1 and "INCONCLUSIVE" in said
    commit_hooks.install(box.top, ["--lenient"], name=commit_hooks.PUSH)
    code, said = push(box, str(tmp_path / "remote.git"), "main")
    assert code == 0 and "INCONCLUSIVE" in said


@pytest.mark.parametrize("reads", ["cat > heard", "true"])
def test_an_earlier_hook_is_told_the_same(project: GitBox, remote: Path, reads: str) -> None:
    path = project.top / ".git" / "hooks" / "pre-push"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'#!/bin/sh\necho "earlier $1" >&2; {reads}; test ! -e stop\n')
    path.chmod(0o755)
    before = path.read_bytes()
    arguments = ["--strategy", "SYNTAX_ONLY"]
    assert commit_hooks.install(project.top, arguments, name=commit_hooks.PUSH).has_earlier
    first, second = project.head, project.commit({"good.py": "G = 1\n"})
    code, said = push(project, "origin", "main")
    assert code == 0 and said.startswith("earlier origin\nsandbox-engine: PASSED")
    if reads != "true":
        expected = f"refs/heads/main {second} refs/heads/main {first}\n"
        assert (project.top / "heard").read_text() == expected
        project.git("rm", "-q", "--cached", "--ignore-unmatch", "heard")
    (project.top / "stop").touch()
    project.commit({"calc.py": "X = 1\n"})
    code, said = push(project, "origin", "main")
    assert code == 1 and "PASSED" not in said
    assert commit_hooks.uninstall(project.top, commit_hooks.PUSH)
    assert path.read_bytes() == before


def test_both_hooks_are_told_of_and_taken_out(
    project: GitBox, capsys: pytest.CaptureFixture[str]
) -> None:
    repo = ["--repo", str(project.top)]
    assert main(["hook", "install", "--pre-push", *repo]) == 0
    assert main(["hook", "install", "--strategy", "SYNTAX_ONLY", *repo]) == 0
    capsys.readouterr()
    assert main(["hook", "status", *repo]) == 0
    hooks = project.top / ".git" / "hooks"
    assert capsys.readouterr().out == f"`{hooks}/pre-commit`\n`{hooks}/pre-push`\n"
    assert main(["hook", "uninstall", *repo]) == 0
    assert capsys.readouterr().out == "uninstalled pre-commit and pre-push\n"
    assert main(["hook", "status", *repo]) == 1
    assert list(hooks.glob("pre-*[!e]")) == []


def test_a_push_from_a_commit_hook_is_no_commit(project: GitBox, remote: Path) -> None:
    """Git still names the index to a hook that pushes, and it is not what is pushed."""
    commit_hooks.install(project.top, ["--strategy", "SYNTAX_ONLY"], name=commit_hooks.PUSH)
    path = project.top / ".git" / "hooks" / "post-commit"
    path.write_text("#!/bin/sh\nexec git push -q origin main\n")
    path.chmod(0o755)
    project.write({"calc.py": "def (\n"})
    project.git("commit", "-q", "-a", "-m", "broken")
    assert project.git("ls-remote", "origin", "main").split()[0] != project.head


def test_all_is_judged_of_a_branch_that_nothing_is_known_of(project: GitBox) -> None:
    # Its last commit changes nothing of its parent, which the other side does not have either.
    project.commit({"calc.py": "def (\n"})
    project.git("commit", "-q", "--allow-empty", "-m", "nothing")
    engine = Engine(project.top)
    (one,) = batch.pushed(engine, [Push("refs/heads/main", CommitId(project.head), None)])
    verdict = engine.validate_commit(project.head, base=one.base, strategy="SYNTAX_ONLY")
    assert verdict.outcome is Outcome.REJECTED and "calc.py" in verdict.changed_paths
    known = CommitId(project.git("rev-parse", "HEAD~").strip())
    same = Push("refs/heads/main", CommitId(project.head), known)
    assert batch.pushed(engine, [same]) == []
