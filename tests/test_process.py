"""Real children, each bounded in number and time; what must be gone is looked for by its pid."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sandbox_engine.containment import run_contained
from sandbox_engine.errors import CommandMissingError
from sandbox_engine.process import (
    RUN_VARIABLE,
    Completed,
    Limits,
    Stop,
    kill_marked,
    run_tool,
    without_git_variables,
)

ENV = {"PATH": os.environ["PATH"]}
PROJECT = Path(__file__).resolve().parents[1]

DAEMON = """
import os, sys, time
def daemon(seconds=60):
    "Fork twice and leave the session; write the pid to ./daemon."
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            with open("daemon.tmp", "w") as file:
                file.write(str(os.getpid()))
            os.rename("daemon.tmp", "daemon")
            time.sleep(seconds)
        os._exit(0)
    os.wait()
    while not os.path.exists("daemon"):
        time.sleep(0.005)
"""


def run_python(source: str, cwd: Path, **options: object) -> Completed:
    argv = [sys.executable, "-I", "-c", DAEMON + source]
    return run_contained(argv, cwd=cwd, env=ENV, **options)  # type: ignore[arg-type]


def is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def wait_until(holds: Callable[[], bool], seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def pid_in(file: Path) -> int:
    assert wait_until(lambda: file.exists() and file.read_text() != "")
    return int(file.read_text())


def is_free(lock: Path) -> bool:
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@contextlib.contextmanager
def interrupt_when(holds: Callable[[], bool]) -> Iterator[None]:
    """Send this process a SIGINT once `holds`."""

    def watch() -> None:
        if wait_until(holds):
            time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)


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


@pytest.mark.parametrize("run", [run_tool, run_contained])
@pytest.mark.parametrize("program", ["no-such-program", "/no/such/program", "./text"])
def test_missing_program(run: Callable[..., Completed], program: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a program")
    with pytest.raises(CommandMissingError) as raised:
        run([program], cwd=tmp_path, env=ENV)
    assert f"`{program}`" in raised.value.problem


@pytest.mark.parametrize("run", [run_tool, run_contained])
def test_missing_directory_is_no_missing_program(
    run: Callable[..., Completed], tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        run(["true"], cwd=tmp_path / "none", env=ENV)
    assert raised.value.filename == str(tmp_path / "none")


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", -15), ("kill -9 $$", -9)]
)
def test_exit_status(script: str, code: int, tmp_path: Path) -> None:
    done = run_contained(["sh", "-c", script], cwd=tmp_path, env=ENV)
    assert (done.code, done.stop, done.survivors) == (code, None, 0)


def test_child_gets_directory_environment_and_nothing_else(tmp_path: Path) -> None:
    env = {**ENV, "EMPTY": "", "LINES": "a\nb=c", "BYTES": os.fsdecode(b"\xff\xe9")}
    source = (
        "import os; e = dict(os.environb); print(os.getcwd());"
        f"print(e.pop({RUN_VARIABLE.encode()!r})); print(sorted(e.items()))"
    )
    done = run_contained(
        [sys.executable, "-X", "utf8", "-S", "-c", source],
        cwd=tmp_path,
        env={**env, "LC_ALL": "C.UTF-8"},
        marker="slot-1",
    )
    directory, marker, variables = done.stdout.decode().splitlines()
    assert directory == str(tmp_path)
    assert marker.startswith("b'slot-1:")
    wanted = {os.fsencode(k): os.fsencode(v) for k, v in {**env, "LC_ALL": "C.UTF-8"}.items()}
    assert variables == str(sorted(wanted.items()))


def test_stdin_is_empty_or_the_input(tmp_path: Path) -> None:
    assert run_contained(["cat"], cwd=tmp_path, env=ENV).stdout == b""
    text = b"abc\n" * 50_000
    assert run_contained(["cat"], cwd=tmp_path, env=ENV, input=text).stdout == text


def test_relative_directory_is_relative_to_the_caller() -> None:
    here = os.getcwd()
    assert run_contained(["pwd"], cwd=".", env=ENV).stdout == f"{here}\n".encode()


def test_long_commands_arrive(tmp_path: Path) -> None:
    env = {**ENV, **{f"V{number}": "x" * 100_000 for number in range(8)}}
    done = run_contained(["sh", "-c", "echo ${#V0} ${#V7}"], cwd=tmp_path, env=env)
    assert done.stdout == b"100000 100000\n"


@pytest.mark.parametrize("bad", [{"A=B": "c"}, {"A": "\0"}])
def test_environments_that_no_process_can_have(bad: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        run_contained(["true"], cwd=tmp_path, env=bad)


def test_signals_start_at_their_defaults(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGUSR1})
    try:
        done = run_contained(["cat", "/proc/self/status"], cwd=tmp_path, env=ENV)
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    lines = dict(line.split(":\t", 1) for line in done.stdout.decode().splitlines())
    assert {int(lines[name], 16) for name in ("SigBlk", "SigIgn", "SigCgt")} == {0}


def test_child_has_limits_a_session_and_no_descriptor_of_ours(tmp_path: Path) -> None:
    source = """
