"""Search/replace blocks, as models that were told of aider's edit format write them.

The form is that of aider's `editblock_coder.py`: `<<<<<<< SEARCH`, `=======`, `>>>>>>> REPLACE`, of
five to nine characters each, with the name of the file on one of the lines before. Where aider
takes the first line that could be a divider, a block with several of them is refused here, since
a heading underlined with `=======` would cut the text in the wrong place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from sandbox_engine.patch.edits import InsertLines, Patch, PlanEdit, Section, SectionedUpdate
from sandbox_engine.patch.faults import Faults
from sandbox_engine.patch.fences import name_in_info, name_in_line, name_within_line, read_fence
from sandbox_engine.patch.paths import show

MAX_BLOCKS = 10_000

_MARK = re.compile(
    rb"(?:(?P<open><{5,9})[ \t]*SEARCH>?|(?P<divider>={5,9})|(?P<close>>{5,9})[ \t]*REPLACE)"
    rb"[ \t]*\r?\Z"
)
_TAG = re.compile(rb"<(?:source|code|pre|codeblock|sourcecode)>\s*\Z")
_NAME_REACH = 6
"""How many lines before a block may hold its file's name, blank ones and fences included."""

_REMEDY = (
    "send each edit as the file's path, `<<<<<<< SEARCH`, the lines to find, `=======`,"
    " the lines to put there, `>>>>>>> REPLACE`"
)
_DIVIDER_HINT = (
    "write the block's three markers with another number of characters (5 to 9) than such lines"
    " within it have"
)


@dataclass(frozen=True, slots=True)
class _Mark:
    """A line that looks like a marker; `line` is 0-based."""

    line: int
    kind: str
    length: int


@dataclass(frozen=True, slots=True)
class Block:
    """One block's markers, as 0-based lines."""

    start: int
    divider: int
    end: int


@dataclass(slots=True)
class _Reader:
    """The lines of a text, the file that the last block named, and where that block ended."""

    lines: list[bytes]
    faults: Faults
    name: bytes | None = None
    end: int = -1
    edits: list[PlanEdit] = field(default_factory=list)


def parse_search_replace(text: bytes) -> Patch:
    """Return the edits that the blocks in `text` ask for; an empty SEARCH appends or creates.

    Raises PatchSyntaxError with a finding for every block that is not complete, could be read in
    two ways or does not tell its file.
    """
    lines = text.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    reader = _Reader(lines, Faults("search/replace blocks are", _REMEDY))
    for block in find_blocks(lines, reader.faults):
        if reader.faults.is_full or len(reader.edits) > MAX_BLOCKS:
            break
        _read_block(reader, block)
    if len(reader.edits) > MAX_BLOCKS:
        reader.faults.add(None, f"the text holds more than {MAX_BLOCKS} blocks")
    if not reader.edits:
        reader.faults.add_if_none("the text holds no search/replace block")
    reader.faults.require_none()
    return Patch("search-replace", tuple(reader.edits))


def find_blocks(lines: list[bytes], faults: Faults) -> Iterator[Block]:
    """Yield the complete blocks in `lines`, and note in `faults` what is wrong with others."""
    marks = [mark for at, line in enumerate(lines) if (mark := _read_mark(at, line))]
    following = _next_of_kind(marks)
    at = 0
    while at < len(marks):
        if marks[at].kind != "open":
            if marks[at].kind == "close":
                message = "a REPLACE marker stands without a SEARCH marker before it"
                faults.add(marks[at].line + 1, message, source=lines[marks[at].line])
            at += 1
            continue
        end = _find_end(marks, at, following)
        if end is None:
            message = "the block has no `>>>>>>> REPLACE` before the next one, or the end"
            faults.add(marks[at].line + 1, message, source=lines[marks[at].line])
            at += 1
            continue
        divider = _find_divider(marks, at, end, faults)
        if divider is not None:
            yield Block(marks[at].line, divider, marks[end].line)
        at = end + 1


def _read_mark(at: int, line: bytes) -> _Mark | None:
    if line[:5] not in (b"<<<<<", b"=====", b">>>>>") or not (match := _MARK.match(line)):
        return None
    kind = str(match.lastgroup)
    return _Mark(at, kind, len(match[kind]))


