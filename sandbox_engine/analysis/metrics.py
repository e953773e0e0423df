"""Sizes and complexities of a module, as radon 6 defines them.

A value has the keys `loc`, `lloc`, `sloc`, `comments`, `single_comments`, `multi` and `blank`
(lines), `mi` (maintainability index, 0 to 100), `halstead` (of the whole file), and `functions`:
every function, method and closure in the order of the file, with `name`, `qualname`, `kind`,
`line`, `end_line`, `loc`, `args` (names) and `cc` (cyclomatic complexity, at least 1).

Two things differ from `radon`. `except*` is counted as `except` is; radon passes it over. And the
lines are counted in one pass over the tokens: radon tokenizes a statement anew for each of its
lines, which takes minutes for a table of some thousand lines.
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
import tokenize
from collections.abc import Iterator, Sequence
from typing import Any

from radon import raw
from radon.complexity import cc_visit_ast
from radon.metrics import h_visit_ast, mi_compute
from radon.visitors import Class, ComplexityVisitor, Function

from sandbox_engine.analysis.source import parsed, text_of

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Token = tokenize.TokenInfo
_ODD_BREAKS = frozenset("\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029")
"""What `str.splitlines` takes for the end of a line, and the tokenizer does not."""

_LINE_BREAK = re.compile(r"\r\n|\r|\n")
_LAYOUT = (tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def metrics_of(content: bytes) -> dict[str, Any]:
    """Return the metrics of a Python file, in the shape that the module tells."""
    module = _with_plain_try(parsed(content))
    lines = count_lines(text_of(content))
    halstead = h_visit_ast(module).total
    comments = (lines.comments + lines.multi) / lines.sloc * 100 if lines.sloc else 0
    complexity = ComplexityVisitor.from_ast(module).total_complexity
    return {
        **lines._asdict(),
        "mi": round(mi_compute(halstead.volume, complexity, lines.lloc, comments), 4),
        "halstead": {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in halstead._asdict().items()
        },
        "functions": _functions(module),
    }


def _with_plain_try(module: ast.Module) -> ast.Module:
    """Return a tree in which radon sees the handlers of `except*`, with the same nodes."""
    for node in ast.walk(module):
        if isinstance(node, ast.TryStar):
            node.__class__ = ast.Try  # type: ignore[assignment]
    return module


def _functions(module: ast.Module) -> list[dict[str, Any]]:
    complexities: dict[tuple[int, int], int] = {}
    for block in cc_visit_ast(module):
        _gather(block, complexities)
    return [
        {
            "name": node.name,
            "qualname": qualname,
            "kind": kind,
            "line": node.lineno,
            "end_line": node.end_lineno,
            "loc": (node.end_lineno or node.lineno) - node.lineno + 1,
            "args": _argument_names(node.args),
            "cc": complexities.get((node.lineno, node.col_offset)) or _complexity(node),
        }
        for node, qualname, kind in _defined(module, "", "function")
    ]


def _gather(block: Class | Function, complexities: dict[tuple[int, int], int]) -> None:
    if isinstance(block, Class):
        for inner in (*block.methods, *block.inner_classes):
            _gather(inner, complexities)
        return
    complexities[block.lineno, block.col_offset] = block.complexity
    for closure in block.closures:
        _gather(closure, complexities)


def _complexity(node: _Function) -> int:
    """Return what radon says of a function that it does not list, as one of a local class."""
    (block,) = ComplexityVisitor.from_ast(node).functions
    return int(block.complexity)


def _defined(node: ast.AST, prefix: str, kind: str) -> Iterator[tuple[_Function, str, str]]:
    """Yield every function below `node`, with its qualified name and its kind."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _Function):
            yield child, prefix + child.name, kind
            yield from _defined(child, f"{prefix}{child.name}.<locals>.", "closure")
        elif isinstance(child, ast.ClassDef):
            yield from _defined(child, f"{prefix}{child.name}.", "method")
        else:
            yield from _defined(child, prefix, kind)


def _argument_names(args: ast.arguments) -> list[str]:
    named = [arg.arg for arg in (*args.posonlyargs, *args.args)]
    if args.vararg:
        named.append(f"*{args.vararg.arg}")
    named += [arg.arg for arg in args.kwonlyargs]
    if args.kwarg:
        named.append(f"**{args.kwarg.arg}")
    return named


def count_lines(text: str) -> raw.Module:
    """Return what `radon.raw.analyze` returns, in time that grows with the text alone."""
    if not _ODD_BREAKS.isdisjoint(text):
        # Inside of a string radon is at a loss about them.
        with contextlib.suppress(SyntaxError):
            return raw.analyze(text)
    lines = [line.strip() for line in _LINE_BREAK.split(text)]
    tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    counts = dict.fromkeys(raw.Module._fields, 0)
    done = 0
    for group in _groups(tokens):
        last = group[-1].end[0]
        if group[-1].end[1] == 0 and last > group[0].start[0]:
            last -= 1
        # A line with a backslash alone has no token, and is a part of what follows.
        _count(group, lines[done:last], counts)
        done = last
    counts["loc"] = sum(counts[name] for name in ("sloc", "blank", "multi", "single_comments"))
    return raw.Module(**counts)


def _groups(tokens: Sequence[_Token]) -> Iterator[list[_Token]]:
    """Yield the tokens of each run of lines that is complete by itself, as radon divides them."""
    group: list[_Token] = []
    depth = 0
    for token in tokens:
        if token.type in _LAYOUT:
            continue
        group.append(token)
        if token.type == tokenize.OP:
            depth += (token.string in "([{") - (token.string in ")]}")
        if token.type == tokenize.NEWLINE or (token.type == tokenize.NL and not depth):
            yield group
            group = []
    if group:
        yield group


def _count(group: list[_Token], lines: Sequence[str], counts: dict[str, int]) -> None:
    end = tokenize.TokenInfo(tokenize.ENDMARKER, "", (0, 0), (0, 0), "")
    tokens = [*group, end]
    counts["comments"] += sum(token.type == tokenize.COMMENT for token in group)
    filled = sum(map(bool, lines))
    if raw.is_single_token(tokenize.COMMENT, tokens):
        counts["single_comments"] += 1
    elif raw.is_single_token(tokenize.STRING, tokens):
        if group[0].start[0] == group[0].end[0]:
            counts["single_comments"] += 1
        else:
            counts["multi"] += filled
            counts["blank"] += len(lines) - filled
    else:
        counts["sloc"] += filled
        counts["blank"] += len(lines) - filled
    counts["lloc"] += raw._logical(tokens)
