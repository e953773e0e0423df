"""The agent: one cycle after the other, each from an objective to a commit or a lesson.

    agent = HephaestusAgent("path/to/repository", load_config(path))
    cycle = agent.run_cycle()

A cycle that was interrupted, by whatever, is gone on with by the next agent that has the same
`cycles_path`: one that had begun to land is completed, and any other is done again, which the
caches of models and verdicts make cheap.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from agent import evolution_log, files
from agent.config import Config, Task
from agent.cycles import Cycle, Ending, Kind, require_folder
from agent.error_analyzer import is_correctable, suggest_correction
from agent.memory import Memory
from agent.objectives import Objective
from agent.phases import (
    CheckSanity,
    DescribeProject,
    FindPlan,
    Promote,
    SetObjective,
    Tools,
    told,
)
from agent.progress import Progress
from agent.strategies import engine_config
from agent.utils.llm_cache import Bounds, LlmCache
from agent.utils.llm_client import LlmClient
from agent.utils.wire import Endpoint
from sandbox_engine import Engine, IsolationError, Outcome, TestOutcome, Verdict, load_config

_log = logging.getLogger(__name__)
_LOCK_WAIT_S = 2.0


class HephaestusAgent:
    """Improves the repository at `repo` in cycles.

    What lands goes to `branch`, which is made where the work tree is now if it does not exist; by
    default it is the branch that is checked out. With `is_dry` nothing lands, and nothing is
    remembered. `client` and `progress` replace those that the configuration asks for.
    """

    def __init__(
        self,
        repo: str | os.PathLike[str],
        config: Config,
        *,
        branch: str | None = None,
        client: LlmClient | None = None,
        progress: Progress | None = None,
        is_dry: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Open the repository, the memory and the caches.

        Raise UsageError for a repository or a branch that cannot be used, IsolationError where a
        model's patches could not be isolated and the configuration does not allow that, and
        SandboxBusyError while another agent has the same `cycles_path`.
        """
        variables = os.environ if environment is None else environment
        root = Engine(repo).repository.top or Path(repo)
        engine = Engine(repo, config=engine_config(config, load_config(root)))
        if not config.allow_unisolated:
            _require_isolation(engine)
        require_folder(config.cycles_path)
        self._held = contextlib.ExitStack()
        if not is_dry:
            lock = files.locked(config.cycles_path / "agent", timeout_s=_LOCK_WAIT_S)
            self._held.enter_context(lock)
        self._tools = Tools(
            root,
            config,
            engine,
            client or _client(config, variables),
            Memory(config.memory_file_path, backend=config.memory_backend),
            engine.require_branch(branch),
            progress or Progress(is_quiet=True),
            is_dry,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write what is to be remembered, and let another agent go on."""
        with self._held:
            self._tools.memory.close()
            self._tools.progress.close()

    @property
    def config(self) -> Config:
        return self._tools.config

    @property
    def memory(self) -> Memory:
        return self._tools.memory

    def add_objective(self, text: str) -> None:
        """Have `text` reached before all else, unless it is what is next anyway."""
        waiting = self._tools.objectives
        if waiting.next is None or waiting.next.text != text:
            self._tools.objectives = waiting.pushed(Objective(text))

    def run_cycle(self) -> Cycle:
        """Run one cycle and return it; see `run_cycle_async`, which is for inside an event loop."""
        return asyncio.run(self.run_cycle_async())

    async def run_cycle_async(self) -> Cycle:
        """Run one cycle, a new one or one that was interrupted, and return it.

        Raise LlmError where no model can be reached, and another SandboxError where the world is
        broken; the objective waits then for the next run.
        """
        tools = self._tools
        started_s = time.monotonic()
        usage = tools.client.ledger.total()
        cycle = self._begun()
        if not cycle.is_over:
            if not cycle.is_landing:
                await SetObjective(tools).run(cycle)
                tools.progress.say(f"cycle {cycle.number}: {cycle.objective}")
                manifest = await DescribeProject(tools).run(cycle)
                await FindPlan(tools).run(cycle, manifest)
            if not cycle.is_over:
                await Promote(tools).run(cycle)
            if not cycle.is_over:
                await CheckSanity(tools).run(cycle)
            await self._learn(cycle)
            cycle.usage = tools.client.ledger.total() - usage
            cycle.elapsed_s = round(time.monotonic() - started_s, 6)
            cycle.ended = _now()
            tools.save(cycle)
        await self._close(cycle)
        return cycle

    def _begun(self) -> Cycle:
        """Return the cycle to run: one that had begun to land, or had ended, or else a new one."""
        number = self._tools.objectives.closed + 1
        interrupted = None if self._tools.is_dry else self._tools.cycles.read(number)
        if interrupted is not None and (interrupted.is_landing or interrupted.ended):
            _log.info("cycle %d was interrupted, and is gone on with", number)
            if not interrupted.ended:
                interrupted.ending = None
            return interrupted
        return Cycle(number, _now())

    async def _learn(self, cycle: Cycle) -> None:
        """Find an objective that corrects what failed; a correction is not corrected."""
        tools = self._tools
        if cycle.kind is Kind.CORRECTION or not is_correctable(cycle):
            return
        history = await asyncio.to_thread(lambda: tools.memory.history)
        failures = history.failures_in_a_row(cycle.objective) + 1
        if failures >= tools.config.degenerative_loop_threshold:
            cycle.context = f"degenerative loop: {cycle.context}"
            return
        model = tools.model(Task.ERROR_ANALYSIS)
        with tools.timed(cycle.seconds, "objective", told(model)):
            cycle.follow_up = await suggest_correction(
                tools.client, model, cycle, tools.memory.summary()
            )
            cycle.follow_up_kind = Kind.CORRECTION

    async def _close(self, cycle: Cycle) -> None:
        """Remember the cycle, log it, and take its objective off; repeated, it does nothing more.

        What waits changes last: until then a run that is killed comes back to here.
        """
        tools = self._tools
        if not tools.is_dry:
            with tools.timed(cycle.seconds, "memory"):
                await asyncio.to_thread(self._remember, cycle)
            await asyncio.gather(
                asyncio.to_thread(tools.save, cycle), asyncio.to_thread(self._log, cycle)
            )
        tools.objectives = tools.objectives.after(cycle)
        tools.progress.say(f"cycle {cycle.number}: {cycle.ending}: {cycle.reason}")

    def _remember(self, cycle: Cycle) -> None:
        memory, last = self._tools.memory, cycle.last
        if cycle.ending is Ending.SUCCESS:
            strategy = last.strategy if last is not None else ""
            details = cycle.commit or cycle.reason
            memory.add_completed_objective(cycle.objective, strategy, details, date=cycle.ended)
            if cycle.kind is Kind.CAPACITATION:
                memory.add_capability(cycle.objective, cycle.objective, date=cycle.ended)
        elif cycle.ending is Ending.FAILURE:
            reason = cycle.context or "failure"
            memory.add_failed_objective(cycle.objective, reason, cycle.reason, date=cycle.ended)
        memory.flush()

    def _log(self, cycle: Cycle) -> None:
        path = self._tools.config.evolution_log_path
        key = (str(cycle.number), cycle.started)
        rows = evolution_log.read(path)
        if any((row.get("ciclo"), row.get("timestamp_inicio")) == key for row in rows[-1:]):
            return
        evolution_log.append(path, _row(cycle))

    def _execute_validation_strategy(self, plan: str, strategy_key: str) -> Verdict:
        """Return the verdict on a plan that is applied to the tip of the branch."""
        tools = self._tools
        base = tools.engine.tip(tools.branch)
        return tools.engine.validate(plan, base=base, strategy=strategy_key, format="json")


def _row(cycle: Cycle) -> evolution_log.Cycle:
    last = cycle.last
    verdict = last.verdict if last is not None else None
    return evolution_log.Cycle(
        cycle.number,
        cycle.objective,
        cycle.ending is Ending.SUCCESS,
        cycle.elapsed_s,
        cycle.started,
        cycle.ended,
        strategy=last.strategy if last is not None else "",
        quality=_quality(verdict),
        reason=cycle.reason,
        context=cycle.context,
        phases=tuple(cycle.seconds.items()),
        llm_calls=cycle.usage.calls,
        llm_cache_hits=cycle.usage.hits,
        llm_tokens=cycle.usage.tokens,
        attempts=len(cycle.attempts),
        verdict="" if verdict is None else str(verdict.outcome),
        tree=(verdict.tree or "") if verdict is not None else "",
        engine_seconds=cycle.engine_seconds,
    )


def _quality(verdict: Verdict | None) -> float | None:
    """Return the share of the tests that ran that are green, None where none ran."""
    if verdict is None or verdict.outcome is Outcome.REJECTED:
        return None
    outcomes = [test.outcome for step in verdict.steps for test in step.tests]
    ran = [one for one in outcomes if one not in (None, TestOutcome.SKIPPED)]
    return sum(not one.is_red for one in ran if one is not None) / len(ran) if ran else None


def _client(config: Config, environment: Mapping[str, str]) -> LlmClient:
    name = config.api_key_variable
    endpoint = Endpoint(config.base_url, "" if name is None else environment.get(name, ""))
    kept = config.llm_cache
    if not kept.enabled:
        return LlmClient(endpoint)
    home = environment.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    path = Path(home) / "hephaestus" / "answers.sqlite3"
    return LlmClient(endpoint, cache=LlmCache(path, Bounds(answers=kept.entries)))


def _require_isolation(engine: Engine) -> None:
    obstacle = engine.isolation_obstacle()
    if obstacle is not None:
        raise IsolationError(
            "a model's patches would be run without full isolation, which is not allowed: "
            f"{obstacle.problem}",
            remedy=f"{obstacle.remedy}; or set `allow_unisolated` in the configuration, and let "
            "the patches do whatever you can do",
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
