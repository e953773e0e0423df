"""The skeleton of a module: what it imports, and its classes and functions with their signatures.

A value has the keys `doc`, `imports`, `classes` and `functions`. An import is the text of what is
bound (`os`, `a.b as c`, `.mod.name`). A function has `name`, `line`, `end_line`, `signature`,
`doc`, `is_async`, `decorators`; a class `name`, `line`, `end_line`, `bases`, `doc`, `decorators`,
`methods` and `classes`. Lines count from 1; `doc` is the first line of the docstring, or "".
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import Any

from sandbox_engine.analysis.source import parsed

_Function = ast.FunctionDef | ast.AsyncFunctionDef


def skeleton_of(content: bytes) -> dict[str, Any]:
    """Return the skeleton of a Python file, in the shape that the module tells."""
    module = parsed(content)
    statements = list(_statements(module.body))
    return {
        "doc": _doc(module),
        "imports": [name for one in statements for name in _imported(one)],
        "classes": [_class(one) for one in statements if isinstance(one, ast.ClassDef)],
        "functions": [_function(one) for one in statements if isinstance(one, _Function)],
    }


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield what a body defines, also under `if`, `try`, `with`, loops and `match`."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.ClassDef | _Function):
            continue
        for field in ("body", "orelse", "handlers", "finalbody", "cases"):
            inner: Any = getattr(statement, field, ())
            for one in inner:
                is_block = isinstance(one, ast.ExceptHandler | ast.match_case)
                yield from _statements(one.body if is_block else [one])


def _imported(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, ast.Import):
        yield from (_bound(alias, "") for alias in statement.names)
    elif isinstance(statement, ast.ImportFrom):
        module = "." * statement.level + (statement.module or "")
        separator = "" if module.endswith(".") else "."
        yield from (_bound(alias, module + separator) for alias in statement.names)


def _bound(alias: ast.alias, prefix: str) -> str:
    return f"{prefix}{alias.name} as {alias.asname}" if alias.asname else prefix + alias.name


def _class(node: ast.ClassDef) -> dict[str, Any]:
    statements = list(_statements(node.body))
    bases = [*map(ast.unparse, node.bases), *map(ast.unparse, node.keywords)]
    return {
        "name": node.name,
        "line": node.lineno,
        "end_line": node.end_lineno,
        "bases": bases,
        "doc": _doc(node),
        "decorators": _decorators(node),
        "methods": [_function(one) for one in statements if isinstance(one, _Function)],
        "classes": [_class(one) for one in statements if isinstance(one, ast.ClassDef)],
    }


def _function(node: _Function) -> dict[str, Any]:
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return {
        "name": node.name,
        "line": node.lineno,
        "end_line": node.end_lineno,
        "signature": f"({ast.unparse(node.args)}){returns}",
        "doc": _doc(node),
        "is_async": isinstance(node, ast.AsyncFunctionDef),
        "decorators": _decorators(node),
    }


def _decorators(node: ast.ClassDef | _Function) -> list[str]:
    return [ast.unparse(one) for one in node.decorator_list]


def _doc(node: ast.Module | ast.ClassDef | _Function) -> str:
    doc = (ast.get_docstring(node) or "").strip()
    return doc.splitlines()[0] if doc else ""
