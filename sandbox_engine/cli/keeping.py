"""Commands about what is kept between runs."""

from __future__ import annotations

import argparse
import dataclasses
import json

from sandbox_engine.cli import exits
from sandbox_engine.cli.opening import open_engine


def info(options: argparse.Namespace) -> int:
    """Show where the store is, and how much is kept."""
    from sandbox_engine.analysis.scanner import open_results
    from sandbox_engine.disk import size_of

    engine = open_engine(options)
    usage = engine.cache.usage()
    size = size_of(engine.store.folder)
    results = open_results()
    analyses = results.usage()
    if options.output == "json":
        record = {
            "folder": str(engine.store.folder),
            "bytes": size,
            "verdicts": usage.verdicts,
            "analyses": {"file": str(results.path), **dataclasses.asdict(analyses)},
        }
        print(json.dumps(record, indent=2))
        return exits.PASSED
    kept = ", ".join(f"{count} {name}" for name, count in sorted(usage.verdicts.items()))
    print(f"store     {engine.store.folder}")
    print(f"size      {size / 2**20:.1f} MiB")
    print(f"verdicts  {kept or 'none'}")
    print(f"analyses  {results.path}, of all repositories")
    print(f"size      {analyses.bytes / 2**20:.1f} MiB")
    for name, count in analyses.results.items():
        print(f"results   {count} {name}")
    return exits.PASSED


def gc(options: argparse.Namespace) -> int:
    """Drop the analyses that were used least recently."""
    from sandbox_engine.analysis.scanner import open_results
    from sandbox_engine.errors import SandboxError

    results = open_results()
    freed = results.trim(options.size)
    if results.trouble:
        raise SandboxError(
            results.trouble, remedy="see that its folder is there and that you may write to it"
        )
    print(f"{freed / 2**20:.1f} MiB freed")
    return exits.PASSED


def clear(options: argparse.Namespace) -> int:
    """Remove stores."""
    from sandbox_engine import git, store
    from sandbox_engine.analysis.scanner import open_results

    repository = None if options.all else git.find_repository(options.repo)
    freed = store.clear(repository=repository)
    if options.all:
        freed += open_results().remove()
    print(f"{freed / 2**20:.1f} MiB freed")
    return exits.PASSED


def clean(options: argparse.Namespace) -> int:
    """Take away what is no longer needed."""
    from sandbox_engine import cleaning

    freed = cleaning.clean(
        open_engine(options).store,
        age_s=options.age * cleaning.DAY_S,
        most_bytes=cleaning.MOST_BYTES if options.size is None else options.size,
    )
    sizes: dict[str, int] = {}
    for one in freed:
        sizes[one.what] = sizes.get(one.what, 0) + one.bytes
    for what, size in sorted(sizes.items()):
        print(f"{size / 2**20:8.1f} MiB  {what}")
    print(f"{sum(sizes.values()) / 2**20:.1f} MiB freed")
    return exits.PASSED
