"""The rectangle of the frame that a prepared scan shows, and the way there and back."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from das3d.masks import Bounds

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Window:
    """A rectangle of the frame, which prepared images show as a square. It may reach beyond the frame.

    Attributes:
        top, left, height, width: in frame pixels.
        frame: height and width of the frame.
        turn: degrees by which all this is turned about its centre, from the frame's columns towards its rows; 0 where the
            window is upright.
    """

    top: int
    left: int
    height: int
    width: int
    frame: tuple[int, int]
    turn: float = 0.0

    @classmethod
    def square(cls, top: int, left: int, side: int, frame: tuple[int, int]) -> Window:
        """An upright window as high as wide."""
        return cls(top, left, side, side, frame)

    @property
    def side(self) -> int:
        """The longer one."""
        return max(self.height, self.width)

    @cached_property
    def upright(self) -> Window:
        """The smallest upright window around this one, which is this one unless it is turned."""
        if not self.turn:
            return self
        top, bottom, left, right = self._around((0, 1, 0, 1), 1, reach=0)
        return Window(top, left, bottom - top, right - left, self.frame)

    def cut(self, array: NDArray[Any]) -> NDArray[Any]:
        """The upright window of a frame-sized array (H, W, ...) as (height, width, ...), zero beyond the frame."""
        window, (rows, columns) = self.upright, self.frame
        top, left = max(window.top, 0), max(window.left, 0)
        # No row or column at all where it lies beside the frame.
        bottom = max(min(window.top + window.height, rows), top)
        right = max(min(window.left + window.width, columns), left)
        out = np.zeros((window.height, window.width, *array.shape[2:]), dtype=array.dtype)
        there = out[top - window.top : bottom - window.top, left - window.left : right - window.left]
        there[...] = array[top:bottom, left:right]
        return out

    @property
    def on_cut(self) -> Window:
        """The same window where what it `cut` of the frame is taken for the whole frame."""
        top, left, height, width = self.upright.top, self.upright.left, self.upright.height, self.upright.width
        return replace(self, top=self.top - top, left=self.left - left, frame=(height, width))

    def shown(self, cut: Floats, side: int) -> Floats:
        """What was `cut` of the frame, one channel of it, as prepared images of `side` x `side` show it."""
        if self.turn:
            matrix = self.on_cut._pixels_to_frame(self.height, self.width)
            flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP  # at the frame's resolution first, so that no pixel is left out
            cut = np.asarray(cv2.warpAffine(cut, matrix, (self.width, self.height), flags=flags), dtype=np.float32)
        return resize(cut, side)

    def frame_place(self, row: float, column: float, side: int) -> tuple[float, float]:
        """Row and column in the frame of a place in the window's image of `side` x `side`, both of pixel centres."""
        u, v = self._pixels_to_frame(side, side) @ (column, row, 1)
        return float(v), float(u)

    def image_place(self, row: float, column: float, side: int) -> tuple[float, float]:
        """The way back: row and column in the window's image of a place in the frame."""
        u, v = cv2.invertAffineTransform(self._pixels_to_frame(side, side)) @ (column, row, 1)
        return float(v), float(u)

    def frame_pixel(self, row: float, column: float, side: int) -> tuple[int, int]:
        """The frame's pixel nearest to `frame_place`."""
        v, u = self.frame_place(row, column, side)
        return min(max(round(v), 0), self.frame[0] - 1), min(max(round(u), 0), self.frame[1] - 1)

    def bounds_on_frame(self, bounds: Bounds, side: int) -> Bounds:
        """The bounds on the frame, one pixel at least, beyond which `put_back` makes nothing of these of a `side` x `side`
        image.
        """
        top, bottom, left, right = self._around(bounds, side, reach=1.5)  # linear interpolation looks one pixel far
        top, left = min(max(top, 0), self.frame[0] - 1), min(max(left, 0), self.frame[1] - 1)
        return top, max(min(bottom, self.frame[0]), top + 1), left, max(min(right, self.frame[1]), left + 1)

    def put_back(self, image: Floats, bounds: Bounds | None = None) -> Floats:
        """An image (S, S) of the window, of any resolution, on the grid of the frame (H, W), zero outside the window.

        Of the frame, that which lies in `bounds` alone, where they are given.
        """
        first_row, end_row, first_column, end_column = bounds or (0, self.frame[0], 0, self.frame[1])
        out = np.zeros((end_row - first_row, end_column - first_column), dtype=np.float32)
        around = self.upright
        top, bottom = max(around.top, first_row), min(around.top + around.height, end_row)
        left, right = max(around.left, first_column), min(around.left + around.width, end_column)
        if top >= bottom or left >= right:
            return out
        here = replace(self, top=self.top - top, left=self.left - left, frame=(bottom - top, right - left))
        matrix = cv2.invertAffineTransform(here._pixels_to_frame(*image.shape))
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        spread = cv2.warpAffine(image, matrix, here.frame[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)
        there = out[top - first_row : bottom - first_row, left - first_column : right - first_column]
        np.copyto(there, spread, where=here._inside())
        return out

    def _inside(self) -> NDArray[np.bool_]:
        # Which pixels of the frame have their centres in the window.
        cos, sin = self._direction()
        rows = np.arange(self.frame[0])[:, None] + 0.5 - self.top - self.height / 2
        columns = np.arange(self.frame[1]) + 0.5 - self.left - self.width / 2
        along, across = cos * columns + sin * rows, cos * rows - sin * columns
        return (np.abs(along) <= self.width / 2) & (np.abs(across) <= self.height / 2)

    def _around(self, bounds: Bounds, side: int, reach: float) -> Bounds:
        # The smallest upright box of the frame around bounds in the window's image, and `reach` pixels of that around it.
        top, bottom, left, right = bounds[0] - reach, bounds[1] + reach, bounds[2] - reach, bounds[3] + reach
        corners = np.array([(left, top, 1), (right, top, 1), (left, bottom, 1), (right, bottom, 1)]).T
        x, y = self._to_frame(side, side) @ corners
        return math.floor(y.min()), math.ceil(y.max()), math.floor(x.min()), math.ceil(x.max())

    def _pixels_to_frame(self, rows: int, columns: int) -> NDArray[np.float64]:
        # The same as `_to_frame`, of the centres of pixels.
        matrix = self._to_frame(rows, columns)
        matrix[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5
        return matrix

    def _to_frame(self, rows: int, columns: int) -> NDArray[np.float64]:
        # (2, 3): x and y in the window's image of this size to those in the frame; of the edges of pixels, whole numbers.
        cos, sin = self._direction()
        right, down = self.width / columns, self.height / rows
        turned = np.array([[cos * right, -sin * down], [sin * right, cos * down]])
        centre = np.array([self.left + self.width / 2, self.top + self.height / 2])
        return np.column_stack([turned, centre - turned @ (columns / 2, rows / 2)])

    def _direction(self) -> tuple[float, float]:
        angle = math.radians(self.turn)
        return math.cos(angle), math.sin(angle)


def resize(image: Floats, side: int) -> Floats:
    """An image (H, W) as (side, side): averaged along axes that shrink, interpolated along those that grow."""
    height, width = image.shape
    if (side < height) != (side < width):
        image = np.asarray(cv2.resize(image, (width, side), interpolation=_interpolation(height, side)))
    return np.asarray(cv2.resize(image, (side, side), interpolation=_interpolation(width, side)), dtype=np.float32)


def _interpolation(length: int, side: int) -> int:
    return cv2.INTER_AREA if side < length else cv2.INTER_LINEAR
