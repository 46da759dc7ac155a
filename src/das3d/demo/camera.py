"""How a camera with a structured-light depth sensor sees the demo part: ideal view, then the sensor's flaws.

The camera looks at the middle of a tilted table. Its frame: x right, y down, z away from it. A point (X, Y, h), h above
the table, is at ``(X, cos t Y + sin t h, sin t Y - cos t h + DISTANCE)`` there, with t = `TILT`. Lengths are
millimetres, as in `das3d.demo.part`, until `sense` writes metres.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from das3d.demo.part import CELLS, PITCH, Bools, Floats, Surface, floats
from das3d.scan import Camera

DISTANCE = 450.0
TILT = math.radians(12.0)
CEILING, STEPS, HALVINGS = 28.5, 18, 6  # nothing is higher; layers in which a ray is followed down; refinements
SUB = 2  # rays a pixel along each axis
PROJECTOR = (-0.34, -0.05, 1.0)  # direction to the depth sensor's projector: what it does not light has no depth
NOISE, DEPTH_STEP = 0.09, 0.04  # standard deviation and smallest step of a depth at DISTANCE
VISIBLE_DEPTH, VISIBLE_COLOUR = 0.20, 0.03  # a change is ground truth from here on: mm, and share of white as displayed


@dataclass(frozen=True)
class Light:
    """A lamp far away and the room's light.

    Attributes:
        direction: unit vector to the lamp.
        strength: radiance of white facing the lamp; ambient: of white in the room's light alone.
        warmth: the lamp's colour, per channel.
        highlight: strength of the specular reflection.
    """

    direction: tuple[float, float, float]
    strength: float
    ambient: float
    warmth: tuple[float, float, float]
    highlight: float


@dataclass(frozen=True)
class Hits:
    """Where the rays of all pixels, (SUB H, SUB W), meet a surface.

    Attributes:
        depth: mm along the optical axis.
        column, row: place on the surface's grid.
        albedo: (SUB H, SUB W, 3) linear reflectance.
        part: True on the part.
    """

    depth: Floats
    column: Floats
    row: Floats
    albedo: Floats
    part: Bools


@dataclass(frozen=True)
class View:
    """What comes back along the rays, (SUB H, SUB W) each.

    Attributes:
        hits: where it comes from.
        colour: (SUB H, SUB W, 3) linear.
        facing: cosine between surface normal and ray.
        projected: share of the projector's light that arrives there.
    """

    hits: Hits
    colour: Floats
    facing: Floats
    projected: Floats


def camera_for(size: tuple[int, int]) -> Camera:
    """The pinhole camera of a picture of `size` (height, width); the shorter side always sees the same field."""
    height, width = size
    focal = 2.9 * min(size)
    return Camera(focal, focal, (width - 1) / 2, (height - 1) / 2)


def draw_light(rng: np.random.Generator) -> Light:
    """A lamp up left of the camera, as it varies from part to part."""
    azimuth, elevation = np.deg2rad(rng.uniform(205, 245)), np.deg2rad(rng.uniform(46, 58))
    brightness, warm = rng.uniform(0.92, 1.08), rng.uniform(-0.03, 0.03)
    flat = np.cos(elevation)
    return Light(
        direction=(float(flat * np.cos(azimuth)), float(flat * np.sin(azimuth)), float(np.sin(elevation))),
        strength=float(1.25 * brightness),
        ambient=float(0.55 * brightness),
        warmth=(1 + float(warm), 1.0, 1 - float(warm)),
        highlight=float(rng.uniform(0.25, 0.45)),
    )


@dataclass(frozen=True)
class _Rays:
    """Rays through a picture's pixels, (SUB H, SUB W); depth, grid column and row are linear in the height on the way.

    Attributes:
        slant: depth per mm of (cos t DISTANCE - height).
        columns, rows: steps along the grid per mm of the same.
    """

    slant: Floats
    columns: Floats
    rows: Floats

    @classmethod
    def through(cls, size: tuple[int, int]) -> _Rays:
        camera, (height, width) = camera_for(size), size
        u, v = ((np.arange(side * SUB, dtype=np.float32) + 0.5) / SUB - 0.5 for side in (width, height))
        a, b = (u[None, :] - camera.cx) / camera.fx, (v[:, None] - camera.cy) / camera.fy
        slant = np.broadcast_to(1 / (math.cos(TILT) - math.sin(TILT) * b), (height * SUB, width * SUB))
        along = (math.cos(TILT) * b + math.sin(TILT)) / PITCH
        return cls(floats(slant), floats(a * slant / PITCH), floats(along * slant))

    def depth(self, level: Floats) -> Floats:
        return floats((math.cos(TILT) * DISTANCE - level) * self.slant)

    def at(self, level: Floats | float) -> tuple[Floats, Floats]:
        """Grid column and row of every ray at a height."""
        down = math.cos(TILT) * DISTANCE - level
        middle, foot = (CELLS - 1) / 2, (CELLS - 1) / 2 - math.sin(TILT) * DISTANCE / PITCH
        return floats(self.columns * down + middle), floats(self.rows * down + foot)

    def over(self, part: Bools) -> tuple[slice, slice]:
        """The window of rays that can meet the part."""
        row, column = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
        (u0, v0), (u1, v1) = self.at(0.0), self.at(CEILING)
        across = (np.maximum(u0, u1) > column[0] - 3) & (np.minimum(u0, u1) < column[-1] + 3)
        along = (np.maximum(v0, v1) > row[0] - 3) & (np.minimum(v0, v1) < row[-1] + 3)
        rows, columns = np.flatnonzero((across & along).any(axis=1)), np.flatnonzero((across & along).any(axis=0))
        return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def meet(surface: Surface, size: tuple[int, int]) -> Hits:
    """Follow `SUB` x `SUB` rays a pixel to the surface, for a picture of `size` (height, width)."""
    rays = _Rays.through(size)
    here = rays.over(surface.part)
    level = np.zeros(rays.slant.shape, np.float32)
    level[here] = _height_met(surface.height, _Rays(rays.slant[here], rays.columns[here], rays.rows[here]))
    column, row = rays.at(level)
    on_part = _sample(surface.part, column, row) > 0.5
    return Hits(rays.depth(level), column, row, _sample(surface.albedo, column, row), on_part)


def _height_met(height: Floats, rays: _Rays) -> Floats:
    # Down layer by layer until below the surface, then halve between the last two.
    above = np.full(rays.slant.shape, CEILING, np.float32)
    free = np.ones(above.shape, dtype=bool)
    for layer in np.linspace(CEILING, 0, STEPS + 1)[1:-1].tolist():
        free &= cv2.remap(height, *rays.at(layer), cv2.INTER_LINEAR) < layer
        above[free] = layer
    below = floats(above - CEILING / STEPS)
    for _ in range(HALVINGS):
        middle = floats((above + below) / 2)
        hit = cv2.remap(height, *rays.at(middle), cv2.INTER_LINEAR) >= middle
        below, above = np.where(hit, middle, below), np.where(hit, above, middle)
    return floats(np.maximum((above + below) / 2, 0))


def look(surface: Surface, hits: Hits, light: Light) -> View:
    """The light that comes back along the rays that met the surface."""
    normal, to_camera = _normals(surface.height), _to_camera()
    colour = _shade(surface, light, normal, to_camera)
    projected = 1 - _shadow(surface.height, PROJECTOR, softness=0.4)
    layers = (colour, _cosine(normal, to_camera), projected)
    return View(hits, *(_sample(layer, hits.column, hits.row) for layer in layers))


def _sample(layer: NDArray[np.generic], column: Floats, row: Floats) -> Floats:
    # The table goes on beyond the grid, as its mirror image.
    values = layer.astype(np.float32, copy=False)
    return floats(cv2.remap(values, column, row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT))


def _normals(height: Floats) -> Floats:
    dx = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3, scale=1 / (8 * PITCH))
    dy = cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3, scale=1 / (8 * PITCH))
    return _unit(floats(-dx), floats(-dy), np.ones_like(height))


@cache
def _to_camera() -> Floats:
    # From the plane of the table: the part is flat beside the camera's distance.
    axis = ((np.arange(CELLS) - (CELLS - 1) / 2) * PITCH).astype(np.float32)
    x, y = np.meshgrid(-axis, -axis - math.sin(TILT) * DISTANCE)
    return _unit(x, y, np.full_like(x, math.cos(TILT) * DISTANCE))


def _unit(x: Floats, y: Floats, up: Floats) -> Floats:
    return floats(cv2.merge([x, y, up]) / np.sqrt(x * x + y * y + up * up)[..., None])


def _cosine(a: Floats, b: Floats) -> Floats:
    return floats(np.einsum("ijk,ijk->ij", a, b))


def _shade(surface: Surface, light: Light, normal: Floats, to_camera: Floats) -> Floats:
    # Lambert and Blinn-Phong under one lamp with cast shadows, in a room whose light reaches less into corners.
    direction = np.array(light.direction, np.float32)
    lit = 1 - _shadow(surface.height, light.direction, softness=1.5)
    lambert = np.maximum(normal @ direction, 0) * lit
    deeper = np.maximum(cv2.GaussianBlur(surface.height, (0, 0), 3.0 / PITCH) - surface.height, 0)
    room = (0.6 + 0.4 * normal[..., 2]) * np.exp(-0.12 * deeper)
    half = to_camera + direction
    shine = np.maximum(_cosine(normal, half) / np.sqrt(_cosine(half, half)), 0) ** 32 * lit
    warmth = np.array(light.warmth, np.float32)
    lamp = light.strength * lambert[..., None] * warmth
    colour = surface.albedo * (lamp + light.ambient * room[..., None])
    return floats(colour + (light.highlight * surface.gloss * shine)[..., None] * warmth)


def _shadow(height: Floats, direction: tuple[float, float, float], *, softness: float) -> Floats:
    # 0 lit to 1 shadowed, by walking from every point towards the light; `softness`: mm over which a shadow fades.
    coarse = cv2.resize(height, (CELLS // 2, CELLS // 2), interpolation=cv2.INTER_AREA)
    flat = float(np.hypot(direction[0], direction[1]))
    step = 0.7  # mm along the table
    excess = np.full_like(coarse, -1e3)
    for k in range(1, int(CEILING * flat / direction[2] / step) + 1):
        dx, dy = (k * step / flat / (2 * PITCH)) * direction[0], (k * step / flat / (2 * PITCH)) * direction[1]
        move = np.array([[1, 0, -dx], [0, 1, -dy]], np.float32)
        towards = cv2.warpAffine(coarse, move, coarse.shape[::-1])
        excess = np.maximum(excess, towards - np.float32(k * step * direction[2] / flat))
    excess = cv2.resize(excess, (CELLS, CELLS), interpolation=cv2.INTER_LINEAR) - height
    return floats(np.clip(excess / softness, 0, 1))


def sense(view: View, rng: np.random.Generator) -> tuple[NDArray[np.uint8], Floats]:
    """What the sensors deliver: RGB (H, W, 3) uint8 and points (H, W, 3) float32, metres, (0, 0, 0) where missing."""
    size = (view.hits.depth.shape[0] // SUB, view.hits.depth.shape[1] // SUB)
    linear = cv2.GaussianBlur(_mean(view.colour), (0, 0), 0.55)
    grain = rng.standard_normal(linear.shape, dtype=np.float32) * (0.004 + 0.006 * np.sqrt(linear))
    rgb = np.clip(_displayed(np.clip(linear, 0, 1)) + grain, 0, 1) * 255

    depth, spread = _mean(view.hits.depth), _extent(view.hits.depth)
    relative = depth / np.float32(DISTANCE)
    noise = rng.standard_normal(size, dtype=np.float32)
    noise = 0.6 * noise + cv2.GaussianBlur(rng.standard_normal(size, dtype=np.float32), (0, 0), 1.2) * 2.5
    depth = depth + np.float32(NOISE) * relative**2 * noise
    # Triangulation measures a disparity, so the steps of depth grow with its square as the noise does.
    steps = DISTANCE**2 / DEPTH_STEP
    depth = (steps / np.round(steps / depth)).astype(np.float32)

    lost = 0.002 + 0.015 * (1 - _mean(view.hits.part.astype(np.float32)))  # the dark table answers weakly
    lost = lost + 0.85 * np.clip((spread - 1.0) / 2.0, 0, 1) + 0.9 * np.clip((0.35 - _mean(view.facing)) / 0.2, 0, 1)
    lost = lost + 0.98 * (1 - _mean(view.projected)) + 0.5 * (linear.min(axis=2) > 0.92)
    clumped = cv2.GaussianBlur(rng.standard_normal(size, dtype=np.float32), (0, 0), 0.6)
    missing = clumped / clumped.std() < ndtri(np.clip(lost, 1e-6, 0.995))
    camera = camera_for(size)
    z = np.where(missing, 0, depth / 1000)
    u, v = np.arange(size[1]) - camera.cx, np.arange(size[0]) - camera.cy
    points = np.dstack([z * u[None, :] / camera.fx, z * v[:, None] / camera.fy, z])
    return np.round(rgb).astype(np.uint8), points.astype(np.float32)


def changed(good: Hits, harmed: Hits) -> Bools:
    """Ground truth (H, W): where the part itself, not its light or shadow, looks or stands visibly different."""
    deeper = np.abs(harmed.depth - good.depth) > VISIBLE_DEPTH
    colour = np.abs(_displayed(harmed.albedo) - _displayed(good.albedo)).max(axis=2) > VISIBLE_COLOUR
    seen = _mean(((deeper | colour) & (good.part | harmed.part)).astype(np.float32)) > 0
    closed = cv2.morphologyEx(seen.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    _, labels, boxes, _ = cv2.connectedComponentsWithStats(closed, connectivity=8)
    return np.asarray((boxes[:, cv2.CC_STAT_AREA] >= 4)[labels] & (labels > 0))


def _displayed(linear: Floats) -> Floats:
    return floats(linear ** np.float32(1 / 2.2))


def _mean(layer: Floats) -> Floats:
    # Of the rays of each pixel.
    size = (layer.shape[1] // SUB, layer.shape[0] // SUB)
    return floats(cv2.resize(layer, size, interpolation=cv2.INTER_AREA))


def _extent(layer: Floats) -> Floats:
    # Largest less smallest of the rays of each pixel.
    rays = [layer[i::SUB, j::SUB] for i in range(SUB) for j in range(SUB)]
    return floats(np.maximum.reduce(rays) - np.minimum.reduce(rays))
