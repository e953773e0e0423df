"""What to do next, and how to call what was done: questions for a light model, with rules behind.

A rule answers where no model does: an agent that has no objective would stand still.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from agent import commit_message
from agent.errors import LlmError
from agent.utils.chat import RawModel
from agent.utils.llm_client import LlmClient, Question, Validate

_MOST_LETTERS = 1_000
_SHOWN = 5
_NEXT = """\
You steer an agent that improves a software project step by step. From the metrics, the history and
the manifest below, name the one objective that helps most now: concrete, small enough for one
change, and not among those that failed. Answer with the objective alone, in one sentence.
"""
_CAPACITATION = """\
An agent cannot reach an objective because it lacks a capability. Name one objective that gives it
that capability: a small change to the agent's own project. Answer with the objective alone, in one
sentence.
"""
_COMMIT = """\
Write the header of a commit message in the form of Conventional Commits: at most 72 characters,
`type(scope): subject`, the type one of {types}. Answer with the header alone.
"""


def generate_next_objective(
    client: LlmClient,
    model: RawModel,
    manifest: str,
    summary: Mapping[str, Sequence[Any]],
    memory_summary: str = "",
) -> str:
    """Return the next objective; `summary` is that of `analyze_code_metrics`."""
    asked = generate_next_objective_async(client, model, manifest, summary, memory_summary)
    return asyncio.run(asked)


async def generate_next_objective_async(
    client: LlmClient,
    model: RawModel,
    manifest: str,
    summary: Mapping[str, Sequence[Any]],
    memory_summary: str = "",
) -> str:
    """Return what `generate_next_objective` does, inside of an event loop."""
    told = metrics_told(summary)
    text = f"# Metrics\n\n{told}\n\n# History\n\n{memory_summary}\n\n# Manifest\n\n{manifest}"
    try:
        return await ask_for_sentence(client, model, _NEXT, text)
    except LlmError:
        return objective_by_rule(summary, memory_summary)


def generate_capacitation_objective(
    client: LlmClient, model: RawModel, objective: str, analysis: str
) -> str:
    """Return an objective that gives the agent what `objective` needs; raise LlmError for none."""
    asked = generate_capacitation_objective_async(client, model, objective, analysis)
    return asyncio.run(asked)


async def generate_capacitation_objective_async(
    client: LlmClient, model: RawModel, objective: str, analysis: str
) -> str:
    """Return what `generate_capacitation_objective` does, inside of an event loop."""
    text = f"# Objective\n\n{objective}\n\n# Analysis\n\n{analysis}"
    return await ask_for_sentence(client, model, _CAPACITATION, text)


def generate_commit_message(
    objective: str,
    paths: Sequence[str],
    *,
    client: LlmClient | None = None,
    model: RawModel | None = None,
) -> str:
    """Return a message for a commit that changes `paths`: by rule, and by a model if one is given.

    A model is asked only where the rules have no confident answer, and is not needed.
    """
    asked = generate_commit_message_async(objective, paths, client=client, model=model)
    return asyncio.run(asked)


async def generate_commit_message_async(
    objective: str,
    paths: Sequence[str],
    *,
    client: LlmClient | None = None,
    model: RawModel | None = None,
) -> str:
    """Return what `generate_commit_message` does, inside of an event loop."""
    if (message := commit_message.by_rule(objective, paths)) is not None:
        return message
    fallback = commit_message.written("chore", objective, paths)
    if client is None or model is None:
        return fallback
    text = "# Objective\n\n{}\n\n# Changed files\n\n{}".format(objective, "\n".join(paths))
    system = _COMMIT.format(types=", ".join(commit_message.TYPES))
    try:
        header = await _asked(client, model, system, text, _check_header)
    except LlmError:
        return fallback
    return f"{header.strip()}\n\n{objective}"


def objective_by_rule(summary: Mapping[str, Sequence[Any]], memory_summary: str = "") -> str:
    """Return an objective for what the metrics show to be worst and the history does not name."""
    wishes = [
        *(f"Simplify `{name}` in {path}" for path, name, _ in _worst(summary, "complex_functions")),
        *(f"Split `{name}` in {path}" for path, name, _ in _worst(summary, "large_functions")),
        *(f"Write tests for {path}" for path in summary.get("missing_tests", ())),
        *(f"Split {path} by meaning" for path, _ in _worst(summary, "large_files")),
    ]
    untried = (wish for wish in wishes if wish not in memory_summary)
    return next(untried, "Improve the documentation of the module that is hardest to understand")


def metrics_told(summary: Mapping[str, Sequence[Any]]) -> str:
    """Return the worst of the metrics as text for a model."""
    lines = [
        *(f"- {path}: {loc} lines" for path, loc in _worst(summary, "large_files")[:_SHOWN]),
        *_functions_told(summary, "large_functions", "lines"),
        *_functions_told(summary, "complex_functions", "cyclomatic complexity"),
        *(f"- {path}: no test" for path in list(summary.get("missing_tests", ()))[:_SHOWN]),
    ]
    return "\n".join(lines) or "Nothing is large, complex or untested."


def _functions_told(summary: Mapping[str, Sequence[Any]], what: str, unit: str) -> list[str]:
    worst = _worst(summary, what)[:_SHOWN]
    return [f"- {path}, `{name}`: {unit} {number}" for path, name, number in worst]


def _worst(summary: Mapping[str, Sequence[Any]], what: str) -> list[Any]:
    return sorted(summary.get(what, ()), key=lambda one: one[-1], reverse=True)


async def ask_for_sentence(client: LlmClient, model: RawModel, system: str, text: str) -> str:
    """Return a model's answer on one line; raise LlmError for none that may be an objective."""
    return " ".join((await _asked(client, model, system, text, _check_sentence)).split())


async def _asked(
    client: LlmClient, model: RawModel, system: str, text: str, validate: Validate
) -> str:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
    question = Question(messages, model, temperature=0.3, validate=validate)
    return (await client.ask_async(question)).content


def _check_sentence(text: str) -> None:
    if not text.strip() or len(text) > _MOST_LETTERS:
        raise ValueError(f"an objective is one sentence of at most {_MOST_LETTERS} letters")


def _check_header(text: str) -> None:
    if not commit_message.is_header(text.strip()):
        raise ValueError("that is no header of a Conventional Commit of at most 72 characters")
