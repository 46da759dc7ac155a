"""What one scan is like, in numbers with units: the part's size, its missing points, the plane below it, light, noise.

`facts_of` looks at a part on disk once and keeps nothing of its size, so that data sets of any length fit into memory.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from das3d.background import background_distance, fit_background, fit_surface, plane_depth
from das3d.datacheck.alignment import Alignment, align
from das3d.errors import DataError
from das3d.foreground import cleared_part, find_foreground, reaches_end, stands_out
from das3d.parts import Part
from das3d.scan import Mask, Scan
from das3d.settings import PreparationSettings, Settings
from das3d.sparse import dense
from das3d.window import Floats

THUMBNAIL = 48  # pixels; sides of what near-duplicates are told by


@dataclass(frozen=True)
class Facts:
    """What was measured on one scan. None where the scan has no such member, or the networks will not see it, or where it
    cannot be told.

    Attributes:
        part: which.
        error: why it could not be read, else "". Nothing else is known then, except perhaps the distance.
        size: height and width, pixels.
        missing: share of the frame without depth.
        ceiling: depth, metres, that many pixels share and that no other comes near: perhaps a number for "not measured".
        missing_on_part: share of the part without depth.
        distance: median depth of the frame, metres.
        plane_support, plane_noise: of the background plane (share of the border on it; metres); None without a plane.
        surface_noise: robust standard deviation of depth from its neighbours on the part, metres.
        area: share of the frame that shows the part.
        runs_out: whether the part reaches the end of what was measured.
        length_px, width_px: sides of the smallest rectangle around the part, pixels.
        length, width: of the smallest rectangle around the part as seen along the optical axis, metres; needs XYZ.
        height: from the plane to the nearest 1 % of the part (without a plane: the depth range of the frame), metres.
        brightness: mean of the brightest channel on the part, grey levels.
        colour: mean a and b of CIELAB on the part.
        sharpness: log10 of the variance of the Laplacian of RGB on the part.
        alignment: of RGB and depth.
        odd_colour, odd_shape: oddness of the oddest place beside the other good parts (`novelty`); None until compared.
        odd_colour_at, odd_shape_at: where that is, right and down in frame pixels.
        rgb_hash, depth_hash: of the pixels, whatever the file format.
        rgb_thumbnail, depth_thumbnail: (T, T, 3) grey levels; (T, T) metres, NaN where missing.
    """

    part: Part
    error: str = ""
    size: tuple[int, int] | None = None
    missing: float | None = None
    ceiling: float | None = None
    missing_on_part: float | None = None
    distance: float | None = None
    plane_support: float | None = None
    plane_noise: float | None = None
    surface_noise: float | None = None
    area: float | None = None
    runs_out: bool | None = None
    length_px: float | None = None
    width_px: float | None = None
    length: float | None = None
    width: float | None = None
    height: float | None = None
    brightness: float | None = None
    colour: tuple[float, float] | None = None
    sharpness: float | None = None
    alignment: Alignment | None = None
    odd_colour: float | None = None
    odd_shape: float | None = None
    odd_colour_at: tuple[int, int] | None = None
    odd_shape_at: tuple[int, int] | None = None
    rgb_hash: str | None = None
    depth_hash: str | None = None
    rgb_thumbnail: Floats | None = None
    depth_thumbnail: Floats | None = None


def facts_of(part: Part, settings: Settings, *, runs_out: bool = False) -> Facts:
    """Look at one part, if `runs_out` one of those that run out of the frame; what is wrong with its files is `error`.

    RGB that the networks will not see is not read. Depth that they will not see tells where the part is, and no more.
    """
    try:
        facts = measured(part, part.read(rgb=settings.uses_rgb), settings.preparation, runs_out=runs_out)
    except DataError as error:
        return Facts(part, error=str(error).replace("\n", "; "), distance=_beyond_reading(part))
    return facts if settings.uses_depth else replace(facts, missing_on_part=None, surface_noise=None, height=None)


def measured(part: Part, scan: Scan, settings: PreparationSettings, *, runs_out: bool = False) -> Facts:
    """Facts of a scan that was read. Raises DataError where it has no measured depth."""
    facts = Facts(part, size=scan.size)
    foreground = np.ones(scan.size, dtype=bool)
    if scan.depth is not None and scan.valid is not None:
        facts, foreground = _of_depth(facts, scan, settings, runs_out)
    if scan.rgb is not None:
        facts = _of_rgb(facts, scan, foreground)
    return facts


def _beyond_reading(part: Part) -> float | None:
    # A file in millimetres among files in metres is refused as too far away; how far it says to be is worth knowing.
    if part.depth is None:
        return None
    for factor in (1e-3, 1e-6):
        form = part.depth_format
        less = replace(form, scale=form.scale * factor, offset=form.offset * factor) if form else None
        scaled = replace(part, depth_format=less)
        try:
            scan = scaled.read(rgb=False)
        except DataError:
            continue
        if scan.depth is not None and scan.valid is not None:
            return float(np.median(scan.depth[scan.valid])) / factor
    return None


def _of_depth(facts: Facts, scan: Scan, settings: PreparationSettings, runs_out: bool) -> tuple[Facts, Mask]:
    frame, scan = _of_frame(scan), dense(scan)  # as preparation sees it
    frame["depth_thumbnail"] = _depth_thumbnail(scan)
    assert scan.depth is not None and scan.valid is not None
    fit = fit_background(scan.depth, scan.valid)
    foreground = np.ones(scan.size, dtype=bool)
    if fit is not None:
        distance = background_distance(fit, settings)
        exact = settings.distance_is_set
        foreground = find_foreground(scan.depth, scan.valid, fit.plane, distance, exact=exact, runs_out=runs_out)
    elif (outline := cleared_part(scan.valid)) is not None:
        foreground = outline
    plane = fit.plane if fit is not None else fit_surface(scan.depth, scan.valid)
    relief = scan.depth - plane_depth(plane, scan.size)
    surface = foreground & scan.valid
    if fit is not None and not stands_out(surface):  # a plane and nothing on it but specks of noise
        return replace(facts, **frame, plane_support=fit.support, area=0.0), foreground
    nearest, farthest = np.quantile(relief[surface], (0.01, 0.99))
    length_px, width_px, length, width = _sides(scan, foreground, surface)
    seen = align(scan.rgb, relief, scan.valid, foreground) if scan.rgb is not None else None
    return replace(
        facts,
        **frame,
        missing_on_part=float(1 - surface.sum() / foreground.sum()),
        plane_support=fit.support if fit else None,
        plane_noise=fit.noise if fit else None,
        surface_noise=_noise(relief, surface),
        area=float(foreground.mean()),
        runs_out=reaches_end(surface, scan.valid) if fit else None,
        length_px=length_px,
        width_px=width_px,
        length=length,
        width=width,
        height=float(-nearest if fit else farthest - nearest),
        alignment=seen,
    ), foreground


def _of_frame(scan: Scan) -> dict[str, Any]:
    assert scan.depth is not None and scan.valid is not None
    return {
        "missing": float(1 - scan.valid.mean()),
        "ceiling": _ceiling(scan.depth[scan.valid]),
        "distance": float(np.median(scan.depth[scan.valid])),
        "depth_hash": hashlib.sha256(np.ascontiguousarray(scan.depth).tobytes()).hexdigest(),
    }


def _depth_thumbnail(scan: Scan) -> Floats:
    assert scan.depth is not None and scan.valid is not None
    known = cv2.resize(scan.valid.astype(np.float32), (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    depth = cv2.resize(scan.depth, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    return np.where(known > 0.5, depth / np.maximum(known, 1e-6), np.nan).astype(np.float32)


def _ceiling(depths: Floats) -> float | None:
    highest = depths.max()
    below = depths[depths < highest]
    alone = below.size > 0 and below.max() < 0.9 * highest
    return float(highest) if alone and (depths == highest).mean() > 0.002 else None


def _sides(scan: Scan, foreground: Mask, surface: Mask) -> tuple[float, float, float | None, float | None]:
    v, u = np.nonzero(foreground)
    long_px, short_px = _rectangle(u, v)
    if scan.camera is None or scan.depth is None:
        return long_px + 1, short_px + 1, None, None
    v, u = np.nonzero(surface)
    z = scan.depth[v, u].astype(np.float64)
    long, short = _rectangle((u - scan.camera.cx) / scan.camera.fx * z, (v - scan.camera.cy) / scan.camera.fy * z)
    return long_px + 1, short_px + 1, long, short


def _rectangle(x: NDArray[np.number], y: NDArray[np.number]) -> tuple[float, float]:
    # OpenCV counts in float32, which is finer around the middle.
    points = np.stack([x - np.mean(x), y - np.mean(y)], axis=1).astype(np.float32)
    sides = cv2.minAreaRect(points)[1]
    return float(max(sides)), float(min(sides))


def _noise(relief: Floats, surface: Mask) -> float | None:
    # The difference between a pixel and the mean of its four neighbours has 1.25 times the variance of the noise.
    inner = cv2.erode(surface.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    if inner.sum() < 50:
        return None
    kernel = np.array([[0, -0.25, 0], [-0.25, 1, -0.25], [0, -0.25, 0]])
    difference = cv2.filter2D(np.where(surface, relief, 0).astype(np.float64), -1, kernel)[inner]
    return 1.4826 * float(np.median(np.abs(difference))) / math.sqrt(1.25)


def _of_rgb(facts: Facts, scan: Scan, foreground: Mask) -> Facts:
    assert scan.rgb is not None
    shown = foreground if foreground.any() else np.ones(scan.size, dtype=bool)
    lab = cv2.cvtColor(scan.rgb.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    grey = cv2.GaussianBlur(scan.rgb.max(axis=2).astype(np.float32), (0, 0), 1.0)  # else noise counts as sharp
    inner = cv2.erode(shown.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    detail = cv2.Laplacian(grey, cv2.CV_32F)[inner if inner.any() else shown]
    thumbnail = cv2.resize(scan.rgb.astype(np.float32), (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    return replace(
        facts,
        brightness=float(scan.rgb.max(axis=2)[shown].mean()),
        colour=(float(lab[..., 1][shown].mean()), float(lab[..., 2][shown].mean())),
        sharpness=float(np.log10(max(float(detail.var()), 1e-3))),
        rgb_hash=hashlib.sha256(np.ascontiguousarray(scan.rgb).tobytes()).hexdigest(),
        rgb_thumbnail=np.asarray(thumbnail, dtype=np.float32),
    )
