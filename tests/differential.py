"""Generated diffs, applied by our engine and by `git apply`, many cases to a git process.

A case is an old and a new tree, what `git diff` writes between them, changes to that text, and a
tree to apply it to, which may have drifted from the old one.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from sandbox_engine.errors import PatchError
from sandbox_engine.patch import File, apply_patch, parse_patch

Tree = dict[bytes, File]

REGULAR, SCRIPT = 0o100644, 0o100755
OPTIONS: tuple[tuple[str, ...], ...] = (
    (),
    ("--binary",),
    ("--binary", "-M"),
    ("--binary", "-M", "-C", "--find-copies-harder"),
    ("--binary", "-U1"),
    ("--binary", "-U2", "--full-index"),
    ("--binary", "-U5", "--patience"),
    ("--text", "-M"),
    ("--binary", "-U0"),
    ("--binary", "--no-prefix"),
)
STRICTER = {
    "patch-malformed": "a hunk with more lines than its header says, or a header without names",
    "file-exists": "a file created, copied or renamed over one that is there",
    "hunk-not-found": "context without newline that would eat the file's newline",
    "path-conflict": "a file changed and then renamed in one patch, or below a file",
    "forbidden-path": "a name with a control byte",
    "wrong-type": "a kind of file that is none",
    "removal-incomplete": "a deletion that leaves lines",
}


@dataclass(frozen=True)
class Case:
    """`mutations` change the text of the diff from `old` to `new`, which goes onto `target`."""

    old: Tree
    new: Tree
    target: Tree
    options: tuple[str, ...]
    mutations: tuple[int, ...]


@dataclass
class Result:
    """How many cases went which way; `disagreements` are those that nothing explains."""

    counts: Counter[str] = field(default_factory=Counter)
    disagreements: list[tuple[Case, bytes, str]] = field(default_factory=list)


_HEAD = re.compile(rb"^[0-9a-f]{40} [0-9a-f]{40}\n", re.MULTILINE)
_WORDS = [b"a", b"b", b"c", b"", b"  x", b"\ty ", b"-- z", b"++ z", b"@@ -1 +1 @@", b"d\r", b"\xff"]
_LINES = st.lists(st.sampled_from(_WORDS), max_size=14)
_NUMBERS = st.integers(1, 40).map(lambda count: [b"%d" % number for number in range(count)])
_TEXT = st.builds(
    lambda lines, end: b"\n".join(lines) + (b"\n" if end else b""),
    st.one_of(_LINES, _LINES, _NUMBERS),
    st.booleans(),
)
_BYTES = st.binary(max_size=60).map(lambda data: data + b"\0")
_FILE = st.builds(
    File,
    st.one_of(_TEXT, _TEXT, _TEXT, _BYTES),
    st.sampled_from([REGULAR, REGULAR, REGULAR, SCRIPT]),
)
_PATHS = [b"f", b"g", b"d/f", b"d/g h", b'q"t', "é".encode(), b"z\xff", b"d/e/f"]


def _edited(lines: list[bytes], chance: random.Random) -> list[bytes]:
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(lines) + 1)
        match chance.randrange(4):
            case 0:
                lines.insert(at, chance.choice(_WORDS))
            case 1:
                del lines[at : at + chance.randrange(1, 3)]
            case 2:
                lines[at : at + 1] = [b"new"]
            case 3:
                lines[at:at] = [b"n%d" % number for number in range(chance.randrange(1, 5))]
    return lines


def _changed(tree: Tree, chance: random.Random) -> Tree:
    """Return `tree` with files edited, removed, renamed, copied, made or given another mode."""
    result = dict(tree)
    for path in sorted(tree):
        file = tree[path]
        edited = File(b"\n".join(_edited(file.content.split(b"\n"), chance)), file.mode)
        target = chance.choice(_PATHS)
        match chance.randrange(9):
            case 0:
                del result[path]
            case 1 | 2:
                result.pop(path, None)
                result[target] = chance.choice([file, edited])
            case 3:
                result[target] = chance.choice([file, edited])
            case 4:
                result[path] = File(file.content, REGULAR + SCRIPT - file.mode)
            case _:
                result[path] = edited
    return _sound(result)


def _sound(tree: Tree) -> Tree:
    """Return `tree` without files that are folders of others."""
    return {
        path: file
        for path, file in tree.items()
        if not any(other.startswith(path + b"/") for other in tree)
    }


def _drifted(tree: Tree, chance: random.Random) -> Tree:
    result = dict(tree)
    for path, file in tree.items():
        lines = file.content.split(b"\n")
        match chance.randrange(6):
            case 0:
                lines[0:0] = [b"drift"] * chance.randrange(1, 4)
            case 1:
                lines.insert(chance.randrange(len(lines) + 1), b"drift")
            case 2:
                lines = [line + b"\r" for line in lines]
            case 3:
                lines.append(b"drift")
        result[path] = File(b"\n".join(lines), file.mode)
    return result


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Return a case; seeds are drawn for what hypothesis would take long to build in parts."""
    old = _sound(draw(st.dictionaries(st.sampled_from(_PATHS), _FILE, min_size=1, max_size=3)))
    chance = random.Random(draw(st.integers(0, 2**32)))
    new = _changed(old, chance)
    drift = chance.randrange(12)
    target = {0: new, 1: _drifted(old, chance), 2: _drifted(old, chance)}.get(drift, old)
    count = chance.choice([0, 0, 0, 1, 1, 2])
    mutations = tuple(chance.randrange(2**32) for _ in range(count))
    return Case(old, new, target, draw(st.sampled_from(OPTIONS)), mutations)


