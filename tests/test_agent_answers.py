"""From a model's answer to a value: taken as it is, or refused with all that is wrong."""

from __future__ import annotations

import json

import pytest

from agent.answers import read_plan, read_strategy
from agent.errors import AnswerError
from sandbox_engine.patch import parse_patch

OPERATION = {"file_path": "a.py", "operation": "INSERT", "content": 'x = "{"\n'}
PLAN = {"analysis": "why", "patches_to_apply": [OPERATION]}
TEXT = json.dumps(PLAN, indent=1)


@pytest.mark.parametrize(
    "answer",
    [
        TEXT,
        f"Here it is:\n\n```json\n{TEXT}\n```\nThat should do.",
        f'<think>maybe {{"analysis": "no"}}</think>\n{TEXT}',
        f'An example is {{"key": 1}}, and the plan is\n{TEXT}',
        f"{TEXT}\nOnce more:\n{TEXT}",
        f'{TEXT}\nIn Python that is {{"a": f(x)}}.',
    ],
)
def test_a_plan_is_found_in_what_is_around_it(answer: str) -> None:
    plan = read_plan(answer)
    assert plan.value.analysis == "why"
    assert json.loads(plan.text) == PLAN
    # Its own text is a patch for the engine.
    assert parse_patch(plan.text.encode()).summary


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ("I cannot do that.", "there is no JSON object"),
        ("", "there is no JSON object"),
        (TEXT[:-20], "the JSON is broken at line"),
        (TEXT + TEXT.replace("why", "other"), "there are 2 JSON objects"),
        ('{"analysis": "x"}', "`patches_to_apply` is missing"),
        ('{"analysis": 1, "patches_to_apply": []}', "`analysis`: Input should be a valid string"),
        ('{"analysis": "x", "patches_to_apply": []}', "at least 1 item"),
        (
            '{"analysis": "x", "analysis": "y", "patches_to_apply": [1]}',
            "`analysis` is there twice",
        ),
        ('{"analysis": "x", "patches_to_apply": ' + "[" * 100_000, "nested too deeply"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_a_complaint(answer: str, complaint: str) -> None:
    with pytest.raises(AnswerError) as raised:
        read_plan(answer)
    assert complaint in raised.value.complaint
    assert 'the keys "analysis", "patches_to_apply"' in raised.value.complaint


def test_several_mistakes_are_told_at_once() -> None:
    with pytest.raises(AnswerError) as raised:
        read_plan('{"analysis": 1, "patches_to_apply": "x"}')
    assert raised.value.complaint.count(" not ") >= 2


def test_a_strategy_has_to_be_known() -> None:
    known = ("SYNTAX_ONLY", "DISCARD")
    assert read_strategy('I choose {"strategy_key": "DISCARD"}.', known) == "DISCARD"
    with pytest.raises(AnswerError, match=r'"OTHER" is none of "DISCARD", "SYNTAX_ONLY"'):
        read_strategy('{"strategy_key": "OTHER"}', known)
