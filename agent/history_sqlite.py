"""A history in SQLite, for one that grows long: nothing is ever dropped, and it can be searched.

Words are sought in a full-text index where SQLite has FTS5, else with LIKE; both look at the
folded text, and find the same but for the inside of words.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from agent import files
from agent.history import (
    KEPT,
    LISTS,
    RECENT,
    Attempt,
    Completed,
    Entry,
    Failed,
    History,
    attempt_of,
    parse_entry,
    sought_text,
    words_of,
)
from sandbox_engine import DiskFullError, SandboxBusyError, SandboxError

_VERSION = 1
_BUSY_S = 10.0
_ATTEMPTS = "recent_objectives_log"
_NEWEST = 2 * KEPT
_TABLES = (
    "CREATE TABLE entry (id INTEGER PRIMARY KEY, list TEXT NOT NULL, record TEXT NOT NULL, "
    "words TEXT NOT NULL, UNIQUE (list, record))",
    "CREATE INDEX entry_list ON entry (list, id)",
)
_INDEX = "CREATE VIRTUAL TABLE found USING fts5 (words, content = 'entry', content_rowid = 'id')"
_log = logging.getLogger(__name__)


class SqliteHistory:
    """The history in the database at `path`, opened when first used.

    A new one takes over what `first` remembers, which is left as it is.
    """

    def __init__(self, path: Path, *, first: History | None = None, full_text: bool = True) -> None:
        self._path = path
        self._first = first or History()
        self._full_text = full_text
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._abandoned: list[sqlite3.Connection] = []

    def read(self) -> History:
        """Return the newest of each kind; `older` counts the others."""
        with self._transaction() as connection:
            found: dict[str, Any] = {}
            older = {}
            for name in LISTS:
                rows = connection.execute(
                    "SELECT record FROM entry WHERE list = ? ORDER BY id DESC LIMIT ?",
                    (name, _NEWEST),
                ).fetchall()
                found[name] = tuple(_entry(name, record) for (record,) in reversed(rows))
                (count,) = connection.execute(
                    "SELECT count(*) FROM entry WHERE list = ?", (name,)
                ).fetchone()
                older[name] = count - len(rows)
        return History(**found, older=older)

    def add(self, entries: Sequence[Entry]) -> None:
        with self._transaction() as connection:
            self._insert(connection, entries)

    def search(self, text: str, limit: int) -> tuple[Completed | Failed, ...]:
        words = words_of(text)
        if not words:
            return ()
        with self._transaction() as connection:
            if self._has_index(connection):
                where = "id IN (SELECT rowid FROM found WHERE found MATCH ?)"
                values = [" ".join(f'"{word}"*' for word in words)]
            else:
                where = " AND ".join(["words LIKE ?"] * len(words))
                values = [f"%{word}%" for word in words]
            rows = connection.execute(
                f"SELECT list, record FROM entry WHERE words != '' AND {where} "
                "ORDER BY id DESC LIMIT ?",
                (*values, limit),
            ).fetchall()
        entries = (_entry(name, record) for name, record in rows)
        return tuple(entry for entry in entries if isinstance(entry, Completed | Failed))

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def forget(self) -> None:
        # To close what is the parent's would let go of the parent's locks.
        self._lock = threading.RLock()
        if self._connection is not None:
            self._abandoned.append(self._connection)
            self._connection = None

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Hold all that is done within together; a damaged file is set aside and made anew."""
        with self._lock:
            try:
                connection = self._opened()
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.DatabaseError as error:
                self.close()
                self._recover(error)
                connection = self._opened()
                connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except sqlite3.DatabaseError as error:
                self.close()
                raise _trouble(error, self._path) from error
            except BaseException:
                self.close()
                raise

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            with files.told(self._path, "used"):
                self._path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = _connect(self._path)
            try:
                self._make(self._connection)
            except BaseException:
                self.close()
                raise
        return self._connection

    def _make(self, connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version not in (0, _VERSION):
            connection.execute("ROLLBACK")
            raise SandboxError(
                f"`{self._path}` was written by another version of the agent ({version})",
                remedy="use that version, or name another `memory_file_path`",
            )
        if version == 0:
            for statement in _TABLES:
                connection.execute(statement)
            if self._full_text:
                # Without FTS5 words are sought one row after the other.
                with contextlib.suppress(sqlite3.OperationalError):
                    connection.execute(_INDEX)
            first = self._first
            lists = [getattr(first, name) for name in LISTS if name != _ATTEMPTS]
            self._insert(connection, [entry for entries in lists for entry in entries])
            connection.execute(f"PRAGMA user_version = {_VERSION}")
        connection.execute("COMMIT")

    def _insert(self, connection: sqlite3.Connection, entries: Sequence[Entry]) -> None:
        has_index = self._has_index(connection)
        for entry in entries:
            name = next(name for name, kind in LISTS.items() if kind is type(entry))
            words = sought_text(entry) if isinstance(entry, Completed | Failed) else ""
            added = connection.execute(
                "INSERT OR IGNORE INTO entry (list, record, words) VALUES (?, ?, ?)",
                (name, json.dumps(entry.to_json()), words),
            )
            if not added.rowcount:
                continue
            if has_index and words:
                connection.execute(
                    "INSERT INTO found (rowid, words) VALUES (?, ?)", (added.lastrowid, words)
                )
            if isinstance(entry, Completed | Failed):
                self._log_attempt(connection, attempt_of(entry))

    def _log_attempt(self, connection: sqlite3.Connection, attempt: Attempt) -> None:
        connection.execute(
            "INSERT OR IGNORE INTO entry (list, record, words) VALUES (?, ?, '')",
            (_ATTEMPTS, json.dumps(attempt.to_json())),
        )
        connection.execute(
            "DELETE FROM entry WHERE list = ? AND id NOT IN "
            "(SELECT id FROM entry WHERE list = ? ORDER BY id DESC LIMIT ?)",
            (_ATTEMPTS, _ATTEMPTS, RECENT),
        )

    def _has_index(self, connection: sqlite3.Connection) -> bool:
        rows = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'found'").fetchall()
        return bool(rows)

    def _recover(self, error: sqlite3.DatabaseError) -> None:
        """Set the file aside if it is damaged; raise SandboxError for any other trouble."""
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        if code not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise _trouble(error, self._path) from error
        with files.told(self._path, "used"), files.locked(self._path):
            if not _is_damaged(self._path):
                # Another process has mended it meanwhile.
                return
            for suffix in ("-journal", ""):
                path = self._path.with_name(f"{self._path.name}{suffix}")
                if path.exists():
                    kept = files.set_aside(path, "damaged")
                    _log.warning("`%s` is damaged: it is kept as `%s`", path, kept)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=_BUSY_S, check_same_thread=False, isolation_level=None
    )
    try:
        # A write-ahead log can lose its reset in SQLite before 3.51.3; what is remembered must
        # survive a loss of power.
        connection.execute("PRAGMA journal_mode = TRUNCATE")
        connection.execute("PRAGMA synchronous = FULL")
    except BaseException:
        connection.close()
        raise
    return connection


def _is_damaged(path: Path) -> bool:
    try:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            (said,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError:
        return True
    return bool(said != "ok")


def _entry(name: str, record: str) -> Entry:
    return parse_entry(LISTS[name], json.loads(record))


def _trouble(error: sqlite3.DatabaseError, path: Path) -> SandboxError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return DiskFullError(
            f"`{path}` cannot be written: no space is left on the device", remedy="free some space"
        )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return SandboxBusyError(
            f"`{path}` stayed locked for {_BUSY_S:g} s",
            remedy="wait for the other agent that uses it to end, or end it",
        )
    return SandboxError(
        f"`{path}` cannot be used: {error}",
        remedy="check that its folder exists and that you may write there",
    )
