"""Real pytest sessions under the probe, each on a small tree of its own."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from sandbox_engine.containment import run_contained
from sandbox_engine.process import Completed, Limits
from sandbox_engine.pytest_report import PytestReport, parse_report

PROBE = Path(__file__).resolve().parents[1] / "sandbox_engine/inside/sandbox_engine_probe.py"
NONCE = "0123456789abcdef"


@dataclass(frozen=True, slots=True)
class Seen:
    done: Completed
    report: PytestReport

    @property
    def outcomes(self) -> dict[str, str]:
        return {test.node_id.split("::")[-1]: test.outcome.value for test in self.report.tests}

    def message(self, name: str) -> str:
        (test,) = (test for test in self.report.tests if test.node_id.endswith(f"::{name}"))
        return test.message or ""

    def modules(self, root: Path) -> dict[str, str]:
        return {name: os.path.relpath(file, root) for name, file in self.report.modules.items()}


def write(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root.resolve()


def probe(
    root: Path,
    *arguments: str,
    settings: Mapping[str, object] | None = None,
    env: Mapping[str, str] | None = None,
) -> Seen:
    """Run pytest under the probe in `root`, as an engine would."""
    given = {
        "root": str(root),
        "repo": "",
        "environment": [sys.prefix],
        "roots": [""],
        "first_party": [],
        "early": False,
        "nonce": NONCE,
        **(settings or {}),
    }
    plugins = ["-p", "xdist"] if any(argument.startswith("-n") for argument in arguments) else []
    parts: list[bytes] = []
    done = run_contained(
        [sys.executable, str(PROBE), "--rootdir", str(root), *plugins, *arguments],
        cwd=root,
        env={
            "PATH": os.environ["PATH"],
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            **(env or {}),
        },
        input=json.dumps(given).encode(),
        limits=Limits(wall_s=60),
        report_env="SANDBOX_ENGINE_REPORT_FD",
        on_report=parts.append,
    )
    return Seen(done, parse_report(b"".join(parts), NONCE))


OUTCOMES = """
import pytest, warnings

def test_passes(): pass
def test_fails(): assert [1, 2] == [1, 3], "not the same"
def test_raises(): raise ValueError("boom")
@pytest.mark.skip(reason="not today")
def test_skipped(): pass
def test_skips(): pytest.skip("in the test")
@pytest.mark.xfail(reason="known")
def test_xfails(): assert False
@pytest.mark.xfail(run=False, reason="hangs")
def test_xfails_unrun(): assert False
@pytest.mark.xfail
def test_xpasses(): pass
@pytest.mark.xfail(strict=True)
def test_xpasses_strictly(): pass

@pytest.fixture
def broken(): raise OSError("no set-up")
@pytest.fixture
def breaks():
    yield
    raise OSError("no tear-down")

def test_set_up(broken): pass
def test_tear_down(breaks): pass
def test_fails_and_tears_down(breaks): assert 0
def test_skips_and_tears_down(breaks): pytest.skip()

