"""Files that hold code and tests: doctests, and test functions beside what they test.

With the base's version of such a file its code is the base's too, so that nothing is learned about
the patch. So its tests are compared by their text.
"""

from __future__ import annotations

import ast
import doctest
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field

from sandbox_engine.control import is_test_file
from sandbox_engine.delta import file_of, function_of
from sandbox_engine.removal import Changes

_Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_Example = tuple[str, str]


@dataclass(slots=True)
class _Parts:
    """A module taken apart: examples of docstrings and tests by dotted name, and other code."""

    examples: dict[str, list[_Example]] = field(default_factory=dict)
    tests: dict[str, str] = field(default_factory=dict)
    code: str = ""


def find_rewritten(changes: Changes, tests: Set[str]) -> frozenset[str]:
    """Return those of `tests`, node ids of the base, that are changed together with their code.

    More examples in a docstring are no change, and none is what goes with what it described.
    """
    rewritten: set[str] = set()
    for path, before in changes.before.items():
        after = changes.after.get(changes.renames.get(path, path))
        if before is not None and after is not None and _may_be_mixed(path):
            names = {_name(test): test for test in tests if file_of(test) == path}
            rewritten.update(names[name] for name in _rewritten(path, before, after, names))
    return frozenset(rewritten)


def _may_be_mixed(path: str) -> bool:
    return path.endswith(".py") and not is_test_file(path)


def _name(node_id: str) -> str:
    """Return the dotted name of a test in its file; that of a doctest begins with its module's."""
    return function_of(node_id).partition("::")[2].replace("::", ".")


def _rewritten(path: str, before: bytes, after: bytes, names: Mapping[str, str]) -> Iterator[str]:
    try:
        old, new = (_taken_apart(source, names.keys()) for source in (before, after))
    except (SyntaxError, ValueError, RecursionError):
        return
    if old.code == new.code:
        return
    yield from (name for name, text in old.tests.items() if new.tests.get(name) != text)
    module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    for place, examples in old.examples.items():
        whole = f"{module}.{place}".rstrip(".")
        if place in new.examples and not _are_among(examples, new.examples[place]):
            yield from (name for name in names if f".{whole}".endswith(f".{name}"))


def _are_among(examples: list[_Example], others: list[_Example]) -> bool:
    """Tell whether all of `examples` are in `others`, in the same order."""
    left = iter(others)
    return all(example in left for example in examples)


def _taken_apart(source: bytes, names: Set[str]) -> _Parts:
    parts = _Parts()
    module = ast.parse(source)
    _take(module, "", names, parts)
    parts.code = ast.dump(module)
    return parts


def _take(where: _Definition, place: str, names: Set[str], parts: _Parts) -> None:
    """Take examples and tests out of `where`, and out of what it defines."""
    docstring = ast.get_docstring(where)
    parts.examples[place] = _examples(docstring or "")
    body: list[ast.stmt] = where.body[docstring is not None :]
    kept = []
    for statement in body:
        if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{place}.{statement.name}".lstrip(".")
            if name in names and not isinstance(statement, ast.ClassDef):
                parts.tests[name] = ast.dump(statement)
                continue
            _take(statement, name, names, parts)
        kept.append(statement)
    where.body = kept


def _examples(docstring: str) -> list[_Example]:
    found = doctest.DocTestParser().get_examples(docstring)
    return [(example.source, example.want) for example in found]
