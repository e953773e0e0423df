"""Many engines on one repository, beside a user who commits, collects garbage and moves work trees.

What the user does is done in one row, for git's own commands lose objects beside a `gc
--prune=now`; the engines are beside all of it. Some patches hold what the user has tried first and
dropped: the objects are there when the patch comes, and are pruned while it is judged.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from endurance import table, traces
from endurance.engines import DRIVER_S, Driver, line_fault, spec
from endurance.project import KINDS, SHOWN, Draw, Problem, World, git, make_patch, make_world
from endurance.traces import Landing

_SLOTS = 8
"""As the engine has them when nothing is configured."""
_ON_HEAD, _WITH_PYTEST, _TRIED = 0.4, 0.2, 0.15
"""Shares of the patches: on the moving HEAD, judged by pytest, and tried by the user before."""
_PAUSE_S = 0.1
_CLEANED_S = 3.0


@dataclass(frozen=True, slots=True)
class Due:
    """A patch, what it applies to, and whether the user has tried it before."""

    draw: Draw
    base: str
    is_tried: bool

    @property
    def name(self) -> str:
        where = "HEAD" if self.base == "HEAD" else "a commit"
        return f"{self.draw.kind} on {where}, {self.draw.strategy}{', tried' * self.is_tried}"


@dataclass(slots=True)
class Tally:
    """What was counted; `faults` must stay empty."""

    due: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def fault(self, text: str) -> None:
        self.faults.append(text)
        print(text[:SHOWN], file=sys.stderr, flush=True)


def run(tiers: Sequence[str], engines: int, each: int, seed: int) -> int:
    """Run the engines in each tier, print a table, and return how much was lost."""
    traces.adopt_orphans()
    return sum(_run_tier(tier, engines, each, seed) for tier in tiers)


def _run_tier(tier: str, engines: int, each: int, seed: int) -> int:
    with make_world(tier, slots=_SLOTS) as world:
        lists = draw_lists(world, engines, each, seed)
        before = traces.take_landing(world.top)
        started, tally = time.monotonic(), Tally()
        user = User(world)
        drivers = [
            Driver(world, f"driver-{number}", spec(world, [(due.draw, due.base) for due in dues]))
            for number, dues in enumerate(lists)
        ]
        try:
            _work(world, user, drivers, lists, tier)
            for dues, driver in zip(lists, drivers, strict=True):
                _judge(world, dues, driver, tally)
        finally:
            for driver in drivers:
                driver.kill()
        for fault in [*user.faults, *left_behind(world, before, user)]:
            tally.fault(fault)
    _print(tier, tally, user, time.monotonic() - started)
    return len(tally.faults)


def draw_lists(world: World, engines: int, each: int, seed: int) -> list[list[Due]]:
    """Return what each engine is to judge; no two trees are the same."""
    draw = random.Random(seed)
    fixed = git(world.top, "rev-parse", "fixed")
    return [
        [_due(world, f"e{engine}x{number}", fixed, draw) for number in range(each)]
        for engine in range(engines)
    ]


def _due(world: World, token: str, fixed: str, draw: random.Random) -> Due:
    strategy = "TESTS" if draw.random() < _WITH_PYTEST else "CHECK"
    kind = draw.choices(KINDS, [8 if name in ("good", "breaking") else 2 for name in KINDS])[0]
    patch = make_patch(world, kind, strategy, token, draw)
    base = "HEAD" if draw.random() < _ON_HEAD else fixed
    return Due(patch, base, kind == "good" and draw.random() < _TRIED * 2)


def _work(
    world: World, user: User, drivers: Sequence[Driver], lists: Sequence[list[Due]], tier: str
) -> None:
    """Keep the user busy until every engine is done; raise Problem when that takes too long."""
    total = sum(map(len, lists))
    deadline = time.monotonic() + DRIVER_S + DRIVER_S / 10 * total
    told_at = time.monotonic()
    while any(driver.process.poll() is None for driver in drivers):
        done = [len(driver.said()) for driver in drivers]
        coming = [due for dues, count in zip(lists, done, strict=True) for due in dues[count:][:3]]
        user.work([due.draw for due in coming if due.is_tried])
        if time.monotonic() > told_at + 10:
            told_at = time.monotonic()
            print(f"{tier}: {sum(done)} of {total} verdicts", file=sys.stderr, flush=True)
        if time.monotonic() > deadline:
            raise Problem(f"only {sum(done)} of {total} verdicts came in time")


def _judge(world: World, dues: Sequence[Due], driver: Driver, tally: Tally) -> None:
    done = driver.wait(1)
    tally.due.update(due.name for due in dues)
    if done.code:
        tally.fault(f"an engine ended with {done.code}: {done.complaint}")
    for due, line in zip(dues, done.said, strict=False):
        if fault := line_fault(world, due.draw, line):
            tally.fault(f"{due.name}: {fault}")
        else:
            tally.right[due.name] += 1
    if missing := len(dues) - len(done.said):
        tally.fault(f"{missing} verdicts of an engine are missing")


class User:
    """Somebody who works in the repository; what fails is counted, and is a fault."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []

    def work(self, tried: Sequence[Draw]) -> None:
        """Commit, and make and remove a work tree around a collection of garbage."""
        number = str(self.counts["commit"] + 1)
        linked = self._world.folder / "linked"
        for name in ("a", "b"):
            (self._world.top / "user" / f"{name}.txt").write_text(f"{number}\n")
        self._try(tried)
        self._git("commit", "-q", "-m", number, "user/a.txt", "user/b.txt")
        self._git("worktree", "add", "-q", "-B", f"linked-{number}", str(linked))
        self._git("gc", "-q", "--prune=now")
        self._git("worktree", "remove", "--force", str(linked))
        self._git("branch", "-q", "-D", f"linked-{number}")
        time.sleep(_PAUSE_S)

    def _try(self, tried: Sequence[Draw]) -> None:
        """Write the blobs of patches, as one does who adds files and takes them back."""
        folder = self._world.folder / "tried"
        folder.mkdir(exist_ok=True)
        contents = [content for draw in tried for content in draw.files.values() if content]
        for number, content in enumerate(contents):
            (folder / str(number)).write_bytes(content)
        if contents:
            names = "".join(f"{folder / str(number)}\n" for number in range(len(contents)))
            self._git("hash-object", "-w", "--no-filters", "--stdin-paths", text=names)

    def _git(self, verb: str, *arguments: str, text: str | None = None) -> None:
        self.counts[verb] += 1
        try:
            git(self._world.top, verb, *arguments, text=text)
        except Problem as problem:
            self.faults.append(f"the user's own command failed: {problem}")


