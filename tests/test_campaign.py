"""The campaign in a short form: mixed patches, some validations killed, and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

_CAMPAIGN = Path(__file__).resolve().parent.parent / "scripts" / "campaign"
CYCLES, KILLS = 25, 5


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """The folder that the campaign takes for the machine's temporary one."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    return folder


def _start(temporary: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(_CAMPAIGN), *arguments],
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _counts(temporary: Path, *arguments: str) -> dict[str, Any]:
    with _start(temporary, *arguments, "--json") as campaign:
        stdout, stderr = campaign.communicate(timeout=300)
    assert campaign.returncode == 0, stdout + stderr
    counts: dict[str, Any] = json.loads(stdout)
    return counts


def test_nothing_is_lost_and_every_verdict_is_right(temporary: Path) -> None:
    counts = _counts(temporary, "--cycles", str(CYCLES), "--kills", str(KILLS), "--seed", "5")
    assert (counts["cycles"], counts["kills"]) == (CYCLES, KILLS)
    assert sum(counts["phases"].values()) == KILLS
    # The patches of killed validations may have no verdict; the ones that follow them must.
    assert counts["validations"] == sum(counts["outcomes"].values()) >= CYCLES
    assert (counts["wrong"], counts["lost"], counts["deviations"]) == (0, 0, [])
    assert set(counts["outcomes"]) == {"PASSED", "FAILED", "REJECTED", "INCONCLUSIVE"}
    assert list(temporary.iterdir()) == []


def test_an_interrupt_leaves_nothing_behind(temporary: Path) -> None:
    with _start(temporary, "--cycles", "500", "--kills", "50") as campaign:
        deadline = time.monotonic() + 60
        while not list(temporary.glob("*/cache/*/cache.sqlite3")) and time.monotonic() < deadline:
            time.sleep(0.05)
        campaign.send_signal(signal.SIGINT)
        _, stderr = campaign.communicate(timeout=60)
    assert campaign.returncode == 130
    assert "interrupted" in stderr
    assert list(temporary.iterdir()) == []
