"""Who waits at a terminal sees what is being done; what is judged is told as it comes.

On a terminal it is a table that stays below what was printed and leaves nothing; elsewhere nothing
but the lines of what is done, as they are done.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from sandbox_engine.batch import Observer

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

    from sandbox_engine.progress import Progress
    from sandbox_engine.reports import Judged

_FRAMES = 8
"""So many times in a second the table is drawn."""

_WIDE = 40
"""So many characters of a name are shown, the last ones."""


class Lines(Observer):
    """Tells what has ended, and nothing else."""

    def __init__(self, told: Callable[[Judged], None]) -> None:
        self._told = told

    def ended(self, number: int, judged: Judged) -> None:
        self._told(judged)


class Board(Lines):
    """Knows what is at work for how long, and shows it as a table."""

    def __init__(self, names: Sequence[str], told: Callable[[Judged], None]) -> None:
        super().__init__(told)
        self._names = names
        self._done = 0
        self._working: dict[int, tuple[float, str, int]] = {}

    def begun(self, number: int) -> None:
        self._working[number] = (time.monotonic(), "", 0)

    def progress(self, number: int, progress: Progress) -> None:
        started = self._working.get(number, (time.monotonic(),))[0]
        self._working[number] = (started, progress.phase, progress.tests)

    def ended(self, number: int, judged: Judged) -> None:
        self._working.pop(number, None)
        self._done += 1
        super().ended(number, judged)

    def __rich__(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        now = time.monotonic()
        for number, (started, phase, tests) in sorted(self._working.items()):
            count = f"{tests} test{'s' * (tests > 1)}" if tests else ""
            table.add_row(
                Text(f"{now - started:6.1f} s", style="bold"),
                Text(_shown(self._names[number]), no_wrap=True),
                Text(phase, style="cyan", no_wrap=True),
                Text(count, style="dim", no_wrap=True),
            )
        if len(self._names) > 1:
            table.add_row(Text(f"{self._done} of {len(self._names)}", style="dim"), "", "", "")
        return table


def _shown(name: str) -> str:
    from sandbox_engine.reports.text import safe

    line = safe(name)
    return line if len(line) <= _WIDE else f"…{line[1 - _WIDE :]}"


@contextlib.contextmanager
def observing(names: Sequence[str], told: Callable[[Judged], None]) -> Iterator[Observer]:
    """Yield who is to be told what becomes of each candidate; a table is shown on a terminal."""
    if not sys.stderr.isatty():
        yield Lines(told)
        return
    board = Board(names, told)
    with _live(board):
        yield board


def _live(board: Board) -> Live:
    from rich.console import Console
    from rich.live import Live

    return Live(
        board,
        console=Console(stderr=True),
        refresh_per_second=_FRAMES,
        transient=True,
        # What is meant for a file must stay out of the terminal.
        redirect_stdout=sys.stdout.isatty(),
        redirect_stderr=True,
    )
