"""What has changed is analysed before anybody asks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from conftest import GitBox

from sandbox_engine import Scanner
from sandbox_engine.analysis.listing import find_place
from sandbox_engine.analysis.refresh import refresh


def run(top: Path, *paths: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sandbox_engine.analysis.refresh", str(top)],
        input="".join(f"{path}\0" for path in paths).encode(),
        capture_output=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == (b"", b"")


def test_a_scan_has_nothing_to_analyse_after_a_refresh(box: GitBox) -> None:
    box.commit({"a.py": "x = 1\n", "b/c.py": "y = 1\n", "b/d.py": "z = 1\n"})
    run(box.top)
    box.write({"a.py": "x = 2\n", "b/new.py": "n = 1\n", "b/d.py": None})
    run(box.top, "a.py", "b/", "gone.py")
    with Scanner(box.top) as scanner:
        assert scanner.scan().effort.analysed == 0


def test_only_what_is_named_and_counts_is_analysed(box: GitBox) -> None:
    box.commit({"a.py": "x = 1\n", "b.py": "y = 1\n", ".gitignore": "ignored.py\n"})
    box.write({"ignored.py": "i = 1\n", "notes.txt": "text"})
    assert refresh(find_place(box.top), ["a.py", "ignored.py", "notes.txt"]) == 1
    assert refresh(find_place(box.top), ["a.py"]) == 0
