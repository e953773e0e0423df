"""What the exit codes mean, in one place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sandbox_engine.verdict import Outcome

PASSED, REFUSED, USAGE, UNJUDGED, INTERRUPTED = 0, 1, 2, 3, 130


def code_of(outcome: Outcome) -> int:
    """Return the exit code of a command that judged one patch."""
    return {"PASSED": PASSED, "FAILED": REFUSED, "REJECTED": REFUSED}.get(outcome, UNJUDGED)


def code_of_all(outcomes: Sequence[Outcome]) -> int:
    """Return the exit code of a command that judged several: something wrong is told first."""
    codes = {code_of(outcome) for outcome in outcomes}
    return next((code for code in (REFUSED, UNJUDGED) if code in codes), PASSED)
