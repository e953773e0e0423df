"""Which blob a file holds: the id that git would give to its bytes as they are.

Git's index says it of a file that has not changed since git read it, without reading it again,
unless what git keeps of it are not its bytes: attributes and settings may convert it.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sandbox_engine import git, git_index
from sandbox_engine.analysis.listing import Place
from sandbox_engine.analysis.stamps import Stamp
from sandbox_engine.errors import GitError

MOST_BYTES = 64 * 2**20
"""A larger file is not read: nobody wrote it."""

_SLACK_NS = 20_000_000
_CONVERTING = ("text", "crlf", "eol", "filter", "ident", "working-tree-encoding")


@dataclass(frozen=True, slots=True)
class Content:
    """A file that was read: its bytes, the blob they are, and its stamp before they were read."""

    content: bytes
    blob: bytes
    stamp: Stamp


class UnreadableError(Exception):
    """The file cannot be read, for the reason that is the text."""


def blob_of(content: bytes) -> bytes:
    """Return the id that git gives to `content`, as 20 bytes."""
    head = b"blob %d\0" % len(content)
    return hashlib.sha1(head + content, usedforsecurity=False).digest()


def read(path: str) -> Content:
    """Return what the file at `path` holds; no link is followed.

    Raise FileNotFoundError if there is none, UnreadableError for what cannot be read.
    """
    try:
        # One that became a pipe in the meantime must not be waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnreadableError(f"cannot be read: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableError("is no regular file")
        if status.st_size > MOST_BYTES:
            raise UnreadableError(f"larger than {MOST_BYTES // 2**20} MiB")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UnreadableError(f"cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)
    if len(content) > MOST_BYTES:
        raise UnreadableError(f"larger than {MOST_BYTES // 2**20} MiB")
    return Content(content, blob_of(content), Stamp.of(status))


def known_to_git(place: Place, stamps: Mapping[str, Stamp]) -> dict[str, bytes]:
    """Return the blobs of those files that git has read since they changed last.

    `stamps` are the files' own, by path below the root.
    """
    repository = place.repository
    if repository is None or not stamps:
        return {}
    path = repository.git_dir / "index"
    try:
        # The time first: an index that replaces this one can only be newer than what is read.
        written_ns = path.stat().st_mtime_ns
        known = git_index.read_known(path.read_bytes())
    except (OSError, ValueError):
        return {}
    found = {}
    for name, stamp in stamps.items():
        entry = known.get(os.fsencode(place.prefix + name))
        if entry is not None and _is_clean(entry, stamp, written_ns):
            found[name] = entry.id
    sizes = {name: stamps[name].size for name in found}
    for name in _converted(place, list(found)) | _of_other_size(place, found, sizes):
        found.pop(name, None)
    return found


def _is_clean(entry: git_index.Known, stamp: Stamp, written_ns: int) -> bool:
    """Tell whether the file is what git read: same status, and not changed while git wrote."""
    return (
        entry.size == stamp.size & 0xFFFFFFFF
        and entry.mtime_ns == stamp.mtime_ns
        and entry.ctime_ns == stamp.ctime_ns
        and entry.inode == stamp.inode & 0xFFFFFFFF
        and max(stamp.mtime_ns, stamp.ctime_ns) + _SLACK_NS < written_ns
    )


def _converted(place: Place, names: Sequence[str]) -> set[str]:
    """Return those of `names` whose bytes git may not keep as they are."""
    if not names:
        return set()
    try:
        setting = git.run_git(
            ["config", "--get", "core.autocrlf"], cwd=place.root, accept=(0, 1)
        ).strip()
        if setting not in (b"", b"false"):
            return set(names)
        output = git.run_git(
            ["check-attr", "-z", "--stdin", *_CONVERTING],
            cwd=place.root,
            input=b"".join(os.fsencode(name) + b"\0" for name in names),
        )
    except GitError:
        return set(names)
    words = os.fsdecode(output).split("\0")
    answers = zip(words[::3], words[2::3], strict=False)
    return {name for name, value in answers if value not in ("unspecified", "unset")}


def _of_other_size(place: Place, found: Mapping[str, bytes], sizes: Mapping[str, int]) -> set[str]:
    """Return the files whose blob is not of their size: attributes of an earlier day converted it.

    A blob that is not there is not fetched.
    """
    if not found:
        return set()
    try:
        output = git.run_git(
            ["cat-file", "--batch-check=%(objectsize)", "--buffer"],
            cwd=place.root,
            env=git.plain_environment(GIT_NO_LAZY_FETCH="1"),
            input=b"".join(b"%s\n" % blob.hex().encode() for blob in found.values()),
        )
    except GitError:
        return set(found)
    answers = zip(found, output.splitlines(), strict=True)
    return {name for name, answer in answers if answer != b"%d" % sizes[name]}
