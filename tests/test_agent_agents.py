"""The architect and the maestro, asked over real HTTP."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent.agents import (
    AUTO_CORRECTION,
    CAPACITATION,
    CORRECTION,
    TEST_FIX_FLAG,
    ArchitectAgent,
    MaestroAgent,
)
from agent.errors import UnfitAnswerError
from agent.scripted_model import ScriptedModel
from agent.utils.llm_client import LlmClient
from agent.utils.retries import Retries
from agent.utils.wire import Endpoint

PLAN = {
    "analysis": "why",
    "patches_to_apply": [{"file_path": "a.py", "operation": "INSERT", "content": "x = 1\n"}],
}


def client(model: ScriptedModel) -> LlmClient:
    return LlmClient(Endpoint(model.base_url, "key"), retries=Retries(first_s=0.01))


def test_the_architect_is_told_the_objective_the_manifest_and_what_was_wrong() -> None:
    with ScriptedModel({"answers": [{"json": PLAN, "fault": "prose", "times": 2}]}) as model:
        architect = ArchitectAgent(client(model), "heavy")
        plan = architect.plan_action("Add x", "the manifest")
        assert json.loads(plan.text) == PLAN
        architect.plan_action("Add x", "the manifest", complaints=["a.py has no line 9"])
        first, second = (asked.text for asked in model.asked)
        assert "# Objective\n\nAdd x" in first and "the manifest" in first
        assert "refused" not in first and "a.py has no line 9" in second
        assert model.asked[0].model == "heavy"


@pytest.mark.parametrize("fault", ["invalid-json", "wrong-schema", "truncated"])
def test_an_answer_that_is_no_plan_goes_to_the_next_model(fault: str) -> None:
    rules = [
        {"model": "first", "answers": [{"json": PLAN, "fault": fault, "times": None}]},
        {"model": "second", "answers": [{"json": PLAN}]},
    ]
    with ScriptedModel({"rules": rules}) as model:
        models = {"primary": "first", "fallback": "second"}
        assert ArchitectAgent(client(model), models).plan_action("x", "y").value.analysis == "why"
        with pytest.raises(UnfitAnswerError):
            ArchitectAgent(client(model), "first").plan_action("x", "y")


def maestro(model: ScriptedModel, **options: Any) -> MaestroAgent:
    known = ("SYNTAX_ONLY", "TEST_FIX_STRATEGY", AUTO_CORRECTION)
    return MaestroAgent(client(model), "light", known, **options)


def test_rules_come_before_a_model() -> None:
    with ScriptedModel({}) as model:
        one = maestro(model, test_fix="TEST_FIX_STRATEGY")
        assert one.choose_strategy("plan", f"x {TEST_FIX_FLAG} y") == "TEST_FIX_STRATEGY"
        assert one.choose_strategy("plan", "", f"{CORRECTION} it") == AUTO_CORRECTION
        assert model.asked == ()


def test_the_maestro_chooses_a_strategy_that_there_is() -> None:
    answers = [
        {"json": {"strategy_key": "SYNTAX_ONLY"}, "fault": "prose"},
        {"json": {"strategy_key": CAPACITATION}},
        {"json": {"strategy_key": "GUESSWORK"}},
    ]
    with ScriptedModel({"answers": answers}) as model:
        one = maestro(model)
        assert one.choose_strategy("plan 1", "history") == "SYNTAX_ONLY"
        assert one.choose_strategy("plan 2", "history") == CAPACITATION
        with pytest.raises(UnfitAnswerError, match=r'"GUESSWORK" is none of'):
            one.choose_strategy("plan 3", "history")
        assert "SYNTAX_ONLY, TEST_FIX_STRATEGY" in model.asked[0].text
