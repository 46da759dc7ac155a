"""Are regions told truly? On held-out good parts with synthetic defects, so that the truth is known.

    python benchmarks/regions.py RUN --data DATA --category cable_gland

Parts are harmed in colour alone, in shape alone, and as in training, with other random numbers than calibration draws. Of
the region that meets the defect: is the evidence that of the modality that was harmed, does the height agree with the
change that was made, and how much of the defect does the region cover?
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from das3d.calibration import harmed
from das3d.datasets import find_dataset
from das3d.detector import Detector, load
from das3d.parts import Part
from das3d.prepared import prepare_part
from das3d.regions import Region

OTHER = 5000  # numbers of parts begin here, so that no defect is one that calibration saw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--category")
    parser.add_argument("--parts", type=int, default=20)
    options = parser.parse_args()
    detector = load(options.run, "cpu")
    parts = find_dataset(options.data, options.category, **detector.reading()).validation[: options.parts]
    heights: list[tuple[float, Region]] = []
    print("| harmed | defects | found | colour | shape | both | unclear | median colour share | median IoU |")
    print("|---|---|---|---|---|---|---|---|---|")
    for only in ("colour", "shape", None):
        heights += rows(detector, list(parts), only)
    noise = detector.norms.height_noise_mm if detector.norms else None
    true, found = np.array([height for height, _ in heights]), np.array([region.height_mm for _, region in heights])
    told = np.abs(found) > (noise or 0)
    right = np.mean((np.sign(true) == np.sign(found))[told]) if told.any() else np.nan
    print(f"\n{len(heights)} heights of defects in shape alone: median error {np.median(np.abs(true - found)):.2f} mm, "
          f"correlation {np.corrcoef(true, found)[0, 1]:.2f}; {told.sum()} of them above the {noise or 0:.2f} mm that good "
          f"parts show, with the right sign in {right:.0%}")  # fmt: skip


def rows(detector: Detector, parts: list[Part], only: Literal["colour", "shape"] | None) -> list[tuple[float, Region]]:
    """Print one row; the true and the told heights of regions of defects in shape."""
    named: Counter[str] = Counter()
    shares, overlaps, heights, defects = [], [], [], 0
    millimetres = 1000 * (detector.statistics.far - detector.statistics.near)
    for number, part in enumerate(parts):
        scan = prepare_part(part, detector.statistics, detector.settings.preparation)
        made = [one for kind in harmed(scan, detector.settings, OTHER + number, 1, only=only).values() for one in kind]
        defects += len(made)
        for one, prediction in zip(made, detector.predict_prepared(made), strict=True):
            truth = scan.window.put_back(one.mask.astype(np.float32)) > 0.5
            region = max(prediction.regions, key=lambda region: overlap(region, truth), default=None)
            if region is None or overlap(region, truth) == 0:
                continue
            named[region.evidence] += 1
            shares.append(region.colour)
            drawn = np.zeros(truth.shape, np.uint8)
            cv2.fillPoly(drawn, [np.array(region.outline, np.int32)], 1)
            overlaps.append((truth & (drawn > 0)).sum() / (truth | (drawn > 0)).sum())
            if only == "shape" and region.height_mm is not None:
                change = (scan.depth - one.depth)[one.mask] * millimetres
                low, high = np.quantile(change, (0.2, 0.8))
                heights.append((float(high if high > -low else low), region))
    kinds = " | ".join(str(named[kind]) for kind in ("colour", "shape", "both", "unclear"))
    print(f"| {only or 'as in training'} | {defects} | {sum(named.values())} | {kinds} | {np.median(shares):.2f} "
          f"| {np.median(overlaps):.2f} |", flush=True)  # fmt: skip
    return heights


def overlap(region: Region, truth: NDArray[np.bool_]) -> int:
    """Pixels of the defect inside the region's box."""
    left, top, width, height = region.box
    return int(truth[top : top + height, left : left + width].sum())


if __name__ == "__main__":
    main()
