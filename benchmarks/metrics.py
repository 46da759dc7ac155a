"""Time, memory and figures of the exact AU-PRO against a 100-threshold version, on made-up maps.

python benchmarks/metrics.py --maps 100 --size 800 --seed 0
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import ndimage

from das3d.metrics import aupro

Maps = list[NDArray[np.float32]]
Masks = list[NDArray[np.bool_]]
LIMITS = (0.3, 0.01)


def make_category(n_maps: int, size: int, seed: int) -> tuple[Maps, Masks]:
    """Smooth noise, exactly 0 over about a third of each map as on a removed background; a fifth of the parts is good.

    Defects are one to three discs, about 1 % of the pixels; their scores are raised by a random amount.
    """
    rng = np.random.default_rng(seed)
    row, column = np.ogrid[:size, :size]
    maps, masks = [], []
    for part in range(n_maps):
        mask = np.zeros((size, size), bool)
        score_map = ndimage.gaussian_filter(rng.normal(size=mask.shape), size / 80)
        score_map = score_map / score_map.std() + 0.4
        for _ in range(0 if part % 5 == 4 else rng.integers(1, 4)):
            centre, radius = rng.uniform(0.1, 0.9, 2) * size, rng.uniform(0.01, 0.06) * size
            disc = np.hypot(row - centre[0], column - centre[1]) < radius
            mask |= disc
            score_map[disc] += rng.uniform(0, 4)
        maps.append(np.maximum(score_map, 0).astype(np.float32))
        masks.append(mask)
    return maps, masks


def sampled_aupro(maps: Maps, masks: Masks, limits: Sequence[float], n_thresholds: int = 100) -> dict[float, float]:
    """AU-PRO as scripts in wide use take it: equally spaced thresholds between the lowest and the highest score.

    At each threshold the maps are binarised, and the covered share of each region and the false positive rate are
    counted over all pixels. Points up to the limit are kept, the rates divided by the largest one kept.
    """
    regions = [ndimage.label(mask, np.ones((3, 3)))[0] for mask in masks]
    thresholds = np.linspace(min(m.min() for m in maps), max(m.max() for m in maps), n_thresholds)
    n_good = sum(np.count_nonzero(~mask) for mask in masks)
    fpr, pro = np.zeros(n_thresholds), np.zeros(n_thresholds)
    for t, threshold in enumerate(thresholds[::-1]):
        covered: list[float] = []
        for score_map, mask, region in zip(maps, masks, regions, strict=True):
            above = score_map >= threshold
            fpr[t] += np.count_nonzero(above & ~mask) / n_good
            covered += (np.bincount(region[above], minlength=region.max() + 1) / np.bincount(region.ravel()))[1:].tolist()
        pro[t] = np.mean(covered)
    areas = {}
    for limit in limits:
        keep = fpr <= limit
        areas[limit] = float(np.trapezoid(pro[keep], fpr[keep])) / max(float(fpr[keep].max()), 1e-12)
    return areas


def measure(work: Callable[[], dict[float, float]]) -> tuple[dict[float, float], float, float]:
    """Result, seconds, and the peak of memory in MiB that the work took beyond its input."""
    tracemalloc.start()
    start = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - start
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return result, seconds, peak


def main() -> None:
    """Print one row a version, and the difference of the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--maps", type=int, default=100, help="number of parts")
    parser.add_argument("--size", type=int, default=800, help="height and width of a map in pixels")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    maps, masks = make_category(options.maps, options.size, options.seed)
    held = sum(array.nbytes for array in (*maps, *masks)) / 2**20
    share = np.mean([mask.mean() for mask in masks])

    table = Table(title=f"{options.maps} maps of {options.size} x {options.size}, {share:.1%} defect, input {held:.0f} MiB")
    for heading in ("version", "time [s]", "peak beyond input [MiB]", *(f"AU-PRO@{limit}" for limit in LIMITS)):
        table.add_column(heading, justify="left" if heading == "version" else "right")
    figures = []
    versions: tuple[tuple[str, Callable[[], dict[float, float]]], ...] = (
        ("exact", lambda: aupro(maps, masks, LIMITS)),
        ("100 thresholds", lambda: sampled_aupro(maps, masks, LIMITS)),
    )
    for name, work in versions:
        areas, seconds, peak = measure(work)
        figures.append(areas)
        table.add_row(name, f"{seconds:.2f}", f"{peak:.0f}", *(f"{areas[limit]:.4f}" for limit in LIMITS))
    table.add_row("difference", "", "", *(f"{figures[1][limit] - figures[0][limit]:+.4f}" for limit in LIMITS))
    Console().print(table)


if __name__ == "__main__":
    main()
