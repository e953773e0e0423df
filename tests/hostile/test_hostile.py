"""Every hostile patch gets the answer it deserves, in time, and nothing anywhere is changed."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import GitBox

from sandbox_engine import Engine
from sandbox_engine.verdict import Outcome

from .cases import BASE, CASES, GROUPS, LINK, Hostile

DEADLINE_S = 30.0
"""For one patch on a loaded machine; alone the slowest takes five seconds."""


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GitBox:
    """A repository of the files that the patches are about, and a `/tmp` of its own."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    box = GitBox(tmp_path / "repo")
    for name, file in BASE.items():
        path = box.top / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        if file.mode == LINK:
            path.symlink_to(os.fsdecode(file.content))
        else:
            path.write_bytes(file.content)
    box.git("config", "core.autocrlf", "false")
    box.commit({})
    return box


def oracle(folder: Path) -> dict[str, str]:
    """Return the state of all below `folder` but our own store, and of our child processes."""
    state: dict[str, str] = {}
    for parent, folders, names in os.walk(folder):
        if Path(parent) == folder and "cache" in folders:
            folders.remove("cache")
        for name in (*names, *folders):
            path = Path(parent, name)
            state[str(path)] = _state(path)
    for number in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path("/proc", number, "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid() and fields[0] != "Z":
            state[f"child {number}"] = "runs"
    for name in ("/tmp/x", "/tmp/passwd", "/etc/passwd"):
        state[name] = _state(Path(name))
    return state


def _state(path: Path) -> str:
    try:
        status = path.lstat()
    except OSError:
        return "absent"
    if path.is_symlink():
        return f"{status.st_mode:o} -> {os.readlink(path)}"
    if not path.is_file():
        return f"{status.st_mode:o}"
    return f"{status.st_mode:o} {hashlib.sha256(path.read_bytes()).hexdigest()}"


def fault(engine: Engine, case: Hostile) -> str | None:
    """Return what is wrong with the answer to `case`, or None."""
    started = time.monotonic()
    verdict = engine.validate(
        case.text, format=case.format, match=case.match, strategy="SYNTAX_ONLY"
    )
    elapsed_s = time.monotonic() - started
    code = verdict.findings[0].code if verdict.findings else None
    if code != case.code or (case.code is not None and verdict.outcome is not Outcome.REJECTED):
        return f"{case.name}: {verdict.outcome} {code}, not {case.code}; {verdict.reason[:300]}"
    if elapsed_s > DEADLINE_S:
        return f"{case.name}: took {elapsed_s:.1f} s"
    return None


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.__name__)
def test_hostile_patches_are_refused_and_touch_nothing(
    group: Callable[[], Iterator[Hostile]], target: GitBox, tmp_path: Path
) -> None:
    engine = Engine(target.top)
    before = oracle(tmp_path)
    faults = [text for case in group() if (text := fault(engine, case))]
    assert not faults
    assert oracle(tmp_path) == before


def test_there_are_many_of_them() -> None:
    assert len(CASES) >= 200
    assert len({case.name for case in CASES}) == len(CASES)


def test_the_oracle_rings(target: GitBox, tmp_path: Path) -> None:
    before = oracle(tmp_path)
    for place in ("home/.bashrc", "repo/.git/hooks/pre-commit", "x", "tmp/x", "repo/a.py"):
        path = tmp_path / place
        old = path.read_bytes() if path.exists() else None
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"owned")
        assert oracle(tmp_path) != before, place
        if old is None:
            path.unlink()
        else:
            path.write_bytes(old)
    assert oracle(tmp_path).keys() >= before.keys()
