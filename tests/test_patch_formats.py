"""Telling formats apart: the outermost one counts, several are refused with their lines."""

from __future__ import annotations

import contextlib
import json
import time

import pytest

from sandbox_engine.errors import PatchError, PatchSyntaxError, UsageError
from sandbox_engine.patch import FORMATS, parse_patch
from sandbox_engine.patch.formats import detect, find_signs

DIFF = "diff --git a/a.py b/a.py\n--- a/a.py\n+++ b/a.py\n@@ -1 +1 @@\n-x\n+y\n"
PLAIN = DIFF.partition("\n")[2]
PLAN = json.dumps(
    {
        "analysis": "x",
        "patches_to_apply": [{"file_path": "a", "operation": "INSERT", "content": DIFF}],
    }
)
BLOCK = "a.py\n<<<<<<< SEARCH\nx\n=======\ny\n>>>>>>> REPLACE\n"
ENVELOPE = "*** Begin Patch\n*** Update File: a.py\n@@ def f():\n-x\n+y\n*** End Patch\n"
FILE = "```python a.py\nx = 1\n```\n"
MAIL = (
    "From 0123456789012345678901234567890123456789 Mon Sep 17 00:00:00 2001\n"
    "From: A <a@b.c>\nSubject: [PATCH] s\n\nWith blocks:\n\n"
    + BLOCK
    + "---\n"
    + DIFF
    + "-- \n2.39.5\n"
)
ALONE = {
    "json": PLAN,
    "unified": DIFF,
    "mbox": MAIL,
    "search-replace": BLOCK,
    "apply-patch": ENVELOPE,
    "files": FILE,
}


def added(path: str, text: str) -> str:
    """Return a diff that creates `path` with `text`."""
    lines = text.split("\n")
    body = "".join(f"+{line}\n" for line in lines)
    return f"--- /dev/null\n+++ b/{path}\n@@ -0,0 +1,{len(lines)} @@\n{body}"


def context(text: str) -> str:
    """Return a diff whose context lines are `text`."""
    lines = text.split("\n")
    body = "".join(f" {line}\n" for line in lines)
    return f"--- a/f\n+++ b/f\n@@ -1,{len(lines)} +1,{len(lines) + 1} @@\n{body}+x\n"


def test_every_format_has_a_text_here() -> None:
    assert tuple(ALONE) == FORMATS


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "wrap", ["{}", "\ufeff{}", "\n\n{}", "Sure, here it is:\n\n{}\nThat is all.\n"]
)
def test_each_format_is_recognised(form: str, wrap: str) -> None:
    text = wrap.replace("{}", ALONE[form]).encode()
    assert detect(text) == form
    assert parse_patch(text).format == form


@pytest.mark.parametrize("form", ["json", "unified", "search-replace", "apply-patch"])
@pytest.mark.parametrize("fence", ["```", "```diff", "~~~~ text"])
def test_a_fence_without_a_path_is_looked_into(form: str, fence: str) -> None:
    mark = fence.split(" ")[0].rstrip("dif")
    text = f"Here:\n\n{fence}\n{ALONE[form]}\n{mark}\n\nDone.\n"
    patch = parse_patch(text.encode())
    assert patch.format == form
    assert [edit.path for edit in patch.edits] == [b"a" if form == "json" else b"a.py"]


@pytest.mark.parametrize("inner", FORMATS)
def test_what_a_diff_holds_is_no_sign(inner: str) -> None:
    assert detect(added("doc.md", ALONE[inner]).encode()) == "unified"
    assert detect(context(ALONE[inner]).encode()) == "unified"
    assert detect(f"```diff\n{context(ALONE[inner])}```\n".encode()) == "unified"


