"""Try a recipe: train it for a fixed budget and score it on defects of other kinds than it was trained on.

    python benchmarks/lab.py DATA --category cable_gland --budget 8m --name skips-off --set network.skips=false

Recipes are chosen by the first figures: held-out good parts against the same parts with defects from this file, none of
which `das3d.synthesis` makes. The real test parts are scored beside them, to be reported and never to choose by. Every
run adds a row to --table.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from das3d import train
from das3d.arguments import parse_duration
from das3d.console import figure
from das3d.detector import Detector, load
from das3d.evaluation import evaluate
from das3d.preparation import PreparedScan
from das3d.prepared import find_training_data, prepare_dataset
from das3d.settings import Settings, make_settings
from das3d.window import Window

# Sensors may show a defect in one member alone: a hole that is too small for the depth, a dent without a shadow.
SHOWN = ("both", "colour", "shape")
COLUMNS = (
    "name", "drawing", "data", "modality", "settings", "seed", "minutes", "iterations", "synthetic_i_auroc",
    "synthetic_p_auroc", "synthetic_ap", *SHOWN, "i_auroc", "p_auroc", "aupro_30", "aupro_10", "aupro_01", "machine",
)  # fmt: skip

DRAWING = 3  # of the defects below: figures of another drawing do not compare

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]


class Canvas:
    """One prepared part that is being harmed: RGB (S, S, 3) and depth (S, S) in (0, 1), and where it was changed."""

    def __init__(self, scan: PreparedScan, rng: np.random.Generator) -> None:
        self.scan, self.rng = scan, rng
        self.rgb = scan.rgb.astype(np.float32) / 255
        self.depth = scan.depth.copy()
        self.part = scan.foreground
        self.mask = np.zeros_like(self.part)
        self.side = self.part.shape[0]

    def place(self, margin: int = 3) -> tuple[int, int]:
        inner = cv2.erode(self.part.astype(np.uint8), np.ones((margin, margin)), borderValue=0)
        rows, columns = np.nonzero(inner if inner.any() else self.part)
        pick = self.rng.integers(len(rows))
        return int(rows[pick]), int(columns[pick])

    def polygon(self, reach: float, corners: int = 7) -> Mask:
        """A jagged patch of about `reach` sides across."""
        row, column = self.place()
        angles = np.sort(self.rng.uniform(0, 2 * np.pi, corners))
        radii = self.rng.uniform(0.5, 1.0, corners) * reach * self.side / 2
        points = np.stack([column + radii * np.cos(angles), row + radii * np.sin(angles)], axis=1)
        patch = cv2.fillPoly(np.zeros(self.part.shape, np.uint8), [points.round().astype(np.int32)], 1)
        return (patch > 0) & self.part

    def paint(self, where: Mask, colour: Image | float) -> None:
        """Cover a patch of the part with a colour or an image."""
        cover = self.cover(where)[..., None]
        self.rgb = self.rgb * (1 - cover) + np.clip(colour, 0, 1) * cover

    def set_depth(self, where: Mask, depth: Image) -> None:
        """Give a patch of the part another depth."""
        cover = self.cover(where)
        self.depth = (self.depth * (1 - cover) + depth * cover).astype(np.float32)

    def cover(self, where: Mask) -> Image:
        """A patch with an edge as soft as in scans that were resized; only outlines against the background are sharp."""
        return cv2.GaussianBlur(where.astype(np.float32), (0, 0), 0.7) * self.part

    def light(self, relief: Image) -> None:
        """Shade the RGB by a height change of the relief, in units of the side."""
        angle = self.rng.uniform(0, 2 * np.pi)
        rows, columns = np.gradient(relief * self.side)
        self.rgb *= np.clip(1 + 0.5 * np.tanh(3 * (np.cos(angle) * columns + np.sin(angle) * rows)), 0, 2)[..., None]


def dent(c: Canvas) -> None:
    """A round cap pressed in or out, with its shading."""
    row, column = c.place()
    rows, columns = np.mgrid[: c.side, : c.side]
    radius = c.rng.uniform(0.02, 0.07) * c.side
    cap = np.clip(1 - ((rows - row) ** 2 + (columns - column) ** 2) / radius**2, 0, 1) ** 2
    change = (cap * c.rng.choice([-1, 1]) * c.rng.uniform(0.02, 0.1) * c.part).astype(np.float32)
    c.depth += change
    c.light(-change)
    c.mask |= cap * c.part > 0.1


def crack(c: Canvas) -> None:
    """A broken line, dark and a little deeper."""
    row, column = c.place()
    points, angle = [(column, row)], c.rng.uniform(0, 2 * np.pi)
    for _ in range(c.rng.integers(3, 7)):
        angle += c.rng.normal(0, 0.6)
        step = c.rng.uniform(0.02, 0.05) * c.side
        points.append((int(points[-1][0] + step * np.cos(angle)), int(points[-1][1] + step * np.sin(angle))))
    width = int(c.rng.integers(1, 4))
    line = cv2.polylines(np.zeros(c.part.shape, np.uint8), [np.array(points, np.int32)], False, 1, width)
    where = (line > 0) & c.part
    c.paint(where, c.rgb * c.rng.uniform(0.2, 0.7))
    c.set_depth(where, c.depth + c.rng.uniform(0.01, 0.06))
    c.mask |= where


def pit(c: Canvas) -> None:
    """A small hole, dark within and bright along one side."""
    row, column = c.place()
    rows, columns = np.mgrid[: c.side, : c.side].astype(np.float32)
    radius, angle = c.rng.uniform(0.008, 0.03) * c.side, c.rng.uniform(0, 2 * np.pi)
    hole = np.hypot(rows - row, columns - column) < radius
    aside = np.hypot(rows - row + radius * np.sin(angle) / 2, columns - column + radius * np.cos(angle) / 2) < radius
    own = c.rgb[hole & c.part].mean(axis=0)
    c.paint(aside, own * c.rng.uniform(1.2, 1.8))
    c.paint(hole, own * c.rng.uniform(0.1, 0.6))
    c.set_depth(hole, c.depth + c.rng.uniform(0.02, 0.1))
    c.mask |= (hole | aside) & c.part


def bend(c: Canvas) -> None:
    """A region of the part pushed aside, RGB and depth together."""
    row, column = c.place()
    rows, columns = np.mgrid[: c.side, : c.side].astype(np.float32)
    radius = c.rng.uniform(0.08, 0.16) * c.side
    near = np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * (radius / 2) ** 2))
    angle, reach = c.rng.uniform(0, 2 * np.pi), c.rng.uniform(0.02, 0.05) * c.side
    x = (columns + reach * np.cos(angle) * near).astype(np.float32)
    y = (rows + reach * np.sin(angle) * near).astype(np.float32)
    share = cv2.remap(c.part.astype(np.float32), x, y, cv2.INTER_LINEAR)
    whole = (share > 0.5) / np.maximum(share, 0.5)  # outlines stay as sharp as they are on good parts
    rgb = cv2.remap(c.rgb, x, y, cv2.INTER_LINEAR) * whole[..., None]
    depth = 1 + cv2.remap(c.depth - 1, x, y, cv2.INTER_LINEAR) * whole
    changed = (np.abs(rgb - c.rgb).max(axis=2) > 0.08) | (np.abs(depth - c.depth) > 0.03)
    c.rgb, c.depth = rgb, depth
    c.mask |= cv2.morphologyEx(changed.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((5, 5))) > 0


def blot(c: Canvas) -> None:
    """A soft-edged stain of a few drops, every other one of the part's own hue; colour alone."""
    colour = c.rng.uniform(0, 1, 3)
    stain = np.zeros(c.part.shape, np.float32)
    row, column = c.place()
    if c.rng.random() < 0.5:
        own = c.rgb[row, column]
        colour = np.clip(own / max(own.mean(), 0.05) * colour.mean(), 0, 1)
    for _ in range(c.rng.integers(1, 4)):
        centre = (np.array([column, row]) + c.rng.normal(0, 0.02 * c.side, 2)).astype(int).tolist()
        axes = (c.rng.uniform(0.01, 0.05, 2) * c.side + 1).astype(int).tolist()
        cv2.ellipse(stain, centre, axes, c.rng.uniform(0, 180), 0, 360, 1.0, -1)
    stain = cv2.GaussianBlur(stain, (0, 0), 0.006 * c.side + 0.3) * c.part
    opacity = (stain * c.rng.uniform(0.3, 0.9))[..., None]
    c.rgb = c.rgb * (1 - opacity) + colour * opacity
    c.mask |= stain > 0.3


