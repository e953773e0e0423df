"""What to do about a failure: an objective that corrects it, or nothing.

Rules say what can be corrected at all; what the correction is, a light model says, with a rule
behind it.
"""

from __future__ import annotations

from agent.agents import CORRECTION
from agent.brain import ask_for_sentence
from agent.cycles import Cycle, Ending
from agent.errors import LlmError
from agent.utils.chat import RawModel
from agent.utils.llm_client import LlmClient
from sandbox_engine import Cause, Outcome, describe

_SYSTEM = """\
An agent tried to reach an objective in a software project and failed. From the report below, name
the one objective that removes the cause: concrete, and small enough for one change. Answer with
the objective alone, in one sentence.
"""
_MOST_LETTERS = 12_000


def is_correctable(cycle: Cycle) -> bool:
    """Tell whether another change to the project could make what failed in `cycle` succeed.

    The world, the user's own edits and a used-up budget are no fault of a change.
    """
    if cycle.ending is not Ending.FAILURE or cycle.last is None or cycle.last.verdict is None:
        return False
    verdict = cycle.last.verdict
    if cycle.chosen is not None:
        return cycle.is_insane
    return verdict.outcome in (Outcome.REJECTED, Outcome.FAILED) or verdict.cause not in (
        Cause.INFRA,
        Cause.UNPROVED,
    )


async def suggest_correction(
    client: LlmClient, model: RawModel, cycle: Cycle, memory_summary: str
) -> str:
    """Return an objective that corrects what failed in `cycle`, which must be correctable."""
    verdict = cycle.last.verdict if cycle.last is not None else None
    report = "" if verdict is None else describe(verdict)[:_MOST_LETTERS]
    text = (
        f"# Objective\n\n{cycle.objective}\n\n# What went wrong\n\n{cycle.reason}\n\n"
        f"# Report\n\n{report}\n\n# History\n\n{memory_summary}"
    )
    try:
        said = await ask_for_sentence(client, model, _SYSTEM, text)
    except LlmError:
        said = f"Find out why this failed, and mend it: {cycle.objective} ({cycle.reason})"
    return f"{CORRECTION} {said.removeprefix(CORRECTION).strip()}"
