"""Refuses system calls by a classic BPF program that the kernel runs before each of them.

The program sees numbers only, never what a pointer points to. It asks one question after the
other, which costs nothing for most calls: the kernel works out once which numbers are always
allowed. A refusal is an error like any other (EPERM unless told otherwise), so a program that can
do without goes on.
"""

from __future__ import annotations

import ctypes
import errno
import struct

from . import linux

_SET_MODE_FILTER = 1

_LOAD_WORD = 0x20
_JUMP_IF_EQUAL = 0x15
_JUMP_IF_AT_LEAST = 0x35
_JUMP_IF_ANY_BIT = 0x45
_RETURN = 0x06

_RETURN_ERRNO = 0x50000
_RETURN_ALLOW = 0x7FFF0000

# Where `struct seccomp_data` holds what.
_NUMBER = 0
_ARCHITECTURE = 4
_ARGUMENTS = 16

_X32_BIT = 0x40000000

_AF_UNIX = 1
_AF_INET = 2
_AF_INET6 = 10
_AF_NETLINK = 16
_AF_PACKET = 17
_TIOCSTI = 0x5412
_TIOCLINUX = 0x541C
_FS_IOC_SETFLAGS = 0x40086602
_FS_IOC_FSSETXATTR = 0x401C5820
_S_ISUID = 0o4000
_EVERYONE = 0xFFFFFFFF
"""The process number -1."""
_NAMESPACES = (
    linux.CLONE_NEWNS
    | linux.CLONE_NEWCGROUP
    | linux.CLONE_NEWUTS
    | linux.CLONE_NEWIPC
    | linux.CLONE_NEWUSER
    | linux.CLONE_NEWPID
    | linux.CLONE_NEWNET
)


def _instruction(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, operand)


def _load_argument(index: int) -> bytes:
    # The lower half, which is the first one here, is all that the kernel looks at in these.
    return _instruction(_LOAD_WORD, _ARGUMENTS + 8 * index)


# A condition goes on to the next instruction where it is true, else jumps over it.
_ALWAYS = b""


def _equals(index: int, value: int) -> bytes:
    return _load_argument(index) + _instruction(_JUMP_IF_EQUAL, value, 0, 1)


def _is_none_of(index: int, *values: int) -> bytes:
    left = range(len(values), 0, -1)
    tests = (_instruction(_JUMP_IF_EQUAL, *pair) for pair in zip(values, left, strict=True))
    return _load_argument(index) + b"".join(tests)


def _has_any(index: int, bits: int) -> bytes:
    return _load_argument(index) + _instruction(_JUMP_IF_ANY_BIT, bits, 0, 1)


_Rule = tuple[tuple[str, ...], bytes, int]
"""The calls, the condition under which they are refused, and the error they give then."""

_IN_BOTH: tuple[_Rule, ...] = (
    # Its queue makes calls that no filter sees.
    (("io_uring_setup", "io_uring_enter", "io_uring_register"), _ALWAYS, errno.EPERM),
    # Large parts of the kernel that tests rarely need and in which holes are found every year.
    (("bpf", "perf_event_open", "userfaultfd"), _ALWAYS, errno.EPERM),
    # The keys of the user and the session are not in any namespace.
    (("add_key", "request_key", "keyctl"), _ALWAYS, errno.EPERM),
    # Opens a file by its number, whatever folders are shut.
    (("open_by_handle_at",), _ALWAYS, errno.EPERM),
    # Undo what was mounted over or left out, in a user namespace of the program's own too.
    (("mount", "umount2", "pivot_root", "open_tree", "open_tree_attr"), _ALWAYS, errno.EPERM),
    (("move_mount", "mount_setattr", "fsopen", "fspick"), _ALWAYS, errno.EPERM),
    (("fsconfig", "fsmount"), _ALWAYS, errno.EPERM),
    # Joins the namespaces of another process.
    (("setns",), _ALWAYS, errno.EPERM),
    # Put other code into the kernel or in its place.
    (("init_module", "finit_module", "delete_module"), _ALWAYS, errno.EPERM),
    (("kexec_load", "kexec_file_load"), _ALWAYS, errno.EPERM),
    # Change the whole machine: its power, swap, accounts, quotas, clock and ports.
    (("reboot", "swapon", "swapoff", "acct"), _ALWAYS, errno.EPERM),
    (("quotactl", "quotactl_fd"), _ALWAYS, errno.EPERM),
    (("settimeofday", "clock_settime"), _ALWAYS, errno.EPERM),
    (("iopl", "ioperm"), _ALWAYS, errno.EPERM),
    # Reads and clears what the kernel says of all processes.
    (("syslog",), _ALWAYS, errno.EPERM),
    # Types into the terminal, which the shell then runs.
    (("ioctl",), _equals(1, _TIOCSTI), errno.EPERM),
    (("ioctl",), _equals(1, _TIOCLINUX), errno.EPERM),
)

# AF_VSOCK reaches the host from any network namespace. Of the others, tests rarely need one, and
# holes are found in them every year.
_FAMILIES: tuple[_Rule, ...] = (
    (
        ("socket", "socketpair"),
        _is_none_of(0, _AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK),
        errno.EPERM,
    ),
)

