"""Runs one untrusted command and outlives everything that it starts.

A keeper calls this for each run. It is a child subreaper, so a daemon that forked twice and left
its session still ends up as its child and cannot slip away. It holds the locks of the sandbox, so
that they stay taken until the last process is gone, even when the engine is killed; the engine's
end of the session socket closes at that moment, which is the sign to kill everything.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from typing import Any

from . import linux, wire
from .command import Command, Fault, become
from .processes import descendants, send
from .usage import POLL_S, Children, Look, Measure, Over, busiest, look_at_space, overuse

FIRST_MEASURE_S = 0.5
"""When the folders of a run without a file system of its own are first measured."""
GRACE_S = 0.1
"""How long left-over processes may take to end by themselves after the main one.

The resource tracker of `multiprocessing` is one: it cleans up when it sees its owner gone.
"""
KERNEL_STOPS = {
    code: stop
    for number, stop in ((signal.SIGXFSZ, "disk"), (signal.SIGXCPU, "cpu"))
    for code in (-number, 128 + number)
}
"""How the kernel ends a process that is over a limit, as is or as a shell tells it, and which."""
KILL_S = 10.0
"""How long killing goes on; what resists that long (setuid, stuck in the kernel) is left."""


def run(command: Command, fds: list[int], session: socket.socket, wakeup: int) -> dict[str, Any]:
    """Run `command` to its end and return what became of it; nothing that it started is left.

    `fds` are its standard streams and, if there is one, its report pipe; they are closed. Raise
    Fault when it cannot be started.
    """
    children = Children()
    status = start(command, fds, children)
    stop = consumer = ""
    try:
        wait_for_end(command, children, session, wakeup)
        if not command.wrapper:
            wait_for_stragglers(children, wakeup)
        look_at_space(command)
    except Over as over:
        stop, consumer = over.stop, over.consumer
    survivors, left = kill_all(children, wakeup)
    code = children.code if status < 0 or stop else wrapped_code(status, children.code)
    if not stop and code in KERNEL_STOPS:
        stop, consumer = KERNEL_STOPS[code], "the command itself"
    return {
        "code": code,
        "stop": stop,
        "consumer": consumer,
        # With a process namespace the kernel ends what is left, and nobody counts.
        "survivors": 0 if command.wrapper else survivors,
        "left": left,
        "peak_bytes": children.peak_bytes,
    }


def wrapped_code(status: int, code: int | None) -> int | None:
    """Return how the command inside bubblewrap ended; raise Fault when it did not start.

    Bubblewrap says the exit code only of a command that it could start, and says 128 and the
    number for a signal.
    """
    told = os.read(status, 4096)
    os.close(status)
    if b'"exit-code"' not in told and code is not None and code >= 0:
        raise Fault("bubblewrap")
    if code is not None and 128 < code < 128 + signal.NSIG:
        return 128 - code
    return code


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


def start(command: Command, fds: list[int], children: Children) -> int:
    """Start the main process; return the descriptor that bubblewrap's status comes from, or -1."""
    reader, writer = os.pipe()
    status_out, status_in = os.pipe() if command.wrapper else (-1, -1)
    parent = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        raise Fault("fork", error.errno or 0) from None
    if pid == 0:
        step = ["start"]
        try:
            os.setsid()
            linux.prctl(linux.PR_SET_PDEATHSIG, int(signal.SIGKILL))
            if os.getppid() != parent:
                os._exit(1)
            become(command, fds, status_in, writer, step)
        except OSError as error:
            os.write(writer, f"{step[0]} {error.errno}".encode())
        finally:
            os._exit(127)
    children.main = pid
    for fd in (writer, status_in, *fds):
        if fd >= 0:
            os.close(fd)
    failure = os.read(reader, 64).decode().split()
    os.close(reader)
    if failure:
        children.reap()
        if status_out >= 0:
            os.close(status_out)
        raise Fault(failure[0], int(failure[1]))
    return status_out


def wait_for_end(command: Command, children: Children, session: socket.socket, wakeup: int) -> None:
    """Wait until the main process ends; raise Over when it has to be stopped before."""
    poller = select.poll()
    poller.register(session, select.POLLIN | select.POLLHUP)
    poller.register(wakeup, select.POLLIN)
    started = time.monotonic()
    deadline = started + command.wall_s
    looks = [Look(overuse, command, children, started + POLL_S)]
    if command.measured:
        measure = Measure(command.measured, command)
        looks.append(Look(measure, command, children, started + FIRST_MEASURE_S))
    while True:
        children.reap()
        if children.code is not None:
            return
        is_late = time.monotonic() >= deadline
        for look in looks:
            look.when_due(is_late)
        if is_late:
            raise Over("time-out", busiest(descendants()))
        pause = min(deadline, *(look.due for look in looks)) - time.monotonic()
        for fd, _ in poller.poll(max(0, pause * 1000)):
            if fd == session.fileno():
                wire.receive(session)
                raise Over("interrupted")
            if not drain(wakeup) <= {signal.SIGCHLD}:
                raise Over("interrupted")


def drain(wakeup: int) -> set[int]:
    """Return the numbers of the signals that came in."""
    try:
        return set(os.read(wakeup, 4096))
    except BlockingIOError:
        return set()


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
        killed.update(living)
        select.select([wakeup], [], [], 0.01)
        drain(wakeup)
    return len(killed - {children.main}), 0
