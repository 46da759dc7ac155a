"""What the public functions say to arguments that are none: one error of this package, which names the argument."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import das3d
from das3d import (
    Camera,
    Das3dError,
    DataError,
    DepthFormat,
    Detector,
    ModelError,
    Scan,
    Settings,
    SettingsError,
    calibrate,
    check_data,
    evaluate,
    export,
    find_categories,
    find_dataset,
    load,
    make_demo,
    make_settings,
    scan_from_arrays,
    train,
)
from das3d.arguments import list_of
from das3d.datasets import find_folder
from das3d.metrics import aupro, evaluate_maps, image_auroc, pixel_auroc, pro_curve
from das3d.preparation import prepare

Runs = Callable[..., Path]
Call = Callable[[Any], object]


@pytest.fixture(scope="module")
def detector(tiny_run: Runs) -> Detector:
    return load(tiny_run(), "cpu")


def said(error: type[Das3dError], call: Callable[[], object]) -> str:
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)


# ------------------------------------------------------------------------------------------- paths


@pytest.mark.parametrize("given", [5, None, b"run", ["run"]])
@pytest.mark.parametrize(
    ("name", "error", "call"),
    [
        ("path", ModelError, lambda given: load(given)),
        ("data", DataError, lambda given: train(given, "out")),
        ("out", ModelError, lambda given: train("data", given)),
        ("run", ModelError, lambda given: export(given)),
        ("root", DataError, find_dataset),
        ("folder", DataError, find_folder),
        ("root", DataError, find_categories),
        ("data", DataError, check_data),
        ("data", DataError, das3d.SyntheticPairs.from_data),
        ("folder", DataError, make_demo),
    ],
)
def test_what_is_no_path_is_named(name: str, error: type[Das3dError], call: Call, given: object) -> None:
    found = "list" if isinstance(given, list) else repr(given)
    assert said(error, lambda: call(given)) == f"{name}: expected a path, found {found}"


@pytest.mark.parametrize(
    ("name", "error", "call"),
    [
        ("data", DataError, lambda detector: evaluate(detector, 5, "out")),
        ("out", DataError, lambda detector: evaluate(detector, "data", 5)),
        ("data", DataError, lambda detector: calibrate(detector, 5)),
        ("path", ModelError, lambda detector: detector.save(5)),
        ("file", SettingsError, lambda _: make_settings(file=5)),
        ("out", SettingsError, lambda _: export("run", out=5)),
        ("data", DataError, lambda _: export("run", data=5)),
    ],
)
def test_what_is_no_path_is_named_behind_a_detector_too(
    detector: Detector, name: str, error: type[Das3dError], call: Callable[[Detector], object]
) -> None:
    assert said(error, lambda: call(detector)) == f"{name}: expected a path, found 5"


# ------------------------------------------------------------------------------------------- sequences


@pytest.mark.parametrize("given", ["score.turn=0", 5, None])
def test_a_single_text_or_number_is_no_sequence(detector: Detector, given: Any) -> None:
    for name, call in (
        ("changes", lambda: make_settings(changes=given)),
        ("changes", lambda: Settings().with_changes(given)),
        ("changes", lambda: calibrate(detector, changes=given)),
        ("track", lambda: train("data", "out", track=given)),
    ):
        assert said(SettingsError, call) == f"{name}: expected a sequence of text, such as a list, found {given!r}"


def test_a_sequence_holds_things_of_one_kind(detector: Detector) -> None:
    assert said(SettingsError, lambda: make_settings(changes=[5])) == "changes: expected a sequence of text, found 5 in it"
    wrong: Any = [("synthesis.drop", 0.5)]
    assert said(SettingsError, lambda: Settings().with_changes(wrong)).endswith("found tuple in it")
    parts: Any = ["train/good/000"]
    assert said(DataError, lambda: calibrate(detector, "data", parts=parts)).startswith(
        "parts: expected a sequence of Part"
    )


def test_any_sequence_will_do() -> None:
    changes = ["synthesis.drop=0.5", "seed=3"]
    for given in (changes, tuple(changes), iter(changes), dict.fromkeys(changes)):
        assert make_settings(changes=given).seed == 3
    assert list_of(str, np.array(changes), "changes") == changes


# ------------------------------------------------------------------------------------------- kinds and words


@pytest.mark.parametrize("given", [None, "runs/gland", Path("runs/gland")])
def test_what_is_no_detector_is_told_how_to_get_one(given: Any, tmp_path: Path) -> None:
    for call in (lambda: evaluate(given, tmp_path, tmp_path / "out"), lambda: calibrate(given, tmp_path)):
        assert said(ModelError, call).startswith("detector: expected Detector, as load gives, found ")


@pytest.mark.parametrize("given", ["mm", 0.001])
def test_what_is_no_depth_format_is_told_how_to_get_one(detector: Detector, tiny_data: Path, given: Any) -> None:
    for call in (
        lambda: find_dataset(tiny_data, depth_format=given),
        lambda: find_folder(tiny_data, depth_format=given),
        lambda: check_data(tiny_data, depth_format=given),
        lambda: calibrate(detector, tiny_data, depth_format=given),
        lambda: evaluate(detector, tiny_data, "out", depth_format=given),
    ):
        expected = "depth_format: expected DepthFormat, as DepthFormat.from_unit gives"
        assert said(DataError, call) == f"{expected}, found {given!r}"


def test_how_data_is_read_is_checked(detector: Detector, tiny_data: Path) -> None:
    wrong: Sequence[tuple[str, Any]] = [
        ("category", 5), ("category", Path("moulded_cover")), ("light", "4"), ("light", 1.5), ("hold_out", "10%"),
        ("hold_out", math.nan), ("hold_out", 1), ("needs", "training"),
    ]  # fmt: skip
    for name, given in wrong:
        assert said(DataError, lambda n=name, g=given: find_dataset(tiny_data, **{n: g})).startswith(f"{name}: expected ")
    category: Any = 5
    assert said(DataError, lambda: calibrate(detector, tiny_data, category=category)).startswith("category: expected text")
    assert said(DataError, lambda: evaluate(detector, tiny_data, "out", category=category)).startswith("category: expected")


def test_words_and_numbers_of_training_and_export_are_checked(detector: Detector, tiny_run: Runs, tmp_path: Path) -> None:
    def tried(**wrong: Any) -> str:
        return said(SettingsError, lambda: export(tiny_run(), out=tmp_path / "cover.onnx", **wrong))

    assert tried(to="tensorrt") == "to: expected one of onnx, openvino, found 'tensorrt'"
    assert tried(to=["onnx"]) == "to: expected one of onnx, openvino, found list"
    assert tried(precision="fp8") == "precision: expected one of fp32, fp16, int8, found 'fp8'"
    assert tried(max_changed="5%") == "max_changed: expected a share of verdicts from 0 to 1, found '5%'"
    assert tried(licence=None) == "licence: expected text, found None"
    rate: Any = "1%"
    assert said(SettingsError, lambda: calibrate(detector, max_false_alarm=rate)).endswith("found '1%'")
    for name, given in (("settings", {}), ("settings", "fast"), ("budget", "20m"), ("processes", "2"), ("processes", None)):
        assert said(SettingsError, lambda n=name, g=given: train("data", tmp_path / "out", **{n: g})).startswith(name)


def test_devices_are_told_by_name_or_as_those_of_pytorch(tiny_run: Runs, tmp_path: Path) -> None:
    import torch

    device: Any = torch.device("cpu")
    assert load(tiny_run(), device).engine.describe() == load(tiny_run(), "cpu").engine.describe()
    device = None
    assert "expected auto, cpu, cuda" in said(ModelError, lambda: load(tiny_run(), device))
    assert "expected auto, cpu, cuda" in said(ModelError, lambda: train("data", tmp_path / "out", device=device))


# ------------------------------------------------------------------------------------------- metrics

MAPS = [np.linspace(0, index + 1, 64, dtype=np.float32).reshape(8, 8) for index in range(4)]
MASKS = [np.zeros((8, 8), bool), np.zeros((8, 8), bool), np.tri(8, k=-2, dtype=bool), np.eye(8, dtype=bool)]
FIGURED: dict[str, Any] = {
    "maps": MAPS, "masks": MASKS, "labels": [0, 0, 1, 1], "scores": [0.1, 0.2, 0.8, 0.9], "defects": ["", "", "a", "a"],
}  # fmt: skip


def test_limits_are_a_sequence_of_shares() -> None:
    for limits in (0.3, "0.3", None):
        assert said(SettingsError, lambda given=limits: aupro(MAPS, MASKS, given)).startswith("limits: expected a sequence")
    for limits in (["0.3"], [None], [math.nan], [0], [[0.3, 0.1]]):
        assert "AU-PRO limit: expected more than 0" in said(SettingsError, lambda given=limits: aupro(MAPS, MASKS, given))
    limits = [0.3, 0.1]
    assert aupro(MAPS, MASKS, iter(limits)) == aupro(MAPS, MASKS, limits)  # and not {}, as of what is used up


@pytest.mark.parametrize("given", [5, None, iter(MAPS), "good"])
def test_figures_are_of_sequences_that_have_a_length(given: Any) -> None:
    expected = "expected a sequence, one for each part, found "
    for name in ("maps", "masks", "defects", "names"):
        if name == "names" and given is None:
            continue
        assert said(DataError, lambda n=name: evaluate_maps(**{**FIGURED, n: given})).startswith(f"{name}: {expected}")
    for call in (pixel_auroc, pro_curve, aupro):
        assert said(DataError, lambda c=call: c(given, MASKS)).startswith(f"maps: {expected}")
    assert said(DataError, lambda: pixel_auroc(MAPS, given)).startswith(f"masks: {expected}")


def test_arrays_of_figures_that_are_none_are_named() -> None:
    ragged: Any = [[1.0], [0.0, 1.0]]
    assert said(DataError, lambda: image_auroc(ragged, [1, 2])).startswith("labels: expected an array, found list")
    assert said(DataError, lambda: image_auroc([0, 1], ragged)).startswith("scores: expected an array, found list")
    for name in ("labels", "scores"):
        assert said(DataError, lambda n=name: evaluate_maps(**{**FIGURED, n: ragged})).startswith(
            f"{name}: expected an array"
        )
    assert said(DataError, lambda: pixel_auroc([*MAPS[:3], ragged], MASKS)).startswith("map 3: expected an array")
    assert said(DataError, lambda: pixel_auroc(MAPS, [*MASKS[:3], ragged])).startswith("mask 3: expected an array")
    masks = [*MASKS[:3], "gt/003.png"]
    assert said(DataError, lambda: evaluate_maps(**{**FIGURED, "masks": masks})).startswith("mask 3: expected (H, W) bool")


def test_parts_may_be_called_by_numbers() -> None:
    notes = evaluate_maps(**{**FIGURED, "masks": [*MASKS[:3], None]}, names=[17, 18, 19, 20])["notes"]
    assert notes == ["no mask for 1 of 2 defective parts, left out of pixel metrics: 20"]


# ------------------------------------------------------------------------------------------- scans

RGB, DEPTH = np.zeros((6, 8, 3), np.uint8), np.ones((6, 8), np.float32)


@pytest.mark.parametrize("given", ["part.png", Path("part.png"), 5, {"a": 1}, iter([RGB])])
def test_what_is_no_array_is_named(detector: Detector, given: Any) -> None:
    found = repr(given) if isinstance(given, str | int) else type(given).__name__
    for member, more in (("RGB", {"rgb": given}), ("depth", {"depth": given}), ("the mask", {"rgb": RGB, "mask": given})):
        expected = f"part 7: expected {member} as an array, found {found}"
        assert said(DataError, lambda m=more: scan_from_arrays(**m, name="part 7")) == expected
        if "mask" not in more:
            assert said(DataError, lambda m=more: detector.predict(**m, name="part 7")) == expected


def test_a_scan_is_of_arrays_and_a_camera() -> None:
    valid, expected = np.ones((6, 8), bool), "as an array, found list; scan_from_arrays"
    listed: dict[str, dict[str, Any]] = {
        "RGB": {"rgb": RGB.tolist()},
        "depth": {"depth": DEPTH.tolist(), "valid": valid},
        "validity": {"depth": DEPTH, "valid": valid.tolist()},
        "mask": {"rgb": RGB, "mask": valid.tolist()},
    }
    for member, given in listed.items():
        assert f"part 7: expected {member} {expected}" in said(DataError, lambda g=given: Scan("part 7", **g))
    camera: Any = np.eye(3)
    for call in (
        lambda: Scan("part 7", RGB, camera=camera),
        lambda: scan_from_arrays(RGB, DEPTH, camera=camera, name="part 7"),
    ):
        assert said(DataError, call) == "part 7: camera: expected Camera, found ndarray"


@pytest.mark.parametrize("given", ["500", None, [1], np.eye(2)])
def test_cameras_and_depth_formats_are_of_numbers(given: Any) -> None:
    assert said(DataError, lambda: Camera(given, 1, 1, 1)).startswith("camera: expected finite numbers")
    assert said(DataError, lambda: DepthFormat(given)).startswith("depth scale: expected metres per count above 0, found ")
    assert said(DataError, lambda: DepthFormat(1.0, offset=given)).startswith("depth offset: expected metres, found ")
    if given is not None:
        assert said(DataError, lambda: DepthFormat(1.0, missing=given)).startswith(
            "depth missing: expected a number, found "
        )
        assert said(DataError, lambda: DepthFormat(1.0, focal_length=given)).startswith(
            "depth focal length: expected a number"
        )


def test_units_are_told_in_text() -> None:
    unit: Any
    for unit in (None, ["mm"], {}):
        assert said(DataError, lambda given=unit: DepthFormat.parse(given)).startswith("expected one of m, cm, mm, um")
        assert said(DataError, lambda given=unit: DepthFormat.from_unit(given)).startswith(
            "depth unit: expected one of m, cm"
        )


def test_no_scans_have_no_predictions(detector: Detector) -> None:
    assert detector.predict_prepared([]) == list(detector.predict_scans([])) == []
    assert said(DataError, lambda: detector.run([])) == "scans: expected one prepared scan or more, found none"


def test_scans_are_a_sequence_of_scans(detector: Detector, tiny_data: Path) -> None:
    part = find_dataset(tiny_data).train[0]
    scan = part.read()
    ready = prepare(scan, detector.statistics, detector.settings.preparation)
    given: Any
    for given in (ready, None, 5, [scan], [part], [None]):
        for call in (detector.run, detector.predict_prepared):
            assert said(DataError, lambda c=call, g=given: c(g)).startswith("scans: expected a sequence of PreparedScan")
    for given in (scan, None, 5):
        assert said(DataError, lambda g=given: next(detector.predict_scans(g))).startswith(
            "scans: expected a sequence of Scan"
        )
    for given in (part, ready, (scan.rgb, scan.depth), None):
        stream = detector.predict_scans([scan, given])
        assert next(stream).name == scan.name, "those before it are judged"
        assert said(DataError, lambda s=stream: next(s)).startswith(
            "scans: expected Scan, as scan_from_arrays gives, found "
        )
    (prediction,) = detector.predict_prepared(iter([ready]))
    assert prediction.score == detector.predict_prepared([ready])[0].score


def test_scans_that_another_model_prepared_are_refused(detector: Detector, tiny_data: Path) -> None:
    settings = detector.settings.preparation.model_copy(update={"size": 96})
    other = prepare(find_dataset(tiny_data).train[0].read(), detector.statistics, settings)
    assert said(DataError, lambda: detector.run([other])).endswith("prepared to 64 x 64 pixels, found 96 x 96")


def test_numbers_and_parts_that_a_detector_is_given_are_checked(detector: Detector) -> None:
    given: Any
    for given in ("1", None, 1.5, math.nan, 0):
        assert "batch: expected 1 or more scans" in said(SettingsError, lambda g=given: next(detector.predict_scans([], g)))
    for given in ("0.5", None, [0.5]):
        assert said(DataError, lambda g=given: detector.verdict(g)).startswith("score: expected a number, found ")
    for given in ("train/good/000", None, RGB):
        assert said(DataError, lambda g=given: detector.fingerprint_of(g)).startswith("part: expected Part, found ")
