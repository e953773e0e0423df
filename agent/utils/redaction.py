"""Makes a server's words fit to be shown: short, without control characters, without secrets."""

from __future__ import annotations

import itertools

_LEAST = 8
"""Shorter ones, such as `EMPTY` or `ollama`, are no secrets: local servers ask for any word."""
_SHOWN_CHARS = 300


def redact(text: str, secret: str) -> str:
    """Return `text` with `***` for `secret`, and for any part of it of 8 characters or more.

    Servers echo keys cut short, and a text that is cut to a length may cut a key too.
    """
    parts = {secret[start : start + _LEAST] for start in range(len(secret) - _LEAST + 1)}
    is_secret = bytearray(len(text))
    for start in range(len(text) - _LEAST + 1):
        if text[start : start + _LEAST] in parts:
            is_secret[start : start + _LEAST] = b"\1" * _LEAST
    pieces = itertools.groupby(zip(text, is_secret, strict=True), lambda pair: pair[1])
    return "".join("***" if hidden else "".join(c for c, _ in run) for hidden, run in pieces)


def one_line(text: str) -> str:
    """Return `text` on one line, at most 300 characters of it, and nothing a terminal obeys."""
    line = "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
    return line if len(line) <= _SHOWN_CHARS else f"{line[:_SHOWN_CHARS]}..."
