"""From a raw scan to what the networks see: background removed, cut out, resized, normalised, and the way back.

The steps are the paper's ("Data Preprocess"): fit the background plane by RANSAC, remove the points near it, set the
removed depth to the far end of the range (of the training parts; the paper takes what is farthest in each scan) and the
removed RGB to zero, resize, normalise. Only depth and pixel positions
are used, never x and y, so a scan gives the same result as XYZ points and as a depth image.

What is measured on the training scans (`Statistics`) is kept with the model and used unchanged on every later scan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from das3d.errors import DataError
from das3d.scan import RGB, Depth, Mask, Scan, another_unit
from das3d.settings import PreparationSettings

Floats = NDArray[np.float32]
Plane = tuple[float, float, float]
Box = tuple[int, int, int, int]  # first and one-past-last row, first and one-past-last column
# How the part is told from what is around it: by a plane below it, by having depth at all, where somebody has cleared all
# else away, or not, as it fills the frame.
Background = Literal["plane", "cleared", "none"]

BORDER = 10  # pixels; the strip along the frame on which the background plane is looked for (BTF, M3DM)
HYPOTHESES = 300
RELATIVE_NOISE = 0.003  # of the distance: points this close to a hypothesis agree with it; 2 mm at 0.65 m
DEPTH_STEP = 1 / 32768  # of the normalised depth; prepared depths are multiples of it, so that 16 bits keep them exactly
FLAT = 0.1  # of the part's height above the plane: a separate patch that rises less is no piece of it
SMALLEST_PIECE = 100  # pixels; where nothing larger rises above a plane, there is no part on it but noise
WIDEST = 16_384  # pixels; windows are square, so a narrow picture of any length would take memory without end
TYPICAL = 0.98  # share of the training parts that decide how large and how high parts are
MOST_LOST = 0.35  # of the smallest part in training, that may be without depth
SMALLEST_PART = 0.1  # of the smallest part in training: what covers less is no part
MIN_SUPPORT = 0.35  # share of the strip that must lie on the plane for it to be believed
MEASURED = 0.7  # share of either side of the frame that was measured, where its border is taken for that of the scene
MOST_BEHIND = 0.05  # share of the measured points behind a plane: a table hides what is below, so with more it is none
LONE = 2  # pixels far out of range, with no more than this many of them within 5 x 5, fly
STEP = 0.05  # of the distance: what stands before a wall ends in a step like that, and planes so far apart are two things
ON_TABLE = 0.2  # share of the outline of what stands before a wall that the table shows along
CLEARED = 0.75  # share of the frame; where the outline of what was measured has less, all but the part was cleared away
ON_BORDER = 0.25  # share of the frame's border on which a part that is cut out by what was measured has depth at most
RECTANGLE = 0.98  # share of its bounding box that an upright rectangle fills, pixels that were not measured aside
MOST = 0.8  # share of the training scans that must show how the part is told from its background
BACKGROUNDS: tuple[Background, ...] = get_args(Background)  # the first that most training scans allow is taken


# ------------------------------------------------------------------------------------------- background plane


@dataclass(frozen=True)
class PlaneFit:
    """A plane in front of a pinhole camera: 1/z = a u/W + b v/H + c at pixel (u, v) of a W x H frame.

    Inverse depth is linear in pixel coordinates for every plane, whatever the intrinsics, so none are needed.

    Attributes:
        plane: (a, b, c), 1/metres.
        support: share of the measured border pixels that lie on the plane.
        noise: robust standard deviation of those around it, metres along the optical axis.
    """

    plane: Plane
    support: float
    noise: float


def plane_depth(plane: Plane, size: tuple[int, int]) -> Depth:
    """Depth (H, W) in metres of a plane; infinite where it does not face the camera."""
    height, width = size
    u, v = np.arange(width) / width, np.arange(height) / height
    inverse = plane[0] * u[None, :] + plane[1] * v[:, None] + plane[2]
    with np.errstate(divide="ignore"):
        return np.where(inverse > 0, 1.0 / inverse, np.inf).astype(np.float32)


def fit_background(depth: Depth, valid: Mask, *, known: Plane | None = None, seed: int = 0) -> PlaneFit | None:
    """The plane that most of the border of what was measured lies on, by RANSAC with a fixed seed and least squares.

    Args:
        depth: (H, W) metres.
        valid: (H, W), where depth was measured.
        known: about where it must be, instead of RANSAC; the least squares begin there.
        seed: of the hypotheses; the result is the same for the same scan and seed.

    Returns:
        None where the border has too few points, or no plane that `MIN_SUPPORT` of them share and that the whole frame
        would show.
    """
    height, width = depth.shape
    v, u = np.nonzero(valid & _border(valid))
    if u.size < 50:
        return None
    z = depth[v, u].astype(np.float64)
    rows = np.stack([u / width, v / height, np.ones(u.size)], axis=1)
    behind = _behind(depth, valid)
    if known is not None:
        fit = _refined(np.array(known), rows, z)
        return fit if fit is not None and behind(np.array([fit.plane]))[0] <= MOST_BEHIND else None

    rng = np.random.default_rng(seed)
    sample = rng.choice(u.size, min(u.size, 500), replace=False)
    triples = rng.integers(0, sample.size, (HYPOTHESES, 3))
    corners = rows[sample][triples]  # (hypotheses, 3, 3)
    usable = np.abs(np.linalg.det(corners)) > 1e-3
    if not usable.any():
        return None
    planes = np.linalg.solve(corners[usable], (1.0 / z[sample])[triples[usable]][..., None])[..., 0]
    # 1/z - 1/zp relative to 1/zp is the relative depth error, so one tolerance serves near and far points.
    support = (np.abs(planes @ rows[sample].T * z[sample] - 1.0) < RELATIVE_NOISE).mean(axis=1)
    fit = _refined(planes[np.argmax(support)], rows, z)
    # Where a part covers much of the strip, a plane through it and the table may have more support than the table alone.
    # But it has points behind it.
    if fit is None or (share := behind(np.array([fit.plane]))[0]) <= MOST_BEHIND:
        return fit
    other = _refined(planes[np.argmax(support - behind(planes))], rows, z)
    return fit if other is None or behind(np.array([other.plane]))[0] > share / 2 else other


def _border(valid: Mask) -> Mask:
    # The strip along the frame, or, as many sensors measure nothing there, along what was measured. Where that is the part
    # alone, without any table around it, its own outline is no border.
    height, width = valid.shape
    whole = _strip(valid.shape, 0, height, 0, width)
    if not valid.any():
        return whole
    top, bottom, left, right = bounding_box(valid)
    if bottom - top < MEASURED * height or right - left < MEASURED * width:
        return whole
    strip = _strip(valid.shape, top, bottom, left, right)
    return strip if valid[strip].mean() > 0.5 else whole


def _strip(size: tuple[int, ...], top: int, bottom: int, left: int, right: int) -> Mask:
    edge = max(min(BORDER, (bottom - top) // 4, (right - left) // 4), 1)
    strip = np.zeros(size, dtype=bool)
    strip[top:bottom, left:right] = True
    strip[top + edge : bottom - edge, left + edge : right - edge] = False
    return strip


def _refined(plane: NDArray[Any], rows: NDArray[np.float64], z: NDArray[np.float64]) -> PlaneFit | None:
    # By least squares of the points near it; None where these are too few. `rows` (N, 3): u/W, v/H, 1; `z`: (N,) metres.
    for _ in range(5):
        near = np.abs(rows @ plane * z - 1.0) < RELATIVE_NOISE
        if near.sum() < 10:
            return None
        plane = np.linalg.lstsq(rows[near] * z[near, None], np.ones(int(near.sum())), rcond=None)[0]
    relative = rows @ plane * z - 1.0
    near = np.abs(relative) < RELATIVE_NOISE
    if near.mean() < MIN_SUPPORT or not _faces_camera(plane):
        return None
    noise = 1.4826 * float(np.median(np.abs(relative[near] * z[near])))
    return PlaneFit((float(plane[0]), float(plane[1]), float(plane[2])), float(near.mean()), noise)


def _behind(depth: Depth, valid: Mask) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    # Tells of planes (N, 3) which share (N,) of the measured points lies behind each. A few thousand points say it.
    height, width = depth.shape
    step = max(1, math.isqrt(depth.size // 4000))
    v, u = step * np.stack(np.nonzero(valid[::step, ::step]))
    points = np.stack([u / width, v / height, np.ones(u.size)], axis=0) * depth[v, u].astype(np.float64)
    return lambda planes: np.asarray((planes @ points > 1 + 2 * RELATIVE_NOISE).mean(axis=1))


def _faces_camera(plane: NDArray[np.float64]) -> bool:
    # Whether no horizon crosses the frame, beyond which depth from the plane would be infinite.
    return bool(plane[2] + min(plane[0], 0.0) + min(plane[1], 0.0) > 0)


def fit_surface(depth: Depth, valid: Mask) -> Plane:
    """The plane that a part without visible background lies in, by trimmed least squares over all its points."""
    height, width = depth.shape
    v, u = np.nonzero(valid)
    step = max(1, u.size // 20_000)
    u, v = u[::step], v[::step]
    inverse = 1.0 / depth[v, u].astype(np.float64)
    rows = np.stack([u / width, v / height, np.ones(u.size)], axis=1)
    keep = np.ones(u.size, dtype=bool)
    plane = np.array([0.0, 0.0, float(np.median(inverse))])
    for _ in range(5):
        if keep.sum() >= 3:
            plane = np.linalg.lstsq(rows[keep], inverse[keep], rcond=None)[0]
        error = np.abs(rows @ plane - inverse)
        keep = error <= np.quantile(error, 0.8)
    if not _faces_camera(plane):
        plane = np.array([0.0, 0.0, float(np.median(inverse))])
    return float(plane[0]), float(plane[1]), float(plane[2])


# ------------------------------------------------------------------------------------------- foreground


def find_foreground(
    depth: Depth, valid: Mask, plane: Plane, distance: float, *, runs_out: bool = False, area: float = 0.0
) -> Mask:
    """The pixels (H, W) that show the part: nearer than the background plane by more than `distance` metres.

    Walls and fixtures that run out of the frame are left out where something lies inside it, also where that stands before
    a wall and hides some of it, unless parts are known to run out of the frame themselves (`runs_out`), as ropes and belts
    do. `area`, the share of the frame that parts cover at least, if known, tells a small part from a speck beside a wall.
    Specks are left out, and so are separate patches that hardly rise above the plane, where the table itself was measured
    too near. Missing points that the part encloses belong to it as far as its surface surrounds them, so that the table
    seen through a ring stays background.
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
        count, labels, boxes, _ = cv2.connectedComponentsWithStats((surface & ~steps).astype(np.uint8), connectivity=8)
    pixels = boxes[1:, cv2.CC_STAT_AREA]
    inside = _inside(boxes[1:], ends) | runs_out
    sizeable = pixels >= min(0.1 * pixels.max(), 0.5 * area * depth.size or np.inf)
    candidates = inside & sizeable if (inside & sizeable).any() else np.ones(count - 1, dtype=bool)
    largest = pixels[candidates].max()
    keep = (pixels >= 0.02 * largest) & (inside | ~(inside & sizeable).any())
    pieces = np.flatnonzero(keep)
    if pieces.size > 1:
        tops = np.array([_top_of(int(piece) + 1, rise, labels, boxes[piece + 1]) for piece in pieces])
        keep[pieces] = tops >= FLAT * tops[np.argmax(pixels[pieces])]
    surface = np.concatenate([[False], keep])[labels]
    if steps.any():  # of which those on the near side belong to the part
        near = cv2.erode(np.where(valid, depth, np.float32(np.inf)), np.ones((3, 3)))
        surface |= steps & _morph(surface, cv2.MORPH_DILATE, 5) & (depth - near <= STEP * near)

    outline = _filled(_morph(surface, cv2.MORPH_CLOSE, 5))
    # Lone background points between missing ones are noise; only a patch of them is the table.
    table = _morph(_morph(valid & ~surface, cv2.MORPH_CLOSE, 5), cv2.MORPH_OPEN, 7)
    return surface | (outline & ~table)