@pytest.mark.parametrize("value", ["a", "b/c", "d::e", "\\xe9"])
def test_parametrised(value): assert value != "a"
def test_long(): assert False, "needle " + "x" * 100_000
"""

WANTED = {
    "test_passes": "passed",
    "test_fails": "failed",
    "test_raises": "failed",
    "test_skipped": "skipped",
    "test_skips": "skipped",
    "test_xfails": "xfailed",
    "test_xfails_unrun": "xfailed",
    "test_xpasses": "xpassed",
    "test_xpasses_strictly": "failed",
    "test_set_up": "error",
    "test_tear_down": "error",
    "test_fails_and_tears_down": "failed",
    "test_skips_and_tears_down": "error",
    "test_parametrised[a]": "failed",
    "test_parametrised[b/c]": "passed",
    "e]": "passed",
    "test_parametrised[\\xe9]": "passed",
    "test_long": "failed",
}


@pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["alone", "xdist"])
def test_every_outcome(workers: list[str], tmp_path: Path) -> None:
    root = write(tmp_path, {"test_it.py": OUTCOMES, "lib.py": "", "test_lib.py": "import lib"})
    seen = probe(root, *workers, settings={"first_party": ["lib"]})
    report = seen.report
    assert (report.torn, report.started, report.ended) == (None, True, True)
    assert report.exit_code == seen.done.code == 1
    assert seen.outcomes == WANTED
    assert report.collected == len(WANTED)
    assert set(report.ids) == {test.node_id for test in report.tests}
    assert seen.modules(root) == {name: f"{name}.py" for name in ("lib", "test_it", "test_lib")}
    assert "not the same" in seen.message("test_fails")
    assert "ValueError: boom" in seen.message("test_raises")
    assert "no set-up" in seen.message("test_set_up")
    assert "no tear-down" in seen.message("test_tear_down")
    assert "not today" in seen.message("test_skipped")
    assert "in the test" in seen.message("test_skips")
    assert "known" in seen.message("test_xfails")
    assert seen.message("test_passes") == ""
    assert seen.message("test_long").startswith("AssertionError: needle xxx")
    assert "test_it.py:" in seen.message("test_long")[-200:]
    assert len(seen.message("test_long")) <= 8000


def test_all_green(tmp_path: Path) -> None:
    seen = probe(write(tmp_path, {"test_it.py": "def test_it(): pass"}))
    assert (seen.done.code, seen.report.exit_code, seen.outcomes) == (0, 0, {"test_it": "passed"})
    assert seen.report.tests[0].node_id == "test_it.py::test_it"
    assert (seen.done.survivors, seen.report.torn) == (0, None)


def test_no_tests(tmp_path: Path) -> None:
    seen = probe(write(tmp_path, {"test_it.py": ""}))
    assert (seen.done.code, seen.report.exit_code, seen.report.collected) == (5, 5, 0)


def test_collected_are_counted_without_the_deselected(tmp_path: Path) -> None:
    tests = "def test_a(): pass\ndef test_b(): pass"
    for workers in ([], ["-n1"]):
        seen = probe(write(tmp_path, {"test_it.py": tests}), "-k", "test_a", *workers)
        assert seen.report.ids == ("test_it.py::test_a",)


def test_collect_only_runs_nothing(tmp_path: Path) -> None:
    seen = probe(write(tmp_path, {"test_it.py": "def test_a(): pass"}), "--collect-only")
    assert (seen.report.collected, seen.report.tests, seen.report.exit_code) == (1, (), 0)


@pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["alone", "xdist"])
def test_collection_errors(workers: list[str], tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "test_syntax.py": "def test_a(:",
            "test_import.py": "import no_such_module",
            "test_fine.py": "def test_it(): pass",
        },
    )
    seen = probe(root, *workers)
    errors = {test.node_id: test.message or "" for test in seen.report.collect_errors}
    assert set(errors) == {"test_syntax.py", "test_import.py"}
    assert "SyntaxError" in errors["test_syntax.py"]
    assert "no_such_module" in errors["test_import.py"]
    assert seen.report.torn is None
    assert seen.report.ended
    assert seen.report.exit_code == seen.done.code != 0
    # pytest alone stops here; xdist runs what could be collected.
    assert len(seen.report.tests) == len(workers)


def test_usage_error_is_no_session(tmp_path: Path) -> None:
    seen = probe(write(tmp_path, {"test_it.py": ""}), "--no-such-option")
    assert (seen.done.code, seen.report.started, seen.report.torn) == (4, False, None)


def test_missing_file_is_a_session_that_failed(tmp_path: Path) -> None:
    seen = probe(write(tmp_path, {"test_it.py": ""}), "test_none.py")
    assert (seen.done.code, seen.report.exit_code, seen.report.tests) == (4, 4, ())


@pytest.mark.parametrize("where", ["conftest.py", "test_it.py"])
def test_early_exit_leaves_no_end(where: str, tmp_path: Path) -> None:
    files = {"test_it.py": "def test_it(): pass", where: "import os; os._exit(0)"}
    seen = probe(write(tmp_path, files))
    assert seen.done.code == 0
    assert not seen.report.ended
    assert seen.report.tests == ()


def test_exit_in_a_test_leaves_no_end(tmp_path: Path) -> None:
    tests = "import os\ndef test_a(): pass\ndef test_b(): os._exit(0)"
    seen = probe(write(tmp_path, {"test_it.py": tests}))
    assert seen.outcomes == {"test_a": "passed"}
    assert (seen.report.collected, seen.report.ended, seen.report.torn) == (2, False, None)


def test_interrupt_and_pytest_exit_end_with_their_codes(tmp_path: Path) -> None:
    tests = "import pytest\ndef test_a(): pass\ndef test_b(): pytest.exit('enough', 0)"
    seen = probe(write(tmp_path, {"test_it.py": tests}))
    assert (seen.report.exit_code, seen.report.collected, len(seen.report.tests)) == (0, 2, 1)
    tests = "def test_a(): pass\ndef test_b(): raise KeyboardInterrupt"
    seen = probe(write(tmp_path, {"test_it.py": tests}))
    assert (seen.report.exit_code, seen.done.code) == (2, 2)


def test_crash_of_a_worker_is_a_failure(tmp_path: Path) -> None:
    tests = "import os\ndef test_a(): pass\ndef test_b(): os._exit(0)\ndef test_c(): pass"
    seen = probe(write(tmp_path, {"test_it.py": tests}), "-n1", "--max-worker-restart=0")
    assert seen.report.torn is None
    assert seen.outcomes["test_a"] == "passed"
    assert seen.outcomes["test_b"] == "failed"
    assert "crashed" in seen.message("test_b")
    assert seen.report.exit_code == seen.done.code == 1


HOSTILE = """
import json, os, sys, threading
import pytest

def test_directory(tmp_path): os.chdir(tmp_path)
def test_streams():
    sys.stdout = sys.stderr = None
    os.close(0); os.close(1); os.close(2)
def test_names():
    write = os.write
    os.write = lambda fd, text: write(fd, text) if fd < 3 else 1 / 0
def test_restored_names(monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 0)
    monkeypatch.setattr(os, "listdir", None)
def test_json():
    json.dumps = json.JSONEncoder.encode = json.JSONEncoder.default = None
def test_modules():
    sys.modules[b"bytes"] = None
    sys.modules["odd"] = object()
    sys.modules["older"] = None
    class Lazy(type(os)):
        def __getattr__(self, name): raise SystemExit("imported")
    sys.modules["lazy"] = Lazy("lazy")
    sys.modules["number"] = type(os)("number"); sys.modules["number"].__file__ = 7
    sys.modules["paths"] = type(os)("paths"); sys.modules["paths"].__path__ = 7
def test_fork():
    pid = os.fork()
    if pid == 0:
        pytest.exit("in the child")
    assert os.waitpid(pid, 0)[1] >> 8 == 2
def test_thread():
    thread = threading.Thread(target=print, args=["x"]); thread.start(); thread.join()
def test_captured(capfd): os.write(2, b"x")
def test_last(): pass
"""


@pytest.mark.parametrize(
    "name",
    [
        "directory",
        "streams",
        "names",
        "restored_names",
        "json",
        "modules",
        "fork",
        "thread",
        "captured",
    ],
)
def test_what_tests_do_to_their_process_is_survived(name: str, tmp_path: Path) -> None:
    seen = probe(write(tmp_path, {"test_it.py": HOSTILE}), "-k", f"test_{name} or test_last")
    assert seen.report.torn is None
    assert seen.outcomes[f"test_{name}"] == "passed", seen.message(f"test_{name}")
    assert seen.outcomes["test_last"] == "passed"


def test_descriptor_that_is_no_longer_ours_is_not_written_to(tmp_path: Path) -> None:
    tests = """
