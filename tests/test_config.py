from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sandbox_engine import ConfigError, UsageError
from sandbox_engine.config import Config, load_config
from sandbox_engine.process import Limits
from sandbox_engine.recipe import STRATEGIES, Demands, Step, StepKind
from sandbox_engine.verdict import Tier

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
        ("isolation = 'most'", "`isolation` must be one of auto, full, landlock, none"),
        ("isolation = ''", "`isolation` must be a text"),
        ("isolation = true", "`isolation` must be a text"),
        ("min_isolation = 'auto'", "`min_isolation` must be one of full, landlock, none"),
        ("readable = ['data']", "`readable` must be absolute paths; `data` is none"),
        ("readable = ['~/data']", "absolute paths"),
        ("readable = 3", "list of texts"),
        ("writable = ['/x']", "`writable`, which is no setting"),
        ("network = true", "`network`, which is no setting"),
        ("cpu_s = 0", "`cpu_s` must be a positive number"),
        ("processes = '1.5'", "`processes` must be a positive whole number"),
        ("open_files = -1", "`open_files` must be a positive whole number"),
        ("disk_bytes = 'much'", "`disk_bytes` must be a positive whole number"),
        ("inodes = true", "`inodes` must be a positive whole number"),
        ("[strategies.A]\nsteps = []\nnetwork = 1", "`strategies.A.network` must be true or false"),
        ("[strategies.A]\nsteps = []\nnetwork = 'true'", "true or false"),
        (
            "[strategies.A]\nsteps = []\nwritable = ['x']",
            "`strategies.A.writable` must be absolute",
        ),
        ("[strategies.A]\nsteps = []\nwritable = [3]", "list of texts"),
        ("[strategies.A]\nsteps = []\nisolation = 'none'", "no setting of a strategy"),
        ("[strategies.A]\nsteps = []\ninodes = 0", "`inodes` must be a positive"),
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


def test_a_fraction_is_no_whole_number(tmp_path: Path) -> None:
    (tmp_path / "sandbox-engine.toml").write_text("processes = 1.5\n")
    with pytest.raises(ConfigError, match="`processes` must be a positive whole number"):
        load_config(tmp_path, environment={})


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


def test_isolation_and_limits_are_set(tmp_path: Path) -> None:
    (tmp_path / "sandbox-engine.toml").write_text(
        "isolation = 'landlock'\nmin_isolation = 'landlock'\nreadable = ['/data', '/more']\n"
        "timeout_s = 1\ncpu_s = 2\nmemory_bytes = 3\nprocesses = 4\nopen_files = 5\n"
        "disk_bytes = 6\ninodes = 7\noutput_bytes = 8\n"
        "[strategies.OPEN]\nsteps = ['pytest']\nnetwork = true\nwritable = ['/out', '/a b']\n"
        "cpu_s = 20\ninodes = 70\n"
    )
    config = load_config(tmp_path, environment={})
    assert (config.isolation, config.wanted_tier) == ("landlock", Tier.LANDLOCK)
    assert (config.min_isolation, config.readable) == ("landlock", ("/data", "/more"))
    limits = Limits(
        wall_s=1, cpu_s=2, memory_bytes=3, processes=4, open_files=5, disk_bytes=6, inodes=7,
        output_bytes=8,
    )  # fmt: skip
    assert config.limits == config.recipe("SYNTAX_ONLY").limits == limits
    recipe = config.recipe("OPEN")
    # What a strategy does not say is as for all.
    assert recipe.limits == dataclasses.replace(limits, cpu_s=20, inodes=70)
    assert (recipe.network, recipe.writable) == (True, ("/out", "/a b"))
    assert recipe.openings == ("network", "writes /out", "writes /a b")
    shipped = config.recipe("SYNTAX_AND_PYTEST")
    assert (shipped.network, shipped.writable, shipped.openings) == (False, (), ())


