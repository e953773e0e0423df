"""What the store no longer needs is taken away: by age, and by size where it is too large.

Nothing of it is more than time: layers, slots and copies are made again when they are wanted.
Whatever is in use is under a lock and stays. Objects go only while no validation is under way, and
none that is younger than a day: one that begins meanwhile waits. What was kept by name is the
user's, and stays until they take it away.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sandbox_engine import disk, git, layers, lock, process, shelf, slots
from sandbox_engine import store as store_module
from sandbox_engine.errors import SandboxBusyError
from sandbox_engine.slots import Slot
from sandbox_engine.store import Store

DAY_S = 86_400.0
AGE_S = 14 * DAY_S
"""What was not used for so long is taken away."""
MOST_BYTES = 4 * 2**30
"""A store that is larger gives up what was used least recently, whatever its age."""
_MANY = 2_000
"""More loose objects than this are packed."""
_LOW = 10
_STAMP = "cleaned"
_LEFT = ("staged-*", "tmp*", "*.damaged")


@dataclass(frozen=True, slots=True)
class Freed:
    """What was taken away, and how many bytes that freed."""

    what: str
    bytes: int


def clean(store: Store, *, age_s: float = AGE_S, most_bytes: int = MOST_BYTES) -> list[Freed]:
    """Take away what was not used for `age_s` seconds, and more while the store is too large."""
    now = time.time()
    freed = [
        *_left_behind(store, now - DAY_S),
        *_unused(store, now - age_s),
        *_objects(store, now - max(age_s, DAY_S)),
        *_orphans(store),
    ]
    # What was kept by name is not taken away, so that it must not drive out all else.
    if disk.size_of(store.folder) - disk.size_of(store.folder / "kept") > most_bytes:
        freed += [*_unused(store, now), *_objects(store, now - DAY_S)]
    disk.write_whole(store.folder / _STAMP, b"")
    return [one for one in freed if one.bytes]


def begin_if_due(store: Store) -> bool:
    """Start a process that cleans the store, once a day; tell whether one was started.

    It goes on by itself at low priority, and says nothing to anybody.
    """
    stamp = store.folder / _STAMP
    try:
        if not stamp.exists():
            # A new store has nothing to take away yet.
            disk.write_whole(stamp, b"")
        if time.time() - stamp.stat().st_mtime < DAY_S:
            return False
        # At once, so that of many only one starts.
        os.utime(stamp)
    except OSError:
        # Where nothing can be written the verdict is right all the same.
        return False
    place = store.repository.top or store.repository.git_dir
    child = process.spawn(
        [sys.executable, "-P", "-m", "sandbox_engine", "gc", "--repo", os.fspath(place)],
        cwd="/",
        env=process.without_git_variables(os.environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.setpriority(os.PRIO_PROCESS, child.pid, _LOW)
    # It goes on by itself; nobody is to be told that it was not waited for.
    child.returncode = 0
    return True


def _left_behind(store: Store, before: float) -> Iterator[Freed]:
    """Remove what processes that were killed left in the store's folder."""
    for pattern in _LEFT:
        for path in store.folder.glob(pattern):
            if _used(path) < before:
                yield _removed("left behind", path)


def _unused(store: Store, before: float) -> Iterator[Freed]:
    """Remove layers, copies and slots that nobody has used since `before`."""
    current = layers.layers_folder(store)
    copies = (store.folder / "carried", store.folder / "prepared", store.compiled)
    for folder in (*store.folder.glob("layers-*"), *copies):
        for path in shelf.unused(folder, before):
            with _alone(path.with_suffix(".lock")) as is_free:
                if is_free:
                    yield _removed("layers" if "layers" in folder.name else "copies", path)
        if folder.name.startswith("layers-") and folder != current and not _places(folder):
            yield _removed("layers", folder)
    for state in store.slots.glob("*.state/state"):
        slot = Slot(store, int(state.parent.stem))
        if _used(state) < before:
            with _alone(slot.folder / "lock") as is_free:
                if is_free and slots.is_clean(slot):
                    yield from _emptied(slot)


def _emptied(slot: Slot) -> Iterator[Freed]:
    """Remove all of a slot but its lock, which somebody may be about to take."""
    yield _removed("slots", slot.root)
    for path in slot.folder.iterdir():
        if path.name != "lock":
            yield _removed("slots", path)


def _objects(store: Store, before: float) -> Iterator[Freed]:
    """Forget old trees that passed, and remove objects that nothing needs any more."""
    size = disk.size_of(store.git_dir)
    with store_module.alone(store) as is_free:
        if is_free:
            store_module.forget_passed(store, before)
            old = f"{int(time.time() - before)}.seconds.ago"
            git.run_store_git(store.git_dir, ["prune", f"--expire={old}"])
            if _loose(store) > _MANY:
                # What nothing refers to any more becomes loose, and so old enough one day.
                git.run_store_git(store.git_dir, ["repack", "-Adlq"])
    yield Freed("objects", max(0, size - disk.size_of(store.git_dir)))


def _loose(store: Store) -> int:
    folders = (store.git_dir / "objects").glob("[0-9a-f][0-9a-f]")
    return sum(len(os.listdir(folder)) for folder in folders)


def _orphans(store: Store) -> Iterator[Freed]:
    """Remove the stores of repositories that are gone."""
    for folder in store_module.orphans(store.folder.parent):
        with contextlib.suppress(SandboxBusyError):
            yield Freed("stores of repositories that are gone", store_module.remove_store(folder))


def _removed(what: str, path: Path) -> Freed:
    size = disk.size_of(path) if path.is_dir() else path.lstat().st_blocks * 512
    disk.remove_tree(path)
    return Freed(what, size)


def _places(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.isdigit()]


def _used(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        return time.time()


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Hold a lock if nobody else does, and tell whether it is held."""
    held = lock.try_lock(path)
    try:
        yield held is not None
    finally:
        if held is not None:
            os.close(held)
