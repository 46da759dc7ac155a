"""Prediction from files: one part, folders of many, what breaks, and that all ways to give a part agree."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from builders import declare, own_kind, write_member
from helpers import scores_of
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny import SIZE, copy_category, das3d

from das3d import prediction, printing, streaming
from das3d.datasets import find_dataset, find_folder
from das3d.demo import CATEGORY, KINDS
from das3d.detector import Detector, Prediction, load
from das3d.engines import BATCH, EngineOutput
from das3d.errors import DataError
from das3d.files import DepthFormat
from das3d.layouts import format_around
from das3d.parts import UNKNOWN, Part
from das3d.prediction import predict_folder, predict_part
from das3d.preparation import PreparedScan
from das3d.streaming import AHEAD, LONGEST, Inspected, inspect_parts, output_names, picture_scale, read_map, read_to_show
from das3d.threshold import threshold_from
from das3d.window import Window

Runs = Callable[..., Path]


@pytest.fixture(scope="module")
def detector(tiny_run: Runs) -> Detector:
    return load(tiny_run(), "cpu")


@pytest.fixture
def dent(tiny_data: Path) -> tuple[Path, Path]:
    """RGB and points of one part."""
    return files_of(tiny_data / CATEGORY / "test" / "dent")


def files_of(kind: Path, number: str = "000") -> tuple[Path, Path]:
    return kind / "rgb" / f"{number}.png", kind / "xyz" / f"{number}.tiff"


def unlabelled(data: Path, folder: Path, count: int = 3) -> list[str]:
    """Test parts that nobody has judged, as a camera would leave them in one folder; their names in order."""
    folder.mkdir()
    kinds = sorted(KINDS)[:count]
    for kind in kinds:
        rgb, xyz = files_of(data / CATEGORY / "test" / kind)
        shutil.copy(rgb, folder / f"{kind}_rgb.png")
        shutil.copy(xyz, folder / f"{kind}_depth.tiff")
    return kinds


# ------------------------------------------------------------------------------------ one part


def test_one_part_by_the_command(tiny_run: Runs, dent: tuple[Path, Path], tmp_path: Path, detector: Detector) -> None:
    rgb, depth = dent
    result = das3d("predict", tiny_run(), "--rgb", rgb, "--depth", depth, "--out", tmp_path, "--device", "cpu")
    assert (result.exit_code, result.stderr) == (0, "")
    (row,) = scores_of(tmp_path)
    assert list(row) == ["id", "path", "label", "defect", "score", "false_alarm_probability", "verdict", "error"]
    assert (row["id"], row["path"], row["label"], row["defect"], row["error"]) == ("000", str(rgb), "", "", "")

    expected = detector.predict(np.asarray(Image.open(rgb)), tifffile.imread(depth))
    assert float(row["score"]) == pytest.approx(expected.score, rel=1e-8)
    assert row["verdict"] == {True: "defective", False: "good"}[bool(expected.defective)]
    found = tifffile.imread(tmp_path / "000.tiff")
    assert found.shape == SIZE and found.dtype == np.float32 and np.array_equal(found, expected.map)
    assert np.asarray(Image.open(tmp_path / "000.png")).shape == (*SIZE, 3)
    lines = result.stdout.splitlines()
    chance = expected.false_alarm_probability
    assert chance is not None and float(row["false_alarm_probability"]) == pytest.approx(chance, rel=1e-5)
    assert detector.threshold is not None
    compared = detector.threshold.compared(expected.score)
    assert lines[0] == f"000  score {expected.score:.4f}  {compared}  {row['verdict']}"
    assert lines[-2].endswith(f"of 1 defective; {detector.threshold.describe()}")
    assert lines[-1] == f"scores.csv, regions.json, maps and overlays in {tmp_path}; computed by PyTorch, fp32, CPU"


@pytest.mark.parametrize("modality", ["rgb", "depth"])
def test_one_part_for_one_modality(tiny_run: Runs, dent: tuple[Path, Path], tmp_path: Path, modality: str) -> None:
    rgb, depth = dent
    single = load(tiny_run(modality), "cpu")
    # Depth tells the part from the table, so a model of RGB that had depth in training needs it as well.
    result = predict_part(single, rgb if modality == "rgb" else None, depth, tmp_path)
    both = predict_part(single, rgb, depth, tmp_path / "both")
    assert result.prediction is not None and both.prediction is not None
    assert result.prediction.score == both.prediction.score
    assert np.array_equal(read_map(tmp_path / f"{result.part.id}.tiff"), read_map(tmp_path / "both" / "000.tiff"))


def test_rgb_that_a_model_does_not_see_may_be_damaged(tiny_run: Runs, tiny_data: Path, tmp_path: Path) -> None:
    names = unlabelled(tiny_data, tmp_path / "parts")
    for name, length in zip(names[:2], (0, 45), strict=True):
        rgb = tmp_path / "parts" / f"{name}_rgb.png"
        rgb.write_bytes(rgb.read_bytes()[:length])
    results = list(predict_folder(load(tiny_run("depth"), "cpu"), tmp_path / "parts", tmp_path / "out"))
    assert [result.error for result in results] == [""] * 3
    pictures = [np.asarray(Image.open(result.overlay_file), dtype=int) for result in results if result.overlay_file]
    colours = [np.ptp(picture, axis=2)[:8].max() for picture in pictures]  # of the table
    assert colours[:2] == [0, 0] and colours[2] > 0, "the depth is shown instead"


def test_a_missing_member_is_named(tiny_run: Runs, dent: tuple[Path, Path], tmp_path: Path) -> None:
    rgb, depth = dent
    for given_file, option, lacks in ((rgb, "--rgb", "depth"), (depth, "--depth", "RGB")):
        result = das3d("predict", tiny_run(), option, given_file, "--out", tmp_path / lacks)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == f"error: {given_file}: expected {lacks}, as the training scans have it, found none\n"
        (row,) = scores_of(tmp_path / lacks)
        assert result.stderr == f"error: {row['error']}\n" and row["score"] == row["verdict"] == ""


def test_a_model_of_rgb_alone_misses_rgb_and_reads_no_depth_beside_it(detector: Detector, dent: tuple[Path, Path]) -> None:
    rgb, depth = dent
    flat = replace(detector, statistics=replace(detector.statistics, has_depth=False))
    for given_rgb, given_depth in ((rgb, depth), (rgb, Path("none.tiff"))):
        scan = read_to_show(Part("both", "test", UNKNOWN, given_rgb, given_depth), flat.statistics)
        assert scan.rgb is not None and scan.depth is None
    alone = read_to_show(Part("alone", "test", UNKNOWN, None, depth), flat.statistics)
    with pytest.raises(DataError, match=f"{depth}: expected RGB, as the training scans have it, found none"):
        next(flat.predict_scans([alone]))


def test_no_verdict_on_a_part_before_stays_beside_one_that_cannot_be_judged(
    detector: Detector, dent: tuple[Path, Path], tmp_path: Path
) -> None:
    rgb, depth = dent
    predict_part(replace(detector, threshold=threshold_from([0.0] * 19, 0.05)), rgb, depth, tmp_path / "out")
    assert scores_of(tmp_path / "out")[0]["verdict"] == "defective"
    blind = tmp_path / "blind.tiff"
    shutil.copy(depth, blind)
    break_by_blinding(rgb, blind)
    with pytest.raises(DataError, match=r"blind\.tiff: expected a measured depth somewhere"):
        predict_part(detector, rgb, blind, tmp_path / "out")
    (row,) = scores_of(tmp_path / "out")
    assert "expected a measured depth somewhere" in row["error"] and row["score"] == row["verdict"] == ""
    assert json.loads((tmp_path / "out" / "regions.json").read_text())["parts"] == []
    assert not list((tmp_path / "out").glob("000.*"))


def test_files_that_are_no_part(detector: Detector, dent: tuple[Path, Path], tmp_path: Path) -> None:
    rgb, depth = dent
    with pytest.raises(DataError, match=r"none\.png: expected a file, found none"):
        predict_part(detector, tmp_path / "none.png", depth, tmp_path / "out")
    with pytest.raises(DataError, match="expected a file, found none"):
        predict_part(detector, rgb, tmp_path, tmp_path / "out")
    other = tmp_path / "other.png"
    Image.fromarray(np.asarray(Image.open(rgb))[:-4]).save(other)
    with pytest.raises(DataError, match="expected all members of a part to have one size"):
        predict_part(detector, other, depth, tmp_path / "another")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no file can be called so")
def test_a_name_that_no_table_can_hold_is_refused_before_any_work(
    detector: Detector, dent: tuple[Path, Path], tmp_path: Path
) -> None:
    rgb, depth = dent
    named = Path(shutil.copy(rgb, tmp_path / "gr\udc81n.png"))
    with pytest.raises(DataError, match=r"gr\\udc81n\.png: expected a name in UTF-8"):
        predict_part(detector, named, depth, tmp_path / "out")
    named = Path(shutil.copy(rgb, tmp_path / "0005\r.png"))
    with pytest.raises(DataError, match=r"0005\\r\.png: expected a name without line breaks, found \\r, as names have"):
        predict_part(detector, named, depth, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_what_is_written_replaces_no_file_of_the_part(
    detector: Detector, dent: tuple[Path, Path], tmp_path: Path, suffix: str
) -> None:
    rgb, depth = (Path(shutil.copy(file, tmp_path / f"part7{file.suffix}")) for file in dent)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = depth if suffix == ".png" else rgb  # the other one stays in the way
    shutil.move(moved, elsewhere)
    rgb, depth = (elsewhere / file.name if file == moved else file for file in (rgb, depth))
    beside = tmp_path / "part7.jpg"  # and of no other part that lies there
    beside.write_bytes(b"somebody's")
    content = {file: file.read_bytes() for file in (rgb, depth, beside)}
    with pytest.raises(DataError, match=r"expected a folder where no file of the part lies \(--out\), found .*part7"):
        predict_part(detector, rgb, depth, tmp_path)
    assert {file: file.read_bytes() for file in content} == content


# ------------------------------------------------------------------------------------ many parts


def test_folder_of_many_parts_in_any_layout(detector: Detector, tiny_run: Runs, tiny_data: Path, tmp_path: Path) -> None:
    result = das3d("predict", tiny_run(), "--data", tiny_data, "--out", tmp_path, "--device", "cpu")
    rows = scores_of(tmp_path)
    assert len(rows) == 4 + 2 + 2 + len(KINDS) > BATCH
    known = f"4 of {len(rows)} parts in training: such scores are too low to say anything"
    assert (result.exit_code, result.stderr) == (0, f"warning: the model saw {known}\n")
    assert [row["defect"] for row in rows if row["id"].startswith("test/")] == sorted([*KINDS, "good", "good"])
    for row in rows:
        rgb = Path(row["path"])
        expected = detector.predict(
            np.asarray(Image.open(rgb)), tifffile.imread(rgb.parents[1] / "xyz" / f"{rgb.stem}.tiff")
        )
        assert float(row["score"]) == pytest.approx(expected.score, rel=1e-5), "whatever else is in its batch"
        assert row["label"] == str(int(row["defect"] != "good")) and row["error"] == ""
        assert read_map(tmp_path / f"{row['id'].replace('/', '_')}.tiff") == pytest.approx(expected.map, abs=1e-5)
    defective = sum(row["verdict"] == "defective" for row in rows)
    assert f"\n{defective} of {len(rows)} defective; threshold" in result.stdout


@pytest.mark.parametrize(("held", "most"), [(0, 1), (3, 3), (1000, AHEAD)])
def test_large_scans_are_read_ahead_by_their_bytes(
    held: int, most: int, detector: Detector, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = find_dataset(tiny_data, CATEGORY).validation[0]
    scan = part.read()
    assert scan.rgb is not None and scan.depth is not None and scan.valid is not None and scan.mask is not None
    size = sum(member.nbytes for member in (scan.rgb, scan.depth, scan.valid, scan.mask))
    monkeypatch.setattr(streaming, "HELD", held * size)
    drawn: list[Part] = []

    def parts() -> Iterator[Part]:
        for _ in range(2 * AHEAD):
            drawn.append(part)
            yield part

    ahead = [len(drawn) - number for number, _ in enumerate(streaming._read_ahead(detector, parts(), False), start=1)]
    assert max(ahead[1:]) == most and len(ahead) == 2 * AHEAD


def test_more_parts_than_are_read_ahead_come_in_order(detector: Detector, tiny_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    unlabelled(tiny_data, folder, 1)
    count = AHEAD + BATCH + 3
    for index in range(count):
        for member in ("rgb.png", "depth.tiff"):
            (folder / f"p{index}_{member}").symlink_to(folder / f"{sorted(KINDS)[0]}_{member}")
    results = predict_folder(detector, folder, tmp_path / "out")
    assert [result.part.id for result in results] == [sorted(KINDS)[0], *(f"p{index}" for index in range(count))]
    assert len({result.prediction.score for result in results if result.prediction}) <= 2  # equal but for the batch's size
    result = das3d("predict", tmp_path / "none", "--data", folder, "--out", tmp_path / "out")
    assert result.exit_code == 1


def test_what_was_done_before_an_interruption_is_kept(detector: Detector, tiny_data: Path, tmp_path: Path) -> None:
    names = unlabelled(tiny_data, tmp_path / "parts")

    def interrupted(parts: Sequence[Part], out: Path) -> Iterator[Inspected]:
        yield from inspect_parts(detector, parts[:2], out)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_folder(detector, tmp_path / "parts", tmp_path / "out", inspect=interrupted)
    assert [row["id"] for row in scores_of(tmp_path / "out")] == names[:2]
    assert not list((tmp_path / "out").glob(".*"))  # no half-written file stays behind


def test_what_was_done_is_written_now_and_then(
    detector: Detector, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = unlabelled(tiny_data, tmp_path / "parts")
    monkeypatch.setattr(prediction, "SECONDS_BETWEEN_TABLES", 0.0)
    seen = []

    def watched(parts: Sequence[Part], out: Path) -> Iterator[Inspected]:
        for result in inspect_parts(detector, parts, out):
            yield result
            seen.append([row["id"] for row in scores_of(out)])  # as who kills the process would find it

    predict_folder(detector, tmp_path / "parts", tmp_path / "out", inspect=watched)
    assert seen == [names[:1], names[:2], names]


def test_a_table_that_another_program_holds_is_written_beside_it(
    detector: Detector, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = unlabelled(tiny_data, tmp_path / "parts")
    out = tmp_path / "out"
    out.mkdir()
    (out / "scores.csv").write_text("id,path\n")
    monkeypatch.setattr(prediction, "SECONDS_BETWEEN_TABLES", 0.0)
    replaced = os.replace

    def held(source: Path, target: Path) -> None:
        if Path(target).name == "scores.csv":
            raise PermissionError(errno.EACCES, "The process cannot access the file")
        replaced(source, target)

    monkeypatch.setattr(os, "replace", held)
    predict_folder(detector, tmp_path / "parts", out)
    assert (out / "scores.csv").read_text() == "id,path\n" and (out / "regions.json").is_file()
    with (out / "scores_2.csv").open(newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == names
    told = f"{out / 'scores.csv'} cannot be replaced, as where it is open in another program"
    assert capsys.readouterr().err == f"warning: {told}; the scores are in {out / 'scores_2.csv'}\n"


def failing_on(detector: Detector, *names: str, score: bool = True) -> Detector:
    """The detector with networks that give no number, or fail, for batches with parts of these names."""

    class Failing:
        def __getattr__(self, name: str) -> object:
            return getattr(detector.engine, name)

    broken, judging = replace(detector), []

    def predict(scans: Sequence[PreparedScan]) -> list[Prediction]:
        judging[:] = [Path(scan.name).name.startswith(names) for scan in scans]
        return Detector.predict_prepared(broken, scans)

    def run(**members: object) -> EngineOutput:
        output = detector.engine.run(**members)  # type: ignore[arg-type]
        if any(judging) and not score:
            raise RuntimeError("no kernel image\nfor this device")
        return replace(output, score=np.where(judging, np.nan, output.score).astype(np.float32)) if score else output

    broken.predict_prepared = predict  # type: ignore[method-assign, assignment]
    broken.engine = Failing()  # type: ignore[assignment]
    broken.engine.run = run  # type: ignore[method-assign]
    return broken


@pytest.mark.parametrize("score", [True, False])
def test_a_part_on_which_the_networks_fail_takes_no_other_with_it(
    detector: Detector, tiny_data: Path, tmp_path: Path, score: bool
) -> None:
    detector = replace(detector, norms=None)  # regions take further passes, in other batches
    names = unlabelled(tiny_data, tmp_path / "parts", 5)
    sound = {result.part.id: result for result in predict_folder(detector, tmp_path / "parts", tmp_path / "sound")}
    results = predict_folder(failing_on(detector, names[3], score=score), tmp_path / "parts", tmp_path / "out")
    assert [result.part.id for result in results] == names
    assert [result.networks_failed for result in results] == [name == names[3] for name in names]
    rows = scores_of(tmp_path / "out")
    for row in rows:
        if row["id"] == names[3]:
            assert row["score"] == row["verdict"] == "" and not list((tmp_path / "out").glob(f"{names[3]}.*"))
            part, found = results[3].part, "expected a finite score and map, found score nan"
            failed = f"{part.rgb}: the networks failed: no kernel image for this device"
            assert row["error"].startswith(f"{part.depth}: {found}") if score else row["error"] == failed
        else:
            prediction = sound[row["id"]].prediction
            assert prediction is not None and float(row["score"]) == pytest.approx(prediction.score, rel=1e-5)
            assert row["error"] == "" and (tmp_path / "out" / f"{row['id']}.tiff").is_file()


def test_too_little_memory_for_any_part_ends_it(detector: Detector, tiny_data: Path, tmp_path: Path) -> None:
    unlabelled(tiny_data, tmp_path / "parts", 2)
    broken = replace(detector)

    def predict(scans: Sequence[PreparedScan]) -> list[Prediction]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    broken.predict_prepared = predict  # type: ignore[method-assign, assignment]
    with pytest.raises(torch.OutOfMemoryError):
        predict_folder(broken, tmp_path / "parts", tmp_path / "out")


def test_who_is_interrupted_before_the_first_part_keeps_the_scores_of_before(
    detector: Detector, tiny_data: Path, tmp_path: Path
) -> None:
    names = unlabelled(tiny_data, tmp_path / "parts")
    predict_folder(detector, tmp_path / "parts", tmp_path / "out")

    def interrupted(parts: Sequence[Part], out: Path) -> Iterator[Inspected]:
        yield from inspect_parts(detector, parts[:0], out)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_folder(detector, tmp_path / "parts", tmp_path / "out", inspect=interrupted)
    assert [row["id"] for row in scores_of(tmp_path / "out")] == names


def test_maps_of_before_do_not_stand_beside_an_error(detector: Detector, tiny_data: Path, tmp_path: Path) -> None:
    names = unlabelled(tiny_data, tmp_path / "parts")
    predict_folder(detector, tmp_path / "parts", tmp_path / "out")
    (tmp_path / "parts" / f"{names[0]}_rgb.png").write_bytes(b"")
    failed = predict_folder(detector, tmp_path / "parts", tmp_path / "out")[0]
    assert failed.error and not list((tmp_path / "out").glob(f"{names[0]}.*"))
    assert (tmp_path / "out" / f"{names[1]}.tiff").is_file()


def test_ground_truth_holds_no_prediction_up(
    detector: Detector, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    category = copy_category(tiny_data, tmp_path)
    stray = category / "test" / "dent" / "gt" / "elsewhere.png"
    shutil.copy(category / "test" / "dent" / "gt" / "000.png", stray)
    (category / "test" / "stain" / "gt" / "000.png").write_bytes(b"")
    results = predict_folder(detector, category, tmp_path / "out")
    assert len(results) == 14 and not any(result.error for result in results)
    assert f"warning: {stray}: expected a part of this name, found none" in capsys.readouterr().err


def test_of_several_categories_the_one_trained_on_is_predicted(detector: Detector, tiny_data: Path, tmp_path: Path) -> None:
    copy_category(tiny_data, tmp_path / "data")
    shutil.copytree(tiny_data / CATEGORY, tmp_path / "data" / "other")
    results = predict_folder(detector, tmp_path / "data", tmp_path / "out")
    assert {result.part.rgb.parents[3].name for result in results if result.part.rgb} == {CATEGORY}


def test_a_part_is_called_alike_by_its_file_and_in_its_folder(detector: Detector, tiny_data: Path, tmp_path: Path) -> None:
    name = unlabelled(tiny_data, tmp_path / "parts", 1)[0]
    files = tmp_path / "parts" / f"{name}_rgb.png", tmp_path / "parts" / f"{name}_depth.tiff"
    alone = predict_part(detector, *files, tmp_path / "one")
    assert alone.part.id == predict_folder(detector, tmp_path / "parts", tmp_path / "many")[0].part.id == name


def test_unlabelled_folder(tiny_run: Runs, tiny_data: Path, tmp_path: Path) -> None:
    names = unlabelled(tiny_data, tmp_path / "parts")
    result = das3d("predict", tiny_run(), "--data", tmp_path / "parts", "--out", tmp_path / "out")
    assert (result.exit_code, result.stderr) == (0, "")
    rows = scores_of(tmp_path / "out")
    assert [(row["id"], row["label"], row["defect"]) for row in rows] == [(name, "", "") for name in names]
    assert all(row["verdict"] in ("good", "defective") and 0 < float(row["score"]) < 1 for row in rows)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "regions.json", "scores.csv", *(f"{name}.{suffix}" for name in names for suffix in ("png", "tiff"))
    }  # fmt: skip


def test_no_verdict_without_a_threshold(tiny_run: Runs, dent: tuple[Path, Path], tmp_path: Path) -> None:
    detector = load(tiny_run())
    detector.threshold = None
    detector.save(tmp_path / "model.safetensors")
    result = das3d("predict", tmp_path / "model.safetensors", "--rgb", dent[0], "--depth", dent[1], "--out", tmp_path)
    assert result.exit_code == 0 and scores_of(tmp_path)[0]["verdict"] == ""
    assert result.stdout.splitlines()[0] == f"000  score {float(scores_of(tmp_path)[0]['score']):.4f}"
    assert "defective" not in result.stdout and "threshold" not in result.stdout


# ------------------------------------------------------------------------------------ for programs


def test_one_json_object_a_part_and_nothing_else_on_standard_output(
    tiny_run: Runs, tiny_data: Path, tmp_path: Path
) -> None:
    names = unlabelled(tiny_data, tmp_path / "parts")
    rgb, _ = tmp_path / "parts" / f"{names[1]}_rgb.png", (tmp_path / "parts" / f"{names[1]}_rgb.png").write_bytes(b"")
    options = ("--data", tmp_path / "parts", "--out", tmp_path / "out", "--device", "cpu")
    strict = with_threshold(tiny_run(), 0.0, tmp_path / "strict.safetensors")
    result = das3d("predict", strict, *options, "--json")
    assert result.exit_code == 1
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    rows = scores_of(tmp_path / "out")
    regions = json.loads((tmp_path / "out" / "regions.json").read_text())["parts"]
    assert [line["name"] for line in lines] == names
    for line, row in zip(lines, rows, strict=True):
        keys = ["name", "path", "score", "verdict", "false_alarm_probability", "regions", "error"]
        assert list(line) == keys and line["path"] == row["path"]
        if line["name"] == names[1]:
            assert line["error"] == row["error"] and str(rgb) in line["error"]
            assert line["score"] is line["verdict"] is line["false_alarm_probability"] is None and line["regions"] == []
        else:
            assert line["score"] == pytest.approx(float(row["score"]), rel=1e-8) and line["error"] is None
            assert line["false_alarm_probability"] == pytest.approx(float(row["false_alarm_probability"]), rel=1e-5)
            assert line["verdict"] == row["verdict"] == "defective"
            assert line["regions"] == next((part["regions"] for part in regions if part["id"] == line["name"]), [])
    assert "2 of 2 defective" in result.stderr and "scores.csv, regions.json" in result.stderr
    alone = das3d("predict", strict, "--rgb", rgb, "--depth", rgb.parent / f"{names[1]}_depth.tiff", *options[2:], "--json")
    (line,) = alone.stdout.splitlines()
    assert alone.exit_code == 1 and json.loads(line)["error"] == lines[1]["error"]


def with_threshold(run: Path, value: float, file: Path) -> Path:
    detector = load(run, "cpu")
    assert detector.threshold is not None
    detector.threshold = replace(detector.threshold, value=value)
    detector.save(file)
    return file


def test_a_part_is_told_of_before_the_next_is_judged(detector: Detector, tiny_data: Path, tmp_path: Path) -> None:
    unlabelled(tiny_data, tmp_path / "parts")
    events = []

    def watched(parts: Sequence[Part], out: Path) -> Iterator[Inspected]:
        for result in inspect_parts(detector, parts, out):
            events.append("judged")
            yield result

    predict_folder(
        detector, tmp_path / "parts", tmp_path / "out", inspect=watched, tell=lambda result: events.append("told")
    )
    assert events == ["judged", "told"] * 3


@pytest.mark.parametrize(("value", "code"), [(0.0, 3), (1.0, 0)])
def test_the_exit_code_tells_verdicts_where_asked(
    tiny_run: Runs, tiny_data: Path, tmp_path: Path, value: float, code: int
) -> None:
    names = unlabelled(tiny_data, tmp_path / "parts", 2)
    model = with_threshold(tiny_run(), value, tmp_path / "model.safetensors")
    command = ("predict", model, "--data", tmp_path / "parts", "--out", tmp_path / "out")
    assert das3d(*command).exit_code == 0
    assert das3d(*command, "--exit-code").exit_code == code
    (tmp_path / "parts" / f"{names[0]}_rgb.png").write_bytes(b"")
    assert das3d(*command, "--exit-code").exit_code == 1, "an error counts more than a defect"


def test_no_exit_code_without_verdicts(tiny_run: Runs, dent: tuple[Path, Path], tmp_path: Path) -> None:
    detector = load(tiny_run())
    detector.threshold = None
    detector.save(tmp_path / "model.safetensors")
    result = das3d(
        "predict", tmp_path / "model.safetensors", "--rgb", dent[0], "--depth", dent[1], "--out", tmp_path, "--exit-code"
    )
    assert result.exit_code == 1 and "expected a model with a threshold for --exit-code" in result.stderr


def test_a_part_may_be_called_by_letters_that_the_output_does_not_know(
    tiny_run: Runs, tiny_data: Path, tmp_path: Path
) -> None:
    (name,) = unlabelled(tiny_data, tmp_path / "parts", 1)
    for member in ("rgb.png", "depth.tiff"):
        (tmp_path / "parts" / f"{name}_{member}").rename(tmp_path / "parts" / f"деталь_{member}")
    command = [
        sys.executable,
        "-m",
        "das3d",
        "predict",
        tiny_run(),
        "--data",
        tmp_path / "parts",
        "--out",
        tmp_path / "out",
    ]
    narrow = {**os.environ, "PYTHONIOENCODING": "cp1252:strict"}  # as pipes are on Windows
    result = subprocess.run([str(word) for word in command], capture_output=True, env=narrow, check=False)
    assert result.returncode == 0, result.stderr
    assert rb"\u0434\u0435\u0442\u0430\u043b\u044c  score " in result.stdout
    assert scores_of(tmp_path / "out")[0]["id"] == "деталь"


# ------------------------------------------------------------------------------------ what breaks


def break_by_emptying(rgb: Path, depth: Path) -> str:
    rgb.write_bytes(b"")
    return f"{rgb}: expected an RGB image, found an empty file"


def break_by_cutting(rgb: Path, depth: Path) -> str:
    rgb.write_bytes(rgb.read_bytes()[:-200])
    return f"{rgb}: expected an RGB image, found a damaged or unknown file"


def break_by_losing_depth(rgb: Path, depth: Path) -> str:
    depth.unlink()
    return f"{rgb}: expected depth, as the training scans have it, found none"


def break_by_blinding(rgb: Path, depth: Path) -> str:
    tifffile.imwrite(depth, np.zeros((*SIZE, 3), np.float32), photometric="minisblack", planarconfig="contig")
    return f"{depth}: expected a measured depth somewhere, found all"


def break_by_size(rgb: Path, depth: Path) -> str:
    Image.fromarray(np.asarray(Image.open(rgb))[:-4]).save(rgb)
    tifffile.imwrite(depth, tifffile.imread(depth)[:-4], photometric="minisblack", planarconfig="contig")
    return f"{depth}: expected 80 x 64 pixels as in training, found 80 x 60"


@pytest.mark.parametrize(
    "broken", [break_by_emptying, break_by_cutting, break_by_losing_depth, break_by_blinding, break_by_size]
)
def test_a_broken_part_does_not_hold_up_the_others(
    tiny_run: Runs, tiny_data: Path, tmp_path: Path, broken: Callable[[Path, Path], str]
) -> None:
    names = unlabelled(tiny_data, tmp_path / "parts")
    expected = broken(tmp_path / "parts" / f"{names[1]}_rgb.png", tmp_path / "parts" / f"{names[1]}_depth.tiff")
    result = das3d("predict", tiny_run(), "--data", tmp_path / "parts", "--out", tmp_path / "out")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {expected}")
    first, second, third = scores_of(tmp_path / "out")
    assert second["error"] == line.removeprefix("error: ") and second["score"] == second["verdict"] == ""
    for row in (first, third):
        assert row["error"] == "" and float(row["score"]) > 0 and row["verdict"]
        assert (tmp_path / "out" / f"{row['id']}.tiff").is_file()
    assert not (tmp_path / "out" / f"{names[1]}.tiff").exists()
    assert "of 2 defective" in result.stdout


def test_many_broken_parts_are_cut_short_on_the_screen_only(tiny_run: Runs, tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    for index in range(13):
        for member in ("rgb.png", "depth.tiff"):
            (tmp_path / "parts" / f"{index}_{member}").write_bytes(b"" if index % 2 else b"no picture")
    result = das3d("predict", tiny_run(), "--data", tmp_path / "parts", "--out", tmp_path / "out")
    lines = result.stderr.splitlines()
    assert result.exit_code == 1 and len(lines) == 11
    assert lines[-1] == f"error: ... and 3 more, see {tmp_path / 'out' / 'scores.csv'}"
    assert all(row["error"] for row in scores_of(tmp_path / "out"))
    assert len(scores_of(tmp_path / "out")) == 13


def test_of_many_parts_the_defective_ones_are_told_first(
    detector: Detector, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(printing, "MOST_SHOWN", 2)

    def told(defective: str) -> list[str]:
        window = Window.square(0, 0, 8, (8, 8))
        results = [
            Inspected(
                Part(name, "test", UNKNOWN, Path(f"{name}.png"), None),
                Prediction(name, 0.5, np.zeros((8, 8), np.float32), window, name in defective),
            )
            for name in "abcd"
        ]
        printing.print_predictions(results, tmp_path, detector)
        return [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()[:3]]

    assert told("") == ["a", "b", "... and 2 more"]
    assert told("d") == ["d", "a", "... and 2 more"]
    assert told("bcd") == ["b", "c", "... and 2 more, 1 of them defective"]


def lower(file: Path, rows: int) -> None:
    """Take so many rows of pixels off a picture or points."""
    values = tifffile.imread(file) if file.suffix == ".tiff" else np.asarray(Image.open(file))
    write_member(file, values[:-rows])


def test_what_is_wrong_with_all_parts_is_said_once(tiny_run: Runs, tiny_data: Path, tmp_path: Path) -> None:
    names, parts = unlabelled(tiny_data, tmp_path / "parts"), tmp_path / "parts"
    for file in parts.iterdir():
        lower(file, 8 if file.name.startswith(f"{names[0]}_") else 4)
    command = ("predict", tiny_run(), "--data", parts, "--out", tmp_path / "out", "--device", "cpu")
    found = f"{SIZE[1]} x {SIZE[0]} pixels as in training, found {SIZE[1]} x "
    result = das3d(*command)
    first = parts / f"{names[0]}_rgb.png"
    assert result.exit_code == 1 and result.stderr == (
        f"error: all 3 parts, such as {first}: expected {found}{SIZE[0] - 8}\n"
    )
    assert result.stdout.startswith(f"scores.csv and regions.json in {tmp_path / 'out'}; computed by ")
    assert len({row["error"] for row in scores_of(tmp_path / "out")}) == 3, "the table names each"
    for file in parts.glob(f"{names[0]}_*"):
        file.unlink()
    result = das3d(*command)
    assert result.exit_code == 1 and result.stderr == f"error: all 2 parts: expected {found}{SIZE[0] - 4}\n", "none is lost"
    for file in parts.glob(f"{names[1]}_*"):
        file.unlink()
    assert das3d(*command).stderr == f"error: {parts / f'{names[2]}_depth.tiff'}: expected {found}{SIZE[0] - 4}\n"


def test_parts_of_another_category_are_told_of_where_none_can_be_judged(
    tiny_run: Runs, tiny_data: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(tiny_data / CATEGORY, tmp_path / "nut"))
    shutil.rmtree(other / "train")
    shutil.rmtree(other / "validation")
    for file in other.glob("test/*/*/*"):
        lower(file, 4)
    told = f"the model was trained on {CATEGORY}; these parts are of nut"
    count = len(list(other.glob("test/*/rgb/*")))
    reason = f"error: all {count} parts: expected {SIZE[1]} x {SIZE[0]} pixels as in training, found "
    result = das3d("predict", tiny_run(), "--data", other, "--out", tmp_path / "out", "--device", "cpu")
    assert result.exit_code == 1 and result.stderr.startswith(f"warning: {told}\n{reason}"), result.stderr
    result = das3d("evaluate", tiny_run(), "--data", other, "--out", tmp_path / "figures", "--device", "cpu")
    first, second = result.stderr.splitlines()
    assert result.exit_code == 1 and first.startswith(reason) and second == f"error: {told}"


def test_folder_without_parts(detector: Detector, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder, message in ((tmp_path / "none", "expected a folder, found nothing there"), (empty, "found no folders")):
        with pytest.raises(DataError, match=message):
            predict_folder(detector, folder, tmp_path / "out")


# ------------------------------------------------------------------------------------ units


def test_counts_in_a_16_bit_image_score_as_metres_do(
    detector: Detector, tiny_run: Runs, dent: tuple[Path, Path], tmp_path: Path
) -> None:
    rgb, xyz = dent
    depth = tifffile.imread(xyz)[..., 2]
    metres = predict_part(detector, rgb, xyz, tmp_path / "m").prediction
    fine, coarse = tmp_path / "fine.png", tmp_path / "coarse.png"
    cv2.imwrite(str(fine), np.rint(depth / 1e-5).astype(np.uint16))  # hundredths of a millimetre
    cv2.imwrite(str(coarse), np.rint(depth / 2e-4).astype(np.uint16))
    scores = {}
    for name, file, unit in (("fine", fine, "0.00001"), ("coarse", coarse, "0.0002")):
        out = tmp_path / name
        result = das3d(
            "predict", tiny_run(), "--rgb", rgb, "--depth", file, "--depth-unit", unit, "--out", out, "--device", "cpu"
        )
        assert result.exit_code == 0, result.output
        scores[name] = float(scores_of(out)[0]["score"])
    assert metres is not None
    others = [
        prediction.score
        for kind in KINDS
        if kind != "dent"
        and (prediction := predict_part(detector, *files_of(xyz.parents[2] / kind), tmp_path / kind).prediction)
    ]
    spread = float(np.std(others))
    assert abs(scores["fine"] - metres.score) < 0.02 * spread, "10 um steps change next to nothing"
    assert abs(scores["coarse"] - metres.score) < 2 * spread
    array = detector.predict(np.asarray(Image.open(rgb)), depth * 1000, unit="mm")
    assert array.score == pytest.approx(metres.score, rel=1e-4)
    with pytest.raises(DataError, match=r"expected depth in steps of 0\.\d+ mm at most .*, found steps of 1 mm"):
        detector.predict(np.asarray(Image.open(rgb)), np.rint(depth * 1000), unit="mm")


def test_a_folder_with_a_declared_unit_needs_no_option(detector: Detector, tiny_data: Path, tmp_path: Path) -> None:
    (name,) = unlabelled(tiny_data, tmp_path / "parts", 1)
    expected = predict_folder(detector, tmp_path / "parts", tmp_path / "m")[0].prediction
    metres = tifffile.imread(tmp_path / "parts" / f"{name}_depth.tiff")[..., 2]
    tifffile.imwrite(tmp_path / "parts" / f"{name}_depth.tiff", metres * 1000)
    with_option = predict_folder(detector, tmp_path / "parts", tmp_path / "o", depth_format=DepthFormat.from_unit("mm"))
    (tmp_path / "parts" / "dataset.yaml").write_text("depth_unit: mm\n")
    declared = predict_folder(detector, tmp_path / "parts", tmp_path / "d")
    for result in (with_option[0], declared[0]):
        assert result.prediction is not None and expected is not None
        assert result.prediction.score == pytest.approx(expected.score, rel=1e-4)


def test_a_unit_declared_for_a_data_set_holds_in_its_folders(detector: Detector, tmp_path: Path) -> None:
    own_kind(tmp_path / "test" / "dent", "ab")
    declare(tmp_path, "depth_scale: 0.00005")
    for folder in (tmp_path / "test" / "dent", tmp_path / "test" / "dent" / ".." / "dent"):
        found = find_folder(folder, depth_format=DepthFormat(0.0001))
        assert [part.depth_format for part in found] == [DepthFormat(0.00005)] * 2
    (tmp_path / "dataset.yaml").unlink()
    assert find_folder(tmp_path / "test" / "dent", depth_format=DepthFormat(1.0))[0].depth_format == DepthFormat(1.0)


def test_depth_is_read_alike_wherever_a_user_points(tmp_path: Path) -> None:
    for split in ("train", "test"):
        own_kind(tmp_path / "mine" / split / "good", "abc")
    own_kind(tmp_path / "mine" / "test" / "dent", "ab")
    declare(tmp_path / "mine", "{depth_unit: mm, depth_missing: 500, focal_length: 800}")
    declared, of_the_model = DepthFormat(0.001, missing=500, focal_length=800), DepthFormat(0.00025)
    for place in ("", "test", "test/dent"):
        parts = find_folder(tmp_path / "mine" / place, depth_format=of_the_model)
        assert {part.depth_format for part in parts} == {declared}, place
    assert format_around(tmp_path / "mine" / "test" / "dent" / "depth" / "a.tiff") == declared
    assert find_dataset(tmp_path / "mine" / "test", needs="test").depth_format == declared

    (tmp_path / "mine" / "dataset.yaml").rename(tmp_path / "dataset.yaml")  # which is not of this data set
    for place in ("", "test", "test/dent"):
        parts = find_folder(tmp_path / "mine" / place, depth_format=of_the_model)
        assert {part.depth_format for part in parts} == {of_the_model}, place
    assert format_around(tmp_path / "mine" / "test" / "dent" / "depth" / "a.tiff") is None


def test_what_another_program_calls_dataset_yaml_is_none_of_ours(tmp_path: Path) -> None:
    own_kind(tmp_path / "mine" / "good", "abc")
    (tmp_path / "dataset.yaml").write_text("- a list\n- of another program\n")
    assert {part.depth_format for part in find_folder(tmp_path / "mine" / "good")} == {None}


def test_a_scan_that_cannot_be_told_is_never_lost_without_a_word(
    detector: Detector, tiny_data: Path, tmp_path: Path
) -> None:
    unlabelled(tiny_data, tmp_path / "parts")
    (tmp_path / "parts" / "b-rgb.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"b-rgb\.png: expected .* found a name that tells no member"):
        predict_folder(detector, tmp_path / "parts", tmp_path / "out")


def test_millimetres_without_a_word_are_refused(tiny_run: Runs, dent: tuple[Path, Path], tmp_path: Path) -> None:
    depth = tmp_path / "mm.tiff"
    tifffile.imwrite(depth, tifffile.imread(dent[1])[..., 2] * 1000)
    result = das3d("predict", tiny_run(), "--rgb", dent[0], "--depth", depth, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert (
        result.stderr.startswith(f"error: {depth}: expected depths of at most 100 m") and "--depth-unit mm" in result.stderr
    )


def test_parts_are_read_as_the_training_parts_were(tiny_run: Runs) -> None:
    detector = load(tiny_run())
    assert detector.reading() == {
        "rgb": True, "depth": True, "light": None, "depth_format": DepthFormat(1.0), "hold_out": 0.1,
    }  # fmt: skip
    detector.training |= {"light": 0, "depth_format": {"scale": 0.001, "offset": 0.0, "missing": 65535}}
    reading = detector.reading()
    assert reading["light"] == 0 and reading["depth_format"] == DepthFormat(0.001, missing=65535)
    told = detector.reading(light=2, depth_format=DepthFormat(0.001, focal_length=500))
    assert told["light"] == 2 and told["depth_format"] == DepthFormat(0.001, 0.0, 65535, 500)  # what is not told stays
    assert detector.reading(depth_format=DepthFormat(0.01))["depth_format"] == DepthFormat(0.01)  # another sensor's counts
    assert load(tiny_run("depth")).reading()["rgb"] is False


# ------------------------------------------------------------------------------------ outputs


def test_results_of_other_parts_are_not_replaced_without_a_word(
    tiny_run: Runs, dent: tuple[Path, Path], tiny_data: Path, tmp_path: Path
) -> None:
    def predict(*words: object) -> str:
        result = das3d("predict", tiny_run(), *words, "--out", tmp_path / "out")
        assert result.exit_code == 0, result.output
        return result.stderr

    rgb, depth = dent
    chip = files_of(tiny_data / CATEGORY / "test" / "chip")  # is called 000 as well
    held = f"{tmp_path / 'out' / 'scores.csv'} holds 1 other part; the file is replaced, another --out keeps it"
    assert predict("--rgb", rgb, "--depth", depth) == ""
    assert predict("--rgb", os.path.relpath(rgb), "--depth", depth) == "", "the same part"
    assert predict("--rgb", chip[0], "--depth", chip[1]) == f"warning: {held}\n"
    assert predict("--data", rgb.parents[1]) == f"warning: {held}\n"
    assert predict("--data", rgb.parents[1]) == ""
    (row,) = scores_of(tmp_path / "out")
    row |= {"path": str(tmp_path / "else.png"), "score": "", "error": "not judged"}
    (tmp_path / "out" / "scores.csv").write_text(f"{','.join(row)}\n{','.join(row.values())}\n")
    assert predict("--data", rgb.parents[1]) == "", "what was not judged is no loss"
    (tmp_path / "out" / "scores.csv").write_text(f"id,path,score\n000,{'x' * 200_000},0.5\n")
    assert predict("--data", rgb.parents[1]) == "", "nor is what nobody can read"


@pytest.mark.parametrize("modality", ["rgb+depth", "rgb", "depth"])
def test_parts_that_were_trained_on_are_told(tiny_run: Runs, tiny_data: Path, tmp_path: Path, modality: str) -> None:
    single = load(tiny_run(modality), "cpu")
    found = {result.part.id: result.trained_on for result in predict_folder(single, tiny_data, tmp_path / "many")}
    assert found == {name: name.startswith("train/") for name in found} and sum(found.values()) == 4
    for kind, known in (("train", True), ("test", False)):
        assert predict_part(single, *files_of(tiny_data / CATEGORY / kind / "good"), tmp_path / kind).trained_on is known


def test_stale_results_are_replaced(detector: Detector, dent: tuple[Path, Path], tmp_path: Path) -> None:
    predict_part(detector, *dent, tmp_path)
    before = (tmp_path / "scores.csv").read_bytes()
    (tmp_path / "000.tiff").write_bytes(b"old")
    predict_part(detector, *dent, tmp_path)
    assert read_map(tmp_path / "000.tiff").shape == SIZE
    assert (tmp_path / "scores.csv").read_bytes() == before


def test_predicting_changes_no_input(detector: Detector, tiny_data: Path, tmp_path: Path) -> None:
    category = copy_category(tiny_data, tmp_path / "data")
    before = {path: path.stat().st_mtime_ns for path in category.rglob("*")}
    predict_folder(detector, category, tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in category.rglob("*")} == before


def test_overlays_span_what_separates_good_from_bad(detector: Detector, tiny_run: Runs) -> None:
    assert detector.threshold is not None
    assert picture_scale(detector) == pytest.approx(min(2 * detector.threshold.value, 1.0))
    without = load(tiny_run())
    without.threshold = None
    assert picture_scale(without) == 1.0


def test_long_output_names_are_cut_and_stay_unique() -> None:
    ids = ["a" * 220, *("test/bent/" + "\u4ef6" * 81 + end for end in "abc")]
    names = output_names([Part(name, "test", "unknown", None, None) for name in ids])
    assert names[ids[0]] == ids[0], "what fits stays"
    assert len(set(names.values())) == 4 and all(len(name.encode()) <= LONGEST for name in names.values())
    assert all(names[name].startswith("test_bent_\u4ef6\u4ef6") for name in ids[1:])


@given(st.lists(st.text("ab_/", min_size=1, max_size=4), unique=True, max_size=12))
def test_output_names_are_unique_files_of_one_folder(ids: list[str]) -> None:
    names = output_names([Part(name, "test", "unknown", None, None) for name in ids])
    assert set(names) == set(ids) and len(set(names.values())) == len(ids)
    assert not any("/" in name for name in names.values())


# ------------------------------------------------------------------------------------ what the data itself says


def test_a_lone_file_is_read_as_the_data_around_it_says(
    detector: Detector, dent: tuple[Path, Path], tmp_path: Path
) -> None:
    rgb, xyz = dent
    folder = tmp_path / "mine" / "test" / "dent"
    (folder / "rgb").mkdir(parents=True)
    (folder / "depth").mkdir()
    shutil.copy(rgb, folder / "rgb" / "7.png")
    counts = np.rint(tifffile.imread(xyz)[..., 2] * 20_000).astype(np.uint16)
    cv2.imwrite(str(folder / "depth" / "7.png"), counts)
    files = folder / "rgb" / "7.png", folder / "depth" / "7.png"
    expected = predict_part(detector, *files, tmp_path / "told", depth_format=DepthFormat(5e-5)).prediction
    (tmp_path / "mine" / "dataset.yaml").write_text("depth_scale: 0.00005")
    found = predict_part(detector, *files, tmp_path / "found").prediction
    assert expected is not None and found is not None and found.score == expected.score

    eyecandy = tmp_path / "candy" / "data"
    eyecandy.mkdir(parents=True)
    shutil.copy(rgb, eyecandy / "07_image_4.png")
    low, high = 0.3, 0.7
    cv2.imwrite(str(eyecandy / "07_depth.png"), np.rint((counts / 20_000 - low) / (high - low) * 65535).astype(np.uint16))
    (eyecandy / "07_info_depth.yaml").write_text(f"normalization: {{min: {low}, max: {high}}}")
    found = predict_part(detector, eyecandy / "07_image_4.png", eyecandy / "07_depth.png", tmp_path / "candied").prediction
    assert found is not None and found.score == pytest.approx(expected.score, abs=2e-3)


def test_a_unit_that_is_not_used_is_told(tiny_run: Runs, tiny_data: Path, tmp_path: Path) -> None:
    names = unlabelled(tiny_data, tmp_path / "new")
    declare(tmp_path / "new", "depth_unit: m")
    result = das3d("predict", tiny_run(), "--data", tmp_path / "new", "--out", tmp_path / "out", "--depth-unit", "mm")
    assert result.exit_code == 0 and len(scores_of(tmp_path / "out")) == len(names)
    assert f"{tmp_path / 'new' / 'dataset.yaml'} declares how depth is read; --depth-unit mm is not used" in result.stderr
    inside = das3d("predict", tiny_run(), "--data", tmp_path / "new", "--out", tmp_path / "new" / "out")
    assert inside.exit_code == 1 and "expected a folder outside the data" in inside.stderr
