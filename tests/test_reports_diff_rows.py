"""Diffs as rows: numbers, counts and names as git means them."""

from __future__ import annotations

import subprocess

from conftest import GitBox
from hypothesis import given
from hypothesis import strategies as st

from sandbox_engine.reports.diff_rows import Row, numbered, read_diff

OLD = "".join(f"line {number}\n" for number in range(1, 31))


def test_rows_have_the_numbers_of_both_sides(box: GitBox) -> None:
    box.commit({"a b.txt": OLD, "gone.txt": "x\n", "ü\t.txt": "x\n", "b.bin": b"\0\1"})
    new = OLD.replace("line 3\n", "").replace("line 20\n", "line 20\nmore\n")
    files = {
        "a b.txt": new,
        "gone.txt": None,
        "ü\t.txt": "y\n",
        "b.bin": b"\0\2",
        "new.txt": "-- x",
    }
    found = {file.path: file for file in read_diff(box.diff_to(files, "--binary"))}
    assert set(found) == set(files)
    one = found["a b.txt"]
    assert (one.added, one.removed) == (1, 1)
    assert Row("-", "line 3", 3, None) in one.rows and Row("+", "more", None, 20) in one.rows
    lines = new.splitlines()
    shown = [(row.text, row.new) for row in one.rows if row.new]
    assert shown and all(lines[number - 1] == text for text, number in shown)
    assert found["b.bin"].notes == ["binary"] and not found["b.bin"].rows
    assert found["gone.txt"].notes == ["deleted file mode 100644"]
    assert found["new.txt"].rows[1:] == [
        Row("+", "-- x", None, 1),
        Row("\\", "\\ No newline at end of file"),
    ]
    assert ("new.txt", 1) in set(numbered(list(found.values())))


def test_a_rename_is_told(box: GitBox) -> None:
    box.commit({"old.txt": OLD})
    box.git("mv", "old.txt", "new.txt")
    text = subprocess.run(
        ["git", "diff", "--cached", "-M"], cwd=box.top, capture_output=True, check=True
    ).stdout
    (file,) = read_diff(text)
    assert file.notes == ["similarity index 100%", "rename from old.txt", "rename to new.txt"]


@given(st.binary())
def test_whatever_is_read_gives_rows(patch: bytes) -> None:
    read_diff(patch)
    read_diff(b"diff --git a/x b/x\n@@ -1 +1 @@\n" + patch)
