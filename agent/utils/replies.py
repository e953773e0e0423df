"""What a server's response means: an answer, or a failure and what to do after it.

Servers of the one protocol differ in how they fail: by status, by an error inside of a 200, by an
error inside of a choice, by a message without content, by a page in HTML.
"""

from __future__ import annotations

import enum
import http
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.utils.ledger import Usage
from agent.utils.redaction import one_line
from agent.utils.retries import retry_after_s

_READ_CHARS = 64 * 1024
_TRUNCATED = ("length", "max_tokens")
_AGAIN = (408, 409, 425, 429)
_REMEDIES = {
    400: "the request does not suit this model; name another, or shorten the prompt",
    401: "set `OPENROUTER_API_KEY` to a key that this server knows",
    402: "add credits to the account, or name a cheaper model",
    403: "the key may not use this model, or the prompt was refused; name another model",
    404: "check the model's name, and that the base URL is one of an OpenAI-compatible API",
    413: "shorten the prompt, or name a model that takes more",
    429: "wait, or name a fallback model",
}
_LATER = "try again later, or name a fallback model"


class Course(enum.Enum):
    """What to do after a failure."""

    RETRY = enum.auto()
    NEXT_MODEL = enum.auto()
    STOP = enum.auto()


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request gave nothing that can be used.

    `content` is what the model said where it did speak, and `complaint` what is wrong with that.
    """

    problem: str
    remedy: str
    course: Course
    retry_after_s: float | None = None
    content: str | None = None
    complaint: str = ""
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer: what the model said, and the tokens and the money it took."""

    content: str
    usage: Usage


@dataclass(frozen=True, slots=True)
class Response:
    """What came over the wire; the names of `headers` are in lower case."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


def read_reply(response: Response, redact: Callable[[str], str]) -> Reply | Failure:
    """Return what the server answered; its own words go through `redact` before they are shown."""
    record = _record(response.body)
    choice = _first(record.get("choices"))
    error = record.get("error") or choice.get("error")
    if error or not 200 <= response.status < 300:
        return _refusal(response, error or record, _usage(record), redact)
    if not choice:
        said = _shown(_page(response), redact)
        problem = f"the server's answer is no chat completion: {said or 'it is empty'}"
        return Failure(problem, _REMEDIES[404], Course.RETRY)
    return _spoken(choice, _usage(record), redact)


def _refusal(
    response: Response, error: object, usage: Usage, redact: Callable[[str], str]
) -> Failure:
    status = response.status
    if 200 <= status < 300:
        status = _code(error)
        name = f"an error {status} inside of HTTP 200" if status else "an error inside of HTTP 200"
    else:
        name = f"HTTP {status}"
    said = _shown(_said(error) or _page(response), redact) or _phrase(status)
    if 300 <= status < 400:
        said = f"it points to {_shown(response.headers.get('location', 'nowhere'), redact)}"
    return Failure(
        f"{name}: {said}" if said else name,
        _REMEDIES.get(status, _LATER),
        _course(status),
        retry_after_s(response.headers),
        usage=usage,
    )


def _spoken(
    choice: Mapping[str, Any], usage: Usage, redact: Callable[[str], str]
) -> Reply | Failure:
    message = _mapping(choice.get("message"))
    content = _text(message.get("content"))
    reason = choice.get("finish_reason")
    if reason in _TRUNCATED:
        return Failure(
            "the answer was cut off where it reached its limit of tokens",
            "raise `max_tokens`, or ask for less at once",
            Course.NEXT_MODEL,
            content=content,
            complaint="Your answer was cut off because it was too long. Send a shorter one.",
            usage=usage,
        )
    if reason == "content_filter":
        problem = "the answer was withheld by the server's content filter"
        return Failure(problem, _REMEDIES[403], Course.NEXT_MODEL, usage=usage)
    if not content.strip():
        said = _shown(_text(message.get("refusal")), redact)
        problem = f"the answer has no content{': ' if said else ''}{said}"
        return Failure(problem, _LATER, Course.RETRY, usage=usage)
    return Reply(content, usage)


def _course(status: int) -> Course:
    """Return what to do after an error of `status`, which is 0 where none is known."""
    if status in _AGAIN or status >= 500 or not status:
        return Course.RETRY
    # Another model would be refused for the same reason.
    return Course.STOP if status == 401 or status < 400 else Course.NEXT_MODEL


def _record(body: bytes) -> Mapping[str, Any]:
    try:
        return _mapping(json.loads(body))
    except (ValueError, RecursionError):
        return {}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _first(value: Any) -> Mapping[str, Any]:
    return _mapping(value[0]) if isinstance(value, list) and value else {}


def _text(content: Any) -> str:
    """Return what `content` says: a string, or a list of parts of which some are text."""
    if isinstance(content, list):
        return "".join(_text(_mapping(part).get("text")) for part in content)
    return content if isinstance(content, str) else ""


def _code(error: object) -> int:
    code = _mapping(error).get("code")
    if isinstance(code, str) and code.isascii() and code.isdigit():
        code = int(code[:4])
    return code if isinstance(code, int) and 300 <= code < 600 else 0


def _said(error: object) -> str:
    """Return the server's own words: OpenRouter hides those of the provider in `metadata.raw`."""
    if isinstance(error, str):
        return error
    record = _mapping(error)
    words = [record.get("message"), _mapping(record.get("metadata")).get("raw")]
    return "; ".join(word for word in words if isinstance(word, str) and word)


def _page(response: Response) -> str:
    return response.body[:_READ_CHARS].decode("utf-8", "replace")


def _shown(text: str, redact: Callable[[str], str]) -> str:
    return one_line(redact(text[:_READ_CHARS]))


def _phrase(status: int) -> str:
    return http.HTTPStatus(status).phrase if status in set(http.HTTPStatus) else ""


def _usage(record: Mapping[str, Any]) -> Usage:
    usage = _mapping(record.get("usage"))
    return Usage(
        prompt_tokens=int(_number(usage.get("prompt_tokens"))),
        completion_tokens=int(_number(usage.get("completion_tokens"))),
        cost_usd=_number(usage.get("cost")),
    )


def _number(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        return float(value) if is_number and math.isfinite(value) and value >= 0 else 0.0
    except OverflowError:
        return 0.0
