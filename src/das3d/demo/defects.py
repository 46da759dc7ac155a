"""What can go wrong with the demo part: each defect takes a part and its surface and returns the harmed surface.

They change the shape and the material of the part, in millimetres, before anything is seen of it; the synthetic defects
of training change depth and colour of pixels that were seen already.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from das3d.demo.part import (
    BOSS,
    BOSS_RADIUS,
    CELLS,
    CORNER,
    HALF,
    LIP,
    PITCH,
    PLATE,
    Floats,
    Part,
    Surface,
    box,
    floats,
    part_coordinates,
    smooth_noise,
    surface_of,
)

Body = tuple[Floats, tuple[float, float, float], float]  # height above what it lies on, linear colour, gloss


def dent(part: Part, surface: Surface, rng: np.random.Generator) -> Surface:
    """An impact: a slightly oval spherical cap with the displaced material as a rim around it."""
    radius, depth = rng.uniform(3.2, 6.5), rng.uniform(0.8, 2.0)
    x, y = around(_spot(surface, rng, radius))
    angle, oval = rng.uniform(0, np.pi), rng.uniform(1.0, 1.25)
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    r = np.hypot(along / oval, across * oval) / radius
    change = -depth * np.maximum(1 - r**2, 0) + 0.3 * depth * np.exp(-(((r - 1.12) / 0.16) ** 2))
    return replace(surface, height=floats(surface.height + change * surface.part))


def scratch(part: Part, surface: Surface, rng: np.random.Generator) -> Surface:
    """A tool slipped: a thin curved groove that whitened the plastic, with a burr along one side."""
    line = curve(_spot(surface, rng, 3.0), rng.uniform(18, 42), rng.uniform(-0.25, 0.25), rng)
    distance, side = distance_to(line), _side(line)
    width, depth = rng.uniform(0.45, 0.75), rng.uniform(0.3, 0.7)
    pressed = _floor(surface)
    groove = np.exp(-((distance / width) ** 2)) * pressed
    burr = np.exp(-(((distance - 1.8 * width) / (0.6 * width)) ** 2)) * (side > 0) * pressed
    worn = np.clip(0.75 + 0.35 * smooth_noise(rng, 2.0), 0, 1)
    light = 0.55 * np.clip(groove * worn + 0.35 * burr, 0, 1)[..., None]
    return replace(
        surface,
        height=floats(surface.height - depth * groove + 0.6 * depth * burr),
        albedo=floats(surface.albedo + light * (0.75 - surface.albedo)),
    )


def chip(part: Part, surface: Surface, rng: np.random.Generator) -> Surface:
    """Material broken off: a bite through the plate's edge down to the table, a flake off it or off the boss."""
    x, y = part_coordinates(part)
    way, turn, size = rng.integers(3), rng.uniform(0, 2 * math.pi), rng.uniform(4.5, 7.5)
    if way < 2:
        reach = np.arange(0, 80, 0.2)
        outline = reach[np.argmax(box(reach * math.cos(turn), reach * math.sin(turn), HALF, CORNER) > 0)]
        (from_x, from_y), away = (0.0, 0.0), float(outline) + rng.uniform(0, 2)
        bottom, slope = (-25.0, 12.0) if way == 0 else (rng.uniform(2, 6), 3.5)
    else:
        (from_x, from_y), away = BOSS, BOSS_RADIUS
        bottom, slope = part.boss - rng.uniform(3, 7), 2.5
    radius = ragged(x - from_x - away * math.cos(turn), y - from_y - away * math.sin(turn), rng, 0.25)
    rough = smooth_noise(rng, 0.8)
    broken = np.maximum(bottom + np.maximum(radius - size, 0) * slope + 0.15 * rough, 0)
    height = np.where(surface.part, np.minimum(surface.height, broken), surface.height)
    fresh = surface.height - height > 0.1
    gone = fresh & (height < 0.8)
    fracture = surface.albedo * (1.4 + 0.12 * rough)[..., None] + 0.04  # paler than the moulded skin
    albedo = np.where(gone[..., None], surface.table, np.where(fresh[..., None], fracture, surface.albedo))
    gloss = np.where(gone, 0.15, np.where(fresh, 0.3, surface.gloss))
    return replace(surface, height=floats(height), albedo=floats(albedo), gloss=floats(gloss))


