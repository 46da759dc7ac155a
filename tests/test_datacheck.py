"""``das3d inspect``: spoiled parts are pointed at, sound sets are left in peace, and what it writes can be used."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from builders import declare, eyecandies, own_kind, write_member
from scenes import Box, see
from spoils import Parts
from tiny import das3d

from das3d.background import fit_background, plane_depth
from das3d.datacheck import DataCheck, _units, check_data, moved
from das3d.datacheck.datasheet import _views, parts_sheet, rows_of, settings_text, write_check
from das3d.datasets import find_dataset
from das3d.demo import CATEGORY, make_demo
from das3d.errors import DataError, SettingsError
from das3d.files import DepthFormat
from das3d.settings import make_settings

SIZE = (96, 112)
TRAIN, VALIDATION = 22, 3


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sound")
    return make_demo(root, train=TRAIN, validation=VALIDATION, good=2, defective=0, size=SIZE) / CATEGORY


@pytest.fixture
def parts(sound: Path, tmp_path: Path) -> Parts:
    return Parts(Path(shutil.copytree(sound, tmp_path / CATEGORY)))


def check(parts: Parts) -> DataCheck:
    return check_data(parts.folder.parent.parent)


def suspects(found: DataCheck) -> dict[str, list[str]]:
    """Number of the part -> checks that name it."""
    return {suspect.part.id.split("/")[-1]: [reason.check for reason in suspect.reasons] for suspect in found.suspects}


@pytest.fixture(scope="module")
def sound_check(sound: Path) -> DataCheck:
    return check_data(sound)


def test_a_sound_set_has_no_suspects(sound_check: DataCheck) -> None:
    assert suspects(sound_check) == {} and sound_check.twins == ()


def test_a_part_that_cannot_be_prepared_is_pointed_at_and_the_others_are_looked_at(
    parts: Parts, sound_check: DataCheck
) -> None:
    held_out = Parts(parts.folder.parent.parent, split="validation")
    points = held_out.points("001")
    fit = fit_background(points[..., 2], points[..., 2] > 0)
    assert fit is not None
    points[..., 2] = plane_depth(fit.plane, SIZE)
    middle = tuple(slice(side // 2 - 6, side // 2 + 6) for side in SIZE)
    points[(*middle, 2)] -= 0.02  # a crumb on the empty table
    held_out.write("001", points=points)
    found = check(parts)
    assert suspects(found) == {"001": ["not to be prepared"]}
    assert "no part?" in found.suspects[0].reasons[0].text and len(found.facts) == len(sound_check.facts)


def test_facts_are_those_of_the_rendered_parts(sound_check: DataCheck) -> None:
    assert len(sound_check.facts) == TRAIN + VALIDATION + 2 and len(sound_check.good) == TRAIN + VALIDATION
    for one in sound_check.good:
        assert one.size == SIZE and one.error == ""
        assert one.length == pytest.approx(0.105, rel=0.1) and one.width == pytest.approx(0.066, rel=0.1)
        assert one.height == pytest.approx(0.0265, abs=0.003) and one.distance == pytest.approx(0.444, abs=0.01)
        assert one.plane_support is not None and one.plane_support > 0.95


def test_spoiled_parts_are_pointed_at(parts: Parts) -> None:
    place = parts.stain("003")
    parts.shift("006", 6)
    parts.millimetres("009")
    parts.copy("012", "013", depth=False)
    damaged, test = parts.folder / "xyz" / "004.tiff", parts.folder.parent.parent / "test" / "good"
    damaged.write_bytes(damaged.read_bytes()[:10_000])
    for member, suffix in (("rgb", "png"), ("xyz", "tiff")):
        shutil.copy(parts.folder / member / f"007.{suffix}", test / member / f"000.{suffix}")
    found = check(parts)
    named = suspects(found)
    assert named.keys() >= {"003", "004", "006", "009", "013"} and len(named) <= 6, named
    assert "odd colour" in named["003"]
    assert "shift of RGB against depth" in named["006"]
    assert named["009"] == ["unit"] and named["004"] == ["unreadable"]
    assert named["013"][0] == "copied member"
    facts = {one.part.id: one for one in found.facts}
    assert facts["train/good/003"].odd_colour_at == pytest.approx(place, abs=8)
    assert str(damaged) in facts["train/good/004"].error
    # Neither holds up the others, and millimetres would make a depth range of metres.
    assert sum(one.odd_shape is not None for one in found.good) == TRAIN + VALIDATION - 2
    assert found.statistics is not None and found.statistics.far - found.statistics.near < 0.05
    leak, copied = sorted((pair.describe() for pair in found.twins), key=len)
    assert leak == "train/good/007 and test/good/000: same RGB and same depth"
    assert copied == "train/good/012 and train/good/013: same RGB, but different depth"
    assert any("two splits (1 in test and train)" in line for line in found.advice), found.advice


def test_a_shift_of_all_parts_is_advised_on_and_makes_none_a_suspect(parts: Parts) -> None:
    for file in sorted((parts.folder / "rgb").iterdir()):
        parts.shift(file.stem, 5)
    found = check_data(parts.folder.parent.parent)
    words = r"RGB is shifted against depth, \d pixels to the left.*: calibrate"
    assert any(re.search(words, line) for line in found.advice), found.advice
    assert not [name for name in suspects(found) if name.startswith("train")]


@pytest.mark.parametrize("spoil", ["turned", "another"])
def test_rgb_that_fits_depth_nowhere_is_not_called_shifted(parts: Parts, sound_check: DataCheck, spoil: str) -> None:
    assert dict(rows_of(sound_check))["RGB against depth"].startswith("in place; fit ")
    names = sorted(file.stem for file in (parts.folder / "rgb").iterdir())
    pictures = [parts.rgb(name) for name in names]
    for name, own, following in zip(names, pictures, [*pictures[1:], pictures[0]], strict=True):
        parts.write(name, rgb=own[::-1, ::-1] if spoil == "turned" else following)
    found = check(parts)
    advice = " ".join(found.advice)
    assert "mirrored or turned, or is it of another part" in advice and "shifted" not in advice, advice
    assert dict(rows_of(found))["RGB against depth"].startswith("elsewhere in each part; fit ")


def test_a_focal_length_in_millimetres_is_advised_on(tmp_path: Path) -> None:
    own_kind(tmp_path / "good")
    for focal_length, told in (("1.5", True), ("300", False)):
        declare(tmp_path, f"depth_unit: m\nfocal_length: {focal_length}")
        advice = " ".join(check_data(tmp_path).advice)
        assert ("focal_length: 1.5 would be a lens that sees" in advice) is told, advice


def test_a_whole_set_in_another_unit_is_refused_with_what_to_do(parts: Parts) -> None:
    for split in ("train", "validation"):
        these = Parts(parts.folder.parent.parent)
        these.folder = parts.folder.parent.parent / split / "good"
        for file in sorted((these.folder / "rgb").iterdir()):
            these.millimetres(file.stem)
    with pytest.raises(DataError, match="depth_unit: mm"):
        check(parts)
    (parts.folder.parent.parent / "dataset.yaml").write_text("depth_unit: um")  # 1000 times too near
    assert any("a wrong unit?" in line for line in check(parts).advice)


@pytest.mark.parametrize("member", ["rgb", "xyz"])
def test_sets_with_one_member(parts: Parts, member: str) -> None:
    root = parts.folder.parent.parent
    (root / "dataset.yaml").write_text("depth_unit: m")
    (root / "good").mkdir()
    word, suffix = {"rgb": ("rgb", "png"), "xyz": ("depth", "tiff")}[member]
    for index in range(TRAIN):
        shutil.copy(parts.folder / member / f"{index:03}.{suffix}", root / "good" / f"{index:03}_{word}.{suffix}")
    for split in ("train", "validation", "test"):
        shutil.rmtree(root / split)
    found = check_data(root)
    assert found.settings.modality == word
    assert len(found.good) == TRAIN and len(found.suspects) <= 2


def test_who_says_how_depth_is_read_is_named(parts: Parts, tmp_path: Path) -> None:
    root = parts.folder.parent.parent
    tenths = DepthFormat(0.0001)

    def said(data: Path, told: DepthFormat | None = None) -> str:
        return _units(find_dataset(data, depth_format=told), told)

    assert said(root) == "metres, as the layout mvtec3d has it"
    assert said(root, tenths) == "0.0001 m a count, as told (--depth-unit)"
    declare(root, "depth_unit: mm")
    assert said(root, tenths) == "millimetres, declared in dataset.yaml"
    declare(root, "")
    assert said(root) == "metres, as the layout mvtec3d has it"
    assert said(root, tenths) == "0.0001 m a count, as told (--depth-unit)"
    mine = declare(tmp_path / "mine", "depth_scale: 0.0001")
    own_kind(mine / "train" / "good")
    assert said(mine) == "0.0001 m a count, declared in dataset.yaml"
    assert said(mine / "train") == f"0.0001 m a count, declared in {mine.resolve() / 'dataset.yaml'}"
    sweets = eyecandies(declare(tmp_path / "sweets", "depth_unit: mm"))
    assert said(sweets) == said(sweets, tenths) == "as each part's info_depth.yaml says"


def test_depth_that_the_networks_will_not_see_tells_where_the_part_is_and_no_more(parts: Parts, tmp_path: Path) -> None:
    points = parts.points("003")
    points[..., 2] += np.random.default_rng(0).normal(0, 0.0005, SIZE).astype(np.float32)
    parts.write("003", points=points)
    cut = parts.folder / "xyz" / "004.tiff"
    cut.write_bytes(cut.read_bytes()[:10_000])
    root = parts.folder.parent.parent
    of_depth = {"height of the part", "noise of the surface", "odd shape"}
    assert of_depth <= set(suspects(check(parts))["003"])
    found = check_data(root, modality="rgb")
    assert suspects(found)["004"] == ["unreadable"], "as in training, which asks where the part is"
    assert not of_depth & set(suspects(found).get("003", []))
    assert all(one.odd_shape is one.height is one.surface_noise is one.missing_on_part is None for one in found.good)
    table = dict(rows_of(found))
    assert table["members"] == "RGB; depth tells where the part is, and no more"
    assert {"background plane", "size of the part", "RGB against depth", "background"} <= table.keys()
    assert not {"missing depth, part", "height of the part", "depth noise, part", "depth range"} & table.keys()
    write_check(found, tmp_path)
    assert parts_sheet(found, 50).shape == parts_sheet(check_data(root, modality="depth"), 50).shape, "one view a part"


def test_rgb_that_the_networks_will_not_see_is_not_looked_at(parts: Parts) -> None:
    parts.shift("006", 6)
    cut = parts.folder / "rgb" / "004.png"
    cut.write_bytes(cut.read_bytes()[:2_000])
    found = check_data(parts.folder.parent.parent, modality="depth")
    assert suspects(found) == {} and not any(one.error for one in found.facts)
    table = dict(rows_of(found))
    assert table["members"] == "depth" and not {"brightness of the part", "RGB against depth"} & table.keys()
    assert {"height of the part", "depth range"} <= table.keys()


def test_command_writes_sheets_settings_and_json(parts: Parts, tmp_path: Path) -> None:
    parts.stain("003")
    parts.millimetres("009")
    out = tmp_path / "out"
    result = das3d("inspect", parts.folder.parent.parent, "--out", out)
    assert result.exit_code == 0, result.output
    for words in (f"{TRAIN} good", "metres, as the layout mvtec3d has it", "train/good/003", "train/good/009", "window of"):
        assert words in result.stdout, result.stdout
    for name in ("parts.png", "oddest.png"):
        picture = cv2.imread(str(out / name))
        assert picture.shape[0] > 100 and (picture == (40, 39, 214)).all(axis=2).any(), "red frames, BGR"
    known = json.loads((out / "check.json").read_text())
    assert {suspect["part"] for suspect in known["suspects"]} >= {"train/good/003", "train/good/009"}
    assert len(known["parts"]) == TRAIN + VALIDATION + 2
    settings = make_settings(file=out / "settings.toml")
    assert settings.modality == "rgb+depth" and settings.preparation.size <= 192
    assert "# note: " in (out / "settings.toml").read_text()
    assert result.stdout.endswith(f"check.json and settings.toml in {out}\n")
    (out / "settings.toml").write_text("# mine")
    again = das3d("inspect", parts.folder.parent.parent, "--out", out)
    assert again.stdout.endswith(f"settings_suggested.toml in {out}; settings.toml, which differs, is kept\n")
    assert (out / "settings.toml").read_text() == "# mine"


def test_settings_that_were_edited_are_kept(sound_check: DataCheck, tmp_path: Path) -> None:
    mine, suggested = tmp_path / "settings.toml", tmp_path / "settings_suggested.toml"
    assert write_check(sound_check, tmp_path) == write_check(sound_check, tmp_path) == mine and not suggested.exists()
    as_written = mine.read_text()
    mine.write_text(as_written + "# mine\n")
    assert write_check(sound_check, tmp_path) == suggested
    assert mine.read_text() == as_written + "# mine\n" and suggested.read_text() == as_written
    mine.unlink()
    assert write_check(sound_check, tmp_path) == mine and not suggested.exists()


def test_settings_begin_with_a_command_that_a_shell_takes(sound_check: DataCheck, tmp_path: Path) -> None:
    dataset = replace(sound_check.dataset, root=Path("scans of today"))
    second = settings_text(replace(sound_check, dataset=dataset)).splitlines()[1]
    words = shlex.split(second.removeprefix("# "))
    # The file lies in another folder than the user stands in, and may be settings_suggested.toml.
    assert words == ["das3d", "train", "scans of today", "--settings", "THIS_FILE", "--out", "RUN"]


def test_settings_shrink_to_the_window_and_never_magnify(sound_check: DataCheck, tmp_path: Path) -> None:
    assert sound_check.statistics is not None and sound_check.statistics.window < 96
    (tmp_path / "settings.toml").write_text(settings_text(sound_check))
    assert make_settings(file=tmp_path / "settings.toml").preparation.size == 96
    assert any("would be magnified to 192" in line for line in sound_check.advice)


def test_depth_images_tell_no_millimetres(tmp_path: Path) -> None:
    make_demo(tmp_path / "demo", train=4, validation=1, good=0, defective=0, size=(64, 80))
    source, root = tmp_path / "demo" / CATEGORY / "train" / "good", tmp_path / "own"
    (root / "good").mkdir(parents=True)
    (root / "dataset.yaml").write_text("depth_scale: 0.0001")
    for index in range(4):
        shutil.copy(source / "rgb" / f"{index:03}.png", root / "good" / f"{index:03}_rgb.png")
        depth = Parts(source.parent.parent).points(f"{index:03}")[..., 2]
        cv2.imwrite(str(root / "good" / f"{index:03}_depth.png"), np.round(depth * 1e4).astype(np.uint16))
    result = das3d("inspect", root, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "needs XYZ, or focal_length in dataset.yaml" in result.stdout
    assert "0.0001 m a count, declared in dataset.yaml" in result.stdout
    (root / "dataset.yaml").write_text("depth_scale: 0.0001\nfocal_length: 90")
    result = das3d("inspect", root, "--out", tmp_path / "out")
    told = json.loads((tmp_path / "out" / "check.json").read_text())["table"]["size of the part"]
    assert result.exit_code == 0 and re.fullmatch(
        r"\d+ mm \(\d+ to \d+ mm\) long, \d+ mm \(.*\) wide, as the camera sees it", told
    )


def test_frames_of_many_sizes_are_looked_at(tmp_path: Path) -> None:
    for seed in range(6):
        scene = see(size=(120, 150 + 4 * seed), seed=seed)
        write_member(tmp_path / f"good/{seed}_rgb.png", scene.rgb)
        write_member(tmp_path / f"good/{seed}_depth.tiff", scene.depth.astype(np.float32))
    found = check_data(declare(tmp_path))
    assert suspects(found) == {} and found.statistics is not None and found.statistics.frame is None
    expected = "1 of 150 x 120, 1 of 154 x 120, 1 of 158 x 120, and 3 other sizes"
    assert dict(rows_of(found))["frame, pixels"] == expected


def test_the_pieces_of_a_rope_between_missing_points_are_one_part(tmp_path: Path) -> None:
    rope = (Box(-0.3, 0.3, -0.02, 0.02, 0.02),)
    for seed in range(12):
        scene = see(solids=rope, seed=seed)
        depth = scene.depth.astype(np.float32)
        if seed % 4 == 0:
            depth[:, 40:43] = depth[:, 130:133] = 0  # missing
        write_member(tmp_path / f"good/{seed:02}_rgb.png", scene.rgb)
        write_member(tmp_path / f"good/{seed:02}_depth.tiff", depth)
    declare(tmp_path)
    found = check_data(tmp_path)
    areas = [one.area for one in found.facts]
    assert all(one.runs_out for one in found.facts) and found.statistics is not None and found.statistics.runs_out
    assert areas == pytest.approx([areas[1]] * 12, rel=0.1)


def test_paths_may_be_plain_words() -> None:
    with pytest.raises(SettingsError, match=r"none\.toml: expected a settings file, found no such file"):
        check_data("none", file="none.toml")


def test_nothing_to_look_at_is_one_clear_line(tmp_path: Path) -> None:
    result = das3d("inspect", tmp_path / "none", "--out", tmp_path / "out")
    assert (
        result.exit_code == 1 and result.stderr == f"error: {tmp_path / 'none'}: expected a folder, found nothing there\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["inspect", "synth"])
def test_a_file_where_the_folder_should_be_is_refused_before_any_work(command: str, sound: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    result = das3d(command, sound, "--out", tmp_path / "out")
    assert result.exit_code == 2 and "is a file" in result.stderr and (tmp_path / "out").read_text() == "mine"


# ------------------------------------------------------------------------------------ real scans


@pytest.fixture
def glands(real_data: Path, tmp_path: Path) -> Parts:
    """The first 40 training parts of cable_gland, as links."""
    category = tmp_path / "cable_gland"
    for member, suffix in (("rgb", "png"), ("xyz", "tiff")):
        folder = category / "train" / "good" / member
        folder.mkdir(parents=True)
        for index in range(40):
            name = f"{index:03}.{suffix}"
            (folder / name).symlink_to(real_data / "mvtec3d" / "cable_gland" / "train" / "good" / member / name)
    return Parts(category)


def test_spoiled_real_parts_are_pointed_at_and_hardly_any_other(glands: Parts) -> None:
    glands.stain("020", radius=0.02)
    glands.shift("031", 8)
    glands.swap_rgb("003", "010")
    glands.millimetres("025")
    named = suspects(check(glands))
    assert named.keys() >= {"020", "031", "003", "010", "025"} and len(named) <= 7, named
    assert "odd colour" in named["020"] and "shift of RGB against depth" in named["031"] and named["025"] == ["unit"]
    assert "fit of RGB to depth" in named["003"] and "fit of RGB to depth" in named["010"]


def test_sheets_show_long_parts_in_their_proportions(tmp_path: Path) -> None:
    size = (300, 360)
    bar = (Box(-0.06, 0.06, -0.015, 0.015, 0.02),)
    for seed in range(4):
        scene = see(solids=bar, size=size, focal=1000.0, seed=seed)
        write_member(tmp_path / f"good/{seed}_rgb.png", scene.rgb)
        write_member(tmp_path / f"good/{seed}_depth.tiff", scene.depth.astype(np.float32))
    found = check_data(declare(tmp_path))
    assert found.statistics is not None and found.statistics.breadth
    first = found.good[0]
    rows, columns = np.nonzero(see(solids=bar, size=size, focal=1000.0).part)
    middle = round(columns.mean()), round(rows.mean())
    plain, circled = (_views(found, first.part, 200, circles) for circles in ([], [middle]))
    assert [view.shape for view in plain] == [(200, 200, 3)] * 2
    for view, marked in zip(plain, circled, strict=True):
        v, u = np.nonzero(view.max(axis=2) > 25)
        assert np.ptp(u) / np.ptp(v) == pytest.approx(first.length_px / first.width_px, rel=0.1)  # type: ignore[operator]
        ring_v, ring_u = np.nonzero((view != marked).any(axis=2))
        assert np.ptp(ring_u) == np.ptp(ring_v)
        assert [ring_u.mean(), ring_v.mean()] == pytest.approx([u.mean(), v.mean()], abs=2)


def test_wires_are_looked_at(tmp_path: Path) -> None:
    wire = (Box(-0.0012, 0.0012, -0.08, 0.08, 0.02),)
    for seed in range(4):
        scene = see(solids=wire, seed=seed)
        write_member(tmp_path / f"good/{seed}_rgb.png", scene.rgb)
        write_member(tmp_path / f"good/{seed}_depth.tiff", scene.depth.astype(np.float32))
    found = check_data(declare(tmp_path))
    assert found.statistics is not None and found.statistics.background == "plane"
    assert len(found.good) == 4 and not any(one.error for one in found.good)


def test_one_member_is_all_that_is_needed_where_that_is_said(tmp_path: Path) -> None:
    for seed in range(4):
        write_member(tmp_path / f"good/{seed:03}.png", see(seed=seed).rgb)
    result = das3d("inspect", tmp_path, "--modality", "rgb", "--out", tmp_path.parent / "looked")
    assert result.exit_code == 0, result.output
    with pytest.raises(DataError, match="a name that tells no member"):
        check_data(tmp_path)


def test_missing_depth_is_advised_on_by_what_else_the_networks_see(parts: Parts) -> None:
    for file in sorted((parts.folder / "rgb").iterdir()):
        points = parts.points(file.stem)
        points[40:60, 50:66] = 0
        parts.write(file.stem, points=points)
    both = check(parts)
    alone = check_data(parts.folder.parent.parent, modality="depth")
    assert any("of the part has no depth" in line and "show in RGB only" in line for line in both.advice), both.advice
    assert any("of the part has no depth" in line and "do not show" in line for line in alone.advice), alone.advice


def test_parts_that_are_all_trained_on_are_advised_on(parts: Parts, tmp_path: Path) -> None:
    shutil.rmtree(parts.folder.parent.parent / "validation")
    (tmp_path / "all.toml").write_text("[training]\nhold_out = 0\n")
    advice = check_data(parts.folder.parent.parent, file=tmp_path / "all.toml").advice
    assert "no good part is held out, so the model will have no threshold." in advice


def test_shifts_are_said_in_words() -> None:
    assert moved(-5.0, 0.0) == "5 pixels to the left" and moved(0.0, 0.4) == ""
    assert moved(8.0, -3.0) == "8 pixels to the right and 3 up" and moved(0.0, 4.0) == "4 pixels down"


def test_dark_parts_are_advised_on(parts: Parts) -> None:
    for file in sorted((parts.folder / "rgb").iterdir()):
        parts.write(file.stem, rgb=(parts.rgb(file.stem) // 16).astype(np.uint8))  # 12 bits read as 16
    advice = " ".join(check(parts).advice)
    assert "of 255 bright" in advice and "multiplied by 16" in advice


def test_coarse_steps_of_depth_are_advised_on(parts: Parts, sound_check: DataCheck) -> None:
    assert "in steps" not in " ".join(sound_check.advice)
    for file in sorted((parts.folder / "rgb").iterdir()):
        points = parts.points(file.stem)
        points[..., 2] = np.round(points[..., 2] / 0.001) * 0.001
        parts.write(file.stem, points=points)
    assert re.search(r"depth comes in steps of 1 mm, \d% of its range", " ".join(check(parts).advice))


def test_a_number_for_missing_depth_that_nobody_declared_is_advised_on(parts: Parts, sound_check: DataCheck) -> None:
    assert "depth_missing" not in " ".join(sound_check.advice)
    for file in sorted((parts.folder / "rgb").iterdir()):
        points = parts.points(file.stem)
        points[:4, :, 2] = 6.5535
        parts.write(file.stem, points=points)
    assert "exactly 6.5535 m away" in " ".join(check(parts).advice)
    root = parts.folder.parent.parent
    for folder in (parts.folder, root / "validation" / "good", root / "test" / "good"):
        for file in (folder / "xyz").iterdir():
            tifffile.imwrite(file, tifffile.imread(file) * 1000, photometric="minisblack")
    declare(root, "depth_unit: mm")
    advice = " ".join(check(parts).advice)
    assert "exactly 6.5535 m away" in advice and '"depth_missing: 6553.5" into dataset.yaml' in advice
