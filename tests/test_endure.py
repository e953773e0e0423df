"""Short forms of `scripts/endure`, and faults planted that each of its checks must find."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
sys.path.insert(0, str(_SCRIPTS))

from endurance import (  # noqa: E402
    committing,
    cycling,
    engines,
    full_disk,
    kills,
    project,
    scanning,
    together,
    traces,
)
from endurance.driver import Trigger  # noqa: E402
from endurance.project import Draw, Problem, World  # noqa: E402

from sandbox_engine import Analyser, Scanner, commit_hooks, watch  # noqa: E402
from sandbox_engine.analysis.stamps import Stamp  # noqa: E402


def _endure(*arguments: str) -> str:
    """Run the script in the tier that every machine has, and return what it printed."""
    done = subprocess.run(
        [sys.executable, str(_SCRIPTS / "endure"), *arguments, "--tiers", "none", "--seed", "3"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _can_mount() -> bool:
    argv = ["unshare", "-m" if os.geteuid() == 0 else "-rm", "mount", "-t", "tmpfs", "x", "/mnt"]
    with contextlib.suppress(OSError):
        return subprocess.run(argv, capture_output=True, check=False).returncode == 0
    return False


needs_mount = pytest.mark.skipif(not _can_mount(), reason="no file system can be mounted here")
needs_strace = pytest.mark.skipif(not shutil.which("strace"), reason="`strace` is not installed")


# The short forms.


def test_eight_kills_lose_nothing() -> None:
    said = _endure("kills", "--points", "8", "--times", "1")
    assert re.search(r"^all +8 +0$", said, re.MULTILINE)


def test_engines_beside_a_busy_user_are_right() -> None:
    assert "12 of 12 right, 0 faults" in _endure("together", "--engines", "3", "--each", "4")


@needs_mount
def test_a_full_disk_is_said_and_damages_nothing() -> None:
    said = _endure("full-disk", "--sizes", "16", "--ways", "cache clear", "--faults", "0")
    assert "error 3" in said


@needs_strace
def test_failing_calls_are_said_and_damage_nothing() -> None:
    said = _endure("full-disk", "--sizes", "", "--faults", "10")
    assert said.endswith("lost 0, seed 3\n")


# Alarms: every check is shown what it must find.


@pytest.fixture
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    # Compiling pytest anew takes longer than most tests, so all share one folder for that.
    compiled = tmp_path_factory.getbasetemp().parent / "compiled"
    compiled.mkdir(exist_ok=True)
    with project.make_world("none") as made:
        made.stores.mkdir()
        (made.stores / "compiled").symlink_to(compiled)
        yield made


@pytest.fixture
def store(world: World) -> Path:
    """A store without a run, as far as the checks look at it."""
    folder = world.stores / "repo-x"
    slot = folder / "slots" / "0.state"
    slot.mkdir(parents=True)
    (slot / "state").write_text("released")
    for path in (slot / "lock", folder / "store.lock"):
        path.touch()
    subprocess.run(["git", "init", "-q", "--bare", str(folder / "store.git")], check=True)
    return folder


def _good(world: World) -> Draw:
    return project.make_patch(world, "good", "CHECK", "t", random.Random(1))


def test_a_name_that_the_engine_has_not_is_told() -> None:
    points = [
        kills.Point("here", Trigger("store.no_such", "enter")),
        kills.Point("there", Trigger("store.tidy", "never", since="engine.Engine.nothing")),
    ]
    with pytest.raises(Problem) as caught:
        kills.check_points(points)
    for word in ("store.no_such", "engine.Engine.nothing", "never", "here", "there"):
        assert word in str(caught.value)


def test_every_point_is_there() -> None:
    kills.check_points(kills.POINTS)
    assert len({point.name for point in kills.POINTS}) == len(kills.POINTS)
    for tier in project.TIERS:
        assert len(kills.points_of(tier, 100)) >= 40


def test_a_point_that_is_not_reached_is_a_fault(world: World) -> None:
    tally = kills.Tally()
    killer = kills.Killer(world, 1)
    killer.usual_s = dict.fromkeys([("CHECK", False), ("TESTS", False)], 60.0)
    killer.kill(kills.Point("x", Trigger("tree.build_tree", "enter", call=99)), 0, tally)
    assert [fault for fault in tally.faults if "not reached" in fault]
    assert tally.kills == 0


def test_a_slow_next_run_is_a_fault(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kills, "SLACK_S", -9.0)
    killer, tally = kills.Killer(world, 2), kills.Tally()
    killer.kill(kills.Point("x", Trigger("tree.build_tree", "leave")), 0, tally)
    assert tally.kills == 1
    # Whatever is looked at first is late then, be it the run or what the killed one left.
    assert [fault for fault in tally.faults if "more than usual" in fault or "is left" in fault]


def test_a_wrong_verdict_is_told(world: World) -> None:
    draw = _good(world)
    record = {"outcome": "PASSED", "reason": "x: exit code 0", "steps": [{"output": ""}],
              "isolation": "none"}  # fmt: skip
    assert draw.fault(record, "none") == ""
    assert "PASSED" in draw.fault({**record, "outcome": "FAILED"}, "none")
    assert draw.fault({**record, "reason": "2 tests passed"}, "none")
    assert "tier" in draw.fault(record, "full")
    assert engines.line_fault(world, draw, {"error": "GitError", "text": "gone", "traceback": ""})


def test_a_tree_that_is_not_the_patch_s_is_told(world: World) -> None:
    good = _good(world)
    other = dataclasses.replace(good, patch=good.patch.replace("'t'", "'u'"))
    (fault,) = engines.verdict_faults(world, other, engines.drive(world, [other]))
    assert "FAILED (command python -S check.py: exit code 1) and not PASSED" in fault


def test_a_clean_world_has_no_leftovers(world: World, store: Path) -> None:
    assert traces.leftovers(world) == traces.fsck(world) == traces.broken_cache(world) == []


def test_a_process_that_is_left_is_found(world: World) -> None:
    for argv, environment in (
        (["sleep", "20"], {**os.environ, project.TOKEN_VARIABLE: world.token}),
        (["sh", "-c", f"sleep 20; : {world.token}"], dict(os.environ)),
        (["sleep", "20"], dict(os.environ)),
    ):
        with subprocess.Popen(argv, env=environment) as child:
            time.sleep(0.05)
            found = traces.leftovers(world)
            traces.clear(world)
        assert any(f"process {child.pid} is left" in line for line in found)
        assert traces.leftovers(world) == []


def test_locks_states_and_files_that_are_left_are_found(world: World, store: Path) -> None:
    (store / "slots" / "0.state" / "state").write_text("running")
    (store / "slots" / "0.state" / "index.lock").touch()
    (world.top / ".git" / "index.lock").touch()
    (world.temporary / "se-1").mkdir()
    (store / "tags.77.new").touch()
    (store / "promotion.json").touch()
    with (store / "store.lock").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        found = "\n".join(traces.leftovers(world))
    for word in (
        "the slot 0 is left in the state `running`", "`slots/0.state/index.lock` of the store",
        "`.git/index.lock`", "`se-1` is left", "tags.77.new", "`promotion.json`",
        "`store.lock` is held",
    ):  # fmt: skip
        assert word in found


def test_a_reference_that_is_left_is_found(world: World, store: Path) -> None:
    git_dir = store / "store.git"
    (git_dir / "objects" / "info" / "alternates").write_text(f"{world.top}/.git/objects\n")
    head = project.git(world.top, "rev-parse", "HEAD")
    for name in ("refs/passed/x", "refs/candidate/x"):
        project.git(git_dir, f"--git-dir={git_dir}", "update-ref", name, head)
    assert traces.leftovers(world) == ["the reference `refs/candidate/x` is left in `store.git`"]


@needs_mount
def test_a_mount_of_another_namespace_is_found(world: World) -> None:
    folder = world.cache_home / "deep"
    folder.mkdir()
    flags = "-m" if os.geteuid() == 0 else "-rm"
    script = f"mount -t tmpfs tmpfs {folder} && echo done && exec sleep 20"
    argv = ["unshare", flags, "--propagation", "private", "sh", "-c", script]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        found = traces.mounts(world)
        child.kill()
    assert len(found) == 1
    assert str(folder) in found[0]


def test_every_change_of_the_user_s_is_found(world: World) -> None:
    before = traces.take_snapshot(world.top)
    assert before.changes(traces.take_snapshot(world.top)) == []
    os.utime(world.top / "notes.log")
    project.git(world.top, "tag", "new")
    written = project.git(world.top, "hash-object", "-w", "--stdin", text="new")
    (world.top / "look.py").unlink()
    found = "\n".join(before.changes(traces.take_snapshot(world.top)))
    for word in ("notes.log", ".git/refs/tags/new", f"object {written} is new", "look.py"):
        assert word in found


def test_a_lost_object_is_found(world: World, store: Path) -> None:
    written = project.git(world.top, "hash-object", "-w", "--stdin", text="new")
    before = traces.take_snapshot(world.top)
    project.git(world.top, "prune")
    assert before.changes(traces.take_snapshot(world.top)) == [f"object {written} is lost"]
    for path in (world.top / ".git" / "objects" / "pack").iterdir():
        path.unlink()
    assert traces.fsck(world)[0].startswith("fsck of `.git`")


def test_a_damaged_cache_is_found(world: World, store: Path) -> None:
    (store / "cache.sqlite3").write_bytes(b"no database, but long enough to be looked at" * 40)
    assert "the cache does not open" in traces.broken_cache(world)[0]


@pytest.mark.parametrize("what", ["reference", "files", "index", "nobody"])
def test_a_torn_promotion_is_found(world: World, what: str) -> None:
    top, draw, tally = world.top, _good(world), kills.Tally()
    landed = kills.Landed(top, "main", traces.take_landing(top))
    tree = _landed_tree(world, draw)
    commit = project.git(top, "commit-tree", "-p", "main", "-m", "x", tree)
    said = [{"verdict": {"tree": tree}}]
    assert landed.faults(draw, said, tally) == []
    if what == "reference":
        project.git(top, "update-ref", "refs/heads/main", commit)
    elif what == "files":
        name, content = next(iter(draw.files.items()))
        (top / name).write_bytes(content or b"")
    elif what == "index":
        project.git(top, "read-tree", "-m", "main", tree)
    else:
        project.git(top, "read-tree", "-m", "-u", "main", tree)
        project.git(top, "update-ref", "refs/heads/main", commit)
        assert landed.faults(draw, said, tally) == []
        said = [{"verdict": {"tree": "0" * 40}}]
    assert landed.faults(draw, said, tally)
    landed.undo()


def _landed_tree(world: World, draw: Draw) -> str:
    """Return the tree that the patch leads to, with the user's index as it was."""
    copy = world.folder / "copy"
    project.git(world.folder, "clone", "-q", str(world.top), str(copy))
    for name, content in draw.files.items():
        (copy / name).write_bytes(content or b"")
    project.git(copy, "add", "--all")
    tree = project.git(copy, "write-tree")
    project.git(world.top, "fetch", "-q", str(copy), "HEAD")
    for path in (copy / ".git" / "objects").glob("??/*"):
        target = world.top / ".git" / "objects" / path.parent.name / path.name
        target.parent.mkdir(exist_ok=True)
        if not target.exists():
            shutil.copy(path, target)
    return tree


