"""A project, a scripted model and a configuration: what a test of the agent works with."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conftest import CODE, TESTS, GitBox

from agent.config import Config, Models, Strategy
from agent.hephaestus import HephaestusAgent
from agent.scripted_model import ScriptedModel

SWAP = ("    return a + b\n", "    return b + a\n")
BREAK = ("    return a + b\n", "    return a - b\n")
PYTEST = "SYNTAX_AND_PYTEST"


def plan(*edits: Mapping[str, Any]) -> dict[str, Any]:
    """Return a plan of these operations."""
    return {"analysis": "why", "patches_to_apply": list(edits)}


def replacing(old: str | None, new: str, path: str = "calc.py") -> dict[str, Any]:
    """Return a plan of one replacement."""
    return plan(
        {"file_path": path, "operation": "REPLACE", "block_to_replace": old, "content": new}
    )


def adding(path: str, content: str) -> dict[str, Any]:
    """Return a plan that adds a file."""
    return plan({"file_path": path, "operation": "INSERT", "content": content})


@dataclass
class AgentWorld:
    """A repository with tests, and folders for what the agent keeps."""

    box: GitBox
    home: Path
    settings: dict[str, Any] = field(default_factory=dict)

    def config(self, base_url: str, **settings: Any) -> Config:
        """Return a configuration of models `arch`, `maestro` and `light` at an address."""
        return Config(
            **{
                "models": Models(
                    architect_default="arch", maestro_default="maestro", light="light"
                ),
                "base_url": base_url,
                "api_key_variable": None,
                "memory_file_path": self.home / "memory.json",
                "evolution_log_path": self.home / "log.csv",
                "cycles_path": self.home / "cycles",
                "cycle_delay_seconds": 0.0,
                **self.settings,
                **settings,
            }
        )

    @contextlib.contextmanager
    def agent(
        self,
        plans: Sequence[Any],
        *,
        strategy: str = PYTEST,
        light: Sequence[str] = (),
        rules: Sequence[Mapping[str, Any]] = (),
        options: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Iterator[tuple[HephaestusAgent, ScriptedModel]]:
        """Yield an agent whose architect answers with `plans` in turn, and its model.

        A plan is a value, or an answer of a script with a fault or a delay.
        """
        answers = [one if "analysis" not in one else {"json": one} for one in plans]
        script = {
            "rules": [
                *rules,
                {"model": "arch", "answers": answers},
                {
                    "model": "maestro",
                    "answers": [{"json": {"strategy_key": strategy}, "times": None}],
                },
                *(
                    [{"model": "light", "answers": [{"content": one} for one in light]}]
                    if light
                    else []
                ),
            ],
            "answers": [{"content": "Tidy calc.py", "times": None}],
        }
        script["rules"] = [rule for rule in script["rules"] if rule["answers"]]
        with ScriptedModel(script) as model:
            config = self.config(model.base_url, **settings)
            with HephaestusAgent(self.box.top, config, **(options or {})) as agent:
                yield agent, model

    def memory(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((self.home / "memory.json").read_text())
        return record


def make_world(box: GitBox, home: Path) -> AgentWorld:
    """Commit a small project to `box`, and make `home` for what is kept."""
    box.commit({"calc.py": CODE, "tests/test_calc.py": TESTS, "other.txt": "other\n"})
    home.mkdir()
    return AgentWorld(box, home)


def strategy(*steps: str, sanity: str = "skip_sanity_check") -> Strategy:
    """Return a strategy of the configuration, as a file would name it."""
    from pydantic import TypeAdapter

    raw = {"steps": list(steps), "sanity_check_step": sanity}
    return TypeAdapter(Strategy).validate_python(raw)