def _steps_before_walls(depth: Depth, valid: Mask, labels: NDArray[Any], boxes: NDArray[Any], ends: Box) -> Mask:
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


def _inside(boxes: NDArray[Any], ends: Box) -> Mask:
    # Which of the components with these boxes (N, 5), as OpenCV gives them, reach no end of what was measured.
    first_row, end_row, first_column, end_column = ends
    left, top, w, h, _ = boxes.T
    return (left > first_column) & (top > first_row) & (left + w < end_column) & (top + h < end_row)


def _on_table(piece: Mask, table: Mask) -> bool:
    ring = _morph(piece, cv2.MORPH_DILATE, 3) & ~piece
    return bool((ring & table).sum() >= ON_TABLE * ring.sum())


def measured_outline(valid: Mask) -> Mask | None:
    """What was measured (`valid`, (H, W)) with what it encloses, specks aside; None where there is nothing but specks."""
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(valid.astype(np.uint8), connectivity=8)
    area = boxes[1:, cv2.CC_STAT_AREA]
    if count == 1 or area.max() < SMALLEST_PIECE:
        return None
    pieces = np.concatenate([[False], area >= 0.02 * area.max()])[labels]
    return _filled(_morph(pieces, cv2.MORPH_CLOSE, 5))


def cleared_part(valid: Mask) -> Mask | None:
    """The part (H, W) of a scan that has depth on it alone, as somebody has cleared all else away; None if it has not.

    Depth on most of the frame, along its border, or on an upright rectangle, which is a sensor's field of view, is no sign.
    """
    if valid[_strip(valid.shape, 0, valid.shape[0], 0, valid.shape[1])].mean() > ON_BORDER:
        return None  # as of nearly all scans, which need no closer look
    outline = measured_outline(valid)
    if outline is None or outline.mean() >= CLEARED:
        return None
    top, bottom, left, right = bounding_box(outline)
    return outline if outline[top:bottom, left:right].mean() < RECTANGLE else None


