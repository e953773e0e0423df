"""A stacked bar chart as SVG: one bar for each cycle, one part of it for each phase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

OTHER = "other"
COLORS: Mapping[str, str] = {
    "objective": "#4c78a8",
    "manifest": "#72b7b2",
    "architect": "#f58518",
    "maestro": "#eeca3b",
    "validation": "#54a24b",
    "promotion": "#b279a2",
    "sanity": "#ff9da6",
    "commit": "#9d755d",
    "memory": "#8cb4e2",
    OTHER: "#a0a0a0",
}
"""The color of each phase; what is in none of them is `OTHER`."""

_WIDTH = 900
_LABEL = 60
_TOTAL = 90
_BAR = 16
_GAP = 6


@dataclass(frozen=True, slots=True)
class Bar:
    """One cycle: its label, the seconds of its phases and in all, and whether it succeeded."""

    label: str
    seconds: Mapping[str, float]
    total_s: float
    is_success: bool

    @property
    def parts(self) -> list[tuple[str, float]]:
        """The phases in order with their seconds, and what is left of the total."""
        known = [(phase, self.seconds.get(phase, 0.0)) for phase in COLORS if phase != OTHER]
        rest = self.total_s - sum(seconds for _, seconds in known)
        return [(phase, s) for phase, s in (*known, (OTHER, max(0.0, rest))) if s > 0]

    @property
    def length_s(self) -> float:
        return sum(seconds for _, seconds in self.parts)


def stacked(bars: Sequence[Bar]) -> str:
    """Return the chart of `bars`, the first one uppermost; a scale in seconds is below them."""
    longest_s = max((bar.length_s for bar in bars), default=0.0) or 1.0
    scale = (_WIDTH - _LABEL - _TOTAL) / longest_s
    height = len(bars) * (_BAR + _GAP) + _GAP
    lines = [
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" '
        'aria-label="Seconds of each phase, by cycle">'
    ]
    for index, bar in enumerate(bars):
        lines += _bar(bar, _GAP + index * (_BAR + _GAP), scale)
    return "\n".join([*lines, "</svg>"])


def _bar(bar: Bar, top: float, scale: float) -> list[str]:
    middle = top + _BAR * 0.75
    mark = "" if bar.is_success else " ✗"
    lines = [f'<text x="{_LABEL - 8}" y="{middle:g}" text-anchor="end">{escape(bar.label)}</text>']
    left = float(_LABEL)
    for phase, seconds in bar.parts:
        width = seconds * scale
        lines.append(
            f'<rect x="{left:.2f}" y="{top:g}" width="{width:.2f}" height="{_BAR}" '
            f'fill="{COLORS[phase]}" data-phase="{phase}" data-seconds="{seconds:.3f}">'
            f"<title>cycle {escape(bar.label)}, {phase}: {seconds:.3f} s</title></rect>"
        )
        left += width
    lines.append(f'<text x="{left + 6:.2f}" y="{middle:g}">{bar.total_s:.1f} s{mark}</text>')
    return lines


def legend() -> str:
    """Return which color is which phase."""
    items = (
        f'<li><span class="color" style="background:{color}"></span>{phase}</li>'
        for phase, color in COLORS.items()
    )
    return f'<ul class="legend">{"".join(items)}</ul>'
