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

pytestmark = pytest.mark.usefixtures("no_reruns")

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


def syntax_of(box: GitBox, *words: str, cwd: Path | None = None, **variables: str) -> str:
    """Return what `validate --staged` says when git calls it with `variables`."""
    done = subprocess.run(
        [*ENGINE, "validate", "--staged", "--strategy", "SYNTAX_ONLY", *words],
        cwd=cwd or box.top,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize("name", ["json.py", "argparse.py", "sandbox_engine/__init__.py"])
def test_files_of_the_project_are_not_imported(hooked: GitBox, name: str) -> None:
    hooked.write({name: "raise SystemExit(0)\n", "calc.py": "def (\n"})
    hooked.git("add", ".")
    code, said = commit(hooked, "-m", "shadow")
    assert code == 1 and "syntax-error calc.py:1" in said


def test_a_folder_of_hooks_may_be_called_anything(project: GitBox) -> None:
    project.git("config", "core.hooksPath", "my 'hooks'\nare here\n")
    path = commit_hooks.install(project.top, ["--strategy", "SYNTAX_ONLY"]).path
    assert path.parent == project.top / "my 'hooks'\nare here\n"
    project.write({"calc.py": "def (\n"})
    assert commit(project, "-a", "-m", "broken")[0] == 1
    assert commit_hooks.uninstall(project.top)


def test_hooks_that_are_switched_off_are_not_there(project: GitBox) -> None:
    project.git("config", "core.hooksPath", "/dev/null")
    assert main(["hook", "status", "--repo", str(project.top)]) == 1
    assert main(["hook", "uninstall", "--repo", str(project.top)]) == 0
    with pytest.raises(UsageError, match="not of this repository alone"):
        commit_hooks.install(project.top)


def test_a_monitor_of_the_users_is_not_asked(project: GitBox, tmp_path: Path) -> None:
    monitor = tmp_path / "monitor"
    monitor.write_text(f"#!/bin/sh\necho asked >> '{tmp_path}/asked'\nexit 1\n")
    monitor.chmod(0o755)
    project.git("config", "core.fsmonitor", str(monitor))
    project.git("update-index", "--fsmonitor")
    project.write({"calc.py": "def (\n"})
    project.git("add", "calc.py")
    (tmp_path / "asked").unlink()
    assert "syntax-error" in syntax_of(project, GIT_INDEX_FILE=".git/index")
    assert not (tmp_path / "asked").exists()


def test_a_split_index_is_not_split_anew(project: GitBox) -> None:
    project.git("update-index", "--split-index")
    project.write({f"new{number}.py": "N = 1\n" for number in range(40)})
    project.git("-c", "splitIndex.maxPercentChange=100", "add", ".")
    project.git("config", "core.splitIndex", "true")
    project.git("config", "splitIndex.maxPercentChange", "0")
    before = sorted(path.name for path in (project.top / ".git").iterdir())
    assert "PASSED: syntax: 40 changed files" in syntax_of(project, GIT_INDEX_FILE=".git/index")
    assert sorted(path.name for path in (project.top / ".git").iterdir()) == before


def test_the_repository_is_the_one_that_git_names(project: GitBox, tmp_path: Path) -> None:
    """Whoever keeps settings in a bare repository has a work tree that does not lead to it."""
    bare, away = tmp_path / "settings.git", project.top / "away"
    project.git("clone", "-q", "--bare", ".", str(bare))
    away.mkdir()
    there = (f"--git-dir={bare}", f"--work-tree={away}", "-C", str(away))
    identity = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org")
    project.git(*there, "checkout", "-q", "HEAD", "--", ".")
    commit_hooks.install(bare, ["--strategy", "SYNTAX_ONLY"])
    for content, code in (("X = 1\n", 0), ("def (\n", 1)):
        (away / "calc.py").write_text(content)
        words = ["git", *there, *identity, "commit", "-q", "-a", "-m", "one"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == code and "sandbox-engine: " in done.stderr
        assert ("syntax-error calc.py:1" in done.stderr) == bool(code)


def test_the_index_of_another_repository_is_not_judged(project: GitBox, tmp_path: Path) -> None:
    other = GitBox(tmp_path / "other")
    other.commit({"calc.py": "X = 1\n"})
    project.write({"calc.py": "def (\n"})
    project.git("add", "calc.py")
    index = {"GIT_INDEX_FILE": str(project.top / ".git" / "index")}
    assert "syntax-error" in syntax_of(project, **index)
    assert "nothing is staged" in syntax_of(project, "--repo", str(other.top), **index)
    other.git("worktree", "add", "-q", str(tmp_path / "linked"))
    (tmp_path / "linked" / "calc.py").write_text("def (\n")
    subprocess.run(["git", "add", "."], cwd=tmp_path / "linked", check=True)
    names = {"GIT_DIR": str(other.top / ".git" / "worktrees" / "linked")}
    names["GIT_INDEX_FILE"] = f"{names['GIT_DIR']}/index"
    assert "syntax-error calc.py:1" in syntax_of(other, **names)


def test_where_nothing_can_be_staged_is_told(project: GitBox, tmp_path: Path) -> None:
    project.git("clone", "-q", "--bare", ".", str(tmp_path / "bare.git"))
    assert "has no work tree" in syntax_of(project, cwd=tmp_path / "bare.git")
    project.git("init", "-q", "--object-format=sha256", str(tmp_path / "sha256"))
    assert "SHA256 objects" in syntax_of(project, cwd=tmp_path / "sha256")
    assert "nothing is staged, so nothing was judged" in syntax_of(project)


def test_what_git_was_told_by_variables_is_not_passed_on(project: GitBox) -> None:
    listed = project.git("rev-parse", "--local-env-vars").split()
    assert all(name.startswith("GIT_") for name in listed)
    project.write({"calc.py": "def (\n"})
    project.git("add", "calc.py")
    odd = dict.fromkeys(listed, "/nonexistent")
    odd |= {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "core.bare", "GIT_CONFIG_VALUE_0": "true"}
    odd |= {"GIT_CONFIG_PARAMETERS": "'core.worktree=/tmp'", "GIT_INDEX_FILE": ".git/index"}
    assert "syntax-error calc.py:1" in syntax_of(project, **odd)
    # And so a hook may as well judge a patch.
    (project.top / "bad.diff").write_bytes(project.diff_to({"calc.py": "def (\n"}))
    done = subprocess.run(
        [*ENGINE, "validate", "bad.diff", "--strategy", "SYNTAX_ONLY"],
        cwd=project.top,
        env={**os.environ, **odd},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "syntax-error calc.py:1" in done.stdout


def test_commits_in_several_work_trees_at_once_are_judged(hooked: GitBox, tmp_path: Path) -> None:
    children = []
    for number in range(4):
        linked = tmp_path / f"linked{number}"
        hooked.git("worktree", "add", "-q", str(linked))
        (linked / "calc.py").write_text("def (\n" if number % 2 else f"X = {number}\n")
        words = ["git", "commit", "-q", "-a", "-m", "one"]
        children.append(subprocess.Popen(words, cwd=linked, stderr=subprocess.PIPE, text=True))
    for number, child in enumerate(children):
        said = child.communicate()[1]
        assert (child.returncode, "syntax-error" in said) == (number % 2, bool(number % 2)), said


def test_what_a_partial_clone_has_left_out_is_told(project: GitBox, tmp_path: Path) -> None:
    project.commit({"far/away.py": "X = 1\n"})
    project.git("config", "uploadpack.allowFilter", "true")
    clone = tmp_path / "clone"
    words = ("--filter=blob:none", "--sparse", f"file://{project.top}", str(clone))
    project.git("clone", "-q", *words)
    (clone / "calc.py").write_text("X = 2\n")
    subprocess.run(["git", "add", "."], cwd=clone, check=True)
    assert "PASSED" in syntax_of(project, cwd=clone)
    remove = ["git", "rm", "-q", "-r", "--sparse", "--cached", "far"]
    subprocess.run(remove, cwd=clone, check=True)
    said = syntax_of(project, cwd=clone)
    assert "what changes cannot be read" in said and "`git fetch --refetch`" in said


def test_the_configuration_that_was_named_is_used(project: GitBox, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('syntax_exclude = ["calc.py"]\n')
    words = ["--strategy", "SYNTAX_ONLY", "--config", os.path.relpath(tmp_path / "own.toml")]
    assert main(["hook", "install", "--repo", str(project.top), *words]) == 0
    project.write({"calc.py": "def (\n"})
    assert commit(project, "-a", "-m", "excluded")[0] == 0
