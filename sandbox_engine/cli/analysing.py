"""Commands about size and complexity of the code, and the process that keeps them known."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator

from sandbox_engine.cli import exits
from sandbox_engine.cli.opening import open_engine, read_patch

_PATIENCE_S = 0.3
"""So often the progress of an analysis is shown."""

_SHOWN = 5


def analyse(options: argparse.Namespace) -> int:
    """Show sizes, or what changes of them."""
    from sandbox_engine.analysis import report
    from sandbox_engine.reports.text import safe

    if options.patch is None and options.base is None and not options.changed:
        from sandbox_engine.analysis.scanner import analyse

        with _progress() as progress:
            scan = analyse(options.repo, progress=progress)
        if scan.trouble:
            print(f"warning: nothing is kept: {safe(scan.trouble)}", file=sys.stderr)
        is_json = options.output == "json"
        print(json.dumps(report.scan_to_json(scan)) if is_json else report.table(scan))
        return exits.PASSED
    if options.patch is not None:
        base = options.base or "HEAD"
        changes = open_engine(options).analyse(read_patch(options.patch), base=base)
    else:
        from sandbox_engine.analysis.comparison import compare_revision

        changes = compare_revision(options.repo, options.base or "HEAD")
    if options.output == "json":
        print(json.dumps(report.changes_to_json(changes), indent=2))
    else:
        print(report.differences(changes))
    return exits.PASSED


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """Show on a terminal how far a long analysis is, and leave nothing of it."""
    started_s = time.monotonic()
    shown = 0

    def show(done: int, of: int) -> None:
        nonlocal shown
        if sys.stderr.isatty() and time.monotonic() - started_s > _PATIENCE_S * (shown + 1):
            shown += 1
            print(f"\r\033[Kanalysed {done} of {of} files", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        if shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def watch(options: argparse.Namespace) -> int:
    """Start, end or ask the process that watches."""
    from sandbox_engine import watcher

    if options.status:
        return _watch_status(options)
    if options.daemon:
        is_new = watcher.start(options.repo)
        print("watching" if is_new else "watched already")
    elif options.stop:
        print("stopped" if watcher.stop(options.repo) else "not watched")
    else:
        watcher.run(options.repo)
    return exits.PASSED


def _watch_status(options: argparse.Namespace) -> int:
    from sandbox_engine import watcher
    from sandbox_engine.reports.text import safe

    status = watcher.status(options.repo)
    if options.output == "json":
        print(json.dumps(status, indent=2))
    elif status is None:
        print("not watched")
    else:
        print(safe(f"watching  {status['top']}"))
        print(f"process   {status['pid']}, since {status['started']}")
        print(f"folders   {status['folders']}, and {status['ignored']} that are ignored")
        print(f"changes   {status['changes']} paths are remembered")
        print(f"analysed  {status['refreshed'] or 'not yet'}")
        print(f"log       {watcher.log_of(options.repo)}")
        for one in status["swept"][:_SHOWN]:
            print(safe(f"looked at each time: {one['folder']}: {one['reason']}"))
        if len(status["swept"]) > _SHOWN:
            print(f"    and {len(status['swept']) - _SHOWN} more")
        for remedy in sorted({one["remedy"] for one in status["swept"]} - {""}):
            print(f"    hint: {remedy}")
    return exits.PASSED if status is not None else exits.REFUSED
