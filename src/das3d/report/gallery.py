"""The report's gallery: pictures of each evaluated part, and its surface for the viewer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from das3d.console import progress
from das3d.detector import Detector
from das3d.parts import Part
from das3d.pictures import Image, depth_picture, grey, outlined, overlay
from das3d.preparation import PreparedScan, prepare
from das3d.report.evaluated import Evaluation, Row, map_files
from das3d.scan import Mask, Scan
from das3d.streaming import picture_scale, read_map, read_to_show
from das3d.surfaces import background_of, data_uri, surface_of

TILE = 256  # pixels of a picture's longer side, at most: 100 parts then take about 8 MB
TRUTH = (255, 0, 200)  # the outline of ground truth: a colour that neither parts nor heat have


@dataclass
class Card:
    """One part in the gallery: its row, named pictures as data URIs, and its surface for the viewer as JSON."""

    row: Row
    pictures: list[tuple[str, str]]
    surface: str | None = None


def make_cards(detector: Detector, evaluation: Evaluation, parts: Mapping[str, Part], most: int) -> Iterator[Card]:
    """Pictures of the worst `most` parts; one part is held at a time."""
    files, high = map_files(evaluation, parts), picture_scale(detector)
    rows = evaluation.rows[:most]
    with progress("drawing", len(rows)) as step:
        for row in rows:
            scan = read_to_show(parts[row.id], detector.statistics)
            yield make_card(detector, row, scan, read_map(files[row.id]), high)
            step()


def make_card(detector: Detector, row: Row, scan: Scan, anomaly: NDArray[np.float32], high: float) -> Card:
    """Pictures and surface of one part, cut to the window that the networks see."""
    prepared = prepare(scan, detector.statistics, detector.settings.preparation)
    output = detector.run([prepared])
    cut, put_back = prepared.window.cut, prepared.window.on_cut.put_back  # all pictures lie as the scan does
    base = scan.rgb if scan.rgb is not None else depth_picture(scan)
    pictures: list[tuple[str, Image]] = []
    if scan.rgb is not None:
        pictures.append(("RGB", cut(scan.rgb)))
    if detector.statistics.has_depth:
        pictures.append(("Depth", grey(put_back(1 - prepared.depth))))
    if output.rgb is not None:
        channels = repaired_rgb(output.rgb[0], detector, prepared)
        pictures.append(("RGB, repaired", np.stack([put_back(channel) for channel in channels], axis=2).astype(np.uint8)))
    if output.depth is not None:
        pictures.append(("Depth, repaired", grey(put_back(np.float32(1) - output.depth[0]))))
    heated = outlined(overlay(scan, anomaly, high), [region.outline for region in row.regions])
    pictures.append(("Heat", cut(heated)))
    if row.defective:
        told = "Ground truth" if scan.mask is not None else "Ground truth: no mask"
        pictures.append((told, with_truth(cut(base), None if scan.mask is None else cut(scan.mask))))
    surface = None
    if scan.depth is not None:
        plane = background_of(scan, detector.statistics)
        made = surface_of(scan.without(rgb=True), anomaly, high=high, window=prepared.window, plane=plane)
        surface = json.dumps(made.to_json())  # its RGB is the first picture of the card
    return Card(row, [(name, data_uri(shrunk(picture))) for name, picture in pictures], surface)


def repaired_rgb(image: NDArray[np.float32], detector: Detector, prepared: PreparedScan) -> NDArray[np.float32]:
    """Repaired RGB (3, S, S) as grey levels as bright as the scan itself; what is no part stays black."""
    return np.clip(np.round(image * detector.statistics.rgb_high), 0, 255) * prepared.foreground


def with_truth(picture: Image, mask: Mask | None) -> Image:
    """A picture with the outline of a mask, at the size that the report shows; darkened where nothing is known."""
    small = shrunk(picture)
    if mask is None:
        return (small // 3).astype(np.uint8)
    share = cv2.resize(mask.astype(np.float32), small.shape[1::-1], interpolation=cv2.INTER_AREA)
    edges, _ = cv2.findContours((share > 0.3).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return np.asarray(cv2.drawContours(small.copy(), edges, -1, TRUTH, 2, cv2.LINE_AA), np.uint8)


def shrunk(picture: Image, most: int = TILE) -> Image:
    """A picture of at most `most` pixels a side."""
    scale = most / max(picture.shape[:2])
    if scale >= 1:
        return picture
    size = (max(round(picture.shape[1] * scale), 1), max(round(picture.shape[0] * scale), 1))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
