"""Turns the text of a patch into edits, and edits into the files they make.

Pure: bytes in, values or a refusal out; no file, process or repository is touched. Each format is
a module with one parser that returns a `Patch`; everything after it is the same for all formats.
"""

from __future__ import annotations

from sandbox_engine.errors import PatchSyntaxError, UsageError
from sandbox_engine.patch.apply import NOTHING_MORE, apply_patch
from sandbox_engine.patch.edits import (
    Changes,
    CommitNote,
    EditReport,
    EditStatus,
    File,
    Match,
    Patch,
    Policy,
    Rung,
)
from sandbox_engine.patch.formats import PARSERS, detect
from sandbox_engine.patch.paths import check_path
from sandbox_engine.patch.selection import Atom, atoms, select
from sandbox_engine.patch.whole_files import patch_from_files
from sandbox_engine.verdict import Finding

__all__ = [
    "FORMATS",
    "MAX_EDITS",
    "MAX_PATCH_BYTES",
    "NOTHING_MORE",
    "Atom",
    "Changes",
    "CommitNote",
    "EditReport",
    "EditStatus",
    "File",
    "Match",
    "Patch",
    "Policy",
    "Rung",
    "apply_patch",
    "atoms",
    "check_path",
    "parse_patch",
    "patch_from_files",
    "select",
]

MAX_PATCH_BYTES = 64 * 2**20
MAX_EDITS = 10_000

FORMATS: tuple[str, ...] = tuple(PARSERS)


def parse_patch(text: bytes, *, format: str | None = None) -> Patch:
    """Return the edits in `text`, which is of `format` or of the one it looks like.

    Raises PatchSyntaxError with a finding for every part that is malformed, and UsageError for a
    format that is not one of FORMATS.
    """
    if format is not None and format not in PARSERS:
        raise UsageError(
            f"there is no patch format `{format}`", remedy=f"use one of: {', '.join(FORMATS)}"
        )
    if len(text) > MAX_PATCH_BYTES:
        raise _refusal(
            f"the patch is larger than {MAX_PATCH_BYTES} bytes", "split it into smaller patches"
        )
    patch = PARSERS[format or detect(text)](text)
    if len(patch.edits) > MAX_EDITS:
        raise _refusal(
            f"the patch has more than {MAX_EDITS} edits", "split it into smaller patches"
        )
    return patch


def _refusal(problem: str, remedy: str) -> PatchSyntaxError:
    finding = Finding("patch-malformed", problem, hint=remedy)
    return PatchSyntaxError(problem, remedy=remedy, findings=[finding])
