"""What was judged for GitHub Actions: annotations beside lines, and a summary of the step.

Workflow commands are escaped as GitHub's own toolkit does
(https://docs.github.com/actions/reference/workflow-commands-for-github-actions); ten errors and ten
warnings of a step are shown, so what matters most comes first. What a patch says is shown as text:
it can begin no command, no HTML and no other cell of a table.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sandbox_engine.reports import text
from sandbox_engine.reports.judged import Judged
from sandbox_engine.verdict import Category, Outcome

MOST_BYTES = 1_000_000
"""A summary of more than 1 MiB is refused."""

_LEVELS = ("error", "warning", "notice")
_MARKS = {
    Outcome.PASSED: "✅",
    Outcome.FAILED: "❌",
    Outcome.REJECTED: "❌",
    Outcome.INCONCLUSIVE: "⚠️",
}
_CUT = "\n\nThe rest was left out: it is longer than GitHub shows.\n"


@dataclass(frozen=True, slots=True)
class _Note:
    level: str
    title: str
    message: str
    path: str | None = None
    line: int | None = None
    column: int | None = None


def commands(judged: Sequence[Judged]) -> str:
    """Return workflow commands, a line each, the worst first; nothing where all passed."""
    notes = [note for one in judged for note in _notes(one)]
    notes.sort(key=lambda note: _LEVELS.index(note.level))
    return "".join(f"{_command(note)}\n" for note in notes)


def _notes(judged: Judged) -> Iterator[_Note]:
    """Yield one note for a verdict that is not PASSED, then what stands behind it in files."""
    verdict = judged.verdict
    if judged.outcome is Outcome.PASSED:
        return
    level = "warning" if judged.outcome is Outcome.INCONCLUSIVE else "error"
    hint = judged.hint if verdict is None else verdict.hint
    message = f"{judged.reason}\nhint: {hint}" if hint else judged.reason
    yield _Note(level, f"{judged.outcome}: {judged.name}", message)
    if verdict is None:
        return
    for finding in (*verdict.findings, *(one for step in verdict.steps for one in step.findings)):
        yield _Note(
            level, finding.code, finding.message, finding.path, finding.line, finding.column
        )
    for step in verdict.steps:
        for test in step.tests:
            file = test.node_id.partition("::")[0]
            if test.category and test.category.is_blamed:
                yield _Note("error", f"{test.category}: {test.node_id}", test.message or "", file)
            elif test.category in (Category.VANISHED, Category.TAMPERED):
                yield _Note("warning", f"{test.category}: {test.node_id}", "", file)
            elif test.category is Category.FLAKY:
                yield _Note("notice", f"{test.category}: {test.node_id}", "", file)


def _command(note: _Note) -> str:
    places = {"file": note.path, "line": note.line, "col": note.column, "title": note.title}
    words = ",".join(f"{key}={_property(str(value))}" for key, value in places.items() if value)
    return f"::{note.level} {words}::{_data(note.message or note.title)}"


def _data(value: str) -> str:
    """Escape the message of a command; other control characters are shown."""
    lines = value.replace("\r\n", "\n").split("\n")
    return "%0A".join(text.safe(line).replace("%", "%25") for line in lines)


def _property(value: str) -> str:
    return _data(value).replace(":", "%3A").replace(",", "%2C")


def summary(judged: Sequence[Judged]) -> str:
    """Return Markdown for `$GITHUB_STEP_SUMMARY`: a table, then what did not pass in full."""
    lines = [
        f"### sandbox-engine: {text.summary(judged, len(judged))}",
        "",
        "| | outcome | patch | why | seconds |",
        "|---|---|---|---|--:|",
        *map(_row, judged),
        "",
    ]
    for one in judged:
        if one.outcome is not Outcome.PASSED:
            lines += _details(one)
    return _cut("\n".join(lines) + "\n")


def _row(judged: Judged) -> str:
    elapsed_s = judged.verdict.elapsed_s if judged.verdict else 0.0
    cells = (
        _MARKS[judged.outcome],
        str(judged.outcome),
        _cell(judged.name),
        _cell(judged.reason),
        f"{elapsed_s:.1f}",
    )
    return f"| {' | '.join(cells)} |"


def _cell(value: str) -> str:
    """Return text that is one cell and nothing else: HTML entities for all that could be more."""
    return "".join(
        char if char.isalnum() or char in " /-" else f"&#{ord(char)};" for char in text.safe(value)
    )


def _details(judged: Judged) -> list[str]:
    told = text.render([judged]) if judged.verdict else f"{judged.reason}\n"
    lines = (html.escape(text.safe(line)) for line in told.rstrip("\n").split("\n"))
    return [
        f"<details><summary>{_cell(judged.name)}</summary>",
        "",
        # Inside of `pre` an empty line would end the HTML.
        f"<pre>{'&#10;'.join(lines)}</pre>",
        "",
        "</details>",
        "",
    ]


def _cut(markdown: str) -> str:
    raw = markdown.encode("utf-8", "backslashreplace")
    if len(raw) <= MOST_BYTES:
        return raw.decode()
    whole = raw[: MOST_BYTES - 1000].decode("utf-8", "ignore").rpartition("<details>")[0]
    return whole + _CUT
