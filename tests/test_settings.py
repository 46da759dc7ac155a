"""Settings: presets, files, single changes, and one clear line for what cannot work."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from das3d.errors import SettingsError
from das3d.settings import PRESETS, Settings, flatten, make_settings, settings_from_dict, settings_to_toml

SECTIONS = {
    name: getattr(Settings(), name) for name in Settings.model_fields if isinstance(getattr(Settings(), name), BaseModel)
}


def error_of(*changes: str, preset: Any = "fast", file: Path | None = None) -> str:
    with pytest.raises(SettingsError) as caught:
        make_settings(preset, file=file, changes=changes)
    return str(caught.value)


# ------------------------------------------------------------------------------------------- presets and meanings


def test_every_setting_says_what_it_means() -> None:
    assert set(SECTIONS) == {"preparation", "synthesis", "network", "training", "score"}
    for name, section in SECTIONS.items():
        assert type(section).__doc__, name
        for key, field in type(section).model_fields.items():
            assert field.description and len(field.description) > 5, f"{name}.{key}"
            assert "\n" not in field.description
    for key, field in Settings.model_fields.items():
        assert key in SECTIONS or field.description, key


@pytest.mark.parametrize("preset", list(PRESETS))
def test_a_preset_is_valid_and_sets_what_it_lists(preset: Any) -> None:
    settings = make_settings(preset)
    assert settings.preset == preset
    for section, values in PRESETS[preset].items():
        for key, value in values.items():
            assert getattr(getattr(settings, section), key) == value
    named = {(section, key) for section, values in PRESETS[preset].items() for key in values}
    for section, default in SECTIONS.items():
        for key in type(default).model_fields:
            if (section, key) not in named:
                assert getattr(getattr(settings, section), key) == getattr(default, key)


# What the paper's preset has in common with the default, each by choice: docs/howto/paper.md says where it comes from.
SHARED = {
    "preparation": {"margin"},
    "synthesis": {
        "perlin_octaves", "skew_filter", "sigma_low", "sigma_high", "skew", "texture", "texture_folder", "spot_low",
        "spot_high",
    },
    "network": {"skips"},
    "training": {"focal_gamma", "flip", "glare", "precision", "checkpoint_minutes", "hold_out"},
    "score": {"max_false_alarm"},
}  # fmt: skip


def test_no_new_default_changes_the_paper_unseen() -> None:
    for section, default in SECTIONS.items():
        listed = PRESETS["paper"][section].keys()
        assert not listed & SHARED[section], section
        assert listed | SHARED[section] == type(default).model_fields.keys(), f"{section}: in the preset, or in SHARED"


def test_the_paper_preset_has_the_values_that_its_page_prints() -> None:
    printed = {
        "preparation.size": 256, "preparation.crop": False, "preparation.background_distance": 0.005,
        "synthesis.skew": 0.5, "synthesis.opacity_rest": 0.8, "synthesis.perlin_octaves": 5,
        "synthesis.threshold_low": 0.5, "synthesis.threshold_high": 0.5, "synthesis.sigma_low": 0.008,
        "synthesis.sigma_high": 0.03, "synthesis.magnitude_low": 0.0, "synthesis.magnitude_high": 0.1,
        "synthesis.mask_threshold": 0.004, "synthesis.drop": 0.5, "synthesis.texture": "procedural",
        "synthesis.skew_filter": True, "network.repair_widths": (128, 256, 512, 1024, 1024),
        "network.discriminator_widths": (64, 128, 256, 512, 512), "network.skips": False, "training.focal_gamma": 2.0,
        "training.optimizer": "adam", "training.learning_rate": 1e-4, "training.batch": 8, "training.schedule": "steps",
        "training.precision": "auto", "training.iterations": 20_000, "training.flip": False, "training.glare": 0.0,
        "score.window": 21, "score.turn": 0.0, "score.flips": False,
    }  # fmt: skip
    paper = flatten(make_settings("paper").model_dump())
    assert {name: paper[name] for name in printed} == printed


def test_the_paper_preset_keeps_to_the_paper() -> None:
    paper = make_settings("paper")
    assert (paper.preparation.size, paper.preparation.background_distance) == (256, 0.005)
    assert not (paper.preparation.crop or paper.preparation.level or paper.preparation.stretch)
    synthesis = paper.synthesis
    assert synthesis.skew_filter and synthesis.blobs > 0 and synthesis.opacity_rest == 0.8
    assert synthesis.spots == synthesis.scratches == synthesis.shifts == synthesis.cuts == synthesis.warps == 0
    assert synthesis.shaded == synthesis.visible == synthesis.harmless == 0 and synthesis.rounds == 1 and not synthesis.peak
    network = paper.network
    assert network.stem == network.discriminator_stem == 1 and network.fuse_width == 0
    assert not (network.skips or network.depth_relief or network.direct or network.coarse_first)
    training = paper.training
    assert (
        training.still == training.rotation == training.zoom == training.shift == training.bend == training.brightness == 0
    )


def test_modalities_say_which_networks_there_are() -> None:
    used = {one: (make_settings(modality=one).uses_rgb, make_settings(modality=one).uses_depth) for one in
            ("rgb+depth", "rgb", "depth")}  # fmt: skip
    assert used == {"rgb+depth": (True, True), "rgb": (True, False), "depth": (False, True)}


def test_settings_cannot_be_changed_afterwards() -> None:
    settings = make_settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.seed = 1
    for name, section in SECTIONS.items():
        key = next(iter(type(section).model_fields))
        with pytest.raises(ValidationError, match="frozen"):
            setattr(getattr(settings, name), key, getattr(section, key))


def test_making_settings_leaves_the_presets_alone() -> None:
    before = json.dumps(PRESETS)
    make_settings("paper", changes=["preparation.size=128", "network.repair_widths=[8,8,8]", "network.stem=2"])
    make_settings("fast", changes=["training.batch=3"])
    assert json.dumps(PRESETS) == before
    assert make_settings().training.batch == Settings().training.batch


# ------------------------------------------------------------------------------------------- what goes over what


def test_a_change_goes_over_an_argument_over_a_file_over_the_preset_over_the_default(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('seed = 5\nmodality = "rgb"\n[training]\nbatch = 12\niterations = 77\n[score]\nwindow = 7\n')
    settings = make_settings("demo", file=file, modality="depth", changes=["training.iterations=99", "score.flips=true"])
    assert settings.score.flips  # change over default
    assert settings.training.iterations == 99  # change over file
    assert settings.modality == "depth"  # argument over file
    assert settings.seed == 5 and settings.training.batch == 12 and settings.score.window == 7  # file over the rest
    assert settings.preset == "demo" and settings.preparation.size == 128  # preset over default
    assert settings.training.learning_rate == Settings().training.learning_rate  # default
    assert make_settings(file=file, seed=6, changes=["seed=7", "modality=rgb+depth"]).seed == 7
    assert make_settings(file=file, seed=6).seed == 6
    assert make_settings(modality="rgb", changes=["modality=depth"]).modality == "depth"


def test_later_changes_go_over_earlier_ones() -> None:
    assert make_settings(changes=["training.batch=3", "training.batch=5"]).training.batch == 5


def test_a_file_or_change_may_name_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('preset = "paper"\n[training]\nbatch = 4\n')
    for settings in (make_settings(file=file), make_settings("paper", file=file)):
        assert settings.preset == "paper" and settings.preparation.size == 256 and settings.training.batch == 4
    assert make_settings(file=file, changes=["preset=demo"]).preparation.size == 128


def test_a_file_of_another_preset_than_asked_for_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('preset = "fast"\n')
    with pytest.raises(SettingsError, match=r"mine\.toml: expected settings of the preset 'paper', .* found 'fast'"):
        make_settings("paper", file=file)


# ------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("preset", list(PRESETS))
def test_a_written_file_reads_back_the_same(tmp_path: Path, preset: Any) -> None:
    settings = make_settings(preset, modality="depth", seed=3, changes=["training.batch=5", "synthesis.drop=0.25"])
    file = tmp_path / "settings.toml"
    file.write_text(settings_to_toml(settings), encoding="utf-8")
    assert make_settings(file=str(file)) == make_settings(preset, file=file) == settings


def test_a_written_file_holds_every_setting_with_its_meaning() -> None:
    text = settings_to_toml(make_settings())
    values = tomllib.loads(text)
    for name, section in SECTIONS.items():
        assert set(values[name]) == set(type(section).model_fields)
        for key, field in type(section).model_fields.items():
            (line,) = [
                line for line in text.split(f"[{name}]")[1].split("\n[")[0].splitlines() if line.startswith(f"{key} =")
            ]
            assert line.endswith(f"# {field.description}")


@given(
    learning_rate=st.floats(0, 1, exclude_min=True, exclude_max=True),
    drop=st.floats(0, 1),
    weight_decay=st.floats(0, 1e300),
    iterations=st.integers(1, 10**12),
    widths=st.lists(st.integers(4, 10_000), min_size=3, max_size=4),
    folder=st.text(st.characters(codec="utf-8")),
    flip=st.booleans(),
    modality=st.sampled_from(["rgb+depth", "rgb", "depth"]),
)
@examples(max_examples=60, deadline=None)
def test_any_values_read_back_the_same(
    tmp_path_factory: pytest.TempPathFactory, learning_rate: float, drop: float, weight_decay: float, iterations: int,
    widths: list[int], folder: str, flip: bool, modality: str,
) -> None:  # fmt: skip
    settings = settings_from_dict(
        {
            "modality": modality,
            "synthesis": {"drop": drop, "texture_folder": folder},
            "network": {"repair_widths": widths},
            "training": {
                "learning_rate": learning_rate, "weight_decay": weight_decay, "iterations": iterations, "flip": flip,
            },
        }
    )  # fmt: skip
    file = tmp_path_factory.getbasetemp() / "any.toml"
    file.write_bytes(settings_to_toml(settings).encode())
    assert make_settings(file=file) == settings
    assert settings_from_dict(json.loads(settings.model_dump_json())) == settings


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    missing, broken, binary = tmp_path / "missing.toml", tmp_path / "broken.toml", tmp_path / "binary.toml"
    broken.write_text("seed = = 3")
    binary.write_bytes(b"\xff\xfe\x00")
    assert error_of(file=missing) == f"{missing}: expected a settings file, found no such file"
    for file in (broken, binary, tmp_path):
        text = error_of(file=file)
        assert text.startswith(f"{file}: expected settings as TOML, found ") and "\n" not in text


def test_a_wrong_value_in_a_file_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[training]\nbatch = 1\n")
    assert error_of(file=file) == f"{file}: training.batch: input should be greater than or equal to 2, found 1"


# ------------------------------------------------------------------------------------------- single changes


@pytest.mark.parametrize(
    ("change", "section", "key", "value"),
    [
        ("synthesis.drop=0.3", "synthesis", "drop", 0.3),
        ("synthesis.drop = 0.3", "synthesis", "drop", 0.3),
        ("synthesis.drop=1", "synthesis", "drop", 1.0),
        ("training.learning_rate=1e-3", "training", "learning_rate", 0.001),
        ("training.flip=true", "training", "flip", True),
        ("training.schedule=steps", "training", "schedule", "steps"),
        ('training.schedule="steps"', "training", "schedule", "steps"),
        ("network.repair_widths=[8, 16, 24]", "network", "repair_widths", (8, 16, 24)),
        ("synthesis.texture_folder=/data/a=b/my textures", "synthesis", "texture_folder", "/data/a=b/my textures"),
        ("synthesis.texture_folder=", "synthesis", "texture_folder", ""),
    ],
)
def test_a_change_is_read(change: str, section: str, key: str, value: Any) -> None:
    got = getattr(getattr(make_settings(changes=[change]), section), key)
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize("change", ["synthesis.drop", "", "=3", " = 3"])
def test_a_change_without_name_or_value_says_how_to_write_one(change: str) -> None:
    assert error_of(change) == f"--set {change}: expected section.name=value, such as synthesis.drop=0.3"


# ------------------------------------------------------------------------------------------- what cannot work


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (["synthesis.dropp=0.3"], "settings: unknown setting 'synthesis.dropp'"),
        (["synthesys.drop=0.3"], "settings: unknown setting 'synthesys'"),
        (["seeed=1"], "settings: unknown setting 'seeed'"),
        (["synthesis.drop=1.5"], "settings: synthesis.drop: input should be less than or equal to 1, found 1.5"),
        (["training.batch=1"], "settings: training.batch: input should be greater than or equal to 2, found 1"),
        (["training.batch=2.5"], "settings: training.batch: .*integer.*, found 2.5"),
        (["training.batch=many"], "settings: training.batch: .*integer.*, found 'many'"),
        (["training.batch=[4]"], r"settings: training.batch: .*integer.*, found \[4\]"),
        (["training.flip=perhaps"], "settings: training.flip: .*boolean.*, found 'perhaps'"),
        (["training.learning_rate=nan"], "settings: training.learning_rate: .*, found nan"),
        (["training.weight_decay=inf"], "settings: training.weight_decay: .*finite.*, found inf"),
        (["training.schedule=linear"], "settings: training.schedule: .*'one-cycle' or 'steps', found 'linear'"),
        (["modality=sound"], r"settings: modality: .*'rgb\+depth', 'rgb' or 'depth', found 'sound'"),
        (["network.stem=3"], "settings: network.stem: .*1, 2 or 4, found 3"),
        (["seed=-1"], "settings: seed: .*greater than or equal to 0, found -1"),
        (["preparation.size=100"], "settings: preparation.size: .*multiple of 32, found 100"),
        (["synthesis=3"], "settings: synthesis: .*, found 3"),
        (["synthesis.drop.more=3"], "settings: synthesis.drop: .*number.*"),
        (["network.repair_widths=64"], "settings: network.repair_widths: .*, found 64"),
        (["network.repair_widths=[64, 64.5, 64]"], "settings: network.repair_widths.1: .*integer.*, found 64.5"),
        (["network.repair_widths=[64, 64]"], r"settings: .*repair_widths: expected 3 to 6 widths .*, found \[64, 64\]"),
        (["network.discriminator_widths=[8, 2, 8]"], r"settings: .*discriminator_widths: .*at least 4.* found \[8, 2, 8\]"),
        (["synthesis.texture=folder"], r"settings: .*texture_folder: expected a folder for texture = 'folder', found none"),
        (["synthesis.texture=wood"], "settings: synthesis.texture: .*'procedural', 'folder' or 'parts', found 'wood'"),
        ([f"synthesis.{name}=0" for name in ("blobs", "spots", "scratches", "shifts", "cuts", "warps")],
         "settings: synthesis: expected one of blobs, spots, scratches, shifts, cuts, warps above 0, found none"),
        (["network.stem=4", "network.repair_widths=[8,8,8,8,8]", "preparation.size=96"],
         "settings: preparation.size: expected a multiple of 64, to which network.stem and .*, found 96"),
        (["network.stem=4", "network.discriminator_stem=1", "network.discriminator_widths=[8,8,8]"],
         r"settings: network: discriminator_widths: expected at least 4 for stem = 4 and discriminator_stem = 1, found .*"),
        (["network.discriminator_stem=4", "network.discriminator_widths=[8,8,8,8,8]", "preparation.size=96"],
         "settings: preparation.size: expected a multiple of 64, to which network.discriminator_stem .*, found 96"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_what_cannot_work_gets_one_line(changes: list[str], line: str) -> None:
    text = error_of(*changes)
    assert "\n" not in text
    assert re.fullmatch(line, text), text


@pytest.mark.parametrize("name", ["threshold", "sigma", "magnitude"])
def test_ranges_must_be_ordered(name: str) -> None:
    text = error_of(f"synthesis.{name}_low=0.19", f"synthesis.{name}_high=0.1")
    assert text == f"settings: synthesis: {name}_low: expected at most {name}_high, found 0.19 > 0.1"
    assert make_settings(changes=[f"synthesis.{name}_low=0.1", f"synthesis.{name}_high=0.1"])


def test_spot_sizes_must_be_ordered() -> None:
    assert "spot_low: expected at most spot_high, found 0.5 > 0.1" in error_of(
        "synthesis.spot_low=0.5", "synthesis.spot_high=0.1"
    )


def test_every_wrong_value_has_its_line() -> None:
    lines = error_of("training.batch=0", "synthesis.drop=-1", "nonsense=1").splitlines()
    assert len(lines) == 3
    assert [any(name in line for line in lines) for name in ("training.batch", "synthesis.drop", "nonsense")] == [True] * 3


@pytest.mark.parametrize("value", ["best", "preset.x"])
def test_an_unknown_preset_is_answered_with_the_known_ones(value: str) -> None:
    want = "preset: expected one of fast, paper, demo, found "
    assert error_of(preset=value) == want + repr(value)
    assert error_of(f"preset={value}") == want + repr(value)
    assert error_of("preset.x=1") == want + repr({"x": 1})


def test_flatten() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": None}, "e": "f", "g": [1]}) == {"a.b.c": 1, "a.d": None, "e": "f", "g": [1]}


def test_the_window_of_the_score_has_a_middle() -> None:
    assert (
        error_of("score.window=4")
        == "settings: score.window: expected an odd number, so that the window has a middle pixel, found 4"
    )


def test_changed_settings_are_those_that_differ_from_the_preset() -> None:
    assert make_settings("fast", modality="rgb", seed=3).changed() == []
    default = make_settings("fast").synthesis.drop
    assert make_settings("fast", changes=["synthesis.drop=0.25"]).changed() == [("synthesis.drop", 0.25, default)]


def test_single_changes_keep_all_other_settings() -> None:
    settings = make_settings("demo", seed=3, changes=["training.batch=5"])
    changed = settings.with_changes(["synthesis.drop=0.25"])
    assert (
        changed.synthesis.drop == 0.25 and changed.with_changes([f"synthesis.drop={settings.synthesis.drop}"]) == settings
    )
    with pytest.raises(SettingsError, match="drop"):
        settings.with_changes(["synthesis.drop=2"])
    with pytest.raises(SettingsError, match=r"--set preset=paper: expected a change of a single setting, .*--preset"):
        settings.with_changes(["preset=paper"])
    assert make_settings(changes=["preset=paper"]) == make_settings("paper")
