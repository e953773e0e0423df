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

TIME_OUT_S = 30.0
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
        self._workers: set[_Worker] = set()
        self._idle: list[_Worker] = []
        self._lock = threading.Lock()

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, tuple[Answer, ...]]]:
        """Yield each job with an answer for each of its analysers, in the order they are ready."""
        pending: set[Future[tuple[Job, tuple[Answer, ...]]]] = set()
        with ThreadPoolExecutor(self._most, "analysis") as threads:
            try:
                for job in jobs:
                    pending.add(threads.submit(self._answered, job))
                    if len(pending) >= self._most * _AHEAD:
                        done, pending = wait(pending, return_when=FIRST_COMPLETED)
                        yield from (one.result() for one in done)
                while pending:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    yield from (one.result() for one in done)
            except BaseException:
                # An interrupt, say: what is asked for by nobody must not be waited for.
                threads.shutdown(wait=False, cancel_futures=True)
                self.close()
                raise

    def close(self) -> None:
        """End all workers, also those at work; the next run starts new ones."""
        with self._lock:
            workers, idle = self._workers, self._idle
            self._workers, self._idle = set(), []
        for worker in workers:
            worker.kill()
        # Those at work are closed by the threads that wait for them.
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
        worker = self._free_worker()
        try:
            replies = worker.ask(
                content, [str(one.reference) for one in analysers], self._timeout_s
            )
        except _LostError as error:
            self._drop(worker)
            return [Answer(Unknown(str(error)), recurs=False)] * len(analysers)
        except BaseException:
            self._drop(worker)
            raise
        with self._lock:
            is_wanted = worker in self._workers
            if is_wanted:
                self._idle.append(worker)
        if not is_wanted:
            worker.close()
        return [_answer(reply) for reply in replies]

    def _free_worker(self) -> _Worker:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        worker = _Worker()
        with self._lock:
            self._workers.add(worker)
        return worker

    def _drop(self, worker: _Worker) -> None:
        with self._lock:
            self._workers.discard(worker)
        worker.close()


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
        self._opening = json.dumps({"path": [part or os.getcwd() for part in sys.path]}).encode()

    def ask(self, content: bytes, functions: Sequence[str], timeout_s: float) -> Any:
        deadline = time.monotonic() + timeout_s
        try:
            if self._opening:
                self._say(self._opening)
                self._opening = b""
            request = {"functions": functions, "size": len(content)}
            self._say(json.dumps(request).encode(), content)
            (length,) = LENGTH.unpack(self._hear(LENGTH.size, deadline))
            return json.loads(self._hear(length, deadline))
        except BrokenPipeError as error:
            raise _LostError(self._end()) from error

    def kill(self) -> None:
        """End the process; a thread that waits for its answer is told that it has crashed."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End the process and give back what led to it."""
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            # What was not written yet cannot be any more.
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def _say(self, text: bytes, content: bytes = b"") -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(LENGTH.pack(len(text)) + text + content)
        self._process.stdin.flush()

    def _hear(self, size: int, deadline: float) -> bytes:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        heard = bytearray()
        while len(heard) < size:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise _LostError("the analysis took too long")
            part = os.read(descriptor, size - len(heard))
            if not part:
                raise _LostError(self._end())
            heard += part
        return bytes(heard)

    def _end(self) -> str:
        code = self._process.wait()
        return f"the analysis crashed (exit code {code})"
