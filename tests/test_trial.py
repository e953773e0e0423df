"""Patches judged beside their base: real repositories, real sessions."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
from conftest import GitBox

from sandbox_engine import Engine, Outcome, Verdict, trial
from sandbox_engine.config import Config
from sandbox_engine.recipe import Recipe, Step, StepKind
from sandbox_engine.verdict import Category, Cause

CALC = "def add(a, b):\n    return a + b\n\n\ndef double(a):\n    return a * 2\n"
GREEN = (
    "from calc import add, double\n\n\n"
    "def test_add():\n    assert add(1, 2) == 3\n\n\n"
    "def test_double():\n    assert double(4) == 8\n"
)
RED = "from calc import add\n\n\ndef test_red():\n    assert add(1, 1) == 3\n"
SWAP = {"calc.py": CALC.replace("a + b", "b + a")}
BREAK = {"calc.py": CALC.replace("a * 2", "a * 3")}


def made(box: GitBox, files: Mapping[str, str]) -> Engine:
    box.commit({"calc.py": CALC, "tests/test_calc.py": GREEN, **files})
    return Engine(box.top)


def judged(
    box: GitBox, engine: Engine, files: Mapping[str, str | None], **settings: object
) -> Verdict:
    verdict = engine.validate(box.diff_to(files), **settings)  # type: ignore[arg-type]
    Verdict.from_json(json.loads(json.dumps(verdict.to_json())))
    return verdict


def categories(verdict: Verdict) -> dict[str, str]:
    return {test.node_id: str(test.category) for step in verdict.steps for test in step.tests}


def result(verdict: Verdict) -> tuple[Outcome, Cause | None]:
    return verdict.outcome, verdict.cause


def test_a_red_base_is_not_blamed(box: GitBox) -> None:
    engine = made(box, {"tests/test_red.py": RED})
    verdict = judged(box, engine, SWAP)
    assert result(verdict) == (Outcome.PASSED, None)
    assert categories(verdict) == {
        "tests/test_calc.py::test_add": "passed",
        "tests/test_calc.py::test_double": "passed",
        "tests/test_red.py::test_red": "pre-existing",
    }
    verdict = judged(box, engine, BREAK)
    assert result(verdict) == (Outcome.FAILED, None)
    assert categories(verdict)["tests/test_calc.py::test_double"] == "regressed"
    assert "test_double" in verdict.reason and "test_red" not in verdict.reason


def test_a_fix_is_told_and_may_be_required(box: GitBox) -> None:
    broken = CALC.replace("a + b", "a - b")
    engine = made(box, {"calc.py": broken})
    node = "tests/test_calc.py::test_add"
    verdict = judged(box, engine, {"calc.py": CALC}, require=[f"fixed:{node}"], keep=["tests/*"])
    assert result(verdict) == (Outcome.PASSED, None)
    assert categories(verdict)[node] == "fixed"
    idle = {"calc.py": broken + "# more\n"}
    assert judged(box, engine, idle).outcome is Outcome.PASSED
    assert judged(box, engine, idle, require=[f"fixed:{node}"]).outcome is Outcome.FAILED
    other = judged(box, engine, idle, require=["fixed:tests/test_calc.py::test_double"])
    assert result(other) == (Outcome.INCONCLUSIVE, Cause.UNPROVED)


def test_tests_that_the_patch_removes_or_adds_are_no_loss(box: GitBox) -> None:
    engine = made(box, {"tests/test_more.py": "def test_a(): pass\n\n\ndef test_b(): pass\n"})
    verdict = judged(
        box, engine, {"tests/test_more.py": "def test_b(): pass\n\n\ndef test_c(): pass\n"}
    )
    assert result(verdict) == (Outcome.PASSED, None)
    assert verdict.test_control == ("tests/test_more.py",)
    assert categories(verdict) == {
        "tests/test_calc.py::test_add": "passed",
        "tests/test_calc.py::test_double": "passed",
        "tests/test_more.py::test_a": "removed",
        "tests/test_more.py::test_b": "passed",
        "tests/test_more.py::test_c": "new-passed",
    }


def test_a_new_test_that_fails_is_blamed(box: GitBox) -> None:
    engine = made(box, {})
    verdict = judged(box, engine, {"tests/test_new.py": "def test_new():\n    assert 0\n"})
    assert verdict.outcome is Outcome.FAILED
    assert categories(verdict)["tests/test_new.py::test_new"] == "new-failed"


def test_tests_follow_their_file(box: GitBox) -> None:
    engine = made(box, {"tests/test_red.py": RED})
    box.git("mv", "tests/test_red.py", "tests/test_crimson.py")
    patch = box.diff_to({}, "-M")
    verdict = engine.validate(patch)
    assert result(verdict) == (Outcome.PASSED, None)
    assert categories(verdict)["tests/test_crimson.py::test_red"] == "pre-existing"


@pytest.mark.parametrize(
    "files",
    [
        {"conftest.py": "collect_ignore = ['tests/test_more.py']\n"},
        {"tests/test_more.py": "def test_more(): pass\n\n\ndel test_more\n"},
        {"pytest.ini": "[pytest]\npython_files = test_calc.py\n"},
        {"calc.py": CALC + "import sys\nsys.modules['pytest'].hidden = True\n"},
    ],
)
def test_tests_that_vanish_prove_nothing(box: GitBox, files: dict[str, str]) -> None:
    hides = (
        "import sys\nif not hasattr(sys.modules['pytest'], 'hidden'):\n    def test_more(): pass\n"
    )
    text = hides if "calc.py" in files else "def test_more(): pass\n"
    engine = made(box, {"tests/test_more.py": text})
    verdict = judged(box, engine, files)
    assert result(verdict) == (Outcome.INCONCLUSIVE, Cause.VANISHED)
    assert "tests/test_more.py::test_more" in verdict.reason


def test_a_skip_that_is_new_proves_nothing(box: GitBox) -> None:
    skips = "import pytest, calc\n\n\ndef test_x():\n    if hasattr(calc, 'old'): pytest.skip()\n"
    engine = made(box, {"tests/test_x.py": skips})
    verdict = judged(box, engine, {"calc.py": CALC + "old = 1\n"})
    assert result(verdict) == (Outcome.INCONCLUSIVE, Cause.SKIPPED)
    engine.config = Config(max_new_skips=0.5)
    assert judged(box, engine, {"calc.py": CALC + "old = 1\n"}).outcome is Outcome.PASSED


WEAKER = GREEN.replace("double(4) == 8", "double(4)")
HIDES = "def pytest_pyfunc_call():\n    return True\n"


@pytest.mark.parametrize(
    "files",
    [
        {"tests/test_calc.py": WEAKER},
        {"tests/test_calc.py": GREEN.replace("def test_double", "def check_double")},
        {"tests/test_calc.py": None, "tests/test_new.py": "def test_new(): pass\n"},
        {
            "tests/test_calc.py": GREEN.replace(
                "def test_double", "import pytest\n\n\n@pytest.mark.xfail\ndef test_double"
            )
        },
        {"conftest.py": HIDES},
    ],
)
def test_a_patch_that_changes_the_question_needs_leave(
    box: GitBox, files: dict[str, str | None]
) -> None:
    engine = made(box, {})
    verdict = judged(box, engine, {**BREAK, **files})
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.cause in (Cause.TAMPERED, Cause.SKIPPED)
    assert "test_double" in verdict.reason
    assert set(verdict.test_control) == set(files)


@pytest.mark.parametrize(
    "steering",
    [
        # The tests of another file check by it.
        {"tests/test_checks.py": "def check(*_): pass\n\n\ndef test_own(): pass\n"},
        # It mends the code when it is imported.
        {"tests/test_a.py": "import calc\ncalc.double = lambda a: 2 * a\ndef test_a(): pass\n"},
    ],
)
def test_a_test_file_that_steers_those_of_others_needs_leave(
    box: GitBox, steering: dict[str, str]
) -> None:
    engine = made(
        box,
        {
            "tests/test_checks.py": "def check(a, b): assert a == b\n\n\ndef test_own(): pass\n",
            "tests/test_calc.py": "import calc\nfrom test_checks import check\n\n\n"
            "def test_double(): check(calc.double(4), 8)\n",
        },
    )
    verdict = judged(box, engine, {**BREAK, **steering})
    assert result(verdict) == (Outcome.INCONCLUSIVE, Cause.TAMPERED)
    assert categories(verdict)["tests/test_calc.py::test_double"] == "tampered"


def test_a_case_that_data_replace_is_not_lost_from_sight(box: GitBox) -> None:
    tests = (
        "import json, pathlib, pytest\nimport calc\n\n"
        "cases = json.loads(pathlib.Path(__file__).with_name('cases.json').read_text())\n\n\n"
        "@pytest.mark.parametrize('n', cases)\n"
        "def test_n(n): assert calc.double(n) == n + n\n"
    )
    engine = made(box, {"tests/test_n.py": tests, "tests/cases.json": "[1, 7]"})
    broken = CALC.replace("a * 2", "a * 2 if a != 7 else 0")
    verdict = judged(box, engine, {"calc.py": broken, "tests/cases.json": "[1, 8]"})
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.cause is Cause.VANISHED
    assert categories(verdict)["tests/test_n.py::test_n[7]"] == "vanished"
    assert judged(box, engine, {**SWAP, "tests/cases.json": "[1, 8]"}).outcome is Outcome.PASSED


def test_a_doctest_that_changes_with_its_code_needs_leave(box: GitBox) -> None:
    code = 'def half(a):\n    """Halve.\n\n    >>> half(4)\n    2\n    """\n    return a // 2\n'
    engine = made(box, {"half.py": code, "pytest.ini": "[pytest]\naddopts = --doctest-modules\n"})
    wrong = code.replace("a // 2", "a // 3")
    verdict = judged(box, engine, {"half.py": wrong.replace("    2\n", "    1\n")})
    assert result(verdict) == (Outcome.INCONCLUSIVE, Cause.TAMPERED)
    assert "half.py::half.half" in verdict.reason
    right = code.replace("a // 2", "a >> 1").replace("    2\n", "    2\n    >>> half(6)\n    3\n")
    assert judged(box, engine, {"half.py": right}).outcome is Outcome.PASSED


def test_leave_may_be_given(box: GitBox) -> None:
    engine = made(box, {})
    files = {**BREAK, "tests/test_calc.py": GREEN.replace("== 8", "== 12")}
    verdict = judged(box, engine, files)
    assert result(verdict) == (Outcome.INCONCLUSIVE, Cause.TAMPERED)
    assert categories(verdict)["tests/test_calc.py::test_double"] == "tampered"
    assert "--allow-test-changes" in (verdict.hint or "")
    assert judged(box, engine, files, allow_test_changes=True).outcome is Outcome.PASSED
    assert judged(box, engine, files, strategy="TEST_FIX_STRATEGY").outcome is Outcome.PASSED


def test_a_test_made_to_pass_without_a_change_of_the_code_needs_leave(box: GitBox) -> None:
    engine = made(box, {"tests/test_red.py": RED})
    files = {"tests/test_red.py": RED.replace("3", "2")}
    assert result(judged(box, engine, files)) == (Outcome.INCONCLUSIVE, Cause.TAMPERED)


def test_a_repair_with_its_test_needs_none(box: GitBox) -> None:
    engine = made(
        box,
        {
            "calc.py": CALC.replace("a * 2", "a + 2"),
            "tests/test_calc.py": GREEN.replace("4) == 8", "2) == 4"),
        },
    )
    verdict = judged(box, engine, {"calc.py": CALC, "tests/test_calc.py": GREEN})
    assert result(verdict) == (Outcome.PASSED, None)
    assert verdict.test_control == ("tests/test_calc.py",)


@pytest.mark.parametrize(
    "mark",
    [
        "import pytest\n\n\nclass TestIt:\n    @pytest.mark.xfail(strict=True)\n",
        "import unittest\n\n\nclass TestIt(unittest.TestCase):\n    @unittest.expectedFailure\n",
    ],
)
def test_a_repair_takes_the_mark_of_its_test_along(box: GitBox, mark: str) -> None:
    tests = (
        f"{mark}    def test_it(self):\n        import calc\n\n        assert calc.half(4) == 2\n"
    )
    engine = made(box, {"tests/test_it.py": tests})
    unmarked = "".join(line for line in tests.splitlines(True) if "    @" not in line)
    files = {"calc.py": CALC + "\n\ndef half(a):\n    return a // 2\n"}
    assert judged(box, engine, {**files, "tests/test_it.py": unmarked}).outcome is Outcome.PASSED
    assert judged(box, engine, files).outcome is Outcome.FAILED


def test_a_strategy_that_stops_at_the_first_failure_hears_of_all(box: GitBox) -> None:
    engine = made(box, {"tests/test_a.py": RED})
    step = Step(StepKind.PYTEST, ("-x", "--", "tests"))
    engine.config = Config(strategy="OWN", strategies={"OWN": Recipe("OWN", (step,))})
    assert judged(box, engine, SWAP).outcome is Outcome.PASSED
    assert judged(box, engine, BREAK).outcome is Outcome.FAILED


def test_a_weaker_test_is_told_though_its_name_is_another_each_time(box: GitBox) -> None:
    tests = (
        "import time\n\nimport pytest\nfrom calc import double\n\n\n"
        "@pytest.mark.parametrize('now', [str(time.time_ns())])\n"
        "def test_now(now):\n    assert double(2) == 4\n"
    )
    engine = made(box, {"tests/test_calc.py": tests})
    files = {**BREAK, "tests/test_calc.py": tests.replace(" == 4", "")}
    assert result(judged(box, engine, files)) == (Outcome.INCONCLUSIVE, Cause.TAMPERED)


def test_what_only_says_that_it_was_to_fail_is_red(box: GitBox) -> None:
    engine = made(box, {})
    fails = "import pytest\n    pytest.fail('[XPASS(strict)] ', pytrace=False)"
    files = {"calc.py": CALC.replace("return a * 2", fails)}
    weaker = GREEN.replace("assert double(4) == 8", "pass")
    verdict = judged(box, engine, {**files, "tests/test_calc.py": weaker})
    assert result(verdict) == (Outcome.INCONCLUSIVE, Cause.TAMPERED)


def test_a_change_of_names_that_tests_use_is_told(box: GitBox) -> None:
    engine = made(box, {})
    files = {
        "calc.py": CALC.replace("double", "twice"),
        "tests/test_calc.py": GREEN.replace("double", "twice"),
    }
    verdict = judged(box, engine, files)
    assert result(verdict) == (Outcome.INCONCLUSIVE, Cause.TAMPERED)
    assert judged(box, engine, files, allow_test_changes=True).outcome is Outcome.PASSED


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a test that fails half of the time found out, however slow or lucky the machine is."""
    monkeypatch.setattr(trial, "_BASE_RERUN_S", 600.0)
    monkeypatch.setattr(trial, "_BASE_RERUNS", 12)