def generate(count: int, *, number: int = 0) -> list[Case]:
    """Return `count` cases of hypothesis's making, the same for the same `number`."""
    found: list[Case] = []

    @seed(number)
    @settings(
        max_examples=count,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases())
    def collect(case: Case) -> None:
        found.append(case)

    collect()
    return found


def mutated(patch: bytes, number: int) -> bytes:
    """Return `patch` with one line changed as a model, a mail or an attacker might."""
    chance = random.Random(number)
    kind = chance.randrange(12)
    lines = patch.split(b"\n")
    if kind == 0:
        return patch[: chance.randrange(len(patch) + 1)]
    if kind == 1:
        return patch.replace(b"\n", b"\r\n")
    if kind == 2:
        return b"\n".join([b"Some prose:", b"", *lines, b"-- ", b"2.39.5"])
    if kind <= 5:
        heads = [at for at, line in enumerate(lines) if line.startswith(b"@@")] or [0]
        at = chance.choice(heads)
        lines[at] = _miscounted(lines[at], chance)
    else:
        _spoil(lines, chance)
    return b"\n".join(lines)


def _miscounted(line: bytes, chance: random.Random) -> bytes:
    numbers = tuple(chance.randrange(9) for _ in range(4))
    return chance.choice(
        [
            line.replace(b"3", chance.choice([b"2", b"4"]), 1),
            b"@@ -%d,%d +%d,%d @@" % numbers,
            b"@@",
            b"@@ ... @@",
            b"@@ -1 +1 @@",
        ]
    )


def _spoil(lines: list[bytes], chance: random.Random) -> None:
    at = chance.randrange(len(lines))
    match chance.randrange(6):
        case 0:
            lines.pop(at)
        case 1:
            lines.insert(at, chance.choice(lines))
        case 2:
            lines[at] = chance.choice([b"+", b"-", b" "]) + lines[at][1:]
        case 3:
            lines.insert(at, b"\\ No newline at end of file")
        case 4:
            lines[at] = lines[at].replace(b"a/", b"b/")
        case 5:
            lines[at] = lines[at].rstrip() + chance.choice([b" ", b"\t", b"\r"])


class Git:
    """A repository in `top` that trees are written to and diffs applied in, in batches."""

    def __init__(self, top: Path) -> None:
        self.top = top
        names = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        self.environment = {
            **names,
            "HOME": str(top),
            "GIT_CONFIG_NOSYSTEM": "1",
            "XDG_CONFIG_HOME": str(top),
        }
        self.run("init", "-q", ".")

    def run(self, *arguments: str, text: bytes = b"") -> bytes:
        return subprocess.run(
            ["git", *arguments],
            cwd=self.top,
            env=self.environment,
            input=text,
            capture_output=True,
            check=True,
        ).stdout

    def write(self, trees: Iterable[Tree]) -> None:
        """Write every tree and its blobs into the repository."""
        stream = bytearray()
        for tree in trees:
            stream += b"commit refs/heads/x\ncommitter A <a@b> 0 +0000\ndata 0\ndeleteall\n"
            for path, file in tree.items():
                stream += b"M %06o inline %s\n" % (file.mode, _quoted(path))
                stream += b"data %d\n%s\n" % (len(file.content), file.content)
        self.run("fast-import", "--quiet", "--force", text=bytes(stream))

    def diffs(self, pairs: list[tuple[str, str]], options: tuple[str, ...]) -> list[bytes]:
        """Return the diff of each pair of trees."""
        stream = "".join(f"{old} {new}\n" for old, new in pairs)
        out = self.run("diff-tree", "--stdin", "-r", "-p", *options, text=stream.encode())
        parts: list[bytes] = []
        for old, new in pairs:
            head = f"{old} {new}\n".encode()
            if not out.startswith(head):  # git says nothing of trees that are the same
                parts.append(b"")
                continue
            out = out[len(head) :]
            end = _HEAD.search(out)
            parts.append(out[: end.start()] if end else out)
            out = out[end.start() :] if end else b""
        assert not out
        return parts

    def apply_all(self, cases: list[tuple[str, bytes]]) -> list[str | None]:
        """Return for each `(tree, patch)` the tree that `git apply` makes, None for a refusal."""
        folder = self.top / "patches"
        folder.mkdir(exist_ok=True)
        for number, (_, patch) in enumerate(cases):
            (folder / str(number)).write_bytes(patch)
        script = "".join(
            f"git read-tree {tree} && git apply --index --cached patches/{number} 2>>log"
            " && git write-tree || { rm -f .git/index.lock; echo -; }\n"
            for number, (tree, _) in enumerate(cases)
        )
        done = subprocess.run(
            ["sh"],
            cwd=self.top,
            env=self.environment,
            input=script.encode(),
            capture_output=True,
            check=True,
        )
        answers = done.stdout.decode().split()
        assert len(answers) == len(cases), done.stderr[-2000:]
        return [None if answer == "-" else answer for answer in answers]


