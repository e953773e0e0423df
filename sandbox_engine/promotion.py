"""Promotion: the tree that passed becomes one commit on a branch of the user's.

The branch's reference is locked by a prepared git transaction that checks its old value; where the
branch is checked out, `git read-tree -m -u` then writes the files that change, refusing all when
one of them has edits; then the transaction commits. So the reference and the files move together
or not at all, and every other file and index entry stays the user's
(docs/adr/0004-promotion-by-transaction.md).

A journal in the store is there while files are written. One that is found says that a promotion
was killed: the next engine undoes what was written, unless the branch has moved to the new commit,
for then all had been done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

from sandbox_engine import disk, git, process, store, worktrees
from sandbox_engine.errors import (
    BranchMovedError,
    GitError,
    LocalChangesError,
    NoteError,
    PromotionError,
    SandboxBusyError,
    SandboxError,
    StaleBaseError,
    UsageError,
)
from sandbox_engine.receipt import Receipt
from sandbox_engine.slot_sandbox import SlotSandbox
from sandbox_engine.store import Store
from sandbox_engine.verdict import Author, CommitId, Outcome, TreeId, Verdict
from sandbox_engine.worktrees import Change, Place

NOTES = "refs/notes/sandbox-engine"
"""Where receipts are noted on the commits that landed."""

_HOOK_S = 600.0
_LOCK_SETTLES_S = 1.0
_LOCK_IS_OURS_S = 5.0
_WRITING_S = 60.0
_WITHOUT_OBJECT = (b"", b"000000", b"160000")
"""Modes of what is gone, and of submodules, whose commits are not ours to bring."""
_SEARCHED = 1000
"""Among so many commits one that has landed is looked for."""


@dataclass(frozen=True, slots=True)
class _Journal:
    """What is being done: `reference`, and with it the files of `work_tree`, go to `new`.

    `is_writing` says that files may have been written; before, only locks may have been left.
    `work_tree` is "" where the branch is not checked out.
    """

    reference: str
    old: str
    new: str
    work_tree: str
    git_dir: str
    started_s: float
    is_writing: bool = False


@dataclass(frozen=True, slots=True)
class Making:
    """How the commit is made: `sandbox` leases one that holds the judged tree, for the hooks.

    `author` is who wrote the patch, None for the user. With `note` the receipt is noted on the
    commit.
    """

    message: str
    sandbox: Callable[[], AbstractContextManager[SlotSandbox]]
    author: Author | None = None
    hooks: bool = True
    sign: bool | None = None
    note: bool = False


def promote(kept: Store, verdict: Verdict, branch: str, making: Making) -> CommitId:
    """Land exactly the tree of `verdict` on `branch` and return the new commit.

    Raise PromotionError, StaleBaseError or LocalChangesError with nothing moved, BranchMovedError
    where the branch is not, or no longer, at the verdict's base. Raise NoteError when it has
    landed and only its note could not be written.
    """
    receipt = proof_of(kept, verdict)
    tree = TreeId(receipt.tree)
    reference = worktrees.resolve_branch(kept, _reference(branch))
    with kept.locked("promotion") as held:
        _recover(kept, held)
        _refuse_moved(kept, branch, verdict.base)
        place = worktrees.find_place(kept, reference, held)
        if place.is_checked_out:
            worktrees.refuse_unfinished(place, reference)
            worktrees.refuse_local_changes(place, verdict.base, tree, _spare_index(kept))
        commit = _commit(kept, place, verdict.base, tree, making)
        _land(kept, place, reference, verdict.base, commit, log="sandbox-engine: promote")
    if making.hooks:
        # It has landed: git itself does not mind how this hook ends.
        with contextlib.suppress(SandboxError):
            _run_hook(dataclasses.replace(place, lock=None), "post-commit", [])
    if making.note:
        _write_note(kept, branch, commit, receipt)
    return commit


def withdraw(kept: Store, branch: str, commit: CommitId) -> CommitId:
    """Move `branch` from `commit`, which is its tip, back to its parent, and return that.

    The files follow where the branch is checked out, as in a promotion. Raise StaleBaseError when
    the branch is elsewhere, PromotionError for a commit without exactly one parent, and
    LocalChangesError when a file that would change has edits; nothing has moved then.
    """
    reference = worktrees.resolve_branch(kept, _reference(branch))
    parent = only_parent(kept, commit)
    with kept.locked("promotion") as held:
        _recover(kept, held)
        tip = find_tip(kept, branch, commit)
        if tip != commit:
            raise StaleBaseError(
                f"`{branch}` is at {tip[:12]}, so {commit[:12]} cannot be taken off it",
                remedy=f"`git revert {commit[:12]}` undoes it below later commits",
            )
        place = worktrees.find_place(kept, reference, held)
        if place.is_checked_out:
            worktrees.refuse_unfinished(place, reference)
            worktrees.refuse_local_changes(place, commit, parent, _spare_index(kept))
        _land(kept, place, reference, commit, parent, log="sandbox-engine: withdraw")
    return parent


def require_branch(kept: Store, branch: str | None) -> str:
    """Return the name of `branch`, which is made where HEAD is if it does not exist.

    Without a name it is the branch that is checked out. Raise UsageError where there is none, for
    what is no name of a branch, and where no commit is.
    """
    repository = kept.repository
    commit, _ = git.resolve_commit(repository, "HEAD")
    if branch is None:
        reference = worktrees.resolve_branch(kept, "HEAD")
        if reference == "HEAD":
            raise UsageError(
                "no branch is checked out, so there is none to land on",
                remedy="name one, or check one out: `git switch main`",
            )
        return reference.removeprefix("refs/heads/")
    reference = _reference(branch)
    if _tip(kept, reference) is None:
        # Git's own commands would take these for something else.
        if reference.removeprefix("refs/heads/").startswith("-") or reference.endswith("/HEAD"):
            raise UsageError(f"{branch!r} is no name for a branch", remedy="use another one")
        try:
            git.run_git(
                [
                    f"--git-dir={repository.git_dir}",
                    *("update-ref", "-m", "sandbox-engine: branch", reference, commit, "0" * 40),
                ]
            )
        except GitError as error:
            raise UsageError(
                f"the branch `{branch}` cannot be made: {error.problem}",
                remedy="name another one, or an existing one",
            ) from error
    return reference.removeprefix("refs/heads/")


def find_landed(kept: Store, verdict: Verdict, branch: str) -> CommitId | None:
    """Return the newest commit of `branch` since the verdict's base that makes the same change.

    A change is known by its `git patch-id`, so one that was merged on the way is found too.
    """
    tip = find_tip(kept, branch, verdict.base)
    if verdict.tree is None or tip == verdict.base:
        return None
    git_dir = f"--git-dir={kept.repository.git_dir}"
    listed = git.run_git(
        [git_dir, "rev-list", "--no-merges", f"-n{_SEARCHED}", tip, f"^{verdict.base}", "--"]
    )
    wanted = _patch_id(kept, verdict.base_tree, verdict.tree)
    for commit in listed.decode().split():
        if _patch_id(kept, f"{commit}^", commit) == wanted:
            return CommitId(commit)
    return None


def _patch_id(kept: Store, before: str, after: str) -> bytes:
    diff = git.run_store_git(kept.git_dir, ["diff-tree", "-p", "--binary", before, after, "--"])
    return git.run_store_git(kept.git_dir, ["patch-id", "--stable"], input=diff).split(b" ")[0]


def only_parent(kept: Store, commit: CommitId) -> CommitId:
    """Return the parent of `commit`; raise PromotionError unless it has exactly one."""
    answer = git.run_git(
        [f"--git-dir={kept.repository.git_dir}", "rev-list", "--parents", "-n1", commit, "--"]
    )
    _, *parents = answer.decode().split()
    if len(parents) != 1:
        raise PromotionError(
            f"{commit[:12]} has {len(parents)} parents, so it was not made by a promotion",
            remedy="take it off yourself, with `git reset` or `git revert`",
        )
    return CommitId(parents[0])


def proof_of(kept: Store, verdict: Verdict) -> Receipt:
    """Return the receipt of a verdict that may be promoted; raise PromotionError for another."""
    if verdict.outcome is not Outcome.PASSED or verdict.tree is None:
        raise PromotionError(
            f"the verdict is {verdict.outcome}, and only what PASSED is promoted",
            remedy="mend the patch and validate it again",
        )
    if verdict.receipt is None:
        raise PromotionError(
            "the verdict has no receipt, and nothing is promoted without",
            remedy="validate the patch again, with this version of the engine",
        )
    receipt = verdict.receipt
    if not receipt.is_sound:
        raise PromotionError(
            "the receipt was altered: its digest is not that of its content",
            remedy="take the receipt as it was written, or validate the patch again",
        )
    named = (receipt.base, receipt.base_tree, receipt.tree)
    if named != (verdict.base, verdict.base_tree, verdict.tree):
        raise PromotionError(
            f"the receipt is of the tree {receipt.tree[:12]} on {receipt.base[:12]}, and the "
            f"verdict of {verdict.tree[:12]} on {verdict.base[:12]}",
            remedy="promote a verdict as it was returned, with the receipt that came with it",
        )
    if not store.is_kept(kept, verdict.tree):
        raise PromotionError(
            f"the tree {verdict.tree[:12]} is not among those that passed here",
            remedy="validate the patch again: the store has forgotten it, or never judged it",
        )
    return receipt


def _reference(branch: str) -> str:
    name = branch.removeprefix("refs/heads/")
    try:
        if "\0" not in name:
            git.run_git(["check-ref-format", f"refs/heads/{name}"])
            return f"refs/heads/{name}"
    except GitError:
        pass
    raise UsageError(f"{branch!r} is no branch name", remedy="give the name of a branch: `main`")


def find_tip(kept: Store, branch: str, base: CommitId) -> CommitId:
    """Return what `branch` is at; raise StaleBaseError, which tells of `base`, without one."""
    tip = _tip(kept, _reference(branch))
    if tip is None:
        raise StaleBaseError(
            f"the branch `{branch}` does not exist",
            remedy=f"`git branch {branch} {base[:12]}` makes it at the verdict's base",
        )
    return CommitId(tip)


def _refuse_moved(kept: Store, branch: str, base: CommitId) -> None:
    tip = find_tip(kept, branch, base)
    if tip != base:
        raise BranchMovedError(
            f"`{branch}` is at {tip[:12]}: it moved away from {base[:12]}, which was judged",
            remedy=f"validate the patch again with `{branch}` as its base",
        )


def _tip(kept: Store, reference: str) -> str | None:
    try:
        output = git.run_git(
            [
                f"--git-dir={kept.repository.git_dir}",
                *("rev-parse", "-q", "--verify", f"{reference}^{{commit}}"),
            ]
        )
    except GitError as error:
        if error.code == 1:
            return None
        raise
    return output.decode().strip()


def _commit(kept: Store, place: Place, base: CommitId, tree: TreeId, making: Making) -> CommitId:
    """Write the commit into the user's objects, as they would have made it; nothing moves."""
    folder = kept.folder / "promotion"
    disk.remove_tree(folder)
    folder.mkdir()
    text = folder / "COMMIT_EDITMSG"
    text.write_bytes(place.git("stripspace", input=making.message.encode("utf-8", "replace")))
    try:
        if making.hooks and any(_hook(place, name) for name in _COMMIT_HOOKS):
            with making.sandbox() as sandbox:
                _run_commit_hooks(place, folder / "index", tree, text, sandbox.root)
        _bring_objects(kept, place, base, tree)
        sign = _wants_signature(place) if making.sign is None else making.sign
        flags = ["-S"] if sign else ["--no-gpg-sign"]
        arguments = ["commit-tree", *flags, "-p", base, "-F", str(text), tree]
        made = place.git(*arguments, variables=_authorship(making.author))
    except GitError as error:
        raise _unmade(error) from error
    finally:
        disk.remove_tree(folder)
    return CommitId(made.decode().strip())


