"""An index that is spliced or read, against what git makes and says of the same."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from conftest import GitBox
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandbox_engine import git_index
from sandbox_engine.git_index import Entry, find_offsets, joined, read_known, splice

CONTENTS = (b"", b"one\n", b"another\n")
IDS = tuple(
    hashlib.sha1(b"blob %d\0%s" % (len(content), content), usedforsecurity=False).hexdigest()
    for content in CONTENTS
)
MODES = (0o100644, 0o100755, 0o120000)
TIME_S = 1_700_000_000

# Names of which one begins with another, and what sorts before and after `/`.
PARTS = [b"a", b"a.b", b"a-", b"a0", b"ab", b"b", b"\xff", b"\xc3\xa9", b" ", b"a\nb"]
PATHS = st.lists(st.sampled_from(PARTS), min_size=1, max_size=3).map(b"/".join)
ENTRIES = st.builds(
    lambda mode, number: Entry(mode, IDS[number], len(CONTENTS[number]), TIME_S),
    st.sampled_from(MODES),
    st.integers(0, len(IDS) - 1),
)


def without_conflicts(files: Mapping[bytes, Entry]) -> dict[bytes, Entry]:
    """Return `files` without those that lie in another one, as no tree can have both."""

    def is_in_a_file(path: bytes) -> bool:
        parts = path.split(b"/")
        return any(b"/".join(parts[:count]) in files for count in range(1, len(parts)))

    return {path: entry for path, entry in files.items() if not is_in_a_file(path)}


FILES = st.dictionaries(PATHS, ENTRIES, max_size=12).map(without_conflicts)


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> GitBox:
    """A repository with the objects that the entries name."""
    box = GitBox(tmp_path_factory.mktemp("objects") / "repo")
    for content in CONTENTS:
        box.git("hash-object", "-w", "--stdin", text=content)
    box.git("config", "index.version", "2")
    return box


class Index:
    """An index in a file of its own, made and read by git."""

    def __init__(self, box: GitBox, content: bytes = b"") -> None:
        self.box = box
        descriptor, name = tempfile.mkstemp(dir=box.top.parent)
        os.close(descriptor)
        self.path = Path(name)
        self.path.unlink()
        if content:
            self.path.write_bytes(content)

    def git(self, *arguments: str, text: bytes = b"") -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("GIT_INDEX_FILE", str(self.path))
            return self.box.git(*arguments, text=text)

    def update(self, changes: Mapping[bytes, Entry | None]) -> Index:
        # What goes has to go first, as for a file that becomes a folder.
        for wanted in (False, True):
            lines = [
                b"%o %s\t%s\0" % (entry.mode, entry.id.encode(), path)
                if entry
                else b"0 %s\t%s\0" % (b"0" * 40, path)
                for path, entry in changes.items()
                if (entry is not None) is wanted
            ]
            self.git("update-index", "-z", "--index-info", text=b"".join(lines))
        if not self.path.exists():
            self.git("read-tree", "--empty")
        return self

    @property
    def content(self) -> bytes:
        return self.path.read_bytes()

    def listed(self) -> str:
        return self.git("ls-files", "-s", "-z")


def spliced(content: bytes, changes: Mapping[bytes, Entry | None]) -> bytes:
    return joined(content, splice(content, find_offsets(content), changes))


def agrees(box: GitBox, before: Mapping[bytes, Entry], after: Mapping[bytes, Entry]) -> bytes:
    """Assert that git and `splice` make the same of `before`; return the index of `splice`."""
    changes = {
        path: after.get(path)
        for path in before.keys() | after.keys()
        if before.get(path) != after.get(path)
    }
    old = Index(box).update(before).content
    ours = Index(box, spliced(old, changes))
    theirs = Index(box, old).update(changes)
    assert ours.listed() == theirs.listed()
    # It is the one command that reads the checksum and the order of an index.
    ours.git("fsck")
    assert ours.git("write-tree") == theirs.git("write-tree")
    return ours.content


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(before=FILES, after=FILES)
def test_it_makes_what_git_makes(
    objects: GitBox, before: dict[bytes, Entry], after: dict[bytes, Entry]
) -> None:
    agrees(objects, before, after)


ONE = Entry(0o100644, IDS[1], 4, TIME_S)
OTHER = Entry(0o100755, IDS[2], 8, TIME_S)
LONG = b"/".join([b"d" * 200] * 21)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([], []),
        ([], [b"a"]),
        ([b"a"], []),
        ([b"a", b"b", b"c"], [b"b"]),
        ([b"a"], [b"a/b"]),
        ([b"a/b", b"a/c"], [b"a"]),
        ([b"a", b"a.b", b"a0"], [b"a/b", b"a.b", b"a0"]),
        ([b"a"], [LONG]),
        ([LONG, LONG + b"/z"], [LONG + b"/y", LONG + b"0", b"z"]),
        # As long as the field for the length of a name can say, and one more and less.
        ([b"x"], [(LONG + b"/")[:length] + b"e" for length in (4093, 4094, 4095, 4096)]),
        ([b"n" * length for length in range(1, 20)], [b"n" * length for length in range(9, 30)]),
    ],
)
def test_edges(objects: GitBox, before: list[bytes], after: list[bytes]) -> None:
    agrees(objects, without_conflicts(dict.fromkeys(before, ONE)), dict.fromkeys(after, OTHER))


def test_nothing_to_change_gives_the_same_bytes(objects: GitBox) -> None:
    content = Index(objects).update({b"a": ONE, b"b/c": OTHER}).content
    assert spliced(content, {}) == content
    assert spliced(content, {b"gone": None}) == content


def test_what_is_not_changed_is_not_copied(objects: GitBox) -> None:
    files = {b"f%04d" % number: ONE for number in range(2000)}
    content = Index(objects).update(files).content
    parts = splice(content, find_offsets(content), {b"f1000": OTHER})
    assert sum(len(part) for part in parts if isinstance(part, bytes)) < 200
    assert len(parts) < 6


def test_extensions_are_left_out(objects: GitBox) -> None:
    index = Index(objects).update({b"a/b": ONE, b"c": ONE})
    tree = index.git("write-tree")
    index.git("read-tree", tree)
    assert b"TREE" in index.content
    content = spliced(index.content, {b"c": OTHER})
    assert b"TREE" not in content
    # With a cached tree that is kept, git would write the old one.
    assert Index(objects, content).git("write-tree") != tree


def test_git_takes_times_and_sizes_as_told(objects: GitBox) -> None:
    content = spliced(
        Index(objects).update({}).content, {b"a": Entry(0o100644, IDS[1], 2**32 + 5, TIME_S)}
    )
    said = Index(objects, content).git("ls-files", "--debug")
    assert f"mtime: {TIME_S}:0" in said
    # Git keeps a size modulo 2**32.
    assert "size: 5\t" in said


@pytest.mark.parametrize("number", [3, 4])
def test_another_version_is_refused(objects: GitBox, number: int) -> None:
    index = Index(objects).update({b"a": ONE})
    index.git("update-index", "--index-version", "4")
    if number == 3:
        index.git("update-index", "--index-version", "2")
        index.git("update-index", "--skip-worktree", "a")
    assert index.content[7] == number
    with pytest.raises(ValueError, match=f"version 2.* {number}"):
        find_offsets(index.content)


def test_what_is_no_index_is_refused() -> None:
    with pytest.raises(ValueError):
        find_offsets(b"PACK" + bytes(8) + bytes(20))


def test_git_notices_an_index_that_is_spliced_wrongly(
    objects: GitBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(git_index, "_position", lambda index, offsets, path: 0)
    with pytest.raises(AssertionError):
        agrees(objects, {b"a": ONE, b"b": ONE}, {b"a": ONE, b"b": ONE, b"c": ONE})


def index_of(box: GitBox) -> bytes:
    return (box.top / ".git" / "index").read_bytes()


def git_says(box: GitBox) -> dict[bytes, bytes]:
    """Return path and id of each entry, as git lists them."""
    lines = box.git("ls-files", "--stage", "-z").split("\0")
    pairs = (line.split("\t", 1) for line in lines if line)
    return {os.fsencode(path): bytes.fromhex(fields.split()[1]) for fields, path in pairs}


@pytest.mark.parametrize("version", ["2", "3", "4"])
def test_what_git_knows_is_read_from_every_version(box: GitBox, version: str) -> None:
    box.commit({f"{'deep/' * (number % 4)}name{number}.py": str(number) for number in range(200)})
    box.git("update-index", "--index-version", version)
    wanted = git_says(box)
    if version == "3":
        # Git writes this version only for entries that need it.
        box.write({"new.py": "x"})
        box.git("add", "--intent-to-add", "new.py")
    assert index_of(box)[7] == int(version)
    found = read_known(index_of(box))
    assert {path: entry.id for path, entry in found.items()} == wanted
    for path, entry in found.items():
        status = os.lstat(os.path.join(os.fsencode(box.top), path))
        assert (entry.size, entry.mtime_ns, entry.ctime_ns, entry.inode) == (
            *(status.st_size, status.st_mtime_ns, status.st_ctime_ns),
            status.st_ino & 0xFFFFFFFF,
        )


def test_paths_that_are_not_merged_are_not_known(box: GitBox) -> None:
    box.commit({"a.py": "base", "b.py": "x"})
    blob = box.git("rev-parse", "HEAD:a.py")
    lines = "".join(f"100644 {blob} {stage}\ta.py\n" for stage in (1, 2, 3))
    box.git("update-index", "--index-info", text=f"0 {'0' * 40}\ta.py\n{lines}")
    assert set(read_known(index_of(box))) == {b"b.py"}


def test_an_index_that_is_torn_or_split_is_refused(box: GitBox) -> None:
    box.commit({f"name{number}.py": "x" for number in range(5)})
    whole = index_of(box)
    known = read_known(whole)
    entries_end = whole.index(b"name4.py")
    for end in range(entries_end):
        with pytest.raises(ValueError):
            read_known(whole[:end])
    for content in (b"", b"DIRC", b"XXXX" + whole[4:], whole[:7] + b"\x05" + whole[8:]):
        with pytest.raises(ValueError):
            read_known(content)
    box.git("update-index", "--split-index")
    with pytest.raises(ValueError, match="a split index"):
        read_known(index_of(box))
    assert len(known) == 5


@given(st.binary(max_size=300), st.integers(2, 4))
def test_no_bytes_are_more_than_a_value_error(content: bytes, version: int) -> None:
    with contextlib.suppress(ValueError):
        read_known(b"DIRC" + bytes([0, 0, 0, version, 0, 0, 0, 2]) + content)
