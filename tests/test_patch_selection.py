"""Patches taken apart: every atom means alone, or with some others, what it means in the whole."""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox_engine.errors import PatchConflictError, PatchError
from sandbox_engine.patch import (
    FORMATS,
    File,
    Match,
    Patch,
    apply_patch,
    atoms,
    parse_patch,
    patch_from_files,
    select,
)

SCRIPT = 0o100755
BLOCK = ["def f():", "    a = 1", "    b = 2", "    return a + b", ""]
BLOCKS = [*BLOCK * 6]
"""Six times the same lines: nothing but its number tells one place from another."""

Group = tuple[int, int, list[str]]
"""Lines from..until of the old file, and what comes in their place."""


def content(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def groups(old: Sequence[str], new: Sequence[str]) -> list[Group]:
    """Return the changes that make `new` of `old`; those with less than 7 lines between are one."""
    found = difflib.SequenceMatcher(None, old, new, autojunk=False).get_grouped_opcodes(3)
    inner = [[code for code in group if code[0] != "equal"] for group in found]
    return [
        (group[0][1], group[-1][2], list(new[group[0][3] : group[-1][4]]))
        for group in inner
        if group
    ]


def diff(old: Sequence[str], changes: Iterable[Group], path: str = "f") -> bytes:
    """Return a diff with a hunk for each of `changes`."""
    lines = [f"diff --git a/{path} b/{path}", f"--- a/{path}", f"+++ b/{path}"]
    shift = 0
    for start, end, new in changes:
        before, after = old[max(start - 3, 0) : start], old[end : end + 3]
        first = start - len(before) + 1
        counts = len(before) + end - start + len(after), len(before) + len(new) + len(after)
        lines.append(f"@@ -{first},{counts[0]} +{first + shift},{counts[1]} @@")
        lines += [f" {line}" for line in before]
        lines += [f"-{line}" for line in old[start:end]] + [f"+{line}" for line in new]
        lines += [f" {line}" for line in after]
        shift += len(new) - (end - start)
    return content(lines)


def regrouped(old: Sequence[str], chosen: Iterable[Group]) -> list[str]:
    lines = list(old)
    for start, end, new in sorted(chosen, reverse=True):
        lines[start:end] = new
    return lines


def made(
    patch: Patch, files: dict[str, bytes], match: Match = Match.DEFAULT
) -> dict[str, bytes | None]:
    """Return what `patch` makes of `files`: what has changed alone."""
    tree = {path.encode(): File(text) for path, text in files.items()}
    changes = apply_patch(patch, tree.get, match=match)
    return {path.decode(): file and file.content for path, file in changes.files.items()}


def subsets(patch: Patch) -> Iterable[tuple[int, ...]]:
    every = range(len(atoms(patch)))
    return itertools.chain.from_iterable(
        itertools.combinations(every, count) for count in range(len(every) + 1)
    )


def plan(*operations: dict[str, object]) -> Patch:
    return parse_patch(json.dumps(list(operations)).encode())


def replace(block: str | None, text: str, path: str = "f", **rest: object) -> dict[str, object]:
    names = {"operation": "REPLACE", "file_path": path}
    return {**names, "block_to_replace": block, "content": text, **rest}


def insert(line: int | None, text: str, path: str = "f") -> dict[str, object]:
    return {"operation": "INSERT", "file_path": path, "line_number": line, "content": text}


THREE: list[Group] = [
    (1, 2, ["    a = 9"]),
    (11, 12, ["    a = 8", "    c = 3", "    d = 4"]),
    (27, 28, []),
]


def test_each_hunk_is_an_atom() -> None:
    found = atoms(parse_patch(diff(BLOCKS, THREE, "src/calc.py")))
    assert [atom.description for atom in found] == [
        "src/calc.py, hunk 1 of 3 (line 4 of the patch)",
        "src/calc.py, hunk 2 of 3 (line 11 of the patch)",
        "src/calc.py, hunk 3 of 3 (line 22 of the patch)",
    ]
    assert [(atom.index, atom.path, atom.line) for atom in found] == [
        (0, b"src/calc.py", 4),
        (1, b"src/calc.py", 11),
        (2, b"src/calc.py", 22),
    ]


@pytest.mark.parametrize("match", Match)
def test_a_hunk_goes_to_its_own_place_whichever_others_are_left_out(match: Match) -> None:
    patch = parse_patch(diff(BLOCKS, THREE))
    for chosen in subsets(patch):
        expected = content(regrouped(BLOCKS, [THREE[index] for index in chosen]))
        result = made(select(patch, chosen), {"f": content(BLOCKS)}, match)
        assert result == ({"f": expected} if chosen else {})


def test_a_hunk_that_is_left_out_keeps_its_place_where_the_file_has_moved() -> None:
    """Without that, the second hunk would take the place of the first, which is as it names it."""
    changes: list[Group] = [(11, 12, ["    a = 9"]), (21, 22, ["    a = 8"])]
    patch = parse_patch(diff(BLOCKS, changes))
    moved = ["# this is new here"] * 15 + BLOCK * 4
    for chosen in subsets(patch):
        expected = [*moved]
        for index in chosen:
            expected[21 + 10 * index] = changes[index][2][0]
        result = made(select(patch, chosen), {"f": content(moved)})
        assert result == ({"f": content(expected)} if chosen else {})


few_lines = st.lists(st.sampled_from(["a", "b", "c", ""]), max_size=50)


@st.composite
def changed_files(draw: st.DrawFn) -> tuple[list[str], list[str]]:
    """Return lines that are much the same, and what a few changes make of them."""
    old = draw(few_lines)
    new = list(old)
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, len(new)))
        new[at : at + draw(st.integers(0, 3))] = draw(st.lists(st.sampled_from("abcX"), max_size=4))
    return old, new


