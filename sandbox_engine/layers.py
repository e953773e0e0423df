"""Base layers: the files of a base on disk, read-only for all, and what a candidate has over them.

A layer is checked out once and then serves every candidate whose tree is near, under any number
of sandboxes at once; no code under test ever sees it writable. When the base moves on, a layer
that nobody uses follows it, at the cost of what differs (docs/adr/0005-layers-and-tiers.md).
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sandbox_engine import disk, git, git_index, tree
from sandbox_engine import store as store_module
from sandbox_engine.containment import Layer
from sandbox_engine.errors import GitError
from sandbox_engine.git_index import Entry, Part
from sandbox_engine.patch import File
from sandbox_engine.shelf import Place, Shelf, open_shelf
from sandbox_engine.store import Store
from sandbox_engine.tree import CandidateTree
from sandbox_engine.verdict import CommitId, TreeId
from sandbox_engine.version import VERSION

KEPT = 3
"""How many layers stay on disk when no sandbox needs more."""

_MOST = 1_000
"""More than sandboxes are open at once, each of which may need one of its own."""

_NEAR_PATHS = 64
"""Up to so many paths that differ are written for each sandbox, and no layer is moved for them."""
_NEAR_BYTES = 4 * 1024**2
"""And as long as they are not larger together."""

_CONVERTING = (b"eol", b"ident", b"crlf", b"working-tree-encoding")
"""What attributes that make a file differ from its blob are made of."""

_CONFIG = b"""\
[core]
\trepositoryformatversion = 0
\tfilemode = true
\tbare = false
\tcheckStat = minimal
\ttrustctime = false
\tuntrackedCache = false
\tlogallrefupdates = true
[advice]
\tdetachedHead = false
[gc]
\tauto = 0
"""


@dataclass(frozen=True)
class Base:
    """A layer on disk that holds exactly `tree`, for as long as `lease` is open."""

    folder: Path
    tree: TreeId
    lease: int

    @property
    def files(self) -> Path:
        return self.folder / "files"

    @property
    def index(self) -> Path:
        """The index of the files."""
        return self.folder / "index"

    def spliced(self, changes: Mapping[bytes, Entry | None]) -> list[Part]:
        """Return the index with `changes`, as `git_index.splice` does."""
        with self.index.open("rb") as file, (self.folder / "offsets").open("rb") as table:
            index = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
            offsets = mmap.mmap(table.fileno(), 0, prot=mmap.PROT_READ)
            with index, offsets, memoryview(offsets) as numbers, numbers.cast("I") as places:
                return git_index.splice(index, places, changes)


def layers_folder(store: Store) -> Path:
    """Return the folder of all layers that may serve this process.

    What git writes has our umask, and another version may make them otherwise.
    """
    return store.folder / f"layers-{VERSION}-{disk.umask():03o}"


@contextlib.contextmanager
def held_base(store: Store, candidate: CandidateTree) -> Iterator[Base]:
    """Hold the layer that serves `candidate` best, made or moved where none does."""
    shelf = open_shelf(layers_folder(store), most=_MOST, kept=KEPT)
    place = _near(store, shelf, candidate) or _made(store, shelf, candidate)
    try:
        yield Base(place.folder, TreeId(place.label), place.lease)
    finally:
        os.close(place.lease)


def _near(store: Store, shelf: Shelf, candidate: CandidateTree) -> Place | None:
    """Return a layer that is near enough as it is, the nearest first."""

    def distance(label: str) -> int:
        return _distance(store, TreeId(label), candidate.base_tree)

    for number, label in sorted(shelf.labels().items(), key=lambda item: distance(item[1])):
        # It may move before it is held.
        place = shelf.hold(number, lambda label: distance(label) <= _NEAR_PATHS)
        if place is not None or distance(label) > _NEAR_PATHS:
            return place
    return None


def _made(store: Store, shelf: Shelf, candidate: CandidateTree) -> Place:
    """Return a layer of the candidate's base, out of one that nobody uses."""
    wanted = candidate.base_tree
    with store.locked("layers", wait_s=git.TIME_OUT_S):
        # Another one may have made it while we waited.
        place = _near(store, shelf, candidate) or shelf.fill(
            wanted, lambda folder, before, held: _move(store, folder, before, wanted, held)
        )
    assert place is not None, "there are more layers than sandboxes, so one is free"
    return place


