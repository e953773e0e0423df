"""The processes below this one, as `/proc` shows them: who they are and what they use."""

from __future__ import annotations

import os
import resource
import signal

PAGE_BYTES = resource.getpagesize()
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
HAS_CHILD_LISTS = os.path.exists(f"/proc/self/task/{os.getpid()}/children")
"""Whether the kernel lists the children of a thread (CONFIG_PROC_CHILDREN)."""


def descendants(stop: bool = False, with_zombies: bool = False) -> list[int]:
    """Return every living process below this one, parents first; `stop` stops each on the way.

    Zombies hold nothing but their number; `with_zombies` returns them too.
    """
    found: list[int] = []
    queue = child_pids(os.getpid())
    seen = set(queue)
    while queue:
        pid = queue.pop()
        if stop:
            send(pid, signal.SIGSTOP)
        if with_zombies or read(f"/proc/{pid}/statm")[:2] not in (b"", b"0 "):
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


def program_of(pid: int) -> str:
    return shown(read(f"/proc/{pid}/comm").strip()) or "?"


def cpu_s(pid: int) -> float:
    """Return the processor time of a process and of the children that it has collected."""
    # The second field is the name in parentheses, which may itself hold spaces and parentheses.
    fields = read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return sum(map(int, fields[11:15])) * TICK_S if len(fields) > 15 else 0.0


def resident_bytes(pid: int) -> int:
    fields = read(f"/proc/{pid}/statm").split()
    return int(fields[1]) * PAGE_BYTES if fields else 0


def proportional_bytes(pid: int) -> int:
    for line in read(f"/proc/{pid}/smaps_rollup").split(b"\n"):
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) * 1024
    return resident_bytes(pid)


def send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except OSError:
        return


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


def shown(text: bytes) -> str:
    return text.decode("utf-8", "backslashreplace")
