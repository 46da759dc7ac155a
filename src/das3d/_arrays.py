"""Arrays in PNG, TIFF, NPY and NPZ files: what their headers declare, and their numbers as they are.

Like `_clouds`, every format gives a pair of functions, one for the header and one for the numbers, and raises what the
decoders raise beside what only this level can tell.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from das3d.errors import DataError, one_line

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from tifffile import TiffPage, TiffPageSeries

Declared = tuple[tuple[int, ...], np.dtype[Any]]  # shape and type of the numbers in a file

MOST_PIXELS = 80_000_000  # larger "images" are damaged headers, or made to fill the memory
ORIENTATION = 274  # EXIF and TIFF tag; 1 is upright
PICTURES = ("PNG", "JPEG", "BMP")  # Pillow's names; it knows many more, of which some start other programs
ARRAY_HEADER = 1 << 16  # bytes; longer headers of NPY files are not headers

_SILENT = logging.NullHandler()  # tifffile logs what is wrong with a file, and Python prints what no handler takes


@contextmanager
def _quiet() -> Iterator[None]:
    # Decoders warn of what this package judges itself, or of what harms nobody. No more is silenced than that: threads that
    # read at once may leave these filters behind.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.filterwarnings("ignore", "Reading `.npy` or `.npz` file required additional header parsing")
        yield


@contextmanager
def open_picture(path: Path, *, upright: bool = True) -> Iterator[Picture]:
    """A file that Pillow decodes, not decoded yet.

    Raises:
        DataError: it has too many pixels, or, with `upright`, its orientation tag says that it is stored turned.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with _quiet():  # Pillow warns of large images, where the limit is lower here
            image = Image.open(path, formats=PICTURES)
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\d+", str(error))
        found = f"{int(pixels[0]) // 10**6} million" if pixels else "more"
        raise DataError(f"{path}: expected 1 to {MOST_PIXELS // 10**6} million pixels, found {found}") from None
    except UnidentifiedImageError:
        raise ValueError("not a known image format") from None
    with image:
        if upright:
            expect_upright(path, image)
        yield image


def expect_upright(path: Path, image: Picture) -> None:
    """Refuse an image with an orientation tag. A PNG may tell it behind the pixels, so ask again once they are read."""
    if image.format == "PNG" and "exif" not in image.info:
        return  # getexif() would decode the whole image in search of it
    with _quiet():  # Pillow warns of odd tags
        orientation = image.getexif().get(ORIENTATION, 1)
    _check_orientation(path, orientation)


def _check_orientation(path: Path, orientation: int) -> None:
    # Turning RGB alone would break its alignment with depth; not turning it would surprise those who viewed it.
    if orientation not in (0, 1):  # 0: not known
        raise DataError(
            f"{path}: expected pixels stored upright, found orientation tag {orientation}; rotate RGB and depth alike and "
            "remove the tag"
        )


def png_type(path: Path) -> tuple[int, int]:
    """Bits a channel and colour type (0 grey, 2 RGB, 3 palette, 4 grey + alpha, 6 RGB + alpha) of a PNG file."""
    with path.open("rb") as file:
        head = file.read(26)
    if len(head) < 26 or not head.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError("no PNG header")
    return head[24], head[25]


def grey_png_header(path: Path) -> Declared:
    """Shape and type of a grey 16-bit PNG; anything else is refused."""
    bits, colour = png_type(path)
    if colour != 0:
        raise DataError(f"{path}: expected depth as 16-bit grey PNG, found a colour or palette picture")
    if bits < 16:
        raise DataError(
            f"{path}: expected depth as 16-bit PNG, found {bits} bits, which are too coarse to show defects; save the "
            "sensor's own depth, not a picture of it"
        )
    with open_picture(path) as image:
        return (image.height, image.width), np.dtype(np.uint16)


def grey_png_array(path: Path) -> NDArray[Any]:
    """(H, W) uint16."""
    with open_picture(path) as image:
        pixels = np.asarray(image)
        expect_upright(path, image)
        return pixels


@contextmanager
def open_tiff(path: Path, *, upright: bool = True) -> Iterator[TiffPage | TiffPageSeries]:
    """The only image of a TIFF file, not decoded yet.

    Raises:
        DataError: there are several, or, with `upright`, its orientation tag says that it is stored turned.
    """
    from tifffile import TiffFile, TiffPage

    logging.getLogger("tifffile").addHandler(_SILENT)
    with TiffFile(path) as tiff:
        first = tiff.pages[0]
        assert isinstance(first, TiffPage)
        tag = first.tags.get(ORIENTATION) if upright else None
        _check_orientation(path, 1 if tag is None else int(tag.value))
        if len(tiff.pages) == 1:
            yield first
            return
        # (H, W, 3) written without telling what the last axis is becomes H pages of (W, 3), which are one series.
        series = tiff.series[0]
        if len(tiff.series) > 1 or len(series.shape) != 3 or series.shape[2] != 3:
            raise DataError(f"{path}: expected one image in the file, found {len(tiff.pages)}")
        yield series


def tiff_shape(image: TiffPage | TiffPageSeries) -> tuple[int, ...]:
    """(H, W) or (H, W, channels), however the file orders them."""
    shape = tuple(int(length) for length in image.shape)
    return (*shape[1:], shape[0]) if _is_planar(image) else shape


def _is_planar(image: TiffPage | TiffPageSeries) -> bool:
    return len(image.shape) == 3 and int(image.keyframe.planarconfig or 1) == 2  # channel by channel


def tiff_header(path: Path) -> Declared:
    """Shape and type of the only image of a TIFF file."""
    with open_tiff(path) as image:
        if image.dtype is None:
            raise ValueError("unknown type of pixels")
        return tiff_shape(image), image.dtype


def tiff_array(path: Path, *, upright: bool = True) -> NDArray[Any]:
    """(H, W) or (H, W, channels) in the file's own type."""
    with open_tiff(path, upright=upright) as image:
        pixels = image.asarray()
        return np.moveaxis(pixels, 0, -1) if _is_planar(image) else pixels


def npy_header(path: Path) -> Declared:
    """Shape and type of an NPY file. Object arrays, which would have to be unpickled, are refused."""
    with path.open("rb") as file:
        return _array_header(file)


def npy_array(path: Path) -> NDArray[Any]:
    """The array of an NPY file."""
    with _quiet():
        return np.load(path, allow_pickle=False)


def npz_header(path: Path) -> Declared:
    """Shape and type of the depth in an NPZ file, without unpacking it as `numpy.load` would."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{_npz_key(path)}.npy") as member:
        return _array_header(member)


def npz_array(path: Path) -> NDArray[Any]:
    """The only array of an NPZ file, or the one called ``xyz`` or ``depth``."""
    with _quiet(), np.load(path, allow_pickle=False) as arrays:
        return arrays[_npz_key(path)]


def _array_header(file: IO[bytes]) -> Declared:
    file = io.BytesIO(file.read(ARRAY_HEADER))  # a header that declares gigabytes must not be read, let alone unpacked
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    with _quiet():  # NumPy warns of files from Python 2
        shape, _, dtype = read(file)
    return shape, dtype


def _npz_key(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        keys = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    known = keys if len(keys) == 1 else [key for key in ("xyz", "depth") if key in keys]
    if not known:
        found = ", ".join(keys) or "none"
        raise DataError(f"{path}: expected one array, or one called xyz or depth, found {one_line(found)}")
    return known[0]
