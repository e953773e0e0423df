"""Analyse what has changed, so that it is known when somebody asks: `python -m … FOLDER`.

The paths that have changed come on standard input, each followed by a NUL; none for all of the
folder. One that ends with `/` stands for all that is below it. Nothing is printed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence

from sandbox_engine.analysis import blobs
from sandbox_engine.analysis.analysers import resolve
from sandbox_engine.analysis.computing import Item, Values, complete
from sandbox_engine.analysis.listing import Place, find_place, list_names, statuses
from sandbox_engine.analysis.scanner import SHIPPED, Scanner, open_results
from sandbox_engine.analysis.workers import Workers


def main() -> None:
    """Bring the results of a folder up to date, with one process that analyses."""
    folder = sys.argv[1]
    paths = [path for path in os.fsdecode(sys.stdin.buffer.read()).split("\0") if path]
    if paths:
        refresh(find_place(folder), paths)
        return
    with Scanner(folder, most_workers=1) as scanner:
        scanner.scan()


def refresh(place: Place, paths: Sequence[str]) -> int:
    """Analyse what is at `paths` below the root; return how many results were new."""
    results, workers = open_results(), Workers(1)
    wanted = resolve(SHIPPED)

    def items() -> Iterator[Item]:
        for name in statuses(place.root, list_names(place, paths)):
            concerned = tuple(one for one in wanted if one.concerns(name))
            if not concerned:
                continue
            try:
                one = blobs.read(os.path.join(place.root, name))
            except (FileNotFoundError, blobs.UnreadableError):
                # Whoever asks for it is told.
                continue
            yield Item(name, one.blob, one.content, concerned)

    def take(item: Item, values: Values, lasts: bool) -> None:
        """Nothing is asked for: that it is kept is enough."""

    try:
        return complete(results, workers, items(), take)
    finally:
        workers.close()
        results.close()


if __name__ == "__main__":
    main()
