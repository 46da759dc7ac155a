"""What is wrong with an input is said in one line a problem: which file, what was expected, what was found.

Each function below spoils one thing; `test_bad_input_is_told_in_one_line_a_problem` runs them all.
"""

from __future__ import annotations

import json
import logging
import os
import re
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tifffile
from builders import SIZE, declare, eyecandies, mvtec3d, own_data, own_kind, sample, write_member, write_pcd, write_ply
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from das3d.cli import app
from das3d.datasets import find_categories, find_dataset, find_folder
from das3d.errors import DataError, ModelError, SettingsError
from das3d.files import DepthFormat, read_depth, read_mask, read_rgb
from das3d.settings import make_settings

PART = sample()
Act = Callable[[], object]


@dataclass(frozen=True)
class Bad:
    """How to build a bad input in a folder, and the lines that must come of it: a pattern for each, in order.

    `build` returns what runs into the error; where it returns None, that is `find_dataset`, or with `late`, which is for
    damage that no header shows, reading every part that it found.
    """

    build: Callable[[Path], Act | None]
    lines: tuple[str, ...]
    error: type[Exception]
    late: bool


CASES: dict[str, Bad] = {}


def bad(*lines: str, error: type[Exception] = DataError, late: bool = False) -> Callable[..., None]:
    def register(build: Callable[[Path], Act | None]) -> None:
        CASES[build.__name__] = Bad(build, lines, error, late)

    return register


def as_counts(path: Path) -> object:
    return read_depth(path, DepthFormat(1e-4, missing=7), size=SIZE)


def upright() -> Image.Exif:
    exif = Image.Exif()
    exif[274], exif[270] = 1, "a camera"
    return exif


def read_all(root: Path) -> None:
    for part in find_dataset(root).parts:
        part.read()


# ------------------------------------------------------------------------------------------- folders and names


@bad(r"data: expected a data set \(MVTec 3D-AD.*\), found no folders$")
def empty_folder(root: Path) -> None:
    root.mkdir()


@bad(r"data: expected a data set .*, found 2 pairs directly in it; move those of good parts into .*data/good$")
def pairs_without_a_folder_of_their_kind(root: Path) -> None:
    for name in ("1", "2"):
        write_member(root / f"{name}_rgb.png", sample().rgb)
        write_member(root / f"{name}_depth.png", sample().depth)


@bad(r"data: expected a data set .*, found only pictures, scans$")
def folder_of_something_else(root: Path) -> None:
    (root / "scans").mkdir(parents=True)
    (root / "pictures").mkdir()


@bad(r"data: expected a data set .*, found only old, sets; there is one in sets$")
def a_folder_too_high(root: Path) -> None:
    (root / "old").mkdir(parents=True)
    mvtec3d(root / "sets/bolt")


@bad(r"data: expected a data set .*, found only gut, schlecht; parts lie in gut, schlecht: call that of good parts good, ")
def kinds_of_other_names(root: Path) -> None:
    own_kind(declare(root) / "gut")
    own_kind(root / "schlecht", suffixes=True)


@bad(r"data/bolt/train/good: expected a data set .*, found only rgb, xyz; there is one above, .*data/bolt$")
def a_folder_too_low(root: Path) -> Act:
    mvtec3d(root / "bolt")
    return lambda: find_dataset(root / "bolt/train/good")


@bad(r"data: expected a folder, found nothing there$")
def no_folder(root: Path) -> None:
    pass


@bad(r"data: expected a folder, found a file$")
def file_instead_of_folder(root: Path) -> None:
    root.write_text("")


@bad(r"data: expected category 'nut', found bolt9, bolt10$")
def unknown_category(root: Path) -> Act:
    mvtec3d(root / "bolt9")
    mvtec3d(root / "bolt10")
    return lambda: find_dataset(root, "nut")


@bad(r"data: expected one category to be chosen, by its folder or --category, found bolt9, bolt10$")
def several_categories_and_none_chosen(root: Path) -> None:
    mvtec3d(root / "bolt9")
    mvtec3d(root / "bolt10")


@bad(r"data: expected members within the kinds, as good/depth, or one of these folders, found depth, rgb$")
def kinds_within_the_members(root: Path) -> None:
    write_member(root / "rgb/good/a.png", PART.rgb)
    write_member(declare(root) / "depth/good/a.tiff", PART.depth)


@bad(r"data/scan: expected a folder, found nothing there$")
def categories_of_no_folder(root: Path) -> Act:
    return lambda: find_categories(root / "scan")


if sys.platform == "linux":  # elsewhere no file can be called so

    @bad(
        r"data/good/gr\\udc81n_rgb\.png: expected a name in UTF-8, found one in another encoding.*; rename it, .*convmv ",
        r"data/good/\\udc81l_rgb\.png: expected a name in UTF-8, ",
    )
    def names_in_another_encoding(root: Path) -> None:
        own_kind(declare(root) / "good", ["a", "b", "\udc81l", "gr\udc81n"], suffixes=True)

    @bad(r"data/gr\\udc81n_rgb\.png: expected a name in UTF-8, ")
    def a_name_in_another_encoding_among_parts_to_predict(root: Path) -> Act:
        own_kind(root, ["a", "gr\udc81n"], suffixes=True)
        return lambda: find_folder(root, check=False)


@bad(r"data/good: expected parts \(NAME_rgb, NAME_depth and NAME_mask, or folders rgb, .*\), found none$")
def kind_without_parts(root: Path) -> None:
    declare(root / "good")


@bad(r"data: expected train parts, found only 1 of other splits$")
def no_training_parts(root: Path) -> None:
    own_kind(root / "test/good", "a")
    declare(root)


@bad(r"data: expected test parts, found only 5 of other splits$")
def no_test_parts(root: Path) -> Act:
    declare(own_kind(root / "good", "abcde").parent)
    return lambda: find_dataset(root, needs="test")