def _authorship(author: Author | None) -> dict[str, str]:
    if author is None:
        return {}
    fields = {"NAME": author.name, "EMAIL": author.email, "DATE": author.date}
    return {f"GIT_AUTHOR_{key}": value for key, value in fields.items() if value}


def _wants_signature(place: Place) -> bool:
    try:
        return place.git("config", "--type=bool", "commit.gpgSign").strip() == b"true"
    except GitError as error:
        if error.code == 1:
            return False
        raise


def _unmade(error: GitError) -> Exception:
    if "tell me who you are" in error.stderr or "empty ident" in error.stderr:
        return PromotionError(
            "git does not know who the author of the commit is",
            remedy="`git config user.name NAME` and `git config user.email ADDRESS` say it",
        )
    if "gpg failed to sign" in error.stderr or "signing" in error.stderr:
        return PromotionError(
            f"the commit could not be signed: {error.stderr.splitlines()[-1]}",
            remedy="make the signing key available, or promote with `sign=False`",
        )
    return error


_COMMIT_HOOKS = ("pre-commit", "prepare-commit-msg", "commit-msg")


def _run_commit_hooks(place: Place, index: Path, tree: TreeId, text: Path, root: Path) -> None:
    """Run the hooks that `git commit` runs; raise PromotionError when one refuses or edits.

    They see the user's repository with `root`, which holds the judged tree, as its work tree: in
    the user's own, hooks would judge the files as they were, and some of them put files aside.
    """
    place.git("read-tree", tree, index=index)
    for name in _COMMIT_HOOKS:
        arguments = {"pre-commit": [], "prepare-commit-msg": [str(text), "message"]}
        done = _run_hook(place, name, arguments.get(name, [str(text)]), index=index, root=root)
        if done is not None and done.code != 0:
            said = (done.stdout + done.stderr).decode("utf-8", "replace").strip()
            raise PromotionError(
                f"the `{name}` hook refused the commit: {said[-2000:] or 'it said nothing'}",
                remedy="mend what it names, or promote with `hooks=False`",
            )
    left = place.git("write-tree", index=index).decode().strip()
    if left != tree:
        raise PromotionError(
            "the `pre-commit` hook changed what would be committed, which is not what was judged",
            remedy="put the hook's changes into the patch, or promote with `hooks=False`",
        )


