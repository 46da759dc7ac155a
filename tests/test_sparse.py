"""Depth on pixels apart: what lies between them against the truth, and data that must stay as it is."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from scenes import Scene, iou, see

from das3d.errors import DataError
from das3d.measurement import measure
from das3d.preparation import prepare
from das3d.scan import Scan, scan_from_arrays
from das3d.settings import PreparationSettings
from das3d.sparse import DENSE, dense, density

SETTINGS = PreparationSettings(size=96)
SIZE = (300, 360)
V, U = np.indices(SIZE)
PATTERNS = {
    "every 2nd pixel": (V % 2 == 0) & (U % 2 == 0),
    "every 3rd pixel": (V % 3 == 1) & (U % 3 == 2),
    "every 3rd row": V % 3 == 0,
    "20 % by chance": np.random.default_rng(0).random(SIZE) < 0.2,
}


def seen(seed: int = 0, noise: float = 0.0003) -> Scene:
    return see(size=SIZE, focal=1000.0, seed=seed, noise=noise)


def measured_on(where: np.ndarray, seed: int = 0, noise: float = 0.0003) -> Scan:
    scene = seen(seed, noise)
    return scan_from_arrays(scene.rgb, np.where(where, scene.depth, 0), mask=scene.part, name=f"{seed}.png")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_sparse_depth_becomes_that_of_the_surface(pattern: str) -> None:
    where, scene = PATTERNS[pattern], seen(noise=0.0)
    scan = measured_on(where, noise=0.0)
    filled = dense(scan)
    assert filled.depth is not None and filled.valid is not None and scan.depth is not None
    assert np.array_equal(filled.depth[where], scan.depth[where]), "measured pixels keep their depth"
    assert filled.valid.mean() > 0.95 and not filled.depth[~filled.valid].any()
    smooth = cv2.dilate((np.abs(cv2.Laplacian(scene.depth, cv2.CV_64F)) > 0.001).astype(np.uint8), np.ones((13, 13))) == 0
    inner = filled.valid & smooth & (V > 8) & (V < 291) & (U > 8) & (U < 351)
    assert inner.mean() > 0.5
    error = np.abs(filled.depth - scene.depth)[inner]
    assert np.quantile(error, 0.99) < 0.0003 and error.max() < 0.001, "where a pixel is 0.6 mm wide"
    assert filled.depth[filled.valid].min() >= scan.depth[where].min()
    assert filled.depth.max() <= scan.depth.max()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_sparse_depth_is_measured_and_prepared_like_dense(pattern: str) -> None:
    everywhere = np.ones(SIZE, dtype=bool)
    whole = measure([measured_on(everywhere, seed) for seed in range(3)], SETTINGS)
    sparse = measure([measured_on(PATTERNS[pattern], seed) for seed in range(3)], SETTINGS)
    assert sparse.background == "plane"
    assert sparse.far - sparse.near == pytest.approx(whole.far - whole.near, rel=0.05)
    assert sparse.window == pytest.approx(whole.window, abs=9)
    one, other = (prepare(measured_on(p, 7), sparse, SETTINGS) for p in (PATTERNS[pattern], everywhere))
    assert one.doubt == other.doubt == ""
    assert iou(one.foreground, other.foreground) > 0.9
    assert one.valid[one.foreground].mean() > 0.95
    inner = cv2.erode((one.foreground & other.foreground).astype(np.uint8), np.ones((7, 7))) > 0
    assert np.abs(one.depth - other.depth)[inner].mean() < 0.02


def test_holes_stay_holes() -> None:
    hole = (V > 100) & (V < 160) & (U > 120) & (U < 200)
    valid = dense(measured_on(PATTERNS["every 3rd pixel"] & ~hole)).valid
    assert valid is not None
    assert valid[hole].mean() < 0.01 and valid[~hole].mean() > 0.98


def test_dense_depth_stays_as_it_is() -> None:
    # A third in holes of 12 pixels, and more by chance: less than half of all is left, but it lies closely.
    holes = cv2.resize(np.random.default_rng(1).random((25, 30)), SIZE[::-1], interpolation=cv2.INTER_NEAREST) < 0.33
    where = ~holes & (np.random.default_rng(2).random(SIZE) < 0.7)
    assert where.mean() < 0.5
    scans = [measured_on(where), measured_on(np.ones(SIZE, dtype=bool)), seen().scan().without(depth=True)]
    for scan in scans:
        assert dense(scan) is scan


def test_density() -> None:
    assert density(np.ones((100, 100), dtype=bool)) > 0.98
    assert density(PATTERNS["every 2nd pixel"]) == 0 == density(np.zeros((5, 5), dtype=bool))
    assert density(PATTERNS["20 % by chance"]) == pytest.approx(0.2, abs=0.01)
    assert density(PATTERNS["every 3rd row"]) < DENSE


def test_depth_too_sparse_to_fill_is_refused_in_training() -> None:
    scans = [measured_on((V % 20 == 0) & (U % 20 == 0), seed) for seed in range(2)]
    with pytest.raises(DataError, match=r"0\.png: expected depth on 100 pixels that lie together .* on 270 of 108000"):
        measure(scans, SETTINGS)


def test_sparse_depth_of_a_sensor_that_gave_dense_is_in_doubt() -> None:
    statistics = measure([seen(seed).scan() for seed in range(3)], SETTINGS)
    doubt = prepare(measured_on(PATTERNS["20 % by chance"]), statistics, SETTINGS).doubt
    assert "found it on 20%: too sparse to judge it" in doubt
    assert not prepare(seen(5).scan(), statistics, SETTINGS).doubt