@bad(r"data: expected parts \(NAME_rgb, .*\), found none$")
def nothing_to_predict(root: Path) -> Act:
    (root / "rgb").mkdir(parents=True)
    return lambda: find_folder(root)


@bad(r"data/rgb: expected good parts in .*data/good/rgb, found a folder for members of no kind$")
def members_beside_the_kinds(root: Path) -> None:
    write_member(own_data(root) / "rgb/a.png", PART.rgb)


@bad(r"data/good/colours: expected only folders called rgb, .*, found another$")
def folder_of_no_role(root: Path) -> None:
    write_member(own_data(root) / "good/colours/a.png", PART.rgb)


@bad(r"data/good/a\.png: expected it in .*data/good/(rgb|depth) or another, found it beside them$")
def file_beside_the_folders_of_members(root: Path) -> None:
    write_member(own_data(root) / "good/a.png", PART.rgb)


@bad(r"data/good/scan7\.png: expected NAME_rgb, NAME_depth and NAME_mask, .*, found a name that tells no member$")
def name_that_tells_no_member(root: Path) -> None:
    own_kind(root / "good", suffixes=True)
    write_member(declare(root) / "good/scan7.png", PART.rgb)


@bad(
    r"data/good/scan7\.png: .*, found a name that tells no member$",
    r"data: expected RGB and depth of each part, told by their names, found none so named; .* --modality rgb, or depth$",
)
def no_name_that_tells_a_member(root: Path) -> None:
    write_member(declare(root) / "good/scan7.png", PART.rgb)


@bad(r"data/good: expected parts only in train, found these beside$")
def good_parts_beside_the_splits(root: Path) -> None:
    own_kind(root / "train/good")
    declare(own_kind(root / "good").parent)


@bad(r"data/val: expected validation parts in one folder, found validation too$")
def two_folders_for_validation(root: Path) -> None:
    for split in ("train", "val", "validation"):
        own_kind(root / split / "good", "ab")
    declare(root)


@bad(r"data/train/a\.png: expected .*data/train/good or a kind of defect, found a file$")
def file_of_no_kind(root: Path) -> None:
    own_kind(root / "train/good")
    write_member(declare(root) / "train/a.png", PART.rgb)


# ------------------------------------------------------------------------------------------- pairs


@bad(r"data/good/rgb/b\.png: expected a depth file of the same name, found none$")
def missing_depth(root: Path) -> None:
    (own_data(root) / "good/depth/b.tiff").unlink()


@bad(r"data/good/depth/z\.tiff: expected an rgb file of the same name, found none$")
def extra_depth(root: Path) -> None:
    write_member(own_data(root) / "good/depth/z.tiff", PART.depth)


@bad(
    r"data/good/depth/F\.tiff: expected an rgb file of the same name, found none$",
    r"data/good/rgb/f\.png: expected a depth file of the same name, found none$",
)
def names_that_differ_by_case(root: Path) -> None:
    write_member(own_data(root) / "good/rgb/f.png", PART.rgb)
    write_member(root / "good/depth/F.tiff", PART.depth)


@bad(r"data: expected depth files, found only rgb; for such data use --modality rgb$")
def no_depth_at_all(root: Path) -> None:
    declare(own_kind(root / "good", members="rgb").parent)


@bad(r"data: expected rgb files, found only depth; for such data use --modality depth$")
def no_rgb_at_all(root: Path) -> None:
    declare(own_kind(root / "good", members="depth").parent)


@bad(r"data/good/rgb/b\.png: expected one rgb file of this name, found b\.jpg too$")
def doubled_member(root: Path) -> None:
    write_member(own_data(root) / "good/rgb/b.jpg", PART.rgb)


@bad(
    r"data/good/depth/b\.tiff: expected all members of a part to have one size, found 15 x 12 here and 16 x 12 in .*b\.png$"
    r"|data/good/rgb/b\.png: expected all members of a part to have one size, found 16 x 12 here and 15 x 12 in .*b\.tiff$"
)
def depth_of_other_size(root: Path) -> None:
    write_member(own_data(root) / "good/depth/b.tiff", PART.depth[:, 1:])


@bad(r"hole/rgb/b\.png: expected all members .* one size, found 16 x 12 here and 16 x 11 in .*data/hole/mask/b\.png$")
def mask_of_other_size(root: Path) -> None:
    write_member(own_data(root) / "hole/mask/b.png", PART.mask[1:])


@bad(r"data/hole/rgb/b\.png: expected ground truth as for others here, found none$")
def mask_missing_for_one_of_several(root: Path) -> None:
    (own_data(root) / "hole/mask/b.png").unlink()


@bad(r"data/hole/mask/z\.png: expected a part of this name, found none$")
def mask_of_no_part(root: Path) -> None:
    write_member(own_data(root) / "hole/mask/z.png", PART.mask)


@bad(r"train/bent/rgb/a\.png: expected only good parts in train, found a part with defect 'bent'$")
def defective_part_in_train(root: Path) -> None:
    own_kind(root / "train/good")
    declare(own_kind(root / "train/bent", "a").parent.parent)


@bad(r"val/bent/rgb/a\.png: expected only good parts in validation, found a part with defect 'bent'$")
def defective_part_in_validation(root: Path) -> None:
    own_kind(root / "train/good")
    own_kind(root / "val/good", "a")
    declare(own_kind(root / "val/bent", "a").parent.parent)


@bad(r"data/unknown/rgb/a\.png: expected a kind of defect, found the reserved name 'unknown'$")
def kind_called_unknown(root: Path) -> None:
    own_kind(own_data(root) / "unknown", "a")


# ------------------------------------------------------------------------------------------- damaged files


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def in_place_of(root: Path, name: str, array: np.ndarray | None = None) -> Path:
    """Sound data, but part b's member in `good` that `name` (such as depth/b.ply) replaces is another file."""
    member = own_data(root) / "good" / name
    for other in member.parent.glob(f"{member.stem}.*"):
        other.unlink()
    return member if array is None else write_member(member, array)


