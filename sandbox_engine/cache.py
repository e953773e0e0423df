"""What is remembered between runs, in one SQLite file per store.

Verdicts are kept by (tree, base tree, recipe, environment), and found by their receipts too. Every
verdict that was given is in the log, whatever it was, for people to look back at. What the tests of
a base do is kept by (base tree, recipe, arguments, environment). The file is a cache: damaged, or
written by another version, it is set aside and made anew, and nothing but time is lost.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox_engine.delta import BaseTests
from sandbox_engine.errors import DiskFullError, SandboxBusyError, SandboxError
from sandbox_engine.verdict import Outcome, TreeId, Verdict

_VERSION = 3
_VERDICTS_KEPT = 10_000
_BASES_KEPT = 100
LOGGED_KEPT, LOGGED_BYTES = 1_000, 64 * 2**20
"""The log forgets the oldest beyond so many verdicts, and beyond so many bytes of them."""
_ID_CHARS = 12
_BUSY_S = 10.0
_TABLES = (
    "CREATE TABLE verdict (key TEXT PRIMARY KEY, outcome TEXT NOT NULL, record TEXT NOT NULL, "
    "kept REAL NOT NULL, receipt TEXT)",
    "CREATE INDEX verdict_receipt ON verdict (receipt)",
    "CREATE TABLE base (key TEXT PRIMARY KEY, record BLOB NOT NULL, kept REAL NOT NULL)",
    "CREATE TABLE log (id TEXT PRIMARY KEY, given REAL NOT NULL, outcome TEXT NOT NULL, strategy "
    "TEXT NOT NULL, base TEXT NOT NULL, tree TEXT, receipt TEXT, elapsed_s REAL NOT NULL, reason "
    "TEXT NOT NULL, what TEXT NOT NULL, record BLOB NOT NULL)",
    "CREATE INDEX log_given ON log (given)",
    "CREATE TABLE note (key TEXT PRIMARY KEY, record TEXT NOT NULL)",
)


@dataclass(frozen=True, slots=True)
class Key:
    """What decides a verdict; the base's tree because steps ask what a patch added."""

    tree: TreeId
    base_tree: TreeId
    recipe: str
    environment: str

    def __str__(self) -> str:
        return " ".join((self.tree, self.base_tree, self.recipe, self.environment))


@dataclass(frozen=True, slots=True)
class Logged:
    """A line of the log: a verdict that was given at `given`, in seconds since 1970."""

    id: str
    given: float
    outcome: Outcome
    strategy: str
    base: str
    tree: str | None
    elapsed_s: float
    reason: str
    what: str


@dataclass(frozen=True, slots=True)
class Usage:
    """How much is kept: verdicts by outcome, and bytes on disk."""

    verdicts: dict[str, int]
    bytes: int


