"""Real children, each bounded in number and time; what must be gone is looked for by its pid."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from children import interrupt_when, is_alive, is_free, pid_in, wait_until

from sandbox_engine.containment import Confinement, Keeper, open_keeper, run_contained
from sandbox_engine.errors import CommandMissingError, SandboxError
from sandbox_engine.keeper import wire
from sandbox_engine.process import RUN_VARIABLE, Completed, Limits, Stop, kill_marked

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


def children_of(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


@pytest.mark.parametrize("program", ["no-such-program", "/no/such/program", "./text"])
def test_missing_program(program: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a program")
    with pytest.raises(CommandMissingError) as raised:
        run_contained([program], cwd=tmp_path, env=ENV)
    assert f"`{program}`" in raised.value.problem


def test_missing_directory_is_no_missing_program(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        run_contained(["true"], cwd=tmp_path / "none", env=ENV)
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
import re
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
    assert sum(map(len, parts)) == 10**6


def test_lost_supervisor_is_noticed_and_what_it_left_is_swept(tmp_path: Path) -> None:
    source = "daemon(); os.kill(os.getppid(), 9); time.sleep(60)"
    done = run_python(source, tmp_path)
    assert (done.stop, done.code) == (Stop.SUPERVISOR_LOST, None)
    assert done.survivors >= 1
    assert not is_alive(pid_in(tmp_path / "daemon"))


@pytest.fixture
def impatient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Let a keeper be given up soon; yield a command that stops the one that runs it."""
    monkeypatch.setattr("sandbox_engine.containment._GRACE_S", 0.5)
    yield "echo $PPID > keeper; kill -STOP $PPID"
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid_in(tmp_path / "keeper"), signal.SIGKILL)


def test_stopped_supervisor_is_given_up(tmp_path: Path, impatient: str) -> None:
    stop = impatient.replace("$PPID", "$1")
    source = f"""
daemon()
import subprocess
subprocess.Popen(["sh", "-c", {stop!r}, "sh", str(os.getppid())])
time.sleep(60)
"""
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
    assert len(children_of(os.getpid())) == 1


@pytest.mark.parametrize("are_orphans", [False, True])
def test_processor_time_of_all_processes_together_is_limited(
    tmp_path: Path, are_orphans: bool
) -> None:
    # Each one alone uses less than the limit, and is gone before the next one begins.
    source = f"""
for number in range(12):
    reader, writer = os.pipe()
    if os.fork() == 0:
        if not {are_orphans} or os.fork() == 0:
            deadline = time.process_time() + 0.15
            while time.process_time() < deadline:
                pass
        os._exit(0)
    os.close(writer)
    os.wait()
    os.read(reader, 1)
"""
    done = run_python(source, tmp_path, limits=Limits(cpu_s=1, wall_s=30))
    assert done.stop is Stop.CPU


HOLDER = f"{sys.executable} -ISc 'import sys, time; b = b\"x\" * int(sys.argv[1]); time.sleep(20)'"


