"""What each setting is for, and a JSON Schema of all of them, for editors and the reference.

JSON Schema draft 7 (https://json-schema.org/draft-07), which editors of TOML understand.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from sandbox_engine.config import AUTO, MAY_BE_ZERO, STRATEGY_KEYS, Config
from sandbox_engine.recipe import StepKind
from sandbox_engine.verdict import Tier

ABOUT = {
    "strategy": "The strategy that is used when none is named.",
    "python": "The interpreter that runs the tests; found out where it is not set.",
    "carry": "Ignored files that tests need, as git's patterns: copied in, never unless named.",
    "setup": "Commands that make what tests need beside git's files, run once for the same locks.",
    "setup_network": "Whether these reach the network.",
    "env": "Variables that tests may see, beside a short list.",
    "source_roots": "Folders of top-level packages; `src` if there is one, else the top.",
    "syntax_exclude": "Patterns of files that are broken on purpose.",
    "max_file_bytes": "How large a changed file may be, in bytes.",
    "isolation": "How far runs are kept from all else: a tier, or the best that there is.",
    "min_isolation": "With less than this nothing is run, and the verdict is INCONCLUSIVE.",
    "readable": "Folders that runs may read beside those that all need, as absolute paths.",
    "timeout_s": "How long a step may take, in seconds.",
    "cpu_s": "How much processor time the processes of a step may take together, in seconds.",
    "memory_bytes": "How much memory they may use together, in bytes.",
    "processes": "How many there may be at once.",
    "open_files": "How many files each of them may have open.",
    "disk_bytes": "How much a run may write anywhere in its sandbox, in bytes.",
    "inodes": "How many files and folders it may make.",
    "output_bytes": "How much it may write to its output, in bytes.",
    "reruns": "How often a test that seems to be broken is run again before it is blamed.",
    "max_new_skips": "The share of the tests that the base runs and a patch may skip, 0 to 1.",
    "explain_runs": "How many runs of the broken tests an explanation may take.",
    "xdist_after_s": "pytest-xdist is used when the last run took longer, in seconds.",
    "slots": "How many sandboxes of a repository may be open at once.",
    "lease_wait_s": "How long a free one is waited for, in seconds.",
    "strategies": "Strategies of the project's own, by name.",
}
_STRATEGY_ABOUT = {
    "steps": "What is run, in order, up to the first that does not pass.",
    "description": "One line that says what it is for.",
    "network": "Whether its runs reach the network.",
    "writable": "Folders outside that its runs really change, as absolute paths.",
    "require": "Each `fixed:NODEID` is a test that is red without the patch and green with it.",
    "keep": "Patterns of node ids, of tests that have to be there and green.",
    "allow_test_changes": "Whether a patch may change what the tests prove.",
}


def schema() -> dict[str, Any]:
    """Return the schema of a configuration file, as JSON values."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "sandbox-engine.toml",
        "description": "Settings of sandbox-engine.",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            **{name: _setting(name) for name in _kinds()},
            "strategies": {
                "description": ABOUT["strategies"],
                "type": "object",
                "additionalProperties": _strategy(),
            },
        },
    }


def _kinds() -> dict[str, dataclasses.Field[Any]]:
    fields = {field.name: field for field in dataclasses.fields(Config)}
    del fields["strategies"]
    return fields


def _setting(name: str) -> dict[str, Any]:
    field = _kinds()[name]
    described = {"description": ABOUT[name], **_kind(name, str(field.type))}
    if field.default is not None:
        plain = list(field.default) if isinstance(field.default, tuple) else field.default
        described["default"] = plain
    return described


def _kind(name: str, kind: str) -> dict[str, Any]:
    if name in ("isolation", "min_isolation"):
        tiers = [str(tier) for tier in Tier]
        return {"enum": [AUTO, *tiers] if name == "isolation" else tiers}
    if kind.startswith("tuple"):
        return {"type": "array", "items": {"type": "string"}}
    if kind == "bool":
        return {"type": "boolean"}
    if kind.startswith("str"):
        return {"type": "string", "minLength": 1}
    bound: dict[str, Any] = {"minimum": 0} if name in MAY_BE_ZERO else {"exclusiveMinimum": 0}
    most = {"maximum": 1} if name == "max_new_skips" else {}
    return {"type": "integer" if kind == "int" else "number", **bound, **most}


def _strategy() -> dict[str, Any]:
    texts = {"type": "array", "items": {"type": "string"}}
    kinds: dict[str, dict[str, Any]] = {
        "steps": {"type": "array", "items": _step()},
        "description": {"type": "string"},
        "network": {"type": "boolean"},
        "writable": texts,
        "require": {"type": "array", "items": {"type": "string", "pattern": "^fixed:."}},
        "keep": texts,
        "allow_test_changes": {"type": "boolean"},
    }
    own = {
        name: {"description": _STRATEGY_ABOUT[name], **kinds[name]}
        if name in kinds
        else _setting(name)
        for name in STRATEGY_KEYS
    }
    return {
        "type": "object",
        "required": ["steps"],
        "additionalProperties": False,
        "properties": own,
    }


def _step() -> dict[str, Any]:
    words = {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    kinds = [str(kind) for kind in StepKind]
    return {
        "oneOf": [
            {"enum": [kind for kind in kinds if kind != StepKind.COMMAND]},
            {
                "type": "object",
                "minProperties": 1,
                "maxProperties": 1,
                "additionalProperties": False,
                "properties": {
                    kind: words
                    for kind in kinds
                    if kind not in (StepKind.SYNTAX, StepKind.NEW_TESTS)
                },
            },
        ]
    }
