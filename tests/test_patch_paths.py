"""Which paths a patch may name, and that a refusal's text is safe to print."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox_engine.patch import check_path
from sandbox_engine.patch.paths import ancestors, show

ALLOWED = [
    b"a",
    b"src/pkg/mod.py",
    b".gitignore",
    b".github/workflows/ci.yml",
    b".gitattributes",
    b"a.git",
    b"x.git/y",
    b".git2",
    b"git",
    b"...",
    b"a b/c d",
    b"-rf",
    b"con",
    b"a:b",
    b"\xff\xfe",
    "é/ü".encode(),
    b"a\\b",
    b"x" * 255,
]

FORBIDDEN = [
    b"",
    b"/",
    b"/etc/passwd",
    b"a/",
    b"a//b",
    b".",
    b"./a",
    b"a/./b",
    b"..",
    b"../a",
    b"a/../b",
    b"a\\..\\b",
    b"a\0b",
    b"a\nb",
    b"\x1b[31m",
    b"a\x7f",
    b".git",
    b".git/config",
    b"a/.git/hooks/x",
    b".GIT/x",
    b".Git",
    b".git.",
    b".git ",
    b".git. .",
    b".git::$INDEX_ALLOCATION/x",
    b".git:stream",
    b"git~1",
    b"GIT~1/config",
    b"a\\.git\\config",
    ".g\u200cit/config".encode(),
    ".gi\ufefft".encode(),
    "\u202e.git".encode(),
    ".git\u206f".encode(),
    b"x" * 256,
    b"a/" * 2048 + b"a",
]


@pytest.mark.parametrize("path", ALLOWED)
def test_an_ordinary_path_is_allowed(path: bytes) -> None:
    assert check_path(path) is None


@pytest.mark.parametrize("path", FORBIDDEN)
def test_a_path_that_is_never_allowed_has_a_reason(path: bytes) -> None:
    assert check_path(path)


@settings(deadline=None)
@given(st.binary(max_size=40))
def test_an_allowed_path_stays_below_the_root(path: bytes) -> None:
    if check_path(path) is None:
        root = b"/root/of/it"
        assert os.path.normpath(root + b"/" + path) == root + b"/" + path
        assert b".git" not in path.lower().split(b"/")


@settings(deadline=None)
@given(st.binary(max_size=500))
def test_shown_text_is_printable_and_short(text: bytes) -> None:
    shown = show(text)
    assert len(shown) <= 200
    assert all(char.isprintable() or char == "\t" for char in shown)


def test_ancestors_are_the_folders_above() -> None:
    assert ancestors(b"a/b/c") == [b"a", b"a/b"]
    assert ancestors(b"a") == []
