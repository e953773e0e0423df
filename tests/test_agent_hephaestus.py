"""Whole cycles over real HTTP, real git and real sandboxes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from agent_world import (
    BREAK,
    PYTEST,
    SWAP,
    AgentWorld,
    adding,
    make_world,
    plan,
    replacing,
    strategy,
)
from conftest import GitBox

from agent import evolution_log
from agent.agents import CAPACITATION, CORRECTION
from agent.config import Budgets, Models
from agent.cycle_runner import run_cycles
from agent.cycles import Cycles, Ending, Kind
from agent.errors import LlmError
from agent.hephaestus import HephaestusAgent
from agent.objectives import read_objectives
from sandbox_engine import IsolationError, Outcome, SandboxBusyError, UsageError
from sandbox_engine.isolation.tiers import WITHOUT

pytestmark = pytest.mark.usefixtures("no_reruns")


@pytest.fixture
def world(box: GitBox, tmp_path: Path) -> AgentWorld:
    return make_world(box, tmp_path / "agent")


def test_a_plan_that_passes_is_committed_alone(world: AgentWorld) -> None:
    box, base = world.box, world.box.head
    box.write({"other.txt": "an edit of the user's\n", "untracked.txt": "new\n"})
    with world.agent([replacing(*SWAP)]) as (agent, model):
        agent.add_objective("Refactor calc.py: swap the operands")
        cycle = agent.run_cycle()
    assert (cycle.ending, cycle.commit) == (Ending.SUCCESS, box.head)
    assert box.git("diff", "--stat", base, "HEAD").startswith(" calc.py | 2 +-")
    assert box.git("status", "--porcelain") == " M other.txt\n?? untracked.txt"
    assert box.git("log", "-1", "--format=%s") == "refactor(calc): refactor calc.py"
    # What was asked: a manifest of the commit, with the file that the objective names.
    said = model.asked[0].text
    assert "Refactor calc.py" in said and "`add(a, b)`" in said and "return a + b" in said
    assert (completed := world.memory()["completed_objectives"][0])["details"] == box.head
    assert completed["strategy_used"] == PYTEST
    (row,) = evolution_log.read(world.home / "log.csv")
    assert (row["ciclo"], row["status"], row["verdict"]) == ("1", "sucesso", "PASSED")
    assert row["score_qualidade"] == "1.000" and row["attempts"] == "1"
    for phase in ("manifest", "architect", "maestro", "validation", "promotion", "memory"):
        assert float(row[f"seconds_{phase}"]) >= 0.0
    assert float(row["engine_seconds"]) > 0.0 and row["tree"] == cycle.attempts[0].verdict.tree
    # All of it can be read again.
    (saved,) = Cycles(world.home / "cycles")
    assert saved.to_json() == cycle.to_json() and "return b + a" in saved.diff


def test_a_refused_plan_goes_back_with_what_is_wrong(world: AgentWorld) -> None:
    plans = [
        {"json": plan(), "fault": "invalid-json"},
        replacing("nowhere\n", "x\n"),
        replacing("    return a + b\n", "    return (a + b\n"),
        replacing(*BREAK),
        replacing(*SWAP),
    ]
    with world.agent(plans, budgets=Budgets(attempts=5)) as (agent, model):
        agent.add_objective("Swap the operands")
        cycle = agent.run_cycle()
    assert cycle.ending is Ending.SUCCESS and len(cycle.attempts) == 5
    assert world.box.head == cycle.commit
    told = [asked.text for asked in model.asked if asked.model == "arch"]
    wanted = ["", "one JSON object", "nowhere in the file", "syntax-error", "regressed"]
    for text, word in zip(told, wanted, strict=True):
        assert word in text
    assert "test_calc.py::test_add" in told[-1]


def test_what_fails_is_remembered_and_corrected_before_it_is_tried_again(
    world: AgentWorld,
) -> None:
    plans = [replacing(*BREAK), adding("helper.py", "X = 1\n"), replacing(*SWAP)]
    with world.agent(plans, light=["Add a helper first"], budgets=Budgets(attempts=1)) as (
        agent,
        _,
    ):
        agent.add_objective("Swap the operands")
        failed, correction, again = run_cycles(agent, 3)
    assert (failed.ending, failed.context) == (Ending.FAILURE, "FAILED")
    assert correction.objective == f"{CORRECTION} Add a helper first"
    assert correction.kind is Kind.CORRECTION
    # By rule, without a question to the maestro.
    assert correction.attempts[0].strategy == "AUTO_CORRECTION_STRATEGY"
    assert again.objective == "Swap the operands" and again.ending is Ending.SUCCESS
    record = world.memory()
    assert [one["objective"] for one in record["failed_objectives"]] == ["Swap the operands"]
    assert len(record["completed_objectives"]) == 2
    assert [one["status"] for one in record["recent_objectives_log"]] == [
        *("failure", "success", "success"),
    ]


def test_an_objective_that_fails_again_and_again_is_dropped(world: AgentWorld) -> None:
    with world.agent([replacing(*BREAK)] * 9, budgets=Budgets(attempts=1)) as (agent, _):
        agent.add_objective("Break it")
        cycles = run_cycles(agent, 6)
    kinds = [cycle.kind for cycle in cycles]
    assert kinds == [Kind.OBJECTIVE, Kind.CORRECTION] * 2 + [Kind.OBJECTIVE] * 2
    assert [cycle.objective for cycle in cycles[:5:2]] == ["Break it"] * 3
    assert "degenerative loop" in cycles[4].context
    assert cycles[5].objective == "Tidy calc.py"


def test_what_needs_a_capability_waits_for_it_once(world: AgentWorld) -> None:
    rules = [
        {
            "model": "maestro",
            "matches": r"\$\$\$",
            "answers": [{"json": {"strategy_key": CAPACITATION}, "times": None}],
        }
    ]
    hard = replacing(SWAP[0], "    return b + a  # $$$\n")
    with world.agent(
        [hard, adding("able.py", "X = 1\n"), hard], rules=rules, light=["Learn to do it"]
    ) as (agent, _):
        agent.add_objective("Do the hard thing")
        postponed, learned, again = run_cycles(agent, 3)
    assert (postponed.ending, postponed.follow_up) == (Ending.POSTPONED, "Learn to do it")
    assert (learned.kind, learned.ending) == (Kind.CAPACITATION, Ending.SUCCESS)
    assert (again.ending, again.objective) == (Ending.FAILURE, "Do the hard thing")
    record = world.memory()
    (capability,) = record["acquired_capabilities"]
    assert capability["description"] == "Learn to do it"
    assert read_objectives(world.home / "cycles").waiting == ()


def test_what_is_found_after_the_commit_takes_exactly_that_off_again(world: AgentWorld) -> None:
    box, base = world.box, world.box.head
    box.write({"other.txt": "an edit of the user's\n"})
    strategies = {"LAX": strategy("validate_syntax", "apply_patches_to_disk", sanity="run_pytest")}
    with world.agent([replacing(*BREAK)], strategy="LAX", validation_strategies=strategies) as (
        agent,
        _,
    ):
        agent.add_objective("Break it")
        cycle = agent.run_cycle()
    assert (cycle.ending, cycle.context) == (Ending.FAILURE, "sanity")
    assert "was taken off `main` again" in cycle.reason and cycle.follow_up
    assert box.head == base and box.git("status", "--porcelain") == " M other.txt"
    reflog = box.git("reflog", "main")
    assert "promote" in reflog and "withdraw" in reflog


def test_a_sanity_check_that_finds_nothing_leaves_the_commit(world: AgentWorld) -> None:
    strategies = {"LAX": strategy("apply_patches_to_disk", "validate_syntax", sanity="run_pytest")}
    with world.agent([replacing(*SWAP)], strategy="LAX", validation_strategies=strategies) as (
        agent,
        _,
    ):
        cycle = agent.run_cycle()
    assert cycle.ending is Ending.SUCCESS and cycle.commit == world.box.head
    assert cycle.seconds["sanity"] > 0.01


def test_an_edit_of_the_users_that_would_be_lost_is_refused(world: AgentWorld) -> None:
    box = world.box
    box.write({"calc.py": "def add(a, b):\n    return a + b  # mine\n"})
    before = box.snapshot()
    with world.agent([replacing(*SWAP)]) as (agent, _):
        agent.add_objective("Swap the operands")
        cycle = agent.run_cycle()
    assert (cycle.ending, cycle.context) == (Ending.FAILURE, "local changes")
    assert "calc.py" in cycle.reason and not cycle.follow_up
    after = box.snapshot()
    assert {k: v for k, v in after.items() if ".git" not in k} == {
        k: v for k, v in before.items() if ".git" not in k
    }
    assert box.git("log", "--oneline").count("\n") == 0


def test_a_branch_of_its_own_leaves_the_users_alone(world: AgentWorld) -> None:
    box, base = world.box, world.box.head
    box.write({"calc.py": "def add(a, b):\n    return a + b  # mine\n"})
    before = {name: state for name, state in box.snapshot().items() if ".git" not in name}
    plans = [replacing(*SWAP), replacing(SWAP[1], "    return sum((a, b))\n")]
    with world.agent(plans, options={"branch": "agent/tidy"}) as (agent, model):
        run_cycles(agent, 2)
    assert box.head == base
    assert box.git("rev-list", "--count", f"{base}..agent/tidy") == "2"
    assert b"sum((a, b))" in box.files("agent/tidy")["calc.py"]
    assert {k: v for k, v in box.snapshot().items() if ".git" not in k} == before
    # The second plan is made on what the branch holds, not on what the work tree does.
    assert "return b + a" in [one.text for one in model.asked if one.model == "arch"][1]


def test_a_dry_run_changes_and_remembers_nothing(world: AgentWorld) -> None:
    before = world.box.snapshot()
    with world.agent([replacing(*SWAP)], options={"is_dry": True}) as (agent, _):
        agent.add_objective("Swap the operands")
        cycle = agent.run_cycle()
    assert cycle.ending is Ending.SUCCESS and "dry run" in cycle.reason
    assert "return b + a" in cycle.diff and cycle.message
    assert world.box.snapshot() == before
    assert sorted(path.name for path in world.home.rglob("*")) == ["AGENTS.md", "cycles"]


def test_a_strategy_that_does_not_promote_judges_alone(world: AgentWorld) -> None:
    head = world.box.head
    strategies = {"JUDGE": strategy("validate_syntax")}
    with world.agent([replacing(*SWAP)], strategy="JUDGE", validation_strategies=strategies) as (
        agent,
        _,
    ):
        cycle = agent.run_cycle()
    assert cycle.ending is Ending.SUCCESS and "not promoted" in cycle.reason
    assert world.box.head == head


@pytest.mark.parametrize("steps", [(), ("apply_patches_to_disk",)])
def test_what_proves_nothing_is_never_promoted(world: AgentWorld, steps: tuple[str, ...]) -> None:
    head = world.box.head
    with world.agent(
        [replacing(*SWAP)] * 3,
        strategy="NOTHING",
        validation_strategies={"NOTHING": strategy(*steps)},
    ) as (agent, _):
        cycle = agent.run_cycle()
    assert cycle.ending is Ending.FAILURE and world.box.head == head


def test_the_first_candidate_that_passes_wins_and_the_others_are_cancelled(
    world: AgentWorld,
) -> None:
    slow = adding("tests/test_slow.py", "import time\n\ndef test_slow(): time.sleep(100)\n")
    began = time.monotonic()
    with world.agent([slow, {"json": replacing(*SWAP), "delay_s": 1.0}], candidates=2) as (
        agent,
        _,
    ):
        cycle = agent.run_cycle()
    assert time.monotonic() - began < 60
    assert cycle.ending is Ending.SUCCESS
    assert cycle.diff.count("return b + a") == 1 and len(cycle.attempts) == 1
    assert "tests/test_slow.py" not in world.box.files()


def test_budgets_end_what_takes_too_much(world: AgentWorld) -> None:
    with world.agent([{"fault": "hang"}], budgets=Budgets(seconds=1.0)) as (agent, _):
        agent.add_objective("Wait")
        began = time.monotonic()
        cycle = agent.run_cycle()
        assert time.monotonic() - began < 10
    assert (cycle.ending, cycle.reason) == (Ending.FAILURE, "the budget of 1 s is used up")
    with world.agent(
        [{"json": replacing(*BREAK), "prompt_tokens": 600}] * 3, budgets=Budgets(tokens=1000)
    ) as (agent, _):
        agent.add_objective("Spend")
        cycle = agent.run_cycle()
    assert len(cycle.attempts) == 2
    assert cycle.reason.startswith("the budget of 1000 tokens is used up")


def test_without_a_model_nothing_is_lost(world: AgentWorld) -> None:
    config = world.config("http://127.0.0.1:9/v1", models=Models(architect_default="arch"))
    with HephaestusAgent(world.box.top, config) as agent:
        agent.add_objective("Swap the operands")
        with pytest.raises(LlmError):
            agent.run_cycle()
    assert not (world.home / "memory.json").exists()
    with world.agent([replacing(*SWAP)]) as (agent, _):
        cycle = agent.run_cycle()
    assert (cycle.number, cycle.objective) == (1, "Swap the operands")
    assert cycle.ending is Ending.SUCCESS


def test_without_full_isolation_nothing_is_started(
    world: AgentWorld, full_tier: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WITHOUT, "bubblewrap")
    with (
        pytest.raises(IsolationError, match="not allowed") as refused,
        world.agent([replacing(*SWAP)]),
    ):
        pass
    assert "allow_unisolated" in refused.value.remedy and WITHOUT in refused.value.remedy
    with world.agent([replacing(*SWAP)], allow_unisolated=True) as (agent, _):
        cycle = agent.run_cycle()
    assert cycle.ending is Ending.SUCCESS
    verdict = cycle.attempts[0].verdict
    assert verdict is not None and verdict.isolation != "full"


def test_a_repository_that_cannot_be_worked_on_is_refused(
    world: AgentWorld, tmp_path: Path
) -> None:
    config = world.config("http://127.0.0.1:9/v1")
    with pytest.raises(UsageError):
        HephaestusAgent(tmp_path, config)
    world.box.git("switch", "-q", "--detach")
    with pytest.raises(UsageError, match="no branch is checked out"):
        HephaestusAgent(world.box.top, config)


def test_the_validation_can_be_called_by_itself(world: AgentWorld) -> None:
    with world.agent([]) as (agent, _):
        passed = agent._execute_validation_strategy(json.dumps(replacing(*SWAP)), PYTEST)
        failed = agent._execute_validation_strategy(json.dumps(replacing(*BREAK)), PYTEST)
    assert (passed.outcome, failed.outcome) == (Outcome.PASSED, Outcome.FAILED)


def test_fifty_cycles_leave_a_dirty_work_tree_as_it_is(world: AgentWorld) -> None:
    box = world.box
    box.commit({"removed.txt": "x\n", "staged.txt": "x\n", "both.txt": "x\n", "run.sh": "x\n"})
    box.write({"staged.txt": "staged\n", "both.txt": "staged\n"})
    box.git("add", "staged.txt", "both.txt")
    box.write({"both.txt": "and edited\n", "other.txt": "edited\n", "removed.txt": None})
    box.write({"deep/new.txt": "untracked\n", "notes.bin": b"\0\xff\r\n"})
    (box.top / "run.sh").chmod(0o755)
    (box.top / "link").symlink_to("other.txt")

    def mine() -> tuple[dict[str, str], str]:
        files = {
            name: state
            for name, state in box.snapshot().items()
            if not name.startswith((".git", "generated"))
        }
        return files, box.git("status", "--porcelain") + box.git("diff") + box.git(
            "diff", "--cached"
        )

    before, base = mine(), box.head
    plans = [adding(f"generated/f{number}.py", f"N = {number}\n") for number in range(50)]
    clash = [replacing("x\n", "y\n", name) for name in ("both.txt", "staged.txt", "removed.txt")]
    with world.agent([*plans, *clash], strategy="SYNTAX_ONLY") as (agent, _):
        cycles = run_cycles(agent, 50)
        assert {cycle.ending for cycle in cycles} == {Ending.SUCCESS}
        assert mine() == before
        refused = run_cycles(agent, 3)
    assert {cycle.context for cycle in refused} == {"local changes"}
    assert mine() == before
    assert box.git("rev-list", "--count", f"{base}..HEAD") == "50"


def test_two_agents_do_not_share_what_they_keep(world: AgentWorld) -> None:
    with world.agent([replacing(*SWAP)]) as (agent, _):
        with pytest.raises(SandboxBusyError, match="stayed locked"):
            HephaestusAgent(world.box.top, agent.config)
        # A dry run keeps nothing.
        HephaestusAgent(world.box.top, agent.config, is_dry=True).close()
        agent.close()
        with HephaestusAgent(world.box.top, agent.config) as other:
            assert other.run_cycle().ending is Ending.SUCCESS