def _filled(mask: Mask) -> Mask:
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.zeros(mask.shape, np.uint8), contours, -1, 1, cv2.FILLED) > 0


def _top_of(piece: int, rise: Depth, labels: NDArray[Any], box: NDArray[Any]) -> float:
    # How far a piece rises, but for its outermost twentieth. Its box alone is looked at: noise makes thousands of pieces.
    left, top, w, h, _ = box
    here = slice(top, top + h), slice(left, left + w)
    return float(np.quantile(rise[here][labels[here] == piece], 0.95))


def _morph(mask: Mask, operation: int, diameter: int) -> Mask:
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (diameter, diameter))
    return cv2.morphologyEx(mask.astype(np.uint8), operation, kernel) > 0


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


# ------------------------------------------------------------------------------------------- training statistics


@dataclass(frozen=True)
class Statistics:
    """What was measured on the training scans; part of the model.

    Attributes:
        has_rgb, has_depth: which members the scans have.
        background: "plane" where the scans show a background plane around the part, "cleared" where the part alone has
            depth, else "none".
        plane: median background plane, for a scan in which none is found.
        distance: points closer than this to the plane are background, metres.
        noise: median noise of the plane, metres.
        window: side of the square window around the part in frame pixels; 0: the whole frame.
        frame: height and width that all training scans share; None where they differ.
        near, far: depth that becomes 0 and 1, metres (from the plane where depth is levelled).
        rgb_high: grey level (0 to 255) that becomes 1.
        scans: how many scans were measured.
        area: share of the frame that the smallest part covers, those aside that are not half as large as most; 0 where
            parts cannot be told from the background.
        missing: share of the frame without depth in that scan which lacks most; the same scans are left out.
        scene: median depth of the frames, metres; 0 in models of before it was measured.
        runs_out: whether parts run out of the frame.
    """

    has_rgb: bool
    has_depth: bool
    background: Background
    plane: Plane
    distance: float
    noise: float
    window: int
    frame: tuple[int, int] | None
    near: float
    far: float
    rgb_high: float
    scans: int
    area: float = 0.0
    missing: float = 1.0
    scene: float = 0.0
    runs_out: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Statistics:
        frame = values["frame"]
        return cls(**{**values, "plane": tuple(values["plane"]), "frame": tuple(frame) if frame else None})


