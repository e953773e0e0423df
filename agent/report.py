"""What was done, as one HTML page: it needs no script, no network and no other file.

Times and counts come from the evolution log, what is remembered from the memory, diffs and verdicts
from the cycles that were saved. Everything in it was said by models and tests, and is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from agent import evolution_log, files
from agent.chart import COLORS, Bar, legend, stacked
from agent.config import Config
from agent.cycles import Attempt, Cycle, Cycles, Ending
from agent.history import History
from agent.memory import Memory
from agent.utils.ledger import Usage
from sandbox_engine import describe

_BARS = 60
"""So many cycles are drawn, the newest; the table has all."""
_DETAILED = 100
_MOST_LETTERS = 100_000
_WORDS = ("phase", "objective", "outcome")
"""The columns that hold no numbers."""
_NUMERIC = ' class="number"'
_Row = Mapping[str, str]

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #2a7f3e; --bad: #b3261e; --soft: #8882; }
@media (prefers-color-scheme: dark) { :root { --good: #6fcf87; --bad: #ff8a80; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 960px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
dl.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: 1rem; }
dl.facts div { border: 1px solid var(--line); border-radius: 6px; padding: .6rem .8rem; }
dl.facts div:last-child { grid-column: span 2; }
dt { font-size: .85rem; opacity: .75; } dd { margin: 0; font-size: 1.25rem; }
svg { width: 100%; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: currentColor; }
ul.legend { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .3rem 1rem; }
.color { display: inline-block; width: .8rem; height: .8rem; margin-right: .35rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line);
  vertical-align: top; } td.number, th.number { text-align: right; white-space: nowrap; }
details { border: 1px solid var(--line); border-radius: 6px; padding: .4rem .8rem;
  margin: .5rem 0; }
summary { cursor: pointer; } pre { overflow-x: auto; background: var(--soft); padding: .6rem;
  border-radius: 6px; font-size: .85rem; }
.success { color: var(--good); } .failure, .postponed { color: var(--bad); }
.added { color: var(--good); } .removed { color: var(--bad); } .hunk { opacity: .7; }
"""


@dataclass(frozen=True, slots=True)
class _Told:
    """Everything that the page is made of."""

    rows: Sequence[_Row]
    cycles: Mapping[str, Cycle]
    history: History

    @property
    def usage(self) -> Usage:
        return sum((cycle.usage for cycle in self.cycles.values()), Usage())


def write_report(config: Config, output: Path) -> int:
    """Write the page to `output`, and return how many cycles it tells of.

    Raise SandboxError for a file that cannot be read or written.
    """
    with Memory(config.memory_file_path, backend=config.memory_backend) as memory:
        told = _Told(
            evolution_log.read(config.evolution_log_path),
            {cycle.started: cycle for cycle in Cycles(config.cycles_path)},
            memory.history,
        )
    with files.told(output, "written"):
        files.write_whole(output, "\n".join(_page(told)).encode("utf-8", "backslashreplace"))
    return len(told.rows)


def _page(told: _Told) -> Iterator[str]:
    yield '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>Hephaestus: {len(told.rows)} cycles</title>"
    yield f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n<h1>Hephaestus</h1>"
    yield from _facts(told)
    if told.rows:
        yield from _times(told.rows)
        yield from _slowest(told.rows)
        yield from _table(told.rows)
        yield from _details(told)
    else:
        yield "<p>No cycle has been run yet.</p>"
    yield from _remembered(told.history)
    yield "</main>\n</body>\n</html>\n"


def _facts(told: _Told) -> Iterator[str]:
    rows, usage = told.rows, told.usage
    reached = sum(row.get("status") == evolution_log.SUCCESS for row in rows)
    hits, calls = (int(_sum(rows, key)) for key in ("llm_cache_hits", "llm_calls"))
    facts = {
        "cycles": f"{len(rows)}",
        "success": f"{reached} of {len(rows)}" + (f" ({reached / len(rows):.0%})" if rows else ""),
        "time": f"{_sum(rows, 'tempo_gasto_segundos'):.1f} s",
        "questions to models": f"{calls}",
        "answered by the cache": f"{hits}",
        "tokens": f"{_sum(rows, 'llm_tokens'):,.0f}",
        "saved by the cache": f"{usage.saved_tokens:,} tokens, {usage.saved_s:.1f} s, "
        f"{usage.saved_usd:.2f} USD",
    }
    yield '<dl class="facts">'
    for name, value in facts.items():
        key = name.replace(" ", "-")
        yield f'<div><dt>{name}</dt><dd id="{key}">{escape(value)}</dd></div>'
    yield "</dl>"


def _times(rows: Sequence[_Row]) -> Iterator[str]:
    shown = rows[-_BARS:]
    left_out = f", of the last {_BARS}" if len(rows) > _BARS else ""
    yield f"<h2>Seconds of each phase, by cycle{left_out}</h2>"
    yield stacked([_bar(row) for row in shown])
    yield legend()


def _bar(row: _Row) -> Bar:
    seconds = {phase: _number(row.get(f"seconds_{phase}")) for phase in evolution_log.PHASES}
    return Bar(
        row.get("ciclo") or "",
        seconds,
        _number(row.get("tempo_gasto_segundos")),
        row.get("status") == evolution_log.SUCCESS,
    )


