"""Runs the command line again and again in forks of one warm process, for `endurance.full_disk`.

Each fork stops itself until somebody lets it go on, so that a tracer can be attached to it first:
what fails then is a call of the engine, and none of the interpreter's while it starts.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from typing import Any

from endurance.driver import load_modules
from sandbox_engine import cli


def main(warm_home: str, first: str) -> None:
    """Answer each line of JSON with the id of a stopped fork, and then with its exit code."""
    load_modules()
    _warm_up(warm_home, first)
    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _run(asked)
        os.waitpid(pid, os.WUNTRACED)
        _tell(pid)
        _tell(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _warm_up(home: str, first: str) -> None:
    """Judge one patch in a store apart, which brings in all that is imported late."""
    usual = os.environ["XDG_CACHE_HOME"]
    os.environ["XDG_CACHE_HOME"] = home
    with contextlib.redirect_stdout(sys.stderr):
        code = cli.main(json.loads(first)["arguments"])
    os.environ["XDG_CACHE_HOME"] = usual
    if code:
        sys.exit(f"the first patch was not judged: {code}")


def _run(asked: Mapping[str, Any]) -> None:
    for number, name in ((1, "output"), (2, "errors")):
        opened = os.open(asked[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    os.environ["PATH"] = asked["path"]
    os.kill(os.getpid(), signal.SIGSTOP)
    try:
        code = cli.main(asked["arguments"])
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:  # What the interpreter does with it.
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)


def _tell(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
