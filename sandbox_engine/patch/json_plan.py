"""JSON plans: `{"analysis": ..., "patches_to_apply": [...]}`, as language models write them.

The plan may stand in prose or a code fence, may be the bare list of operations or a single one.
What it says is taken literally or refused: a value of the wrong type, a key that is there twice or
an operation of an unknown name is never guessed at, and all such faults are reported at once.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sandbox_engine.errors import PatchSyntaxError
from sandbox_engine.patch.edits import (
    DeleteBlock,
    DeleteFile,
    InsertLines,
    Patch,
    PlanEdit,
    ReplaceBlock,
    WriteFile,
)
from sandbox_engine.patch.paths import show
from sandbox_engine.verdict import Finding

MAX_SUMMARY_CHARS = 100_000
MAX_FINDINGS = 100
MAX_BROKEN = 1_000
"""How many starts of broken JSON are tried; each error costs a count of all lines before it."""

_OPS_KEY = "patches_to_apply"
_START = re.compile(r'\{\s*"[^"\\\n]{0,200}"\s*:|\[\s*\{')
_INTEGER = re.compile(r"\s*[+-]?[0-9]{1,18}\s*", re.ASCII)
_SUSPECT = re.compile(r"block|search|old|find|pattern|target|match", re.IGNORECASE)
_KNOWN_KEYS = frozenset(
    (
        "block_to_delete",
        "block_to_replace",
        "content",
        "file_path",
        "is_regex",
        "line_number",
        "operation",
    )
)
_PLAN_KEY = re.compile("|".join(f'"{key}"' for key in (_OPS_KEY, *sorted(_KNOWN_KEYS))))
_REMEDY = 'send one JSON object `{"analysis": "...", "patches_to_apply": [...]}` and nothing twice'


class _Object(dict[str, Any]):
    """A JSON object that remembers which of its keys were given more than once."""

    repeated: tuple[str, ...] = ()


class _BadOp(Exception):
    """An operation is malformed; the text says how, without naming the operation."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


def looks_json(text: bytes) -> bool:
    """Return whether `text` starts as JSON, or holds the start of a JSON plan somewhere."""
    start = text.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    return start in (b"{", b"[") or _OPS_KEY.encode() in text or b'"operation"' in text


def parse_json_plan(text: bytes) -> Patch:
    """Return the edits of the one JSON plan in `text`.

    Raises PatchSyntaxError if there is none, more than one, or any operation is malformed; the
    findings name each one by its index.
    """
    plan = _find_plan(_decode(text))
    ops, name = _ops(plan)
    edits: list[PlanEdit] = []
    findings: list[Finding] = []
    for index, op in enumerate(ops):
        try:
            edits.append(_edit(op))
        except _BadOp as error:
            findings.append(_finding(f"{name}[{index}]", op, error))
    if findings:
        raise PatchSyntaxError(
            f"{len(findings)} of {len(ops)} operations are malformed; {findings[0].message}",
            remedy="correct these operations and resend the whole plan",
            findings=findings[:MAX_FINDINGS],
        )
    summary = plan.get("analysis") if isinstance(plan, dict) else None
    return Patch("json", tuple(edits), _summary(summary))


def _decode(text: bytes) -> str:
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _refusal(f"the plan is not UTF-8 at byte {error.start}") from error


def _refusal(message: str, remedy: str = _REMEDY) -> PatchSyntaxError:
    finding = Finding("patch-malformed", message, hint=remedy)
    return PatchSyntaxError(message, remedy=remedy, findings=[finding])


def _finding(where: str, op: object, error: _BadOp) -> Finding:
    path = op.get("file_path") if isinstance(op, dict) else None
    shown = show(path.encode("utf-8", "backslashreplace")) if isinstance(path, str) else None
    return Finding("op-malformed", f"`{where}`: {error}", path=shown, hint=error.hint)


def _summary(analysis: object) -> str:
    if not isinstance(analysis, str):
        return ""
    return analysis.encode("utf-8", "replace").decode()[:MAX_SUMMARY_CHARS]