@pytest.mark.parametrize("inner", FORMATS)
def test_what_other_formats_hold_is_no_sign(inner: str) -> None:
    text = ALONE[inner]
    op = {"file_path": "a", "operation": "INSERT", "content": text}
    assert detect(json.dumps({"patches_to_apply": [op]}, indent=1).encode()) == "json"
    op["content"] = text.split("\n")  # type: ignore[assignment]
    assert detect(f"Plan:\n```json\n{json.dumps([op], indent=1)}\n```\n".encode()) == "json"
    body = "".join(f"+{line}\n" for line in text.split("\n"))
    envelope = f"*** Begin Patch\n*** Add File: doc.md\n{body}*** End Patch\n"
    assert detect(envelope.encode()) == "apply-patch"
    block = f"`doc.md`\n<<<<<<<<< SEARCH\nx\n=========\n{text}\n>>>>>>>>> REPLACE\n"
    assert detect(block.encode()) == "search-replace"
    assert detect(f"`doc.txt`\n`````\nDoc.\n{text}\n`````\n".encode()) == "files"


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (f"a.py\n```python\n{BLOCK}```\n", "search-replace"),
        (f"```python a.py\n{BLOCK.partition(chr(10))[2]}```\n", "search-replace"),
        (f"**a.py**\n```diff\n{PLAIN}```\n", "unified"),
        (f"```diff title=a.py\n{DIFF}```\n", "unified"),
        (f"```\nls\na.py\n```\n\n{DIFF}", "unified"),
    ],
)
def test_a_path_on_a_fence_may_only_say_what_an_edit_is_about(text: str, form: str) -> None:
    assert detect(text.encode()) == form


@pytest.mark.parametrize(
    ("text", "signs"),
    [
        (f"{DIFF}\nand\n\n{BLOCK}", {"unified": 1, "search-replace": 11}),
        (f"{BLOCK}\n{ENVELOPE}", {"search-replace": 2, "apply-patch": 8}),
        (f"{FILE}\n```\n{DIFF}```\n", {"files": 1, "unified": 6}),
        (f"{PLAN}\n\n{DIFF}", {"json": 1, "unified": 3}),
        (f"{DIFF}\n{PLAN}\n", {"unified": 1, "json": 8}),
        (f"{DIFF}{MAIL}", {"unified": 1, "mbox": 7}),
        (f"{ENVELOPE}\n{FILE}", {"apply-patch": 1, "files": 8}),
        (f"`plan.json`\n```\n{PLAN}\n```\n", {"files": 2, "json": 3}),
        (f"`fix.diff`\n```\n{DIFF}```\n", {"files": 2, "unified": 3}),
        (f"```x.patch\n{MAIL}```\n", {"files": 1, "mbox": 2}),
    ],
)
def test_several_formats_are_refused_with_their_lines(text: str, signs: dict[str, int]) -> None:
    assert find_signs(text.encode()) == signs
    with pytest.raises(PatchSyntaxError) as caught:
        parse_patch(text.encode())
    assert [finding.line for finding in caught.value.findings] == list(signs.values())
    assert "name it with --format" in caught.value.remedy


def test_the_refusal_reads_well() -> None:
    with pytest.raises(PatchSyntaxError) as caught:
        parse_patch(f"{DIFF}\n{BLOCK}\n{FILE}".encode())
    assert caught.value.problem == (
        "the text holds a unified diff at line 1, search/replace blocks at line 9"
        " and whole files in fenced blocks at line 15"
    )


@pytest.mark.parametrize("form", FORMATS)
def test_a_named_format_is_obeyed(form: str) -> None:
    several = "\n".join((DIFF, BLOCK, ENVELOPE, FILE, "```json", PLAN, "```"))
    text = several if form in ("json", "search-replace", "apply-patch", "files") else ALONE[form]
    assert parse_patch(text.encode(), format=form).format == form
    with pytest.raises(PatchError):
        parse_patch(b"nothing of the kind\n", format=form)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        (" \n\t\n", "empty"),
        ("hello", "no patch of a known format"),
        ("[1/2] and so on", "no patch of a known format"),
        ("x\n```python\ny\n```\n", "line 2 looks like a fenced block that names no file"),
        ("*** a\n--- b\n***************\n", "line 3 looks like a context diff"),
        ("<<<<<<< SEARCH a.py\nx\n", "line 1 looks like a search/replace block with more"),
        ("<<<<<<< HEAD\nx\n", "line 1 looks like conflict markers"),
        ("3c3\n< x\n---\n> y\n", "line 1 looks like a diff without context"),
        ("diff --cc a\n", "line 1 looks like a combined diff"),
    ],
)
def test_what_is_no_patch_is_named(text: str, said: str) -> None:
    with pytest.raises(PatchSyntaxError, match=said) as caught:
        parse_patch(text.encode())
    assert len(caught.value.findings) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [("\ufeffdiff".encode("utf-16-le"), "it is UTF-16"), (b"\x1f\x8b\x08", "with gzip")],
)
def test_bytes_of_another_kind_are_named(text: bytes, said: str) -> None:
    with pytest.raises(PatchSyntaxError, match=said):
        parse_patch(text)


