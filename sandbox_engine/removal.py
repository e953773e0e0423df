"""Which tests a patch took out, read from its own changes.

A test that is gone was either removed, and the changes show it, or it vanished: something keeps
it from being collected although it is still written there.
"""

from __future__ import annotations

import ast
import functools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sandbox_engine.delta import file_of, function_of
from sandbox_engine.patch import File

_WORD = re.compile(r"\w+")
_EXAMPLE = ">>> "


@dataclass(frozen=True)
class Changes:
    """The files that a patch changes, before and after, None for absent; `renames` old to new."""

    before: Mapping[str, bytes | None]
    after: Mapping[str, bytes | None]
    renames: Mapping[str, str]

    @functools.cached_property
    def gone_words(self) -> frozenset[str]:
        """The words of the lines and names that the patch takes out, and puts nowhere else."""
        out: set[str] = set()
        put: set[str] = set()
        for path in self.before.keys() | self.after.keys():
            old, new = self.before.get(path), self.after.get(path)
            lines, others = _lines(old), _lines(new)
            out.update(_words(*(lines - others)))
            put.update(_words(*(others - lines)))
            if old is None or new is None:
                (put if old is None else out).update(_words(path))
        return frozenset(out - put)


def changes_of(
    before: Mapping[bytes, File | None],
    after: Mapping[bytes, File | None],
    renames: Mapping[bytes, bytes],
) -> Changes:
    """Return the changes of a candidate; its `renames` map the new path to the old one."""
    moved = {old: new for new, old in renames.items() if old in after and after[old] is None}
    moved.update(_same_content(before, after, moved))
    return Changes(
        {os.fsdecode(path): file.content if file else None for path, file in before.items()},
        {os.fsdecode(path): file.content if file else None for path, file in after.items()},
        {os.fsdecode(old): os.fsdecode(new) for old, new in moved.items()},
    )


def _same_content(
    before: Mapping[bytes, File | None],
    after: Mapping[bytes, File | None],
    known: Mapping[bytes, bytes],
) -> Iterator[tuple[bytes, bytes]]:
    """Yield what was moved by a format that has no word for it: deleted here, made anew there."""
    made = {
        file.content: path
        for path, file in sorted(after.items())
        if file and file.content and before.get(path) is None
    }
    for path, file in before.items():
        if file and after.get(path) is None and path not in known and file.content in made:
            yield path, made[file.content]


def find_removed(
    lost: Sequence[str], changes: Changes, read: Callable[[str], bytes | None]
) -> frozenset[str]:
    """Return those of `lost`, node ids of the base, that `changes` take out.

    `read` returns what the candidate has at a path, None for nothing.
    """

    @functools.cache
    def both(path: str) -> tuple[frozenset[str], frozenset[str]]:
        """The functions of a file of the base, and of what it is now."""
        now = defined(read(changes.renames.get(path, path)))
        return (defined(changes.before[path]) if path in changes.before else now), now

    return frozenset(node for node in lost if _is_removed(node, changes, both))


def _is_removed(
    node_id: str,
    changes: Changes,
    functions: Callable[[str], tuple[frozenset[str], frozenset[str]]],
) -> bool:
    path, function = file_of(node_id), function_of(node_id)
    is_changed = path in changes.after
    if is_changed and changes.after.get(changes.renames.get(path, path)) is None:
        return True
    if is_changed and not path.endswith(".py"):
        return True
    before, after = functions(path)
    name = function[len(path) + 2 :].replace("::", ".")
    if name in before:
        # Where it is still written, only its cases may have become fewer.
        is_case = node_id != function
        is_named = is_case and _are_named_by(node_id[len(function) :], changes.gone_words)
        return name not in after or (is_changed and is_case) or is_named
    example = _EXAMPLE + _within(path, name)
    if example in before and example not in after:
        return True
    return _are_named_by(node_id[len(path) :].replace(".", "::"), changes.gone_words)


def _within(path: str, name: str) -> str:
    """Return the name of a doctest less that of its module."""
    module = "." + path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        if module.endswith("." + ".".join(parts[:count])):
            return ".".join(parts[count:])
    return name


def _are_named_by(names: str, words: frozenset[str]) -> bool:
    """Tell whether a test's own name, or what its case is called, is among `words`."""
    return not words.isdisjoint(_words(names))


def defined(source: bytes | None) -> frozenset[str]:
    """Return the dotted names of all functions of a module, whatever they are nested in.

    Methods that a class inherits from another of the module are its own too, and what has an
    example in its docstring is named once more, as an example.
    """
    try:
        tree = ast.parse(source or b"")
    except (SyntaxError, ValueError, RecursionError):
        return frozenset()
    bases: dict[str, list[str]] = {}
    found = set(_functions(tree, "", bases))
    methods: dict[str, set[str]] = {}
    for name in found:
        owner, dot, method = name.rpartition(".")
        if dot:
            methods.setdefault(owner, set()).add(method)
    for owner in bases:
        found.update(
            f"{owner}.{name}" for base in _line(owner, bases) for name in methods.get(base, ())
        )
    return frozenset(found)


def _line(owner: str, bases: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield the classes that a class inherits from, as far as the module tells."""
    seen, left = {owner}, list(bases[owner])
    while left:
        base = left.pop()
        if base in bases and base not in seen:
            seen.add(base)
            yield base
            left += bases[base]


def _functions(node: ast.AST, prefix: str, bases: dict[str, list[str]]) -> Iterator[str]:
    """Yield the names of functions and examples in a node; put each class's bases in `bases`."""
    if isinstance(node, ast.Module | ast.ClassDef) and _EXAMPLE in (ast.get_docstring(node) or ""):
        yield _EXAMPLE + prefix.removesuffix(".")
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + child.name
            if _EXAMPLE in (ast.get_docstring(child) or ""):
                yield _EXAMPLE + prefix + child.name
        elif isinstance(child, ast.ClassDef):
            own = prefix + child.name
            bases[own] = [base.id for base in child.bases if isinstance(base, ast.Name)]
            yield from _functions(child, f"{own}.", bases)
        else:
            yield from _functions(child, prefix, bases)


def _lines(content: bytes | None) -> Counter[str]:
    return Counter((content or b"").decode("utf-8", "replace").split("\n"))


def _words(*texts: str) -> Iterator[str]:
    for text in texts:
        yield from _WORD.findall(text)
