"""Makes the edits of a patch over what `read` gives, in memory; all of them or none.

Every edit is tried, also after one was refused, so that one answer tells all that is wrong. A text
that can be read in several ways is read as git reads it first; another reading counts only where
that one does not fit.
"""

from __future__ import annotations

import dataclasses

from sandbox_engine.errors import PatchConflictError, PatchPolicyError, PatchSyntaxError
from sandbox_engine.patch.diffs import apply_diff
from sandbox_engine.patch.edits import (
    Changes,
    Edit,
    EditRefused,
    EditReport,
    EditStatus,
    FileDiff,
    Match,
    Nearest,
    Patch,
    Policy,
)
from sandbox_engine.patch.matching import SearchBudget, SearchExhausted
from sandbox_engine.patch.overlay import (
    REREAD,
    Outcome,
    Overlay,
    Read,
    Siblings,
    conflicts,
)
from sandbox_engine.patch.paths import show
from sandbox_engine.patch.plan import apply_plan_edit
from sandbox_engine.patch.seek import Search
from sandbox_engine.verdict import Finding

NOTHING_MORE = Policy()
_POLICY_CODES = frozenset(
    (
        "forbidden-path",
        "gitattributes-refused",
        "gitlink-refused",
        "gitmodules-refused",
        "link-outside",
        "symlink-ancestor",
        "symlink-refused",
    )
)


def apply_patch(
    patch: Patch,
    read: Read,
    *,
    match: Match = Match.DEFAULT,
    policy: Policy = NOTHING_MORE,
    siblings: Siblings | None = None,
) -> Changes:
    """Return what `patch` makes of the tree that `read` gives; nothing is written anywhere.

    `siblings` lists the names in a folder of the base, so that names which only some file systems
    tell apart are refused. Raises PatchConflictError if an edit does not fit, PatchPolicyError if
    one is never allowed, PatchSyntaxError if git would drop a part; each carries one finding for
    each edit that was refused, and what became of every edit.
    """

    budget = SearchBudget()

    def attempt(reading: Patch) -> _Attempt:
        search = Search(match, patch.format, budget)
        return _Attempt(reading, Overlay(read, siblings, policy, search))

    first = attempt(patch)
    if first.is_made and not first.is_beyond_git:
        if patch.doubts:
            raise _doubtful(patch)
        return first.changes()
    others = [attempt(other) for other in _fitting(patch, first.overlay)]
    made = [other for other in others if other.is_made]
    if len(made) == 1:
        strip = made[0].patch.strip
        return made[0].changes(strip=strip if strip != patch.strip else None)
    if not first.is_made:
        raise first.refusal()
    if patch.doubts:
        raise _doubtful(patch)
    return first.changes()


def _fitting(patch: Patch, overlay: Overlay) -> list[Patch]:
    """Return the other readings of `patch` to try: one for the most files of the base it knows.

    Another number of folders to strip counts only where this one names files that are not there,
    that one none, and no third number fits as well.
    """
    readings = list(patch.others()) if patch.others else []
    same = [reading for reading in readings if reading.strip == patch.strip]
    if _knows_all(patch, overlay):
        return same
    restripped = [other for other in readings if other not in same and _knows_all(other, overlay)]
    return restripped if len({other.strip for other in restripped}) == 1 else same


def _knows_all(patch: Patch, overlay: Overlay) -> bool:
    """Return whether `patch` changes files, and every one of them is in the base."""
    old = [edit.old_path for edit in patch.edits if isinstance(edit, FileDiff)]
    known = [path for path in old if path is not None]
    return bool(known) and all(overlay.base(path) is not None for path in known)


class _Attempt:
    """One reading of a patch, made over an overlay of its own."""

    def __init__(self, patch: Patch, overlay: Overlay) -> None:
        self.overlay = overlay
        self.patch = patch
        for edit in patch.edits:
            is_move = isinstance(edit, FileDiff) and (edit.is_rename or not edit.new_path)
            if is_move and isinstance(edit, FileDiff) and edit.old_path:
                overlay.doomed.add(edit.old_path)
        self.reports = [_try_edit(edit, at, overlay) for at, edit in enumerate(patch.edits)]
        if self.is_made:
            for at, refused in conflicts(overlay).items():
                self.reports[at] = _refused_report(at, self.reports[at].path, refused)

    @property
    def is_made(self) -> bool:
        return not any(report.status.is_refusal for report in self.reports)

    @property
    def is_beyond_git(self) -> bool:
        return any(report.is_beyond_git for report in self.reports)

    def changes(self, *, strip: int | None = None) -> Changes:
        """Return what the edits come to; `strip` is told where it is not what git would strip."""
        reports = tuple(self.reports)
        if strip is not None:
            note = f"paths read as with `-p{strip}`"
            reports = tuple(
                dataclasses.replace(report, message=f"{report.message}; {note}", is_beyond_git=True)
                for report in reports
            )
        files = self.overlay.changed()
        renames = {
            new: old for new, old in self.overlay.renames.items() if files.get(new) is not None
        }
        return Changes(files, reports, renames, self.patch)

    def refusal(self) -> PatchConflictError | PatchPolicyError:
        refused = [report for report in self.reports if report.status.is_refusal]
        findings = [_finding(report) for report in refused]
        problem = (
            f"{len(refused)} of {len(self.reports)} edits cannot be made; {refused[0].message}"
        )
        is_policy = any(report.code in _POLICY_CODES for report in refused)
        kind = PatchPolicyError if is_policy else PatchConflictError
        remedy = refused[0].hint or REREAD
        return kind(
            problem,
            remedy=remedy,
            findings=findings,
            edits=[report.record for report in self.reports],
        )


def _try_edit(edit: Edit, index: int, overlay: Overlay) -> EditReport:
    try:
        if isinstance(edit, FileDiff):
            outcome = apply_diff(edit, index, overlay)
        else:
            outcome = apply_plan_edit(edit, index, overlay)
            overlay.made.setdefault(edit.path, set()).add(edit)
    except EditRefused as refused:
        return _refused_report(index, edit.path, refused)
    except SearchExhausted:
        return _refused_report(index, edit.path, _exhausted())
    return _report(index, edit.path, outcome)


def _exhausted() -> EditRefused:
    return EditRefused(
        EditStatus.TOO_LARGE,
        "search-too-long",
        "looking for where the edits go takes too long",
        hint="make the patch again against the base commit, with the right line numbers",
    )


def _report(index: int, path: bytes, outcome: Outcome) -> EditReport:
    return EditReport(
        index,
        path,
        outcome.status,
        outcome.message,
        outcome.line,
        rung=outcome.rung,
        is_beyond_git=outcome.is_beyond_git,
    )


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
        None,
        refused.nearest,
        refused.corrected,
    )


def _finding(report: EditReport) -> Finding:
    return Finding(
        report.code,
        report.message,
        path=show(report.path),
        line=report.line,
        source=report.source,
        hint=report.hint,
        detail=_detail(report.nearest),
        corrected=report.corrected,
    )


def _detail(near: Nearest | None) -> str | None:
    if near is None:
        return None
    return near.diff or near.text


def _doubtful(patch: Patch) -> PatchSyntaxError:
    first = patch.doubts[0]
    return PatchSyntaxError(
        f"git would leave out a part of the patch: {first.message}",
        remedy=first.hint or "make the diff again with `git diff`",
        findings=patch.doubts,
    )
