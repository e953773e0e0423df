"""A change on a base that has moved, against what git itself makes of the two."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable

import pytest
from conftest import GitBox
from test_receipt import RECEIPT

from sandbox_engine import git, tree
from sandbox_engine.errors import GitError, StaleBaseError
from sandbox_engine.merge import merge_change
from sandbox_engine.receipt import Receipt
from sandbox_engine.store import Store
from sandbox_engine.tree import CandidateTree
from sandbox_engine.verdict import CommitId

LINES = "".join(f"line {n}\n" for n in range(20))
FIRST = LINES.replace("line 0\n", "first\n")
LAST = LINES.replace("line 19\n", "last\n")


def write(**files: str | bytes | None) -> Callable[[GitBox], None]:
    return lambda box: box.write({name.replace("__", "/"): text for name, text in files.items()})


def link(box: GitBox) -> None:
    (box.top / "text").unlink()
    (box.top / "text").symlink_to("/etc/passwd")


def strange(name: bytes) -> Callable[[GitBox], None]:
    return lambda box: box.write({os.fsdecode(name): "x\n"})


def both(box: GitBox, ours: Callable[[GitBox], None], theirs: Callable[[GitBox], None]) -> Receipt:
    """Commit `ours` on `main`, and make a receipt of `theirs` on the same base."""
    box.commit({"text": LINES, "folder/a": "a\n", "folder/b": "b\n"})
    base = box.head
    trees = [box.git("rev-parse", "HEAD^{tree}")]
    box.git("checkout", "-q", "-b", "theirs")
    theirs(box)
    box.commit({})
    trees.append(box.git("rev-parse", "HEAD^{tree}"))
    box.git("checkout", "-q", "-f", "main")
    ours(box)
    box.commit({})
    return dataclasses.replace(RECEIPT, base=base, base_tree=trees[0], tree=trees[1])


def merged(box: GitBox, kept: Store, receipt: Receipt) -> CandidateTree:
    before = box.snapshot()
    try:
        return merge_change(kept, receipt, "main", CommitId(box.head))
    finally:
        assert box.snapshot() == before


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (write(text=FIRST), write(text=LAST)),
        (write(text=FIRST), write(new__deep__file="n\n")),
        (write(text=None, renamed=FIRST), write(text=LAST)),
        (write(text=FIRST), write(folder__a=None, folder__b=None)),
        (write(folder__a=None), write(folder__b=None)),
        (link, write(folder__a="A\n")),
        (lambda box: (box.top / "text").chmod(0o755), write(text=LAST)),
        (write(text=b"\0\xff"), write(folder__a=b"\0\xfe")),
        (strange(b"n\xff"), strange(b"d\xfe/n")),
        (strange(b"-rf\n\x1b"), write(text=LAST)),
        (write(text=LAST), write(text=LAST, folder__a="A\n")),
    ],
)
def test_a_clean_merge_is_the_one_that_git_makes(
    project: GitBox,
    kept: Store,
    ours: Callable[[GitBox], None],
    theirs: Callable[[GitBox], None],
) -> None:
    receipt = both(project, ours, theirs)
    candidate = merged(project, kept, receipt)
    tip = project.head
    project.git("cherry-pick", "theirs")
    assert candidate.id == project.git("rev-parse", "HEAD^{tree}")
    assert (candidate.base, candidate.base_tree) == git.resolve_commit(kept.repository, tip)
    paths = project.git("diff", "--name-only", "--no-renames", "-z", "HEAD~1").split("\0")
    assert {os.fsdecode(path) for path in candidate.after} == set(filter(None, paths))
    # What a sandbox holds is written from the same files.
    tree.write_tree(kept, candidate)


@pytest.mark.parametrize(
    ("ours", "theirs", "paths"),
    [
        (write(text=FIRST), write(text=FIRST.replace("first", "other")), "`text`"),
        (write(text=None), write(text=LAST), "`text`"),
        (write(text=FIRST), write(text=None), "`text`"),
        (link, write(text=LAST), "`text`"),
        (write(text=b"\0a"), write(text=b"\0b"), "`text`"),
        (write(new="1\n"), write(new="2\n"), "`new`"),
        (write(new="1\n"), write(new__file="2\n"), "`new`"),
        (strange(b"n\xff"), lambda box: box.write({os.fsdecode(b"n\xff"): "y\n"}), r"`n\xff`"),
        (
            write(**{name: "1\n" for name in "stuvwxyz"}),
            write(**{name: "2\n" for name in "stuvwxyz"}),
            "`s`, `t`, `u`, `v`, `w` and 3 more",
        ),
    ],
)
def test_a_conflict_is_no_merge_and_names_the_paths(
    project: GitBox,
    kept: Store,
    ours: Callable[[GitBox], None],
    theirs: Callable[[GitBox], None],
    paths: str,
) -> None:
    receipt = both(project, ours, theirs)
    with pytest.raises(StaleBaseError) as caught:
        merged(project, kept, receipt)
    assert caught.value.problem == (
        f"`main` moved to {project.head[:12]}, and the change conflicts with it in {paths}"
    )


@pytest.mark.parametrize("theirs", [write(text=FIRST), write()])
def test_a_change_that_is_there_is_no_candidate(
    project: GitBox, kept: Store, theirs: Callable[[GitBox], None]
) -> None:
    receipt = both(project, write(text=FIRST, more="m\n"), theirs)
    with pytest.raises(StaleBaseError, match="has the change already"):
        merged(project, kept, receipt)


def test_a_submodule_of_the_users_stays(project: GitBox, kept: Store) -> None:
    def ours(box: GitBox) -> None:
        entry = f"160000,{box.head},inner"
        box.git("update-index", "--add", "--cacheinfo", entry)
        box.git("commit", "-q", "-m", "inner")

    project.commit({"text": LINES})
    receipt = both(project, write(), write(text=LAST))
    ours(project)
    candidate = merged(project, kept, receipt)
    assert list(candidate.after) == [b"text"]
    assert tree.has_path(kept, candidate.id, b"inner")


def test_a_base_that_is_gone_is_told(project: GitBox, kept: Store) -> None:
    receipt = both(project, write(text=FIRST), write(text=LAST))
    with pytest.raises(GitError, match="cannot be merged with `main`"):
        merged(project, kept, dataclasses.replace(receipt, base_tree="0" * 39 + "1"))
