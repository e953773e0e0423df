"""Disks that are full and system calls that fail: a right verdict or a classified error, always.

The store is put on small file systems, in a mount namespace of our own, and patches grow until it
is full. Then single calls of the engine fail, or are its last, by `strace`: each kind of call at
the first time, the second, and so on, in the engine itself, and in the git commands that it runs.
Calls of the tests that are judged do not fail: nobody could tell that from a test that fails by
itself.
"""

from __future__ import annotations

import json
import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from endurance import table, traces
from endurance.project import SHOWN, Draw, Problem, World, make_patch, make_world
from endurance.traces import Snapshot

_ENTERED = "ENDURE_NAMESPACE"
"""Says that this process is in a mount namespace of its own."""
_CLI_S = 90.0
_CLEANED_S = 10.0
_MORE_MB = 128
_FIRST_BYTES, _LARGEST_BYTES = 16 * 1024, 4 * 1024**2
_VALIDATIONS, _AFTER_FULL = 60, 6

_MORE_SPACE = "more space"
WAYS = (_MORE_SPACE, "cache clear", "cache clear --all")
"""How a user makes space when the disk is full."""

_FILES = (
    "openat", "read", "write", "pread64", "pwrite64", "newfstatat", "mkdir", "rename", "unlink",
    "unlinkat", "rmdir", "fsync", "fdatasync", "ftruncate", "getdents64", "readlink", "chmod",
    "link", "symlink", "flock", "utimensat",
)  # fmt: skip
_OPENING = ("openat", "pipe2", "socket", "dup", "epoll_create1")
_WRITING = ("write", "pwrite64", "ftruncate", "mkdir")
_KILL = "SIGKILL"
_CHANGING = ("openat", "write", "pwrite64", "mkdir", "rename", "link", "unlink", "rmdir")
FAULTS: Mapping[str, Sequence[str]] = {
    "EIO": _FILES, "EMFILE": _OPENING, "ENOSPC": _WRITING, _KILL: _CHANGING,
}  # fmt: skip
GIT_FAULTS: Mapping[str, Sequence[str]] = {
    "EIO": ("openat", "read", "write", "mkdir", "rename", "unlink", "newfstatat", "link"),
    "ENOSPC": ("openat", "write", "mkdir"),
    _KILL: ("openat", "write", "mkdir", "rename", "unlink", "link"),
}
_MOST_IN_GIT = 24
"""Up to which call a git command may fail; its first ones are the loader's."""


@dataclass(frozen=True, slots=True)
class Answer:
    """How the command line ended, and what it wrote."""

    code: int
    output: str
    errors: str

    @property
    def is_error(self) -> bool:
        return not self.output.strip()


@dataclass(slots=True)
class Tally:
    """What was counted under one kind of trouble; `faults` must stay empty."""

    words: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    possible: int = 0

    def note(self, name: str, found: Sequence[str]) -> None:
        for fault in dict.fromkeys(found):
            self.faults.append(f"{name}: {fault}")
            print(self.faults[-1][:SHOWN], file=sys.stderr, flush=True)


def run(
    tiers: Sequence[str],
    sizes: Sequence[int],
    ways: Sequence[str],
    faults: int,
    seconds: float,
    seed: int,
) -> int:
    """Run both in each tier, print tables, and return how much was lost."""
    if faults and shutil.which("strace") is None:
        raise Problem("`strace` makes calls fail; on Debian, `apt-get install strace` brings it")
    is_apart = enter_namespace() if sizes else False
    traces.adopt_orphans()
    lost = 0
    for tier in tiers:
        if is_apart:
            lost += _fill_disks(tier, sizes, ways, seed)
        elif sizes:
            print("no file system can be mounted here: full disks are left out")
        if faults:
            lost += _break_calls(tier, faults, seconds, seed)
    return lost


