"""What a sandbox in layers shows, when the layer below is not of the candidate's own base."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator

import pytest
from conftest import GitBox

from sandbox_engine import Engine, git, layers
from sandbox_engine.isolation import tiers
from sandbox_engine.patch import parse_patch
from sandbox_engine.process import Limits
from sandbox_engine.run import Run
from sandbox_engine.sandbox import Sandbox
from sandbox_engine.tree import build_tree
from sandbox_engine.verdict import Tier

LIMITS = Limits(wall_s=20)
NEW = b"--- /dev/null\n+++ b/new\n@@ -0,0 +1 @@\n+new\n"

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap")


@pytest.fixture
def layered(engine: Engine) -> Engine:
    found = tiers.survey(engine.cache, engine.store.folder)
    if found.best is not Tier.FULL:
        pytest.skip("the tier `full` cannot be had here")
    return engine


@contextlib.contextmanager
def opened(engine: Engine, base: str, patch: bytes = NEW) -> Iterator[Sandbox]:
    commit, base_tree = git.resolve_commit(engine.repository, base)
    candidate = build_tree(engine.store, commit, base_tree, parse_patch(patch, format="unified"))
    recipe = engine.config.recipe()
    run = Run(engine.store, engine.cache, engine.config, candidate, recipe)
    with run.open_sandbox() as sandbox:
        yield sandbox


def said(sandbox: Sandbox, *command: str) -> list[str]:
    done = sandbox.run(list(command), LIMITS)
    assert (done.code, done.stderr) == (0, b"")
    return done.stdout.decode().split()


def test_a_file_that_is_younger_than_the_layer_can_be_removed(
    project: GitBox, layered: Engine
) -> None:
    first = project.head
    second = project.commit({"d/one": "1\n", "d/two": "2\n"})
    with opened(layered, first):
        pass
    patch = b"--- a/d/two\n+++ /dev/null\n@@ -1 +0,0 @@\n-2\n"
    with opened(layered, second, patch) as sandbox:
        assert said(sandbox, "ls", "-l", "d")[-1] == "one"
        assert said(sandbox, "sh", "-c", "rm -r d && ls") == ["calc.py", "tests"]


def test_nothing_is_seen_in_a_submodule_that_was_a_folder(project: GitBox, layered: Engine) -> None:
    first = project.commit({"v/m.py": "x = 1\n", "v/w/n.py": "x = 1\n"})
    project.git("rm", "-r", "-q", "v")
    project.git("update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},v")
    project.git("commit", "-q", "-m", "a submodule")
    with opened(layered, first):
        pass
    with opened(layered, project.head) as sandbox:
        assert said(sandbox, "ls", "-A", "v") == []


@pytest.mark.parametrize("more", [0, 100], ids=["near", "far"])
def test_a_layer_of_other_attributes_is_not_used(
    project: GitBox, layered: Engine, monkeypatch: pytest.MonkeyPatch, more: int
) -> None:
    monkeypatch.setattr(layers, "KEPT", 1)
    first = project.commit({"a.txt": "one\n"})
    others = {f"more/{number}": "x\n" for number in range(more)}
    second = project.commit({".gitattributes": "*.txt text eol=crlf\n", **others})
    for commit, size in ((first, "4"), (second, "5"), (first, "4")):
        with opened(layered, commit) as sandbox:
            assert said(sandbox, "wc", "-c", "a.txt") == [size, "a.txt"]


def test_a_layer_whose_tree_was_collected_is_made_anew(project: GitBox, layered: Engine) -> None:
    names = [f"d/{number}" for number in range(100)]
    project.commit({name: "old\n" for name in names})
    with opened(layered, "HEAD"):
        pass
    project.write({name: "new\n" for name in names})
    project.git("commit", "-q", "-a", "--amend", "-m", "another")
    project.git("reflog", "expire", "--expire=now", "--all")
    project.git("gc", "-q", "--prune=now")
    with opened(layered, "HEAD") as sandbox:
        assert said(sandbox, "sh", "-c", "cat d/* | sort -u") == ["new"]


def test_nothing_can_be_written_where_no_limit_counts_it(layered: Engine) -> None:
    with opened(layered, "HEAD") as sandbox:
        done = sandbox.run(["touch", "/dev/file"], LIMITS)
        assert done.code == 1 and b"Read-only" in done.stderr
        use = "import os, pty; pty.openpty(); open('/dev/shm/x', 'w'); open('/dev/null', 'w')"
        assert said(sandbox, "python3", "-c", use) == []
