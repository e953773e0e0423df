"""Commands that say what is set up, and how."""

from __future__ import annotations

import argparse
import dataclasses
import json

from sandbox_engine.cli import exits
from sandbox_engine.cli.opening import configuration


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
