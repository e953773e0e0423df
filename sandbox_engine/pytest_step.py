"""pytest in a sandbox, and what its report proves.

PASSED needs a session that ended, a test that ran, none that failed, and every first-party module
from inside the sandbox. Exit codes and output are claims by the code under test; the report comes
over a pipe from our own plugin (docs/adr/0003-proof-over-a-pipe.md).
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sandbox_engine import inside
from sandbox_engine.interpreter import Interpreter
from sandbox_engine.process import Completed, Limits, Stop
from sandbox_engine.pytest_report import PytestReport, ReportReader
from sandbox_engine.sandbox import Sandbox
from sandbox_engine.verdict import Finding, Outcome, StepResult, TestOutcome, TestRecord

REPORT_ENV = "SANDBOX_ENGINE_REPORT_FD"
PYTEST_NEEDS = frozenset(
    {"pytest", "_pytest", "pluggy", "iniconfig", "packaging", "pygments", "exceptiongroup", "tomli"}
)
_NAMED = 5
_OUTPUT_SHOWN = 8_000


@dataclass(frozen=True, slots=True)
class Session:
    """How pytest is to be run for one candidate.

    `roots` are source roots relative to the sandbox, `last_roots` those that come after all else
    on the search path. `first_party` are the top-level modules that the roots provide, `near` the
    names under which changed files might be imported; `is_copy` tells whether a module that
    was loaded from a file outside is a copy of one of these. `is_early` says that the tree provides
    what pytest itself imports, so that the roots must come first. `learn` is told which sources of
    the environment were loaded, and which of them pytest rewrote. `workers` is 0 without xdist.
    """

    interpreter: Interpreter
    repository_top: Path | None
    roots: tuple[str, ...]
    last_roots: tuple[str, ...]
    first_party: frozenset[str]
    near: frozenset[str]
    is_copy: Callable[[str, Path], bool]
    is_early: bool
    learn: Callable[[Sequence[str], Sequence[str]], None]
    workers: int = 0

    @property
    def environments(self) -> list[str]:
        """The real folders inside the repository that hold an interpreter and its packages."""
        if self.repository_top is None:
            return []
        top = os.path.realpath(self.repository_top)
        interpreter = self.interpreter
        folders = (interpreter.prefix, interpreter.base_prefix, interpreter.user_base)
        real = (os.path.realpath(folder) for folder in folders if folder)
        return [folder for folder in real if folder.startswith(top + os.sep)]


def run_pytest(
    name: str,
    sandbox: Sandbox,
    session: Session,
    arguments: Sequence[str],
    limits: Limits,
    only: Sequence[str] | None = None,
) -> tuple[StepResult, PytestReport]:
    """Run pytest with `arguments`; return what it proves and the report that proves it.

    Of the tests that pytest would run, only those of the node ids in `only` are run, all where it
    is None; an id without `::` is a file. Code under test may report others all the same.

    Under xdist a red test counts only if it is red alone too: not every suite may be split. A
    session that did not start is tried once more.
    """
    started = time.monotonic()
    done, report = _run(sandbox, session, arguments, session.workers, limits, only)
    result = judge_session(name, done, report, sandbox, session, limits)
    if session.workers and result.outcome is not Outcome.PASSED:
        sandbox.restore()
        done, report = _run(sandbox, session, arguments, 0, limits, only)
        result = judge_session(name, done, report, sandbox, session, limits)
    if not report.started and done.stop is None:
        sandbox.restore()
        done, report = _run(sandbox, session, arguments, 0, limits, only)
        result = judge_session(name, done, report, sandbox, session, limits)
    elapsed_s = time.monotonic() - started
    session.learn(report.sources, report.rewritten)
    return dataclasses.replace(result, elapsed_s=elapsed_s), report


def _run(
    sandbox: Sandbox,
    session: Session,
    arguments: Sequence[str],
    workers: int,
    limits: Limits,
    only: Sequence[str] | None,
) -> tuple[Completed, PytestReport]:
    nonce = secrets.token_hex(16)
    reader = ReportReader(nonce)
    parallel = ["-n", str(workers), "--max-worker-restart=0"] if workers else []
    done = sandbox.run(
        [
            session.interpreter.executable,
            str(sandbox.inside / inside.PROBE),
            f"--rootdir={sandbox.root}",
            # Without settings in the tree pytest would look into the folder above too.
            f"--confcutdir={sandbox.root}",
            "--color=no",
            *parallel,
            *arguments,
        ],
        limits,
        input=_settings(sandbox, session, nonce, only),
        report_env=REPORT_ENV,
        on_report=reader.feed,
    )
    return done, reader.report()


def _settings(sandbox: Sandbox, session: Session, nonce: str, only: Sequence[str] | None) -> bytes:
    top = session.repository_top
    settings = json.dumps(
        {
            "root": str(sandbox.root),
            "repo": str(top) if top else "",
            "environment": session.environments,
            "roots": list(session.roots),
            "last_roots": list(session.last_roots),
            "first_party": sorted(session.first_party | session.near),
            "early": session.is_early,
            "nonce": nonce,
            "only": None if only is None else list(only),
        }
    )
    return settings.encode()


def judge_session(
    name: str,
    done: Completed,
    report: PytestReport,
    sandbox: Sandbox,
    session: Session,
    limits: Limits,
) -> StepResult:
    """Return what the session proves; anything short of a proof is INCONCLUSIVE."""
    output = tail(done)
    doubt = _doubt(done, report, limits)
    if doubt is not None:
        reason, hint = doubt
        return StepResult(
            name, Outcome.INCONCLUSIVE, reason=reason, hint=hint, tests=report.tests,
            output=output, recurs=False,
        )  # fmt: skip
    strangers = outside_modules(report.modules, sandbox.root, session, sandbox.real)
    if strangers:
        return _not_the_patched_code(name, strangers, report, output)
    red = [test for test in (*report.collect_errors, *report.tests) if test.is_red]
    tests = (*report.collect_errors, *report.tests)
    if red or done.code == 1:
        return StepResult(
            name, Outcome.FAILED, reason=_failed(red, len(tests)), hint=_FAILED_HINT,
            tests=tests, output=output,
        )  # fmt: skip
    return StepResult(name, Outcome.PASSED, tests=tests, output=output)


_FAILED_HINT = "the assertion texts above say what each test expected"


def _failed(red: Sequence[TestRecord], total: int) -> str:
    if not red:
        return "pytest exited with 1 although no test failed, as a coverage gate does"
    named = ", ".join(test.node_id for test in red[:_NAMED])
    more = f" and {len(red) - _NAMED} more" if len(red) > _NAMED else ""
    return f"{len(red)} of {total} tests failed: {named}{more}"


def _doubt(done: Completed, report: PytestReport, limits: Limits) -> tuple[str, str] | None:
    """Return why the session proves nothing and what to do, or None when it can be judged."""
    if done.stop is not None:
        return stopped(done, limits)
    if report.torn is not None:
        return (
            f"the report from the test session cannot be trusted: {report.torn}",
            "tests must not write to descriptors that they did not open",
        )
    if not report.started:
        return f"pytest did not start ({ended(done)}){_last_line(done)}", _START_HINT
    if not report.ended or report.exit_code != done.code:
        return (
            f"the test session did not end properly ({ended(done)})",
            "look for a crash, or for a call of `os._exit`, in the output",
        )
    if done.code not in (0, 1, 2, 5):
        return f"pytest could not run the tests ({ended(done)}){_last_line(done)}", _START_HINT
    if report.collect_errors:
        return None
    if done.code == 2:
        return "the test session was interrupted", "look for the cause in the output"
    if not any(test.outcome in _RAN for test in report.tests):
        return "no test ran, so nothing was proved", "check `testpaths` and the step's arguments"
    if done.code == 0 and report.collected is not None and len(report.tests) < report.collected:
        return (
            f"{report.collected} tests were collected and only {len(report.tests)} reported",
            "look for a crash in the output",
        )
    return None


_RAN = (TestOutcome.PASSED, TestOutcome.FAILED, TestOutcome.ERROR)
_START_HINT = (
    "run the same tests without the patch; an option or plugin that the project's configuration "
    "names may not be installed in this interpreter's environment"
)


def stopped(done: Completed, limits: Limits) -> tuple[str, str]:
    """Return why a run was stopped: the limit, its value and who used the most; and what to do."""
    assert done.stop is not None
    reason, hint = _STOPPED[done.stop](limits)
    return reason + (f"; the most was used by {done.consumer}" if done.consumer else ""), hint


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:g} MiB"


_STOPPED: Mapping[Stop, Callable[[Limits], tuple[str, str]]] = {
    Stop.TIME_OUT: lambda limits: (
        f"it took longer than `timeout_s` = {limits.wall_s:g} s, and all it had started was ended",
        "look for a loop that does not end, or raise `timeout_s`",
    ),
    Stop.CPU: lambda limits: (
        f"it used more processor time than `cpu_s` = {limits.cpu_s:g} s, and was ended",
        "look for a loop that does not end, or raise `cpu_s`",
    ),
    Stop.OUTPUT: lambda limits: (
        f"it wrote more than `output_bytes` = {_mebibytes(limits.output_bytes)}, and was ended",
        "make it quieter, or raise `output_bytes`",
    ),
    Stop.MEMORY: lambda limits: (
        f"it used more memory than `memory_bytes` = {_mebibytes(limits.memory_bytes)}, "
        "and was ended",
        "look for what grows without bound, or raise `memory_bytes`",
    ),
    Stop.PROCESSES: lambda limits: (
        f"it started more processes than `processes` = {limits.processes}, and all were ended",
        "look for what starts processes without end, or raise `processes`",
    ),
    Stop.DISK: lambda limits: (
        f"it filled the disk space of `disk_bytes` = {_mebibytes(limits.disk_bytes)}, "
        "and was ended",
        "look for what writes without end, or raise `disk_bytes`",
    ),
    Stop.INODES: lambda limits: (
        f"it made more files than `inodes` = {limits.inodes}, and was ended",
        "look for what makes files without end, or raise `inodes`",
    ),
    Stop.INTERRUPTED: lambda limits: ("it was interrupted", "run it again"),
    Stop.SUPERVISOR_LOST: lambda limits: (
        "the process that watches over the run was killed",
        "code under test must not kill processes that it did not start; else look for a system "
        "that is short of memory",
    ),
}


def ended(done: Completed) -> str:
    """Return how a run ended, in words."""
    if done.code is None:
        return "no exit code"
    return f"signal {-done.code}" if done.code < 0 else f"exit code {done.code}"


def _last_line(done: Completed) -> str:
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    lines = [line for line in lines if line.strip()] or done.stdout.decode(
        "utf-8", "replace"
    ).strip().splitlines()
    return f": {lines[-1][:300]}" if lines else ""


def outside_modules(
    modules: Mapping[str, str],
    root: Path,
    session: Session,
    real: Callable[[str], str] = os.path.realpath,
) -> list[tuple[str, str]]:
    """Return the first-party modules that were loaded from elsewhere than the sandbox.

    `real` resolves a path as the run saw it: links of this system may lead elsewhere.
    """
    inside_of = real(os.fspath(root)) + os.sep
    # Seen at the user's own path, the sandbox has their environment in it.
    environments = tuple(folder + os.sep for folder in session.environments)
    strangers = []
    for name, file in sorted(modules.items()):
        place = real(file)
        is_inside = place.startswith(inside_of) and not place.startswith(environments)
        if not is_inside and _is_stranger(name, place, session):
            strangers.append((name, file))
    return strangers


def _is_stranger(name: str, real: str, session: Session) -> bool:
    """Tell whether a module from outside should have come from the sandbox."""
    top = session.repository_top
    if top is not None and real.startswith(os.path.realpath(top) + os.sep):
        environments = (folder + os.sep for folder in session.environments)
        if not real.startswith(tuple(environments)):
            return True
    first = name.partition(".")[0]
    if first in session.first_party:
        return _is_at_its_place(name, real)
    is_standard = first in sys.stdlib_module_names or first in PYTEST_NEEDS
    return not is_standard and first in session.near and session.is_copy(name, Path(real))


def _is_at_its_place(name: str, real: str) -> bool:
    """Tell whether a file has its module's name; `requests.packages.idna` is only `idna` again."""
    path = Path(real)
    place = path.parent if path.stem == "__init__" else path.with_suffix("")
    # An extension module has more than one suffix: `fast.cpython-311-x86_64-linux-gnu.so`.
    tail = [*place.parts[:-1], place.name.partition(".")[0]]
    return tail[-len(name.split(".")) :] == name.split(".")


def _not_the_patched_code(
    name: str, strangers: Sequence[tuple[str, str]], report: PytestReport, output: str
) -> StepResult:
    findings = tuple(
        Finding("outside-module", f"`{module}` was loaded from `{file}`", path=file)
        for module, file in strangers[:_NAMED]
    )
    module, file = strangers[0]
    more = f", and {len(strangers) - 1} more," if len(strangers) > 1 else ""
    return StepResult(
        name,
        Outcome.INCONCLUSIVE,
        reason=f"the tests did not run on the patched code: `{module}`{more} came from `{file}`",
        hint="name the folders that hold the packages in `source_roots`, so that the sandbox's "
        "copy is imported instead of the installed one",
        findings=findings,
        tests=report.tests,
        output=output,
        recurs=False,
    )


def tail(done: Completed) -> str:
    """Return the end of what a run wrote, standard error last."""
    text = (done.stdout + done.stderr).decode("utf-8", "replace")
    return text[-_OUTPUT_SHOWN:]


def without_tests(files: Iterable[str], report: PytestReport) -> list[str]:
    """Return those of `files` from which the session collected no test."""
    collected = {node_id.split("::")[0] for node_id in report.ids}
    return [file for file in files if file not in collected]
