"""What the agent remembers, as values: objectives that were tried, and capabilities.

The names and the JSON form are those of the original's memory file, and fields that are not known
here are carried along. Files of older versions lack fields, or have texts for entries.
"""

from __future__ import annotations

import dataclasses
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

SUCCESS = "success"
FAILURE = "failure"
RECENT = 5
"""How many attempts `recent_objectives_log` holds, and how many additions lead to a cleanup."""
KEPT = 20
"""How many objectives a cleanup leaves."""
_SHOWN_LETTERS = 160
_FLAG = re.compile(r"\[CONTEXT_FLAG\] \w+")
_Kind = TypeVar("_Kind", bound="Entry")


@dataclass(frozen=True, slots=True)
class Entry:
    """What all entries have: `date` is ISO 8601, "" where it is not known."""

    date: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict, kw_only=True)

    def to_json(self) -> dict[str, Any]:
        """Return the entry as the file has it, fields that are not known here last."""
        known = [item.name for item in dataclasses.fields(self) if item.name != "extra"]
        named = sorted(known, key=lambda name: name in ("date", "status"))
        return {**{name: getattr(self, name) for name in named}, **self.extra}


@dataclass(frozen=True, slots=True)
class Tried(Entry):
    """An objective that was tried."""

    objective: str = ""
    details: str = ""


@dataclass(frozen=True, slots=True)
class Completed(Tried):
    """An objective that was reached."""

    strategy_used: str = ""
    status: str = SUCCESS


@dataclass(frozen=True, slots=True)
class Failed(Tried):
    """An objective that was not reached."""

    reason: str = ""
    status: str = FAILURE


@dataclass(frozen=True, slots=True)
class Capability(Entry):
    """Something that the agent can do since `date`."""

    description: str = ""
    related_objective: str | None = None


@dataclass(frozen=True, slots=True)
class Attempt(Entry):
    """One line of the log of the last attempts."""

    objective: str = ""
    status: str = ""


@dataclass(frozen=True, slots=True)
class History:
    """What is remembered, each kind the oldest first.

    `older` counts entries by their list's name that are kept and are not in here. `extra` are the
    file's fields that are not known here.
    """

    completed_objectives: tuple[Completed, ...] = ()
    failed_objectives: tuple[Failed, ...] = ()
    acquired_capabilities: tuple[Capability, ...] = ()
    recent_objectives_log: tuple[Attempt, ...] = ()
    older: Mapping[str, int] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tried(self) -> tuple[Completed | Failed, ...]:
        """Objectives of both kinds, the oldest first."""
        return _by_date((*self.completed_objectives, *self.failed_objectives))

    def count(self, name: str) -> int:
        """Return how many entries the list called `name` has, those not in here included."""
        return len(getattr(self, name)) + self.older.get(name, 0)

    def failures_in_a_row(self, objective: str) -> int:
        """Return how often `objective` failed since it last succeeded, as far as the log goes."""
        failures = 0
        for attempt in reversed(self.recent_objectives_log):
            if attempt.objective == objective:
                if attempt.status != FAILURE:
                    break
                failures += 1
        return failures

    def to_json(self) -> dict[str, Any]:
        """Return the history as the memory file has it."""
        lists = {name: [item.to_json() for item in getattr(self, name)] for name in LISTS}
        return {**lists, **self.extra}


LISTS: Mapping[str, type[Entry]] = {
    "completed_objectives": Completed,
    "failed_objectives": Failed,
    "acquired_capabilities": Capability,
    "recent_objectives_log": Attempt,
}
"""The lists of a memory file, and what is in them."""


class HistoryStore(Protocol):
    """Where a history is kept; safe to share between threads and processes."""

    def read(self) -> History:
        """Return what is kept, or the newest of it."""

    def add(self, entries: Sequence[Entry]) -> None:
        """Keep `entries`; when this returns they survive a loss of power.

        All are kept, or none and a SandboxError is raised. What is there already is not kept twice.
        """

    def search(self, text: str, limit: int) -> tuple[Completed | Failed, ...]:
        """Return up to `limit` objectives with every word of `text`, the newest first."""

    def close(self) -> None:
        """Let go of what is open; the next use opens it again."""

    def forget(self) -> None:
        """Let go, in a forked child, of what is its parent's."""


def parse_history(raw: Any) -> tuple[History, bool]:
    """Return what can be read of a memory file's JSON value, and whether that is all of it."""
    if not isinstance(raw, dict):
        return History(), False
    found: dict[str, Any] = {}
    is_whole = True
    for name, kind in LISTS.items():
        entries = raw.get(name)
        legible = [entry for entry in _listed(entries) if isinstance(entry, str | dict)]
        is_whole &= entries is None or (isinstance(entries, list) and entries == legible)
        found[name] = tuple(parse_entry(kind, entry) for entry in legible)
    extra = {key: value for key, value in raw.items() if key not in LISTS}
    return History(**found, extra=extra), is_whole


