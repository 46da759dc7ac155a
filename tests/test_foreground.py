"""Which pixels are the part, on scenes with known truth: holes, walls, pieces, and scans that were cleared."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import COVER, SEVERAL, Box, Dome, iou, see, with_holes

from das3d.background import background_distance, fit_background
from das3d.errors import DataError
from das3d.foreground import find_foreground
from das3d.masks import bounding_box
from das3d.measurement import background_like, measure
from das3d.preparation import prepare
from das3d.scan import Scan, scan_from_arrays
from das3d.settings import PreparationSettings

SETTINGS = PreparationSettings(size=64)  # of windows of about 96 pixels
FRAME = (
    Box(-0.05, 0.05, -0.05, -0.03, 0.01), Box(-0.05, 0.05, 0.03, 0.05, 0.01),
    Box(-0.05, -0.03, -0.05, 0.05, 0.01), Box(0.03, 0.05, -0.05, 0.05, 0.01),
)  # fmt: skip


def foreground_of(scan: Scan) -> np.ndarray:
    assert scan.depth is not None and scan.valid is not None
    fit = fit_background(scan.depth, scan.valid)
    assert fit is not None
    return find_foreground(scan.depth, scan.valid, fit.plane, background_distance(fit, SETTINGS))


@pytest.mark.parametrize("noise", [0.0, 0.0003])
@pytest.mark.parametrize(
    ("solids", "least"),
    [
        (COVER, 0.97),
        ((Dome(0.02, 0.01, 0.03),), 0.97),
        ((Box(-0.004, 0.004, -0.004, 0.004, 0.008),), 0.95),
        (SEVERAL, 0.97),
        ((Box(0.05, 0.3, -0.02, 0.02, 0.02),), 0.95),
        (FRAME, 0.95),
    ],
    ids=["cover", "dome", "tiny", "several", "at the border", "frame"],
)
def test_foreground_is_the_part(solids: tuple[Box | Dome, ...], least: float, noise: float) -> None:
    scene = see(solids=solids, noise=noise)
    found = foreground_of(scene.scan())
    assert iou(found, scene.part) > least
    assert not (found & ~cv2.dilate(scene.part.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)).any()


@given(tilt=st.floats(-30, 30), roll=st.floats(-20, 20), x=st.floats(-0.03, 0.03), y=st.floats(-0.02, 0.02))
@settings(max_examples=15, deadline=None)
def test_foreground_is_the_part_wherever_it_lies(tilt: float, roll: float, x: float, y: float) -> None:
    scene = see(tilt=tilt, roll=roll, solids=(Dome(x, y, 0.03),))
    assert iou(foreground_of(scene.scan()), scene.part) > 0.95


@pytest.mark.parametrize("wall", [Box(-0.3, 0.3, 0.075, 0.3, 0.15), Box(-0.3, -0.085, -0.3, 0.3, 0.1)])
def test_walls_that_run_out_of_the_frame_are_left_out(wall: Box) -> None:
    alone, walled = see(), see(solids=(*COVER, wall))
    assert walled.part.sum() > 1.4 * alone.part.sum()
    visible = alone.part & (np.abs(walled.depth - alone.depth) < 0.003)  # a wall may hide a corner of the part
    assert iou(foreground_of(walled.scan()), visible) > 0.97
    unseen = np.ones(alone.part.shape, dtype=bool)
    unseen[3:-3, 2:-2] = False
    assert iou(foreground_of(with_holes(walled, unseen)), visible & ~unseen) > 0.97, "nothing is measured along the frame"


@pytest.mark.parametrize("gaps", [(60, 120), (30, 150), (90, 100)])
def test_parts_that_run_out_of_the_frame_are_kept_whole_where_all_do(gaps: tuple[int, int]) -> None:
    rope = (Box(-0.3, 0.3, -0.02, 0.02, 0.02),)
    ropes = measure((see(solids=rope, seed=seed).scan() for seed in range(4)), SETTINGS)
    assert ropes.runs_out
    scene = see(solids=rope, seed=9)
    holes = np.zeros(scene.part.shape, dtype=bool)
    for gap in gaps:
        holes[:, gap : gap + 8] = True
    prepared = prepare(with_holes(scene, holes), ropes, SETTINGS.model_copy(update={"size": 180, "squeeze": False}))
    found = prepared.foreground[15:-15]  # what lies in the frame
    assert iou(found, scene.part & ~holes) > 0.93, "the piece between two gaps is not all there is"


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_scattered_holes_change_little(share: float) -> None:
    scene = see()
    holes = np.random.default_rng(0).random(scene.part.shape) < share
    assert iou(foreground_of(with_holes(scene, holes)), scene.part) > 0.97


def test_holes_inside_the_part_belong_to_it_and_holes_in_the_table_do_not() -> None:
    scene = see()
    holes = np.zeros(scene.part.shape, dtype=bool)
    holes[60:80, 70:95] = True
    assert scene.part[holes].all()
    holes[20:40, 20:45] = holes[:4] = holes[:, -3:] = True
    found = foreground_of(with_holes(scene, holes))
    assert found[60:80, 70:95].all()
    assert iou(found, scene.part) > 0.97


def test_table_seen_through_a_ring_is_background() -> None:
    scene = see(solids=FRAME)
    found = foreground_of(scene.scan())
    v, u = (int(x) for x in np.mean(np.nonzero(scene.part), axis=1))
    assert not scene.part[v - 8 : v + 8, u - 8 : u + 8].any(), "the middle shows the table"
    assert not found[v - 8 : v + 8, u - 8 : u + 8].any()


def test_the_shadow_of_a_ring_on_the_table_within_it_is_background() -> None:
    # Nothing is measured in the shadow, which has the ring on one side and the table on the other.
    scene = see(solids=FRAME)
    v, u = (int(x) for x in np.mean(np.nonzero(scene.part), axis=1))
    inside = np.zeros(scene.part.shape, dtype=bool)
    inside[v - 30 : v + 30, u - 30 : u + 30] = True
    shadow = inside & ~scene.part
    shadow[:, u - 12 :] = False
    assert shadow.sum() > 300
    found = foreground_of(with_holes(scene, shadow))
    assert (found & shadow).sum() < 0.1 * shadow.sum()
    assert iou(found, scene.part) > 0.95
    holes = np.zeros(scene.part.shape, dtype=bool)
    holes[:, u - 2 : u + 3] = scene.part[:, u - 2 : u + 3]  # across the ring, from the table within to that without
    assert not foreground_of(with_holes(scene, holes))[holes].all()


@pytest.mark.parametrize("height", [0.002, 0.0025])
def test_a_part_hardly_higher_than_the_noise_of_points_is_found_whole(height: float) -> None:
    for seed in range(3):
        scene = see(solids=(Box(-0.05, 0.05, -0.03, 0.03, height),), noise=0.0004, seed=seed)
        assert iou(foreground_of(scene.scan()), scene.part) > 0.93


def test_a_distance_that_is_set_holds_for_the_rim_too() -> None:
    scan = see(solids=(Dome(0, 0, 0.04),), noise=0.0001).scan()
    measured = measure([scan], SETTINGS)
    found = []
    for how in (SETTINGS, PreparationSettings(size=64, background_distance=measured.distance)):
        statistics = measure([scan], how)
        assert statistics.distance == pytest.approx(measured.distance)
        found.append(prepare(scan, statistics, how).foreground)
    assert found[1].sum() < found[0].sum() and (found[1] <= found[0]).all()


def test_the_rim_of_a_high_part_does_not_run_out_over_a_table_that_is_not_flat() -> None:
    scene = see(noise=0.0001)
    depth = scene.depth.copy()
    depth[:, : scene.part.shape[1] // 2] -= 0.0012  # over half of the distance that a part must rise at least
    found = foreground_of(scan_from_arrays(scene.rgb, depth))
    near = cv2.dilate(scene.part.astype(np.uint8), np.ones((15, 15))) > 0
    assert not (found & ~near).any() and (scene.part <= found).mean() > 0.99


def test_a_part_that_nearly_fills_the_frame_lies_on_the_table_and_not_on_a_plane_through_its_top() -> None:
    scenes = []
    for seed in range(8):
        dx, dy = np.random.default_rng(seed).uniform(-0.012, 0.012, 2)
        block = Box(dx - 0.098, dx + 0.098, dy - 0.098, dy + 0.098, 0.025)
        scenes.append(see(size=(180, 180), tilt=3.0, roll=0.5, seed=seed, solids=(block,)))
    statistics = measure((scene.scan() for scene in scenes), SETTINGS)
    assert 0.02 < -statistics.near < 0.03, "the height of the block and a tenth of it"
    for scene in scenes:
        scan = scene.scan()
        assert scan.depth is not None and scan.valid is not None
        fit = background_like(scan.depth, scan.valid, statistics)
        assert fit is not None
        assert iou(find_foreground(scan.depth, scan.valid, fit.plane, statistics.distance), scene.part) > 0.98


def test_specks_are_left_out() -> None:
    scene = see()
    depth = scene.depth.copy()
    depth[10:13, 20:23] -= 0.01
    depth[140, 90] -= 0.05
    found = foreground_of(scan_from_arrays(scene.rgb, depth))
    assert np.array_equal(found, foreground_of(scene.scan()))
    assert not find_foreground(np.ones((40, 50), np.float32), np.ones((40, 50), dtype=bool), (0, 0, 1), 0.01).any()


@pytest.mark.parametrize(("rise", "belongs"), [(0.0025, False), (0.01, True)])
def test_a_separate_patch_that_hardly_rises_is_table_and_a_lower_piece_is_not(rise: float, belongs: bool) -> None:
    scene = see(solids=(Box(-0.01, 0.05, -0.03, 0.03, 0.04),))
    depth = scene.depth.copy()
    patch = np.zeros(scene.part.shape, dtype=bool)
    patch[60:90, 15:30] = True
    assert not scene.part[patch].any()
    depth[patch] -= rise
    found = foreground_of(scan_from_arrays(scene.rgb, depth))
    assert iou(found, scene.part | patch if belongs else scene.part) > 0.95


# ------------------------------------------------------------------------------------------- walls and pieces

WALL, TALL, SLANTED = Box(-2, 2, 0.15, 0.6, 0.5), Box(-0.04, 0.04, -0.04, 0.05, 0.13), {"tilt": 40, "roll": 0, "focal": 300}


def test_what_stands_before_a_wall_is_told_from_it() -> None:
    scene, wall = see(solids=(WALL, TALL), **SLANTED), see(solids=(WALL,), **SLANTED)
    part = scene.depth < wall.depth - 0.003
    assert (part & wall.part).sum() > 500, "in the picture it hides some of the wall"
    scan = scene.scan()
    fit = fit_background(scan.depth, scan.valid)
    assert fit is not None
    found = find_foreground(scan.depth, scan.valid, fit.plane, 0.003)
    assert (found & part).sum() > 0.97 * part.sum() and (found & ~part).sum() < 0.05 * part.sum()


@pytest.mark.parametrize("edge", [0.0, 0.05])
def test_a_wall_that_fills_the_border_is_no_table(edge: float) -> None:
    part = Box(-0.03, 0.03, -0.10, -0.05, 0.03)
    known = measure([see(seed=seed, solids=(part,), **SLANTED).scan() for seed in range(3)], SETTINGS)
    scene = see(seed=9, solids=(part, Box(-2, 2, edge, 0.6, 0.6)), **{**SLANTED, "tilt": 50})
    scan = scene.scan()
    fit = fit_background(scan.depth, scan.valid)
    assert fit is not None and find_foreground(scan.depth, scan.valid, fit.plane, known.distance).mean() > 0.4
    known = measure([see(seed=seed, solids=(part,), **{**SLANTED, "tilt": 50}).scan() for seed in range(3)], SETTINGS)
    prepared = prepare(scan, known, SETTINGS)
    assert prepared.window.side == known.window
    alone = prepare(see(seed=9, solids=(part,), **{**SLANTED, "tilt": 50}).scan(), known, SETTINGS)
    assert (prepared.foreground == alone.foreground).mean() > 0.99


def test_the_rest_of_a_part_at_the_end_of_the_frame_is_no_wall() -> None:
    known = measure([see(seed=seed, solids=(Box(-0.055, 0.055, -0.03, 0.03, 0.03),)).scan() for seed in range(3)], SETTINGS)
    pieces = (Box(-0.13, -0.045, -0.03, 0.03, 0.03), Box(-0.035, -0.01, -0.03, 0.03, 0.03))
    scene = see(seed=5, solids=pieces)
    prepared = prepare(scene.scan(), known, SETTINGS)
    shown = prepared.foreground.mean() * prepared.window.height * prepared.window.width / scene.part.size
    assert shown == pytest.approx(scene.part.mean(), rel=0.05), "both pieces"


@pytest.mark.parametrize("middle", [0.075, 0.008], ids=["boss", "pocket"])
def test_what_belongs_to_a_part_that_runs_across_the_frame_is_not_told_from_it(middle: float) -> None:
    rail = (
        Box(-1, -0.03, -0.025, 0.025, 0.04), Box(0.03, 1, -0.025, 0.025, 0.04), Box(-0.03, 0.03, -0.025, -0.017, 0.04),
        Box(-0.03, 0.03, 0.017, 0.025, 0.04), Box(-0.03, 0.03, -0.017, 0.017, middle),
    )  # fmt: skip
    scenes = [see(seed=seed, solids=rail, distance=0.4, tilt=0, roll=0) for seed in range(3)]
    known = measure([scene.scan() for scene in scenes], SETTINGS)
    assert known.runs_out and known.area == pytest.approx(scenes[0].part.mean(), rel=0.1)


def test_stray_points_are_no_part_before_a_wall() -> None:
    known = measure([see(seed=seed).scan() for seed in range(3)], SETTINGS)
    stray = np.zeros((150, 180), np.float32)
    stray[70, 80:82] = 0.50, 0.55  # of a lens that is covered, for the rest
    row = see(solids=()).depth.copy()
    row[75] -= np.where(np.arange(180) % 2, 0.10, 0.16)  # a dead row
    for depth in (stray, row):
        with pytest.raises(DataError, match="expected a part more than"):
            prepare(scan_from_arrays(see().rgb, depth), known, SETTINGS)


# ------------------------------------------------------------------------------------------- cleared scans


def test_cleared_parts_of_any_size_are_prepared_alike_and_glare_clears_nothing() -> None:
    rows, columns = np.indices((150, 180))
    depth = 0.5 + 0.05 * np.sin(rows * columns)  # in which nothing is a plane

    def cleared(share: float) -> Scan:
        radii = np.hypot((rows - 74.5) / 75, (columns - 89.5) / 90)
        return scan_from_arrays(see().rgb, np.where(radii < math.sqrt(share * 4 / math.pi), depth, 0))

    known = measure([cleared(0.70)] * 4, SETTINGS)
    assert known.background == "cleared"
    assert prepare(cleared(0.77), known, SETTINGS).foreground.any(), "a little larger than those of training"
    glare = scan_from_arrays(see().rgb, np.where(columns > 120 + 8 * np.sin(rows / 9), 0, depth))
    view = scan_from_arrays(see().rgb, np.where((abs(rows - 75) < 50) & (abs(columns - 90) < 60), depth, 0))
    for scan in (glare, view):
        assert measure([scan] * 3, SETTINGS).background == "none", "which shows the part in RGB where depth is missing"


def test_scans_whose_background_was_cleared_away_are_cut_out_by_what_was_measured() -> None:
    scenes = [see(seed=seed) for seed in range(4)]
    cleared = [scan_from_arrays(scene.rgb, np.where(scene.part, scene.depth, 0)) for scene in scenes]
    known, plain = measure(cleared, SETTINGS), measure([scene.scan() for scene in scenes], SETTINGS)
    assert known.background == "cleared" and known.area == pytest.approx(plain.area, rel=0.02)
    assert known.window == pytest.approx(plain.window, abs=3)
    prepared, usual = (prepare(scans[0], one, SETTINGS) for scans, one in ((cleared, known), ([scenes[0].scan()], plain)))
    assert prepared.doubt == "" and (prepared.depth[~prepared.foreground] == 1).all()
    assert (prepared.foreground == usual.foreground).mean() > 0.97
    holes = scenes[1].part & (np.indices(scenes[1].part.shape).sum(axis=0) % 5 == 0)
    holed = scan_from_arrays(scenes[1].rgb, np.where(scenes[1].part & ~holes, scenes[1].depth, 0))
    same = prepare(cleared[1], known, SETTINGS)
    assert (prepare(holed, known, SETTINGS).foreground == same.foreground).mean() > 0.99, "missing points belong to it"
    half = scan_from_arrays(scenes[1].rgb, np.where(scenes[1].part & (np.arange(180) < 85), scenes[1].depth, 0))
    assert "too little was measured" in prepare(half, known, SETTINGS).doubt
    with pytest.raises(DataError, match=r"whole: expected depth on the part alone, as in training, found it on 100%"):
        prepare(scenes[2].scan("whole"), known, SETTINGS)


# ------------------------------------------------------------------------------------------- masks


def test_bounding_box_is_that_of_the_true_pixels() -> None:
    mask = np.zeros((9, 12), dtype=bool)
    mask[2, 3] = mask[6, 11] = True
    assert bounding_box(mask) == (2, 7, 3, 12)


@pytest.mark.parametrize(("boss", "far"), [(0.0025, True), (0.02, False)], ids=["low", "with a boss on a fifth of it"])
def test_a_part_goes_on_far_below_the_background_distance_only_if_it_is_low_all_over(boss: float, far: bool) -> None:
    # A foot of 0.7 mm beside a plate of 3 mm: below a background distance of 1 mm, which a wavy table reaches as well.
    part = (Box(-0.03, 0.0, -0.02, 0.02, 0.0015), Box(-0.03, -0.01, -0.01, 0.01, boss))
    scan = see(solids=(*part, Box(0.0, 0.05, -0.02, 0.02, 0.0007))).scan()
    assert scan.depth is not None and scan.valid is not None
    fit = fit_background(scan.depth, scan.valid)
    assert fit is not None
    found = find_foreground(scan.depth, scan.valid, fit.plane, 0.001)
    left, right = np.flatnonzero(found.any(axis=0))[[0, -1]]
    whole = see(solids=(Box(-0.03, 0.05, -0.02, 0.02, 0.02),)).part
    begins, ends = np.flatnonzero(whole.any(axis=0))[[0, -1]]
    assert abs(left - begins) <= 3 and (right >= ends - 5) == far
