"""What to do next, and how to call what was done."""

from __future__ import annotations

from typing import Any

from agent.brain import (
    generate_capacitation_objective,
    generate_commit_message,
    generate_next_objective,
    metrics_told,
    objective_by_rule,
)
from agent.scripted_model import ScriptedModel
from agent.utils.llm_client import LlmClient
from agent.utils.retries import Retries
from agent.utils.wire import Endpoint

SUMMARY: dict[str, Any] = {
    "large_files": [("a.py", 400), ("b.py", 900)],
    "large_functions": [("a.py", "A.long", 80)],
    "complex_functions": [("a.py", "f", 12), ("b.py", "g", 20)],
    "missing_tests": ["c.py"],
    "unknown": [("d.py", "line 1: invalid syntax")],
}


def client(model: ScriptedModel) -> LlmClient:
    return LlmClient(Endpoint(model.base_url, "key"), retries=Retries(2, first_s=0.01))


def test_a_model_is_told_the_worst_and_names_an_objective() -> None:
    with ScriptedModel({"answers": [{"content": " Simplify\n g. "}]}) as model:
        assert generate_next_objective(client(model), "m", "manifest", SUMMARY) == "Simplify g."
        text = model.asked[0].text
        assert "- b.py: 900 lines\n- a.py: 400 lines" in text
        assert "- b.py, `g`: cyclomatic complexity 20" in text and "manifest" in text


def test_without_an_answer_a_rule_names_what_is_worst_and_was_not_tried() -> None:
    with ScriptedModel({"answers": [{"content": "x" * 5_000}]}) as model:
        found = generate_next_objective(client(model), "m", "", SUMMARY)
        assert found == "Simplify `g` in b.py"
    tried = "failed: Simplify `g` in b.py"
    assert objective_by_rule(SUMMARY, tried) == "Simplify `f` in a.py"
    assert objective_by_rule({"missing_tests": ["c.py"]}) == "Write tests for c.py"
    assert objective_by_rule({}).startswith("Improve the documentation")
    assert metrics_told({}) == "Nothing is large, complex or untested."


def test_a_capability_that_is_missing_becomes_an_objective() -> None:
    with ScriptedModel({"answers": [{"content": "Learn to read TOML."}]}) as model:
        found = generate_capacitation_objective(client(model), "m", "Read a.toml", "no parser")
        assert found == "Learn to read TOML."
        assert "no parser" in model.asked[0].text


def test_a_model_is_asked_for_a_commit_message_only_where_no_rule_holds() -> None:
    answers = [{"content": "refactor(a): tidy up\n"}, {"content": "I tidied up."}]
    with ScriptedModel({"answers": answers}) as model:
        options: Any = {"client": client(model), "model": "light"}
        assert generate_commit_message("Fix it", ["a.py"], **options) == "fix(a): fix it"
        assert model.asked == ()
        message = generate_commit_message("Tidy it", ["a.py"], **options)
        assert message == "refactor(a): tidy up\n\nTidy it"
        # What is no header is not taken for one.
        assert generate_commit_message("Tidy up", ["a.py"], **options) == "chore(a): tidy up"
        assert generate_commit_message("Tidy it", ["a.py"]) == "chore(a): tidy it"