import os
def test_a():
    os.closerange(3, 256)
    global files
    files = [open(f"file{n}", "w") for n in range(50)]
def test_b(): pass
"""
    root = write(tmp_path, {"test_it.py": tests})
    seen = probe(root, "-p", "no:faulthandler", "-p", "no:cacheprovider", "--capture=no")
    assert seen.done.code == 0
    assert (seen.report.collected, seen.report.ended, seen.report.torn) == (2, False, None)
    assert all(path.read_text() == "" for path in root.glob("file*"))


def test_descriptor_is_for_nobody_else(tmp_path: Path) -> None:
    tests = """
import os, subprocess, sys
def test_it():
    assert "SANDBOX_ENGINE_REPORT_FD" not in os.environ
    code = "import os; print(len(os.listdir('/proc/self/fd')))"
    out = subprocess.run([sys.executable, "-c", code], close_fds=False, stdout=-1).stdout
    assert int(out) <= 4, out
"""
    seen = probe(write(tmp_path, {"test_it.py": tests}), "-s")
    assert seen.outcomes == {"test_it": "passed"}, seen.message("test_it")


def test_nonce_is_for_nobody_else(tmp_path: Path) -> None:
    tests = """
import os, subprocess, sys
import pytest
from pathlib import Path
NONCE = "0123456789" + "abcdef"
def test_here():
    assert NONCE not in str(dict(os.environ))
    assert NONCE.encode() not in Path("/proc/self/environ").read_bytes()
    assert os.fstat(0).st_rdev == os.stat(os.devnull).st_rdev
    assert os.read(0, 1) == b""
def test_child():
    code = "import os, sys; print(dict(os.environ), sys.stdin.read())"
    assert NONCE not in subprocess.run([sys.executable, "-c", code], stdout=-1, text=True).stdout
def test_arguments(pytestconfig):
    assert NONCE not in repr(getattr(pytestconfig, "workerinput", None))
"""
    for workers in ([], ["-n1"]):
        seen = probe(write(tmp_path, {"test_it.py": tests}), "-s", *workers)
        assert set(seen.outcomes.values()) == {"passed"}, seen.report.tests


FORGERY = """
import json, os
for fd in range(3, 20):
    try:
        for line in {lines}:
            os.write(fd, json.dumps(line).encode() + b"\\n")
    except OSError:
        pass
os._exit(0)
"""
FORGED = """[
    dict(n={first}, kind="begin", nonce=""),
    dict(n={first} + 1, kind="start", python="3", pytest="9", xdist=False),
    dict(n={first} + 2, kind="collected", ids=["t.py::a"]),
    dict(n={first} + 3, kind="test", id="t.py::a", outcome="passed", duration_s=0, message=None),
    dict(n={first} + 4, kind="modules", modules={{}}),
    dict(n={first} + 5, kind="end", exit=0, counts={{"passed": 1}}, nonce=""),
]"""


@pytest.mark.parametrize(
    ("first", "left_out", "why"),
    [(0, 0, "out of order"), (1, 0, "two probes"), (1, 1, "somebody else")],
)
def test_session_that_the_tree_made_up_is_torn(
    first: int, left_out: int, why: str, tmp_path: Path
) -> None:
    lines = FORGED.format(first=first - left_out) + f"[{left_out}:]"
    seen = probe(write(tmp_path, {"conftest.py": FORGERY.format(lines=lines), "test_it.py": ""}))
    assert seen.done.code == 0
    assert why in (seen.report.torn or "")
    assert not seen.report.ended


MANY = """
import unittest
import pytest

@pytest.mark.parametrize("value", ["a", "b/c", "d::e", "two words", "\xe9", "[x]", "\\n"])
def test_parametrised(value): pass
class TestOuter:
    class TestInner:
        def test_it(self): pass
        def test_other(self): pass
class TestCase(unittest.TestCase):
    def test_it(self): pass
    def test_other(self): pass
