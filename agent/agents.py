"""Two roles that a model plays: the architect writes patches, the maestro says how to judge them.

Each asks one question and checks the answer; what to do with it is the cycle's.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from agent.answers import Plan, ReadAnswer, read_plan, read_strategy
from agent.utils.chat import Message, RawModel
from agent.utils.llm_client import LlmClient, Question, Validate

CAPACITATION = "CAPACITATION_REQUIRED"
"""What a maestro says where the agent cannot do yet what the plan needs."""
CORRECTION = "[AUTOMATIC CORRECTION]"
"""How an objective begins that corrects a failure."""
TEST_FIX_FLAG = "[CONTEXT_FLAG] TEST_FIX_IN_PROGRESS"
AUTO_CORRECTION = "AUTO_CORRECTION_STRATEGY"

_ARCHITECT = """\
You are the architect of a software project. You are given an objective and a manifest of the
project, and you answer with one JSON object and nothing else:

{"analysis": "why these changes reach the objective", "patches_to_apply": [OPERATION, ...]}

An OPERATION has `file_path`, relative to the project, `operation`, and:
- INSERT: `line_number` (1-based, before that line; null appends) and `content`. It creates a file.
- REPLACE: `block_to_replace`, copied from the file exactly, and `content`. A null block replaces
  the whole file.
- DELETE_BLOCK: `block_to_delete`, copied from the file exactly. A null block deletes the file.
`content` is a text, or a list of lines. A block must occur exactly once. Change no more than the
objective needs, and do not weaken tests.
"""
_MAESTRO = """\
You choose how a plan of changes is validated. You are given the plan, what was tried before, and
the strategies with their steps. Answer with one JSON object and nothing else:

{{"strategy_key": "KEY"}}

KEY is one of: {keys}. Choose the cheapest that proves enough, and CAPACITATION_REQUIRED if the
agent lacks what the plan needs.
"""


@dataclass(frozen=True, slots=True)
class ArchitectAgent:
    """Asks `model` for plans."""

    client: LlmClient
    model: RawModel

    def plan_action(
        self, objective: str, manifest: str, *, complaints: Sequence[str] = (), variant: str = ""
    ) -> ReadAnswer[Plan]:
        """Return a plan for `objective`, whose text is a patch for the engine.

        `complaints` tell what was wrong with earlier plans, the last one last. Of one question
        several answers can be had with a `variant` for each. Raise LlmError where there is none.
        """
        question = self._question(objective, manifest, complaints, variant)
        return read_plan(self.client.ask(question).content)

    async def plan_action_async(
        self, objective: str, manifest: str, *, complaints: Sequence[str] = (), variant: str = ""
    ) -> ReadAnswer[Plan]:
        """Return what `plan_action` does, inside of an event loop."""
        question = self._question(objective, manifest, complaints, variant)
        return read_plan((await self.client.ask_async(question)).content)

    def _question(
        self, objective: str, manifest: str, complaints: Sequence[str], variant: str
    ) -> Question:
        messages = [
            {"role": "system", "content": _ARCHITECT},
            {"role": "user", "content": f"# Objective\n\n{objective}\n\n# Manifest\n\n{manifest}"},
        ]
        if complaints:
            listed = "\n\n".join(complaints)
            text = f"# Your last plan was refused\n\n{listed}\n\nAnswer with a whole new plan."
            messages.append({"role": "user", "content": text})
        return _question(messages, self.model, read_plan, variant)


@dataclass(frozen=True, slots=True)
class MaestroAgent:
    """Chooses one of `strategies` by rule where a rule holds, and asks `model` else."""

    client: LlmClient
    model: RawModel
    strategies: Collection[str]
    test_fix: str | None = None

    def choose_strategy(self, plan: str, memory_summary: str, objective: str = "") -> str:
        """Return a key of the strategies, or CAPACITATION_REQUIRED; raise LlmError for none."""
        if (chosen := self._by_rule(memory_summary, objective)) is not None:
            return chosen
        answer = self.client.ask(self._question(plan, memory_summary))
        return read_strategy(answer.content, self._known)

    async def choose_strategy_async(
        self, plan: str, memory_summary: str, objective: str = ""
    ) -> str:
        """Return what `choose_strategy` does, inside of an event loop."""
        if (chosen := self._by_rule(memory_summary, objective)) is not None:
            return chosen
        answer = await self.client.ask_async(self._question(plan, memory_summary))
        return read_strategy(answer.content, self._known)

    @property
    def _known(self) -> tuple[str, ...]:
        return (*self.strategies, CAPACITATION)

    def _by_rule(self, memory_summary: str, objective: str) -> str | None:
        if self.test_fix is not None and TEST_FIX_FLAG in memory_summary:
            return self.test_fix
        if objective.startswith(CORRECTION) and AUTO_CORRECTION in self.strategies:
            return AUTO_CORRECTION
        return None

    def _question(self, plan: str, memory_summary: str) -> Question:
        known = self._known
        messages = [
            {"role": "system", "content": _MAESTRO.format(keys=", ".join(known))},
            {"role": "user", "content": f"# Plan\n\n{plan}\n\n# History\n\n{memory_summary}"},
        ]
        return _question(messages, self.model, lambda text: read_strategy(text, known))


def _question(
    messages: Sequence[Message], model: RawModel, validate: Validate, variant: str = ""
) -> Question:
    return Question(messages, model, temperature=0.2, validate=validate, variant=variant)
