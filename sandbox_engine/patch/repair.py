"""Diffs as models write them, made into diffs that count: `@@` lines are written anew.

Only `@@` lines change and only where their numbers do not fit the lines below them, so every line
keeps its number and all else is still read as git reads it. Where it is not plain which lines
belong to a hunk, its `@@` line stays as it is and the diff stays corrupt.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_RANGE = re.compile(
    rb"@@ -([0-9]{1,18})(?:,([0-9]{1,18}))? \+([0-9]{1,18})(?:,([0-9]{1,18}))? @@(.*)\Z", re.DOTALL
)
_ROUGH = re.compile(rb"@@+ *-([0-9]{1,9})(?:,[0-9]*)? *(?:\+([0-9]{1,9})(?:,[0-9]*)?)?")
_BODY = b"+- \\"
_SIGNATURE = re.compile(rb"-- ?\r?\Z")


@dataclass(slots=True)
class Repaired:
    """A diff with `@@` lines that count: `headers` are the new ones by their 0-based line.

    `unplaced` are those among them that named no line of the file, `hunks` all `@@` lines.
    """

    lines: list[bytes]
    headers: dict[int, bytes] = field(default_factory=dict)
    unplaced: set[int] = field(default_factory=set)
    hunks: set[int] = field(default_factory=set)


def repair(lines: list[bytes], *, is_terminated: bool) -> Repaired:
    """Return `lines` with every `@@` line that miscounts written anew.

    A last line that `is_terminated` says has no newline makes the last hunk a repaired one.
    """
    repaired = Repaired(list(lines))
    at = 0
    shift = 0
    while at < len(lines):
        if lines[at].startswith(b"+++ "):
            shift = 0
        if not _starts_hunk(lines, at):
            at += 1
            continue
        while at < len(lines) and lines[at].startswith(b"@@"):
            at, shift = _repair_hunk(repaired, at, shift, is_terminated)
    return repaired


def _starts_hunk(lines: list[bytes], at: int) -> bool:
    return at > 0 and lines[at].startswith(b"@@") and lines[at - 1].startswith(b"+++ ")


def _repair_hunk(repaired: Repaired, at: int, shift: int, is_terminated: bool) -> tuple[int, int]:
    """Write the `@@` line at `at` anew if need be; return the line after the hunk and the shift."""
    lines = repaired.lines
    repaired.hunks.add(at)
    match = _RANGE.match(lines[at])
    if match and (end := _counted_end(lines, at + 1, match)) is not None:
        if end < len(lines) or is_terminated:
            return end, shift + int(match[4] or b"1") - int(match[2] or b"1")
    elif not match:
        match = None
    end = _body_end(lines, at + 1)
    old, new, is_changed = _counts(lines[at + 1 : end])
    if not is_changed or _is_unclear(lines, end):
        return max(end, at + 1), shift
    rough = match or _ROUGH.match(lines[at])
    if rough is None or not int(rough[1]):
        first = 1 if old else 0
        if rough is None:
            repaired.unplaced.add(at)
    else:
        first = int(rough[1])
    begin = max(first + shift, 1 if new else 0)
    header = b"@@ -%d,%d +%d,%d @@" % (first, old, begin, new)
    repaired.headers[at] = header
    lines[at] = header
    return end, shift + new - old


def _counted_end(lines: list[bytes], at: int, match: re.Match[bytes]) -> int | None:
    """Return the line after a hunk that is as long as it says, or None."""
    old, new = int(match[2] or b"1"), int(match[4] or b"1")
    while old or new:
        if at >= len(lines):
            return None
        kind = lines[at][:1]
        if kind not in (b"", b" ", b"+", b"-", b"\\"):
            return None
        old -= kind in (b"", b" ", b"-")
        new -= kind in (b"", b" ", b"+")
        at += 1
        if old < 0 or new < 0:
            return None
    at += at < len(lines) and lines[at].startswith(b"\\ ")
    is_over = at >= len(lines) or lines[at][:1] not in (b"+", b"-", b" ") or _ends_body(lines, at)
    return at if is_over else None


def _body_end(lines: list[bytes], at: int) -> int:
    """Return the line after the last that looks like part of a hunk; blank ones only inside it."""
    end = at
    while at < len(lines) and not _ends_body(lines, at):
        line = lines[at]
        at += 1
        if line.rstrip(b"\r"):
            end = at
    return end


def _ends_body(lines: list[bytes], at: int) -> bool:
    line = lines[at]
    if _SIGNATURE.match(line):
        return True
    if line.startswith(b"--- ") and at + 1 < len(lines) and lines[at + 1].startswith(b"+++ "):
        return True
    return bool(line.rstrip(b"\r")) and line[0] not in _BODY


def _counts(body: list[bytes]) -> tuple[int, int, bool]:
    """Return how many old and new lines a body holds, and whether it changes anything."""
    kinds = [line[:1] for line in body]
    added, removed, marks = kinds.count(b"+"), kinds.count(b"-"), kinds.count(b"\\")
    context = len(kinds) - added - removed - marks
    return context + removed, context + added, bool(added or removed)


def _is_unclear(lines: list[bytes], at: int) -> bool:
    """Return whether lines that look like changes come before the next header.

    A line without its leading space has ended the hunk; what follows would be lost.
    """
    while at < len(lines):
        line = lines[at]
        if line.startswith((b"@@", b"diff --git ", b"--- ", b"```")) or _SIGNATURE.match(line):
            return False
        if line.startswith((b"+", b"-")):
            return True
        at += 1
    return False
