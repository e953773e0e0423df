"""Analysers: named, versioned, and found by other processes where they can be."""

from __future__ import annotations

import functools
import json
import sys

import pytest

from sandbox_engine import Analyser, UsageError
from sandbox_engine.analysis.analysers import resolve


class Namespace:
    @staticmethod
    def measure(content: bytes) -> int:
        return len(content)


def measure(content: bytes) -> int:
    return len(content)


def test_a_function_that_can_be_imported_has_a_reference() -> None:
    assert Analyser("a", "1", measure).reference == f"{__name__}:measure"
    assert Analyser("a", "1", Namespace.measure).reference == f"{__name__}:Namespace.measure"
    assert Analyser("a", "1", "module:name").reference == "module:name"
    assert Analyser("a", "1", json.loads).reference == "json:loads"


def test_one_that_cannot_is_run_here() -> None:
    def local(content: bytes) -> int:
        return len(content)

    for function in (lambda content: 1, local, functools.partial(measure)):
        assert Analyser("a", "1", function).reference is None


def test_an_analyser_is_for_names_that_end_as_it_says() -> None:
    assert Analyser("a", "1", measure).concerns("b/c.py")
    assert not Analyser("a", "1", measure).concerns("b/c.pyi")
    assert Analyser("a", "1", measure, (".txt", ".md")).concerns("README.md")


def test_names_are_resolved_and_mistakes_are_said() -> None:
    own = Analyser("own", "1", measure)
    skeleton, metrics, other = resolve(["skeleton", "metrics", own])
    assert other is own
    # Another Python may parse otherwise.
    assert f"python-{sys.version_info.major}.{sys.version_info.minor}" in skeleton.version
    assert "radon-" in metrics.version
    with pytest.raises(UsageError, match="no analyser called `sizes`"):
        resolve(["sizes"])
    with pytest.raises(UsageError, match="two of the analysers have the same name"):
        resolve([own, Analyser("own", "2", measure)])
