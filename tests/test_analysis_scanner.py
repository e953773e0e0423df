"""Scans: what each file holds now, at the cost of what changed."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import GitBox

from sandbox_engine import Analyser, Scan, Scanner, Unknown, UsageError, analyse
from sandbox_engine.analysis.blobs import blob_of

SETTLE_S = 0.05
"""After so long an equal stamp proves equal content."""


# A lambda is run in this process, which is quick; others are run by workers.
WORDS = Analyser(
    "words", "1", lambda content: content.decode("utf-8", "replace").split(), (".txt", ".py")
)


def told(scan: Scan) -> dict[str, object]:
    """Return all that a scan says of files, without what it cost."""
    return {path: (file.blob, file.result("words")) for path, file in scan.files.items()}


@contextlib.contextmanager
def scanner(box: GitBox | Path, home: Path, **options: object) -> Iterator[Scanner]:
    top = box.top if isinstance(box, GitBox) else box
    with Scanner(top, [WORDS], cache_home=home, **options) as one:  # type: ignore[arg-type]
        yield one


def fresh(box: GitBox | Path, home: Path) -> dict[str, object]:
    """Return what a scan says that has never seen anything."""
    with scanner(box, home) as one:
        return told(one.scan())


def test_a_scan_tells_what_every_file_holds(box: GitBox, tmp_path: Path) -> None:
    box.commit({"a.txt": "one", "b/c.txt": "two", "b/d.bin": "x", ".gitignore": "*.log\n"})
    box.write({"new.txt": "three", "noise.log": "x"})
    os.symlink("a.txt", box.top / "link.txt")
    with scanner(box, tmp_path / "home") as one:
        scan = one.scan()
    assert told(scan) == {
        "a.txt": (blob_of(b"one").hex(), ["one"]),
        "b/c.txt": (blob_of(b"two").hex(), ["two"]),
        "new.txt": (blob_of(b"three").hex(), ["three"]),
    }
    assert scan.paths == (".gitignore", "a.txt", "b/c.txt", "b/d.bin", "link.txt", "new.txt")
    assert scan.root == box.top.resolve()
    assert scan.effort.swept and scan.effort.analysed == 3 and scan.trouble == ""
    assert scan.files["a.txt"].blob == box.git("rev-parse", "HEAD:a.txt")


def test_nothing_is_read_or_analysed_twice(box: GitBox, tmp_path: Path) -> None:
    box.commit({f"{number}.txt": f"file {number}" for number in range(30)})
    time.sleep(SETTLE_S)
    with scanner(box, tmp_path / "home") as one:
        assert one.scan().effort.analysed == 30
        again = one.scan()
        assert (again.effort.read, again.effort.analysed) == (0, 0)
        box.write({"3.txt": "other"})
        changed = one.scan()
        assert (changed.effort.read, changed.effort.analysed) == (1, 1)
        assert changed.files["3.txt"].result("words") == ["other"]
        # What a scan has told stays as it was told.
        assert again.files["3.txt"].result("words") == ["file", "3"]
        time.sleep(SETTLE_S)
        one.scan()
    with scanner(box, tmp_path / "home") as one:
        later = one.scan()
        assert (later.effort.read, later.effort.analysed) == (0, 0)
        assert later.files["3.txt"].result("words") == ["other"]


def test_branches_work_trees_and_clones_share_results(box: GitBox, tmp_path: Path) -> None:
    box.commit({f"{number}.txt": f"file {number}" for number in range(30)})
    with scanner(box, tmp_path / "home") as one:
        assert one.scan().effort.analysed == 30
        box.git("switch", "-q", "-c", "other")
        box.commit({"1.txt": "changed"})
        assert one.scan().effort.analysed == 1
        box.git("switch", "-q", "main")
        back = one.scan()
        assert back.effort.analysed == 0
        assert back.files["1.txt"].result("words") == ["file", "1"]
    box.git("worktree", "add", "-q", str(tmp_path / "linked"), "other")
    box.git("clone", "-q", ".", str(tmp_path / "clone"))
    # Git has written each index a while after the files: it is clean, not racy.
    time.sleep(SETTLE_S)
    for folder in ("linked", "clone"):
        subprocess.run(["git", "update-index", "--refresh"], cwd=tmp_path / folder, check=True)
        index = subprocess.run(
            ["git", "rev-parse", "--path-format=absolute", "--git-path", "index"],
            cwd=tmp_path / folder,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        os.utime(index)
        with scanner(tmp_path / folder, tmp_path / "home") as one:
            effort = one.scan().effort
        assert (effort.read, effort.analysed) == (0, 0)


def test_a_new_version_forgets_its_own_results_only(box: GitBox, tmp_path: Path) -> None:
    box.commit({"a.txt": "one"})
    other = Analyser("length", "1", lambda content: len(content), (".txt",))
    home = tmp_path / "home"
    with Scanner(box.top, [WORDS, other], cache_home=home) as one:
        assert one.scan().effort.analysed == 1
    newer = Analyser("words", "2", lambda content: "newer", (".txt",))
    with Scanner(box.top, [newer, other], cache_home=home) as one:
        scan = one.scan()
    assert scan.files["a.txt"].result("words") == "newer"
    assert scan.files["a.txt"].result("length") == 3
    assert scan.effort.analysed == 1
    with Scanner(box.top, [WORDS, other], cache_home=home) as one:
        scan = one.scan()
    assert scan.effort.analysed == 0
    assert scan.files["a.txt"].result("words") == ["one"]


def test_the_same_size_and_the_same_time_never_fool_it(box: GitBox, tmp_path: Path) -> None:
    """A program that puts the time back cannot put back that of the change of status."""
    path = box.top / "a.txt"
    box.commit({"a.txt": "0000", **{f"{number}.txt": "x" for number in range(20)}})
    with scanner(box, tmp_path / "home") as one:
        for number in range(1, 60):
            # Now and then in the same tick of the file system's clock as the scan before.
            if number % 3 == 0:
                time.sleep(random.Random(number).choice((0.0, 0.003, SETTLE_S)))
            before = path.stat()
            path.write_bytes(b"%04d" % number)
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
            assert path.stat().st_mtime_ns == before.st_mtime_ns
            assert one.scan().files["a.txt"].result("words") == [f"{number:04d}"]


def know(home: Path, content: bytes, analyser: Analyser) -> None:
    """Have a content analysed, so that whoever takes a file for it is not found out by chance."""
    folder = home.with_name(f"{home.name}.known")
    folder.mkdir()
    (folder / "known.txt").write_bytes(content)
    with Scanner(folder, [analyser], cache_home=home) as one:
        one.scan()


def test_git_is_not_believed_where_it_was_fooled(box: GitBox, tmp_path: Path) -> None:
    """The index is as old as the files: they may have changed since git read them."""
    names = [f"{number}.txt" for number in range(20)]
    box.commit(dict.fromkeys(names, "old"))
    know(tmp_path / "cache", b"old", WORDS)
    times = {name: (box.top / name).stat() for name in names}
    newest_ns = max(status.st_ctime_ns for status in times.values())
    os.utime(box.top / ".git" / "index", ns=(newest_ns, newest_ns))
    with scanner(box, tmp_path / "cache") as one:
        assert one.scan().effort.read == 20


def test_git_is_believed_where_it_cannot_be_fooled(box: GitBox, tmp_path: Path) -> None:
    box.commit(dict.fromkeys([f"{number}.txt" for number in range(20)], "old"))
    know(tmp_path / "cache", b"old", WORDS)
    time.sleep(SETTLE_S)
    os.utime(box.top / ".git" / "index")
    with scanner(box, tmp_path / "cache") as one:
        assert one.scan().effort.read == 0


CONVERTED = "x = 1\r\n"


def test_what_git_converts_is_analysed_as_it_is_on_disk(box: GitBox, tmp_path: Path) -> None:
    length = Analyser("length", "1", lambda content: len(content), (".txt",))
    box.git("config", "core.autocrlf", "true")
    box.commit({f"{number}.txt": CONVERTED for number in range(20)})
    time.sleep(SETTLE_S)
    os.utime(box.top / ".git" / "index")
    for setting in ("true", "false"):
        # Once git converts no more, its index still has what it converted.
        box.git("config", "core.autocrlf", setting)
        know(tmp_path / setting, CONVERTED.replace("\r", "").encode(), length)
        with Scanner(box.top, [length], cache_home=tmp_path / setting) as one:
            found = one.scan().files
        assert {file.result("length") for file in found.values()} == {len(CONVERTED)}
        assert {file.blob for file in found.values()} == {blob_of(CONVERTED.encode()).hex()}


def test_what_a_filter_makes_is_not_taken_for_what_is_on_disk(box: GitBox, tmp_path: Path) -> None:
    """Not even if it is of the same size."""
    box.git("config", "filter.rot.clean", "tr a-z n-za-m")
    box.git("config", "filter.rot.smudge", "tr a-z n-za-m")
    box.commit({".gitattributes": "*.txt filter=rot\n", **{f"{n}.txt": "uryyb" for n in range(20)}})
    assert box.git("cat-file", "-p", "HEAD:1.txt") == "hello"
    know(tmp_path / "cache", b"hello", WORDS)
    time.sleep(SETTLE_S)
    os.utime(box.top / ".git" / "index")
    with scanner(box, tmp_path / "cache") as one:
        assert one.scan().files["1.txt"].result("words") == ["uryyb"]


def test_rules_that_change_are_followed(box: GitBox, tmp_path: Path) -> None:
    box.commit({"a.txt": "one", "b.txt": "two"})
    box.write({"c.txt": "three"})
    with scanner(box, tmp_path / "home") as one:
        assert set(one.scan().files) == {"a.txt", "b.txt", "c.txt"}
        box.write({".gitignore": "b.txt\nc.txt\n"})
        assert set(one.scan().files) == {"a.txt", "b.txt"}
        box.git("rm", "-q", "--cached", "b.txt")
        assert set(one.scan().files) == {"a.txt"}
        box.git("add", "--force", "c.txt")
        assert set(one.scan().files) == {"a.txt", "c.txt"}
        (box.top / ".git" / "info" / "exclude").write_text("d.txt\n")
        box.write({"d.txt": "four", ".gitignore": None})
        assert set(one.scan().files) == {"a.txt", "b.txt", "c.txt"}


def test_nested_repositories_and_what_lies_behind_links_are_not_scanned(
    box: GitBox, tmp_path: Path
) -> None:
    box.commit({"a.txt": "one", "folder/b.txt": "two"})
    inner = GitBox(box.top / "inner")
    inner.commit({"c.txt": "three"})
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "b.txt").write_text("not ours")
    with scanner(box, tmp_path / "home") as one:
        assert set(one.scan().files) == {"a.txt", "folder/b.txt"}
        (box.top / "folder" / "b.txt").unlink()
        (box.top / "folder").rmdir()
        os.symlink(elsewhere, box.top / "folder")
        scan = one.scan()
    assert set(scan.files) == {"a.txt"}


def test_a_folder_that_is_no_repository_is_walked(tmp_path: Path) -> None:
    top = tmp_path / "plain"
    for name in (
        *("a.txt", "b/c.txt", ".hidden/d.txt", "__pycache__/e.txt", "node_modules/f.txt"),
        *("venv/pyvenv.cfg", "venv/g.txt", "b/.h.txt"),
    ):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(name)
    with scanner(top, tmp_path / "home") as one:
        assert set(one.scan().files) == {"a.txt", "b/c.txt", "b/.h.txt"}
        time.sleep(SETTLE_S)
        one.scan()
        assert one.scan().effort.read == 0
        (top / "b" / "c.txt").unlink()
        assert set(one.scan().files) == {"a.txt", "b/.h.txt"}


def test_a_folder_of_a_repository_is_scanned_alone(box: GitBox, tmp_path: Path) -> None:
    box.commit({"a.txt": "one", "sub/b.txt": "two", "sub/deep/c.txt": "three"})
    with scanner(box.top / "sub", tmp_path / "home") as one:
        assert set(one.scan().files) == {"b.txt", "deep/c.txt"}
        # A rule from above counts below.
        box.write({".gitignore": "new.txt\n", "sub/new.txt": "four"})
        assert set(one.scan().files) == {"b.txt", "deep/c.txt"}
        box.write({".gitignore": "\n"})
        assert set(one.scan().files) == {"b.txt", "deep/c.txt", "new.txt"}


def test_a_file_that_may_not_be_read_is_unknown_until_it_may() -> None:
    with tempfile.TemporaryDirectory() as name, as_nobody(name):
        (Path(name) / "a.txt").write_text("one")
        (Path(name) / "a.txt").chmod(0)
        with scanner(Path(name), Path(name) / ".home") as one:
            reason = "cannot be read: Permission denied"
            assert one.scan().files["a.txt"].result("words") == Unknown(reason)
            (Path(name) / "a.txt").chmod(0o600)
            assert one.scan().files["a.txt"].result("words") == ["one"]


@contextlib.contextmanager
def as_nobody(folder: str) -> Iterator[None]:
    """Own `folder` and have no more rights than its owner: root may read anything."""
    if os.getuid() != 0:
        yield
        return
    os.chown(folder, 65534, -1)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_huge_file_is_unknown_and_not_read(box: GitBox, tmp_path: Path) -> None:
    box.write({"a.txt": "one", "b.py": "x = 1\n" * 400_000})
    with (box.top / "huge.txt").open("wb") as file:
        file.truncate(65 * 2**20)
    with Scanner(box.top, [WORDS, "metrics"], cache_home=tmp_path / "home") as one:
        found = one.scan().files
    assert found["huge.txt"].result("words") == Unknown("larger than 64 MiB")
    assert found["huge.txt"].blob == ""
    assert found["b.py"].result("metrics") == Unknown("larger than 2 MiB (2.3 MiB)")
    assert len(found["b.py"].result("words")) == 1_200_000


def test_files_that_change_while_they_are_scanned_are_told_right_in_the_end(
    box: GitBox, tmp_path: Path
) -> None:
    names = [f"{number}.txt" for number in range(40)]
    box.commit(dict.fromkeys(names, "0"))
    stop = threading.Event()
    written = dict.fromkeys(names, "0")

    def edit() -> None:
        numbers = random.Random(7)
        while not stop.is_set():
            name = numbers.choice(names)
            written[name] = str(numbers.randrange(10))
            (box.top / name).write_text(written[name])

    thread = threading.Thread(target=edit)
    with scanner(box, tmp_path / "home") as one:
        thread.start()
        try:
            for _ in range(30):
                one.scan()
        finally:
            stop.set()
            thread.join()
        found = one.scan().files
    assert {name: found[name].result("words") for name in names} == {
        name: [text] for name, text in written.items()
    }


def test_an_analysis_that_crashes_is_unknown_and_not_kept(
    box: GitBox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helpers = tmp_path / "helpers"
    helpers.mkdir()
    (helpers / "fragile.py").write_text(
        "import os, pathlib\n\n\n"
        "def measure(content):\n"
        f"    if pathlib.Path({str(tmp_path / 'broken')!r}).exists():\n"
        "        os.abort()\n"
        "    return len(content)\n"
    )
    monkeypatch.syspath_prepend(str(helpers))
    fragile = Analyser("fragile", "1", "fragile:measure", (".txt",))
    (tmp_path / "broken").touch()
    box.commit({"a.txt": "one"})
    # A file of the future is never settled: it is read in each scan.
    os.utime(box.top / "a.txt", (time.time() + 3600,) * 2)
    with Scanner(box.top, [fragile], cache_home=tmp_path / "home") as one:
        crashed = one.scan().files["a.txt"].result("fragile")
        assert isinstance(crashed, Unknown) and "crashed" in crashed.reason
        # It is not tried again in each scan, not even if the file has to be read, but after a while
        # it is.
        again = one.scan()
        assert (again.effort.read, again.effort.analysed) == (1, 0)
        assert again.files["a.txt"].result("fragile") == crashed
        monkeypatch.setattr("sandbox_engine.analysis.scanner._AGAIN_S", -1.0)
        box.write({"a.txt": "two"})
        time.sleep(SETTLE_S)
        assert isinstance(one.scan().files["a.txt"].result("fragile"), Unknown)
        (tmp_path / "broken").unlink()
        assert one.scan().files["a.txt"].result("fragile") == 3
    with Scanner(box.top, [fragile], cache_home=tmp_path / "home") as one:
        assert one.scan().files["a.txt"].result("fragile") == 3


def test_an_interrupted_scan_is_taken_up(box: GitBox, tmp_path: Path) -> None:
    names = [f"{number}.txt" for number in range(60)]
    box.commit({name: name for name in names})

    def interrupt(done: int, of: int) -> None:
        assert of == len(names)
        if done == 20:
            raise KeyboardInterrupt

    with scanner(box, tmp_path / "home") as one:
        with pytest.raises(KeyboardInterrupt):
            one.scan(interrupt)
        assert told(one.scan()) == fresh(box, tmp_path / "other")


def test_what_an_interrupted_scan_has_learned_is_told_by_the_next(
    box: GitBox, tmp_path: Path
) -> None:
    box.commit({"a.txt": "one", "b.txt": "two"})
    time.sleep(SETTLE_S)

    def interrupt(done: int, of: int) -> None:
        raise KeyboardInterrupt

    with scanner(box, tmp_path / "home") as one:
        one.scan()
        box.write({"a.txt": "changed"})
        time.sleep(SETTLE_S)
        with pytest.raises(KeyboardInterrupt):
            one.scan(interrupt)
        assert one.scan().files["a.txt"].result("words") == ["changed"]


def test_several_processes_scan_with_one_cache(box: GitBox, tmp_path: Path) -> None:
    box.commit({f"{number}.py": f"def f{number}(): ...\n" for number in range(60)})
    code = (
        "import sys; from pathlib import Path; from sandbox_engine import Scanner\n"
        "with Scanner(sys.argv[1], cache_home=Path(sys.argv[2]), most_workers=1) as one:\n"
        "    scan = one.scan()\n"
        "assert not scan.trouble, scan.trouble\n"
        "print(sorted(file.result('skeleton')['functions'][0]['name'] "
        "for file in scan.files.values()))\n"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(box.top), str(tmp_path / "home")],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    said = {child.communicate(timeout=120)[0] for child in children}
    assert said == {f"{sorted(f'f{number}' for number in range(60))}\n"}


def test_a_cache_that_cannot_be_written_costs_time_alone(box: GitBox, tmp_path: Path) -> None:
    box.commit({"a.txt": "one"})
    (tmp_path / "file").write_text("not a folder")
    with scanner(box, tmp_path / "file") as one:
        scan = one.scan()
    assert scan.files["a.txt"].result("words") == ["one"]
    assert "analyses.sqlite3` cannot be used" in scan.trouble


def test_what_cannot_be_scanned_is_said(box: GitBox, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a folder"):
        analyse(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="but in what git keeps"):
        analyse(box.top / ".git")
    with pytest.raises(UsageError, match="no analyser called `size`"):
        analyse(box.top, ["size"])


def change(box: GitBox, numbers: random.Random) -> None:
    """Do one of the things to the work tree that people, editors and git do."""
    files = sorted(path for path in box.top.rglob("*.txt") if path.is_file())
    path = numbers.choice(files) if files else box.top / "a.txt"
    what = numbers.randrange(9)
    text = str(numbers.randrange(10**6)).zfill(6)
    if what <= 1 or not files:
        path = box.top / numbers.choice(("", "x", "x/y", "z")) / f"{numbers.randrange(20)}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    elif what == 2:
        before = path.stat()
        path.write_text(text)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif what == 3:
        path.rename(path.with_name(f"{numbers.randrange(20)}.txt"))
    elif what == 4:
        path.unlink()
    elif what == 5:
        path.chmod(numbers.choice((0o644, 0o755)))
    elif what == 6:
        other = numbers.choice(files)
        if other != path:
            hold = path.with_suffix(".hold")
            path.rename(hold)
            other.rename(path)
            hold.rename(other)
    elif what == 7:
        temporary = path.with_suffix(".new")
        temporary.write_text(text)
        temporary.replace(path)
    else:
        os.utime(path)


def test_a_scan_equals_a_cold_one_after_any_edits(box: GitBox, tmp_path: Path) -> None:
    numbers = random.Random(20)
    box.commit({f"x/{number}.txt": "0" for number in range(12)})
    with scanner(box, tmp_path / "home") as one:
        for round in range(60):
            for _ in range(numbers.randrange(1, 4)):
                change(box, numbers)
            if round % 15 == 14:
                box.git("add", "--all")
                box.git("commit", "-q", "--allow-empty", "-m", str(round))
            assert told(one.scan()) == fresh(box, tmp_path / f"home{round}")
