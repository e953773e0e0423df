"""The text of a file that is most like what was sought and not found.

Lines vote for the place where the block would start: equal lines first, then rare words, so that
the cost is linear in the file; only the few places with most votes are compared in full.
"""

from __future__ import annotations

import difflib
import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence

from sandbox_engine.patch.edits import Nearest
from sandbox_engine.patch.paths import show

FUZZY_THRESHOLD = 0.8
CERTAIN = 0.9
"""A single place at least this similar is offered as what was meant."""
MAX_SOUGHT_LINES = 400
MAX_WORDS_BYTES = 400_000
"""Files up to this size are searched by words too, not by whole lines alone."""
MAX_COMPARED = 6
MAX_SHOWN_LINES = 40
MAX_SHOWN_CHARS = 4_000

_WORD = re.compile(rb"\w+")
_LINE_CHARS = 300
_COMMON = 200

_LINE_PAIRS, _ALL_PAIRS = 2_000, 60_000
"""Pairs of equal characters that difflib may look at in one line, and for one block."""

_Ratio = Callable[[bytes, bytes], float]


def equal_pairs(one: Iterable[Hashable], other: Iterable[Hashable]) -> int:
    """Return how many pairs of equal items there are: difflib's time grows with their number."""
    counts = Counter(one)
    return sum(counts[item] for item in other)


def _load_ratio() -> _Ratio:
    """Return how alike two lines are, from 0 to 1, by what is installed."""
    try:
        from rapidfuzz.fuzz import ratio  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        return _bounded_ratio()
    return lambda one, other: float(ratio(one, other)) / 100


def _bounded_ratio() -> _Ratio:
    """Return difflib's ratio, which leaves the order of characters aside when that takes long."""
    left = _ALL_PAIRS

    def measure(one: bytes, other: bytes) -> float:
        nonlocal left
        matcher = difflib.SequenceMatcher(None, one, other, False)
        pairs = equal_pairs(one, other)
        if pairs > min(left, _LINE_PAIRS):
            return matcher.quick_ratio()
        left -= pairs
        return matcher.ratio()

    return measure


def similar_places(lines: Sequence[bytes], sought: Sequence[bytes]) -> list[tuple[float, int]]:
    """Return `(similarity, first line)` of the places most like `sought`, the best first.

    First lines are 0-based. Places that overlap a better one are left out.
    """
    if not sought or len(sought) > MAX_SOUGHT_LINES or len(sought) > len(lines):
        return []
    votes = _line_votes(lines, sought)
    if sum(map(len, lines)) <= MAX_WORDS_BYTES:
        _add_word_votes(votes, lines, sought)
    ratio = _load_ratio()
    best = heapq.nsmallest(MAX_COMPARED, votes, key=lambda at: (-votes[at], at))
    last = len(lines) - len(sought)
    top = dict.fromkeys(min(max(at, 0), last) for at in best)
    scored = [(_similarity(lines[at : at + len(sought)], sought, ratio), at) for at in top]
    scored.sort(key=lambda item: (-item[0], item[1]))
    places: list[tuple[float, int]] = []
    for score, at in scored:
        if all(abs(at - other) >= len(sought) for _, other in places):
            places.append((score, at))
    return places


def nearest(lines: Sequence[bytes], sought: Sequence[bytes], first: int = 1) -> Nearest | None:
    """Return the text in `lines` most like `sought`, or None; `first` is their line number."""
    cut = list(sought[:MAX_SOUGHT_LINES])[: len(lines)]
    places = similar_places(lines, cut)
    if not places or places[0][0] < 0.3:
        return None
    score, at = places[0]
    found = lines[at : at + len(cut)]
    return Nearest(at + 1, at + len(found), _shown(found), _diff(cut, found, at), round(score, 3))


def describe(near: Nearest | None) -> str:
    """Return the end of a sentence that tells where the nearest text is, empty for none."""
    if near is None:
        return ""
    lines = f"lines {near.first_line} to {near.last_line}"
    if near.first_line == near.last_line:
        lines = f"line {near.first_line}"
    return f"; the nearest text is on {lines}, {near.similarity:.0%} alike"


def _line_votes(lines: Sequence[bytes], sought: Sequence[bytes]) -> Counter[int]:
    """Count for each place how much of `sought` stands where it would if it began there."""
    where: dict[bytes, list[int]] = defaultdict(list)
    for number, line in enumerate(sought):
        if (key := line.strip()) and len(where[key]) < 5:
            where[key].append(number)
    votes: Counter[int] = Counter()
    for at, line in enumerate(lines):
        key = line.strip()
        if key in where:
            for number in where[key]:
                votes[at - number] += 8 + min(len(key), 40)
    return votes


def _add_word_votes(votes: Counter[int], lines: Sequence[bytes], sought: Sequence[bytes]) -> None:
    places: dict[bytes, list[int]] = defaultdict(list)
    for at, line in enumerate(lines):
        for word in set(_WORD.findall(line)):
            places[word].append(at)
    for number, line in enumerate(sought):
        for word in set(_WORD.findall(line[:_LINE_CHARS])):
            found = places.get(word, ())
            if len(found) <= _COMMON:
                for at in found:
                    votes[at - number] += max(1, 20 // len(found))


def _similarity(found: Sequence[bytes], sought: Sequence[bytes], ratio: _Ratio) -> float:
    """Return how alike two blocks of as many lines are, each line weighed by its length."""
    total = 0
    same = 0.0
    for line, wanted in zip(found, sought, strict=True):
        one, other = line.strip(), wanted.strip()
        weight = max(len(one), len(other))
        total += weight
        if one == other:
            same += weight
        elif one and other and weight <= _LINE_CHARS:
            same += weight * ratio(one, other)
    return same / total if total else 0.0


def _shown(lines: Sequence[bytes]) -> str:
    cut = [show(line.rstrip(b"\r\n")) for line in lines[:MAX_SHOWN_LINES]]
    more = [f"... and {len(lines) - len(cut)} more lines"] if len(lines) > len(cut) else []
    return "\n".join(cut + more)[:MAX_SHOWN_CHARS]


def _diff(sought: Sequence[bytes], found: Sequence[bytes], at: int) -> str:
    """Return a small unified diff from what was sought to what is there; endings are shown."""
    wanted, there = [
        [_visible(line) for line in lines[:MAX_SHOWN_LINES]] for lines in (sought, found)
    ]
    parts = difflib.unified_diff(wanted, there, "sought", f"line {at}", n=1, lineterm="")
    return "\n".join(parts)[:MAX_SHOWN_CHARS]


def _visible(line: bytes) -> str:
    """Return `line` with what the eye misses written out: trailing white space, CR, no newline."""
    body = line.removesuffix(b"\n")
    bare = body.rstrip(b" \t\r")
    tail = body[len(bare) :].replace(b"\r", b"\\r").replace(b"\t", b"\\t").decode()
    return show(bare) + (tail[:-1] + "\\s" if tail.endswith(" ") else tail)
