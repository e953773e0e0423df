"""Writes a plan's operations into the files of a folder: all of them, or none.

Cycles do not use it, because what they change has been judged and is promoted by the engine. It is
for whoever has a folder of their own, and the name that users of the original import.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.errors import AgentError
from sandbox_engine import NewFile, preview

_EXECUTABLE = 0o111


def apply_patches(
    instructions: Sequence[Any] | Mapping[str, Any], base_path: str | os.PathLike[str] = "."
) -> tuple[str, ...]:
    """Make the operations of a plan in the folder `base_path`, and return the changed paths.

    `instructions` is the list of operations, or a plan that has one. All are tried in memory
    first, in their order, and none is written where one does not fit: PatchError then tells of
    every one. A block that is not found is an error, and so is a path that leaves the folder.
    Raise AgentError where a file cannot be written; what was written is put back then.
    """
    plan = instructions if isinstance(instructions, Mapping) else {"patches_to_apply": instructions}
    top = Path(base_path)
    files = preview(top, json.dumps(plan), format="json")
    _write_all(top, files)
    return tuple(sorted(files))


def _write_all(top: Path, files: Mapping[str, NewFile | None]) -> None:
    """Write everything beside its place first, and only then put it there."""
    made: list[Path] = []
    staged: dict[str, Path] = {}
    done: list[tuple[Path, Path | None]] = []
    path = top
    try:
        with tempfile.TemporaryDirectory(dir=top, prefix=".apply-") as name:
            space = Path(name)
            for number, (relative, file) in enumerate(files.items()):
                path = top / relative
                if file is not None:
                    staged[relative] = space / f"{number}.new"
                    _stage(staged[relative], file, path)
            try:
                for number, relative in enumerate(files):
                    path = top / relative
                    _make_folders(path.parent, top, made)
                    kept = _set_aside(path, space / f"{number}.old")
                    done.append((path, kept))
                    if relative in staged:
                        staged[relative].replace(path)
            except BaseException:
                _put_back(done, made)
                raise
    except OSError as error:
        raise AgentError(
            f"`{path}` cannot be written: {error.strerror}; nothing was changed",
            remedy="see that you may write there, and that there is space",
        ) from error


def _stage(staged: Path, file: NewFile, path: Path) -> None:
    staged.write_bytes(file.content)
    mode = path.stat().st_mode & 0o777 if path.exists() else staged.stat().st_mode & 0o777
    staged.chmod(mode | (mode >> 2 & _EXECUTABLE) if file.is_executable else mode & ~_EXECUTABLE)


def _make_folders(folder: Path, top: Path, made: list[Path]) -> None:
    missing = [
        one for one in (folder, *folder.parents) if one.is_relative_to(top) and not one.exists()
    ]
    for one in reversed(missing):
        one.mkdir()
        made.append(one)


def _set_aside(path: Path, kept: Path) -> Path | None:
    if not path.exists():
        return None
    path.replace(kept)
    return kept


def _put_back(done: Sequence[tuple[Path, Path | None]], made: Sequence[Path]) -> None:
    for path, kept in reversed(done):
        path.unlink(missing_ok=True)
        if kept is not None:
            kept.replace(path)
    for folder in reversed(made):
        with contextlib.suppress(OSError):
            folder.rmdir()
