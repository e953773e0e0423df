"""Bubblewrap: every namespace its own, no capability, and nothing there but what a run sees.

The keeper has put together what is seen (`view`), so that bubblewrap has one tree to bring along:
it reads the list of all mounts again after each one that it makes. See
https://github.com/containers/bubblewrap and `bwrap(1)`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

_STATUS_FD, _SECCOMP_FD = 5, 4
_KERNEL = ("acpi", "bus", "fs", "irq", "mtrr", "scsi", "sys", "sysrq-trigger")
"""What in `/proc` root may write to, which without a capability is not refused to its number.

See `ReadonlyPaths` in https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md.
"""


def arguments(program: str, *, view: str, root: str, network: bool = False) -> tuple[str, ...]:
    """Return the command line of bubblewrap, `program`, up to where the command itself comes.

    `view` is the tree that the run sees as `/`, but for `/proc` and the devices in `/dev`;
    `root` is the folder in which it starts.
    """
    return (
        program,
        *("--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-uts"),
        *("--unshare-cgroup-try", "--disable-userns", "--die-with-parent", "--new-session"),
        *(() if network else ("--unshare-net",)),
        *("--uid", str(os.geteuid()), "--gid", str(os.getegid()), "--cap-drop", "ALL"),
        *("--json-status-fd", str(_STATUS_FD), "--seccomp", str(_SECCOMP_FD)),
        *("--bind", view, "/", "--proc", "/proc", *_kernel(), "--dev", "/dev"),
        # In `/dev` is another file system that a run could fill, and no limit counts it.
        *("--bind", f"{view}/dev/shm", "/dev/shm", "--remount-ro", "/dev", "--chdir", root, "--"),
    )


def _kernel() -> Iterator[str]:
    """Yield what keeps a run that is root by its number from the kernel's settings."""
    if os.geteuid() != 0:
        return
    for name in _KERNEL:
        if os.path.exists(f"/proc/{name}"):
            yield from ("--ro-bind", f"/proc/{name}", f"/proc/{name}")
