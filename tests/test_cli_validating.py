"""`validate` of several, in several forms, on a terminal and off it: real processes."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import GitBox
from test_cli import BREAKING, GOOD, SYNTAX, run

from sandbox_engine import store

SLOW = {"test_slow.py": "import time\n\n\ndef test_slow():\n    time.sleep(60)\n"}
SYNTAX_ONLY = ("--strategy", "SYNTAX_ONLY")
pytestmark = pytest.mark.usefixtures("no_reruns")


@pytest.fixture
def patches(tmp_path: Path) -> Path:
    """A folder beside the project with a good, a breaking and a broken patch."""
    folder = tmp_path / "plans"
    folder.mkdir()
    for name, text in (("good", GOOD), ("breaking", BREAKING), ("broken", SYNTAX)):
        (folder / f"{name}.json").write_text(text)
    return folder


def test_several_have_a_line_each_then_what_is_wrong_then_a_count(
    project: GitBox, patches: Path
) -> None:
    names = [str(patches / f"{name}.json") for name in ("good", "breaking", "broken")]
    done = run("validate", *names, "-j", "2", cwd=project.top, check=1)
    lines = done.stdout.splitlines()
    starts = sorted(line.split()[0] for line in lines[:3])
    assert starts == ["FAILED", "PASSED", "REJECTED"]
    assert re.fullmatch(rf"PASSED +\d+\.\d\d s  {names[0]}: .*", sorted(lines[:3])[1])
    assert "regressed tests/test_calc.py::test_add" in done.stdout
    assert lines[-1] == "1 FAILED, 1 REJECTED, 1 PASSED"
    assert done.stderr == ""
    again = run("validate", names[0], names[0], cwd=project.top, check=0)
    assert again.stdout.count("(known)") == 2


def test_a_folder_of_patches_a_branch_and_a_range(project: GitBox, tmp_path: Path) -> None:
    folder = tmp_path / "patches"
    folder.mkdir()
    (folder / "1.diff").write_bytes(project.diff_to({"new.py": "x = 1\n"}))
    (folder / "2.diff").write_bytes(project.diff_to({"new.py": "x = (\n"}))
    done = run("validate", str(folder), *SYNTAX_ONLY, cwd=project.top, check=1)
    assert done.stdout.endswith("1 REJECTED, 1 PASSED\n")
    project.git("switch", "-qc", "topic")
    project.commit({"calc.py": "def add(a, b):\n    return a - b\n"}, "Break it")
    project.commit({"calc.py": "def add(a, b):\n    return b + a\n"}, "Mend it")
    done = run("validate", "--range", "main..topic", cwd=project.top, check=1)
    assert re.search(r"^FAILED .* Break it: .*\nPASSED .* Mend it: ", done.stdout, re.M)
    done = run("validate", "--from-branch", "topic", "--base", "main", cwd=project.top, check=0)
    assert done.stdout.startswith("PASSED: ")
    receipt = tmp_path / "r.json"
    words = ("--from-branch", "topic", "--base", "main", "--receipt", str(receipt))
    run("validate", *words, cwd=project.top, check=0)
    run("promote", str(receipt), "--branch", "main", cwd=project.top, check=0)
    assert project.git("log", "-1", "--format=%s", "main") == "Mend it"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--range", "nothing..main"), "no range of commits"),
        (("--range", "main..main"), "no commit is in"),
        (("--from-branch", "nothing"), "names no commit"),
        (("gone.diff", "x.diff"), "`gone.diff` cannot be read"),
        (("--output", "json", "--output", "jsonl", "x"), "cannot both be on standard output"),
        (("--output", "json", "-o", "/no/where", "p.json"), "cannot be written"),
        (("p.json", "p.json", "--receipt", "r.json"), "several were named"),
    ],
)
def test_wrong_usage_is_one_sentence_and_a_hint(
    project: GitBox, words: tuple[str, ...], said: str
) -> None:
    (project.top / "p.json").write_text(GOOD)
    done = run("validate", *words, *SYNTAX_ONLY, cwd=project.top, check=2)
    assert said in done.stderr and "\nhint: " in done.stderr


def test_forms_go_where_they_are_meant_to(project: GitBox, patches: Path, tmp_path: Path) -> None:
    one, two = str(patches / "good.json"), str(patches / "broken.json")
    out, lines = tmp_path / "out.json", tmp_path / "out.jsonl"
    files = ("--output", "json", "-o", str(out), "--output", "jsonl", "-o", str(lines))
    done = run("validate", one, two, *SYNTAX_ONLY, *files, cwd=project.top, check=1)
    assert done.stdout.endswith("1 REJECTED, 1 PASSED\n")
    record = json.loads(out.read_text())
    names = [result["name"] for result in record["results"]]
    assert (record["schema"], names) == (1, [one, two])
    assert [json.loads(line) for line in lines.read_text().splitlines()] == record["results"]
    done = run("validate", one, *SYNTAX_ONLY, "--output", "json", cwd=project.top, check=0)
    assert json.loads(done.stdout)["outcome"] == "PASSED"
    words = (*SYNTAX_ONLY, "--output", "jsonl", "-o", str(lines), "--output", "json")
    done = run("validate", one, one, *words, cwd=project.top, check=0)
    assert len(json.loads(done.stdout)["results"]) == 2
    done = run("validate", one, *SYNTAX_ONLY, "-o", str(out), cwd=project.top, check=0)
    assert out.read_text().startswith("PASSED: ") and done.stdout == out.read_text()


def test_an_interrupt_gives_the_summary_of_what_is_done(project: GitBox, patches: Path) -> None:
    slow = patches.parent / "slow.diff"
    slow.write_bytes(project.diff_to(SLOW))
    names = [str(patches / "good.json"), str(slow), str(slow)]
    with subprocess.Popen(
        [sys.executable, "-m", "sandbox_engine", "validate", *names],
        cwd=project.top,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None and child.stderr is not None
        assert child.stdout.readline().startswith("PASSED")
        time.sleep(1)
        child.send_signal(signal.SIGINT)
        rest, said = child.communicate(timeout=30)
    assert child.returncode == 130
    assert rest == "\n1 PASSED, 2 not judged\n"
    assert said == "interrupted; nothing was changed\n"
    folder = store.cache_home()
    assert list(folder.glob("*/slots")) and not list(folder.glob("*/slots/*.state/scratch"))


def test_the_first_that_does_not_pass_ends_all(project: GitBox, patches: Path) -> None:
    names = [str(patches / f"{name}.json") for name in ("broken", "good", "breaking")]
    done = run("validate", "--fail-fast", *names, cwd=project.top, check=1)
    assert done.stdout.splitlines()[-1].startswith("1 REJECTED, 2 not judged")


def on_terminal(*words: str, cwd: Path, **variables: str) -> tuple[int, str]:
    """Return exit code and what is seen of a command whose output is a terminal."""
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "sandbox_engine", *words],
        cwd=cwd,
        stdout=follower,
        stderr=follower,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100", **variables},
    ) as child:
        os.close(follower)
        seen = b""
        while part := _read(leader):
            seen += part
        code = child.wait()
    os.close(leader)
    return code, seen.decode()


def _read(leader: int) -> bytes:
    try:
        return os.read(leader, 65536)
    except OSError:
        return b""


def test_a_terminal_shows_what_is_being_done_and_leaves_nothing_of_it(
    project: GitBox, patches: Path
) -> None:
    names = [str(patches / f"{name}.json") for name in ("good", "breaking")]
    code, seen = on_terminal("validate", *names, cwd=project.top)
    assert code == 1
    assert "tests without the patch" in seen and "0 of 2" in seen
    assert "\033[32mPASSED\033[0m" in seen and "\033[31mFAILED\033[0m" in seen
    assert seen.rstrip().endswith("1 FAILED, 1 PASSED")
    code, seen = on_terminal("validate", names[0], cwd=project.top, NO_COLOR="1")
    assert code == 0 and "PASSED: " in seen and "\033[3" not in seen


def test_a_name_cannot_write_to_the_terminal(project: GitBox, tmp_path: Path) -> None:
    names = []
    for name in ("a\033]0;title\007[bold]x", "b"):
        (tmp_path / name).write_text("x")
        names.append(str(tmp_path / name))
    code, seen = on_terminal("validate", *names, *SYNTAX_ONLY, cwd=project.top)
    assert code == 1 and "\033]0;" not in seen and "[bold]x" in seen


def test_forms_for_other_programs(project: GitBox, patches: Path, tmp_path: Path) -> None:
    names = [str(patches / f"{name}.json") for name in ("good", "breaking", "broken")]
    junit, sarif, told = tmp_path / "j.xml", tmp_path / "s.sarif", tmp_path / "summary.md"
    words = ("--output", "junit", "-o", str(junit), "--output", "sarif", "-o", str(sarif))
    done = subprocess.run(
        [sys.executable, "-m", "sandbox_engine", "validate", *names, *words, "--output", "github"],
        cwd=project.top,
        env={**os.environ, "GITHUB_STEP_SUMMARY": str(told)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("PASSED") and "1 FAILED, 1 REJECTED, 1 PASSED" in done.stdout
    commands = [line for line in done.stdout.splitlines() if line.startswith("::")]
    assert "file=calc.py,line=2,col=12,title=syntax-error" in commands[-1]
    assert told.read_text().count("<details>") == 2
    suites = ElementTree.parse(junit).findall("testsuite")
    assert [suite.get("name") for suite in suites] == names
    rules = [result["ruleId"] for result in json.loads(sarif.read_text())["runs"][0]["results"]]
    assert rules == ["test-regressed", "syntax-error"]
