"""Recipes: what is run to judge a candidate, and within which limits.

A recipe's fingerprint is part of every cached verdict's key, so it covers all that can change
what a run finds: steps with their arguments, limits, and the pre-check's policy.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sandbox_engine.process import Limits

DEFAULT_STRATEGY = "SYNTAX_AND_PYTEST"
_SHOWN = 60


class StepKind(enum.StrEnum):
    """What a step does.

    `SYNTAX`: every changed file parses. `PYTEST`: the project's tests pass, with `args` added to
    the command line. `NEW_TESTS`: the test files that the patch adds each collect a test, and
    pass. `COMMAND`: `args` as a command exits with 0. `FILES_EXIST`: the paths in `args` are in
    the candidate, and the patch empties no file.
    """

    SYNTAX = "syntax"
    PYTEST = "pytest"
    NEW_TESTS = "new-tests"
    COMMAND = "command"
    FILES_EXIST = "files-exist"


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a recipe."""

    kind: StepKind
    args: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        if self.kind is StepKind.COMMAND:
            words = shlex.join(self.args)
            return f"command {words if len(words) <= _SHOWN else words[:_SHOWN] + '...'}"
        return str(self.kind)


@dataclass(frozen=True, slots=True)
class Policy:
    """What the pre-check allows: bytes per changed file, and path patterns it does not look at."""

    max_file_bytes: int = 10_000_000
    syntax_exclude: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Demands:
    """What a patch has to do to tests, beside breaking none.

    The tests of `fixed` are red on the base and must be green with the patch. What matches one of
    the patterns of `keep` must be there and green. `allow_test_changes` says that the patch may
    change what the tests prove. Of the tests that ran on the base, at most the share
    `max_new_skips`, 0 to 1, may be skipped with the patch.
    """

    fixed: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    allow_test_changes: bool = False
    max_new_skips: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the demands as JSON values."""
        return {
            "fixed": list(self.fixed),
            "keep": list(self.keep),
            "allow_test_changes": self.allow_test_changes,
            "max_new_skips": self.max_new_skips,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Demands:
        """Return the demands that `to_json` wrote; raise ValueError for others."""
        try:
            fields = {
                **record,
                "fixed": tuple(record["fixed"]),
                "keep": tuple(record["keep"]),
                "max_new_skips": float(record["max_new_skips"]),
            }
            return cls(**fields)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not demands: {error}") from error


@dataclass(frozen=True, slots=True)
class Recipe:
    """A named list of steps with the limits that each of them runs under.

    A test that the patch seems to break is run `reruns` times more before it is blamed.

    pytest gets `-n` of pytest-xdist when its last run took longer than `xdist_after_s` seconds.
    With `network` its runs reach the network; `writable` are folders outside of the sandbox that
    they really change.
    """

    name: str
    steps: tuple[Step, ...]
    description: str = ""
    limits: Limits = field(default_factory=Limits)
    policy: Policy = field(default_factory=Policy)
    demands: Demands = field(default_factory=Demands)
    reruns: int = 2
    xdist_after_s: float = 10.0
    network: bool = False
    writable: tuple[str, ...] = ()

    @property
    def openings(self) -> tuple[str, ...]:
        """What its runs reach outside of the sandbox, in words."""
        return (
            *(("network",) if self.network else ()),
            *(f"writes {path}" for path in self.writable),
        )

    def demanding(
        self, fixed: tuple[str, ...], keep: tuple[str, ...], *, allow_test_changes: bool
    ) -> Recipe:
        """Return the recipe with more demands."""
        own = self.demands
        demands = Demands(
            (*own.fixed, *fixed),
            (*own.keep, *keep),
            own.allow_test_changes or allow_test_changes,
            own.max_new_skips,
        )
        return dataclasses.replace(self, demands=demands)

    def fingerprint(self) -> str:
        """Return a digest of everything that decides what a run of this recipe finds."""
        return self._digest("name", "description", "xdist_after_s")

    def base_fingerprint(self) -> str:
        """Return a digest of everything that decides what a run finds on a base."""
        return self._digest("name", "description", "xdist_after_s", "policy", "demands")

    def _digest(self, *without: str) -> str:
        fields = dataclasses.asdict(self)
        for key in without:
            del fields[key]
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


_SYNTAX = Step(StepKind.SYNTAX)
_PYTEST = Step(StepKind.PYTEST)
_NEW_TESTS = Step(StepKind.NEW_TESTS)
_FILES_EXIST = Step(StepKind.FILES_EXIST)

STRATEGIES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("SYNTAX_ONLY", (_SYNTAX,), "changed files parse; nothing is run"),
        Recipe("SYNTAX_AND_PYTEST", (_SYNTAX, _PYTEST), "changed files parse, all tests pass"),
        Recipe(
            "FULL_VALIDATION",
            (_SYNTAX, _FILES_EXIST, _PYTEST),
            "changed files parse, none is emptied, all tests pass",
        ),
        Recipe(
            "BENCHMARK_ONLY",
            (_SYNTAX, Step(StepKind.PYTEST, ("-k", "benchmark"))),
            "tests with `benchmark` in their name, marks or path pass",
        ),
        Recipe(
            "DOC_UPDATE_STRATEGY", (_SYNTAX, _FILES_EXIST), "written files parse, none is emptied"
        ),
        Recipe(
            "CONFIG_UPDATE_STRATEGY",
            (_SYNTAX, _FILES_EXIST),
            "written JSON, TOML and YAML parse, no file is emptied",
        ),
        Recipe(
            "TEST_FIX_STRATEGY",
            (_SYNTAX, _PYTEST),
            "a repair of tests: all tests pass, and the patch may change what they prove",
            demands=Demands(allow_test_changes=True),
        ),
        Recipe(
            "CREATE_NEW_TEST_FILE_STRATEGY",
            (_SYNTAX, _NEW_TESTS),
            "each test file that the patch adds collects a test, and they pass",
        ),
        Recipe("AUTO_CORRECTION_STRATEGY", (_SYNTAX, _PYTEST), "a correction: all tests pass"),
        Recipe("DISCARD", (), "proves nothing, so nothing is ever promoted"),
    )
}
