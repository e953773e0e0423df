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
from pathlib import Path

from sandbox_engine import git
from sandbox_engine.errors import GitError, UsageError
from sandbox_engine.store import Store
from sandbox_engine.verdict import CommitId, TreeId

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
            if index is not None:
                raise UsageError(
                    f"there is no index `{index}`", remedy="unset GIT_INDEX_FILE"
                ) from None
            # Nothing has been added to a new repository.
        alternate = str(repository.objects_dir).replace("\\", "\\\\").replace('"', '\\"')
        environment = git.plain_environment(
            GIT_DIR=str(repository.git_dir),
            GIT_INDEX_FILE=str(copy),
            GIT_OBJECT_DIRECTORY=str(store.git_dir / "objects"),
            GIT_ALTERNATE_OBJECT_DIRECTORIES=f'"{alternate}"',
        )
        try:
            made = git.run_git(["write-tree"], cwd=repository.top, env=environment)
        except GitError as error:
            if "unmerged" in error.stderr:
                raise UsageError(
                    "files are not merged yet, so there is nothing to commit",
                    remedy="resolve the conflicts, and `git add` the files",
                ) from error
            raise
    return TreeId(made.decode().strip())


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


def require_same_repository(repository: git.Repository) -> None:
    """Raise UsageError where git works on another repository than that of this folder.

    `git --git-dir=... --work-tree=... commit` runs hooks in a folder that need not know of it.
    """
    named = os.environ.get("GIT_DIR")
    if named and os.path.realpath(named) != os.path.realpath(repository.git_dir):
        raise UsageError(
            f"git works on `{os.path.realpath(named)}`, and this folder belongs to "
            f"`{repository.git_dir}`",
            remedy="call git inside the work tree, without `--git-dir` and GIT_DIR",
        )


def index_of_hook() -> Path | None:
    """Return the index that git names to a hook, None where it names none."""
    name = os.environ.get("GIT_INDEX_FILE")
    return Path(os.path.abspath(name)) if name else None
