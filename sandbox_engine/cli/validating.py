"""The command that judges."""

from __future__ import annotations

import argparse
import json
import sys

from sandbox_engine.cli import exits
from sandbox_engine.cli.opening import open_engine, read_patch


def validate(options: argparse.Namespace) -> int:
    """Judge what was named."""
    from sandbox_engine import verification
    from sandbox_engine.reports import text

    if options.staged:
        return _validate_staged(options)
    if options.receipt is not None:
        verification.prepare_receipt(options.receipt)
    patch = read_patch(options.patch)
    verdict = open_engine(options).validate(
        patch,
        base=options.base,
        strategy=options.strategy,
        format=options.format,
        match=options.match,
        require=options.require,
        keep=options.keep,
        allow_test_changes=options.allow_test_changes,
        explain=options.explain,
        use_cache=not options.no_cache,
    )
    if options.output == "json":
        print(json.dumps(verdict.to_json(), indent=2))
    else:
        print(text.describe(verdict))
    if options.receipt is not None and verdict.receipt is not None:
        verification.write_receipt(options.receipt, verdict.receipt)
    return exits.code_of(verdict.outcome)


def _validate_staged(options: argparse.Namespace) -> int:
    from sandbox_engine import commit_hooks, staged
    from sandbox_engine.reports import text
    from sandbox_engine.verdict import Outcome

    # Before all else: it is what git has named, and nobody asks for it again.
    index = staged.index_of_hook()
    if commit_hooks.is_skipped():
        print(f"sandbox-engine: passed over, because {commit_hooks.SKIP} is set", file=sys.stderr)
        return exits.PASSED
    verdict = open_engine(options).validate_staged(
        index=index,
        strategy=options.strategy,
        allow_test_changes=True,
        use_cache=not options.no_cache,
    )
    if verdict is None:
        return exits.PASSED
    if options.output == "json":
        print(json.dumps(verdict.to_json(), indent=2))
    else:
        print(text.brief(verdict), file=sys.stderr)
    if options.lenient and verdict.outcome is Outcome.INCONCLUSIVE:
        return exits.PASSED
    if verdict.outcome is not Outcome.PASSED and options.output == "text":
        again = f"{commit_hooks.SKIP}=1 git commit"
        print(f"\n`{again} ...` commits all the same", file=sys.stderr)
    return exits.code_of(verdict.outcome)
