"""One part as the sensors saw it: RGB, depth, validity and ground truth on one pixel grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from das3d.arguments import expect_kind, is_number, shown
from das3d.errors import DataError, one_line

if TYPE_CHECKING:
    from das3d.files import DepthFormat

RGB = NDArray[np.uint8]  # (H, W, 3)
Depth = NDArray[np.float32]  # (H, W), metres, growing away from the camera
Mask = NDArray[np.bool_]  # (H, W)


@dataclass(frozen=True)
class Camera:
    """Pinhole intrinsics of the depth image, in pixels: ``u = fx * x / z + cx``, ``v = fy * y / z + cy``."""

    fx: float  # below 0 where x grows to the left
    fy: float
    cx: float
    cy: float

    def __post_init__(self) -> None:
        numbers = (self.fx, self.fy, self.cx, self.cy)
        if not all(is_number(number) and math.isfinite(number) for number in numbers) or not self.fx * self.fy:
            raise DataError(f"camera: expected finite numbers of pixels and focal lengths other than 0, found {numbers}")

    @classmethod
    def centred(cls, focal_length: float, size: tuple[int, int]) -> Camera:
        """Square pixels, and the axis through the middle of an image of `size` (height, width)."""
        if not (isinstance(size, Sequence) and len(size) == 2 and all(map(is_number, size))):
            raise DataError(f"size: expected height and width in pixels, found {one_line(repr(size))}")
        return cls(focal_length, focal_length, (size[1] - 1) / 2, (size[0] - 1) / 2)


@dataclass(frozen=True)
class Scan:
    """The members of one scan. All that are present share height and width; there is no way to move one alone.

    Attributes:
        name: what messages call this scan, usually the path of one of its files.
        rgb: (H, W, 3) uint8, or None for depth-only data.
        depth: (H, W) float32, metres, finite and above 0 where `valid` is True, 0 elsewhere; None for RGB-only data.
        valid: (H, W) bool, True where the sensor measured a depth; None exactly when `depth` is None.
        mask: (H, W) bool ground truth, True on defects; None where nothing is known.
        camera: intrinsics of the depth image where the data tells them.

    Raises:
        DataError: the members do not go together, or a valid depth is none.
    """

    name: str
    rgb: RGB | None = None
    depth: Depth | None = None
    valid: Mask | None = None
    mask: Mask | None = None
    camera: Camera | None = None

    def __post_init__(self) -> None:
        if self.rgb is None and self.depth is None:
            raise DataError(f"{self.name}: expected RGB, depth or both, found neither")
        for what, member in (("RGB", self.rgb), ("depth", self.depth), ("validity", self.valid), ("mask", self.mask)):
            if member is not None and not isinstance(member, np.ndarray):
                found = f"found {shown(member)}; scan_from_arrays takes what can become one"
                raise DataError(f"{self.name}: expected {what} as an array, {found}")
        if self.camera is not None:
            expect_kind(Camera, self.camera, f"{self.name}: camera", DataError)
        if (self.depth is None) != (self.valid is None):
            raise DataError(f"{self.name}: depth and its validity belong together, found only one of them")
        if self.rgb is not None and (self.rgb.ndim != 3 or self.rgb.shape[2] != 3 or self.rgb.dtype != np.uint8):
            raise DataError(f"{self.name}: expected RGB as (H, W, 3) uint8, found {self.rgb.shape} {self.rgb.dtype}")
        for what, array, dtype in (
            ("depth", self.depth, np.float32),
            ("validity", self.valid, np.bool_),
            ("mask", self.mask, np.bool_),
        ):
            if array is not None and (array.ndim != 2 or array.dtype != dtype):
                expected = f"{what} as (H, W) {np.dtype(dtype).name}"
                raise DataError(f"{self.name}: expected {expected}, found {array.shape} {array.dtype}")
        sizes = {
            what: f"{array.shape[1]} x {array.shape[0]}"
            for what, array in (("RGB", self.rgb), ("depth", self.depth), ("validity", self.valid), ("mask", self.mask))
            if array is not None
        }
        if len(set(sizes.values())) > 1:
            found = ", ".join(f"{what} {size}" for what, size in sizes.items())
            raise DataError(f"{self.name}: all members must have one size, found {found} (width x height)")
        if 0 in self.size:
            raise DataError(f"{self.name}: expected at least one pixel, found {self.size[1]} x {self.size[0]}")
        # A zero or NaN that counts as measured would be judged as if it were there.
        if self.depth is None or self.valid is None:
            return
        wrong = self.valid & ~((self.depth > 0) & (self.depth < np.inf))
        if wrong.any():
            found = f"{float(self.depth[wrong][0]):g} on {np.count_nonzero(wrong):,} such pixels"
            expected = "finite depths above 0 where depth is valid"
            raise DataError(f"{self.name}: expected {expected}, found {found}; scan_from_arrays tells valid ones")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        array = self.rgb if self.rgb is not None else self.depth
        assert array is not None
        return int(array.shape[0]), int(array.shape[1])

    def without(self, *, rgb: bool = False, depth: bool = False) -> Scan:
        """The same scan as a sensor without RGB, or without depth, would have given it."""
        return replace(
            self,
            rgb=None if rgb else self.rgb,
            depth=None if depth else self.depth,
            valid=None if depth else self.valid,
        )


def scan_from_arrays(
    rgb: ArrayLike | None = None,
    depth: ArrayLike | None = None,
    *,
    unit: str | float | DepthFormat | None = "m",
    mask: ArrayLike | None = None,
    camera: Camera | None = None,
    name: str = "scan",
) -> Scan:
    """A scan from arrays in memory. It keeps copies: a camera's driver may use its buffers again.

    Args:
        rgb: (H, W, 3) uint8; what `colours_in` takes will do as well.
        depth: (H, W) depth or (H, W, 3) organised points x, y, z, of 16 bits or more. Zero, negative and non-finite depths
            are missing, and so is the largest float.
        unit: of `depth`: ``"m"``, ``"cm"``, ``"mm"`` or ``"um"``; or metres per count; or a `DepthFormat`, as of files,
            with its offset, missing number and focal length. None takes floats as metres and refuses integers.
        mask: (H, W) ground truth, numbers that are non-zero on defects.
        camera: intrinsics; where this is None, read off the points, or as `unit` declares them for depth alone.
        name: what messages call this scan.

    Raises:
        DataError: a member has the wrong shape or type, the sizes differ, nothing was measured, the unit is none, or depths
            are none in it.
    """
    metres, valid = None, None
    if depth is not None:
        numbers = _array(depth, "depth", name)
        expect_depth(name, numbers.shape, numbers.dtype)
        form = _format_of(unit, numbers, name)
        hint = f"is it {unit}?" if isinstance(unit, str) else f"is it {form.scale:g} metres per count?"
        metres, valid = metric_depth(numbers, name, form.scale, form.offset, form.missing, hint=hint)
        if camera is None and numbers.ndim == 3:
            camera = camera_from_points(numbers, valid)
        elif camera is None and form.focal_length is not None:
            camera = Camera.centred(form.focal_length, metres.shape)
    return Scan(
        name=name,
        rgb=None if rgb is None else colours_in(_array(rgb, "RGB", name), name),
        depth=metres,
        valid=valid,
        mask=None if mask is None else _marked(_array(mask, "the mask", name), name),
        camera=camera,
    )


def _array(values: ArrayLike, what: str, name: str) -> NDArray[Any]:
    if np.ma.is_masked(values):
        found = "a masked one; write 0 where depth is masked"
        raise DataError(f"{name}: expected {what} as a plain array, found {found}")
    try:
        array = np.asarray(values)
    except Exception as error:  # rows that differ in length, or whatever the arrays of other libraries raise
        found = f"a {type(values).__name__} that is none ({one_line(error)})"
        raise DataError(f"{name}: expected {what} as an array, found {found}") from error
    if not array.ndim:  # whatever NumPy makes of a single number, a path or a whole scan
        raise DataError(f"{name}: expected {what} as an array, found {shown(values)}")
    return array


def _marked(mask: NDArray[Any], name: str) -> Mask:
    if mask.dtype.kind not in "biuf":
        raise DataError(f"{name}: expected the mask as numbers, found {mask.dtype}")
    return np.asarray(mask != 0)


def expect_depth(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Refuse an array, or what the header of a file declares, that can be neither depth nor points.

    Raises:
        DataError: its shape is neither (H, W) nor (H, W, 3), or its numbers are none, a colour picture, or of 8 bits.
    """
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] != 3) or (len(shape) == 2 and shape[1] == 3):
        raise DataError(f"{name}: expected depth of shape (H, W) or points of shape (H, W, 3), found shape {shape}")
    if dtype.kind not in "iuf":
        raise DataError(f"{name}: expected depth as integers or floats, found {dtype}")
    if len(shape) == 3 and dtype.kind == "u":
        raise DataError(f"{name}: expected depth, or points as floats, found a colour picture ({dtype}, 3 channels)")
    if dtype.kind in "iu" and dtype.itemsize == 1:
        raise DataError(f"{name}: expected depth with 16 or more bits, found 8 bits, which are too coarse to show defects")