def _find_plan(text: str) -> Any:
    """Return the one JSON value in `text` that is a plan."""
    search = _Search(text)
    plans = [value for value in search.values() if _is_plan(value)]
    if len(plans) == 1:
        return plans[0]
    if plans:
        raise _refusal(f"the text holds {len(plans)} JSON plans; which one is meant is not clear")
    if search.failure is not None:
        raise _broken(search.failure)
    raise _refusal(f"the text holds no JSON plan with `{_OPS_KEY}`")


def _broken(error: json.JSONDecodeError) -> PatchSyntaxError:
    where = f"line {error.lineno}, column {error.colno}"
    return _refusal(f"the JSON is broken at {where}: {error.msg}")


def _is_plan(value: Any) -> bool:
    if isinstance(value, dict):
        return _OPS_KEY in value or ("operation" in value and "file_path" in value)
    return bool(value) and all(isinstance(op, dict) and "operation" in op for op in value)


@dataclass(slots=True)
class _Search:
    """Looks for JSON values in prose; `failure` is the break that the longest attempt met."""

    text: str
    failure: json.JSONDecodeError | None = None

    def values(self) -> Iterator[Any]:
        """Yield the outermost objects and lists of objects.

        An attempt that fails half-way is taken up again inside, which could cost the square of
        the length; so the characters read in vain are counted and bounded by the length.
        """
        decoder = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_constant)
        allowance = 8 * len(self.text) + 10_000
        attempts = MAX_BROKEN
        start = _START.search(self.text)
        while start:
            try:
                value, end = decoder.raw_decode(self.text, start.start())
            except json.JSONDecodeError as error:
                allowance -= self._note_failure(error, start.start())
                end = start.start() + 1
                attempts -= 1
            except RecursionError as error:
                raise _refusal("the JSON is nested too deeply") from error
            except ValueError as error:
                raise _refusal(f"the JSON holds {error}") from error
            else:
                yield value
            if allowance < 0 or not attempts:
                raise _refusal("the text holds too much broken JSON to look for a plan in it")
            start = _START.search(self.text, end)

    def _note_failure(self, error: json.JSONDecodeError, start: int) -> int:
        """Keep the error that got furthest; return how many characters the attempt read.

        Raises if it had begun to read a plan: its sound parts must not pass for the whole.
        """
        end = len(self.text) if error.msg.startswith("Unterminated") else error.pos
        if _PLAN_KEY.search(self.text, start, end):
            raise _broken(error) from error
        if self.failure is None or error.pos > self.failure.pos:
            self.failure = error
        return end - start


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    value = _Object(pairs)
    if len(value) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        value.repeated = tuple(key for key, count in counts.items() if count > 1)
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"`{name}`, which is no JSON number")


def _ops(plan: Any) -> tuple[list[Any], str]:
    """Return the operations of `plan` and the name of their list."""
    if isinstance(plan, list):
        return plan, "ops"
    if _OPS_KEY not in plan:
        return [plan], "ops"
    if plan.repeated:
        raise _refusal(f"the plan has the key `{_shown(plan.repeated[0])}` twice")
    ops = plan[_OPS_KEY]
    if isinstance(ops, dict):
        return [ops], _OPS_KEY
    if not isinstance(ops, list):
        raise _refusal(f"`{_OPS_KEY}` is {_kind(ops)}, not a list")
    if not ops:
        raise _refusal(f"`{_OPS_KEY}` is empty: the plan changes nothing")
    return ops, _OPS_KEY


def _edit(op: Any) -> PlanEdit:
    if not isinstance(op, _Object):
        raise _BadOp(f"it is {_kind(op)}, not an object")
    if op.repeated:
        raise _BadOp(f"the key `{_shown(op.repeated[0])}` is there twice")
    operation = op.get("operation")
    known = operation.strip().upper() if isinstance(operation, str) else ""
    if known not in _BUILDERS:
        raise _BadOp(
            f"the operation is {_kind(operation)}, unknown here",
            hint=f"`operation` is one of {', '.join(_BUILDERS)}",
        )
    return _BUILDERS[known](op)