import resource
print(sorted(int(fd) for fd in os.listdir("/proc/self/fd"))[:-1])
print(os.getsid(0) == os.getpid())
print(resource.getrlimit(resource.RLIMIT_CORE), resource.getrlimit(resource.RLIMIT_DATA))
"""
    with (tmp_path / "lock").open("w") as lock:
        os.set_inheritable(lock.fileno(), True)
        done = run_python(source, tmp_path, keep_fds=[lock.fileno()])
    assert done.stdout.decode().splitlines() == [
        "[0, 1, 2]",
        "True",
        f"(0, 0) {(4 * 1024**3, 4 * 1024**3)}",
    ]


def test_time_out_kills_the_group_and_a_daemon(tmp_path: Path) -> None:
    source = """
daemon()
child = os.fork()
if child:
    open("child", "w").write(str(child))
time.sleep(60)
"""
    done = run_python(source, tmp_path, limits=Limits(wall_s=0.6))
    assert (done.stop, done.code) == (Stop.TIME_OUT, -signal.SIGKILL)
    assert 0.5 < done.elapsed_s < 3
    assert done.survivors == 2
    assert not is_alive(pid_in(tmp_path / "child"))
    assert not is_alive(pid_in(tmp_path / "daemon"))


def test_time_out_ends_what_ignores_signals_or_is_stopped(tmp_path: Path) -> None:
    source = "trap '' TERM INT HUP; echo $$ > pid; kill -STOP $$; sleep 60"
    done = run_contained(["sh", "-c", source], cwd=tmp_path, env=ENV, limits=Limits(wall_s=0.3))
    assert done.stop is Stop.TIME_OUT
    assert not is_alive(pid_in(tmp_path / "pid"))


def test_daemon_left_after_a_normal_end_is_killed_and_counted(tmp_path: Path) -> None:
    done = run_python("daemon(); print('over'); sys.exit(5)", tmp_path)
    assert (done.code, done.stop, done.stdout, done.survivors) == (5, None, b"over\n", 1)
    assert not is_alive(pid_in(tmp_path / "daemon"))


def test_process_that_ends_a_moment_later_is_no_survivor(tmp_path: Path) -> None:
    done = run_contained(["sh", "-c", "(sleep 0.03; echo late) & exit 0"], cwd=tmp_path, env=ENV)
    assert (done.survivors, done.stdout) == (0, b"late\n")


def test_forks_without_end_are_ended(tmp_path: Path) -> None:
    source = """
def spread():
    # Each child takes its parent's place, up to a bound in time that is for the test's own safety.
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if os.fork():
            os._exit(0)
for number in range(12):
    if os.fork() == 0:
        os.setsid()
        spread()
        os._exit(0)
time.sleep(60)
"""
    done = run_python(source, tmp_path, limits=Limits(wall_s=0.5), marker=str(tmp_path))
    assert done.stop is Stop.TIME_OUT
    assert done.elapsed_s < 8
    assert kill_marked(str(tmp_path)) == 0


def test_many_processes_are_ended(tmp_path: Path) -> None:
    source = """
pids = []
for number in range(50):
    pid = os.fork()
    if pid == 0:
        os.setsid()
        time.sleep(60)
        os._exit(0)
    pids.append(pid)
print(*pids)
"""
    done = run_python(source, tmp_path)
    pids = [int(pid) for pid in done.stdout.split()]
    assert (len(pids), done.survivors) == (50, 50)
    assert not [pid for pid in pids if is_alive(pid)]


def test_number_of_processes_is_limited(tmp_path: Path) -> None:
    source = """
