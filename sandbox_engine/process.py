"""The only door to child processes: what runs, with which environment, and how it is stopped.

`run_tool` is for short programs that are trusted, such as git: a plain child, its group killed
when it takes too long. `run_contained` is for code that nobody vouches for: a supervisor
(`supervisor.py`) stands between it and the engine, so that no process of the run outlives the
run, neither a daemon nor anything at all when the engine itself is killed.

Everything that a child wrote is a claim by that child. It is bounded here and believed nowhere.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sandbox_engine.errors import CommandMissingError

RUN_VARIABLE = "SANDBOX_ENGINE_RUN"
"""Marks every process of a contained run with `<marker>:<id of the run>`, see `kill_marked`."""

_SUPERVISOR = (
    *(sys.executable, "-I", "-S", "-c"),
    "import sys; sys.path.append(sys.argv.pop(1)); import supervisor; supervisor.main()",
    os.path.dirname(os.path.abspath(__file__)),
)
"""Imported and not run as a script: compiling it takes 3 ms, and a script is never cached."""
_KEPT_BYTES = 256 * 1024
"""How much of each end of a stream is kept."""
_READ_BYTES = 256 * 1024
_SUPERVISOR_GRACE_S = 15.0
"""How long after the wall time a supervisor may still be killing; then it is hung itself."""
_SWEEP_S = 5.0
_CANNOT_RUN = (errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.ENOTDIR, errno.ELOOP)


class Stop(enum.StrEnum):
    """Why a run was ended before its main process ended by itself."""

    TIME_OUT = "time-out"
    OUTPUT = "output"
    MEMORY = "memory"
    PROCESSES = "processes"
    INTERRUPTED = "interrupted"
    SUPERVISOR_LOST = "supervisor-lost"


@dataclass(frozen=True, slots=True)
class Limits:
    """What all processes of one contained run may use together.

    `output_bytes` counts stdout and stderr, `report_bytes` the report pipe.
    """

    wall_s: float = 600.0
    output_bytes: int = 64 * 1024**2
    memory_bytes: int = 4 * 1024**3
    report_bytes: int = 256 * 1024**2
    processes: int = 1000


@dataclass(frozen=True, slots=True)
class Completed:
    """What is known of a command that is over.

    `code` is the exit status, negative for the signal that ended it, None where it is not known.
    Of a contained run, `stdout` and `stderr` hold both ends of a long stream and a line between
    them that says how much was left out; `survivors` counts the processes that were still there
    when the main one had ended and had to be killed; `peak_bytes` is the most memory seen in use
    at once, 0 where it was not measured.
    """

    argv: tuple[str, ...]
    code: int | None
    stdout: bytes
    stderr: bytes
    elapsed_s: float
    stop: Stop | None = None
    report: bytes = b""
    survivors: int = 0
    peak_bytes: int = 0


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
    with _spawn(
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


def run_contained(
    argv: Sequence[str],
    *,
    cwd: str | os.PathLike[str],
    env: Mapping[str, str],
    limits: Limits | None = None,
    marker: str = "run",
    keep_fds: Sequence[int] = (),
    input: bytes = b"",
    report_env: str | None = None,
) -> Completed:
    """Run an untrusted command and return when every process that it started is gone.

    `env` is all that the command gets, but for RUN_VARIABLE, which holds `marker` (the id of a
    slot) and the id of the run. With `report_env` that variable holds the number of a descriptor
    to write a report to. `keep_fds` (locks) are held by the supervisor and never by the command:
    they stay taken until the last process of the run is gone, even when this process is killed.
    Raises CommandMissingError, and OSError when `cwd` cannot be entered.
    """
    limits = limits or Limits()
    run_id = f"{marker}:{uuid.uuid4().hex}"
    variables = {**env, RUN_VARIABLE: run_id}
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        control_out, control_in = _pipe(stack)
        status_out, status_in = _pipe(stack)
        report_out, report_in = _pipe(stack)
        report_fd = -1
        if report_env:
            report_fd = report_in.fileno()
            variables[report_env] = str(report_fd)
        command = _encode(argv, cwd, variables, limits)
        numbers = (control_out.fileno(), status_in.fileno(), report_fd, *keep_fds)
        supervisor = stack.enter_context(
            _spawn(
                [*_SUPERVISOR, *map(str, numbers)],
                cwd="/",
                env=_supervisor_env(),
                stdin=_file(stack, input) if input else subprocess.DEVNULL,
                pass_fds=[fd for fd in numbers if fd >= 0],
            )
        )
        try:
            for pipe in (control_out, status_in, report_in):
                pipe.close()
            streams = _Streams(supervisor, status_out, report_out, limits)
            deadline = started + limits.wall_s + _SUPERVISOR_GRACE_S
            is_flood = _exchange(command, control_in, streams, deadline)
            fate = _Fate.parse(streams.status.content())
            if fate is None or fate.left:
                supervisor.kill()
                swept = kill_marked(run_id)
                fate = fate or _Fate(stop=Stop.SUPERVISOR_LOST, survivors=swept)
            supervisor.wait()
            streams.drain()
        except BaseException:
            # The end of the control pipe is the sign to kill everything.
            control_in.close()
            try:
                supervisor.wait(_SUPERVISOR_GRACE_S)
            except subprocess.TimeoutExpired:
                supervisor.kill()
                kill_marked(run_id)
            raise
        if fate.step:
            raise _start_error(fate, argv[0], cwd)
        return Completed(
            tuple(argv),
            fate.code,
            streams.stdout.content(),
            streams.stderr.content(),
            time.monotonic() - started,
            Stop.OUTPUT if is_flood else fate.stop,
            streams.report.content(),
            fate.survivors,
            fate.peak_bytes,
        )


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


@dataclass(frozen=True, slots=True)
class _Fate:
    """What the supervisor says about its run; `step` and `error` when it did not start."""

    code: int | None = None
    stop: Stop | None = None
    survivors: int = 0
    left: int = 0
    peak_bytes: int = 0
    step: str = ""
    error: int = 0

    @classmethod
    def parse(cls, line: bytes) -> _Fate | None:
        """Return what `line` says, or None when the supervisor died before it had said it."""
        try:
            match line.decode().removesuffix("\n").split(" "):
                case ["failed", step, error]:
                    return cls(step=step, error=int(error))
                case ["ended", code, stop, survivors, left, peak_bytes]:
                    return cls(
                        None if code == "None" else int(code),
                        None if stop == "-" else Stop(stop),
                        *(int(survivors), int(left), int(peak_bytes)),
                    )
        except ValueError:
            pass
        return None


class _Stream:
    """Reads a pipe to its end, keeps both ends of what came, and counts the rest."""

    def __init__(self, pipe: IO[bytes], head_bytes: int, tail_bytes: int = 0) -> None:
        self.pipe = pipe
        self.total = 0
        self._head = bytearray()
        self._tail = bytearray()
        self._head_bytes = head_bytes
        self._tail_bytes = tail_bytes

    def read(self) -> bool:
        """Take in what is there; return False when there will be no more."""
        part = os.read(self.pipe.fileno(), _READ_BYTES)
        self.total += len(part)
        room = self._head_bytes - len(self._head)
        self._head += part[:room]
        self._tail += part[room:]
        if len(self._tail) > self._tail_bytes + _READ_BYTES:
            del self._tail[: len(self._tail) - self._tail_bytes]
        return bool(part)

    def content(self) -> bytes:
        tail = self._tail[max(0, len(self._tail) - self._tail_bytes) :]
        left_out = self.total - len(self._head) - len(tail)
        if left_out and self._tail_bytes:
            return b"%b\n[... %d bytes left out ...]\n%b" % (
                bytes(self._head),
                left_out,
                bytes(tail),
            )
        return bytes(self._head + tail)


class _Streams:
    """The pipes that come from a supervisor and its run."""

    def __init__(
        self,
        supervisor: subprocess.Popen[bytes],
        status: IO[bytes],
        report: IO[bytes],
        limits: Limits,
    ) -> None:
        assert supervisor.stdout is not None and supervisor.stderr is not None
        self.status = _Stream(status, 4096)
        self.report = _Stream(report, limits.report_bytes)
        self.stdout = _Stream(supervisor.stdout, _KEPT_BYTES, _KEPT_BYTES)
        self.stderr = _Stream(supervisor.stderr, _KEPT_BYTES, _KEPT_BYTES)
        self._limits = limits

    def __iter__(self) -> Iterator[_Stream]:
        return iter((self.status, self.report, self.stdout, self.stderr))

    @property
    def is_flood(self) -> bool:
        return (
            self.stdout.total + self.stderr.total > self._limits.output_bytes
            or self.report.total > self._limits.report_bytes
        )

    def drain(self) -> None:
        """Take in what is still in the pipes, without waiting for who may hold them open."""
        for stream in self:
            os.set_blocking(stream.pipe.fileno(), False)
            with contextlib.suppress(BlockingIOError):
                while stream.read() and not self.is_flood:
                    pass


def _exchange(command: bytes, control: IO[bytes], streams: _Streams, deadline: float) -> bool:
    """Send the command, take in what comes until the supervisor is gone or `deadline` is past.

    Returns whether the run wrote more than it may; it is told to end as soon as it does.
    """
    os.set_blocking(control.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_WRITE)
        for stream in streams:
            selector.register(stream.pipe, selectors.EVENT_READ, stream)
        while (pause := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(pause):
                if key.data:
                    if key.data.read():
                        continue
                    selector.unregister(key.fileobj)
                    if key.data is streams.status:
                        return streams.is_flood
                else:
                    with contextlib.suppress(BrokenPipeError):
                        command = command[os.write(control.fileno(), command) :]
                        if command:
                            continue
                    selector.unregister(control)
            if streams.is_flood and not control.closed:
                if control in selector.get_map():
                    selector.unregister(control)
                control.close()
    return streams.is_flood


def _encode(
    argv: Sequence[str], cwd: str | os.PathLike[str], env: Mapping[str, str], limits: Limits
) -> bytes:
    """Return the command in the form that the supervisor's `read_command` reads."""
    if any("=" in name for name in env):
        raise ValueError("the name of an environment variable holds `=`")
    fields = [
        *map(str, (limits.wall_s, limits.memory_bytes, limits.processes, os.path.abspath(cwd))),
        *(str(len(argv)), *argv),
        *(f"{name}={value}" for name, value in env.items()),
    ]
    if any("\0" in field for field in fields):
        raise ValueError("an argument, the directory or an environment variable holds a NUL")
    text = b"\0".join(map(os.fsencode, fields))
    return b"%08x" % len(text) + text


