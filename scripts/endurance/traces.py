"""What an engine may leave, and what it may change: nothing, and what a promotion lands.

Whatever a run started is a descendant of ours, and this process adopts those that lose their
parents, so one that is left is found even where it has dropped its environment.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import os
import re
import signal
import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from endurance.project import Problem, World, git

_PR_SET_CHILD_SUBREAPER = 36
_OWN_LOCKS = re.compile(r"[a-z]+(-[0-9a-f])?\.lock|[a-z0-9.-]+/\d+\.lock|slots/\d+\.state/lock")
"""Files of the store that are locked by `flock`, and stay."""
_CLEAN = ("released", "recovered")
"""Beginnings of the states of slots in which nothing is left."""
_KEPT_REFERENCES = ("refs/passed/", "refs/tags/")
_SLOT_REFERENCES = ("refs/heads/candidate/", "refs/tags/")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The user's repository, bit for bit: states by path, and the names of all objects."""

    files: Mapping[str, str]
    objects: frozenset[str]

    def changes(self, after: Snapshot) -> list[str]:
        """Return what differs in `after`."""
        names = sorted(self.files.keys() | after.files.keys())
        return [
            *(f"object {name} is lost" for name in sorted(self.objects - after.objects)),
            *(f"object {name} is new" for name in sorted(after.objects - self.objects)),
            *(
                f"`{name}` of the user: {self.files.get(name)} -> {after.files.get(name)}"
                for name in names
                if self.files.get(name) != after.files.get(name)
            ),
        ]


def take_snapshot(top: Path) -> Snapshot:
    """Return the state of the repository at `top`, times included but for objects'."""
    files = {}
    for parent, folders, names in os.walk(top):
        if parent == str(top / ".git"):
            folders.remove("objects")
        for name in (*names, *folders):
            path = os.path.join(parent, name)
            files[os.path.relpath(path, top)] = _state(path, with_time=True)
    objects = git(top, "cat-file", "--batch-all-objects", "--batch-check=%(objectname)")
    return Snapshot(files, frozenset(objects.split()))


def _state(path: str, *, with_time: bool) -> str:
    status = os.lstat(path)
    if os.path.islink(path):
        return f"{status.st_mode:o} -> {os.readlink(path)}"
    if os.path.isdir(path):
        return f"{status.st_mode:o} folder"
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    time_ns = status.st_mtime_ns if with_time else 0
    return f"{status.st_mode:o} {time_ns} {digest}"


@dataclass(frozen=True, slots=True)
class Landing:
    """What a promotion may change: where branches are, the index, and the files."""

    references: Mapping[str, str]
    index: Mapping[str, str]
    files: Mapping[str, str]
    rest: Mapping[str, str]

    def promoted(
        self, branch: str, commit: str, edits: Mapping[str, bytes | None], *, checked_out: bool
    ) -> Landing:
        """Return this state with `edits` landed as `commit` on `branch`."""
        references = {**self.references, f"refs/heads/{branch}": commit}
        if not checked_out:
            return Landing(references, self.index, self.files, self.rest)
        index, files = dict(self.index), dict(self.files)
        for name, content in edits.items():
            index.pop(name, None)
            files.pop(name, None)
            if content is not None:
                index[name] = f"100644 {_blob_id(content)} 0"
                files[name] = f"100644 0 {hashlib.sha256(content).hexdigest()[:16]}"
        return Landing(references, index, files, self.rest)


def take_landing(top: Path) -> Landing:
    """Return what a promotion moves together, and in `rest` what it must leave alone."""
    heads = git(top, "for-each-ref", "--format=%(refname) %(objectname)").splitlines()
    entries = (line.partition("\t") for line in git(top, "ls-files", "-s").splitlines())
    files = {}
    for parent, folders, names in os.walk(top):
        if parent == str(top):
            folders.remove(".git")
        for name in names:
            path = os.path.join(parent, name)
            files[os.path.relpath(path, top)] = _state(path, with_time=False)
    return Landing(
        dict(line.split(" ") for line in heads),
        {name: fields for fields, _, name in entries},
        files,
        {name: (top / ".git" / name).read_text() for name in ("HEAD", "config")},
    )


def _blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def fsck(world: World, *, with_slots: bool = True) -> list[str]:
    """Return what git finds wrong in the user's repository, the store, and the slots.

    A slot that a kill has left half made is not mended before the next lease.
    """
    slots = sorted(world.store.glob("slots/*.state/git")) if with_slots else []
    return [
        fault
        for folder in (world.top / ".git", world.store / "store.git", *slots)
        # One whose making was killed is no repository yet, and is made anew.
        if (folder / "HEAD").exists() and (folder / "objects").is_dir()
        for fault in _fsck(folder)
    ]


def _fsck(folder: Path) -> Iterator[str]:
    try:
        said = git(folder, f"--git-dir={folder}", "fsck", "--no-progress", "--no-dangling")
    except Problem as problem:
        said = str(problem)
    # A repository of ours has no branch that its HEAD names.
    lines = [line for line in said.splitlines() if not line.startswith("notice: ")]
    if lines:
        yield f"fsck of `{folder.name}`: {' '.join(lines)}"


