"""The page about what was done: its numbers, and that it opens in a browser."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from browser import browse, needs_browser, pixels

from agent import evolution_log
from agent.chart import COLORS, Bar, stacked
from agent.config import Config, Models
from agent.cycles import Attempt, Cycle, Cycles, Ending
from agent.memory import Memory
from agent.report import write_report
from agent.utils.ledger import Usage
from sandbox_engine import UsageError

_ROOT = Path(__file__).parent.parent


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(
        models=Models(architect_default="m"),
        memory_file_path=tmp_path / "memory.json",
        evolution_log_path=tmp_path / "log.csv",
        cycles_path=tmp_path / "cycles",
    )


def page(config: Config, tmp_path: Path) -> str:
    path = tmp_path / "report.html"
    write_report(config, path)
    return path.read_text()


def test_without_a_cycle_it_says_so(config: Config, tmp_path: Path) -> None:
    text = page(config, tmp_path)
    assert "No cycle has been run yet" in text and "<svg" not in text


def test_everything_that_is_said_is_escaped(config: Config, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"' & \udcff"
    row = evolution_log.Cycle(1, evil, False, 1.0, "then", "now", strategy=evil, reason=evil)
    evolution_log.append(config.evolution_log_path, row)
    cycle = Cycle(1, "then", evil, diff=f"+{evil}\n-{evil}")
    cycle.attempts = [Attempt(0, 1, evil, evil, problem=evil)]
    cycle.end(Ending.FAILURE, evil)
    Cycles(config.cycles_path).save(cycle)
    with Memory(config.memory_file_path) as memory:
        memory.add_capability(evil)
    text = page(config, tmp_path)
    assert "<script" not in text and text.count("&lt;script&gt;") >= 8
    assert "http" not in text.replace("http-equiv", "")


def test_its_numbers_are_those_of_the_log(config: Config, tmp_path: Path) -> None:
    for number in range(1, 71):
        evolution_log.append(
            config.evolution_log_path,
            evolution_log.Cycle(
                number,
                f"objective {number}",
                number % 2 == 0,
                2.0,
                f"time {number}",
                "",
                phases=(("architect", 0.5), ("validation", 1.25)),
                llm_calls=3,
                llm_cache_hits=1,
                llm_tokens=1000,
            ),
        )
        cycle = Cycle(number, f"time {number}", usage=Usage(saved_tokens=10, saved_usd=0.5))
        Cycles(config.cycles_path).save(cycle)
    text = page(config, tmp_path)
    facts = dict(re.findall(r'<dd id="([a-z-]+)">([^<]*)</dd>', text))
    assert facts == {
        "cycles": "70",
        "success": "35 of 70 (50%)",
        "time": "140.0 s",
        "questions-to-models": "210",
        "answered-by-the-cache": "70",
        "tokens": "70,000",
        "saved-by-the-cache": "700 tokens, 0.0 s, 35.00 USD",
    }
    drawn = Counter(re.findall(r'data-phase="(\w+)"', text))
    assert drawn == {"architect": 60, "validation": 60, "other": 60}
    assert re.search(r"validation</td><td[^>]*>87.50</td><td[^>]*>62%</td><td[^>]*>1.25<", text)
    assert text.count("<details id=") == 70 and "of the last 60" in text


def test_rows_of_the_original_are_told_too(config: Config, tmp_path: Path) -> None:
    config.evolution_log_path.write_text(
        "ciclo,objetivo,status,tempo_gasto_segundos,score_qualidade,estrategia_usada,"
        "timestamp_inicio,timestamp_fim,razao_status,contexto_status\n"
        "1,Old,sucesso,3.5,,SYNTAX_ONLY,a,b,ok,\n2,Odd,falha,nan,,,,,,\n"
    )
    text = page(config, tmp_path)
    assert 'data-phase="other" data-seconds="3.500"' in text and "Old" in text
    assert "1 of 2 (50%)" in text


def test_bars_are_as_long_as_what_they_show() -> None:
    bars = [
        Bar("1", {"objective": 1.0, "validation": 3.0}, 4.0, True),
        Bar("2", {"validation": 1.0}, 2.0, False),
        Bar("3", {"validation": 2.0}, 1.0, True),
    ]
    found = re.findall(r'width="([\d.]+)" height="16" fill="(#\w+)"', stacked(bars))
    widths = [(float(width), color) for width, color in found]
    unit = widths[0][0]
    wanted = [
        *(("objective", 1), ("validation", 3), ("validation", 1), ("other", 1)),
        ("validation", 2),
    ]
    assert [(round(width / unit, 2), color) for width, color in widths] == [
        (length, COLORS[phase]) for phase, length in wanted
    ]
    assert stacked([]).endswith("</svg>")


def test_what_cannot_be_written_is_told(config: Config, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="cannot be written") as error:
        write_report(config, tmp_path / "gone" / "report.html")
    assert not isinstance(error.value, UsageError)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the demo has run three cycles."""
    folder = tmp_path_factory.mktemp("demo")
    done = subprocess.run(
        [sys.executable, str(_ROOT / "scripts/demonstration/three_cycles.py"), "--folder", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return folder


def test_the_demo_ends_as_it_says(demo: Path) -> None:
    rows = evolution_log.read(demo / "evolution_log.csv")
    assert [(row["status"], row["attempts"]) for row in rows] == [
        *(("sucesso", "1"), ("sucesso", "2"), ("falha", "2")),
    ]


@needs_browser
def test_the_page_of_the_demo_opens_in_a_browser(demo: Path, tmp_path: Path) -> None:
    rows = evolution_log.read(demo / "evolution_log.csv")
    dom = browse(tmp_path, demo / "report.html", "--dump-dom")
    facts = dict(re.findall(r'<dd id="([a-z-]+)">([^<]*)</dd>', dom))
    assert facts["success"] == "2 of 3 (67%)"
    seconds = {
        phase: sum(float(row[f"seconds_{phase}"] or 0) for row in rows)
        for phase in evolution_log.PHASES
    }
    drawn = Counter[str]()
    for phase, shown in re.findall(r'data-phase="(\w+)" data-seconds="([\d.]+)"', dom):
        drawn[phase] += float(shown)
    for phase, spent in seconds.items():
        assert drawn[phase] == pytest.approx(spent, abs=0.01)
    assert "semver.org" in html.unescape(dom)
    picture = tmp_path / "page.png"
    browse(tmp_path, demo / "report.html", f"--screenshot={picture}", "--window-size=1000,1400")
    colors = Counter(pixels(picture))
    total = sum(colors.values())
    # It is a page and no blank, and the bar of the slowest phase can be seen.
    assert len(colors) > 20 and colors.most_common(1)[0][1] < 0.98 * total
    slowest = max(seconds, key=lambda phase: seconds[phase])
    red, green, blue = (int(COLORS[slowest][at : at + 2], 16) for at in (1, 3, 5))
    assert colors[(red, green, blue)] > 200
