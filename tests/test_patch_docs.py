"""The examples of `docs/patches.md` do what the page says: all of them make the same change."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sandbox_engine.patch import FORMATS, File, apply_patch, parse_patch

TEXT = (Path(__file__).parent.parent / "docs" / "patches.md").read_text()
PAGE = TEXT.partition("\n## Formats\n")[2].partition("\n## ")[0]
EXAMPLE = re.compile(r"^### `([a-z-]+)`$(?:(?!^### ).)*?^~~~~~text\n(.*?)^~~~~~$", re.M | re.S)
EXAMPLES = dict(EXAMPLE.findall(PAGE))
BEFORE = b'def greet(name):\n    return "Hello " + name\n'
AFTER = b'def greet(name):\n    return f"Hello {name}"\n'


def test_each_format_has_a_row_and_an_example() -> None:
    assert tuple(EXAMPLES) == FORMATS
    assert tuple(re.findall(r"^\| `([a-z-]+)` \|", PAGE, re.M)) == FORMATS


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("is_named", [False, True])
def test_each_example_is_recognised_and_applies(form: str, is_named: bool) -> None:
    patch = parse_patch(EXAMPLES[form].encode(), format=form if is_named else None)
    assert patch.format == form
    changes = apply_patch(patch, {b"src/greet.py": File(BEFORE)}.get)
    assert changes.files == {b"src/greet.py": File(AFTER)}
