from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import GitBox

from sandbox_engine import git
from sandbox_engine.errors import DiskFullError, GitError, RepositoryError, UsageError


def test_a_failure_tells_the_command_and_what_git_said(tmp_path: Path) -> None:
    with pytest.raises(GitError, match="`git rev-parse` failed: fatal") as caught:
        git.run_git(["-C", tmp_path, "rev-parse", "HEAD"])
    assert caught.value.code == 128
    assert "not a git repository" in caught.value.stderr


def test_a_full_disk_is_its_own_error() -> None:
    said = b"error: unable to write: No space left on device\nfatal: failed"
    assert isinstance(git.git_failure(["git", "gc"], 128, said), DiskFullError)
    assert isinstance(git.foreign_failure(OSError(28, "x"), "writing"), DiskFullError)
    assert "writing: x" in str(git.foreign_failure(OSError(5, "x"), "writing"))


def test_the_users_configuration_and_a_hooks_variables_stay_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home" / ".gitconfig").write_text("[alias]\n\tx = !echo owned\n")
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "user.name")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "owned")
    output = git.run_git(["config", "--list"], cwd=tmp_path, env=git.sealed_environment())
    assert b"owned" not in output


def test_names_of_stores_are_safe_and_differ(tmp_path: Path) -> None:
    boxes = [GitBox(tmp_path / name / 'my "répo" #') for name in ("a", "b")]
    ids = {git.find_repository(box.top).id for box in boxes}
    assert len(ids) == 2
    assert all(part.isascii() and part.replace("-", "").isalnum() for part in ids)


def test_a_path_with_a_line_break_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="line break"):
        git.find_repository(GitBox(tmp_path / "a\nb").top)


def test_the_repository_is_found_from_below_and_without_a_work_tree(project: GitBox) -> None:
    found = git.find_repository(project.top / "tests")
    assert found.top == project.top
    assert found.common_dir == project.top / ".git"
    assert git.find_repository(project.top / ".git").top is None


def test_a_repository_of_somebody_else_is_named(
    project: GitBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can give a folder to another user")
    os.chown(project.top, 12345, 12345)
    os.chown(project.top / ".git", 12345, 12345)
    with pytest.raises(RepositoryError, match="belongs to another user"):
        git.find_repository(project.top)


def test_revisions_are_resolved_as_git_does(project: GitBox) -> None:
    project.commit({"a": "a"})
    project.git("tag", "-a", "-m", "one", "v1")
    repository = git.find_repository(project.top)
    for revision in ("HEAD", "main", "v1", "HEAD~1", project.head[:12], "HEAD^{commit}"):
        wanted = project.git("rev-parse", f"{revision}^{{commit}}")
        assert git.resolve_commit(repository, revision)[0] == wanted
    for revision in ("", "HEAD~99", "HEAD:a", "HEAD^{tree}", "-x", "a b"):
        with pytest.raises(UsageError, match="names no commit"):
            git.resolve_commit(repository, revision)
