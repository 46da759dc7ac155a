"""Prepared scans of scenes with known truth, the way back, and which of them are in doubt."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scenes import COVER, FILLING, SEVERAL, Box, Dome, iou, see, unmeasured, with_holes

from das3d.datasets import find_dataset
from das3d.errors import DataError
from das3d.masks import bounding_box
from das3d.measurement import Statistics, depth_step, measure
from das3d.preparation import DEPTH_STEP, PreparedScan, fill_missing, prepare
from das3d.scan import Scan, scan_from_arrays
from das3d.settings import PreparationSettings
from das3d.window import Window

SETTINGS = PreparationSettings(size=64)  # of windows of about 96 pixels
PAPER = PreparationSettings(size=64, crop=False, level=False, background_distance=0.005, stretch=False)


def same(a: PreparedScan, b: PreparedScan) -> bool:
    members = all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("rgb", "depth", "valid", "foreground"))
    masks = a.mask is b.mask is None or (a.mask is not None and b.mask is not None and np.array_equal(a.mask, b.mask))
    return members and masks and a.window == b.window


@pytest.fixture(scope="module")
def statistics() -> Statistics:
    return measure((see(seed=seed).scan() for seed in (1, 2, 3)), SETTINGS)


# ------------------------------------------------------------------------------------------- missing values

KNOWN = hnp.arrays(np.bool_, st.tuples(st.integers(1, 40), st.integers(1, 40)))


@given(known=KNOWN, seed=st.integers(0, 99), garbage=st.sampled_from([np.nan, np.inf, -1e30, 0.0]))
@settings(max_examples=50, deadline=None)
def test_filled_values_lie_between_their_neighbours_and_known_ones_stay(
    known: np.ndarray, seed: int, garbage: float
) -> None:
    values = np.random.default_rng(seed).uniform(-2, 5, known.shape).astype(np.float32)
    filled = fill_missing(np.where(known, values, np.float32(garbage)), known)
    assert filled.dtype == np.float32 and filled.shape == known.shape
    assert np.array_equal(filled[known], values[known])
    low, high = (values[known].min(), values[known].max()) if known.any() else (0, 0)
    assert low - 1e-5 <= filled.min() and filled.max() <= high + 1e-5


def test_a_slope_is_filled_as_a_slope() -> None:
    v, u = np.indices((48, 64)).astype(np.float32)
    slope = 0.01 * u + 0.02 * v
    known = np.random.default_rng(0).random(slope.shape) < 0.5
    assert np.abs(fill_missing(slope, known) - slope).max() < 0.05
    known[20:26, 30:36] = False
    assert np.abs(fill_missing(slope, known) - slope).max() < 0.1


# ------------------------------------------------------------------------------------------- one scan


@pytest.mark.parametrize("settings", [SETTINGS, PAPER], ids=["levelled", "paper"])
def test_prepared_depth_is_the_true_depth(settings: PreparationSettings) -> None:
    statistics = measure([see(seed=1).scan()], settings)
    scene = see(seed=2)
    prepared = prepare(scene.scan(), statistics, settings)
    truth = scene.depth - scene.table if settings.level else scene.depth
    metres = prepared.depth * (statistics.far - statistics.near) + statistics.near
    back = prepared.window.put_back(metres.astype(np.float32))
    inner = cv2.erode(scene.part.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0  # steps at edges are blurred
    near_edge = cv2.dilate((np.abs(cv2.Laplacian(truth, cv2.CV_64F)) > 0.003).astype(np.uint8), np.ones((7, 7))) > 0
    inner &= ~near_edge
    assert inner.sum() > 1000
    assert np.sqrt(np.mean((back - truth)[inner] ** 2)) < 0.0005
    assert np.abs(np.mean((back - truth)[inner])) < 0.0001


def test_background_is_black_and_at_depth_one(statistics: Statistics) -> None:
    prepared = prepare(see(seed=4).scan(), statistics, SETTINGS)
    assert (prepared.depth[~prepared.foreground] == 1).all()
    assert (prepared.rgb[~prepared.foreground] == 0).all()
    assert not prepared.valid[~prepared.foreground].any()
    assert prepared.valid[prepared.foreground].all()
    assert prepared.depth.min() > 0 and prepared.depth.max() <= 1
    assert 0.2 < prepared.foreground.mean() < 0.9
    assert prepared.mask is not None
    assert iou(prepared.mask, prepared.foreground) > 0.95, "ground truth (here: the part) moves with the other members"


def test_rgb_is_stretched_to_the_training_range(statistics: Statistics) -> None:
    scene = see(seed=4)
    raw = prepare(scene.scan(), statistics, SETTINGS)
    inside = raw.rgb[cv2.erode(raw.foreground.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0]
    expected = np.array([150, 120, 90]) * 255 / statistics.rgb_high
    assert inside.mean(axis=0) == pytest.approx(expected, abs=2)
    edge = raw.rgb[raw.foreground & (cv2.erode(raw.foreground.astype(np.uint8), np.ones((3, 3), np.uint8)) == 0)]
    assert edge.mean(axis=0) == pytest.approx(expected, abs=12), "the black background does not bleed into the part"


def test_depths_are_whole_steps(statistics: Statistics) -> None:
    depth = prepare(see(seed=4).scan(), statistics, SETTINGS).depth
    steps = depth.astype(np.float64) / DEPTH_STEP
    assert np.array_equal(steps, np.round(steps))
    assert depth.dtype == np.float32


def test_unit_and_form_of_the_depth_change_nothing(statistics: Statistics) -> None:
    scene = see(seed=5)
    counts = np.round(scene.depth * 1e6).astype(np.uint32)
    metres = prepare(scan_from_arrays(scene.rgb, counts / 1e6), statistics, SETTINGS)
    for depth, unit in ((counts / 1e3, "mm"), (counts / 1e4, "cm")):
        assert same(prepare(scan_from_arrays(scene.rgb, depth, unit=unit), statistics, SETTINGS), metres)
    v, u = np.indices(scene.part.shape)
    points = np.stack([u * scene.depth, v * scene.depth, scene.depth], axis=-1)
    from_points = prepare(scan_from_arrays(scene.rgb, points), statistics, SETTINGS)
    assert same(from_points, prepare(scan_from_arrays(scene.rgb, scene.depth), statistics, SETTINGS))


def test_preparation_is_deterministic(statistics: Statistics) -> None:
    holes = np.random.default_rng(0).random((150, 180)) < 0.1
    np.random.seed(1)
    first = prepare(with_holes(see(seed=6), holes), statistics, SETTINGS)
    np.random.seed(2)
    assert same(first, prepare(with_holes(see(seed=6), holes), statistics, SETTINGS))


@given(garbage=st.sampled_from([np.nan, np.inf, -np.inf, -1.0, 0.55, 1e30]), level=st.booleans(), seed=st.integers(0, 9))
@settings(max_examples=15, deadline=None)
def test_what_is_stored_at_invalid_pixels_does_not_matter(garbage: float, level: bool, seed: int) -> None:
    settings = SETTINGS.model_copy(update={"level": level})
    scene = see(seed=seed)
    holes = np.random.default_rng(seed).random(scene.part.shape) < 0.1
    holes[:3] = holes[70:80, 80:95] = True
    clean = with_holes(scene, holes)
    dirty = replace(clean, depth=np.where(holes, garbage, scene.depth).astype(np.float32))
    statistics = measure([clean], settings)
    assert measure([dirty], settings) == statistics
    assert same(prepare(dirty, statistics, settings), prepare(clean, statistics, settings))


def test_rgb_counts_where_the_part_is_whether_or_not_depth_was_measured_there(statistics: Statistics) -> None:
    settings = PreparationSettings(size=96)  # one pixel of the frame is one of the prepared scan
    scene = see(seed=7)
    holes = np.zeros(scene.part.shape, dtype=bool)
    holes[60:80, 70:95] = holes[10:20, 10:40] = True  # one in the part, one in the table
    clean = with_holes(scene, holes)
    reference = prepare(clean, statistics, settings)

    def painted(where: Any) -> PreparedScan:
        rgb = scene.rgb.copy()
        rgb[where] = (10, 250, 10)
        return prepare(replace(clean, rgb=rgb), statistics, settings)

    assert same(painted(np.s_[10:20, 10:40]), reference)
    changed = (painted(np.s_[62:78, 72:93]).rgb != reference.rgb).any(axis=2)
    rows, columns = slice(62 - reference.window.top, 78 - reference.window.top), slice(72 - 39, 93 - 39)
    assert changed[rows, columns].all() and reference.window.side == 96 and reference.window.left == 39
    changed[rows, columns] = False
    assert not changed.any(), "and nowhere else"
    assert not reference.valid[rows, columns].any() and reference.foreground[rows, columns].all()


@pytest.mark.parametrize("axis", [0, 1])
def test_a_mirrored_scan_gives_the_mirrored_members(axis: int, statistics: Statistics) -> None:
    scene = see(seed=8)
    holes = np.random.default_rng(0).random(scene.part.shape) < 0.05
    scan = with_holes(scene, holes)
    assert scan.rgb is not None and scan.depth is not None
    turned = scan_from_arrays(np.flip(scan.rgb, axis), np.flip(scan.depth, axis), mask=np.flip(scene.part, axis))
    one, other = prepare(scan, statistics, SETTINGS), prepare(turned, statistics, SETTINGS)
    # The plane is fitted anew and a window of even side has no middle pixel, so a few values may round otherwise.
    for name, tolerance in (("rgb", 3), ("valid", 0), ("foreground", 0), ("mask", 0)):
        difference = np.abs(getattr(one, name).astype(int) - np.flip(getattr(other, name), axis).astype(int))
        assert (difference > tolerance).mean() < 0.01, name
    assert np.median(np.abs(one.depth - np.flip(other.depth, axis))) < 2 * DEPTH_STEP


def test_a_part_that_lies_elsewhere_looks_the_same() -> None:
    solids = (Box(-0.02, 0.02, -0.02, 0.015, 0.006), Dome(0, 0, 0.012))
    view: dict[str, Any] = {"tilt": 0.0, "roll": 0.0, "noise": 0.0001}
    step = 0.6 / 500  # metres on the table that one pixel shows
    statistics = measure([see(solids=solids, **view).scan()], SETTINGS)
    here = prepare(see(solids=solids, **view).scan(), statistics, SETTINGS)
    for columns, rows in ((30, 0), (-25, 18), (0, -22)):
        x, y = columns * step, rows * step
        moved = (Box(-0.02 + x, 0.02 + x, -0.02 + y, 0.015 + y, 0.006), Dome(x, y, 0.012))
        there = prepare(see(solids=moved, seed=9, **view).scan(), statistics, SETTINGS)
        assert (there.window.left - here.window.left, there.window.top - here.window.top) == pytest.approx(
            (columns, rows), abs=1.01
        )
        assert iou(there.foreground, here.foreground) > 0.9, "up to what the camera sees of the sides"
        both = there.foreground & here.foreground
        assert np.median(np.abs(there.depth - here.depth)[both]) < 0.02


def test_a_table_that_lies_elsewhere_changes_no_levelled_depth() -> None:
    solids = (Box(-0.03, 0.03, -0.02, 0.02, 0.01),)
    statistics = measure([see(solids=solids).scan()], SETTINGS)
    tops = []
    for distance, tilt in ((0.6, 18.0), (0.7, 18.0), (0.6, 10.0)):
        prepared = prepare(see(solids=solids, distance=distance, tilt=tilt).scan(), statistics, SETTINGS)
        tops.append(np.median(prepared.depth[prepared.foreground]))
    assert tops == pytest.approx([tops[0]] * 3, abs=0.05)


@pytest.mark.parametrize("frame", [(150, 180), (120, 200), (333, 257)])
def test_members_all_have_the_size_that_was_set(frame: tuple[int, int]) -> None:
    settings = PreparationSettings(size=64)
    scan = see(size=frame).scan()
    prepared = prepare(scan, measure([scan], settings), settings)
    for name, shape in (("rgb", (64, 64, 3)), ("depth", (64, 64)), ("valid", (64, 64)), ("foreground", (64, 64))):
        assert getattr(prepared, name).shape == shape
    assert prepared.mask is not None and prepared.mask.shape == (64, 64)
    assert prepared.window.frame == frame
    assert prepared.name == "scene"


def test_rgb_alone_is_taken_whole() -> None:
    scene = see(seed=3)
    scan = scene.scan().without(depth=True)
    statistics = measure([scan], SETTINGS)
    assert (statistics.has_rgb, statistics.has_depth, statistics.background, statistics.window) == (True, False, "none", 0)
    prepared = prepare(scan, statistics, SETTINGS)
    assert (prepared.depth == 1).all() and not prepared.valid.any()
    back = np.stack([prepared.window.put_back(prepared.rgb[..., c].astype(np.float32)) for c in range(3)], axis=-1)
    shown = np.clip(scene.rgb * (255 / statistics.rgb_high), 0, 255)
    assert np.abs(back - shown)[12:-12].mean() < 8


def test_a_long_narrow_picture_takes_little_memory() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (60, 2048, 3), dtype=np.uint8)
    scan = Scan("strip", rgb)
    how = SETTINGS.model_copy(update={"squeeze": False})
    known = measure([scan], how)
    tracemalloc.start()
    prepared = prepare(scan, known, how)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    window = prepared.window
    assert window.side == 2048 and peak < 12 * 2048**2, "bytes: a few for each pixel of the window, not each channel's"
    inside = window.cut(np.ones(rgb.shape[:2], np.float32))
    shown, share = (
        cv2.resize(one, (64, 64), interpolation=cv2.INTER_AREA) for one in (window.cut(rgb) * inside[..., None], inside)
    )
    shown = np.clip(np.round(shown / np.maximum(share, 1e-6)[..., None] * (255 / known.rgb_high)), 0, 255)
    assert np.array_equal(prepared.rgb, shown * (share > 0.5)[..., None])


def test_depth_alone_is_prepared_as_with_rgb(statistics: Statistics) -> None:
    with_rgb = see(seed=3).scan()
    alone = with_rgb.without(rgb=True)
    prepared = prepare(alone, measure([see(seed=seed).scan().without(rgb=True) for seed in (1, 2, 3)], SETTINGS), SETTINGS)
    reference = prepare(with_rgb, statistics, SETTINGS)
    assert np.array_equal(prepared.depth, reference.depth) and np.array_equal(prepared.valid, reference.valid)
    assert not prepared.rgb.any()


def test_a_larger_part_gets_a_larger_window(statistics: Statistics) -> None:
    scene = see(solids=(Box(-0.09, 0.09, -0.03, 0.03, 0.02),))
    prepared = prepare(scene.scan(), statistics, SETTINGS)
    left, right = bounding_box(scene.part)[2:]
    assert prepared.window.side > statistics.window
    assert prepared.window.left <= left + 1 and prepared.window.left + prepared.window.side >= right - 1


def test_a_scan_that_hides_the_plane_takes_that_of_the_training_scans(statistics: Statistics) -> None:
    scene = see()
    border = np.ones(scene.part.shape, dtype=bool)
    border[15:-15, 15:-15] = False
    hidden, shown = (prepare(scan, statistics, SETTINGS) for scan in (with_holes(scene, border), scene.scan()))
    assert iou(hidden.foreground, shown.foreground) > 0.98
    assert np.abs(hidden.depth - shown.depth)[hidden.foreground & shown.foreground].max() < 0.01


@pytest.mark.parametrize(
    ("scan", "message"),
    [
        (see().scan("p7").without(depth=True), "p7: expected depth, as the training scans have it, found none"),
        (see().scan("p7").without(rgb=True), "p7: expected RGB, as the training scans have it, found none"),
        (see(size=(140, 180)).scan("p7"), "p7: expected 180 x 150 pixels as in training, found 180 x 140"),
        (see(solids=()).scan("p7"), r"p7: expected a part more than 1\.\d mm above the background, found none"),
        (
            see(solids=(Dome(0, 0, 0.006),)).scan("p7"),
            r"p7: expected a part more than 1\.\d mm above .*, found 0\.\d+% of the picture there, .* covers \d\d\.\d+%",
        ),
        (
            replace(see().scan("p7"), depth=see().scan("p7").depth * 1000),
            "p7: expected the background 0.6.* m away, as in training, found 600 m: a thousand times as far, so written in",
        ),
        (
            unmeasured("p7", (150, 180)),
            "p7: expected some measured depth, found none",
        ),
    ],
)
def test_a_scan_that_cannot_be_prepared_is_named(scan: Scan, message: str, statistics: Statistics) -> None:
    with pytest.raises(DataError, match=message):
        prepare(scan, statistics, SETTINGS)


def test_a_narrow_picture_of_any_length_is_refused_before_it_takes_memory() -> None:
    statistics = replace(measure([see().scan().without(depth=True)], SETTINGS), frame=None)
    strip = scan_from_arrays(np.zeros((3, 20_000, 3), np.uint8), name="strip")
    with pytest.raises(DataError, match="strip: expected at most 16384 pixels either way, found 20000 of 20000 x 3"):
        prepare(strip, statistics, SETTINGS)


def test_scans_of_any_size_fit_where_the_training_scans_differed() -> None:
    statistics = measure([see().scan(), see(size=(140, 170)).scan()], SETTINGS)
    prepared = prepare(see(size=(160, 200)).scan(), statistics, SETTINGS)
    assert prepared.window.frame == (160, 200)
    assert iou(prepared.foreground, prepare(see().scan(), statistics, SETTINGS).foreground) > 0.95


def test_parts_are_as_large_in_frames_of_any_size_as_they_are_in_pixels() -> None:
    def framed(side: int, seed: int, grey: int = 150) -> Scan:
        return rgb_like(see(size=(side, side), tilt=0, roll=0, seed=seed).scan(), lambda rgb: rgb * (grey / 150))

    scans = [framed(160, seed) for seed in range(3)] + [framed(240, seed, 40) for seed in range(2)]
    known = measure(scans, SETTINGS)
    assert known.window and known.frame is None and known.darkest < 60, "parts in the larger frames count, too"
    assert known.area_in((160, 160)) == pytest.approx((240 / 160) ** 2 * known.area_in((240, 240)))
    for scan in (*scans, framed(600, 7)):
        prepared = prepare(scan, known, SETTINGS)
        assert prepared.doubt == "" and prepared.foreground.any()


@given(
    size=st.tuples(st.integers(8, 70), st.integers(8, 70)),
    level=st.booleans(),
    crop=st.booleans(),
    tilt=st.sampled_from([0.0, 30.0, 70.0, 85.0]),
    solids=st.sampled_from([COVER, SEVERAL, FILLING, (), (Box(-0.03, 0.03, -0.03, 0.03, 0.1),)]),
    missing=st.sampled_from([0.0, 0.2, 0.9]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_every_scan_is_prepared_to_finite_values_or_refused(
    size: tuple[int, int],
    level: bool,
    crop: bool,
    tilt: float,
    solids: tuple[Box | Dome, ...],
    missing: float,
    seed: int,
) -> None:
    settings = PreparationSettings(size=32, level=level, crop=crop)
    scene = see(size=size, tilt=tilt, solids=solids, focal=float(2.5 * max(size)), seed=seed)
    holes = np.random.default_rng(seed).random(size) < missing
    scan = with_holes(scene, holes)
    try:
        statistics = measure([scan], settings)
        prepared = prepare(scan, statistics, settings)
    except DataError as error:
        assert str(error).startswith("holes: expected")  # noqa: PT017  (either way out is right)
        return
    assert np.isfinite(list(statistics.plane)).all() and statistics.near < statistics.far < np.inf
    assert np.isfinite(prepared.depth).all()
    assert prepared.depth.min() >= -0.5 and prepared.depth.max() < 1.5
    assert not (prepared.valid & ~prepared.foreground).any()
    assert prepared.window.put_back(prepared.depth).shape == size


@pytest.mark.parametrize("solids", [COVER, FILLING])
@pytest.mark.parametrize("to", [0.3, 1.3])
def test_a_pixel_that_flies_changes_nothing_around_it(solids: Any, to: float) -> None:
    scene = see(solids=solids, noise=0.0)
    known = measure([scene.scan()], SETTINGS)
    flies = scene.depth.copy()
    flies[75, 80] = to
    assert scene.part[75, 80]
    plain, found = (prepare(scan_from_arrays(scene.rgb, depth), known, SETTINGS) for depth in (scene.depth, flies))
    assert np.abs(found.depth - plain.depth).max() < 0.02
    assert np.array_equal(found.foreground, plain.foreground)
    holes = np.zeros(scene.part.shape, dtype=bool)
    holes[74, 79:82] = holes[76, 79:82] = True
    holed, found = (
        prepare(with_holes(replace(scene, depth=depth), holes), known, SETTINGS) for depth in (scene.depth, flies)
    )
    assert np.abs(found.depth - holed.depth).max() < 0.02, "missing points beside it are no company"
    spike = scene.depth.copy()
    spike[74:77, 79:82] = 0.3
    assert np.abs(prepare(scan_from_arrays(scene.rgb, spike), known, SETTINGS).depth - plain.depth).max() > 0.3, (
        "no lone one"
    )


def test_points_that_fly_count_as_missing_however_many_there_are(statistics: Statistics) -> None:
    scene, rng = see(), np.random.default_rng(0)
    flying = rng.random(scene.depth.shape) < 0.05
    depth = np.where(flying, scene.depth + rng.uniform(-0.05, 0.05, scene.depth.shape), scene.depth)
    plain, found = (prepare(scan_from_arrays(scene.rgb, one), statistics, SETTINGS) for one in (scene.depth, depth))
    inside = cv2.erode(plain.foreground.astype(np.uint8), np.ones((5, 5))) > 0
    # Those that fly by less than a tenth of the range cannot be told, and two may meet in a pixel.
    assert np.quantile(np.abs(found.depth - plain.depth)[inside], 0.99) < 0.13
    assert iou(found.foreground, plain.foreground) > 0.95


def test_a_part_that_fills_the_frame_is_taken_whole() -> None:
    scene = see(solids=FILLING)
    statistics = measure([scene.scan()], SETTINGS)
    assert (statistics.background, statistics.window) == ("none", 0)
    prepared = prepare(scene.scan(), statistics, SETTINGS)
    assert prepared.window == Window(0, 0, 150, 180, (150, 180))
    assert prepared.foreground.all()
    prepared = prepare(scene.scan(), statistics, SETTINGS.model_copy(update={"squeeze": False}))
    assert prepared.window == Window.square(-15, 0, 180, (150, 180))
    rows = slice(6, -6)  # on either side 15 of 180 rows lie beyond the frame, 5.3 of 64
    assert prepared.foreground[rows].all() and not prepared.foreground[:5].any()
    assert 0 <= np.quantile(prepared.depth[rows], 0.01) < np.quantile(prepared.depth[rows], 0.99) <= 1


def test_areas_are_above_zero_whichever_way_x_and_y_point() -> None:
    scene = see()
    plain = measure([scene.scan()], SETTINGS)
    areas = [
        prepare(scan_from_arrays(scene.rgb, scene.points * sign), plain, SETTINGS).pixel_mm2
        for sign in ([1, 1, 1], [1, -1, 1], [-1, 1, 1], [-1, -1, 1])
    ]
    assert areas[0] is not None and areas[0] > 0
    assert areas == pytest.approx([areas[0]] * 4)


@pytest.mark.parametrize(
    ("factor", "word"),
    [(1e3, "millimetres"), (0.1, "tenth"), (10, "ten times"), (4, "another scale"), (0.25, "scale"), (1e-4, "scale")],
)
def test_another_unit_is_refused_where_parts_fill_the_frame(factor: float, word: str) -> None:
    scenes = [see(seed=seed, solids=FILLING, size=(60, 70)) for seed in range(3)]
    filled = measure([scene.scan() for scene in scenes], SETTINGS)
    assert filled.background == "none" and filled.scene == pytest.approx(np.median(scenes[0].depth), rel=0.01)
    depth = (scenes[1].depth * factor).astype(np.float32)
    far = Scan("other", scenes[1].rgb, depth, np.ones(depth.shape, bool))
    with pytest.raises(DataError, match=f"other: expected the scene .* as in training, .*{word}"):
        prepare(far, filled, SETTINGS)
    prepare(scenes[2].scan(), filled, SETTINGS)


# ------------------------------------------------------------------------------------------- scans in doubt


def test_one_odd_training_scan_does_not_switch_the_checks_off() -> None:
    scans = [see(seed=seed).scan() for seed in range(5)]
    speck, known = see(solids=(Dome(0, 0, 0.009),)), measure(scans, SETTINGS)
    scene = see(seed=7)
    odd = [speck.scan(), with_holes(scene, np.arange(180)[None, :] < 100)]
    found = measure([*scans, *odd], SETTINGS)
    assert (found.area, found.missing) == (known.area, known.missing)
    for scan in odd:
        with pytest.raises(DataError, match=r"no part\?|too little was measured"):
            _ = prepare(scan, found, SETTINGS).judgeable


def test_a_part_without_background_of_which_much_was_not_measured_is_in_doubt() -> None:
    scenes = [see(seed=seed, solids=FILLING) for seed in range(3)]
    known = measure([scene.scan() for scene in scenes], SETTINGS)
    assert known.background == "none" and prepare(scenes[0].scan(), known, SETTINGS).doubt == ""
    half = np.arange(180)[None, :] < 90
    with pytest.raises(DataError, match=r"holes: .* none on 50% of the picture, .* too little was measured"):
        _ = prepare(with_holes(scenes[1], np.broadcast_to(half, scenes[1].part.shape)), known, SETTINGS).judgeable


def test_a_part_of_which_no_depth_is_left_is_in_doubt() -> None:
    settings = PreparationSettings(size=32)
    scenes = [see(seed=seed, solids=FILLING, size=(300, 360), focal=1000.0) for seed in range(3)]
    known = measure([scene.scan() for scene in scenes], settings)
    tolerant = replace(known, missing=1.0, density=0.0)  # for which nothing else is in doubt
    stripes = np.broadcast_to(np.arange(300)[:, None] % 20 >= 2, (300, 360))
    prepared = prepare(with_holes(scenes[0], stripes), tolerant, settings)
    assert prepared.foreground.any() and not prepared.valid.any()
    assert prepared.doubt.startswith("expected depth on the part, found it on 0.0% of its pixels")


def rounded(scan: Scan, step: float) -> Scan:
    assert scan.depth is not None
    return replace(scan, name="in steps", depth=(np.round(scan.depth / step) * step).astype(np.float32))


def test_depth_in_much_coarser_steps_than_in_training_is_in_doubt(statistics: Statistics) -> None:
    scan = see(seed=7).scan()
    assert statistics.step < 1e-4 and depth_step(rounded(scan, 1e-3), np.ones(scan.size, bool)) == pytest.approx(
        1e-3, rel=1e-3
    )
    assert prepare(scan, statistics, SETTINGS).doubt == prepare(rounded(scan, 1e-4), statistics, SETTINGS).doubt == ""
    with pytest.raises(DataError, match=r"in steps: expected depth in steps of 0\.\d+ mm at most .*, found steps of 1 mm"):
        _ = prepare(rounded(scan, 1e-3), statistics, SETTINGS).judgeable
    coarse = measure([rounded(see(seed=seed).scan(), 1e-3) for seed in range(3)], SETTINGS)
    assert coarse.step == pytest.approx(1e-3, rel=1e-3)
    for step in (1e-4, 1e-3):
        assert prepare(rounded(scan, step), coarse, SETTINGS).doubt == ""


@pytest.mark.parametrize("step", [0.0, 1e-4, 1e-3], ids=["rendered", "0.1 mm", "1 mm"])
def test_a_pocket_in_a_flat_part_is_a_defect_and_no_step_of_the_depth(step: float) -> None:
    def block(pocket: float = 0.0, noise: float = 0.0) -> Scan:
        depth = np.full((120, 140), 0.5) + np.random.default_rng(0).normal(0, noise, (120, 140))
        depth[30:90, 40:100] -= 0.02
        depth[50:60, 60:75] += pocket
        return scan_from_arrays(np.full((120, 140, 3), 90, np.uint8), np.round(depth / step) * step if step else depth)

    known = measure([block() for _ in range(3)], SETTINGS)
    for other in (block(), block(0.003), block(0.01), block(noise=0.0003), block(0.003, noise=0.0003)):
        assert prepare(other, known, SETTINGS).doubt == ""


def test_parts_of_which_much_was_not_measured_are_in_doubt_and_broken_ones_are_not(statistics: Statistics) -> None:
    scene = see(seed=7)
    columns = np.flatnonzero(scene.part.any(axis=0))
    cut = np.zeros_like(scene.part)
    cut[:, : int(np.quantile(columns, 0.5))] = True
    blind = scan_from_arrays(scene.rgb, np.where(cut, 0, scene.depth), name="blind on one side")
    with pytest.raises(DataError, match=r"blind on one side: .* too little was measured to judge it"):
        _ = prepare(blind, statistics, SETTINGS).judgeable
    broken = scan_from_arrays(scene.rgb, np.where(cut, scene.table, scene.depth))  # the table is where the part was
    assert prepare(broken, statistics, SETTINGS).doubt == ""
    beside = scan_from_arrays(scene.rgb, np.where(cut & ~scene.part, 0, scene.depth))  # the table alone is not measured
    assert prepare(beside, statistics, SETTINGS).doubt == ""


def rgb_like(scan: Scan, change: Callable[[np.ndarray], np.ndarray]) -> Scan:
    assert scan.rgb is not None
    return replace(scan, rgb=np.clip(change(scan.rgb.astype(float)), 0, 255).astype(np.uint8))


BLANK: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "black": (
        lambda rgb: 0 * rgb,
        r"expected a part 1[45]\d to 1[45]\d of 255 bright, as in training, found 0: lamp, exposure",
    ),
    "12 bits in 16": (lambda rgb: rgb // 16, r"of 255 bright, as in training, found 9: .* or 12 bits in 16\?"),
    "white": (lambda rgb: 0 * rgb + 255, r"expected white on at most 0% of the part, as in training, found it on 100%"),
    "exposed for ten times as long": (lambda rgb: 10 * rgb, "found it on 100%: too long an exposure"),
}


@pytest.mark.parametrize("name", BLANK)
@pytest.mark.parametrize("solids", [COVER, FILLING, None], ids=["on a table", "filling the frame", "without depth"])
def test_rgb_that_shows_nothing_is_in_doubt_and_another_light_is_not(name: str, solids: Any) -> None:
    scans = [see(seed=seed, solids=solids or FILLING).scan("p7") for seed in range(4)]
    scans = [scan.without(depth=True) if solids is None else scan for scan in scans]
    known = measure(scans[:3], SETTINGS)
    change, message = BLANK[name]
    with pytest.raises(DataError, match=f"p7: .*{message}"):
        _ = prepare(rgb_like(scans[3], change), known, SETTINGS).judgeable
    for gain in (0.5, 1, 1.5):
        assert prepare(rgb_like(scans[3], lambda rgb, gain=gain: gain * rgb), known, SETTINGS).doubt == ""  # type: ignore[misc]


def test_rgb_that_the_networks_do_not_see_is_not_in_doubt() -> None:
    scans = [see(seed=seed).scan() for seed in range(3)]
    known = measure([scan.without(rgb=True) for scan in scans], SETTINGS)
    assert (known.darkest, known.brightest, known.white) == (0, 0, 1)
    assert prepare(rgb_like(scans[0], lambda rgb: 0 * rgb), known, SETTINGS).doubt == ""


@pytest.mark.parametrize(
    ("beside", "what"),
    [
        (
            tuple(Box(-0.055, 0.045, y, y + 0.025, 0.02) for y in (-0.07, 0.045)),
            r"\d+ pixels in all, .* found \d+: two parts, something beside it",
        ),
        ((Box(0.06, 0.1, -0.01, 0.01, 0.02),), r"8\d pixels either way, as in training, found 1\d\d: two parts"),
    ],
    ids=["area", "length"],
)
def test_two_parts_are_in_doubt(beside: tuple[Box, ...], what: str) -> None:
    view: dict[str, Any] = {"tilt": 0.0, "roll": 0.0}
    known = measure([see(seed=seed, **view).scan() for seed in range(3)], SETTINGS)
    part = see(**view).part
    assert (known.longest, known.largest) == pytest.approx((part.any(axis=0).sum(), part.sum()), rel=0.05)
    scan = see(seed=5, solids=(*COVER, *beside), **view).scan("two")
    with pytest.raises(DataError, match=f"two: expected one part of at most {what}"):
        _ = prepare(scan, known, SETTINGS).judgeable
    assert prepare(scan, measure([see(seed=4, **view).scan(), scan], SETTINGS), SETTINGS).doubt == "", "as in training"
    whole = SETTINGS.model_copy(update={"crop": False})
    assert prepare(scan, measure([see(seed=4, **view).scan()], whole), whole).doubt == "", "the frame grows with nothing"


PART = Box(-0.04, 0.04, -0.02, 0.02, 0.02)
RAIL = Box(-0.3, 0.3, -0.085, -0.06, 0.03)


@pytest.mark.parametrize("rail", [(), (RAIL,)], ids=["alone", "before a rail"])
@pytest.mark.parametrize("how", [SETTINGS, PAPER], ids=["windows", "whole frames"])
def test_what_lies_at_the_end_of_the_frame_beside_a_part_is_in_doubt(
    how: PreparationSettings, rail: tuple[Box, ...]
) -> None:
    view: dict[str, Any] = {"tilt": 0.0, "roll": 0.0}
    known = measure([see(seed=seed, solids=(PART, *rail), **view).scan() for seed in range(3)], how)
    assert not known.runs_out and (known.beside > 0) == bool(rail)
    assert prepare(see(seed=5, solids=(PART, *rail), **view).scan(), known, how).doubt == ""
    broken = (Box(-0.3, -0.06, -0.02, 0.02, 0.02), Box(0.03, 0.06, -0.02, 0.02, 0.02))  # the larger piece lies at the end
    second, hand = (PART, Box(0.06, 0.3, 0.03, 0.07, 0.02)), (PART, Box(-0.3, -0.05, 0.04, 0.3, 0.05))
    for found in (broken, second, hand):
        scan = see(seed=5, solids=(*found, *rail), **view).scan("two")
        with pytest.raises(
            DataError, match=r"two: expected at most \d+ pixels above .* beside the part, .* found \d+: a piece"
        ):
            _ = prepare(scan, known, how).judgeable
    chip = Box(-0.3, -0.09, 0.03, 0.045, 0.02)
    assert prepare(see(seed=5, solids=(PART, chip, *rail), **view).scan(), known, how).doubt == "", "much less than a part"


def test_sound_training_parts_are_not_in_doubt_however_they_differ() -> None:
    solids = [(Dome(0, 0, radius),) for radius in (0.02, 0.024, 0.028)] + [(Box(-0.06, 0.06, -0.006, 0.006, 0.02),)]
    scans = [
        rgb_like(see(seed=seed, solids=one, size=(120, 150)).scan(), lambda rgb, gain=gain: gain * rgb)  # type: ignore[misc]
        for seed, (one, gain) in enumerate((one, gain) for one in solids for gain in (0.1, 1, 20))
    ]
    known = measure(scans, SETTINGS)
    assert [prepare(scan, known, SETTINGS).doubt for scan in scans] == [""] * len(scans)


# ------------------------------------------------------------------------------------------- real scans


def test_real_parts_are_cut_out_with_their_defects(real_data: Path) -> None:
    dataset = find_dataset(real_data / "mvtec3d", "cable_gland")
    settings = PreparationSettings()
    statistics = measure((part.read() for part in dataset.train[:3]), settings)
    assert statistics.background == "plane"
    assert 0.0015 < statistics.distance < 0.004
    assert 0.35 < statistics.window / 400 < 0.7
    defective = [part for part in dataset.test if part.defective]
    for part in defective[:: len(defective) // 3][:3]:
        scan = part.read()
        prepared = prepare(scan, statistics, settings)
        assert scan.mask is not None and prepared.mask is not None
        assert 0.3 < prepared.foreground.mean() < 0.7
        shown = prepared.window.put_back(prepared.mask.astype(np.float32)) > 0.5
        assert iou(shown, scan.mask) > 0.85
        assert (prepared.mask & prepared.foreground).sum() > 0.9 * prepared.mask.sum(), part.id
