"""Labelled pairs for other detectors: the same by number on any number of workers, and again from their recipes."""

from __future__ import annotations

import json
import runpy
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import sample, write_member
from tiny import CATEGORY, copy_category, das3d
from torch import Tensor
from torch.utils.data import DataLoader

from das3d.datasets import find_dataset
from das3d.errors import DataError
from das3d.pairs import SyntheticPairs, describe, harm_pairs
from das3d.prepared import prepare_dataset
from das3d.recipes import FAMILIES, Recipe
from das3d.settings import SynthesisSettings, make_settings
from das3d.synthesis import apply_recipes

CHANGES = ("preparation.size=64",)


def pairs_of(tiny_data: Path, length: int = 12, seed: int = 0, *changes: str) -> SyntheticPairs:
    settings = make_settings("demo", changes=[*CHANGES, *changes])
    return SyntheticPairs.from_data(tiny_data, settings=settings, seed=seed, length=length)


def good_pairs(count: int = 5, side: int = 48) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(3)
    foreground = torch.zeros(count, 1, side, side, dtype=torch.bool)
    foreground[:, :, 6:-6, 8:-8] = True
    depth = torch.where(foreground, 0.2 + 0.1 * torch.rand(count, 1, side, side, generator=rng), 1.0)
    return torch.rand(count, 3, side, side, generator=rng) * foreground, depth, foreground


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ------------------------------------------------------------------------------------ the function


def test_a_pair_is_the_same_alone_and_in_any_batch() -> None:
    rgb, depth, foreground = good_pairs()
    together, _ = harm_pairs(rgb, depth, foreground, seed=7, first=20)
    for index in range(len(rgb)):
        one = slice(index, index + 1)
        alone, _ = harm_pairs(rgb[one], depth[one], foreground[one], seed=7, first=20 + index)
        for member in ("rgb", "depth", "mask"):
            assert torch.equal(getattr(alone, member)[0], getattr(together, member)[index]), (index, member)


def test_harm_lies_on_the_part_and_where_the_mask_says() -> None:
    rgb, depth, foreground = good_pairs(16)
    settings = SynthesisSettings(visible=0, edge_high=0)
    harmed, _ = harm_pairs(rgb, depth, foreground, settings, seed=1)
    assert harmed.mask.any() and set(harmed.mask.unique().tolist()) == {0.0, 1.0}
    assert not (harmed.mask.bool() & ~foreground).any()
    changed = ((harmed.rgb - rgb).abs() > 1e-6).any(dim=1, keepdim=True)
    assert not (changed & ~harmed.mask.bool()).any()


def test_recipes_make_the_same_pixels_again_through_json() -> None:
    rgb, depth, foreground = good_pairs()
    settings = SynthesisSettings(rounds=3)
    harmed, recipes = harm_pairs(rgb, depth, foreground, settings, seed=5)
    assert len(recipes) == 3
    again = [Recipe.from_dicts(json.loads(json.dumps(recipe.to_dicts()))) for recipe in recipes]
    other = apply_recipes(rgb, depth, foreground, again, settings)
    assert all(torch.equal(getattr(harmed, member), getattr(other, member)) for member in ("rgb", "depth", "mask"))


@pytest.mark.parametrize(("use_rgb", "use_depth"), [(True, False), (False, True)])
def test_a_modality_can_be_left_alone(use_rgb: bool, use_depth: bool) -> None:
    rgb, depth, foreground = good_pairs(8)
    harmed, _ = harm_pairs(rgb, depth, foreground, seed=2, use_rgb=use_rgb, use_depth=use_depth)
    assert torch.equal(harmed.rgb, rgb) != use_rgb and torch.equal(harmed.depth, depth) != use_depth


def test_no_global_generator_is_touched() -> None:
    before = torch.get_rng_state()
    harm_pairs(*good_pairs(2))
    assert torch.equal(before, torch.get_rng_state())


# ------------------------------------------------------------------------------------ the data set


