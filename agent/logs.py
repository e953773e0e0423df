"""The agent's log: handed to a thread, so that nobody waits for a terminal or a disk.

Records go through one queue to the console and to a file that is turned over when it is large.
They are written in the order in which they came, all of them before the block ends, and without
the secrets that are named. A forked child has a queue and a thread of its own; it appends to the
same file and leaves the turning over to its parent.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import queue
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from agent.utils.redaction import redact
from sandbox_engine import UsageError

LOGGER = "agent"
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_FILE_BYTES = 5 * 2**20
_FILES = 3


class _Formatter(logging.Formatter):
    converter = time.gmtime  # type: ignore[assignment]
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"


class _Handler(logging.handlers.QueueHandler):
    """Puts records into the queue as text that has no secret in it."""

    def __init__(self, secrets: Sequence[str]) -> None:
        super().__init__(queue.SimpleQueue())
        self._secrets = [secret for secret in secrets if secret]

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        prepared: logging.LogRecord = super().prepare(record)
        text = prepared.getMessage()
        for secret in self._secrets:
            text = redact(text, secret)
        prepared.msg = prepared.message = text
        return prepared


class _Log:
    """What writes the log: one handler in front, a queue, and a thread behind it."""

    def __init__(
        self, file: Path | None, level: str, console_level: str, secrets: Sequence[str]
    ) -> None:
        self._file = file
        self._level = level
        self._console_level = console_level
        self._pid = os.getpid()
        self.handler = _Handler(secrets)
        self._listener = self._started(_FILE_BYTES)

    def _started(self, most_bytes: int) -> logging.handlers.QueueListener:
        handlers: list[logging.Handler] = []
        console = logging.StreamHandler(sys.stderr)
        console.setLevel(self._console_level)
        console.setFormatter(_Formatter("%(levelname)s %(message)s"))
        handlers.append(console)
        if self._file is not None:
            file = logging.handlers.RotatingFileHandler(
                self._file, maxBytes=most_bytes, backupCount=_FILES, encoding="utf-8"
            )
            file.setLevel(self._level)
            file.setFormatter(_Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
            handlers.append(file)
        listener = logging.handlers.QueueListener(
            self.handler.queue, *handlers, respect_handler_level=True
        )
        listener.start()
        return listener

    def start_in_child(self) -> None:
        """Write with a thread of this process's own; what waits is the parent's to write."""
        self._pid = os.getpid()
        self.handler.queue = queue.SimpleQueue()
        self._listener = self._started(most_bytes=0)

    def close(self) -> None:
        """Write what waits, and end the thread."""
        self._listener.stop()
        for handler in self._listener.handlers:
            handler.flush()
            if not (isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr):
                handler.close()


_open: list[_Log] = []


def _after_fork() -> None:
    for log in _open:
        log.start_in_child()


os.register_at_fork(after_in_child=_after_fork)


@contextlib.contextmanager
def logging_to(
    file: Path | None,
    level: str = "INFO",
    *,
    console_level: str = "INFO",
    secrets: Sequence[str] = (),
) -> Iterator[None]:
    """Have what the agent logs written while the block lasts, all of it before it ends.

    `level` is of the file, `console_level` of standard error. Raise UsageError for a level that
    does not exist, or a file that cannot be written.
    """
    for name in (level, console_level):
        if name not in LEVELS:
            raise UsageError(
                f"there is no log level `{name}`", remedy=f"name one of {', '.join(LEVELS)}"
            )
    try:
        log = _Log(file, level, console_level, secrets)
    except OSError as error:
        raise UsageError(
            f"the log `{file}` cannot be written: {error.strerror}",
            remedy="name another file in `log.file`, or `null` for none",
        ) from error
    logger = logging.getLogger(LOGGER)
    before = logger.level
    logger.setLevel(min(map(logging.getLevelName, (level, console_level))))
    logger.addHandler(log.handler)
    _open.append(log)
    try:
        yield
    finally:
        _open.remove(log)
        logger.removeHandler(log.handler)
        logger.setLevel(before)
        log.close()
