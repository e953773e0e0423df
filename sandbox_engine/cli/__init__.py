"""The command line: arguments in, text and an exit code out.

`arguments` says what can be typed; each other module has the commands about one thing. They hold no
logic, and import what they need when they are called: a hook runs at every commit.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from sandbox_engine.cli import exits, landing
from sandbox_engine.cli.arguments import parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors become one sentence and a hint."""
    options = parser().parse_args(arguments)
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
            return exits.USAGE
        return exits.REFUSED if isinstance(error, PromotionError) else exits.UNJUDGED
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            # The reader has gone, as `head` does; what is left to write must not raise at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return exits.UNJUDGED
        from sandbox_engine.git import foreign_failure

        _complain(foreign_failure(error, "the system refused"), options.verbose)
        return exits.UNJUDGED
    except KeyboardInterrupt:
        is_promotion = options.command is landing.promote
        state = "`git log` tells what landed" if is_promotion else "nothing was changed"
        print(f"interrupted; {state}", file=sys.stderr)
        return exits.INTERRUPTED


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
