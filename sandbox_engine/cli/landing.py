"""Commands about what passed: does its receipt hold, and may it land."""

from __future__ import annotations

import argparse
import dataclasses
import json

from sandbox_engine.cli import exits
from sandbox_engine.cli.opening import configuration, open_engine


def verify(options: argparse.Namespace) -> int:
    """Tell whether a receipt holds, claim by claim."""
    from sandbox_engine import verification
    from sandbox_engine.reports import text
    from sandbox_engine.verification import Standing

    receipt = verification.read_receipt(options.receipt)
    claims = verification.verify(receipt, options.repo, configuration(options))
    standing = verification.worst(claims)
    if options.output == "json":
        record = {
            "standing": standing,
            "claims": [dataclasses.asdict(claim) for claim in claims],
        }
        print(json.dumps(record, indent=2))
    else:
        for claim in claims:
            mark = "ok  " if claim.standing is Standing.HOLDS else "BAD "
            print(text.safe(f"{mark} {claim.name}: {claim.detail}"))
        print(text.safe(verification.summary(claims)))
    return {
        Standing.HOLDS: exits.PASSED,
        Standing.FALSE: exits.REFUSED,
        Standing.CHANGED: exits.UNJUDGED,
    }[standing]


def promote(options: argparse.Namespace) -> int:
    """Land what a receipt is of."""
    from sandbox_engine.errors import NoteError
    from sandbox_engine.verification import read_receipt

    receipt = read_receipt(options.receipt)
    engine = open_engine(options)
    try:
        commit = engine.promote(
            engine.verdict_of(receipt),
            branch=options.branch,
            message=options.message,
            hooks=not options.no_hooks,
            note=options.note,
        )
    except NoteError as error:
        print(error.commit)
        raise
    print(commit)
    return exits.PASSED
