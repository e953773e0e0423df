"""Code fences and the file names around them, as language models write them.

Fences are those of CommonMark: a run of three or more backticks or tildes, closed by a run of the
same kind that is at least as long and has nothing after it. File names come decorated in many
ways; what is not clearly a name is none, because a wrong guess would write to a wrong file.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from sandbox_engine.patch.faults import Faults

MAX_FENCES = 100_000
MAX_NAME_LINE = 1_000
"""A longer line is prose, not a file name."""

_FENCE = re.compile(rb" {0,3}(`{3,}|~{3,})(.*)", re.DOTALL)
_FILE_KEY = re.compile(
    rb"(?:^|[\s,{;])(?:title|file|filename|file_name|filepath|file_path|path)\s*[=:]\s*"
    rb"(?:\"([^\"]+)\"|'([^']+)'|([^\s,;}\"']+))",
    re.IGNORECASE,
)
_LANGUAGE_PATH = re.compile(rb"[A-Za-z][A-Za-z0-9_+#-]*:(?!/)(.+)\Z")
_DOTTED_LANGUAGES = frozenset((b"asp.net", b"vb.net", b"node.js", b"f.sharp", b"objective.c"))
_BARE_NAMES = frozenset(
    b"Brewfile BUILD CHANGELOG CODEOWNERS COPYING Cargo.lock Dockerfile Gemfile Gemfile.lock"
    b" GNUmakefile Jenkinsfile"
    b" Justfile LICENSE Makefile NOTICE Pipfile Procfile Rakefile README Vagrantfile"
    b" VERSION WORKSPACE go.mod go.sum justfile makefile poetry.lock uv.lock yarn.lock".split()
)
_KNOWN_EXTENSIONS = frozenset(
    b"adoc asm astro avsc awk bash bat bazel bzl c cc cfg cjs clj cmake cmd cpp cs css csv"
    b" cts cu cxx dart diff dockerfile ejs elm erb erl ex exs f90 fish fs fsx gd glsl go gql"
    b" gradle graphql groovy h haml hbs hcl hh hpp hrl hs htm html hxx ini ino ipynb j2 java"
    b" jinja jinja2 jl js json json5 jsonc jsonl jsx kt kts less lua m mako markdown md mdc"
    b" mdx mjs mk ml mli mm mts nim nix nu php pl plist pm pot prisma proto ps1 pug puml py"
    b" pyi pyx qmd qml r rake rb rego rkt rs rst s sass sbt scala scm scss sh sol sql styl"
    b" sv svelte svg swift tcl tex tf tfvars toml ts tsv tsx txt v vb vert vhd vim vue wat"
    b" xml xsd xsl xslt yaml yml zig zsh".split()
)
"""Without those that are also common names of attributes, as `log` and `lock`."""

_EXTENSION = re.compile(
    rb"[^/]\.(?=[0-9_+-]*[A-Za-z])[A-Za-z0-9_+-]{1,16}\Z|(?:^|/)\.[A-Za-z0-9_][\w.+-]*\Z"
)
_UNLIKELY = re.compile(rb"[\x00-\x1f\x7f<>|*?\"`]|://|\.\.\.|,$|\.$")

_LABEL = re.compile(
    rb"(?:\*\*|__)?(?:(?:new|create|update|updated|modified|edit|full|complete)[ \t]+)?"
    rb"(?:file|filename|file[ \t]?name|filepath|file[ \t]?path|path)[ \t]*:(?:\*\*|__)?[ \t]*",
    re.IGNORECASE,
)
_LEAD = re.compile(rb"(?:#{1,6}|[-*+][ \t]|>|[0-9]{1,3}[.)][ \t])[ \t]*")
_REMARK = re.compile(
    rb"\((?:new|new file|created|updated|modified|changed|full|complete)\)\Z", re.IGNORECASE
)
_QUOTED_NAME = re.compile(rb"`([^`]+)`")


@dataclass(frozen=True, slots=True)
class Fence:
    """A line that opens a fenced block, or closes one if `info` is empty."""

    mark: bytes
    info: bytes

    def could_hold(self, other: Fence) -> bool:
        """Return whether `other` is too short, or of another kind, to end this fence's block."""
        return other.mark[:1] != self.mark[:1] or len(other.mark) < len(self.mark)


@dataclass(slots=True)
class _Closers:
    """The closing fences of one kind below a line, but those that a nearer, longer one hides.

    The nearest is last; lengths are kept negative, so that they ascend.
    """

    lengths: list[int] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)

    def nearest(self, length: int) -> int | None:
        """Return the line of the nearest that is at least as long."""
        at = bisect.bisect_right(self.lengths, -length)
        return self.lines[at - 1] if at else None

    def add(self, length: int, line: int) -> None:
        while self.lengths and -self.lengths[-1] <= length:
            self.lengths.pop()
            self.lines.pop()
        self.lengths.append(-length)
        self.lines.append(line)


