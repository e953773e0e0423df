"""The watcher, as a process: it tells what changed, never leaves anything out, and goes quietly."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from conftest import GitBox

from sandbox_engine import Analyser, Scanner, watcher
from sandbox_engine.watch import Changes, ask
from sandbox_engine.watch.client import connected, converse
from sandbox_engine.watch.place import place_of

COMMAND = [sys.executable, "-m", "sandbox_engine", "watch"]
WORDS = Analyser("words", "1", lambda content: content.decode().split(), (".txt",))


@contextlib.contextmanager
def watching(
    box: GitBox, command: Sequence[str] = (*COMMAND, "--foreground", "--repo")
) -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen([*command, str(box.top)], stderr=subprocess.PIPE)
    try:
        wait_for(lambda: ask(box.top, None) is not None or child.poll() is not None)
        assert child.poll() is None, said(child)
        yield child
    finally:
        child.send_signal(signal.SIGCONT)
        child.kill()
        child.wait()
        assert child.stderr is not None
        child.stderr.close()


def said(child: subprocess.Popen[bytes]) -> bytes:
    """Return what a process that has ended wrote to standard error."""
    assert child.stderr is not None
    return child.stderr.read()


def wait_for(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.01)


def asked(box: GitBox, since: str | None) -> Changes:
    changes = ask(box.top, since)
    assert changes is not None
    return changes


def now(box: GitBox) -> str:
    return asked(box, None).clock


def covered(paths: frozenset[str] | None, path: str) -> bool:
    """Tell whether an answer covers a path: by itself, by a folder above it, or by being all."""
    if paths is None or path in paths:
        return True
    return any(path.startswith(one) for one in paths if one.endswith("/"))


@pytest.fixture
def tree(box: GitBox) -> GitBox:
    box.commit({"a.txt": "one", "b/c.txt": "two", "b/d/e.txt": "three", ".gitignore": "out/\n"})
    return box


def test_it_tells_what_has_changed_since_when(tree: GitBox) -> None:
    with watching(tree):
        clock = now(tree)
        assert asked(tree, clock).paths == frozenset()
        tree.write({"a.txt": "1", "b/d/e.txt": "3"})
        changes = asked(tree, clock)
        assert changes.paths == {"a.txt", "b/d/e.txt"}
        (tree.top / "b" / "c.txt").chmod(0o600)
        os.utime(tree.top / "a.txt")
        assert asked(tree, changes.clock).paths == {"a.txt", "b/c.txt"}
        # Whoever has asked before is told all of it.
        assert asked(tree, clock).paths == {"a.txt", "b/d/e.txt", "b/c.txt"}
        assert asked(tree, "another:7").paths is None


def test_what_editors_and_git_do_is_told(tree: GitBox) -> None:
    tree.git("switch", "-q", "-c", "other")
    tree.commit({"b/c.txt": "other", "new/deep/f.txt": "four"})
    tree.git("switch", "-q", "main")
    with watching(tree):
        clock = now(tree)
        (tree.top / "a.txt.tmp").write_text("saved")
        (tree.top / "a.txt.tmp").replace(tree.top / "a.txt")
        assert covered(asked(tree, clock).paths, "a.txt")
        clock = now(tree)
        tree.git("stash", "-q")
        assert covered(asked(tree, clock).paths, "a.txt")
        clock = now(tree)
        tree.git("switch", "-q", "other")
        paths = asked(tree, clock).paths
        assert covered(paths, "b/c.txt") and covered(paths, "new/deep/f.txt")
        assert not covered(paths, "b/d/e.txt")
        clock = now(tree)
        tree.write({"new/deep/f.txt": "5"})
        assert asked(tree, clock).paths == {"new/deep/f.txt"}


def test_no_file_in_a_folder_that_appears_is_missed(tree: GitBox) -> None:
    with watching(tree):
        for attempt in range(5):
            clock = now(tree)
            names = [f"n{attempt}/{one}/{two}.txt" for one in range(20) for two in range(20)]
            tree.write(dict.fromkeys(names, "x"))
            paths = asked(tree, clock).paths
            assert all(covered(paths, name) for name in names)
            clock = now(tree)
            tree.write({names[-1]: "y"})
            assert asked(tree, clock).paths == {names[-1]}


def test_folders_that_move_are_followed(tree: GitBox) -> None:
    with watching(tree):
        clock = now(tree)
        (tree.top / "b").rename(tree.top / "moved")
        paths = asked(tree, clock).paths
        assert covered(paths, "b/d/e.txt") and covered(paths, "moved/d/e.txt")
        clock = now(tree)
        tree.write({"moved/d/e.txt": "x"})
        assert asked(tree, clock).paths == {"moved/d/e.txt"}
        # Out of the tree and back: what was changed meanwhile is not missed.
        outside = tree.top.parent / "outside"
        (tree.top / "moved").rename(outside)
        clock = now(tree)
        (outside / "c.txt").write_text("elsewhere")
        assert asked(tree, clock).paths == frozenset()
        outside.rename(tree.top / "b")
        assert covered(asked(tree, clock).paths, "b/c.txt")
        clock = now(tree)
        tree.write({"b/d/e.txt": "y"})
        assert asked(tree, clock).paths == {"b/d/e.txt"}
        shutil.rmtree(tree.top / "b")
        tree.write({"b": "a file now"})
        paths = asked(tree, clock).paths
        assert paths is not None and {"b/", "b"} <= paths


def test_ignored_folders_are_not_watched_until_they_are_ignored_no_more(tree: GitBox) -> None:
    tree.write({"out/made.txt": "x"})
    with watching(tree):
        clock = now(tree)
        tree.write({"out/made.txt": "y", "out/deep/more.txt": "y"})
        assert asked(tree, clock).paths == frozenset()
        status = watcher.status(tree.top)
        assert status is not None and (status["folders"], status["ignored"]) == (3, 1)
        tree.write({".gitignore": "\n"})
        assert covered(asked(tree, clock).paths, "out/made.txt")
        clock = now(tree)
        tree.write({"out/deep/more.txt": "z"})
        assert asked(tree, clock).paths == {"out/deep/more.txt"}
        (tree.top / ".git" / "info" / "exclude").write_text("out/\n")
        clock = now(tree)
        tree.write({"out/deep/more.txt": "w"})
        assert asked(tree, clock).paths == frozenset()


def test_names_that_git_takes_for_magic_are_names(tree: GitBox) -> None:
    tree.write({":(top)x/f.txt": "x", ":out/f.txt": "x", "*/f.txt": "x", ".gitignore": ":out/\n"})
    with watching(tree):
        clock = now(tree)
        tree.write({":(top)x/f.txt": "y", ":out/f.txt": "y", "*/f.txt": "y", ":new/f.txt": "y"})
        paths = asked(tree, clock).paths
        assert paths == {":(top)x/f.txt", "*/f.txt", ":new/"}
        assert "git does not say" not in watcher.log_of(tree.top).read_text()


def test_what_is_tracked_is_watched_whatever_is_ignored(tree: GitBox) -> None:
    tree.write({"out/kept/a.txt": "x", "out/other/b.txt": "x"})
    with watching(tree):
        clock = now(tree)
        tree.git("add", "--force", "out/kept/a.txt")
        assert covered(asked(tree, clock).paths, "out/kept/a.txt")
        clock = now(tree)
        tree.write({"out/kept/a.txt": "y"})
        assert covered(asked(tree, clock).paths, "out/kept/a.txt")


def test_a_repository_in_a_folder_is_another_one(tree: GitBox) -> None:
    with watching(tree):
        inner = GitBox(tree.top / "inner")
        inner.commit({"sub/f.txt": "x"})
        clock = now(tree)
        inner.write({"sub/f.txt": "y"})
        shutil.rmtree(inner.top / ".git")
        assert covered(asked(tree, clock).paths, "inner/sub/f.txt")
        clock = now(tree)
        inner.write({"sub/f.txt": "z"})
        assert covered(asked(tree, clock).paths, "inner/sub/f.txt")


def test_a_second_name_of_a_file_is_a_doubt(tree: GitBox) -> None:
    with watching(tree):
        clock = now(tree)
        os.link(tree.top / "a.txt", tree.top / "b" / "same.txt")
        assert asked(tree, clock).paths is None


def test_more_events_than_the_kernel_keeps_are_a_doubt(tree: GitBox) -> None:
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    with watching(tree) as child:
        clock = now(tree)
        child.send_signal(signal.SIGSTOP)
        for number in range(most // 2 + 100):
            name = tree.top / f"{number % 100}.txt"
            name.write_text(str(number))
            name.chmod(0o600 + number % 2)
        (tree.top / "late").mkdir()
        started = time.monotonic()
        assert ask(tree.top, clock, timeout_s=0.3) is None
        assert time.monotonic() - started < 1
        child.send_signal(signal.SIGCONT)
        wait_for(lambda: ask(tree.top, None) is not None)
        assert asked(tree, clock).paths is None
        clock = now(tree)
        tree.write({"late/f.txt": "x"})
        assert asked(tree, clock).paths == {"late/f.txt"}


FEW = """
import sys
from sandbox_engine import git
from sandbox_engine.watch.place import place_of
from sandbox_engine.watch.server import Server

