"""Commands about git's own hooks."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from sandbox_engine.cli import exits, outputs
from sandbox_engine.cli.opening import configuration, open_engine

if TYPE_CHECKING:
    from pathlib import Path

    from sandbox_engine.engine import Engine
    from sandbox_engine.pushed import Pushed
    from sandbox_engine.reports import Judged


def judge(options: argparse.Namespace, form: str) -> int:
    """Judge what a hook of git's is about: what is staged, or about to be pushed."""
    from sandbox_engine import commit_hooks, staged

    # Before all else: it is what git has named, and nobody asks for it again.
    index = staged.index_of_hook()
    lines = None if options.pushed is None else sys.stdin.read()
    if commit_hooks.is_skipped():
        print(f"sandbox-engine: passed over, because {commit_hooks.SKIP} is set", file=sys.stderr)
        return exits.PASSED
    engine = open_engine(options)
    staged.require_same_repository(engine.repository)
    pushed = _pushed(engine, options, lines)
    judged = (
        _judge_staged(engine, options, index)
        if pushed is None
        else _judge_pushed(engine, options, pushed)
    )
    return _tell(options, form, judged, "commit" if pushed is None else "push")


def _pushed(engine: Engine, options: argparse.Namespace, lines: str | None) -> list[Pushed] | None:
    """Return what is about to be pushed, None where a commit is about to be made."""
    from sandbox_engine import pushed

    if lines is not None:
        return pushed.read_pushed(engine.repository, lines, options.pushed)
    return pushed.pushed_by_framework(engine.repository) or None


def _judge_staged(engine: Engine, options: argparse.Namespace, index: Path | None) -> list[Judged]:
    from sandbox_engine.reports import Judged

    verdict = engine.validate_staged(
        index=index,
        strategy=options.strategy,
        allow_test_changes=True,
        use_cache=not options.no_cache,
    )
    return [] if verdict is None else [Judged("what is staged", verdict)]


def _judge_pushed(
    engine: Engine, options: argparse.Namespace, pushed: list[Pushed]
) -> list[Judged]:
    from sandbox_engine import batch

    terms = batch.Terms(options.strategy, allow_test_changes=True, use_cache=not options.no_cache)
    return [batch.judge(engine, one, terms) for one in batch.pushed(pushed)]


def _tell(options: argparse.Namespace, form: str, judged: list[Judged], verb: str) -> int:
    """Say what a committer needs to know, and return the exit code."""
    from sandbox_engine import commit_hooks
    from sandbox_engine.reports import text

    if form != "text":
        outputs.show(form, judged, is_one=len(judged) == 1)
    else:
        for one in judged:
            if one.verdict is not None:
                print(text.brief(one.verdict), file=sys.stderr)
    outputs.write_files(options.outputs, judged, is_one=len(judged) == 1)
    outputs.write_page(options.report, judged)
    code = exits.code_of_all([one.outcome for one in judged])
    if code == exits.UNJUDGED and options.lenient:
        return exits.PASSED
    if code != exits.PASSED and form == "text":
        does = {"commit": "commits", "push": "pushes"}[verb]
        print(f"\n`{commit_hooks.SKIP}=1 git {verb} ...` {does} all the same", file=sys.stderr)
    return code


def install(options: argparse.Namespace) -> int:
    """Put a hook in."""
    from sandbox_engine import commit_hooks

    configuration(options).recipe(options.strategy)
    strategy = ["--strategy", options.strategy] if options.strategy else []
    lenient = ["--lenient"] if options.lenient else []
    done = commit_hooks.install(options.repo, [*strategy, *lenient], _hook(options))
    earlier = "; it runs the one that was there first" if done.has_earlier else ""
    print(f"installed `{done.path}`{earlier}")
    return exits.PASSED


def uninstall(options: argparse.Namespace) -> int:
    """Take it out."""
    from sandbox_engine import commit_hooks

    is_out = commit_hooks.uninstall(options.repo, _hook(options))
    print("uninstalled" if is_out else "not installed")
    return exits.PASSED


def status(options: argparse.Namespace) -> int:
    """Tell whether it is in."""
    from sandbox_engine import commit_hooks

    found = commit_hooks.status(options.repo, _hook(options))
    earlier = ", which runs an earlier hook first" if found.has_earlier else ""
    print(f"`{found.path}`{earlier}" if found.is_installed else "not installed")
    return exits.PASSED if found.is_installed else exits.REFUSED


def _hook(options: argparse.Namespace) -> str:
    from sandbox_engine import commit_hooks

    return commit_hooks.PRE_PUSH if options.pre_push else commit_hooks.PRE_COMMIT