# Landlock knows only TCP before ABI 10, and not all ways to use it: a socket that listens without
# being bound, MPTCP, a first packet with data.
_NO_NETWORK: tuple[_Rule, ...] = (
    (("socket",), _equals(0, _AF_INET), errno.EACCES),
    (("socket",), _equals(0, _AF_INET6), errno.EACCES),
    (("socket",), _equals(0, _AF_PACKET), errno.EACCES),
    (("socket",), _equals(0, _AF_NETLINK), errno.EACCES),
)

_WITHOUT_NAMESPACES: tuple[_Rule, ...] = (
    # Read and steer other processes of the user, and take their open files.
    (("ptrace", "process_vm_readv", "process_vm_writev"), _ALWAYS, errno.EPERM),
    (("pidfd_getfd", "kcmp"), _ALWAYS, errno.EPERM),
    # Memory, semaphores and queues that all processes of the user share.
    (("shmget", "shmat", "shmctl"), _ALWAYS, errno.EPERM),
    (("semget", "semop", "semtimedop", "semctl"), _ALWAYS, errno.EPERM),
    (("msgget", "msgsnd", "msgrcv", "msgctl"), _ALWAYS, errno.EPERM),
    # A limit that is set too low ends another process of the user.
    (("prlimit64",), _is_none_of(0, 0), errno.EPERM),
    # Every process of the user at once; landlock protects them from ABI 6 on.
    (("kill",), _equals(0, _EVERYONE), errno.EPERM),
    # In a user namespace a program has every capability, which opens most of the kernel to it.
    (("unshare",), _has_any(0, _NAMESPACES | linux.CLONE_NEWTIME), errno.EPERM),
    (("clone",), _has_any(0, _NAMESPACES), errno.EPERM),
    # Its flags are behind a pointer; libc then uses `clone`.
    (("clone3",), _ALWAYS, errno.ENOSYS),
    # Landlock lets every file of the user change its mode; this bit gives away the user's rights.
    (("chmod", "fchmod"), _has_any(1, _S_ISUID), errno.EPERM),
    (("fchmodat", "fchmodat2"), _has_any(2, _S_ISUID), errno.EPERM),
    # Landlock lets these change every file of the user too. Programs know file systems without
    # attributes, and access control lists are attributes.
    (("setxattr", "lsetxattr", "fsetxattr", "setxattrat"), _ALWAYS, errno.EOPNOTSUPP),
    (("removexattr", "lremovexattr", "fremovexattr"), _ALWAYS, errno.EOPNOTSUPP),
    (("removexattrat", "file_setattr"), _ALWAYS, errno.EOPNOTSUPP),
    (("ioctl",), _equals(1, _FS_IOC_SETFLAGS), errno.EOPNOTSUPP),
    (("ioctl",), _equals(1, _FS_IOC_FSSETXATTR), errno.EOPNOTSUPP),
)


def program(*, network: bool, strict: bool) -> bytes:
    """Return the filter for this machine, an array of `struct sock_filter`.

    `strict` is for a process that shares its namespaces with the rest of the machine; `network`
    matters only then. Raises OSError for a machine whose calls are not known.
    """
    return assemble(linux.machine(), network=network, strict=strict)


def assemble(machine: linux.Machine, *, network: bool, strict: bool) -> bytes:
    """Return the filter for `machine`."""
    rules = list(_IN_BOTH)
    if strict:
        rules += _WITHOUT_NAMESPACES
        if not network:
            rules += _NO_NETWORK
    rules += _FAMILIES
    parts = [_refuse_foreign(machine)]
    for calls, condition, error in rules:
        parts += (
            _refuse(machine.calls[call], condition, error)
            for call in calls
            if call in machine.calls
        )
    return b"".join(parts) + _instruction(_RETURN, _RETURN_ALLOW)


def install(program: bytes) -> None:
    """Have the kernel ask `program` before each call of this thread and of its children.

    It cannot be undone, and sets `no_new_privileges`. Raises OSError.
    """
    linux.no_new_privileges()
    instructions = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog
    header = struct.pack("HP", len(program) // 8, ctypes.addressof(instructions))
    linux.syscall(linux.machine().calls["seccomp"], _SET_MODE_FILTER, 0, header)


def _refuse_foreign(machine: linux.Machine) -> bytes:
    """Refuse the calls of other architectures that the kernel runs too: numbers differ there."""
    refusal = _instruction(_RETURN, _RETURN_ERRNO | errno.EPERM)
    check = _instruction(_LOAD_WORD, _ARCHITECTURE)
    check += _instruction(_JUMP_IF_EQUAL, machine.audit_number, 1, 0) + refusal
    check += _instruction(_LOAD_WORD, _NUMBER)
    if machine.name == "x86_64":
        check += _instruction(_JUMP_IF_AT_LEAST, _X32_BIT, 0, 1) + refusal
    return check


def _refuse(number: int, condition: bytes, error: int) -> bytes:
    """Refuse the call `number` with `error` when `condition` holds."""
    refusal = _instruction(_RETURN, _RETURN_ERRNO | error)
    rest = condition + refusal + _instruction(_LOAD_WORD, _NUMBER)
    return _instruction(_JUMP_IF_EQUAL, number, 0, len(rest) // 8) + rest
