"""Commit messages by rule."""

from __future__ import annotations

import hypothesis
import pytest
from hypothesis import strategies as st

from agent.commit_message import COLUMNS, by_rule, is_header, written


@pytest.mark.parametrize(
    ("objective", "paths", "header"),
    [
        ("Fix the crash in it.", ["src/shop/parser.py"], "fix(parser): fix the crash in it"),
        ("Add a cache", ["agent/utils/a.py", "agent/utils/b.py"], "feat(utils): add a cache"),
        ("Refactor it", ["a/x.py", "b/y.py"], "refactor: refactor it"),
        ("Improve the guide", ["docs/guide.md", "README.md"], "docs: improve the guide"),
        ("Cover more", ["tests/test_a.py"], "test(test_a): cover more"),
        ("Whatever", [".github/workflows/ci.yml"], "ci(workflows): whatever"),
        ("Whatever", ["pyproject.toml"], "build: whatever"),
        ("Refatorar a/brain.py", ["a/brain.py"], "refactor(brain): refatorar a/brain.py"),
        ("[AUTOMATIC CORRECTION] Repair it", ["x/__init__.py"], "fix(x): repair it"),
        ("HTTP errors are shown", ["web/http.py"], "fix(http): HTTP errors are shown"),
    ],
)
def test_type_and_scope_come_from_words_and_paths(
    objective: str, paths: list[str], header: str
) -> None:
    message = by_rule(objective, paths)
    assert message is not None and message.splitlines()[0] == header
    assert is_header(header)


def test_without_a_sign_there_is_no_confident_answer() -> None:
    assert by_rule("Make the world a better place", ["a.py"]) is None
    # A word far behind says nothing of the whole.
    assert by_rule("Let users see at a glance what a test did", ["a.py"]) is None
    assert written("chore", "Make it better", ["a.py"]) == "chore(a): make it better"


def test_what_is_too_long_for_the_header_is_in_the_body() -> None:
    objective = "Split the function that reads all of the configuration and checks it " * 3
    message = by_rule(objective, ["a/config.py"])
    assert message is not None
    header, blank, *body = message.splitlines()
    assert header.startswith("refactor(config): split the function") and header.endswith("...")
    assert blank == "" and " ".join(body) == objective.strip()
    assert all(len(line) <= COLUMNS for line in (header, *body))
    message = by_rule("Fix it. It was broken since v1.2.", ["a.py"])
    assert message == "fix(a): fix it\n\nFix it. It was broken since v1.2."


PATHS = st.from_regex(r"[a-z]{1,9}(/[a-z_]{1,9}){0,3}\.py", fullmatch=True)


@hypothesis.given(st.text(), st.lists(PATHS, min_size=1))
def test_every_message_has_a_header_that_holds(objective: str, paths: list[str]) -> None:
    header, *rest = written("fix", objective, paths).split("\n")
    assert is_header(header), header
    assert not rest or rest[0] == ""


@pytest.mark.parametrize(
    "text", ["", "fix: ", "fix it", "fixed: it", "fix(a b): it", "fix: a\nb", "fix: " + "x" * 80]
)
def test_what_is_no_header(text: str) -> None:
    assert not is_header(text)
