"""What git ignores in a work tree, and what decides it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import GitBox

from sandbox_engine import git
from sandbox_engine.errors import GitError
from sandbox_engine.ignoring import ignored_folders, read_rules, with_tracked_files


def test_folders_are_ignored_unless_they_hold_tracked_files(box: GitBox) -> None:
    box.commit({".gitignore": "out/\n*.log\n", "out/kept/a.txt": "x", "src/a.txt": "x"})
    box.write({"src/out/b.txt": "x", "logs/a.log": "x", ":odd/a.txt": "x"})
    folders = ["out", "src", "src/out", "logs", ":odd", "gone"]
    # A folder of ignored files is not an ignored folder: others may come.
    assert ignored_folders(box.top, folders) == {"src/out"}
    box.git("rm", "-rq", "--cached", "out")
    assert ignored_folders(box.top, folders) == {"src/out", "out"}
    assert with_tracked_files(box.top, ["src", "out"]) == {"src"}
    assert ignored_folders(box.top, []) == set()


def test_a_path_behind_a_link_is_an_error_and_no_answer(box: GitBox) -> None:
    box.commit({"a.txt": "x"})
    os.symlink("..", box.top / "link")
    with pytest.raises(GitError):
        ignored_folders(box.top, ["link/x"])


@pytest.mark.parametrize(
    "change",
    [
        lambda box: box.commit({"b.txt": "x"}),
        lambda box: box.git("add", "--all"),
        lambda box: (box.top / ".git" / "info" / "exclude").write_text("x\n"),
        lambda box: box.git("config", "core.excludesFile", "~/mine"),
        lambda box: (Path.home() / "theirs").write_text("x\n"),
        lambda box: (Path.home() / ".gitconfig").write_text("[user]\nname = Bob\n"),
        lambda box: (box.top / ".gitignore").write_text("y\n"),
    ],
)
def test_rules_hold_until_one_of_their_files_changes(box: GitBox, change: object) -> None:
    box.commit({"sub/a.txt": "x"})
    box.git("config", "core.excludesFile", "~/theirs")
    box.write({"new.txt": "x"})
    repository = git.find_repository(box.top)
    rules = read_rules(repository, (box.top / "sub").resolve())
    assert rules.hold() and rules.hold_but_for(())
    change(box)  # type: ignore[operator]
    assert not rules.hold()


def test_a_commit_changes_the_index_and_nothing_else(box: GitBox) -> None:
    box.commit({"a.txt": "x"})
    rules = read_rules(git.find_repository(box.top), box.top.resolve())
    box.commit({"a.txt": "y"})
    assert not rules.hold() and rules.hold_but_for(("index", "HEAD"))
    box.git("config", "user.name", "Bob")
    assert not rules.hold_but_for(("index", "HEAD"))