repository = git.find_repository(sys.argv[-1])
Server(place_of(repository.top), repository, most_watches=20).serve()
"""


def test_a_limit_of_watches_is_said_and_the_rest_is_looked_at(tree: GitBox) -> None:
    tree.write({f"many/{number}/f.txt": "x" for number in range(40)})
    with watching(tree, [sys.executable, "-c", FEW]):
        clock = now(tree)
        tree.write({f"many/{number}/f.txt": "y" for number in range(40)})
        paths = asked(tree, clock).paths
        assert all(covered(paths, f"many/{number}/f.txt") for number in range(40))
        assert paths is not None and "many/" not in paths
        status = watcher.status(tree.top)
        assert status is not None and status["folders"] == 20
        assert [one["folder"] for one in status["swept"]] == sorted(
            one.rstrip("/") for one in paths if one.endswith("/")
        )
        assert len(status["swept"]) == 24
        for one in status["swept"]:
            assert "the limit of watches is reached (fs.inotify.max_user_watches is " in str(one)
            assert one["remedy"].startswith("sudo sysctl fs.inotify.max_user_watches=")
        shown = subprocess.run(
            [*COMMAND, "--status", "--repo", tree.top], capture_output=True, text=True, check=True
        ).stdout
        assert shown.count("looked at each time: many/") == 5 and "and 19 more" in shown
        assert shown.count("hint: sudo sysctl fs.inotify.max_user_watches=") == 1
        log = watcher.log_of(tree.top).read_text()
        assert log.count("is not watched: the limit of watches is reached") == 5


def test_what_is_mounted_over_a_folder_is_looked_at(tree: GitBox) -> None:
    folder = tree.top / "b" / "d"
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    with watching(tree):
        clock = now(tree)
        mounted = ["mount", "-t", "tmpfs", "none", str(folder)]
        if subprocess.run(mounted, capture_output=True, check=False).returncode != 0:
            pytest.skip("no file system can be mounted here")
        try:
            assert asked(tree, clock).paths is None
            clock = now(tree)
            (folder / "new.txt").write_text("x")
            assert asked(tree, clock).paths == {"b/d/"}
            status = watcher.status(tree.top)
            assert status is not None
            assert status["swept"][0]["reason"] == "another file system is mounted there (tmpfs)"
        finally:
            subprocess.run(["umount", str(folder)], check=True)
        assert asked(tree, clock).paths is None
        clock = now(tree)
        tree.write({"b/d/e.txt": "x"})
        assert asked(tree, clock).paths == {"b/d/e.txt"}


def test_scans_ask_it_and_are_right_whatever_happens_to_it(tree: GitBox) -> None:
    with Scanner(tree.top, [WORDS]) as scanner:
        with watching(tree) as child:
            assert scanner.scan().effort.swept
            assert not scanner.scan().effort.swept
            tree.write({"a.txt": "changed", "new.txt": "new", "b/c.txt": None})
            scan = scanner.scan()
            assert not scan.effort.swept and scan.effort.looked_at <= 4
            assert {path: file.result("words") for path, file in scan.files.items()} == {
                "a.txt": ["changed"],
                "b/d/e.txt": ["three"],
                "new.txt": ["new"],
            }
            (tree.top / "b" / "d" / "e.txt").unlink()
            tree.write({"b/d/e.txt/now a folder.txt": "x"})
            scan = scanner.scan()
            assert not scan.effort.swept
            assert scan.paths == (".gitignore", "a.txt", "b/d/e.txt/now a folder.txt", "new.txt")
            child.send_signal(signal.SIGSTOP)
            tree.write({"a.txt": "stalled"})
            scan = scanner.scan()
            assert scan.effort.swept and scan.files["a.txt"].result("words") == ["stalled"]
            # Who does not answer is not asked again at once.
            assert scanner.scan().effort.elapsed_s < 0.5
        tree.write({"a.txt": "killed"})
        assert scanner.scan().files["a.txt"].result("words") == ["killed"]


def test_what_changes_is_analysed_before_anybody_asks(tree: GitBox) -> None:
    with watching(tree):
        wait_for(lambda: (watcher.status(tree.top) or {})["refreshed"])
        tree.write({"new.py": "x = 1\n"})

        def is_known() -> bool:
            with Scanner(tree.top, ["metrics"]) as scanner:
                return scanner.scan().effort.analysed == 0

        time.sleep(1)
        wait_for(lambda: (watcher.status(tree.top) or {})["refreshed"])
        wait_for(is_known)


def test_one_process_watches_and_another_one_is_told(tree: GitBox) -> None:
    with watching(tree):
        done = subprocess.run(
            [*COMMAND, "--repo", tree.top / "b"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 3
        assert f"`{tree.top}` is watched already" in done.stderr


def test_after_a_kill_the_next_one_starts(tree: GitBox) -> None:
    clocks = set()
    for _ in range(3):
        with watching(tree):
            clocks.add(now(tree))
        assert ask(tree.top, None) is None
    assert len({clock.partition(":")[0] for clock in clocks}) == 3


def test_it_goes_quietly_when_the_work_tree_does(tree: GitBox) -> None:
    with watching(tree) as child:
        tree.top.rename(tree.top.with_name("renamed"))
        assert child.wait(timeout=10) == 0
        assert said(child) == b""
    assert not place_of(tree.top).socket.exists()
    moved = tree.top.with_name("renamed")
    tree.top = moved
    with watching(tree) as child:
        shutil.rmtree(moved)
        assert child.wait(timeout=10) == 0


def test_only_its_owner_can_reach_it_and_nobody_can_block_it(tree: GitBox) -> None:
    place = place_of(tree.top)
    with watching(tree):
        assert stat.S_IMODE(place.folder.stat().st_mode) == 0o700
        assert stat.S_IMODE(place.socket.stat().st_mode) == 0o600
        silent = [connected(place, 1) for _ in range(5)]
        for text in (b"nonsense\n", b"[]\n", b"{" * 70_000, b'{"since"'):
            with connected(place, 1) as rude, contextlib.suppress(OSError):
                rude.sendall(text)
        half = connected(place, 1)
        half.sendall(json.dumps({"since": None}).encode() + b"\n")
        half.shutdown(socket.SHUT_RDWR)
        half.close()
        assert asked(tree, None).paths is None
        for connection in silent:
            connection.close()


def test_a_long_path_is_no_obstacle(tmp_path: Path) -> None:
    box = GitBox(tmp_path / ("d" * 120) / ("e" * 120))
    box.commit({"a.txt": "x"})
    with watching(box):
        clock = now(box)
        odd = os.fsdecode(b"odd \xff\n name.txt")
        (box.top / odd).write_text("x")
        assert asked(box, clock).paths == {odd}


def test_daemon_status_and_stop(tree: GitBox) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [*COMMAND, *arguments], cwd=tree.top / "b", capture_output=True, text=True, check=False
        )
        assert done.stderr == ""
        return done.returncode, done.stdout

    assert run("--status") == (1, "not watched\n")
    assert run("--stop") == (0, "not watched\n")
    assert run("--daemon") == (0, "watching\n")
    try:
        assert run("--daemon") == (0, "watched already\n")
        code, shown = run("--status")
        assert code == 0 and f"watching  {tree.top}" in shown
        code, shown = run("--status", "--output", "json")
        assert json.loads(shown)["folders"] == 3
        os.kill(json.loads(shown)["pid"], 0)
    finally:
        assert run("--stop") == (0, "stopped\n")
    assert run("--status", "--output", "json") == (1, "null\n")


def test_an_interrupt_ends_it_and_leaves_no_socket(tree: GitBox) -> None:
    with watching(tree) as child:
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=10) == 130
        assert said(child) == b"interrupted; nothing was changed\n"
    assert not place_of(tree.top).socket.exists()
    assert converse(place_of(tree.top), {"status": True}) is None


def test_a_linked_work_tree_has_its_own(tree: GitBox) -> None:
    linked = tree.top.parent / "linked"
    tree.git("worktree", "add", "-q", str(linked), "-b", "side")
    other = GitBox.__new__(GitBox)
    other.top = linked
    with watching(tree), watching(other):
        clocks = now(tree), now(other)
        other.write({"a.txt": "x"})
        assert asked(tree, clocks[0]).paths == frozenset()
        assert asked(other, clocks[1]).paths == {"a.txt"}
        clock = now(other)
        other.git("commit", "-qam", "x")
        assert asked(other, clock).paths == frozenset()
