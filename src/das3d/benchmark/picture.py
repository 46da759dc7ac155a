"""One picture of a metric: every method's figure in every category, a panel for each modality."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from das3d.atomic import write_atomically
from das3d.benchmark.published import MEAN
from das3d.errors import explained

if TYPE_CHECKING:
    from das3d.benchmark.tables import Row, Table

OURS = ("#d62728", "#ff7f0e", "#9467bd", "#8c564b", "#e377c2", "#17becf")
PUBLISHED_MARKS = "sDv^<>ph*X"


def draw(path: Path, title: str, tables: Sequence[Table], note: str = "") -> None:
    """Write a PNG. Ours are filled circles with their standard deviation, published figures open marks.

    Args:
        path: the file.
        title: of the metric.
        tables: of this metric, one for each modality.
        note: stands above all panels.

    Raises:
        MissingPackageError: Matplotlib is not installed.
    """
    with explained("a picture of the tables"):
        from matplotlib.figure import Figure  # without pyplot: no window, no global state
    lines = [*tables[0].categories, *([MEAN] if tables[0].has_mean else [])]
    ours = list(dict.fromkeys(row.name for table in tables for row in table.rows if row.ours))
    others = list(dict.fromkeys(row.name for table in tables for row in table.rows if not row.ours))
    columns = min(2 * len(tables) + (len(tables) > 1), len(ours) + len(others))  # of the legend, by the width there is
    rows = math.ceil((len(ours) + len(others)) / columns)
    height = 1.5 + 0.24 * rows + len(lines) * (0.34 + 0.14 * len(ours))
    figure = Figure(figsize=(1.6 + 4.2 * len(tables), height), layout="constrained")
    panels = figure.subplots(1, len(tables), squeeze=False, sharey=True)[0]
    for panel, table in zip(panels, tables, strict=True):
        for row in table.rows:
            if row.ours:
                index = ours.index(row.name)
                offset = 0.5 * ((index + 0.5) / len(ours) - 0.5) if len(ours) > 1 else 0.0
                _points(panel, row, lines, offset, marker="o", color=OURS[index % len(OURS)], zorder=3, markersize=7)
            else:
                mark = PUBLISHED_MARKS[others.index(row.name) % len(PUBLISHED_MARKS)]
                dark = "#222222" if row.name == "DAS3D" else "#8a8a8a"
                _points(panel, row, lines, 0.0, marker=mark, color=dark, markerfacecolor="none", zorder=2, markersize=6)
        panel.set_title(table.modality)
        panel.set_xlabel(title)
        panel.set_yticks(range(len(lines)), lines)
        panel.set_ylim(len(lines) - 0.5, -0.5)
        panel.grid(axis="both", color="#dddddd", linewidth=0.6)
        panel.set_axisbelow(True)
        left, right = panel.get_xlim()
        panel.set_xlim(left - 0.04 * (1 - left), min(max(right, 1.0), 1.02))
    handles: dict[str, Any] = {}
    for panel in panels:
        for handle, name in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns)
    if note:
        figure.suptitle(note, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=130, format="png")
    write_atomically(path, buffer.getvalue())


def _points(panel: Any, row: Row, lines: Sequence[str], offset: float, **style: Any) -> None:
    figures = {**row.figures, MEAN: row.mean}
    there = [(figures[name], place + offset) for place, name in enumerate(lines) if figures.get(name)]
    if not there:
        return
    spreads = [figure.deviation or 0.0 for figure, _ in there if figure]
    values = [figure.mean for figure, _ in there if figure]
    places = [place for _, place in there]
    if row.ours:
        panel.errorbar(values, places, xerr=spreads, linestyle="none", label=row.name, capsize=3, **style)
    else:
        panel.plot(values, places, linestyle="none", label=f"{row.name}, published", **style)
