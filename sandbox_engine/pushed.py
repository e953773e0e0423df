"""What is about to be pushed, as git tells a hook, or a framework of hooks tells its own.

Each commit that a branch or a tag is to be at is judged beside what the other side has of it. See
githooks(5) for the lines of a pre-push hook, https://pre-commit.com/#pre-push for the variables.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from sandbox_engine import git
from sandbox_engine.errors import UsageError
from sandbox_engine.git import Repository
from sandbox_engine.verdict import CommitId

_FROM, _TO = "PRE_COMMIT_FROM_REF", "PRE_COMMIT_TO_REF"
_BRANCH, _REMOTE = "PRE_COMMIT_LOCAL_BRANCH", "PRE_COMMIT_REMOTE_NAME"


@dataclass(frozen=True, slots=True)
class Pushed:
    """A commit that is about to be at `name` elsewhere, and what it is judged beside.

    `base` is None where the other side has nothing of it: its first parent has to do.
    """

    name: str
    commit: CommitId
    base: CommitId | None


def read_pushed(repository: Repository, lines: str, remote: str) -> list[Pushed]:
    """Return what git tells a pre-push hook of `remote`: what is deleted there is left out.

    Raise UsageError for lines that are none of git's.
    """
    found = []
    for line in filter(None, lines.split("\n")):
        words = line.split(" ")
        if len(words) != 4:
            raise UsageError(
                f"`{line}` is no line that git gives to a pre-push hook",
                remedy="`sandbox-engine hook install --pre-push` installs a hook that calls this",
            )
        _, local, name, known = words
        if local.strip("0"):
            found.append(_pushed(repository, name, local, known, remote))
    return found


def pushed_by_framework(
    repository: Repository, environment: Mapping[str, str] | None = None
) -> list[Pushed]:
    """Return what pre-commit says is pushed, or is to be compared, if it says so."""
    environment = os.environ if environment is None else environment
    remote = environment.get(_REMOTE, "")
    wanted = environment.get(_TO) or (environment.get(_BRANCH) if remote else None)
    if not wanted:
        return []
    known = environment.get(_FROM, "")
    return [_pushed(repository, wanted, wanted, known, remote)]


def _pushed(repository: Repository, name: str, local: str, known: str, remote: str) -> Pushed:
    commit, _ = git.resolve_commit(repository, local)
    if known.strip("0"):
        try:
            return Pushed(name, commit, git.merge_base(repository, known, commit))
        except UsageError:
            # It was never fetched, or has nothing in common with what replaces it.
            pass
    return Pushed(name, commit, git.last_known(repository, commit, remote))
