"""What a patch makes of the files of a folder, which need be no repository: nothing is written."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sandbox_engine.errors import PatchConflictError, UsageError
from sandbox_engine.patch import File, Match, apply_patch, parse_patch
from sandbox_engine.verdict import Finding

_LINK = 0o120000
_EXECUTABLE = 0o100755
_REGULAR = 0o100644


@dataclass(frozen=True, slots=True)
class NewFile:
    """What a file is to hold, and whether it can be run."""

    content: bytes
    is_executable: bool = False


def preview(
    folder: str | os.PathLike[str],
    patch: str | bytes,
    *,
    format: str | None = None,
    match: Match = Match.DEFAULT,
) -> Mapping[str, NewFile | None]:
    """Return what `patch` makes of the files below `folder`, by path: None for one that goes.

    Only what differs is in it. No path leaves the folder, by a link or otherwise. Raise PatchError
    with all that does not fit, and UsageError for a folder that does not exist.
    """
    top = Path(folder)
    if not top.is_dir():
        raise UsageError(f"`{top}` is not a folder", remedy="give the folder of a project")
    text = patch.encode("utf-8", "surrogateescape") if isinstance(patch, str) else patch
    changes = apply_patch(
        parse_patch(text, format=format), lambda path: _read(top, path), match=match
    )
    for path in changes.files:
        _refuse_folder(top, os.fsdecode(path))
    return {
        os.fsdecode(path): None if file is None else NewFile(file.content, file.mode == _EXECUTABLE)
        for path, file in changes.files.items()
    }


def _read(top: Path, path: bytes) -> File | None:
    """Return the file or the link at `path`; nothing that is behind a link."""
    *folders, name = os.fsdecode(path).split("/")
    current = top
    try:
        for part in folders:
            current /= part
            if not stat.S_ISDIR(current.lstat().st_mode):
                return None
        mode = (current / name).lstat().st_mode
        if stat.S_ISLNK(mode):
            return File(os.fsencode(os.readlink(current / name)), _LINK)
        if not stat.S_ISREG(mode):
            return None
        content = (current / name).read_bytes()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return File(content, _EXECUTABLE if mode & stat.S_IXUSR else _REGULAR)


def _refuse_folder(top: Path, path: str) -> None:
    """Refuse what is written where something else than a file is, or would have to be a folder."""
    current = top
    *folders, _ = path.split("/")
    blocked = [part for part in _places(current, folders) if part.exists() and not part.is_dir()]
    target = top / path
    if blocked or (os.path.lexists(target) and not target.is_file()):
        where = blocked[0] if blocked else target
        shown = where.relative_to(top).as_posix()
        finding = Finding(
            "path-conflict", f"`{shown}` stands where `{path}` is to be written", path=path
        )
        raise PatchConflictError(
            finding.message, remedy="give the file another name", findings=[finding]
        )


def _places(top: Path, folders: list[str]) -> list[Path]:
    return [top.joinpath(*folders[:count]) for count in range(1, len(folders) + 1)]