def measure(
    scans: Iterable[Scan], settings: PreparationSettings, *, progress: Callable[[], None] = lambda: None
) -> Statistics:
    """Look at every training scan once and decide how all scans will be prepared.

    Args:
        scans: the good training scans; one is held at a time.
        settings: how to prepare.
        progress: called after each scan.

    Raises:
        DataError: there is no scan, the members differ between scans, or some have no measured depth; these are all named.
    """
    seen: list[_Look] = []
    problems: list[str] = []
    for scan in scans:
        try:
            seen.append(_look_at(scan, settings))
        except DataError as error:
            problems += error.problems
        progress()
    if problems:
        raise DataError(problems)
    if not seen:
        raise DataError("no training scans: expected at least one good part")
    members = {(one.has_rgb, one.has_depth) for one in seen}
    if len(members) > 1:
        raise DataError("training scans: some have RGB or depth and others do not; all must have the same members")
    has_rgb, has_depth = members.pop()
    sizes = {one.size for one in seen}
    # A lone failure must not change how the whole set is prepared.
    background = next(kind for kind in BACKGROUNDS if sum(kind in one.parts for one in seen) >= MOST * len(seen))
    used = [one for one in seen if background in one.parts]
    plane = (0.0, 0.0, 0.0)
    if background == "plane":
        plane = _median_plane([one.fit.plane for one in used if one.fit is not None])
        # What lies on another plane, such as a wall that fills the border, was not seen as it will be prepared.
        alike = [one for one in used if one.fit is not None and _same_plane(one.fit.plane, plane)]
        # Depth from the camera has a range of its own on each, all of which must fit.
        used = alike if settings.level and len(alike) >= MOST * len(used) else used
    ranges = [one.parts[background] for one in used]
    fits = [one.fit for one in used if one.fit is not None] if background == "plane" else []
    # What later scans are held against must not be one odd scan: a speck on an empty table, or half a part.
    half = 0.5 * float(np.median([part.area for part in ranges]))
    sound = [(one, part) for one, part in zip(used, ranges, strict=True) if part.area >= half]
    # Parts beyond the range keep their shape, so a few odd ones must not narrow what the others make of it.
    near = float(np.quantile([part.near for part in ranges], 1 - TYPICAL))
    far = float(np.quantile([part.far for part in ranges], TYPICAL))
    window = 0
    if background != "none" and settings.crop:
        # Larger parts than this get a larger window of their own, so an outlier must not shrink all others.
        window = math.ceil(float(np.quantile([part.side for part in ranges], TYPICAL)) * (1 + settings.margin))
        window = 0 if window >= max(max(size) for size in sizes) else window
    levels = np.sum([part.levels for part in ranges], axis=0)
    bright = np.searchsorted(np.cumsum(levels), 0.99 * levels.sum()) if settings.stretch and levels.sum() else 255
    return Statistics(
        has_rgb=has_rgb,
        has_depth=has_depth,
        background=background,
        plane=plane,
        distance=float(np.median([one.distance for one in used])) if fits else 0.0,
        noise=float(np.median([fit.noise for fit in fits])) if fits else 0.0,
        window=window,
        frame=sizes.pop() if len(sizes) == 1 else None,
        near=near - 0.1 * (far - near),  # room for what rises above every good part
        far=far if far > near else near + 1.0,
        rgb_high=float(np.clip(bright, 16, 255)),
        scans=len(seen),
        area=0.0 if background == "none" else min(part.area for _, part in sound),
        missing=max(one.missing for one, _ in sound),
        scene=float(np.median([one.scene for one in used])),
        runs_out=background == "plane" and most_run_out([part.runs_out for part in ranges]),
    )


