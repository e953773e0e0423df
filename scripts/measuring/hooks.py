"""How long the commit hook keeps a committer waiting when it only checks syntax.

The whole command is timed, interpreter start included, in a repository of so many files, each time
with another staged change; next to it an interpreter that does nothing, and git's own
`write-tree` and `diff-index` of the same index.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

_GOAL_MS = 250.0
_IDENTITY = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org")
_ENGINE = (sys.executable, "-P", "-m", "sandbox_engine", "validate", "--staged")
_SYNTAX = ("--strategy", "SYNTAX_ONLY")


def main(arguments: Sequence[str]) -> int:
    """Measure, print, and return the exit code."""
    parser = argparse.ArgumentParser(prog="bench hook", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--files", type=int, default=5_000, metavar="N", help="tracked (5000)")
    parser.add_argument("--runs", type=int, default=15, metavar="N", help="commits (15)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="bench-hook-") as name:
        found = _measured(Path(name).resolve(), options.files, options.runs)
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    print(f"the hook, syntax alone, {options.files} files, {options.runs} runs, milliseconds")
    for what, times in found.items():
        print(f"  {what:34} {statistics.median(times):7.1f}  (most {max(times):.1f})")
    print(f"  goal for a new change: {_GOAL_MS:.0f}")
    return 0


def _measured(folder: Path, files: int, runs: int) -> dict[str, list[float]]:
    top = folder / "project"
    top.mkdir()
    _fill(top, files)
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    hook = [*_ENGINE, *_SYNTAX]
    _git(top, "add", ".")
    found: dict[str, list[float]] = {}
    for run in range(runs + 1):
        (top / "package0" / "m0.py").write_text(f"X = {run + 1}\n")
        _git(top, "add", "package0/m0.py")
        for what, words in (
            ("first" if run == 0 else "a new change", hook),
            ("the same again", hook),
            ("an interpreter that does nothing", [sys.executable, "-P", "-c", "pass"]),
            ("git write-tree and git diff-index", ["sh", "-c", _GIT_ALONE]),
        ):
            found.setdefault(what, []).append(_elapsed_ms(words, top, environment))
    return found


_GIT_ALONE = "git write-tree >/dev/null && git diff-index --cached HEAD >/dev/null"


def _fill(top: Path, files: int) -> None:
    _git(top, "init", "-q")
    for number in range(files):
        path = top / f"package{number // 100}" / f"m{number % 100}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"def f{number}(x):\n    return x + {number}\n")
    _git(top, "add", ".")
    _git(top, "commit", "-q", "-m", "first")


def _git(top: Path, *words: str) -> None:
    subprocess.run(["git", *_IDENTITY, *words], cwd=top, check=True)


def _elapsed_ms(words: Sequence[str], top: Path, environment: dict[str, str]) -> float:
    started = time.perf_counter()
    subprocess.run(words, cwd=top, env=environment, capture_output=True, check=True)
    return (time.perf_counter() - started) * 1000