def _hook(place: Place, name: str) -> Path | None:
    folder = os.fsdecode(place.git("rev-parse", "--git-path", "hooks")).rstrip("\n")
    hook = (place.top or place.git_dir) / folder / name
    return hook if os.access(hook, os.X_OK) and hook.is_file() else None


def _run_hook(
    place: Place,
    name: str,
    arguments: list[str],
    *,
    index: Path | None = None,
    root: Path | None = None,
) -> process.Completed | None:
    """Run one of the user's hooks as git does, or return None when there is none."""
    hook = _hook(place, name)
    if hook is None:
        return None
    environment = {**place.environment(index), "GIT_EDITOR": ":"}
    if root is not None or place.top is None:
        environment["GIT_DIR"] = str(place.git_dir)
    if root is not None:
        environment["GIT_WORK_TREE"] = str(root)
    # Git hands a script without `#!` to the shell.
    shell = [] if hook.read_bytes()[:4].startswith((b"#!", b"\x7fELF")) else ["sh"]
    return process.run_tool(
        [*shell, str(hook), *arguments],
        cwd=root or place.top or place.git_dir,
        env=environment,
        timeout_s=_HOOK_S,
        keep_fds=place.kept_fds,
    )


def _bring_objects(kept: Store, place: Place, base: CommitId, tree: TreeId) -> None:
    """Copy what the tree has and the base has not from the store to the user's objects."""
    # All that is new is at a path that differs; `--revs` would look at every path of the base.
    listed = git.run_store_git(
        kept.git_dir, ["diff-tree", "-r", "-t", "--raw", "--no-renames", "-z", base, tree]
    )
    wanted = {tree.encode()}
    for line in listed.split(b"\0")[::2]:
        _, mode, _, new, _ = line.split(b" ") if line else (b"",) * 5
        if mode not in _WITHOUT_OBJECT:
            wanted.add(new)
    names = b"".join(name + b"\n" for name in sorted(wanted))
    pack = git.run_store_git(
        kept.git_dir, ["pack-objects", "-q", "--window=0", "--stdout"], input=names
    )
    # Without the store beside it, or git would find that it has them already.
    git.run_git([f"--git-dir={place.git_dir}", "unpack-objects", "-q"], input=pack)


