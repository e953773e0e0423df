"""What the operations of a plan make of one file's bytes.

Files are bytes in any encoding; what is not touched comes through as it was, byte for byte: BOM,
line endings, a last line without newline. New text takes on the line endings of the file. Patterns
come from strangers, so they run under a time limit and their result under a size limit.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sandbox_engine.patch import matching
from sandbox_engine.patch.edits import (
    DeleteBlock,
    EditRefused,
    EditStatus,
    InsertLines,
    ReplaceBlock,
)
from sandbox_engine.patch.paths import show

if TYPE_CHECKING:
    import regex

MAX_FILE_BYTES = 64 * 2**20
MAX_PATTERN_CHARS = 10_000
MAX_PATTERN_SIZE = 100_000
"""Characters of a pattern once its counted repeats are written out, as the compiler does."""
PATTERN_TIMEOUT_S = 2.0

_BOM = b"\xef\xbb\xbf"
_TOKEN = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{([0-9]*),?([0-9]*)\}|.", re.DOTALL)
_RECURSION = re.compile(r"\(\?(?:R|P>|&|[+-]?[0-9])")
_REREAD = "read the file at the base commit and resend the operation"


@dataclass(frozen=True, slots=True)
class Edited:
    """A file's new bytes and the 1-based line where the first change is."""

    content: bytes
    line: int


def insert_lines(content: bytes, edit: InsertLines) -> Edited:
    """Return `content` with the text as whole lines before the line it names, or at the end.

    Lines below 1 mean 1, past the end means the end. Text that does not end in a newline gets
    one, except at the end of a file whose last line had none either: that state is kept. A byte
    order mark stays in front.
    """
    is_crlf = matching.is_crlf(content)
    newline = b"\r\n" if is_crlf else b"\n"
    text = matching.with_newlines(edit.text, newline) if is_crlf else edit.text
    if not text:
        return Edited(content, 1)
    at = len(content)
    if edit.line is not None:
        at = matching.line_span(content, max(edit.line, 1))[0]
    if at == 0 and content.startswith(_BOM):
        at = len(_BOM)
    is_open_end = at == len(content) > 0 and not content.endswith(b"\n") and content != _BOM
    line = matching.line_of(content, at) + is_open_end
    if is_open_end:
        text = newline + text
    elif not text.endswith(b"\n"):
        text += newline
    return Edited(_bounded(content[:at] + text + content[at:]), line)


def replace_block(content: bytes, edit: ReplaceBlock | DeleteBlock) -> Edited:
    """Return `content` with the block replaced by the text; a deletion's text is empty.

    Raises EditRefused where the block is nowhere, or in several places and no line picks one.
    """
    text = edit.text if isinstance(edit, ReplaceBlock) else b""
    if edit.is_regex:
        return _replace_pattern(content, edit.block, text)
    places = matching.find_block(content, edit.block, edit.line)
    if not places.offsets:
        raise EditRefused(
            EditStatus.NOT_FOUND,
            "block-not-found",
            "the block is nowhere in the file",
            source=first_line(edit.block),
            hint=_REREAD + "; a block must match byte for byte, indentation included",
        )
    if len(places.offsets) > 1:
        raise _ambiguous(content, edit.block, places.offsets)
    at = places.offsets[0]
    end = at + len(places.block)
    text = _in_style_of(content, edit.block, places.block, text)
    line = matching.line_of(content, at)
    return Edited(_bounded(content[:at] + text + content[end:]), line)


def first_line(block: bytes) -> bytes:
    """Return the first line of `block` that is not blank, without its newline."""
    for line in block[:10_000].split(b"\n"):
        if line.strip():
            return line.rstrip(b"\r")
    return b""


def _ambiguous(content: bytes, block: bytes, offsets: tuple[int, ...]) -> EditRefused:
    lines = sorted({matching.line_of(content, offset) for offset in offsets})
    more = " and more" if len(offsets) >= matching.MAX_PLACES else ""
    listed = ", ".join(map(str, lines))
    return EditRefused(
        EditStatus.AMBIGUOUS,
        "block-ambiguous",
        f"the block is in {len(offsets)}{more} places, on lines {listed}",
        line=lines[0],
        source=first_line(block),
        hint="make the block longer, or give the `line_number` that it starts on",
    )


def _in_style_of(content: bytes, block: bytes, spelled: bytes, text: bytes) -> bytes:
    """Return `text` with line endings that fit the place where `spelled` was found."""
    if spelled != block:
        return matching.with_newlines(text, b"\r\n" if b"\r\n" in spelled else b"\n")
    if b"\n" not in block and matching.is_crlf(content):
        return matching.with_newlines(text, b"\r\n")
    return text


def _bounded(content: bytes) -> bytes:
    if len(content) > MAX_FILE_BYTES:
        raise too_large(len(content))
    return content


def too_large(size: int) -> EditRefused:
    """Return the refusal of a result of `size` bytes."""
    return EditRefused(
        EditStatus.TOO_LARGE,
        "file-too-large",
        f"the file would be larger than {MAX_FILE_BYTES} bytes",
        hint=f"at least {size} bytes were asked for; keep large content out of the patch",
    )