for number in range(40):
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
time.sleep(60)
"""
    done = run_python(source, tmp_path, limits=Limits(processes=20, wall_s=20))
    assert done.stop is Stop.PROCESSES
    assert done.elapsed_s < 10


def test_flood_is_stopped_and_only_its_ends_are_kept(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done = run_contained(
        ["sh", "-c", "echo first; exec yes"],
        cwd=tmp_path,
        env=ENV,
        limits=Limits(output_bytes=200 * 1024**2),
    )
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert done.stop is Stop.OUTPUT
    assert done.stdout.startswith(b"first\ny\n")
    assert b" bytes left out ...]\n" in done.stdout
    assert len(done.stdout) < 600 * 1024
    assert (after - before) * 1024 < 20 * 1024**2


def test_long_output_keeps_both_ends_and_counts_the_rest(tmp_path: Path) -> None:
    done = run_python("sys.stdout.write('a' * 300_000 + 'b' * 700_000 + 'end')", tmp_path)
    left_out = 1_000_003 - 2 * 256 * 1024
    head, marker, tail = done.stdout.split(b"\n")
    assert (done.stop, marker) == (None, b"[... %d bytes left out ...]" % left_out)
    assert head == b"a" * (256 * 1024)
    assert tail == b"b" * (256 * 1024 - 3) + b"end"
    whole = b"a" * (512 * 1024)
    assert run_contained(["cat"], cwd=tmp_path, env=ENV, input=whole).stdout == whole


def test_memory_of_one_process_is_limited(tmp_path: Path) -> None:
    done = run_python("bytearray(200 * 1024**2)", tmp_path, limits=Limits(memory_bytes=10**8))
    assert done.code == 1
    assert b"MemoryError" in done.stderr


def test_memory_of_all_processes_together_is_limited(tmp_path: Path) -> None:
    source = """
for number in range(4):
    if os.fork() == 0:
        held = bytearray(b"x") * (40 * 1024**2)
        time.sleep(60)
time.sleep(60)
"""
    done = run_python(source, tmp_path, limits=Limits(memory_bytes=100 * 1024**2, wall_s=30))
    assert done.stop is Stop.MEMORY
    assert done.peak_bytes > 100 * 1024**2
    assert done.elapsed_s < 10


def test_memory_that_processes_share_counts_once(tmp_path: Path) -> None:
    source = """
held = bytearray(b"x") * (60 * 1024**2)
for number in range(4):
    if os.fork() == 0:
        time.sleep(0.4)
        os._exit(0)
for number in range(4):
    os.wait()
"""
    done = run_python(source, tmp_path, limits=Limits(memory_bytes=150 * 1024**2))
    assert (done.stop, done.code) == (None, 0)
    assert 60 * 1024**2 < done.peak_bytes < 150 * 1024**2


def test_report_arrives_whole(tmp_path: Path) -> None:
    source = """
fd = int(os.environ["REPORT"])
text = b"".join(b"%09d\\n" % number for number in range(1_000_000))
while text:
    text = text[os.write(fd, text):]
"""
    parts: list[bytes] = []
    done = run_python(source, tmp_path, report_env="REPORT", on_report=parts.append)
    assert (done.code, done.stop) == (0, None)
    assert b"".join(parts) == b"".join(b"%09d\n" % number for number in range(1_000_000))


def test_report_is_limited(tmp_path: Path) -> None:
    source = """
fd = int(os.environ["REPORT"])
while True:
    os.write(fd, b"x" * 65536)
"""
    limits = Limits(report_bytes=10**6, wall_s=20)
    parts: list[bytes] = []
    done = run_python(source, tmp_path, report_env="REPORT", on_report=parts.append, limits=limits)
    assert done.stop is Stop.OUTPUT
    assert 10**6 < sum(map(len, parts)) < 2 * 10**6


def test_lost_supervisor_is_noticed_and_what_it_left_is_swept(tmp_path: Path) -> None:
    source = "daemon(); os.kill(os.getppid(), 9); time.sleep(60)"
    done = run_python(source, tmp_path)
    assert (done.stop, done.code) == (Stop.SUPERVISOR_LOST, None)
    assert done.survivors >= 1
    assert not is_alive(pid_in(tmp_path / "daemon"))


def test_stopped_supervisor_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox_engine.containment._GRACE_S", 0.5)
    source = "daemon(); os.kill(os.getppid(), 19); time.sleep(60)"
    done = run_python(source, tmp_path, limits=Limits(wall_s=0.5))
    assert done.stop is Stop.SUPERVISOR_LOST
    assert done.elapsed_s < 5
    assert not is_alive(pid_in(tmp_path / "daemon"))


def test_supervisor_that_is_told_to_end_says_so(tmp_path: Path) -> None:
    source = "daemon(); os.kill(os.getppid(), 15); time.sleep(60)"
    done = run_python(source, tmp_path)
    assert (done.stop, done.code, done.survivors) == (Stop.INTERRUPTED, -signal.SIGKILL, 1)


def test_status_cannot_be_forged(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may open anything")
    source = """
