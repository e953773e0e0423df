from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox_engine.interpreter import Interpreter
from sandbox_engine.patch import File
from sandbox_engine.precheck import precheck
from sandbox_engine.recipe import Policy
from sandbox_engine.tree import CandidateTree
from sandbox_engine.verdict import CommitId, Finding, TreeId

OURS = Interpreter(
    executable=sys.executable,
    version=sys.version_info[:3],
    prefix=sys.prefix,
    base_prefix=sys.base_prefix,
    sites=(),
    user_base=None,
    pytest=None,
    xdist=None,
    distributions="",
    platform="",
    implementation="",
)


def check(
    path: str,
    after: str | bytes,
    before: str | bytes | None = None,
    policy: Policy | None = None,
    interpreter: Interpreter = OURS,
) -> tuple[Finding, ...]:
    def file(content: str | bytes) -> File:
        return File(content.encode() if isinstance(content, str) else content, 0o100644)

    name = path.encode()
    candidate = CandidateTree(
        TreeId("t"),
        CommitId("c"),
        TreeId("b"),
        {name: None if before is None else file(before)},
        {name: file(after)},
        {},
    )
    return precheck(candidate, policy or Policy(), lambda: interpreter)


@pytest.mark.parametrize(
    ("path", "content", "line", "column"),
    [
        ("a.py", "x = 1\ny = (\n", 2, 5),
        ("a.py", "def f():\n    pass\nreturn 3\n", 3, 1),
        ("a.pyi", "class A\n", 1, 8),
        ("a.py", "x = 1\n\tif:\n", 2, None),
        ("a.json", '{\n  "a": 1,\n}', 3, 1),
        ("a.json", '{"a": NaN}', None, None),
        ("a.json", b'{"a": "\xff"}', 1, None),
        ("a.json", "", 1, 1),
        ("a.toml", "a = 1\nb = = 2\n", 2, 5),
        ("a.toml", "a = [1,\n", 2, None),
        ("a.toml", b"a = '\xff'", 1, None),
        ("a.yaml", "a: 1\nb: [1, 2\n", 3, 1),
        ("a.yml", "a: b: c\n", 1, 5),
        ("a.yaml", "a: \x07\n", None, None),
        ("a.py", b"x = '\xff'\n", 1, None),
        ("a.py", "x = 1\x00\n", None, None),
        ("a.py", "(" * 5000, None, None),
        ("a.py", "x = " + "-" * 200_000 + "1", None, None),
        ("a.json", "[" * 100_000, None, None),
        ("a.toml", "a = " + "[" * 100_000, None, None),
        ("a.yaml", "[" * 100_000, None, None),
    ],
)
def test_what_does_not_parse_is_found_where_it_is(
    path: str, content: str | bytes, line: int | None, column: int | None
) -> None:
    (finding,) = check(path, content)
    assert finding.code == "syntax-error"
    assert finding.path == path
    assert finding.hint
    if line is not None:
        assert finding.line == line
        raw = content.encode() if isinstance(content, str) else content
        shown = raw.split(b"\n")[line - 1].decode("utf-8", "replace")
        assert finding.source == shown[:200]
    if column is not None:
        assert finding.column == column


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("a.py", "# -*- coding: latin-1 -*-\nx = 'é'\n".encode("latin-1")),
        ("a.py", b"\xef\xbb\xbfx = 1\r\n"),
        ("a.py", "x = '\\d'\n"),
        ("a.py", "assert (1, 'always true')\n"),
        ("a.py", ""),
        ("a.json", "\ufeff1".encode("utf-8-sig")[3:]),
        ("a.yaml", "a: !custom {b: 1}\n---\nc: *x\n"),
        ("chart/a.yaml", "a: {{ .Values.b }}\nc: [\n"),
        ("tsconfig.json", "{ // a comment\n}"),
        (".vscode/settings.json", "{ // a comment\n}"),
        ("a.txt", "def ("),
        ("Makefile", "def ("),
    ],
)
def test_what_is_no_error_is_left_alone(path: str, content: str | bytes) -> None:
    if path == "a.json":
        content = content[3:] if isinstance(content, bytes) else content
    assert check(path, content) == ()


def test_warnings_of_the_compiler_stay_silent(recwarn: pytest.WarningsRecorder) -> None:
    assert check("a.py", "x = '\\d'\nassert (1, 'a')\n") == ()
    assert not recwarn.list


@pytest.mark.parametrize("path", ["bad.py", "bad.json", "bad.toml", "bad.yaml"])
def test_a_file_that_never_parsed_is_not_blamed(path: str) -> None:
    assert check(path, "[(\n", before="[(") == ()
    assert check(path, "[(\n", before=None)


CONFLICT = "a\n<<<<<<< HEAD\nb\n=======\nc\n>>>>>>> other\n"


def test_conflict_markers_are_found_at_their_line() -> None:
    (finding,) = check("notes.md", CONFLICT)
    assert (finding.code, finding.line, finding.source) == ("conflict-marker", 2, "<<<<<<< HEAD")


@pytest.mark.parametrize(
    "text", ["Title\n=======\n", "<<<<<<< HEAD\nno end\n", ">>>>>>> a\n=======\n<<<<<<< b\n"]
)
def test_an_underlined_title_is_no_conflict(text: str) -> None:
    assert check("notes.rst", text) == ()


def test_markers_that_the_base_has_are_not_blamed() -> None:
    assert check("notes.md", CONFLICT + "more\n", before=CONFLICT) == ()


def test_a_file_over_the_cap_is_found_and_not_parsed() -> None:
    (finding,) = check("a.py", "(" * 101, policy=Policy(max_file_bytes=100))
    assert finding.code == "file-too-large"
    assert "101 bytes" in finding.message


def test_excluded_paths_are_not_looked_at() -> None:
    policy = Policy(syntax_exclude=("tests/data/*",))
    assert check("tests/data/deep/bad.py", "(", policy=policy) == ()
    assert check("tests/bad.py", "(", policy=policy)


def test_a_large_source_is_compiled_in_a_child() -> None:
    source = "x = 1\n" * 400_000
    assert check("a.py", source) == ()
    (finding,) = check("a.py", source + "(\n")
    assert finding.line == 400_001


@pytest.fixture
def other_python() -> Interpreter:
    """An interpreter of another version than ours, if the machine has one."""
    siblings = Path(sys.base_prefix).parent.glob("*/bin/python3.[0-9]*")
    for path in [*map(str, siblings), *(f"python3.{minor}" for minor in range(8, 16))]:
        minor = path.rpartition(".")[2]
        if not minor.isdigit() or not 8 <= int(minor) != sys.version_info[1]:
            continue
        with contextlib.suppress(OSError):
            done = subprocess.run([path, "--version"], capture_output=True, check=False)
            if done.returncode == 0:
                return dataclasses.replace(OURS, executable=path, version=(3, int(minor), 0))
    pytest.skip("no Python of another version is installed")


def test_the_projects_version_decides(other_python: Interpreter) -> None:
    (finding,) = check("a.py", "x = (\n", interpreter=other_python)
    assert f"Python 3.{other_python.version[1]}" in finding.message
    newer = "def f[T](x: T) -> T:\n    return x\n"
    accepts = other_python.version >= (3, 12)
    assert (check("a.py", newer, interpreter=other_python) == ()) is accepts


def test_links_are_not_parsed(tmp_path: Path) -> None:
    link = File(b"target (", 0o120000)
    candidate = CandidateTree(
        TreeId("t"), CommitId("c"), TreeId("b"), {b"a.py": None}, {b"a.py": link}, {}
    )
    assert precheck(candidate, Policy(), lambda: OURS) == ()