def smear(c: Canvas) -> None:
    """A patch that has lost its detail."""
    where = c.polygon(c.rng.uniform(0.1, 0.25))
    size = c.rng.uniform(0.015, 0.03) * c.side
    before = c.rgb.copy()
    c.paint(where, cv2.GaussianBlur(c.rgb, (0, 0), size))
    c.set_depth(where, cv2.GaussianBlur(c.depth, (0, 0), size))
    if np.abs(c.rgb - before)[where].mean() > 0.02:
        c.mask |= where


def crumb(c: Canvas) -> None:
    """A foreign body with flat faces and a colour of its own that lies on the part."""
    where = c.polygon(c.rng.uniform(0.04, 0.12), corners=5)
    slope = c.rng.normal(0, 0.3, 2)
    rows, columns = np.mgrid[: c.side, : c.side] / c.side
    top = c.depth[where].min() if where.any() else 0
    c.set_depth(where, top - c.rng.uniform(0.02, 0.1) + slope[0] * rows + slope[1] * columns - slope.sum() / 2)
    c.paint(where, (c.rng.uniform(0, 1, 3) * c.rng.uniform(0.8, 1.1, (c.side, c.side, 1))).astype(np.float32))
    c.mask |= where


def chip(c: Canvas) -> None:
    """A corner broken off at the rim: background shows."""
    rim = c.part & ~(cv2.erode(c.part.astype(np.uint8), np.ones((5, 5)), borderValue=0) > 0)
    rows, columns = np.nonzero(rim)
    pick = c.rng.integers(len(rows))
    angle, reach = c.rng.uniform(0, 2 * np.pi), c.rng.uniform(0.02, 0.05) * c.side
    triangle = [
        (columns[pick] + reach * np.cos(angle + turn), rows[pick] + reach * np.sin(angle + turn)) for turn in (0, 2.1, 4.2)
    ]
    patch = cv2.fillPoly(np.zeros(c.part.shape, np.uint8), [np.array(triangle).round().astype(np.int32)], 1)
    where = (patch > 0) & c.part
    c.rgb[where], c.depth[where] = 0, 1
    c.mask |= where