@settings(max_examples=150, deadline=None)
@given(changed_files())
def test_any_hunks_of_a_diff_make_their_own_changes(case: tuple[list[str], list[str]]) -> None:
    old, new = case
    changed = groups(old, new)
    if old == new or not old or not new:
        return
    patch = parse_patch(diff(old, changed), format="unified")
    assert len(atoms(patch)) == len(changed)
    for chosen in subsets(patch):
        expected = content(regrouped(old, [changed[index] for index in chosen]))
        result = made(select(patch, chosen), {"f": content(old)})
        assert result.get("f", content(old)) == expected


class Line(str):
    """A line that is told from others of the same text by its identity."""

    __slots__ = ()


def replaced(lines: list[Line], whole: list[Line], group: Group) -> list[Line] | None:
    """Return `lines` with a change of `whole` made, or None where what it is about is not there."""
    start, end, new = group
    about = whole[max(start - 3, 0) : end + 3]
    there = [id(line) for line in lines]
    wanted = [id(line) for line in about]
    if not wanted:
        return None
    at = next((at for at in range(len(there)) if there[at] == wanted[0]), None)
    if at is None or there[at : at + len(wanted)] != wanted:
        return None
    first = at + start - max(start - 3, 0)
    return [*lines[:first], *map(Line, new), *lines[first + end - start :]]


def all_replaced(
    lines: list[Line], whole: list[Line], chosen: Iterable[Group]
) -> list[Line] | None:
    result: list[Line] | None = lines
    for group in sorted(chosen, reverse=True):
        result = result and replaced(result, whole, group)
    return result