def _format_of(unit: str | float | DepthFormat | None, depth: NDArray[np.generic], name: str) -> DepthFormat:
    from das3d.files import METRES, DepthFormat  # which reads files into what this module defines

    if unit is None:
        if depth.dtype.kind in "iu":
            raise DataError(f"{name}: expected a declared unit for depth in {depth.dtype} counts, found none")
        return METRES
    if isinstance(unit, DepthFormat):
        return unit
    if isinstance(unit, str):
        return DepthFormat.from_unit(unit)
    try:
        return DepthFormat(float(unit))
    except (TypeError, ValueError):
        expected = f"one of {', '.join(UNITS)}, metres per count or a DepthFormat"
        raise DataError(f"depth unit: expected {expected}, found {one_line(repr(unit))}") from None


def colours_in(pixels: NDArray[np.generic], name: str) -> RGB:
    """A copy of grey (H, W), RGB or RGBA pixels, uint8 or uint16, as (H, W, 3) uint8.

    Grey becomes three channels, alpha is dropped, 16 bits become 8 by division by 257.

    Raises:
        DataError: the pixels are none of these.
    """
    channels = pixels.shape[2] if pixels.ndim == 3 else int(pixels.ndim == 2)
    if not 1 <= channels <= 4 or pixels.dtype not in (np.uint8, np.uint16):
        raise DataError(
            f"{name}: expected RGB as (H, W, 3) uint8, or grey, RGBA or uint16, found {pixels.shape} {pixels.dtype}"
        )
    colours: NDArray[Any] = pixels[..., None] if pixels.ndim == 2 else pixels[..., : 3 if channels > 2 else 1]
    if colours.dtype == np.uint16:
        colours = np.rint(colours / 257)
    return np.array(np.broadcast_to(colours, (*colours.shape[:2], 3)), dtype=np.uint8, order="C")


