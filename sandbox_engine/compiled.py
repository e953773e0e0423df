"""Compiled files of the environment, provided by the engine so that no run has to make them.

A run gets a PYTHONPYCACHEPREFIX of its own: a stale or a crafted `.pyc` beside a source is then
never looked at. That would also hide what the environment has compiled, and pytest's own imports
would take most of a second; so the engine gathers them, in a place that no run can write to.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from sandbox_engine import disk, git, inside, lock, process
from sandbox_engine.interpreter import Interpreter
from sandbox_engine.shelf import Place, open_shelf
from sandbox_engine.store import Store

_PLACES, _KEPT = 16, 4
_MODULES = ("pytest", "xdist.plugin", "xdist.remote", "unittest.mock", "asyncio", "json")
"""What nearly every session imports; what these import comes along."""
_GATHER_S = 120.0


@contextlib.contextmanager
def held(store: Store, interpreter: Interpreter) -> Iterator[Place | None]:
    """Hold what is compiled of the interpreter's environment; None if all places are taken."""
    shelf = open_shelf(store.compiled, most=_PLACES, kept=_KEPT)
    label = interpreter.signature

    def make(folder: Path, before: str | None, lease: int) -> None:
        disk.remove_tree(folder)
        folder.mkdir()
        _gather(interpreter, folder / "files", lease)

    place = shelf.find(label)
    if place is None:
        waiting = lock.locked(
            store.compiled / "making.lock", timeout_s=_GATHER_S, what="the store's compiled files"
        )
        with waiting:
            place = shelf.find(label) or shelf.fill(label, make)
    try:
        yield place
    finally:
        if place is not None:
            os.close(place.lease)


def _gather(interpreter: Interpreter, folder: Path, lease: int) -> None:
    folder.mkdir()
    environment = git.plain_environment()
    for name in ("PYTHONPATH", "PYTHONHOME", "PYTHONPYCACHEPREFIX"):
        environment.pop(name, None)
    # What is missing afterwards is only slow, so its exit code says nothing.
    process.run_tool(
        [interpreter.executable, "-B", str(inside.FOLDER / inside.GATHER), str(folder), *_MODULES],
        cwd=Path("/"),
        env=environment,
        timeout_s=_GATHER_S,
        keep_fds=(lease,),
    )


def copied(source: Path | None, folder: Path) -> Path:
    """Make `folder` hold what `source` holds and nothing else, and return it.

    What is there already stays if nobody has touched it since it was copied: the time of a change
    of status cannot be put back.
    """
    stamps = folder.with_suffix(".json")
    wanted = {} if source is None else _states(source)
    known = _read_stamps(stamps)
    present = _states(folder) if folder.is_dir() else {}
    if {path: present.get(path) for path in known} != known or known.keys() != wanted.keys():
        disk.remove_tree(folder)
        present = {}
        folder.mkdir()
        for path in wanted:
            assert source is not None
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / path, folder / path)
        stamps.write_text(json.dumps(_states(folder)))
    for path in present.keys() - wanted.keys():
        disk.remove_tree(folder / path)
    return folder


def _read_stamps(path: Path) -> dict[str, list[int]]:
    try:
        known = json.loads(path.read_text())
        return known if isinstance(known, dict) else {}
    except (FileNotFoundError, ValueError):
        return {}


def _states(folder: Path) -> dict[str, list[int]]:
    """Return the inode and the time of the last change of every file below `folder`."""
    found = {}
    top = len(os.fspath(folder)) + 1
    for parent, folders, names in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        for name in (*names, *links):
            path = os.path.join(parent, name)
            status = os.lstat(path)
            found[path[top:]] = [status.st_ino, status.st_ctime_ns]
    return found
