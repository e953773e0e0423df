"""What is about to be pushed: which commits, and what each of them is judged beside.

A push says what the remote has. Where that is not known here, as for a new branch, it is the
nearest commit that one of the remote's branches is known to have; without one it is nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sandbox_engine import git
from sandbox_engine.errors import UsageError
from sandbox_engine.git import Repository
from sandbox_engine.verdict import CommitId

_PASSED_OVER = ("refs/notes/",)
_FROM, _TO = "PRE_COMMIT_FROM_REF", "PRE_COMMIT_TO_REF"
_BRANCH, _THEIRS = "PRE_COMMIT_LOCAL_BRANCH", "PRE_COMMIT_REMOTE_BRANCH"
_REMOTE = "PRE_COMMIT_REMOTE_NAME"


@dataclass(frozen=True, slots=True)
class Push:
    """`ref` of the remote is to become `tip`, judged beside `base`; None is beside nothing."""

    ref: str
    tip: CommitId
    base: CommitId | None

    @property
    def name(self) -> str:
        """The reference, as short as people call it."""
        return self.ref.removeprefix("refs/heads/").removeprefix("refs/tags/")


def pushes(repository: Repository, remote: str, lines: str) -> tuple[Push, ...]:
    """Return what is to be judged of the `lines` that git tells a pre-push hook.

    What is deleted, is no commit, or is known to the remote is passed over, and so are notes.
    Raise UsageError for lines that git does not write.
    """
    found: dict[tuple[CommitId, CommitId | None], Push] = {}
    for line in lines.splitlines():
        words = line.rsplit(" ", 3)
        if len(words) != 4:
            raise UsageError(
                f"`{line}` is not what git tells a pre-push hook",
                remedy="give what the hook was given as standard input",
            )
        _, local, ref, theirs = words
        tip = _commit(repository, local)
        if tip is None or ref.startswith(_PASSED_OVER):
            continue
        base = _commit(repository, theirs) or _known(repository, remote, tip)
        if base != tip:
            found.setdefault((tip, base), Push(ref, tip, base))
    return tuple(found.values())


def push_of_pre_commit(
    repository: Repository, environment: Mapping[str, str] | None = None
) -> Push | None:
    """Return what pre-commit says that is to be judged, None where it speaks of no push.

    In its pre-push stage, and for `--from-ref` and `--to-ref`, it names two revisions, or what is
    pushed alone where the remote has nothing of it. Raise UsageError for what is not here.
    """
    said = os.environ if environment is None else environment
    wanted = said.get(_TO) or said.get(_BRANCH)
    if not wanted:
        return None
    tip = _required(repository, wanted)
    if said.get(_FROM):
        old = _required(repository, said[_FROM])
        base = _merge_base(repository, old, tip) or old
        return Push(said.get(_THEIRS) or wanted, tip, base)
    return Push(said.get(_THEIRS) or wanted, tip, _known(repository, said.get(_REMOTE, ""), tip))


def _required(repository: Repository, revision: str) -> CommitId:
    commit = _commit(repository, revision)
    if commit is None:
        raise UsageError(
            f"pre-commit names `{revision}`, which is no commit of the repository",
            remedy="`git fetch` may bring it",
        )
    return commit


def _commit(repository: Repository, revision: str) -> CommitId | None:
    """Return the commit that `revision` names; None for none, which an id of zeros is too."""
    question = ["rev-parse", "--quiet", "--verify", f"{revision}^{{commit}}"]
    answer = _ask(repository, question, accept=(0, 1, 128)).strip()
    return CommitId(answer) if answer else None


def _merge_base(repository: Repository, one: CommitId, other: CommitId) -> CommitId | None:
    lines = _ask(repository, ["merge-base", one, other], accept=(0, 1)).split()
    return CommitId(lines[0]) if lines else None


def _known(repository: Repository, remote: str, tip: CommitId) -> CommitId | None:
    """Return the nearest commit of `tip` that the remote has, as far as that is known here.

    For a remote that nothing is known of, such as a bare address, those of all others count.
    """
    references = _ask(
        repository, ["for-each-ref", "--format=%(objectname) %(refname)", "refs/remotes/"]
    ).splitlines()
    own = [line for line in references if f" refs/remotes/{remote}/" in line]
    excluded = {line.split(" ")[0] for line in own or references}
    if not excluded:
        return None
    new = _new(repository, tip, excluded)
    if not any(line == tip for line in new):
        return tip
    bounds = [line[1:] for line in new if line.startswith("-")]
    if len(bounds) > 1:
        bounds = _ask(repository, ["merge-base", "--independent", *bounds]).split()
    return CommitId(bounds[0]) if bounds else None


def _new(repository: Repository, tip: CommitId, excluded: Iterable[str]) -> list[str]:
    """Return the commits that are in `tip` alone, and with a `-` those that they begin at."""
    revisions = "".join(f"{one}\n" for one in (tip, *(f"^{one}" for one in sorted(excluded))))
    question = ["rev-list", "--boundary", "--topo-order", "--ignore-missing", "--stdin"]
    return _ask(repository, question, input=revisions).splitlines()


def _ask(
    repository: Repository,
    question: list[str],
    *,
    accept: tuple[int, ...] = (0,),
    input: str = "",
) -> str:
    output = git.run_git(
        [f"--git-dir={repository.git_dir}", *question],
        cwd=repository.git_dir,
        input=input.encode(),
        accept=accept,
    )
    return os.fsdecode(output)
