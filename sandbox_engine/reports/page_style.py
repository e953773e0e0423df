"""How the page looks: colours for light and dark, and rules that need no script."""

from __future__ import annotations

from collections.abc import Mapping

LIGHT: Mapping[str, str] = {
    "ground": "#ffffff",
    "panel": "#f5f6f8",
    "ink": "#1b1f24",
    "quiet": "#565d66",
    "line": "#d4d8de",
    "link": "#0b57b0",
    "good": "#136c34",
    "bad": "#b3261e",
    "doubt": "#7a5200",
    "added": "#e3f6e8",
    "removed": "#fdeceb",
    "noted": "#fff4d6",
    "bar": "#cfe0f7",
}
DARK: Mapping[str, str] = {
    "ground": "#14171b",
    "panel": "#1d2127",
    "ink": "#e8eaed",
    "quiet": "#a7b0bb",
    "line": "#3a414b",
    "link": "#8ab8ff",
    "good": "#6fd692",
    "bad": "#ff9c94",
    "doubt": "#f0c060",
    "added": "#14321f",
    "removed": "#3d1b19",
    "noted": "#3a3014",
    "bar": "#24405f",
}
TEXT_ON: tuple[tuple[str, str], ...] = (
    *(
        (ink, ground)
        for ink in ("ink", "quiet", "link", "good", "bad", "doubt")
        for ground in ("ground", "panel")
    ),
    *(("ink", ground) for ground in ("added", "removed", "noted", "bar")),
    *(("quiet", ground) for ground in ("added", "removed")),
)
"""Which colours are text on which: each pair is readable, 4.5 to 1 or more (WCAG 2.2, 1.4.3)."""


def _variables(colours: Mapping[str, str]) -> str:
    return "".join(f"--{name}:{value};" for name, value in colours.items())


STYLE = (
    f":root{{color-scheme:light dark;{_variables(LIGHT)}}}\n"
    f"@media (prefers-color-scheme:dark){{:root{{{_variables(DARK)}}}}}\n"
    """\
*{box-sizing:border-box}
body{margin:0 auto;max-width:76rem;padding:1rem 1.25rem 4rem;background:var(--ground);
color:var(--ink);font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.6rem;line-height:1.25;margin:.5rem 0}
h2{font-size:1.3rem;margin:2.5rem 0 .5rem;border-top:1px solid var(--line);padding-top:1.5rem}
h3{font-size:1.05rem;margin:1.75rem 0 .5rem}
a{color:var(--link)}
.skip{position:absolute;left:-100rem}
.skip:focus{left:1rem;top:.5rem;background:var(--ground);padding:.25rem .5rem}
:focus-visible{outline:3px solid var(--link);outline-offset:2px}
.outcome{display:inline-block;border:2px solid currentColor;border-radius:.4rem;
padding:0 .5rem;font-weight:700;letter-spacing:.02em;white-space:nowrap}
.PASSED{color:var(--good)}.FAILED,.REJECTED{color:var(--bad)}.INCONCLUSIVE{color:var(--doubt)}
.quiet{color:var(--quiet)}
.hint{border-left:4px solid var(--link);padding:.25rem .75rem;background:var(--panel)}
.wide{overflow-x:auto;border:1px solid var(--line);border-radius:.4rem;margin:.5rem 0}
table{border-collapse:collapse;font-size:.92rem}
caption{text-align:left;color:var(--quiet);padding:.35rem .6rem;font-size:.9rem;
white-space:nowrap}
th,td{text-align:left;vertical-align:top;padding:.3rem .6rem;border-top:1px solid var(--line)}
thead th{border-top:0;white-space:nowrap}
.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
pre,code,.code td{font:13px/1.45 ui-monospace,"DejaVu Sans Mono",monospace}
pre{margin:.5rem 0;padding:.6rem .75rem;background:var(--panel);border-radius:.4rem;overflow:auto;
white-space:pre;overflow-wrap:normal}
.code{width:100%}
.code td{border:0;padding:0 .6rem;white-space:pre;overflow-wrap:normal}
.code th{width:1%}.code th:last-child{width:auto}
.code .number{width:1%;color:var(--quiet);user-select:none;padding:0 .4rem}
.code .plus td{background:var(--added)}.code .minus td{background:var(--removed)}
.code .head td{color:var(--quiet);padding-top:.4rem}
.code .noted td{background:var(--noted);white-space:pre-wrap;padding:.3rem .6rem}
summary{cursor:pointer;padding:.2rem 0}
.bars{margin:.5rem 0;padding:0;list-style:none}
.bars li{display:flex;gap:1px;margin-bottom:1px;list-style:none}
.bars span{background:var(--bar);min-width:2px;overflow:hidden;white-space:nowrap;
text-overflow:ellipsis;padding:.15rem 0;text-indent:.3rem;font-size:.82rem;border-radius:.2rem}
dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:.2rem 1rem;margin:.5rem 0}
dt{color:var(--quiet)}dd{margin:0}
@media (max-width:40rem){dl{grid-template-columns:minmax(0,1fr)}dd{margin-bottom:.4rem}}
@media print{body{max-width:none}.wide,pre{overflow:visible}pre{white-space:pre-wrap}}
"""
)
