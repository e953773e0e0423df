"""Candidate trees: a base commit and a patch become a tree, in memory and then in our own store.

A tree's id is known before anything is written, so that a patch that is refused, or known
already, costs no write; `write_tree` then makes the objects and must come to the same id. Names
are checked on bytes by `patch` before libgit2 sees one: libgit2 accepts some that git would not
check out.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from sandbox_engine import git, patch
from sandbox_engine.errors import GitError, PatchConflictError
from sandbox_engine.patch import NOTHING_MORE, File, Match, Patch, Policy
from sandbox_engine.store import Store, keep_own
from sandbox_engine.verdict import CommitId, EditRecord, Finding, TreeId

if TYPE_CHECKING:
    import pygit2

_TREE_MODE = 0o040000
LINK_MODE = 0o160000
_ATTEMPTS = 5
_SUBPROJECT = b"Subproject commit "
"""What a diff shows a submodule as, before the id of its commit."""


@dataclass(frozen=True, slots=True)
class CandidateTree:
    """A base commit with every edit of a patch made; see `write_tree` for its objects.

    `before` and `after` map each changed path to what it held and holds; None means absent.
    `edits` tells what became of each edit, `reading` is the reading of the patch that fitted.
    """

    id: TreeId
    base: CommitId
    base_tree: TreeId
    before: Mapping[bytes, File | None]
    after: Mapping[bytes, File | None]
    renames: Mapping[bytes, bytes]
    edits: tuple[EditRecord, ...] = ()
    reading: Patch | None = None

    @property
    def changed_paths(self) -> tuple[str, ...]:
        """The changed paths, as text that is safe to show."""
        return tuple(path.decode("utf-8", "backslashreplace") for path in sorted(self.after))

    @property
    def added(self) -> tuple[bytes, ...]:
        """Paths that the candidate has and the base has not."""
        return tuple(
            path
            for path, file in sorted(self.after.items())
            if file is not None and self.before[path] is None
        )


def build_tree(
    store: Store,
    base: CommitId,
    base_tree: TreeId,
    edits: Patch,
    *,
    match: Match = Match.DEFAULT,
    policy: Policy = NOTHING_MORE,
) -> CandidateTree:
    """Return `base` with every edit of `edits` made, or raise PatchError; no file is touched."""

    import pygit2

    objects = store.objects
    root = _root(store, base_tree)
    before: dict[bytes, File | None] = {}

    def read(path: bytes) -> File | None:
        if path not in before:
            before[path] = _read(objects, root, path)
        return before[path]

    def siblings(folder: bytes) -> list[bytes]:
        entry = _entry(root, folder) if folder else root
        return _names(entry) if isinstance(entry, pygit2.Tree) else []

    changes = patch.apply_patch(edits, read, match=match, policy=policy, siblings=siblings)
    _refuse_folders(root, changes.files)
    return CandidateTree(
        id=TreeId((_hashed(root, _nested(changes.files)) or _EMPTY_TREE).hex()),
        base=base,
        base_tree=base_tree,
        before={path: read(path) for path in changes.files},
        after=changes.files,
        renames=changes.renames,
        edits=changes.records,
        reading=changes.reading,
    )


def unchanged(candidate: CandidateTree) -> CandidateTree:
    """Return the candidate's base as a candidate, without a change."""
    return CandidateTree(candidate.base_tree, candidate.base, candidate.base_tree, {}, {}, {})


def restored(store: Store, candidate: CandidateTree, paths: Set[bytes]) -> CandidateTree:
    """Return the candidate with `paths` as they are in its base."""
    after = {path: file for path, file in candidate.after.items() if path not in paths}
    root = _root(store, candidate.base_tree)
    return CandidateTree(
        id=TreeId((_hashed(root, _nested(after)) or _EMPTY_TREE).hex()),
        base=candidate.base,
        base_tree=candidate.base_tree,
        before={path: candidate.before[path] for path in after},
        after=after,
        renames={new: old for new, old in candidate.renames.items() if new in after},
    )


