"""Fills in what is not known yet: results are looked up, or computed and kept in batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from sandbox_engine.analysis.analysers import Analyser, Unknown
from sandbox_engine.analysis.results import Results, packed, unpacked
from sandbox_engine.analysis.workers import Job, Workers

_BATCH = 200
_BATCH_S = 1.0
_CHUNK_BYTES = 16 * 2**20

Values: TypeAlias = Mapping[Analyser, bytes]
"""What analysers said of one blob, packed."""


@dataclass(frozen=True, slots=True)
class FileAnalysis:
    """What is known of one file: `blob` is the id of its bytes, "" if they could not be read."""

    path: str
    blob: str
    values: Mapping[str, bytes | Unknown]

    def result(self, analyser: str) -> Any | Unknown:
        """Return what the analyser of this name said: a JSON value, or why there is none.

        A value is decoded anew each time, so that it may be changed. Raise KeyError for an
        analyser that was not asked about this file.
        """
        kept = self.values[analyser]
        return kept if isinstance(kept, Unknown) else unpacked(kept)


def analysed(path: str, blob: bytes, values: Values) -> FileAnalysis:
    """Return a file with its results, by the names of their analysers."""
    return FileAnalysis(path, blob.hex(), {one.name: kept for one, kept in values.items()})


def unreadable(path: str, analysers: Iterable[Analyser], reason: str) -> FileAnalysis:
    """Return a file that nothing is known of but why."""
    return FileAnalysis(path, "", {one.name: Unknown(reason) for one in analysers})


@dataclass(frozen=True, slots=True)
class Item:
    """A file whose bytes are at hand, and who has to say something of them."""

    path: str
    blob: bytes
    content: bytes
    analysers: tuple[Analyser, ...]


def look_up(
    results: Results, wanted: Iterable[tuple[bytes, tuple[Analyser, ...]]]
) -> dict[bytes, dict[Analyser, bytes]]:
    """Return what is known of each blob, as far as it is, by its analysers."""
    known: dict[bytes, dict[Analyser, bytes]] = {}
    blobs: dict[Analyser, set[bytes]] = {}
    for blob, analysers in wanted:
        known[blob] = {}
        for analyser in analysers:
            blobs.setdefault(analyser, set()).add(blob)
    for analyser, some in blobs.items():
        for blob, value in results.find(analyser, some).items():
            known[blob][analyser] = value
    return known


def complete(
    results: Results,
    workers: Workers,
    items: Iterable[Item],
    take: Callable[[Item, Values, bool], None],
) -> int:
    """Give `take` each item with its results, and whether they last; return how many were new.

    Those that do not last come of a crash or of a time-out, and may be otherwise next time.
    """
    waiting: dict[tuple[bytes, tuple[Analyser, ...]], list[Item]] = {}
    known: dict[bytes, dict[Analyser, bytes]] = {}

    def jobs() -> Iterator[Job]:
        for chunk in _chunks(items):
            known.update(look_up(results, ((one.blob, one.analysers) for one in chunk)))
            for item in chunk:
                missing = tuple(one for one in item.analysers if one not in known[item.blob])
                if not missing:
                    take(item, known[item.blob], True)
                elif (key := (item.blob, missing)) in waiting:
                    waiting[key].append(item)
                else:
                    waiting[key] = [item]
                    yield Job(key, item.content, missing)

    count = 0
    batch = _Batch(results)
    try:
        for job, answers in workers.run(jobs()):
            count += 1
            blob, _ = job.key
            pairs = list(zip(job.analysers, answers, strict=True))
            made = {one: packed(answer.value) for one, answer in pairs}
            batch.add([(one, blob, made[one]) for one, answer in pairs if answer.recurs])
            lasts = all(answer.recurs for answer in answers)
            for item in waiting.pop(job.key):
                take(item, known[blob] | made, lasts)
    finally:
        batch.flush()
    return count


class _Batch:
    """New results that are not kept yet; what is computed must not wait for a disk each time."""

    def __init__(self, results: Results) -> None:
        self._results = results
        self._rows: list[tuple[Analyser, bytes, bytes]] = []
        self._since_s = time.monotonic()

    def add(self, rows: Sequence[tuple[Analyser, bytes, bytes]]) -> None:
        self._rows += rows
        if len(self._rows) >= _BATCH or time.monotonic() - self._since_s > _BATCH_S:
            self.flush()

    def flush(self) -> None:
        if self._rows:
            self._results.keep(self._rows)
        self._rows, self._since_s = [], time.monotonic()


def _chunks(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Yield as many items at once as can be looked up together, and held in memory."""
    chunk: list[Item] = []
    size = 0
    for item in items:
        chunk.append(item)
        size += len(item.content)
        if len(chunk) >= _BATCH or size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
