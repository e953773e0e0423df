"""Unified diffs, as `git diff` and `diff -u` write them, read the way `git apply` reads them.

The rules are those of git's `apply.c` (2.39), peculiarities included, because a patch must not mean
one thing here and another to the person who applies it by hand: prose between files is skipped,
names come from whichever header carries them, a hunk is as long as its `@@` line says. Where git
stops at the first corrupt part, reading goes on at the next file so that all are reported.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from sandbox_engine.errors import PatchSyntaxError
from sandbox_engine.patch import binary
from sandbox_engine.patch.edits import BinaryHunk, FileDiff, Hunk, Patch
from sandbox_engine.patch.paths import show
from sandbox_engine.patch.repair import Repaired, repair
from sandbox_engine.verdict import Finding

MAX_FINDINGS = 100

_HEADER = re.compile(rb"^(?:diff --git |--- [^\n]*\n\+\+\+ [^\n]*\n@@)", re.MULTILINE)
_BARE = re.compile(rb"@@(?! -[0-9])")
_NUMBER = rb"([0-9]{1,18})"
_RANGE = re.compile(
    rb"@@ -" + _NUMBER + rb"(?:," + _NUMBER + rb")? \+" + _NUMBER + rb"(?:," + _NUMBER + rb")? @@"
)
_MODE = re.compile(rb"[ \t\r]*\+?([0-7]{1,12})(?:[ \t\r]|\Z)")
_TIMESTAMP = re.compile(
    rb"[\t ](?:[0-9]{2})?[0-9]{2}-[0-9]{2}-[0-9]{2}"
    rb"(?: [0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]+)?)?"
    rb"(?: [+-](?:[0-9]{4}|[0-9]{2}:[0-9]{2}))?\Z"
)
_EPOCH = re.compile(
    rb"(1969-12-31|1970-01-01) ([0-2][0-9]):([0-5][0-9]):00(?:\.0+)? "
    rb"([-+])([0-2][0-9]):?([0-5][0-9])\Z"
)
_QUOTED = re.compile(rb'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPE = re.compile(rb"\\([0-3][0-7]{2}|.)", re.DOTALL)
_ESCAPED = {
    b"a": b"\a",
    b"b": b"\b",
    b"f": b"\f",
    b"n": b"\n",
    b"r": b"\r",
    b"t": b"\t",
    b"v": b"\v",
    b"\\": b"\\",
    b'"': b'"',
}
_SPACE = b" \t\r\n"


class _Malformed(Exception):
    """Part of the text is no diff; lines are 0-based, reading goes on at a header from `resume`."""

    def __init__(
        self, line: int, message: str, hint: str = "resend this file's diff", resume: int = 0
    ) -> None:
        super().__init__(message)
        self.line = line
        self.message = message
        self.hint = hint
        self.resume = max(resume, line + 1)


@dataclass(slots=True)
class _Header:
    """What the lines before a file's first hunk have said so far."""

    old_path: bytes | None = None
    new_path: bytes | None = None
    old_mode: int = 0
    new_mode: int = 0
    is_new: bool | None = None
    is_delete: bool | None = None
    is_rename: bool = False
    is_copy: bool = False
    old_id: bytes = b""
    new_id: bytes = b""

    def contradicts_itself(self) -> bool:
        return sum((bool(self.is_new), bool(self.is_delete), self.is_rename, self.is_copy)) > 1

    def says_something(self) -> bool:
        """Return whether the header alone, without a hunk, changes anything."""
        return bool(
            self.is_rename
            or self.is_copy
            or self.is_new
            or self.is_delete is not False
            or (self.old_mode and self.new_mode and self.old_mode != self.new_mode)
        )


@dataclass(slots=True)
class _Reader:
    """The lines of a patch without their newlines, and how many path components to strip."""

    lines: list[bytes]
    is_terminated: bool
    strip: int = 1
    is_strip_known: bool = False
    findings: list[Finding] = field(default_factory=list)
    doubts: list[Finding] = field(default_factory=list)
    inflated: int = 0

    def has_newline(self, at: int) -> bool:
        return at < len(self.lines) - 1 or (at < len(self.lines) and self.is_terminated)

    def bytes_from(self, at: int) -> int:
        """Return how many bytes are left from line `at` on; exact only where few lines are."""
        left = self.lines[at : at + 20]
        return sum(map(len, left)) + len(left) - (not self.is_terminated)


