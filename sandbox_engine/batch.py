"""Many candidates, each judged by itself: which there are, and what becomes of each.

A candidate that cannot be judged for a broken world does not keep the others from it; a wrong way
of asking ends all of them, because it is wrong for each.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sandbox_engine.cancellation import Cancellation
from sandbox_engine.engine import NOTHING, Engine
from sandbox_engine.errors import CancelledError, SandboxError, UsageError
from sandbox_engine.patch import Match
from sandbox_engine.progress import Progress, Watch, unwatched
from sandbox_engine.pushed import Push
from sandbox_engine.reports import Judged
from sandbox_engine.verdict import CommitId, Outcome, Verdict

PATCH_SUFFIXES = (".patch", ".diff", ".mbox", ".eml")
"""What a folder of patches holds, and nothing else."""

_SUBJECT = 60


@dataclass(frozen=True, slots=True)
class Candidate:
    """One thing to judge, by the name it was given with: a patch on `base`, or a commit.

    `patch` is its text, or the path of a file or of a folder that is laid over the tree. Of a
    commit, `base` is what it is judged beside, None for its first parent.
    """

    name: str
    base: str | None
    patch: bytes | Path | None = None
    commit: CommitId | None = None


@dataclass(frozen=True, slots=True)
class Terms:
    """How all are judged; see `Engine.validate`. `diff` asks for what each changes."""

    strategy: str | None = None
    format: str | None = None
    match: str = Match.DEFAULT
    require: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    allow_test_changes: bool = False
    explain: bool = False
    use_cache: bool = True
    diff: bool = False


class Observer:
    """Is told what becomes of each candidate, by its number; this one does nothing with it.

    `ended` is called by the thread that asked, `begun` and `progress` by those that judge.
    """

    def begun(self, number: int) -> None: ...
    def progress(self, number: int, progress: Progress) -> None: ...
    def ended(self, number: int, judged: Judged) -> None: ...


def patches_in(name: str, base: str, *, format: str | None = None) -> list[Candidate]:
    """Return the candidates that a path stands for: itself, or each patch of a folder of patches.

    A folder is one of patches if it holds files whose names end in one of PATCH_SUFFIXES, and
    nothing else; with the format `files` it never is. Raise UsageError for a path that is none.
    """
    path = Path(name)
    if format != "files" and path.is_dir() and (found := _patches_below(path)):
        return [Candidate(str(patch), base, patch) for patch in found]
    if not path.exists():
        raise UsageError(
            f"the patch `{name}` cannot be read: No such file or directory",
            remedy="give the path of a file, or `-` for standard input",
        )
    return [Candidate(name, base, path)]


def _patches_below(folder: Path) -> list[Path]:
    try:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UsageError(
            f"the folder `{folder}` cannot be read: {error.strerror}",
            remedy="give a folder whose files you may read",
        ) from error
    is_all = all(path.is_file() and path.suffix in PATCH_SUFFIXES for path in entries)
    return entries if is_all else []


def branch(engine: Engine, name: str, base: str) -> list[Candidate]:
    """Return the candidate that is the branch `name`, beside where it left `base`.

    Raise UsageError where one of them is not there, or they have nothing in common.
    """
    return [Candidate(name, engine.merge_base(base, name), commit=engine.resolve(name))]


def commits(engine: Engine, revisions: str) -> list[Candidate]:
    """Return the commits of a range, each to be judged beside its first parent."""
    return [
        Candidate(f"{commit[:12]} {subject[:_SUBJECT]}".rstrip(), None, commit=commit)
        for commit, subject in engine.commits(revisions).items()
    ]


def pushed(engine: Engine, found: Sequence[Push]) -> list[Candidate]:
    """Return candidates of what is about to be pushed; what changes nothing is left out."""
    beside = [(one, one.base or NOTHING) for one in found]
    return [
        Candidate(one.name, base, commit=one.tip)
        for one, base in beside
        if engine.has_changes(one.tip, base)
    ]


def judge(
    engine: Engine,
    candidate: Candidate,
    terms: Terms,
    cancellation: Cancellation | None = None,
    watch: Watch = unwatched,
) -> Judged:
    """Return what becomes of `candidate`; raise what `Engine.validate` raises."""
    verdict = _verdict(engine, candidate, terms, cancellation, watch)
    diff = _diff(engine, candidate, terms, verdict) if terms.diff else None
    return Judged(candidate.name, verdict, diff=diff)


def _verdict(
    engine: Engine,
    candidate: Candidate,
    terms: Terms,
    cancellation: Cancellation | None,
    watch: Watch,
) -> Verdict:
    if candidate.commit is not None:
        return engine.validate_commit(
            candidate.commit,
            base=candidate.base,
            strategy=terms.strategy,
            require=terms.require,
            keep=terms.keep,
            allow_test_changes=terms.allow_test_changes,
            use_cache=terms.use_cache,
            cancellation=cancellation,
            watch=watch,
        )
    assert candidate.patch is not None and candidate.base is not None
    return engine.validate(
        candidate.patch,
        base=candidate.base,
        strategy=terms.strategy,
        format=terms.format,
        match=terms.match,
        require=terms.require,
        keep=terms.keep,
        allow_test_changes=terms.allow_test_changes,
        explain=terms.explain,
        use_cache=terms.use_cache,
        cancellation=cancellation,
        watch=watch,
    )


def _diff(engine: Engine, candidate: Candidate, terms: Terms, verdict: Verdict) -> bytes | None:
    if candidate.commit is not None:
        return engine.diff(verdict.base, candidate.commit)
    assert candidate.patch is not None
    if verdict.tree is None:
        # It does not fit, and the verdict says why.
        return None
    return engine.difference(
        candidate.patch, base=verdict.base, format=terms.format, match=terms.match
    )


@dataclass(frozen=True, slots=True)
class Batch:
    """What became of each candidate, in the order they were given; None where nothing did.

    `ended` is what ended it early, a KeyboardInterrupt or the like.
    """

    judged: tuple[Judged | None, ...]
    ended: BaseException | None = None

    @property
    def done(self) -> tuple[Judged, ...]:
        """What was judged."""
        return tuple(one for one in self.judged if one is not None)


def judge_all(
    candidates: Sequence[Candidate],
    judge_one: Callable[[Candidate, Cancellation, Watch], Judged],
    observer: Observer,
    *,
    jobs: int = 1,
    fail_fast: bool = False,
) -> Batch:
    """Judge all of `candidates`, `jobs` at a time, and return what became of each.

    With `fail_fast` the first that does not pass ends the others. An interrupt ends them too, and
    is returned. Raise UsageError as soon as one is asked for wrongly.
    """
    judged: list[Judged | None] = [None] * len(candidates)
    cancellation = Cancellation()

    def work(number: int) -> tuple[int, Judged]:
        cancellation.check()
        observer.begun(number)
        candidate = candidates[number]
        watch = functools.partial(observer.progress, number)
        try:
            return number, judge_one(candidate, cancellation, watch)
        except (UsageError, CancelledError):
            raise
        except SandboxError as error:
            return number, Judged(candidate.name, trouble=error.problem, hint=error.remedy)

    ended: BaseException | None = None
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(work, number) for number in range(len(candidates))]
        try:
            for future in concurrent.futures.as_completed(futures):
                with contextlib.suppress(CancelledError):
                    number, one = future.result()
                    judged[number] = one
                    observer.ended(number, one)
                    if fail_fast and one.outcome is not Outcome.PASSED:
                        cancellation.cancel()
        except (KeyboardInterrupt, SystemExit) as error:
            cancellation.cancel()
            ended = error
        except BaseException:
            cancellation.cancel()
            raise
    return Batch(tuple(judged), ended)
