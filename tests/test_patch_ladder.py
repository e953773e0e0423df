"""The rungs, what was applied before, and refusals that say what to send instead."""

from __future__ import annotations

import base64
import json
import time
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox_engine.errors import PatchConflictError, PatchError, PatchPolicyError
from sandbox_engine.patch import (
    Changes,
    EditStatus,
    File,
    Match,
    Patch,
    Policy,
    Rung,
    apply_patch,
    parse_patch,
)
from sandbox_engine.patch.binary import blob_id
from sandbox_engine.patch.edits import CreateFile, DeleteFile, Section, SectionedUpdate
from sandbox_engine.patch.matching import SearchBudget, split_lines
from sandbox_engine.patch.nearest import nearest
from sandbox_engine.patch.seek import Ambiguous, LineIndex, Shift, locate, transplant
from sandbox_engine.verdict import Finding

CODE = b"class A:\n    def f(self):\n        x = 1\n        return x\n\n\ndef g():\n    return 2\n"
LINK = 0o120000


def op(operation: str = "REPLACE", path: str = "f", **rest: Any) -> dict[str, Any]:
    return {"operation": operation, "file_path": path, **rest}


def plan(*ops: dict[str, Any]) -> Patch:
    return parse_patch(json.dumps(list(ops)).encode())


def made(patch: Patch, content: bytes = CODE, match: Match = Match.DEFAULT) -> Changes:
    return apply_patch(patch, {b"f": File(content)}.get, match=match)


def after(changes: Changes) -> bytes | None:
    file = changes.files.get(b"f")
    return file.content if file else None


def refused(patch: Patch, content: bytes = CODE, match: Match = Match.DEFAULT) -> Finding:
    with pytest.raises(PatchError) as caught:
        made(patch, content, match)
    return caught.value.findings[0]


def replace(block: str, text: str, **rest: Any) -> Patch:
    return plan(op(block_to_replace=block, content=text, **rest))


def diff(body: str, *, index: str = "") -> Patch:
    head = f"diff --git a/f b/f\n{index}--- a/f\n+++ b/f\n"
    return parse_patch((head + body).encode())


