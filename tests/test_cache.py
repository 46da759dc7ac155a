"""The cache: what comes out is what went in, and damage and change are misses."""

from __future__ import annotations

import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scenes import Box, Dome, see

from das3d import cache
from das3d.cache import CacheError, cache_folder, key_of, load_json, load_scan, save_json, save_scan
from das3d.datasets import find_dataset
from das3d.measurement import measure
from das3d.preparation import DEPTH_STEP, PreparedScan, prepare
from das3d.scan import Scan
from das3d.settings import PreparationSettings
from das3d.window import Window

KEY = "ab" + 30 * "0"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DAS3D_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def prepared(size: int = 64, seed: int = 0) -> PreparedScan:
    settings = PreparationSettings(size=size)
    scan = see(seed=seed).scan()
    return prepare(scan, measure([scan], settings), settings)


def same(a: PreparedScan | None, b: PreparedScan) -> bool:
    assert a is not None
    for name in ("rgb", "depth", "valid", "foreground"):
        one, other = getattr(a, name), getattr(b, name)
        if one.dtype != other.dtype or not np.array_equal(one, other):
            return False
    masks = a.mask is b.mask is None or (a.mask is not None and b.mask is not None and np.array_equal(a.mask, b.mask))
    return masks and (a.name, a.window, a.pixel_mm2, a.doubt) == (b.name, b.window, b.pixel_mm2, b.doubt)


# ------------------------------------------------------------------------------------------- place and names


