"""The agent's command line, as a person meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def run(*arguments: str, cwd: Path, check: int) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "agent", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == check, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_every_mistake_in_a_configuration_is_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "hephaestus_config.json"
    path.write_text(json.dumps({"models": {"architect_default": "m"}}))
    assert run("config", "check", cwd=tmp_path, check=0).stdout == (
        "`hephaestus_config.json` is well\n"
    )
    raw = {
        "models": {"architect_default": "m", "lihgt": "x"},
        "budgets": {"attempts": 0},
        "memory_backend": "sqlit",
    }
    path.write_text(json.dumps(raw))
    said = run("config", "check", str(path), cwd=tmp_path, check=1)
    assert said.stdout == (
        "`models.lihgt` is no setting\n  did you mean `light`?\n"
        "`memory_backend` must be one of json, sqlite\n  did you mean `sqlite`?\n"
        "`budgets.attempts` must be 1 or more\n"
    )
    path.write_text('{"models": {},}')
    said = run("config", "check", cwd=tmp_path, check=1)
    assert said.stdout == "line 1, column 15: has a comma before `}`\n  remove the comma\n"


def test_a_package_that_is_missing_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['pydantic'] = None\n"
        "from agent.cli import main; sys.exit(main(['config', 'check']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 3 and "`pydantic` is not installed" in done.stderr
    assert "hint: `pip install 'sandbox-engine[agent]'`" in done.stderr


def test_wrong_usage_is_one_sentence(tmp_path: Path) -> None:
    said = run("config", "check", cwd=tmp_path, check=2)
    assert "`hephaestus_config.json` cannot be read: No such file or directory" in said.stderr
    assert "COMMAND" in run(cwd=tmp_path, check=2).stderr
    assert run("--version", cwd=tmp_path, check=0).stdout.startswith("hephaestus ")
