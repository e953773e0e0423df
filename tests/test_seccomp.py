from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from confinement import USERS, attempt

from sandbox_engine.keeper import linux, seccomp

VARIANTS = [(network, strict) for network in (False, True) for strict in (False, True)]
I386 = 0x40000003
LOOSE = "seccomp.install(seccomp.program(network=False, strict=False))\n"
STRICT = "seccomp.install(seccomp.program(network=False, strict=True))\n"
STRICT_NETWORK = "seccomp.install(seccomp.program(network=True, strict=True))\n"


def decide(program: bytes, number: int, *arguments: int, architecture: int) -> str:
    """Run `program` as the kernel does; return "allowed" or the name of the error."""
    words = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    call = struct.pack("=IIQ6Q", number, architecture, 0, *words)
    instructions = list(struct.iter_unpack("=HBBI", program))
    accumulator = at = 0
    while True:
        code, if_true, if_false, operand = instructions[at]
        at += 1
        match code:
            case 0x20:
                (accumulator,) = struct.unpack_from("=I", call, operand)
            case 0x15:
                at += if_true if accumulator == operand else if_false
            case 0x35:
                at += if_true if accumulator >= operand else if_false
            case 0x45:
                at += if_true if accumulator & operand else if_false
            case 0x06 if operand == 0x7FFF0000:
                return "allowed"
            case 0x06:
                assert operand >> 16 == 5
                return errno.errorcode[operand & 0xFFFF]
            case _:
                raise AssertionError(f"instruction {code:#x}")


def ask(machine: linux.Machine, call: str, *arguments: int, network: bool, strict: bool) -> str:
    program = seccomp.assemble(machine, network=network, strict=strict)
    number = machine.calls[call]
    return decide(program, number, *arguments, architecture=machine.audit_number)


@pytest.fixture(params=linux.MACHINES, ids=lambda machine: machine.name)
def machine(request: pytest.FixtureRequest) -> linux.Machine:
    return request.param


@pytest.mark.parametrize(("network", "strict"), VARIANTS)
def test_each_call_gets_the_answer_of_its_rule(
    machine: linux.Machine, network: bool, strict: bool
) -> None:
    for calls, condition, error in seccomp._IN_BOTH:
        for call in calls:
            if call in machine.calls and condition == seccomp._ALWAYS:
                answer = ask(machine, call, network=network, strict=strict)
                assert answer == errno.errorcode[error], call
    for calls, condition, error in seccomp._WITHOUT_NAMESPACES:
        for call in calls:
            if call in machine.calls and condition == seccomp._ALWAYS:
                answer = ask(machine, call, network=network, strict=strict)
                assert answer == (errno.errorcode[error] if strict else "allowed"), call


@pytest.mark.parametrize(("network", "strict"), VARIANTS)
def test_every_other_call_is_allowed(machine: linux.Machine, network: bool, strict: bool) -> None:
    program = seccomp.assemble(machine, network=network, strict=strict)
    named = set(machine.calls.values())
    for number in set(range(600)) - named:
        answer = decide(program, number, -1 & 0xFFFFFFFF, architecture=machine.audit_number)
        assert answer == "allowed"


@pytest.mark.parametrize(("network", "strict"), VARIANTS)
def test_calls_of_other_architectures_are_refused(
    machine: linux.Machine, network: bool, strict: bool
) -> None:
    program = seccomp.assemble(machine, network=network, strict=strict)
    for number in range(600):
        assert decide(program, number, architecture=I386) == "EPERM"
    getpid_of_x32 = 0x40000000 + 39
    answer = decide(program, getpid_of_x32, architecture=machine.audit_number)
    assert answer == ("EPERM" if machine.name == "x86_64" else "allowed")


def test_families_of_sockets(machine: linux.Machine) -> None:
    unix, inet, inet6, netlink, packet, vsock, alg = 1, 2, 10, 16, 17, 40, 38

    def answers(*, network: bool, strict: bool) -> list[str]:
        families = (unix, inet, inet6, netlink, packet, vsock, alg)
        return [ask(machine, "socket", one, network=network, strict=strict) for one in families]

    open_ones = ["allowed"] * 4 + ["EPERM"] * 3
    assert answers(network=False, strict=False) == open_ones
    assert answers(network=True, strict=False) == open_ones
    assert answers(network=True, strict=True) == open_ones
    assert answers(network=False, strict=True) == ["allowed"] + ["EACCES"] * 4 + ["EPERM"] * 2


