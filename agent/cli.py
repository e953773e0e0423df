"""The agent's command line: arguments in, text and an exit code out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sandbox_engine import Finding, SandboxError, UsageError, __version__

EXIT_WELL, EXIT_MISTAKES, EXIT_USAGE, EXIT_FAILED = 0, 1, 2, 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors become one sentence and a hint."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.command(options)
    except SandboxError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILED
    except ModuleNotFoundError as error:
        print(f"error: the package `{error.name}` is not installed", file=sys.stderr)
        print("\nhint: `pip install 'sandbox-engine[agent]'` installs it", file=sys.stderr)
        return EXIT_FAILED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hephaestus", description="An agent that improves a project in cycles."
    )
    parser.add_argument("--version", action="version", version=f"hephaestus {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    config = commands.add_parser("config", help="see to the configuration")
    actions = config.add_subparsers(metavar="ACTION", required=True)
    check = actions.add_parser(
        "check",
        help="tell every mistake in it",
        description="Tell every mistake in a configuration at once. Exit code 1: there are some.",
    )
    check.add_argument(
        "file", type=Path, nargs="?", help="the file (`hephaestus_config.json` in this folder)"
    )
    check.set_defaults(command=_check)
    return parser


def _check(options: argparse.Namespace) -> int:
    from agent.config import FILE_NAME, check_config

    path = options.file or Path(FILE_NAME)
    findings = check_config(path)
    for finding in findings:
        print(_told(finding))
    if not findings:
        print(f"`{path}` is well")
    return EXIT_MISTAKES if findings else EXIT_WELL


def _told(finding: Finding) -> str:
    place = "" if finding.line is None else f"line {finding.line}"
    place += "" if finding.column is None else f", column {finding.column}"
    hint = f"\n  {finding.hint}" if finding.hint else ""
    return f"{place}: {finding.message}{hint}" if place else f"{finding.message}{hint}"
