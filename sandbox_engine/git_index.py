"""Git's index as a file: some entries replaced in place, so that the rest need not be read.

`git update-index` reads, sorts and writes every entry. A sandbox's index differs from that of its
base by as many entries as the candidate changes, so it is put together from the base's own bytes.
The format is version 2 of https://git-scm.com/docs/index-format, without extensions.
"""

from __future__ import annotations

import array
import hashlib
import mmap
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

_HEADER = struct.Struct(">4sII")
_ENTRY = struct.Struct(">10I20sH")
_LONG_NAME = 0xFFF

Part: TypeAlias = "bytes | tuple[int, int]"
"""New bytes, or where old ones begin and end."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What the index says of one path: mode, blob id in hexadecimal, size in bytes, and time."""

    mode: int
    id: str
    size: int
    mtime_s: int


def find_offsets(index: bytes) -> array.array[int]:
    """Return where each entry of an index of version 2 begins; raise ValueError for another."""
    signature, version, count = _HEADER.unpack_from(index)
    if (signature, version) != (b"DIRC", 2):
        raise ValueError(f"not an index of version 2: {signature!r}, {version}")
    offsets = array.array("I")
    offset = _HEADER.size
    for _ in range(count):
        offsets.append(offset)
        end = index.index(b"\0", offset + _ENTRY.size)
        offset += _padded(end - offset)
    offsets.append(offset)
    return offsets


def splice(
    index: bytes | mmap.mmap, offsets: Sequence[int], changes: Mapping[bytes, Entry | None]
) -> list[Part]:
    """Return `index` with the entries of `changes` put in or replaced, or taken out for None.

    It comes as new bytes, and as ranges of the old ones; the checksum at the end is left out.
    `offsets` are those of `find_offsets`.
    """
    parts: list[Part] = []
    count = len(offsets) - 1
    position = 0
    for path, entry in sorted(changes.items()):
        found = _position(index, offsets, path)
        parts.append((offsets[position], offsets[found]))
        position = found
        if found < len(offsets) - 1 and _name(index, offsets[found]) == path:
            position += 1
            count -= 1
        if entry is not None:
            parts.append(_packed(path, entry))
            count += 1
    parts.append((offsets[position], offsets[-1]))
    return [_HEADER.pack(b"DIRC", 2, count), *parts]


def joined(index: bytes | mmap.mmap, parts: Sequence[Part]) -> bytes:
    """Return the whole index that `splice` has described."""
    made = b"".join(part if isinstance(part, bytes) else index[slice(*part)] for part in parts)
    return made + hashlib.sha1(made, usedforsecurity=False).digest()


def _position(index: bytes | mmap.mmap, offsets: Sequence[int], path: bytes) -> int:
    """Return the number of the first entry whose name is not before `path`."""
    low, high = 0, len(offsets) - 1
    while low < high:
        middle = (low + high) // 2
        if _name(index, offsets[middle]) < path:
            low = middle + 1
        else:
            high = middle
    return low


def _name(index: bytes | mmap.mmap, offset: int) -> bytes:
    start = offset + _ENTRY.size
    return index[start : index.find(b"\0", start)]


def _packed(path: bytes, entry: Entry) -> bytes:
    fields = _ENTRY.pack(
        *(entry.mtime_s, 0, entry.mtime_s, 0, 0, 0, entry.mode, os.getuid(), os.getgid()),
        *(entry.size & 0xFFFFFFFF, bytes.fromhex(entry.id), min(len(path), _LONG_NAME)),
    )
    return (fields + path).ljust(_padded(_ENTRY.size + len(path)), b"\0")


def _padded(length: int) -> int:
    """Return how long an entry of `length` bytes is with the one to eight NULs after it."""
    return (length + 8) // 8 * 8
