"""Where textures come from: pictures of a folder, the training parts, or nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from das3d.batches import GoodParts
from das3d.errors import DataError
from das3d.pairs import SyntheticPairs
from das3d.parts import Part
from das3d.run import train
from das3d.settings import SynthesisSettings, make_settings
from das3d.textures import MOST, load_textures

SIDE = 16


def parts(count: int = 3) -> GoodParts:
    generator = torch.Generator().manual_seed(0)
    rgb = torch.randint(0, 256, (count, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    return GoodParts(rgb, torch.ones(count, 1, SIDE, SIDE), torch.ones(count, 1, SIDE, SIDE, dtype=torch.bool))


def from_folder(folder: Path) -> torch.Tensor:
    textures = load_textures(SynthesisSettings(texture="folder", texture_folder=str(folder)), parts())
    assert textures is not None and textures.dtype == torch.uint8
    return textures.float() / 255


def write(path: Path, rgb: tuple[int, int, int], size: tuple[int, int] = (SIDE, SIDE)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture: Any = np.full((*size, 3), rgb[::-1], np.uint8)
    assert cv2.imwrite(str(path), picture)


def test_generated_textures_need_no_pictures() -> None:
    assert load_textures(SynthesisSettings(), parts()) is None


def test_the_training_parts_can_be_the_textures() -> None:
    good = parts()
    textures = load_textures(SynthesisSettings(texture="parts"), good)
    assert textures is not None and torch.equal(textures, good.rgb)


def test_a_folder_is_read_in_the_order_of_its_names_with_all_below_it(tmp_path: Path) -> None:
    write(tmp_path / "b.png", (0, 255, 0))
    write(tmp_path / "a" / "deep" / "x.jpg", (255, 0, 0))
    write(tmp_path / "c.TIF", (0, 0, 255))
    write(tmp_path / "d.bmp", (51, 51, 51))
    (tmp_path / "notes.txt").write_text("not a picture")
    textures = from_folder(tmp_path)
    assert textures.shape == (4, 3, SIDE, SIDE)
    want = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.2, 0.2, 0.2]])
    torch.testing.assert_close(textures.mean(dim=(2, 3)), want, atol=0.01, rtol=0)


@pytest.mark.parametrize("size", [(7, 5), (16, 16), (64, 40)])
def test_pictures_of_any_size_fill_the_side(tmp_path: Path, size: tuple[int, int]) -> None:
    write(tmp_path / "one.png", (255, 102, 0), size)
    want = torch.tensor([1.0, 0.4, 0.0])[None, :, None, None].expand(1, 3, SIDE, SIDE)
    torch.testing.assert_close(from_folder(tmp_path), want)


def test_large_pictures_are_averaged_rather_than_sampled(tmp_path: Path) -> None:
    checks = np.indices((4 * SIDE, 4 * SIDE)).sum(axis=0) % 2 * 255
    assert cv2.imwrite(str(tmp_path / "checks.png"), np.repeat(checks[..., None], 3, axis=2).astype(np.uint8))
    textures = from_folder(tmp_path)
    torch.testing.assert_close(textures, torch.full_like(textures, 0.5), atol=0.01, rtol=0)


def test_of_many_pictures_some_are_taken_from_everywhere(tmp_path: Path) -> None:
    count = MOST + 100
    for index in range(count):
        write(tmp_path / f"{index:04d}.png", (index % 256, index // 256, 0), (2, 2))
    colours = (from_folder(tmp_path)[:, :2, 0, 0] * 255).round().int()
    found = (colours[:, 0] + 256 * colours[:, 1]).tolist()
    assert MOST // 2 <= len(found) <= MOST
    assert found == list(range(0, count, 2))


def test_of_many_parts_some_are_taken_from_everywhere() -> None:
    count = MOST + 1
    good = parts(count)
    textures = load_textures(SynthesisSettings(texture="parts"), good)
    assert textures is not None
    assert torch.equal(textures, good.rgb[::2])


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no_such: expected a folder of texture pictures, found no such folder$"):
        from_folder(tmp_path / "no_such")


def test_a_folder_without_pictures_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a picture")
    with pytest.raises(DataError, match=r"expected texture pictures \(.*\.png.*\), found none$") as caught:
        from_folder(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_files_that_a_system_left_are_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "._0001.jpg").write_bytes(b"not a picture")
    with pytest.raises(DataError, match="expected texture pictures"):
        from_folder(tmp_path)


def test_all_damaged_pictures_are_named(tmp_path: Path) -> None:
    write(tmp_path / "good.png", (1, 2, 3))
    for name in ("torn.png", "zero.png"):
        (tmp_path / name).write_bytes((tmp_path / "good.png").read_bytes()[:40])
    with pytest.raises(DataError) as caught:
        from_folder(tmp_path)
    assert [Path(problem.split(":")[0]).name for problem in caught.value.problems] == ["torn.png", "zero.png"]


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])
def test_photographs_of_a_camera_that_was_held_upright_are_read_as_they_lie(tmp_path: Path, name: str) -> None:
    exif = Image.Exif()
    exif[274] = 6
    picture = np.zeros((SIDE, 2 * SIDE, 3), np.uint8)
    picture[:, :SIDE] = 255  # the left half
    Image.fromarray(picture).save(tmp_path / name, exif=exif)
    left, right = from_folder(tmp_path)[0].split(SIDE // 2, dim=2)
    assert left.mean() > 0.95 and right.mean() < 0.05


def test_a_missing_folder_is_told_before_any_part_is_looked_at(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("looked at parts")

    monkeypatch.setattr(Part, "read", fail)
    monkeypatch.setenv("DAS3D_CACHE", str(tmp_path / "cache"))
    settings = make_settings("demo", changes=["synthesis.texture=folder", f"synthesis.texture_folder={tmp_path / 'gone'}"])
    for begin in (
        lambda: train(tiny_data, tmp_path / "run", settings=settings, device="cpu"),
        lambda: SyntheticPairs.from_data(tiny_data, settings=settings),
    ):
        with pytest.raises(DataError, match="gone: expected a folder of texture pictures, found no such folder"):
            begin()


def test_real_photographs_are_read(real_data: Path) -> None:
    folder = sorted(path for path in (real_data / "dtd" / "images").iterdir() if path.is_dir())[0]
    textures = from_folder(folder)
    assert len(textures) == len(list(folder.glob("*.jpg")))
    assert textures.min() >= 0 and textures.max() <= 1 and textures.std() > 0.05
