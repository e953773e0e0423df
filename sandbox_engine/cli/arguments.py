"""What can be typed: every command, argument and option, and nothing of what they do.

Help, completion, the manual page and the reference in docs/ are all made from this parser.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from sandbox_engine.cli import (
    analysing,
    configuring,
    hooking,
    keeping,
    landing,
    looking,
    outputs,
    sandboxing,
    validating,
)
from sandbox_engine.version import VERSION

_FORMAT_HELP = (
    "json, unified, mbox, search-replace, apply-patch or files; found out where it is not named"
)
_EPILOG = """\
exit codes:
  0    the patch passed, or all did; the receipt holds; the commit landed
  1    one failed or was rejected; the receipt is false; nothing was landed
  2    wrong usage: options, configuration, repository, base or receipt
  3    one could not be judged; the receipt holds no longer
  130  interrupted (143, 129: ended by SIGTERM, SIGHUP)

examples:
  sandbox-engine validate fix.diff
  git diff | sandbox-engine validate - --strategy SYNTAX_ONLY
  sandbox-engine validate fix.diff --receipt fix.json
  sandbox-engine promote fix.json --branch main
  sandbox-engine COMMAND --help
"""
_EXAMPLES = {
    "validate": (
        "validate fix.diff",
        "validate plan.json --base main --output json",
        "validate patches/ -j 2 --fail-fast",
        "validate --range main..topic",
        "validate --from-branch topic --base main --report topic.html",
        "validate fix.diff --output junit -o junit.xml --output sarif -o fix.sarif",
        "validate fix.diff --require fixed:tests/test_cart.py::test_total",
    ),
    "hook": ("hook install", "hook install --pre-push --strategy SYNTAX_ONLY"),
    "show": ("show", "show 3f2a --report page.html"),
    "log": ("log -n 5", "log --output json"),
    "verify": ("verify fix.json",),
    "promote": ('promote fix.json --branch main -m "Fix the total"',),
    "analyse": ("analyse", "analyse --changed", "analyse --patch fix.diff --output json"),
    "watch": ("watch --daemon", "watch --status"),
    "sandbox open": ("sandbox open 3f2a", "sandbox open 3f2a -- git diff HEAD~"),
    "sandbox keep": ("sandbox keep 3f2a --name broken",),
    "gc": ("gc", "gc --age 1 --size 500"),
    "completion": (
        "completion bash >>~/.bash_completion",
        "completion zsh >~/.zfunc/_sandbox-engine",
        "completion fish >~/.config/fish/completions/sandbox-engine.fish",
    ),
}


def parser() -> argparse.ArgumentParser:
    """Return the parser; `command` of what it parses is the function to call."""
    top = argparse.ArgumentParser(
        prog="sandbox-engine",
        description="Is this patch good? A verdict that can be trusted, the repository untouched.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"sandbox-engine {VERSION}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    _validate_arguments(_command(commands, "validate", validating.validate, "judge a patch"))
    _hook_arguments(
        _command(commands, "hook", None, "judge what is committed or pushed before it is")
    )
    show = _command(commands, "show", looking.show, "show a verdict that was given")
    show.add_argument(
        "verdict",
        nargs="?",
        default="",
        metavar="VERDICT",
        help="the first digits of its id, tree or receipt (the last verdict)",
    )
    _judged_arguments(show)
    log = _command(commands, "log", looking.log, "list the verdicts that were given, newest first")
    log.add_argument("-n", type=_count, default=20, metavar="N", help="how many (20)")
    _output_argument(log)
    _verify_arguments(
        _command(commands, "verify", landing.verify, "see whether a receipt still holds")
    )
    _promote_arguments(
        _command(commands, "promote", landing.promote, "land what passed on a branch")
    )
    _output_argument(
        _command(
            commands, "strategies", configuring.strategies, "list the strategies and their steps"
        )
    )
    _analyse_arguments(
        _command(
            commands, "analyse", analysing.analyse, "show the size and complexity of Python files"
        )
    )
    _watch_arguments(
        _command(commands, "watch", analysing.watch, "keep the analyses of a work tree fresh")
    )
    _command(commands, "doctor", configuring.doctor, "check that all that is needed is here")
    _sandbox_arguments(_command(commands, "sandbox", None, "see sandboxes, and keep judged trees"))
    clean = _command(commands, "gc", keeping.clean, "take away what is no longer needed")
    clean.add_argument(
        "--age", type=_days, default=14.0, metavar="DAYS", help="what was not used for so long (14)"
    )
    clean.add_argument(
        "--size", type=_mebibytes, metavar="MIB", help="how large the store may be (4096)"
    )
    config = _command(commands, "config", None, "see or check what is configured")
    parts = config.add_subparsers(metavar="ACTION", required=True)
    _output_argument(
        _command(parts, "show", configuring.show, "show every setting and where it was said")
    )
    _command(parts, "check", configuring.check, "tell whether the configuration can be meant")
    _command(parts, "schema", configuring.schema, "print its JSON Schema, for editors")
    completion = _command(
        commands, "completion", configuring.completion, "print what a shell completes commands with"
    )
    completion.add_argument("shell", choices=configuring.SHELLS, help="which shell")
    cache = _command(commands, "cache", None, "see or clear what is kept between runs")
    actions = cache.add_subparsers(metavar="ACTION", required=True)
    _output_argument(
        _command(actions, "info", keeping.info, "show where the store is and its size")
    )
    drop = _command(actions, "gc", keeping.gc, "drop the analyses that were used least recently")
    drop.add_argument(
        "--size",
        type=_mebibytes,
        metavar="MIB",
        help="how large what is kept may be (512, which it never exceeds for long)",
    )
    clear = _command(actions, "clear", keeping.clear, "remove the store of the repository")
    clear.add_argument(
        "--all", action="store_true", help="remove the stores of all repositories, and the analyses"
    )
    return top


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int] | None,
    summary: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.epilog = _epilog(parser.prog.removeprefix("sandbox-engine "))
    if run is not None:
        parser.set_defaults(command=run)
        parser.add_argument("--repo", default=".", metavar="DIR", help="a folder of the repository")
        parser.add_argument("--config", type=Path, metavar="FILE", help="a configuration file")
        parser.add_argument("-v", "--verbose", action="store_true", help="tell the cause of errors")
    return parser


def _epilog(name: str) -> str | None:
    lines = "\n".join(f"  sandbox-engine {example}" for example in _EXAMPLES.get(name, ()))
    return f"examples:\n{lines}\n" if lines else None


def _output_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", choices=("text", "json"), default="text", help="the form")


def _validate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "patch",
        metavar="PATCH",
        nargs="*",
        help="a file, a folder, or - for standard input; each is judged by itself",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--staged",
        action="store_true",
        help="what is about to be committed, beside HEAD; it may change tests",
    )
    what.add_argument(
        "--pushed",
        metavar="REMOTE",
        help="what is about to be pushed, as git tells a pre-push hook on standard input",
    )
    what.add_argument(
        "--from-branch", metavar="NAME", help="what a branch has changed since it left --base"
    )
    what.add_argument(
        "--range", metavar="A..B", help="each commit of a range, beside its first parent"
    )
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
    parser.add_argument(
        "--lenient",
        action="store_true",
        help="with --staged or --pushed, let pass what cannot be judged",
    )
    _run_arguments(parser)
    parser.add_argument(
        "--explain", action="store_true", help="tell which edits of a patch that failed broke what"
    )
    parser.add_argument("--no-cache", action="store_true", help="judge again what is known")
    parser.add_argument(
        "-j", "--jobs", type=_count, default=1, metavar="N", help="how many at a time (1)"
    )
    parser.add_argument(
        "--fail-fast", action="store_true", help="end with the first that does not pass"
    )
    parser.add_argument(
        "--receipt",
        type=Path,
        metavar="PATH",
        help="write the receipt of what passed here; an older one is removed in any case",
    )
    _judged_arguments(parser)


def _judged_arguments(parser: argparse.ArgumentParser) -> None:
    """Add how what was judged is told."""
    parser.add_argument(
        "--output",
        action=outputs.AddForm,
        choices=outputs.FORMS,
        metavar="FORM",
        help=f"{', '.join(outputs.FORMS[:-1])} or {outputs.FORMS[-1]}; several, where all but one "
        "have a file",
    )
    parser.add_argument(
        "-o", action=outputs.SetFile, metavar="FILE", help="where the form before it is written to"
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="write a page to read in FILE")
    parser.set_defaults(outputs=())


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"`{text}` is no number, 1 or more")
    return int(text)


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


def _sandbox_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    _output_argument(_command(actions, "list", sandboxing.list_all, "list slots, and what is kept"))
    start = _command(
        actions, "open", sandboxing.open_one, "run a shell where a judged tree is checked out"
    )
    start.add_argument(
        "what", metavar="VERDICT", help="a kept sandbox's name, or a verdict as `show` takes it"
    )
    start.add_argument(
        "words", nargs="*", metavar="COMMAND", help="what to run instead of a shell, after `--`"
    )
    keep = _command(actions, "keep", sandboxing.keep, "keep a judged tree as a work tree")
    keep.add_argument("verdict", metavar="VERDICT", help="a verdict as `show` takes it")
    keep.add_argument("--name", metavar="NAME", help="what it is called (its tree)")
    out = _command(actions, "rm", sandboxing.remove, "take kept work trees away")
    out.add_argument("names", nargs="+", metavar="NAME", help="what they are called")


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = -1.0
    if not 0 <= days < 100_000:
        raise argparse.ArgumentTypeError(f"`{text}` is no number of days")
    return days


def _mebibytes(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"`{text}` is no number of MiB")
    return int(text) * 2**20


def _hook_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    install = _command(actions, "install", hooking.install, "put the pre-commit hook in")
    install.add_argument("--pre-push", action="store_true", help="the pre-push hook instead")
    install.add_argument("--strategy", metavar="NAME", help="what to run (as configured)")
    install.add_argument("--lenient", action="store_true", help="let pass what cannot be judged")
    _command(actions, "uninstall", hooking.uninstall, "take them out, and put earlier ones back")
    _command(actions, "status", hooking.status, "tell which are in; exit code 1: none is")
