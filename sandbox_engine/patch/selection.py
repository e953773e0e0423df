"""A patch taken apart into the smallest edits that stand for themselves, and put together of some.

What cannot be had by halves is one atom: a file that is created, copied or deleted, binary content,
the rename of a file together with a change of its mode. The hunks beside a rename are atoms of
their own and fit the old name without it.

An edit must mean in a selection what it means in the whole. So the hunks and sections that are left
out are still sought (`is_skipped`), line numbers are those that are right without them, and an edit
whose line number cannot be put right is refused.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import assert_never

from sandbox_engine.errors import PatchConflictError
from sandbox_engine.patch.edits import (
    CreateFile,
    DeleteBlock,
    DeleteFile,
    Edit,
    FileDiff,
    Hunk,
    InsertLines,
    Patch,
    PlanEdit,
    ReplaceBlock,
    SectionedUpdate,
    WriteFile,
)
from sandbox_engine.patch.paths import show

_TEXT_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Atom:
    """One edit that can be made or left out by itself; `index` counts from 0, in patch order.

    `line` is the 1-based line of the patch's text, None where it is not known. `edit` says which of
    the patch's edits it belongs to, and `part` which hunk or section of it, from 0; None is what is
    neither.
    """

    index: int
    path: bytes
    line: int | None
    description: str
    edit: int
    part: int | None


def atoms(patch: Patch) -> tuple[Atom, ...]:
    """Return what `patch` can be taken apart into."""
    found: list[Atom] = []
    for at, edit in enumerate(patch.edits):
        for part in _parts(edit):
            line = _line(edit, part) or None
            where = f" (line {line} of the patch)" if line else ""
            told = f"{show(edit.path)}, {_told(edit, part, patch.format)}{where}"
            found.append(Atom(len(found), edit.path, line, told, at, part))
    return tuple(found)


def select(patch: Patch, indices: Iterable[int]) -> Patch:
    """Return a patch of those atoms alone whose index is in `indices`; of all it is `patch` itself.

    Where a patch can be read in several ways, it must be the reading that fitted the tree
    (`Changes.reading`): a part could fit in another. Raises PatchConflictError for an edit whose
    line number counts on one that is left out. The result may not fit the tree.
    """
    every = atoms(patch)
    chosen = {every[index] for index in indices}
    if len(chosen) == len(every):
        return patch
    parts: dict[int, set[int | None]] = defaultdict(set)
    for atom in chosen:
        parts[atom.edit].add(atom.part)
    edits = _renumbered(patch.edits, parts)
    return dataclasses.replace(patch, edits=tuple(edits), commits=(), doubts=(), others=None)


def _parts(edit: Edit) -> tuple[int | None, ...]:
    if isinstance(edit, SectionedUpdate):
        head = (None,) if edit.move_to is not None else ()
        return (*head, *range(len(edit.sections)))
    if isinstance(edit, FileDiff) and _is_divisible(edit):
        head = (None,) if _has_header(edit) else ()
        return (*head, *range(len(edit.hunks)))
    return (None,)


def _is_divisible(diff: FileDiff) -> bool:
    is_plain = diff.is_new is False and diff.is_delete is False and not diff.is_copy
    return is_plain and bool(diff.hunks) and None not in (diff.old_path, diff.new_path)


def _has_header(diff: FileDiff) -> bool:
    """Return whether `diff` does something to the file beside what its hunks do."""
    return diff.old_path != diff.new_path or _changes_mode(diff)


def _changes_mode(diff: FileDiff) -> bool:
    return diff.new_mode not in (0, diff.old_mode)


def _line(edit: Edit, part: int | None) -> int:
    if part is not None and isinstance(edit, FileDiff):
        return edit.hunks[part].patch_line
    if part is not None and isinstance(edit, SectionedUpdate):
        return edit.sections[part].patch_line
    return 0 if isinstance(edit, DeleteBlock) else edit.patch_line


def _told(edit: Edit, part: int | None, format: str) -> str:
    """Return what an atom does, in a few words."""
    match edit:
        case FileDiff():
            return _told_diff(edit) if part is None else f"hunk {part + 1} of {len(edit.hunks)}"
        case SectionedUpdate():
            if part is None:
                return f"renamed to {show(edit.move_to or b'')}"
            return "block" if format == "search-replace" else _section(part, edit)
        case InsertLines():
            where = "at the end" if edit.line is None else f"before line {edit.line}"
            return f"`{_first_line(edit.text)}` inserted {where}"
        case ReplaceBlock():
            return f"`{_first_line(edit.block)}` replaced"
        case DeleteBlock():
            return f"`{_first_line(edit.block)}` deleted"
        case WriteFile():
            return "whole file"
        case CreateFile():
            return "whole file" if edit.may_exist else "created"
        case DeleteFile():
            return "deleted"
        case _:
            assert_never(edit)


def _section(part: int, edit: SectionedUpdate) -> str:
    return f"section {part + 1} of {len(edit.sections)}"


def _told_diff(diff: FileDiff) -> str:
    if diff.is_copy:
        return f"copied from {show(diff.old_path or b'')}"
    if diff.is_new or diff.old_path is None:
        return "created"
    if diff.is_delete or diff.new_path is None:
        return "deleted"
    told = [f"renamed from {show(diff.old_path)}"] if diff.old_path != diff.new_path else []
    told += [f"mode {diff.new_mode & 0o7777:o}"] if _changes_mode(diff) else []
    told += ["binary content"] if diff.is_binary else []
    return ", ".join(told) or "changed"


def _first_line(text: bytes) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return show(lines[0].strip(), _TEXT_SHOWN) if lines else ""


def _renumbered(edits: Sequence[Edit], parts: dict[int, set[int | None]]) -> list[Edit]:
    """Return the chosen `parts` of `edits`, with line numbers that are right without the others."""
    kept: list[Edit] = []
    loose_ends: set[bytes] = set()
    diffs: dict[bytes, list[_Lines]] = defaultdict(list)
    for at, edit in enumerate(edits):
        chosen = parts.get(at, set())
        if isinstance(edit, FileDiff):
            lines = _lines(edit, chosen)
            kept += _part_of_diff(edit, chosen, diffs[edit.old_path or b""], lines)
            diffs[edit.path].append(lines)
        elif not chosen:
            loose_ends |= set() if _keeps_lines(edit) else {edit.path}
        elif isinstance(edit, SectionedUpdate):
            kept.append(_part_of_update(edit, chosen))
        else:
            kept.append(_unnumbered(edit) if edit.path in loose_ends else edit)
    return kept


def _part_of_update(edit: SectionedUpdate, chosen: Collection[int | None]) -> SectionedUpdate:
    last = max((part for part in chosen if part is not None), default=-1)
    sections = tuple(
        dataclasses.replace(section, is_skipped=number not in chosen)
        for number, section in enumerate(edit.sections[: last + 1])
    )
    move_to = edit.move_to if None in chosen else None
    return dataclasses.replace(edit, sections=sections, move_to=move_to)


def _keeps_lines(edit: PlanEdit) -> bool:
    """Return whether all lines after `edit` have the same number with it and without."""
    if not isinstance(edit, ReplaceBlock) or edit.is_regex:
        return False
    return edit.block.count(b"\n") == edit.text.count(b"\n")


def _unnumbered(edit: PlanEdit) -> PlanEdit:
    """Return `edit` without a line number that edits which are left out made wrong.

    A block can do without: it must then be in one place alone.
    """
    if isinstance(edit, InsertLines) and edit.line is not None:
        raise PatchConflictError(
            f"the lines for line {edit.line} of `{show(edit.path)}` have no place without the"
            " edits before them",
            remedy="keep the earlier edits of the file",
        )
    if isinstance(edit, ReplaceBlock | DeleteBlock):
        return dataclasses.replace(edit, line=None)
    return edit


@dataclass(frozen=True, slots=True)
class _Lines:
    """Where the hunks of a file's diff add lines (or, below 0, take some), in the new file.

    Each is a line and a number of lines; `lost` are those of the hunks that are left out.
    `is_first` tells that no earlier diff of the same name can have changed the file.
    """

    every: tuple[tuple[int, int], ...]
    lost: tuple[tuple[int, int], ...]
    is_first: bool


def _lines(diff: FileDiff, chosen: Collection[int | None]) -> _Lines:
    every = tuple(
        (hunk.new_start + hunk.leading, len(hunk.new) - len(hunk.old)) for hunk in diff.hunks
    )
    if not _is_divisible(diff):
        return _Lines((), (), is_first=True)
    lost = tuple(lines for number, lines in enumerate(every) if number not in chosen)
    return _Lines(every, lost, is_first=diff.old_path != diff.new_path)


def _before(changes: Iterable[tuple[int, int]], line: int) -> int:
    """Return how many lines `changes` add before `line`."""
    return sum(count for at, count in changes if at < line)


def _part_of_diff(
    diff: FileDiff,
    chosen: Collection[int | None],
    earlier: Sequence[_Lines],
    lines: _Lines,
) -> list[FileDiff]:
    if not chosen or not _is_divisible(diff):
        return [diff] if chosen else []
    hunks = tuple(
        _moved(
            hunk,
            -_lost_earlier(hunk, earlier),
            lines.lost,
            is_skipped=number not in chosen,
        )
        for number, hunk in enumerate(diff.hunks)
    )
    if hunks == diff.hunks and set(chosen) == set(_parts(diff)):
        return [diff]
    if all(hunk.is_skipped for hunk in hunks):
        hunks = ()
    part = dataclasses.replace(diff, hunks=hunks, new_id=b"")
    if None not in chosen:
        part = dataclasses.replace(part, new_path=diff.old_path, new_mode=0, is_rename=False)
    return [part]


def _lost_earlier(hunk: Hunk, earlier: Sequence[_Lines]) -> int:
    """Return how many lines before `hunk` come from hunks of earlier diffs that are left out.

    A series may change a file several times, and each diff counts the lines that the one before
    left; so the line is followed back through them. A rename is the first of them, because a file
    that was changed before is not renamed.
    """
    line = hunk.old_start + hunk.leading
    lost = 0
    for diff in reversed(earlier):
        lost += _before(diff.lost, line)
        line -= _before(diff.every, line)
        if diff.is_first:
            break
    return lost


def _moved(hunk: Hunk, by: int, lost: Iterable[tuple[int, int]], *, is_skipped: bool) -> Hunk:
    """Return `hunk` moved by so many lines, and by the lost ones of its own diff.

    A first line of 1 or less says that it starts the file, and more that it does not have to.
    """
    old_start = hunk.old_start
    if old_start > 0:
        old_start = max(old_start + by, min(old_start, 2))
    new_start = max(hunk.new_start + by - _before(lost, hunk.new_start + hunk.leading), 0)
    return dataclasses.replace(
        hunk, old_start=old_start, new_start=new_start, is_skipped=is_skipped
    )
