"""Scans: the analyses of all files of a folder, at the cost of what changed since the last one.

A scan is fresh: it tells what each file held at some moment after it was asked for. It finds out
what may have changed from the watcher of the work tree if one runs, and otherwise by looking at
the status of every file; in both cases it is the content that decides. A file is read only where
neither its own status, nor git's index, says which blob it holds.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TypeAlias

from sandbox_engine import store, watch
from sandbox_engine.analysis import blobs
from sandbox_engine.analysis.analysers import Analyser, resolve
from sandbox_engine.analysis.computing import (
    FileAnalysis,
    Item,
    Values,
    analysed,
    complete,
    look_up,
    unreadable,
)
from sandbox_engine.analysis.listing import find_place, list_names, statuses
from sandbox_engine.analysis.results import Results
from sandbox_engine.analysis.stamps import Stamp
from sandbox_engine.analysis.workers import Workers
from sandbox_engine.errors import GitError
from sandbox_engine.ignoring import IN_TREE, Rules, read_rules

_DATABASE = "analyses.sqlite3"
SHIPPED = ("skeleton", "metrics")

_FEW = 8
"""So many files are sooner read than looked up in git's index."""
_TARGETED = 500
"""When more may have changed, all files are looked at: it is one listing instead of many."""
_AGAIN_S = 600.0
"""After so long an analysis that crashed or took too long is tried again."""

_PATIENCE_S = 1.0
"""A watcher that needs longer is stalled, or a sweep is quicker."""
_ASK_AGAIN_S = 10.0

Progress: TypeAlias = Callable[[int, int], None]
"""Is told how many files were read so far, and how many have to be."""


