"""A question to a model, as the bytes that are sent and the key its answer is kept under."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sandbox_engine import UsageError

Message = Mapping[str, Any]
RawModel = str | Mapping[str, str]
"""As configurations name one: its name, or `{"primary": ..., "fallback": ...}`."""

_OURS = ("messages", "model", "stream", "temperature")
_ROLES = ("assistant", "developer", "system", "tool", "user")


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What is asked of one model; `body` is the whole request in canonical JSON."""

    model: str
    body: bytes

    def key(self, base_url: str, variant: str = "") -> str:
        """Return the sha256 of the whole request, of whom it goes to, and of `variant`.

        Every byte that is sent takes part, so two requests that differ share no answer.
        """
        digest = hashlib.sha256()
        for part in (base_url.encode(), variant.encode("utf-8", "surrogatepass"), self.body):
            digest.update(b"%d:" % len(part) + part)
        return digest.hexdigest()


def chat_request(
    model: str,
    prompt: str | Sequence[Message],
    temperature: float | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> ChatRequest:
    """Return the request; a prompt that is a string becomes the one message of a user.

    `parameters` are sent as they are, such as `max_tokens`; a temperature of None is left to the
    server. Raises UsageError for what no server could answer.
    """
    record = {**(parameters or {}), "model": model, "messages": _messages(prompt)}
    if taken := [name for name in _OURS if name in (parameters or {})]:
        raise UsageError(
            f"`parameters` holds `{taken[0]}`, which is no parameter",
            remedy="streaming is not supported; give the others as arguments of their own",
        )
    if temperature is not None:
        # 1 and 1.0 ask for the same.
        record["temperature"] = float(temperature)
    return ChatRequest(model, _canonical(record))


def model_names(model: RawModel) -> tuple[str, ...]:
    """Return the names to ask, the primary first; raises UsageError."""
    named = {"primary": model} if isinstance(model, str) else dict(model)
    names = [named.pop("primary", None), named.pop("fallback", None)]
    if named or not names[0] or not all(isinstance(n, str) and n.strip() for n in names if n):
        raise UsageError(
            f"`{model}` names no model",
            remedy='a model is a name, or `{"primary": NAME, "fallback": NAME}`',
        )
    return tuple(dict.fromkeys(name for name in names if name))


def _messages(prompt: str | Sequence[Message]) -> list[Message]:
    messages: Sequence[Any] = (
        [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    )
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or message.get("role") not in _ROLES:
            raise UsageError(
                f"`messages[{index}]` is no message of a chat",
                remedy=f"a message has a `content` and a `role`: one of {', '.join(_ROLES)}",
            )
    if not messages:
        raise UsageError("there is no message to send", remedy="give a prompt")
    return [dict(message) for message in messages]


def _canonical(record: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(
            f"the request cannot be written as JSON: {error}",
            remedy="messages and parameters hold texts, numbers, lists and mappings alone",
        ) from error
    return text.encode("ascii")
