"""The demo part: a moulded cover with boss, ribs, countersunk holes, an embossed mark and a printed label.

A part is drawn first, as a `Part` of plain numbers; `surface_of` then builds it on a grid. Lengths are millimetres: x
to the right, y down, height up from the table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Point = tuple[float, float]

CELLS = 512
PITCH = 0.36  # mm; the grid covers all of the table that the camera sees
PLATE, HALF, CORNER = 9.0, (54.0, 33.0), 13.0  # thickness, half sides, corner radius
LIP = 2.0  # height of the rim around the plate
BOSS, BOSS_RADIUS, BORE_RADIUS, BORE_FLOOR = (-22.0, 0.0), 16.0, 8.5, 6.0
HOLES = ((-44.5, -23.5), (44.5, -23.5), (-44.5, 23.5), (44.5, 23.5))
RIB_ANGLES = tuple(math.radians(60 * k) for k in range(6))
LABEL, LABEL_SIZE = (25.0, -8.0), (33.0, 21.0)
MARK, MARK_SIZE = (24.0, 16.5), (26.0, 11.0)
PLASTIC = np.array([0.13, 0.25, 0.31], np.float32)  # linear reflectance
TABLE = np.array([0.050, 0.046, 0.042], np.float32)


@dataclass(frozen=True)
class Part:
    """How one part differs from the drawing, and how it lies.

    Attributes:
        place: centre on the table.
        angle: turn in the plane of the table, radians.
        scale: shrinkage of the mould.
        lean: slope of the part along x and y: it never lies quite flat.
        bow: height of the plate's ends above its middle.
        boss: height of the boss.
        ribs: length of each of the six ribs, 1 as drawn, 0 missing.
        rib_width: half width of the ribs.
        label: where the label sits off its place; label_angle: its turn, radians.
        tint: factor on the plastic's colour, per channel.
        texture: seed of grain, flow marks, dust and the table's pattern.
    """

    place: Point
    angle: float
    scale: float
    lean: Point
    bow: float
    boss: float
    ribs: tuple[float, ...]
    rib_width: float
    label: Point
    label_angle: float
    tint: tuple[float, float, float]
    texture: int


@dataclass(frozen=True)
class Surface:
    """The table with a part on it, on a grid of `CELLS` x `CELLS` points `PITCH` apart, the origin in the middle.

    Attributes:
        height: above the table.
        albedo: (CELLS, CELLS, 3) linear reflectance.
        gloss: strength of the highlight, 1 for the bare plastic.
        part: True on the part and what lies on it.
        table: (CELLS, CELLS, 3) albedo of the table, also where the part hides it.
    """

    height: Floats
    albedo: Floats
    gloss: Floats
    part: Bools
    table: Floats


def draw_part(rng: np.random.Generator) -> Part:
    """A good part, within the tolerances of its production."""

    def around(deviation: float, *, limit: float = 2.0) -> float:
        return deviation * float(np.clip(rng.standard_normal(), -limit, limit))

    brightness = around(0.04)
    return Part(
        place=(float(rng.uniform(-6, 6)), float(rng.uniform(-6, 6))),
        angle=float(np.deg2rad(rng.uniform(-20, 20))),
        scale=1 + around(0.006),
        lean=(around(0.003), around(0.003)),
        bow=around(0.15),
        boss=26 + around(0.2),
        ribs=tuple(1 + around(0.02) for _ in RIB_ANGLES),
        rib_width=1.6 + around(0.06),
        label=(around(0.8), around(0.6)),
        label_angle=float(np.deg2rad(around(1.5))),
        tint=(1 + brightness + around(0.02), 1 + brightness + around(0.02), 1 + brightness + around(0.02)),
        texture=int(rng.integers(1 << 32)),
    )


def part_coordinates(part: Part) -> tuple[Floats, Floats]:
    """Coordinates x and y of every grid point in the frame of the part's drawing."""
    axis = ((np.arange(CELLS) - (CELLS - 1) / 2) * PITCH).astype(np.float32)
    dx, dy = axis[None, :] - part.place[0], axis[:, None] - part.place[1]
    cos, sin = math.cos(part.angle) / part.scale, math.sin(part.angle) / part.scale
    return cos * dx + sin * dy, cos * dy - sin * dx


