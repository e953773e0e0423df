"""Shuts a process out of files, the network and other processes without any privilege.

Landlock works everywhere since Linux 5.13 where it is not switched off, also where user
namespaces are refused. Each version of its interface (ABI) stops more; `unstopped` says what one
leaves open. See https://docs.kernel.org/userspace-api/landlock.html.
"""

from __future__ import annotations

import errno
import os
import stat
import struct

from . import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1

_EXECUTE = 1 << 0
_WRITE_FILE = 1 << 1
_READ_FILE = 1 << 2
_READ_DIR = 1 << 3
_TRUNCATE = 1 << 14
_IOCTL_DEV = 1 << 15
_RESOLVE_UNIX = 1 << 16

_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV | _RESOLVE_UNIX
"""The rights that a single file can have; a rule that gives it others is refused."""
_TO_READ = _EXECUTE | _READ_FILE | _READ_DIR

# What each version can deny is the lowest of so many bits.
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16, 9: 17}
_NETWORK_RIGHTS = {4: 2, 10: 4}
_SCOPES = {6: 2}

_UNSTOPPED = (
    (1, "reading, changing and removing files"),
    (3, "emptying files with truncate()"),
    (5, "ioctl() on every device that may be read"),
    (6, "signals to other processes of the user"),
    (6, "connecting to abstract unix sockets"),
    (9, "connecting to unix sockets that have a path, as those of docker, D-Bus and agents"),
)
"""What is open in every version before the number."""
_NEVER_STOPPED = (
    "reading what may be read",
    "seeing that a file is there, its size, its times, and by inotify its use",
    "changing mode (but not to setuid), group and times of every file of the user",
    "removing POSIX queues of the user",
    "changing priority and processors of other processes, unless they have capabilities",
    "using sockets that something outside hands over",
    "using more memory and disk than allowed until the next look at them",
)


def abi() -> int:
    """Return the version of landlock that the kernel has, 0 when it has none or it is off."""
    try:
        create = linux.machine().calls["landlock_create_ruleset"]
        return linux.syscall(create, None, 0, _CREATE_RULESET_VERSION)
    except OSError as error:
        # EPERM is how the filters of older containers answer calls that they do not know.
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
            return 0
        raise


def restrict(readable: Sequence[bytes], writable: Sequence[bytes], *, network: bool) -> None:
    """Shut this process and its children out of every file but those below the given paths.

    What is below `readable` may be read and executed, below `writable` all is allowed, new
    device files and sockets included, as far as the user may. A path that is not there, or that
    this process cannot reach, is passed over. Unless `network`, binding and connecting is denied
    to TCP (from ABI 4) and UDP (from ABI 10); `seccomp` does the rest. From ABI 6, signals and
    abstract unix sockets reach only processes that descend from this one. Files that are open
    stay usable. Before ABI 2 nothing moves from one folder to another, below `writable` too.

    It cannot be undone, and sets `no_new_privileges`. Raises OSError, ENOSYS without landlock.
    """
    version = abi()
    if version == 0:
        raise OSError(errno.ENOSYS, "the kernel has no landlock, or it is switched off")
    everything = _lowest(_FILE_RIGHTS, version)
    denied_network = 0 if network else _lowest(_NETWORK_RIGHTS, version)
    # A version that knows less than these fields accepts them when they are zero.
    handled = struct.pack("=QQQ", everything, denied_network, _lowest(_SCOPES, version))
    calls = linux.machine().calls
    ruleset = linux.syscall(calls["landlock_create_ruleset"], handled, len(handled), 0)
    try:
        _allow(ruleset, readable, everything & _TO_READ)
        _allow(ruleset, writable, everything)
        linux.no_new_privileges()
        linux.syscall(calls["landlock_restrict_self"], ruleset, 0)
    finally:
        os.close(ruleset)


def unstopped(version: int) -> tuple[str, ...]:
    """Say in plain words what a process can still do under `restrict`, as far as it matters.

    It is taken to have no capability, the strict filter of `seccomp` without a network, and no
    open file but pipes.
    """
    return tuple(what for first, what in _UNSTOPPED if version < first) + _NEVER_STOPPED


def _lowest(widths: dict[int, int], version: int) -> int:
    """Return the rights that `version` knows."""
    return (1 << max((bits for first, bits in widths.items() if first <= version), default=0)) - 1


def _allow(ruleset: int, paths: Iterable[bytes], rights: int) -> None:
    add_rule = linux.machine().calls["landlock_add_rule"]
    for path in paths:
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
        try:
            is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
            fitting = rights if is_folder else rights & _OF_FILES
            rule = struct.pack("=Qi", fitting, descriptor)
            linux.syscall(add_rule, ruleset, _RULE_PATH_BENEATH, rule, 0)
        finally:
            os.close(descriptor)
