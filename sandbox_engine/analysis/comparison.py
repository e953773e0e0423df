"""What a change does to the size and the complexity of code, file by file and function by function.

Nothing is checked out: what a revision or a candidate holds is read from the objects of git, and a
blob that was analysed anywhere is known.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox_engine import git
from sandbox_engine.analysis.analysers import Analyser, Unknown, resolve
from sandbox_engine.analysis.blobs import blob_of
from sandbox_engine.analysis.computing import FileAnalysis, Item, Values, analysed, complete
from sandbox_engine.analysis.listing import find_place, list_tree
from sandbox_engine.analysis.scanner import Scanner, open_results
from sandbox_engine.analysis.workers import Workers
from sandbox_engine.errors import UsageError
from sandbox_engine.tree import CandidateTree

METRICS = "metrics"


@dataclass(frozen=True, slots=True)
class FunctionSize:
    """A function's cyclomatic complexity and its lines."""

    cc: int
    loc: int


@dataclass(frozen=True, slots=True)
class FunctionChange:
    """A function that was added, changed or removed; None where it is not there."""

    qualname: str
    line: int
    before: FunctionSize | None
    after: FunctionSize | None


@dataclass(frozen=True, slots=True)
class FileSize:
    """A file's lines, its maintainability index, and the complexity of its functions together."""

    loc: int
    mi: float
    cc: int


@dataclass(frozen=True, slots=True)
class FileChange:
    """A file that was added, changed or removed, with those of its functions that differ in size.

    Of a side that could not be analysed only the reason is known: `unknown` has it.
    """

    path: str
    before: FileSize | None
    after: FileSize | None
    functions: tuple[FunctionChange, ...] = ()
    unknown: str = ""


def analyse_contents(
    contents: Mapping[str, bytes],
    analysers: Sequence[str | Analyser] = (METRICS,),
    *,
    cache_home: Path | None = None,
) -> dict[str, FileAnalysis]:
    """Return the analyses of files that need not exist, by path: `contents` maps paths to bytes."""
    results, workers = open_results(cache_home), Workers()
    wanted = resolve(analysers)
    found: dict[str, FileAnalysis] = {}

    def items() -> Iterator[Item]:
        for path, content in contents.items():
            if concerned := tuple(one for one in wanted if one.concerns(path)):
                yield Item(path, blob_of(content), content, concerned)

    def take(item: Item, values: Values, lasts: bool) -> None:
        found[item.path] = analysed(item.path, item.blob, values)

    try:
        complete(results, workers, items(), take)
    finally:
        workers.close()
        results.close()
    return dict(sorted(found.items()))


def compare_candidate(
    candidate: CandidateTree, *, cache_home: Path | None = None
) -> tuple[FileChange, ...]:
    """Return what the candidate changes of its base."""
    before, after = (
        {
            os.fsdecode(path): file.content
            for path, file in side.items()
            if file is not None and stat.S_ISREG(file.mode)
        }
        for side in (candidate.before, candidate.after)
    )
    return compare(
        analyse_contents(before, cache_home=cache_home),
        analyse_contents(after, cache_home=cache_home),
    )


def compare_revision(
    path: str | os.PathLike[str] = ".", revision: str = "HEAD", *, cache_home: Path | None = None
) -> tuple[FileChange, ...]:
    """Return how the folder at `path`, as it is now, differs from what it was in `revision`.

    Raise UsageError outside of a repository, or if there is no such revision.
    """
    place = find_place(path)
    if place.repository is None:
        raise UsageError(
            f"`{place.root}` is not in a git repository, so there is nothing to compare it with",
            remedy="leave out the revision, or make a repository with `git init`",
        )
    with Scanner(path, (METRICS,), cache_home=cache_home) as scanner:
        now = scanner.scan().files
    _, tree = git.resolve_commit(place.repository, revision)
    (metrics,) = resolve((METRICS,))
    then = {one.path: one.blob for one in list_tree(place, tree) if not one.is_link}
    then = {path: blob for path, blob in then.items() if metrics.concerns(path)}
    objects = git.open_objects(place.repository.git_dir)
    differing = {path for path, blob in then.items() if path not in now or now[path].blob != blob}
    contents = {path: objects[then[path]].read_raw() for path in sorted(differing)}
    return compare(
        analyse_contents(contents, cache_home=cache_home),
        {path: one for path, one in now.items() if path not in then or path in differing},
    )


def compare(
    before: Mapping[str, FileAnalysis], after: Mapping[str, FileAnalysis]
) -> tuple[FileChange, ...]:
    """Return the files whose sizes differ between two sets of analyses, sorted by path."""
    changes = (
        _compared(path, before.get(path), after.get(path)) for path in sorted({*before, *after})
    )
    return tuple(one for one in changes if one.before != one.after or one.functions or one.unknown)


def _compared(path: str, before: FileAnalysis | None, after: FileAnalysis | None) -> FileChange:
    old, new = (None if one is None else one.result(METRICS) for one in (before, after))
    reasons = [
        f"{when} the change: {one.reason}"
        for when, one in (("before", old), ("after", new))
        if isinstance(one, Unknown)
    ]
    old, new = (None if isinstance(one, Unknown) else one for one in (old, new))
    functions = () if reasons else tuple(_functions_compared(old, new))
    return FileChange(path, _size(old), _size(new), functions, "; ".join(reasons))


def _size(metrics: dict[str, Any] | None) -> FileSize | None:
    if metrics is None:
        return None
    complexity = sum(one["cc"] for one in metrics["functions"])
    return FileSize(metrics["loc"], round(metrics["mi"], 2), complexity)


def _functions_compared(
    old: dict[str, Any] | None, new: dict[str, Any] | None
) -> Iterator[FunctionChange]:
    before, after = _by_name(old), _by_name(new)
    for key in dict.fromkeys((*after, *before)):
        one, other = before.get(key), after.get(key)
        if _function_size(one) != _function_size(other):
            line = (other or before[key])["line"]
            yield FunctionChange(key[0], line, _function_size(one), _function_size(other))


def _function_size(function: dict[str, Any] | None) -> FunctionSize | None:
    return None if function is None else FunctionSize(function["cc"], function["loc"])


def _by_name(metrics: dict[str, Any] | None) -> dict[tuple[str, int], dict[str, Any]]:
    """Return a file's functions by their names; those of one name are told apart by their order."""
    counts: dict[str, itertools.count[int]] = {}
    return {
        (one["qualname"], next(counts.setdefault(one["qualname"], itertools.count()))): one
        for one in ([] if metrics is None else metrics["functions"])
    }
