"""Mails of format-patch against the real `git am`: same trees, authors, dates, messages."""

from __future__ import annotations

import base64
import quopri
import subprocess
from pathlib import Path

import pytest
from conftest import GitBox
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox_engine import Engine
from sandbox_engine.errors import PatchSyntaxError
from sandbox_engine.patch import File, apply_patch, parse_patch
from sandbox_engine.patch.edits import Patch
from sandbox_engine.patch.mbox import clean_subject, parse_mbox

DIFF = """\
---
 a.txt | 2 +-
 1 file changed, 1 insertion(+), 1 deletion(-)

diff --git a/a.txt b/a.txt
index 5626abf..814f4a4 100644
--- a/a.txt
+++ b/a.txt
@@ -1 +1 @@
-one
+two
"""
HEAD = """\
From 0123456789012345678901234567890123456789 Mon Sep 17 00:00:00 2001
From: Ada Lovelace <ada@example.org>
Date: Fri, 2 Jan 2026 03:04:05 +0100
"""
MAIL = f"{HEAD}Subject: [PATCH] Change one to two\n\nBecause.\n{DIFF}-- \n2.39.5\n\n"


def files(patch: Patch, tree: dict[bytes, File]) -> dict[bytes, bytes]:
    changed = {**tree, **apply_patch(patch, tree.get).files}
    return {path: file.content for path, file in changed.items() if file is not None}


def messages(text: str | bytes) -> list[tuple[int | None, str]]:
    with pytest.raises(PatchSyntaxError) as caught:
        parse_mbox(text.encode() if isinstance(text, str) else text)
    return [(finding.line, finding.message) for finding in caught.value.findings]


def test_who_when_and_why() -> None:
    patch = parse_patch(MAIL.encode())
    (note,) = patch.commits
    assert patch.format == "mbox"
    assert (note.author_name, note.author_email) == ("Ada Lovelace", "ada@example.org")
    assert note.date == "2026-01-02T03:04:05+01:00"
    assert note.message == patch.summary == "Change one to two\n\nBecause."
    assert (note.first_edit, note.end_edit) == (0, 1)
    assert files(patch, {b"a.txt": File(b"one\n")}) == {b"a.txt": b"two\n"}


def test_a_series_tells_which_edits_came_in_which_mail() -> None:
    second = MAIL.replace("one", "zwei").replace("a.txt", "b.txt").replace("Ada L", "Bob B")
    patch = parse_patch((MAIL + second + MAIL.replace("two", "3").replace("one", "two")).encode())
    assert [(note.first_edit, note.end_edit) for note in patch.commits] == [(0, 1), (1, 2), (2, 3)]
    assert patch.commits[1].author_name == "Bob Bovelace"
    assert patch.summary.startswith("Change one to two\n\nBecause.\n\nChange zwei")
    tree = {b"a.txt": File(b"one\n"), b"b.txt": File(b"zwei\n")}
    assert files(patch, tree) == {b"a.txt": b"3\n", b"b.txt": b"two\n"}


@pytest.mark.parametrize(
    ("raw", "name", "subject"),
    [
        ("From: =?UTF-8?q?J=C3=BCrgen_M=C3=BCller?= <j@x.de>", "Jürgen Müller", None),
        ("From: =?ISO-8859-1?B?SvxyZ2Vu?= =?utf-8?q?_M?= <j@x.de>", "Jürgen M", None),
        ('From: "Mueller, J." <j@x.de>', "Mueller, J.", None),
        ("From: j@x.de", "j@x.de", None),
        ("From: j@x.de (J (the) M)", "J (the) M", None),
        (r'From: "J \"the\" M" <j@x.de>', 'J "the" M', None),
        ("From: A <" + "(" * 1900 + " <j@x.de>", "A <" + "(" * 1900, None),
        ("From: =?utf-8?q?A=2C_B?= <j@x.de>", "A, B", None),
        ("From: =?rot13?q?abc?= <j@x.de>", "abc", None),
        ("Subject: Re: [PATCH v2 1/3] [RFC] Fix: it", None, "Fix: it"),
        ("Subject: a very long\n  line that\n\tis folded", None, "a very long line that is folded"),
        ("Subject: =?UTF-8?q?[PATCH]=20=E2=82=AC?=\n =?UTF-8?q?=20more?=", None, "€ more"),
        ("Subject: =?utf-8?b?broken?= x", None, "=?utf-8?b?broken?= x"),
    ],
)
def test_headers(raw: str, name: str | None, subject: str | None) -> None:
    key = raw.split(":")[0]
    lines = [line for line in HEAD.splitlines() if not line.startswith(key + ": ")]
    if key != "Subject":
        lines.append("Subject: it")
    note = parse_mbox("\n".join((*lines, raw, "", DIFF)).encode()).commits[0]
    assert note.author_name == (name or "Ada Lovelace")
    assert note.message == (subject or "it")


