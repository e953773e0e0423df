"""Applying: all or nothing, one report per edit, modes, links, folders, limits."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from sandbox_engine import patch as patch_module
from sandbox_engine.errors import PatchConflictError, PatchError, PatchPolicyError, PatchSyntaxError
from sandbox_engine.patch import (
    Changes,
    EditStatus,
    File,
    apply_patch,
    blocks,
    matching,
    parse_patch,
)

REGULAR, SCRIPT, LINK, SUBMODULE = 0o100644, 0o100755, 0o120000, 0o160000
TREE = {
    b"a.py": File(b"x = 1\ny = 2\n", REGULAR),
    b"run.sh": File(b"#!/bin/sh\n", SCRIPT),
    b"link": File(b"a.py", LINK),
    b"sub": File(b"", SUBMODULE),
}


def run(*ops: dict[str, Any]) -> Changes:
    return apply_patch(parse_patch(json.dumps(list(ops)).encode()), TREE.get)


def op(operation: str, path: str, **rest: Any) -> dict[str, Any]:
    return {"operation": operation, "file_path": path, **rest}


def codes(*ops: dict[str, Any]) -> list[str]:
    with pytest.raises(PatchError) as caught:
        run(*ops)
    return [finding.code for finding in caught.value.findings]


def diff(text: str) -> Changes:
    return apply_patch(parse_patch(text.encode()), TREE.get)


def test_one_report_for_each_edit() -> None:
    changes = run(
        op("REPLACE", "a.py", block_to_replace="y = 2", content="y = 3"),
        op("REPLACE", "a.py", block_to_replace="x", content="x"),
        op("DELETE_BLOCK", "none.py", block_to_delete=None),
        op("INSERT", "new/b.py", content="z"),
    )
    assert [report.status for report in changes.reports] == [
        EditStatus.APPLIED,
        EditStatus.NO_OP,
        EditStatus.NO_OP,
        EditStatus.APPLIED,
    ]
    assert [report.index for report in changes.reports] == [0, 1, 2, 3]
    assert changes.reports[0].line == 2
    assert changes.files == {
        b"a.py": File(b"x = 1\ny = 3\n", REGULAR),
        b"new/b.py": File(b"z\n", REGULAR),
    }


def test_a_change_that_is_undone_is_no_change() -> None:
    changes = run(
        op("REPLACE", "a.py", block_to_replace="1", content="9"),
        op("REPLACE", "a.py", block_to_replace="9", content="1"),
        op("INSERT", "new.py", content="x"),
        op("DELETE_BLOCK", "new.py", block_to_delete=None),
    )
    assert changes.files == {}


def test_one_refusal_refuses_all_and_every_refusal_is_told() -> None:
    with pytest.raises(PatchConflictError) as caught:
        run(
            op("REPLACE", "a.py", block_to_replace="nope", content=""),
            op("INSERT", "a.py", content="fine"),
            op("REPLACE", "none.py", block_to_replace="x", content=""),
        )
    first, second = caught.value.findings
    assert (first.code, first.path, first.source) == ("block-not-found", "a.py", "nope")
    assert (second.code, second.path) == ("file-missing", "none.py")
    assert first.hint and second.hint
    assert "2 of 3 edits" in str(caught.value) and "hint: " in str(caught.value)


def test_a_path_that_is_never_allowed_is_a_policy_error() -> None:
    with pytest.raises(PatchPolicyError) as caught:
        run(op("INSERT", ".git/hooks/pre-commit\x1b", content="x"))
    assert caught.value.findings[0].code == "forbidden-path"
    assert "\x1b" not in str(caught.value)


def test_modes_are_kept() -> None:
    assert run(op("INSERT", "run.sh", content="ls")).files[b"run.sh"].mode == SCRIPT  # type: ignore[union-attr]
    changes = diff("diff --git a/a.py b/a.py\nold mode 100644\nnew mode 100755\n")
    assert changes.files == {b"a.py": File(TREE[b"a.py"].content, SCRIPT)}


def test_links_are_neither_made_nor_changed_but_may_go() -> None:
    assert codes(op("INSERT", "link", content="x")) == ["symlink-refused"]
    assert codes(op("REPLACE", "link", block_to_replace=None, content="x")) == ["symlink-refused"]
    assert run(op("DELETE_BLOCK", "link", block_to_delete=None)).files == {b"link": None}
    moved = diff("diff --git a/link b/l2\nrename from link\nrename to l2\n")
    assert moved.files == {b"link": None, b"l2": TREE[b"link"]}
    with pytest.raises(PatchPolicyError, match="symbolic link"):
        diff("diff --git a/link b/l2\ncopy from link\ncopy to l2\n")


def test_submodules_are_never_touched() -> None:
    assert codes(op("INSERT", "sub", content="x")) == ["gitlink-refused"]
    assert codes(op("DELETE_BLOCK", "sub", block_to_delete=None)) == ["gitlink-refused"]
    with pytest.raises(PatchPolicyError, match="submodule"):
        diff("diff --git a/sub b/s2\nrename from sub\nrename to s2\n")


@pytest.mark.parametrize("path", ["a.py/x", "link/x", "sub/x/y", "link/deep/er/x"])
def test_no_file_is_made_below_a_file(path: str) -> None:
    assert codes(op("INSERT", path, content="x")) == ["path-conflict"]


def test_no_file_is_made_below_a_file_of_the_same_patch() -> None:
    below = [op("INSERT", "n/x", content="x"), op("INSERT", "n", content="x")]
    assert codes(*below) == ["path-conflict"]


def test_a_file_may_become_a_folder() -> None:
    changes = run(
        op("INSERT", "a.py/x", content="x"), op("DELETE_BLOCK", "a.py", block_to_delete=None)
    )
    assert changes.files == {b"a.py": None, b"a.py/x": File(b"x\n", REGULAR)}


def test_a_link_does_not_become_a_folder() -> None:
    ops = op("INSERT", "link/x", content="x"), op("DELETE_BLOCK", "link", block_to_delete=None)
    assert codes(*ops) == ["symlink-ancestor"]


def test_renames_are_told() -> None:
    changes = diff(
        "diff --git a/a.py b/b.py\nrename from a.py\nrename to b.py\n"
        "--- a/a.py\n+++ b/b.py\n@@ -1,2 +1,2 @@\n-x = 1\n+x = 5\n y = 2\n"
    )
    assert changes.files == {b"a.py": None, b"b.py": File(b"x = 5\ny = 2\n", REGULAR)}
    assert changes.renames == {b"b.py": b"a.py"}
    assert changes.reports[0].message == "renamed"
    assert changes.reports[0].line == 1


def test_a_hunk_that_does_not_fit_says_where_and_what() -> None:
    with pytest.raises(PatchConflictError) as caught:
        diff("--- a/a.py\n+++ b/a.py\n@@ -1,2 +1,2 @@\n-x = 7\n+x = 8\n y = 2\n")
    finding = caught.value.findings[0]
    assert (finding.code, finding.path, finding.line) == ("hunk-not-found", "a.py", 1)
    assert finding.source == "x = 7"
    assert "line 3 of the patch" in finding.message


def test_a_patch_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patch_module, "MAX_PATCH_BYTES", 100)
    with pytest.raises(PatchSyntaxError, match="100 bytes"):
        run(op("INSERT", "a.py", content="x" * 200))


def test_a_patch_of_too_many_edits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patch_module, "MAX_EDITS", 3)
    with pytest.raises(PatchSyntaxError, match="3 edits"):
        run(*[op("INSERT", "a.py", content="x")] * 4)


def test_a_file_that_grows_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "MAX_FILE_BYTES", 100)
    assert codes(op("INSERT", "a.py", content="x" * 99)) == ["file-too-large"]
    assert codes(op("REPLACE", "n", block_to_replace=None, content="x" * 101)) == ["file-too-large"]
    with pytest.raises(PatchConflictError, match="larger than 100"):
        diff("--- /dev/null\n+++ b/n\n@@ -0,0 +1 @@\n+" + "x" * 101 + "\n")


def test_searching_for_hunks_has_an_end() -> None:
    count = 3000
    hunk = b"@@ -90000,%d +90000,%d @@\n" % (count + 2, count + 2)
    text = b"--- a/f\n+++ b/f\n" + hunk + b" x\n" * count + b"-y\n+z\n x\n"
    started = time.monotonic()
    with pytest.raises(PatchConflictError) as caught:
        apply_patch(parse_patch(text), {b"f": File(b"x\n" * 200_000, REGULAR)}.get)
    assert caught.value.findings[0].code == "search-too-long"
    assert time.monotonic() - started < 30


def test_a_large_diff_is_quick() -> None:
    lines = [b"line %d of a file with some text\n" % number for number in range(100_000)]
    parts = [b"--- a/f\n+++ b/f\n"]
    for at in range(3, len(lines) - 8, 10):
        parts.append(b"@@ -%d,7 +%d,7 @@\n" % (at - 2, at - 2))
        parts += [b" " + line for line in lines[at - 3 : at]]
        parts += [b"-" + lines[at], b"+new " + lines[at]]
        parts += [b" " + line for line in lines[at + 1 : at + 4]]
    started = time.monotonic()
    apply_patch(parse_patch(b"".join(parts)), {b"f": File(b"".join(lines), REGULAR)}.get)
    assert time.monotonic() - started < 10


def test_lines_end_at_newlines_only() -> None:
    content = b"a\x0bb\x0cc\x1cd\xc2\x85e\xe2\x80\xa8f\r\ng"
    assert matching.split_lines(content) == [content[:-1], b"g"]
    assert matching.split_lines(b"") == []
    assert matching.split_lines(b"\n") == [b"\n"]


def test_read_is_asked_once_for_a_path() -> None:
    asked: list[bytes] = []

    def read(path: bytes) -> File | None:
        asked.append(path)
        return TREE.get(path)

    apply_patch(parse_patch(json.dumps([op("INSERT", "a.py", content="x")] * 3).encode()), read)
    assert asked == [b"a.py"]
