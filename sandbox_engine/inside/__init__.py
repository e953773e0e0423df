"""Programs that run in the project's own interpreter, each one file of the standard library alone.

They are run by path and never imported by the engine, but for `compile_complaint`, which is the
same question asked in this process.
"""

from pathlib import Path

from sandbox_engine.inside.sandbox_engine_compile import complaint as compile_complaint

FOLDER = Path(__file__).parent
PROBE = "sandbox_engine_probe.py"
GATHER = "sandbox_engine_gather.py"
COLLECT = "sandbox_engine_collect.py"
PLAIN, REWRITTEN = "plain", "rewritten"
"""How the gatherer is to compile a source."""
COMPILE = FOLDER / "sandbox_engine_compile.py"

__all__ = [
    "COLLECT",
    "COMPILE",
    "FOLDER",
    "GATHER",
    "PLAIN",
    "PROBE",
    "REWRITTEN",
    "compile_complaint",
]
