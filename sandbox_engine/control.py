"""Which files steer the tests: what they demand, which are collected, and what a failure is.

A patch that changes one of these may pass by changing the question. Such files are told, and
their base's version is run over the patched code.
"""

from __future__ import annotations

import ast
import configparser
import fnmatch
import os
import re
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set

from sandbox_engine import delta, removal
from sandbox_engine.patch import File

_NAMES = (
    *("conftest.py", "test_*.py", "*_test.py"),
    *("pytest.ini", ".pytest.ini", "pytest.toml", ".pytest.toml", "*.pth"),
)
_STARTED_FIRST = frozenset({"sitecustomize", "usercustomize"})
"""What every interpreter imports when it starts."""
_METADATA = (".egg-info", ".dist-info")
"""They may name plugins that pytest loads by itself."""
_TEST_FOLDERS = frozenset({"test", "testing"})
"""These hold tests at the top of a repository; deeper they are often packages of the project."""
_LIKE_TESTS = re.compile(r"(.*[-_.])?tests?([-_.].*)?|testsuite", re.IGNORECASE)
"""Folders so named are of tests where some of these come from there."""
_TEST_DATA = re.compile(r"tests?[-_]?data", re.IGNORECASE)
_PLUGIN = re.compile(r"(?<![\w-])-p[\s=]*([\w.]+)")


def find_control(
    before: Mapping[bytes, File | None],
    after: Mapping[bytes, File | None],
    tests: Set[str],
    needs: Set[str],
    read: Callable[[bytes], File | None],
    arguments: Sequence[str] = (),
) -> tuple[bytes, ...]:
    """Return those of the changed paths that steer the tests.

    `tests` are node ids, or files that tests come from, `needs` the top-level modules that pytest
    imports. `read` returns a file of the candidate. `arguments` are those of pytest.
    """
    plugins = _plugins(before, after, read) | _enabled(" ".join(arguments).encode())
    collected = frozenset(map(delta.file_of, tests))
    folders = frozenset(filter(_is_like_tests, _above(collected)))
    inherited = _Inherited(tests, read)

    def steers(path: bytes) -> bool:
        name = os.fsdecode(path)
        return (
            name in collected
            or _is_named_so(name, needs)
            or not folders.isdisjoint(_above([name]))
            or _changes_settings(name, before.get(path), after.get(path))
            or _is_plugin(name, plugins)
            or inherited.come_from(name, before.get(path))
            or _has_fixtures(name, before.get(path))
        )

    return tuple(path for path in sorted(after) if steers(path))


def _above(paths: Iterable[str]) -> Iterator[str]:
    """Yield the folders above each of `paths`."""
    for path in paths:
        while path := path.rpartition("/")[0]:
            yield path


def _is_like_tests(folder: str) -> bool:
    return _LIKE_TESTS.fullmatch(folder.rpartition("/")[2]) is not None


def _has_fixtures(path: str, file: File | None) -> bool:
    """Tell whether a file of the base defines fixtures: a `conftest.py` may import it."""
    if file is None or not path.endswith(".py") or b"fixture" not in file.content:
        return False
    try:
        module = ast.parse(file.content)
    except (SyntaxError, ValueError, RecursionError):
        return False
    return any(
        _is_fixture(decorator)
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for decorator in node.decorator_list
    )


def _is_fixture(decorator: ast.expr) -> bool:
    named = decorator.func if isinstance(decorator, ast.Call) else decorator
    name = named.attr if isinstance(named, ast.Attribute) else getattr(named, "id", "")
    return name in ("fixture", "yield_fixture")


class _Inherited:
    """The tests that are written elsewhere than in the file that they come from."""

    def __init__(self, tests: Set[str], read: Callable[[bytes], File | None]) -> None:
        self._files = defaultdict[str, set[str]](set)
        for test in tests:
            _, _, name = delta.function_of(test).rpartition("::")
            self._files[name].add(delta.file_of(test))
        self._read = read
        self._written: dict[str, frozenset[str]] = {}

    def come_from(self, path: str, file: File | None) -> bool:
        """Tell whether a file of the base has a function that is a test of another file."""
        if file is None or not path.endswith(".py"):
            return False
        return any(
            name not in self._written_in(other)
            for name in _last_names(file) & self._files.keys()
            for other in self._files[name]
        )

    def _written_in(self, path: str) -> frozenset[str]:
        if path not in self._written:
            self._written[path] = _last_names(self._read(os.fsencode(path)))
        return self._written[path]


