"""Promotion: the tree that passed becomes one commit on a branch of the user's.

The branch's reference is locked by a prepared git transaction that checks its old value; where the
branch is checked out, `git read-tree -m -u` then writes the files that change, refusing all when
one of them has edits; then the transaction commits. So the reference and the files move together
or not at all, and every other file and index entry stays the user's
(docs/adr/0004-promotion-by-transaction.md).

A journal in the store is written before and removed after. One that is found says that a
promotion was killed: the next engine undoes what was written, unless the branch has moved to
the new commit, for then all had been done.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from sandbox_engine import disk, git, process
from sandbox_engine.errors import (
    GitError,
    LocalChangesError,
    PromotionError,
    SandboxBusyError,
    StaleBaseError,
    UsageError,
)
from sandbox_engine.store import Store
from sandbox_engine.verdict import CommitId, Outcome, TreeId, Verdict

_HOOK_S = 600.0
_LOCK_SETTLES_S = 1.0
_LOCK_IS_OURS_S = 60.0
_UNDER_WAY = {
    "MERGE_HEAD": "a merge",
    "CHERRY_PICK_HEAD": "a cherry-pick",
    "REVERT_HEAD": "a revert",
    "rebase-merge": "a rebase",
    "rebase-apply": "a rebase",
}


@dataclass(frozen=True, slots=True)
class _Journal:
    """What a promotion is about to do; `work_tree` and its `git_dir` are "" without a checkout."""

    reference: str
    old: str
    new: str
    work_tree: str
    git_dir: str
    started_s: float


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the user's git is run: the work tree that has the branch checked out, if one has.

    Git sees the store's objects beside the user's, so that nothing has to enter theirs before
    every check has passed. `lock` is inherited by git: while it still works, nobody recovers.
    """

    git_dir: Path
    top: Path | None
    store_objects: Path
    lock: int
    is_checked_out: bool = False

    @property
    def named(self) -> tuple[str, str]:
        return (str(self.top), str(self.git_dir)) if self.is_checked_out else ("", "")

    def environment(self, index: Path | None = None) -> dict[str, str]:
        extra = {} if index is None else {"GIT_INDEX_FILE": str(index)}
        # Quoted, because a colon would begin another folder.
        quoted = str(self.store_objects).replace("\\", "\\\\").replace('"', '\\"')
        return git.plain_environment(GIT_ALTERNATE_OBJECT_DIRECTORIES=f'"{quoted}"', **extra)

    def git(self, *arguments: str, index: Path | None = None, input: bytes = b"") -> bytes:
        where = [f"--git-dir={self.git_dir}"]
        if self.top is not None:
            where.append(f"--work-tree={self.top}")
        return git.run_git(
            [*where, *arguments],
            cwd=self.top or self.git_dir,
            env=self.environment(index),
            input=input,
            keep_fds=(self.lock,),
        )


def promote(
    store: Store,
    verdict: Verdict,
    *,
    branch: str,
    message: str | None = None,
    hooks: bool = True,
    sign: bool | None = None,
) -> CommitId:
    """Land exactly the tree of `verdict` on `branch` and return the new commit.

    Raise PromotionError, StaleBaseError or LocalChangesError with nothing moved.
    """
    if verdict.outcome is not Outcome.PASSED or verdict.tree is None:
        raise PromotionError(
            f"the verdict is {verdict.outcome}, and only what PASSED is promoted",
            remedy="mend the patch and validate it again",
        )
    reference = _reference(branch)
    with store.locked("promotion") as held:
        _recover(store, held)
        tip = _tip(store, reference)
        if tip != verdict.base:
            raise _stale(branch, verdict.base, tip)
        place = _checkout_of(store, reference, held)
        if place.is_checked_out:
            _refuse_under_way(place, branch)
            _refuse_local_changes(place, verdict.base, verdict.tree)
        text = message or verdict.summary or "Apply a validated patch"
        commit = _commit(store, place, verdict.base, verdict.tree, text, hooks=hooks, sign=sign)
        _land(store, place, _Journal(reference, verdict.base, commit, *place.named, time.time()))
    if hooks:
        _run_hook(place, "post-commit", [])
    return commit


def _reference(branch: str) -> str:
    name = branch.removeprefix("refs/heads/")
    try:
        git.run_git(["check-ref-format", f"refs/heads/{name}"])
    except GitError as error:
        raise UsageError(
            f"`{branch}` is no branch name", remedy="give the name of a branch, such as `main`"
        ) from error
    return f"refs/heads/{name}"


