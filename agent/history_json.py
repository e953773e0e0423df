"""A history in one JSON file, as the original has it: small, and cleaned up as it grows.

The file is read anew for each addition, under a lock, so that two agents on one file lose nothing
of each other's. What cannot be read of it is set aside before it is written over.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from agent import files
from agent.history import (
    KEPT,
    RECENT,
    Completed,
    Entry,
    Failed,
    History,
    cleaned,
    parse_history,
    sought_text,
    with_entry,
    words_of,
)

_log = logging.getLogger(__name__)


class JsonHistory:
    """The history in the file at `path`; every fifth addition of an objective cleans up."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._since_cleanup = 0
        self._is_swept = False

    def read(self) -> History:
        with files.told(self._path, "read"):
            history, _, _ = self._parsed()
        return history

    def add(self, entries: Sequence[Entry]) -> None:
        with files.told(self._path, "written"), files.locked(self._path):
            if not self._is_swept:
                files.sweep_halves(self._path)
                self._is_swept = True
            history, content, is_whole = self._parsed()
            if not is_whole:
                kept = files.set_aside(self._path, "damaged", content)
                _log.warning("`%s` is damaged: a copy of it is kept as `%s`", self._path, kept)
            history, count = _with_entries(history, entries, self._since_cleanup)
            text = json.dumps(history.to_json(), indent=4, ensure_ascii=False)
            files.write_whole(self._path, text.encode("utf-8", "surrogatepass"))
            self._since_cleanup = count

    def search(self, text: str, limit: int) -> tuple[Completed | Failed, ...]:
        words = words_of(text)
        found = [
            entry
            for entry in reversed(self.read().tried)
            if words and all(word in sought_text(entry) for word in words)
        ]
        return tuple(found[:limit])

    def close(self) -> None:
        """Do nothing: the file is open only while it is read or written."""

    def forget(self) -> None:
        """Do nothing: a lock is never held across a fork."""

    def _parsed(self) -> tuple[History, bytes, bool]:
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return History(), b"", True
        try:
            raw = json.loads(content.decode("utf-8-sig", "surrogatepass")) if content else {}
        except (ValueError, RecursionError):
            return History(), content, False
        return (parsed := parse_history(raw))[0], content, parsed[1]


def _with_entries(
    history: History, entries: Sequence[Entry], since_cleanup: int
) -> tuple[History, int]:
    """Return `history` with `entries`, and how many objectives were added since it was cleaned.

    It is also cleaned when it has grown by as many in the hands of others.
    """
    for entry in entries:
        history = with_entry(history, entry)
        since_cleanup += isinstance(entry, Completed | Failed)
        if since_cleanup >= RECENT or len(history.tried) >= KEPT + RECENT:
            history, since_cleanup = cleaned(history), 0
    return dataclasses.replace(history, older={}), since_cleanup
