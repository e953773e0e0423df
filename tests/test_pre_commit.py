"""The hooks of `.pre-commit-hooks.yaml`, used as a project uses them: by pre-commit, and by prek.

Both install this project, with its files as they are now, into environments of their own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml
from conftest import CODE, TESTS, GitBox

from sandbox_engine import commit_hooks

_ROOT = Path(__file__).resolve().parent.parent
_BIN = Path(sys.executable).parent
_SYNTAX, _VALIDATE = _HOOKS = ("sandbox-engine-syntax", "sandbox-engine-validate")
_BROKEN = CODE.replace("a + b", "a - b")

# They share environments that take long to make.
pytestmark = pytest.mark.xdist_group("frameworks")
both = pytest.mark.parametrize("tool", ["pre-commit", "prek"])


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> GitBox:
    """This project in a repository of its own."""
    probe = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-cache-dir",
             "--retries", "0", "--timeout", "10", "-d", str(tmp_path_factory.mktemp("probe")),
             "inotify_simple"]  # fmt: skip
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("the package index cannot be reached, or pip is not installed")
    box = GitBox(tmp_path_factory.mktemp("source") / "engine")
    question = ("ls-files", "-z", "--cached", "--others", "--exclude-standard")
    listed = subprocess.run(["git", *question], cwd=_ROOT, capture_output=True, check=True).stdout
    for name in filter(None, os.fsdecode(listed).split("\0")):
        if (_ROOT / name).is_file() and not name.startswith("tests/"):
            (box.top / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(_ROOT / name, box.top / name)
    box.git("add", "--all", "--force")
    box.git("commit", "-q", "-m", "as it is now")
    return box


@pytest.fixture(scope="session")
def environments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pre-commit and prek keep what they install, which is done once."""
    return tmp_path_factory.mktemp("environments")


@pytest.fixture
def hooked(
    project: GitBox, source: GitBox, environments: Path, monkeypatch: pytest.MonkeyPatch
) -> GitBox:
    """The project, configured to use both hooks."""
    monkeypatch.setenv("PRE_COMMIT_HOME", str(environments / "pre-commit"))
    monkeypatch.setenv("PREK_HOME", str(environments / "prek"))
    for name in ("PIP_CACHE_DIR", "UV_CACHE_DIR"):
        monkeypatch.setenv(name, str(environments / name))
    # uv, which prek calls, believes its own certificates unless it is told to believe the system's.
    monkeypatch.setenv("UV_SYSTEM_CERTS", "1")
    monkeypatch.setenv("UV_NATIVE_TLS", "1")
    monkeypatch.setenv("PATH", str(_BIN), prepend=os.pathsep)
    hooks = [{"id": one} for one in _HOOKS]
    config = {"repos": [{"repo": str(source.top), "rev": source.head, "hooks": hooks}]}
    project.commit({".pre-commit-config.yaml": yaml.safe_dump(config)})
    return project


