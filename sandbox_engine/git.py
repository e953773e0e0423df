"""The only door to git: pygit2 for objects, the git command for work trees.

pygit2 reads and writes objects in this process in about a millisecond. It is never asked to
check out, to apply a diff, or to open a folder that test code has touched: it follows symlinks
that it finds there. The git command gets a fixed environment, so that neither a hook that
called us nor the user's configuration changes what it does to our own store.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox_engine import process
from sandbox_engine.errors import (
    DiskFullError,
    GitError,
    NoCommitError,
    NoRepositoryError,
    RepositoryError,
    SandboxError,
    UsageError,
)
from sandbox_engine.verdict import CommitId, TreeId

if TYPE_CHECKING:
    import pygit2

OLDEST_GIT = (2, 31)
"""`rev-parse --path-format` came with 2.31."""

TIME_OUT_S = 600.0
_NO_SPACE = ("No space left on device", "Disk quota exceeded", "Out of diskspace")
_INERT = tuple(
    word
    for setting in (
        "core.hooksPath=/dev/null",
        "core.fsmonitor=false",
        "core.attributesFile=/dev/null",
        "core.excludesFile=/dev/null",
        "gc.auto=0",
    )
    for word in ("-c", setting)
)


@dataclass(frozen=True, slots=True)
class Repository:
    """A user's repository: where it keeps what. `top` is None when it has no work tree."""

    top: Path | None
    git_dir: Path
    common_dir: Path

    @property
    def objects_dir(self) -> Path:
        return self.common_dir / "objects"

    @property
    def main_top(self) -> Path | None:
        """The main work tree of which `top` may be a linked one."""
        return self.common_dir.parent if self.common_dir.name == ".git" else None

    @property
    def name(self) -> str:
        """The folder's name, for people."""
        folder = self.common_dir.parent if self.common_dir.name == ".git" else self.common_dir
        return folder.name.removesuffix(".git") or "repository"

    @property
    def id(self) -> str:
        """A name that no other repository of this machine has, safe in a path."""
        digest = hashlib.sha256(os.fsencode(self.common_dir)).hexdigest()[:12]
        safe = "".join(char if char.isascii() and char.isalnum() else "-" for char in self.name)
        return f"{safe[:32]}-{digest}"


def plain_environment(**extra: str) -> dict[str, str]:
    """Return our environment without git's own variables, plus what makes git predictable."""
    return {
        **process.without_git_variables(os.environ),
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_OPTIONAL_LOCKS": "0",
        "LC_ALL": "C",
        **extra,
    }


def sealed_environment(**extra: str) -> dict[str, str]:
    """Return `plain_environment` with the user's and the system's git configuration shut out."""
    return plain_environment(
        GIT_CONFIG_NOSYSTEM="1",
        GIT_CONFIG_GLOBAL=os.devnull,
        GIT_ATTR_NOSYSTEM="1",
        GIT_NO_REPLACE_OBJECTS="1",
        **extra,
    )


def run_git(
    arguments: Sequence[str | os.PathLike[str]],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    input: bytes = b"",
    accept: Sequence[int] = (0,),
    keep_fds: Sequence[int] = (),
) -> bytes:
    """Return what git wrote to standard output; raise GitError when it exits otherwise.

    `env` replaces the whole environment (default: `plain_environment()`); `keep_fds` stay open
    in git, so that a lock outlives us for as long as git still works under it.
    """
    argv = ["git", *(os.fspath(argument) for argument in arguments)]
    done = process.run_tool(
        argv,
        cwd=cwd,
        env=plain_environment() if env is None else env,
        input=input,
        timeout_s=TIME_OUT_S,
        keep_fds=keep_fds,
    )
    if done.code in accept:
        return done.stdout
    raise git_failure(argv, done.code, done.stderr)


def run_store_git(
    git_dir: Path,
    arguments: Sequence[str],
    *,
    work_tree: Path | None = None,
    index: Path | None = None,
    keep_fds: Sequence[int] = (),
    input: bytes = b"",
) -> bytes:
    """Run git on our own store: nothing is discovered, and no hook or monitor can run."""
    place = [f"--git-dir={git_dir}"]
    if work_tree is not None:
        place.append(f"--work-tree={work_tree}")
    extra = {} if index is None else {"GIT_INDEX_FILE": os.fspath(index)}
    return run_git(
        [*place, *_INERT, *arguments],
        cwd=work_tree or git_dir,
        env=sealed_environment(**extra),
        input=input,
        keep_fds=keep_fds,
    )


