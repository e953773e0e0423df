"""Where in a file a hunk or a block belongs.

Hunks are placed as git's `apply.c` places them (`find_pos`, `match_fragment`): exactly, nearest to
the line they name, at the very start or end where the context says so, never on lines that an
earlier hunk of the same file has touched. Blocks are found byte for byte, with the file's line
endings tried for a block that was written with others. Lines end at `\\n` and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sandbox_engine.patch.edits import Hunk

MAX_FILE_BYTES = 64 * 2**20
MAX_PLACES = 50
MAX_SEARCH_LINES = 120_000_000
"""How many lines one patch may compare in search of its hunks: a few seconds of work."""


_STEP = 20
"""What one comparison costs where it is not part of a longer run, in lines of such a run."""


class SearchExhausted(Exception):
    """The hunks of a patch take more searching than any honest patch needs."""


@dataclass(slots=True)
class SearchBudget:
    """What is left of the lines that one patch may compare."""

    left: int = MAX_SEARCH_LINES

    def spend(self, lines: int) -> None:
        self.left -= lines
        if self.left < 0:
            raise SearchExhausted


def split_lines(content: bytes) -> list[bytes]:
    """Return the lines of `content` with their newlines; only `\\n` ends a line."""
    lines = [line + b"\n" for line in content.split(b"\n")]
    last = lines.pop()[:-1]
    if last:
        lines.append(last)
    return lines


@dataclass(slots=True)
class Image:
    """A file's lines while hunks are made on it, in one pass when they come in order.

    `done` are the lines before the last hunk's end as they will be, `is_patched` tells which of
    them a hunk left; `rest` are the untouched lines from `offset` on.
    """

    rest: list[bytes]
    budget: SearchBudget
    offset: int = 0
    done: list[bytes] = field(default_factory=list)
    is_patched: bytearray = field(default_factory=bytearray)

    def __len__(self) -> int:
        return len(self.done) + len(self.rest) - self.offset

    def content(self) -> bytes:
        return b"".join(self.done) + b"".join(self.rest[self.offset :])

    def place(self, hunk: Hunk) -> int | None:
        """Make `hunk` where it fits and return that line (0-based), or None and change nothing."""
        at = self._find(hunk)
        if at is not None:
            self._put(at, len(hunk.old), hunk.old if hunk.is_skipped else hunk.new)
        return at

    def _find(self, hunk: Hunk) -> int | None:
        must_begin = hunk.old_start <= 1
        must_end = not hunk.trailing
        if must_begin or must_end:
            at = 0 if must_begin else len(self) - len(hunk.old)
            is_end = at + len(hunk.old) == len(self)
            return at if (is_end or not must_end) and self._fits(at, hunk.old) else None
        start = min(max(hunk.new_start - 1, 0), len(self))
        return start if self._fits(start, hunk.old) else self._nearest(start, hunk.old)

    def _nearest(self, start: int, old: tuple[bytes, ...]) -> int | None:
        """Return the place nearest to `start`; of two as near, the later one."""
        forward = self._search_forward(start + 1, old)
        reach = start + 1 if forward is None else min(start + 1, forward - start)
        self.budget.spend(_STEP * reach)
        for distance in range(1, reach):
            if self._fits(start - distance, old):
                return start - distance
        return forward

    def _search_forward(self, start: int, old: tuple[bytes, ...]) -> int | None:
        for at in range(start, min(len(self.done), len(self) - len(old) + 1)):
            self.budget.spend(_STEP)
            if self._fits(at, old):
                return at
        shift = self.offset - len(self.done)
        at, end = max(start + shift, self.offset), len(self.rest) - len(old) + 1
        while at < end:
            try:
                found = self.rest.index(old[0], at, end)
            except ValueError:
                self.budget.spend(end - at)
                return None
            self.budget.spend(found - at + 1)
            if self._fits(found - shift, old):
                return found - shift
            at = found + 1
        return None

    def _fits(self, at: int, old: tuple[bytes, ...]) -> bool:
        count = len(old)
        if at < 0 or at + count > len(self):
            return False
        if at >= len(self.done):
            first = self.offset + at - len(self.done)
            if not count or self.rest[first] != old[0]:
                return not count
            self.budget.spend(count)
            return tuple(self.rest[first : first + count]) == old
        until = min(at + count, len(self.done))
        if self.is_patched.find(1, at, until) >= 0:
            return False
        self.budget.spend(count)
        beyond = self.rest[self.offset : self.offset + at + count - until]
        return tuple(self.done[at:until] + beyond) == old

    def _put(self, at: int, count: int, new: tuple[bytes, ...]) -> None:
        end = at + count
        if end < len(self.done):
            self.budget.spend(len(self.done) - at)
            self.done[at:end] = new
            self.is_patched[at:end] = b"\1" * len(new)
            return
        if at >= len(self.done):
            first = self.offset + at - len(self.done)
            self.is_patched.extend(bytes(first - self.offset))
            self.done.extend(self.rest[self.offset : first])
            self.offset = first + count
        else:
            self.offset += end - len(self.done)
            del self.done[at:], self.is_patched[at:]
        self.done.extend(new)
        self.is_patched.extend(b"\1" * len(new))


@dataclass(frozen=True, slots=True)
class Places:
    """Where `block`, as the file spells it, starts; at most MAX_PLACES byte offsets."""

    block: bytes
    offsets: tuple[int, ...]


def find_block(content: bytes, block: bytes, line: int | None = None) -> Places:
    """Return the places of `block` in `content`, those on `line` (1-based) if there are several.

    Places may overlap: a block that fits twice is never a clear one. The block is sought as given,
    and if that is nowhere with the line endings that the file has.
    """
    for spelled in _spellings(content, block):
        offsets = _offsets(content, spelled, 0, len(content))
        if not offsets:
            continue
        if line is not None and len(offsets) > 1:
            start, end = line_span(content, line)
            offsets = _offsets(content, spelled, start, end) or offsets
        return Places(spelled, offsets)
    return Places(block, ())


def _offsets(content: bytes, block: bytes, start: int, end: int) -> tuple[int, ...]:
    """Return where `block` starts in `start..end`; it may reach beyond."""
    found: list[int] = []
    at = content.find(block, start, end + len(block) - 1)
    while at >= 0 and len(found) < MAX_PLACES:
        found.append(at)
        at = content.find(block, at + 1, end + len(block) - 1)
    return tuple(found)


def _spellings(content: bytes, block: bytes) -> list[bytes]:
    spellings = [block]
    if b"\n" in block:
        crlf = with_newlines(block, b"\r\n")
        lf = with_newlines(block, b"\n")
        order = [crlf, lf] if is_crlf(content) else [lf, crlf]
        spellings += [other for other in order if other != block]
    return spellings


def is_crlf(content: bytes) -> bool:
    """Return whether more lines of `content` end with CRLF than with a bare newline."""
    windows = content.count(b"\r\n")
    return windows > 0 and 2 * windows > content.count(b"\n")


def is_all_crlf(content: bytes) -> bool:
    """Return whether CRLF is the only line ending, so that it can be taken off and put back."""
    windows = content.count(b"\r\n")
    return windows > 0 and windows == content.count(b"\n") == content.count(b"\r")


def with_newlines(text: bytes, newline: bytes) -> bytes:
    """Return `text` with every CRLF and bare newline turned into `newline`."""
    unix = text.replace(b"\r\n", b"\n")
    return unix if newline == b"\n" else unix.replace(b"\n", newline)


def line_of(content: bytes, offset: int) -> int:
    """Return the 1-based line that `offset` is on."""
    return content.count(b"\n", 0, offset) + 1


def line_span(content: bytes, line: int) -> tuple[int, int]:
    """Return where line `line` (1-based) starts and ends, its newline included; empty if absent."""
    if line < 1:
        return len(content), len(content)
    start = 0
    for _ in range(line - 1):
        start = content.find(b"\n", start) + 1
        if not start:
            return len(content), len(content)
    end = content.find(b"\n", start) + 1
    return start, end or len(content)
