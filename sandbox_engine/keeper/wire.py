"""Messages between the engine and its keepers: plain values and descriptors, over a stream socket.

A message is eight hexadecimal digits, the length of what follows, and a value in the form of
`marshal`, which both ends have without an import: they are the same interpreter, and code under
test holds neither end.
"""

from __future__ import annotations

import array
import marshal
import os
import socket
from collections.abc import Sequence
from typing import Any

_HEAD_BYTES = 8
_MOST_FDS = 16
_PART_BYTES = 1024 * 1024


def send(link: socket.socket, value: Any, fds: Sequence[int] = ()) -> None:
    """Send one message; the descriptors stay open here too."""
    body = marshal.dumps(value)
    text = memoryview(b"%08x" % len(body) + body)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sent = link.sendmsg([text], rights)
    if sent < len(text):
        link.sendall(text[sent:])


def receive(link: socket.socket) -> tuple[Any, list[int]] | None:
    """Return the next message and its descriptors, or None when the other end is gone."""
    fds = array.array("i")
    try:
        head, rights, _, _ = link.recvmsg(
            _HEAD_BYTES, socket.CMSG_SPACE(_MOST_FDS * fds.itemsize), socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, packed in rights:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(packed[: len(packed) - len(packed) % fds.itemsize])
        head += _exactly(link, _HEAD_BYTES - len(head)) if head else b""
        body = _exactly(link, int(head, 16)) if head else b""
    except (EOFError, ConnectionError):
        head = b""
    if head:
        return marshal.loads(body), fds.tolist()
    for fd in fds:
        os.close(fd)
    return None


def _exactly(link: socket.socket, size: int) -> bytes:
    text = bytearray()
    while len(text) < size:
        part = link.recv(min(size - len(text), _PART_BYTES))
        if not part:
            raise EOFError
        text += part
    return bytes(text)
