"""What people look at: an inspection that is kept on disk, as a picture or as data for the page."""

from __future__ import annotations

import base64
import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import HTTPException
from numpy.typing import NDArray

from das3d.errors import DataError, one_line
from das3d.files import TIFF_SUFFIXES, depth_size
from das3d.masks import bounding_box
from das3d.measurement import Statistics
from das3d.parts import Part
from das3d.pictures import depth_picture, overlay
from das3d.prediction import with_focal_length
from das3d.scan import Scan
from das3d.service.inspections import Inspection, Inspections
from das3d.service.uploads import check_codec
from das3d.streaming import read_map, rgb_alone
from das3d.surfaces import background_of, data_uri, surface_of
from das3d.window import Window

log = logging.getLogger("das3d.service")
LEAST_TILES = 1 << 20  # pixels of an image whose tiles may be larger than itself


def map_file(inspections: Inspections, inspection: Inspection) -> Path:
    """The file of the anomaly map.

    Raises:
        HTTPException: 410 where its time is over, 404 where somebody has removed it.
    """
    if not inspection.map:
        detail = f"the files of inspection {inspection.id} were removed: they are kept for a time only"
        raise HTTPException(410, detail)
    path = inspections.file(inspection.map)
    if not path.is_file():
        raise _gone(inspection)
    return path


def map_of(inspections: Inspections, inspection: Inspection) -> NDArray[np.float32]:
    """The anomaly map (H, W) of an inspection. Raises HTTPException as `map_file`, and 500 where it cannot be read."""
    try:
        return read_map(map_file(inspections, inspection))
    except DataError as error:
        raise _unreadable(inspection, error) from error


def scan_of(
    inspections: Inspections, inspection: Inspection, focal_length: float | None = None, *, depth: bool = True
) -> Scan:
    """The scan as it was inspected; a black picture where scans are not kept.

    `focal_length`, in pixels, gives the surface of files that hold depth alone its true width. Without `depth`, RGB alone
    where there is RGB.

    Raises:
        HTTPException: 404 where somebody has removed a file, 500 where one cannot be read.
    """
    if inspection.rgb is None and inspection.depth is None:
        return Scan(inspection.part, rgb=np.zeros((inspection.height, inspection.width, 3), np.uint8))
    part = inspections.part_of(inspection)
    if not depth:
        part = rgb_alone(part)
    if not all(file.is_file() for file in (part.rgb, part.depth) if file is not None):
        raise _gone(inspection)
    try:
        _check_depth(part, inspection)
        return with_focal_length([part], focal_length)[0].read()
    except DataError as error:
        raise _unreadable(inspection, error) from error


def _check_depth(part: Part, inspection: Inspection) -> None:
    # Depth beside RGB may be a file that the model did not see, of which nobody has judged how much memory it takes.
    if part.rgb is None or part.depth is None:
        return
    size = inspection.height, inspection.width
    if (found := depth_size(part.depth, part.depth_format, size=size)) != size:
        raise DataError(f"{part.depth}: expected {size[1]} x {size[0]} pixels as in RGB, found {found[1]} x {found[0]}")
    if part.depth.suffix in TIFF_SUFFIXES:
        check_codec(part.depth, max(size[0] * size[1], LEAST_TILES))


def overlay_png(inspections: Inspections, inspection: Inspection, high: float) -> bytes:
    """The map as heat over the whole scan, strongest at `high`."""
    anomaly = map_of(inspections, inspection)
    return _png(overlay(scan_of(inspections, inspection, depth=False), anomaly, high))


def view(
    inspections: Inspections, inspection: Inspection, statistics: Statistics | None, focal_length: float | None = None
) -> dict[str, Any]:
    """Data for the page: the square of the frame in which the model looked, as a picture, as heat and in 3D.

    Heat has square roots of the map, as 0 to 255 in a grey PNG and as 0 to 1 in the surface, so that small values, among
    which thresholds often lie, keep their steps. The surface lies flat by the plane that `statistics` of the model tell of;
    None, where it is no more served: as seen from the camera. Depth that the model did not see and that cannot be read is
    left out.
    """
    anomaly = map_of(inspections, inspection)
    try:
        scan = scan_of(inspections, inspection, focal_length)
    except HTTPException:
        if statistics is None or statistics.has_depth:
            raise
        scan = scan_of(inspections, inspection, depth=False)
    window = window_of(anomaly)
    picture = scan.rgb if scan.rgb is not None else depth_picture(scan)
    roots = np.sqrt(np.clip(anomaly, 0, 1))
    heat = window.cut(np.round(roots * 255).astype(np.uint8))
    surface = None
    if scan.depth is not None and scan.valid is not None:
        plane = None if statistics is None else background_of(scan, statistics)
        surface = surface_of(scan, roots, window=window, plane=plane)
    return {
        "window": {"left": window.left, "top": window.top, "side": window.side},
        "picture": data_uri(window.cut(picture), quality=88),
        "heat": "data:image/png;base64," + base64.b64encode(_png(heat)).decode(),
        "surface": None if surface is None else surface.to_json(),
    }


def window_of(anomaly: NDArray[np.float32]) -> Window:
    """The smallest square around what is not zero in a map, which is where the model looked; at worst the whole frame."""
    seen = anomaly > 0
    top, bottom, left, right = bounding_box(seen) if seen.any() else (0, anomaly.shape[0], 0, anomaly.shape[1])
    side = max(bottom - top, right - left)
    return Window.square(top - (side - bottom + top) // 2, left - (side - right + left) // 2, side, anomaly.shape)


def _gone(inspection: Inspection) -> HTTPException:
    return HTTPException(404, f"the files of inspection {inspection.id} are no longer where they were put")


def _unreadable(inspection: Inspection, error: DataError) -> HTTPException:
    detail = one_line(f"inspection {inspection.id}: {error}", 500)
    log.error("%s", detail)
    return HTTPException(500, detail)


def _png(pixels: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()
