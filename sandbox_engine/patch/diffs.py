"""One file's part of a unified diff, made after `check_patch` in git's `apply.c`.

A later part sees what an earlier one left, while renames and copies read the file as it was before
the patch, so that two files can swap names. What git refuses because it was done before is told
apart from what does not fit.
"""

from __future__ import annotations

import dataclasses

from sandbox_engine.patch import binary, blocks
from sandbox_engine.patch.edits import (
    EXECUTABLE,
    GITLINK,
    REGULAR,
    SYMLINK,
    EditRefused,
    EditStatus,
    File,
    FileDiff,
)
from sandbox_engine.patch.hunks import Made, make_hunks
from sandbox_engine.patch.overlay import REREAD, Outcome, Overlay
from sandbox_engine.patch.paths import show
from sandbox_engine.patch.seek import Search

_TYPE = 0o170000
_NULL_ID = b"0" * 40


def apply_diff(diff: FileDiff, index: int, overlay: Overlay) -> Outcome:
    """Make one file's part of a diff in `overlay`; raise EditRefused and change nothing."""
    for path in (diff.old_path, diff.new_path):
        if path is not None:
            overlay.check_name(path)
    if (done := _done_before(diff, overlay)) is not None:
        return done
    before = _preimage(diff, overlay)
    creates = diff.is_new or (diff.is_new is None and before is None)
    is_removal = bool(diff.is_delete) and not creates
    _check_type(diff, before, overlay, is_removal=is_removal)
    target = None if is_removal else diff.new_path
    if target and (creates or target != diff.old_path):
        _require_free(target, diff, overlay)
    made = _make(diff, before, overlay)
    if len(made.content) > blocks.MAX_FILE_BYTES:
        raise blocks.too_large(len(made.content))
    if is_removal:
        return _remove(diff, made, index, overlay)
    after = File(made.content, _new_mode(diff, before))
    old = None if before is None or diff.is_copy else diff.old_path
    _write_result(diff.path, old, after, index, overlay)
    status, message = EditStatus.APPLIED, "created"
    if not creates:
        status, message = _effect(before, after)
        if diff.path != diff.old_path:
            status, message = EditStatus.APPLIED, "copied" if diff.is_copy else "renamed"
    if made.is_already and before == after:
        status, message = EditStatus.ALREADY_APPLIED, "the file already is as the diff makes it"
    message = "; ".join((message, *made.notes[:10]))
    return Outcome(status, message, made.line, made.rung, made.is_beyond_git)


def _effect(before: File | None, after: File) -> tuple[EditStatus, str]:
    if before == after:
        return EditStatus.NO_OP, "the file already is what the edit makes of it"
    return EditStatus.APPLIED, "changed"


def _make(diff: FileDiff, before: File | None, overlay: Overlay) -> Made:
    content = b"" if before is None else before.content
    if diff.is_binary:
        return _make_binary(diff, before, content)
    try:
        return make_hunks(diff.hunks, content, overlay.search)
    except EditRefused as refused:
        raise _aged(refused, diff, content) from refused


def _aged(refused: EditRefused, diff: FileDiff, content: bytes) -> EditRefused:
    """Return `refused`, as stale where the file is not the one that the diff was made from."""
    named = diff.old_id
    if refused.status is not EditStatus.NOT_FOUND or len(named) < 7 or not named.strip(b"0"):
        return refused
    if refused.code != "hunk-not-found" or binary.blob_id(content).startswith(named):
        return refused
    there = binary.blob_id(content)[: len(named)].decode()
    refused.status = EditStatus.STALE
    refused.message += (
        f"; the diff was made from blob {named.decode()}, and the file is {there} now"
    )
    return refused


