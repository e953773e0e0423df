"""The engine is killed at named points; nothing may be lost, and the next run is right and cleans.

A driver (`endurance.driver`) kills itself at a point. Every second time its child processes are
killed with it, so that git stops half-way too and a run has lost its supervisor. Points are named
by public functions, looked up before the first kill.
"""

from __future__ import annotations

import random
import shutil
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from endurance import table, traces
from endurance.driver import MOMENTS, Trigger, locate
from endurance.engines import drive, verdict_faults
from endurance.project import SHOWN, TIERS, Draw, Problem, World, git, make_patch, make_world
from endurance.traces import Landing

SLACK_S = 2.0
"""How much longer than an undisturbed run the next one and its cleaning may take."""
_ORPHANS_S = 5.0
_VALIDATE, _PROMOTE, _OPEN = "validate", "promote", "open"


@dataclass(frozen=True, slots=True)
class Point:
    """A point to kill at: `verb` is what the driver does, with a patch for `strategy`.

    `prior` is where another driver, doing `prior_verb`, is killed before: the point is then one
    of the recovery. With `is_cold` there is no store yet; with `is_tagged` the user has moved a
    tag; `writes_files` asks for a promotion to the branch that is checked out; `tiers` are those
    that come here.
    """

    name: str
    trigger: Trigger
    verb: str = _VALIDATE
    strategy: str = "CHECK"
    is_cold: bool = False
    is_tagged: bool = False
    writes_files: bool = False
    tiers: tuple[str, ...] = TIERS
    prior: Trigger | None = None
    prior_verb: str = _VALIDATE


_TIDY, _LEASE, _LAND = "store.tidy", "run.Run.open_sandbox", "promotion.promote"
_GIT, _REPLACE = "git.run_store_git", "os.replace"
_RUN, _REFRESH, _SLOT = "containment.Keeper.run", "worktrees.refresh", "slot_sandbox.open_slot"
_IN_RUN = Trigger(_RUN, "inside", after_ms=150)
_WRITTEN = Trigger("git.prepared_update", "leaving")
_LAYERS, _SLOTS = ("full",), ("landlock", "none")