def looks_unified(text: bytes) -> bool:
    """Return whether a line of `text` starts a diff."""
    return _HEADER.search(text) is not None


def parse_unified(text: bytes) -> Patch:
    """Return the diffs in `text` in their order, as git reads them.

    Where git finds them corrupt they are read with their `@@` lines counted anew. Raises
    PatchSyntaxError with a finding, and its line in the patch, for every part that is corrupt all
    the same or contradicts itself.
    """
    patch = _parse(_split(text), 1)
    return dataclasses.replace(patch, others=lambda: _other_readings(_split(text)))


@dataclass(frozen=True, slots=True)
class _Source:
    """The lines of a patch without their newlines."""

    lines: list[bytes]
    is_terminated: bool


def _split(text: bytes) -> _Source:
    lines = text.split(b"\n")
    is_terminated = not lines[-1]
    if is_terminated:
        lines.pop()
    return _Source(lines, is_terminated)


def _parse(source: _Source, strip: int) -> Patch:
    """Return the diffs with `strip` folders taken off, repaired where they are corrupt."""
    reader = _Reader(source.lines, source.is_terminated, strip, strip != 1)
    edits = _read_all(reader)
    if reader.findings or not edits:
        if repaired := _parse_repaired(source, strip):
            return repaired
        _require_sound(reader.findings, edits)
    doubts = reader.doubts or _unread(source, edits)
    return Patch("unified", tuple(edits), doubts=tuple(doubts), strip=reader.strip)


def _read_all(reader: _Reader) -> list[FileDiff]:
    lines = reader.lines
    edits: list[FileDiff] = []
    at = 0
    while at < len(lines) and len(reader.findings) < MAX_FINDINGS:
        try:
            diff, at = _read_file(reader, at)
        except _Malformed as error:
            reader.findings.append(_finding(error, lines))
            at = _next_header(lines, error.resume)
            continue
        if diff is None:
            break
        edits.append(diff)
    return edits


def _parse_repaired(source: _Source, strip: int) -> Patch | None:
    """Return the diffs with `@@` lines that count, or None where that does not make them sound."""
    repaired = repair(source.lines, is_terminated=source.is_terminated)
    if not repaired.headers:
        return None
    reader = _Reader(repaired.lines, True, strip, strip != 1)
    edits = _read_all(reader)
    if reader.findings or reader.doubts or not edits:
        return None
    read = {hunk.patch_line - 1 for edit in edits for hunk in edit.hunks}
    if not repaired.hunks <= read:
        return None
    loose = tuple(_loosened(edit, repaired) for edit in edits)
    return Patch("unified", loose, strip=reader.strip)


def _loosened(edit: FileDiff, repaired: Repaired) -> FileDiff:
    hunks = tuple(
        dataclasses.replace(
            hunk,
            is_loose=True,
            old_start=-1 if hunk.patch_line - 1 in repaired.unplaced else hunk.old_start,
        )
        if hunk.patch_line - 1 in repaired.headers
        else hunk
        for hunk in edit.hunks
    )
    return dataclasses.replace(edit, hunks=hunks)


def _unread(source: _Source, edits: list[FileDiff]) -> list[Finding]:
    """Return a finding for every `@@` line that git takes for prose, and drops with its hunk."""
    if not any(_BARE.match(line) for line in source.lines):
        return []
    read = {hunk.patch_line - 1 for edit in edits for hunk in edit.hunks}
    known = repair(source.lines, is_terminated=source.is_terminated).hunks
    message = "this `@@` line is not of the form `@@ -1,2 +1,3 @@`"
    return [
        _finding(_Malformed(at, message, _COUNT_HINT), source.lines) for at in sorted(known - read)
    ]


def _other_readings(source: _Source) -> Iterator[Patch]:
    """Yield what else the text could mean, for where git's reading does not fit."""
    repaired = _parse_repaired(source, 1)
    if repaired is not None:
        yield repaired
    for strip in (0, 2):
        try:
            yield _parse(source, strip)
        except PatchSyntaxError:
            continue


