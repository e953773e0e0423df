"""A refused edit as it should have been, written in the format that it came in.

Only text that is UTF-8 is offered: a correction that lost a byte on its way through JSON would
fail again.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence

from sandbox_engine.patch.nearest import equal_pairs

MAX_CHARS = 20_000
_MAX_LINES = 2_000
_MAX_PAIRS = 50_000


def hunk(at: int, found: Sequence[bytes], new: Sequence[bytes]) -> str | None:
    """Return the hunk that makes `new` of the lines `found` at `at` (0-based)."""
    if len(found) + len(new) > _MAX_LINES:
        return None
    first = at + 1 if found else at
    lines = [b"@@ -%d,%d +%d,%d @@\n" % (first, len(found), at + 1 if new else at, len(new))]
    if equal_pairs(found, new) > _MAX_PAIRS:
        return None
    matcher = difflib.SequenceMatcher(None, found, new, autojunk=False)
    for tag, start, end, begin, stop in matcher.get_opcodes():
        if tag == "equal":
            lines += [b" " + line for line in found[start:end]]
        else:
            lines += [b"-" + line for line in found[start:end]]
            lines += [b"+" + line for line in new[begin:stop]]
    marked = [_marked(line) for line in lines]
    return _text(b"".join(marked))


def _marked(line: bytes) -> bytes:
    return line if line.endswith(b"\n") else line + b"\n\\ No newline at end of file\n"


def block(
    format: str, path: bytes, old: bytes, new: bytes | None, line: int | None = None
) -> str | None:
    """Return the edit that puts `new` in the place of `old`; None for `new` takes it out."""
    if format == "search-replace":
        divided = b"<<<<<<< SEARCH\n%s=======\n%s>>>>>>> REPLACE\n"
        return _text(path + b"\n" + divided % (_whole(old), _whole(new or b"")))
    if format == "apply-patch":
        lines = [b"-" + line for line in old.splitlines(keepends=False)]
        lines += [b"+" + line for line in (new or b"").splitlines(keepends=False)]
        return _text(b"*** Update File: " + path + b"\n@@\n" + b"\n".join(lines) + b"\n")
    op: dict[str, object] = {
        "file_path": _text(path),
        "operation": "DELETE_BLOCK" if new is None else "REPLACE",
        "block_to_delete" if new is None else "block_to_replace": _text(old),
    }
    if new is not None:
        op["content"] = _text(new)
    if line is not None:
        op["line_number"] = line
    return None if None in op.values() else json.dumps(op, ensure_ascii=False)


def _whole(text: bytes) -> bytes:
    return text if not text or text.endswith(b"\n") else text + b"\n"


def _text(text: bytes) -> str | None:
    try:
        return text.decode() if len(text) <= MAX_CHARS else None
    except UnicodeDecodeError:
        return None
