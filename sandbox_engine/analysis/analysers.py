"""Analysers: pure functions from the bytes of one file to a JSON value, each with a version.

A result is kept by blob, name and version, so a function must look at nothing but the bytes it is
given, and whoever changes what it returns changes its version. What parses Python depends on the
Python that parses it, which is therefore a part of the version.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sandbox_engine.errors import UsageError

if TYPE_CHECKING:
    from typing import TypeAlias

    Function: TypeAlias = Callable[[bytes], Any]

MAX_BYTES = 2 * 2**20
"""A larger file is not parsed: it is generated, and what it would cost is not known."""

_PYTHON = f"python-{sys.version_info.major}.{sys.version_info.minor}"


class NotAnalysableError(Exception):
    """What an analyser raises for bytes that it can say nothing about; the text is the reason."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """What is known of a file that could not be analysed: why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Analyser:
    """A function that is run on the bytes of each file whose name ends with one of `suffixes`.

    It returns a JSON value, or raises NotAnalysableError. `function` is the function itself, or
    where it is found as `module:name`; one that other processes cannot import, such as a lambda
    or one of a script, is run in this process.
    """

    name: str
    version: str
    function: Function | str
    suffixes: tuple[str, ...] = (".py",)

    @property
    def reference(self) -> str | None:
        """Where another process finds the function, as `module:name`; None where it cannot."""
        if isinstance(self.function, str):
            return self.function
        module = getattr(self.function, "__module__", "__main__")
        name = getattr(self.function, "__qualname__", "<lambda>")
        found: Any = sys.modules.get(module)
        for part in name.split("."):
            found = getattr(found, part, None)
        is_importable = module != "__main__" and found is self.function
        return f"{module}:{name}" if is_importable else None

    def concerns(self, path: str) -> bool:
        """Tell whether the file at `path` is one of those that this is for."""
        return path.endswith(self.suffixes)


def resolve(wanted: Sequence[str | Analyser]) -> tuple[Analyser, ...]:
    """Return the analysers that are named or given; raise UsageError for an unknown name."""
    known = _shipped()
    found = []
    for one in wanted:
        if isinstance(one, Analyser):
            found.append(one)
        elif one in known:
            found.append(known[one])
        else:
            raise UsageError(
                f"there is no analyser called `{one}`",
                remedy=f"name one of {', '.join(known)}, or give an `Analyser` of your own",
            )
    if len({one.name for one in found}) != len(found):
        raise UsageError(
            "two of the analysers have the same name", remedy="give each a name of its own"
        )
    return tuple(found)


def _shipped() -> dict[str, Analyser]:
    import radon

    home = f"{__package__}"
    return {
        "skeleton": Analyser("skeleton", f"1 {_PYTHON}", f"{home}.skeleton:skeleton_of"),
        "metrics": Analyser(
            "metrics", f"1 radon-{radon.__version__} {_PYTHON}", f"{home}.metrics:metrics_of"
        ),
    }
