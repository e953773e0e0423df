"""A command: what it is, and how a process that was forked becomes it."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
from typing import Any

from . import landlock, linux, seccomp

REPORT_FD, SECCOMP_FD, STATUS_FD = 3, 4, 5
"""Where the command, or bubblewrap, finds what it is given beside the three standard streams."""


class Command:
    """What to run, behind which walls and within which limits: the fields of a `run` message.

    `wrapper` is bubblewrap with its arguments, empty without it. `landlock` is what
    `landlock.restrict` takes, None without it; `seccomp` is a program, empty for none. `space` is
    a file system of the run's own, `measured` are the folders that it may fill without one.
    """

    __slots__ = (
        "argv", "cpu_s", "cwd", "disk_bytes", "env", "inodes", "landlock", "measured",
        "memory_bytes", "open_files", "processes", "seccomp", "space", "wall_s", "wrapper",
    )  # fmt: skip

    argv: list[bytes]
    cpu_s: float
    cwd: bytes
    disk_bytes: int
    env: dict[bytes, bytes]
    inodes: int
    landlock: tuple[list[bytes], list[bytes], bool] | None
    measured: list[bytes]
    memory_bytes: int
    open_files: int
    processes: int
    seccomp: bytes
    space: bytes
    wall_s: float
    wrapper: list[bytes]

    def __init__(self, fields: dict[str, Any]) -> None:
        for name in self.__slots__:
            setattr(self, name, fields[name])


class Fault(Exception):
    """The command could not be started: the step that failed, its errno, and what was said."""

    def __init__(self, step: str, number: int = 0) -> None:
        super().__init__(step)
        self.step = step
        self.number = number


def become(command: Command, fds: list[int], status: int, complaint: int, step: list[str]) -> None:
    """Turn this process into the command; `step` names what is being done when OSError comes."""
    given = {number: fd for number, fd in enumerate(fds)}
    if command.wrapper:
        given[STATUS_FD] = status
        if command.seccomp:
            given[SECCOMP_FD] = pipe_with(command.seccomp)
    # Nothing may lie where another one is to go.
    given = {number: above(fd) for number, fd in given.items()}
    complaint = above(complaint)
    for number, fd in given.items():
        os.dup2(fd, number, inheritable=True)
    set_limits(command)
    step[0] = "chdir"
    if not command.wrapper:
        os.chdir(command.cwd)
    step[0] = "confine"
    if command.landlock is not None:
        linux.no_new_privileges()
        linux.drop_capabilities()
        readable, writable, network = command.landlock
        landlock.restrict(readable, writable, network=network)
        seccomp.install(command.seccomp)
    step[0] = "exec"
    reset_signals()
    execute([*command.wrapper, *command.argv], command.env)


def pipe_with(content: bytes) -> int:
    """Return a descriptor from which `content`, which a pipe can hold, is read."""
    reader, writer = os.pipe()
    os.write(writer, content)
    os.close(writer)
    return reader


def above(fd: int) -> int:
    """Return a copy of `fd` with a number higher than all that a command is given."""
    return int(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, STATUS_FD + 1))


def set_limits(command: Command) -> None:
    """Set what the kernel counts for each process; totals are looked at from outside."""
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_DATA, command.memory_bytes)
    limit(resource.RLIMIT_NOFILE, command.open_files)
    limit(resource.RLIMIT_FSIZE, command.disk_bytes)
    limit(resource.RLIMIT_CPU, int(command.cpu_s) + 1)
    if command.wrapper:
        # In a user namespace of its own only the run's processes count; for root none do.
        limit(resource.RLIMIT_NPROC, command.processes)


def limit(kind: int, value: int) -> None:
    soft, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    soft = value if soft == resource.RLIM_INFINITY else min(soft, value)
    resource.setrlimit(kind, (soft, value))


def reset_signals() -> None:
    """Restore every default: Python ignores SIGPIPE, and the engine's own choices are inherited."""
    signal.set_wakeup_fd(-1)
    for number in range(1, signal.NSIG):
        if signal.getsignal(number) not in (signal.SIG_DFL, None):
            signal.signal(number, signal.SIG_DFL)


def execute(argv: list[bytes], env: dict[bytes, bytes]) -> None:
    """Replace this process by `argv`, found as `execvpe` would; raise OSError.

    `os.execvpe` imports `warnings` to look at PATH.
    """
    program = argv[0]
    if b"/" in program:
        os.execve(program, argv, env)
    problem: OSError = FileNotFoundError(errno.ENOENT, "not found")
    for directory in env.get(b"PATH", os.defpath.encode()).split(b":"):
        try:
            os.execve(os.path.join(directory, program), argv, env)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            problem = error
    raise problem