@pytest.mark.parametrize("head", ["[1/2] Fix", '{"model": "x"}', "[] done", '{"unfinished', "[x]"])
def test_json_that_is_no_plan_hides_no_patch(head: str) -> None:
    assert detect(f"{head}\n\n{DIFF}".encode()) == "unified"


@pytest.mark.parametrize("text", ['{"model": "x"}', '{"unfinished', "[]", "{}"])
def test_json_alone_is_read_as_a_plan(text: str) -> None:
    assert detect(text.encode()) == "json"


def test_a_broken_plan_is_not_hidden_by_what_its_strings_hold() -> None:
    text = PLAN.replace("\\n", "\n")
    assert "\ndiff --git" in text or "\n--- a" in text
    with pytest.raises(PatchSyntaxError, match="JSON is broken"):
        parse_patch(text.encode())


def test_an_unknown_name_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="no patch format `yaml`"):
        parse_patch(b"", format="yaml")


UPDATE = "*** Begin Patch\n*** Update File: a\n"
BIG = 2**20


def repeated(unit: str, head: str = "", tail: str = "") -> bytes:
    return (head + unit * (BIG // len(unit)) + tail).encode()


@pytest.mark.parametrize(
    "text",
    [
        repeated("a line of prose\n"),
        repeated("<<<<<<< SEARCH\n<<<<< SEARCH\n"),
        repeated("```a.md\n"),
        repeated("```\n~~~ a.py\n"),
        repeated("```md x.md\n@@ -1 +1 @@\n~~~\n"),
        repeated("```a.py\n" + " " * 5_000),
        repeated("diff --git a/a b/a\n"),
        repeated("*** Begin Patch\n"),
        repeated("From a Mon Sep 17 00:00:00 2001\nA: b\n"),
        repeated('{"operation": '),
        repeated("@@ -1 +1 @@\n"),
        repeated("`" * 70 + " "),
        repeated("=======\n"),
        b"<" * BIG,
        b"`" * BIG,
        b"```" + b"title=" * (BIG // 6),
        b"From " + b" 1:1" * (BIG // 4),
    ],
    ids=range(17),
)
def test_detection_takes_time_linear_in_the_text(text: bytes) -> None:
    started = time.process_time()
    with contextlib.suppress(PatchSyntaxError):
        find_signs(text)
    assert time.process_time() - started < 3


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (
            "search-replace",
            repeated("a.py\n<<<<<<< SEARCH\nx = 1\n=======\ny = 1\n>>>>>>> REPLACE\n"),
        ),
        ("search-replace", repeated("y\n", "a\n<<<<<<< SEARCH\nx\n=======\n", ">>>>>>> REPLACE\n")),
        ("apply-patch", repeated("@@ f\n-x\n+y\n", UPDATE)),
        ("apply-patch", repeated(" a line of context\n" * 9 + "-x\n@@\n", UPDATE)),
        ("files", repeated("x = 1\n", "```a.py\n", "```\n")),
        ("mbox", MAIL.encode() + repeated("+x\n")),
    ],
    ids=["blocks", "one-block", "sections", "large-sections", "files", "mbox"],
)
def test_megabytes_are_read_in_seconds(form: str, text: bytes) -> None:
    started = time.process_time()
    with contextlib.suppress(PatchSyntaxError):
        parse_patch(text, format=form)
    assert time.process_time() - started < 3
