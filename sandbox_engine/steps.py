"""Steps: a candidate and a recipe become step results.

A step returns a value whatever happens in the sandbox; it raises only when the world is broken,
as when a command is not installed. The sandbox is opened by the first step that needs one.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sandbox_engine import delta, pytest_step, tree, trial
from sandbox_engine.patch import File
from sandbox_engine.recipe import Recipe, Step, StepKind
from sandbox_engine.stage import Stage
from sandbox_engine.tree import CandidateTree
from sandbox_engine.trial import Court
from sandbox_engine.verdict import Cause, Finding, Outcome, StepResult

RUNNING = frozenset({StepKind.PYTEST, StepKind.NEW_TESTS, StepKind.COMMAND})
"""The steps that run something in the sandbox."""

_TEST_FILES = ("test_*.py", "*_test.py")


@dataclass(frozen=True, slots=True)
class Bench:
    """What steps work with: what the tests are tried by, and where all runs."""

    court: Court
    stage: Stage

    @property
    def candidate(self) -> CandidateTree:
        return self.court.candidate

    @property
    def recipe(self) -> Recipe:
        return self.court.recipe


def run_steps(bench: Bench) -> tuple[StepResult, ...]:
    """Run the recipe's steps in order up to the first that does not pass; return their results."""
    results: list[StepResult] = []
    ran: Step | None = None
    for step in bench.recipe.steps:
        if (
            ran is not None
            and step.kind in RUNNING
            and (dirt := bench.stage.changed_files(bench.candidate))
        ):
            results.append(_dirtied(step, ran, dirt))
            break
        result = _STEPS[step.kind](step, bench)
        results.append(result)
        if result.outcome is not Outcome.PASSED:
            break
        ran = step if step.kind in RUNNING else ran
    return tuple(results)


def _dirtied(step: Step, earlier: Step, files: list[str]) -> StepResult:
    """Return that `step` cannot judge the candidate, because `earlier` has changed its files."""
    return StepResult(
        step.name,
        Outcome.INCONCLUSIVE,
        reason=f"the step `{earlier.name}` changed tracked files, `{files[0]}` for one, so what "
        "would run is not the candidate",
        hint="let the step check without writing, or put it last",
        recurs=False,
        cause=Cause.UNTRUSTED,
    )


def _syntax(step: Step, bench: Bench) -> StepResult:
    # The pre-check has passed, or no step would run.
    count = sum(file is not None for file in bench.candidate.after.values())
    return StepResult(step.name, Outcome.PASSED, reason=f"{count} changed files checked")


def _files_exist(step: Step, bench: Bench) -> StepResult:
    after = bench.candidate.after
    written = [path for path, file in after.items() if file is not None]
    missing = [path for path in map(os.fsencode, step.args) if bench.court.read(path) is None]
    emptied = [
        path
        for path in written
        if (was := bench.candidate.before[path]) and was.content and not _content(after[path])
    ]
    findings = [
        *(_file_finding(path, "is not in the candidate") for path in missing),
        *(_file_finding(path, "was emptied") for path in emptied),
    ]
    if findings:
        return StepResult(
            step.name, Outcome.FAILED, reason=findings[0].message, findings=tuple(findings),
            hint="write the file with its content in the patch",
        )  # fmt: skip
    count = len(step.args) or len(written)
    return StepResult(step.name, Outcome.PASSED, reason=f"{count} files are there")


def _content(file: File | None) -> bytes:
    return file.content if file else b""


def _file_finding(path: bytes, what: str) -> Finding:
    shown = path.decode("utf-8", "backslashreplace")
    return Finding("file-missing", f"`{shown}` {what}", path=shown)


def _pytest(step: Step, bench: Bench) -> StepResult:
    return trial.try_tests(step.name, bench.court, step.args)


def _new_tests(step: Step, bench: Bench) -> StepResult:
    files = [os.fsdecode(path) for path in bench.candidate.added if _is_test_file(path)]
    if not files:
        return StepResult(
            step.name,
            Outcome.FAILED,
            reason="the patch adds no test file",
            hint=f"add one whose name is like {' or '.join(_TEST_FILES)}",
        )
    # Below `./`, or a file called `-h_test.py` would be an option.
    arguments = [f"./{file}" for file in files]
    result = trial.try_tests(step.name, bench.court, arguments, is_alone=True)
    known = {delta.file_of(test.node_id) for test in result.tests}
    empty = [file for file in files if file not in known]
    is_judged = result.cause in (None, Cause.UNPROVED)
    if result.outcome is Outcome.FAILED or not is_judged or not empty:
        return result
    return dataclasses.replace(
        result,
        outcome=Outcome.FAILED,
        reason=f"no test was collected from `{empty[0]}`",
        hint="define a function whose name begins with `test_` in it",
        cause=None,
        recurs=True,
    )


def _is_test_file(path: bytes) -> bool:
    name = os.fsdecode(path).rpartition("/")[2]
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _TEST_FILES)


def _command(step: Step, bench: Bench) -> StepResult:
    done = bench.stage.command(bench.candidate, step.args)
    passed = StepResult(
        step.name, Outcome.PASSED, done.elapsed_s, "exit code 0", output=pytest_step.tail(done)
    )
    if done.stop is not None:
        reason, hint = pytest_step.stopped(done, bench.recipe.limits)
        return dataclasses.replace(
            passed,
            outcome=Outcome.INCONCLUSIVE,
            reason=reason,
            hint=hint,
            recurs=False,
            cause=Cause.LIMIT,
        )
    if done.code == 0:
        bench.stage.remember(step.args)
        return passed
    if bench.stage.command(tree.unchanged(bench.candidate), step.args).code != 0:
        return dataclasses.replace(
            passed,
            outcome=Outcome.INCONCLUSIVE,
            reason=f"{pytest_step.ended(done)}, and it does not pass on the base either",
            hint="mend the base first, or take the command out of the strategy",
            recurs=False,
            cause=Cause.INFRA,
        )
    return dataclasses.replace(
        passed,
        outcome=Outcome.FAILED,
        reason=pytest_step.ended(done),
        hint="its output says why",
    )


_STEPS: Mapping[StepKind, Callable[[Step, Bench], StepResult]] = {
    StepKind.SYNTAX: _syntax,
    StepKind.PYTEST: _pytest,
    StepKind.NEW_TESTS: _new_tests,
    StepKind.COMMAND: _command,
    StepKind.FILES_EXIST: _files_exist,
}
