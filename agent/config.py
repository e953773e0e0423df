"""The agent's configuration: what `hephaestus_config.json` may say, as frozen values.

A file of the original's is read as it is. The values are checked when they are made, and all that
is wrong with a file is told at once: a person corrects a file once, not key by key. An unknown
key is a mistake, because a setting that is not read is one that does not protect.
`docs/agent-config.md` describes each key.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import re
import typing
import urllib.parse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
)
from pydantic import StrictBool as Flag
from pydantic.dataclasses import dataclass

from agent import strict_json
from agent.config_findings import findings_of, mistake, suggestion
from sandbox_engine import ConfigError, Finding

FILE_NAME = "hephaestus_config.json"
EXAMPLE = Path(__file__).with_name("example_config.json")
_TEST_FIX = "TEST_FIX_STRATEGY"
_VALUE = ConfigDict(extra="forbid", allow_inf_nan=False)


class Task(enum.StrEnum):
    """What a model is asked for."""

    ARCHITECT = "architect"
    MAESTRO = "maestro"
    OBJECTIVE = "objective"
    CAPACITATION = "capacitation"
    ERROR_ANALYSIS = "error_analysis"
    COMMIT_MESSAGE = "commit_message"


class StepName(enum.StrEnum):
    """What a strategy may do; `RUN_PYTEST` is another name of `RUN_PYTEST_VALIDATION`."""

    VALIDATE_SYNTAX = "validate_syntax"
    VALIDATE_JSON_SYNTAX = "validate_json_syntax"
    RUN_PYTEST_VALIDATION = "run_pytest_validation"
    RUN_PYTEST = "run_pytest"
    RUN_PYTEST_NEW_FILE_VALIDATION = "run_pytest_new_file_validation"
    RUN_BENCHMARK_VALIDATION = "run_benchmark_validation"
    CHECK_FILE_EXISTENCE = "check_file_existence"
    APPLY_PATCHES_TO_DISK = "apply_patches_to_disk"


class SanityStep(enum.StrEnum):
    """What is looked at once more after a promotion."""

    RUN_PYTEST = "run_pytest"
    CHECK_FILE_EXISTENCE = "check_file_existence"
    SKIP_SANITY_CHECK = "skip_sanity_check"
    RUN_PYTEST_NEW_FILE_VALIDATION = "run_pytest_new_file_validation"


def _url(text: str) -> str:
    try:
        parts = urllib.parse.urlsplit(text)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    if not is_url or parts.query or parts.fragment:
        raise mistake("an address as `https://host/v1`")
    if parts.username or parts.password:
        raise mistake("an address without a user or a password")
    return text.rstrip("/")


def _variable(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text):
        raise mistake("the name of a variable of the environment, never the key itself")
    return text


def _path(value: Any) -> Path:
    if isinstance(value, str | Path) and str(value) not in ("", ".") and "\0" not in str(value):
        return Path(value)
    raise mistake("the path of a file")


def _level(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


def _pair(value: Any) -> Any:
    return {"primary": value} if isinstance(value, str) else value


Text = Annotated[str, Field(strict=True, min_length=1)]
FilePath = Annotated[Path, BeforeValidator(_path)]
Url = Annotated[Text, AfterValidator(_url)]
Variable = Annotated[Text, AfterValidator(_variable)]
Count = Annotated[int, Field(strict=True, ge=1)]
Seconds = Annotated[float, Field(strict=True, gt=0)]
Delay = Annotated[float, Field(strict=True, ge=0)]
Level = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(_level)]


@dataclass(frozen=True, slots=True, config=_VALUE)
class Model:
    """A model as its endpoint knows it, and the one that is asked when it fails."""

    primary: Text
    fallback: Text | None = None


Choice = Annotated[Model, BeforeValidator(_pair)]


@dataclass(frozen=True, slots=True, config=_VALUE)
class Models:
    """Which model does what; a heavy one is asked only for what it is named for."""

    architect_default: Choice
    maestro_default: Choice | None = None
    objective_generator: Choice | None = None
    capacitation_generator: Choice | None = None
    error_analyzer: Choice | None = None
    light: Choice | None = None
    tasks: Mapping[Task, Choice] = Field(default_factory=dict)

    def of(self, task: Task) -> Model:
        """Return the model for `task`: the one named for it, else the light one, else the first."""
        named = {
            Task.ARCHITECT: self.architect_default,
            Task.MAESTRO: self.maestro_default,
            Task.OBJECTIVE: self.objective_generator,
            Task.CAPACITATION: self.capacitation_generator,
            Task.ERROR_ANALYSIS: self.error_analyzer,
        }
        return self.tasks.get(task) or named.get(task) or self.light or self.architect_default


@dataclass(frozen=True, slots=True, config=_VALUE)
class Thresholds:
    """Above which sizes, in lines, and which complexity code asks for an objective."""

    file_loc: Count = 300
    function_loc: Count = 50
    function_cc: Count = 10


@dataclass(frozen=True, slots=True, config=_VALUE)
class Strategy:
    """How a plan is judged; without `apply_patches_to_disk` it is judged and not promoted."""

    steps: tuple[StepName, ...]
    sanity_check_step: SanityStep = SanityStep.SKIP_SANITY_CHECK

    @property
    def promotes(self) -> bool:
        return StepName.APPLY_PATCHES_TO_DISK in self.steps


@dataclass(frozen=True, slots=True, config=_VALUE)
class Budgets:
    """What one objective may cost before it is given up."""

    attempts: Count = 3
    tokens: Count = 200_000
    seconds: Seconds = 900.0


@dataclass(frozen=True, slots=True, config=_VALUE)
class LogSettings:
    """How much of what happens goes into which file; None is no file."""

    level: Level = "INFO"
    file: FilePath | None = Path("hephaestus.log")


@dataclass(frozen=True, slots=True, config=_VALUE)
class CacheSettings:
    """Whether answers of models are kept, and how many."""

    enabled: Flag = True
    entries: Count = 1000


def _shipped() -> dict[str, Strategy]:
    syntax, apply = StepName.VALIDATE_SYNTAX, StepName.APPLY_PATCHES_TO_DISK
    json, pytest = StepName.VALIDATE_JSON_SYNTAX, StepName.RUN_PYTEST_VALIDATION
    new_file, exists = StepName.RUN_PYTEST_NEW_FILE_VALIDATION, StepName.CHECK_FILE_EXISTENCE
    benchmark = StepName.RUN_BENCHMARK_VALIDATION
    sane = SanityStep
    return {
        "SYNTAX_ONLY": Strategy((syntax, apply)),
        "BENCHMARK_ONLY": Strategy((syntax, benchmark, apply)),
        "SYNTAX_AND_PYTEST": Strategy((syntax, pytest, apply), sane.RUN_PYTEST),
        "FULL_VALIDATION": Strategy((syntax, pytest, benchmark, apply), sane.RUN_PYTEST),
        "DOC_UPDATE_STRATEGY": Strategy((exists, apply), sane.CHECK_FILE_EXISTENCE),
        "CONFIG_UPDATE_STRATEGY": Strategy((json, apply), sane.CHECK_FILE_EXISTENCE),
        "DISCARD": Strategy(()),
        _TEST_FIX: Strategy((syntax, pytest, apply), sane.RUN_PYTEST),
        "CREATE_NEW_TEST_FILE_STRATEGY": Strategy(
            (syntax, new_file, apply), sane.RUN_PYTEST_NEW_FILE_VALIDATION
        ),
        "AUTO_CORRECTION_STRATEGY": Strategy((syntax, pytest, apply), sane.RUN_PYTEST),
    }


STRATEGIES: Mapping[str, Strategy] = _shipped()
"""The strategies of a configuration that names none."""


@dataclass(frozen=True, slots=True, config=_VALUE)
class Config:
    """All settings. `load_config` makes the paths absolute; times are in seconds.

    `validation_strategies` are all that there are: a file that has the key replaces those shipped.
    `test_fix_strategy_key` is None where it is not set and there is no `TEST_FIX_STRATEGY`.
    `api_key_variable` is None for an endpoint that asks for no key. `candidates` are plans that
    are asked for and judged at once, of which the first that passes is taken.
    """

    models: Models
    code_analysis_thresholds: Thresholds = Thresholds()
    validation_strategies: Annotated[Mapping[Text, Strategy], Field(min_length=1)] = Field(
        default_factory=_shipped
    )
    test_fix_strategy_key: Text | None = None
    memory_file_path: FilePath = Path("HEPHAESTUS_MEMORY.json")
    memory_backend: Literal["json", "sqlite"] = "json"
    evolution_log_path: FilePath = Path("evolution_log.csv")
    cycles_path: FilePath = Path("cycles")
    degenerative_loop_threshold: Count = 3
    cycle_delay_seconds: Delay = 1.0
    continuous_mode_delay_seconds: Delay = 5.0
    base_url: Url = "https://openrouter.ai/api/v1"
    api_key_variable: Variable | None = "OPENROUTER_API_KEY"
    budgets: Budgets = Budgets()
    candidates: Count = 1
    allow_unisolated: Flag = False
    log: LogSettings = LogSettings()
    llm_cache: CacheSettings = CacheSettings()
    commit_message_by_model: Flag = False

    @property
    def test_fix_strategy(self) -> str | None:
        """The key of the strategy that repairs tests, None where there is none."""
        if self.test_fix_strategy_key is not None:
            return self.test_fix_strategy_key
        return _TEST_FIX if _TEST_FIX in self.validation_strategies else None


def load_config(path: Path) -> Config:
    """Return what the file at `path` says; raise ConfigError with every mistake that is in it.

    Paths in the file are relative to the folder it is in.
    """
    config, findings = _read(path)
    if config is None or findings:
        count = "a mistake" if len(findings) == 1 else f"{len(findings)} mistakes"
        listed = "".join(f"\n  {line}" for finding in findings for line in _lines(finding))
        raise ConfigError(
            f"`{path}` has {count}:{listed}",
            remedy="correct the file; `docs/agent-config.md` describes every key",
        )
    return _anchored(config, path.absolute().parent)


def check_config(path: Path) -> tuple[Finding, ...]:
    """Return every mistake in the file at `path`; raise ConfigError where it cannot be read."""
    return _read(path)[1]


@functools.cache
def known_keys() -> tuple[str, ...]:
    """Return the path of every key that a file may have; `*` stands for a name of one's own."""
    return tuple(_keys_of(Config, ""))


