"""Commands about sandboxes: those there are, and judged trees that are kept to look at."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys

from sandbox_engine.cli import exits
from sandbox_engine.cli.looking import age
from sandbox_engine.cli.opening import open_engine


def list_all(options: argparse.Namespace) -> int:
    """List slots and kept work trees."""
    from sandbox_engine import kept, slots
    from sandbox_engine.reports.text import safe

    store = open_engine(options).store
    in_use = slots.taken(store)
    found = kept.find_kept(store)
    if options.output == "json":
        rows = [{**dataclasses.asdict(one), "folder": str(one.folder)} for one in found]
        print(json.dumps({"slots": in_use, "kept": rows}, indent=2))
        return exits.PASSED
    for number, is_taken in in_use.items():
        print(f"slot {number}  {'in use' if is_taken else 'free'}")
    for one in found:
        size = f"{one.bytes / 2**20:.1f} MiB"
        print(safe(f"kept {one.name}  {age(kept.age_s(one))}  {size}  {one.folder}"))
    return exits.PASSED


def keep(options: argparse.Namespace) -> int:
    """Keep what was judged as a work tree, and print its folder."""
    from sandbox_engine import kept

    engine = open_engine(options)
    verdict = engine.recall(options.verdict)
    stem = options.name or (verdict.tree or "none")[:10]
    name = stem if options.name else kept.free_name(engine.store, stem)
    print(kept.keep(engine.store, verdict, name))
    return exits.PASSED


def open_one(options: argparse.Namespace) -> int:
    """Run a shell, or a command, in a kept work tree, or in one that is made for it."""
    from sandbox_engine import kept, process

    engine = open_engine(options)
    name = next((k.name for k in kept.find_kept(engine.store) if k.name == options.what), None)
    is_made = name is None
    if name is None:
        verdict = engine.recall(options.what)
        name = kept.free_name(engine.store, (verdict.tree or "none")[:10])
        kept.keep(engine.store, verdict, name)
    folder = kept.folder_of(engine.store, name)
    words = options.words or [os.environ.get("SHELL") or "/bin/sh"]
    print(f"`{words[0]}` runs in `{folder}`, as you and isolated from nothing", file=sys.stderr)
    try:
        code = process.run_foreground(words, folder)
    finally:
        if is_made and not kept.is_changed(folder):
            kept.remove(engine.store, name)
        elif is_made:
            print(f"something was done in it, so `{name}` is kept", file=sys.stderr)
    return code if code >= 0 else 128 - code


def remove(options: argparse.Namespace) -> int:
    """Take kept work trees away."""
    from sandbox_engine import kept

    store = open_engine(options).store
    freed = sum(kept.remove(store, name) for name in options.names)
    print(f"{freed / 2**20:.1f} MiB freed")
    return exits.PASSED
