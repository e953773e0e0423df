"""What a change does to sizes and complexities, before anything is checked out."""

from __future__ import annotations

import json

import pytest
from conftest import GitBox

from sandbox_engine import (
    Engine,
    FileSize,
    FunctionChange,
    FunctionSize,
    PatchError,
    UsageError,
    analyse_contents,
    compare_revision,
)
from sandbox_engine.analysis.comparison import compare

PLAIN = "def f(a):\n    return a\n\n\ndef g(a):\n    return a\n"
DEEPER = "def f(a):\n    if a:\n        return 1\n    return a\n\n\ndef h(a):\n    return a\n"


def test_functions_are_added_changed_and_removed() -> None:
    before, after = (analyse_contents({"a.py": text.encode()}) for text in (PLAIN, DEEPER))
    (change,) = compare(before, after)
    assert change.path == "a.py"
    assert (change.before, change.after) == (FileSize(6, 100.0, 2), FileSize(8, 100.0, 3))
    assert change.functions == (
        FunctionChange("f", 1, FunctionSize(1, 2), FunctionSize(2, 4)),
        FunctionChange("h", 7, None, FunctionSize(1, 2)),
        FunctionChange("g", 5, FunctionSize(1, 2), None),
    )
    assert compare(before, before) == ()


def test_functions_of_one_name_are_told_apart_by_their_order() -> None:
    text = (
        "class A:\n    @property\n    def x(self): ...\n"
        "    @x.setter\n    def x(self, value):\n        {}\n"
    )
    before, after = (
        analyse_contents({"a.py": text.format(body).encode()})
        for body in ("pass", "return value and 1")
    )
    (change,) = compare(before, after)
    assert change.functions == (FunctionChange("A.x", 5, FunctionSize(1, 2), FunctionSize(2, 2)),)


def test_what_cannot_be_analysed_is_unknown_and_never_nothing() -> None:
    good, bad = (analyse_contents({"a.py": text}) for text in (PLAIN.encode(), b"def f(:\n"))
    (change,) = compare(good, bad)
    assert change.unknown == "after the change: line 1: invalid syntax"
    assert (change.before is not None, change.after, change.functions) == (True, None, ())
    (change,) = compare(bad, {})
    assert change.unknown.startswith("before the change: ")


@pytest.mark.usefixtures("untouched")
def test_a_patch_is_measured_without_a_checkout(project: GitBox, engine: Engine) -> None:
    patch = json.dumps(
        [
            {"file_path": "calc.py", "operation": "REPLACE", "content": DEEPER},
            {"file_path": "notes.txt", "operation": "INSERT", "content": "text"},
            {"file_path": "new.py", "operation": "INSERT", "content": PLAIN},
        ]
    )
    calc, new = engine.analyse(patch)
    assert [(one.qualname, one.before, one.after) for one in calc.functions] == [
        ("f", None, FunctionSize(2, 4)),
        ("h", None, FunctionSize(1, 2)),
        ("add", FunctionSize(1, 2), None),
    ]
    assert (new.path, new.before, new.after) == ("new.py", None, FileSize(6, 100.0, 2))
    assert list(engine.store.slots.iterdir()) == []
    with pytest.raises(PatchError, match="not"):
        engine.analyse("nonsense")
    with pytest.raises(UsageError, match="names no commit"):
        engine.analyse(patch, base="nowhere")


def test_a_folder_is_compared_with_a_revision(project: GitBox) -> None:
    project.commit({"sub/b.py": PLAIN, "sub/gone.py": PLAIN})
    assert compare_revision(project.top) == ()
    project.write({"sub/b.py": DEEPER, "sub/gone.py": None, "untracked.py": PLAIN})
    found = {one.path: one for one in compare_revision(project.top)}
    assert list(found) == ["sub/b.py", "sub/gone.py", "untracked.py"]
    assert found["sub/gone.py"].after is None and found["untracked.py"].before is None
    assert [one.path for one in compare_revision(project.top / "sub")] == ["b.py", "gone.py"]
    found = {one.path: one for one in compare_revision(project.top, "HEAD~1")}
    assert list(found) == ["sub/b.py", "untracked.py"]


def test_there_has_to_be_something_to_compare_with(project: GitBox) -> None:
    with pytest.raises(UsageError, match="`nowhere` names no commit"):
        compare_revision(project.top, "nowhere")
    plain = project.top.parent / "plain"
    plain.mkdir()
    with pytest.raises(UsageError, match="is not in a git repository, so there is nothing"):
        compare_revision(plain)