def enter_namespace() -> bool:
    """Start this program again in a mount namespace; return False where none is given.

    An ordinary user gets one as the root of a user namespace.
    """
    if os.environ.get(_ENTERED):
        return True
    for flags in ("-m", "-rm") if os.geteuid() == 0 else ("-rm",):
        argv = ["unshare", flags, "--propagation", "private"]
        if (
            shutil.which("unshare")
            and not subprocess.run(
                [*argv, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False
            ).returncode
        ):
            os.environ[_ENTERED] = "1"
            os.execvp("unshare", [*argv, sys.executable, *sys.argv])
    return False


# Full disks.


def _fill_disks(tier: str, sizes: Sequence[int], ways: Sequence[str], seed: int) -> int:
    tallies = {}
    for size in sizes:
        for way in ways:
            tally = tallies[f"{size} MB, {way}"] = Tally()
            fill_disk(tier, size, way, random.Random(seed), tally)
            print(f"{tier}: {size} MB, {way}: {dict(tally.words)}", file=sys.stderr, flush=True)
    _print(f"full disk, {tier}", tallies)
    return sum(len(tally.faults) for tally in tallies.values())


def fill_disk(tier: str, size_mb: int, way: str, draw: random.Random, tally: Tally) -> None:
    """Validate growing patches until the store's disk is full; then `way` is the way out."""
    with make_world(tier) as world:
        _mount(f"size={size_mb}m,mode=700", world)
        try:
            before = traces.take_snapshot(world.top)
            _grow(world, draw, tally)
            name = f"{size_mb} MB"
            tally.note(name, [*_damage(world, before), *_way_out(world, way)])
            # On a small disk that was cleared, pytest's compiled modules have no room still.
            strategies = ("CHECK", "TESTS" if way == _MORE_SPACE else "CHECK")
            for kind, strategy in zip(("good", "breaking"), strategies, strict=True):
                tally.note(name, undisturbed(world, _patch(world, draw, "end", kind, strategy)))
            tally.note(name, [*_damage(world, before), *_left(world)])
        finally:
            subprocess.run(["umount", "-l", world.cache_home], check=False)


def _mount(options: str, world: World) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", world.cache_home], check=True)


def _grow(world: World, draw: random.Random, tally: Tally) -> None:
    ballast, errors = _FIRST_BYTES, 0
    for number in range(_VALIDATIONS):
        kind = draw.choice(("good", "breaking"))
        # What pytest's own modules are compiled to fills a small disk at once.
        strategy = "TESTS" if number % 6 == 5 else "CHECK"
        patch = _patch(world, draw, f"g{number}", kind, strategy, 0 if number % 3 == 2 else ballast)
        answer = ask(world, patch)
        tally.note(f"validation {number}", _judge(world, patch, answer, tally))
        errors += answer.is_error
        if errors >= _AFTER_FULL:
            return
        ballast = ballast if errors else min(2 * ballast, _LARGEST_BYTES)
    if not errors:
        tally.note("all", [f"{_VALIDATIONS} validations did not fill the disk"])


def _patch(
    world: World, draw: random.Random, token: str, kind: str, strategy: str, ballast: int = 0
) -> Draw:
    return make_patch(world, kind, strategy, f"{token}x{draw.randrange(10**9)}", draw,
                      ballast=ballast)  # fmt: skip


def _way_out(world: World, way: str) -> list[str]:
    """Make space as a user would: by a larger disk, or as the hint of the error says."""
    if way == _MORE_SPACE:
        _mount(f"remount,size={_MORE_MB}m", world)
        return []
    done = _cli(world, [*way.split(), "--repo", str(world.top)])
    return [f"`{way}`: {done.code} {done.errors}"] if done.code else []


# One validation, and what it must come to.


def arguments(world: World, draw: Draw) -> list[str]:
    """Write the patch, and return the command line that judges it."""
    path = world.folder / "patch.diff"
    path.write_text(draw.patch)
    return [
        *("validate", str(path), "--repo", str(world.top), "--base", "fixed"),
        *("--strategy", draw.strategy, "--config", str(world.config), "--output", "json"),
    ]


def ask(world: World, draw: Draw) -> Answer:
    return _cli(world, arguments(world, draw))


def _cli(world: World, given: Sequence[str]) -> Answer:
    done = subprocess.run(
        [sys.executable, "-m", "sandbox_engine", *given],
        stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=_CLI_S,
        env=world.environment, cwd=world.folder, encoding="utf-8", errors="replace",
    )  # fmt: skip
    return Answer(done.returncode, done.stdout, done.stderr)


def _judge(world: World, draw: Draw, answer: Answer, tally: Tally) -> list[str]:
    word, fault = judge(world, draw, answer)
    tally.words[word] += 1
    if answer.is_error and not fault:
        first = answer.errors.partition("\n")[0].removeprefix("error: ")
        tally.errors[f"{answer.code}: {_general(world, first)}"] += 1
    return [fault] if fault else []


def judge(world: World, draw: Draw, answer: Answer) -> tuple[str, str]:
    """Return what an answer under trouble is, and what is wrong with it, "" when nothing is.

    INCONCLUSIVE is not wrong: it proves nothing, and says so.
    """
    shown = f"code {answer.code}: {answer.errors.strip()[-SHOWN:]}"
    if "Traceback" in answer.errors:
        return "wrong", f"a traceback, {shown}"
    if answer.is_error:
        is_classified = re.search(r"^error: .+\n\nhint: .+", answer.errors, re.DOTALL)
        if answer.code in (2, 3) and is_classified:
            return f"error {answer.code}", ""
        return "wrong", f"no verdict and no classified error, {shown}"
    record = json.loads(answer.output)
    if record["outcome"] == "INCONCLUSIVE" and answer.code == 3:
        return "inconclusive", ""
    if fault := draw.fault(record, world.tier):
        return "wrong", fault
    return ("right", "") if answer.code == (record["outcome"] != "PASSED") else ("wrong", shown)


def _general(world: World, text: str) -> str:
    """Return a message without what differs from one world to the next."""
    text = text.replace(str(world.store), "STORE").replace(str(world.folder), "WORLD")
    return re.sub(r"[0-9a-f]{8,}", "ID", text)[:110]


def undisturbed(world: World, draw: Draw) -> list[str]:
    """Return what is wrong with a validation that nothing troubles."""
    return undisturbed_fault(world, draw, ask(world, draw))


def undisturbed_fault(world: World, draw: Draw, answer: Answer) -> list[str]:
    word, fault = judge(world, draw, answer)
    if word == "right":
        return []
    said = answer.output if word == "inconclusive" else answer.errors
    return [f"the next run is not right: {word} {fault or said[:SHOWN]}"]


def _damage(world: World, before: Snapshot, *, with_slots: bool = True) -> list[str]:
    return [
        *before.changes(traces.take_snapshot(world.top)),
        *traces.fsck(world, with_slots=with_slots),
        *traces.broken_cache(world),
    ]


def _left(world: World, spared: Sequence[int] = ()) -> list[str]:
    deadline = time.monotonic() + _CLEANED_S
    while (left := traces.leftovers(world, spared)) and time.monotonic() < deadline:
        time.sleep(0.02)
    traces.clear(world, spared)
    return left


# Calls that fail.


@dataclass(frozen=True, slots=True)
class Fault:
    """The `number`-th `call` of the engine, or of each of its gits, fails with `error`.

    The error `SIGKILL` ends the process there instead, between any two changes that it makes.
    With `is_cold` there is no store yet.
    """

    error: str
    call: str
    number: int
    is_cold: bool
    is_in_git: bool = False

    @property
    def group(self) -> str:
        return f"{self.error} of {self.call}{' in git' * self.is_in_git}"

    def flags(self) -> list[str]:
        """Return the options of `strace`; a `?` passes over calls that a machine has not."""
        how = f"signal={_KILL}" if self.error == _KILL else f"error={self.error}"
        inject = f"inject=?{self.call}:{how}:when={self.number}"
        return ["-e", f"trace=?{self.call}", "-e", inject]


def _break_calls(tier: str, most: int, seconds: float, seed: int) -> int:
    with make_world(tier) as world, Breaker(world, seed) as breaker:
        tallies: dict[str, Tally] = {}
        faults = list(breaker.plan(most, tallies))
        deadline = time.monotonic() + seconds
        for count, fault in enumerate(faults):
            if time.monotonic() > deadline:
                break
            breaker.fail(fault, tallies[fault.group])
            if count % 50 == 49:
                print(f"{tier}: {count + 1} of {len(faults)} faults", file=sys.stderr, flush=True)
    _print(f"failing call, {tier}", tallies)
    return sum(len(tally.faults) for tally in tallies.values())


class Breaker:
    """Runs the command line in forks of a warm process, with calls that fail."""

    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        self._draw = random.Random(seed)
        self._count = 0
        self._log = world.folder / "strace.log"
        self._before = traces.take_snapshot(world.top)
        self._shim = world.folder / "shim"
        for folder in (world.folder / "warm", self._shim):
            folder.mkdir()
        first = json.dumps({"arguments": arguments(world, self._next("good"))})
        self._errors = (world.folder / "server.errors").open("w+b")
        self._server = subprocess.Popen(
            [sys.executable, "-m", "endurance.faulty", str(world.folder / "warm"), first],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
            env=world.environment, cwd=world.folder,
        )  # fmt: skip

    def __enter__(self) -> Breaker:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in (self._server.stdin, self._server.stdout, self._errors):
            assert pipe is not None
            pipe.close()
        self._server.kill()
        self._server.wait()

    def _next(self, kind: str = "") -> Draw:
        self._count += 1
        # Mostly commands: pytest costs most of a second, and calls much the same.
        strategy = "TESTS" if self._count % 5 == 0 else "CHECK"
        kind = kind or ("good", "breaking")[self._count % 2]
        return _patch(self._world, self._draw, f"f{self._count}", kind, strategy)

    def plan(self, most: int, tallies: dict[str, Tally]) -> Iterator[Fault]:
        """Yield up to `most` faults, of each kind of call as evenly as its number allows.

        One run that nothing troubles tells how often each call is made.
        """
        made = {is_cold: self._count_calls(is_cold) for is_cold in (True, False)}
        kinds = [(error, call, False) for error, calls in FAULTS.items() for call in calls]
        kinds += [(error, call, True) for error, calls in GIT_FAULTS.items() for call in calls]
        every = [
            [
                Fault(error, call, number + 1, is_cold, is_in_git)
                for is_cold in (True, False)
                for number in range(_MOST_IN_GIT if is_in_git else made[is_cold][call])
            ]
            for error, call, is_in_git in kinds
        ]
        groups = [group for group in every if group]
        for group in groups:
            tallies[group[0].group] = Tally(possible=len(group))
        chosen = _shares([len(group) for group in groups], most)
        spread = [
            (index / count, group[(2 * index + 1) * len(group) // (2 * count)])
            for group, count in zip(groups, chosen, strict=True)
            for index in range(count)
        ]
        # Some of each kind before more of any, so that a run cut short has seen all kinds.
        yield from (fault for _, fault in sorted(spread, key=lambda item: item[0]))

    def _count_calls(self, is_cold: bool) -> Counter[str]:
        self._set_up(is_cold)
        draw = self._next("good")
        every = sorted({call for calls in FAULTS.values() for call in calls})
        answer = self._run(draw, ["-e", f"trace={','.join(f'?{call}' for call in every)}"])
        if faults := undisturbed_fault(self._world, draw, answer):
            raise Problem(faults[0])
        lines = self._log.read_text(errors="replace").splitlines()
        return Counter(line.partition("(")[0] for line in lines)

    def _set_up(self, is_cold: bool) -> None:
        for path in self._shim.iterdir():
            path.unlink()
        if is_cold and self._world.store.exists():
            shutil.rmtree(self._world.store)

    def fail(self, fault: Fault, tally: Tally) -> None:
        """Validate while `fault` is there, then without it, and note what is not right."""
        self._set_up(fault.is_cold)
        draw = self._next()
        answer = self._run_shimmed(draw, fault) if fault.is_in_git else self._run(
            draw, fault.flags()
        )  # fmt: skip
        logs = [self._log, *self._shim.glob("*.log")]
        hits = [line for path in logs if path.exists() for line in _hits(path)]
        if not hits:
            tally.words["not made"] += 1
            return
        if fault.error == _KILL and answer.code == -signal.SIGKILL:
            tally.words["killed"] += 1
            found = []
        else:
            found = [] if _is_output(hits) else _judge(self._world, draw, answer, tally)
        found += _damage(self._world, self._before, with_slots=False)
        # With what is remembered: a verdict that trouble has made must not be kept.
        found += undisturbed_fault(self._world, draw, self._run(draw, None))
        found += [*_damage(self._world, self._before), *_left(self._world, [self._server.pid])]
        tally.note(f"{fault.group}, call {fault.number} ({hits[0][:160]})", found)
        if found:
            # What one fault has damaged must not be counted again after the next.
            self._set_up(is_cold=True)

    def _run_shimmed(self, draw: Draw, fault: Fault) -> Answer:
        """Run with a `git` in front of the real one, that runs it under `strace`."""
        shim = self._shim
        flags = " ".join(fault.flags())
        script = f'#!/bin/sh\nexec strace -f -qq -o "{shim}/$$.log" {flags} {shutil.which("git")}'
        (shim / "git").write_text(f'{script} "$@"\n')
        (shim / "git").chmod(0o755)
        return self._run(draw, None, path=f"{shim}:{os.environ['PATH']}")

    def _run(self, draw: Draw, flags: Sequence[str] | None, *, path: str = "") -> Answer:
        """Judge `draw` in a fork of the warm process, traced with `flags` if there are any."""
        self._log.unlink(missing_ok=True)
        output, errors = self._world.folder / "fork.output", self._world.folder / "fork.errors"
        asked = {
            "arguments": arguments(self._world, draw),
            "path": path or os.environ["PATH"],
            "output": str(output),
            "errors": str(errors),
        }
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(asked).encode() + b"\n")
        self._server.stdin.flush()
        pid = self._hear()
        tracer = None if flags is None else self._trace(pid, flags)
        try:
            os.kill(pid, signal.SIGCONT)
            code = self._hear()
        except Problem:
            os.kill(pid, signal.SIGKILL)
            code = self._hear()
            return Answer(code, "", f"hung for {_CLI_S:g} s")
        finally:
            if tracer is not None:
                tracer.communicate()
        return Answer(code, _text(output), _text(errors))

    def _trace(self, pid: int, flags: Sequence[str]) -> subprocess.Popen[bytes]:
        tracer = subprocess.Popen(
            ["strace", "-o", str(self._log), *flags, "-p", str(pid)],
            stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert tracer.stderr is not None
        said = tracer.stderr.readline()
        if b"attached" not in said:
            tracer.communicate()
            raise Problem(f"strace cannot attach: {said.decode(errors='replace')}")
        return tracer

    def _hear(self) -> int:
        assert self._server.stdout is not None
        if not select.select([self._server.stdout], [], [], _CLI_S)[0]:
            raise Problem("the engine hangs")
        line = self._server.stdout.readline()
        if not line:
            self._errors.seek(0)
            raise Problem(f"the warm process ended: {self._errors.read()[-SHOWN:]!r}")
        return int(line)


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _hits(path: Path) -> list[str]:
    lines = path.read_text(errors="replace").splitlines()
    # A process that is killed has a last line that says so.
    ends = ("(INJECTED)", f"+++ killed by {_KILL} +++")
    return [line for line in lines if line.endswith(ends)]


def _is_output(hits: Sequence[str]) -> bool:
    """Tell whether what failed was the writing of the answer itself."""
    return any(re.match(r"(\d+ +)?write\([12],", line) for line in hits)


def _shares(sizes: Sequence[int], most: int) -> list[int]:
    """Return how many of each group to take: `most` in all, as even as the sizes allow."""
    level = 0
    while sum(min(size, level) for size in sizes) < min(most, sum(sizes)):
        level += 1
    shares = [min(size, level) for size in sizes]
    spare = max(0, sum(shares) - most)
    largest = [index for index, share in enumerate(shares) if share == level]
    for number in range(spare):
        shares[largest[number * len(largest) // spare]] -= 1
    return shares


def _print(title: str, tallies: Mapping[str, Tally]) -> None:
    words = sorted({word for tally in tallies.values() for word in tally.words})
    rows: list[list[object]] = [
        [name, *(tally.words[word] or "" for word in words), tally.possible or "",
         len(tally.faults)]
        for name, tally in tallies.items()
    ]  # fmt: skip
    totals = [sum(tally.words[word] for tally in tallies.values()) for word in words]
    lost = sum(len(tally.faults) for tally in tallies.values())
    rows.append(["all", *totals, sum(tally.possible for tally in tallies.values()) or "", lost])
    print(table.text([title, *words, "calls", "lost"], rows))
    errors: Counter[str] = Counter()
    for tally in tallies.values():
        errors.update(tally.errors)
    for message, count in errors.most_common(25):
        print(f"{count:6}  {message}")
    print()
