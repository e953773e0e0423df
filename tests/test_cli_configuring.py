"""`config` and `completion`: what is set, where, and what shells are told."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import GitBox
from test_cli import run


def with_variable(name: str, value: str, *words: str, cwd: Path) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "sandbox_engine", *words],
        cwd=cwd,
        env={**os.environ, name: value},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_every_setting_is_shown_with_its_source(project: GitBox) -> None:
    file = project.top / "sandbox-engine.toml"
    file.write_text('slots = 3\nstrategies.MINE.steps = ["syntax"]\n')
    code, out, _ = with_variable(
        "SANDBOX_ENGINE_TIMEOUT_S", "60", "config", "show", cwd=project.top
    )
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert code == 0
    assert lines["slots"].endswith(f"3  ({file})")
    assert lines["timeout_s"].endswith("60.0  (SANDBOX_ENGINE_TIMEOUT_S)")
    assert lines["reruns"].endswith("2  (default)")
    assert lines["strategies"].endswith(f'["MINE"]  ({file})')
    rows = json.loads(run("config", "show", "--output", "json", cwd=project.top).stdout)
    assert {"name": "slots", "value": 3, "source": str(file)} in rows


def test_a_configuration_is_checked(project: GitBox) -> None:
    assert "nothing is set" in run("config", "check", cwd=project.top, check=0).stdout
    file = project.top / "sandbox-engine.toml"
    for settings, said in (
        ("slotz = 3\n", "did you mean `slots`"),
        ('strategy = "NONE"\n', "there is no strategy `NONE`"),
        ('carry = ["../x"]\n', "leaves the repository"),
        ('readable = ["/no/where"]\n', "`/no/where`, which is no folder"),
    ):
        file.write_text(settings)
        done = run("config", "check", cwd=project.top, check=2)
        assert said in done.stderr and "\nhint: " in done.stderr
    file.write_text("slots = 3\n")
    assert run("config", "check", cwd=project.top, check=0).stdout.startswith("ok: 1 setting")
    code, _, said = with_variable("SANDBOX_ENGINE_SLOTZ", "1", "config", "check", cwd=project.top)
    assert code == 2 and "`SANDBOX_ENGINE_SLOTZ` names no setting" in said


def test_the_schema_is_printed(project: GitBox) -> None:
    done = run("config", "schema", cwd=project.top, check=0)
    assert json.loads(done.stdout)["properties"]["slots"]["default"] == 8


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_takes_what_completes_our_commands(project: GitBox, shell: str) -> None:
    script = run("completion", shell, cwd=project.top, check=0).stdout
    for word in ("validate", "from-branch", "promote", "completion"):
        assert word in script
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed, so only the words of its script were looked at")
    subprocess.run([shell, "-n"], input=script, text=True, check=True)


def test_bash_completes_commands_options_and_files(project: GitBox) -> None:
    script = run("completion", "bash", cwd=project.top, check=0).stdout
    (project.top / "fix.diff").write_text("x")
    for words, wanted in (
        (["sandbox-engine", "val"], ["validate"]),
        (["sandbox-engine", "validate", "--from"], ["--from-branch"]),
        (["sandbox-engine", "validate", "fix"], ["fix.diff"]),
        (["sandbox-engine", "validate", "--match", "fu"], ["fuzzy"]),
    ):
        ask = (
            f"{script}\nCOMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}\n"
            "_shtab_sandbox_engine; printf '%s\\n' \"${COMPREPLY[@]}\""
        )
        done = subprocess.run(
            ["bash", "-c", ask], cwd=project.top, capture_output=True, text=True, check=True
        )
        assert [line.strip() for line in done.stdout.splitlines()] == wanted
