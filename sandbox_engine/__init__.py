"""Is this patch good? Verdicts on patches that can be trusted, with the repository untouched.

from sandbox_engine import Engine

engine = Engine("path/to/repository")
verdict = engine.validate(patch)
if verdict.outcome is Outcome.PASSED:
    engine.promote(verdict, branch="main")

A name is imported when it is first used, so that a process which needs little of it starts soon.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sandbox_engine.version import VERSION as __version__

if TYPE_CHECKING:
    from sandbox_engine.analysis.analysers import Analyser, NotAnalysableError, Unknown
    from sandbox_engine.analysis.comparison import (
        FileChange,
        FileSize,
        FunctionChange,
        FunctionSize,
        analyse_contents,
        compare_revision,
    )
    from sandbox_engine.analysis.computing import FileAnalysis
    from sandbox_engine.analysis.revisions import analyse_revision, read_revision
    from sandbox_engine.analysis.scanner import Effort, Scan, Scanner, analyse
    from sandbox_engine.cancellation import Cancellation
    from sandbox_engine.config import Config, load_config
    from sandbox_engine.engine import NOTHING, Engine
    from sandbox_engine.errors import (
        CancelledError,
        CommandMissingError,
        ConfigError,
        DiskFullError,
        GitError,
        IsolationError,
        LocalChangesError,
        NoteError,
        PatchError,
        PromotionError,
        RepositoryError,
        SandboxBusyError,
        SandboxError,
        StaleBaseError,
        UsageError,
    )
    from sandbox_engine.isolation import Obstacle
    from sandbox_engine.previews import NewFile, preview
    from sandbox_engine.progress import Progress
    from sandbox_engine.receipt import Receipt
    from sandbox_engine.recipe import Demands, Recipe, Step, StepKind
    from sandbox_engine.reports.text import describe
    from sandbox_engine.verdict import (
        AtomRecord,
        Author,
        Category,
        Cause,
        Culprit,
        EditRecord,
        Explanation,
        Finding,
        Outcome,
        StepResult,
        TestOutcome,
        TestRecord,
        Tier,
        Verdict,
    )

__all__ = [
    "NOTHING",
    "Analyser",
    "AtomRecord",
    "Author",
    "Cancellation",
    "CancelledError",
    "Category",
    "Cause",
    "CommandMissingError",
    "Config",
    "ConfigError",
    "Culprit",
    "Demands",
    "DiskFullError",
    "EditRecord",
    "Effort",
    "Engine",
    "Explanation",
    "FileAnalysis",
    "FileChange",
    "FileSize",
    "Finding",
    "FunctionChange",
    "FunctionSize",
    "GitError",
    "IsolationError",
    "LocalChangesError",
    "NewFile",
    "NotAnalysableError",
    "NoteError",
    "Obstacle",
    "Outcome",
    "PatchError",
    "Progress",
    "PromotionError",
    "Receipt",
    "Recipe",
    "RepositoryError",
    "SandboxBusyError",
    "SandboxError",
    "Scan",
    "Scanner",
    "StaleBaseError",
    "Step",
    "StepKind",
    "StepResult",
    "TestOutcome",
    "TestRecord",
    "Tier",
    "Unknown",
    "UsageError",
    "Verdict",
    "__version__",
    "analyse",
    "analyse_contents",
    "analyse_revision",
    "compare_revision",
    "describe",
    "load_config",
    "preview",
    "read_revision",
]

_HOMES = (
    *(
        "verdict",
        "receipt",
        "errors",
        "recipe",
        "config",
        "cancellation",
        "progress",
        "reports.text",
    ),
    *("analysis.analysers", "analysis.computing", "analysis.scanner"),
    *("previews", "isolation", "engine", "analysis.comparison", "analysis.revisions"),
)
"""The modules that the names come from, the cheapest to import first."""


def __getattr__(name: str) -> Any:
    if name in __all__:
        for home in _HOMES:
            module = importlib.import_module(f"{__name__}.{home}")
            if hasattr(module, name):
                return globals().setdefault(name, getattr(module, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