@dataclass(frozen=True)
class _Part:
    """Extent of the part in one scan: side of its bounding box in pixels, share of the frame, depth range in metres, grey
    histogram, whether it runs out of the frame.
    """

    side: int
    area: float
    near: float
    far: float
    levels: NDArray[np.int64]
    runs_out: bool = False


@dataclass(frozen=True)
class _Look:
    """What one scan shows: the part for each way to tell it from its background that this scan allows."""

    size: tuple[int, int]
    has_rgb: bool
    has_depth: bool
    fit: PlaneFit | None
    distance: float
    parts: dict[Background, _Part]
    missing: float = 1.0
    scene: float = 0.0


def _look_at(scan: Scan, settings: PreparationSettings) -> _Look:
    height, width = scan.size
    everything = np.ones(scan.size, dtype=bool)
    if scan.depth is None or scan.valid is None:
        whole = _Part(max(height, width), 1.0, 0.0, 1.0, _grey_levels(scan, everything))
        return _Look(scan.size, scan.rgb is not None, False, None, 0.0, {"none": whole})
    if not scan.valid.any():
        raise DataError(f"{scan.name}: expected some measured depth, found none")
    relative = scan.depth - (plane_depth(fit_surface(scan.depth, scan.valid), scan.size) if settings.level else 0)
    extent = _range_of(relative, scan.valid)
    parts: dict[Background, _Part] = {"none": _Part(max(height, width), 1.0, *extent, _grey_levels(scan, everything))}
    if (outline := cleared_part(scan.valid)) is not None:
        parts["cleared"] = _Part(_side(outline), float(outline.mean()), *extent, _grey_levels(scan, outline))
    fit = fit_background(scan.depth, scan.valid)
    distance = 0.0
    if fit is not None:
        distance = background_distance(fit, settings)
        if (part := _part_above(scan, fit.plane, distance, settings)) is not None:
            parts["plane"] = part
    missing, scene = 1 - float(scan.valid.mean()), float(np.median(scan.depth[scan.valid]))
    return _Look(scan.size, scan.rgb is not None, True, fit, distance, parts, missing, scene)