def candidate_of(store: Store, base: CommitId, base_tree: TreeId, id: TreeId) -> CandidateTree:
    """Return the candidate that makes the tree `id` out of `base`.

    Raise GitError where an object is not there, as in a partial clone.
    """
    import pygit2

    try:
        old, new = _root(store, base_tree), _root(store, id)
        paths = list(differences(store, base_tree, id))
        before = {path: _read(store.objects, old, path) for path in paths}
        after = {path: _read(store.objects, new, path) for path in paths}
    except (KeyError, pygit2.GitError) as error:
        raise git.foreign_failure(error, "what changes cannot be read") from error
    return CandidateTree(id, base, base_tree, before, after, renames={})


def _names(folder: pygit2.Tree) -> list[bytes]:
    return [entry.raw_name or b"" for entry in folder]


def write_tree(store: Store, candidate: CandidateTree) -> None:
    """Write the candidate's objects into the store; those that are there already cost nothing."""
    import pygit2

    for attempt in range(_ATTEMPTS):
        try:
            _write_objects(store, candidate)
            keep_own(store, _made_objects(store, candidate))
            return
        except (OSError, pygit2.GitError) as error:
            # What was found in the user's database may be pruned before it is copied.
            if attempt == _ATTEMPTS - 1 or not isinstance(error, KeyError):
                raise git.foreign_failure(error, "the candidate tree cannot be written") from error


def _write_objects(store: Store, candidate: CandidateTree) -> None:
    root = store.objects[candidate.base_tree]
    made = _write(store.objects, root, _nested(candidate.after))
    id = str(made or store.objects.TreeBuilder().write())
    if id != candidate.id:
        raise GitError(
            f"libgit2 made the tree {id} where {candidate.id} was meant",
            remedy="`git fsck` tells whether the repository is sound; if it is, please report this",
        )


def _made_objects(store: Store, candidate: CandidateTree) -> set[str]:
    """Return the ids of the files that the candidate changes, and of all folders above them."""
    root = _root(store, candidate.id)
    made = {str(root.id)}
    for path, file in candidate.after.items():
        if file is not None and file.mode != LINK_MODE:
            made.add(blob_id(file))
        folder = path
        while folder := folder.rpartition(b"/")[0]:
            if (entry := _entry(root, folder)) is not None:
                made.add(str(entry.id))
    return made


def read_file(store: Store, candidate: CandidateTree, path: bytes) -> File | None:
    """Return the file at `path` of the candidate, or None."""

    if path in candidate.after:
        return candidate.after[path]
    root = _root(store, candidate.base_tree)
    return _read(store.objects, root, path)


def top_names(store: Store, candidate: CandidateTree) -> list[bytes]:
    """Return the names of all that lies at the top of the candidate or of its base, sorted."""
    changed = {path for path in candidate.after if b"/" not in path}
    return sorted(changed.union(_names(_root(store, candidate.base_tree))))


def differences(store: Store, one: TreeId, other: TreeId) -> Iterator[bytes]:
    """Yield the paths of the files in which two trees differ; equal folders cost nothing."""
    if one != other:
        yield from _differences(_root(store, one), _root(store, other), b"")


def has_same_attributes(store: Store, one: TreeId, other: TreeId) -> bool:
    """Tell whether all `.gitattributes` of two trees are the same; KeyError if a tree is gone."""
    return not any(map(is_attributes, differences(store, one, other)))


def is_attributes(path: bytes) -> bool:
    """Tell whether `path` is that of a file of attributes."""
    return path.rpartition(b"/")[2] == b".gitattributes"


def _differences(
    one: pygit2.Tree | None, other: pygit2.Tree | None, folder: bytes
) -> Iterator[bytes]:
    import pygit2

    before, after = _by_name(one), _by_name(other)
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if old and new and (old.id, old.filemode) == (new.id, new.filemode):
            continue
        path = folder + name
        below = [entry if isinstance(entry, pygit2.Tree) else None for entry in (old, new)]
        # A file may have become a folder, and then both count.
        if any(entry is not None and not isinstance(entry, pygit2.Tree) for entry in (old, new)):
            yield path
        if any(below):
            yield from _differences(below[0], below[1], path + b"/")


