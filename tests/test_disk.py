from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sandbox_engine import disk


def test_a_file_is_replaced_whole_and_only_when_it_changed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    disk.write_whole(path, b"one", durable=True)
    before = path.stat().st_ino
    disk.write_if_changed(path, b"one")
    assert path.stat().st_ino == before
    disk.write_if_changed(path, b"two")
    assert path.read_bytes() == b"two"
    assert not list(tmp_path.glob("file.*"))


def test_removal_stays_inside_whatever_lies_there(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep").write_text("keep")
    folder = tmp_path / "folder"
    (folder / "locked" / "deep").mkdir(parents=True)
    (folder / "locked" / "deep" / "file").write_text("x")
    (folder / "link").symlink_to(outside)
    (folder / "locked" / "link").symlink_to(outside)
    os.mkfifo(folder / "pipe")
    (folder / "locked" / "deep").chmod(0)
    (folder / "locked").chmod(0)
    disk.remove_tree(folder)
    assert not folder.exists()
    assert (outside / "keep").read_text() == "keep"
    assert oct(outside.stat().st_mode & 0o777) != "0o0"


def test_folders_deeper_than_a_path_is_long_are_removed(tmp_path: Path) -> None:
    script = "import os\nfor _ in range(1500):\n    os.mkdir('deepdeep'); os.chdir('deepdeep')\n"
    folder = tmp_path / "folder"
    folder.mkdir()
    subprocess.run([sys.executable, "-c", script], cwd=folder, check=True)
    disk.remove_tree(folder)
    assert not folder.exists()


@pytest.mark.parametrize("kind", ["missing", "file", "link"])
def test_removal_takes_what_is_no_folder_too(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "path"
    if kind == "file":
        path.write_text("x")
    if kind == "link":
        path.symlink_to(tmp_path)
    disk.remove_tree(path)
    assert not os.path.lexists(path)
    assert tmp_path.exists()


def test_size_counts_what_is_on_disk(tmp_path: Path) -> None:
    assert disk.size_of(tmp_path / "gone") == 0
    (tmp_path / "a").write_bytes(b"x" * 10_000)
    assert disk.size_of(tmp_path) >= 10_000


def test_threads_may_write_the_same_file(tmp_path: Path) -> None:
    failures: list[Exception] = []

    def write(content: bytes) -> None:
        try:
            for _ in range(200):
                disk.write_whole(tmp_path / "file", content)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(bytes([65 + n]) * 9,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert not list(tmp_path.glob("*.new"))