def _user_git(store: Store, *arguments: str, input: bytes = b"") -> bytes:
    return git.run_git([f"--git-dir={store.repository.git_dir}", *arguments], input=input)


def _tip(store: Store, reference: str) -> str | None:
    try:
        output = _user_git(store, "rev-parse", "-q", "--verify", f"{reference}^{{commit}}")
    except GitError:
        return None
    return output.decode().strip()


def _stale(branch: str, base: str, tip: str | None) -> StaleBaseError:
    where = "does not exist" if tip is None else f"is at {tip[:12]}"
    return StaleBaseError(
        f"`{branch}` {where}: it moved away from {base[:12]}, which the verdict is about",
        remedy=f"validate the patch again with `{branch}` as its base",
    )


def _place(store: Store, git_dir: Path, top: Path | None, lock: int, **fields: bool) -> _Place:
    return _Place(git_dir, top, store.git_dir / "objects", lock, **fields)


def _checkout_of(store: Store, reference: str, held: int) -> _Place:
    """Return the work tree that has `reference` checked out, else the repository as it is."""
    output = os.fsdecode(_user_git(store, "worktree", "list", "--porcelain"))
    for block in output.split("\n\n"):
        fields = dict(line.partition(" ")[::2] for line in block.splitlines())
        if fields.get("branch") == reference and "bare" not in fields:
            top = Path(fields["worktree"])
            answer = git.run_git(["-C", top, "rev-parse", "--absolute-git-dir"])
            git_dir = Path(os.fsdecode(answer).rstrip("\n"))
            return _place(store, git_dir, top, held, is_checked_out=True)
    return _place(store, store.repository.git_dir, store.repository.top, held)


def _refuse_under_way(place: _Place, branch: str) -> None:
    for name, what in _UNDER_WAY.items():
        if (place.git_dir / name).exists():
            raise PromotionError(
                f"{what} is under way in `{place.top}`, where `{branch}` is checked out",
                remedy="finish it, or promote to another branch",
            )


def _refuse_local_changes(place: _Place, old: str, new: str) -> None:
    """Raise LocalChangesError when a file that the change touches is not as it is in the base."""
    _refresh(place)
    try:
        place.git("read-tree", "-m", "-u", "-n", old, new)
    except GitError as error:
        raise _local_changes(error) from error
    _refuse_untracked(place, old, new)


def _refresh(place: _Place) -> None:
    """Let the index know the files' present times; exit code 1 only says that some differ."""
    try:
        place.git("update-index", "-q", "--refresh")
    except GitError as error:
        lock = place.git_dir / "index.lock"
        if lock.exists():
            raise _in_use(lock) from error
        if error.code != 1:
            raise


def _in_use(lock: Path) -> PromotionError:
    return PromotionError(
        f"`{lock}` is there: another git may be at work",
        remedy="wait for it to end; if none runs, remove the file",
    )


def _local_changes(error: GitError) -> Exception:
    if "overwritten" not in error.stderr and "not uptodate" not in error.stderr:
        return error
    first = next((line for line in error.stderr.splitlines() if line.startswith("error: ")), "")
    return _edited(first.removeprefix("error: "))


def _edited(what: str) -> LocalChangesError:
    return LocalChangesError(
        f"the work tree has edits in a file that the change touches: {what}",
        remedy="commit, stash or undo them, or promote to a branch that is not checked out",
    )


def _refuse_untracked(place: _Place, old: str, new: str) -> None:
    """Refuse to write over what git does not track: `read-tree` spares all but ignored files."""
    assert place.top is not None
    for change in _changes(place, old, new):
        if change.old is not None:
            continue
        path = place.top / os.fsdecode(change.path)
        for step in (path, *path.parents):
            if step == place.top:
                break
            is_folder = step.is_dir() and not step.is_symlink()
            if os.path.lexists(step) and not (is_folder and step != path):
                name = step.relative_to(place.top)
                if not _tracked(place, old, name):
                    raise _edited(f"`{name}` is there and is not tracked")


