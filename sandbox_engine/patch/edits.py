"""What a patch asks for, as values: files, edits, hunks, reports.

A parser for a format returns a `Patch` of these and knows nothing of the tree; `apply` knows the
tree and nothing of the formats. An edit names what its author wanted (insert these lines, replace
this block), so that a refusal can be told in the author's own terms.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from sandbox_engine.patch.paths import show
from sandbox_engine.verdict import EditRecord, Finding

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
    patch_line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class ReplaceBlock:
    """Put `text` in the place of `block`; `line` picks the place that starts on that line.

    The block is sought as bytes, anywhere in a line; if that finds nothing and it is made of whole
    lines, down the rungs of `Rung`. The file must be there. With `is_regex` the block is a
    pattern, every match is replaced, `text` is the template and there are no rungs.
    """

    path: bytes
    block: bytes
    text: bytes
    line: int | None = None
    is_regex: bool = False
    patch_line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class DeleteBlock:
    """Take `block` out, sought as `ReplaceBlock` seeks; a missing file has nothing to lose."""

    path: bytes
    block: bytes
    line: int | None = None
    is_regex: bool = False


@dataclass(frozen=True, slots=True)
class WriteFile:
    """Make the file exactly `content`, creating it if need be; an existing mode is kept."""

    path: bytes
    content: bytes
    patch_line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class CreateFile:
    """Make a new file of exactly `content`.

    Where there is a file already: with the same content the edit is already applied; with another
    it is refused (`file-exists`), unless `may_exist`, which overwrites it. `mode` None keeps the
    mode of what is overwritten and is REGULAR otherwise; a given one is set.
    """

    path: bytes
    content: bytes
    mode: int | None = None
    may_exist: bool = False
    patch_line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class DeleteFile:
    """Remove the file, link included; one that is not there is a no-op.

    With `must_exist` a missing file is refused (`file-missing`).
    """

    path: bytes
    must_exist: bool = False
    patch_line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Section:
    """Lines to be found and the lines that take their place, wherever the former stand uniquely.

    All lines are without line endings: a line ending is no part of what is sought, new lines get
    the file's own, and lines that `before` and `after` share stay as the file has them. Sections
    of a file are sought in order, each after the end of the one before. Each of `anchors` is a
    line (compared without white space around it) that must come, in order, before `before`; the
    search starts after the last of them. With anchors the first place after them wins; without, a
    second place is a refusal. With `at_end` a place that ends the file wins over others. The one
    place of the text elsewhere (further up, or not at the end) is taken as `moved`. An empty
    `before` inserts `after`: right after the last anchor, or at the end of the file where there
    is none. One that `is_skipped` is sought like the others, so that those after it are sought
    where they would be, and its lines stay as they are.
    """

    before: tuple[bytes, ...]
    after: tuple[bytes, ...]
    anchors: tuple[bytes, ...] = ()
    at_end: bool = False
    patch_line: int = field(default=0, compare=False)
    is_skipped: bool = False


@dataclass(frozen=True, slots=True)
class SectionedUpdate:
    """Make every section in the file, then give it the name `move_to` if there is one.

    The file must be there and `move_to` must not. Without sections it is a plain rename. The mode
    stays. A file that is gone while `move_to` holds the sections' result is already applied.
    """

    path: bytes
    sections: tuple[Section, ...]
    move_to: bytes | None = None
    patch_line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Hunk:
    """One `@@` part of a unified diff, as the lines it expects and the lines it leaves.

    Lines keep their newline; one that is marked `\\ No newline at end of file` has none.
    `leading` and `trailing` count context lines; `patch_line` is where the header stands.
    `is_loose` marks one that git calls corrupt and whose lines were counted anew: its text must
    be in one place alone. A loose hunk without numbers has an `old_start` of -1. One that
    `is_skipped` is sought like the others, so that no other takes its place, and its lines stay
    as they are.
    """

    old_start: int
    new_start: int
    old: tuple[bytes, ...]
    new: tuple[bytes, ...]
    leading: int
    trailing: int
    patch_line: int
    is_loose: bool = False
    is_skipped: bool = False


@dataclass(frozen=True, slots=True)
class BinaryHunk:
    """New content of `size` bytes, or with `is_delta` a git delta of that size, deflated."""

    deflated: bytes
    size: int
    is_delta: bool = False


@dataclass(frozen=True, slots=True)
class FileDiff:
    """One file's part of a unified diff, in the terms of git's `apply.c`.

    `is_new` and `is_delete` are None where a diff without git's headers leaves them open. A mode
    of 0 says nothing. `is_binary` marks a part whose content is not text; it has a `binary` where
    the diff holds that content. `old_id` and `new_id` are what its `index` line says, in hex.
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
    binary: BinaryHunk | None = None
    old_id: bytes = b""
    new_id: bytes = b""

    @property
    def path(self) -> bytes:
        """The path that the result has, or had."""
        return self.new_path or self.old_path or b""


