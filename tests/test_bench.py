"""The measurement itself: it runs, says what it measured, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree
from pathlib import Path

import pytest
from conftest import GitBox

_BENCH = Path(__file__).resolve().parent.parent / "scripts" / "bench"


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """The folder that the measurement takes for the machine's temporary one."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    return folder


def _argv(*arguments: str | Path) -> list[str]:
    return [sys.executable, str(_BENCH), *map(str, arguments)]


def _bench(temporary: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _argv(*arguments),
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_small_measurement_is_whole(temporary: Path, tmp_path: Path) -> None:
    plot = tmp_path / "plot.svg"
    done = _bench(temporary, "--sizes", "30", "--runs", "2", "--json", "--plot", plot)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    rows = {row["what"]: row for row in report["rows"]}
    assert {"engine, warm slot", "engine, cold slot", "copytree + git apply"} <= rows.keys()
    assert all(len(row["times_ms"]) == 2 and row["min_ms"] > 0 for row in rows.values())
    assert rows.get("engine, layers", rows["engine, warm slot"])["ratio"] == 1
    trivial = [number for number in report["numbers"] if "`true`" in number["what"]]
    assert 1 <= len(trivial) <= 3
    assert len(report["numbers"]) == 10 + len(trivial)
    assert all(number["is_reached"] in (True, False) for number in report["numbers"])
    assert report["machine"]["cores"] >= 1
    assert xml.etree.ElementTree.parse(plot).getroot().tag.endswith("svg")
    assert not any(temporary.iterdir())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--sizes", "nine"), "`nine` is not a positive whole number"),
        (("--sizes", "3"), "a size is at least 10"),
        (("--runs", "0"), "`0` is not a positive whole number"),
        (("--repo", "/nowhere/at/all"), "`/nowhere/at/all` is not a folder"),
        (("--plot", "/nowhere/at/all.svg"), "does not exist"),
        (("--fast",), "unrecognized arguments: --fast"),
    ],
)
def test_wrong_arguments_end_in_one_sentence(
    temporary: Path, arguments: tuple[str, ...], told: str
) -> None:
    done = _bench(temporary, *arguments)
    assert done.returncode == 2
    assert told in done.stderr and done.stderr.count("\n") == 1
    assert not done.stdout


def test_a_repository_without_python_files_is_refused(temporary: Path, box: GitBox) -> None:
    box.commit({"README": "nothing to patch\n"})
    before = box.snapshot()
    done = _bench(temporary, "--sizes", "10", "--runs", "1", "--repo", box.top)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("repo, 1 files: fewer than 5 are Python files")
    assert box.snapshot() == before
    assert not any(temporary.iterdir())


def test_an_interrupt_leaves_nothing_behind(temporary: Path) -> None:
    with subprocess.Popen(
        _argv("--sizes", "300"), env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        assert child.stderr is not None
        while "run 1" not in child.stderr.readline():
            assert child.poll() is None
        time.sleep(0.2)
        child.send_signal(signal.SIGINT)
        assert "interrupted" in child.communicate(timeout=20)[1]
    assert child.returncode == 130
    assert not any(temporary.iterdir())
