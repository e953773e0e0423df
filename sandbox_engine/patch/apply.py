"""Makes the edits of a patch over what `read` gives, in memory; all of them or none.

Every edit is tried, also after one was refused, so that one answer tells all that is wrong. The
edits of a plan follow one another. The parts of a unified diff relate to each other as in git's
`apply.c`: a later part sees what an earlier one left, while renames and copies read the file as it
was before the patch, so that two files can swap names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from sandbox_engine.errors import PatchConflictError, PatchPolicyError
from sandbox_engine.patch import blocks
from sandbox_engine.patch.edits import (
    EXECUTABLE,
    GITLINK,
    REGULAR,
    SYMLINK,
    Changes,
    CreateFile,
    DeleteBlock,
    DeleteFile,
    Edit,
    EditRefused,
    EditReport,
    EditStatus,
    File,
    FileDiff,
    InsertLines,
    Patch,
    PlanEdit,
    ReplaceBlock,
    SectionedUpdate,
    WriteFile,
)
from sandbox_engine.patch.matching import Image, SearchBudget, SearchExhausted, split_lines
from sandbox_engine.patch.paths import ancestors, check_path, show
from sandbox_engine.verdict import Finding

Read = Callable[[bytes], File | None]

_TYPE = 0o170000
_POLICY_CODES = frozenset(("forbidden-path", "symlink-refused", "gitlink-refused"))
_REREAD = "read the file at the base commit and make the patch again"


@dataclass(slots=True)
class _Overlay:
    """The tree as the edits so far leave it, over the tree that `read` knows.

    `now` holds what was written, None for what was removed. `doomed` paths are removed by a later
    part of the same diff, so their names are free. `landed` paths were created, renamed or copied
    to; `writers` remembers which edit wrote a path last.
    """

    read: Read
    base_files: dict[bytes, File | None] = field(default_factory=dict)
    now: dict[bytes, File | None] = field(default_factory=dict)
    gone: set[bytes] = field(default_factory=set)
    doomed: set[bytes] = field(default_factory=set)
    landed: set[bytes] = field(default_factory=set)
    writers: dict[bytes, int] = field(default_factory=dict)
    renames: dict[bytes, bytes] = field(default_factory=dict)
    budget: SearchBudget = field(default_factory=SearchBudget)

    def base(self, path: bytes) -> File | None:
        if path not in self.base_files:
            self.base_files[path] = self.read(path)
        return self.base_files[path]

    def current(self, path: bytes) -> File | None:
        return self.now[path] if path in self.now else self.base(path)

    def write(self, path: bytes, file: File | None, index: int) -> None:
        self.now[path] = file
        self.writers[path] = index

    def changed(self) -> dict[bytes, File | None]:
        return {path: file for path, file in self.now.items() if file != self.base(path)}


def apply_patch(patch: Patch, read: Read) -> Changes:
    """Return what `patch` makes of the tree that `read` gives; nothing is written anywhere.

    Raises PatchConflictError if an edit does not fit, PatchPolicyError if one is never allowed;
    either carries one finding for each edit that was refused.
    """
    overlay = _Overlay(read)
    for edit in patch.edits:
        if isinstance(edit, FileDiff) and edit.old_path and (edit.is_rename or not edit.new_path):
            overlay.doomed.add(edit.old_path)
    reports = [_try_edit(edit, index, overlay) for index, edit in enumerate(patch.edits)]
    if not any(report.status.is_refusal for report in reports):
        _report_path_conflicts(reports, overlay)
    refused = [report for report in reports if report.status.is_refusal]
    if refused:
        raise _refusal(refused, len(reports))
    files = overlay.changed()
    renames = {new: old for new, old in overlay.renames.items() if files.get(new) is not None}
    return Changes(files, tuple(reports), renames)


def _try_edit(edit: Edit, index: int, overlay: _Overlay) -> EditReport:
    try:
        _check_paths(edit)
        if isinstance(edit, FileDiff):
            status, message, line = _apply_diff(edit, index, overlay)
        else:
            status, message, line = _apply_plan_edit(edit, index, overlay)
    except EditRefused as refused:
        return _refused_report(index, edit.path, refused)
    return EditReport(index, edit.path, status, message, line)


def _refused_report(index: int, path: bytes, refused: EditRefused) -> EditReport:
    return EditReport(
        index,
        path,
        refused.status,
        f"edit {index + 1}, `{show(path)}`: {refused.message}",
        refused.line,
        refused.code,
        None if refused.source is None else show(refused.source),
        refused.hint,
    )


def _refusal(refused: list[EditReport], total: int) -> PatchConflictError | PatchPolicyError:
    findings = [
        Finding(
            report.code,
            report.message,
            path=show(report.path),
            line=report.line,
            source=report.source,
            hint=report.hint,
        )
        for report in refused
    ]
    first = refused[0]
    problem = f"{len(refused)} of {total} edits cannot be made; {first.message}"
    remedy = first.hint or _REREAD
    if any(report.code in _POLICY_CODES for report in refused):
        return PatchPolicyError(problem, remedy=remedy, findings=findings)
    return PatchConflictError(problem, remedy=remedy, findings=findings)


def _check_paths(edit: Edit) -> None:
    paths = [edit.path]
    if isinstance(edit, FileDiff):
        paths = [path for path in (edit.old_path, edit.new_path) if path is not None]
    for path in paths:
        if reason := check_path(path):
            raise EditRefused(
                EditStatus.FORBIDDEN_PATH,
                "forbidden-path",
                f"the path `{show(path)}` is not allowed: {reason}",
                hint="name files relative to the root of the repository, as `src/name.py`",
            )


def _report_path_conflicts(reports: list[EditReport], overlay: _Overlay) -> None:
    """Turn the report of every edit that made a file below another file into a refusal."""
    for path, index in overlay.writers.items():
        if overlay.now[path] is None or overlay.base(path) is not None:
            continue
        for folder in ancestors(path):
            if overlay.current(folder) is not None:
                refused = EditRefused(
                    EditStatus.CONFLICT,
                    "path-conflict",
                    f"`{show(path)}` cannot be created, because `{show(folder)}` is no folder",
                    hint=f"delete `{show(folder)}` in the same patch, or choose another path",
                )
                reports[index] = _refused_report(index, path, refused)
                break


Outcome = tuple[EditStatus, str, int | None]
"""What an edit came to: its status, a sentence, and the line where the first change is."""


def _apply_plan_edit(edit: PlanEdit, index: int, overlay: _Overlay) -> Outcome:
    before = overlay.current(edit.path)
    if before is None and isinstance(edit, (DeleteFile, DeleteBlock)):
        return EditStatus.NO_OP, "the file is not there, so nothing is deleted", None
    _require_editable(before, is_removal=isinstance(edit, DeleteFile))
    line: int | None = None
    after: File | None = None
    match edit:
        case InsertLines():
            mode = before.mode if before else REGULAR
            edited = blocks.insert_lines(before.content if before else b"", edit)
            after, line = File(edited.content, mode), edited.line
        case ReplaceBlock() | DeleteBlock():
            if before is None:
                raise _missing("there is no such file to find the block in")
            edited = blocks.replace_block(before.content, edit)
            after, line = File(edited.content, before.mode), edited.line
        case CreateFile():
            if before is not None and not edit.may_exist and before.content != edit.content:
                raise _stale("file-exists", f"`{show(edit.path)}` is there already")
            after = File(edit.content, edit.mode or (before.mode if before else REGULAR))
        case SectionedUpdate():
            raise _stale("not-yet", "sections are not made yet")
        case WriteFile():
            if len(edit.content) > blocks.MAX_FILE_BYTES:
                raise blocks.too_large(len(edit.content))
            after = File(edit.content, before.mode if before else REGULAR)
    overlay.write(edit.path, after, index)
    return *_effect(before, after), line


def _effect(before: File | None, after: File | None) -> tuple[EditStatus, str]:
    if before == after:
        return EditStatus.NO_OP, "the file already is what the edit makes of it"
    if after is None:
        return EditStatus.APPLIED, "deleted"
    return EditStatus.APPLIED, "changed" if before else "created"


def _missing(message: str) -> EditRefused:
    return EditRefused(
        EditStatus.NOT_FOUND,
        "file-missing",
        message,
        hint="check the path; INSERT, or REPLACE of a null block, creates a file",
    )


def _require_editable(file: File | None, *, is_removal: bool) -> None:
    """Refuse a submodule, and a symlink unless it is only taken away."""
    if file is None:
        return
    if file.mode == GITLINK:
        raise _gitlink_refused()
    if file.mode == SYMLINK and not is_removal:
        raise _symlink_refused()


def _gitlink_refused() -> EditRefused:
    return EditRefused(
        EditStatus.UNSUPPORTED,
        "gitlink-refused",
        "this is a submodule, which a patch may not touch",
        hint="leave the submodule out of the patch",
    )


def _symlink_refused() -> EditRefused:
    return EditRefused(
        EditStatus.UNSUPPORTED,
        "symlink-refused",
        "a patch may neither make nor change a symbolic link",
        hint="edit the file that the link points to, or delete the link",
    )


def _apply_diff(diff: FileDiff, index: int, overlay: _Overlay) -> Outcome:
    """Make one file's part of a diff, after `check_patch` in git's `apply.c`."""
    if diff.is_binary:
        raise EditRefused(
            EditStatus.UNSUPPORTED,
            "binary-unsupported",
            "the diff of this file is binary, which cannot be applied",
            hint="leave binary files out of the patch",
        )
    before = _preimage(diff, overlay)
    creates = diff.is_new or (diff.is_new is None and before is None)
    is_removal = bool(diff.is_delete) and not creates
    _check_type(diff, before, is_removal=is_removal)
    target = None if is_removal else diff.new_path
    if target and (creates or target != diff.old_path):
        _require_free(target, diff, overlay)
    content, line = _apply_hunks(diff, b"" if before is None else before.content, overlay)
    if is_removal:
        return _remove(diff, content, index, overlay)
    after = File(content, _new_mode(diff, before))
    old = None if before is None or diff.is_copy else diff.old_path
    _write_result(diff.path, old, after, index, overlay)
    if creates or diff.path != diff.old_path:
        return EditStatus.APPLIED, "created" if creates or diff.is_copy else "renamed", line
    return *_effect(before, after), line


def _remove(diff: FileDiff, content: bytes, index: int, overlay: _Overlay) -> Outcome:
    if content:
        raise EditRefused(
            EditStatus.STALE,
            "removal-incomplete",
            "the diff deletes the file but leaves some of its lines",
            source=blocks.first_line(content),
            hint=_REREAD,
        )
    assert diff.old_path is not None
    overlay.write(diff.old_path, None, index)
    overlay.gone.add(diff.old_path)
    return EditStatus.APPLIED, "deleted", None


def _write_result(
    path: bytes, old: bytes | None, after: File, index: int, overlay: _Overlay
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


def _preimage(diff: FileDiff, overlay: _Overlay) -> File | None:
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


def _stale(code: str, message: str, *, line: int | None = None) -> EditRefused:
    return EditRefused(EditStatus.STALE, code, message, line=line, hint=_REREAD)


def _check_type(diff: FileDiff, before: File | None, *, is_removal: bool) -> None:
    """Refuse a change of kind (file, symlink, submodule) and every kind but files.

    Permissions need not be as the diff says: git only warns of that.
    """
    old_mode = diff.old_mode or (before.mode if before else 0)
    new_mode = old_mode if is_removal else _new_mode(diff, before)
    if GITLINK in (old_mode & _TYPE, new_mode & _TYPE) or (before and before.mode == GITLINK):
        raise _gitlink_refused()
    is_only_moved = is_removal or (not diff.hunks and not diff.is_copy and before is not None)
    if SYMLINK in (old_mode & _TYPE, new_mode & _TYPE) and not is_only_moved:
        raise _symlink_refused()
    if diff.new_mode & _TYPE not in (0, REGULAR & _TYPE, SYMLINK):
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


def _require_free(path: bytes, diff: FileDiff, overlay: _Overlay) -> None:
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


def _apply_hunks(diff: FileDiff, content: bytes, overlay: _Overlay) -> tuple[bytes, int | None]:
    """Return the content with every hunk made, and the 1-based line of the first."""
    if not diff.hunks:
        return content, None
    image = Image(split_lines(content), overlay.budget)
    first: int | None = None
    for number, hunk in enumerate(diff.hunks, 1):
        try:
            at = image.place(hunk)
        except SearchExhausted as error:
            raise _exhausted() from error
        if at is None:
            raise _hunk_refused(diff, number)
        first = at + 1 + hunk.leading if first is None else first
    result = image.content()
    if len(result) > blocks.MAX_FILE_BYTES:
        raise blocks.too_large(len(result))
    return result, first


def _hunk_refused(diff: FileDiff, number: int) -> EditRefused:
    hunk = diff.hunks[number - 1]
    where = "at the start of the file" if hunk.old_start <= 1 else f"near line {hunk.old_start}"
    if not hunk.trailing:
        where = f"{where}, with nothing after them" if hunk.old_start <= 1 else "at its end"
    sought = f"the {len(hunk.old)} lines it expects are not {where}"
    if not hunk.old:
        sought = f"the file is not empty, and it adds lines {where}"
        if hunk.old_start > 1:
            sought = "it holds no context to place it by"
    return EditRefused(
        EditStatus.NOT_FOUND,
        "hunk-not-found",
        f"hunk {number} of {len(diff.hunks)} (line {hunk.patch_line} of the patch) does not fit:"
        f" {sought}",
        line=max(hunk.old_start, 1),
        source=blocks.first_line(b"".join(hunk.old[:20])),
        hint=_REREAD,
    )


def _exhausted() -> EditRefused:
    return EditRefused(
        EditStatus.TOO_LARGE,
        "search-too-long",
        "looking for where the hunks go takes too long",
        hint=_REREAD + ", so that the line numbers in its `@@` lines are right",
    )
