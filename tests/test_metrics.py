"""Figures against their definitions: brute force in exact fractions, scikit-learn, and what must not change them."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from sklearn import metrics as sklearn_metrics

from das3d import metrics
from das3d.errors import DataError, SettingsError
from das3d.metrics import aupro, evaluate_maps, image_auroc, pixel_auroc, pro_curve, roc_curve

Maps = list[NDArray[np.float32]]
Masks = list[NDArray[np.bool_]]
LIMITS = (1.0, 0.3, 0.1, 0.05, 0.01)


def regions_of(mask: NDArray[np.bool_]) -> list[set[tuple[int, int]]]:
    """8-connected components by walking from pixel to pixel."""
    left = {(int(r), int(c)) for r, c in np.argwhere(mask)}
    regions = []
    while left:
        region, edge = set(), [left.pop()]
        while edge:
            row, column = edge.pop()
            region.add((row, column))
            near = {(row + dr, column + dc) for dr in (-1, 0, 1) for dc in (-1, 0, 1)} & left
            left -= near
            edge += near
        regions.append(region)
    return regions


def brute_curve(maps: Sequence[NDArray[np.floating]], masks: Masks) -> list[tuple[Fraction, Fraction]]:
    """(FPR, PRO) at every distinct score of the category, as fractions, from (0, 0) on."""
    regions = [[m[pixel] for pixel in region] for m, mask in zip(maps, masks, strict=True) for region in regions_of(mask)]
    good = [score for m, mask in zip(maps, masks, strict=True) for score in m[~mask]]
    points = [(Fraction(0), Fraction(0))]
    for threshold in sorted({score for m in maps for score in m.ravel()}, reverse=True):
        covered = [Fraction(sum(bool(s >= threshold) for s in region), len(region)) for region in regions]
        points.append((Fraction(sum(bool(s >= threshold) for s in good), len(good)), sum(covered) / len(regions)))
    return points


def brute_aupro(maps: Sequence[NDArray[np.floating]], masks: Masks, limit: float) -> float:
    """Trapezoids under the curve up to the limit, one at a time, the last one cut by its straight line."""
    area, end = Fraction(0), Fraction(limit)
    points = brute_curve(maps, masks)
    for (x0, y0), (x1, y1) in pairwise(points):
        if x1 > end:
            y1 = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
            x1 = end
        area += (x1 - x0) * (y0 + y1) / 2
        if x1 == end:
            break
    return float(area / end)


@st.composite
def categories(draw: st.DrawFn) -> tuple[Maps, Masks]:
    """A few small parts of any sizes; few distinct scores, so ties are everywhere, and often a tied background."""
    maps, masks = [], []
    for _ in range(draw(st.integers(1, 4))):
        shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=6))
        scores = draw(hnp.arrays(np.int8, shape, elements=st.integers(-3, draw(st.sampled_from((0, 3, 100))))))
        mask = draw(hnp.arrays(np.bool_, shape, fill=st.just(False)))
        maps.append((np.maximum(scores, 0) if draw(st.booleans()) else scores).astype(np.float32))
        masks.append(mask)
    assume(any(mask.any() for mask in masks) and not all(mask.all() for mask in masks))
    return maps, masks


def random_category(seed: int = 0, parts: int = 6, size: int = 40) -> tuple[Maps, Masks]:
    """Parts with several regions each and a detector that is better than chance; the first two parts are good."""
    rng = np.random.default_rng(seed)
    maps, masks = [], []
    for part in range(parts):
        mask = np.zeros((size, size), bool)
        for _ in range(0 if part < 2 else 3):
            row, column, height, width = rng.integers(1, size // 2, 4)
            mask[row : row + height, column : column + width] = True
        masks.append(mask)
        maps.append((rng.normal(size=mask.shape) + mask).astype(np.float32))
    return maps, masks


# Against the definitions


@given(categories(), st.sampled_from((1, 7, 1 << 25)))
@settings(max_examples=150, deadline=None)
def test_aupro_equals_brute_force(category: tuple[Maps, Masks], block: int) -> None:
    maps, masks = category
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_BLOCK", block)  # the figures must not depend on how good pixels are grouped
        found = aupro(maps, masks, LIMITS)
    assert found == pytest.approx({limit: brute_aupro(maps, masks, limit) for limit in LIMITS}, abs=1e-12)


@given(categories())
@settings(max_examples=100, deadline=None)
def test_pro_curve_is_the_brute_curve_without_points_on_straight_runs(category: tuple[Maps, Masks]) -> None:
    fpr, pro = pro_curve(*category)
    exact = [(float(x), float(y)) for x, y in brute_curve(*category)]
    assert_thinned_from(np.array([fpr, pro]).T, np.array(exact))
    labels = [mask.any() for mask in category[1]]
    of_defective = [mask if defective else None for mask, defective in zip(category[1], labels, strict=True)]
    assert np.array_equal(pro_curve(category[0], of_defective, labels), (fpr, pro))


@given(categories())
@settings(max_examples=100, deadline=None)
def test_pixel_auroc_equals_scikit_learn(category: tuple[Maps, Masks]) -> None:
    maps, masks = category
    truth, scores = (np.concatenate([a.ravel() for a in arrays]) for arrays in (masks, maps))
    assert pixel_auroc(maps, masks) == pytest.approx(sklearn_metrics.roc_auc_score(truth, scores), abs=1e-12)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=40))
@settings(deadline=None)
def test_image_auroc_and_roc_curve_equal_scikit_learn(parts: list[tuple[bool, int]]) -> None:
    labels, scores = zip(*parts, strict=True)
    assume(len(set(labels)) == 2)
    assert image_auroc(labels, scores) == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores), abs=1e-12)
    fpr, tpr, _ = sklearn_metrics.roc_curve(labels, scores, drop_intermediate=False)
    assert_thinned_from(np.array(roc_curve(labels, scores)).T, np.array([fpr, tpr]).T)


def assert_thinned_from(curve: NDArray[np.float64], every_point: NDArray[np.float64]) -> None:
    """`curve` (M, 2) and the polyline through `every_point` (N, 2) are one line, and `curve` has no repeats."""
    for points, line in ((every_point, curve), (curve, every_point)):
        starts, steps = line[:-1, None], np.diff(line, axis=0)[:, None]  # (S, 1, 2)
        length = (steps**2).sum(axis=2)
        along = ((points - starts) * steps).sum(axis=2) / np.where(length > 0, length, 1)
        nearest = starts + np.clip(along, 0, 1)[..., None] * steps  # (S, points, 2)
        assert np.abs(nearest - points).max(axis=2).min(axis=0) == pytest.approx(0, abs=1e-12)
    assert tuple(curve[0]) == (0, 0) and tuple(curve[-1]) == (1, 1)
    assert (np.diff(curve, axis=0) >= 0).all() and np.diff(curve, axis=0).any(axis=1).all()


def test_real_sized_category_against_one_sort_of_all_pixels() -> None:
    """The textbook way, with every pixel's score in one sorted array, on parts too large for the brute force."""
    maps, masks = random_category(size=150)
    ranks = np.argsort(np.argsort(np.stack(maps), axis=None)).astype(np.float32)  # no ties, which that sort would break
    maps = list(ranks.reshape(-1, 150, 150))
    fp, pro = [], []
    regions = 0
    for mask in masks:
        weights = np.zeros(mask.shape)
        for region in regions_of(mask):
            weights[tuple(np.array(list(region)).T)] = 1 / len(region)
            regions += 1
        pro.append(weights.ravel())
        fp.append(~mask.ravel())
    order = np.argsort(-np.concatenate([m.ravel() for m in maps]), kind="stable")
    x, y = (
        np.cumsum(np.concatenate(fp)[order]) / np.concatenate(fp).sum(),
        np.cumsum(np.concatenate(pro)[order]) / regions,
    )
    for limit, found in aupro(maps, masks).items():
        inside = x <= limit
        expected = np.trapezoid(np.append(y[inside], np.interp(limit, x, y)), np.append(x[inside], limit)) / limit
        assert found == pytest.approx(expected, abs=1e-12)


