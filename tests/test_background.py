"""The background plane, fitted to scenes with known truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import COVER, FILLING, Box, Dome, see, with_holes
from sklearn.linear_model import RANSACRegressor

from das3d.background import BORDER, background_distance, fit_background, fit_surface, plane_depth
from das3d.scan import Scan, scan_from_arrays
from das3d.settings import PreparationSettings

SETTINGS = PreparationSettings(size=64)  # of windows of about 96 pixels
PAPER = PreparationSettings(size=64, crop=False, level=False, background_distance=0.005, stretch=False)
SMALL = (Dome(0, 0, 0.02),)


@given(tilt=st.floats(-40, 40), roll=st.floats(-30, 30), distance=st.floats(0.3, 3.0), seed=st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_plane_is_exact_without_noise(tilt: float, roll: float, distance: float, seed: int) -> None:
    scene = see(tilt=tilt, roll=roll, distance=distance, noise=0.0, size=(90, 120), focal=300.0, solids=SMALL)
    scan = scene.scan()
    assert scan.depth is not None and scan.valid is not None
    fit = fit_background(scan.depth, scan.valid, seed=seed)
    assert fit is not None
    assert plane_depth(fit.plane, scan.size) == pytest.approx(scene.table, rel=1e-6)
    assert fit.noise < 1e-6 * distance


@pytest.mark.parametrize("noise", [0.0001, 0.0005])
@pytest.mark.parametrize("tilt", [0.0, 18.0, 35.0])
def test_plane_and_its_noise_are_found_under_noise(tilt: float, noise: float) -> None:
    scene = see(tilt=tilt, noise=noise)
    scan = scene.scan()
    assert scan.depth is not None and scan.valid is not None
    fit = fit_background(scan.depth, scan.valid)
    assert fit is not None
    assert np.abs(plane_depth(fit.plane, scan.size) - scene.table).max() < 0.1 * noise
    assert fit.noise == pytest.approx(noise, rel=0.1)
    assert fit.support > 0.98
    assert fit == fit_background(scan.depth, scan.valid), "the same scan must give the same plane"


def test_plane_agrees_with_scikit_learn() -> None:
    scan = see(solids=(*COVER, Box(-0.3, 0.3, 0.075, 0.3, 0.15))).scan()  # a wall hides a quarter of the border
    assert scan.depth is not None and scan.valid is not None
    strip = np.ones(scan.size, dtype=bool)
    strip[BORDER:-BORDER, BORDER:-BORDER] = False
    v, u = np.nonzero(strip)
    tolerance = 0.003 / 0.6
    foreign = RANSACRegressor(residual_threshold=tolerance, random_state=0).fit(np.c_[u, v], 1 / scan.depth[v, u])
    v, u = np.indices(scan.size)
    expected = 1 / foreign.predict(np.c_[u.ravel(), v.ravel()]).reshape(scan.size)
    fit = fit_background(scan.depth, scan.valid)
    assert fit is not None
    assert np.abs(plane_depth(fit.plane, scan.size) - expected).max() < 0.0001
    assert 0.5 < fit.support < 0.8


@pytest.mark.parametrize("empty", [np.s_[:6], np.s_[:, -30:], np.s_[-9:]])
def test_plane_is_found_where_a_side_of_the_frame_is_not_measured(empty: Any) -> None:
    scene = see()
    holes = np.zeros(scene.part.shape, dtype=bool)
    holes[empty] = True
    scan = with_holes(scene, holes, np.nan)
    assert scan.depth is not None and scan.valid is not None
    fit = fit_background(scan.depth, scan.valid)
    assert fit is not None
    assert np.abs(plane_depth(fit.plane, scan.size) - scene.table).max() < 0.0001


@pytest.mark.parametrize("share", [0.9, 0.85])
def test_a_plane_through_part_and_table_is_not_the_background(share: float) -> None:
    # A flat block runs out of the frame on two sides. A plane through its top and the table has most support.
    side = 300
    table = plane_depth((0.02, 0.1, 1.48), (side, side))
    for seed in range(4):
        rng = np.random.default_rng(seed)
        column, row = (share * side + rng.integers(-3, 4, 2)).astype(int)
        depth = table + 0.0004 * rng.normal(size=table.shape)
        depth[:row, :column] -= 0.03
        fit = fit_background(depth.astype(np.float32), np.ones(table.shape, dtype=bool))
        assert fit is not None
        np.testing.assert_allclose(plane_depth(fit.plane, table.shape), table, atol=0.002)


def test_no_plane_where_there_is_none() -> None:
    def fits(scan: Scan) -> bool:
        assert scan.depth is not None and scan.valid is not None
        return fit_background(scan.depth, scan.valid) is not None

    filling = see(solids=FILLING)
    assert filling.part.all()
    assert not fits(filling.scan()), "the part fills the frame"
    border = np.ones(filling.part.shape, dtype=bool)
    border[40:-40, 40:-40] = False
    assert not fits(with_holes(see(), border)), "nothing is measured where a plane is looked for"
    assert not fits(with_holes(see(), ~see().part)), "nothing but the part is measured"
    walls = tuple(Box(x, x + 0.2, -0.3, 0.3, h) for x, h in ((-0.285, 0.1), (0.085, 0.15)))
    assert not fits(see(solids=(*walls, Box(-0.3, 0.3, 0.04, 0.3, 0.2))).scan()), "most of the border shows walls"
    rng = np.random.default_rng(0)
    assert not fits(scan_from_arrays(depth=rng.uniform(0.3, 0.9, (60, 80)))), "nothing but noise"
    assert not fits(scan_from_arrays(depth=np.full((3, 5), 0.5))), "too few points"
    assert not fits(see(tilt=85.0, solids=()).scan()), "the table ends at a horizon"


def test_depth_of_a_plane_that_turns_away_is_infinite() -> None:
    depth = plane_depth((2.0, 0.0, -1.0), (3, 4))
    assert np.isinf(depth[:, :3]).all()
    assert depth[:, 3] == pytest.approx(2.0)
    assert depth.dtype == np.float32


def test_surface_of_a_part_without_background_is_fitted_despite_outliers() -> None:
    scene = see(solids=(), noise=0.0002)
    depth = scene.depth.copy()
    depth[40:70, 60:100] -= 0.05  # a tenth of the surface stands out
    scan = scan_from_arrays(depth=np.where(np.random.default_rng(0).random(depth.shape) < 0.2, 0, depth))
    assert scan.depth is not None and scan.valid is not None
    assert np.abs(plane_depth(fit_surface(scan.depth, scan.valid), scan.size) - scene.table).max() < 0.0005
    one = np.zeros(scan.size, dtype=bool)
    one[7, 9] = True
    alone = plane_depth(fit_surface(np.where(one, np.float32(0.5), np.float32(0)), one), scan.size)
    assert alone == pytest.approx(0.5), "a lone point lies in a plane that faces the camera"


def test_distance_to_the_background_follows_the_noise_unless_set() -> None:
    for noise, expected in ((0.00001, 0.003 * 0.6), (0.0006, 5 * 0.0006)):
        scan = see(noise=noise).scan()
        assert scan.depth is not None and scan.valid is not None
        fit = fit_background(scan.depth, scan.valid)
        assert fit is not None
        assert background_distance(fit, SETTINGS) == pytest.approx(expected, rel=0.1)
        assert background_distance(fit, PAPER) == 0.005


def test_points_behind_a_plane_are_looked_for_wherever_depth_was_measured() -> None:
    # Every second pixel alone, none of which a grid from the corner of the frame meets. A plate fills most of the border.
    scan = see(solids=(Box(-0.3, 0.3, -0.3, 0.055, 0.05),), size=(150, 180)).scan()
    assert scan.depth is not None
    valid = np.zeros(scan.size, dtype=bool)
    valid[1::2, 1::2] = True
    fits = [fit_background(scan.depth, where) for where in (valid, np.ones(scan.size, dtype=bool))]
    planes = [None if fit is None else plane_depth(fit.plane, scan.size) for fit in fits]
    assert planes[0] is not None and planes[1] is not None
    assert planes[0] == pytest.approx(planes[1], abs=0.001)
