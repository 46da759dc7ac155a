"""What runs where a GPU is: packed parts hold all that training and evaluation need, and give the figures of the files."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import gpu
import numpy as np
import pytest
from tiny import CHANGES

from das3d.detector import load
from das3d.evaluation import evaluate


@pytest.mark.parametrize("modality", ["rgb+depth", "depth"])
def test_packed_parts_give_the_figures_that_files_give(
    modality: str, tiny_run: Callable[..., Path], tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as in this process: on more threads sums are taken in another order
    packed = tmp_path / "cover.npz"
    gpu.pack(tiny_data, None, "demo", list(CHANGES), packed)
    assert gpu.run([packed], tmp_path / "runs", 1, ["0"], [modality], ["--device", "cpu"])
    folder = tmp_path / "runs" / f"cover-{modality}-0"
    found = json.loads((folder / "figures.json").read_text())
    detector = load(folder, "cpu")
    # Trained from the files it is the same model, and tells the same of itself.
    expected = load(tiny_run(modality), "cpu")
    for name, weights in detector.network.state_dict().items():
        np.testing.assert_allclose(weights.float(), expected.network.state_dict()[name].float(), rtol=0, atol=1e-6)
    assert detector.fingerprints == expected.fingerprints
    timed = ("minutes", "content")
    assert {name: told for name, told in detector.training.items() if name not in timed} == {
        name: told for name, told in expected.training.items() if name not in timed
    }
    assert detector.threshold is not None and expected.threshold is not None
    assert detector.threshold.good_parts == expected.threshold.good_parts
    assert detector.threshold.value == pytest.approx(expected.threshold.value, abs=1e-4)
    assert detector.norms is not None and expected.norms is not None
    assert detector.norms.good_pixel_level == pytest.approx(expected.norms.good_pixel_level, abs=1e-3)
    assert detector.norms.heights_mm == pytest.approx(expected.norms.heights_mm, rel=1e-3)
    figures = evaluate(detector, tiny_data, tmp_path / "evaluation")
    for name in ("i_auroc", "p_auroc", "aupro_30", "aupro_01"):
        assert found[name] == pytest.approx(figures[name], abs=1e-3), name
    with (tmp_path / "runs" / "figures.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["modality"] == modality and int(row["iterations"]) == 12


def test_a_training_that_fails_is_told_and_leaves_no_figures_of_before(tmp_path: Path, tiny_data: Path) -> None:
    packed = tmp_path / "cover.npz"
    gpu.pack(tiny_data, None, "demo", list(CHANGES), packed)
    before = tmp_path / "runs" / "cover-rgb-0" / "figures.json"
    before.parent.mkdir(parents=True)
    before.write_text("{}")
    assert not gpu.run([packed], tmp_path / "runs", 1, ["0"], ["rgb"], ["--set", "training.batch=0"])
    assert not before.exists() and "training.batch" in (before.parent / "log.txt").read_text()
