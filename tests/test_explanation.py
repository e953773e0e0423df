"""Which edits broke which tests: real patches of several edits, judged and taken apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import GitBox

from sandbox_engine import Config, Engine, Outcome, Verdict, describe

GAP = "\n" * 12
CODE = GAP.join(f"def f{number}(x):\n    return x + {number}\n" for number in range(6))
TESTS = "import code_of\n\n\n" + "\n\n".join(
    f"def test_f{number}():\n    assert code_of.f{number}(1) == {1 + number}\n"
    for number in range(6)
)


@pytest.fixture
def several(box: GitBox) -> GitBox:
    """A project whose functions are far enough apart to be hunks of their own."""
    box.commit({"code_of.py": CODE, "tests/test_code.py": TESTS, "notes.txt": "notes\n"})
    return box


def edited(*broken: int, harmless: tuple[int, ...] = ()) -> str:
    code = CODE
    for number in broken:
        code = code.replace(f"return x + {number}\n", f"return x - {number}\n")
    for number in harmless:
        code = code.replace(f"return x + {number}\n", f"return {number} + x\n")
    return code


def explained(box: GitBox, patch: bytes | str, **settings: int) -> Verdict:
    engine = Engine(box.top, config=Config(reruns=0, **settings))  # type: ignore[arg-type]
    verdict = engine.validate(patch, explain=True)
    assert verdict.outcome is Outcome.FAILED
    assert Verdict.from_json(json.loads(json.dumps(verdict.to_json()))) == verdict
    return verdict


def culprits(verdict: Verdict) -> dict[tuple[str, ...], tuple[int, ...]]:
    assert verdict.explanation is not None
    return {
        tuple(test.rpartition("::")[2] for test in culprit.tests): culprit.edits
        for culprit in verdict.explanation.culprits
    }


def test_the_hunks_that_broke_tests_are_named(several: GitBox) -> None:
    patch = several.diff_to(
        {"code_of.py": edited(2, 4, harmless=(1, 3, 5)), "notes.txt": "more notes\n"}
    )
    verdict = explained(several, patch)
    assert culprits(verdict) == {("test_f2",): (1,), ("test_f4",): (3,)}
    explanation = verdict.explanation
    assert explanation is not None and explanation.is_complete
    assert explanation.passing == (0, 2, 4, 5)
    assert explanation.edits[1].path == "code_of.py"
    assert "hunk 2 of 5" in describe(verdict)


def test_edits_that_only_together_break_a_test(several: GitBox) -> None:
    code = edited(harmless=(1, 3)).replace(
        "    return x + 0\n", "    return x + len(globals().get('EXTRA', ''))\n"
    )
    code += GAP + "EXTRA = 'x'\n"
    verdict = explained(several, several.diff_to({"code_of.py": code}))
    assert culprits(verdict) == {("test_f0",): (0, 3)}
    assert verdict.explanation is not None and verdict.explanation.passing is not None
    assert len(verdict.explanation.passing) == 3


def test_operations_of_a_plan_are_told_apart(several: GitBox) -> None:
    operations = [
        {
            "file_path": "code_of.py",
            "operation": "REPLACE",
            "block_to_replace": f"return x + {number}\n",
            "content": f"return x {sign} {number}\n",
        }
        for number, sign in ((1, "- -"), (3, "*"), (5, "- -"))
    ]
    plan = json.dumps({"patches_to_apply": operations})
    assert culprits(explained(several, plan)) == {("test_f3",): (1,)}


def test_a_file_that_is_moved_is_found_under_both_names(several: GitBox) -> None:
    several.git("mv", "tests/test_code.py", "tests/test_moved.py")
    patch = several.diff_to({"code_of.py": edited(2, harmless=(4,))}, "-M")
    verdict = explained(several, patch)
    assert culprits(verdict) == {("test_f2",): (0,)}
    assert verdict.explanation is not None and verdict.explanation.passing == (1, 2)


def test_the_budget_is_kept(several: GitBox) -> None:
    patch = several.diff_to({"code_of.py": edited(0, 1, 2, 3, 4, 5)})
    verdict = explained(several, patch, explain_runs=3)
    assert verdict.explanation is not None
    assert not verdict.explanation.is_complete
    assert verdict.explanation.runs == 3
    assert "not all was tried in 3 runs" in describe(verdict)


def test_answers_are_kept(several: GitBox, tmp_path: Path) -> None:
    patch = several.diff_to({"code_of.py": edited(2, harmless=(1, 3))})
    first = explained(several, patch)
    again = explained(several, patch)
    assert again.is_cached and again.explanation == first.explanation
    assert again.elapsed_s < first.elapsed_s / 2


def test_there_is_nothing_to_tell_of_one_edit_or_of_what_passes(several: GitBox) -> None:
    assert explained(several, several.diff_to({"code_of.py": edited(2)})).explanation is None
    engine = Engine(several.top, config=Config(reruns=0))
    passed = engine.validate(several.diff_to({"code_of.py": edited(harmless=(1, 2))}), explain=True)
    assert passed.outcome is Outcome.PASSED and passed.explanation is None


def test_a_test_that_needs_an_earlier_one_is_left_open(several: GitBox) -> None:
    steps = (
        "import code_of\n\nkept = {}\n\n\ndef test_1():\n    kept['n'] = 1\n\n\n"
        "def test_2():\n    assert code_of.f4(kept['n']) == 5\n"
    )
    several.commit({"tests/test_code.py": steps})
    verdict = explained(several, several.diff_to({"code_of.py": edited(4, harmless=(1, 2, 3))}))
    assert verdict.explanation is not None and verdict.explanation.culprits == ()
    assert verdict.explanation.unexplained == ("tests/test_code.py::test_2",)