def find_fences(lines: Sequence[bytes]) -> dict[int, tuple[Fence, int]]:
    """Return every fence by its line, with the line that would end the block that it opens.

    Where there is none, that is the number of lines. All are found in one walk from the end, since
    looking down from each would take the square of their number. Raises PatchSyntaxError where
    there are more than any answer of a model holds.
    """
    found: dict[int, tuple[Fence, int]] = {}
    closers = {b"`": _Closers(), b"~": _Closers()}
    for at in range(len(lines) - 1, -1, -1):
        fence = read_fence(lines[at])
        if fence is None:
            continue
        kind, length = closers[fence.mark[:1]], len(fence.mark)
        end = kind.nearest(length)
        found[at] = fence, len(lines) if end is None else end
        if len(found) > MAX_FENCES:
            faults = Faults("fenced blocks are", "split the patch into smaller ones")
            faults.add(None, f"there are more than {MAX_FENCES} lines that look like fences")
            faults.require_none()
        if not fence.info:
            kind.add(length, at)
    return found


def read_fence(line: bytes) -> Fence | None:
    """Return the fence that `line` is, or None."""
    if b"```" not in line[:8] and b"~~~" not in line[:8]:
        return None
    match = _FENCE.match(line)
    if not match or (match[1][:1] == b"`" and b"`" in match[2]):
        return None
    return Fence(match[1], match[2].strip())


def name_in_info(info: bytes) -> bytes | None:
    """Return the path in the info string of a fence: `python src/x.py`, `title="src/x.py"`."""
    if not info or len(info) > MAX_NAME_LINE:
        return None
    if key := _FILE_KEY.search(info):
        return clean_name(next(value for value in key.groups() if value))
    words = info.split()
    if info.startswith(b"{") or len(words) > 2:
        return None
    word = words[-1].strip(b"\"'")
    if language := _LANGUAGE_PATH.match(word):
        word = language[1]
    if word.lower() in _DOTTED_LANGUAGES or not is_name_like(word):
        return None
    return clean_name(word)


def name_in_line(line: bytes, *, is_sure: bool = False) -> bytes | None:
    """Return the path that `line` consists of, without its decoration, or None.

    Backticks, bold, a heading's `#`, a list's bullet, a label (`File:`), a remark (`(new file)`)
    and a colon at the end are decoration. `os.path` and `Class.method` are no paths: without a
    folder or a label, the extension must be a known one. With `is_sure` a file name is known to
    stand here, so that any single word in quotes is taken for one.
    """
    name = line.strip()
    if not name or len(name) > MAX_NAME_LINE or read_fence(name):
        return None
    is_quoted = is_labelled = False
    for _ in range(8):
        peeled, kind = _peel(name)
        is_quoted = is_quoted or kind == "quotes"
        is_labelled = is_labelled or kind == "label"
        if peeled == name:
            break
        name = peeled
    if not name or _UNLIKELY.search(name) or (len(name.split()) > 1 and not is_quoted):
        return None
    is_name = is_sure and is_quoted
    is_name = is_name or (_ends_as_name(name) if is_labelled else is_clear_name(name))
    return clean_name(name) if is_name else None


def name_within_line(line: bytes) -> bytes | None:
    """Return the one path in backticks within a line of prose, or None: `Updated "src/x.py"`."""
    if len(line) > MAX_NAME_LINE:
        return None
    quoted = _QUOTED_NAME.findall(line)
    names = {name for name in quoted if is_name_like(name) and is_clear_name(name)}
    return clean_name(names.pop()) if len(names) == 1 else None


def is_name_like(word: bytes) -> bool:
    """Return whether `word`, without white space, is written as paths are."""
    if not word or word.split() != [word] or _UNLIKELY.search(word) or b":" in word:
        return False
    return _ends_as_name(word)


def is_clear_name(name: bytes) -> bool:
    """Return whether `name` can be nothing but a path: a folder, or a known file or extension."""
    stem, dot, extension = name.rpartition(b".")
    if b"/" in name.strip(b"/") or name in _BARE_NAMES:
        return _ends_as_name(name)
    return bool(dot) and (not stem or extension.lower() in _KNOWN_EXTENSIONS)


def clean_name(name: bytes) -> bytes:
    """Return `name` without `./` in front, which means nothing."""
    while name.startswith(b"./"):
        name = name[2:].lstrip(b"/")
    return name


def _ends_as_name(name: bytes) -> bool:
    return name in _BARE_NAMES or bool(_EXTENSION.search(name)) or b"/" in name.strip(b"/")


def _peel(name: bytes) -> tuple[bytes, str]:
    """Return `name` without its outermost decoration, and what kind that was."""
    for mark in (b"**", b"__", b"`", b'"', b"'"):
        inner = name[len(mark) : -len(mark)]
        if len(name) > 2 * len(mark) and name == mark + inner + mark and mark not in inner:
            return inner.strip(), "quotes"
    if name.endswith(b":"):
        return name[:-1].rstrip(), "colon"
    for pattern in (_LABEL, _LEAD):
        if lead := pattern.match(name):
            return name[lead.end() :].lstrip(), "label" if pattern is _LABEL else "lead"
    if remark := _REMARK.search(name):
        return name[: remark.start()].rstrip(), "remark"
    return name, ""
