"""The command line: arguments in, text and an exit code out."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from sandbox_engine.version import VERSION

if TYPE_CHECKING:
    from sandbox_engine.config import Config
    from sandbox_engine.engine import Engine
    from sandbox_engine.verdict import Verdict

EXIT_PASSED, EXIT_REFUSED, EXIT_USAGE, EXIT_UNJUDGED, EXIT_INTERRUPTED = 0, 1, 2, 3, 130

_PATIENCE_S = 0.3
"""So often the progress of an analysis is shown."""

_SHOWN = 5

_FORMAT_HELP = (
    "json, unified, mbox, search-replace, apply-patch or files; found out where it is not named"
)
_EPILOG = """\
exit codes:
  0    the patch passed; the receipt holds; the commit landed
  1    it failed or was rejected; the receipt is false; nothing was landed
  2    wrong usage: options, configuration, repository, base or receipt
  3    it could not be judged; the receipt holds no longer
  130  interrupted (143, 129: ended by SIGTERM, SIGHUP)

examples:
  sandbox-engine validate fix.diff
  git diff | sandbox-engine validate - --strategy SYNTAX_ONLY
  sandbox-engine validate plan.json --base main --output json
  sandbox-engine validate fix.diff --receipt fix.json
  sandbox-engine promote fix.json --branch main
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors become one sentence and a hint."""
    options = _parser().parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _terminate)
    from sandbox_engine.errors import PromotionError, SandboxError, UsageError

    try:
        command: Callable[[argparse.Namespace], int] = options.command
        code = command(options)
        sys.stdout.flush()
        return code
    except SandboxError as error:
        _complain(error, options.verbose)
        if isinstance(error, UsageError):
            return EXIT_USAGE
        return EXIT_REFUSED if isinstance(error, PromotionError) else EXIT_UNJUDGED
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            # The reader has gone, as `head` does; what is left to write must not raise at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return EXIT_UNJUDGED
        from sandbox_engine.git import foreign_failure

        _complain(foreign_failure(error, "the system refused"), options.verbose)
        return EXIT_UNJUDGED
    except KeyboardInterrupt:
        is_promotion = options.command is _promote
        state = "`git log` tells what landed" if is_promotion else "nothing was changed"
        print(f"interrupted; {state}", file=sys.stderr)
        return EXIT_INTERRUPTED


# As an exception it unwinds what is open: the sandbox is given back and its scratch removed.
def _terminate(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def _complain(error: Exception, is_verbose: bool) -> None:
    print(f"error: {error}", file=sys.stderr)
    if is_verbose:
        print("", file=sys.stderr)
        traceback.print_exception(error, file=sys.stderr)
        argv, stderr = getattr(error, "argv", ()), getattr(error, "stderr", "")
        if argv:
            print(f"\ncommand: {' '.join(argv)}\n{stderr}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sandbox-engine",
        description="Is this patch good? A verdict that can be trusted, the repository untouched.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sandbox-engine {VERSION}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _validate_arguments(_command(commands, "validate", _validate, "judge a patch"))
    _hook_arguments(_command(commands, "hook", None, "judge each commit before it is made"))
    _verify_arguments(_command(commands, "verify", _verify, "see whether a receipt still holds"))
    _promote_arguments(_command(commands, "promote", _promote, "land what passed on a branch"))
    _output_argument(
        _command(commands, "strategies", _strategies, "list the strategies and their steps")
    )
    _analyse_arguments(
        _command(commands, "analyse", _analyse, "show the size and complexity of Python files")
    )
    _watch_arguments(_command(commands, "watch", _watch, "keep the analyses of a work tree fresh"))
    _command(commands, "doctor", _doctor, "check that all that is needed is here")
    cache = _command(commands, "cache", None, "see or clear what is kept between runs")
    actions = cache.add_subparsers(metavar="ACTION", required=True)
    _output_argument(_command(actions, "info", _cache_info, "show where the store is and its size"))
    gc = _command(actions, "gc", _cache_gc, "drop the analyses that were used least recently")
    gc.add_argument(
        "--size",
        type=_mebibytes,
        metavar="MIB",
        help="how large what is kept may be (512, which it never exceeds for long)",
    )
    clear = _command(actions, "clear", _cache_clear, "remove the store of the repository")
    clear.add_argument(
        "--all", action="store_true", help="remove the stores of all repositories, and the analyses"
    )
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int] | None,
    summary: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}."
    )
    if run is not None:
        parser.set_defaults(command=run)
        parser.add_argument("--repo", default=".", metavar="DIR", help="a folder of the repository")
        parser.add_argument("--config", type=Path, metavar="FILE", help="a configuration file")
        parser.add_argument("-v", "--verbose", action="store_true", help="tell the cause of errors")
    return parser


def _output_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", choices=("text", "json"), default="text", help="the form")


def _validate_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "patch", metavar="PATCH", nargs="?", help="a file, a folder, or - for standard input"
    )
    what.add_argument(
        "--staged",
        action="store_true",
        help="what is about to be committed, beside HEAD; it may change tests",
    )
    parser.add_argument("--lenient", action="store_true", help="with --staged, let pass what "
                        "cannot be judged")  # fmt: skip
    parser.add_argument("--base", default="HEAD", metavar="REV", help="what it applies to (HEAD)")
    parser.add_argument("--strategy", metavar="NAME", help="what to run (SYNTAX_AND_PYTEST)")
    parser.add_argument("--format", metavar="NAME", help=_FORMAT_HELP)
    parser.add_argument(
        "--match",
        choices=("exact", "default", "fuzzy"),
        default="default",
        help="how far an edit may be from the file's text",
    )
    parser.add_argument(
        "--require",
        action="append",
        default=[],
        metavar="fixed:NODEID",
        help="a test that fails on the base and has to pass (repeatable)",
    )
    parser.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="PATTERN",
        help="node ids, as *, ? and [] match them, of tests that have to be there and pass "
        "(repeatable)",
    )
    parser.add_argument(
        "--allow-test-changes",
        action="store_true",
        help="the patch may change what the tests prove",
    )
    _run_arguments(parser)
    parser.add_argument(
        "--explain", action="store_true", help="tell which edits of a patch that failed broke what"
    )
    parser.add_argument("--no-cache", action="store_true", help="judge again what is known")
    parser.add_argument(
        "--receipt",
        type=Path,
        metavar="PATH",
        help="write the receipt of what passed here; an older one is removed in any case",
    )
    _output_argument(parser)


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--python", metavar="PATH", help="the interpreter that runs the tests")
    parser.add_argument(
        "--isolation",
        choices=("auto", "full", "landlock", "none"),
        help="how far runs are kept from all else (auto: the best that there is)",
    )


def _receipt_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "receipt", type=Path, metavar="RECEIPT", help="a file that `validate --receipt` wrote"
    )


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    _receipt_argument(parser)
    _run_arguments(parser)
    _output_argument(parser)


def _promote_arguments(parser: argparse.ArgumentParser) -> None:
    _receipt_argument(parser)
    parser.add_argument("--branch", required=True, metavar="NAME", help="where it lands")
    parser.add_argument("-m", "--message", metavar="TEXT", help="the message of the commit")
    parser.add_argument("--note", action="store_true", help="note the receipt on the commit")
    parser.add_argument("--no-hooks", action="store_true", help="do not run the commit's hooks")
    _run_arguments(parser)


def _analyse_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Show the size and complexity of the Python files below a folder (--repo), or what has "
        "changed of them: since the last commit, since a revision, or by a patch that is nowhere "
        "applied. What was analysed once is known."
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--changed", action="store_true", help="what differs from the last commit")
    what.add_argument("--patch", metavar="FILE", help="what a patch, or - for standard input, does")
    parser.add_argument("--base", metavar="REV", help="what differs from REV; what FILE applies to")
    _output_argument(parser)


def _watch_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Watch a work tree: what changes is analysed before anybody asks, and `analyse` need not "
        "look at every file. One process watches; it ends when it is told to, or the work tree is "
        "gone. Exit code 1 of --status: none runs."
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--foreground", action="store_true", help="watch until interrupted (what is done else)"
    )
    what.add_argument("--daemon", action="store_true", help="start a process that watches")
    what.add_argument("--stop", action="store_true", help="end it")
    what.add_argument("--status", action="store_true", help="tell what it does")
    _output_argument(parser)


def _mebibytes(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"`{text}` is no number of MiB")
    return int(text) * 2**20


def _hook_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    install = _command(actions, "install", _hook_install, "put the pre-commit hook in")
    install.add_argument("--strategy", metavar="NAME", help="what to run (as configured)")
    install.add_argument("--lenient", action="store_true", help="let pass what cannot be judged")
    _command(actions, "uninstall", _hook_uninstall, "take it out, and put an earlier one back")
    _command(actions, "status", _hook_status, "tell whether it is in; exit code 1: it is not")


def _hook_install(options: argparse.Namespace) -> int:
    from sandbox_engine import commit_hooks

    _config(options).recipe(options.strategy)
    strategy = ["--strategy", options.strategy] if options.strategy else []
    lenient = ["--lenient"] if options.lenient else []
    done = commit_hooks.install(options.repo, [*strategy, *lenient])
    earlier = "; it runs the one that was there first" if done.has_earlier else ""
    print(f"installed `{done.path}`{earlier}")
    return EXIT_PASSED


def _hook_uninstall(options: argparse.Namespace) -> int:
    from sandbox_engine import commit_hooks

    print("uninstalled" if commit_hooks.uninstall(options.repo) else "not installed")
    return EXIT_PASSED


def _hook_status(options: argparse.Namespace) -> int:
    from sandbox_engine import commit_hooks

    found = commit_hooks.status(options.repo)
    earlier = ", which runs an earlier hook first" if found.has_earlier else ""
    print(f"`{found.path}`{earlier}" if found.is_installed else "not installed")
    return EXIT_PASSED if found.is_installed else EXIT_REFUSED


def _validate_staged(options: argparse.Namespace) -> int:
    from sandbox_engine import commit_hooks, staged
    from sandbox_engine.reports import text
    from sandbox_engine.verdict import Outcome

    # Before all else: it is what git has named, and nobody asks for it again.
    index = staged.index_of_hook()
    if commit_hooks.is_skipped():
        print(f"sandbox-engine: passed over, because {commit_hooks.SKIP} is set", file=sys.stderr)
        return EXIT_PASSED
    verdict = _engine(options).validate_staged(
        index=index,
        strategy=options.strategy,
        allow_test_changes=True,
        use_cache=not options.no_cache,
    )
    if verdict is None:
        return EXIT_PASSED
    if options.output == "json":
        print(json.dumps(verdict.to_json(), indent=2))
    else:
        print(text.brief(verdict), file=sys.stderr)
    if options.lenient and verdict.outcome is Outcome.INCONCLUSIVE:
        return EXIT_PASSED
    if verdict.outcome is not Outcome.PASSED and options.output == "text":
        again = f"{commit_hooks.SKIP}=1 git commit"
        print(f"\n`{again} ...` commits all the same", file=sys.stderr)
    return _exit_code(verdict)


def _exit_code(verdict: Verdict) -> int:
    from sandbox_engine.verdict import Outcome

    return {
        Outcome.PASSED: EXIT_PASSED,
        Outcome.FAILED: EXIT_REFUSED,
        Outcome.REJECTED: EXIT_REFUSED,
        Outcome.INCONCLUSIVE: EXIT_UNJUDGED,
    }[verdict.outcome]


def _validate(options: argparse.Namespace) -> int:
    from sandbox_engine import verification
    from sandbox_engine.reports import text

    if options.staged:
        return _validate_staged(options)
    if options.receipt is not None:
        verification.prepare_receipt(options.receipt)
    patch = _read_patch(options.patch)
    verdict = _engine(options).validate(
        patch,
        base=options.base,
        strategy=options.strategy,
        format=options.format,
        match=options.match,
        require=options.require,
        keep=options.keep,
        allow_test_changes=options.allow_test_changes,
        explain=options.explain,
        use_cache=not options.no_cache,
    )
    if options.output == "json":
        print(json.dumps(verdict.to_json(), indent=2))
    else:
        print(text.describe(verdict))
    if options.receipt is not None and verdict.receipt is not None:
        verification.write_receipt(options.receipt, verdict.receipt)
    return _exit_code(verdict)


def _read_patch(name: str) -> bytes | Path:
    from sandbox_engine.errors import UsageError

    if name == "-":
        return sys.stdin.buffer.read()
    path = Path(name)
    if path.is_dir():
        return path
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"the patch `{name}` cannot be read: {error.strerror}",
            remedy="give the path of a file, or `-` for standard input",
        ) from error


def _engine(options: argparse.Namespace) -> Engine:
    from sandbox_engine.engine import Engine

    return Engine(options.repo, config=_config(options))


def _config(options: argparse.Namespace) -> Config:
    from sandbox_engine import git
    from sandbox_engine.config import load_config

    top = git.find_repository(options.repo).top
    config = load_config(top, file=options.config)
    python = getattr(options, "python", None)
    if python is not None:
        # A path that was typed is relative to where it was typed, not to the repository.
        python = os.path.abspath(python) if os.sep in python else python
        config = dataclasses.replace(config, python=python)
    isolation = getattr(options, "isolation", None)
    return config if isolation is None else dataclasses.replace(config, isolation=isolation)


def _verify(options: argparse.Namespace) -> int:
    from sandbox_engine import verification
    from sandbox_engine.reports import text
    from sandbox_engine.verification import Standing

    receipt = verification.read_receipt(options.receipt)
    claims = verification.verify(receipt, options.repo, _config(options))
    standing = verification.worst(claims)
    if options.output == "json":
        record = {
            "standing": standing,
            "claims": [dataclasses.asdict(claim) for claim in claims],
        }
        print(json.dumps(record, indent=2))
    else:
        for claim in claims:
            mark = "ok  " if claim.standing is Standing.HOLDS else "BAD "
            print(text.safe(f"{mark} {claim.name}: {claim.detail}"))
        print(text.safe(verification.summary(claims)))
    return {
        Standing.HOLDS: EXIT_PASSED,
        Standing.FALSE: EXIT_REFUSED,
        Standing.CHANGED: EXIT_UNJUDGED,
    }[standing]


def _promote(options: argparse.Namespace) -> int:
    from sandbox_engine.errors import NoteError
    from sandbox_engine.verification import read_receipt

    receipt = read_receipt(options.receipt)
    engine = _engine(options)
    try:
        commit = engine.promote(
            engine.verdict_of(receipt),
            branch=options.branch,
            message=options.message,
            hooks=not options.no_hooks,
            note=options.note,
        )
    except NoteError as error:
        print(error.commit)
        raise
    print(commit)
    return EXIT_PASSED


def _analyse(options: argparse.Namespace) -> int:
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
        return EXIT_PASSED
    if options.patch is not None:
        base = options.base or "HEAD"
        changes = _engine(options).analyse(_read_patch(options.patch), base=base)
    else:
        from sandbox_engine.analysis.comparison import compare_revision

        changes = compare_revision(options.repo, options.base or "HEAD")
    if options.output == "json":
        print(json.dumps(report.changes_to_json(changes), indent=2))
    else:
        print(report.differences(changes))
    return EXIT_PASSED


def _watch(options: argparse.Namespace) -> int:
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
    return EXIT_PASSED


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
    return EXIT_PASSED if status is not None else EXIT_REFUSED


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


def _strategies(options: argparse.Namespace) -> int:
    config = _config(options)
    recipes = config.recipes()
    if options.output == "json":
        print(
            json.dumps({name: dataclasses.asdict(item) for name, item in recipes.items()}, indent=2)
        )
        return EXIT_PASSED
    width = max(map(len, recipes))
    for name, recipe in recipes.items():
        steps = ", ".join(step.name for step in recipe.steps) or "no steps"
        mark = "*" if name == config.strategy else " "
        print(f"{mark} {name:{width}}  {steps}")
        if recipe.description:
            print(f"  {'':{width}}  {recipe.description}")
    print("\n* is used when none is named")
    return EXIT_PASSED


def _doctor(options: argparse.Namespace) -> int:
    from sandbox_engine.doctor import examine

    checks = examine(options.repo, options.config)
    for check in checks:
        print(f"{'ok  ' if check.is_well else 'BAD '} {check.name}: {check.detail}")
        if check.remedy:
            print(f"     hint: {check.remedy}")
    return EXIT_PASSED if all(check.is_well for check in checks) else EXIT_UNJUDGED


def _cache_info(options: argparse.Namespace) -> int:
    from sandbox_engine.analysis.scanner import open_results
    from sandbox_engine.disk import size_of

    engine = _engine(options)
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
        return EXIT_PASSED
    kept = ", ".join(f"{count} {name}" for name, count in sorted(usage.verdicts.items()))
    print(f"store     {engine.store.folder}")
    print(f"size      {size / 2**20:.1f} MiB")
    print(f"verdicts  {kept or 'none'}")
    print(f"analyses  {results.path}, of all repositories")
    print(f"size      {analyses.bytes / 2**20:.1f} MiB")
    for name, count in analyses.results.items():
        print(f"results   {count} {name}")
    return EXIT_PASSED


def _cache_gc(options: argparse.Namespace) -> int:
    from sandbox_engine.analysis.scanner import open_results
    from sandbox_engine.errors import SandboxError

    results = open_results()
    freed = results.trim(options.size)
    if results.trouble:
        raise SandboxError(
            results.trouble, remedy="see that its folder is there and that you may write to it"
        )
    print(f"{freed / 2**20:.1f} MiB freed")
    return EXIT_PASSED


def _cache_clear(options: argparse.Namespace) -> int:
    from sandbox_engine import git, store
    from sandbox_engine.analysis.scanner import open_results

    repository = None if options.all else git.find_repository(options.repo)
    freed = store.clear(repository=repository)
    if options.all:
        freed += open_results().remove()
    print(f"{freed / 2**20:.1f} MiB freed")
    return EXIT_PASSED
