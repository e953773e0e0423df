"""Actions in processes of their own that are confined first, to see what the kernel answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

NOBODY = 65534
USERS = [os.getuid(), NOBODY] if os.getuid() == 0 else [os.getuid()]
"""Whom a test can act as."""

_KEEPER = Path(__file__).parent.parent / "sandbox_engine"

# All modules are loaded before anything is shut, as another user may not read them.
_CHILD = """
import ctypes, encodings.idna, errno, fcntl, json, mmap, os, pty, resource, signal, socket, struct
import subprocess, sys, termios, threading, types
setup, action, user, names = json.load(sys.stdin)
sys.path.insert(0, names["keeper"])
from keeper import landlock, linux, seccomp
if user != os.getuid():
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    # Otherwise /proc/self still belongs to root.
    PR_SET_DUMPABLE = 4
    linux.prctl(PR_SET_DUMPABLE, 1)
scope = globals() | names
exec(setup, scope)
try:
    exec(action, scope)
    print(scope.get("answer", "done"))
except OSError as error:
    print(errno.errorcode[error.errno])
"""


def attempt(action: str, setup: str = "", *, user: int | None = None, **names: object) -> str:
    """Run `action` as `user` after `setup`; return its `answer`, "done" or the name of its errno.

    Both are Python that finds the modules of the keeper and `names` as globals.
    """
    globals_ = {
        name: str(value) if isinstance(value, Path) else value for name, value in names.items()
    }
    globals_["keeper"] = str(_KEEPER)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _CHILD],
        input=json.dumps([setup, action, os.getuid() if user is None else user, globals_]),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout.strip()
