"""Runs one untrusted command and outlives everything that it starts.

`sandbox_engine.process` starts this as a process between itself and the command. It is a
child subreaper, so a daemon that forked twice and left its session still ends up as its child
and cannot slip away. It holds the locks of the run, so that they stay taken until the last
process is gone, even when the engine is killed; the engine's end of the control pipe closes at
that moment, which is the sign to kill everything.

Start-up time is paid by every run, so this imports nothing that takes milliseconds: no json,
subprocess, re or typing.

Arguments are file descriptors: control, status, report (-1 for none), then the locks. The command
comes through the control pipe, see `read_command`; the outcome leaves through the status pipe,
as one line: `ended CODE STOP SURVIVORS LEFT PEAK_BYTES`, or `failed STEP ERRNO`.
"""

from __future__ import annotations

import errno
import os
import resource
import select
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
else:
    # `signal` wraps this module in enums, which costs 3 ms.
    import _signal as signal

POLL_S = 0.05
GRACE_S = 0.1
"""How long left-over processes may take to end by themselves after the main one.

The resource tracker of `multiprocessing` is one: it cleans up when it sees its owner gone.
"""
KILL_S = 10.0
"""How long killing goes on; what resists that long (setuid, stuck in the kernel) is left."""

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36
PAGE_BYTES = resource.getpagesize()
HAS_CHILD_LISTS = os.path.exists(f"/proc/self/task/{os.getpid()}/children")
"""Whether the kernel lists the children of a thread (CONFIG_PROC_CHILDREN)."""


class Command:
    """What to run and within which limits."""

    __slots__ = ("argv", "cwd", "env", "memory_bytes", "processes", "wall_s")

    def __init__(self, fields: list[bytes]) -> None:
        wall_s, memory_bytes, processes, self.cwd, count, *rest = fields
        self.wall_s = float(wall_s)
        self.memory_bytes = int(memory_bytes)
        self.processes = int(processes)
        self.argv = rest[: int(count)]
        self.env: dict[bytes, bytes] = {}
        for pair in rest[int(count) :]:
            name, _, value = pair.partition(b"=")
            self.env[name] = value


class Children:
    """The main process, and every process that descends from it."""

    def __init__(self) -> None:
        self.main = 0
        self.code: int | None = None
        self.peak_bytes = 0

    def reap(self) -> bool:
        """Collect the processes that ended; return whether any process is left.

        For a subreaper, no child means no descendant.
        """
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            unit = 1 if sys.platform == "darwin" else 1024
            self.peak_bytes = max(self.peak_bytes, usage.ru_maxrss * unit)
            if pid == self.main:
                self.code = os.waitstatus_to_exitcode(status)


def main() -> None:
    control, status, report, *locks = map(int, sys.argv[1:])
    for fd in (control, status, *locks):
        os.set_inheritable(fd, False)
    wakeup = watch_signals()
    command = read_command(control)
    if command is None:
        return
    try:
        prctl = adopt_descendants()
    except OSError as error:
        os.write(status, f"failed prctl {error.errno}\n".encode())
        return
    children = Children()
    failure = start(command, children, prctl)
    if failure:
        os.write(status, b"failed " + failure + b"\n")
        return
    if report >= 0:
        os.close(report)
    stop = wait_for_end(command, children, control, wakeup)
    if stop == "-":
        wait_for_stragglers(children, wakeup)
    survivors, left = kill_all(children, wakeup)
    line = f"ended {children.code} {stop} {survivors} {left} {children.peak_bytes}\n"
    os.write(status, line.encode())
    # Tidying up the interpreter takes a millisecond and keeps the locks.
    os._exit(0)


def watch_signals() -> int:
    """Return a descriptor that becomes readable when a child ends or a signal asks to stop."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, frame: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    return reader


def read_command(control: int) -> Command | None:
    """Return the command, or None when the engine went away before it had sent all of it.

    The form is eight hexadecimal digits, the length of what follows: wall time, memory, number of
    processes, directory, number of arguments, the arguments, the environment, separated by NULs.
    """
    size, text = 8, b""
    while len(text) < size:
        part = os.read(control, size - len(text))
        if not part:
            return None
        text += part
        if size == len(text) == 8:
            size += int(text, 16)
    return Command(text[8:].split(b"\0"))


def adopt_descendants() -> object:
    """Make this process the parent of every orphan below it; return `prctl`, None without it.

    Raises OSError on a Linux that refuses: what follows would contain nothing.
    """
    if sys.platform != "linux":
        return None
    # `ctypes` builds its classes on this module, which takes 2 ms.
    import _ctypes

    address = _ctypes.dlsym(_ctypes.dlopen(None, 0), "prctl")  # type: ignore[arg-type]

    def prctl(option: int, value: int) -> None:
        if _ctypes.call_function(address, (option, value, 0, 0, 0)):
            raise OSError(errno.EPERM, "prctl")

    prctl(PR_SET_CHILD_SUBREAPER, 1)
    # Otherwise the command could write its own outcome to /proc/<this process>/fd/<status>.
    prctl(PR_SET_DUMPABLE, 0)
    return prctl


def start(command: Command, children: Children, prctl: object) -> bytes:
    """Start the main process; return the failed step and its errno, empty when it runs."""
    reader, writer = os.pipe()
    parent = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        return f"fork {error.errno}".encode()
    if pid == 0:
        step = "start"
        try:
            os.setsid()
            if callable(prctl):
                prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
                if os.getppid() != parent:
                    os._exit(1)
            limit(resource.RLIMIT_CORE, 0)
            limit(resource.RLIMIT_DATA, command.memory_bytes)
            step = "chdir"
            os.chdir(command.cwd)
            step = "exec"
            reset_signals()
            execute(command)
        except OSError as error:
            os.write(writer, f"{step} {error.errno}".encode())
        finally:
            os._exit(127)
    children.main = pid
    os.close(writer)
    failure = os.read(reader, 64)
    os.close(reader)
    return failure


def limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, value))


def reset_signals() -> None:
    """Restore every default: Python ignores SIGPIPE, and the engine's own choices are inherited."""
    signal.set_wakeup_fd(-1)
    for number in range(1, signal.NSIG):
        if signal.getsignal(number) not in (signal.SIG_DFL, None):
            signal.signal(number, signal.SIG_DFL)