def test_items_are_as_documented(tiny_data: Path) -> None:
    pairs = pairs_of(tiny_data)
    assert len(pairs) == 12 and len(list(pairs)) == 12
    item = pairs[3]
    shapes = {name: tuple(value.shape) for name, value in item.items()}
    assert shapes == {
        "rgb": (3, 64, 64), "depth": (1, 64, 64), "mask": (1, 64, 64), "good_rgb": (3, 64, 64),
        "good_depth": (1, 64, 64), "foreground": (1, 64, 64), "defective": (), "number": (),
    }  # fmt: skip
    for item in pairs:
        assert bool(item["defective"]) == bool(item["mask"].any())
        assert item["rgb"].min() >= 0 and item["rgb"].max() <= 1
        if not item["defective"]:
            assert torch.equal(item["rgb"], item["good_rgb"]) and torch.equal(item["depth"], item["good_depth"])
    assert {bool(item["defective"]) for item in pairs} == {True, False}


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on one core it advises against workers
def test_the_same_on_any_number_of_workers_and_in_any_order(tiny_data: Path) -> None:
    pairs = pairs_of(tiny_data)
    here = [pairs[number] for number in range(len(pairs))]
    assert same(here[5], pairs[5])
    for workers in (0, 2):
        loader = DataLoader(pairs, batch_size=4, num_workers=workers)
        for start, batch in enumerate(loader):
            for index in range(4):
                assert same({name: value[index] for name, value in batch.items()}, here[4 * start + index])


def test_another_seed_gives_other_pairs(tiny_data: Path) -> None:
    one, other = pairs_of(tiny_data), pairs_of(tiny_data, 12, 1)
    assert not any(same(one[n], other[n]) for n in range(12) if one[n]["defective"])


def test_parts_are_taken_in_turn(tiny_data: Path) -> None:
    pairs = pairs_of(tiny_data)
    assert [pairs.pair(n).part for n in range(5)] == [*pairs.names, pairs.names[0]] and len(pairs.names) == 4


def test_names_that_repeat_are_refused(tiny_data: Path) -> None:
    dataset, settings = find_dataset(tiny_data), make_settings("demo", changes=CHANGES)
    prepared = prepare_dataset(dataset, settings)
    names = [part.id for part in dataset.train]
    for wrong, found in (([*names[:-1], names[0]], "4, 3 of them different"), (names[:-1], "3, 3 of them different")):
        with pytest.raises(DataError, match=f"names: expected one of its own for each of 4 parts, found {found}"):
            SyntheticPairs(wrong, prepared.train, prepared.statistics, settings)
    assert len(SyntheticPairs(names, prepared.train, prepared.statistics, settings)) == 4


def test_some_of_the_parts_are_thinned_and_none_are_refused(tiny_data: Path) -> None:
    settings = make_settings("demo", changes=CHANGES)

    def names(**options: object) -> list[str]:
        return SyntheticPairs.from_data(tiny_data, settings=settings, **options).names  # type: ignore[arg-type]

    ids = names()
    assert names(most_parts=2) == ids[::2] and names(most_parts=9) == ids
    assert names(only=ids[1:4:2], most_parts=2) == ids[1:4:2]
    assert names(only=ids[1:4:2], most_parts=1) == ids[1:2]
    for most in (0, -1):
        with pytest.raises(DataError, match=f"most_parts: expected a number from 1 up, or None for all, found {most}"):
            names(most_parts=most)
    with pytest.raises(DataError, match="expected ids of good training parts to use, found none"):
        names(only=[])
    with pytest.raises(DataError, match="names: expected at least one part, found none"):
        SyntheticPairs([], [], pairs_of(tiny_data).statistics, settings)


def test_numbers_beyond_the_length_end_it(tiny_data: Path) -> None:
    with pytest.raises(IndexError, match="pair 12: expected a number from 0 to 11"):
        pairs_of(tiny_data)[12]


def test_description_tells_millimetres_of_the_change(tiny_data: Path) -> None:
    pairs = pairs_of(tiny_data, 40)
    span = (pairs.statistics.far - pairs.statistics.near) * 1000
    for number in range(40):
        pair = pairs.pair(number)
        lines = describe(pair, pairs.statistics)
        gone = (pair.harmed.depth >= 1) & (pair.depth < 1)
        farthest = float(torch.where(gone, 0, pair.harmed.depth - pair.depth).max()) * span
        if pair.harmed.mask.any():
            assert farthest < 0.1 or f"{farthest:.1f} mm farther" in "; ".join(lines)
            assert bool(gone.any()) == ("background shows" in "; ".join(lines))
    assert ["left good"] in [describe(pairs.pair(number), pairs.statistics) for number in range(40)]


