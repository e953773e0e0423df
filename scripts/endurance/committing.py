"""Commit in every way that git has, with our hook and without; look for a difference.

Two repositories are the same but for the hook. What is done in one is done in the other: the
commits must have the same trees, the hook must have judged exactly that tree, and edits that were
not committed must be there, byte for byte, staged or not.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from endurance import table
from sandbox_engine import commit_hooks

_DATE = "2026-01-02T03:04:05+00:00"
_FILES = {f"pkg/m{n}.py": f"A = {n}\nB = 1\nC = 1\nD = 1\nE = 1\nF = 1\nG = 1\n" for n in range(6)}
_JSON = re.compile(r"^\{$.*?^\}$", re.MULTILINE | re.DOTALL)


@dataclass(slots=True)
class Box:
    """One of the two repositories; `said` is what git and the hook wrote so far."""

    top: Path
    cache: Path
    said: str = ""

    def git(
        self, *arguments: str, check: bool = True, text: str | None = None, below: str = ""
    ) -> str:
        done = subprocess.run(
            ["git", *arguments],
            cwd=self.top / below,
            capture_output=True,
            text=True,
            check=False,
            input=text,
            env=_environment(self.cache),
        )
        self.said += f"{done.stdout}\n{done.stderr}\n"
        if check and done.returncode:
            raise RuntimeError(f"git {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout.strip()

    def edit(self, path: str, line: int, text: str) -> None:
        """Replace a line of a file."""
        file = self.top / path
        lines = file.read_text().splitlines(keepends=True)
        lines[line % len(lines)] = f"{text}\n"
        file.write_text("".join(lines))

    def write(self, path: str, text: str) -> None:
        (self.top / path).parent.mkdir(parents=True, exist_ok=True)
        (self.top / path).write_text(text)


Way: TypeAlias = Callable[[Box, random.Random], None]


def _environment(cache: Path) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return {
        **own,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_AUTHOR_DATE": _DATE,
        "GIT_COMMITTER_DATE": _DATE,
        "GIT_EDITOR": "true",
        "GIT_SEQUENCE_EDITOR": "true",
        "GIT_MERGE_AUTOEDIT": "no",
        "XDG_CACHE_HOME": str(cache),
    }


def _change(box: Box, draw: random.Random) -> str:
    path = f"pkg/m{draw.randrange(6)}.py"
    box.edit(path, draw.randrange(3), f"X = {draw.randrange(10**9)}")
    return path


def _plain(box: Box, draw: random.Random) -> None:
    box.git("add", _change(box, draw))
    box.edit("pkg/m0.py", 5, f"UNSTAGED = {draw.randrange(10**9)}")
    box.git("commit", "-q", "-m", "plain")


def _all(box: Box, draw: random.Random) -> None:
    _change(box, draw)
    _change(box, draw)
    box.git("commit", "-q", "-a", "-m", "all")


def _only(box: Box, draw: random.Random) -> None:
    box.git("add", _change(box, draw))
    box.edit("pkg/m5.py", 1, f"ONLY = {draw.randrange(10**9)}")
    box.git("commit", "-q", "-m", "only", "pkg/m5.py")


def _amend(box: Box, draw: random.Random) -> None:
    box.git("add", _change(box, draw))
    box.edit("pkg/m1.py", 5, f"UNSTAGED = {draw.randrange(10**9)}")
    box.git("commit", "-q", "--amend", "-m", "amended")


def _patch(box: Box, draw: random.Random) -> None:
    box.edit("pkg/m2.py", 0, f"FIRST = {draw.randrange(10**9)}")
    box.edit("pkg/m2.py", 6, f"LAST = {draw.randrange(10**9)}")
    # The two ends are one hunk that is split: the first is taken, the second is left.
    box.git("commit", "-q", "-p", "-m", "part", text="s\ny\nn\n", check=False)


def _interactive(box: Box, draw: random.Random) -> None:
    box.edit("pkg/m1.py", 0, f"TAKEN = {draw.randrange(10**9)}")
    box.edit("pkg/m2.py", 0, f"LEFT = {draw.randrange(10**9)}")
    # `2` is to stage, and asks for files until there is an empty line; `7` is to end.
    box.git("commit", "-q", "--interactive", "-m", "chosen", text="2\npkg/m1.py\n\n7\n")


def _merge(box: Box, draw: random.Random) -> None:
    _conflicting(box, draw)
    box.git("merge", "-q", "other", check=False)
    _resolve(box, draw)
    box.git("commit", "-q", "--no-edit")


def _rebase(box: Box, draw: random.Random) -> None:
    _conflicting(box, draw)
    box.git("rebase", "-q", "--autostash", "other", check=False)
    _resolve(box, draw)
    box.git("commit", "-q", "-m", "in a rebase")
    box.git("rebase", "--continue")


def _executed(box: Box, draw: random.Random) -> None:
    box.git("stash", "-q", "-u")
    box.edit("pkg/m4.py", 0, f"FIRST = {draw.randrange(10**9)}")
    box.git("commit", "-q", "-a", "-m", "first", "--no-verify")
    script = f"echo E = {draw.randrange(10**9)} > pkg/executed.py && git add . && git commit -qm in"
    box.git("rebase", "-q", "-i", "--exec", script, "HEAD^")
    box.git("stash", "pop", "-q")


def _cherry_pick(box: Box, draw: random.Random) -> None:
    _conflicting(box, draw)
    box.git("cherry-pick", "other", check=False)
    _resolve(box, draw)
    box.git("commit", "-q", "-m", "picked")


def _conflicting(box: Box, draw: random.Random) -> None:
    """Make `other` and the branch change the same line."""
    box.git("stash", "-q", "-u")
    branch = box.git("branch", "--show-current")
    for name in ("other", branch):
        box.git("switch", "-q", *(["-C", name] if name == "other" else [name]))
        box.edit("pkg/m3.py", 2, f"{name.upper()} = {draw.randrange(10**9)}")
        box.git("commit", "-q", "-a", "-m", name, "--no-verify")
    box.git("stash", "pop", "-q", check=False)
    if "pkg/m3.py" in box.git("diff", "--name-only", "--diff-filter=U"):
        raise RuntimeError("the edits conflict with themselves")


def _resolve(box: Box, draw: random.Random) -> None:
    box.write("pkg/m3.py", _FILES["pkg/m3.py"] + f"RESOLVED = {draw.randrange(10**9)}\n")
    box.git("add", "pkg/m3.py")


def _below(box: Box, draw: random.Random) -> None:
    box.write("pkg/deep/new.py", f"N = {draw.randrange(10**9)}\n")
    box.git("add", "deep/new.py", below="pkg")
    box.git("commit", "-q", "-m", "below", below="pkg")


def _intended(box: Box, draw: random.Random) -> None:
    box.write(f"intended{draw.randrange(10**6)}.py", "I = 1\n")
    box.git("add", "-N", ".")
    box.git("add", _change(box, draw))
    box.git("commit", "-q", "-m", "intended")


def _linked(box: Box, draw: random.Random) -> None:
    linked = Box(box.top.with_name(f"{box.top.name}-linked"), box.cache)
    if not linked.top.exists():
        box.git("worktree", "add", "-q", "-B", "linked", str(linked.top))
    _change(linked, draw)
    linked.git("commit", "-q", "-a", "-m", "linked")
    box.said += linked.said


def _split(box: Box, draw: random.Random) -> None:
    box.git("update-index", "--split-index")
    box.git("add", _change(box, draw))
    box.git("commit", "-q", "-m", "split")
    box.git("update-index", "--no-split-index")


def _sparse(box: Box, draw: random.Random) -> None:
    box.write("pkg/top.py", f"T = {draw.randrange(10**9)}\n")
    box.git("add", "pkg/top.py")
    box.git("sparse-checkout", "set", "--cone", "--sparse-index", "pkg")
    box.git("commit", "-q", "-m", "sparse")
    box.git("sparse-checkout", "disable")


def _submodule(box: Box, draw: random.Random) -> None:
    # A relative address is the same in both repositories.
    allow = ("-c", "protocol.file.allow=always")
    box.git(*allow, "submodule", "add", "-q", "../module", "module")
    box.git("add", _change(box, draw))
    box.git("commit", "-q", "-m", "with a submodule")


WAYS: dict[str, Way] = {
    "commit": _plain,
    "commit -a": _all,
    "commit FILE": _only,
    "--amend": _amend,
    "-p": _patch,
    "--interactive": _interactive,
    "merge": _merge,
    "rebase": _rebase,
    "rebase --exec": _executed,
    "cherry-pick": _cherry_pick,
    "linked worktree": _linked,
    "subfolder": _below,
    "intent to add": _intended,
    "split index": _split,
    "sparse index": _sparse,
    "submodule": _submodule,
}


def commits(each: int, seed: int, ways: Sequence[str] = tuple(WAYS)) -> int:
    """Commit `each` times in every way, print a table, and return how many were not right."""
    draw = random.Random(seed)
    wrong = Counter[str]()
    with tempfile.TemporaryDirectory(prefix="endure-commits-") as name:
        folder = Path(name).resolve()
        _make_template(folder)
        for _ in range(each):
            for way in draw.sample(list(ways), len(ways)):
                for fault in _faults(way, *_boxes(folder), draw.randrange(10**9)):
                    print(f"{way}: {fault}", file=sys.stderr, flush=True)
                    wrong[way] += 1
    print(table.text(("commits", "times", "wrong"), [(way, each, wrong[way]) for way in ways]))
    return wrong.total()


def _make_template(folder: Path) -> None:
    """Make what each pair of repositories is a copy of."""
    (folder / "template" / "module").mkdir(parents=True)
    (folder / "template" / "repository").mkdir()
    _fill(Box(folder / "template" / "module", folder / "cache"), {"inner.txt": "inner\n"})
    box = Box(folder / "template" / "repository", folder / "cache")
    _fill(box, {**_FILES, "far/away.txt": "away\n", "mine.txt": "mine\n"})
    box.write("mine.txt", "an edit\n")
    box.write("untracked.txt", "untracked\n")


def _boxes(folder: Path) -> tuple[Box, Box]:
    """Return two new repositories that differ by our hook alone."""
    for name in ("ours", "plain"):
        shutil.rmtree(folder / name, ignore_errors=True)
        shutil.copytree(folder / "template", folder / name)
    ours, plain = (
        Box(folder / name / "repository", folder / "cache") for name in ("ours", "plain")
    )
    commit_hooks.install(ours.top, ["--strategy", "SYNTAX_ONLY", "--output", "json"])
    return ours, plain


def _fill(box: Box, files: dict[str, str]) -> None:
    box.git("init", "-q", "--initial-branch=main")
    box.git("config", "user.name", "Ada")
    box.git("config", "user.email", "ada@example.org")
    for path, text in files.items():
        box.write(path, text)
    box.git("add", ".")
    box.git("commit", "-q", "-m", "first")


def _faults(way: str, ours: Box, plain: Box, seed: int) -> Iterator[str]:
    """Yield what is not right after a commit in both repositories."""
    judged = ""
    for box in (ours, plain):
        try:
            WAYS[way](box, random.Random(seed))
        except RuntimeError as error:
            yield f"git refused it: {error}"
            return
        if box is ours:
            judged = box.said
    where = f"{ours.top.name}-linked" if way == "linked worktree" else ours.top.name
    ours, plain = (Box(box.top.with_name(where), box.cache) for box in (ours, plain))
    trees = [box.git("rev-parse", "HEAD^{tree}") for box in (ours, plain)]
    if trees[0] != trees[1]:
        yield f"the commit has the tree {trees[0]}, and {trees[1]} without the hook"
    found = [json.loads(part) for part in _JSON.findall(judged)]
    if way != "rebase" and [one["tree"] for one in found] != [trees[0]]:
        yield f"judged were {[one['tree'] for one in found]}, and {trees[0]} is committed"
    for question in (("status", "--porcelain"), ("diff",), ("diff", "--cached"), ("stash", "list")):
        one, other = (box.git(*question) for box in (ours, plain))
        if one != other:
            yield f"`git {' '.join(question)}` tells otherwise: {one!r}, not {other!r}"
    for name in ("mine.txt", "untracked.txt"):
        if (
            where == "repository"
            and (ours.top / name).read_bytes() != (plain.top / name).read_bytes()
        ):
            yield f"`{name}` is not as it was"
