"""Every command in the docs is run, page by page, as a reader types it; pages are current.

A page's `sh` and `console` blocks run in order in one bash, in an empty folder or in one that
`<!-- prepare: NAME -->` asks for. In a `console` block what follows a command is what it prints;
`...` stands for anything. A block that cannot run says why: `<!-- not run: REASON -->`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "adr" not in path.parts)
BLOCK = re.compile(
    r"^(?:<!-- (prepare|not run): ([^>]+?) -->\s+)?^```(sh|console|bash|shell)\n(.*?)^```$",
    re.M | re.S,
)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
START = """\
git init -q -b main
git config user.name Ada
git config user.email ada@example.org
"""
CART = f"""\
mkdir shop && cd shop
{START}
cat >cart.py <<'CODE'
def total(prices):
    return sum(prices)
CODE
cat >test_cart.py <<'CODE'
from cart import total


def test_total():
    assert total([1, 2]) == 3
CODE
git add . && git commit -qm 'A cart'
"""
BRANCH = f"""\
{CART}
git switch -qc topic
sed -i '1a\\    "Add up."' cart.py
git commit -qam 'Say more'
git switch -q main
"""
PATCHED = f"""\
{CART}
sed '1a\\    "Add up."' cart.py >new.py
git diff --no-index cart.py new.py | sed 's/new.py/cart.py/g' >fix.diff
rm new.py
"""
MONOREPO = f"""\
mkdir mono && cd mono
{START}
for name in billing shared; do
    mkdir -p $name/src/$name $name/tests
    echo 'X = 1' >$name/src/$name/__init__.py
    cat >$name/tests/test_$name.py <<CODE
from $name import X


def test_$name():
    assert X == 1
CODE
done
git add . && git commit -qm 'Two projects'
echo 'Y = 2' >>billing/src/billing/__init__.py
git diff >../fix.diff && git checkout -q .
"""
PRIVATE = f"""\
mkdir shop && cd shop
{START}
mkdir -p src/shop tests
printf '_version.py\\n__pycache__/\\n' >.gitignore
echo 'from shop._version import VERSION' >src/shop/__init__.py
echo 'VERSION = "1"' >src/shop/_version.py
echo 'print("VERSION = \\"1\\"", file=open("src/shop/_version.py", "w"))' >make_version.py
cat >tests/test_it.py <<'CODE'
import os

from shop import VERSION


def test_it():
    assert VERSION == "1"
    assert os.environ["SHOP_REGION"] == "eu"
CODE
git add . && git commit -qm 'A shop'
echo 'NAME = "shop"' >>src/shop/__init__.py
git diff >../fix.diff && git checkout -q .
"""
MISTAKES = """\
cat >hephaestus_config.json <<'JSON'
{"models": {"architect_default": "m", "lihgt": "m"}, "memory_backend": "sqlight",
 "budgets": {"attempts": 0}}
JSON
"""
PREPARED = {
    "project": CART,
    "topic": BRANCH,
    "patched": PATCHED,
    "monorepo": MONOREPO,
    "private": PRIVATE,
    "mistakes": MISTAKES,
}


@dataclass(frozen=True, slots=True)
class Command:
    """What is typed, and what is printed; None where the page does not say."""

    text: str
    printed: str | None = None


def commands(page: Path) -> Iterator[Command]:
    for mark, detail, kind, body in BLOCK.findall(page.read_text()):
        if mark == "not run":
            assert len(detail) > 10, "a reason that a reader would accept"
            continue
        if mark == "prepare":
            yield Command(PREPARED[detail])
        if kind != "console":
            yield Command(body)
            continue
        for part in re.split(r"^\$ ", body, flags=re.M)[1:]:
            lines = part.rstrip("\n").split("\n")
            typed = [lines.pop(0)]
            while lines and re.match(r"> ?", lines[0]):
                typed.append(re.sub(r"^> ?", "", lines.pop(0)))
            yield Command("\n".join(typed) + "\n", "\n".join(lines))


def pattern(printed: str) -> str:
    """Return what matches text in which `...` is anything, of any number of lines."""
    parts = (re.escape(part) for part in printed.split("..."))
    return r"\s*" + "(?s:.*?)".join(parts) + r"\s*"


def run_all(typed: list[Command], folder: Path) -> list[tuple[str, int]]:
    """Run all commands in one shell, and return what each printed and its exit code."""
    script = "".join(
        f"printf '\\0'\n{{\n{one.text}}} 2>&1\nprintf '\\0%d' \"$?\"\n" for one in typed
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env={**os.environ, "PATH": path, "SHELL": "/bin/sh"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    parts = done.stdout.split("\0")[1:]
    return list(zip(parts[::2], map(int, parts[1::2]), strict=True))


@pytest.mark.parametrize("page", [*PAGES, README], ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_does_what_it_says(page: Path, tmp_path: Path) -> None:
    typed = list(commands(page))
    if not typed:
        return
    folder = tmp_path / "reader"
    folder.mkdir()
    for one, (printed, code) in zip(typed, run_all(typed, folder), strict=True):
        assert code == 0, f"{one.text}\n{printed}"
        if one.printed is not None:
            wanted = re.compile(pattern(one.printed))
            assert wanted.fullmatch(printed), f"{one.text}\nwanted:\n{one.printed}\n\n{printed}"


def test_what_a_page_says_wrongly_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```console\n$ echo one\nt...o\n$ false\n```\n\n```sh\necho x\n```\n")
    one, two, three = commands(page)
    seen = run_all([one, two, three], tmp_path)
    assert seen == [("one\n", 0), ("", 1), ("x\n", 0)]
    assert not re.fullmatch(pattern(one.printed or ""), seen[0][0])
    assert re.fullmatch(pattern("o...e"), seen[0][0])


@pytest.mark.parametrize("page", [*PAGES, README], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), target


def test_every_page_is_reached_from_the_index() -> None:
    seen, pending = set(), [DOCS / "index.md"]
    while pending:
        page = pending.pop()
        if page in seen or page.suffix != ".md" or not page.exists():
            continue
        seen.add(page)
        pending += [(page.parent / target).resolve() for target in LINK.findall(page.read_text())]
    assert set(PAGES) <= seen


def test_what_is_generated_is_current(tmp_path: Path) -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "reference", "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), "run scripts/reference"


def test_what_is_not_current_is_seen(tmp_path: Path) -> None:
    page = DOCS / "reference" / "settings.md"
    copy = tmp_path / "clone"
    (copy / "scripts").mkdir(parents=True)
    (copy / "docs" / "reference").mkdir(parents=True)
    (copy / "scripts" / "reference").write_bytes((ROOT / "scripts" / "reference").read_bytes())
    for name in ("verdict.schema.json", "reference/command-line.md"):
        (copy / "docs" / name).write_bytes((DOCS / name).read_bytes())
    (copy / "docs" / "reference" / "settings.md").write_text(page.read_text() + "\n")
    done = subprocess.run(
        [sys.executable, copy / "scripts" / "reference", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "not current: docs/reference/settings.md" in done.stdout
    assert "command-line.md" not in done.stdout


def test_our_own_settings_name_tests_that_are_there() -> None:
    settings = tomllib.loads((ROOT / "sandbox-engine.toml").read_text())
    named = re.findall(r"tests/\w+\.py", str(settings))
    assert named and [name for name in named if not (ROOT / name).exists()] == []