def _supervisor_env() -> dict[str, str]:
    """Return the little that an interpreter may need to start; the command gets none of it."""
    return {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}


def _pipe(stack: contextlib.ExitStack) -> tuple[IO[bytes], IO[bytes]]:
    reader, writer = os.pipe()
    return (
        stack.enter_context(open(reader, "rb", buffering=0)),
        stack.enter_context(open(writer, "wb", buffering=0)),
    )


def _file(stack: contextlib.ExitStack, content: bytes) -> IO[bytes]:
    file = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
    file.write(content)
    file.seek(0)
    return file


def _spawn(
    argv: Sequence[str], *, cwd: str | os.PathLike[str] | None, **options: Any
) -> subprocess.Popen[bytes]:
    """Start `argv` as the leader of a new session; its output goes to pipes."""
    directory = None if cwd is None else os.fspath(cwd)
    try:
        return subprocess.Popen(
            argv,
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            **options,
        )
    except OSError as error:
        if error.filename == directory or error.errno not in _CANNOT_RUN:
            raise
        raise _missing(argv[0], error) from error


def _missing(program: str, error: OSError) -> CommandMissingError:
    return CommandMissingError(
        f"`{program}` cannot be run: {error.strerror}",
        remedy=f"install `{program}`, or name another program that does its work",
    )


def _start_error(fate: _Fate, program: str, cwd: str | os.PathLike[str]) -> Exception:
    error = OSError(fate.error, os.strerror(fate.error))
    if fate.step == "exec" and fate.error in _CANNOT_RUN:
        return _missing(program, error)
    if fate.step == "chdir":
        error.filename = os.fspath(cwd)
    return error


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
    with _spawn(argv, cwd=None, env=dict(env), stdin=subprocess.PIPE, pass_fds=keep_fds) as child:
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