def stain(part: Part, surface: Surface, rng: np.random.Generator) -> Surface:
    """A dried drop: a translucent film with the dark edge that a drying liquid leaves. Colour only."""
    size = rng.uniform(5.0, 11.0)
    x, y = around(_spot(surface, rng, 4.0))
    radius = ragged(x, y, rng, 0.10)
    if rng.random() < 0.5:  # two drops that ran together
        turn = rng.uniform(0, 2 * np.pi)
        second = np.hypot(x - size * np.cos(turn), y - size * np.sin(turn))
        radius = np.minimum(radius, second + 0.35 * size)
    film = np.clip((size - radius) / 0.5, 0, 1)
    ring = np.exp(-(((radius - size + 0.9) / 0.7) ** 2))
    strength = rng.uniform(0.35, 0.8)
    colours = np.array([[0.95, 0.55, 0.20], [0.25, 0.22, 0.18], [0.75, 0.80, 0.25]], np.float32)
    colour = colours[rng.integers(len(colours))]
    cover = (np.clip(strength * (0.5 * film + 0.8 * ring * film), 0, 0.9) * _floor(surface, above=20))[..., None]
    albedo = surface.albedo * (1 - cover * (1 - 0.35 * colour)) + 0.02 * cover * colour
    gloss = surface.gloss * (1 + 0.6 * cover[..., 0])
    return replace(surface, albedo=floats(albedo), gloss=floats(gloss))


def foreign(part: Part, surface: Surface, rng: np.random.Generator) -> Surface:
    """Something lies on the part: a thread, a pellet of granulate or a bright curl of swarf."""
    above, colour, gloss = (_thread, _pellet, _swarf)[rng.integers(3)](surface, rng)
    on = (above > 0.05) & surface.part & (surface.height > 2)
    return replace(
        surface,
        height=floats(surface.height + above * on),
        albedo=floats(np.where(on[..., None], np.array(colour), surface.albedo)),
        gloss=floats(np.where(on, gloss, surface.gloss)),
    )


def _thread(surface: Surface, rng: np.random.Generator) -> Body:
    line = curve(_spot(surface, rng, 2.0), rng.uniform(25, 50), rng.uniform(-1.2, 1.2), rng)
    radius = rng.uniform(0.45, 0.7)
    above = 2 * radius * np.sqrt(np.maximum(1 - (distance_to(line) / radius) ** 2, 0))
    return floats(above), ((0.60, 0.58, 0.52), (0.50, 0.06, 0.10), (0.06, 0.06, 0.07))[rng.integers(3)], 0.2


def _pellet(surface: Surface, rng: np.random.Generator) -> Body:
    x, y = around(_spot(surface, rng, 3.0))
    radius, oval, turn = rng.uniform(1.8, 3.0), rng.uniform(1.0, 1.4), rng.uniform(0, np.pi)
    r = np.hypot((np.cos(turn) * x + np.sin(turn) * y) / oval, np.cos(turn) * y - np.sin(turn) * x) / radius
    above = 1.3 * radius * np.sqrt(np.maximum(1 - r**2, 0))
    return floats(above), ((0.55, 0.50, 0.42), (0.45, 0.05, 0.03), (0.04, 0.04, 0.04))[rng.integers(3)], 1.2


def _swarf(surface: Surface, rng: np.random.Generator) -> Body:
    line = curve(_spot(surface, rng, 3.0), rng.uniform(9, 16), rng.uniform(-5, 5), rng)
    above = rng.uniform(1.0, 2.2) * (distance_to(line) < rng.uniform(0.6, 0.9))
    return floats(above), (0.50, 0.48, 0.45), 3.0


