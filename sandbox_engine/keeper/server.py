"""The helper process of one engine: it forks a keeper for each sandbox, and is small, so forks are.

It is started once, has one thread, and lives as long as the engine: what bubblewrap's
`--die-with-parent` follows is the thread that started it, and an engine's threads come and go.
"""

from __future__ import annotations

import os
import signal
import socket
import sys

from . import keeper, wire


def main() -> None:
    """Fork a keeper for each request, until the engine is gone.

    The argument is the descriptor of a socket. A request brings the keeper's own socket, and the
    locks that it is to hold.
    """
    engine = socket.socket(fileno=int(sys.argv[1]))
    engine.set_inheritable(False)
    # The kernel collects the keepers.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while (request := wire.receive(engine)) is not None:
        _, fds = request
        if os.fork() == 0:
            engine.close()
            session = socket.socket(fileno=fds[0])
            try:
                keeper.main(session)
            finally:
                # Before the session: its end tells the engine that the locks are given back.
                for fd in fds[1:]:
                    os.close(fd)
                os._exit(0)
        for fd in fds:
            os.close(fd)
