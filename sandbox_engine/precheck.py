"""What can be known about a candidate before a sandbox exists: syntax, markers, sizes.

A file that did not parse in the base either is nobody's fault here: projects keep broken files on
purpose, as test data. So each check looks at the base's version before it blames the patch.
"""

from __future__ import annotations

import fnmatch
import json
import sys
import threading
import tomllib
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox_engine import inside, process
from sandbox_engine.interpreter import Interpreter
from sandbox_engine.patch import File
from sandbox_engine.recipe import Policy
from sandbox_engine.tree import CandidateTree
from sandbox_engine.verdict import Finding

_SOURCE_SHOWN = 200
_IN_PROCESS_BYTES = 1_000_000
_COMPILE_S = 60.0
_YAML_DEPTH = 1000
_COMMENTED_JSON = (
    "tsconfig*.json", "jsconfig*.json", "*/.vscode/*.json", ".vscode/*.json", "*devcontainer.json",
    ".eslintrc.json", "*/.eslintrc.json", "tslint.json", "*.code-workspace", "api-extractor.json",
)  # fmt: skip
_TEMPLATE_MARKS = (b"{{", b"{%")
_warnings_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class _Complaint:
    """What a parser says: `line` and `column` are 1-based, or None where it does not know."""

    message: str
    line: int | None = None
    column: int | None = None


_Check = Callable[[bytes], _Complaint | None]


def precheck(
    candidate: CandidateTree, policy: Policy, interpreter: Callable[[], Interpreter]
) -> tuple[Finding, ...]:
    """Return what is wrong with the changed files; nothing is written and no sandbox is opened.

    Python is compiled as `interpreter`'s version sees it; it is asked for only when a Python
    file changed.
    """
    files = [
        (path, file)
        for path, file in sorted(candidate.after.items())
        if file is not None and file.mode != 0o120000 and not _is_excluded(path, policy)
    ]
    findings = [_too_large(path, file, policy) for path, file in files]
    small = [(path, file) for (path, file), large in zip(files, findings, strict=True) if not large]
    return (
        *filter(None, findings),
        *_conflict_markers(candidate, small),
        *_syntax(candidate, small, interpreter),
    )


def _is_excluded(path: bytes, policy: Policy) -> bool:
    text = _shown(path)
    return any(fnmatch.fnmatchcase(text, pattern) for pattern in policy.syntax_exclude)


