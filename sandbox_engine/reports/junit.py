"""What was judged as JUnit's XML, in the form that CI servers read.

The schema is `junit-10.xsd` of the xunit plugin for Jenkins. A test is a failure only where it is
blamed on the patch (`regressed`, `new-failed`); what keeps a patch from being proved (`vanished`,
`tampered`) is an error; a test that is red without the patch, flaky, removed or not run is skipped,
with a message that says so. A verdict is a test too: what is wrong beside tests is shown there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.etree import ElementTree as xml

from sandbox_engine.reports.judged import Judged
from sandbox_engine.verdict import Category, Finding, Outcome, StepResult, TestOutcome, TestRecord

_PASSED = (Category.PASSED, Category.FIXED, Category.NEW_PASSED)
_UNPROVED = {
    Category.VANISHED: "should still be there, and is not",
    Category.TAMPERED: "is red with the base's version of what steers the tests",
}
_SKIPPED = {
    Category.PRE_EXISTING: "is red without the patch too",
    Category.FLAKY: "ends now so, now otherwise",
    Category.REMOVED: "was taken out by the patch",
    Category.SKIPPED: "was not run, or was expected to fail",
}


def render(judged: Sequence[Judged]) -> str:
    """Return a document with a suite for each of `judged`."""
    root = xml.Element("testsuites", name="sandbox-engine")
    for one in judged:
        root.append(_suite(one))
    for name in ("tests", "failures", "errors"):
        root.set(name, str(sum(int(suite.get(name, "0")) for suite in root)))
    xml.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{xml.tostring(root, encoding="unicode")}\n'


def _suite(judged: Judged) -> xml.Element:
    verdict = judged.verdict
    suite = xml.Element("testsuite", name=clean(judged.name))
    if verdict is not None:
        properties = xml.SubElement(suite, "properties")
        for name in ("outcome", "strategy", "base", "tree", "isolation", "engine_version"):
            value = clean(str(getattr(verdict, name) or ""))
            xml.SubElement(properties, "property", name=name, value=value)
    suite.append(_verdict_case(judged))
    for step in verdict.steps if verdict else ():
        suite.extend(_test_case(step, test) for test in step.tests)
    cases = suite.findall("testcase")
    suite.set("tests", str(len(cases)))
    for name, kind in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(name, str(sum(case.find(kind) is not None for case in cases)))
    suite.set("time", _seconds(verdict.elapsed_s if verdict else 0.0))
    return suite


def _verdict_case(judged: Judged) -> xml.Element:
    """Return the test that stands for the verdict itself, with what is wrong beside tests."""
    elapsed_s = judged.verdict.elapsed_s if judged.verdict else 0.0
    case = _case("sandbox-engine", "verdict", elapsed_s)
    if judged.outcome is not Outcome.PASSED:
        is_wrong = judged.outcome in (Outcome.FAILED, Outcome.REJECTED)
        text = "\n".join(_explained(judged))
        _add(case, "failure" if is_wrong else "error", judged.outcome, judged.reason, text)
    return case


def _explained(judged: Judged) -> Iterator[str]:
    verdict = judged.verdict
    hint = judged.hint if verdict is None else verdict.hint
    if verdict is not None:
        yield from map(_told, verdict.findings)
        for step in verdict.steps:
            yield from map(_told, step.findings)
            if step.outcome is not Outcome.PASSED and not step.tests and step.output:
                yield step.output
    if hint:
        yield f"hint: {hint}"


def _told(finding: Finding) -> str:
    parts = (finding.path, finding.line, finding.column)
    place = ":".join(str(part) for part in parts if part is not None)
    return f"{finding.code} {place}: {finding.message}"


def _test_case(step: StepResult, test: TestRecord) -> xml.Element:
    file, _, name = test.node_id.partition("::")
    case = _case(file.removesuffix(".py").replace("/", "."), name or file, test.duration_s)
    category = test.category
    if category is None:
        _judge_alone(case, test)
    elif category.is_blamed:
        kind = "error" if test.outcome is TestOutcome.ERROR else "failure"
        _add(case, kind, category, _first(test, "fails because of the patch"), test.message)
    elif category in _UNPROVED:
        _add(case, "error", category, _UNPROVED[category], test.message)
    elif category not in _PASSED:
        _add(case, "skipped", category, _SKIPPED[category], test.message)
    return case


def _judge_alone(case: xml.Element, test: TestRecord) -> None:
    """Show a test that was compared with nothing as it ended."""
    if test.is_red:
        kind = "error" if test.outcome is TestOutcome.ERROR else "failure"
        _add(case, kind, str(test.outcome), _first(test, "is red"), test.message)
    elif not test.is_green:
        _add(case, "skipped", str(test.outcome), "was not run", test.message)


def _first(test: TestRecord, other: str) -> str:
    """Return the line of a test's message that tells most, the last that pytest marks."""
    marked = [line[1:].strip() for line in (test.message or "").split("\n") if line[:1] == "E"]
    return marked[0] if marked else other


def _case(classname: str, name: str, elapsed_s: float) -> xml.Element:
    return xml.Element(
        "testcase", classname=clean(classname), name=clean(name), time=_seconds(elapsed_s)
    )


def _add(case: xml.Element, kind: str, type: str, message: str, text: str | None) -> None:
    child = xml.SubElement(case, kind, type=clean(type), message=clean(message))
    child.text = clean(text or message)


def _seconds(elapsed_s: float) -> str:
    return f"{elapsed_s:.3f}"


def clean(text: str) -> str:
    """Return `text` with what XML 1.0 cannot hold, or a terminal obeys, written out."""
    return "".join(
        char
        if char in "\t\n" or (char.isprintable() and char not in "\ufffe\uffff")
        else repr(char)[1:-1]
        for char in text
    )