@settings(max_examples=150, deadline=None)
@given(changed_files(), st.randoms(use_true_random=False))
def test_a_series_on_one_file_keeps_its_places(
    case: tuple[list[str], list[str]], random: object
) -> None:
    """Hunks of a later diff go where they belong, whichever hunks of an earlier one are there."""
    old = [Line(line) for line in case[0]]
    first = groups(case[0], case[1])
    middle = all_replaced(old, old, first)
    if not old or not middle or len(first) > 3:
        return
    new = list(map(str, middle))
    new[len(new) // 2 : len(new) // 2 + 1] = ["Y", "Z"]
    new[-1:] = []
    second = groups(list(map(str, middle)), new)
    if not new or list(map(str, middle)) == case[0]:
        return
    patch = parse_patch(diff(case[0], first) + diff(case[1], second), format="unified")
    try:
        made(patch, {"f": content(old)})
    except PatchError:
        return
    for chosen in subsets(patch):
        start = all_replaced(old, old, [first[at] for at in chosen if at < len(first)])
        later = [second[at - len(first)] for at in chosen if at >= len(first)]
        expected = start if not later else start and all_replaced(start, middle, later)
        if expected is not None:
            try:
                result = made(select(patch, chosen), {"f": content(old)})
            except PatchConflictError:
                continue
            assert result.get("f", content(old)) == content(expected), chosen


def test_a_later_diff_of_a_file_is_moved_by_what_the_first_does_not_add() -> None:
    added = [*BLOCK, *BLOCKS]
    changed = list(added)
    changed[5 + 11] = "    a = 9"
    patch = parse_patch(diff(BLOCKS, [(0, 0, BLOCK)]) + diff(added, [(16, 17, ["    a = 9"])]))
    expected = [*BLOCKS]
    expected[11] = "    a = 9"
    assert made(select(patch, [1]), {"f": content(BLOCKS)}) == {"f": content(expected)}
    assert made(select(patch, [0, 1]), {"f": content(BLOCKS)}) == {"f": content(changed)}


def test_what_is_not_there_moves_only_what_comes_after_it() -> None:
    """In the third diff's own count, its line comes after that of the first."""
    first: list[Group] = [(15, 15, BLOCK * 2)]
    middle = regrouped(BLOCKS, first)
    second: list[Group] = [(0, 0, BLOCK * 2)]
    third: list[Group] = [(21, 22, ["    a = 9"])]
    last = regrouped(middle, second)
    patch = parse_patch(diff(BLOCKS, first) + diff(middle, second) + diff(last, third))
    expected = regrouped(regrouped(BLOCKS, second), third)
    assert made(select(patch, [1, 2]), {"f": content(BLOCKS)}) == {"f": content(expected)}


def test_a_later_diff_of_lines_that_are_not_there_does_not_fit() -> None:
    middle = [*BLOCKS, "x", "y", "z"]
    patch = parse_patch(diff(BLOCKS, [(30, 30, ["x", "y", "z"])]) + diff(middle, [(31, 32, ["Y"])]))
    with pytest.raises(PatchConflictError):
        made(select(patch, [1]), {"f": content(BLOCKS)})


def test_another_hunk_of_a_diff_fits_where_one_has_lost_its_lines() -> None:
    middle = [*BLOCKS, "x", "y", "z"]
    later: list[Group] = [(0, 0, ["# top"]), (31, 32, ["Y"])]
    patch = parse_patch(diff(BLOCKS, [(30, 30, ["x", "y", "z"])]) + diff(middle, later))
    assert len(atoms(patch)) == 3
    assert made(select(patch, [1]), {"f": content(BLOCKS)}) == {"f": content(["# top", *BLOCKS])}


RENAMED = b"""\
diff --git a/old.py b/new.py
old mode 100644
new mode 100755
similarity index 80%
rename from old.py
rename to new.py
--- a/old.py
+++ b/new.py
@@ -1,2 +1,2 @@
-def f():
+def g():
     a = 1
"""


def test_a_rename_and_its_hunks_are_atoms() -> None:
    patch = parse_patch(RENAMED)
    tree = {b"old.py": File(content(BLOCK))}.get
    assert [atom.description for atom in atoms(patch)] == [
        "new.py, renamed from old.py, mode 755 (line 1 of the patch)",
        "new.py, hunk 1 of 1 (line 9 of the patch)",
    ]
    moved = apply_patch(select(patch, [0]), tree)
    assert moved.files == {b"old.py": None, b"new.py": File(content(BLOCK), SCRIPT)}
    assert moved.renames == {b"new.py": b"old.py"}
    changed = content(["def g():", *BLOCK[1:]])
    assert apply_patch(select(patch, [1]), tree).files == {b"old.py": File(changed)}
    whole = apply_patch(select(patch, [0, 1]), tree).files
    assert whole == {b"old.py": None, b"new.py": File(changed, SCRIPT)}


WHOLE = b"""\
diff --git a/made.py b/made.py
new file mode 100644
--- /dev/null
+++ b/made.py
@@ -0,0 +1 @@
+x
diff --git a/gone.py b/gone.py
deleted file mode 100644
--- a/gone.py
+++ /dev/null
@@ -1 +0,0 @@
-x
diff --git a/run.sh b/run.sh
old mode 100644
new mode 100755
diff --git a/run.sh b/copy.sh
similarity index 50%
copy from run.sh
copy to copy.sh
--- a/run.sh
+++ b/copy.sh
@@ -1 +1 @@
-x
+y
"""


def test_what_cannot_be_had_by_halves_is_one_atom() -> None:
    patch = parse_patch(WHOLE)
    assert [atom.description for atom in atoms(patch)] == [
        "made.py, created (line 1 of the patch)",
        "gone.py, deleted (line 7 of the patch)",
        "run.sh, mode 755 (line 13 of the patch)",
        "copy.sh, copied from run.sh (line 16 of the patch)",
    ]
    files = {"gone.py": b"x\n", "run.sh": b"x\n"}
    alone = [made(select(patch, [index]), files) for index in range(4)]
    assert alone == [
        {"made.py": b"x\n"},
        {"gone.py": None},
        {"run.sh": b"x\n"},
        {"copy.sh": b"y\n"},
    ]


def test_the_reading_that_fitted_is_taken_apart() -> None:
    """Read as git does, `src/` would be stripped, and the new file land elsewhere."""
    text = (
        b"--- src/a.py\n+++ src/a.py\n@@ -1 +1 @@\n-x\n+y\n"
        b"--- /dev/null\n+++ src/new.py\n@@ -0,0 +1 @@\n+z\n"
    )
    tree = {b"src/a.py": File(b"x\n")}.get
    reading = apply_patch(parse_patch(text), tree).reading
    assert apply_patch(select(reading, [1]), tree).files == {b"src/new.py": File(b"z\n")}


ENVELOPE = b"""\
*** Begin Patch
*** Update File: f
*** Move to: g
@@ class B
 def f():
-    a = 1
+    a = 9
@@ def f():
-    a = 1
+    a = 8
*** Delete File: h
*** End Patch
"""


def test_sections_keep_their_order() -> None:
    """The anchor of the second section stands before the first one too."""
    lines = [*BLOCK, "class B", *BLOCK, *BLOCK]
    files = {"f": content(lines), "h": b""}
    patch = parse_patch(ENVELOPE)
    assert [atom.description for atom in atoms(patch)] == [
        "f, renamed to g (line 2 of the patch)",
        "f, section 1 of 2 (line 4 of the patch)",
        "f, section 2 of 2 (line 8 of the patch)",
        "h, deleted (line 11 of the patch)",
    ]
    first, second = [*lines], [*lines]
    first[7], second[12] = "    a = 9", "    a = 8"
    assert made(select(patch, [0]), files) == {"f": None, "g": content(lines)}
    assert made(select(patch, [1]), files) == {"f": content(first)}
    assert made(select(patch, [2]), files) == {"f": content(second)}
    assert made(select(patch, [3]), files) == {"h": None}
    assert made(select(patch, [0, 2]), files) == {"f": None, "g": content(second)}


BLOCKS_TEXT = b"""\
f.py
<<<<<<< SEARCH
one
=======
1
>>>>>>> REPLACE

<<<<<<< SEARCH
1
=======
eins
>>>>>>> REPLACE

g.py
<<<<<<< SEARCH
=======
new
>>>>>>> REPLACE
"""


def test_blocks_are_atoms_and_may_need_one_another() -> None:
    patch = parse_patch(BLOCKS_TEXT)
    files = {"f.py": b"one\ntwo\n"}
    assert [atom.description for atom in atoms(patch)] == [
        "f.py, block (line 2 of the patch)",
        "f.py, block (line 8 of the patch)",
        "g.py, `new` inserted at the end (line 15 of the patch)",
    ]
    assert made(select(patch, [0]), files) == {"f.py": b"1\ntwo\n"}
    assert made(select(patch, [2]), files) == {"g.py": b"new\n"}
    assert made(select(patch, [0, 1]), files) == {"f.py": b"eins\ntwo\n"}
    with pytest.raises(PatchConflictError):
        made(select(patch, [1]), files)


def test_the_operations_of_a_plan_are_atoms() -> None:
    patch = plan(
        replace("one", "1"),
        {"operation": "DELETE_BLOCK", "file_path": "f", "block_to_delete": "two\n"},
        insert(1, "zero"),
        replace(None, "x", "g"),
        {"operation": "DELETE_BLOCK", "file_path": "h", "block_to_delete": None},
    )
    assert [atom.description for atom in atoms(patch)] == [
        "f, `one` replaced",
        "f, `two` deleted",
        "f, `zero` inserted before line 1",
        "g, whole file",
        "h, deleted",
    ]
    files = {"f": b"one\ntwo\n", "h": b""}
    assert made(select(patch, [0]), files) == {"f": b"1\ntwo\n"}
    assert made(select(patch, [1]), files) == {"f": b"one\n"}
    assert made(select(patch, [3, 4]), files) == {"g": b"x", "h": None}


def test_a_line_number_that_counts_on_what_is_left_out_is_refused() -> None:
    patch = plan(insert(1, "a\nb"), replace("one", "1"), insert(4, "x"))
    files = {"f": b"one\ntwo\nthree\n"}
    assert made(select(patch, [0, 2]), files) == {"f": b"a\nb\none\nx\ntwo\nthree\n"}
    with pytest.raises(PatchConflictError, match="line 4 of `f`"):
        select(patch, [2])


def test_a_block_goes_without_a_line_number_that_is_wrong() -> None:
    patch = plan(insert(1, "x"), replace("x = 1", "x = 2", line_number=2))
    assert made(select(patch, [1]), {"f": b"x = 1\n"}) == {"f": b"x = 2\n"}
    with pytest.raises(PatchConflictError):
        made(select(patch, [1]), {"f": b"x = 1\nx = 1\n"})


def test_the_files_of_a_folder_are_atoms() -> None:
    patch = patch_from_files({b"a": b"1", b"b": b"2"}, frozenset([b"b"]))
    assert [atom.description for atom in atoms(patch)] == ["a, whole file", "b, whole file"]
    changes = apply_patch(select(patch, [1]), {}.get)
    assert changes.files == {b"b": File(b"2", SCRIPT)}


CORPUS = Path(__file__).parent / "corpus"


def test_no_patch_is_lost_when_all_of_it_is_selected() -> None:
    patches = []
    for form in FORMATS:
        for path in sorted((CORPUS / form).glob("*")):
            try:
                patches.append(parse_patch(path.read_bytes(), format=form))
            except PatchError:
                continue
    assert len(patches) > len(FORMATS)
    for patch in patches:
        every = atoms(patch)
        assert [atom.index for atom in every] == list(range(len(every)))
        assert {atom.edit for atom in every} == set(range(len(patch.edits)))
        assert select(patch, range(len(every))) is patch
        assert select(patch, []).edits == ()