# What must not change the figures


@given(categories(), st.sampled_from((np.cbrt, np.exp, lambda a: 1e-3 * a - 7, lambda a: a**3)))
@settings(max_examples=40, deadline=None)
def test_strictly_increasing_transforms_change_nothing(category: tuple[Maps, Masks], transform: Callable) -> None:
    maps, masks = category
    moved = [transform(m.astype(np.float64)) for m in maps]
    assert aupro(moved, masks) == aupro(maps, masks)
    assert pixel_auroc(moved, masks) == pixel_auroc(maps, masks)


def test_order_of_parts_changes_nothing() -> None:
    maps, masks = random_category()
    order = [3, 0, 5, 1, 4, 2]
    moved = [maps[i] for i in order], [masks[i] for i in order]
    assert aupro(*moved) == pytest.approx(aupro(maps, masks), abs=1e-12)
    assert pixel_auroc(*moved) == pixel_auroc(maps, masks)


def test_float16_and_float64_and_big_endian_copies_of_the_same_scores_give_the_same() -> None:
    maps, masks = random_category()
    half = [m.astype(np.float16) for m in maps]
    for dtype in (np.float32, np.float64, np.dtype(">f4")):
        assert aupro([m.astype(dtype) for m in half], masks) == aupro(half, masks)
    mixed = [m.astype(np.float64 if i % 2 else np.float32) for i, m in enumerate(half)]
    assert aupro(mixed, masks) == aupro(half, masks)


