"""What a run uses of what it may use, and who used the most when it is too much.

Looking costs time for each process and each file, so only a bounded share of the time goes into it.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator

from .command import Command
from .processes import (
    cpu_s,
    descendants,
    program_of,
    proportional_bytes,
    resident_bytes,
    shown,
)

POLL_S = 0.05
LOOK_SHARE = 20
"""One part in so many of all time may go into looking at what a run uses."""
FULL_SHARE = 256
"""A file system of which less than one part in so many is free counts as full."""


class Over(Exception):
    """The command has to be stopped: why, and who used the most of what it ran out of."""

    def __init__(self, stop: str, consumer: str = "") -> None:
        super().__init__(stop)
        self.stop = stop
        self.consumer = consumer


class Children:
    """The main process, and every process that descends from it.

    `cpu_s` is what those that ended have used.
    """

    def __init__(self) -> None:
        self.main = 0
        self.code: int | None = None
        self.peak_bytes = 0
        self.cpu_s = 0.0

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
            self.peak_bytes = max(self.peak_bytes, usage.ru_maxrss * 1024)
            self.cpu_s += usage.ru_utime + usage.ru_stime
            if pid == self.main:
                self.code = os.waitstatus_to_exitcode(status)


class Look:
    """Something that is looked at again and again, at a bounded share of the time."""

    def __init__(
        self,
        look: Callable[[Command, Children], None],
        command: Command,
        children: Children,
        due: float,
    ) -> None:
        self.look = look
        self.command = command
        self.children = children
        self.due = due

    def when_due(self, is_last: bool) -> None:
        """Look if it is time; and in the end too: what ran out may be why it is late."""
        now = time.monotonic()
        if is_last or now >= self.due:
            self.look(self.command, self.children)
            spent = time.monotonic() - now
            self.due = now + max(POLL_S, LOOK_SHARE * spent)


def overuse(command: Command, children: Children) -> None:
    """Raise Over with the limit that all processes together are over."""
    pids = descendants(with_zombies=True)
    if len(pids) > command.processes:
        raise Over("processes", most_frequent(pids))
    used = sum(map(resident_bytes, pids))
    if used > command.memory_bytes:
        # Resident sizes count a page once for each process that shares it.
        used = sum(map(proportional_bytes, pids))
    children.peak_bytes = max(children.peak_bytes, used)
    if used > command.memory_bytes:
        raise Over("memory", largest(pids))
    if children.cpu_s + sum(map(cpu_s, pids)) > command.cpu_s:
        raise Over("cpu", busiest(pids))
    look_at_space(command)


def look_at_space(command: Command) -> None:
    """Raise Over when the run's own file system, if it has one, is full."""
    if not command.space:
        return
    status = os.statvfs(command.space)
    if status.f_bavail * FULL_SHARE <= status.f_blocks:
        raise Over("disk", largest_file([command.space]))
    if status.f_favail * FULL_SHARE <= status.f_files:
        raise Over("inodes", fullest_folder([command.space]))


class Measure:
    """Measures what a run has written into folders of a file system that is not its own."""

    def __init__(self, folders: list[bytes], command: Command) -> None:
        self.folders = folders
        # The time of a change of status cannot be put back; the clock of files is coarse.
        self.since_ns = time.time_ns() - 10_000_000

    def __call__(self, command: Command, children: Children) -> None:
        written, count = 0, 0
        for _, status in files(self.folders):
            if status.st_ctime_ns >= self.since_ns:
                written += status.st_blocks * 512
                count += 1
        if written > command.disk_bytes:
            raise Over("disk", largest_file(self.folders))
        if count > command.inodes:
            raise Over("inodes", fullest_folder(self.folders))


def files(folders: list[bytes]) -> Iterator[tuple[bytes, os.stat_result]]:
    """Yield the path and status of all that is below `folders`, but for what is mounted there.

    What cannot be read is left out.
    """
    pending = [(folder, os.stat(folder).st_dev) for folder in folders if os.path.isdir(folder)]
    while pending:
        folder, device = pending.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    if status.st_dev == device:
                        if entry.is_dir(follow_symlinks=False):
                            pending.append((entry.path, device))
                        yield entry.path, status
        except OSError:
            continue


def largest_file(folders: list[bytes]) -> str:
    found = max(files(folders), key=lambda item: item[1].st_blocks, default=None)
    return f"`{shown(found[0])}`, {mebibytes(found[1].st_blocks * 512)}" if found else ""


def fullest_folder(folders: list[bytes]) -> str:
    counts = Counter(os.path.dirname(path) for path, _ in files(folders))
    if not counts:
        return ""
    ((folder, count),) = counts.most_common(1)
    return f"`{shown(folder)}`, {count} entries"


def largest(pids: list[int]) -> str:
    pid = max(pids, key=resident_bytes, default=0)
    return f"{name_of(pid)}, {mebibytes(resident_bytes(pid))}" if pid else ""


def busiest(pids: list[int]) -> str:
    pid = max(pids, key=cpu_s, default=0)
    return f"{name_of(pid)}, {cpu_s(pid):.1f} s of processor time" if pid else ""


def most_frequent(pids: list[int]) -> str:
    ((name, count),) = Counter(map(program_of, pids)).most_common(1)
    return f"`{name}`, {count} processes"


def name_of(pid: int) -> str:
    return f"`{program_of(pid)}` (process {pid})"


def mebibytes(count: int) -> str:
    return f"{count / 2**20:.0f} MiB"
