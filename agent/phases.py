"""The phases of a cycle: each is a small object that fills in its part of the cycle.

None touches the user's work tree but the promotion, and what that does the engine does. A phase
that ends the cycle says so in it; one that raises means that the world is broken, and what the
cycle was about is tried again by the next run.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from agent import brain
from agent.agents import CAPACITATION, ArchitectAgent, MaestroAgent
from agent.config import Config, SanityStep, Strategy, Task
from agent.cycles import Attempt, Cycle, Cycles, Ending, Kind
from agent.errors import UnfitAnswerError
from agent.history import short
from agent.memory import Memory
from agent.objectives import Objective, Objectives, read_objectives, write_objectives
from agent.progress import Progress
from agent.project_scanner import MANIFEST, analyze_code_metrics, update_project_manifest
from agent.strategies import is_proved, sanity_strategy
from agent.utils.chat import RawModel
from agent.utils.llm_client import LlmClient
from sandbox_engine import (
    Cancellation,
    Cause,
    Engine,
    LocalChangesError,
    Outcome,
    PromotionError,
    SandboxError,
    Verdict,
    describe,
)

_MOST_COMPLAINT = 20_000
_MOST_TARGETS = 20
_PATH = re.compile(r"[\w.-]+(?:/[\w.-]+)*\.\w+|[\w-]+(?:/[\w.-]+)+")


@dataclass(slots=True)
class Tools:
    """What the phases work with. With `is_dry` nothing is promoted and nothing saved."""

    root: Path
    config: Config
    engine: Engine
    client: LlmClient
    memory: Memory
    branch: str
    progress: Progress
    is_dry: bool = False
    _objectives: Objectives | None = None

    @property
    def cycles(self) -> Cycles:
        return Cycles(self.config.cycles_path)

    @property
    def objectives(self) -> Objectives:
        """What waits to be reached."""
        if self._objectives is None:
            self._objectives = read_objectives(self.config.cycles_path)
        return self._objectives

    @objectives.setter
    def objectives(self, objectives: Objectives) -> None:
        if not self.is_dry:
            write_objectives(self.config.cycles_path, objectives)
        self._objectives = objectives

    def save(self, cycle: Cycle) -> None:
        """Write what is known of `cycle`."""
        if not self.is_dry:
            self.cycles.save(cycle)

    def model(self, task: Task) -> RawModel:
        """Return the model for a task, as a question names one."""
        chosen = self.config.models.of(task)
        if chosen.fallback is None:
            return chosen.primary
        return {"primary": chosen.primary, "fallback": chosen.fallback}

    @contextlib.contextmanager
    def timed(self, seconds: dict[str, float], phase: str, waits_for: str = "") -> Iterator[None]:
        """Add what the block takes to `seconds`, and show it while it lasts."""
        started_s = time.monotonic()
        with self.progress.phase(phase, waits_for):
            try:
                yield
            finally:
                spent_s = time.monotonic() - started_s
                seconds[phase] = round(seconds.get(phase, 0.0) + spent_s, 6)


def told(model: RawModel) -> str:
    """Return the name of a model for a person."""
    return model if isinstance(model, str) else model["primary"]


@dataclass(frozen=True, slots=True)
class SetObjective:
    """Takes the objective that waits, or asks for one: metrics and manifest are made at once."""

    tools: Tools

    async def run(self, cycle: Cycle) -> None:
        """Set what the cycle is about, and which commit it starts from."""
        tools = self.tools
        cycle.base = tools.engine.tip(tools.branch)
        cycle.target = tools.branch
        if tools.objectives.next is None:
            tools.objectives = tools.objectives.pushed(Objective(await self._generated(cycle)))
        objective = tools.objectives.next
        assert objective is not None
        cycle.objective, cycle.kind = objective.text, objective.kind

    async def _generated(self, cycle: Cycle) -> str:
        tools, sizes = self.tools, self.tools.config.code_analysis_thresholds
        measure = functools.partial(
            analyze_code_metrics,
            tools.root,
            file_loc_threshold=sizes.file_loc,
            func_loc_threshold=sizes.function_loc,
            func_cc_threshold=sizes.function_cc,
            revision=cycle.base,
        )
        model = tools.model(Task.OBJECTIVE)
        with tools.timed(cycle.seconds, "objective", told(model)):
            metrics, manifest, history = await asyncio.gather(
                asyncio.to_thread(measure),
                asyncio.to_thread(manifest_of, tools, cycle.base, ()),
                asyncio.to_thread(tools.memory.summary),
            )
            return await brain.generate_next_objective_async(
                tools.client, model, manifest, metrics["summary"], history
            )


def manifest_of(tools: Tools, revision: str, targets: Sequence[str]) -> str:
    """Write the manifest of `revision` beside the cycles, if it changed, and return it."""
    path = tools.config.cycles_path / MANIFEST
    update_project_manifest(tools.root, targets, path, revision=revision)
    return path.read_text(encoding="utf-8", errors="backslashreplace")


def targets_of(objective: str) -> list[str]:
    """Return what may be paths in the text of an objective, each once."""
    found = [path.rstrip(".") for path in _PATH.findall(objective)]
    return list(dict.fromkeys(found))[:_MOST_TARGETS]


@dataclass(frozen=True, slots=True)
class DescribeProject:
    """Makes the manifest of the commit that the cycle starts from."""

    tools: Tools

    async def run(self, cycle: Cycle) -> str:
        """Return the manifest, with the whole text of what the objective names."""
        with self.tools.timed(cycle.seconds, "manifest"):
            targets = targets_of(cycle.objective)
            return await asyncio.to_thread(manifest_of, self.tools, cycle.base, targets)


@dataclass(frozen=True, slots=True)
class FindPlan:
    """Asks for plans, has each judged, and sends back what was refused, until one passes.

    Several candidates do so at once, in sandboxes of their own. The first that passes wins; the
    others are cancelled.
    """

    tools: Tools

    async def run(self, cycle: Cycle, manifest: str) -> None:
        """Fill in the attempts, and which of them is chosen; end the cycle if none is."""
        budgets = self.tools.config.budgets
        tokens_before = self.tools.client.ledger.total().tokens
        candidates = [
            _Candidate(self.tools, cycle, manifest, number, tokens_before)
            for number in range(self.tools.config.candidates)
        ]
        tasks = [asyncio.create_task(candidate.run()) for candidate in candidates]
        try:
            async with asyncio.timeout(budgets.seconds):
                cycle.chosen = await _first(tasks)
        except TimeoutError:
            cycle.end(Ending.FAILURE, f"the budget of {budgets.seconds:g} s is used up", "budget")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        told_of = cycle.last.candidate if cycle.last is not None else 0
        for phase, seconds in candidates[told_of].seconds.items():
            cycle.seconds[phase] = round(cycle.seconds.get(phase, 0.0) + seconds, 6)
        if cycle.chosen is None and not cycle.is_over:
            await self._give_up(cycle)

    async def _give_up(self, cycle: Cycle) -> None:
        last, tools = cycle.last, self.tools
        assert last is not None
        waiting = tools.objectives.next
        lacks = last.strategy == CAPACITATION
        if not lacks or waiting is None or waiting.has_capacitation:
            context = CAPACITATION if lacks else _context(last)
            cycle.end(Ending.FAILURE, short(last.problem.partition("\n")[0], 500), context)
            return
        model = tools.model(Task.CAPACITATION)
        with tools.timed(cycle.seconds, "maestro", told(model)):
            cycle.follow_up = await brain.generate_capacitation_objective_async(
                tools.client, model, cycle.objective, last.plan
            )
        cycle.follow_up_kind = Kind.CAPACITATION
        cycle.end(Ending.POSTPONED, "the agent lacks a capability", CAPACITATION)


def _context(attempt: Attempt) -> str:
    verdict = attempt.verdict
    if verdict is None:
        return "no plan"
    return f"{verdict.outcome}" + (f", {verdict.cause}" if verdict.cause is not None else "")


async def _first(tasks: Sequence[asyncio.Task[int | None]]) -> int | None:
    """Return what the first task comes to that comes to something; None if none does.

    An error counts when no task comes to anything.
    """
    pending = set(tasks)
    error: BaseException | None = None
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if (raised := task.exception()) is not None:
                error = raised
            elif (chosen := task.result()) is not None:
                return chosen
    if error is not None:
        raise error
    return None


@dataclass(slots=True)
class _Candidate:
    """One line of plans for a cycle: each answers what was wrong with the one before."""

    tools: Tools
    cycle: Cycle
    manifest: str
    number: int
    tokens_before: int
    seconds: dict[str, float] = field(default_factory=dict)
    _complaints: list[str] = field(default_factory=list)

    async def run(self) -> int | None:
        """Return the index of the attempt that passed, None when there will be none."""
        budgets = self.tools.config.budgets
        for number in range(1, budgets.attempts + 1):
            attempt = await self._attempt(number)
            spent = self.tools.client.ledger.total().tokens - self.tokens_before
            is_last = spent >= budgets.tokens
            if attempt.problem and is_last:
                problem = f"the budget of {budgets.tokens} tokens is used up; {attempt.problem}"
                attempt = replace(attempt, problem=problem)
            index = len(self.cycle.attempts)
            self.cycle.attempts.append(attempt)
            self.tools.save(self.cycle)
            if not attempt.problem:
                return index
            if is_last or _is_hopeless(attempt):
                return None
            self._complaints.append(attempt.problem)
        return None

    async def _attempt(self, number: int) -> Attempt:
        tools, cycle = self.tools, self.cycle
        blank = Attempt(self.number, number)
        model = tools.model(Task.ARCHITECT)
        architect = ArchitectAgent(tools.client, model)
        try:
            with tools.timed(self.seconds, "architect", told(model)):
                plan = await architect.plan_action_async(
                    cycle.objective,
                    self.manifest,
                    complaints=self._complaints,
                    variant=str(self.number or ""),
                )
        except UnfitAnswerError as error:
            return replace(blank, plan=error.content, problem=error.complaint)
        strategy = await self._strategy(plan.text)
        attempt = replace(blank, plan=plan.text, strategy=strategy)
        if strategy == CAPACITATION:
            return replace(attempt, problem="the maestro says that the agent lacks a capability")
        if not tools.config.validation_strategies[strategy].steps:
            return replace(attempt, problem=f"the maestro chose `{strategy}`, which has no steps")
        with tools.timed(self.seconds, "validation", "the sandbox"):
            verdict = await validated(tools.engine, plan.text, cycle.base, strategy)
        cycle.engine_seconds = round(cycle.engine_seconds + verdict.elapsed_s, 6)
        if verdict.outcome is Outcome.PASSED:
            return replace(attempt, verdict=verdict)
        problem = describe(verdict)[:_MOST_COMPLAINT]
        return replace(attempt, verdict=verdict, problem=problem)

    async def _strategy(self, plan: str) -> str:
        tools = self.tools
        model = tools.model(Task.MAESTRO)
        maestro = MaestroAgent(
            tools.client,
            model,
            tools.config.validation_strategies,
            tools.config.test_fix_strategy,
        )
        with tools.timed(self.seconds, "maestro", told(model)):
            history = await asyncio.to_thread(tools.memory.summary)
            return await maestro.choose_strategy_async(plan, history, self.cycle.objective)


def _is_hopeless(attempt: Attempt) -> bool:
    """Tell whether another plan would fare no better."""
    if attempt.verdict is None:
        return bool(attempt.strategy)
    return attempt.verdict.cause is Cause.INFRA


async def validated(engine: Engine, patch: str | bytes, base: str, strategy: str) -> Verdict:
    """Return the engine's verdict; whoever cancels this has the validation ended, and waits."""
    cancellation = Cancellation()
    call = functools.partial(
        engine.validate,
        patch,
        base=base,
        strategy=strategy,
        format="json" if isinstance(patch, str) else None,
        cancellation=cancellation,
    )
    work = asyncio.get_running_loop().run_in_executor(None, call)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        cancellation.cancel()
        with contextlib.suppress(SandboxError):
            await work
        raise