for name in os.listdir(f"/proc/{os.getppid()}/fd"):
    os.open(f"/proc/{os.getppid()}/fd/{name}", os.O_WRONLY)
"""
    assert b"PermissionError" in run_python(source, tmp_path).stderr


ENGINE = """
import fcntl, os, sys
sys.path.insert(0, {project!r})
from sandbox_engine.containment import run_contained
lock = open("lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
open("locked", "w").close()
run_contained([sys.executable, "-I", "-c", {source!r}], cwd=".", env=dict(os.environ),
              keep_fds=[lock.fileno()], marker=os.getcwd())
"""


def test_killed_engine_takes_its_run_along_and_the_lock_comes_last(tmp_path: Path) -> None:
    source = DAEMON + "daemon(); open('child', 'w').write(str(os.getpid())); time.sleep(60)"
    script = ENGINE.format(project=str(PROJECT), source=source)
    with subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path) as engine:
        pids = [pid_in(tmp_path / "child"), pid_in(tmp_path / "daemon")]
        assert all(map(is_alive, pids))
        assert not is_free(tmp_path / "lock")
        engine.kill()
        killed = time.monotonic()
        assert wait_until(lambda: is_free(tmp_path / "lock"), 2)
        assert not any(map(is_alive, pids))
        assert time.monotonic() - killed < 2


@pytest.mark.parametrize("delay_s", [0.0, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03])
def test_engine_killed_while_a_run_starts_leaves_nothing(delay_s: float, tmp_path: Path) -> None:
    source = "import os, time; open('child', 'w').write(str(os.getpid())); time.sleep(60)"
    script = ENGINE.format(project=str(PROJECT), source=source)
    with subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path) as engine:
        assert wait_until((tmp_path / "locked").exists)
        time.sleep(delay_s)
        engine.kill()
        assert wait_until(lambda: is_free(tmp_path / "lock"), 2)
    text = (tmp_path / "child").read_text() if (tmp_path / "child").exists() else ""
    assert not text or not is_alive(int(text))
    assert kill_marked(str(tmp_path)) == 0


def test_interrupt_ends_the_run_first(tmp_path: Path) -> None:
    with (
        (tmp_path / "lock").open("w") as lock,
        interrupt_when((tmp_path / "daemon").exists),
        pytest.raises(KeyboardInterrupt),
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        run_python("daemon(); time.sleep(60)", tmp_path, keep_fds=[lock.fileno()])
    assert not is_alive(pid_in(tmp_path / "daemon"))
    assert is_free(tmp_path / "lock")


def test_eight_at_a_time(tmp_path: Path) -> None:
    def run(number: int) -> tuple[Completed, bytes]:
        source = f"print({number}); os.write(int(os.environ['R']), b'{number}'); sys.exit({number})"
        parts: list[bytes] = []
        done = run_python(source, tmp_path, report_env="R", on_report=parts.append)
        return done, b"".join(parts)

    with ThreadPoolExecutor(8) as pool:
        for number, (done, report) in enumerate(pool.map(run, range(40))):
            assert (done.code, done.stop, done.survivors) == (number, None, 0)
            assert (done.stdout, report) == (f"{number}\n".encode(), str(number).encode())


def test_no_run_holds_up_another(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        long = pool.submit(run_python, "daemon(); time.sleep(1)", tmp_path)
        assert wait_until((tmp_path / "daemon").exists)
        short = run_contained(["true"], cwd=tmp_path, env=ENV)
        assert not long.done()
        assert (short.code, long.result().survivors) == (0, 1)


def test_no_descriptor_and_no_process_is_leaked(tmp_path: Path) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    run_contained(["true"], cwd=tmp_path, env=ENV)
    before = descriptors()
    for _ in range(25):
        run_contained(["true"], cwd=tmp_path, env=ENV, report_env="R", input=b"x")
        with pytest.raises(CommandMissingError):
            run_contained(["no-such-program"], cwd=tmp_path, env=ENV)
    assert descriptors() == before
    # The helper alone is there for as long as this process is.
    task = os.getpid()
    assert len(Path(f"/proc/{task}/task/{task}/children").read_text().split()) == 1


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
        assert not is_alive(child)
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
