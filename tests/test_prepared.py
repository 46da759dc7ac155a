"""A data set made ready for training: who is held out, and that nothing is measured or prepared twice."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from builders import write_ply
from scenes import Box, see

from das3d.cache import cache_folder
from das3d.datasets import Dataset, find_dataset
from das3d.demo import CATEGORY, make_demo
from das3d.errors import DataError
from das3d.files import METRES, DepthFormat
from das3d.measurement import measure
from das3d.parts import Part, Split
from das3d.preparation import prepare
from das3d.prepared import PreparedData, prepare_dataset, prepare_part, train_and_held_out
from das3d.settings import Settings, make_settings

FORMAT = DepthFormat(1e-5)


def with_settings(*changes: str, modality: str = "rgb+depth") -> Settings:
    return make_settings("demo", modality=modality, changes=["preparation.size=64", *changes])  # type: ignore[arg-type]


def listed(train: int, validation: int = 0, prefix: str = "") -> Dataset:
    """A data set of parts without files."""
    counts: dict[Split, int] = {"train": train, "validation": validation}
    parts = [
        Part(f"{split}/good/{prefix}{index:03}", split, "good", None, None)
        for split, count in counts.items()
        for index in range(count)
    ]
    return Dataset(Path("there"), "folder", "there", tuple(parts))


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """Four training and two validation parts as files; the cache lies beside them."""
    monkeypatch.setenv("DAS3D_CACHE", str(tmp_path / "cache"))
    parts = []
    for seed, split in enumerate(["train"] * 4 + ["validation"] * 2):
        scene = see(seed=seed, size=(75, 90), focal=250.0)
        rgb, depth = (tmp_path / "data" / split / f"{seed}{suffix}" for suffix in (".png", ".npy"))
        rgb.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(rgb), scene.rgb[..., ::-1])
        np.save(depth, np.round(scene.depth * 1e5).astype(np.uint16))
        parts.append(Part(f"{split}/good/{seed}", split, "good", rgb, depth, (), FORMAT))  # type: ignore[arg-type]
    return Dataset(tmp_path / "data", "folder", "data", tuple(parts))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each part is read."""
    counts: Counter[str] = Counter()
    read = Part.read

    def counted(part: Part, **members: bool) -> object:
        counts[part.id] += 1
        return read(part, **members)

    monkeypatch.setattr(Part, "read", counted)
    return counts


def same(a: PreparedData, b: PreparedData) -> bool:
    if a.statistics != b.statistics or len(a.train) != len(b.train) or len(a.held_out) != len(b.held_out):
        return False
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for one, other in zip([*a.train, *a.held_out], [*b.train, *b.held_out], strict=True)
        for name in ("rgb", "depth", "valid", "foreground", "mask", "window", "name")
    )


# ------------------------------------------------------------------------------------------- who is held out


def test_good_validation_parts_are_held_out() -> None:
    dataset = listed(20, 3)
    assert train_and_held_out(dataset) == (list(dataset.train), list(dataset.validation))
    defective = replace(dataset.validation[0], defect="hole")
    with_defect = replace(dataset, parts=(*dataset.train, defective, *dataset.validation[1:]))
    assert train_and_held_out(with_defect)[1] == list(dataset.validation[1:])


@pytest.mark.parametrize(("train", "validation"), [(0, 3), (1, 3), (1, 0)])
def test_too_few_parts_are_refused(train: int, validation: int) -> None:
    with pytest.raises(DataError, match=f"there: expected at least 2 good parts to train on, found {train}"):
        train_and_held_out(listed(train, validation))


# ------------------------------------------------------------------------------------------- prepared once


def test_parts_are_prepared_by_the_statistics_of_the_training_parts(data: Dataset) -> None:
    settings = with_settings()
    prepared = prepare_dataset(data, settings)
    statistics = measure((part.read() for part in data.train), settings.preparation)
    assert prepared.statistics == statistics
    fresh = [prepare(part.read(), statistics, settings.preparation) for part in (*data.train, *data.validation)]
    assert same(prepared, PreparedData(statistics, fresh[:4], fresh[4:]))
    assert statistics.scans == 4 and statistics.background == "plane"


