"""The store: a bare repository of our own that borrows the user's objects.

Worktrees, candidate branches and the objects of patches live here and nowhere else, so the
user's `git worktree list`, `git branch`, index and object database never see them, and deleting
the folder is a full clean-up (docs/adr/0001-store-of-our-own.md). `objects/info/alternates`
names the user's object database; tags are mirrored, so that `git describe` answers in a sandbox.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox_engine import disk, git, lock
from sandbox_engine.cancellation import Cancellation
from sandbox_engine.errors import SandboxBusyError
from sandbox_engine.verdict import CommitId, TreeId

if TYPE_CHECKING:
    import pygit2

LOCK_WAIT_S = 60.0
PASSED_KEPT = 200
"""How many passed trees stay ready for promotion; older ones are forgotten first."""

_CONFIG = b"""\
[core]
\trepositoryformatversion = 0
\tfilemode = true
\tbare = true
\tlogallrefupdates = false
\tuntrackedCache = false
[index]
\tversion = 4
[advice]
\tdetachedHead = false
[gc]
\tauto = 0
"""
SCRATCH = re.compile(r"se-[0-9a-f]{12}")
"""Names of the folders that runs get in the temporary folder."""

_COMPILED = "compiled"
_USE = "use.lock"
ATTRIBUTES = b"* -filter\n"
_CACHEDIR_TAG = (
    b"Signature: 8a477f597d28d172789f06886806bc55\n"
    b"# This folder is a cache of sandbox-engine; see https://bford.info/cachedir/\n"
)


def cache_home() -> Path:
    """Return the folder of all stores: `$XDG_CACHE_HOME/sandbox-engine`, or under `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return folder / "sandbox-engine"


@dataclass(frozen=True)
class Store:
    """Where the engine keeps what belongs to one user repository."""

    folder: Path
    repository: git.Repository

    @property
    def git_dir(self) -> Path:
        return self.folder / "store.git"

    @property
    def slots(self) -> Path:
        return self.folder / "slots"

    @property
    def database(self) -> Path:
        return self.folder / "cache.sqlite3"

    @property
    def compiled(self) -> Path:
        """Where interpreters in sandboxes keep compiled files, beside nobody's sources.

        It mirrors absolute paths, so all stores share what was compiled of one environment.
        """
        return self.folder.parent / _COMPILED

    @functools.cached_property
    def objects(self) -> pygit2.Repository:
        """The store's objects together with the user's."""
        return git.open_objects(self.git_dir)

    @contextlib.contextmanager
    def locked(
        self, name: str, wait_s: float = LOCK_WAIT_S, cancellation: Cancellation | None = None
    ) -> Iterator[int]:
        """Hold the store's lock called `name`; see `lock.locked`."""
        path, what = self.folder / f"{name}.lock", f"the store's {name}"
        with lock.locked(
            path, timeout_s=wait_s, what=what, cancellation=cancellation
        ) as descriptor:
            yield descriptor


def open_store(repository: git.Repository, home: Path | None = None) -> Store:
    """Return the repository's store, made or mended where needed.

    Its settings are written anew whenever they are not as they should be: they decide what git
    runs, and code in a sandbox may have reached them.
    """
    home = cache_home() if home is None else home
    try:
        # Interpreters mirror the real path of what they compile below `compiled`.
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        store = Store(home.resolve() / repository.id, repository)
        _make_folders(store)
        with store.locked("store"):
            if not (store.git_dir / "HEAD").exists():
                _init(store)
            _sweep(store)
            _settle(store)
    except OSError as error:
        raise git.foreign_failure(error, f"the store in `{home}` cannot be used") from error
    return store


def _make_folders(store: Store) -> None:
    disk.write_if_changed(store.folder.parent / "CACHEDIR.TAG", _CACHEDIR_TAG)
    store.folder.mkdir(exist_ok=True, mode=0o700)
    store.slots.mkdir(exist_ok=True, mode=0o700)


def _init(store: Store) -> None:
    # A `git init` that is ended half-way leaves a folder that looks like a repository.
    half = store.folder / "store.git.new"
    make_repository(half)
    disk.remove_tree(store.git_dir)
    half.rename(store.git_dir)


def make_repository(git_dir: Path) -> None:
    """Make an empty bare repository at `git_dir`, in the place of whatever is there."""
    disk.remove_tree(git_dir)
    git.run_git(
        ["init", "-q", "--bare", "--template=", "--initial-branch=none", git_dir],
        env=git.sealed_environment(),
    )


def _sweep(store: Store) -> None:
    """Remove what processes that were killed left; whoever works here now has our lock."""
    git_dir = store.git_dir
    for folder in (store.folder, store.slots, git_dir, git_dir / "info", git_dir / "objects/info"):
        disk.sweep_halves(folder)
    references = (_loose(git_dir / "refs" / kind) for kind in ("tags", "passed"))
    for path in (*git_dir.glob("*.lock"), *itertools.chain.from_iterable(references)):
        if path.name.endswith(".lock"):
            path.unlink(missing_ok=True)


def _settle(store: Store) -> None:
    settle(store.git_dir, store.repository.objects_dir, store.repository.common_dir)


def settle(git_dir: Path, borrowed: Path, common_dir: Path) -> None:
    """Make the settings of a repository of ours what they must be.

    It borrows the objects in `borrowed`, and is as shallow as the user's repository at
    `common_dir`.
    """
    info = git_dir / "info"
    info.mkdir(exist_ok=True)
    for entry in info.iterdir():
        if entry.name != "attributes":
            disk.remove_tree(entry)
    (git_dir / "objects" / "info").mkdir(exist_ok=True)
    disk.write_if_changed(git_dir / "config", _CONFIG)
    disk.write_if_changed(info / "attributes", ATTRIBUTES)
    alternates = git_dir / "objects" / "info" / "alternates"
    disk.write_if_changed(alternates, os.fsencode(borrowed) + b"\n")
    mirror_file(common_dir / "shallow", git_dir / "shallow")


def mirror_file(source: Path, target: Path) -> None:
    """Make `target` hold what `source` holds, or be as absent."""
    try:
        disk.write_if_changed(target, source.read_bytes())
    except FileNotFoundError:
        target.unlink(missing_ok=True)


def tidy(store: Store) -> None:
    """Mirror the user's tags, and mend the settings; a few `stat` calls when all is well."""
    with store.locked("store") as held:
        # Git inherits the lock that we hold, so this one is of a git that was killed.
        (store.git_dir / "packed-refs.lock").unlink(missing_ok=True)
        _settle(store)
        _mirror_tags(store, held)


def _mirror_tags(store: Store, held: int) -> None:
    seen = store.folder / "tags"
    signature = tags_signature(store.repository)
    try:
        if seen.read_text() == signature:
            return
    except FileNotFoundError:
        pass
    _sweep(store)
    wanted = _with_objects(store, _tags(store.repository.common_dir))
    present = _tags(store.git_dir)
    # Deletions by themselves and first: the tag `v1` has to be gone before `v1/a` can be made.
    for lines in (
        [b"delete %s\n" % name for name in present.keys() - wanted.keys()],
        [b"update %s %s\n" % item for item in wanted.items() if present.get(item[0]) != item[1]],
    ):
        text = b"".join(lines)
        git.run_store_git(store.git_dir, ["update-ref", "--stdin"], input=text, keep_fds=(held,))
    git.run_store_git(store.git_dir, ["pack-refs"], keep_fds=(held,))
    disk.write_if_changed(seen, signature.encode())


def _tags(git_dir: Path) -> dict[bytes, bytes]:
    output = git.run_store_git(
        git_dir, ["for-each-ref", "--format=%(refname) %(objectname)", "refs/tags/"]
    )
    pairs = (line.rsplit(b" ", 1) for line in output.splitlines())
    return {name: target for name, target in pairs}


def _with_objects(store: Store, tags: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """Return those of `tags` whose object is there; git refuses to make the others."""
    names = b"".join(b"%s\n" % target for target in tags.values())
    answers = git.run_store_git(store.git_dir, ["cat-file", "--batch-check"], input=names)
    missing = {line.split()[0] for line in answers.splitlines() if line.endswith(b" missing")}
    return {name: target for name, target in tags.items() if target not in missing}


def tags_signature(repository: git.Repository) -> str:
    """Return a digest of the state of the files that hold the user's tags."""
    common_dir = repository.common_dir
    digest = hashlib.sha256()
    for path in (common_dir / "packed-refs", *_loose(common_dir / "refs" / "tags")):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        digest.update(f"{path}\0{status.st_mtime_ns}\0{status.st_size}\0{status.st_ino}\n".encode())
    return digest.hexdigest()


def _loose(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            yield Path(parent, name)


def commit_candidate(store: Store, base: CommitId, tree: TreeId) -> CommitId:
    """Return a commit of `tree` on `base` in the store; the same arguments give the same commit."""
    import pygit2

    parent = store.objects[base].peel(pygit2.Commit)
    author = pygit2.Signature(
        "sandbox-engine", "sandbox-engine@localhost", parent.commit_time, parent.commit_time_offset
    )
    try:
        made = store.objects.create_commit(None, author, author, "candidate", tree, [base])
    except (OSError, pygit2.GitError) as error:
        raise git.foreign_failure(error, "the candidate commit cannot be written") from error
    return CommitId(str(made))


def keep_own(store: Store, ids: Iterable[str]) -> None:
    """Make the store itself hold the objects `ids`: borrowed ones may be pruned by the user's git.

    libgit2 does not write what it finds anywhere.
    """
    import pygit2

    folder = store.git_dir / "objects"
    own = pygit2.Odb()
    own.add_backend(pygit2.OdbBackendLoose(os.fspath(folder), -1, False), 1)
    for id in ids:
        if not (folder / id[:2] / id[2:]).exists():
            kind, content = store.objects.odb.read(id)
            own.write(kind, content)


@contextlib.contextmanager
def in_use(store: Store) -> Iterator[None]:
    """Keep objects from being taken away: what is written now may be as old as it is known."""
    path = store.folder / _USE
    with lock.locked(path, timeout_s=LOCK_WAIT_S, what="the store's objects", shared=True):
        yield


@contextlib.contextmanager
def alone(store: Store) -> Iterator[bool]:
    """Hold the store's objects alone if nobody uses them, and tell whether that is so."""
    held = lock.try_lock(store.folder / _USE)
    try:
        yield held is not None
    finally:
        if held is not None:
            os.close(held)


def is_kept(store: Store, tree: TreeId) -> bool:
    """Tell whether `tree` is held for a promotion, with all its objects."""
    return f"refs/passed/{tree}" in store.objects.references


def keep_passed(store: Store, tree: TreeId, commit: CommitId) -> None:
    """Hold `commit`, whose tree passed, for a later promotion; the oldest are forgotten."""
    import pygit2

    folder = store.git_dir / "refs" / "passed"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with store.locked("store"):
            # Whoever left it was killed: it is made under this lock alone.
            (folder / f"{tree}.lock").unlink(missing_ok=True)
            store.objects.references.create(f"refs/passed/{tree}", commit, force=True)
    except (OSError, pygit2.GitError) as error:
        raise git.foreign_failure(error, "the passed tree cannot be held") from error
    _forget_oldest(folder)


def _forget_oldest(folder: Path) -> None:
    """Remove all but the newest PASSED_KEPT references; another process may be doing the same."""
    if len(os.listdir(folder)) <= PASSED_KEPT:
        return
    ages = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            ages.append((path.stat().st_mtime_ns, path))
    for _, path in sorted(ages)[:-PASSED_KEPT]:
        path.unlink(missing_ok=True)


def forget_passed(store: Store, before: float) -> None:
    """Forget the trees that passed before a time, in seconds since 1970."""
    with store.locked("store"):
        for path in _loose(store.git_dir / "refs" / "passed"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < before:
                    path.unlink()


def orphans(home: Path) -> list[Path]:
    """Return the stores whose repository is gone, as far as its objects are."""
    found = []
    for folder in _stores(home):
        with contextlib.suppress(FileNotFoundError):
            named = (folder / "store.git" / "objects" / "info" / "alternates").read_bytes()
            if not os.path.isdir(os.fsdecode(named.rstrip(b"\n"))):
                found.append(folder)
    return found


def remove_store(folder: Path) -> int:
    """Remove a store and what runs in it left elsewhere; return how many bytes that freed.

    Raise SandboxBusyError, with nothing removed, when a sandbox of it is in use.
    """
    with _unused(folder):
        _remove_scratch(folder)
        return _remove(folder)


def clear(home: Path | None = None, *, repository: git.Repository | None = None) -> int:
    """Remove the store of `repository`, or every store; return how many bytes were freed.

    Raise SandboxBusyError, with nothing removed, when a sandbox of it is in use.
    """
    home = (cache_home() if home is None else home).resolve()
    stores = [home / repository.id] if repository else sorted(_stores(home))
    freed = 0
    for folder in stores:
        if folder.is_dir():
            freed += remove_store(folder)
    return freed + _clear_compiled(home / _COMPILED)


def _clear_compiled(folder: Path) -> int:
    """Remove what is provided compiled and used by nobody; it is soon made again."""
    with contextlib.ExitStack() as held:
        paths = list(folder.glob("*.lock"))
        free = []
        for path in paths:
            if (descriptor := lock.try_lock(path)) is not None:
                held.callback(os.close, descriptor)
                free.append(path)
        if len(free) == len(paths):
            return _remove(folder)
        return sum(_remove(path.with_suffix("")) for path in free)


def _remove_scratch(folder: Path) -> None:
    """Remove what killed runs left in the temporary folder; only the store knows its names."""
    for named in folder.glob("slots/*.state/scratch"):
        scratch = Path(named.read_text())
        if SCRATCH.fullmatch(scratch.name):
            disk.remove_tree(scratch)


def _remove(folder: Path) -> int:
    size = disk.size_of(folder)
    disk.remove_tree(folder)
    return size


def _stores(home: Path) -> Iterator[Path]:
    if home.is_dir():
        yield from (entry for entry in home.iterdir() if (entry / "store.git").is_dir())


@contextlib.contextmanager
def _unused(folder: Path) -> Iterator[None]:
    with contextlib.ExitStack() as held:
        for path in [*folder.glob("*.lock"), *folder.glob("slots/*.state/lock")]:
            descriptor = lock.try_lock(path)
            if descriptor is None:
                raise SandboxBusyError(
                    f"the store at `{folder}` is in use (`{path.name}` is locked)",
                    remedy="wait for the validation that runs, or end it, and try again",
                )
            held.callback(os.close, descriptor)
        yield
