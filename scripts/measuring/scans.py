"""How long scans take next to a plain radon run, and next to looking at everything each time.

The trees are real: packages of the index, and the interpreter's own library. Every method gets
the same files; what a method returns is counted, so that none is quick by leaving out. Ratios of
one run are what counts: the machine is shared.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import radon.complexity
import radon.metrics
import radon.raw

from sandbox_engine import Scanner, watcher
from sandbox_engine.analysis.analysers import resolve
from sandbox_engine.analysis.blobs import read
from sandbox_engine.analysis.listing import find_place, list_names, statuses
from sandbox_engine.analysis.scanner import open_results
from sandbox_engine.store import cache_home

TREES = {
    "small": ("setuptools==84.2.1",),
    "library": (),
    "large": ("homeassistant==2024.3.3", "sympy==1.14.0", "django==5.2.19", "celery==5.7.0",
              "networkx==3.6.1"),
}  # fmt: skip
"""What each tree is made of; `library` is the interpreter's own."""
USUAL = 5_000
"""A tree of so many files is cut from the large one: the goals for one changed file name it."""
GIT = ("git", "-c", "user.name=bench", "-c", "user.email=bench@localhost", "-c", "gc.auto=0")
_ENDLESS = "topics.py"
"""One statement of 15,708 lines, which takes radon the better part of an hour and us a moment."""
_SETTLED_S = 1.1
_REFRESHED_S = 30.0
_EDITS = 15
_IDLE_S = 30.0


@dataclass(frozen=True, slots=True)
class Row:
    """One method on one tree: its times in milliseconds, the middle one counts."""

    tree: str
    files: int
    what: str
    times_ms: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        return statistics.median(self.times_ms)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a watcher takes: its start in milliseconds, memory in MiB, and processor time idle."""

    files: int
    folders: int
    start_ms: float
    memory_mib: float
    idle_cpu_ms: float
    idle_s: float


def main(arguments: Sequence[str]) -> int:
    """Measure what is asked for, print it, and return the exit code."""
    parser = argparse.ArgumentParser(prog="bench scan", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--trees",
        default=f"small,library,{USUAL},large",
        help="a list of: small, library, large (downloaded where needed), a number of files "
        "that are cut from large, or folders (default: all)",
    )
    parser.add_argument(
        "--watched", type=int, default=50_000, metavar="N",
        help="files of the tree whose watcher's memory is measured, 0 for none (50000)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="bench-scan-") as name:
        folder = Path(name).resolve()
        trees = [tree for tree in options.trees.split(",") if tree]
        rows = [row for tree in trees for row in _measured(tree, folder)]
        costs = [_watcher_cost(folder / "watched", options.watched)] if options.watched else []
    if options.json:
        print(json.dumps([asdict(one) for one in (*rows, *costs)], indent=2))
    else:
        print("\n".join([_text(rows), *map(_cost_text, costs)]))
    return 0


def _measured(tree: str, folder: Path) -> Iterator[Row]:
    top = folder / tree.replace("/", "-") / "tree"
    top.mkdir(parents=True)
    fill(top, tree, folder)
    count = sum(1 for path in top.rglob("*.py") if path.is_file())
    print(f"{tree}: {count} Python files", file=sys.stderr, flush=True)
    subprocess.run([*GIT, "init", "-q"], cwd=top, check=True)
    subprocess.run([*GIT, "add", "--all", "--force"], cwd=top, check=True, capture_output=True)
    subprocess.run([*GIT, "commit", "-q", "-m", "tree"], cwd=top, check=True)
    time.sleep(_SETTLED_S)
    # The watcher finds the cache by the environment alone.
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache" / top.parent.name)
    for what, times in _methods(top, cache_home()):
        row = Row(tree, count, what, tuple(round(one, 3) for one in times))
        print(f"  {what}: {row.median_ms:,.1f} ms", file=sys.stderr, flush=True)
        yield row
    shutil.rmtree(top.parent)


def fill(top: Path, tree: str, folder: Path) -> None:
    """Put the files of a tree into `top`."""
    if tree.isdigit():
        large = folder / "cut"
        if not large.exists():
            _fill_with_packages(large, TREES["large"])
        paths = sorted(path for path in large.rglob("*.py") if path.is_file())[: int(tree)]
        for path in paths:
            target = top / path.relative_to(large)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    elif TREES.get(tree):
        _fill_with_packages(top, TREES[tree])
    else:
        source = sysconfig.get_path("stdlib") if tree == "library" else tree
        ignored = shutil.ignore_patterns("site-packages", "__pycache__", ".git", _ENDLESS)
        shutil.copytree(source, top, dirs_exist_ok=True, ignore=ignored, symlinks=True)


def _fill_with_packages(top: Path, packages: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as wheels:
        options = ["--no-deps", "--only-binary=:all:", "--dest", wheels]
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", *options, *packages],
            check=True,
            capture_output=True,
        )
        for wheel in Path(wheels).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(top)


def _methods(top: Path, home: Path) -> Iterator[tuple[str, list[float]]]:
    """Yield what is measured, and how long it took each time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield "everything each time", [elapsed_ms(lambda: look_at_everything(top))]
        yield "radon, one process", [elapsed_ms(lambda: _run_radon(top))]
    yield "cold", [elapsed_ms(lambda: _scan(top, home))]
    yield "warm, another process's results", _repeated(7, lambda: _scan(top, home))
    yield "warm, and every value read", _repeated(5, lambda: _scan(top, home, read=True))
    place = find_place(top)
    yield "one stat sweep", _repeated(15, lambda: statuses(top, list_names(place)))
    with Scanner(top, cache_home=home) as scanner:
        scanner.scan()
        yield "again, nothing changed, no watcher", _repeated(15, scanner.scan)
        yield "one file changed, no watcher", list(_edits(top, scanner))
        yield from _watched(top, scanner, home)


