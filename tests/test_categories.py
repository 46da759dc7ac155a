"""The rendered categories of the benchmarks: what they write is a data set whose parts are found and whose truth holds."""

from __future__ import annotations

import sys
from pathlib import Path

import categories
import numpy as np
import pytest

from das3d.datasets import find_dataset
from das3d.prepared import prepare_dataset
from das3d.settings import make_settings

SIZE = (96, 96)


@pytest.mark.parametrize("category", categories.CATEGORIES)
def test_each_category_is_a_data_set_that_can_be_prepared(
    category: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ["--train", "3", "--validation", "1", "--good", "1", "--defective", "1", "--side", str(SIZE[0])]
    monkeypatch.setattr(sys, "argv", ["categories.py", str(tmp_path), "--categories", category, *few])
    categories.main()
    dataset = find_dataset(tmp_path, category)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (3, 1, 1 + len(categories.DEFECTS))
    prepared = prepare_dataset(dataset, make_settings(changes=["preparation.size=96"]))
    assert prepared.statistics.background == "plane"
    for scan in prepared.train:
        assert 0.1 < scan.foreground.mean() < 0.9 and scan.valid[scan.foreground].mean() > 0.8
    shown = [part.read().mask for part in dataset.test]
    assert [mask is not None and bool(mask.any()) for mask in shown] == [part.defective for part in dataset.test]


@pytest.mark.parametrize("category", categories.CATEGORIES)
def test_parts_follow_from_their_key_and_differ_from_each_other(category: str) -> None:
    one, again, other = (categories.render(category, (0, "train", "good", index), SIZE) for index in (0, 0, 1))
    assert np.array_equal(one.rgb, again.rgb) and np.array_equal(one.points, again.points)
    assert not np.array_equal(one.rgb, other.rgb)
    seeds = [categories.render(category, (seed, "train", "good", 0), SIZE).rgb for seed in (0, 1)]
    assert not np.array_equal(*seeds)
