"""Depth on pixels apart, as of a depth camera with fewer pixels than the RGB camera it is registered to, made dense."""

from __future__ import annotations

import math
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from das3d.scan import Depth, Mask, Scan

Floats = NDArray[np.float32]

DENSE = 0.45  # `density` from which on depth is taken as it is; MVTec 3D-AD has 0.58 where much is missing
WIDEST_GAP = 12  # pixels between measured ones; wider gaps are holes, however sparse the depth


def density(valid: Mask) -> float:
    """How closely depth lies where there is any: the mean share of a measured pixel's eight neighbours that are, too.

    Holes hardly lower it. It is 0 where every second pixel of every second row was measured, and where none was (`valid`,
    (H, W)); of pixels that were measured by chance it is their share.
    """
    if not valid.any():
        return 0.0
    around = cv2.boxFilter(valid.astype(np.float32), -1, (3, 3), normalize=False, borderType=cv2.BORDER_CONSTANT)
    return float(around[valid].mean() - 1) / 8


def dense(scan: Scan, closely: float | None = None) -> Scan:
    """The scan itself, or, where its depth is sparse, with depth on the pixels between measured ones as well.

    These then count as measured, at the resolution that the sensor has: gaps as wide as usual between its points, up to
    `WIDEST_GAP`, are no holes. Measured pixels keep their depth, and the others get none beyond their neighbours'.
    `closely` is the `density` of its depth, where that is known already.
    """
    if scan.depth is None or scan.valid is None or not scan.valid.any():
        return scan
    if (density(scan.valid) if closely is None else closely) >= DENSE:
        return scan
    spacing = math.sqrt(_closed(scan.valid, WIDEST_GAP + 1).sum() / scan.valid.sum())
    gap = min(2 * math.ceil(spacing), WIDEST_GAP)  # between points by chance some are twice as wide
    valid = _closed(scan.valid, gap + 1)
    depth = np.where(scan.valid, scan.depth, _between(scan.depth, scan.valid, spacing, gap))
    return replace(scan, depth=np.where(valid, depth, np.float32(0)), valid=valid)


def _closed(valid: Mask, side: int) -> Mask:
    # `valid` and the gaps in it that hold no empty square of this side, which is odd, or all would move by half a pixel.
    return cv2.morphologyEx(valid.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((side, side), np.uint8)) > 0


def _between(depth: Depth, valid: Mask, spacing: float, gap: int) -> Depth:
    # Planes through the measured neighbours of each pixel (H, W), by nearness; means would make steps of slopes.
    offsets = np.arange(-gap, gap + 1, dtype=np.float32)
    weights = np.exp(-0.5 * (offsets / np.float32(0.5 * spacing)) ** 2)

    def moment(values: Floats, across: int, down: int) -> Floats:
        kernels = weights * offsets**across, weights * offsets**down
        return np.asarray(cv2.sepFilter2D(values, -1, *kernels, borderType=cv2.BORDER_CONSTANT), dtype=np.float32)

    middle = np.median(depth[valid])  # about which float32 is fine enough
    known, z = valid.astype(np.float32), np.where(valid, depth - middle, np.float32(0))
    total = np.maximum(moment(known, 0, 0), np.float32(1e-6))
    x, y, mean = (moment(values, *powers) / total for values, *powers in ((known, 1, 0), (known, 0, 1), (z, 0, 0)))
    # A little more than their own spread keeps neighbours in a line, or a lone one, from tilting the plane at will.
    least = np.float32(0.01 * spacing**2)
    xx, yy = moment(known, 2, 0) / total - x * x + least, moment(known, 0, 2) / total - y * y + least
    xy = moment(known, 1, 1) / total - x * y
    xz, yz = moment(z, 1, 0) / total - x * mean, moment(z, 0, 1) / total - y * mean
    slopes_x, slopes_y = yy * xz - xy * yz, xx * yz - xy * xz
    plane = middle + mean - (x * slopes_x + y * slopes_y) / (xx * yy - xy * xy)
    window = np.ones((2 * gap + 1, 2 * gap + 1), np.uint8)
    lowest = cv2.erode(np.where(valid, depth, np.float32(np.inf)), window)
    return np.clip(plane, lowest, cv2.dilate(np.where(valid, depth, np.float32(0)), window)).astype(np.float32)
