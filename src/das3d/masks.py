"""What masks are asked and what is done to them, whatever they mark."""

from __future__ import annotations

import cv2
import numpy as np

from das3d.scan import Mask

Box = tuple[int, int, int, int]  # first and one-past-last row, first and one-past-last column


def bounding_box(mask: Mask) -> Box:
    """First and one-past-last row, first and one-past-last column of the True pixels; at least one must be."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def longer_side(mask: Mask) -> int:
    """Of the bounding box, pixels."""
    top, bottom, left, right = bounding_box(mask)
    return max(bottom - top, right - left)


def filled(mask: Mask) -> Mask:
    """The mask with all that its outlines enclose."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.zeros(mask.shape, np.uint8), contours, -1, 1, cv2.FILLED) > 0


def morph(mask: Mask, operation: int, diameter: int) -> Mask:
    """The mask after one of OpenCV's morphological operations by a disc."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (diameter, diameter))
    return cv2.morphologyEx(mask.astype(np.uint8), operation, kernel) > 0