def left_behind(world: World, before: Landing, user: User) -> list[str]:
    """Return what is left of the engines, and what they changed of the user's."""
    deadline = time.monotonic() + _CLEANED_S
    while (left := traces.leftovers(world)) and time.monotonic() < deadline:
        time.sleep(0.05)
    now = traces.take_landing(world.top)
    commits = int(git(world.top, "rev-list", "--count", "fixed..main"))
    return [
        *left,
        *traces.fsck(world),
        *traces.broken_cache(world),
        *(f"changed: {name}" for name in _changed(before, now)),
        *([] if commits == user.counts["commit"] else [f"{commits} commits of the user are left"]),
    ]


def _changed(before: Landing, now: Landing) -> list[str]:
    """Return what differs, but for what our user does."""
    pairs: list[tuple[Mapping[str, str], Mapping[str, str]]] = [
        (before.references, now.references),
        (before.index, now.index),
        (before.files, now.files),
        (before.rest, now.rest),
    ]
    return [
        name
        for old, new in pairs
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
        and not name.startswith("user/")
        and name != "refs/heads/main"
    ]


def _print(tier: str, tally: Tally, user: User, elapsed_s: float) -> None:
    rows: list[list[object]] = [
        [name, count, tally.right[name], count - tally.right[name]]
        for name, count in sorted(tally.due.items())
    ]
    due, right = tally.due.total(), tally.right.total()
    rows.append(["all", due, right, due - right])
    print(table.text([f"patch, {tier}", "due", "right", "lost"], rows))
    commands = ", ".join(f"{count} {verb}" for verb, count in sorted(user.counts.items()))
    print(f"beside them the user ran {commands}, of which {len(user.faults)} failed")
    print(f"{right} of {due} right, {len(tally.faults)} faults, {elapsed_s:.0f} s\n")