POINTS = (
    Point("the store is to be opened", Trigger("store.open_store", "enter"), is_cold=True),
    Point("its repository is to be made", Trigger("store.make_repository", "enter"), is_cold=True),
    Point("its repository is being made",
          Trigger("process.run_tool", "inside", since="store.make_repository", after_ms=2),
          is_cold=True),
    Point("its repository is made", Trigger("store.make_repository", "leave"), is_cold=True),
    Point("its first setting is half written",
          Trigger(_REPLACE, "enter", since="store.make_repository"), is_cold=True),
    Point("the new store is locked", Trigger("lock.locked", "entered"), is_cold=True),
    Point("the store is open", Trigger("store.open_store", "leave")),
    Point("tags are being moved", Trigger(_GIT, "inside", 5, _TIDY, 1), is_tagged=True),
    Point("tags are moved", Trigger(_GIT, "leave", 5, _TIDY), is_tagged=True),
    Point("the store is tidy", Trigger(_TIDY, "leave"), is_tagged=True),
    Point("the tree is built", Trigger("tree.build_tree", "leave")),
    Point("the tree is written", Trigger("tree.write_tree", "leave")),
    Point("the candidate is committed", Trigger("store.commit_candidate", "leave")),
    Point("what is compiled is held", Trigger("compiled.held", "entered"), is_cold=True),
    Point("a sandbox is locked", Trigger("slots.leased", "entered")),
    Point("a new slot is being made", Trigger(_GIT, "inside", 7, _SLOT, 3), is_cold=True,
          tiers=_SLOTS),
    Point("the slot is being moved", Trigger(_GIT, "inside", 2, _SLOT, 2), tiers=_SLOTS),
    Point("the slot is moved", Trigger(_GIT, "leave", 2, _SLOT), tiers=_SLOTS),
    Point("a new layer is being made", Trigger(_GIT, "inside", 1, "layers.held_base", 2),
          is_cold=True, tiers=_LAYERS),
    Point("a new layer is made", Trigger("shelf.Shelf.fill", "leave", since="layers.held_base"),
          is_cold=True, tiers=_LAYERS),
    Point("the layer is held", Trigger("layers.held_base", "entered"), tiers=_LAYERS),
    Point("one file is carried", Trigger("shutil.copy2", "leave", since=_LEASE), is_cold=True),
    Point("all files are carried", Trigger("carry.place", "leave"), is_cold=True),
    Point("a keeper is there", Trigger("containment.open_keeper", "entered")),
    Point("the file system is being made",
          Trigger("containment.Keeper.prepare", "leave"), tiers=_LAYERS),
    Point("the file system is made",
          Trigger("containment.Keeper.prepared", "leave"), tiers=_LAYERS),
    Point("the sandbox is leased", Trigger(_LEASE, "entered")),
    Point("a run is to start", Trigger(_RUN, "enter")),
    Point("a run starts", Trigger(_RUN, "inside", after_ms=5)),
    Point("a run runs", _IN_RUN),
    Point("a run is over", Trigger(_RUN, "leave")),
    Point("pytest runs", Trigger(_RUN, "inside", after_ms=300), strategy="TESTS"),
    Point("changed files are known", Trigger("slot_sandbox.SlotSandbox.changed_files", "leave"),
          strategy="TWICE", tiers=_SLOTS),
    Point("what has changed is known", Trigger("containment.Keeper.changes", "leave"),
          strategy="TWICE", tiers=_LAYERS),
    Point("the sandbox is to be released", Trigger(_LEASE, "leaving")),
    Point("the sandbox is released", Trigger(_LEASE, "leave")),
    Point("the verdict is kept", Trigger("cache.Cache.keep", "leave")),
    Point("what passed is to be held", Trigger("store.keep_passed", "enter")),
    Point("what passed is held", Trigger("store.keep_passed", "leave")),
    Point("promotion: the journal is half written", Trigger(_REPLACE, "enter", since=_LAND),
          _PROMOTE),
    Point("promotion: prepared", Trigger("git.prepared_update", "entered"), _PROMOTE),
    Point("promotion: files are to be written", Trigger(_REFRESH, "leave", since=_LAND), _PROMOTE,
          writes_files=True),
    Point("promotion: files are written", _WRITTEN, _PROMOTE),
    Point("promotion: committed", Trigger("git.prepared_update", "leave"), _PROMOTE),
    Point("undoing a promotion", Trigger("worktrees.changes", "leave", since="promotion.recover"),
          _OPEN, writes_files=True, prior=_WRITTEN, prior_verb=_PROMOTE),
    Point("a promotion is undone", Trigger(_REFRESH, "leave", since="promotion.recover"),
          _OPEN, writes_files=True, prior=_WRITTEN, prior_verb=_PROMOTE),
    Point("what a killed run left is ended", Trigger("process.kill_marked", "leave"),
          prior=_IN_RUN, tiers=_SLOTS),
)  # fmt: skip


@dataclass(slots=True)
class Tally:
    """What was counted at one point; `faults` must stay empty."""

    kills: int = 0
    slowest_s: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def fault(self, text: str) -> None:
        self.faults.append(text)
        print(text[:SHOWN], file=sys.stderr, flush=True)


def check_points(points: Sequence[Point]) -> None:
    """Raise Problem that names every point which the engine does not have."""
    missing = []
    for point in points:
        for trigger in filter(None, (point.trigger, point.prior)):
            for where in filter(None, (trigger.where, trigger.since)):
                try:
                    locate(where)
                except LookupError as error:
                    missing.append(f"{error}, where `{point.name}` kills")
            if trigger.moment not in MOMENTS:
                missing.append(f"`{point.name}` has the moment `{trigger.moment}`")
    if missing:
        raise Problem("\n".join([*dict.fromkeys(missing), "adapt POINTS in endurance/kills.py"]))


def run(tiers: Sequence[str], most: int, times: int, seed: int) -> int:
    """Kill at up to `most` points `times` times in each tier, and return how many faults."""
    check_points(POINTS)
    traces.adopt_orphans()
    return sum(_run_tier(tier, points_of(tier, most), times, seed) for tier in tiers)


