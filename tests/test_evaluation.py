"""Evaluation: figures that can be computed again from the files it writes, for every modality and odd test sets."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import tifffile
from helpers import metrics_of, scores_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import roc_auc_score
from tiny import SIZE, copy_category, das3d, train_tiny

from das3d import __version__
from das3d.demo import CATEGORY, KINDS, make_demo
from das3d.detector import Prediction, load
from das3d.errors import DataError
from das3d.evaluation import evaluate
from das3d.files import METRES
from das3d.metrics import aupro
from das3d.parts import Part
from das3d.report.evaluated import evaluated_parts, read_evaluation
from das3d.streaming import Inspected, write_scores
from das3d.threshold import SAME, threshold_from
from das3d.window import Window

Runs = Callable[..., Path]
MODALITIES = ["rgb+depth", "rgb", "depth"]
FIGURES = ["i_auroc", "p_auroc", "aupro_30", "aupro_10", "aupro_05", "aupro_01"]
GOOD_PARTS, DEFECTIVE_PARTS = 2, len(KINDS)


@pytest.fixture(scope="module")
def evaluated(tiny_run: Runs, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The evaluation folder of a modality, written through the command line."""
    done: dict[str, Path] = {}

    def folder(modality: str) -> Path:
        if modality not in done:
            out = tmp_path_factory.mktemp("evaluation")
            result = das3d("evaluate", tiny_run(modality), "--data", tiny_data, "--out", out)
            assert result.exit_code == 0, result.output
            done[modality] = out
        return done[modality]

    return folder


def map_of(folder: Path, row: dict[str, str]) -> NDArray[np.float32]:
    return np.asarray(tifffile.imread(folder / "maps" / f"{row['id'].replace('/', '_')}.tiff"))


def truth_of(row: dict[str, str]) -> NDArray[np.bool_]:
    rgb = Path(row["path"])
    return np.asarray(Image.open(rgb.parents[1] / "gt" / rgb.name)) > 0


# ------------------------------------------------------------------------------------ what is written


@pytest.mark.parametrize("modality", MODALITIES)
def test_metrics_hold_the_figures_and_what_they_rest_on(
    evaluated: Callable[[str], Path], tiny_data: Path, modality: str
) -> None:
    metrics = metrics_of(evaluated(modality))
    for name in FIGURES:
        assert 0 <= metrics[name] <= 1, name
    expected = {
        "n_good": GOOD_PARTS, "n_defective": DEFECTIVE_PARTS, "map_size": [list(SIZE)], "data": str(tiny_data / CATEGORY),
        "layout": "mvtec3d", "category": CATEGORY, "modality": modality, "preset": "demo", "seed": 0, "notes": [],
        "das3d": __version__,
    }  # fmt: skip
    assert {name: metrics[name] for name in expected} == expected
    assert set(metrics["per_defect"]) == set(KINDS)
    assert metrics["training"]["parts"] == 4


def test_scores_name_every_test_part(evaluated: Callable[[str], Path], tiny_data: Path) -> None:
    rows = scores_of(evaluated("rgb+depth"))
    assert list(rows[0]) == ["id", "path", "label", "defect", "score", "false_alarm_probability"]
    folders = sorted(path for path in (tiny_data / CATEGORY / "test").iterdir())
    expected = [
        (f"test/{kind.name}/{rgb.stem}", str(rgb), "0" if kind.name == "good" else "1", kind.name)
        for kind in folders
        for rgb in sorted((kind / "rgb").iterdir())
    ]
    assert [(row["id"], row["path"], row["label"], row["defect"]) for row in rows] == expected
    assert len({row["score"] for row in rows}) > 1 and all(0 < float(row["score"]) < 1 for row in rows)


def test_maps_and_overlays_have_the_size_of_the_parts(evaluated: Callable[[str], Path]) -> None:
    folder = evaluated("rgb+depth")
    for row in scores_of(folder):
        found = map_of(folder, row)
        assert found.dtype == np.float32 and found.shape == SIZE
        assert 0 <= found.min() < found.max() <= 1
        overlay = np.asarray(Image.open(folder / "maps" / f"{row['id'].replace('/', '_')}.png"))
        assert overlay.shape == (*SIZE, 3) and overlay.dtype == np.uint8
    files = {path.suffix for path in (folder / "maps").iterdir()}
    assert files == {".tiff", ".png"} and len(list((folder / "maps").iterdir())) == 2 * (GOOD_PARTS + DEFECTIVE_PARTS)


