"""Asks the watcher of a work tree, if one runs: one line of JSON each way.

A question is `{"since": clock}`, `{"status": true}` or `{"stop": true}`. Whoever answers has to be
a process of the same user.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox_engine.watch.place import Place, place_of

TIME_OUT_S = 1.0
_PEER = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class Changes:
    """Paths that may have changed since a clock value, None for any; and the value from now on.

    They are relative to the top of the work tree; one that ends with `/` is all that is below.
    """

    clock: str
    paths: frozenset[str] | None


def ask(top: Path, since: str | None, *, timeout_s: float = TIME_OUT_S) -> Changes | None:
    """Return what may have changed below `top`; None if nobody watches it, or is too slow."""
    answer = converse(place_of(top), {"since": since}, timeout_s=timeout_s)
    try:
        clock, paths = answer["clock"], answer["paths"]
        return Changes(clock, None if paths is None else frozenset(paths))
    except (KeyError, TypeError):
        return None


def converse(place: Place, question: dict[str, Any], *, timeout_s: float = TIME_OUT_S) -> Any:
    """Return the answer of the watcher at `place`, None if there is none in time."""
    deadline = time.monotonic() + timeout_s
    try:
        with connected(place, timeout_s) as connection:
            connection.sendall(json.dumps(question).encode() + b"\n")
            return _heard(connection, deadline)
    except (OSError, ValueError):
        return None


def connected(place: Place, timeout_s: float) -> socket.socket:
    """Return a connection to the watcher at `place`; raise OSError if there is none."""
    folder = os.open(place.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_s)
        # The address of a socket has room for about a hundred bytes.
        connection.connect(f"/proc/self/fd/{folder}/socket")
        if peer_of(connection) != os.geteuid():
            raise PermissionError("the socket belongs to another user")
    except BaseException:
        connection.close()
        raise
    finally:
        os.close(folder)
    return connection


def peer_of(connection: socket.socket) -> int:
    """Return the id of the user at the other end."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    user: int = _PEER.unpack(raw)[1]
    return user


def _heard(connection: socket.socket, deadline: float) -> Any:
    heard = bytearray()
    while not heard.endswith(b"\n"):
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("no answer in time")
        connection.settimeout(left_s)
        part = connection.recv(1 << 16)
        if not part:
            raise ConnectionResetError("the watcher has hung up")
        heard += part
    return json.loads(heard)
