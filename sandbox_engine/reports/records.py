"""What was judged as JSON: one verdict, or several, or a line for each as it comes.

A verdict has the form of docs/verdict.schema.json; docs/reference/verdict.md tells what stands
around several.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sandbox_engine.reports.judged import Judged
from sandbox_engine.verdict import SCHEMA


def one(judged: Judged) -> str:
    """Return the verdict alone; what has none is told as one of several is."""
    return _text(_record(judged) if judged.verdict is None else judged.verdict.to_json())


def several(judged: Sequence[Judged]) -> str:
    """Return all of them in one object."""
    return _text({"schema": SCHEMA, "results": [_record(one) for one in judged]})


def line(judged: Judged) -> str:
    """Return one of several as a line without its ending (https://jsonlines.org)."""
    return json.dumps(_record(judged), separators=(",", ":"))


def _record(judged: Judged) -> dict[str, Any]:
    verdict = judged.verdict
    return {
        "name": judged.name,
        "verdict": None if verdict is None else verdict.to_json(),
        "trouble": judged.trouble or None,
        "hint": judged.hint,
    }


def _text(record: dict[str, Any]) -> str:
    return json.dumps(record, indent=2) + "\n"
