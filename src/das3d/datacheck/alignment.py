"""Whether RGB and depth of a scan show the same thing at the same place: edges of one compared with edges of the other.

Where depth jumps or bends, RGB nearly always changes too, whatever the colours are. So the shift at which both edge images
agree best tells how far RGB lies from depth, and how well they agree there tells whether both show the same part.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from das3d.masks import bounding_box
from das3d.preparation import fill_missing
from das3d.scan import RGB, Depth, Mask

LONGEST = 512  # pixels; larger frames are halved until they fit, which a shift of several pixels survives
REACH = 24  # pixels of such a frame: the largest shift looked for
AS_WELL = 0.9  # of the best fit: where RGB fits so well in place, no shift is claimed
BLUR = 1.5  # pixels: what is finer is noise in one of both sensors


@dataclass(frozen=True)
class Alignment:
    """Where RGB lies, seen from depth.

    Attributes:
        right, down: shift of RGB in frame pixels.
        fit: correlation of both edge images at that shift, -1 to 1. Parts of one set have much the same; RGB of another
            part has far less.
    """

    right: float
    down: float
    fit: float


def align(rgb: RGB, relief: Depth, valid: Mask, foreground: Mask) -> Alignment | None:
    """The shift of RGB against depth by normalised cross-correlation of their edges around the part.

    Args:
        rgb: (H, W, 3).
        relief: (H, W) depth from the background plane, metres, negative towards the camera.
        valid: (H, W), where depth was measured.
        foreground: (H, W), where the part is; the whole frame where there is no background plane.

    Returns:
        None where the part shows too little to compare.
    """
    step = 1
    while max(foreground.shape) / step > LONGEST:
        step *= 2
    small_rgb = _halved(rgb.astype(np.float32), step)
    known = fill_missing(relief, valid & foreground)
    inside = np.where(foreground, known, np.float32(0))  # the outline becomes an edge as high as the part
    rows, columns = _around(foreground[::step, ::step])
    seen = _edges(small_rgb)[rows, columns]
    shape = _edges(_halved(inside, step))[rows, columns]
    reach = min(REACH, min(shape.shape) // 4)
    middle = shape[reach : shape.shape[0] - reach, reach : shape.shape[1] - reach]
    if reach < 2 or np.ptp(middle) == 0 or np.ptp(seen) == 0:
        return None
    agreement = cv2.matchTemplate(seen, middle, cv2.TM_CCOEFF_NORMED)
    best = float(agreement.max())
    down, right = np.unravel_index(int(agreement.argmax()), agreement.shape)
    if agreement[reach, reach] >= AS_WELL * best:  # on a ribbed part a shift by one rib fits nearly as well as none
        down = right = np.intp(reach)
    return Alignment(float(right - reach) * step, float(down - reach) * step, best)


def _halved(image: NDArray[np.float32], step: int) -> NDArray[np.float32]:
    if step == 1:
        return image
    height, width = image.shape[:2]
    size = (-(-width // step), -(-height // step))  # as [::step] has it
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.float32)


def _around(foreground: Mask) -> tuple[slice, slice]:
    # The part with as much around it as the shift may need, so that other things in the frame have no say.
    height, width = foreground.shape
    if not foreground.any():
        return slice(0, height), slice(0, width)
    top, bottom, left, right = bounding_box(foreground)
    margin = REACH + 12
    return slice(max(top - margin, 0), bottom + margin), slice(max(left - margin, 0), right + margin)


def _edges(image: NDArray[np.float32]) -> NDArray[np.float32]:
    # Slopes (H, W) from 0 to 1. They are cut at their 98 % point: else one glint would outweigh the whole outline.
    smooth = cv2.GaussianBlur(image, (0, 0), BLUR)
    slope = np.hypot(cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1))
    slope = slope.max(axis=2) if slope.ndim == 3 else slope
    return np.minimum(slope / max(float(np.quantile(slope, 0.98)), 1e-9), 1).astype(np.float32)
