"""Sandboxes without layers: a worktree that is used again and again.

Moving one from the tree it holds to the one wanted costs a fraction of making it
(docs/adr/0002-reused-slots.md). Each has a repository of its own that borrows the store's
objects, so that no run sees what another does to references, configuration or hooks. Git moves
it with an index of the engine's own, and now and then every file is read and compared.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sandbox_engine import carry, compiled, disk, git, inside, isolation, slots, tree
from sandbox_engine import store as store_module
from sandbox_engine.carry import Carried
from sandbox_engine.containment import Confinement, Keeper, open_keeper
from sandbox_engine.errors import GitError
from sandbox_engine.process import Completed, Limits, Stop
from sandbox_engine.sandbox import GIT_CONFIG, PRIVATE, Setup
from sandbox_engine.slots import RELEASED, Slot
from sandbox_engine.store import Store
from sandbox_engine.verdict import CommitId, Tier, TreeId

VERIFIED_EVERY = 20
"""After so many leases without an incident every file of the worktree is read and compared."""

_SETTINGS = "pytest.ini"
"""pytest looks for its settings in every folder above; this one ends the search."""

_GIT_DIR = frozenset(
    {"HEAD", "config", "info", "objects", "refs", "packed-refs", "worktrees", "shallow"}
)
_ADMIN = frozenset({"HEAD", "commondir", "gitdir", "index", "locked"})


@dataclass
class SlotSandbox:
    """A worktree that holds exactly one tree, for as long as its lease lasts."""

    root: Path
    inside: Path
    _slot: Slot
    _commit: CommitId
    _carried: Carried
    _variables: Mapping[str, str]
    _confinement: Confinement
    _keeper: Keeper
    _lease: int
    _has_incident: bool = field(default=False, init=False)

    def real(self, path: str) -> str:
        return os.path.realpath(path)

    def run(
        self,
        argv: list[str],
        limits: Limits,
        *,
        variables: Mapping[str, str] | None = None,
        input: bytes = b"",
        report_env: str | None = None,
        on_report: Callable[[bytes], None] | None = None,
    ) -> Completed:
        done = self._keeper.run(
            argv,
            cwd=self.root,
            env={**self._variables, **(variables or {})},
            limits=limits,
            confinement=self._confinement,
            marker=self._slot.marker,
            input=input,
            report_env=report_env,
            on_report=on_report,
        )
        self._has_incident |= done.stop not in (None, Stop.INTERRUPTED)
        return done

    def changed_files(self) -> list[str]:
        output = git.run_store_git(
            self._slot.admin,
            ["diff-files", "--name-only", "-z"],
            work_tree=self.root,
            index=self._slot.index,
            keep_fds=(self._lease,),
        )
        return [os.fsdecode(name) for name in output.split(b"\0") if name]

    def restore(self) -> None:
        _fill(self._slot, self._commit, self._carried, self._lease)

    def read(self, path: str) -> bytes | None:
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


@contextlib.contextmanager
def open_slot(store: Store, commit: CommitId, setup: Setup) -> Iterator[SlotSandbox]:
    """Lease a slot, make its worktree hold exactly the tree of `commit`, and yield it.

    Raise SandboxBusyError when none is free.
    """
    leased = slots.leased(store, setup.slots, setup.wait_s, setup.cancellation)
    with leased as (slot, lease):
        known = slots.state_of(slot)
        store_module.tidy(store)
        slots.write_state(slot, "moving")
        _fill(slot, commit, setup.carried, lease)
        count = _leases_since_verified(known)
        if count == 0:
            _verify(slot, commit, setup.carried, lease)
        provided = compiled.copied(setup.compiled, slot.folder / "compiled")
        with _scratch(slot) as scratch, open_keeper((lease,), setup.cancellation) as keeper:
            slots.write_state(slot, "running")
            private = {
                "HOME": str(scratch / "home"),
                "TMPDIR": str(scratch / "tmp"),
                "PYTHONPYCACHEPREFIX": str(provided),
                **PRIVATE,
            }
            sandbox = SlotSandbox(
                root=slot.root,
                inside=inside.FOLDER,
                _slot=slot,
                _commit=commit,
                _carried=setup.carried,
                _variables={**setup.variables, **private},
                _confinement=_confinement(slot, setup, scratch, provided),
                _keeper=keeper,
                _lease=lease,
            )
            yield sandbox
        has_incident = sandbox._has_incident
        slots.write_state(slot, "suspect" if has_incident else f"{RELEASED} {count + 1}")


def _leases_since_verified(state: str) -> int:
    """Return how many leases without an incident there were, 0 when it is time to look."""
    if state == "new":
        return 1
    word, _, count = state.partition(" ")
    return int(count or 0) % VERIFIED_EVERY if word == RELEASED else 0


def _confinement(slot: Slot, setup: Setup, scratch: Path, provided: Path) -> Confinement:
    written = (slot.root, slot.git_dir, scratch, provided)
    measured = tuple(map(str, written))
    if setup.tier is not Tier.LANDLOCK:
        return Confinement(measured=measured)
    objects = (slot.store.git_dir / "objects", slot.store.repository.objects_dir)
    return isolation.landlock_confinement(
        setup.view,
        readable=[*map(str, objects), str(inside.FOLDER), str(slot.store.slots / _SETTINGS)],
        writable=measured,
    )


def _fill(slot: Slot, commit: CommitId, carried: Carried, lease: int) -> None:
    try:
        _move(slot, commit, lease)
        carry.place(carried, slot.root)
    except OSError as error:
        raise git.foreign_failure(error, "the sandbox cannot be filled") from error
    disk.write_if_changed(slot.store.slots / _SETTINGS, b"[pytest]\n")


def _verify(slot: Slot, commit: CommitId, carried: Carried, lease: int) -> None:
    """Read every file of the worktree; where one is not as in the tree, make it anew."""
    fresh = slot.folder / "verified"
    fresh.unlink(missing_ok=True)

    def ask(*arguments: str) -> bytes:
        return git.run_store_git(
            slot.admin, arguments, work_tree=slot.root, index=fresh, keep_fds=(lease,)
        )

    # An index that was never in a work tree knows no times, so that all is read.
    ask("read-tree", commit)
    differing = ask("diff-files", "--name-only", "-z")
    others = ask("ls-files", "--others", "-z").split(b"\0")
    fresh.unlink()
    brought = {os.fsencode(path) for path in carried.all_paths}
    if differing or not brought.issuperset(filter(None, others)):
        disk.remove_tree(slot.root)
        _fill(slot, commit, carried, lease)


def _move(slot: Slot, commit: CommitId, lease: int) -> None:
    """Make the worktree hold exactly the tree of `commit`, whatever it holds now."""
    if not _is_intact(slot):
        _rebuild(slot, commit, lease)
    try:
        _check_out(slot, commit, lease)
    except (GitError, OSError):
        # A folder deeper than a path is long, or an index that was torn: made anew, it is neither.
        _rebuild(slot, commit, lease)
        _check_out(slot, commit, lease)


def _is_intact(slot: Slot) -> bool:
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


def _rebuild(slot: Slot, commit: CommitId, lease: int) -> None:
    disk.remove_tree(slot.root)
    slot.index.unlink(missing_ok=True)
    store_module.make_repository(slot.git_dir)
    _settle(slot)
    git.run_store_git(
        slot.git_dir,
        ["worktree", "add", "-q", "-f", "--detach", "--no-checkout", str(slot.root), commit],
        keep_fds=(lease,),
    )


def _settle(slot: Slot) -> None:
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


def _check_out(slot: Slot, commit: CommitId, lease: int) -> None:
    _settle(slot)
    held = slot.folder / "held"
    if not _has_same_attributes(slot.store, held, commit):
        # They change files whose blobs are the same, which git would leave as they are.
        slot.index.unlink(missing_ok=True)
    held.unlink(missing_ok=True)
    _empty_submodules(slot)
    _sweep(slot)
    # What is untracked goes first: git would read a `.gitattributes` that is not the tree's.
    for arguments in (
        ["clean", "-q", "-ffdx"],
        ["checkout", "-q", "-f", "-B", slot.branch, commit],
    ):
        git.run_store_git(
            slot.admin, arguments, work_tree=slot.root, index=slot.index, keep_fds=(lease,)
        )
    disk.write_whole(slot.admin / "index", slot.index.read_bytes())
    held.write_text(commit)


def _has_same_attributes(store: Store, held: Path, commit: CommitId) -> bool:
    try:
        before = held.read_text()
        return tree.has_same_attributes(store, *(_tree(store, id) for id in (before, commit)))
    except (FileNotFoundError, KeyError, ValueError):
        return False


def _tree(store: Store, commit: str) -> TreeId:
    import pygit2

    return TreeId(str(store.objects[commit].peel(pygit2.Commit).tree_id))


def _empty_submodules(slot: Slot) -> None:
    """Remove what is in submodules, of which git does not look into any."""
    if (slot.root / ".gitmodules").exists():
        entries = git.run_store_git(slot.admin, ["ls-files", "-s", "-z"], index=slot.index)
        for entry in entries.split(b"\0"):
            if entry.startswith(b"160000 "):
                folder = slot.root / os.fsdecode(entry.partition(b"\t")[2])
                disk.remove_tree(folder)
                folder.mkdir()


def _sweep(slot: Slot) -> None:
    """Remove what git would pass over, so that it makes anew what the tree has there.

    That are pipes, sockets and devices; repositories in folders of the tree; and files that have
    another name elsewhere, other modes than git gives, or attributes.
    """
    umask = disk.umask()
    root = os.fspath(slot.root)
    folders = [root]
    while folders:
        folder = folders.pop()
        _make_plain(folder, umask)
        with os.scandir(folder) as nodes:
            for node in nodes:
                is_git = node.name == ".git"
                if is_git and folder == root:
                    continue
                if node.is_dir(follow_symlinks=False) and not is_git:
                    folders.append(node.path)
                elif is_git or not _is_plain(node, umask):
                    disk.remove_tree(Path(node.path))


def _make_plain(folder: str, umask: int) -> None:
    """Give a folder back the mode that git gives, and take away attributes: they are inherited."""
    if stat.S_IMODE(os.lstat(folder).st_mode) != 0o777 & ~umask:
        os.chmod(folder, 0o777 & ~umask)
    for name in _attributes(folder):
        os.removexattr(folder, name)


def _is_plain(node: os.DirEntry[str], umask: int) -> bool:
    """Tell whether a node that is no folder is one that git could have made."""
    if node.is_symlink():
        return True
    status = node.stat(follow_symlinks=False)
    return (
        stat.S_ISREG(status.st_mode)
        and status.st_nlink == 1
        and stat.S_IMODE(status.st_mode) in (0o666 & ~umask, 0o777 & ~umask)
        and not _attributes(node.path)
    )


def _attributes(path: str) -> list[str]:
    """Return the attributes of a file that are not the system's own labels."""
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return []
        raise
    return [name for name in names if name.startswith(("user.", "system.posix_acl"))]


@contextlib.contextmanager
def _scratch(slot: Slot) -> Iterator[Path]:
    """Yield a new folder with `home` and `tmp`, on a path short enough for sockets."""
    folder = Path(os.path.realpath(tempfile.gettempdir()), f"se-{secrets.token_hex(6)}")
    # Named before it is made: a kill in between must not leave a folder that nobody knows.
    (slot.folder / "scratch").write_text(str(folder))
    folder.mkdir(mode=0o700)
    try:
        (folder / "home").mkdir()
        (folder / "tmp").mkdir()
        (folder / "home" / ".gitconfig").write_bytes(GIT_CONFIG)
        yield folder
    finally:
        slots.remove_scratch(slot)
