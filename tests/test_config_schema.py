"""The schema of the configuration: what it allows is what is read, and the other way round."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from sandbox_engine.config import STRATEGY_KEYS, Config, load_config
from sandbox_engine.config_schema import ABOUT, schema
from sandbox_engine.errors import UsageError

VALIDATOR = jsonschema.Draft7Validator(schema())


def is_read(tmp_path: Path, settings: str) -> bool:
    file = tmp_path / "sandbox-engine.toml"
    file.write_text(settings)
    try:
        load_config(tmp_path, environment={})
    except UsageError:
        return False
    return True


def is_allowed(settings: str) -> bool:
    return bool(VALIDATOR.is_valid(tomllib.loads(settings)))


def test_every_setting_is_described_and_has_its_default() -> None:
    jsonschema.Draft7Validator.check_schema(schema())
    names = {field.name for field in dataclasses.fields(Config)}
    assert set(ABOUT) == names == set(schema()["properties"])
    defaults: dict[str, Any] = {
        name: about["default"]
        for name, about in schema()["properties"].items()
        if "default" in about
    }
    VALIDATOR.validate(defaults)
    strategy = schema()["properties"]["strategies"]["additionalProperties"]
    assert set(strategy["properties"]) == set(STRATEGY_KEYS)


@pytest.mark.parametrize(
    "settings",
    [
        'strategy = "X"\ncarry = ["a", "b"]\ntimeout_s = 1.5\nslots = 2\nreruns = 0',
        'isolation = "auto"\nmin_isolation = "full"\nmax_new_skips = 1',
        'strategies.A.steps = ["syntax", {command = "x y"}, {pytest = ["-x"]}, "files-exist"]',
        'strategies.A = {steps = [], require = ["fixed:t.py::t"], network = true, cpu_s = 3}',
    ],
)
def test_what_is_allowed_is_read(tmp_path: Path, settings: str) -> None:
    assert is_allowed(settings) and is_read(tmp_path, settings)


@pytest.mark.parametrize(
    "settings",
    [
        "nonsense = 1",
        "slots = 0",
        "slots = 1.5",
        "reruns = -1",
        "max_new_skips = 1.5",
        'isolation = "most"',
        'min_isolation = "auto"',
        'strategy = ""',
        "carry = [1]",
        "strategies.A.steps = 1",
        'strategies.A.steps = ["nonsense"]',
        'strategies.A.steps = ["command"]',
        'strategies.A.steps = [{syntax = "x"}]',
        "strategies.A.network = true",
        "strategies.A = {steps = [], nonsense = 1}",
        'strategies.A = {steps = [], require = ["x"]}',
        'strategies.A = {steps = [], network = "yes"}',
    ],
)
def test_what_is_not_allowed_is_refused(tmp_path: Path, settings: str) -> None:
    assert not is_allowed(settings) and not is_read(tmp_path, settings)
