"""A patch in git's format as rows that can be shown beside line numbers.

Only what `git diff` itself writes is read: see git-diff(1), "Generating patch text with -p".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_HUNK = re.compile(r"@@ -(\d+)(?:,\d+)? \+(\d+)(?:,\d+)? @@")
_TOLD = (
    *("rename from ", "rename to ", "copy from ", "copy to ", "similarity index "),
    *("new file mode ", "deleted file mode ", "old mode ", "new mode "),
)
_QUOTED = re.compile(rb"\\([abfnrtv\"\\]|[0-7]{3})")
_ESCAPES = {b"a": 7, b"b": 8, b"f": 12, b"n": 10, b"r": 13, b"t": 9, b"v": 11, b'"': 34, b"\\": 92}


@dataclass(frozen=True, slots=True)
class Row:
    """A line: `sign` is `+`, `-`, ` `, `@` for the head of a hunk, `\\` for a missing newline.

    `old` and `new` are its 1-based numbers, None where it is not there.
    """

    sign: str
    text: str
    old: int | None = None
    new: int | None = None


@dataclass(slots=True)
class FileDiff:
    """What differs in one file; `notes` say what is no line of it, as that it was renamed."""

    path: str
    notes: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    added: int = 0
    removed: int = 0


def read_diff(patch: bytes) -> list[FileDiff]:
    """Return the files of `patch` in its order; bytes that are no UTF-8 are shown as escapes."""
    files: list[FileDiff] = []
    old = new = 0
    is_binary = False
    for line in patch.decode("utf-8", "backslashreplace").split("\n"):
        if line.startswith("diff --git "):
            files.append(FileDiff(_path_of(line)))
            old = new = 0
            is_binary = False
        elif not files or is_binary:
            continue
        elif head := _HUNK.match(line):
            old, new = int(head[1]), int(head[2])
            files[-1].rows.append(Row("@", line))
        elif line.startswith(("GIT binary patch", "Binary files ")):
            is_binary = True
            files[-1].notes.append("binary")
        elif not old and not new:
            _take_head(files[-1], line)
        elif line:
            old, new = _take_line(files[-1], line, old, new)
    return files


def _take_head(file: FileDiff, line: str) -> None:
    if line.startswith(_TOLD):
        file.notes.append(line)
    elif line.startswith(("--- ", "+++ ")) and line[4:] != "/dev/null":
        file.path = _unquoted(line[4:].rstrip("\t"))[2:]


def _take_line(file: FileDiff, line: str, old: int, new: int) -> tuple[int, int]:
    sign, text = line[0], line[1:]
    if sign == "+":
        file.rows.append(Row("+", text, None, new))
        file.added += 1
        return old, new + 1
    if sign == "-":
        file.rows.append(Row("-", text, old))
        file.removed += 1
        return old + 1, new
    if sign == " ":
        file.rows.append(Row(" ", text, old, new))
        return old + 1, new + 1
    file.rows.append(Row("\\", line))
    return old, new


def _path_of(line: str) -> str:
    """Return the path of a `diff --git` line, where both names are the same."""
    names = line.removeprefix("diff --git ")
    if names.startswith('"'):
        return _unquoted(names[: names.find('" ') + 1])[2:]
    half = names[: len(names) // 2]
    return half[2:]


def _unquoted(name: str) -> str:
    """Return a path as it is, of one that git has quoted as C does."""
    if not (name.startswith('"') and name.endswith('"')):
        return name
    raw = _QUOTED.sub(
        lambda found: bytes([_ESCAPES.get(found[1]) or int(found[1], 8)]), name[1:-1].encode()
    )
    return raw.decode("utf-8", "backslashreplace")


def numbered(files: list[FileDiff]) -> Iterator[tuple[str, int]]:
    """Yield path and number of every line that is shown as it is in the candidate."""
    for file in files:
        for row in file.rows:
            if row.new is not None:
                yield file.path, row.new
