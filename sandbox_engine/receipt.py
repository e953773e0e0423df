"""Receipts: what exactly passed, under which conditions, in a form that can be checked later.

A receipt is data that leaves the engine: as a file beside a patch, as a note on a commit. Its
digest tells whether it is as it was written, and is its name in the verdict cache. It is no
signature: what makes a receipt true is that the engine can recompute what it says.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SCHEMA = 1
"""Version of the JSON form; it changes too when a fact of the environment is taken otherwise."""

_ID = re.compile(r"[0-9a-f]{40}")
_IDS = ("base", "base_tree", "tree")
_TEXTS = ("strategy", "recipe", "engine_version", "digest")


@dataclass(frozen=True, slots=True)
class Receipt:
    """What goes with a verdict that PASSED.

    `tree` is what was judged, made out of the commit `base`, whose tree is `base_tree`. `recipe` is
    the fingerprint of the recipe of `strategy` with `demands`. `environment` maps names to facts or
    digests of them. `categories` counts tests by what the patch did to them, `outcomes` those that
    were compared with nothing. `digest` is over all the rest; `seal` gives it.
    """

    base: str
    base_tree: str
    tree: str
    strategy: str
    recipe: str
    demands: Mapping[str, Any]
    environment: Mapping[str, str]
    categories: Mapping[str, int]
    outcomes: Mapping[str, int]
    engine_version: str
    digest: str = ""

    @property
    def is_sound(self) -> bool:
        """Whether the digest is that of the rest."""
        return self.digest == _digest(self)

    def to_json(self) -> dict[str, Any]:
        """Return the receipt as JSON values, in the form of `docs/verdict.schema.json`."""
        return {"schema": SCHEMA, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, record: Any) -> Receipt:
        """Return the receipt that `to_json` wrote; ValueError for one altered, or none."""
        receipt = parse_receipt(record)
        if not receipt.is_sound:
            raise ValueError("the digest of the receipt is not that of its content")
        return receipt


def seal(receipt: Receipt) -> Receipt:
    """Return `receipt` with its digest."""
    return dataclasses.replace(receipt, digest=_digest(receipt))


def parse_receipt(record: Any) -> Receipt:
    """Return the receipt in `record`, altered or not; raise ValueError for what is none."""
    if not isinstance(record, dict):
        raise ValueError("a receipt is a JSON object")
    if record.get("schema") != SCHEMA:
        raise ValueError(f"receipt of schema {record.get('schema')!r}, wanted {SCHEMA}")
    fields = {key: value for key, value in record.items() if key != "schema"}
    if fields.keys() != {field.name for field in dataclasses.fields(Receipt)}:
        raise ValueError("not the fields of a receipt")
    for name, value in fields.items():
        if not _is_fit(name, value):
            raise ValueError(f"`{name}` is not what a receipt has there")
    return Receipt(**fields)


def _is_fit(name: str, value: Any) -> bool:
    if name in _IDS:
        return isinstance(value, str) and _ID.fullmatch(value) is not None
    if name in _TEXTS:
        return isinstance(value, str)
    kinds = {"environment": str, "categories": int, "outcomes": int}
    return isinstance(value, dict) and all(
        isinstance(item, kinds.get(name, object)) for item in value.values()
    )


def _digest(receipt: Receipt) -> str:
    record = receipt.to_json()
    del record["digest"]
    canonical = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