def _keys_of(kind: Any, prefix: str) -> Iterable[str]:
    for name, hint in typing.get_type_hints(kind).items():
        key = f"{prefix}{name}"
        yield key
        part = _value_in(hint)
        if part is None:
            continue
        if "Mapping" not in str(hint):
            yield from _keys_of(part, f"{key}.")
            continue
        for entry in Task if part is Model else "*":
            yield f"{key}.{entry}"
            yield from _keys_of(part, f"{key}.{entry}.")


def _value_in(hint: Any) -> Any:
    """Return the kind of value that `hint` speaks of, in a mapping or beside None, or None."""
    if dataclasses.is_dataclass(hint):
        return hint
    return next(filter(None, map(_value_in, typing.get_args(hint))), None)


def _read(path: Path) -> tuple[Config | None, tuple[Finding, ...]]:
    try:
        parsed = strict_json.read_json(path)
    except OSError as error:
        raise ConfigError(
            f"`{path}` cannot be read: {error.strerror}",
            remedy=f"name an existing file; `{EXAMPLE}` is one to start from",
        ) from error
    if parsed.is_damaged:
        return None, parsed.findings
    if not isinstance(parsed.value, dict):
        wrong = Finding("json", "is no JSON object", str(path), hint='write `{"models": {...}}`')
        return None, (wrong,)
    findings = parsed.findings + tuple(_contradictions(parsed.value, str(path)))
    try:
        return TypeAdapter(Config).validate_python(parsed.value), findings
    except ValidationError as error:
        return None, findings + findings_of(error, known_keys(), str(path))


def _contradictions(raw: Mapping[str, Any], path: str) -> Iterable[Finding]:
    key, own = raw.get("test_fix_strategy_key"), raw.get("validation_strategies")
    known = list(own if isinstance(own, dict) else STRATEGIES)
    if isinstance(key, str) and key not in known:
        yield Finding(
            "unknown-strategy",
            f"`test_fix_strategy_key` is `{key}`, which is none of `validation_strategies`",
            path,
            hint=suggestion(key, known) or f"there are {', '.join(known)}",
        )


def _anchored(config: Config, folder: Path) -> Config:
    file = config.log.file
    return dataclasses.replace(
        config,
        memory_file_path=folder / config.memory_file_path,
        evolution_log_path=folder / config.evolution_log_path,
        cycles_path=folder / config.cycles_path,
        log=LogSettings(config.log.level, None if file is None else folder / file),
    )


def _lines(finding: Finding) -> Iterable[str]:
    place = "" if finding.line is None else f"line {finding.line}"
    if finding.column is not None:
        place += f", column {finding.column}"
    yield f"{place}: {finding.message}" if place else finding.message
    if finding.hint:
        yield f"  {finding.hint}"