def run(box: GitBox, *words: str, **variables: str) -> tuple[int, str]:
    """Run a command in the project, and return its exit code and all that it showed."""
    if words[0] in ("pre-commit", "prek") and shutil.which(words[0]) is None:
        pytest.skip(f"`{words[0]}` is not installed; the extra `test` has it")
    done = subprocess.run(
        words,
        cwd=box.top,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if "error sending request for url" in done.stdout:
        pytest.skip(f"the package index cannot be reached by what `{words[0]}` installs with")
    assert "Traceback" not in done.stdout
    return done.returncode, done.stdout


def commit(box: GitBox, content: str, *words: str, **variables: str) -> tuple[int, str]:
    box.write({"calc.py": content})
    box.git("add", "calc.py")
    return run(box, "git", "commit", "-q", "-m", "one", *words, **variables)


def test_they_can_be_tried(hooked: GitBox, source: GitBox) -> None:
    hooked.write({"calc.py": _BROKEN})
    hooked.git("add", "calc.py")
    code, said = run(hooked, "pre-commit", "try-repo", str(source.top))
    assert code == 1
    assert re.search(r"^sandbox-engine, syntax alone\.+Passed$", said, re.MULTILINE)
    assert re.search(r"^sandbox-engine\.+Failed$", said, re.MULTILINE)
    assert "tests/test_calc.py::test_add" in said
    code, said = run(hooked, "prek", "try-repo", str(source.top), _SYNTAX)
    assert code == 0 and re.search(r"^sandbox-engine, syntax alone\.+Passed$", said, re.MULTILINE)


@both
def test_commits_and_pushes_are_judged(hooked: GitBox, tmp_path: Path, tool: str) -> None:
    assert run(hooked, tool, "install", "-t", "pre-commit", "-t", "pre-push")[0] == 0
    remote = tmp_path / "remote.git"
    hooked.git("init", "-q", "--bare", str(remote))
    hooked.git("remote", "add", "origin", str(remote))
    quick = {"SKIP": _VALIDATE}
    code, said = commit(hooked, CODE.replace("a + b", "b + a"), **quick)
    assert code == 0 and said.count("Passed") == 1, said
    # What is in the work tree alone is neither judged nor lost.
    hooked.write({"tests/test_calc.py": "def (\n"})
    code, said = commit(hooked, "def (\n")
    assert code == 1 and said.count("Failed") == said.count("syntax-error calc.py:1") == 2
    code, said = commit(hooked, "def (\n", **quick)
    assert code == 1 and said.count("Skipped") == said.count("Failed") == 1
    assert (hooked.top / "tests/test_calc.py").read_text() == "def (\n"
    hooked.git("checkout", "-q", "HEAD", ".")
    # A push: with nothing at the remote, and with what is there already.
    assert run(hooked, "git", "push", "-q", "origin", "main", **quick)[0] == 0
    assert commit(hooked, "def (\n", "--no-verify")[0] == 0
    code, said = run(hooked, "git", "push", "-q", "origin", "main", **quick)
    assert code == 1 and "sandbox-engine: REJECTED" in said
    assert "`SKIP_SANDBOX_ENGINE=1 git push ...` pushes all the same" in said
    # Without a push or a commit it is not said that all is well.
    code, said = run(hooked, tool, "run", "--all-files", "--verbose", _SYNTAX)
    assert code == 0 and "nothing is staged, so nothing was judged" in said
    arguments = ("--from-ref", "HEAD^", "--to-ref", "HEAD")
    code, said = run(hooked, tool, "run", *arguments, "--hook-stage", "manual", _SYNTAX)
    assert code == 1 and "sandbox-engine: REJECTED" in said


@both
def test_a_first_push_is_judged(hooked: GitBox, tmp_path: Path, tool: str) -> None:
    hooked.git("init", "-q", "--bare", str(tmp_path / "remote.git"))
    hooked.git("remote", "add", "origin", str(tmp_path / "remote.git"))
    hooked.commit({"calc.py": "def (\n"})
    assert run(hooked, tool, "install", "-t", "pre-push")[0] == 0
    code, said = run(hooked, "git", "push", "-q", "origin", "main", SKIP=_VALIDATE)
    assert code == 1 and "syntax-error calc.py:1" in said


def _environment(folder: Path) -> Path:
    """Make an environment that alone has `needed`, which the tests import."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "needed.py").write_text("HERE = True\n")
    return packages


@both
def test_tests_are_run_by_the_interpreter_of_the_project(
    hooked: GitBox, tmp_path: Path, tool: str
) -> None:
    hooked.commit({"tests/test_calc.py": f"import needed\n{TESTS}"})
    assert run(hooked, tool, "install")[0] == 0
    active = _environment(tmp_path / "active")
    path = f"{tmp_path / 'active' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    variables = {"PATH": path, "VIRTUAL_ENV": str(tmp_path / "active"), "SKIP": _SYNTAX}
    code, said = commit(hooked, CODE.replace("a + b", "b + a"), **variables)
    assert code == 1 and f"`{tmp_path}/active/bin/python` has no pytest" in said
    assert "a `.venv` of the project" in said
    (active / "ours.pth").write_text(sysconfig.get_path("purelib"))
    code, said = commit(hooked, CODE.replace("a + b", "b + a"), **variables)
    assert code == 0, said


def test_each_may_be_installed_over_the_other(hooked: GitBox) -> None:
    earlier = hooked.top / ".git" / "hooks" / "pre-commit"
    earlier.parent.mkdir(exist_ok=True)
    earlier.write_text("#!/bin/sh\necho first >&2\n")
    earlier.chmod(0o755)
    commit_hooks.install(hooked.top, ["--strategy", "SYNTAX_ONLY"])
    # It moves ours, which must still find what it runs first.
    assert run(hooked, "pre-commit", "install")[0] == 0
    assert not commit_hooks.status(hooked.top).is_installed
    code, said = commit(hooked, "X = 1\n", SKIP=_VALIDATE)
    assert code == 0 and said.count("first") == said.count("PASSED") == 1
    assert run(hooked, "pre-commit", "uninstall")[0] == 0
    assert commit_hooks.status(hooked.top).has_earlier
    assert commit_hooks.uninstall(hooked.top)
    # And ours over theirs.
    earlier.unlink()
    assert run(hooked, "pre-commit", "install")[0] == 0
    assert commit_hooks.install(hooked.top, ["--strategy", "SYNTAX_ONLY"]).has_earlier
    code, said = commit(hooked, "X = 2\n", SKIP=_VALIDATE)
    assert code == 0 and said.index("Passed") < said.index("sandbox-engine: PASSED")


def test_each_that_calls_the_other_ends(hooked: GitBox) -> None:
    commit_hooks.install(hooked.top, ["--strategy", "SYNTAX_ONLY"])
    assert run(hooked, "pre-commit", "install")[0] == 0
    assert commit_hooks.install(hooked.top, ["--strategy", "SYNTAX_ONLY"]).has_earlier
    code, said = commit(hooked, "def (\n", SKIP=",".join(_HOOKS))
    assert code == 1 and said.count("sandbox-engine: REJECTED") == 1
    code, said = commit(hooked, "X = 1\n", SKIP=",".join(_HOOKS))
    assert code == 0 and said.count("sandbox-engine: PASSED") == 2
