"""Configuration: where it is looked for, and what it may say.

First found wins, key by key: arguments, `SANDBOX_ENGINE_*` variables, then one file, which is the
one named, or `sandbox-engine.toml`, or `[tool.sandbox-engine]` of `pyproject.toml`, or
`[tool:sandbox-engine]` of `setup.cfg` in the repository's work tree. It is never read from a
candidate: a patch does not choose how it is judged.
"""

from __future__ import annotations

import configparser
import dataclasses
import difflib
import os
import shlex
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sandbox_engine.errors import ConfigError, UsageError
from sandbox_engine.process import Limits
from sandbox_engine.receipt import Receipt
from sandbox_engine.recipe import (
    DEFAULT_STRATEGY,
    STRATEGIES,
    Demands,
    Policy,
    Recipe,
    Step,
    StepKind,
)
from sandbox_engine.verdict import Tier

ENVIRONMENT_PREFIX = "SANDBOX_ENGINE_"
_FIXED = "fixed:"
_OTHER_VARIABLES = ("run", "report_fd", "without")
"""Variables of ours that are no settings."""
AUTO = "auto"
"""The isolation that stands for the best tier that there is."""

_DEFAULTS = Limits()
_LIMITS = {
    "timeout_s": "wall_s",
    **{
        name: name
        for name in (
            *("cpu_s", "memory_bytes", "processes", "open_files"),
            *("disk_bytes", "inodes", "output_bytes"),
        )
    },
}
"""The settings that are limits of a run, and what `Limits` calls them."""

STRATEGY_KEYS = (
    *("steps", "description", "network", "writable"),
    *("require", "keep", "allow_test_changes", "max_new_skips"),
    *_LIMITS,
)
"""What a strategy of the project's own may set."""


@dataclass(frozen=True, slots=True)
class Config:
    """What a project, and the person who runs the engine, may set.

    `python` is the interpreter that runs the tests. `carry` are patterns of ignored files that
    tests need, `setup` are commands that make others, which reach the network if `setup_network`;
    `env` names variables that they may see; `source_roots` are the folders that hold top-level
    packages, `""` for the tree itself. `isolation` is `auto`, for the best that there is, or a
    tier; with less than `min_isolation` nothing is run. `readable` are folders that runs may read
    beside those that every run needs. What `reruns` and `max_new_skips` are, `Recipe` and
    `Demands` tell; `explain_runs` is how many runs an explanation may take. Times are in seconds.
    """

    strategy: str = DEFAULT_STRATEGY
    python: str | None = None
    carry: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    setup_network: bool = False
    env: tuple[str, ...] = ()
    source_roots: tuple[str, ...] | None = None
    syntax_exclude: tuple[str, ...] = ()
    max_file_bytes: int = 10_000_000
    isolation: str = AUTO
    min_isolation: str = Tier.NONE
    readable: tuple[str, ...] = ()
    timeout_s: float = _DEFAULTS.wall_s
    cpu_s: float = _DEFAULTS.cpu_s
    memory_bytes: int = _DEFAULTS.memory_bytes
    processes: int = _DEFAULTS.processes
    open_files: int = _DEFAULTS.open_files
    disk_bytes: int = _DEFAULTS.disk_bytes
    inodes: int = _DEFAULTS.inodes
    output_bytes: int = _DEFAULTS.output_bytes
    reruns: int = 2
    max_new_skips: float = 0.0
    explain_runs: int = 40
    xdist_after_s: float = 10.0
    slots: int = 8
    lease_wait_s: float = 600.0
    strategies: Mapping[str, Recipe] = field(default_factory=dict)

    def recipes(self) -> dict[str, Recipe]:
        """Return every strategy that can be named, the project's own over those shipped."""
        shipped = {name: self._completed(recipe) for name, recipe in STRATEGIES.items()}
        return {**shipped, **self.strategies}

    def recipe(self, name: str | None = None) -> Recipe:
        """Return the recipe called `name`, or the default one; raise UsageError without one."""
        known = self.recipes()
        name = name or self.strategy
        if name not in known:
            raise UsageError(
                f"there is no strategy `{name}`",
                remedy=f"{_nearest(name, known)}`sandbox-engine strategies` lists them all",
            )
        return known[name]

    def recipe_of(self, receipt: Receipt) -> Recipe:
        """Return the recipe that `receipt` names, as it is now, with the receipt's demands.

        Raise UsageError where the strategy is gone, or the demands are none that can be made.
        """
        try:
            demands = Demands.from_json(receipt.demands)
        except ValueError as error:
            raise UsageError(
                f"the receipt has demands that this engine does not know: {error}",
                remedy="use the engine that wrote it, or validate the patch again",
            ) from error
        return dataclasses.replace(self.recipe(receipt.strategy), demands=demands)

    @property
    def wanted_tier(self) -> Tier | None:
        """The tier that runs are to have, None for the best that there is."""
        return None if self.isolation == AUTO else Tier(self.isolation)

    @property
    def limits(self) -> Limits:
        """What a run may use where its strategy does not say otherwise."""
        return Limits(**{name: getattr(self, key) for key, name in _LIMITS.items()})

    def _completed(
        self, recipe: Recipe, limits: Limits | None = None, demands: Demands | None = None
    ) -> Recipe:
        shipped = dataclasses.replace(recipe.demands, max_new_skips=self.max_new_skips)
        return dataclasses.replace(
            recipe,
            limits=limits or self.limits,
            policy=Policy(self.max_file_bytes, self.syntax_exclude),
            demands=demands or shipped,
            reruns=self.reruns,
            xdist_after_s=self.xdist_after_s,
        )