def _last_names(file: File | None) -> frozenset[str]:
    """Return the names of a file's functions, without those of their classes."""
    found = removal.defined(file.content if file else None)
    return frozenset(name.rpartition(".")[2] for name in found)


def is_test_file(path: str) -> bool:
    """Tell whether a file is of tests alone, by its name and where it lies."""
    *folders, name = path.split("/")
    return (
        any(fnmatch.fnmatchcase(name, pattern) for pattern in _NAMES)
        or "tests" in folders
        or any(map(_TEST_DATA.fullmatch, folders))
        or not _TEST_FOLDERS.isdisjoint(folders[:1])
    )


def _is_named_so(path: str, needs: Set[str]) -> bool:
    *folders, name = path.split("/")
    top = {*folders[:2], name.removesuffix(".py")}
    return (
        is_test_file(path)
        or any(folder.endswith(_METADATA) for folder in (*folders, name))
        or not _STARTED_FIRST.isdisjoint(top)
        or (len(folders) < 2 and name.removesuffix(".py") in needs)
        or not needs.isdisjoint(folders[:2])
    )


def _changes_settings(path: str, before: File | None, after: File | None) -> bool:
    """Tell whether a file of settings for many tools says something else to pytest now."""
    section = _SECTIONS.get(path.rpartition("/")[2])
    if section is None:
        return False
    old, new = (file.content.decode("utf-8", "replace") if file else "" for file in (before, after))
    return section(old) != section(new)


def _of_pyproject(text: str) -> object:
    try:
        tools = tomllib.loads(text).get("tool")
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    return tools.get("pytest") if isinstance(tools, dict) else None


def _of_ini(*sections: str) -> Callable[[str], object]:
    def settings(text: str) -> object:
        parser = configparser.RawConfigParser(strict=False)
        try:
            parser.read_string(text)
        except configparser.Error:
            return text
        return [dict(parser.items(name)) for name in sections if parser.has_section(name)]

    return settings


_SECTIONS: Mapping[str, Callable[[str], object]] = {
    "pyproject.toml": _of_pyproject,
    "setup.cfg": _of_ini("tool:pytest", "aliases"),
    "tox.ini": _of_ini("pytest", "tool:pytest"),
}


def _plugins(
    before: Mapping[bytes, File | None],
    after: Mapping[bytes, File | None],
    read: Callable[[bytes], File | None],
) -> frozenset[str]:
    """Return the modules that the settings, or a `conftest.py`, make plugins of pytest."""
    folders = {b"", b"tests/", *_folders(after)}
    conftests = [folder + b"conftest.py" for folder in folders]
    settings = [b"pyproject.toml", b"setup.cfg", b"tox.ini", b"pytest.ini"]
    files = [
        (path, version)
        for path in (*conftests, *settings)
        for version in (before.get(path), read(path))
    ]
    found: set[str] = set()
    for path, file in files:
        if file is not None:
            is_source = path.endswith(b".py")
            found.update(_declared(file.content) if is_source else _enabled(file.content))
    return frozenset(found)


def _folders(paths: Iterable[bytes]) -> set[bytes]:
    parts = [path.split(b"/")[:-1] for path in paths]
    return {
        b"".join(part + b"/" for part in folder[:depth])
        for folder in parts
        for depth in range(len(folder) + 1)
    }


def _declared(source: bytes) -> set[str]:
    """Return what a module assigns to `pytest_plugins`."""
    try:
        module = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return set()
    return {
        value.value
        for node in ast.walk(module)
        if isinstance(node, ast.Assign | ast.AnnAssign) and _assigns_plugins(node)
        for value in ast.walk(node)
        if isinstance(value, ast.Constant) and isinstance(value.value, str)
    }


def _assigns_plugins(node: ast.Assign | ast.AnnAssign) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return any(isinstance(target, ast.Name) and target.id == "pytest_plugins" for target in targets)


def _enabled(settings: bytes) -> set[str]:
    return set(_PLUGIN.findall(settings.decode("utf-8", "replace")))


def _is_plugin(path: str, plugins: Set[str]) -> bool:
    if not path.endswith(".py"):
        return False
    module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return any(module == name or module.endswith(f".{name}") for name in plugins)