def _slowest(rows: Sequence[_Row]) -> Iterator[str]:
    total_s = _sum(rows, "tempo_gasto_segundos") or 1.0
    spent = {phase: _sum(rows, f"seconds_{phase}") for phase in evolution_log.PHASES}
    yield "<h2>Slowest phases</h2>"
    yield from _open_table(("phase", "seconds", "share", "longest"))
    for phase, seconds in sorted(spent.items(), key=lambda item: -item[1]):
        if seconds:
            longest = max(_number(row.get(f"seconds_{phase}")) for row in rows)
            color = f'<span class="color" style="background:{COLORS[phase]}"></span>'
            yield (
                f"<tr><td>{color}{phase}</td>"
                f"{_cells(f'{seconds:.2f}', f'{seconds / total_s:.0%}', f'{longest:.2f}')}</tr>"
            )
    yield "</tbody></table></div>"


def _table(rows: Sequence[_Row]) -> Iterator[str]:
    yield "<h2>Cycles</h2>"
    yield from _open_table(
        ("cycle", "seconds", "attempts", "calls", "hits", "tokens", "objective", "outcome")
    )
    numbers = ("ciclo", "tempo_gasto_segundos", "attempts", "llm_calls", "llm_cache_hits")
    for row in reversed(rows):
        is_success = row.get("status") == evolution_log.SUCCESS
        kind = "success" if is_success else "failure"
        cells = _cells(*(row.get(key) or "" for key in (*numbers, "llm_tokens")))
        yield (
            f"<tr>{cells}<td>{escape(row.get('objetivo') or '')}</td>"
            f'<td class="{kind}">{escape(row.get("razao_status") or kind)}</td></tr>'
        )
    yield "</tbody></table></div>"


def _details(told: _Told) -> Iterator[str]:
    started = [row.get("timestamp_inicio") or "" for row in reversed(told.rows)]
    known = [told.cycles[key] for key in started if key in told.cycles]
    yield "<h2>Diffs and verdicts</h2>"
    if len(known) > _DETAILED:
        yield f"<p>Of the last {_DETAILED} cycles.</p>"
    for cycle in known[:_DETAILED]:
        yield f'<details id="cycle-{cycle.number}"><summary>{_heading(cycle)}</summary>'
        yield f"<p>{escape(cycle.reason)}</p>"
        if cycle.diff:
            yield f"<h3>Diff</h3>\n<pre>{_diff(cycle.diff)}</pre>"
        for attempt in cycle.attempts:
            yield from _attempt(attempt, is_chosen=attempt is cycle.winner)
        yield "</details>"


def _heading(cycle: Cycle) -> str:
    ending = cycle.ending or Ending.FAILURE
    return f'{cycle.number}. <span class="{ending}">{ending}</span> {escape(cycle.objective)}'


def _attempt(attempt: Attempt, *, is_chosen: bool) -> Iterator[str]:
    chosen = ", which was taken" if is_chosen else ""
    strategy = f" by <code>{escape(attempt.strategy)}</code>" if attempt.strategy else ""
    number = f"{attempt.number} of candidate {attempt.candidate + 1}"
    yield f"<h3>Attempt {number}{strategy}{chosen}</h3>"
    verdict = attempt.verdict
    said = attempt.problem if verdict is None else describe(verdict)
    yield f"<pre>{escape(_cut(said))}</pre>"
    if not is_chosen and attempt.plan:
        plan = escape(_cut(attempt.plan))
        yield f"<details><summary>the plan</summary><pre>{plan}</pre></details>"


def _diff(text: str) -> str:
    return "\n".join(_diff_line(line) for line in _cut(text).split("\n"))


def _diff_line(line: str) -> str:
    kinds = {"+": "added", "-": "removed", "@": "hunk"}
    kind = kinds.get(line[:1])
    return escape(line) if kind is None else f'<span class="{kind}">{escape(line)}</span>'


def _remembered(history: History) -> Iterator[str]:
    completed, failed = map(history.count, ("completed_objectives", "failed_objectives"))
    yield "<h2>Memory</h2>"
    yield (
        f'<p id="memory">{completed} objectives reached, {failed} not; '
        f"{history.count('acquired_capabilities')} capabilities.</p>"
    )
    if history.acquired_capabilities:
        items = (escape(one.description) for one in reversed(history.acquired_capabilities))
        yield f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>"


def _open_table(heads: Iterable[str]) -> Iterator[str]:
    cells = "".join(
        f'<th scope="col"{_NUMERIC if head not in _WORDS else ""}>{head}</th>' for head in heads
    )
    yield f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>'


def _cells(*values: str) -> str:
    return "".join(f'<td class="number">{escape(value)}</td>' for value in values)


def _cut(text: str) -> str:
    if len(text) <= _MOST_LETTERS:
        return text
    return f"{text[:_MOST_LETTERS]}\n... {len(text) - _MOST_LETTERS:,} more letters"


def _sum(rows: Iterable[_Row], key: str) -> float:
    return sum(_number(row.get(key)) for row in rows)


def _number(text: str | None) -> float:
    try:
        number = float(text or 0)
    except ValueError:
        return 0.0
    return number if math.isfinite(number) and number > 0 else 0.0
