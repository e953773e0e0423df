"""What can be corrected, and by which objective."""

from __future__ import annotations

import asyncio

import pytest

from agent.agents import CORRECTION
from agent.cycles import Attempt, Cycle, Ending
from agent.error_analyzer import is_correctable, suggest_correction
from agent.scripted_model import ScriptedModel
from agent.utils.llm_client import LlmClient
from agent.utils.retries import Retries
from agent.utils.wire import Endpoint
from sandbox_engine import Cause, Outcome, Verdict
from sandbox_engine.verdict import CommitId, TreeId


def failed(
    outcome: Outcome | None = Outcome.FAILED, cause: Cause | None = None, **fields: object
) -> Cycle:
    verdict = None
    if outcome is not None:
        base, tree = CommitId("a" * 40), TreeId("b" * 40)
        verdict = Verdict(outcome, "S", base, tree, reason="test_add broke", cause=cause)
    cycle = Cycle(1, "then", "Swap the operands", attempts=[Attempt(0, 1, "p", "S", verdict)])
    cycle.end(Ending.FAILURE, "it broke")
    for name, value in fields.items():
        setattr(cycle, name, value)
    return cycle


@pytest.mark.parametrize(
    ("cycle", "wanted"),
    [
        (failed(), True),
        (failed(Outcome.REJECTED), True),
        (failed(Outcome.INCONCLUSIVE, Cause.TAMPERED), True),
        (failed(Outcome.INCONCLUSIVE, Cause.INFRA), False),
        (failed(Outcome.INCONCLUSIVE, Cause.UNPROVED), False),
        (failed(None), False),
        (failed(attempts=[]), False),
        # A promotion that was refused is no fault of the change; a sanity check is.
        (failed(Outcome.PASSED, chosen=0), False),
        (failed(Outcome.PASSED, chosen=0, commit="c", is_insane=True), True),
        (failed(ending=Ending.SUCCESS), False),
        (failed(ending=Ending.POSTPONED), False),
    ],
)
def test_what_another_change_could_mend_is_correctable(cycle: Cycle, wanted: bool) -> None:
    assert is_correctable(cycle) is wanted


def asked(model: ScriptedModel) -> str:
    client = LlmClient(Endpoint(model.base_url, "key"), retries=Retries(attempts=1, first_s=0.01))
    return asyncio.run(suggest_correction(client, "light", failed(), "the history"))


def test_a_model_is_told_all_and_its_answer_marked() -> None:
    for said in ("Mend test_add", f"{CORRECTION} Mend\n test_add"):
        with ScriptedModel({"answers": [{"content": said}]}) as model:
            assert asked(model) == f"{CORRECTION} Mend test_add"
            text = model.asked[0].text
    for word in ("Swap the operands", "it broke", "test_add broke", "the history"):
        assert word in text


def test_without_an_answer_a_rule_has_one() -> None:
    with ScriptedModel({"answers": [{"fault": "500", "times": None}]}) as model:
        said = asked(model)
    assert said.startswith(f"{CORRECTION} ") and "Swap the operands" in said and "it broke" in said
