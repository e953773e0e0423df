"""What a project's `setup` makes, made once and brought to every sandbox that needs the same.

The commands run in a sandbox of the base: it is the user's own. What they leave beside tracked
files is kept, by the commands, the interpreter, what is carried, and what the lock files say. A
patch that changes a lock file has the commands run on its own tree, and what that leaves is for
this tree alone: nobody else is to be judged with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from sandbox_engine import disk, git, inside
from sandbox_engine.cancellation import Cancellation
from sandbox_engine.carry import Carried
from sandbox_engine.errors import PreparationError
from sandbox_engine.interpreter import Interpreter
from sandbox_engine.process import Limits
from sandbox_engine.sandbox import Sandbox
from sandbox_engine.shelf import open_shelf
from sandbox_engine.store import Store

_REPORT = "SANDBOX_ENGINE_REPORT_FD"
_MOST, _KEPT = 1_000, 4
_OUTPUT_SHOWN = 4_000


@dataclasses.dataclass(frozen=True, slots=True)
class Work:
    """How something is prepared: the commands, where they run, and what is there already.

    `open_sandbox` opens a sandbox in which nothing is prepared yet.
    """

    commands: Sequence[str]
    interpreter: Interpreter
    limits: Limits
    carried: Sequence[str]
    open_sandbox: Callable[[], AbstractContextManager[Sandbox]]


@contextlib.contextmanager
def held(
    store: Store, key: str, work: Work, cancellation: Cancellation | None = None
) -> Iterator[Carried]:
    """Hold what `work` makes, found by `key` or made now, as files that are carried.

    Raise PreparationError where a command fails, or leaves what cannot be kept, CancelledError.
    """
    shelf = open_shelf(store.folder / "prepared", most=_MOST, kept=_KEPT)

    def make(folder: Path, before: str | None, lease: int) -> None:
        disk.remove_tree(folder)
        (folder / "files").mkdir(parents=True)
        _make(work, folder)

    place = shelf.find(key)
    if place is None:
        with store.locked("prepared", git.TIME_OUT_S, cancellation):
            place = shelf.find(key) or shelf.fill(key, make)
    assert place is not None, "there are more places than sandboxes, so one is free"
    try:
        listed = (place.folder / "paths").read_bytes().split(b"\0")
        paths = tuple(os.fsdecode(path) for path in listed if path)
        yield Carried(place.folder / "files", paths, key)
    finally:
        os.close(place.lease)


def _make(work: Work, folder: Path) -> None:
    archive = folder / "made.tar"
    with work.open_sandbox() as sandbox:
        for command in work.commands:
            _run(sandbox, command, work.limits)
        with archive.open("wb") as file:
            _collect(sandbox, work, file.write)
    try:
        paths = _unpack(archive, folder / "files")
    except (tarfile.TarError, OSError, AttributeError) as error:
        raise PreparationError(
            f"what `setup` made cannot be kept: {error}",
            remedy="links must stay inside of the repository, and Python be 3.11.4 or later",
        ) from error
    archive.unlink()
    (folder / "paths").write_bytes(b"\0".join(map(os.fsencode, paths)))


def _run(sandbox: Sandbox, command: str, limits: Limits) -> None:
    done = sandbox.run(shlex.split(command), limits)
    if done.code == 0 and done.stop is None:
        return
    ended = f"was ended at the limit `{done.stop}`" if done.stop else f"ends with {done.code}"
    said = (done.stdout + done.stderr).decode("utf-8", "replace")[-_OUTPUT_SHOWN:]
    raise PreparationError(
        f"`{command}` of `setup` {ended}",
        remedy="its output says why; `setup_network` lets it reach the network",
        output=said,
    )


def _collect(sandbox: Sandbox, work: Work, write: Callable[[bytes], object]) -> None:
    """Have all that is not tracked, and not carried, written by a program in the sandbox."""

    def take(part: bytes) -> None:
        write(part)

    done = sandbox.run(
        [
            work.interpreter.executable,
            str(sandbox.inside / inside.COLLECT),
            _REPORT,
        ],
        dataclasses.replace(work.limits, report_bytes=work.limits.disk_bytes),
        input=b"\0".join(map(os.fsencode, work.carried)),
        report_env=_REPORT,
        on_report=take,
    )
    if done.code != 0 or done.stop is not None:
        said = (done.stdout + done.stderr).decode("utf-8", "replace")[-_OUTPUT_SHOWN:]
        raise PreparationError(
            "what `setup` made cannot be read from the sandbox",
            remedy="see that git is on PATH, and that it makes less than `disk_bytes`",
            output=said,
        )


def _unpack(archive: Path, folder: Path) -> list[str]:
    """Unpack what came out of a sandbox; nothing of it may lie, or lead, outside of `folder`."""
    with tarfile.open(archive) as members:
        members.extractall(folder, filter="data")
        return [os.path.normpath(member.name) for member in members.getmembers()]
