"""Our hooks in the frameworks that people have: pre-commit and prek, really installed, on real git.

Each framework makes an environment of its own with this project in it, once for all tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import GitBox

from sandbox_engine import Engine

ROOT = Path(__file__).parent.parent
BETTER = {"calc.py": "def add(a, b):\n    return b + a\n"}
FRAMEWORKS = ("pre-commit", "prek")
CONFIG = """\
default_install_hook_types: [pre-commit, pre-push]
repos:
- repo: {source}
  rev: {revision}
  hooks:
  - id: sandbox-engine-validate
"""


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This project as it is in the work tree, as a repository that a framework can clone."""
    top = tmp_path_factory.mktemp("source") / "sandbox-engine"
    names = (
        "sandbox_engine",
        "agent",
        "docs",
        "setup.cfg",
        "pyproject.toml",
        "README.md",
        "LICENSE",
    )
    top.mkdir()
    for name in (*names, ".pre-commit-hooks.yaml"):
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, top / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, top / name)
    identity = ("-c", "user.name=a", "-c", "user.email=a@localhost")
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
        subprocess.run(["git", *identity, *words], cwd=top, check=True)
    return top


@pytest.fixture(scope="session", params=FRAMEWORKS)
def framework(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, str]]:
    """A framework's program, and the variables that say where it keeps its environments."""
    program = Path(sys.executable).with_name(request.param)
    if not program.exists():
        pytest.skip(f"{request.param} is not installed beside the interpreter of the tests")
    home = str(tmp_path_factory.mktemp("home"))
    return str(program), {"PRE_COMMIT_HOME": home, "PREK_HOME": home}


def run(words: list[str], box: GitBox, variables: dict[str, str]) -> tuple[int, str]:
    path = f"{sys.prefix}/bin:{os.environ['PATH']}"
    done = subprocess.run(
        words,
        cwd=box.top,
        env={**os.environ, "VIRTUAL_ENV": sys.prefix, "PATH": path, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if "No matching distribution" in done.stdout or "Could not find a version" in done.stdout:
        pytest.skip("the package index cannot be reached, so no environment can be made")
    assert "Traceback" not in done.stdout
    return done.returncode, done.stdout


def test_commits_and_pushes_are_judged(
    project: GitBox, source: Path, framework: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    program, variables = framework
    if program.endswith("pre-commit"):
        # It makes an environment for this alone; once is enough.
        try_out(program, project, source, variables)
    revision = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=source, capture_output=True, text=True, check=True
    ).stdout.strip()
    project.commit({".pre-commit-config.yaml": CONFIG.format(source=source, revision=revision)})
    subprocess.run(["git", "init", "-q", "--bare", tmp_path / "other.git"], check=True)
    project.git("remote", "add", "origin", str(tmp_path / "other.git"))
    project.git("push", "-q", "origin", "main")
    assert run([program, "install"], project, variables)[0] == 0

    project.write({"calc.py": "def add(a, b):\n    return a - b\n"})
    code, said = run(["git", "commit", "-qam", "worse"], project, variables)
    assert code == 1 and "regressed tests/test_calc.py::test_add" in said
    code, said = run(["git", "commit", "-nqam", "worse"], project, variables)
    assert code == 0
    code, said = run(["git", "push", "-q", "origin", "main"], project, variables)
    assert code == 1 and "regressed tests/test_calc.py::test_add" in said
    project.write(BETTER)
    assert run(["git", "commit", "-qam", "better"], project, variables)[0] == 0
    assert run(["git", "push", "-q", "origin", "main"], project, variables)[0] == 0
    assert project.git("ls-remote", "origin", "main").startswith(project.head)
    # The framework's own environment is active, in front of the one that was.
    receipt = Engine(project.top).recall().receipt
    assert receipt is not None
    assert receipt.environment["interpreter"].endswith(f" {sys.prefix}/bin/python")


def try_out(program: str, project: GitBox, source: Path, variables: dict[str, str]) -> None:
    words = [program, "try-repo", str(source), "sandbox-engine-syntax", "--verbose"]
    stage(project, BETTER)
    code, said = run(words, project, variables)
    assert code == 0 and "sandbox-engine: PASSED" in said
    stage(project, {"calc.py": "def add(:\n"})
    code, said = run(words, project, variables)
    assert code == 1 and "REJECTED" in said and "calc.py:1" in said
    project.git("reset", "-q", "--hard")


def stage(box: GitBox, files: dict[str, str]) -> None:
    box.write(files)
    box.git("add", "-A")
