from __future__ import annotations

from pathlib import Path

import pytest

from sandbox_engine import ConfigError, UsageError
from sandbox_engine.config import Config, load_config
from sandbox_engine.process import Limits
from sandbox_engine.recipe import STRATEGIES, Step, StepKind

FULL = """
strategy = "MINE"
python = "tools/python"
carry = [".env", "src/**/_version.py"]
env = "DATABASE_URL, TOKEN"
timeout-s = 12.5
max_file_bytes = 100

[strategies.MINE]
description = "lint and test"
steps = ["syntax", {pytest = ["-x", "tests/unit"]}, {command = "ruff check '.'"}, "files-exist"]
memory_bytes = 1000
"""


def test_a_project_defines_its_own_strategy(tmp_path: Path) -> None:
    (tmp_path / "sandbox-engine.toml").write_text(FULL)
    config = load_config(tmp_path, environment={})
    recipe = config.recipe()
    assert recipe.name == "MINE"
    assert recipe.steps == (
        Step(StepKind.SYNTAX),
        Step(StepKind.PYTEST, ("-x", "tests/unit")),
        Step(StepKind.COMMAND, ("ruff", "check", ".")),
        Step(StepKind.FILES_EXIST),
    )
    assert recipe.limits == Limits(12.5, config.output_bytes, 1000)
    assert recipe.policy.max_file_bytes == 100
    assert (config.carry, config.env) == ((".env", "src/**/_version.py"), ("DATABASE_URL", "TOKEN"))
    assert config.recipe("SYNTAX_ONLY").limits.wall_s == 12.5
    assert set(STRATEGIES) < set(config.recipes())


def test_the_first_file_that_is_there_counts(tmp_path: Path) -> None:
    assert load_config(tmp_path, environment={}) == Config()
    (tmp_path / "setup.cfg").write_text("[tool:sandbox-engine]\ntimeout_s = 3\ncarry =\n  a\n  b\n")
    config = load_config(tmp_path, environment={})
    assert (config.timeout_s, config.carry) == (3.0, ("a", "b"))
    (tmp_path / "pyproject.toml").write_text("[tool.other]\nx = 1\n")
    assert load_config(tmp_path, environment={}).timeout_s == 3
    (tmp_path / "pyproject.toml").write_text("[tool.sandbox-engine]\ntimeout_s = 2\n")
    assert load_config(tmp_path, environment={}).timeout_s == 2
    (tmp_path / "sandbox-engine.toml").write_text("timeout_s = 1\n")
    assert load_config(tmp_path, environment={}).timeout_s == 1
    named = tmp_path / "named.toml"
    named.write_text("timeout_s = 9\n")
    assert load_config(tmp_path, file=named, environment={}).timeout_s == 9
    environment = {"SANDBOX_ENGINE_TIMEOUT_S": "7", "SANDBOX_ENGINE_RUN": "x"}
    assert load_config(tmp_path, file=named, environment=environment).timeout_s == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("timeout = 3", "`timeout`, which is no setting"),
        ("timeout_s = 'soon'", "`timeout_s` must be a positive number"),
        ("timeout_s = 0", "positive"),
        ("timeout_s = nan", "positive"),
        ("timeout_s = inf", "positive"),
        ("timeout_s = true", "positive"),
        ("slots = 1.5x", "not valid TOML"),
        ("slots = '1.5'", "positive whole number"),
        ("carry = [1]", "list of texts"),
        ("source_roots = ['/etc']", "relative to its top"),
        ("source_roots = ['../x']", "relative to its top"),
        ("python = 3", "must be a text"),
        ("strategies = 3", "a table of strategies"),
        ("[strategies]\nA = 3", "a table with `steps`"),
        ("[strategies.A]\nsteps = 'syntax'", "a list of steps"),
        ("[strategies.A]\nsteps = ['pytset']", "`pytset` is none"),
        ("[strategies.A]\nsteps = [[1]]", "is none"),
        ("[strategies.A]\nsteps = [{command = ''}]", "a command with its arguments"),
        ('[strategies.A]\nsteps = [{command = "it\'s"}]', "words as a shell reads them"),
        ("[strategies.A]\nsteps = [{command = 3}]", "a list of texts"),
        ("[strategies.A]\nsteps = [{syntax = 'x'}]", "without arguments"),
        ("[strategies.A]\nsteps = []\ntimeout = 3", "no setting of a strategy"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_key(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "sandbox-engine.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path, environment={})
    assert message in caught.value.problem
    assert "sandbox-engine.toml" in caught.value.problem


def test_a_near_key_and_a_near_strategy_are_suggested(tmp_path: Path) -> None:
    (tmp_path / "sandbox-engine.toml").write_text("timout_s = 3")
    with pytest.raises(ConfigError, match="`timeout_s`"):
        load_config(tmp_path, environment={})
    with pytest.raises(UsageError, match="`SYNTAX_ONLY`"):
        Config().recipe("syntax_only")


def test_a_tool_table_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool]\nsandbox-engine = 3\n")
    with pytest.raises(ConfigError, match="a table"):
        load_config(tmp_path, environment={})
    (tmp_path / "pyproject.toml").write_text("tool = 3\n")
    assert load_config(tmp_path, environment={}) == Config()


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no configuration file `.*gone.toml`"):
        load_config(tmp_path, file=tmp_path / "gone.toml")
    (tmp_path / "setup.cfg").write_text("no section\n")
    with pytest.raises(ConfigError, match=r"setup\.cfg"):
        load_config(tmp_path, environment={})


def test_the_fingerprint_covers_what_decides_a_run(tmp_path: Path) -> None:
    prints = set()
    for text in (
        "steps = ['pytest']",
        "steps = ['pytest', 'syntax']",
        "steps = [{command = ['a b']}]",
        "steps = [{command = ['a', 'b']}]",
        "steps = [{command = ['a__b']}]",
        "steps = ['pytest']\nmemory_bytes = 5",
        "steps = ['pytest']\ntimeout_s = 5",
    ):
        (tmp_path / "sandbox-engine.toml").write_text(f"[strategies.A]\n{text}\n")
        prints.add(load_config(tmp_path, environment={}).recipe("A").fingerprint())
    (tmp_path / "sandbox-engine.toml").write_text(
        "max_file_bytes = 7\n[strategies.A]\nsteps = ['pytest']\n"
    )
    prints.add(load_config(tmp_path, environment={}).recipe("A").fingerprint())
    assert len(prints) == 8
