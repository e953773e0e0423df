"""JUnit's XML: valid by the schema of CI servers, red for what is blamed on a patch alone."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as xml

import pytest
import xmlschema
from hypothesis import given, settings
from hypothesis import strategies as st
from judged_samples import HOSTILE, failed, inconclusive, rejected, several

from sandbox_engine.reports import junit

XSD = xmlschema.XMLSchema(Path(__file__).parent / "schemas" / "junit-10.xsd")


def test_every_outcome_is_valid_and_a_planted_fault_is_not() -> None:
    text = junit.render(several())
    XSD.validate(text)
    with pytest.raises(xmlschema.XMLSchemaValidationError):
        XSD.validate(text.replace('classname="', 'klass="'))


def test_only_what_is_blamed_on_the_patch_is_a_failure() -> None:
    root = xml.fromstring(junit.render([failed()]).encode())
    kinds = {
        case.get("classname"): child.tag
        for case in root.iter("testcase")
        for child in case
        if case.get("name") == "test_it"
    }
    assert kinds == {
        "tests.test_regressed": "failure",
        "tests.test_new_failed": "failure",
        "tests.test_vanished": "error",
        "tests.test_tampered": "error",
        "tests.test_pre_existing": "skipped",
        "tests.test_flaky": "skipped",
        "tests.test_removed": "skipped",
        "tests.test_skipped": "skipped",
    }
    suite = root.find("testsuite")
    assert suite is not None
    counts = [suite.get(name) for name in ("tests", "failures", "errors", "skipped")]
    assert counts == ["12", "3", "2", "4"]
    assert root.get("failures") == "3"
    first = root.find(".//testcase[@classname='tests.test_regressed']/failure")
    assert first is not None and first.get("message") == "assert 1 == 2"


def test_what_is_no_test_is_a_test_all_the_same() -> None:
    root = xml.fromstring(junit.render([rejected(), inconclusive()]).encode())
    failure, error = root.find(".//failure"), root.find(".//error")
    assert failure is not None and error is not None and failure.text and error.text
    assert "no-match src/a b.py:3:5" in failure.text
    assert error.text == "the end\n" and error.get("type") == "INCONCLUSIVE"


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=())))
def test_any_text_is_valid(text: str) -> None:
    XSD.validate(junit.render(several(text)))


def test_hostile_text_is_text() -> None:
    root = xml.fromstring(junit.render(several(HOSTILE)).encode())
    assert root.find(".//script") is None
    text = "".join(root.itertext())
    assert "\\x1b[2J\\x00\\u202e\\udcff ]]> &amp;" in text