def _require_sound(findings: list[Finding], edits: list[FileDiff]) -> None:
    if findings:
        first = findings[0]
        raise PatchSyntaxError(
            f"the diff is corrupt at line {first.line} of the patch: {first.message}",
            remedy="make the diff again with `git diff`; hunk headers must count their lines",
            findings=findings,
        )
    if not edits:
        message = "the text holds no diff that changes anything"
        raise PatchSyntaxError(
            message,
            remedy="send what `git diff` writes: file headers, then `@@` hunks",
            findings=[Finding("patch-malformed", message)],
        )


def _finding(error: _Malformed, lines: list[bytes]) -> Finding:
    source = show(lines[error.line]) if error.line < len(lines) else None
    line = min(error.line, len(lines) - 1) + 1
    return Finding("patch-malformed", error.message, line=line, source=source, hint=error.hint)


def _next_header(lines: list[bytes], at: int) -> int:
    for index in range(at, len(lines)):
        line = lines[index]
        if line.startswith(b"diff --git "):
            return index
        following = lines[index + 1 : index + 2] if line.startswith(b"--- ") else []
        if following and following[0].startswith(b"+++ "):
            return index
    return len(lines)


def _read_file(reader: _Reader, at: int) -> tuple[FileDiff | None, int]:
    """Return the next file's diff and the line after it; None where no header is left."""
    header = _Header()
    found = _find_header(reader, at, header)
    if found is None:
        return None, len(reader.lines)
    start, at = found
    if header.is_new and header.old_path is not None:
        raise _Malformed(start, "the header gives a new file an old name", resume=at)
    hunks, at = _read_hunks(reader, at)
    _settle_kind(header, hunks, start, at)
    is_binary, content = False, None
    if not hunks:
        is_binary, content, at = _read_binary(reader, at)
        if not is_binary and not header.says_something():
            raise _Malformed(start, "this file's diff has a header but changes nothing", resume=at)
    diff = FileDiff(
        header.old_path,
        header.new_path,
        header.old_mode,
        header.new_mode,
        header.is_new,
        header.is_delete,
        header.is_rename,
        header.is_copy,
        is_binary,
        tuple(hunk for hunk, _, _ in hunks),
        start + 1,
        content,
        header.old_id,
        header.new_id,
    )
    return diff, at


def _find_header(reader: _Reader, at: int, header: _Header) -> tuple[int, int] | None:
    """Return the lines where the next header starts and ends, with what it says in `header`.

    A `diff --git` line that nothing follows does not end the search, and what it said stays: that
    is how git reads the header of a file whose diff is empty.
    """
    lines = reader.lines
    while at < len(lines):
        line = lines[at]
        if line.startswith(b"@@ -"):
            if _RANGE.match(line) and reader.has_newline(at):
                raise _Malformed(at, "a hunk stands without the header of its file")
        elif line.startswith((b"diff --git ", b"--- ")):
            if len(lines) - at < 8 and reader.bytes_from(at + 1) < 6:
                return None
            if line.startswith(b"diff --git "):
                end = _read_git_header(reader, at, header)
                if end > at + 1:
                    return at, end
                at = end
                continue
            if _is_plain_header(reader, at):
                _read_plain_header(reader, at, header)
                return at, at + 2
        at += 1
    return None


def _is_plain_header(reader: _Reader, at: int) -> bool:
    following = reader.lines[at + 1 : at + 3]
    return (
        len(following) == 2
        and following[0].startswith(b"+++ ")
        and following[1].startswith(b"@@ -")
    )


def _read_plain_header(reader: _Reader, at: int, header: _Header) -> None:
    """Take the names of a diff without git's headers: `--- old` and `+++ new`."""
    first, second = reader.lines[at][4:], reader.lines[at + 1][4:]
    if not reader.is_strip_known:
        _guess_strip(reader, first, second)
    if _is_dev_null(first):
        header.is_new, header.is_delete = True, False
        name = header.new_path = _plain_name(second, reader.strip)
    elif _is_dev_null(second):
        header.is_new, header.is_delete = False, True
        name = header.old_path = _plain_name(first, reader.strip)
    else:
        name = _plain_name(second, reader.strip, _plain_name(first, reader.strip))
        if _is_epoch(first):
            header.is_new, header.is_delete, header.new_path = True, False, name
        elif _is_epoch(second):
            header.is_new, header.is_delete, header.old_path = False, True, name
        else:
            header.old_path = header.new_path = name
    if name is None:
        raise _Malformed(at, "the `---` and `+++` lines hold no file name", _NAME_HINT)


