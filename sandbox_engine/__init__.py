"""Is this patch good? Verdicts on patches that can be trusted, with the repository untouched.

from sandbox_engine import Engine

engine = Engine("path/to/repository")
verdict = engine.validate(patch)
if verdict.outcome is Outcome.PASSED:
    engine.promote(verdict, branch="main")
"""

from sandbox_engine.config import Config, load_config
from sandbox_engine.engine import Engine
from sandbox_engine.errors import (
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
from sandbox_engine.receipt import Receipt
from sandbox_engine.recipe import Demands, Recipe, Step, StepKind
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
from sandbox_engine.version import VERSION as __version__

__all__ = [
    "AtomRecord",
    "Author",
    "Category",
    "Cause",
    "CommandMissingError",
    "Config",
    "ConfigError",
    "Culprit",
    "Demands",
    "DiskFullError",
    "EditRecord",
    "Engine",
    "Explanation",
    "Finding",
    "GitError",
    "IsolationError",
    "LocalChangesError",
    "NoteError",
    "Outcome",
    "PatchError",
    "PromotionError",
    "Receipt",
    "Recipe",
    "RepositoryError",
    "SandboxBusyError",
    "SandboxError",
    "StaleBaseError",
    "Step",
    "StepKind",
    "StepResult",
    "TestOutcome",
    "TestRecord",
    "Tier",
    "UsageError",
    "Verdict",
    "__version__",
    "load_config",
]
