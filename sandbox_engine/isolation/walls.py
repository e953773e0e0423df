"""What a view becomes in each tier that has walls."""

from __future__ import annotations

from collections.abc import Sequence

from sandbox_engine.containment import VIEW, Confinement
from sandbox_engine.isolation import bubblewrap
from sandbox_engine.isolation.tiers import bubblewrap_path
from sandbox_engine.isolation.view import SETTINGS, SYSTEM, View
from sandbox_engine.keeper import seccomp

_DEVICES = tuple(f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty"))


def full_confinement(view: View, *, layer: str, space: str) -> Confinement:
    """Return bubblewrap around a run that sees `view`.

    `layer` and `space` are the folders that the sandbox's file systems are mounted on.
    """
    program = bubblewrap_path()
    assert program is not None
    words = bubblewrap.arguments(
        program,
        view=f"{layer}/{VIEW}",
        root=view.root,
        network=view.network,
    )
    return Confinement(
        wrapper=words, seccomp=seccomp.program(network=view.network, strict=False), space=space
    )


def landlock_confinement(
    view: View, *, readable: Sequence[str], writable: Sequence[str]
) -> Confinement:
    """Return landlock and seccomp around a run that sees `view`, and may write to `writable`.

    Semaphores of `multiprocessing` lie in `/dev/shm`, which is everybody's: without a mount
    namespace there is no other one.
    """
    reads = (*SYSTEM, *SETTINGS, "/proc", "/dev", *view.environments, *view.readable, *readable)
    writes = (*_DEVICES, "/dev/shm", "/dev/pts", "/dev/ptmx", *view.writable, *writable)
    return Confinement(
        landlock=(reads, writes, view.network),
        seccomp=seccomp.program(network=view.network, strict=True),
        measured=tuple(writable),
    )