def _tracked(place: _Place, commit: str, name: Path) -> bool:
    """Tell whether all that is at `name` in the work tree is in `commit`."""
    listed = place.git("ls-tree", "-r", "-z", "--name-only", commit, "--", str(name))
    known = {os.fsdecode(path) for path in listed.split(b"\0") if path}
    assert place.top is not None
    found = place.top / name
    if not found.is_dir() or found.is_symlink():
        return str(name) in known
    files = (
        os.path.relpath(os.path.join(parent, file), place.top)
        for parent, _, files in os.walk(found)
        for file in files
    )
    return known.issuperset(files)


@dataclass(frozen=True, slots=True)
class _Change:
    """One path that differs between two commits; `old` and `new` are blob ids, None if absent."""

    path: bytes
    old: str | None
    new: str | None


def _changes(place: _Place, old: str, new: str) -> list[_Change]:
    output = place.git("diff-tree", "-r", "-z", "--no-renames", "--raw", old, new)
    fields = output.split(b"\0")
    changes = []
    for header, path in zip(fields[::2], fields[1::2], strict=False):
        _, _, before, after, _ = header.decode().split()
        changes.append(_Change(path, _id_or_none(before), _id_or_none(after)))
    return changes


def _id_or_none(id: str) -> str | None:
    return id if id.strip("0") else None


def _commit(
    store: Store,
    place: _Place,
    base: CommitId,
    tree: TreeId,
    message: str,
    *,
    hooks: bool,
    sign: bool | None,
) -> CommitId:
    """Write the commit into the user's objects, as they would have made it; nothing moves."""
    folder = store.folder / "promotion"
    disk.remove_tree(folder)
    folder.mkdir()
    text = folder / "COMMIT_EDITMSG"
    text.write_bytes(place.git("stripspace", input=message.encode("utf-8", "surrogateescape")))
    try:
        if hooks:
            _run_commit_hooks(place, folder / "index", tree, text)
        _bring_objects(store, place, base, tree)
        if sign is None:
            sign = _wants_signature(place)
        flags = ["-S"] if sign else ["--no-gpg-sign"]
        made = place.git("commit-tree", *flags, "-p", base, "-F", str(text), tree)
    except GitError as error:
        raise _unmade(error) from error
    finally:
        disk.remove_tree(folder)
    return CommitId(made.decode().strip())


def _wants_signature(place: _Place) -> bool:
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


def _run_commit_hooks(place: _Place, index: Path, tree: TreeId, text: Path) -> None:
    """Run the hooks that `git commit` runs; raise PromotionError when one refuses or edits."""
    place.git("read-tree", tree, index=index)
    for hook, arguments in (
        ("pre-commit", []),
        ("prepare-commit-msg", [str(text), "message"]),
        ("commit-msg", [str(text)]),
    ):
        done = _run_hook(place, hook, arguments, index)
        if done is not None and done.code != 0:
            said = (done.stdout + done.stderr).decode("utf-8", "replace").strip()
            raise PromotionError(
                f"the `{hook}` hook refused the commit: {said[-2000:] or 'it said nothing'}",
                remedy="mend what it names, or promote with `hooks=False`",
            )
    left = place.git("write-tree", index=index).decode().strip()
    if left != tree:
        raise PromotionError(
            "the `pre-commit` hook changed what would be committed, which is not what was judged",
            remedy="run the hook's changes into the patch, or promote with `hooks=False`",
        )


def _run_hook(
    place: _Place, name: str, arguments: list[str], index: Path | None = None
) -> process.Completed | None:
    """Run one of the user's hooks where git would, or return None when there is none."""
    folder = place.git("rev-parse", "--git-path", "hooks")
    hook = (place.top or place.git_dir) / os.fsdecode(folder).rstrip("\n") / name
    if not os.access(hook, os.X_OK) or hook.is_dir():
        return None
    environment = {**place.environment(index), "GIT_EDITOR": ":"}
    if place.top is None:
        environment["GIT_DIR"] = str(place.git_dir)
    return process.run_tool(
        [str(hook), *arguments],
        cwd=place.top or place.git_dir,
        env=environment,
        timeout_s=_HOOK_S,
        keep_fds=(place.lock,) if index else (),
    )


def _bring_objects(store: Store, place: _Place, base: CommitId, tree: TreeId) -> None:
    """Copy what the tree has and the base has not from the store to the user's objects."""
    wanted = f"{tree}\n^{base}\n".encode()
    pack = git.run_store_git(
        store.git_dir, ["pack-objects", "-q", "--revs", "--stdout"], input=wanted
    )
    # Without the store beside it, or git would find that it has them already.
    git.run_git([f"--git-dir={place.git_dir}", "unpack-objects", "-q"], input=pack)


