"""What the probe wrote about a test session, read with suspicion.

The pipe is open to the code under test, so every line may be forged, cut or nonsense. Reading
never raises: where the stream cannot have come from one undisturbed session, `torn` says why, and
what was read up to there is kept for the user to see.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from sandbox_engine.verdict import TestOutcome, TestRecord

MAX_ID_CHARS = 4_000
MAX_MESSAGE_CHARS = 16_000
MAX_LINES = 2_000_000
MAX_BYTES = 64 * 1024**2
MAX_LINE_BYTES = 4 * 1024**2
"""What JSON becomes in memory is up to twenty times as large."""
_MAX_DURATION_S = 1e9


@dataclass(frozen=True, slots=True)
class PytestReport:
    """One test session as its probe told it.

    `started` says that pytest's session started, not only the probe. `ids` are the collected tests
    and `collected` is their number, None when collection did not come that far; `modules` maps each
    first-party module to the file it was loaded from; `codes` has a digest of the code of each test
    that ran, "" for code of other files than its own; `collect_errors` are records whose node id is
    a file or a folder; `sources` are those of the environment that were loaded, `rewritten` those
    whose assertions pytest rewrites. `patched` names functions of pytest and its like that were
    replaced, and not by a plugin of the environment: the first ones where there are many. `reached`
    maps files of code that asked the interpreter for objects it was not given to what it called.
    """

    started: bool = False
    ended: bool = False
    exit_code: int | None = None
    python: str = ""
    pytest: str = ""
    tests: tuple[TestRecord, ...] = ()
    codes: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    ids: tuple[str, ...] = ()
    collected: int | None = None
    collect_errors: tuple[TestRecord, ...] = ()
    modules: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    sources: tuple[str, ...] = ()
    rewritten: tuple[str, ...] = ()
    patched: tuple[str, ...] = ()
    reached: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    torn: str | None = None


class _Torn(Exception):
    """The stream is not what one session writes; the text says why."""


@dataclass(slots=True)
class _Reading:
    """What has been read so far of the report whose first line and last hold `nonce`."""

    nonce: str
    has_begun: bool = False
    start: tuple[str, str] | None = None
    exit_code: int | None = None
    tests: list[TestRecord] = field(default_factory=list)
    codes: dict[str, str] = field(default_factory=dict)
    ids: tuple[str, ...] | None = None
    has_all_ids: bool = False
    collect_errors: list[TestRecord] = field(default_factory=list)
    modules: dict[str, str] | None = None
    sources: tuple[str, ...] = ()
    rewritten: tuple[str, ...] = ()
    patched: tuple[str, ...] | None = None
    reached: dict[str, str] = field(default_factory=dict)

    def take(self, line: Mapping[str, Any]) -> None:
        kind = line.get("kind")
        self._check_order(kind)
        match kind:
            case "begin":
                self._take_nonce(line)
                self.has_begun = True
            case "start":
                self.start = (_text(line, "python"), _text(line, "pytest"))
            case "collected":
                self._take_ids(line)
            case "collect-error":
                self.collect_errors.append(_record(line, TestOutcome.ERROR, 0.0))
            case "test":
                self._take_test(line)
            case "environment":
                self._take_sources(line)
            case "reached":
                self.reached[_text(line, "path")] = _text(line, "call")
            case "patched":
                self._take_patched(line)
            case "modules":
                self._take_modules(line)
            case "end":
                self._take_end(line)
            case _:
                raise _Torn("it holds a line of no known kind")

    def _check_order(self, kind: object) -> None:
        if self.exit_code is not None:
            raise _Torn("it goes on after its end")
        if (kind == "begin") == self.has_begun:
            raise _Torn("two probes wrote it" if self.has_begun else "it has no beginning")
        is_anywhere = kind in ("begin", "reached")
        if not is_anywhere and (kind == "start") != (self.start is None):
            raise _Torn("two sessions wrote it" if kind == "start" else "it has no session")

    def _take_nonce(self, line: Mapping[str, Any]) -> None:
        if line.get("nonce") != self.nonce:
            raise _Torn("somebody else than the probe wrote its beginning or its end")

    def _take_ids(self, line: Mapping[str, Any]) -> None:
        ids = line.get("ids")
        if self.has_all_ids or not isinstance(ids, list):
            raise _Torn("its list of collected tests is malformed or doubled")
        more = tuple(_clean(node_id, MAX_ID_CHARS) for node_id in ids)
        self.ids = (self.ids or ()) + more
        self.has_all_ids = line.get("more") is not True

    def _take_test(self, line: Mapping[str, Any]) -> None:
        test = _record(line, _outcome(line), _duration(line))
        self.tests.append(test)
        if line.get("code") is not None:
            self.codes[test.node_id] = _text(line, "code")

    def _take_sources(self, line: Mapping[str, Any]) -> None:
        both = line.get("sources"), line.get("rewritten")
        if self.sources or not all(isinstance(paths, list) for paths in both):
            raise _Torn("its list of the environment's sources is malformed or doubled")
        self.sources, self.rewritten = (
            tuple(_clean(path, MAX_ID_CHARS) for path in paths or ()) for paths in both
        )

    def _take_patched(self, line: Mapping[str, Any]) -> None:
        names = line.get("names")
        if self.patched is not None or not isinstance(names, list):
            raise _Torn("its list of replaced functions is malformed or doubled")
        self.patched = tuple(_clean(name, MAX_ID_CHARS) for name in names)

    def _take_modules(self, line: Mapping[str, Any]) -> None:
        modules = line.get("modules")
        if self.modules is not None or not isinstance(modules, dict):
            raise _Torn("its list of modules is malformed or doubled")
        self.modules = {
            _clean(name, MAX_ID_CHARS): _clean(file, MAX_ID_CHARS) for name, file in modules.items()
        }

    def _take_end(self, line: Mapping[str, Any]) -> None:
        self._take_nonce(line)
        if self.modules is None:
            raise _Torn("it ends without a list of modules")
        if line.get("counts") != dict(Counter(str(test.outcome) for test in self.tests)):
            raise _Torn("its counts are not those of the tests it names")
        exit_code = line.get("exit")
        if not _is_int(exit_code):
            raise _Torn("its exit code is no number")
        self.exit_code = exit_code

    def report(self, torn: str | None) -> PytestReport:
        python, pytest = self.start or ("", "")
        return PytestReport(
            started=self.start is not None,
            ended=self.exit_code is not None,
            exit_code=self.exit_code,
            python=python,
            pytest=pytest,
            tests=tuple(self.tests),
            codes=MappingProxyType(self.codes),
            ids=self.ids or (),
            collected=None if self.ids is None else len(self.ids),
            collect_errors=tuple(self.collect_errors),
            modules=MappingProxyType(self.modules or {}),
            sources=self.sources,
            rewritten=self.rewritten,
            patched=self.patched or (),
            reached=MappingProxyType(self.reached),
            torn=torn,
        )


class ReportReader:
    """Reads a report as it comes, and keeps no more of it than it believes.

    `nonce` is what the probe of this one run was given, and nobody else. A stream that stops early,
    at the end of a line, is not torn: its session did not end.
    """

    def __init__(self, nonce: str) -> None:
        self._reading = _Reading(nonce)
        self._rest = bytearray()
        self._count = 0
        self._total = 0
        self._torn: str | None = None

    def feed(self, part: bytes) -> None:
        """Take in the next part; never raises, whatever is in it."""
        if self._torn is not None:
            return
        try:
            for line in self._lines(part):
                self._take(line)
            if len(self._rest) > MAX_LINE_BYTES:
                raise _Torn("one of its lines is too long")
        except _Torn as torn:
            self._torn = str(torn)
            self._rest = bytearray()

    def _lines(self, part: bytes) -> Iterator[bytes | bytearray]:
        """Yield the lines that `part` completes; only what is new is searched."""
        first, *others = part.split(b"\n")
        self._rest += first
        for following in others:
            line, self._rest = self._rest, bytearray(following)
            yield line

    def _take(self, line: bytes | bytearray) -> None:
        self._total += len(line)
        if len(line) > MAX_LINE_BYTES:
            raise _Torn("one of its lines is too long")
        if self._total > MAX_BYTES or self._count >= MAX_LINES:
            raise _Torn("it is too long")
        self._reading.take(_line(line, self._count))
        self._count += 1

    @property
    def tests(self) -> int:
        """How many tests have ended so far."""
        return len(self._reading.tests)

    def report(self) -> PytestReport:
        """Return what the whole report says."""
        torn = self._torn or ("it stops in the middle of a line" if self._rest else None)
        return self._reading.report(torn)


def parse_report(report: bytes, nonce: str = "") -> PytestReport:
    """Return what `report` says; never raises, whatever is in it."""
    reader = ReportReader(nonce)
    reader.feed(report)
    return reader.report()


def _line(raw: bytes | bytearray, number: int) -> Mapping[str, Any]:
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError):
        raise _Torn(f"line {number + 1} is not JSON") from None
    if not isinstance(line, dict):
        raise _Torn(f"line {number + 1} is not an object")
    if not _is_int(line.get("n")) or line["n"] != number:
        raise _Torn(f"line {number + 1} is out of order")
    return line


def _record(line: Mapping[str, Any], outcome: TestOutcome, duration_s: float) -> TestRecord:
    message = line.get("message")
    if message is not None:
        message = _clean(message, MAX_MESSAGE_CHARS)
    return TestRecord(_text(line, "id"), outcome, duration_s, message)


def _outcome(line: Mapping[str, Any]) -> TestOutcome:
    try:
        return TestOutcome(_text(line, "outcome"))
    except ValueError:
        raise _Torn("a test has no known outcome") from None


def _duration(line: Mapping[str, Any]) -> float:
    duration = line.get("duration_s")
    if isinstance(duration, bool) or not isinstance(duration, int | float):
        raise _Torn("the duration of a test is no number")
    if not abs(duration) < _MAX_DURATION_S:
        raise _Torn("the duration of a test is no time")
    # The clock of a test may be set back.
    return max(0.0, float(duration))


def _text(line: Mapping[str, Any], name: str) -> str:
    return _clean(line.get(name), MAX_ID_CHARS)


def _clean(value: object, limit: int) -> str:
    """Return `value` as text that can be stored and printed, cut to `limit` characters."""
    if not isinstance(value, str):
        raise _Torn("a name or a message is no text")
    return value[:limit].encode("utf-8", "backslashreplace").decode("utf-8")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31
