"""Slots: places for so many sandboxes of one repository at the same time, each under a lock.

A slot is leased under a lock that the keeper of its sandbox holds too, so that the next lease
never meets a process of the one before. Its `state` file says what is known of its worktree, so
that a kill at any moment is seen, and mended by the next lease.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sandbox_engine import disk, lock, process
from sandbox_engine.cancellation import Cancellation
from sandbox_engine.errors import SandboxBusyError
from sandbox_engine.store import SCRATCH, Store

RELEASED = "released"
"""The state of a slot in which nothing went wrong: this word, and how often in a row."""

_POLL_S = 0.05
_CLEAN = ("new", "recovered", RELEASED)


@dataclass(frozen=True)
class Slot:
    """One slot of the store, with what belongs to it; a sandbox in layers has no worktree."""

    store: Store
    number: int

    @property
    def root(self) -> Path:
        return self.store.slots / str(self.number)

    @property
    def folder(self) -> Path:
        """What the engine keeps about the slot, beside the worktree."""
        return self.store.slots / f"{self.number}.state"

    @property
    def git_dir(self) -> Path:
        """The repository of the worktree, the slot's own: runs do not share references."""
        return self.folder / "git"

    @property
    def admin(self) -> Path:
        return self.git_dir / "worktrees" / str(self.number)

    @property
    def index(self) -> Path:
        """Our own index: a test that runs git in the worktree changes the worktree's."""
        return self.folder / "index"

    @property
    def branch(self) -> str:
        return f"candidate/{self.number}"

    @property
    def marker(self) -> str:
        """What the environment of every process of the slot says; stores of others differ."""
        digest = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:16]
        return f"{self.store.folder.name}/{self.number}/{digest}"


@contextlib.contextmanager
def leased(
    store: Store, slots: int, wait_s: float, cancellation: Cancellation | None = None
) -> Iterator[tuple[Slot, int]]:
    """Hold a slot that nobody else has, cleared of what was killed in it or in another one.

    Raise SandboxBusyError when all of `slots` stay taken for `wait_s` seconds, CancelledError.
    """
    deadline = time.monotonic() + wait_s
    while (taken := _try_lease(store, slots)) is None:
        if time.monotonic() >= deadline:
            raise SandboxBusyError(
                f"all {slots} sandboxes of `{store.repository.name}` stayed taken for {wait_s:g} s",
                remedy="wait for other validations to end, or raise `slots` in the configuration",
            )
        if cancellation is not None:
            cancellation.check()
        time.sleep(_POLL_S)
    slot, lease = taken
    try:
        _recover(slot)
        _recover_others(slot)
        yield slot, lease
    finally:
        os.close(lease)


def _try_lease(store: Store, slots: int) -> tuple[Slot, int] | None:
    for number in range(slots):
        slot = Slot(store, number)
        slot.folder.mkdir(exist_ok=True, mode=0o700)
        lease = lock.try_lock(slot.folder / "lock")
        if lease is not None:
            return slot, lease
    return None


def taken(store: Store) -> dict[int, bool]:
    """Return the slots there are by number, and whether somebody has leased each."""
    found = {}
    for path in sorted(store.slots.glob("*.state"), key=lambda path: int(path.stem)):
        held = lock.try_lock(path / "lock")
        found[int(path.stem)] = held is None
        if held is not None:
            os.close(held)
    return found


def state_of(slot: Slot) -> str:
    """Return what was last written about the slot's worktree, `new` if nothing was."""
    try:
        return (slot.folder / "state").read_text()
    except FileNotFoundError:
        return "new"


def write_state(slot: Slot, state: str) -> None:
    """Write down what is known of the slot's worktree."""
    (slot.folder / "state").write_text(state)


def _recover_others(slot: Slot) -> None:
    """Clear away what was killed in slots that nobody has leased since."""
    for path in slot.store.slots.glob("*.state/state"):
        other = Slot(slot.store, int(path.parent.stem))
        if other == slot or is_clean(other):
            continue
        lease = lock.try_lock(other.folder / "lock")
        if lease is not None:
            _recover(other)
            os.close(lease)


def is_clean(slot: Slot) -> bool:
    """Tell whether nothing is known to have gone wrong in the slot."""
    return state_of(slot).startswith(_CLEAN)


def _recover(slot: Slot) -> None:
    """Clear away what a run that was killed left: its processes, git's locks, its scratch."""
    if is_clean(slot):
        return
    process.kill_marked(slot.marker)
    for path in (
        slot.index.with_name("index.lock"),
        slot.admin / "index.lock",
        slot.admin / "HEAD.lock",
        slot.git_dir / "refs" / "heads" / f"{slot.branch}.lock",
        slot.git_dir / "packed-refs.lock",
    ):
        path.unlink(missing_ok=True)
    remove_scratch(slot)
    write_state(slot, "recovered")


def remove_scratch(slot: Slot) -> None:
    """Remove the temporary folder of the slot's last run, if it is still there."""
    named = slot.folder / "scratch"
    try:
        folder = named.read_text()
    except FileNotFoundError:
        return
    if SCRATCH.fullmatch(os.path.basename(folder)):
        disk.remove_tree(Path(folder))
    named.unlink()
