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
    return _are_named_by(node_id[len(path) :].replace(".", "::"), changes.gone_words)


def _are_named_by(names: str, words: frozenset[str]) -> bool:
    """Tell whether a test's own name, or what its case is called, is among `words`."""
    return not words.isdisjoint(_words(names))


def defined(source: bytes | None) -> frozenset[str]:
    """Return the dotted names of all functions of a module, whatever they are nested in."""
    try:
        tree = ast.parse(source or b"")
    except (SyntaxError, ValueError, RecursionError):
        return frozenset()
    return frozenset(_functions(tree, ""))


def _functions(node: ast.AST, prefix: str) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + child.name
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{prefix}{child.name}.")
        else:
            yield from _functions(child, prefix)


def _lines(content: bytes | None) -> Counter[str]:
    return Counter((content or b"").decode("utf-8", "replace").split("\n"))


def _words(*texts: str) -> Iterator[str]:
    for text in texts:
        yield from _WORD.findall(text)
