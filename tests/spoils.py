"""Good parts on disk, spoiled on purpose in the ways that happen: a stain, a shift, a swap, a wrong unit, a copy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from das3d.background import fit_background
from das3d.foreground import find_foreground


class Parts:
    """The good parts of a split of a category in the layout of MVTec 3D-AD that a test may change."""

    def __init__(self, category: Path, split: str = "train") -> None:
        self.folder = category / split / "good"

    def rgb(self, name: str) -> NDArray[np.uint8]:
        return np.asarray(cv2.imread(str(self.folder / "rgb" / f"{name}.png"))[..., ::-1])

    def points(self, name: str) -> NDArray[np.float32]:
        return np.asarray(tifffile.imread(self.folder / "xyz" / f"{name}.tiff"))

    def write(self, name: str, *, rgb: NDArray[np.uint8] | None = None, points: NDArray[np.float32] | None = None) -> None:
        """Write new files; what was there may be a link to scans that must not change."""
        if rgb is not None:
            (self.folder / "rgb" / f"{name}.png").unlink()
            cv2.imwrite(str(self.folder / "rgb" / f"{name}.png"), np.ascontiguousarray(rgb[..., ::-1]))
        if points is not None:
            (self.folder / "xyz" / f"{name}.tiff").unlink()
            tifffile.imwrite(self.folder / "xyz" / f"{name}.tiff", points, photometric="minisblack")

    def stain(self, name: str, colour: Sequence[int] = (110, 60, 20), radius: float = 0.05) -> tuple[int, int]:
        """A brown spot in the middle of the part; `radius` as a share of the frame. Returns its place, right and down."""
        rgb, depth = self.rgb(name), self.points(name)[..., 2]
        fit = fit_background(depth, depth > 0)
        assert fit is not None
        part = find_foreground(depth, depth > 0, fit.plane, 0.004)
        deep = cv2.distanceTransform(part.astype(np.uint8), cv2.DIST_L2, 5)
        bright = cv2.GaussianBlur(rgb.max(axis=2).astype(np.float32), (0, 0), 5)
        down, right = np.unravel_index(int((deep * bright).argmax()), deep.shape)
        v, u = np.indices(depth.shape)
        spot = (((v - down) ** 2 + (u - right) ** 2) < (radius * max(depth.shape)) ** 2).astype(np.float32)
        weight = 0.7 * cv2.GaussianBlur(spot, (0, 0), 1.0)[..., None]
        self.write(name, rgb=(rgb * (1 - weight) + weight * np.array(colour)).astype(np.uint8))
        return int(right), int(down)

    def shift(self, name: str, right: int, down: int = 0) -> None:
        """Depth moved against RGB."""
        self.write(name, points=np.roll(self.points(name), (down, right), axis=(0, 1)))

    def swap_rgb(self, one: str, other: str) -> None:
        first, second = self.rgb(one), self.rgb(other)
        self.write(one, rgb=second)
        self.write(other, rgb=first)

    def millimetres(self, name: str) -> None:
        self.write(name, points=self.points(name) * 1000)

    def copy(self, name: str, to: str, *, depth: bool) -> None:
        self.write(to, rgb=self.rgb(name), points=self.points(name) if depth else None)
