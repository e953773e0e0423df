"""JSON plans: what is found in prose, what each operation does, what is refused and how."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox_engine.errors import PatchConflictError, PatchError, PatchSyntaxError, UsageError
from sandbox_engine.patch import FORMATS, EditStatus, File, apply_patch, matching, parse_patch
from sandbox_engine.verdict import Finding


def op(operation: str = "REPLACE", path: str = "f", **rest: Any) -> dict[str, Any]:
    return {"operation": operation, "file_path": path, **rest}


def plan(*ops: object, analysis: str = "why") -> bytes:
    return json.dumps({"analysis": analysis, "patches_to_apply": list(ops)}).encode()


def applied(content: bytes | None, *ops: dict[str, Any]) -> bytes | None:
    """Return what the plan makes of the file `f`; None is no file."""
    file = None if content is None else File(content, 0o100644)
    changes = apply_patch(parse_patch(plan(*ops)), {b"f": file}.get)
    after = changes.files.get(b"f", file)
    return after.content if after else None


def refused(content: bytes | None, *ops: dict[str, Any]) -> Finding:
    with pytest.raises(PatchError) as caught:
        applied(content, *ops)
    return caught.value.findings[0]


def replaced(content: bytes, block: object, text: object, **rest: Any) -> bytes | None:
    return applied(content, op(block_to_replace=block, content=text, **rest))


INSERT = op("INSERT", content="x")


@pytest.mark.parametrize(
    "text",
    [
        plan(INSERT),
        b"\xef\xbb\xbf  \n" + plan(INSERT),
        b"Sure! Here is the {plan}:\n```json\n" + plan(INSERT) + b"\n```\nIt isn't long.",
        json.dumps([INSERT]).encode(),
        json.dumps(INSERT).encode(),
        json.dumps({"patches_to_apply": INSERT}).encode(),
        b'The config is {"debug": true} and [{"a": 1}].\n' + plan(INSERT),
        b'A broken {"thing": } first, then ' + plan(INSERT),
        plan({**INSERT, "reason": "harmless"}),
        plan({**INSERT, "operation": " insert "}),
    ],
)
def test_a_plan_is_found(text: bytes) -> None:
    patch = parse_patch(text)
    assert patch.format == "json"
    assert len(patch.edits) == 1
    assert patch.edits[0].path == b"f"


def test_the_analysis_is_the_summary() -> None:
    assert parse_patch(plan(INSERT, analysis="fix é")).summary == "fix é"
    assert parse_patch(json.dumps([INSERT]).encode()).summary == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (plan(INSERT) + plan(INSERT), "2 JSON plans"),
        (plan(), "changes nothing"),
        (b'{"patches_to_apply": 3}', "not a list"),
        (b'{"patches_to_apply": [], "patches_to_apply": []}', "twice"),
        (b'{"patches_to_apply": [{"line_number": NaN}]}', "NaN"),
        (b'{"analysis": ' + b"[" * 100_000, "deeply"),
        (b'[{"a":' * 100_000, "deeply"),
        (plan(INSERT)[:-2], "broken"),
        (b'{"a": 1}', "no JSON plan"),
        (b'{"patches_to_apply": "\xff"}', "not UTF-8"),
        (b'{"line_number": ' + b"9" * 5000 + b"}", "JSON holds"),
    ],
)
def test_text_without_one_sound_plan_is_refused(text: bytes, message: str) -> None:
    with pytest.raises(PatchSyntaxError, match=message) as caught:
        parse_patch(text, format="json")
    assert caught.value.findings
    assert caught.value.remedy


def test_the_sound_part_of_a_broken_plan_is_not_taken_for_the_plan() -> None:
    whole = plan(INSERT, op("INSERT", "g", content="y"))
    for end in range(len(whole) - 1, 20, -1):
        with pytest.raises(PatchSyntaxError):
            parse_patch(whole[:end], format="json")
    with pytest.raises(PatchSyntaxError, match="line 1"):
        parse_patch(whole.replace(b'"x"', b'"x\ny"'), format="json")


def test_broken_starts_cost_linear_time() -> None:
    for text in (b'{"a": ' * 200_000, b'{"a":, ' * 200_000, b"[{" * 300_000, b'{"a' * 300_000):
        with pytest.raises(PatchSyntaxError):
            parse_patch(text, format="json")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (op("MOVE"), 'the string "MOVE", unknown'),
        (op(None), "null, unknown"),  # type: ignore[arg-type]
        ("text", "not an object"),
        ({"operation": "INSERT", "content": "x"}, "`file_path` is missing"),
        (op("INSERT", 3, content="x"), "the number 3"),  # type: ignore[arg-type]
        (op("INSERT", "", content="x"), "empty"),
        (op("INSERT"), "`content` is missing"),
        (op("INSERT", content=4), "`content` is the number 4"),
        (op("INSERT", content=["a", 1]), "not only strings"),
        (op("INSERT", content="x", line_number=True), "true, not a whole number"),
        (op("INSERT", content="x", line_number="three"), "not a whole number"),
        (op("INSERT", content="x", line_number=1.5), "not a whole number"),
        (op("INSERT", content="\ud800"), "surrogate"),
        (op("DELETE_BLOCK", block_to_delete=""), "`block_to_delete` is empty"),
        (op(block_to_replace="", content="x"), "`block_to_replace` is empty"),
        (op(block_to_replace="a", content="x", is_regex="yes"), "not true or false"),
        (op(block_to_replace=None, content="x", is_regex=True), "holds no pattern"),
        (op(block="a", content="x"), "name it `block_to_replace`"),
        (op("DELETE_BLOCK", block_to_replace="a"), "name it `block_to_delete`"),
    ],
)
def test_a_malformed_operation_is_reported_by_its_index(bad: object, message: str) -> None:
    with pytest.raises(PatchSyntaxError) as caught:
        parse_patch(plan(INSERT, bad, INSERT, bad))
    first, second = caught.value.findings
    assert first.message.startswith("`patches_to_apply[1]`: ")
    assert second.message.startswith("`patches_to_apply[3]`: ")
    assert message in f"{first.message} {first.hint}"


def test_a_key_given_twice_is_malformed() -> None:
    text = b'[{"operation": "INSERT", "file_path": "f", "content": "a", "content": "b"}]'
    with pytest.raises(PatchSyntaxError, match="`content` is there twice"):
        parse_patch(text)


def test_an_unknown_format_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="json, unified"):
        parse_patch(b"", format="yaml")
    assert FORMATS == ("json", "unified", "mbox", "search-replace", "apply-patch", "files")


@pytest.mark.parametrize("text", [b"", b" \n", b"hello", b"@@ nothing @@"])
def test_text_of_no_format_is_refused(text: bytes) -> None:
    with pytest.raises(PatchSyntaxError):
        parse_patch(text)


@pytest.mark.parametrize(
    ("content", "line", "text", "after"),
    [
        (b"a\nb\n", 2, "x", b"a\nx\nb\n"),
        (b"a\nb\n", "2", "x\n", b"a\nx\nb\n"),
        (b"a\nb\n", 1, ["x", "y"], b"x\ny\na\nb\n"),
        (b"a\nb\n", -3, "x", b"x\na\nb\n"),
        (b"a\nb\n", 99, "x", b"a\nb\nx\n"),
        (b"a\nb\n", None, "x", b"a\nb\nx\n"),
        (b"a\nb", None, "x", b"a\nb\nx"),
        (b"a\nb", None, "x\n", b"a\nb\nx\n"),
        (b"a\nb", 2, "x", b"a\nx\nb"),
        (b"", None, "x", b"x\n"),
        (None, 7, "x", b"x\n"),
        (b"a\r\nb\r\n", 2, "x\ny", b"a\r\nx\r\ny\r\nb\r\n"),
        (b"a\r\nb", None, "x", b"a\r\nb\r\nx"),
        (b"a\r\n", None, "x\r\n", b"a\r\nx\r\n"),
        (b"\xef\xbb\xbfa\n", 1, "x", b"\xef\xbb\xbfx\na\n"),
        (b"\xff\x0c\n\x85\n", 2, "é", b"\xff\x0c\n\xc3\xa9\n\x85\n"),
        (b"a\x0cb\x0bc\xc2\x85d\ne\n", 2, "x", b"a\x0cb\x0bc\xc2\x85d\nx\ne\n"),
    ],
)
def test_insert(content: bytes | None, line: object, text: object, after: bytes) -> None:
    assert applied(content, op("INSERT", content=text, line_number=line)) == after


@pytest.mark.parametrize("special", [*"*+?^$[]{}()|\\.", "a+b", "f(x)[0]", "^x$"])
def test_a_literal_block_is_literal(special: str) -> None:
    block = special.encode()
    assert replaced(b"1 " + block + b" 2\n", special, "\\1 \\g<0>") == b"1 \\1 \\g<0> 2\n"
    assert refused(b"zzz\n", op(block_to_replace=special, content="")).code == "block-not-found"


def test_a_block_in_two_places_names_their_lines() -> None:
    content = b"x = 1\ny\nx = 1\nx = 1\n"
    finding = refused(content, op(block_to_replace="x = 1", content="z"))
    assert finding.code == "block-ambiguous"
    assert "lines 1, 3, 4" in finding.message
    assert finding.source == "x = 1"
    assert replaced(content, "x = 1", "z", line_number="3") == b"x = 1\ny\nz\nx = 1\n"
    assert refused(content, op(block_to_replace="x = 1", content="z", line_number=2)).line == 1


def test_a_block_that_overlaps_itself_is_ambiguous() -> None:
    assert refused(b"aaa", op(block_to_replace="aa", content="b")).code == "block-ambiguous"


def test_a_line_number_does_not_forbid_the_only_place() -> None:
    assert replaced(b"a\nb\n", "b", "c", line_number=1) == b"a\nc\n"


@pytest.mark.parametrize(
    ("content", "block", "text", "after"),
    [
        (b"a\r\nb\r\nc\r\n", "a\nb\n", "x\ny\nz\n", b"x\r\ny\r\nz\r\nc\r\n"),
        (b"a\r\nb\r\n", "a", "x\ny", b"x\r\ny\r\nb\r\n"),
        (b"a\r\nb\r\n", "a\r\nb", "x\r\ny", b"x\r\ny\r\n"),
        (b"a\nb\nc\r\nd\r\ne\r\n", "a\nb", "x\ny", b"x\ny\nc\r\nd\r\ne\r\n"),
        (b"a\nb\nc\r\nd\r\n", "c\nd", "x\ny", b"a\nb\nx\r\ny\r\n"),
        (b"\xffa\xfe", "a", "b", b"\xffb\xfe"),
        (b"a\nb", "b", "c", b"a\nc"),
    ],
)
def test_replace_keeps_the_bytes_around(
    content: bytes, block: str, text: str, after: bytes
) -> None:
    assert replaced(content, block, text) == after


def test_replace_of_a_null_block_writes_the_file_as_given() -> None:
    assert replaced(b"a\r\n", None, "x\ny") == b"x\ny"
    assert applied(None, op(content="x", block_to_replace=None)) == b"x"
    script = File(b"old", 0o100755)
    patch = parse_patch(plan(op(block_to_replace=None, content="new")))
    assert apply_patch(patch, {b"f": script}.get).files == {b"f": File(b"new", 0o100755)}


def test_a_block_in_a_missing_file_is_not_found() -> None:
    assert refused(None, op(block_to_replace="a", content="b")).code == "file-missing"


def test_delete_block() -> None:
    assert applied(b"a\nb\nc\n", op("DELETE_BLOCK", block_to_delete="b\n")) == b"a\nc\n"
    assert applied(b"a\nb\n", op("DELETE_BLOCK", block_to_delete=None)) is None
    assert applied(b"a1b22", op("DELETE_BLOCK", block_to_delete=r"\d+", is_regex=True)) == b"ab"
    assert refused(b"a", op("DELETE_BLOCK", block_to_delete="b")).code == "block-not-found"


@pytest.mark.parametrize("block", [None, "a"])
def test_deleting_from_a_missing_file_is_skipped(block: str | None) -> None:
    changes = apply_patch(
        parse_patch(plan(op("DELETE_BLOCK", block_to_delete=block))), lambda path: None
    )
    assert changes.files == {}
    assert changes.reports[0].status is EditStatus.NO_OP


def test_an_edit_without_effect_is_a_no_op() -> None:
    patch = parse_patch(plan(op(block_to_replace="a", content="a")))
    changes = apply_patch(patch, {b"f": File(b"a", 0o100644)}.get)
    assert changes.files == {}
    assert changes.reports[0].status is EditStatus.NO_OP


@pytest.mark.parametrize(
    ("content", "pattern", "template", "after"),
    [
        (b"a1 b2\n", r"(\w)(\d)", r"\2\1", b"1a 2b\n"),
        (b"a\nb\na\n", r"^a$", "x", b"x\nb\nx\n"),
        (b"a\nb\nc\n", r"a.*c", r"\g<0>!", b"a\nb\nc!\n"),
        (b"a\r\nb\r\n", r"a$", "x\ny", b"x\r\ny\r\nb\r\n"),
        (b"\xffa\xfe", "a", "é", b"\xff\xc3\xa9\xfe"),
        ("é1".encode(), r"\d", "2", "é2".encode()),
    ],
)
def test_a_pattern_replaces_every_match(
    content: bytes, pattern: str, template: str, after: bytes
) -> None:
    assert replaced(content, pattern, template, is_regex=True) == after


@pytest.mark.parametrize(
    ("content", "pattern", "template", "code"),
    [
        (b"a", "(", "x", "pattern-malformed"),
        (b"a", "(" * 5000 + ")" * 5000, "x", "pattern-malformed"),
        (b"a", "b" * 20_000, "x", "pattern-malformed"),
        (b"a", "((a{999}){999}){,999}", "x", "pattern-malformed"),
        (b"a", "(?R)?a", "x", "pattern-malformed"),
        (b"a", "b", "x", "pattern-not-found"),
        (b"a", "a", r"\9", "template-malformed"),
        (b"a", "a", r"\g<nope>", "template-malformed"),
        (b"a" * 5000 + b"!", "(a|aa)+$", "x", "pattern-timeout"),
        (b"a" * 100_000, "a", "x" * 10_000, "file-too-large"),
    ],
)
def test_a_bad_pattern_is_refused(content: bytes, pattern: str, template: str, code: str) -> None:
    edit = op(block_to_replace=pattern, content=template, is_regex=True)
    assert refused(content, edit).code == code


def test_edits_build_on_each_other_and_all_refusals_are_told() -> None:
    steps = [
        op("INSERT", "new.py", content="a\nb"),
        op("REPLACE", "new.py", block_to_replace="b", content="c"),
        op("DELETE_BLOCK", "f", block_to_delete=None),
        op("INSERT", "f", content="again"),
    ]
    changes = apply_patch(parse_patch(plan(*steps)), {b"f": File(b"x", 0o100755)}.get)
    assert changes.files[b"new.py"] == File(b"a\nc\n", 0o100644)
    assert changes.files[b"f"] == File(b"again\n", 0o100644)

    broken = [op(block_to_replace="q", content=""), INSERT, op(path="../x", content="")]
    with pytest.raises(PatchError) as caught:
        apply_patch(parse_patch(plan(*broken)), {b"f": File(b"x", 0o100644)}.get)
    assert [finding.code for finding in caught.value.findings] == [
        "block-not-found",
        "forbidden-path",
    ]
    assert "edit 1, `f`" in caught.value.findings[0].message


def test_a_leading_dot_slash_is_no_part_of_the_path() -> None:
    patch = parse_patch(plan(op("INSERT", ".//./src/a.py", content="x")))
    assert patch.edits[0].path == b"src/a.py"


def test_refusal_texts_are_safe_and_short() -> None:
    hostile = "\x1b[31m" + "\u202e" + "z" * 100_000
    with pytest.raises(PatchConflictError) as caught:
        applied(b"a", op(block_to_replace=hostile, content=""))
    finding = caught.value.findings[0]
    assert finding.source is not None
    assert "\x1b" not in finding.source and "\u202e" not in finding.source
    assert len(str(caught.value)) < 1000


@settings(deadline=None)
@given(
    before=st.binary(max_size=60),
    block=st.text(alphabet="ab\n", min_size=1, max_size=4),
    text=st.text(alphabet="xy\r\n\\", max_size=6),
    after=st.binary(max_size=60),
)
def test_what_is_outside_the_block_survives(
    before: bytes, block: str, text: str, after: bytes
) -> None:
    content = before + block.encode() + after
    if len(matching.find_block(content, block.encode()).offsets) > 1:
        finding = refused(content, op(block_to_replace=block, content=text))
        assert finding.code == "block-ambiguous"
        return
    result = replaced(content, block, text)
    assert result is not None
    assert result.startswith(before) and result.endswith(after)