def _quoted(path: bytes) -> bytes:
    escaped = b"".join(
        bytes((byte,)) if 32 < byte < 127 and byte not in b'"\\' else b"\\%03o" % byte
        for byte in path
    )
    return b'"' + escaped + b'"'


def tree_id(tree: Mapping[bytes, File]) -> str:
    """Return the id that git gives a tree of these files."""
    folders: dict[bytes, Tree] = {}
    entries: list[tuple[bytes, bytes, str]] = []
    for path, file in tree.items():
        name, slash, rest = path.partition(b"/")
        if slash:
            folders.setdefault(name, {})[rest] = file
        else:
            entries.append((name, b"%o" % file.mode, _id(b"blob", file.content)))
    entries += [(name + b"/", b"40000", tree_id(inner)) for name, inner in folders.items()]
    entries.sort()
    stored = b"".join(
        mode + b" " + name.rstrip(b"/") + b"\0" + bytes.fromhex(oid) for name, mode, oid in entries
    )
    return _id(b"tree", stored)


def _id(kind: bytes, content: bytes) -> str:
    return hashlib.sha1(b"%s %d\0" % (kind, len(content)) + content).hexdigest()


def ours(target: Tree, patch: bytes) -> tuple[str | None, set[str], bool]:
    """Return the tree our engine makes or None, the codes of its refusal, and whether git's rules
    were left behind.
    """
    try:
        changes = apply_patch(parse_patch(patch, format="unified"), target.get)
    except PatchError as error:
        return None, {finding.code for finding in error.findings}, False
    merged: dict[bytes, File | None] = {**target, **changes.files}
    tree = {path: file for path, file in merged.items() if file is not None}
    return tree_id(tree), set(), any(report.is_beyond_git for report in changes.reports)


def compare(
    mine: str | None, codes: set[str], beyond: bool, theirs: str | None
) -> tuple[str, bool]:
    """Return what the answers come to in a word, and whether that is explained."""
    if mine == theirs:
        return ("both refuse" if mine is None else "same tree"), True
    if theirs is None:
        return "beyond git", beyond
    if mine is None:
        return f"stricter: {', '.join(sorted(codes))}", codes <= set(STRICTER)
    return "another tree", False


def run(cases: list[Case], top: Path, note: Callable[[str], None] = lambda text: None) -> Result:
    """Return how our engine and git dealt with `cases`; `top` is made a repository."""
    git = Git(top)
    git.write(tree for case in cases for tree in (case.old, case.new, case.target))
    patches: list[bytes] = [b""] * len(cases)
    for options in {case.options for case in cases}:
        chosen = [at for at, case in enumerate(cases) if case.options == options]
        pairs = [(tree_id(cases[at].old), tree_id(cases[at].new)) for at in chosen]
        for at, patch in zip(chosen, git.diffs(pairs, options), strict=True):
            for number in cases[at].mutations:
                patch = mutated(patch, number)
            patches[at] = patch
    note("diffs made")
    answers = git.apply_all(
        [(tree_id(case.target), patch) for case, patch in zip(cases, patches, strict=True)]
    )
    note("git is done")
    result = Result()
    for case, patch, theirs in zip(cases, patches, answers, strict=True):
        mine, codes, beyond = ours(case.target, patch)
        word, is_explained = compare(mine, codes, beyond, theirs)
        result.counts[word] += 1
        if not is_explained:
            result.disagreements.append((case, patch, word))
    return result
