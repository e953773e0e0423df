"""A cycle as it is saved: after every step, in a folder of its own, as one JSON file.

Whoever dies in the middle of a cycle leaves what it had come to; the next one goes on from there.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent import files
from agent.errors import AgentError
from agent.utils.ledger import Usage
from sandbox_engine import Verdict

_NAME = "cycle.json"
_FOLDER = re.compile(r"\d{4,}")


class Kind(enum.StrEnum):
    """Where an objective comes from: a plan of its own, or something that stood in its way."""

    OBJECTIVE = "objective"
    CORRECTION = "correction"
    CAPACITATION = "capacitation"


class Ending(enum.StrEnum):
    """How a cycle ends; `POSTPONED` waits for a capability and is neither."""

    SUCCESS = "success"
    FAILURE = "failure"
    POSTPONED = "postponed"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One plan of one candidate, and what became of it; `problem` is "" for one that passed."""

    candidate: int
    number: int
    plan: str = ""
    strategy: str = ""
    verdict: Verdict | None = None
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the attempt as JSON values."""
        verdict = None if self.verdict is None else self.verdict.to_json()
        fields = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return {**fields, "verdict": verdict}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Attempt:
        """Return the attempt that `to_json` wrote."""
        verdict = record["verdict"]
        return cls(**{**record, "verdict": None if verdict is None else Verdict.from_json(verdict)})


@dataclass(slots=True)
class Cycle:
    """What is known of a cycle so far; each phase fills in its part.

    It starts from the commit `base`. `chosen` is the attempt that is promoted, `target` the
    branch; `is_landing` says that its promotion was begun, `commit` that it has landed,
    `is_insane` that the sanity check found something after that. `seconds` are by phase.
    `follow_up` is an objective to reach first. Times are ISO 8601, "" for what has not come yet.
    """

    number: int
    started: str
    objective: str = ""
    kind: Kind = Kind.OBJECTIVE
    base: str = ""
    attempts: list[Attempt] = field(default_factory=list)
    chosen: int | None = None
    target: str = ""
    message: str = ""
    is_landing: bool = False
    commit: str = ""
    is_insane: bool = False
    engine_seconds: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    ending: Ending | None = None
    reason: str = ""
    context: str = ""
    follow_up: str = ""
    follow_up_kind: Kind = Kind.CORRECTION
    diff: str = ""
    ended: str = ""
    elapsed_s: float = 0.0

    @property
    def is_over(self) -> bool:
        return self.ending is not None

    @property
    def winner(self) -> Attempt | None:
        """The attempt that is promoted."""
        return None if self.chosen is None else self.attempts[self.chosen]

    @property
    def last(self) -> Attempt | None:
        """The attempt that tells the most: the one that is promoted, else the last."""
        return self.winner or (self.attempts[-1] if self.attempts else None)

    def end(self, ending: Ending, reason: str, context: str = "") -> None:
        """Say how the cycle ends; what comes after that changes nothing of it."""
        self.ending, self.reason, self.context = ending, reason, context

    def to_json(self) -> dict[str, Any]:
        """Return the cycle as JSON values."""
        fields = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        attempts = [attempt.to_json() for attempt in self.attempts]
        return {**fields, "attempts": attempts, "usage": dataclasses.asdict(self.usage)}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Cycle:
        """Return the cycle that `to_json` wrote; raise ValueError for anything else."""
        try:
            ending = record["ending"]
            return cls(
                **{
                    **record,
                    "kind": Kind(record["kind"]),
                    "attempts": [Attempt.from_json(one) for one in record["attempts"]],
                    "usage": Usage(**record["usage"]),
                    "ending": None if ending is None else Ending(ending),
                    "follow_up_kind": Kind(record["follow_up_kind"]),
                }
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a cycle: {error}") from error


@dataclass(frozen=True, slots=True)
class Cycles:
    """The cycles in the folder at `path`, each in one called by its number."""

    path: Path

    def save(self, cycle: Cycle) -> None:
        """Write what is known of `cycle`; it survives a loss of power when this returns."""
        file = self._file(cycle.number)
        with files.told(file, "written"):
            file.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(cycle.to_json(), indent=1, ensure_ascii=False)
            files.write_whole(file, text.encode("utf-8", "backslashreplace"))

    def read(self, number: int) -> Cycle | None:
        """Return the cycle of that number, None if there is none or it cannot be read."""
        file = self._file(number)
        with files.told(file, "read"):
            try:
                return Cycle.from_json(json.loads(file.read_bytes()))
            except (FileNotFoundError, ValueError, AttributeError):
                return None

    def __iter__(self) -> Iterator[Cycle]:
        """Yield those that can be read, in order."""
        names = self.path.iterdir() if self.path.is_dir() else ()
        for number in sorted(int(one.name) for one in names if _FOLDER.fullmatch(one.name)):
            if (cycle := self.read(number)) is not None:
                yield cycle

    def _file(self, number: int) -> Path:
        return self.path / f"{number:04}" / _NAME


def require_folder(path: Path) -> None:
    """Make the folder that cycles are saved in; raise AgentError where that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AgentError(
            f"the folder `{path}` cannot be made: {error.strerror}",
            remedy="name another one as `cycles_path`",
        ) from error
