"""Curves as SVG, plain enough to be read in light and in dark, without a library."""

from collections.abc import Callable, Iterable, Sequence
from math import floor, log10
from pathlib import Path
from typing import NamedTuple

from bench.scaling.run import BALANCED, Outcome

_WIDTH, _HEIGHT = 760, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 34, 24
_STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #333 } .title { font-weight: 600; font-size: 13px }
  .grid { stroke: #ddd } .axis { stroke: #888 } path { fill: none; stroke-width: 1.8 }
  .note { fill: #666 } .mark { stroke: #888; stroke-dasharray: 3 3 } rect { fill: #fff }
  .c0 { stroke: #1f6feb } .c1 { stroke: #c2410c } .c2 { stroke: #15803d } .c3 { stroke: #9333ea }
  .c4 { stroke: #be185d } .c5 { stroke: #0e7490 } .c6 { stroke: #b45309 } .c7 { stroke: #4d7c0f }
  .thin { stroke-width: 1; stroke-dasharray: 4 3 }
  @media (prefers-color-scheme: dark) {
    text { fill: #ddd } .grid { stroke: #333 } .note { fill: #aaa } rect { fill: #0d1117 }
    .c0 { stroke: #6ea8fe } .c1 { stroke: #fb923c } .c2 { stroke: #4ade80 } .c3 { stroke: #c084fc }
    .c4 { stroke: #f472b6 } .c5 { stroke: #22d3ee } .c6 { stroke: #fbbf24 } .c7 { stroke: #a3e635 }
  }
"""


class Curve(NamedTuple):
    """A line; where a value is missing it is broken."""

    name: str
    points: Sequence[tuple[float, float | None]]
    thin: bool = False
    steps: bool = False


class Panel(NamedTuple):
    """Curves over the same seconds. `level`: a value that is marked."""

    title: str
    curves: Sequence[Curve]
    level: float | None = None
    least: float = 0.0
    most: float | None = None
    legend: bool = True


def draw_run(outcome: Outcome, file: Path) -> None:
    """All about one run."""
    samples = outcome.samples
    names = list(dict.fromkeys(name for each in samples for name in each.streams))
    instances = [
        Curve(
            name.removeprefix("instance "),
            [(each.at, each.streams.get(name, each.draining.get(name))) for each in samples],
        )
        for name in names
    ]
    panels = (
        Panel(
            "streams: open, and clients that there are",
            (
                Curve("open", [(each.at, each.crowd.get("open", 0)) for each in samples]),
                Curve("clients", [(each.at, each.wanted) for each in samples], thin=True),
            ),
        ),
        Panel(
            "instances: wanted by the autoscaler, taking streams, draining",
            (
                Curve(
                    "wanted", [(each.at, each.desired) for each in samples], thin=True, steps=True
                ),
                Curve(
                    "taking streams", [(each.at, len(each.streams)) for each in samples], steps=True
                ),
                Curve("draining", [(each.at, len(each.draining)) for each in samples], steps=True),
            ),
        ),
        Panel("streams of each instance, with its drain", instances),
        Panel("reconnects a second", (Curve("reconnects", outcome.reconnects()),), legend=False),
    )
    file.write_text(_svg(f"A run: {outcome.scenario.name}", panels))


def draw_balance(outcomes: Iterable[Outcome], file: Path) -> None:
    """How far from balance the instances were, run by run."""
    curves = [
        Curve(each.scenario.name, [(sample.at, sample.imbalance) for sample in each.samples])
        for each in outcomes
    ]
    title = "the fullest instance's streams over the average; dotted: 1.2, in balance"
    panel = Panel(title, curves, level=BALANCED, least=1.0, most=2.5)
    file.write_text(_svg("Balance", (panel,)))


def _svg(title: str, panels: Sequence[Panel]) -> str:
    end = max(x for panel in panels for curve in panel.curves for x, _ in curve.points)
    height = len(panels) * _HEIGHT + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{title}"><title>{title}</title><style>{_STYLE}</style>'
        f'<rect width="{_WIDTH}" height="{height}"/>'
    ]
    for n, panel in enumerate(panels):
        parts.append(f'<g transform="translate(0 {n * _HEIGHT})">')
        parts += _panel(panel, end, last=n == len(panels) - 1)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(panel: Panel, end: float, *, last: bool) -> Iterable[str]:
    values = [y for curve in panel.curves for _, y in curve.points if y is not None]
    most = panel.most or max([*values, panel.level or 0, 1]) * 1.05
    step = _step(most - panel.least)

    def x(value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * value / end

    def y(value: float) -> float:
        part = (min(value, most) - panel.least) / (most - panel.least)
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * part

    def level(kind: str, value: float) -> str:
        ends = f'x1="{_LEFT}" x2="{_WIDTH - _RIGHT}"'
        return f'<line class="{kind}" {ends} y1="{y(value):.1f}" y2="{y(value):.1f}"/>'

    yield _text(panel.title, _LEFT, 16, "title")
    value = panel.least
    while value <= most:
        yield level("grid", value)
        yield _text(f"{value:,g}", _LEFT - 6, y(value) + 4, "note", "end")
        value = round(value + step, 9)
    for second in range(0, int(end) + 1, 30):
        unit = " s" if second == 0 or last else ""
        yield _text(f"{second}{unit}", x(second), _HEIGHT - 8, "note", "middle")
    if panel.level is not None:
        yield level("mark", panel.level)
    for n, curve in enumerate(panel.curves):
        thin = " thin" if curve.thin else ""
        yield f'<path class="c{n % 8}{thin}" d="{_line(curve, x, y)}"/>'
    if panel.legend:
        at = float(_LEFT)
        for n, curve in enumerate(panel.curves):
            thin = " thin" if curve.thin else ""
            yield f'<path class="c{n % 8}{thin}" d="M{at:.0f} 26h16"/>'
            yield _text(curve.name, at + 20, 30, "note")
            at += 32 + 6.6 * len(curve.name)


def _text(text: str, x: float, y: float, kind: str, anchor: str = "start") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}>{text}</text>'


def _line(curve: Curve, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    parts, broken, before = [], True, 0.0
    for at, value in curve.points:
        if value is None:
            broken = True
            continue
        if broken:
            parts.append(f"M{x(at):.1f} {y(value):.1f}")
        elif curve.steps:
            parts.append(f"L{x(at):.1f} {before:.1f}V{y(value):.1f}")
        else:
            parts.append(f"L{x(at):.1f} {y(value):.1f}")
        broken, before = False, y(value)
    return "".join(parts)


def _step(span: float) -> float:
    """1, 2 or 5 times a power of ten, so that there are three to six lines."""
    rough = span / 4
    power: float = 10.0 ** floor(log10(rough))
    return next(each * power for each in (1, 2, 5, 10) if each * power >= rough)
