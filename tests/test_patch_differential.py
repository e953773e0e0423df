"""Our answer beside git's: generated diffs in batches, and the history of this repository."""

from __future__ import annotations

import subprocess
from pathlib import Path

import differential
import pytest
from differential import Tree, tree_id
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox_engine.patch import File, apply_patch, parse_patch

TOP = Path(__file__).parent.parent
COMMITS = 12


def test_generated_diffs_mean_what_they_mean_to_git(tmp_path: Path) -> None:
    result = differential.run(differential.generate(300), tmp_path)
    assert not result.disagreements
    assert result.counts["same tree"] > 75
    assert result.counts["both refuse"] > 20
    assert result.counts["beyond git"] > 5


def git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=TOP, capture_output=True, check=True).stdout


def commits() -> list[str]:
    """Return commits of this repository that have one parent, newest first."""
    try:
        return (
            git("rev-list", "--no-merges", "--min-parents=1", "-n", str(COMMITS), "HEAD")
            .decode()
            .split()
        )
    except (OSError, subprocess.CalledProcessError):
        return []


def tree_of(revision: str) -> Tree:
    """Return every file of `revision`, read by one git process."""
    entries = git("ls-tree", "-r", "-z", revision).split(b"\0")[:-1]
    heads = [entry.partition(b"\t") for entry in entries]
    ids = b"".join(head.split()[2] + b"\n" for head, _, _ in heads)
    out = subprocess.run(
        ["git", "cat-file", "--batch"], cwd=TOP, input=ids, capture_output=True, check=True
    ).stdout
    tree: Tree = {}
    for head, _, path in heads:
        line, _, out = out.partition(b"\n")
        size = int(line.split()[2])
        tree[path] = File(out[:size], int(head.split()[0], 8))
        out = out[size + 1 :]
    return tree


@pytest.mark.parametrize("form", ["diff", "diff-binary", "mbox"])
def test_the_history_of_this_repository_applies(form: str) -> None:
    found = commits()
    if not found:
        pytest.skip("there is no history here")
    for commit in found:
        before = tree_of(f"{commit}~")
        if form == "mbox":
            text, name = git("format-patch", "--stdout", "-1", commit), "mbox"
        else:
            flags = ("--binary", "-M", "-C") if form == "diff-binary" else ("--binary",)
            text, name = git("diff", *flags, f"{commit}~", commit), "unified"
        if not text:
            continue
        changes = apply_patch(parse_patch(text, format=name), before.get)
        after = {**before, **changes.files}
        made = {path: file for path, file in after.items() if file is not None}
        assert tree_id(made) == git("rev-parse", f"{commit}^{{tree}}").decode().strip()
        assert not any(report.is_beyond_git for report in changes.reports)


@settings(max_examples=12, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.binary(max_size=200), st.binary(max_size=200)), max_size=8),
    flags=st.sampled_from([("--binary",), ("--text",), ("--text", "-U1"), ("--binary", "-M")]),
)
def test_the_diff_of_any_bytes_makes_the_new_of_the_old(
    pairs: list[tuple[bytes, bytes]],
    flags: tuple[str, ...],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    box = differential.Git(tmp_path_factory.mktemp("bytes"))
    trees = [({b"f": File(old)}, {b"f": File(new)}) for old, new in pairs if old != new]
    box.write(tree for pair in trees for tree in pair)
    ids = [(tree_id(old), tree_id(new)) for old, new in trees]
    for (old, new), patch in zip(trees, box.diffs(ids, flags), strict=True):
        changes = apply_patch(parse_patch(patch, format="unified"), old.get)
        assert {**old, **changes.files} == new