@dataclass(frozen=True, slots=True)
class Effort:
    """What a scan cost: files whose status was asked, that were read, and that were analysed.

    `swept` tells that all of the folder was looked at, `watched` that the watcher was asked.
    """

    swept: bool
    watched: bool
    looked_at: int
    read: int
    analysed: int
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class Scan:
    """The files of a folder at one time, by their paths relative to it.

    `paths` are all files that count, sorted, links among them; `files` those that some analyser
    is for. `trouble` says why results could not be kept, "" if they were.
    """

    root: Path
    paths: tuple[str, ...]
    files: Mapping[str, FileAnalysis]
    effort: Effort
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a path was found to hold; an equal stamp proves that it still does if it is `firm`."""

    stamp: Stamp | None = None
    blob: bytes | None = None
    firm: bool = True


@dataclass(slots=True)
class _Task:
    """What one scan has done so far."""

    progress: Progress | None
    swept: bool = False
    looked_at: int = 0
    read: int = 0
    analysed: int = 0
    has_changed: bool = False


def open_results(cache_home: Path | None = None) -> Results:
    """Return what is kept of all folders; it is opened when it is first used."""
    return Results((store.cache_home() if cache_home is None else cache_home) / _DATABASE)


def analyse(
    path: str | os.PathLike[str] = ".",
    analysers: Sequence[str | Analyser] = SHIPPED,
    *,
    progress: Progress | None = None,
) -> Scan:
    """Return the analyses of all files of the folder at `path`.

    `analysers` are names of those that are shipped, or ones of your own. To ask again and again,
    keep a `Scanner`. Raise UsageError for a folder or an analyser that does not exist.
    """
    with Scanner(path, analysers) as scanner:
        return scanner.scan(progress)


class Scanner:
    """Scans of one folder; it knows what it found last. Safe to share between threads."""

    def __init__(
        self,
        path: str | os.PathLike[str] = ".",
        analysers: Sequence[str | Analyser] = SHIPPED,
        *,
        cache_home: Path | None = None,
        most_workers: int | None = None,
    ) -> None:
        """Open the folder at `path`; see `analyse` for the arguments and errors."""
        self._analysers = resolve(analysers)
        self._place = find_place(path)
        self._results = open_results(cache_home)
        self._workers = Workers(most_workers)
        self._lock = threading.Lock()
        self._clock: str | None = None
        self._ask_again_s = 0.0
        self._rules: Rules | None = None
        self._last: Scan | None = None
        self._files: dict[str, FileAnalysis] = {}
        self._seen: dict[str, _Seen] = {}
        self._loose: set[str] = set()
        """Files whose stamps prove nothing yet."""
        self._linked: set[str] = set()
        """Files of several names: whoever writes to another one is not seen writing to this."""
        self._retry_s: dict[str, float] = {}
        """When what crashed or took too long is tried again."""
        self._kept: dict[str, tuple[Stamp, bytes]] | None = None
        """The stamps that are in the database, once they were read."""

    def __enter__(self) -> Scanner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Keep what was seen, and end the processes that analyse; a later scan starts new ones."""
        with self._lock:
            self._keep_stamps()
            self._workers.close()
            self._results.close()

    def scan(self, progress: Progress | None = None) -> Scan:
        """Return the analyses of all files as they are now."""
        with self._lock:
            started_s = time.monotonic()
            task = _Task(progress)
            self._results.trouble = ""
            changes = self._asked()
            found = self._targets(changes)
            if found is None:
                task.swept = True
                found = self._sweep()
            # If this is interrupted, the next scan must not take the rest for known, nor the last
            # one for what is known.
            last, self._last, self._clock = self._last, None, None
            self._take(found, task)
            self._clock = None if changes is None else changes.clock
            if task.swept:
                self._keep_stamps()
            elapsed_s = round(time.monotonic() - started_s, 6)
            effort = Effort(
                task.swept,
                changes is not None,
                task.looked_at,
                task.read,
                task.analysed,
                elapsed_s,
            )
            self._last = self._made(effort, None if task.has_changed else last)
            return self._last

    def _asked(self) -> watch.Changes | None:
        """Return what the watcher says; one that is too slow is left alone for a while."""
        if self._place.top is None or time.monotonic() < self._ask_again_s:
            return None
        started_s = time.monotonic()
        changes = watch.ask(self._place.top, self._clock, timeout_s=_PATIENCE_S)
        if changes is None and time.monotonic() - started_s >= _PATIENCE_S:
            self._ask_again_s = time.monotonic() + _ASK_AGAIN_S
        return changes

    def _made(self, effort: Effort, same: Scan | None) -> Scan:
        """Return what is known as a scan; `same` is one that tells the same of all files."""
        trouble = self._results.trouble
        if same is not None:
            return dataclasses.replace(same, effort=effort, trouble=trouble)
        files = MappingProxyType(dict(sorted(self._files.items())))
        return Scan(self._place.root, tuple(sorted(self._seen)), files, effort, trouble)

    def _targets(self, changes: watch.Changes | None) -> dict[str, os.stat_result | None] | None:
        """Return what is at each path that may have changed, None if it may be any."""
        touched = self._touched(changes)
        if touched is None:
            return None
        names = self._loose | self._linked | (touched & self._seen.keys())
        names.update(name for name, at_s in self._retry_s.items() if at_s <= time.monotonic())
        if unknown := sorted(touched - self._seen.keys()):
            below = tuple(path if path.endswith("/") else f"{path}/" for path in unknown)
            names.update(name for name in self._seen if name.startswith(below))
            names.update({path.rstrip("/") for path in unknown} & self._seen.keys())
            try:
                names.update(list_names(self._place, unknown))
            except GitError:
                # A folder became a link, say, and git does not look behind it.
                return None
        found = statuses(self._place.root, names)
        return {name: found.get(name) for name in names}

    def _touched(self, changes: watch.Changes | None) -> set[str] | None:
        """Return the paths below the root that may have changed, None if it may be any.

        One that ends with `/` stands for all that is below it.
        """
        if changes is None or changes.paths is None or self._clock is None:
            return None
        if self._rules is None or not self._rules.hold() or len(changes.paths) > _TARGETED:
            return None
        prefix = self._place.prefix
        touched = set()
        for path in changes.paths:
            if path.rstrip("/").rpartition("/")[2] in IN_TREE or prefix.startswith(path):
                return None
            if path.startswith(prefix):
                touched.add(path[len(prefix) :])
        return touched

    def _sweep(self) -> dict[str, os.stat_result | None]:
        """Return what is at every path that counts, None for those that do no more."""
        if self._place.repository is not None:
            self._rules = read_rules(self._place.repository, self._place.root)
        if self._kept is None:
            self._kept = self._results.stamps(os.fsencode(self._place.root))
        found = statuses(self._place.root, list_names(self._place))
        return {**dict.fromkeys(self._seen.keys() - found.keys()), **found}

    def _take(self, found: Mapping[str, os.stat_result | None], task: _Task) -> None:
        """Learn what is at the paths of `found`."""
        task.looked_at = len(found)
        stamps = {}
        for name, status in found.items():
            if status is None:
                task.has_changed |= name in self._seen
                self._forget(name)
            elif self._is_as_it_was(name, status):
                pass
            elif not (self._concerned(name) and stat.S_ISREG(status.st_mode)):
                task.has_changed |= name not in self._seen or name in self._files
                self._forget(name)
                self._seen[name] = _Seen()
            else:
                stamps[name] = Stamp.of(status)
            if status is not None and status.st_nlink > 1:
                self._linked.add(name)
        self._read(self._take_known(stamps, task), task)

    def _forget(self, name: str) -> None:
        self._seen.pop(name, None)
        self._files.pop(name, None)
        self._retry_s.pop(name, None)
        self._loose.discard(name)
        self._linked.discard(name)

    def _concerned(self, name: str) -> tuple[Analyser, ...]:
        return tuple(one for one in self._analysers if one.concerns(name))

    def _is_as_it_was(self, name: str, status: os.stat_result) -> bool:
        seen = self._seen.get(name)
        if seen is None or not seen.firm or seen.stamp is None or not seen.stamp.is_of(status):
            return False
        return stat.S_ISREG(status.st_mode) and (
            self._retry_s.get(name, math.inf) > time.monotonic()
        )

    def _take_known(self, stamps: Mapping[str, Stamp], task: _Task) -> list[str]:
        """Take those whose blob and results are known without reading; return the others."""
        kept = self._kept or {}
        known = {}
        for name, stamp in stamps.items():
            if name in kept and kept[name][0] == stamp and name not in self._retry_s:
                known[name] = kept[name][1]
        left = {name: stamp for name, stamp in stamps.items() if name not in known}
        if len(left) > _FEW:
            known.update(blobs.known_to_git(self._place, left))
        concerned = {name: self._concerned(name) for name in known}
        values = look_up(self._results, ((known[name], concerned[name]) for name in known))
        unread = [name for name in stamps if name not in known]
        for name, blob in known.items():
            if all(one in values[blob] for one in concerned[name]):
                have = {one: values[blob][one] for one in concerned[name]}
                self._learn(name, _Seen(stamps[name], blob), analysed(name, blob, have), task)
            else:
                unread.append(name)
        return unread

    def _read(self, names: Sequence[str], task: _Task) -> None:
        """Read files, and have analysed what is not known of them."""
        seen: dict[str, _Seen] = {}
        done = itertools.count(1)

        def items() -> Iterator[Item]:
            for name in names:
                before_ns = time.time_ns()
                try:
                    one = blobs.read(os.path.join(self._place.root, name))
                except FileNotFoundError:
                    task.has_changed |= name in self._seen
                    self._forget(name)
                except blobs.UnreadableError as error:
                    unread = unreadable(name, self._concerned(name), str(error))
                    self._learn(name, _Seen(firm=False), unread, task)
                else:
                    task.read += 1
                    seen[name] = _Seen(one.stamp, one.blob, one.stamp.is_settled(before_ns))
                    if self._failed_lately(name, one.blob):
                        self._note_stamp(name, seen.pop(name))
                        continue
                    yield Item(name, one.blob, one.content, self._concerned(name))

        def take(item: Item, values: Values, lasts: bool) -> None:
            file = analysed(item.path, item.blob, values)
            self._learn(item.path, seen.pop(item.path), file, task)
            if not lasts:
                self._retry_s[item.path] = time.monotonic() + _AGAIN_S
            if task.progress is not None:
                task.progress(next(done), len(names))

        task.analysed = complete(self._results, self._workers, items(), take)

    def _failed_lately(self, name: str, blob: bytes) -> bool:
        """Tell whether an analysis of these very bytes crashed, and is not tried again yet."""
        if self._retry_s.get(name, -math.inf) <= time.monotonic():
            return False
        return name in self._files and self._files[name].blob == blob.hex()

    def _learn(self, name: str, seen: _Seen, file: FileAnalysis, task: _Task) -> None:
        task.has_changed |= self._files.get(name) != file
        self._files[name] = file
        self._retry_s.pop(name, None)
        self._note_stamp(name, seen)

    def _note_stamp(self, name: str, seen: _Seen) -> None:
        """Learn when a file has to be read again."""
        self._seen[name] = seen
        (self._loose.discard if seen.firm else self._loose.add)(name)

    def _keep_stamps(self) -> None:
        """Keep the stamps that prove something, so that another process need not read the files."""
        if self._kept is None:
            return
        firm = {
            name: (seen.stamp, seen.blob)
            for name, seen in self._seen.items()
            if seen.firm and seen.stamp is not None and seen.blob is not None
        }
        changes: dict[str, tuple[Stamp, bytes] | None] = {
            name: one for name, one in firm.items() if self._kept.get(name) != one
        }
        changes.update(dict.fromkeys(self._kept.keys() - firm.keys()))
        self._results.keep_stamps(os.fsencode(self._place.root), changes)
        self._kept = firm