# ------------------------------------------------------------------------------------ figures from the files alone


@pytest.mark.parametrize("modality", MODALITIES)
def test_figures_equal_scikit_learn_on_the_written_files(evaluated: Callable[[str], Path], modality: str) -> None:
    folder = evaluated(modality)
    metrics, rows = metrics_of(folder), scores_of(folder)
    labels, scores = [int(row["label"]) for row in rows], [float(row["score"]) for row in rows]
    assert metrics["i_auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    for kind, value in metrics["per_defect"].items():
        of_kind = [row["defect"] in (kind, "good") for row in rows]
        chosen = [pair for pair, use in zip(zip(labels, scores, strict=True), of_kind, strict=True) if use]
        assert value == pytest.approx(roc_auc_score(*zip(*chosen, strict=True)), abs=1e-12)

    maps, truths = [map_of(folder, row) for row in rows], [truth_of(row) for row in rows]
    pixels = roc_auc_score(np.concatenate(truths, axis=None), np.concatenate(maps, axis=None))
    assert metrics["p_auroc"] == pytest.approx(pixels, abs=1e-12)
    areas = aupro(maps, truths)  # held against its definition in test_metrics
    assert [metrics[name] for name in FIGURES[2:]] == [areas[limit] for limit in (0.3, 0.1, 0.05, 0.01)]


def test_shares_at_the_threshold_follow_from_the_scores(evaluated: Callable[[str], Path]) -> None:
    metrics, rows = metrics_of(evaluated("rgb+depth")), scores_of(evaluated("rgb+depth"))
    above = {
        label: [float(r["score"]) - SAME > metrics["threshold"]["value"] for r in rows if r["label"] == label]
        for label in "01"
    }
    assert metrics["false_alarms"] == pytest.approx(np.mean(above["0"]))
    assert metrics["detected"] == pytest.approx(np.mean(above["1"]))


@given(st.floats(0, 1, width=32))
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_scores_come_back_exactly_from_the_file(tmp_path: Path, score: float) -> None:
    # Were they rounded, a tie in the file would hide an order that counted in the figures.
    part = Part("test/good/000", "test", "good", Path("000.png"), None)
    prediction = Prediction("000.png", score, np.zeros((0, 0), np.float32), Window.square(0, 0, 0, (0, 0)), None)
    write_scores(tmp_path / "scores.csv", [Inspected(part, prediction)], verdicts=False)
    assert np.float32(scores_of(tmp_path)[0]["score"]) == np.float32(score)


# ------------------------------------------------------------------------------------ odd test sets


def test_defective_part_without_a_mask_counts_for_parts_only(
    tiny_run: Runs, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    category = copy_category(tiny_data, tmp_path)
    shutil.rmtree(category / "test" / "dent" / "gt")
    detector = load(tiny_run())
    whole, without = (evaluate(detector, data, tmp_path / str(i)) for i, data in enumerate((tiny_data, category)))
    assert not capsys.readouterr().err.count("the file is replaced")
    evaluate(detector, category, tmp_path / "0")
    held = f"{tmp_path / '0' / 'scores.csv'} holds {GOOD_PARTS + DEFECTIVE_PARTS} other parts; the file is replaced"
    assert held in capsys.readouterr().err
    assert without["notes"] == [
        f"no mask for 1 of {DEFECTIVE_PARTS} defective parts, left out of pixel metrics: test/dent/000"
    ]
    assert without["i_auroc"] == whole["i_auroc"] and without["per_defect"] == whole["per_defect"]
    rows = [row for row in scores_of(tmp_path / "1") if row["defect"] != "dent"]
    assert len(rows) == GOOD_PARTS + DEFECTIVE_PARTS - 1
    truths, maps = [truth_of(row) for row in rows], [map_of(tmp_path / "1", row) for row in rows]
    expected = roc_auc_score(np.concatenate(truths, axis=None), np.concatenate(maps, axis=None))
    assert without["p_auroc"] == pytest.approx(expected, abs=1e-12)


def test_test_set_without_defects_gives_false_alarms_only(tiny_run: Runs, tiny_data: Path, tmp_path: Path) -> None:
    category = copy_category(tiny_data, tmp_path)
    for kind in KINDS:
        shutil.rmtree(category / "test" / kind)
    result = das3d("evaluate", tiny_run(), "--data", category, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    metrics = metrics_of(tmp_path / "out")
    assert all(metrics[name] is None for name in FIGURES)
    assert metrics["false_alarms"] is not None and metrics["detected"] is None
    assert "I-AUROC: expected both good and defective parts, found 2 good and 0 defective" in metrics["notes"]
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert [line.split()[-1] for line in lines if line.startswith(("I-AUROC", "P-AUROC", "defective found"))] == ["-"] * 3
    assert [line for line in lines if line.startswith("note")] == [f"note: {note}" for note in metrics["notes"]]


def test_test_set_without_good_parts(tiny_run: Runs, tiny_data: Path, tmp_path: Path) -> None:
    category = copy_category(tiny_data, tmp_path)
    shutil.rmtree(category / "test" / "good")
    result = das3d("evaluate", tiny_run(), "--data", category, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    metrics = metrics_of(tmp_path / "out")
    assert metrics["i_auroc"] is None and set(metrics["per_defect"].values()) == {None}
    assert metrics["p_auroc"] is not None, "there are good pixels beside the defects"
    assert metrics["false_alarms"] is None and metrics["detected"] is not None


def test_depth_alone_needs_no_rgb_files(tiny_run: Runs, tiny_data: Path, tmp_path: Path) -> None:
    category = copy_category(tiny_data, tmp_path)
    for folder in list(category.rglob("rgb")):
        shutil.rmtree(folder)
    detector = load(tiny_run("depth"))
    without = evaluate(detector, category, tmp_path / "out")
    whole = evaluate(detector, tiny_data, tmp_path / "whole")
    assert {name: without[name] for name in FIGURES} == {name: whole[name] for name in FIGURES}
    assert scores_of(tmp_path / "out")[0]["path"].endswith("xyz/000.tiff")


def test_the_category_trained_on_is_taken_where_there_are_several(tiny_run: Runs, tiny_data: Path, tmp_path: Path) -> None:
    category = copy_category(tiny_data, tmp_path)
    (tmp_path / "another").symlink_to(category)
    detector = load(tiny_run())
    assert evaluate(detector, tmp_path, tmp_path / "out")["category"] == CATEGORY
    chosen = evaluate(detector, tmp_path, tmp_path / "out", category="another")
    assert chosen["data"] == str(tmp_path / "another")
    with pytest.raises(DataError, match="expected category 'third', found another, moulded_cover"):
        evaluate(detector, tmp_path, tmp_path / "out", category="third")


def test_a_folder_that_nobody_has_split_is_tested_whole_by_a_model_that_has_not_seen_it(
    tiny_run: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_demo(tmp_path / "demo", train=0, validation=0, good=12, defective=1, size=SIZE, seed=7) / CATEGORY / "test"
    folder = tmp_path / "fresh"
    shutil.copytree(made, folder)
    metrics = evaluate(load(tiny_run(), "cpu"), folder, tmp_path / "out", depth_format=METRES)
    assert (metrics["n_good"], metrics["n_defective"]) == (12, len(KINDS))
    assert "tested too: " in capsys.readouterr().out
    parts = evaluated_parts(load(tiny_run(), "cpu"), read_evaluation(tmp_path / "out"), None)  # type: ignore[arg-type]
    assert {row["id"] for row in scores_of(tmp_path / "out")} <= set(parts)


def test_what_is_written_does_not_go_among_the_parts(tiny_run: Runs, tiny_data: Path) -> None:
    with pytest.raises(DataError, match="expected a folder outside the data to write to"):
        evaluate(load(tiny_run(), "cpu"), tiny_data, tiny_data / CATEGORY / "test")


def test_no_test_parts(tiny_run: Runs, tiny_data: Path, tmp_path: Path) -> None:
    category = copy_category(tiny_data, tmp_path)
    shutil.rmtree(category / "test")
    with pytest.raises(DataError, match="moulded_cover: expected test parts, found only 6 of other splits"):
        evaluate(load(tiny_run()), category, tmp_path / "out")


def break_parts(category: Path, kinds: Sequence[str]) -> list[Path]:
    broken = [path for kind in kinds for path in sorted((category / "test" / kind / "rgb").iterdir())]
    for path in broken:
        path.write_bytes(path.read_bytes()[:-200])  # the header is whole, so it shows only when it is read
    return broken


def test_broken_parts_are_named_and_figures_are_those_of_the_others(
    tiny_run: Runs, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    category = copy_category(tiny_data, tmp_path)
    broken = break_parts(category, ("dent", "stain"))
    metrics = evaluate(load(tiny_run()), category, tmp_path / "out")
    assert (metrics["n_good"], metrics["n_defective"]) == (GOOD_PARTS, DEFECTIVE_PARTS - len(broken))
    count = GOOD_PARTS + DEFECTIVE_PARTS
    assert f"{len(broken)} of {count} parts could not be judged: test/dent/000, test/stain/000" in metrics["notes"]
    warned = capsys.readouterr().err
    assert all(f"warning: not judged: {path}: " in warned for path in broken)
    rows = scores_of(tmp_path / "out")
    assert len(rows) == count - len(broken)
    alone = copy_category(tiny_data, tmp_path / "alone")
    for kind in ("dent", "stain"):
        shutil.rmtree(alone / "test" / kind)
    assert evaluate(load(tiny_run()), alone, tmp_path / "b")["i_auroc"] == metrics["i_auroc"]


def test_a_good_part_that_cannot_be_read_costs_no_figures(tiny_run: Runs, tiny_data: Path, tmp_path: Path) -> None:
    category = copy_category(tiny_data, tmp_path)
    rgb = category / "test" / "good" / "rgb" / "000.png"
    rgb.write_bytes(rgb.read_bytes()[:-200])
    header = category / "test" / "dent" / "xyz" / "000.tiff"
    header.write_bytes(b"")
    (category / "train" / "good" / "rgb" / "000.png").write_bytes(b"")  # which evaluation never looks at
    metrics = evaluate(load(tiny_run()), category, tmp_path / "out")
    assert (metrics["n_good"], metrics["n_defective"]) == (GOOD_PARTS - 1, DEFECTIVE_PARTS - 1)
    assert any("2 of 8 parts could not be judged" in note for note in metrics["notes"]), metrics["notes"]


def test_where_defects_came_later_no_part_of_the_training_is_tested(tiny_data: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    for split in ("train", "validation"):
        for folder in ("rgb", "xyz"):
            for file in (tiny_data / CATEGORY / split / "good" / folder).iterdir():
                (mine / "good" / folder).mkdir(parents=True, exist_ok=True)
                shutil.copy(file, mine / "good" / folder / f"{split}{file.name}")
    (mine / "dataset.yaml").write_text("depth_unit: m")
    detector = load(train_tiny(mine, tmp_path / "run"))
    shutil.copytree(tiny_data / CATEGORY / "test" / "dent", mine / "dent")
    shutil.move(mine / "dent" / "gt", mine / "dent" / "mask")
    metrics = evaluate(detector, mine, tmp_path / "out")
    trained_on, held_out = (detector.fingerprints[seen] for seen in ("train", "held_out"))
    assert len(trained_on) + len(held_out) == 6 and metrics["n_good"] == len(held_out)
    assert any("those that the threshold rests on" in note for note in metrics["notes"]), metrics["notes"]
    assert not any("among those trained on" in note for note in metrics["notes"])

    first = min((mine / "good" / "rgb").iterdir())
    first.write_bytes(first.read_bytes()[:-200])  # whoever cannot be read is no part that training has not seen
    again = evaluate(detector, mine, tmp_path / "again")
    assert 0 < again["n_good"] <= len(held_out)


def test_parts_that_would_get_no_verdict_are_told(tiny_run: Runs, tiny_data: Path, tmp_path: Path) -> None:
    category = copy_category(tiny_data, tmp_path)
    file = category / "test" / "good" / "xyz" / "000.tiff"
    points = tifffile.imread(file)
    points[:, : points.shape[1] // 2] = 0
    tifffile.imwrite(file, points, photometric="minisblack", planarconfig="contig")
    metrics = evaluate(load(tiny_run()), category, tmp_path / "out")
    assert metrics["n_good"] == GOOD_PARTS
    assert any("1 of 8 parts would get no verdict, such as test/good/000" in note for note in metrics["notes"])


@pytest.mark.parametrize(
    ("held_out", "value", "told"),
    [(99, 0.0, True), (99, 1.0, False), (9, 0.0, False)],
    ids=["alarms", "none", "few held out"],
)
def test_more_false_alarms_than_chance_explains_are_noted(
    tiny_run: Runs, tiny_data: Path, tmp_path: Path, held_out: int, value: float, told: bool
) -> None:
    detector = load(tiny_run(), "cpu")
    detector.threshold = threshold_from([value] * held_out, 1 / (held_out + 1))
    metrics = evaluate(detector, tiny_data, tmp_path / "out")
    assert metrics["false_alarms"] == 1 - value
    notes = [note for note in metrics["notes"] if "good parts have changed" in note]
    assert len(notes) == told
    if told:  # both parts beyond the highest of 99
        assert notes[0].startswith("2 of 2 good parts lie above the threshold, ") and "a probability of 0.0002:" in notes[0]


def test_without_a_good_or_a_defective_part_that_can_be_judged_there_are_no_figures(
    tiny_run: Runs, tiny_data: Path, tmp_path: Path
) -> None:
    category = copy_category(tiny_data, tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / "metrics.json").write_text("{}")
    broken = break_parts(category, ["good"])
    with pytest.raises(DataError) as caught:
        evaluate(load(tiny_run()), category, out)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [str(path) for path in broken]
    assert not (out / "metrics.json").exists(), "figures of before do not belong to the maps of now"


# ------------------------------------------------------------------------------------ the command


def test_report_goes_beside_the_model_and_to_standard_output(tiny_run: Runs, tiny_data: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run(), tmp_path / "run"))
    result = das3d("evaluate", run / "model.safetensors", "--data", tiny_data)
    metrics = metrics_of(run / "evaluation")
    lines = result.stdout.splitlines()
    assert lines[0] == (
        f"{CATEGORY}, rgb+depth: {GOOD_PARTS} good and {DEFECTIVE_PARTS} defective parts, maps at {SIZE[1]} x {SIZE[0]}"
    )
    shown = dict(line.strip().rsplit(maxsplit=1) for line in lines[1:-1])
    assert shown["I-AUROC"] == f"{metrics['i_auroc']:.4f}" and shown["AU-PRO@0.01"] == f"{metrics['aupro_01']:.4f}"
    assert shown["I-AUROC dent"] == f"{metrics['per_defect']['dent']:.4f}"
    assert shown["defective found at threshold"] == f"{metrics['detected']:.1%}"
    assert lines[-1] == f"written to {run / 'evaluation'}; computed by PyTorch, fp32, CPU"
    assert result.stderr == ""


def test_training_parts_in_the_test_and_inverted_masks_are_noted(tiny_run: Runs, tiny_data: Path, tmp_path: Path) -> None:
    category = copy_category(tiny_data, tmp_path)
    for member, suffix in (("rgb", "png"), ("xyz", "tiff")):
        shutil.copy(
            category / "train" / "good" / member / f"001.{suffix}", category / "test" / "good" / member / f"900.{suffix}"
        )
    kind = sorted(KINDS)[0]
    mask = category / "test" / kind / "gt" / "000.png"
    Image.fromarray(255 - np.asarray(Image.open(mask))).save(mask)
    good_mask = category / "test" / "good" / "gt"
    if good_mask.is_dir():
        Image.fromarray(np.zeros(SIZE, np.uint8)).save(good_mask / "900.png")
    notes = " ".join(evaluate(load(tiny_run(), "cpu"), tmp_path, tmp_path / "out")["notes"])
    assert "1 good test parts are among those trained on, such as test/good/900" in notes
    assert f"mask over most of the picture for 1 of {DEFECTIVE_PARTS} defective parts (inverted?): test/{kind}/000" in notes
