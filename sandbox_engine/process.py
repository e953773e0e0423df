"""The only door to child processes: what runs, with which environment, and how it is stopped.

`run_tool` is for short programs that are trusted, such as git: a plain child, its group killed
when it takes too long. What nobody vouches for is run by `containment`, with the values of here.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox_engine.errors import CommandMissingError

RUN_VARIABLE = "SANDBOX_ENGINE_RUN"
"""Marks every process of a contained run with `<marker>:<id of the run>`, see `kill_marked`."""

_SWEEP_S = 5.0
CANNOT_RUN = (errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.ENOTDIR, errno.ELOOP)


class Stop(enum.StrEnum):
    """Why a run was ended before its main process ended by itself."""

    TIME_OUT = "time-out"
    OUTPUT = "output"
    CPU = "cpu"
    MEMORY = "memory"
    PROCESSES = "processes"
    DISK = "disk"
    INODES = "inodes"
    INTERRUPTED = "interrupted"
    SUPERVISOR_LOST = "supervisor-lost"


@dataclass(frozen=True, slots=True)
class Limits:
    """What all processes of one contained run may use together.

    Times are in seconds: `wall_s` on the clock, `cpu_s` of processors. `output_bytes` counts
    stdout and stderr, `report_bytes` the report pipe; `disk_bytes` and `inodes` what is written
    anywhere in the sandbox. `open_files` is for each process.
    """

    wall_s: float = 600.0
    output_bytes: int = 64 * 1024**2
    memory_bytes: int = 4 * 1024**3
    report_bytes: int = 256 * 1024**2
    processes: int = 1000
    cpu_s: float = 3600.0
    open_files: int = 4096
    disk_bytes: int = 2 * 1024**3
    inodes: int = 200_000


@dataclass(frozen=True, slots=True)
class Completed:
    """What is known of a command that is over.

    `code` is the exit status, negative for the signal that ended it, None where it is not known.
    Of a contained run, `stdout` and `stderr` hold both ends of a long stream and a line between
    them that says how much was left out; `survivors` counts the processes that were still there
    when the main one had ended and had to be killed; `peak_bytes` is the most memory seen in use
    at once, 0 where it was not measured. Where it was stopped, `consumer` says who used the most
    of what ran out.
    """

    argv: tuple[str, ...]
    code: int | None
    stdout: bytes
    stderr: bytes
    elapsed_s: float
    stop: Stop | None = None
    survivors: int = 0
    peak_bytes: int = 0
    consumer: str = ""


def without_git_variables(env: Mapping[str, str]) -> dict[str, str]:
    """Return `env` without every variable that git reads; `env` stays as it was.

    A hook exports GIT_INDEX_FILE and GIT_DIR: a git command that inherits them works on the
    user's index and repository, whatever directory it runs in.
    """
    return {name: value for name, value in env.items() if not name.startswith("GIT_")}


def run_tool(
    argv: Sequence[str],
    *,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    input: bytes = b"",
    timeout_s: float = 120.0,
    keep_fds: Sequence[int] = (),
) -> Completed:
    """Run a trusted program to its end and return all that it wrote, whatever its exit status.

    Without `env` it gets this process's own, less git's variables. `keep_fds` are inherited: a
    lock that must stay taken for as long as the program runs. On a time-out or an interrupt
    its whole process group is killed. Raises CommandMissingError.
    """
    started = time.monotonic()
    stop = None
    with spawn(
        argv,
        cwd=cwd,
        env=without_git_variables(os.environ) if env is None else dict(env),
        stdin=subprocess.PIPE if input else subprocess.DEVNULL,
        pass_fds=keep_fds,
    ) as child:
        try:
            stdout, stderr = child.communicate(input or None, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            stop = Stop.TIME_OUT
            stdout, stderr = _kill_group(child)
        except BaseException:
            _kill_group(child)
            raise
    return Completed(
        tuple(argv), child.returncode, stdout, stderr, time.monotonic() - started, stop
    )


def run_foreground(argv: Sequence[str], cwd: Path) -> int:
    """Run a program of the user's on their terminal, and return its exit status.

    Interrupts are meant for it, not for us, for as long as it runs. Raises CommandMissingError.
    """
    try:
        child = subprocess.Popen(argv, cwd=cwd, env=without_git_variables(os.environ))
    except OSError as error:
        raise missing(argv[0], error) from error
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return child.wait()
    finally:
        signal.signal(signal.SIGINT, before)


def kill_marked(marker: str) -> int:
    """Kill every process of the contained runs of `marker`; return how many there were.

    `marker` is the id of a slot, or that and the id of a run. It is for runs that have lost their
    supervisor: a process is known by the environment it was started with and by its parents, so
    one that was given another environment and has left its parents is not found. This process
    and those that it descends from are spared.
    """
    killed: set[int] = set()
    deadline = time.monotonic() + _SWEEP_S
    while (living := _marked_pids(marker)) and time.monotonic() < deadline:
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in living:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
        killed |= living
        time.sleep(0.005)
    return len(killed)


def _marked_pids(marker: str) -> set[int]:
    wanted = f"{RUN_VARIABLE}={marker}".encode()
    parents: dict[int, int] = {}
    marked: set[int] = set()
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if not name.isdigit():
            continue
        try:
            # The name of the program, in parentheses, may hold spaces and parentheses.
            fields = _read(f"/proc/{name}/stat").rpartition(b")")[2].split()
            environ = _read(f"/proc/{name}/environ").split(b"\0")
        except OSError:
            continue
        if len(fields) < 2 or fields[0] in (b"Z", b"X"):
            continue
        parents[int(name)] = int(fields[1])
        if any(entry == wanted or entry.startswith(wanted + b":") for entry in environ):
            marked.add(int(name))
    if not marked:
        return marked
    spared = {0, 1, *_lineage(os.getpid(), parents)}
    return {
        pid for pid in parents if pid not in spared and marked.intersection(_lineage(pid, parents))
    }


def _lineage(pid: int, parents: Mapping[int, int]) -> Iterator[int]:
    seen: set[int] = set()
    while pid not in seen and pid in parents:
        seen.add(pid)
        yield pid
        pid = parents[pid]


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def spawn(
    argv: Sequence[str], *, cwd: str | os.PathLike[str] | None, **options: Any
) -> subprocess.Popen[bytes]:
    """Start `argv` as the leader of a new session; its output goes to pipes unless told."""
    directory = None if cwd is None else os.fspath(cwd)
    try:
        return subprocess.Popen(
            argv,
            cwd=directory,
            start_new_session=True,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
        )
    except OSError as error:
        if error.filename == directory or error.errno not in CANNOT_RUN:
            raise
        raise missing(argv[0], error) from error


def missing(program: str, error: OSError) -> CommandMissingError:
    """Return the error that says that `program` cannot be run, and what to do."""
    return CommandMissingError(
        f"`{program}` cannot be run: {error.strerror}",
        remedy=f"install `{program}`, or name another program that does its work",
    )


def _kill_group(child: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """Kill the process group of `child`; return what it wrote."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    try:
        return child.communicate(timeout=1)
    except subprocess.TimeoutExpired as expired:
        # A process that left the group holds the pipes open.
        return expired.output or b"", expired.stderr or b""


