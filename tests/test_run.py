"""The run folder: what training writes, what it refuses, and how a run goes on."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from safetensors import safe_open
from tiny import CHANGES, ITERATIONS, copy_category, das3d

from das3d import __version__, training
from das3d.demo import CATEGORY
from das3d.detector import load
from das3d.errors import DataError, ModelError, SettingsError
from das3d.measurement import Statistics
from das3d.recipes import FAMILIES
from das3d.run import _alone_in, _precision_of, machine, precision_for, train
from das3d.settings import make_settings, settings_from_dict
from das3d.training import COLUMNS

Runs = Callable[..., Path]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def copied(tiny_run: Runs, tmp_path: Path) -> Path:
    """A finished run that a test may change."""
    return Path(shutil.copytree(tiny_run(), tmp_path / "run"))


# ------------------------------------------------------------------------------------ what is written


def test_run_folder_holds_what_explains_the_model(tiny_run: Runs) -> None:
    assert set(contents(tiny_run())) == {
        "settings.toml", "training.json", "losses.csv", "checkpoint.pt", "model.safetensors",
        "pictures/training_pairs.png", f"pictures/repair_{ITERATIONS:06d}.png",
    }  # fmt: skip


@pytest.mark.parametrize("modality", ["rgb+depth", "rgb", "depth"])
def test_settings_read_back_equal(tiny_run: Runs, modality: str) -> None:
    asked = make_settings("demo", modality=modality, changes=CHANGES)  # type: ignore[arg-type]
    assert make_settings(file=tiny_run(modality) / "settings.toml") == asked
    assert load(tiny_run(modality)).settings == asked


def test_losses_are_logged_to_the_last_iteration(tiny_run: Runs) -> None:
    with (tiny_run() / "losses.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert int(rows[-1]["iteration"]) == int(rows[-1]["of"]) == ITERATIONS
    assert all(float(rows[-1][name]) > 0 for name in COLUMNS if name.startswith("loss"))


def test_checkpoint_and_pictures_open(tiny_run: Runs) -> None:
    assert torch.load(tiny_run() / "checkpoint.pt", weights_only=True)["iteration"] == ITERATIONS
    for picture in (tiny_run() / "pictures").iterdir():
        pixels = np.asarray(Image.open(picture))
        assert pixels.ndim == 3 and pixels.std() > 5, picture


def test_model_file_tells_all_that_a_verdict_needs(tiny_run: Runs) -> None:
    with safe_open(tiny_run() / "model.safetensors", framework="pt") as opened:
        about = json.loads(opened.metadata()["das3d"])
    assert about["version"] == __version__
    assert settings_from_dict(about["settings"]) == make_settings(file=tiny_run() / "settings.toml")
    assert Statistics.from_dict(about["statistics"]).frame == (64, 80)
    assert len(about["threshold"]["good_parts"]) == len(about["threshold"]["good_scores"]) == 2
    assert set(about["threshold"]["synthetic_scores"]) == set(FAMILIES)
    assert {name: len(set(marks)) for name, marks in about["fingerprints"].items()} == {"train": 4, "held_out": 2}
    assert about["training"] == json.loads((tiny_run() / "training.json").read_text())


def test_training_facts(tiny_run: Runs, tiny_data: Path) -> None:
    facts = json.loads((tiny_run() / "training.json").read_text())
    expected = {
        "data": str(tiny_data / CATEGORY), "layout": "mvtec3d", "category": CATEGORY, "light": None, "parts": 4,
        "held_out": 2, "iterations": ITERATIONS, "batch": 4, "precision": "32-true", "device": "cpu x 1",
        "depth_format": {"scale": 1.0, "offset": 0.0, "missing": None, "focal_length": None}, "das3d": __version__,
    }  # fmt: skip
    if torch.cuda.is_available():
        del expected["device"]
    assert {name: facts[name] for name in expected} == expected
    assert facts["minutes"] >= 0 and facts["machine"] and facts["torch"] == torch.__version__


def test_threshold_lies_between_the_held_out_parts(tiny_run: Runs, tiny_data: Path) -> None:
    detector = load(tiny_run(), "cpu")
    assert detector.threshold is not None
    scores = [
        detector.predict(np.asarray(Image.open(rgb)), tifffile.imread(rgb.parents[1] / "xyz" / f"{rgb.stem}.tiff")).score
        for rgb in sorted((tiny_data / CATEGORY / "validation" / "good" / "rgb").iterdir())
    ]
    # Two parts support no rate below a third, so the threshold is the higher of their scores.
    assert detector.threshold.value == pytest.approx(max(scores), rel=1e-5)
    assert detector.threshold.false_alarm_rate == pytest.approx(1 / 3)


def test_detector_returned_is_the_detector_saved(tiny_data: Path, tmp_path: Path) -> None:
    settings = make_settings("demo", changes=[*CHANGES, "training.iterations=2"])
    returned = train(tiny_data, tmp_path / "run", settings=settings, device="cpu")
    saved = load(tmp_path / "run", "cpu")
    part = tiny_data / CATEGORY / "test" / "dent"
    rgb, points = np.asarray(Image.open(part / "rgb" / "000.png")), tifffile.imread(part / "xyz" / "000.tiff")
    one, other = returned.predict(rgb, points), saved.predict(rgb, points)
    assert one.score == other.score and np.array_equal(one.map, other.map) and one.defective == other.defective
    assert returned.training == saved.training and returned.statistics == saved.statistics


# ------------------------------------------------------------------------------------ what is refused


def test_two_trainings_do_not_write_into_one_folder(tiny_data: Path, tmp_path: Path) -> None:
    settings = make_settings("demo", changes=[*CHANGES, "training.iterations=2"])
    out = tmp_path / "run"
    with _alone_in(out, resume=False), pytest.raises(ModelError, match="another training writes there"):
        train(tiny_data, out, settings=settings, device="cpu")
    assert not out.exists()
    assert train(tiny_data, out, settings=settings, device="cpu").training["iterations"] == 2


def test_the_data_is_known_from_any_place(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_data)
    settings = make_settings("demo", changes=[*CHANGES, "training.iterations=2"])
    detector = train(CATEGORY, tmp_path / "run", settings=settings, device="cpu")
    assert Path(detector.training["data"]) == tiny_data / CATEGORY


def test_existing_run_is_refused_and_untouched(copied: Path, tiny_data: Path) -> None:
    before = contents(copied)
    with pytest.raises(ModelError, match="already holds a run; continue it with --resume or choose another --out"):
        train(tiny_data, copied, settings=make_settings("demo"))
    (copied / "model.safetensors").unlink()  # a run that was stopped is a run as well
    with pytest.raises(ModelError, match="already holds a run"):
        train(tiny_data, copied, settings=make_settings("demo"))
    (copied / "model.safetensors").write_bytes(before["model.safetensors"])
    assert contents(copied) == before


def test_file_in_place_of_the_run_folder_is_refused(tiny_data: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(ModelError, match="run: expected a folder for the run, found a file"):
        train(tiny_data, tmp_path / "run")
    assert (tmp_path / "run").read_text() == "mine"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"budget": "20m"}, "budget: expected a number of seconds above 0, found '20m'"),
        ({"budget": -60}, "budget: expected a number of seconds above 0, found -60"),
        ({"budget": 0}, "budget: expected a number of seconds above 0, found 0"),
        ({"budget": math.nan}, "budget: expected a number of seconds above 0, found nan"),
        ({"budget": math.inf}, "budget: expected a number of seconds above 0, found inf"),
        ({"processes": 0}, "processes: expected a whole number above 0, found 0"),
        ({"processes": 1.5}, "processes: expected a whole number above 0, found 1.5"),
        ({"settings": {"preset": "demo"}}, "settings: expected Settings, as make_settings gives, found dict"),
    ],
)
def test_what_cannot_work_is_told_before_any_part_is_prepared(
    given: dict[str, Any], message: str, tiny_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError) as caught:
        train(tiny_data, tmp_path / "run", **given)
    assert str(caught.value) == message and not (tmp_path / "run").exists()


def test_bad_data_leaves_no_run_behind(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a folder, found nothing there"):
        train(tmp_path / "nothing", tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------ going on


def test_a_finished_run_is_returned_as_it_is(copied: Path, tiny_data: Path) -> None:
    from das3d.calibration import calibrate

    calibrate(load(copied, "cpu"), max_false_alarm=0.5).save(copied / "model.safetensors")
    before, known = contents(copied), load(copied).threshold
    assert train(tiny_data, copied, device="cpu", resume=True).threshold == known
    assert contents(copied) == before
    (copied / "checkpoint.pt").unlink()
    assert train(tiny_data, copied, device="cpu", resume=True).threshold == known
    assert contents(copied) == {name: content for name, content in before.items() if name != "checkpoint.pt"}


def test_a_run_without_its_model_resumes_to_the_same_weights_by_its_own_settings(copied: Path, tiny_data: Path) -> None:
    before = contents(copied)
    finished = load(copied, "cpu")
    (copied / "model.safetensors").unlink()
    resumed = train(tiny_data, copied, device="cpu", resume=True)  # no settings given
    weights, other = finished.network.state_dict(), resumed.network.state_dict()
    assert all(torch.equal(weights[name], other[name]) for name in weights)
    assert resumed.settings == finished.settings and resumed.threshold == finished.threshold
    assert {name for name, content in contents(copied).items() if content != before[name]} <= {
        "checkpoint.pt", "model.safetensors", "training.json"  # facts of the machine may differ
    }  # fmt: skip


def test_resume_by_other_settings_names_them_and_keeps_the_file(copied: Path, tiny_data: Path) -> None:
    before = contents(copied)
    other = make_settings("demo", seed=3, changes=[*CHANGES, "synthesis.drop=0.25"])
    with pytest.raises(ModelError) as caught:
        train(tiny_data, copied, settings=other, resume=True)
    assert str(caught.value) == (
        f"{copied / 'settings.toml'}: expected the settings that the run began with, found seed 3 instead of 0, "
        f"synthesis.drop 0.25 instead of {make_settings().synthesis.drop}; use a new folder"
    )
    assert contents(copied) == before


def test_a_run_of_a_version_that_knew_less_is_not_gone_on_with(copied: Path, tiny_data: Path) -> None:
    finished = load(copied)
    text = (copied / "settings.toml").read_text()
    old = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("coarse_first"))
    assert old != text
    (copied / "settings.toml").write_text(old)
    assert train(tiny_data, copied, resume=True).threshold == finished.threshold  # there is nothing left to train
    (copied / "model.safetensors").unlink()
    before = contents(copied)
    with pytest.raises(ModelError, match=r"settings\.toml: expected all settings .* found none of network\.coarse_first: "):
        train(tiny_data, copied, resume=True)
    assert contents(copied) == before


def test_resume_on_other_data_names_the_difference(copied: Path, tiny_data: Path, tmp_path: Path) -> None:
    category = copy_category(tiny_data, tmp_path / "moved")
    train(category, copied, device="cpu", resume=True)  # moved is not changed
    (copied / "model.safetensors").unlink()
    assert train(category, copied, device="cpu", resume=True).training["data"] == str(category)
    for member in ("rgb/003.png", "xyz/003.tiff"):
        (category / "train" / "good" / member).unlink()
    with pytest.raises(
        ModelError, match=r"training\.json: expected the data .* found parts 3 instead of 4; use a new folder"
    ):
        train(category, copied, device="cpu", resume=True)


def test_resume_on_other_scans_of_the_same_names_is_refused(copied: Path, tiny_data: Path, tmp_path: Path) -> None:
    category = copy_category(tiny_data, tmp_path / "changed")
    (copied / "model.safetensors").unlink()
    before = contents(copied)
    began = json.loads(before["training.json"])["content"]
    for split in ("train", "validation"):  # in any of the two
        file = category / split / "good" / "rgb" / "000.png"
        original = file.read_bytes()
        file.write_bytes((category / "test" / "good" / "rgb" / "000.png").read_bytes())
        with pytest.raises(
            ModelError, match=r"training\.json: expected the scans that the run began with, found "
        ) as caught:
            train(category, copied, device="cpu", resume=True)
        assert str(caught.value).endswith(f" instead of {began!r}; use a new folder")
        assert contents(copied) == before
        file.write_bytes(original)
    facts = json.loads(before["training.json"])
    del facts["content"]
    (copied / "training.json").write_text(json.dumps(facts))  # as an earlier version wrote it
    assert train(category, copied, device="cpu", resume=True).training["content"] == began


def test_a_finished_run_comes_back_before_any_part_is_prepared(
    copied: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("prepared parts")

    monkeypatch.setattr("das3d.run.prepare_dataset", fail)
    assert train(tiny_data, copied, device="cpu", resume=True).threshold == load(copied).threshold


def test_a_training_whose_parts_go_away_meanwhile_still_knows_them(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    category = copy_category(tiny_data, tmp_path)

    def fit_and_lose(*args: object, **options: object) -> object:
        state = fit(*args, **options)  # type: ignore[arg-type]
        shutil.rmtree(category / "train")
        return state

    fit = training.fit
    monkeypatch.setattr("das3d.run.training.fit", fit_and_lose)
    settings = make_settings("demo", changes=[*CHANGES, "training.iterations=1"])
    train(category, tmp_path / "run", settings=settings, device="cpu")
    assert len(set(load(tmp_path / "run").fingerprints["train"])) == 4


def test_resume_keeps_the_precision_of_the_run(tiny_data: Path, tmp_path: Path) -> None:
    changes = [*CHANGES, "training.iterations=1", "training.precision=auto"]
    first = train(tiny_data, tmp_path, settings=make_settings("demo", changes=changes), device="cpu")
    other = {"32-true": "bf16-mixed", "bf16-mixed": "32-true"}[first.training["precision"]]
    facts = json.loads((tmp_path / "training.json").read_text())
    (tmp_path / "training.json").write_text(json.dumps(facts | {"precision": other}))
    (tmp_path / "model.safetensors").unlink()
    assert train(tiny_data, tmp_path, device="cpu", resume=True).training["precision"] == other


def test_a_precision_that_is_set_is_the_one_whatever_was_tried_before(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As for a worker that reads the facts of an attempt before, which the first process has yet to replace.
    (tmp_path / "training.json").write_text(json.dumps({"precision": "bf16-mixed"}))
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert _precision_of(tmp_path, make_settings(changes=["training.precision=float32"]), resume=False) is None
    assert _precision_of(tmp_path, make_settings(), resume=False) == "bf16-mixed"


def test_resume_without_a_run_begins_one(tiny_data: Path, tmp_path: Path) -> None:
    settings = make_settings("demo", changes=[*CHANGES, "training.iterations=1"])
    assert train(tiny_data, tmp_path / "new", settings=settings, resume=True, device="cpu:0").training["iterations"] == 1
    changes = [word for change in [*CHANGES, "training.iterations=1"] for word in ("--set", change)]
    result = das3d("train", tiny_data, "--out", tmp_path / "other", "--preset", "demo", *changes, "--resume")
    assert f"{tmp_path / 'other'}: no checkpoint there, so a new training begins\n" in result.stdout


def test_resume_without_a_run_begins_none_among_the_parts(tiny_data: Path) -> None:
    out = tiny_data / CATEGORY / "test" / "run"
    with pytest.raises(DataError, match="expected a folder outside the data to write to"):
        train(tiny_data, out, resume=True, device="cpu")
    assert not out.exists()


def test_a_device_without_memory_is_told_in_a_line(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB\nand so on")

    monkeypatch.setattr("das3d.run.train", full)
    result = das3d("train", tiny_data, "--out", tmp_path / "run")
    assert result.exit_code == 1 and result.stderr.startswith("error: the device has too little memory; a smaller")


def test_a_numbered_device_is_one(tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="device: expected one without a number for 2 processes, found cpu:0"):
        train(tiny_data, tmp_path / "run", device="cpu:0", processes=2)


# ------------------------------------------------------------------------------------ around it


def test_the_users_data_is_only_read(tiny_data: Path, tmp_path: Path) -> None:
    category = copy_category(tiny_data, tmp_path / "data")
    before = {path: path.stat().st_mtime_ns for path in category.parent.rglob("*")}
    settings = make_settings("demo", changes=[*CHANGES, "training.iterations=1"])
    train(category, tmp_path / "run", settings=settings, device="cpu")
    assert das3d("evaluate", tmp_path / "run", "--data", category).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in category.parent.rglob("*")} == before


def test_precision_and_machine() -> None:
    cpu = torch.device("cpu")
    for name, expected in (("float32", "32-true"), ("bfloat16", "bf16-mixed")):
        assert precision_for(cpu, make_settings(changes=[f"training.precision={name}"])) == expected
    assert precision_for(cpu, make_settings()) in ("32-true", "bf16-mixed")
    threads = torch.get_num_threads()
    assert machine(cpu).endswith(", 1 thread" if threads == 1 else f", {threads} threads")