def _make_binary(diff: FileDiff, before: File | None, content: bytes) -> Made:
    """Return what the binary part makes of `content`, which must be the blob that it names."""
    if not binary.is_full_id(diff.old_id) or not binary.is_full_id(diff.new_id):
        raise _binary_refused("binary-unsupported", "its `index` line does not hold full ids")
    found = binary.blob_id(content)
    if diff.old_path is None or before is None:
        if content:
            raise _binary_refused("binary-stale", "it makes a new file, and there is one")
    elif found != diff.old_id:
        if found == diff.new_id:
            return Made(content, is_beyond_git=True, done=1, total=1)
        raise _binary_refused("binary-stale", f"it was made from another file than `{show(found)}`")
    if diff.new_id == _NULL_ID:
        return Made(b"")
    if diff.binary is None:
        raise _binary_refused("binary-unsupported", "it says that the file differs, but not how")
    try:
        made = binary.apply_binary(diff.binary, content)
    except binary.BadBinary as error:
        raise _binary_refused("binary-corrupt", str(error)) from error
    if binary.blob_id(made) != diff.new_id:
        raise _binary_refused("binary-corrupt", "it does not make the file that its ids name")
    return Made(made)


def _binary_refused(code: str, reason: str) -> EditRefused:
    statuses = {
        "binary-unsupported": EditStatus.UNSUPPORTED,
        "binary-stale": EditStatus.STALE,
        "binary-corrupt": EditStatus.MALFORMED,
    }
    return EditRefused(
        statuses[code],
        code,
        f"the diff of this file is binary, and cannot be applied: {reason}",
        hint="make the diff with `git diff --binary` against the base commit",
    )


def _done_before(diff: FileDiff, overlay: Overlay) -> Outcome | None:
    """Return the outcome of a creation, deletion, rename or copy that was made already."""
    status = EditStatus.ALREADY_APPLIED
    old = None if diff.old_path is None else overlay.current(diff.old_path)
    new = None if diff.new_path is None else overlay.current(diff.new_path)
    if diff.is_delete and old is None and diff.old_path is not None and not diff.is_rename:
        return Outcome(status, "the file is gone already", is_beyond_git=True)
    if new is None or diff.new_path in overlay.doomed:
        return None
    if diff.is_new and new.content == _created(diff) and new.mode == _new_mode(diff, None):
        message = "the file is there already, with the same content"
        return Outcome(status, message, is_beyond_git=True)
    if diff.old_path in (None, diff.new_path) or not (diff.is_rename or diff.is_copy):
        return None
    if diff.is_rename and old is None and diff.old_path not in overlay.gone:
        if _holds_result(diff, new.content, overlay):
            return Outcome(status, "the file was renamed already", is_beyond_git=True)
    elif diff.is_copy and old is not None and _is_copied(diff, old, new, overlay):
        return Outcome(status, "the file was copied already", is_beyond_git=True)
    return None


def _created(diff: FileDiff) -> bytes | None:
    """Return the content of a new file, or None where the diff does not tell it by itself."""
    if not diff.is_binary:
        return b"".join(line for hunk in diff.hunks for line in hunk.new)
    try:
        return binary.apply_binary(diff.binary, b"") if diff.binary else None
    except binary.BadBinary:
        return None


def _holds_result(diff: FileDiff, content: bytes, overlay: Overlay) -> bool:
    """Return whether `content` is what the diff leaves, as far as the diff tells."""
    if binary.is_full_id(diff.new_id):
        return binary.blob_id(content) == diff.new_id
    if diff.is_binary:
        return False
    try:
        made = make_hunks(diff.hunks, content, _quiet(overlay))
    except EditRefused:
        return False
    return not diff.hunks or made.is_already


def _is_copied(diff: FileDiff, old: File, new: File, overlay: Overlay) -> bool:
    try:
        made = _make(diff, old, overlay)
    except EditRefused:
        return False
    return File(made.content, _new_mode(diff, old)) == new


def _quiet(overlay: Overlay) -> Search:
    return dataclasses.replace(overlay.search, explanations=0)


