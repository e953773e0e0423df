"""The whole way through: a patch goes in, a verdict comes out, the repository is as it was."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import jsonschema
import pytest
from conftest import GitBox

from sandbox_engine import (
    CommandMissingError,
    Config,
    Engine,
    Outcome,
    RepositoryError,
    TestOutcome,
    UsageError,
    Verdict,
    describe,
)
from sandbox_engine.isolation import survey
from sandbox_engine.process import Limits
from sandbox_engine.recipe import STRATEGIES, Recipe, Step, StepKind
from sandbox_engine.verdict import Cause, Tier

SCHEMA = Path(__file__).parent.parent / "docs" / "verdict.schema.json"
pytestmark = pytest.mark.usefixtures("no_reruns", "untouched")


def plan(*operations: dict[str, object]) -> str:
    return json.dumps({"analysis": "a change", "patches_to_apply": list(operations)})


def replace(block: str | None, content: str, path: str = "calc.py") -> dict[str, object]:
    return {
        "file_path": path,
        "operation": "REPLACE",
        "block_to_replace": block,
        "content": content,
    }


GOOD = plan(replace("return a + b", "return b + a"))
BREAKING = plan(replace("return a + b", "return a - b"))
SYNTAX = plan(replace("return a + b", "return (a + b"))
NO_MATCH = plan(replace("return a * b", "return a"))


EATER = 'import os, time; os.fork(); held = bytearray(b"x") * (2**20 * 40); time.sleep(9)'
"""Takes more than 64 MiB in two processes, of which neither takes so much."""


def own(engine: Engine, *steps: Step, **settings: object) -> Engine:
    """Let `engine` judge with `steps` alone."""
    recipe = Recipe("OWN", steps)
    engine.config = Config(strategy="OWN", strategies={"OWN": recipe}, **settings)  # type: ignore[arg-type]
    return engine


def command(script: str) -> Step:
    return Step(StepKind.COMMAND, ("sh", "-c", script))


def test_a_good_patch_passes(project: GitBox, engine: Engine) -> None:
    verdict = engine.validate(GOOD)
    assert verdict.outcome is Outcome.PASSED
    assert verdict.base == project.head
    assert [test.node_id for test in verdict.steps[1].tests] == [
        "tests/test_calc.py::test_add",
        "tests/test_calc.py::test_zero",
    ]
    assert verdict.changed_paths == ("calc.py",)
    assert verdict.summary == "a change"
    assert verdict.isolation == survey(engine.cache, engine.store.folder).best


def test_a_breaking_patch_fails_and_names_the_tests(engine: Engine) -> None:
    verdict = engine.validate(BREAKING)
    assert verdict.outcome is Outcome.FAILED
    (red,) = verdict.red_tests
    assert red.node_id == "tests/test_calc.py::test_add"
    assert red.message is not None
    assert "assert -1 == 3" in red.message


@pytest.mark.parametrize(
    ("patch", "code"),
    [
        (SYNTAX, "syntax-error"),
        (NO_MATCH, "block-not-found"),
        ("no patch at all", "patch-malformed"),
        (plan(replace(None, "x", "../outside.py")), "forbidden-path"),
        (plan(replace(None, "x", ".git/hooks/pre-commit")), "forbidden-path"),
    ],
)
def test_a_bad_patch_is_rejected_and_costs_no_sandbox(
    engine: Engine, patch: str, code: str
) -> None:
    verdict = engine.validate(patch)
    assert verdict.outcome is Outcome.REJECTED
    assert verdict.findings[0].code == code
    assert verdict.hint
    assert not any(engine.store.slots.iterdir())


def test_a_patch_that_changes_nothing_is_rejected(engine: Engine) -> None:
    verdict = engine.validate(plan(replace("return a + b", "return a + b")))
    assert verdict.outcome is Outcome.REJECTED
    assert "changes nothing" in verdict.reason


def test_what_became_of_every_edit_is_in_the_verdict(engine: Engine) -> None:
    verdict = engine.validate(plan(replace("return a - b", "return a + b + 0")))
    assert [(edit.status, edit.path, edit.rung) for edit in verdict.edits] == [
        ("not_found", "calc.py", None)
    ]
    assert verdict.findings[0].detail and "a + b" in verdict.findings[0].detail
    shifted = plan(replace("return a + b \n", "return b + a\n"))
    verdict = engine.validate(shifted, strategy="SYNTAX_ONLY")
    assert verdict.outcome is Outcome.PASSED
    assert (verdict.edits[0].status, verdict.edits[0].rung) == ("applied", "indentation")
    assert Verdict.from_json(verdict.to_json()) == verdict


def test_exact_matches_alone_may_be_asked_for(engine: Engine) -> None:
    shifted = plan(replace("return a + b \n", "return b + a\n"))
    verdict = engine.validate(shifted, match="exact")
    assert verdict.outcome is Outcome.REJECTED
    assert verdict.findings[0].code == "block-inexact"
    assert engine.validate(verdict.findings[0].corrected or "", match="exact").edits
    with pytest.raises(UsageError, match="no match `loose`"):
        engine.validate(shifted, match="loose")


def test_a_patch_that_was_applied_before_is_neither_good_nor_bad(engine: Engine) -> None:
    again = plan(replace("def sub(a, b):\n    return 1", "def add(a, b):\n    return a + b"))
    verdict = engine.validate(again)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "applied already" in verdict.reason
    assert verdict.edits[0].status == "already_applied"


def test_a_name_that_collides_by_case_is_refused(engine: Engine) -> None:
    verdict = engine.validate(plan(replace(None, "x = 1\n", "CALC.py")))
    assert verdict.findings[0].code == "name-collision"


def test_a_known_verdict_comes_from_the_cache(engine: Engine) -> None:
    first = engine.validate(BREAKING)
    again = engine.validate(BREAKING)
    assert again.is_cached
    assert (again.outcome, again.steps, again.tree) == (first.outcome, first.steps, first.tree)
    assert not engine.validate(BREAKING, use_cache=False).is_cached
    assert not engine.validate(BREAKING, strategy="FULL_VALIDATION").is_cached


def test_what_need_not_recur_is_not_kept(engine: Engine) -> None:
    slow = own(engine, command("sleep 30"), timeout_s=0.5)
    slow.config = Config(
        strategy="OWN",
        strategies={"OWN": Recipe("OWN", (command("sleep 30"),), limits=Limits(wall_s=0.5))},
    )
    for _ in range(2):
        verdict = slow.validate(GOOD)
        assert verdict.outcome is Outcome.INCONCLUSIVE
        assert "took longer than" in verdict.reason
        assert not verdict.is_cached


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_shipped_strategy_ends_in_a_verdict(engine: Engine, name: str) -> None:
    expected = {
        "DISCARD": Outcome.INCONCLUSIVE,
        "BENCHMARK_ONLY": Outcome.INCONCLUSIVE,
        "CREATE_NEW_TEST_FILE_STRATEGY": Outcome.FAILED,
    }
    verdict = engine.validate(GOOD, strategy=name)
    assert verdict.outcome is expected.get(name, Outcome.PASSED), verdict.reason


@pytest.mark.parametrize(
    ("files", "outcome", "reason"),
    [
        ({"tests/test_new.py": "def test_new():\n    assert 1\n"}, Outcome.PASSED, "1 of 1"),
        ({"tests/test_new.py": "def test_new():\n    assert 0\n"}, Outcome.FAILED, "test_new"),
        ({"tests/new.py": "def test_new(): pass\n"}, Outcome.FAILED, "adds no test file"),
        ({"tests/test_new.py": "def helper(): pass\n"}, Outcome.FAILED, "no test was collected"),
        (
            {"tests/test_a.py": "def test_a(): pass\n", "tests/test_b.py": "x = 1\n"},
            Outcome.FAILED,
            "no test was collected from `tests/test_b.py`",
        ),
    ],
)
def test_new_tests_must_each_collect_and_pass(
    engine: Engine, files: dict[str, str], outcome: Outcome, reason: str
) -> None:
    patch = plan(*(replace(None, text, path) for path, text in files.items()))
    verdict = engine.validate(patch, strategy="CREATE_NEW_TEST_FILE_STRATEGY")
    assert verdict.outcome is outcome
    assert reason in verdict.reason


@pytest.mark.parametrize(
    ("conftest", "outcome", "reason"),
    [
        ("import os\nos._exit(0)\n", Outcome.INCONCLUSIVE, "did not start"),
        (
            "import os\ndef pytest_sessionfinish():\n    os._exit(0)\n",
            Outcome.INCONCLUSIVE,
            "did not end properly",
        ),
        ("collect_ignore_glob = ['*']\n", Outcome.INCONCLUSIVE, "no test ran"),
        (
            "import pytest\n@pytest.fixture(autouse=True)\ndef f():\n    pytest.skip('all')\n",
            Outcome.INCONCLUSIVE,
            "no test ran",
        ),
        ("import nowhere_to_be_found\n", Outcome.INCONCLUSIVE, "is not installed"),
        ("import sys\nsys.exit(0)\n", Outcome.INCONCLUSIVE, ""),
        (
            "import time\ntime.sleep(60)\n",
            Outcome.INCONCLUSIVE,
            "than `timeout_s` = 5 s",
        ),
        ("x = bytearray(3 * 2**30)\nx[::4096] = b'1' * len(x[::4096])\n", None, ""),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n", Outcome.INCONCLUSIVE, "sig"),
    ],
)
def test_green_without_proof_is_never_passed(
    engine: Engine, conftest: str, outcome: Outcome | None, reason: str
) -> None:
    limits = Limits(wall_s=5 if "sleep" in conftest else 60, memory_bytes=2**30)
    engine.config = Config(
        strategy="OWN",
        strategies={"OWN": Recipe("OWN", (Step(StepKind.PYTEST),), limits=limits)},
    )
    verdict = engine.validate(plan(replace(None, conftest, "conftest.py")))
    assert verdict.outcome is (outcome or Outcome.INCONCLUSIVE), verdict
    assert reason in verdict.reason
    assert not verdict.is_final


def test_settings_that_run_no_test_prove_nothing(engine: Engine) -> None:
    settings = "[pytest]\naddopts = --collect-only\n"
    verdict = engine.validate(plan(replace(None, settings, "pytest.ini")))
    assert verdict.outcome is Outcome.INCONCLUSIVE


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("pytest.ini", "[pytest]\naddopts = --no-such-option\n"),
        ("conftest.py", "raise SystemError\n"),
    ],
)
def test_what_keeps_the_tests_from_starting_fails_them(
    engine: Engine, path: str, content: str
) -> None:
    verdict = engine.validate(plan(replace(None, content, path)))
    assert verdict.outcome is Outcome.FAILED
    assert len(verdict.red_tests) == 2


def test_a_collection_error_fails_and_is_named(engine: Engine) -> None:
    verdict = engine.validate(plan(replace("def add", "def plus")))
    assert verdict.outcome is Outcome.FAILED
    (red,) = verdict.red_tests
    assert red.outcome is TestOutcome.ERROR
    assert "tests/test_calc.py" in red.node_id


def test_a_daemon_of_a_test_does_not_outlive_the_run(engine: Engine, tmp_path: Path) -> None:
    token = f"daemon-of-{tmp_path.name}"
    script = f"setsid sh -c 'touch up; exec -a {token} sleep 60' & while ! [ -e up ]; do :; done"
    own(engine, Step(StepKind.COMMAND, ("bash", "-c", script.replace("sh -c", "bash -c"))))
    assert engine.validate(GOOD).outcome is Outcome.PASSED
    commands = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert token not in commands.stdout


@pytest.mark.parametrize("isolation", ["none", "auto"])
def test_a_test_that_kills_its_parent_ends_nothing_but_itself(
    engine: Engine, isolation: str
) -> None:
    conftest = "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\n"
    engine.config = Config(isolation=isolation)
    verdict = engine.validate(plan(replace(None, conftest, "conftest.py")))
    # The first process of a namespace is immune to those in it.
    wanted = Outcome.PASSED if verdict.isolation == Tier.FULL else Outcome.INCONCLUSIVE
    assert verdict.outcome is wanted


def test_a_command_sees_the_patched_code_and_decides(engine: Engine) -> None:
    own(engine, command("grep -q 'b + a' calc.py && python -c 'import calc; calc.add(1, 2)'"))
    assert engine.validate(GOOD).outcome is Outcome.PASSED
    own(engine, command("python -c 'import calc; assert calc.add(1, 2) == 3'"))
    verdict = engine.validate(BREAKING)
    assert verdict.outcome is Outcome.FAILED
    assert verdict.reason.endswith("exit code 1")


def test_a_command_that_fails_on_the_base_too_blames_nobody(engine: Engine) -> None:
    own(engine, command("grep -q multiply calc.py"))
    verdict = engine.validate(GOOD)
    assert (verdict.outcome, verdict.cause) == (Outcome.INCONCLUSIVE, Cause.INFRA)
    assert "does not pass on the base either" in verdict.reason


def test_a_command_that_does_not_exist_is_an_error(engine: Engine) -> None:
    own(engine, Step(StepKind.COMMAND, ("no-such-program",)))
    with pytest.raises(CommandMissingError, match="no-such-program"):
        engine.validate(GOOD)


def test_files_that_must_exist_are_looked_for_in_the_candidate(engine: Engine) -> None:
    own(engine, Step(StepKind.FILES_EXIST, ("calc.py", "README.md")))
    verdict = engine.validate(GOOD)
    assert verdict.outcome is Outcome.FAILED
    assert "`README.md` is not in the candidate" in verdict.reason
    added = plan(replace("return a + b", "return b + a"), replace(None, "hello\n", "README.md"))
    assert engine.validate(added).outcome is Outcome.PASSED
    own(engine, Step(StepKind.FILES_EXIST))
    package = plan(replace(None, "", "package/__init__.py"))
    assert engine.validate(package).outcome is Outcome.PASSED
    emptied = plan(replace(None, "", "calc.py"))
    assert "`calc.py` was emptied" in engine.validate(emptied).reason


def test_a_step_that_changes_the_tree_proves_nothing_for_the_next(engine: Engine) -> None:
    own(engine, command("sed -i 's/a - b/a + b/' calc.py"), Step(StepKind.PYTEST))
    verdict = engine.validate(BREAKING)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "changed tracked files, `calc.py` for one" in verdict.reason
    own(engine, command("echo built > built.txt"), command("cat built.txt"))
    assert engine.validate(BREAKING).outcome is Outcome.PASSED


def test_a_store_that_was_deleted_is_made_again(engine: Engine) -> None:
    shutil.rmtree(engine.store.folder)
    assert engine.validate(GOOD).outcome is Outcome.PASSED


def test_compiled_files_that_a_run_has_torn_are_made_again(engine: Engine) -> None:
    engine.config = Config(isolation="none")
    assert engine.validate(GOOD).outcome is Outcome.PASSED
    torn = list((engine.store.slots / "0.state" / "compiled").rglob("*.pyc"))
    assert torn
    for path in torn:
        path.write_bytes(path.read_bytes()[:20])
    assert engine.validate(GOOD, use_cache=False).outcome is Outcome.PASSED


def test_the_json_form_follows_its_schema_and_comes_back(engine: Engine) -> None:
    schema = json.loads(SCHEMA.read_text())
    for patch in (GOOD, BREAKING, SYNTAX, NO_MATCH):
        record = json.loads(json.dumps(engine.validate(patch).to_json()))
        jsonschema.validate(record, schema)
        assert Verdict.from_json(record).to_json() == record
    broken = {**record, "outcome": "GREAT"}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, schema)


def test_a_patch_may_be_text_bytes_or_a_path(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "patch.json"
    path.write_text(GOOD)
    trees = {engine.validate(patch).tree for patch in (GOOD, GOOD.encode(), path)}
    assert len(trees) == 1


def test_any_commit_may_be_the_base(project: GitBox, engine: Engine) -> None:
    assert engine.validate(GOOD, base="main", strategy="SYNTAX_ONLY").base == project.head
    with pytest.raises(UsageError, match="`gone` names no commit"):
        engine.validate(GOOD, base="gone")


def test_an_unknown_strategy_suggests_the_near_one(engine: Engine) -> None:
    with pytest.raises(UsageError, match="SYNTAX_ONLY"):
        engine.validate(GOOD, strategy="SYNTAX_ONY")


def test_repositories_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="not in a git repository"):
        Engine(tmp_path)
    with pytest.raises(RepositoryError, match="not a folder"):
        Engine(tmp_path / "gone")
    empty = GitBox(tmp_path / "empty")
    with pytest.raises(UsageError, match="no commit yet"):
        Engine(empty.top).validate(GOOD)
    subprocess.run(
        ["git", "init", "-q", "--object-format=sha256", str(tmp_path / "sha256")], check=True
    )
    with pytest.raises(RepositoryError, match="SHA256"):
        Engine(tmp_path / "sha256")
    other = GitBox(tmp_path / "reftable")
    other.git("config", "core.repositoryformatversion", "1")
    other.git("config", "extensions.refStorage", "reftable")
    with pytest.raises(RepositoryError, match="reftable|refstorage"):
        Engine(other.top)


def test_a_bare_repository_and_a_linked_worktree_work(project: GitBox, tmp_path: Path) -> None:
    subprocess.run(
        ["git", "clone", "-q", "--bare", str(project.top), str(tmp_path / "bare.git")], check=True
    )
    assert Engine(tmp_path / "bare.git").validate(GOOD).outcome is Outcome.PASSED
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(project.top), str(clone)], check=True)
    subprocess.run(
        ["git", "-C", str(clone), "worktree", "add", "-q", str(tmp_path / "linked")],
        check=True,
    )
    assert Engine(tmp_path / "linked" / "tests").validate(GOOD).outcome is Outcome.PASSED


def test_variables_of_a_hook_are_not_looked_at(
    engine: Engine, project: GitBox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
    monkeypatch.setenv("GIT_WORK_TREE", "/")
    verdict = Engine(project.top).validate(GOOD)
    monkeypatch.undo()
    assert verdict.outcome is Outcome.PASSED
    assert not (tmp_path / "index").exists()


def test_validations_at_the_same_time_do_not_meet(engine: Engine) -> None:
    patches = [plan(replace("return a + b", f"return a + b + {n}")) for n in range(6)]
    own(engine, command("sleep 0.1; cat calc.py; false"))
    outputs: dict[int, str] = {}

    def work(number: int) -> None:
        outputs[number] = engine.validate(patches[number]).steps[0].output

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [f"a + b + {n}" in outputs[n] for n in range(6)] == [True] * 6


def opened(
    engine: Engine, *steps: Step, network: bool = False, writable: Path | None = None
) -> str:
    """Let `engine` judge with steps that reach something outside; return the recipe's name."""
    folders = () if writable is None else (str(writable),)
    recipe = Recipe("OPEN", steps, network=network, writable=folders)
    engine.config = dataclasses.replace(engine.config, strategies={"OPEN": recipe})
    return "OPEN"


