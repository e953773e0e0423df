from __future__ import annotations

import os

from sandbox_engine.containment import Confinement, Keeper, open_keeper
from sandbox_engine.keeper import wire
from sandbox_engine.process import Completed, Limits, Stop


def run(keeper: Keeper) -> Completed:
    return keeper.run(
        ["true"],
        cwd="/",
        env={"PATH": os.defpath},
        limits=Limits(wall_s=20),
        confinement=Confinement(),
        marker="test",
    )


def test_a_stop_that_comes_after_the_end_of_its_run_stops_nothing() -> None:
    with open_keeper() as keeper:
        assert run(keeper).code == 0
        wire.send(keeper._link, {"do": "stop"})
        done = run(keeper)
    assert (done.code, done.stop) == (0, None)


def test_a_keeper_that_is_gone_before_a_run_is_told_as_such() -> None:
    with open_keeper() as keeper:
        wire.send(keeper._link, {"do": "nothing that it knows"})
        assert wire.receive(keeper._link) is None
        assert run(keeper).stop is Stop.SUPERVISOR_LOST
