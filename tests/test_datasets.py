"""Every layout gives the right parts: paired by name, in natural order, each in its split, its members together."""

from __future__ import annotations

import os
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from builders import SIZE, declare, eyecandies, mvtec3d, own_data, own_kind, sample, write_member, write_pcd, write_ply
from hypothesis import given, settings
from hypothesis import strategies as st

from das3d._listing import natural_order
from das3d.datasets import Dataset, expect_outside, find_categories, find_dataset, find_folder
from das3d.errors import DataError
from das3d.files import METRES, DepthFormat, read_rgb
from das3d.parts import Part, split_good

few = settings(max_examples=40, deadline=None)


def ids(parts: Dataset | list[Part]) -> list[str]:
    return [part.id for part in (parts.parts if isinstance(parts, Dataset) else parts)]


def check_reads(part: Part, seed: int, *, marked: bool = False) -> None:
    """The part is `sample(seed)`, all members of it."""
    scan, truth = part.read(), sample(seed)
    assert scan.rgb is not None and scan.depth is not None and scan.mask is not None
    np.testing.assert_array_equal(scan.rgb, truth.rgb)
    np.testing.assert_allclose(scan.depth[truth.valid], truth.depth[truth.valid], rtol=1e-5)
    np.testing.assert_array_equal(scan.mask, truth.mask & marked)


# ------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize(("masks", "layout"), [("gt", "mvtec3d"), ("ground_truth", "3d-adam")])
def test_mvtec3d_and_3d_adam(tmp_path: Path, masks: str, layout: str) -> None:
    dataset = find_dataset(mvtec3d(tmp_path / "bolt", masks=masks))
    assert (dataset.layout, dataset.category, dataset.root) == (layout, "bolt", tmp_path / "bolt")
    assert ids(dataset) == [
        "train/good/000", "train/good/001", "train/good/002", "validation/good/000",
        "test/good/000", "test/hole/000", "test/hole/001",
    ]  # fmt: skip
    assert [len(split) for split in (dataset.train, dataset.validation, dataset.test)] == [3, 1, 3]
    assert [part.defect for part in dataset.test] == ["good", "hole", "hole"]
    assert [part.defective for part in dataset.test] == [False, True, True]
    assert dataset.depth_format == METRES
    check_reads(dataset.train[2], 2)
    check_reads(dataset.test[0], 0)
    check_reads(dataset.test[2], 1, marked=True)


def test_calibration_beside_the_splits_is_no_part(tmp_path: Path) -> None:
    mvtec3d(tmp_path / "bolt")
    (tmp_path / "bolt" / "calibration").mkdir()
    (tmp_path / "bolt" / "calibration" / "camera_parameters.json").write_text("{}")
    assert len(find_dataset(tmp_path / "bolt").parts) == 7


def test_eyecandies(tmp_path: Path) -> None:
    dataset = find_dataset(eyecandies(tmp_path / "Cake", kinds=["", "dents", "bumps+colors"]))
    assert (dataset.layout, dataset.category) == ("eyecandies", "Cake")
    assert ids(dataset) == [
        "train/good/00", "train/good/01", "validation/good/00",
        "test/good/00", "test/dents/01", "test/bumps+colors/02",
    ]  # fmt: skip
    part = dataset.test[1]
    scan, truth = part.read(), sample(1)
    assert scan.depth is not None and scan.valid is not None and scan.mask is not None
    assert scan.valid.all()  # there is a depth everywhere; count 0 is the lowest
    np.testing.assert_allclose(scan.depth, truth.depth.clip(0.3), atol=0.4 / 65535)
    np.testing.assert_array_equal(scan.mask, truth.mask)
    assert not dataset.test[0].read().mask.any()  # type: ignore[union-attr]


@pytest.mark.parametrize("light", range(6))
def test_eyecandies_light_chooses_the_image(tmp_path: Path, light: int) -> None:
    eyecandies(tmp_path, lights=range(6))
    dataset = find_dataset(tmp_path, light=light)
    assert {part.rgb.name for part in dataset.parts if part.rgb} == {f"{n:02}_image_{light}.png" for n in range(2)}
    np.testing.assert_array_equal(dataset.train[0].read().rgb, np.roll(sample().rgb, light - 4, axis=2))
    assert dataset.light == light


def test_where_nobody_says_eyecandies_are_lit_from_all_sides(tmp_path: Path) -> None:
    eyecandies(tmp_path / "cake", lights=range(6))
    assert find_dataset(tmp_path / "cake") == find_dataset(tmp_path / "cake", light=4) != find_dataset(tmp_path, light=3)
    assert find_dataset(mvtec3d(tmp_path / "bolt"), light=3).light is None, "of other layouts there is one image"


