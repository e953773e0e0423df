"""Sandboxes: a leased directory that holds exactly one tree, and the only way to run code in it.

Slots are real git worktrees that are used again and again: moving one from the tree it holds to
the one wanted costs a fraction of making it (docs/adr/0002-reused-slots.md). Each has a repository
of its own that borrows the store's objects, so that no run sees what another does to references,
configuration or hooks. A slot
is leased under a lock that its run's processes hold too, so that the next lease never meets
them. Its `state` file says `moving` or `running` while it cannot be trusted, so that a kill at any
moment is seen and mended by the next lease.

Steps use `Sandbox.run` and `Sandbox.read` and open no path themselves: a sandbox may come to
exist only inside a mount namespace of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sandbox_engine import carry, disk, git, lock, process
from sandbox_engine import store as store_module
from sandbox_engine.carry import Carried
from sandbox_engine.errors import GitError, SandboxBusyError
from sandbox_engine.process import Completed, Limits
from sandbox_engine.store import SCRATCH, Store
from sandbox_engine.verdict import CommitId

ISOLATION = "none"
"""The tier that every run of this version gets."""

_POLL_S = 0.05
_ALLOWED = ("PATH", "LANG", "LANGUAGE", "TZ", "USER", "LOGNAME", "SHELL")
_GIT_DIR = frozenset(
    {"HEAD", "config", "info", "objects", "refs", "packed-refs", "worktrees", "shallow"}
)
_ADMIN = frozenset({"HEAD", "commondir", "gitdir", "index", "locked"})
_GIT_CONFIG = b"[user]\n\tname = sandbox\n\temail = sandbox@localhost\n"


@dataclass(frozen=True)
class _Slot:
    """One worktree of the store, with what belongs to it."""

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


@dataclass(frozen=True)
class Sandbox:
    """A directory that holds exactly one tree, for as long as its lease lasts."""

    root: Path
    _slot: _Slot
    _commit: CommitId
    _carried: Carried
    _variables: Mapping[str, str]
    _lease: int

    def run(
        self,
        argv: list[str],
        limits: Limits,
        *,
        variables: Mapping[str, str] | None = None,
        report_env: str | None = None,
    ) -> Completed:
        """Run `argv` in the sandbox's root and return how it ended; nothing it started is left.

        `variables` are added to its environment; `report_env` names the one that holds the
        descriptor of the report pipe.
        """
        return process.run_contained(
            argv,
            cwd=self.root,
            env={**self._variables, **(variables or {})},
            limits=limits,
            keep_fds=(self._lease,),
            report_env=report_env,
            marker=self._slot.marker,
        )

    def changed_files(self) -> list[str]:
        """Return the tracked files that are no longer as in the tree."""
        output = git.run_store_git(
            self._slot.admin,
            ["diff-files", "--name-only", "-z"],
            work_tree=self.root,
            index=self._slot.index,
            keep_fds=(self._lease,),
        )
        return [os.fsdecode(name) for name in output.split(b"\0") if name]

    def restore(self) -> None:
        """Make the directory hold exactly the tree again, without anything that a run left."""
        _fill(self._slot, self._commit, self._carried, self._lease)

    def forget_compiled(self) -> None:
        """Remove what interpreters compiled: a full disk leaves files that they cannot read."""
        disk.remove_tree(self._slot.store.compiled)

    def read(self, path: str) -> bytes | None:
        """Return the bytes of the regular file at `path`, or None; links are not followed."""
        current = self.root
        for part in Path(path).parts[:-1]:
            current /= part
            if not current.is_dir() or current.is_symlink():
                return None
        try:
            descriptor = os.open(self.root / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return None
            with open(descriptor, "rb", closefd=False) as file:
                return file.read()
        finally:
            os.close(descriptor)


def allowed_variables(names: tuple[str, ...]) -> dict[str, str]:
    """Return what a run sees of our environment: a short list, and the variables in `names`."""
    wanted = {*_ALLOWED, *names}
    return {
        name: value
        for name, value in os.environ.items()
        if name in wanted or name.startswith("LC_")
    }


@contextlib.contextmanager
def open_sandbox(
    store: Store,
    commit: CommitId,
    *,
    variables: Mapping[str, str],
    carried: Carried,
    slots: int,
    wait_s: float,
) -> Iterator[Sandbox]:
    """Lease a slot, make it hold exactly the tree of `commit`, and yield it.

    Raise SandboxBusyError when all of `slots` stay taken for `wait_s` seconds.
    """
    with _leased(store, slots, wait_s) as (slot, lease):
        _recover(slot)
        _recover_others(slot)
        store_module.tidy(store)
        _write_state(slot, "moving")
        _fill(slot, commit, carried, lease)
        with _scratch(slot) as scratch:
            _write_state(slot, "running")
            private = {
                "HOME": str(scratch / "home"),
                "TMPDIR": str(scratch / "tmp"),
                "TERM": "dumb",
                "PYTHONPYCACHEPREFIX": str(store.compiled),
            }
            yield Sandbox(slot.root, slot, commit, carried, {**variables, **private}, lease)
        _write_state(slot, "released")


def _recover_others(slot: _Slot) -> None:
    """Clear away what was killed in slots that nobody has leased since."""
    for path in slot.store.slots.glob("*.state/state"):
        other = _Slot(slot.store, int(path.parent.stem))
        if other == slot or _state(other) == "released":
            continue
        lease = lock.try_lock(other.folder / "lock")
        if lease is not None:
            _recover(other)
            _write_state(other, "released")
            os.close(lease)


def _fill(slot: _Slot, commit: CommitId, carried: Carried, lease: int) -> None:
    try:
        _move(slot, commit, lease)
        carry.place(carried, slot.root)
    except OSError as error:
        raise git.foreign_failure(error, "the sandbox cannot be filled") from error
    disk.remove_tree(_compiled(slot.store, slot.root))
    # pytest looks for its settings in every folder above; this one ends the search.
    disk.write_if_changed(slot.store.slots / "pytest.ini", b"[pytest]\n")


@contextlib.contextmanager
def _leased(store: Store, slots: int, wait_s: float) -> Iterator[tuple[_Slot, int]]:
    deadline = time.monotonic() + wait_s
    while (taken := _try_lease(store, slots)) is None:
        if time.monotonic() >= deadline:
            raise SandboxBusyError(
                f"all {slots} sandboxes of `{store.repository.name}` stayed taken for {wait_s:g} s",
                remedy="wait for other validations to end, or raise `slots` in the configuration",
            )
        time.sleep(_POLL_S)
    slot, lease = taken
    try:
        yield slot, lease
    finally:
        os.close(lease)


def _try_lease(store: Store, slots: int) -> tuple[_Slot, int] | None:
    for number in range(slots):
        slot = _Slot(store, number)
        slot.folder.mkdir(exist_ok=True, mode=0o700)
        lease = lock.try_lock(slot.folder / "lock")
        if lease is not None:
            return slot, lease
    return None


def _state(slot: _Slot) -> str:
    try:
        return (slot.folder / "state").read_text()
    except FileNotFoundError:
        return "new"


def _write_state(slot: _Slot, state: str) -> None:
    (slot.folder / "state").write_text(state)


def _recover(slot: _Slot) -> None:
    """Clear away what a run that was killed left: its processes, git's locks, its scratch."""
    if _state(slot) in ("new", "released"):
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
    _remove_scratch(slot)


