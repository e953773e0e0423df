"""Binary parts of a diff: git's base 85 lines, zlib streams and deltas, all under limits.

The formats are those of git's `apply.c` and `patch-delta.c`. Nothing is handed to libgit2, which
a truncated stream hangs. A stream is never inflated beyond the size that its header claims, and
that claim is capped.
"""

from __future__ import annotations

import base64
import hashlib
import re
import zlib

from sandbox_engine.patch.edits import BinaryHunk
from sandbox_engine.patch.matching import MAX_FILE_BYTES

MAX_INFLATED = 256 * 2**20
"""Bytes that the binary parts of one patch may come to."""

_START = re.compile(rb"(literal|delta) ([0-9]{1,18})")
_FULL_ID = re.compile(rb"[0-9a-f]{40}")


class BadBinary(Exception):
    """The binary part is damaged, or does not fit the file; the text says how."""


def blob_id(content: bytes) -> bytes:
    """Return the id, in hex, that git gives a blob of `content`."""
    digest = hashlib.sha1(b"blob %d\0" % len(content), usedforsecurity=False)
    digest.update(content)
    return digest.hexdigest().encode()


def is_full_id(id: bytes) -> bool:
    """Return whether `id` is a whole id and not a prefix of one."""
    return _FULL_ID.fullmatch(id) is not None


def read_hunk(lines: list[bytes], at: int) -> tuple[BinaryHunk, int] | None:
    """Return the binary hunk that starts at `lines[at]` and the line after it, or None.

    Raises BadBinary for one that starts and is damaged.
    """
    match = _START.match(lines[at]) if at < len(lines) else None
    if match is None:
        return None
    parts: list[bytes] = []
    at += 1
    while True:
        if at >= len(lines):
            raise BadBinary("the binary part has no blank line at its end")
        line = lines[at]
        at += 1
        if not line:
            break
        parts.append(_decoded(line))
    return BinaryHunk(b"".join(parts), int(match[2]), match[1] == b"delta"), at


def _decoded(line: bytes) -> bytes:
    """Return the 1 to 52 bytes of a line: one letter for their count, then groups of five."""
    letter, groups = line[:1], line[1:]
    count = letter[0] - 64 if letter.isupper() else letter[0] - 70
    room = len(groups) // 5 * 4
    if not letter.isalpha() or len(groups) % 5 or not room - 4 < count <= room:
        raise BadBinary("a line of the binary part has another length than its first letter says")
    try:
        return base64.b85decode(groups)[:count]
    except ValueError as error:
        raise BadBinary("a line of the binary part is not base 85") from error


def check(hunk: BinaryHunk, inflated: int) -> int:
    """Return `inflated` plus the bytes of `hunk`; raise BadBinary if it is damaged or too much."""
    inflated += hunk.size
    if hunk.size > MAX_FILE_BYTES or inflated > MAX_INFLATED:
        raise BadBinary("the binary parts of the patch claim too many bytes")
    _inflate(hunk.deflated, hunk.size)
    return inflated


def apply_binary(hunk: BinaryHunk, content: bytes) -> bytes:
    """Return what `hunk` makes of `content`; raise BadBinary where it cannot."""
    if hunk.size > MAX_FILE_BYTES:
        raise BadBinary(f"it claims more than {MAX_FILE_BYTES} bytes")
    inflated = _inflate(hunk.deflated, hunk.size)
    return _apply_delta(inflated, content) if hunk.is_delta else inflated


def _inflate(deflated: bytes, size: int) -> bytes:
    stream = zlib.decompressobj()
    try:
        result = stream.decompress(deflated, size + 1)
    except zlib.error as error:
        raise BadBinary("its compressed data is damaged") from error
    if len(result) != size or not stream.eof:
        raise BadBinary(f"its compressed data does not hold the {size} bytes it claims")
    return result


def _apply_delta(delta: bytes, source: bytes) -> bytes:
    """Return what `delta` makes of `source`: pieces of it and pieces of its own."""
    source_size, at = _varint(delta, 0)
    size, at = _varint(delta, at)
    if source_size != len(source):
        raise BadBinary(f"it is a change of {source_size} bytes, and the file has {len(source)}")
    if size > MAX_FILE_BYTES:
        raise BadBinary(f"it makes more than {MAX_FILE_BYTES} bytes")
    result = bytearray()
    while at < len(delta):
        command = delta[at]
        at += 1
        if command & 0x80:
            start, count, at = _copied(delta, at, command)
            piece = source[start : start + count]
        else:
            count = command
            piece = delta[at : at + count]
            at += count
        if not command or len(piece) != count or len(result) + count > size:
            raise BadBinary("its delta is damaged")
        result += piece
    if len(result) != size:
        raise BadBinary("its delta is damaged")
    return bytes(result)


def _varint(delta: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(delta) and shift < 63:
        byte = delta[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return value, at
    raise BadBinary("its delta is damaged")


def _copied(delta: bytes, at: int, command: int) -> tuple[int, int, int]:
    """Return the offset and count of a copy command, and where the next command starts."""
    numbers = [0, 0]
    for bit in range(7):
        if command & (1 << bit):
            if at >= len(delta):
                raise BadBinary("its delta is damaged")
            which, shift = (0, 8 * bit) if bit < 4 else (1, 8 * (bit - 4))
            numbers[which] |= delta[at] << shift
            at += 1
    return numbers[0], numbers[1] or 0x10000, at
