"""What masks are asked and what is done to them, whatever they mark."""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np

from das3d.scan import Mask

Bounds = tuple[int, int, int, int]  # first and one-past-last row, first and one-past-last column


def bounding_box(mask: Mask) -> Bounds:
    """First and one-past-last row, first and one-past-last column of the True pixels; at least one must be."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def longer_side(mask: Mask) -> int:
    """Of the bounding box, pixels."""
    top, bottom, left, right = bounding_box(mask)
    return max(bottom - top, right - left)


class Pose(NamedTuple):
    """How a mask lies.

    Attributes:
        axis: degrees of its longer principal axis from the frame's columns towards its rows, 0 to 180.
        skew: skewness of the pixels along that axis; above 0 where the thinner end is ahead.
        slender: how many times as far as across that axis the pixels spread along it (standard deviations).
        length, breadth: of the smallest rectangle along the axis around it, pixels.
        middle: of that rectangle, column and row, of the edges of pixels.
    """

    axis: float
    skew: float
    slender: float
    length: float
    breadth: float
    middle: tuple[float, float]

    def direction(self, usual: float | None) -> float:
        """Which of its two ways to go along the axis, degrees: the one nearer to `usual`; if that is None, towards the
        thinner end.
        """
        if usual is None:
            return self.axis if self.skew >= 0 else self.axis - 180
        return usual + (self.axis - usual + 90) % 180 - 90


def pose_of(mask: Mask) -> Pose:
    """How the True pixels lie; at least one must be."""
    moments = cv2.moments(mask.astype(np.uint8), binaryImage=True)
    xx, yy, xy = (moments[name] / moments["m00"] + one for name, one in (("mu20", 1 / 12), ("mu02", 1 / 12), ("mu11", 0)))
    angle = 0.5 * math.atan2(2 * xy, xx - yy)
    spread = math.hypot(xx - yy, 2 * xy)
    slender = math.sqrt((xx + yy + spread) / (xx + yy - spread))
    cos, sin = math.cos(angle), math.sin(angle)
    # The first and last pixels of each row reach as far as any.
    rows = np.flatnonzero(mask.any(axis=1))
    first, last = mask[rows].argmax(axis=1), mask.shape[1] - 1 - mask[rows, ::-1].argmax(axis=1)
    v, u = np.concatenate([rows, rows]) + 0.5, np.concatenate([first, last]) + 0.5
    along, across = cos * u + sin * v, cos * v - sin * u
    pixel = abs(cos) + abs(sin)  # a pixel's extent along either axis
    x, y = (along.min() + along.max()) / 2, (across.min() + across.max()) / 2
    second = cos * cos * moments["mu20"] + 2 * cos * sin * moments["mu11"] + sin * sin * moments["mu02"]
    third = cos**3 * moments["mu30"] + 3 * cos * cos * sin * moments["mu21"]
    third += 3 * cos * sin * sin * moments["mu12"] + sin**3 * moments["mu03"]
    skew = third / moments["m00"] / (second / moments["m00"]) ** 1.5 if np.ptp(along) else 0.0
    return Pose(
        axis=math.degrees(angle) % 180,
        skew=skew if angle >= 0 else -skew,
        slender=slender,
        length=float(np.ptp(along)) + pixel,
        breadth=float(np.ptp(across)) + pixel,
        middle=(float(cos * x - sin * y), float(sin * x + cos * y)),
    )


def filled(mask: Mask) -> Mask:
    """The mask with all that its outlines enclose."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.zeros(mask.shape, np.uint8), contours, -1, 1, cv2.FILLED) > 0


def morph(mask: Mask, operation: int, diameter: int) -> Mask:
    """The mask after one of OpenCV's morphological operations by a disc."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (diameter, diameter))
    return cv2.morphologyEx(mask.astype(np.uint8), operation, kernel) > 0
