"""Pictures: sizes, colours, ranges, and what comes back from disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image

from das3d.pictures import depth_picture, grey, heat, overlay, save_picture, sheet
from das3d.scan import Scan, scan_from_arrays

SIZE = (6, 9)


def colour_scan(value: int = 100) -> Scan:
    return scan_from_arrays(np.full((*SIZE, 3), value, np.uint8), np.full(SIZE, 0.5))


def test_heat_runs_from_blue_over_green_to_red() -> None:
    low, middle, high = heat(np.array([[0.1, 0.5, 0.9]]))[0].astype(int)
    assert low.argmax() == 2 and middle.argmax() == 1 and high.argmax() == 0
    colours = heat(np.linspace(0, 1, 256)[None])[0]
    assert len(np.unique(colours, axis=0)) == 256, "each level has a colour of its own"


@given(hnp.arrays(np.float32, SIZE, elements=st.floats(-100, 100, width=32)))
@settings(max_examples=30, deadline=None)
def test_values_out_of_range_take_the_end_colours(values: NDArray[np.float32]) -> None:
    for paint in (heat, grey):
        picture = paint(values)
        assert picture.shape == (*SIZE, 3) and picture.dtype == np.uint8
        assert np.array_equal(picture, paint(np.clip(values, 0, 1)))


def test_grey_is_linear_and_rounded() -> None:
    assert grey(np.array([[0, 0.5, 1, 0.999]])).tolist() == [[[0] * 3, [128] * 3, [255] * 3, [255] * 3]]


def test_depth_picture_shows_near_bright_and_missing_black() -> None:
    depth = np.linspace(0.4, 0.6, SIZE[0] * SIZE[1]).reshape(SIZE)
    depth[2, 3] = 0
    picture = depth_picture(scan_from_arrays(depth=depth))
    assert picture.shape == (*SIZE, 3)
    assert picture[0, 0, 0] == 255 and picture[2, 3].tolist() == [0, 0, 0]
    shown = picture[..., 0][depth > 0].astype(int)
    assert (np.diff(shown) <= 0).all() and 20 <= shown[-1] <= 30, "the farthest point is darkest, yet not black"


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_depth_picture_of_nothing_and_of_a_flat_part(value: float) -> None:
    depth = np.full(SIZE, value, np.float32)
    picture = depth_picture(Scan("flat", depth=depth, valid=depth > 0))
    assert picture.shape == (*SIZE, 3) and (picture == picture[0, 0]).all()
    assert (picture > 0).all() == (value > 0)


def test_overlay_leaves_the_part_as_it_is_where_nothing_was_found() -> None:
    scan = colour_scan()
    anomaly = np.zeros(SIZE, np.float32)
    anomaly[2, 3] = 1
    picture = overlay(scan, anomaly)
    assert picture.dtype == np.uint8 and picture.shape == scan.rgb.shape  # type: ignore[union-attr]
    changed = (picture != scan.rgb).any(axis=2)
    assert np.argwhere(changed).tolist() == [[2, 3]]
    red, green, blue = picture[2, 3].tolist()
    assert red > 100 > max(green, blue), "the strongest value is red"


def test_overlay_scales_by_the_value_that_counts_as_high() -> None:
    scan, anomaly = colour_scan(), np.random.default_rng(0).random(SIZE, np.float32)
    assert np.array_equal(overlay(scan, anomaly * np.float32(0.25), high=0.25), overlay(scan, anomaly))
    full = overlay(scan, np.ones(SIZE, np.float32))
    assert np.array_equal(overlay(scan, np.full(SIZE, 0.3, np.float32), high=0.1), full), "beyond high is as high"
    assert np.array_equal(overlay(scan, np.zeros(SIZE, np.float32), high=0.0), scan.rgb)  # type: ignore[arg-type]


def test_overlay_of_a_part_without_rgb_lies_over_its_depth() -> None:
    scan = scan_from_arrays(depth=np.linspace(0.4, 0.6, SIZE[0] * SIZE[1]).reshape(SIZE))
    assert np.array_equal(overlay(scan, np.zeros(SIZE)), depth_picture(scan))


def test_overlay_leaves_the_scan_untouched() -> None:
    scan = colour_scan()
    overlay(scan, np.ones(SIZE))
    assert (scan.rgb == 100).all()


def test_sheet_places_every_picture_in_its_row_and_column() -> None:
    height, width = SIZE
    rows = [(f"row {r}", [np.full((*SIZE, 3), 40 * r + 10 * c, np.uint8) for c in range(3 - r)]) for r in range(2)]
    out = sheet(rows, gap=2)
    assert out.shape[0] == 2 * (height + 2) + 2
    left = out.shape[1] - 3 * (width + 2)
    for r, (_, pictures) in enumerate(rows):
        top = 2 + r * (height + 2)
        for c, picture in enumerate(pictures):
            at = left + c * (width + 2)
            assert np.array_equal(out[top : top + height, at : at + width], picture)
    assert (out[10:16, -width - 2 :] == out[0, 0]).all(), "no picture, no ink"
    assert (out[:, : left - 2] < 100).any(), "the names are written beside"


def test_picture_comes_back_from_disk(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    path = tmp_path / "new" / "folder" / "picture.png"
    save_picture(path, picture)
    assert np.array_equal(np.asarray(Image.open(path)), picture)