def load_config(
    folder: Path | None, *, file: Path | None = None, environment: Mapping[str, str] | None = None
) -> Config:
    """Return the configuration of the work tree `folder`; raise ConfigError naming file and key."""
    source, settings = _find_file(folder, file)
    config = _read(settings, source)
    environment = os.environ if environment is None else environment
    return _overridden(config, environment)


@dataclass(frozen=True, slots=True)
class Setting:
    """What a setting is, and where that was said."""

    name: str
    value: Any
    source: str


def trace(
    folder: Path | None, *, file: Path | None = None, environment: Mapping[str, str] | None = None
) -> list[Setting]:
    """Return every setting of the configuration that `load_config` returns, with its source.

    Raise ConfigError as it does, and for a variable that is like a setting's and names none.
    """
    environment = os.environ if environment is None else environment
    config = load_config(folder, file=file, environment=environment)
    where, settings = _find_file(folder, file)
    in_file = {key.replace("-", "_") for key in settings}
    given = _given(environment)
    names = [item.name for item in dataclasses.fields(Config)]
    for key in given.keys() - {*names, *_OTHER_VARIABLES}:
        variable = f"{ENVIRONMENT_PREFIX}{key.upper()}"
        raise ConfigError(
            f"the variable `{variable}` names no setting",
            remedy=f"{_nearest(key, dict.fromkeys(names))}unset it, or correct its name",
        )
    return [
        Setting(
            name,
            getattr(config, name),
            f"{ENVIRONMENT_PREFIX}{name.upper()}"
            if name in given and name != "strategies"
            else (where if name in in_file else "default"),
        )
        for name in names
    ]