def _land(store: Store, place: _Place, journal: _Journal) -> None:
    path = _journal_path(store)
    disk.write_whole(path, json.dumps(asdict(journal)).encode(), durable=True)
    try:
        with git.prepared_update(
            place.git_dir, journal.reference, new=journal.new, old=journal.old,
            log="sandbox-engine: promote", keep_fds=(place.lock,),
        ):  # fmt: skip
            if place.is_checked_out:
                place.git("read-tree", "-m", "-u", journal.old, journal.new)
    except BaseException as error:
        if _tip(store, journal.reference) != journal.new:
            _undo(place, journal)
        path.unlink()
        if isinstance(error, GitError):
            raise _unlanded(error, journal) from error
        raise
    path.unlink()


def _unlanded(error: GitError, journal: _Journal) -> Exception:
    if "but expected" in error.stderr or "cannot lock ref" in error.stderr:
        return StaleBaseError(
            f"`{journal.reference}` moved, or is locked by another git: {error.problem}",
            remedy="validate the patch again on what the branch is now",
        )
    return _local_changes(error)


def _journal_path(store: Store) -> Path:
    return store.folder / "promotion.json"


def recover(store: Store) -> None:
    """Complete or undo a promotion that was killed.

    One that is under way is left alone, and so is one whose files another git has locked: the
    next promotion meets the journal again, and says so.
    """
    if not _journal_path(store).exists():
        return
    with (
        contextlib.suppress(SandboxBusyError, PromotionError),
        store.locked("promotion", wait_s=0) as held,
    ):
        _recover(store, held)


def _recover(store: Store, held: int) -> None:
    path = _journal_path(store)
    try:
        journal = _Journal(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        return
    _remove_lock(store.repository.common_dir / f"{journal.reference}.lock", journal)
    if journal.work_tree and _tip(store, journal.reference) == journal.old:
        place = _place(
            store, Path(journal.git_dir), Path(journal.work_tree), held, is_checked_out=True
        )
        if place.git_dir.is_dir() and Path(journal.work_tree).is_dir():
            _undo(place, journal)
    path.unlink()


def _undo(place: _Place, journal: _Journal) -> None:
    """Put back every file that the promotion had written, and none that the user has since."""
    if not place.is_checked_out:
        return
    _remove_lock(place.git_dir / "index.lock", journal)
    assert place.top is not None
    staged = _staged(place)
    for change in _changes(place, journal.old, journal.new):
        path = place.top / os.fsdecode(change.path)
        if change.old is None:
            if _is_ours(place, change, path):
                path.unlink(missing_ok=True)
                _remove_empty(path.parent, place.top)
            if change.path in staged and staged[change.path] == change.new:
                place.git("update-index", "--force-remove", "--", os.fsdecode(change.path))
        elif not os.path.lexists(path) or _is_ours(place, change, path):
            place.git(
                "checkout",
                "-q",
                "-f",
                journal.old,
                "--",
                f":(top,literal){os.fsdecode(change.path)}",
            )
        elif staged.get(change.path) == change.new:
            place.git("reset", "-q", journal.old, "--", f":(top,literal){os.fsdecode(change.path)}")
    _refresh(place)


def _staged(place: _Place) -> dict[bytes, str]:
    entries = {}
    for line in place.git("ls-files", "-s", "-z").split(b"\0"):
        if line:
            fields, _, path = line.partition(b"\t")
            entries[path] = fields.split()[1].decode()
    return entries


def _is_ours(place: _Place, change: _Change, path: Path) -> bool:
    """Tell whether the file is what the promotion wrote, whole or torn by a kill."""
    if change.new is None or path.is_symlink() or not path.is_file():
        return False
    written = place.git("cat-file", "--filters", f"--path={os.fsdecode(change.path)}", change.new)
    return written.startswith(path.read_bytes())


def _remove_empty(folder: Path, top: Path) -> None:
    while folder != top:
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent


def _remove_lock(path: Path, journal: _Journal) -> None:
    """Remove a lock that our killed git left; raise PromotionError for one that may be in use."""
    if not path.exists():
        return
    time.sleep(_LOCK_SETTLES_S)
    try:
        age_s = path.stat().st_mtime - journal.started_s
    except FileNotFoundError:
        return
    if not -1 <= age_s <= _LOCK_IS_OURS_S:
        raise _in_use(path)
    path.unlink(missing_ok=True)
