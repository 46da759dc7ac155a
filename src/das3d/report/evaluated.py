"""What `evaluate` wrote about a run, read back: figures, scores with verdicts, maps, and the parts they belong to."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from das3d.console import figure
from das3d.datasets import find_dataset, folder_of
from das3d.detector import Detector
from das3d.errors import DataError, one_line
from das3d.files import DepthFormat
from das3d.parts import Part
from das3d.regions import Region
from das3d.streaming import output_files, output_names
from das3d.threshold import Threshold

# Of metrics.json.
SHOWN = (
    "data", "category", "light", "depth_format", "training", "threshold", "notes", "map_size", "n_good", "n_defective",
    "per_defect", "i_auroc", "p_auroc", "aupro_30", "aupro_05", "aupro_01", "false_alarms", "detected",
)  # fmt: skip
# What the verdict on a part was, worst first.
MISSED, FALSE_ALARM, FOUND, PASSED = "missed", "false alarm", "found", "passed"


@dataclass
class Row:
    """One part in ``scores.csv``.

    Attributes:
        id, defect, score: as they stand there.
        defective: whether it is known to have a defect.
        outcome: of the verdict, "" where the model has no threshold.
        compared: where its score stands among those of held-out good parts (`Threshold.compared`).
        regions: of the defect, the largest first.
    """

    id: str
    defect: str
    score: float
    defective: bool
    outcome: str
    compared: str
    regions: tuple[Region, ...] = ()


@dataclass
class Evaluation:
    """What `evaluate` wrote.

    Attributes:
        folder: where.
        metrics: of ``metrics.json``.
        rows: of ``scores.csv``, worst mistakes first: misses from the lowest score up, false alarms from the highest down,
            then the rest from the highest score down.
    """

    folder: Path
    metrics: dict[str, Any]
    rows: list[Row]

    @property
    def threshold(self) -> float | None:
        return self.metrics["threshold"]["value"] if self.metrics["threshold"] else None


def read_evaluation(folder: Path) -> Evaluation | None:
    """Figures and scores that `evaluate` wrote; None where it has not been run.

    Raises:
        DataError: a file is missing or is not what `evaluate` writes.
    """
    file = folder / "metrics.json"
    if not file.is_file():
        return None
    with _as_written(file):
        metrics = json.loads(file.read_text(encoding="utf-8"))
        if lacks := [name for name in SHOWN if name not in metrics]:
            raise DataError(f"{file}: expected what das3d evaluate writes, found no {', '.join(lacks)}; run it again")
        threshold = threshold_in(metrics)
    with _as_written(folder / "regions.json"):
        regions = read_regions(folder / "regions.json")
    with _as_written(folder / "scores.csv"), (folder / "scores.csv").open(newline="", encoding="utf-8") as opened:
        rows = [row_of(values, threshold, regions.get(values["id"], ())) for values in csv.DictReader(opened)]
    order = (MISSED, FALSE_ALARM)
    rows.sort(key=lambda row: (
        order.index(row.outcome) if row.outcome in order else len(order),
        row.score if row.outcome == MISSED else -row.score,
    ))  # fmt: skip
    return Evaluation(folder, metrics, rows)


@contextmanager
def _as_written(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        found = one_line(repr(error))
        raise DataError(f"{file}: expected what das3d evaluate writes, found a problem: {found}; run it again") from None


def read_regions(file: Path) -> dict[str, tuple[Region, ...]]:
    """The regions of parts by id."""
    parts = json.loads(file.read_text(encoding="utf-8"))["parts"]
    return {part["id"]: tuple(Region(**region) for region in part["regions"]) for part in parts}


def threshold_in(metrics: Mapping[str, Any]) -> Threshold | None:
    """The threshold by which parts were evaluated; None where the model had none."""
    known = metrics["threshold"]
    if not known:
        return None
    return Threshold(
        **{name: known[name] for name in ("value", "requested", "false_alarm_rate", "good_scores", "good_parts")}
    )


def row_of(values: Mapping[str, str], threshold: Threshold | None, regions: tuple[Region, ...]) -> Row:
    """A line of ``scores.csv``, with the verdict by this threshold."""
    defective, score = values["label"] == "1", float(values["score"])
    outcome = ""
    if threshold is not None:
        alarm = threshold.is_defective(score)
        outcome = (FOUND if alarm else MISSED) if defective else (FALSE_ALARM if alarm else PASSED)
    compared = "" if threshold is None else threshold.compared(score)
    return Row(values["id"], values["defect"], score, defective, outcome, compared, regions)


def evaluated_parts(detector: Detector, evaluation: Evaluation, data: Path | None) -> dict[str, Part]:
    """The evaluated parts on disk, by id.

    Raises:
        DataError: the data is not where it was, or some of the parts are not in it.
    """
    root = data or Path(evaluation.metrics["data"])
    if not root.is_dir():
        raise DataError(f"{root}: expected the scans that were evaluated, found no folder; name it with --data")
    metrics = evaluation.metrics
    depth_format = DepthFormat(**metrics["depth_format"]) if metrics["depth_format"] else None
    reading = detector.reading(light=metrics["light"], depth_format=depth_format)
    folder = folder_of(root, metrics["category"])
    dataset = find_dataset(folder, needs="test", headers=False, **reading)  # as it was evaluated
    parts = {part.id: part for part in dataset.parts}
    lost = [row.id for row in evaluation.rows if row.id not in parts]
    if lost:
        raise DataError(
            f"{root}: expected the {len(evaluation.rows)} parts of {evaluation.folder / 'scores.csv'}, "
            f"found {len(lost)} missing, such as {lost[0]}"
        )
    return parts


def map_files(evaluation: Evaluation, parts: Mapping[str, Part]) -> dict[str, Path]:
    """The map of each part, as `evaluate` named it."""
    names = output_names(list(parts.values()))
    files = {row.id: output_files(evaluation.folder / "maps", names[row.id])[0] for row in evaluation.rows}
    if lost := [file for file in files.values() if not file.is_file()]:
        raise DataError(f"{lost[0]}: expected the map of a part, found none; run das3d evaluate again")
    return files


def stale(detector: Detector, evaluation: Evaluation) -> Iterator[str]:
    """Lines on what has changed since the evaluation."""
    now = detector.threshold.value if detector.threshold else None
    if evaluation.metrics["training"] != detector.training:
        yield "The model has been trained again since this evaluation; run das3d evaluate again."
    elif now != evaluation.threshold:
        yield f"The threshold is {figure(now)} now and was {figure(evaluation.threshold)} here; run das3d evaluate again."