def parse_entry(kind: type[_Kind], raw: str | dict[str, Any]) -> _Kind:
    """Return the entry that `raw` tells of; a text alone is what it is about."""
    names = [item.name for item in dataclasses.fields(kind) if item.name != "extra"]
    if isinstance(raw, str):
        raw = {"description" if kind is Capability else "objective": raw}
    known = {name: _text(raw[name]) for name in names if raw.get(name) is not None}
    extra = {key: value for key, value in raw.items() if key not in names}
    return kind(**known, extra=extra)


def with_entry(history: History, entry: Entry) -> History:
    """Return `history` with `entry` at its end; an objective goes into the log of attempts too."""
    name = next(name for name, kind in LISTS.items() if kind is type(entry))
    if entry in getattr(history, name):
        return history
    changes: dict[str, Any] = {name: (*getattr(history, name), entry)}
    if isinstance(entry, Completed | Failed):
        attempt = attempt_of(entry)
        changes["recent_objectives_log"] = (*history.recent_objectives_log, attempt)[-RECENT:]
    return dataclasses.replace(history, **changes)


def attempt_of(entry: Completed | Failed) -> Attempt:
    """Return the line that the log of attempts has for `entry`."""
    return Attempt(entry.date, entry.objective, entry.status)


def cleaned(history: History) -> History:
    """Return `history` with the newest of each objective, and of these the newest 20."""
    newest = {entry.objective: entry for entry in history.tried}
    kept = _by_date(newest.values())[-KEPT:]
    return dataclasses.replace(
        history,
        completed_objectives=tuple(entry for entry in kept if isinstance(entry, Completed)),
        failed_objectives=tuple(entry for entry in kept if isinstance(entry, Failed)),
    )


def summary_of(history: History) -> str:
    """Return `history` for a model's prompt: one line for each entry, the newest first."""
    if not any(history.count(name) for name in LISTS):
        return "Nothing has been tried yet."
    completed, failed = map(history.count, ("completed_objectives", "failed_objectives"))
    capabilities = history.count("acquired_capabilities")
    lines = [f"{completed} objectives completed, {failed} failed; {capabilities} capabilities."]
    if history.tried:
        lines.append("Objectives, the newest first:")
        lines += [_told(entry) for entry in reversed(history.tried[-KEPT:])]
        lines += _rest(completed + failed - min(KEPT, len(history.tried)))
    if history.acquired_capabilities:
        lines.append("Capabilities, the newest first:")
        shown = history.acquired_capabilities[: -KEPT - 1 : -1]
        lines += [f"- {short(item.description)}" for item in shown]
        lines += _rest(capabilities - len(shown))
    if history.recent_objectives_log:
        lines.append("Last attempts, the newest first:")
        attempts = reversed(history.recent_objectives_log)
        lines += [f"- {attempt.status}: {short(attempt.objective, 80)}" for attempt in attempts]
    return "\n".join(lines)


def words_of(text: str) -> list[str]:
    """Return the words of `text` as they are sought: without case, accents and punctuation."""
    return re.findall(r"[^\W_]+", folded(text))


def folded(text: str) -> str:
    """Return `text` without case and accents."""
    letters = unicodedata.normalize("NFKD", text.casefold())
    return "".join(letter for letter in letters if not unicodedata.combining(letter))


def sought_text(entry: Completed | Failed) -> str:
    """Return all of `entry` that a search looks at, folded."""
    other = entry.strategy_used if isinstance(entry, Completed) else entry.reason
    return folded("\n".join((entry.objective, other, entry.details)))


def short(text: str, letters: int = _SHOWN_LETTERS) -> str:
    """Return `text` on one line and cut to `letters`; context flags that would go are kept."""
    line = " ".join(text.split())
    if len(line) <= letters:
        return line
    cut = line[:letters].rstrip()
    flags = [flag for flag in _FLAG.findall(line) if flag not in cut]
    return " ".join((f"{cut}…", *flags))


def _told(entry: Completed | Failed) -> str:
    if isinstance(entry, Completed):
        way = f" ({short(entry.strategy_used)})" if entry.strategy_used else ""
        text = f"- completed: {short(entry.objective)}{way}"
    else:
        reason = f" ({short(entry.reason)})" if entry.reason else ""
        text = f"- failed: {short(entry.objective)}{reason}"
    return f"{text}: {short(entry.details)}" if entry.details else text


def _rest(count: int) -> list[str]:
    return [f"- and {count} older"] if count > 0 else []


def _by_date(entries: Iterable[Completed | Failed]) -> tuple[Completed | Failed, ...]:
    return tuple(sorted(entries, key=lambda entry: _instant(entry.date)))


def _instant(date: str) -> float:
    """Return when `date` is, in seconds; what has no date is oldest. UTC is meant by default."""
    try:
        instant = datetime.fromisoformat(date)
    except ValueError:
        return float("-inf")
    return (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).timestamp()


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
