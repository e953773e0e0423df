"""Which format a text is of, told by where each format leaves its signs.

The text is read once, line by line. A part that a format has claimed is stepped over, so that what
stands inside it is no sign: the outermost format wins. In particular

- a mail reaches to the end of the text, and the diff in it is its own;
- lines of a hunk, of a search/replace block and of an envelope belong to these, whatever they hold;
- a fence that names no path is looked into, for plans, diffs and blocks are often sent in one;
- a fence that names a path is a whole file, unless it opens with a search/replace block, or with a
  diff where the path is not itself that of a diff: then the path only says what the edit is about;
- a text that starts as JSON is JSON up to the end of that value, or all of it if it is broken.

More than one format left, or none, is refused: which of two was meant is not for us to guess.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sandbox_engine.errors import PatchSyntaxError
from sandbox_engine.patch import envelope, fences, mbox, search_replace, whole_files
from sandbox_engine.patch.edits import Patch
from sandbox_engine.patch.faults import Faults
from sandbox_engine.patch.json_plan import parse_json_plan
from sandbox_engine.patch.unified import parse_unified
from sandbox_engine.verdict import Finding

PARSERS: dict[str, Callable[[bytes], Patch]] = {
    "json": parse_json_plan,
    "unified": parse_unified,
    "mbox": mbox.parse_mbox,
    "search-replace": search_replace.parse_search_replace,
    "apply-patch": envelope.parse_envelope,
    "files": whole_files.parse_whole_files,
}

_NAMES = {
    "json": "a JSON plan",
    "unified": "a unified diff",
    "mbox": "a mail",
    "search-replace": "search/replace blocks",
    "apply-patch": "a `*** Begin Patch` envelope",
    "files": "whole files in fenced blocks",
}

_JSON_START = re.compile(rb"\s*(?:\{\s*[\"}]|\[\s*(?:\{|\]\s*\Z))")
_JSON_KEY = re.compile(rb"\"patches_to_apply\"\s*:|\"operation\"\s*:")
_DIFF_LINE = re.compile(
    rb"[ +\-\\@]|\r?\Z|(?:diff --git|index|(?:old|new|deleted file|new file) mode"
    rb"|(?:copy|rename) (?:from|to|old|new)|(?:dis)?similarity index) |GIT binary patch\r?\Z"
    rb"|(?:literal|delta) [0-9]|Binary files "
)
_BASE85 = re.compile(rb"[A-Za-z][0-9A-Za-z!#$%&()*+;<=>?@^_`{|}~-]+\r?\Z")
_OPENING = re.compile(rb"<{5,9}[ \t]*SEARCH>?[ \t]*\r?\Z")
_STRAY_MARKER = re.compile(rb"\*\*\* (?:Add|Delete|Update) File: ")

_NEAR_MISSES = (
    (re.compile(rb"\*{15}\s*\Z"), "a context diff", "make it with `diff -u` or `git diff`"),
    (
        re.compile(rb"<{5,9}[ \t]*SEARCH\b"),
        "a search/replace block with more on its first line",
        "put the path alone on the line before `<<<<<<< SEARCH`",
    ),
    (re.compile(rb"<{7} \S"), "conflict markers", "resolve the conflict, then send `git diff`"),
    (re.compile(rb"diff --(?:cc|combined) "), "a combined diff", "send `git diff HEAD`"),
    (
        re.compile(rb"[0-9]+(?:,[0-9]+)?[acd][0-9]+(?:,[0-9]+)?\s*\Z"),
        "a diff without context",
        "make it with `diff -u` or `git diff`",
    ),
    (
        re.compile(rb" {0,3}(?:```|~~~)"),
        "a fenced block that names no file",
        "write the path of its file on the fence: ```` ```python src/name.py ````",
    ),
)
_OTHER_BYTES = (
    (b"\xff\xfe", "UTF-16", "save it as UTF-8; in PowerShell: `git diff --output=fix.diff`"),
    (b"\xfe\xff", "UTF-16", "save it as UTF-8"),
    (b"\x1f\x8b", "compressed with gzip", "unpack it, or send a zip archive"),
    (b"BZh", "compressed with bzip2", "unpack it, or send a zip archive"),
    (b"\xfd7zXZ", "compressed with xz", "unpack it, or send a zip archive"),
)
_REMEDY = f"send one of: {', '.join(PARSERS)}; name it with --format if it is not recognised"


@dataclass(slots=True)
class _Scan:
    """A walk over the lines of a text; `signs` has the first line (0-based) of each format."""

    lines: list[bytes]
    has_json: bool
    blocks: dict[int, int]
    fences: dict[int, tuple[fences.Fence, int]]
    signs: dict[str, int] = field(default_factory=dict)
    fence_end: int = -1

    def note(self, form: str, line: int) -> None:
        self.signs.setdefault(form, line)


def detect(text: bytes) -> str:
    """Return the name of the one format that `text` is of.

    Raises PatchSyntaxError, with a finding for each sign, if there are several or none.
    """
    signs = find_signs(text)
    if len(signs) == 1:
        return next(iter(signs))
    if signs:
        raise _several(signs)
    raise _none(text)


def find_signs(text: bytes) -> dict[str, int]:
    """Return the formats that `text` shows signs of, each with its first line (1-based)."""
    if text.startswith(whole_files.ZIP_MAGIC):
        return {"files": 1}
    text = text.removeprefix(b"\xef\xbb\xbf")
    lines = text.split(b"\n")
    has_json = _JSON_KEY.search(text) is not None
    scan = _Scan(lines, has_json, _block_ends(text, lines), fences.find_fences(lines))
    at, is_doubtful = _skip_json(scan, text)
    while at < len(lines) and not lines[at].strip():
        at += 1
    if at < len(lines) and mbox.starts_headers(lines, at):
        scan.note("mbox", at)
        at = len(lines)
    while at < len(lines):
        at = _step(scan, at)
    if is_doubtful and not scan.signs:
        scan.note("json", 0)
    in_order = sorted(scan.signs.items(), key=lambda sign: sign[1])
    return {form: line + 1 for form, line in in_order}


def _block_ends(text: bytes, lines: list[bytes]) -> dict[int, int]:
    """Return where each complete search/replace block ends, by the line where it starts."""
    if b"SEARCH" not in text:
        return {}
    unused = Faults("", "")
    return {block.start: block.end for block in search_replace.find_blocks(lines, unused)}


def _skip_json(scan: _Scan, text: bytes) -> tuple[int, bool]:
    """Note a plan that the text starts with; return the line after it.

    Other JSON, of which the second value tells, is only a sign where there is no other.
    """
    start = _JSON_START.match(text)
    if not start:
        return 0, False
    try:
        decoded = text.decode()
        first = len(decoded) - len(decoded.lstrip())
        _, end = json.JSONDecoder().raw_decode(decoded, first)
    except (ValueError, RecursionError):
        if scan.has_json:
            scan.note("json", 0)
            return len(scan.lines), False
        return 0, True
    if not _JSON_KEY.search(decoded[:end].encode()):
        return 0, True
    scan.note("json", decoded.count("\n", 0, first))
    return decoded.count("\n", 0, end) + 1, False


def _step(scan: _Scan, at: int) -> int:
    """Note what starts at line `at`, if anything, and return the line to go on at."""
    line = scan.lines[at]
    end = at + 1
    match line[:1]:
        case b"F" if mbox.starts_mail(scan.lines, at):
            scan.note("mbox", at)
            return len(scan.lines)
        case b"*" if line.rstrip() == envelope.BEGIN or _STRAY_MARKER.match(line):
            scan.note("apply-patch", at)
            return _after_span(scan, _envelope_end(scan.lines, at))
        case b"<" if _OPENING.match(line):
            scan.note("search-replace", at)
            return _after_span(scan, scan.blocks.get(at, at) + 1)
        case b"d" | b"-" | b"@" if _starts_diff(scan.lines, at):
            scan.note("unified", at)
            return _after_span(scan, _diff_end(scan.lines, at))
        case b" " | b"`" | b"~" if at in scan.fences:
            end = _step_fence(scan, at)
    if scan.has_json and end == at + 1 and _JSON_KEY.search(line):
        scan.note("json", at)
    return end


def _after_span(scan: _Scan, end: int) -> int:
    """Return `end`, or the line after a bare fence there: it closes the one that is open."""
    if end in scan.fences and not scan.fences[end][0].info:
        scan.fence_end = -1
        return end + 1
    return end


def _envelope_end(lines: Sequence[bytes], at: int) -> int:
    if lines[at].rstrip() != envelope.BEGIN:
        return at + 1
    for end in range(at + 1, len(lines)):
        if lines[end].startswith(envelope.END):
            return end + 1
    return len(lines)


def _starts_diff(lines: Sequence[bytes], at: int) -> bool:
    line = lines[at]
    if line.startswith((b"diff --git ", b"@@ -")):
        return True
    return (
        line.startswith(b"--- ")
        and at + 2 < len(lines)
        and lines[at + 1].startswith(b"+++ ")
        and lines[at + 2].startswith(b"@@")
    )


def _diff_end(lines: Sequence[bytes], at: int) -> int:
    """Return the first line after `at` that can be none of a diff."""
    is_binary = False
    for end in range(at + 1, len(lines)):
        line = lines[end]
        is_binary = line.startswith(b"GIT binary patch") or (is_binary and bool(line))
        if not _DIFF_LINE.match(line) and not (is_binary and _BASE85.match(line)):
            return end
    return len(lines)


def _step_fence(scan: _Scan, at: int) -> int:
    """Note a whole file and step over it; look into any other fence."""
    if at <= scan.fence_end:
        return at + 1
    fence, end = scan.fences[at]
    path = fences.name_in_info(fence.info) or whole_files.name_above(scan.lines, at)
    if path is None or _is_about_edit(scan, at, end, path):
        scan.fence_end = end
        return at + 1
    scan.note("files", at)
    if other := _format_at_start(scan, at + 1, end):
        scan.note(other, at + 1)
    return end + 1


def _is_about_edit(scan: _Scan, at: int, end: int, path: bytes) -> bool:
    """Return whether the block at `at` holds an edit of the file `path`, not the file."""
    form = _format_at_start(scan, at + 1, end)
    is_diff_file = path.endswith((b".diff", b".patch"))
    return form == "search-replace" or (form == "unified" and not is_diff_file)


def _format_at_start(scan: _Scan, start: int, end: int) -> str | None:
    """Return the format that the lines `start` to `end` open with, but for a line with a path."""
    lines = scan.lines
    filled = (at for at in range(start, min(end, start + 10)) if lines[at].strip())
    first = next(filled, None)
    if first is not None and fences.name_in_line(lines[first]) and first + 1 < end:
        first = next(filled, first) if _OPENING.match(lines[first + 1]) else first
    if first is None:
        return None
    line = lines[first]
    if _OPENING.match(line):
        return "search-replace"
    if line.rstrip() == envelope.BEGIN:
        return "apply-patch"
    if mbox.starts_mail(lines, first):
        return "mbox"
    if _starts_diff(lines, first):
        return "unified"
    is_plan = scan.has_json and line.lstrip()[:1] in (b"{", b"[")
    return "json" if is_plan and any(_JSON_KEY.search(line) for line in lines[start:end]) else None


def _several(signs: dict[str, int]) -> PatchSyntaxError:
    seen = [f"{_NAMES[form]} at line {line}" for form, line in signs.items()]
    problem = f"the text holds {', '.join(seen[:-1])} and {seen[-1]}"
    remedy = "send one format, or name it with --format"
    findings = [
        Finding("patch-ambiguous", f"here the text looks like {_NAMES[form]}", line=line)
        for form, line in signs.items()
    ]
    return PatchSyntaxError(problem, remedy=remedy, findings=findings)


def _none(text: bytes) -> PatchSyntaxError:
    if not text.strip():
        problem = "the patch is empty"
        finding = Finding("patch-malformed", problem, hint=_REMEDY)
        return PatchSyntaxError(problem, remedy=_REMEDY, findings=[finding])
    problem, remedy, line = "the text is no patch of a known format", _REMEDY, None
    for magic, name, hint in _OTHER_BYTES:
        if text.startswith(magic):
            problem, remedy = f"{problem}; it is {name}", hint
    lines = text[: 2**20].split(b"\n")
    for pattern, name, hint in _NEAR_MISSES:
        line = next((at for at, text in enumerate(lines, 1) if pattern.match(text)), None)
        if line is not None:
            problem, remedy = f"{problem}; line {line} looks like {name}", hint
            break
    finding = Finding("patch-malformed", problem, line=line, hint=remedy)
    return PatchSyntaxError(problem, remedy=remedy, findings=[finding])