def test_float64_scores_closer_than_float32_can_tell_stay_apart() -> None:
    score_map, mask = np.array([[1.0, 1.0 + 1e-12]]), np.array([[False, True]])
    assert pixel_auroc([score_map], [mask]) == 1.0
    assert aupro([score_map], [mask])[0.01] == 1.0


def test_maps_and_masks_are_left_as_they_were_and_may_be_read_only() -> None:
    maps, masks = random_category()
    before = [m.copy() for m in maps]
    for array in (*maps, *masks):
        array.setflags(write=False)
    aupro(maps, masks)
    assert all((m == b).all() for m, b in zip(maps, before, strict=True))


def test_stacked_arrays_and_lazily_loading_sequences_give_the_same() -> None:
    class Lazy(Sequence):  # type: ignore[type-arg]
        def __init__(self, arrays: list) -> None:  # type: ignore[type-arg]
            self.arrays = arrays

        def __len__(self) -> int:
            return len(self.arrays)

        def __getitem__(self, i):  # type: ignore[no-untyped-def]
            return self.arrays[i].copy()

    maps, masks = random_category()
    expected = aupro(maps, masks)
    assert aupro(Lazy(maps), Lazy(masks)) == expected
    assert aupro(np.stack(maps), np.stack(masks)) == expected  # type: ignore[arg-type]


# Cases whose figures are known


def test_perfect_detector_scores_one_and_inverted_detector_zero() -> None:
    _, masks = random_category()
    perfect = [mask.astype(np.float32) for mask in masks]
    assert aupro(perfect, masks) == {0.3: 1.0, 0.1: 1.0, 0.05: 1.0, 0.01: 1.0}
    assert pixel_auroc(perfect, masks) == 1.0
    inverted = [-m for m in perfect]
    assert aupro(inverted, masks) == {0.3: 0.0, 0.1: 0.0, 0.05: 0.0, 0.01: 0.0}
    assert pixel_auroc(inverted, masks) == 0.0
    assert image_auroc([0, 1, 1], [0.0, 1.0, 2.0]) == 1.0 and image_auroc([0, 1, 1], [3.0, 1.0, 2.0]) == 0.0


