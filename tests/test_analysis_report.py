"""Analyses as lines of text and as JSON values."""

from __future__ import annotations

import json
from pathlib import Path

from sandbox_engine import Scanner, analyse_contents
from sandbox_engine.analysis.comparison import compare
from sandbox_engine.analysis.report import (
    changes_to_json,
    differences,
    scan_to_json,
    table,
)

SOURCE = "def f(a):\n    if a:\n        return 1\n    return a\n"


def test_a_table_has_a_line_for_each_file_and_says_what_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "a.py").write_text(SOURCE)
    (tmp_path / "top" / "empty.py").write_text("")
    (tmp_path / "top" / "bad\x1b[31m.py").write_text("def f(:\n")
    with Scanner(tmp_path / "top", cache_home=tmp_path / "cache") as scanner:
        scan = scanner.scan()
    assert table(scan).splitlines() == [
        "lines  source  functions  most complex     mi  file",
        "    4       4          1             2  100.0  a.py",
        "    0       0          0             -  100.0  empty.py",
        "unknown: bad\\x1b[31m.py: line 1: invalid syntax",
        "2 files, 4 lines, 1 function, 1 unknown",
    ]
    record = json.loads(json.dumps(scan_to_json(scan)))
    assert record["files"]["a.py"]["metrics"]["functions"][0]["cc"] == 2
    assert record["files"]["bad\\x1b[31m.py"]["metrics"] == {"unknown": "line 1: invalid syntax"}
    assert record["effort"]["analysed"] == 3


def test_differences_are_signed_and_summed_up() -> None:
    old = {"a.py": SOURCE, "gone.py": "x = 1\n", "bad.py": "x = 1\n"}
    new = {"a.py": SOURCE.replace("if a", "if a and b"), "new.py": SOURCE, "bad.py": "x =\n"}
    before, after = (
        analyse_contents({path: text.encode() for path, text in side.items()})
        for side in (old, new)
    )
    changes = compare(before, after)
    assert differences(changes).splitlines() == [
        "~ a.py  lines 4, complexity 2 -> 3, mi 100 -> 81.72",
        "    ~ f  complexity 2 -> 3, lines 4",
        "? bad.py  after the change: line 1: invalid syntax",
        "- gone.py  lines 1, complexity 0, mi 100",
        "+ new.py  lines 4, complexity 2, mi 100",
        "    + f  complexity 2, lines 4",
        "4 files: complexity +3, lines +3, 1 unknown",
    ]
    assert differences(()) == "no size and no complexity is changed"
    assert changes_to_json(changes)["files"][0]["functions"][0]["after"] == {"cc": 3, "loc": 4}
