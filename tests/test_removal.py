from __future__ import annotations

from collections.abc import Mapping

import pytest

from sandbox_engine.patch import File
from sandbox_engine.removal import changes_of, find_removed

Text = Mapping[str, str | None]
TESTS = "import x\n\ndef test_a():\n    pass\n\nclass TestC:\n    def test_b(self):\n        pass\n"


def files(texts: Text) -> dict[bytes, File | None]:
    return {
        name.encode(): None if text is None else File(text.encode()) for name, text in texts.items()
    }


def removed(before: Text, after: Text, *lost: str, renames: Mapping[str, str] = {}) -> set[str]:
    moved = {new.encode(): old.encode() for old, new in renames.items()}
    now = {"u.py": TESTS, **before, **after}

    def read(path: str) -> bytes | None:
        text = now.get(path)
        return None if text is None else text.encode()

    return set(find_removed(lost, changes_of(files(before), files(after), moved), read))


def test_a_deleted_file_takes_its_tests_out() -> None:
    assert removed({"t.py": TESTS}, {"t.py": None}, "t.py::test_a", "u.py::test_a") == {
        "t.py::test_a"
    }


@pytest.mark.parametrize(
    ("after", "gone"),
    [
        (TESTS.replace("test_a", "test_z"), {"t.py::test_a"}),
        (TESTS.replace("test_b", "test_z"), {"t.py::TestC::test_b"}),
        (TESTS.replace("TestC", "TestD"), {"t.py::TestC::test_b"}),
        (TESTS.replace("test_a", "a"), {"t.py::test_a"}),
        # It is still written there: something else keeps it from being collected.
        (TESTS + "\ndel test_a\nTestC.__test__ = False\n", set()),
        (TESTS.replace("import x", "import x, y"), set()),
    ],
)
def test_a_function_that_is_no_longer_written_is_removed(after: str, gone: set[str]) -> None:
    lost = ("t.py::test_a", "t.py::TestC::test_b")
    assert removed({"t.py": TESTS}, {"t.py": after}, *lost) == gone


def test_cases_may_become_fewer_where_they_are_written() -> None:
    lost = ("t.py::test_a[3]", "u.py::test_a[3]")
    before = TESTS.replace("def test_a()", "@mark([1, 2, 3])\ndef test_a(x)")
    assert removed({"t.py": before}, {"t.py": before.replace(", 3", "")}, *lost) == set(lost)
    assert removed({"t.py": before}, {"t.py": before + "\n# more\n"}, *lost) == {"t.py::test_a[3]"}


def test_a_case_that_is_named_after_what_goes_goes_with_it() -> None:
    before, after = {"p.py": '__all__ = ["one", "two"]\n'}, {"p.py": '__all__ = ["two"]\n'}
    lost = ("t.py::test_export[one]", "t.py::test_export[two]", "t.py::test_other")
    assert removed(before, after, *lost) == {"t.py::test_export[one]"}
    data = {"cases/big-1.txt": "x"}, {"cases/big-1.txt": None}
    assert removed(*data, "t.py::test_case[big-1.txt]", "t.py::test_case[small-2]") == {
        "t.py::test_case[big-1.txt]"
    }


def test_an_inherited_test_goes_with_its_base_class() -> None:
    before = {"base.py": "class Base:\n    def test_x(self): ...\n    def test_y(self): ...\n"}
    after = {"base.py": "class Base:\n    def test_y(self): ...\n"}
    lost = ("t.py::TestA::test_x", "t.py::TestA::test_y")
    assert removed(before, after, *lost) == {"t.py::TestA::test_x"}


MIXED = (
    "class Mixin:\n    def test_x(self): ...\n\nclass Half(Mixin): ...\n\n"
    "class TestA(Half):\n    def test_y(self): ...\n\nclass TestB(Mixin, x.Other): ...\n"
)


def test_an_inherited_test_that_moves_to_one_class_leaves_the_others() -> None:
    moved = MIXED.replace("    def test_x(self): ...\n", "    pass\n", 1).replace(
        "    def test_y", "    def test_x(self): ...\n    def test_y"
    )
    lost = ("t.py::TestB::test_x",)
    assert removed({"t.py": MIXED}, {"t.py": moved}, *lost) == set(lost)
    alone = MIXED.replace("TestB(Mixin, x.Other)", "TestB(x.Other)")
    assert removed({"t.py": MIXED}, {"t.py": alone}, *lost) == set(lost)
    hidden = MIXED + "\nTestB.__test__ = False\n"
    assert removed({"t.py": MIXED}, {"t.py": hidden}, *lost) == set()
    ring = "class A(B): ...\n\nclass B(A):\n    def test_x(self): ...\n"
    assert removed({"t.py": ring}, {"t.py": ring + "\n"}, "t.py::A::test_x") == set()


DOCUMENTED = (
    '"""Top.\n\n>>> 1\n1\n"""\n\n'
    'def f(a):\n    """Do.\n\n    >>> 2\n    2\n    """\n\n'
    'class C:\n    """Be.\n\n    >>> 3\n    3\n    """\n'
)


@pytest.mark.parametrize(("number", "name"), [("1", ""), ("2", ".f"), ("3", ".C")])
def test_an_example_is_removed_from_its_docstring(number: str, name: str) -> None:
    cut = DOCUMENTED.replace(f">>> {number}", "That is")
    for path in ("src/pkg/doc.py", "src/pkg/doc/__init__.py"):
        node = f"{path}::pkg.doc{name}"
        assert removed({path: DOCUMENTED}, {path: cut}, node) == {node}
        assert removed({path: DOCUMENTED}, {path: DOCUMENTED + "x = 1\n"}, node) == set()


def test_what_is_only_moved_is_not_gone() -> None:
    before = {"a.py": "def test_x(): ...\n", "b.py": ""}
    after = {"a.py": "", "b.py": "def test_x(): ...\n"}
    assert removed(before, after, "c.py::TestA::test_x") == set()


def test_tests_of_a_renamed_file_are_sought_under_its_new_name() -> None:
    before, after = {"t.py": TESTS, "u.py": None}, {"t.py": None, "u.py": TESTS + "# more\n"}
    assert removed(before, after, "t.py::test_a", renames={"t.py": "u.py"}) == set()
    cut = {"t.py": None, "u.py": TESTS.replace("test_a", "no")}
    assert removed(before, cut, "t.py::test_a", renames={"t.py": "u.py"}) == {"t.py::test_a"}


def test_a_format_without_renames_moves_by_deleting_and_making() -> None:
    before, after = {"t.py": TESTS, "u.py": None}, {"t.py": None, "u.py": TESTS}
    assert changes_of(files(before), files(after), {}).renames == {"t.py": "u.py"}
    copied = changes_of(files({"u.py": None}), files({"u.py": TESTS}), {b"u.py": b"t.py"})
    assert copied.renames == {}


@pytest.mark.parametrize("source", ["def (", "x = '\0'", "(" * 5000])
def test_a_file_that_does_not_parse_removes_nothing_but_words(source: str) -> None:
    assert removed({"t.py": source}, {"t.py": TESTS}, "t.py::test_q") == set()
