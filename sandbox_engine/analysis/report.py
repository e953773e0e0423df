"""Analyses as people and programs want to read them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from sandbox_engine.analysis.analysers import Unknown
from sandbox_engine.analysis.comparison import FileChange, FileSize, FunctionChange, FunctionSize
from sandbox_engine.analysis.scanner import Scan
from sandbox_engine.reports.text import safe

_METRICS = "metrics"


def table(scan: Scan) -> str:
    """Return the sizes of all files of `scan` as a table, with what they come to."""
    rows: list[tuple[str, ...]] = [("lines", "source", "functions", "most complex", "mi", "file")]
    unknown = []
    totals = [0, 0, 0]
    for path, file in scan.files.items():
        metrics = file.result(_METRICS)
        if isinstance(metrics, Unknown):
            unknown.append(safe(f"{path}: {metrics.reason}"))
            continue
        complexities = [one["cc"] for one in metrics["functions"]]
        numbers = (metrics["loc"], metrics["sloc"], len(complexities))
        totals = [total + number for total, number in zip(totals, numbers, strict=True)]
        most = max(complexities, default=0)
        rows.append((*map(str, numbers), str(most or "-"), f"{metrics['mi']:.1f}", safe(path)))
    lines = list(_aligned(rows)) if len(rows) > 1 else []
    lines += [f"unknown: {line}" for line in unknown]
    counts = [(len(rows) - 1, "file"), (totals[0], "line"), (totals[2], "function")]
    unknowns = [f"{len(unknown)} unknown"] if unknown else []
    lines.append(", ".join([*(_counted(*one) for one in counts), *unknowns]))
    return "\n".join(lines)


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield each row with its columns right-aligned, but for the last."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for *cells, last in rows:
        numbers = (cell.rjust(width) for cell, width in zip(cells, widths, strict=False))
        yield "  ".join((*numbers, last))


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def scan_to_json(scan: Scan) -> dict[str, Any]:
    """Return a scan as a JSON value; what is unknown is an object with a `reason`."""
    return {
        "root": str(scan.root),
        "files": {
            safe(path): {
                "blob": file.blob or None,
                **{name: _value(file.result(name)) for name in file.values},
            }
            for path, file in scan.files.items()
        },
        "effort": dataclasses.asdict(scan.effort),
    }


def _value(result: Any) -> Any:
    return {"unknown": result.reason} if isinstance(result, Unknown) else result


def differences(changes: Sequence[FileChange]) -> str:
    """Return what a change does to sizes and complexities as lines of text, and the sums."""
    lines = [line for change in changes for line in _file(change)]
    if not changes:
        return "no size and no complexity is changed"
    pairs = [(one.before, one.after) for one in changes if not one.unknown]
    complexity, length = (
        sum(getattr(after, name, 0) - getattr(before, name, 0) for before, after in pairs)
        for name in ("cc", "loc")
    )
    lines.append(
        f"{_counted(len(changes), 'file')}: complexity {complexity:+d}, lines {length:+d}"
        + ("" if len(pairs) == len(changes) else f", {len(changes) - len(pairs)} unknown")
    )
    return "\n".join(lines)


def _file(change: FileChange) -> Iterator[str]:
    if change.unknown:
        yield safe(f"? {change.path}  {change.unknown}")
        return
    yield safe(
        f"{_mark(change.before, change.after)} {change.path}  "
        + ", ".join(
            f"{label} {_pair(change.before, change.after, name)}"
            for name, label in (("loc", "lines"), ("cc", "complexity"), ("mi", "mi"))
        )
    )
    yield from map(_function, change.functions)


def _function(change: FunctionChange) -> str:
    sizes = ", ".join(
        f"{label} {_pair(change.before, change.after, name)}"
        for name, label in (("cc", "complexity"), ("loc", "lines"))
    )
    return safe(f"    {_mark(change.before, change.after)} {change.qualname}  {sizes}")


def _mark(before: object, after: object) -> str:
    return "+" if before is None else "-" if after is None else "~"


def _pair(
    before: FileSize | FunctionSize | None, after: FileSize | FunctionSize | None, name: str
) -> str:
    numbers = [getattr(one, name) for one in (before, after) if one is not None]
    return " -> ".join(f"{number:g}" for number in dict.fromkeys(numbers))


def changes_to_json(changes: Sequence[FileChange]) -> dict[str, Any]:
    """Return what a change does as a JSON value: the fields of `FileChange`."""
    return {"files": [dataclasses.asdict(one) for one in changes]}
