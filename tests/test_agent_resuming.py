"""A cycle that is interrupted anywhere is gone on with, and counts once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from agent_world import SWAP, AgentWorld, adding, make_world, replacing
from conftest import GitBox

from agent import evolution_log
from agent.cycles import Attempt, Cycle, Cycles, Ending, Kind
from agent.hephaestus import HephaestusAgent
from agent.objectives import Objective, Objectives, read_objectives, write_objectives
from sandbox_engine import Engine

pytestmark = pytest.mark.usefixtures("no_reruns")


@pytest.fixture
def world(box: GitBox, tmp_path: Path) -> AgentWorld:
    return make_world(box, tmp_path / "agent")


POINTS = (
    "agent.phases.FindPlan.run",
    "agent.phases._Candidate._attempt",
    "agent.phases.Promote.run",
    "sandbox_engine.Engine.find_landed",
    "sandbox_engine.Engine.promote",
    "agent.phases.CheckSanity.run",
    "agent.hephaestus.HephaestusAgent._remember",
    "agent.hephaestus.HephaestusAgent._log",
    "agent.objectives.write_objectives",
)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("point", POINTS)
def test_an_interrupted_cycle_counts_once(
    world: AgentWorld, point: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(BaseException):
        pass

    box, base = world.box, world.box.head
    with world.agent([replacing(*SWAP)] * 3) as (agent, model):
        agent.add_objective("Swap the operands")
        home, _, name = point.rpartition(".")
        if name == "write_objectives":
            home = "agent.phases"
        real = pytest.importorskip(home) if home == "agent.phases" else _owner(home)
        call = getattr(real, name)

        def broken(*arguments: object, **keywords: object) -> object:
            if when == "before":
                raise Interrupted
            call(*arguments, **keywords)
            raise Interrupted

        async def broken_async(*arguments: object, **keywords: object) -> object:
            if when == "before":
                raise Interrupted
            await call(*arguments, **keywords)
            raise Interrupted

        is_async = name in ("run", "_attempt")
        with monkeypatch.context() as patch:
            patch.setattr(real, name, broken_async if is_async else broken)
            with pytest.raises(Interrupted):
                agent.run_cycle()
        agent.close()
        with HephaestusAgent(box.top, agent.config) as other:
            if read_objectives(world.home / "cycles").closed == 0:
                cycle = other.run_cycle()
                assert (cycle.number, cycle.ending) == (1, Ending.SUCCESS)
                assert cycle.commit == box.head
    assert box.git("rev-list", "--count", f"{base}..main") == "1"
    assert box.git("status", "--porcelain") == ""
    (done,) = world.memory()["completed_objectives"]
    assert (done["objective"], done["details"]) == ("Swap the operands", box.head)
    (row,) = evolution_log.read(world.home / "log.csv")
    assert (row["ciclo"], row["status"]) == ("1", "sucesso")
    assert read_objectives(world.home / "cycles") == Objectives((), 1)
    # An answer that was given is not paid for twice.
    assert [one.model for one in model.asked] == ["arch", "maestro"]


def _owner(path: str) -> object:
    """Return the class that a dotted path leads to."""
    module, _, name = path.rpartition(".")
    return getattr(pytest.importorskip(module), name)


def test_a_landing_that_was_merged_meanwhile_is_known_again(world: AgentWorld) -> None:
    box = world.box
    with world.agent([replacing(*SWAP)]) as (agent, _):
        agent.add_objective("Swap the operands")
        cycle = agent.run_cycle()
        # As if it had been killed right after the promotion, and somebody had gone on.
        cycle.commit, cycle.ending, cycle.ended = "", None, ""
        Cycles(world.home / "cycles").save(cycle)
        write_objectives(world.home / "cycles", Objectives((Objective("Swap the operands"),), 0))
        landed = box.head
        agent.close()
        box.commit({"later.txt": "later\n"})
        with HephaestusAgent(box.top, agent.config) as other:
            assert other.run_cycle().commit == landed
    assert box.git("rev-list", "--count", "main") == "3"


def test_a_cycle_is_read_as_it_was_saved(world: AgentWorld, tmp_path: Path) -> None:
    verdict = Engine(world.box.top).validate(
        json.dumps(adding("a.py", "A = 1\n")), strategy="SYNTAX_ONLY"
    )
    cycle = Cycle(7, "2026-01-02", "é \udcff", Kind.CORRECTION)
    cycle.attempts = [Attempt(0, 1, "plan", "SYNTAX_ONLY", verdict), Attempt(1, 1, problem="x")]
    cycle.end(Ending.POSTPONED, "why", "context")
    cycles = Cycles(tmp_path / "cycles")
    cycles.save(cycle)
    known = cycles.read(7)
    assert known is not None and known.attempts == cycle.attempts
    assert known.ending is Ending.POSTPONED and known.kind is Kind.CORRECTION
    assert [one.number for one in cycles] == [7]
    (tmp_path / "cycles" / "0007" / "cycle.json").write_text('{"number": 7')
    assert cycles.read(7) is None and list(cycles) == [] and cycles.read(8) is None


def test_a_damaged_stack_is_set_aside_and_no_number_is_used_twice(tmp_path: Path) -> None:
    folder = tmp_path / "cycles"
    (folder / "0012").mkdir(parents=True)
    (folder / "notes").mkdir()
    stack = Objectives().pushed(Objective("a")).pushed(Objective("b", Kind.CORRECTION))
    write_objectives(folder, stack)
    assert read_objectives(folder) == stack
    for text in ("{", "[]", '{"closed": 1}', '{"closed": 1, "waiting": [{"text": "a"}]}'):
        (folder / "objectives.json").write_text(text)
        assert read_objectives(folder) == Objectives((), 12)
    assert len(list(folder.glob("objectives.json.damaged-*"))) == 4
    assert read_objectives(folder) == Objectives((), 12)
    assert read_objectives(tmp_path / "none") == Objectives()