def surface_of(part: Part) -> Surface:
    """Build the part on its table."""
    rng = np.random.default_rng(part.texture)
    table = draw_table(rng)
    flow, grain, dust = smooth_noise(rng, 30.0), smooth_noise(rng, 0.5), 0.12 * _dust(rng)[..., None]
    surface = Surface(
        height=np.zeros((CELLS, CELLS), np.float32),
        albedo=table + dust,
        gloss=np.full((CELLS, CELLS), 0.15, np.float32),
        part=np.zeros((CELLS, CELLS), dtype=bool),
        table=table,
    )
    x, y = part_coordinates(part)
    here = _window(x, y)  # the rest is table: no need to work on it
    x, y, flow, grain, dust = x[here], y[here], flow[here], grain[here], dust[here]

    edge = box(x, y, HALF, CORNER)  # distance from the plate's outline, negative inside
    inside = edge < 0
    label, label_on = _label(part, x, y)
    height = _shape(part, x, y, edge) + 0.12 * label_on
    solid = inside & (height > 1)
    height += (part.lean[0] * x + part.lean[1] * y + part.bow * ((x / HALF[0]) ** 2 - 0.3)) * solid
    height = cv2.GaussianBlur(np.where(inside, height, np.float32(0)), (0, 0), 0.32 / PITCH)
    plastic = PLASTIC * np.array(part.tint, np.float32) * (1 + 0.03 * flow + 0.03 * grain)[..., None]
    plastic += label_on[..., None] * (label - plastic)

    surface.height[here] = height + 0.012 * grain * solid
    surface.albedo[here][solid] = (plastic + dust)[solid]
    surface.gloss[here][solid] = 1 - 0.5 * label_on[solid]
    surface.part[here] = inside
    return surface


def draw_table(rng: np.random.Generator) -> Floats:
    """Albedo (CELLS, CELLS, 3) of the table."""
    return floats(TABLE * np.exp(0.3 * smooth_noise(rng, 0.6) + 0.12 * smooth_noise(rng, 12.0))[..., None])


def _window(x: Floats, y: Floats) -> tuple[slice, slice]:
    near = (np.abs(x) < HALF[0] + 3) & (np.abs(y) < HALF[1] + 3)
    rows, columns = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _shape(part: Part, x: Floats, y: Floats, edge: Floats) -> Floats:
    height = PLATE * np.clip(0.15 - edge / 0.8, 0, 1)  # walls lean a little, so that the mould opens
    height = height + LIP * np.clip(np.minimum(-edge / 1.2, (edge + 3.6) / 0.8), 0, 1)
    dx, dy = x - BOSS[0], y - BOSS[1]
    from_boss = np.sqrt(dx**2 + dy**2)
    for angle, length in zip(RIB_ANGLES, part.ribs, strict=True):
        along = math.cos(angle) * dx + math.sin(angle) * dy
        across = np.abs(math.cos(angle) * dy - math.sin(angle) * dx)
        end = BOSS_RADIUS - 2 + 13 * length
        slope = part.boss - 4 - 0.85 * (along - BOSS_RADIUS)
        beyond = np.maximum(across - part.rib_width, np.maximum(along - end, -along))
        height = _smooth_max(height, floats(slope - 7 * np.maximum(beyond, 0) - 0.12 * across**2), 1.2)
    boss = part.boss - 9 * np.maximum(from_boss - BOSS_RADIUS, 0)
    boss = boss - np.maximum(BORE_RADIUS + 1.5 - from_boss, 0)  # chamfer of the bore
    height = np.where(from_boss < BOSS_RADIUS, boss, _smooth_max(height, floats(boss), 2.0))
    height = np.where(from_boss < BORE_RADIUS, np.float32(BORE_FLOOR), height)
    for hole in HOLES:
        radius = np.sqrt((x - hole[0]) ** 2 + (y - hole[1]) ** 2)
        countersunk = np.where(radius < 3.0, np.float32(0), PLATE - 1.1 * (5.6 - radius))
        height = np.where(radius < 5.6, np.minimum(height, countersunk), height)
    return floats(height + 0.9 * _stamp(_mark_art(), x, y, MARK, 0.0, MARK_SIZE))