"""
UNWANTED = "raise SystemExit('it was imported')"
TREE = {
    "conftest.py": "",
    "sub/__init__.py": "",
    "sub/conftest.py": "import pytest\n@pytest.fixture\ndef thing(): return 1",
    "sub/test_many.py": MANY,
    "sub/test_thing.py": "def test_it(thing): pass\ndef test_other(thing): pass",
    "sub/test_unwanted.py": UNWANTED,
    "deep/down/test_unwanted.py": UNWANTED,
    "odd::name/test_odd.py": "def test_odd(): pass",
    "test_top.py": "def test_a(): pass\ndef test_b(): pass",
}


@pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["alone", "xdist"])
@pytest.mark.parametrize(
    "only",
    [
        ["sub/test_many.py::test_parametrised[a]"],
        ["sub/test_many.py::test_parametrised[b/c]", "sub/test_many.py::test_parametrised[d::e]"],
        ["sub/test_many.py::test_parametrised[two words]", "test_top.py::test_b"],
        ["sub/test_many.py::test_parametrised[\\xe9]"],
        ["sub/test_many.py::test_parametrised[[x]]"],
        ["sub/test_many.py::test_parametrised[\\n]"],
        ["sub/test_many.py::TestOuter::TestInner::test_it"],
        ["sub/test_many.py::TestCase::test_it", "sub/test_thing.py::test_other"],
        ["odd::name/test_odd.py::test_odd"],
    ],
)
def test_only_what_is_asked_for_is_run(workers: list[str], only: list[str], tmp_path: Path) -> None:
    seen = probe(write(tmp_path, TREE), *workers, settings={"only": only})
    assert (seen.done.code, seen.report.torn) == (0, None), seen.done.stdout
    assert sorted(seen.report.ids) == sorted(only)
    assert sorted(test.node_id for test in seen.report.tests) == sorted(only)


def test_a_file_stands_for_all_its_tests(tmp_path: Path) -> None:
    only = ["sub/test_thing.py", "test_top.py::test_b", "no/such_test.py::test_it"]
    seen = probe(write(tmp_path, TREE), settings={"only": only})
    assert (seen.done.code, seen.report.ids) == (
        0,
        ("sub/test_thing.py::test_it", "sub/test_thing.py::test_other", "test_top.py::test_b"),
    )
    assert b"2 deselected" in seen.done.stdout


def test_without_a_wanted_test_nothing_runs(tmp_path: Path) -> None:
    for only in ([], ["sub/test_thing.py::test_none"]):
        seen = probe(write(tmp_path, TREE), settings={"only": only})
        assert (seen.report.exit_code, seen.report.collected, seen.report.torn) == (5, 0, None)


def test_files_that_are_named_are_no_usage_error_when_they_are_not_wanted(tmp_path: Path) -> None:
    root = write(tmp_path, {"test_a.py": "def test_a(): pass", "test_b.py": "def test_b(): pass"})
    arguments = ["./test_a.py", "./test_b.py"]
    seen = probe(root, *arguments, settings={"only": ["test_b.py::test_b"]})
    assert (seen.done.code, seen.report.ids) == (0, ("test_b.py::test_b",))


def test_a_wanted_file_that_cannot_be_imported_is_a_collection_error(tmp_path: Path) -> None:
    root = write(tmp_path, {"test_a.py": "import no_such_module", "test_b.py": UNWANTED})
    seen = probe(root, settings={"only": ["test_a.py::test_a"]})
    assert [test.node_id for test in seen.report.collect_errors] == ["test_a.py"]


def test_ids_that_no_pipe_likes_are_asked_for_as_they_were_reported(tmp_path: Path) -> None:
    tests = """
import pytest
@pytest.mark.parametrize("x", [1, 2], ids=["a\\nb\\x00\\u2028\\ud800", "c" * 5000])
def test_it(x): pass
"""
    root = write(tmp_path, {"test_it.py": tests})
    all_ids = probe(root).report.ids
    assert len(all_ids) == 2
    for node_id in all_ids:
        seen = probe(root, settings={"only": [node_id]})
        assert (seen.done.code, seen.report.ids) == (0, (node_id,))


def test_long_list_of_ids(tmp_path: Path) -> None:
    tests = """
import pytest
@pytest.mark.parametrize("x", range(4000))
def test_it_with_a_name_that_is_long_as_names_of_tests_are(x): pass
"""
    root = write(tmp_path, {"test_it.py": tests})
    name = "test_it.py::test_it_with_a_name_that_is_long_as_names_of_tests_are"
    only = [f"{name}[{number}]" for number in range(0, 4000, 2)]
    assert len(json.dumps(only)) > 128 * 1024
    for workers in ([], ["-n1"]):
        seen = probe(root, *workers, settings={"only": only})
        assert (seen.done.code, list(seen.report.ids)) == (0, only)


def test_without_a_descriptor_pytest_runs_all_the_same(tmp_path: Path) -> None:
    root = write(tmp_path, {"test_it.py": "def test_it(): pass"})
    env = {"PATH": os.environ["PATH"]}
    for more in ({}, {"SANDBOX_ENGINE_REPORT_FD": "77"}, {"SANDBOX_ENGINE_REPORT_FD": "x"}):
        done = run_contained([sys.executable, str(PROBE)], cwd=root, env={**env, **more})
        assert (done.code, b"1 passed" in done.stdout) == (0, True)


def test_warnings_as_errors_and_strict_configuration(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "test_it.py": "def test_it(): pass",
            "pytest.ini": "[pytest]\nfilterwarnings = error\n"
            "addopts = --strict-markers --strict-config -W error",
        },
    )
    for workers in ([], ["-n1"]):
        seen = probe(root, *workers)
        assert (seen.done.code, seen.outcomes) == (0, {"test_it": "passed"}), seen.done.stdout


def test_nested_sessions_write_nothing(tmp_path: Path) -> None:
    tests = """
pytest_plugins = ["pytester"]
import subprocess, sys
def test_inner(pytester):
    pytester.makepyfile("def test_inside(): assert 0")
    pytester.runpytest_inprocess().assert_outcomes(failed=1)
def test_outer(pytester):
    pytester.makepyfile("def test_inside(): assert 0")
    assert subprocess.run([sys.executable, "-m", "pytest"]).returncode == 1
"""
    seen = probe(write(tmp_path, {"conftest.py": "", "test_it.py": tests}))
    assert (seen.report.torn, seen.done.code) == (None, 0)
    assert seen.outcomes == {"test_inner": "passed", "test_outer": "passed"}


def test_spawned_workers_of_multiprocessing(tmp_path: Path) -> None:
    tests = """
import multiprocessing, lib
def test_it():
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map(lib.twice, [1, 2, 3]) == [2, 4, 6]
"""
    root = write(tmp_path, {"test_it.py": tests, "src/lib.py": "def twice(x): return 2 * x"})
    seen = probe(root, settings={"roots": ["src"], "first_party": ["lib"]})
    assert seen.outcomes == {"test_it": "passed"}, seen.message("test_it")
    assert (seen.done.survivors, seen.report.torn) == (0, None)


IMPORTS = """
import subprocess, sys
def test_it():
    import pkg.part
    assert pkg.part.VALUE == "sandbox"
    code = "import pkg.part; print(pkg.part.VALUE)"
    out = subprocess.run([sys.executable, "-c", code], stdout=-1)
    assert out.stdout == b"sandbox\\n"
