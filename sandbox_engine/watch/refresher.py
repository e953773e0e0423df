"""The child of the watcher that analyses what has changed, before anybody asks."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Collection, Sequence
from subprocess import DEVNULL, Popen
from typing import IO

from sandbox_engine import process

_MOST_S = 600.0


class Refresher:
    """Runs a command with paths on its standard input, one run at a time and never waited for."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = ["nice", "-n", "10", *command]
        self._child: Popen[bytes] | None = None
        self._complaints: IO[bytes] | None = None
        self._until_s = 0.0

    @property
    def is_running(self) -> bool:
        return self._child is not None

    def start(self, paths: Collection[str]) -> None:
        """Start a run for `paths`, each followed by a NUL; none stands for everything.

        Raise CommandMissingError.
        """
        self._complaints = _file()
        with _file() as said:
            said.write(b"".join(os.fsencode(path) + b"\0" for path in sorted(paths)))
            said.seek(0)
            self._child = process.spawn(
                self._command,
                cwd="/",
                env=process.without_git_variables(os.environ),
                stdin=said,
                stdout=DEVNULL,
                stderr=self._complaints,
            )
        self._until_s = time.monotonic() + _MOST_S

    def finish(self) -> str | None:
        """Return None while the run goes on, then why it failed, "" if it did not."""
        assert self._child is not None and self._complaints is not None
        code = self._child.poll()
        if code is None:
            if time.monotonic() > self._until_s:
                self._child.kill()
            return None
        with self._complaints as complaints:
            complaints.seek(0)
            said = complaints.read().decode("utf-8", "replace").strip().splitlines()
        self._child = self._complaints = None
        return "" if code == 0 else said[-1] if said else f"exit code {code}"

    def close(self) -> None:
        """End a run that goes on."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
        if self._complaints is not None:
            self._complaints.close()


def _file() -> IO[bytes]:
    return tempfile.TemporaryFile()