@pytest.mark.parametrize(
    ("call", "arguments", "answer"),
    [
        ("kill", (2**32 - 1, 9), "EPERM"),
        ("kill", (2**64 - 1, 9), "EPERM"),
        ("kill", (0, 9), "allowed"),
        ("kill", (2**32 - 2, 9), "allowed"),
        ("prlimit64", (0, 7), "allowed"),
        ("prlimit64", (1, 7), "EPERM"),
        ("clone", (0x3D0F00, 1), "allowed"),
        ("clone", (0x10000011, 0), "EPERM"),
        ("clone", (0x40000011, 0), "EPERM"),
        ("unshare", (0x400,), "allowed"),
        ("unshare", (0x80,), "EPERM"),
        ("fchmod", (3, 0o2755), "allowed"),
        ("fchmod", (3, 0o4755), "EPERM"),
        ("fchmodat", (3, 0, 0o755), "allowed"),
        ("fchmodat", (3, 0, 0o4755), "EPERM"),
        ("fchmodat2", (3, 0, 0o6755), "EPERM"),
        ("ioctl", (0, 0x5413), "allowed"),
        ("ioctl", (0, 0xFFFFFFFF00005412), "EPERM"),
    ],
)
def test_arguments_decide(
    machine: linux.Machine, call: str, arguments: tuple[int, ...], answer: str
) -> None:
    assert ask(machine, call, *arguments, network=False, strict=True) == answer
    if call != "ioctl":
        assert ask(machine, call, *arguments, network=False, strict=False) == "allowed"


# Each of these fails without a filter too, but with another error.
ANYWHERE = {
    "io_uring_setup": (1, None),
    "bpf": (-1, None, 0),
    "perf_event_open": (None, 0, -1, -1, 0),
    "userfaultfd": (1,),
    "add_key": (-1, -1, None, 0, 0),
    "request_key": (-1, -1, None, 0),
    "keyctl": (0, -3, 0),
    "setns": (-1, 0),
    "mount": (-1, -1, -1, 0, None),
    "umount2": (None, -1),
    "open_tree": (-1, None, -1),
    "move_mount": (-1, None, -1, None, -1),
    "fsconfig": (-1, -1, None, None, 0),
    "mount_setattr": (-1, None, -1, None, 0),
    "settimeofday": (-1, None),
    "clock_settime": (99, None),
    "quotactl_fd": (-1, -1, 0, None),
}


@pytest.mark.parametrize("setup", [LOOSE, STRICT, STRICT_NETWORK])
def test_the_kernel_refuses_what_the_table_says(setup: str) -> None:
    action = """
answers = {}
for call, arguments in calls.items():
    try:
        linux.syscall(linux.machine().calls[call], *arguments)
        answers[call] = "done"
    except OSError as error:
        answers[call] = errno.errorcode[error.errno]
answer = json.dumps(answers)
"""
    confined = json.loads(attempt(action, setup, user=USERS[-1], calls=ANYWHERE))
    assert set(confined.values()) == {"EPERM"}
    free = json.loads(attempt(action, user=USERS[-1], calls=ANYWHERE))
    refused_to_everyone = {call for call, answer in free.items() if answer == "EPERM"}
    # Containers and sysctls refuse some of these too, but not all of them.
    assert len(refused_to_everyone) < len(free) / 2, refused_to_everyone