BLOCKS: dict[str, tuple[str, str, Rung, bytes]] = {
    "exact": ("        x = 1\n", "        x = 9\n", Rung.EXACT, CODE.replace(b"1", b"9")),
    "trailing blanks": (
        "        x = 1  \n        return x\n",
        "        x = 9\n        return x\n",
        Rung.WHITESPACE,
        CODE.replace(b"1", b"9"),
    ),
    "less indented": (
        "x = 1\nreturn x\n",
        "x = 9\nif x:\n    return x\n",
        Rung.INDENTATION,
        CODE.replace(
            b"        x = 1\n        return x\n",
            b"        x = 9\n        if x:\n            return x\n",
        ),
    ),
    "more indented": (
        "        def g():\n            return 2",
        "        def g():\n            return 3",
        Rung.INDENTATION,
        CODE.replace(b"return 2", b"return 3"),
    ),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_takes_the_first_rung_with_one_place(name: str) -> None:
    block, text, rung, expected = BLOCKS[name]
    changes = made(replace(block, text))
    assert (after(changes), changes.reports[0].rung) == (expected, rung)


@pytest.mark.parametrize("name", [name for name in BLOCKS if name != "exact"])
def test_exact_refuses_the_lower_rungs_and_sends_the_edit_to_make(name: str) -> None:
    block, text, rung, expected = BLOCKS[name]
    finding = refused(replace(block, text), match=Match.EXACT)
    assert finding.code == "block-inexact" and rung in finding.message
    assert finding.corrected
    corrected = parse_patch(finding.corrected.encode())
    assert after(made(corrected, match=Match.EXACT)) == expected


def test_a_number_that_is_off_is_moved() -> None:
    patch = replace("def g():", "def h():", line_number=2)
    assert made(patch).reports[0].rung is Rung.MOVED
    assert refused(patch, match=Match.EXACT).code == "block-inexact"


def test_several_places_at_a_rung_are_all_told() -> None:
    finding = refused(replace("x=1 \n", "y\n"), b" x=1\na\n  x=1\n\tx=1\n")
    assert finding.code == "block-ambiguous"
    assert "by `indentation`" in finding.message and "1, 3, 4" in finding.message


def test_similar_text_is_taken_only_when_asked_for() -> None:
    patch = replace("def g(self):\n    return 2\n", "def g(self):\n    return 3\n")
    finding = refused(patch)
    assert finding.code == "block-not-found"
    assert finding.detail and "+def g():" in finding.detail
    changes = made(patch, match=Match.FUZZY)
    assert changes.reports[0].rung is Rung.FUZZY
    assert after(changes) == CODE.replace(b"return 2", b"return 3")


def test_one_near_match_is_offered_as_the_edit_to_send() -> None:
    text = CODE + b"# the end of this rather long line is as it is\n"
    wrong = "    return 2\n# the end of this rather long line is as it was\n"
    finding = refused(replace(wrong, wrong.replace("2", "3")), text)
    assert finding.corrected
    assert after(made(parse_patch(finding.corrected.encode()), text)) == text.replace(b"2", b"3")


def test_the_file_keeps_its_bom_its_endings_and_its_open_end() -> None:
    text = b"\xef\xbb\xbfone\r\ntwo \r\nthree"
    changes = made(replace("one\ntwo\nthree\n", "1\ntwo\n3\n"), text)
    assert after(changes) == b"\xef\xbb\xbf1\r\ntwo \r\n3"


HUNK = "@@ -3,2 +3,2 @@\n         x = 1\n-        return x\n+        return 9\n"


def test_a_hunk_says_its_rung() -> None:
    shifted = "@@ -1,3 +1,3 @@\n def f(self):\n-    x = 1\n+    x = 9\n     return x\n"
    changes = made(diff(shifted))
    assert after(changes) == CODE.replace(b"1", b"9")
    report = changes.reports[0]
    assert (report.rung, report.is_beyond_git) == (Rung.INDENTATION, True)
    assert "hunk 1 at line 2" in report.message


def test_exact_wants_the_line_that_is_named() -> None:
    off = diff("@@ -2,3 +2,3 @@\n         x = 1\n-        return x\n+        return 9\n \n")
    assert made(off).reports[0].rung is Rung.MOVED
    finding = refused(off, match=Match.EXACT)
    assert finding.code == "hunk-inexact" and finding.corrected
    fixed = diff(finding.corrected)
    assert made(fixed, match=Match.EXACT).reports[0].rung is Rung.EXACT


def test_a_file_that_is_not_the_one_of_the_index_line_is_stale() -> None:
    gone = HUNK.replace("x = 1", "q = 7").replace("return x", "return q")
    with pytest.raises(PatchConflictError) as caught:
        made(diff(gone, index="index 1234567..89abcde 100644\n"))
    assert caught.value.edits[0].status == "stale"
    assert "1234567" in caught.value.findings[0].message
    same = f"index {blob_id(CODE)[:7].decode()}..89abcde 100644\n"
    with pytest.raises(PatchConflictError) as caught:
        made(diff(gone, index=same))
    assert caught.value.edits[0].status == "not_found"


def test_a_counted_wrong_hunk_is_taken_and_told() -> None:
    changes = made(diff(HUNK.replace("-3,2 +3,2", "-3,9 +3,1")))
    assert after(changes) == CODE.replace(b"return x", b"return 9")
    assert "counted anew" in changes.reports[0].message
    assert refused(diff(HUNK.replace("3,2 +3", "3,9 +3")), match=Match.EXACT).corrected


ALREADY: dict[str, Patch] = {
    "hunk": diff("@@ -1,3 +1,3 @@\n class A:\n     def f(self):\n-        x = 0\n+        x = 1\n"),
    "addition": diff("@@ -7,1 +7,2 @@\n def g():\n+    return 2\n"),
    "block": replace("class B:\n    def e(self):\n", "class A:\n    def f(self):\n"),
    "block that is left": replace("def g():\n", "def g():\n    return 2\n"),
    "lines": plan(op("INSERT", content="def g():\n    return 2\n", line_number=7)),
    "creation": Patch("apply-patch", (CreateFile(b"f", CODE),)),
    "section": Patch(
        "apply-patch",
        (
            SectionedUpdate(
                b"f", (Section((b"def h():", b"    return 1"), (b"def g():", b"    return 2")),)
            ),
        ),
    ),
}


@pytest.mark.parametrize("name", ALREADY)
def test_what_was_applied_before_is_told_and_changes_nothing(name: str) -> None:
    changes = made(ALREADY[name])
    assert changes.files == {}
    assert changes.reports[0].status is EditStatus.ALREADY_APPLIED


@pytest.mark.parametrize(
    "patch",
    [
        replace("class B:\n", "class A:\n"),
        replace("nope\n", "    return 2\n"),
        replace("def z():\n    return 7\n", "    return 2\n"),
        diff("@@ -1,2 +1,1 @@\n class A:\n-    nope\n"),
        diff("@@ -1,3 +1,2 @@\n class A:\n-    nope\n     def f(self):\n"),
        diff("@@ -1,1 +1,1 @@\n-nope\n+class A:\n"),
    ],
)
def test_what_may_be_there_by_chance_is_not_called_applied(patch: Patch) -> None:
    assert refused(patch).code in {"block-not-found", "hunk-not-found"}


def test_edits_that_overlap_are_refused_unless_they_are_the_same() -> None:
    first = op(block_to_replace="        x = 1\n        return x\n", content="        return 1\n")
    other = op(block_to_replace="        return x\n", content="        return 5\n")
    with pytest.raises(PatchConflictError) as caught:
        made(plan(first, other))
    assert caught.value.findings[0].code == "edits-overlap"
    assert [edit.status for edit in caught.value.edits] == ["applied", "conflict"]
    same = made(plan(first, first))
    assert [report.status for report in same.reports] == ["applied", "already_applied"]


SECTIONS: dict[str, tuple[Section, bytes]] = {
    "unique": (Section((b"    return 2",), (b"    return 3",)), CODE.replace(b"2", b"3")),
    "after its anchor": (
        Section((b"    return 2",), (b"    return 3",), (b"def g():",)),
        CODE.replace(b"2", b"3"),
    ),
    "shifted": (Section((b"x = 1", b"return x"), (b"return 1",)), CODE.replace(
        b"        x = 1\n        return x\n", b"        return 1\n")),
    "appended": (Section((), (b"z = 1",)), CODE + b"z = 1\n"),
    "after an anchor alone": (
        Section((), (b"    y = 1",), (b"def g():",)),
        CODE.replace(b"g():\n", b"g():\n    y = 1\n"),
    ),
    "at the end": (Section((b"    return 2",), (), (), True), CODE.replace(b"    return 2\n", b"")),
}  # fmt: skip


@pytest.mark.parametrize("name", SECTIONS)
@pytest.mark.parametrize("ending", ["LF", "CRLF", "open"])
def test_a_section_is_made(name: str, ending: str) -> None:
    section, expected = SECTIONS[name]

    def ended(text: bytes) -> bytes:
        text = text.replace(b"\n", b"\r\n") if ending == "CRLF" else text
        return text.removesuffix(b"\n") if ending == "open" else text

    changes = made(Patch("apply-patch", (SectionedUpdate(b"f", (section,)),)), ended(CODE))
    assert after(changes) == ended(expected)


def test_sections_come_in_order_and_move_the_file() -> None:
    twice = b"a\nx\nb\nx\n"
    edit = SectionedUpdate(
        b"f", (Section((b"a", b"x"), (b"a", b"y")), Section((b"x",), (b"z",))), b"d/g"
    )
    patch = Patch("apply-patch", (edit,))
    changes = made(patch, twice)
    assert changes.files == {b"f": None, b"d/g": File(b"a\ny\nb\nz\n")}
    assert changes.renames == {b"d/g": b"f"}
    again = {b"d/g": File(b"a\ny\nb\nz\n")}
    with pytest.raises(PatchConflictError):
        apply_patch(patch, again.get)


def test_a_deletion_that_must_find_its_file() -> None:
    patch = Patch("apply-patch", (DeleteFile(b"none", must_exist=True),))
    assert refused(patch).code == "file-missing"


def test_links_by_policy_stay_inside() -> None:
    text = (
        "diff --git a/d/l b/d/l\nnew file mode 120000\n--- /dev/null\n+++ b/d/l\n"
        "@@ -0,0 +1 @@\n+%s\n\\ No newline at end of file\n"
    )
    allowed = Policy(allow_symlinks=True)
    patch = parse_patch((text % "../f").encode())
    assert apply_patch(patch, {}.get, policy=allowed).files == {b"d/l": File(b"../f", LINK)}
    for target in ("../../f", "/f", "e/../../../f", "../.git/config"):
        with pytest.raises(PatchPolicyError, match="may not point"):
            apply_patch(parse_patch((text % target).encode()), {}.get, policy=allowed)


def test_files_that_steer_git_by_policy() -> None:
    patch = plan(op("INSERT", "d/.gitattributes", content="x"))
    with pytest.raises(PatchPolicyError):
        made(patch)
    allowed = Policy(allow_gitattributes=True)
    assert apply_patch(patch, {}.get, policy=allowed).files


def test_names_that_only_some_file_systems_tell_apart() -> None:
    names = {b"": [b"Read.me", b"d"], b"d": [b"x"]}

    def siblings(folder: bytes) -> list[bytes]:
        return names.get(folder, [])

    base = {b"Read.me": File(b"r\n")}
    for path in ("read.ME", "D/new", "d/X"):
        with pytest.raises(PatchConflictError, match="ignore case"):
            apply_patch(plan(op("INSERT", path, content="x")), base.get, siblings=siblings)
    renamed = b"diff --git a/Read.me b/README\nrename from Read.me\nrename to README\n"
    assert apply_patch(parse_patch(renamed), base.get, siblings=siblings).files
    lowered = renamed.replace(b"README", b"read.me")
    assert apply_patch(parse_patch(lowered), base.get, siblings=siblings).files


def test_a_binary_delta_is_made_and_verified() -> None:
    old, new = bytes(range(256)), bytes(range(100)) + b"new" + bytes(range(100, 256))
    delta = b"\x80\x02\x83\x02" + b"\x90\x64" + b"\x03new" + b"\x91\x64\x9c"
    packed = zlib.compress(delta)
    line = bytes((len(packed) + 64 if len(packed) <= 26 else len(packed) + 70,))
    text = (
        b"diff --git a/f b/f\nindex %s..%s 100644\nGIT binary patch\ndelta %d\n"
        % (blob_id(old), blob_id(new), len(delta))
        + line
        + base64.b85encode(packed, pad=True)
        + b"\n\n"
    )
    assert after(made(parse_patch(text), old)) == new
    again = made(parse_patch(text), new)
    assert again.reports[0].status is EditStatus.ALREADY_APPLIED


@pytest.mark.parametrize("strip", [0, 2])
def test_another_number_of_folders_is_found_out(strip: int) -> None:
    old = {0: "src/f.py", 2: "a/b/src/f.py"}[strip]
    text = f"--- {old}\n+++ {old}\n@@ -1 +1 @@\n-x\n+y\n".encode()
    base = {b"src/f.py": File(b"x\n")}
    changes = apply_patch(parse_patch(text), base.get)
    assert changes.files == {b"src/f.py": File(b"y\n")}
    assert f"-p{strip}" in changes.reports[0].message


def test_two_numbers_of_folders_that_fit_are_refused() -> None:
    text = b"--- a/b/f\n+++ a/b/f\n@@ -1 +1 @@\n-x\n+y\n"
    with pytest.raises(PatchConflictError):
        apply_patch(parse_patch(text), {b"a/b/f": File(b"x\n"), b"f": File(b"x\n")}.get)


LINES = st.lists(st.sampled_from([b"a\n", b"b\n", b"  c\n", b"\n", b"d\r\n"]), max_size=12)


@settings(max_examples=200, deadline=None)
@given(head=LINES, old=LINES, tail=LINES, new=LINES)
def test_a_place_that_is_found_holds_the_lines(
    head: list[bytes], old: list[bytes], tail: list[bytes], new: list[bytes]
) -> None:
    index = LineIndex([*head, *old, *tail], SearchBudget())
    try:
        place = locate(index, old, new, Match.DEFAULT)
    except Ambiguous:
        return
    if place is not None and not place.is_done:
        assert index.lines[place.at : place.at + len(old)] == old


@settings(max_examples=200, deadline=None)
@given(old=LINES, new=LINES, prefix=st.sampled_from([b"", b"  ", b"\t"]))
def test_text_put_in_its_own_place_is_itself(
    old: list[bytes], new: list[bytes], prefix: bytes
) -> None:
    if not any(line.endswith(b"\r\n") for line in (*old, *new)):
        assert b"".join(transplant(old, old, new) or []) == b"".join(new)
    moved = [prefix + line if line.strip() else line for line in old]
    assert transplant(moved, old, old, Shift(prefix)) == moved


def test_the_nearest_text_of_a_large_file_is_found_soon() -> None:
    lines = split_lines(b"".join(b"    value_%d = compute(%d)\n" % (n, n) for n in range(50_000)))
    near = nearest(
        lines, [b"    value_40000 = compute(4)\n", b"    value_40001 = compute(40001)\n"]
    )
    assert near is not None
    assert (near.first_line, near.last_line) == (40_001, 40_002)


def test_lines_that_are_hard_to_compare_cost_little() -> None:
    one = [b"ab" * 100 + b"%d\n" % number for number in range(300)]
    other = [b"ba" * 100 + b"%d\n" % number for number in range(300)]
    started = time.monotonic()
    nearest(one, other)
    transplant([b"a\n", b"x\n"] * 2000, [b"a\n", b"x\n"] * 2000, [b"a\n", b"y\n"] * 2000)
    assert time.monotonic() - started < 10
