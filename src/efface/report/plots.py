"""Figures as SVG, each with its numbers in words for who cannot see it."""

from collections.abc import Callable, Collection, Mapping, Sequence
from html import escape
from math import log

from efface.metrics.rates import Rate
from efface.report.page import note
from efface.report.words import percent

COLOURS = ("#3b82c4", "#d9741a", "#3f9b53", "#a855c7", "#c0392b", "#7a7f88")  # visible on white and on black
DASHES = ("", "6 3", "2 3")

Point = tuple[float, float]


def scatter(rates: Mapping[str, tuple[Rate, Rate]], bases: Collection[str], across: str) -> str:
    """(kept, erased) of each model with intervals; `bases` are unedited."""
    marks, labels = _frame((0.0, 25.0, 50.0, 75.0, 100.0), lambda x: x / 100), ""
    taken: list[Point] = []
    for name, (kept, gone) in rates.items():
        (x, y), kind = _at(kept.value, gone.value), "base" if name in bases else "edit"
        (left, bottom), (right, top) = (_at(*corner) for corner in zip(kept.interval, gone.interval, strict=True))
        shape = f'<circle cx="{x}" cy="{y}" r="4.5"/>' if kind == "edit" else f'<path d="M{x - 4} {y - 4}h8v8h-8z"/>'
        marks += f'<g class="{kind}"><path d="M{left} {y}H{right}M{x} {bottom}V{top}"/>{shape}</g>'
        spot = y - 8
        while any(abs(spot - below) < 13 and abs(x - beside) < 90 for beside, below in taken):
            spot += -13 if y > 140 else 13  # towards the middle, until the label stands free
        taken.append((x, spot))
        place = f'class="{kind} left" x="{x - 9}"' if x > 190 else f'class="{kind} right" x="{x + 9}"'
        labels += f'<text {place} y="{spot:.1f}">{escape(name)}</text>'
    points = "; ".join(f"{name}: kept {percent(k.value)}, erased {percent(g.value)}" for name, (k, g) in rates.items())
    svg = _svg(points, marks + _titles(across, "erased, %") + labels)
    return svg + note("Up and right is better. Bars: Wilson 95&nbsp;% intervals.")


def lines(series: Mapping[str, Sequence[Point]], across: str, up: str) -> str:
    """Rates over a number, on a logarithmic axis where it spans more than a factor of ten, with a legend below."""
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
    words = "; ".join(f"{n}: " + ", ".join(f"{x:g} {percent(y)}" for x, y in points) for n, points in series.items())
    return _svg(words, marks + _titles(across, up), 306 + 16 * len(series))


def _frame(ticks: Sequence[float], place: Callable[[float], float]) -> str:
    """Rules and their labels: these ticks across, percent upwards."""
    marks = ""
    for tick in ticks:
        x, _ = _at(place(tick), 0.0)
        marks += f'<path class="rule" d="M{x} 20V260"/><text x="{x}" y="276">{tick:g}</text>'
    for tick in (0, 25, 50, 75, 100):
        _, y = _at(0.0, tick / 100)
        marks += f'<path class="rule" d="M50 {y}H330"/><text class="left" x="44" y="{y + 4}">{tick}</text>'
    return marks


def _svg(words: str, inside: str, height: int = 300) -> str:
    return f'<svg viewBox="0 0 340 {height}" role="img" aria-label="{escape(words)}">{inside}</svg>'


def _titles(across: str, up: str) -> str:
    turned = f'<text transform="translate(14 140) rotate(-90)">{escape(up)}</text>'
    return f'<text x="190" y="294">{escape(across)}</text>{turned}'


def _at(across: float, up: float) -> Point:
    """Plot coordinates of two numbers from 0 to 1."""
    return round(50 + 280 * across, 1), round(260 - 240 * up, 1)