TERMINAL = """
master, terminal = pty.openpty()
os.setsid()
fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
"""
STRICT_ALONE = {
    "trace": ("linux.syscall(calls['ptrace'], 0, 0, 0, 0)", "EPERM"),
    "read memory": (
        "word = ctypes.create_string_buffer(8);"
        "vector = struct.pack('QQ', ctypes.addressof(word), 8);"
        "linux.syscall(calls['process_vm_readv'], os.getpid(), vector, 1, vector, 1, 0)",
        "EPERM",
    ),
    "take files": (
        "linux.syscall(calls['pidfd_getfd'], os.pidfd_open(os.getpid()), 0, 0)",
        "EPERM",
    ),
    "limit others": ("resource.prlimit(neighbour, resource.RLIMIT_CORE, (0, 0))", "EPERM"),
    "shared memory": (
        "segment = linux.syscall(calls['shmget'], 0, 4096, 0o600);"
        "linux.syscall(calls['shmctl'], segment, 0, None)",
        "EPERM",
    ),
    "signal all": ("os.kill(-1, 0)", "EPERM"),
    "unshare": ("linux.unshare(linux.CLONE_NEWUSER)", "EPERM"),
    "clone": (
        "linux.syscall(calls['clone'], linux.CLONE_NEWUSER | signal.SIGCHLD, 0, 0, 0, 0)"
        " or os._exit(0)",
        "EPERM",
    ),
    "clone3": ("linux.syscall(calls['clone3'], None, 0)", "ENOSYS"),
    "setuid": ("os.chmod(f'{place}/file', 0o4755)", "EPERM"),
    "setuid by descriptor": ("os.fchmod(os.open(f'{place}/file', 0), 0o4755)", "EPERM"),
    "attributes": ("os.setxattr(f'{place}/file', 'user.name', b'value')", "ENOTSUP"),
    "flags": (
        "file = os.open(f'{place}/file', 0); flags = fcntl.ioctl(file, 0x80086601, bytes(8));"
        "fcntl.ioctl(file, 0x40086602, flags)",
        "ENOTSUP",
    ),
    "TCP": ("socket.create_connection(('127.0.0.1', tcp)).close()", "EACCES"),
    "TCP server": ("socket.create_server(('127.0.0.1', 0))", "EACCES"),
    "unbound server": ("socket.socket().listen()", "EACCES"),
    "UDP": ("socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', udp))", "EACCES"),
    "netlink": ("socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)", "EACCES"),
}
NETWORK = ("TCP", "TCP server", "unbound server", "UDP", "netlink")


@pytest.mark.parametrize("name", STRICT_ALONE)
def test_the_strict_filter_refuses_more(place: Path, user: int, neighbour: int, name: str) -> None:
    (place / "file").write_text("text")
    os.chown(place / "file", user, -1)
    action, refusal = STRICT_ALONE[name]
    action = f"calls = linux.machine().calls\n{action}"
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(type=socket.SOCK_DGRAM) as udp,
    ):
        udp.bind(("127.0.0.1", 0))

        def outcome(setup: str) -> str:
            ports = {"tcp": tcp.getsockname()[1], "udp": udp.getsockname()[1]}
            names = {"place": place, "neighbour": neighbour, **ports}
            return attempt(action, setup, user=user, **names)

        free = outcome("")
        assert outcome(STRICT) == refusal
        assert outcome(LOOSE) == free
        if name in NETWORK:
            assert outcome(STRICT_NETWORK) == free
    if free == refusal:
        pytest.skip("this machine refuses it to everyone")


@pytest.mark.parametrize("setup", [LOOSE, STRICT])
@pytest.mark.parametrize(
    "action",
    [
        "fcntl.ioctl(terminal, termios.TIOCSTI, b'x')",
        "fcntl.ioctl(terminal, 0x541C, b'x')",
        "socket.socket(40, socket.SOCK_STREAM)",
        "socket.socketpair(30, socket.SOCK_SEQPACKET)",
    ],
    ids=["TIOCSTI", "TIOCLINUX", "AF_VSOCK", "AF_TIPC"],
)
def test_refused_by_its_arguments(user: int, setup: str, action: str) -> None:
    assert attempt(action, TERMINAL + setup, user=user) == "EPERM"
    assert attempt(action, TERMINAL, user=user) != "EPERM"


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="only x86_64 has three call tables")
def test_calls_of_32_bits_are_refused(user: int) -> None:
    action = """
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(bytes.fromhex("b814000000" "cd80" "c3"))  # eax = getpid; int 0x80; return
address = ctypes.addressof(ctypes.c_char.from_buffer(code))
child = os.fork()
if child == 0:
    result = ctypes.CFUNCTYPE(ctypes.c_int)(address)()
    os._exit({os.getpid(): 0, -errno.EPERM: 1}.get(result, 2))
answer = os.waitstatus_to_exitcode(os.wait()[1])
"""
    if attempt(action, user=user) != "0":
        pytest.skip("the kernel runs no 32-bit programs")
    assert attempt(action, LOOSE, user=user) == "1"


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="only x86_64 has three call tables")
def test_calls_of_x32_are_refused(user: int) -> None:
    action = "linux.syscall(0x40000000 + 39)"
    assert attempt(action, LOOSE, user=user) == "EPERM"
    assert attempt(action, user=user) != "EPERM"


