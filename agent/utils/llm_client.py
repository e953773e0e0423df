"""Asks models behind any OpenAI-compatible endpoint, and pays for no answer twice.

One coroutine asks, so that a limit in seconds holds whatever a server does: it is ended where it
stands, also while headers trickle in. The plain functions run it to its end.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agent.errors import AnswerError, LlmError, UnfitAnswerError
from agent.utils.answer_file import KeptAnswer
from agent.utils.chat import ChatRequest, Message, RawModel, chat_request, model_names
from agent.utils.ledger import Ledger, Usage
from agent.utils.llm_cache import LlmCache
from agent.utils.redaction import one_line
from agent.utils.replies import Course, Failure, Reply, read_reply
from agent.utils.retries import Retries
from agent.utils.wire import Endpoint, Limits, Wire
from sandbox_engine import SandboxError, UsageError

if TYPE_CHECKING:
    from agent.utils.wire import Connection

_logger = logging.getLogger(__name__)

Validate = Callable[[str], object]
"""Raises AnswerError or ValueError for an answer that cannot be used; returns what it likes."""


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask, whom, and what an answer has to be like.

    `prompt` is the text of one message or a list of messages. `parameters` are sent as they are.
    `variant` tells apart answers to one request that are wanted several times over, such as
    candidates. `budget_s` is for the whole question, with all retries and models.

    With `is_retry` the cache is not asked, and keeps what is answered now. With `use_cache` off
    it does neither.
    """

    prompt: str | Sequence[Message]
    model: RawModel
    temperature: float | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    validate: Validate | None = None
    use_cache: bool = True
    is_retry: bool = False
    variant: str = ""
    budget_s: float = 600.0

    def requests(self) -> list[ChatRequest]:
        """Return the request to each model, the primary first; raises UsageError."""
        return [
            chat_request(name, self.prompt, self.temperature, self.parameters)
            for name in model_names(self.model)
        ]


@dataclass(frozen=True, slots=True)
class Answer:
    """What `model` said, and what it cost to get that, failed attempts included."""

    content: str
    model: str
    is_cached: bool
    usage: Usage


