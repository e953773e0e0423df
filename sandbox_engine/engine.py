"""The pipeline, and nothing but the pipeline: patch, tree, pre-check, sandbox, steps, verdict."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox_engine import carry, git, isolation, promotion, staged, store, tree
from sandbox_engine.cache import Cache, Key, Logged
from sandbox_engine.cancellation import Cancellation
from sandbox_engine.config import Config, load_config, required
from sandbox_engine.errors import (
    BranchMovedError,
    DiskFullError,
    GitError,
    NoCommitError,
    PatchError,
    PreparationError,
    PromotionError,
    SandboxBusyError,
    StaleBaseError,
    UsageError,
)
from sandbox_engine.explanation import explain_failure
from sandbox_engine.folder import read_folder
from sandbox_engine.isolation import Obstacle, View
from sandbox_engine.merge import merge_change
from sandbox_engine.patch import EditStatus, Match, Patch, parse_patch, patch_from_files
from sandbox_engine.precheck import precheck
from sandbox_engine.progress import Progress, Watch, unwatched
from sandbox_engine.receipt import Receipt
from sandbox_engine.recipe import Recipe
from sandbox_engine.run import Run
from sandbox_engine.sandbox import Setup
from sandbox_engine.slot_sandbox import SlotSandbox, open_slot
from sandbox_engine.tree import CandidateTree, build_tree
from sandbox_engine.verdict import (
    Author,
    Cause,
    CommitId,
    Finding,
    Outcome,
    StepResult,
    Tier,
    TreeId,
    Verdict,
    judge,
)
from sandbox_engine.version import VERSION

if TYPE_CHECKING:
    from sandbox_engine.analysis.comparison import FileChange
    from sandbox_engine.git import Repository

NOTHING = staged.EMPTY_TREE
"""The base of what is judged beside nothing at all."""

_PROMOTIONS = 3
"""How often a promotion is begun, when the branch moves each time before it has landed."""


class Engine:
    """Judges patches against one repository and lands those that passed.

    The repository's references, index, work tree and objects stay as they are until `promote`.
    An engine may be used from several threads; each validation leases a sandbox of its own.
    """

    def __init__(
        self,
        repo: str | os.PathLike[str] = ".",
        *,
        config: Config | None = None,
        cache_home: Path | None = None,
    ) -> None:
        """Open the repository that holds `repo`.

        `config` replaces what the repository's configuration files say. Raise RepositoryError
        for a folder without a usable repository, ConfigError for a configuration that cannot be
        meant. A promotion that was killed half-way is completed or undone here.
        """
        self.repository: Repository = git.find_repository(repo)
        self.config = load_config(self.repository.top) if config is None else config
        self._cache_home = cache_home
        self._open()
        promotion.recover(self.store)

    def _open(self) -> None:
        """Open the store, which somebody may have deleted: it is a cache."""
        self.store = store.open_store(self.repository, self._cache_home)
        self.cache = Cache(self.store.database)

    def validate(
        self,
        patch: str | bytes | Path,
        *,
        base: str = "HEAD",
        strategy: str | None = None,
        format: str | None = None,
        match: str = Match.DEFAULT,
        require: Sequence[str] = (),
        keep: Sequence[str] = (),
        allow_test_changes: bool = False,
        explain: bool = False,
        use_cache: bool = True,
        cancellation: Cancellation | None = None,
        watch: Watch = unwatched,
    ) -> Verdict:
        """Return the verdict on `patch` applied to `base`.

        `patch` is its text, or the path of a file, or of a folder that is laid over the tree.
        `match` says how far an edit may be from the file's text: `exact`, `default` or `fuzzy`.
        Beside what the strategy demands, each `fixed:NODEID` of `require` must be red without the
        patch and green with it, and every test whose node id is like one of `keep` be green.
        With `allow_test_changes` the patch may change what the tests prove. With `explain` a patch
        of several edits that FAILED is told which of them broke which tests. `watch` is told what
        is being done, in the thread that called.

        A patch that is wrong gives a verdict, never an exception. Raise UsageError for a base, a
        strategy or a match that does not exist, CancelledError when another thread cancels
        `cancellation`, and another SandboxError when the world is broken: no interpreter, no space,
        no free sandbox.
        """
        try:
            recipe = self.config.recipe(strategy).demanding(
                required(require), tuple(keep), allow_test_changes=allow_test_changes
            )
            return self._validate(
                patch,
                base,
                recipe,
                format,
                match,
                explain=explain,
                use_cache=use_cache,
                cancellation=cancellation,
                watch=watch,
            )
        except OSError as error:
            raise git.foreign_failure(error, "the patch cannot be judged") from error

    def validate_commit(
        self,
        commit: str,
        *,
        base: str | None = None,
        strategy: str | None = None,
        require: Sequence[str] = (),
        keep: Sequence[str] = (),
        allow_test_changes: bool = False,
        use_cache: bool = True,
        cancellation: Cancellation | None = None,
        watch: Watch = unwatched,
    ) -> Verdict:
        """Return the verdict on what `commit` holds, beside `base`.

        Without a base that is its first parent, or nothing for a commit that has none; NOTHING says
        so of any. What links, submodules and attributes it changes is judged as it is: it is in the
        repository already.
        The other arguments, and what is raised, are those of `validate`.
        """
        started = time.monotonic()
        recipe = self.config.recipe(strategy).demanding(
            required(require), tuple(keep), allow_test_changes=allow_test_changes
        )
        made = git.read_commit(self.repository, commit)
        base_commit, base_tree = self._beside(base or next(iter(made.parents), NOTHING))
        try:
            candidate = tree.candidate_of(self.store, base_commit, base_tree, made.tree)
            verdict = self._judge(
                candidate,
                recipe,
                made.message,
                Author(made.author_name, made.author_email, made.author_date),
                use_cache=use_cache,
                cancellation=cancellation,
                watch=watch,
            )
        except OSError as error:
            raise git.foreign_failure(error, "the commit cannot be judged") from error
        return self._given(verdict, started)

    def _beside(self, base: str) -> tuple[CommitId, TreeId]:
        if base == NOTHING:
            return staged.empty_base(self.store), staged.EMPTY_TREE
        return git.resolve_commit(self.repository, base)

    def has_changes(self, commit: str, base: str) -> bool:
        """Tell whether the tree of a commit is another one than that of `base`, or NOTHING."""
        return git.resolve_commit(self.repository, commit)[1] != self._beside(base)[1]

    def commits(self, revisions: str) -> dict[CommitId, str]:
        """Return the commits of a range such as `main..topic` and their subjects, oldest first.

        Raise UsageError for a range that names none, or is none.
        """
        return git.list_commits(self.repository, revisions)

    def resolve(self, revision: str) -> CommitId:
        """Return the commit that `revision` names; raise UsageError where there is none."""
        return git.resolve_commit(self.repository, revision)[0]

    def merge_base(self, one: str, other: str) -> CommitId:
        """Return the best common ancestor of two commits; raise UsageError where there is none."""
        return git.merge_base(self.repository, one, other)

    def validate_staged(
        self,
        *,
        index: Path | None = None,
        strategy: str | None = None,
        allow_test_changes: bool = False,
        use_cache: bool = True,
    ) -> Verdict | None:
        """Return the verdict on what a commit would hold now, None if that changes nothing.

        It is judged beside HEAD, or beside nothing where there is no commit yet; the other
        arguments are those of `validate`. `index` is the one that git names to a hook, None the
        work tree's own. Index, work tree and objects of the user stay as they are. Raise UsageError
        while files are unmerged.
        """
        started = time.monotonic()
        recipe = self.config.recipe(strategy).demanding(
            (), (), allow_test_changes=allow_test_changes
        )
        tree_id = staged.staged_tree(self.store, index)
        try:
            commit, base_tree = git.resolve_commit(self.repository, "HEAD")
        except NoCommitError:
            commit, base_tree = staged.empty_base(self.store), staged.EMPTY_TREE
        if tree_id == base_tree:
            return None
        try:
            candidate = tree.candidate_of(self.store, commit, base_tree, tree_id)
            verdict = self._judge(candidate, recipe, "", None, use_cache=use_cache)
        except OSError as error:
            raise git.foreign_failure(error, "what is staged cannot be judged") from error
        return self._given(verdict, started)

    def analyse(
        self,
        patch: str | bytes | Path,
        *,
        base: str = "HEAD",
        format: str | None = None,
        match: str = Match.DEFAULT,
    ) -> tuple[FileChange, ...]:
        """Return what `patch` does to the size and complexity of the Python files of `base`.

        Nothing is checked out and no code is run; the arguments are those of `validate`. Raise
        PatchError for a patch that does not apply, UsageError for a base that does not exist.
        """
        from sandbox_engine.analysis.comparison import compare_candidate

        commit, base_tree = git.resolve_commit(self.repository, base)
        edits = _edits_of(patch, format)
        candidate = build_tree(self.store, commit, base_tree, edits, match=_match_of(match))
        return compare_candidate(candidate, cache_home=self._cache_home)

    def _validate(
        self,
        patch: str | bytes | Path,
        base: str,
        recipe: Recipe,
        format: str | None,
        match: str,
        *,
        explain: bool,
        use_cache: bool,
        cancellation: Cancellation | None,
        watch: Watch,
    ) -> Verdict:
        started = time.monotonic()
        watch(Progress("the patch"))
        if not self.store.database.parent.is_dir() or not self.store.git_dir.is_dir():
            self._open()
        commit, base_tree = git.resolve_commit(self.repository, base)
        try:
            edits = _edits_of(patch, format)
            candidate = build_tree(self.store, commit, base_tree, edits, match=_match_of(match))
        except PatchError as error:
            blank = Verdict(Outcome.REJECTED, recipe.name, commit, base_tree, edits=error.edits)
            verdict = _rejected(blank, error.findings, error.problem, error.remedy)
        else:
            verdict = self._judge(
                candidate,
                recipe,
                edits.summary,
                _author_of(edits),
                use_cache=use_cache,
                cancellation=cancellation,
                watch=watch,
            )
            if explain:
                run = Run(
                    self.store,
                    self.cache,
                    self.config,
                    candidate,
                    recipe,
                    cancellation=cancellation,
                    watch=watch,
                )
                explanation = explain_failure(self.store, run, verdict, _match_of(match))
                verdict = dataclasses.replace(verdict, explanation=explanation)
        return self._given(verdict, started)

    def _judge(
        self,
        candidate: CandidateTree,
        recipe: Recipe,
        summary: str,
        author: Author | None,
        *,
        use_cache: bool,
        cancellation: Cancellation | None = None,
        watch: Watch = unwatched,
    ) -> Verdict:
        run = Run(
            self.store,
            self.cache,
            self.config,
            candidate,
            recipe,
            use_cache=use_cache,
            cancellation=cancellation,
            watch=watch,
        )
        blank = Verdict(
            Outcome.REJECTED,
            recipe.name,
            candidate.base,
            candidate.base_tree,
            candidate.id,
            edits=candidate.edits,
            changed_paths=candidate.changed_paths,
            summary=summary,
            author=author,
        )
        if not candidate.after:
            if any(edit.status == EditStatus.ALREADY_APPLIED for edit in candidate.edits):
                return dataclasses.replace(
                    blank,
                    outcome=Outcome.INCONCLUSIVE,
                    reason="the patch is applied already: it changes nothing, so nothing was run",
                    cause=Cause.UNPROVED,
                )
            return _rejected(
                blank,
                (),
                "the patch changes nothing",
                "check that it is not empty",
            )
        if run.is_isolated_less_than(least := self.config.min_isolation):
            return dataclasses.replace(
                blank,
                outcome=Outcome.INCONCLUSIVE,
                reason=f"nothing was run: the isolation here is `{run.tier}`, and "
                f"`min_isolation` asks for `{least}`",
                hint="`sandbox-engine doctor` tells what is missing and how to get it",
                isolation=run.tier,
                cause=Cause.INFRA,
            )
        key = Key(candidate.id, candidate.base_tree, recipe.fingerprint(), run.environment)
        if use_cache and (known := self._known(key)):
            verdict = dataclasses.replace(
                known, strategy=recipe.name, base=candidate.base, summary=summary, author=author,
                edits=candidate.edits,
            )  # fmt: skip
            if (known.summary, known.author) != (summary, author):
                # Whoever promotes by receipt promotes what was validated last.
                self._keep(key, verdict)
            verdict = dataclasses.replace(verdict, is_cached=True)
        elif findings := precheck(candidate, recipe.policy, lambda: run.interpreter):
            return _rejected(blank, findings, findings[0].message, findings[0].hint)
        else:
            try:
                results = run.steps()
            except PreparationError as error:
                results = (_unprepared(error),)
            judged = judge(results)
            verdict = dataclasses.replace(
                blank, **judged._asdict(), steps=results,
                isolation=run.tier, openings=run.openings,
                environment=run.environment, test_control=run.test_control(results),
                receipt=run.receipt(results) if judged.outcome is Outcome.PASSED else None,
            )  # fmt: skip
            self._keep(key, verdict)
        if verdict.outcome is Outcome.PASSED and not store.is_kept(self.store, candidate.id):
            with store.in_use(self.store):
                tree.write_tree(self.store, candidate)
                commit = store.commit_candidate(self.store, candidate.base, candidate.id)
                store.keep_passed(self.store, candidate.id, commit)
        return verdict

    def _given(self, verdict: Verdict, started: float) -> Verdict:
        """Return a verdict as it is given to whoever asked: timed, and in the log."""
        elapsed_s = round(time.monotonic() - started, 6)
        verdict = dataclasses.replace(verdict, engine_version=VERSION, elapsed_s=elapsed_s)
        with contextlib.suppress(DiskFullError, SandboxBusyError):
            # It is right even if nobody can look back at it.
            self.cache.log(verdict)
        return verdict

    def _known(self, key: Key) -> Verdict | None:
        """Return the verdict kept for `key`; one that PASSED without a receipt is not believed."""
        known = self.cache.find(key)
        is_bare = known and known.outcome is Outcome.PASSED and known.receipt is None
        return None if is_bare else known

    def _keep(self, key: Key, verdict: Verdict) -> None:
        with contextlib.suppress(DiskFullError):
            # It is right even if it cannot be remembered.
            self.cache.keep(key, verdict)

    def verdict_of(self, receipt: Receipt) -> Verdict:
        """Return the verdict that `receipt` was given with.

        Raise PromotionError when it is not kept: it was forgotten, or never given here.
        """
        known = self.cache.find_receipt(receipt.digest)
        if known is None:
            raise PromotionError(
                f"no verdict with the receipt {receipt.digest[:12]} is kept here",
                remedy="validate the patch again: the cache has forgotten it, or never had it",
            )
        return dataclasses.replace(known, receipt=receipt)

    def log(self, most: int = 20) -> list[Logged]:
        """Return what verdicts were given last, the newest first; older ones are forgotten."""
        return self.cache.logged(most)

    def recall(self, name: str = "") -> Verdict:
        """Return a verdict of the log: the last one, or that whose id, tree or receipt is `name`.

        The first few digits are enough. Raise UsageError where there is none, or several ids fit.
        """
        if not name and (last := self.cache.logged(1)):
            name = last[0].id
        found = self.cache.find_logged(name) if name else []
        by_id = [(id, verdict) for id, verdict in found if id.startswith(name)]
        if len(by_id) > 1:
            raise UsageError(
                f"`{name}` is the beginning of {len(by_id)} verdicts' ids",
                remedy=f"give more of it: {', '.join(id for id, _ in by_id[:5])}",
            )
        if not found:
            what = f"with `{name}`" if name else "yet"
            raise UsageError(
                f"there is no verdict {what}", remedy="`sandbox-engine log` lists those there are"
            )
        return (by_id or found)[0][1]

    def promote(
        self,
        verdict: Verdict,
        *,
        branch: str,
        message: str | None = None,
        hooks: bool = True,
        sign: bool | None = None,
        note: bool = False,
    ) -> CommitId:
        """Land exactly a judged tree as one commit on `branch`, and return the commit.

        It is the verdict's own tree while the branch is at the verdict's base. On a branch that has
        moved the change is merged in memory, and lands if the merged tree has passed too: it is
        validated here unless that is known. StaleBaseError says why not.

        Where the branch is checked out, the files that change are written, and LocalChangesError is
        raised when one of them has edits; every other file stays as it is. The user's identity,
        commit hooks and signing (`sign`: None means as configured) are honoured. With `note` the
        receipt of what landed is noted on the commit, in `refs/notes/sandbox-engine`.

        After any error nothing has moved, but for NoteError: the commit landed, the note did not.
        """
        receipt = promotion.proof_of(self.store, verdict)
        text = next(filter(str.strip, (message or "", verdict.summary)), "Apply a validated patch")

        def land() -> CommitId:
            current = self._on_tip(verdict, receipt, branch)
            making = promotion.Making(
                text,
                lambda: self._lease(current),
                verdict.author,
                hooks=hooks,
                sign=sign,
                note=note,
            )
            return promotion.promote(self.store, current, branch, making)

        for _ in range(_PROMOTIONS - 1):
            with contextlib.suppress(BranchMovedError):
                return land()
        return land()

    def withdraw(self, commit: str, *, branch: str) -> CommitId:
        """Take the promoted `commit` off the tip of `branch` again, and return what is the tip now.

        Only the branch and the files of the commit move, together or not at all: see `promote`.
        Raise StaleBaseError where the branch has moved on, LocalChangesError where one of the
        files has edits by now, UsageError for a commit that does not exist.
        """
        known, _ = git.resolve_commit(self.repository, commit)
        return promotion.withdraw(self.store, branch, known)

    def require_branch(self, branch: str | None = None) -> str:
        """Return the name of `branch`, made where HEAD is if it does not exist.

        Without a name it is the branch that is checked out. Raise UsageError where there is none,
        or `branch` cannot be one.
        """
        return promotion.require_branch(self.store, branch)

    def tip(self, branch: str) -> CommitId:
        """Return the commit that `branch` is at; raise UsageError if it does not exist."""
        return git.resolve_commit(self.repository, f"refs/heads/{branch}")[0]

    def parent(self, commit: str) -> CommitId:
        """Return the parent of a commit that a promotion made; raise PromotionError for another."""
        return promotion.only_parent(self.store, CommitId(commit))

    def find_landed(self, verdict: Verdict, *, branch: str) -> CommitId | None:
        """Return the commit that landed what was judged on `branch`, None if none did.

        Whoever was interrupted during `promote` learns so whether it is done. Raise StaleBaseError
        for a branch that does not exist.
        """
        return promotion.find_landed(self.store, verdict, branch)

    def diff(self, before: str, after: str) -> bytes:
        """Return what is different in the tree or commit `after`, as a patch in git's format.

        Both are ids, such as a verdict's `base` and `tree`; nothing is looked up in the
        repository's references. Raise UsageError for one that is not there: the tree of a patch
        that was REJECTED never came to be.
        """
        try:
            return git.run_store_git(
                self.store.git_dir,
                ["diff-tree", "-p", "--binary", "--full-index", before, after, "--"],
            )
        except GitError as error:
            raise UsageError(
                f"`{before}` and `{after}` cannot be compared: {error.problem}",
                remedy="give the ids of two trees or commits that exist",
            ) from error

    def diff_of(self, verdict: Verdict) -> bytes | None:
        """Return what was judged as a patch in git's format; None where it is not kept."""
        if verdict.tree is None:
            return None
        try:
            return self.diff(verdict.base, verdict.tree)
        except UsageError:
            # A tree that did not pass is nobody's, and garbage collection may have taken it.
            return None

    def difference(
        self,
        patch: str | bytes | Path,
        *,
        base: str = "HEAD",
        format: str | None = None,
        match: str = Match.DEFAULT,
    ) -> bytes:
        """Return what `patch` changes of `base`, as a patch in git's format.

        Raise PatchError for a patch that does not apply, UsageError for a base that does not exist.
        """
        commit, base_tree = git.resolve_commit(self.repository, base)
        edits = _edits_of(patch, format)
        candidate = build_tree(self.store, commit, base_tree, edits, match=_match_of(match))
        tree.write_tree(self.store, candidate)
        return self.diff(commit, candidate.id)

    def isolation_obstacle(self, least: Tier = Tier.FULL) -> Obstacle | None:
        """Return what keeps runs from being isolated at least as `least`, None if they can be."""
        return isolation.obstacle_to(least, self.config.wanted_tier, self.cache, self.store.folder)

    def _on_tip(self, verdict: Verdict, receipt: Receipt, branch: str) -> Verdict:
        """Return the verdict to promote: `verdict`, or that on its change where `branch` is now."""
        tip = promotion.find_tip(self.store, branch, verdict.base)
        if tip == verdict.base:
            return verdict
        try:
            recipe = self.config.recipe_of(receipt)
        except UsageError as error:
            raise _changed_recipe(receipt, branch) from error
        if recipe.fingerprint() != receipt.recipe:
            raise _changed_recipe(receipt, branch)
        candidate = merge_change(self.store, receipt, branch, tip)
        try:
            judged = self._judge(candidate, recipe, verdict.summary, verdict.author, use_cache=True)
        except OSError as error:
            raise git.foreign_failure(error, "the merged change cannot be judged") from error
        if judged.outcome is not Outcome.PASSED:
            raise StaleBaseError(
                f"`{branch}` moved to {tip[:12]}, and there the change is {judged.outcome}: "
                f"{judged.reason}",
                remedy=f"make the patch pass on `{branch}`, and validate it with `{branch}` as "
                "its base",
            )
        return judged

    def _lease(self, verdict: Verdict) -> contextlib.AbstractContextManager[SlotSandbox]:
        """Lease a worktree that holds the judged tree, for the commit's hooks.

        Hooks are the user's own programs and work on the user's repository: no tier is for them.
        """
        assert verdict.tree is not None
        commit = store.commit_candidate(self.store, verdict.base, verdict.tree)
        setup = Setup(
            Tier.NONE,
            View(str(self.repository.top)),
            carried=carry.find_carried(self.repository, self.config.carry),
            slots=self.config.slots,
            wait_s=self.config.lease_wait_s,
        )
        return open_slot(self.store, commit, setup)


