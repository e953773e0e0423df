"""Is a receipt true, and does it still hold? Every claim of it is computed anew.

Two ways of not holding are told apart: what can never have been true (the digest is of another
content, a tree is not that of its commit) is false; all else was true once, or could have been,
and has changed since. A receipt whose digest was made to fit an edit is of the second kind: no
engine keeps its verdict.
"""

from __future__ import annotations

import enum
import json
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sandbox_engine import disk, git, store, tree
from sandbox_engine.cache import Cache
from sandbox_engine.config import Config, load_config
from sandbox_engine.errors import GitError, SandboxError, UsageError
from sandbox_engine.receipt import Receipt, parse_receipt, seal
from sandbox_engine.recipe import Recipe
from sandbox_engine.run import Run
from sandbox_engine.store import Store
from sandbox_engine.tree import CandidateTree
from sandbox_engine.verdict import CommitId, Outcome, TreeId
from sandbox_engine.version import VERSION

_SHOWN = 12


class Standing(enum.StrEnum):
    """How a claim, or a whole receipt, stands; the first is the best, the last the worst."""

    HOLDS = "holds"
    CHANGED = "changed"
    FALSE = "false"


@dataclass(frozen=True, slots=True)
class Claim:
    """One thing that a receipt says, how it stands, and what was found."""

    name: str
    standing: Standing
    detail: str


def verify(
    receipt: Receipt, repo: str | os.PathLike[str] = ".", config: Config | None = None
) -> list[Claim]:
    """Return every claim of `receipt` with how it stands in the repository that holds `repo`.

    Claims that cannot be looked at because of an earlier one are left out. Nothing is run but the
    interpreter, to ask what it has. `config` replaces what the configuration files say.
    """
    repository = git.find_repository(repo)
    config = load_config(repository.top) if config is None else config
    kept = store.open_store(repository)
    cache = Cache(kept.database)
    return list(_claims(receipt, kept, cache, config))


def worst(claims: Sequence[Claim]) -> Standing:
    """Return how a receipt with these claims stands as a whole."""
    return max((claim.standing for claim in claims), key=list(Standing).index)


def summary(claims: Sequence[Claim]) -> str:
    """Return in a sentence how a receipt with these claims stands, and what to do."""
    standing = worst(claims)
    if standing is Standing.HOLDS:
        return "the receipt holds"
    names = ", ".join(claim.name for claim in claims if claim.standing is standing)
    if standing is Standing.FALSE:
        return f"the receipt is false ({names}): do not believe it"
    return f"the receipt no longer holds ({names}): validate the patch again"


def _claims(receipt: Receipt, kept: Store, cache: Cache, config: Config) -> Iterator[Claim]:
    yield _digest(receipt)
    base_tree = _found_tree(kept, receipt)
    yield from _base(receipt, base_tree)
    recipe, claim = _recipe(receipt, config)
    yield claim
    if base_tree is not None:
        candidate = _candidate(kept, receipt, base_tree)
        yield _tree(receipt, candidate)
        if recipe is not None:
            # Only the lock files are asked of the tree itself.
            base = CommitId(receipt.base)
            stand_in = candidate or CandidateTree(base_tree, base, base_tree, {}, {}, {})
            run = Run(kept, cache, config, stand_in, recipe)
            yield from _environment(receipt, run, has_tree=candidate is not None)
    yield _compared("engine_version", receipt.engine_version, VERSION)
    yield _verdict(receipt, cache)


def _digest(receipt: Receipt) -> Claim:
    if receipt.is_sound:
        return Claim("digest", Standing.HOLDS, receipt.digest[:_SHOWN])
    computed = seal(receipt).digest
    return Claim(
        "digest",
        Standing.FALSE,
        f"it says {receipt.digest[:_SHOWN]}, and its content has {computed[:_SHOWN]}",
    )


def _found_tree(kept: Store, receipt: Receipt) -> TreeId | None:
    """Return the tree that the base has in the user's repository, None without that commit."""
    try:
        commit, base_tree = git.resolve_commit(kept.repository, receipt.base)
    except UsageError:
        return None
    return base_tree if commit == receipt.base else None


def _base(receipt: Receipt, base_tree: TreeId | None) -> Iterator[Claim]:
    if base_tree is None:
        detail = f"the repository has no commit {receipt.base[:_SHOWN]}"
        yield Claim("base", Standing.CHANGED, detail)
        return
    yield Claim("base", Standing.HOLDS, receipt.base[:_SHOWN])
    yield _compared("base_tree", receipt.base_tree, base_tree, Standing.FALSE)


