"""Runs what nobody vouches for, and comes back when everything that it started is gone.

A keeper (`keeper/`) stands between the engine and each sandbox: a process that sets up the
sandbox's file system where it has one, starts the commands in it, watches what they use, and ends
them all when the engine says so, or is gone. Keepers are forked by one small helper process, which
is started when the first is needed.

Everything that a run wrote is a claim by that run. It is bounded here and believed nowhere.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from sandbox_engine import process
from sandbox_engine.cancellation import Cancellation
from sandbox_engine.errors import SandboxError
from sandbox_engine.git_index import Part
from sandbox_engine.keeper import wire
from sandbox_engine.process import CANNOT_RUN, RUN_VARIABLE, Completed, Limits, Stop

_HELPER = (
    *(sys.executable, "-I", "-S", "-c"),
    "import sys; sys.path.append(sys.argv.pop(1)); import keeper.server; keeper.server.main()",
    os.path.dirname(os.path.abspath(__file__)),
)
_KEPT_BYTES = 256 * 1024
"""How much of each end of a stream is kept."""
_READ_BYTES = 256 * 1024
_GRACE_S = 15.0
"""How long after the wall time a keeper may still be killing; then it is hung itself."""
_REPORT_FD = 3
VIEW = "view"
"""The folder in that of a sandbox's layer that its runs see as `/`."""


@dataclass(frozen=True, slots=True)
class Confinement:
    """What stands between a run and everything else; by default nothing but the environment.

    `wrapper` is bubblewrap with its arguments. `landlock` are the paths that may be read, those
    that may be written to, and whether the network may be used. `seccomp` is a program of system
    calls that are refused. `space` is the file system that holds all that the run writes;
    without one, `measured` are the folders that it may fill.
    """

    wrapper: tuple[str, ...] = ()
    landlock: tuple[tuple[str, ...], tuple[str, ...], bool] | None = None
    seccomp: bytes = b""
    space: str = ""
    measured: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Mount:
    """Folders laid over each other, the uppermost first, with a writable layer over them all.

    `name` is that of the mount point; `place` is where it lies below the first one of a sandbox.
    """

    name: str
    lowers: tuple[str, ...]
    place: str = ""


@dataclass(frozen=True, slots=True)
class Shown:
    """Something that runs see at `place`: the file or folder `source`, or a link with that text."""

    place: str
    source: str
    is_writable: bool = False
    is_link: bool = False


@dataclass(frozen=True, slots=True)
class Layer:
    """What a candidate has over its base: `files` are path, mode and content, `gone` paths.

    The git index comes as bytes, and as ranges of the base's index in the file `old_index`.
    """

    files: tuple[tuple[bytes, int, bytes], ...]
    gone: tuple[bytes, ...]
    mtime_ns: int
    index: tuple[Part, ...] = ()
    old_index: str = ""


class KeeperLost(Exception):
    """The keeper is gone, or does not answer."""


