"""Pictures for people: heat over RGB, sheets of training pairs and repairs. Arrays in, uint8 RGB arrays out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from das3d.scan import RGB, Scan

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


def sheet(rows: Sequence[tuple[str, Sequence[Image]]], gap: int = 4) -> Image:
    """Equal-sized pictures in named rows on a light ground, one column a part."""
    height, width = rows[0][1][0].shape[:2]
    columns = max(len(pictures) for _, pictures in rows)
    label = 120
    out = np.full((len(rows) * (height + gap) + gap, label + columns * (width + gap) + gap, 3), 245, dtype=np.uint8)
    for r, (name, pictures) in enumerate(rows):
        top = gap + r * (height + gap)
        cv2.putText(out, name, (6, top + height // 2), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (40, 40, 40), 1, cv2.LINE_AA)
        for c, picture in enumerate(pictures):
            left = label + gap + c * (width + gap)
            out[top : top + height, left : left + width] = picture
    return out


def save_picture(path: Path, picture: RGB) -> None:
    """Write a picture (H, W, 3); the suffix tells the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _, content = cv2.imencode(path.suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    path.write_bytes(content.tobytes())
