"""The edits that name what they want: insert, replace, create, delete, sections.

They compose: each sees the files as the edits before it left them. Two of them overlap where the
later one seeks text that was in the file and that an earlier one took away; that is refused,
unless the two are the same edit.
"""

from __future__ import annotations

from typing import assert_never

from sandbox_engine.patch import blocks, matching
from sandbox_engine.patch.edits import (
    REGULAR,
    CreateFile,
    DeleteBlock,
    DeleteFile,
    EditRefused,
    EditStatus,
    File,
    InsertLines,
    PlanEdit,
    ReplaceBlock,
    SectionedUpdate,
    WriteFile,
)
from sandbox_engine.patch.overlay import Outcome, Overlay
from sandbox_engine.patch.paths import show
from sandbox_engine.patch.sections import make_sections

_LOST = frozenset(("block-not-found", "block-inexact", "section-not-found"))


def apply_plan_edit(edit: PlanEdit, index: int, overlay: Overlay) -> Outcome:
    """Make one edit of a plan in `overlay`; raise EditRefused and change nothing."""
    overlay.check_name(edit.path)
    before = overlay.current(edit.path)
    overlay.search.open(before.content if before else b"")
    if before is None and isinstance(edit, DeleteBlock):
        return Outcome(EditStatus.NO_OP, "the file is not there, so nothing is deleted")
    if before is not None:
        overlay.check_kind(before.mode, is_kept=isinstance(edit, DeleteFile))
    match edit:
        case InsertLines():
            return _insert(edit, before, index, overlay)
        case ReplaceBlock() | DeleteBlock():
            return _replace(edit, before, index, overlay)
        case WriteFile():
            mode = before.mode if before else REGULAR
            return _write(edit.path, File(edit.content, mode), before, index, overlay)
        case CreateFile():
            return _create(edit, before, index, overlay)
        case DeleteFile():
            return _delete(edit, before, index, overlay)
        case SectionedUpdate():
            return _update(edit, before, index, overlay)
        case _:
            assert_never(edit)


def _insert(edit: InsertLines, before: File | None, index: int, overlay: Overlay) -> Outcome:
    edited = blocks.insert_lines(before.content if before else b"", edit)
    if edited.is_already:
        return Outcome(EditStatus.ALREADY_APPLIED, "the lines are there already", edited.line)
    after = File(edited.content, before.mode if before else REGULAR)
    return _write(edit.path, after, before, index, overlay, edited)


def _replace(
    edit: ReplaceBlock | DeleteBlock, before: File | None, index: int, overlay: Overlay
) -> Outcome:
    if before is None:
        raise _missing("there is no such file to find the block in")
    try:
        edited = blocks.replace_block(before.content, edit, overlay.search)
    except EditRefused as refused:
        return _overlapping(edit, refused, index, overlay)
    if edited.is_already:
        message = "the text already stands in the place of the block"
        return Outcome(EditStatus.ALREADY_APPLIED, message, edited.line)
    after = File(edited.content, before.mode)
    return _write(edit.path, after, before, index, overlay, edited)


def _overlapping(
    edit: ReplaceBlock | DeleteBlock, refused: EditRefused, index: int, overlay: Overlay
) -> Outcome:
    """Return that an earlier edit did the same, or raise `refused`, told as an overlap if it is."""
    base = overlay.base(edit.path)
    if refused.code not in _LOST or base is None or base == overlay.current(edit.path):
        raise refused
    if edit in overlay.made.get(edit.path, ()):
        message = "an earlier edit of the patch is the same"
        return Outcome(EditStatus.ALREADY_APPLIED, message)
    if not matching.find_block(base.content, edit.block).offsets:
        raise refused
    raise EditRefused(
        EditStatus.CONFLICT,
        "edits-overlap",
        "the block was in the file, but an earlier edit of the patch changed it",
        source=blocks.first_line(edit.block),
        hint="join the edits of these lines into one, or seek what the earlier one leaves",
        nearest=refused.nearest,
    ) from refused


def _write(
    path: bytes,
    after: File,
    before: File | None,
    index: int,
    overlay: Overlay,
    edited: blocks.Edited | None = None,
) -> Outcome:
    if len(after.content) > blocks.MAX_FILE_BYTES:
        raise blocks.too_large(len(after.content))
    overlay.write(path, after, index)
    line, rung = (edited.line, edited.rung) if edited else (None, None)
    if before == after:
        message = "the file already is what the edit makes of it"
        return Outcome(EditStatus.NO_OP, message, line, rung)
    return Outcome(EditStatus.APPLIED, "changed" if before else "created", line, rung)


def _create(edit: CreateFile, before: File | None, index: int, overlay: Overlay) -> Outcome:
    mode = edit.mode or (before.mode if before else REGULAR)
    after = File(edit.content, mode)
    overlay.check_kind(mode)
    if before == after:
        message = "the file is there already, with the same content"
        return Outcome(EditStatus.ALREADY_APPLIED, message)
    if before is not None and not edit.may_exist:
        raise EditRefused(
            EditStatus.STALE,
            "file-exists",
            f"the edit creates `{show(edit.path)}`, which is there already",
            hint="update the file, or delete it in the same patch",
        )
    return _write(edit.path, after, before, index, overlay)


def _delete(edit: DeleteFile, before: File | None, index: int, overlay: Overlay) -> Outcome:
    if before is None:
        if edit.must_exist:
            raise _missing("there is no such file to delete")
        return Outcome(EditStatus.NO_OP, "the file is not there, so nothing is deleted")
    overlay.write(edit.path, None, index)
    return Outcome(EditStatus.APPLIED, "deleted")


def _update(edit: SectionedUpdate, before: File | None, index: int, overlay: Overlay) -> Outcome:
    if edit.move_to is not None:
        overlay.check_name(edit.move_to)
    moved = None if edit.move_to is None else overlay.current(edit.move_to)
    if before is None:
        if moved is not None and _is_moved(edit, moved, overlay):
            return Outcome(EditStatus.ALREADY_APPLIED, "the file was changed and renamed already")
        raise _missing("there is no such file to update")
    if moved is not None and edit.move_to != edit.path:
        raise EditRefused(
            EditStatus.STALE,
            "file-exists",
            f"the edit moves the file to `{show(edit.move_to or b'')}`, which is there already",
            hint="choose another name, or delete that file in the same patch",
        )
    made = make_sections(before.content, edit, overlay.search)
    if len(made.content) > blocks.MAX_FILE_BYTES:
        raise blocks.too_large(len(made.content))
    target = edit.move_to or edit.path
    after = File(made.content, before.mode)
    overlay.write(target, after, index)
    status, message = EditStatus.APPLIED, "changed"
    if target != edit.path:
        overlay.write(edit.path, None, index)
        overlay.renames[target] = edit.path
        message = "renamed"
    elif made.is_already:
        status, message = EditStatus.ALREADY_APPLIED, "the file already is as the edit makes it"
    elif before == after:
        status, message = EditStatus.NO_OP, "the file already is what the edit makes of it"
    message = "; ".join((message, *made.notes[:10]))
    return Outcome(status, message, made.line, made.rung)


def _is_moved(edit: SectionedUpdate, moved: File, overlay: Overlay) -> bool:
    try:
        return not edit.sections or make_sections(moved.content, edit, overlay.search).is_already
    except EditRefused:
        return False


def _missing(message: str) -> EditRefused:
    return EditRefused(
        EditStatus.NOT_FOUND,
        "file-missing",
        message,
        hint="check the path; INSERT, or REPLACE of a null block, creates a file",
    )
