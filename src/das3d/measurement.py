"""What is measured on the training scans; it is kept with the model and used unchanged on every later scan."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from das3d.background import (
    RELATIVE_NOISE,
    SOME_BEHIND,
    STEP,
    Plane,
    PlaneFit,
    background_distance,
    fit_background,
    fit_surface,
    plane_depth,
    same_plane,
)
from das3d.errors import DataError
from das3d.foreground import (
    SMALLEST_PIECE,
    cleared_part,
    find_foreground,
    left_out_at_end,
    measured_outline,
    most_run_out,
    reaches_end,
    stands_out,
)
from das3d.masks import Pose, longer_side, pose_of
from das3d.scan import Depth, Mask, Scan
from das3d.settings import PreparationSettings
from das3d.sparse import WIDEST_GAP, dense, density

# How the part is told from what is around it: by a plane below it, by having depth at all, where somebody has cleared all
# else away, or not, as it fills the frame.
Background = Literal["plane", "cleared", "none"]

TYPICAL = 0.98  # share of the training parts that decide how large and how high parts are
WHITE = 250  # grey level; JPEG makes 250 to 255 of what is at the end of its range
LEVEL = 1e-6  # of the distance: depth that differs by no more is all the same, but for rounding
SLENDER = 1.5  # times as long as broad: windows around such parts lie along them
ONE_THINNER = 0.15  # skewness of nearly all parts along their axis, from which on one end is thinner than the other
ALIGNED = 1.3  # times as far along their axis as across it the pixels of nearly all such parts must spread, or it is chance
SQUEEZED = 3.0  # times as long as broad windows are at most: the square image of a longer one would show no more
MOST = 0.8  # share of the training scans that must show how the part is told from its background
SOME_PIXELS = 16_384  # of the frame, which tell in which steps depth comes
MANY_DEPTHS = 16  # different ones: of fewer, the steps cannot be told
BACKGROUNDS: tuple[Background, ...] = get_args(Background)  # the first that most training scans allow is taken


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
        window: side of the square window around the part in frame pixels, or its longer one; 0: the whole frame.
        breadth: the shorter side of the window where it lies along the part; 0 where it is an upright square.
        axis: how the longer axes of parts lie on the whole (`masks.Pose.axis`); windows along parts go by it. None where
            parts have a thinner end that tells.
        beside: how many times as large as the smallest part what was left out at the end of the frame as no part is
            (`foreground.left_out_at_end`), in that scan which shows most; the same ones left out.
        frame: height and width that all training scans share; None where they differ.
        near, far: depth that becomes 0 and 1, metres (from the plane where depth is levelled).
        rgb_high: grey level (0 to 255) that becomes 1.
        scans: how many scans were measured.
        area: share of the frame that the smallest part covers, those aside that are not half as large as most; 0 where
            parts cannot be told from the background. What parts of training cover in a frame of another size: `area_in`.
        missing: share of the frame without depth in that scan which lacks most; the same scans are left out.
        scene: median depth of the frames, metres.
        runs_out: whether parts run out of the frame.
        darkest, brightest: mean grey level (0 to 255, of the brightest channel) of the part in those scans that have it
            darkest and brightest, the same ones left out; 0 without RGB.
        white: share of the part that is white in that scan which has most; 1 without RGB.
        longest, largest, smallest: pixels along the longest part's bounding box, on the largest part and on the smallest,
            in the same scans; 0 where the window is the whole frame.
        density: how closely depth lies in that scan where it lies least so (`sparse.density`), the same ones left out; 0
            where there is no depth, or the networks see none.
        step: how finely depth tells heights apart in that scan where it does so least (`depth_step`), the same ones left
            out, metres; 0 where no scan tells, or the networks see no depth.
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
    darkest: float = 0.0
    brightest: float = 0.0
    white: float = 1.0
    longest: int = 0
    largest: int = 0
    density: float = 0.0
    breadth: int = 0
    axis: float | None = None
    smallest: int = 0
    beside: float = 0.0
    step: float = 0.0

    def area_in(self, size: tuple[int, int]) -> float:
        """Share of a frame of this size (height, width) that the smallest part in training would cover.

        Windows are cut out in pixels, so it is as many of them as in training; whole frames show one field in any size.
        """
        return self.smallest / math.prod(size) if self.window else self.area

    def window_sides(self, settings: PreparationSettings) -> tuple[int, int]:
        """The longer and the shorter side of the window that most scans get, frame pixels; 0 if it is the whole frame and
        frames differ.
        """
        if self.window:
            return self.window, self.breadth or self.window
        frame = self.frame or (0, 0)
        return max(frame), min(frame) if settings.squeeze else max(frame)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Statistics:
        """The way back from `to_dict`. Raises KeyError or TypeError where one is missing or unknown."""
        frame = values["frame"]
        missing = [field.name for field in fields(cls) if field.name not in values]
        if missing:
            raise KeyError(*missing)
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
        DataError: there is no scan, the members differ between scans, depth is the same everywhere, or some scans have next
            to no measured depth; these are all named.
    """
    seen = _look_at_all(scans, settings, progress)
    sizes = {one.size for one in seen}
    background = _background_shown(seen)
    used, plane = [one for one in seen if background in one.parts], (0.0, 0.0, 0.0)
    if background == "plane":
        used, plane = _on_the_usual_plane(used, settings)
    ranges = [one.parts[background] for one in used]
    fits = [one.fit for one in used if one.fit is not None] if background == "plane" else []
    runs_out = background == "plane" and most_run_out([part.runs_out for part in ranges])
    if runs_out:
        ranges = [one.running_out or part for one, part in zip(used, ranges, strict=True)]
    window, breadth, axis = 0, 0, None
    if background != "none" and settings.crop:
        along = None if runs_out else _window_along(ranges, settings)
        window, breadth, axis = along or (_window_side(ranges, sizes, settings), 0, None)
    # Windows are cut out in pixels, so parts in frames of several sizes are as large as they are in pixels.
    scales = [math.prod(one.size) if window else 1 for one in used]
    areas = [part.area * scale for part, scale in zip(ranges, scales, strict=True)]
    # What later scans are held against must not be one odd scan: a speck on an empty table, or half a part.
    half = 0.5 * float(np.median(areas))
    sound = [(one, part) for one, part, area in zip(used, ranges, areas, strict=True) if area >= half]
    smallest = min(area for area in areas if area >= half)
    beside = [part.beside * scale for part, area, scale in zip(ranges, areas, scales, strict=True) if area >= half]
    # Parts beyond the range keep their shape, so a few odd ones must not narrow what the others make of it.
    near = float(np.quantile([part.near for part in ranges], 1 - TYPICAL))
    far = float(np.quantile([part.far for part in ranges], TYPICAL))
    scene = float(np.median([one.scene for one in used]))
    if seen[0].has_depth and far - near <= LEVEL * scene:
        others = f" and {len(used) - 1} other scans" if len(used) > 1 else ""
        raise DataError(
            f"{used[0].name}{others}: expected depth that differs over the part, found {scene:.6g} m everywhere; is it "
            "depth at all, in fine enough steps? To train on RGB alone, take the depth files out of the data"
        )
    exposures = [part.exposure for _, part in sound if part.exposure is not None]
    return Statistics(
        has_rgb=seen[0].has_rgb,
        has_depth=seen[0].has_depth,
        background=background,
        plane=plane,
        distance=float(np.median([one.distance for one in used])) if fits else 0.0,
        noise=float(np.median([fit.noise for fit in fits])) if fits else 0.0,
        window=window,
        frame=sizes.pop() if len(sizes) == 1 else None,
        near=near - 0.1 * (far - near),  # room for what rises above every good part
        far=far,
        rgb_high=_high_grey_level(ranges) if settings.stretch else 255.0,
        scans=len(seen),
        area=0.0 if background == "none" else min(part.area for _, part in sound),
        missing=max(one.missing for one, _ in sound),
        scene=scene,
        runs_out=runs_out,
        darkest=min((one.brightness for one in exposures), default=0.0),
        brightest=max((one.brightness for one in exposures), default=0.0),
        white=max((one.white for one in exposures), default=1.0),
        longest=max(part.side for _, part in sound) if window else 0,
        largest=max(round(part.area * math.prod(one.size)) for one, part in sound) if window else 0,
        density=min(one.density for one, _ in sound),
        breadth=breadth,
        axis=axis,
        smallest=round(smallest) if window else 0,
        beside=max(beside) / smallest,
        step=max(part.step for _, part in sound),
    )


