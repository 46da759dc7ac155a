"""The window of the frame: upright or along a part, there and back."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from das3d.masks import bounding_box, pose_of
from das3d.measurement import Statistics, measure
from das3d.preparation import prepare
from das3d.scan import Scan, scan_from_arrays
from das3d.settings import PreparationSettings, make_settings
from das3d.window import Window, resize

START, LENGTH = st.integers(-19, 60), st.integers(61, 90)  # every window shows some of the frame
SIDE, TURN = st.integers(20, 120), st.one_of(st.just(0.0), st.floats(-180, 180))
UPRIGHT = st.builds(Window, START, START, SIDE, SIDE, st.tuples(LENGTH, LENGTH))
WINDOWS = st.builds(Window, START, START, SIDE, SIDE, st.tuples(LENGTH, LENGTH), TURN)


@given(window=WINDOWS, colours=st.booleans())
@settings(max_examples=50, deadline=None)
def test_cut_is_the_upright_window_with_zeros_beyond_the_frame(window: Window, colours: bool) -> None:
    array = np.random.default_rng(0).integers(1, 255, (*window.frame, 3) if colours else window.frame).astype(np.uint8)
    cut, upright = window.cut(array), window.upright
    padded = np.pad(array, [(200, 200), (200, 200), (0, 0)][: array.ndim])
    expected = padded[200 + upright.top :, 200 + upright.left :][: upright.height, : upright.width]
    assert cut.dtype == np.uint8
    assert np.array_equal(cut, expected)


@given(window=WINDOWS)
@settings(max_examples=50, deadline=None)
def test_the_upright_window_holds_all_of_the_window_and_little_more(window: Window) -> None:
    x, y = np.array([(i * window.width / 2, j * window.height / 2) for i in (-1, 1) for j in (-1, 1)]).T
    angle = math.radians(window.turn)
    columns = window.left + window.width / 2 + math.cos(angle) * x - math.sin(angle) * y
    rows = window.top + window.height / 2 + math.sin(angle) * x + math.cos(angle) * y
    upright = window.upright
    assert (upright.left, upright.top) == pytest.approx((columns.min(), rows.min()), abs=1.01)
    assert (upright.left + upright.width, upright.top + upright.height) == pytest.approx(
        (columns.max(), rows.max()), abs=1.01
    )


@given(window=UPRIGHT)
@settings(max_examples=50, deadline=None)
def test_put_back_undoes_cut_at_the_same_resolution(window: Window) -> None:
    array = np.random.default_rng(0).random(window.frame).astype(np.float32)
    back = window.put_back(window.cut(array))
    v, u = np.indices(window.frame)
    inside = (v >= window.top) & (v < window.top + window.height)
    inside &= (u >= window.left) & (u < window.left + window.width)
    assert back.dtype == np.float32
    assert np.abs(back - array)[inside].max(initial=0) < 1e-6
    assert (back[~inside] == 0).all(), "nothing is known outside the window"


@given(window=WINDOWS, size=st.sampled_from([32, 64, 96, 160]))
@settings(max_examples=50, deadline=None)
def test_a_slope_comes_back_as_it_was(window: Window, size: int) -> None:
    # Linear interpolation, averages and a turn all keep a plane; a mistake of half a pixel anywhere tilts or shifts it.
    v, u = np.indices(window.frame).astype(np.float32)
    known = np.ones(window.frame, np.float32)
    weight = window.shown(window.cut(known), size)
    for slope in (v, u):
        image = window.shown(window.cut(slope), size) / np.maximum(weight, 1e-6)
        back, sure = window.put_back(image), window.put_back((weight > 0.999).astype(np.float32)) > 0.999
        assert np.abs(back - slope)[sure].max(initial=0) < 1 + 0.5 * window.side / size


@given(window=WINDOWS, size=st.sampled_from([32, 64, 160]), row=st.floats(0, 1), column=st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_places_go_there_and_back(window: Window, size: int, row: float, column: float) -> None:
    place = row * (size - 1), column * (size - 1)
    assert window.image_place(*window.frame_place(*place, size), size) == pytest.approx(place, abs=1e-6)


@given(window=WINDOWS, size=st.sampled_from([32, 64, 96, 160]), place=st.tuples(st.floats(0, 1), st.floats(0, 1)))
@settings(max_examples=80, deadline=None)
def test_a_place_comes_back_where_it_was(window: Window, size: int, place: tuple[float, float]) -> None:
    # A bright patch inside both frame and window, seen by a network at another resolution.
    row, column = (round(7 + share * (length - 15)) for share, length in zip(place, window.frame, strict=True))
    frame = np.zeros(window.frame, np.float32)
    frame[row - 3 : row + 4, column - 3 : column + 4] = 1
    if not window.put_back(np.ones((size, size), np.float32))[row - 6 : row + 7, column - 6 : column + 7].all():
        return
    seen = window.shown(window.cut(frame), size)
    rows, columns = np.indices(seen.shape)
    in_image = float((rows * seen).sum() / seen.sum()), float((columns * seen).sum() / seen.sum())
    assert window.frame_place(*in_image, size) == pytest.approx((row, column), abs=0.3)
    back = window.put_back(seen)
    assert back.shape == window.frame
    v, u = np.indices(window.frame)
    found = (v * back).sum() / back.sum(), (u * back).sum() / back.sum()
    assert found == pytest.approx((row, column), abs=0.5)


@given(window=WINDOWS, place=st.tuples(*[st.integers(0, 24)] * 2))
@settings(max_examples=60, deadline=None)
def test_a_box_is_put_back_like_the_whole(window: Window, place: tuple[int, int]) -> None:
    image = np.zeros((32, 32), np.float32)
    v, u = place
    image[v : v + 8, u : u + 5] = 1
    whole = window.put_back(image)
    first_row, end_row, first_column, end_column = box = window.bounds_on_frame(bounding_box(image > 0), 32)
    rows, columns = slice(first_row, end_row), slice(first_column, end_column)
    assert window.put_back(image, box) == pytest.approx(whole[rows, columns], abs=1e-4)
    whole[rows, columns] = 0
    assert not whole.any(), "nothing lies beyond the box"


@given(shape=st.tuples(st.integers(20, 120), st.integers(20, 120)), size=st.sampled_from([32, 64, 96]))
@settings(max_examples=30, deadline=None)
def test_each_axis_is_resized_as_it_needs(shape: tuple[int, int], size: int) -> None:
    # Averaged where it shrinks, so that no pixel is left out, and interpolated where it grows.
    image = np.random.default_rng(0).random(shape).astype(np.float32)
    modes = [cv2.INTER_AREA if size < length else cv2.INTER_LINEAR for length in shape]
    rows = cv2.resize(image, (shape[1], size), interpolation=modes[0])
    assert np.allclose(resize(image, size), cv2.resize(rows, (size, size), interpolation=modes[1]), atol=1e-5)


# ------------------------------------------------------------------------------------------- windows along parts

SETTINGS = PreparationSettings(size=64)


def long_part(
    angle: float,
    *,
    half: tuple[float, float] = (70, 20),
    middle: tuple[float, float] = (100, 110),
    taper: float = 0.0,
    spot: float | None = None,
    seed: int = 0,
) -> Scan:
    """Half an ellipsoid of these half axes in pixels on a table, 20 mm high, turned by `angle` degrees. With `taper` it is
    broader at one end by this share and narrower at the other. Where `spot` is not None, RGB, depth and mask have a spot on
    its long axis, at this share of its half length.
    """
    rng, (v, u) = np.random.default_rng(seed), np.indices((200, 220)).astype(np.float64)
    a = math.radians(angle)
    along = math.cos(a) * (u - middle[1]) + math.sin(a) * (v - middle[0])
    across = math.cos(a) * (v - middle[0]) - math.sin(a) * (u - middle[1])
    inside = 1 - (along / half[0]) ** 2 - (across / half[1] / np.maximum(1 - taper * along / half[0], 0.1)) ** 2
    height = 0.02 * np.sqrt(np.maximum(inside, 0)) + 0.0002 * rng.normal(size=inside.shape)
    rgb = np.where((inside > 0)[..., None], (150, 120, 90), (60, 55, 50)).astype(np.uint8)
    marked = np.zeros(inside.shape, bool)
    if spot is not None:
        marked = np.hypot(along - spot * half[0], across) < 6
        height, rgb = height + 0.006 * marked, np.where(marked[..., None], (20, 40, 240), rgb).astype(np.uint8)
    return scan_from_arrays(rgb, 0.5 - height, mask=marked, name=f"at {angle}")


@pytest.fixture(scope="module")
def along() -> Statistics:
    return measure((long_part(angle, seed=angle) for angle in range(0, 180, 20)), SETTINGS)


@given(angle=st.floats(0, 180), half=st.tuples(st.floats(40, 80), st.floats(10, 25)), row=st.floats(85, 115))
@settings(max_examples=30, deadline=None)
def test_poses_are_those_of_ellipses(angle: float, half: tuple[float, float], row: float) -> None:
    scan = long_part(angle, half=half, middle=(row, 110))
    assert scan.rgb is not None
    pose = pose_of(scan.rgb[..., 0] > 100)
    assert abs((pose.axis - angle + 90) % 180 - 90) < 1.5
    assert (pose.length, pose.breadth) == pytest.approx((2 * half[0], 2 * half[1]), abs=2)
    assert pose.slender == pytest.approx(half[0] / half[1], rel=0.05)
    assert pose.middle == pytest.approx((110.5, row + 0.5), abs=1)


@given(axis=st.floats(0, 180), usual=st.floats(-90, 90))
def test_an_axis_is_followed_in_its_more_usual_direction(axis: float, usual: float) -> None:
    direction = pose_of(np.eye(9, dtype=bool))._replace(axis=axis).direction(usual)
    assert abs(direction - usual) <= 90 + 1e-9
    assert abs((direction - axis + 90) % 180 - 90) < 1e-6, "along the axis"


@given(angle=st.floats(-180, 180))
@settings(max_examples=30, deadline=None)
def test_the_thinner_end_is_ahead(angle: float) -> None:
    scan = long_part(angle, taper=0.5)
    assert scan.rgb is not None
    direction = pose_of(scan.rgb[..., 0] > 100).direction(None)
    assert abs((direction - angle + 180) % 360 - 180) < 3


def test_windows_lie_along_long_parts(along: Statistics) -> None:
    assert along.window == pytest.approx(1.08 * 140, abs=3)
    assert along.breadth == pytest.approx(along.window / 3, abs=1), "of the part, 0.29 of its length"
    upright = measure([long_part(30)], SETTINGS.model_copy(update={"align": False}))
    assert (upright.breadth, upright.axis) == (0, None) and upright.window > 1.05 * 125


@pytest.mark.parametrize(
    ("half", "aligned"), [((70, 60), False), ((70, 50), False), ((70, 42), True), ((70, 30), True), ((80, 10), True)]
)
def test_only_long_parts_are_aligned(half: tuple[float, float], aligned: bool) -> None:
    known = measure([long_part(angle, half=half) for angle in (10, 25, 40)], SETTINGS)
    assert (known.breadth > 0) == aligned
    if aligned:
        assert known.axis == pytest.approx(25, abs=1)
        assert known.breadth >= known.window / 3


def test_parts_with_a_thinner_end_all_point_one_way() -> None:
    known = measure((long_part(angle, taper=0.5, seed=angle) for angle in range(10, 360, 50)), SETTINGS)
    assert known.breadth > 0 and known.axis is None
    for angle in (-150, -60, 10, 100, 179):
        part = prepare(long_part(angle, taper=0.5, spot=0.5), known, SETTINGS)
        assert part.mask is not None
        assert np.argwhere(part.mask).mean(axis=0) == pytest.approx((31.5, 46), abs=2.5)


def test_parts_that_run_out_of_the_frame_are_not_aligned() -> None:
    scans = [long_part(0, half=(300, 20), seed=seed) for seed in range(3)]
    known = measure(scans, SETTINGS)
    assert known.breadth == 0 and known.window in (0, pytest.approx(220 * 1.08, abs=1))


def test_the_paper_aligns_nothing() -> None:
    paper = make_settings("paper").preparation.model_copy(update={"crop": True, "background_distance": 0.003})
    assert measure([long_part(20)], paper).breadth == 0


@pytest.mark.parametrize("angle", [0, 12, 45, 77, 90, 101, 150])
def test_a_part_looks_the_same_however_it_lies(along: Statistics, angle: float) -> None:
    one, other = (prepare(long_part(a, seed=a), along, SETTINGS) for a in (33, angle))
    assert one.window.width == other.window.width == along.window
    both = one.foreground & other.foreground
    assert both.sum() > 0.93 * (one.foreground | other.foreground).sum()
    assert np.abs(one.depth - other.depth)[both].mean() < 0.03
    assert one.foreground.mean() > 0.5, "which is three times what an upright window has"
    assert not one.doubt and not other.doubt


@pytest.mark.parametrize("angle", [0, 20, 65, 90, 133, 170])
@pytest.mark.parametrize("spot", [-0.5, 0.4])
def test_all_members_turn_together(along: Statistics, angle: float, spot: float) -> None:
    good, harmed = (prepare(long_part(angle, spot=s, seed=1), along, SETTINGS) for s in (None, spot))
    blue = (harmed.rgb[..., 0] < 128) & harmed.foreground
    nearer = (good.depth - harmed.depth) > 0.1
    assert harmed.mask is not None and harmed.mask.sum() > 40
    places = [np.argwhere(one).mean(axis=0) for one in (blue, nearer, harmed.mask)]
    assert np.ptp(places, axis=0).max() < 1
    scan = long_part(angle, spot=spot)
    assert scan.mask is not None
    back = harmed.window.put_back(harmed.mask.astype(np.float32)) > 0.5
    assert (back & scan.mask).sum() > 0.8 * (back | scan.mask).sum()


def test_a_longer_part_gets_a_longer_window(along: Statistics) -> None:
    part = prepare(long_part(40, half=(90, 34)), along, SETTINGS)
    assert part.window.width >= 180 and part.window.height >= 68
    rows, columns = np.nonzero(part.foreground)
    assert rows.min() <= 1 and rows.max() >= 62 and columns.min() <= 1 and columns.max() >= 62, "and fills it"


def test_a_broken_part_is_shown_at_the_scale_of_whole_ones(along: Statistics) -> None:
    whole, half = (prepare(long_part(50, half=size), along, SETTINGS) for size in ((70, 20), (35, 20)))
    assert (half.window.width, half.window.height) == (whole.window.width, whole.window.height)
