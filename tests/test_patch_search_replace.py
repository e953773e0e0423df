"""Search/replace blocks: names before, inside and carried over; what is not clear is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox_engine.errors import PatchConflictError, PatchSyntaxError
from sandbox_engine.patch import File, apply_patch, parse_patch
from sandbox_engine.patch.edits import InsertLines, PlanEdit, Section, SectionedUpdate
from sandbox_engine.patch.search_replace import parse_search_replace
from sandbox_engine.verdict import Finding


def change(path: bytes, before: list[bytes], after: list[bytes]) -> SectionedUpdate:
    return SectionedUpdate(path, (Section(tuple(before), tuple(after)),))


def findings(text: str) -> list[Finding]:
    with pytest.raises(PatchSyntaxError) as caught:
        parse_search_replace(text.encode())
    return list(caught.value.findings)


BLOCK = "<<<<<<< SEARCH\nx = 1\n=======\nx = 2\n>>>>>>> REPLACE\n"
AIDER = """\
To make this change we need to modify two files:

1. Import the package.
2. Use it.

mathweb/flask/app.py
```python
<<<<<<< SEARCH
from flask import Flask
=======
import math
from flask import Flask
>>>>>>> REPLACE
```

Remove the function, and call the other one:

```python
<<<<<<< SEARCH
def factorial(n):
    "compute factorial"

    return n

=======
>>>>>>> REPLACE
```

