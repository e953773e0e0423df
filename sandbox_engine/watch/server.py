"""The watcher: hears what changes in a work tree, and answers what has changed since when.

One thread waits for everything: the kernel's events, questions, and the child that analyses what
has changed. Events are hints. A question is answered once a cookie, a file made for it, has been
seen in the same queue of events: all that happened before has been heard then. What cannot be
heard of is part of every answer.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import selectors
import socket
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from inotify_simple import Event, flags

from sandbox_engine import disk, git, lock
from sandbox_engine.errors import CommandMissingError, GitError, SandboxBusyError
from sandbox_engine.ignoring import IN_TREE, Rules, read_rules, with_tracked_files
from sandbox_engine.watch.client import peer_of
from sandbox_engine.watch.folders import Folders, is_remote, mount_table, remedy_for
from sandbox_engine.watch.journal import Journal
from sandbox_engine.watch.place import Place
from sandbox_engine.watch.refresher import Refresher

_QUIET_S = 0.5
"""So long nothing must have changed before what has changed is analysed."""
_POLL_S = 0.1
_LOOK_S = 30.0
"""So often the watcher looks whether its work tree is still there."""
_CLIENT_S = 5.0
_MOST_CLIENTS = 64
_MOST_QUESTION = 1 << 16
_LOG_BYTES = 1 << 20
_TOLD = 5
_NOT_RULES = ("index", "HEAD")
"""What of the rules changes with every commit, and unignores what gets tracked alone."""


class Gone(Exception):
    """The work tree, or the watcher's own place, is not there any more."""


class _Client:
    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.heard = b""
        self.said = b""
        self.since_s = time.monotonic()


