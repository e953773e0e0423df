"""What is no longer needed goes, what is used or kept stays, also while others are at work."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest
from conftest import GitBox
from test_cli import BREAKING, GOOD, run

from sandbox_engine import Config, Engine, Outcome, Tier, cleaning, kept, store

pytestmark = pytest.mark.usefixtures("no_reruns")


def aged(folder: Path, days: float) -> None:
    """Make all below `folder` as old as if nobody had been there for `days`."""
    then = time.time() - days * cleaning.DAY_S
    for parent, names, files in os.walk(folder):
        for name in (*names, *files):
            os.utime(os.path.join(parent, name), (then, then), follow_symlinks=False)


def objects(engine: Engine) -> int:
    return len(list((engine.store.git_dir / "objects").glob("??/*")))


@pytest.mark.parametrize("tier", [Tier.FULL, Tier.NONE], ids=str)
def test_what_was_not_used_for_long_goes(
    project: GitBox, tier: Tier, request: pytest.FixtureRequest
) -> None:
    if tier is Tier.FULL:
        request.getfixturevalue("full_tier")
    engine = Engine(project.top, config=Config(isolation=tier, reruns=0))
    passed = engine.validate(GOOD)
    failed = engine.validate(BREAKING)
    name = kept.keep(engine.store, failed, "mine")
    assert cleaning.clean(engine.store) == []
    (engine.store.folder / "staged-left").mkdir()
    (engine.store.folder / "staged-left" / "index").write_bytes(bytes(9000))
    aged(engine.store.folder, 30)
    before = objects(engine)
    what = {freed.what for freed in cleaning.clean(engine.store)}
    assert what >= {"left behind", "objects", "layers" if tier is Tier.FULL else "slots"}
    assert objects(engine) < before
    assert not store.is_kept(engine.store, passed.tree or passed.base_tree)
    assert (name / "calc.py").exists()
    subprocess.run(["git", "fsck", "--strict"], cwd=name, check=True, capture_output=True)
    # All is made again when it is wanted.
    assert engine.validate(BREAKING, use_cache=False).outcome is Outcome.FAILED
    again = engine.validate(GOOD)
    assert again.outcome is Outcome.PASSED
    assert engine.promote(again, branch="main")


def test_what_is_in_use_stays(project: GitBox) -> None:
    engine = Engine(project.top, config=Config(isolation=Tier.NONE))
    engine.validate(GOOD)
    aged(engine.store.folder, 30)
    before = objects(engine)
    with store.in_use(engine.store):
        cleaning.clean(engine.store)
        assert objects(engine) == before, "objects may be wanted by who is at work"
    cleaning.clean(engine.store)
    assert objects(engine) < before


def test_a_store_that_is_too_large_gives_up_what_can_be_made_again(project: GitBox) -> None:
    engine = Engine(project.top)
    engine.validate(GOOD)
    assert cleaning.clean(engine.store) == []
    assert cleaning.clean(engine.store, most_bytes=0)


def test_the_store_of_a_repository_that_is_gone_goes(project: GitBox, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(project.top, other)
    lost = Engine(other)
    lost.validate(GOOD, strategy="SYNTAX_ONLY")
    engine = Engine(project.top)
    cleaning.clean(engine.store)
    assert lost.store.folder.exists()
    shutil.rmtree(other)
    assert "stores of repositories that are gone" in {
        freed.what for freed in cleaning.clean(engine.store)
    }
    assert not lost.store.folder.exists() and engine.store.folder.exists()


def test_it_runs_by_itself_once_a_day(project: GitBox) -> None:
    engine = Engine(project.top)
    assert not cleaning.begin_if_due(engine.store), "a new store has nothing to take away"
    stamp = engine.store.folder / "cleaned"
    aged(engine.store.folder, 30)
    (engine.store.folder / "staged-left").mkdir()
    aged(engine.store.folder, 30)
    run("validate", "-", "--strategy", "SYNTAX_ONLY", cwd=project.top, text=GOOD, check=0)
    deadline = time.monotonic() + 30
    while (engine.store.folder / "staged-left").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not (engine.store.folder / "staged-left").exists()
    assert time.time() - stamp.stat().st_mtime < 60
    assert not cleaning.begin_if_due(engine.store)


def test_a_person_is_told_what_was_freed(project: GitBox) -> None:
    run("validate", "-", cwd=project.top, text=GOOD, check=0)
    done = run("gc", "--age", "0", cwd=project.top, check=0)
    assert done.stdout.endswith(" MiB freed\n")
    for words, said in ((("--age", "x"), "no number of days"), (("--size", "x"), "no number of")):
        assert said in run("gc", *words, cwd=project.top, check=2).stderr


def test_who_validates_meanwhile_loses_nothing(project: GitBox) -> None:
    """Twenty verdicts beside a cleaner that thinks that everything is old."""
    config = Config(isolation=Tier.NONE, slots=2, reruns=0)
    engine = Engine(project.top, config=config)
    chance = random.Random(5)
    over = threading.Event()
    cleaned = 0

    def work() -> None:
        nonlocal cleaned
        cleaner = Engine(project.top, config=config)
        while not over.is_set():
            aged(cleaner.store.git_dir, 30)
            cleaning.clean(cleaner.store, age_s=0)
            cleaned += 1

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for number in range(20):
            text = chance.choice((GOOD, GOOD.replace("# sum", f"# {number % 4}")))
            verdict = engine.validate(text, use_cache=number % 2 == 0, strategy="SYNTAX_ONLY")
            assert verdict.outcome is Outcome.PASSED
            if number % 10 == 0:
                verdict = engine.validate(text, use_cache=False)
                assert verdict.outcome is Outcome.PASSED
    finally:
        over.set()
        thread.join()
    assert cleaned > 3
