"""Strategies of the agent's configuration, as recipes of the engine's.

`apply_patches_to_disk` is no step of a recipe: it means promotion, which comes last whatever its
place in the list, because the engine lands nothing that has not passed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from agent.config import Config, SanityStep, StepName, Strategy
from sandbox_engine import Config as EngineConfig
from sandbox_engine import Recipe, Step, StepKind, Tier

_SYNTAX = Step(StepKind.SYNTAX)
_PYTEST = Step(StepKind.PYTEST)
_BENCHMARK = Step(StepKind.PYTEST, ("-k", "benchmark"))
_NEW_TESTS = Step(StepKind.NEW_TESTS)
_FILES_EXIST = Step(StepKind.FILES_EXIST)
_STEPS = {
    StepName.VALIDATE_SYNTAX: _SYNTAX,
    StepName.VALIDATE_JSON_SYNTAX: _SYNTAX,
    StepName.RUN_PYTEST_VALIDATION: _PYTEST,
    StepName.RUN_PYTEST: _PYTEST,
    StepName.RUN_PYTEST_NEW_FILE_VALIDATION: _NEW_TESTS,
    StepName.RUN_BENCHMARK_VALIDATION: _BENCHMARK,
    StepName.CHECK_FILE_EXISTENCE: _FILES_EXIST,
}
_SANITY = {
    SanityStep.RUN_PYTEST: _PYTEST,
    SanityStep.CHECK_FILE_EXISTENCE: _FILES_EXIST,
    SanityStep.RUN_PYTEST_NEW_FILE_VALIDATION: _NEW_TESTS,
}


def engine_config(config: Config, own: EngineConfig) -> EngineConfig:
    """Return the engine's configuration for the agent: the project's `own`, with its strategies.

    Unless the agent may run a model's patches without, nothing is run with less than full
    isolation. Besides the strategies there is one for each sanity step: see `sanity_strategy`.
    """
    shipped = own.recipe("SYNTAX_AND_PYTEST")
    recipes = {
        name: _recipe(name, strategy, shipped, is_test_fix=name == config.test_fix_strategy)
        for name, strategy in config.validation_strategies.items()
    }
    for sanity, step in _SANITY.items():
        name = sanity_strategy(sanity)
        recipes[name] = dataclasses.replace(shipped, name=name, steps=(step,))
    least = own.min_isolation if config.allow_unisolated else Tier.FULL
    return dataclasses.replace(own, strategies={**own.strategies, **recipes}, min_isolation=least)


def sanity_strategy(step: SanityStep) -> str:
    """Return the name of the strategy that makes a sanity step alone."""
    return f"sanity: {step}"


def is_proved(strategy: Strategy) -> bool:
    """Tell whether the sanity step is one of those that the strategy itself consists of."""
    if strategy.sanity_check_step is SanityStep.SKIP_SANITY_CHECK:
        return True
    return _SANITY[strategy.sanity_check_step] in _steps(strategy.steps)


def _recipe(name: str, strategy: Strategy, like: Recipe, *, is_test_fix: bool) -> Recipe:
    return dataclasses.replace(
        like,
        name=name,
        steps=_steps(strategy.steps),
        description="",
        demands=dataclasses.replace(like.demands, allow_test_changes=is_test_fix),
    )


def _steps(names: Iterable[StepName]) -> tuple[Step, ...]:
    """Return the engine's steps for `names`, each once, in their order.

    Benchmarks are tests too, so a run of all tests has run them.
    """
    steps = dict.fromkeys(_STEPS[name] for name in names if name in _STEPS)
    if _PYTEST in steps:
        steps.pop(_BENCHMARK, None)
    return tuple(steps)
