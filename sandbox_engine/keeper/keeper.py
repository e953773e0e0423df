"""Keeps one sandbox: sets up its file system, where it has one, and runs commands in it.

It answers one message after another until its session ends, which is when the engine gives the
sandbox back, or dies. Everything that ran is gone before a message is answered.
"""

from __future__ import annotations

import os
import socket
from typing import Any

from . import linux, supervisor, wire
from .command import Command, Fault
from .overlay import Overlay


def main(session: socket.socket) -> None:
    """Say which process this is, and answer the messages of one engine about one sandbox.

    Each answer says `failed` or more.
    """
    keeper = Keeper(session)
    wire.send(session, os.getpid())
    while (message := wire.receive(session)) is not None:
        fields, fds = message
        if fields["do"] == "stop":
            # The run that it was meant for had ended already.
            continue
        verb = getattr(keeper, f"do_{fields.pop('do')}")
        try:
            answer = verb(fields, fds)
        except Fault as fault:
            answer = {"failed": fault.step, "errno": fault.number}
        except OSError as error:
            where = os.fsdecode(error.filename or "")
            answer = {"failed": "os", "errno": error.errno or 0, "where": where}
        except Exception as error:
            # Nobody sees what this process writes, so the engine has to say it.
            answer = {"failed": "keeper", "errno": 0, "where": repr(error)}
        try:
            wire.send(session, answer)
        except ConnectionError:
            return


class Keeper:
    """One sandbox, and the process that everything in it descends from."""

    def __init__(self, session: socket.socket) -> None:
        self.session = session
        self.wakeup = supervisor.watch_signals()
        self.overlay: Overlay | None = None
        self.is_guarded = False

    def guard(self) -> None:
        """Adopt every orphan below this process, and close it to code of the same user.

        Otherwise a command could write its own outcome to `/proc/<this process>/fd`.
        """
        if not self.is_guarded:
            linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
            # After the user namespace was set up: its maps may be written by no other process.
            linux.prctl(linux.PR_SET_DUMPABLE, 0)
            self.is_guarded = True

    def do_prepare(self, fields: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        self.overlay = Overlay(fields)
        return {}

    def do_run(self, fields: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        self.guard()
        return supervisor.run(Command(fields), fds, self.session, self.wakeup)

    def do_reset(self, fields: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        assert self.overlay is not None
        self.overlay.reset()
        return {}

    def do_read(self, fields: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        assert self.overlay is not None
        return {"content": self.overlay.read(fields["path"])}

    def do_changes(self, fields: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        assert self.overlay is not None
        return {"paths": self.overlay.changes()}