@pytest.mark.usefixtures("patient")
def test_a_flaky_test_is_reported_and_not_blamed(box: GitBox) -> None:
    # Half of all sessions fail, whatever the patch does.
    flaky = "import random\n\n\ndef test_flaky():\n    assert random.random() < 0.5\n"
    engine = made(box, {"tests/test_flaky.py": flaky})
    outcomes = [
        judged(box, engine, {"calc.py": CALC + f"# {number}\n"}).outcome for number in range(8)
    ]
    assert Outcome.FAILED not in outcomes
    # Found out once, it is known for the base.
    verdict = judged(box, engine, BREAK)
    assert verdict.outcome is Outcome.FAILED
    assert [test.node_id for test in verdict.red_tests if test.category is Category.REGRESSED] == [
        "tests/test_calc.py::test_double"
    ]


def test_a_test_that_fails_among_others_alone_is_no_flake(box: GitBox) -> None:
    tests = (
        "import calc\n\n\ndef test_first():\n    calc.start()\n\n\n"
        "def test_second():\n    assert not calc.is_running()\n"
    )
    code = (
        f"{CALC}\n\nstate = []\n\n\ndef start():\n    pass\n\n\n"
        "def is_running():\n    return bool(state)\n"
    )
    engine = made(box, {"calc.py": code, "tests/test_order.py": tests})
    verdict = judged(box, engine, {"calc.py": code.replace("    pass\n", "    state.append(1)\n")})
    assert result(verdict) == (Outcome.INCONCLUSIVE, Cause.UNSTABLE)
    assert "test_second" in verdict.reason


