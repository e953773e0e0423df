"""JSON as a person writes it, read strictly: a mistake is told with its line and column.

`json` keeps the last of two equal keys without a word. Here each is found, with its path.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox_engine import Finding


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a file says: `value` is None where it is not JSON, and `findings` tell why."""

    value: Any = None
    findings: tuple[Finding, ...] = ()

    @property
    def is_damaged(self) -> bool:
        """Whether it is no JSON at all."""
        return any(finding.code == "json" for finding in self.findings)


class _Object(dict[str, Any]):
    """An object that remembers which of its keys were there before."""

    repeated: tuple[str, ...] = ()


def read_json(path: Path) -> Parsed:
    """Return what the file at `path` says; raise OSError where it cannot be read."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return _failed(path, "is not UTF-8", "save the file as UTF-8", line=line)
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        return _failed(path, *_told(error, text), line=error.lineno, column=error.colno)
    except RecursionError:
        return _failed(path, "is nested too deep", "write it flatter")
    except ValueError as error:
        return _failed(path, f"cannot be read: {error}", "write the number shorter")
    return Parsed(value, tuple(_repeated(value, "", str(path))))


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    found = _Object(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        found.repeated = tuple(key for key in found if keys.count(key) > 1)
    return found


def _repeated(value: Any, prefix: str, path: str) -> list[Finding]:
    if isinstance(value, list):
        parts = [(f"{prefix}[{index}]", item) for index, item in enumerate(value)]
        return [finding for key, item in parts for finding in _repeated(item, key, path)]
    if not isinstance(value, _Object):
        return []
    named = [(f"{prefix}.{key}" if prefix else key, key, item) for key, item in value.items()]
    found = [
        Finding("duplicate-key", f"`{full}` is there more than once", path, hint="keep one of them")
        for full, key, _ in named
        if key in value.repeated
    ]
    return found + [item for full, _, part in named for item in _repeated(part, full, path)]


def _told(error: json.JSONDecodeError, text: str) -> tuple[str, str]:
    rest = text[error.pos :]
    if rest.startswith(("//", "/*", "#")):
        return "has a comment, and JSON has none", "remove the comment"
    if rest.startswith("'"):
        return "has a text in single quotes", 'write it in double quotes: "text"'
    if rest[:1] in ("}", "]") and text[: error.pos].rstrip().endswith(","):
        return f"has a comma before `{rest[0]}`", "remove the comma"
    if not rest.strip():
        return f"ends too early: {_lowered(error.msg)}", "close what was opened"
    return f"is not JSON: {_lowered(error.msg)}", "correct the syntax at this place"


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]


def _failed(
    path: Path, problem: str, hint: str, *, line: int | None = None, column: int | None = None
) -> Parsed:
    return Parsed(findings=(Finding("json", problem, str(path), line, column, hint=hint),))