def _unprepared(error: PreparationError) -> StepResult:
    return StepResult(
        "setup",
        Outcome.INCONCLUSIVE,
        reason=error.problem,
        hint=error.remedy,
        output=error.output,
        recurs=False,
        cause=Cause.INFRA,
    )


def _changed_recipe(receipt: Receipt, branch: str) -> StaleBaseError:
    return StaleBaseError(
        f"`{branch}` moved, and the strategy `{receipt.strategy}` is no longer what the patch "
        "passed",
        remedy=f"validate the patch again with `{branch}` as its base",
    )


def _edits_of(patch: str | bytes | Path, format: str | None) -> Patch:
    if not isinstance(patch, Path) or not patch.is_dir():
        return parse_patch(_text_of(patch), format=format)
    if format not in (None, "files"):
        raise UsageError(
            f"`{patch}` is a folder, not a patch of format `{format}`",
            remedy="name a file, or leave the format out",
        )
    folder = read_folder(patch)
    return patch_from_files(folder.files, frozenset(folder.executable))


def _author_of(edits: Patch) -> Author | None:
    """Return who wrote the mails of a patch, at the time of the last; None where they differ."""
    authors = {(note.author_name, note.author_email) for note in edits.commits}
    if len(authors) != 1:
        return None
    return Author(*authors.pop(), edits.commits[-1].date)


def _match_of(name: str) -> Match:
    try:
        return Match(name)
    except ValueError as error:
        raise UsageError(
            f"there is no match `{name}`", remedy=f"use one of: {', '.join(Match)}"
        ) from error


def _text_of(patch: str | bytes | Path) -> bytes:
    if isinstance(patch, Path):
        try:
            return patch.read_bytes()
        except OSError as error:
            raise UsageError(
                f"the patch `{patch}` cannot be read: {error.strerror}",
                remedy="give the path of a file that you may read",
            ) from error
    return patch.encode("utf-8", "surrogateescape") if isinstance(patch, str) else patch


def _rejected(
    blank: Verdict, findings: tuple[Finding, ...], reason: str, hint: str | None
) -> Verdict:
    return dataclasses.replace(
        blank, outcome=Outcome.REJECTED, findings=findings, reason=reason, hint=hint
    )
