"""One error tree; every error says what is wrong and what to do.

A bad candidate is a value (a `Verdict`), a broken world is one of these. `PatchError` is the one
kind that the engine turns into a verdict. Foreign exceptions are turned into these at the door
they came through, so a caller needs to catch `SandboxError` alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from sandbox_engine.verdict import CommitId, EditRecord, Finding


class SandboxError(Exception):
    """The root: `problem` is one sentence, `remedy` is what the reader can do about it."""

    def __init__(self, problem: str, *, remedy: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem}\n\nhint: {self.remedy}"


class UsageError(SandboxError):
    """What the caller asked for does not exist or makes no sense: a bad base, name or option."""


class ConfigError(UsageError):
    """A configuration file says something that cannot be meant."""


class RepositoryError(UsageError):
    """The folder is no repository, or one of a kind that cannot be worked on."""


class NoRepositoryError(RepositoryError):
    """The folder is in no repository at all."""


class NoCommitError(UsageError):
    """The repository has no commit yet."""


class PatchError(SandboxError):
    """The patch cannot become a tree; `findings` name every edit that stands in the way.

    `edits` tells what became of each edit, also of those that could be made.
    """

    def __init__(
        self,
        problem: str,
        *,
        remedy: str,
        findings: Sequence[Finding] = (),
        edits: Sequence[EditRecord] = (),
    ) -> None:
        super().__init__(problem, remedy=remedy)
        self.findings = tuple(findings)
        self.edits = tuple(edits)


class PatchSyntaxError(PatchError):
    """The text is not a patch of a known format."""


class PatchConflictError(PatchError):
    """The patch is well-formed but does not fit the tree it is applied to."""


class PatchPolicyError(PatchError):
    """The patch names a path, or makes a kind of entry, that is never allowed."""


class GitError(SandboxError):
    """A git command or libgit2 failed; `argv`, `code` and `stderr` tell how."""

    def __init__(
        self,
        problem: str,
        *,
        remedy: str,
        argv: Sequence[str] = (),
        code: int = 0,
        stderr: str = "",
    ) -> None:
        super().__init__(problem, remedy=remedy)
        self.argv = tuple(argv)
        self.code = code
        self.stderr = stderr


class CancelledError(SandboxError):
    """The caller has cancelled what it asked for; nothing was judged, and nothing is left."""


class SandboxBusyError(SandboxError):
    """Every slot, or a lock, stayed taken for as long as the caller was willing to wait."""


class CommandMissingError(SandboxError):
    """A program that is needed is not installed, or an interpreter lacks a package."""


class PreparationError(SandboxError):
    """A command of `setup` failed, or left what cannot be kept; `output` ends what it wrote."""

    def __init__(self, problem: str, *, remedy: str, output: str = "") -> None:
        super().__init__(problem, remedy=remedy)
        self.output = output


class IsolationError(SandboxError):
    """The isolation that was asked for cannot be had on this system."""


class DiskFullError(SandboxError):
    """The file system of the store, or of the repository, has no room left."""


class PromotionError(SandboxError):
    """The judged tree was not landed; the branch and the working files are as they were."""


class StaleBaseError(PromotionError):
    """The branch moved since the verdict, and what would land on it has not passed there."""


class BranchMovedError(StaleBaseError):
    """The branch moved while a promotion was under way; another look may help."""


class LocalChangesError(PromotionError):
    """A file that the change touches has edits of the user's that would be lost."""


class NoteError(SandboxError):
    """The judged tree landed as `commit`, and the note on it could not be written."""

    def __init__(self, problem: str, *, remedy: str, commit: CommitId) -> None:
        super().__init__(problem, remedy=remedy)
        self.commit = commit
