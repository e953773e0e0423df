"""Run three cycles of the agent on a copy of this repository, offline.

One plan passes and is committed, one is repaired after it was refused, and one fails and is
remembered. The model is a script on loopback; everything else is real.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from agent.scripted_model import ScriptedModel

_ROOT = Path(__file__).resolve().parent.parent.parent
_HEPHAESTUS = Path(sys.executable).with_name("hephaestus")
_OBJECTIVES = (
    "Add a test that the version has three numbers",
    "Document in sandbox_engine/version.py how versions are counted",
    "Add a test that the version ends in a zero and never changes",
)
_NUMBERS = """\
from sandbox_engine.version import VERSION


def test_the_version_has_three_numbers() -> None:
    assert len([int(part) for part in VERSION.split(".")]) == 3
"""
_DOCUMENTED = """\
import sandbox_engine.version


def test_it_is_told_how_versions_are_counted() -> None:
    assert "semver.org" in (sandbox_engine.version.__doc__ or "")
"""
_NEVER = """\
from sandbox_engine.version import VERSION


def test_the_version_never_changes() -> None:
    assert VERSION == "0.0.0"
"""


def main(arguments: Sequence[str]) -> int:
    """Run the demo, and return 1 if a cycle does not end as it is meant to."""
    parser = argparse.ArgumentParser(prog="demo agent", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--folder", type=Path, help="where to work (a new temporary folder)")
    options = parser.parse_args(arguments)
    folder = (options.folder or Path(tempfile.mkdtemp(prefix="hephaestus-demo-"))).resolve()
    if folder.exists() and any(folder.iterdir()):
        print(f"error: `{folder}` is not empty\n\nhint: name a new folder", file=sys.stderr)
        return 2
    copy = folder / "project"
    _git(_ROOT, "clone", "-q", "--no-hardlinks", str(_ROOT), str(copy))
    _git(copy, "config", "user.name", "Demo")
    _git(copy, "config", "user.email", "demo@localhost")
    # An edit of the user's, which is to be left alone.
    with (copy / "README.md").open("a") as file:
        file.write("\nAn edit of mine.\n")
    with ScriptedModel(_script()) as model:
        config = folder / "hephaestus_config.json"
        config.write_text(json.dumps(_settings(model.base_url), indent=2) + "\n")
        code = _show(
            *("run", "--repo", str(copy), "--config", str(config)),
            *("--branch", "agent/demo", "--cycles", "3"),
        )
    report = folder / "report.html"
    _show("report", "--config", str(config), "-o", str(report))
    print(f"\n$ git log agent/demo\n{_git(copy, 'log', '--oneline', '-3', 'agent/demo')}")
    print(f"\n$ git status --short\n{_git(copy, 'status', '--short')}")
    wrong = list(_wrong(folder, copy, code))
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    if not wrong:
        print(f"\nThe work tree and its branch are as they were. Open {report} in a browser.")
    return 1 if wrong else 0


def _wrong(folder: Path, copy: Path, code: int) -> Iterator[str]:
    """Yield what is not as it is meant to be after the three cycles."""
    if code != 1:
        yield f"the exit code was {code}, and one cycle of three is to fail"
    memory = json.loads((folder / "HEPHAESTUS_MEMORY.json").read_text())
    reached = [one["objective"] for one in memory["completed_objectives"]]
    missed = [one["objective"] for one in memory["failed_objectives"]]
    if (reached, missed) != ([*_OBJECTIVES[:2]], [_OBJECTIVES[2]]):
        yield f"reached were {reached}, and not {missed}"
    count = _git(copy, "rev-list", "--count", "HEAD..agent/demo")
    if count != "2":
        yield f"{count} commits landed, and two were to"
    if _git(copy, "status", "--short") != "M README.md":
        yield "the work tree is not as it was"


def _settings(base_url: str) -> dict[str, Any]:
    return {
        "models": {
            "architect_default": "architect",
            "objective_generator": "objectives",
            "light": "light",
        },
        "base_url": base_url,
        "api_key_variable": None,
        "budgets": {"attempts": 2},
        "cycle_delay_seconds": 0,
        # A demo must run where bubblewrap cannot be installed; the plans are those below.
        "allow_unisolated": True,
    }


def _script() -> dict[str, Any]:
    documented = '"""The version, which is part of every environment fingerprint.'
    wrong = _plan(
        _replacing('"""The version, which is a part of each fingerprint."""\n', "pass\n"),
        _adding("tests/test_version_documented.py", _DOCUMENTED),
    )
    right = _plan(
        _replacing(f'{documented}"""\n', f'{documented}\n\nSee https://semver.org.\n"""\n'),
        _adding("tests/test_version_documented.py", _DOCUMENTED),
    )
    plans = {
        _OBJECTIVES[0]: [_plan(_adding("tests/test_version_numbers.py", _NUMBERS))],
        _OBJECTIVES[1]: [wrong, right],
        _OBJECTIVES[2]: [_plan(_adding("tests/test_version_never.py", _NEVER))] * 2,
    }
    answers = [{"json": plan, "fault": "prose"} for some in plans.values() for plan in some]
    strategy = {"strategy_key": "CREATE_NEW_TEST_FILE_STRATEGY"}
    return {
        "rules": [
            {"model": "objectives", "answers": [{"content": text} for text in _OBJECTIVES]},
            {"model": "architect", "answers": answers},
            {
                "model": "light",
                "matches": "strategy_key",
                "answers": [{"json": strategy, "times": None}],
            },
        ],
        "answers": [{"content": "Decide what the version is to be first", "times": None}],
    }


def _plan(*operations: dict[str, Any]) -> dict[str, Any]:
    return {"analysis": "as asked", "patches_to_apply": list(operations)}


def _adding(path: str, content: str) -> dict[str, Any]:
    return {"file_path": path, "operation": "INSERT", "content": content}


def _replacing(old: str, new: str) -> dict[str, Any]:
    return {
        "file_path": "sandbox_engine/version.py",
        "operation": "REPLACE",
        "block_to_replace": old,
        "content": new,
    }


def _show(*words: str) -> int:
    """Run the agent's command before the eyes of the user."""
    print(f"\n$ hephaestus {' '.join(words)}\n", flush=True)
    return subprocess.run([str(_HEPHAESTUS), *words], check=False).returncode


def _git(top: Path, *words: str) -> str:
    git = shutil.which("git") or "git"
    done = subprocess.run([git, *words], cwd=top, check=True, capture_output=True, text=True)
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
