"""Tiers: which kinds of isolation this system allows, found out by trying and then remembered."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from sandbox_engine.cache import Cache
from sandbox_engine.containment import VIEW, Confinement, Layer, Mount, open_keeper
from sandbox_engine.errors import ConfigError, IsolationError, SandboxError
from sandbox_engine.isolation import bubblewrap
from sandbox_engine.isolation.view import View, shown
from sandbox_engine.keeper import landlock, seccomp
from sandbox_engine.process import Limits
from sandbox_engine.verdict import Tier
from sandbox_engine.version import VERSION

WITHOUT = "SANDBOX_ENGINE_WITHOUT"
"""Names what the engine does as if it were not there: bubblewrap, userns, landlock."""

_PROBE_LIMITS = Limits(wall_s=10, memory_bytes=2**28, disk_bytes=2**20, inodes=1000)
_OLD = "bubblewrap 0.8 or later is needed; Debian has it from 12 on, Ubuntu from 23.04 on"
_BELIEVED_S = 600.0
"""How long a trial that failed is not made again."""

_INSTALL = "`apt-get install bubblewrap` installs it; other systems call the package the same"


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a tier cannot be had here, and how to get it."""

    problem: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Survey:
    """What this system allows: an obstacle for each tier that cannot be had."""

    obstacles: Mapping[Tier, Obstacle]

    @property
    def best(self) -> Tier:
        return next(tier for tier in Tier if tier not in self.obstacles)


def choose_tier(
    wanted: Tier | None,
    cache: Cache,
    folder: Path,
    *,
    without: Mapping[Tier, Obstacle] = MappingProxyType({}),
) -> Tier:
    """Return the tier `wanted`, or the best one for None, but for those that `without` names.

    Raise IsolationError, with the remedy, when it cannot be had here. `folder` is the store's.
    """
    if wanted is Tier.NONE:
        return wanted
    found = Survey({**survey(cache, folder).obstacles, **without})
    if wanted is None:
        return found.best
    if (obstacle := found.obstacles.get(wanted)) is not None:
        raise IsolationError(
            f"the isolation `{wanted}` cannot be had here: {obstacle.problem}",
            remedy=obstacle.remedy,
        )
    return wanted


def survey(cache: Cache, folder: Path) -> Survey:
    """Return what this system allows; it is tried once, and again when something has changed.

    A trial that failed is believed for some minutes: what made it fail may have passed.
    """
    key = f"isolation {_signature()}"
    known = cache.note(key)
    if known is None or (known["obstacles"] and time.time() > known["until_s"]):
        obstacles = {Tier.FULL: _full(folder), Tier.LANDLOCK: _landlock()}
        known = {
            "until_s": time.time() + _BELIEVED_S,
            "obstacles": {
                tier: dataclasses.asdict(obstacle)
                for tier, obstacle in obstacles.items()
                if obstacle
            },
        }
        cache.set_note(key, known)
    return Survey({Tier(tier): Obstacle(**item) for tier, item in known["obstacles"].items()})


def obstacle_to(least: Tier, wanted: Tier | None, cache: Cache, folder: Path) -> Obstacle | None:
    """Return what stands in the way of a tier of at least `least` when `wanted` is asked for."""
    found = survey(cache, folder)
    chosen = found.best if wanted is None else wanted
    if not chosen.is_less_than(least):
        return found.obstacles.get(chosen)
    return found.obstacles.get(least) or Obstacle(
        f"the configuration asks for the isolation `{chosen}`", "set `isolation` to `auto`"
    )


def forget(cache: Cache) -> None:
    """Try again at the next survey: a run could not be isolated as it had been found possible."""
    cache.set_note(f"isolation {_signature()}", None)


def bubblewrap_path() -> str | None:
    """Return the path of bubblewrap, or None where there is none."""
    return None if "bubblewrap" in _without() else shutil.which("bwrap")


def _without() -> set[str]:
    names = set(os.environ.get(WITHOUT, "").replace(",", " ").split())
    if unknown := names - {"bubblewrap", "userns", "landlock"}:
        raise ConfigError(
            f"{WITHOUT} names `{min(unknown)}`, which is not known",
            remedy="it may name bubblewrap, userns and landlock",
        )
    return names