def missing_rib(part: Part, surface: Surface, rng: np.random.Generator) -> Surface:
    """The mould did not fill: one of the six ribs is missing, or ends too early."""
    index, left = rng.integers(len(part.ribs)), 0.0 if rng.random() < 0.7 else rng.uniform(0.2, 0.4)
    return surface_of(replace(part, ribs=tuple(left if i == index else rib for i, rib in enumerate(part.ribs))))


DEFECTS: dict[str, Callable[[Part, Surface, np.random.Generator], Surface]] = {
    "chip": chip,
    "dent": dent,
    "foreign": foreign,
    "missing_rib": missing_rib,
    "scratch": scratch,
    "stain": stain,
}


# ------------------------------------------------------------------------------------------- where defects lie


def _floor(surface: Surface, above: float = PLATE + LIP + 1) -> Floats:
    # 1 on the part up to a height, fading within its edge: what a tool or a liquid on the plate reaches.
    reached = (surface.part & (surface.height > PLATE - 2) & (surface.height < above)).astype(np.float32)
    return floats(cv2.GaussianBlur(reached, (0, 0), 1.0) * reached)


def _spot(surface: Surface, rng: np.random.Generator, clearance: float) -> tuple[int, int]:
    # Row and column of a place on the open plate, `clearance` away from ribs, boss, holes and lip where there is any.
    open_plate = surface.part & (np.abs(surface.height - PLATE) < 1.2)
    return place(open_plate, rng, clearance)


def place(where: NDArray[np.generic], rng: np.random.Generator, clearance: float) -> tuple[int, int]:
    """Row and column of a point of a mask, `clearance` mm from its outline where there is any so far away."""
    distance = cv2.distanceTransform(where.astype(np.uint8), cv2.DIST_L2, 5) * PITCH
    candidates = np.flatnonzero(distance >= min(clearance, 0.9 * float(distance.max())))
    row, column = divmod(int(candidates[rng.integers(candidates.size)]), CELLS)
    return row, column


def around(spot: tuple[int, int]) -> tuple[Floats, Floats]:
    rows, columns = np.ogrid[:CELLS, :CELLS]
    return floats((columns - spot[1]) * PITCH), floats((rows - spot[0]) * PITCH)


def ragged(x: Floats, y: Floats, rng: np.random.Generator, roughness: float) -> Floats:
    # Distance from the origin, stretched and squeezed along the angle: its level sets are irregular rounds.
    turn = np.arctan2(y, x)
    waves = [roughness / np.sqrt(k) * np.cos(k * turn + rng.uniform(0, 2 * np.pi)) * rng.normal() for k in range(2, 7)]
    return floats(np.hypot(x, y) * np.clip(1 + sum(waves), 0.6, 1.6))


def curve(spot: tuple[int, int], length: float, bend: float, rng: np.random.Generator) -> NDArray[np.float64]:
    # (n, 2) columns and rows of a curve through the spot; its direction turns by `bend` radians and a little at random.
    n = 60
    heading = rng.uniform(0, 2 * np.pi) + bend * np.linspace(-0.5, 0.5, n) + np.cumsum(rng.normal(0, 0.03, n))
    steps = np.stack([np.cos(heading), np.sin(heading)], axis=1) * (length / PITCH / n)
    line = np.cumsum(steps, axis=0)
    return np.asarray(line - line[n // 2] + np.array([spot[1], spot[0]]))


def distance_to(line: NDArray[np.float64]) -> Floats:
    canvas = np.full((CELLS, CELLS), 255, np.uint8)
    cv2.polylines(canvas, [np.round(line * 16).astype(np.int32)], False, 0, 1, cv2.LINE_8, 4)
    return floats(cv2.distanceTransform(canvas, cv2.DIST_L2, 5) * PITCH)


def _side(line: NDArray[np.float64]) -> Floats:
    # Positive on one side of the chord of a line, negative on the other.
    x, y = around((round(line[0, 1]), round(line[0, 0])))
    dx, dy = line[-1] - line[0]
    return floats(dx * y - dy * x)
