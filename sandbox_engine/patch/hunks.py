"""The hunks of one file's diff, made on its lines: as git makes them, or else down the rungs.

What git accepts gives what git makes of it, its search for the nearest place included. Only where
git refuses a file are its hunks sought again, and then each must have exactly one place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sandbox_engine.patch import blocks, correct
from sandbox_engine.patch.edits import EditRefused, EditStatus, Hunk, Match, Nearest, Rung
from sandbox_engine.patch.matching import Image, split_lines
from sandbox_engine.patch.nearest import CERTAIN, describe, nearest
from sandbox_engine.patch.seek import (
    Ambiguous,
    LineIndex,
    Place,
    Search,
    locate,
    transplant,
)

_REREAD = "read the file at the base commit and make the patch again"
_LADDER = (Rung.EXACT, Rung.MOVED, Rung.WHITESPACE, Rung.INDENTATION, Rung.FUZZY)


@dataclass(frozen=True, slots=True)
class Made:
    """A file's new content, the 1-based line of the first change, and how its places were found.

    `done` of `total` parts were there already.
    """

    content: bytes
    line: int | None = None
    rung: Rung | None = None
    is_beyond_git: bool = False
    done: int = 0
    total: int = 0
    notes: tuple[str, ...] = ()

    @property
    def is_already(self) -> bool:
        return 0 < self.total == self.done


def lowest(rungs: Sequence[Rung]) -> Rung | None:
    """Return the rung furthest down the ladder."""
    return max(rungs, key=_LADDER.index, default=None)


def make_hunks(hunks: tuple[Hunk, ...], content: bytes, search: Search) -> Made:
    """Return `content` with every hunk made; raise EditRefused for the first that has no place.

    A skipped one without a place is passed over.
    """
    if not hunks:
        return Made(content)
    search.open(content)
    if not any(hunk.is_loose for hunk in hunks):
        made = _as_git(hunks, content, search)
        if made is not None and not (search.match is Match.EXACT and made.rung is Rung.MOVED):
            return made
    return _down_the_rungs(hunks, content, search)


def _as_git(hunks: tuple[Hunk, ...], content: bytes, search: Search) -> Made | None:
    image = Image(split_lines(content), search.budget)
    search.budget.spend(2 * len(image))
    first: int | None = None
    rung = Rung.EXACT
    for hunk in hunks:
        at = image.place(hunk)
        if at is None:
            return None
        if hunk.is_skipped:
            continue
        if at != _stated(hunk) and (at or hunk.old_start > 1):
            rung = Rung.MOVED
        first = at + 1 + hunk.leading if first is None else first
    return Made(image.content(), first, rung, total=_count_made(hunks))


def _count_made(hunks: tuple[Hunk, ...]) -> int:
    return sum(not hunk.is_skipped for hunk in hunks)


def _stated(hunk: Hunk) -> int:
    """Return the line (0-based) where the hunk says that its old lines are, or -1."""
    return max(hunk.new_start - (1 if hunk.new else 0), 0) if hunk.old_start >= 0 else -1


def _down_the_rungs(hunks: tuple[Hunk, ...], content: bytes, search: Search) -> Made:
    index = LineIndex(split_lines(content), search.budget)
    first: int | None = None
    rungs: list[Rung] = []
    notes: list[str] = []
    done = 0
    for number, hunk in enumerate(hunks, 1):
        if hunk.is_skipped:
            _pass_over(hunk, index, search)
            continue
        place, new = _place(hunk, number, len(hunks), index, search)
        rungs += [] if place.is_done else [place.rung]
        if place.is_done:
            done += 1
            new = tuple(index.lines[place.at : place.at + len(hunk.new)])
        if place.is_done or place.rung is not Rung.EXACT:
            how = "already applied" if place.is_done else f"by `{place.rung}`"
            notes.append(f"hunk {number} at line {place.at + 1}: {how}")
        elif hunk.is_loose:
            notes.append(f"hunk {number}: its `@@` line is wrong and was counted anew")
        first = place.at + 1 + hunk.leading if first is None else first
        index.replace(place.at, len(new) if place.is_done else len(hunk.old), new)
    result = b"".join(index.lines)
    return Made(result, first, lowest(rungs), True, done, _count_made(hunks), tuple(notes))


def _pass_over(hunk: Hunk, index: LineIndex, search: Search) -> None:
    """Keep the place of a skipped hunk, if it has one, from being found for another."""
    try:
        place = locate(index, hunk.old, hunk.new, _reach(search), _stated_in(hunk, index))
    except Ambiguous:
        return
    if place is not None:
        count = len(hunk.new if place.is_done else hunk.old)
        index.replace(place.at, count, index.lines[place.at : place.at + count])


def _place(
    hunk: Hunk, number: int, total: int, index: LineIndex, search: Search
) -> tuple[Place, Sequence[bytes]]:
    """Return where `hunk` goes and the lines it leaves there, or raise EditRefused."""
    title = f"hunk {number} of {total} (line {hunk.patch_line} of the patch)"
    try:
        place = locate(index, hunk.old, hunk.new, _reach(search), _stated_in(hunk, index))
    except Ambiguous as error:
        raise _ambiguous(title, hunk, error.places) from error
    if place is None:
        raise _not_found(title, hunk, index, search)
    if place.is_done:
        return place, ()
    if _eats_newline(hunk, place, index):
        raise _not_found(title, hunk, index, search)
    new = _left(hunk, place, index)
    if new is None:
        raise _not_found(title, hunk, index, search)
    if search.match is Match.EXACT and (place.rung is not Rung.EXACT or hunk.is_loose):
        raise _inexact(title, hunk, place, index, new)
    return place, new


def _reach(search: Search) -> Match:
    """Return how far to seek: for an exact match too far, so that what is near can be told."""
    return Match.DEFAULT if search.match is Match.EXACT else search.match


def _stated_in(hunk: Hunk, index: LineIndex) -> int | None:
    """Return the line that the hunk names, unless git's rules for it do not hold there.

    A hunk without context after it belongs at the end of the file, unless it was cut short.
    """
    at = _stated(hunk)
    if at < 0:
        return None
    is_at_end = at + len(hunk.old) == len(index.lines)
    return at if hunk.trailing or is_at_end or hunk.is_loose else -1


def _eats_newline(hunk: Hunk, place: Place, index: LineIndex) -> bool:
    """Return whether git would take a line without newline for one with, and lose the newline."""
    if not hunk.trailing or hunk.old[-1].endswith(b"\n"):
        return False
    return index.lines[place.at + len(hunk.old) - 1] != hunk.old[-1]


def _left(hunk: Hunk, place: Place, index: LineIndex) -> Sequence[bytes] | None:
    if place.rung in (Rung.EXACT, Rung.MOVED):
        return hunk.new
    found = index.lines[place.at : place.at + len(hunk.old)]
    return transplant(found, hunk.old, hunk.new, place.shift)


def _ambiguous(title: str, hunk: Hunk, places: Sequence[Place]) -> EditRefused:
    lines = ", ".join(str(place.at + 1) for place in places)
    return EditRefused(
        EditStatus.AMBIGUOUS,
        "hunk-ambiguous",
        f"{title} fits in {len(places)} places by `{places[0].rung}`, at lines {lines}",
        line=places[0].at + 1,
        source=blocks.first_line(b"".join(hunk.old[:20])),
        hint="give the hunk more lines of context, or the right line number",
    )


def _inexact(
    title: str, hunk: Hunk, place: Place, index: LineIndex, new: Sequence[bytes]
) -> EditRefused:
    found = index.lines[place.at : place.at + len(hunk.old)]
    what = "its `@@` line is wrong" if hunk.is_loose else f"it fits by `{place.rung}`"
    return EditRefused(
        EditStatus.NOT_FOUND,
        "hunk-inexact",
        f"{title} does not fit exactly: {what}, at line {place.at + 1}",
        line=max(hunk.old_start, 1),
        source=blocks.first_line(b"".join(hunk.old[:20])),
        hint="send the corrected hunk, or allow more than exact matches",
        nearest=nearest(found, hunk.old, place.at + 1),
        corrected=correct.hunk(place.at, found, new),
    )


def _not_found(title: str, hunk: Hunk, index: LineIndex, search: Search) -> EditRefused:
    near, corrected = _explain(hunk, index, search)
    return EditRefused(
        EditStatus.NOT_FOUND,
        "hunk-not-found",
        f"{title} does not fit: {_sought(hunk)}{describe(near)}",
        line=max(hunk.old_start, 1),
        source=blocks.first_line(b"".join(hunk.old[:20])),
        hint="send the corrected hunk" if corrected else _REREAD,
        nearest=near,
        corrected=corrected,
    )


def _explain(hunk: Hunk, index: LineIndex, search: Search) -> tuple[Nearest | None, str | None]:
    """Return the nearest text, and the hunk as it should have been where that is certain."""
    if not hunk.old or not search.may_explain(index):
        return None, None
    near = nearest(index.lines, hunk.old)
    if near is None:
        return None, None
    at = near.first_line - 1
    if near.similarity < CERTAIN or index.is_written(at, at + len(hunk.old)):
        return near, None
    found = index.lines[at : at + len(hunk.old)]
    guess = transplant(found, hunk.old, hunk.new)
    return near, None if guess is None else correct.hunk(at, found, guess)


def _sought(hunk: Hunk) -> str:
    if not hunk.old:
        if hunk.old_start > 1:
            return "it holds no context to place it by"
        return "the file is not empty, and it adds lines at the start of the file"
    where = "anywhere in the file"
    if hunk.old_start > 1:
        where = f"near line {hunk.old_start} or anywhere else in the file"
    return f"the {len(hunk.old)} lines it expects are not {where}"