def test_a_test_that_needs_an_earlier_one_is_no_flake(box: GitBox) -> None:
    steps = (
        "import calc\n\n\nclass TestSteps:\n    kept = {}\n\n"
        "    def test_1_make(self):\n        self.kept['n'] = 4\n\n"
        "    def test_2_use(self):\n        assert calc.double(self.kept['n']) == 8\n"
    )
    engine = made(
        box, {"tests/test_calc.py": "def test_one(): pass\n", "tests/test_steps.py": steps}
    )
    for number in range(2):
        verdict = judged(box, engine, {"calc.py": BREAK["calc.py"] + f"# {number}\n"})
        assert verdict.outcome is Outcome.FAILED
        assert categories(verdict)["tests/test_steps.py::TestSteps::test_2_use"] == "regressed"
    assert judged(box, engine, SWAP).outcome is Outcome.PASSED


@pytest.mark.usefixtures("patient")
def test_a_flaky_test_under_control_is_not_taken_for_hidden(box: GitBox) -> None:
    flaky = "import random\n\n\ndef test_flaky():\n    assert random.random() < 0.5\n"
    engine = made(box, {"tests/test_flaky.py": flaky})
    for number in range(3):
        # A base that nothing is known of, each time.
        box.commit({"notes.txt": str(number)})
        files = {**SWAP, "tests/test_new.py": f"def test_new():\n    assert {number + 1}\n"}
        assert result(judged(box, engine, files)) == (Outcome.PASSED, None)


