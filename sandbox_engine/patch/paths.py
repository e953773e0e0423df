"""Which paths a patch may name, decided on bytes and per component.

Libraries differ in what they let through: libgit2 takes `.g<ZWNJ>it`, newlines and ESC, and cuts a
name at NUL. So a name is judged here before any of them sees it. The disguises of `.git` are those
that git's own `verify_path` knows for NTFS and HFS+; they are refused on every platform, because
the commit may be checked out on any.
"""

from __future__ import annotations

import re
import unicodedata

MAX_PATH_BYTES = 4096
MAX_COMPONENT_BYTES = 255

_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_PLAIN = re.compile(rb"(?:[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}/)*[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}")
# U+200C..200F, U+202A..202E, U+206A..206F and U+FEFF: HFS+ drops them when it compares names.
_HFS_IGNORED = re.compile(
    rb"\xe2\x80[\x8c-\x8f]|\xe2\x80[\xaa-\xae]|\xe2\x81[\xaa-\xaf]|\xef\xbb\xbf"
)
_SHOWN_CHARS = 200


def check_path(path: bytes) -> str | None:
    """Return why `path` is never allowed in a patch, or None if it is."""
    if len(path) <= MAX_PATH_BYTES and _PLAIN.fullmatch(path):
        return None
    if not path:
        return "it is empty"
    if len(path) > MAX_PATH_BYTES:
        return f"it is longer than {MAX_PATH_BYTES} bytes"
    if control := _CONTROL.search(path):
        return f"it holds the control byte 0x{control[0][0]:02x}"
    if path.startswith(b"/"):
        return "it is absolute"
    if path.endswith(b"/"):
        return "it ends with a slash"
    for component in path.split(b"/"):
        if reason := _check_component(component):
            return reason
    return None


_SPECIAL = {b".gitmodules": "gitmodules", b".gitattributes": "gitattributes"}
_SHORT = {
    b"gi7eba": "gitmodules",
    b"gitmod": "gitmodules",
    b"gi7d29": "gitattributes",
    b"gitatt": "gitattributes",
}


def special_kind(path: bytes) -> str | None:
    """Return `gitmodules` or `gitattributes` if some file system takes the name for that file."""
    name = path.rpartition(b"/")[2]
    stem = _HFS_IGNORED.sub(b"", name).lower().partition(b":")[0].rstrip(b". ")
    if len(stem) == 8 and stem[6:7] == b"~" and stem[7:].isdigit():
        return _SHORT.get(stem[:6])
    return _SPECIAL.get(stem)


def collision_key(name: bytes) -> str:
    """Return what file systems that ignore case or Unicode form compare `name` by."""
    text = _HFS_IGNORED.sub(b"", name).decode("utf-8", "surrogateescape")
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())


def check_link(path: bytes, target: bytes) -> str | None:
    """Return why a link at `path` may not point to `target`, or None if it stays inside.

    Going up is for the start of a target alone: after a name, which may be a link itself, it
    could lead anywhere.
    """
    if target.startswith(b"/"):
        return "its target is absolute"
    parts = [part for part in target.split(b"/") if part not in (b"", b".")]
    ups = sum(part == b".." for part in parts)
    if parts[:ups] != [b".."] * ups:
        return "its target goes up after going down"
    if ups > path.count(b"/"):
        return "its target is outside the repository"
    if reason := check_path(b"/".join(parts[ups:]) or b"folder"):
        return f"its target is not allowed: {reason}"
    return None


def show(text: bytes, limit: int = _SHOWN_CHARS) -> str:
    """Return `text` for a message: undecodable and unprintable parts escaped, length capped."""
    cut = text[: 4 * limit].decode("utf-8", "backslashreplace")
    safe = "".join(
        char if char.isprintable() or char == "\t" else char.encode("unicode_escape").decode()
        for char in cut
    )
    return safe if len(safe) <= limit and len(text) <= 4 * limit else safe[: limit - 3] + "..."


def ancestors(path: bytes) -> list[bytes]:
    """Return the folders above `path`, the nearest last: `a/b/c` has `a` and `a/b`."""
    parts = path.split(b"/")
    return [b"/".join(parts[:count]) for count in range(1, len(parts))]


def _check_component(component: bytes) -> str | None:
    if not component:
        return "it has an empty component"
    if component == b".":
        return "it has a `.` component"
    if len(component) > MAX_COMPONENT_BYTES:
        return f"it has a component longer than {MAX_COMPONENT_BYTES} bytes"
    for part in component.split(b"\\"):
        if part == b"..":
            return "it has a `..` component"
        if _is_git_folder(part):
            return "it reaches into a `.git` folder"
    return None


def _is_git_folder(part: bytes) -> bool:
    """Return whether some file system takes `part` for `.git`."""
    stem = _HFS_IGNORED.sub(b"", part).lower().partition(b":")[0]
    return stem.rstrip(b". ") in (b".git", b"git~1")