def _watched(top: Path, scanner: Scanner, home: Path) -> Iterator[tuple[str, list[float]]]:
    command = [sys.executable, "-m", "sandbox_engine", "watch", "--repo", str(top)]
    subprocess.run([*command, "--daemon"], check=True, stdout=subprocess.DEVNULL)
    try:
        scanner.scan()
        yield "again, nothing changed, watcher", _repeated(15, lambda: _watched_scan(scanner))
        yield "one file changed, watcher", list(_edits(top, scanner, home))
        yield "one file changed, watcher, at once", list(_edits(top, scanner))
    finally:
        subprocess.run([*command, "--stop"], check=True, stdout=subprocess.DEVNULL)


def _watched_scan(scanner: Scanner) -> None:
    if scanner.scan().effort.swept:
        raise SystemExit("the watcher did not answer")


def _edits(top: Path, scanner: Scanner, refreshed: Path | None = None) -> Iterator[float]:
    """Change one file after the other, and yield how long the scan after each took.

    With `refreshed`, its cache's folder, the watcher has had the time to analyse it before.
    """
    paths = sorted(top.rglob("*.py"), key=lambda path: abs(path.stat().st_size - 8_000))[:_EDITS]
    for number, path in enumerate(paths):
        with path.open("a") as file:
            file.write(f"\n\ndef added_{time.time_ns()}():\n    return {number}\n")
        if refreshed:
            _wait_until_known(path, refreshed)
        started = time.perf_counter()
        scan = scanner.scan()
        yield (time.perf_counter() - started) * 1000
        if refreshed and (scan.effort.analysed or scan.effort.swept):
            raise SystemExit(f"the watcher did not do its work: {scan.effort}")
        time.sleep(0.05)
        scanner.scan()


def _wait_until_known(path: Path, home: Path) -> None:
    """Wait until the watcher has had a changed file analysed."""
    (metrics,) = resolve(("metrics",))
    blob = read(str(path)).blob
    results = open_results(home)
    deadline = time.monotonic() + _REFRESHED_S
    while not results.find(metrics, [blob]):
        if time.monotonic() > deadline:
            raise SystemExit(f"`{path}` was not analysed within {_REFRESHED_S:g} s")
        time.sleep(0.1)
    results.close()


def _scan(top: Path, home: Path, *, read: bool = False) -> None:
    with Scanner(top, cache_home=home) as scanner:
        scan = scanner.scan()
        if read:
            for file in scan.files.values():
                for name in file.values:
                    file.result(name)


