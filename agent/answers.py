"""From a model's answer to a value: the one JSON object in it, checked against a schema.

Models wrap an object in prose, in a code fence, in their thoughts. It is taken from there as it is
and never mended: an answer with two that could be meant, or a broken one, is told to the model,
with all that is wrong at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import pydantic

from agent.errors import AnswerError

_SHOWN_ERRORS = 20
_SHOWN_CHARS = 120
_START = re.compile(r'\{\s*(?:"|\})')
_THOUGHTS = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)


class Plan(pydantic.BaseModel):
    """An architect's plan; the operations are the engine's to read, in its format `json`."""

    model_config = pydantic.ConfigDict(strict=True)

    analysis: str
    patches_to_apply: list[Any] | dict[str, Any] = pydantic.Field(min_length=1)


class StrategyChoice(pydantic.BaseModel):
    """A maestro's choice of a key of `validation_strategies`."""

    model_config = pydantic.ConfigDict(strict=True)

    strategy_key: str


Schema = TypeVar("Schema", bound=pydantic.BaseModel)


@dataclass(frozen=True, slots=True)
class ReadAnswer(Generic[Schema]):
    """What was read: the value, and the text of its object as the model wrote it."""

    value: Schema
    text: str


@dataclass(frozen=True, slots=True)
class _Found:
    """A JSON object in an answer; `repeated` are its keys that are there more than once."""

    value: dict[str, Any]
    text: str
    repeated: tuple[str, ...] = ()


def read_answer(text: str, schema: type[Schema]) -> ReadAnswer[Schema]:
    """Return the one object in `text` that is meant for `schema`; raises AnswerError."""
    found = _find_object(text, schema)
    errors = [f"`{key}` is there twice" for key in found.repeated]
    try:
        value = schema.model_validate(found.value)
    except pydantic.ValidationError as error:
        errors += [_told(one) for one in error.errors(include_url=False)]
        value = None
    if errors or value is None:
        raise _refusal(errors, schema)
    return ReadAnswer(value, found.text)


def read_plan(text: str) -> ReadAnswer[Plan]:
    """Return the plan in `text`, whose own text is a patch for the engine; raises AnswerError."""
    return read_answer(text, Plan)


def read_strategy(text: str, known: Collection[str]) -> str:
    """Return the key that was chosen, one of `known`; raises AnswerError."""
    key = read_answer(text, StrategyChoice).value.strategy_key
    if key not in known:
        keys = ", ".join(f'"{name}"' for name in sorted(known))
        raise _refusal([f"`strategy_key`: {_short(key)} is none of {keys}"], StrategyChoice)
    return key


def _find_object(text: str, schema: type[pydantic.BaseModel]) -> _Found:
    """Return the object that is meant for `schema`; raise AnswerError unless there is one."""
    thoughts = _THOUGHTS.match(text)
    found, broken = _objects(text[thoughts.end() :] if thoughts else text)
    meant = [one for one in found if schema.model_fields.keys() & one.value.keys()]
    if not meant and broken:
        raise _refusal([broken], schema)
    meant = meant or found
    if not meant:
        raise _refusal(["there is no JSON object in the answer"], schema)
    if any(one.value != meant[0].value for one in meant):
        raise _refusal([f"there are {len(meant)} JSON objects, and one was asked for"], schema)
    return meant[0]


def _objects(text: str) -> tuple[list[_Found], str]:
    """Return the JSON objects in `text` that are in no other one, and what is wrong with a broken.

    After a broken one nothing is taken: it may be one of its parts.
    """
    found: list[_Found] = []
    position = 0
    while start := _START.search(text, position):
        repeated: list[str] = []
        try:
            value, position = _decoder(repeated).raw_decode(text, start.start())
        except (ValueError, RecursionError) as error:
            return found, _broken(error)
        found.append(_Found(value, text[start.start() : position], tuple(repeated)))
    return found, ""


def _decoder(repeated: list[str]) -> json.JSONDecoder:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in items]
        repeated.extend(key for key in dict.fromkeys(keys) if keys.count(key) > 1)
        return dict(items)

    return json.JSONDecoder(object_pairs_hook=pairs)


def _broken(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"the JSON is broken at line {error.lineno}, column {error.colno}: {error.msg}"
    return "the JSON is nested too deeply, or has a number that is too long"


def _told(error: Any) -> str:
    place = ".".join(map(str, error["loc"])) or "the object"
    if error["type"] == "missing":
        return f"`{place}` is missing"
    return f"`{place}`: {error['msg']}, not {_short(error['input'])}"


def _refusal(errors: list[str], schema: type[pydantic.BaseModel]) -> AnswerError:
    shown = errors[:_SHOWN_ERRORS]
    more = [f"and {len(errors) - len(shown)} more"] * (len(errors) > len(shown))
    keys = ", ".join(f'"{name}"' for name in schema.model_fields)
    said = "; ".join((*shown, *more))
    return AnswerError(
        f"the model's answer cannot be read: {said}",
        remedy="ask again with what is wrong",
        complaint=f"Your answer cannot be read: {said}. Answer with one JSON object that has "
        f"the keys {keys}, and nothing else.",
    )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."
