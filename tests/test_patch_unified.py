"""Unified diffs against the real `git apply --index --cached`: same answer, same tree."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandbox_engine.errors import PatchError, PatchSyntaxError
from sandbox_engine.patch import File, apply_patch, parse_patch

Tree = dict[bytes, File]


class PatchBox:
    """A repository that only its index is used of; no setting of the machine reaches it."""

    def __init__(self, top: Path) -> None:
        self.top = top
        names = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        self.environment = {**names, "HOME": str(top), "GIT_CONFIG_NOSYSTEM": "1"}
        self.environment["XDG_CONFIG_HOME"] = str(top)
        self.git("init", "-q", ".")

    def try_git(self, *arguments: str, text: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            ["git", *arguments],
            cwd=self.top,
            env=self.environment,
            input=text,
            capture_output=True,
            check=False,
        )

    def git(self, *arguments: str, text: bytes = b"") -> bytes:
        done = self.try_git(*arguments, text=text)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def tree(self, files: Mapping[bytes, File]) -> str:
        """Return the id of a tree of `files`."""
        stream = b""
        for path, file in files.items():
            oid = self.git("hash-object", "-w", "--stdin", text=file.content).strip()
            stream += b"%06o %s\t%s\0" % (file.mode, oid, path)
        self.git("read-tree", "--empty")
        self.git("update-index", "-z", "--index-info", text=stream)
        return self.git("write-tree").decode().strip()

    def diff(self, old: Mapping[bytes, File], new: Mapping[bytes, File], *options: str) -> bytes:
        return self.git("diff", "--text", *options, self.tree(old), self.tree(new))

    def apply(self, files: Mapping[bytes, File], patch: bytes) -> Tree | None:
        """Return the tree that `git apply` makes, or None where it refuses."""
        self.git("read-tree", self.tree(files))
        done = self.try_git("apply", "--index", "--cached", "-", text=patch)
        if done.returncode:
            (self.top / ".git" / "index.lock").unlink(missing_ok=True)
            return None
        return self.index()

    def index(self) -> Tree:
        tree: Tree = {}
        for entry in self.git("ls-files", "-s", "-z").split(b"\0")[:-1]:
            meta, path = entry.split(b"\t", 1)
            mode, oid, _ = meta.split()
            content = self.git("cat-file", "blob", oid.decode())
            tree[path] = File(content, int(mode, 8))
        return tree


BEYOND_GIT = "beyond git"


def engine_apply(files: Mapping[bytes, File], patch: bytes) -> tuple[Tree | None, set[str]]:
    """Return the tree that our engine makes and no codes, or None and the codes of its refusal.

    The only code of a tree is BEYOND_GIT, where a rung was taken that git does not have.
    """
    try:
        changes = apply_patch(parse_patch(patch, format="unified"), files.get)
    except PatchError as error:
        return None, {finding.code for finding in error.findings}
    merged: dict[bytes, File | None] = {**files, **changes.files}
    is_beyond = any(report.is_beyond_git for report in changes.reports)
    codes = {BEYOND_GIT} if is_beyond else set()
    return {path: file for path, file in merged.items() if file is not None}, codes


REGULAR, SCRIPT, LINK = 0o100644, 0o100755, 0o120000


def text(content: bytes, mode: int = REGULAR) -> File:
    return File(content, mode)


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> PatchBox:
    return PatchBox(tmp_path_factory.mktemp("box"))


HEAD = b"diff --git a/f b/f\n--- a/f\n+++ b/f\n"
CHANGE = HEAD + b"@@ -1,3 +1,3 @@\n a\n-b\n+B\n c\n"
PLAIN = CHANGE.partition(b"\n")[2]
ABC = text(b"a\nb\nc\n")
ABCDEF = text(b"a\nb\nc\nd\ne\nf\n")
NUMBERS = text(b"".join(b"%d\n" % number for number in range(100)))


def new_at(path: bytes) -> bytes:
    return (
        b"diff --git a/%s b/%s\nnew file mode 100644\nindex 0000000..1234567\n"
        b"--- /dev/null\n+++ b/%s\n@@ -0,0 +1 @@\n+x\n" % (path, path, path)
    )


NEW = new_at(b"n")
RENAME = b"diff --git a/f b/g\nsimilarity index 100%\nrename from f\nrename to g\n"
BACK = b"diff --git a/g b/f\nrename from g\nrename to f\n"
COPY = b"diff --git a/f b/g\nsimilarity index 100%\ncopy from f\ncopy to g\n"
DELETE = b"diff --git a/f b/f\ndeleted file mode 100644\n--- a/f\n+++ /dev/null\n"

AGREED: dict[str, tuple[Tree, bytes]] = {
    "change": ({b"f": ABCDEF}, CHANGE),
    "offset": ({b"f": NUMBERS}, HEAD + b"@@ -5,3 +5,3 @@\n 50\n-51\n+x\n 52\n"),
    "nearest": ({b"f": text(b"x\ny\n" * 9)}, HEAD + b"@@ -7,3 +6,3 @@\n x\n-y\n+z\n x\n"),
    "hunks overlap": (
        {b"f": ABCDEF},
        HEAD + b"@@ -1,3 +1,3 @@\n a\n-b\n+B\n c\n@@ -3,3 +3,3 @@\n c\n-d\n+D\n e\n",
    ),
    "hunks out of order": (
        {b"f": NUMBERS},
        HEAD + b"@@ -50,3 +50,3 @@\n 49\n-50\n+x\n 51\n@@ -20,3 +20,3 @@\n 19\n-20\n+y\n 21\n",
    ),
    "no context, insertion": ({b"f": ABCDEF}, HEAD + b"@@ -2,0 +3 @@\n+x\n"),
    "added to a full file": ({b"f": ABC}, HEAD + b"@@ -0,0 +1 @@\n+x\n"),
    "plain": ({b"f": ABC}, PLAIN),
    "plain without prefix": ({b"f": ABC}, PLAIN.replace(b"a/f", b"f").replace(b"b/f", b"f")),
    "plain with dates": (
        {b"f": ABC},
        PLAIN.replace(b"/f\n", b"/f\t2020-01-01 10:00:00.123 +0100\n"),
    ),
    "plain with odd dates": ({b"f": ABC}, PLAIN.replace(b"/f\n", b"/f   20-01-01 10:00:00\n")),
    "plain from a backup": ({b"f": ABC}, PLAIN.replace(b"a/f", b"a/f.orig")),
    "plain, made at the epoch": (
        {},
        b"--- a/f\t1970-01-01 01:00:00.00 +0100\n+++ b/f\n@@ -0,0 +1 @@\n+x\n",
    ),
    "plain, gone at the epoch": (
        {b"f": text(b"x\n")},
        b"--- a/f\n+++ b/f\t1969-12-31 23:00:00 -0100\n@@ -1 +0,0 @@\n-x\n",
    ),
    "plain, emptied": ({b"f": text(b"x\n")}, b"--- a/f\n+++ b/f\n@@ -1 +0,0 @@\n-x\n"),
    "plain, only adds": ({}, b"--- a/f\n+++ b/f\n@@ -0,0 +1 @@\n+x\n"),
    "CRLF headers": ({b"f": ABC}, CHANGE.replace(b"\n", b"\r\n", 3)),
    "CRLF all over": ({b"f": text(b"a\r\nb\r\nc\r\n")}, CHANGE.replace(b"\n", b"\r\n")),
    "prose around": ({b"f": ABC}, b"Subject: x\n---\n f | 2 +-\n\n" + CHANGE + b"-- \n2.39\n\n"),
    "fence": ({b"f": ABC}, b"Here:\n```diff\n" + CHANGE + b"```\nbye\n"),
    "blank context": ({b"f": text(b"a\n\nc\n")}, HEAD + b"@@ -1,3 +1,3 @@\n-a\n+A\n\n c\n"),
    "hunk alone": ({b"f": ABC}, b"some text\n@@ -1,3 +1,3 @@\n a\n-b\n+B\n c\n"),
    "header alone": ({b"f": ABC}, b"diff --git a/f b/f\nindex 1234567..1234567 100644\n"),
    "names disagree": ({b"f": ABC}, CHANGE.replace(b"+++ b/f", b"+++ b/g")),
    "doubled slash": ({b"d/f": ABC}, CHANGE.replace(b"/f", b"/d//f")),
    "space in name": ({b"d e/f": ABC}, CHANGE.replace(b"/f", b"/d e/f")),
    "unfinished quote": ({b"f": ABC}, CHANGE.replace(b"a/f", b'"a/f')),
    "new": ({}, NEW),
    "new, twice": ({}, NEW + NEW),
    "new, there already": ({b"n": ABC}, NEW),
    "new, with old lines": ({}, NEW.replace(b"-0,0", b"-1").replace(b"+x", b"-y\n+x")),
    "new, short mode": ({}, NEW.replace(b"100644", b"755")),
    "new, empty": ({}, b"diff --git a/n b/n\nnew file mode 100755\nindex 0000000..e69de29\n"),
    "deleted": ({b"f": ABC}, DELETE + b"@@ -1,3 +0,0 @@\n-a\n-b\n-c\n"),
    "deleted in part": ({b"f": ABC}, DELETE + b"@@ -1,2 +0,0 @@\n-a\n-b\n"),
    "deleted, not empty": ({b"f": ABC}, b"diff --git a/f b/f\ndeleted file mode 100644\n"),
    "mode": ({b"f": ABC}, b"diff --git a/f b/f\nold mode 100644\nnew mode 100755\n"),
    "mode is not as said": (
        {b"f": text(b"a\nb\nc\n", SCRIPT)},
        CHANGE.replace(b"--- ", b"index 1234567..89abcde 100644\n--- "),
    ),
    "type is not as said": (
        {b"f": ABC},
        CHANGE.replace(b"--- ", b"index 1234567..89abcde 120000\n--- "),
    ),
    "mode is nonsense": ({b"f": ABC}, b"diff --git a/f b/f\nold mode x\nnew mode 100755\n"),
    "renamed": ({b"f": ABC}, RENAME),
    "renamed onto a file": ({b"f": ABC, b"g": ABC}, RENAME),
    "renamed, missing": ({}, RENAME),
    "swapped": ({b"f": ABC, b"g": NUMBERS}, RENAME + BACK),
    "renamed, then the new changed": ({b"f": ABC}, RENAME + CHANGE.replace(b"/f", b"/g")),
    "renamed, then the old changed": ({b"f": ABC}, RENAME + CHANGE),
    "names differ": ({b"f": ABC}, CHANGE.replace(b"b/f", b"b/g")),
    "copied": ({b"f": ABC}, COPY),
    "changed, then copied": ({b"f": ABC}, CHANGE + COPY),
    "rename and copy": ({b"f": ABC}, RENAME + b"copy from f\n"),
    "changed twice": ({b"f": ABC}, CHANGE + CHANGE.replace(b"B", b"C").replace(b"-b", b"-B")),
    "below a file": ({b"n": ABC}, new_at(b"n/x")),
    "below a link": ({b"n": text(b"f", LINK)}, new_at(b"n/x")),
    "below a file that goes": (
        {b"f": text(b"x\n")},
        new_at(b"f/x") + DELETE + b"@@ -1 +0,0 @@\n-x\n",
    ),
    "link deleted": (
        {b"f": text(b"to", LINK)},
        DELETE.replace(b"100644", b"120000")
        + b"@@ -1 +0,0 @@\n-to\n\\ No newline at end of file\n",
    ),
    "link renamed": ({b"f": text(b"to", LINK)}, RENAME),
    "dot git": ({}, new_at(b".git/x")),
    "dot git on NTFS": ({}, new_at(b"GIT~1/x")),
    "dot dot": ({}, new_at(b"../x")),
    "quoted": (
        {b'q"\xff': ABC},
        CHANGE.replace(b"a/f", rb'"a/q\"\377"').replace(b"b/f", rb'"b/q\"\377"'),
    ),
}


@pytest.mark.parametrize("name", AGREED)
def test_git_agrees(name: str, box: PatchBox) -> None:
    files, patch = AGREED[name]
    tree, codes = engine_apply(files, patch)
    assert tree == box.apply(files, patch), codes


BEYOND: dict[str, tuple[Tree, bytes, bytes | None]] = {
    "start moved": ({b"f": text(b"z\na\nb\nc\n")}, CHANGE, b"z\na\nB\nc\n"),
    "end moved": (
        {b"f": ABCDEF},
        HEAD + b"@@ -2,2 +2,2 @@\n a\n-b\n+B\n",
        b"a\nB\nc\nd\ne\nf\n",
    ),
    "no context, inside": (
        {b"f": ABCDEF},
        HEAD + b"@@ -2 +2 @@\n-b\n+B\n",
        b"a\nB\nc\nd\ne\nf\n",
    ),
    "CRLF on LF": ({b"f": ABC}, CHANGE.replace(b"\n", b"\r\n"), b"a\nB\nc\n"),
    "LF on CRLF": ({b"f": text(b"a\r\nb\r\nc\r\n")}, CHANGE, b"a\r\nB\r\nc\r\n"),
    "LF on CRLF with BOM": (
        {b"f": text(b"\xef\xbb\xbfa\r\nb\r\nc")},
        CHANGE.replace(b" a\n", b"-a\n+A\n"),
        b"\xef\xbb\xbfA\r\nB\r\nc",
    ),
    "shifted": ({b"f": text(b"\ta\n\tb\n\tc\n")}, CHANGE, b"\ta\n\tB\n\tc\n"),
    "no last newline": ({b"f": ABC}, CHANGE[:-1], b"a\nB\nc\n"),
    "count too high": ({b"f": ABC}, CHANGE.replace(b"-1,3", b"-1,4"), b"a\nB\nc\n"),
    "counts too low": (
        {b"f": ABCDEF},
        CHANGE.replace(b"-1,3 +1,3", b"-1 +1"),
        b"a\nB\nc\nd\ne\nf\n",
    ),
    "bare header": (
        {b"f": ABCDEF},
        CHANGE.replace(b"@@ -1,3 +1,3 @@", b"@@ def f():"),
        b"a\nB\nc\nd\ne\nf\n",
    ),
    "cut short": (
        {b"f": ABCDEF},
        HEAD + b"@@ -3,4 +3,4 @@\n c\n-d\n+D\n",
        b"a\nb\nc\nD\ne\nf\n",
    ),
    "deleted, missing": ({}, DELETE + b"@@ -1 +0,0 @@\n-a\n", None),
    "new, there already": ({b"n": text(b"x\n")}, NEW, None),
    "renamed already": ({b"g": ABC}, RENAME, None),
    "copied already": ({b"f": ABC, b"g": ABC}, COPY, None),
    "changed already": ({b"f": text(b"a\nB\nc\n")}, CHANGE, None),
    "without prefix": (
        {b"d/f": ABC},
        CHANGE.replace(b"a/f", b"d/f").replace(b"b/f", b"d/f"),
        b"a\nB\nc\n",
    ),
    "two prefixes": (
        {b"f": ABC},
        CHANGE.replace(b"a/f", b"a/x/f").replace(b"b/f", b"b/x/f"),
        b"a\nB\nc\n",
    ),
}


@pytest.mark.parametrize("name", BEYOND)
def test_where_git_refuses_and_the_text_has_one_place(name: str, box: PatchBox) -> None:
    files, patch, expected = BEYOND[name]
    tree, codes = engine_apply(files, patch)
    assert box.apply(files, patch) is None
    assert tree is not None, codes
    if expected is None:
        assert tree == files and codes == {BEYOND_GIT}
    else:
        assert list(tree.values()) == [text(expected)]


LINK_NEW = NEW.replace(b"100644", b"120000")
CONTEXT_AT_END = HEAD + b"@@ -1,2 +1,2 @@\n-a\n+A\n b\n\\ No newline at end of file\n"

STRICTER: dict[str, tuple[Tree, bytes, str]] = {
    "git drops the line after a hunk that is too short": (
        {b"f": ABC},
        CHANGE + b"+lost\n",
        "patch-malformed",
    ),
    "git lets context without newline eat the newline": (
        {b"f": text(b"a\nb\n")},
        CONTEXT_AT_END,
        "hunk-not-found",
    ),
    "git lets it eat the newline, its own last one missing": (
        {b"f": text(b"a\nb\n")},
        CONTEXT_AT_END[:-1],
        "hunk-not-found",
    ),
    "git creates a file anew": ({}, NEW + NEW.replace(b"+x", b"+y"), "file-exists"),
    "git touches what steers it": ({}, new_at(b"d/.gitattributes"), "gitattributes-refused"),
    "git adds submodules": ({}, new_at(b".gitmodules"), "gitmodules-refused"),
    "git puts a folder where a link was": (
        {b"f": text(b"to", LINK)},
        DELETE.replace(b"100644", b"120000")
        + b"@@ -1 +0,0 @@\n-to\n\\ No newline at end of file\n"
        + new_at(b"f/x"),
        "symlink-ancestor",
    ),
    "git renames over a file": (
        {b"f": ABC, b"g": ABC},
        CHANGE.replace(b"b/f", b"b/g"),
        "file-exists",
    ),
    "git keeps a changed file under both names": ({b"f": ABC}, CHANGE + RENAME, "path-conflict"),
    "git makes links": ({}, LINK_NEW, "symlink-refused"),
    "git takes disguises of HFS+": (
        {},
        new_at(".g\u200cit/n".encode()),
        "forbidden-path",
    ),
    "git takes control bytes": (
        {},
        NEW.replace(b"a/n", rb'"a/\033n"').replace(b"b/n", rb'"b/\033n"'),
        "forbidden-path",
    ),
}


@pytest.mark.parametrize("name", STRICTER)
def test_where_git_accepts_and_we_refuse(name: str, box: PatchBox) -> None:
    files, patch, code = STRICTER[name]
    tree, codes = engine_apply(files, patch)
    assert tree is None and codes == {code}
    assert box.apply(files, patch) is not None


def test_a_change_then_a_deletion_deletes(box: PatchBox) -> None:
    patch = CHANGE + DELETE + b"@@ -1,3 +0,0 @@\n-a\n-B\n-c\n"
    assert engine_apply({b"f": ABC}, patch) == ({}, set())
    assert box.apply({b"f": ABC}, patch) == {b"f": text(b"a\nB\nc\n")}


@pytest.mark.parametrize(
    "patch",
    [
        b"diff --git a/f b/f\nindex 1..2 100644\nBinary files a/f and b/f differ\n",
        b"diff --git a/f b/f\nindex 1..2 100644\nGIT binary patch\nliteral 1\nIcmZPo000310RR91\n\n"
        b"literal 0\nHcmV?d00001\n\n",
    ],
)
def test_a_binary_diff_is_refused_with_the_rest_read(patch: bytes) -> None:
    tree, codes = engine_apply({b"f": ABC, b"g": ABC}, patch + CHANGE.replace(b"/f", b"/g"))
    assert tree is None and codes == {"binary-unsupported"}
    assert len(parse_patch(patch + CHANGE).edits) == 2


def test_every_corrupt_file_is_reported_with_its_line() -> None:
    bad = CHANGE.replace(b"-1,3", b"-1,9").replace(b"\n-b", b"\nb")
    with pytest.raises(PatchSyntaxError) as caught:
        parse_patch(bad + CHANGE + bad + CHANGE)
    assert [finding.line for finding in caught.value.findings] == [6, 22]
    assert all(finding.code == "patch-malformed" for finding in caught.value.findings)


@pytest.mark.parametrize("count", [10, 100_000])
def test_a_hostile_header_costs_linear_time(count: int) -> None:
    for header in (b"diff --git a/" + b"x " * count, b"diff --git a/" + b" b/" * count):
        with pytest.raises(PatchSyntaxError):
            parse_patch(header + b"\nnew file mode 100644\n", format="unified")
    parse_patch(b"--- a/f" + b" 00-00-00" * count + b"\n+++ b/f\n@@ -1 +1 @@\n-a\n+b\n")


LINES = st.lists(st.sampled_from([b"a", b"b", b"", b"-- x", b"++ y", b"\r", b"\xff"]), max_size=12)


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(old=LINES, new=LINES, lines=st.integers(0, 3))
def test_a_diff_makes_the_new_of_the_old(
    old: list[bytes], new: list[bytes], lines: int, box: PatchBox
) -> None:
    before, after = {b"f": text(b"\n".join(old))}, {b"f": text(b"\n".join(new))}
    patch = box.diff(before, after, f"-U{lines or 3}")
    if patch:
        assert engine_apply(before, patch) == (after, set())


@settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(old=st.binary(max_size=50), new=st.binary(max_size=50))
def test_a_diff_of_any_bytes_applies(old: bytes, new: bytes, box: PatchBox) -> None:
    before, after = {b"f": text(old)}, {b"f": text(new), b"g": text(new, SCRIPT)}
    assert engine_apply(before, box.diff(before, after)) == (after, set())


DELIBERATE = {"patch-malformed", "file-exists", "hunk-not-found", "path-conflict", "wrong-type"}


def _mutated(patch: bytes, chance: random.Random) -> bytes:
    lines = patch.split(b"\n")
    at = chance.randrange(len(lines))
    match chance.randrange(6):
        case 0:
            lines.pop(at)
        case 1:
            lines.insert(at, chance.choice(lines))
        case 2:
            lines[at] = chance.choice([b"+", b"-", b" "]) + lines[at][1:]
        case 3:
            lines[at] = lines[at].replace(b"3", chance.choice([b"2", b"4"]), 1)
        case 4:
            lines.insert(at, b"\\ No newline at end of file")
        case 5:
            lines[at] = lines[at].replace(b"a/", b"b/")
    return b"\n".join(lines)


@pytest.mark.parametrize("seed", range(60))
def test_a_mutated_diff_means_what_it_means_to_git(seed: int, box: PatchBox) -> None:
    chance = random.Random(seed)

    def body() -> list[bytes]:
        return [b"%d" % chance.randrange(12) for _ in range(chance.randrange(20))]

    before: Tree = {b"f": text(b"\n".join(body())), b"d/g h": text(b"\n".join(body()) + b"\n")}
    after: Tree = {}
    for path, file in before.items():
        lines = file.content.split(b"\n")
        lines.insert(chance.randrange(len(lines) + 1), b"new")
        lines.pop(chance.randrange(len(lines)))
        after[chance.choice([path, b"e"])] = text(b"\n".join(lines))
    patch = _mutated(box.diff(before, after, chance.choice(["-M", "-U1", "-U3"])), chance)
    ours, codes = engine_apply(before, patch)
    theirs = box.apply(before, patch)
    if ours is None and theirs is not None:
        assert codes <= DELIBERATE
    elif codes != {BEYOND_GIT} or theirs is not None:
        assert ours == theirs, patch


def test_the_diff_of_this_file_is_read(tmp_path: Path) -> None:
    box = PatchBox(tmp_path)
    source = Path(__file__).read_bytes()
    before, after = {b"t.py": text(source)}, {b"t.py": text(source.replace(b"def ", b"async def "))}
    assert engine_apply(before, box.diff(before, after)) == (after, set())


def test_an_end_in_the_middle_of_a_hunk_is_refused() -> None:
    """git joins such a line to the next one: a line break is lost without a word."""
    text = (
        b"--- a/a.py\n+++ b/a.py\n@@ -1,8 +1,9 @@\n import os\n\n\n-def f(x):\n-    y = x + 1\n"
        b"+\n+\n+\n     return y\n \n\\ d of file\n\n"
    )
    with pytest.raises(PatchSyntaxError, match="marked as the last"):
        parse_patch(text, format="unified")
