"""The programs of `scripts/`, as tests use them: loaded as modules, or run as a user runs them."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


def loaded(name: str) -> ModuleType:
    """Return a script as a module; nothing compiled is left beside it."""
    loader = importlib.machinery.SourceFileLoader(name, str(SCRIPTS / name))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    is_written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = is_written
    return module


def run(name: str, temporary: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script to its end; it leaves nothing in `temporary`, its folder for such files."""
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / name), *arguments],
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert list(temporary.iterdir()) == []
    return done
