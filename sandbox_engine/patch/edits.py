"""What a patch asks for, as values: files, edits, hunks, reports.

A parser for a format returns a `Patch` of these and knows nothing of the tree; `apply` knows the
tree and nothing of the formats. An edit names what its author wanted (insert these lines, replace
this block), so that a refusal can be told in the author's own terms.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

REGULAR = 0o100644
EXECUTABLE = 0o100755
SYMLINK = 0o120000
GITLINK = 0o160000


@dataclass(frozen=True, slots=True)
class File:
    """One entry of a tree: its bytes and its git mode; a gitlink has no content."""

    content: bytes
    mode: int = REGULAR


@dataclass(frozen=True, slots=True)
class InsertLines:
    """Put `text` before line `line` (1-based), or at the end of the file where it is None."""

    path: bytes
    text: bytes
    line: int | None = None


@dataclass(frozen=True, slots=True)
class ReplaceBlock:
    """Put `text` in the place of `block`; `line` picks the place that starts on that line.

    With `is_regex` the block is a pattern, every match is replaced and `text` is the template.
    """

    path: bytes
    block: bytes
    text: bytes
    line: int | None = None
    is_regex: bool = False


@dataclass(frozen=True, slots=True)
class DeleteBlock:
    """Take `block` out, byte for byte; a file that is not there has nothing to lose."""

    path: bytes
    block: bytes
    line: int | None = None
    is_regex: bool = False


@dataclass(frozen=True, slots=True)
class WriteFile:
    """Make the file exactly `content`, creating it if need be; an existing mode is kept."""

    path: bytes
    content: bytes


@dataclass(frozen=True, slots=True)
class DeleteFile:
    """Remove the file; one that is not there is already removed."""

    path: bytes


@dataclass(frozen=True, slots=True)
class Hunk:
    """One `@@` part of a unified diff, as the lines it expects and the lines it leaves.

    Lines keep their newline; one that is marked `\\ No newline at end of file` has none.
    `leading` and `trailing` count context lines; `patch_line` is where the header stands.
    """

    old_start: int
    new_start: int
    old: tuple[bytes, ...]
    new: tuple[bytes, ...]
    leading: int
    trailing: int
    patch_line: int


@dataclass(frozen=True, slots=True)
class FileDiff:
    """One file's part of a unified diff, in the terms of git's `apply.c`.

    `is_new` and `is_delete` are None where a diff without git's headers leaves them open. A mode
    of 0 says nothing. `is_binary` marks a part whose content is not text.
    """

    old_path: bytes | None
    new_path: bytes | None
    old_mode: int = 0
    new_mode: int = 0
    is_new: bool | None = False
    is_delete: bool | None = False
    is_rename: bool = False
    is_copy: bool = False
    is_binary: bool = False
    hunks: tuple[Hunk, ...] = ()
    patch_line: int = 1

    @property
    def path(self) -> bytes:
        """The path that the result has, or had."""
        return self.new_path or self.old_path or b""


PlanEdit = InsertLines | ReplaceBlock | DeleteBlock | WriteFile | DeleteFile
Edit = PlanEdit | FileDiff


@dataclass(frozen=True, slots=True)
class Patch:
    """The edits of a patch in their order; `summary` is what its author says it does."""

    format: str
    edits: tuple[Edit, ...]
    summary: str = ""


class EditStatus(enum.StrEnum):
    """What became of one edit; all but the first two are refusals."""

    APPLIED = "applied"
    NO_OP = "no_op"
    NOT_FOUND = "not_found"
    AMBIGUOUS = "ambiguous"
    STALE = "stale"
    CONFLICT = "conflict"
    FORBIDDEN_PATH = "forbidden_path"
    UNSUPPORTED = "unsupported"
    MALFORMED = "malformed"
    TOO_LARGE = "too_large"

    @property
    def is_refusal(self) -> bool:
        return self not in (EditStatus.APPLIED, EditStatus.NO_OP)


@dataclass(frozen=True, slots=True)
class EditReport:
    """What became of the edit at `index` (0-based); `line` is 1-based, in the file.

    `code`, `source` and `hint` are set for refusals and go into the finding.
    """

    index: int
    path: bytes
    status: EditStatus
    message: str
    line: int | None = None
    code: str = ""
    source: str | None = None
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class Changes:
    """What a patch makes of a tree: only paths that differ; None is a deleted file.

    `renames` maps a new path to the old one it took its content from.
    """

    files: Mapping[bytes, File | None]
    reports: tuple[EditReport, ...]
    renames: Mapping[bytes, bytes]


class EditRefused(Exception):
    """An edit cannot be made; it never leaves the package and ends as an `EditReport`."""

    def __init__(
        self,
        status: EditStatus,
        code: str,
        message: str,
        *,
        line: int | None = None,
        source: bytes | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.line = line
        self.source = source
        self.hint = hint
