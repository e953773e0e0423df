"""The hogs in a short form: each once, in the strongest tier that this machine has."""

from __future__ import annotations

import dataclasses
import importlib.machinery
import importlib.util
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import GitBox

_SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "hogs"
_SHORT = ("--tiers", "best", "--times", "1", "--deadline", "1.2", "--json")


@pytest.fixture(scope="module")
def hogs() -> Iterator[ModuleType]:
    """The script as a module."""
    loader = importlib.machinery.SourceFileLoader("hogs", str(_SCRIPT))
    spec = importlib.util.spec_from_loader("hogs", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "hogs", module)
        patch.setattr(sys, "dont_write_bytecode", True)
        loader.exec_module(module)
        yield module


def _run(temporary: Path, *arguments: str) -> dict[str, dict[str, Any]]:
    """Run the script and return its rows by shape."""
    temporary.mkdir()
    done = subprocess.run(
        [sys.executable, str(_SCRIPT), *_SHORT, *arguments],
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    assert list(temporary.iterdir()) == []
    rows = {row["shape"]: row for row in json.loads(done.stdout)["rows"]}
    assert done.returncode == int(any(row["losses"] for row in rows.values()))
    return rows


def test_no_hog_outlives_its_deadline_or_leaves_anything(tmp_path: Path, hogs: ModuleType) -> None:
    shapes = [shape.name for shape in hogs.SHAPES if shape.name != "report-flood"]
    only = [word for shape in shapes for word in ("--only", shape)]
    rows = _run(tmp_path / "temporary", *only)
    assert list(rows) == [*shapes, "plain"]
    assert {name: row["losses"] for name, row in rows.items() if row["losses"]} == {}
    assert all(row["runs"] == row["right"] == 1 for row in rows.values())


def test_a_flood_of_the_report_does_not_fill_the_engine(tmp_path: Path) -> None:
    assert _run(tmp_path / "temporary", "--only", "report-flood")["report-flood"]["losses"] == []


@pytest.mark.parametrize("name", ["daemon", "pipe", "stopped", "zombies"])
def test_processes_that_nobody_ends_are_found(tmp_path: Path, hogs: ModuleType, name: str) -> None:
    shape = next(shape for shape in hogs.SHAPES if shape.name == name)
    token = secrets.token_hex(16)
    script = tmp_path / "hog.py"
    script.write_text(f"{hogs.hostile_test(shape, token)}\n\ntest_hog()\n")
    hog = subprocess.Popen([sys.executable, str(script)], start_new_session=True)
    try:
        deadline = time.monotonic() + 10
        while not hogs.carriers(token).keys() - {hog.pid} and time.monotonic() < deadline:
            time.sleep(0.02)
        if name == "stopped":
            hog.kill()
        hog.wait(10)
        assert hogs.survivors(token, 0.1)
    finally:
        hog.kill()
        hog.wait()
    assert hogs.survivors(token, 1) == ()


def test_a_process_is_known_by_its_environment(hogs: ModuleType) -> None:
    token = secrets.token_hex(16)
    with subprocess.Popen(["sleep", "20"], env={"PATH": os.defpath, "ANY": token}) as child:
        try:
            assert list(hogs.carriers(token)) == [child.pid]
        finally:
            child.kill()


def test_what_is_left_and_what_has_changed_is_found(
    tmp_path: Path, hogs: ModuleType, project: GitBox
) -> None:
    for name in ("tmp", "home", "cache/1/slots/0.state/git"):
        (tmp_path / "world" / name).mkdir(parents=True)
    assert hogs.leftovers(tmp_path / "world") == ()
    for name in ("tmp/a", "home/.b", "cache/1/slots/0.state/scratch"):
        (tmp_path / "world" / name).touch()
    (tmp_path / "world" / "cache/1/slots/0.state/git/index.lock").touch()
    assert len(hogs.leftovers(tmp_path / "world")) == 4
    before = hogs.snapshot(project.top)
    (project.top / ".git" / "config").chmod(0o600)
    assert hogs.snapshot(project.top) != before


def test_each_kind_of_loss_rings(hogs: ModuleType) -> None:
    sleep = next(shape for shape in hogs.SHAPES if shape.name == "sleep")
    answer = hogs.Answer("INCONCLUSIVE", "raise `timeout_s`", "none")
    good = hogs.Seen(answer, wall_s=2.1, growth_bytes=10**6)
    assert hogs.losses(sleep, "none", good) == []
    for fault in (
        {"answer": dataclasses.replace(answer, outcome="PASSED")},
        {"answer": dataclasses.replace(answer, reason="it broke")},
        {"answer": dataclasses.replace(answer, isolation="other")},
        {"answer": hogs.Answer(error="the engine hangs")},
        {"wall_s": 4.1},
        {"growth_bytes": 21 * 10**6},
        {"survivors": ("1 sleep",)},
        {"leftovers": ("tmp/file",)},
        {"changes": ("calc.py",)},
    ):
        assert len(hogs.losses(sleep, "none", dataclasses.replace(good, **fault))) == 1