KINDS: tuple[Callable[[Canvas], None], ...] = (dent, crack, pit, bend, blot, smear, crumb, chip)


def harmed(scans: list[PreparedScan], settings: Settings, *, seed: int = 7) -> list[PreparedScan]:
    """Each scan with three defects of each kind; where both modalities are used, one of each in `SHOWN`.

    Those that do not show in what the networks see are left out.
    """
    out = []
    for index, scan in enumerate(scans):
        for number, kind in enumerate(KINDS * len(SHOWN)):
            canvas = Canvas(scan, np.random.default_rng([seed, index, number]))
            kind(canvas)
            shown = SHOWN[number // len(KINDS)] if settings.uses_rgb and settings.uses_depth else ""
            if shown == "colour":
                canvas.depth = scan.depth
            if shown == "shape":
                canvas.rgb = scan.rgb.astype(np.float32) / 255
            in_rgb = settings.uses_rgb and np.abs(canvas.rgb - scan.rgb / 255).max() > 0.02
            in_depth = settings.uses_depth and np.abs(canvas.depth - scan.depth).max() > 0.005
            if canvas.mask.sum() >= 9 and (in_rgb or in_depth):
                rgb = (np.clip(canvas.rgb, 0, 1) * 255).round().astype(np.uint8)
                name = f"{kind.__name__} {shown} {scan.name}"
                out.append(replace(scan, name=name, rgb=rgb, depth=canvas.depth.astype(np.float32), mask=canvas.mask))
    return out


def synthetic_figures(detector: Detector, good: list[PreparedScan]) -> dict[str, float]:
    """I-AUROC, P-AUROC and pixel average precision on defects of `KINDS`."""
    scans = [*good, *harmed(good, detector.settings)]
    scores, maps = [], []
    for start in range(0, len(scans), 16):
        batch = [replace(scan, window=Window.square(0, 0, len(scan.depth), scan.depth.shape))
                 for scan in scans[start : start + 16]]  # fmt: skip
        for prediction in detector.predict_prepared(batch, regions=False):
            scores.append(prediction.score)
            maps.append(prediction.map)
    labels = [0] * len(good) + [1] * (len(scans) - len(good))
    pixels = np.concatenate([m[::2, ::2].ravel() for m in maps])
    truth = np.concatenate([(np.zeros_like(s.foreground) if i < len(good) else s.mask)[::2, ::2].ravel()
                            for i, s in enumerate(scans)])  # fmt: skip
    result = {
        "synthetic_i_auroc": roc_auc_score(labels, scores),
        "synthetic_p_auroc": roc_auc_score(truth, pixels),
        "synthetic_ap": average_precision_score(truth, pixels),
    }
    for word in (*(kind.__name__ for kind in KINDS), *SHOWN):
        chosen = [i for i, scan in enumerate(scans) if i < len(good) or word in scan.name.split(" ", 2)[:2]]
        if len(chosen) == len(good):
            continue  # the modality shows none
        result[word] = roc_auc_score([labels[i] for i in chosen], [scores[i] for i in chosen])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--category")
    parser.add_argument("--name", required=True)
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--modality", default="rgb+depth")
    parser.add_argument("--budget", default="8m")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--runs", type=Path, default=Path("runs/lab"))
    parser.add_argument("--table", type=Path, default=Path("docs/results/lab.csv"))
    parser.add_argument("--trained", type=Path, help="score this run instead of training one")
    options = parser.parse_args()
    settings = make_settings(options.preset, modality=options.modality, seed=options.seed, changes=options.set)
    out = options.runs / f"{options.name}-{options.category}-{options.modality}-{options.seed}"
    if options.trained:
        detector = load(options.trained)
    else:
        detector = train(options.data, out, category=options.category, settings=settings,
                         budget=parse_duration(options.budget))  # fmt: skip
    settings = detector.settings
    held_out = prepare_dataset(find_training_data(options.data, options.category, settings), settings).held_out
    synthetic = synthetic_figures(detector, held_out)
    real = evaluate(detector, options.data, out / "evaluation", category=options.category)
    figures = {**synthetic, **{name: value for name, value in real.items() if isinstance(value, float)}}
    for name, value in {**figures, **real["per_defect"]}.items():
        print(f"{name:24} {figure(value, 4)}")
    row = {
        "name": options.name, "drawing": DRAWING, "modality": settings.modality,
        "settings": " ".join([f"--preset {options.preset}"] * (options.preset != "fast") + options.set),
        "seed": settings.seed, **detector.training,
        **{name: f"{value:.4f}" for name, value in figures.items()},
        "data": options.category,  # after the facts of training, where it is the folder
    }  # fmt: skip
    options.table.parent.mkdir(parents=True, exist_ok=True)
    new = not options.table.exists()
    with options.table.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    main()
