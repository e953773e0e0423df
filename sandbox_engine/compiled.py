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
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from sandbox_engine import disk, git, inside, lock, process
from sandbox_engine.errors import SandboxBusyError, SandboxError
from sandbox_engine.interpreter import Interpreter
from sandbox_engine.shelf import Place, Shelf, open_shelf
from sandbox_engine.store import Store

_PLACES, _KEPT = 16, 4
_MODULES = ("pytest", "xdist.plugin", "xdist.remote", "unittest.mock", "asyncio", "json")
"""What nearly every session imports; what these import comes along."""
_MOST_SOURCES = 5_000
"""More than the largest sessions load; who reports more is not to fill the disk with it."""
_WORTH_WHILE = 8
"""So many sources that are not provided yet are worth a process that compiles them."""
_GATHER_S = 120.0
_WAIT_S = 10.0
_LOCK = "making.lock"


@contextlib.contextmanager
def held(store: Store, interpreter: Interpreter) -> Iterator[Place | None]:
    """Hold what is compiled of the interpreter's environment; None where it cannot be provided."""
    place = _found_or_made(store, interpreter)
    try:
        yield place
    finally:
        if place is not None:
            os.close(place.lease)


def _found_or_made(store: Store, interpreter: Interpreter) -> Place | None:
    """Return a place; None if all are taken, or there is no room: without one, runs are slow."""
    shelf = open_shelf(store.compiled, most=_PLACES, kept=_KEPT)
    if place := _newest(shelf, interpreter):
        return place
    try:
        with _making(store):
            return _newest(shelf, interpreter) or _filled(
                shelf,
                f"{interpreter.signature} 0",
                lambda files, lease: _gather(interpreter, files, lease),
            )
    except SandboxBusyError:
        return None


def _filled(shelf: Shelf, label: str, make: Callable[[Path, int], None]) -> Place | None:
    def make_anew(folder: Path, before: str | None, held: int) -> None:
        disk.remove_tree(folder)
        folder.mkdir()
        make(folder / "files", held)

    try:
        return shelf.fill(label, make_anew)
    except (OSError, SandboxError):
        # The disk is full, say: what cannot be provided is made by each run, and is only slow.
        return None


def learn(
    store: Store, interpreter: Interpreter, sources: Iterable[str], rewritten: Iterable[str]
) -> None:
    """Provide what is compiled of `sources` too from now on, as far as the environment has them.

    Of `rewritten` pytest keeps a form of its own. Sandboxes that are open stay as they are: what
    is more goes to a place of its own.
    """
    shelf = open_shelf(store.compiled, most=_PLACES, kept=_KEPT)
    roots = tuple(os.path.join(root, "") for root in interpreter.roots)
    wanted = {
        f"{kind} {path}"
        for kind, paths in ((inside.PLAIN, sources), (inside.REWRITTEN, rewritten))
        for path in paths
        # A run says these: one with `..` would be written elsewhere than below the place.
        if os.path.normpath(path) == path and path.startswith(roots) and os.path.isfile(path)
    }
    wanted = set(sorted(wanted)[:_MOST_SOURCES])
    place = _newest(shelf, interpreter)
    if place is None or not wanted:
        return
    try:
        with lock.locked(store.compiled / _LOCK, timeout_s=0, what="the compiled files"):
            known = set(_read_sources(place.folder))
            if len(wanted - known) < _WORTH_WHILE:
                return
            generation = int(place.label.split()[1]) + 1

            def make(files: Path, held: int) -> None:
                shutil.copytree(place.folder / "files", files, copy_function=os.link)
                _gather(interpreter, files, held, sorted(wanted | known))

            if more := _filled(shelf, f"{interpreter.signature} {generation}", make):
                os.close(more.lease)
    except (OSError, SandboxError):
        # Another one is at it, or the disk is full: the next session tells the same again.
        return
    finally:
        os.close(place.lease)


def _newest(shelf: Shelf, interpreter: Interpreter) -> Place | None:
    """Return the place that has the most of what is compiled of the environment, held."""
    signature = interpreter.signature
    found = {
        int(label.split()[1]): (number, label)
        for number, label in shelf.labels().items()
        if label.startswith(signature)
    }
    for _, (number, label) in sorted(found.items(), reverse=True):
        if place := shelf.hold(number, label.__eq__):
            return place
    return None


def _making(store: Store) -> contextlib.AbstractContextManager[int]:
    return lock.locked(store.compiled / _LOCK, timeout_s=_WAIT_S, what="the compiled files")


def _read_sources(folder: Path) -> list[str]:
    try:
        return (folder / "sources").read_text().splitlines()
    except FileNotFoundError:
        return []


def _gather(
    interpreter: Interpreter, folder: Path, lease: int, sources: Sequence[str] = ()
) -> None:
    folder.mkdir(exist_ok=True)
    environment = git.plain_environment()
    for name in ("PYTHONPATH", "PYTHONHOME", "PYTHONPYCACHEPREFIX"):
        environment.pop(name, None)
    text = "".join(f"{source}\n" for source in sources if "\n" not in source)
    done = process.run_tool(
        [interpreter.executable, "-B", str(inside.FOLDER / inside.GATHER), str(folder), *_MODULES],
        cwd=Path("/"),
        env=environment,
        input=text.encode("utf-8", "surrogateescape"),
        timeout_s=_GATHER_S,
        keep_fds=(lease,),
    )
    if done.code != 0:
        raise SandboxError(
            f"`{interpreter.executable}` could not compile its own modules",
            remedy="see that there is room for the store",
        )
    (folder.parent / "sources").write_text(text)


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
