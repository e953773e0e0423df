"""`evolution_log.csv`: one row for each cycle, the original's ten columns first.

A row is appended in one write and is on disk when `append` returns. A file of the original's, with
ten columns, gets the new ones to the right of them; one whose last line is torn, by a kill in
another program, is continued on a line of its own.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agent import files

ORIGINAL = (
    *("ciclo", "objetivo", "status", "tempo_gasto_segundos", "score_qualidade"),
    *("estrategia_usada", "timestamp_inicio", "timestamp_fim", "razao_status"),
    "contexto_status",
)
PHASES = (
    *("objective", "manifest", "architect", "maestro", "validation", "promotion", "sanity"),
    *("commit", "memory"),
)
ADDED = (
    *(f"seconds_{phase}" for phase in PHASES),
    *("llm_calls", "llm_cache_hits", "llm_tokens", "attempts", "verdict", "tree"),
    "engine_seconds",
)
SUCCESS, FAILURE = "sucesso", "falha"


@dataclass(frozen=True, slots=True)
class Cycle:
    """What is known of one cycle; times are ISO 8601 and seconds, None where nothing was done."""

    number: int
    objective: str
    is_success: bool
    seconds: float
    started: str
    ended: str
    strategy: str = ""
    quality: float | None = None
    reason: str = ""
    context: str = ""
    phases: tuple[tuple[str, float], ...] = ()
    llm_calls: int = 0
    llm_cache_hits: int = 0
    llm_tokens: int = 0
    attempts: int = 0
    verdict: str = ""
    tree: str = ""
    engine_seconds: float | None = None

    def row(self) -> dict[str, str]:
        """Return the cells by their columns' names."""
        seconds = dict(self.phases)
        original = (
            *(self.number, self.objective, SUCCESS if self.is_success else FAILURE),
            *(_number(self.seconds), _number(self.quality), self.strategy, self.started),
            *(self.ended, self.reason, self.context),
        )
        added = (
            *(_number(seconds.get(phase)) for phase in PHASES),
            *(self.llm_calls, self.llm_cache_hits, self.llm_tokens, self.attempts),
            *(self.verdict, self.tree, _number(self.engine_seconds)),
        )
        cells = (*original, *added)
        return {name: str(cell) for name, cell in zip((*ORIGINAL, *ADDED), cells, strict=True)}


def append(path: Path, cycle: Cycle) -> None:
    """Put a row at the end of the file, which is made or given new columns where needed.

    Raise SandboxError if it cannot be written, with nothing lost of what was there.
    """
    with files.told(path, "written"), files.locked(path):
        content = path.read_bytes() if path.exists() else b""
        columns = _columns(content)
        missing = [name for name in (*ORIGINAL, *ADDED) if name not in columns]
        if missing:
            columns = [*columns, *missing]
            content = _with_columns(content, columns)
            files.write_whole(path, content)
        row = cycle.row()
        text = _line([row.get(name, "") for name in columns])
        if not content.endswith(b"\n"):
            text = "\r\n" + text
        with path.open("ab") as file:
            file.write(text.encode("utf-8", "backslashreplace"))
            file.flush()
            os.fsync(file.fileno())


def read(path: Path) -> list[dict[str, str]]:
    """Return the rows of the file by their columns' names; [] if there is none."""
    with files.told(path, "read"):
        content = path.read_bytes() if path.exists() else b""
    return list(csv.DictReader(io.StringIO(content.decode("utf-8-sig", "replace"), newline="")))


def _columns(content: bytes) -> list[str]:
    rows = csv.reader(io.StringIO(content.decode("utf-8-sig", "replace"), newline=""))
    return next(rows, [])


def _with_columns(content: bytes, columns: Sequence[str]) -> bytes:
    """Return a file's content with another head; what its rows do not have is empty."""
    rows = list(csv.reader(io.StringIO(content.decode("utf-8-sig", "replace"), newline="")))
    padded = [[*row, *[""] * (len(columns) - len(row))] for row in rows[1:] if row]
    return "".join(map(_line, (columns, *padded))).encode("utf-8", "backslashreplace")


def _line(cells: Sequence[str]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerow(cells)
    return text.getvalue()


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
