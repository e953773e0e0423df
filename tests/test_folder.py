"""Folders laid over the tree: what is read, what is refused, and the way to a verdict."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import pytest
from conftest import CODE, GitBox

from sandbox_engine import Engine, folder
from sandbox_engine.errors import PatchPolicyError, PatchSyntaxError, UsageError
from sandbox_engine.folder import read_folder
from sandbox_engine.verdict import Outcome

GOOD = CODE + "\n\ndef double(a):\n    return add(a, a)\n"


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """A folder with a file, a script and an empty folder."""
    top = tmp_path / "over"
    (top / "bin").mkdir(parents=True)
    (top / "empty").mkdir()
    (top / "calc.py").write_text(GOOD)
    (top / "bin" / "run").write_bytes(b"#!/bin/sh\n\xff")
    (top / "bin" / "run").chmod(0o755)
    return top


def test_files_and_their_modes_are_read(top: Path) -> None:
    found = read_folder(top)
    assert found.files == {b"calc.py": GOOD.encode(), b"bin/run": b"#!/bin/sh\n\xff"}
    assert found.executable == {b"bin/run"}


def test_links_special_files_and_git_folders_are_all_told(top: Path) -> None:
    (top / "link").symlink_to("/etc/passwd")
    (top / "bin" / "up").symlink_to("..")
    os.mkfifo(top / "pipe")
    (top / "empty" / ".git" / "hooks").mkdir(parents=True)
    with pytest.raises(PatchPolicyError) as caught:
        read_folder(top)
    assert {(finding.path, finding.code) for finding in caught.value.findings} == {
        ("link", "symlink-refused"),
        ("bin/up", "symlink-refused"),
        ("pipe", "forbidden-path"),
        ("empty/.git", "forbidden-path"),
    }


def test_a_folder_that_holds_too_much_is_refused(
    top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "MAX_BYTES", 20)
    with pytest.raises(PatchSyntaxError, match="more than"):
        read_folder(top)
    monkeypatch.setattr(folder, "MAX_BYTES", 2000)
    monkeypatch.setattr(folder, "MAX_FILES", 1)
    with pytest.raises(PatchSyntaxError, match="more than 1 files"):
        read_folder(top)


def test_a_folder_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_folder(tmp_path / "none")


@pytest.mark.usefixtures("untouched")
def test_a_folder_and_a_zip_get_verdicts(engine: Engine, top: Path) -> None:
    verdict = engine.validate(top, strategy="SYNTAX_ONLY")
    assert verdict.outcome is Outcome.PASSED
    assert verdict.changed_paths == ("bin/run", "calc.py")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        made.writestr("calc.py", GOOD)
    assert engine.validate(out.getvalue(), strategy="SYNTAX_ONLY").changed_paths == ("calc.py",)
    (top / "link").symlink_to("calc.py")
    assert engine.validate(top).outcome is Outcome.REJECTED
    with pytest.raises(UsageError, match="is a folder"):
        engine.validate(top, format="json")


def test_the_command_line_takes_a_folder(project: GitBox, top: Path) -> None:
    from test_cli import run

    done = run("validate", str(top), "--strategy", "SYNTAX_ONLY", cwd=project.top, check=0)
    assert done.stdout.startswith("PASSED")
    done = run("validate", ".", cwd=project.top, check=1)
    assert done.stdout.startswith("REJECTED: `.git` is a git folder")
