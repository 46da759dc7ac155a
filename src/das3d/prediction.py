"""Prediction on new parts from files: one part, or a folder of many."""

from __future__ import annotations

from pathlib import Path

from das3d.datasets import DepthFormat, Part, find_folder
from das3d.detector import Detector
from das3d.errors import DataError
from das3d.inspection import Inspected, inspect_parts, write_scores


def predict_part(
    detector: Detector, rgb: Path | None, depth: Path | None, out: Path, *, depth_format: DepthFormat | None = None
) -> Inspected:
    """Score one part from its files and write ``scores.csv``, its map (float TIFF) and its overlay (PNG) into `out`.

    Raises:
        DataError: a file is missing, unreadable or does not fit the model.
    """
    for file in (rgb, depth):
        if file is not None and not file.is_file():
            raise DataError(f"{file}: expected a file, found none")
    name = (rgb or depth or Path("part")).stem
    part = Part(
        id=name, split="test", defect="unknown", rgb=rgb, depth=depth, masks=(),
        depth_format=depth_format or _trained_format(detector),
    )  # fmt: skip
    result = next(inspect_parts(detector, [part], out))
    if result.error:
        raise DataError(result.error)
    write_scores(out / "scores.csv", [result], verdicts=True)
    return result


def predict_folder(
    detector: Detector, folder: Path, out: Path, *, light: int = 4, depth_format: DepthFormat | None = None
) -> list[Inspected]:
    """Score every part of a folder in any layout; parts that fail are listed with their error in ``scores.csv``."""
    settings = detector.settings
    parts = find_folder(
        folder, rgb=settings.uses_rgb, depth=settings.uses_depth, light=light,
        depth_format=depth_format or _trained_format(detector),
    )  # fmt: skip
    results = list(inspect_parts(detector, parts, out))
    write_scores(out / "scores.csv", results, verdicts=True)
    return results


def _trained_format(detector: Detector) -> DepthFormat | None:
    # A part without a declared unit is read as the training parts were.
    known = detector.training.get("depth_format")
    return DepthFormat(**known) if known else None