_NAME_HINT = "name files as `a/path` and `b/path`, relative to the root of the repository"


def _guess_strip(reader: _Reader, first: bytes, second: bytes) -> None:
    """Strip nothing from here on if the first plain header names files without any folder."""
    counts = []
    for line in (first, second):
        name = None if _is_dev_null(line) else _plain_name(line, 0)
        counts.append(0 if name is not None and b"/" not in name else -1)
    if counts[0] < 0:
        counts[0] = counts[1]
    if counts[0] == counts[1] == 0:
        reader.strip, reader.is_strip_known = 0, True


def _read_git_header(reader: _Reader, at: int, header: _Header) -> int:
    """Return the line after the header that starts with `diff --git` at line `at`."""
    header.is_new = header.is_delete = False
    default = _git_header_name(reader.lines[at][11:], reader.strip)
    index = at + 1
    while reader.has_newline(index) and _read_header_line(reader, index, header, default):
        index += 1
        if header.contradicts_itself():
            raise _Malformed(index - 1, "the header lines contradict each other")
    if header.old_path is None and header.new_path is None:
        header.old_path = header.new_path = default
    if (header.new_path is None and not header.is_delete) or (
        header.old_path is None and not header.is_new
    ):
        raise _Malformed(at, "the header does not say which file it is about", _NAME_HINT)
    return index


def _read_header_line(reader: _Reader, at: int, header: _Header, default: bytes | None) -> bool:
    """Take what an extended header line says; return False if it is none."""
    line = reader.lines[at]
    keyword, rest = _split_keyword(line)
    match keyword:
        case b"--- ":
            header.old_path = _verified_name(reader, at, header.old_path, bool(header.is_new))
        case b"+++ ":
            header.new_path = _verified_name(reader, at, header.new_path, bool(header.is_delete))
        case b"old mode ":
            header.old_mode = _mode(rest, at)
        case b"new mode ":
            header.new_mode = _mode(rest, at)
        case b"deleted file mode ":
            header.is_delete, header.old_path = True, default
            header.old_mode = _mode(rest, at)
        case b"new file mode ":
            header.is_new, header.new_path = True, default
            header.new_mode = _mode(rest, at)
        case _ if keyword.startswith((b"copy ", b"rename ")):
            _take_move(header, keyword, _moved_name(rest, reader.strip))
        case b"index ":
            _take_ids(header, rest, at)
        case b"similarity index " | b"dissimilarity index ":
            pass
        case _:
            return False
    return True


def _take_move(header: _Header, keyword: bytes, name: bytes | None) -> None:
    if keyword.startswith(b"copy"):
        header.is_copy = True
    else:
        header.is_rename = True
    if keyword.endswith((b"from ", b"old ")):
        header.old_path = name
    else:
        header.new_path = name


_KEYWORD = re.compile(
    rb"(?:--- |\+\+\+ |old mode |new mode |deleted file mode |new file mode |copy from |copy to "
    rb"|rename old |rename new |rename from |rename to |index |(?:dis)?similarity index )"
)


def _split_keyword(line: bytes) -> tuple[bytes, bytes]:
    match = _KEYWORD.match(line)
    return (match[0], line[match.end() :]) if match else (b"", line)


def _take_ids(header: _Header, rest: bytes, at: int) -> None:
    """Take what `index <old>..<new> <mode>` says; the mode may be missing."""
    old, dots, new = rest.partition(b"..")
    new_id, space, mode = new.partition(b" ")
    if not dots or b"." in old or len(old) > 40 or len(new_id) > 40:
        return
    header.old_id, header.new_id = old, new_id
    if space:
        header.old_mode = _mode(mode, at)


def _mode(text: bytes, at: int) -> int:
    match = _MODE.match(text)
    if not match:
        raise _Malformed(at, "the mode is not an octal number")
    return int(match[1], 8)


