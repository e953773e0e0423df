from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from confinement import attempt

from sandbox_engine.keeper import landlock

ABI = landlock.abi()
needs_landlock = pytest.mark.skipif(ABI == 0, reason="the kernel has no landlock")

CONFINED = """
linux.drop_capabilities()
landlock.restrict([os.fsencode(f"{place}/read")], [os.fsencode(f"{place}/write")], network=False)
"""
STRICT = CONFINED + "seccomp.install(seccomp.program(network=False, strict=True))\n"


@pytest.fixture
def folders(place: Path, user: int) -> Path:
    """Three folders of the user: `read`, `write` and `shut`, the last for neither."""
    for name in ("read", "write", "shut"):
        (place / name).mkdir()
        (place / name / "file").write_text("text")
        (place / name / "program").write_text("#!/bin/sh\necho done\n")
        (place / name / "program").chmod(0o755)
    (place / "write/folder").mkdir()
    for path in place.rglob("*"):
        os.chown(path, user, -1)
    return place


@pytest.fixture
def listener(folders: Path) -> Iterator[dict[str, object]]:
    """Sockets that listen outside."""
    with ExitStack() as stack:
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))
        named = stack.enter_context(socket.socket(socket.AF_UNIX))
        named.bind(str(folders / "shut/socket"))
        (folders / "shut/socket").chmod(0o777)
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        abstract.bind(f"\0{folders}")
        for server in (named, abstract):
            server.listen()
        yield {"tcp": tcp.getsockname()[1], "udp": udp.getsockname()[1]}


def look(place: Path) -> dict[str, tuple[int, int, int, bytes]]:
    found = {}
    for path in place.rglob("*"):
        status = path.lstat()
        text = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (status.st_mode, status.st_gid, status.st_mtime_ns, text)
    return found


SHUT = {
    "read": ("open(f'{place}/shut/file').read()", "EACCES"),
    "list": ("os.listdir(f'{place}/shut')", "EACCES"),
    "run": ("os.execv(f'{place}/shut/program', ['program'])", "EACCES"),
    "write": ("open(f'{place}/shut/file', 'r+')", "EACCES"),
    "write what is readable": ("open(f'{place}/read/file', 'r+')", "EACCES"),
    "create": ("open(f'{place}/shut/new', 'w')", "EACCES"),
    "make a folder": ("os.mkdir(f'{place}/read/new')", "EACCES"),
    "make a link": ("os.symlink('x', f'{place}/shut/new')", "EACCES"),
    "make a pipe": ("os.mkfifo(f'{place}/shut/new')", "EACCES"),
    "make a socket": ("socket.socket(socket.AF_UNIX).bind(f'{place}/shut/new')", "EACCES"),
    "link in": ("os.link(f'{place}/shut/file', f'{place}/write/new')", "EXDEV"),
    "rename in": ("os.rename(f'{place}/read/file', f'{place}/write/new')", "EACCES"),
    "rename out": ("os.rename(f'{place}/write/file', f'{place}/shut/new')", "EACCES"),
    "remove": ("os.unlink(f'{place}/read/program')", "EACCES"),
    "write through a link": (
        "os.symlink('../shut/program', f'{place}/write/link'); open(f'{place}/write/link', 'r+')",
        "EACCES",
    ),
    "swap": (
        "linux.syscall(316 if linux.machine().name == 'x86_64' else 276, -100,"
        " os.fsencode(f'{place}/shut/program'), -100, os.fsencode(f'{place}/write/program'), 2)",
        "EACCES",
    ),
}


@needs_landlock
@pytest.mark.parametrize("name", SHUT)
def test_files_elsewhere_are_shut(folders: Path, user: int, name: str) -> None:
    action, refusal = SHUT[name]
    before = look(folders)
    assert attempt(action, CONFINED, user=user, place=folders) == refusal
    (folders / "write/link").unlink(missing_ok=True)
    after = look(folders)
    after[f"{folders}/write"] = before[f"{folders}/write"]
    assert after == before
    assert attempt(action, user=user, place=folders) == "done"


ALLOWED = {
    "read": "open(f'{place}/read/file').read()",
    "list": "os.listdir(f'{place}/read')",
    "write": "open(f'{place}/write/file', 'w').write('new')",
    "truncate": "os.truncate(f'{place}/write/file', 0)",
    "make a folder": "os.mkdir(f'{place}/write/new')",
    "rename": "os.rename(f'{place}/write/file', f'{place}/write/folder/file')",
    "remove": "os.unlink(f'{place}/write/file')",
    "make a socket": "socket.socket(socket.AF_UNIX).bind(f'{place}/write/new')",
    "talk to a child": """
server = socket.socket(socket.AF_UNIX)
server.bind(f'{place}/write/new')
server.listen()
socket.socket(socket.AF_UNIX).connect(f'{place}/write/new')
""",
    "signal a child": """
child = os.fork()
if child == 0:
    signal.pause()
os.kill(child, signal.SIGTERM)
assert os.waitstatus_to_exitcode(os.wait()[1]) == -signal.SIGTERM
""",
}