class Keeper:
    """The engine's side of one keeper; see `open_keeper`."""

    def __init__(self, link: socket.socket, cancellation: Cancellation | None) -> None:
        self._link = link
        self._cancellation = cancellation
        self._pid = 0

    def prepare(
        self,
        layer: Layer,
        mounts: Sequence[Mount],
        shown: Sequence[Shown],
        *,
        folders: tuple[str, str],
        limits: Limits,
        home: Mapping[str, bytes],
    ) -> None:
        """Begin to give the sandbox a file system of its own: `mounts`, the first under `layer`.

        `shown` is all that runs see. `folders` are two empty ones to mount on: for the layer and
        the view that runs get (VIEW in it), and for all that they write.
        `prepared` waits until it is there.
        """
        encode = os.fsencode
        self._tell(
            "prepare",
            layer=encode(folders[0]),
            space=encode(folders[1]),
            disk_bytes=limits.disk_bytes,
            inodes=limits.inodes,
            files=list(layer.files),
            gone=list(layer.gone),
            mtime_ns=layer.mtime_ns,
            index=list(layer.index),
            old_index=encode(layer.old_index),
            home=[(encode(path), content) for path, content in home.items()],
            mounts=[
                (encode(mount.name), list(map(encode, mount.lowers)), encode(mount.place))
                for mount in mounts
            ],
            shown=[
                (encode(one.place), encode(one.source), one.is_writable, one.is_link)
                for one in shown
            ],
        )

    def prepared(self) -> None:
        """Wait for the file system; raise SandboxError when the system refuses it."""
        _raise_failure(self._hear(), "the sandbox's file system cannot be made")

    def reset(self) -> None:
        """Throw away all that runs have written into the sandbox's file system."""
        _raise_failure(self._ask("reset"), "the sandbox's file system cannot be made anew")

    def read(self, path: str) -> bytes | None:
        """Return the bytes of the regular file at `path` in the sandbox, or None."""
        content = self._ask("read", path=os.fsencode(path)).get("content")
        return content if isinstance(content, bytes) else None

    def changes(self) -> list[str]:
        """Return the paths of the tree at which the sandbox is no longer as prepared."""
        answer = self._ask("changes")
        _raise_failure(answer, "the sandbox cannot be looked at")
        return sorted(map(os.fsdecode, answer["paths"]))

    def run(
        self,
        argv: Sequence[str],
        *,
        cwd: str | os.PathLike[str],
        env: Mapping[str, str],
        limits: Limits,
        confinement: Confinement,
        marker: str,
        input: bytes = b"",
        report_env: str | None = None,
        on_report: Callable[[bytes], None] | None = None,
    ) -> Completed:
        """Run `argv` and return when every process that it started is gone; see `run_contained`.

        Raise CancelledError, with all of them gone, when the keeper's cancellation comes first.
        """
        run_id = f"{marker}:{uuid.uuid4().hex}"
        variables = {**env, RUN_VARIABLE: run_id}
        if report_env:
            variables[report_env] = str(_REPORT_FD)
        message = _message(argv, cwd, variables, limits, confinement)
        started = time.monotonic()
        with contextlib.ExitStack() as stack:
            stdin = stack.enter_context(_input(input))
            pipes = [_pipe(stack) for _ in range(3 if report_env else 2)]
            fds = [stdin.fileno(), *(writer.fileno() for _, writer in pipes)]
            deadline = started + limits.wall_s + _GRACE_S
            streams = _Streams([reader for reader, _ in pipes], limits, on_report)
            try:
                self._greet()
                wire.send(self._link, message, fds)
                for _, writer in pipes:
                    writer.close()
                fate = self._exchange(streams, deadline)
            except (KeeperLost, OSError):
                swept = process.kill_marked(run_id)
                fate = {"stop": Stop.SUPERVISOR_LOST, "survivors": swept}
            except BaseException:
                self._interrupt(run_id)
                raise
            if fate.get("left"):
                process.kill_marked(run_id)
            streams.drain()
        if "failed" in fate:
            raise _start_error(fate, argv[0], cwd, streams.stderr.content())
        stop = Stop.OUTPUT if streams.is_flood else fate.get("stop")
        return Completed(
            tuple(argv),
            fate.get("code"),
            streams.stdout.content(),
            streams.stderr.content(),
            time.monotonic() - started,
            Stop(stop) if stop else None,
            fate.get("survivors", 0),
            fate.get("peak_bytes", 0),
            fate.get("consumer", ""),
        )

    def _exchange(self, streams: _Streams, deadline: float) -> dict[str, Any]:
        """Take in what comes until the keeper says what became of the run.

        It is told to end the run as soon as that has written more than it may.
        """
        is_told = False
        with selectors.DefaultSelector() as selector:
            selector.register(self._link, selectors.EVENT_READ)
            if self._cancellation is not None:
                selector.register(self._cancellation, selectors.EVENT_READ, self._cancellation)
            for stream in streams:
                selector.register(stream.pipe, selectors.EVENT_READ, stream)
            while (pause := deadline - time.monotonic()) > 0:
                for key, _ in selector.select(pause):
                    if not key.data:
                        return self._answer()
                    if isinstance(key.data, Cancellation):
                        key.data.check()
                    elif not key.data.read():
                        selector.unregister(key.fileobj)
                if streams.is_flood and not is_told:
                    is_told = True
                    wire.send(self._link, {"do": "stop"})
        self._give_up()
        raise KeeperLost

    def _give_up(self) -> None:
        """End a keeper that does not answer: somebody has stopped it, and it holds our locks."""
        self._link.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)

    def _interrupt(self, run_id: str) -> None:
        with contextlib.suppress(KeeperLost, OSError):
            wire.send(self._link, {"do": "stop"})
            self._link.settimeout(_GRACE_S)
            self._answer()
            self._link.settimeout(None)
            return
        self._give_up()
        process.kill_marked(run_id)

    def _ask(self, verb: str, **fields: Any) -> dict[str, Any]:
        self._tell(verb, **fields)
        return self._hear()

    def _tell(self, verb: str, **fields: Any) -> None:
        try:
            wire.send(self._link, {"do": verb, **fields})
        except OSError as error:
            raise _gone() from error

    def _hear(self) -> dict[str, Any]:
        try:
            return self._answer()
        except (KeeperLost, OSError) as error:
            raise _gone() from error

    def _greet(self) -> None:
        """Learn which process the keeper is: what it says first."""
        if not self._pid:
            message = wire.receive(self._link)
            if message is None:
                raise KeeperLost
            self._pid = message[0]

    def _answer(self) -> dict[str, Any]:
        self._greet()
        message = wire.receive(self._link)
        if message is None:
            raise KeeperLost
        answer: dict[str, Any] = message[0]
        return answer

    def end(self) -> None:
        """End the session, and wait until the keeper has given back what it held."""
        with contextlib.suppress(OSError):
            self._link.shutdown(socket.SHUT_WR)
            self._link.settimeout(_GRACE_S)
            while self._link.recv(_READ_BYTES):
                pass
        self._link.close()


