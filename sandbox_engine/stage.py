"""Where the steps of a recipe run: one sandbox at a time, of the candidate or a tree beside it.

Only one is open, because runs that hold one and wait for a second would wait for each other. What
the commands of earlier steps leave is there for later ones: they are run again in a new sandbox.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Self

from sandbox_engine.process import Completed, Limits
from sandbox_engine.progress import Progress, Watch, unwatched
from sandbox_engine.sandbox import Sandbox
from sandbox_engine.tree import CandidateTree
from sandbox_engine.verdict import TreeId


class Stage:
    """Opens the sandbox that is asked for, and closes the one before; `with` closes the last."""

    def __init__(
        self,
        open_sandbox: Callable[[CandidateTree], AbstractContextManager[Sandbox]],
        variables: Callable[[Sandbox], Mapping[str, str]],
        limits: Limits,
        watch: Watch = unwatched,
    ) -> None:
        self._open = open_sandbox
        self._variables = variables
        self._limits = limits
        self._watch = watch
        self._lease = contextlib.ExitStack()
        self._sandbox: Sandbox | None = None
        self._tree: TreeId | None = None
        self._is_used = False
        self._commands: list[list[str]] = []
        self.spent_s = 0.0
        """How long test sessions have taken so far."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._lease.close()

    @contextlib.contextmanager
    def session(self, where: CandidateTree) -> Iterator[Sandbox]:
        """Yield a sandbox of `where` in which no test session has run."""
        sandbox = self._at(where)
        if self._is_used:
            sandbox.restore()
            self._repeat(sandbox)
        self._is_used = True
        started = time.monotonic()
        yield sandbox
        self.spent_s += time.monotonic() - started

    def command(self, where: CandidateTree, argv: Sequence[str]) -> Completed:
        """Run a command of a step in a sandbox of `where`."""
        sandbox = self._at(where)
        self._watch(Progress(f"`{argv[0]}`"))
        return self._run(sandbox, list(argv))

    def remember(self, argv: Sequence[str]) -> None:
        """Run `argv` in every sandbox that is opened from now on: later steps may need it."""
        self._commands.append(list(argv))

    def changed_files(self, where: CandidateTree) -> list[str]:
        """Return the tracked files that are no longer as in `where`, if its sandbox is open."""
        if self._sandbox is None or self._tree != where.id:
            return []
        return self._sandbox.changed_files()

    def _at(self, where: CandidateTree) -> Sandbox:
        if self._sandbox is None or self._tree != where.id:
            self._sandbox = None
            self._lease.close()
            sandbox = self._lease.enter_context(self._open(where))
            self._sandbox, self._tree, self._is_used = sandbox, where.id, False
            self._repeat(sandbox)
        return self._sandbox

    def _repeat(self, sandbox: Sandbox) -> None:
        for argv in self._commands:
            self._run(sandbox, argv)

    def _run(self, sandbox: Sandbox, argv: list[str]) -> Completed:
        return sandbox.run(argv, self._limits, variables=self._variables(sandbox))
