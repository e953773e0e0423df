"""A plan in a folder of one's own: all of it, or none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from agent.errors import AgentError
from agent.patch_applicator import apply_patches
from sandbox_engine import PatchError, UsageError


def insert(path: str, content: Any, line: Any = None) -> dict[str, Any]:
    return {"file_path": path, "operation": "INSERT", "line_number": line, "content": content}


def replace(path: str, old: str | None, new: str, **more: Any) -> dict[str, Any]:
    return {
        "file_path": path, "operation": "REPLACE", "block_to_replace": old, "content": new, **more
    }  # fmt: skip


def delete(path: str, block: str | None) -> dict[str, Any]:
    return {"file_path": path, "operation": "DELETE_BLOCK", "block_to_delete": block}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    top = tmp_path / "project"
    (top / "pkg").mkdir(parents=True)
    (top / "a.txt").write_bytes(b"one\r\ntwo\r\nlast")
    (top / "pkg" / "b.py").write_text("B = 1\n")
    (top / "gone.txt").write_text("gone\n")
    (top / "run.sh").write_text("#!/bin/sh\n")
    (top / "run.sh").chmod(0o750)
    return top


def state(top: Path) -> dict[str, tuple[int, bytes]]:
    return {
        path.relative_to(top).as_posix(): (path.stat().st_mode, path.read_bytes())
        for path in top.rglob("*")
        if path.is_file()
    }


def test_all_operations_are_made_in_their_order(folder: Path) -> None:
    changed = apply_patches(
        [
            replace("a.txt", "two\r\n", "2\r\n"),
            insert("pkg/b.py", ["# first", ""], "1"),
            insert("new/deep/c.py", "C = 1\n"),
            replace("new/deep/c.py", "C = 1\n", "C = 2\n"),
            replace("run.sh", None, "#!/bin/bash\n"),
            delete("gone.txt", None),
        ],
        folder,
    )
    assert changed == ("a.txt", "gone.txt", "new/deep/c.py", "pkg/b.py", "run.sh")
    after = state(folder)
    assert after["a.txt"][1] == b"one\r\n2\r\nlast"
    assert after["pkg/b.py"][1].startswith(b"# first\n") and b"B = 1\n" in after["pkg/b.py"][1]
    assert after["new/deep/c.py"][1] == b"C = 2\n" and "gone.txt" not in after
    assert (after["run.sh"][0] & 0o777, after["run.sh"][1]) == (0o750, b"#!/bin/bash\n")
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    "wrong",
    [
        replace("a.txt", "not there\n", "x"),
        replace("../outside.txt", None, "x"),
        insert("link/file.txt", "x"),
        insert("/etc/file", "x"),
        insert("a.txt/below", "x"),
        insert("pkg", "x"),
        insert("a.txt", "x", "many"),
        delete("a.txt", ""),
        {"operation": "MOVE"},
    ],
    ids=lambda wrong: str(wrong.get("file_path")),
)
def test_where_one_does_not_fit_none_is_made(
    folder: Path, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    before = state(tmp_path)
    with pytest.raises(PatchError):
        apply_patches([insert("fine.txt", "x"), wrong], folder)
    assert state(tmp_path) == before


@pytest.mark.parametrize("breaks", range(1, 6))
def test_what_was_written_is_put_back_when_the_rest_cannot_be(
    folder: Path, breaks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, folders = state(folder), sorted(folder.rglob("*"))
    real, calls = os.replace, 0

    def failing(self: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == breaks:
            raise OSError(28, "No space left on device")
        real(self, target)
        return Path(target)

    with monkeypatch.context() as patch, pytest.raises(AgentError, match="nothing was changed"):
        patch.setattr(Path, "replace", failing)
        apply_patches(
            [
                replace("a.txt", None, "new\n"),
                insert("x/y.txt", "new\n"),
                delete("gone.txt", None),
                replace("pkg/b.py", None, "new\n"),
            ],
            folder,
        )
    assert state(folder) == before and sorted(folder.rglob("*")) == folders


def test_a_plan_may_come_whole_and_a_folder_must_be_there(folder: Path, tmp_path: Path) -> None:
    plan = {"analysis": "why", "patches_to_apply": [insert("new.txt", "x")]}
    assert apply_patches(plan, folder) == ("new.txt",)
    with pytest.raises(UsageError):
        apply_patches(plan, tmp_path / "gone")
