"""One engine in a process of its own, told as JSON what to do, and where to kill itself.

`python -m endurance.driver SPEC` prints a line of JSON for each validation. Functions are wrapped
here and nowhere else, so the product has no hook.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import os
import pkgutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import sandbox_engine
from sandbox_engine import Engine, Verdict
from sandbox_engine.config import load_config

_APART = frozenset({"__main__", "inside", "supervisor"})
"""Modules that are not for an engine's process."""
MOMENTS = ("enter", "entered", "inside", "leaving", "leave")


@dataclass(frozen=True, slots=True)
class Trigger:
    """Where a process kills itself: at the `call`-th call of `where` since `since` was called.

    `moment` is `enter` or `leave`; `entered` or `leaving` the block of a context manager; or
    `inside`, which is `after_ms` milliseconds after the call.
    """

    where: str
    moment: str
    call: int = 1
    since: str = ""
    after_ms: float = 0.0


def load_modules() -> list[ModuleType]:
    """Import and return every module of the engine."""
    names = [item.name for item in pkgutil.iter_modules(sandbox_engine.__path__)]
    return [
        importlib.import_module(f"sandbox_engine.{name}") for name in names if name not in _APART
    ]


def locate(where: str) -> tuple[Any, str]:
    """Return the module or the class that has `where`, and its name there.

    `where` is `module.function` or `module.Class.method` of the engine, or a function of `os` or
    `shutil`. Raise LookupError when there is no such name.
    """
    module, *path, name = where.split(".")
    try:
        is_ours = module not in ("os", "shutil")
        owner: Any = importlib.import_module(f"sandbox_engine.{module}" if is_ours else module)
        for part in path:
            owner = getattr(owner, part)
        if callable(getattr(owner, name)):
            return owner, name
    except (ImportError, AttributeError):
        pass
    raise LookupError(f"the engine has no `{where}`")


def plant(trigger: Trigger, with_children: bool) -> None:
    """Kill this process, and with `with_children` its children first, where `trigger` says."""
    modules = load_modules()
    is_armed = [not trigger.since]

    def arm(original: Callable[..., Any], *args: Any, **options: Any) -> Any:
        is_armed[0] = True
        return original(*args, **options)

    calls = [0]

    def watch(original: Callable[..., Any], *args: Any, **options: Any) -> Any:
        calls[0] += is_armed[0]
        if not is_armed[0] or calls[0] != trigger.call:
            return original(*args, **options)
        _at("enter", trigger, with_children)
        if trigger.moment == "inside":
            _die_later(trigger.after_ms / 1000, with_children)
        result = original(*args, **options)
        if inspect.isgeneratorfunction(inspect.unwrap(original)):
            return _Watched(result, trigger, with_children)
        _at("leave", trigger, with_children)
        return result

    # The arming wrapper goes around the other, so that one name may be both.
    _wrap(trigger.where, watch, modules)
    if trigger.since:
        _wrap(trigger.since, arm, modules)


def _wrap(where: str, around: Callable[..., Any], modules: Sequence[ModuleType]) -> None:
    owner, name = locate(where)
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(*args: Any, **options: Any) -> Any:
        return around(original, *args, **options)

    setattr(owner, name, wrapped)
    if not inspect.isclass(owner):
        for module in modules:
            for other, value in list(vars(module).items()):
                if value is original:
                    setattr(module, other, wrapped)


class _Watched:
    """A context manager that kills the process at the moment of `trigger`."""

    def __init__(self, inner: Any, trigger: Trigger, with_children: bool) -> None:
        self._inner = inner
        self._trigger = trigger
        self._with_children = with_children

    def __enter__(self) -> Any:
        value = self._inner.__enter__()
        _at("entered", self._trigger, self._with_children)
        return value

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> Any:
        _at("leaving", self._trigger, self._with_children)
        value = self._inner.__exit__(kind, error, trace)
        _at("leave", self._trigger, self._with_children)
        return value


def _at(moment: str, trigger: Trigger, with_children: bool) -> None:
    if trigger.moment == moment:
        _die(with_children)


def _die_later(seconds: float, with_children: bool) -> None:
    timer = threading.Timer(seconds, _die, (with_children,))
    timer.daemon = True
    timer.start()


def _die(with_children: bool) -> None:
    if with_children:
        for path in Path("/proc/self/task").glob("*/children"):
            for pid in path.read_text().split():
                os.kill(int(pid), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _validate(engine: Engine, run: Mapping[str, Any]) -> tuple[Verdict | None, dict[str, Any]]:
    try:
        verdict = engine.validate(run["patch"], base=run["base"], strategy=run["strategy"])
    except Exception as error:  # Whatever it is, a verdict was due.
        said = "".join(traceback.format_exception(error))
        return None, {"error": type(error).__name__, "text": f"{error}", "traceback": said}
    return verdict, {"verdict": verdict.to_json()}


def main(path: str) -> int:
    """Do what the specification at `path` says; see `endurance.engines`."""
    spec = json.loads(Path(path).read_text())
    if spec["trigger"]:
        plant(Trigger(**spec["trigger"]), spec["with_children"])
    started = time.monotonic()
    engine = Engine(spec["repo"], config=load_config(None, file=Path(spec["config"])))
    for run in spec["runs"]:
        verdict, record = _validate(engine, run)
        _tell({**record, "elapsed_s": time.monotonic() - started})
        if verdict is not None and spec["branch"]:
            commit = engine.promote(verdict, branch=spec["branch"], message="land")
            _tell({"commit": commit})
    return 0


def _tell(record: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
