"""What a revision holds is analysed as git keeps it, whatever the work tree has."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import GitBox

from sandbox_engine import Unknown, UsageError, analyse, analyse_revision, read_revision

ONE = {"pkg/a.py": "def a(x):\n    return x\n", "b.py": "B = 1\n", "notes.txt": "text\n"}


def test_a_revision_is_told_as_a_scan_of_its_files_tells(box: GitBox) -> None:
    box.commit(ONE)
    (box.top / "link.py").symlink_to("b.py")
    box.commit({"bad.py": "def (\n"})
    clean = analyse(box.top)
    box.write({"b.py": "edited = 1\n", "new.py": "x = 1\n", "pkg/a.py": None})
    told = analyse_revision(box.top)
    assert told.paths == clean.paths and dict(told.files) == dict(clean.files)
    assert isinstance(told.files["bad.py"].result("metrics"), Unknown)
    assert (told.effort.read, told.effort.analysed) == (0, 0)
    earlier = analyse_revision(box.top, "HEAD^")
    assert set(earlier.files) == {"pkg/a.py", "b.py"}
    below = analyse_revision(box.top / "pkg")
    assert below.paths == ("a.py",)
    assert below.files["a.py"].values == told.files["pkg/a.py"].values


def test_only_what_is_new_is_read(box: GitBox) -> None:
    box.commit(ONE)
    seen: list[tuple[int, int]] = []
    cold = analyse_revision(box.top, progress=lambda done, of: seen.append((done, of)))
    assert (cold.effort.read, cold.effort.analysed) == (2, 2) and seen == [(1, 2), (2, 2)]
    box.commit({"b.py": "B = 2\n", "same.py": ONE["pkg/a.py"]})
    assert analyse_revision(box.top).effort.read == 1


def test_files_of_a_revision_are_read(box: GitBox) -> None:
    box.commit({**ONE, "bytes.bin": b"\xff\0"})
    (box.top / "link").symlink_to("b.py")
    box.commit({})
    box.write({"b.py": "edited\n"})
    names = ["b.py", "bytes.bin", "link", "pkg", "gone", "", "/b.py", "../b.py"]
    assert read_revision(box.top, "HEAD", names) == {"b.py": b"B = 1\n", "bytes.bin": b"\xff\0"}
    assert read_revision(box.top / "pkg", "HEAD", ["a.py", "b.py"]) == {
        "a.py": str(ONE["pkg/a.py"]).encode()
    }


def test_without_a_repository_or_a_revision_it_is_refused(box: GitBox, tmp_path: Path) -> None:
    for call in (analyse_revision, lambda path, rev: read_revision(path, rev, ["a"])):
        with pytest.raises(UsageError, match="not in a git repository"):
            call(tmp_path, "HEAD")
        with pytest.raises(UsageError, match="no commit"):
            call(box.top, "HEAD")