def _land(
    kept: Store, place: Place, reference: str, old: CommitId, new: CommitId, *, log: str
) -> None:
    top = str(place.top) if place.is_checked_out else ""
    journal = _Journal(reference, old, new, top, str(place.git_dir), time.time())
    _write_journal(kept, journal)
    update = git.prepared_update(
        place.git_dir,
        reference,
        new=new,
        old=old,
        log=log,
        keep_fds=place.kept_fds,
    )
    try:
        with update:
            if place.is_checked_out:
                _write_files(kept, place, journal)
    except GitError as error:
        if "but expected" in error.stderr:
            raise BranchMovedError(
                f"`{reference}` moved meanwhile: {error.problem}",
                remedy="try again, or validate the patch on what the branch is now",
            ) from error
        if "cannot lock ref" in error.stderr:
            raise StaleBaseError(
                f"another git has locked `{reference}`: {error.problem}",
                remedy="try again when it has ended",
            ) from error
        raise
    finally:
        # What was written stays only where the reference moved with it.
        _recover(kept, place.lock)


def _write_note(kept: Store, branch: str, commit: CommitId, receipt: Receipt) -> None:
    """Note `receipt` on `commit`, which has landed, in the user's repository."""
    text = json.dumps(receipt.to_json(), indent=2).encode()
    repository = kept.repository
    # Without the store beside it: the note must not lean on objects that are not the user's.
    where = [f"--git-dir={repository.git_dir}", "notes", f"--ref={NOTES}"]
    try:
        with kept.locked("note"):
            git.run_git(
                [*where, "add", "-f", "-F", "-", commit],
                cwd=repository.top or repository.git_dir,
                input=text,
            )
    except SandboxError as error:
        raise NoteError(
            f"the commit {commit} landed on `{branch}`, but the note on it could not be written: "
            f"{error.problem}",
            remedy=f"do not promote it again; `git notes --ref={NOTES} add` writes a note by hand",
            commit=commit,
        ) from error


