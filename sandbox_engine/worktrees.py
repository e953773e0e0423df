"""The user's work trees: which one has a branch checked out, and what must not be lost in it.

Git is asked about each work tree from inside it and its answers are checked against each other:
for a submodule, or a repository whose git folder lies apart, `git worktree list` names the git
folder as the main work tree, and files written there would be hooks.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sandbox_engine import git
from sandbox_engine.errors import GitError, LocalChangesError, PromotionError
from sandbox_engine.store import Store

_UNDER_WAY = {
    "MERGE_HEAD": "a merge",
    "CHERRY_PICK_HEAD": "a cherry-pick",
    "REVERT_HEAD": "a revert",
    "rebase-merge": "a rebase",
    "rebase-apply": "a rebase",
}
_LINKS = 5


@dataclass(frozen=True, slots=True)
class Place:
    """Where the user's git is run: the work tree that has the branch checked out, if one has.

    Git sees the store's objects beside the user's, so that nothing has to enter theirs before
    every check has passed. `lock` is inherited by git: while it still works, nobody recovers. It
    is None once the lock is given back.
    """

    git_dir: Path
    top: Path | None
    store_objects: Path
    lock: int | None
    is_checked_out: bool = False

    @property
    def kept_fds(self) -> tuple[int, ...]:
        return () if self.lock is None else (self.lock,)

    def environment(self, index: Path | None = None) -> dict[str, str]:
        extra = {} if index is None else {"GIT_INDEX_FILE": str(index)}
        # Quoted, because a colon would begin another folder.
        quoted = str(self.store_objects).replace("\\", "\\\\").replace('"', '\\"')
        return git.plain_environment(GIT_ALTERNATE_OBJECT_DIRECTORIES=f'"{quoted}"', **extra)

    def git(
        self,
        *arguments: str,
        index: Path | None = None,
        input: bytes = b"",
        variables: Mapping[str, str] | None = None,
    ) -> bytes:
        where = [f"--git-dir={self.git_dir}"]
        if self.top is not None:
            where.append(f"--work-tree={self.top}")
        return git.run_git(
            [*where, *arguments],
            cwd=self.top or self.git_dir,
            env={**self.environment(index), **(variables or {})},
            input=input,
            keep_fds=self.kept_fds,
        )


def resolve_branch(store: Store, reference: str) -> str:
    """Return the reference that `reference` stands for: a renamed branch may be a link."""
    return _resolved(store.repository.git_dir, reference)


def _resolved(git_dir: Path, reference: str) -> str:
    for _ in range(_LINKS):
        try:
            answer = git.run_git([f"--git-dir={git_dir}", "symbolic-ref", "-q", reference])
        except GitError as error:
            if error.code == 1:
                return reference
            raise
        reference = os.fsdecode(answer).rstrip("\n")
    return reference


def find_place(store: Store, reference: str, lock: int) -> Place:
    """Return the work tree that has `reference` checked out, else the repository as it is.

    Raise PromotionError when there are several, or one that cannot be found, and when a rebase
    or a bisection of the branch is under way in any of them.
    """
    repository = store.repository
    objects = store.git_dir / "objects"
    places = {
        git_dir: Place(git_dir, top, objects, lock, is_checked_out=True)
        for top, git_dir in _work_trees(repository)
    }
    for git_dir in places:
        _refuse_under_way(git_dir, reference)
    found = [place for git_dir, place in places.items() if _resolved(git_dir, "HEAD") == reference]
    if len(found) > 1:
        raise PromotionError(
            f"`{reference}` is checked out in `{found[0].top}` and in `{found[1].top}`",
            remedy="switch one of them to another branch",
        )
    if not found and repository.common_dir not in places and _has_main_tree(repository, reference):
        raise PromotionError(
            f"`{reference}` is checked out in the main work tree of `{repository.common_dir}`, "
            "and git does not say where that is",
            remedy="open the engine in that work tree",
        )
    return found[0] if found else Place(repository.git_dir, repository.top, objects, lock)


def _work_trees(repository: git.Repository) -> Iterator[tuple[Path, Path]]:
    """Yield the top and the git folder of every work tree that can be found."""
    output = git.run_git([f"--git-dir={repository.git_dir}", "worktree", "list", "--porcelain"])
    listed = [
        Path(line.removeprefix("worktree "))
        for line in os.fsdecode(output).splitlines()
        if line.startswith("worktree ")
    ]
    for folder in filter(Path.is_dir, [*filter(None, [repository.top]), *listed]):
        questions = ["--path-format=absolute", "--show-toplevel", "--git-dir", "--git-common-dir"]
        try:
            answer = git.run_git(["-C", folder, "rev-parse", *questions])
        except GitError as error:
            if error.code == 128:
                # No work tree: the list names the folder of a bare repository too.
                continue
            raise
        top, git_dir, common_dir = map(Path, os.fsdecode(answer).splitlines())
        if common_dir.resolve() == repository.common_dir:
            yield top, git_dir.resolve()


def _has_main_tree(repository: git.Repository, reference: str) -> bool:
    is_bare = git.run_git(
        [f"--git-dir={repository.common_dir}", "rev-parse", "--is-bare-repository"]
    )
    return is_bare.strip() == b"false" and _resolved(repository.common_dir, "HEAD") == reference


def _refuse_under_way(git_dir: Path, reference: str) -> None:
    """Refuse a branch that a rebase or a bisection will come back to."""
    name = reference.removeprefix("refs/heads/")
    for file, what in (
        ("rebase-merge/head-name", "a rebase"),
        ("rebase-apply/head-name", "a rebase"),
        ("BISECT_START", "a bisection"),
    ):
        path = git_dir / file
        if path.is_file() and path.read_text().strip() in (reference, name):
            raise _under_way(what, name, git_dir)


def _under_way(what: str, name: str, where: Path) -> PromotionError:
    return PromotionError(
        f"{what} of `{name}` is under way in `{where}`",
        remedy="finish it, or promote to another branch",
    )


def refuse_unfinished(place: Place, reference: str) -> None:
    """Raise PromotionError when a merge or the like, or another git, is at work in `place`."""
    if (lock := place.git_dir / "index.lock").exists():
        raise in_use(lock)
    for name, what in _UNDER_WAY.items():
        if (place.git_dir / name).exists():
            raise _under_way(what, reference.removeprefix("refs/heads/"), place.git_dir)


def refuse_local_changes(place: Place, old: str, new: str, spare: Path) -> None:
    """Raise LocalChangesError when a file that the change touches is not as it is in the base.

    What is asked of the index is asked of a copy at `spare`.
    """
    spare.with_name(f"{spare.name}.lock").unlink(missing_ok=True)
    shutil.copyfile(place.git_dir / "index", spare)
    refresh(place, spare)
    try:
        place.git("read-tree", "-m", "-u", "-n", old, new, index=spare)
    except GitError as error:
        raise local_changes(error) from error
    _refuse_removed(place, old, new, spare)
    _refuse_untracked(place, old, new)


def _refuse_removed(place: Place, old: str, new: str, index: Path) -> None:
    """Refuse to bring back a file that the user has removed, which git takes for unchanged."""
    output = place.git("diff-files", "--name-only", "--diff-filter=D", "-z", index=index)
    removed = set(output.split(b"\0"))
    for change in changes(place, old, new):
        if change.new is not None and change.path in removed:
            raise _edited(f"`{os.fsdecode(change.path)}` was removed")


def refresh(place: Place, index: Path | None = None) -> None:
    """Let the index know the files' present times; exit code 1 only says that some differ."""
    try:
        place.git("update-index", "-q", "--refresh", index=index)
    except GitError as error:
        lock = place.git_dir / "index.lock"
        if lock.exists():
            raise in_use(lock) from error
        if error.code != 1:
            raise


