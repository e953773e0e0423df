"""A verdict as a person wants to read it: the outcome first, then why, then what to do."""

from __future__ import annotations

from collections.abc import Iterator

from sandbox_engine.verdict import EditRecord, Finding, Outcome, StepResult, TestRecord, Verdict

_TESTS_SHOWN = 10
_LINES_SHOWN = 30


def text(verdict: Verdict) -> str:
    """Return `verdict` as lines of text, the first of which alone tells the outcome and why."""
    return "\n".join(safe(line) for line in _lines(verdict))


def safe(line: str) -> str:
    """Return `line` with control characters shown, so that no test can write to the terminal."""
    return "".join(
        char if char.isprintable() or char == "\t" else repr(char)[1:-1] for char in line
    )


def _lines(verdict: Verdict) -> Iterator[str]:
    yield f"{verdict.outcome}: {verdict.reason}{' (known)' if verdict.is_cached else ''}"
    yield from _findings(verdict.findings)
    for step in verdict.steps:
        yield from _step(step)
    if verdict.hint:
        yield ""
        yield f"hint: {verdict.hint}"
    yield ""
    yield from _edits(verdict.edits)
    yield f"base      {verdict.base}"
    if verdict.tree:
        yield f"tree      {verdict.tree}"
    yield f"strategy  {verdict.strategy}{_isolation(verdict)}"
    if verdict.changed_paths:
        yield f"changed   {_shortened(verdict.changed_paths)}"
    steps = ", ".join(f"{step.name} {step.elapsed_s:.2f} s" for step in verdict.steps)
    yield f"time      {verdict.elapsed_s:.2f} s{f' ({steps})' if steps else ''}"


def _isolation(verdict: Verdict) -> str:
    """Return how what was run was isolated, and what it could reach all the same."""
    if verdict.outcome is Outcome.REJECTED:
        return ""
    return "".join(f", {part}" for part in (f"isolation {verdict.isolation}", *verdict.openings))


def _shortened(paths: tuple[str, ...]) -> str:
    more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
    return ", ".join(paths[:5]) + more


def _findings(findings: tuple[Finding, ...]) -> Iterator[str]:
    for finding in findings:
        yield ""
        yield f"  {finding.code}{_place(finding)}"
        if len(findings) > 1:
            yield f"    {finding.message}"
        if finding.source is not None:
            yield f"    {finding.source.replace(chr(9), ' ')}"
            if finding.column:
                yield f"    {' ' * (finding.column - 1)}^"
        yield from _block("nearest text in the file:", finding.detail)
        yield from _block("corrected edit:", finding.corrected)
        if finding.hint and len(findings) > 1:
            yield f"    hint: {finding.hint}"


def _block(title: str, text: str | None) -> Iterator[str]:
    if text:
        yield f"    {title}"
        yield from (f"      {line}" for line in text.rstrip("\n").split("\n")[:_LINES_SHOWN])


def _edits(edits: tuple[EditRecord, ...]) -> Iterator[str]:
    """Yield a line for each edit that was made otherwise than exactly as it was written."""
    told = [edit for edit in edits if edit.status != "applied" or edit.rung not in (None, "exact")]
    told = [edit for edit in told if edit.status in ("applied", "already_applied", "no_op")]
    for edit in told[:_TESTS_SHOWN]:
        line = f":{edit.line}" if edit.line else ""
        yield f"edit {edit.index + 1:<4} {edit.path}{line}: {edit.message}"
    if len(told) > _TESTS_SHOWN:
        yield f"  and {len(told) - _TESTS_SHOWN} more"


def _place(finding: Finding) -> str:
    parts = [part for part in (finding.path, finding.line, finding.column) if part is not None]
    return f" {':'.join(map(str, parts))}" if parts else ""


def _step(step: StepResult) -> Iterator[str]:
    if step.outcome is Outcome.PASSED:
        return
    yield from _findings(step.findings)
    for test in step.red_tests[:_TESTS_SHOWN]:
        yield from _test(test)
    if len(step.red_tests) > _TESTS_SHOWN:
        yield f"  and {len(step.red_tests) - _TESTS_SHOWN} more"
    if not step.red_tests and step.output:
        yield ""
        yield f"  the end of its output ({step.name}):"
        yield from (f"    {line}" for line in step.output.rstrip().split("\n")[-_LINES_SHOWN:])


def _test(test: TestRecord) -> Iterator[str]:
    yield ""
    yield f"  {test.outcome} {test.node_id}"
    if test.message:
        yield from (f"    {line}" for line in test.message.rstrip().split("\n")[-_LINES_SHOWN:])