def _verified_name(reader: _Reader, at: int, known: bytes | None, is_null: bool) -> bytes | None:
    """Return the name on a `---` or `+++` line, which must agree with what is `known`."""
    rest = reader.lines[at][4:]
    if known is None and not is_null:
        return _header_name(rest, reader.strip)
    if known is None:
        if not _is_dev_null(rest):
            raise _Malformed(at, "`/dev/null` is expected here")
        return None
    if is_null:
        raise _Malformed(at, f"`/dev/null` is expected, not `{show(known)}`")
    if _header_name(rest, reader.strip) != known:
        raise _Malformed(at, f"this names another file than `{show(known)}` above", _NAME_HINT)
    return known


def _is_dev_null(rest: bytes) -> bool:
    return rest.startswith(b"/dev/null") and rest[9:10] in (b"", b" ", b"\t", b"\r")


def _header_name(rest: bytes, strip: int) -> bytes | None:
    if (quoted := _quoted_name(rest, strip)) is not None:
        return quoted
    return _stripped(re.split(rb"[\t\r]", rest, maxsplit=1)[0], strip)


def _moved_name(rest: bytes, strip: int) -> bytes | None:
    strip = max(strip - 1, 0)
    if (quoted := _quoted_name(rest, strip)) is not None:
        return quoted
    return _stripped(rest.partition(b"\r")[0], strip)


def _plain_name(rest: bytes, strip: int, shorter: bytes | None = None) -> bytes | None:
    """Return the name on a plain header line without its time stamp.

    `shorter` is the other side's name; it wins over a name that only adds to it (`file.orig`).
    """
    if (quoted := _quoted_name(rest, strip)) is not None:
        return quoted
    if stamp := _TIMESTAMP.search(rest):
        is_tab = rest[stamp.start() : stamp.start() + 1] == b"\t"
        end = stamp.start() if is_tab else len(rest[: stamp.start()].rstrip(b" "))
        name = _stripped(rest[:end], strip)
    else:
        name = _stripped(re.split(rb"[\t\r]", rest, maxsplit=1)[0], strip)
    if name is None or (shorter is not None and name.startswith(shorter)):
        return shorter
    return name


def _stripped(name: bytes, strip: int) -> bytes | None:
    """Return `name` without its first `strip` components and with doubled slashes squashed."""
    if strip:
        parts = name.split(b"/", strip)
        name = parts[strip] if len(parts) > strip else b""
    return re.sub(rb"/{2,}", b"/", name) or None


def _quoted_name(rest: bytes, strip: int) -> bytes | None:
    if not rest.startswith(b'"') or (unquoted := _unquote(rest)) is None:
        return None
    parts = unquoted[0].split(b"/", strip)
    return re.sub(rb"/{2,}", b"/", parts[strip]) if len(parts) > strip else None


def _unquote(text: bytes) -> tuple[bytes, bytes] | None:
    """Return the C-style quoted name that `text` starts with, and the text after it."""
    match = _QUOTED.match(text)
    if not match:
        return None
    broken = False

    def unescape(escape: re.Match[bytes]) -> bytes:
        nonlocal broken
        if len(escape[1]) == 3:
            return bytes((int(escape[1], 8),))
        broken = broken or escape[1] not in _ESCAPED
        return _ESCAPED.get(escape[1], b"")

    name = _ESCAPE.sub(unescape, match[1])
    return None if broken else (name, text[match.end() :])


def _git_header_name(rest: bytes, strip: int) -> bytes | None:
    """Return the name that a `diff --git` line gives twice, or None.

    Names with spaces are told apart by being the same on both sides; a rename is not, and has
    lines of its own that say the names.
    """
    if rest.startswith(b'"'):
        if not (unquoted := _unquote(rest)):
            return None
        first = _without_prefix(unquoted[0], strip)
        return first if _second_name(unquoted[1].lstrip(_SPACE), strip) == first else None
    name = _without_prefix(rest, strip)
    if name is None:
        return None
    if (quote := name.find(b'"')) >= 0:
        second = _second_name(name[quote:], strip)
        if second is None or len(second) >= quote or not name.startswith(second):
            return None
        return second if name[len(second) : len(second) + 1] in (b" ", b"\t", b"\r") else None
    return _name_given_twice(name, strip)