def adopt_orphans() -> None:
    """Become the parent of every process that descends from this one and has lost its own."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise Problem(f"prctl: {os.strerror(ctypes.get_errno())}")


def children() -> list[int]:
    """Return our living children, after those that ended are collected."""
    found: list[int] = []
    for path in Path("/proc/self/task").glob("*/children"):
        found += map(int, path.read_text().split())
    return [pid for pid in found if not _is_over(pid)]


def _is_over(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def processes(world: World, spared: Collection[int] = ()) -> list[str]:
    """Return the processes that are left: our children, and whatever knows the world's token."""
    token = world.token.encode()
    found = {pid: _line(pid) for pid in children()}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            pid = int(folder.name)
            with contextlib.suppress(OSError):
                line = (folder / "cmdline").read_bytes()
                if token in line or (line and token in (folder / "environ").read_bytes()):
                    found[pid] = _line(pid)
    left = sorted(item for item in found.items() if item[0] not in spared)
    return [f"process {pid} is left: {line}" for pid, line in left]


def _line(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:200]
    return "?"


def clear(world: World, spared: Collection[int] = ()) -> None:
    """End and remove what is left, so that one fault is not found again after the next run."""
    for line in processes(world, spared):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(line.split()[1]), signal.SIGKILL)
    for path in (*_half_written(world), *(world.top / ".git").rglob("*.lock")):
        path.unlink(missing_ok=True)


def wait_for_orphans(timeout_s: float) -> None:
    """Wait until what a killed engine had started is over, or the time is."""
    deadline = time.monotonic() + timeout_s
    while children() and time.monotonic() < deadline:
        time.sleep(0.01)


def mounts(world: World) -> list[str]:
    """Return the mounts below the world's folder, of any mount namespace that has a process."""
    wanted = str(world.folder) + "/"
    found = set()
    seen: set[str] = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                namespace = os.readlink(folder / "ns" / "mnt")
                if namespace not in seen:
                    seen.add(namespace)
                    lines = (folder / "mountinfo").read_text().splitlines()
                    found |= {line for line in lines if wanted in line}
    # The folder that is a file system of ours, for the tests of full disks.
    own = f" {world.cache_home} "
    return [f"a mount is left: {line}" for line in sorted(found) if own not in line]


def leftovers(world: World, spared: Collection[int] = ()) -> list[str]:
    """Return everything that is left of runs, one sentence each; processes `spared` are ours."""
    return [
        *processes(world, spared),
        *mounts(world),
        *_locks(world),
        *_states(world),
        *(f"`{path.name}` is left in TMPDIR" for path in sorted(world.temporary.iterdir())),
        *_references(world),
        *_halves(world),
    ]


def _locks(world: World) -> Iterator[str]:
    for path in sorted((world.top / ".git").rglob("*.lock")):
        yield f"git's lock `{path.relative_to(world.top)}` is left"
    store = world.store
    for path in sorted([*store.rglob("*.lock"), *store.glob("slots/*.state/lock")]):
        name = str(path.relative_to(store))
        if not _OWN_LOCKS.fullmatch(name):
            yield f"git's lock `{name}` of the store is left"
        elif _is_locked(path):
            yield f"the lock `{name}` is held"


def _is_locked(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _states(world: World) -> Iterator[str]:
    for path in sorted(world.store.glob("slots/*.state/state")):
        if not (state := path.read_text()).startswith(_CLEAN):
            yield f"the slot {path.parent.stem} is left in the state `{state}`"


def _references(world: World) -> Iterator[str]:
    places = [(world.store / "store.git", _KEPT_REFERENCES)]
    slots = sorted(world.store.glob("slots/*.state/git"))
    places += [(folder, _SLOT_REFERENCES) for folder in slots]
    for folder, kept in places:
        if (folder / "HEAD").exists():
            try:
                listed = git(folder, f"--git-dir={folder}", "for-each-ref", "--format=%(refname)")
            except Problem as problem:
                yield str(problem)
                continue
            for name in listed.splitlines():
                if not name.startswith(kept):
                    yield f"the reference `{name}` is left in `{folder.name}`"


def _halves(world: World) -> Iterator[str]:
    """Yield files that were written to take another's place and never did, and a journal."""
    for path in _half_written(world):
        yield f"`{path.relative_to(world.stores)}` is left, half of a write"
    for name in ("promotion.json", "promotion"):
        if (world.store / name).exists():
            yield f"`{name}` of a promotion is left"


def _half_written(world: World) -> list[Path]:
    paths = world.stores.rglob("*.new")
    return sorted(path for path in paths if re.search(r"\.\d+\.new$", path.name))


def broken_cache(world: World) -> list[str]:
    """Return what SQLite finds wrong in the file of verdicts; none is no fault."""
    path = world.store / "cache.sqlite3"
    if not path.exists():
        return []
    try:
        with contextlib.closing(sqlite3.connect(path)) as database:
            said = database.execute("PRAGMA integrity_check").fetchall()
    except sqlite3.DatabaseError as error:
        return [f"the cache does not open: {error}"]
    return [] if said == [("ok",)] else [f"the cache is damaged: {said}"]