def test_a_user_who_is_disturbed_is_heard(world: World) -> None:
    user = together.User(world)
    before = traces.take_landing(world.top)
    user.work([_good(world)])
    assert (user.faults, together.left_behind(world, before, user)) == ([], [])
    (world.top / ".git" / "index.lock").touch()
    user.work([])
    assert any("index.lock" in fault for fault in user.faults)
    (world.top / ".git" / "index.lock").unlink()
    project.git(world.top, "update-ref", "refs/heads/main", "fixed")
    project.git(world.top, "config", "x.y", "z")
    assert together.left_behind(world, before, user) == [
        "changed: config",
        "0 commits of the user are left",
    ]


def test_a_missing_verdict_is_a_fault(world: World) -> None:
    due, tally = together.Due(_good(world), "fixed", False), together.Tally()
    driver = engines.Driver(world, "x", {**engines.spec(world, []), "repo": "/nonexistent"})
    driver.process.wait()
    together._judge(world, [due], driver, tally)
    assert any("1 verdicts of an engine are missing" in fault for fault in tally.faults)
    assert any("is not a folder" in fault for fault in tally.faults)


_CLASSIFIED = "error: no space\n\nhint: free some\n"


@pytest.mark.parametrize(
    ("kind", "answer", "word"),
    [
        ("good", (0, "PASSED", ""), "right"),
        ("breaking", (1, "FAILED", ""), "right"),
        ("good", (3, "INCONCLUSIVE", ""), "inconclusive"),
        ("good", (3, "", _CLASSIFIED), "error 3"),
        ("good", (2, "", _CLASSIFIED), "error 2"),
        ("good", (1, "FAILED", ""), "wrong"),
        ("breaking", (0, "PASSED", ""), "wrong"),
        ("good", (1, "PASSED", ""), "wrong"),
        ("good", (1, "", _CLASSIFIED), "wrong"),
        ("good", (3, "", "error: no space\n"), "wrong"),
        ("good", (3, "", f"{_CLASSIFIED}Traceback (most recent call last)"), "wrong"),
        ("good", (-9, "", "hung"), "wrong"),
    ],
)
def test_answers_under_trouble_are_judged(
    world: World, kind: str, answer: tuple[int, str, str], word: str
) -> None:
    code, outcome, errors = answer
    draw = project.make_patch(world, kind, "CHECK", "t", random.Random(1))
    record: dict[str, Any] = {"outcome": outcome, "reason": "exit code 0, exit code 1",
                              "steps": [], "isolation": "none"}  # fmt: skip
    output = json.dumps(record) if outcome else ""
    found, fault = full_disk.judge(world, draw, full_disk.Answer(code, output, errors))
    assert found == word
    assert bool(fault) == (word == "wrong")
    troubled = full_disk.undisturbed_fault(world, draw, full_disk.Answer(code, output, errors))
    assert bool(troubled) == (word != "right")


