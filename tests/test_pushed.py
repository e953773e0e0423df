"""What is about to be pushed: found out, and judged by a hook of real pushes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from conftest import GitBox

from sandbox_engine import UsageError, commit_hooks, git
from sandbox_engine.pushed import Pushed, pushed_by_framework, read_pushed
from sandbox_engine.verdict import CommitId

NONE = "0" * 40
BROKEN = {"calc.py": "def add(:\n"}
GOOD = {"calc.py": "def add(a, b):\n    return b + a\n"}


@pytest.fixture
def other(project: GitBox, tmp_path: Path) -> GitBox:
    """The project, with a remote that has its first commit, and the hook."""
    subprocess.run(["git", "init", "-q", "--bare", tmp_path / "other.git"], check=True)
    project.git("remote", "add", "origin", str(tmp_path / "other.git"))
    project.git("push", "-q", "origin", "main")
    commit_hooks.install(project.top, ["--strategy", "SYNTAX_ONLY"], commit_hooks.PRE_PUSH)
    return project


def push(box: GitBox, *words: str, **variables: str) -> tuple[int, str]:
    done = subprocess.run(
        ["git", "push", "-q", *words],
        cwd=box.top,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def there(box: GitBox, name: str) -> str:
    return box.git("ls-remote", "origin", name).split("\t")[0]


def test_a_push_is_judged_and_what_is_wrong_stays_here(other: GitBox) -> None:
    first = other.head
    good = other.commit(GOOD)
    assert push(other, "origin", "main")[0] == 0 and there(other, "main") == good
    other.commit(BROKEN)
    code, said = push(other, "origin", "main")
    assert code == 1 and "REJECTED" in said and there(other, "main") == good
    assert "`SKIP_SANDBOX_ENGINE=1 git push ...` pushes all the same" in said
    other.git("branch", "early", first)
    code, said = push(other, "origin", "early")
    assert code == 0 and "sandbox-engine" not in said, "the other side has it already"
    code, said = push(other, "origin", "main:refs/heads/topic", "v1", "--tags")
    assert code == 1 and there(other, "topic") == ""
    assert push(other, "origin", ":early") == (0, ""), "what is deleted is not judged"
    assert push(other, "origin", "main", SKIP_SANDBOX_ENGINE="1")[0] == 0


def test_several_are_judged_each_and_an_earlier_hook_reads_the_same(other: GitBox) -> None:
    commit_hooks.uninstall(other.top, commit_hooks.PRE_PUSH)
    path = other.top / ".git" / "hooks" / "pre-push"
    path.write_text('#!/bin/sh\ncat >.git/told\necho "$1" >&2\n')
    path.chmod(0o755)
    installed = commit_hooks.install(
        other.top, ["--strategy", "SYNTAX_ONLY"], commit_hooks.PRE_PUSH
    )
    assert installed.has_earlier
    other.git("switch", "-qc", "one")
    other.commit(GOOD)
    other.git("switch", "-qc", "two", "main")
    other.commit({"new.py": "x = 1\n"})
    code, said = push(other, "origin", "one", "two")
    assert code == 0 and said.startswith("origin\n") and said.count("PASSED") == 2
    told = (other.top / ".git" / "told").read_text().splitlines()
    assert sorted(line.split()[0] for line in told) == ["refs/heads/one", "refs/heads/two"]
    other.commit(BROKEN)
    other.git("commit", "-q", "--allow-empty", "-m", "x")
    code, said = push(other, "origin", "one", "two")
    assert code == 1 and "calc.py" in said
    assert commit_hooks.uninstall(other.top, commit_hooks.PRE_PUSH)
    assert "told" in path.read_text()


def test_what_is_judged_is_beside_what_the_other_side_has(other: GitBox) -> None:
    repository = git.find_repository(other.top)
    first = CommitId(other.head)
    two = other.commit(GOOD)
    three = CommitId(other.commit({"new.py": "x = 1\n"}))

    def found(known: str, local: str = three) -> list[Pushed]:
        line = f"refs/heads/main {local} refs/heads/main {known}\n"
        return read_pushed(repository, line, "origin")

    assert found(first) == [Pushed("refs/heads/main", three, first)]
    assert found(two)[0].base == two
    assert found(NONE)[0].base == first
    assert found("1" * 40)[0].base == first, "what was never fetched is not known"
    assert found(first, NONE) == []
    assert found(NONE, first)[0].base == first
    other.git("update-ref", "-d", "refs/remotes/origin/main")
    assert found(NONE)[0].base is None
    with pytest.raises(UsageError, match="no line that git gives"):
        read_pushed(repository, "nonsense\n", "origin")


def test_a_framework_says_it_in_variables(other: GitBox) -> None:
    repository = git.find_repository(other.top)
    first = CommitId(other.head)
    tip = CommitId(other.commit(GOOD))
    assert pushed_by_framework(repository, {}) == []
    both = {"PRE_COMMIT_FROM_REF": first, "PRE_COMMIT_TO_REF": tip}
    assert pushed_by_framework(repository, both) == [Pushed(tip, tip, first)]
    new = {"PRE_COMMIT_REMOTE_NAME": "origin", "PRE_COMMIT_LOCAL_BRANCH": "refs/heads/main"}
    assert pushed_by_framework(repository, new) == [Pushed("refs/heads/main", tip, first)]
