"""Whole files: pathed fences, zip archives, folders; a part is never taken for a whole."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox_engine.errors import PatchSyntaxError
from sandbox_engine.patch import apply_patch, parse_patch, patch_from_files, whole_files
from sandbox_engine.patch.edits import CreateFile, File
from sandbox_engine.patch.whole_files import parse_whole_files, parse_zip

SCRIPT = 0o100755


def files(text: str | bytes) -> dict[bytes, bytes]:
    patch = parse_patch(text.encode() if isinstance(text, str) else text, format="files")
    assert all(isinstance(edit, CreateFile) and edit.may_exist for edit in patch.edits)
    return {edit.path: edit.content for edit in patch.edits if isinstance(edit, CreateFile)}


def messages(text: str | bytes) -> list[str]:
    with pytest.raises(PatchSyntaxError) as caught:
        files(text)
    return [finding.message for finding in caught.value.findings]


@pytest.mark.parametrize(
    "opening",
    [
        "```python src/x.py",
        "``` src/x.py",
        "```src/x.py",
        "```python:src/x.py",
        "```./src/x.py",
        '```python title="src/x.py"',
        "```python title=src/x.py {1,2}",
        "```python filename='src/x.py'",
        "```py {file: src/x.py}",
        "`````python src/x.py",
        "~~~ src/x.py",
        "src/x.py\n```python",
        "`src/x.py`\n```python",
        "`src/x.py`:\n\n```python",
        "**src/x.py**\n```python",
        "### `src/x.py`\n\n```python",
        "## 1. `src/x.py`\n```python",
        "File: x\nFile: `src/x.py`\n```python",
        "**File: src/x.py**\n~~~",
        "Filename: `src/x.py`\n~~~",
        "**File:** src/x.py\n```",
        "- `src/x.py` (new file)\n```python",
    ],
)
def test_where_the_path_may_stand(opening: str) -> None:
    last = opening.split("\n")[-1]
    fence = last[: len(last) - len(last.lstrip("`~"))]
    text = f"Some prose.\n\n{opening}\nx = 1\n\n  y\n{fence}\nMore.\n"
    patch = parse_patch(text.encode())
    assert patch.format == "files"
    assert patch.edits == (CreateFile(b"src/x.py", b"x = 1\n\n  y\n", may_exist=True),)


@pytest.mark.parametrize(
    "opening",
    [
        "```python",
        "```python hello world again",
        "```12:15:src/x.py",
        "```python src/x.py lines 1-20",
        "```vb.net",
        "```{.python .numberLines}",
        "Run it:\n```sh",
        "See https://example.org/x.py\n```",
        "It is done.\n```",
        "### `Class.method`\n```",
        "`os.path`:\n```",
        "`math.log`\n```",
        "3.11\n```",
        "... and so on\n```",
    ],
)
def test_a_fence_without_a_path_is_prose(opening: str) -> None:
    text = f"```python a.py\nx\n```\n\n{opening}\nno file\n```\n"
    assert files(text) == {b"a.py": b"x\n"}


def test_a_longer_fence_holds_shorter_ones() -> None:
    text = "````markdown README.md\n# Hi\n```sh\nls\n```\n````\n\n~~~a.py\n```\n~~~\n"
    assert files(text) == {b"README.md": b"# Hi\n```sh\nls\n```\n", b"a.py": b"```\n"}


@pytest.mark.parametrize(
    "text",
    [
        "```markdown README.md\n# Hi\n```sh\nls\n```\nend\n```\n",
        "```markdown README.md\n# Hi\n```\nls\n```\nend\n```\n",
    ],
)
def test_a_document_whose_own_fences_could_end_it_is_refused(text: str) -> None:
    (message,) = messages(text)
    assert "where the file ends is unclear" in message


@pytest.mark.parametrize(
    "line",
    [
        "# ... rest of the file",
        "    // ... existing code ...",
        "/* ... the rest remains the same */",
        "...existing code...",
        "<!-- ... unchanged ... -->",
        "# ... (rest of the code)",
    ],
)
def test_a_part_is_not_taken_for_the_whole_file(line: str) -> None:
    (message,) = messages(f"```python a.py\nx = 1\n{line}\n```\n")
    assert "not whole" in message


def test_an_ellipsis_of_python_is_no_elision() -> None:
    body = "def f() -> None: ...\n\n    ...\n# ... and then\nx[..., 1]\n"
    assert files(f"```python a.py\n{body}```\n") == {b"a.py": body.encode()}


def test_faults_are_told_with_their_lines() -> None:
    text = "```a.py\nx\n```\n```a.py\ny\n```\n```b.py\n"
    with pytest.raises(PatchSyntaxError) as caught:
        parse_whole_files(text.encode())
    assert [(finding.line, finding.message[:20]) for finding in caught.value.findings] == [
        (4, "`a.py` is there twic"),
        (7, "the block is not clo"),
    ]


def test_an_indented_block_loses_the_indentation_of_its_fence() -> None:
    assert files("- `a.py`\n\n  ```\n  x\n    y\n z\n  ```\n") == {b"a.py": b"x\n  y\nz\n"}


def archive(entries: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as made:
        for name, content in entries.items():
            made.writestr(name, content)
    return out.getvalue()


def special(mode: int, content: bytes = b"x", name: str = "run") -> bytes:
    out = io.BytesIO()
    entry = zipfile.ZipInfo(name)
    entry.create_system = 3
    entry.external_attr = mode << 16
    with zipfile.ZipFile(out, "w") as made:
        made.writestr(entry, content)
    return out.getvalue()


class Pipe(io.RawIOBase):
    """A stream that cannot seek, so that zipfile writes data descriptors."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, part: object) -> int:
        self.parts.append(bytes(part))  # type: ignore[call-overload]
        return len(self.parts[-1])


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_is_laid_over_the_tree(method: int) -> None:
    made = archive(
        {"a.py": b"x = 1\n", "d/": b"", "d/b.bin": bytes(range(256)) * 9, "e": b""}, method
    )
    assert parse_patch(made).format == "files"
    assert files(made) == {b"a.py": b"x = 1\n", b"d/b.bin": bytes(range(256)) * 9, b"e": b""}


