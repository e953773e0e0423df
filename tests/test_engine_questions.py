"""What the engine tells beside verdicts: differences, and what keeps it from isolating runs."""

from __future__ import annotations

import pytest
from conftest import GitBox

from sandbox_engine import Config, Engine, Tier, UsageError
from sandbox_engine.isolation.tiers import WITHOUT


def test_the_difference_of_a_verdict_is_a_patch_that_makes_the_same_tree(
    project: GitBox, engine: Engine
) -> None:
    changed = {
        "calc.py": "def add(a, b):\n    return b + a\n",
        "bytes.bin": b"\0\xff",
        "gone": None,
    }
    project.commit({"gone": "x\n"})
    text = project.diff_to(changed, "--binary")
    verdict = engine.validate(text, strategy="SYNTAX_ONLY")
    assert verdict.tree is not None
    patch = engine.diff(verdict.base, verdict.tree)
    again = engine.validate(patch, strategy="SYNTAX_ONLY")
    assert again.tree == verdict.tree
    for word in ("0" * 40, "HEAD", "--help"):
        with pytest.raises(UsageError, match="cannot be compared"):
            engine.diff(verdict.base, word)


def test_what_keeps_runs_from_being_isolated_is_told(
    project: GitBox, full_tier: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Engine(project.top).isolation_obstacle() is None
    bare = Engine(project.top, config=Config(isolation=Tier.NONE))
    obstacle = bare.isolation_obstacle()
    assert obstacle is not None and "asks for the isolation `none`" in obstacle.problem
    assert bare.isolation_obstacle(Tier.NONE) is None
    monkeypatch.setenv(WITHOUT, "bubblewrap")
    obstacle = Engine(project.top).isolation_obstacle()
    assert obstacle is not None and WITHOUT in obstacle.remedy