def git_failure(argv: Sequence[str], code: int | None, stderr: bytes) -> SandboxError:
    """Return the error that says best why git failed."""
    text = stderr.decode("utf-8", "replace").strip()
    if any(sign in text for sign in _NO_SPACE):
        return disk_full("git could not write")
    last = text.splitlines()[-1] if text else f"exit code {code}"
    verb = next((word for word in argv[1:] if word[:1].isalpha() and "=" not in word), "git")
    return GitError(
        f"`git {verb}` failed: {last}",
        remedy="run with `-v` to see the whole command and what it said",
        argv=argv,
        code=code if code is not None else -1,
        stderr=text,
    )


def disk_full(what: str) -> DiskFullError:
    return DiskFullError(
        f"{what}: no space is left on the device",
        remedy="free some space; `sandbox-engine cache clear` gives back the engine's own",
    )


def foreign_failure(error: Exception, what: str) -> SandboxError:
    """Return ours for an error of libgit2 or the operating system met while doing `what`."""
    is_full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    if is_full or any(sign in str(error) for sign in _NO_SPACE):
        return disk_full(what)
    if isinstance(error, OSError):
        return SandboxError(
            f"{what}: {error.strerror or error}"
            + (f" (`{error.filename}`)" if error.filename else ""),
            remedy="see that the folder is there and that you may write to it; "
            "XDG_CACHE_HOME names another place for the store",
        )
    return GitError(
        f"{what}: {error}",
        remedy="`git fsck` tells whether the repository is sound; objects that a partial clone "
        "left out are brought by `git fetch --refetch`",
    )


def version() -> tuple[int, ...]:
    """Return git's version, as far as it is numbers."""
    words = run_git(["--version"]).decode().split()
    return tuple(int(part) for part in words[2].split(".") if part.isdigit())