def _write_files(kept: Store, place: Place, journal: _Journal) -> None:
    """Write the files of the new commit; the journal says so while that lasts."""
    worktrees.refresh(place)
    worktrees.refuse_local_changes(place, journal.old, journal.new, _spare_index(kept))
    _write_journal(kept, dataclasses.replace(journal, is_writing=True))
    try:
        place.git("read-tree", "-m", "-u", journal.old, journal.new)
    except GitError as error:
        refusal = worktrees.local_changes(error)
        if isinstance(refusal, LocalChangesError):
            # It looks at everything before it writes anything.
            _write_journal(kept, journal)
        raise refusal from error


def _spare_index(kept: Store) -> Path:
    """Where a copy of the user's index is looked at: a kill must leave no lock on theirs."""
    return kept.folder / "promotion.index"


def _write_journal(kept: Store, journal: _Journal) -> None:
    content = json.dumps(asdict(journal)).encode()
    disk.write_whole(_journal_path(kept), content, durable=True)


def _journal_path(kept: Store) -> Path:
    return kept.folder / "promotion.json"


def recover(kept: Store) -> None:
    """Complete or undo a promotion that was killed.

    One that is under way is left alone, and so is one whose files another git has locked: the
    next promotion meets the journal again, and says so.
    """
    if not _journal_path(kept).exists():
        return
    with (
        contextlib.suppress(SandboxBusyError, PromotionError),
        kept.locked("promotion", wait_s=0) as held,
    ):
        _recover(kept, held)


