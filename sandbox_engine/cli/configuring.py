"""Commands that say what is set up, and how."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path

from sandbox_engine.cli import exits
from sandbox_engine.cli.opening import configuration

SHELLS = ("bash", "zsh", "fish")
_FILES = ("PATCH", "FILE", "PATH", "RECEIPT")


def strategies(options: argparse.Namespace) -> int:
    """List the strategies and their steps."""
    config = configuration(options)
    recipes = config.recipes()
    if options.output == "json":
        print(
            json.dumps({name: dataclasses.asdict(item) for name, item in recipes.items()}, indent=2)
        )
        return exits.PASSED
    width = max(map(len, recipes))
    for name, recipe in recipes.items():
        steps = ", ".join(step.name for step in recipe.steps) or "no steps"
        mark = "*" if name == config.strategy else " "
        print(f"{mark} {name:{width}}  {steps}")
        if recipe.description:
            print(f"  {'':{width}}  {recipe.description}")
    print("\n* is used when none is named")
    return exits.PASSED


def doctor(options: argparse.Namespace) -> int:
    """Tell what is needed and missing."""
    from sandbox_engine.doctor import examine

    checks = examine(options.repo, options.config)
    for check in checks:
        print(f"{'ok  ' if check.is_well else 'BAD '} {check.name}: {check.detail}")
        if check.remedy:
            print(f"     hint: {check.remedy}")
    return exits.PASSED if all(check.is_well for check in checks) else exits.UNJUDGED


def show(options: argparse.Namespace) -> int:
    """Show every setting, and where its value was said."""
    from sandbox_engine import config
    from sandbox_engine.reports.text import safe

    settings = config.trace(_top(options), file=options.config)
    if options.output == "json":
        rows = [{**dataclasses.asdict(one), "value": _plain(one.value)} for one in settings]
        print(json.dumps(rows, indent=2))
        return exits.PASSED
    width = max(len(one.name) for one in settings)
    for one in settings:
        print(safe(f"{one.name:{width}}  {json.dumps(_plain(one.value))}  ({one.source})"))
    return exits.PASSED


def check(options: argparse.Namespace) -> int:
    """Tell whether the configuration can be meant."""
    from sandbox_engine import carry, config, git
    from sandbox_engine.errors import ConfigError

    repository = git.find_repository(options.repo)
    settings = config.trace(repository.top, file=options.config)
    loaded = configuration(options)
    loaded.recipe()
    carry.find_carried(repository, loaded.carry)
    for folder in loaded.readable:
        if not os.path.isdir(folder):
            raise ConfigError(
                f"`readable` names `{folder}`, which is no folder here",
                remedy="correct the path, or take it out",
            )
    said = [one for one in settings if one.source != "default"]
    sources = sorted({one.source for one in said}) or ["nothing is set"]
    print(f"ok: {len(said)} settings ({', '.join(sources)})")
    return exits.PASSED


def schema(options: argparse.Namespace) -> int:
    """Print the JSON Schema of a configuration file."""
    from sandbox_engine.config_schema import schema as of_settings

    print(json.dumps(of_settings(), indent=2))
    return exits.PASSED


def completion(options: argparse.Namespace) -> int:
    """Print what a shell needs to complete our commands."""
    import shtab

    from sandbox_engine.cli.arguments import parser

    top = parser()
    _mark_files(top, {name: shtab.FILE for name in _FILES} | {"DIR": shtab.DIRECTORY})
    print(shtab.complete(top, options.shell))
    return exits.PASSED


def _mark_files(parser: argparse.ArgumentParser, kinds: Mapping[str, object]) -> None:
    """Say of each argument that names a file or a folder that it does."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                _mark_files(inner, kinds)
        elif isinstance(action.metavar, str) and action.metavar in kinds:
            action.complete = kinds[action.metavar]  # type: ignore[attr-defined]


def _top(options: argparse.Namespace) -> Path | None:
    from sandbox_engine import git

    return git.find_repository(options.repo).top


def _plain(value: object) -> object:
    """Return a setting as JSON has it; strategies by their names."""
    return list(value) if isinstance(value, tuple | Mapping) else value