def _look_at_all(scans: Iterable[Scan], settings: PreparationSettings, progress: Callable[[], None]) -> list[_Look]:
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
    _expect_the_same_members(seen)
    return seen


def _expect_the_same_members(seen: list[_Look]) -> None:
    members = [" and ".join(what for what, has in (("RGB", one.has_rgb), ("depth", one.has_depth)) if has) for one in seen]
    usual = max(members, key=members.count)
    odd = [(one.name, found) for one, found in zip(seen, members, strict=True) if found != usual]
    if odd:
        raise DataError([f"{name}: expected {usual}, as other training scans have, found {found}" for name, found in odd])


def _background_shown(seen: list[_Look]) -> Background:
    # A lone failure must not change how the whole set is prepared.
    return next(kind for kind in BACKGROUNDS if sum(kind in one.parts for one in seen) >= MOST * len(seen))


def _on_the_usual_plane(seen: list[_Look], settings: PreparationSettings) -> tuple[list[_Look], Plane]:
    # The scans that say how high and large parts are, and the plane of most.
    plane = _median_plane([one.fit.plane for one in seen if one.fit is not None])
    # What lies on another plane, such as a wall that fills the border or the part itself, was not seen as it will be
    # prepared.
    alike = [one for one in seen if one.fit is not None and _is_the_usual(one.fit, plane)]
    # Depth from the camera has a range of its own on each, all of which must fit.
    return alike if settings.level and len(alike) >= MOST * len(seen) else seen, plane


