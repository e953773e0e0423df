"""What is wrong with a configuration, as a person says it: the key, the mistake, the remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from pydantic import ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from sandbox_engine import Finding

_WANTED = {
    "bool_type": "true or false",
    "dataclass_type": "an object",
    "dict_type": "an object",
    "finite_number": "a finite number",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "mapping_type": "an object",
    "string_too_short": "a text that is not empty",
    "string_type": "a text",
    "string_unicode": "a text that is valid Unicode",
    "too_short": "an object with at least one entry",
    "tuple_type": "a list",
}
_KEY = "[key]"
"""What pydantic ends a place with when it speaks of the key of a mapping."""


def mistake(wanted: str) -> PydanticCustomError:
    """Return what a validator raises for a value that must be `wanted`."""
    return PydanticCustomError("wanted", "must be {wanted}", {"wanted": wanted})


def findings_of(error: ValidationError, keys: Sequence[str], path: str) -> tuple[Finding, ...]:
    """Return a finding for each mistake in `error`; `keys` are all that there may be."""
    details = error.errors(include_url=False)
    return tuple(_finding(detail, keys, path) for detail in details)


def suggestion(word: object, known: Iterable[str]) -> str | None:
    """Return a question with the nearest of `known`, whatever its case, or None."""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(str(word).lower(), by_lower, n=1, cutoff=0.6)
    return f"did you mean `{by_lower[near[0]]}`?" if near else None


def _finding(detail: ErrorDetails, keys: Sequence[str], path: str) -> Finding:
    place = [part for part in detail["loc"] if part != _KEY]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)[1:]
    if detail["type"] == "unexpected_keyword_argument" or _KEY in detail["loc"]:
        known = _siblings(place, keys)
        hint = suggestion(place[-1], known) or f"there are {', '.join(known)}"
        return Finding("unknown-key", f"`{key}` is no setting", path, hint=hint)
    if detail["type"] == "missing":
        return Finding("missing-key", f"`{key}` is missing", path, hint="it has no default: set it")
    nearest = suggestion(detail["input"], _choices(detail))
    return Finding("value", f"`{key}` must be {_wanted(detail)}", path, hint=nearest)


def _siblings(place: Sequence[str | int], keys: Sequence[str]) -> list[str]:
    """Return the keys that may stand where the last part of `place` does."""
    parents = [key.split(".") for key in keys]
    return [
        parts[-1]
        for parts in parents
        if len(parts) == len(place)
        and all(part in (own, "*") for part, own in zip(parts[:-1], place[:-1], strict=True))
    ]


def _wanted(detail: ErrorDetails) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "wanted":
        return str(context["wanted"])
    if kind == "greater_than_equal":
        return f"{context['ge']:g} or more"
    if kind == "greater_than":
        return f"more than {context['gt']:g}"
    if choices := _choices(detail):
        return f"one of {', '.join(choices)}"
    if context.get("class_name") == "Model":
        return "the name of a model, or an object with `primary` and `fallback`"
    return _WANTED.get(kind, f"something else: {detail['msg']}")


def _choices(detail: ErrorDetails) -> list[str]:
    if detail["type"] not in ("enum", "literal_error"):
        return []
    return re.findall(r"'([^']*)'", str(detail.get("ctx", {}).get("expected", "")))
