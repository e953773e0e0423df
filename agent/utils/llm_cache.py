"""Answers of models, kept in memory and in one file that all runs share.

The least recently used go first. Where the file cannot be used, because its disk is full or it
stays locked, the answers of this process are kept in memory alone from there on and a warning is
logged: an answer that was paid for must not be lost to its cache.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from agent.utils.answer_file import AnswerFile, Holding, KeptAnswer
from sandbox_engine import SandboxError

_T = TypeVar("_T")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is kept: answers in memory; answers, and bytes of them, in the file."""

    in_memory: int = 200
    answers: int = 10_000
    bytes: int = 256 * 1024**2


class LlmCache:
    """Keeps answers by the key of their request; safe to share between threads and processes.

    Without `path` they are kept in memory alone.
    """

    def __init__(self, path: Path | None = None, bounds: Bounds | None = None) -> None:
        self._bounds = bounds or Bounds()
        self._memory: OrderedDict[str, KeptAnswer] = OrderedDict()
        self._lock = threading.Lock()
        self._file = None if path is None else AnswerFile(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def find(self, key: str) -> KeptAnswer | None:
        """Return the answer kept for `key`, which is now the one used last, or None."""
        with self._lock:
            known = self._memory.get(key)
        if known is not None:
            self._on_disk(lambda file: file.touch(key))
        else:
            known = self._on_disk(lambda file: file.find(key))
        if known is not None:
            self._remember(key, known)
        return known

    def keep(self, key: str, answer: KeptAnswer) -> None:
        """Keep `answer` for `key`; beyond the bounds those go that were used longest ago."""
        self._remember(key, answer)
        bounds = self._bounds
        self._on_disk(
            lambda file: file.keep(key, answer, answers=bounds.answers, bytes=bounds.bytes)
        )

    def forget(self, key: str) -> None:
        """Drop the answer kept for `key`, if there is one."""
        with self._lock:
            self._memory.pop(key, None)
        self._on_disk(lambda file: file.forget(key))

    def clear(self) -> None:
        """Drop all answers."""
        with self._lock:
            self._memory.clear()
        self._on_disk(lambda file: file.clear())

    def holding(self) -> Holding:
        """Return how much the file holds; nothing where there is none, or none to be used."""
        return self._on_disk(lambda file: file.holding()) or Holding(0, 0)

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        if self._file is not None:
            self._file.close()

    def _remember(self, key: str, answer: KeptAnswer) -> None:
        with self._lock:
            self._memory[key] = answer
            self._memory.move_to_end(key)
            while len(self._memory) > self._bounds.in_memory:
                self._memory.popitem(last=False)

    def _on_disk(self, act: Callable[[AnswerFile], _T]) -> _T | None:
        """Return what `act` does with the file, or None where there is none that can be used."""
        file = self._file
        if file is None:
            return None
        try:
            return act(file)
        except SandboxError as error:
            self._file = None
            _logger.warning("answers are kept in memory alone from here on: %s", error.problem)
            return None
