"""What `setup` makes: once for what is the same, for nobody else where a patch has a say in it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import GitBox
from test_cli import run

from sandbox_engine import Config, Engine, Outcome, Tier
from sandbox_engine.verdict import Cause

MAKE = """\
import os, pathlib
pathlib.Path("made").mkdir(exist_ok=True)
pathlib.Path("made/value.py").write_text("VALUE = 7\\n")
os.symlink("value.py", "made/link.py")
print("made it")
"""
TESTS = """\
import pathlib
from made.value import VALUE

def test_value():
    assert VALUE == 7 and pathlib.Path("made/link.py").is_symlink()
    pathlib.Path("made/value.py").write_text("VALUE = 8\\n")
"""
PATCH = '{"patches_to_apply": [{"file_path": "%s", "operation": "INSERT", "content": "%s\\n"}]}'
NEW = PATCH % ("notes.txt", "x")


@pytest.fixture(params=[Tier.FULL, Tier.NONE], ids=str)
def tier(request: pytest.FixtureRequest) -> Tier:
    if request.param is Tier.FULL:
        request.getfixturevalue("full_tier")
    tier: Tier = request.param
    return tier


@pytest.fixture
def made(box: GitBox) -> GitBox:
    """A project whose tests need what a command makes."""
    files = {".gitignore": "made/\n__pycache__/\n", "make.py": MAKE, "test_made.py": TESTS}
    box.commit({**files, "requirements.txt": "a==1\n"})
    return box


def engine(box: GitBox, tier: Tier, *commands: str, network: bool = False) -> Engine:
    config = Config(isolation=tier, setup=commands, setup_network=network, reruns=0)
    return Engine(box.top, config=config)


def places(of: Engine) -> dict[str, int]:
    """Return the places of what was made, and when."""
    folder = of.store.folder / "prepared"
    return {path.parent.name: path.stat().st_ino for path in folder.glob("*/paths")}


def test_tests_have_what_was_made_once(made: GitBox, tier: Tier) -> None:
    before = made.snapshot()
    bare = engine(made, tier).validate(NEW)
    assert bare.outcome is Outcome.INCONCLUSIVE
    prepared = engine(made, tier, "python make.py")
    verdict = prepared.validate(NEW)
    assert verdict.outcome is Outcome.PASSED, verdict.reason
    once = places(prepared)
    assert len(once) == 1
    # A test has written to what was made, and the next one does not see that.
    assert prepared.validate(NEW, use_cache=False).outcome is Outcome.PASSED
    again = engine(made, tier, "python make.py").validate(PATCH % ("other.txt", "y"))
    assert again.outcome is Outcome.PASSED
    assert places(prepared) == once, "it is made once for all that have the same locks"
    assert made.snapshot() == before


def test_a_patch_of_a_lock_file_is_prepared_for_by_itself(made: GitBox, tier: Tier) -> None:
    prepared = engine(made, tier, "python make.py")
    assert prepared.validate(NEW).outcome is Outcome.PASSED
    edit = {"file_path": "requirements.txt", "operation": "INSERT", "content": "b==1\n"}
    evil = {
        "file_path": "make.py",
        "operation": "REPLACE",
        "block_to_replace": "VALUE = 7",
        "content": "VALUE = 9",
    }
    plan = json.dumps({"patches_to_apply": [{**edit, "line_number": 2}, evil]})
    assert prepared.validate(plan).outcome is Outcome.FAILED
    assert len(places(prepared)) == 2
    # Another patch with the same lock file is not judged with what that one has made.
    honest = json.dumps({"patches_to_apply": [{**edit, "line_number": 2}]})
    assert prepared.validate(honest).outcome is Outcome.PASSED
    assert len(places(prepared)) == 3
    # What makes things is no lock file: it is the base's that runs.
    alone = json.dumps({"patches_to_apply": [evil]})
    assert prepared.validate(alone).outcome is Outcome.PASSED
    assert len(places(prepared)) == 3


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("python -c 'print(\"why\"); raise SystemExit(3)'", "ends with 3"),
        ('python -c \'import os; os.symlink("/etc/passwd", "made-link")\'', "cannot be kept"),
        ("python -c 'import time; time.sleep(60)'", "was ended at the limit `time-out`"),
    ],
)
def test_what_fails_is_told_and_nothing_is_kept(
    made: GitBox, tier: Tier, command: str, said: str
) -> None:
    config = Config(isolation=tier, setup=(command,), timeout_s=1.5)
    prepared = Engine(made.top, config=config)
    for _ in range(2):
        verdict = prepared.validate(NEW)
        assert (verdict.outcome, verdict.cause) == (Outcome.INCONCLUSIVE, Cause.INFRA)
        assert said in verdict.reason and verdict.hint
        if "why" in command:
            assert verdict.steps[-1].output == "why\n"
    assert places(prepared) == {}


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_the_network_is_open_only_where_it_is_said(
    made: GitBox, full_tier: None, port: int
) -> None:
    call = f"python -c 'import socket; socket.create_connection((\"127.0.0.1\", {port}), 5)'"
    shut = engine(made, Tier.FULL, "python make.py", call).validate(NEW)
    assert shut.outcome is Outcome.INCONCLUSIVE and "of `setup` ends with 1" in shut.reason
    verdict = engine(made, Tier.FULL, "python make.py", call, network=True).validate(NEW)
    assert verdict.outcome is Outcome.PASSED
    assert verdict.openings == ("network for `setup`",)


def test_it_is_a_setting_like_others(made: GitBox, tmp_path: Path) -> None:
    (made.top / "sandbox-engine.toml").write_text('setup = ["python make.py"]\n')
    done = run("validate", "-", cwd=made.top, text=NEW, check=0)
    assert done.stdout.startswith("PASSED")
    (made.top / "sandbox-engine.toml").write_text('setup = ["\'"]\n')
    assert "`setup` must be" in run("config", "check", cwd=made.top, check=2).stderr
    (made.top / "sandbox-engine.toml").write_text('setup_network = "maybe"\n')
    assert "true or false" in run("config", "check", cwd=made.top, check=2).stderr
