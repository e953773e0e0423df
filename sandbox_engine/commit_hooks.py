"""Hooks of git's that judge what is about to be committed or pushed: put in, taken out, told of.

A hook that is there already is not lost: it is moved aside, and the new one runs it first. Where
hooks are is git's to say, so `core.hooksPath` and linked work trees are respected.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sandbox_engine import disk, git
from sandbox_engine.errors import UsageError

PRE_COMMIT, PRE_PUSH = "pre-commit", "pre-push"
SKIP = "SKIP_SANDBOX_ENGINE"
_MARK = "# sandbox-engine: judges what is about to be "
_ASIDE = ".before-sandbox-engine"
_SCRIPTS = {
    PRE_COMMIT: """\
#!/bin/sh
{mark}committed.
# `sandbox-engine hook uninstall` takes this out; SKIP_SANDBOX_ENGINE=1 passes over it once.
earlier=$0{aside}
if [ -x "$earlier" ]; then
    "$earlier" "$@" || exit
fi
if [ ! -x {python} ]; then
    echo {gone} >&2
    exit 1
fi
exec {engine} --staged {arguments}
""",
    # What is pushed comes on standard input, and both hooks want to read it.
    PRE_PUSH: """\
#!/bin/sh
{mark}pushed.
# `sandbox-engine hook uninstall --pre-push` takes this out; SKIP_SANDBOX_ENGINE=1 passes over it.
earlier=$0{aside}
pushed=$(cat; echo .)
pushed=${{pushed%.}}
if [ -x "$earlier" ]; then
    printf %s "$pushed" | "$earlier" "$@" || exit
fi
if [ ! -x {python} ]; then
    echo {gone} >&2
    exit 1
fi
printf %s "$pushed" | {engine} --pushed "$1" {arguments}
""",
}


@dataclass(frozen=True, slots=True)
class Status:
    """The hook at `path`: whether it is ours, and whether it runs an earlier one first."""

    path: Path
    is_installed: bool
    has_earlier: bool


def status(repo: str | os.PathLike[str], hook: str = PRE_COMMIT) -> Status:
    """Return how the hook of the repository stands."""
    path = _path(git.find_repository(repo), hook)
    return Status(path, _is_ours(path), os.path.lexists(_aside(path)))


def install(
    repo: str | os.PathLike[str], arguments: Sequence[str] = (), hook: str = PRE_COMMIT
) -> Status:
    """Put the hook in, with `arguments` for `validate`; one that is ours is written anew.

    Raise UsageError where hooks are shared with other repositories, or an earlier hook is already
    aside and another one has taken its place.
    """
    repository = git.find_repository(repo)
    path = _path(repository, hook)
    _refuse_shared(repository, path)
    aside = _aside(path)
    if not _is_ours(path) and os.path.lexists(path):
        if os.path.lexists(aside):
            raise UsageError(
                f"`{path}` is not ours, and `{aside.name}` is there already",
                remedy="merge the two by hand, and install the hook again",
            )
        path.rename(aside)
    path.parent.mkdir(parents=True, exist_ok=True)
    gone = f"sandbox-engine: {sys.executable} is gone; run `sandbox-engine hook install` again"
    script = _SCRIPTS[hook].format(
        mark=_MARK,
        aside=_ASIDE,
        python=shlex.quote(sys.executable),
        gone=shlex.quote(gone),
        engine=shlex.join([sys.executable, "-m", "sandbox_engine", "validate"]),
        arguments=shlex.join(arguments),
    )
    disk.write_whole(path, script.encode())
    path.chmod(0o755)
    return status(repo, hook)


def uninstall(repo: str | os.PathLike[str], hook: str = PRE_COMMIT) -> bool:
    """Take the hook out, put an earlier one back, and tell whether there was one to take out."""
    path = _path(git.find_repository(repo), hook)
    if not _is_ours(path):
        return False
    path.unlink()
    with contextlib.suppress(FileNotFoundError):
        _aside(path).rename(path)
    return True


def is_skipped() -> bool:
    """Tell whether the committer asked to pass over the hook."""
    return os.environ.get(SKIP, "") not in ("", "0")


def _path(repository: git.Repository, hook: str) -> Path:
    output = git.run_git(
        ["rev-parse", "--path-format=absolute", "--git-path", "hooks"],
        cwd=repository.top or repository.git_dir,
    )
    return Path(os.fsdecode(output).rstrip("\n")) / hook


def _aside(path: Path) -> Path:
    return path.with_name(path.name + _ASIDE)


def _is_ours(path: Path) -> bool:
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return False
        return _MARK.encode() in path.read_bytes()
    except FileNotFoundError:
        return False


def _refuse_shared(repository: git.Repository, path: Path) -> None:
    own = [repository.common_dir, *filter(None, [repository.top])]
    folder = path.parent.resolve()
    if not any(folder.is_relative_to(one.resolve()) for one in own):
        raise UsageError(
            f"`core.hooksPath` is `{path.parent}`, which is not of this repository alone",
            remedy="set it for this repository (`git config core.hooksPath .githooks`), or call "
            "`sandbox-engine validate --staged` from the hook that is there",
        )
