"""Commands about git's own hooks, and what they call.

A committer is told on standard error what is needed, and nothing else.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sandbox_engine.cli import exits, outputs
from sandbox_engine.cli.opening import configuration, open_engine

if TYPE_CHECKING:
    from sandbox_engine.engine import Engine
    from sandbox_engine.pushed import Push
    from sandbox_engine.reports import Judged


def install(options: argparse.Namespace) -> int:
    """Put one hook in, and tell where it is."""
    from sandbox_engine import commit_hooks

    configuration(options).recipe(options.strategy)
    strategy = ["--strategy", options.strategy] if options.strategy else []
    lenient = ["--lenient"] if options.lenient else []
    config = ["--config", os.path.abspath(options.config)] if options.config else []
    name = commit_hooks.PUSH if options.pre_push else commit_hooks.COMMIT
    done = commit_hooks.install(options.repo, [*strategy, *lenient, *config], name=name)
    earlier = "; it runs the one that was there first" if done.has_earlier else ""
    print(f"installed `{done.path}`{earlier}")
    return exits.PASSED


def uninstall(options: argparse.Namespace) -> int:
    """Take every hook of ours out, and tell which."""
    from sandbox_engine import commit_hooks

    out = [name for name in commit_hooks.HOOKS if commit_hooks.uninstall(options.repo, name)]
    print(f"uninstalled {' and '.join(out)}" if out else "not installed")
    return exits.PASSED


def status(options: argparse.Namespace) -> int:
    """Tell which hooks are in, a line for each."""
    from sandbox_engine import commit_hooks

    found = [commit_hooks.status(options.repo, name) for name in commit_hooks.HOOKS]
    ours = [one for one in found if one.is_installed]
    for one in ours:
        earlier = ", which runs an earlier hook first" if one.has_earlier else ""
        print(f"`{one.path}`{earlier}")
    if not ours:
        print("not installed")
    return exits.PASSED if ours else exits.REFUSED


def judge_staged(options: argparse.Namespace, form: str) -> int:
    """Judge what is about to be committed, or what pre-commit says that is to be judged."""
    from sandbox_engine import pushed, staged
    from sandbox_engine.reports import Judged

    # Before all else: it is what git has named, and nobody asks for it again.
    named = staged.named_to_hook()
    if _is_skipped():
        return exits.PASSED
    is_elsewhere = options.repo != "."
    options.repo = named.folder(options.repo)
    engine = open_engine(options)
    if push := pushed.push_of_pre_commit(engine.repository):
        return _tell(options, form, _judge_pushes(engine, [push], options), "push")
    index = named.index_of(engine.repository) if is_elsewhere else named.index
    verdict = engine.validate_staged(
        index=index,
        strategy=options.strategy,
        allow_test_changes=True,
        use_cache=not options.no_cache,
    )
    if verdict is None and index is None:
        print("sandbox-engine: nothing is staged, so nothing was judged", file=sys.stderr)
    judged = [] if verdict is None else [Judged("what is staged", verdict)]
    return _tell(options, form, judged, "commit")


def judge_pushed(options: argparse.Namespace, form: str) -> int:
    """Judge what is about to be pushed; git tells of it on standard input."""
    from sandbox_engine import pushed, staged

    named = staged.named_to_hook()
    lines = sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
    if not lines or _is_skipped():
        return exits.PASSED
    options.repo = named.folder(options.repo)
    engine = open_engine(options)
    found = pushed.pushes(engine.repository, options.pushed, lines)
    return _tell(options, form, _judge_pushes(engine, found, options), "push")


def _is_skipped() -> bool:
    from sandbox_engine import commit_hooks

    is_skipped = commit_hooks.is_skipped()
    if is_skipped:
        print(f"sandbox-engine: passed over, because {commit_hooks.SKIP} is set", file=sys.stderr)
    return is_skipped


def _judge_pushes(
    engine: Engine, found: Sequence[Push], options: argparse.Namespace
) -> list[Judged]:
    from sandbox_engine import batch

    terms = batch.Terms(
        options.strategy,
        allow_test_changes=True,
        use_cache=not options.no_cache,
        diff=options.report is not None,
    )
    return [batch.judge(engine, one, terms) for one in batch.pushed(engine, found)]


def _tell(options: argparse.Namespace, form: str, judged: list[Judged], verb: str) -> int:
    """Say what a committer needs to know, and return the exit code of the worst."""
    from sandbox_engine import commit_hooks
    from sandbox_engine.reports import text

    is_one = len(judged) == 1
    if form != "text":
        outputs.show(form, judged, is_one=is_one)
    else:
        for one in judged:
            if one.verdict is not None:
                of = "" if is_one else one.name
                print(text.brief(one.verdict, of), file=sys.stderr)
    outputs.write_files(options.outputs, judged, is_one=is_one)
    outputs.write_page(options.report, judged)
    code = exits.code_of_all([one.outcome for one in judged])
    if code == exits.UNJUDGED and options.lenient:
        return exits.PASSED
    if code != exits.PASSED and form == "text":
        does = {"commit": "commits", "push": "pushes"}[verb]
        print(f"\n`{commit_hooks.SKIP}=1 git {verb} ...` {does} all the same", file=sys.stderr)
    return code