@pytest.mark.parametrize(
    ("subject", "expected"),
    [("re: Re:  [a][b] c", "c"), ("[x", "[x"), ("read: x", "read: x"), (": : x [y]", "x [y]")],
)
def test_subjects_are_cleaned_as_git_cleans_them(subject: str, expected: str) -> None:
    assert clean_subject(subject) == expected


@pytest.mark.parametrize("form", ["quoted-printable", "base64", "8bit", "multipart", "windows"])
def test_transfer_encodings(form: str) -> None:
    body = f"Weil so: é.\n{DIFF}".replace("two", "zwö=").encode()
    head = f"{HEAD}Subject: s\nContent-Type: text/plain; charset=UTF-8\n".encode()
    encoding = b"Content-Transfer-Encoding: %s\n\n"
    match form:
        case "quoted-printable":
            text = head + encoding % b"quoted-printable" + quopri.encodestring(body)
        case "base64":
            text = head + encoding % b"base64" + base64.encodebytes(body)
        case "multipart":
            head = head.replace(b"text/plain; charset=UTF-8", b'multipart/mixed; boundary="=x"')
            text = head + b"\nignored\n--=x\n\nWeil so: \xc3\xa9.\n---\n\n--=x\n"
            text += b"Content-Type: text/x-patch\n" + encoding % b"base64"
            text += base64.encodebytes(body) + b"--=x--\n\nignored\n"
        case "windows":
            text = (head + b"\n" + body).replace(b"\n", b"\r\n")
        case _:
            text = head + encoding % b"8bit" + body
    patch = parse_patch(text)
    assert patch.summary == "s\n\nWeil so: é."
    assert files(patch, {b"a.txt": File(b"one\n")}) == {b"a.txt": "zwö=\n".encode()}


def test_headers_in_the_body_replace_those_of_the_mail() -> None:
    body = "\nFrom: Bob <bob@example.org>\nSubject: other\n\n>From here on\n"
    note = parse_mbox(f"{HEAD}Subject: s\n\n{body}{DIFF}".encode()).commits[0]
    assert (note.author_email, note.message) == ("bob@example.org", "other\n\nFrom here on")


def test_a_saved_mail_without_its_from_line() -> None:
    text = "Received: by mail\n" + MAIL.split("\n", 1)[1]
    assert parse_patch(text.encode()).summary == "Change one to two\n\nBecause."


def test_lines_of_findings_are_those_of_the_text() -> None:
    bad = MAIL + MAIL.replace("index 5626abf..814f4a4 100644", "old mode xyz")
    (finding,) = messages(bad)
    assert finding[0] is not None
    assert bad.split("\n")[finding[0] - 1] == "old mode xyz"


def test_all_faults_of_mails_are_told() -> None:
    lost = MAIL.replace("From: Ada Lovelace <ada@example.org>\n", "")
    dateless = MAIL.replace("Fri, 2 Jan", "Some day")
    letter = f"{HEAD}Subject: [PATCH 0/2] letter\n\nHi\n-- \n2.39.5\n\n"
    encoded = MAIL.replace("Subject:", "Content-Transfer-Encoding: x-uu\nSubject:")
    found = messages(lost + dateless + letter + encoded)
    assert [message.split(";")[0] for _, message in found] == [
        "the mail has no `From:` header",
        "the `Date:` header cannot be read",
        "the mail holds no diff",
        "the transfer encoding of the mail is not known",
    ]
    size = MAIL.count("\n")
    assert [line for line, _ in found][:3] == [1, size, 2 * size]


def test_long_headers_are_refused() -> None:
    (found,) = messages(MAIL.replace("Subject:", "X: " + "x" * 70_000 + "\nSubject:"))
    assert "longer than" in found[1]


