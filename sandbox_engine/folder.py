"""Reads a folder whose files are to be laid over a tree."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sandbox_engine.errors import PatchPolicyError, PatchSyntaxError, UsageError
from sandbox_engine.verdict import Finding

MAX_FILES = 10_000
MAX_BYTES = 256 * 2**20


@dataclass(slots=True)
class Folder:
    """The files below a folder by their relative paths, and which of them are executable."""

    files: dict[bytes, bytes] = field(default_factory=dict)
    executable: set[bytes] = field(default_factory=set)


def read_folder(top: Path) -> Folder:
    """Return every file below `top`; no link is followed and nothing is changed.

    Raises PatchPolicyError with a finding for each link, special file and `.git` in it,
    PatchSyntaxError if it holds too much, UsageError if it cannot be read.
    """
    folder = Folder()
    findings: list[Finding] = []
    left = MAX_BYTES
    try:
        for count, (path, mode) in enumerate(_entries(os.fsencode(top), b"")):
            if count >= MAX_FILES or left < 0:
                raise _too_much()
            if not stat.S_ISREG(mode):
                findings.append(_not_allowed(path, mode))
            elif not findings:
                left -= _read_file(folder, top, path, left)
    except OSError as error:
        raise UsageError(
            f"the folder `{top}` cannot be read: {error.strerror}",
            remedy="give a folder whose files you may read",
        ) from error
    if left < 0:
        raise _too_much()
    if findings:
        raise PatchPolicyError(findings[0].message, remedy="take these out", findings=findings)
    return folder


def _entries(top: bytes, below: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield path and mode of all that is no folder, and of each `.git`, which is not entered."""
    pending = [below]
    while pending:
        folder = pending.pop()
        with os.scandir(os.path.join(top, folder)) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                path = os.path.join(folder, entry.name)
                mode = entry.stat(follow_symlinks=False).st_mode
                if stat.S_ISDIR(mode) and entry.name.lower() != b".git":
                    pending.append(path)
                else:
                    yield path, mode


def _read_file(folder: Folder, top: Path, path: bytes, limit: int) -> int:
    """Put the file at `path` into `folder` and return its size; at most `limit` and one are read.

    A link that takes the file's place in the meantime is not followed.
    """
    name = os.path.join(os.fsencode(top), path)
    with os.fdopen(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        folder.files[path] = file.read(limit + 1)
        if os.fstat(file.fileno()).st_mode & stat.S_IXUSR:
            folder.executable.add(path)
    return len(folder.files[path])


def _not_allowed(path: bytes, mode: int) -> Finding:
    shown = path.decode("utf-8", "backslashreplace")
    if stat.S_ISDIR(mode):
        return Finding("forbidden-path", f"`{shown}` is a git folder", path=shown)
    if stat.S_ISLNK(mode):
        return Finding("symlink-refused", f"`{shown}` is a symbolic link", path=shown)
    return Finding("forbidden-path", f"`{shown}` is a special file", path=shown)


def _too_much() -> PatchSyntaxError:
    message = f"the folder holds more than {MAX_FILES} files or {MAX_BYTES} bytes"
    remedy = "leave out what does not change"
    return PatchSyntaxError(
        message, remedy=remedy, findings=[Finding("patch-malformed", message, hint=remedy)]
    )