def test_more_tests_than_are_run_again_at_once_may_be_flaky(box: GitBox) -> None:
    # All of them fail in the first session of a candidate that is not the first.
    tests = (
        "import os, pathlib, pytest\nimport calc\n\n"
        "runs = pathlib.Path(os.environ['RUNS'])\n\n\n"
        "@pytest.fixture(scope='module')\ndef is_good():\n"
        "    if not hasattr(calc, 'second'):\n        return True\n"
        "    was_there = runs.exists()\n    runs.write_text('')\n    return was_there\n\n\n"
        "@pytest.mark.parametrize('n', range(60))\ndef test_n(n, is_good):\n    assert is_good\n"
    )
    engine = made(box, {"tests/test_n.py": tests})
    folder = box.top.parent / "out"
    folder.mkdir()
    recipe = Recipe("OWN", (Step(StepKind.PYTEST),), writable=(str(folder),))
    engine.config = Config(strategy="OWN", strategies={"OWN": recipe}, env=("RUNS",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUNS", str(folder / "runs"))
        verdict = judged(box, engine, {"calc.py": CALC + "second = True\n"})
    assert result(verdict) == (Outcome.PASSED, None)
    assert list(categories(verdict).values()).count("flaky") == 60


def test_a_broken_import_names_the_file(box: GitBox) -> None:
    engine = made(box, {"tests/test_red.py": RED})
    verdict = judged(box, engine, {"calc.py": CALC.replace("def double", "def treble")})
    assert verdict.outcome is Outcome.FAILED
    found = categories(verdict)
    assert found == {
        "tests/test_calc.py": "regressed",
        "tests/test_red.py::test_red": "pre-existing",
    }


def test_a_session_that_the_patch_keeps_from_starting(box: GitBox) -> None:
    engine = made(box, {"conftest.py": "import calc\n\ncalc.double\n", "tests/test_red.py": RED})
    verdict = judged(box, engine, {"calc.py": CALC.replace("def double", "def treble")})
    assert result(verdict) == (Outcome.FAILED, None)
    assert categories(verdict) == {
        "tests/test_calc.py::test_add": "regressed",
        "tests/test_calc.py::test_double": "regressed",
        "tests/test_red.py::test_red": "pre-existing",
    }
    assert "has no attribute 'double'" in (verdict.red_tests[0].message or "")
    missing = judged(box, engine, {"calc.py": "import no_such_module\n" + CALC})
    assert result(missing) == (Outcome.INCONCLUSIVE, Cause.INFRA)


def test_what_the_base_cannot_collect_is_infra_and_never_kept(box: GitBox) -> None:
    engine = made(box, {"tests/test_lost.py": "import no_such_module\n"})
    for _ in range(2):
        verdict = judged(box, engine, SWAP)
        assert result(verdict) == (Outcome.INCONCLUSIVE, Cause.INFRA)
        assert "tests/test_lost.py" in verdict.reason and not verdict.is_cached
    assert judged(box, engine, BREAK).outcome is Outcome.FAILED


def test_a_repaired_import_is_a_fix(box: GitBox) -> None:
    engine = made(
        box,
        {"tests/test_more.py": "from calc import more\n\n\ndef test_more():\n    assert more\n"},
    )
    verdict = judged(
        box,
        engine,
        {"calc.py": CALC + "more = 1\n"},
        require=["fixed:tests/test_more.py::test_more"],
    )
    assert result(verdict) == (Outcome.PASSED, None)


def test_a_dependency_that_is_missing_is_infra(box: GitBox) -> None:
    engine = made(box, {})
    verdict = judged(box, engine, {"calc.py": "import no_such_module\n" + CALC})
    assert result(verdict) == (Outcome.INCONCLUSIVE, Cause.INFRA)
    assert "`no_such_module` is not installed" in verdict.reason


@pytest.mark.parametrize(
    "conftest",
    ["import os\nos._exit(0)\n", "raise ValueError\n", "def pytest_configure(): 1 / 0\n"],
)
def test_a_base_that_cannot_be_judged_is_infra(box: GitBox, conftest: str) -> None:
    engine = made(box, {"conftest.py": conftest})
    verdict = judged(box, engine, SWAP)
    assert result(verdict) == (Outcome.INCONCLUSIVE, Cause.INFRA)
    assert "the base cannot be judged" in verdict.reason


def test_a_base_without_tests_may_get_some(box: GitBox) -> None:
    box.commit({"calc.py": CALC})
    engine = Engine(box.top)
    verdict = judged(box, engine, {"tests/test_calc.py": GREEN})
    assert result(verdict) == (Outcome.PASSED, None)
    assert set(categories(verdict).values()) == {"new-passed"}


def test_an_option_that_ends_the_session_early_hides_nothing(box: GitBox) -> None:
    settings = {"pytest.ini": "[pytest]\naddopts = -x\n", "tests/test_a_red.py": RED}
    engine = made(box, settings)
    verdict = judged(box, engine, SWAP)
    assert result(verdict) == (Outcome.PASSED, None)
    assert len(categories(verdict)) == 3
    assert judged(box, engine, BREAK).outcome is Outcome.FAILED


def test_a_base_runs_once(box: GitBox, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    seen.mkdir(mode=0o777)
    counting = (
        f"import pathlib, uuid\npathlib.Path({str(seen)!r}, uuid.uuid4().hex).write_text('')\n"
    )
    box.commit({"calc.py": CALC, "tests/test_calc.py": GREEN, "conftest.py": counting})
    recipe = Recipe("OWN", (Step(StepKind.PYTEST),), writable=(str(seen),))
    config = Config(strategy="OWN", strategies={"OWN": recipe})
    patches = [box.diff_to({"calc.py": CALC + f"# {number}\n"}) for number in range(4)]

    def validate(patch: bytes) -> None:
        outcomes.append(Engine(box.top, config=config).validate(patch).outcome)

    outcomes: list[Outcome] = []
    threads = [threading.Thread(target=validate, args=(patch,)) for patch in patches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [Outcome.PASSED] * 4
    assert len(list(seen.iterdir())) == 5
    Engine(box.top, config=config).validate(patches[0])
    assert len(list(seen.iterdir())) == 5
    Engine(box.top, config=config).validate(patches[0], use_cache=False)
    assert len(list(seen.iterdir())) == 7


def test_one_sandbox_is_enough(box: GitBox) -> None:
    engine = made(box, {"tests/test_red.py": RED})
    engine.config = Config(slots=1, lease_wait_s=5)
    files = {**BREAK, "tests/test_calc.py": WEAKER}
    assert result(judged(box, engine, files)) == (Outcome.INCONCLUSIVE, Cause.TAMPERED)


def test_what_a_command_makes_is_there_for_the_base_too(box: GitBox) -> None:
    tests = "import pathlib\n\n\ndef test_made():\n    assert pathlib.Path('made.txt').exists()\n"
    engine = made(box, {"tests/test_made.py": tests})
    make = Step(StepKind.COMMAND, ("touch", "made.txt"))
    recipe = Recipe("OWN", (make, Step(StepKind.PYTEST)))
    engine.config = Config(strategy="OWN", strategies={"OWN": recipe})
    verdict = judged(box, engine, SWAP)
    assert result(verdict) == (Outcome.PASSED, None)
    assert categories(verdict)["tests/test_made.py::test_made"] == "passed"
    verdict = judged(box, engine, BREAK)
    assert verdict.outcome is Outcome.FAILED
    assert categories(verdict)["tests/test_made.py::test_made"] == "passed"


ALTERING = {
    "overwritten": "import pathlib\npath = pathlib.Path('tests/test_calc.py')\n"
    "path.write_text(path.read_text().replace('== 8', '>= 8'))\n",
    "compiled otherwise": "import ast\nparse = ast.parse\n"
    "ast.parse = lambda source, *a, **k: parse(source.replace(b'== 8', b'>= 8'), *a, **k)\n",
    "replaced before it ran": "def add(a, b):\n    import sys\n"
    "    test = sys.modules['test_calc'].test_double\n"
    "    test.__code__ = (lambda: None).__code__\n    return a + b\n",
}


@pytest.mark.parametrize("how", ALTERING)
def test_a_test_that_is_not_the_one_that_is_written_proves_nothing(box: GitBox, how: str) -> None:
    # The base's own conftest runs code under test before any test is read.
    engine = made(box, {"conftest.py": "import calc\n"})
    verdict = judged(box, engine, {"calc.py": BREAK["calc.py"] + ALTERING[how]})
    assert result(verdict) == (Outcome.INCONCLUSIVE, Cause.UNTRUSTED)
    assert "`tests/test_calc.py::test_double` passed, but what ran is not" in verdict.reason


LEAVES = (
    "import gc, os\nfor thing in gc.get_objects():\n    pass\n",
    "import gc\neach = list(map(gc.get_referrers, [1]))\n",
)


@pytest.mark.parametrize("code", LEAVES)
def test_code_that_looks_for_what_judges_it_proves_nothing(box: GitBox, code: str) -> None:
    engine = made(box, {"conftest.py": "import calc\n"})
    verdict = judged(box, engine, {"calc.py": CALC + code})
    assert result(verdict) == (Outcome.INCONCLUSIVE, Cause.UNTRUSTED)
    assert "in `calc.py`" in verdict.reason
    assert judged(box, engine, {"calc.py": CALC + code}, allow_test_changes=True).outcome is (
        Outcome.PASSED
    )
    box.commit({"calc.py": CALC + code})
    assert judged(box, engine, {"calc.py": SWAP["calc.py"] + code}).outcome is Outcome.PASSED


def test_a_new_test_may_look_for_leaks(box: GitBox) -> None:
    engine = made(box, {})
    leaks = "import atexit, gc\n\natexit.register(gc.get_objects)\n\n\ndef test_leaks():\n"
    files = {**SWAP, "tests/test_leaks.py": leaks + "    assert gc.get_objects()\n"}
    assert result(judged(box, engine, files)) == (Outcome.PASSED, None)


STEPS = """
import sys


def step(frame, event, arg):
    return step


sys.settrace(step)
"""


def test_code_that_steps_through_tests_proves_nothing(box: GitBox) -> None:
    engine = made(box, {})
    verdict = judged(box, engine, {"calc.py": CALC + STEPS})
    assert result(verdict) == (Outcome.INCONCLUSIVE, Cause.UNTRUSTED)
    assert "`sys.settrace`" in verdict.reason


def test_a_change_of_another_test_hides_no_altered_one(box: GitBox) -> None:
    engine = made(box, {"conftest.py": "import calc\n", "tests/test_x.py": "def test_x(): pass\n"})
    files = {
        "calc.py": BREAK["calc.py"] + ALTERING["overwritten"],
        "tests/test_x.py": "def test_x():\n    assert 1\n",
    }
    verdict = judged(box, engine, files)
    assert result(verdict) == (Outcome.INCONCLUSIVE, Cause.TAMPERED)
    assert "is not what its file says" in verdict.reason
    files["conftest.py"] = "import calc, sys\n"
    assert judged(box, engine, files).outcome is Outcome.INCONCLUSIVE


DECORATED = """\
import functools
import unittest
from unittest import mock

import pytest

from calc import double, kept


@kept
def test_kept():
    assert double(1) in {1, 2, "a", "b", "c"}


@mock.patch("os.getcwd")
def test_mocked(getcwd):
    assert not getcwd.called


class TestMethods(unittest.TestCase):
    @mock.patch("os.getcwd")
    def test_method(self, getcwd):
        self.assertEqual(double(2), 4)


class TestPlain:
    @staticmethod
    @pytest.mark.parametrize("number", [1, 2])
    def test_static(number):
        assert double(number) == number * 2

    test_partial = functools.partial(lambda self: None, None)
"""


def test_tests_that_are_decorated_are_as_they_are_written(box: GitBox) -> None:
    # The patch changes what the decorator makes of a test, and settings of how tests compile.
    code = CALC + "\n\nimport functools\n\n\ndef kept(test):\n    return test\n"
    wrapping = code.replace("return test\n", "return functools.wraps(test)(lambda: test())\n")
    engine = made(box, {"calc.py": code, "tests/test_more.py": DECORATED})
    assert judged(box, engine, {"calc.py": wrapping}).outcome is Outcome.PASSED
    files = {"calc.py": wrapping, "pytest.ini": "[pytest]\naddopts = --assert=plain\n"}
    assert judged(box, engine, files).outcome is Outcome.PASSED