@contextlib.contextmanager
def open_keeper(
    keep_fds: Sequence[int] = (), cancellation: Cancellation | None = None
) -> Iterator[Keeper]:
    """Yield a new keeper; after the block nothing is left of what it ran and set up.

    `keep_fds` (locks) are held by it and never by a command: they stay taken until the last
    process of its runs is gone, even when this process is killed. `cancellation` ends its runs.
    """
    ours, theirs = socket.socketpair()
    _links.add(ours)
    try:
        with theirs:
            _request_keeper([theirs.fileno(), *keep_fds])
        keeper = Keeper(ours, cancellation)
        try:
            yield keeper
        finally:
            keeper.end()
    finally:
        ours.close()


def run_contained(
    argv: Sequence[str],
    *,
    cwd: str | os.PathLike[str],
    env: Mapping[str, str],
    limits: Limits | None = None,
    marker: str = "run",
    keep_fds: Sequence[int] = (),
    input: bytes = b"",
    report_env: str | None = None,
    on_report: Callable[[bytes], None] | None = None,
    confinement: Confinement | None = None,
) -> Completed:
    """Run an untrusted command and return when every process that it started is gone.

    `env` is all that the command gets, but for RUN_VARIABLE, which holds `marker` (the id of a
    slot) and the id of the run. With `report_env` that variable holds the number of a descriptor
    to write a report to, whose parts `on_report` gets. Raises CommandMissingError, and OSError
    when `cwd` cannot be entered.
    """
    with open_keeper(keep_fds) as keeper:
        return keeper.run(
            argv,
            cwd=cwd,
            env=env,
            limits=limits or Limits(),
            confinement=confinement or Confinement(),
            marker=marker,
            input=input,
            report_env=report_env,
            on_report=on_report,
        )


