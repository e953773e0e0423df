"""The agent's command line: arguments in, text and an exit code out."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sandbox_engine import Finding, SandboxError, UsageError, __version__

if TYPE_CHECKING:
    from agent.config import Config

EXIT_WELL, EXIT_MISTAKES, EXIT_USAGE, EXIT_FAILED, EXIT_INTERRUPTED = 0, 1, 2, 3, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors become one sentence and a hint."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.command(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has gone, as `head` does; what is left to write must not raise at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except SandboxError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILED
    except ModuleNotFoundError as error:
        print(f"error: the package `{error.name}` is not installed", file=sys.stderr)
        print("\nhint: `pip install 'sandbox-engine[agent]'` installs it", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("interrupted: the next run goes on from here", file=sys.stderr)
        return EXIT_INTERRUPTED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hephaestus", description="An agent that improves a project in cycles."
    )
    parser.add_argument("--version", action="version", version=f"hephaestus {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_run(commands)
    _add_report(commands)
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


def _add_run(commands: Any) -> None:
    run = commands.add_parser(
        "run",
        help="improve a project in cycles",
        description="Improve a project in cycles: an objective, a plan, a verdict, a commit. Exit "
        "code 1: a cycle failed.",
        epilog="example: hephaestus run --repo . --branch agent/tidy --cycles 3",
    )
    run.add_argument("--repo", type=Path, default=Path(), metavar="PATH", help="(this folder)")
    run.add_argument("--objective", metavar="TEXT", help="what to reach first")
    count = run.add_mutually_exclusive_group()
    count.add_argument("--cycles", type=_count, default=1, metavar="N", help="how many (1)")
    count.add_argument("--continuous", action="store_true", help="until interrupted")
    run.add_argument("--branch", metavar="NAME", help="land there (what is checked out)")
    _add_config(run)
    run.add_argument("--log-level", metavar="LEVEL", help="of the log file (as configured)")
    run.add_argument("--dry-run", action="store_true", help="commit and remember nothing")
    run.add_argument("--no-llm-cache", action="store_true", help="ask models anew each time")
    run.set_defaults(command=_run)


def _add_report(commands: Any) -> None:
    report = commands.add_parser(
        "report",
        help="write a page about what was done",
        description="Write one HTML file about all cycles: times, success, diffs and verdicts.",
    )
    report.add_argument("--repo", type=Path, default=Path(), metavar="PATH", help="(this folder)")
    _add_config(report)
    report.add_argument(
        "-o", "--output", type=Path, default=Path("report.html"), metavar="FILE",
        help="(`report.html`)",
    )  # fmt: skip
    report.set_defaults(command=_report)


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="(`hephaestus_config.json` in the project)"
    )


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"`{text}` is no number of cycles: give 1 or more")
    return int(text)


def _run(options: argparse.Namespace) -> int:
    from agent.cycle_runner import run_cycles
    from agent.cycles import Cycle, Ending
    from agent.hephaestus import HephaestusAgent
    from agent.logs import logging_to
    from agent.progress import Progress

    config = _config(options)
    if options.no_llm_cache:
        config = dataclasses.replace(
            config, llm_cache=dataclasses.replace(config.llm_cache, enabled=False)
        )
    key = os.environ.get(config.api_key_variable or "", "")
    level = (options.log_level or config.log.level).upper()
    with (
        logging_to(config.log.file, level, console_level="WARNING", secrets=[key]),
        contextlib.closing(Progress()) as progress,
        HephaestusAgent(
            options.repo,
            config,
            branch=options.branch,
            progress=progress,
            is_dry=options.dry_run,
        ) as agent,
    ):
        if options.objective is not None:
            agent.add_objective(options.objective)
        failed = 0

        def told(cycle: Cycle) -> None:
            nonlocal failed
            failed += cycle.ending is not Ending.SUCCESS
            commit = f" {cycle.commit}" if cycle.commit else ""
            print(f"{cycle.number} {cycle.ending}{commit} {cycle.objective}", flush=True)

        run_cycles(agent, None if options.continuous else options.cycles, on_cycle=told)
    return EXIT_MISTAKES if failed else EXIT_WELL


def _report(options: argparse.Namespace) -> int:
    from agent.report import write_report

    count = write_report(_config(options), options.output)
    print(f"`{options.output}` tells of {count} cycle{'' if count == 1 else 's'}")
    return EXIT_WELL


def _config(options: argparse.Namespace) -> Config:
    from agent.config import FILE_NAME, load_config

    return load_config(options.config or options.repo / FILE_NAME)


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
