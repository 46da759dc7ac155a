"""What the public functions say to arguments that are none: one error of this package, which names the argument."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from das3d import (
    Camera,
    Das3dError,
    DataError,
    DepthFormat,
    Detector,
    ModelError,
    Part,
    Scan,
    Settings,
    SettingsError,
    SyntheticPairs,
    calibrate,
    check_data,
    draw_recipe,
    evaluate,
    export,
    find_categories,
    find_dataset,
    harm_pairs,
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
from das3d.settings import SynthesisSettings

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
        ("data", DataError, SyntheticPairs.from_data),
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


@pytest.mark.parametrize("given", [6, None, "6x8", (6,), (6, 8, 3), ("6", "8")])
def test_a_centred_camera_is_of_an_image_with_two_sides(given: Any) -> None:
    assert said(DataError, lambda: Camera.centred(500, given)).startswith(
        "size: expected height and width in pixels, found "
    )


def test_a_model_is_saved_to_a_file(detector: Detector, tmp_path: Path) -> None:
    expected = f"{tmp_path}: expected a file for the model, such as {tmp_path / 'model.safetensors'}, found a folder"
    assert said(ModelError, lambda: detector.save(tmp_path)) == expected


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


def test_a_part_is_of_files(tiny_data: Path) -> None:
    part = next(one for one in find_dataset(tiny_data).test if one.masks)
    assert part.rgb and part.depth
    about = part.id, part.split, part.defect
    told: dict[str, Any] = {"rgb": str(part.rgb), "depth": str(part.depth), "masks": [str(mask) for mask in part.masks]}
    assert Part(*about, **told, depth_format=part.depth_format) == part
    wrong: dict[str, Any] = {"rgb": 5, "depth": RGB, "masks": part.masks[0], "depth_format": "mm"}
    for name, given in wrong.items():
        with_it = {"rgb": part.rgb, "depth": part.depth, name: given}
        assert said(DataError, lambda w=with_it: Part(*about, **w)).startswith(f"{name}: expected ")


# ------------------------------------------------------------------------------------------- made-up data and defects


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("train", "5"), ("train", 1.5), ("good", None), ("defective", -1), ("seed", "x"), ("seed", 1.5), ("seed", None),
        ("size", 128), ("size", "128x128"), ("size", (128,)), ("size", (128, 128, 3)), ("size", (128.0, 128.0)),
        ("size", (math.nan, 128)), ("size", None),
    ],
)  # fmt: skip
def test_numbers_of_the_demo_are_whole(name: str, given: Any, tmp_path: Path) -> None:
    assert said(DataError, lambda: make_demo(tmp_path / "demo", **{name: given})).startswith(f"{name}: expected ")
    assert not (tmp_path / "demo").exists()


def pairs_of(tiny_data: Path, **more: Any) -> SyntheticPairs:
    return SyntheticPairs.from_data(
        tiny_data, **{"settings": make_settings("demo", changes=["preparation.size=64"]), **more}
    )


def test_what_synthetic_pairs_are_made_of_is_checked(tiny_data: Path) -> None:
    wrong: Sequence[tuple[type[Das3dError], str, Any]] = [
        (SettingsError, "settings", "fast"), (SettingsError, "seed", "x"), (SettingsError, "length", "10"),
        (SettingsError, "length", -1), (SettingsError, "length", 2.5), (DataError, "most_parts", "2"),
        (DataError, "most_parts", 1.5), (DataError, "most_parts", math.nan), (DataError, "only", "train/good/000"),
        (DataError, "only", 5), (DataError, "statistics", "run"), (DataError, "category", 5),
    ]  # fmt: skip
    for error, name, given in wrong:
        assert said(error, lambda n=name, g=given: pairs_of(tiny_data, **{n: g})).startswith(f"{name}: expected ")
    only: Any = iter(["train/good/001", "train/good/002"])
    assert pairs_of(tiny_data, only=only).names == ["train/good/001", "train/good/002"]
    with pytest.raises(DataError, match="expected good training parts train/good/999, found others only"):
        pairs_of(tiny_data, only=iter(["train/good/000", "train/good/999"]))


def test_what_synthetic_pairs_are_prepared_of_is_checked(detector: Detector, tiny_data: Path) -> None:
    scan = find_dataset(tiny_data).train[0].read()
    ready = prepare(scan, detector.statistics, detector.settings.preparation)
    sound: dict[str, Any] = {"names": ["a"], "scans": [ready], "statistics": detector.statistics}
    wrong: Sequence[tuple[str, Any]] = [
        ("names", "a"), ("names", None), ("scans", [scan]), ("scans", ready), ("scans", None), ("statistics", None),
    ]  # fmt: skip
    for name, given in wrong:
        assert said(DataError, lambda n=name, g=given: SyntheticPairs(**{**sound, n: g})).startswith(f"{name}: expected ")


def test_pairs_to_harm_are_tensors_that_fit() -> None:
    sound: dict[str, Any] = {
        "rgb": torch.rand(2, 3, 32, 32), "depth": torch.rand(2, 1, 32, 32), "foreground": torch.ones(2, 1, 32, 32) > 0,
    }  # fmt: skip
    wrong: Sequence[tuple[type[Das3dError], str, Any]] = [
        *((DataError, name, tensor.numpy()) for name, tensor in sound.items()),
        *((DataError, name, tensor[0]) for name, tensor in sound.items()),
        (DataError, "foreground", None), (DataError, "rgb", torch.rand(0, 3, 32, 32)), (DataError, "textures", "wood"),
        (DataError, "textures", torch.rand(0, 3, 32, 32)), (SettingsError, "settings", "fast"),
        (SettingsError, "settings", make_settings()), (SettingsError, "seed", "x"), (SettingsError, "seed", 1.5),
        (SettingsError, "seed", None), (SettingsError, "first", "x"),
    ]  # fmt: skip
    for error, name, given in wrong:
        assert said(error, lambda n=name, g=given: harm_pairs(**{**sound, n: g})).startswith(f"{name}: expected ")
    unlike = {**sound, "foreground": torch.ones(2, 1, 32, 32)}
    assert (
        said(DataError, lambda: harm_pairs(**unlike)) == "pairs to harm: foreground of torch.float32; expected torch.bool"
    )


def test_what_a_recipe_is_drawn_of_is_checked() -> None:
    sound: dict[str, Any] = {"batch": 2, "settings": SynthesisSettings(), "generator": torch.Generator()}
    wrong: Sequence[tuple[str, Any]] = [
        ("batch", "2"), ("batch", 2.5), ("batch", 0), ("batch", -1), ("settings", None), ("settings", make_settings()),
        ("generator", 5), ("generator", None), ("textures", 5), ("textures", []),
    ]  # fmt: skip
    for name, given in wrong:
        assert said(SettingsError, lambda n=name, g=given: draw_recipe(**{**sound, n: g})).startswith(f"{name}: expected ")