def _remove(diff: FileDiff, made: Made, index: int, overlay: Overlay) -> Outcome:
    if made.content:
        raise EditRefused(
            EditStatus.STALE,
            "removal-incomplete",
            "the diff deletes the file but leaves some of its lines",
            source=blocks.first_line(made.content),
            hint=REREAD,
        )
    assert diff.old_path is not None
    overlay.write(diff.old_path, None, index)
    overlay.gone.add(diff.old_path)
    return Outcome(EditStatus.APPLIED, "deleted", None, made.rung, made.is_beyond_git)


def _write_result(
    path: bytes, old: bytes | None, after: File, index: int, overlay: Overlay
) -> None:
    """Put `after` at `path`; an `old` other than it goes, unless an earlier part wrote it anew."""
    is_move = old is not None and old != path
    overlay.write(path, after, index)
    overlay.gone.discard(path)
    overlay.doomed.discard(path)
    if old != path:
        overlay.landed.add(path)
    if is_move and old is not None:
        overlay.renames[path] = old
        overlay.gone.add(old)
        if old not in overlay.landed:
            overlay.write(old, None, index)


def _preimage(diff: FileDiff, overlay: Overlay) -> File | None:
    """Return the file that the hunks are about, or None for one that is to be created."""
    old = diff.old_path
    if old is None or diff.is_new:
        return None
    if diff.is_rename or diff.is_copy:
        file = overlay.base(old)
        if diff.is_rename and overlay.now.get(old) is not None and old not in overlay.landed:
            raise _stale("path-conflict", f"`{show(old)}` is changed and then renamed in one patch")
    elif old in overlay.gone:
        raise _stale("file-missing", f"an earlier part of the patch took `{show(old)}` away")
    else:
        file = overlay.current(old)
    if file is None and diff.is_new is False:
        raise _stale("file-missing", f"there is no file `{show(old)}`")
    return file


def _stale(code: str, message: str) -> EditRefused:
    return EditRefused(EditStatus.STALE, code, message, hint=REREAD)


def _check_type(diff: FileDiff, before: File | None, overlay: Overlay, *, is_removal: bool) -> None:
    """Refuse a change of kind (file, symlink, submodule) and every kind that is not allowed.

    Permissions need not be as the diff says: git only warns of that.
    """
    old_mode = diff.old_mode or (before.mode if before else 0)
    new_mode = old_mode if is_removal else _new_mode(diff, before)
    is_moved = not (diff.hunks or diff.is_binary or diff.is_copy) and before is not None
    is_kept = is_removal or is_moved
    for mode in (old_mode, new_mode, before.mode if before else 0):
        overlay.check_kind(mode & _TYPE, is_kept=is_kept)
    if diff.new_mode & _TYPE not in (0, REGULAR & _TYPE, SYMLINK, GITLINK):
        raise _stale("wrong-type", f"there is no kind of file with mode {diff.new_mode:06o}")
    if before is None:
        return
    for mode in (old_mode, 0 if is_removal else diff.new_mode):
        if mode and (before.mode ^ mode) & _TYPE:
            raise _stale("wrong-type", f"the file has mode {before.mode:06o}, not {mode:06o}")


def _new_mode(diff: FileDiff, before: File | None) -> int:
    """Return the mode of the result as a tree can hold it."""
    mode = diff.new_mode or (before.mode if before else REGULAR)
    kind = mode & _TYPE
    if kind in (SYMLINK, GITLINK):
        return kind
    if kind == 0o040000:
        return GITLINK
    return EXECUTABLE if mode & 0o100 else REGULAR


def _require_free(path: bytes, diff: FileDiff, overlay: Overlay) -> None:
    if path in overlay.gone or path in overlay.doomed:
        return
    if overlay.current(path) is not None:
        verb = "creates" if diff.is_new is not False else "moves a file to"
        raise EditRefused(
            EditStatus.STALE,
            "file-exists",
            f"the diff {verb} `{show(path)}`, which is there already",
            hint="make the diff against the base commit, or delete the file in the same patch",
        )