def _signature() -> str:
    """Return what decides which tiers there are, as far as it can be read without trying."""
    system = os.uname()
    parts = [
        VERSION,
        system.release,
        system.version,
        os.geteuid(),
        os.getegid(),
        sorted(_without()),
    ]
    program = bubblewrap_path()
    if program is not None:
        status = os.stat(program)
        parts += [program, status.st_size, status.st_mtime_ns, status.st_mode]
    parts += [os.readlink("/proc/self/ns/user"), *(_setting(path) for path, _ in _SWITCHES)]
    parts += _confined()
    return repr(parts)


def _setting(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _confined() -> list[str]:
    """Return what says that this process is itself confined."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return [line for line in lines if line.startswith(("Seccomp", "NoNewPrivs", "CapBnd"))]


_SWITCHES = (
    ("/proc/sys/kernel/unprivileged_userns_clone", "0"),
    ("/proc/sys/user/max_user_namespaces", "0"),
    ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1"),
)
"""Settings that refuse user namespaces, and the value with which they do."""


def _full(folder: Path) -> Obstacle | None:
    """Make a small sandbox and run a command in it; return what stood in the way."""
    for name, what in (("bubblewrap", "bubblewrap is"), ("userns", "user namespaces are")):
        if name in _without():
            return Obstacle(f"{what} switched off by {WITHOUT}", f"unset {WITHOUT}")
    program = bubblewrap_path()
    if program is None:
        return Obstacle("bubblewrap is not installed", _INSTALL)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix="probe-") as place:
            return _try_full(program, Path(place))
    except SandboxError as error:
        is_old = "Unknown option" in error.problem
        return Obstacle(error.problem, _OLD if is_old else _userns_remedy())


def _try_full(program: str, place: Path) -> Obstacle | None:
    for name in ("layer", "space", "base/gone"):
        (place / name).mkdir(parents=True)
    (place / "base" / "gone" / "file").touch()
    view = View("/run/probe")
    layer, space = str(place / "layer"), str(place / "space")
    words = bubblewrap.arguments(program, view=f"{layer}/{VIEW}", root=view.root)
    with open_keeper() as keeper:
        keeper.prepare(
            Layer(((b"new", 0o100644, b""),), (b"gone/file",), 0),
            [Mount("root", (str(place / "base"),))],
            shown(view, space=space, mounted={view.root: "root"}, readable={}),
            folders=(layer, space),
            limits=_PROBE_LIMITS,
            home={},
        )
        keeper.prepared()
        done = keeper.run(
            # A folder that is removed and made again needs more of the kernel than others.
            ["sh", "-c", "test -e new && test ! -e gone/file && rmdir gone && mkdir gone"],
            cwd=view.root,
            env={"PATH": os.defpath},
            limits=_PROBE_LIMITS,
            confinement=Confinement(words, seccomp=_program(), space=space),
            marker="probe",
        )
    if done.code == 0:
        return None
    said = (done.stderr or done.stdout).decode("utf-8", "replace").strip()
    return Obstacle(
        f"a trial in a sandbox failed (exit code {done.code}): {said[-200:]}",
        "Linux 6.6 or later has all that is needed of overlayfs and tmpfs",
    )


def _program() -> bytes:
    return seccomp.program(network=False, strict=False)


def _userns_remedy() -> str:
    for path, refusing in _SWITCHES:
        if _setting(path) == refusing:
            name = path.removeprefix("/proc/sys/").replace("/", ".")
            allowing = "10000" if name.startswith("user.") else str(1 - int(refusing))
            return f"as root, `sysctl -w {name}={allowing}` allows user namespaces"
    return (
        "user namespaces, or overlayfs in them, are refused here; in a container they need "
        "`--security-opt seccomp=unconfined --security-opt apparmor=unconfined` or the like, and "
        "a kernel of 5.11 or later"
    )


def _landlock() -> Obstacle | None:
    if "landlock" in _without():
        return Obstacle(f"landlock is switched off by {WITHOUT}", f"unset {WITHOUT}")
    if landlock.abi() < 1:
        return Obstacle(
            "the kernel has no landlock",
            "it came with Linux 5.13; `lsm=landlock,...` on the kernel's command line enables it",
        )
    return None
