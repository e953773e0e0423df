"""Judged trees that are kept: whole, by themselves, and gone when they are taken away."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from conftest import GitBox
from test_cli import BREAKING, SYNTAX, run

from sandbox_engine import Engine, UsageError, kept

pytestmark = pytest.mark.usefixtures("no_reruns")


def git(folder: Path, *words: str) -> str:
    return subprocess.run(
        ["git", *words], cwd=folder, capture_output=True, text=True, check=True
    ).stdout


def test_what_was_judged_is_there_with_its_base_and_its_change(
    project: GitBox, engine: Engine
) -> None:
    before = project.snapshot()
    verdict = engine.validate(BREAKING)
    folder = kept.keep(engine.store, verdict, "one")
    assert "return a - b" in (folder / "calc.py").read_text()
    assert git(folder, "status", "--porcelain") == ""
    assert git(folder, "rev-parse", "HEAD~").strip() == verdict.base
    assert git(folder, "diff", "--stat", "HEAD~").startswith(" calc.py | 1 +")
    assert git(folder, "branch", "--show-current").strip() == "candidate"
    git(folder, "fsck", "--strict")
    assert [one.name for one in kept.find_kept(engine.store)] == ["one"]
    # Garbage collection of the store takes nothing that is kept.
    git(engine.store.git_dir, "prune", "--expire=now")
    git(folder, "fsck", "--strict")
    assert kept.remove(engine.store, "one") > 0
    assert not folder.exists() and kept.find_kept(engine.store) == []
    assert project.snapshot() == before


def test_what_cannot_be_kept_is_told(project: GitBox, engine: Engine) -> None:
    verdict = engine.validate(BREAKING)
    kept.keep(engine.store, verdict, "one")
    with pytest.raises(UsageError, match="is kept already"):
        kept.keep(engine.store, verdict, "one")
    for name in ("../x", "", "a/b", ".hidden", "a..b", "x.lock", "a" * 65):
        with pytest.raises(UsageError, match="is no name"):
            kept.keep(engine.store, verdict, name)
    with pytest.raises(UsageError, match="no sandbox `two` is kept"):
        kept.remove(engine.store, "two")
    with pytest.raises(UsageError, match="there is no tree of it"):
        kept.keep(engine.store, engine.validate("nonsense"), "two")
    with pytest.raises(UsageError, match="is no longer kept"):
        kept.keep(engine.store, engine.validate(SYNTAX), "two")
    assert kept.free_name(engine.store, "one") == "one-2"
    assert [one.name for one in kept.find_kept(engine.store)] == ["one"]


def test_a_person_keeps_opens_and_removes(project: GitBox, tmp_path: Path) -> None:
    run("validate", "-", cwd=project.top, text=BREAKING, check=1)
    tree = run("show", "--output", "json", cwd=project.top).stdout.split('"tree": "')[1][:40]
    shown = run("sandbox", "open", tree[:8], "--", "cat", "calc.py", cwd=project.top, check=0)
    assert "return a - b" in shown.stdout and "isolated from nothing" in shown.stderr
    listed = run("sandbox", "list", cwd=project.top, check=0).stdout
    assert "slot 0  free" in listed and "kept" not in listed
    done = run("sandbox", "open", tree, "--", "sh", "-c", "touch new; exit 7", cwd=project.top)
    assert done.returncode == 7 and f"so `{tree[:10]}` is kept" in done.stderr
    folder = Path(run("sandbox", "keep", tree, cwd=project.top, check=0).stdout.strip())
    assert folder.name == f"{tree[:10]}-2" and (folder / "calc.py").exists()
    listed = run("sandbox", "list", cwd=project.top, check=0).stdout
    assert f"kept {folder.name} " in listed
    shown = run("sandbox", "open", folder.name, "--", "pwd", cwd=project.top, check=0)
    assert os.path.samefile(shown.stdout.strip(), folder)
    run("sandbox", "rm", tree[:10], folder.name, cwd=project.top, check=0)
    assert not folder.exists()
    assert "no verdict with" in run("sandbox", "open", "zzz", cwd=project.top, check=2).stderr
