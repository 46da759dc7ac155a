"""Scenes with known truth: solids on a tilted table before a pinhole camera, met by rays in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from das3d.scan import Camera, Scan, scan_from_arrays


@dataclass(frozen=True)
class Box:
    """x0, x1, y0, y1 on the table and height, metres."""

    x0: float
    x1: float
    y0: float
    y1: float
    height: float

    def depth(self, eye: NDArray[np.float64], rays: NDArray[np.float64]) -> NDArray[np.float64]:
        low, high = np.array([self.x0, self.y0, 0.0]), np.array([self.x1, self.y1, self.height])
        with np.errstate(divide="ignore"):
            one, other = (low - eye) / rays, (high - eye) / rays
        first, last = np.minimum(one, other).max(axis=-1), np.maximum(one, other).min(axis=-1)
        return np.where(first < last, first, np.inf)


@dataclass(frozen=True)
class Dome:
    """Half a sphere that lies on the table: centre and radius, metres."""

    x: float
    y: float
    radius: float

    def depth(self, eye: NDArray[np.float64], rays: NDArray[np.float64]) -> NDArray[np.float64]:
        centre = np.array([self.x, self.y, 0.0]) - eye
        a, b = (rays**2).sum(axis=-1), rays @ centre
        inside = b**2 - a * (centre @ centre - self.radius**2)
        return np.where(inside > 0, (b - np.sqrt(np.maximum(inside, 0))) / a, np.inf)


COVER = (Box(-0.055, 0.045, -0.035, 0.035, 0.02), Dome(-0.01, 0.0, 0.034))
FILLING = (Dome(0, 0.03, 0.2),)
SEVERAL = (Dome(-0.05, -0.03, 0.02), Dome(0.05, -0.03, 0.02), Box(-0.02, 0.02, 0.01, 0.05, 0.02))


@dataclass(frozen=True)
class Scene:
    """What the camera sees: all (H, W), metres. `part`: where a solid is met; `table`: depth of the table alone."""

    depth: NDArray[np.float64]
    table: NDArray[np.float64]
    part: NDArray[np.bool_]
    rgb: NDArray[np.uint8]
    camera: Camera

    @property
    def points(self) -> NDArray[np.float64]:
        v, u = np.indices(self.depth.shape)
        x, y = (u - self.camera.cx) / self.camera.fx, (v - self.camera.cy) / self.camera.fy
        return np.stack([x * self.depth, y * self.depth, self.depth], axis=-1)

    def scan(self, name: str = "scene") -> Scan:
        return scan_from_arrays(self.rgb, self.depth, mask=self.part, name=name)


@dataclass(frozen=True)
class View:
    """How the camera looks: height and width in pixels, tilts of the table about x and y in degrees, distance in metres."""

    size: tuple[int, int] = (150, 180)
    tilt: float = 18.0
    roll: float = 4.0
    distance: float = 0.6
    focal: float = 500.0
    noise: float = 0.0003
    seed: int = 0
    table: tuple[int, int, int] = (60, 55, 50)
    solids: tuple[Box | Dome, ...] = field(default=COVER)


def see(view: View | None = None, **changes: object) -> Scene:
    """Render a scene; `changes` are fields of `View`."""
    view = view or View(**changes)  # type: ignore[arg-type]
    height, width = view.size
    camera = Camera(view.focal, view.focal, (width - 1) / 2, (height - 1) / 2)
    v, u = np.indices(view.size)
    rays = np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones(view.size)], axis=-1)
    # The table's frame: x and y along it, z up towards the camera; rows are its axes in the camera's frame.
    tilt, roll = math.radians(view.tilt), math.radians(view.roll)
    about_x = np.array([[1, 0, 0], [0, math.cos(tilt), math.sin(tilt)], [0, math.sin(tilt), -math.cos(tilt)]])
    about_y = np.array([[math.cos(roll), 0, math.sin(roll)], [0, 1, 0], [-math.sin(roll), 0, math.cos(roll)]])
    axes = about_x @ about_y
    eye, rays = axes @ np.array([0, 0, -view.distance]), rays @ axes.T  # a ray's parameter is its depth
    with np.errstate(divide="ignore"):
        table = np.where(rays[..., 2] < 0, -eye[2] / rays[..., 2], np.inf)
    depth, part = table.copy(), np.zeros(view.size, dtype=bool)
    for solid in view.solids:
        met = solid.depth(eye, rays)
        part |= met < depth
        depth = np.minimum(depth, met)
    rng = np.random.default_rng(view.seed)
    colour = np.where(part[..., None], np.array([150, 120, 90]), np.array(view.table))
    rgb = np.clip(colour + rng.normal(0, 4, colour.shape), 0, 255).astype(np.uint8)
    depth = depth + view.noise * rng.normal(size=view.size)
    return Scene(depth, table, part, rgb, camera)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def with_holes(scene: Scene, holes: np.ndarray, value: float = 0.0) -> Scan:
    return scan_from_arrays(scene.rgb, np.where(holes, value, scene.depth), mask=scene.part, name="holes")


def unmeasured(name: str, size: tuple[int, int]) -> Scan:
    return Scan(name, np.zeros((*size, 3), np.uint8), np.zeros(size, np.float32), np.zeros(size, bool))
