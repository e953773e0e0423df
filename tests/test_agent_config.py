from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from agent.config import (
    EXAMPLE,
    STRATEGIES,
    Config,
    Model,
    Models,
    SanityStep,
    StepName,
    Strategy,
    Task,
    check_config,
    known_keys,
    load_config,
)
from sandbox_engine import ConfigError

DOCS = Path(__file__).parent.parent / "docs" / "agent-config.md"
LEAST: dict[str, Any] = {"models": {"architect_default": "a"}}
ORIGINAL = {
    "models": {
        "architect_default": "big",
        "maestro_default": {"primary": "small", "fallback": "other"},
        "objective_generator": "o",
        "capacitation_generator": "c",
        "error_analyzer": "e",
    },
    "code_analysis_thresholds": {"file_loc": 200, "function_loc": 40, "function_cc": 8},
    "validation_strategies": {
        "SYNTAX_AND_PYTEST": {
            "steps": ["validate_syntax", "run_pytest_validation", "apply_patches_to_disk"],
            "sanity_check_step": "run_pytest",
        }
    },
    "memory_file_path": "HEPHAESTUS_MEMORY.json",
    "degenerative_loop_threshold": 3,
    "cycle_delay_seconds": 1,
    "continuous_mode_delay_seconds": 5,
    "test_fix_strategy_key": "SYNTAX_AND_PYTEST",
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "hephaestus_config.json"


def mistakes(file: Path, content: object) -> dict[str, str | None]:
    """Return the hint of each mistake by its message."""
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return {finding.message: finding.hint for finding in check_config(file)}


def test_a_file_of_the_originals_is_read(file: Path) -> None:
    assert mistakes(file, ORIGINAL) == {}
    config = load_config(file)
    assert config.models.architect_default == Model("big")
    assert config.models.maestro_default == Model("small", "other")
    assert config.code_analysis_thresholds.function_cc == 8
    assert config.validation_strategies == {
        "SYNTAX_AND_PYTEST": Strategy(
            (
                StepName.VALIDATE_SYNTAX,
                StepName.RUN_PYTEST_VALIDATION,
                StepName.APPLY_PATCHES_TO_DISK,
            ),
            SanityStep.RUN_PYTEST,
        )
    }
    assert config.test_fix_strategy == "SYNTAX_AND_PYTEST"
    assert config.memory_file_path == file.with_name("HEPHAESTUS_MEMORY.json")


def test_all_but_a_model_has_a_default(file: Path) -> None:
    assert mistakes(file, LEAST) == {}
    config = load_config(file)
    assert len(STRATEGIES) == 10 and config.validation_strategies == STRATEGIES
    assert config.test_fix_strategy == "TEST_FIX_STRATEGY"
    assert not config.allow_unisolated
    assert mistakes(file, {}) == {"`models` is missing": "it has no default: set it"}


def test_the_example_is_valid_and_holds_the_defaults_and_every_key(file: Path) -> None:
    assert check_config(EXAMPLE) == ()
    raw = json.loads(EXAMPLE.read_text())
    example, names = load_config(EXAMPLE), set(keys_in(raw))
    missing = [key for key in known_keys() if "*" not in key and key not in names]
    assert [key for key in missing if not re.search(r"\.(primary|fallback)$", key)] == []
    mistakes(file, {"models": raw["models"]})
    default = load_config(file)
    for field in dataclasses.fields(Config):
        own, wanted = getattr(example, field.name), getattr(default, field.name)
        if field.name not in ("models", "test_fix_strategy_key"):
            assert relative(own, EXAMPLE.parent) == relative(wanted, file.parent), field.name


def keys_in(value: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, part in value.items():
        found.append(prefix + key)
        if isinstance(part, dict):
            found += keys_in(part, f"{prefix}{key}.")
    return found


def relative(value: object, folder: Path) -> str:
    return repr(value).replace(str(folder), "")


def test_the_docs_name_every_key_and_no_other() -> None:
    text = DOCS.read_text()
    rows = re.findall(r"^\| `([a-z_.*]+)` \|", text, re.M)
    keys = [key for key in known_keys() if not re.search(r"\.(primary|fallback|\*)$", key)]
    assert [key for key in keys if key not in rows] == []
    assert {row for row in rows if row not in keys} == set(StepName) - {StepName.RUN_PYTEST}
    for name in (*StepName, *SanityStep, *STRATEGIES, *Task):
        assert name in text


def test_every_mistake_is_told_at_once(file: Path) -> None:
    content = {
        "models": {"architect_default": 3, "lihgt": "x", "tasks": {"architct": "x"}},
        "code_analysis_thresholds": [],
        "validation_strategies": {"A": {"steps": ["validate_sintax"], "stps": 1}},
        "test_fix_strategy_key": "B",
        "memory_backend": "SQLITE3",
        "budgets": {"attempts": 0, "tokens": True, "seconds": "3"},
        "degenerative_loop_threshold": 2.5,
        "cycle_delay_seconds": -1,
        "base_url": "ftp://host",
        "api_key_variable": "sk-0123456789",
        "allow_unisolated": 1,
        "log": {"level": "inof", "file": ""},
        "memry_backend": "json",
    }
    steps = ", ".join(StepName)
    found = mistakes(file, content)
    assert found == {
        "`test_fix_strategy_key` is `B`, which is none of `validation_strategies`": ("there are A"),
        "`models.architect_default` must be the name of a model, or an object with `primary` and "
        "`fallback`": None,
        "`models.tasks.architct` is no setting": "did you mean `architect`?",
        "`models.lihgt` is no setting": "did you mean `light`?",
        "`code_analysis_thresholds` must be an object": None,
        f"`validation_strategies.A.steps[0]` must be one of {steps}": (
            "did you mean `validate_syntax`?"
        ),
        "`validation_strategies.A.stps` is no setting": "did you mean `steps`?",
        "`memory_backend` must be one of json, sqlite": "did you mean `sqlite`?",
        "`degenerative_loop_threshold` must be a whole number": None,
        "`cycle_delay_seconds` must be 0 or more": None,
        "`base_url` must be an address as `https://host/v1`": None,
        "`api_key_variable` must be the name of a variable of the environment, never the key "
        "itself": None,
        "`budgets.attempts` must be 1 or more": None,
        "`budgets.tokens` must be a whole number": None,
        "`budgets.seconds` must be a number": None,
        "`allow_unisolated` must be true or false": None,
        "`log.level` must be one of DEBUG, INFO, WARNING, ERROR, CRITICAL": "did you mean `INFO`?",
        "`log.file` must be the path of a file": None,
        "`memry_backend` is no setting": "did you mean `memory_backend`?",
    }
    assert "0123456789" not in str(found)
    with pytest.raises(ConfigError, match="has 19 mistakes") as caught:
        load_config(file)
    for message in found:
        assert message in caught.value.problem


def test_a_key_that_is_near_to_none_is_told_what_there_is(file: Path) -> None:
    assert mistakes(file, {**LEAST, "budgets": {"xyz": 1}}) == {
        "`budgets.xyz` is no setting": "there are attempts, tokens, seconds"
    }


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ('{"a": 1,}', (1, 9), "has a comma before `}`"),
        ('{\n  // why\n  "a": 1}', (2, 3), "has a comment, and JSON has none"),
        ('{"a": 1 # why\n}', (1, 9), "has a comment, and JSON has none"),
        ("{\n'a': 1}", (2, 1), "has a text in single quotes"),
        ('{"a":', (1, 6), "ends too early: expecting value"),
        ('{"a" 1}', (1, 6), "is not JSON: expecting ':' delimiter"),
        ("", (1, 1), "ends too early: expecting value"),
        ("[]", (None, None), "is no JSON object"),
        ("[" * 100_000, (None, None), "is nested too deep"),
    ],
)
def test_what_is_not_json_is_told_with_its_place(
    file: Path, text: str, place: tuple[int, int], message: str
) -> None:
    file.write_text(text)
    (finding,) = check_config(file)
    assert ((finding.line, finding.column), finding.message) == (place, message)
    with pytest.raises(ConfigError, match="has a mistake"):
        load_config(file)