PlanEdit = (
    InsertLines | ReplaceBlock | DeleteBlock | WriteFile | CreateFile | DeleteFile | SectionedUpdate
)
Edit = PlanEdit | FileDiff


@dataclass(frozen=True, slots=True)
class CommitNote:
    """Who made the edits `first_edit` up to but not including `end_edit`, when, and why.

    `date` is ISO 8601 with an offset from UTC; `message` is the whole one, subject line first.
    """

    author_name: str
    author_email: str
    date: str
    message: str
    first_edit: int
    end_edit: int


@dataclass(frozen=True, slots=True)
class Patch:
    """The edits of a patch in their order; `summary` is what its author says it does.

    `commits` tells which edits came in which mail of a series. `doubts` are parts of the text that
    git would drop without a word: a patch whose `edits` fit is refused for them. `others` gives
    more readings of the text (as without what git demands, or with another number of folders
    stripped, which is `strip`); they are tried only where `edits` do not fit.
    """

    format: str
    edits: tuple[Edit, ...]
    summary: str = ""
    commits: tuple[CommitNote, ...] = ()
    doubts: tuple[Finding, ...] = field(default=(), compare=False)
    others: Callable[[], Iterable[Patch]] | None = field(default=None, compare=False, repr=False)
    strip: int = field(default=1, compare=False)


class Match(enum.StrEnum):
    """How far an edit may be from the file's text and still be made."""

    EXACT = "exact"
    DEFAULT = "default"
    FUZZY = "fuzzy"


class Rung(enum.StrEnum):
    """How the place of an edit was found; the first rung with exactly one place is taken.

    `EXACT` is the text itself, where it was said to be; `MOVED` the text itself elsewhere;
    `WHITESPACE` differs in trailing white space and line endings; `INDENTATION` is shifted as a
    whole, and so is what replaces it; `FUZZY` is similar text and only taken when asked for.
    """

    EXACT = "exact"
    MOVED = "moved"
    WHITESPACE = "whitespace"
    INDENTATION = "indentation"
    FUZZY = "fuzzy"


@dataclass(frozen=True, slots=True)
class Policy:
    """What a patch may touch beyond ordinary files; nothing unless it is allowed here.

    A link that is allowed must still point to inside the repository.
    """

    allow_symlinks: bool = False
    allow_gitlinks: bool = False
    allow_gitmodules: bool = False
    allow_gitattributes: bool = False


@dataclass(frozen=True, slots=True)
class Nearest:
    """The text of the file that is most like what was sought, with its 1-based lines.

    `diff` is a unified diff from what was sought to what the file holds; all texts are safe to
    show and capped. `similarity` is 1.0 for the same lines.
    """

    first_line: int
    last_line: int
    text: str
    diff: str
    similarity: float


class EditStatus(enum.StrEnum):
    """What became of one edit; all but the first three are refusals."""

    APPLIED = "applied"
    ALREADY_APPLIED = "already_applied"
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
        return self not in (EditStatus.APPLIED, EditStatus.ALREADY_APPLIED, EditStatus.NO_OP)


@dataclass(frozen=True, slots=True)
class EditReport:
    """What became of the edit at `index` (0-based); `line` is 1-based, in the file.

    `rung` is the lowest that a part of the edit took, None where nothing was sought. `code`,
    `source` and `hint` are set for refusals and go into the finding, as do `nearest` and
    `corrected`: the edit in its own format as it should have been, where that is certain.
    `is_beyond_git` tells that `git apply` would have refused this part of a diff.
    """

    index: int
    path: bytes
    status: EditStatus
    message: str
    line: int | None = None
    code: str = ""
    source: str | None = None
    hint: str | None = None
    rung: Rung | None = None
    nearest: Nearest | None = None
    corrected: str | None = None
    is_beyond_git: bool = False

    @property
    def record(self) -> EditRecord:
        """The report as a verdict tells it."""
        rung = None if self.rung is None else str(self.rung)
        path = show(self.path)
        return EditRecord(self.index, path, str(self.status), rung, self.line, self.message)


@dataclass(frozen=True, slots=True)
class Changes:
    """What a patch makes of a tree: only paths that differ; None is a deleted file.

    `renames` maps a new path to the old one it took its content from. `reading` is the reading of
    the patch that fitted.
    """

    files: Mapping[bytes, File | None]
    reports: tuple[EditReport, ...]
    renames: Mapping[bytes, bytes]
    reading: Patch

    @property
    def records(self) -> tuple[EditRecord, ...]:
        """What became of each edit, as a verdict tells it."""
        return tuple(report.record for report in self.reports)


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
        nearest: Nearest | None = None,
        corrected: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.line = line
        self.source = source
        self.hint = hint
        self.nearest = nearest
        self.corrected = corrected