"""


def two_trees(tmp_path: Path, files: Mapping[str, str]) -> tuple[Path, Path]:
    """Return the user's repository and a sandbox whose code names itself differently."""
    repo = write(tmp_path / "repo", files)
    changed = {name: text.replace("repo", "sandbox") for name, text in files.items()}
    return repo, write(tmp_path / "sandbox", changed)


PACKAGE = {"pkg/__init__.py": "", "pkg/part.py": "VALUE = 'repo'"}


@pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["alone", "xdist"])
@pytest.mark.parametrize("folder", ["", "src/"])
@pytest.mark.parametrize("roots", [True, False], ids=["root", "no-root"])
def test_sandbox_wins_over_the_users_own_folder(
    workers: list[str], folder: str, roots: bool, tmp_path: Path
) -> None:
    files = {f"{folder}{name}": text for name, text in PACKAGE.items()}
    repo, sandbox = two_trees(tmp_path, {**files, "tests/test_it.py": IMPORTS})
    seen = probe(
        sandbox,
        *workers,
        settings={
            "repo": str(repo),
            "first_party": ["pkg"],
            "roots": [folder] if roots else [],
        },
        env={"PYTHONPATH": str(repo / folder)},
    )
    assert seen.outcomes == {"test_it": "passed"}, seen.message("test_it")
    assert seen.modules(sandbox) == {
        "pkg": f"{folder}pkg/__init__.py",
        "pkg.part": f"{folder}pkg/part.py",
        "test_it": "tests/test_it.py",
    }


FINDER = """
import sys
from importlib.machinery import PathFinder
from importlib.util import spec_from_file_location
from pathlib import Path
MAPPING = {mapping!r}
NAMESPACES = {{"space": [{repo!r} + "/lib/space"]}}
class Finder:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        top, _, rest = name.partition(".")
        if top in MAPPING and not rest:
            for file in (Path(MAPPING[top], "__init__.py"), Path(MAPPING[top] + ".py")):
                if file.exists():
                    return spec_from_file_location(name, file)
        if top in NAMESPACES and not rest:
            return PathFinder.find_spec(name, [str(Path(p).parent) for p in NAMESPACES[top]])
sys.meta_path.append(Finder)
"""


@pytest.mark.parametrize("workers", [[], ["-n1"]], ids=["alone", "xdist"])
def test_editable_finders_lead_to_the_sandbox(workers: list[str], tmp_path: Path) -> None:
    tests = """
import pkg.part, single, space.thing
def test_it():
    assert (pkg.part.VALUE, single.VALUE, space.thing.VALUE) == ("sandbox",) * 3
"""
    files = {
        **{f"lib/{name}": text for name, text in PACKAGE.items()},
        "lib/single.py": "VALUE = 'repo'",
        "lib/space/thing.py": "VALUE = 'repo'",
        "tests/test_it.py": tests,
        "tests/conftest.py": "import single",
    }
    repo, sandbox = two_trees(tmp_path, files)
    mapping = {"pkg": f"{repo}/lib/pkg", "single": f"{repo}/lib/single"}
    site = write(
        tmp_path / "site",
        {
            "__editable___x_finder.py": FINDER.format(mapping=mapping, repo=str(repo)),
            "sitecustomize.py": "import __editable___x_finder\nimport single",
        },
    )
    seen = probe(
        sandbox,
        *workers,
        settings={"repo": str(repo), "first_party": ["pkg", "single", "space"], "roots": []},
        env={"PYTHONPATH": str(site)},
    )
    assert seen.outcomes == {"test_it": "passed"}, (seen.done.stdout, seen.report)
    assert {name: file for name, file in seen.modules(sandbox).items() if "test" not in name} == {
        "pkg": "lib/pkg/__init__.py",
        "pkg.part": "lib/pkg/part.py",
        "single": "lib/single.py",
        "space": "lib/space",
        "space.thing": "lib/space/thing.py",
    }


@pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["alone", "xdist"])
def test_module_from_outside_is_reported(workers: list[str], tmp_path: Path) -> None:
    tests = """
import sys
sys.path.insert(0, {elsewhere!r})
import pkg
sys.path.remove({elsewhere!r})
def test_it():
    for name in list(sys.modules):
        if name.startswith(("pkg", "stranger")):
            del sys.modules[name]
    import pkg
    sys.path.insert(0, {repo!r})
    import stranger
"""
    elsewhere = write(tmp_path / "elsewhere", {"pkg.py": ""})
    repo = write(tmp_path / "repo", {"stranger.py": ""})
    sandbox = write(
        tmp_path / "sandbox",
        {
            "pkg.py": "",
            "test_it.py": tests.format(elsewhere=str(elsewhere), repo=str(repo)),
        },
    )
    seen = probe(sandbox, *workers, settings={"repo": str(repo), "first_party": ["pkg"]})
    assert seen.outcomes == {"test_it": "passed"}, seen.message("test_it")
    assert seen.report.modules["pkg"] == str(elsewhere / "pkg.py")
    assert seen.report.modules["stranger"] == str(repo / "stranger.py")


def test_environment_inside_the_repository_is_not_the_users_code(tmp_path: Path) -> None:
    repo = write(tmp_path / "repo", {".venv/lib/thing.py": ""})
    sandbox = write(tmp_path / "sandbox", {"test_it.py": "import thing\ndef test_it(): pass"})
    seen = probe(
        sandbox,
        settings={"repo": str(repo), "environment": [sys.prefix, str(repo / ".venv")]},
        env={"PYTHONPATH": str(repo / ".venv/lib")},
    )
    assert seen.outcomes == {"test_it": "passed"}
    assert seen.modules(sandbox) == {"test_it": "test_it.py"}