def test_a_file_that_is_not_utf8_is_told_with_its_line(file: Path) -> None:
    file.write_bytes(b'{\n"models": "\xe9"}')
    (finding,) = check_config(file)
    assert (finding.line, finding.message) == (2, "is not UTF-8")


def test_a_key_that_is_there_twice_is_told_wherever_it_is(file: Path) -> None:
    text = (
        '{"models": {"architect_default": "a", "light": "b", "light": "c"}, "log": {}, "log": {}}'
    )
    assert mistakes(file, text) == {
        "`log` is there more than once": "keep one of them",
        "`models.light` is there more than once": "keep one of them",
    }
    with pytest.raises(ConfigError, match="2 mistakes"):
        load_config(file)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_a_number_without_end_is_refused(file: Path, number: str) -> None:
    text = f'{{"models": {{"architect_default": "a"}}, "cycle_delay_seconds": {number}}}'
    assert list(mistakes(file, text)) == ["`cycle_delay_seconds` must be a finite number"]


@pytest.mark.parametrize("url", ["http://u:p@host", "https://", "host/v1", "http://h:99999", 3])
def test_what_is_no_address_is_refused(file: Path, url: object) -> None:
    assert len(mistakes(file, {**LEAST, "base_url": url})) == 1


def test_a_missing_file_says_what_to_start_from(file: Path) -> None:
    for read in (check_config, load_config):
        with pytest.raises(ConfigError, match="example_config.json"):
            read(file)


def test_a_model_is_the_one_named_for_the_task_then_the_light_one_then_the_first() -> None:
    big, light, own = Model("big"), Model("light"), Model("own")
    assert Models(big).of(Task.COMMIT_MESSAGE) == big
    models = Models(big, light=light, tasks={Task.MAESTRO: own}, error_analyzer=own)
    assert {task: models.of(task).primary for task in Task} == {
        Task.ARCHITECT: "big",
        Task.MAESTRO: "own",
        Task.OBJECTIVE: "light",
        Task.CAPACITATION: "light",
        Task.ERROR_ANALYSIS: "own",
        Task.COMMIT_MESSAGE: "light",
    }


def test_values_are_frozen_and_checked_when_they_are_made() -> None:
    config = Config(Models(Model("a")))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.allow_unisolated = True  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Config(Models(Model("a")), degenerative_loop_threshold=0)


def test_a_strategy_that_lists_no_promotion_makes_none() -> None:
    assert {key for key, strategy in STRATEGIES.items() if not strategy.promotes} == {"DISCARD"}


def test_there_need_be_no_strategy_that_repairs_tests(file: Path) -> None:
    content = {**LEAST, "validation_strategies": {"A": {"steps": []}}}
    assert mistakes(file, content) == {}
    assert load_config(file).test_fix_strategy is None