def test_a_second_call_reads_no_part(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare_dataset(data, with_settings())

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("read although it is in the cache")

    monkeypatch.setattr(Part, "read", fail)
    assert same(prepare_dataset(data, with_settings()), first)
    for other in ("training.iterations=7", "seed=3", "score.window=7", "synthesis.drop=0.1"):
        assert same(prepare_dataset(data, with_settings(other)), first), "what preparation does not use changes nothing"


def test_a_first_call_reads_each_part_once_for_each_purpose(data: Dataset, reads: Counter[str]) -> None:
    prepare_dataset(data, with_settings())
    assert reads == {part.id: 2 if part.split == "train" else 1 for part in data.parts}


@pytest.mark.parametrize("member", ["rgb", "depth"])
def test_a_changed_part_is_prepared_again(data: Dataset, reads: Counter[str], member: str) -> None:
    before = prepare_dataset(data, with_settings())
    changed = data.validation[1]
    scene = see(seed=9, size=(75, 90), focal=250.0, solids=(Box(-0.05, 0.05, -0.02, 0.03, 0.015),))
    assert changed.rgb is not None and changed.depth is not None
    if member == "rgb":
        cv2.imwrite(str(changed.rgb), scene.rgb[..., ::-1])
    else:
        np.save(changed.depth, np.round(scene.depth * 1e5).astype(np.uint16))
    reads.clear()
    after = prepare_dataset(data, with_settings())
    assert reads == {changed.id: 1}, "the others are taken from the cache"
    assert not np.array_equal(getattr(after.held_out[1], member), getattr(before.held_out[1], member))
    assert same(replace(after, held_out=after.held_out[:1]), replace(before, held_out=before.held_out[:1]))


def test_a_training_part_that_was_touched_is_measured_again(data: Dataset, reads: Counter[str]) -> None:
    before = prepare_dataset(data, with_settings())
    assert data.train[2].rgb is not None
    os.utime(data.train[2].rgb, ns=(10**18, 10**18))
    reads.clear()
    assert same(prepare_dataset(data, with_settings()), before)
    assert reads == {part.id: 2 if part is data.train[2] else 1 for part in data.train}


def test_how_each_single_part_is_read_decides_what_is_taken_from_the_cache(data: Dataset) -> None:
    # In Eyecandies every part has a format of its own, in a file beside it.
    before = prepare_dataset(data, with_settings())
    farther = replace(data.train[-1], depth_format=DepthFormat(1.2e-5))
    after = prepare_dataset(replace(data, parts=(*data.train[:-1], farther, *data.validation)), with_settings())
    assert after.statistics.near < before.statistics.near - 0.005, "the part is 20 % larger now"


@pytest.mark.parametrize("change", ["preparation.size=96", "preparation.level=false", "preparation.margin=0.3"])
def test_other_settings_of_preparation_prepare_anew(data: Dataset, change: str) -> None:
    settings = with_settings(change)
    prepare_dataset(data, with_settings())
    prepared = prepare_dataset(data, settings)
    statistics = measure((part.read() for part in data.train), settings.preparation)
    assert prepared.statistics == statistics
    fresh = prepare(data.train[0].read(), statistics, settings.preparation)
    assert np.array_equal(prepared.train[0].depth, fresh.depth)


def test_damaged_cache_files_are_replaced(data: Dataset, reads: Counter[str]) -> None:
    first = prepare_dataset(data, with_settings())
    scans, plain = sorted(cache_folder().rglob("*.tif")), list(cache_folder().glob("*.json"))
    assert (len(scans), len(plain)) == (6, 1)
    for file in (scans[0], scans[3], plain[0]):
        file.write_bytes(file.read_bytes()[:-40])
    reads.clear()
    assert same(prepare_dataset(data, with_settings()), first)
    assert reads.total() == 4 + 2
    reads.clear()
    assert same(prepare_dataset(data, with_settings()), first)
    assert not reads


def test_the_folder_of_the_data_is_left_alone(data: Dataset) -> None:
    def state() -> dict[str, tuple[int, int, bytes]]:
        return {
            str(path): ((stat := path.stat()).st_mtime_ns, stat.st_mode, path.read_bytes() if path.is_file() else b"")
            for path in [data.root, *sorted(data.root.rglob("*"))]
        }

    before = state()
    prepare_dataset(data, with_settings())
    prepare_dataset(data, with_settings())
    assert state() == before
    assert cache_folder().is_dir() and data.root not in cache_folder().parents


def test_rgb_is_left_out_where_the_networks_do_not_see_it(data: Dataset) -> None:
    both, depth = (prepare_dataset(data, with_settings(modality=m)) for m in ("rgb+depth", "depth"))
    assert both.statistics.has_rgb and not depth.statistics.has_rgb
    of_rgb = {name: getattr(both.statistics, name) for name in ("has_rgb", "rgb_high", "darkest", "brightest", "white")}
    assert replace(depth.statistics, **of_rgb) == both.statistics
    for one, other in zip(both.train, depth.train, strict=True):
        assert np.array_equal(one.depth, other.depth) and np.array_equal(one.foreground, other.foreground)
        assert one.rgb.any() and not other.rgb.any()


def test_rgb_that_is_not_wanted_may_go_and_that_of_a_cloud_without_grid_may_not(
    data: Dataset, reads: Counter[str], tmp_path: Path
) -> None:
    settings = with_settings(modality="depth")
    statistics, part = prepare_dataset(data, settings).statistics, data.parts[0]
    known = prepare_part(part, statistics, settings.preparation)
    assert part.rgb is not None
    cloud = write_ply(tmp_path / "0.ply", see(seed=0, size=(75, 90), focal=250.0).points, grid=None)
    loose = replace(part, depth=cloud, depth_format=METRES)
    read = prepare_part(loose, statistics, settings.preparation)
    assert part.files(rgb=False) == [part.depth] and loose.files(rgb=False) == [part.rgb, cloud]
    part.rgb.unlink()
    reads.clear()
    again = prepare_part(part, statistics, settings.preparation)
    assert not reads, "it comes from the cache"
    assert np.array_equal(again.depth, known.depth) and read.depth == pytest.approx(known.depth, abs=0.01)
    assert prepare_part(replace(part, id="new"), statistics, settings.preparation).valid.any()
    with pytest.raises(DataError, match=r"0\.png: expected a file of a part"):
        prepare_part(loose, statistics, settings.preparation)


def test_depth_is_kept_for_networks_that_see_rgb_only(data: Dataset) -> None:
    both, rgb = (prepare_dataset(data, with_settings(modality=m)) for m in ("rgb+depth", "rgb"))
    known = replace(both.statistics, density=0.0, step=0.0)
    assert same(replace(both, statistics=known), rgb), "it tells the part from the background"


def test_depth_that_only_shows_where_the_part_is_may_be_coarse(data: Dataset) -> None:
    coarse = DepthFormat(1e-3)
    file = data.parts[-1].depth
    assert file is not None
    np.save(file, np.round(np.load(file) / 100).astype(np.uint16))  # in millimetres
    part = replace(data.parts[-1], depth_format=coarse)
    for modality, doubted in (("rgb", False), ("rgb+depth", True)):
        settings = with_settings(modality=modality)
        statistics = prepare_dataset(replace(data, parts=data.parts[:-1]), settings).statistics
        assert ("steps" in prepare_part(part, statistics, settings.preparation).doubt) == doubted


def test_a_part_that_cannot_be_prepared_is_named(data: Dataset) -> None:
    part = data.validation[1]
    assert part.depth is not None
    np.save(part.depth, np.zeros((75, 90), np.uint16))
    with pytest.raises(DataError, match=f"{part.depth.name}: expected a measured depth"):
        prepare_dataset(data, with_settings())
    empty = see(seed=1, size=(75, 90), focal=250.0, solids=())
    np.save(part.depth, np.round(empty.depth * 1e5).astype(np.uint16))
    with pytest.raises(DataError, match=rf"{part.depth}: expected a part more than .* mm above the background, found none"):
        prepare_dataset(data, with_settings())


def test_all_parts_that_cannot_be_read_or_prepared_are_named(data: Dataset) -> None:
    for parts in (data.train, data.validation):
        wrong = [part.depth for part in parts[:2] if part.depth]
        kept = [np.load(file) for file in wrong]
        for file in wrong:
            np.save(file, np.zeros((75, 90), np.uint16))
        with pytest.raises(DataError) as caught:
            prepare_dataset(data, with_settings())
        assert [problem.split(":")[0] for problem in caught.value.problems] == [str(file) for file in wrong]
        assert len(wrong) == 2 and all("expected a measured depth" in problem for problem in caught.value.problems)
        for file, values in zip(wrong, kept, strict=True):
            np.save(file, values)


def test_a_link_to_nothing_is_a_part_that_cannot_be_prepared(data: Dataset, tmp_path: Path) -> None:
    known = with_settings()
    statistics, part = prepare_dataset(data, known).statistics, data.parts[-1]
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"gone\.png: expected a file of a part, found No such file"):
        prepare_part(replace(part, rgb=tmp_path / "gone.png"), statistics, known.preparation)


