"""Which pixels of a scan show the part, by the plane below it or by what was measured at all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from das3d.background import STEP, Plane, plane_depth, strip_within
from das3d.masks import Bounds, bounding_box, filled, morph
from das3d.scan import Depth, Mask

FLAT = 0.1  # of the part's height above the plane: a separate patch that rises less is no piece of it
LOW = 3.0  # times the distance from the plane: a part that rises less may lie below that distance here and there
RIM = 0.02  # of the frame: how far the rim of a higher one may go on below that distance
SMALLEST_PIECE = 100  # pixels; where nothing larger rises above a plane, there is no part on it but noise
ON_TABLE = 0.2  # share of the outline of what stands before a wall, or of a gap in a part, that the table shows along
SPECK = 60  # pixels: smaller gaps belong to the part that surrounds them
CLEARED = 0.75  # share of the frame; where the outline of what was measured has less, all but the part was cleared away
ON_BORDER = 0.25  # share of the frame's border on which a part that is cut out by what was measured has depth at most
RECTANGLE = 0.98  # share of its bounding box that an upright rectangle fills, pixels that were not measured aside


def find_foreground(
    depth: Depth,
    valid: Mask,
    plane: Plane,
    distance: float,
    *,
    exact: bool = False,
    runs_out: bool = False,
    area: float = 0.0,
) -> Mask:
    """The pixels (H, W) that show the part: nearer than the background plane by more than `distance` metres.

    Walls and fixtures that run out of the frame are left out where something lies inside it, also where that stands before
    a wall and hides some of it, unless parts are known to run out of the frame themselves (`runs_out`), as ropes and belts
    do. `area`, the share of the frame that parts cover at least, if known, tells a small part from a speck beside a wall.
    Specks are left out, and so are separate patches that hardly rise above the plane, where the table itself was measured
    too near. Unless the distance is `exact`, what is connected with the part belongs to it down to half of that, if a
    median over 5 x 5 pixels says so: all of a low part, the rim of another. Missing points that the part encloses belong to
    it as far as its surface surrounds them, so that the table seen through a ring, and a shadow on it, stay background.
    """
    rise = plane_depth(plane, depth.shape) - depth
    surface = valid & (rise > distance)
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(surface.astype(np.uint8), connectivity=8)
    if count == 1:
        return np.zeros_like(valid)
    # Many sensors measure nothing along the frame, so it ends where measured points do.
    ends = bounding_box(valid)
    steps = np.zeros_like(valid) if runs_out else _steps_before_walls(depth, valid, labels, boxes, ends)
    if steps.any():
        _, labels, boxes, _ = cv2.connectedComponentsWithStats((surface & ~steps).astype(np.uint8), connectivity=8)
    pieces = _pieces_of_part(boxes[1:, cv2.CC_STAT_AREA], _inside(boxes[1:], ends) | runs_out, 0.5 * area * depth.size)
    pieces &= _high_enough(pieces, rise, labels, boxes)
    surface = np.concatenate([[False], pieces])[labels]
    if steps.any():
        surface |= _near_side(steps, surface, depth, valid)
    if not exact:
        surface = _grown(surface, rise, valid, distance)
    return surface | _enclosed(surface, valid)


def _pieces_of_part(pixels: NDArray[Any], inside: Mask, least: float) -> Mask:
    # Which of N separate pieces may be of the part, by their sizes (N,) and whether they lie inside what was measured (N,).
    # One of `least` pixels is large enough, 0 if nobody knows. Where none inside is, those that run out of it may be.
    sizeable = inside & (pixels >= min(0.1 * pixels.max(), least or np.inf))
    candidates = sizeable if sizeable.any() else np.ones_like(inside)
    return (pixels >= 0.02 * pixels[candidates].max()) & (inside | ~sizeable.any())


def _high_enough(pieces: Mask, rise: Depth, labels: NDArray[Any], boxes: NDArray[Any]) -> Mask:
    # Which of N pieces rise as a part does, by the largest of those that `pieces` (N,) marks; True for all others.
    high, marked = np.ones_like(pieces), np.flatnonzero(pieces)
    if marked.size > 1:
        tops = np.array([_top_of(int(piece) + 1, rise, labels, boxes[piece + 1]) for piece in marked])
        high[marked] = tops >= FLAT * tops[np.argmax(boxes[marked + 1, cv2.CC_STAT_AREA])]
    return high


def _near_side(steps: Mask, surface: Mask, depth: Depth, valid: Mask) -> Mask:
    # Which pixels of the steps before a wall belong to the part beside them.
    near = cv2.erode(np.where(valid, depth, np.float32(np.inf)), np.ones((3, 3)))
    return steps & morph(surface, cv2.MORPH_DILATE, 5) & (depth - near <= STEP * near)


def _grown(surface: Mask, rise: Depth, valid: Mask, distance: float) -> Mask:
    # A low part, or the rim of a rounded one, rises little more than the noise of single points; a median over a few tells
    # it from the table at half of the distance. Only what is connected with the part can belong to it, and of a high part
    # only what is near: a table is not flat either.
    smooth = cv2.medianBlur(np.where(valid, rise, np.float32(0)), 5)
    low = valid & (smooth > distance / 2) & (rise <= distance)
    if (rise[surface] > LOW * distance).mean() > 0.05:
        low &= morph(surface, cv2.MORPH_DILATE, 2 * math.ceil(RIM * max(surface.shape)) + 1)
    _, labels = cv2.connectedComponents((low | surface).astype(np.uint8), connectivity=8)
    belongs = np.zeros(int(labels.max()) + 1, dtype=bool)
    belongs[labels[surface]] = True
    return belongs[labels]


def _enclosed(surface: Mask, valid: Mask) -> Mask:
    # Those gaps within the part's outline that its surface surrounds. A shadow on the table that is seen through a ring has
    # the ring on one side and the table on the other.
    outline = filled(morph(surface, cv2.MORPH_CLOSE, 5))
    # Lone background points between missing ones are noise; only a patch of them is the table.
    table = morph(morph(valid & ~surface, cv2.MORPH_CLOSE, 5), cv2.MORPH_OPEN, 7)
    gaps = outline & ~table & ~surface
    _, labels, boxes, _ = cv2.connectedComponentsWithStats(gaps.astype(np.uint8), connectivity=8)
    belongs = np.ones(len(boxes), dtype=bool)
    belongs[0] = False
    for label in np.flatnonzero(belongs & (boxes[:, cv2.CC_STAT_AREA] > SPECK)):
        left, top, w, h, _ = boxes[label]
        here = slice(max(top - 2, 0), top + h + 2), slice(max(left - 2, 0), left + w + 2)
        gap = labels[here] == label
        around = morph(gap, cv2.MORPH_DILATE, 5) & ~gap & valid[here]
        belongs[label] = (around & ~surface[here]).sum() <= ON_TABLE * around.sum()
    return belongs[labels]


def _steps_before_walls(depth: Depth, valid: Mask, labels: NDArray[Any], boxes: NDArray[Any], ends: Bounds) -> Mask:
    # What rises from one end of the frame to the other may be a wall. Where depth jumps in it, along the pixels (H, W) that
    # this marks, something nearer stands before it, if that stands on the table too: a boss on a rail does not.
    first_row, end_row, first_column, end_column = ends
    steps = np.zeros(labels.shape, dtype=bool)
    for label, (left, top, w, h, pixels) in enumerate(boxes[1:], start=1):
        across = left <= first_column and left + w >= end_column
        down = top <= first_row and top + h >= end_row
        if pixels < SMALLEST_PIECE or not (across or down):
            continue
        wall = labels == label
        near = cv2.erode(np.where(wall, depth, np.float32(np.inf)), np.ones((3, 3)))
        far = cv2.dilate(np.where(wall, depth, np.float32(0)), np.ones((3, 3)))
        jumps = wall & (far - near > STEP * near)
        _, pieces, places, _ = cv2.connectedComponentsWithStats((wall & ~jumps).astype(np.uint8), connectivity=8)
        before = _inside(places[1:], ends) & (places[1:, cv2.CC_STAT_AREA] >= SMALLEST_PIECE)
        if any(_on_table(pieces == piece + 1, valid & (labels == 0)) for piece in np.flatnonzero(before)):
            steps |= jumps
    return steps


def _inside(boxes: NDArray[Any], ends: Bounds) -> Mask:
    # Which of the components with these boxes (N, 5), as OpenCV gives them, reach no end of what was measured.
    first_row, end_row, first_column, end_column = ends
    left, top, w, h, _ = boxes.T
    return (left > first_column) & (top > first_row) & (left + w < end_column) & (top + h < end_row)


def _on_table(piece: Mask, table: Mask) -> bool:
    ring = morph(piece, cv2.MORPH_DILATE, 3) & ~piece
    return bool((ring & table).sum() >= ON_TABLE * ring.sum())


def _top_of(piece: int, rise: Depth, labels: NDArray[Any], box: NDArray[Any]) -> float:
    # How far a piece rises, but for its outermost twentieth. Its box alone is looked at: noise makes thousands of pieces.
    left, top, w, h, _ = box
    here = slice(top, top + h), slice(left, left + w)
    return float(np.quantile(rise[here][labels[here] == piece], 0.95))


def left_out_at_end(depth: Depth, valid: Mask, plane: Plane, distance: float, foreground: Mask) -> int:
    """How many pixels rise above the plane as a part does, reach the end of what was measured and are not of the part.

    Walls and fixtures are among them, and so is what looks like one: a piece of a broken part, another part, a hand. Specks
    are not, nor is what hardly rises. Arguments as for `find_foreground`, and the `foreground` (H, W) that it found.
    """
    rise = plane_depth(plane, depth.shape) - depth
    part = foreground & valid
    lowest = max(distance, FLAT * float(np.quantile(rise[part], 0.95))) if part.any() else distance
    others = valid & ~foreground & (rise > lowest)
    ends = bounding_box(valid)
    first_row, end_row, first_column, end_column = ends
    if not (others[[first_row, end_row - 1]].any() or others[:, [first_column, end_column - 1]].any()):
        return 0  # as in most scans, where looking for pieces would take a twentieth of all preparation
    boxes = cv2.connectedComponentsWithStats(others.astype(np.uint8), connectivity=8)[2][1:]
    pixels = boxes[:, cv2.CC_STAT_AREA]
    return int(pixels[~_inside(boxes, ends) & (pixels >= SMALLEST_PIECE)].sum())


def measured_outline(valid: Mask) -> Mask | None:
    """What was measured (`valid`, (H, W)) with what it encloses, specks aside; None where there is nothing but specks."""
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(valid.astype(np.uint8), connectivity=8)
    area = boxes[1:, cv2.CC_STAT_AREA]
    if count == 1 or area.max() < SMALLEST_PIECE:
        return None
    pieces = np.concatenate([[False], area >= 0.02 * area.max()])[labels]
    return filled(morph(pieces, cv2.MORPH_CLOSE, 5))


def cleared_part(valid: Mask) -> Mask | None:
    """The part (H, W) of a scan that has depth on it alone, as somebody has cleared all else away; None if it has not.

    Depth on most of the frame, along its border, or on an upright rectangle, which is a sensor's field of view, is no sign.
    """
    if valid[strip_within(valid.shape, 0, valid.shape[0], 0, valid.shape[1])].mean() > ON_BORDER:
        return None  # as of nearly all scans, which need no closer look
    outline = measured_outline(valid)
    if outline is None or outline.mean() >= CLEARED:
        return None
    top, bottom, left, right = bounding_box(outline)
    return outline if outline[top:bottom, left:right].mean() < RECTANGLE else None


def stands_out(surface: Mask) -> bool:
    """Whether there is a part on the plane, measured on `surface` (H, W), rather than nothing or specks of noise."""
    pieces = cv2.connectedComponentsWithStats(surface.astype(np.uint8), connectivity=8)[2]
    return bool(pieces[1:, cv2.CC_STAT_AREA].max(initial=0) >= SMALLEST_PIECE)


def reaches_end(surface: Mask, valid: Mask) -> bool:
    """Whether a part, measured on `surface` (H, W), reaches the end of what was measured at all."""
    part, measured = bounding_box(surface), bounding_box(valid)
    return any(one == other for one, other in zip(part, measured, strict=True))


def most_run_out(reach: Sequence[bool]) -> bool:
    """Whether parts of a data set run out of the frame, by what `reaches_end` says of each."""
    return bool(reach) and sum(reach) > 0.5 * len(reach)
