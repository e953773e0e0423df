"""Runs cycles one after the other, until there were enough, or a person has had enough."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator

from agent.cycles import Cycle
from agent.hephaestus import HephaestusAgent


def run_cycles(
    agent: HephaestusAgent,
    cycles: int | None = 1,
    *,
    on_cycle: Callable[[Cycle], None] = lambda cycle: None,
) -> list[Cycle]:
    """Run that many cycles, or for ever for None, and return them; `on_cycle` is told of each.

    Between them it waits as the configuration says. SIGTERM ends it as Ctrl-C does, with
    KeyboardInterrupt: what runs is ended, and what is known is written.
    """
    done: list[Cycle] = []

    async def run() -> None:
        config = agent.config
        delay_s = (
            config.continuous_mode_delay_seconds if cycles is None else (config.cycle_delay_seconds)
        )
        with _terminable():
            while cycles is None or len(done) < cycles:
                if done:
                    await asyncio.sleep(delay_s)
                done.append(await agent.run_cycle_async())
                on_cycle(done[-1])

    try:
        asyncio.run(run())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    return done


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Have SIGTERM cancel the task of the block; elsewhere than in a main thread it is left."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    try:
        loop.add_signal_handler(signal.SIGTERM, task.cancel)
    except (RuntimeError, ValueError):
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
