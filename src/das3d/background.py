"""The plane that a part lies on: where it is, how noisy, and what is far enough above it.

Only depth and pixel positions are used, never x and y, so a scan gives the same result as XYZ points and as a depth image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from das3d.masks import bounding_box
from das3d.scan import Depth, Mask
from das3d.settings import PreparationSettings

Plane = tuple[float, float, float]

BORDER = 10  # pixels; the strip along the frame on which the background plane is looked for (BTF, M3DM)
HYPOTHESES = 300
RELATIVE_NOISE = 0.003  # of the distance: points this close to a hypothesis agree with it; 2 mm at 0.65 m
MIN_SUPPORT = 0.35  # share of the strip that must lie on the plane for it to be believed
MEASURED = 0.7  # share of either side of the frame that was measured, where its border is taken for that of the scene
SAMPLE = 4000  # measured points that tell how many lie behind a plane
MOST_BEHIND = 0.05  # share of the measured points behind a plane: a table hides what is below, so with more it is none
SOME_BEHIND = 0.01  # with more than this, a plane with fewer is looked for: it may lie through the part and the table
STEP = 0.05  # of the distance: what stands before a wall ends in a step like that, and planes so far apart are two things


@dataclass(frozen=True)
class PlaneFit:
    """A plane in front of a pinhole camera: 1/z = a u/W + b v/H + c at pixel (u, v) of a W x H frame.

    Inverse depth is linear in pixel coordinates for every plane, whatever the intrinsics, so none are needed.

    Attributes:
        plane: (a, b, c), 1/metres.
        support: share of the measured border pixels that lie on the plane.
        noise: robust standard deviation of those around it, metres along the optical axis.
        behind: share of all measured points that lie behind it.
    """

    plane: Plane
    support: float
    noise: float
    behind: float = 0.0


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

    def refined(plane: NDArray[Any]) -> PlaneFit | None:
        fit = _refined(plane, rows, z)
        return fit and replace(fit, behind=float(behind(np.array([fit.plane]))[0]))

    if known is not None:
        fit = refined(np.array(known))
        return fit if fit is not None and fit.behind <= MOST_BEHIND else None

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
    fit = refined(planes[np.argmax(support)])
    # Where a part covers much of the strip, a plane through it and the table may have more support than the table alone.
    # But it has points behind it.
    if fit is None or fit.behind <= SOME_BEHIND:
        return fit
    other = refined(planes[np.argmax(support - behind(planes))])
    return fit if other is None or other.behind > fit.behind / 2 else other


def _border(valid: Mask) -> Mask:
    # The strip along the frame, or, as many sensors measure nothing there, along what was measured. Where that is the part
    # alone, without any table around it, its own outline is no border.
    height, width = valid.shape
    whole = strip_within(valid.shape, 0, height, 0, width)
    if not valid.any():
        return whole
    top, bottom, left, right = bounding_box(valid)
    if bottom - top < MEASURED * height or right - left < MEASURED * width:
        return whole
    strip = strip_within(valid.shape, top, bottom, left, right)
    return strip if valid[strip].mean() > 0.5 else whole


def strip_within(size: tuple[int, ...], top: int, bottom: int, left: int, right: int) -> Mask:
    """The strip just within a rectangle of the frame, `BORDER` pixels wide or a quarter of the rectangle."""
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
    # Tells of planes (N, 3) which share (N,) of the measured points lies behind each. A few thousand points say it,
    # drawn by chance: those on a grid may all be missing.
    height, width = depth.shape
    measured = np.flatnonzero(valid)
    drawn = np.random.default_rng(0).choice(measured.size, min(measured.size, SAMPLE), replace=False)
    v, u = np.divmod(measured[drawn], width)
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


def background_distance(fit: PlaneFit, settings: PreparationSettings) -> float:
    """Metres that a point must rise above the plane to belong to the part: as set, or five times the noise."""
    return settings.background_distance or max(5 * fit.noise, RELATIVE_NOISE * depth_at_centre(fit.plane))


def depth_at_centre(plane: Plane) -> float:
    """Depth of a plane in the middle of the frame, metres."""
    return 1.0 / (plane[0] / 2 + plane[1] / 2 + plane[2])


def same_plane(one: Plane, other: Plane, tolerance: float = STEP) -> bool:
    """Whether two planes lie as far away all over the frame, but for this share of the distance."""
    (a, b, c), (d, e, f) = one, other
    corners = ((0, 0), (1, 0), (0, 1), (1, 1))
    return all(abs((a * u + b * v + c) - (d * u + e * v + f)) <= tolerance * (a * u + b * v + c) for u, v in corners)