class _Helper:
    """The process that forks keepers: at most one for this process, started when needed."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.link: socket.socket | None = None
        self.child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        ours, theirs = socket.socketpair()
        _links.add(ours)
        with theirs:
            fd = theirs.fileno()
            quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
            self.child = process.spawn(
                [*_HELPER, str(fd)], cwd="/", env=_helper_env(), pass_fds=[fd], **quiet
            )
        self.link = ours

    def stop(self) -> None:
        if self.link is not None:
            self.link.close()
            self.link = None
        if self.child is not None:
            self.child.wait()
            self.child = None


_helper = _Helper()
_links: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def _request_keeper(fds: Sequence[int]) -> None:
    with _helper.lock:
        for is_last in (False, True):
            if _helper.link is None:
                _helper.start()
            assert _helper.link is not None
            try:
                wire.send(_helper.link, None, fds)
                return
            except ConnectionError:
                # Somebody has killed it.
                _helper.stop()
                if is_last:
                    raise


def warm_up() -> None:
    """Start the helper process, if it is not there, so that the first keeper need not wait."""
    with _helper.lock:
        if _helper.link is None:
            _helper.start()


def _forget() -> None:
    """In a process that was forked: the helper and the keepers are the parent's alone."""
    global _helper
    for link in list(_links):
        link.close()
    _helper = _Helper()


atexit.register(lambda: _helper.stop())
os.register_at_fork(after_in_child=_forget)


def _helper_env() -> dict[str, str]:
    """Return the little that an interpreter may need to start; no command gets any of it."""
    return {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}


class _Stream:
    """Reads a pipe to its end, keeps both ends of what came, and counts the rest."""

    def __init__(self, pipe: IO[bytes], head_bytes: int, tail_bytes: int = 0) -> None:
        self.pipe = pipe
        self.total = 0
        self._head = bytearray()
        self._tail = bytearray()
        self._head_bytes = head_bytes
        self._tail_bytes = tail_bytes

    def read(self) -> bool:
        """Take in what is there; return False when there will be no more."""
        part = os.read(self.pipe.fileno(), _READ_BYTES)
        self.total += len(part)
        room = self._head_bytes - len(self._head)
        self._head += part[:room]
        self._tail += part[room:]
        if len(self._tail) > self._tail_bytes + _READ_BYTES:
            del self._tail[: len(self._tail) - self._tail_bytes]
        return bool(part)

    def content(self) -> bytes:
        tail = self._tail[max(0, len(self._tail) - self._tail_bytes) :]
        left_out = self.total - len(self._head) - len(tail)
        if left_out and self._tail_bytes:
            return b"%b\n[... %d bytes left out ...]\n%b" % (
                bytes(self._head),
                left_out,
                bytes(tail),
            )
        return bytes(self._head + tail)


class _Report:
    """Hands on what comes from a report pipe, up to a limit, and counts all of it."""

    def __init__(
        self, pipe: IO[bytes], limit_bytes: int, take: Callable[[bytes], None] | None
    ) -> None:
        self.pipe = pipe
        self.total = 0
        self._limit_bytes = limit_bytes
        self._take = take

    def read(self) -> bool:
        """Take in what is there; return False when there will be no more."""
        part = os.read(self.pipe.fileno(), _READ_BYTES)
        room = max(0, self._limit_bytes - self.total)
        self.total += len(part)
        if self._take is not None and room:
            self._take(part[:room])
        return bool(part)


class _Streams:
    """The pipes that come from a run: what it prints and, where it has one, its report."""

    def __init__(
        self,
        pipes: Sequence[IO[bytes]],
        limits: Limits,
        on_report: Callable[[bytes], None] | None,
    ) -> None:
        self.stdout = _Stream(pipes[0], _KEPT_BYTES, _KEPT_BYTES)
        self.stderr = _Stream(pipes[1], _KEPT_BYTES, _KEPT_BYTES)
        self._reports = [_Report(pipe, limits.report_bytes, on_report) for pipe in pipes[2:]]
        self._limits = limits

    def __iter__(self) -> Iterator[_Stream | _Report]:
        return iter((self.stdout, self.stderr, *self._reports))

    @property
    def is_flood(self) -> bool:
        return (
            self.stdout.total + self.stderr.total > self._limits.output_bytes
            or sum(stream.total for stream in self._reports) > self._limits.report_bytes
        )

    def drain(self) -> None:
        """Take in what is still in the pipes, without waiting for who may hold them open."""
        for stream in self:
            os.set_blocking(stream.pipe.fileno(), False)
            with contextlib.suppress(BlockingIOError):
                while stream.read() and not self.is_flood:
                    pass


