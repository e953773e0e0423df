"""What was judged as one page that needs nothing else: no script, no file, no network.

The outcome comes first, then why, what the patch did to the tests, what it changes with findings in
their place, where the time went, and where the verdict comes from. Everything that a patch has a
say in is text: escaped, with control characters and marks of direction shown. What is long is cut,
and says so: a page that cannot be opened tells nothing.
"""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Iterator, Sequence

from sandbox_engine.reports import diff_rows, text
from sandbox_engine.reports.diff_rows import FileDiff, Row
from sandbox_engine.reports.judged import Judged
from sandbox_engine.reports.page_style import STYLE
from sandbox_engine.verdict import (
    Category,
    Explanation,
    Finding,
    Outcome,
    StepResult,
    TestRecord,
    Verdict,
)

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_ROWS = 4_000
_TESTS = 200
_CHARS = 8_000
_SLOWEST = 12
_NARROW = 0.5
"""A bar of fewer percent would not be seen."""

_ORDER = (
    *(Category.REGRESSED, Category.NEW_FAILED, Category.VANISHED, Category.TAMPERED),
    *(Category.FLAKY, Category.PRE_EXISTING, Category.FIXED, Category.REMOVED),
    *(Category.NEW_PASSED, Category.SKIPPED, Category.PASSED),
)
_QUIET = (Category.PASSED, Category.NEW_PASSED, Category.SKIPPED)
"""These are counted and not listed."""

_ROW_CLASSES = {"+": "plus", "-": "minus", "@": "head", "\\": "head"}


def render(judged: Sequence[Judged]) -> str:
    """Return the page of all that was judged in one run."""
    title = _title(judged)
    several = _table_of_all(judged) if len(judged) > 1 else ""
    parts = "".join(_one(one, number, len(judged)) for number, one in enumerate(judged, 1))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_safe(title)}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n"
        f'<a class="skip" href="#verdict">Skip to the verdict</a>\n'
        f'<header><p class="quiet">sandbox-engine: is this patch good?</p></header>\n'
        f'<main id="verdict">\n{several}{parts}</main>\n</body>\n</html>\n'
    )


def _safe(value: str) -> str:
    """Return text that is nothing but text, in one line."""
    return html.escape(text.safe(value))


def _lines(value: str) -> str:
    """Return several lines of text, cut where they are too many."""
    cut = value[:_CHARS]
    more = f"\n… and {len(value) - _CHARS} characters more" if len(value) > _CHARS else ""
    return "\n".join(_safe(line) for line in (cut + more).split("\n"))


def _title(judged: Sequence[Judged]) -> str:
    if len(judged) == 1:
        return f"{judged[0].outcome}: {judged[0].name}"
    return text.summary(judged, len(judged))


def _outcome(outcome: Outcome) -> str:
    return f'<span class="outcome {outcome}">{outcome}</span>'


def _scrolled(label: str, inner: str) -> str:
    """Return what may be wider than the page, in a box that the keyboard can scroll."""
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{_safe(label)}">{inner}</div>\n'
    )


