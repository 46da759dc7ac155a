"""Regions: where, how large, how high and by which evidence; on engines whose answer is known, and through the commands."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scenes import Scene, see
from scipy import ndimage
from tiny import das3d

from das3d.demo import CATEGORY
from das3d.detector import load
from das3d.engines import EngineOutput
from das3d.engines.torch_engine import part_scores
from das3d.errors import DataError
from das3d.measurement import Statistics, measure
from das3d.parts import UNKNOWN, Part
from das3d.pictures import outlined
from das3d.prediction import with_focal_length
from das3d.preparation import PreparedScan, prepare
from das3d.regions import (
    BINS,
    SMALLEST,
    Moments,
    Region,
    RegionNorms,
    _place,
    components,
    evidence_in,
    find_regions,
    height_of,
    mean_filtered,
    measure_norms,
    pixel_threshold,
)
from das3d.scan import Camera
from das3d.settings import make_settings
from das3d.threshold import SAME, threshold_from
from das3d.window import Window

SETTINGS = make_settings("demo", changes=["preparation.size=64", "score.window=5"])
Runs = Callable[..., Path]


class Ideal:
    """An engine that knows the good part: it repairs to it, blurred, and marks what differs from it.

    Repaired colour looks suspicious to it wherever it is put, as networks may find blur suspicious.
    """

    def __init__(self, good: PreparedScan, suspicion: float = 0.0) -> None:
        self.good, self.suspicion = good, suspicion
        self.rgb = cv2.GaussianBlur(good.rgb, (0, 0), 1.0)
        self.depth = cv2.GaussianBlur(good.depth, (0, 0), 0.7)

    def __call__(self, scans: Sequence[PreparedScan]) -> EngineOutput:
        maps = []
        for scan in scans:
            colour = np.abs(scan.rgb.astype(np.float32) - self.good.rgb).max(axis=2) / 255
            shape = np.abs(scan.depth - self.good.depth)
            blurred = (np.abs(scan.rgb.astype(np.float32) - self.rgb).max(axis=2) < 2) & (colour > 0.005)
            seen = np.where(blurred, self.suspicion, np.clip(3 * colour, 0, 1))
            maps.append((seen + np.clip(4 * shape, 0, 1)).astype(np.float32) / 2)
        count = len(scans)
        values = np.stack(maps)
        return EngineOutput(
            values,
            part_scores(torch.from_numpy(values), SETTINGS.score).numpy(),
            np.repeat(self.rgb.transpose(2, 0, 1)[None].astype(np.float32) / 255, count, axis=0),
            np.repeat(self.depth[None], count, axis=0),
        )


@pytest.fixture(scope="module")
def scene() -> Scene:
    return see(tilt=0.0, roll=0.0, noise=0.0001)


@pytest.fixture(scope="module")
def statistics(scene: Scene) -> Statistics:
    return measure([scene.scan()], SETTINGS.preparation)


@pytest.fixture(scope="module")
def good(scene: Scene, statistics: Statistics) -> PreparedScan:
    return prepare(replace(scene.scan(), camera=scene.camera), statistics, SETTINGS.preparation)


def spoiled(good: PreparedScan, which: str, place: tuple[int, int], radius: int = 5, amount: float = 0.3) -> PreparedScan:
    """The part with a disc changed in colour, shape or both; positive amounts are raised."""
    disc = cv2.circle(np.zeros(good.depth.shape, np.uint8), place[::-1], radius, 1, -1) > 0
    rgb = np.where(disc[..., None], 255 - good.rgb, good.rgb) if which != "shape" else good.rgb
    depth = np.where(disc, good.depth - np.float32(amount), good.depth) if which != "colour" else good.depth
    return replace(good, rgb=rgb.astype(np.uint8), depth=depth.astype(np.float32), mask=disc)


PLACES = [(26, 24), (32, 40), (40, 30), (30, 32), (38, 40), (27, 34), (35, 25), (36, 35), (29, 28), (33, 30)]


def norms_of(run: Ideal, good: PreparedScan, statistics: Statistics) -> RegionNorms:
    norms = measure_norms([good], run([good]), statistics)
    spots = {which: [spoiled(good, which, place, 4) for place in PLACES] for which in ("colour", "shape")}
    moments = {which: evidence_in(run, scans, 0.2) for which, scans in spots.items()}
    assert all(moment.count == len(PLACES) for moment in moments.values())
    return RegionNorms(norms.levels, norms.heights_mm, **moments)


def regions_of(run: Ideal, scan: PreparedScan, good: PreparedScan, statistics: Statistics) -> tuple[Region, ...]:
    threshold = threshold_from([0.2] * 3, 0.3)
    assert threshold is not None
    norms = norms_of(run, good, statistics)
    (found,) = find_regions(run, [scan], run([scan]), norms, threshold, statistics, SETTINGS.score)
    return found


# ------------------------------------------------------------------------------------ which pixels


@given(seed=st.integers(0, 10_000), window=st.sampled_from([1, 3, 5, 11]))
@settings(max_examples=40, deadline=None)
def test_mean_filter_is_the_scores(seed: int, window: int) -> None:
    values = np.random.default_rng(seed).random((24, 24), dtype=np.float32)
    image = torch.from_numpy(values)[None, None]
    foreign = F.avg_pool2d(image, window, 1, window // 2, count_include_pad=False)[0, 0].numpy()
    assert mean_filtered(values, window) == pytest.approx(foreign, abs=1e-5)


@given(seed=st.integers(0, 10_000), pixel=st.floats(0, 1), share=st.floats(0, 1.2), window=st.sampled_from([1, 5, 11]))
@settings(max_examples=80, deadline=None)
def test_pieces_are_apart_above_the_level_and_never_none(seed: int, pixel: float, share: float, window: int) -> None:
    rng = np.random.default_rng(seed)
    values = cv2.GaussianBlur(rng.random((40, 40), dtype=np.float32), (0, 0), 2)
    values = (values - values.min()) / (np.ptp(values) + 1e-6)
    score = float(mean_filtered(values, window).max())
    found = components(values, pixel, share * score, window)
    assert found and all(mask.any() for mask, _ in found)
    assert max(s for _, s in found) <= score * (1 + 1e-6)
    together = np.sum([mask for mask, _ in found], axis=0)
    assert together.max() == 1
    if (values > pixel).any():
        assert not (together.astype(bool) & (values <= pixel)).any()
        if share < 1 and len(found) > 1:
            assert all(s > share * score for _, s in found)


@given(seed=st.integers(0, 10_000), share=st.floats(0, 1.1), window=st.sampled_from([1, 5]))
@settings(max_examples=40, deadline=None)
def test_pieces_are_those_that_looking_at_each_alone_finds(seed: int, share: float, window: int) -> None:
    values = cv2.GaussianBlur(np.random.default_rng(seed).random((48, 48), dtype=np.float32), (0, 0), 1.5)
    filtered, pixel = mean_filtered(values, window), float(np.quantile(values, 0.9))
    threshold = share * float(filtered.max())
    labels, count = ndimage.label(ndimage.binary_dilation(values > pixel, np.ones((5, 5))), np.ones((3, 3)))
    reach = ndimage.maximum_filter(labels, window)  # a window whose centre lies beside pieces counts for the last of them
    every = []
    for label in range(1, count + 1):
        mask = (values > pixel) & (labels == label)
        every.append((mask, float(filtered[(labels == label) | ((labels == 0) & (reach == label))].max())))
    expected = [(mask, score) for mask, score in every if score > threshold and mask.sum() >= SMALLEST]
    expected = expected or [max(every, key=lambda piece: piece[1])]
    found = components(values, pixel, threshold, window)
    for (mask, score), (known, known_score) in zip(_by_place(found), _by_place(expected), strict=True):
        assert np.array_equal(mask, known) and score == pytest.approx(known_score)


def _by_place(pieces: list[tuple[Any, float]]) -> list[tuple[Any, float]]:
    return sorted(pieces, key=lambda piece: int(np.flatnonzero(piece[0])[0]))


def test_one_good_pixel_in_a_thousand_is_above_the_level() -> None:
    rng, total, above = np.random.default_rng(0), 0, 0
    scans = [prepare_flat(side=64) for _ in range(8)]
    maps = rng.beta(2, 8, (8, 64, 64)).astype(np.float32)
    norms = [measure_norms([scan], EngineOutput(image[None], image.max()[None], None, None), STATISTICS)
             for scan, image in zip(scans, maps, strict=True)]  # fmt: skip
    together = norms[0]
    for more in norms[1:]:
        together += more
    whole = measure_norms(scans, EngineOutput(maps, maps.max(axis=(1, 2)), None, None), STATISTICS)
    assert together == whole, "norms add up"
    for scan, image in zip(scans, maps, strict=True):
        total += int(scan.foreground.sum())
        above += int((image[scan.foreground] > whole.good_pixel_level).sum())
    assert 0.0005 < above / total <= 0.001


STATISTICS = Statistics(True, True, "none", (0.0, 0.0, 0.0), 0.0, 0.0, 0, None, 0.0, 0.05, 255.0, 1)


def prepare_flat(side: int) -> PreparedScan:
    part = np.zeros((side, side), dtype=bool)
    part[8:-8, 8:-8] = True
    flat = np.where(part, np.float32(0.5), np.float32(1))
    grey = np.where(part[..., None], np.uint8(120), np.uint8(0)) * np.ones(3, np.uint8)
    return PreparedScan("flat", grey, flat, part, part, None, Window.square(0, 0, side, (side, side)))


# ------------------------------------------------------------------------------------ evidence


@pytest.mark.parametrize("suspicion", [0.0, 0.5])
def test_evidence_is_that_of_the_modality_that_was_harmed(
    good: PreparedScan, scene: Scene, statistics: Statistics, suspicion: float
) -> None:
    run = Ideal(good, suspicion)
    for which in ("colour", "shape"):
        for place in ((28, 38), (37, 29)):
            (region, *_) = regions_of(run, spoiled(good, which, place, 6), good, statistics)
            assert region.evidence == which
            assert region.colour + region.shape == pytest.approx(1)
            assert (region.colour > 0.9) == (which == "colour") and (region.shape > 0.9) == (which == "shape")


def test_evidence_of_both(good: PreparedScan, scene: Scene, statistics: Statistics) -> None:
    (region, *_) = regions_of(Ideal(good), spoiled(good, "both", (32, 34), 6), good, statistics)
    assert region.evidence == "both" and 0.1 < region.colour < 0.9


def test_evidence_is_unclear_where_too_little_is_known(good: PreparedScan, scene: Scene, statistics: Statistics) -> None:
    run, threshold = Ideal(good), threshold_from([0.2] * 3, 0.3)
    assert threshold is not None
    norms = measure_norms([good], run([good]), statistics)
    scan = spoiled(good, "colour", (32, 34))
    ((region,),) = find_regions(run, [scan], run([scan]), norms, threshold, statistics, SETTINGS.score)
    assert (region.evidence, region.colour, region.shape) == ("unclear", 0.0, 0.0)
    assert "evidence unclear" in region.describe()


def test_moments_add_up() -> None:
    rows = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    together, parts = Moments.of(list(rows)), Moments.of(list(rows[:4])) + Moments.of(list(rows[4:]))
    assert together.count == parts.count == 9
    assert together.mean == pytest.approx(rows.mean(axis=0), abs=1e-6)
    assert parts.scatter == pytest.approx(np.cov(rows.T) * 8, abs=1e-4)
    assert Moments().count == 0 and Moments.of([]) == Moments()


# ------------------------------------------------------------------------------------ place and size


def test_height_has_the_sign_and_size_of_the_change(good: PreparedScan, statistics: Statistics) -> None:
    millimetres = 1000 * (statistics.far - statistics.near)
    for amount in (0.2, -0.2, 0.05):
        scan = spoiled(good, "shape", (36, 40), 5, amount)
        assert scan.mask is not None
        found = height_of(scan.mask, scan, good.depth, statistics)
        assert found == pytest.approx(amount * millimetres, rel=0.05)
        shifted = height_of(scan.mask, scan, good.depth + np.float32(0.03), statistics)
        assert shifted == pytest.approx(found, abs=0.02 * millimetres), "a shift of the whole repaired part does not count"


def test_height_needs_measured_depth(good: PreparedScan, statistics: Statistics) -> None:
    scan = spoiled(good, "shape", (36, 40))
    assert scan.mask is not None
    assert height_of(scan.mask, replace(scan, valid=scan.valid & ~scan.mask), good.depth, statistics) is None


@pytest.mark.parametrize("radius", [3, 6])
def test_place_and_area_are_those_on_the_frame(
    good: PreparedScan, scene: Scene, statistics: Statistics, radius: int
) -> None:
    place = (36, 40)  # on the flat cover
    scan = spoiled(good, "shape", place, radius)
    (region, *_) = regions_of(Ideal(good), scan, good, statistics)
    window = good.window
    scale = window.side / len(good.depth)
    x, y = (place[1] + 0.5) * scale + window.left - 0.5, (place[0] + 0.5) * scale + window.top - 0.5
    assert region.centroid == pytest.approx((x, y), abs=1.5)
    left, top, width, height = region.box
    assert left <= x <= left + width and top <= y <= top + height
    assert width == pytest.approx(height, abs=3) and width == pytest.approx((2 * radius + 1) * scale, abs=4)
    corners = np.array(region.outline)
    assert corners.min(axis=0).tolist() == [left, top]
    assert corners.max(axis=0).tolist() == [left + width - 1, top + height - 1]
    depth = np.median(scene.depth[scene.part])
    assert region.area_mm2 == pytest.approx(region.area_px * 1e6 * depth**2 / scene.camera.fx**2, rel=0.01)
    assert region.area_px == pytest.approx(np.pi * (radius + 0.5) ** 2 * scale**2, rel=0.5)


def test_a_region_beyond_the_frame_lies_at_its_edge(good: PreparedScan, scene: Scene, statistics: Statistics) -> None:
    size = len(good.depth)
    scan = replace(good, window=Window.square(-250, 0, 900, (400, 900)))  # of a wide frame, with borders above and below
    mask = np.zeros((size, size), dtype=bool)
    mask[1:3, size // 2 : size // 2 + 3] = True
    place = _place(mask, scan)
    assert place["area_px"] == 1 and place["box"][1:] == (0, 1, 1) and abs(place["box"][0] - 450) < 30


def test_area_in_mm_needs_a_camera(scene: Scene, statistics: Statistics) -> None:
    alone, told = scene.scan(), replace(scene.scan(), camera=scene.camera)
    assert prepare(alone, statistics, SETTINGS.preparation).pixel_mm2 is None
    area = prepare(told, statistics, SETTINGS.preparation).pixel_mm2
    assert area == pytest.approx((1000 * np.median(scene.depth[scene.part]) / scene.camera.fx) ** 2, rel=0.01)
    camera = Camera.centred(500.0, scene.part.shape)
    assert (camera.cx, camera.cy) == ((scene.part.shape[1] - 1) / 2, (scene.part.shape[0] - 1) / 2)


def test_two_defects_are_two_regions_the_larger_first(good: PreparedScan, scene: Scene, statistics: Statistics) -> None:
    one = spoiled(good, "shape", (28, 24), 3)
    both = spoiled(one, "colour", (38, 42), 6)
    regions = regions_of(Ideal(good), both, good, statistics)
    assert [region.evidence for region in regions] == ["colour", "shape"]
    assert regions[0].area_px > regions[1].area_px


def test_good_parts_have_no_regions(good: PreparedScan, scene: Scene, statistics: Statistics) -> None:
    assert regions_of(Ideal(good), good, good, statistics) == ()


def test_descriptions() -> None:
    region = Region(
        (212.6, 187.2), (200, 180, 25, 15), ((200, 180),), 250, 14.23, -0.83, 0.4, "shape", 0.07, 0.93, 0.5, 0.9, 0.6
    )
    assert region.describe() == "14.2 mm2 at (213, 187), 0.83 mm deep, by shape (93%)"
    small = replace(region, area_mm2=None, height_mm=0.2, evidence="both", colour=0.45, shape=0.55)
    assert small.describe() == "250 pixels at (213, 187), by colour (45%) and shape (55%)"
    assert json.loads(json.dumps(region.to_dict()))["outline"] == [[200, 180]]


def test_norms_survive_json(good: PreparedScan, statistics: Statistics) -> None:
    norms = norms_of(Ideal(good), good, statistics)
    assert RegionNorms(**json.loads(json.dumps(norms.to_dict()))) == norms
    assert len(norms.levels) == BINS and norms.height_noise_mm is not None


def test_outlines_are_drawn_and_the_picture_kept() -> None:
    picture = np.full((60, 80, 3), 120, dtype=np.uint8)
    square = ((20, 15), (20, 40), (50, 40), (50, 15))
    drawn = outlined(picture, [square])
    assert (picture == 120).all() and (drawn[15, 20:50] > 200).all() and (drawn[27, 35] == 120).all()
    assert np.array_equal(outlined(picture, []), picture)


# ------------------------------------------------------------------------------------ the commands


@pytest.mark.parametrize("modality", ["rgb+depth", "rgb", "depth"])
def test_predict_reports_regions_of_every_defective_part_and_of_no_other(
    tiny_run: Runs, tiny_data: Path, tmp_path: Path, modality: str
) -> None:
    trained = load(tiny_run(modality), "cpu")
    assert trained.threshold is not None
    # Below most scores, which lie close together after so short a training.
    split = replace(trained.threshold, value=float(np.min(trained.threshold.good_scores)) - SAME)
    replace(trained, threshold=split).save(tmp_path / "model.safetensors")
    result = das3d("predict", tmp_path / "model.safetensors", "--data", tiny_data, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    about = json.loads((tmp_path / "out" / "regions.json").read_text())
    with (tmp_path / "out" / "scores.csv").open(newline="") as file:
        defective = {row["id"] for row in csv.DictReader(file) if row["verdict"] == "defective"}
    assert defective and {part["id"] for part in about["parts"]} == defective
    assert trained.norms is not None and about["pixel_threshold"] == pixel_threshold(trained.norms, split)
    for part in about["parts"]:
        for region in part["regions"]:
            assert region["area_mm2"] > 0, "points tell the camera"
            if modality != "rgb+depth":
                assert region["evidence"] == {"rgb": "colour", "depth": "shape"}[modality]
            if modality == "rgb":
                assert region["height_mm"] is None
        assert part["regions"][0]["area_px"] == max(region["area_px"] for region in part["regions"])
    assert " mm2 at (" in result.stdout


def test_a_focal_length_gives_areas_where_files_hold_depth_alone(tiny_run: Runs, tiny_data: Path, tmp_path: Path) -> None:
    trained = load(tiny_run(), "cpu")
    assert trained.threshold is not None
    low = replace(trained, threshold=replace(trained.threshold, value=0.0))
    low.save(tmp_path / "model.safetensors")
    part = tiny_data / CATEGORY / "test" / "dent"
    points = tifffile.imread(part / "xyz" / "000.tiff")
    rgb = np.asarray(Image.open(part / "rgb" / "000.png"))
    by_points = low.predict(rgb, points).regions[0]
    v, u = np.nonzero(points[..., 2])
    focal = float(np.polyfit(points[v, u, 0] / points[v, u, 2], u, 1)[0])
    alone = low.predict(rgb, points[..., 2]).regions[0]
    told = low.predict(rgb, points[..., 2], camera=Camera.centred(focal, rgb.shape[:2])).regions[0]
    assert alone.area_mm2 is None and by_points.area_mm2 is not None
    assert told.area_mm2 == pytest.approx(by_points.area_mm2, rel=0.02)

    folder = tmp_path / "parts"
    folder.mkdir()
    Image.fromarray(rgb).save(folder / "a_rgb.png")
    cv2.imwrite(str(folder / "a_depth.png"), np.rint(points[..., 2] / 1e-5).astype(np.uint16))
    outputs: list[dict[str, Any]] = []
    (folder / "dataset.yaml").write_text(f"depth_scale: 0.00001\nfocal_length: {focal}\n")
    for options in ((), ("--focal-length", focal)):
        result = das3d("predict", tmp_path / "model.safetensors", "--data", folder, "--out", tmp_path / "out", *options)
        assert result.exit_code == 0, result.output
        outputs.append(json.loads((tmp_path / "out" / "regions.json").read_text())["parts"][0]["regions"][0])
        (folder / "dataset.yaml").write_text("depth_scale: 0.00001\n")
    for output in outputs:
        assert output["area_mm2"] == pytest.approx(by_points.area_mm2, rel=0.1)


def test_a_focal_length_is_no_unit(tmp_path: Path) -> None:
    counts, metres = tmp_path / "counts.png", tmp_path / "metres.npy"
    cv2.imwrite(str(counts), np.full((32, 32), 650, np.uint16))
    np.save(metres, np.full((32, 32), 0.65, np.float32))
    parts = [Part("part", "test", UNKNOWN, None, file) for file in (counts, metres)]
    whole, measured = with_focal_length(parts, 500.0)
    with pytest.raises(DataError, match=r"counts.png: expected a declared unit for depth in uint16 counts"):
        whole.read()
    camera = measured.read().camera
    assert camera is not None and camera.fx == 500