def test_a_broken_program_is_an_error() -> None:
    assert attempt("seccomp.install(bytes(8))") == "EINVAL"


CONCURRENCY = """
import asyncio, multiprocessing, os, socket, subprocess, sys, threading
from concurrent.futures import ProcessPoolExecutor

async def talk(folder):
    async def echo(reader, writer):
        writer.write(await reader.readline())
        writer.close()

    async with await asyncio.start_unix_server(echo, folder + "/socket"):
        reader, writer = await asyncio.open_unix_connection(folder + "/socket")
        writer.write(b"hello\\n")
        assert await reader.readline() == b"hello\\n"
        writer.close()
    child = await asyncio.create_subprocess_exec("echo", "hi", stdout=subprocess.PIPE)
    assert (await child.communicate())[0] == b"hi\\n"

def main(folder):
    found = []
    threads = [threading.Thread(target=found.append, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(8))
    assert subprocess.run("echo $((6 * 7))", shell=True, capture_output=True).stdout == b"42\\n"
    for method in ("fork", "spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        with ProcessPoolExecutor(2, mp_context=context) as pool:
            assert list(pool.map(abs, [-1, -2, -3])) == [1, 2, 3]
    with multiprocessing.Manager() as manager:
        assert list(manager.list([1, 2])) == [1, 2]
    asyncio.run(talk(folder))
    print("done")

if __name__ == "__main__":
    main(sys.argv[1])
"""
GIT = """
set -e
export GIT_CONFIG_NOSYSTEM=1 HOME="$PWD"
git init -q repository
cd repository
git config user.name Ada
git config user.email ada@example.org
echo text > file
git add file
git commit -qm first
git worktree add -q ../other
git gc -q
git clone -q . ../copy
git -C ../copy log --format=%s
"""
TESTS = """
import pytest

@pytest.mark.parametrize("number", range(8))
def test_number(number, tmp_path):
    (tmp_path / "file").write_text("text")
    (tmp_path / "file").chmod(0o600)
    assert number >= 0
"""
TIERS = {
    "loose": LOOSE,
    "strict": """
linux.drop_capabilities()
if landlock.abi():
    devices = [b"/dev/null", b"/dev/shm"]
    landlock.restrict([b"/"], [os.fsencode(place), *devices], network=False)
"""
    + STRICT,
}


def run_in(tier: str, folder: Path, *argv: str) -> str:
    action = "os.chdir(place); os.execvpe(argv[0], argv, {**os.environ, 'TMPDIR': place})"
    return attempt(action, TIERS[tier], place=folder, argv=argv)


@pytest.mark.parametrize("tier", TIERS)
def test_threads_processes_and_asyncio_run(tmp_path: Path, tier: str) -> None:
    (tmp_path / "concurrency.py").write_text(CONCURRENCY)
    assert run_in(tier, tmp_path, sys.executable, "concurrency.py", ".") == "done"


@pytest.mark.parametrize("tier", TIERS)
def test_git_runs(tmp_path: Path, tier: str) -> None:
    assert run_in(tier, tmp_path, "sh", "-c", GIT) == "first"


@pytest.mark.parametrize("tier", TIERS)
def test_pytest_runs_with_workers(tmp_path: Path, tier: str) -> None:
    (tmp_path / "test_number.py").write_text(TESTS)
    options = ("-q", "-n", "2", "-p", "no:cacheprovider", "--rootdir=.")
    assert "8 passed" in run_in(tier, tmp_path, sys.executable, "-m", "pytest", *options)


def test_bubblewrap_takes_the_program(tmp_path: Path) -> None:
    action = "import socket; socket.socket(socket.AF_VSOCK)"
    wrap = ["bwrap", "--unshare-all", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
    if not shutil.which("bwrap") or subprocess.run([*wrap, "true"], check=False).returncode:
        pytest.skip("bubblewrap does not run here")
    path = tmp_path / "program"
    path.write_bytes(seccomp.program(network=False, strict=False))
    with path.open("rb") as program:
        for options, error in ([], ""), (["--seccomp", str(program.fileno())], "PermissionError"):
            done = subprocess.run(
                [*wrap, *options, sys.executable, "-c", action],
                pass_fds=[program.fileno()],
                capture_output=True,
                text=True,
                check=False,
            )
            assert ("PermissionError" in done.stderr) == bool(error)