@needs_landlock
@pytest.mark.parametrize("name", ALLOWED)
def test_what_is_allowed_stays_possible(folders: Path, user: int, name: str) -> None:
    assert attempt(ALLOWED[name], CONFINED, user=user, place=folders) == "done"


@needs_landlock
def test_programs_run_from_what_is_readable(folders: Path, user: int) -> None:
    setup = """
system = [b"/usr", b"/bin", b"/lib", b"/lib64", b"/nix", b"/etc"]
landlock.restrict([os.fsencode(f"{place}/read"), *system], [], network=False)
"""
    action = "os.execv(f'{place}/read/program', ['program'])"
    assert attempt(action, setup, user=user, place=folders) == "done"


@needs_landlock
def test_single_files_are_opened_alone(folders: Path, user: int) -> None:
    setup = """
landlock.restrict(
    [os.fsencode(f"{place}/read/file")],
    [os.fsencode(f"{place}/write/file"), b"/dev/null"],
    network=False,
)
"""
    open_ones = """
open(f"{place}/read/file").read()
open(f"{place}/write/file", "w").write("new")
open("/dev/null", "w").write("text")
"""
    assert attempt(open_ones, setup, user=user, place=folders) == "done"
    for shut in ("open(f'{place}/read/program')", "open(f'{place}/write/program', 'r+')"):
        assert attempt(shut, setup, user=user, place=folders) == "EACCES"
        assert attempt(shut, user=user, place=folders) == "done"


@needs_landlock
def test_paths_that_are_not_there_are_passed_over(folders: Path, user: int) -> None:
    setup = """
missing = [os.fsencode(f"{place}/{name}") for name in ("gone", "gone/deep", "read/file/deep")]
landlock.restrict([*missing, os.fsencode(f"{place}/read")], missing, network=False)
"""
    assert attempt("open(f'{place}/read/file')", setup, user=user, place=folders) == "done"
    assert attempt("open(f'{place}/shut/file')", setup, user=user, place=folders) == "EACCES"


@needs_landlock
def test_the_first_version_moves_nothing_between_folders(folders: Path, user: int) -> None:
    action = ALLOWED["rename"]
    setup = f"landlock.abi = lambda: 1\n{CONFINED}"
    assert attempt(action, setup, user=user, place=folders) == "EXDEV"
    if ABI > 1:
        assert attempt(action, CONFINED, user=user, place=folders) == "done"


SPYING = {
    "environment": "open(f'/proc/{neighbour}/environ').read()",
    "memory": "open(f'/proc/{neighbour}/maps').read()",
    "files": "open(f'/proc/{neighbour}/fd/0').close()",
    "folder": "os.readlink(f'/proc/{neighbour}/cwd')",
    "trace": "linux.syscall(linux.machine().calls['ptrace'], PTRACE_ATTACH, neighbour, 0, 0)",
}


@needs_landlock
@pytest.mark.parametrize("name", SPYING)
def test_other_processes_are_shut(folders: Path, user: int, neighbour: int, name: str) -> None:
    setup = "linux.drop_capabilities(); landlock.restrict([b'/proc'], [], network=False)"
    names = {"neighbour": neighbour, "PTRACE_ATTACH": 16}
    assert attempt(SPYING[name], setup, user=user, **names) in ("EACCES", "EPERM")
    # Where Yama is on, only parents may trace.
    if name != "trace" or not Path("/proc/sys/kernel/yama").exists():
        assert attempt(SPYING[name], user=user, **names) == "done"


@needs_landlock
def test_the_network_is_open_where_it_is_allowed(
    folders: Path, user: int, listener: dict[str, object]
) -> None:
    setup = CONFINED.replace("network=False", "network=True")
    action = """
socket.create_connection(("127.0.0.1", tcp)).close()
socket.create_server(("127.0.0.1", 0)).close()
"""
    assert attempt(action, setup, user=user, place=folders, **listener) == "done"
    if ABI >= 4:
        assert attempt(action, CONFINED, user=user, place=folders, **listener) == "EACCES"


@pytest.mark.skipif(ABI < 4, reason="landlock denies binding from ABI 4 on")
def test_binding_is_denied(user: int, folders: Path) -> None:
    action = "socket.socket().bind(('127.0.0.1', 0))"
    assert attempt(action, CONFINED, user=user, place=folders) == "EACCES"
    assert attempt(action, user=user) == "done"


