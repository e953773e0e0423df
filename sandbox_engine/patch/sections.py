"""Sections made on a file's lines: text sought without line numbers, in order, after its anchors.

A section says nothing of line endings, so its lines are given the file's own before they are
sought, and a last line without newline is found like any other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from sandbox_engine.patch import blocks, correct
from sandbox_engine.patch.edits import (
    EditRefused,
    EditStatus,
    Match,
    Rung,
    Section,
    SectionedUpdate,
)
from sandbox_engine.patch.hunks import Made, lowest
from sandbox_engine.patch.matching import is_crlf, split_lines
from sandbox_engine.patch.nearest import CERTAIN, describe, nearest
from sandbox_engine.patch.seek import (
    Ambiguous,
    LineIndex,
    Place,
    Search,
    locate,
    transplant,
)

_RESEND = "read the file at the base commit and resend the section"


def make_sections(content: bytes, edit: SectionedUpdate, search: Search) -> Made:
    """Return `content` with every section made; raise EditRefused for the first without a place.

    A skipped one without a place is passed over.
    """
    is_open = bool(content) and not content.endswith(b"\n")
    newline = b"\r\n" if is_crlf(content) else b"\n"
    lines = split_lines(content + newline if is_open else content)
    index = LineIndex(lines, search.budget)
    rungs: list[Rung] = []
    notes: list[str] = []
    first: int | None = None
    done = cursor = 0
    for number, section in enumerate(edit.sections, 1):
        title = f"section {number} of {len(edit.sections)}"
        if section.patch_line:
            title += f" (line {section.patch_line} of the patch)"
        if section.is_skipped:
            cursor = _pass_over(section, index, cursor, newline, search, edit)
            continue
        at, count, new, place = _make(section, title, index, cursor, newline, search, edit)
        rungs += [] if place.is_done else [place.rung]
        done += place.is_done
        if place.is_done or place.rung is not Rung.EXACT:
            how = "already applied" if place.is_done else f"by `{place.rung}`"
            notes.append(f"{title} at line {at + 1}: {how}")
        first = at + 1 if first is None else first
        index.replace(at, count, new)
        cursor = max(cursor, at + len(new)) if place.rung is not Rung.MOVED else cursor
    result = b"".join(index.lines)
    if is_open and result.endswith(newline):
        result = result[: -len(newline)]
    total = sum(not section.is_skipped for section in edit.sections)
    return Made(result, first, lowest(rungs), False, done, total, tuple(notes))


def _pass_over(
    section: Section,
    index: LineIndex,
    cursor: int,
    newline: bytes,
    search: Search,
    edit: SectionedUpdate,
) -> int:
    """Keep the place of a skipped section from being found; return where to seek the next from."""
    quiet = dataclasses.replace(search, explanations=0)
    try:
        at, count, _, place = _make(section, "", index, cursor, newline, quiet, edit)
    except EditRefused:
        return cursor
    index.replace(at, count, index.lines[at : at + count])
    return cursor if place.rung is Rung.MOVED else max(cursor, at + count)


def _make(
    section: Section,
    title: str,
    index: LineIndex,
    cursor: int,
    newline: bytes,
    search: Search,
    edit: SectionedUpdate,
) -> tuple[int, int, Sequence[bytes], Place]:
    """Return the lines that go (first, count), those that come, and where that is."""
    old = [line + newline for line in section.before]
    new = [line + newline for line in section.after]
    start = _after_anchors(section, title, index, cursor, search)
    if not old:
        at = start if section.anchors else len(index.lines)
        if place := _inserted(index, new, at):
            return place.at, len(new), new, place
        return at, 0, new, Place(at, Rung.EXACT)
    place = _locate(section, title, index, start, old, new, search)
    if place is None:
        raise _not_found(title, index, old, new, edit, search)
    if place.is_done:
        there = index.lines[place.at : place.at + len(new)]
        return place.at, len(new), there, place
    found = index.lines[place.at : place.at + len(old)]
    result = transplant(found, old, new, place.shift)
    if result is None:
        raise _not_found(title, index, old, new, edit, search)
    if search.match is Match.EXACT and place.rung is not Rung.EXACT:
        raise _inexact(title, place, found, result, old, edit, search)
    return place.at, len(old), result, place


def _inserted(index: LineIndex, new: Sequence[bytes], at: int) -> Place | None:
    """Return where `new` already stands if it is two solid lines or more right at `at`."""
    if sum(bool(line.strip()) for line in new) < 2:
        return None
    for first in (at, at - len(new)):
        if first >= 0 and index.lines[first : first + len(new)] == list(new):
            is_free = not index.is_written(first, first + len(new))
            return Place(first, Rung.EXACT, is_done=True) if is_free else None
    return None


def _after_anchors(
    section: Section, title: str, index: LineIndex, cursor: int, search: Search
) -> int:
    at = cursor
    for anchor in section.anchors:
        wanted = anchor.strip()
        search.budget.spend(len(index.lines))
        found = next(
            (row for row in range(at, len(index.lines)) if index.lines[row].strip() == wanted), None
        )
        if found is None:
            near = nearest(index.lines, [anchor]) if search.may_explain(index) else None
            raise EditRefused(
                EditStatus.NOT_FOUND,
                "anchor-not-found",
                f"the anchor of {title} is not in the file after line {at}{describe(near)}",
                source=blocks.first_line(anchor),
                hint=_RESEND,
                nearest=near,
            )
        at = found + 1
    return at


def _locate(
    section: Section,
    title: str,
    index: LineIndex,
    start: int,
    old: Sequence[bytes],
    new: Sequence[bytes],
    search: Search,
) -> Place | None:
    match = Match.DEFAULT if search.match is Match.EXACT else search.match
    try:
        place = locate(index, old, new, match)
    except Ambiguous as error:
        places = [place for place in error.places if place.at >= start]
        at_end = [place for place in places if place.at + len(old) == len(index.lines)]
        if section.at_end:
            places = at_end or places
        if not places or (len(places) > 1 and not section.anchors):
            raise _ambiguous(title, section, places or list(error.places)) from error
        place = places[0]
        return Place(place.at, Rung.EXACT, place.shift) if place.rung is Rung.MOVED else place
    if place is None or place.is_done:
        return place
    is_at_end = place.at + len(old) == len(index.lines)
    if place.at >= start and (is_at_end or not section.at_end):
        return place
    return Place(place.at, max(place.rung, Rung.MOVED, key=tuple(Rung).index), place.shift)


def _ambiguous(title: str, section: Section, places: Sequence[Place]) -> EditRefused:
    lines = ", ".join(str(place.at + 1) for place in places)
    return EditRefused(
        EditStatus.AMBIGUOUS,
        "section-ambiguous",
        f"{title} fits in {len(places)} places, at lines {lines}",
        line=places[0].at + 1,
        source=blocks.first_line(b"\n".join(section.before[:20])),
        hint="give more lines of context, or an `@@` anchor above the place",
    )


def _inexact(
    title: str,
    place: Place,
    found: Sequence[bytes],
    new: Sequence[bytes],
    old: Sequence[bytes],
    edit: SectionedUpdate,
    search: Search,
) -> EditRefused:
    text = b"".join(found), b"".join(new)
    return EditRefused(
        EditStatus.NOT_FOUND,
        "section-inexact",
        f"{title} does not fit exactly: it fits by `{place.rung}`, at line {place.at + 1}",
        line=place.at + 1,
        source=blocks.first_line(b"".join(old[:20])),
        hint="send the corrected section, or allow more than exact matches",
        nearest=nearest(found, old, place.at + 1),
        corrected=correct.block(search.format, edit.path, *text),
    )


def _not_found(
    title: str,
    index: LineIndex,
    old: Sequence[bytes],
    new: Sequence[bytes],
    edit: SectionedUpdate,
    search: Search,
) -> EditRefused:
    near = nearest(index.lines, old) if search.may_explain(index) else None
    corrected = None
    if near is not None and near.similarity >= CERTAIN:
        found = index.lines[near.first_line - 1 : near.last_line]
        if guess := transplant(found, old, new):
            corrected = correct.block(search.format, edit.path, b"".join(found), b"".join(guess))
    return EditRefused(
        EditStatus.NOT_FOUND,
        "section-not-found",
        f"{title} does not fit: its lines are nowhere in the file{describe(near)}",
        source=blocks.first_line(b"".join(old[:20])),
        hint="send the corrected section" if corrected else _RESEND,
        nearest=near,
        corrected=corrected,
    )
