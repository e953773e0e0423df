"""Engines in processes of their own, see `endurance.driver`."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from endurance.driver import Trigger
from endurance.project import SHOWN, Draw, Problem, World

DRIVER_S = 90.0
"""How long one validation, with all that it waits for, may take at most."""


@dataclass(frozen=True, slots=True)
class Driven:
    """How a driver ended: what it said, line by line, and its complaint."""

    code: int
    said: tuple[Mapping[str, Any], ...]
    complaint: str
    elapsed_s: float


class Driver:
    """A driver that was started; `name` tells it from others of the same world."""

    def __init__(self, world: World, name: str, spec: Mapping[str, Any]) -> None:
        # Into files: what a killed driver leaves would hold pipes open.
        self._output = world.folder / f"{name}.output"
        self._errors = world.folder / f"{name}.errors"
        path = world.folder / f"{name}.json"
        path.write_text(json.dumps(spec))
        self._started = time.monotonic()
        with self._output.open("wb") as output, self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "endurance.driver", str(path)],
                stdout=output, stderr=errors, stdin=subprocess.DEVNULL,
                cwd=world.folder, env=world.environment, start_new_session=True,
            )  # fmt: skip

    def said(self) -> tuple[Mapping[str, Any], ...]:
        """Return every whole line so far."""
        lines = self._output.read_text().split("\n")[:-1]
        return tuple(map(json.loads, lines))

    def wait(self, timeout_s: float) -> Driven:
        """Return how the driver ended; kill it and raise Problem when it does not."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            self.kill()
            raise Problem(f"a driver hangs: {self._complaint()}") from error
        return Driven(code, self.said(), self._complaint(), time.monotonic() - self._started)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def _complaint(self) -> str:
        return self._errors.read_text(errors="replace").strip()[-SHOWN:]


def spec(
    world: World,
    runs: Sequence[tuple[Draw, str]],
    *,
    branch: str = "",
    trigger: Trigger | None = None,
    with_children: bool = False,
) -> dict[str, Any]:
    """Return what a driver is told: patches with their bases, and where to land what passes."""
    return {
        "repo": str(world.top),
        "config": str(world.config),
        "runs": [
            {"patch": draw.patch, "strategy": draw.strategy, "base": base} for draw, base in runs
        ],
        "branch": branch,
        "trigger": None if trigger is None else dataclasses.asdict(trigger),
        "with_children": with_children,
    }


def drive(
    world: World,
    draws: Sequence[Draw],
    *,
    branch: str = "",
    trigger: Trigger | None = None,
    with_children: bool = False,
) -> Driven:
    """Run a driver to its end, or to its kill."""
    told = spec(
        world,
        [(draw, branch or "fixed") for draw in draws],
        branch=branch,
        trigger=trigger,
        with_children=with_children,
    )
    driver = Driver(world, "driver", told)
    try:
        return driver.wait(DRIVER_S)
    finally:
        driver.kill()


def verdict_faults(world: World, draw: Draw, done: Driven) -> list[str]:
    """Return what is wrong with the one verdict that a driver had to give."""
    if done.code or not done.said:
        return [f"{draw.kind}, {draw.strategy}: no verdict: {done.complaint}"]
    fault = line_fault(world, draw, done.said[0])
    return [fault] if fault else []


def line_fault(world: World, draw: Draw, line: Mapping[str, Any]) -> str:
    """Return what is wrong with what a driver said of `draw`, "" when nothing is."""
    if "verdict" not in line:
        where = [part for part in line["traceback"].splitlines() if part.startswith("  File ")]
        return f"{draw.kind}, {draw.strategy}: {line['error']}: {line['text']} {where[-4:]}"
    return draw.fault(line["verdict"], world.tier)
