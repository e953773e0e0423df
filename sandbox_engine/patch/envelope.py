"""`*** Begin Patch` envelopes, as OpenAI's `apply_patch` tool has models write them.

The grammar is that of `tool_apply_patch.lark` in openai/codex, with what its lenient mode and the
GPT-4.1 prompting guide allow besides: prose, fences or a here-document around the envelope, several
`@@` lines that narrow the place down, a first section without `@@`, an empty line for an empty
context line. Several envelopes in one text are made one after the other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from sandbox_engine.patch.edits import (
    CreateFile,
    DeleteFile,
    Patch,
    PlanEdit,
    Section,
    SectionedUpdate,
)
from sandbox_engine.patch.faults import Faults
from sandbox_engine.patch.fences import clean_name

MAX_SECTIONS = 100_000

BEGIN, END = b"*** Begin Patch", b"*** End Patch"
_END_OF_FILE = b"*** End of File"
_MOVE = b"*** Move to:"
_OPERATION = re.compile(rb"\*\*\* (Add|Delete|Update) File:(.*)\Z", re.DOTALL)
_RANGE = re.compile(rb"@@ -[0-9]+(?:,[0-9]+)? \+[0-9]+(?:,[0-9]+)? @@")

_REMEDY = (
    "send `*** Begin Patch`, then `*** Add File: path`, `*** Delete File: path` or"
    " `*** Update File: path` with its lines, then `*** End Patch`"
)
_LINE_HINT = "start every line with a space (unchanged), `-` (removed) or `+` (added)"


@dataclass(slots=True)
class _Section:
    """A section while its lines are read; `line` is where it starts, 1-based."""

    line: int
    anchors: list[bytes] = field(default_factory=list)
    before: list[bytes] = field(default_factory=list)
    after: list[bytes] = field(default_factory=list)
    blank: int = 0
    has_lines: bool = False
    at_end: bool = False


@dataclass(slots=True)
class _Operation:
    """An operation while its lines are read."""

    kind: bytes
    path: bytes
    line: int
    added: list[bytes] = field(default_factory=list)
    sections: list[_Section] = field(default_factory=list)
    move_to: bytes | None = None
    has_blank: bool = False


@dataclass(slots=True)
class _Reader:
    """What has been read so far; `begin` is the line of the envelope that is open, or 0."""

    faults: Faults
    begin: int = 0
    strips_return: bool = False
    operation: _Operation | None = None
    edits: list[PlanEdit] = field(default_factory=list)
    sections: int = 0


def parse_envelope(text: bytes) -> Patch:
    """Return the edits of the envelopes in `text`; what stands around them is ignored.

    Raises PatchSyntaxError with a finding for every line that does not fit the grammar.
    """
    reader = _Reader(Faults("patch envelope is", _REMEDY))
    is_found = False
    for number, line in enumerate(text.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if reader.faults.is_full or reader.sections > MAX_SECTIONS:
            break
        if reader.begin:
            _read_line(reader, number, line)
        elif line.rstrip() == BEGIN:
            reader.begin, reader.strips_return = number, line.endswith(b"\r")
            is_found = True
        elif _OPERATION.match(line.rstrip()) or line.rstrip() == END:
            message = "this line stands outside of `*** Begin Patch` and `*** End Patch`"
            reader.faults.add(number, message, source=line)
    if reader.sections > MAX_SECTIONS:
        reader.faults.add(None, f"the patch holds more than {MAX_SECTIONS} sections")
    elif reader.begin:
        _close_operation(reader)
        message = "the patch that starts here has no `*** End Patch`; it may have been cut off"
        reader.faults.add(reader.begin, message)
    elif not is_found:
        reader.faults.add_if_none("the text holds no `*** Begin Patch`")
    reader.faults.require_none()
    return Patch("apply-patch", tuple(reader.edits))


def _read_line(reader: _Reader, number: int, line: bytes) -> None:
    if reader.strips_return:
        line = line.removesuffix(b"\r")
    if not line.startswith(b"***"):
        _read_body_line(reader, number, line)
        return
    marker = line.rstrip()
    operation = _OPERATION.match(marker)
    if operation:
        _close_operation(reader)
        path = _path(reader, number, operation[2].strip())
        reader.operation = _Operation(operation[1], path, number)
    elif marker == END:
        _end_envelope(reader, number)
    elif marker == _END_OF_FILE:
        _end_file(reader, number)
    elif marker.startswith(_MOVE):
        _read_move(reader, number, marker[len(_MOVE) :].strip())
    else:
        message = "the line is no marker that is known here"
        reader.faults.add(number, message, source=line, hint=_REMEDY)


def _path(reader: _Reader, number: int, name: bytes) -> bytes:
    if not name:
        reader.faults.add(number, "the marker names no file")
    return clean_name(name)


def _end_envelope(reader: _Reader, number: int) -> None:
    is_empty = not reader.edits and not reader.operation and not reader.faults.findings
    _close_operation(reader)
    if is_empty:
        reader.faults.add(number, "the patch holds no operation")
    reader.begin = 0


def _read_move(reader: _Reader, number: int, name: bytes) -> None:
    operation = reader.operation
    if operation is None or operation.kind != b"Update" or operation.sections:
        message = "`*** Move to:` does not follow an `*** Update File:` line"
        reader.faults.add(number, message)
    elif operation.move_to is not None:
        reader.faults.add(number, "the file is moved twice")
    else:
        operation.move_to = _path(reader, number, name)


def _end_file(reader: _Reader, number: int) -> None:
    operation = reader.operation
    section = operation.sections[-1] if operation and operation.sections else None
    if section is None or section.at_end:
        reader.faults.add(number, "`*** End of File` does not end a section")
        return
    _flush_blank(section)
    section.at_end = True


def _read_body_line(reader: _Reader, number: int, line: bytes) -> None:
    operation = reader.operation
    if operation is None or operation.kind == b"Delete":
        if line.strip():
            message = "the line belongs to no `*** Add File:` or `*** Update File:`"
            reader.faults.add(number, message, source=line)
    elif operation.kind == b"Add":
        _read_added_line(reader, operation, number, line)
    elif line.startswith(b"@@"):
        _read_anchor(reader, operation, number, line)
    else:
        _read_section_line(reader, operation, number, line.removesuffix(b"\r"))


def _read_added_line(reader: _Reader, operation: _Operation, number: int, line: bytes) -> None:
    if line.startswith(b"+") and not operation.has_blank:
        operation.added.append(line[1:] + b"\n")
    elif not line.strip():
        operation.has_blank = True
    else:
        message = "a line of an added file does not start with `+`"
        if operation.has_blank:
            message = "the added file goes on after a line without `+`"
        hint = "start every line of the file with `+`, empty ones too"
        reader.faults.add(number, message, source=line, hint=hint)
        operation.has_blank = False


def _read_anchor(reader: _Reader, operation: _Operation, number: int, line: bytes) -> None:
    """Take an `@@` line; those that follow one another narrow the place of one section down.

    The numbers of a unified diff say nothing here, and the text after them is cut off by git.
    """
    anchor = b"" if _RANGE.match(line) else line[2:].strip()
    anchor = anchor.removesuffix(b"@@").rstrip()
    last = operation.sections[-1] if operation.sections else None
    if last is None or last.has_lines or last.at_end:
        last = _Section(number)
        operation.sections.append(last)
        reader.sections += 1
    if anchor:
        last.anchors.append(anchor)


def _read_section_line(reader: _Reader, operation: _Operation, number: int, line: bytes) -> None:
    if not operation.sections or operation.sections[-1].at_end:
        if not line:
            return
        operation.sections.append(_Section(number))
    section = operation.sections[-1]
    if not line:
        section.blank += 1
        return
    kind = line[:1]
    if kind not in (b" ", b"-", b"+"):
        message = "the line starts with neither a space, `-` nor `+`"
        reader.faults.add(number, message, source=line, hint=_LINE_HINT)
    _flush_blank(section)
    section.has_lines = True
    if kind != b"+":
        section.before.append(line[1:])
    if kind != b"-":
        section.after.append(line[1:])


def _flush_blank(section: _Section) -> None:
    """Take the empty lines seen last for context; at the end of a section they only set it off."""
    blank = [b""] * section.blank
    section.before += blank
    section.after += blank
    section.has_lines = section.has_lines or bool(blank)
    section.blank = 0


def _close_operation(reader: _Reader) -> None:
    operation, reader.operation = reader.operation, None
    if operation is None:
        return
    path, line = operation.path, operation.line
    match operation.kind:
        case b"Add":
            content = b"".join(operation.added)
            reader.edits.append(CreateFile(path, content, patch_line=line))
        case b"Delete":
            reader.edits.append(DeleteFile(path, must_exist=True, patch_line=line))
        case _:
            sections = tuple(_closed(reader, section) for section in operation.sections)
            if not sections and operation.move_to is None:
                reader.faults.add(line, "the update of the file holds no change")
            reader.edits.append(SectionedUpdate(path, sections, operation.move_to, patch_line=line))


def _closed(reader: _Reader, section: _Section) -> Section:
    if not section.has_lines:
        reader.faults.add(section.line, "the section holds no lines", hint=_LINE_HINT)
    return Section(
        tuple(section.before),
        tuple(section.after),
        tuple(section.anchors),
        section.at_end,
        patch_line=section.line,
    )
