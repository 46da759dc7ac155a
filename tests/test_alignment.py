"""The shift between RGB and depth, found from their edges, and how well both fit."""

from __future__ import annotations

import numpy as np
import pytest
from scenes import Box, Dome, Scene, see

from das3d.datacheck.alignment import REACH, Alignment, align

OTHER = (Dome(0.02, 0.01, 0.02), Box(-0.05, -0.03, -0.03, 0.03, 0.015))


def aligned(scene: Scene, *, right: int = 0, down: int = 0, rgb: Scene | None = None) -> Alignment:
    moved = np.roll((rgb or scene).rgb, (down, right), axis=(0, 1))
    relief = (scene.depth - scene.table).astype(np.float32)
    found = align(moved, relief, np.ones(scene.depth.shape, bool), scene.part)
    assert found is not None
    return found


@pytest.mark.parametrize(("right", "down"), [(0, 0), (8, 0), (-8, 0), (0, 8), (5, -6), (-11, 3)])
def test_a_shift_is_found_to_the_pixel(right: int, down: int) -> None:
    found = aligned(see(seed=1), right=right, down=down)
    assert (found.right, found.down) == pytest.approx((right, down), abs=1)


def test_missing_depth_does_not_mislead() -> None:
    scene, rng = see(seed=2), np.random.default_rng(0)
    valid = rng.random(scene.depth.shape) > 0.2
    relief = np.where(valid, scene.depth - scene.table, 0).astype(np.float32)
    found = align(np.roll(scene.rgb, 6, axis=1), relief, valid, scene.part)
    assert found is not None and (found.right, found.down) == pytest.approx((6, 0), abs=1)


def test_another_part_fits_less_than_the_same_shifted() -> None:
    scene = see(seed=3)
    other = see(seed=3, solids=OTHER)
    assert aligned(scene, rgb=other).fit < 0.6 * aligned(scene, right=8).fit


def test_a_large_frame_is_looked_at_coarsely_but_told_in_its_own_pixels() -> None:
    scene = see(size=(600, 720), focal=2000.0, seed=4)
    found = aligned(scene, right=16, down=-8)
    assert (found.right, found.down) == pytest.approx((16, -8), abs=2)


def test_nothing_to_compare_gives_nothing() -> None:
    shape = (60, 70)
    flat, everywhere = np.zeros(shape, np.float32), np.ones(shape, bool)
    assert align(np.zeros((*shape, 3), np.uint8), flat, everywhere, everywhere) is None
    tiny = (REACH // 8, REACH // 8)
    assert (
        align(np.zeros((*tiny, 3), np.uint8), np.zeros(tiny, np.float32), np.ones(tiny, bool), np.ones(tiny, bool)) is None
    )