def _candidate(kept: Store, receipt: Receipt, base_tree: TreeId) -> CandidateTree | None:
    """Return what was judged, as a candidate again; None where its objects are not there."""
    try:
        return tree.candidate_of(kept, CommitId(receipt.base), base_tree, TreeId(receipt.tree))
    except (GitError, ValueError):
        return None


def _tree(receipt: Receipt, candidate: CandidateTree | None) -> Claim:
    if candidate is not None:
        return Claim("tree", Standing.HOLDS, receipt.tree[:_SHOWN])
    return Claim("tree", Standing.CHANGED, f"{receipt.tree[:_SHOWN]} is not in the store")


def _recipe(receipt: Receipt, config: Config) -> tuple[Recipe | None, Claim]:
    """Return the recipe that the receipt names as it is now, if it is there."""
    try:
        recipe = config.recipe_of(receipt)
    except UsageError as error:
        return None, Claim("recipe", Standing.CHANGED, error.problem)
    if recipe.fingerprint() == receipt.recipe:
        return recipe, Claim("recipe", Standing.HOLDS, receipt.strategy)
    detail = f"`{receipt.strategy}` is configured otherwise now"
    return recipe, Claim("recipe", Standing.CHANGED, detail)


def _environment(receipt: Receipt, run: Run, *, has_tree: bool) -> Iterator[Claim]:
    try:
        facts = run.facts
    except SandboxError as error:
        yield Claim("environment", Standing.CHANGED, error.problem)
        return
    for name in sorted(facts.keys() | receipt.environment.keys()):
        if name != "lock_files":
            yield _compared(name, receipt.environment.get(name, ""), facts.get(name, ""))
        elif has_tree:
            # A tree has the same files for ever.
            said = receipt.environment.get(name, "")
            yield _compared(name, said, facts[name], Standing.FALSE)


def _verdict(receipt: Receipt, cache: Cache) -> Claim:
    known = cache.find_receipt(receipt.digest)
    if known is not None and known.outcome is Outcome.PASSED and known.receipt == receipt:
        return Claim("verdict", Standing.HOLDS, f"{known.outcome}: {known.reason}")
    detail = "no verdict with this receipt is kept here: it was forgotten, or never given"
    return Claim("verdict", Standing.CHANGED, detail)


def _compared(name: str, said: str, found: str, other: Standing = Standing.CHANGED) -> Claim:
    if said == found:
        return Claim(name, Standing.HOLDS, _shown(found))
    return Claim(name, other, f"it says {_shown(said)}, and now it is {_shown(found)}")


def _shown(fact: str) -> str:
    """Return `fact`, or the beginning of a digest."""
    is_digest = len(fact) in (40, 64) and set(fact) <= set("0123456789abcdef")
    return fact[:_SHOWN] if is_digest else fact or "nothing"


def read_receipt(path: Path) -> Receipt:
    """Return the receipt in the file at `path`, true or not; raise UsageError for what is none."""
    try:
        return parse_receipt(json.loads(path.read_bytes()))
    except OSError as error:
        raise UsageError(
            f"the receipt `{path}` cannot be read: {error.strerror}",
            remedy="give the path of a file that `validate --receipt` wrote",
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"`{path}` is no receipt: {error}",
            remedy="give the path of a file that `validate --receipt` wrote",
        ) from error


def prepare_receipt(path: Path) -> None:
    """Remove an older receipt at `path`: it must not be taken for that of what is judged next.

    Raise UsageError where no receipt can be written, and for a file that is none: it may be
    somebody's work.
    """
    try:
        if not path.parent.is_dir():
            raise UsageError(
                f"there is no folder `{path.parent}` for the receipt",
                remedy="make the folder, or name another path",
            )
        if os.path.lexists(path):
            if not stat.S_ISREG(path.lstat().st_mode) or not _is_replaced(path.read_bytes()):
                raise UsageError(
                    f"`{path}` is there and is no receipt, so it is not written over",
                    remedy="name another path for the receipt",
                )
            path.unlink()
    except OSError as error:
        raise UsageError(
            f"the receipt cannot be written to `{path}`: {error.strerror}",
            remedy="name a path that you may write to",
        ) from error


def _is_replaced(content: bytes) -> bool:
    """Tell whether `content` is a receipt, of any version, or nothing."""
    try:
        record = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        return False
    wanted = {"schema", "tree", "digest"}
    return not content or (isinstance(record, dict) and wanted <= record.keys())


def write_receipt(path: Path, receipt: Receipt) -> None:
    """Write `receipt` to `path` in one step."""
    text = json.dumps(receipt.to_json(), indent=2) + "\n"
    try:
        disk.write_whole(path, text.encode())
    except OSError as error:
        raise SandboxError(
            f"the receipt cannot be written to `{path}`: {error.strerror}",
            remedy="validate again with another path; the verdict is known",
        ) from error