@pytest.mark.parametrize(
    ("limits", "script", "stop", "consumer"),
    [
        (
            {"cpu_s": 0.3},
            "sleep 20 & while :; do :; done",
            Stop.CPU,
            r"`sh` \(process \d+\), 0\.\d s of .*",
        ),
        (
            {"memory_bytes": 100 * 2**20},
            f"{HOLDER} 10000000 & {HOLDER} 20000000 & sleep 0.4; {HOLDER} 90000000",
            Stop.MEMORY,
            r"`python[\d.]*` \(process \d+\), [4-9]\d MiB",
        ),
        (
            {"processes": 8},
            "for i in 1 2 3 4 5 6 7 8 9; do sleep 20 & done; wait",
            Stop.PROCESSES,
            r"`sleep`, \d+ processes",
        ),
        (
            {"disk_bytes": 2**20},
            "echo small > b; head -c 3000000 /dev/zero | split -b 900000 - big; sleep 20",
            Stop.DISK,
            r"`.*/measured/big..`, 1 MiB",
        ),
        (
            {"inodes": 20},
            "mkdir full; cd full; for i in $(seq 30); do : > $i; done; sleep 20",
            Stop.INODES,
            r"`.*/measured/full`, 30 entries",
        ),
        (
            {"wall_s": 0.4},
            "while :; do :; done",
            Stop.TIME_OUT,
            r"`sh` \(process \d+\), 0\.\d s of processor time",
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, Stop) else "",
)
def test_who_used_the_most_is_named(
    tmp_path: Path, limits: dict[str, float], script: str, stop: Stop, consumer: str
) -> None:
    folder = tmp_path / "measured"
    folder.mkdir()
    done = run_contained(
        ["sh", "-c", script],
        cwd=folder,
        env=ENV,
        limits=Limits(**{"wall_s": 15, **limits}),  # type: ignore[arg-type]
        confinement=Confinement(measured=(str(folder),)),
    )
    assert done.stop is stop
    assert re.fullmatch(consumer, done.consumer), done.consumer
    assert done.elapsed_s < 10


def test_open_files_of_a_process_are_limited(tmp_path: Path) -> None:
    source = """
held = []
try:
    while True:
        held.append(open("/dev/null"))
except OSError as error:
    print(error.errno, len(held) + 3)
"""
    done = run_python(source, tmp_path, limits=Limits(open_files=50))
    number, count = map(int, done.stdout.split())
    assert number == errno.EMFILE
    assert 45 <= count <= 50


def measured(folder: Path, script: str, **limits: float) -> Completed:
    return run_contained(
        ["sh", "-c", script],
        cwd=folder,
        env=ENV,
        limits=Limits(**{"wall_s": 15, **limits}),  # type: ignore[arg-type]
        confinement=Confinement(measured=(str(folder),)),
    )


def test_only_what_a_run_has_written_is_measured(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(bytes(5_000_000))
    for number in range(60):
        (tmp_path / f"old{number}").touch()
    time.sleep(0.1)
    quiet = "head -c 500000 /dev/zero > new; sleep 1"
    assert measured(tmp_path, quiet, disk_bytes=2_000_000, inodes=50).stop is None
    hidden = "head -c 1500000 /dev/zero | tee a > b; touch -d 2001-01-01 a b; sleep 8"
    assert measured(tmp_path, hidden, disk_bytes=2_000_000).stop is Stop.DISK
    sparse = "truncate -s 1900000 c; sleep 1"
    assert measured(tmp_path, sparse, disk_bytes=2_000_000).stop is None


def test_what_is_too_much_is_seen_when_the_time_is_over_too(tmp_path: Path) -> None:
    # Shorter than it takes until folders are first measured.
    script = "for i in 1 2 3; do head -c 900000 /dev/zero > $i; done; sleep 20"
    assert measured(tmp_path, script, wall_s=0.3, disk_bytes=1_000_000).stop is Stop.DISK


def test_a_file_that_is_larger_than_all_may_be_is_told_as_such(tmp_path: Path) -> None:
    done = measured(tmp_path, "head -c 9000000 /dev/zero > big", disk_bytes=1_000_000)
    assert done.stop is Stop.DISK


def run_in(keeper: Keeper, script: str, cwd: Path, **options: object) -> Completed:
    wanted = {
        "cwd": cwd,
        "env": ENV,
        "limits": Limits(wall_s=20),
        "confinement": Confinement(),
        "marker": str(cwd),
        **options,
    }
    return keeper.run(["sh", "-c", script], **wanted)  # type: ignore[arg-type]


def test_one_keeper_runs_one_command_after_another(tmp_path: Path) -> None:
    with open_keeper() as keeper:
        assert run_in(keeper, "echo one > file", tmp_path).code == 0
        with pytest.raises(FileNotFoundError):
            run_in(keeper, "true", tmp_path / "none")
        short = run_in(keeper, "sleep 60 & exec sleep 60", tmp_path, limits=Limits(wall_s=0.2))
        assert (short.stop, short.survivors) == (Stop.TIME_OUT, 1)
        loud = run_in(keeper, "yes", tmp_path, limits=Limits(output_bytes=10_000))
        assert loud.stop is Stop.OUTPUT
        done = run_in(keeper, "cat file; exit 3", tmp_path)
        assert (done.code, done.stdout, done.stop, done.survivors) == (3, b"one\n", None, 0)
        assert done.consumer == ""


def kill_helper() -> None:
    (helper,) = children_of(os.getpid())
    os.kill(helper, signal.SIGKILL)
    assert wait_until(lambda: not is_alive(helper))


def test_helper_that_was_killed_is_started_again(tmp_path: Path) -> None:
    assert run_contained(["true"], cwd=tmp_path, env=ENV).code == 0
    for _ in range(2):
        kill_helper()
        done = run_contained(["echo", "again"], cwd=tmp_path, env=ENV)
        assert (done.code, done.stdout) == (0, b"again\n")


def test_keeper_outlives_the_helper(tmp_path: Path) -> None:
    with open_keeper() as keeper:
        assert run_in(keeper, "true", tmp_path).code == 0
        kill_helper()
        assert run_in(keeper, "echo still", tmp_path).stdout == b"still\n"
        assert run_contained(["true"], cwd=tmp_path, env=ENV).code == 0


def test_keeper_that_is_killed_during_a_run_takes_it_along(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with open_keeper([file.fileno()]) as keeper, ThreadPoolExecutor(1) as pool:
            script = "echo $PPID > keeper; (trap '' TERM; sleep 60) & echo $! > child; sleep 60"
            run = pool.submit(run_in, keeper, script, tmp_path)
            child = pid_in(tmp_path / "child")
            os.kill(pid_in(tmp_path / "keeper"), signal.SIGKILL)
            done = run.result(10)
    assert (done.stop, done.code) == (Stop.SUPERVISOR_LOST, None)
    assert not is_alive(child)
    assert is_free(lock)


def killed(keeper: Keeper, folder: Path) -> None:
    """Kill the process of `keeper` while nothing runs."""
    pid = int(run_in(keeper, "echo $PPID", folder).stdout)
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not is_alive(pid))


def test_keeper_that_was_killed_is_told_to_whoever_asks(tmp_path: Path) -> None:
    with open_keeper() as keeper:
        killed(keeper, tmp_path)
        for ask in (lambda: keeper.read("file"), keeper.changes, keeper.reset, keeper.prepared):
            with pytest.raises(SandboxError, match="the process that keeps the sandbox is gone"):
                ask()


def test_keeper_that_was_killed_between_two_runs_is_a_lost_one(tmp_path: Path) -> None:
    with open_keeper() as keeper:
        killed(keeper, tmp_path)
        assert run_in(keeper, "true", tmp_path).stop is Stop.SUPERVISOR_LOST


def test_keeper_that_was_given_up_stays_lost(tmp_path: Path, impatient: str) -> None:
    with open_keeper() as keeper:
        hung = run_in(keeper, f"{impatient}; sleep 60", tmp_path, limits=Limits(wall_s=0.3))
        assert hung.stop is Stop.SUPERVISOR_LOST
        assert run_in(keeper, "true", tmp_path).stop is Stop.SUPERVISOR_LOST


def test_keeper_that_was_given_up_gives_its_locks_back(tmp_path: Path, impatient: str) -> None:
    lock = tmp_path / "lock"
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with open_keeper([file.fileno()]) as keeper:
            hung = run_in(keeper, f"{impatient}; sleep 60", tmp_path, limits=Limits(wall_s=0.3))
            assert hung.stop is Stop.SUPERVISOR_LOST
    assert wait_until(lambda: is_free(lock), 2)
    assert not is_alive(pid_in(tmp_path / "keeper"))


def test_stop_that_comes_late_does_not_end_the_keeper(tmp_path: Path) -> None:
    script = """
        echo x >&$R
        while ! [ -e one ]; do sleep 0.01; done
        echo x >&$R; head -c 50000 /dev/zero; touch written
        while ! [ -e two ]; do sleep 0.01; done
    """
    with open_keeper() as keeper:
        parts: list[bytes] = []

        def slow(part: bytes) -> None:
            """Let the engine see the flood only when the run is over."""
            parts.append(part)
            if len(parts) == 1:
                (tmp_path / "one").touch()
                assert wait_until((tmp_path / "written").exists)
            elif len(parts) == 2:
                (tmp_path / "two").touch()
                assert select.select([keeper._link], [], [], 10)[0]

        limits = Limits(output_bytes=1000, wall_s=30)
        flood = run_in(keeper, script, tmp_path, limits=limits, report_env="R", on_report=slow)
        assert flood.stop is Stop.OUTPUT
        assert run_in(keeper, "echo well", tmp_path).stdout == b"well\n"


def test_flood_on_every_stream_can_be_stopped(tmp_path: Path) -> None:
    flood = """
import threading
def write(fd):
    while True:
        os.write(fd, b"x" * 65536)
for fd in (1, 2, int(os.environ["R"])):
    threading.Thread(target=write, args=(fd,)).start()
"""
    large = {"output_bytes": 2**40, "report_bytes": 2**40}
    done = run_python(flood, tmp_path, report_env="R", limits=Limits(wall_s=0.5, **large))
    assert done.stop is Stop.TIME_OUT
    assert done.elapsed_s < 5
    pid = "open('daemon', 'w').write(str(os.getpid()));"
    with interrupt_when((tmp_path / "daemon").exists), pytest.raises(KeyboardInterrupt):
        run_python(pid + flood, tmp_path, report_env="R", limits=Limits(wall_s=30, **large))
    assert not is_alive(pid_in(tmp_path / "daemon"))


def test_an_error_of_who_takes_the_report_ends_the_run(tmp_path: Path) -> None:
    def refuse(part: bytes) -> None:
        raise ZeroDivisionError

    script = "echo $$ > pid; echo x >&$R; sleep 60"
    with open_keeper() as keeper:
        with pytest.raises(ZeroDivisionError):
            run_in(keeper, script, tmp_path, report_env="R", on_report=refuse)
        assert not is_alive(pid_in(tmp_path / "pid"))
        assert run_in(keeper, "echo well", tmp_path).stdout == b"well\n"


def test_a_megabyte_of_arguments_and_of_environment_arrives(tmp_path: Path) -> None:
    words = [str(number % 10) * 100_000 for number in range(10)]
    done = run_contained(
        ["sh", "-c", 'for word; do printf %s "$word"; done | md5sum', "sh", *words],
        cwd=tmp_path,
        env=ENV,
    )
    digest = hashlib.md5("".join(words).encode(), usedforsecurity=False).hexdigest()
    assert done.stdout.decode().split()[0] == digest
    many = {f"V{number}": "x" * 1000 for number in range(1000)}
    done = run_contained(["env"], cwd=tmp_path, env={**ENV, **many})
    assert len(done.stdout) > 1_000_000 - 2 * 256 * 1024
    assert done.code == 0


def test_what_is_too_long_for_the_kernel_is_refused_by_it(tmp_path: Path) -> None:
    with pytest.raises(OSError) as raised:
        run_contained(["true", "x" * 2**20], cwd=tmp_path, env=ENV)
    assert raised.value.errno == errno.E2BIG


SCRIPT = """
import json, os, sys, threading, time
from pathlib import Path
sys.path.insert(0, {project!r})
from sandbox_engine.containment import Confinement, open_keeper, run_contained
from sandbox_engine.process import Limits
def run(*argv):
    return run_contained(argv, cwd=".", env=dict(os.environ)).stdout.decode()
def run_in(keeper, *argv):
    return keeper.run(
        argv, cwd=".", env=dict(os.environ), limits=Limits(), confinement=Confinement(), marker="m"
    ).stdout.decode()
def children():
    return Path(f"/proc/self/task/{{os.getpid()}}/children").read_text().split()
"""


def script(source: str, cwd: Path) -> str:
    text = SCRIPT.format(project=str(PROJECT)) + source
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=cwd, capture_output=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode()


def test_forked_child_has_a_helper_of_its_own_and_leaves_the_parents(tmp_path: Path) -> None:
    source = """
with open_keeper() as keeper:
    print(run_in(keeper, "echo", "before"), end="", flush=True)
    if (pid := os.fork()) == 0:
        print(run("echo", "child"), end="", flush=True)
        print(len(children()), flush=True)
        # As a child of `multiprocessing` it runs what was registered to run at exit.
        sys.exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    print(run_in(keeper, "echo", "after"), end="")
    print(run("echo", "new"), end="")
    print(len(children()))
"""
    assert script(source, tmp_path) == "before\nchild\n1\nafter\nnew\n1\n"


def test_forked_child_does_not_keep_the_runs_of_its_parent_alive(tmp_path: Path) -> None:
    source = """
import fcntl
lock = open("lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
with open_keeper([lock.fileno()]) as keeper:
    if os.fork() == 0:
        lock.close()
        Path("forked.tmp").write_text(str(os.getpid()))
        os.rename("forked.tmp", "forked")
        time.sleep(60)
        os._exit(0)
    run_in(keeper, "sh", "-c", "echo $$ > child; sleep 60")
"""
    text = SCRIPT.format(project=str(PROJECT)) + source
    with subprocess.Popen([sys.executable, "-c", text], cwd=tmp_path) as engine:
        forked, child = pid_in(tmp_path / "forked"), pid_in(tmp_path / "child")
        try:
            assert not is_free(tmp_path / "lock")
            engine.kill()
            assert wait_until(lambda: is_free(tmp_path / "lock"), 3)
            assert not is_alive(child)
            assert is_alive(forked)
        finally:
            os.kill(forked, signal.SIGKILL)


def test_threads_that_begin_at_once_share_one_helper(tmp_path: Path) -> None:
    source = """
barrier = threading.Barrier(24)
said = {}
def work(number):
    barrier.wait()
    for turn in range(2):
        said[number, turn] = run("echo", f"{number} {turn}")
threads = [threading.Thread(target=work, args=(number,)) for number in range(24)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(said), all(said[n, t] == f"{n} {t}\\n" for n, t in said), len(children()))
"""
    assert script(source, tmp_path) == "48 True 1\n"


def run_true(keeper: Keeper) -> Completed:
    return keeper.run(
        ["true"],
        cwd="/",
        env={"PATH": os.defpath},
        limits=Limits(wall_s=20),
        confinement=Confinement(),
        marker="test",
    )


def test_a_stop_that_comes_after_the_end_of_its_run_stops_nothing() -> None:
    with open_keeper() as keeper:
        assert run_true(keeper).code == 0
        wire.send(keeper._link, {"do": "stop"})
        done = run_true(keeper)
    assert (done.code, done.stop) == (0, None)


def test_a_keeper_that_is_gone_before_a_run_is_told_as_such() -> None:
    with open_keeper() as keeper:
        keeper._greet()
        wire.send(keeper._link, {"do": "nothing that it knows"})
        assert wire.receive(keeper._link) is None
        assert run_true(keeper).stop is Stop.SUPERVISOR_LOST