def metric_depth(
    numbers: NDArray[np.generic], name: str, scale: float, offset: float = 0.0, missing: float | None = None, *, hint: str
) -> tuple[Depth, Mask]:
    """Depth in metres, 0 where not valid, and where it is: above 0, below `ENDLESS`, and not the "missing" number.

    Args:
        numbers: (H, W) depth or (H, W, 3) points x, y, z.
        name: what messages call them.
        scale, offset: metres = number * scale + offset.
        missing: a number that means "not measured".
        hint: what to do where the unit seems wrong.

    Raises:
        DataError: no depth is valid, or they are too large for this unit.
    """
    z: NDArray[Any] = numbers if numbers.ndim == 2 else numbers[..., 2]
    with np.errstate(over="ignore", invalid="ignore"):  # signalling NaNs
        depth = (z.astype(np.float64) * scale + offset).astype(np.float32)
        if missing is not None and z.dtype.kind == "f":
            missing = float(z.dtype.type(missing))  # as the file has it: float32 knows no 9.99
    # Zero depth is tested in metres: with an offset, count 0 is a measurement like any other.
    valid: Mask = (depth > 0) & (depth < ENDLESS)
    if missing is not None:
        valid &= z != missing
    if not valid.any():
        if (z < 0).any():
            raise DataError(f"{name}: expected depth to grow away from the camera, found no positive but negative depths")
        raise DataError(f"{name}: expected a measured depth somewhere, found all {z.size} pixels missing")
    if (median := float(np.median(depth[valid]))) > FARTHEST:
        raise DataError(f"{name}: expected depths of at most {FARTHEST:.0f} m, found {median:.6g} m in the middle; {hint}")
    return np.where(valid, depth, np.float32(0)), valid