def _message(
    argv: Sequence[str],
    cwd: str | os.PathLike[str],
    env: Mapping[str, str],
    limits: Limits,
    confinement: Confinement,
) -> dict[str, Any]:
    """Return the `run` message, whose fields are those of the keeper's `Command`."""
    if any("=" in name for name in env):
        raise ValueError("the name of an environment variable holds `=`")
    words = (*argv, os.fspath(cwd), *env, *env.values())
    if any("\0" in word for word in words):
        raise ValueError("an argument, the directory or an environment variable holds a NUL")
    landlock = confinement.landlock
    return {
        "do": "run",
        "argv": _encoded(argv),
        "cwd": os.fsencode(os.path.abspath(cwd)),
        "env": {os.fsencode(name): os.fsencode(value) for name, value in env.items()},
        "wrapper": _encoded(confinement.wrapper),
        "landlock": landlock and (_encoded(landlock[0]), _encoded(landlock[1]), landlock[2]),
        "seccomp": confinement.seccomp,
        "space": os.fsencode(confinement.space),
        "measured": _encoded(confinement.measured),
        "wall_s": limits.wall_s,
        "cpu_s": limits.cpu_s,
        "memory_bytes": limits.memory_bytes,
        "processes": limits.processes,
        "open_files": limits.open_files,
        "disk_bytes": limits.disk_bytes,
        "inodes": limits.inodes,
    }


def _encoded(words: Sequence[str]) -> list[bytes]:
    return [os.fsencode(word) for word in words]


def _pipe(stack: contextlib.ExitStack) -> tuple[IO[bytes], IO[bytes]]:
    reader, writer = os.pipe()
    return (
        stack.enter_context(open(reader, "rb", buffering=0)),
        stack.enter_context(open(writer, "wb", buffering=0)),
    )


@contextlib.contextmanager
def _input(content: bytes) -> Iterator[IO[bytes]]:
    if not content:
        with open(os.devnull, "rb") as file:
            yield file
        return
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.seek(0)
        yield file


def _gone() -> SandboxError:
    return SandboxError("the process that keeps the sandbox is gone", remedy="run it again")


def _raise_failure(answer: Mapping[str, Any], what: str) -> None:
    if "failed" in answer:
        where = answer.get("where", "")
        said = os.strerror(answer["errno"]) if answer["errno"] else "the keeper failed"
        raise SandboxError(
            f"{what}: {said}" + (f" (`{where}`)" if where else ""),
            remedy="`sandbox-engine doctor` tells what this system allows",
        )


def _start_error(
    fate: Mapping[str, Any], program: str, cwd: str | os.PathLike[str], said: bytes
) -> Exception:
    """Return what to raise for a command that could not be started."""
    error = OSError(fate["errno"], os.strerror(fate["errno"]))
    if fate["failed"] == "keeper":
        return SandboxError(f"the keeper failed: {fate['where']}", remedy="please report this")
    match fate["failed"]:
        case "exec" if fate["errno"] in CANNOT_RUN:
            return process.missing(program, error)
        case "chdir":
            error.filename = os.fspath(cwd)
        case "bubblewrap":
            # No code under test has run, so these are bubblewrap's own words.
            text = said.decode("utf-8", "replace").strip().removeprefix("bwrap: ")
            if text.startswith("execvp"):
                return process.missing(program, OSError(0, text.rpartition(": ")[2]))
            return SandboxError(
                f"bubblewrap could not make the sandbox: {text or 'it said nothing'}",
                remedy="`sandbox-engine doctor` tells what this system allows",
            )
    return error
