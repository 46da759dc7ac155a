"""Whether an exported model says what the trained one says: on which parts that is looked at, and how far it is off."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from das3d.console import counted, warn
from das3d.datasets import find_folder, folder_of
from das3d.detector import Detector
from das3d.engines import BATCH, in_batches
from das3d.errors import DataError
from das3d.parts import Part
from das3d.preparation import PreparedScan
from das3d.prepared import prepare_part
from das3d.window import Window


@dataclass(frozen=True)
class Computed:
    """What a detector makes of N parts: scores (N,), maps (N, S, S), and how many milliseconds a part takes it."""

    scores: NDArray[np.float32]
    maps: NDArray[np.float32]
    ms: float


@dataclass(frozen=True)
class Agreement:
    """How a model on one engine compares with the trained model in full precision.

    Attributes:
        engine: which one, with precision and device.
        score, map: largest absolute difference.
        verdicts_changed: how many; None where the model has no threshold.
        ms: milliseconds a part.
    """

    engine: str
    score: float
    map: float
    verdicts_changed: int | None
    ms: float


def compute(detector: Detector, scans: Sequence[PreparedScan]) -> Computed:
    """Scores and maps on the networks' own grid, in batches of `BATCH`; the time does not count what warms up."""
    detector.run(scans[:BATCH])
    begun = time.perf_counter()
    outputs = [detector.run(batch) for batch in in_batches(scans)]
    ms = (time.perf_counter() - begun) / len(scans) * 1000
    return Computed(np.concatenate([o.score for o in outputs]), np.concatenate([o.map for o in outputs]), ms)


def agreement(exported: Detector, scans: Sequence[PreparedScan], trained: Computed) -> Agreement:
    """Compare an exported model with what `compute` made of the same scans by the trained one."""
    found = compute(exported, scans)
    changed = 0
    if exported.threshold is not None:
        pairs = zip(found.scores.tolist(), trained.scores.tolist(), strict=True)
        changed = sum(exported.verdict(one) is not exported.verdict(other) for one, other in pairs)
    return Agreement(
        exported.engine.describe(),
        float(np.abs(found.scores - trained.scores).max()),
        float(np.abs(found.maps - trained.maps).max()),
        None if exported.threshold is None else changed,
        round(found.ms, 2),
    )


# ------------------------------------------------------------------------------------------- parts


def find_parts(detector: Detector, data: Path | str | None) -> tuple[list[Part], str]:
    """Real parts to compare by, and where they are from.

    Args:
        detector: the trained one; it knows its category and how its parts were read.
        data: their folder; the training data where None. If that is no longer there, there are no parts.

    Raises:
        DataError: there is something wrong with the folder that was told.
    """
    if data is None:
        known = str(detector.training.get("data", ""))
        try:
            return find_parts(detector, known) if known else ([], "")
        except DataError:
            return [], known
    root = folder_of(Path(data), detector.training.get("category"))
    return find_folder(root, check=False, truth=False, **detector.reading()), str(root)


def prepare_some(detector: Detector, parts: Sequence[Part], most: int) -> list[PreparedScan]:
    """At most so many of the parts, spread evenly over them, prepared; others take the place of those that cannot be."""
    chosen = np.linspace(0, len(parts) - 1, min(most, len(parts))).round().astype(int)
    scans: list[PreparedScan] = []
    problems: list[str] = []
    for i in [*chosen, *np.setdiff1d(np.arange(len(parts)), chosen)]:
        if len(scans) == most:
            break
        try:
            scans.append(prepare_part(parts[i], detector.statistics, detector.settings.preparation))
        except DataError as error:
            problems += error.problems[:1]
    if problems:
        warn(f"{counted(len(problems), 'part')} left out that cannot be prepared, such as {problems[0]}")
    return scans


def made_up_parts(side: int, count: int, seed: int = 0) -> list[PreparedScan]:
    """Smooth blobs of colour and height with some noise, where there is no real part."""
    rng = np.random.default_rng(seed)
    window = Window.square(0, 0, side, (side, side))
    scans = []
    for index in range(count):
        smooth = np.asarray(cv2.resize(rng.random((6, 6, 5), np.float32), (side, side), interpolation=cv2.INTER_CUBIC))
        noisy = np.clip(smooth + rng.normal(0, 0.02, smooth.shape), 0, 1)
        part = smooth[..., 4] > 0.4
        rgb = np.where(part[..., None], noisy[..., :3] * 255, 0).astype(np.uint8)
        depth = np.where(part, noisy[..., 3], 1).astype(np.float32)
        scans.append(PreparedScan(f"made up {index}", rgb, depth, part, part, None, window))
    return scans
