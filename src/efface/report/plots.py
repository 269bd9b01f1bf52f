"""Figures as SVG, each with its numbers as alternative text."""

from collections.abc import Callable, Collection, Mapping, Sequence
from html import escape
from math import log

from efface.metrics.rates import Rate
from efface.report.estimates import Estimate
from efface.report.names import percent
from efface.report.page import note

COLOURS = ("#3b82c4", "#d9741a", "#3f9b53", "#a855c7", "#c0392b", "#7a7f88")  # visible on white and on black
DASHES = ("", "6 3", "2 3")

LEADING = 13  # between names that stand below each other

Point = tuple[float, float]
Share = Rate | Estimate


def scatter(
    rates: Mapping[str, tuple[Share, Share]], bases: Collection[str], across: str, up: str = "erased, %"
) -> str:
    """A scatter plot of (kept, erased) for each model, with intervals; `bases` are unedited. Labels are next to the plot, with lines."""
    low = (
        0.5 if min(kept.interval[0] for kept, _ in rates.values()) >= 0.5 else 0.0
    )  # where all keep most, a closer look

    def place(x: float) -> float:
        return (x - low) / (1 - low)

    marks, labels = (
        _frame([float(x) for x in (range(50, 101, 10) if low else range(0, 101, 25))], lambda x: place(x / 100)),
        "",
    )
    order = sorted(rates, key=lambda name: (-rates[name][1].value, -rates[name][0].value))
    ideal = [_at(0.0, rates[name][1].value)[1] for name in order]
    height = max(260, 20 + LEADING * (len(order) - 1))
    for name, spot in zip(order, _apart(ideal, 20.0, float(height)), strict=True):
        kept, gone = rates[name]
        (x, y), kind = _at(place(kept.value), gone.value), "base" if name in bases else "edit"
        (left, bottom), (right, top) = (_at(place(a), b) for a, b in zip(kept.interval, gone.interval, strict=True))
        shape = f'<circle cx="{x}" cy="{y}" r="4.5"/>' if kind == "edit" else f'<path d="M{x - 4} {y - 4}h8v8h-8z"/>'
        marks += f'<path class="lead" d="M{x} {y}L346 {spot}"/>'
        marks += f'<g class="{kind}"><path d="M{left} {y}H{right}M{x} {bottom}V{top}"/>{shape}</g>'
        labels += f'<text class="{kind} right" x="350" y="{spot + 4}">{escape(name)}</text>'
    points = "; ".join(f"{name}: kept {percent(k.value)}, erased {percent(g.value)}" for name, (k, g) in rates.items())
    inside, width = marks + _titles(across, up) + labels, 360 + 7 * max(map(len, order))
    svg = _svg(points, inside, height + 40, width)
    return svg + note("Up and right is better. Bars: Wilson 95&nbsp;% intervals.")


def _apart(ideal: Sequence[float], first: float, last: float) -> list[float]:
    """Label positions in this order, near the ideal ones, one line height apart, between `first` and `last`."""
    spots: list[float] = []
    for y in ideal:
        spots.append(max(y, first, spots[-1] + LEADING if spots else first))
    for i, y in enumerate(reversed(spots)):
        spots[-1 - i] = min(y, last if not i else spots[-i] - LEADING)
    return [round(y, 1) for y in spots]


def line_chart(series: Mapping[str, Sequence[Point]], across: str, up: str) -> str:
    """A line chart of rates over a number, on a logarithmic axis if it spans more than a factor of ten, with a legend below."""
    xs = sorted({x for points in series.values() for x, _ in points})
    low, high = xs[0], xs[-1]
    scale = log if low > 0 and high > 10 * low else float
    width = (scale(high) - scale(low)) or 1.0

    def place(x: float) -> float:
        return (scale(x) - scale(low)) / width

    ticks = xs if len(xs) <= 6 else [xs[i * (len(xs) - 1) // 5] for i in range(6)]
    marks = _frame(ticks, place)
    for i, (name, points) in enumerate(series.items()):
        colour, dash = COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)]
        spots = [_at(place(x), y) for x, y in points]
        path = "M" + "L".join(f"{x} {y}" for x, y in spots)
        dots = "".join(f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in spots)
        marks += f'<path class="line" stroke="{colour}" stroke-dasharray="{dash}" d="{path}"/>{dots}'
        y = 314 + 16 * i
        marks += f'<path class="line" stroke="{colour}" stroke-dasharray="{dash}" d="M50 {y - 4}h28"/>'
        marks += f'<text class="right" x="84" y="{y}">{escape(name)}</text>'
    description = "; ".join(
        f"{n}: " + ", ".join(f"{x:g} {percent(y)}" for x, y in points) for n, points in series.items()
    )
    return _svg(description, marks + _titles(across, up), 306 + 16 * len(series))


def _frame(ticks: Sequence[float], place: Callable[[float], float]) -> str:
    """Grid lines and their labels: these ticks on the x axis, percent on the y axis."""
    marks = ""
    for tick in ticks:
        x, _ = _at(place(tick), 0.0)
        marks += f'<path class="rule" d="M{x} 20V260"/><text x="{x}" y="276">{tick:g}</text>'
    for tick in (0, 25, 50, 75, 100):
        _, y = _at(0.0, tick / 100)
        marks += f'<path class="rule" d="M50 {y}H330"/><text class="left" x="44" y="{y + 4}">{tick}</text>'
    return marks


def standalone(svg: str) -> str:
    """A figure as a file of its own."""
    style = (
        "<style>text{font:11px system-ui,sans-serif;fill:#667;text-anchor:middle}.rule{stroke:#ccc;stroke-width:.7}"
        ".lead{stroke:#99a;stroke-width:.4}g{fill:currentColor;stroke:currentColor;stroke-width:1.2}.line{fill:none;stroke-width:2}"
        ".left{text-anchor:end}.right{text-anchor:start}.edit{color:#15803d}.base{color:#667}"
        "text.edit,text.base{fill:currentColor;font-weight:600}</style>"
    )
    figure = svg[: svg.index("</svg>") + len("</svg>")]
    return figure.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1).replace(">", f">{style}", 1)


def _svg(description: str, inside: str, height: int = 300, width: int = 340) -> str:
    wide = ' class="wide"' if width > 340 else ""
    return f'<svg{wide} viewBox="0 0 {width} {height}" role="img" aria-label="{escape(description)}">{inside}</svg>'


def _titles(across: str, up: str) -> str:
    turned = f'<text transform="translate(14 140) rotate(-90)">{escape(up)}</text>'
    return f'<text x="190" y="294">{escape(across)}</text>{turned}'


def _at(across: float, up: float) -> Point:
    """Plot coordinates of two numbers from 0 to 1."""
    return round(50 + 280 * across, 1), round(260 - 240 * up, 1)