# ------------------------------------------------------------------------------------ the command


@pytest.fixture
def preview(tiny_data: Path, tmp_path: Path) -> Path:
    result = das3d(
        "synth", tiny_data, "--out", tmp_path / "first", "--count", 5, "--preset", "demo", "--seed", 3,
        "--set", "preparation.size=64", "--set", "synthesis.drop=0.2",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert len([line for line in result.stdout.splitlines() if "train/good/" in line]) == 5
    return tmp_path / "first"


def test_command_writes_a_sheet_and_recipes_that_make_it_again(preview: Path, tiny_data: Path, tmp_path: Path) -> None:
    import cv2

    result = das3d("synth", tiny_data, "--recipe", preview / "recipes.json", "--out", tmp_path / "again")
    assert result.exit_code == 0 and "the same pixels as before, to the last bit" in result.stdout, result.output
    first, again = (cv2.imread(str(folder / "pairs.png")) for folder in (preview, tmp_path / "again"))
    assert np.array_equal(first, again)
    result = das3d("synth", tiny_data, "--recipe", preview / "recipes.json", "--index", 2, "--out", tmp_path / "again")
    assert result.exit_code == 0 and (tmp_path / "again" / "pair_2.png").is_file(), result.output
    assert "the same pixels as before" in result.stdout


def test_one_pair_is_made_again_where_textures_are_the_training_parts(tiny_data: Path, tmp_path: Path) -> None:
    result = das3d("synth", tiny_data, "--out", tmp_path / "all", "--count", 4, "--set", "synthesis.texture=parts",
                   "--set", "synthesis.harmless=0")  # fmt: skip
    assert result.exit_code == 0, result.output
    for index in range(4):
        again = das3d("synth", tiny_data, "--recipe", tmp_path / "all/recipes.json", "--index", index, "--out", tmp_path)
        assert again.exit_code == 0 and "the same pixels as before" in again.stdout, again.output


def test_command_says_when_the_scan_has_changed(preview: Path, tiny_data: Path, tmp_path: Path) -> None:
    category = copy_category(tiny_data, tmp_path / "changed")
    other = category / "train" / "good"
    for member, suffix in (("rgb", "png"), ("xyz", "tiff")):
        (other / member / f"000.{suffix}").write_bytes((other / member / f"001.{suffix}").read_bytes())
    result = das3d("synth", category, "--recipe", preview / "recipes.json", "--out", tmp_path / "again")
    assert result.exit_code == 0 and "warning: pairs 0, 4: pixels differ from before" in result.stderr, result.output


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "expected recipes, found no such file"),
        ("[1, 2]", "expected recipes that das3d synth of this version wrote"),
        ("no json", "expected recipes that das3d synth of this version wrote"),
        ('{"settings": {}, "statistics": {}, "pairs": []}', "expected recipes that das3d synth of this version wrote"),
    ],
)
def test_what_is_no_recipe_is_one_clear_line(content: str | None, words: str, tiny_data: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipes.json"
    if content is not None:
        file.write_text(content)
    result = das3d("synth", tiny_data, "--recipe", file, "--out", tmp_path / "out")
    assert result.exit_code == 1 and result.stderr.startswith(f"error: {file}: {words}"), result.output
    assert len(result.stderr.splitlines()) == 1


def test_a_recipe_that_is_not_there(preview: Path, tiny_data: Path) -> None:
    result = das3d("synth", tiny_data, "--recipe", preview / "recipes.json", "--index", 9, "--out", preview)
    assert result.exit_code == 1 and "expected a pair 9, found pairs 0 to 4" in result.stderr
    known = json.loads((preview / "recipes.json").read_text())
    known["pairs"][1]["part"] = "train/good/777"
    (preview / "recipes.json").write_text(json.dumps(known))
    result = das3d("synth", tiny_data, "--recipe", preview / "recipes.json", "--out", preview)
    assert result.exit_code == 1 and "expected good training parts train/good/777" in result.stderr


@pytest.mark.parametrize("options", [("--index", 1), ("--recipe", "r.json", "--seed", 3), ("--count", 0)])
def test_options_that_do_not_go_together(options: tuple[object, ...], tiny_data: Path) -> None:
    assert das3d("synth", tiny_data, *options).exit_code == 2


def test_pairs_of_one_member(tiny_data: Path, tmp_path: Path) -> None:
    result = das3d("synth", tiny_data / CATEGORY, "--modality", "depth", "--set", "preparation.size=64", "--out", tmp_path)
    assert result.exit_code == 0 and "in RGB" not in result.stdout, result.output


def test_again_refuses_an_unknown_part(tiny_data: Path) -> None:
    pairs = pairs_of(tiny_data)
    with pytest.raises(DataError, match="nothing: expected one of the 4 good parts here"):
        pairs.again(0, "nothing", [])


def test_again_refuses_a_recipe_whose_textures_are_gone(tiny_data: Path, tmp_path: Path) -> None:
    for index in range(3):
        write_member(tmp_path / f"{index}.png", sample(index).rgb)
    changes = ("synthesis.texture=folder", f"synthesis.texture_folder={tmp_path}")
    pair = pairs_of(tiny_data, 1, 0, *changes).pair(0)
    recipes = [replace(recipe, texture=torch.full_like(recipe.texture, 2)) for recipe in pair.recipes]
    assert pairs_of(tiny_data, 1, 0, *changes).again(0, pair.part, recipes).part == pair.part
    (tmp_path / "2.png").unlink()
    with pytest.raises(DataError, match=r"expected the texture pictures .* 3 at least, found 2 \("):
        pairs_of(tiny_data, 1, 0, *changes).again(0, pair.part, recipes)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_the_example_runs(tiny_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    example = Path(__file__).parent.parent / "examples" / "synthetic_pairs.py"
    monkeypatch.setattr("sys.argv", [str(example), str(tiny_data)])
    runpy.run_path(str(example), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and all("of 16 pairs are defective" in line for line in lines)


def test_a_kind_that_one_modality_shows_has_its_name_behind_it(tiny_data: Path) -> None:
    pairs = pairs_of(tiny_data, 60, 0, "synthesis.rounds=1", "synthesis.drop=0.5", "synthesis.visible=0.0")
    seen = set()
    for number in range(60):
        pair = pairs.pair(number)
        first = describe(pair, pairs.statistics)[0]
        members = ((pair.harmed.rgb, pair.rgb), (pair.harmed.depth, pair.depth))
        changed = [not torch.equal(harmed, good) for harmed, good in members]
        if first != "left good":
            told = [word for word in ("(depth)", "(RGB)") if word in first]
            assert not told or changed == [told == ["(RGB)"], told == ["(depth)"]]
            seen.update(told)
    assert seen == {"(depth)", "(RGB)"}


def test_kinds_are_named_in_the_singular(tiny_data: Path) -> None:
    pairs = pairs_of(tiny_data, 30, 0, "synthesis.rounds=1", "synthesis.drop=0.0", "synthesis.visible=0.0")
    words = {describe(pairs.pair(number), pairs.statistics)[0] for number in range(30)}
    singular = {family: family[:-2] if family == "scratches" else family[:-1] for family in FAMILIES}
    assert "scratch" in singular.values() and words <= {*singular.values(), "left good"} and len(words) >= 3


def test_the_command_that_synth_prints_works_where_there_are_several_categories(tiny_data: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(copy_category(tiny_data, tmp_path / name), tmp_path / "data" / name)
    made = das3d("synth", tmp_path / "data", "--category", "two", "--count", 2, "--out", tmp_path / "out")
    assert made.exit_code == 0, made.output
    printed = made.output.split("das3d ")[1].split(" makes")[0]
    known = {"DATA": tmp_path / "data", "N": 1}
    again = das3d(*(known.get(word, word) for word in printed.split()), "--out", tmp_path / "again")
    assert again.exit_code == 0 and (tmp_path / "again" / "pair_1.png").is_file(), again.output
