"""How long a cycle of the agent takes next to the original's way, without the time of models.

The original copies the project, patches the copy, walks, reads and parses every file for its
manifest and its metrics, and runs pytest in the copy. Both get the same plans for the same real
tree in turn; a scripted model answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.config import Config, Models
from agent.cycles import Cycle, Ending
from agent.hephaestus import HephaestusAgent
from agent.scripted_model import ScriptedModel
from measuring.scans import GIT, elapsed_ms, fill, look_at_everything

_TESTS = 40
_SUBJECT = "subject/numbers.py"
_GOAL = 10.0


@dataclass(frozen=True, slots=True)
class Round:
    """One plan, both ways: milliseconds, by part."""

    original: Mapping[str, float]
    ours: Mapping[str, float]

    @property
    def ratio(self) -> float:
        return sum(self.original.values()) / sum(self.ours.values())


def main(arguments: Sequence[str]) -> int:
    """Measure, print, and return the exit code."""
    parser = argparse.ArgumentParser(prog="bench cycle", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--files", type=int, default=2_000, metavar="N", help="of the tree (2000)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="plans (5)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="bench-cycle-") as name:
        rounds = list(_measured(Path(name).resolve(), options.files, options.rounds))
    if options.json:
        parts = [{"original": one.original, "ours": one.ours} for one in rounds]
        print(json.dumps(parts, indent=2))
    else:
        print(_text(rounds, options.files))
    return 0


def _measured(folder: Path, files: int, rounds: int) -> Iterator[Round]:
    top = folder / "project"
    top.mkdir()
    fill(top, str(files), folder)
    for path, text in _tested().items():
        (top / path).parent.mkdir(exist_ok=True)
        (top / path).write_text(text)
    for words in (["init", "-q", "-b", "main"], ["add", "--all", "--force"],
                  ["commit", "-q", "-m", "tree"]):  # fmt: skip
        subprocess.run([*GIT, *words], cwd=top, check=True, capture_output=True)
    subprocess.run([*GIT, "config", "user.name", "bench"], cwd=top, check=True)
    subprocess.run([*GIT, "config", "user.email", "bench@localhost"], cwd=top, check=True)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    with _agent(top, folder / "agent", rounds + 1) as agent:
        _run(agent, 0)
        for number in range(1, rounds + 1):
            original = _original(top, folder / "copy", number)
            ours = _run(agent, number)
            one = Round(original, ours)
            print(f"  round {number}: {one.ratio:.1f}x", file=sys.stderr, flush=True)
            yield one


def _tested() -> dict[str, str]:
    """Return a module with tests, and settings that let pytest find no others."""
    tests = "".join(
        f"\n\ndef test_{n}():\n    assert double({n}) == {2 * n}\n" for n in range(_TESTS)
    )
    return {
        _SUBJECT: "def double(number):\n    return number * 2\n",
        "subject/__init__.py": "",
        "tests/test_numbers.py": f"from subject.numbers import double\n{tests}",
        "pytest.ini": "[pytest]\ntestpaths = tests\n",
    }


def _plan(number: int) -> dict[str, Any]:
    old = "    return number * 2\n" if number == 0 else f"    return number * 2  # {number - 1}\n"
    operation = {
        "file_path": _SUBJECT,
        "operation": "REPLACE",
        "block_to_replace": old,
        "content": f"    return number * 2  # {number}\n",
    }
    return {"analysis": "as asked", "patches_to_apply": [operation]}


@contextlib.contextmanager
def _agent(top: Path, home: Path, plans: int) -> Iterator[HephaestusAgent]:
    home.mkdir()
    strategy = {"json": {"strategy_key": "SYNTAX_AND_PYTEST"}, "times": None}
    rules = [
        {"model": "arch", "answers": [{"json": _plan(number)} for number in range(plans)]},
        {"model": "light", "matches": "strategy_key", "answers": [strategy]},
    ]
    with ScriptedModel(
        {"rules": rules, "answers": [{"content": "Refactor the doubling", "times": None}]}
    ) as model:
        config = Config(
            models=Models(architect_default="arch", light="light"),
            base_url=model.base_url,
            api_key_variable=None,
            memory_file_path=home / "memory.json",
            evolution_log_path=home / "log.csv",
            cycles_path=home / "cycles",
            allow_unisolated=True,
        )
        with HephaestusAgent(top, config) as agent:
            yield agent


def _run(agent: HephaestusAgent, number: int) -> dict[str, float]:
    """Return what one cycle took, in milliseconds by phase."""
    started = time.perf_counter()
    cycle = agent.run_cycle()
    elapsed_s = time.perf_counter() - started
    if cycle.ending is not Ending.SUCCESS:
        raise SystemExit(f"cycle {number} did not succeed: {cycle.reason}")
    return _parts(cycle, elapsed_s)


def _parts(cycle: Cycle, elapsed_s: float) -> dict[str, float]:
    parts = {name: seconds * 1000 for name, seconds in cycle.seconds.items()}
    # Models answer at once here; what is left of them is the asking.
    return {**parts, "other": max(0.0, elapsed_s * 1000 - sum(parts.values()))}


def _original(top: Path, copy: Path, number: int) -> dict[str, float]:
    """Return what the original's way takes for a plan, in milliseconds by part."""
    (operation,) = _plan(number)["patches_to_apply"]

    def patch() -> None:
        path = copy / _SUBJECT
        path.write_text(
            path.read_text().replace(operation["block_to_replace"], operation["content"])
        )

    def run_pytest() -> None:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        subprocess.run(command, cwd=copy, check=True, capture_output=True)

    try:
        return {
            "copytree": elapsed_ms(lambda: shutil.copytree(top, copy, symlinks=True)),
            "patch": elapsed_ms(patch),
            "manifest and metrics": elapsed_ms(lambda: look_at_everything(copy)),
            "pytest": elapsed_ms(run_pytest),
        }
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def _text(rounds: Sequence[Round], files: int) -> str:
    lines = [f"{files:,} Python files, {len(rounds)} rounds, the middle one of each"]
    for title, sides in (
        ("the original's way", [one.original for one in rounds]),
        ("a cycle", [one.ours for one in rounds]),
    ):
        totals = [sum(side.values()) for side in sides]
        lines.append(f"{title:24} {statistics.median(totals):12,.1f} ms")
        for name in dict.fromkeys(name for side in sides for name in side):
            middle = statistics.median(side.get(name, 0.0) for side in sides)
            lines.append(f"  {name:22} {middle:12,.1f} ms")
    ratio = statistics.median(one.ratio for one in rounds)
    lines.append(f"a cycle is {ratio:.1f}x faster (at least {_GOAL:g}x)")
    return "\n".join(lines)