def _table(caption: str, heads: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    """Return a table of cells that are HTML already."""
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>\n" for row in rows)
    return (
        f"<table><caption>{caption}</caption>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{body}</tbody></table>"
    )


def _table_of_all(judged: Sequence[Judged]) -> str:
    rows = (
        (
            _outcome(one.outcome),
            f'<a href="#c{number}">{_safe(one.name)}</a>',
            _safe(one.reason),
            f"{one.verdict.elapsed_s:.2f}&nbsp;s" if one.verdict else "",
        )
        for number, one in enumerate(judged, 1)
    )
    table = _table("Each was judged by itself.", ("Outcome", "Patch", "Why", "Time"), rows)
    return f"<h1>{_safe(_title(judged))}</h1>\n{_scrolled('all that was judged', table)}"


def _one(judged: Judged, number: int, of: int) -> str:
    level = 1 if of == 1 else 2
    head = (
        f'<section aria-labelledby="c{number}">\n<h{level} id="c{number}">'
        f"{_outcome(judged.outcome)} {_safe(judged.name)}</h{level}>\n"
        f"<p>{_safe(judged.reason)}</p>\n"
    )
    hint = judged.hint if judged.verdict is None else judged.verdict.hint
    if hint:
        head += f'<p class="hint">What to do: {_safe(hint)}</p>\n'
    return head + (_parts(judged, judged.verdict) if judged.verdict else "") + "</section>\n"


def _parts(judged: Judged, verdict: Verdict) -> str:
    files = diff_rows.read_diff(judged.diff) if judged.diff else []
    findings = [*verdict.findings, *(one for step in verdict.steps for one in step.findings)]
    shown = set(diff_rows.numbered(files))
    apart = [one for one in findings if (one.path, one.line) not in shown]
    sections: tuple[tuple[str, str], ...] = (
        ("Findings", "".join(map(_finding, apart))),
        ("Tests", "".join(_tests(step) for step in verdict.steps if step.tests)),
        ("What broke what", _explanation(verdict.explanation)),
        ("Output", "".join(map(_output, verdict.steps))),
        ("Changes", _changes(files, findings, verdict)),
        ("Times", _times(verdict)),
        ("Where it comes from", _provenance(verdict)),
        ("Receipt", _receipt(verdict)),
    )
    return "".join(f"<h3>{name}</h3>\n{inner}" for name, inner in sections if inner)


def _finding(finding: Finding) -> str:
    place = ":".join(
        str(part) for part in (finding.path, finding.line, finding.column) if part is not None
    )
    parts = [
        f"<p><code>{_safe(finding.code)}</code> {_safe(place)}<br>{_safe(finding.message)}</p>"
    ]
    if finding.hint:
        parts.append(f'<p class="hint">{_safe(finding.hint)}</p>')
    for label, value in (
        ("the line", finding.source),
        ("nearest text in the file", finding.detail),
        ("corrected edit", finding.corrected),
    ):
        if value:
            parts.append(f'<p class="quiet">{label}</p>{_pre(label, value)}')
    return "".join(parts)


def _pre(label: str, value: str) -> str:
    return f'<pre tabindex="0" aria-label="{label}">{_lines(value)}</pre>\n'


def _tests(step: StepResult) -> str:
    counts = Counter(test.category for test in step.tests)
    rows = ((str(category), str(counts[category])) for category in _ORDER if counts[category])
    alone = Counter(str(test.outcome) for test in step.tests if test.category is None)
    table = _table(
        f"{_safe(step.name)}: tests by what the patch did to them",
        ("Category", "Tests"),
        iter([*rows, *((name, str(count)) for name, count in sorted(alone.items()))]),
    )
    notable = [
        test
        for test in step.tests
        if (test.category not in _QUIET if test.category else not test.is_green)
    ]
    notable.sort(key=lambda test: _ORDER.index(test.category) if test.category else 0)
    listed = "".join(map(_test, notable[:_TESTS]))
    more = len(notable) - _TESTS
    cut = f'<p class="quiet">and {more} more that are not shown</p>\n' if more > 0 else ""
    return _scrolled(f"tests of {step.name} by category", table) + listed + cut


def _test(test: TestRecord) -> str:
    what = test.category or test.outcome
    word = "FAILED" if what in (Category.REGRESSED, Category.NEW_FAILED) else "quiet"
    label = f'<span class="{word}">{_safe(str(what))}</span> <code>{_safe(test.node_id)}</code>'
    if not test.message:
        return f"<p>{label}</p>\n"
    is_open = " open" if word == "FAILED" else ""
    message = _pre("what the test said", test.message)
    return f"<details{is_open}><summary>{label}</summary>{message}</details>\n"


def _explanation(explanation: Explanation | None) -> str:
    if explanation is None:
        return ""
    told = {edit.index: edit.description for edit in explanation.edits}
    items = "".join(
        f"<li>{_safe(', '.join(culprit.tests[:_SLOWEST]))}: broken by "
        + _safe("; ".join(f"edit {index + 1} ({told.get(index, '')})" for index in culprit.edits))
        + "</li>\n"
        for culprit in explanation.culprits
    )
    left = ", ".join(explanation.unexplained[:_SLOWEST])
    unknown = f"<p>Nothing is known of what broke {_safe(left)}.</p>\n" if left else ""
    return f"<ul>\n{items}</ul>\n{unknown}" if items or unknown else ""


def _output(step: StepResult) -> str:
    if step.outcome is Outcome.PASSED or not step.output:
        return ""
    return (
        f"<details><summary>The end of what <code>{_safe(step.name)}</code> wrote</summary>"
        f"{_pre('output', step.output)}</details>\n"
    )


def _changes(files: Sequence[FileDiff], findings: Sequence[Finding], verdict: Verdict) -> str:
    if not files:
        names = "".join(f"<li><code>{_safe(path)}</code></li>" for path in verdict.changed_paths)
        return f"<ul>{names}</ul>\n" if names else ""
    left = _ROWS
    parts = []
    for file in files:
        parts.append(_file(file, findings, left))
        left = max(0, left - len(file.rows))
    return "".join(parts)


def _file(file: FileDiff, findings: Sequence[Finding], most: int) -> str:
    notes = f' <span class="quiet">{_safe(", ".join(file.notes))}</span>' if file.notes else ""
    head = (
        f"<summary><code>{_safe(file.path)}</code> "
        f'<span class="quiet">+{file.added} -{file.removed}</span>{notes}</summary>'
    )
    there = [one for one in findings if one.path == file.path]
    rows = "".join(_row(row, there) for row in file.rows[:most])
    cut = len(file.rows) - most
    more = f'<p class="quiet">{cut} more lines are not shown</p>' if cut > 0 else ""
    caption = f"<caption>{_safe(file.path)}, before and after</caption>"
    heads = '<thead class="quiet"><tr><th scope="col">old</th><th scope="col">new</th>'
    heads += '<th scope="col">line</th></tr></thead>'
    table = f'<table class="code">{caption}{heads}<tbody>\n{rows}</tbody></table>' if rows else ""
    inner = _scrolled(f"changes of {file.path}", table) if table else ""
    return f"<details open>{head}{inner}{more}</details>\n"


def _row(row: Row, findings: Sequence[Finding]) -> str:
    kind = _ROW_CLASSES.get(row.sign, "")
    sign = "" if row.sign in "@\\" else row.sign
    line = (
        f'<tr class="{kind}"><td class="number">{row.old or ""}</td>'
        f'<td class="number">{row.new or ""}</td><td>{sign}{_safe(row.text[:_CHARS])}</td></tr>\n'
    )
    notes = (
        f'<tr class="noted"><td></td><td></td><td>{_safe(one.code)}: {_safe(one.message)}'
        f"{f' — {_safe(one.hint)}' if one.hint else ''}</td></tr>\n"
        for one in findings
        if row.new is not None and one.line == row.new
    )
    return line + "".join(notes)


def _times(verdict: Verdict) -> str:
    """Return where the time went: a bar for all, below it the steps, below them the tests."""
    whole = verdict.elapsed_s
    if whole <= 0:
        return ""
    steps = [(step.name, step.elapsed_s) for step in verdict.steps if step.elapsed_s > 0]
    tests = [
        (test.node_id, test.duration_s)
        for step in verdict.steps
        for test in step.tests
        if test.duration_s > 0
    ]
    tests = sorted(tests, key=lambda item: -item[1])[:_SLOWEST]
    known = " (it was known, and not run again)" if verdict.is_cached else ""
    bars = [_bar([("all", whole)], whole)]
    if not verdict.is_cached:
        bars += [_bar(steps, whole), _bar(tests, whole)]
    rows = [("all", whole), *steps, *tests]
    table = _table(
        f"Seconds of the verdict{known}, of its steps, and of the slowest tests.",
        ("What", "Seconds"),
        ((_safe(name), f"{seconds:.3f}") for name, seconds in rows),
    )
    told = f'<ul class="bars" aria-hidden="true">{"".join(bars)}</ul>\n'
    return f"{told}<details><summary>As a table</summary>{_scrolled('times', table)}</details>\n"


def _bar(parts: Sequence[tuple[str, float]], whole: float) -> str:
    spans = [
        f'<span style="flex:0 0 {min(100.0, 100 * seconds / whole):.2f}%" '
        f'title="{_safe(name)}, {seconds:.3f} s">{_safe(name)}</span>'
        for name, seconds in parts
        if 100 * seconds / whole >= _NARROW
    ]
    return f"<li>{''.join(spans)}</li>" if spans else ""


def _provenance(verdict: Verdict) -> str:
    author = verdict.author
    facts: tuple[tuple[str, str | None], ...] = (
        ("Base", verdict.base),
        ("Base's tree", verdict.base_tree),
        ("Tree that was judged", verdict.tree),
        ("Strategy", verdict.strategy),
        ("Steps", ", ".join(f"{step.name}: {step.outcome}" for step in verdict.steps)),
        ("Isolation", ", ".join((verdict.isolation, *verdict.openings))),
        ("Cause", verdict.cause),
        ("Author", f"{author.name} <{author.email}> {author.date}" if author else None),
        ("Summary", verdict.summary.strip().partition("\n")[0]),
        ("Changed", text.shortened(verdict.changed_paths)),
        ("Steers the tests", text.shortened(verdict.test_control)),
        ("Edits", _edits(verdict)),
        ("Environment", verdict.environment),
        ("Engine", verdict.engine_version),
        ("Time", f"{verdict.elapsed_s:.2f} s{', known' if verdict.is_cached else ''}"),
    )
    items = "".join(f"<dt>{name}</dt><dd>{_safe(value)}</dd>\n" for name, value in facts if value)
    return f"<dl>\n{items}</dl>\n"


def _edits(verdict: Verdict) -> str:
    """Return which edits were made otherwise than exactly as they were written."""
    others = [
        f"{edit.index + 1} ({edit.rung})"
        for edit in verdict.edits
        if edit.rung not in (None, "exact")
    ]
    return f"not exactly as written: {', '.join(others[:_SLOWEST])}" if others else ""


def _receipt(verdict: Verdict) -> str:
    if verdict.receipt is None:
        return ""
    record = json.dumps(verdict.receipt.to_json(), indent=2)
    return (
        f"<p>Digest <code>{_safe(verdict.receipt.digest)}</code></p>\n"
        f"<details><summary>All of it</summary>{_pre('receipt', record)}</details>\n"
    )
