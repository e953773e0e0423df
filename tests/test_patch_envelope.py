"""`*** Begin Patch` envelopes: the grammar, what lenient readers allow, and every fault told."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox_engine.errors import PatchSyntaxError
from sandbox_engine.patch import File, apply_patch, parse_patch
from sandbox_engine.patch.edits import CreateFile, DeleteFile, PlanEdit, Section, SectionedUpdate
from sandbox_engine.patch.envelope import parse_envelope

FULL = """\
*** Begin Patch
*** Add File: hello.txt
+Hello world
*** Update File: src/app.py
*** Move to: src/main.py
@@ def greet():
-print("Hi")
+print("Hello, world!")
*** Delete File: obsolete.txt
*** End Patch
"""
EDITS = (
    CreateFile(b"hello.txt", b"Hello world\n"),
    SectionedUpdate(
        b"src/app.py",
        (Section((b'print("Hi")',), (b'print("Hello, world!")',), (b"def greet():",)),),
        b"src/main.py",
    ),
    DeleteFile(b"obsolete.txt", must_exist=True),
)


def sections(body: str) -> tuple[Section, ...]:
    text = f"*** Begin Patch\n*** Update File: f\n{body}*** End Patch\n"
    (edit,) = parse_envelope(text.encode()).edits
    assert isinstance(edit, SectionedUpdate)
    return edit.sections


def faults(text: str) -> list[tuple[int | None, str]]:
    with pytest.raises(PatchSyntaxError) as caught:
        parse_envelope(text.encode())
    return [(finding.line, finding.message) for finding in caught.value.findings]


@pytest.mark.parametrize(
    "text",
    [
        FULL,
        FULL.removesuffix("\n"),
        FULL.replace("\n", "\r\n"),
        f"\ufeff{FULL}",
        f"I have made the change:\n\n```\n{FULL}```\nThat is all.\n",
        f"```bash\napply_patch <<'EOF'\n{FULL}EOF\n```\n",
        f'cd repo && apply_patch <<"PATCH"\n{FULL}PATCH\n',
    ],
)
def test_the_whole_grammar_and_what_is_around_it(text: str) -> None:
    assert parse_patch(text.encode()).edits == EDITS


def test_envelopes_follow_one_another() -> None:
    assert parse_patch(f"{FULL}\nand\n\n{FULL}".encode()).edits == EDITS * 2


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("-a\n+b\n", [Section((b"a",), (b"b",))]),
        ("@@\n a\n-b\n+c\n", [Section((b"a", b"b"), (b"a", b"c"))]),
        (
            "@@ class A\n@@ \tdef f(self):\n-b\n+c\n",
            [Section((b"b",), (b"c",), (b"class A", b"def f(self):"))],
        ),
        (
            "@@\n-a\n@@ x\n+b\n",
            [Section((b"a",), ()), Section((), (b"b",), (b"x",))],
        ),
        ("@@\n a\n\n-b\n", [Section((b"a", b"", b"b"), (b"a", b""))]),
        ("@@\n-a\n\n@@\n-b\n\n", [Section((b"a",), ()), Section((b"b",), ())]),
        ("@@\n-a\n*** End of File\n", [Section((b"a",), (), (), True)]),
        (
            "@@\n-a\n\n*** End of File\n-b\n",
            [Section((b"a", b""), (b"",), (), True), Section((b"b",), ())],
        ),
        ("@@ -1,2 +1,2 @@ def f():\n-a\n+b\n", [Section((b"a",), (b"b",))]),
        ("@@ def f(): @@\n-a\n", [Section((b"a",), (), (b"def f():",))]),
        (
            " *** End Patch\n-+x\n+-y\n",
            [Section((b"*** End Patch", b"+x"), (b"*** End Patch", b"-y"))],
        ),
    ],
)
def test_sections(body: str, expected: list[Section]) -> None:
    assert sections(body) == tuple(expected)


def test_an_added_file_keeps_its_blank_lines_and_may_be_empty() -> None:
    text = "*** Begin Patch\n*** Add File: a\n+\n+x\n+\n\n*** Add File: ./b\n*** End Patch\n"
    assert parse_envelope(text.encode()).edits == (
        CreateFile(b"a", b"\nx\n\n"),
        CreateFile(b"b", b""),
    )


def test_a_patch_that_was_cut_off_is_refused() -> None:
    assert faults(FULL.removesuffix("*** End Patch\n")) == [
        (1, "the patch that starts here has no `*** End Patch`; it may have been cut off")
    ]


def test_all_faults_are_told_with_their_lines() -> None:
    text = (
        "*** Begin Patch\n"
        "stray\n"
        "*** Add File: a\n"
        "+x\n"
        "y\n"
        "*** Update File: \n"
        "*** Update File: b\n"
        "@@ nothing\n"
        "*** Update File: c\n"
        "@@\n"
        "def f():\n"
        "*** Move to: d\n"
        "*** Delete File: e\n"
        "-x\n"
        "*** Rename File: f\n"
        "*** End of File\n"
        "*** End Patch\n"
        "*** Delete File: g\n"
    )
    assert [line for line, _ in faults(text)] == [2, 5, 6, 6, 8, 11, 12, 14, 15, 16, 18]


@pytest.mark.parametrize("text", ["", "*** Begin Patch\n*** End Patch\n", "*** Begin\n"])
def test_no_operation_is_a_refusal(text: str) -> None:
    assert len(faults(text)) == 1


def test_faults_are_capped() -> None:
    assert len(faults("*** Begin Patch\n" + "x\n" * 5_000)) == 100


def test_anchors_choose_among_places_and_a_file_moves() -> None:
    tree = {
        b"src/app.py": File(b'def hi():\n    print("Hi")\ndef greet():\nprint("Hi")\n', 0o100755),
        b"obsolete.txt": File(b"x"),
    }
    assert apply_patch(parse_patch(FULL.encode()), tree.get).files == {
        b"hello.txt": File(b"Hello world\n"),
        b"src/app.py": None,
        b"src/main.py": File(
            b'def hi():\n    print("Hi")\ndef greet():\nprint("Hello, world!")\n', 0o100755
        ),
        b"obsolete.txt": None,
    }


def test_classes_narrow_down_to_a_method() -> None:
    text = b"class A:\n    def f(self):\n        pass\nclass B:\n    def f(self):\n        pass\n"
    patch = parse_patch(
        b"*** Begin Patch\n*** Update File: a.py\n@@ class B:\n@@     def f(self):\n"
        b"-        pass\n+        return 1\n*** End Patch\n"
    )
    changed = apply_patch(patch, {b"a.py": File(text)}.get).files[b"a.py"]
    assert changed is not None
    assert changed.content == text[: -len(b"pass\n")] + b"return 1\n"


LINE = st.text(st.characters(codec="utf-8", exclude_characters="\n\r"), max_size=12).map(
    str.encode
) | st.sampled_from([b"*** End Patch", b"@@ x", b"+", b"-", b" ", b"", b"```"])
# An anchor is compared without the white space around it, and `@@` at its end is decoration.
ANCHOR = LINE.map(bytes.strip).filter(lambda line: line and not line.endswith(b"@@"))
PATHS = st.sampled_from([b"a.py", b"src/b.py", b"with space.txt", b"Makefile", "ü".encode()])


@st.composite
def section(draw: st.DrawFn) -> tuple[Section, list[bytes]]:
    """Draw a section and the lines that say it."""
    kinds = draw(st.lists(st.tuples(st.sampled_from(b" -+"), LINE), min_size=1, max_size=6))
    anchors = draw(st.lists(ANCHOR, max_size=2))
    at_end = draw(st.booleans())
    lines = [b"@@ " + anchor for anchor in anchors] or [b"@@"]
    lines += [bytes((kind,)) + line for kind, line in kinds]
    value = Section(
        tuple(line for kind, line in kinds if kind != ord("+")),
        tuple(line for kind, line in kinds if kind != ord("-")),
        tuple(anchors),
        at_end,
    )
    return value, lines + [b"*** End of File"] * at_end


@st.composite
def operation(draw: st.DrawFn) -> tuple[PlanEdit, list[bytes]]:
    """Draw an edit and the lines that say it."""
    path = draw(PATHS)
    kind = draw(st.sampled_from(["Add", "Delete", "Update"]))
    head = b"*** %s File: %s" % (kind.encode(), path)
    if kind == "Delete":
        return DeleteFile(path, must_exist=True), [head]
    if kind == "Add":
        lines = draw(st.lists(LINE, max_size=5))
        return CreateFile(path, b"".join(line + b"\n" for line in lines)), [
            head,
            *(b"+" + line for line in lines),
        ]
    move = draw(st.none() | PATHS)
    parts = draw(st.lists(section(), min_size=move is None, max_size=3))
    said = [line for _, lines in parts for line in lines]
    moved = [] if move is None else [b"*** Move to: " + move]
    return SectionedUpdate(path, tuple(value for value, _ in parts), move), [head, *moved, *said]


@settings(max_examples=150, deadline=None)
@given(st.lists(operation(), min_size=1, max_size=4))
def test_rendered_edits_are_parsed_back(operations: list[tuple[PlanEdit, list[bytes]]]) -> None:
    lines = [line for _, said in operations for line in said]
    text = b"\n".join((b"*** Begin Patch", *lines, b"*** End Patch", b""))
    patch = parse_patch(text)
    assert patch.format == "apply-patch"
    assert patch.edits == tuple(edit for edit, _ in operations)
