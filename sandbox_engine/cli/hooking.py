"""Commands about git's own hooks."""

from __future__ import annotations

import argparse

from sandbox_engine.cli import exits
from sandbox_engine.cli.opening import configuration


def install(options: argparse.Namespace) -> int:
    """Put the pre-commit hook in."""
    from sandbox_engine import commit_hooks

    configuration(options).recipe(options.strategy)
    strategy = ["--strategy", options.strategy] if options.strategy else []
    lenient = ["--lenient"] if options.lenient else []
    done = commit_hooks.install(options.repo, [*strategy, *lenient])
    earlier = "; it runs the one that was there first" if done.has_earlier else ""
    print(f"installed `{done.path}`{earlier}")
    return exits.PASSED


def uninstall(options: argparse.Namespace) -> int:
    """Take it out."""
    from sandbox_engine import commit_hooks

    print("uninstalled" if commit_hooks.uninstall(options.repo) else "not installed")
    return exits.PASSED


def status(options: argparse.Namespace) -> int:
    """Tell whether it is in."""
    from sandbox_engine import commit_hooks

    found = commit_hooks.status(options.repo)
    earlier = ", which runs an earlier hook first" if found.has_earlier else ""
    print(f"`{found.path}`{earlier}" if found.is_installed else "not installed")
    return exits.PASSED if found.is_installed else exits.REFUSED