def test_links_to_the_repository_are_seen_through(tmp_path: Path) -> None:
    repo, sandbox = two_trees(tmp_path, {**PACKAGE, "test_it.py": IMPORTS})
    link = tmp_path / "link"
    link.symlink_to(repo)
    box = tmp_path / "box"
    box.symlink_to(sandbox)
    seen = probe(
        box,
        settings={"repo": str(link), "first_party": ["pkg"], "roots": []},
        env={"PYTHONPATH": str(link)},
    )
    assert seen.outcomes == {"test_it": "passed"}, seen.message("test_it")
    assert seen.modules(sandbox)["pkg.part"] == "pkg/part.py"


SHADOWS = {
    "pytest.py": "raise SystemExit('the tree took the place of pytest')",
    "_pytest/__init__.py": "raise SystemExit('the tree took the place of _pytest')",
    "pluggy.py": "raise SystemExit('the tree took the place of pluggy')",
    "json.py": "SHADOW = True",
    "sandbox_engine_probe.py": "raise SystemExit('the tree took the place of the probe')",
}


def test_names_in_the_tree_do_not_take_our_place(tmp_path: Path) -> None:
    repo, sandbox = two_trees(tmp_path, {**SHADOWS, "test_it.py": "def test_it(): pass"})
    seen = probe(sandbox, settings={"repo": str(repo)}, env={"PYTHONPATH": str(repo)})
    assert (seen.done.code, seen.outcomes) == (0, {"test_it": "passed"}), seen.done


def test_early_roots_provide_pytest_itself(tmp_path: Path) -> None:
    own = "raise SystemExit('own pluggy')"
    root = write(tmp_path, {"src/pluggy/__init__.py": own, "test_it.py": ""})
    late = probe(root, settings={"roots": ["src"]})
    assert late.done.code == 5
    early = probe(root, settings={"roots": ["src"], "early": True})
    assert b"own pluggy" in early.done.stderr


def test_probe_in_a_repository_under_test_is_no_stranger(tmp_path: Path) -> None:
    sandbox = write(tmp_path, {"test_it.py": "def test_it(): pass"})
    seen = probe(sandbox, settings={"repo": str(PROBE.parents[2]), "environment": [sys.prefix]})
    assert seen.outcomes == {"test_it": "passed"}
    assert seen.modules(sandbox) == {"test_it": "test_it.py"}


def test_subtests_count_with_their_test(tmp_path: Path) -> None:
    tests = """
import unittest
class TestIt(unittest.TestCase):
    def test_fails(self):
        for number in range(3):
            with self.subTest(number=number):
                assert number != 1, "number is one"
    def test_skips(self):
        with self.subTest(number=1):
            self.skipTest("one of two")
        with self.subTest(number=2):
            pass
"""
    seen = probe(write(tmp_path, {"test_it.py": tests}))
    assert seen.outcomes == {"test_fails": "failed", "test_skips": "passed"}
    assert "number is one" in seen.message("test_fails")


@pytest.mark.parametrize("tears_down", [False, True])
def test_a_rerun_counts_once(tears_down: bool, tmp_path: Path) -> None:
    conftest = f"""
from _pytest.runner import runtestprotocol
def pytest_runtest_protocol(item, nextitem):
    # What pytest-rerunfailures does; newer ones report the tear-down of the first time too.
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for last in (False, True):
        for report in runtestprotocol(item, nextitem=nextitem, log=False):
            is_again = report.failed and not last
            if is_again:
                report.outcome = "rerun"
            item.ihook.pytest_runtest_logreport(report=report)
            if is_again and not {tears_down}:
                break
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True
"""
    tests = "seen = []\ndef test_it():\n    seen.append(1)\n    assert len(seen) == 2"
    for workers in ([], ["-n1"]):
        seen = probe(write(tmp_path, {"conftest.py": conftest, "test_it.py": tests}), *workers)
        assert [test.outcome.value for test in seen.report.tests] == ["passed"]
        assert (seen.report.torn, seen.done.code) == (None, 0)


PASSES = """
import pytest
@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if report.outcome == "failed":
        report.outcome, report.longrepr = "passed", None
"""
SWALLOWS = """
import pytest
@pytest.hookimpl(hookwrapper=True, trylast={trylast})
def pytest_runtest_call(item):
    outcome = yield
    outcome.force_result(None)
    item._excinfo = None
"""
REPLACES = """
from _pytest.reports import TestReport
def pytest_runtest_makereport(item, call):
    return TestReport(item.nodeid, item.location, {}, "passed", None, call.when)
"""
REWRITES = """
import pytest
@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logreport(report):
    report.outcome = "passed"
"""
FAILS = """
import unittest, pytest
def test_fails(): assert False
class TestIt(unittest.TestCase):
    def test_case(self): self.assertEqual(1, 2)
def test_passes(): pass
def test_skips(): pytest.skip("today")
@pytest.mark.xfail
def test_xfails(): assert False
"""
TURNED = "its failure was turned into a pass by a hook: AssertionError"