def points_of(tier: str, most: int) -> list[Point]:
    """Return the points that a tier comes to, or as many of them, spread over all."""
    here = [point for point in POINTS if tier in point.tiers]
    count = min(most, len(here))
    return [here[index * len(here) // count] for index in range(count)]


def _run_tier(tier: str, points: Sequence[Point], times: int, seed: int) -> int:
    with make_world(tier) as world:
        killer = Killer(world, seed, min(3, times))
        tallies = {point.name: Tally() for point in points}
        for repetition in range(times):
            for point in points:
                killer.kill(point, repetition, tallies[point.name])
            print(f"{tier}: {repetition + 1} of {times} rounds", file=sys.stderr, flush=True)
    _print(tier, tallies)
    return sum(len(tally.faults) for tally in tallies.values())


def _print(tier: str, tallies: Mapping[str, Tally]) -> None:
    rows = [
        [name, tally.kills, len(tally.faults), f"{tally.slowest_s:+.2f}",
         ", ".join(f"{count} {word}" for word, count in sorted(tally.outcomes.items()))]
        for name, tally in tallies.items()
    ]  # fmt: skip
    kills = sum(tally.kills for tally in tallies.values())
    lost = sum(len(tally.faults) for tally in tallies.values())
    rows.append(["all", kills, lost, "", ""])
    print(table.text([f"killed when, {tier}", "kills", "lost", "next run, s", "promotion"], rows))


class Killer:
    """Kills drivers in one world, and looks at what they leave."""

    def __init__(self, world: World, seed: int, undisturbed: int = 3) -> None:
        """Compare with the median of `undisturbed` runs."""
        self.world = world
        self._undisturbed = undisturbed
        self.usual_s: dict[tuple[str, bool], float] = {}
        self._draw = random.Random(seed)
        self._count = 0

    def _undisturbed_s(self, strategy: str, is_cold: bool) -> float:
        """Return how long a run takes that nothing disturbs, with a store or without one yet."""
        if is_cold:
            self._remove_store()
        draw = self._patch("good", strategy)
        done = drive(self.world, [draw])
        if faults := verdict_faults(self.world, draw, done):
            raise Problem(f"an undisturbed run is not right: {faults[0]}")
        return done.elapsed_s

    def _remove_store(self) -> None:
        if self.world.store.exists():
            shutil.rmtree(self.world.store)

    def _patch(self, kind: str, strategy: str) -> Draw:
        self._count += 1
        return make_patch(self.world, kind, strategy, f"t{self._count}", self._draw)

    def kill(self, point: Point, repetition: int, tally: Tally) -> None:
        """Kill a driver at `point`, run the next one, and note in `tally` what is not right."""
        follower = self._follower()
        usual = follower.strategy, point.is_cold
        if usual not in self.usual_s:
            taken = [self._undisturbed_s(*usual) for _ in range(self._undisturbed)]
            self.usual_s[usual] = statistics.median(taken)
        self._set_up(point)
        lands = _PROMOTE in (point.verb, point.prior_verb)
        is_side = repetition // 2 % 2 and not point.writes_files
        branch = "side" if is_side else "main"
        draw = self._patch("good" if lands else "napping daemon", point.strategy)
        before, landing = traces.take_snapshot(self.world.top), traces.take_landing(self.world.top)
        said = self._kill(point, draw, branch, repetition, tally)
        landed = Landed(self.world.top, branch, landing)
        if said is None:
            landed.undo()
            return
        found = traces.fsck(self.world, with_slots=False)
        if lands:
            # As long as git still works for it, the promotion is under way and not killed.
            traces.wait_for_orphans(_ORPHANS_S)
        else:
            found += before.changes(traces.take_snapshot(self.world.top))
        found += self._follow(follower, point.is_cold, tally)
        if lands:
            found += landed.faults(draw, said, tally)
            landed.undo()
        else:
            found += before.changes(traces.take_snapshot(self.world.top))
        found += [*traces.fsck(self.world), *traces.broken_cache(self.world)]
        for fault in dict.fromkeys(found):
            tally.fault(f"{point.name}, round {repetition}: {fault}")
        if found:
            # What one kill has damaged must not be counted again after the next.
            traces.clear(self.world)
            self._remove_store()

    def _follower(self) -> Draw:
        """Return the patch that is judged after a kill."""
        kind = self._draw.choice(("good", "breaking", "new file"))
        return self._patch(kind, self._draw.choice(("CHECK", "CHECK", "TESTS")))

    def _set_up(self, point: Point) -> None:
        if point.is_cold:
            self._remove_store()
        if point.is_tagged:
            git(self.world.top, "tag", "-f", f"moved-{self._count}", "HEAD")

    def _kill(
        self, point: Point, draw: Draw, branch: str, repetition: int, tally: Tally
    ) -> tuple[Mapping[str, Any], ...] | None:
        """Return what the killed drivers said, or None when one was not killed."""
        steps = [(point.trigger, point.verb, repetition % 2 == 0)]
        if point.prior is not None:
            steps.insert(0, (point.prior, point.prior_verb, True))
        said: tuple[Mapping[str, Any], ...] = ()
        for trigger, verb, with_children in steps:
            done = drive(
                self.world,
                [] if verb == _OPEN else [draw],
                branch=branch if verb == _PROMOTE else "",
                trigger=trigger,
                with_children=with_children,
            )
            if done.code != -signal.SIGKILL:
                said_of = f"{done.complaint} {done.said}".strip()
                tally.fault(f"{point.name}: the point was not reached: {said_of}")
                return None
            said += done.said
        tally.kills += 1
        return said

    def _follow(self, draw: Draw, is_cold: bool, tally: Tally) -> list[str]:
        """Validate the next patch, and return what is wrong with that and what is left."""
        usual_s = self.usual_s[draw.strategy, is_cold]
        started = time.monotonic()
        done = drive(self.world, [draw])
        faults = verdict_faults(self.world, draw, done)
        while left := traces.leftovers(self.world):
            if time.monotonic() > started + usual_s + SLACK_S:
                traces.clear(self.world)
                break
            time.sleep(0.02)
        elapsed_s = time.monotonic() - started
        if elapsed_s - usual_s > SLACK_S and not left:
            # The machine itself may have become slower.
            usual_s = max(usual_s, self._undisturbed_s(draw.strategy, is_cold))
        late_s = elapsed_s - usual_s
        tally.slowest_s = max(tally.slowest_s, late_s)
        if late_s > SLACK_S and not left:
            faults.append(f"the next run and its cleaning took {late_s:.1f} s more than usual")
        return faults + left


@dataclass(frozen=True, slots=True)
class Landed:
    """What a killed promotion to `branch` has come to; `before` is what it found."""

    top: Path
    branch: str
    before: Landing

    @property
    def old(self) -> str:
        return self.before.references[f"refs/heads/{self.branch}"]

    @property
    def tip(self) -> str:
        return git(self.top, "rev-parse", self.branch)

    def faults(self, draw: Draw, said: Sequence[Mapping[str, Any]], tally: Tally) -> list[str]:
        """Return what is torn: the branch, index and files are all as before or all as after."""
        tip, now = self.tip, traces.take_landing(self.top)
        tally.outcomes["old" if tip == self.old else "new"] += 1
        if tip == self.old:
            return differences(self.before, now)
        tree = next((line["verdict"]["tree"] for line in said if "verdict" in line), None)
        landed = git(self.top, "log", "-1", "--format=%P %T", tip)
        faults = [] if landed == f"{self.old} {tree}" else [f"the tip is nobody's: {landed}"]
        wanted = self.before.promoted(
            self.branch, tip, draw.files, checked_out=self.branch == "main"
        )
        return faults + differences(wanted, now)

    def undo(self) -> None:
        """Put the branch back, and the files with it where it is checked out."""
        if (tip := self.tip) != self.old:
            if self.branch == "main":
                git(self.top, "read-tree", "-m", "-u", tip, self.old)
            git(self.top, "update-ref", f"refs/heads/{self.branch}", self.old, tip)


def differences(wanted: Landing, found: Landing) -> list[str]:
    """Return what is not as a whole promotion, or none, leaves it."""
    return [
        f"torn: {what} `{name}`: {wanted_here.get(name)} -> {found_here.get(name)}"
        for what, wanted_here, found_here in (
            ("reference", wanted.references, found.references),
            ("index entry", wanted.index, found.index),
            ("file", wanted.files, found.files),
            ("setting", wanted.rest, found.rest),
        )
        for name in sorted(wanted_here.keys() | found_here.keys())
        if wanted_here.get(name) != found_here.get(name)
    ]