def execute(command: Command) -> None:
    """Replace this process by the command, found as `execvpe` would; raise OSError.

    `os.execvpe` imports `warnings` to look at PATH.
    """
    program = command.argv[0]
    if b"/" in program:
        os.execve(program, command.argv, command.env)
    problem: OSError = FileNotFoundError(errno.ENOENT, "not found")
    for directory in command.env.get(b"PATH", os.defpath.encode()).split(b":"):
        try:
            os.execve(os.path.join(directory, program), command.argv, command.env)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            problem = error
    raise problem


def wait_for_end(command: Command, children: Children, control: int, wakeup: int) -> str:
    """Wait until the main process ends or has to be stopped; return why, `-` when it just ended."""
    poller = select.poll()
    poller.register(control, select.POLLIN | select.POLLHUP)
    poller.register(wakeup, select.POLLIN)
    deadline = time.monotonic() + command.wall_s
    next_look = time.monotonic() + POLL_S
    while True:
        children.reap()
        if children.code is not None:
            return "-"
        now = time.monotonic()
        if now >= deadline:
            return "time-out"
        if now >= next_look:
            if stop := overuse(command, children):
                return stop
            # A look costs time for each process; a twentieth of all time may go into looking.
            spent = time.monotonic() - now
            next_look = now + max(POLL_S, 20 * spent)
        pause = min(deadline, next_look) - time.monotonic()
        for fd, _ in poller.poll(max(0, pause * 1000)):
            if fd == control or not drain(wakeup) <= {signal.SIGCHLD}:
                return "interrupted"


def drain(wakeup: int) -> set[int]:
    """Return the numbers of the signals that came in."""
    try:
        return set(os.read(wakeup, 4096))
    except BlockingIOError:
        return set()


def overuse(command: Command, children: Children) -> str:
    """Return the limit that all processes together are over, empty when there is none."""
    pids = descendants()
    if len(pids) > command.processes:
        return "processes"
    used = sum(map(resident_bytes, pids))
    if used > command.memory_bytes:
        # Resident sizes count a page once for each process that shares it.
        used = sum(map(proportional_bytes, pids))
    children.peak_bytes = max(children.peak_bytes, used)
    return "memory" if used > command.memory_bytes else ""


def resident_bytes(pid: int) -> int:
    fields = read(f"/proc/{pid}/statm").split()
    return int(fields[1]) * PAGE_BYTES if fields else 0


def proportional_bytes(pid: int) -> int:
    for line in read(f"/proc/{pid}/smaps_rollup").split(b"\n"):
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) * 1024
    return resident_bytes(pid)


def wait_for_stragglers(children: Children, wakeup: int) -> None:
    deadline = time.monotonic() + GRACE_S
    while children.reap() and (pause := deadline - time.monotonic()) > 0:
        select.select([wakeup], [], [], pause)
        drain(wakeup)


def kill_all(children: Children, wakeup: int) -> tuple[int, int]:
    """Kill every descendant; return how many besides the main one, and how many resisted.

    Each round stops the tree from the top down before it kills: a process that is stopped
    neither forks nor collects its children, so none is missed and no number is used twice.
    """
    killed: set[int] = set()
    deadline = time.monotonic() + KILL_S
    while children.reap():
        living = descendants(stop=True)
        if time.monotonic() > deadline:
            return len(killed - {children.main}), len(living)
        for pid in living:
            send(pid, signal.SIGKILL)
        if sys.platform != "linux" and children.code is None:
            os.killpg(children.main, signal.SIGKILL)
        killed.update(living)
        select.select([wakeup], [], [], 0.01)
        drain(wakeup)
    return len(killed - {children.main}), 0


def descendants(stop: bool = False) -> list[int]:
    """Return every living process below this one, parents first; `stop` stops each on the way."""
    found: list[int] = []
    queue = child_pids(os.getpid())
    seen = set(queue)
    while queue:
        pid = queue.pop()
        if stop:
            send(pid, signal.SIGSTOP)
        if read(f"/proc/{pid}/statm")[:2] not in (b"", b"0 "):
            found.append(pid)
        fresh = [child for child in child_pids(pid) if child not in seen]
        seen.update(fresh)
        queue.extend(fresh)
    return found


def child_pids(pid: int) -> list[int]:
    if HAS_CHILD_LISTS:
        tasks = entries(f"/proc/{pid}/task")
        texts = [read(f"/proc/{pid}/task/{task}/children") for task in tasks]
        return [int(child) for text in texts for child in text.split()]
    return [int(name) for name in entries("/proc") if name.isdigit() and parent_pid(name) == pid]


def parent_pid(pid: str) -> int:
    # The second field is the name in parentheses, which may itself hold spaces and parentheses.
    fields = read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return int(fields[1]) if fields else 0


def entries(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def read(path: str) -> bytes:
    """Return what the file of a process says, empty when the process is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, 65536)
    except OSError:
        return b""
    finally:
        os.close(fd)


def send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except OSError:
        return