def test_eyecandies_depth_is_read_by_each_parts_own_range(tmp_path: Path) -> None:
    eyecandies(tmp_path)
    (tmp_path / "train/data/01_info_depth.yaml").write_text("normalization: {min: 1.25, max: 5}")
    dataset = find_dataset(tmp_path)
    assert dataset.train[0].depth_format == DepthFormat((0.7 - 0.3) / 65535, 0.3, focal_length=711.11)
    assert dataset.train[1].depth_format == DepthFormat(3.75 / 65535, 1.25, focal_length=711.11)
    assert dataset.depth_format is None  # they differ
    depth = dataset.train[1].read().depth
    assert depth is not None and depth.min() == np.float32(1.25)


def test_eyecandies_with_unknown_kind_of_defect_is_anomalous(tmp_path: Path) -> None:
    eyecandies(tmp_path)
    (tmp_path / "test_public/data/01_metadata.yaml").write_text("anomalous: 1\n")
    assert ids(find_dataset(tmp_path))[-1] == "test/anomalous/01"


@pytest.mark.parametrize("suffixes", [False, True])
@pytest.mark.parametrize("masks", [False, True])
def test_own_folder_that_is_not_split(tmp_path: Path, suffixes: bool, masks: bool) -> None:
    names = [f"p{index}" for index in range(12)]
    own_kind(tmp_path / "good", names, suffixes=suffixes)
    own_kind(tmp_path / "dent", ["x", "y"], suffixes=suffixes, members="rgb depth mask" if masks else "rgb depth")
    dataset = find_dataset(declare(tmp_path))
    assert dataset.layout == "folder"
    good = [part for part in dataset.parts if part.defect == "good"]
    assert [part.id.split("/")[-1] for part in good] == names
    assert [part.split for part in good] == split_good(names, test=True)
    assert {part.split for part in good} == {"train", "validation", "test"}
    assert [part.id for part in dataset.parts if part.defective] == ["test/dent/x", "test/dent/y"]
    assert all(part.id.startswith(f"{part.split}/good/") for part in good)
    for seed, part in enumerate(good[:3]):
        check_reads(part, seed)
    defective = dataset.test[[part.defective for part in dataset.test].index(True)]
    assert defective.defect == "dent"
    if masks:
        check_reads(defective, 0, marked=True)
    else:
        assert defective.masks == () and defective.read().mask is None


@pytest.mark.parametrize("suffixes", [False, True])
@pytest.mark.parametrize("validation", ["val", "validation"])
def test_own_folder_that_is_split(tmp_path: Path, suffixes: bool, validation: str) -> None:
    own_kind(tmp_path / "train/good", "abc", suffixes=suffixes)
    own_kind(tmp_path / validation / "good", "de", suffixes=suffixes)
    own_kind(tmp_path / "test/good", "f", suffixes=suffixes)
    own_kind(tmp_path / "test/dent", "g", suffixes=suffixes, members="rgb depth mask")
    dataset = find_dataset(declare(tmp_path))
    assert ids(dataset) == [
        "train/good/a", "train/good/b", "train/good/c", "validation/good/d", "validation/good/e",
        "test/dent/g", "test/good/f",
    ]  # fmt: skip
    check_reads(dataset.test[0], 0, marked=True)


def test_training_parts_without_validation_are_held_out(tmp_path: Path) -> None:
    names = [f"p{index}" for index in range(20)]
    own_kind(tmp_path / "train/good", names)
    own_kind(tmp_path / "test/good", ["p3", "z"])  # names that training parts have too stay where they are
    dataset = find_dataset(declare(tmp_path))
    assert [part.split for part in dataset.parts[:20]] == split_good(names, test=False)
    assert dataset.validation
    assert [part.id for part in dataset.test] == ["test/good/p3", "test/good/z"]
    assert len(find_dataset(tmp_path, hold_out=0.4).validation) > len(dataset.validation)
    assert find_dataset(tmp_path, hold_out=0.0).validation == ()


def test_one_split_of_a_data_set_stays_that_split(tmp_path: Path) -> None:
    names = [f"p{index}" for index in range(20)]
    own_kind(declare(tmp_path / "gear") / "train/good", ["a", "b"])
    own_kind(tmp_path / "gear/test/good", names)
    own_kind(tmp_path / "gear/test/dent", ["x"])
    found = find_dataset(tmp_path / "gear/test", needs="test", depth_format=METRES)
    assert len(found.test) == len(found.parts) == 21
    assert {part.id for part in found.parts} == {part.id for part in find_dataset(tmp_path / "gear").test}