def test_constant_maps_score_half_the_limit_and_half() -> None:
    """One threshold leaps from (0, 0) to (1, 1): the area under the diagonal up to t, divided by t, is t / 2."""
    _, masks = random_category()
    maps = [np.full(mask.shape, 0.25, np.float32) for mask in masks]
    assert aupro(maps, masks) == pytest.approx({0.3: 0.15, 0.1: 0.05, 0.05: 0.025, 0.01: 0.005})
    assert pixel_auroc(maps, masks) == 0.5
    assert np.array_equal(pro_curve(maps, masks), [[0, 1], [0, 1]])


def test_a_tied_background_is_crossed_on_a_straight_line() -> None:
    """Half of a region scores above a background of zeros, half of it ties with it: PRO runs from 1/2 to 1."""
    mask = np.zeros((10, 12), bool)
    mask[:, :2] = True
    score_map = np.zeros(mask.shape, np.float32)
    score_map[:, 0] = 1
    found = aupro([score_map], [mask])
    assert found == pytest.approx({limit: 0.5 + limit / 4 for limit in found})


def test_regions_count_alike_whatever_their_size() -> None:
    mask = np.zeros((20, 20), bool)
    mask[:10, :10] = True
    mask[15, 15] = True
    found_large, found_pixel = np.zeros((2, *mask.shape), np.float32)
    found_large[:10, :10] = 1
    found_pixel[15, 15] = 1
    expected = pytest.approx({limit: 0.5 + limit / 4 for limit in (0.3, 0.1, 0.05, 0.01)})
    assert aupro([found_large], [mask]) == expected
    assert aupro([found_pixel], [mask]) == expected


def test_pixels_that_touch_at_a_corner_are_one_region() -> None:
    mask = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]], bool)  # a diagonal pair and one pixel apart
    score_map = np.zeros(mask.shape, np.float32)
    score_map[0, 0] = 1  # half of the pair: PRO 1/4 if the pair is one region, 1/3 if it were two
    assert pro_curve([score_map], [mask])[1].tolist() == [0, 0.25, 1]


def test_regions_of_different_parts_stay_apart_and_good_parts_count_in_the_false_positive_rate() -> None:
    mask = np.array([[True, False]])
    maps = [np.array([[2, 0]], np.float32), np.array([[0, 0]], np.float32), np.array([[1, 0, 0]], np.float32)]
    fpr, pro = pro_curve(maps, [mask, mask, np.zeros((1, 3), bool)])
    assert fpr == pytest.approx([0, 0, 1 / 5, 1]) and pro == pytest.approx([0, 0.5, 0.5, 1])


def test_a_limit_on_a_point_of_the_curve_and_limit_one_use_the_curve_as_it_is() -> None:
    mask = np.array([[True, True] + [False] * 10])
    score_map = np.array([[5, 1, 4, 3, 2] + [0] * 7], np.float32)
    assert aupro([score_map], [mask], (0.3, 1.0)) == pytest.approx({0.3: 0.5, 1.0: 0.3 * 0.5 + 0.7})


# The summary


def test_summary_agrees_with_the_single_figures_and_is_json() -> None:
    maps, masks = random_category()
    labels = [0, 0, 1, 1, 1, 1]
    scores = [0.1, 0.5, 0.5, 0.9, 0.2, 0.05]
    found = evaluate_maps(maps, masks, labels, scores, ["good", "good", "hole", "hole", "bent", "bent"])
    area = aupro(maps, masks)
    assert found == {
        "i_auroc": image_auroc(labels, scores),
        "p_auroc": pixel_auroc(maps, masks),
        "aupro_30": area[0.3],
        "aupro_10": area[0.1],
        "aupro_05": area[0.05],
        "aupro_01": area[0.01],
        "n_good": 2,
        "n_defective": 4,
        "per_defect": {"bent": 0.25, "hole": 0.875},
        "notes": [],
    }
    assert json.loads(json.dumps(found)) == found


