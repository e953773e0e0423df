"""What a run sees: the sandbox, the interpreter's environment, and the folders that it needs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

SYSTEM = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"),
    *("/nix/store", "/gnu/store", "/sys/devices/system"),
)
"""Folders of programs and libraries, and what tells how many processors there are."""

SETTINGS = tuple(
    f"/etc/{name}"
    for name in (
        *("alternatives", "ca-certificates", "crypto-policies", "fonts", "ld.so.cache"),
        *("ld.so.conf", "ld.so.conf.d", "pki", "ssl", "terminfo", "xdg", "java", "perl"),
        *("debian_version", "host.conf", "hosts", "localtime", "timezone", "login.defs"),
        *("mime.types", "networks", "nsswitch.conf", "os-release", "protocols", "services"),
        *("resolv.conf", "gai.conf", "passwd", "group", "shells", "magic", "protocols", "rpc"),
    )
)
"""Settings that programs read and that hold no secret."""


@dataclass(frozen=True, slots=True)
class View:
    """What a run sees beside its own temporary folders and what every run needs.

    `root` is where it sees the sandbox. `environments` are folders that it may write to without
    changing them, `readable` those that it may read, `writable` those that it really changes.
    """

    root: str
    environments: tuple[str, ...] = ()
    readable: tuple[str, ...] = ()
    writable: tuple[str, ...] = ()
    network: bool = False


def needed_roots(
    environments: Iterable[str], readable: Iterable[str], *, top: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return which of the folders have to be shown, since no other one that is shown has them.

    The first of the two is out of `environments`, the second out of `readable`. What lies in
    `top`, the user's work tree, is shown for an environment alone.
    """
    kept: list[str] = []
    for folder in sorted(set(_existing(environments)), key=len):
        if not is_below(folder, (*SYSTEM, *kept)):
            kept.append(folder)
    shown: list[str] = []
    for folder in sorted(set(_existing(readable)), key=len):
        if not is_below(folder, (*SYSTEM, *kept, *shown, top)) and folder != "/":
            shown.append(folder)
    return tuple(kept), tuple(shown)


def _existing(folders: Iterable[str]) -> list[str]:
    """Return the folders that are there, as named and where they really are."""
    return [
        path
        for folder in folders
        if folder and os.path.isabs(folder) and os.path.isdir(folder)
        for path in (os.path.normpath(folder), os.path.realpath(folder))
    ]


def is_below(path: str, folders: Sequence[str]) -> bool:
    """Tell whether `path` is one of `folders` or lies in one."""
    return any(f"{path}/".startswith(f"{folder.rstrip('/')}/") for folder in folders)