def _is_the_usual(fit: PlaneFit, plane: Plane) -> bool:
    # Those that differ a little are planes of their own, unless they have more behind them than a table has.
    return same_plane(fit.plane, plane, STEP if fit.behind <= SOME_BEHIND else RELATIVE_NOISE)


def _window_side(parts: list[_Part], sizes: set[tuple[int, int]], settings: PreparationSettings) -> int:
    # Larger parts than this get a larger window of their own, so an outlier must not shrink all others.
    side = math.ceil(_with_margin([part.side for part in parts], settings))
    return 0 if side >= max(max(size) for size in sizes) else side


def _with_margin(extents: Sequence[float], settings: PreparationSettings) -> float:
    return float(np.quantile(extents, TYPICAL)) * (1 + settings.margin)


def _window_along(parts: list[_Part], settings: PreparationSettings) -> tuple[int, int, float | None] | None:
    # Length and breadth of windows that lie along the parts, and how parts lie; None where they are not long enough.
    poses = [part.pose for part in parts if part.pose is not None]
    if not settings.align or len(poses) < len(parts):
        return None
    if np.quantile([pose.slender for pose in poses], 1 - MOST) < ALIGNED:
        return None
    length = _with_margin([pose.length for pose in poses], settings)
    breadth = _with_margin([pose.breadth for pose in poses], settings)
    if length < SLENDER * breadth:
        return None
    long, broad = math.ceil(length), math.ceil(max(breadth, length / SQUEEZED))
    if np.quantile([abs(pose.skew) for pose in poses], 1 - MOST) >= ONE_THINNER:
        return long, broad, None
    doubled = np.radians([2 * pose.axis for pose in poses])  # an axis has no direction: 0 and 180 degrees are the same
    axis = math.degrees(math.atan2(np.sin(doubled).sum(), np.cos(doubled).sum())) / 2
    return long, broad, axis


