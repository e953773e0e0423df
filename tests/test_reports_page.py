"""The page: complete by itself, inert whatever a patch says, readable for everybody."""

from __future__ import annotations

import dataclasses
import html.parser
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
from browser import browse, needs_browser, pixels
from conftest import GitBox
from hypothesis import given, settings
from hypothesis import strategies as st
from judged_samples import BLANK, HOSTILE, failed, several
from test_cli import BREAKING, GOOD, SYNTAX, run

from sandbox_engine.reports import Judged, page
from sandbox_engine.reports.page_style import DARK, LIGHT, TEXT_ON
from sandbox_engine.verdict import Category, Outcome, StepResult, TestOutcome, TestRecord

VOID = ("meta", "br", "link", "img", "hr", "input")
pytestmark = pytest.mark.usefixtures("no_reruns")


class Reader(html.parser.HTMLParser):
    """Notes the tags of a page, and that each is closed where it should be."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.headings: list[int] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        values = dict(attrs)
        assert not any(name.startswith("on") for name in values)
        assert "src" not in values
        if values.get("id"):
            self.ids.append(str(values["id"]))
        if tag == "a":
            self.links.append(str(values["href"]))
        if re.fullmatch(r"h\d", tag):
            self.headings.append(int(tag[1]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    assert set(reader.links) <= {f"#{id}" for id in reader.ids}, "a link leads nowhere, or outside"
    assert len(reader.ids) == len(set(reader.ids))
    return reader


def test_one_page_has_the_outcome_first_and_headings_in_order() -> None:
    text = page.render([failed()])
    reader = read(text)
    assert "<title>FAILED: a.diff</title>" in text
    assert reader.headings[0] == 1 and set(reader.headings[1:]) == {3}
    for category in Category:
        assert f"<td>{category}</td>" in text
    listed = re.findall(r"<code>tests/test_(\w+)\.py::test_it</code>", text)
    assert listed[:2] == ["regressed", "new_failed"] and "passed" not in listed
    reader = read(page.render(several()))
    assert reader.headings.count(1) == 1 and reader.headings.count(2) == 5
    assert [link for link in reader.links if link.startswith("#c")] == [
        f"#c{number}" for number in range(1, 6)
    ]


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=())))
def test_no_text_is_more_than_text(text: str) -> None:
    head = b"diff --git a/x b/x\n@@ -1 +1 @@\n+"
    diff = head + text.encode("utf-8", "replace")
    plain = [dataclasses.replace(one, diff=head + b"x") for one in several("x")]
    odd = [dataclasses.replace(one, diff=diff) for one in several(text)]
    text = page.render(odd)
    text.encode()
    assert set(read(text).tags) <= set(read(page.render(plain)).tags)


def test_hostile_text_is_shown_and_a_planted_fault_is_seen() -> None:
    text = page.render(several(HOSTILE))
    assert read(text).tags["script"] == 0
    assert "\\x1b[2J\\x00\\u202e\\udcff" in text and "\x1b" not in text and "\u202e" not in text
    with pytest.raises(AssertionError):
        read("<p><b></p></b>")
    with pytest.raises(AssertionError):
        read('<p onclick="x"></p>')
    with pytest.raises(AssertionError):
        read('<a href="http://example.org"></a>')


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours as WCAG 2.2 defines it."""

    def luminance(colour: str) -> float:
        channels = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
        red, green, blue = (
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_text_can_be_read(colours: Mapping[str, str]) -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for ink, ground in TEXT_ON:
        assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
    assert contrast("#888888", "#ffffff") < 4.5


def test_a_long_page_is_cut_and_says_so() -> None:
    records = tuple(
        TestRecord(
            f"t.py::t[{n}]", TestOutcome.FAILED, 0.1, "E " + "x" * 50_000, Category.REGRESSED
        )
        for n in range(3_000)
    )
    step = StepResult("pytest", Outcome.FAILED, 9.0, tests=records)
    rows = b"".join(b"+line %d\n" % number for number in range(100_000))
    diff = b"diff --git a/x b/x\n@@ -0,0 +1,100000 @@\n" + rows
    verdict = dataclasses.replace(BLANK, outcome=Outcome.FAILED, steps=(step,))
    text = page.render([Judged("long", verdict, diff=diff)])
    assert len(text) < 4_000_000
    assert "and 2800 more that are not shown" in text and "96001 more lines are not shown" in text
    assert "characters more" in text


def test_findings_are_beside_their_lines(project: GitBox, tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text(SYNTAX)
    (tmp_path / "breaking.json").write_text(BREAKING)
    (tmp_path / "good.json").write_text(GOOD)
    report = tmp_path / "report.html"
    names = [str(tmp_path / f"{name}.json") for name in ("good", "breaking", "broken")]
    run("validate", *names, "--report", str(report), cwd=project.top, check=1)
    text = report.read_text()
    read(text)
    row = r'<td class="number">2</td><td>\+        return \(</td></tr>\n<tr class="noted">'
    assert re.search(row, text) or re.search(row.replace("        ", "    "), text)
    assert "<h3>Receipt</h3>" in text and "assert -1 == 3" in text
    run("show", "--report", str(report), cwd=project.top, check=0)
    read(report.read_text())
    run("validate", names[1], "--report", str(report), cwd=project.top, check=1)
    run("show", "--report", str(tmp_path / "shown.html"), cwd=project.top, check=0)
    assert "return a - b" in (tmp_path / "shown.html").read_text()


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_in_a_browser(tmp_path: Path, scheme: str) -> None:
    diff = b"diff --git a/x.py b/x.py\n@@ -1 +1 @@\n-x = 1\n+x = 2\n"
    path, picture = tmp_path / "report.html", tmp_path / "page.png"
    path.write_text(page.render([dataclasses.replace(failed(HOSTILE), diff=diff)]))
    options = [f"--blink-settings=preferredColorScheme={'01'[scheme == 'light']}"]
    dom = browse(tmp_path, path, "--dump-dom", *options)
    assert "<h1" in dom and "regressed" in dom and "<script" not in dom
    browse(tmp_path, path, f"--screenshot={picture}", "--window-size=1000,1600", *options)
    colours = Counter(pixels(picture))
    ground = (LIGHT if scheme == "light" else DARK)["ground"]
    assert colours.most_common(1)[0][0] == tuple(int(ground[at : at + 2], 16) for at in (1, 3, 5))
    assert len(colours) > 20
    added = (LIGHT if scheme == "light" else DARK)["added"]
    assert colours[(int(added[1:3], 16), int(added[3:5], 16), int(added[5:7], 16))] > 200
