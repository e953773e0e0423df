"""Pages as a browser shows them: headless Chromium, and the pixels of what it drew."""

from __future__ import annotations

import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

_BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(
    _BROWSER is None, reason="no chromium here; `apt-get install chromium` installs it"
)


def browse(folder: Path, page: Path, *options: str) -> str:
    """Open a page with its profile in `folder`, and return what Chromium prints."""
    assert _BROWSER is not None
    quiet = (
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--force-color-profile=srgb", f"--user-data-dir={folder / 'profile'}"),
    )
    done = subprocess.run(
        [_BROWSER, *quiet, *options, page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


def pixels(path: Path) -> Iterator[tuple[int, int, int]]:
    """Yield the colors of a PNG without interlacing, 8 bits a channel; RFC 2083 has the filters."""
    content = path.read_bytes()
    at, data, width, channels = 8, b"", 0, 3
    while at < len(content):
        length, kind = struct.unpack(">I4s", content[at : at + 8])
        part = content[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            width, _, depth, color, *_, interlace = struct.unpack(">IIBBBBB", part)
            assert (depth, interlace) == (8, 0) and color in (2, 6)
            channels = 3 if color == 2 else 4
        elif kind == b"IDAT":
            data += part
        at += 12 + length
    raw = zlib.decompress(data)
    stride = width * channels
    before = bytearray(stride)
    for start in range(0, len(raw), stride + 1):
        row = _unfiltered(
            raw[start], bytearray(raw[start + 1 : start + 1 + stride]), before, channels
        )
        yield from ((row[at], row[at + 1], row[at + 2]) for at in range(0, stride, channels))
        before = row


def _unfiltered(kind: int, row: bytearray, before: bytearray, channels: int) -> bytearray:
    for at in range(len(row)):
        left = row[at - channels] if at >= channels else 0
        corner = before[at - channels] if at >= channels else 0
        above = before[at]
        guess = left + above - corner
        nearest = min((abs(guess - v), i, v) for i, v in enumerate((left, above, corner)))[2]
        predicted = (0, left, above, (left + above) // 2, nearest)[kind]
        row[at] = (row[at] + predicted) & 0xFF
    return row
