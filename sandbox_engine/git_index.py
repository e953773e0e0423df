"""Git's index as a file: read, or some entries replaced in place so that the rest need not be.

`git update-index` reads, sorts and writes every entry. A sandbox's index differs from that of its
base by as many entries as the candidate changes, so it is put together from the base's own bytes.
The format is that of https://git-scm.com/docs/index-format: versions 2 to 4 are read, version 2
without extensions is written.
"""

from __future__ import annotations

import array
import hashlib
import mmap
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

_VERSIONS = (2, 3, 4)
_EXTENDED, _STAGE, _INTENT_TO_ADD = 0x4000, 0x3000, 0x2000
_EXTENSION = struct.Struct(">4sI")
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


@dataclass(frozen=True, slots=True)
class Known:
    """What git knows of a file it has read: blob id, and the file's status at that time.

    Times are in nanoseconds; `size` and `inode` are the lowest 32 bits.
    """

    id: bytes
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


def read_known(index: bytes) -> dict[bytes, Known]:
    """Return what an index says of each path that is merged and whose content is added.

    Raise ValueError for what is no whole index of versions 2 to 4 with SHA-1 ids, or shares its
    entries with another file.
    """
    try:
        return dict(_known(index))
    except (struct.error, IndexError) as error:
        raise ValueError("the index is torn") from error


def _known(index: bytes) -> Iterator[tuple[bytes, Known]]:
    signature, version, count = _HEADER.unpack_from(index)
    if signature != b"DIRC" or version not in _VERSIONS:
        raise ValueError(f"not an index that can be read: {signature!r}, {version}")
    offset, name = _HEADER.size, b""
    for _ in range(count):
        fields = _ENTRY.unpack_from(index, offset)
        flags, start = fields[11], offset + _ENTRY.size
        extended = 0
        if flags & _EXTENDED:
            extended = int.from_bytes(index[start : start + 2], "big")
            start += 2
        if version == 4:
            removed, start = _varint(index, start)
            if removed > len(name):
                raise ValueError("the index is torn")
            end = index.index(b"\0", start)
            name = name[: len(name) - removed] + index[start:end]
            offset = end + 1
        else:
            end = index.index(b"\0", start)
            name = index[start:end]
            offset += _padded(end - offset)
        if not flags & _STAGE and not extended & _INTENT_TO_ADD:
            ctime_ns = fields[0] * 10**9 + fields[1]
            mtime_ns = fields[2] * 10**9 + fields[3]
            yield name, Known(fields[10], fields[9], mtime_ns, ctime_ns, fields[5])
    # What follows are extensions, and a checksum of twenty bytes.
    while offset + _EXTENSION.size + 20 <= len(index):
        kind, size = _EXTENSION.unpack_from(index, offset)
        if kind == b"link":
            raise ValueError("a split index")
        offset += _EXTENSION.size + size


def _varint(index: bytes, offset: int) -> tuple[int, int]:
    """Return a number in the encoding of `OFS_DELTA`, and where it ends."""
    byte = index[offset]
    value = byte & 0x7F
    while byte & 0x80:
        offset += 1
        byte = index[offset]
        value = ((value + 1) << 7) | (byte & 0x7F)
    return value, offset + 1


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