def _replace_pattern(content: bytes, block: bytes, template: bytes) -> Edited:
    """Return `content` with every match of the pattern replaced.

    In a file with CRLF throughout, the pattern sees bare newlines, so that `$` and `\\n` work; the
    result gets its CRLF back.
    """
    is_crlf = matching.is_all_crlf(content)
    seen = matching.with_newlines(content, b"\n") if is_crlf else content
    given = matching.with_newlines(template, b"\n") if is_crlf else template
    result, first = _substitute(_compile(block), seen, given)
    line = matching.line_of(seen, first)
    return Edited(_bounded(matching.with_newlines(result, b"\r\n") if is_crlf else result), line)


def _compile(block: bytes) -> regex.Pattern[str]:
    import regex  # takes longer to import than a small patch to apply

    pattern = block.decode()
    if len(pattern) > MAX_PATTERN_CHARS:
        raise _bad_pattern(block, f"it is longer than {MAX_PATTERN_CHARS} characters")
    if _RECURSION.search(pattern):
        raise _bad_pattern(block, "it calls itself, which may take any amount of memory")
    if _written_out(pattern) > MAX_PATTERN_SIZE:
        raise _bad_pattern(block, "its counted repeats multiply to more than it may hold")
    try:
        return regex.compile(pattern, regex.MULTILINE | regex.DOTALL, cache_pattern=False)
    except (regex.error, ValueError, OverflowError, MemoryError) as error:
        raise _bad_pattern(block, str(error)) from error
    except RecursionError as error:
        raise _bad_pattern(block, "it is nested too deeply") from error


def _written_out(pattern: str) -> int:
    """Return about how long `pattern` is with its counted repeats written out.

    Compiling has no time limit, and `((a{999}){999}){999}` would take minutes.
    """
    sizes = [0]
    last = 0
    for token in _TOKEN.finditer(pattern):
        if token[0] == "(":
            sizes.append(0)
        elif token[0] == ")" and len(sizes) > 1:
            last = sizes.pop() + 1
            sizes[-1] += last
        elif counts := [int(count) for count in token.groups() if count]:
            repeated = last * max(counts)
            sizes[-1] += repeated - last
            last = repeated
        else:
            last = 1
            sizes[-1] += 1
    return max(sum(sizes), *sizes)


def _substitute(pattern: regex.Pattern[str], content: bytes, template: bytes) -> tuple[bytes, int]:
    """Return the new content and the byte offset of the first match."""
    import regex

    text = content.decode("utf-8", "surrogateescape")
    replacement = template.decode()
    deadline = time.monotonic() + PATTERN_TIMEOUT_S
    allowance = MAX_FILE_BYTES
    first: int | None = None

    def expand(match: regex.Match[str]) -> str:
        nonlocal allowance, first
        if first is None:
            first = match.start()
        expanded = match.expand(replacement) if replacement else ""
        allowance -= len(expanded)
        if allowance < 0:
            raise too_large(MAX_FILE_BYTES - allowance)
        if time.monotonic() > deadline:
            raise TimeoutError
        return expanded

    try:
        result = pattern.sub(expand, text, timeout=PATTERN_TIMEOUT_S)
    except (TimeoutError, MemoryError) as error:
        raise _slow_pattern(pattern.pattern) from error
    except (regex.error, IndexError, KeyError, ValueError, TypeError) as error:
        raise _bad_template(template, str(error)) from error
    if first is None:
        raise _no_match(pattern.pattern)
    offset = len(text[:first].encode("utf-8", "surrogateescape"))
    return result.encode("utf-8", "surrogateescape"), offset


def _bad_pattern(block: bytes, reason: str) -> EditRefused:
    return EditRefused(
        EditStatus.MALFORMED,
        "pattern-malformed",
        f"the pattern cannot be used: {reason[:200]}",
        source=first_line(block),
        hint="send the block as literal text, with `is_regex` false",
    )


def _bad_template(template: bytes, reason: str) -> EditRefused:
    return EditRefused(
        EditStatus.MALFORMED,
        "template-malformed",
        f"`content` is no template for this pattern: {show(reason.encode(errors='replace'))}",
        source=first_line(template),
        hint="double every backslash that is not a group reference, or set `is_regex` to false",
    )


def _slow_pattern(pattern: str) -> EditRefused:
    return EditRefused(
        EditStatus.MALFORMED,
        "pattern-timeout",
        f"the pattern takes more than {PATTERN_TIMEOUT_S:g} seconds, or all memory, on this file",
        source=first_line(pattern.encode()),
        hint="send the block as literal text, with `is_regex` false",
    )


def _no_match(pattern: str) -> EditRefused:
    return EditRefused(
        EditStatus.NOT_FOUND,
        "pattern-not-found",
        "the pattern matches nothing in the file",
        source=first_line(pattern.encode()),
        hint=_REREAD + ", or send the block as literal text",
    )