ENDLESS = 1e12  # metres; infinity, and the largest float, which cameras write where they measured nothing, too
FARTHEST = 100.0  # metres; a larger median depth is a wrong unit
UNITS = {"m": 1.0, "cm": 0.01, "mm": 0.001, "um": 1e-6}


def metres_per(unit: str) -> float:
    """Metres in one `unit`.

    Raises:
        DataError: the unit is not known.
    """
    try:
        return UNITS[unit]
    except (KeyError, TypeError):
        raise DataError(f"depth unit: expected one of {', '.join(UNITS)}, found {unit!r}") from None


UNIT_RATIOS = {
    1e6: "a million times as far, so written in micrometres where the others are in metres?",
    1e3: "a thousand times as far, so written in millimetres where the others are in metres?",
    1e2: "a hundred times as far, so written in centimetres where the others are in metres?",
    1e1: "ten times as far, so written in another unit (mm for cm, or 0.1 mm for mm)?",
    1e-1: "a tenth as far, so written in another unit (cm for mm, or mm for 0.1 mm)?",
    1e-2: "a hundredth as far, so written in metres where the others are in centimetres?",
    1e-3: "a thousandth as far, so written in metres where the others are in millimetres?",
    1e-6: "a millionth as far, so written in metres where the others are in micrometres?",
}


def another_unit(ratio: float) -> str:
    """What a distance that is `ratio` times that of the others says about its unit; "" where it is no unit's ratio."""
    for factor, words in UNIT_RATIOS.items():
        if abs(math.log(ratio / factor)) < math.log(1.5):  # parts themselves may be nearer or farther
            return words
    return ""


STEEPEST = 100.0  # x/z that no lens sees: half a degree short of sideways


def camera_from_points(points: NDArray[Any], valid: Mask | None = None) -> Camera | None:
    """Pinhole intrinsics of organised points (H, W, 3), by least squares of u on x/z and v on y/z; None if they fit none.

    The unit of the points cancels. Organised clouds that were rectified or orthographic give None. `valid` (H, W) tells
    which points were measured; None: those in front of the camera.
    """
    with np.errstate(invalid="ignore"):  # signalling NaNs
        measured = np.flatnonzero(points[..., 2] > 0 if valid is None else valid)
    v, u = np.divmod(measured[:: max(1, measured.size // 20_000)], points.shape[1])
    with np.errstate(invalid="ignore"):  # signalling NaNs
        xyz = points[v, u].astype(np.float64)
    known = np.isfinite(xyz).all(axis=1) & (xyz[:, 2] > 0)
    if known.sum() < 100:
        return None
    u, v, (x, y, z) = u[known], v[known], xyz[known].T
    fits = []
    for pixel, along in ((u, x), (v, y)):
        with np.errstate(over="ignore"):
            slope = along / z
        if np.abs(slope).max() > STEEPEST or np.ptp(slope) < 1e-6:
            return None
        focal, centre = np.polyfit(slope, pixel, 1)
        near = np.abs(focal * slope + centre - pixel) < 2.0  # pixels
        if near.mean() < 0.99:  # a few stray points say nothing of the lens
            return None
        focal, centre = np.polyfit(slope[near], pixel[near], 1)
        fits.append((float(focal), float(centre)))
    (fx, cx), (fy, cy) = fits
    if not fx * fy:  # of a single row or column
        return None
    return Camera(fx, fy, cx, cy)