def _next_of_kind(marks: list[_Mark]) -> list[int]:
    """Return for each mark the index of the next of its kind and length, or the end."""
    following = [len(marks)] * len(marks)
    last: dict[tuple[str, int], int] = {}
    for index in range(len(marks) - 1, -1, -1):
        key = marks[index].kind, marks[index].length
        following[index] = last.get(key, len(marks))
        last[key] = index
    return following


def _find_end(marks: list[_Mark], start: int, following: list[int]) -> int | None:
    """Return the closing mark of the block that `start` opens: of its length, else the first.

    Markers of another length within a block are its text, so that a block can edit blocks.
    """
    until = following[start]
    first: int | None = None
    for index in range(start + 1, until):
        mark = marks[index]
        if mark.kind == "close" and mark.length == marks[start].length:
            return index
        if mark.kind == "close" and first is None:
            first = index
    return first


def _find_divider(marks: list[_Mark], start: int, end: int, faults: Faults) -> int | None:
    dividers = [mark for mark in marks[start + 1 : end] if mark.kind == "divider"]
    same = [mark for mark in dividers if mark.length == marks[start].length]
    chosen = same or dividers
    if len(chosen) == 1:
        return chosen[0].line
    opening = marks[start].line + 1
    if not chosen:
        message = f"the block has no `=======` before its end on line {marks[end].line + 1}"
        faults.add(opening, message)
    else:
        listed = ", ".join(str(mark.line + 1) for mark in chosen[:10])
        faults.add(
            opening,
            f"any of the lines {listed} could be the block's `=======`",
            hint=_DIVIDER_HINT,
        )
    return None


def _read_block(reader: _Reader, block: Block) -> None:
    name = _name_before(reader, block.start)
    reader.end = block.end
    if name is None:
        return
    reader.name = name
    old = reader.lines[block.start + 1 : block.divider]
    new = reader.lines[block.divider + 1 : block.end]
    if any(line.strip() for line in old):
        section = Section(_bare(old), _bare(new), patch_line=block.start + 1)
        reader.edits.append(SectionedUpdate(name, (section,), patch_line=block.start + 1))
    elif new:
        if reader.lines[block.start].endswith(b"\r"):
            new = list(_bare(new))
        text = b"\n".join((*new, b""))
        reader.edits.append(InsertLines(name, text, patch_line=block.start + 1))
    else:
        reader.faults.add(block.start + 1, "both sides of the block are empty")


def _bare(lines: list[bytes]) -> tuple[bytes, ...]:
    return tuple(line.removesuffix(b"\r") for line in lines)


def _name_before(reader: _Reader, start: int) -> bytes | None:
    """Return the file of the block at `start`: named before it, or that of the last block."""
    found, prose = _names_before(reader, start)
    mentioned = name_within_line(prose)
    if not found and mentioned and reader.name in (None, mentioned):
        return mentioned
    if not found and mentioned and reader.name:
        found = [mentioned, reader.name]
    if len(set(found)) > 1:
        _refuse_names(reader, start, found)
        return None
    if not found and reader.name is None:
        message = "no line before the block names its file"
        hint = "put the path of the file alone on the line before `<<<<<<< SEARCH`"
        reader.faults.add(start + 1, message, source=prose or None, hint=hint)
    return found[0] if found else reader.name


def _names_before(reader: _Reader, start: int) -> tuple[list[bytes], bytes]:
    """Return the names inside, on and right above the fence, and the line of prose above that."""
    found: list[bytes] = []
    is_fenced = False
    for at in range(start - 1, max(reader.end, start - _NAME_REACH - 1), -1):
        line = reader.lines[at].strip()
        fence = read_fence(line)
        if fence or _TAG.match(line):
            if is_fenced:
                break
            is_fenced = True
            name = name_in_info(fence.info) if fence else None
        elif not line:
            continue
        elif found and not is_fenced:
            break
        else:
            name = name_in_line(line, is_sure=at == start - 1)
            if name is None:
                return found, line
        if name is not None:
            found.append(name)
            if is_fenced and not fence:
                break
    return found, b""


def _refuse_names(reader: _Reader, start: int, found: list[bytes]) -> None:
    listed = " and ".join(f"`{show(name)}`" for name in found[:3])
    message = f"which file the block is about is unclear: {listed}"
    hint = "put the path of the file alone on the line before `<<<<<<< SEARCH`"
    reader.faults.add(start + 1, message, hint=hint)
