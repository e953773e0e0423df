"""A small project, patches that each know the verdict they must get, and a place to judge them.

Every patch carries a digest of the whole tree that it leads to. The checks in the sandbox compare
it with what they find there, so a verdict is right only if the sandbox held that tree, with the
carried files, and nothing else.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import os
import random
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from sandbox_engine.verdict import Tier

Files: TypeAlias = "dict[str, bytes | None]"

TIERS = tuple(str(tier) for tier in Tier)
TOKEN_VARIABLE = "ENDURE_TOKEN"
"""Names the variable that every process of a world is started with."""
SHOWN = 600
_DATE = "1767225600 +0000"
_CARRIED = {"local/a.env": b"a" * 70_000, "local/b.env": b"b" * 70_000}

_LOOK = """\
import hashlib, os


def complain(error):
    raise error


def state(path):
    if os.path.islink(path):
        return "link", os.fsencode(os.readlink(path))
    with open(path, "rb") as file:
        return ("x" if os.stat(path).st_mode & 0o100 else "-"), file.read()


def found():
    lines = []
    for parent, folders, names in os.walk(".", onerror=complain):
        folders[:] = [name for name in folders if name not in (".git", "user")]
        if not folders and not names:
            lines.append("empty folder " + parent)
        for name in names:
            path = os.path.relpath(os.path.join(parent, name), ".")
            if path not in (".git", "expected.txt"):
                kind, content = state(path)
                lines.append(path + " " + kind + " " + hashlib.sha256(content).hexdigest())
    return sorted(lines)


def read(path):
    with open(path) as file:
        return file.read()


def problems():
    lines = found()
    if read("expected.txt").strip() != hashlib.sha256("\\n".join(lines).encode()).hexdigest():
        return ["the tree is not as expected:"] + lines
    return [] if read("user/a.txt") == read("user/b.txt") else ["two commits of the user are mixed"]
"""
_CHECK = """\
import sys
import behaviour, look
from pkg.core import answer

if problems := look.problems():
    sys.exit("\\n".join(problems))
behaviour.act()
if answer() != 42:
    sys.exit("the answer is wrong")
"""
_CORE = b"def answer():\n    return 42\n"
_TESTS = {
    "tests/test_a_tree.py": b"import look\n\n\ndef test_tree():\n"
    b"    assert look.problems() == []\n",
    "tests/test_core.py": b"from pkg.core import answer\n\n\ndef test_answer():\n"
    b"    assert answer() == 42\n",
    "tests/test_z_behaviour.py": b"import behaviour\n\n\ndef test_act():\n    behaviour.act()\n",
}
_IDLE = b"def act():\n    pass\n"
_DAEMON = """\
import os, time


def act():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for number in (0, 1, 2):
                os.dup2(os.open(os.devnull, os.O_RDWR), number)
            os.execvp("sleep", ["{token}", "30"])
        os._exit(0)
    os.wait()
    time.sleep({nap_s})
"""


class Problem(Exception):
    """What ends the work early, as one sentence."""


@dataclass(frozen=True, slots=True)
class Draw:
    """A patch with the verdict that it must get; `evidence` is found in its reason."""

    kind: str
    strategy: str
    outcome: str
    evidence: str
    patch: str
    files: Mapping[str, bytes | None]

    def fault(self, record: Mapping[str, Any], tier: str) -> str:
        """Return what is wrong with a verdict, given as JSON has it; "" when nothing is."""
        said = f"{record['outcome']} ({record['reason']})"
        if record["outcome"] != self.outcome or not re.search(self.evidence, record["reason"]):
            output = " ".join(step["output"] for step in record["steps"]).strip()[-SHOWN:]
            return f"{self.kind}, {self.strategy}: {said} and not {self.outcome} {output}".strip()
        if record["steps"] and record["isolation"] != tier:
            return f"judged in the tier `{record['isolation']}` and not `{tier}`"
        return ""


@dataclass(frozen=True, slots=True)
class World:
    """A project of a user, the folders of an engine, and the token of all that it starts."""

    folder: Path
    tier: str
    token: str
    files: Mapping[str, bytes | None]

    @property
    def top(self) -> Path:
        return self.folder / "repo"

    @property
    def temporary(self) -> Path:
        return self.folder / "tmp"

    @property
    def cache_home(self) -> Path:
        return self.folder / "cache"

    @property
    def stores(self) -> Path:
        return self.cache_home / "sandbox-engine"

    @property
    def store(self) -> Path:
        """The one store, or where it would be."""
        found = [path for path in self.stores.glob("repo-*") if path.is_dir()]
        return found[0] if found else self.stores / "repo-none"

    @property
    def config(self) -> Path:
        return self.folder / "endure.toml"

    @property
    def environment(self) -> dict[str, str]:
        """What the engine is started with: nothing of ours but where programs are."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        return {
            **kept,
            "HOME": str(self.folder / "home"),
            "TMPDIR": str(self.temporary),
            "XDG_CACHE_HOME": str(self.cache_home),
            "XDG_CONFIG_HOME": str(self.folder / "home"),
            "GIT_CONFIG_NOSYSTEM": "1",
            "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
            TOKEN_VARIABLE: self.token,
        }