hello.py
```python
<<<<<<< SEARCH
=======
def hello():
    print("hello")
>>>>>>> REPLACE
```
"""


def test_what_aider_s_prompt_shows() -> None:
    assert parse_patch(AIDER.encode()).edits == (
        change(
            b"mathweb/flask/app.py",
            [b"from flask import Flask"],
            [b"import math", b"from flask import Flask"],
        ),
        change(
            b"mathweb/flask/app.py",
            [b"def factorial(n):", b'    "compute factorial"', b"", b"    return n", b""],
            [],
        ),
        InsertLines(b"hello.py", b'def hello():\n    print("hello")\n'),
    )


@pytest.mark.parametrize(
    "lead",
    [
        "src/a.py\n",
        "src/a.py:\n",
        "./src/a.py\n",
        "`src/a.py`\n",
        "**src/a.py**\n",
        "**`src/a.py`**:\n",
        "### src/a.py\n",
        "#src/a.py\n",
        "### `src/a.py`\n\n",
        "File: src/a.py\n",
        "**File:** `src/a.py`\n",
        "1. `src/a.py`\n",
        "- src/a.py\n",
        "`src/a.py` (updated)\n",
        "Updated `src/a.py`\n",
        "In `src/a.py` change the number:\n\n",
        "src/a.py\n```python\n",
        "src/a.py\n\n```python\n",
        "```python\nsrc/a.py\n",
        "src/a.py\n```python\nsrc/a.py\n",
        "```python src/a.py\n",
        "```src/a.py\n",
        "````src/a.py\n",
        '~~~python title="src/a.py"\n',
        "src/a.py\n<source>\n",
        "src/a.py\r\n",
    ],
)
def test_where_models_put_the_name(lead: str) -> None:
    text = f"Some words.\n\n{lead}{BLOCK}"
    assert parse_patch(text.encode()).edits == (change(b"src/a.py", [b"x = 1"], [b"x = 2"]),)


@pytest.mark.parametrize("name", ["Makefile", ".gitignore", "a b.txt", "x", "ü.md", "d/no_dot"])
def test_a_quoted_name_on_the_line_before_may_be_any(name: str) -> None:
    (edit,) = parse_search_replace(f"`{name}`\n{BLOCK}".encode()).edits
    assert edit.path == name.encode()


@pytest.mark.parametrize("marks", [(5, 5, 5), (9, 9, 9), (7, 5, 9), (5, 9, 7)])
def test_markers_of_five_to_nine_characters(marks: tuple[int, int, int]) -> None:
    first, second, third = marks
    text = f"a.py\n{'<' * first} SEARCH\nx\n{'=' * second}\ny\n{'>' * third} REPLACE\n"
    assert parse_patch(text.encode()).edits == (change(b"a.py", [b"x"], [b"y"]),)


def test_windows_line_endings_are_no_part_of_what_is_sought() -> None:
    text = f"a.py\n{BLOCK}".replace("\n", "\r\n").encode()
    assert parse_patch(text).edits == (change(b"a.py", [b"x = 1"], [b"x = 2"]),)


def test_markers_of_another_length_are_text() -> None:
    text = f"a.md\n<<<<<<<<< SEARCH\n{BLOCK}=========\nnone\n>>>>>>>>> REPLACE\n"
    lines = BLOCK.encode().split(b"\n")[:-1]
    assert parse_patch(text.encode()).edits == (change(b"a.md", lines, [b"none"]),)


def test_a_heading_that_looks_like_a_divider_is_text_if_its_length_differs() -> None:
    text = b"a.rst\n<<<<<<< SEARCH\nHi\n=====\n=======\nHello\n=====\n>>>>>>> REPLACE\n"
    assert parse_patch(text).edits == (change(b"a.rst", [b"Hi", b"====="], [b"Hello", b"====="]),)


def test_two_lines_that_could_divide_a_block_are_refused_with_both() -> None:
    (finding,) = findings("a.rst\n<<<<<<< SEARCH\nHi\n=======\n=======\nHo\n>>>>>>> REPLACE\n")
    assert finding.line == 2
    assert "lines 4, 5 could be" in finding.message
    assert finding.hint is not None and "5 to 9" in finding.hint


def test_all_faults_are_told_with_their_lines() -> None:
    text = (
        f"no name here at all\n{BLOCK}"
        f"a.py\n<<<<<<< SEARCH\nx\n>>>>>>> REPLACE\n"
        f"a.py\n```\nb.py\n{BLOCK}"
        f">>>>>>> REPLACE\n"
        f"a.py\n<<<<<<< SEARCH\n\n=======\n>>>>>>> REPLACE\n"
        f"a.py\n<<<<<<< SEARCH\nx\n=======\ny\n"
    )
    assert sorted((finding.line, finding.message[:40]) for finding in findings(text)) == [
        (2, "no line before the block names its file"),
        (8, "the block has no `=======` before its en"),
        (14, "which file the block is about is unclear"),
        (19, "a REPLACE marker stands without a SEARCH"),
        (21, "both sides of the block are empty"),
        (26, "the block has no `>>>>>>> REPLACE` befor"),
    ]


def test_prose_is_no_file_name() -> None:
    (finding,) = findings(f"Here is the change you wanted:\n{BLOCK}")
    assert finding.source == "Here is the change you wanted:"


@pytest.mark.parametrize(
    ("prose", "path"),
    [
        ("Then call `os.path` and `self.config`:", b"a.py"),
        ("In `a.py`, too:", b"a.py"),
        ("- b.py\n- c.py\n\nd.py\n```", b"d.py"),
        ("Now the other:\n\n`Foo.bar`:\n\n", b"a.py"),
    ],
)
def test_prose_between_blocks_does_not_hide_the_file(prose: str, path: bytes) -> None:
    edits = parse_search_replace(f"a.py\n{BLOCK}\n{prose}\n{BLOCK}".encode()).edits
    assert [edit.path for edit in edits] == [b"a.py", path]


def test_prose_that_names_another_file_makes_it_unclear() -> None:
    (finding,) = findings(f"a.py\n{BLOCK}\nAnd in `src/b.py`:\n{BLOCK}")
    assert finding.message == "which file the block is about is unclear: `src/b.py` and `a.py`"


def test_faults_are_capped() -> None:
    assert len(findings(">>>>>>> REPLACE\n" * 5_000)) == 100


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"max = 1\nx = 1\n", b"max = 1\nx = 2\n"),
        (b"a\nx = 1", b"a\nx = 2"),
        (b"a\r\nx = 1\r\n", b"a\r\nx = 2\r\n"),
        (b"\xef\xbb\xbfx = 1\n\xff\n", b"\xef\xbb\xbfx = 2\n\xff\n"),
    ],
)
def test_only_whole_lines_are_replaced(before: bytes, after: bytes) -> None:
    changes = apply_patch(parse_patch(f"a.py\n{BLOCK}".encode()), {b"a.py": File(before)}.get)
    assert changes.files == {b"a.py": File(after)}


@pytest.mark.parametrize("content", [b"max = 1\n", b"x = 1\nx = 1\n", None])
def test_a_place_that_is_not_there_or_not_the_only_one_is_refused(content: bytes | None) -> None:
    tree = {} if content is None else {b"a.py": File(content)}
    with pytest.raises(PatchConflictError):
        apply_patch(parse_patch(f"a.py\n{BLOCK}".encode()), tree.get)


def test_an_empty_search_appends_or_creates() -> None:
    patch = parse_patch(b"a.py\n<<<<<<< SEARCH\n=======\ny = 2\n>>>>>>> REPLACE\n")
    assert apply_patch(patch, {}.get).files == {b"a.py": File(b"y = 2\n")}
    tree = {b"a.py": File(b"x = 1\n")}
    assert apply_patch(patch, tree.get).files == {b"a.py": File(b"x = 1\ny = 2\n")}
    windows = parse_patch(b"a.py\r\n<<<<<<< SEARCH\r\n=======\r\ny = 2\r\n>>>>>>> REPLACE\r\n")
    assert windows.edits == patch.edits


MARKS = ["<<<<<<< SEARCH", "=====", "=======", ">>>>>>> REPLACE", "======== ", ">>>>> REPLACE"]
LINES = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="\n\r"), max_size=12)
    | st.sampled_from([*MARKS, "", "    x", "```", "```python", "a.py", "*** End Patch", "@@"]),
    max_size=6,
).map(lambda lines: [line.encode() for line in lines])
PATHS = st.sampled_from([b"a.py", b"src/b.py", b"Makefile", b".env", b"d/e/f.txt", b"x-y_z.md"])
CHANGES = st.builds(change, PATHS, LINES.filter(lambda new: any(map(bytes.strip, new))), LINES)
INSERTIONS = st.builds(
    lambda path, new: InsertLines(path, b"\n".join((*new, b""))), PATHS, LINES.filter(bool)
)


def render(edit: PlanEdit, style: int, is_named: bool) -> bytes:
    """Return `edit` as a block whose markers are of a length that no line within it has."""
    if isinstance(edit, SectionedUpdate):
        before, after = edit.sections[0].before, edit.sections[0].after
    else:
        assert isinstance(edit, InsertLines)
        before, after = (), tuple(edit.text.split(b"\n")[:-1])
    taken = {line.count(line[:1]) for line in (*before, *after) if line[:1] in b"<=>"}
    size = next(size for size in (7, 6, 8, 9, 5, 4) if size not in taken)
    block = b"\n".join(
        (b"<" * size + b" SEARCH", *before, b"=" * size, *after, b">" * size + b" REPLACE", b"")
    )
    leads = [b"%s\n", b"`%s`\n````python\n", b"````\n%s\n", b"### **%s**:\n\n", b"````x %s\n"]
    lead = leads[style % len(leads)] % edit.path if is_named else b"Next:\n"
    return lead + block + (b"````\n\n" if b"````" in lead else b"\n")


@settings(max_examples=150, deadline=None)
@given(st.lists(CHANGES | INSERTIONS, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_rendered_edits_are_parsed_back(edits: list[PlanEdit], random: object) -> None:
    import random as module

    assert isinstance(random, module.Random)
    text, last = b"", b""
    for edit in edits:
        text += render(edit, random.randrange(5), edit.path != last or random.random() < 0.5)
        last = edit.path
    assert parse_search_replace(text).edits == tuple(edits)
