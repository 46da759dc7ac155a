"""Benchmarks: every combination once, tables that can be computed again, and what is refused."""

from __future__ import annotations

import json
import shutil
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import rows_of
from PIL import Image
from tiny import CHANGES, copy_category, das3d

from das3d.benchmark import Outcome, Plan, Run, Variant, picture, read_variants
from das3d.benchmark.published import MEAN, published_for
from das3d.benchmark.tables import Figure, make_tables, markdown, protocol_of, write
from das3d.demo import CATEGORY
from das3d.errors import SettingsError, missing
from das3d.metrics import FIGURES
from das3d.settings import make_settings

SETS = [word for change in (*CHANGES, "training.iterations=2") for word in ("--set", change)]


def run(data: Path, out: Path, *options: object) -> Any:
    return das3d("benchmark", data, "--out", out, "--preset", "demo", "--device", "cpu", *SETS, *options)


# -------------------------------------------------------------------------------------------------- from data to tables


@pytest.fixture(scope="module")
def two_categories(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good category and one with a part that cannot be paired."""
    root = tmp_path_factory.mktemp("two")
    copy_category(tiny_data, root)
    (copy_category(tiny_data, root / "other").rename(root / "broken") / "train/good/rgb/001.png").unlink()
    (root / "other").rmdir()
    return root


def test_failing_category_is_reported_and_the_others_go_on(two_categories: Path, tmp_path: Path) -> None:
    result = run(two_categories, tmp_path, "--seeds", "0,1")
    assert result.exit_code == 1
    assert "001.tiff: expected an rgb file of the same name, found none" in result.stderr
    assert "2 of 4 runs failed" in result.stderr and "Traceback" not in result.stderr
    rows = rows_of(tmp_path / "runs.csv")
    assert [row["state"] == "finished" for row in rows if row["category"] == CATEGORY] == [True, True]
    assert all("expected an rgb file" in row["state"] for row in rows if row["category"] == "broken")

    # The tables say what the runs say.
    folders = [tmp_path / "runs" / CATEGORY / "rgb+depth" / f"seed{seed}" for seed in (0, 1)]
    metrics = [json.loads((folder / "evaluation" / "metrics.json").read_text()) for folder in folders]
    assert [m["seed"] for m in metrics] == [0, 1]
    for name in FIGURES:
        (cell,) = rows_of(tmp_path / f"{name}.csv")
        values = [m[name] for m in metrics]
        assert float(cell["value"]) == pytest.approx(statistics.fmean(values), abs=1e-4)
        assert float(cell["deviation"]) == pytest.approx(np.std(values, ddof=1), abs=1e-4)
        assert np.asarray(Image.open(tmp_path / f"{name}.png")).std() > 5
    text = (tmp_path / "benchmark.md").read_text()
    assert "2 of 4 runs are finished" in text and "training.iterations=2" in text and "80 x 64" in text

    # A second call repeats what failed, and nothing else.
    times = [(folder / "model.safetensors").stat().st_mtime_ns for folder in folders]
    (two_categories / "broken").rename(two_categories.parent / "broken")
    again = run(two_categories, tmp_path, "--seeds", "0,1")
    assert again.exit_code == 0 and "2 runs, 2 of them finished before" in again.stdout
    assert [(folder / "model.safetensors").stat().st_mtime_ns for folder in folders] == times

    # Another recipe has no place in these tables.
    changed = run(two_categories, tmp_path, "--seeds", "2", "--set", "synthesis.drop=0.1")
    assert changed.exit_code == 1
    usual = make_settings().synthesis.drop
    expected = "benchmark.json: expected the recipe that this benchmark began with, found synthesis.drop 0.1 instead of"
    assert f"{expected} {usual}; use a new --out" in changed.stderr

    # Nor has that of a version which knew nothing of a setting.
    recipe = json.loads((tmp_path / "benchmark.json").read_text())
    del recipe["recipe"]["variants"][""]["network"]["coarse_first"]
    (tmp_path / "benchmark.json").write_text(json.dumps(recipe))
    newer = run(two_categories, tmp_path, "--seeds", "2")
    assert newer.exit_code == 1 and "found network.coarse_first True instead of nothing; use a new --out" in newer.stderr
    assert len(rows_of(tmp_path / "runs.csv")) == 4


def test_a_benchmark_does_not_go_among_the_parts(tiny_data: Path, tmp_path: Path) -> None:
    category = copy_category(tiny_data, tmp_path)
    result = run(category, category / "test" / "bench", "--seeds", "0")
    assert result.exit_code == 1 and "expected a folder outside the data to write to" in result.stderr
    assert not (category / "test" / "bench").exists()


def test_data_without_test_parts_is_told_before_training(tiny_data: Path, tmp_path: Path) -> None:
    shutil.rmtree(copy_category(tiny_data, tmp_path / "data") / "test")
    result = run(tmp_path / "data", tmp_path / "out", "--seeds", "0")
    assert result.exit_code == 1 and "expected test parts, found" in result.stderr
    assert not list((tmp_path / "out").rglob("losses.csv"))


def test_trained_run_is_evaluated_and_not_trained_again(tiny_data: Path, tmp_path: Path) -> None:
    assert run(tiny_data, tmp_path, "--seeds", "0").exit_code == 0
    folder = tmp_path / "runs" / CATEGORY / "rgb+depth" / "seed0"
    before = (folder / "evaluation" / "metrics.json").read_text()
    trained = (folder / "model.safetensors").stat().st_mtime_ns
    (folder / "evaluation" / "metrics.json").unlink()
    assert run(tiny_data, tmp_path, "--seeds", "0").exit_code == 0
    assert (folder / "model.safetensors").stat().st_mtime_ns == trained
    assert json.loads((folder / "evaluation" / "metrics.json").read_text()) == json.loads(before)


def test_variants_share_everything_but_what_they_set(tiny_data: Path, tmp_path: Path) -> None:
    file = tmp_path / "variants.toml"
    file.write_text(
        '[plain]\nset = ["synthesis.skew_filter=false"]\npublished = { i_auroc = 0.922 }\n'
        '[dropped]\nset = ["synthesis.drop=0.9"]\n'
    )
    result = run(tiny_data, tmp_path / "out", "--seeds", "3", "--variants", file, "--modalities", "rgb+depth,rgb")
    assert result.exit_code == 0, result.output
    known = [make_settings(file=tmp_path / "out/runs" / CATEGORY / "rgb+depth/seed3" / name / "settings.toml")
             for name in ("plain", "dropped")]  # fmt: skip
    assert [s.synthesis.skew_filter for s in known] == [False, True]
    assert [s.synthesis.drop for s in known] == [make_settings().synthesis.drop, 0.9]
    assert known[0].training == known[1].training and known[0].seed == known[1].seed == 3
    text = (tmp_path / "out" / "benchmark.md").read_text()
    assert "published mean of such a variant" in text and text.count("| 0.922 |") == 1  # which is of both modalities
    row = next(row for row in rows_of(tmp_path / "out" / "i_auroc.csv") if row["source"] == "published for such a variant")
    assert (row["method"], row["value"]) == ("das3d, plain", "0.922")
    # What a later call does not ask for is told all the same, as its figures are.
    file.write_text('[dropped]\nset = ["synthesis.drop=0.9"]\n')
    result = run(tiny_data, tmp_path / "out", "--seeds", "3", "--variants", file, "--modalities", "rgb+depth,rgb")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "benchmark.md").read_text() == text


def test_ablation_of_the_paper_is_what_it_says() -> None:
    sets, published = read_variants(Path(__file__).parents[1] / "benchmarks" / "ablation.toml")
    for name, changes in sets.items():
        synthesis = make_settings("paper", changes=changes).synthesis
        assert synthesis.skew_filter == (name in ("skew-filter", "both"))
        assert (synthesis.drop > 0) == (name in ("dropout", "both"))
    assert published["both"] == {"i_auroc": 0.982, "p_auroc": 0.993}


def test_the_small_paper_settings_change_no_synthesis() -> None:
    small = make_settings(file=Path(__file__).parents[1] / "benchmarks" / "paper_small.toml")
    paper = make_settings("paper")
    assert small.synthesis == paper.synthesis and small.preset == "paper"
    assert sum(small.network.discriminator_widths) < sum(paper.network.discriminator_widths)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--categories", "bagel"), "expected categories bagel, found"),
        (("--modalities", "rgb,thermal"), "--modalities: expected some of rgb+depth,rgb,depth, found 'thermal'"),
        (("--seeds", "0,x"), "--seeds: expected whole numbers such as 0,1,2, found '0,x'"),
        (("--seeds", "0,0"), "--seeds: expected different words with commas between them, found '0,0'"),
        (("--variants", "none.toml"), "none.toml: expected a file of variants, found no such file"),
    ],
)
def test_what_cannot_be_run_is_refused_at_once(tiny_data: Path, tmp_path: Path, options: tuple[str], message: str) -> None:
    result = run(tiny_data, tmp_path / "out", *options)
    assert result.exit_code == 1 and message in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text", ["", "[a]\n", "[a]\nset = 3\n", "[a]\nset = []\nsets = []\n", "['../a']\nset = []\n", "a = ["]
)
def test_bad_variants_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "variants.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=r"variants\.toml: .*expected"):
        read_variants(file)


@pytest.mark.parametrize(
    "figure", ['i_auroc = "0.9"', "i_aurok = 0.9", "i_auroc = 98.2", "i_auroc = true", "i_auroc = nan"]
)
def test_published_figures_that_are_none_are_refused(tmp_path: Path, figure: str) -> None:
    file = tmp_path / "variants.toml"
    file.write_text(f"[both]\nset = []\npublished = {{ {figure} }}\n")
    with pytest.raises(SettingsError) as caught:
        read_variants(file)
    found = figure.replace('"', "'").replace("true", "True")
    expected = f"{file}: both: expected published figures of {', '.join(FIGURES)} from 0 to 1, found {found}"
    assert str(caught.value) == expected


# -------------------------------------------------------------------------------------------- beside published figures


def outcomes(out: Path, values: dict[tuple[str, int], float | None], parts: int = 108) -> tuple[Plan, list[Outcome]]:
    """Outcomes as if cable_gland and others of MVTec 3D-AD had been run: (category, seed) -> every figure."""
    facts = {"parts": 223, "minutes": 1.0, "iterations": 9, "machine": "m", "device": "d", "precision": "p", "torch": "t"}
    metrics = {
        "layout": "mvtec3d",
        "preset": "fast",
        "n_good": 21,
        "n_defective": parts - 21,
        "map_size": [[400, 300]],
        "das3d": "0",
    }
    plan = Plan(out, out, (Variant("", make_settings()),), tuple(dict.fromkeys(category for category, _ in values)))
    return plan, [
        Outcome(Run("", category, "rgb+depth", seed, out), {**metrics, "training": facts} | dict.fromkeys(FIGURES, value))
        for (category, seed), value in values.items()
    ]


def test_means_are_over_categories_and_then_over_seeds_that_finished_them_all(tmp_path: Path) -> None:
    values = {("bagel", 0): 0.9, ("tire", 0): 0.7, ("bagel", 1): 0.8, ("tire", 1): 0.4, ("bagel", 2): 0.1}
    plan, there = outcomes(tmp_path, values)
    ours = next(table for table in make_tables(plan, there) if table.metric == "i_auroc").rows[0]
    assert ours.figures["bagel"] == Figure(pytest.approx(0.6), pytest.approx(np.std([0.9, 0.8, 0.1], ddof=1)), 3)
    assert ours.mean == Figure(pytest.approx(0.7), pytest.approx(np.std([0.8, 0.6], ddof=1)), 2)


def test_runs_of_before_are_called_by_their_own_preset(tmp_path: Path) -> None:
    plan, there = outcomes(tmp_path, {("bagel", 0): 0.5})
    other = replace(plan, variants=(Variant("narrow", make_settings("paper")),))
    assert make_tables(other, there)[0].rows[0].name == "das3d, fast"


def test_published_rows_stand_beside_ours_as_printed(tmp_path: Path) -> None:
    known = published_for("mvtec3d")
    assert known is not None
    plan, there = outcomes(tmp_path, {(category, 0): 0.5 for category in known.test})
    tables = {table.metric: table for table in make_tables(plan, there)}
    rows = {row.name: row for row in tables["i_auroc"].rows}
    assert list(rows) == ["das3d, fast", "BTF", "AST", "EasyNet", "M3DM", "Shape-Guided", "3DSR", "DAS3D"]
    assert rows["DAS3D"].mean == Figure(0.982) and rows["EasyNet"].figures["cable_gland"] == Figure(0.998)
    assert [row.name for row in tables["p_auroc"].rows] == ["das3d, fast"]  # the paper has no such table
    part = make_tables(*outcomes(tmp_path, {("bagel", 0): 0.5, ("tire", 0): 0.5}))
    mean = {row.name: row.mean for row in part[0].rows}["DAS3D"]
    assert mean == Figure(pytest.approx((0.997 + 0.977) / 2))  # of the same categories as ours


def test_other_data_in_the_same_layout_has_no_published_rows(tmp_path: Path) -> None:
    plan, there = outcomes(tmp_path, {("gear", 0): 0.5})
    assert all(row.ours for table in make_tables(plan, there) for row in table.rows)
    assert protocol_of(there[0]) == ""


@pytest.mark.parametrize("parts", [108, 55])
def test_tables_say_whether_it_is_the_published_protocol(tmp_path: Path, parts: int) -> None:
    plan, there = outcomes(tmp_path, {("cable_gland", 0): 0.5}, parts=parts)
    text = markdown(plan, there, make_tables(plan, there))
    if parts == 108:
        assert "- cable_gland: published protocol: 108 test parts, 223 training parts" in text
        assert "not the published" not in text
    else:
        assert "**not the published protocol**: 55 of 108 test parts, 223 of 223 training parts" in text
        assert "a guide and no like for like" in text


def test_figures_that_the_data_cannot_give_are_left_open(tmp_path: Path) -> None:
    plan, there = outcomes(tmp_path, {("cable_gland", 0): None})
    text = markdown(plan, there, make_tables(plan, there))
    assert "| **das3d, fast** | - |" in text
    write(plan, there, pictures=True)
    assert not list(tmp_path.glob("*.png"))


def test_without_matplotlib_there_are_tables_and_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def draw(*_: object) -> None:
        raise missing("a picture", "matplotlib")

    monkeypatch.setattr(picture, "draw", draw)
    plan, there = outcomes(tmp_path, {("cable_gland", 0): 0.5})
    write(plan, there, pictures=True)
    assert 'pip install "das3d[benchmark]"' in capsys.readouterr().err
    assert "0.500" in (tmp_path / "benchmark.md").read_text()


@pytest.mark.parametrize("layout", ["mvtec3d", "eyecandies"])
def test_published_rows_are_complete_and_their_means_are_printed_ones(layout: str) -> None:
    known = published_for(layout)
    assert known is not None
    odd = []
    for metric, modalities in known.figures.items():
        assert set(modalities) == {"rgb", "depth", "rgb+depth"}
        for modality, methods in modalities.items():
            for method, values in methods.items():
                assert set(values) == {*known.test, MEAN} and all(0 <= value <= 1 for value in values.values())
                mean = statistics.fmean(value for name, value in values.items() if name != MEAN)
                if abs(mean - values[MEAN]) > 0.00051:
                    odd.append((metric, modality, method))
    expected = {
        "mvtec3d": [("i_auroc", "depth", "Shape-Guided")],
        "eyecandies": [("aupro_30", "depth", "DAS3D"), ("aupro_30", "rgb+depth", "M3DM")],
    }
    assert odd == expected[layout]
    totals = {"mvtec3d": (2656, 1197), "eyecandies": (10_000, 500)}
    assert (sum(known.train.values()), sum(known.test.values())) == totals[layout]


def test_recipe_may_gain_variants_but_not_change_them(tmp_path: Path) -> None:
    plan, _ = outcomes(tmp_path, {("bagel", 0): 0.5})
    more = replace(plan, variants=(*plan.variants, Variant("b", make_settings("demo"))))
    assert plan.recipe()["variants"][""] == more.recipe()["variants"][""]
    assert "seed" not in more.recipe()["variants"]["b"] and "modality" not in more.recipe()["variants"]["b"]