DAMAGED = r"found a damaged or unknown file \(.+\)$"


@bad(rf"good/rgb/b\.png: expected an RGB image, {DAMAGED}", late=True)
def truncated_png(root: Path) -> None:
    halve(own_data(root) / "good/rgb/b.png")


@bad(rf"good/rgb/b\.jpg: expected an RGB image, {DAMAGED}", late=True)
def truncated_jpeg(root: Path) -> None:
    path = in_place_of(root, "rgb/b.jpg", PART.rgb)
    path.write_bytes(path.read_bytes()[:-100])


@bad(rf"good/depth/b\.png: expected depth, {DAMAGED}", late=True)
def truncated_png_depth(root: Path) -> None:
    halve(in_place_of(root, "depth/b.png", PART.counts))


@bad(rf"good/depth/b\.tiff: expected depth, {DAMAGED}", late=True)
def truncated_tiff(root: Path) -> None:
    halve(own_data(root) / "good/depth/b.tiff")


@bad(rf"good/depth/b\.tiff: expected depth, {DAMAGED}", late=True)
def truncated_tiff_of_points(root: Path) -> None:
    tifffile.imwrite(in_place_of(root, "depth/b.tiff"), PART.points, photometric="rgb", compression="zlib")
    path = root / "good/depth/b.tiff"
    path.write_bytes(path.read_bytes()[:-200])


@bad(rf"good/depth/b\.npy: expected depth, {DAMAGED}", late=True)
def truncated_npy(root: Path) -> None:
    halve(in_place_of(root, "depth/b.npy", PART.depth))


@bad(rf"good/depth/b\.npz: expected depth, {DAMAGED}")
def truncated_npz(root: Path) -> None:
    halve(in_place_of(root, "depth/b.npz", PART.depth))


@bad(rf"good/depth/b\.ply: expected depth, {DAMAGED}", late=True)
def truncated_ply(root: Path) -> None:
    halve(in_place_of(root, "depth/b.ply", PART.points))


@bad(rf"good/depth/b\.pcd: expected depth, {DAMAGED}", late=True)
def truncated_pcd(root: Path) -> None:
    halve(in_place_of(root, "depth/b.pcd", PART.points))


@bad(rf"good/depth/b\.pcd: expected depth, {DAMAGED}", late=True)
def truncated_ascii_pcd(root: Path) -> None:
    halve(write_pcd(in_place_of(root, "depth/b.pcd"), PART.points, "ascii"))


@bad(rf"good/depth/b\.pcd: expected depth, {DAMAGED}", late=True)
def truncated_compressed_pcd(root: Path) -> None:
    halve(write_pcd(in_place_of(root, "depth/b.pcd"), PART.points, "binary_compressed"))


@bad(
    r"good/rgb/b\.png: expected an RGB image, found an empty file$",
    r"good/depth/c\.tiff: expected depth, found an empty file$",
    r"hole/mask/a\.png: expected a ground truth image, found an empty file$",
)
def files_of_zero_bytes(root: Path) -> None:
    own_data(root)
    for name in ("good/rgb/b.png", "good/depth/c.tiff", "hole/mask/a.png"):
        (root / name).write_bytes(b"")


@bad(r"good/rgb/b\.png: expected an RGB image, found a damaged or unknown file \(not a known image format\)$")
def text_called_png(root: Path) -> None:
    (own_data(root) / "good/rgb/b.png").write_text("no picture")


@bad(*(rf"good/depth/{name}: expected depth, {DAMAGED}" for name in
       (r"a\.png", r"b\.tiff", r"c\.npy", r"d\.npz", r"e\.ply", r"f\.pcd")))  # fmt: skip
def text_called_depth(root: Path) -> None:
    own_data(root)
    for name, suffix in zip("abcdef", ("png", "tiff", "npy", "npz", "ply", "pcd"), strict=True):
        write_member(root / f"good/rgb/{name}.png", PART.rgb)
        (root / f"good/depth/{name}.tiff").unlink(missing_ok=True)
        (root / f"good/depth/{name}.{suffix}").write_text("no depth\n" * 9)


@bad(r"rgb/b\.png: expected an RGB image, found no such file$")
def link_to_nothing(root: Path) -> None:
    in_place_of(root, "rgb/b.png").symlink_to(root / "gone.png")