COMMITS: list[tuple[dict[str, str | bytes | None], str]] = [
    ({"a.txt": "1\n2\n3\n", "d/b.txt": "x\n", "bin": bytes(range(256))}, "base"),
    ({"a.txt": "1\n2\n3\n4", "d/ü.txt": "neu\n"}, "Ändern: a very long subject " + "word " * 30),
    ({"d/b.txt": None, "d/c.txt": "x\n"}, "[topic] Rename it\n\nBody.\n\n---x\n-- \nReally: yes\n"),
    ({"a.txt": "-- \n2.39.5\n", "-x": "---\ndiff -u\n"}, "Subject\n\n  indented\n\n>From me\n"),
    ({"e.md": "```\n<<<<<<< SEARCH\n=======\n>>>>>>> REPLACE\n```\nFrom x\n"}, "Add e"),
    ({"empty": "", "a.txt": "-- \n2.39.4\n"}, "Add an empty file"),
]


@pytest.fixture
def history(box: GitBox) -> GitBox:
    for content, message in COMMITS:
        box.commit(content, message)
    return box


@pytest.mark.parametrize(
    "options", [[], ["--attach"], ["--no-stat", "--no-signature"], ["-M", "-U1"]]
)
def test_the_tree_is_that_of_git_am(history: GitBox, tmp_path: Path, options: list[str]) -> None:
    text = format_patch(history, *options, f"-{len(COMMITS) - 1}")
    other = GitBox(tmp_path / "other")
    base = history.files(f"HEAD~{len(COMMITS) - 1}")
    other.commit({name: content for name, content in base.items()}, "base")
    other.git("-c", "core.quotePath=false", "am", "--keep-non-patch", text=text)
    patch = parse_patch(text)
    tree = {name.encode(): File(content) for name, content in base.items()}
    assert files(patch, tree) == {
        name.encode(): content for name, content in history.files().items()
    }
    assert history.files() == other.files()
    assert len(patch.commits) == len(COMMITS) - 1


def format_patch(box: GitBox, *options: str) -> bytes:
    done = subprocess.run(
        ["git", "format-patch", "--stdout", "--binary", *options, "HEAD"],
        cwd=box.top,
        capture_output=True,
        check=True,
    )
    return done.stdout


def test_notes_are_those_of_git_am(history: GitBox, tmp_path: Path) -> None:
    text = format_patch(history, f"-{len(COMMITS) - 1}")
    other = GitBox(tmp_path / "other")
    base = history.files(f"HEAD~{len(COMMITS) - 1}")
    other.commit({name: content for name, content in base.items()}, "base")
    other.git("am", text=text)
    log = (
        other.git("log", "--reverse", "-z", "--format=%an%n%ae%n%aI%n%B", "-5")
        .rstrip("\0")
        .split("\0")
    )
    notes = parse_patch(text).commits
    for entry, note in zip(log, notes, strict=True):
        name, address, date, message = entry.split("\n", 3)
        said = message.strip().replace(">From me", "From me")
        assert (note.author_name, note.author_email, note.date) == (name, address, date)
        assert note.message == said


def test_the_message_reaches_the_commit(project: GitBox, engine: Engine) -> None:
    diff = project.diff_to({"calc.py": "def add(a, b):\n    return b + a\n"})
    mail = f"{HEAD}Subject: [PATCH] Turn it round\n\nWhy not.\n---\n\n".encode() + diff
    verdict = engine.validate(mail, strategy="SYNTAX_ONLY")
    assert verdict.summary == "Turn it round\n\nWhy not."
    engine.promote(verdict, branch="main")
    assert project.git("log", "-1", "--format=%B").strip() == verdict.summary


@settings(max_examples=25, deadline=None)
@given(
    st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=60),
    st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=20),
    st.sampled_from([";", "é", "x"]),
)
def test_encoded_headers_are_read_back(subject: str, name: str, fill: str) -> None:
    from email.header import Header

    encoded = Header(f"x {fill}{subject}", "utf-8").encode(linesep="\n")
    author = Header(f"A{name}", "utf-8").encode(linesep="\n")
    text = f"{HEAD.splitlines()[0]}\nFrom: {author} <a@b.c>\nSubject: [PATCH] {encoded}\n\n{DIFF}"
    (note,) = parse_mbox(text.encode()).commits
    assert note.message == f"x {fill}{subject}"
    assert note.author_name == f"A{name}"