@needs_strace
def test_a_call_that_is_not_made_is_no_fault_and_one_that_is_fails(world: World) -> None:
    with full_disk.Breaker(world, 1) as breaker:
        none, all_of_it, killed = (full_disk.Tally() for _ in range(3))
        breaker.fail(full_disk.Fault("EIO", "openat", 60_000, is_cold=True), none)
        breaker.fail(full_disk.Fault("EIO", "openat", 3, is_cold=True), all_of_it)
        breaker.fail(full_disk.Fault("SIGKILL", "openat", 3, is_cold=True), killed)
    assert (none.words, none.faults) == ({"not made": 1}, [])
    assert (sum(all_of_it.words.values()), all_of_it.faults) == (1, [])
    assert (killed.words, killed.faults) == ({"killed": 1}, [])


def test_faults_are_spread_evenly() -> None:
    assert full_disk._shares([1, 100, 3], 10) == [1, 6, 3]
    assert full_disk._shares([1, 2], 10) == [1, 2]
    assert full_disk._shares([5, 5, 5, 5], 6) == [1, 2, 1, 2]
    assert full_disk._shares([5, 5, 5, 5], 2) == [0, 1, 0, 1]


# Scans and caches.


def _endure_alone(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(_SCRIPTS / "endure"), *arguments, "--seed", "3"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_scans_are_right_after_a_few_sequences_of_edits() -> None:
    said = _endure_alone("scans", "--sequences", "12", "--flood", "500")
    for state in scanning.STATES:
        assert re.search(rf"^{state} +3 +\d+ +\d+ +0$", said, re.MULTILINE), said
    # With a watcher most scans do without a sweep.
    assert re.search(r"^on +3 +\d+ +3 +0$", said, re.MULTILINE), said


def test_caches_survive_a_few_kills_and_damages() -> None:
    said = _endure_alone("caches", "--kills", "5", "--damages", "10")
    assert re.search(r"^killed +5 +0$", said, re.MULTILINE)
    assert re.search(r"^damaged +10 +0$", said, re.MULTILINE)


def test_a_watcher_that_leaves_something_out_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = scanning.make(tmp_path / "repository", 1)
    with Scanner(box.top, [scanning.WORDS], cache_home=tmp_path / "cache") as scanner:
        monkeypatch.setattr(watch, "ask", lambda *_, **__: watch.Changes("x:1", frozenset()))
        assert not scanning._is_lost(box, scanner, [], 0)
        assert scanning._is_lost(box, scanner, ["save", "in place"], 0)


def test_a_stamp_that_is_believed_too_soon_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = scanning.make(tmp_path / "repository", 1)
    monkeypatch.setattr(
        Stamp, "of", staticmethod(lambda status: Stamp(status.st_size, status.st_mtime_ns, 1, 1))
    )
    with Scanner(box.top, [scanning.WORDS], cache_home=tmp_path / "cache") as scanner:
        time.sleep(0.05)
        scanner.scan()
        assert scanning._is_lost(box, scanner, ["in place"] * 6, 0)


def test_a_cache_that_is_believed_though_it_is_damaged_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(60):
        (tmp_path / f"{number}.txt").write_text(f"word {number:08}")
    assert not scanning._is_wrong(tmp_path)
    wrong = Analyser("words", "1", lambda content: ["wrong"], (".txt",))
    with Scanner(tmp_path, [wrong], cache_home=tmp_path / ".cache") as scanner:
        with sqlite3.connect(tmp_path / ".cache" / "analyses.sqlite3") as connection:
            connection.execute("DELETE FROM result")
        connection.close()
        scanner.scan()
    assert scanning._is_wrong(tmp_path)


# Commits.


def test_commits_in_every_way_are_right() -> None:
    said = _endure_alone("commits", "--each", "1")
    for way in committing.WAYS:
        assert re.search(rf"^{way} +1 +0$", said, re.MULTILINE), said


_WRONG_HOOKS = {
    "git add mine.txt": "the commit has the tree",
    "echo more >> mine.txt": "is not as it was",
    "git update-index --refresh; touch untracked.py; git add -N untracked.py": "tells otherwise",
    "git stash -q --keep-index": "`git stash list` tells otherwise",
    "unset GIT_INDEX_FILE": "judged were",
    "SKIP_SANDBOX_ENGINE=1; export SKIP_SANDBOX_ENGINE": "judged were []",
    "exit 1": "git refused it",
}


@pytest.mark.parametrize("first", _WRONG_HOOKS)
def test_a_hook_that_is_wrong_is_found(
    first: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install = commit_hooks.install

    def install_wrong(top: Path, arguments: list[str]) -> None:
        path = install(top, arguments).path
        path.write_text(path.read_text().replace("exec ", f"{first}\nexec "))

    monkeypatch.setattr(commit_hooks, "install", install_wrong)
    assert committing.commits(1, 3, ["commit FILE"]) >= 1
    assert _WRONG_HOOKS[first] in capsys.readouterr().err


# Cycles.


def test_cycles_survive_a_few_kills() -> None:
    said = _endure_alone("cycles", "--times", "4")
    assert re.search(r"^killed +4$", said, re.MULTILINE)


@pytest.fixture
def place(tmp_path: Path) -> cycling.Place:
    made = cycling.Place(tmp_path)
    assert [*made._torn(), *made._forgotten()] == []
    return made


def test_what_a_killed_agent_tears_is_found(place: cycling.Place) -> None:
    (place.top / ".git" / "index.lock").touch()
    assert list(place._torn()) == ["lock: index.lock stayed"]
    (place.top / ".git" / "index.lock").unlink()
    place.git("commit", "-q", "-m", "what the user has staged")
    status, branch = place._torn()
    assert status.startswith("work tree: ") and "changes ['staged.txt']" in branch


def test_what_a_killed_agent_forgets_is_found(place: cycling.Place) -> None:
    place.acknowledged.add(1)
    assert list(place._forgotten()) == ["log: acknowledged cycles [1] are not in it"]


def test_an_edit_that_a_killed_agent_loses_is_found(
    place: cycling.Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cycling, "_SETTLES_S", 0.0)
    place.configure("http://127.0.0.1:9")
    place.git("checkout", "mine.txt")
    assert "edit: `mine.txt` is not as the user left it" in place.kill_one(0.1)
