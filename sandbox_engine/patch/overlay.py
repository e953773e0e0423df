"""The tree as the edits so far leave it, in memory, and what may be put where in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from sandbox_engine.patch.edits import (
    GITLINK,
    SYMLINK,
    EditRefused,
    EditStatus,
    File,
    PlanEdit,
    Policy,
    Rung,
)
from sandbox_engine.patch.paths import (
    ancestors,
    check_link,
    check_path,
    collision_key,
    show,
    special_kind,
)
from sandbox_engine.patch.seek import Search

Read = Callable[[bytes], File | None]
Siblings = Callable[[bytes], Collection[bytes]]
"""Names in a folder of the base (`b""` is its root); none for a folder that is not there."""

_SUBPROJECT = re.compile(rb"Subproject commit [0-9a-f]{40}\n")
MAX_WRITTEN_BYTES = 512 * 2**20
"""What all results of a patch may come to: a few bytes of it can copy a whole file each."""

REREAD = "read the file at the base commit and make the patch again"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an edit came to; `line` is where in the file (1-based) the first change is."""

    status: EditStatus
    message: str
    line: int | None = None
    rung: Rung | None = None
    is_beyond_git: bool = False


@dataclass(slots=True)
class Overlay:
    """The tree as the edits so far leave it, over the tree that `read` knows.

    `now` holds what was written, None for what was removed. `doomed` paths are removed by a later
    part of the same diff, so their names are free. `landed` paths were created, renamed or copied
    to; `writers` remembers which edit wrote a path last, `made`
    which edits of a plan were made of a path.
    """

    read: Read
    siblings: Siblings | None = None
    policy: Policy = field(default_factory=Policy)
    search: Search = field(default_factory=Search)
    base_files: dict[bytes, File | None] = field(default_factory=dict)
    now: dict[bytes, File | None] = field(default_factory=dict)
    gone: set[bytes] = field(default_factory=set)
    doomed: set[bytes] = field(default_factory=set)
    landed: set[bytes] = field(default_factory=set)
    writers: dict[bytes, int] = field(default_factory=dict)
    renames: dict[bytes, bytes] = field(default_factory=dict)
    made: dict[bytes, set[PlanEdit]] = field(default_factory=dict)
    written: int = 0

    def base(self, path: bytes) -> File | None:
        """Return the file before the patch."""
        if path not in self.base_files:
            self.base_files[path] = self.read(path)
        return self.base_files[path]

    def current(self, path: bytes) -> File | None:
        """Return the file as the edits so far leave it."""
        return self.now[path] if path in self.now else self.base(path)

    def write(self, path: bytes, file: File | None, index: int) -> None:
        """Put `file` at `path` for edit `index`, or take away what is there."""
        if file is not None and file != self.base(path):
            _check_content(path, file)
            self.written += len(file.content)
            if self.written > MAX_WRITTEN_BYTES:
                raise EditRefused(
                    EditStatus.TOO_LARGE,
                    "patch-too-large",
                    f"the patch would write more than {MAX_WRITTEN_BYTES} bytes in all",
                    hint="split it into smaller patches",
                )
        self.now[path] = file
        self.writers[path] = index

    def changed(self) -> dict[bytes, File | None]:
        """Return what differs from the base."""
        return {path: file for path, file in self.now.items() if file != self.base(path)}

    def check_name(self, path: bytes) -> None:
        """Raise EditRefused for a path that no patch, or not this one, may name."""
        if reason := check_path(path):
            raise EditRefused(
                EditStatus.FORBIDDEN_PATH,
                "forbidden-path",
                f"the path `{show(path)}` is not allowed: {reason}",
                hint="name files relative to the root of the repository, as `src/name.py`",
            )
        kind = special_kind(path)
        is_allowed = {
            None: True,
            "gitmodules": self.policy.allow_gitmodules,
            "gitattributes": self.policy.allow_gitattributes,
        }
        if not is_allowed[kind]:
            raise EditRefused(
                EditStatus.FORBIDDEN_PATH,
                f"{kind}-refused",
                f"a patch may not touch `{show(path)}`, which changes what git does",
                hint="leave this file out of the patch, or have it allowed",
            )

    def check_kind(self, mode: int, *, is_kept: bool = False) -> None:
        """Raise EditRefused for a link or submodule; a link that only moves or goes `is_kept`."""
        if mode == GITLINK and not self.policy.allow_gitlinks:
            raise EditRefused(
                EditStatus.UNSUPPORTED,
                "gitlink-refused",
                "this is a submodule, which a patch may not touch",
                hint="leave the submodule out of the patch",
            )
        if mode == SYMLINK and not is_kept and not self.policy.allow_symlinks:
            raise EditRefused(
                EditStatus.UNSUPPORTED,
                "symlink-refused",
                "a patch may neither make nor change a symbolic link",
                hint="edit the file that the link points to, or delete the link",
            )


