"""`hephaestus run` and `report`, as a person meets them."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from agent_world import PYTEST, SWAP, AgentWorld, adding, make_world, replacing
from conftest import GitBox

from agent.scripted_model import ScriptedModel

pytestmark = pytest.mark.usefixtures("no_reruns")


@pytest.fixture
def world(box: GitBox, tmp_path: Path) -> AgentWorld:
    return make_world(box, tmp_path / "agent")


@contextlib.contextmanager
def models(
    world: AgentWorld, plans: Sequence[Mapping[str, Any]], **settings: Any
) -> Iterator[Path]:
    """Yield a configuration file for a model that answers with these plans in turn."""
    rules = [
        {"model": "arch", "answers": list(plans)},
        {"model": "maestro", "answers": [{"json": {"strategy_key": PYTEST}, "times": None}]},
    ]
    script = {"rules": rules, "answers": [{"content": "Tidy calc.py", "times": None}]}
    with ScriptedModel(script) as model:
        path = world.home / "hephaestus_config.json"
        raw = {
            "models": {"architect_default": "arch", "maestro_default": "maestro", "light": "light"},
            "base_url": model.base_url,
            "api_key_variable": "AGENT_TEST_KEY",
            "cycle_delay_seconds": 0,
            "continuous_mode_delay_seconds": 0,
            **settings,
        }
        path.write_text(json.dumps(raw))
        yield path


def start(*words: object, cwd: Path, **options: Any) -> subprocess.Popen[str]:
    env = {**os.environ, "AGENT_TEST_KEY": "sk-very-secret-key-1234"}
    return subprocess.Popen(
        [sys.executable, "-m", "agent", *map(str, words)],
        cwd=cwd,
        env={**env, "PYTHONPATH": str(Path(__file__).parent.parent)},
        text=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


def run(*words: object, cwd: Path, code: int) -> tuple[str, str]:
    said, errors = (child := start(*words, cwd=cwd)).communicate(timeout=120)
    assert child.returncode == code, said + errors
    assert "Traceback" not in errors
    return said, errors


def test_a_line_for_each_cycle_and_the_phases_beside(world: AgentWorld) -> None:
    plans = [{"json": replacing(*SWAP)}, {"json": adding("b.py", "B = (1\n"), "times": None}]
    with models(world, plans) as config:
        options = ("--config", config, "--cycles", 2, "--objective", "Swap the operands")
        below = world.box.top / "tests"
        said, errors = run("run", "--repo", below, *options, cwd=world.home, code=1)
        first, second = said.splitlines()
        assert first == f"1 success {world.box.head} Swap the operands"
        assert second.startswith("2 failure Tidy calc.py")
        assert re.search(r"^  validation +\d+\.\d s \(the sandbox\)$", errors, re.MULTILINE)
        # Nothing of it is a secret, and all of it is in the log that was asked for.
        log = (world.home / "hephaestus.log").read_text()
        assert "sk-very-secret" not in said + errors + log
        report = world.home / "page.html"
        said, _ = run("report", "--config", config, "-o", report, cwd=world.home, code=0)
        assert said == f"`{report}` tells of 2 cycles\n" and "<svg" in report.read_text()


def test_the_configuration_of_the_project_is_found(world: AgentWorld) -> None:
    with models(world, [{"json": replacing(*SWAP)}]) as config:
        config.rename(world.box.top / config.name)
        said, _ = run("run", "--dry-run", cwd=world.box.top, code=0)
    assert said == "1 success Tidy calc.py\n"
    assert world.box.git("log", "--oneline").count("\n") == 0


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (("--cycles", "0"), "give 1 or more"),
        (("--cycles", "2", "--continuous"), "not allowed with"),
        (("--config", "gone.json"), "cannot be read"),
        (("--log-level", "LOUD"), "no log level `LOUD`"),
        (("--branch", "a..b"), "no branch name"),
        (("--repo", "/"), "no repository|not in a git repository|no git repository"),
    ],
)
def test_a_wrong_word_is_one_sentence(
    world: AgentWorld, words: tuple[str, ...], wrong: str
) -> None:
    with models(world, [{"json": replacing(*SWAP)}]) as config:
        given = ("--config", config, *words) if "--config" not in words else words
        if "--repo" not in words:
            given = ("--repo", world.box.top, *given)
        said, errors = run("run", *given, cwd=world.home, code=2)
    assert said == "" and re.search(wrong, errors)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_what_runs_and_the_next_run_goes_on(
    world: AgentWorld, number: signal.Signals
) -> None:
    slow = adding("tests/test_slow.py", "import time\n\ndef test_slow(): time.sleep(50)\n")
    with models(world, [{"json": slow}, {"json": replacing(*SWAP)}]) as config:
        options = ("--repo", world.box.top, "--config", config, "--objective", "Swap")
        child = start("run", *options, "--continuous", cwd=world.home)
        assert child.stderr is not None
        for line in child.stderr:
            if "maestro" in line:
                break
        time.sleep(2.0)
        began = time.monotonic()
        child.send_signal(number)
        said, errors = child.communicate(timeout=30)
        assert time.monotonic() - began < 10
        assert (child.returncode, said) == (130, "")
        assert "interrupted: the next run goes on from here" in errors
        assert "Traceback" not in errors
        # The answer to the first question is known: the second plan needs another one.
        said, _ = run("run", *options, "--no-llm-cache", cwd=world.home, code=0)
    assert said == f"1 success {world.box.head} Swap\n"


def test_a_person_sees_what_is_going_on(world: AgentWorld) -> None:
    ours, theirs = pty.openpty()
    with models(world, [{"json": replacing(*SWAP), "delay_s": 1.0}]) as config:
        options = ("--repo", world.box.top, "--config", config)
        child = start("run", *options, cwd=world.home, stderr=theirs)
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):
            while part := os.read(ours, 4096):
                shown += part
        os.close(ours)
        said, _ = child.communicate(timeout=60)
    assert child.returncode == 0 and said.startswith("1 success")
    assert re.search(rb"architect 0\.[4-9] s, waits for arch", shown)
    assert b"validation" in shown and shown.endswith(b"\r\x1b[K")
    assert b"  architect " not in shown


def test_a_reader_that_goes_away_is_no_traceback(world: AgentWorld) -> None:
    with (
        models(world, [{"json": replacing(*SWAP)}]) as config,
        start("run", "--repo", world.box.top, "--config", config, cwd=world.home) as child,
    ):
        assert child.stdout is not None and child.stderr is not None
        child.stdout.close()
        errors = child.stderr.read()
    assert "Traceback" not in errors
    assert world.box.git("log", "--oneline").count("\n") == 1
