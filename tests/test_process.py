"""Trusted programs, and what the sweep of marked processes finds."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
from pathlib import Path

import pytest
from children import interrupt_when, is_alive, pid_in, wait_until

from sandbox_engine.errors import CommandMissingError
from sandbox_engine.process import (
    RUN_VARIABLE,
    Stop,
    is_at_work,
    kill_marked,
    open_tool,
    run_tool,
    without_git_variables,
)

ENV = {"PATH": os.environ["PATH"]}


def test_run_tool_returns_output_and_status(tmp_path: Path) -> None:
    done = run_tool(["sh", "-c", "pwd; cat; echo no >&2; exit 3"], cwd=tmp_path, input=b"in\n")
    assert (done.code, done.stop) == (3, None)
    assert done.stdout == f"{tmp_path}\nin\n".encode()
    assert done.stderr == b"no\n"


def test_run_tool_takes_more_than_a_pipe_holds() -> None:
    text = b"0123456789" * 100_000
    assert run_tool(["cat"], input=text).stdout == text


def test_run_tool_kills_the_group_on_a_time_out(tmp_path: Path) -> None:
    done = run_tool(
        ["sh", "-c", "echo begun; sleep 60 & echo $! > pid; wait"], cwd=tmp_path, timeout_s=0.3
    )
    assert (done.stop, done.code, done.stdout) == (Stop.TIME_OUT, -signal.SIGKILL, b"begun\n")
    assert done.elapsed_s < 5
    pid = pid_in(tmp_path / "pid")
    assert wait_until(lambda: not is_alive(pid))


def test_run_tool_kills_the_group_on_an_interrupt(tmp_path: Path) -> None:
    with interrupt_when((tmp_path / "pid").exists), pytest.raises(KeyboardInterrupt):
        run_tool(["sh", "-c", "sleep 60 & echo $! > pid; wait"], cwd=tmp_path)
    pid = pid_in(tmp_path / "pid")
    assert wait_until(lambda: not is_alive(pid))


def test_run_tool_gives_no_git_variable_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_INDEX_FILE", "/nowhere/index")
    assert b"GIT_INDEX_FILE" not in run_tool(["env"]).stdout
    assert b"GIT_INDEX_FILE" in run_tool(["env"], env=os.environ).stdout


def test_run_tool_keeps_a_lock_as_long_as_the_program(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = run_tool(["readlink", f"/proc/self/fd/{file.fileno()}"], keep_fds=[file.fileno()])
    assert done.stdout == f"{lock}\n".encode()


def test_without_git_variables_drops_all_that_git_names() -> None:
    names = run_tool(["git", "rev-parse", "--local-env-vars"]).stdout.decode().split()
    env = {**dict.fromkeys(names, "x"), "GIT_AUTHOR_NAME": "x", "HOME": "/", "GITHUB": "x"}
    assert without_git_variables(env) == {"HOME": "/", "GITHUB": "x"}
    assert "GIT_DIR" in env


@pytest.mark.parametrize("program", ["no-such-program", "/no/such/program", "./text"])
def test_missing_program(program: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a program")
    with pytest.raises(CommandMissingError) as raised:
        run_tool([program], cwd=tmp_path, env=ENV)
    assert f"`{program}`" in raised.value.problem


def test_missing_directory_is_no_missing_program(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        run_tool(["true"], cwd=tmp_path / "none", env=ENV)
    assert raised.value.filename == str(tmp_path / "none")


def test_a_tool_is_spoken_to_line_by_line() -> None:
    with open_tool(["sh", "-c", "read a; echo $a $a; echo no >&2; exit 4"], env=ENV) as tool:
        tool.say("word\n")
        assert tool.hear() == "word word"
        assert tool.hear() == ""
        # What has ended is met by the next question, not by the telling.
        tool.say("x" * 200_000)
        assert (tool.end(), tool.complaint()) == (4, b"no\n")
    with pytest.raises(CommandMissingError, match="no-such-program"):
        open_tool(["no-such-program"], env=ENV).__enter__()
    with (
        pytest.raises(ZeroDivisionError),
        open_tool(["cat"], env=ENV) as tool,
    ):
        raise ZeroDivisionError
    # Its input has ended, so it has too.
    assert tool.end() == 0


def test_a_program_is_found_at_work_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to("in")
    with subprocess.Popen(["sleep", "60"], cwd=tmp_path / "in") as child:
        assert wait_until(lambda: is_at_work("sleep", tmp_path))
        assert is_at_work("sleep", tmp_path / "link")
        assert not is_at_work("sleep", tmp_path / "home")
        assert not is_at_work("slee", tmp_path)
        child.kill()
    assert not is_at_work("sleep", tmp_path)


def test_sweep_finds_a_slot_and_not_its_neighbour(tmp_path: Path) -> None:
    def sleeper(marker: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["sleep", "60"], env={**ENV, RUN_VARIABLE: marker})

    slot = str(tmp_path)
    mine, other = sleeper(f"{slot}1:a"), sleeper(f"{slot}12:a")
    bare = subprocess.Popen(
        ["sh", "-c", "env -i sleep 60; true"], env={**ENV, RUN_VARIABLE: f"{slot}1:b"}
    )
    try:
        assert wait_until(lambda: b"sleep" in Path(f"/proc/{mine.pid}/cmdline").read_bytes())
        assert wait_until(lambda: b"sleep" in Path(f"/proc/{other.pid}/cmdline").read_bytes())
        assert wait_until(lambda: child_of(bare.pid) != 0)
        child = child_of(bare.pid)
        assert kill_marked(f"{slot}1") == 3
        assert (mine.wait(), bare.wait()) == (-signal.SIGKILL, -signal.SIGKILL)
        assert wait_until(lambda: not is_alive(child))
        assert other.poll() is None
        assert kill_marked(f"{slot}1") == 0
        assert kill_marked(f"{slot}12:a") == 1
    finally:
        for process in (mine, other, bare):
            process.kill()
            process.wait()


def child_of(pid: int) -> int:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                    return int(entry.name)
    return 0
