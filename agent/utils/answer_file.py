"""One SQLite file of answers that many threads, processes and runs share.

It is a cache: damaged, or written by another version, it is set aside and made anew, and nothing
but money and time is lost. An answer is found only if it is byte for byte the one that was kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox_engine import DiskFullError, SandboxBusyError, SandboxError

_VERSION = 1
_BUSY_S = 10.0
_TABLES = (
    "DROP TABLE IF EXISTS answer",
    "CREATE TABLE answer (key TEXT PRIMARY KEY, record BLOB NOT NULL, digest BLOB NOT NULL, "
    "bytes INTEGER NOT NULL, used INTEGER NOT NULL)",
    "CREATE INDEX answer_used ON answer (used, bytes)",
    f"PRAGMA user_version = {_VERSION}",
)
_NOW = "(SELECT coalesce(max(used), 0) + 1 FROM answer)"
_FIND = "SELECT record, digest FROM answer WHERE key = ?"
_TOUCH = f"UPDATE answer SET used = {_NOW} WHERE key = ?"
_KEEP = f"INSERT OR REPLACE INTO answer VALUES (?, ?, ?, ?, {_NOW})"
_FORGET = "DELETE FROM answer WHERE key = ?"
_TRIM = (
    "DELETE FROM answer WHERE key IN (SELECT key FROM (SELECT key, "
    "row_number() OVER latest AS place, sum(bytes) OVER latest AS total FROM answer "
    "WINDOW latest AS (ORDER BY used DESC ROWS UNBOUNDED PRECEDING)) "
    "WHERE place > ? OR total > ?)"
)
_COUNT = "SELECT count(*) FROM answer"
_TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# A cache: it may be removed at any time.\n"

_Step = tuple[str, tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """An answer, and what it cost when it was asked for."""

    content: str
    tokens: int = 0
    cost_usd: float = 0.0
    elapsed_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Holding:
    """How much a file holds: answers, and bytes on disk."""

    answers: int
    bytes: int


class AnswerFile:
    """The file at `path`, opened when first used; every method may raise SandboxError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._inode = 0
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._inherited: list[sqlite3.Connection | None] = []

    def find(self, key: str) -> KeptAnswer | None:
        """Return the answer kept for `key`, which is now the one used last, or None."""
        rows = self._run((_FIND, (key,)))
        if not rows:
            return None
        record, digest = rows[0]
        if not isinstance(record, bytes) or digest != _digest(key, record):
            self.forget(key)
            return None
        self.touch(key)
        return KeptAnswer(**json.loads(record))

    def touch(self, key: str) -> None:
        """Make the answer kept for `key` the one used last, if there is one."""
        self._run((_TOUCH, (key,)))

    def keep(self, key: str, answer: KeptAnswer, *, answers: int, bytes: int) -> None:
        """Keep `answer` for `key`; those used longest ago go beyond so many answers and bytes."""
        record = json.dumps(dataclasses.asdict(answer), separators=(",", ":")).encode("ascii")
        values = (key, record, _digest(key, record), len(record))
        self._run((_KEEP, values), (_TRIM, (answers, bytes)))

    def forget(self, key: str) -> None:
        """Drop the answer kept for `key`, if there is one."""
        self._run((_FORGET, (key,)))

    def clear(self) -> None:
        """Drop all answers, and give their room back."""
        self._run(("DELETE FROM answer", ()))
        self._run(("VACUUM", ()))

    def holding(self) -> Holding:
        """Return how much the file holds."""
        ((answers,),) = self._run((_COUNT, ()))
        return Holding(answers, self._path.stat().st_size)

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        with self._alone():
            self._drop_connection()

    def _run(self, *steps: _Step) -> list[tuple[Any, ...]]:
        """Do all steps or none and return the rows of the last one."""
        with self._alone():
            try:
                return self._execute(steps)
            except sqlite3.DatabaseError as error:
                self._drop_connection()
                if (trouble := _trouble(error, self._path)) is not None:
                    raise trouble from error
            try:
                _set_aside(self._path, self._inode)
                return self._execute(steps)
            except (sqlite3.DatabaseError, OSError) as error:
                self._drop_connection()
                raise _unusable(self._path, error) from error

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock; what a forked child inherits of its parent's is left alone.

        A connection that is used, or only closed, on both sides of a fork can damage the file,
        and a lock that was taken at that moment is never given back in the child.
        """
        if self._pid != os.getpid():
            self._inherited.append(self._connection)
            self._connection, self._lock, self._pid = None, threading.Lock(), os.getpid()
        with self._lock:
            yield

    def _execute(self, steps: tuple[_Step, ...]) -> list[tuple[Any, ...]]:
        connection = self._connection
        if connection is None:
            connection = self._connection = _connect(self._path)
            self._inode = self._path.stat().st_ino
        if len(steps) == 1:
            return connection.execute(*steps[0]).fetchall()
        with _transaction(connection):
            return [connection.execute(*step).fetchall() for step in steps][-1]

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    # A transaction that begins by reading cannot wait for a writer when it comes to write itself.
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _connect(path: Path) -> sqlite3.Connection:
    _make_folder(path.parent)
    connection = sqlite3.connect(
        path, timeout=_BUSY_S, check_same_thread=False, isolation_level=None
    )
    try:
        # A write-ahead log can lose its reset in SQLite before 3.51.3; one writer needs none.
        connection.execute("PRAGMA journal_mode = TRUNCATE")
        connection.execute("PRAGMA synchronous = NORMAL")
        if _version(connection) != _VERSION:
            _make_tables(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / "CACHEDIR.TAG").write_text(_TAG)
    except OSError as error:
        raise _unusable(folder, error) from error


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def _make_tables(connection: sqlite3.Connection, path: Path) -> None:
    with _transaction(connection):
        if _version(connection) == _VERSION:
            return
        # Answers hold code that others on this machine may not be allowed to read.
        path.chmod(0o600)
        for statement in _TABLES:
            connection.execute(statement)


def _digest(key: str, record: bytes) -> bytes:
    return hashlib.sha256(key.encode() + b" " + record).digest()


def _trouble(error: sqlite3.DatabaseError, path: Path) -> SandboxError | None:
    """Return what to raise for `error`, or None when the file is damaged and can be made anew."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return DiskFullError(
            f"`{path}` cannot be written: no space is left on the device",
            remedy="free some space; the file is a cache and may be removed",
        )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return SandboxBusyError(
            f"`{path}` stayed locked for {_BUSY_S:g} s",
            remedy="wait for the other process that uses it to end, or end it",
        )
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
        return None
    return _unusable(path, error)


def _unusable(path: Path, error: Exception) -> SandboxError:
    return SandboxError(
        f"`{path}` cannot be used: {error}",
        remedy="check that the folder exists and that you may write there",
    )


def _set_aside(path: Path, inode: int) -> None:
    """Rename the damaged file at `path`, unless another process has done so.

    Its journal goes with it: left behind, it would be played back into the new file.
    """
    with path.with_name(f"{path.name}.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists() or (inode and path.stat().st_ino != inode):
            return
        journal = path.with_name(f"{path.name}-journal")
        if journal.exists():
            journal.replace(path.with_name(f"{path.name}.damaged-journal"))
        path.replace(path.with_name(f"{path.name}.damaged"))
