"""Candidates out of any two commits, and what a folder holds, as a shell sees it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from conftest import GitBox

from sandbox_engine import git, store, tree
from sandbox_engine.carry import Carried
from sandbox_engine.isolation import View
from sandbox_engine.layer_sandbox import LayerSandbox, open_layers
from sandbox_engine.process import Completed, Limits
from sandbox_engine.sandbox import Sandbox, Setup, allowed_variables
from sandbox_engine.store import Store
from sandbox_engine.tree import CandidateTree
from sandbox_engine.verdict import Tier

LIMITS = Limits(wall_s=20)

LISTING = r"""
find . -mindepth 1 -path ./.git -prune -o -printf '%y %m %P -> %l\0' | LC_ALL=C sort -z
find . -path ./.git -prune -o -type f -print0 | LC_ALL=C sort -z | xargs -0r sha256sum -z
"""
"""Prints kind, mode, path and target of all but `.git`, and a digest of every file."""


def candidate_of(kept: Store, base: str, wanted: str) -> CandidateTree:
    """Return the candidate that makes the tree of `wanted` out of the commit `base`.

    A patch could not make all that two commits can differ in.
    """
    commit, base_tree = git.resolve_commit(kept.repository, base)
    _, wanted_tree = git.resolve_commit(kept.repository, wanted)
    return tree.candidate_of(kept, commit, base_tree, wanted_tree)


@contextlib.contextmanager
def layered(
    kept: Store,
    base: str,
    wanted: str | None = None,
    *,
    view: View | None = None,
    limits: Limits = LIMITS,
    carried: Carried | None = None,
    compiled: Path | None = None,
    variables: Mapping[str, str] | None = None,
    slots: int = 4,
    wait_s: float = 0,
) -> Iterator[LayerSandbox]:
    """Yield a sandbox in layers that holds the tree of `wanted` (`base`) over that of `base`."""
    candidate = candidate_of(kept, base, wanted or base)
    commit = store.commit_candidate(kept, candidate.base, candidate.id)
    setup = Setup(
        Tier.FULL,
        view or View(str(kept.repository.top)),
        limits,
        {**allowed_variables(()), **(variables or {})},
        carried or Carried(Path("/")),
        compiled,
        slots,
        wait_s,
    )
    with open_layers(kept, candidate, commit, setup) as sandbox:
        yield sandbox


def shell(sandbox: Sandbox, script: str, limits: Limits = LIMITS) -> Completed:
    return sandbox.run(["sh", "-c", script], limits)


def said(sandbox: Sandbox, script: str) -> str:
    """Run `script`, which has to succeed and to complain of nothing; return what it printed."""
    done = shell(sandbox, script)
    assert (done.code, done.stop, done.stderr) == (0, None, b""), done
    return os.fsdecode(done.stdout)


def listed(folder: Path) -> str:
    done = subprocess.run(["sh", "-c", LISTING], cwd=folder, capture_output=True, check=True)
    return os.fsdecode(done.stdout)


def checked_out(box: GitBox, revision: str) -> Path:
    """Return a new folder with the files of `revision`, as git itself writes them."""
    folder = Path(tempfile.mkdtemp(dir=box.top.parent, prefix="plain-"))
    environment = {**os.environ, "GIT_INDEX_FILE": f"{folder}.index"}
    command = ["git", f"--work-tree={folder}", "read-tree", "--reset", "-u", revision]
    subprocess.run(command, cwd=box.top, env=environment, check=True)
    return folder
