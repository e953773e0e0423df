from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest
from conftest import GitBox

from sandbox_engine import git, lock, store
from sandbox_engine.errors import SandboxBusyError
from sandbox_engine.store import Store


def opened(box: GitBox) -> Store:
    return store.open_store(git.find_repository(box.top))


def store_git(kept: Store, *arguments: str) -> str:
    done = subprocess.run(
        ["git", f"--git-dir={kept.git_dir}", *arguments], capture_output=True, check=True
    )
    return done.stdout.decode().strip()


@pytest.mark.usefixtures("untouched")
def test_the_store_sees_the_users_objects_and_is_private(project: GitBox) -> None:
    kept = opened(project)
    assert store_git(kept, "cat-file", "-t", project.head) == "commit"
    assert stat.S_IMODE(kept.folder.stat().st_mode) == 0o700
    tag = (kept.folder.parent / "CACHEDIR.TAG").read_text()
    assert tag.startswith("Signature: 8a477f597d28d172789f06886806bc55")


@pytest.mark.parametrize("name", ["config", "info/attributes", "objects/info/alternates"])
def test_settings_that_were_tampered_with_are_restored(project: GitBox, name: str) -> None:
    kept = opened(project)
    path = kept.git_dir / name
    good = path.read_bytes()
    path.write_bytes(b"[core]\n\tfsmonitor = touch /tmp/owned\n")
    opened(project)
    assert path.read_bytes() == good


def test_tags_follow_the_users(project: GitBox) -> None:
    project.git("tag", "v1")
    kept = opened(project)
    store.tidy(kept)
    assert store_git(kept, "describe", "--tags", project.head) == "v1"
    project.git("tag", "-d", "v1")
    project.git("tag", "-a", "-m", "two", "v2")
    store.tidy(kept)
    assert store_git(kept, "tag", "-l") == "v2"
    project.git("pack-refs", "--all")
    store.tidy(kept)
    assert store_git(kept, "tag", "-l") == "v2"


def test_a_half_made_store_is_made_anew(project: GitBox) -> None:
    kept = opened(project)
    (kept.git_dir / "HEAD").unlink()
    assert store_git(opened(project), "cat-file", "-t", project.head) == "commit"


def test_two_repositories_have_two_stores(tmp_path: Path, project: GitBox) -> None:
    other = GitBox(tmp_path / "other" / "repo")
    other.commit({"a": "a"})
    assert opened(project).folder != opened(other).folder


def test_a_linked_worktree_shares_the_store(tmp_path: Path, project: GitBox) -> None:
    project.git("worktree", "add", "-q", str(tmp_path / "linked"))
    linked = git.find_repository(tmp_path / "linked")
    assert linked.id == git.find_repository(project.top).id
    assert linked.top == tmp_path / "linked"


def test_passed_trees_are_forgotten_beyond_the_limit(
    project: GitBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "PASSED_KEPT", 2)
    kept = opened(project)
    commit, tree = git.resolve_commit(kept.repository, "HEAD")
    names = [f"{digit}" * 40 for digit in "123"]
    for number, name in enumerate(names):
        store.keep_passed(kept, type(tree)(name), commit)
        path = kept.git_dir / "refs" / "passed" / name
        os.utime(path, (number, number))
    store.keep_passed(kept, tree, commit)
    assert {path.name for path in (kept.git_dir / "refs" / "passed").iterdir()} == {names[2], tree}


def test_clear_removes_what_is_not_in_use(project: GitBox) -> None:
    kept = opened(project)
    held = lock.try_lock(kept.folder / "promotion.lock")
    assert held is not None
    with pytest.raises(SandboxBusyError, match="in use"):
        store.clear(repository=kept.repository)
    assert kept.git_dir.exists()
    os.close(held)
    assert store.clear(repository=kept.repository) > 0
    assert not kept.folder.exists()
    assert store.clear(repository=kept.repository) == 0


def test_a_shallow_clone_can_be_described(tmp_path: Path, project: GitBox) -> None:
    project.commit({"b": "b"})
    subprocess.run(
        ["git", "clone", "-q", "--depth=1", f"file://{project.top}", str(tmp_path / "shallow")],
        check=True,
    )
    kept = store.open_store(git.find_repository(tmp_path / "shallow"))
    assert store_git(kept, "rev-list", "--count", project.head) == "1"
