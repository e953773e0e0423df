"""What most commands open first: the configuration, the engine, a patch that was named."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sandbox_engine.config import Config
    from sandbox_engine.engine import Engine


def open_engine(options: argparse.Namespace) -> Engine:
    """Return the engine of the repository that was named, configured as was typed."""
    from sandbox_engine.engine import Engine

    return Engine(options.repo, config=configuration(options))


def configuration(options: argparse.Namespace) -> Config:
    """Return the configuration of the repository that was named, under what was typed."""
    from sandbox_engine import git
    from sandbox_engine.config import load_config

    top = git.find_repository(options.repo).top
    config = load_config(top, file=options.config)
    python = getattr(options, "python", None)
    if python is not None:
        # A path that was typed is relative to where it was typed, not to the repository.
        python = os.path.abspath(python) if os.sep in python else python
        config = dataclasses.replace(config, python=python)
    isolation = getattr(options, "isolation", None)
    return config if isolation is None else dataclasses.replace(config, isolation=isolation)


def read_patch(name: str) -> bytes | Path:
    """Return the text of a patch, or the path of a folder; raise UsageError where it is none."""
    from sandbox_engine.errors import UsageError

    if name == "-":
        return sys.stdin.buffer.read()
    path = Path(name)
    if path.is_dir():
        return path
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"the patch `{name}` cannot be read: {error.strerror}",
            remedy="give the path of a file, or `-` for standard input",
        ) from error
