"""Reading one file: RGB, depth in metres, ground truth.

Each member has two functions. `rgb_size`, `depth_size` and `mask_size` read no more than the header, so that thousands of
files are checked in seconds; `read_rgb`, `read_depth` and `read_mask` read it all. Both refuse what cannot be right with
one `DataError` line that names the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from das3d import _arrays, _clouds
from das3d._arrays import MOST_PIXELS, Declared, expect_upright, open_picture, open_tiff, png_type, tiff_shape
from das3d.arguments import is_number, shown
from das3d.errors import DataError, one_line
from das3d.scan import (
    RGB,
    UNITS,
    Camera,
    Depth,
    Mask,
    camera_from_points,
    colours_in,
    expect_depth,
    metres_per,
    metric_depth,
)

Size = tuple[int, int]  # height, width

RGB_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"})
MASK_SUFFIXES = frozenset({".png", ".tif", ".tiff", ".bmp"})  # no JPEG: it blurs the edges of a mask
DEPTH_SUFFIXES = frozenset({".png", ".tif", ".tiff", ".npy", ".npz", ".ply", ".pcd"})
TIFF_SUFFIXES = frozenset({".tif", ".tiff"})
CLOUD_SUFFIXES = frozenset({".ply", ".pcd"})

HOW_TO_DECLARE = (
    'write "depth_unit: mm" or "depth_scale: 0.0001" (metres a count) into dataset.yaml in the folder of the data, '
    "or give --depth-unit mm (DepthFormat in Python)"
)


@dataclass(frozen=True)
class DepthFormat:
    """How the numbers in a depth file become metres: ``metres = number * scale + offset``.

    Attributes:
        scale: metres per count; for files that hold metres, 1.
        offset: metres, added to scaled numbers.
        missing: a number that means "not measured", beside zero, negative and non-finite depths and the
            largest float, which always do.
        focal_length: of the camera in pixels, for areas in mm2 where a file holds depth alone; points tell it themselves.
    """

    scale: float
    offset: float = 0.0
    missing: float | None = None
    focal_length: float | None = None

    def __post_init__(self) -> None:
        for name, number in (("missing", self.missing), ("focal length", self.focal_length)):
            if number is not None and not is_number(number):
                raise DataError(f"depth {name}: expected a number, found {shown(number)}")
        if not (is_number(self.scale) and math.isfinite(self.scale) and self.scale > 0):
            raise DataError(f"depth scale: expected metres per count above 0, found {shown(self.scale)}")
        if not (is_number(self.offset) and math.isfinite(self.offset)):
            raise DataError(f"depth offset: expected metres, found {shown(self.offset)}")
        if self.missing is not None and not math.isfinite(self.missing):
            object.__setattr__(self, "missing", None)  # NaN would differ from itself, and such depths never count
        if self.focal_length is not None and not (math.isfinite(self.focal_length) and self.focal_length > 0):
            raise DataError(f"focal length: expected pixels above 0, found {self.focal_length}")

    @classmethod
    def from_unit(cls, unit: str) -> DepthFormat:
        """The format of files in a unit of length: "m", "cm", "mm" or "um"."""
        return cls(scale=metres_per(unit))

    @classmethod
    def parse(cls, text: str) -> DepthFormat:
        """The format that a user writes as a unit ("mm") or as metres per count ("0.0001").

        Raises:
            DataError: it is neither.
        """
        if isinstance(text, str) and text in UNITS:
            return cls.from_unit(text)
        try:
            scale = float(text)
        except (TypeError, ValueError):
            scale = -1
        if not 0 < scale < 1000:
            found = f"found {one_line(text)!r}"
            raise DataError(f"expected one of {', '.join(UNITS)}, or metres per count such as 0.0001, {found}")
        return cls(scale=scale)

    def over(self, known: DepthFormat | None) -> DepthFormat:
        """The format with what it does not say taken from `known`: the lens, and with the same scale all else.

        Offset and missing number belong to the counts of a sensor. Files of another scale are another's.
        """
        if known is None:
            return self
        focal_length = self.focal_length or known.focal_length
        if self.scale != known.scale:
            return replace(self, focal_length=focal_length)
        missing = known.missing if self.missing is None else self.missing
        return DepthFormat(self.scale, self.offset or known.offset, missing, focal_length)


METRES = DepthFormat(1.0)


# --------------------------------------------------------------------------------------- RGB and masks


def rgb_size(path: Path) -> Size:
    """Height and width of an RGB image, from its header.

    Raises:
        DataError: the header shows that `read_rgb` would fail.
    """
    return _image_header(path, RGB_SUFFIXES, "an RGB image")


def mask_size(path: Path) -> Size:
    """Height and width of a ground truth image, from its header.

    Raises:
        DataError: the header shows that `read_mask` would fail.
    """
    return _image_header(path, MASK_SUFFIXES, "a ground truth image")


def read_rgb(path: Path, *, upright: bool = True) -> RGB:
    """An RGB image as (H, W, 3) uint8. Grey becomes three channels, alpha is dropped, 16 bits become 8 by division by 257.

    Raises:
        DataError: the file is missing, damaged, too large, of another kind, or, with `upright`, stored turned (its depth
            would not be).
    """
    return colours_in(_read_image(path, RGB_SUFFIXES, "an RGB image", upright=upright), str(path))


def read_mask(path: Path) -> Mask:
    """A ground truth image as (H, W) bool: True where any channel is not zero.

    Raises:
        DataError: as for `read_rgb`, or transparency and colour tell of different defects.
    """
    marked: Mask = _read_image(path, MASK_SUFFIXES, "a ground truth image", alpha=False) != 0
    return marked if marked.ndim == 2 else np.asarray(marked.any(axis=2))


def _image_header(path: Path, suffixes: Set[str], what: str, *, upright: bool = True) -> Size:
    _expect_suffix(path, suffixes, what)
    with _reading(path, what):
        if path.suffix.lower() in TIFF_SUFFIXES:
            return _sane_size(path, _tiff_picture(path, what, upright=upright))
        with open_picture(path, upright=upright) as image:
            if image.mode not in PICTURE_MODES and image.format != "PNG":
                found = f"pixels of type {image.mode}"
                raise DataError(f"{path}: expected {what} with 8 or 16 bits a channel, found {found}")
            return _sane_size(path, (image.height, image.width))


PICTURE_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")  # of Pillow


def _tiff_picture(path: Path, what: str, *, upright: bool) -> tuple[int, ...]:
    # Shape of a TIFF image that has one meaning only.
    with open_tiff(path, upright=upright) as tiff:
        shape, dtype, page = tiff_shape(tiff), tiff.dtype, tiff.keyframe
        bits, photometric, jpeg = page.bitspersample, page.photometric, page.compression == 7
    channels = shape[2] if len(shape) == 3 else 1
    if len(shape) > 3 or channels > 4 or dtype not in (np.uint8, np.uint16, np.bool_) or bits not in (1, 8, 16):
        found = f"shape {shape} of {dtype}, {bits} bits"
        raise DataError(f"{path}: expected {what} with 8 or 16 bits a channel, found {found}")
    if photometric == 0:
        found = "TIFF photometric 0 (white is zero), which programs read in two ways"
        raise DataError(f"{path}: expected {what} in which black is zero, found {found}")
    if photometric not in (1, 2) and not (photometric == 6 and jpeg):  # grey, RGB; YCbCr, which JPEG decodes to RGB
        raise DataError(f"{path}: expected {what} in grey or RGB, found TIFF photometric {photometric}")
    return shape


def _read_image(path: Path, suffixes: Set[str], what: str, *, alpha: bool = True, upright: bool = True) -> NDArray[Any]:
    # (H, W) or (H, W, 3), uint8 or uint16. What is transparent is shown as it is stored, or refused.
    _image_header(path, suffixes, what, upright=upright)
    with _reading(path, what):
        if path.suffix.lower() in TIFF_SUFFIXES:
            pixels = _arrays.tiff_array(path, upright=upright)
        else:
            with open_picture(path, upright=upright) as image:
                if image.format == "PNG" and png_type(path)[0] == 16:
                    import imagecodecs  # Pillow would cut colours to 8 bits

                    pixels = imagecodecs.png_decode(path.read_bytes())
                else:
                    mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
                    pixels = np.asarray(image.convert(mode + "A" if image.has_transparency_data else mode))
                    if upright:
                        expect_upright(path, image)  # a PNG may tell its orientation behind the pixels
        if pixels.dtype == np.bool_:
            pixels = pixels * np.uint8(255)
        if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
            colours, opacity = pixels[..., :-1], pixels[..., -1]
            if not alpha and np.ptp(opacity) and ((colours != 0).any(axis=2) != (opacity > 0)).any():
                raise DataError(f"{path}: expected {what} that tells by colour, found transparency that tells otherwise")
            pixels = colours
        return pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels


# --------------------------------------------------------------------------------------- depth


def depth_size(path: Path, depth_format: DepthFormat | None = None, *, size: Size | None = None) -> Size:
    """Height and width of a depth file, from its header. Arguments as for `read_depth`.

    Raises:
        DataError: the header shows that `read_depth` would fail.
    """
    height, width, *_ = _depth_shape(path, depth_format, size)
    return height, width


def lacks_grid(path: Path) -> bool:
    """Whether a depth file is a cloud that does not declare its grid, so that `read_depth` needs the size of the RGB.

    Raises:
        DataError: the file is such that `read_depth` would fail.
    """
    if path.suffix.lower() not in CLOUD_SUFFIXES:
        return False
    with _reading(path, "depth"):
        return len(_FORMATS[path.suffix.lower()][0](path)[0]) == 2


def read_depth(
    path: Path, depth_format: DepthFormat | None = None, *, size: Size | None = None
) -> tuple[Depth, Mask, Camera | None]:
    """Depth, validity and the camera: that which the points fit, or the declared one where the file holds depth alone.

    Formats: 16-bit grey PNG; TIFF, NPY and NPZ with depth (H, W) or points x, y, z (H, W, 3); organised PLY and PCD. An NPZ
    file holds one array, or one called ``xyz`` or ``depth``. Points lie in the camera's frame with z away from it, row by
    row.

    Args:
        path: the file.
        depth_format: how its numbers become metres. None takes floats as metres and refuses integers.
        size: height and width of the part's RGB, for clouds that do not declare their grid.

    Returns:
        (H, W) float32 metres, 0 where not valid; (H, W) bool, True where a depth was measured; intrinsics or None.

    Raises:
        DataError: the file is missing, damaged, of another kind, in unknown units, or without any valid depth.
    """
    shape = _depth_shape(path, depth_format, size)
    with _reading(path, "depth"):
        raw = np.asarray(_FORMATS[path.suffix.lower()][1](path)).reshape(shape)
    known = depth_format or METRES
    hint = f"to set the unit, {HOW_TO_DECLARE}"
    depth, valid = metric_depth(raw, str(path), known.scale, known.offset, known.missing, hint=hint)
    if raw.ndim == 3:
        camera = camera_from_points(raw, valid)
        # Of a square grid both would be read alike from a camera that is turned.
        if camera is None and raw.shape[0] != raw.shape[1] and camera_from_points(_by_columns(raw)) is not None:
            raise DataError(f"{path}: expected points row by row, found them column by column")
        if camera is None and lacks_grid(path) and camera_from_points(raw.reshape(*raw.shape[1::-1], 3)) is not None:
            height, width, _ = raw.shape
            found = f"{width} rows of {height}; turn the RGB as the points lie"
            raise DataError(f"{path}: expected {height} rows of {width} points, as the RGB has pixels, found {found}")
        return depth, valid, camera
    return depth, valid, None if known.focal_length is None else Camera.centred(known.focal_length, depth.shape)


def _by_columns(points: NDArray[Any]) -> NDArray[Any]:
    # The same points, taken for written column by column.
    height, width, _ = points.shape
    return points.reshape(width, height, 3).swapaxes(0, 1)


def _depth_shape(path: Path, depth_format: DepthFormat | None, size: Size | None) -> tuple[int, ...]:
    _expect_suffix(path, DEPTH_SUFFIXES, "depth")
    with _reading(path, "depth"):
        shape, dtype = _FORMATS[path.suffix.lower()][0](path)
    if path.suffix.lower() in CLOUD_SUFFIXES and len(shape) == 2:
        shape = _on_grid(path, shape[0], size)
    expect_depth(str(path), shape, dtype)
    if dtype.kind in "iu" and depth_format is None:
        raise DataError(f"{path}: expected a declared unit for depth in {dtype} counts, found none; {HOW_TO_DECLARE}")
    _sane_size(path, shape)
    return shape


def _on_grid(path: Path, points: int, size: Size | None) -> tuple[int, ...]:
    if size is not None and points == size[0] * size[1]:
        return (*size, 3)
    found = f"{points} points without a grid" + ("" if size is None else f", and RGB of {size[1]} x {size[0]} pixels")
    raise DataError(
        f"{path}: expected an organised cloud (PCD: WIDTH and HEIGHT; PLY: obj_info num_cols and num_rows), found {found}"
    )


# Suffix -> what reads the shape and type from the header, what reads the numbers.
_FORMATS: dict[str, tuple[Callable[[Path], Declared], Callable[[Path], NDArray[Any]]]] = {
    ".png": (_arrays.grey_png_header, _arrays.grey_png_array),
    ".tif": (_arrays.tiff_header, _arrays.tiff_array),
    ".tiff": (_arrays.tiff_header, _arrays.tiff_array),
    ".npy": (_arrays.npy_header, _arrays.npy_array),
    ".npz": (_arrays.npz_header, _arrays.npz_array),
    ".ply": (_clouds.ply_header, _clouds.ply_points),
    ".pcd": (_clouds.pcd_header, _clouds.pcd_points),
}


# --------------------------------------------------------------------------------------- every file


def _expect_suffix(path: Path, suffixes: Set[str], what: str) -> None:
    if path.suffix.lower() not in suffixes:
        known = ", ".join(sorted(suffixes))
        raise DataError(f"{path}: expected {what} as one of {known}, found {path.suffix or 'no suffix'}")


def _sane_size(path: Path, shape: tuple[int, ...]) -> Size:
    height, width = shape[:2]
    if not 0 < height * width <= MOST_PIXELS:
        limit = f"1 to {MOST_PIXELS // 10**6} million pixels"
        raise DataError(f"{path}: expected {limit}, found {width} x {height} (width x height)")
    return height, width


@contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    try:
        if not path.exists():
            raise DataError(f"{path}: expected {what}, found no such file")
        if path.is_dir():
            raise DataError(f"{path}: expected {what}, found a folder")
        if path.stat().st_size == 0:
            raise DataError(f"{path}: expected {what}, found an empty file")
        yield
    except DataError:
        raise
    except Exception as error:  # on damaged files decoders raise nearly anything
        if isinstance(error, OSError) and error.strerror and error.filename:  # of the disk, and nothing says damage
            raise DataError(f"{path}: expected {what}, found a file that cannot be read ({error.strerror})") from error
        reason = one_line(str(error).replace(str(path), "it")) or type(error).__name__
        raise DataError(f"{path}: expected {what}, found a damaged or unknown file ({reason})") from error
