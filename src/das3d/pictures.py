"""Pictures for people: heat over RGB, sheets of training pairs and repairs. Arrays in, uint8 RGB arrays out."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from das3d.atomic import write_atomically
from das3d.scan import RGB, Mask, Scan

Image = NDArray[np.uint8]


def heat(values: NDArray[np.floating]) -> Image:
    """(H, W) in (0, 1) as colours from blue over green to red (turbo)."""
    levels = np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return np.asarray(cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB))


def grey(values: NDArray[np.floating]) -> Image:
    """(H, W) in (0, 1) as grey RGB."""
    return np.repeat(np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)[..., None], 3, axis=2)


def depth_picture(scan: Scan) -> Image:
    """Depth as grey, near bright, missing points black, stretched to the range of the scan."""
    assert scan.depth is not None and scan.valid is not None
    if not scan.valid.any():
        return np.zeros((*scan.size, 3), dtype=np.uint8)
    near, far = np.quantile(scan.depth[scan.valid], (0.005, 0.995))
    return grey(np.where(scan.valid, 0.1 + 0.9 * (far - scan.depth) / max(far - near, 1e-9), 0.0))


def overlay(scan: Scan, anomaly: NDArray[np.floating], high: float = 1.0) -> Image:
    """The anomaly map (H, W) as heat over the scan's RGB (or depth), strongest where it reaches `high`.

    Up to a fifth of `high` the picture shows through unchanged, so that the eye goes to what was found.
    """
    base = scan.rgb if scan.rgb is not None else depth_picture(scan)
    share = np.clip(anomaly / max(high, 1e-9), 0, 1)
    weight = (0.75 * np.clip((share - 0.2) * 2, 0, 1))[..., None]
    return np.asarray(np.round((1 - weight) * base + weight * heat(share)), dtype=np.uint8)


def outlined(picture: Image, outlines: Sequence[Sequence[tuple[int, int]]]) -> Image:
    """The picture with closed lines through the corners (x, y) of each outline, numbered from 1."""
    out = picture.copy()
    size = max(out.shape[:2])
    for number, corners in enumerate(outlines, start=1):
        points = np.array(corners, dtype=np.int32)
        for colour, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
            cv2.polylines(out, [points], True, colour, width * max(1, size // 600), cv2.LINE_AA)
        if len(outlines) > 1:
            right, top = points[:, 0].max() + size // 100 + 1, points[:, 1].min() + size // 100
            at = (int(min(right, out.shape[1] - size // 30)), int(max(top, size // 30)))
            for colour, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
                cv2.putText(out, str(number), at, cv2.FONT_HERSHEY_SIMPLEX, size / 1000, colour, width, cv2.LINE_AA)
    return out


def shaded_relief(depth: NDArray[np.floating], shown: Mask) -> Image:
    """Depth as a lamp from the upper left shows it: small dents that no grey step betrays stand out by their slopes.

    Args:
        depth: (S, S) normalised, 0 nearest.
        shown: (S, S), where there is something to show; black elsewhere.
    """
    smooth = cv2.GaussianBlur(depth.astype(np.float32), (0, 0), 0.7)
    steepness = depth.shape[0] / 2  # a part about half as high as wide, as most are
    right, down = cv2.Sobel(smooth, cv2.CV_32F, 1, 0) / 8 * steepness, cv2.Sobel(smooth, cv2.CV_32F, 0, 1) / 8 * steepness
    # The surface normal is (right, down, 1) with the camera's z towards the viewer; the lamp stands at (-1, -1, 1.5).
    light = (1.5 - right - down) / np.sqrt(right**2 + down**2 + 1) / np.sqrt(4.25)
    return grey(np.where(shown, 0.25 + 0.75 * np.clip(light, 0, 1), 0.0))


# ------------------------------------------------------------------------------------------- sheets

GROUND, INK, MARK = (245, 245, 245), (40, 40, 40), (214, 39, 40)
LINE = 15  # pixels between two lines of text


def sheet(rows: Sequence[tuple[str, Sequence[Image]]], gap: int = 4, captions: Sequence[Sequence[str]] = ()) -> Image:
    """Equal-sized pictures in named rows on a light ground, one column a part.

    Args:
        rows: name and pictures of each.
        gap: pixels between pictures.
        captions: lines of text below each column; long lines are broken.
    """
    height, width = rows[0][1][0].shape[:2]
    columns = max(len(pictures) for _, pictures in rows)
    label = 120
    broken = [_broken(lines, width) for lines in captions]
    below = LINE * max((len(lines) for lines in broken), default=0)
    size = (len(rows) * (height + gap) + gap + below, label + columns * (width + gap) + gap, 3)
    out = np.full(size, GROUND[0], dtype=np.uint8)
    texts = [(6, gap + r * (height + gap) + height // 2 - 7, name) for r, (name, _) in enumerate(rows)]
    for r, (_, pictures) in enumerate(rows):
        top = gap + r * (height + gap)
        for c, picture in enumerate(pictures):
            left = label + gap + c * (width + gap)
            out[top : top + height, left : left + width] = picture
    for c, lines in enumerate(broken):
        left, top = label + gap + c * (width + gap), len(rows) * (height + gap)
        texts += [(left, top + LINE * index, line) for index, line in enumerate(lines)]
    return _written(out, texts)


@dataclass(frozen=True)
class Tile:
    """One part on a contact sheet: its picture, lines below it, and whether a red frame marks it."""

    picture: Image
    lines: tuple[str, ...] = ()
    marked: bool = False


def contact_sheet(tiles: Sequence[Tile], columns: int, gap: int = 6) -> Image:
    """Equal-sized pictures with text below them, row by row on a light ground."""
    height, width = tiles[0].picture.shape[:2]
    broken = [_broken(tile.lines, width) for tile in tiles]
    rows = [range(start, min(start + columns, len(tiles))) for start in range(0, len(tiles), columns)]
    heights = [height + LINE * max(len(broken[index]) for index in row) + 2 * gap for row in rows]
    out = np.full((sum(heights) + gap, min(columns, len(tiles)) * (width + gap) + gap, 3), GROUND[0], dtype=np.uint8)
    texts, top = [], gap
    for row, tall in zip(rows, heights, strict=True):
        for index in row:
            left = gap + (index - row.start) * (width + gap)
            if tiles[index].marked:
                out[top - 3 : top + height + 3, left - 3 : left + width + 3] = MARK
            out[top : top + height, left : left + width] = tiles[index].picture
            texts += [(left, top + height + 3 + LINE * line, text) for line, text in enumerate(broken[index])]
        top += tall
    return _written(out, texts)


def _broken(lines: Sequence[str], width: int) -> list[str]:
    # Text of 12 pixels takes about six a letter.
    return [piece for line in lines for piece in (textwrap.wrap(line, max(width // 6, 8)) or [""])]


def _written(picture: Image, texts: Sequence[tuple[int, int, str]]) -> Image:
    from PIL import Image as PillowImage
    from PIL import ImageDraw, ImageFont

    canvas, font = PillowImage.fromarray(picture), ImageFont.load_default(12)
    for left, top, text in texts:
        ImageDraw.Draw(canvas).text((left, top), text, fill=INK, font=font)
    return np.asarray(canvas)


def save_picture(path: Path, picture: RGB) -> None:
    """Write a picture (H, W, 3); the suffix tells the format."""
    _, content = cv2.imencode(path.suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    write_atomically(path, content.tobytes(), lasting=False)
