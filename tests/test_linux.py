from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from confinement import NOBODY, attempt

from sandbox_engine.keeper import linux

HEADERS = {
    "x86_64": [
        Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
        Path("/usr/include/asm/unistd_64.h"),
    ],
    "aarch64": [Path("/usr/include/asm-generic/unistd.h")],
}
CAPABILITIES = """
def held():
    with open("/proc/self/status") as status:
        return {line.split()[0]: int(line.split()[1], 16) for line in status if line[:3] == "Cap"}
"""
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root has what is taken away here")


@pytest.mark.parametrize("machine", linux.MACHINES, ids=lambda machine: machine.name)
def test_numbers_are_those_of_the_headers_of_the_kernel(machine: linux.Machine) -> None:
    found = [path for path in HEADERS[machine.name] if path.exists()]
    if not found:
        pytest.skip("the headers of the kernel are not installed")
    text = found[0].read_text()
    pairs = re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)", text, re.MULTILINE)
    numbers = {name: int(number) for name, number in pairs}
    known = {name: number for name, number in machine.calls.items() if name in numbers}
    assert known == {name: numbers[name] for name in known}
    # The headers may be older than the latest calls.
    assert len(known) > len(machine.calls) - 8


def test_an_error_names_its_call() -> None:
    with pytest.raises(OSError, match="setns: Bad file descriptor"):
        linux.syscall(linux.machine().calls["setns"], -1, 0)
    with pytest.raises(OSError, match="prctl 999: Invalid argument"):
        linux.prctl(999)
    with pytest.raises(OSError, match="system call 9999: Function not implemented"):
        linux.syscall(9999)
    with pytest.raises(OSError, match="umount2: "):
        linux.umount(b"/nowhere", 0)
    with pytest.raises(OSError, match="unshare: Invalid argument"):
        linux.unshare(1)


def test_an_unknown_machine_is_refused() -> None:
    setup = "os.uname = lambda: types.SimpleNamespace(machine='riscv64')"
    action = """
try:
    linux.machine()
except OSError as error:
    answer = error
"""
    answer = attempt(action, setup)
    assert answer.endswith("the system calls of a 64-bit process on riscv64 are not known")


def test_capabilities_are_gone(user: int) -> None:
    read = CAPABILITIES + "answer = max(held().values()) if os.getuid() == 0 else held()['CapEff:']"
    assert attempt(read, "linux.drop_capabilities()", user=user) == "0"
    if user == 0:
        assert attempt(read, user=user) != "0"


@needs_root
def test_root_can_do_no_more_than_its_files_allow(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.write_text("text")
    os.chown(theirs, NOBODY, NOBODY)
    theirs.chmod(0o600)
    for action in ("open(path)", "os.chown(path, 0, 0)"):
        assert attempt(action, "linux.drop_capabilities()", path=theirs) in ("EACCES", "EPERM")
        assert attempt(action, path=theirs) == "done"


EXEC = "os.execvp('grep', ['grep', 'CapEff', '/proc/self/status'])"


@needs_root
def test_exec_gives_root_nothing_back() -> None:
    assert not attempt(EXEC).endswith("\t0000000000000000")
    assert attempt(EXEC, "linux.drop_capabilities()") == "CapEff:\t0000000000000000"


@needs_root
def test_exec_gives_nothing_back_where_only_privileges_can_be_shut() -> None:
    """A root without CAP_SETPCAP can change neither its bounding set nor its securebits."""
    without = """
CAP_SETPCAP = 8
everything_else = struct.pack("=6I", 0xFFFFFEFF, 0xFFFFFEFF, 0, 0, 0, 0)
header = struct.pack("=Ii", 0x20080522, 0)
import ctypes
libc = ctypes.CDLL(None)
held = ctypes.create_string_buffer(24)
libc.capget(header, held)
words = list(struct.unpack("=6I", held))
for index in range(3):
    words[index] &= ~(1 << CAP_SETPCAP)
libc.capset(header, struct.pack("=6I", *words))
linux.drop_capabilities()
"""
    assert attempt(EXEC, without) != "CapEff:\t0000000000000000"
    shut = without + "linux.no_new_privileges()"
    assert attempt(EXEC, shut) == "CapEff:\t0000000000000000"


@needs_root
def test_setuid_programs_gain_nothing(place: Path, user: int) -> None:
    program = place / "id"
    shutil.copy(shutil.which("id") or "", program)
    os.chown(program, 0, 0)
    program.chmod(0o4755)
    action = "os.execv(program, ['id', '-u'])"
    if attempt(action, user=NOBODY, program=program) != "0":
        pytest.skip("the folder for temporary files does not honour setuid")
    shut = attempt(action, "linux.no_new_privileges()", user=NOBODY, program=program)
    assert shut == str(NOBODY)


def test_a_mount_is_made_and_undone_in_a_namespace(place: Path, user: int) -> None:
    setup = """
lines = {"uid_map": f"0 {os.getuid()} 1", "setgroups": "deny", "gid_map": f"0 {os.getgid()} 1"}
try:
    linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWNS)
    for name, line in lines.items():
        with open(f"/proc/self/{name}", "w") as file:
            file.write(line)
    linux.mount(None, b"/", None, linux.MS_REC | linux.MS_PRIVATE, None)
    refused = False
except PermissionError:
    refused = True
"""
    if attempt("answer = refused", setup, user=user) == "True":
        pytest.skip("user namespaces are refused here")
    action = """
target = os.fsencode(place)
linux.mount(b"tmpfs", target, b"tmpfs", linux.MS_NOSUID | linux.MS_NODEV, b"size=64k,mode=755")
os.mkdir(f"{place}/inside")
during = os.listdir(place)
linux.umount(target, linux.MNT_DETACH)
answer = during, os.listdir(place)
"""
    (place / "below").touch()
    assert attempt(action, setup, user=user, place=place) == "(['inside'], ['below'])"
    assert os.listdir(place) == ["below"]
