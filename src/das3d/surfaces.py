"""Scans as surfaces that a browser can turn: the data for ``assets/viewer.js``, and the scripts for a page that shows it.

The viewer is an ES module of its own, documented at its top; any page with the import map below can use it.
"""

from __future__ import annotations

import base64
import io
import json
import zlib
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from das3d.background import Plane, plane_depth
from das3d.errors import DataError
from das3d.measurement import Statistics, background_like
from das3d.pictures import Image
from das3d.scan import RGB, Depth, Scan
from das3d.sparse import dense
from das3d.window import Window

MODULES = {"three": "vendor/three.min.js", "das3d/viewer": "viewer.js"}  # by the names under which they are imported
LARGEST = 160  # points on the longer side: a defect of a hundredth of the part still shows, and 100 parts make 4 MB
LEVELS = 4095  # of depth: 10 um in a part of 40 mm, well below what sensors resolve


@dataclass(frozen=True)
class Surface:
    """A depth grid for the viewer; all members share height and width.

    Attributes:
        depth: (H, W) float32 metres, growing away from the camera, NaN where nothing was measured.
        pitch: metres between two columns; None where the camera is not known.
        rgb: (H, W, 3) uint8 or None.
        heat: (H, W) float32 in (0, 1), 1 for what is painted in full red; None where nothing was predicted.
    """

    depth: Depth
    pitch: float | None
    rgb: RGB | None
    heat: NDArray[np.float32] | None

    def to_json(self) -> dict[str, Any]:
        """Plain values that ``unpack`` of the viewer reads; about 25 KB for a part of 160 x 160 points."""
        height, width = self.depth.shape
        known = np.isfinite(self.depth)
        near, far = (float(self.depth[known].min()), float(self.depth[known].max())) if known.any() else (0.0, 0.0)
        step = max(far - near, 1e-9) / (LEVELS - 1)
        codes = np.where(known, np.round((np.where(known, self.depth, near) - near) / step) + 1, 0).astype(np.uint16)
        # Neighbours are alike, so their differences compress well, high and low bytes apart.
        changes = np.diff(codes.ravel(), prepend=np.uint16(0)).astype(np.uint16)
        return {
            "width": width,
            "height": height,
            "near": near,
            "step": step,
            "pitch": self.pitch,
            "depth": _packed(np.concatenate([changes >> 8, changes & 255])),
            "heat": None if self.heat is None else _packed(np.round(np.clip(self.heat, 0, 1) * 255)),
            "rgb": None if self.rgb is None else data_uri(self.rgb),
        }


def surface_of(
    scan: Scan,
    anomaly: NDArray[np.floating] | None = None,
    *,
    high: float = 1.0,
    window: Window | None = None,
    plane: Plane | None = None,
    largest: int = LARGEST,
) -> Surface:
    """A scan with depth as a surface, made coarser to at most `largest` points a side.

    Args:
        scan: with depth.
        anomaly: (H, W) anomaly map of the scan.
        high: the anomaly that is painted in full red, as in `pictures.overlay`.
        window: show this part of the frame; None: all of it.
        plane: of the background; depth is taken from it, so that the table lies flat. None: depth as it was measured.
        largest: points a side.

    Raises:
        DataError: the scan has no depth.
    """
    if scan.depth is None or scan.valid is None:
        raise DataError(f"{scan.name}: expected depth for a view in 3D, found RGB alone")
    scan = dense(scan)
    assert scan.depth is not None and scan.valid is not None
    flat = plane_depth(plane, scan.size) if plane is not None else np.float32(0)
    with np.errstate(invalid="ignore"):
        depth = np.where(scan.valid, scan.depth - flat, np.nan).astype(np.float32)
    pitch = None
    if scan.camera is not None and scan.valid.any():
        pitch = float(np.median(scan.depth[scan.valid])) / abs(scan.camera.fx)  # below 0 where x is to the left
    rgb = scan.rgb
    heat = None if anomaly is None else np.clip(anomaly / max(high, 1e-9), 0, 1).astype(np.float32)
    if window is not None:
        # `cut` fills with zeros beyond the frame, which must be missing here.
        depth = np.where(window.cut(np.isfinite(depth)), window.cut(depth), np.float32(np.nan))
        rgb = None if rgb is None else window.cut(rgb)
        heat = None if heat is None else window.cut(heat)
    step = -(-max(depth.shape) // largest)
    if step > 1:
        depth = _middle(_blocks(depth, step, np.nan))
        if rgb is not None:
            # The same blocks, the last of which may reach over the edge.
            more = (step * depth.shape[0] - rgb.shape[0], step * depth.shape[1] - rgb.shape[1])
            whole = cv2.copyMakeBorder(rgb, 0, more[0], 0, more[1], cv2.BORDER_REPLICATE)
            rgb = np.asarray(cv2.resize(whole, depth.shape[::-1], interpolation=cv2.INTER_AREA), np.uint8)
        heat = None if heat is None else _blocks(heat, step, 0).max(axis=2)  # the smallest finding stays visible
    return Surface(depth, None if pitch is None else pitch * step, rgb, heat)


def background_of(scan: Scan, statistics: Statistics) -> Plane | None:
    """The plane that a part lies on, as `prepare` finds it; None where the training scans showed none."""
    if statistics.background != "plane" or scan.depth is None or scan.valid is None:
        return None
    fit = background_like(scan.depth, scan.valid, statistics)
    return statistics.plane if fit is None else fit.plane


def import_map(base: str | None = None) -> str:
    """The import map (JSON) under which a page imports "das3d/viewer".

    Args:
        base: address of the folder where a server serves `das3d/assets`, such as "/assets"; None: the modules themselves
            as data URIs, 750 KB, for a page that is one file and opens from disk.
    """
    if base is not None:
        return json.dumps({"imports": {name: f"{base.rstrip('/')}/{path}" for name, path in MODULES.items()}})
    sources = {name: base64.b64encode(read_asset(path)).decode() for name, path in MODULES.items()}
    return json.dumps({"imports": {name: f"data:text/javascript;base64,{text}" for name, text in sources.items()}})


def read_asset(name: str) -> bytes:
    """A file of `das3d/assets`."""
    return files("das3d").joinpath("assets", name).read_bytes()


def data_uri(picture: Image, quality: int = 80) -> str:
    """A picture as a JPEG inside a data URI."""
    from PIL import Image as PillowImage

    buffer = io.BytesIO()
    PillowImage.fromarray(picture).save(buffer, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _packed(values: NDArray[Any]) -> str:
    return base64.b64encode(zlib.compress(values.astype(np.uint8).tobytes(), 9)).decode()


def _blocks(values: NDArray[np.float32], step: int, beyond: float) -> NDArray[np.float32]:
    """(H, W) as (H / step, W / step, step^2), with `beyond` where the last blocks reach over the edge."""
    height, width = (-(-size // step) for size in values.shape)
    padding = ((0, height * step - values.shape[0]), (0, width * step - values.shape[1]))
    padded = np.pad(values, padding, constant_values=beyond)
    return padded.reshape(height, step, width, step).swapaxes(1, 2).reshape(height, width, step * step)


def _middle(blocks: NDArray[np.float32]) -> Depth:
    """The lower median of the measured depths in each block (H, W, N); NaN where there are none.

    A mean would invent points between part and table.
    """
    ordered = np.sort(blocks, axis=2)  # NaN last
    count: NDArray[np.intp] = np.isfinite(blocks).sum(axis=2)
    return np.take_along_axis(ordered, np.maximum((count - 1) // 2, 0)[..., None], axis=2)[..., 0]