@dataclass(frozen=True, slots=True)
class Promote:
    """Lands the chosen plan as one commit on the branch; the only phase that changes anything."""

    tools: Tools

    async def run(self, cycle: Cycle) -> None:
        """Make the commit, or end the cycle."""
        tools, winner = self.tools, cycle.winner
        assert winner is not None and winner.verdict is not None
        verdict = winner.verdict
        assert verdict.tree is not None
        cycle.diff = tools.engine.diff(verdict.base, verdict.tree).decode("utf-8", "replace")
        if not _strategy_of(tools, cycle).promotes:
            cycle.end(Ending.SUCCESS, f"judged and, as `{winner.strategy}` says, not promoted")
            return
        with tools.timed(cycle.seconds, "commit"):
            cycle.message = cycle.message or await self._message(cycle, verdict)
        if tools.is_dry:
            cycle.end(Ending.SUCCESS, "it passed; nothing was promoted, because this is a dry run")
            return
        cycle.is_landing = True
        tools.save(cycle)
        with tools.timed(cycle.seconds, "promotion", tools.branch):
            try:
                cycle.commit = await asyncio.to_thread(self._landed, cycle, verdict)
            except LocalChangesError as error:
                cycle.end(Ending.FAILURE, f"{error.problem}; {error.remedy}", "local changes")
            except PromotionError as error:
                cycle.end(Ending.FAILURE, f"{error.problem}; {error.remedy}", "promotion")
        tools.save(cycle)

    async def _message(self, cycle: Cycle, verdict: Verdict) -> str:
        tools = self.tools
        by_model = tools.config.commit_message_by_model
        return await brain.generate_commit_message_async(
            cycle.objective,
            verdict.changed_paths,
            client=tools.client if by_model else None,
            model=tools.model(Task.COMMIT_MESSAGE) if by_model else None,
        )

    def _landed(self, cycle: Cycle, verdict: Verdict) -> str:
        """Return the commit, made now or by a run that was killed before it could say so."""
        engine = self.tools.engine
        return engine.find_landed(verdict, branch=cycle.target) or engine.promote(
            verdict, branch=cycle.target, message=cycle.message
        )