def test_training_parts_alone_are_held_out_as_in_their_data_set(tmp_path: Path) -> None:
    own_kind(declare(tmp_path / "gear") / "train/good", [f"p{index}" for index in range(20)])
    own_kind(tmp_path / "gear/test/good", ["a"])
    whole, alone = find_dataset(tmp_path / "gear"), find_dataset(tmp_path / "gear/train")
    assert alone.validation and (ids(list(alone.train)), ids(list(alone.validation))) == (
        ids(list(whole.train)), ids(list(whole.validation)),
    )  # fmt: skip
    own_kind(tmp_path / "gear/val/good", ["b"])
    assert not find_dataset(tmp_path / "gear/train").validation, "those of gear are elsewhere"


def test_good_parts_alone_are_split_without_test_parts(tmp_path: Path) -> None:
    own_kind(tmp_path / "good", "abcdef")
    dataset = find_dataset(declare(tmp_path))
    assert dataset.train and dataset.validation and not dataset.test


@pytest.mark.parametrize("role", ["rgb", "image", "images", "color", "colour", "RGB"])
@pytest.mark.parametrize("depth_role", ["depth", "xyz", "points", "cloud"])
def test_roles_have_several_names(tmp_path: Path, role: str, depth_role: str) -> None:
    for name in "ab":
        write_member(tmp_path / "good" / role / f"{name}.png", sample().rgb)
        write_member(tmp_path / "good" / depth_role / f"{name}.npy", sample().points)
        write_member(tmp_path / "dent" / f"{name}_{role}.png", sample().rgb)
        write_member(tmp_path / "dent" / f"{name}_{depth_role}.npy", sample().points)
    parts = find_dataset(declare(tmp_path)).parts
    assert len(parts) == 4
    for part in parts:
        check_reads(Part(part.id, "train", "good", part.rgb, part.depth, (), part.depth_format), 0)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("depth_unit: m", METRES),
        ("depth_unit: mm", DepthFormat(0.001)),
        ("depth_scale: 1e-4", DepthFormat(1e-4)),  # which YAML takes for text
        ("depth_scale: 0.0001\ndepth_missing: 65535", DepthFormat(1e-4, missing=65535)),
        ("depth_unit: um\ndepth_missing:", DepthFormat(1e-6)),
        ("depth_unit: m\ndepth_missing: nan", METRES),
        ("depth_unit: m\ndepth_missing: -.inf", METRES),
        ("depth_unit: mm\nfocal_length: 615", DepthFormat(1e-3, focal_length=615.0)),
    ],
)
def test_dataset_yaml_declares_how_depth_is_read(tmp_path: Path, text: str, form: DepthFormat) -> None:
    own_kind(tmp_path / "good")
    dataset = find_dataset(declare(tmp_path, text), depth_format=DepthFormat(7.0))  # what the data says comes first
    assert {part.depth_format for part in dataset.parts} == {form}
    assert dataset.depth_format == form


def test_depth_format_of_the_caller_holds_where_the_data_tells_none(tmp_path: Path) -> None:
    own_kind(tmp_path / "good")
    for text in (None, "", "# nothing yet\n"):
        if text is not None:
            declare(tmp_path, text)
        assert find_dataset(tmp_path, depth_format=DepthFormat(0.5)).depth_format == DepthFormat(0.5)