def _move(store: Store, folder: Path, before: str | None, wanted: TreeId, lease: int) -> None:
    """Make the layer hold the tree `wanted`: from what it holds if that will do, else anew."""

    def read_tree(*arguments: str) -> None:
        git.run_store_git(
            store.git_dir,
            ["-c", "index.version=2", "read-tree", *arguments],
            work_tree=folder / "files",
            index=folder / "index",
            keep_fds=(lease,),
        )

    is_moved = before is not None and _is_movable(store, TreeId(before), wanted)
    if before is not None and is_moved:
        (folder / "index.lock").unlink(missing_ok=True)
        try:
            read_tree("-m", "-u", before, wanted)
        except GitError:
            # Garbage collection may have taken what was there.
            is_moved = False
    if not is_moved:
        disk.remove_tree(folder)
        (folder / "files").mkdir(parents=True, mode=0o755)
        read_tree("--reset", "-u", wanted)
    index = (folder / "index").read_bytes()
    (folder / "offsets").write_bytes(git_index.find_offsets(index).tobytes())


def _is_movable(store: Store, before: TreeId, wanted: TreeId) -> bool:
    try:
        return tree.has_same_attributes(store, before, wanted)
    except KeyError:
        return False


def _distance(store: Store, known: TreeId, wanted: TreeId) -> int:
    """Return how many paths two trees differ in, at most one more than count as near.

    A tree that garbage collection took away is further than any, and so is one with other
    attributes: they change files whose blobs are the same.
    """
    if known == wanted:
        return 0
    try:
        found = tree.differences(store, known, wanted)
        paths = list(itertools.islice(found, _NEAR_PATHS + 1))
        is_far = (
            any(map(tree.is_attributes, paths)) or tree.size(store, wanted, paths) > _NEAR_BYTES
        )
        return _NEAR_PATHS + 1 if is_far else len(paths)
    except KeyError:
        # libgit2 may still have the tree itself in memory, but not what is in it.
        return _NEAR_PATHS + 1


def candidate_layer(
    store: Store,
    base: Base,
    candidate: CandidateTree,
    git_folder: Mapping[bytes, bytes],
    carried: Sequence[str] = (),
) -> Layer:
    """Return what the candidate, whose objects are written, has over `base`.

    `git_folder` are the files of a `.git`; the index is added to them. `carried` are paths that
    are in a layer below, and must not be hidden with a folder that the candidate has not.
    """
    changes = dict(candidate.after)
    for path in tree.differences(store, base.tree, candidate.base_tree):
        changes.setdefault(path, tree.read_file(store, candidate, path))
    now_ns = time.time_ns()
    contents = _contents(store, base, candidate, changes)
    entries = _entries(changes, contents, now_ns)
    index = base.spliced(entries)
    files = [(path, _mode(file), contents[path]) for path, file in changes.items() if file]
    files += [
        (b".git/" + path, stat.S_IFREG | 0o644, content) for path, content in git_folder.items()
    ]
    kept = tuple(map(os.fsencode, carried))
    missing = (
        _hidden(tree.missing_folder(store, candidate, path), path, kept)
        for path, file in changes.items()
        # What the base has not must not be hidden: in a folder of one layer alone, overlayfs
        # lists what hides other files.
        if file is None and tree.has_path(store, base.tree, path)
    )
    gone = tuple(sorted(set(filter(None, missing))))
    return Layer(tuple(files), gone, now_ns, tuple(index), str(base.index))


def _hidden(folder: bytes | None, path: bytes, kept: tuple[bytes, ...]) -> bytes | None:
    """Return what is to be hidden of `folder` to hide `path`: less where something is kept."""
    if folder is None:
        return None
    return path if any(one.startswith(folder + b"/") for one in kept) else folder


