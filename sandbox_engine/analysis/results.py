"""What analysers said, kept by content, in one SQLite file for all repositories of a user.

A result is found by (blob, analyser, version): branches, work trees, clones and candidates share
it. Beside the results the file has, for each folder that was scanned, the stamps of its files and
their blobs, so that a file need not be read to know what it holds.

The file is a cache: damaged, or written by another version, it is set aside and made anew. Each
row has a checksum of its own, because SQLite does not see a bit that changed inside a value.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sandbox_engine import lock
from sandbox_engine.analysis.analysers import Analyser, Unknown
from sandbox_engine.analysis.stamps import Stamp
from sandbox_engine.errors import SandboxBusyError

MOST_BYTES = 512 * 2**20
"""The results that were used least recently are dropped when the file grows beyond this."""

_VERSION = 1
_BUSY_S = 10.0
_CHUNK = 500
_DAY_S = 86_400
_STALE_DAYS = 7
"""A use is noted so seldom, because to note it is to write the row anew."""
_ROOTS_KEPT = 200
_TABLES = (
    "CREATE TABLE analyser (id INTEGER PRIMARY KEY, name TEXT NOT NULL, version TEXT NOT NULL, "
    "UNIQUE (name, version))",
    "CREATE TABLE result (analyser INTEGER NOT NULL, blob BLOB NOT NULL, used INTEGER NOT NULL, "
    "crc INTEGER NOT NULL, value BLOB NOT NULL, PRIMARY KEY (analyser, blob)) WITHOUT ROWID",
    "CREATE INDEX result_used ON result (used)",
    "CREATE TABLE root (id INTEGER PRIMARY KEY, path BLOB NOT NULL UNIQUE, used INTEGER NOT NULL)",
    "CREATE TABLE file (root INTEGER NOT NULL, path BLOB NOT NULL, size INTEGER NOT NULL, "
    "mtime_ns INTEGER NOT NULL, ctime_ns INTEGER NOT NULL, inode INTEGER NOT NULL, "
    "blob BLOB NOT NULL, crc INTEGER NOT NULL, PRIMARY KEY (root, path)) WITHOUT ROWID",
)
_ATTEMPTS = 3
_ASIDE_S = 5.0
_DAMAGED = (
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_CONSTRAINT,
)
_DAMAGED_READS = (sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_CORRUPTFS)
_HOPELESS = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL)
"""What is no better for a file that is opened anew."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Usage:
    """How much is kept: results by `name version` of their analyser, folders, bytes on disk."""

    results: dict[str, int]
    folders: int
    bytes: int


def packed(value: Any | Unknown) -> bytes:
    """Return a result as it is kept; `unpacked` is the way back."""
    if isinstance(value, Unknown):
        return b"u" + value.reason.encode("utf-8", "backslashreplace")
    return b"v" + zlib.compress(json.dumps(value, separators=(",", ":")).encode(), 1)


def unpacked(kept: bytes) -> Any | Unknown:
    """Return the result that `packed` was given."""
    if kept[:1] == b"u":
        return Unknown(kept[1:].decode())
    return json.loads(zlib.decompress(kept[1:]))


