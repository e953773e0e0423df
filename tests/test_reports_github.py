"""GitHub Actions: what matters first, and no text of a patch that is more than text."""

from __future__ import annotations

import html.parser
import re

from hypothesis import given, settings
from hypothesis import strategies as st
from judged_samples import BLANK, HOSTILE, failed, rejected, several

from sandbox_engine.reports import Judged, github

COMMAND = re.compile(r"::(error|warning|notice) [^\n]*?::[^\n]*")


def test_the_worst_comes_first_and_nothing_where_all_passed() -> None:
    lines = github.commands(several()).splitlines()
    levels = [line.split(" ")[0] for line in lines]
    assert levels == sorted(levels, key=["::error", "::warning", "::notice"].index)
    assert {"::error", "::warning", "::notice"} == set(levels)
    assert github.commands([Judged("a", BLANK)]) == ""


def test_a_finding_is_beside_its_line() -> None:
    lines = github.commands([rejected("50% off: a, b\nnext")]).splitlines()
    assert lines[1] == (
        "::error file=src/a b.py,line=3,col=5,title=no-match::50%25 off: a, b%0Anext"
    )
    assert "::error file=tests/test_regressed.py,title=regressed%3A " in github.commands([failed()])


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=())))
def test_no_text_begins_a_command(text: str) -> None:
    for line in github.commands(several(text)).split("\n")[:-1]:
        assert COMMAND.fullmatch(line)
        properties = line.split("::")[1]
        assert set(re.findall(r"(?:^\w+ |,)(\w+)=", properties)) <= {"file", "line", "col", "title"}
    assert not re.search(r"^::", github.summary(several(text)), re.M)


class Reader(html.parser.HTMLParser):
    """Collects the tags of HTML in Markdown."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)


def tags(text: str) -> list[str]:
    reader = Reader()
    reader.feed(text)
    return reader.tags


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=())))
def test_no_text_is_html_or_a_cell_of_its_own(text: str) -> None:
    plain, odd = github.summary(several("x")), github.summary(several(text))
    assert tags(odd) == tags(plain)
    rows = [line for line in odd.split("\n") if line.startswith("|")]
    assert {line.count("|") for line in rows} == {6} and len(rows) == 7


def test_hostile_text_is_text_and_a_planted_fault_is_seen() -> None:
    assert tags("<pre></details><script>") == ["pre", "script"]
    summary = github.summary(several(HOSTILE))
    assert set(tags(summary)) == {"details", "summary", "pre"}
    assert "http:" not in summary.split("<details>")[0] and "@" not in summary.split("<details>")[0]
    assert "FAILED" in summary and "&#58;" in summary


def test_a_summary_is_no_longer_than_github_takes() -> None:
    summary = github.summary([*several(), failed("E   " + "ü" * 2_000_000), *several()])
    assert len(summary.encode()) < github.MOST_BYTES
    assert summary.endswith("longer than GitHub shows.\n")
    assert tags(summary).count("details") == summary.count("</details>")
