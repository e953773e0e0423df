"""Bubblewrap: every namespace its own, no capability, and nothing there but what a run sees.

The keeper has put together what is seen (`view`), so that bubblewrap has one tree to bring along:
it reads the list of all mounts again after each one that it makes. See
https://github.com/containers/bubblewrap and `bwrap(1)`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

_STATUS_FD, _SECCOMP_FD = 5, 4
_KERNEL_READABLE = ("sys", "sysrq-trigger", "irq", "bus", "fs")
_KERNEL_HIDDEN = (
    *("acpi", "asound", "kcore", "keys", "latency_stats", "mtrr", "sched_debug", "scsi"),
    *("timer_list", "timer_stats", "kallsyms", "kpagecount", "kpageflags"),
)
"""Files of the kernel that belong to root, whom a user namespace does not make another one.

Most are those that container engines mask, see `MaskedPaths` and `ReadonlyPaths` of
https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md.
"""


def arguments(
    program: str, *, view: str, shm: str, root: str, network: bool = False
) -> tuple[str, ...]:
    """Return the command line of bubblewrap, `program`, up to where the command itself comes.

    `view` is the tree that the run sees as `/`, `shm` what it sees as `/dev/shm`, and `root` the
    folder in which it starts.
    """
    return (
        program,
        *("--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-uts"),
        *("--unshare-cgroup-try", "--disable-userns", "--die-with-parent", "--new-session"),
        *(() if network else ("--unshare-net",)),
        *("--uid", str(os.geteuid()), "--gid", str(os.getegid()), "--cap-drop", "ALL"),
        *("--json-status-fd", str(_STATUS_FD), "--seccomp", str(_SECCOMP_FD)),
        *("--bind", view, "/", "--proc", "/proc", *_kernel(), "--dev", "/dev"),
        # Another file system that a run could fill, and no limit counts it.
        *("--bind", shm, "/dev/shm", "--remount-ro", "/dev"),
        *("--chdir", root, "--"),
    )


def _kernel() -> Iterator[str]:
    """Yield what keeps a run that is root by its number from the kernel's settings."""
    if os.geteuid() != 0:
        return
    for name in _KERNEL_READABLE:
        if os.path.exists(f"/proc/{name}"):
            yield from ("--ro-bind", f"/proc/{name}", f"/proc/{name}")
    for name in _KERNEL_HIDDEN:
        if os.path.isdir(f"/proc/{name}"):
            yield from ("--tmpfs", f"/proc/{name}", "--remount-ro", f"/proc/{name}")
        elif os.path.exists(f"/proc/{name}"):
            yield from ("--ro-bind", "/dev/null", f"/proc/{name}")
