"""A model for tests: an OpenAI-compatible server on loopback that plays what a script says.

    python -m agent.scripted_model --script FILE [--port 0]

prints its base URL and serves until it is interrupted. In a program it is a context manager:

    with ScriptedModel({"answers": [{"content": "hello"}]}) as model:
        client = LlmClient(Endpoint(model.base_url, "key"))

The script is a JSON object; `docs/scripted-model.md` describes it. Answers come from the first
rule that fits the request and has any left, else from the script's own `answers`, in order.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pydantic

from agent import strict_json
from agent.errors import ScriptError
from sandbox_engine import SandboxError

FAULTS = (
    *("429", "500", "hang", "cut", "error-in-200", "prose", "invalid-json", "wrong-schema"),
    "truncated",
)
_HANG_S = 3600.0
_MOST_BODY = 64 * 2**20
_RESET = struct.pack("ii", 1, 0)


class _Part(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True)


class Answer(_Part):
    """What is said to one request, `times` times over; None for ever."""

    content: str | None = None
    value: Any = pydantic.Field(None, alias="json")
    fault: str | None = None
    retry_after_s: float = pydantic.Field(0.0, ge=0)
    delay_s: float = pydantic.Field(0.0, ge=0)
    prompt_tokens: int = pydantic.Field(10, ge=0)
    completion_tokens: int = pydantic.Field(20, ge=0)
    cost_usd: float = pydantic.Field(0.0, ge=0)
    times: int | None = pydantic.Field(1, ge=1)

    @pydantic.field_validator("fault")
    @classmethod
    def _is_known(cls, fault: str | None) -> str | None:
        if fault is not None and fault not in FAULTS:
            raise ValueError(f"there is no fault `{fault}`; there are {', '.join(FAULTS)}")
        return fault

    @property
    def text(self) -> str:
        """What the model is to say: the text, or the JSON value as text."""
        return json.dumps(self.value) if self.content is None else self.content


class Rule(_Part):
    """Answers for requests to a model whose name is like `model`, and whose text has `matches`."""

    model: str = "*"
    matches: str = ""
    answers: list[Answer] = pydantic.Field(min_length=1)

    @pydantic.field_validator("matches")
    @classmethod
    def _is_pattern(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from error
        return pattern

    def fits(self, model: str, text: str) -> bool:
        """Tell whether the rule is for a request."""
        return fnmatch.fnmatchcase(model, self.model) and bool(re.search(self.matches, text))


class Script(_Part):
    """What a scripted model does."""

    answers: list[Answer] = []
    rules: list[Rule] = []


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it came: the model, the texts of all messages, the body, and whether with a key.

    The key itself is not kept.
    """

    model: str
    text: str
    body: Mapping[str, Any]
    has_key: bool