def _side(mask: Mask) -> int:
    top, bottom, left, right = bounding_box(mask)
    return max(bottom - top, right - left)


def background_distance(fit: PlaneFit, settings: PreparationSettings) -> float:
    """Metres that a point must rise above the plane to belong to the part: as set, or five times the noise."""
    return settings.background_distance or max(5 * fit.noise, RELATIVE_NOISE * _at_centre(fit.plane))


def _at_centre(plane: Plane) -> float:
    # Depth of a plane in the middle of the frame, metres.
    return 1.0 / (plane[0] / 2 + plane[1] / 2 + plane[2])


def _part_above(scan: Scan, plane: Plane, distance: float, settings: PreparationSettings) -> _Part | None:
    assert scan.depth is not None and scan.valid is not None
    foreground = find_foreground(scan.depth, scan.valid, plane, distance)
    surface = foreground & scan.valid
    if not stands_out(surface):
        return None
    relative = scan.depth - (plane_depth(plane, scan.size) if settings.level else 0)
    near, far = _range_of(relative, surface)
    # Levelled depth of the removed background is that of the plane itself, which no point of the part exceeds.
    return _Part(
        _side(foreground), float(foreground.mean()), near, 0.0 if settings.level else far,
        _grey_levels(scan, foreground), reaches_end(surface, scan.valid),
    )  # fmt: skip


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


def _range_of(depth: Depth, where: Mask) -> tuple[float, float]:
    # Nearest and farthest depth on these pixels, but for the outermost thousandths and for lone pixels that fly.
    filled = np.where(where, depth, np.float32(np.median(depth[where]))).astype(np.float32)
    near, far = np.quantile(cv2.medianBlur(filled, 5)[where], (0.001, 0.999))
    return float(near), float(far)


def _grey_levels(scan: Scan, where: Mask) -> NDArray[np.int64]:
    if scan.rgb is None:
        return np.zeros(256, dtype=np.int64)
    return np.bincount(scan.rgb.max(axis=2)[where], minlength=256)


def _median_plane(planes: list[Plane]) -> Plane:
    a, b, c = np.median(np.asarray(planes), axis=0)
    return float(a), float(b), float(c)