def test_summary_leaves_out_parts_without_a_mask_and_says_so() -> None:
    maps, masks = random_category()
    labels, scores, defects = [0, 0, 1, 1, 1, 1], np.arange(6), ["good"] * 2 + ["hole"] * 4
    known = [None, None, masks[2], None, masks[4], np.zeros_like(masks[5])]
    found = evaluate_maps(maps, known, labels, scores, defects)
    kept = [0, 1, 2, 4, 5]
    expected = aupro([maps[i] for i in kept], [masks[i] if i < 5 else ~masks[i] & masks[i] for i in kept])
    assert found["aupro_10"] == expected[0.1]
    assert found["i_auroc"] == 1.0 and found["n_defective"] == 4
    assert found["notes"] == [
        "no mask for 1 of 4 defective parts, left out of pixel metrics: parts 3",
        "empty mask for 1 of 4 defective parts, all pixels taken as good: parts 5",
    ]


def test_summary_without_any_mask_has_image_figures_only() -> None:
    maps, _ = random_category(parts=14)
    labels = [0] * 2 + [1] * 12
    found = evaluate_maps(maps, [None] * 14, labels, labels, ["good"] * 2 + ["hole"] * 12)
    assert found["i_auroc"] == 1.0 and found["per_defect"] == {"hole": 1.0}
    assert all(found[key] is None for key in ("p_auroc", "aupro_30", "aupro_10", "aupro_05", "aupro_01"))  # type: ignore[literal-required]
    missing, lack = found["notes"]
    assert missing.endswith("left out of pixel metrics: parts 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and others")
    assert lack == "P-AUROC and AU-PRO: expected both good and defective pixels, found 3200 good and 0 defective"


def test_summary_of_one_class_only() -> None:
    maps, masks = random_category()
    good = evaluate_maps(maps[:2], masks[:2], [0, 0], [0.5, 0.6], ["good", "good"])
    assert good["i_auroc"] is None and good["p_auroc"] is None and good["per_defect"] == {}
    assert good["notes"][0] == "I-AUROC: expected both good and defective parts, found 2 good and 0 defective"
    defective = evaluate_maps(maps[2:], masks[2:], [1] * 4, [1] * 4, ["hole"] * 4)
    assert defective["i_auroc"] is None and defective["per_defect"] == {"hole": None}
    assert defective["aupro_30"] == aupro(maps[2:], masks[2:])[0.3]  # a defective part has good pixels of its own


def test_every_call_is_silent() -> None:
    maps, masks = random_category()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate_maps(maps, masks, [0, 0, 1, 1, 1, 1], [0.0] * 6, ["a"] * 6)
        evaluate_maps([], [], [], [], [])


# What is refused

MAP = np.zeros((2, 3), np.float32)
MASK = np.array([[True, False, False], [False, False, False]])
ODD = np.array([[0, 0, 0], [0, np.nan, np.inf]], np.float32)