def test_a_zip_written_to_a_pipe_has_descriptors() -> None:
    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("a.py", b"x" * 1000)
        made.writestr("b.py", b"y")
    text = b"".join(pipe.parts)
    assert files(text) == {b"a.py": b"x" * 1000, b"b.py": b"y"}
    at = text.index(b"PK\x07\x08") + 4
    broken = text[:at] + b"\0" + text[at + 1 :]
    assert "data descriptor" in messages(broken)[0]


def test_an_executable_file_of_a_zip_stays_executable() -> None:
    changes = apply_patch(parse_zip(special(stat.S_IFREG | 0o755)), {}.get)
    assert changes.files == {b"run": File(b"x", SCRIPT)}


def flipped(made: bytes, central: int, local: int, bits: int) -> bytes:
    """Return `made` with `bits` flipped in the central and local header of its first entry."""
    broken = bytearray(made)
    broken[made.index(b"PK\x01\x02") + central] ^= bits
    broken[made.index(b"PK\x03\x04") + local] ^= bits
    return bytes(broken)


ONE = archive({"a.py": b"x" * 100})
CENTRAL = ONE.index(b"PK\x01\x02")


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (special(stat.S_IFLNK | 0o777, b"../x"), "link"),
        (special(stat.S_IFIFO | 0o644), "special"),
        (special(stat.S_IFREG | 0o644, name="x/"), "special"),
        (archive({"../x": b""}), "not allowed"),
        (archive({"/x": b""}), "not allowed"),
        (archive({".git/config": b""}), "not allowed"),
        (archive({"d/.GIT/": b""}), "not allowed"),
        (archive({"a\nb": b""}), "not allowed"),
        (archive({"a": b"1" * 9, "b": b"2" * 9}).replace(b"b", b"a"), "twice"),
        (flipped(ONE, 8, 6, 1), "encrypted"),
        (flipped(ONE, 10, 8, 1), "packed in a way"),
        (ONE[:-1], "end record|end"),
        (ONE + b"x", "not where"),
        (ONE[:CENTRAL] + ONE[CENTRAL:].replace(b"a.py", b"b.py"), "something else"),
        (ONE[:CENTRAL].replace(b"a.py", b"b.py") + ONE[CENTRAL:], "something else"),
        (archive({}), "no files"),
        (archive({"d/": b""}), "no files"),
        (b"PK\x03\x04", "end record"),
    ],
)  # fmt: skip
def test_what_a_zip_may_not_be(made: bytes, said: str) -> None:
    with pytest.raises(PatchSyntaxError, match=said):
        parse_zip(made)