def _by_name(folder: pygit2.Tree | None) -> dict[bytes, pygit2.Object]:
    return {} if folder is None else {entry.raw_name or b"": entry for entry in folder}


def size(store: Store, tree: TreeId, paths: Iterable[bytes]) -> int:
    """Return how many bytes the files at `paths` of a tree hold together."""
    root = _root(store, tree)
    entries = (_entry(root, path) for path in paths)
    return sum(
        store.objects.odb.read_header(entry.id)[1]
        for entry in entries
        if entry is not None and entry.filemode != LINK_MODE
    )


def missing_folder(store: Store, candidate: CandidateTree, path: bytes) -> bytes | None:
    """Return what hides `path`, which the candidate has not, from a layer below it.

    It is the uppermost folder that the candidate has not, or `path` itself; None where the
    candidate has something else in the way already.
    """
    import pygit2

    root = _root(store, candidate.id)
    parts = path.split(b"/")
    for depth in range(1, len(parts) + 1):
        here = b"/".join(parts[:depth])
        entry = _entry(root, here)
        if entry is None:
            return here
        if not isinstance(entry, pygit2.Tree):
            # A submodule is an empty folder, through which what lies below would be seen.
            is_open = entry.filemode == LINK_MODE and depth < len(parts)
            return b"/".join(parts[: depth + 1]) if is_open else None
    return None


def has_entry(store: Store, candidate: CandidateTree, path: bytes) -> bool:
    """Tell whether the candidate, or its base, has a file or a folder at `path`."""
    return has_path(store, candidate.base_tree, path) or any(
        changed == path or changed.startswith(path + b"/")
        for changed, file in candidate.after.items()
        if file is not None
    )


def has_path(store: Store, tree: TreeId, path: bytes) -> bool:
    """Tell whether `tree` has anything at `path`."""
    return _entry(_root(store, tree), path) is not None


def blob_id(file: File) -> str:
    """Return the id, in hexadecimal, that git gives a file's content, or a submodule's commit."""
    return _id_of(file).hex()


def has_folder(store: Store, candidate: CandidateTree, path: bytes) -> bool:
    """Tell whether the candidate has a folder at `path`, or the base has."""
    import pygit2

    root = _root(store, candidate.base_tree)
    return isinstance(_entry(root, path), pygit2.Tree) or any(
        changed.startswith(path + b"/") for changed, file in candidate.after.items() if file
    )


def first_party(store: Store, tree: TreeId, roots: tuple[str, ...]) -> frozenset[str]:
    """Return the top-level modules that `tree` provides from `roots` (`""` is the tree itself)."""
    import pygit2

    names: set[str] = set()
    top = _root(store, tree)
    for root in roots:
        folder = _entry(top, os.fsencode(root)) if root else top
        if isinstance(folder, pygit2.Tree):
            names.update(_modules(folder))
    return frozenset(names)


def near_modules(store: Store, candidate: CandidateTree) -> frozenset[str]:
    """Return every top-level name under which a changed file could have been imported."""
    import pygit2

    root = _root(store, candidate.base_tree)
    names = set()
    for folder in _source_folders(candidate):
        entry = _entry(root, folder) if folder else root
        for inner in entry if isinstance(entry, pygit2.Tree) else ():
            names.add((inner.name or "").removesuffix(".py"))
    for path in candidate.after:
        names.update(os.fsdecode(part).removesuffix(".py") for part in path.split(b"/"))
    return frozenset(name for name in names if name.isidentifier())


def is_copied_from(store: Store, candidate: CandidateTree, module: str, file: Path) -> bool:
    """Tell whether `file`, loaded as `module`, is an installed copy of a file near the change.

    A module in a package counts by its place: the tree has a folder, itself no package, that
    holds it and a changed file. A single file needs the same content too, for names such as
    `types.py` are common.
    """
    tail = os.fsencode(module.replace(".", "/"))
    names = (tail + b".py", tail + b"/__init__.py")
    for folder in _source_folders(candidate):
        for name in names:
            path = folder + b"/" + name if folder else name
            known = _known(store, candidate, path)
            if known is None or _known(store, candidate, folder + b"/__init__.py") is not None:
                continue
            if b"/" in name or (file.is_file() and file.read_bytes() == known.content):
                return True
    return False


