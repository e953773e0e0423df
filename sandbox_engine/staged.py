"""What is about to be committed, as a tree: the index is read, and nothing of the user's written.

Git tells a hook by GIT_INDEX_FILE which index becomes the commit: for `commit FILE` and `commit -a`
it is not the usual one. Its tree is written by git itself, which knows split and sparse indexes and
entries that are only intended, from a copy and into the store: `write-tree` would note what it
found in the index it was given.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sandbox_engine import git
from sandbox_engine.errors import GitError, RepositoryError, UsageError
from sandbox_engine.store import Store
from sandbox_engine.verdict import CommitId, TreeId

# No program of the user's is asked what has changed, and a split index is not split anew: its
# shared half lies in the user's folder.
_ALONE = ("-c", "core.fsmonitor=false", "-c", "core.splitIndex=false")
EMPTY_TREE = TreeId("4b825dc642cb6eb9a060e54bf8d69288fbee4904")


def staged_tree(store: Store, index: Path | None = None) -> TreeId:
    """Return the tree that a commit of `index` would have; None is the work tree's own index.

    Its objects are in the store. Raise UsageError while files are unmerged, or for no index.
    """
    repository = store.repository
    path = repository.git_dir / "index" if index is None else index
    with tempfile.TemporaryDirectory(dir=store.folder, prefix="staged-") as name:
        copy = Path(name) / "index"
        try:
            shutil.copyfile(path, copy)
        except FileNotFoundError:
            # Nothing has been added to a new repository.
            _refuse_absent(repository, index)
        alternate = str(repository.objects_dir).replace("\\", "\\\\").replace('"', '\\"')
        environment = git.plain_environment(
            GIT_DIR=str(repository.git_dir),
            GIT_INDEX_FILE=str(copy),
            GIT_OBJECT_DIRECTORY=str(store.git_dir / "objects"),
            GIT_ALTERNATE_OBJECT_DIRECTORIES=f'"{alternate}"',
        )
        try:
            made = git.run_git([*_ALONE, "write-tree"], cwd=repository.top, env=environment)
        except GitError as error:
            if "unmerged" in error.stderr:
                raise UsageError(
                    "files are not merged yet, so there is nothing to commit",
                    remedy="resolve the conflicts, and `git add` the files",
                ) from error
            raise
    return TreeId(made.decode().strip())


def _refuse_absent(repository: git.Repository, index: Path | None) -> None:
    if index is not None:
        raise UsageError(f"there is no index `{index}`", remedy="unset GIT_INDEX_FILE")
    if repository.top is None:
        raise UsageError(
            f"nothing is staged in `{repository.git_dir}`: it has no work tree",
            remedy="name the folder of a work tree with `--repo`",
        )


def empty_base(store: Store) -> CommitId:
    """Return a commit of an empty tree in the store: what a first commit is judged beside."""
    import pygit2

    objects = store.objects
    nobody = pygit2.Signature("sandbox-engine", "sandbox-engine@localhost", 0, 0)
    try:
        tree = objects.TreeBuilder().write()
        made = objects.create_commit(None, nobody, nobody, "nothing", tree, [])
    except (OSError, pygit2.GitError) as error:
        raise git.foreign_failure(error, "the empty base cannot be written") from error
    return CommitId(str(made))


@dataclass(frozen=True, slots=True)
class Named:
    """What git names to a hook: the index that becomes the commit, and where the repository is.

    Either is None where it names none; the index is that of the repository.
    """

    index: Path | None
    git_dir: Path | None

    def folder(self, repo: str) -> str:
        """Return the folder to find the repository from, for one that is asked for as `repo`.

        Where the work tree is not one that leads to the repository, only git can say which it is.
        """
        if repo != "." or self.git_dir is None or not self.git_dir.is_dir():
            return repo
        try:
            is_found = git.find_repository(repo).git_dir.samefile(self.git_dir)
        except RepositoryError:
            is_found = False
        return repo if is_found else str(self.git_dir)

    def index_of(self, repository: git.Repository) -> Path | None:
        """Return the index that git names if it is one of `repository`, else None."""
        if self.index is None:
            return None
        git_dir = self.git_dir or git.find_repository(".").git_dir
        return self.index if git_dir.samefile(repository.git_dir) else None


def named_to_hook() -> Named:
    """Return what git names to the hook that calls us, as it is called."""
    index, git_dir = os.environ.get("GIT_INDEX_FILE"), os.environ.get("GIT_DIR")
    return Named(*(Path(os.path.abspath(name)) if name else None for name in (index, git_dir)))