WRITERS: dict[str, Callable[[Path, int, float], object]] = {
    "16-bit PNG": lambda path, seed, per_metre: write_member(
        path.with_suffix(".png"), np.rint(sample(seed).depth.astype(np.float64) * per_metre).astype(np.uint16)
    ),
    "float TIFF": lambda path, seed, per_metre: write_member(path.with_suffix(".tif"), sample(seed).depth * per_metre),
    "points in TIFF": lambda path, seed, per_metre: write_member(
        path.with_suffix(".tiff"), sample(seed).points * per_metre
    ),
    "NPY": lambda path, seed, per_metre: write_member(path.with_suffix(".npy"), sample(seed).depth * per_metre),
    "PLY": lambda path, seed, per_metre: write_ply(path.with_suffix(".ply"), sample(seed).points * per_metre, "ascii"),
    "PLY, no grid": lambda path, seed, per_metre: write_ply(
        path.with_suffix(".ply"), sample(seed).points * per_metre, grid=None
    ),
    "PCD, no grid": lambda path, seed, per_metre: write_pcd(
        path.with_suffix(".pcd"), sample(seed).points * per_metre, organised=False
    ),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_own_folder_in_any_format_and_unit_gives_the_same_scans(tmp_path: Path, kind: str) -> None:
    units = {"um": 1e6, "mm": 1e3, "0.0001": 1e4} if kind != "16-bit PNG" else {"0.0001": 1e4, "0.00002": 5e4}
    for unit, per_metre in units.items():
        folder = own_kind(tmp_path / unit / "good", "ab", members="rgb", suffixes=True)
        for seed, name in enumerate("ab"):
            WRITERS[kind](folder / f"{name}_depth", seed, per_metre)
        text = f"depth_unit: {unit}" if unit.endswith("m") else f"depth_scale: {unit}"
        for seed, part in enumerate(find_dataset(declare(tmp_path / unit, text)).parts):
            check_reads(part, seed)
            assert part.read().depth is not None and (part.read(rgb=False).valid == sample(seed).valid).all()


# ------------------------------------------------------------------------------------------- one modality


def test_rgb_only_and_depth_only(tmp_path: Path) -> None:
    own_kind(tmp_path / "flat/good", "abc", members="rgb")
    own_kind(tmp_path / "flat/dent", "a", members="rgb mask")
    dataset = find_dataset(tmp_path / "flat", depth=False)
    assert all(part.depth is None for part in dataset.parts) and dataset.depth_format is None
    scan = dataset.test[-1].read()
    assert scan.depth is None and scan.rgb is not None
    own_kind(tmp_path / "deep/good", "abc", members="depth")
    scan = find_dataset(declare(tmp_path / "deep"), rgb=False).parts[0].read()
    assert scan.rgb is None and scan.mask is not None
    np.testing.assert_array_equal(scan.valid, sample().valid)


def test_a_member_that_is_not_needed_is_kept_where_all_parts_have_it(tmp_path: Path) -> None:
    own_data(tmp_path)
    for rgb, depth in ((True, False), (False, True)):
        assert all(part.rgb and part.depth for part in find_dataset(tmp_path, rgb=rgb, depth=depth).parts)


@pytest.mark.parametrize(("member", "suffix"), [("rgb", "png"), ("depth", "tiff")])
def test_names_need_not_tell_the_member_where_one_is_enough(tmp_path: Path, member: str, suffix: str) -> None:
    for name in ("left_1", "left_2", "left_10"):
        write_member(tmp_path / "good" / f"{name}.{suffix}", getattr(sample(), member))
    parts = find_dataset(declare(tmp_path), rgb=member == "rgb", depth=member == "depth").parts
    assert [part.id.split("/")[-1] for part in parts] == ["left_1", "left_2", "left_10"]
    assert all(getattr(part, member) is not None for part in parts)


def test_eyecandies_without_depth_or_rgb(tmp_path: Path) -> None:
    eyecandies(tmp_path)
    for depth in tmp_path.rglob("*depth*"):
        depth.unlink()
    assert all(part.depth is None for part in find_dataset(tmp_path, depth=False).parts)
    eyecandies(tmp_path)
    for image in tmp_path.rglob("*_image_4.png"):
        image.unlink()
    assert all(part.rgb is None for part in find_dataset(tmp_path, rgb=False).parts)


# ------------------------------------------------------------------------------------------- parts to predict


@pytest.mark.parametrize("suffixes", [False, True])
def test_plain_folder_holds_parts_that_nobody_has_judged(tmp_path: Path, suffixes: bool) -> None:
    own_kind(tmp_path, ["n1", "n2", "n10"], suffixes=suffixes)
    parts = find_folder(tmp_path)
    assert ids(parts) == ["n1", "n2", "n10"]
    for seed, part in enumerate(parts):
        assert (part.split, part.defect, part.defective) == ("test", "unknown", False)
        scan = part.read()
        assert scan.mask is None
        np.testing.assert_array_equal(scan.rgb, sample(seed).rgb)


def test_plain_folder_of_counts_needs_a_unit_from_somewhere(tmp_path: Path) -> None:
    write_member(tmp_path / "a_rgb.png", sample().rgb)
    write_member(tmp_path / "a_depth.png", sample().counts)
    with pytest.raises(DataError, match=r"a_depth\.png: expected a declared unit"):
        find_folder(tmp_path)
    by_caller = find_folder(tmp_path, depth_format=DepthFormat(1e-4))[0].read()
    by_file = find_folder(declare(tmp_path, "depth_scale: 0.0001"))[0].read()
    for scan in (by_caller, by_file):
        np.testing.assert_allclose(scan.depth, sample().depth, rtol=1e-6)


@pytest.mark.parametrize("build", [mvtec3d, eyecandies, own_data])
def test_a_whole_data_set_can_be_predicted(tmp_path: Path, build: Callable[[Path], Path]) -> None:
    build(tmp_path / "bolt")
    assert ids(find_folder(tmp_path / "bolt")) == ids(find_dataset(tmp_path / "bolt"))


# ------------------------------------------------------------------------------------------- names, order, strays


@few
@given(st.lists(st.integers(0, 10**30), max_size=20), st.sampled_from(["", "part", "7-"]))
def test_natural_order_is_that_of_numbers(numbers: list[int], prefix: str) -> None:
    names = [f"{prefix}{number}_x" for number in numbers]
    assert natural_order(names) == [f"{prefix}{number}_x" for number in sorted(numbers)]


@few
@given(st.lists(st.text("ab01²٣ _-", max_size=6), max_size=12), st.randoms())
def test_natural_order_is_one_for_all_orders_of_any_names(names: list[str], random: Callable[..., None]) -> None:
    shuffled = list(names)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert natural_order(shuffled) == natural_order(names)
    assert Counter(natural_order(names)) == Counter(names)


def test_parts_and_kinds_are_in_natural_order(tmp_path: Path) -> None:
    own_kind(tmp_path / "train/good", ["10", "9", "1", "b2", "B10", "a"])
    own_kind(tmp_path / "val/good", "v")
    own_kind(tmp_path / "test/kind10", "t")
    own_kind(tmp_path / "test/kind9", "t")
    assert ids(find_dataset(declare(tmp_path))) == [
        *(f"train/good/{name}" for name in ("1", "9", "10", "B10", "a", "b2")),
        "validation/good/v", "test/kind9/t", "test/kind10/t",
    ]  # fmt: skip


LITTER = (
    ".DS_Store", "Thumbs.db", "desktop.ini", "notes.txt", "README.md", "camera.json", "log.csv",
    "._000.png", ".hidden.png", "._00_metadata.yaml", "~$notes.docx", "camera.xml", "camera.INI", "parts.xlsx", "lens.pdf",
)  # fmt: skip


def litter(root: Path) -> None:
    """What systems, cameras and people leave in every folder, and hidden folders with copies of parts."""
    folders = [root, *(path for path in root.rglob("*") if path.is_dir())]
    for folder in folders:
        for name in LITTER:
            (folder / name).write_bytes(b"\0junk")
        for name in (".git", ".ipynb_checkpoints", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", "@eaDir"):
            write_member(folder / name / "000.png", sample().rgb)
            write_member(folder / name / "good/xyz/._000.tiff", sample().points)


@pytest.mark.parametrize("build", [mvtec3d, eyecandies, own_data])
def test_stray_files_and_hidden_folders_change_nothing(tmp_path: Path, build: Callable[[Path], Path]) -> None:
    build(tmp_path / "bolt")
    before = find_dataset(tmp_path)
    litter(tmp_path)
    assert find_dataset(tmp_path, "bolt") == before
    assert find_categories(tmp_path) == ["bolt"]
    assert find_folder(tmp_path / "bolt") == list(before.parts)


def test_strays_in_a_plain_folder_change_nothing(tmp_path: Path) -> None:
    own_kind(tmp_path / "suffixes", "abc", suffixes=True)
    own_kind(tmp_path / "folders", "abc")
    before = [find_folder(tmp_path / name) for name in ("suffixes", "folders")]
    litter(tmp_path)
    assert [find_folder(tmp_path / name) for name in ("suffixes", "folders")] == before


def test_categories(tmp_path: Path) -> None:
    for name in ("bolt10", "bolt9", "Cake"):
        (eyecandies if name == "Cake" else mvtec3d)(tmp_path / name)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "list.txt").write_text("")
    assert find_categories(tmp_path) == ["Cake", "bolt9", "bolt10"]
    assert find_categories(tmp_path / "bolt9") == ["bolt9"]
    assert find_categories(str(tmp_path / "pictures")) == []
    assert (
        find_dataset(tmp_path, "bolt10") == find_dataset(tmp_path / "bolt10") == find_dataset(tmp_path / "bolt10", "bolt10")
    )


def test_a_folder_of_data_that_nobody_has_split_is_no_category(tmp_path: Path) -> None:
    for name in ("gear", "cap"):
        for kind in ("good", "dent"):
            write_member(tmp_path / name / kind / "rgb/000.png", sample().rgb)
            write_member(tmp_path / name / kind / "xyz/000.tiff", sample().points)
    assert find_categories(tmp_path) == ["cap", "gear"]
    assert find_dataset(tmp_path, "gear", depth_format=METRES).layout == "folder"


def test_the_only_category_need_not_be_named(tmp_path: Path) -> None:
    mvtec3d(tmp_path / "bolt")
    assert find_dataset(tmp_path) == find_dataset(tmp_path / "bolt")


def test_category_is_named_where_the_path_does_not_name_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(mvtec3d(tmp_path / "bolt"))
    assert find_dataset(".").category == "bolt"
    assert find_categories(".") == ["bolt"]


def test_progress_counts_every_part(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    find_dataset(mvtec3d(tmp_path), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 7) for done in range(1, 8)]


# ------------------------------------------------------------------------------------------- members together


def test_members_of_a_part_stay_on_one_grid(tmp_path: Path) -> None:
    # Each pixel tells its place in every member.
    v, u = np.indices((30, 50))
    spot = (v == 7) & (u == 41)
    for name, shift in (("a", 0), ("b", 100)):
        place = np.stack([u + shift, v, u], axis=-1).astype(np.uint8)
        write_member(tmp_path / f"bent/{name}_rgb.png", place)
        write_member(tmp_path / f"bent/{name}_depth.png", (1 + u + 100 * v + 10 * shift).astype(np.uint16))
        write_member(tmp_path / f"bent/{name}_mask.png", spot)
    own_kind(tmp_path / "good")
    parts = [part for part in find_dataset(declare(tmp_path, "depth_unit: mm")).parts if part.defective]
    assert [part.id for part in parts] == ["test/bent/a", "test/bent/b"]
    for part in parts:
        shift = {"a": 0, "b": 100}[part.id[-1]]
        scan = part.read()
        assert scan.rgb is not None and scan.depth is not None and scan.mask is not None
        np.testing.assert_array_equal(scan.rgb[..., 0], u + shift)
        np.testing.assert_array_equal(np.rint(scan.depth * 1000), 1 + u + 100 * v + 10 * shift)
        assert scan.rgb[scan.mask].tolist() == [[41 + shift, 7, 41]]
        assert scan.name == str(part.depth) and part.read(depth=False).name == str(part.rgb), "what is wrong is so by depth"


def test_a_part_can_be_read_without_a_member(tmp_path: Path) -> None:
    part = find_dataset(own_data(tmp_path)).test[-1]
    flat, bare = part.read(depth=False), part.read(rgb=False)
    assert flat.depth is None and flat.valid is None and flat.rgb is not None and flat.mask is not None
    assert bare.rgb is None and bare.depth is not None and bare.mask is not None
    with pytest.raises(DataError, match="expected RGB, depth or both, found neither"):
        part.read(rgb=False, depth=False)


def test_ground_truth_is_the_union_of_all_masks(tmp_path: Path) -> None:
    left, right = np.zeros(SIZE, np.bool_), np.zeros(SIZE, np.bool_)
    left[2, 3], right[5, 9] = True, True
    masks = (write_member(tmp_path / "0.png", left), write_member(tmp_path / "1.png", right))
    rgb = write_member(tmp_path / "rgb.png", sample().rgb)
    np.testing.assert_array_equal(Part("test/bent/0", "test", "bent", rgb, None, masks).read().mask, left | right)


@pytest.mark.parametrize(("defect", "known"), [("good", True), ("bent", False), ("unknown", False)])
def test_without_mask_files_only_good_parts_have_a_mask(tmp_path: Path, defect: str, known: bool) -> None:
    rgb = write_member(tmp_path / "rgb.png", sample().rgb)
    mask = Part("x", "test", defect, rgb, None).read().mask
    assert (mask is not None) == known
    assert mask is None or not mask.any()


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_defect_marked_on_a_good_part_is_refused(tmp_path: Path, split: str) -> None:
    folder = mvtec3d(tmp_path / "bolt")
    mask = np.zeros(SIZE, np.bool_)
    part = find_dataset(folder).train[1] if split == "train" else getattr(find_dataset(folder), split)[0]
    file = write_member(folder / split / "good" / "gt" / f"{part.id[-3:]}.png", mask)
    read = {
        one.id: one for one in [*find_dataset(folder).train, *find_dataset(folder).validation, *find_dataset(folder).test]
    }
    assert not read[part.id].read().mask.any()  # type: ignore[union-attr]
    mask[2, 3:6] = True
    write_member(file, mask)
    with pytest.raises(DataError, match="expected no defect on a good part, found 3 marked pixels") as error:
        read[part.id].read()
    assert str(file) in str(error.value)


# ------------------------------------------------------------------------------------------- splitting good parts

names_of_parts = st.lists(st.text("abc0123456789_", min_size=1, max_size=8), unique=True, max_size=40)


@few
@given(names_of_parts, st.booleans(), st.randoms())
def test_a_split_depends_on_the_names_alone(names: list[str], test: bool, random: Callable[..., None]) -> None:
    splits = dict(zip(names, split_good(names, test=test), strict=True))
    shuffled = list(names)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert dict(zip(shuffled, split_good(shuffled, test=test), strict=True)) == splits


@few
@given(names_of_parts, st.booleans())
def test_every_split_has_a_part_where_there_are_enough(names: list[str], test: bool) -> None:
    count = Counter(split_good(names, test=test))
    assert count.total() == len(names)
    for least, split in enumerate(["train", "validation", *(["test"] if test else [])], start=1):
        assert (count[split] > 0) == (len(names) >= least)
    assert test or not count["test"]


@few
@given(st.integers(0, 10**9), st.integers(200, 400), st.integers(1, 200), st.booleans())
def test_further_parts_never_move_a_part_of_a_large_set(start: int, count: int, more: int, test: bool) -> None:
    names = [f"part {number}" for number in range(start, start + count + more)]
    assert split_good(names, test=test)[:count] == split_good(names[:count], test=test)


@pytest.mark.parametrize("test", [False, True])
def test_shares_of_the_splits(test: bool) -> None:
    count = Counter(split_good([f"scan_{number:05}" for number in range(20_000)], test=test))
    shares = {"train": 0.8, "validation": 0.1, "test": 0.1} if test else {"train": 0.9, "validation": 0.1}
    assert {split: pytest.approx(number / 20_000, abs=0.01) for split, number in count.items()} == shares


def test_validation_parts_are_the_same_with_and_without_test_parts() -> None:
    names = [f"{number:03}" for number in range(500)]
    with_test, without = split_good(names, test=True), split_good(names, test=False)
    assert [split == "validation" for split in with_test] == [split == "validation" for split in without]


@pytest.mark.parametrize("test", [False, True])
def test_a_larger_share_holds_out_the_same_parts_and_more_and_tests_the_same(test: bool) -> None:
    names = [f"{number:03}" for number in range(500)]
    splits = [split_good(names, test=test, hold_out=share) for share in (0.0, 0.05, 0.1, 0.4)]
    assert splits[2] == split_good(names, test=test)
    held_out = [{name for name, split in zip(names, one, strict=True) if split == "validation"} for one in splits]
    assert held_out[0] == set() and held_out[0] < held_out[1] < held_out[2] < held_out[3]
    assert [len(names) / 500 for names in held_out] == pytest.approx([0.0, 0.05, 0.1, 0.4], abs=0.03)
    assert len({tuple(split == "test" for split in one) for one in splits}) == 1


def test_splits_are_the_same_for_ever() -> None:
    # Written down, so that a new version never moves a user's parts.
    splits = split_good([f"{number:03}" for number in range(12)], test=True)
    assert [number for number, split in enumerate(splits) if split == "validation"] == [6]
    assert [number for number, split in enumerate(splits) if split == "test"] == [8]


# ------------------------------------------------------------------------------------------- real scans


def test_real_cable_gland(real_data: Path) -> None:
    dataset = find_dataset(real_data / "mvtec3d", "cable_gland")
    assert (dataset.layout, dataset.category) == ("mvtec3d", "cable_gland")
    assert [len(split) for split in (dataset.train, dataset.validation, dataset.test)] == [130, 23, 55]
    assert Counter(part.defect for part in dataset.test) == dict.fromkeys(("good", "bent", "cut", "hole", "thread"), 11)
    assert all(part.masks for part in dataset.test if part.defective)
    scan = dataset.test[0].read()
    assert scan.size == (400, 400) and scan.camera is not None


def test_real_candy_cane(real_data: Path) -> None:
    dataset = find_dataset(real_data / "eyecandies" / "CandyCane")
    assert (dataset.layout, dataset.category) == ("eyecandies", "CandyCane")
    assert [len(split) for split in (dataset.train, dataset.validation, dataset.test)] == [40, 10, 10]
    assert sum(part.defective for part in dataset.test) == 5
    for part in dataset.test:
        if part.defective:
            scan = part.read()
            assert scan.mask is not None and scan.mask.any() and scan.valid is not None and scan.valid.all()


REAL_COPIES: dict[str, tuple[str, float]] = {
    "16-bit PNG in 0.1 mm": ("depth_scale: 0.0001", 0.5e-4),
    "PLY in millimetres": ("depth_unit: mm", 1e-6),
    "PCD in metres": ("depth_unit: m", 1e-7),
}


@pytest.mark.parametrize("kind", REAL_COPIES)
@pytest.mark.parametrize("picture", ["png", "jpg"])
def test_real_scans_read_the_same_from_an_own_folder(real_data: Path, tmp_path: Path, kind: str, picture: str) -> None:
    declared, rounding = REAL_COPIES[kind]
    found = find_dataset(real_data / "mvtec3d" / "cable_gland")
    chosen = [found.train[0], found.train[1], next(part for part in found.test if part.defect == "hole")]
    for part in chosen:
        assert part.rgb and part.depth
        folder = tmp_path / ("hole" if part.defective else "good")
        points, colours = cv2.imread(str(part.depth), cv2.IMREAD_UNCHANGED)[..., ::-1], read_rgb(part.rgb)
        write_member(folder / f"{part.rgb.stem}_rgb.{picture}", colours)
        target = folder / f"{part.rgb.stem}_depth"
        if kind.startswith("16-bit"):
            write_member(target.with_suffix(".png"), np.rint(points[..., 2].astype(np.float64) * 1e4).astype(np.uint16))
        elif kind.startswith("PLY"):
            write_ply(target.with_suffix(".ply"), points * np.float32(1000))
        else:
            write_pcd(target.with_suffix(".pcd"), points, "binary_compressed")
        for mask in part.masks:
            shutil.copy(mask, folder / f"{part.rgb.stem}_mask.png")
    copies = {(part.defect, part.rgb.stem.removesuffix("_rgb")): part for part in
              find_dataset(declare(tmp_path, declared)).parts if part.rgb}  # fmt: skip
    assert len(copies) == 3
    for part in chosen:
        assert part.rgb and part.depth
        scan, copy = part.read(), copies[part.defect, part.rgb.stem].read()
        assert scan.depth is not None and copy.depth is not None and scan.rgb is not None and copy.rgb is not None
        np.testing.assert_array_equal(copy.valid, scan.valid)
        assert np.abs(copy.depth - scan.depth).max() <= rounding * 1.01
        np.testing.assert_array_equal(copy.mask, scan.mask)
        assert np.abs(copy.rgb.astype(int) - scan.rgb).mean() <= (0 if picture == "png" else 3)


# ------------------------------------------------------------------------------------------- as people have it


def test_names_pair_whichever_way_their_accents_are_written(tmp_path: Path) -> None:
    for number in range(3):
        part = sample(number)
        write_member(tmp_path / "good" / f"{unicodedata.normalize('NFC', f'Gehäuse {number}')}_rgb.png", part.rgb)
        write_member(tmp_path / "good" / f"{unicodedata.normalize('NFD', f'Gehäuse {number}')}_depth.npy", part.points)
    declare(tmp_path)
    dataset = find_dataset(tmp_path)
    assert {part.id.split("/")[-1] for part in dataset.parts} == {f"Gehäuse {number}" for number in range(3)}
    assert all(part.rgb and part.depth for part in dataset.parts)


def test_suffixes_in_capitals_are_no_other_layout(tmp_path: Path) -> None:
    root = mvtec3d(tmp_path / "bolt")
    for file in root.rglob("*.tiff"):
        file.rename(file.with_suffix(".TIF"))
    dataset = find_dataset(root)
    assert dataset.layout == "mvtec3d" and len(dataset.parts) == 7


@pytest.mark.parametrize("name", ["Good", "OK", "io", "normal"])
def test_good_parts_under_another_name_are_pointed_at(tmp_path: Path, name: str) -> None:
    own_kind(tmp_path / "parts" / name, range(3))
    with pytest.raises(DataError, match=rf"found only {name}; is {name} to be called good\?"):
        find_dataset(tmp_path / "parts")


@pytest.mark.skipif(os.name == "nt", reason="Windows asks for a right to make links")
def test_a_category_is_called_as_its_folder_even_where_that_is_a_link(tmp_path: Path) -> None:
    mvtec3d(tmp_path / "store" / "objects_01")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "bolt").symlink_to(tmp_path / "store" / "objects_01")
    assert find_dataset(tmp_path / "data" / "bolt").category == "bolt"
    assert find_dataset(tmp_path / "data", "bolt").parts == find_dataset(tmp_path / "data" / "bolt", "bolt").parts