@contextlib.contextmanager
def make_world(tier: str, *, slots: int = 2) -> Iterator[World]:
    """Yield a new world in a temporary folder, which is removed after the block."""
    folder = Path(tempfile.mkdtemp(prefix="endure-")).resolve()
    try:
        for name in ("tmp", "home", "cache"):
            (folder / name).mkdir()
        world = World(folder, tier, secrets.token_hex(16), _base_files())
        _write_config(world, slots)
        _make_project(world)
        yield world
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    for parent, _, _ in os.walk(folder):
        with contextlib.suppress(OSError):
            os.chmod(parent, 0o700)
    shutil.rmtree(folder, ignore_errors=True)


def _write_config(world: World, slots: int) -> None:
    check = '{ command = "python -S check.py" }'
    settings = [
        f"python = {json.dumps(sys.executable)}",
        'carry = ["local/*.env"]',
        f'env = ["{TOKEN_VARIABLE}"]',
        f"slots = {slots}",
        f'strategies.CHECK = {{ steps = ["syntax", {check}] }}',
        f'strategies.TWICE = {{ steps = ["syntax", {check}, {check}] }}',
        'strategies.TESTS = { steps = ["syntax", "pytest"] }',
        f'isolation = "{world.tier}"',
        "timeout_s = 120",
    ]
    world.config.write_text("\n".join(settings) + "\n")


def git(top: Path, *arguments: str, text: str | None = None) -> str:
    """Return what the user's git wrote; raise Problem when it fails."""
    done = subprocess.run(
        ["git", *arguments], cwd=top, input=text, capture_output=True, check=False,
        encoding="utf-8", errors="surrogateescape",
        env={"PATH": os.environ["PATH"], "HOME": str(top.parent / "home"), "LC_ALL": "C",
             "GIT_CONFIG_NOSYSTEM": "1", "GIT_OPTIONAL_LOCKS": "0",
             "GIT_AUTHOR_DATE": _DATE, "GIT_COMMITTER_DATE": _DATE},
    )  # fmt: skip
    if done.returncode:
        said = (done.stderr + done.stdout).strip()
        raise Problem(f"`git {' '.join(arguments)}` in `{top}`: {said[-SHOWN:]}")
    return done.stdout.strip()


def _base_files() -> Files:
    files: Files = {
        ".gitignore": b"*.env\n*.log\n",
        "behaviour.py": _IDLE,
        "check.py": _CHECK.encode(),
        "look.py": _LOOK.encode(),
        "tool.sh": b"#!/bin/sh\nexit 0\n",
        "docs/a name with spaces.txt": b"text\r\nwith two line ends\n",
        "pkg/__init__.py": b"",
        "pkg/core.py": _CORE,
        **_TESTS,
        **{f"pkg/m{number:02d}.py": b"VALUE = %d\n" % number for number in range(12)},
    }
    return {**files, "expected.txt": _expected(files)}


def _expected(files: Mapping[str, bytes | None]) -> bytes:
    """Return what `look.py` must find in a directory that holds `files` and what is carried."""
    states = {
        path: ("x" if path == "tool.sh" else "-", content)
        for path, content in {**files, **_CARRIED}.items()
        if content is not None and path != "expected.txt"
    }
    states["link"] = ("link", b"pkg/core.py")
    lines = sorted(
        f"{path} {kind} {hashlib.sha256(content).hexdigest()}"
        for path, (kind, content) in states.items()
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest().encode() + b"\n"


def _make_project(world: World) -> None:
    top = world.top
    user = {"user/a.txt": b"0\n", "user/b.txt": b"0\n", "docs/staged.txt": b"staged\n"}
    for name, content in {**world.files, **_CARRIED, **user}.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content or b"")
    (top / "tool.sh").chmod(0o755)
    (top / "link").symlink_to("pkg/core.py")
    git(top, "init", "-q", "--initial-branch=main")
    git(top, "config", "user.name", "Ada")
    git(top, "config", "user.email", "ada@example.org")
    git(top, "add", "--all", ":!docs/staged.txt")
    git(top, "commit", "-q", "-m", "project")
    git(top, "gc", "-q")
    git(top, "tag", "fixed")
    git(top, "branch", "side")
    # What a user has lying about: an edit, something staged, a file that is not tracked.
    git(top, "add", "docs/staged.txt")
    (top / "tool.sh").write_bytes(b"#!/bin/sh\nexit 1\n")
    (top / "notes.log").write_text("ignored\n")