class Server:
    """Watches the work tree of a repository until it is told to stop, or the tree is gone.

    `refresher` is a command that is run with the paths that have changed on its standard input,
    each followed by a NUL, or with none for all of the tree.
    """

    def __init__(
        self,
        place: Place,
        repository: git.Repository,
        *,
        refresher: Sequence[str] = (),
        most_watches: float = math.inf,
    ) -> None:
        """Take the place; raise SandboxBusyError if the tree is watched already."""
        assert repository.top is not None
        self._place = place
        self._repository = repository
        self._top = repository.top.resolve()
        self._refresher = Refresher(refresher) if refresher else None
        self._stack = contextlib.ExitStack()
        self._journal = Journal()
        self._clients: dict[int, _Client] = {}
        self._waiting: list[tuple[int, _Client, object]] = []
        """Questions that wait for a cookie, by its number."""
        self._cookie = 0
        self._refit = False
        self._dirty: set[str] | None = None
        """What has to be analysed, None for all of the tree."""
        self._changed_s = 0.0
        self._look_s = time.monotonic() + _LOOK_S
        self._started = self._refreshed = ""
        try:
            self._open(most_watches)
        except BaseException:
            self.close()
            raise

    def _open(self, most_watches: float) -> None:
        place = self._place
        place.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        held = lock.try_lock(place.lock)
        if held is None:
            raise SandboxBusyError(
                f"`{self._top}` is watched already",
                remedy="`sandbox-engine watch --status` tells by which process",
            )
        self._stack.callback(os.close, held)
        disk.remove_tree(place.cookies)
        place.cookies.mkdir(mode=0o700)
        status = self._top.stat()
        self._identity = status.st_dev, status.st_ino
        self._mounts = mount_table()
        self._remote = is_remote(self._top)
        self._selector = self._stack.enter_context(selectors.DefaultSelector())
        self._folders = Folders(self._top, most_watches)
        self._stack.callback(self._folders.close)
        self._cookies = self._folders.watch_apart(place.cookies)
        self._rules: Rules = read_rules(self._repository, self._top)
        self._folders.enter_anew()
        self._selector.register(self._folders, selectors.EVENT_READ)
        self._listen()
        self._started = _now()
        self._say(f"watching {len(self._folders)} folders of {self._top}")
        self._tell_swept()

    def _listen(self) -> None:
        listener = self._stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        listener.setblocking(False)
        self._place.socket.unlink(missing_ok=True)
        folder = os.open(self._place.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # Nobody else may enter the folder, whatever the socket's own mode is for a moment.
            listener.bind(f"/proc/self/fd/{folder}/socket")
            os.chmod("socket", 0o600, dir_fd=folder)
        finally:
            os.close(folder)
        listener.listen(_MOST_CLIENTS)
        self._socket_inode = self._place.socket.stat().st_ino
        self._stack.callback(self._remove_socket)
        self._selector.register(listener, selectors.EVENT_READ)
        self._listener = listener

    def _remove_socket(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            if self._place.socket.stat().st_ino == self._socket_inode:
                self._place.socket.unlink()

    def close(self) -> None:
        """Give everything back; a child that analyses is ended."""
        if self._refresher is not None:
            self._refresher.close()
        for client in self._clients.values():
            client.connection.close()
        self._stack.close()

    def serve(self) -> None:
        """Answer until told to stop, or the work tree is gone."""
        try:
            while True:
                self._turn()
        except Gone as gone:
            self._say(str(gone))
        finally:
            self.close()

    def _turn(self) -> None:
        for key, ready in self._selector.select(self._wait_s()):
            if key.fileobj is self._folders:
                self._hear()
            elif key.fileobj is self._listener:
                self._accept()
            elif isinstance(key.data, _Client):
                self._talk(key.data, ready)
        for complaint in self._folders.complaints:
            self._say(complaint)
        self._folders.complaints.clear()
        self._look_after_refresher()
        now_s = time.monotonic()
        for client in [one for one in self._clients.values() if one.since_s + _CLIENT_S < now_s]:
            self._hang_up(client)
        if now_s >= self._look_s:
            self._look()

    def _wait_s(self) -> float:
        """Return how long nothing has to be done unless something happens."""
        until_s = [self._look_s, *(one.since_s + _CLIENT_S for one in self._clients.values())]
        if self._refresher is not None and self._refresher.is_running:
            until_s.append(time.monotonic() + _POLL_S)
        elif self._is_dirty():
            until_s.append(self._changed_s + _QUIET_S)
        return max(0.0, min(until_s) - time.monotonic())

    def _look(self) -> None:
        """Raise Gone if the work tree is not the one that is watched, or our place is not ours."""
        self._look_s = time.monotonic() + _LOOK_S
        try:
            status = os.stat(self._top)
        except OSError:
            raise Gone("the work tree is gone") from None
        if (
            status.st_dev,
            status.st_ino,
        ) != self._identity or not self._repository.git_dir.exists():
            raise Gone("the work tree is gone, or another one is in its place")
        try:
            if self._place.socket.stat().st_ino == self._socket_inode:
                return
        except OSError:
            pass
        raise Gone("the watcher's own folder is gone")

    # Events.

    def _hear(self) -> None:
        """Take in what has happened, and answer the questions that came before it."""
        fresh: list[str] = []
        seen = 0
        for event in self._folders.read():
            if event.mask & flags.Q_OVERFLOW:
                self._lose_track("events were lost")
                seen = self._cookie
            elif event.wd == self._cookies:
                seen = max(seen, int(event.name or 0))
            elif (folder := self._folders.path_of(event)) is not None:
                self._take(event, folder, fresh)
        if fresh:
            for folder in sorted(self._folders.enter(dict.fromkeys(fresh))):
                self._mark(f"{folder}/")
        answered = [one for one in self._waiting if one[0] <= seen]
        self._waiting = [one for one in self._waiting if one[0] > seen]
        for _, client, since in answered:
            self._answer(client, since)

    def _take(self, event: Event, folder: str, fresh: list[str]) -> None:
        if not event.name:
            if not folder and event.mask & (flags.DELETE_SELF | flags.MOVE_SELF | flags.UNMOUNT):
                self._look_s = 0.0
            return
        path = f"{folder}/{event.name}" if folder else event.name
        appears = bool(event.mask & (flags.CREATE | flags.MOVED_TO))
        if event.name in IN_TREE:
            self._refit = True
        if not event.mask & flags.ISDIR:
            self._mark(path)
            if appears and self._has_other_names(path):
                # Nobody tells which they are, nor when they are written to.
                self._doubt()
            return
        if event.mask & (flags.DELETE | flags.MOVED_FROM):
            self._folders.leave(path)
            self._mark(f"{path}/")
        elif event.name == ".git":
            self._mark(f"{path}/")
        else:
            # New, or its rights have changed.
            fresh.append(path)

    def _has_other_names(self, path: str) -> bool:
        try:
            return os.lstat(os.path.join(self._top, path)).st_nlink > 1
        except OSError:
            return False

    def _mark(self, path: str) -> None:
        self._journal.mark(path)
        self._changed_s = time.monotonic()
        if self._dirty is not None:
            self._dirty.add(path)

    def _doubt(self) -> None:
        self._journal.doubt()
        self._changed_s = time.monotonic()
        self._dirty = None

    def _lose_track(self, why: str) -> None:
        """Folders may be new, and anything may have changed, for a reason that is told."""
        self._say(f"{why}; everything is looked at again")
        self._rules = read_rules(self._repository, self._top)
        self._folders.enter_anew()
        self._doubt()

    def _follow_mounts(self) -> None:
        """Nobody is told of what a file system hides that is mounted over a folder, or shows."""
        mounts = mount_table()
        if mounts != self._mounts:
            self._mounts = mounts
            self._remote = is_remote(self._top)
            self._lose_track("file systems were mounted or unmounted")

    def _follow_rules(self) -> None:
        """Watch what is ignored no more, and leave what is ignored now."""
        if self._rules.hold() and not self._refit:
            return
        rules = self._rules
        try:
            is_small = not self._refit and rules.hold_but_for(_NOT_RULES)
            self._rules = read_rules(self._repository, self._top)
            self._refit = False
            if is_small:
                tracked = with_tracked_files(self._top, self._folders.excluded)
                entered = self._folders.enter(tracked)
            else:
                entered = self._folders.enter_anew()
        except GitError as error:
            self._say(f"git does not say what is ignored: {error.problem}")
            self._refit = True
            self._doubt()
            return
        for folder in sorted(entered):
            self._mark(f"{folder}/")

    # Questions.

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        if peer_of(connection) != os.geteuid() or len(self._clients) >= _MOST_CLIENTS:
            connection.close()
            return
        connection.setblocking(False)
        client = _Client(connection)
        self._clients[connection.fileno()] = client
        self._selector.register(connection, selectors.EVENT_READ, client)

    def _hang_up(self, client: _Client) -> None:
        if client.connection.fileno() < 0:
            return
        self._selector.unregister(client.connection)
        del self._clients[client.connection.fileno()]
        self._waiting = [one for one in self._waiting if one[1] is not client]
        client.connection.close()

    def _talk(self, client: _Client, ready: int) -> None:
        if client.connection.fileno() < 0:
            return
        try:
            if ready & selectors.EVENT_WRITE:
                self._send(client)
                return
            part = client.connection.recv(_MOST_QUESTION)
        except BlockingIOError:
            return
        except OSError:
            self._hang_up(client)
            return
        client.heard += part
        if not part or len(client.heard) > _MOST_QUESTION:
            self._hang_up(client)
        elif b"\n" in client.heard:
            question, _, client.heard = client.heard.partition(b"\n")
            try:
                self._consider(client, json.loads(question))
            except (ValueError, AttributeError):
                self._hang_up(client)

    def _consider(self, client: _Client, question: dict[str, Any]) -> None:
        if question.get("stop"):
            self._reply(client, {"stopped": True})
            raise Gone("stopped")
        if question.get("status"):
            self._reply(client, self._status())
            return
        self._look()
        self._follow_mounts()
        self._follow_rules()
        self._cookie += 1
        self._waiting.append((self._cookie, client, question.get("since")))
        cookie = self._place.cookies / str(self._cookie)
        try:
            os.close(os.open(cookie, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            cookie.unlink()
        except OSError as error:
            raise Gone(f"no cookie can be written: {error.strerror}") from error

    def _answer(self, client: _Client, since: object) -> None:
        paths = self._journal.since(since)
        if self._remote or "" in self._folders.swept:
            paths = None
        elif paths is not None:
            paths |= {f"{folder}/" for folder in self._folders.swept}
        said = None if paths is None else sorted(paths)
        self._reply(client, {"clock": self._journal.clock, "paths": said})

    def _reply(self, client: _Client, answer: dict[str, Any]) -> None:
        client.said += json.dumps(answer).encode() + b"\n"
        self._send(client)

    def _send(self, client: _Client) -> None:
        try:
            sent = client.connection.send(client.said)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._hang_up(client)
            return
        client.said = client.said[sent:]
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.said else 0)
        self._selector.modify(client.connection, wanted, client)

    def _status(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "started": self._started,
            "top": os.fspath(self._top),
            "folders": len(self._folders),
            "ignored": len(self._folders.excluded),
            "swept": self._swept(),
            "changes": len(self._journal),
            "refreshed": self._refreshed,
        }

    def _swept(self) -> list[dict[str, str]]:
        """Return what is looked at for each question, why, and what can be done about it."""
        reasons = dict(sorted(self._folders.swept.items()))
        if self._remote:
            reasons[""] = f"it is on a file system that others may write to ({self._remote})"
        return [
            {"folder": folder or ".", "reason": reason, "remedy": remedy_for(reason)}
            for folder, reason in reasons.items()
        ]

    def _tell_swept(self) -> None:
        for one in self._swept()[:_TOLD]:
            hint = f"; hint: {one['remedy']}" if one["remedy"] else ""
            self._say(f"`{one['folder']}` is not watched: {one['reason']}{hint}")

    # What has changed is analysed before anybody asks.

    def _is_dirty(self) -> bool:
        return self._refresher is not None and (self._dirty is None or bool(self._dirty))

    def _look_after_refresher(self) -> None:
        if self._refresher is None:
            return
        if self._refresher.is_running:
            if (complaint := self._refresher.finish()) is None:
                return
            self._refreshed = _now()
            if complaint:
                self._say(f"what has changed could not be analysed: {complaint}")
        if self._is_dirty() and time.monotonic() >= self._changed_s + _QUIET_S:
            try:
                self._refresher.start(self._dirty or ())
            except CommandMissingError as error:
                self._say(f"what has changed cannot be analysed: {error.problem}")
                self._refresher = None
            self._dirty = set()

    def _say(self, text: str) -> None:
        path = self._place.log
        with contextlib.suppress(OSError), path.open("a", encoding="utf-8") as file:
            if file.tell() > _LOG_BYTES:
                file.truncate(0)
            file.write(f"{_now()} {os.getpid()} {text}\n")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