@bad(r"rgb/b\.jpg: expected pixels stored upright, found orientation tag 6; rotate RGB and depth alike and remove the tag$")
def picture_stored_turned(root: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(PART.rgb).save(in_place_of(root, "rgb/b.jpg"), exif=exif)


# ------------------------------------------------------------------------------------------- other kinds of file


@bad(
    r"good/rgb/b\.gif: expected rgb as \.bmp, \.jpeg, .*, found \.gif$",
    r"depth/b\.tiff: expected an rgb file .*, found none$",
)
def rgb_of_other_kind(root: Path) -> None:
    Image.fromarray(PART.rgb).save(in_place_of(root, "rgb/b.gif"))


@bad(r"hole/mask/c\.jpg: expected mask as \.bmp, \.png, \.tif, \.tiff, found \.jpg$")
def mask_as_jpeg(root: Path) -> None:
    write_member(own_data(root) / "hole/mask/c.jpg", PART.mask)


@bad(r"rgb/b\.tiff: expected an RGB image with 8 or 16 bits a channel, found shape \(12, 16, 3\) of float32, 32 bits$")
def rgb_in_floats(root: Path) -> None:
    write_member(in_place_of(root, "rgb/b.tiff"), PART.points)


@bad(r"rgb/b\.tiff: expected an RGB image in grey or RGB, found TIFF photometric 5$")
def tiff_in_printing_colours(root: Path) -> None:
    Image.fromarray(PART.rgb).convert("CMYK").save(in_place_of(root, "rgb/b.tiff"))


@bad(r"hole/mask/b\.tiff: expected a ground truth image in grey or RGB, found TIFF photometric 3$")
def tiff_with_palette(root: Path) -> None:
    (own_data(root) / "hole/mask/b.png").unlink()
    Image.fromarray(PART.rgb).quantize(4).save(root / "hole/mask/b.tiff")


@bad(r"rgb/b\.tiff: expected one image in the file, found 2$")
def picture_of_two_pages(root: Path) -> None:
    tifffile.imwrite(in_place_of(root, "rgb/b.tiff"), np.zeros((2, *SIZE), np.uint8), photometric="minisblack")


@bad(r"depth/b\.png: expected depth as 16-bit grey PNG, found a colour or palette picture$")
def depth_of_four_channels(root: Path) -> None:
    write_member(in_place_of(root, "depth/b.png"), np.zeros((*SIZE, 4), np.uint16))


@bad(r"depth/b\.tiff: expected depth of shape \(H, W\) or points of shape \(H, W, 3\), found shape \(12, 16, 4\)$")
def tiff_depth_of_four_channels(root: Path) -> None:
    tifffile.imwrite(in_place_of(root, "depth/b.tiff"), np.ones((*SIZE, 4), np.float32), photometric="rgb")


@bad(r"depth/b\.tiff: expected depth, or points as floats, found a colour picture \(uint8, 3 channels\)$")
def picture_instead_of_depth(root: Path) -> None:
    write_member(in_place_of(root, "depth/b.tiff"), PART.rgb)


@bad(r"depth/b\.png: expected depth as 16-bit PNG, found 8 bits, which are too coarse .*$")
def depth_of_eight_bits(root: Path) -> None:
    write_member(in_place_of(root, "depth/b.png"), PART.rgb[..., 0])


@bad(r"depth/b\.npy: expected depth with 16 or more bits, found 8 bits, which are too coarse to show defects$")
def array_of_eight_bits(root: Path) -> None:
    write_member(in_place_of(root, "depth/b.npy"), PART.rgb[..., 0])


@bad(*(rf"depth/{name}: expected depth of shape \(H, W\) or points of shape \(H, W, 3\), found shape \({shape}\)$"
       for name, shape in ((r"a\.npy", "192,"), (r"b\.npy", "12, 16, 1"), (r"c\.npy", "12, 16, 4"),
                           (r"d\.npy", "192, 3"), (r"e\.npy", "1, 12, 16, 3"))))  # fmt: skip
def arrays_of_wrong_shape(root: Path) -> None:
    own_data(root)
    for name, shape in zip("abcde", [(192,), (12, 16, 1), (12, 16, 4), (192, 3), (1, 12, 16, 3)], strict=True):
        (root / f"good/depth/{name}.tiff").unlink()
        write_member(root / f"good/depth/{name}.npy", np.ones(shape, np.float32))


@bad(*(rf"depth/{n}\.npy: expected depth as integers or floats, found {dtype}$"
       for n, dtype in zip("abcd", ("complex128", "bool", "object", "<U3"), strict=True)))  # fmt: skip
def arrays_of_no_numbers(root: Path) -> None:
    own_data(root)
    for name, dtype in zip("abcd", (complex, bool, object, "<U3"), strict=True):
        (root / f"good/depth/{name}.tiff").unlink()
        np.save(root / f"good/depth/{name}.npy", np.ones(SIZE, dtype))


@bad(r"depth/b\.npz: expected one array, or one called xyz or depth, found left, right$")
def npz_of_two_arrays(root: Path) -> None:
    np.savez(in_place_of(root, "depth/b.npz"), left=PART.depth, right=PART.depth)


@bad(r"depth/b\.npz: expected one array, or one called xyz or depth, found none$")
def npz_of_no_arrays(root: Path) -> None:
    with zipfile.ZipFile(in_place_of(root, "depth/b.npz"), "w") as archive:
        archive.writestr("readme", "nothing")


@bad(r"depth/b\.npz: expected depth as integers or floats, found object$")
def npz_with_a_pickle(root: Path) -> None:
    np.savez(in_place_of(root, "depth/b.npz"), depth=np.array([[{}]], object))


@bad(
    r"depth/b\.ply: expected an organised cloud \(PCD: .*\), found 100 points without a grid, and RGB of 16 x 12 pixels$",
)
def unorganised_ply(root: Path) -> None:
    write_ply(in_place_of(root, "depth/b.ply"), PART.points[:10, :10], grid=None)


@bad(r"depth/b\.pcd: expected an organised cloud .*, found 100 points without a grid, and RGB of 16 x 12 pixels$")
def unorganised_pcd(root: Path) -> None:
    write_pcd(in_place_of(root, "depth/b.pcd"), PART.points[:10, :10], organised=False)


@bad(r"depth/b\.ply: expected depth, .*\(no vertices with x, y and z \(missing: z\)\)$")
def ply_without_z(root: Path) -> None:
    path = write_ply(in_place_of(root, "depth/b.ply"), PART.points)
    path.write_bytes(path.read_bytes().replace(b"float z", b"float w"))


@bad(r"depth/b\.ply: expected depth, .*\(192 vertices, not 16 x 13 as declared\)$")
def ply_of_another_grid(root: Path) -> None:
    path = write_ply(in_place_of(root, "depth/b.ply"), PART.points)
    path.write_bytes(path.read_bytes().replace(b"num_rows 12", b"num_rows 13"))


@bad(r"depth/b\.pcd: expected depth, .*\(no single field z\)$")
def pcd_with_another_field(root: Path) -> None:
    path = write_pcd(in_place_of(root, "depth/b.pcd"), PART.points)
    path.write_bytes(path.read_bytes().replace(b"FIELDS x y z", b"FIELDS x y w"))


@bad(r"depth/b\.pcd: expected depth, .*\(unknown encoding pa\?ked\)$", late=True)
def pcd_of_unknown_encoding(root: Path) -> None:
    path = write_pcd(in_place_of(root, "depth/b.pcd"), PART.points)
    path.write_bytes(path.read_bytes().replace(b"DATA binary", b"DATA pa\x07ked"))


# ------------------------------------------------------------------------------------------- headers that lie


@bad(r"rgb/b\.png: expected 1 to 80 million pixels, found 10000 million$")
def huge_png(root: Path) -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", 10**5, 10**5, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    in_place_of(root, "rgb/b.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT")


@bad(r"rgb/b\.bmp: expected 1 to 80 million pixels, found 10000 x 10000 \(width x height\)$")
def large_bmp(root: Path) -> None:
    path = in_place_of(root, "rgb/b.bmp", PART.rgb)
    content = bytearray(path.read_bytes())
    struct.pack_into("<ii", content, 18, 10_000, 10_000)  # where Pillow would warn only
    path.write_bytes(content)


@bad(r"rgb/b\.tiff: expected 1 to 80 million pixels, found 100000 x 100000 \(width x height\)$")
def huge_tiff(root: Path) -> None:
    path = in_place_of(root, "rgb/b.tiff", PART.rgb)
    with tifffile.TiffFile(path, mode="r+") as tiff:
        for tag in ("ImageWidth", "ImageLength"):
            tiff.pages[0].tags[tag].overwrite(10**5)


@bad(r"depth/b\.npy: expected 1 to 80 million pixels, found 100000 x 100000 \(width x height\)$")
def huge_npy(root: Path) -> None:
    with in_place_of(root, "depth/b.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (10**5, 10**5)})


@bad(
    r"depth/b\.ply: expected 1 to 80 million pixels, found 100000 x 100000 \(width x height\)$",
    r"depth/c\.pcd: expected 1 to 80 million pixels, found 100000 x 100000 \(width x height\)$",
)
def huge_clouds(root: Path) -> None:
    cloud = write_ply(in_place_of(root, "depth/b.ply"), PART.points)
    content = cloud.read_bytes().replace(b"vertex 192", b"vertex 10000000000")
    cloud.write_bytes(re.sub(rb"num_(cols|rows) \d+", rb"num_\1 100000", content))
    cloud = write_pcd(root / "good/depth/c.pcd", PART.points)
    (root / "good/depth/c.tiff").unlink()
    cloud.write_bytes(re.sub(rb"(WIDTH|HEIGHT) \d+", rb"\1 100000", cloud.read_bytes()))


@bad(
    r"rgb/b\.png: expected an RGB image, found a damaged or unknown file \(not a known image format\)$",
    r"rgb/c\.tiff: expected an RGB image with 8 or 16 bits a channel, found shape \(12, 16, 40\) of uint8, 8 bits$",
)
def pictures_that_other_programs_would_have_to_read(root: Path) -> None:
    Image.fromarray(PART.rgb).save(in_place_of(root, "rgb/b.png"), format="GIF")
    fat = np.zeros((*SIZE, 40), np.uint8)
    (root / "good/rgb/c.png").unlink()
    tifffile.imwrite(root / "good/rgb/c.tiff", fat, photometric="minisblack", planarconfig="contig")


@bad(r"depth/b\.npz: expected depth, found a damaged or unknown file \(EOF: reading array header")
def npz_whose_header_unpacks_to_gigabytes(root: Path) -> None:
    path = in_place_of(root, "depth/b.npz")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("depth.npy", b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + bytes(10**6))


@bad(r"depth/b\.ply: expected depth, .*\(10000000000 further elements declared in \d+ bytes\)$")
def ply_of_endless_elements(root: Path) -> None:
    cloud = write_ply(in_place_of(root, "depth/b.ply"), PART.points)
    more = b"element face 10000000000\nproperty list uchar int vertex_indices\nend_header\n"
    cloud.write_bytes(cloud.read_bytes().replace(b"end_header\n", more))


@bad(r"depth/b\.pcd: expected depth, .*\(4000000012 bytes a point\)$")
def pcd_of_fat_points(root: Path) -> None:
    cloud = write_pcd(in_place_of(root, "depth/b.pcd"), PART.points, "binary_compressed", names=("x", "y", "z", "_"))
    cloud.write_bytes(cloud.read_bytes().replace(b"COUNT 1 1 1 1", b"COUNT 1 1 1 1000000000"))


@bad(r"depth/b\.npy: expected 1 to 80 million pixels, found 16 x 0 \(width x height\)$")
def no_pixels(root: Path) -> None:
    in_place_of(root, "depth/b.npy", np.zeros((0, 16), np.float32))


# ------------------------------------------------------------------------------------------- units and depths


@bad(
    r'data: expected a declared unit for depth, found none; write "depth_unit: mm" .* into dataset\.yaml .*, or give ',
)
def depth_without_unit(root: Path) -> None:
    own_kind(root / "good")


@bad(r"data: expected a declared unit for depth, found none but .*data/dataset\.yml; write ")
def unit_in_a_file_of_nearly_that_name(root: Path) -> None:
    declare(own_kind(root / "good").parent)
    (root / "dataset.yaml").rename(root / "dataset.yml")


@bad(r"data: expected a declared unit for depth, found none but .*data/good/dataset\.yaml\.txt; write ")
def unit_where_nobody_looks(root: Path) -> None:
    declare(own_kind(root / "good"))
    (root / "good/dataset.yaml").rename(root / "good/dataset.yaml.txt")


@bad(r"data/a_depth\.png: expected a declared unit for depth in uint16 counts, found none; write .*dataset\.yaml")
def counts_without_unit(root: Path) -> Act:
    write_member(root / "a_rgb.png", PART.rgb)
    write_member(root / "a_depth.png", PART.counts)
    return lambda: find_folder(root)


YAML = r"data/dataset\.yaml: "


def declaring(text: str) -> Callable[[Path], None]:
    def build(root: Path) -> None:
        declare(own_data(root), text)

    return build


for label, text, line in (
    ("negative scale", "depth_scale: -0.001", r"depth scale: expected metres per count above 0, found -0\.001$"),
    ("zero scale", "depth_scale: 0", r"depth scale: expected metres per count above 0, found 0\.0$"),
    ("scale that is no number", "depth_scale: .nan", r"depth scale: expected metres per count above 0, found nan$"),
    ("nonsense unit", "depth_unit: inch", r"depth unit: expected one of m, cm, mm, um, found 'inch'$"),
    ("scale in words", "depth_scale: small", r"expected numbers for depth_scale, .*, found .*small"),
    ("missing in words", "depth_unit: m\ndepth_missing: none", r"expected numbers for .*depth_missing .*, found .*none"),
    ("scale of many", "depth_scale: [1, 2]", r"expected numbers for depth_scale, .*, found .*\[1, 2\]"),
    ("unit and scale", "depth_unit: m\ndepth_scale: 1", r"expected either .*, found depth_unit and depth_scale$"),
    ("focal length in words", "depth_unit: m\nfocal_length: long", r"expected numbers for .*focal_length, found .*long"),
    ("no focal length", "depth_unit: m\nfocal_length: 0", r"focal length: expected pixels above 0, found 0"),
    ("missing alone", "depth_missing: 0", r"expected either depth_unit or depth_scale, found depth_missing$"),
    ("unknown key", "depth_units: mm", r"expected only depth_unit, .*, focal_length, found depth_units$"),
    ("broken YAML", "depth_unit: [mm", r"expected YAML, found .+"),
    ("bytes for YAML", "\0\1\2", r"expected YAML, found .+"),
    ("a list for YAML", "- mm", r"expected names and values \(name: value\), found \"\['mm'\]\"$"),
):
    CASES[f"dataset.yaml with {label}"] = Bad(declaring(text), (YAML + line,), DataError, False)


def depths(value: float) -> Callable[[Path], None]:
    def build(root: Path) -> None:
        write_member(own_data(root) / "good/depth/b.tiff", np.full(SIZE, value, np.float32))

    return build


for value, line in (
    (0, "expected a measured depth somewhere, found all 192 pixels missing$"),
    (np.nan, "expected a measured depth somewhere, found all 192 pixels missing$"),
    (np.inf, "expected a measured depth somewhere, found all 192 pixels missing$"),
    (-0.5, "expected depth to grow away from the camera, found no positive but negative depths$"),
    (512, "expected depths of at most 100 m, found 512 m in the middle; to set the unit, write .*dataset.yaml"),
):
    CASES[f"depth of {value} everywhere"] = Bad(depths(value), (rf"good/depth/b\.tiff: {line}",), DataError, True)


# ------------------------------------------------------------------------------------------- Eyecandies


@bad(r"train/data/01: expected an image under light 2, found lights: 4$")
def eyecandies_without_the_light(root: Path) -> Act:
    eyecandies(root, lights=(2, 4))
    (root / "train/data/01_image_2.png").unlink()
    return lambda: find_dataset(root, light=2)


def without(name: str) -> Callable[[Path], None]:
    def build(root: Path) -> None:
        (eyecandies(root) / f"test_public/data/{name}").unlink()

    return build


for member in ("metadata.yaml", "info_depth.yaml", "mask.png", "depth.png"):
    CASES[f"Eyecandies without {member}"] = Bad(
        without(f"01_{member}"),
        (rf"test_public/data/01: expected a file 01_{re.escape(member)}, found other files of this number only$",),
        DataError, False,
    )  # fmt: skip


def with_info(text: str) -> Callable[[Path], None]:
    def build(root: Path) -> None:
        (eyecandies(root) / "train/data/00_info_depth.yaml").write_text(text)

    return build


for text, found in (
    ("normalization: {min: 3, max: 2}", r"\{'normalization': \{'min': 3, 'max': 2\}\}"),
    ("normalization: {min: 2}", r"\{'normalization': \{'min': 2\}\}"),
    ("normalization: {min: near, max: far}", r"\{'normalization': \{'min': 'near', 'max': 'far'\}\}"),
    ("normalization: {min: .nan, max: 1}", r"\{'normalization': \{'min': nan, 'max': 1\}\}"),
    ("", "none"),
):
    CASES[f"Eyecandies with info_depth {text!r}"] = Bad(
        with_info(text),
        (rf"train/data/00_info_depth\.yaml: expected normalization with a min below a max, in metres, found {found}$",),
        DataError, False,
    )  # fmt: skip

CASES["Eyecandies with broken info_depth"] = Bad(
    with_info("normalization: ["), (r"train/data/00_info_depth\.yaml: expected YAML, found .+",), DataError, False
)


@bad(r"test_public/data/01_metadata\.yaml: expected names and values \(name: value\), found \"\['anomalous'\]\"$")
def eyecandies_with_bad_metadata(root: Path) -> None:
    (eyecandies(root) / "test_public/data/01_metadata.yaml").write_text("[anomalous]")


# ------------------------------------------------------------------------------------------- settings and models


@bad(r"settings: unknown setting 'synthesis\.dropp'$", error=SettingsError)
def unknown_setting(root: Path) -> Act:
    return lambda: make_settings(changes=["synthesis.dropp=0.3"])


@bad(
    r"settings: synthesis\.drop: .*less than or equal to 1, found 1\.5$",
    r"settings: training\.batch: .*, found -1$",
    error=SettingsError,
)
def settings_out_of_range(root: Path) -> Act:
    return lambda: make_settings(changes=["synthesis.drop=1.5", "training.batch=-1"])


@bad(r"--set drop: expected section\.name=value", error=SettingsError)
def change_without_value(root: Path) -> Act:
    return lambda: make_settings(changes=["drop"])


@bad(r"data/my\.toml: expected settings as TOML, found ", error=SettingsError)
def settings_that_are_no_toml(root: Path) -> Act:
    root.mkdir()
    (root / "my.toml").write_text("preset = [")
    return lambda: make_settings(file=root / "my.toml")


@bad(r"data/my\.toml: expected a settings file, found no such file$", error=SettingsError)
def no_settings_file(root: Path) -> Act:
    return lambda: make_settings(file=root / "my.toml")


def load_model(path: Path) -> Act:
    def act() -> None:
        from das3d.detector import load

        load(path, "cpu")

    return act


@bad(
    r"data: expected a run folder with model\.safetensors, or a model file, found none; it has no finished",
    error=ModelError,
)
def run_without_model(root: Path) -> Act:
    root.mkdir()
    return load_model(root)


@bad(r"data/model\.safetensors: expected a das3d model as \.safetensors, .+, found none of these \(.+\)$", error=ModelError)
def damaged_model(root: Path) -> Act:
    root.mkdir()
    (root / "model.safetensors").write_bytes(b'\x10\0\0\0\0\0\0\0{"a": not json}' + bytes(64))
    return load_model(root)


@bad(r"data/other\.safetensors: expected a das3d model, found a safetensors file of something else$", error=ModelError)
def model_of_something_else(root: Path) -> Act:
    import torch
    from safetensors.torch import save

    root.mkdir()
    (root / "other.safetensors").write_bytes(save({"weight": torch.zeros(3)}))
    return load_model(root / "other.safetensors")


@bad(r"data/new\.safetensors: expected model format 4, found 99 \(written by das3d 77\.0\); train it", error=ModelError)
def model_of_another_format(root: Path) -> Act:
    import torch
    from safetensors.torch import save

    root.mkdir()
    about = json.dumps({"format": 99, "version": "77.0"})
    (root / "new.safetensors").write_bytes(save({"weight": torch.zeros(3)}, metadata={"das3d": about}))
    return load_model(root / "new.safetensors")


def load_state(path: Path) -> Act:
    def act() -> None:
        import torch
        from lightning.fabric import Fabric

        from das3d.network import DAS3DNet
        from das3d.training import State, load_checkpoint

        chosen = make_settings("demo")
        network = DAS3DNet.from_settings(chosen)
        state = State(network, network, torch.optim.Adam(network.parameters()))
        load_checkpoint(path, state, chosen, Fabric(accelerator="cpu", devices=1))

    return act


@bad(r"data/checkpoint\.pt: expected a checkpoint, found .+; delete it to train from the start$", error=ModelError)
def damaged_checkpoint(root: Path) -> Act:
    root.mkdir()
    (root / "checkpoint.pt").write_bytes(b"PK\x03\x04 cut off")
    return load_state(root / "checkpoint.pt")


@bad(r"data/checkpoint\.pt: expected a checkpoint, found a file of something else; delete it .*$", error=ModelError)
def checkpoint_of_something_else(root: Path) -> Act:
    import torch

    root.mkdir()
    torch.save({"epoch": 3}, root / "checkpoint.pt")
    return load_state(root / "checkpoint.pt")


# ------------------------------------------------------------------------------------------- several at once


@bad(
    r"data/dataset\.yaml: depth unit: expected one of m, cm, mm, um, found 'foot'$",
    r"good/rgb/c\.jpg: expected one rgb file of this name, found c\.png too$|good/rgb/c\.png: expected one .* c\.jpg too$",
    r"hole/rgb/b\.png: expected ground truth as for others here, found none$",
    r"good/rgb/e\.png: expected a depth file of the same name, found none$",
    r"good/rgb/a\.png: expected an RGB image, found an empty file$",
    r"good/depth/d\.tiff: expected depth, found a damaged or unknown file \(.*\)$",
    r"one size, found 16 x 12 here and 15 x 12 in .*depth/b\.tiff$|good/depth/b\.tiff: .*one size, found 15 x 12 here and",
)
def everything_at_once(root: Path) -> None:
    write_member(declare(own_data(root), "depth_unit: foot") / "good/rgb/c.jpg", PART.rgb)
    (root / "hole/mask/b.png").unlink()
    (root / "good/depth/e.tiff").unlink()
    (root / "good/rgb/a.png").write_bytes(b"")
    (root / "good/depth/d.tiff").write_text("text")
    write_member(root / "good/depth/b.tiff", PART.depth[:, 1:])


@bad(
    *[rf"good/rgb/{number}\.png: expected a depth file of the same name, found none$" for number in range(10)],
    r"^\.\.\. and 13 more: parts without depth$",
)
def many_of_one_kind(root: Path) -> None:
    own_data(root)
    for number in range(23):
        write_member(root / f"good/rgb/{number}.png", PART.rgb)


# ------------------------------------------------------------------------------------------- the tests


def act_of(case: Bad, root: Path) -> Act:
    act = case.build(root)
    if case.late:
        find_dataset(root)  # finds nothing wrong
    return act or (lambda: read_all(root) if case.late else find_dataset(root))


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_told_in_one_line_a_problem(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    case, root = CASES[name], tmp_path / "data"
    act = act_of(case, root)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")  # as errors they would only be another reason that a reader tells
        with pytest.raises(case.error) as caught:
            act()
    assert not warned
    # Python prints what is logged where nobody listens.
    assert all(logging.getLogger(record.name).handlers for record in caplog.records)
    assert type(caught.value) is case.error
    lines = str(caught.value).splitlines()
    assert len(lines) == len(case.lines), "\n".join(lines)
    for line, pattern in zip(lines, case.lines, strict=True):
        assert re.search(pattern, line), line
        assert len(line) < 600 and line.isprintable()
    if case.error is DataError:
        assert caught.value.problems == lines  # type: ignore[attr-defined]
        assert all(line.startswith((str(root), "...")) for line in lines)


def test_single_files_are_refused_by_name(tmp_path: Path) -> None:
    for read, name, what in (
        (read_rgb, "a.png", "an RGB image"), (read_mask, "m.png", "a ground truth image"), (read_depth, "d.ply", "depth"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=rf"{name}: expected {what}, found no such file$"):
            read(tmp_path / name)
        (tmp_path / name).mkdir()
        with pytest.raises(DataError, match=rf"{name}: expected {what}, found a folder$"):
            read(tmp_path / name)
    with pytest.raises(DataError, match=r"d\.exr: expected depth as one of \.npy, .*, found \.exr$"):
        read_depth(tmp_path / "d.exr")
    with pytest.raises(DataError, match=r"picture: expected an RGB image as one of .*, found no suffix$"):
        read_rgb(tmp_path / "picture")


FORMATS: dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]] = {
    "a.png": (lambda path: write_member(path, PART.rgb), read_rgb),
    "deep.png": (lambda path: write_member(path, PART.rgb.astype(np.uint16) * 257), read_rgb),
    "a.jpg": (lambda path: Image.fromarray(PART.rgb).save(path, exif=upright()), read_rgb),
    "a.bmp": (lambda path: write_member(path, PART.rgb), read_rgb),
    "a.tif": (lambda path: tifffile.imwrite(path, PART.rgb, photometric="rgb", compression="lzw"), read_rgb),
    "m.png": (lambda path: Image.fromarray(PART.mask).save(path), read_mask),
    "d.png": (lambda path: write_member(path, PART.counts), as_counts),
    "d.tiff": (lambda path: write_member(path, PART.points), as_counts),
    "d.npy": (lambda path: write_member(path, PART.points), as_counts),
    "d.npz": (lambda path: write_member(path, PART.depth), as_counts),
    "d.ply": (lambda path: write_ply(path, PART.points), as_counts),
    "ascii.ply": (lambda path: write_ply(path, PART.points, "ascii"), as_counts),
    "d.pcd": (lambda path: write_pcd(path, PART.points), as_counts),
    "ascii.pcd": (lambda path: write_pcd(path, PART.points, "ascii"), as_counts),
    "packed.pcd": (lambda path: write_pcd(path, PART.points, "binary_compressed"), as_counts),
}  # fmt: skip
how_to_edit = st.sampled_from(["set", "cut", "insert", "end"])
some_edits = st.lists(st.tuples(st.floats(0, 1), how_to_edit, st.binary(min_size=1, max_size=4)), min_size=1, max_size=4)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(FORMATS)), st.sampled_from([400, 10**6]), some_edits)
def test_any_damage_gives_a_member_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, name: str, head: int, edits: list[tuple[float, str, bytes]]
) -> None:
    write, read = FORMATS[name]
    path = tmp_path_factory.mktemp("damaged") / name
    write(path)
    content = bytearray(path.read_bytes())
    for where, how, new in edits:
        # Half of the damage lies in the header.
        place = int(where * min(len(content), head))
        if how == "end":
            del content[place:]
        else:
            content[place : place + {"set": len(new), "cut": 5 * len(new), "insert": 0}[how]] = b"" if how == "cut" else new
    path.write_bytes(content)
    message = ""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            read(path)
        except DataError as error:
            message = str(error)
    assert not warned
    assert not message or (message.startswith(f"{path}: expected ") and message.isprintable())


