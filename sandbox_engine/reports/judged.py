"""A candidate and what became of it, as every report is given them."""

from __future__ import annotations

from dataclasses import dataclass

from sandbox_engine.verdict import Outcome, Verdict


@dataclass(frozen=True, slots=True)
class Judged:
    """A candidate by the name it was given with, and the verdict on it.

    Without a verdict `trouble` says what in the world was broken, and `hint` what to do. `diff` is
    what differs between the verdict's base and its tree, in git's format.
    """

    name: str
    verdict: Verdict | None = None
    trouble: str = ""
    hint: str | None = None
    diff: bytes | None = None

    @property
    def outcome(self) -> Outcome:
        """The verdict's; what could not be judged for a broken world is INCONCLUSIVE too."""
        return Outcome.INCONCLUSIVE if self.verdict is None else self.verdict.outcome

    @property
    def reason(self) -> str:
        """Why it is so, in one sentence."""
        return self.trouble if self.verdict is None else self.verdict.reason
