"""Commands that look back at verdicts that were given."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time

from sandbox_engine.cli import exits, outputs
from sandbox_engine.cli.opening import open_engine

_SHORT = 10
_SECONDS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def show(options: argparse.Namespace) -> int:
    """Show a verdict as it was given; the exit code is that of looking, not of the verdict."""
    from sandbox_engine.reports import Judged

    form = outputs.on_stdout(options.outputs)
    engine = open_engine(options)
    verdict = engine.recall(options.verdict)
    diff = engine.diff_of(verdict) if options.report else None
    judged = [Judged(options.verdict or "the last verdict", verdict, diff=diff)]
    outputs.show(form, judged, is_one=True)
    outputs.write_files(options.outputs, judged, is_one=True)
    outputs.write_page(options.report, judged)
    return exits.PASSED


def log(options: argparse.Namespace) -> int:
    """List verdicts."""
    from sandbox_engine.reports.text import safe

    lines = open_engine(options).log(options.n)
    if options.output == "json":
        print(json.dumps([dataclasses.asdict(line) for line in lines], indent=2))
        return exits.PASSED
    now = time.time()
    for line in lines:
        when = f"{age(now - line.given)} ago"
        words = (
            line.id,
            f"{when:>10}",
            f"{line.outcome:12}",
            f"{line.elapsed_s:7.2f} s",
            line.base[:_SHORT],
            line.strategy,
            line.what or line.reason,
        )
        print(safe("  ".join(words)))
    return exits.PASSED


def age(seconds: float) -> str:
    """Return a span of time in the largest unit that it holds twice."""
    for size, unit in _SECONDS:
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return "1 s"