def test_the_environment_chooses_the_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == folder
    monkeypatch.setenv("DAS3D_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "das3d"
    monkeypatch.delenv("DAS3D_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "das3d"


def test_all_files_are_written_below_the_folder(folder: Path, tmp_path: Path) -> None:
    save_scan(KEY, prepared())
    save_json(KEY, {"a": 1})
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {f"cache/ab/{KEY}.tif", f"cache/{KEY}.json"}


def test_a_key_changes_with_the_files_and_with_all_else_that_is_named(tmp_path: Path) -> None:
    first, second = tmp_path / "a.npy", tmp_path / "b.npy"
    for file in (first, second):
        file.write_bytes(b"12345678")
        os.utime(file, ns=(10**18, 10**18))
    small, large = PreparationSettings(size=64), PreparationSettings(size=96)
    key = key_of([first], small, 0.1)
    assert key == key_of([first], PreparationSettings(size=64), 0.1)
    assert key == key_of([tmp_path / ".." / tmp_path.name / "a.npy"], small, 0.1), "another spelling"
    assert len(key) == 32
    others = [
        key_of([second], small, 0.1),
        key_of([first, second], small, 0.1),
        key_of([first], large, 0.1),
        key_of([first], small, np.nextafter(0.1, 1)),
        key_of([first], small),
    ]
    os.utime(first, ns=(10**18, 10**18 + 1))
    others.append(key_of([first], small, 0.1))
    first.write_bytes(b"123456789")
    os.utime(first, ns=(10**18, 10**18))
    others.append(key_of([first], small, 0.1))
    assert len({key, *others}) == len(others) + 1


def test_keys_change_with_what_settings_make_of_their_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.npy"
    file.write_bytes(b"1")
    before = key_of([file], PreparationSettings())
    monkeypatch.setattr(PreparationSettings, "distance_is_set", property(lambda settings: True))
    assert key_of([file], PreparationSettings()) != before
    monkeypatch.undo()
    assert key_of([file], PreparationSettings()) == before
    # What a method tells would be in no key.
    own = {name: member for name, member in vars(PreparationSettings).items() if name[0] != "_" and name != "model_config"}
    assert own and all(isinstance(member, property) for member in own.values()), own


def test_keys_change_with_all_code_that_reads_and_prepares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = Path(cache.__file__).parent
    used = {
        name
        for file in cache.CODE
        for name in re.findall(r"^\s*from das3d\.(\w+) import", (package / file).read_text(encoding="utf-8"), re.MULTILINE)
    }
    known = {file.removesuffix(".py") for file in cache.CODE}
    # Neither messages, nor what refuses wrong arguments, nor how a file is written change a scan; settings and versions are
    # part of the key by what they tell.
    assert used - known == {"arguments", "atomic", "errors", "settings", "versions"}
    imported = {
        name
        for file in cache.CODE
        for name in re.findall(
            r"^\s*(?:from (?=\S+ import)|import )(\w+)", (package / file).read_text(encoding="utf-8"), re.MULTILINE
        )
    }
    assert imported - sys.stdlib_module_names - {"das3d"} == set(cache.READERS)

    file = tmp_path / "a.npy"
    file.write_bytes(b"1")
    before = key_of([file], PreparationSettings())
    copy = tmp_path / "das3d"
    copy.mkdir()
    for name in cache.CODE:
        shutil.copy(package / name, copy)
    monkeypatch.setattr(cache.resources, "files", lambda _: copy)
    for name in (None, *cache.CODE):
        if name:
            (copy / name).write_bytes((copy / name).read_bytes() + b"\n")
        cache._code.cache_clear()
        assert (key_of([file], PreparationSettings()) == before) == (name is None), name
        before = key_of([file], PreparationSettings())
    monkeypatch.undo()
    cache._code.cache_clear()


# ------------------------------------------------------------------------------------------- content


def test_a_prepared_scan_comes_back_bit_for_bit() -> None:
    scan = prepared()
    save_scan(KEY, scan)
    assert same(load_scan(KEY), scan)
    without = replace(scan, mask=None, name="Teil 7, größer", window=Window(-3, 5, 99, 98, (70, 123)), doubt="half of it")
    save_scan(KEY, without)
    assert same(load_scan(KEY), without), "the later content replaces the earlier"


@given(
    codes=hnp.arrays(np.uint16, (8, 8)),
    rgb=hnp.arrays(np.uint8, (8, 8, 3)),
    flags=hnp.arrays(np.uint8, (8, 8), elements=st.integers(0, 7)),
    has_mask=st.booleans(),
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_value_that_preparation_can_give_comes_back(
    codes: np.ndarray, rgb: np.ndarray, flags: np.ndarray, has_mask: bool
) -> None:
    depth = (codes * DEPTH_STEP - 0.5).astype(np.float32)
    valid, foreground, mask = ((flags & bit) > 0 for bit in (1, 2, 4))
    scan = PreparedScan("x", rgb, depth, valid, foreground, mask if has_mask else None, Window.square(0, 0, 8, (8, 8)))
    save_scan(KEY, scan)
    assert same(load_scan(KEY), scan)


def test_pages_open_in_any_viewer(folder: Path) -> None:
    scan = prepared()
    save_scan(KEY, scan)
    with tifffile.TiffFile(folder / "ab" / f"{KEY}.tif") as tiff:
        pages = [page.asarray() for page in tiff.pages]
    assert np.array_equal(pages[0], scan.rgb)
    assert pages[1].dtype == np.uint16 and np.array_equal(pages[1] == pages[1].max(), scan.depth == 1)


def test_plain_values_come_back(folder: Path) -> None:
    value = {"near": -0.123456789012345678, "frame": [4, 5], "name": None, "on": True}
    assert load_json(KEY) is None
    save_json(KEY, value)
    assert load_json(KEY) == value


def test_what_is_not_there_is_a_miss(folder: Path) -> None:
    assert load_scan(KEY) is None and load_json(KEY) is None
    (folder / "ab" / f"{KEY}.tif").mkdir(parents=True)
    (folder / f"{KEY}.json").mkdir()
    assert load_scan(KEY) is None and load_json(KEY) is None
    assert not list(folder.rglob("*.tmp"))


def test_a_damaged_file_is_a_miss_and_is_written_again(folder: Path) -> None:
    scan = prepared(size=32)
    save_scan(KEY, scan)
    file = folder / "ab" / f"{KEY}.tif"
    content = file.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [content[:length] for length in (0, 1, 15, 16, 17, len(content) // 2, len(content) - 1)]
    damaged += [content + b"\0", b"\0" * len(content), b"II*\0" + content[:100], b"no TIFF"]
    for place in rng.integers(0, len(content), 300):
        flipped = bytearray(content)
        flipped[place] ^= 1 << rng.integers(8)
        damaged.append(bytes(flipped))
    for one in damaged:
        file.write_bytes(one)
        assert load_scan(KEY) is None
    save_scan(KEY, scan)
    assert same(load_scan(KEY), scan)


def test_half_of_the_plain_values_are_a_miss(folder: Path) -> None:
    save_json(KEY, {"near": 1.5, "frame": [4, 5]})
    file = folder / f"{KEY}.json"
    content = file.read_bytes()
    for damaged in [content[:length] for length in range(len(content))] + [b"\xff\xfe", b"\0" * 20]:
        file.write_bytes(damaged)
        assert load_json(KEY) is None


def test_a_cache_that_cannot_be_written_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("DAS3D_CACHE", str(tmp_path / "file" / "cache"))
    for write in (lambda: save_scan(KEY, prepared(size=32)), lambda: save_json(KEY, 1)):
        with pytest.raises(CacheError, match=r"expected a cache that can be written, found: .*; DAS3D_CACHE") as caught:
            write()
        assert str(caught.value).startswith(str(tmp_path / "file" / "cache"))
    assert load_scan(KEY) is None and load_json(KEY) is None


# ------------------------------------------------------------------------------------------- size

LIMIT = 64 * 2**20 / 250  # 250 scans in 64 MiB


def bytes_for(scans: list[Scan], settings: PreparationSettings, folder: Path) -> float:
    statistics = measure(scans, settings)
    for number, scan in enumerate(scans):
        save_scan(f"{number:032}", prepare(scan, statistics, settings))
    files = list(folder.rglob("*.tif"))
    assert len(files) == len(scans)
    return sum(file.stat().st_size for file in files) / len(files)


@pytest.mark.parametrize("case", ["part", "noisy part that fills the frame"])
def test_250_scans_at_256_pixels_fit_into_64_mib(case: str, folder: Path) -> None:
    view: dict[str, Any] = {"size": (400, 400), "focal": 1300.0, "noise": 0.0003}
    if case != "part":
        view |= {"solids": (Dome(0, 0.03, 0.4), Box(-0.1, 0.1, -0.1, 0.1, 0.3)), "distance": 0.8, "noise": 0.0005}
    scans = [see(seed=seed, **view).scan() for seed in (0, 1)]
    if case != "part":
        rng = np.random.default_rng(0)
        noisy = [np.clip(scan.rgb + rng.normal(0, 12, (400, 400, 3)), 0, 255).astype(np.uint8) for scan in scans]
        scans = [replace(scan, rgb=rgb) for scan, rgb in zip(scans, noisy, strict=True)]
    assert bytes_for(scans, PreparationSettings(size=256), folder) < LIMIT


@pytest.mark.parametrize("crop", [True, False])
@pytest.mark.parametrize(("kind", "category"), [("mvtec3d", "cable_gland"), ("eyecandies", "CandyCane")])
def test_250_real_scans_fit_into_64_mib(kind: str, category: str, crop: bool, real_data: Path, folder: Path) -> None:
    scans = [part.read() for part in find_dataset(real_data / kind, category).train[:2]]
    assert bytes_for(scans, PreparationSettings(size=256, crop=crop), folder) < LIMIT
