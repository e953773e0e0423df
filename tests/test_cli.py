"""The command line as a person or a hook meets it: real processes, exit codes, streams."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import GitBox

from sandbox_engine import store
from sandbox_engine.isolation.tiers import WITHOUT

pytestmark = pytest.mark.usefixtures("no_reruns")

GOOD = json.dumps(
    [{"file_path": "calc.py", "operation": "INSERT", "line_number": 2, "content": "    # sum"}]
)
BREAKING = GOOD.replace("    # sum", "    return a - b")
SYNTAX = GOOD.replace("    # sum", "    return (")


def run(
    *arguments: str, cwd: Path, text: str = "", check: int | None = None
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "sandbox_engine", *arguments],
        cwd=cwd,
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    if check is not None:
        assert done.returncode == check, done.stdout + done.stderr
    return done


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("patch", "code", "outcome"),
    [(GOOD, 0, "PASSED"), (BREAKING, 1, "FAILED"), (SYNTAX, 1, "REJECTED"), ("x", 1, "REJECTED")],
)
def test_the_first_line_tells_the_outcome(
    project: GitBox, patch: str, code: int, outcome: str
) -> None:
    done = run("validate", "-", cwd=project.top, text=patch, check=code)
    assert done.stdout.startswith(f"{outcome}: ")
    assert done.stderr == ""


def test_a_failure_shows_what_a_repair_needs(project: GitBox) -> None:
    done = run("validate", "-", cwd=project.top, text=BREAKING, check=1)
    assert "regressed tests/test_calc.py::test_add" in done.stdout
    assert "assert -1 == 3" in done.stdout
    done = run("validate", "-", cwd=project.top, text=SYNTAX, check=1)
    assert "syntax-error calc.py:2:12\n        return (\n               ^" in done.stdout
    assert "hint: " in done.stdout


def test_json_is_data_alone(project: GitBox) -> None:
    done = run("validate", "-", "--output", "json", cwd=project.top, text=BREAKING, check=1)
    record = json.loads(done.stdout)
    assert (record["schema"], record["outcome"]) == (1, "FAILED")


def test_it_works_from_a_subfolder_and_from_elsewhere(project: GitBox, tmp_path: Path) -> None:
    patch = tmp_path / "p.json"
    patch.write_text(GOOD)
    only = ("--strategy", "SYNTAX_ONLY")
    run("validate", "../../p.json", *only, cwd=project.top / "tests", check=0)
    run("validate", "p.json", "--repo", "repo/tests", *only, cwd=tmp_path, check=0)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["validate", "gone.diff"], 2, "the patch `gone.diff` cannot be read"),
        (["validate", "-", "--base", "gone"], 2, "`gone` names no commit"),
        (["validate", "-", "--strategy", "NOPE"], 2, "no strategy `NOPE`"),
        (["validate", "-", "--format", "nope"], 2, "nope"),
        (["validate", "-", "--repo", "/"], 2, "not in a git repository"),
        (["validate", "-", "--repo", "/no/where"], 2, "not a folder"),
        (["validate", "-", "--config", "gone.toml"], 2, "no configuration file"),
        (["validate", "-", "--python", "/no/python"], 3, "no interpreter"),
        (["validate", "-", "--receipt", "/no/where/r.json"], 2, "there is no folder `/no/where`"),
        (["verify", "gone.json"], 2, "the receipt `gone.json` cannot be read"),
        (["promote", "gone.json"], 2, "--branch"),
        (["validate"], 2, "PATCH"),
        (["validate", "--staged", "x"], 2, "in one way"),
        (["validate", "x", "--range", "A..B"], 2, "in one way"),
        (["validate", "--staged", "--receipt", "r.json"], 2, "`--receipt` has no meaning"),
        (["validate", "--range", "A..B", "--explain"], 2, "`--explain` has no meaning"),
        (["validate", "x", "--lenient"], 2, "`--lenient` has no meaning"),
        (["validate", "x", "-j", "0"], 2, "no number"),
        (["nonsense"], 2, "invalid choice"),
        ([], 2, "COMMAND"),
        (["cache"], 2, "ACTION"),
    ],
)
def test_wrong_usage_is_one_sentence_and_a_hint(
    project: GitBox, arguments: list[str], code: int, message: str
) -> None:
    done = run(*arguments, cwd=project.top, text=GOOD, check=code)
    assert message in done.stderr
    assert done.stdout == ""
    assert "hint: " in done.stderr or "usage: " in done.stderr


def test_verbose_adds_the_cause(project: GitBox) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sandbox_engine", "validate", "-", "--base", "gone", "-v"],
        cwd=project.top,
        input=GOOD,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "Traceback" in done.stderr


ONLY = ("--strategy", "SYNTAX_ONLY")


@pytest.fixture
def receipt(project: GitBox, tmp_path: Path) -> Path:
    """A receipt of GOOD, which passed."""
    path = tmp_path / "r.json"
    run("validate", "-", *ONLY, "--receipt", str(path), cwd=project.top, text=GOOD, check=0)
    return path


@pytest.mark.usefixtures("untouched")
def test_a_receipt_is_there_if_and_only_if_the_patch_passed(
    project: GitBox, receipt: Path, tmp_path: Path
) -> None:
    record = json.loads(receipt.read_text())
    assert (record["base"], record["strategy"]) == (project.head, "SYNTAX_ONLY")
    again = ("validate", "-", *ONLY, "--receipt", "../r.json")
    for text, more, code in (
        (SYNTAX, (), 1),
        (GOOD, ("--base", "gone"), 2),
        (GOOD, ("--python", "/no/python"), 3),
    ):
        receipt.write_text(json.dumps(record))
        run(*again, *more, cwd=project.top, text=text, check=code)
        assert not receipt.exists()
    done = run(*again, "--output", "json", cwd=project.top, text=GOOD, check=0)
    assert json.loads(done.stdout)["receipt"] == json.loads(receipt.read_text()) == record
    receipt.write_text("somebody's work")
    done = run(*again, cwd=project.top, text=GOOD, check=2)
    assert "`../r.json` is there and is no receipt" in done.stderr
    assert receipt.read_text() == "somebody's work"


@pytest.mark.usefixtures("untouched")
def test_verify_tells_forged_from_stale(project: GitBox, receipt: Path, tmp_path: Path) -> None:
    done = run("verify", "../r.json", cwd=project.top, check=0)
    assert "ok   digest: " in done.stdout
    assert done.stdout.endswith("\nthe receipt holds\n")
    (tmp_path / "c.toml").write_text("max_file_bytes = 1000\n")
    stale = run("verify", "../r.json", "--config", "../c.toml", cwd=project.top, check=3)
    assert "BAD  recipe: `SYNTAX_ONLY` is configured otherwise now" in stale.stdout
    assert "no longer holds (recipe): validate the patch again" in stale.stdout
    record = json.loads(receipt.read_text())
    receipt.write_text(json.dumps({**record, "strategy": "\x1b]0;owned\x07"}))
    forged = run("verify", "../r.json", cwd=project.top, check=1)
    assert "BAD  digest: it says " in forged.stdout
    assert "\x1b" not in forged.stdout
    told = run("verify", "../r.json", "--output", "json", cwd=project.top, check=1)
    claims = json.loads(told.stdout)
    assert claims["standing"] == "false"
    assert claims["claims"][0]["name"] == "digest"
    receipt.write_text("not JSON")
    assert (
        "`../r.json` is no receipt" in run("verify", "../r.json", cwd=project.top, check=2).stderr
    )


def test_what_a_receipt_is_of_is_promoted(project: GitBox, receipt: Path) -> None:
    promote = ("promote", str(receipt), "--branch", "main")
    done = run(*promote, "-m", "Comment", "--note", cwd=project.top, check=0)
    assert done.stdout.strip() == project.head
    assert project.git("log", "-1", "--format=%s") == "Comment"
    noted = project.git("notes", "--ref=sandbox-engine", "show", "HEAD")
    assert json.loads(noted) == json.loads(receipt.read_text())
    again = run(*promote, cwd=project.top, check=1)
    assert "has the change already" in again.stderr
    assert "hint: " in again.stderr


def test_a_promotion_that_is_refused_says_why(project: GitBox, receipt: Path) -> None:
    promote = ("promote", str(receipt), "--branch")
    record = json.loads(receipt.read_text())
    assert "no branch name" in run(*promote, "a..b", cwd=project.top, check=2).stderr
    assert "does not exist" in run(*promote, "gone", cwd=project.top, check=1).stderr
    receipt.write_text(json.dumps({**record, "categories": {"fixed": 1}}))
    assert "was altered" in run(*promote, "main", cwd=project.top, check=1).stderr
    receipt.write_text(json.dumps({**record, "digest": "0" * 64}))
    assert "no verdict with the receipt" in run(*promote, "main", cwd=project.top, check=1).stderr
    receipt.unlink()
    assert "cannot be read" in run(*promote, "main", cwd=project.top, check=2).stderr
    receipt.write_text(json.dumps(record))
    hook = project.top / ".git" / "hooks" / "pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho no good; exit 1\n")
    hook.chmod(0o755)
    assert "no good" in run(*promote, "main", cwd=project.top, check=1).stderr
    run(*promote, "main", "--no-hooks", cwd=project.top, check=0)


def test_a_note_that_fails_leaves_the_commit_told(project: GitBox, receipt: Path) -> None:
    project.git("update-ref", "refs/notes", "HEAD")
    done = run("promote", str(receipt), "--branch", "main", "--note", cwd=project.top, check=3)
    assert done.stdout.strip() == project.head
    assert f"the commit {project.head} landed on `main`" in done.stderr


def test_mails_keep_their_author_on_the_way_over_a_receipt(project: GitBox, tmp_path: Path) -> None:
    base = project.head
    project.write({"calc.py": "def add(a, b):\n    return b + a\n"})
    project.git("commit", "-q", "-a", "-m", "Swap", "--author=Grace <grace@example.org>")
    mail = project.git("format-patch", "--stdout", "-1") + "\n"
    project.git("reset", "-q", "--hard", base)
    arguments = ("validate", "-", *ONLY, "--receipt", "../r.json")
    run(*arguments, cwd=project.top, text=mail, check=0)
    run("promote", "../r.json", "--branch", "main", cwd=project.top, check=0)
    assert project.git("log", "-1", "--format=%an %s") == "Grace Swap"


def test_strategies_are_listed(project: GitBox) -> None:
    done = run("strategies", cwd=project.top, check=0)
    assert "* SYNTAX_AND_PYTEST" in done.stdout
    record = json.loads(run("strategies", "--output", "json", cwd=project.top, check=0).stdout)
    assert record["DISCARD"]["steps"] == []


def test_doctor_names_what_is_missing(project: GitBox, tmp_path: Path) -> None:
    done = run("doctor", cwd=project.top, check=0)
    assert "ok   interpreter: " in done.stdout
    assert re.search(r"isolation: (full|landlock|none): ", done.stdout)
    done = run("doctor", cwd=tmp_path, check=3)
    assert "BAD  repository: " in done.stdout
    assert "hint: " in done.stdout


@pytest.mark.parametrize("tier", ["none", "auto"])
def test_the_isolation_is_chosen_and_told(project: GitBox, tier: str) -> None:
    (project.top / "sandbox-engine.toml").write_text('isolation = "none"\n')
    done = run("validate", "-", "--isolation", tier, cwd=project.top, text=GOOD, check=0)
    wanted = "none" if tier == "none" else "full|landlock|none"
    assert re.search(rf"^strategy  SYNTAX_AND_PYTEST, isolation ({wanted})$", done.stdout, re.M)
    done = run("validate", "-", "--isolation", "most", cwd=project.top, text=GOOD, check=2)
    assert "invalid choice: 'most'" in done.stderr


def test_openings_are_told(project: GitBox, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(
        'strategy = "S"\n[strategies.S]\nsteps = [{command = "true"}]\nnetwork = true\n'
        f'writable = ["{tmp_path}"]\n'
    )
    arguments = ("validate", "-", "--config", str(tmp_path / "c.toml"))
    done = run(*arguments, cwd=project.top, text=GOOD, check=0)
    assert re.search(
        rf"^strategy  S, isolation \w+, network, writes {tmp_path}$", done.stdout, re.M
    )
    done = run(*arguments, "--output", "json", cwd=project.top, text=GOOD, check=0)
    assert json.loads(done.stdout)["openings"] == ["network", f"writes {tmp_path}"]
    done = run("strategies", "--output", "json", "--config", str(tmp_path / "c.toml"),
               cwd=project.top, check=0)  # fmt: skip
    assert json.loads(done.stdout)["S"]["network"] is True


def test_isolation_that_cannot_be_had_is_an_error_with_a_hint(
    project: GitBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WITHOUT, "bubblewrap,landlock")
    for tier in ("full", "landlock"):
        done = run("validate", "-", "--isolation", tier, cwd=project.top, text=GOOD, check=3)
        assert f"the isolation `{tier}` cannot be had here" in done.stderr
        assert "hint: " in done.stderr
        assert done.stdout == ""
    monkeypatch.setenv("SANDBOX_ENGINE_MIN_ISOLATION", "landlock")
    done = run("validate", "-", cwd=project.top, text=GOOD, check=3)
    assert done.stdout.startswith("INCONCLUSIVE: nothing was run: the isolation here is `none`")
    assert "hint: `sandbox-engine doctor`" in done.stdout


def test_doctor_tells_how_runs_are_isolated(
    project: GitBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WITHOUT, "bubblewrap,landlock")
    done = run("doctor", cwd=project.top, check=0)
    assert (
        "ok   isolation: none: runs are ended whole, but can reach whatever you can" in done.stdout
    )
    assert "ok   isolation full: cannot be had: " in done.stdout
    assert "ok   isolation landlock: cannot be had: " in done.stdout
    monkeypatch.setenv("SANDBOX_ENGINE_MIN_ISOLATION", "full")
    done = run("doctor", cwd=project.top, check=3)
    assert "BAD  isolation: none: " in done.stdout
    assert "hint: `min_isolation` in the configuration asks for `full`" in done.stdout
    assert "BAD  isolation full: cannot be had: " in done.stdout


def test_doctor_tells_what_is_wrong_with_the_configuration(project: GitBox) -> None:
    (project.top / "sandbox-engine.toml").write_text("nonsense = 1\n")
    done = run("doctor", cwd=project.top, check=3)
    assert "ok   git: " in done.stdout
    assert "BAD  interpreter: " in done.stdout


def test_analyses_are_shown_and_compared(project: GitBox, tmp_path: Path) -> None:
    shown = run("analyse", cwd=project.top, check=0)
    assert shown.stdout.splitlines()[0].split() == [
        *("lines", "source", "functions", "most", "complex", "mi", "file")
    ]
    assert shown.stdout.splitlines()[-1] == "2 files, 11 lines, 3 functions"
    assert run("analyse", cwd=project.top / "tests").stdout.endswith(
        "1 file, 9 lines, 2 functions\n"
    )
    record = json.loads(run("analyse", "--output", "json", cwd=project.top, check=0).stdout)
    assert record["files"]["calc.py"]["metrics"]["functions"][0]["name"] == "add"
    assert run("analyse", "--changed", cwd=project.top).stdout.startswith("no size")
    only = run("analyse", "--patch", "-", cwd=project.top, text=BREAKING, check=0)
    assert only.stdout.startswith("~ calc.py  lines 2 -> 3, complexity 1")
    project.write({"calc.py": "x = 1\n"})
    for arguments in (["--changed"], ["--base", "HEAD"]):
        done = run("analyse", *arguments, "--output", "json", cwd=project.top, check=0)
        (change,) = json.loads(done.stdout)["files"]
        assert change["functions"][0]["after"] is None
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "a.py").write_text("x = 1\n")
    assert "1 file, 1 line" in run("analyse", cwd=tmp_path / "plain", check=0).stdout


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--repo", "nowhere"], 2, "`nowhere` is not a folder"),
        (["--base", "nowhere"], 2, "`nowhere` names no commit"),
        (["--patch", "nowhere"], 2, "the patch `nowhere` cannot be read"),
        (["--changed", "--patch", "x"], 2, "not allowed with"),
        (["--repo", ".git"], 2, "is not in the work tree of a repository"),
    ],
)
def test_what_cannot_be_analysed_is_one_sentence_and_a_hint(
    project: GitBox, arguments: list[str], code: int, sentence: str
) -> None:
    done = run("analyse", *arguments, cwd=project.top, check=code)
    assert sentence in done.stderr and done.stdout == ""


def test_an_analysis_that_is_interrupted_leaves_no_process(project: GitBox) -> None:
    project.write({f"slow{number}.py": "x = [1]\n" * 30_000 for number in range(40)})
    child = subprocess.Popen(
        [sys.executable, "-m", "sandbox_engine", "analyse"],
        cwd=project.top,
        stderr=subprocess.PIPE,
        text=True,
    )
    workers: list[str] = []
    deadline = time.monotonic() + 20
    while not workers and time.monotonic() < deadline:
        children = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
        threads = Path(f"/proc/{child.pid}/task").iterdir()
        workers = [pid for task in threads for pid in (task / "children").read_text().split()]
        workers = [pid for pid in (*children, *workers) if "worker.py" in _command(pid)]
    assert workers
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=20)
    assert child.returncode == 130 and said == "interrupted; nothing was changed\n"
    deadline = time.monotonic() + 5
    while (left := [pid for pid in workers if "worker.py" in _command(pid)]) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.05)
    assert left == []


def _command(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_analyses_are_counted_and_trimmed(project: GitBox) -> None:
    run("analyse", cwd=project.top, check=0)
    record = json.loads(run("cache", "info", "--output", "json", cwd=project.top).stdout)
    assert sorted(record["analyses"]["results"].values()) == [2, 2]
    assert "results   2 metrics 1 radon-" in run("cache", "info", cwd=project.top).stdout
    assert run("cache", "gc", cwd=project.top, check=0).stdout == "0.0 MiB freed\n"
    run("cache", "gc", "--size", "0", cwd=project.top, check=0)
    record = json.loads(run("cache", "info", "--output", "json", cwd=project.top).stdout)
    assert record["analyses"]["results"] == {}
    done = run("cache", "gc", "--size", "many", cwd=project.top, check=2)
    assert "`many` is no number of MiB" in done.stderr


def test_the_cache_is_seen_and_cleared(project: GitBox) -> None:
    run("validate", "-", "--strategy", "SYNTAX_ONLY", cwd=project.top, text=GOOD, check=0)
    assert "1 PASSED" in run("cache", "info", cwd=project.top, check=0).stdout
    record = json.loads(run("cache", "info", "--output", "json", cwd=project.top).stdout)
    assert Path(record["folder"]).is_dir()
    run("cache", "clear", cwd=project.top, check=0)
    assert not Path(record["folder"]).exists()
    run("validate", "-", "--strategy", "SYNTAX_ONLY", cwd=project.top, text=GOOD, check=0)
    run("cache", "clear", "--all", cwd=project.top, check=0)
    # What is compiled is shared by these tests, and another one may be using it.
    assert set(os.listdir(store.cache_home())) - {"compiled"} == {"CACHEDIR.TAG"}


def test_version_and_help(project: GitBox) -> None:
    assert run("--version", cwd=project.top, check=0).stdout.startswith("sandbox-engine ")
    help_text = run("--help", cwd=project.top, check=0).stdout
    assert "exit codes:" in help_text
    assert "examples:" in help_text
    assert "--base" in run("validate", "--help", cwd=project.top, check=0).stdout


def test_a_reader_that_leaves_is_no_error(project: GitBox) -> None:
    shell = f"{sys.executable} -m sandbox_engine strategies --output json | head -c 1"
    done = subprocess.run(
        ["bash", "-c", shell], cwd=project.top, capture_output=True, text=True, check=False
    )
    assert done.stdout == "{"
    assert done.stderr == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_behind(
    project: GitBox, tmp_path: Path, number: signal.Signals
) -> None:
    pid_file = tmp_path / "pid"
    (tmp_path / "c.toml").write_text(
        'strategy = "S"\nisolation = "none"\n[strategies.S]\n'
        f'steps = [{{command = ["sh", "-c", "echo $$ > {pid_file}; sleep 60"]}}]\n'
    )
    before = project.snapshot()
    arguments = ["validate", "-", "--config", str(tmp_path / "c.toml")]
    with subprocess.Popen(
        [sys.executable, "-m", "sandbox_engine", *arguments],
        cwd=project.top,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdin is not None
        child.stdin.write(GOOD)
        child.stdin.close()
        child.stdin = None
        deadline = time.monotonic() + 30
        while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < deadline:
            time.sleep(0.02)
        child.send_signal(number)
        _, errors = child.communicate(timeout=20)
    assert child.returncode == (130 if number == signal.SIGINT else 128 + number)
    assert "Traceback" not in errors
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)
    assert project.snapshot() == before
    scratch = [path.read_text() for path in store.cache_home().glob("*/slots/*.state/scratch")]
    assert scratch == []
    run("validate", "-", "--strategy", "SYNTAX_ONLY", cwd=project.top, text=GOOD, check=0)


def test_nothing_a_test_prints_reaches_the_terminal_raw(project: GitBox) -> None:
    patch = json.dumps(
        [
            {
                "file_path": "tests/test_calc.py",
                "operation": "INSERT",
                "content": "def test_evil():\n    raise ValueError('\\x1b]0;owned\\x07')",
            }
        ]
    )
    done = run("validate", "-", cwd=project.top, text=patch, check=1)
    assert "\x1b" not in done.stdout
    assert "\\x1b]0;owned" in done.stdout


def test_doctor_tells_of_limits_that_are_more_than_there_is(project: GitBox) -> None:
    assert "ok   limits: 600 s, 4096 MiB" in run("doctor", cwd=project.top).stdout
    (project.top / "sandbox-engine.toml").write_text("memory_bytes = 1_000_000_000_000_000\n")
    done = run("doctor", cwd=project.top, check=3)
    assert "BAD  limits: `memory_bytes` is 1000000000000000" in done.stdout
    assert "hint: set `memory_bytes` to less" in done.stdout
