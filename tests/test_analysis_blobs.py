"""Which blob a file holds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import GitBox

from sandbox_engine.analysis.blobs import UnreadableError, blob_of, known_to_git, read
from sandbox_engine.analysis.listing import Place, find_place
from sandbox_engine.analysis.stamps import Stamp


def test_a_file_is_the_blob_that_git_makes_of_it(box: GitBox) -> None:
    for content in (b"", b"x\n", bytes(range(256)) * 50):
        box.write({"a": content})
        found = read(str(box.top / "a"))
        assert found.content == content
        assert found.blob.hex() == box.git("hash-object", "--no-filters", "a")
        assert found.stamp == Stamp.of(os.lstat(box.top / "a"))


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "folder").mkdir()
    for name, reason in (
        ("pipe", "is no regular file"),
        ("folder", "is no regular file"),
        ("link", "cannot be read: Too many levels of symbolic links"),
    ):
        with pytest.raises(UnreadableError, match=reason):
            read(str(tmp_path / name))
    with pytest.raises(FileNotFoundError):
        read(str(tmp_path / "gone"))


def stamps(box: GitBox, *names: str) -> dict[str, Stamp]:
    return {name: Stamp.of(os.lstat(box.top / name)) for name in names}


def later(box: GitBox) -> None:
    """Make the index so much newer than the files that they cannot be racy."""
    newest_ns = max(path.stat().st_ctime_ns for path in box.top.glob("*.txt"))
    os.utime(box.top / ".git" / "index", ns=(newest_ns + 10**9,) * 2)


def test_git_knows_what_has_not_changed_since_it_was_read(box: GitBox) -> None:
    box.commit({"a.txt": "one", "b.txt": "two", "sub/c.txt": "three"})
    box.write({"new.txt": "x"})
    later(box)
    place = find_place(box.top)
    seen = stamps(box, "a.txt", "b.txt", "new.txt", "sub/c.txt")
    assert known_to_git(place, seen) == {
        "a.txt": blob_of(b"one"),
        "b.txt": blob_of(b"two"),
        "sub/c.txt": blob_of(b"three"),
    }
    below = {"c.txt": seen["sub/c.txt"]}
    assert known_to_git(find_place(box.top / "sub"), below) == {"c.txt": blob_of(b"three")}
    for change in ({"b.txt": "six"}, {"b.txt": "longer"}):
        box.write(change)
        later(box)
        assert "b.txt" not in known_to_git(place, stamps(box, "a.txt", "b.txt"))


def test_what_git_has_not_merged_or_not_added_is_not_known(box: GitBox) -> None:
    box.commit({"a.txt": "base", "b.txt": "x"})
    box.git("switch", "-q", "-c", "other")
    box.commit({"a.txt": "theirs"})
    box.git("switch", "-q", "main")
    box.commit({"a.txt": "ours"})
    with pytest.raises(AssertionError):
        box.git("merge", "-q", "other")
    box.write({"new.txt": "new"})
    box.git("add", "--intent-to-add", "new.txt")
    later(box)
    found = known_to_git(find_place(box.top), stamps(box, "a.txt", "b.txt", "new.txt"))
    assert found == {"b.txt": blob_of(b"x")}


def test_without_an_index_that_can_be_read_nothing_is_known(box: GitBox) -> None:
    box.commit({"a.txt": "one"})
    later(box)
    seen = stamps(box, "a.txt")
    assert known_to_git(find_place(box.top), seen) == {"a.txt": blob_of(b"one")}
    box.git("update-index", "--split-index")
    later(box)
    assert known_to_git(find_place(box.top), seen) == {}
    (box.top / ".git" / "index").write_bytes(b"DIRC torn")
    place = find_place(box.top)
    assert known_to_git(place, seen) == {}
    (box.top / ".git" / "index").unlink()
    assert known_to_git(place, seen) == {}
    assert known_to_git(Place(box.top), seen) == {}
