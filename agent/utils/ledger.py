"""What calls of models cost, and what the cache saved: values that can be added and subtracted.

What a cycle or a phase costs is the difference between two readings of one `Ledger`.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Usage:
    """What some calls cost together.

    A call is a question of the caller's; it looks into the cache once for each model it asks
    (`hits`, `misses`) and sends as many `requests` as its retries need. Tokens and `cost_usd` are
    what the servers said, of refused and unfit answers too, and 0 where they said nothing.
    `elapsed_s` adds up calls that overlap. What `saved_...` counts is what the answers from the
    cache cost when they were asked for.
    """

    calls: int = 0
    requests: int = 0
    hits: int = 0
    misses: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    elapsed_s: float = 0.0
    saved_tokens: int = 0
    saved_usd: float = 0.0
    saved_s: float = 0.0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        return self._with(other, 1)

    def __sub__(self, other: Usage) -> Usage:
        return self._with(other, -1)

    def _with(self, other: Usage, sign: int) -> Usage:
        names = [field.name for field in dataclasses.fields(self)]
        return Usage(**{name: getattr(self, name) + sign * getattr(other, name) for name in names})


class Ledger:
    """Adds up usage by model; safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._usage: dict[str, Usage] = {}

    def add(self, model: str, usage: Usage) -> None:
        """Enter what `model` was asked for and gave."""
        with self._lock:
            self._usage[model] = self._usage.get(model, Usage()) + usage

    def by_model(self) -> Mapping[str, Usage]:
        """Return the usage of each model so far, as it stands now."""
        with self._lock:
            return dict(self._usage)

    def total(self) -> Usage:
        """Return the usage of all models so far."""
        return sum(self.by_model().values(), Usage())