def _source_folders(candidate: CandidateTree) -> set[bytes]:
    """Return every folder above a changed file, the top as b""."""
    folders = {b""}
    for path in candidate.after:
        parts = path.split(b"/")[:-1]
        folders.update(b"/".join(parts[:count]) for count in range(1, len(parts) + 1))
    return folders


def _known(store: Store, candidate: CandidateTree, path: bytes) -> File | None:
    """Return the file at `path` as the base has it, else as the candidate has it."""
    return _read(store.objects, _root(store, candidate.base_tree), path) or read_file(
        store, candidate, path
    )


def _root(store: Store, tree: TreeId) -> pygit2.Tree:
    import pygit2

    return store.objects[tree].peel(pygit2.Tree)


def _modules(folder: pygit2.Tree) -> list[str]:
    import pygit2

    modules = []
    for entry in folder:
        name = entry.name or ""
        if isinstance(entry, pygit2.Tree):
            if name.isidentifier() and "__init__.py" in entry:
                modules.append(name)
        elif name.endswith(".py") and name[:-3].isidentifier():
            modules.append(name[:-3])
    return modules


def _entry(tree: pygit2.Tree, path: bytes) -> pygit2.Object | None:
    try:
        return tree[os.fsdecode(path)]
    except KeyError:
        return None


def _read(objects: pygit2.Repository, root: pygit2.Tree, path: bytes) -> File | None:
    import pygit2

    entry = _entry(root, path)
    if entry is None or isinstance(entry, pygit2.Tree):
        return None
    if entry.filemode == LINK_MODE:
        return File(b"%s%s\n" % (_SUBPROJECT, str(entry.id).encode()), LINK_MODE)
    assert isinstance(entry, pygit2.Blob)
    return File(entry.data, int(entry.filemode))


def _refuse_folders(root: pygit2.Tree, files: Mapping[bytes, File | None]) -> None:
    """Refuse a file where a folder stays: libgit2 would silently drop the folder."""
    import pygit2

    findings = []
    for path, file in files.items():
        folder = _entry(root, path) if file is not None else None
        if isinstance(folder, pygit2.Tree) and not _emptied(folder, path, files):
            shown = path.decode("utf-8", "backslashreplace")
            findings.append(
                Finding(
                    "path-conflict",
                    f"`{shown}` is a folder in the base, so no file can be put there",
                    path=shown,
                    hint="give the file another name, or delete everything in the folder too",
                )
            )
    if findings:
        raise PatchConflictError(
            findings[0].message, remedy=findings[0].hint or "", findings=findings
        )


def _emptied(folder: pygit2.Tree, path: bytes, files: Mapping[bytes, File | None]) -> bool:
    import pygit2

    for entry in folder:
        inner = path + b"/" + (entry.raw_name or b"")
        if isinstance(entry, pygit2.Tree):
            if not _emptied(entry, inner, files):
                return False
        elif files.get(inner, entry) is not None:
            return False
    return True


_Folder: TypeAlias = "dict[bytes, File | _Folder | None]"


def _nested(files: Mapping[bytes, File | None]) -> _Folder:
    nested: _Folder = {}
    # Deletions first: a folder that gives way to a file, or a file to a folder, ends as the new.
    for path, file in sorted(files.items(), key=lambda item: item[1] is not None):
        *folders, name = path.split(b"/")
        level = nested
        for folder in folders:
            inner = level.get(folder)
            if not isinstance(inner, dict):
                inner = level[folder] = {}
            level = inner
        level[name] = file
    return nested


