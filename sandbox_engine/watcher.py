"""Starts, stops and looks at the watcher of a work tree: one process, found by its socket."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from sandbox_engine import git, lock, process
from sandbox_engine.errors import RepositoryError, SandboxBusyError, SandboxError
from sandbox_engine.watch.client import ask, converse
from sandbox_engine.watch.place import Place, place_of

_START_S = 60.0
_STOP_S = 10.0
_STATUS_S = 5.0
_POLL_S = 0.02


def run(repo: str | os.PathLike[str]) -> None:
    """Watch the work tree that holds `repo` until told to stop, or it is gone.

    Raise SandboxBusyError if it is watched already, RepositoryError for no work tree.
    """
    from sandbox_engine.watch.server import Server

    repository = _repository(repo)
    assert repository.top is not None
    refresher = [*_python(), "sandbox_engine.analysis.refresh", os.fspath(repository.top)]
    server = Server(place_of(repository.top), repository, refresher=refresher)
    # Nothing must keep a folder or a file system busy.
    os.chdir("/")
    server.serve()


def start(repo: str | os.PathLike[str]) -> bool:
    """Start a process that watches the work tree; False if one does already.

    Raise SandboxError, with what it said last, if it does not answer in time.
    """
    top = _top(repo)
    place = place_of(top)
    if status(repo) is not None:
        return False
    place.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with place.log.open("ab") as log:
        child = process.spawn(
            [*_python(), "sandbox_engine", "watch", "--foreground", "--repo", os.fspath(top)],
            cwd="/",
            env=process.without_git_variables(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    deadline = time.monotonic() + _START_S
    while ask(top, None) is None:
        if child.poll() is not None or time.monotonic() > deadline:
            child.kill()
            child.wait()
            raise SandboxError(
                f"the watcher of `{top}` did not start: {_last_words(place)}",
                remedy=f"`{place.log}` has all that it said",
            )
        time.sleep(_POLL_S)
    # It lives on; nobody is to be told that it was not waited for.
    child.returncode = 0
    return True


def stop(repo: str | os.PathLike[str]) -> bool:
    """End the process that watches the work tree; False if there is none.

    Raise SandboxBusyError if it does not end.
    """
    place = place_of(_top(repo))
    if not _is_held(place):
        return False
    converse(place, {"stop": True}, timeout_s=_STATUS_S)
    deadline = time.monotonic() + _STOP_S
    while _is_held(place):
        if time.monotonic() > deadline:
            raise SandboxBusyError(
                "the watcher does not end", remedy=f"end the process that holds `{place.lock}`"
            )
        time.sleep(_POLL_S)
    return True


def status(repo: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return what the watcher of the work tree says of itself, None if none answers."""
    place = place_of(_top(repo))
    answer = converse(place, {"status": True}, timeout_s=_STATUS_S)
    return answer if isinstance(answer, dict) else None


def log_of(repo: str | os.PathLike[str]) -> Path:
    """Return where the watcher of the work tree writes what happens to it."""
    return place_of(_top(repo)).log


def _python() -> list[str]:
    """Return how modules are run: what lies in the working directory is not imported."""
    return [sys.executable, "-P", "-m"]


def _repository(repo: str | os.PathLike[str]) -> git.Repository:
    repository = git.find_repository(repo)
    if repository.top is None:
        raise RepositoryError(
            f"the repository at `{repo}` has no work tree", remedy="there is nothing to watch in it"
        )
    return repository


def _top(repo: str | os.PathLike[str]) -> Path:
    top = _repository(repo).top
    assert top is not None
    return top


def _is_held(place: Place) -> bool:
    if not place.folder.is_dir():
        return False
    descriptor = lock.try_lock(place.lock)
    if descriptor is None:
        return True
    os.close(descriptor)
    return False


def _last_words(place: Place) -> str:
    lines = place.log.read_text("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