def test_a_zip_whose_sizes_lie_is_refused() -> None:
    packed = zlib.compress(b"x" * 1000)[2:-4]
    for size, stream in ((999, packed), (1001, packed), (1000, packed + b"x"), (1000, packed[:-1])):
        head = struct.pack("<3L", zlib.crc32(b"x" * size), len(stream), size)
        local = struct.pack("<4s5H", b"PK\x03\x04", 20, 0, 8, 0, 0) + head + b"\1\0\0\0a"
        central = struct.pack("<4s2B5H", b"PK\x01\x02", 20, 3, 20, 0, 8, 0, 0) + head
        central += struct.pack("<5H2L", 1, 0, 0, 0, 0, 0, 0) + b"a"
        body = local + stream
        end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(central), len(body), 0)
        with pytest.raises(PatchSyntaxError, match="archive says"):
            parse_zip(body + central + end)


def test_a_bomb_is_refused_before_it_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PatchSyntaxError, match="200 times"):
        parse_zip(archive({"a": bytes(4 * 2**20)}))
    monkeypatch.setattr(whole_files, "MAX_UNPACKED_BYTES", 1000)
    with pytest.raises(PatchSyntaxError, match="more than 1000 bytes"):
        parse_zip(archive({"a": b"x" * 600, "b": b"y" * 600}))
    monkeypatch.setattr(whole_files, "MAX_ENTRIES", 1)
    with pytest.raises(PatchSyntaxError, match="more than 1 entries"):
        parse_zip(archive({"a": b"", "b": b""}))


def test_a_folder_s_files_become_edits_and_bad_paths_are_all_told() -> None:
    patch = patch_from_files({b"b": b"2", b"a": b"1"}, frozenset([b"b"]))
    assert patch.edits == (
        CreateFile(b"a", b"1", may_exist=True),
        CreateFile(b"b", b"2", SCRIPT, may_exist=True),
    )
    with pytest.raises(PatchSyntaxError) as caught:
        patch_from_files({b".git/x": b"", b"a/../b": b"", b"c": b""})
    assert len(caught.value.findings) == 2


PATHS = st.sampled_from([b"a.py", b"src/b.py", b"Makefile", b".env", b"d/e/f.txt", b"x-y_z.c"])
LINES = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=12).map(str.encode)
    | st.sampled_from([b"```", b"```python", b"~~~~", b"`a`", b"", b"  ```` ", b"a.py", b"x\r"]),
    max_size=6,
)
TREES = st.dictionaries(PATHS, LINES, min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(TREES, st.integers(0, 3))
def test_rendered_files_are_parsed_back(tree: dict[bytes, list[bytes]], style: int) -> None:
    text = b"Here are the files.\n"
    for path, lines in tree.items():
        longest = max((len(line.strip()) for line in lines if line.strip()[:1] == b"`"), default=0)
        fence = b"`" * max(longest + 1, 3)
        head = (b"%b %b\n", b"`%s`\n%b\n", b"### %s\n\n%b\n", b"%b py title='%s'\n")[style]
        head %= (fence, path) if style in (0, 3) else (path, fence)
        text += b"\n" + head + b"".join(line + b"\n" for line in lines) + fence + b"\n"
    expected = {path: b"".join(line + b"\n" for line in lines) for path, lines in tree.items()}
    assert files(text) == expected


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(PATHS, st.binary(max_size=300), min_size=1), st.booleans())
def test_zipped_files_are_parsed_back(tree: dict[bytes, bytes], is_stored: bool) -> None:
    method = zipfile.ZIP_STORED if is_stored else zipfile.ZIP_DEFLATED
    made = archive({path.decode(): content for path, content in tree.items()}, method)
    assert files(made) == tree
