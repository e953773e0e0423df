"""Analyses of a revision: what git keeps is looked at, whatever the work tree holds.

The blob of each file is known from the tree, so only what was never analysed is read at all.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

from sandbox_engine import git
from sandbox_engine.analysis.analysers import Analyser, resolve
from sandbox_engine.analysis.computing import (
    FileAnalysis,
    Item,
    Values,
    analysed,
    complete,
    look_up,
)
from sandbox_engine.analysis.listing import Place, TreeFile, find_place, list_tree
from sandbox_engine.analysis.results import Results
from sandbox_engine.analysis.scanner import SHIPPED, Effort, Progress, Scan, open_results
from sandbox_engine.analysis.workers import Workers
from sandbox_engine.errors import UsageError


def analyse_revision(
    path: str | os.PathLike[str] = ".",
    revision: str = "HEAD",
    analysers: Sequence[str | Analyser] = SHIPPED,
    *,
    progress: Progress | None = None,
    cache_home: Path | None = None,
) -> Scan:
    """Return the analyses of the files that `revision` has below the folder at `path`.

    Raise UsageError outside of a repository, or if there is no such revision.
    """
    started_s = time.monotonic()
    place = find_place(path)
    repository = _repository(place)
    _, tree = git.resolve_commit(repository, revision)
    listed = list(list_tree(place, tree))
    wanted = resolve(analysers)
    concerned = {
        one: tuple(analyser for analyser in wanted if analyser.concerns(one.path))
        for one in listed
        if not one.is_link
    }
    results, workers = open_results(cache_home), Workers()
    try:
        found, unread = _known(results, {one: some for one, some in concerned.items() if some})
        count = 0
        if unread:
            objects = git.open_objects(repository.git_dir)
            items = (
                Item(one.path, bytes.fromhex(one.blob), objects[one.blob].read_raw(), some)
                for one, some in unread.items()
            )
            count = complete(results, workers, items, _take(found, len(unread), progress))
    finally:
        workers.close()
        results.close()
    elapsed_s = round(time.monotonic() - started_s, 6)
    return Scan(
        place.root,
        tuple(sorted(one.path for one in listed)),
        MappingProxyType(dict(sorted(found.items()))),
        Effort(False, False, len(listed), len(unread), count, elapsed_s),
        results.trouble,
    )


_Wanted: TypeAlias = dict[TreeFile, tuple[Analyser, ...]]


def _known(results: Results, wanted: _Wanted) -> tuple[dict[str, FileAnalysis], _Wanted]:
    """Return the files that all is known of, by path, and the others with their analysers."""
    blobs = {one: bytes.fromhex(one.blob) for one in wanted}
    values = look_up(results, ((blobs[one], some) for one, some in wanted.items()))
    found: dict[str, FileAnalysis] = {}
    unread: _Wanted = {}
    for one, some in wanted.items():
        known = values[blobs[one]]
        if all(analyser in known for analyser in some):
            have = {analyser: known[analyser] for analyser in some}
            found[one.path] = analysed(one.path, blobs[one], have)
        else:
            unread[one] = some
    return found, unread


def _take(
    found: dict[str, FileAnalysis], count: int, progress: Progress | None
) -> Callable[[Item, Values, bool], None]:
    """Return what puts results into `found`, and tells `progress` how far of `count` it is."""
    done = itertools.count(1)

    def take(item: Item, values: Values, lasts: bool) -> None:
        found[item.path] = analysed(item.path, item.blob, values)
        if progress is not None:
            progress(next(done), count)

    return take


def read_revision(
    path: str | os.PathLike[str], revision: str, names: Sequence[str]
) -> Mapping[str, bytes]:
    """Return what those of `names` hold that are files of `revision` below the folder at `path`.

    Raise UsageError outside of a repository, or if there is no such revision.
    """
    import pygit2

    place = find_place(path)
    repository = _repository(place)
    _, tree = git.resolve_commit(repository, revision)
    objects = git.open_objects(repository.git_dir)
    root = objects[tree].peel(pygit2.Tree)
    found = {}
    for name in names:
        try:
            entry = root[place.prefix + name]
        except (KeyError, ValueError):
            continue
        if isinstance(entry, pygit2.Blob) and entry.filemode != pygit2.GIT_FILEMODE_LINK:
            found[name] = entry.data
    return found


def _repository(place: Place) -> git.Repository:
    if place.repository is None:
        raise UsageError(
            f"`{place.root}` is not in a git repository, so there is no revision of it",
            remedy="name a folder of a repository, or make one with `git init`",
        )
    return place.repository