@pytest.mark.parametrize("workers", [[], ["-n1"]], ids=["alone", "xdist"])
@pytest.mark.parametrize(
    "conftest",
    [
        PASSES,
        SWALLOWS.format(trylast=False),
        SWALLOWS.format(trylast=True),
        REPLACES,
        REWRITES,
    ],
    ids=["passes", "swallows", "swallows-last", "replaces", "rewrites"],
)
def test_failure_that_a_hook_turns_into_a_pass(
    workers: list[str], conftest: str, tmp_path: Path
) -> None:
    seen = probe(write(tmp_path, {"t/conftest.py": conftest, "t/test_it.py": FAILS}), *workers)
    assert seen.done.code == 0
    assert (seen.outcomes["test_fails"], seen.outcomes["test_case"]) == ("failed", "failed")
    assert (seen.message("test_fails"), seen.message("test_case")) == (TURNED, TURNED)
    assert seen.outcomes["test_passes"] == "passed"
    assert seen.report.torn is None


@pytest.mark.parametrize("workers", [[], ["-n1"]], ids=["alone", "xdist"])
def test_broken_fixture_that_a_hook_turns_into_a_pass(workers: list[str], tmp_path: Path) -> None:
    tests = """
import pytest
@pytest.fixture(autouse=True)
def broken(request):
    if request.node.name == "test_a": raise OSError("no set-up")
    yield
    raise OSError("no tear-down")
def test_a(): pass
def test_b(): pass
"""
    seen = probe(write(tmp_path, {"conftest.py": PASSES, "test_it.py": tests}), *workers)
    assert (seen.done.code, seen.outcomes) == (0, {"test_a": "failed", "test_b": "failed"})
    assert seen.message("test_a").endswith("turned into a pass by a hook: OSError")


PRETENDS = """
from _pytest.reports import TestReport
def pytest_runtest_protocol(item, nextitem):
    for when in ("setup", "call", "teardown"):
        report = TestReport(item.nodeid, item.location, {}, "passed", None, when)
        item.ihook.pytest_runtest_logreport(report=report)
    return True
"""


@pytest.mark.parametrize("workers", [[], ["-n1"]], ids=["alone", "xdist"])
def test_test_that_is_only_said_to_have_run(workers: list[str], tmp_path: Path) -> None:
    files = {"conftest.py": PRETENDS, "test_it.py": "def test_it(): 1 / 0"}
    seen = probe(write(tmp_path, files), *workers)
    assert (seen.done.code, seen.outcomes) == (0, {"test_it": "error"})
    assert seen.message("test_it") == "it was reported as passed, but did not run"


def test_test_that_is_only_set_up_did_not_run(tmp_path: Path) -> None:
    files = {"pytest.ini": "[pytest]\naddopts = --setup-only", "test_it.py": "def test_it(): 1 / 0"}
    seen = probe(write(tmp_path, files))
    assert (seen.done.code, seen.report.collected, seen.outcomes) == (0, 1, {})


def test_a_call_that_is_kept_secret_does_not_count(tmp_path: Path) -> None:
    conftest = """
from _pytest.runner import runtestprotocol
def pytest_runtest_protocol(item, nextitem):
    # What flaky does.
    for is_last in (False, True):
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in runtestprotocol(item, nextitem=nextitem, log=False):
            if is_last or report.when != "call":
                item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True
"""
    tests = "seen = []\ndef test_it():\n    seen.append(1)\n    assert len(seen) == 2"
    for workers in ([], ["-n1"]):
        seen = probe(write(tmp_path, {"conftest.py": conftest, "test_it.py": tests}), *workers)
        assert [test.outcome.value for test in seen.report.tests] == ["passed"]


def test_a_retry_within_the_report_counts_once(tmp_path: Path) -> None:
    conftest = """
import pytest
@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_makereport(item, call):
    # What pytest-retry does.
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        report.outcome = "retried"
        item.ihook.pytest_runtest_logreport(report=report)
        again = pytest.CallInfo.from_call(lambda: item.ihook.pytest_runtest_call(item=item), "call")
        report.outcome = "failed" if again.excinfo else "passed"
"""
    tests = """
seen = []
def test_it():
    seen.append(1)
    assert len(seen) == 2
def test_fails(): assert False
"""
    for workers in ([], ["-n1"]):
        seen = probe(write(tmp_path, {"conftest.py": conftest, "test_it.py": tests}), *workers)
        assert seen.outcomes == {"test_it": "passed", "test_fails": "failed"}


def test_a_forked_test_did_run(tmp_path: Path) -> None:
    conftest = """
import os, pickle
from _pytest.reports import TestReport
from _pytest.runner import runtestprotocol
def pytest_runtest_protocol(item, nextitem):
    # What pytest-forked does.
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reading, writing = os.pipe()
    if os.fork() == 0:
        reports = runtestprotocol(item, log=False)
        os.write(writing, pickle.dumps([report._to_json() for report in reports]))
        os._exit(0)
    os.close(writing)
    os.wait()
    for fields in pickle.loads(os.read(reading, 65536)):
        item.ihook.pytest_runtest_logreport(report=TestReport._from_json(fields))
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True
"""
    tests = "def test_it(): pass\ndef test_fails(): assert False"
    for workers in ([], ["-n1"]):
        seen = probe(write(tmp_path, {"conftest.py": conftest, "test_it.py": tests}), *workers)
        assert seen.outcomes == {"test_it": "passed", "test_fails": "failed"}


