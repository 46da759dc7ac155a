"""Evaluation of a model on the labelled test parts of a data set."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

import das3d
from das3d.arguments import expect_kind, path_of
from das3d.atomic import write_atomically
from das3d.console import counted, progress, say, warn
from das3d.datasets import Dataset, expect_outside, find_dataset, folder_of
from das3d.detector import Detector
from das3d.errors import DataError, ModelError
from das3d.files import DepthFormat, read_mask
from das3d.layouts import splits_in
from das3d.metrics import evaluate_maps
from das3d.parts import Part
from das3d.streaming import (
    Inspected,
    errors_of,
    inspect_parts,
    of_another,
    read_map,
    warn_of_others,
    write_regions,
    write_scores,
)
from das3d.threshold import UNLIKELY


def evaluate(
    detector: Detector,
    data: Path | str,
    out: Path | str,
    *,
    category: str | None = None,
    light: int | None = None,
    depth_format: DepthFormat | None = None,
) -> dict[str, Any]:
    """Score every test part and compare with the ground truth, on the pixel grid of the parts' own images.

    Parts that cannot be read, prepared or computed are named, in a warning and in the notes, and the figures are those of
    the others.

    Args:
        detector: a trained one.
        data: folder in any layout that `find_dataset` knows, with test parts.
        out: folder for ``metrics.json``, ``scores.csv``, ``regions.json`` and ``maps/``.
        category: which one, where `data` holds several; the one trained on where None and it is there.
        light, depth_format: as for `find_dataset`; where None, as in training.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        DataError: there are no test parts, or none of the good or of the defective ones can be judged; all that cannot are
            named. Or `out` lies in the data.
    """
    expect_kind(Detector, detector, "detector", ModelError, giver="load")
    data, out = path_of(data, "data"), path_of(out, "out")
    settings = detector.settings
    data = data if category else folder_of(data, detector.training.get("category"))
    reading = detector.reading(light=light, depth_format=depth_format)
    dataset = find_dataset(data, category, needs="test", headers=False, **reading)
    expect_outside(out, dataset.root)
    tested, told = _tested(dataset, detector)
    warn_of_others(out / "scores.csv", tested)
    (out / "metrics.json").unlink(missing_ok=True)  # figures of before do not belong to the maps that are written now
    results, failed = _judged(list(inspect_parts(detector, tested, out / "maps", doubtful=True)), detector, dataset)
    write_scores(out / "scores.csv", results, verdicts=False)
    write_regions(out / "regions.json", results, detector)
    with progress("metrics") as step:
        metrics: dict[str, Any] = dict(
            evaluate_maps(
                LazyMaps([result.map_file for result in results if result.map_file]),
                LazyMasks([result.part for result in results]),
                [int(result.part.defective) for result in results],
                [result.prediction.score for result in results if result.prediction],
                [result.part.defect for result in results],
                names=[result.part.id for result in results],
            )
        )
        step()
    sizes = sorted({result.size for result in results if result.size})
    metrics |= {
        "map_size": [list(size) for size in sizes],  # height x width; maps are compared at the parts' own resolution
        "data": os.path.abspath(dataset.root),
        "layout": dataset.layout,
        "category": dataset.category,
        "light": dataset.light,
        "depth_format": None if reading["depth_format"] is None else asdict(reading["depth_format"]),
        "modality": settings.modality,
        "preset": settings.preset,
        "seed": settings.seed,
        "threshold": None if detector.threshold is None else detector.threshold.summary(),
        "false_alarms": _share(results, defective=False),
        "detected": _share(results, defective=True),
        "engine": detector.engine.describe(),
        "false_alarm_probabilities": _good_probabilities(results),
        "training": detector.training,
        "das3d": das3d.__version__,
    }
    seen = _trained_on(results)
    doubtful = [result for result in results if result.doubt]
    if doubtful:
        what = f"{len(doubtful)} of {counted(len(results), 'part')} would get no verdict, such as {doubtful[0].part.id}"
        told.append(f"{what}: {doubtful[0].doubt}; they count here by their scores")
    metrics["notes"] += [*failed, *told, *seen, *_too_many_alarms(results, detector)]
    write_atomically(out / "metrics.json", json.dumps(metrics, indent=2).encode())
    return metrics


def _judged(results: list[Inspected], detector: Detector, dataset: Dataset) -> tuple[list[Inspected], list[str]]:
    # Those with a score, and a note on the others; they must not be all of a kind, without which there are no figures.
    failed = [result for result in results if result.error]
    judged = [result for result in results if not result.error]
    if not failed:
        return judged, []
    if {one.part.defective for one in judged} != {one.part.defective for one in results}:
        raise DataError([*errors_of(results), *([] if judged else of_another(detector, dataset.root))])
    for result in failed:
        warn(f"not judged: {result.error}")
    named = ", ".join(result.part.id for result in failed)  # all, as no table has them
    return judged, [f"{len(failed)} of {counted(len(results), 'part')} could not be judged: {named}"]


def _tested(dataset: Dataset, detector: Detector) -> tuple[list[Part], list[str]]:
    # The test parts, and notes on them. In a folder that nobody has split das3d chooses them by what is there, which may
    # have been less when the model was trained: good parts that training has not seen are tested, whatever is chosen now.
    train, held_out = (set(detector.fingerprints.get(seen, ())) for seen in ("train", "held_out"))
    if dataset.layout != "folder" or not train or splits_in(dataset.root):
        return list(dataset.test), []
    good = [(part, _fingerprint_of(part, detector)) for part in dataset.parts if not part.defective]
    fresh = [part for part, mark in good if mark and mark not in train | held_out]
    known = [part for part, mark in good if mark in held_out - train]
    chosen = fresh or known
    if not chosen:  # figures that promise too much, as the notes say, are better than none
        return list(dataset.test), []
    chosen += [part for part, mark in good if not mark and part.split == "test"]  # which inspection will name
    ids, more = {part.id for part in chosen}, sum(part.split != "test" for part in chosen)
    if fresh and more:
        what = counted(more, "good part")
        say(f"tested too: {what} that training on this folder would keep and this model has never seen")
    notes = []
    if not fresh and known:
        notes.append(f"the {len(known)} good parts are those that the threshold rests on: their false alarms say nothing")
    return [part for part in dataset.parts if (part.defective and part.split == "test") or part.id in ids], notes


def _fingerprint_of(part: Part, detector: Detector) -> str:
    # "" of a part that cannot be read, which shows when it is inspected.
    try:
        return detector.fingerprint_of(part)
    except DataError:
        return ""


def _share(results: Sequence[Any], *, defective: bool) -> float | None:
    # Of the good, or of the defective, parts: the share that the threshold calls defective.
    verdicts = [r.prediction.defective for r in results if r.prediction and r.part.defective is defective]
    if not verdicts or None in verdicts:
        return None
    return float(np.mean(verdicts))


def _good_probabilities(results: Sequence[Inspected]) -> list[float] | None:
    # Of the good parts, ascending. Where these are like the held-out ones, they spread evenly over 0 to 1.
    found = [r.prediction.false_alarm_probability for r in results if r.prediction and not r.part.defective]
    return sorted(chance for chance in found if chance is not None) or None


def _trained_on(results: Sequence[Inspected]) -> list[str]:
    seen = [result.part.id for result in results if result.trained_on and not result.part.defective]
    if not seen:
        return []
    return [f"{len(seen)} good test parts are among those trained on, such as {seen[0]}: figures promise too much"]


def _too_many_alarms(results: Sequence[Inspected], detector: Detector) -> list[str]:
    # A line where the good parts raise more false alarms than chance explains.
    verdicts = [bool(r.prediction.defective) for r in results if r.prediction and not r.part.defective]
    if detector.threshold is None or (chance := detector.threshold.surprise(sum(verdicts), len(verdicts))) >= UNLIKELY:
        return []
    return [
        f"{sum(verdicts)} of {len(verdicts)} good parts lie above the threshold, which parts like the held-out ones do "
        f"with a probability of {chance:.2g}: good parts have changed; das3d calibrate sets the threshold by new ones"
    ]


class LazyMaps(Sequence[NDArray[np.float32]]):
    """Maps read from their files when they are needed, so that memory does not grow with the number of parts."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    @overload
    def __getitem__(self, index: int) -> NDArray[np.float32]: ...
    @overload
    def __getitem__(self, index: slice) -> LazyMaps: ...
    def __getitem__(self, index: int | slice) -> NDArray[np.float32] | LazyMaps:
        return LazyMaps(self.files[index]) if isinstance(index, slice) else read_map(self.files[index])


class LazyMasks(Sequence[Any]):
    """Ground truth read when it is needed; None for good parts and where nobody has marked the defect."""

    def __init__(self, parts: list[Part]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return LazyMasks(self.parts[index])
        part = self.parts[index]
        # Those of good parts mark nothing, as `Part.read` made sure, and every pass over the pixels would read them again.
        masks = [read_mask(file) for file in part.masks] if part.defective else []
        return np.logical_or.reduce(masks) if masks else None