def _insert(op: _Object) -> PlanEdit:
    return InsertLines(_path(op), _content(op), _line(op))


def _replace(op: _Object) -> PlanEdit:
    path, content = _path(op), _content(op)
    block, is_regex, line = _block(op, "block_to_replace"), _is_regex(op), _line(op)
    if block is None:
        return WriteFile(path, content)
    return ReplaceBlock(path, block, content, line, is_regex)


def _delete_block(op: _Object) -> PlanEdit:
    path = _path(op)
    block, is_regex, line = _block(op, "block_to_delete"), _is_regex(op), _line(op)
    if block is None:
        return DeleteFile(path)
    return DeleteBlock(path, block, line, is_regex)


_BUILDERS: dict[str, Callable[[_Object], PlanEdit]] = {
    "INSERT": _insert,
    "REPLACE": _replace,
    "DELETE_BLOCK": _delete_block,
}


def _path(op: _Object) -> bytes:
    path = op.get("file_path")
    if path is None:
        raise _BadOp("`file_path` is missing")
    if not isinstance(path, str):
        raise _BadOp(f"`file_path` is {_kind(path)}, not a string")
    if not path.strip():
        raise _BadOp("`file_path` is empty")
    while path.startswith("./"):
        path = path[2:].lstrip("/")
    return _utf8(path, "file_path")


def _content(op: _Object) -> bytes:
    content = op.get("content")
    if content is None:
        raise _BadOp("`content` is missing", hint="give it as a string or a list of lines")
    return _text(content, "content")


def _block(op: _Object, key: str) -> bytes | None:
    """Return the block under `key`; None asks for the whole file.

    A key that is not there means the same, as it always has, unless another key looks as if it
    was meant: a misspelt block must not cost the whole file.
    """
    block = op.get(key)
    if block is None:
        meant = [name for name in op if name not in _KNOWN_KEYS and _SUSPECT.search(name)]
        meant += [name for name in op if name.startswith("block_to_") and name != key]
        if key not in op and meant:
            raise _BadOp(f"`{_shown(meant[0])}` is there, `{key}` is not", hint=f"name it `{key}`")
        if _is_regex(op):
            raise _BadOp(f"`is_regex` is true but `{key}` holds no pattern")
        return None
    text = _text(block, key)
    if not text:
        raise _BadOp(f"`{key}` is empty", hint="null means the whole file; INSERT adds lines")
    return text


def _text(value: Any, key: str) -> bytes:
    if isinstance(value, list):
        wrong = [line for line in value if not isinstance(line, str)]
        if wrong:
            raise _BadOp(f"`{key}` holds {_kind(wrong[0])}, not only strings")
        value = "\n".join(value)
    if not isinstance(value, str):
        raise _BadOp(f"`{key}` is {_kind(value)}, not a string or a list of strings")
    return _utf8(value, key)


def _utf8(text: str, key: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise _BadOp(f"`{key}` holds half a surrogate pair at character {error.start}") from error


def _line(op: _Object) -> int | None:
    line = op.get("line_number")
    if line is None:
        return None
    if isinstance(line, str) and _INTEGER.fullmatch(line):
        return int(line)
    if isinstance(line, float) and line.is_integer():
        return int(line)
    if isinstance(line, bool) or not isinstance(line, int):
        raise _BadOp(f"`line_number` is {_kind(line)}, not a whole number")
    return line


def _is_regex(op: _Object) -> bool:
    flag = op.get("is_regex")
    if flag is not None and not isinstance(flag, bool):
        raise _BadOp(f"`is_regex` is {_kind(flag)}, not true or false")
    return bool(flag)


def _shown(name: str) -> str:
    return show(name.encode("utf-8", "backslashreplace"), 80)


def _kind(value: object) -> str:
    """Return what `value` is in JSON's words, with the value itself where it is short."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str():
            return f'the string "{_shown(value)}"'
        case int() | float():
            return f"the number {str(value)[:40]}"
        case list():
            return "a list"
    return "an object"
