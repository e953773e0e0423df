"""Tables of plain text."""

from __future__ import annotations

from collections.abc import Sequence


def text(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table whose first column is words and whose others are numbers."""
    cells = [list(head), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = [_line(row, widths) for row in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], ""])


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = row
    numbers = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
    return "  ".join([first.ljust(widths[0]), *numbers]).rstrip()
