"""Whole files: fenced blocks that name a path, a zip archive, or the files of a folder.

What stands between the blocks, and blocks without a path, is prose. A block that leaves part of its
file out ("rest unchanged") is refused, because writing it would delete that part. Archives are read
here and not by `zipfile`, so that what was unpacked is known to be what every other tool sees:
sizes, names and sums of the central directory must be those of the entries themselves.
"""

from __future__ import annotations

import re
import stat
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sandbox_engine.patch.edits import EXECUTABLE, CreateFile, Patch
from sandbox_engine.patch.faults import Faults
from sandbox_engine.patch.fences import find_fences, name_in_info, name_in_line, read_fence
from sandbox_engine.patch.paths import check_path, show

MAX_ENTRIES = 10_000
MAX_UNPACKED_BYTES = 256 * 2**20
MAX_FILE_BYTES = 64 * 2**20
MAX_RATIO = 200
"""How many times larger than its packed form an archive may be; text packs 3 to 20 times."""
_FREE_BYTES = 2**20
"""Archives that unpack to no more than this may have any ratio."""

ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")

_NAME_REACH = 3
"""How many lines before a fence may hold the path; all of them but the path are blank."""
_MARKDOWN = (b".md", b".markdown", b".mdx", b".rst", b".qmd")
_ELISION = re.compile(
    rb"(?:#+|//+|--+|/\*+|<!--|;+|%+|\"\"\"|\{/\*)?[ \t]*\.\.\.[ \t]*\(?"
    rb"(?:the[ \t]+)?(?:rest|remaining|remainder|existing|unchanged|previous|same|other|omitted)\b",
    re.IGNORECASE,
)

_REMEDY = (
    "send each file whole, in a fenced block whose opening line names its path:"
    " ```` ```python src/name.py ````"
)
_ZIP_REMEDY = "make a plain zip archive of the files, without encryption or links"


@dataclass(frozen=True, slots=True)
class FileBlock:
    """A fenced block that names a path; `start` and `end` are the fence lines, 0-based.

    `is_named_inside` tells that the path stands on the fence itself. An `end` equal to the number
    of lines means that the block is not closed.
    """

    path: bytes
    start: int
    end: int
    is_named_inside: bool


def parse_whole_files(text: bytes) -> Patch:
    """Return the files that the fenced blocks in `text`, or the zip that it is, hold.

    Raises PatchSyntaxError with a finding for every block that is not closed, leaves a part out,
    or names a path that another block has named.
    """
    if text.startswith(ZIP_MAGIC):
        return parse_zip(text)
    lines = text.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    faults = Faults("files are", _REMEDY)
    edits: dict[bytes, CreateFile] = {}
    for block in find_file_blocks(lines):
        content = _content(lines, block, faults)
        edit = CreateFile(block.path, content, may_exist=True, patch_line=block.start + 1)
        if edits.setdefault(block.path, edit).content != content:
            first = edits[block.path].patch_line
            message = f"`{show(block.path)}` is there twice, on line {first} with other content"
            faults.add(block.start + 1, message)
        if faults.is_full:
            break
    if not edits:
        faults.add_if_none("the text holds no fenced block that names a path")
    faults.require_none()
    return Patch("files", tuple(edits.values()))


def find_file_blocks(lines: Sequence[bytes]) -> Iterator[FileBlock]:
    """Yield the fenced blocks in `lines` that name a path."""
    last = -1
    for at, (fence, end) in sorted(find_fences(lines).items()):
        if at <= last:
            continue
        inside = name_in_info(fence.info)
        path = inside or name_above(lines, at)
        if path is not None:
            yield FileBlock(path, at, end, inside is not None)
        last = end


def name_above(lines: Sequence[bytes], at: int) -> bytes | None:
    """Return the path that the line before the fence at `at` consists of, or None."""
    for line in lines[max(at - _NAME_REACH, 0) : at][::-1]:
        if line.strip():
            return name_in_line(line)
    return None


def _content(lines: Sequence[bytes], block: FileBlock, faults: Faults) -> bytes:
    body = lines[block.start + 1 : block.end]
    if block.end == len(lines):
        faults.add(block.start + 1, "the block is not closed; it may have been cut off")
    _refuse_inner_fences(lines, block, faults)
    for at, line in enumerate(body, block.start + 2):
        if b"..." in line and _ELISION.match(line.lstrip()):
            faults.add(
                at,
                "the file is not whole: this line stands for a part of it",
                source=line,
                hint="send all lines of the file, or an edit of another format",
            )
    indent = len(lines[block.start]) - len(lines[block.start].lstrip(b" "))
    if indent:
        body = [_outdented(line, indent) for line in body]
    return b"\n".join((*body, b"")) if body else b""


def _outdented(line: bytes, indent: int) -> bytes:
    """Return `line` without as much of its indentation as the fence has, as CommonMark says."""
    blank = len(line) - len(line.lstrip(b" "))
    return line[min(blank, indent) :]


