"""What is measured on training scans with known truth, and what cannot be."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scenes import COVER, FILLING, Box, iou, see, unmeasured, with_holes

from das3d.background import plane_depth
from das3d.errors import DataError
from das3d.foreground import find_foreground
from das3d.masks import bounding_box
from das3d.measurement import Statistics, measure
from das3d.preparation import _foreground_and_depth
from das3d.scan import Scan, scan_from_arrays
from das3d.settings import PreparationSettings

SETTINGS = PreparationSettings(size=64)  # of windows of about 96 pixels
PAPER = PreparationSettings(size=64, crop=False, level=False, background_distance=0.005, stretch=False)


@pytest.fixture(scope="module")
def statistics() -> Statistics:
    return measure((see(seed=seed).scan() for seed in (1, 2, 3)), SETTINGS)


def test_statistics_are_those_of_the_scene(statistics: Statistics) -> None:
    scene = see(noise=0.0)
    assert (statistics.has_rgb, statistics.has_depth, statistics.background) == (True, True, "plane")
    assert (statistics.frame, statistics.scans) == ((150, 180), 3)
    assert plane_depth(statistics.plane, (150, 180)) == pytest.approx(scene.table, abs=0.0001)
    assert statistics.noise == pytest.approx(0.0003, rel=0.1)
    highest = (scene.table - scene.depth).max()
    assert statistics.far == 0
    assert -statistics.near == pytest.approx(1.1 * highest, rel=0.03), "a tenth of the range is left above the part"
    top, bottom, left, right = bounding_box(scene.part)
    assert statistics.window == pytest.approx(max(bottom - top, right - left) * 1.08, abs=3)
    assert statistics.rgb_high == pytest.approx(150 + 2.3 * 4, abs=3), "the 99th percentile of the part, not of the table"


def test_paper_settings_measure_depth_from_the_camera() -> None:
    scene = see(noise=0.0)
    statistics = measure([scene.scan()], PAPER)
    on_part = scene.depth[scene.part]
    assert statistics.far == pytest.approx(on_part.max(), abs=0.003), "removed points within 5 mm of the table count not"
    assert statistics.near == pytest.approx(on_part.min() - 0.1 * np.ptp(on_part), abs=0.001)
    assert (statistics.window, statistics.distance, statistics.rgb_high) == (0, 0.005, 255)


def test_statistics_survive_json(statistics: Statistics) -> None:
    mixed = measure([see().scan(), see(size=(140, 180)).scan()], SETTINGS)
    assert mixed.frame is None
    for one in (statistics, mixed, measure([see(solids=FILLING).scan()], SETTINGS)):
        again = Statistics.from_dict(json.loads(json.dumps(one.to_dict())))
        assert again == one
        assert hash(again) == hash(one), "lists must become tuples again"
    values = statistics.to_dict()
    del values["breadth"]
    with pytest.raises(KeyError, match="breadth"):
        Statistics.from_dict(values)


def test_statistics_are_deterministic_and_take_scans_one_at_a_time(statistics: Statistics) -> None:
    steps: list[int] = []
    again = measure((see(seed=seed).scan() for seed in (1, 2, 3)), SETTINGS, progress=lambda: steps.append(1))
    assert again == statistics
    assert len(steps) == 3


@pytest.mark.parametrize("solids", [COVER, FILLING])
def test_pixels_that_fly_and_odd_parts_do_not_widen_the_range(solids: Any) -> None:
    rng = np.random.default_rng(0)
    scenes = [see(seed=seed, solids=solids) for seed in range(60)]
    plain = measure((scene.scan() for scene in scenes), SETTINGS)
    flying = []
    for scene in scenes:
        depth = scene.depth.copy()
        lone = rng.random(depth.shape) < 0.01
        depth[lone] -= rng.uniform(0.02, 0.2, depth.shape)[lone]
        flying.append(scan_from_arrays(scene.rgb, depth))
    odd = see(seed=99, solids=(*solids, Box(-0.01, 0.01, -0.01, 0.01, 0.15))).scan()  # something stands on the part
    for found in (measure(flying, SETTINGS), measure([*(scene.scan() for scene in scenes), odd], SETTINGS)):
        assert found.far - found.near == pytest.approx(plain.far - plain.near, rel=0.15)


def test_statistics_are_the_same_in_any_unit() -> None:
    counts = [np.round(see(seed=seed).depth * 1000, 1) for seed in (1, 2)]
    in_metres = measure([scan_from_arrays(depth=one / 1000) for one in counts], SETTINGS).to_dict()
    in_millimetres = measure([scan_from_arrays(depth=one, unit="mm") for one in counts], SETTINGS).to_dict()
    for name, value in in_metres.items():
        expected = value if name in ("background", "axis") else pytest.approx(value, rel=1e-5, abs=1e-9)
        assert in_millimetres[name] == expected, name


def test_parts_that_run_out_of_the_frame_are_measured_with_their_pieces_beyond_gaps() -> None:
    scenes = [see(seed=seed, solids=(Box(-0.3, 0.3, -0.02, 0.02, 0.02),)) for seed in range(5)]
    columns = np.arange(180)
    gaps = np.broadcast_to(((columns > 55) & (columns < 62)) | ((columns > 120) & (columns < 127)), (150, 180))
    ropes = [scene.scan() for scene in scenes[:3]] + [with_holes(scene, gaps & scene.part) for scene in scenes[3:]]
    known = measure(ropes, SETTINGS)
    prepared = min(_foreground_and_depth(rope, known, SETTINGS)[0].mean() for rope in ropes)
    assert known.runs_out and known.area == pytest.approx(prepared, rel=0.01) and known.beside == 0


def test_parts_inside_the_frame_do_not_run_out_of_it(statistics: Statistics) -> None:
    assert not statistics.runs_out
    scans = [see(seed=seed).scan() for seed in range(3)]
    assert not measure([*scans, see(solids=(Box(-0.3, 0.3, -0.02, 0.02, 0.02),)).scan()], SETTINGS).runs_out


@pytest.mark.parametrize("rim", [5, 10, 30])
def test_the_plane_is_found_where_nothing_is_measured_along_the_frame(rim: int) -> None:
    scenes = [see(seed=seed, size=(220, 250)) for seed in range(3)]
    unmeasured = np.ones(scenes[0].part.shape, dtype=bool)
    unmeasured[rim:-rim, rim:-rim] = False
    scans = [with_holes(scene, unmeasured) for scene in scenes]
    found = measure(scans, SETTINGS)
    assert found.background == "plane" and 0 < found.window < 250
    foreground = find_foreground(scans[0].depth, scans[0].valid, found.plane, found.distance)  # type: ignore[arg-type]
    assert iou(foreground, scenes[0].part) > 0.93


@pytest.mark.parametrize("noise", [0.002, 0.0027, 0.003, 0.0036])
def test_specks_of_noise_on_a_flat_part_that_fills_the_frame_are_no_part(noise: float) -> None:
    scans = [see(seed=seed, solids=(), tilt=0.0, roll=0.0, noise=noise).scan() for seed in range(3)]
    assert measure(scans, SETTINGS).background == "none"


def test_a_small_part_in_a_large_picture_is_found() -> None:
    knob = (Box(-0.01, 0.01, -0.01, 0.01, 0.01),)
    scenes = [see(solids=knob, seed=seed, size=(700, 800)) for seed in range(3)]
    assert 100 < scenes[0].part.sum() < 0.002 * scenes[0].part.size
    found = measure([scene.scan() for scene in scenes], SETTINGS)
    assert found.background == "plane" and found.window < 60


def test_a_lone_scan_without_plane_does_not_decide() -> None:
    scans = [see(seed=seed).scan() for seed in range(5)]
    odd = see(solids=FILLING).scan()
    assert measure([*scans, odd], SETTINGS).background == "plane"
    assert measure([*scans, odd, odd], SETTINGS).background == "none", "two of seven are too many"
    reference = measure(scans, SETTINGS)
    assert measure([*scans, odd], SETTINGS) == replace(reference, scans=6), "and what it shows is not measured"


def test_one_scan_with_a_wall_changes_no_statistics() -> None:
    part, view = Box(-0.03, 0.03, -0.10, -0.05, 0.03), {"tilt": 50, "roll": 0, "focal": 300}
    scans = [see(seed=seed, solids=(part,), **view).scan() for seed in range(8)]
    wall = see(seed=9, solids=(part, Box(-2, 2, 0.02, 0.6, 0.6)), **view).scan()
    without, with_it = measure(scans, SETTINGS), measure([*scans, wall], SETTINGS)
    assert with_it.window == without.window and with_it.near == pytest.approx(without.near, abs=1e-4)


def test_all_training_scans_without_depth_are_named() -> None:
    scene = see()
    nothing = np.zeros(scene.part.shape, np.float32)
    empty = [Scan(f"empty {i}", scene.rgb, nothing, nothing > 0) for i in range(2)]
    with pytest.raises(DataError) as caught:
        measure([scene.scan(), *empty], SETTINGS)
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["empty 0", "empty 1"]


@pytest.mark.parametrize("crop", [True, False])
def test_margin_and_crop_decide_the_window(crop: bool) -> None:
    narrow, wide = (measure([see().scan()], SETTINGS.model_copy(update={"margin": m, "crop": crop})) for m in (0.0, 0.5))
    part = max(bottom - top for top, bottom in [bounding_box(see().part)[2:]])
    if crop:
        assert narrow.window == pytest.approx(part, abs=2)
        assert wide.window == pytest.approx(1.5 * part, abs=3)
    else:
        assert narrow.window == wide.window == 0


@pytest.mark.parametrize(
    ("scans", "message"),
    [
        ([], "no training scans: expected at least one good part"),
        (
            [see().scan(), see().scan().without(rgb=True)],
            "expected RGB and depth, as other training scans have, found depth",
        ),
        (
            [see().scan(), see().scan().without(depth=True)],
            "expected RGB and depth, as other training scans have, found RGB",
        ),
        (
            [unmeasured("blind", (20, 30))],
            "blind: expected some measured depth, found none",
        ),
    ],
)
def test_training_scans_that_cannot_be_measured_are_refused(scans: list[Scan], message: str) -> None:
    with pytest.raises(DataError, match=message):
        measure(scans, SETTINGS)


@pytest.mark.parametrize("settings", [SETTINGS, PAPER], ids=["levelled", "paper"])
def test_depth_that_is_the_same_everywhere_is_refused(settings: PreparationSettings) -> None:
    rgb = see().rgb
    scans = [scan_from_arrays(rgb, np.full(rgb.shape[:2], 0.6), name=f"flat {i}") for i in range(3)]
    with pytest.raises(DataError, match=r"flat 0 and 2 other scans: expected depth that differs .* 0\.6 m everywhere"):
        measure(scans, settings)
