"""The client of models, over real HTTP: retries, fallbacks, limits, costs, and no answer twice."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest

from agent.errors import LlmError, UnfitAnswerError
from agent.scripted_model import ScriptedModel
from agent.utils.llm_cache import LlmCache
from agent.utils.llm_client import LlmClient, Question, call_llm_api, call_llm_api_async
from agent.utils.retries import Retries
from agent.utils.wire import Endpoint, Limits
from sandbox_engine import UsageError

KEY = "sk-very-secret-0123456789"
QUICK = Retries(attempts=3, first_s=0.01, longest_s=5.0)


def client(model: ScriptedModel, **options: Any) -> LlmClient:
    options.setdefault("retries", QUICK)
    return LlmClient(Endpoint(model.base_url, KEY), **options)


def test_an_answer_is_content_and_a_failure_is_an_error() -> None:
    with ScriptedModel({"answers": [{"content": "hello", "cost_usd": 0.25}]}) as model:
        one = client(model)
        assert call_llm_api("hi", "m", client=one) == ("hello", None)
        usage = one.ledger.total()
        assert (usage.calls, usage.requests, usage.tokens, usage.cost_usd) == (1, 1, 30, 0.25)
        content, error = call_llm_api("hi", "m", client=one)
        assert content is None
        assert error is not None and "HTTP 500: the script has no answer left" in error
        assert [asked.has_key for asked in model.asked] == [True] * 4


def test_it_is_asked_in_an_event_loop_too() -> None:
    async def ask(one: LlmClient) -> list[Any]:
        with pytest.raises(UsageError, match="inside of an event loop"):
            one.ask(Question("hi", "m"))
        return await asyncio.gather(
            *(call_llm_api_async(f"hi {number}", "m", client=one) for number in range(5))
        )

    with ScriptedModel({"answers": [{"content": "x", "delay_s": 0.3, "times": None}]}) as model:
        started = time.monotonic()
        assert asyncio.run(ask(client(model))) == [("x", None)] * 5
        # They overlap.
        assert time.monotonic() - started < 1.2


@pytest.mark.parametrize("fault", ["500", "error-in-200", "cut", "429"])
def test_what_may_pass_is_tried_again(fault: str) -> None:
    answers = [{"fault": fault, "times": 2}, {"content": "at last"}]
    with ScriptedModel({"answers": answers}) as model:
        one = client(model)
        assert call_llm_api("hi", "m", client=one) == ("at last", None)
        assert one.ledger.total().requests == 3


def test_the_server_says_how_long_to_wait() -> None:
    answers = [{"fault": "429", "retry_after_s": 1}, {"content": "x"}]
    with ScriptedModel({"answers": answers}) as model:
        started = time.monotonic()
        assert call_llm_api("hi", "m", client=client(model)) == ("x", None)
        assert time.monotonic() - started >= 1


def test_retries_are_bounded_and_a_fallback_is_asked() -> None:
    rules = [
        {"model": "first", "answers": [{"fault": "500", "times": None}]},
        {"model": "second", "answers": [{"content": "from the second"}]},
    ]
    with ScriptedModel({"rules": rules}) as model:
        both = {"primary": "first", "fallback": "second"}
        answer = client(model).ask(Question("hi", both))
        assert (answer.content, answer.model) == ("from the second", "second")
        assert [asked.model for asked in model.asked] == ["first"] * 3 + ["second"]


def test_a_hang_and_a_budget_end_in_time() -> None:
    with ScriptedModel({"answers": [{"fault": "hang", "times": None}]}) as model:
        limits = Limits(read_s=0.2)
        started = time.monotonic()
        with pytest.raises(LlmError, match=r"the server sent nothing for 0\.2 s"):
            client(model, limits=limits).ask(Question("hi", "m"))
        with pytest.raises(LlmError, match=r"was not there after 0\.[0-9]+ s"):
            client(model).ask(Question("hi", "m", budget_s=0.5))
        assert time.monotonic() - started < 4


def test_an_answer_that_is_cut_off_or_not_valid_is_not_an_answer() -> None:
    answers = [
        {"json": {"a": 1}, "fault": "truncated"},
        {"json": {"a": 1}, "fault": "invalid-json"},
        {"json": {"a": 1}},
    ]
    with ScriptedModel({"answers": answers}) as model:
        cache = LlmCache()
        one = client(model, cache=cache)
        with pytest.raises(UnfitAnswerError, match="was cut off") as raised:
            one.ask(Question("hi", "m"))
        assert raised.value.content == '{"a"' and "too long" in raised.value.complaint
        with pytest.raises(UnfitAnswerError, match="the answer is not valid"):
            one.ask(Question("hi", "m", validate=json.loads))
        # Neither was kept.
        assert one.ask(Question("hi", "m", validate=json.loads)).content == '{"a": 1}'
        assert one.ask(Question("hi", "m", validate=json.loads)).is_cached


def test_nothing_is_paid_for_twice_and_a_retry_asks_anew(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite3"
    answers = [{"content": "one", "cost_usd": 0.5}, {"content": "two"}, {"content": "three"}]
    with ScriptedModel({"answers": answers}) as model:
        for run in range(2):
            with LlmCache(path) as cache:
                one = client(model, cache=cache)
                assert call_llm_api("hi", "m", client=one, temperature=0) == ("one", None)
                usage = one.ledger.total()
                assert (usage.hits, usage.misses, usage.requests) == (run, 1 - run, 1 - run)
                assert usage.saved_usd == 0.5 * run
        with LlmCache(path) as cache:
            one = client(model, cache=cache)
            assert call_llm_api("hi", "m", client=one, temperature=0.5) == ("two", None)
            assert call_llm_api("hi", "m", client=one, temperature=0, is_retry=True)[0] == "three"
            assert call_llm_api("hi", "m", client=one, temperature=0) == ("three", None)
            content, error = call_llm_api("hi", "m", client=one, temperature=0, use_cache=False)
            assert content is None and error is not None


def test_every_part_of_a_request_is_part_of_its_key() -> None:
    keys = set()
    for question in (
        Question("hi", "m"),
        Question("hi ", "m"),
        Question("hi", "n"),
        Question("hi", "m", 0.0),
        Question("hi", "m", parameters={"max_tokens": 5}),
        Question([{"role": "system", "content": "hi"}], "m"),
    ):
        (request,) = question.requests()
        keys |= {request.key("http://a"), request.key("http://b"), request.key("http://a", "2")}
    assert len(keys) == 18
    assert Question("hi", "m", 1).requests() == Question("hi", "m", 1.0).requests()


def test_the_key_is_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    echo = {"content": f"your key is {KEY[:12]}"}
    with ScriptedModel({"answers": [{"fault": "500", "times": 3}, echo]}) as model:
        one = client(model)
        _, error = call_llm_api("hi", "m", client=one)
        assert KEY not in repr(one.endpoint) and error is not None and KEY not in error
        assert one.endpoint.redact(f"x {KEY} y {KEY[3:15]}") == "x *** y ***"
        assert KEY not in caplog.text


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        (Question("hi", ""), "names no model"),
        (Question("hi", {"first": "m"}), "names no model"),
        (Question([], "m"), "there is no message"),
        (Question([{"role": "king", "content": "x"}], "m"), "is no message of a chat"),
        (Question("hi", "m", parameters={"stream": True}), "holds `stream`"),
        (Question("hi", "m", parameters={"x": float("nan")}), "cannot be written as JSON"),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused(question: Question, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        LlmClient(Endpoint("http://127.0.0.1:9/v1", KEY)).ask(question)


def test_an_endpoint_is_an_address_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENROUTER_API_KEY", raising=False)
    for address in ("", "ftp://x", "http://u:p@x", "http://x?key=1", "http://x y"):
        with pytest.raises(UsageError, match="the base URL is not of the form"):
            Endpoint(address)
    with pytest.raises(UsageError, match="characters that no key has"):
        Endpoint("http://x", "a\nb")
    with pytest.raises(LlmError, match="`OPENROUTER_API_KEY` is not set"):
        LlmClient().ask(Question("hi", "m"))
    with pytest.raises(LlmError, match="cannot be reached"):
        LlmClient(Endpoint("http://127.0.0.1:9/v1"), retries=Retries(1)).ask(Question("hi", "m"))