def _refuse_inner_fences(lines: Sequence[bytes], block: FileBlock, faults: Faults) -> None:
    """Note a fence that opens within the block, which the block's own closing fence could close."""
    outer = read_fence(lines[block.start])
    if outer is None:
        return
    inner = [
        at
        for at in range(block.start + 1, block.end)
        if (fence := read_fence(lines[at])) and not outer.could_hold(fence)
    ]
    if not inner and block.path.lower().endswith(_MARKDOWN):
        inner = _doubtful_end(lines, block)
    if inner:
        message = (
            "a fence as long as the block's own stands here, so where the file ends is unclear"
        )
        hint = "open and close the block with a longer fence: ````"
        faults.add(inner[0] + 1, message, source=lines[inner[0]], hint=hint)


def _doubtful_end(lines: Sequence[bytes], block: FileBlock) -> list[int]:
    """Return the next fence if it is bare: that may be one more fence of the document itself."""
    for at in range(block.end + 1, len(lines)):
        if fence := read_fence(lines[at]):
            is_bare = not fence.info and name_above(lines, at) is None
            return [block.end] if is_bare else []
    return []


def patch_from_files(
    files: Mapping[bytes, bytes], executable: frozenset[bytes] = frozenset()
) -> Patch:
    """Return the patch that lays `files` over a tree; those in `executable` get that mode.

    Raises PatchSyntaxError for a path that no patch may name, or if there are no files.
    """
    faults = Faults("folder is", "give a folder that holds the files at their paths")
    if not files:
        faults.add_if_none("there are no files in it")
    for path in sorted(files):
        if reason := check_path(path):
            faults.add(None, f"the path `{show(path)}` is not allowed: {reason}")
    faults.require_none()
    return Patch("files", _laid_over(files, executable))


def _laid_over(
    files: Mapping[bytes, bytes], executable: frozenset[bytes]
) -> tuple[CreateFile, ...]:
    return tuple(
        CreateFile(path, files[path], EXECUTABLE if path in executable else None, may_exist=True)
        for path in sorted(files)
    )