class Results:
    """The file at `path`, opened when first used; safe to share between threads and processes.

    What cannot be kept is computed again, so no method raises for what is wrong with the file:
    `trouble` then says why nothing is kept.
    """

    def __init__(self, path: Path, *, most_bytes: int = MOST_BYTES) -> None:
        self.trouble = ""
        self.path = path
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._inode = 0
        self._ids: dict[Analyser, int] = {}

    def find(self, analyser: Analyser, blobs: Iterable[bytes]) -> dict[bytes, bytes]:
        """Return what is kept for those of `blobs` that are known, packed."""

        def read(connection: sqlite3.Connection) -> dict[bytes, bytes]:
            found: dict[bytes, bytes] = {}
            stale = []
            number = self._id(connection, analyser)
            if number is None:
                return found
            oldest = _today() - _STALE_DAYS
            for some in _chunks(blobs):
                rows = connection.execute(
                    "SELECT blob, used, crc, value FROM result WHERE analyser = ? AND blob IN "
                    f"({','.join('?' * len(some))})",
                    (number, *some),
                )
                for blob, used, crc, value in rows:
                    if crc == _result_crc(analyser, blob, value):
                        found[blob] = value
                        if used < oldest:
                            stale.append((_today(), number, blob))
            if stale:
                connection.executemany(
                    "UPDATE result SET used = ? WHERE analyser = ? AND blob = ?", stale
                )
            return found

        return self._run(read, {})

    def keep(self, rows: Sequence[tuple[Analyser, bytes, bytes]]) -> None:
        """Keep packed results of (analyser, blob), all of them or none."""

        def write(connection: sqlite3.Connection) -> None:
            today = _today()
            connection.executemany(
                "INSERT OR REPLACE INTO result VALUES (?, ?, ?, ?, ?)",
                [
                    (
                        self._made_id(connection, analyser),
                        blob,
                        today,
                        _result_crc(analyser, blob, value),
                        value,
                    )
                    for analyser, blob, value in rows
                ],
            )
            if _bytes_used(connection) > self._most_bytes:
                _drop_least_used(connection, int(self._most_bytes * 0.8))

        self._run(write, None)

    def stamps(self, root: bytes) -> dict[str, tuple[Stamp, bytes]]:
        """Return stamp and blob of each file that was seen below the folder `root`, by path."""

        def read(connection: sqlite3.Connection) -> dict[str, tuple[Stamp, bytes]]:
            rows = connection.execute(
                "SELECT file.path, size, mtime_ns, ctime_ns, inode, blob, crc FROM file "
                "JOIN root ON root.id = file.root WHERE root.path = ?",
                (root,),
            )
            return {
                os.fsdecode(path): (Stamp(*stamp), blob)
                for path, *stamp, blob, crc in rows
                if crc == _file_crc(root, path, stamp, blob)
            }

        return self._run(read, {})

    def keep_stamps(self, root: bytes, changes: Mapping[str, tuple[Stamp, bytes] | None]) -> None:
        """Keep stamps and blobs of files below `root`; None forgets a file.

        The stamps have to be settled: each says what its file holds for as long as it is equal.
        """

        def write(connection: sqlite3.Connection) -> None:
            number = _root_id(connection, root)
            gone = [(number, os.fsencode(path)) for path, one in changes.items() if one is None]
            connection.executemany("DELETE FROM file WHERE root = ? AND path = ?", gone)
            connection.executemany(
                "INSERT OR REPLACE INTO file VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    _file_row(number, root, os.fsencode(path), *one)
                    for path, one in changes.items()
                    if one is not None and _fits(one[0])
                ],
            )

        if changes:
            self._run(write, None)

    def usage(self) -> Usage:
        """Return what the file holds."""

        def read(connection: sqlite3.Connection) -> Usage:
            rows = connection.execute(
                "SELECT name || ' ' || version, count(*) FROM result "
                "JOIN analyser ON analyser.id = result.analyser GROUP BY 1 ORDER BY 1"
            )
            results = dict(rows.fetchall())
            (folders,) = connection.execute("SELECT count(*) FROM root").fetchone()
            return Usage(results, folders, self.path.stat().st_size)

        return self._run(read, Usage({}, 0, 0))

    def trim(self, most_bytes: int | None = None) -> int:
        """Drop what was used least recently, and what is known of folders that are gone.

        `most_bytes` may be in use afterwards. Return how many were freed on disk.
        """
        limit = self._most_bytes if most_bytes is None else most_bytes

        def write(connection: sqlite3.Connection) -> None:
            for path, number in connection.execute("SELECT path, id FROM root").fetchall():
                if not os.path.isdir(path):
                    connection.execute("DELETE FROM file WHERE root = ?", (number,))
                    connection.execute("DELETE FROM root WHERE id = ?", (number,))
            if _bytes_used(connection) > limit:
                _drop_least_used(connection, limit)

        before = self._size()
        self._run(write, None)
        # `execute` would give back one page, as it takes one step.
        self._run(lambda connection: connection.executescript("PRAGMA incremental_vacuum"), None)
        return max(0, before - self._size())

    def remove(self) -> int:
        """Remove the file and what was set aside of it; return how many bytes were freed."""
        self.close()
        freed = 0
        for path in self.path.parent.glob(f"{self.path.name}*"):
            with contextlib.suppress(FileNotFoundError):
                freed += path.stat().st_size
                path.unlink()
        return freed

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        with self._lock:
            self._drop_connection()

    def _size(self) -> int:
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def _id(self, connection: sqlite3.Connection, analyser: Analyser) -> int | None:
        if analyser not in self._ids:
            row = connection.execute(
                "SELECT id FROM analyser WHERE name = ? AND version = ?",
                (analyser.name, analyser.version),
            ).fetchone()
            if row is None:
                return None
            self._ids[analyser] = row[0]
        return self._ids[analyser]

    def _made_id(self, connection: sqlite3.Connection, analyser: Analyser) -> int | None:
        if self._id(connection, analyser) is None:
            connection.execute(
                "INSERT OR IGNORE INTO analyser (name, version) VALUES (?, ?)",
                (analyser.name, analyser.version),
            )
        return self._id(connection, analyser)

    def _run(self, work: Callable[[sqlite3.Connection], _T], otherwise: _T) -> _T:
        """Return what `work` returns, in one transaction; `otherwise` if the file is of no use."""
        with self._lock:
            problem = ""
            for _ in range(_ATTEMPTS):
                try:
                    return self._transacted(work)
                except (sqlite3.Error, OverflowError, TypeError, ValueError) as error:
                    self._drop_connection()
                    problem = str(error)
                    if not self._is_worth_another(error):
                        break
                except OSError as error:
                    problem = str(error.strerror)
                    break
            self.trouble = f"`{self.path}` cannot be used: {problem}"
            return otherwise

    def _is_worth_another(self, error: Exception) -> bool:
        """Tell whether to open the file again, after it was set aside if it is damaged."""
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
        if (code & 0xFF) in _DAMAGED or code in _DAMAGED_READS:
            return self._set_aside()
        return (code & 0xFF) not in _HOPELESS

    def _transacted(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        if self._connection is None:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Before it is opened: what cannot even be opened is set aside, too.
            self._inode = _inode(self.path)
            self._connection = _connect(self.path)
            self._inode = self._inode or _inode(self.path)
        try:
            with self._connection:
                return work(self._connection)
        except BaseException:
            # The numbers of analysers that were made in this transaction are gone with it.
            self._ids.clear()
            raise

    def _drop_connection(self) -> None:
        self._ids.clear()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _set_aside(self) -> bool:
        """Put the damaged file aside, unless another process has done so already."""
        path = self.path.with_suffix(".lock")
        try:
            with lock.locked(path, timeout_s=_ASIDE_S, what="the analyses"):
                if self._inode in (0, _inode(self.path)):
                    # What is left of a transaction would be played back into the new file.
                    for suffix in ("", "-journal"):
                        with contextlib.suppress(FileNotFoundError):
                            os.replace(f"{self.path}{suffix}", f"{self.path}.damaged{suffix}")
        except (OSError, SandboxBusyError):
            return False
        self._inode = 0
        return True


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return 0


def _today() -> int:
    return int(time.time()) // _DAY_S


def _chunks(blobs: Iterable[bytes]) -> Iterator[list[bytes]]:
    left = iter(blobs)
    while some := list(itertools.islice(left, _CHUNK)):
        yield some


def _result_crc(analyser: Analyser, blob: bytes, value: bytes) -> int:
    return zlib.crc32(value, zlib.crc32(b"%s\0%s\0" % (_named(analyser), blob)))


def _named(analyser: Analyser) -> bytes:
    return f"{analyser.name} {analyser.version}".encode()


def _file_crc(root: bytes, path: bytes, stamp: Sequence[int], blob: bytes) -> int:
    return zlib.crc32(b"%s\0%s\0%s\0%s" % (root, path, repr(list(stamp)).encode(), blob))


def _fits(stamp: Stamp) -> bool:
    """Tell whether SQLite's integers hold the stamp; inodes are unsigned, and times may be odd."""
    numbers = (stamp.size, stamp.mtime_ns, stamp.ctime_ns, stamp.inode)
    return all(-(2**63) <= number < 2**63 for number in numbers)


def _file_row(number: int, root: bytes, path: bytes, stamp: Stamp, blob: bytes) -> tuple[Any, ...]:
    values = (stamp.size, stamp.mtime_ns, stamp.ctime_ns, stamp.inode)
    return (number, path, *values, blob, _file_crc(root, path, values, blob))


def _root_id(connection: sqlite3.Connection, root: bytes) -> int:
    connection.execute(
        "INSERT INTO root (path, used) VALUES (?, ?) "
        "ON CONFLICT (path) DO UPDATE SET used = excluded.used",
        (root, int(time.time())),
    )
    (number,) = connection.execute("SELECT id FROM root WHERE path = ?", (root,)).fetchone()
    old = connection.execute(
        "SELECT id FROM root ORDER BY used DESC LIMIT -1 OFFSET ?", (_ROOTS_KEPT,)
    ).fetchall()
    connection.executemany("DELETE FROM file WHERE root = ?", old)
    connection.executemany("DELETE FROM root WHERE id = ?", old)
    return int(number)


def _bytes_used(connection: sqlite3.Connection) -> int:
    pages, free, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def _drop_least_used(connection: sqlite3.Connection, most_bytes: int) -> None:
    """Drop results, those used longest ago first, until about `most_bytes` are in use."""
    while (used := _bytes_used(connection)) > most_bytes:
        (count,) = connection.execute("SELECT count(*) FROM result").fetchone()
        if not count:
            return
        share = max(1, int(count * (used - most_bytes) / used))
        connection.execute(
            "DELETE FROM result WHERE (analyser, blob) IN "
            "(SELECT analyser, blob FROM result ORDER BY used LIMIT ?)",
            (share,),
        )


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_BUSY_S, check_same_thread=False)
    try:
        connection.text_factory = lambda text: text.decode("utf-8", "replace")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        # A write-ahead log can lose its reset in SQLite before 3.51.3.
        connection.execute("PRAGMA journal_mode = TRUNCATE")
        connection.execute("PRAGMA synchronous = NORMAL")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            _make_tables(connection)
        elif version != _VERSION:
            raise sqlite3.DatabaseError(f"written by version {version}")
    except BaseException:
        connection.close()
        raise
    return connection


def _make_tables(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == 0:
        for statement in _TABLES:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {_VERSION}")
    connection.commit()
