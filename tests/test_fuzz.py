"""A short run of `scripts/fuzz`, its corpus replayed, and faults planted that it must find."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

from sandbox_engine.patch import FORMATS, Patch

ROOT = Path(__file__).parent.parent
CORPUS = ROOT / "tests" / "corpus"
TEXTS = sorted(path for path in CORPUS.glob("*/*") if path.is_file())


@pytest.fixture(scope="module")
def script() -> ModuleType:
    loader = SourceFileLoader("fuzz", str(ROOT / "scripts" / "fuzz"))
    spec = spec_from_loader("fuzz", loader)
    assert spec is not None
    module = module_from_spec(spec)
    sys.modules["fuzz"] = module
    is_written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    loader.exec_module(module)
    sys.dont_write_bytecode = is_written
    return module


@pytest.fixture
def fuzz(script: ModuleType) -> Iterator[ModuleType]:
    """The script as a module, with its alarm set."""
    before = signal.signal(signal.SIGPROF, script._on_alarm)
    yield script
    signal.signal(signal.SIGPROF, before)


def test_the_corpus_is_small_and_of_every_format() -> None:
    assert {path.parent.name for path in TEXTS} == set(FORMATS)
    for form in FORMATS:
        assert 12 <= sum(path.parent.name == form for path in TEXTS) <= 60
    assert sum(path.stat().st_size for path in TEXTS) < 400_000


@pytest.mark.parametrize("form", FORMATS)
def test_every_text_of_the_corpus_is_answered(fuzz: ModuleType, form: str) -> None:
    for path in TEXTS:
        if path.parent.name == form:
            _, found, _ = fuzz.examine(path.read_bytes(), form)
            assert found is None, path


def test_a_short_run_finds_nothing() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "fuzz", "all", "--seconds", "6", "--seed", "7"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f"\n{form}" in "\n" + done.stdout for form in FORMATS)


def test_the_same_seed_gives_the_same_texts(fuzz: ModuleType) -> None:
    def texts(seed: int) -> list[bytes]:
        rng = fuzz.random.Random(seed)
        return [fuzz.drawn(form, rng, [b"x\ny"], [b"z"]) for form in FORMATS for _ in range(20)]

    assert texts(1) == texts(1)
    assert texts(1) != texts(2)


def _raises(text: bytes, *, format: str | None = None) -> Patch:
    raise KeyError(text)


def _sleeps(text: bytes, *, format: str | None = None) -> Patch:
    until = time.process_time() + 5
    while time.process_time() < until:
        pass
    raise AssertionError


def _eats(text: bytes, *, format: str | None = None) -> Patch:
    raise MemoryError


@pytest.mark.parametrize(
    ("fault", "kind"), [(_raises, "KeyError"), (_sleeps, "slow"), (_eats, "memory")]
)
def test_planted_faults_are_found(
    fuzz: ModuleType, monkeypatch: pytest.MonkeyPatch, fault: object, kind: str
) -> None:
    monkeypatch.setattr(fuzz, "parse_patch", fault)
    monkeypatch.setattr(fuzz, "DEADLINE_S", 0.05)
    _, found, _ = fuzz.examine(b"x", "json")
    assert found is not None
    assert kind in found.kind


def test_a_find_is_made_small(fuzz: ModuleType) -> None:
    text = b"\n".join(b"line %d" % number for number in range(50))
    assert fuzz.minimise(text, lambda other: b"17" in other, 5) == b"17"


def test_git_s_tree_is_compared(fuzz: ModuleType, tmp_path: Path) -> None:
    git = fuzz.Git(str(tmp_path))
    (diff, *_) = fuzz.well_formed("unified")
    _, found, changed = fuzz.examine(diff, "unified")
    assert found is None
    assert not git.disagrees(diff, changed)
    assert git.disagrees(diff, {b"a.py": fuzz.File(b"other")})
