"""Calls of the kernel that Python has no function for; all raise OSError with the call's name.

The arguments of a call are integers, bytes that end where C strings end, buffers, or None for
no pointer.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct

CLONE_NEWTIME = 0x80
CLONE_NEWNS = 0x20000
CLONE_NEWCGROUP = 0x2000000
CLONE_NEWUTS = 0x4000000
CLONE_NEWIPC = 0x8000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19

MOUNT_ATTR_RDONLY = 1
MOUNT_ATTR_NOSUID = 2
MOUNT_ATTR_NODEV = 4

MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_CAPBSET_DROP = 24
PR_GET_SECUREBITS = 27
PR_SET_SECUREBITS = 28
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

# For each, itself and the bit that locks it.
SECBIT_NOROOT = 1 << 0 | 1 << 1
SECBIT_NO_CAP_AMBIENT_RAISE = 1 << 6 | 1 << 7

_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_CAPABILITY_VERSION_3 = 0x20080522

# The numbers on x86_64 and aarch64; None where there is no such call.
_NUMBERS: dict[str, tuple[int | None, int | None]] = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "capset": (126, 91),
    "chmod": (90, None),
    "clock_settime": (227, 112),
    "clone": (56, 220),
    "clone3": (435, 435),
    "delete_module": (176, 106),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "file_setattr": (469, 469),
    "finit_module": (313, 273),
    "fremovexattr": (199, 16),
    "fsconfig": (431, 431),
    "fsetxattr": (190, 7),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioctl": (16, 29),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "kill": (62, 129),
    "landlock_add_rule": (445, 445),
    "landlock_create_ruleset": (444, 444),
    "landlock_restrict_self": (446, 446),
    "lremovexattr": (198, 15),
    "lsetxattr": (189, 6),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "msgctl": (71, 187),
    "msgget": (68, 186),
    "msgrcv": (70, 188),
    "msgsnd": (69, 189),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "prlimit64": (302, 261),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "removexattr": (197, 14),
    "removexattrat": (466, 466),
    "request_key": (249, 218),
    "seccomp": (317, 277),
    "semctl": (66, 191),
    "semget": (64, 190),
    "semop": (65, 193),
    "semtimedop": (220, 192),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "setxattr": (188, 5),
    "setxattrat": (463, 463),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "shmget": (29, 194),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
}


class Machine:
    """An architecture: its name, its number in audit records, and its calls by name."""

    __slots__ = ("audit_number", "calls", "name")

    def __init__(self, name: str, audit_number: int, column: int) -> None:
        self.name = name
        self.audit_number = audit_number
        self.calls: dict[str, int] = {}
        for call, numbers in _NUMBERS.items():
            number = numbers[column]
            if number is not None:
                self.calls[call] = number


MACHINES = (Machine("x86_64", 0xC000003E, 0), Machine("aarch64", 0xC00000B7, 1))


def machine() -> Machine:
    """Return the architecture that this process runs on; raise OSError for one not known here."""
    name = os.uname().machine
    for known in MACHINES:
        # A process of 32 bits has other numbers than its kernel.
        if known.name == name and struct.calcsize("P") == 8:
            return known
    bits = 8 * struct.calcsize("P")
    raise OSError(errno.ENOSYS, f"the system calls of a {bits}-bit process on {name} are not known")


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

Argument = int | bytes | ctypes.Array[ctypes.c_char] | None


def syscall(number: int, *args: Argument) -> int:
    """Make the call `number` of this machine and return its result."""
    return _call(_libc.syscall, _name(number), number, *args)


def prctl(option: int, *args: Argument) -> int:
    # The kernel insists that the arguments an option does not have are zero.
    padded = (*args, 0, 0, 0, 0)[:4]
    return _call(_libc.prctl, f"prctl {option}", option, *padded)


def unshare(flags: int) -> None:
    _call(_libc.unshare, "unshare", flags)


def mount(
    source: bytes | None, target: bytes, fstype: bytes | None, flags: int, data: bytes | None
) -> None:
    _call(_libc.mount, "mount", source, target, fstype, flags, data)


def set_mount(target: bytes, attributes: int, *, recursive: bool) -> None:
    """Add attributes to the mount at `target`, and with `recursive` to all below it."""
    change = struct.pack("=QQQQ", attributes, 0, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    number = machine().calls["mount_setattr"]
    syscall(number, _AT_FDCWD, target, flags, change, len(change))


def umount(target: bytes, flags: int) -> None:
    _call(_libc.umount2, "umount2", target, flags)


def no_new_privileges() -> None:
    """Let no exec of this process and its children grant anything: setuid, file capabilities."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def drop_capabilities() -> None:
    """Give up every capability, and what would give one back where that is allowed.

    Without CAP_SETPCAP the bounding set and the securebits stay as they are; with
    `no_new_privileges` they give an ordinary user nothing.
    """
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    held = prctl(PR_GET_SECUREBITS)
    with contextlib.suppress(PermissionError):
        prctl(PR_SET_SECUREBITS, held | SECBIT_NOROOT | SECBIT_NO_CAP_AMBIENT_RAISE)
    with contextlib.suppress(PermissionError):
        _empty_bounding_set()
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    syscall(machine().calls["capset"], header, bytes(24))


def _empty_bounding_set() -> None:
    for capability in range(64):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError as error:
            # The kernel knows no capability of this number, nor of a higher one.
            if error.errno == errno.EINVAL:
                return
            raise


def _name(number: int) -> str:
    for name, known in machine().calls.items():
        if known == number:
            return name
    return f"system call {number}"


def _call(function: ctypes._NamedFuncPointer, name: str, *args: Argument) -> int:
    # Variable arguments are passed as `int` unless told otherwise, which cuts them in half.
    whole = [ctypes.c_long(value) if isinstance(value, int) else value for value in args]
    result = int(function(*whole))
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result