def _check_content(path: bytes, file: File) -> None:
    """Raise EditRefused for a link that leads outside, or a submodule that names no commit."""
    if file.mode == SYMLINK and (reason := check_link(path, file.content)):
        raise EditRefused(
            EditStatus.FORBIDDEN_PATH,
            "link-outside",
            f"the symbolic link may not point to `{show(file.content)}`: {reason}",
            hint="let the link point to a file of the repository, relative to its own folder",
        )
    if file.mode == GITLINK and not _SUBPROJECT.fullmatch(file.content):
        raise EditRefused(
            EditStatus.MALFORMED,
            "gitlink-malformed",
            "a submodule holds one line: `Subproject commit` and a commit's full id",
            hint="make the diff with `git diff`",
        )


def conflicts(overlay: Overlay) -> dict[int, EditRefused]:
    """Return a refusal for every edit that made a file where the tree cannot hold it."""
    refused: dict[int, EditRefused] = {}
    seen = _Names(overlay)
    for path, index in overlay.writers.items():
        if overlay.now[path] is None or overlay.base(path) is not None:
            continue
        if (error := _below_file(path, overlay) or seen.collision(path)) is not None:
            refused.setdefault(index, error)
    return refused


def _below_file(path: bytes, overlay: Overlay) -> EditRefused | None:
    for folder in ancestors(path):
        there, before = overlay.current(folder), overlay.base(folder)
        if there is not None:
            return EditRefused(
                EditStatus.CONFLICT,
                "path-conflict",
                f"`{show(path)}` cannot be created, because `{show(folder)}` is no folder",
                hint=f"delete `{show(folder)}` in the same patch, or choose another path",
            )
        if before is not None and before.mode == SYMLINK:
            return EditRefused(
                EditStatus.FORBIDDEN_PATH,
                "symlink-ancestor",
                f"`{show(path)}` is below `{show(folder)}`, a symbolic link in the base",
                hint="replace the link in one patch and put files there in the next",
            )
    return None


@dataclass(slots=True)
class _Names:
    """The names in each folder, by what some file systems take them for."""

    overlay: Overlay
    folders: dict[bytes, dict[str, set[bytes]]] = field(default_factory=dict)

    def collision(self, path: bytes) -> EditRefused | None:
        """Return the refusal of a new `path` that differs from another in case or form alone."""
        folder = b""
        for part in path.split(b"/"):
            names = self._names(folder).setdefault(collision_key(part), {part})
            if part not in names:
                whole = _joined(folder, min(names))
                return EditRefused(
                    EditStatus.CONFLICT,
                    "name-collision",
                    f"`{show(path)}` is `{show(whole)}` to file systems that ignore case or"
                    " Unicode form",
                    hint="give the file a name that differs in more than that",
                )
            folder = _joined(folder, part)
        return None

    def _names(self, folder: bytes) -> dict[str, set[bytes]]:
        if folder not in self.folders:
            known: dict[str, set[bytes]] = {}
            for name in self.overlay.siblings(folder) if self.overlay.siblings else ():
                if not self._is_gone(_joined(folder, name)):
                    known.setdefault(collision_key(name), set()).add(name)
            self.folders[folder] = known
        return self.folders[folder]

    def _is_gone(self, path: bytes) -> bool:
        return path in self.overlay.now and self.overlay.now[path] is None


def _joined(folder: bytes, name: bytes) -> bytes:
    return folder + b"/" + name if folder else name
