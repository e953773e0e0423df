"""`scripts/probe` in a short form: all probes of a tier at once, and alarms that must ring."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest
from hostile import reach

ROOT = Path(__file__).parent.parent


def _load() -> Any:
    loader = SourceFileLoader("probe_script", str(ROOT / "scripts" / "probe"))
    spec = spec_from_loader("probe_script", loader)
    assert spec is not None
    module = module_from_spec(spec)
    sys.modules["probe_script"] = module
    is_written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    loader.exec_module(module)
    sys.dont_write_bytecode = is_written
    return module


script = _load()
ALARMS = {
    "branch": "`home/project/.git/refs/heads/main`",
    "work_tree": "`home/project/calc.py`",
    "home": "`home/.bashrc`",
    "tmp": "`/tmp/probe-",
    "pth": ".pth`: absent ->",
    "store": "the database of verdicts",
    "tcp": "heard on tcp 127.0.0.1",
    "udp": "heard on udp 127.0.0.1",
    "abstract": "heard on abstract",
    "unix": "docker.sock",
    "send_signal": "the engine got a signal",
    "secret": "read the home folder",
    "dotenv": "read an ignored file",
}
"""What the judging must say of a probe that nothing holds."""


@pytest.fixture(scope="module")
def world() -> Iterator[Any]:
    with script.open_world() as world:
        yield world


def _promised(tier: str) -> list[Any]:
    """Return the probes that a tier promises to hold, but for those that end their own run."""
    return [p for p in script.PROBES if p.attack not in script.EXPECTED[tier] and not p.then]


@pytest.mark.parametrize("tier", script.TIERS)
def test_a_tier_holds_what_it_promises(world: Any, tier: str) -> None:
    world.start_anew()
    warm = script.run(world, tier, ["nothing"])
    if warm.is_refused:
        pytest.skip(warm.problem)
    world.keep()
    ran, evidence = script.attack(world, tier, *_promised(tier))
    assert (ran.problem, evidence) == ("", [])
    assert ran.isolation == tier
    assert ran.reports.keys() == {probe.attack for probe in _promised(tier)}
    assert script.processes_with(world.token) == []
    places = (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"))
    assert not [place for place in places if (place / world.token).exists()]


def test_the_judging_rings(world: Any) -> None:
    world.start_anew()
    script.run(world, "none", ["nothing"])
    world.keep()
    probes = [probe for probe in script.PROBES if probe.attack in ALARMS]
    _, evidence = script.attack(world, "none", *probes)
    silent = {name for name, text in ALARMS.items() if text not in "\n".join(evidence)}
    assert not silent


def test_every_probe_has_its_hostile_function() -> None:
    used = {name for probe in script.PROBES for name in (probe.attack, *probe.then)}
    assert used | {"nothing", "imported"} == set(reach.ATTACKS)
    assert len(script.PROBES) >= 24


@pytest.mark.parametrize(
    ("tier", "attack", "state", "fault"),
    [
        ("full", "home", script.State.HELD, None),
        ("full", "home", script.State.IMPOSSIBLE, None),
        ("full", "home", script.State.ESCAPED, "escaped"),
        ("full", "home", script.State.UNCLEAR, "cannot be judged"),
        ("none", "home", script.State.ESCAPED, None),
        ("none", "home", script.State.HELD, "mute"),
        ("none", "daemon", script.State.ESCAPED, "escaped"),
        ("bare", "daemon", script.State.HELD, "mute"),
    ],
)
def test_what_breaks_a_promise(tier: str, attack: str, state: Any, fault: str | None) -> None:
    found = script.Result(tier, attack, state, "the evidence").fault
    assert (found is None) if fault is None else (fault in found)


def test_the_matrix_is_put_between_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{script.BEGIN}\n| last year's |\n{script.END}\nafter\n")
    results = [
        script.Result("full", "home", script.State.HELD),
        script.Result("full", "kernel", script.State.IMPOSSIBLE, "it takes root"),
    ]
    script.write_markdown(page, results)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "last year" not in text
    assert "| write the home folder | held |" in text
    assert "not possible here: it takes root" in text
    page.write_text("no marks")
    with pytest.raises(script.Problem, match="needs a line"):
        script.write_markdown(page, results)
