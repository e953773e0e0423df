"""SARIF: valid by the official schema, with everything that is wrong in it, in its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judged_samples import BLANK, HOSTILE, failed, rejected, several

from sandbox_engine.reports import Judged, sarif

SCHEMA = json.loads(
    (Path(__file__).parent / "schemas" / "sarif-schema-2.1.0.json").read_text(encoding="utf-8")
)
VALIDATOR = jsonschema.Draft4Validator(SCHEMA)


def results(*judged: Judged) -> list[dict[str, Any]]:
    log = json.loads(sarif.render(judged))
    VALIDATOR.validate(log)
    found: list[dict[str, Any]] = log["runs"][0]["results"]
    assert all(result["locations"] for result in found), "GitHub takes no result without one"
    return found


def test_every_outcome_is_valid_and_a_planted_fault_is_not() -> None:
    log = json.loads(sarif.render(several()))
    VALIDATOR.validate(log)
    assert log["runs"][0]["invocations"][0]["executionSuccessful"] is False
    log["runs"][0]["results"][0]["level"] = "fatal"
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(log)
    assert results(Judged("a", BLANK)) == []


def test_what_is_blamed_is_in_its_file_and_nothing_else_is_told() -> None:
    found = results(failed())
    assert [result["ruleId"] for result in found] == ["test-regressed", "test-new-failed"]
    place = found[0]["locations"][0]["physicalLocation"]["artifactLocation"]
    assert place == {"uri": "tests/test_regressed.py", "uriBaseId": "%SRCROOT%"}


def test_a_finding_has_its_place_and_stays_the_same() -> None:
    (one,) = results(rejected())
    place = one["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "src/a%20b.py"
    assert (place["region"]["startLine"], place["region"]["startColumn"]) == (3, 5)
    assert one["message"]["text"] == "the block was not found\nhint: read the file"
    assert one["properties"]["corrected"] == "corrected"
    assert results(rejected())[0]["partialFingerprints"] == one["partialFingerprints"]
    assert results(rejected("other"))[0]["partialFingerprints"] != one["partialFingerprints"]


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=())))
def test_any_text_is_valid(text: str) -> None:
    log = sarif.render(several(text))
    log.encode()
    VALIDATOR.validate(json.loads(log))


def test_hostile_text_is_text() -> None:
    results(*several(HOSTILE))
