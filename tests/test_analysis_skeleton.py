"""The skeleton of a module."""

from __future__ import annotations

import pytest

from sandbox_engine import NotAnalysableError
from sandbox_engine.analysis.skeleton import skeleton_of

SOURCE = b'''\
"""The first line.

More.
"""
import os, a.b as c
from . import sibling
from ..up import name as other, second
from package import *

try:
    import fast
except ImportError:
    fast = None


@decorated(1)
class A(Base, metaclass=Meta):
    """A thing."""
    x = 1

    @property
    def value(self) -> int:
        """   Its value.
        """

    async def run(self, a, /, b: str = "x", *args, c=None, **kw): ...

    class Inner:
        def method(self):
            def hidden(): ...


if c:
    def conditional(): ...
'''


def test_what_a_module_defines_and_imports_is_told() -> None:
    found = skeleton_of(SOURCE)
    assert found["doc"] == "The first line."
    assert found["imports"] == [
        *("os", "a.b as c", ".sibling", "..up.name as other", "..up.second", "package.*", "fast")
    ]
    (one,) = found["classes"]
    assert (one["name"], one["bases"], one["doc"]) == ("A", ["Base", "metaclass=Meta"], "A thing.")
    assert one["decorators"] == ["decorated(1)"]
    assert [(method["name"], method["signature"], method["doc"]) for method in one["methods"]] == [
        ("value", "(self) -> int", "Its value."),
        ("run", "(self, a, /, b: str='x', *args, c=None, **kw)", ""),
    ]
    assert [method["is_async"] for method in one["methods"]] == [False, True]
    assert one["methods"][0]["decorators"] == ["property"]
    (inner,) = one["classes"]
    assert [method["name"] for method in inner["methods"]] == ["method"]
    assert [function["name"] for function in found["functions"]] == ["conditional"]
    assert (one["line"], one["end_line"]) == (17, 30)


def test_an_empty_module_has_an_empty_skeleton() -> None:
    assert skeleton_of(b"") == {"doc": "", "imports": [], "classes": [], "functions": []}
    with pytest.raises(NotAnalysableError, match="line 2: "):
        skeleton_of(b"x = 1\n  y = 2\n")