def _move(slot: _Slot, commit: CommitId, lease: int) -> None:
    """Make the worktree hold exactly the tree of `commit`, whatever it holds now."""
    if not _is_intact(slot):
        _rebuild(slot, commit, lease)
    try:
        _check_out(slot, commit, lease)
    except GitError:
        # A read-only folder of the last run, or an index that was torn: made anew, it is neither.
        _rebuild(slot, commit, lease)
        _check_out(slot, commit, lease)


def _is_intact(slot: _Slot) -> bool:
    """Tell whether the worktree and its administration still point at each other."""
    try:
        return (
            stat.S_ISDIR(slot.root.lstat().st_mode)
            and stat.S_ISREG((slot.root / ".git").lstat().st_mode)
            and (slot.root / ".git").read_text() == f"gitdir: {slot.admin}\n"
            and (slot.admin / "gitdir").read_text() == f"{slot.root}/.git\n"
            and (slot.admin / "commondir").read_text() == "../..\n"
        )
    except (OSError, UnicodeDecodeError):
        return False


def _rebuild(slot: _Slot, commit: CommitId, lease: int) -> None:
    disk.remove_tree(slot.root)
    slot.index.unlink(missing_ok=True)
    store_module.make_repository(slot.git_dir)
    _settle(slot)
    git.run_store_git(
        slot.git_dir,
        ["worktree", "add", "-q", "-f", "--detach", "--no-checkout", str(slot.root), commit],
        keep_fds=(lease,),
    )