def bounding_box(mask: Mask) -> Box:
    """First and one-past-last row, first and one-past-last column of the True pixels; at least one must be."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


# ------------------------------------------------------------------------------------------- one scan


@dataclass(frozen=True)
class Window:
    """The square of the frame that a prepared scan shows. It may reach beyond the frame.

    Attributes:
        top, left, side: in frame pixels.
        frame: height and width of the frame.
    """

    top: int
    left: int
    side: int
    frame: tuple[int, int]

    def cut(self, array: NDArray[Any]) -> NDArray[Any]:
        """The window of a frame-sized array (H, W, ...) as (side, side, ...), zero beyond the frame."""
        height, width = self.frame
        top, left = max(self.top, 0), max(self.left, 0)
        bottom, right = min(self.top + self.side, height), min(self.left + self.side, width)
        out = np.zeros((self.side, self.side, *array.shape[2:]), dtype=array.dtype)
        out[top - self.top : bottom - self.top, left - self.left : right - self.left] = array[top:bottom, left:right]
        return out

    def frame_pixel(self, row: float, column: float, side: int) -> tuple[int, int]:
        """Row and column of the frame's pixel nearest to a place in the window's image of `side` x `side`."""
        height, width = self.frame
        scale = self.side / side
        v, u = round((row + 0.5) * scale - 0.5 + self.top), round((column + 0.5) * scale - 0.5 + self.left)
        return min(max(v, 0), height - 1), min(max(u, 0), width - 1)

    def put_back(self, image: Floats) -> Floats:
        """An image (S, S) of the window, of any resolution, on the grid of the frame (H, W), zero outside the window."""
        height, width = self.frame
        scale = image.shape[0] / self.side
        # Centres of pixels map onto each other: the frame's (x + 0.5 - left) * scale is the image's (x' + 0.5).
        matrix = np.array(
            [[scale, 0, (0.5 - self.left) * scale - 0.5], [0, scale, (0.5 - self.top) * scale - 0.5]], dtype=np.float64
        )
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        spread = cv2.warpAffine(image, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        inside = np.zeros(self.frame, dtype=bool)
        inside[max(self.top, 0) : self.top + self.side, max(self.left, 0) : self.left + self.side] = True
        return np.where(inside, spread, 0).astype(np.float32)


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
    foreground, relative = _foreground_and_depth(scan, statistics, settings)
    window = _window_around(foreground, scan.size, statistics)
    if window.side > WIDEST:
        size = f"{scan.size[1]} x {scan.size[0]}"
        raise DataError(f"{scan.name}: expected at most {WIDEST} pixels either way, found {window.side} of {size}")
    side = settings.size

    inside = window.cut(foreground)
    share = _resize(inside.astype(np.float32), side)
    small = share > 0.5
    depth = np.ones((side, side), dtype=np.float32)
    valid = np.zeros((side, side), dtype=bool)
    if scan.valid is not None and relative is not None:
        known, shown_depth = window.cut(scan.valid) & inside, window.cut(relative)
        known &= ~_flying(shown_depth, known, statistics)
        weight = _resize(known.astype(np.float32), side)
        mean = _resize(np.where(known, shown_depth, np.float32(0)), side) / np.maximum(weight, 1e-6)
        valid = (weight > 0.25) & small
        normalised = (fill_missing(mean.astype(np.float32), valid) - statistics.near) / (statistics.far - statistics.near)
        steps = np.round(np.clip(normalised, -0.5, 1.5 - DEPTH_STEP) / DEPTH_STEP)
        depth = np.where(small, steps * DEPTH_STEP, 1.0).astype(np.float32)
    rgb = np.zeros((side, side, 3), dtype=np.uint8)
    if scan.rgb is not None:
        shown = window.cut(scan.rgb).astype(np.float32) * inside[..., None]
        stretched = _resize(shown, side) / np.maximum(share, 1e-6)[..., None] * (255.0 / statistics.rgb_high)
        rgb = (np.clip(np.round(stretched), 0, 255) * small[..., None]).astype(np.uint8)
    mask = None if scan.mask is None else _resize(window.cut(scan.mask).astype(np.float32), side) > 0.5
    area, doubt = _pixel_area(scan, foreground), _doubt(scan, foreground, statistics)
    return PreparedScan(scan.name, rgb, depth, valid, small, mask, window, area, doubt)


def _flying(relative: Depth, known: Mask, statistics: Statistics) -> Mask:
    # Lone known pixels far out of range. One alone would change what its neighbours become by more than any defect does.
    span = statistics.far - statistics.near
    wild = known & ((relative < statistics.near - 0.5 * span) | (relative > statistics.far + 0.5 * span))
    if not wild.any():
        return wild
    around = cv2.boxFilter(wild.astype(np.float32), -1, (5, 5), normalize=False, borderType=cv2.BORDER_CONSTANT)
    return wild & (around < LONE + 0.5)


def _doubt(scan: Scan, foreground: Mask, statistics: Statistics) -> str:
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
    lost = statistics.area - foreground.mean()
    if lost <= MOST_LOST * statistics.area or missing - statistics.missing <= 0.5 * lost:
        return ""
    return (
        f"{found}, and a part on {foreground.mean():.1%} of it, in training at least on {statistics.area:.1%}: "
        "too little was measured to judge it"
    )


def _pixel_area(scan: Scan, foreground: Mask) -> float | None:
    if scan.camera is None or scan.depth is None or scan.valid is None:
        return None
    depth = scan.depth[foreground & scan.valid]
    # Focal lengths are below 0 where points have y upwards or x to the left.
    return 1e6 * float(np.median(depth)) ** 2 / abs(scan.camera.fx * scan.camera.fy) if depth.size else None


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


def _foreground_and_depth(scan: Scan, statistics: Statistics, settings: PreparationSettings) -> tuple[Mask, Depth | None]:
    everything = np.ones(scan.size, dtype=bool)
    if not statistics.has_depth or scan.depth is None or scan.valid is None:
        return everything, None
    if not scan.valid.any():
        raise DataError(f"{scan.name}: expected some measured depth, found none")
    if statistics.background != "plane":
        _expect_distance(scan.name, "the scene", statistics.scene, float(np.median(scan.depth[scan.valid])), 3)
        level = plane_depth(fit_surface(scan.depth, scan.valid), scan.size) if settings.level else np.float32(0)
        if statistics.background != "cleared":
            return everything, scan.depth - level
        outline = measured_outline(scan.valid)
        if outline is None or outline.mean() > (1 + CLEARED) / 2:
            there = "next to nothing" if outline is None else f"it on {scan.valid.mean():.0%} of the picture"
            raise DataError(f"{scan.name}: expected depth on the part alone, as in training, found {there}")
        return outline, scan.depth - level
    fit = background_like(scan.depth, scan.valid, statistics)
    plane = statistics.plane if fit is None else fit.plane
    found = _at_centre(plane) if fit else float(np.median(scan.depth[scan.valid]))
    most = 2 if fit else math.inf  # where the part hides the table it is as high as it happens to be
    _expect_distance(scan.name, "the background", _at_centre(statistics.plane), found, most)
    runs_out, area = statistics.runs_out, statistics.area
    foreground = find_foreground(scan.depth, scan.valid, plane, statistics.distance, runs_out=runs_out, area=area)
    if statistics.window and foreground.mean() < (1 - MOST_LOST) * area and not runs_out:
        # Too little for a part: what lies at the end of the frame is then no wall but the rest of it, if it is no larger.
        whole = find_foreground(scan.depth, scan.valid, plane, statistics.distance, runs_out=True)
        if whole.any() and _side(whole) <= statistics.window:
            foreground = whole
    above = f"a part more than {statistics.distance * 1000:.1f} mm above the background"
    if not foreground.any():
        raise DataError(f"{scan.name}: expected {above}, found none")
    # What little rises above an empty table would look like a very good part: there is no defect on it.
    if foreground.mean() < SMALLEST_PART * statistics.area:
        raise DataError(
            f"{scan.name}: expected {above}, found {foreground.mean():.2%} of the picture there, where the smallest part "
            f"in training covers {statistics.area:.2%}: no part?"
        )
    return foreground, scan.depth - (plane_depth(plane, scan.size) if settings.level else np.float32(0))


def background_like(depth: Depth, valid: Mask, statistics: Statistics) -> PlaneFit | None:
    """The background plane of a scan (`fit_background`), with a say for the one that training scans showed."""
    fit = fit_background(depth, valid)
    if fit is None or _same_plane(fit.plane, statistics.plane):
        return fit
    # A wall may fill more of the border than the table does. Where the table is in its place, that is what counts.
    return fit_background(depth, valid, known=statistics.plane) or fit


def _same_plane(one: Plane, other: Plane) -> bool:
    # Whether two planes lie about as far away all over the frame.
    (a, b, c), (d, e, f) = one, other
    corners = ((0, 0), (1, 0), (0, 1), (1, 1))
    return all(abs((a * u + b * v + c) - (d * u + e * v + f)) <= STEP * (a * u + b * v + c) for u, v in corners)


def _expect_distance(name: str, what: str, expected: float, found: float, most: float) -> None:
    if not expected:
        return
    words = another_unit(found / expected)
    if not words and not 1 / most < found / expected < most:
        words = "another scale of the numbers, or another place of the camera?"
    if words:
        raise DataError(f"{name}: expected {what} {expected:.3g} m away, as in training, found {found:.3g} m: {words}")


def _window_around(foreground: Mask, frame: tuple[int, int], statistics: Statistics) -> Window:
    top, bottom, left, right = bounding_box(foreground) if statistics.window else (0, frame[0], 0, frame[1])
    side = max(statistics.window, bottom - top, right - left)
    return Window((top + bottom - side) // 2, (left + right - side) // 2, side, frame)


def _resize(image: Floats, side: int) -> Floats:
    shrinks = side < image.shape[0]
    resized = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.asarray(resized, dtype=np.float32)
