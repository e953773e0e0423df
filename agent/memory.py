"""What the agent remembers of its cycles, written in the background and never lost once flushed.

`HEPHAESTUS_MEMORY.json` is the original's file with the original's fields. Entries are handed to a
thread that writes all that has gathered at once; `flush` returns when what was added before it
survives a loss of power. A process that ends in an orderly way flushes; one that turns signals
into exceptions, as the command line does, ends so on signals too.
"""

from __future__ import annotations

import atexit
import functools
import logging
import os
import threading
import weakref
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from agent.history import (
    Capability,
    Completed,
    Entry,
    Failed,
    History,
    HistoryStore,
    summary_of,
    with_entry,
)
from agent.history_json import JsonHistory
from agent.history_sqlite import SqliteHistory
from sandbox_engine import SandboxError

_RETRY_S = 1.0
_log = logging.getLogger(__name__)
_memories: weakref.WeakSet[Memory] = weakref.WeakSet()


class Memory:
    """The memory in the file at `path`; safe to share between threads, and after a fork.

    With the backend `sqlite` it is in a database beside that file, which takes over what the file
    remembers, forgets nothing and is quick to search.
    """

    def __init__(self, path: Path, *, backend: Literal["json", "sqlite"] = "json") -> None:
        self._store = _store(path, backend)
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._waiting: list[Entry] = []
        self._written = self._added = 0
        self._trouble: SandboxError | None = None
        self._thread: threading.Thread | None = None
        self._is_closing = False
        _memories.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def add_completed_objective(
        self, objective: str, strategy: str, details: str = "", *, date: str = ""
    ) -> None:
        """Remember an objective that was reached, at `date` in ISO 8601 or now.

        What is remembered with the same date and words already is not remembered twice.
        """
        self._add(Completed(date or _now(), objective, details, strategy))

    def add_failed_objective(
        self, objective: str, reason: str, details: str = "", *, date: str = ""
    ) -> None:
        """Remember an objective that was not reached, and why; see `add_completed_objective`."""
        self._add(Failed(date or _now(), objective, details, reason))

    def add_capability(
        self, description: str, related_objective: str | None = None, *, date: str = ""
    ) -> None:
        """Remember something that can be done from now on; see `add_completed_objective`."""
        self._add(Capability(date or _now(), description, related_objective))

    @property
    def history(self) -> History:
        """What is remembered, with what is not written yet."""
        with self._changed:
            waiting = list(self._waiting)
            history = self._store.read()
        return functools.reduce(with_entry, waiting, history)

    def summary(self) -> str:
        """Return what is remembered as text for a model, the newest first."""
        return summary_of(self.history)

    def search(self, text: str, limit: int = 10) -> tuple[Completed | Failed, ...]:
        """Return up to `limit` objectives that have every word of `text`, the newest first."""
        self.flush()
        return self._store.search(text, limit)

    def save(self) -> None:
        """Have written what was added, without waiting for it."""
        with self._changed:
            self._start()

    def flush(self) -> None:
        """Wait until all that was added is written; raise SandboxError if it cannot be."""
        self._after_fork()
        with self._changed:
            wanted = self._added
            self._trouble = None
            self._start()
            while self._written < wanted:
                if self._trouble is not None:
                    raise self._trouble
                self._changed.wait(_RETRY_S)

    def close(self) -> None:
        """Write all that was added, and end the thread; a later addition starts a new one."""
        try:
            self.flush()
        finally:
            with self._changed:
                self._is_closing = True
                self._changed.notify_all()
                thread, self._thread = self._thread, None
            if thread is not None:
                thread.join()
            self._is_closing = False
            self._store.close()

    def _add(self, entry: Entry) -> None:
        self._after_fork()
        with self._changed:
            self._waiting.append(entry)
            self._added += 1
            self._start()

    def _start(self) -> None:
        if self._waiting and self._thread is None:
            self._thread = threading.Thread(target=self._write, name="memory", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _write(self) -> None:
        with self._changed:
            while not self._is_closing:
                if not self._waiting:
                    self._changed.wait()
                    continue
                self._write_some(list(self._waiting))

    def _write_some(self, entries: list[Entry]) -> None:
        """Write what waits, and let others add meanwhile."""
        self._changed.release()
        trouble = None
        try:
            self._store.add(entries)
        except SandboxError as error:
            trouble = error
        finally:
            self._changed.acquire()
        if trouble is None:
            del self._waiting[: len(entries)]
            self._written += len(entries)
        else:
            _log.warning("what is to be remembered waits: %s", trouble.problem)
            self._trouble = trouble
        self._changed.notify_all()
        if trouble is not None and not self._is_closing:
            self._changed.wait(_RETRY_S)

    def _after_fork(self) -> None:
        """Start anew in a forked child: what waits, and the thread, are its parent's."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._changed = threading.Condition()
            self._waiting, self._thread = [], None
            self._written = self._added = 0
            self._store.forget()


@atexit.register
def _flush_all() -> None:
    for memory in list(_memories):
        _tried(memory.close)


def _tried(call: Callable[[], None]) -> None:
    try:
        call()
    except SandboxError as error:
        _log.error("something is not remembered: %s", error)


def _store(path: Path, backend: str) -> HistoryStore:
    if backend == "json":
        return JsonHistory(path)
    return SqliteHistory(path.with_suffix(".sqlite3"), first=JsonHistory(path).read())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