@pytest.mark.parametrize(
    ("maps", "masks", "message"),
    [
        ([MAP, ODD], [MASK] * 2, "map 1: expected finite scores, found 2 others, first nan at row 1, column 1"),
        ([MAP, MAP[0]], [MASK] * 2, r"map 1: expected (H, W) floats, found (3,) float32"),
        ([MAP.astype(int)], [MASK], r"map 0: expected (H, W) floats, found (2, 3) int64"),
        ([MAP], [None], "mask 0: expected (H, W) bool, found None"),
        ([MAP], [MASK.astype(np.uint8)], "mask 0: expected (H, W) bool, found (2, 3) uint8"),
        ([MAP], [MASK.T], "map 0: expected the size of its mask, 2 x 3, found 3 x 2 (width x height)"),
        ([MAP], [MASK] * 2, "expected one of each for every part, found 1 maps, 2 masks"),
        ([MAP], [MASK & False], "{}: expected both good and defective pixels, found 6 good and 0 defective"),
        ([MAP], [MASK | True], "{}: expected both good and defective pixels, found 0 good and 6 defective"),
        ([], [], "{}: expected both good and defective pixels, found 0 good and 0 defective"),
    ],
)
def test_maps_and_masks_that_do_not_fit(maps: list, masks: list, message: str) -> None:  # type: ignore[type-arg]
    for metric, name in ((pixel_auroc, "P-AUROC"), (aupro, "AU-PRO"), (pro_curve, "AU-PRO")):
        with pytest.raises(DataError) as caught:
            metric(maps, masks)  # type: ignore[operator]
        assert str(caught.value) == message.format(name)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["dent"], "labels: expected (N,) numbers, found (1,) <U4"),
        ([2], "label 0: expected 0 (good) or 1 (defective), found 2"),
        ([math.nan], "label 0: expected 0 (good) or 1 (defective), found nan"),
        ([[1]], "labels: expected (N,) numbers, found (1, 1) int64"),
    ],
)
def test_a_pro_curve_takes_no_labels_that_are_none(labels: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        pro_curve([MAP], [MASK], labels)
    assert str(caught.value) == message


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(DataError) as caught:
        aupro([MAP, ODD, MAP], [MASK, MASK, MASK.T])
    assert [problem[:6] for problem in caught.value.problems] == ["map 1:", "map 2:"]
    with pytest.raises(DataError) as caught:
        image_auroc([0, 2, 1], [np.nan, 0, np.inf])
    assert caught.value.problems == [
        "label 1: expected 0 (good) or 1 (defective), found 2",
        "score 0: expected a finite number, found nan",
        "score 2: expected a finite number, found inf",
    ]


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 0], [1.0, 2.0], "{}: expected both good and defective parts, found 2 good and 0 defective"),
        ([True], [1.0], "{}: expected both good and defective parts, found 0 good and 1 defective"),
        ([], [], "{}: expected both good and defective parts, found 0 good and 0 defective"),
        ([0, 1], [1.0], "expected one of each for every part, found 2 labels, 1 scores"),
        (["good", "bad"], [1.0, 2.0], "labels: expected (N,) numbers, found (2,) <U4"),
        ([0, 1], [[1.0, 2.0]], "scores: expected (N,) numbers, found (1, 2) float64"),
    ],
)
def test_labels_and_scores_that_do_not_fit(labels: list, scores: list, message: str) -> None:  # type: ignore[type-arg]
    for metric, name in ((image_auroc, "I-AUROC"), (roc_curve, "a ROC curve")):
        with pytest.raises(DataError) as caught:
            metric(labels, scores)  # type: ignore[operator]
        assert str(caught.value) == message.format(name)


@pytest.mark.parametrize("limit", [0.0, -0.1, 1.5, float("nan")])
def test_limits_out_of_range(limit: float) -> None:
    with pytest.raises(SettingsError, match=f"AU-PRO limit: expected more than 0 and at most 1, found {limit}"):
        aupro([MAP], [MASK], [0.3, limit])


def test_summary_refuses_what_does_not_fit() -> None:
    with pytest.raises(DataError, match="found 2 maps, 2 masks, 2 labels, 3 scores, 1 defects"):
        evaluate_maps([MAP] * 2, [MASK] * 2, [0, 1], [0, 1, 2], ["good"])
    with pytest.raises(DataError, match="mask 0: expected no defect on a good part, found 1 marked pixels"):
        evaluate_maps([MAP] * 2, [MASK] * 2, [0, 1], [0, 1], ["good", "hole"])
    with pytest.raises(DataError, match="mask b: expected no defect on a good part, found 1 marked pixels"):
        evaluate_maps([MAP] * 2, [MASK] * 2, [1, 0], [1, 0], ["hole", "good"], ["a", "b"])


def test_names_are_as_many_as_parts() -> None:
    with pytest.raises(DataError, match="expected one of each for every part, found 2 maps, 1 names"):
        evaluate_maps([MAP] * 2, [MASK, None], [1, 0], [0.9, 0.1], ["dent", "good"], names=["one"])
