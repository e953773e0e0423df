"""The last commits of a project judged as patches, on a repository of five commits."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import CODE, GitBox
from script import loaded

_MORE = f"{CODE}\n\ndef double(a):\n    return add(a, a)\n"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return loaded("history")


def test_a_history_is_judged(
    script: ModuleType, project: GitBox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    doubles = "from calc import double\n\n\ndef test_double():\n    assert double(4) == 8\n"
    project.commit({"calc.py": _MORE, "tests/test_double.py": doubles}, "Add double")
    project.commit({}, "Change nothing")
    project.commit({"README.md": "# calc\n"}, "Say what it is")
    treble = {"calc.py": _MORE.replace("a, a", "a, a + a"), "tests/test_double.py": None}
    project.commit(treble, "Make it three times as much")
    arguments = [str(project.top), "--python", sys.executable, "--keep", str(tmp_path / "work")]
    assert script.main([*arguments, "--last", "2", "--allow-test-changes"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert "Make it three times as much" in lines[0] and "Say what it is" in lines[1]
    assert "control yes  without leave tampered" in lines[0] and "control no" in lines[1]
    assert lines[2].split() == ["PASSED", "2"]
    assert "tampered without leave      1" in out and "2 commits, 1 with test control" in out

    assert script.main([*arguments, "--last", "1", "--json"]) == 1
    (record,) = json.loads(capsys.readouterr().out)
    assert record["outcome"] == "INCONCLUSIVE"
    assert record["cause"] == record["strict"] == "tampered"