def test_a_training_part_of_another_size_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_demo(tmp_path, train=5, validation=1, good=0, defective=0, size=(64, 80)) / CATEGORY
    rgb, xyz = root / "train" / "good" / "rgb" / "003.png", root / "train" / "good" / "xyz" / "003.tiff"
    cv2.imwrite(str(rgb), cv2.imread(str(rgb))[::2, ::2])
    tifffile.imwrite(xyz, tifffile.imread(xyz)[::2, ::2], photometric="minisblack")
    told = "1 of 5 training parts have another size than 80 x 64 pixels, such as train/good/003"
    for crop, how in ((True, "at the same scale in pixels"), (False, "as if all showed the same field")):
        prepared = prepare_dataset(find_dataset(root), with_settings(f"preparation.crop={crop}"))
        assert bool(prepared.statistics.window) == crop
        assert f"{told}; parts of any size will be taken from now on, {how}\n" in capsys.readouterr().err


def test_training_parts_without_the_validation_parts_beside_them_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_demo(tmp_path, train=3, validation=1, good=0, defective=0, size=(64, 80)) / CATEGORY
    for folder, told in ((root, False), (root / "train", True)):
        prepared = prepare_dataset(find_dataset(folder, depth_format=METRES), with_settings())
        text = f"{folder}: holds no validation parts, so the model will have no threshold; .* where {root} is given"
        assert bool(re.search(text, capsys.readouterr().err)) == told != bool(prepared.held_out)


@pytest.mark.parametrize("stretch", [True, False])
def test_12_bit_colours_in_16_bit_files_are_told(data: Dataset, stretch: bool, capsys: pytest.CaptureFixture[str]) -> None:
    settings = with_settings(f"preparation.stretch={stretch}")
    prepare_dataset(data, settings)
    assert not capsys.readouterr().err
    for part in data.parts:
        assert part.rgb is not None
        colours = cv2.imread(str(part.rgb)).astype(np.uint16)
        cv2.imwrite(str(part.rgb), colours * 16)
    prepare_dataset(data, settings)
    assert "of 255 bright: too short an exposure? 12-bit numbers in 16-bit files look so" in capsys.readouterr().err
