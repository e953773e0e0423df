"""The hook: put in and taken out without loss, and what a committer sees of it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CODE, TESTS, GitBox

from sandbox_engine import UsageError, commit_hooks
from sandbox_engine.cli import main

ENGINE = [sys.executable, "-m", "sandbox_engine"]


def commit(box: GitBox, *words: str, cwd: Path | None = None, **variables: str) -> tuple[int, str]:
    """Commit as a person does, and return the exit code and what was shown."""
    done = subprocess.run(
        ["git", "commit", "-q", *words],
        cwd=cwd or box.top,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "" and "Traceback" not in done.stderr
    return done.returncode, done.stderr


def earlier(box: GitBox, script: str) -> Path:
    path = box.top / ".git" / "hooks" / "pre-commit"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def hooked(project: GitBox) -> GitBox:
    commit_hooks.install(project.top, ["--strategy", "SYNTAX_ONLY"])
    return project


def test_it_comes_and_goes(project: GitBox) -> None:
    assert main(["hook", "status", "--repo", str(project.top)]) == 1
    before = project.snapshot()
    assert main(["hook", "install", "--repo", str(project.top / "tests")]) == 0
    path = project.top / ".git" / "hooks" / "pre-commit"
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert main(["hook", "status", "--repo", str(project.top)]) == 0
    assert main(["hook", "uninstall", "--repo", str(project.top)]) == 0
    after = project.snapshot()
    assert {**after, ".git/hooks": ""} == {**before, ".git/hooks": ""}
    assert not commit_hooks.uninstall(project.top)


def test_an_earlier_hook_runs_first_and_comes_back(project: GitBox) -> None:
    path = earlier(project, 'echo "earlier $#" >&2; test ! -e stop')
    content = path.read_bytes()
    assert commit_hooks.install(project.top, ["--strategy", "SYNTAX_ONLY"]).has_earlier
    # Again is the same as once.
    assert commit_hooks.install(project.top, ["--strategy", "SYNTAX_ONLY"]).has_earlier
    project.write({"calc.py": "X = 1\n"})
    code, said = commit(project, "-a", "-m", "one")
    assert code == 0 and said.startswith("earlier 0\nsandbox-engine: PASSED")
    (project.top / "stop").touch()
    project.write({"calc.py": "X = 2\n"})
    assert commit(project, "-a", "-m", "two") == (1, "earlier 0\n")
    # Skipping ours does not skip what the committer had before.
    assert commit(project, "-a", "-m", "two", SKIP_SANDBOX_ENGINE="1") == (1, "earlier 0\n")
    assert commit_hooks.uninstall(project.top)
    assert path.read_bytes() == content and path.stat().st_mode & 0o111


def test_what_an_earlier_hook_adds_is_judged(project: GitBox) -> None:
    earlier(project, "echo 'def (' > added.py; git add added.py")
    commit_hooks.install(project.top, ["--strategy", "SYNTAX_ONLY"])
    project.write({"calc.py": "X = 1\n"})
    code, said = commit(project, "-a", "-m", "one")
    assert code == 1 and "added.py" in said


def test_two_hooks_that_are_not_ours_are_never_lost(project: GitBox) -> None:
    path = earlier(project, "true # first")
    commit_hooks.install(project.top)
    earlier(project, "true # second")
    with pytest.raises(UsageError, match="is there already"):
        commit_hooks.install(project.top)
    assert not commit_hooks.status(project.top).is_installed
    assert not commit_hooks.uninstall(project.top)
    assert "second" in path.read_text()
    assert "first" in path.with_name("pre-commit.before-sandbox-engine").read_text()


def test_the_folder_that_git_is_told_of_is_used(project: GitBox, tmp_path: Path) -> None:
    project.git("config", "core.hooksPath", ".githooks")
    assert commit_hooks.install(project.top / "tests").path == project.top / ".githooks/pre-commit"
    project.git("config", "core.hooksPath", str(tmp_path / "shared"))
    with pytest.raises(UsageError, match="not of this repository alone"):
        commit_hooks.install(project.top)
    assert not (tmp_path / "shared").exists()


def test_a_linked_worktree_has_the_hook_too(hooked: GitBox, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    hooked.git("worktree", "add", "-q", str(linked))
    assert commit_hooks.status(linked).is_installed
    (linked / "calc.py").write_text("def (\n")
    code, said = commit(hooked, "-a", "-m", "broken", cwd=linked)
    assert code == 1 and "syntax-error calc.py:1" in said


def test_a_committer_sees_what_is_needed_and_nothing_else(project: GitBox) -> None:
    commit_hooks.install(project.top)
    project.write({"calc.py": CODE.replace("a + b", "b + a"), "untracked.py": "def (\n"})
    code, said = commit(project, "-a", "-m", "well")
    assert code == 0 and said.count("\n") == 1
    assert said.startswith("sandbox-engine: PASSED: ") and "2 of 2 tests passed" in said
    # What is not staged is not judged: the good edit goes, the bad one stays where it is.
    project.write({"calc.py": "X = (\n", "new.py": "NEW = 1\n"})
    project.git("add", "new.py")
    assert commit(project, "-m", "new")[0] == 0
    assert project.git("status", "--porcelain") == " M calc.py\n?? untracked.py"
    project.write({"calc.py": CODE.replace("a + b", "a - b")})
    code, said = commit(project, "-a", "-m", "broken")
    assert code == 1
    assert "sandbox-engine: FAILED: " in said and "tests/test_calc.py::test_add" in said
    assert "`SKIP_SANDBOX_ENGINE=1 git commit ...` commits all the same" in said
    assert "base " not in said and "tree " not in said
    code, said = commit(project, "-a", "-m", "broken", SKIP_SANDBOX_ENGINE="1")
    assert (code, said.count("\n")) == (0, 1) and "passed over" in said


def test_a_change_and_its_tests_may_come_together(project: GitBox) -> None:
    commit_hooks.install(project.top)
    project.write(
        {
            "calc.py": CODE.replace("a + b", "a + b + 1"),
            "tests/test_calc.py": TESTS.replace("== 3", "== 4").replace("== 0", "== 1"),
        }
    )
    code, said = commit(project, "-a", "-m", "another sum")
    assert code == 0, said


def test_what_cannot_be_judged_is_refused_unless_that_was_allowed(box: GitBox) -> None:
    box.commit({"calc.py": CODE})
    commit_hooks.install(box.top)
    box.write({"calc.py": "X = 1\n"})
    code, said = commit(box, "-a", "-m", "one")
    assert code == 1 and "INCONCLUSIVE" in said and "commits all the same" in said
    commit_hooks.install(box.top, ["--lenient"])
    code, said = commit(box, "-a", "-m", "one")
    assert code == 0 and "INCONCLUSIVE" in said


def test_a_first_commit_is_judged(box: GitBox) -> None:
    commit_hooks.install(box.top)
    box.write({"calc.py": CODE, "tests/test_calc.py": TESTS.replace("== 3", "== 4")})
    box.git("add", ".")
    code, said = commit(box, "-m", "first")
    assert code == 1 and "test_add" in said
    box.write({"tests/test_calc.py": TESTS})
    box.git("add", ".")
    code, said = commit(box, "-m", "first")
    assert code == 0 and "2 of 2 tests passed" in said


def test_unmerged_files_are_told(hooked: GitBox) -> None:
    hooked.git("switch", "-q", "-c", "other")
    hooked.commit({"calc.py": "X = 1\n"})
    hooked.git("switch", "-q", "main")
    hooked.commit({"calc.py": "X = 2\n"})
    subprocess.run(["git", "merge", "-q", "other"], cwd=hooked.top, check=False)
    done = subprocess.run(
        [*ENGINE, "validate", "--staged"], cwd=hooked.top, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "not merged yet" in done.stderr


def test_nothing_of_the_users_is_written(project: GitBox) -> None:
    project.write({"calc.py": "X = 1\n", "new.py": "NEW = 1\n"})
    project.git("add", "new.py")
    before = project.snapshot()
    for index in ({}, {"GIT_INDEX_FILE": ".git/index"}):
        done = subprocess.run(
            [*ENGINE, "validate", "--staged", "--strategy", "SYNTAX_ONLY"],
            cwd=project.top,
            env={**os.environ, **index, "GIT_DIR": ".git", "GIT_PREFIX": ""},
            check=False,
        )
        assert done.returncode == 0
    assert project.snapshot() == before


def test_an_interpreter_that_is_gone_is_told(hooked: GitBox) -> None:
    path = hooked.top / ".git" / "hooks" / "pre-commit"
    path.write_text(path.read_text().replace(sys.executable, "/gone/python"))
    hooked.write({"calc.py": "X = 1\n"})
    code, said = commit(hooked, "-a", "-m", "one")
    assert code == 1 and "run `sandbox-engine hook install` again" in said


@pytest.mark.parametrize(
    "words",
    [
        ["hook"],
        ["hook", "install", "--strategy", "NO"],
    ],
)
def test_a_wrong_word_is_refused(
    project: GitBox, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    if words[-1] == "NO":
        words = [*words, "--repo", str(project.top)]
        assert main(words) == 2
        assert "there is no strategy `NO`" in capsys.readouterr().err
        assert not commit_hooks.status(project.top).is_installed
    else:
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 2


def test_another_repository_than_that_of_the_folder_is_not_judged(
    hooked: GitBox, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "inner").mkdir(parents=True)
    subprocess.run(["git", "init", "-q", elsewhere], check=True)
    (elsewhere / "inner" / "calc.py").write_text("def (\n")
    words = [f"--git-dir={hooked.top}/.git", f"--work-tree={elsewhere}/inner"]
    done = subprocess.run(
        ["git", *words, "commit", "-qam", "x"],
        cwd=elsewhere / "inner",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "and this folder belongs to" in done.stderr
