"""Strategies of the configuration become recipes of the engine's."""

from __future__ import annotations

from typing import Any

import pytest
from agent_world import strategy

from agent.config import STRATEGIES, Config, Models, SanityStep
from agent.strategies import engine_config, is_proved, sanity_strategy
from sandbox_engine import Config as EngineConfig
from sandbox_engine import Recipe, Step, StepKind, Tier

SYNTAX, PYTEST = Step(StepKind.SYNTAX), Step(StepKind.PYTEST)
FILES, NEW = Step(StepKind.FILES_EXIST), Step(StepKind.NEW_TESTS)


def config(**settings: Any) -> Config:
    return Config(models=Models(architect_default="m"), **settings)


def test_every_shipped_strategy_has_the_steps_that_it_names() -> None:
    made = engine_config(config(), EngineConfig())
    steps = {name: made.recipe(name).steps for name in STRATEGIES}
    assert steps == {
        "SYNTAX_ONLY": (SYNTAX,),
        "BENCHMARK_ONLY": (SYNTAX, Step(StepKind.PYTEST, ("-k", "benchmark"))),
        "SYNTAX_AND_PYTEST": (SYNTAX, PYTEST),
        "FULL_VALIDATION": (SYNTAX, PYTEST),
        "DOC_UPDATE_STRATEGY": (FILES,),
        "CONFIG_UPDATE_STRATEGY": (SYNTAX,),
        "DISCARD": (),
        "TEST_FIX_STRATEGY": (SYNTAX, PYTEST),
        "CREATE_NEW_TEST_FILE_STRATEGY": (SYNTAX, NEW),
        "AUTO_CORRECTION_STRATEGY": (SYNTAX, PYTEST),
    }
    may_change = [name for name in STRATEGIES if made.recipe(name).demands.allow_test_changes]
    assert may_change == ["TEST_FIX_STRATEGY"]


def test_a_step_counts_once_and_promotion_is_none() -> None:
    odd = strategy(
        *("apply_patches_to_disk", "run_pytest", "validate_json_syntax", "validate_syntax"),
        "run_pytest_validation",
    )
    made = engine_config(config(validation_strategies={"ODD": odd}), EngineConfig())
    assert made.recipe("ODD").steps == (PYTEST, SYNTAX) and odd.promotes


def test_the_projects_own_settings_hold() -> None:
    own = EngineConfig(
        timeout_s=7.0, max_new_skips=0.5, strategies={"OWN": Recipe("OWN", (SYNTAX,))}
    )
    made = engine_config(config(test_fix_strategy_key="FULL_VALIDATION"), own)
    recipe = made.recipe("FULL_VALIDATION")
    assert (recipe.limits.wall_s, recipe.demands.max_new_skips) == (7.0, 0.5)
    assert recipe.demands.allow_test_changes and made.recipe("OWN").steps == (SYNTAX,)
    assert made.min_isolation == Tier.FULL
    assert engine_config(config(allow_unisolated=True), own).min_isolation == Tier.NONE
    assert made.recipe(sanity_strategy(SanityStep.RUN_PYTEST)).steps == (PYTEST,)


@pytest.mark.parametrize(
    ("steps", "sanity", "wanted"),
    [
        (("run_pytest_validation",), "run_pytest", True),
        (("validate_syntax",), "run_pytest", False),
        (("validate_syntax",), "skip_sanity_check", True),
        (("run_benchmark_validation",), "run_pytest", False),
        (("check_file_existence",), "check_file_existence", True),
        (("run_pytest",), "run_pytest_new_file_validation", False),
    ],
)
def test_what_the_strategy_was_made_of_is_proved(
    steps: tuple[str, ...], sanity: str, wanted: bool
) -> None:
    assert is_proved(strategy(*steps, sanity=sanity)) is wanted
