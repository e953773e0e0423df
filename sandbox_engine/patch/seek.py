"""Runs of lines sought in a file, down the rungs of `Rung`, in time linear in the file.

Every distinct line becomes one character, so that a run of lines is a substring and `str.find`
does the work, whatever the lines are. What is found keeps the file's own bytes wherever the old
and the new text agree: line endings, trailing white space, indentation, byte order mark.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sandbox_engine.patch.edits import Match, Rung
from sandbox_engine.patch.matching import MAX_PLACES, SearchBudget, SearchExhausted
from sandbox_engine.patch.nearest import FUZZY_THRESHOLD, equal_pairs, similar_places

MAX_CANDIDATES = 1_000
"""How many places with the right words are looked at for the right indentation."""
MAX_ALIGNED_PAIRS = 50_000
"""Pairs of equal lines that are aligned; a change with more is taken as wholly new lines."""

MAX_EXPLANATIONS = 20
"""For how many refused edits of a patch the nearest text is looked for."""

_CODED, _EXPLAINED = 10, 100
"""What coding a line, and comparing it with what was sought, cost in lines of a plain search."""

_BOM = b"\xef\xbb\xbf"
_BLANK = b" \t\r\n\f\v"
_MASK = "\0"
_FIRST_CODE = 1
_CODES = 0x110000

Key = Callable[[bytes], bytes]


def _same(line: bytes) -> bytes:
    return line


def _without_ending(line: bytes) -> bytes:
    return line.removeprefix(_BOM).rstrip(_BLANK)


def _words(line: bytes) -> bytes:
    return line.removeprefix(_BOM).strip(_BLANK)


@dataclass(frozen=True, slots=True)
class Shift:
    """How much further a block is indented in the file than it was sought.

    `prefix` is taken from each line that is not blank where `is_less`, and put before it otherwise.
    """

    prefix: bytes = b""
    is_less: bool = False

    def moved(self, line: bytes) -> bytes | None:
        """Return `line` shifted, or None where it is not indented far enough."""
        if not line.strip(_BLANK):
            return line
        if not self.is_less:
            return self.prefix + line
        return line[len(self.prefix) :] if line.startswith(self.prefix) else None


@dataclass(frozen=True, slots=True)
class Place:
    """Where sought lines stand: the first line (0-based), the rung, and how they are shifted.

    With `is_done` it is what they were to become that stands there.
    """

    at: int
    rung: Rung
    shift: Shift = Shift()
    is_done: bool = False


@dataclass(slots=True)
class LineIndex:
    """The lines of a file, coded for finding runs of them; lines that were written are masked."""

    lines: list[bytes]
    budget: SearchBudget
    _texts: dict[Key, str] = field(default_factory=dict)
    _codes: dict[Key, dict[bytes, str]] = field(default_factory=dict)
    _written: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self._written = bytearray(len(self.lines))
        self.budget.spend(2 * len(self.lines))

    def is_written(self, start: int, end: int) -> bool:
        """Return whether an edit wrote one of the lines from `start` up to `end`."""
        return self._written.find(1, start, end) >= 0

    def replace(self, at: int, count: int, new: Sequence[bytes]) -> None:
        """Put `new` in the place of `count` lines at `at`, and never find them again."""
        self.lines[at : at + count] = new
        self._written[at : at + count] = b"\1" * len(new)
        for key, text in self._texts.items():
            self._texts[key] = text[:at] + _MASK * len(new) + text[at + count :]

    def find(self, sought: Sequence[bytes], key: Key = _same, limit: int = MAX_PLACES) -> list[int]:
        """Return the first lines (0-based) of at most `limit` places; they may overlap."""
        if not sought or len(sought) > len(self.lines):
            return []
        text = self._text(key)
        codes = self._codes[key]
        wanted = [codes.get(key(line)) for line in sought]
        self.budget.spend(len(text) + len(wanted))
        if None in wanted:
            return []
        pattern = "".join(code for code in wanted if code)
        found: list[int] = []
        at = text.find(pattern)
        while at >= 0 and len(found) < limit:
            found.append(at)
            at = text.find(pattern, at + 1)
        return found

    def _text(self, key: Key) -> str:
        if key not in self._texts:
            self.budget.spend(_CODED * len(self.lines))
            codes: dict[bytes, str] = {}
            parts: list[str] = []
            for number, line in enumerate(self.lines):
                if self._written[number]:
                    parts.append(_MASK)
                    continue
                word = key(line)
                code = codes.get(word)
                if code is None:
                    if len(codes) >= _CODES - _FIRST_CODE:
                        raise SearchExhausted
                    code = codes[word] = chr(len(codes) + _FIRST_CODE)
                parts.append(code)
            self._texts[key], self._codes[key] = "".join(parts), codes
        return self._texts[key]


def find_places(index: LineIndex, sought: Sequence[bytes], rung: Rung) -> list[Place]:
    """Return the places of `sought` at `rung`, which is none of FUZZY.

    A block of blank lines alone has places only where they are the same bytes.
    """
    if rung in (Rung.EXACT, Rung.MOVED):
        return [Place(at, rung) for at in index.find(sought)]
    if not any(map(_words, sought)):
        return []
    if rung is Rung.WHITESPACE:
        return [Place(at, rung) for at in index.find(sought, _without_ending)]
    places: list[Place] = []
    for at in index.find(sought, _words, MAX_CANDIDATES):
        index.budget.spend(_CODED * len(sought))
        shift = _shift(sought, index.lines[at : at + len(sought)])
        if shift is not None and len(places) < MAX_PLACES:
            places.append(Place(at, rung, shift))
    return places


def _shift(sought: Sequence[bytes], found: Sequence[bytes]) -> Shift | None:
    """Return the one shift that takes every line of `sought` to the indentation it was found at."""
    shift: Shift | None = None
    for wanted, line in zip(sought, found, strict=True):
        if not _words(wanted):
            continue
        this = _line_shift(_indent(wanted), _indent(line))
        if this is None or (shift is not None and this != shift):
            return None
        shift = this
    return shift


def _line_shift(wanted: bytes, found: bytes) -> Shift | None:
    if found.endswith(wanted):
        return Shift(found[: len(found) - len(wanted)])
    if wanted.endswith(found):
        return Shift(wanted[: len(wanted) - len(found)], is_less=True)
    return None


def _indent(line: bytes) -> bytes:
    line = line.removeprefix(_BOM)
    return line[: len(line) - len(line.lstrip(b" \t"))]


@dataclass(slots=True)
class Search:
    """How the edits of one patch are to be sought, and what is left of the effort they may cost.

    `format` is that of the patch: a corrected edit is written in it. `pattern_s` are the seconds
    that all its patterns together may run.
    """

    match: Match = Match.DEFAULT
    format: str = "unified"
    budget: SearchBudget = field(default_factory=SearchBudget)
    explanations: int = MAX_EXPLANATIONS
    pattern_s: float = 4.0

    def open(self, content: bytes) -> None:
        """Count the effort of going through `content` once; raise SearchExhausted at the limit."""
        self.budget.spend(1 + len(content) // 16)

    def may_explain(self, index: LineIndex) -> bool:
        """Return whether the nearest text may be looked for once more, and count that."""
        cost = _EXPLAINED * len(index.lines)
        if not self.explanations or self.budget.left < cost:
            return False
        self.explanations -= 1
        self.budget.left -= cost
        return True


class Ambiguous(Exception):
    """Sought lines stand in several places at the first rung where they stand at all."""

    def __init__(self, places: Sequence[Place]) -> None:
        super().__init__("ambiguous")
        self.places = tuple(places)


def locate(
    index: LineIndex,
    old: Sequence[bytes],
    new: Sequence[bytes],
    match: Match,
    stated: int | None = None,
) -> Place | None:
    """Return the one place of `old`, or where `new` already stands in its stead, or None.

    `stated` (0-based) is where the edit says that it belongs: the place there wins over others of
    the same bytes. Raises Ambiguous where there are several at the first rung that has any.
    """
    done = _already(index, old, new)
    for rung in (Rung.MOVED, Rung.WHITESPACE, Rung.INDENTATION):
        if rung is not Rung.MOVED and match is Match.EXACT:
            break
        places = find_places(index, old, rung)
        if done is not None and all(_is_inside(place, old, done, new) for place in places):
            places = []
        if rung is Rung.MOVED and any(place.at == stated for place in places):
            assert stated is not None
            return Place(stated, Rung.EXACT)
        if place := _only(places):
            is_unmoved = rung is Rung.MOVED and stated is None
            return dataclasses.replace(place, rung=Rung.EXACT) if is_unmoved else place
    if done is not None:
        return done
    return _only(_similar(index, old)) if match is Match.FUZZY else None


def _only(places: Sequence[Place]) -> Place | None:
    if len(places) > 1:
        raise Ambiguous(places)
    return places[0] if places else None


def _is_inside(place: Place, old: Sequence[bytes], done: Place, new: Sequence[bytes]) -> bool:
    return done.at <= place.at and place.at + len(old) <= done.at + len(new)


def _already(index: LineIndex, old: Sequence[bytes], new: Sequence[bytes]) -> Place | None:
    """Return where `new` stands, if it stands once and is too much text to be there by chance.

    An addition needs two lines that are not blank, one of them new; a deletion leaves nothing new
    to see, so it needs four lines around it, some on either side.
    """
    solid = sum(bool(_words(line)) for line in new)
    added = Counter(new) - Counter(old)
    if any(map(_words, added)):
        is_plain = solid >= 2 or len(new) == len(index.lines)
    else:
        head, tail = _shared_ends(old, new)
        is_plain = solid >= 4 and any(map(_words, new[:head])) and any(map(_words, new[tail:]))
    if not is_plain or old == new:
        return None
    for rung in (Rung.EXACT, Rung.WHITESPACE):
        places = find_places(index, new, rung)
        if places:
            return Place(places[0].at, rung, is_done=True) if len(places) == 1 else None
    return None


def _shared_ends(old: Sequence[bytes], new: Sequence[bytes]) -> tuple[int, int]:
    """Return where in `new` the shared head ends and the shared tail begins."""
    head = 0
    while head < min(len(old), len(new)) and old[head] == new[head]:
        head += 1
    tail = len(new)
    shorter = len(new) - len(old)
    while tail > head and tail - shorter > head and old[tail - shorter - 1] == new[tail - 1]:
        tail -= 1
    return head, tail


def _similar(index: LineIndex, old: Sequence[bytes]) -> list[Place]:
    index.budget.spend(_EXPLAINED * len(index.lines))
    return [
        Place(at, Rung.FUZZY)
        for score, at in similar_places(index.lines, old)
        if score >= FUZZY_THRESHOLD and not index.is_written(at, at + len(old))
    ]


def transplant(
    found: Sequence[bytes], old: Sequence[bytes], new: Sequence[bytes], shift: Shift = Shift()
) -> list[bytes] | None:
    """Return `new` in the style of `found`, which is where `old` was found.

    Lines that `old` and `new` share stay as `found` has them; others take on its line endings and
    the shift. None where a new line is not indented far enough to be shifted.
    """
    newline = _newline(found)
    result: list[bytes] = []
    for start, end, first, last in _aligned(old, new):
        for line in new[first:last]:
            moved = shift.moved(line)
            if moved is None:
                return None
            result.append(_ended(moved, newline))
        result.extend(found[start:end])
    if found and found[0].startswith(_BOM) and result and not old[0].startswith(_BOM):
        result[0] = _BOM + result[0].removeprefix(_BOM)
    return _with_last_ending(result, found, old, new, newline)


def _aligned(old: Sequence[bytes], new: Sequence[bytes]) -> list[tuple[int, int, int, int]]:
    """Return parts `(start, end, first, last)`: `new[first:last]`, then kept `old[start:end]`."""
    head = 0
    while head < min(len(old), len(new)) and old[head] == new[head]:
        head += 1
    tail = 0
    while tail < min(len(old), len(new)) - head and old[-1 - tail] == new[-1 - tail]:
        tail += 1
    parts = [(0, head, 0, 0)]
    middle_old, middle_new = old[head : len(old) - tail], new[head : len(new) - tail]
    at = head
    if equal_pairs(middle_old, middle_new) <= MAX_ALIGNED_PAIRS:
        matcher = difflib.SequenceMatcher(None, middle_old, middle_new, autojunk=False)
        for block in matcher.get_matching_blocks()[:-1]:
            start = head + block.a
            parts.append((start, start + block.size, at, head + block.b))
            at = head + block.b + block.size
    parts.append((len(old) - tail, len(old), at, len(new) - tail))
    return parts


def _newline(lines: Sequence[bytes]) -> bytes:
    windows = sum(line.endswith(b"\r\n") for line in lines)
    return b"\r\n" if 2 * windows > sum(line.endswith(b"\n") for line in lines) else b"\n"


def _ended(line: bytes, newline: bytes) -> bytes:
    if not line.endswith(b"\n"):
        return line
    return line.removesuffix(b"\n").removesuffix(b"\r") + newline


def _with_last_ending(
    result: list[bytes],
    found: Sequence[bytes],
    old: Sequence[bytes],
    new: Sequence[bytes],
    newline: bytes,
) -> list[bytes]:
    """Give all but the last line an ending, and the last one what `found` has or `new` asks for."""
    if not result:
        return result
    ended = [line if line.endswith(b"\n") else line + newline for line in result]
    is_open = [bool(lines) and not lines[-1].endswith(b"\n") for lines in (found, old, new)]
    if is_open[0] if is_open[1] == is_open[2] else is_open[2]:
        ended[-1] = ended[-1].removesuffix(b"\n").removesuffix(b"\r")
    return ended