def _high_grey_level(parts: list[_Part]) -> float:
    # The grey level of nearly all pixels, so that a few that glare do not darken all others.
    levels = np.zeros(256, dtype=np.int64)
    for part in parts:
        levels += part.exposure.levels if part.exposure is not None else 0
    bright = np.searchsorted(np.cumsum(levels), 0.99 * levels.sum()) if levels.sum() else 255
    return float(np.clip(bright, 16, 255))


@dataclass(frozen=True)
class Exposure:
    """How bright the part is in one scan.

    Attributes:
        levels: (256,) pixels of each grey level, that of their brightest channel.
        white: share of them that are white: all channels at the end of their range, where no difference shows.
    """

    levels: NDArray[np.int64]
    white: float

    @property
    def brightness(self) -> float:
        """Mean grey level."""
        return float(self.levels @ np.arange(256) / self.levels.sum())


@dataclass(frozen=True)
class _Part:
    """Extent of the part in one scan: side of its bounding box in pixels, share of the frame, depth range in metres,
    exposure, whether it runs out of the frame, how it lies, the share of the frame that was left out at its end, and the
    steps of its depth.
    """

    side: int
    area: float
    near: float
    far: float
    exposure: Exposure | None
    runs_out: bool = False
    pose: Pose | None = None
    beside: float = 0.0
    step: float = 0.0


@dataclass(frozen=True)
class _Look:
    """What one scan shows: the part for each way to tell it from its background that this scan allows, and, where it would
    be another on a plane if parts run out of the frame, that one.
    """

    name: str
    size: tuple[int, int]
    has_rgb: bool
    has_depth: bool
    fit: PlaneFit | None
    distance: float
    parts: dict[Background, _Part]
    missing: float = 1.0
    scene: float = 0.0
    density: float = 0.0
    running_out: _Part | None = None


def _look_at(scan: Scan, settings: PreparationSettings) -> _Look:
    height, width = scan.size
    everything = np.ones(scan.size, dtype=bool)
    if scan.depth is None or scan.valid is None:
        whole = _Part(max(height, width), 1.0, 0.0, 1.0, exposure_of(scan, everything))
        return _Look(scan.name, scan.size, scan.rgb is not None, False, None, 0.0, {"none": whole})
    if not scan.valid.any():
        raise DataError(f"{scan.name}: expected some measured depth, found none")
    closely = density(scan.valid)
    scan = dense(scan, closely)
    assert scan.depth is not None and scan.valid is not None
    if measured_outline(scan.valid) is None:
        raise DataError(
            f"{scan.name}: expected depth on {SMALLEST_PIECE} pixels that lie together at least, found it on "
            f"{scan.valid.sum()} of {scan.valid.size}; where they are more than {WIDEST_GAP} pixels apart, scale RGB and "
            "depth down"
        )
    relative = scan.depth - (plane_depth(fit_surface(scan.depth, scan.valid), scan.size) if settings.level else 0)
    extent = _range_of(relative, scan.valid)
    parts: dict[Background, _Part] = {
        "none": _Part(max(height, width), 1.0, *extent, exposure_of(scan, everything), step=depth_step(scan, everything))
    }
    if (outline := cleared_part(scan.valid)) is not None:
        parts["cleared"] = _Part(
            longer_side(outline),
            float(outline.mean()),
            *extent,
            exposure_of(scan, outline),
            pose=pose_of(outline),
            step=depth_step(scan, outline),
        )
    fit = fit_background(scan.depth, scan.valid)
    distance, running_out = 0.0, None
    if fit is not None:
        distance = background_distance(fit, settings)
        if (part := _part_above(scan, fit.plane, distance, settings)) is not None:
            parts["plane"] = part
            if part.beside:  # otherwise it is the same either way
                running_out = _part_above(scan, fit.plane, distance, settings, runs_out=True)
    missing, scene = 1 - float(scan.valid.mean()), float(np.median(scan.depth[scan.valid]))
    has_rgb = scan.rgb is not None
    return _Look(scan.name, scan.size, has_rgb, True, fit, distance, parts, missing, scene, closely, running_out)


