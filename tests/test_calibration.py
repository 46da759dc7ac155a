"""Calibration: which parts it takes, what it keeps, and what it says of synthetic defects."""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from builders import declare, own_kind, write_member
from PIL import Image
from safetensors import safe_open
from tiny import CHANGES, SIZE, copy_category, das3d

from das3d import fingerprints, train
from das3d.arguments import parse_share
from das3d.calibration import KEPT, SMALLEST, calibrate, calibrated, harmed, keep_before
from das3d.datasets import find_dataset, find_folder
from das3d.demo import CATEGORY, KINDS, make_demo
from das3d.detector import Detector, load
from das3d.errors import DataError, ModelError, SettingsError
from das3d.files import DepthFormat
from das3d.fingerprints import fingerprint_in, fingerprint_of
from das3d.prepared import prepare_part
from das3d.scan import Scan
from das3d.service.inspections import Inspection, Inspections
from das3d.service.marked import marked_good
from das3d.settings import make_settings
from das3d.threshold import threshold_from

Runs = Callable[..., Path]


@pytest.fixture(scope="module")
def detector(tiny_run: Runs) -> Detector:
    return load(tiny_run(), "cpu")


@pytest.fixture(scope="module")
def new_parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good parts that no model has seen, as a plain folder."""
    root = make_demo(tmp_path_factory.mktemp("new"), train=7, validation=0, good=0, defective=0, size=SIZE, seed=5)
    return root / CATEGORY / "train" / "good"


def weights_hash(file: Path) -> str:
    with safe_open(file, framework="np") as opened:
        tensors = [opened.get_tensor(name).tobytes() for name in sorted(opened.keys())]
    return hashlib.sha256(b"".join(tensors)).hexdigest()


# ------------------------------------------------------------------------------------ the command


def test_command_sets_the_threshold_by_new_parts_and_keeps_the_weights(
    tiny_run: Runs, new_parts: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(tiny_run(), tmp_path / "run"))
    file = run / "model.safetensors"
    before, old = weights_hash(file), load(run).threshold
    assert old is not None
    result = das3d("calibrate", run, "--data", new_parts, "--max-false-alarm", "20%", "--device", "cpu")
    # A slow machine is told how far it is.
    told = [line for line in result.stderr.splitlines() if not line.startswith("calibrating: ")]
    assert (result.exit_code, told) == (0, [])
    after = load(run, "cpu")
    assert weights_hash(file) == before
    assert after.threshold is not None
    assert (after.threshold.parts, after.threshold.requested) == (7, 0.2)
    scores = [prediction.score for prediction in after.predict_scans(part.read() for part in parts_in(new_parts))]
    assert after.threshold.good_scores == pytest.approx(sorted(scores), rel=1e-5)
    assert after.threshold.value == after.threshold.good_scores[6]  # the 7th of 7 keeps 1 in 8, the 6th 2 in 8
    lines = result.stdout.splitlines()
    assert lines[0] == f"before: {old.describe()}" and lines[1:-2] == after.threshold.explain()
    assert lines[-2] == f"written to {file}; the weights are the same"
    names = after.threshold.good_parts
    assert sorted(names) == [f"00{number}" for number in range(7)]
    highest, second, third = (f"{score:.4f}" for score in after.threshold.good_scores[:-4:-1])
    set_by = f"highest: {names[-1]} {highest}, then {second}, {third}; the threshold is the score of {names[-1]}"
    assert set_by in lines


def test_the_model_of_before_is_kept(tiny_run: Runs, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run(), tmp_path / "run"))
    file, names = run / "model.safetensors", []
    for rate in ("30%", "40%"):
        content, begun = file.read_bytes(), datetime.now(UTC)
        result = das3d("calibrate", run, "--max-false-alarm", rate)
        assert result.exit_code == 0
        told = re.fullmatch(
            r"the model of before is kept as (.*); to go back, rename it to model\.safetensors",
            result.stdout.splitlines()[-1],
        )
        assert told is not None
        before = Path(told[1])
        assert before.read_bytes() == content and before.parent == run
        at = datetime.strptime(before.stem, "model_before_%Y-%m-%dT%H-%M-%S-%fZ").replace(tzinfo=UTC)
        assert -0.001 <= (at - begun).total_seconds() < 60
        names.append(before.name)
    assert sorted(path.name for path in run.glob("*_before*")) == names, "both are there"
    new = das3d("calibrate", run, "--max-false-alarm", "50%", "--out", tmp_path / "new.safetensors")
    assert new.exit_code == 0 and "of before is kept" not in new.stdout
    assert not list(tmp_path.glob("new_before*"))


def test_too_few_parts_do_not_take_the_place_of_enough(tiny_run: Runs, new_parts: Path, tmp_path: Path) -> None:
    run, other = Path(shutil.copytree(tiny_run(), tmp_path / "run")), tmp_path / "other.safetensors"
    file, few = run / "model.safetensors", tmp_path / "few"
    for member in new_parts.glob("*/000.*"):
        (few / member.parent.name).mkdir(parents=True)
        shutil.copy(member, few / member.parent.name)
    model = load(run, "cpu")
    replace(model, threshold=threshold_from(np.linspace(0.3, 0.4, 9).tolist(), 0.1)).save(file)
    content = file.read_bytes()
    command = ("calibrate", run, "--device", "cpu", "--data")
    refused = das3d(*command, few)
    assert refused.exit_code == 1 and refused.stderr == (
        f"error: {file}: expected 9 or more good parts, as 10% false alarms take them and the threshold there rests on 9, "
        "found 1; nothing is written: give more parts, add them to those of before (--merge), ask for what they can show "
        "(--max-false-alarm 50%), or write elsewhere (--out)\n"
    )
    assert file.read_bytes() == content and not list(run.glob("*_before*"))
    assert das3d(*command, few, "--out", other).exit_code == 0, "elsewhere it may lie"
    assert das3d(*command, few, "--merge").exit_code == 0, "more parts are never too few"
    file.write_bytes(content)
    assert das3d(*command, new_parts, "--max-false-alarm", "1%").exit_code == 0, "nor did those of before keep that rate"
    file.write_bytes(content)
    assert das3d(*command, few, "--max-false-alarm", "50%").exit_code == 0, "who asks for no more gets it"


def test_attempts_do_not_push_out_the_model_that_worked(tmp_path: Path) -> None:
    model = tmp_path / "model[1].safetensors"
    others = [tmp_path / name for name in ("model_before_notes.txt", "model[1]_before_notes.txt")]
    for file in others:
        file.write_text("of the user")
    kept = []
    for attempt in range(KEPT + 4):
        model.write_text(f"model {attempt}")
        kept.append(keep_before(model))
        time.sleep(0.002)  # of names with thousandths of seconds
        assert kept[-1].is_file() and kept[-1].read_text() == f"model {attempt}"
    assert [file for file in kept if file.is_file()] == [kept[0], *kept[-KEPT:]]
    assert all(file.is_file() for file in others)


@pytest.mark.parametrize("rate", [0, 1, 5])
def test_a_rate_that_is_no_share_is_refused_before_any_work(rate: float, detector: Detector, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=f"false-alarm rate: expected a share above 0 and below 1, .* found {rate}"):
        calibrate(detector, tmp_path / "none", max_false_alarm=rate)


def test_the_model_tells_when_and_from_what_each_calibration_came(
    tiny_run: Runs, tiny_data: Path, new_parts: Path, tmp_path: Path
) -> None:
    begun = datetime.now(UTC).replace(microsecond=0)
    trained = load(tiny_run(), "cpu")
    (first,) = trained.calibrations
    assert trained.threshold is not None
    assert first["data"] == str(tiny_data / CATEGORY) == trained.training["data"]
    assert (first["parts"], first["value"]) == (2, trained.threshold.value)
    calibrate(trained, new_parts, merge=True).save(tmp_path / "merged.safetensors")
    again = load(tmp_path / "merged.safetensors", "cpu")
    assert again.threshold is not None and again.calibrations[0] == first
    told = again.calibrations[1]
    assert (told["data"], told["parts"], told["value"]) == (str(new_parts), 9, again.threshold.value)
    assert begun <= datetime.fromisoformat(told["at"]) <= datetime.now(UTC)
    assert datetime.fromisoformat(told["at"]).utcoffset() == timedelta(0)
    looser = calibrate(again, max_false_alarm=0.5)
    assert [entry["data"] for entry in looser.calibrations] == [first["data"], told["data"], None]


def held_out(detector: Detector, scores: list[float]) -> Detector:
    names = [f"good/{number:04}" for number in range(len(scores))]
    return replace(detector, threshold=threshold_from(scores, 0.05, names=names))


def test_a_good_part_far_above_the_others_is_warned_of(detector: Detector, capsys: pytest.CaptureFixture[str]) -> None:
    scores = [0.2 + number / 500 for number in range(23)]
    calibrate(held_out(detector, scores), max_false_alarm=0.05)
    assert capsys.readouterr().err == ""
    scores[17] = 0.6012
    found = calibrate(held_out(detector, scores), max_false_alarm=0.05).threshold
    assert capsys.readouterr().err == (
        "warning: far above the other held-out good parts, which score 0.2440 at most: good/0017 0.6012; is it good? "
        "A defective part among them raises the threshold; calibrate without it\n"
    )
    assert found is not None
    set_by = "highest: good/0017 0.6012, then 0.2440, 0.2420; the threshold is the score of good/0017"
    assert set_by in found.explain()


def test_a_threshold_below_the_highest_score_names_its_own_part(detector: Detector) -> None:
    found = calibrate(held_out(detector, [0.4, 0.1, 0.3, 0.2]), max_false_alarm=0.4).threshold
    assert found is not None and found.value == 0.3
    assert "highest: good/0000 0.4000, then 0.3000, 0.2000; the threshold is the score of good/0002" in found.explain()


def test_parts_without_names_are_told_by_their_numbers(detector: Detector, new_parts: Path) -> None:
    unnamed = replace(detector, threshold=threshold_from([0.1, 0.9999], 0.05))
    found = calibrate(unnamed, new_parts, merge=True).threshold
    assert found is not None and found.parts == len(found.good_parts) == 9
    assert [found.good_scores[found.good_parts.index(f"part {number}")] for number in (0, 1)] == [0.1, 0.9999]
    line = found.explain()[2]
    assert line.startswith("highest: part 1 0.9999, then ") and line.endswith("; the threshold is the score of part 1")


def parts_in(folder: Path) -> list:  # type: ignore[type-arg]
    from das3d.datasets import DepthFormat, find_folder

    return find_folder(folder, depth_format=DepthFormat(1.0))


def test_another_rate_needs_no_parts(tiny_run: Runs, tmp_path: Path) -> None:
    source = tiny_run() / "model.safetensors"
    content, known = source.read_bytes(), load(source).threshold
    out = tmp_path / "loose" / "model.safetensors"
    result = das3d("calibrate", source, "--max-false-alarm", "0.5", "--out", out)
    assert result.exit_code == 0, result.output
    assert source.read_bytes() == content, "--out leaves the model as it was"
    found = load(out).threshold
    assert known is not None and found is not None
    assert found.good_scores == known.good_scores and found.synthetic_scores == known.synthetic_scores
    scores = sorted(known.good_scores)
    assert found.requested == 0.5 and found.parts == len(scores) == 2
    assert found.value == scores[-1], "of two parts, one may be above the lower one in a third of all cases, not in half"


def test_command_wants_parts_or_a_rate(tiny_run: Runs, tmp_path: Path) -> None:
    for options in ((), ("--merge",), ("--merge", "--max-false-alarm", "5%")):
        result = das3d("calibrate", tiny_run(), *options)
        assert result.exit_code == 2 and "--data GOODPARTS" in result.output


def test_exported_models_are_refused(tmp_path: Path) -> None:
    result = das3d("calibrate", tmp_path / "model.onnx", "--max-false-alarm", "5%")
    assert result.exit_code == 1
    assert "model.onnx: expected a model as it was trained, found an exported one" in result.stderr


@pytest.mark.parametrize("modality", ["rgb", "depth"])
def test_one_modality(tiny_run: Runs, new_parts: Path, modality: str) -> None:
    found = calibrate(load(tiny_run(modality), "cpu"), new_parts).threshold
    assert found is not None and found.parts == 7 and found.detected is not None


@pytest.mark.parametrize(("text", "share"), [("1%", 0.01), ("0.01", 0.01), ("12.5%", 0.125), ("99.9%", 0.999)])
def test_shares(text: str, share: float) -> None:
    assert parse_share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "0", "1", "100%", "-1%", "nan", "five", "%", "1 in 100"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=r"--max-false-alarm: expected a share such as 1% or 0\.01, found"):
        parse_share(text)


@pytest.mark.parametrize(("text", "share"), [("0", 0), ("0%", 0), ("3%", 0.03), ("1", 1), ("100%", 1)])
def test_of_what_may_change_none_and_all_are_shares_too(text: str, share: float) -> None:
    assert parse_share(text, "--max-changed", ends=True) == share
    with pytest.raises(SettingsError, match=r"--max-changed: expected a share such as 1% or 0\.01, found '101%'"):
        parse_share("101%", "--max-changed", ends=True)


def test_training_takes_the_rate(tiny_data: Path, tmp_path: Path) -> None:
    from tiny import train_tiny

    run = train_tiny(tiny_data, tmp_path / "run", "rgb", "--max-false-alarm", "40%", "--set", "training.iterations=1")
    found = load(run)
    assert found.settings.score.max_false_alarm == 0.4
    assert found.threshold is not None and found.threshold.requested == 0.4


# ------------------------------------------------------------------------------------ which parts


def test_training_parts_and_test_parts_are_left_out(
    detector: Detector, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = calibrate(detector, tiny_data)
    said = capsys.readouterr().out
    assert "left out: 4 parts of the training: the networks know them\n" in said
    assert f"left out: {2 + len(KINDS)} parts of the test: a threshold from test parts would spoil the test\n" in said
    assert found.threshold == detector.threshold and found.fingerprints == detector.fingerprints, (
        "what is left is as before"
    )


def test_without_fingerprints_the_data_set_tells_what_was_trained_on(
    detector: Detector, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = calibrate(replace(detector, fingerprints={}), tiny_data)
    told = "4 parts that the data set has for training: the model does not say which parts it was trained on"
    assert f"left out: {told}\n" in (said := capsys.readouterr()).out and not said.err.startswith("warning")
    assert found.threshold == detector.threshold


def test_without_fingerprints_a_folder_that_nobody_has_split_counts_as_a_whole(
    detector: Detector, new_parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = tmp_path / "newp" / "good"
    shutil.copytree(new_parts / "rgb", good / "rgb")
    shutil.copytree(new_parts / "xyz", good / "depth")
    declare(tmp_path / "newp")
    bare = replace(detector, fingerprints={})
    for folder in (tmp_path / "newp", good):
        found = calibrate(bare, folder)
        assert found.threshold is not None and found.threshold.parts == 7
        said = capsys.readouterr()
        assert "left out" not in said.out
        assert f"warning: {folder}: the model does not say which parts it was trained on; any of them" in said.err


def test_training_parts_are_known_wherever_they_lie(detector: Detector, tiny_data: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(tiny_data / CATEGORY / "train" / "good", tmp_path / "parts"))
    with pytest.raises(DataError, match="expected good parts that the model has not seen, found none among 4 parts"):
        calibrate(detector, copied)


def test_training_parts_are_known_in_another_format(detector: Detector, tiny_data: Path, tmp_path: Path) -> None:
    source, copied = tiny_data / CATEGORY / "train" / "good", tmp_path / "parts"
    (copied / "rgb").mkdir(parents=True)
    (copied / "depth").mkdir()
    for file in (source / "rgb").iterdir():
        Image.open(file).save(copied / "rgb" / f"{file.stem}.bmp")
    for file in (source / "xyz").iterdir():
        np.save(copied / "depth" / f"{file.stem}.npy", tifffile.imread(file))
    with pytest.raises(DataError, match="found none among 4 parts"):
        calibrate(detector, copied)


def test_a_model_of_depth_knows_its_parts_without_their_rgb(tiny_run: Runs, tiny_data: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(tiny_data / CATEGORY / "train" / "good", tmp_path / "parts"))
    for file in (copied / "rgb").iterdir():
        file.write_bytes(file.read_bytes()[:-200])
    deep = load(tiny_run("depth"), "cpu")
    with pytest.raises(DataError, match="found none among 4 parts"):
        calibrate(deep, copied)
    shutil.rmtree(copied / "rgb")
    with pytest.raises(DataError, match="found none among 4 parts"):
        calibrate(deep, copied)


def test_fingerprints_tell_parts_apart(tiny_data: Path) -> None:
    parts = find_dataset(tiny_data, CATEGORY).parts
    for some in (parts, [replace(part, rgb=None) for part in parts]):
        marks = [fingerprint_of(part) for part in some]
        assert len(set(marks)) == len(parts) and marks == [fingerprint_of(part) for part in some]


def test_exports_of_before_are_pointed_at(tiny_run: Runs, new_parts: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run(), tmp_path / "run"))
    (run / "model.onnx").write_bytes(b"exported")
    result = das3d("calibrate", run, "--max-false-alarm", "50%")
    assert result.exit_code == 0
    assert f"{run / 'model.onnx'}: exported before, so with the threshold of before" in result.stderr
    refused = das3d("calibrate", run, "--max-false-alarm", "50%", "--out", run / "model.onnx")
    assert refused.exit_code == 1 and "expected a name for a model as it was trained" in refused.stderr
    assert (run / "model.onnx").read_bytes() == b"exported"


def test_exports_are_pointed_at_whatever_the_model_is_called(tiny_run: Runs, tmp_path: Path) -> None:
    model = Path(shutil.copy(tiny_run() / "model.safetensors", tmp_path / "cover[1].safetensors"))
    for name in ("cover[1].onnx", "cover[1]_int8.xml", "cover1.onnx"):
        (tmp_path / name).write_bytes(b"exported")
    result = das3d("calibrate", model, "--max-false-alarm", "50%")
    assert result.exit_code == 0
    warned = [line for line in result.stderr.splitlines() if "exported before" in line]
    assert [name in line for name, line in zip(("cover[1].onnx", "cover[1]_int8.xml"), warned, strict=True)] == [True, True]


def test_defective_parts_are_refused(detector: Detector, tiny_data: Path) -> None:
    folder = tiny_data / CATEGORY / "test" / "dent"
    with pytest.raises(
        DataError, match=r"000\.png: expected good parts, found one that the data set around it labels 'dent'"
    ):
        calibrate(detector, folder)


def test_parts_labelled_defective_are_left_out_of_any_split(
    detector: Detector, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    category = copy_category(tiny_data, tmp_path)
    shutil.copytree(category / "test" / "dent", category / "validation" / "dent")
    found = calibrate(detector, tmp_path)
    assert "left out: 1 part labelled defective\n" in capsys.readouterr().out
    assert found.threshold == detector.threshold


def test_good_test_parts_are_left_out_even_alone(detector: Detector, tiny_data: Path) -> None:
    with pytest.raises(DataError, match="found none among 2 parts"):
        calibrate(detector, tiny_data / CATEGORY / "test" / "good")


def test_unreadable_parts_are_named(detector: Detector, new_parts: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(new_parts, tmp_path / "parts"))
    (copied / "rgb" / "003.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"003\.png: expected an RGB image, found an empty file"):
        calibrate(detector, copied)


def test_copies_and_half_measured_parts_are_left_out(
    detector: Detector, new_parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(new_parts, tmp_path / "parts"))
    for member, suffix in (("rgb", ".png"), ("xyz", ".tiff")):
        shutil.copy(folder / member / f"000{suffix}", folder / member / f"007{suffix}")
    lacking = folder / "xyz" / "001.tiff"
    points = tifffile.imread(lacking)
    points[:, : points.shape[1] // 2] = 0
    write_member(lacking, points)
    found = calibrate(detector, folder).threshold
    assert found is not None and found.parts == 6
    said = capsys.readouterr().out
    assert "left out: 1 part twice here: a copy says nothing new" in said
    assert "left out: 1 part that no verdict would be given on\n  001: expected depth on the part, found none" in said


def test_a_threshold_rests_on_parts_that_would_be_judged(
    detector: Detector, new_parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(new_parts, tmp_path / "parts"))
    lacking = folder / "xyz" / "001.tiff"
    points = tifffile.imread(lacking)
    points[:, : points.shape[1] // 2] = 0
    write_member(lacking, points)
    parts = find_folder(folder)
    found = calibrated(detector, parts, 0.05)  # as training ends
    assert found.threshold is not None and found.threshold.parts == len(parts) - 1
    assert len(found.fingerprints["held_out"]) == len(parts) - 1
    assert "warning: 001: left out of the threshold: " in capsys.readouterr().err


def test_each_part_is_read_once_for_its_mark(
    detector: Detector, new_parts: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marked: list[str] = []

    def counting(scan: Scan) -> str:
        marked.append(scan.name)
        return fingerprint_in(scan)

    monkeypatch.setattr(fingerprints, "fingerprint_in", counting)
    found = calibrate(detector, new_parts)
    assert len(marked) == len(set(marked)) == len(found.fingerprints["held_out"]) == len(find_folder(new_parts))
    marked.clear()
    settings = make_settings("demo", changes=[*CHANGES, "training.iterations=2"])
    marks = train(tiny_data, tmp_path / "run", settings=settings, device="cpu").fingerprints
    assert len(marked) == len(set(marked)) == len(marks["train"]) + len(marks["held_out"]) == 6


def test_the_rate_is_no_setting_to_change(detector: Detector, new_parts: Path) -> None:
    with pytest.raises(SettingsError, match="max_false_alarm"):
        calibrate(detector, new_parts, changes=["score.max_false_alarm=0.01"])


def test_a_category_that_is_not_there_is_refused(detector: Detector, tiny_data: Path) -> None:
    with pytest.raises(DataError, match=f"expected a category 'gland', found {CATEGORY}"):
        calibrate(detector, tiny_data, category="gland")


def test_own_parts_of_another_size_are_refused(detector: Detector, tmp_path: Path) -> None:
    own_kind(tmp_path / "good", "abc")
    declare(tmp_path)
    with pytest.raises(DataError, match="pixels as in training, found"):
        calibrate(detector, tmp_path / "good")


# ------------------------------------------------------------------------------------ parts that a service has inspected


def inspected(folder: Path, parts: Path, **changed: Any) -> list[int]:
    """Parts of a plain folder as a service keeps them, one a minute; their ids."""
    values = {
        "model": "cover", "model_hash": "ab" * 32, "engine": "none", "version": "0", "score": 0.5, "threshold": 0.5,
        "verdict": "good", "regions": [], "height": SIZE[0], "width": SIZE[1], "seconds": 0.1, "truth": "good",
    }  # fmt: skip
    kept, begin, ids = Inspections(folder), datetime.now(UTC), []
    for number, part in enumerate(parts_in(parts)):
        assert part.rgb is not None and part.depth is not None
        place = kept.new_folder()
        (place / "map.tiff").write_bytes(b"map")
        for name, file in (("rgb.png", part.rgb), ("depth.tiff", part.depth)):
            shutil.copy(file, place / name)
        row = Inspection(
            at=begin + timedelta(minutes=number), part=part.id, map="map.tiff", rgb="rgb.png", depth="depth.tiff",
            **values | changed,
        )  # fmt: skip
        ids.append(kept.record(place, row).id)
    kept.close()
    return ids


def test_inspections_marked_good_set_the_threshold_as_the_same_parts_in_a_folder_do(
    tiny_run: Runs, tiny_data: Path, detector: Detector, new_parts: Path, tmp_path: Path
) -> None:
    run, service = Path(shutil.copytree(tiny_run(), tmp_path / "run")), tmp_path / "inspections"
    ids = inspected(service, new_parts)
    inspected(service, tiny_data / CATEGORY / "test" / "dent", truth=None)
    inspected(service, tiny_data / CATEGORY / "test" / "dent", truth="defective")
    inspected(service, tiny_data / CATEGORY / "train" / "good")
    result = das3d("calibrate", run, "--inspections", service, "--device", "cpu")
    assert result.exit_code == 0, result.output
    said = result.stdout.splitlines()
    assert said[0] == "11 parts marked good, 0 of which had been judged defective"
    assert "left out: 4 parts of the training: the networks know them" in said
    found, same = load(run, "cpu"), calibrate(detector, new_parts)
    assert found.threshold is not None and same.threshold is not None
    assert found.threshold.good_scores == same.threshold.good_scores
    assert sorted(found.threshold.good_parts) == [f"inspection {id} (00{number})" for number, id in enumerate(ids)]
    assert found.fingerprints == same.fingerprints and found.calibrations[-1]["data"] == str(service)
    again = das3d("calibrate", run, "--inspections", service, "--merge")
    assert again.exit_code == 1 and "left out: 7 parts held out before" in again.stdout
    assert f"{service}: expected good parts that the model has not seen, found none among 11 parts" in again.stderr


def test_depth_of_inspections_is_read_as_it_was(detector: Detector, new_parts: Path, tmp_path: Path) -> None:
    counts = tmp_path / "counts"
    for part in parts_in(new_parts):
        assert part.rgb is not None and part.depth is not None
        depth = np.rint(tifffile.imread(part.depth)[..., 2] * 1e4).astype(np.uint16)
        write_member(counts / "depth" / f"{part.id}.tiff", depth)
        (counts / "rgb").mkdir(exist_ok=True)
        shutil.copy(part.rgb, counts / "rgb")
    form = DepthFormat(1e-4)
    values = {"depth_scale": form.scale, "depth_offset": form.offset, "depth_missing": form.missing}
    inspected(tmp_path / "inspections", counts, **values)
    parts = marked_good(detector, tmp_path / "inspections")
    found = calibrate(detector, tmp_path, parts=parts).threshold
    same = calibrate(detector, counts, depth_format=form).threshold
    assert found is not None and same is not None and found.good_scores == same.good_scores


def test_inspections_of_one_model_with_their_scans(
    detector: Detector, new_parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Inspections(tmp_path).close()
    with pytest.raises(DataError, match="expected inspections marked good, found none"):
        marked_good(detector, tmp_path)
    for model in ("nut", "bolt"):
        inspected(tmp_path, new_parts, model=model)
    with pytest.raises(DataError, match="expected inspections marked good, found those of bolt, nut; choose by --category"):
        marked_good(detector, tmp_path)
    with pytest.raises(DataError, match="marked good that screw has judged, found those of bolt, nut; choose by"):
        marked_good(detector, tmp_path, model="screw")
    assert len(marked_good(detector, tmp_path, model="nut")) == 7
    assert detector.training["category"] == CATEGORY
    inspected(tmp_path, new_parts, model=CATEGORY)
    parts = marked_good(detector, tmp_path)
    assert len(parts) == 7 and parts[0].rgb is not None
    shutil.rmtree(parts[0].rgb.parent)
    capsys.readouterr()
    assert len(marked_good(detector, tmp_path)) == 6
    assert "left out: 1 part whose scan is no longer kept\n" in capsys.readouterr().out
    for part in parts[1:]:
        assert part.rgb is not None
        shutil.rmtree(part.rgb.parent)
    with pytest.raises(DataError, match="expected inspections marked good whose scans are kept, found none"):
        marked_good(detector, tmp_path)


def test_marked_false_alarms_alone_are_warned_of(
    detector: Detector, new_parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inspected(tmp_path, new_parts, verdict="defective")
    marked_good(detector, tmp_path)
    assert capsys.readouterr().err == "", "all parts of that time were judged so"
    inspected(tmp_path, new_parts, truth=None)
    marked_good(detector, tmp_path)
    told = capsys.readouterr()
    assert told.out == "7 parts marked good, 7 of which had been judged defective\n"
    assert told.err.startswith("warning: of all 13 parts of that time 7 had been judged defective: where false alarms are")


def test_either_parts_or_inspections(tiny_run: Runs, tmp_path: Path) -> None:
    for words in (["--data", tmp_path], ["--depth-unit", "mm"], ["--light", "4"]):
        result = das3d("calibrate", tiny_run(), "--inspections", tmp_path, *words)
        assert result.exit_code == 2 and "--inspections brings its own scans" in result.output
    with pytest.raises(SettingsError, match="expected data with parts"):
        calibrate(load(tiny_run(), "cpu"), parts=[], max_false_alarm=0.1)
    result = das3d("calibrate", tiny_run(), "--inspections", tmp_path)
    assert result.exit_code == 1 and "expected the folder of a service" in result.stderr


# ------------------------------------------------------------------------------------ merging


def test_merging_adds_and_never_counts_a_part_twice(
    detector: Detector, new_parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert detector.threshold is not None
    once = calibrate(detector, new_parts, merge=True, max_false_alarm=0.1)
    assert once.threshold is not None and once.threshold.parts == 2 + 7
    assert set(detector.threshold.good_scores) < set(once.threshold.good_scores)
    for kind, scores in detector.threshold.synthetic_scores.items():
        assert once.threshold.synthetic_scores[kind][: len(scores)] == scores
    assert len(set(once.fingerprints["held_out"])) == 9
    with pytest.raises(DataError, match="found none among 7 parts"):
        calibrate(once, new_parts, merge=True)
    assert "left out: 7 parts held out before: the model keeps their scores\n" in capsys.readouterr().out
    replaced = calibrate(once, new_parts)
    assert replaced.threshold is not None and replaced.threshold.parts == 7, "without merge they take the old ones' place"


def test_a_model_without_held_out_scores_needs_parts(detector: Detector, new_parts: Path) -> None:
    bare = replace(detector, threshold=None, fingerprints={})
    for data, merge in ((None, False), (new_parts, True)):
        with pytest.raises(ModelError, match="expected a model with held-out scores, found one without"):
            calibrate(bare, data, max_false_alarm=0.1, merge=merge)
    fresh = calibrate(bare, new_parts).threshold
    assert fresh is not None and fresh.parts == 7 and fresh.requested == 0.05


def test_other_settings_of_the_score_take_new_scores(detector: Detector, new_parts: Path, tmp_path: Path) -> None:
    assert detector.settings.score.turn > 0
    once = calibrate(detector, new_parts, changes=["score.turn=0", "score.window=3"])
    assert (once.settings.score.turn, once.settings.score.window) == (0, 3)
    assert once.settings.model_copy(update={"score": detector.settings.score}) == detector.settings
    assert once.threshold is not None and once.threshold.parts == 7
    once.save(tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors", "cpu")
    scan = prepare_part(find_folder(new_parts)[0], detector.statistics, detector.settings.preparation)
    told = [one.predict_prepared([scan], regions=False)[0].score for one in (once, again, detector)]
    assert told[0] == told[1] != told[2]
    back = calibrate(once, new_parts, changes=[f"score.turn={detector.settings.score.turn}", "score.window=5"])
    assert back.threshold == calibrate(detector, new_parts).threshold


def test_old_scores_are_not_mixed_with_those_of_other_settings(detector: Detector, new_parts: Path) -> None:
    for data, merge in ((None, False), (new_parts, True)):
        with pytest.raises(ModelError, match="expected new good parts alone for other settings of the score"):
            calibrate(detector, data, merge=merge, max_false_alarm=0.1, changes=["score.turn=0"])
    with pytest.raises(SettingsError, match=r"--set synthesis\.drop=0: expected one of the score, .* take training"):
        calibrate(detector, new_parts, changes=["synthesis.drop=0"])
    with pytest.raises(SettingsError, match=r"score\.turn: .* found 90"):
        calibrate(detector, new_parts, changes=["score.turn=90"])


# ------------------------------------------------------------------------------------ synthetic defects


def test_synthetic_defects_are_the_same_every_time_and_of_one_kind_each(detector: Detector, tiny_data: Path) -> None:
    part = find_dataset(tiny_data, CATEGORY).validation[0]
    scan = prepare_part(part, detector.statistics, detector.settings.preparation)
    one, other = (harmed(scan, detector.settings, 3, 4) for _ in range(2))
    assert list(one) == ["blobs", "spots", "scratches", "shifts", "cuts", "warps"]
    for kind, scans in one.items():
        for made, again in zip(scans, other[kind], strict=True):
            assert made.mask is not None and np.count_nonzero(made.mask) >= SMALLEST
            assert np.array_equal(made.rgb, again.rgb) and np.array_equal(made.depth, again.depth)
            changed = (made.rgb != scan.rgb).any(axis=2) | (np.abs(made.depth - scan.depth) > 1e-4)
            assert changed.any(), kind
            assert not (changed & ~scan.foreground).any(), "the background stays"
    assert not np.array_equal(harmed(scan, detector.settings, 4, 4)["spots"][0].rgb, one["spots"][0].rgb)


def test_only_kinds_that_training_makes_are_tried(detector: Detector, tiny_data: Path) -> None:
    part = find_dataset(tiny_data, CATEGORY).validation[0]
    scan = prepare_part(part, detector.statistics, detector.settings.preparation)
    settings = detector.settings.model_copy(
        update={"synthesis": detector.settings.synthesis.model_copy(update={"cuts": 0.0, "blobs": 0.0})}
    )
    assert list(harmed(scan, settings, 0, 2)) == ["spots", "scratches", "shifts", "warps"]


def test_synthetic_scores_are_those_of_the_harmed_parts(detector: Detector, tiny_data: Path) -> None:
    parts = find_dataset(tiny_data, CATEGORY).validation[:1]
    found = calibrated(detector, parts, 0.5).threshold
    assert found is not None
    scan = prepare_part(parts[0], detector.statistics, detector.settings.preparation)
    for kind, scans in harmed(scan, detector.settings, 0, 4).items():
        scores = [detector.predict_prepared([made])[0].score for made in scans]
        assert found.synthetic_scores.get(kind, ()) == pytest.approx(scores, rel=1e-4)


def test_no_parts_no_threshold(detector: Detector) -> None:
    assert calibrated(detector, [], 0.1).threshold is None
