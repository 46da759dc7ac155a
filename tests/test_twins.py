"""Scans that occur twice, whatever file they come from."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from das3d.datacheck import twins
from das3d.datacheck.facts import Facts, measured
from das3d.datacheck.twins import find_twins
from das3d.parts import Part, Split
from das3d.scan import scan_from_arrays
from das3d.settings import PreparationSettings


def picture(seed: int) -> NDArray[np.uint8]:
    """A smooth RGB picture, as different from others as scans of two parts are."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(40, 216, (9, 11, 1)) + rng.integers(-20, 21, (9, 11, 3))
    return cv2.resize(colours.astype(np.uint8), (110, 90), interpolation=cv2.INTER_LINEAR)


def relief(seed: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(1000 + seed)
    return (0.5 + 0.05 * cv2.resize(rng.random((9, 11), np.float32), (110, 90))).astype(np.float32)


def facts(index: int, rgb: NDArray[np.uint8], depth: NDArray[np.float32], split: Split = "train") -> Facts:
    part = Part(f"{split}/good/{index:03}", split, "good", Path("rgb.png"), Path("depth.tiff"))
    return measured(part, scan_from_arrays(rgb, depth), PreparationSettings())


def others(count: int = 8) -> list[Facts]:
    return [facts(index, picture(index), relief(index)) for index in range(count)]


def test_different_parts_are_no_twins() -> None:
    assert find_twins(others()) == []


def test_the_same_scan_in_another_split_is_named() -> None:
    (pair,) = find_twins([*others(), facts(8, picture(3), relief(3), "test")])
    assert (pair.first.part.id, pair.second.part.id) == ("train/good/003", "test/good/008")
    assert (pair.rgb, pair.depth, pair.whole, pair.across_splits) == ("same", "same", True, True)
    assert pair.describe() == "train/good/003 and test/good/008: same RGB and same depth"


def test_a_scan_saved_again_with_loss_is_nearly_the_same() -> None:
    coded = cv2.imencode(".jpg", picture(2), [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
    counts = np.round(relief(2) / 1e-4) * np.float32(1e-4)  # tenths of a millimetre
    (pair,) = find_twins([*others(), facts(8, cv2.imdecode(coded, cv2.IMREAD_COLOR), counts.astype(np.float32))])
    assert (pair.rgb, pair.depth) == ("nearly the same", "nearly the same")


def test_copied_rgb_beside_another_depth_is_no_whole_twin() -> None:
    (pair,) = find_twins([*others(), facts(8, picture(4), relief(8))])
    assert (pair.rgb, pair.depth, pair.whole) == ("same", "different", False)
    assert pair.describe().endswith("same RGB, but different depth")


def test_parts_in_a_fixture_that_all_look_alike_are_no_twins() -> None:
    rng = np.random.default_rng(0)
    base_rgb, base_depth = picture(0).astype(np.float64), relief(0)
    parts = [
        facts(index, np.clip(base_rgb + rng.normal(0, 4, base_rgb.shape), 0, 255).astype(np.uint8),
              (base_depth + rng.normal(0, 5e-4, base_depth.shape)).astype(np.float32))
        for index in range(8)
    ]  # fmt: skip
    assert find_twins(parts) == []


def test_depth_alone_will_do() -> None:
    parts = [
        measured(Part(f"train/good/{i}", "train", "good", None, Path("d")), scan_from_arrays(depth=relief(i % 4)),
                 PreparationSettings())
        for i in range(5)
    ]  # fmt: skip
    (pair,) = find_twins(parts)
    assert (pair.rgb, pair.depth, pair.whole) == ("absent", "same", True)


@pytest.mark.parametrize("step", [2, 3, 6])
def test_a_scan_of_pixels_apart_that_occurs_twice_is_found(step: int) -> None:
    def scanned(index: int, seed: int, noise: float = 0.0) -> Facts:
        depth = cv2.resize(relief(seed), (330, 270))
        depth += np.random.default_rng(index).normal(0, noise, depth.shape).astype(np.float32)
        v, u = np.indices(depth.shape)
        return facts(index, cv2.resize(picture(index), (330, 270)), np.where((v % step == 0) & (u % step == 0), depth, 0))

    (pair,) = find_twins([*(scanned(index, index) for index in range(8)), scanned(8, 3, noise=0.0002)])
    assert (pair.first.part.id, pair.second.part.id) == ("train/good/003", "train/good/008")
    assert (pair.rgb, pair.depth) == ("different", "nearly the same")


def test_depth_too_sparse_to_compare_makes_twins_only_where_it_is_the_same() -> None:
    v, u = np.indices((90, 110))
    seeds = [0, 1, 2, 3, 4, 2]
    parts = [facts(i, picture(i), np.where((v % 30 == 0) & (u % 30 == 0), relief(seed), 0)) for i, seed in enumerate(seeds)]
    (pair,) = find_twins(parts)
    assert (pair.first.part.id, pair.second.part.id, pair.depth) == ("train/good/002", "train/good/005", "same")


def test_parts_are_compared_in_blocks_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [*others(), facts(8, picture(3), relief(3), "test"), facts(9, picture(5), relief(0))]
    whole = [pair.describe() for pair in find_twins(parts)]
    rows = np.random.default_rng(0).normal(size=(10, 7))
    expected = np.sqrt(((rows[:, None] - rows[None]) ** 2).mean(axis=2))
    np.fill_diagonal(expected, np.inf)
    monkeypatch.setattr(twins, "BLOCK", 3)
    assert [pair.describe() for pair in find_twins(parts)] == whole and len(whole) == 3
    found = list(twins.distances(rows))
    assert [first for first, _ in found] == [0, 3, 6, 9]
    np.testing.assert_allclose(np.concatenate([block for _, block in found]), expected, atol=1e-7)