def _recover(kept: Store, held: int | None) -> None:
    path = _journal_path(kept)
    try:
        journal = _Journal(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        return
    top, git_dir = Path(journal.work_tree), Path(journal.git_dir)
    is_there = bool(journal.work_tree) and top.is_dir() and git_dir.is_dir()
    locks = [kept.repository.common_dir / f"{journal.reference}.lock"]
    if is_there:
        locks += [git_dir / "HEAD.lock", git_dir / "index.lock"]
    _remove_locks(locks, journal)
    if is_there and journal.is_writing and _tip(kept, journal.reference) == journal.old:
        objects = kept.git_dir / "objects"
        _undo(Place(git_dir, top, objects, held, is_checked_out=True), journal)
    path.unlink()


def _undo(place: Place, journal: _Journal) -> None:
    """Put back every file that the promotion had written, and none that the user has since."""
    staged = _staged(place)
    for change in worktrees.changes(place, journal.old, journal.new):
        if staged.get(change.path) in (change.old, change.new):
            _undo_file(place, journal, change, is_staged=staged.get(change.path) == change.new)
    worktrees.refresh(place)


def _undo_file(place: Place, journal: _Journal, change: Change, *, is_staged: bool) -> None:
    assert place.top is not None
    name = os.fsdecode(change.path)
    path = place.top / name
    is_ours = _is_ours(place, journal, change, path)
    if change.old is None:
        if is_ours:
            path.unlink()
            _remove_empty(path.parent, place.top)
        if is_staged:
            place.git("update-index", "--force-remove", "--", name)
    elif is_ours or not os.path.lexists(path):
        place.git("checkout", "-q", "-f", journal.old, "--", f":(top,literal){name}")
    elif is_staged:
        place.git("reset", "-q", journal.old, "--", f":(top,literal){name}")


def _staged(place: Place) -> dict[bytes, str]:
    """Return the blob that the index has for each path."""
    entries = {}
    for line in place.git("ls-files", "-s", "-z").split(b"\0"):
        if line:
            fields, _, path = line.partition(b"\t")
            entries[path] = fields.split()[1].decode()
    return entries


def _is_ours(place: Place, journal: _Journal, change: Change, path: Path) -> bool:
    """Tell whether the file is what the promotion wrote, whole or torn by a kill.

    It was looked at just before: what holds a beginning of the new content, and is from then, is
    torn and nobody's edit.
    """
    if change.new is None or path.is_symlink() or not path.is_file():
        return False
    written = place.git("cat-file", "--filters", f"--path={os.fsdecode(change.path)}", change.new)
    content = path.read_bytes()
    is_from_then = -1 <= path.stat().st_mtime - journal.started_s <= _WRITING_S
    return content == written or (is_from_then and written.startswith(content))


def _remove_empty(folder: Path, top: Path) -> None:
    while folder != top:
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent


def _remove_locks(paths: Sequence[Path], journal: _Journal) -> None:
    """Remove locks that our killed git left; raise PromotionError for one that may be in use."""
    found = [path for path in paths if path.exists()]
    if found:
        time.sleep(_LOCK_SETTLES_S)
    for path in found:
        _remove_lock(path, journal)


def _remove_lock(path: Path, journal: _Journal) -> None:
    try:
        age_s = path.stat().st_mtime - journal.started_s
    except FileNotFoundError:
        return
    if not -1 <= age_s <= _LOCK_IS_OURS_S or process.is_at_work("git", Path(journal.work_tree)):
        raise worktrees.in_use(path)
    path.unlink(missing_ok=True)