PATCHES = {
    "function": (
        "import _pytest.runner\n_pytest.runner.check_interactive_exception = lambda *a: False",
        "_pytest.runner.check_interactive_exception",
    ),
    "method": (
        "from _pytest.reports import TestReport\nTestReport._to_json = lambda self: {}",
        "_pytest.reports.TestReport._to_json",
    ),
    "class method": (
        "from _pytest.reports import TestReport\n"
        "real = TestReport.from_item_and_call\n"
        "TestReport.from_item_and_call = classmethod(lambda cls, item, call: real(item, call))",
        "_pytest.reports.TestReport.from_item_and_call",
    ),
    "property that was not there": (
        "from _pytest.reports import TestReport\n"
        "TestReport.outcome = property(lambda self: 'passed', lambda self, value: None)",
        "_pytest.reports.TestReport.outcome",
    ),
    "code": (
        "import _pytest.runner\n"
        "_pytest.runner.check_interactive_exception.__code__ = (lambda *a: False).__code__",
        "_pytest.runner.check_interactive_exception",
    ),
    "text": (
        "import _pytest.assertion.rewrite\n"
        "exec('def rewrite_asserts(*a): pass', _pytest.assertion.rewrite.__dict__)",
        "_pytest.assertion.rewrite.rewrite_asserts",
    ),
    "built-in": (
        "import unittest\nunittest.TestCase.assertEqual = print",
        "unittest.case.TestCase.assertEqual",
    ),
    "another of its own": (
        "import unittest\nunittest.TestCase.assertEqual = unittest.TestCase.assertTrue",
        "unittest.case.TestCase.assertEqual",
    ),
    "decorated": (
        "import contextlib, pytest\n"
        "@contextlib.contextmanager\n"
        "def raises(*a, **k): yield\n"
        "pytest.raises = raises",
        "pytest.raises",
    ),
    "pluggy": (
        "import pluggy\n"
        "real = pluggy.PluginManager.get_plugin\n"
        "pluggy.PluginManager.get_plugin = lambda self, name: real(self, name)",
        "pluggy._manager.PluginManager.get_plugin",
    ),
    "gone again at the end": (
        "import _pytest.runner\n"
        "real = _pytest.runner.check_interactive_exception\n"
        "_pytest.runner.check_interactive_exception = lambda *a: False\n"
        "def pytest_runtest_logfinish(): _pytest.runner.check_interactive_exception = real",
        "_pytest.runner.check_interactive_exception",
    ),
}


@pytest.mark.parametrize("kind", PATCHES)
def test_functions_of_pytest_that_the_tree_replaces_are_named(kind: str, tmp_path: Path) -> None:
    conftest, name = PATCHES[kind]
    root = write(tmp_path, {"conftest.py": conftest, "test_it.py": "def test_it(): pass"})
    seen = probe(root)
    assert (seen.report.torn, seen.report.patched) == (None, (name,)), seen.done


def test_functions_that_are_replaced_in_a_worker_are_named(tmp_path: Path) -> None:
    tests = """
import _pytest.runner
def test_it(): _pytest.runner.check_interactive_exception = lambda *a: False
"""
    seen = probe(write(tmp_path, {"test_it.py": tests}), "-n1")
    assert seen.report.patched == ("_pytest.runner.check_interactive_exception",)


def test_plugin_of_the_tree_is_imported_too_late_to_go_unseen(tmp_path: Path) -> None:
    files = {
        "evil.py": PATCHES["function"][0],
        "pytest.ini": "[pytest]\naddopts = -p evil",
        "test_it.py": "def test_it(): pass",
    }
    seen = probe(write(tmp_path, files))
    assert seen.report.patched == ("_pytest.runner.check_interactive_exception",)


def test_many_names_are_bounded(tmp_path: Path) -> None:
    conftest = """
import builtins
for number in range(200):
    setattr(builtins, f"name{number}", lambda: None)
"""
    seen = probe(write(tmp_path, {"conftest.py": conftest, "test_it.py": ""}))
    assert len(seen.report.patched) == 50


@pytest.mark.parametrize("workers", [[], ["-n1"]], ids=["alone", "xdist"])
def test_what_is_put_back_and_what_plugins_replace_is_not_named(
    workers: list[str], tmp_path: Path
) -> None:
    tests = """
pytest_plugins = ["pytester"]
import unittest
from unittest import mock
import _pytest.runner, builtins, pytest
from hypothesis import given, strategies

@pytest.fixture(scope="session", autouse=True)
def for_all():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtins, "input", lambda: "yes")
        yield
def test_monkeypatch(monkeypatch):
    monkeypatch.setattr(_pytest.runner, "check_interactive_exception", lambda *a: False)
    monkeypatch.setattr(builtins, "open", open)
def test_mock():
    with mock.patch.object(unittest.TestCase, "assertEqual"):
        pass
def test_inner(pytester):
    pytester.makeconftest("import pytest\\ndef pytest_runtest_call(item): pass")
    pytester.makepyfile("def test_inside(): assert 0")
    pytester.runpytest_inprocess().assert_outcomes(failed=1)
@given(strategies.integers())
def test_given(x): pass
class TestCase(unittest.TestCase):
    def test_it(self): self.assertRaises(ValueError, int, "x")
    @mock.patch("os.getcwd")
    def test_mocked(self, getcwd): pass
"""
    base = tmp_path / "base"
    site = write(base / "lib/site-packages", {"plugin_of_many.py": PATCHES["function"][0]})
    root = write(tmp_path / "tree", {"conftest.py": "", "test_it.py": tests})
    seen = probe(
        root,
        *("--doctest-modules", "-p", "hypothesis.extra.pytestplugin", "-p", "plugin_of_many"),
        *workers,
        env={"PYTHONUSERBASE": str(base), "PYTHONPATH": str(site)},
    )
    assert seen.done.code == 0, seen.done.stdout
    assert seen.report.patched == ()


def test_names_that_no_pipe_likes(tmp_path: Path) -> None:
    tests = """
import pytest
@pytest.mark.parametrize("x", [1], ids=["a\\nb\\x00\\u2028\\ud800"])
def test_it(x): assert 0, "\\udcff\\n\\x00"
"""
    seen = probe(write(tmp_path, {"test_it.py": tests}))
    assert seen.report.torn is None
    assert [test.outcome.value for test in seen.report.tests] == ["failed"]
    seen.report.tests[0].node_id.encode()
    (seen.report.tests[0].message or "").encode()
