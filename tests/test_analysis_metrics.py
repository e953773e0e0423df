"""Sizes and complexities, as radon defines them."""

from __future__ import annotations

import random
import sysconfig
import warnings
from pathlib import Path

import pytest
import radon.complexity
import radon.metrics
import radon.raw
from radon.visitors import Class

from sandbox_engine import NotAnalysableError
from sandbox_engine.analysis.metrics import count_lines, metrics_of
from sandbox_engine.analysis.source import text_of

LIBRARY = Path(sysconfig.get_path("stdlib"))
SOME = sorted(path for path in LIBRARY.glob("*.py") if 2_000 < path.stat().st_size < 40_000)


def radon_says(text: str) -> dict[str, object]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        blocks = [one for one in radon.complexity.cc_visit(text) if not isinstance(one, Class)]
        return {
            **radon.raw.analyze(text)._asdict(),
            "mi": round(radon.metrics.mi_visit(text, multi=True), 4),
            "volume": round(radon.metrics.h_visit(text).total.volume, 4),
            "blocks": {(one.name, one.lineno): one.complexity for one in blocks},
        }


@pytest.mark.parametrize("path", random.Random(3).sample(SOME, 12), ids=lambda path: path.name)
def test_the_numbers_are_those_of_radon(path: Path) -> None:
    content = path.read_bytes()
    found = metrics_of(content)
    wanted = radon_says(text_of(content))
    for name in ("loc", "lloc", "sloc", "comments", "multi", "blank", "single_comments", "mi"):
        assert found[name] == wanted[name], name
    assert found["halstead"]["volume"] == wanted["volume"]
    complexities = {(one["name"], one["line"]): one["cc"] for one in found["functions"]}
    blocks = wanted["blocks"]
    assert isinstance(blocks, dict) and blocks.items() <= complexities.items()


SOURCES = [
    "",
    "\n\n",
    "x = 1",
    "x = 1\n\n\n# end",
    '"""One line."""\n',
    '"""Several\n\nlines."""\nx = """more\n\nlines"""\n',
    "x = [  # one\n    1,\n\n    2,\n]\n",
    "if x:\n\n    # inside\n    y = 1; z = 2\nelse: pass\n",
    "def f(): return 1\nclass A: pass\n",
    "x = (\n    'a'\n    'b'\n)\n'''tail'''\n",
    "@d\ndef f(a,\n      b): ...\n\n\n\\\n\nx = 1 + \\\n    2\n",
    "x = 1\x0cy = 2\n\x0c\nz = 3\n",
    "for x in y:\n    pass\n# a\n# b\n\n",
    "\ttry_ = 1\n".lstrip(),
    "x = f'''{a}\n\n{b}'''\n",
]


@pytest.mark.parametrize("text", SOURCES)
def test_lines_are_counted_as_radon_counts_them(text: str) -> None:
    assert count_lines(text) == radon.raw.analyze(text)


def test_a_string_may_hold_what_radon_takes_for_a_line_break() -> None:
    text = "x = '\u2028'\ny = '\x0c'\n"
    with pytest.raises(SyntaxError):
        radon.raw.analyze(text)
    assert (count_lines(text).loc, count_lines(text).sloc) == (2, 2)


def test_a_long_table_does_not_take_the_square_of_its_lines() -> None:
    """radon tokenizes a statement anew for each of its lines."""
    table = "x = [\n" + "    (1, 'one'),\n" * 20_000 + "]\n"
    assert count_lines(table).sloc == 20_002


def test_functions_methods_and_closures_are_all_there() -> None:
    source = b"""\
class A:
    async def method(self, a, /, b=1, *rest, c, **more):
        def closure():
            return [x for x in a if x and b]
        class Local:
            def inner(self):
                if self: return 1
        return closure if a else Local

    class B:
        def deep(self): ...


def function():
    try:
        pass
    except* ValueError:
        pass
    except* TypeError:
        pass
    match 1:
        case 1: pass
        case 2: pass


if True:
    def under_a_condition(): assert 1
"""
    found = metrics_of(source)["functions"]
    assert [(one["qualname"], one["kind"], one["cc"]) for one in found] == [
        ("A.method", "method", 2),
        ("A.method.<locals>.closure", "closure", 4),
        ("A.method.<locals>.Local.inner", "method", 2),
        ("A.B.deep", "method", 1),
        ("function", "function", 5),
        ("under_a_condition", "function", 2),
    ]
    assert found[0]["args"] == ["self", "a", "b", "*rest", "c", "**more"]
    assert (found[0]["line"], found[0]["end_line"], found[0]["loc"]) == (2, 8, 7)


def test_what_is_no_python_is_not_analysable() -> None:
    for content, reason in (
        (b"def f(:\n", "line 1: invalid syntax"),
        (b"x = '\xff'\n", "(unicode error) 'utf-8' codec can't decode byte 0xff"),
        (b"# -*- coding: nonsense -*-\n", "unknown encoding: nonsense"),
        (b"x = 1\0\n", "source code string cannot contain null bytes"),
        (b"x = 1\n" * 400_000, "larger than 2 MiB (2.3 MiB)"),
        (b"print 'old'\n", "line 1: Missing parentheses in call to 'print'"),
    ):
        with pytest.raises(NotAnalysableError) as raised:
            metrics_of(content)
        assert reason in str(raised.value)


def test_a_declared_encoding_and_a_byte_order_mark_are_honoured() -> None:
    latin = metrics_of("# -*- coding: latin-1 -*-\nx = 'é'\n".encode("latin-1"))
    assert (latin["loc"], latin["comments"]) == (2, 1)
    marked = metrics_of(b"\xef\xbb\xbf# one\nx = 1\n")
    assert (marked["loc"], marked["comments"]) == (2, 1)