def _good(world: World, draw: random.Random, token: str) -> Files:
    names = [name for name in world.files if name.startswith("pkg/m")]
    return {name: f"VALUE = {token!r}\n".encode() for name in draw.sample(names, 3)}


def _breaking(world: World, draw: random.Random, token: str) -> Files:
    return {"pkg/core.py": _CORE.replace(b"42", f"{draw.randrange(43, 10**6)}  # {token}".encode())}


def _syntax_error(world: World, draw: random.Random, token: str) -> Files:
    return {"pkg/core.py": f"def answer(:\n    # {token}\n".encode()}


def _new_file(world: World, draw: random.Random, token: str) -> Files:
    return {f"new/folder/test_{token}.py": b"def test_new():\n    pass\n"}


def _deletion(world: World, draw: random.Random, token: str) -> Files:
    gone = draw.choice([name for name in world.files if name.startswith("pkg/m")])
    return {gone: None, f"docs/{token}.txt": b"what is gone\n"}


def _daemon(nap_s: float) -> Callable[[World, random.Random, str], Files]:
    def edit(world: World, draw: random.Random, token: str) -> Files:
        text = _DAEMON.replace("{token}", world.token).replace("{nap_s}", str(nap_s))
        return {"behaviour.py": f"# {token}\n{text}".encode()}

    return edit


_PASSED, _FAILED, _REJECTED = "PASSED", "FAILED", "REJECTED"
_KINDS: Mapping[str, tuple[str, str, Callable[[World, random.Random, str], Files]]] = {
    "good": (_PASSED, "exit code 0|of 3 tests passed", _good),
    "breaking": (_FAILED, r"exit code 1|test_core\.py::test_answer", _breaking),
    "syntax error": (_REJECTED, "is not valid Python", _syntax_error),
    "not applying": (_REJECTED, r"pkg/core\.py", _breaking),
    "new file": (_PASSED, "exit code 0|of 4 tests passed", _new_file),
    "deletion": (_PASSED, "exit code 0|of 3 tests passed", _deletion),
    "daemon": (_PASSED, "exit code 0|of 3 tests passed", _daemon(0)),
    "napping daemon": (_PASSED, "exit code 0|of 3 tests passed", _daemon(0.4)),
}
KINDS = tuple(kind for kind in _KINDS if kind != "napping daemon")


def make_patch(
    world: World, kind: str, strategy: str, token: str, draw: random.Random, *, ballast: int = 0
) -> Draw:
    """Return a patch of `kind` whose tree no other token leads to.

    With `ballast` it adds a file of that many bytes which do not compress.
    """
    outcome, evidence, edit = _KINDS[kind]
    edits = edit(world, draw, token)
    if ballast:
        text = draw.randbytes(ballast // 2).hex()
        edits["docs/ballast.txt"] = "\n".join(re.findall(".{1,64}", text)).encode() + b"\n"
    edits["expected.txt"] = _expected({**world.files, **edits})
    before: Mapping[str, bytes | None] = world.files
    if kind == "not applying":
        before = {**before, "pkg/core.py": b"def answer():\n    return 41\n"}
    text = "".join(_diff(name, before.get(name), new) for name, new in edits.items())
    return Draw(kind, strategy, outcome, evidence, text, edits)


def _diff(name: str, old: bytes | None, new: bytes | None) -> str:
    mode = "new file mode 100644\n" if old is None else ""
    mode += "deleted file mode 100644\n" if new is None else ""
    lines = difflib.unified_diff(
        (old or b"").decode().splitlines(keepends=True),
        (new or b"").decode().splitlines(keepends=True),
        "/dev/null" if old is None else f"a/{name}",
        "/dev/null" if new is None else f"b/{name}",
    )
    return f"diff --git a/{name} b/{name}\n{mode}{''.join(lines)}"
