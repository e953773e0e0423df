from __future__ import annotations

import dataclasses

from sandbox_engine.reports.text import describe
from sandbox_engine.verdict import (
    AtomRecord,
    CommitId,
    Culprit,
    Explanation,
    Finding,
    Outcome,
    StepResult,
    TestOutcome,
    TestRecord,
    TreeId,
    Verdict,
)

VERDICT = Verdict(
    Outcome.REJECTED,
    "SYNTAX_ONLY",
    CommitId("c" * 40),
    TreeId("b" * 40),
    TreeId("t" * 40),
    reason="`a.py` is not valid",
    hint="correct it",
    changed_paths=tuple(f"{n}.py" for n in range(7)),
)
FINDING = Finding("syntax-error", "wrong", "a.py", 3, 5, "\tx = (", "close it")


def test_the_outcome_comes_first_and_what_to_do_follows() -> None:
    lines = describe(dataclasses.replace(VERDICT, findings=(FINDING,))).split("\n")
    assert lines[0] == "REJECTED: `a.py` is not valid"
    assert "  syntax-error a.py:3:5" in lines
    caret = lines[lines.index("     x = (") + 1]
    assert caret.index("^") == 4 + 5 - 1
    assert "hint: correct it" in lines
    assert "changed   0.py, 1.py, 2.py, 3.py, 4.py and 2 more" in lines


def test_several_findings_each_say_what_is_wrong() -> None:
    other = Finding("file-too-large", "has too many bytes", "b.bin", hint="leave it out")
    text = describe(dataclasses.replace(VERDICT, findings=(FINDING, other)))
    assert "    wrong\n" in text
    assert "  file-too-large b.bin\n    has too many bytes\n    hint: leave it out" in text


def test_many_red_tests_are_shortened_and_control_characters_shown() -> None:
    red = tuple(TestRecord(f"t{n}", TestOutcome.FAILED, 0, "boo\x1b[31m\rx") for n in range(12))
    step = StepResult("pytest", Outcome.FAILED, 1.25, "12 failed", tests=red)
    text = describe(dataclasses.replace(VERDICT, outcome=Outcome.FAILED, steps=(step,)))
    assert "  and 2 more" in text
    assert "boo\\x1b[31m\\rx" in text
    assert "(pytest 1.25 s)" in text


def test_a_step_without_tests_shows_the_end_of_its_output() -> None:
    output = "".join(f"line {n}\n" for n in range(100))
    step = StepResult("command x", Outcome.FAILED, reason="exit code 1", output=output)
    text = describe(dataclasses.replace(VERDICT, outcome=Outcome.FAILED, steps=(step,)))
    assert "line 99" in text
    assert "line 69\n" not in text


ATOMS = tuple(AtomRecord(n, "c.py", None, f"c.py, hunk {n + 1} of 9") for n in range(9))


def explained(explanation: Explanation) -> list[str]:
    explanation = dataclasses.replace(explanation, edits=ATOMS)
    lines = describe(dataclasses.replace(VERDICT, explanation=explanation)).split("\n")
    return [line.strip() for line in lines[2 : lines.index("hint: correct it") - 1]]


def test_an_explanation_says_which_edit_broke_a_test() -> None:
    culprits = (Culprit(("t.py::a",), (1,)),)
    assert explained(Explanation(culprits, (0, 2), (), 5, True)) == [
        "t.py::a is broken by edit 2: c.py, hunk 2 of 9",
        "edits 1 and 3 alone pass",
    ]


def test_an_explanation_lists_edits_that_break_tests_together() -> None:
    culprits = (Culprit(("a", "b", "c"), (0, 1, 2, 4, 5, 7)),)
    lines = explained(Explanation(culprits, (8,), (), 5, True))
    assert lines[0] == "a, b and c are broken by edits 1 to 3, 5, 6 and 8 together:"
    assert lines[4:] == [
        "edit 5: c.py, hunk 5 of 9",
        "edit 6: c.py, hunk 6 of 9",
        "edit 8: c.py, hunk 8 of 9",
        "edit 9 alone passes",
    ]


def test_an_explanation_says_what_is_not_known() -> None:
    tests = tuple(f"t{n}" for n in range(12))
    assert explained(Explanation((), None, tests, 3)) == [
        "nothing is known of what broke t0, t1, t2, t3, t4, t5, t6, t7, t8, t9 and 2 more",
        "not all was tried in 3 runs: fewer edits may be enough",
    ]
