"""Layers on disk against plain checkouts of git, and what a candidate has over them."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import GitBox
from layering import candidate_of, checked_out, listed

from sandbox_engine import git, layers, lock, store
from sandbox_engine.containment import Layer
from sandbox_engine.git_index import joined
from sandbox_engine.layers import (
    KEPT,
    Base,
    candidate_layer,
    git_folder,
    held_base,
    layers_folder,
    object_folders,
)
from sandbox_engine.store import Store
from sandbox_engine.verdict import CommitId

MANY = 100
"""More files than a layer may differ in from the base that it serves."""


@contextlib.contextmanager
def base_for(kept: Store, revision: str) -> Iterator[Base]:
    with held_base(kept, candidate_of(kept, revision, revision)) as base:
        yield base


def rewritten(box: GitBox, word: str) -> str:
    """Commit a tree that is far from every other one; return the commit."""
    return box.commit({f"many/{number}": f"{word} {number}\n" for number in range(MANY)})


def states(folder: Path) -> dict[str, tuple[int, int]]:
    """Return what tells whether a file was written again; numbers of inodes are used again."""
    files = ((path.name, path.stat()) for path in folder.rglob("*") if path.is_file())
    return {name: (status.st_ino, status.st_ctime_ns) for name, status in files}


def layer_folders(kept: Store) -> list[str]:
    return sorted(name for name in os.listdir(layers_folder(kept)) if name.isdigit())


def tree_of(box: GitBox, revision: str) -> str:
    return box.git("rev-parse", f"{revision}^{{tree}}")


@pytest.mark.usefixtures("untouched")
def test_a_layer_holds_exactly_the_base(project: GitBox, kept: Store) -> None:
    with base_for(kept, "HEAD") as base:
        assert base.tree == tree_of(project, "HEAD")
        assert listed(base.files) == listed(checked_out(project, "HEAD"))
        assert not (base.files / ".git").exists()


def test_a_near_base_shares_the_layer_and_leaves_it_as_it_is(project: GitBox, kept: Store) -> None:
    first = project.head
    near = project.commit({"calc.py": "near = 1\n", "new/file.py": "x = 1\n"})
    with base_for(kept, first) as base, base_for(kept, near) as other:
        assert (other.folder, other.tree) == (base.folder, tree_of(project, first))
        assert listed(base.files) == listed(checked_out(project, first))
    assert layer_folders(kept) == ["0"]


def test_of_two_layers_the_nearer_one_serves(project: GitBox, kept: Store) -> None:
    one = project.head
    two = project.commit({f"some/{number}": "x\n" for number in range(70)})
    between = project.commit({f"some/{number}": "y\n" for number in range(10)})
    with base_for(kept, one), base_for(kept, two) as far:
        pass
    with base_for(kept, between) as base:
        assert base.folder == far.folder


def test_a_base_that_moved_far_takes_a_layer_along(project: GitBox, kept: Store) -> None:
    commits = [rewritten(project, str(number)) for number in range(KEPT + 2)]
    project.commit({"calc.py": None, "tests/test_calc.py": None})
    seen: dict[str, tuple[int, int]] = {}
    for commit in commits:
        with base_for(kept, commit) as base:
            assert base.tree == tree_of(project, commit)
            assert listed(base.files) == listed(checked_out(project, commit))
            number, now = base.folder.name, states(base.files)
            # What both trees have alike was not written again.
            assert seen.setdefault(number, now["calc.py"]) == now["calc.py"]
    assert layer_folders(kept) == [str(number) for number in range(KEPT)]


def test_moving_takes_away_what_the_new_base_has_not(
    project: GitBox, kept: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "KEPT", 1)
    rewritten(project, "old")
    project.commit({"a/deep/er/file": "x", "kind": "file", "folder/f": "y", "mode": "z"})
    commits = [project.head]
    project.git("rm", "-rq", "a", "kind", "folder")
    rewritten(project, "new")
    project.write({"kind/now": "folder", "folder": "now a file"})
    os.chmod(project.top / "mode", 0o755)
    os.symlink("mode", project.top / "link")
    commits.append(project.commit({}))
    for commit in (*commits, *commits):
        # With one place, every base has to take the other's.
        with base_for(kept, commit) as base:
            assert listed(base.files) == listed(checked_out(project, commit))
    assert layer_folders(kept) == ["0"]


def test_as_many_layers_are_made_as_are_needed_at_once(project: GitBox, kept: Store) -> None:
    commits = [rewritten(project, str(number)) for number in range(6)]
    with contextlib.ExitStack() as held:
        bases = [held.enter_context(base_for(kept, commit)) for commit in commits]
        assert len({base.folder for base in bases}) == 6
        for base, commit in zip(bases, commits, strict=True):
            assert base.tree == tree_of(project, commit)
    # Those that are there are all moved before another one is made.
    with base_for(kept, rewritten(project, "more")):
        assert len(layer_folders(kept)) == 6


def test_a_layer_in_use_is_never_moved(project: GitBox, kept: Store) -> None:
    first = rewritten(project, "first")
    with base_for(kept, first) as base:
        before = states(base.files)
        for number in range(KEPT + 1):
            with base_for(kept, rewritten(project, str(number))) as other:
                assert other.folder != base.folder
        assert states(base.files) == before
        assert listed(base.files) == listed(checked_out(project, first))
        assert lock.try_lock(base.folder.with_suffix(".lock")) is None


@pytest.mark.parametrize("was_known", [True, False])
def test_a_layer_of_a_base_that_was_collected_is_made_anew(
    project: GitBox, kept: Store, was_known: bool
) -> None:
    old = project.head
    lost = rewritten(project, "lost")
    with base_for(kept, lost):
        pass
    project.git("reset", "-q", "--hard", old)
    new = rewritten(project, "new")
    project.git("reflog", "expire", "--expire=now", "--all")
    project.git("gc", "-q", "--prune=now")
    opened = kept if was_known else store.open_store(kept.repository)
    with base_for(opened, new) as base:
        assert listed(base.files) == listed(checked_out(project, new))


@pytest.mark.parametrize("left", ["index.lock", "index", "files"])
def test_a_layer_that_was_left_half_made_is_made_anew(
    project: GitBox, kept: Store, left: str
) -> None:
    with base_for(kept, "HEAD") as base:
        folder = base.folder
    # The label is written last.
    (folder / "label").unlink()
    if left == "files":
        (folder / "files" / "calc.py").write_text("half")
        (folder / "files" / "more").write_text("too much")
    else:
        (folder / left).write_bytes(b"torn")
    with base_for(kept, "HEAD") as base:
        assert base.folder == folder
        assert listed(base.files) == listed(checked_out(project, "HEAD"))


def test_a_lock_that_a_killed_git_left_is_no_hindrance(project: GitBox, kept: Store) -> None:
    with base_for(kept, rewritten(project, "a")) as base:
        (base.folder / "index.lock").touch()
    moved = rewritten(project, "b")
    with base_for(kept, moved) as base:
        assert base.tree == tree_of(project, moved)


def test_a_base_finds_a_place_beside_those_of_who_has_more_sandboxes(
    project: GitBox, kept: Store
) -> None:
    commits = [rewritten(project, str(number)) for number in range(3)]
    with (
        base_for(kept, commits[0]),
        base_for(kept, commits[1]),
        base_for(kept, commits[2]) as base,
    ):
        assert base.tree == tree_of(project, commits[2])


@pytest.mark.parametrize("is_far", [False, True])
def test_attributes_that_the_base_has_changed_hold_for_old_files_too(
    project: GitBox, kept: Store, is_far: bool
) -> None:
    with base_for(kept, project.commit({"old.txt": "one\ntwo\n"})):
        pass
    if is_far:
        rewritten(project, "far")
    wanted = project.commit({".gitattributes": "*.txt text eol=crlf\n"})
    candidate = candidate_of(kept, wanted, wanted)
    with held_base(kept, candidate) as base:
        layer = candidate_layer(kept, base, candidate, {})
        contents = {path: content for path, _, content in layer.files}
        seen = contents.get(b"old.txt", (base.files / "old.txt").read_bytes())
    assert seen == (checked_out(project, wanted) / "old.txt").read_bytes()


def layer_of(kept: Store, base: str, wanted: str, layer_base: str | None = None) -> Layer:
    """Return what `wanted` has over the layer of `layer_base`, which is that of `base` if None."""
    with base_for(kept, layer_base or base), base_for(kept, base) as held:
        return candidate_layer(kept, held, candidate_of(kept, base, wanted), {})


def test_what_a_candidate_has_over_its_base(project: GitBox, kept: Store) -> None:
    base = project.commit({"gone/a": "1", "gone/b/c": "2", "part/x": "3", "part/y": "4", "f": "5"})
    project.git("rm", "-rq", "gone", "part/x", "f")
    project.write({"calc.py": "edited = 1\n", "new/deep.py": "n = 1\n", "f/in": "6"})
    os.chmod(project.top / "tests" / "test_calc.py", 0o755)
    os.symlink("calc.py", project.top / "link")
    wanted = project.commit({})
    layer = layer_of(kept, base, wanted)
    files = {path: (mode, content) for path, mode, content in layer.files}
    tests = project.files()["tests/test_calc.py"]
    assert files == {
        b"calc.py": (stat.S_IFREG | 0o644, b"edited = 1\n"),
        b"new/deep.py": (stat.S_IFREG | 0o644, b"n = 1\n"),
        b"tests/test_calc.py": (stat.S_IFREG | 0o755, tests),
        b"link": (stat.S_IFLNK, b"calc.py"),
        b"f/in": (stat.S_IFREG | 0o644, b"6"),
    }
    # A folder of which nothing is left is hidden as a whole.
    assert layer.gone == (b"gone", b"part/x")


def test_the_difference_of_an_older_layer_is_made_up_for(project: GitBox, kept: Store) -> None:
    older = project.commit({"old.py": "o = 1\n"})
    project.git("rm", "-q", "old.py")
    base = project.commit({"added.py": "a = 1\n"})
    wanted = project.commit({"calc.py": "c = 1\n"})
    layer = layer_of(kept, base, wanted, layer_base=older)
    assert {path: content for path, _, content in layer.files} == {
        b"added.py": b"a = 1\n",
        b"calc.py": b"c = 1\n",
    }
    assert layer.gone == (b"old.py",)


def test_submodules_are_empty_folders(project: GitBox, kept: Store) -> None:
    base = project.head
    project.git("update-index", "--add", "--cacheinfo", f"160000,{base},sub")
    project.git("commit", "-q", "-m", "submodule")
    layer = layer_of(kept, base, project.head)
    assert layer.files == ((b"sub", stat.S_IFDIR | 0o755, b""),)
    # The layer is that of the base without it, so there is nothing to hide.
    assert layer_of(kept, project.head, base).gone == ()


def test_the_index_says_what_the_tree_has(project: GitBox, kept: Store) -> None:
    base = project.head
    project.git("rm", "-q", "tests/test_calc.py")
    project.git("update-index", "--add", "--cacheinfo", f"160000,{base},sub")
    project.write({"tests": "a file\n", "z/y": "z\n"})
    project.git("add", "tests", "z")
    project.git("commit", "-q", "-m", "all kinds")
    with base_for(kept, base) as held:
        layer = candidate_layer(kept, held, candidate_of(kept, base, project.head), {})
        content = joined(held.index.read_bytes(), layer.index)
    index = project.top.parent / "made.index"
    index.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_INDEX_FILE", str(index))
        assert project.git("write-tree") == tree_of(project, "HEAD")


CONVERTED = {
    ".gitattributes": "*.txt text eol=crlf\n*.id ident\n*.wide working-tree-encoding=UTF-16LE\n",
    "sub/.gitattributes": "*.dat text eol=crlf\n",
}


def test_attributes_decide_what_a_changed_file_holds(project: GitBox, kept: Store) -> None:
    wide = "h\u00e9llo\n".encode("utf-16-le")
    base = project.commit({**CONVERTED, "a.txt": "a\n", "plain": "p\n", "b.wide": wide})
    wanted = project.commit(
        {
            "a.txt": "a\nb\n",
            "new.txt": "n\nm\n",
            "v.id": "$Id$\n",
            "b.wide": wide * 2,
            "sub/x.dat": "x\ny\n",
            "sub/x.bin": "x\ny\n",
            "plain": "p\nq\n",
        }
    )
    files = {path: content for path, _, content in layer_of(kept, base, wanted).files}
    plain = checked_out(project, wanted)
    assert files[b"a.txt"] == b"a\r\nb\r\n"
    assert files[b"sub/x.dat"] == b"x\r\ny\r\n"
    assert files[b"b.wide"] == wide * 2
    assert len(files[b"v.id"]) > 40
    assert files == {path: (plain / os.fsdecode(path)).read_bytes() for path in files}


def test_attributes_of_a_subfolder_alone_are_followed(project: GitBox, kept: Store) -> None:
    base = project.commit({"sub/.gitattributes": "*.dat text eol=crlf\n"})
    wanted = project.commit({"sub/deep/er/x.dat": "x\ny\n", "x.dat": "x\n"})
    files = {path: content for path, _, content in layer_of(kept, base, wanted).files}
    assert files == {b"sub/deep/er/x.dat": b"x\r\ny\r\n", b"x.dat": b"x\n"}


def test_filters_never_run(project: GitBox, kept: Store, tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    base = project.commit({".gitattributes": "*.py filter=evil\n*.txt text eol=crlf\n"})
    wanted = project.commit({"calc.py": "x = 1\n", "a.txt": "a\n"})
    project.git("config", "filter.evil.smudge", f"touch {witness}; cat")
    layer = layer_of(kept, base, wanted)
    assert (b"a.txt", stat.S_IFREG | 0o644, b"a\r\n") in layer.files
    assert not witness.exists()


def test_the_git_folder_has_tags_and_borrows_objects(project: GitBox, kept: Store) -> None:
    project.git("tag", "v1")
    store.tidy(kept)
    commit = CommitId(project.head)
    files = git_folder(kept, commit, "candidate/3", ["/one", "/two"])
    assert files[b"HEAD"] == b"ref: refs/heads/candidate/3\n"
    assert files[b"refs/heads/candidate/3"] == f"{commit}\n".encode()
    assert files[b"objects/info/alternates"] == b"/one\n/two\n"
    assert b"refs/tags/v1\n" in files[b"packed-refs"]
    assert b"shallow" not in files


def test_objects_are_found_through_any_number_of_repositories(
    project: GitBox, tmp_path: Path
) -> None:
    for old, new in (("repo", "one"), ("one", "two")):
        command = ["git", "clone", "-q", "--shared", str(tmp_path / old), str(tmp_path / new)]
        subprocess.run(command, check=True)
    # One that names itself, one that is not there, and one relative to its own folder.
    alternates = tmp_path / "one" / ".git" / "objects" / "info" / "alternates"
    (tmp_path / "side").mkdir()
    alternates.write_text(
        f"# a comment\n{alternates.read_text()}{tmp_path}/gone\n../../../side\n"
        f"{alternates.parent.parent}\n"
    )
    kept = store.open_store(git.find_repository(tmp_path / "two"))
    wanted = [
        kept.git_dir / "objects",
        *(tmp_path / name / ".git" / "objects" for name in ("two", "one", "repo")),
        tmp_path / "side",
    ]
    assert sorted(object_folders(kept)) == sorted(str(path.resolve()) for path in wanted)


def test_the_empty_tree_can_be_a_base_and_a_candidate(box: GitBox) -> None:
    box.git("commit", "-q", "--allow-empty", "-m", "nothing")
    empty = box.head
    full = box.commit({"a/b": "1"})
    kept = store.open_store(git.find_repository(box.top))
    assert layer_of(kept, empty, full).files == ((b"a/b", stat.S_IFREG | 0o644, b"1"),)
    # The layer is that of the empty tree, so there is nothing to hide.
    assert layer_of(kept, full, empty).gone == ()


def test_a_path_that_was_changed_more_than_once_counts_as_the_candidate_has_it(
    project: GitBox, kept: Store
) -> None:
    older = project.head
    base = project.commit({"calc.py": "middle = 1\n"})
    wanted = project.commit({"calc.py": "last = 1\n"})
    layer = layer_of(kept, base, wanted, layer_base=older)
    assert layer.files == ((b"calc.py", stat.S_IFREG | 0o644, b"last = 1\n"),)
    # Back to what the layer has: nothing differs, and nothing need be written.
    back = layer_of(kept, base, older, layer_base=older)
    assert {content for _, _, content in back.files} <= {project.files(older)["calc.py"]}
    assert back.gone == ()


def test_the_number_that_counts_as_near_is_kept_to(project: GitBox, kept: Store) -> None:
    project.commit({f"n/{number}": "1\n" for number in range(70)})
    first = project.head
    near = project.commit({f"n/{number}": "2\n" for number in range(layers._NEAR_PATHS)})
    far = project.commit({f"n/{layers._NEAR_PATHS}": "2\n"})
    with base_for(kept, first) as base, base_for(kept, near) as same, base_for(kept, far) as own:
        assert same.folder == base.folder
        assert own.folder != base.folder
