"""The examples of the README and of `docs/patches.md` all make the same change, as they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sandbox_engine.patch import FORMATS, File, apply_patch, parse_patch

TOP = Path(__file__).parent.parent
EXAMPLE = re.compile(r"^### `([a-z-]+)`$(?:(?!^### ).)*?^~~~~~text\n(.*?)^~~~~~$", re.M | re.S)
PAGES = {"docs/patches.md": "## Formats", "README.md": "## Patches"}


def section(page: str) -> str:
    text = (TOP / page).read_text().partition(f"\n{PAGES[page]}\n")[2]
    return text.partition("\n## ")[0]


BEFORE = b'def greet(name):\n    return "Hello " + name\n'
AFTER = b'def greet(name):\n    return f"Hello {name}"\n'


@pytest.mark.parametrize("page", PAGES)
def test_each_format_has_a_row_and_an_example(page: str) -> None:
    assert tuple(dict(EXAMPLE.findall(section(page)))) == FORMATS
    assert tuple(re.findall(r"^\| `([a-z-]+)` \|", section(page), re.M)) == FORMATS


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("is_named", [False, True])
def test_each_example_is_recognised_and_applies(page: str, form: str, is_named: bool) -> None:
    examples = dict(EXAMPLE.findall(section(page)))
    patch = parse_patch(examples[form].encode(), format=form if is_named else None)
    assert patch.format == form
    changes = apply_patch(patch, {b"src/greet.py": File(BEFORE)}.get)
    assert changes.files == {b"src/greet.py": File(AFTER)}