def in_use(lock: Path) -> PromotionError:
    return PromotionError(
        f"`{lock}` is there: another git may be at work",
        remedy="wait for it to end; if none runs, remove the file",
    )


def local_changes(error: GitError) -> Exception:
    if "overwritten" not in error.stderr and "not uptodate" not in error.stderr:
        return error
    first = next((line for line in error.stderr.splitlines() if line.startswith("error: ")), "")
    return _edited(first.removeprefix("error: "))


def _edited(what: str) -> LocalChangesError:
    return LocalChangesError(
        f"the work tree has edits in a file that the change touches: {what}",
        remedy="commit, stash or undo them, or promote to a branch that is not checked out",
    )


def _refuse_untracked(place: Place, old: str, new: str) -> None:
    """Refuse to write over what git does not track: `read-tree` spares all but ignored files."""
    assert place.top is not None
    for change in changes(place, old, new):
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


def _tracked(place: Place, commit: str, name: Path) -> bool:
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
class Change:
    """One path that differs between two commits; `old` and `new` are blob ids, None if absent."""

    path: bytes
    old: str | None
    new: str | None


def changes(place: Place, old: str, new: str) -> list[Change]:
    output = place.git("diff-tree", "-r", "-z", "--no-renames", "--raw", old, new)
    fields = output.split(b"\0")
    changes = []
    for header, path in zip(fields[::2], fields[1::2], strict=False):
        _, _, before, after, _ = header.decode().split()
        changes.append(Change(path, _id_or_none(before), _id_or_none(after)))
    return changes


def _id_or_none(id: str) -> str | None:
    return id if id.strip("0") else None