@dataclass(slots=True)
class _Player:
    """The answers that are left, and what was asked; safe to share between threads."""

    script: Script
    asked: list[Asked] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _played: dict[int, int] = field(default_factory=dict)

    def next(self, asked: Asked) -> Answer | None:
        with self._lock:
            self.asked.append(asked)
            for answers in self._fitting(asked):
                for answer in answers:
                    played = self._played.get(id(answer), 0)
                    if answer.times is None or played < answer.times:
                        self._played[id(answer)] = played + 1
                        return answer
        return None

    def _fitting(self, asked: Asked) -> Iterator[Sequence[Answer]]:
        for rule in self.script.rules:
            if rule.fits(asked.model, asked.text):
                yield rule.answers
        yield self.script.answers


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that went away: it was cancelled, or killed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class ScriptedModel:
    """The server, while the block lasts; `script` is a path, or what a file would hold."""

    def __init__(self, script: Path | Mapping[str, Any], *, port: int = 0) -> None:
        """Take the port, any free one for 0. Raise ScriptError with all that is wrong."""
        self._player = _Player(read_script(script))
        handler = type("Handler", (_Handler,), {"player": self._player})
        self._server = _Server(("127.0.0.1", port), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def base_url(self) -> str:
        """Where clients find it, as `http://127.0.0.1:PORT/v1`."""
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    @property
    def asked(self) -> tuple[Asked, ...]:
        """What it was asked so far, in order."""
        return tuple(self._player.asked)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def serve(self) -> None:
        """Serve until interrupted."""
        try:
            self._server.serve_forever()
        finally:
            self._server.server_close()


def read_script(script: Path | Mapping[str, Any]) -> Script:
    """Return the script; raise ScriptError that names every mistake in it."""
    if isinstance(script, Path):
        try:
            parsed = strict_json.read_json(script)
        except OSError as error:
            raise ScriptError(
                f"the script `{script}` cannot be read: {error.strerror}",
                remedy="name a file of JSON, as `docs/scripted-model.md` describes it",
            ) from error
        mistakes = [finding.message for finding in parsed.findings]
        value = parsed.value
    else:
        mistakes, value = [], dict(script)
    if not mistakes:
        try:
            return Script.model_validate(value)
        except pydantic.ValidationError as error:
            mistakes = [_told(one) for one in error.errors(include_url=False)]
    raise ScriptError(
        "the script of the model cannot be meant:" + "".join(f"\n  {one}" for one in mistakes),
        remedy="`docs/scripted-model.md` describes it",
    )


def _told(error: Any) -> str:
    place = ".".join(map(str, error["loc"])) or "the script"
    return f"`{place}`: {error['msg']}"


class _Handler(BaseHTTPRequestHandler):
    player: _Player
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Answer a request for a completion."""
        if self.path != "/v1/chat/completions":
            self._refuse(404, "there is nothing here; ask `/v1/chat/completions`")
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > _MOST_BODY:
            self._refuse(411, "the request has no length that can be served")
            return
        try:
            body = json.loads(self.rfile.read(int(length)))
            asked = _asked(body, has_key="Authorization" in self.headers)
        except (ValueError, TypeError, KeyError, AttributeError):
            self._refuse(400, "the body is no request for a completion")
            return
        answer = self.player.next(asked)
        if answer is None:
            self._refuse(500, "the script has no answer left for this request")
            return
        time.sleep(answer.delay_s)
        self._play(answer, asked.model)

    def _play(self, answer: Answer, model: str) -> None:
        if answer.fault == "429":
            self._refuse(429, "too many requests", {"Retry-After": f"{answer.retry_after_s:g}"})
        elif answer.fault == "500":
            self._refuse(500, "an internal error, as the script says")
        elif answer.fault == "error-in-200":
            self._send(200, {"error": {"code": 502, "message": "the provider failed"}})
        elif answer.fault == "hang":
            # The client goes first; a server that is closed does not wait for its threads.
            time.sleep(_HANG_S)
        else:
            self._send(200, _completion(answer, model), is_cut=answer.fault == "cut")

    def _refuse(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        self._send(status, {"error": {"code": status, "message": message}}, headers)

    def _send(
        self,
        status: int,
        record: Mapping[str, Any],
        headers: Mapping[str, str] | None = None,
        *,
        is_cut: bool = False,
    ) -> None:
        body = json.dumps(record).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if is_cut else body)
        if is_cut:
            self.wfile.flush()
            # A reset, as when a server dies.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: what was asked is kept."""


def _asked(body: Any, *, has_key: bool) -> Asked:
    texts = [str(message["content"]) for message in body["messages"]]
    return Asked(str(body["model"]), "\n".join(texts), body, has_key)


def _completion(answer: Answer, model: str) -> dict[str, Any]:
    text = answer.text
    if answer.fault == "prose":
        text = f"Here is what I propose.\n\n```json\n{text}\n```\n\nI hope that this helps."
    elif answer.fault == "invalid-json":
        text = text[: len(text) // 2] + '"'
    elif answer.fault == "wrong-schema":
        text = json.dumps({"unexpected": text})
    elif answer.fault == "truncated":
        text = text[: len(text) // 2]
    return {
        "id": "scripted",
        "object": "chat.completion",
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "length" if answer.fault == "truncated" else "stop",
            }
        ],
        "usage": {
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
            "cost": answer.cost_usd,
        },
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the script that is named until interrupted, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m agent.scripted_model",
        description="An OpenAI-compatible server on loopback that plays what a script says.",
    )
    parser.add_argument("--script", type=Path, required=True, metavar="FILE", help="a JSON file")
    parser.add_argument("--port", type=int, default=0, metavar="N", help="0 for any free one (0)")
    options = parser.parse_args(arguments)
    try:
        model = ScriptedModel(options.script, port=options.port)
    except SandboxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (OSError, OverflowError) as error:
        print(f"error: port {options.port} cannot be served: {error}", file=sys.stderr)
        return 2
    print(model.base_url, flush=True)
    try:
        model.serve()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    return 130


if __name__ == "__main__":
    sys.exit(main())