def test_the_environment_chooses_the_isolation(tmp_path: Path) -> None:
    (tmp_path / "sandbox-engine.toml").write_text("isolation = 'full'\n")
    assert Config().wanted_tier is None
    environment = {
        "SANDBOX_ENGINE_ISOLATION": "none",
        "SANDBOX_ENGINE_READABLE": "/a,/b",
        "SANDBOX_ENGINE_INODES": "9",
        # Not a setting, but for the engine all the same.
        "SANDBOX_ENGINE_WITHOUT": "landlock",
    }
    config = load_config(tmp_path, environment=environment)
    assert (config.wanted_tier, config.readable, config.inodes) == (Tier.NONE, ("/a", "/b"), 9)
    auto = {"SANDBOX_ENGINE_ISOLATION": "auto"}
    assert load_config(tmp_path, environment=auto).wanted_tier is None
    for wrong in ("most", "FULL"):
        with pytest.raises(ConfigError, match=r"SANDBOX_ENGINE_\*.*`isolation` must be one of"):
            load_config(tmp_path, environment={"SANDBOX_ENGINE_ISOLATION": wrong})
    with pytest.raises(ConfigError, match="`readable` must be absolute paths"):
        load_config(tmp_path, environment={"SANDBOX_ENGINE_READABLE": "a"})


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
        "steps = ['pytest']\nnetwork = true",
        "steps = ['pytest']\nwritable = ['/a']",
        "steps = ['pytest']\nwritable = ['/a', '/b']",
        *(
            f"steps = ['pytest']\n{name} = 50"
            for name in ("cpu_s", "processes", "open_files", "disk_bytes", "inodes", "output_bytes")
        ),
    ):
        (tmp_path / "sandbox-engine.toml").write_text(f"[strategies.A]\n{text}\n")
        prints.add(load_config(tmp_path, environment={}).recipe("A").fingerprint())
    (tmp_path / "sandbox-engine.toml").write_text(
        "max_file_bytes = 7\n[strategies.A]\nsteps = ['pytest']\n"
    )
    prints.add(load_config(tmp_path, environment={}).recipe("A").fingerprint())
    assert len(prints) == 17


def test_a_strategy_may_demand_things_of_tests(tmp_path: Path) -> None:
    (tmp_path / "sandbox-engine.toml").write_text(
        "reruns = 0\nmax_new_skips = 0.1\n\n[strategies.A]\nsteps = ['pytest']\n"
        "require = ['fixed:t.py::a']\nkeep = ['t.py']\nallow_test_changes = true\n\n"
        "[strategies.B]\nsteps = ['pytest']\nmax_new_skips = 1\n"
    )
    config = load_config(tmp_path, environment={})
    first, second = config.recipe("A"), config.recipe("B")
    assert first.demands == Demands(("t.py::a",), ("t.py",), True, 0.1)
    assert second.demands == Demands(max_new_skips=1.0)
    assert config.recipe("SYNTAX_ONLY").demands.max_new_skips == 0.1
    assert (first.reruns, second.reruns) == (0, 0)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("reruns = -1", "a whole number, 0 or more"),
        ("max_new_skips = 1.5", "a share from 0 to 1"),
        ("[strategies.A]\nsteps = []\nrequire = ['t.py::a']", "`t.py::a` is nothing that can be"),
        ("[strategies.A]\nsteps = []\nrequire = ['fixed:']", "`fixed:` is nothing that can be"),
        ("[strategies.A]\nsteps = []\nallow_test_changes = 1", "true or false"),
        ("[strategies.A]\nsteps = []\nmax_new_skips = 'x'", "a share from 0 to 1"),
    ],
)
def test_a_demand_that_cannot_be_meant_is_refused(tmp_path: Path, setting: str, said: str) -> None:
    (tmp_path / "sandbox-engine.toml").write_text(setting)
    with pytest.raises(UsageError) as caught:
        load_config(tmp_path, environment={})
    assert said in str(caught.value)
