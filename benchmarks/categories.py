"""Render categories that are nothing like the real scans at hand, to see whether one recipe serves them all.

    python benchmarks/categories.py runs/categories
    das3d benchmark runs/categories --out runs/on_categories --modalities rgb+depth --set training.iterations=1000

A tuber (organic, no two alike), a biscuit (porous, its chips anywhere), a turned flange (metal, glossy, round), a sponge
(soft block full of holes) and a root (long and thin, lying any way), seen by the demo's camera, good and with six kinds of
defect: dents, lumps, cuts, holes, stains and foreign bodies. The layout is that of MVTec 3D-AD.
"""

from __future__ import annotations

import argparse
import math
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from das3d.demo import DemoScan, scanned, write_scan
from das3d.demo.camera import draw_light
from das3d.demo.defects import around, curve, distance_to, place, ragged
from das3d.demo.part import CELLS, PITCH, Bools, Floats, Surface, box, draw_table, floats, smooth_noise

Colour = tuple[float, float, float]
MIDDLE = (CELLS // 2, CELLS // 2)
CLEARANCE = 3.0  # mm from the outline, of eyes, chips and defects


# ------------------------------------------------------------------------------------------- good parts, millimetres


def tuber(rng: np.random.Generator) -> Surface:
    """Every one another shape, lying any way, with a mottled skin and a few eyes."""
    x, y = turned_by(rng.uniform(0, 2 * math.pi))
    half, height = (rng.uniform(38, 50), rng.uniform(26, 33)), rng.uniform(19, 24)
    radius = ragged(floats(x / half[0]), floats(y / half[1]), rng, 0.06)
    body = height * np.sqrt(np.maximum(1 - radius**2, 0)) + 0.8 * smooth_noise(rng, 9.0) * (radius < 0.9)
    skin = np.exp(0.15 * smooth_noise(rng, 5.0) + 0.12 * smooth_noise(rng, 0.7))
    part = radius < 1
    eyes = np.zeros_like(x)
    for _ in range(rng.integers(4, 10)):
        u, v = around(place(part, rng, CLEARANCE))
        eyes = np.maximum(eyes, np.exp(-((ragged(u, v, rng, 0.2) / rng.uniform(0.9, 1.8)) ** 2)))
    body = body - 0.7 * eyes + 0.03 * smooth_noise(rng, 0.6)
    return on_table(rng, body, part, painted((0.36, 0.22, 0.10), skin * (1 - 0.6 * eyes)), gloss=0.2)


def biscuit(rng: np.random.Generator) -> Surface:
    """A rough round with dark chips at random places."""
    x, y = turned_by(0.0)
    edge = ragged(x, y, rng, 0.008) - rng.uniform(41, 43)  # distance from the outline, negative inside
    rough = 0.45 * smooth_noise(rng, 4.0) + 0.22 * smooth_noise(rng, 1.0)
    body = 9 * np.sqrt(np.clip(-edge / 5, 0, 1)) + rough * (edge < -1)
    crust = painted((0.50, 0.30, 0.13), np.exp(0.12 * smooth_noise(rng, 6.0) + 0.15 * smooth_noise(rng, 0.8)))
    part = edge < 0
    for _ in range(rng.integers(8, 14)):
        u, v = around(place(part & (edge < -5), rng, CLEARANCE))
        inside = np.maximum(1 - (ragged(u, v, rng, 0.15) / rng.uniform(3, 5)) ** 2, 0)
        body = body + rng.uniform(2, 3.5) * np.sqrt(inside)
        crust = np.where((inside > 0.1)[..., None], floats([0.07, 0.035, 0.02]), crust)
    return on_table(rng, body, part, crust, gloss=0.25)


def flange(rng: np.random.Generator) -> Surface:
    """Turned metal: steps, a bore, three holes, the marks of the tool, and a highlight that moves with every turn."""
    angle = rng.uniform(0, 2 * math.pi)
    x, y = turned_by(angle)
    r = np.hypot(x, y)
    steps = ((45.0, 9.0), (33.0, 15.0), (20.0, 23.0))  # from this radius inwards it is so high
    body = np.max([height * np.clip((radius - r) / 0.5, 0, 1) for radius, height in steps], axis=0)
    body = np.where(r < 10, 0, body)
    for k in range(3):
        away = np.hypot(x - 39 * math.cos(2 * math.pi * k / 3), y - 39 * math.sin(2 * math.pi * k / 3))
        body = np.where(away < 3.2, 0, body)
    part = (r < 45) & (body > 1)
    marks = np.sin(2 * math.pi * r / 1.1 + rng.uniform(0, 6) + 0.3 * smooth_noise(rng, 8.0))
    metal = np.exp(0.05 * smooth_noise(rng, 3.0) + 0.05 * marks)
    return on_table(rng, body + 0.02 * marks, part, painted((0.33, 0.33, 0.34), metal), gloss=2.0)


def sponge(rng: np.random.Generator) -> Surface:
    """A soft block with holes of all sizes, its faces never quite flat."""
    x, y = turned_by(rng.uniform(-0.35, 0.35))
    edge = box(x, y, (46 + rng.normal(0, 0.5), 29 + rng.normal(0, 0.5)), 6)
    body = 20 * np.sqrt(np.clip(-edge / 3, 0, 1)) + 0.6 * smooth_noise(rng, 12.0)
    pores = np.zeros_like(x)
    for size, share in ((0.7, 1.6), (1.6, 2.0)):
        pores = np.maximum(pores, np.clip((smooth_noise(rng, size) - share) / 0.5, 0, 1))
    body = body - 4 * pores + 0.1 * smooth_noise(rng, 0.6)
    tone = np.exp(0.06 * smooth_noise(rng, 4.0)) * (1 - 0.65 * pores)
    return on_table(rng, body, edge < 0, painted((0.62, 0.50, 0.11), tone), gloss=0.05)


def root(rng: np.random.Generator) -> Surface:
    """Long and thin, thick at one end and bent a little, lying any way, with rings and side roots."""
    x, y = turned_by(rng.uniform(0, 2 * math.pi))
    half, thick, thin = rng.uniform(43, 49), rng.uniform(9, 11), rng.uniform(3, 5)
    along = np.clip((x + half) / (2 * half), 0, 1)  # from the thick end to the thin one
    width = thick + (thin - thick) * along**1.3
    across = y - rng.uniform(-4, 4) * np.sin(math.pi * along) - 0.4 * smooth_noise(rng, 10.0)
    beyond = np.maximum(np.abs(x) - half + width, 0)  # rounded ends
    radius = np.hypot(across, beyond) / width
    body = 1.6 * width * np.sqrt(np.maximum(1 - radius**2, 0))
    rings = np.exp(-((np.sin(x / rng.uniform(1.6, 2.4) + smooth_noise(rng, 6.0)) / 0.25) ** 2))
    part = radius < 1
    spots = np.zeros_like(x)
    for _ in range(rng.integers(3, 8)):
        u, v = around(place(part, rng, 2.0))
        spots = np.maximum(spots, np.exp(-((ragged(u, v, rng, 0.2) / rng.uniform(0.5, 1.0)) ** 2)))
    body = body - 0.15 * rings - 0.3 * spots + 0.03 * smooth_noise(rng, 0.6)
    tone = np.exp(0.10 * smooth_noise(rng, 5.0) + 0.06 * smooth_noise(rng, 0.7)) * (1 - 0.15 * rings) * (1 - 0.5 * spots)
    return on_table(rng, body, part, painted((0.60, 0.22, 0.05), tone), gloss=0.2)


CATEGORIES: dict[str, Callable[[np.random.Generator], Surface]] = {
    "tuber": tuber, "biscuit": biscuit, "flange": flange, "sponge": sponge, "root": root,
}  # fmt: skip


def turned_by(angle: float) -> tuple[Floats, Floats]:
    x, y = around(MIDDLE)
    cos, sin = math.cos(angle), math.sin(angle)
    return floats(cos * x + sin * y), floats(cos * y - sin * x)


def painted(colour: Colour, tone: Floats) -> Floats:
    return floats(floats(colour) * tone[..., None])


def on_table(rng: np.random.Generator, body: Floats, part: Bools, albedo: Floats, gloss: float) -> Surface:
    table = draw_table(rng)
    height = cv2.GaussianBlur(floats(np.where(part, np.clip(body, 0, 28), 0)), (0, 0), 0.3 / PITCH)
    return Surface(
        height=height,
        albedo=floats(np.where(part[..., None], albedo, table)),
        gloss=floats(np.where(part, gloss, 0.15)),
        part=part,
        table=table,
    )


# ------------------------------------------------------------------------------------------- defects, millimetres


def dent(surface: Surface, rng: np.random.Generator, sign: float = -1.0) -> Surface:
    radius = ragged(*around(place(surface.part, rng, CLEARANCE)), rng, 0.08) / rng.uniform(3, 7)
    change = sign * rng.uniform(0.8, 2.2) * np.maximum(1 - radius**2, 0) ** 2
    return replace(surface, height=floats(np.clip(surface.height + change * surface.part, 0, 28.4)))


def lump(surface: Surface, rng: np.random.Generator) -> Surface:
    return dent(surface, rng, sign=1.0)


def cut(surface: Surface, rng: np.random.Generator) -> Surface:
    """A blade went in: a narrow groove, darker within."""
    line = curve(place(surface.part, rng, CLEARANCE), rng.uniform(10, 25), rng.uniform(-0.4, 0.4), rng)
    groove = np.exp(-((distance_to(line) / rng.uniform(0.4, 0.9)) ** 2)) * surface.part
    return replace(
        surface,
        height=floats(np.maximum(surface.height - rng.uniform(1, 3) * groove, 0)),
        albedo=floats(surface.albedo * (1 - 0.5 * groove[..., None])),
    )


def hole(surface: Surface, rng: np.random.Generator) -> Surface:
    """Something bored into the part, as deep as it is wide or deeper."""
    size = rng.uniform(1.2, 3.0)
    radius = ragged(*around(place(surface.part, rng, CLEARANCE)), rng, 0.05)
    inside = np.clip((size - radius) / 0.5, 0, 1) * surface.part
    return replace(
        surface,
        height=floats(np.maximum(surface.height - rng.uniform(2, 4) * size * inside, 0)),
        albedo=floats(surface.albedo * (1 - 0.6 * inside[..., None])),
    )


def stain(surface: Surface, rng: np.random.Generator) -> Surface:
    """A liquid that soaked in or dried on. Colour only."""
    size = rng.uniform(3, 8)
    radius = ragged(*around(place(surface.part, rng, CLEARANCE)), rng, 0.15)
    cover = np.clip((size - radius) / 1.0, 0, 1) * rng.uniform(0.3, 0.8) * surface.part
    colour = floats(((0.05, 0.04, 0.03), (0.30, 0.02, 0.02), (0.05, 0.15, 0.35), (0.6, 0.6, 0.55))[rng.integers(4)])
    return replace(surface, albedo=floats(surface.albedo + cover[..., None] * (colour - surface.albedo)))


def foreign(surface: Surface, rng: np.random.Generator) -> Surface:
    """A pellet, or a wire, of a colour of its own lies on the part."""
    spot = place(surface.part, rng, CLEARANCE)
    if rng.random() < 0.5:
        away, size = ragged(*around(spot), rng, 0.1), rng.uniform(1.5, 3.5)
    else:
        away, size = distance_to(curve(spot, rng.uniform(10, 30), rng.uniform(-2, 2), rng)), rng.uniform(0.5, 0.9)
    above = 1.5 * size * np.sqrt(np.maximum(1 - (away / size) ** 2, 0))
    on = (above > 0.05) & surface.part
    return replace(
        surface,
        height=floats(np.minimum(surface.height + above * on, 28.4)),
        albedo=floats(np.where(on[..., None], floats(rng.uniform(0.02, 0.6, 3)), surface.albedo)),
        gloss=floats(np.where(on, 1.0, surface.gloss)),
    )


DEFECTS: dict[str, Callable[[Surface, np.random.Generator], Surface]] = {
    "dent": dent, "lump": lump, "cut": cut, "hole": hole, "stain": stain, "foreign": foreign,
}  # fmt: skip


# ------------------------------------------------------------------------------------------- scans


def render(category: str, key: tuple[int, str, str, int], size: tuple[int, int]) -> DemoScan:
    """One part, by seed, split, kind and number; it is defective where the kind is one of `DEFECTS`."""
    seed, split, kind, index = key
    rng = np.random.default_rng([seed, zlib.crc32(f"{category}/{split}/{kind}".encode()), index])
    part_rng, light_rng, sensor_rng, defect_rng = rng.spawn(4)
    surface, light = CATEGORIES[category](part_rng), draw_light(light_rng)
    harm = (lambda: DEFECTS[kind](surface, defect_rng)) if kind in DEFECTS else None
    return scanned(surface, harm, light, size, sensor_rng)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--categories", default=",".join(CATEGORIES))
    parser.add_argument("--train", type=int, default=80)
    parser.add_argument("--validation", type=int, default=12)
    parser.add_argument("--good", type=int, default=20)
    parser.add_argument("--defective", type=int, default=6, help="of each kind")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    wanted = [("train", "good", options.train), ("validation", "good", options.validation), ("test", "good", options.good)]
    wanted += [("test", kind, options.defective) for kind in DEFECTS]
    for category in options.categories.split(","):
        for split, kind, count in wanted:
            for index in range(count):
                scan = render(category, (options.seed, split, kind, index), (options.side, options.side))
                write_scan(options.out / category / split / kind, f"{index:03d}", scan, with_truth=split == "test")
        print(f"{options.out / category}: {sum(count for *_, count in wanted)} scans")


if __name__ == "__main__":
    main()