def _second_name(text: bytes, strip: int) -> bytes | None:
    if text.startswith(b'"'):
        unquoted = _unquote(text)
        return _without_prefix(unquoted[0], strip) if unquoted else None
    return _without_prefix(text, strip)


def _name_given_twice(names: bytes, strip: int) -> bytes | None:
    """Return `name` where `names` is `name`, a gap, a prefix up to a slash, and `name` again.

    The prefix holds no slash, so only the first slash in the second half can end it, and where
    that stands tells how long the name must be.
    """
    slash = names.find(b"/", len(names) // 2 + 1) if strip else len(names) // 2
    length = len(names) - slash - 1
    if slash < 0 or length <= 0 or names[length : length + 1] not in (b" ", b"\t"):
        return None
    second = names[slash + 1 :]
    is_prefix = not strip or (slash > length + 1 and b"/" not in names[length + 1 : slash])
    return second if is_prefix and names.startswith(second) else None


def _without_prefix(name: bytes, strip: int) -> bytes | None:
    if not strip:
        return None if name.startswith(b"/") else name
    slash = name.find(b"/")
    return name[slash + 1 :] if slash > 0 else None


def _is_epoch(rest: bytes) -> bool:
    """Return whether a plain header line is dated at the epoch: GNU diff's "no such file"."""
    match = _EPOCH.match(rest.rpartition(b"\t")[2]) if b"\t" in rest else None
    if not match:
        return False
    offset = int(match[5]) * 60 + int(match[6])
    minutes = int(match[2]) * 60 + int(match[3]) - (offset if match[4] == b"+" else -offset)
    return minutes == (24 * 60 if match[1] == b"1969-12-31" else 0)


_HunkRead = tuple[Hunk, int, int]
"""A hunk with the line counts of its `@@` line: old, new."""


def _read_hunks(reader: _Reader, at: int) -> tuple[list[_HunkRead], int]:
    hunks: list[_HunkRead] = []
    while at < len(reader.lines) and reader.lines[at].startswith(b"@@ -"):
        if len(reader.lines) - at < 2 and reader.bytes_from(at) <= 4:
            break
        hunk, at = _read_hunk(reader, at)
        hunks.append(hunk)
    if hunks and _is_leftover(reader.lines, at):
        message = "the hunk before this line has more lines than its `@@` line says"
        reader.doubts.append(_finding(_Malformed(at, message, _COUNT_HINT), reader.lines))
    return hunks, at


def _is_leftover(lines: list[bytes], at: int) -> bool:
    """Return whether the line after a hunk looks like one more of its lines.

    git takes it for prose and drops it, so a change would be lost without a word.
    """
    if at >= len(lines) or lines[at][:1] not in (b"+", b"-", b" "):
        return False
    is_signature = lines[at].rstrip() == b"--"
    return not is_signature and _next_header(lines[at : at + 2], 0) != 0


def _read_hunk(reader: _Reader, at: int) -> tuple[_HunkRead, int]:
    """Return the hunk whose `@@` line is at `at`, and the line after it.

    The counts decide where it ends: a `-- x` inside is a removed line, not a header.
    """
    match = _RANGE.match(reader.lines[at])
    if not match or not reader.has_newline(at):
        raise _Malformed(at, "the `@@` line is not of the form `@@ -1,2 +1,3 @@`", _COUNT_HINT)
    counts = int(match[2] or b"1"), int(match[4] or b"1")
    old, new, leading, trailing, end = _read_hunk_lines(reader, at, *counts)
    if not all(line.endswith(b"\n") for line in (*old[:-1], *new[:-1])):
        # git would join the line to the next one, and so drop a line break without a word.
        raise _Malformed(at, "a line in the middle of the hunk is marked as the last", _END_HINT)
    hunk = Hunk(int(match[1]), int(match[3]), old, new, leading, trailing, at + 1)
    return (hunk, *counts), end


_COUNT_HINT = "count the hunk's lines: `@@ -start,context+removed +start,context+added @@`"
_END_HINT = "put `\\ No newline at end of file` only below the last line of a file"
_MARKER = b"\\ "


def _read_hunk_lines(
    reader: _Reader, start: int, old_left: int, new_left: int
) -> tuple[tuple[bytes, ...], tuple[bytes, ...], int, int, int]:
    """Return old lines, new lines, leading and trailing context, and the line after the hunk."""
    lines = reader.lines
    old: list[bytes] = []
    new: list[bytes] = []
    leading = trailing = 0
    is_changed = False
    at = start + 1
    while old_left or new_left:
        if not reader.has_newline(at):
            raise _Malformed(
                start, _miscounted(old_left, new_left, "the end of the patch"), _COUNT_HINT
            )
        line = lines[at]
        kind = line[:1]
        at += 1
        if kind == b"\\":
            if len(line) < 11 or not line.startswith(_MARKER):
                raise _Malformed(at - 1, "a hunk line starts with `\\`", _COUNT_HINT)
            continue
        body = _body(lines, at, line)
        if kind == b" " or not kind:
            old_left -= 1
            new_left -= 1
            leading += not is_changed
            trailing += 1
            if body is not None:
                old.append(body)
                new.append(body)
        elif kind == b"-":
            old_left -= 1
            trailing, is_changed = 0, True
            old.append(body or b"")
        elif kind == b"+":
            new_left -= 1
            trailing, is_changed = 0, True
            new.append(body or b"")
        else:
            raise _Malformed(at - 1, _miscounted(old_left, new_left, "this line"), _COUNT_HINT)
        if old_left < 0 or new_left < 0:
            raise _Malformed(at - 1, "the hunk has more lines than its `@@` line says", _COUNT_HINT)
    if not is_changed:
        raise _Malformed(start, "the hunk changes nothing", _COUNT_HINT)
    return tuple(old), tuple(new), leading, trailing, at + _is_marker(reader, at)


def _body(lines: list[bytes], following: int, line: bytes) -> bytes | None:
    """Return the file's line that a hunk line stands for, or None for a marked empty one."""
    is_marked = following < len(lines) and lines[following].startswith(_MARKER)
    if is_marked and len(lines[following]) >= 11:
        return line[1:] if line else None
    return line[1:] + b"\n"


def _is_marker(reader: _Reader, at: int) -> bool:
    if at >= len(reader.lines) or not reader.lines[at].startswith(_MARKER):
        return False
    return len(reader.lines) - at > 13 or reader.bytes_from(at) > 12


def _miscounted(old_left: int, new_left: int, what: str) -> str:
    return (
        f"{what} comes where the hunk still needs {old_left} old and {new_left} new lines"
        " by its `@@` line"
    )


def _settle_kind(header: _Header, hunks: list[_HunkRead], at: int, end: int) -> None:
    """Decide creation and deletion as far as hunks can; a plain diff may leave them open."""
    old_lines = sum(count for _, count, _ in hunks)
    new_lines = sum(count for _, _, count in hunks)
    if header.is_new is None and (old_lines or len(hunks) > 1):
        header.is_new = False
    if header.is_delete is None and (new_lines or len(hunks) > 1):
        header.is_delete = False
    if header.is_new and old_lines:
        raise _Malformed(at, "the new file depends on old contents", resume=end)
    if header.is_delete and new_lines:
        raise _Malformed(at, "the deleted file still has contents", resume=end)


def _read_binary(reader: _Reader, at: int) -> tuple[bool, BinaryHunk | None, int]:
    """Return whether a binary part starts at `at`, its content, and the line after it."""
    lines = reader.lines
    if at < len(lines) and lines[at] == b"GIT binary patch" and reader.has_newline(at):
        try:
            forward = binary.read_hunk(lines, at + 1)
            if forward is None:
                raise _Malformed(at, "the binary part is neither `literal` nor `delta`")
            reader.inflated = binary.check(forward[0], reader.inflated)
            if backward := binary.read_hunk(lines, forward[1]):
                reader.inflated = binary.check(backward[0], reader.inflated)
        except binary.BadBinary as error:
            raise _Malformed(at, str(error)) from error
        return True, forward[0], (backward or forward)[1]
    is_named = at < len(lines) and lines[at].startswith((b"Binary files ", b"Files "))
    is_named = is_named and lines[at].endswith(b" differ") and reader.has_newline(at)
    return is_named, None, at + is_named