OPEN_BEFORE = {
    "emptying files": (3, "os.truncate(f'{place}/shut/file', 0)"),
    "ioctl()": (5, "fcntl.ioctl(os.open('/dev/urandom', os.O_RDONLY), 0x80045200, bytes(4))"),
    "signals": (6, "os.kill(neighbour, 0)"),
    "abstract": (6, "socket.socket(socket.AF_UNIX).connect('\\0' + place)"),
    "have a path": (9, "socket.socket(socket.AF_UNIX).connect(f'{place}/shut/socket')"),
}


@needs_landlock
@pytest.mark.parametrize("name", OPEN_BEFORE)
def test_each_version_stops_what_it_says(
    folders: Path, user: int, neighbour: int, listener: dict[str, object], name: str
) -> None:
    first, action = OPEN_BEFORE[name]

    def outcome(version: int) -> str:
        setup = (
            f"landlock.abi = lambda: {version}\n"
            "landlock.restrict([b'/dev/urandom'], [], network=False)\n"
            "seccomp.install(seccomp.program(network=False, strict=True))\n"
        )
        return attempt(action, setup, user=user, place=folders, neighbour=neighbour)

    def is_told(version: int) -> bool:
        return any(name in what for what in landlock.unstopped(version))

    assert is_told(first - 1) and not is_told(first)
    assert outcome(min(first - 1, ABI)) == "done"
    if first <= ABI:
        assert outcome(first) in ("EACCES", "EPERM")


NEVER_STOPPED = {
    "is there": ("", "os.stat(f'{place}/shut/file')"),
    "inotify": (
        "libc = ctypes.CDLL(None)",
        "assert libc.inotify_add_watch(libc.inotify_init(), os.fsencode(f'{place}/shut'), 2) > 0",
    ),
    "mode": ("", "os.chmod(f'{place}/shut/file', 0o2666)"),
    "group": ("", "os.chown(f'{place}/shut/file', -1, os.getgid())"),
    "times": ("", "os.utime(f'{place}/shut/file', (1, 1))"),
    "POSIX queues": (
        "libc = ctypes.CDLL('librt.so.1'); queue = os.fsencode('/' + place.replace('/', '-'));"
        "assert libc.mq_open(queue, os.O_CREAT | os.O_RDWR, 0o600, None) >= 0",
        "assert libc.mq_unlink(queue) == 0",
    ),
    "hands over": (
        "server = socket.create_server(('127.0.0.1', 0));"
        "client = socket.create_connection(server.getsockname())",
        "client.send(b'x'); server.accept()",
    ),
}


@needs_landlock
@pytest.mark.parametrize("name", NEVER_STOPPED)
def test_what_is_never_stopped_is_told(folders: Path, user: int, name: str) -> None:
    making, action = NEVER_STOPPED[name]
    assert any(name in what for what in landlock.unstopped(ABI))
    assert any(name in what for what in landlock.unstopped(10_000))
    assert attempt(action, f"{making}\n{STRICT}", user=user, place=folders) == "done"


@needs_landlock
def test_priority_is_protected_by_capabilities_alone(
    folders: Path, user: int, neighbour: int
) -> None:
    action = "os.setpriority(os.PRIO_PROCESS, neighbour, 5)"
    outcome = attempt(action, STRICT, user=user, place=folders, neighbour=neighbour)
    assert outcome == ("EPERM" if user == 0 else "done")
    assert any("priority" in what for what in landlock.unstopped(ABI))


def test_without_landlock_everything_is_told() -> None:
    assert "reading, changing and removing files" in landlock.unstopped(0)
    assert "reading, changing and removing files" not in landlock.unstopped(1)


def test_a_later_version_leaves_no_more_open() -> None:
    lists = [landlock.unstopped(version) for version in range(12)]
    for earlier, later in itertools.pairwise(lists):
        assert set(later) <= set(earlier)


def test_a_kernel_without_landlock_is_refused() -> None:
    setup = "landlock.abi = lambda: 0"
    assert attempt("landlock.restrict([], [], network=False)", setup) == "ENOSYS"


@pytest.mark.parametrize("answer", ["ENOSYS", "EOPNOTSUPP", "EPERM"])
def test_landlock_that_is_off_counts_as_none(answer: str) -> None:
    setup = f"""
create = linux.machine().calls["landlock_create_ruleset"]
seccomp.install(
    seccomp._refuse_foreign(linux.machine())
    + seccomp._refuse(create, b"", errno.{answer})
    + seccomp._instruction(seccomp._RETURN, seccomp._RETURN_ALLOW)
)
"""
    assert attempt("answer = landlock.abi()", setup) == "0"
    assert attempt("answer = landlock.abi()") == str(ABI)
