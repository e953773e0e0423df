"""pytest in a sandbox, and what its report proves.

A session proves something when it ended, and every first-party module came from inside the
sandbox. Exit codes and output are claims by the code under test; the report comes over a pipe from
our own plugin (docs/adr/0003-proof-over-a-pipe.md). What its tests say of a patch is `trial`'s.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from sandbox_engine import inside
from sandbox_engine.interpreter import Interpreter
from sandbox_engine.process import Completed, Limits, Stop
from sandbox_engine.pytest_report import PytestReport, ReportReader
from sandbox_engine.sandbox import Sandbox
from sandbox_engine.verdict import Cause, Finding

REPORT_ENV = "SANDBOX_ENGINE_REPORT_FD"
PYTEST_NEEDS = frozenset(
    {"pytest", "_pytest", "pluggy", "iniconfig", "packaging", "pygments", "exceptiongroup", "tomli"}
)
_NAMED = 5
_USAGE_ERROR = 4
"""The exit code of pytest when its command line, settings or first `conftest.py` are no good."""
_FEW = 50
"""So many tests are not worth the start of workers."""
_OUTPUT_SHOWN = 8_000


@dataclass(frozen=True, slots=True)
class Session:
    """How pytest is to be run for one candidate.

    `roots` are source roots relative to the sandbox, `last_roots` those that come after all else
    on the search path. `first_party` are the top-level modules that the roots provide, `near` the
    names under which changed files might be imported; `is_copy` tells whether a module that
    was loaded from a file outside is a copy of one of these. `is_early` says that the tree provides
    what pytest itself imports, so that the roots must come first. `learn` is told which sources of
    the environment were loaded, and which of them pytest rewrote. `heard` is told now and then how
    many tests have ended. `workers` is 0 without xdist.
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
    heard: Callable[[int], None]
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


@dataclass(frozen=True, slots=True)
class Doubt:
    """Why a session proves nothing, what to do, and where it shows."""

    reason: str
    hint: str
    cause: Cause
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class Observed:
    """One session of pytest: how it ended, what it told, and why it may prove nothing."""

    done: Completed
    report: PytestReport
    doubt: Doubt | None

    @property
    def refusal(self) -> str | None:
        """What pytest said when it refused to start: a `conftest.py` cannot be imported, say."""
        if self.report.started or self.report.torn or self.done.code != _USAGE_ERROR:
            return None
        return _last_line(self.done).removeprefix(": ") or "pytest did not start"

    @property
    def red(self) -> frozenset[str]:
        """The ids of the tests that failed, and of the files that could not be collected."""
        records = (*self.report.collect_errors, *self.report.tests)
        return frozenset(record.node_id for record in records if record.is_red)


def observe(
    sandbox: Sandbox,
    session: Session,
    arguments: Sequence[str],
    limits: Limits,
    *,
    only: Sequence[str] | None = None,
    expected: Set[str] = frozenset(),
) -> Observed:
    """Run pytest with `arguments`, of `only` these tests where they are given.

    An id without `::` is a file. Code under test may report other tests all the same.

    Under xdist a test that is red and not `expected` to be counts only if it is red alone too: not
    every suite may be split. A session that did not start is tried once more.
    """
    workers = 0 if only is not None and len(only) <= _FEW else session.workers
    seen = _observed(sandbox, session, arguments, limits, workers, only)
    if workers and (seen.doubt is not None or not seen.red <= expected):
        sandbox.restore()
        seen = _observed(sandbox, session, arguments, limits, 0, only)
    if not seen.report.started and seen.done.stop is None:
        sandbox.restore()
        seen = _observed(sandbox, session, arguments, limits, 0, only)
    session.learn(seen.report.sources, seen.report.rewritten)
    return seen


def _observed(
    sandbox: Sandbox,
    session: Session,
    arguments: Sequence[str],
    limits: Limits,
    workers: int,
    only: Sequence[str] | None,
) -> Observed:
    done, report = _run(sandbox, session, arguments, workers, limits, only)
    doubt = _doubt(done, report, limits)
    if doubt is None:
        strangers = outside_modules(report.modules, sandbox.root, session, sandbox.real)
        doubt = _not_the_patched_code(strangers) if strangers else None
    return Observed(done, report, doubt)


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

    def take(part: bytes) -> None:
        reader.feed(part)
        session.heard(reader.tests)

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
            *_to_the_end(arguments),
        ],
        limits,
        input=_settings(sandbox, session, nonce, only),
        report_env=REPORT_ENV,
        on_report=take,
    )
    return done, reader.report()


def _to_the_end(arguments: Sequence[str]) -> list[str]:
    """Return `arguments` with what overrules their `-x`.

    One error or failure must not hide what the other tests would have told.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = ("--continue-on-collection-errors", "--maxfail=0")
    return [*arguments[:end], *options, *arguments[end:]]


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


def _doubt(done: Completed, report: PytestReport, limits: Limits) -> Doubt | None:
    """Return why the session proves nothing, or None when its tests can be judged."""
    if done.stop is not None:
        cause = Cause.INFRA if done.stop in (Stop.DISK, Stop.INODES) else Cause.LIMIT
        return Doubt(*stopped(done, limits), cause)
    if report.torn is not None:
        return Doubt(
            f"the report from the test session cannot be trusted: {report.torn}",
            "tests must not write to descriptors that they did not open",
            Cause.UNTRUSTED,
        )
    if not report.started:
        reason = f"pytest did not start ({ended(done)}){_last_line(done)}"
        return Doubt(reason, _START_HINT, Cause.INFRA)
    if not report.ended or report.exit_code != done.code:
        return Doubt(
            f"the test session did not end properly ({ended(done)})",
            "look for a crash, or for a call of `os._exit`, in the output",
            Cause.UNTRUSTED,
        )
    if done.code not in (0, 1, 2, 5):
        reason = f"pytest could not run the tests ({ended(done)}){_last_line(done)}"
        return Doubt(reason, _START_HINT, Cause.INFRA)
    if done.code == 2 and not report.collect_errors:
        return Doubt(
            "the test session was interrupted",
            "look for the cause in the output",
            Cause.UNTRUSTED,
        )
    return None


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


def _not_the_patched_code(strangers: Sequence[tuple[str, str]]) -> Doubt:
    findings = tuple(
        Finding("outside-module", f"`{module}` was loaded from `{file}`", path=file)
        for module, file in strangers[:_NAMED]
    )
    module, file = strangers[0]
    more = f", and {len(strangers) - 1} more," if len(strangers) > 1 else ""
    return Doubt(
        f"the tests did not run on the patched code: `{module}`{more} came from `{file}`",
        "name the folders that hold the packages in `source_roots`, so that the sandbox's "
        "copy is imported instead of the installed one",
        Cause.UNTRUSTED,
        findings,
    )


def tail(done: Completed) -> str:
    """Return the end of what a run wrote, standard error last."""
    text = (done.stdout + done.stderr).decode("utf-8", "replace")
    return text[-_OUTPUT_SHOWN:]
