"""From a raw scan to what the networks see: background removed, cut out, resized, normalised, and the way back.

The steps are the paper's ("Data Preprocess"): fit the background plane by RANSAC, remove the points near it, set the
removed depth to the far end of the range (of the training parts; the paper takes what is farthest in each scan) and the
removed RGB to zero, resize, normalise. All of it goes by what was measured on the training scans
(`measurement.Statistics`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from das3d.background import Plane, depth_at_centre, fit_surface, plane_depth
from das3d.errors import DataError
from das3d.foreground import CLEARED, find_foreground, left_out_at_end, measured_outline
from das3d.masks import bounding_box, longer_side, pose_of
from das3d.measurement import Statistics, background_like, depth_step, exposure_of
from das3d.scan import RGB, Depth, Mask, Scan, another_unit
from das3d.settings import PreparationSettings
from das3d.sparse import DENSE, dense, density
from das3d.window import Floats, Window

DEPTH_STEP = 1 / 32768  # of the normalised depth; prepared depths are multiples of it, so that 16 bits keep them exactly
WIDEST = 16_384  # pixels; windows are square, so a narrow picture of any length would take memory without end
MOST_LOST = 0.35  # of the smallest part in training, that may be without depth, or beside it at the end of the frame
LEAST_KNOWN = 0.01  # of the part: where less has depth, all of it was made up
SMALLEST_PART = 0.1  # of the smallest part in training: what covers less is no part
DIM = 1 / 3  # of the darkest part in training, by its mean grey level: RGB that is darker shows nothing
LEAST_SHOWN = 0.5  # of what is not white of the part in training at least: RGB on which all is white shows nothing
TOO_LARGE = 1.5  # times the longest or largest part in training: what is larger is no lone part
COARSE = 0.008  # of the depth range: depth in finer steps than that changes hardly any score
FLIES = 0.1  # of the depth range: pixels so far from the median around them fly if they are alone
LONE = 2  # pixels within 5 x 5 at one depth are alone if they are no more than this


@dataclass(frozen=True)
class PreparedScan:
    """One scan as the networks see it, all members S x S.

    Attributes:
        name: of the scan.
        rgb: (S, S, 3) uint8, stretched to the training range, 0 outside the foreground; zeros without RGB.
        depth: (S, S) float32, normalised: 0 nearest, 1 background or farthest; ones without depth.
        valid: (S, S) bool, where the depth is measured rather than filled.
        foreground: (S, S) bool, where the part is.
        mask: (S, S) bool ground truth or None.
        window: where in the frame this was.
        pixel_mm2: square millimetres that a pixel of the frame covers at the part's median depth; None if nothing tells.
        doubt: why a verdict would mean nothing, in words; "" where it means what it says.
    """

    name: str
    rgb: RGB
    depth: Floats
    valid: Mask
    foreground: Mask
    mask: Mask | None
    window: Window
    pixel_mm2: float | None = None
    doubt: str = ""

    @property
    def judgeable(self) -> PreparedScan:
        """The scan itself. Raises DataError where a verdict on it would mean nothing."""
        if self.doubt:
            raise DataError(f"{self.name}: {self.doubt}")
        return self


def prepare(scan: Scan, statistics: Statistics, settings: PreparationSettings) -> PreparedScan:
    """One scan as the networks see it, by what was measured on the training scans.

    Raises:
        DataError: the scan lacks a member that the training scans had, has another frame size or one too large, is so near
            or far that its unit, or the camera's place, must be another, or shows no measured depth or no part.
    """
    _check_like_training(scan, statistics)
    closely = 0.0 if scan.valid is None else density(scan.valid)
    scan = dense(scan, closely)
    foreground, relative, beside = _foreground_and_depth(scan, statistics, settings)
    window = _window_around(foreground, scan.size, statistics, settings)
    if window.side > WIDEST:
        size = f"{scan.size[1]} x {scan.size[0]}"
        raise DataError(f"{scan.name}: expected at most {WIDEST} pixels either way, found {window.side} of {size}")
    side = settings.size

    inside = window.cut(foreground)
    share = window.shown(inside.astype(np.float32), side)
    small = share > 0.5
    depth = np.ones((side, side), dtype=np.float32)
    valid = np.zeros((side, side), dtype=bool)
    if scan.valid is not None and relative is not None:
        known, shown_depth = window.cut(scan.valid) & inside, window.cut(relative)
        known &= ~_flying(shown_depth, known, statistics)
        weight = window.shown(known.astype(np.float32), side)
        mean = window.shown(np.where(known, shown_depth, np.float32(0)), side) / np.maximum(weight, 1e-6)
        valid = (weight > 0.25) & small
        normalised = (fill_missing(mean.astype(np.float32), valid) - statistics.near) / (statistics.far - statistics.near)
        steps = np.round(np.clip(normalised, -0.5, 1.5 - DEPTH_STEP) / DEPTH_STEP)
        depth = np.where(small, steps * DEPTH_STEP, 1.0).astype(np.float32)
    rgb = np.zeros((side, side, 3), dtype=np.uint8)
    if scan.rgb is not None:
        channels = [window.shown(_on_part(window.cut(scan.rgb[..., i]), inside), side) for i in range(3)]
        stretched = np.stack(channels, axis=2) / np.maximum(share, 1e-6)[..., None] * (255.0 / statistics.rgb_high)
        rgb = (np.clip(np.round(stretched), 0, 255) * small[..., None]).astype(np.uint8)
    mask = None if scan.mask is None else window.shown(window.cut(scan.mask).astype(np.float32), side) > 0.5
    doubt = _doubt(scan, foreground, beside, statistics)
    if statistics.has_depth:
        doubt = (
            doubt
            or _too_sparse(closely, statistics)
            or _too_coarse(depth_step(scan, foreground), statistics)
            or _blind(valid, small)
        )
    return PreparedScan(scan.name, rgb, depth, valid, small, mask, window, _pixel_area(scan, foreground), doubt)


def _check_like_training(scan: Scan, statistics: Statistics) -> None:
    for what, had, has in (
        ("RGB", statistics.has_rgb, scan.rgb is not None),
        ("depth", statistics.has_depth, scan.depth is not None),
    ):
        if had and not has:
            raise DataError(f"{scan.name}: expected {what}, as the training scans have it, found none")
    if statistics.frame is not None and scan.size != statistics.frame:
        expected, found = statistics.frame, scan.size
        raise DataError(
            f"{scan.name}: expected {expected[1]} x {expected[0]} pixels as in training, found {found[1]} x {found[0]}"
        )


def _foreground_and_depth(
    scan: Scan, statistics: Statistics, settings: PreparationSettings
) -> tuple[Mask, Depth | None, int]:
    # Where the part is, its depth, and how many pixels beside it were left out at the end of the frame.
    if not statistics.has_depth or scan.depth is None or scan.valid is None:
        return np.ones(scan.size, dtype=bool), None, 0
    if not scan.valid.any():
        raise DataError(f"{scan.name}: expected some measured depth, found none")
    beside = 0
    if statistics.background == "plane":
        foreground, plane = _above_the_plane(scan.name, scan.depth, scan.valid, statistics, settings.distance_is_set)
        beside = left_out_at_end(scan.depth, scan.valid, plane, statistics.distance, foreground)
    else:
        foreground, plane = _in_the_scene(scan.name, scan.depth, scan.valid, statistics), None
    if not settings.level:
        return foreground, scan.depth, beside
    surface = fit_surface(scan.depth, scan.valid) if plane is None else plane
    return foreground, scan.depth - plane_depth(surface, scan.size), beside


def _in_the_scene(name: str, depth: Depth, valid: Mask, statistics: Statistics) -> Mask:
    # Where the part is in a scan without a background plane: everywhere, or where all but the part was cleared away.
    _expect_distance(name, "the scene", statistics.scene, float(np.median(depth[valid])), 3)
    if statistics.background != "cleared":
        return np.ones(depth.shape, dtype=bool)
    outline = measured_outline(valid)
    if outline is None or outline.mean() > (1 + CLEARED) / 2:
        there = "next to nothing" if outline is None else f"it on {valid.mean():.0%} of the picture"
        raise DataError(f"{name}: expected depth on the part alone, as in training, found {there}")
    return outline


def _above_the_plane(name: str, depth: Depth, valid: Mask, statistics: Statistics, exact: bool) -> tuple[Mask, Plane]:
    # Where the part is in a scan with a background plane, and that plane.
    fit = background_like(depth, valid, statistics)
    plane = statistics.plane if fit is None else fit.plane
    found = depth_at_centre(plane) if fit else float(np.median(depth[valid]))
    most = 2 if fit else math.inf  # where the part hides the table it is as high as it happens to be
    _expect_distance(name, "the background", depth_at_centre(statistics.plane), found, most)
    runs_out, area = statistics.runs_out, statistics.area_in(depth.shape)
    foreground = find_foreground(depth, valid, plane, statistics.distance, exact=exact, runs_out=runs_out, area=area)
    if statistics.window and foreground.mean() < (1 - MOST_LOST) * area and not runs_out:
        # Too little for a part: what lies at the end of the frame is then no wall but the rest of it, if it is no larger.
        whole = find_foreground(depth, valid, plane, statistics.distance, exact=exact, runs_out=True)
        if whole.any() and longer_side(whole) <= statistics.window:
            foreground = whole
    above = f"a part more than {statistics.distance * 1000:.1f} mm above the background"
    if not foreground.any():
        raise DataError(f"{name}: expected {above}, found none")
    # What little rises above an empty table would look like a very good part: there is no defect on it.
    if foreground.mean() < SMALLEST_PART * area:
        raise DataError(
            f"{name}: expected {above}, found {foreground.mean():.2%} of the picture there, where the smallest part "
            f"in training covers {area:.2%}: no part?"
        )
    return foreground, plane


def _expect_distance(name: str, what: str, expected: float, found: float, most: float) -> None:
    if not expected:
        return
    words = another_unit(found / expected)
    if not words and not 1 / most < found / expected < most:
        words = "another scale of the numbers, or another place of the camera?"
    if words:
        raise DataError(f"{name}: expected {what} {expected:.3g} m away, as in training, found {found:.3g} m: {words}")


def _window_around(
    foreground: Mask, frame: tuple[int, int], statistics: Statistics, settings: PreparationSettings
) -> Window:
    if not statistics.window and settings.squeeze and statistics.frame is not None:
        return Window(0, 0, *frame, frame)
    if statistics.breadth:
        pose = pose_of(foreground)
        along, across = max(statistics.window, math.ceil(pose.length)), max(statistics.breadth, math.ceil(pose.breadth))
        x, y = pose.middle
        return Window(round(y - across / 2), round(x - along / 2), across, along, frame, pose.direction(statistics.axis))
    top, bottom, left, right = bounding_box(foreground) if statistics.window else (0, frame[0], 0, frame[1])
    side = max(statistics.window, bottom - top, right - left)
    return Window.square((top + bottom - side) // 2, (left + right - side) // 2, side, frame)


def _pixel_area(scan: Scan, foreground: Mask) -> float | None:
    if scan.camera is None or scan.depth is None or scan.valid is None:
        return None
    depth = scan.depth[foreground & scan.valid]
    # Focal lengths are below 0 where points have y upwards or x to the left.
    return 1e6 * float(np.median(depth)) ** 2 / abs(scan.camera.fx * scan.camera.fy) if depth.size else None


def _doubt(scan: Scan, foreground: Mask, beside: int, statistics: Statistics) -> str:
    # The first reason why a verdict would mean nothing.
    return (
        _too_little_measured(scan, foreground, statistics)
        or _too_large(foreground, statistics)
        or _something_beside(foreground, beside, statistics)
        or _blank_rgb(scan, foreground, statistics)
    )


def _too_little_measured(scan: Scan, foreground: Mask, statistics: Statistics) -> str:
    # What has no depth counts as background. A part of which much has none would look like a small, good one.
    if scan.valid is None:
        return ""
    missing = 1 - scan.valid.mean()
    found = (
        f"expected depth on the part, found none on {missing:.0%} of the picture, in training at most on "
        f"{statistics.missing:.0%}"
    )
    if statistics.background == "none" and 1 - missing < (1 - MOST_LOST) * (1 - statistics.missing):
        return f"{found}: too little was measured to judge it"
    area = statistics.area_in(scan.size)
    lost = area - foreground.mean()
    if lost <= MOST_LOST * area or missing - statistics.missing <= 0.5 * lost:
        return ""
    return (
        f"{found}, and a part on {foreground.mean():.1%} of it, in training at least on {area:.1%}: "
        "too little was measured to judge it"
    )


def _too_sparse(closely: float, statistics: Statistics) -> str:
    # Between points far apart the depth is smooth, whatever lies there.
    if statistics.density < DENSE or closely >= min(DENSE, (1 - MOST_LOST) * statistics.density):
        return ""
    return (
        f"expected depth on {statistics.density:.0%} of the pixels beside one with depth, as in training at least, found "
        f"it on {closely:.0%}: too sparse to judge it"
    )


def _too_coarse(step: float, statistics: Statistics) -> str:
    # Each step is an edge, as no part in training had it: a good part looks defective all over.
    limit = max(2 * statistics.step, COARSE * (statistics.far - statistics.near))
    if not statistics.step or step <= limit:
        return ""
    return (
        f"expected depth in steps of {1000 * limit:.2g} mm at most ({1000 * statistics.step:.2g} mm in training), found "
        f"steps of {1000 * step:.2g} mm: another mode of the camera, a camera farther away, or a format that rounds?"
    )


def _blind(valid: Mask, foreground: Mask) -> str:
    # Both (S, S). Depth that was filled in from afar looks like that of a good part.
    share = float(valid[foreground].mean()) if foreground.any() else 1.0
    if share >= LEAST_KNOWN:
        return ""
    return f"expected depth on the part, found it on {share:.1%} of its pixels: too little was measured to judge it"


def _too_large(foreground: Mask, statistics: Statistics) -> str:
    # The window grows with what is found, and every defect in it shrinks.
    for expected, found, what in (
        (statistics.longest, longer_side(foreground), "pixels either way"),
        (statistics.largest, int(foreground.sum()), "pixels in all"),
    ):
        if expected and found > TOO_LARGE * expected:
            return (
                f"expected one part of at most {expected} {what}, as in training, found {found}: two parts, something "
                "beside it, or a nearer camera?"
            )
    return ""


def _something_beside(foreground: Mask, beside: int, statistics: Statistics) -> str:
    # What is left out there as a wall may be most of a broken part, of which the rest alone would be judged.
    smallest = statistics.area_in(foreground.shape) * foreground.size
    if beside <= (statistics.beside + MOST_LOST) * smallest:
        return ""
    return (
        f"expected at most {statistics.beside * smallest:.0f} pixels above the background that run out of the frame beside "
        f"the part, as in training, found {beside}: a piece of a broken part, another part, or a hand?"
    )


def _blank_rgb(scan: Scan, foreground: Mask, statistics: Statistics) -> str:
    # Of RGB that shows nothing, a network that knows dark and pale parts makes a good one.
    found = exposure_of(scan, foreground) if statistics.has_rgb else None
    if found is None:
        return ""
    if found.brightness < DIM * statistics.darkest:
        return (
            f"expected a part {statistics.darkest:.0f} to {statistics.brightest:.0f} of 255 bright, as in training, found "
            f"{found.brightness:.0f}: lamp, exposure, or 12 bits in 16?"
        )
    if 1 - found.white < LEAST_SHOWN * (1 - statistics.white):
        return (
            f"expected white on at most {statistics.white:.0%} of the part, as in training, found it on "
            f"{found.white:.0%}: too long an exposure?"
        )
    return ""


def _flying(relative: Depth, known: Mask, statistics: Statistics) -> Mask:
    # Lone known pixels far from all around them. One alone would change what its neighbours become by more than any defect
    # does. What is really there has neighbours at its own depth; pixels that fly have none, however many there are.
    off = max(FLIES * (statistics.far - statistics.near), 5 * statistics.noise)
    smooth = cv2.medianBlur(np.where(known, relative, np.float32(statistics.far)), 5)
    odd = known & (np.abs(relative - smooth) > off)
    if not odd.any():
        return odd
    v, u = np.nonzero(odd)
    depths = np.full((known.shape[0] + 4, known.shape[1] + 4), np.inf, dtype=np.float32)
    depths[2:-2, 2:-2] = np.where(known, relative, np.float32(np.inf))
    around = np.stack([depths[v + i, u + j] for i in range(5) for j in range(5)])
    odd[v, u] = (np.abs(around - relative[v, u]) < off).sum(axis=0) <= LONE  # itself among them
    return odd


def fill_missing(values: Floats, known: Mask) -> Floats:
    """`values` (H, W) with the unknown pixels filled from their known neighbours, nearest scale first.

    Known pixels keep their values; what stands at the others does not matter. All unknown: zeros.
    """
    weight = known.astype(np.float32)
    if known.all():
        return values.astype(np.float32, copy=True)
    filled = np.where(known, values, 0).astype(np.float32)
    if not known.any():
        return filled
    return np.where(known, filled, _pull_push(filled, weight)).astype(np.float32)


def _pull_push(values: Floats, weight: Floats) -> Floats:
    # Average down a pyramid of halved images until everything is known, then let each level fill the one above it.
    height, width = values.shape
    if min(height, width) <= 1 or weight.min() > 0:
        total = weight.sum()
        return np.where(weight > 0, values, (values * weight).sum() / max(total, 1e-12)).astype(np.float32)
    padded = [(0, height % 2), (0, width % 2)]
    w = np.pad(weight, padded)
    s = np.pad(values * weight, padded)
    w4 = w.reshape(w.shape[0] // 2, 2, w.shape[1] // 2, 2).sum(axis=(1, 3))
    s4 = s.reshape(w.shape[0] // 2, 2, w.shape[1] // 2, 2).sum(axis=(1, 3))
    coarse = _pull_push(s4 / np.maximum(w4, 1e-12), np.minimum(w4, 1.0))
    up = cv2.resize(coarse, (w.shape[1], w.shape[0]), interpolation=cv2.INTER_LINEAR)[:height, :width]
    share = np.minimum(weight, 1.0)
    return (share * values + (1 - share) * up).astype(np.float32)


def _on_part(channel: NDArray[np.uint8], inside: Mask) -> Floats:
    # Without a copy on the way, and of one channel at a time: the window of a long, narrow picture takes much memory.
    values = channel.astype(np.float32)
    values *= inside
    return values
