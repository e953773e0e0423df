"""Runs analysers in processes of their own: on all cores, and where a crash hurts nobody.

radon holds the interpreter's lock, and source that is made to be hostile can end the interpreter
that parses it. A worker costs about a tenth of a second to start, is started when there is work
for it, and ends with its input, so that none outlives us.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox_engine import process
from sandbox_engine.analysis.analysers import Analyser, NotAnalysableError, Unknown
from sandbox_engine.analysis.worker import LENGTH

TIME_OUT_S = 60.0
_AHEAD = 4
"""How many files per worker are read before they are wanted."""


@dataclass(frozen=True, slots=True)
class Job:
    """The bytes of one file and what to run on them; `key` is the caller's own."""

    key: Any
    content: bytes
    analysers: tuple[Analyser, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What one analyser made of a file; one that does not recur must not be kept."""

    value: Any | Unknown
    recurs: bool = True


class Workers:
    """Up to `most` processes that analyse; safe to use from one thread at a time."""

    def __init__(self, most: int | None = None, *, timeout_s: float = TIME_OUT_S) -> None:
        self._most = most or len(os.sched_getaffinity(0))
        self._timeout_s = timeout_s
        self._idle: list[_Worker] = []
        self._lock = threading.Lock()

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, tuple[Answer, ...]]]:
        """Yield each job with an answer for each of its analysers, in the order they are ready."""
        pending: set[Future[tuple[Job, tuple[Answer, ...]]]] = set()
        with ThreadPoolExecutor(self._most, "analysis") as threads:
            for job in jobs:
                pending.add(threads.submit(self._answered, job))
                if len(pending) >= self._most * _AHEAD:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    yield from (one.result() for one in done)
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (one.result() for one in done)

    def close(self) -> None:
        """End all workers; the next run starts new ones."""
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.close()

    def _answered(self, job: Job) -> tuple[Job, tuple[Answer, ...]]:
        away = [one for one in job.analysers if one.reference is not None]
        answers = iter(self._ask(job.content, away))
        return job, tuple(
            _run_here(one, job.content) if one.reference is None else next(answers)
            for one in job.analysers
        )

    def _ask(self, content: bytes, analysers: Sequence[Analyser]) -> list[Answer]:
        if not analysers:
            return []
        with self._lock:
            worker = self._idle.pop() if self._idle else None
        worker = worker or _Worker()
        try:
            replies = worker.ask(
                content, [str(one.reference) for one in analysers], self._timeout_s
            )
        except _LostError as error:
            worker.close()
            return [Answer(Unknown(str(error)), recurs=False)] * len(analysers)
        except BaseException:
            worker.close()
            raise
        with self._lock:
            self._idle.append(worker)
        return [_answer(reply) for reply in replies]


def _answer(reply: dict[str, Any]) -> Answer:
    if "unknown" in reply:
        return Answer(Unknown(reply["unknown"]), reply["recurs"])
    return Answer(reply["value"])


def _run_here(analyser: Analyser, content: bytes) -> Answer:
    assert not isinstance(analyser.function, str)
    try:
        return Answer(json.loads(json.dumps(analyser.function(content))))
    except NotAnalysableError as error:
        return Answer(Unknown(str(error)))
    except Exception as error:
        reason = f"the analyser failed: {type(error).__name__}: {error}"
        return Answer(Unknown(reason), recurs=False)


class _LostError(Exception):
    """The worker gave no answer, for the reason that is the text."""


class _Worker:
    def __init__(self) -> None:
        # Threads and forks do not go together, so the process is a program of its own.
        path = Path(__file__).with_name("worker.py")
        self._process = process.spawn(
            [sys.executable, "-I", os.fspath(path)],
            cwd="/",
            env=process.without_git_variables(os.environ),
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._say(json.dumps({"path": [part or os.getcwd() for part in sys.path]}).encode())

    def ask(self, content: bytes, functions: Sequence[str], timeout_s: float) -> Any:
        deadline = time.monotonic() + timeout_s
        try:
            request = {"functions": functions, "size": len(content)}
            self._say(json.dumps(request).encode(), content)
            (length,) = LENGTH.unpack(self._hear(LENGTH.size, deadline))
            return json.loads(self._hear(length, deadline))
        except BrokenPipeError as error:
            raise _LostError(self._end()) from error

    def close(self) -> None:
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._process.wait()

    def _say(self, text: bytes, content: bytes = b"") -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(LENGTH.pack(len(text)) + text + content)
        self._process.stdin.flush()

    def _hear(self, size: int, deadline: float) -> bytes:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        heard = bytearray()
        while len(heard) < size:
            left_s = max(0.0, deadline - time.monotonic())
            if not select.select([descriptor], [], [], left_s)[0]:
                raise _LostError("the analysis took too long")
            part = os.read(descriptor, size - len(heard))
            if not part:
                raise _LostError(self._end())
            heard += part
        return bytes(heard)

    def _end(self) -> str:
        code = self._process.wait()
        return f"the analysis crashed (exit code {code})"
