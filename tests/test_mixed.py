from __future__ import annotations

import pytest

from sandbox_engine.mixed import find_rewritten
from sandbox_engine.removal import Changes

CODE = (
    '"""Sums.\n\n>>> 1\n1\n"""\n\n\n'
    'def add(a, b):\n    """Add.\n\n    >>> add(1, 2)\n    3\n    """\n    return a + b\n\n\n'
    "def test_add():\n    assert add(1, 2) == 3\n"
)
OTHER_CODE = CODE.replace("a + b", "a - b")
TESTS = frozenset({"p/sums.py::p.sums", "p/sums.py::p.sums.add", "p/sums.py::test_add"})


def rewritten(after: str, path: str = "p/sums.py") -> set[str]:
    changes = Changes({path: CODE.encode()}, {path: after.encode()}, {})
    return set(find_rewritten(changes, TESTS))


@pytest.mark.parametrize(
    ("after", "found"),
    [
        (OTHER_CODE, set()),
        (OTHER_CODE.replace("    3\n", "    -1\n"), {"p/sums.py::p.sums.add"}),
        (OTHER_CODE.replace("    >>> add(1, 2)\n    3\n", ""), {"p/sums.py::p.sums.add"}),
        (OTHER_CODE.replace(">>> 1\n1", ""), {"p/sums.py::p.sums"}),
        (OTHER_CODE.replace("== 3", "== -1"), {"p/sums.py::test_add"}),
        (OTHER_CODE[: OTHER_CODE.index("def test_add")], {"p/sums.py::test_add"}),
        # More examples, other words, and what goes as a whole.
        (OTHER_CODE.replace("    >>> add(1", "    >>> add(0, 0)\n    0\n    >>> add(1"), set()),
        (OTHER_CODE.replace("Add.", "Add them."), set()),
        (OTHER_CODE.replace("def add", "def sum_of"), set()),
        # The code is the same.
        (CODE.replace("    3\n", "    4\n"), set()),
        ("def (", set()),
    ],
)
def test_tests_that_change_with_the_code_beside_them(after: str, found: set[str]) -> None:
    assert rewritten(after) == found


def test_files_of_tests_alone_are_not_mixed() -> None:
    assert rewritten(OTHER_CODE.replace("== 3", "== -1"), "p/test_sums.py") == set()