def test_nothing_is_written_among_the_parts(tmp_path: Path) -> None:
    own_data(tmp_path / "own")
    mvtec3d(tmp_path / "many" / "bolt")
    mvtec3d(tmp_path / "many" / "nut")
    plain = tmp_path / "plain"
    write_member(plain / "a_rgb.png", sample().rgb)
    for out, root, category in (
        (tmp_path / "own" / "runs" / "a", tmp_path / "own", None),
        (tmp_path / "own", tmp_path / "own", None),
        (tmp_path / "many" / "bolt" / "test" / "run", tmp_path / "many", "bolt"),
        (tmp_path / "many" / "nut" / ".." / "bolt" / "train", tmp_path / "many" / "bolt", None),
        (tmp_path / "many" / "bolt" / "test" / "found", tmp_path / "many" / "bolt" / "test" / "good", None),
        (tmp_path / "own" / "found", tmp_path / "own" / "good", None),
        (plain / "out", plain, None),
        (plain, plain, None),
    ):
        with pytest.raises(DataError, match=r"expected a folder outside the data to write to \(--out\), found one in"):
            expect_outside(out, root, category)
    for out, root, category in (
        (tmp_path / "runs" / "a", tmp_path / "own", None),
        (tmp_path / "many" / "runs", tmp_path / "many", "bolt"),
        (tmp_path / "many" / "bolt" / "runs" / "a", tmp_path / "many", "bolt"),  # beside train and test
        (tmp_path / "many" / "bolt" / "runs" / "a", tmp_path / "many" / "bolt" / "test" / "good", None),
        (tmp_path / "own2", tmp_path / "own", None),
    ):
        expect_outside(out, root, category)
