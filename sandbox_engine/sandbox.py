"""Sandboxes: a leased place that holds exactly one tree, and the only way to run code in it.

In the tier `full` it exists only inside a mount namespace of its own (`layer_sandbox`), in the
others it is a worktree that is used again and again (`slot_sandbox`). Steps use `Sandbox` and
open no path themselves.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from sandbox_engine.cancellation import Cancellation
from sandbox_engine.carry import Carried
from sandbox_engine.isolation import View
from sandbox_engine.process import Completed, Limits
from sandbox_engine.verdict import Tier

GIT_CONFIG = b"[user]\n\tname = sandbox\n\temail = sandbox@localhost\n"
"""What git finds in the HOME of a run."""

PRIVATE = {"TERM": "dumb", "GIT_CONFIG_NOSYSTEM": "1", "GIT_ATTR_NOSYSTEM": "1"}
"""What every run's environment says, beside where its temporary folders are."""

_ALLOWED = ("PATH", "LANG", "LANGUAGE", "TZ", "USER", "LOGNAME", "SHELL")


class Sandbox(Protocol):
    """A directory that holds exactly one tree, for as long as its lease lasts.

    `root` is where runs see it; the engine itself may see something else there, or nothing.
    `inside` is where they see the engine's own programs.
    """

    @property
    def root(self) -> Path: ...

    @property
    def inside(self) -> Path: ...

    def real(self, path: str) -> str:
        """Return where `path`, as a run has said it, really is for runs."""

    def run(
        self,
        argv: list[str],
        limits: Limits,
        *,
        variables: Mapping[str, str] | None = None,
        input: bytes = b"",
        report_env: str | None = None,
        on_report: Callable[[bytes], None] | None = None,
    ) -> Completed:
        """Run `argv` in the sandbox's root and return how it ended; nothing it started is left.

        `variables` are added to its environment, `input` is its standard input; `report_env` names
        the variable that holds the descriptor of the report pipe, whose parts `on_report` gets.
        """

    def read(self, path: str) -> bytes | None:
        """Return the bytes of the regular file at `path`, or None; links are not followed."""

    def changed_files(self) -> list[str]:
        """Return the tracked files that are no longer as in the tree."""

    def restore(self) -> None:
        """Make the directory hold exactly the tree again, without anything that a run left."""


@dataclass(frozen=True, slots=True)
class Setup:
    """How a sandbox is to be set up, whatever tree it holds.

    `variables` are the environment of its runs, but for what is private to a lease. `compiled` is
    a folder of compiled files that the engine provides, in the form of PYTHONPYCACHEPREFIX. At
    most `slots` sandboxes of a repository are open at once, and a free one is waited for for
    `wait_s` seconds, or until `cancellation`, which ends runs too.
    """

    tier: Tier
    view: View
    limits: Limits = field(default_factory=Limits)
    variables: Mapping[str, str] = field(default_factory=dict)
    carried: Carried = field(default_factory=lambda: Carried(Path("/")))
    compiled: Path | None = None
    slots: int = 8
    wait_s: float = 600.0
    cancellation: Cancellation | None = None


def allowed_variables(names: tuple[str, ...]) -> dict[str, str]:
    """Return what a run sees of our environment: a short list, and the variables in `names`."""
    wanted = {*_ALLOWED, *names}
    return {
        name: value
        for name, value in os.environ.items()
        if name in wanted or name.startswith("LC_")
    }
