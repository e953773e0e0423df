"""What a run sees: the sandbox, the interpreter's environment, and the folders that it needs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sandbox_engine.containment import Shown

SYSTEM = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"),
    *("/nix/store", "/gnu/store", "/sys/devices/system"),
)
"""Folders of programs and libraries, and what tells how many processors there are."""

SETTINGS = tuple(
    f"/etc/{name}"
    for name in (
        *("alternatives", "ca-certificates", "crypto-policies", "fonts", "ld.so.cache"),
        *("ld.so.conf", "ld.so.conf.d", "terminfo", "xdg", "java", "perl"),
        *("ssl/certs", "ssl/cert.pem", "ssl/openssl.cnf", "pki/ca-trust"),
        *("pki/tls/certs", "pki/tls/cert.pem", "pki/tls/openssl.cnf"),
        *("debian_version", "host.conf", "hosts", "localtime", "timezone", "login.defs"),
        *("mime.types", "networks", "nsswitch.conf", "os-release", "protocols", "services"),
        *("resolv.conf", "gai.conf", "passwd", "group", "shells", "magic", "rpc"),
    )
)
"""Settings that programs read and that hold no secret."""


HOME = "/home/sandbox"
OWN = "/run/sandbox-engine"
"""Where a run finds what is the engine's."""
INSIDE, COMPILED, OBJECTS = f"{OWN}/inside", f"{OWN}/compiled", f"{OWN}/objects"

_SPACE = {"/tmp": "tmp", "/var/tmp": "var-tmp", "/dev/shm": "shm", HOME: "home"}
"""Which folder of the sandbox's own file system is seen where."""


@dataclass(frozen=True, slots=True)
class View:
    """What a run sees beside its own temporary folders and what every run needs.

    `root` is where it sees the sandbox. `environments` are folders that it may write to without
    changing them, `readable` those that it may read, `writable` those that it really changes.
    `aliases` are other names of places in the user's work tree, and those places.
    """

    root: str
    environments: tuple[str, ...] = ()
    readable: tuple[str, ...] = ()
    writable: tuple[str, ...] = ()
    network: bool = False
    aliases: tuple[tuple[str, str], ...] = ()


def shown(
    view: View, *, space: str, mounted: Mapping[str, str], readable: Mapping[str, str]
) -> tuple[Shown, ...]:
    """Return all that a run sees, the outermost first.

    `space` is the sandbox's own file system; `mounted` maps places to the folders in it that are
    seen there, and `readable` places to folders that are the engine's.
    """
    own = {**_SPACE, **mounted}
    found = [
        *_system(),
        *(Shown(path, path) for path in view.readable),
        *(Shown(place, source) for place, source in readable.items()),
        *(Shown(place, f"{space}/{name}", is_writable=True) for place, name in own.items()),
        *(Shown(path, path, is_writable=True) for path in view.writable),
        *(Shown(name, place, is_link=True) for name, place in view.aliases),
    ]
    # What lies in another one has to come after it.
    return tuple(sorted(found, key=lambda one: one.place.count("/")))


def _system() -> Iterator[Shown]:
    for path in (*SYSTEM, *SETTINGS):
        if os.path.islink(path) and _is_shown(os.path.realpath(path)):
            yield Shown(path, os.readlink(path), is_link=True)
        elif os.path.exists(path):
            yield Shown(path, os.path.realpath(path))


def _is_shown(path: str) -> bool:
    return path.startswith(("/usr/", "/etc/alternatives/")) or path in SETTINGS


def object_places(folders: Sequence[str]) -> dict[str, str]:
    """Return where in a sandbox each of `folders`, which hold git objects, is seen."""
    return {f"{OBJECTS}/{number}": folder for number, folder in enumerate(folders)}


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
    real_top = os.path.realpath(top)
    for folder in sorted(set(_existing(readable)), key=len):
        if folder == "/" or is_below(folder, (*SYSTEM, *kept, *shown, top)):
            continue
        if not is_below(os.path.realpath(folder), (real_top,)):
            shown.append(folder)
    return tuple(kept), tuple(shown)


def find_aliases(folders: Iterable[str], *, top: str) -> tuple[tuple[str, str], ...]:
    """Return those of `folders` that are other names of places in `top`, with these places.

    Shown as they are, they would lead to the user's own files.
    """
    real_top = os.path.realpath(top)
    found = {}
    for folder in folders:
        if folder and os.path.isabs(folder) and not is_below(os.path.normpath(folder), (top,)):
            place = os.path.realpath(folder)
            if is_below(place, (real_top,)):
                found[os.path.normpath(folder)] = os.path.normpath(
                    os.path.join(top, os.path.relpath(place, real_top))
                )
    return tuple(sorted(found.items()))


def _existing(folders: Iterable[str]) -> list[str]:
    """Return the folders that are there, as named and where they really are."""
    return [
        path
        for folder in set(folders)
        if folder and os.path.isabs(folder) and os.path.isdir(folder)
        for path in (os.path.normpath(folder), os.path.realpath(folder))
    ]


def is_below(path: str, folders: Sequence[str]) -> bool:
    """Tell whether `path` is one of `folders` or lies in one."""
    return any(f"{path}/".startswith(f"{folder.rstrip('/')}/") for folder in folders)