def look_at_everything(top: Path) -> None:
    """Walk, read and parse all files, for the manifest and once more for the metrics."""
    elements = {path: _elements(text) for path, text in _texts(top)}
    metrics = {path: _sizes(text) for path, text in _texts(top)}
    if len(elements) != len(metrics):
        raise SystemExit("the tree has changed")


def _texts(top: Path) -> Iterator[tuple[str, str]]:
    for parent, folders, names in os.walk(top):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.endswith(".py"):
                path = os.path.join(parent, name)
                yield path, Path(path).read_bytes().decode("utf-8", "replace")


def _elements(text: str) -> list[tuple[str, str, str]]:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return []
    return [
        (type(node).__name__, node.name, (ast.get_docstring(node) or "").partition("\n")[0])
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def _sizes(text: str) -> tuple[int, int]:
    try:
        blocks = radon.complexity.cc_visit(text)
        return radon.raw.analyze(text).loc, sum(block.complexity for block in blocks)
    except (SyntaxError, ValueError, RecursionError):
        return 0, 0


def _run_radon(top: Path) -> None:
    """Do for all files what `radon raw`, `cc`, `hal` and `mi` do together."""
    for _, text in _texts(top):
        try:
            radon.raw.analyze(text)
            radon.complexity.cc_visit(text)
            radon.metrics.h_visit(text)
            radon.metrics.mi_visit(text, multi=True)
        except (SyntaxError, ValueError, RecursionError):
            continue


def _watcher_cost(top: Path, files: int) -> Cost:
    """Measure the watcher of a tree with ten files in each folder."""
    for number in range(files):
        path = top / f"a{number // 1000}" / f"b{number // 10}" / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    subprocess.run([*GIT, "init", "-q"], cwd=top, check=True)
    subprocess.run([*GIT, "add", "--all"], cwd=top, check=True)
    start_ms = elapsed_ms(lambda: watcher.start(top))
    try:
        status = watcher.status(top)
        assert status is not None
        process = Path(f"/proc/{status['pid']}")
        time.sleep(_SETTLED_S)
        before_ms = _cpu_ms(process)
        time.sleep(_IDLE_S)
        idle_ms = _cpu_ms(process) - before_ms
        memory = (process / "status").read_text().partition("VmHWM:")[2].split()[0]
    finally:
        watcher.stop(top)
    mib = round(int(memory) / 1024, 1)
    return Cost(files, status["folders"], round(start_ms, 1), mib, idle_ms, _IDLE_S)


def _cpu_ms(process: Path) -> float:
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


def _cost_text(cost: Cost) -> str:
    return (
        f"watcher of {cost.files:,} files in {cost.folders:,} folders: "
        f"{cost.memory_mib:.0f} MiB at most (at most 100), started in {cost.start_ms:,.0f} ms, "
        f"{cost.idle_cpu_ms:g} ms of processor time in {cost.idle_s:g} s idle"
    )


def _repeated(times: int, call: Callable[[], object]) -> list[float]:
    return [elapsed_ms(call) for _ in range(times)]


def elapsed_ms(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1000


def _text(rows: Sequence[Row]) -> str:
    lines: list[str] = []
    for tree in dict.fromkeys(row.tree for row in rows):
        mine = [row for row in rows if row.tree == tree]
        times = {row.what: row.median_ms for row in mine}
        lines.append(f"{tree}: {mine[0].files:,} Python files")
        lines += [f"  {what:38}  {time_ms:12,.1f} ms" for what, time_ms in times.items()]
        everything, one = times["everything each time"], times["radon, one process"]
        warm, cold = times["warm, another process's results"], times["cold"]
        lines += [
            f"  cold is {one / cold:.1f}x faster than radon in one process (at least 1.6x)",
            f"  warm is {everything / warm:,.0f}x faster than everything each time (at least 100x)",
            f"  one file changed: {times['one file changed, watcher']:.1f} ms with the watcher "
            "(at most 5 ms), "
            f"{times['one file changed, no watcher'] / times['one stat sweep']:.1f} stat sweeps "
            "without",
            "",
        ]
    return "\n".join(lines).rstrip()