def _hashed(base: pygit2.Object | None, changes: _Folder) -> bytes | None:
    """Return the id that `base` with `changes` has, or None when nothing is left in it."""
    import pygit2

    old = base if isinstance(base, pygit2.Tree) else None
    entries = {entry.raw_name or b"": (int(entry.filemode), entry.id.raw) for entry in old or ()}
    for name, change in changes.items():
        was = entries.pop(name, None)
        if isinstance(change, dict):
            below = _entry(old, name) if old and was and was[0] == _TREE_MODE else None
            if (inner := _hashed(below, change)) is not None:
                entries[name] = (_TREE_MODE, inner)
        elif change is not None:
            entries[name] = (change.mode, _id_of(change))
    return _tree_id(entries) if entries else None


def _id_of(file: File) -> bytes:
    if file.mode == LINK_MODE:
        return bytes.fromhex(_commit_of(file))
    return _hash_object(b"blob", file.content)


def _commit_of(link: File) -> str:
    return link.content.removeprefix(_SUBPROJECT).decode().strip()


def _tree_id(entries: Mapping[bytes, tuple[int, bytes]]) -> bytes:
    """Return the id of a tree; git sorts a folder as if its name ended in a slash."""
    items = sorted(entries.items(), key=lambda item: item[0] + b"/" * (item[1][0] == _TREE_MODE))
    return _hash_object(b"tree", b"".join(b"%o %s\0%s" % (m, name, id) for name, (m, id) in items))


def _hash_object(kind: bytes, content: bytes) -> bytes:
    header = b"%s %d\0" % (kind, len(content))
    return hashlib.sha1(header + content, usedforsecurity=False).digest()


_EMPTY_TREE = _hash_object(b"tree", b"")


def _write(
    objects: pygit2.Repository, base: pygit2.Object | None, changes: _Folder
) -> pygit2.Oid | None:
    """Write `base` with `changes` and return its id, or None when nothing is left in it."""
    import pygit2

    old = base if isinstance(base, pygit2.Tree) else None
    entries: dict[bytes, tuple[int, pygit2.Oid] | None] = {}
    for name, change in changes.items():
        if change is None:
            entries[name] = None
        elif isinstance(change, dict):
            inner = _write(objects, _entry(old, name) if old else None, change)
            entries[name] = None if inner is None else (_TREE_MODE, inner)
        else:
            entries[name] = (change.mode, _stored(objects, change))
    return _written(objects, old, entries)


def _stored(objects: pygit2.Repository, file: File) -> pygit2.Oid:
    import pygit2

    if file.mode == LINK_MODE:
        return pygit2.Oid(hex=_commit_of(file))
    return objects.create_blob(file.content)


def _written(
    objects: pygit2.Repository,
    old: pygit2.Tree | None,
    entries: Mapping[bytes, tuple[int, pygit2.Oid] | None],
) -> pygit2.Oid | None:
    if not all(_is_utf8(name) for name in entries):
        return _written_by_git(objects, old, entries)
    builder = objects.TreeBuilder(old) if old else objects.TreeBuilder()
    for name, entry in entries.items():
        if entry is not None:
            builder.insert(name.decode(), entry[1], entry[0])
        elif builder.get(name.decode()) is not None:
            builder.remove(name.decode())
    return builder.write() if len(builder) else None


def _written_by_git(
    objects: pygit2.Repository,
    old: pygit2.Tree | None,
    entries: Mapping[bytes, tuple[int, pygit2.Oid] | None],
) -> pygit2.Oid | None:
    """Do what `_written` does where a name is not UTF-8, which pygit2 cannot write."""
    import pygit2

    wanted = {(entry.raw_name or b""): (int(entry.filemode), entry.id) for entry in old or ()}
    for name, entry in entries.items():
        wanted.pop(name, None)
        if entry is not None:
            wanted[name] = entry
    if not wanted:
        return None
    kinds = {_TREE_MODE: b"tree", LINK_MODE: b"commit"}
    lines = [
        b"%06o %s %s\t%s\0" % (mode, kinds.get(mode, b"blob"), str(id).encode(), name)
        for name, (mode, id) in wanted.items()
    ]
    made = git.run_store_git(Path(objects.path), ["mktree", "-z"], input=b"".join(lines))
    return pygit2.Oid(hex=made.decode().strip())


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True
