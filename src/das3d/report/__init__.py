"""A run as one HTML file that opens from disk, without a network: figures, curves, and every part with what was found.

Figures, scores and maps are those of `evaluate`, from ``RUN/evaluation``; the parts are read again for their pictures, and
the networks are run again for what they repair. Where nothing has been evaluated yet, the report tells of training alone.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import das3d
from das3d.atomic import write_atomically
from das3d.console import duration, figure, percent, progress
from das3d.detector import Detector
from das3d.errors import DataError, explained, one_line
from das3d.evaluation import LazyMaps, LazyMasks
from das3d.files import read_rgb
from das3d.metrics import AUPRO_LIMITS, pro_curve, roc_curve
from das3d.parts import Part
from das3d.report import charts
from das3d.report.evaluated import (
    FALSE_ALARM,
    FOUND,
    MISSED,
    PASSED,
    Evaluation,
    evaluated_parts,
    map_files,
    read_evaluation,
    stale,
)
from das3d.report.gallery import Card, make_cards, shrunk
from das3d.streaming import picture_scale
from das3d.surfaces import data_uri, import_map, read_asset

MOST = 200  # parts shown


def make_report(detector: Detector, run: Path, out: Path, *, data: Path | None = None, most: int = MOST) -> int:
    """Write the report of a run and return how many parts it shows.

    Args:
        detector: of the run.
        run: its folder.
        out: HTML file to write.
        data: folder of the evaluated scans; None: where they were when they were evaluated.
        most: show no more parts than this, the worst mistakes first.

    Raises:
        DataError: files of the run are damaged, the scans cannot be read, or they do not belong together.
        MissingPackageError: Jinja2 is not installed.
    """
    with explained("das3d report"):
        from jinja2 import Environment, PackageLoader, StrictUndefined

    evaluation = read_evaluation(run / "evaluation")
    cards: list[Card] = []
    context: dict[str, Any] = {
        "title": detector.training.get("category", run.name),
        "run": run,
        "about": about_run(detector, evaluation),
        "changed": detector.settings.changed(),
        "promises": detector.threshold.explain() if detector.threshold else [],
        "evaluation": evaluation,
        "losses": losses_chart(run / "losses.csv"),
        "sheets": list(training_sheets(run / "pictures")),
        "high": picture_scale(detector),
        "left_out": 0,
    }
    if evaluation is not None:
        parts = evaluated_parts(detector, evaluation, data)
        context |= {
            "histogram": score_histogram(evaluation),
            "roc": roc_chart(evaluation),
            "pro": pro_chart(evaluation, parts),
            "kinds": kinds_table(evaluation),
            "counts": {
                outcome: sum(row.outcome == outcome for row in evaluation.rows)
                for outcome in (MISSED, FALSE_ALARM, FOUND, PASSED)
            },
            "notes": [*evaluation.metrics["notes"], *stale(detector, evaluation)],
            "left_out": max(len(evaluation.rows) - most, 0),
        }
        cards = list(make_cards(detector, evaluation, parts, most))
    loader = Environment(
        loader=PackageLoader("das3d", "assets"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    loader.filters |= {"percent": percent, "figure": figure}
    page = loader.get_template("report.html").render(
        context,
        cards=cards,
        imports=import_map() if any(card.surface for card in cards) else None,
        style=read_asset("report.css").decode(),
        script=read_asset("report.js").decode(),
        today=date.today().isoformat(),
        version=das3d.__version__,
    )
    write_atomically(out, page.encode())
    return len(cards)


def about_run(detector: Detector, evaluation: Evaluation | None) -> list[tuple[str, str]]:
    """What was trained, on what, where and for how long: names and values in words."""
    training, settings = detector.training, detector.settings
    about = [
        ("Data", f"{training.get('data', 'unknown')} ({training.get('layout', 'unknown layout')})"),
        (
            "Good parts",
            f"{training.get('parts', '?')} to train on, {training.get('held_out', '?')} held out for the threshold",
        ),
    ]
    if evaluation is not None:
        metrics = evaluation.metrics
        sizes = ", ".join(f"{width} x {height}" for height, width in metrics["map_size"])
        about.append(("Test parts", f"{metrics['n_good']} good, {metrics['n_defective']} defective, at {sizes} pixels"))
        if metrics["data"] != training.get("data"):
            about.append(("Test data", metrics["data"]))
    return [
        *about,
        ("Modality", settings.modality),
        ("Preset and seed", f"{settings.preset}, {settings.seed}"),
        ("Training", f"{duration(60 * training.get('minutes', 0))}, {training.get('iterations', '?')} iterations of "
                     f"{training.get('batch', '?')} pairs in {training.get('precision', 'unknown precision')}"),
        ("Machine", f"{training.get('machine', 'unknown')} ({training.get('device', 'unknown device')})"),
        ("Versions", f"das3d {training.get('das3d', '?')}, PyTorch {training.get('torch', '?')}"),
    ]  # fmt: skip


def kinds_table(evaluation: Evaluation) -> list[dict[str, Any]]:
    """A line for each kind of defect, and one for the good parts."""
    lines = []
    kinds = sorted({row.defect for row in evaluation.rows if row.defective})
    for kind in [*kinds, None]:
        rows = [row for row in evaluation.rows if (row.defect == kind if kind else not row.defective)]
        scores = [row.score for row in rows]
        if rows:
            lines.append({
                "kind": kind or "good", "parts": len(rows), "above": sum(r.outcome in (FOUND, FALSE_ALARM) for r in rows),
                "i_auroc": evaluation.metrics["per_defect"].get(kind) if kind else None,
                "low": min(scores), "middle": median(scores), "high": max(scores),
            })  # fmt: skip
    return lines


# ------------------------------------------------------------------------------------------- charts


def score_histogram(evaluation: Evaluation) -> str:
    """Scores of good and defective parts, with the threshold."""
    scores = {flag: [row.score for row in evaluation.rows if row.defective is flag] for flag in (False, True)}
    limit = evaluation.threshold
    shown = [*scores[False], *scores[True], *([] if limit is None else [limit])]
    margin = 0.04 * (max(shown) - min(shown)) or 0.01
    axis = charts.Axis("score", min(shown) - margin, max(shown) + margin)
    groups = [
        (f"{len(scores[False])} good", "good", scores[False]),
        (f"{len(scores[True])} defective", "bad", scores[True]),
    ]
    text = f"threshold {figure(limit)}"
    return charts.histogram("Scores of good and defective test parts", groups, axis, line=limit, line_text=text)


def roc_chart(evaluation: Evaluation) -> str | None:
    """The ROC curve over parts, with the point where the threshold puts us; None where one class is missing."""
    metrics = evaluation.metrics
    if metrics["i_auroc"] is None:
        return None
    x, y = roc_curve([row.defective for row in evaluation.rows], [row.score for row in evaluation.rows])
    marks = []
    if metrics["false_alarms"] is not None and metrics["detected"] is not None:
        marks = [(metrics["false_alarms"], metrics["detected"], "threshold")]
    return charts.line_chart(
        "ROC curve over test parts",
        [charts.Series("chance", "chance", [0, 1], [0, 1]), charts.Series("model", "bad", x, y)],
        charts.Axis("good parts called defective", 0, 1), charts.Axis("defective parts found", 0, 1), marks,
    )  # fmt: skip


def pro_chart(evaluation: Evaluation, parts: Mapping[str, Part]) -> str | None:
    """The PRO curve up to the widest limit; None where no defect is marked."""
    if evaluation.metrics["aupro_30"] is None:
        return None
    rows = [row for row in evaluation.rows if not row.defective or parts[row.id].masks]
    files = map_files(evaluation, parts)
    with progress("curves") as step:
        maps, masks = LazyMaps([files[row.id] for row in rows]), LazyMasks([parts[row.id] for row in rows])
        x, y = pro_curve(maps, masks, [row.defective for row in rows])
        step()
    # Bends by the ten thousand look the same as three hundred points, closer where the curve rises.
    at = AUPRO_LIMITS[0] * np.linspace(0, 1, 300) ** 2
    marks = [(limit, float(np.interp(limit, x, y)), "") for limit in AUPRO_LIMITS]
    return charts.line_chart(
        "PRO curve over the pixels of all test parts", [charts.Series("PRO", "bad", at, np.interp(at, x, y))],
        charts.Axis("good pixels called defective", 0, AUPRO_LIMITS[0]), charts.Axis("overlap with defects", 0, 1), marks,
    )  # fmt: skip


LOSSES = {  # column of losses.csv -> what it is, and its colour
    "loss_rgb": ("RGB repair", "good"),
    "loss_depth": ("depth repair", "third"),
    "loss_discriminator": ("finding", "bad"),
}


def _losses_in(file: Path) -> Iterator[dict[str, float]]:
    columns = ("iteration", *LOSSES)
    with file.open(newline="", encoding="utf-8", errors="replace") as opened:
        reader = csv.DictReader(opened)
        for row in reader:
            try:
                yield {name: float(row[name]) for name in columns}
            except (KeyError, TypeError, ValueError):  # a column, half a row or a number is missing
                found = one_line([value for name, value in row.items() if name in columns])
                raise DataError(
                    f"{file}, line {reader.line_num}: expected a number for {', '.join(columns)}, found {found}; move the "
                    "file away for a report without the losses"
                ) from None


def losses_chart(file: Path) -> str | None:
    """Losses over iterations; None where there is no log. Raises DataError where it is damaged."""
    if not file.is_file():
        return None
    rows = list(_losses_in(file))
    iterations = [int(row["iteration"]) for row in rows]
    series = [
        charts.Series(label, style, iterations, values)
        for name, (label, style) in LOSSES.items()
        if any(values := [row[name] for row in rows])
    ]
    every = [value for one in series for value in np.asarray(one.y).tolist() if value > 0]
    if len(rows) < 2 or not every:
        return None
    low, high = 10 ** math.floor(math.log10(min(every))), 10 ** math.ceil(math.log10(max(every)))
    return charts.line_chart(
        "Training losses", series, charts.Axis("iteration", 0, iterations[-1]), charts.Axis("loss", low, high, log=True)
    )


def training_sheets(folder: Path) -> Iterator[tuple[str, str]]:
    """Title and picture of the synthetic training pairs and of the last repairs."""
    repairs = sorted(folder.glob("repair_*.png"))[-1:]
    for title, files in (("Synthetic training pairs", [folder / "training_pairs.png"]), ("Repairs at the end", repairs)):
        for file in files:
            with suppress(DataError):  # there is none, or half of one: the report can do without
                yield title, data_uri(shrunk(read_rgb(file), 1400))