def _label(part: Part, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    centre = (LABEL[0] + part.label[0], LABEL[1] + part.label[1])
    art = _label_art()
    on = _stamp(np.ones(art.shape[:2], np.float32), x, y, centre, part.label_angle, LABEL_SIZE)
    return _stamp(art, x, y, centre, part.label_angle, LABEL_SIZE), on


@cache
def _label_art() -> Floats:
    art = np.full((210, 330, 3), 135, np.uint8)  # 10 pixels a millimetre, linear reflectance times 255
    art[:48] = (135, 44, 7)
    cv2.putText(art, "DAS3D", (12, 40), cv2.FONT_HERSHEY_DUPLEX, 1.3, (150, 150, 150), 4, cv2.LINE_AA)
    cv2.putText(art, "K7-42", (12, 128), cv2.FONT_HERSHEY_DUPLEX, 2.2, (8, 8, 10), 9, cv2.LINE_AA)
    for column, width in ((15, 12), (40, 24), (76, 10), (98, 10), (125, 26), (166, 12), (190, 10), (215, 24)):
        art[150:195, column : column + width] = 8
    cv2.circle(art, (287, 168), 24, (26, 64, 20), -1, cv2.LINE_AA)
    return floats(cv2.GaussianBlur(art.astype(np.float32) / 255, (0, 0), 2.5))


@cache
def _mark_art() -> Floats:
    art = np.zeros((110, 260), np.uint8)
    cv2.polylines(art, [np.array([[14, 92], [53, 20], [92, 92]])], True, 255, 13, cv2.LINE_AA)
    letter = np.array([[0, 96], [0, 16], [36, 16], [48, 28], [48, 46], [36, 58], [0, 58]])
    cv2.polylines(art, [np.add(letter, (122, 0)), np.add(letter, (198, 0))], False, 255, 13, cv2.LINE_AA)
    return floats(cv2.GaussianBlur(art.astype(np.float32) / 255, (0, 0), 3))


# ------------------------------------------------------------------------------------------- drawing on the grid


def floats(values: ArrayLike) -> Floats:
    """As float32: OpenCV's and NumPy's operations do not promise to keep it."""
    return np.asarray(values, np.float32)


def box(x: NDArray[np.floating], y: NDArray[np.floating], half: Point, corner: float) -> Floats:
    """Signed distance from a rectangle with round corners, negative inside."""
    qx, qy = np.abs(x) - (half[0] - corner), np.abs(y) - (half[1] - corner)
    outer = np.hypot(np.maximum(qx, 0), np.maximum(qy, 0))
    return floats(outer + np.minimum(np.maximum(qx, qy), 0) - corner)


def _smooth_max(a: Floats, b: Floats, fillet: float) -> Floats:
    return floats(np.maximum(a, b) + np.maximum(fillet - np.abs(a - b), 0) ** 2 / (4 * fillet))


def _stamp(art: Floats, x: Floats, y: Floats, centre: Point, angle: float, size: Point) -> Floats:
    # A picture of `size` millimetres laid on the part, 0 around it.
    dx, dy = x - centre[0], y - centre[1]
    cos, sin = math.cos(angle), math.sin(angle)
    u = ((cos * dx + sin * dy) / size[0] + 0.5) * art.shape[1] - 0.5
    v = ((cos * dy - sin * dx) / size[1] + 0.5) * art.shape[0] - 0.5
    return floats(cv2.remap(art, floats(u), floats(v), cv2.INTER_LINEAR, borderValue=0))


def smooth_noise(rng: np.random.Generator, length: float) -> Floats:
    """Standard normal noise on the grid with features of about `length`; drawn coarsely where it is smooth anyway."""
    step = max(1, int(length / PITCH / 3))
    side = CELLS // step + 2
    white = rng.standard_normal((side, side), dtype=np.float32)
    field = floats(cv2.GaussianBlur(white, (0, 0), max(length / PITCH / step, 0.3)))
    field = floats(field / field.std())
    if step == 1:
        return field[:CELLS, :CELLS]
    return floats(cv2.resize(field, (CELLS, CELLS), interpolation=cv2.INTER_CUBIC))


def _dust(rng: np.random.Generator) -> Floats:
    specks = np.zeros((CELLS, CELLS), np.float32)
    count = rng.integers(20, 60)
    specks[rng.integers(0, CELLS, count), rng.integers(0, CELLS, count)] = rng.uniform(0.5, 2.5, count)
    return floats(cv2.GaussianBlur(specks, (0, 0), 0.7))