class Conversation:
    """A trusted program that is spoken to line by line; see `open_tool`."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child

    def say(self, text: str) -> None:
        """Write `text`; a program that has ended already is met by the next `hear`."""
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write(text.encode())
            self._child.stdin.flush()

    def hear(self) -> str:
        """Return the next line without its ending, "" when the program has ended."""
        assert self._child.stdout is not None
        return self._child.stdout.readline().decode("utf-8", "replace").rstrip("\n")

    def end(self) -> int:
        """End the program's input and return its exit status."""
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.close()
        return self._child.wait()

    def complaint(self) -> bytes:
        """Return what an ended program wrote to standard error."""
        assert self._child.stderr is not None
        return self._child.stderr.read()


@contextlib.contextmanager
def open_tool(
    argv: Sequence[str], *, env: Mapping[str, str], keep_fds: Sequence[int] = ()
) -> Iterator[Conversation]:
    """Start a trusted program that answers line by line, and end it after the block.

    Its input ends whatever happens in the block. Raises CommandMissingError.
    """
    with spawn(argv, cwd=None, env=dict(env), stdin=subprocess.PIPE, pass_fds=keep_fds) as child:
        tool = Conversation(child)
        try:
            yield tool
        finally:
            tool.end()


def is_at_work(program: str, folder: Path) -> bool:
    """Tell whether a process called `program` has its working directory in `folder`."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (entry / "comm").read_text().strip() == program:
                where = Path(os.readlink(entry / "cwd"))
                if where.is_relative_to(folder.resolve()):
                    return True
    return False
