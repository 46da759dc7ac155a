"""Small charts as inline SVG: sharp at any size, in the colours of the page (light, dark, print), no library in the report.

Series take their colour from the page's style by class: ``.line.good`` and so on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import ArrayLike

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 12, 46


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        name: in the legend.
        style: its class in the page's style.
        x, y: (N,) points.
    """

    name: str
    style: str
    x: ArrayLike
    y: ArrayLike


@dataclass(frozen=True)
class Axis:
    """Range and meaning of an axis; `log` needs a range above zero."""

    label: str
    low: float
    high: float
    log: bool = False

    def share(self, values: ArrayLike) -> np.ndarray:
        """Where values lie between low (0) and high (1)."""
        low, high, at = self.low, self.high, np.asarray(values, dtype=np.float64)
        if self.log:
            low, high, at = math.log10(low), math.log10(high), np.log10(np.maximum(at, 1e-300))
        return np.clip((at - low) / (high - low), 0, 1)

    def ticks(self) -> list[float]:
        """Round numbers inside the range."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1, 2, 5) if len(powers) < 4 else (1,)
            return [m * 10.0**p for p in powers for m in steps if self.low <= m * 10.0**p <= self.high * (1 + 1e-9)]
        raw = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def line_chart(
    title: str, series: Sequence[Series], x: Axis, y: Axis, marks: Sequence[tuple[float, float, str]] = ()
) -> str:
    """Lines over common axes, with marked points (x, y, text).

    Args:
        title: what a screen reader says.
        series: lines, drawn in their order.
        x, y: axes.
        marks: points with a text beside them.
    """
    across, up = _scales(x, y)
    lines = []
    for one in series:
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across(one.x), up(one.y), strict=True))
        lines.append(f'<polyline class="line {one.style}" points="{points}"/>')
    for at_x, at_y, text in marks:
        a, b = float(across([at_x])[0]), float(up([at_y])[0])
        right = a > WIDTH * 0.7
        anchor, shift = ("end", -9) if right else ("start", 9)
        lines.append(f'<circle class="mark" cx="{a:.1f}" cy="{b:.1f}" r="4.5"/>')
        lower = b + (14 if b < HEIGHT / 2 else -8)
        lines.append(f'<text class="note" x="{a + shift:.1f}" y="{lower:.1f}" text-anchor="{anchor}">{escape(text)}</text>')
    return _frame(title, [*_axes(x, y), *lines], [(one.name, one.style) for one in series])


def histogram(
    title: str, groups: Sequence[tuple[str, str, Sequence[float]]], axis: Axis, *, line: float | None, line_text: str = ""
) -> str:
    """How often values occur in each group (name, style, values), bars side by side, with an upright line at `line`."""
    bins = 24
    edges = np.linspace(axis.low, axis.high, bins + 1)
    counts = [np.histogram(np.clip(values, axis.low, axis.high), edges)[0] for _, _, values in groups]
    tallest = max(1, *(int(count.max()) for count in counts))
    y = Axis("parts", 0, tallest * 1.08)
    across, up = _scales(axis, y)
    bars = []
    for index, (count, (name, style, _)) in enumerate(zip(counts, groups, strict=True)):
        for number, low, high in zip(count, edges[:-1], edges[1:], strict=True):
            if number:
                left, right = across([low, high])
                width = (right - left - 1) / len(groups)
                top, floor = up([number, 0])
                bars.append(
                    f'<rect class="bar {style}" x="{left + index * width + 0.5:.1f}" y="{top:.1f}" width="{width:.1f}" '
                    f'height="{floor - top:.1f}"><title>{number} {escape(name)}, {low:.3f} to {high:.3f}</title></rect>'
                )
    if line is not None:
        at = float(across([line])[0])
        anchor, shift = ("end", -6) if at > WIDTH * 0.6 else ("start", 6)
        bars.append(f'<line class="limit" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        bars.append(
            f'<text class="note" x="{at + shift:.1f}" y="{TOP + 12}" text-anchor="{anchor}">{escape(line_text)}</text>'
        )
    return _frame(title, [*_axes(axis, y, whole=True), *bars], [(name, style) for name, style, _ in groups])


Scale = Callable[[ArrayLike], np.ndarray]


def _scales(x: Axis, y: Axis) -> tuple[Scale, Scale]:
    return (
        lambda values: LEFT + x.share(values) * (WIDTH - LEFT - RIGHT),
        lambda values: HEIGHT - BOTTOM - y.share(values) * (HEIGHT - TOP - BOTTOM),
    )


def _axes(x: Axis, y: Axis, *, whole: bool = False) -> list[str]:
    across, up = _scales(x, y)
    out = []
    for tick, at in zip(x.ticks(), across(x.ticks()), strict=True):
        out.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        out.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{tick:g}</text>')
    for tick, at in zip(y.ticks(), up(y.ticks()), strict=True):
        if whole and tick != int(tick):
            continue
        out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        out.append(f'<text x="{LEFT - 7}" y="{at + 4:.1f}" text-anchor="end">{tick:g}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    centre = (LEFT + WIDTH - RIGHT) / 2
    out.append(f'<text class="label" x="{centre}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x.label)}</text>')
    out.append(
        f'<text class="label" transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">{escape(y.label)}</text>'
    )
    return out


def _frame(title: str, inside: Sequence[str], legend: Sequence[tuple[str, str]]) -> str:
    body = "\n".join(inside)
    keys = "".join(f'<span class="key {style}">{escape(name)}</span>' for name, style in legend)
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">\n{body}\n</svg>' + (
        f'<p class="legend">{keys}</p>' if len(legend) > 1 else ""
    )