class Cache:
    """The file at `path`, opened when first used; safe to share between threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def find(self, key: Key) -> Verdict | None:
        """Return the verdict kept for `key`, or None."""
        return self._find("key", str(key))

    def find_receipt(self, digest: str) -> Verdict | None:
        """Return the verdict whose receipt has `digest`, or None."""
        return self._find("receipt", digest)

    def _find(self, column: str, value: str) -> Verdict | None:
        rows = self._run(f"SELECT record FROM verdict WHERE {column} = ?", (value,))
        try:
            return Verdict.from_json(json.loads(rows[0][0])) if rows else None
        except ValueError:
            self._run(f"DELETE FROM verdict WHERE {column} = ?", (value,))
            return None

    def keep(self, key: Key, verdict: Verdict) -> None:
        """Keep `verdict` for `key` if it must recur; the oldest beyond the limit are dropped."""
        if not verdict.is_final:
            return
        record = json.dumps(verdict.to_json(), separators=(",", ":"))
        receipt = verdict.receipt and verdict.receipt.digest
        self._run(
            "INSERT OR REPLACE INTO verdict VALUES (?, ?, ?, ?, ?)",
            (str(key), verdict.outcome, record, time.time(), receipt),
        )
        self._run(
            "DELETE FROM verdict WHERE key IN "
            "(SELECT key FROM verdict ORDER BY kept DESC LIMIT -1 OFFSET ?)",
            (_VERDICTS_KEPT,),
        )

    def find_base(self, key: str) -> BaseTests | None:
        """Return what is known of the tests of a base, or None."""
        rows = self._run("SELECT record FROM base WHERE key = ?", (key,))
        try:
            return BaseTests.from_json(json.loads(zlib.decompress(rows[0][0]))) if rows else None
        except (ValueError, TypeError, KeyError, zlib.error):
            return None

    def keep_base(self, key: str, tests: BaseTests) -> None:
        """Keep what is known of the tests of a base; the oldest beyond the limit are dropped."""
        record = json.dumps(tests.to_json(), separators=(",", ":")).encode()
        values = (key, zlib.compress(record, 1), time.time())
        self._run("INSERT OR REPLACE INTO base VALUES (?, ?, ?)", values)
        self._run(
            "DELETE FROM base WHERE key IN "
            "(SELECT key FROM base ORDER BY kept DESC LIMIT -1 OFFSET ?)",
            (_BASES_KEPT,),
        )

    def log(self, verdict: Verdict) -> str:
        """Add a verdict to the log, and return its id there."""
        record = json.dumps(verdict.to_json(), separators=(",", ":")).encode()
        now = time.time()
        id = hashlib.sha256(b"%r %s" % (now, record)).hexdigest()[:_ID_CHARS]
        self._run(
            "INSERT OR REPLACE INTO log VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(id, now, verdict.outcome, verdict.strategy, verdict.base, verdict.tree),
                *(verdict.receipt and verdict.receipt.digest, verdict.elapsed_s),
                *(verdict.reason, _what(verdict), zlib.compress(record, 1)),
            ),
        )
        self._run(
            "DELETE FROM log WHERE id IN (SELECT id FROM (SELECT id, row_number() OVER newest AS n,"
            " sum(length(record)) OVER newest AS size FROM log WINDOW newest AS (ORDER BY given"
            " DESC)) WHERE n > ? OR (size > ? AND n > 1))",
            (LOGGED_KEPT, LOGGED_BYTES),
        )
        return id

    def logged(self, most: int) -> list[Logged]:
        """Return the last lines of the log, the newest first."""
        rows = self._run(
            "SELECT id, given, outcome, strategy, base, tree, elapsed_s, reason, what FROM log "
            "ORDER BY given DESC LIMIT ?",
            (most,),
        )
        return [Logged(row[0], row[1], Outcome(row[2]), *row[3:]) for row in rows]

    def find_logged(self, name: str) -> list[tuple[str, Verdict]]:
        """Return the logged verdicts whose id, tree or receipt begins with `name`, newest first.

        They come with their ids.
        """
        like = "".join(char for char in name if char.isalnum()) + "%"
        rows = self._run(
            "SELECT id, record FROM log WHERE id LIKE ? OR tree LIKE ? OR receipt LIKE ? "
            "ORDER BY given DESC",
            (like, like, like),
        )
        return [(id, Verdict.from_json(json.loads(zlib.decompress(raw)))) for id, raw in rows]

    def note(self, key: str) -> Any:
        """Return the JSON value that was noted under `key`, or None."""
        rows = self._run("SELECT record FROM note WHERE key = ?", (key,))
        return json.loads(rows[0][0]) if rows else None

    def set_note(self, key: str, value: Any) -> None:
        """Note a small JSON value, such as how long a run took, under `key`."""
        self._run("INSERT OR REPLACE INTO note VALUES (?, ?)", (key, json.dumps(value)))

    def usage(self) -> Usage:
        """Return what the file holds."""
        rows = self._run("SELECT outcome, count(*) FROM verdict GROUP BY outcome", ())
        return Usage(dict(rows), self._path.stat().st_size)

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _run(self, statement: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        with self._lock:
            try:
                return self._execute(statement, values)
            except sqlite3.DatabaseError as error:
                self._drop_connection()
                if (trouble := _trouble(error, self._path)) is not None:
                    raise trouble from error
                _set_aside(self._path)
                return self._execute(statement, values)

    def _execute(self, statement: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        if self._connection is None:
            self._connection = _connect(self._path)
        with self._connection:
            return self._connection.execute(statement, values).fetchall()

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_BUSY_S, check_same_thread=False)
    try:
        # A write-ahead log can lose its reset in SQLite before 3.51.3; one writer needs none.
        connection.execute("PRAGMA journal_mode = TRUNCATE")
        connection.execute("PRAGMA synchronous = NORMAL")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version != _VERSION:
            _make_tables(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _make_tables(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version != _VERSION:
        for name in ("verdict", "base", "log", "note"):
            connection.execute(f"DROP TABLE IF EXISTS {name}")
        for statement in _TABLES:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {_VERSION}")
    connection.commit()


def _what(verdict: Verdict) -> str:
    """Return what was judged, as people know it: the first line of its summary, or its paths."""
    first = verdict.summary.strip().partition("\n")[0]
    return first or ", ".join(verdict.changed_paths[:3])


def _trouble(error: sqlite3.DatabaseError, path: Path) -> SandboxError | None:
    """Return what to raise for `error`, or None when the file is damaged and can be made anew."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return DiskFullError(
            f"`{path}` cannot be written: no space is left on the device",
            remedy="free some space; `sandbox-engine cache clear` gives back the engine's own",
        )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return SandboxBusyError(
            f"`{path}` stayed locked for {_BUSY_S:g} s",
            remedy="wait for the other sandbox-engine process to end, or end it",
        )
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
        return None
    return SandboxError(
        f"`{path}` cannot be used: {error}",
        remedy="check that the folder exists and that you may write there",
    )


def _set_aside(path: Path) -> None:
    if path.exists():
        path.replace(path.with_name(f"{path.name}.damaged"))