@dataclass(frozen=True, slots=True)
class CheckSanity:
    """Looks once more at what has landed, and takes exactly that off again if it is not well.

    What landed is the very tree that was judged, so a step of its own strategy proves nothing
    more; another step is made on the commit as it is.
    """

    tools: Tools

    async def run(self, cycle: Cycle) -> None:
        """End the cycle, well or not."""
        tools = self.tools
        strategy = _strategy_of(tools, cycle)
        if strategy.sanity_check_step is not SanityStep.SKIP_SANITY_CHECK:
            with tools.timed(cycle.seconds, "sanity", "the sandbox"):
                if (problem := await self._problem(cycle, strategy)) is not None:
                    await asyncio.to_thread(self._undo, cycle, problem)
                    return
        cycle.end(Ending.SUCCESS, f"committed as {cycle.commit[:12]} on `{cycle.target}`")

    async def _problem(self, cycle: Cycle, strategy: Strategy) -> str | None:
        """Return what is wrong with the commit, or None."""
        if is_proved(strategy):
            return None
        engine = self.tools.engine
        parent = engine.parent(cycle.commit)
        patch = await asyncio.to_thread(engine.diff, parent, cycle.commit)
        name = sanity_strategy(strategy.sanity_check_step)
        verdict = await validated(engine, patch, parent, name)
        cycle.engine_seconds = round(cycle.engine_seconds + verdict.elapsed_s, 6)
        return None if verdict.outcome is Outcome.PASSED else describe(verdict)

    def _undo(self, cycle: Cycle, problem: str) -> None:
        cycle.is_insane = True
        first = problem.partition("\n")[0]
        try:
            self.tools.engine.withdraw(cycle.commit, branch=cycle.target)
        except PromotionError as error:
            undone = f"{cycle.commit[:12]} is still there, because {error.problem}"
        else:
            undone = f"{cycle.commit[:12]} was taken off `{cycle.target}` again"
        cycle.end(Ending.FAILURE, f"the sanity check found: {first}; {undone}", "sanity")


def _strategy_of(tools: Tools, cycle: Cycle) -> Strategy:
    """Return the strategy that the winner passed; one that promotes nothing if it is gone."""
    assert cycle.winner is not None
    return tools.config.validation_strategies.get(cycle.winner.strategy, Strategy(()))