def _settle(slot: _Slot) -> None:
    """Make the slot's repository hold what it must and nothing that a run left in it."""
    store = slot.store
    _keep_only(slot.git_dir, _GIT_DIR)
    _keep_only(slot.git_dir / "objects", {"info"})
    _keep_only(slot.git_dir / "objects" / "info", {"alternates"})
    _keep_only(slot.git_dir / "refs", {"heads"})
    _keep_only(slot.git_dir / "refs" / "heads", {"candidate"})
    _keep_only(slot.git_dir / "worktrees", {str(slot.number)})
    _keep_only(slot.admin, _ADMIN)
    store_module.settle(slot.git_dir, store.git_dir / "objects", store.repository.common_dir)
    store_module.mirror_file(store.git_dir / "packed-refs", slot.git_dir / "packed-refs")


def _keep_only(folder: Path, names: Collection[str]) -> None:
    for name in os.listdir(folder) if folder.is_dir() else ():
        if name not in names:
            disk.remove_tree(folder / name)


def _check_out(slot: _Slot, commit: CommitId, lease: int) -> None:
    _settle(slot)
    for arguments in (
        ["checkout", "-q", "-f", "-B", slot.branch, commit],
        ["clean", "-q", "-ffdx"],
    ):
        git.run_store_git(
            slot.admin, arguments, work_tree=slot.root, index=slot.index, keep_fds=(lease,)
        )
    _clean_what_git_leaves(slot)
    disk.write_whole(slot.admin / "index", slot.index.read_bytes())


def _clean_what_git_leaves(slot: _Slot) -> None:
    """Remove pipes, sockets and devices, which git does not list, and what is in submodules."""
    if (slot.root / ".gitmodules").exists():
        entries = git.run_store_git(slot.admin, ["ls-files", "-s", "-z"], index=slot.index)
        for entry in entries.split(b"\0"):
            if entry.startswith(b"160000 "):
                folder = slot.root / os.fsdecode(entry.partition(b"\t")[2])
                disk.remove_tree(folder)
                folder.mkdir()
    folders = [os.fspath(slot.root)]
    while folders:
        with os.scandir(folders.pop()) as entries_here:
            for node in entries_here:
                if node.is_dir(follow_symlinks=False):
                    folders.append(node.path)
                elif not node.is_symlink() and not node.is_file(follow_symlinks=False):
                    os.unlink(node.path)


def _compiled(store: Store, folder: Path) -> Path:
    """Where PYTHONPYCACHEPREFIX puts what is compiled of the files in `folder`.

    Removed for each run: a compiled file whose source has the same size and second is believed.
    """
    return Path(f"{store.compiled}{folder}")


@contextlib.contextmanager
def _scratch(slot: _Slot) -> Iterator[Path]:
    """Yield a new folder with `home` and `tmp`, on a path short enough for sockets."""
    folder = Path(os.path.realpath(tempfile.gettempdir()), f"se-{secrets.token_hex(6)}")
    # Named before it is made: a kill in between must not leave a folder that nobody knows.
    (slot.folder / "scratch").write_text(str(folder))
    folder.mkdir(mode=0o700)
    try:
        (folder / "home").mkdir()
        (folder / "tmp").mkdir()
        (folder / "home" / ".gitconfig").write_bytes(_GIT_CONFIG)
        yield folder
    finally:
        _remove_scratch(slot)


def _remove_scratch(slot: _Slot) -> None:
    named = slot.folder / "scratch"
    try:
        folder = named.read_text()
    except FileNotFoundError:
        return
    if SCRATCH.fullmatch(os.path.basename(folder)):
        disk.remove_tree(Path(folder))
        disk.remove_tree(_compiled(slot.store, Path(folder)))
    named.unlink()