class LlmClient:
    """Asks one endpoint; `ledger` counts. Safe to share between threads and event loops."""

    def __init__(
        self,
        endpoint: Endpoint | None = None,
        *,
        cache: LlmCache | None = None,
        limits: Limits | None = None,
        retries: Retries | None = None,
    ) -> None:
        self.endpoint = endpoint or Endpoint()
        self.ledger = Ledger()
        self._cache = cache
        self._wire = Wire(self.endpoint, limits or Limits())
        self._retries = retries or Retries()

    def ask(self, question: Question) -> Answer:
        """Return the answer to `question`; see `ask_async`, which is for inside an event loop."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(self.ask_async(question))
        raise UsageError(
            "a model was asked by a function that waits, inside of an event loop",
            remedy="await `ask_async` or `call_llm_api_async` there",
        )

    async def ask_async(self, question: Question) -> Answer:
        """Return the first answer of a model that is whole and valid, from the cache or anew.

        A model is asked again after a failure that may pass, and the next one after any other or
        when it has used up its share of the budget. Raises LlmError, UnfitAnswerError where a
        model did answer; UsageError for a question that cannot be asked; CommandMissingError.
        """
        requests = question.requests()
        deadline = time.monotonic() + question.budget_s
        spent = Usage(calls=1)
        self.ledger.add(requests[0].model, spent)
        failures: list[tuple[str, Failure]] = []
        for index, request in enumerate(requests):
            share_s = (deadline - time.monotonic()) / (len(requests) - index)
            inquiry = _Inquiry(question, request, time.monotonic() + share_s)
            outcome, usage = await self._ask_model(inquiry)
            spent += usage
            if isinstance(outcome, Answer):
                return dataclasses.replace(outcome, usage=spent)
            failures.append((request.model, outcome))
            if outcome.course is Course.STOP:
                break
        raise _error(failures)

    async def _ask_model(self, inquiry: _Inquiry) -> tuple[Answer | Failure, Usage]:
        started = time.monotonic()
        try:
            outcome = await self._find(inquiry) or await self._ask_server(inquiry)
        finally:
            inquiry.usage += Usage(elapsed_s=time.monotonic() - started)
            self.ledger.add(inquiry.request.model, inquiry.usage)
        return outcome, inquiry.usage

    async def _find(self, inquiry: _Inquiry) -> Answer | None:
        """Return the answer that is kept, unless it is not valid, or None."""
        question, cache = inquiry.question, self._cache
        if cache is None or not question.use_cache:
            return None
        key = inquiry.key(self.endpoint)
        if question.is_retry:
            # What it said before was of no use: it must not come back if this attempt fails.
            await asyncio.to_thread(cache.forget, key)
            return None
        known = await asyncio.to_thread(cache.find, key)
        if known is None or _objection(question.validate, known.content):
            inquiry.usage += Usage(misses=1)
            return None
        inquiry.usage += Usage(
            hits=1,
            saved_tokens=known.tokens,
            saved_usd=known.cost_usd,
            saved_s=known.elapsed_s,
        )
        return Answer(known.content, inquiry.request.model, True, Usage())

    async def _ask_server(self, inquiry: _Inquiry) -> Answer | Failure:
        self.endpoint.require_key()
        async with self._wire.open() as connection:
            reply = await self._ask_again(inquiry, connection)
        if isinstance(reply, Failure):
            return reply
        if (objection := _objection(inquiry.question.validate, reply.content)) is not None:
            return self._invalid(reply, objection)
        if self._cache is not None and inquiry.question.use_cache:
            kept = KeptAnswer(
                reply.content, reply.usage.tokens, reply.usage.cost_usd, inquiry.request_s
            )
            await asyncio.to_thread(self._cache.keep, inquiry.key(self.endpoint), kept)
        return Answer(reply.content, inquiry.request.model, False, Usage())

    async def _ask_again(self, inquiry: _Inquiry, connection: Connection) -> Reply | Failure:
        """Return what the server answers at last, after as many failures as may pass."""
        outcome = await self._ask_once(inquiry, connection)
        for failures in range(1, self._retries.attempts):
            if isinstance(outcome, Reply) or outcome.course is not Course.RETRY:
                return outcome
            wait_s = self._retries.wait_s(failures, outcome.retry_after_s)
            if wait_s >= inquiry.left_s():
                return outcome
            _logger.info(
                "`%s`: %s; asked again in %.1f s", inquiry.request.model, outcome.problem, wait_s
            )
            await asyncio.sleep(wait_s)
            outcome = await self._ask_once(inquiry, connection)
        return outcome

    async def _ask_once(self, inquiry: _Inquiry, connection: Connection) -> Reply | Failure:
        if inquiry.left_s() <= 0:
            problem = f"the budget of {inquiry.question.budget_s:g} s is used up"
            return Failure(problem, "allow the question more seconds", Course.NEXT_MODEL)
        inquiry.usage += Usage(requests=1)
        started = time.monotonic()
        response = await self._wire.send(connection, inquiry.request.body, inquiry.left_s())
        inquiry.request_s = time.monotonic() - started
        if isinstance(response, Failure):
            return response
        reply = read_reply(response, self.endpoint.redact)
        inquiry.usage += reply.usage
        return reply

    def _invalid(self, reply: Reply, objection: AnswerError) -> Failure:
        return Failure(
            f"the answer is not valid: {one_line(self.endpoint.redact(objection.problem))}",
            objection.remedy,
            Course.NEXT_MODEL,
            content=reply.content,
            complaint=self.endpoint.redact(objection.complaint),
        )


@dataclass(slots=True)
class _Inquiry:
    """One question to one model until `deadline`, and what it has cost so far."""

    question: Question
    request: ChatRequest
    deadline: float
    usage: Usage = field(default_factory=Usage)
    request_s: float = 0.0

    def key(self, endpoint: Endpoint) -> str:
        return self.request.key(endpoint.base_url, self.question.variant)

    def left_s(self) -> float:
        return self.deadline - time.monotonic()


def call_llm_api(
    prompt: str | Sequence[Message],
    model: RawModel,
    *,
    client: LlmClient | None = None,
    temperature: float | None = None,
    validate: Validate | None = None,
    use_cache: bool = True,
    is_retry: bool = False,
    parameters: Mapping[str, Any] | None = None,
) -> tuple[str, None] | tuple[None, str]:
    """Return `(content, None)`, or `(None, error)` where no model gave an answer.

    Without a `client` the endpoint and the key are those of the environment, and nothing is kept.
    The other arguments are those of a `Question`.
    """
    try:
        question = Question(
            prompt, model, temperature, parameters or {}, validate, use_cache, is_retry
        )
        return (client or LlmClient()).ask(question).content, None
    except SandboxError as error:
        return None, str(error)


async def call_llm_api_async(
    prompt: str | Sequence[Message],
    model: RawModel,
    *,
    client: LlmClient | None = None,
    temperature: float | None = None,
    validate: Validate | None = None,
    use_cache: bool = True,
    is_retry: bool = False,
    parameters: Mapping[str, Any] | None = None,
) -> tuple[str, None] | tuple[None, str]:
    """Return what `call_llm_api` does, inside of an event loop."""
    try:
        question = Question(
            prompt, model, temperature, parameters or {}, validate, use_cache, is_retry
        )
        return (await (client or LlmClient()).ask_async(question)).content, None
    except SandboxError as error:
        return None, str(error)


def _objection(validate: Validate | None, content: str) -> AnswerError | None:
    """Return what `validate` has against `content`, or None."""
    try:
        if validate is not None:
            validate(content)
    except AnswerError as error:
        return error
    except ValueError as error:
        said = str(error) or type(error).__name__
        return AnswerError(said, remedy="ask again with what is wrong", complaint=said)
    return None


def _error(failures: Sequence[tuple[str, Failure]]) -> LlmError:
    """Return the error that tells of every model that was asked."""
    problem = "; ".join(f"`{model}`: {failure.problem}" for model, failure in failures)
    remedy = failures[-1][1].remedy
    for _, failure in reversed(failures):
        if failure.content is not None:
            return UnfitAnswerError(
                problem, remedy=remedy, content=failure.content, complaint=failure.complaint
            )
    return LlmError(problem, remedy=remedy)
