"""Every format gives back what was written, in metres, and says what is missing."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from builders import CAMERA, SIZE, sample, write_member, write_pcd, write_ply
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image

from das3d.errors import DataError
from das3d.files import DepthFormat, depth_size, mask_size, read_depth, read_mask, read_rgb, rgb_size

PART = sample()
TENTHS = DepthFormat(1e-4)  # of a millimetre, as `Sample.counts`
few = settings(max_examples=25, deadline=None)

# ------------------------------------------------------------------------------------------- RGB


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.tif", "a.tiff", "a.bmp"])
def test_rgb_comes_back_exactly(tmp_path: Path, name: str) -> None:
    path = write_member(tmp_path / name, PART.rgb)
    assert rgb_size(path) == SIZE
    rgb = read_rgb(path)
    assert rgb.dtype == np.uint8 and rgb.flags.c_contiguous
    np.testing.assert_array_equal(rgb, PART.rgb)


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "JPG"])
def test_jpeg_comes_back_nearly(tmp_path: Path, suffix: str) -> None:
    v, u = np.indices((32, 48), dtype=np.float64)
    smooth = np.stack([4 * u, 7 * v, 255 - 3 * u], axis=-1).astype(np.uint8)
    path = write_member(tmp_path / f"a.{suffix}", smooth)
    assert rgb_size(path) == (32, 48)
    rgb = read_rgb(path)
    assert rgb.shape == smooth.shape
    assert np.abs(rgb.astype(int) - smooth).mean() < 3


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("channels", [0, 3])
def test_sixteen_bits_become_eight_by_rounding(tmp_path: Path, suffix: str, channels: int) -> None:
    deep = np.random.default_rng(1).integers(0, 65536, (*SIZE, channels) if channels else SIZE, np.uint16)
    rgb = read_rgb(write_member(tmp_path / f"deep.{suffix}", deep))
    eight = np.floor(deep / 257 + 0.5).astype(np.uint8)
    np.testing.assert_array_equal(rgb, eight if channels else np.stack([eight] * 3, axis=-1))
    exact = read_rgb(write_member(tmp_path / f"exact.{suffix}", PART.rgb.astype(np.uint16) * 257))
    np.testing.assert_array_equal(exact, PART.rgb)


@pytest.mark.parametrize("name", ["a.png", "a.tiff", "a.bmp"])
def test_grey_becomes_three_equal_channels(tmp_path: Path, name: str) -> None:
    grey = PART.rgb[..., 0]
    np.testing.assert_array_equal(read_rgb(write_member(tmp_path / name, grey)), np.stack([grey] * 3, axis=-1))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_alpha_is_dropped_and_changes_no_colour(tmp_path: Path, name: str, kind: Any) -> None:
    scale = np.iinfo(kind).max // 255
    alpha = np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) % 256
    image = (np.dstack([PART.rgb, alpha]) * scale).astype(kind)
    np.testing.assert_array_equal(read_rgb(write_member(tmp_path / name, image)), PART.rgb)


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_grey_with_alpha_becomes_three_equal_channels(tmp_path: Path, name: str) -> None:
    grey = PART.rgb[..., 0]
    Image.fromarray(grey).convert("LA").save(tmp_path / name)
    np.testing.assert_array_equal(read_rgb(tmp_path / name), np.stack([grey] * 3, axis=-1))


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_one_bit_becomes_black_and_white(tmp_path: Path, name: str) -> None:
    Image.fromarray(PART.mask).save(tmp_path / name)
    np.testing.assert_array_equal(read_rgb(tmp_path / name), np.repeat(PART.mask[..., None] * np.uint8(255), 3, axis=2))


def test_jpeg_inside_tiff_comes_back_nearly(tmp_path: Path) -> None:
    v, u = np.indices((32, 48), dtype=np.float64)
    smooth = np.stack([4 * u, 7 * v, 255 - 3 * u], axis=-1).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "a.tif", compression="jpeg", quality=90)
    rgb = read_rgb(tmp_path / "a.tif")
    assert rgb.shape == smooth.shape and np.abs(rgb.astype(int) - smooth).mean() < 3


def test_palette_becomes_its_colours(tmp_path: Path) -> None:
    image = Image.fromarray(PART.rgb).quantize(16)
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_rgb(tmp_path / "a.png"), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("options", [{"compression": "lzw"}, {"compression": "zlib"}, {"planarconfig": "separate"}])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_any_tiff_storage_gives_the_same_rgb(tmp_path: Path, options: dict[str, str], kind: Any) -> None:
    image = PART.rgb.astype(kind) * (np.iinfo(kind).max // 255)
    planar = "planarconfig" in options
    tifffile.imwrite(tmp_path / "a.tif", np.moveaxis(image, -1, 0) if planar else image, photometric="rgb", **options)
    assert rgb_size(tmp_path / "a.tif") == SIZE
    np.testing.assert_array_equal(read_rgb(tmp_path / "a.tif"), PART.rgb)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])
def test_images_stored_turned_are_refused(tmp_path: Path, name: str) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(PART.rgb).save(tmp_path / name, exif=exif)
    for read in (rgb_size, read_rgb):
        with pytest.raises(DataError, match=rf"{name}: expected pixels stored upright, found orientation tag 6"):
            read(tmp_path / name)


def test_sizes_need_the_header_only(tmp_path: Path) -> None:
    large = sample(1, (60, 80))
    for name, array, size_of in (
        ("a.png", large.rgb, rgb_size),
        ("a.jpg", large.rgb, rgb_size),
        ("m.png", large.mask, mask_size),
        ("d.png", large.counts, lambda path: depth_size(path, TENTHS)),
        ("d.npy", large.points, depth_size),
        ("d.ply", large.points, depth_size),
        ("d.pcd", large.points, depth_size),
    ):
        path = write_member(tmp_path / name, array)
        content = path.read_bytes()
        path.write_bytes(content[: max(700 if name == "a.jpg" else 0, len(content) // 2)])
        assert size_of(path) == (60, 80)


# ------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("name", ["m.png", "m.tif", "m.tiff", "m.bmp"])
@pytest.mark.parametrize("high", [1, 255])
def test_mask_comes_back_whatever_number_marks_it(tmp_path: Path, name: str, high: int) -> None:
    path = write_member(tmp_path / name, PART.mask.astype(np.uint8) * np.uint8(high))
    assert mask_size(path) == SIZE
    mask = read_mask(path)
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, PART.mask)


def test_masks_of_every_depth_and_colour_come_back(tmp_path: Path) -> None:
    marked = PART.mask
    Image.fromarray(marked).save(tmp_path / "one bit.png")
    indexed = Image.fromarray(marked.astype(np.uint8)).convert("P")
    indexed.putpalette([0, 0, 0, 200, 0, 0])
    indexed.save(tmp_path / "palette.png")
    write_member(tmp_path / "deep.png", marked.astype(np.uint16))  # 1 of 65535
    blue = np.zeros((*SIZE, 3), np.uint8)
    blue[marked, 2] = 9
    write_member(tmp_path / "blue.png", blue)
    write_member(tmp_path / "alpha.png", np.dstack([blue, np.full(SIZE, 255, np.uint8)]))
    tifffile.imwrite(tmp_path / "bool.tif", marked, photometric="minisblack")
    for path in tmp_path.iterdir():
        np.testing.assert_array_equal(read_mask(path), marked, err_msg=path.name)


def test_masks_in_which_white_may_be_zero_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "m.tif", PART.mask)  # "white is zero", but the numbers are as they were
    for read in (mask_size, read_mask):
        with pytest.raises(DataError, match=r"m\.tif: expected .* in which black is zero, found TIFF photometric 0"):
            read(tmp_path / "m.tif")


def test_jpeg_is_no_mask(tmp_path: Path) -> None:
    path = write_member(tmp_path / "m.jpg", PART.mask)
    with pytest.raises(DataError, match=r"m\.jpg: expected a ground truth image as one of \.bmp, \.png.*, found \.jpg"):
        read_mask(path)


# ------------------------------------------------------------------------------------------- depth

Write = Callable[[Path], Any]

AS_DEPTH: dict[str, tuple[str, Write, DepthFormat | None]] = {
    "PNG in counts": ("d.png", lambda p: write_member(p, PART.counts), TENTHS),
    "TIFF in metres": ("d.tiff", lambda p: write_member(p, PART.depth), None),
    "TIFF in counts": ("d.tif", lambda p: write_member(p, PART.counts), TENTHS),
    "TIFF in millimetres": ("d.tif", lambda p: write_member(p, PART.depth * 1000), DepthFormat.from_unit("mm")),
    "TIFF in double": ("d.tif", lambda p: write_member(p, PART.depth.astype(np.float64)), None),
    "TIFF, LZW": ("d.tif", lambda p: tifffile.imwrite(p, PART.depth, compression="lzw"), None),
    "TIFF, predictor": ("d.tif", lambda p: tifffile.imwrite(p, PART.depth, compression="zlib", predictor=True), None),
    "TIFF by Pillow": ("d.tif", lambda p: Image.fromarray(PART.depth).save(p), None),
    "NPY": ("d.npy", lambda p: np.save(p, PART.depth), None),
    "NPY in counts": ("d.npy", lambda p: np.save(p, PART.counts.astype(np.int32)), TENTHS),
    "NPY, columns first": ("d.npy", lambda p: np.save(p, np.asfortranarray(PART.depth)), None),
    "NPY, big end first": ("d.npy", lambda p: np.save(p, PART.depth.astype(">f4")), None),
    "NPZ": ("d.npz", lambda p: np.savez(p, anything=PART.depth), None),
    "NPZ, compressed": ("d.npz", lambda p: np.savez_compressed(p, anything=PART.depth), None),
    "NPZ, by name": ("d.npz", lambda p: np.savez(p, depth=PART.depth, colour=PART.rgb), None),
}  # fmt: skip

AS_POINTS: dict[str, tuple[str, Write]] = {
    "TIFF, a page for each row": ("d.tiff", lambda p: write_member(p, PART.points)),
    "TIFF, one page": ("d.tiff", lambda p: tifffile.imwrite(p, PART.points, photometric="rgb")),
    "TIFF, planar": (
        "d.tiff",
        lambda p: tifffile.imwrite(p, np.moveaxis(PART.points, 2, 0), photometric="rgb", planarconfig="separate"),
    ),
    "NPY": ("d.npy", lambda p: np.save(p, PART.points)),
    "NPZ, by name": ("d.npz", lambda p: np.savez(p, xyz=PART.points, depth=np.ones(SIZE), colour=PART.rgb)),
    "PLY": ("d.ply", lambda p: write_ply(p, PART.points)),
    "PLY, ASCII": ("d.ply", lambda p: write_ply(p, PART.points, "ascii")),
    "PLY, big end first": ("d.ply", lambda p: write_ply(p, PART.points, "binary_big_endian")),
    "PLY, double": ("d.ply", lambda p: write_ply(p, PART.points, kind="double")),
    "PLY, with colours": ("d.ply", lambda p: write_ply(p, PART.points, colours=True)),
    "PLY, ASCII with colours": ("d.ply", lambda p: write_ply(p, PART.points, "ascii", colours=True)),
    "PLY, grid in comments": ("d.ply", lambda p: write_ply(p, PART.points, grid=("comment width", "comment height"))),
    "PLY, grid with equals signs": (
        "d.ply",
        lambda p: write_ply(p, PART.points, grid=("comment cols =", "comment rows =")),
    ),
    "PLY of valid points": ("d.ply", lambda p: write_range_grid(p, PART.points)),
    "PCD": ("d.pcd", lambda p: write_pcd(p, PART.points)),
    "PCD, ASCII": ("d.pcd", lambda p: write_pcd(p, PART.points, "ascii")),
    "PCD, compressed": ("d.pcd", lambda p: write_pcd(p, PART.points, "binary_compressed")),
    "PCD, double": ("d.pcd", lambda p: write_pcd(p, PART.points, "binary_compressed", size=8)),
    "PCD, padded": ("d.pcd", lambda p: write_pcd(p, PART.points, names=("x", "y", "z", "_", "rgb", "_"))),
    "PCD, ASCII in other order": ("d.pcd", lambda p: write_pcd(p, PART.points, "ascii", names=("rgb", "z", "y", "x"))),
    "PCD, compressed in other order": (
        "d.pcd",
        lambda p: write_pcd(p, PART.points, "binary_compressed", names=("_", "z", "x", "_", "y")),
    ),
}


def write_range_grid(path: Path, points: NDArray[np.float32]) -> None:
    # As the Stanford scans are: the measured points alone, and for each cell of the grid which of them it holds.
    height, width = points.shape[:2]
    valid = points[..., 2].ravel() > 0
    header = [
        "ply", "format ascii 1.0", f"obj_info num_cols {width}", f"obj_info num_rows {height}",
        f"element vertex {valid.sum()}", *(f"property float {axis}" for axis in "xyz"),
        f"element range_grid {valid.size}", "property list uchar int vertex_indices", "end_header",
    ]  # fmt: skip
    rows = [" ".join(f"{value:.9g}" for value in point) for point in points.reshape(-1, 3)[valid]]
    rows += [f"1 {index}" if there else "0" for index, there in zip(np.cumsum(valid) - 1, valid, strict=True)]
    path.write_text("\n".join([*header, *rows, ""]))


def check_depth(depth: NDArray[np.float32], valid: NDArray[np.bool_]) -> None:
    assert depth.dtype == np.float32 and valid.dtype == np.bool_
    assert PART.valid.any() and not PART.valid.all()
    np.testing.assert_array_equal(valid, PART.valid)
    np.testing.assert_allclose(depth, PART.depth, rtol=1e-6, atol=0)


@pytest.mark.parametrize("case", AS_DEPTH)
def test_depth_comes_back_in_metres(tmp_path: Path, case: str) -> None:
    name, write, form = AS_DEPTH[case]
    write(tmp_path / name)
    assert depth_size(tmp_path / name, form) == SIZE
    depth, valid, camera = read_depth(tmp_path / name, form)
    check_depth(depth, valid)
    assert camera is None


@pytest.mark.parametrize("case", AS_POINTS)
def test_points_come_back_as_depth_with_their_camera(tmp_path: Path, case: str) -> None:
    name, write = AS_POINTS[case]
    write(tmp_path / name)
    assert depth_size(tmp_path / name) == SIZE
    depth, valid, camera = read_depth(tmp_path / name)
    check_depth(depth, valid)
    assert camera is not None
    found, truth = [(c.fx, c.fy, c.cx, c.cy) for c in (camera, CAMERA)]
    np.testing.assert_allclose(found, truth, rtol=1e-4)


@pytest.mark.parametrize("write", [
    lambda path: write_ply(path.with_suffix(".ply"), PART.points, grid=None),
    lambda path: write_pcd(path.with_suffix(".pcd"), PART.points, organised=False),
])  # fmt: skip
def test_clouds_without_a_grid_take_that_of_the_rgb(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    path = write(tmp_path / "d")
    assert depth_size(path, size=SIZE) == SIZE
    depth, valid, _ = read_depth(path, size=SIZE)
    check_depth(depth, valid)
    for size, found in ((None, "192 points without a grid"), ((12, 15), "192 points without a grid, and RGB of 15 x 12")):
        with pytest.raises(DataError, match=rf"{path.name}: expected an organised cloud .*, found {found}"):
            read_depth(path, size=size)


@few
@given(
    st.sampled_from(["m", "cm", "mm", "um"]),
    st.sampled_from(["d.npy", "d.tiff", "d.npz", "d.ply", "d.pcd"]),
)
def test_any_unit_gives_the_same_depth(tmp_path_factory: pytest.TempPathFactory, unit: str, name: str) -> None:
    per_metre = {"m": 1, "cm": 100, "mm": 1000, "um": 1_000_000}[unit]
    path = write_member(tmp_path_factory.mktemp("unit") / name, PART.points * np.float32(per_metre))
    depth, valid, camera = read_depth(path, DepthFormat.from_unit(unit))
    check_depth(depth, valid)
    assert camera is not None and camera.fx == pytest.approx(CAMERA.fx, rel=1e-4)


@few
@given(
    hnp.arrays(np.uint16, (5, 7), elements=st.integers(0, 65535)),
    st.floats(1e-6, 1e-3),
    st.floats(-0.5, 1.0),
    st.sampled_from(["d.png", "d.tiff", "d.npy"]),
)
def test_metres_are_counts_times_scale_plus_offset(
    tmp_path_factory: pytest.TempPathFactory, counts: NDArray[np.uint16], scale: float, offset: float, name: str
) -> None:
    path = write_member(tmp_path_factory.mktemp("counts") / name, counts)
    metres = (counts.astype(np.float64) * scale + offset).astype(np.float32)
    if not (metres > 0).any():
        with pytest.raises(DataError, match=f"{name}: expected "):
            read_depth(path, DepthFormat(scale, offset))
        return
    depth, valid, _ = read_depth(path, DepthFormat(scale, offset))
    np.testing.assert_array_equal(valid, metres > 0)
    np.testing.assert_array_equal(depth, np.where(metres > 0, metres, 0))


@pytest.mark.parametrize("name", ["d.npy", "d.tiff", "d.npz"])
@pytest.mark.parametrize("hole", [0.0, -0.0, -0.3, np.nan, np.inf, -np.inf, np.finfo(np.float32).max])
def test_zero_negative_and_non_finite_depth_is_missing(tmp_path: Path, name: str, hole: float) -> None:
    metres = PART.depth.copy()
    metres[~PART.valid] = hole
    check_depth(*read_depth(write_member(tmp_path / name, metres))[:2])


@pytest.mark.parametrize("name", ["d.npy", "d.tiff", "d.ply", "d.pcd"])
@pytest.mark.parametrize("hole", [(0, 0, 0), (np.nan,) * 3, (0.1, 0.2, 0), (0.1, 0.1, -1), (np.nan, np.nan, 0)])
def test_points_are_missing_by_their_z(tmp_path: Path, name: str, hole: tuple[float, float, float]) -> None:
    points = PART.points.copy()
    points[~PART.valid] = hole
    depth, valid, camera = read_depth(write_member(tmp_path / name, points))
    check_depth(depth, valid)
    assert camera is not None and camera.fx == pytest.approx(CAMERA.fx, rel=1e-4)


@pytest.mark.parametrize(
    ("kind", "scale", "marker"),
    [
        (np.uint16, 1e-4, 65535),
        (np.uint16, 1e-4, 1),
        (np.int32, 1e-4, -9999),
        (np.float32, 1.0, 9.99),  # which float32 cannot hold exactly
        (np.float64, 1.0, 9.99),
        (np.float32, 1.0, 3.4028235e38),
        (np.float32, 1.0, 1e300),  # inf in float32
    ],
)
def test_a_declared_number_is_missing(tmp_path: Path, kind: Any, scale: float, marker: float) -> None:
    numbers = (PART.counts if np.issubdtype(kind, np.integer) else PART.depth).astype(kind)
    with np.errstate(over="ignore"):
        numbers[~PART.valid] = marker
    path = write_member(tmp_path / "d.npy", numbers)
    check_depth(*read_depth(path, DepthFormat(scale, missing=marker))[:2])


def test_a_marker_that_the_type_cannot_hold_marks_nothing(tmp_path: Path) -> None:
    path = write_member(tmp_path / "d.png", PART.counts)
    check_depth(*read_depth(path, DepthFormat(1e-4, missing=-1))[:2])


def test_with_an_offset_count_zero_is_a_measurement(tmp_path: Path) -> None:
    path = write_member(tmp_path / "d.png", np.array([[0, 1000], [2000, 0]], np.uint16))
    depth, valid, _ = read_depth(path, DepthFormat(1e-4, offset=0.5))
    assert valid.all()
    np.testing.assert_allclose(depth, [[0.5, 0.6], [0.7, 0.5]], rtol=1e-6)
    _, valid, _ = read_depth(path, DepthFormat(1e-4, offset=0.5, missing=0))
    np.testing.assert_array_equal(valid, [[False, True], [True, False]])


@pytest.mark.parametrize("values", [{"scale": 0.0}, {"scale": -1e-3}, {"scale": np.nan}, {"scale": np.inf},
                                    {"scale": 1.0, "offset": np.nan}, {"scale": 1.0, "offset": np.inf}])  # fmt: skip
def test_a_depth_format_that_cannot_work_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(DataError, match=r"depth (scale|offset): expected metres.*, found (0\.0|-0\.001|nan|inf)"):
        DepthFormat(**values)


def test_what_a_unit_does_not_say_is_known_for_counts_of_the_same_scale_alone() -> None:
    sensor = DepthFormat(6e-6, 0.3, 65535, 580.0)
    assert DepthFormat(6e-6).over(sensor) == sensor
    assert DepthFormat(6e-6, 0.1, 0).over(sensor) == DepthFormat(6e-6, 0.1, 0, 580.0)
    assert DepthFormat(1e-3).over(sensor) == DepthFormat(1e-3, focal_length=580.0)
    assert DepthFormat(1e-3).over(None) == DepthFormat(1e-3)


def test_reading_warns_of_nothing_and_leaves_files_as_they_are(tmp_path: Path) -> None:
    paths = [write_member(tmp_path / name, array) for name, array in (
        ("a.png", PART.rgb), ("d.png", PART.counts), ("d.tiff", PART.points), ("d.ply", PART.points),
    )]  # fmt: skip
    before = [path.read_bytes() for path in paths]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_rgb(paths[0])
        for path in paths[1:]:
            read_depth(path, TENTHS)
    assert [path.read_bytes() for path in paths] == before
    assert len(list(tmp_path.iterdir())) == len(paths)


@pytest.mark.parametrize("kind", ["rgba", "grey and alpha", "palette", "TIFF"])
def test_ground_truth_that_tells_by_transparency_is_refused(tmp_path: Path, kind: str) -> None:
    marked = PART.mask
    alpha, white = (marked * 255).astype(np.uint8), np.full_like(marked, 255, dtype=np.uint8)
    path = tmp_path / ("mask.tiff" if kind == "TIFF" else "mask.png")
    if kind == "palette":
        image = Image.fromarray(marked.astype(np.uint8), mode="P")
        image.putpalette([255, 255, 255, 255, 255, 255])
        image.save(path, transparency=0)
    elif kind == "grey and alpha":
        Image.fromarray(np.dstack([white, alpha])).save(path)
    elif kind == "rgba":
        Image.fromarray(np.dstack([white, white, white, alpha])).save(path)
    else:
        tifffile.imwrite(path, np.dstack([white, white, white, alpha]), photometric="rgb", extrasamples=["unassalpha"])
    with pytest.raises(
        DataError, match=r"mask\.(png|tiff): expected a ground truth image that tells by colour, found transparency"
    ):
        read_mask(path)


@pytest.mark.parametrize("outside", [255, 0])
def test_ground_truth_whose_transparency_tells_nothing_else_is_read_by_its_colours(tmp_path: Path, outside: int) -> None:
    marked = (PART.mask * 200).astype(np.uint8)
    opacity = np.where(PART.mask, 255, outside).astype(np.uint8)  # opaque, or painted on nothing
    Image.fromarray(np.dstack([marked, marked, marked, opacity])).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), PART.mask)


@pytest.mark.parametrize("name", ["d.ply", "d.npy"])
def test_points_column_by_column_are_refused(tmp_path: Path, name: str) -> None:
    part = sample(0, (24, 32))
    path = write_member(tmp_path / name, part.points)
    assert read_depth(path)[2] is not None
    turned = np.ascontiguousarray(part.points.swapaxes(0, 1)).reshape(part.points.shape)
    write_member(path, turned)
    with pytest.raises(DataError, match=rf"{name}: expected points row by row, found them column by column"):
        read_depth(path)


def test_points_of_a_frame_that_lies_on_its_side_are_refused(tmp_path: Path) -> None:
    part = sample(0, (24, 32))
    path = write_ply(tmp_path / "d.ply", part.points, grid=None)
    assert read_depth(path, size=(24, 32))[2] is not None
    with pytest.raises(
        DataError, match=r"d\.ply: expected 32 rows of 24 points, as the RGB has pixels, found 24 rows of 32"
    ):
        read_depth(path, size=(32, 24))


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_member(tmp_path / "a.png", sample().rgb)

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr("das3d.files.open_picture", refused)
    with pytest.raises(DataError, match=r"a\.png: expected an RGB image, found a file that cannot be read \(Permission d"):
        rgb_size(path)
