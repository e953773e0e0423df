"""The objectives that wait, one upon the other: what stands in the way of one lies above it.

The stack is a file beside the cycles. It changes when a cycle is closed, in one step with the
number of that cycle, so a cycle counts once however often its end is repeated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agent import files
from agent.cycles import Cycle, Ending, Kind

_NAME = "objectives.json"


@dataclass(frozen=True, slots=True)
class Objective:
    """Something to reach; `has_capacitation` says that a capability for it was sought before."""

    text: str
    kind: Kind = Kind.OBJECTIVE
    has_capacitation: bool = False


@dataclass(frozen=True, slots=True)
class Objectives:
    """What waits, the next one last, and the number of the last cycle that is closed."""

    waiting: tuple[Objective, ...] = ()
    closed: int = 0

    @property
    def next(self) -> Objective | None:
        return self.waiting[-1] if self.waiting else None

    def pushed(self, objective: Objective) -> Objectives:
        """Return these with another one, to be reached first."""
        return Objectives((*self.waiting, objective), self.closed)

    def after(self, cycle: Cycle) -> Objectives:
        """Return what waits after `cycle`, which was about the next one.

        What was reached is gone, and so is what failed and nothing corrects. What stays lies under
        the objective that is to be reached first.
        """
        below, current = self.waiting[:-1], self.waiting[-1]
        if cycle.ending is Ending.POSTPONED:
            current = Objective(current.text, current.kind, has_capacitation=True)
        if cycle.ending is Ending.SUCCESS or not cycle.follow_up:
            return Objectives(below, cycle.number)
        follow_up = Objective(cycle.follow_up, cycle.follow_up_kind)
        return Objectives((*below, current, follow_up), cycle.number)


def read_objectives(folder: Path) -> Objectives:
    """Return what waits in `folder`; nothing where the file is gone or damaged.

    A damaged one is set aside. No number of a cycle that is there is used again.
    """
    path = folder / _NAME
    with files.told(path, "read"):
        try:
            return _parsed(json.loads(path.read_bytes()))
        except FileNotFoundError:
            pass
        except (ValueError, TypeError, KeyError, AttributeError):
            files.set_aside(path, "damaged")
        names = [one.name for one in folder.iterdir()] if folder.is_dir() else []
        return Objectives(closed=max((int(name) for name in names if name.isdigit()), default=0))


def write_objectives(folder: Path, objectives: Objectives) -> None:
    """Write what waits; it survives a loss of power when this returns."""
    path = folder / _NAME
    record = {"closed": objectives.closed, "waiting": [asdict(one) for one in objectives.waiting]}
    with files.told(path, "written"):
        files.write_whole(path, json.dumps(record, indent=1, ensure_ascii=False).encode())


def _parsed(record: Mapping[str, Any]) -> Objectives:
    waiting = tuple(
        Objective(str(one["text"]), Kind(one["kind"]), bool(one["has_capacitation"]))
        for one in record["waiting"]
    )
    return Objectives(waiting, int(record["closed"]))