TOLD_BY_TRAIN = (
    "empty_folder", "no_folder", "missing_depth", "truncated_tiff", "text_called_png", "files_of_zero_bytes",
    "depth_without_unit", "several_categories_and_none_chosen", "dataset.yaml with broken YAML", "everything_at_once",
    "many_of_one_kind",
)  # fmt: skip


@pytest.mark.parametrize("name", TOLD_BY_TRAIN)
def test_train_prints_problems_as_plain_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("DAS3D_CACHE", str(tmp_path / "cache"))
    case, root = CASES[name], tmp_path / "data"
    case.build(root)
    told = CliRunner().invoke(
        app, ["train", str(root), "--out", str(tmp_path / "run"), "--preset", "demo", "--device", "cpu"]
    )
    assert told.exit_code == 1
    check_told(told.stderr, case)
    assert "Traceback" not in told.output
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_setting_that_cannot_work_is_told_before_data_is_looked_at(tmp_path: Path) -> None:
    told = CliRunner().invoke(
        app, ["train", str(tmp_path / "none"), "--out", str(tmp_path / "run"), "--set", "synthesis.drop=1.5"]
    )
    assert told.exit_code == 1
    assert re.fullmatch(r"error: settings: synthesis\.drop: .*, found 1\.5\n", told.stderr)


def test_predict_without_a_model_is_told(tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["predict", str(tmp_path), "--data", str(tmp_path), "--out", str(tmp_path / "out")])
    assert told.exit_code == 1
    assert re.fullmatch(r"error: .*: expected a run folder with model\.safetensors, .*, found none.*\n", told.stderr)


def test_nothing_else_reaches_the_screen(tmp_path: Path) -> None:
    # A process of its own: libraries that log or warn of damaged files would write to its stderr.
    root = tmp_path / "data"
    case = CASES["huge_tiff"]
    case.build(root)
    environment = {**os.environ, "DAS3D_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "das3d", "train", str(root), "--out", str(tmp_path / "run"), "--device", "cpu"]
    told = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert told.returncode == 1
    check_told(told.stderr, case)


def check_told(stderr: str, case: Bad) -> None:
    lines = stderr.splitlines()
    assert len(lines) == len(case.lines), stderr
    for line, pattern in zip(lines, case.lines, strict=True):
        assert line.startswith("error: ")
        assert re.search(pattern, line.removeprefix("error: ")), line
