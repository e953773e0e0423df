"""A judged change on a base that has moved: merged in memory, a candidate that nobody judged yet.

The merge is libgit2's, of trees alone: it writes into the store and into no other place, and what
comes out is never checked out by it. Two changes that merge can still break each other, so the
candidate has to pass like any other.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sandbox_engine import git, tree
from sandbox_engine.errors import StaleBaseError
from sandbox_engine.receipt import Receipt
from sandbox_engine.store import Store
from sandbox_engine.tree import CandidateTree
from sandbox_engine.verdict import CommitId, TreeId

if TYPE_CHECKING:
    import pygit2

_PATHS_SHOWN = 5


def merge_change(store: Store, receipt: Receipt, branch: str, tip: CommitId) -> CandidateTree:
    """Return the candidate that has the change of `receipt` on `tip`, which `branch` is at.

    Raise StaleBaseError when they conflict, and when the change is there already.
    """
    import pygit2

    _, tip_tree = git.resolve_commit(store.repository, tip)
    try:
        index = store.objects.merge_trees(receipt.base_tree, tip_tree, receipt.tree)
        if conflicts := _conflicts(index):
            raise _conflict(conflicts, branch, tip)
        merged = TreeId(str(index.write_tree(store.objects)))
    except (KeyError, OSError, pygit2.GitError) as error:
        raise git.foreign_failure(error, f"the change cannot be merged with `{branch}`") from error
    if merged == tip_tree:
        raise StaleBaseError(
            f"`{branch}` moved to {tip[:12]}, which has the change already",
            remedy="there is nothing left to promote",
        )
    return tree.candidate_of(store, tip, tip_tree, merged)


def _conflicts(index: pygit2.Index) -> list[str]:
    """Return the paths that need a decision, as text that is safe to show."""
    sides = (side for sides in index.conflicts or () for side in sides if side is not None)
    paths = {os.fsencode(side.path) for side in sides}
    return [path.decode("utf-8", "backslashreplace") for path in sorted(paths)]


def _conflict(paths: list[str], branch: str, tip: CommitId) -> StaleBaseError:
    shown = ", ".join(f"`{path}`" for path in paths[:_PATHS_SHOWN])
    more = f" and {len(paths) - _PATHS_SHOWN} more" if len(paths) > _PATHS_SHOWN else ""
    return StaleBaseError(
        f"`{branch}` moved to {tip[:12]}, and the change conflicts with it in {shown}{more}",
        remedy=f"make the patch anew on `{branch}`, and validate it with `{branch}` as its base",
    )
