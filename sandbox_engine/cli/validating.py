"""The command that judges."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sandbox_engine.cli import exits, hooking, outputs
from sandbox_engine.cli.opening import open_engine, read_patch

if TYPE_CHECKING:
    from sandbox_engine.batch import Candidate, Terms
    from sandbox_engine.engine import Engine
    from sandbox_engine.reports import Judged


def validate(options: argparse.Namespace) -> int:
    """Judge what was named."""
    _check(options)
    _refuse_ignored(options)
    form = outputs.on_stdout(options.outputs)
    if options.staged:
        return hooking.judge_staged(options, form)
    if options.pushed is not None:
        return hooking.judge_pushed(options, form)
    from sandbox_engine import cleaning, verification

    if options.receipt is not None:
        verification.prepare_receipt(options.receipt)
    engine = open_engine(options)
    candidates, is_one = _candidates(engine, options)
    if is_one:
        judged = [_judge_one(engine, candidates[0], _terms(options))]
        outputs.show(form, judged, is_one=True)
        ended = None
    else:
        judged, ended = _judge_several(engine, candidates, options, form)
    outputs.write_files(options.outputs, judged, is_one=is_one)
    outputs.write_page(options.report, judged)
    if options.receipt is not None and (verdict := judged[0].verdict) and verdict.receipt:
        verification.write_receipt(options.receipt, verdict.receipt)
    cleaning.begin_if_due(engine.store)
    if ended is not None:
        raise ended
    return exits.code_of_all([one.outcome for one in judged])


def _check(options: argparse.Namespace) -> None:
    """Raise UsageError unless one kind of thing was named."""
    from sandbox_engine.errors import UsageError

    others = (options.pushed, options.from_branch, options.range)
    named = (bool(options.patch), options.staged, *(one is not None for one in others))
    if sum(named) != 1:
        raise UsageError(
            "name what is to be judged, in one way",
            remedy="give one PATCH or more, `--from-branch`, `--range`, `--staged` or `--pushed`; "
            "`sandbox-engine validate --help` has examples",
        )


def _refuse_ignored(options: argparse.Namespace) -> None:
    """Raise UsageError for what has no meaning for the thing that was named."""
    from sandbox_engine.errors import UsageError

    is_hook = options.staged or options.pushed is not None
    is_range, is_branch = options.range is not None, options.from_branch is not None
    for option, is_given, has_no_meaning in (
        ("--receipt", options.receipt, is_hook or is_range),
        ("--require", options.require, is_hook),
        ("--keep", options.keep, is_hook),
        ("--explain", options.explain, is_hook or is_range or is_branch),
        ("--format", options.format, is_hook or is_range or is_branch),
        ("--base", options.base != "HEAD", is_hook or is_range),
        ("--lenient", options.lenient, not is_hook),
    ):
        if is_given and has_no_meaning:
            raise UsageError(
                f"`{option}` has no meaning for what was named",
                remedy="`sandbox-engine validate --help` says what goes with what",
            )


def _candidates(engine: Engine, options: argparse.Namespace) -> tuple[list[Candidate], bool]:
    """Return what was named, and whether it is a single patch."""
    from sandbox_engine import batch
    from sandbox_engine.errors import UsageError

    if options.range is not None:
        found = batch.commits(engine, options.range)
    elif options.from_branch is not None:
        found = batch.branch(engine, options.from_branch, options.base)
    else:
        found = []
        for name in options.patch:
            if name == "-":
                found.append(batch.Candidate("standard input", options.base, read_patch(name)))
            else:
                found += batch.patches_in(name, options.base, format=options.format)
    named = len(options.patch) == 1 or options.from_branch is not None
    is_one = named and found[0].name in (*options.patch, options.from_branch, "standard input")
    if options.receipt is not None and not is_one:
        raise UsageError(
            "a receipt is of one patch, and several were named",
            remedy="validate the one that you want a receipt of by itself",
        )
    return found, is_one


def _terms(options: argparse.Namespace) -> Terms:
    from sandbox_engine.batch import Terms

    return Terms(
        options.strategy,
        options.format,
        options.match,
        tuple(options.require),
        tuple(options.keep),
        allow_test_changes=options.allow_test_changes,
        explain=options.explain,
        use_cache=not options.no_cache,
        diff=options.report is not None,
    )


def _judge_one(engine: Engine, candidate: Candidate, terms: Terms) -> Judged:
    """Judge in this thread: an interrupt ends it here."""
    from sandbox_engine import batch
    from sandbox_engine.cli.live import observing

    with observing([candidate.name], lambda judged: None) as observer:
        observer.begun(0)
        watch = functools.partial(observer.progress, 0)
        return batch.judge(engine, candidate, terms, watch=watch)


def _judge_several(
    engine: Engine, candidates: Sequence[Candidate], options: argparse.Namespace, form: str
) -> tuple[list[Judged], BaseException | None]:
    from sandbox_engine import batch
    from sandbox_engine.cli.live import observing

    terms = _terms(options)
    names = [one.name for one in candidates]
    with observing(names, functools.partial(outputs.show_line, form)) as observer:
        done = batch.judge_all(
            candidates,
            lambda one, cancellation, watch: batch.judge(engine, one, terms, cancellation, watch),
            observer,
            jobs=options.jobs,
            fail_fast=options.fail_fast,
        )
    judged = list(done.done)
    outputs.show_rest(form, judged, len(candidates))
    return judged, done.ended
