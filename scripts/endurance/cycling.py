"""Kill the agent at random moments of its cycles; look for what is torn, lost or done twice.

The user has edits, staged and not, in files of their own all the while. The agent is the real
command, its models answer over HTTP, and what it has said to be done is counted as acknowledged.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agent import evolution_log
from agent.memory import Memory
from agent.scripted_model import ScriptedModel
from endurance import table
from sandbox_engine import Engine

_GIT = ("git", "-c", "user.name=Ada", "-c", "user.email=ada@example.org")
_FILES = {
    "calc.py": "def add(a, b):\n    return a + b\n",
    "tests/test_calc.py": "from calc import add\n\ndef test_add():\n    assert add(1, 2) == 3\n",
    "mine.txt": "mine\n",
    "staged.txt": "staged\n",
}
_EDITS = {"mine.txt": "an edit\n", "staged.txt": "a staged edit\n", "new.txt": "untracked\n"}
_STATUS = " M mine.txt\nM  staged.txt\n?? new.txt"
_SAID = re.compile(r"^(\d+) (success|failure|postponed) ", re.MULTILINE)
_MOST_OBJECTIVES = 2_000
_EACH = 5
"""An agent that is quicker than its killer ends after so many cycles."""
_PATIENCE_S = 120.0
_SETTLES_S = 5.0


def cycles(times: int, seed: int) -> int:
    """Kill `times` agents, and return how many things were torn, lost or done twice."""
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="endure-cycles-") as name:
        place = Place(Path(name).resolve())
        with ScriptedModel(_script()) as model:
            place.configure(model.base_url)
            faults = Counter[str]()
            while place.tally["killed"] < times:
                for fault in place.kill_one(draw.uniform(0.2, 3.0)):
                    print(fault, file=sys.stderr, flush=True)
                    faults[fault.partition(":")[0]] += 1
            for fault in place.end():
                print(fault, file=sys.stderr, flush=True)
                faults[fault.partition(":")[0]] += 1
    print(table.text(("cycles", "times"), [*place.tally.items()]))
    return faults.total()


class Place:
    """A repository, what the agent keeps, and what it has acknowledged so far."""

    def __init__(self, folder: Path) -> None:
        self.top = folder / "repository"
        self.home = folder / "agent"
        self.cache = folder / "cache"
        self.config = self.home / "hephaestus_config.json"
        self.acknowledged: set[int] = set()
        self.tally = Counter({"killed": 0, "ended": 0, "cycles": 0, "commits": 0, "failures": 0})
        self.home.mkdir()
        self.top.mkdir()
        self.git("init", "-q", "--initial-branch=main")
        self.git("config", "user.name", "Ada")
        self.git("config", "user.email", "ada@example.org")
        self._write(_FILES)
        self.git("add", ".")
        self.git("commit", "-q", "-m", "first")
        self.first = self.checked = self.git("rev-parse", "HEAD")
        self._write(_EDITS)
        self.git("add", "staged.txt")

    def _write(self, files: dict[str, str]) -> None:
        for name, text in files.items():
            path = self.top / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)

    def git(self, *arguments: str) -> str:
        done = subprocess.run(
            [*_GIT, *arguments], cwd=self.top, capture_output=True, text=True, check=True
        )
        return done.stdout.rstrip("\n")

    def configure(self, base_url: str) -> None:
        """Write a configuration that asks the models at `base_url`."""
        settings = {
            "models": {"architect_default": "arch", "objective_generator": "obj", "light": "light"},
            "base_url": base_url,
            "api_key_variable": None,
            "memory_backend": "sqlite",
            "cycle_delay_seconds": 0.0,
            "allow_unisolated": True,
        }
        self.config.write_text(json.dumps(settings))

    def _start(self, count: int) -> subprocess.Popen[str]:
        options = ["--repo", str(self.top), "--config", str(self.config), "--cycles", str(count)]
        return subprocess.Popen(
            [sys.executable, "-m", "agent", "run", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "XDG_CACHE_HOME": str(self.cache)},
        )

    def kill_one(self, after_s: float) -> list[str]:
        """Start an agent, kill it after a while, and return what is wrong then."""
        child = self._start(_EACH)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(after_s)
        child.kill()
        said, errors = child.communicate()
        self.tally["killed" if child.returncode == -signal.SIGKILL else "ended"] += 1
        self.acknowledged.update(int(number) for number, _ in _SAID.findall(said))
        faults = [] if "Traceback" not in errors else [f"traceback: {errors[-2_000:]}"]
        # The user's own edits are theirs whatever moment it is.
        for name, text in _EDITS.items():
            if (self.top / name).read_text() != text:
                faults.append(f"edit: `{name}` is not as the user left it")
        return [*faults, *self._settled(), *self._forgotten()]

    def _settled(self) -> list[str]:
        """Return what is torn after the next engine has completed or undone a promotion.

        A git that was at work when the agent was killed ends first.
        """
        deadline = time.monotonic() + _SETTLES_S
        while True:
            Engine(self.top, cache_home=self.cache / "sandbox-engine")
            torn = list(self._torn())
            if not torn or time.monotonic() > deadline:
                return torn
            time.sleep(0.05)

    def _torn(self) -> Iterator[str]:
        status = self.git("status", "--porcelain")
        if status != _STATUS:
            yield f"work tree: the status is {status!r}"
        if locks := sorted(path.name for path in (self.top / ".git").rglob("*.lock")):
            yield f"lock: {', '.join(locks)} stayed"
        for line in self.git("log", "--format=%H %P", f"{self.checked}..HEAD").splitlines():
            commit, *parents = line.split()
            changed = self.git("diff-tree", "-r", "--name-only", f"{commit}^", commit).split()
            if len(parents) != 1 or not all(name.startswith("generated/") for name in changed):
                yield f"branch: {commit} changes {changed}"
        self.checked = self.git("rev-parse", "HEAD")

    def _forgotten(self) -> Iterator[str]:
        rows = self._rows()
        numbers = [int(row["ciclo"]) for row in rows]
        if numbers != list(range(1, len(numbers) + 1)):
            yield f"log: the cycles are numbered {numbers}"
        if lost := self.acknowledged - set(numbers):
            yield f"log: acknowledged cycles {sorted(lost)} are not in it"
        kept = self._remembered()
        for row in rows:
            if int(row["ciclo"]) in self.acknowledged and not kept[row["objetivo"]]:
                yield f"memory: `{row['objetivo']}` was acknowledged and is forgotten"
        for objective, count in kept.items():
            if count > 1 and not _is_repeated(objective):
                yield f"memory: `{objective}` is remembered {count} times"

    def _rows(self) -> list[dict[str, str]]:
        return evolution_log.read(self.home / "evolution_log.csv")

    def _remembered(self) -> Counter[str]:
        """Return how often each objective is remembered."""
        path = self.home / "HEPHAESTUS_MEMORY.json"
        with Memory(path, backend="sqlite") as memory:
            return Counter(one.objective for one in memory.search("generated", 100_000))

    def end(self) -> Iterator[str]:
        """Run one more cycle, which must go on, and yield what does not come out even."""
        said, errors = self._start(1).communicate(timeout=_PATIENCE_S)
        if not _SAID.search(said):
            yield f"next run: it said {said!r} and {errors[-2_000:]!r}"
        yield from self._torn()
        yield from self._forgotten()
        rows = self._rows()
        landed = [row for row in rows if row["razao_status"].startswith("committed as ")]
        commits = self.git("rev-list", f"{self.first}..HEAD").split()
        told = [row["razao_status"].split()[2] for row in landed]
        if [commit[:12] for commit in reversed(commits)] != told:
            yield f"commits: {len(commits)} have landed, and {len(told)} are told"
        if self._remembered().total() != len(rows):
            yield f"memory: {self._remembered().total()} are remembered of {len(rows)}"
        self.tally["cycles"] = len(rows)
        self.tally["commits"] = len(commits)
        self.tally["failures"] = sum(row["status"] == evolution_log.FAILURE for row in rows)


def _is_repeated(objective: str) -> bool:
    """Tell whether the script has an objective tried more than once."""
    number = re.search(r"generated/f(\d+)", objective)
    return "fix" in objective or (number is not None and int(number[1]) % 5 == 0)


def _script() -> dict[str, Any]:
    """Return models that want one new file after the other: some plans are refused, some fail."""
    numbers = range(1, _MOST_OBJECTIVES)
    rules: list[dict[str, Any]] = [
        {"model": "obj", "answers": [{"content": f"Add generated/f{n}.py"} for n in numbers]},
        {
            "model": "light",
            "matches": "What went wrong",
            "answers": [{"content": "Add generated/fix.py", "times": None}],
        },
    ]
    for key in ("fix", *(f"f{n}" for n in numbers)):
        path = f"generated/{key}.py"
        number = int(key[1:]) if key != "fix" else 1
        asked = rf"# Objective\n\n(\[AUTOMATIC CORRECTION\] )?Add generated/{key}\.py\n"
        good = _plan(path, "VALUE = 1\n")
        first = good
        if number % 5 == 0:
            first = good = _plan(path, "VALUE = (1\n")
        elif number % 3 == 0:
            first = _plan(path, "VALUE = (1\n")
        rules.append(
            {
                "model": "arch",
                "matches": rf"(?s){asked}.*Your last plan was refused",
                "answers": [{"json": good, "times": None}],
            }
        )
        rules.append(
            {"model": "arch", "matches": asked, "answers": [{"json": first, "times": None}]}
        )
        chosen = "SYNTAX_ONLY" if number % 2 else "SYNTAX_AND_PYTEST"
        rules.append(
            {
                "model": "light",
                "matches": rf"generated/{key}\.py",
                "answers": [{"json": {"strategy_key": chosen}, "times": None}],
            }
        )
    return {"rules": rules}


def _plan(path: str, content: str) -> dict[str, Any]:
    operation = {"file_path": path, "operation": "INSERT", "content": content}
    return {"analysis": "as asked", "patches_to_apply": [operation]}