@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry of the central directory of an archive."""

    name: bytes
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    system: int
    attributes: int
    offset: int

    @property
    def mode(self) -> int:
        """The Unix mode, or 0 where the archive was made on another system."""
        return self.attributes >> 16 if self.system == 3 else 0

    @property
    def is_folder(self) -> bool:
        return self.name.endswith(b"/")


class _BadZip(Exception):
    """The archive, or one of its entries, cannot be read; the text says why."""


_END_RECORD = struct.Struct("<4s4H2LH")
_CENTRAL = struct.Struct("<4s2B5H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_ENCRYPTED = 0x2041
_HAS_DESCRIPTOR = 8
_MEANINGFUL = _ENCRYPTED | _HAS_DESCRIPTOR


def parse_zip(archive: bytes) -> Patch:
    """Return the files of a zip archive, as a patch that lays them over a tree.

    The format is that of PKWARE's APPNOTE.TXT, of which only what every tool agrees on is taken:
    one volume, no ZIP64, stored or deflated entries. Raises PatchSyntaxError for encryption,
    links, entries that lie about themselves, and archives that unpack to too much.
    """
    faults = Faults("zip archive is", _ZIP_REMEDY)
    files: dict[bytes, bytes] = {}
    executable: set[bytes] = set()
    try:
        entries = _entries(archive)
        _require_modest(entries, len(archive))
    except _BadZip as error:
        faults.add(None, str(error))
        entries = []
    for entry in entries:
        try:
            _take_entry(archive, entry, files, executable)
        except _BadZip as error:
            faults.add(None, f"`{show(entry.name)}`: {error}")
    if not files:
        faults.add_if_none("there are no files in it")
    faults.require_none()
    return Patch("files", _laid_over(files, frozenset(executable)))


def _take_entry(
    archive: bytes, entry: _Entry, files: dict[bytes, bytes], executable: set[bytes]
) -> None:
    path = entry.name.rstrip(b"/") if entry.is_folder else entry.name
    if reason := check_path(path):
        raise _BadZip(f"the path is not allowed: {reason}")
    kind = stat.S_IFMT(entry.mode)
    if kind not in (0, stat.S_IFDIR if entry.is_folder else stat.S_IFREG):
        raise _BadZip("it is a link or another special file")
    content = _unpack(archive, entry)
    if entry.is_folder:
        if content:
            raise _BadZip("it is a folder with content")
        return
    if path in files:
        raise _BadZip("it is there twice")
    files[path] = content
    if entry.mode & 0o100:
        executable.add(path)


def _entries(archive: bytes) -> list[_Entry]:
    end = archive.rfind(b"PK\x05\x06", max(0, len(archive) - _END_RECORD.size - 0xFFFF))
    if end < 0 or len(archive) - end < _END_RECORD.size:
        raise _BadZip("it has no end record; it may have been cut off")
    record = _END_RECORD.unpack_from(archive, end)
    disks, counts, size, start = record[1:3], record[3:5], record[5], record[6]
    if any(disks) or counts[0] != counts[1]:
        raise _BadZip("it is one part of several")
    if 0xFFFF in counts or 0xFFFFFFFF in (size, start):
        raise _BadZip("it is of the ZIP64 kind")
    if counts[0] > MAX_ENTRIES:
        raise _BadZip(f"it has more than {MAX_ENTRIES} entries")
    if start + size != end or end + _END_RECORD.size + record[7] != len(archive):
        raise _BadZip("its directory is not where its end record says")
    entries: list[_Entry] = []
    at = start
    while at < end and len(entries) <= counts[0]:
        entry, at = _entry(archive, at, end)
        entries.append(entry)
    if at != end or len(entries) != counts[0]:
        raise _BadZip("its directory does not hold as many entries as it says")
    return entries


def _entry(archive: bytes, at: int, end: int) -> tuple[_Entry, int]:
    if end - at < _CENTRAL.size or archive[at : at + 4] != b"PK\x01\x02":
        raise _BadZip("its directory is broken")
    (
        _, _, system, _, flags, method, _, _, crc, packed, size,
        name_size, extra_size, comment_size, disk, _, attributes, offset,
    ) = _CENTRAL.unpack_from(archive, at)  # fmt: skip
    name_at = at + _CENTRAL.size
    following = name_at + name_size + extra_size + comment_size
    if following > end or disk:
        raise _BadZip("its directory is broken")
    name = archive[name_at : name_at + name_size]
    entry = _Entry(name, flags, method, crc, packed, size, system, attributes, offset)
    return entry, following


def _require_modest(entries: list[_Entry], archive_size: int) -> None:
    total = sum(entry.size for entry in entries)
    if total > MAX_UNPACKED_BYTES:
        raise _BadZip(f"it unpacks to more than {MAX_UNPACKED_BYTES} bytes")
    if total > max(_FREE_BYTES, MAX_RATIO * archive_size):
        raise _BadZip(f"it unpacks to more than {MAX_RATIO} times its size")
    spans = sorted((entry.offset, entry.packed) for entry in entries)
    end = 0
    for offset, packed in spans:
        if offset < end:
            raise _BadZip("its entries overlap")
        end = offset + _LOCAL.size + packed


def _unpack(archive: bytes, entry: _Entry) -> bytes:
    """Return the content of `entry`, which must be all that is there and what its sum says."""
    if entry.flags & _ENCRYPTED:
        raise _BadZip("it is encrypted")
    if entry.method not in (0, 8):
        raise _BadZip("it is packed in a way that is not known here")
    if entry.size > MAX_FILE_BYTES:
        raise _BadZip(f"it is larger than {MAX_FILE_BYTES} bytes")
    at = _start_of_data(archive, entry)
    packed = archive[at : at + entry.packed]
    if len(packed) != entry.packed:
        raise _BadZip("it is cut off")
    content = packed if entry.method == 0 else _inflate(packed, entry.size)
    if len(content) != entry.size or zlib.crc32(content) != entry.crc:
        raise _BadZip("its size or its sum is not what the archive says")
    if entry.flags & _HAS_DESCRIPTOR:
        _require_descriptor(archive, at + entry.packed, entry)
    return content


def _start_of_data(archive: bytes, entry: _Entry) -> int:
    if len(archive) - entry.offset < _LOCAL.size:
        raise _BadZip("it is cut off")
    magic, _, flags, method, _, _, crc, packed, size, name_size, extra_size = _LOCAL.unpack_from(
        archive, entry.offset
    )
    at = entry.offset + _LOCAL.size
    said = (crc, packed, size)
    is_later = bool(entry.flags & _HAS_DESCRIPTOR)
    agrees = said == (entry.crc, entry.packed, entry.size) or (is_later and said == (0, 0, 0))
    agrees = agrees and method == entry.method and not (flags ^ entry.flags) & _MEANINGFUL
    if magic != b"PK\x03\x04" or archive[at : at + name_size] != entry.name or not agrees:
        raise _BadZip("its own header says something else than the directory")
    return int(at + name_size + extra_size)


def _require_descriptor(archive: bytes, at: int, entry: _Entry) -> None:
    expected = struct.pack("<3L", entry.crc, entry.packed, entry.size)
    at += 4 * (archive[at : at + 4] == b"PK\x07\x08")
    if archive[at : at + 12] != expected:
        raise _BadZip("its data descriptor says something else than the directory")


def _inflate(packed: bytes, size: int) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = inflater.decompress(packed, size + 1)
    except zlib.error as error:
        raise _BadZip("its packed data is broken") from error
    if len(content) > size or not inflater.eof or inflater.unused_data:
        raise _BadZip("its packed data is not as long as the archive says")
    return content
