"""Hostile patches in a table: name, text, and the finding code that must answer it.

They are made here rather than kept as files: a hundred of them differ in one name, and some are
megabytes of one letter.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from sandbox_engine.patch import File, Match
from sandbox_engine.patch.binary import blob_id

REGULAR, LINK, SUBMODULE = 0o100644, 0o120000, 0o160000
BASE: dict[bytes, File] = {
    b"a.py": File(b"x = 1\ny = 2\nz = 3\n", REGULAR),
    b"twice.py": File(b"def f():\n    pass\n\n\ndef g():\n    pass\n", REGULAR),
    b"crlf.txt": File(b"one\r\ntwo\r\nthree\r\n", REGULAR),
    b"d/b.py": File(b"b = 1\n", REGULAR),
    b"README": File(b"read me\n", REGULAR),
    "é.txt".encode(): File(b"e\n", REGULAR),
    b"link": File(b"a.py", LINK),
    b"out": File(b"/etc", LINK),
    b"same": File(b"x\n" * 20_000, REGULAR),
    b"data.bin": File(b"\0\1\2\3", REGULAR),
    b"deep": File(b"x" * 1_000_000, REGULAR),
    b"lines": File(b"line\n" * 100_000, REGULAR),
}


@dataclass(frozen=True)
class Hostile:
    """One patch, and the code of the first finding; `code` None is a patch that is taken."""

    name: str
    text: bytes
    code: str | None
    match: Match = Match.DEFAULT
    format: str | None = field(default=None)


def plan(*ops: dict[str, Any]) -> bytes:
    return json.dumps({"analysis": "", "patches_to_apply": list(ops)}).encode()


def insert(path: str, content: str = "x") -> dict[str, Any]:
    return {"operation": "INSERT", "file_path": path, "content": content}


def replace(path: str, block: str | None, content: str, **rest: Any) -> dict[str, Any]:
    return {
        "operation": "REPLACE",
        "file_path": path,
        "block_to_replace": block,
        "content": content,
        **rest,
    }


def pattern(path: str, block: str, content: str = "") -> dict[str, Any]:
    return replace(path, block, content, is_regex=True)


def quoted(path: bytes) -> bytes:
    escaped = b"".join(
        bytes((byte,)) if 32 <= byte < 127 and byte not in b'"\\' else b"\\%03o" % byte
        for byte in path
    )
    return b'"' + escaped + b'"'


def created(path: bytes, mode: int = REGULAR, body: bytes = b"@@ -0,0 +1 @@\n+x\n") -> bytes:
    old, new = quoted(b"a/" + path), quoted(b"b/" + path)
    head = b"diff --git %s %s\nnew file mode %06o\n--- /dev/null\n+++ %s\n"
    return head % (old, new, mode, new) + body


def moved(verb: bytes, old: bytes, new: bytes) -> bytes:
    names = quoted(b"a/" + old), quoted(b"b/" + new)
    said = verb, quoted(old), verb, quoted(new)
    return b"diff --git %s %s\n" % names + b"%s from %s\n%s to %s\n" % said


def linked(path: bytes, target: bytes) -> bytes:
    body = b"@@ -0,0 +1 @@\n+%s\n\\ No newline at end of file\n" % target
    return created(path, LINK, body)


def hunk(body: bytes, path: bytes = b"a.py") -> bytes:
    return b"diff --git a/%s b/%s\n--- a/%s\n+++ b/%s\n" % ((path,) * 4) + body


def binary(kind: bytes, size: int, data: bytes, path: bytes = b"data.bin", **ids: bytes) -> bytes:
    lines = []
    for at in range(0, len(data), 52):
        part = data[at : at + 52]
        count = len(part)
        letter = bytes((count + 64 if count <= 26 else count + 70,))
        lines.append(letter + base64.b85encode(part, pad=True) + b"\n")
    old = ids.get("old", blob_id(BASE[path].content))
    return (
        b"diff --git a/%s b/%s\nindex %s..%s 100644\nGIT binary patch\n%s %d\n"
        % (path, path, old, ids.get("new", b"1" * 40), kind, size)
        + b"".join(lines)
        + b"\n"
    )


_BAD_NAMES: dict[str, bytes] = {
    "dot dot": b"../x",
    "dot dot inside": b"d/../../x",
    "dot dot at the end": b"d/..",
    "dot": b"d/./x",
    "absolute": b"/etc/passwd",
    "git folder": b".git/hooks/pre-commit",
    "git folder, capitals": b".GIT/config",
    "git folder, mixed": b".Git/x",
    "git folder, NTFS short": b"git~1/x",
    "git folder, NTFS short capitals": b"GIT~1/config",
    "git folder, NTFS dot": b".git./x",
    "git folder, NTFS blank": b".git /x",
    "git folder, NTFS stream": b".git::$INDEX_ALLOCATION/x",
    "git folder, HFS joiner": ".g\u200cit/x".encode(),
    "git folder, HFS mark": ".gi\ufefft/x".encode(),
    "git folder, HFS direction": "\u202e.git/x".encode(),
    "git folder, nested": b"d/.git/config",
    "git folder, backslash": b"d\\.git\\config",
    "git file": b".git",
    "backslash dot dot": b"d\\..\\..\\x",
    "control byte": b"d/\x01x",
    "newline": b"a\nb",
    "escape": b"a\x1b[2Jb",
    "NUL": b"a\0b",
    "delete": b"a\x7fb",
    "tab": b"a\tb",
    "long component": b"x" * 256,
    "long path": b"d/" * 2048 + b"x",
    "slash at the end": b"d/x/",
}
_SPECIAL = {
    "gitmodules": (b".gitmodules", "gitmodules-refused"),
    "gitmodules, capitals": (b".GITMODULES", "gitmodules-refused"),
    "gitmodules, NTFS short": (b"GITMOD~1", "gitmodules-refused"),
    "gitmodules, NTFS hash": (b"gi7eba~1", "gitmodules-refused"),
    "gitmodules, HFS": (".git\u200cmodules".encode(), "gitmodules-refused"),
    "gitattributes": (b".gitattributes", "gitattributes-refused"),
    "gitattributes, below": (b"d/.gitattributes", "gitattributes-refused"),
    "gitattributes, NTFS short": (b"gitatt~1", "gitattributes-refused"),
    "gitattributes, NTFS dot": (b".gitattributes.", "gitattributes-refused"),
}


def names() -> Iterator[Hostile]:
    """Yield each forbidden name in every way that a patch can say one."""
    for name, path in _BAD_NAMES.items():
        yield Hostile(f"new: {name}", created(path), "forbidden-path")
        yield Hostile(f"rename: {name}", moved(b"rename", b"a.py", path), "forbidden-path")
        yield Hostile(f"copy: {name}", moved(b"copy", b"a.py", path), "forbidden-path")
        text = path.decode("utf-8", "surrogateescape")
        yield Hostile(f"plan: {name}", plan(insert(text)), "forbidden-path")
    for name, (path, code) in _SPECIAL.items():
        yield Hostile(f"new: {name}", created(path), code)
        yield Hostile(f"rename: {name}", moved(b"rename", b"a.py", path), code)
        yield Hostile(f"plan: {name}", plan(insert(path.decode())), code)


def links() -> Iterator[Hostile]:
    """Yield links, submodules, and files that would be written through them."""
    for name, target in {
        "to a file": b"a.py",
        "to outside": b"../../etc/passwd",
        "absolute": b"/etc/passwd",
        "to git": b".git/hooks",
        "up after down": b"d/../../x",
    }.items():
        yield Hostile(f"link {name}", linked(b"new-link", target), "symlink-refused")
    yield Hostile("link changed", hunk(b"@@ -1 +1 @@\n-a.py\n+/etc\n", b"link"), "symlink-refused")
    yield Hostile("link copied", moved(b"copy", b"link", b"l2"), "symlink-refused")
    yield Hostile("link to outside renamed", moved(b"rename", b"out", b"o2"), "link-outside")
    yield Hostile("below a link", created(b"link/x"), "path-conflict")
    yield Hostile("below a link to outside", created(b"out/passwd"), "path-conflict")
    gone = b"diff --git a/%s b/%s\ndeleted file mode 120000\n--- a/%s\n+++ /dev/null\n"
    gone += b"@@ -1 +0,0 @@\n-/etc\n\\ No newline at end of file\n"
    gone %= (b"out",) * 3
    yield Hostile("link replaced by a folder", gone + created(b"out/passwd"), "symlink-ancestor")
    yield Hostile("plan through a link", plan(insert("out/passwd")), "path-conflict")
    yield Hostile("plan on a link", plan(replace("link", None, "x")), "symlink-refused")
    made = linked(b"l", b"d") + created(b"l/x")
    yield Hostile("link made and used", made, "symlink-refused")
    body = b"@@ -0,0 +1 @@\n+Subproject commit %s\n" % (b"1" * 40)
    yield Hostile("submodule", created(b"sub", SUBMODULE, body), "gitlink-refused")
    yield Hostile("folder mode", created(b"sub", 0o040000), "gitlink-refused")
    turned = b"diff --git a/a.py b/a.py\nold mode 100644\nnew mode 120000\n"
    yield Hostile("file into link", turned, "wrong-type")
    turned = turned.replace(b"120000", b"160000")
    yield Hostile("file into submodule", turned, "gitlink-refused")


def collisions() -> Iterator[Hostile]:
    """Yield names that some file systems take for names that are there."""
    for name, path in {
        "capitals": b"A.PY",
        "capitals of a folder": b"D/new.py",
        "capitals below": b"d/B.py",
        "decomposed": "e\u0301.txt".encode(),
        "ignored character": "READ\u200cME".encode(),
        "long s": "\u017fame".encode(),
    }.items():
        yield Hostile(f"collision: {name}", created(path), "name-collision")
        yield Hostile(f"plan collision: {name}", plan(insert(path.decode())), "name-collision")
    both = created(b"new/Same.py") + created(b"new/same.py")
    yield Hostile("collision within the patch", both, "name-collision")
    yield Hostile("below a file", created(b"a.py/x"), "path-conflict")
    yield Hostile("created over another", created(b"a.py"), "file-exists")
    yield Hostile("renamed over another", moved(b"rename", b"a.py", b"README"), "file-exists")


def texts() -> Iterator[Hostile]:
    """Yield diffs that are corrupt, ambiguous or about something else."""
    good = b"@@ -1,3 +1,3 @@\n x = 1\n-y = 2\n+y = 3\n z = 3\n"
    yield Hostile("a good one", hunk(good), None)
    yield Hostile("huge counts", hunk(good.replace(b"3 +1", b"999999999999999999 +1")), None)
    yield Hostile("counts beyond numbers", hunk(good.replace(b"3 +1", b"9" * 50 + b" +1")), None)
    yield Hostile("negative start", hunk(good.replace(b"-1,3", b"--1,3")), None)
    yield Hostile("line beyond", hunk(good.replace(b"-1,3 +1", b"-99999999,3 +99999999")), None)
    cases = {
        "nothing": (b"", "patch-malformed"),
        "blanks": (b" \n" * 1000, "patch-malformed"),
        "prose": (b"rm -rf /\n" * 100, "patch-malformed"),
        "NULs": (b"\0" * 10_000, "patch-malformed"),
        "only a header": (b"diff --git a/a.py b/a.py\n", "patch-malformed"),
        "header without names": (b"diff --git x\n" + good, "patch-malformed"),
        "hunk without a file": (good, "patch-malformed"),
        "leftover": (hunk(good + b"+os.system('x')\n"), "patch-malformed"),
        "hunk dropped by git": (
            hunk(good) + b"--- a/README\n+++ b/README\n@@\n-read me\n+owned\n",
            "patch-malformed",
        ),
        "new and old": (
            created(b"n").replace(b"/dev/null", b"a/a.py"),
            "patch-malformed",
        ),
        "rename and copy": (moved(b"rename", b"a.py", b"n") + b"copy from x\n", "patch-malformed"),
        "bad mode": (created(b"n").replace(b"100644", b"xyz"), "patch-malformed"),
        "kind that is none": (created(b"n", 0o010644), "wrong-type"),
        "lost space": (hunk(good.replace(b"\n x", b"\nx")), "patch-malformed"),
        "text not there": (hunk(good.replace(b"x = 1", b"q = 9")), "hunk-not-found"),
        "text in places": (
            hunk(b"@@ @@\n-    pass\n+    return\n", b"twice.py"),
            "hunk-ambiguous",
        ),
        "missing file": (hunk(good, b"none.py"), "file-missing"),
        "context diff": (b"*** a.py\n--- a.py\n***************\n*** 1 ****\n", "patch-malformed"),
        "changed, then renamed": (
            hunk(good) + moved(b"rename", b"a.py", b"n.py"),
            "path-conflict",
        ),
        "CR only": (hunk(good).replace(b"\n", b"\r"), "patch-malformed"),
        "UTF-16": (hunk(good).decode().encode("utf-16"), "patch-malformed"),
    }
    for name, (text, code) in cases.items():
        yield Hostile(f"diff: {name}", text, code)
    exact = {
        "moved": hunk(b"@@ -2,2 +2,2 @@\n x = 1\n-y = 2\n+y = 3\n"),
        "line endings": hunk(b"@@ -1,3 +1,3 @@\n one\n-two\n+2\n three\n", b"crlf.txt"),
    }
    for name, text in exact.items():
        yield Hostile(f"exact: {name}", text, "hunk-inexact", Match.EXACT)


def binaries() -> Iterator[Hostile]:
    """Yield binary parts that are damaged, lie about themselves, or blow up."""
    good = zlib.compress(b"new")
    bomb = zlib.compress(b"\0" * 2**24, 9)
    yield Hostile("binary: truncated stream", binary(b"literal", 3, good[:-3]), "patch-malformed")
    yield Hostile("binary: no stream", binary(b"literal", 3, b""), "patch-malformed")
    yield Hostile("binary: garbage", binary(b"literal", 3, b"garbage!"), "patch-malformed")
    yield Hostile("binary: longer than said", binary(b"literal", 2, good), "patch-malformed")
    yield Hostile("binary: shorter than said", binary(b"literal", 9, good), "patch-malformed")
    yield Hostile("binary: bomb", binary(b"literal", 3, bomb), "patch-malformed")
    yield Hostile("binary: honest bomb", binary(b"literal", 2**40, bomb), "patch-malformed")
    many = binary(b"literal", 2**24, bomb) * 20
    yield Hostile("binary: many bombs", many, "patch-malformed")
    yield Hostile("binary: wrong result", binary(b"literal", 3, good), "binary-corrupt")
    yield Hostile("binary: other base", binary(b"literal", 3, good, old=b"2" * 40), "binary-stale")
    short = binary(b"literal", 3, good, old=b"1234567")
    yield Hostile("binary: short ids", short, "binary-unsupported")
    damaged = binary(b"literal", 3, good).replace(b"GIT binary patch\n", b"GIT binary patch\nx\n")
    yield Hostile("binary: no kind", damaged, "patch-malformed")
    yield Hostile("binary: no end", binary(b"literal", 3, good)[:-1], "patch-malformed")
    letter = binary(b"literal", 3, good).replace(b"literal 3\n", b"literal 3\nz")
    yield Hostile("binary: wrong length", letter, "patch-malformed")
    deltas = {
        "empty": b"",
        "source of another size": b"\x09\x03\x03new",
        "copy beyond": b"\x04\x09\x91\xff\x09",
        "reserved command": b"\x04\x03\x00",
        "insert beyond": b"\x04\x03\x7fnew",
        "result too long": b"\x04\x01\x03new",
        "result too short": b"\x04\x09\x03new",
        "number without end": b"\xff" * 30,
        "huge result": b"\x04\xff\xff\xff\xff\x7f" + b"\x90\x04" * 10,
        "copy without numbers": b"\x04\x03\xff",
    }
    for name, delta in deltas.items():
        text = binary(b"delta", len(delta), zlib.compress(delta))
        yield Hostile(f"delta: {name}", text, "binary-corrupt")
    said = b"diff --git a/data.bin b/data.bin\nindex 1..2 100644\n"
    said += b"Binary files a/data.bin and b/data.bin differ\n"
    yield Hostile("binary: only said", said, "binary-unsupported")


def plans() -> Iterator[Hostile]:
    """Yield plans that are malformed, endless, or mean another file."""
    cases: dict[str, tuple[bytes, str]] = {
        "nested": (b'{"analysis": ' + b"[" * 100_000, "patch-malformed"),
        "starts": (b'{"a": ' * 100_000, "patch-malformed"),
        "truncated": (plan(insert("n"))[:-5], "patch-malformed"),
        "two": (plan(insert("n")) * 2, "patch-malformed"),
        "empty": (plan(), "patch-malformed"),
        "huge number": (b'{"line_number": ' + b"9" * 9999 + b"}", "patch-malformed"),
        "half a surrogate": (plan(insert("n", "\ud800")), "op-malformed"),
        "surrogate in a path": (plan(insert("n\ud800")), "op-malformed"),
        "unknown operation": (plan({"operation": "EXEC", "file_path": "x"}), "op-malformed"),
        "block twice": (plan(replace("twice.py", "    pass", "")), "block-ambiguous"),
        "block everywhere": (plan(replace("same", "x", "")), "block-ambiguous"),
        "block nowhere": (plan(replace("a.py", "nope", "")), "block-not-found"),
        "block in no file": (plan(replace("none.py", "x", "")), "file-missing"),
        "overlap": (
            plan(replace("a.py", "x = 1\ny = 2", "q"), replace("a.py", "y = 2\nz", "r")),
            "edits-overlap",
        ),
        "pattern: exponential": (plan(pattern("deep", "(x+x+)+y")), "pattern-timeout"),
        "pattern: many exponential": (plan(*[pattern("deep", "(x+x+)+y")] * 40), "pattern-timeout"),
        "pattern: repeats": (plan(pattern("a.py", "((x{999}){999}){999}")), "pattern-malformed"),
        "pattern: recursion": (plan(pattern("a.py", "(?R)")), "pattern-malformed"),
        "pattern: nested": (plan(pattern("a.py", "(" * 5000)), "pattern-malformed"),
        "pattern: long": (plan(pattern("a.py", "x" * 20_000)), "pattern-malformed"),
        "pattern: broken": (plan(pattern("a.py", "[")), "pattern-malformed"),
        "pattern: nowhere": (plan(pattern("a.py", "nope")), "pattern-not-found"),
        "template: broken": (plan(pattern("a.py", "x", "\\g<9>")), "template-malformed"),
        "template: growth": (
            plan(pattern("deep", "(x*)", "\\1" * 200)),
            "file-too-large",
        ),
    }
    for name, (text, code) in cases.items():
        yield Hostile(f"plan: {name}", text, code)


def floods() -> Iterator[Hostile]:
    """Yield patches that ask for as much time and memory as they can."""
    ambiguous = b"@@ -%d,%d +%d,%d @@\n" % (9000, 2001, 9000, 2001)
    ambiguous += b" line\n" * 2000 + b"-lime\n+x\n"
    yield Hostile("flood: hunk sought everywhere", hunk(ambiguous, b"lines"), "hunk-not-found")
    many = b"".join(
        hunk(b"@@ -%d,3 +%d,3 @@\n line\n-none%d\n+x\n line\n" % (at, at, at), b"lines")
        for at in range(9, 2000)
    )
    yield Hostile("flood: many hunks nowhere", many, "hunk-not-found")
    copies = b"".join(
        moved(b"copy", b"lines", b"c%d" % at)
        + b"--- a/lines\n+++ b/c%d\n@@ -1,2 +1,2 @@\n line\n-line\n+x\n" % at
        for at in range(2000)
    )
    yield Hostile("flood: copies", copies, "hunk-ambiguous")
    blocks = [replace("lines", f"line\nnone {at}\n", "") for at in range(300)]
    yield Hostile("flood: blocks nowhere", plan(*blocks), "block-not-found")
    edits = plan(*[insert(f"f{at}") for at in range(10_001)])
    yield Hostile("flood: too many edits", edits, "patch-malformed")
    header = b"diff --git a/" + b"x " * 100_000 + b"\nnew file mode 100644\n"
    yield Hostile("flood: header", header, "patch-malformed")
    quotes = b'diff --git "' + b"\\" * 200_001 + b"\n"
    yield Hostile("flood: quotes", quotes, "patch-malformed")
    dashes = b"--- a\n+++ b\n" * 50_000
    yield Hostile("flood: headers", dashes, "patch-malformed")
    broken = hunk(b"@@ -1,9 +1,9 @@\nx\n+y\n") * 5000
    yield Hostile("flood: corrupt files", broken, "patch-malformed")
    stamps = b"--- a/f" + b" 00-00-00" * 100_000 + b"\n+++ b/f\n@@ -1 +1 @@\n-a\n+b\n"
    yield Hostile("flood: time stamps", stamps, "file-missing")


def envelopes() -> Iterator[Hostile]:
    """Yield the formats of models, with harm in them."""
    for name, path in {
        "dot dot": "../x",
        "git": ".git/hooks/x",
        "absolute": "/etc/passwd",
        "disguised": "GIT~1/x",
    }.items():
        added = f"*** Begin Patch\n*** Add File: {path}\n+x\n*** End Patch\n"
        yield Hostile(f"envelope: {name}", added.encode(), "forbidden-path")
        moved_to = "*** Begin Patch\n*** Update File: a.py\n*** Move to: %s\n@@\n-x = 1\n+x = 2\n"
        text = moved_to % path + "*** End Patch\n"
        yield Hostile(f"envelope move: {name}", text.encode(), "forbidden-path")
        block = f"{path}\n<<<<<<< SEARCH\nx\n=======\ny\n>>>>>>> REPLACE\n"
        yield Hostile(f"block: {name}", block.encode(), "forbidden-path", format="search-replace")
    update = b"*** Begin Patch\n*** Update File: %s\n@@\n-%s\n+y\n*** End Patch\n"
    yield Hostile("envelope: nowhere", update % (b"a.py", b"none"), "section-not-found")
    yield Hostile("envelope: twice", update % (b"twice.py", b"    pass"), "section-ambiguous")
    yield Hostile("envelope: no file", update % (b"none.py", b"x"), "file-missing")
    yield Hostile("envelope: link", update % (b"link", b"a.py"), "symlink-refused")


GROUPS: tuple[Callable[[], Iterator[Hostile]], ...] = (
    names, links, collisions, texts, binaries, plans, floods, envelopes,
)  # fmt: skip
CASES: tuple[Hostile, ...] = tuple(case for group in GROUPS for case in group())