def test_what_a_strategy_opens_is_in_the_verdict(engine: Engine, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    name = opened(engine, command(f"echo x > {out}/x"), network=True, writable=out)
    verdict = engine.validate(GOOD, strategy=name)
    assert verdict.outcome is Outcome.PASSED
    assert (out / "x").read_text() == "x\n"
    assert verdict.openings == ("network", f"writes {out}")
    record = json.loads(json.dumps(verdict.to_json()))
    assert record["openings"] == ["network", f"writes {out}"]
    jsonschema.validate(record, json.loads(SCHEMA.read_text()))
    assert Verdict.from_json(record) == verdict
    assert f"isolation {verdict.isolation}, network, writes {out}\n" in describe(verdict)
    again = engine.validate(GOOD, strategy=name)
    assert (again.is_cached, again.openings) == (True, verdict.openings)


def test_where_nothing_is_opened_or_run_nothing_is_said(engine: Engine, tmp_path: Path) -> None:
    assert engine.validate(GOOD).openings == ()
    name = opened(engine, Step(StepKind.SYNTAX), network=True, writable=tmp_path)
    verdict = engine.validate(GOOD, strategy=name)
    assert (verdict.outcome, verdict.openings, verdict.isolation) == (Outcome.PASSED, (), "none")
    assert "network" not in describe(verdict)


def test_a_strategy_with_more_openings_is_another_one(engine: Engine, tmp_path: Path) -> None:
    for network, writable in ((False, None), (True, None), (False, tmp_path), (True, tmp_path)):
        name = opened(engine, command("true"), network=network, writable=writable)
        assert not engine.validate(GOOD, strategy=name).is_cached


@pytest.mark.parametrize(
    ("setting", "value", "script", "reason"),
    [
        ("cpu_s", 0.3, "while :; do :; done", "more processor time than `cpu_s` = 0.3 s"),
        ("processes", 12, "for i in $(seq 30); do sleep 9 & done; wait", "`processes` = 12"),
        ("disk_bytes", 2**21, "head -c 3M /dev/zero | split -b 500K; sleep 9", "`disk_bytes` = 2"),
        ("inodes", 300, "for i in $(seq 400); do : > f$i || :; done; sleep 9", "`inodes` = 300"),
        ("memory_bytes", 2**26, f"{sys.executable} -c '{EATER}'", "`memory_bytes` = 64 MiB"),
    ],
)
@pytest.mark.parametrize("isolation", ["auto", "none"])
def test_a_limit_that_is_reached_proves_nothing_and_is_named(
    engine: Engine, isolation: str, setting: str, value: float, script: str, reason: str
) -> None:
    limits = Limits(**{"wall_s": 15, setting: value})  # type: ignore[arg-type]
    recipe = Recipe("OWN", (command(script),), limits=limits)
    engine.config = Config(strategy="OWN", strategies={"OWN": recipe}, isolation=isolation)
    verdict = engine.validate(GOOD)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert reason in verdict.reason
    assert "the most was used by `" in verdict.reason
    assert verdict.hint and f"raise `{setting}`" in verdict.hint
    assert not verdict.is_final


def test_xdist_is_used_when_the_last_run_was_long(engine: Engine) -> None:
    engine.config = Config(xdist_after_s=0.01)
    assert engine.validate(GOOD).outcome is Outcome.PASSED
    verdict = engine.validate(plan(replace("return a + b", "return (b + a)")))
    assert verdict.outcome is Outcome.PASSED
    assert "workers" in verdict.steps[1].output
    failed = engine.validate(BREAKING)
    assert failed.outcome is Outcome.FAILED
    assert "workers" not in failed.steps[1].output


def test_a_rejection_is_quick_in_process(engine: Engine) -> None:
    engine.validate(SYNTAX)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        engine.validate(SYNTAX)
        times.append(time.perf_counter() - started)
    # The figure to reach is in `scripts/bench`; this only rings when a process creeps in.
    assert min(times) < 0.1


def test_python_of_another_environment_is_used(engine: Engine) -> None:
    own(engine, command("python -c 'import sys; print(sys.prefix)'; false"))
    assert sys.prefix in engine.validate(GOOD).steps[0].output