def _part_above(
    scan: Scan, plane: Plane, distance: float, settings: PreparationSettings, *, runs_out: bool = False
) -> _Part | None:
    assert scan.depth is not None and scan.valid is not None
    exact = settings.distance_is_set
    foreground = find_foreground(scan.depth, scan.valid, plane, distance, exact=exact, runs_out=runs_out)
    surface = foreground & scan.valid
    if not stands_out(surface):
        return None
    relative = scan.depth - (plane_depth(plane, scan.size) if settings.level else 0)
    near, far = _range_of(relative, surface)
    # Levelled depth of the removed background is that of the plane itself, which no point of the part exceeds.
    return _Part(
        longer_side(foreground), float(foreground.mean()), near, 0.0 if settings.level else far,
        exposure_of(scan, foreground), reaches_end(surface, scan.valid), pose_of(foreground),
        left_out_at_end(scan.depth, scan.valid, plane, distance, foreground) / foreground.size,
        depth_step(scan, foreground),
    )  # fmt: skip


def _range_of(depth: Depth, where: Mask) -> tuple[float, float]:
    # Nearest and farthest depth on these pixels, but for the outermost thousandths and for lone pixels that fly.
    filled = np.where(where, depth, np.float32(np.median(depth[where]))).astype(np.float32)
    near, far = np.quantile(cv2.medianBlur(filled, 5)[where], (0.001, 0.999))
    return float(near), float(far)


def exposure_of(scan: Scan, where: Mask) -> Exposure | None:
    """How bright these pixels (H, W) are, of which there must be one at least; None without RGB."""
    if scan.rgb is None:
        return None
    red, green, blue = np.moveaxis(scan.rgb, 2, 0)  # channel by channel, which is many times as fast as along them
    levels = np.bincount(np.maximum(np.maximum(red, green), blue)[where], minlength=256)
    white = np.minimum(np.minimum(red, green), blue)[where] >= WHITE
    return Exposure(levels, float(white.mean()))


def depth_step(scan: Scan, where: Mask) -> float:
    """How far apart the nearest of the different depths on these pixels (H, W) lie, metres; 0 where it cannot be told.

    Of a sensor or a format that counts in steps it is the step; of finer depth next to nothing. A few depths tell nothing:
    those of a flat part and of a pocket in it lie as far apart as the pocket is deep.
    """
    if scan.depth is None or scan.valid is None:
        return 0.0
    some = slice(None, None, (where.size // SOME_PIXELS) | 1)  # an odd stride, or it may stay in one column
    depth, known = scan.depth.ravel()[some], (where.ravel()[some] & scan.valid.ravel()[some])
    depths = np.unique(depth[known])
    return float(np.quantile(np.diff(depths), 0.1)) if depths.size >= MANY_DEPTHS else 0.0


def _median_plane(planes: list[Plane]) -> Plane:
    a, b, c = np.median(np.asarray(planes), axis=0)
    return float(a), float(b), float(c)


def background_like(depth: Depth, valid: Mask, statistics: Statistics) -> PlaneFit | None:
    """The background plane of a scan (`fit_background`), with a say for the one that training scans showed."""
    fit = fit_background(depth, valid)
    if fit is None or same_plane(fit.plane, statistics.plane, RELATIVE_NOISE):
        return fit
    usual = fit_background(depth, valid, known=statistics.plane)
    if usual is None:
        return fit
    # A wall may fill more of the border than the table does. Where the table is in its place, that is what counts. A plane
    # only a little off it may be this scan's own; or it lies half on a part that fills the frame, with more behind it.
    return fit if same_plane(fit.plane, statistics.plane) and fit.behind <= usual.behind else usual