def _given(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what the environment sets, by the names of settings."""
    return {
        key.removeprefix(ENVIRONMENT_PREFIX).lower(): value
        for key, value in environment.items()
        if key.startswith(ENVIRONMENT_PREFIX)
    }


def _find_file(folder: Path | None, file: Path | None) -> tuple[str, dict[str, Any]]:
    if file is not None:
        if not file.is_file():
            raise ConfigError(
                f"there is no configuration file `{file}`", remedy="name an existing TOML file"
            )
        return str(file), _toml(file)
    if folder is None:
        return "defaults", {}
    if (path := folder / "sandbox-engine.toml").is_file():
        return str(path), _toml(path)
    if (path := folder / "pyproject.toml").is_file():
        tools = _toml(path).get("tool", {})
        table = tools.get("sandbox-engine") if isinstance(tools, dict) else None
        if table is not None and not isinstance(table, dict):
            raise _wrong(str(path), "tool.sandbox-engine", "a table")
        if table is not None:
            return str(path), table
    if (path := folder / "setup.cfg").is_file():
        return str(path), _setup_cfg(path)
    return "defaults", {}


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"`{path}` is not valid TOML: {error}", remedy="correct it") from error


def _setup_cfg(path: Path) -> dict[str, Any]:
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(path, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError) as error:
        raise ConfigError(f"`{path}` cannot be read: {error}", remedy="correct it") from error
    if not parser.has_section("tool:sandbox-engine"):
        return {}
    return dict(parser.items("tool:sandbox-engine"))


def _overridden(config: Config, environment: Mapping[str, str]) -> Config:
    names = {item.name for item in dataclasses.fields(Config)} - {"strategies"}
    settings = {key: value for key, value in _given(environment).items() if key in names}
    return _apply(config, settings, f"the environment ({ENVIRONMENT_PREFIX}*)")


def _read(settings: dict[str, Any], source: str) -> Config:
    own = settings.pop("strategies", {})
    config = _apply(Config(), settings, source)
    if not isinstance(own, dict):
        raise _wrong(source, "strategies", "a table of strategies")
    recipes = {name: _strategy(name, table, config, source) for name, table in own.items()}
    return dataclasses.replace(config, strategies=recipes)


def _apply(config: Config, settings: Mapping[str, Any], source: str) -> Config:
    kinds = {item.name: str(item.type) for item in dataclasses.fields(Config)}
    del kinds["strategies"]
    values = {}
    for raw, value in settings.items():
        key = raw.replace("-", "_")
        if key not in kinds:
            raise ConfigError(
                f"`{source}` sets `{raw}`, which is no setting",
                remedy=f"{_nearest(key, kinds)}the README lists the settings",
            )
        values[key] = _typed(source, key, kinds[key], value)
    for name, allowed in (("isolation", (AUTO, *Tier)), ("min_isolation", tuple(Tier))):
        if values.get(name, allowed[0]) not in allowed:
            raise _wrong(source, name, f"one of {', '.join(allowed)}")
    for command in values.get("setup") or ():
        if not _words(source, "setup", command):
            raise _wrong(source, "setup", "a list of commands")
    for name in ("readable", "writable"):
        _refuse_relative(source, name, values.get(name) or ())
    for folder in values.get("source_roots") or ():
        if folder.startswith("/") or ".." in folder.split("/"):
            raise _wrong(source, "source_roots", "folders of the repository, relative to its top")
    return dataclasses.replace(config, **values)


def _typed(source: str, key: str, kind: str, value: Any) -> Any:
    if kind.startswith("tuple"):
        return _texts(source, key, value)
    if kind == "bool":
        words = {"true": True, "false": False, "1": True, "0": False}
        return _flag(source, key, words.get(value.lower()) if isinstance(value, str) else value)
    if kind.startswith("str"):
        if isinstance(value, str) and value:
            return value
        raise _wrong(source, key, "a text")
    return _number(source, key, kind, value)


def _texts(source: str, key: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(line.strip() for line in value.replace(",", "\n").splitlines() if line.strip())
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise _wrong(source, key, "a list of texts")


MAY_BE_ZERO = ("reruns", "max_new_skips")


def _number(source: str, key: str, kind: str, value: Any) -> int | float:
    wanted: type[int] | type[float] = int if kind == "int" else float
    is_cut = wanted is int and isinstance(value, float) and not value.is_integer()
    if isinstance(value, str | int | float) and not isinstance(value, bool) and not is_cut:
        try:
            number = wanted(value)
        except (ValueError, OverflowError):
            number = -1
        least_is_met = number >= 0 if key in MAY_BE_ZERO else number > 0
        if least_is_met and number != float("inf") and not (key == "max_new_skips" and number > 1):
            return number
    if key == "max_new_skips":
        raise _wrong(source, key, "a share from 0 to 1")
    if key in MAY_BE_ZERO:
        raise _wrong(source, key, "a whole number, 0 or more")
    raise _wrong(source, key, "a positive whole number" if kind == "int" else "a positive number")


def _strategy(name: str, table: Any, config: Config, source: str) -> Recipe:
    key = f"strategies.{name}"
    if not isinstance(table, dict) or "steps" not in table:
        raise _wrong(source, key, "a table with `steps`")
    for unknown in table.keys() - set(STRATEGY_KEYS):
        raise ConfigError(
            f"`{source}` sets `{key}.{unknown}`, which is no setting of a strategy",
            remedy=f"a strategy has {', '.join(STRATEGY_KEYS)}",
        )
    limits = _apply(config, {k: v for k, v in table.items() if k in _LIMITS}, source).limits
    network = _flag(source, f"{key}.network", table.get("network", False))
    writable = _texts(source, f"{key}.writable", table.get("writable", []))
    _refuse_relative(source, f"{key}.writable", writable)
    steps = table["steps"]
    if not isinstance(steps, list):
        raise _wrong(source, f"{key}.steps", "a list of steps")
    recipe = Recipe(
        name,
        tuple(_step(step, f"{key}.steps", source) for step in steps),
        str(table.get("description", "")),
        network=network,
        writable=writable,
    )
    return config._completed(recipe, limits, _demands(table, key, config, source))


def _demands(table: Mapping[str, Any], key: str, config: Config, source: str) -> Demands:
    share = {k: v for k, v in table.items() if k == "max_new_skips"}
    return Demands(
        required(
            _texts(source, f"{key}.require", table.get("require", [])), f"`{source}`, {key}: "
        ),
        _texts(source, f"{key}.keep", table.get("keep", [])),
        _flag(source, f"{key}.allow_test_changes", table.get("allow_test_changes", False)),
        _apply(config, share, source).max_new_skips,
    )


def required(words: Iterable[str], where: str = "") -> tuple[str, ...]:
    """Return the node ids of `fixed:NODEID` words; raise UsageError for another word."""
    for word in words:
        if not word.removeprefix(_FIXED) or not word.startswith(_FIXED):
            raise UsageError(
                f"{where}`{word}` is nothing that can be required",
                remedy=f"write `{_FIXED}` and the node id of a test that fails without the patch",
            )
    return tuple(word.removeprefix(_FIXED) for word in words)


def _flag(source: str, key: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise _wrong(source, key, "true or false")


def _refuse_relative(source: str, key: str, folders: tuple[str, ...]) -> None:
    for folder in folders:
        if not os.path.isabs(folder):
            raise _wrong(source, key, f"absolute paths; `{folder}` is none")


def _step(raw: Any, key: str, source: str) -> Step:
    """Read `"pytest"`, or `{pytest = ["-x"]}`, or `{command = "ruff check ."}`."""
    name: Any = raw
    args: Any = []
    if isinstance(raw, dict) and len(raw) == 1:
        ((name, args),) = raw.items()
    kinds = {str(kind): kind for kind in StepKind}
    if not isinstance(name, str) or name not in kinds:
        raise _wrong(source, key, f"a list of steps out of {', '.join(kinds)}; `{raw}` is none")
    step = Step(kinds[name], _words(source, f"{key}.{name}", args))
    if step.kind is StepKind.COMMAND and not step.args:
        raise _wrong(source, f"{key}.command", "a command with its arguments")
    if step.kind in (StepKind.SYNTAX, StepKind.NEW_TESTS) and step.args:
        raise _wrong(source, f"{key}.{name}", "without arguments")
    return step


def _words(source: str, key: str, value: Any) -> tuple[str, ...]:
    try:
        return _texts(source, key, shlex.split(value) if isinstance(value, str) else value)
    except ValueError as error:
        raise _wrong(source, key, f"words as a shell reads them ({error})") from error


def _wrong(source: str, key: str, wanted: str) -> ConfigError:
    return ConfigError(f"`{source}`: `{key}` must be {wanted}", remedy="correct the setting")


def _nearest(name: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5) or difflib.get_close_matches(
        name.upper(), known, n=1, cutoff=0.5
    )
    return f"did you mean `{near[0]}`? " if near else ""
