"""What was judged as SARIF 2.1.0, for what shows findings beside code.

https://docs.oasis-open.org/sarif/sarif/v2.1.0/. A finding keeps its code as rule; a test that is
blamed on the patch is `test-regressed` or `test-new-failed`, in its file; a verdict without either
is one result of its own, so that nothing which is wrong is missing.
"""

from __future__ import annotations

import hashlib
import json
import urllib.parse
from collections.abc import Iterator, Sequence
from typing import Any

from sandbox_engine.reports.judged import Judged
from sandbox_engine.verdict import Finding, Outcome, TestRecord
from sandbox_engine.version import VERSION

SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
_ROOT = "%SRCROOT%"
_LEVELS = {
    Outcome.PASSED: "note",
    Outcome.INCONCLUSIVE: "warning",
    Outcome.FAILED: "error",
    Outcome.REJECTED: "error",
}


def render(judged: Sequence[Judged]) -> str:
    """Return a log with one run; text that is no Unicode is written out."""
    results = [result for one in judged for result in _results(one)]
    rules = sorted({result["ruleId"] for result in results})
    run = {
        "tool": {
            "driver": {
                "name": "sandbox-engine",
                "version": VERSION,
                "rules": [{"id": rule} for rule in rules],
            }
        },
        "columnKind": "unicodeCodePoints",
        "invocations": [_invocation(judged)],
        "results": results,
    }
    log = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(_plain(log), indent=2) + "\n"


def _plain(value: Any) -> Any:
    """Return JSON values whose texts are all Unicode; what is none is written out."""
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case dict():
            return {key: _plain(inner) for key, inner in value.items()}
        case list():
            return [_plain(inner) for inner in value]
        case _:
            return value


def _invocation(judged: Sequence[Judged]) -> dict[str, Any]:
    unjudged = [one for one in judged if one.outcome is Outcome.INCONCLUSIVE]
    return {
        "executionSuccessful": not unjudged,
        "toolExecutionNotifications": [
            {"level": "error", "message": {"text": f"{one.name}: {one.reason}"}} for one in unjudged
        ],
    }


def _results(judged: Judged) -> Iterator[dict[str, Any]]:
    verdict = judged.verdict
    level = _LEVELS[judged.outcome]
    count = 0
    if verdict is not None:
        findings = [*verdict.findings, *(one for step in verdict.steps for one in step.findings)]
        blamed = [test for test in verdict.red_tests if test.category and test.category.is_blamed]
        for finding in findings:
            count += 1
            yield _finding(judged, finding, level)
        for test in blamed:
            count += 1
            yield _test(judged, test, level)
    if not count and judged.outcome is not Outcome.PASSED:
        hint = judged.hint if verdict is None else verdict.hint
        rule = f"verdict-{judged.outcome.lower()}"
        yield _result(judged, rule, level, _hinted(judged.reason, hint), None)


def _finding(judged: Judged, finding: Finding, level: str) -> dict[str, Any]:
    text = _hinted(finding.message, finding.hint)
    region = {
        "startLine": finding.line,
        "startColumn": finding.column if finding.line else None,
        "snippet": {"text": finding.source} if finding.source and finding.line else None,
    }
    place = _location(finding.path, {key: value for key, value in region.items() if value})
    result = _result(judged, finding.code, level, text, place)
    for name in ("detail", "corrected"):
        if value := getattr(finding, name):
            result["properties"][name] = value
    return result


def _test(judged: Judged, test: TestRecord, level: str) -> dict[str, Any]:
    text = f"{test.node_id} is red because of the patch"
    result = _result(
        judged, f"test-{test.category}", level, text, _location(test.node_id.partition("::")[0], {})
    )
    if test.message:
        result["message"]["text"] += f"\n\n{test.message}"
    return result


def _result(
    judged: Judged, rule: str, level: str, text: str, place: dict[str, Any] | None
) -> dict[str, Any]:
    # What stays the same when lines above it change.
    place = place or _location(_somewhere(judged), {})
    mark = json.dumps(
        [judged.name, rule, text, place and place["physicalLocation"]["artifactLocation"]]
    )
    return {
        "ruleId": rule,
        "level": level,
        "message": {"text": text or rule},
        "locations": [place] if place else [],
        "partialFingerprints": {
            "sandboxEngine/v1": hashlib.sha256(mark.encode("utf-8", "replace")).hexdigest()
        },
        "properties": {"candidate": judged.name, "outcome": str(judged.outcome)},
    }


def _somewhere(judged: Judged) -> str:
    """Return where to show what has no place of its own: GitHub takes no result without one."""
    changed = judged.verdict.changed_paths if judged.verdict else ()
    return next(iter(changed), judged.name)


def _location(path: str | None, region: dict[str, Any]) -> dict[str, Any] | None:
    if not path:
        return None
    uri = urllib.parse.quote(path, safe="/", errors="backslashreplace")
    place: dict[str, Any] = {"artifactLocation": {"uri": uri}}
    if not path.startswith("/"):
        place["artifactLocation"]["uriBaseId"] = _ROOT
    if region:
        place["region"] = region
    return {"physicalLocation": place}


def _hinted(message: str, hint: str | None) -> str:
    return f"{message}\nhint: {hint}" if hint else message