def _entries(
    changes: Mapping[bytes, File | None], contents: Mapping[bytes, bytes], time_ns: int
) -> dict[bytes, Entry | None]:
    """Return what an index says of each change; None where a path is gone."""
    return {
        path: Entry(file.mode, tree.blob_id(file), len(contents[path]), time_ns // 10**9)
        if file
        else None
        for path, file in changes.items()
    }


def _mode(file: File) -> int:
    """Return the mode on disk; a submodule is an empty folder."""
    return stat.S_IFDIR | 0o755 if file.mode == tree.LINK_MODE else file.mode


def _contents(
    store: Store, base: Base, candidate: CandidateTree, changes: Mapping[bytes, File | None]
) -> dict[bytes, bytes]:
    """Return what the files in `changes` hold on disk: where attributes say so, git converts."""
    plain = {
        path: b"" if file.mode == tree.LINK_MODE else file.content
        for path, file in changes.items()
        if file
    }
    regular = [path for path, file in changes.items() if file and stat.S_ISREG(file.mode)]
    if not regular or not _is_converted(store, candidate, regular):
        return plain
    with tempfile.TemporaryDirectory(dir=store.folder) as folder:
        # Attributes are read from the index when the work tree is empty.
        (Path(folder) / "tree").mkdir()
        index = Path(folder) / "index"
        parts = base.spliced(_entries(changes, plain, 0))
        index.write_bytes(git_index.joined(base.index.read_bytes(), parts))
        git.run_store_git(
            store.git_dir,
            ["checkout-index", "-z", "--stdin", f"--prefix={folder}/out/"],
            work_tree=Path(folder) / "tree",
            index=index,
            input=b"".join(path + b"\0" for path in regular),
        )
        made = {path: Path(folder, "out", os.fsdecode(path)).read_bytes() for path in regular}
    return {**plain, **made}


def _is_converted(store: Store, candidate: CandidateTree, paths: Iterable[bytes]) -> bool:
    """Tell whether attributes near `paths` may make a file differ from its blob."""
    folders = {b""}
    for path in paths:
        parts = path.split(b"/")[:-1]
        folders.update(b"/".join(parts[: depth + 1]) + b"/" for depth in range(len(parts)))
    files = (tree.read_file(store, candidate, folder + b".gitattributes") for folder in folders)
    return any(file and any(word in file.content for word in _CONVERTING) for file in files)


def git_folder(
    store: Store, commit: CommitId, branch: str, objects: Sequence[str]
) -> dict[bytes, bytes]:
    """Return the files of a git folder on `branch` at `commit`, but for the index.

    It has the user's tags, is as shallow as their repository, and borrows the objects in the
    folders `objects`, as the sandbox sees them.
    """
    files = {
        b"HEAD": f"ref: refs/heads/{branch}\n".encode(),
        f"refs/heads/{branch}".encode(): f"{commit}\n".encode(),
        b"config": _CONFIG,
        b"info/attributes": store_module.ATTRIBUTES,
        b"objects/info/alternates": b"".join(os.fsencode(path) + b"\n" for path in objects),
    }
    for name in ("packed-refs", "shallow"):
        with contextlib.suppress(FileNotFoundError):
            files[name.encode()] = (store.git_dir / name).read_bytes()
    return files


def object_folders(store: Store) -> list[str]:
    """Return the folders that hold the store's objects, and the user's, and what those borrow.

    See `gitrepository-layout(5)` for `objects/info/alternates`.
    """
    found: list[str] = []
    pending = [os.fspath(store.git_dir / "objects")]
    while pending:
        folder = os.path.realpath(pending.pop())
        if folder in found or not os.path.isdir(folder):
            continue
        found.append(folder)
        with contextlib.suppress(FileNotFoundError):
            lines = Path(folder, "info", "alternates").read_bytes().splitlines()
            paths = [os.fsdecode(line) for line in lines if line and not line.startswith(b"#")]
            pending += [os.path.join(folder, path) for path in paths]
    return found
