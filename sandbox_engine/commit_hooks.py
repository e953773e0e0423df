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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sandbox_engine import disk, git
from sandbox_engine.errors import UsageError

COMMIT, PUSH = "pre-commit", "pre-push"
HOOKS = (COMMIT, PUSH)
SKIP = "SKIP_SANDBOX_ENGINE"
_MARK = "# sandbox-engine: judges what is about to be "
_ASIDE = ".before-sandbox-engine"
# Another tool may move this hook, and call it from the one that took its place: what is run
# earlier is found all the same, and does not run itself again.
_SCRIPT = """\
#!/bin/sh
{mark}
# `sandbox-engine hook uninstall` takes this out; SKIP_SANDBOX_ENGINE=1 passes over it once.
case $0 in /*) earlier=$0 ;; *) earlier=$PWD/$0 ;; esac
earlier=${{earlier%/*}}/{aside}
{before}if [ -x "$earlier" ] && ! [ "$WITHIN_SANDBOX_ENGINE" -ef "$earlier" ]; then
    {given}WITHIN_SANDBOX_ENGINE=$earlier "$earlier" "$@" || exit
fi
if [ ! -x {python} ]; then
    echo {gone} >&2
    exit 1
fi
{judge}
"""
_READ = """\
pushed=$(cat)
tell() { if [ -n "$pushed" ]; then printf '%s\\n' "$pushed"; fi }
"""
_TELL = "tell 2>/dev/null | "


@dataclass(frozen=True, slots=True)
class Status:
    """The hook at `path`: whether it is ours, and whether it runs an earlier one first."""

    path: Path
    is_installed: bool
    has_earlier: bool


def status(repo: str | os.PathLike[str], name: str = COMMIT) -> Status:
    """Return how the hook called `name` of the repository stands."""
    path = _path(git.find_repository(repo), name)
    return Status(path, _is_ours(path), os.path.lexists(_aside(path)))


def install(
    repo: str | os.PathLike[str], arguments: Sequence[str] = (), *, name: str = COMMIT
) -> Status:
    """Put the hook in, with `arguments` for `validate`; one that is ours is written anew.

    Raise UsageError where hooks are shared with other repositories, or an earlier hook is already
    aside and another one has taken its place.
    """
    repository = git.find_repository(repo)
    path = _path(repository, name)
    _refuse_shared(repository, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _moved_aside(path):
        disk.write_whole(path, _script(name, arguments).encode())
        path.chmod(0o755)
    return status(repo, name)


def uninstall(repo: str | os.PathLike[str], name: str = COMMIT) -> bool:
    """Take the hook out, put an earlier one back, and tell whether there was one to take out."""
    path = _path(git.find_repository(repo), name)
    if not _is_ours(path):
        return False
    path.unlink()
    with contextlib.suppress(FileNotFoundError):
        _aside(path).rename(path)
    return True


def is_skipped() -> bool:
    """Tell whether the committer asked to pass over the hook."""
    return os.environ.get(SKIP, "") not in ("", "0")


def _script(name: str, arguments: Sequence[str]) -> str:
    python = sys.executable
    # Without -P what lies in the work tree would be imported for what the engine needs.
    command = shlex.join([python, "-P", "-m", "sandbox_engine", "validate"])
    options = shlex.join(arguments)
    gone = f"sandbox-engine: {python} is gone; run `sandbox-engine hook install` again"
    is_push = name == PUSH
    # What pre-commit tells the hooks of a push is nothing to a commit that one of them makes.
    judge = f"unset PRE_COMMIT_FROM_REF PRE_COMMIT_TO_REF PRE_COMMIT_LOCAL_BRANCH\nexec {command}"
    return _SCRIPT.format(
        mark=f"{_MARK}{'pushed' if is_push else 'committed'}.",
        aside=name + _ASIDE,
        before=_READ if is_push else "",
        given=_TELL if is_push else "",
        python=shlex.quote(python),
        gone=shlex.quote(gone),
        judge=f'tell | {command} --pushed="$1" {options}'
        if is_push
        else f"{judge} --staged {options}",
    )


@contextlib.contextmanager
def _moved_aside(path: Path) -> Iterator[None]:
    """Have whatever is at `path` aside, unless it is ours, and back if the block fails."""
    if _is_ours(path) or not os.path.lexists(path):
        yield
        return
    aside = _aside(path)
    if os.path.lexists(aside):
        raise UsageError(
            f"`{path}` is not ours, and `{aside.name}` is there already",
            remedy="merge the two by hand, and install the hook again",
        )
    path.rename(aside)
    try:
        yield
    except BaseException:
        aside.rename(path)
        raise


def _path(repository: git.Repository, name: str) -> Path:
    output = git.run_git(
        ["rev-parse", "--path-format=absolute", "--git-path", "hooks"],
        cwd=repository.top or repository.git_dir,
    )
    return Path(os.fsdecode(output).removesuffix("\n")) / name


def _aside(path: Path) -> Path:
    return path.with_name(path.name + _ASIDE)


def _is_ours(path: Path) -> bool:
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return False
        return _MARK.encode() in path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
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
