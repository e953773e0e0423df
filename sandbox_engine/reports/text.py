"""A verdict as a person wants to read it: the outcome first, then why, then what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from sandbox_engine.delta import newly_skipped
from sandbox_engine.reports.judged import Judged
from sandbox_engine.verdict import (
    Category,
    Culprit,
    EditRecord,
    Explanation,
    Finding,
    Outcome,
    StepResult,
    TestRecord,
    Verdict,
)

_TESTS_SHOWN = 10
_LINES_SHOWN = 30


def describe(verdict: Verdict) -> str:
    """Return `verdict` as lines of text, the first of which alone tells the outcome and why."""
    return "\n".join(safe(line) for line in _lines(verdict))


def brief(verdict: Verdict, of: str = "") -> str:
    """Return what a committer needs of `verdict`: one line if it passed, else why not.

    `of` says what was judged, where there is more than one.
    """
    what = f"{of}: " if of else ""
    lines = [f"sandbox-engine: {what}{verdict.outcome}: {verdict.reason}"]
    if verdict.outcome is not Outcome.PASSED:
        lines += _reasons(verdict)
    return "\n".join(safe(line) for line in lines)


def render(judged: Sequence[Judged]) -> str:
    """Return one verdict as `describe` does, several as a line each, what is wrong, and a count."""
    if len(judged) == 1 and (verdict := judged[0].verdict):
        return describe(verdict) + "\n"
    lines = [*map(line, judged), *details(judged), "", summary(judged, len(judged))]
    return "\n".join(lines) + "\n"


def line(judged: Judged) -> str:
    """Return one of several in one line: outcome, seconds, name and reason."""
    elapsed_s = judged.verdict.elapsed_s if judged.verdict else 0.0
    known = " (known)" if judged.verdict and judged.verdict.is_cached else ""
    return safe(f"{judged.outcome:12} {elapsed_s:7.2f} s  {judged.name}: {judged.reason}{known}")


def details(judged: Sequence[Judged]) -> list[str]:
    """Return why those of several that did not pass did not, each under its name."""
    lines: list[str] = []
    for one in judged:
        if one.outcome is not Outcome.PASSED:
            hint = f"\nhint: {one.hint}".split("\n") if one.hint else []
            reasons = hint if one.verdict is None else _reasons(one.verdict)
            lines += ["", f"{one.outcome}: {one.name}: {one.reason}", *reasons]
    return [safe(one) for one in lines]


def summary(judged: Sequence[Judged], of: int) -> str:
    """Return how many of several ended how, in one line, the worst first."""
    counts = Counter(one.outcome for one in judged)
    order = (Outcome.FAILED, Outcome.REJECTED, Outcome.INCONCLUSIVE, Outcome.PASSED)
    parts = [f"{counts[outcome]} {outcome}" for outcome in order if counts[outcome]]
    left = [f"{of - len(judged)} not judged"] if of > len(judged) else []
    return ", ".join([*parts, *left]) or "nothing was judged"


def safe(line: str) -> str:
    """Return `line` with control characters shown, so that no test can write to the terminal."""
    return "".join(
        char if char.isprintable() or char == "\t" else repr(char)[1:-1] for char in line
    )


def _lines(verdict: Verdict) -> Iterator[str]:
    yield f"{verdict.outcome}: {verdict.reason}{' (known)' if verdict.is_cached else ''}"
    yield from _reasons(verdict)
    yield ""
    yield from _edits(verdict.edits)
    yield f"base      {verdict.base}"
    if verdict.tree:
        yield f"tree      {verdict.tree}"
    yield f"strategy  {verdict.strategy}{_isolation(verdict)}"
    if verdict.changed_paths:
        yield f"changed   {shortened(verdict.changed_paths)}"
    if verdict.test_control:
        yield f"test-control {shortened(verdict.test_control)}"
    steps = ", ".join(f"{step.name} {step.elapsed_s:.2f} s" for step in verdict.steps)
    yield f"time      {verdict.elapsed_s:.2f} s{f' ({steps})' if steps else ''}"


def _reasons(verdict: Verdict) -> Iterator[str]:
    """Yield what stands behind an outcome, and what to do about it."""
    yield from _findings(verdict.findings)
    for step in verdict.steps:
        yield from _step(step)
    if verdict.explanation:
        yield from _explanation(verdict.explanation)
    if verdict.hint:
        yield ""
        yield f"hint: {verdict.hint}"


def _isolation(verdict: Verdict) -> str:
    """Return how what was run was isolated, and what it could reach all the same."""
    if verdict.outcome is Outcome.REJECTED:
        return ""
    return "".join(f", {part}" for part in (f"isolation {verdict.isolation}", *verdict.openings))


def shortened(paths: tuple[str, ...]) -> str:
    """Return the first few of `paths`, and how many more there are."""
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


def _explanation(explanation: Explanation) -> Iterator[str]:
    """Yield which edits broke which tests; edits are counted from 1 in the order of the patch."""
    yield ""
    for culprit in explanation.culprits:
        yield from _culprit(culprit, explanation)
    if explanation.passing:
        alone = "passes" if len(explanation.passing) == 1 else "pass"
        yield f"  {_numbered(explanation.passing)} alone {alone}"
    if explanation.unexplained:
        yield f"  nothing is known of what broke {_named(explanation.unexplained)}"
    if not explanation.is_complete:
        yield f"  not all was tried in {explanation.runs} runs: fewer edits may be enough"


def _culprit(culprit: Culprit, explanation: Explanation) -> Iterator[str]:
    verb = "is" if len(culprit.tests) == 1 else "are"
    told = {edit.index: edit.description for edit in explanation.edits}
    together = " together" if len(culprit.edits) > 1 else ""
    line = f"  {_named(culprit.tests)} {verb} broken by {_numbered(culprit.edits)}{together}:"
    if not together:
        yield f"{line} {told[culprit.edits[0]]}"
        return
    yield line
    for index in culprit.edits[:_TESTS_SHOWN]:
        yield f"    edit {index + 1}: {told[index]}"
    if len(culprit.edits) > _TESTS_SHOWN:
        yield f"    and {len(culprit.edits) - _TESTS_SHOWN} more"


def _named(tests: Sequence[str]) -> str:
    more = len(tests) - _TESTS_SHOWN
    return _listed([*tests[:_TESTS_SHOWN], *([f"{more} more"] if more > 0 else [])])


def _numbered(edits: Sequence[int]) -> str:
    """Return indices as the numbers that people count with: `edits 1 to 3 and 5`."""
    runs: list[list[int]] = []
    for number in (index + 1 for index in edits):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts: list[str] = []
    for run in runs:
        parts += [f"{run[0]} to {run[-1]}"] if len(run) > 2 else map(str, run)
    return f"{'edit' if len(edits) == 1 else 'edits'} {_listed(parts)}"


def _listed(parts: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(parts[:-1]), parts[-1]) if part)


def _place(finding: Finding) -> str:
    parts = [part for part in (finding.path, finding.line, finding.column) if part is not None]
    return f" {':'.join(map(str, parts))}" if parts else ""


def _step(step: StepResult) -> Iterator[str]:
    if step.outcome is not Outcome.PASSED:
        yield from _findings(step.findings)
        shown = _shown(step)
        for test in shown[:_TESTS_SHOWN]:
            yield from _test(test)
        if len(shown) > _TESTS_SHOWN:
            yield f"  and {len(shown) - _TESTS_SHOWN} more"
        if not shown and step.output:
            yield ""
            yield f"  the end of its output ({step.name}):"
            yield from (f"    {line}" for line in step.output.rstrip().split("\n")[-_LINES_SHOWN:])
    yield from _told(step)


def _shown(step: StepResult) -> list[TestRecord]:
    """Return the tests whose messages are shown: those that are blamed, else all red ones."""
    blamed = [test for test in step.red_tests if test.category and test.category.is_blamed]
    return blamed or [test for test in step.red_tests if test.category is None]


def _told(step: StepResult) -> Iterator[str]:
    """Yield a line for each kind of test that a reader should know of, whatever the outcome."""
    kinds: dict[str, list[str]] = {str(category): [] for category in _TOLD}
    for test in step.tests:
        if test.category in _TOLD:
            kinds[str(test.category)].append(test.node_id)
    kinds["skipped now"] = [test.node_id for test in newly_skipped(step.tests)]
    for kind, nodes in kinds.items():
        if nodes:
            yield ""
            yield f"  {kind}: {shortened(tuple(nodes))}"


_TOLD = (
    Category.FIXED,
    Category.TAMPERED,
    Category.VANISHED,
    Category.REMOVED,
    Category.FLAKY,
    Category.PRE_EXISTING,
)


def _test(test: TestRecord) -> Iterator[str]:
    yield ""
    yield f"  {test.category or test.outcome} {test.node_id}"
    if test.message:
        yield from (f"    {line}" for line in test.message.rstrip().split("\n")[-_LINES_SHOWN:])
