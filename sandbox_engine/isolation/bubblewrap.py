"""Bubblewrap's arguments: every namespace its own, and nothing there but what a run needs.

See https://github.com/containers/bubblewrap and `bwrap(1)`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

from sandbox_engine.isolation.view import SETTINGS, SYSTEM, View

HOME = "/home/sandbox"
OWN = "/run/sandbox-engine"
"""Where a run finds what is the engine's."""
INSIDE, COMPILED, OBJECTS = f"{OWN}/inside", f"{OWN}/compiled", f"{OWN}/objects"

_SPACE = {"tmp": "/tmp", "var-tmp": "/var/tmp", "shm": "/dev/shm", "home": HOME}
"""Which folder of the sandbox's own file system is seen where."""
_STATUS_FD, _SECCOMP_FD = 5, 4
_KERNEL_READABLE = ("sys", "sysrq-trigger", "irq", "bus", "fs")
_KERNEL_HIDDEN = (
    *("acpi", "asound", "kcore", "keys", "latency_stats", "mtrr", "sched_debug", "scsi"),
    *("timer_list", "timer_stats", "interrupts", "kallsyms", "kpagecount", "kpageflags"),
)
"""Files of the kernel that belong to root, whom a user namespace does not make another one.

Most are those that container engines mask, see `MaskedPaths` and `ReadonlyPaths` of
https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md.
"""


def arguments(
    program: str,
    view: View,
    *,
    space: str,
    mounted: Mapping[str, str],
    readable: Mapping[str, str],
) -> tuple[str, ...]:
    """Return the command line of bubblewrap, `program`, up to where the command itself comes.

    `space` is the sandbox's own file system. `mounted` maps places to the folders in `space` that
    are seen there; `readable` maps places to folders that are the engine's.
    """
    words = [
        *("--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-uts"),
        *("--unshare-cgroup-try", "--disable-userns", "--die-with-parent", "--new-session"),
        *(() if view.network else ("--unshare-net",)),
        *("--uid", str(os.geteuid()), "--gid", str(os.getegid()), "--cap-drop", "ALL"),
        *("--json-status-fd", str(_STATUS_FD), "--seccomp", str(_SECCOMP_FD)),
        *_system(),
        *("--proc", "/proc", *_kernel(), "--dev", "/dev"),
    ]
    for name, place in _SPACE.items():
        words += ["--bind", f"{space}/{name}", place]
    shown = [
        *(("--ro-bind", path, path) for path in view.readable),
        *(("--ro-bind", source, place) for place, source in readable.items()),
        *(("--bind", f"{space}/{name}", place) for place, name in mounted.items()),
        *(("--bind", path, path) for path in view.writable),
    ]
    # What lies in another one has to come after it.
    for option, source, place in sorted(shown, key=lambda entry: entry[2].count("/")):
        words += [option, source, place]
    return (program, *words, "--remount-ro", "/", "--chdir", view.root, "--")


def _system() -> Iterator[str]:
    for path in (*SYSTEM, *SETTINGS):
        if os.path.islink(path) and _is_shown(os.path.realpath(path)):
            yield from ("--symlink", os.readlink(path), path)
        elif os.path.exists(path):
            yield from ("--ro-bind", path, path)


def _kernel() -> Iterator[str]:
    """Yield what keeps a run that is root by its number from the kernel's settings."""
    for name in _KERNEL_READABLE:
        if os.path.exists(f"/proc/{name}"):
            yield from ("--ro-bind", f"/proc/{name}", f"/proc/{name}")
    for name in _KERNEL_HIDDEN:
        if os.path.isdir(f"/proc/{name}"):
            yield from ("--tmpfs", f"/proc/{name}", "--remount-ro", f"/proc/{name}")
        elif os.path.exists(f"/proc/{name}"):
            yield from ("--ro-bind", "/dev/null", f"/proc/{name}")


def _is_shown(path: str) -> bool:
    return path.startswith(("/usr/", "/etc/alternatives/")) or path in SETTINGS


def object_places(folders: Sequence[str]) -> dict[str, str]:
    """Return where in the sandbox each of `folders`, which hold git objects, is seen."""
    return {f"{OBJECTS}/{number}": folder for number, folder in enumerate(folders)}