def _shown(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")


def _too_large(path: bytes, file: File, policy: Policy) -> Finding | None:
    if len(file.content) <= policy.max_file_bytes:
        return None
    return Finding(
        "file-too-large",
        f"`{_shown(path)}` has {len(file.content):,} bytes, more than {policy.max_file_bytes:,}",
        path=_shown(path),
        hint="leave the file out, or raise `max_file_bytes` in the configuration",
    )


def _conflict_markers(
    candidate: CandidateTree, files: Iterable[tuple[bytes, File]]
) -> Iterator[Finding]:
    for path, file in files:
        line = _marker_line(file.content)
        before = candidate.before[path]
        if line is None or (before is not None and _marker_line(before.content) is not None):
            continue
        yield Finding(
            "conflict-marker",
            f"`{_shown(path)}` holds a merge-conflict marker",
            path=_shown(path),
            line=line,
            column=1,
            source=_source_line(file.content, line),
            hint="resolve the conflict: keep one side and remove the three marker lines",
        )


def _marker_line(content: bytes) -> int | None:
    """Return the line where a whole conflict begins: `<<<<<<<`, `=======`, `>>>>>>>` in order."""
    if b"<<<<<<< " not in content or b">>>>>>> " not in content:
        return None
    begun = divided = None
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.startswith(b"<<<<<<< "):
            begun, divided = number, None
        elif line.rstrip(b"\r") == b"=======" and begun is not None:
            divided = number
        elif line.startswith(b">>>>>>> ") and divided is not None:
            return begun
    return None


def _source_line(content: bytes, line: int | None) -> str | None:
    lines = content.split(b"\n")
    if line is None or not 1 <= line <= len(lines):
        return None
    return lines[line - 1].rstrip(b"\r").decode("utf-8", "replace")[:_SOURCE_SHOWN]


def _syntax(
    candidate: CandidateTree,
    files: Iterable[tuple[bytes, File]],
    interpreter: Callable[[], Interpreter],
) -> Iterator[Finding]:
    python: list[tuple[bytes, File]] = []
    for path, file in files:
        if path.endswith((b".py", b".pyi", b".pyw")):
            python.append((path, file))
        elif (check := _data_check(path)) and (wrong := check(file.content)):
            before = candidate.before[path]
            if before is None or check(before.content) is None:
                yield _syntax_finding(path, file, _language(path), wrong)
    if python:
        yield from _python_syntax(candidate, python, interpreter())


def _language(path: bytes) -> str:
    suffix = path.rsplit(b".", 1)[-1].lower()
    return {b"json": "JSON", b"toml": "TOML", b"yml": "YAML", b"yaml": "YAML"}[suffix]


def _data_check(path: bytes) -> _Check | None:
    text = _shown(path)
    if any(fnmatch.fnmatchcase(text, pattern) for pattern in _COMMENTED_JSON):
        return None
    suffix = path.rsplit(b".", 1)[-1].lower()
    return {b"json": _json, b"toml": _toml, b"yml": _yaml, b"yaml": _yaml}.get(suffix)


def _syntax_finding(path: bytes, file: File, language: str, wrong: _Complaint) -> Finding:
    return Finding(
        "syntax-error",
        f"`{_shown(path)}` is not valid {language}: {wrong.message}",
        path=_shown(path),
        line=wrong.line,
        column=wrong.column,
        source=_source_line(file.content, wrong.line),
        hint=f"correct the {language} and send the patch again",
    )


def _json(content: bytes) -> _Complaint | None:
    try:
        json.loads(content, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        return _Complaint(error.msg, error.lineno, error.colno)
    except UnicodeDecodeError as error:
        return _not_text(content, error)
    except RecursionError:
        return _Complaint("nested too deeply")
    except ValueError as error:
        return _Complaint(str(error))
    return None


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON value")


def _toml(content: bytes) -> _Complaint | None:
    try:
        tomllib.loads(content.decode())
    except tomllib.TOMLDecodeError as error:
        message, _, place = str(error).partition(" (at ")
        numbers = [int(word.strip(",)")) for word in place.split() if word.strip(",)").isdigit()]
        line, column = numbers if len(numbers) == 2 else (content.count(b"\n") + 1, None)
        return _Complaint(message, line, column)
    except UnicodeDecodeError as error:
        return _not_text(content, error)
    except RecursionError:
        return _Complaint("nested too deeply")
    return None


def _yaml(content: bytes) -> _Complaint | None:
    import yaml

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        # Events, not nodes: composing recurses in C, and a deep file ends the process; scanning
        # takes time that grows with the square of the depth.
        depth = 0
        for event in yaml.parse(content, Loader=loader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > _YAML_DEPTH:
                return _Complaint("nested too deeply")
    except yaml.MarkedYAMLError as error:
        if any(mark in content for mark in _TEMPLATE_MARKS):
            return None
        mark = error.problem_mark or error.context_mark
        message = " ".join(filter(None, (error.context, error.problem)))
        if mark is None:
            return _Complaint(message)
        return _Complaint(message, mark.line + 1, mark.column + 1)
    except yaml.YAMLError as error:
        return _Complaint(" ".join(str(error).split()))
    except UnicodeDecodeError as error:
        return _not_text(content, error)
    return None


def _not_text(content: bytes, error: UnicodeDecodeError) -> _Complaint:
    return _Complaint(
        f"byte 0x{content[error.start]:02x} is not {error.encoding}",
        content.count(b"\n", 0, error.start) + 1,
    )


def _python_syntax(
    candidate: CandidateTree, files: list[tuple[bytes, File]], interpreter: Interpreter
) -> Iterator[Finding]:
    wrong = _compile([file.content for _, file in files], interpreter)
    blamed = [
        (path, file, complaint)
        for (path, file), complaint in zip(files, wrong, strict=True)
        if complaint is not None
    ]
    bases = [candidate.before[path] for path, _, _ in blamed]
    known = _compile([base.content if base else b"" for base in bases], interpreter)
    language = f"Python {interpreter.version[0]}.{interpreter.version[1]}"
    for (path, file, complaint), before in zip(blamed, known, strict=True):
        if before is None:
            yield _syntax_finding(path, file, language, complaint)


def _compile(sources: list[bytes], interpreter: Interpreter) -> list[_Complaint | None]:
    """Return what is wrong with each source.

    In this process where its version is the wanted one and the sources are small; compiling holds
    the interpreter lock, so a large one would hold up every thread of the caller.
    """
    if not sources:
        return []
    same = interpreter.version[:2] == sys.version_info[:2]
    if same and sum(map(len, sources)) <= _IN_PROCESS_BYTES:
        with _warnings_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [_complaint(inside.compile_complaint(source)) for source in sources]
    return _compile_outside(sources, interpreter)


def _compile_outside(sources: list[bytes], interpreter: Interpreter) -> list[_Complaint | None]:
    text = b"".join(b"%d %d\n%s" % (n, len(source), source) for n, source in enumerate(sources))
    done = process.run_tool(
        [interpreter.executable, "-B", "-I", "-S", str(inside.COMPILE)],
        cwd=Path("/"),
        env={},
        input=text,
        timeout_s=_COMPILE_S,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    if len(answers) == len(sources):
        return [_complaint(answer) for answer in answers]
    if done.stop is not None:
        cause = f"took longer than {_COMPILE_S:g} s to compile"
    else:
        cause = "crashed the compiler"
    unread = [_Complaint(cause)] + [None] * (len(sources) - len(answers) - 1)
    return [*(_complaint(answer) for answer in answers), *unread]


def _complaint(answer: dict[str, Any] | None) -> _Complaint | None:
    if not answer or "message" not in answer:
        return None
    return _Complaint(answer["message"], answer.get("line") or None, answer.get("column") or None)
