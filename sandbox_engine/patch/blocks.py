"""What the operations of a plan make of one file's bytes.

Files are bytes in any encoding; what is not touched comes through as it was, byte for byte: BOM,
line endings, a last line without newline. New text takes on the line endings of the file. Patterns
come from strangers, so they run under a time limit and their result under a size limit.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sandbox_engine.patch import correct, matching
from sandbox_engine.patch.edits import (
    DeleteBlock,
    EditRefused,
    EditStatus,
    InsertLines,
    Match,
    ReplaceBlock,
    Rung,
)
from sandbox_engine.patch.nearest import CERTAIN, describe, nearest
from sandbox_engine.patch.paths import show
from sandbox_engine.patch.seek import (
    Ambiguous,
    LineIndex,
    Place,
    Search,
    locate,
    transplant,
)

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
    """A file's new bytes, the 1-based line where the first change is, and how it was found.

    With `is_already` the edit was made before, so the bytes are the old ones.
    """

    content: bytes
    line: int
    rung: Rung | None = None
    is_already: bool = False


def insert_lines(content: bytes, edit: InsertLines) -> Edited:
    """Return `content` with the text as whole lines before the line it names, or at the end.

    Lines below 1 mean 1, past the end means the end. Text that does not end in a newline gets
    one, except at the end of a file whose last line had none either: that state is kept. A byte
    order mark stays in front.
    """
    if _is_inserted(content, edit):
        return Edited(content, edit.line or 1, is_already=True)
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


def _is_inserted(content: bytes, edit: InsertLines) -> bool:
    """Return whether two solid lines or more already stand where they are to be inserted."""
    text = matching.with_newlines(edit.text, b"\n").strip(b"\n")
    if sum(bool(line.strip()) for line in text.split(b"\n")) < 2:
        return False
    if edit.line is None:
        return matching.with_newlines(content, b"\n").rstrip(b"\n").endswith(b"\n" + text)
    start = matching.line_span(content, max(edit.line, 1))[0]
    there = matching.with_newlines(content[start : start + 2 * len(text) + 1], b"\n")
    return there.startswith(text) and there[len(text) : len(text) + 1] in (b"", b"\n")


def replace_block(content: bytes, edit: ReplaceBlock | DeleteBlock, search: Search) -> Edited:
    """Return `content` with the block replaced by the text; a deletion's text is empty.

    Raises EditRefused where the block is nowhere, or in several places and no line picks one.
    """
    text = edit.text if isinstance(edit, ReplaceBlock) else b""
    if edit.is_regex:
        return _replace_pattern(content, edit.block, text, search)
    if isinstance(edit, ReplaceBlock) and (line := _already(content, edit)):
        return Edited(content, line, Rung.EXACT, is_already=True)
    places = matching.find_block(content, edit.block, edit.line)
    if not places.offsets:
        return _replace_lines(content, edit, text, search)
    if len(places.offsets) > 1:
        raise _ambiguous(content, edit.block, places.offsets)
    at = places.offsets[0]
    end = at + len(places.block)
    text = _in_style_of(content, edit.block, places.block, text)
    line = matching.line_of(content, at)
    rung = Rung.MOVED if edit.line not in (None, line) else Rung.EXACT
    if places.block != edit.block:
        rung = Rung.WHITESPACE
    if rung is not Rung.EXACT and search.match is Match.EXACT:
        raise _inexact(content, edit, rung, line, places.block, text, search)
    return Edited(_bounded(content[:at] + text + content[end:]), line, rung)


def _already(content: bytes, edit: ReplaceBlock) -> int | None:
    """Return the line where the text already stands in the block's stead, or None.

    It must stand once, as whole lines, with something solid in it that the block has not; and the
    block must be nowhere else. Less could be there by chance.
    """
    text, block = edit.text.strip(b"\r\n"), edit.block.strip(b"\r\n")
    if text in block or not _is_solid(text, block):
        return None
    places = matching.find_block(content, text)
    if len(places.offsets) != 1:
        return None
    at = places.offsets[0]
    end = at + len(places.block)
    if not _is_whole_lines(content, at, end):
        return None
    for offset in matching.find_block(content, block).offsets:
        if not at <= offset <= offset + len(block) <= end:
            return None
    line = matching.line_of(content, at)
    return line if edit.line in (None, line) else None


def _is_solid(text: bytes, block: bytes) -> bool:
    known = {line.strip() for line in block.split(b"\n")}
    lines = [line.strip() for line in text.split(b"\n")]
    solid = [line for line in lines if line]
    is_long = len(solid) >= 2 or sum(map(len, solid)) >= 24
    return is_long and any(line not in known for line in solid)


def _is_whole_lines(content: bytes, start: int, end: int) -> bool:
    before = content[content.rfind(b"\n", 0, start) + 1 : start]
    return not before.strip(b" \t\xef\xbb\xbf") and content[end : end + 1] in (b"", b"\n", b"\r")


def _replace_lines(
    content: bytes, edit: ReplaceBlock | DeleteBlock, text: bytes, search: Search
) -> Edited:
    """Seek the block as whole lines, down the rungs below the exact ones.

    A block without a last newline is taken as lines all the same; what its last line ends with
    stays in the file.
    """
    index = LineIndex(matching.split_lines(content), search.budget)
    old, new = _as_lines(edit.block, text)
    match = Match.DEFAULT if search.match is Match.EXACT else search.match
    place, result = _lower_place(index, old, new, match, edit)
    if place is None or result is None:
        raise _not_found(index, old, new, edit, search)
    if edit.block.endswith(b"\n") and text and not text.endswith(b"\n"):
        result[-1] = result[-1].removesuffix(b"\n").removesuffix(b"\r")
    count = len(old)
    if search.match is Match.EXACT:
        found = b"".join(index.lines[place.at : place.at + count])
        text = b"".join(result)
        raise _inexact(content, edit, place.rung, place.at + 1, found, text, search)
    lines = [*index.lines[: place.at], *result, *index.lines[place.at + count :]]
    return Edited(_bounded(b"".join(lines)), place.at + 1, place.rung)


def _as_lines(block: bytes, text: bytes) -> tuple[list[bytes], list[bytes]]:
    if block.endswith(b"\n"):
        whole = text if not text or text.endswith(b"\n") else text + b"\n"
        return matching.split_lines(block), matching.split_lines(whole)
    return matching.split_lines(block + b"\n"), matching.split_lines(text + b"\n")


def _lower_place(
    index: LineIndex,
    old: list[bytes],
    new: list[bytes],
    match: Match,
    edit: ReplaceBlock | DeleteBlock,
) -> tuple[Place | None, list[bytes] | None]:
    """Return the one place of `old` by lines and what it becomes; raise where there are more."""
    try:
        place = locate(index, old, (), match)
    except Ambiguous as error:
        on_line = [place for place in error.places if place.at + 1 == edit.line]
        if len(on_line) != 1:
            raise _ambiguous_lines(edit.block, error.places) from error
        place = on_line[0]
    if place is None:
        return None, None
    return place, transplant(index.lines[place.at : place.at + len(old)], old, new, place.shift)


def _ambiguous_lines(block: bytes, places: Sequence[Place]) -> EditRefused:
    lines = ", ".join(str(place.at + 1) for place in places)
    return EditRefused(
        EditStatus.AMBIGUOUS,
        "block-ambiguous",
        f"the block is in {len(places)} places by `{places[0].rung}`, on lines {lines}",
        line=places[0].at + 1,
        source=first_line(block),
        hint="make the block longer, or give the `line_number` that it starts on",
    )


def _inexact(
    content: bytes,
    edit: ReplaceBlock | DeleteBlock,
    rung: Rung,
    line: int,
    found: bytes,
    text: bytes,
    search: Search,
) -> EditRefused:
    new = text if isinstance(edit, ReplaceBlock) else None
    return EditRefused(
        EditStatus.NOT_FOUND,
        "block-inexact",
        f"the block does not stand exactly so in the file: it fits by `{rung}` on line {line}",
        line=line,
        source=first_line(edit.block),
        hint="send the corrected edit, or allow more than exact matches",
        nearest=nearest(matching.split_lines(found), matching.split_lines(edit.block), line),
        corrected=_corrected(content, edit, found, new, line, search),
    )


def _corrected(
    content: bytes,
    edit: ReplaceBlock | DeleteBlock,
    found: bytes,
    new: bytes | None,
    line: int,
    search: Search,
) -> str | None:
    """Return the edit that seeks `found` on `line` instead, unless that is not clear either."""
    offsets = matching.find_block(content, found, line).offsets
    if len(offsets) != 1 or matching.line_of(content, offsets[0]) != line:
        return None
    return correct.block(search.format, edit.path, found, new, line)


def _not_found(
    index: LineIndex,
    old: list[bytes],
    new: list[bytes],
    edit: ReplaceBlock | DeleteBlock,
    search: Search,
) -> EditRefused:
    near = nearest(index.lines, old) if search.may_explain(index) else None
    corrected = None
    if near is not None and near.similarity >= CERTAIN:
        at = near.first_line - 1
        found = index.lines[at : at + len(old)]
        if guess := transplant(found, old, new):
            text = b"".join(guess) if isinstance(edit, ReplaceBlock) else None
            content, block = b"".join(index.lines), b"".join(found)
            corrected = _corrected(content, edit, block, text, near.first_line, search)
    return EditRefused(
        EditStatus.NOT_FOUND,
        "block-not-found",
        f"the block is nowhere in the file{describe(near)}",
        line=edit.line if edit.line and edit.line > 0 else None,
        source=first_line(edit.block),
        hint="send the corrected edit" if corrected else _REREAD + ", with the text it has now",
        nearest=near,
        corrected=corrected,
    )


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


def _replace_pattern(content: bytes, block: bytes, template: bytes, search: Search) -> Edited:
    """Return `content` with every match of the pattern replaced.

    In a file with CRLF throughout, the pattern sees bare newlines, so that `$` and `\\n` work; the
    result gets its CRLF back.
    """
    is_crlf = matching.is_all_crlf(content)
    seen = matching.with_newlines(content, b"\n") if is_crlf else content
    given = matching.with_newlines(template, b"\n") if is_crlf else template
    result, first = _substitute(_compile(block), seen, given, search)
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


def _substitute(
    pattern: regex.Pattern[str], content: bytes, template: bytes, search: Search
) -> tuple[bytes, int]:
    """Return the new content and the byte offset of the first match."""
    import regex

    text = content.decode("utf-8", "surrogateescape")
    replacement = template.decode()
    allowed_s = min(PATTERN_TIMEOUT_S, search.pattern_s)
    started = time.monotonic()
    deadline = started + allowed_s
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
        if allowed_s <= 0:
            raise TimeoutError
        result = pattern.sub(expand, text, timeout=allowed_s)
    except (TimeoutError, MemoryError) as error:
        raise _slow_pattern(pattern.pattern) from error
    except (regex.error, IndexError, KeyError, ValueError, TypeError) as error:
        raise _bad_template(template, str(error)) from error
    finally:
        search.pattern_s -= time.monotonic() - started
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