def find_repository(path: str | os.PathLike[str]) -> Repository:
    """Return the repository that holds `path`; raise RepositoryError without a usable one.

    Discovery starts from the path alone: a `GIT_DIR` that a hook exported is not looked at.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise RepositoryError(
            f"`{folder}` is not a folder", remedy="give the folder of a git repository as `--repo`"
        )
    questions = ["--is-bare-repository", "--show-object-format", "--git-dir", "--git-common-dir"]
    try:
        answers = _rev_parse(folder, questions)
    except GitError as error:
        raise _no_repository(folder, error) from error
    if len(answers) != len(questions):
        raise RepositoryError(
            f"the path of the repository at {str(folder)!r} has a line break",
            remedy="move it to a path without one: git's own files cannot say such a path",
        )
    is_bare, object_format, git_dir, common_dir = answers
    if object_format != "sha1":
        raise _unsupported(folder, f"{object_format.upper()} objects")
    top = None if is_bare == "true" else _top(folder)
    return Repository(top, Path(git_dir), Path(common_dir).resolve())


def _rev_parse(folder: Path, questions: Sequence[str]) -> list[str]:
    output = run_git(["-C", folder, "rev-parse", "--path-format=absolute", *questions])
    return os.fsdecode(output).splitlines()


def _top(folder: Path) -> Path | None:
    try:
        return Path(_rev_parse(folder, ["--show-toplevel"])[0])
    except GitError:
        return None


def _no_repository(folder: Path, error: GitError) -> SandboxError:
    if "dubious ownership" in error.stderr:
        return RepositoryError(
            f"the repository at `{folder}` belongs to another user",
            remedy=f"`git config --global --add safe.directory {folder}` says that you trust it",
        )
    if "refstorage" in error.stderr.lower():
        return _unsupported(folder, "reftable references")
    if "unknown repository extension" in error.stderr:
        return _unsupported(folder, error.stderr.splitlines()[-1].strip())
    if "not a git repository" in error.stderr:
        return NoRepositoryError(
            f"`{folder}` is not in a git repository",
            remedy="give one with `--repo`, or make one with `git init`",
        )
    return error


def _unsupported(folder: Path, what: str) -> RepositoryError:
    return RepositoryError(
        f"the repository at `{folder}` uses {what}, which libgit2 cannot read",
        remedy="clone it into a repository with SHA-1 objects and file references, and use that",
    )


def open_objects(git_dir: Path) -> pygit2.Repository:
    """Return a handle for the objects and references in `git_dir`."""
    import pygit2

    try:
        return pygit2.Repository(os.fspath(git_dir), pygit2.enums.RepositoryOpenFlag.NO_SEARCH)
    except pygit2.GitError as error:
        raise RepositoryError(
            f"libgit2 cannot open the repository at `{git_dir}`: {error}",
            remedy="clone it without the extension named, and use the clone",
        ) from error


def resolve_commit(repository: Repository, revision: str) -> tuple[CommitId, TreeId]:
    """Return the commit that `revision` names and its tree; raise UsageError when there is none."""
    import pygit2

    objects = open_objects(repository.git_dir)
    try:
        commit = objects.revparse_single(revision).peel(pygit2.Commit)
    except (KeyError, ValueError, pygit2.GitError) as error:
        raise _no_commit(objects, revision) from error
    return CommitId(str(commit.id)), TreeId(str(commit.tree_id))


@dataclass(frozen=True, slots=True)
class Commit:
    """What a commit says; `author_date` is ISO 8601 or "", and `message` the whole of it."""

    tree: TreeId
    parents: tuple[CommitId, ...]
    message: str
    author_name: str
    author_email: str
    author_date: str


def read_commit(repository: Repository, revision: str) -> Commit:
    """Return what the commit says that `revision` names; raise UsageError when there is none."""
    import pygit2

    id, tree = resolve_commit(repository, revision)
    commit = open_objects(repository.git_dir)[id].peel(pygit2.Commit)
    author = commit.author
    return Commit(
        tree,
        tuple(CommitId(str(parent)) for parent in commit.parent_ids),
        commit.raw_message.decode("utf-8", "replace"),
        author.raw_name.decode("utf-8", "replace"),
        author.raw_email.decode("utf-8", "replace"),
        _iso(author.time, author.offset),
    )


def _iso(seconds: int, offset_minutes: int) -> str:
    """Return a time as ISO 8601, "" for one that no calendar has."""
    try:
        zone = datetime.timezone(datetime.timedelta(minutes=offset_minutes))
        return datetime.datetime.fromtimestamp(seconds, zone).isoformat()
    except (ValueError, OverflowError, OSError):
        return ""


def list_commits(repository: Repository, revisions: str) -> dict[CommitId, str]:
    """Return the commits of a range in gitrevisions(7) and their subjects, the oldest first.

    Raise UsageError where there are none.
    """
    try:
        output = run_git(
            [
                "rev-list",
                "--reverse",
                "--topo-order",
                "--format=%s",
                "--end-of-options",
                revisions,
                "--",
            ],
            cwd=repository.git_dir,
        )
    except GitError as error:
        raise UsageError(
            f"`{revisions}` is no range of commits of the repository",
            remedy="write it as git does: `main..topic`, or `HEAD~3..`",
        ) from error
    if not output:
        raise UsageError(
            f"no commit is in `{revisions}`", remedy="the older end comes first: `main..topic`"
        )
    lines = output.decode("utf-8", "replace").split("\n")
    return {
        CommitId(line.removeprefix("commit ")): subject
        for line, subject in zip(lines[::2], lines[1::2], strict=False)
    }


def merge_base(repository: Repository, one: str, other: str) -> CommitId:
    """Return the best common ancestor of two revisions; raise UsageError where there is none."""
    import pygit2

    ids = [resolve_commit(repository, revision)[0] for revision in (one, other)]
    found = open_objects(repository.git_dir).merge_base(
        pygit2.Oid(hex=ids[0]), pygit2.Oid(hex=ids[1])
    )
    if found is None:
        raise UsageError(
            f"`{one}` and `{other}` have no commit in common",
            remedy="name a base that the branch was made from",
        )
    return CommitId(str(found))


def _no_commit(objects: pygit2.Repository, revision: str) -> UsageError:
    if objects.is_empty or (revision == "HEAD" and objects.head_is_unborn):
        return NoCommitError(
            "the repository has no commit yet, so there is no base",
            remedy="commit something first, or name another `--base`",
        )
    return UsageError(
        f"`{revision}` names no commit of the repository",
        remedy="`git log --oneline --all` lists commits; `git fetch` may bring the one you mean",
    )


@contextlib.contextmanager
def prepared_update(
    git_dir: Path, reference: str, *, new: str, old: str, log: str, keep_fds: Sequence[int] = ()
) -> Iterator[None]:
    """Hold `reference` locked at `old`; move it to `new` after the block, or leave it on an error.

    Raise GitError before the block when it is not at `old`, or is locked. A git that loses us
    sees its input end, and gives the lock back.
    """
    argv = ["git", f"--git-dir={git_dir}", "update-ref", "-m", log, "--stdin"]
    with process.open_tool(argv, env=plain_environment(), keep_fds=keep_fds) as tool:
        tool.say(f"start\nupdate {reference} {new} {old}\nprepare\n")
        _expect(tool, argv, ("start: ok", "prepare: ok"))
        yield
        tool.say("commit\n")
        _expect(tool, argv, ("commit: ok",))


def _expect(tool: process.Conversation, argv: Sequence[str], answers: Sequence[str]) -> None:
    for answer in answers:
        if tool.hear() != answer:
            raise git_failure(argv, tool.end(), tool.complaint())
