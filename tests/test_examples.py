"""The scripts in examples/, as a user runs them."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import PROJECT

from das3d import find_dataset

EXAMPLES = PROJECT / "examples"


def run(monkeypatch: pytest.MonkeyPatch, name: str, *words: object) -> int:
    monkeypatch.setattr("sys.argv", [name, *map(str, words)])
    try:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_a_verdict_on_one_part(
    tiny_run: Callable[..., Path], tiny_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    part = find_dataset(tiny_data).test[0]
    assert run(monkeypatch, "predict_one_part.py", tiny_run(), part.rgb, part.depth) == 0
    answer = json.loads(capsys.readouterr().out)
    assert isinstance(answer["defective"], bool) and 0 <= answer["score"] <= 1
    assert run(monkeypatch, "predict_one_part.py", tiny_run(), part.depth, part.rgb) == 1
    assert str(part.depth) in capsys.readouterr().err


def test_a_camera_saves_what_das3d_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "own_camera.py", tmp_path / "mydata") == 0
    dataset = find_dataset(tmp_path / "mydata")
    assert len(dataset.train) + len(dataset.validation) == 12
    scan = dataset.train[0].read()
    assert scan.valid is not None and scan.valid.mean() > 0.5
    assert 0.1 < scan.depth[scan.valid].mean() < 2


def test_a_network_of_ones_own_is_trained_calibrated_and_evaluated(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "own_detector.py", tiny_data, tmp_path / "own", 2) == 0
    told = capsys.readouterr().out
    assert "threshold" in told and "from 2 held-out good parts" in told
    figures = json.loads((tmp_path / "own" / "metrics.json").read_text())
    assert 0 <= figures["i_auroc"] <= 1 and figures["threshold"]["parts"] == 2
