"""Tiny data sets on disk for tests: one made-up part, writers of every file format, and the layouts.

    part = sample(3)                                   # RGB, points, mask; differs with the number
    write_member(folder / "a_depth.ply", part.points)  # the suffix chooses the format
    mvtec3d(folder / "bolt")                           # a whole category

PLY and PCD are written by hand and PNG by OpenCV, so that no test reads a file by the code that wrote it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

from das3d.scan import Camera

SIZE = (12, 16)  # height, width
CAMERA = Camera(fx=40.0, fy=42.0, cx=7.0, cy=6.0)


@dataclass(frozen=True)
class Sample:
    """One part: RGB (H, W, 3), points (H, W, 3) in metres with (0, 0, 0) where missing, and ground truth (H, W)."""

    rgb: NDArray[np.uint8]
    points: NDArray[np.float32]
    mask: NDArray[np.bool_]

    @property
    def depth(self) -> NDArray[np.float32]:
        return self.points[..., 2]

    @property
    def valid(self) -> NDArray[np.bool_]:
        return self.depth > 0

    @property
    def counts(self) -> NDArray[np.uint16]:
        """Depth in tenths of a millimetre, which it is a whole number of."""
        return np.rint(self.depth.astype(np.float64) * 10_000).astype(np.uint16)


def sample(seed: int = 0, size: tuple[int, int] = SIZE) -> Sample:
    """A part 0.4 to 0.6 m away with some missing points, its depth in whole tenths of a millimetre."""
    rng = np.random.default_rng(seed)
    v, u = np.indices(size)
    depth = rng.integers(4000, 6000, size) / 10_000
    depth[rng.random(size) < 0.1] = 0
    points = np.stack([(u - CAMERA.cx) / CAMERA.fx * depth, (v - CAMERA.cy) / CAMERA.fy * depth, depth], axis=-1)
    mask = np.zeros(size, np.bool_)
    mask[3:6, 4:9] = True
    return Sample(rng.integers(0, 256, (*size, 3), np.uint8), points.astype(np.float32), mask)


# ------------------------------------------------------------------------------------ one file


def write_member(path: Path, array: NDArray[Any]) -> Path:
    """Write an array in the format that the suffix says: pictures, TIFF, NPY, NPZ, binary PLY and PCD."""
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = path.suffix.lower()
    if array.dtype == np.bool_ and suffix not in (".npy", ".npz"):
        array = array.astype(np.uint8) * 255
    if suffix in (".tif", ".tiff"):
        tifffile.imwrite(path, array, photometric="rgb" if array.dtype.kind == "u" and array.ndim == 3 else "minisblack")
    elif suffix == ".npy":
        np.save(path, array)
    elif suffix == ".npz":
        np.savez(path, depth=array)
    elif suffix == ".ply":
        write_ply(path, array)
    elif suffix == ".pcd":
        write_pcd(path, array)
    else:
        order = {3: [2, 1, 0], 4: [2, 1, 0, 3]}  # OpenCV takes colours backwards
        encoded, content = cv2.imencode(suffix, array if array.ndim == 2 else array[..., order[array.shape[2]]])
        assert encoded
        path.write_bytes(content.tobytes())
    return path


def write_ply(
    path: Path,
    points: NDArray[Any],
    form: str = "binary_little_endian",
    *,
    grid: tuple[str, str] | None = ("obj_info num_cols", "obj_info num_rows"),
    kind: str = "float",
    colours: bool = False,
) -> Path:
    """An organised cloud; `grid` are the words that declare width and height, None leaves them out."""
    height, width = points.shape[:2]
    words = {"float": "f4", "double": "f8"}
    order = ">" if "big" in form else "<"
    fields = [(axis, order + words[kind]) for axis in "xyz"] + [(name, "u1") for name in ("red", "green") if colours]
    records = np.zeros(height * width, fields)
    for index, axis in enumerate("xyz"):
        records[axis] = points[..., index].ravel()
    names = {"f4": "float", "f8": "double", "u1": "uchar"}
    header = ["ply", f"format {form} 1.0"]
    header += [] if grid is None else [f"{grid[0]} {width}", f"{grid[1]} {height}"]
    header += [f"element vertex {records.size}"]
    header += [f"property {names[code.strip('<>')]} {name}" for name, code in fields]
    body = _lines(records) if form == "ascii" else records.tobytes()
    path.write_bytes("\n".join([*header, "end_header", ""]).encode() + body)
    return path


def write_pcd(
    path: Path,
    points: NDArray[Any],
    form: str = "binary",
    *,
    organised: bool = True,
    names: tuple[str, ...] = ("x", "y", "z"),
    size: int = 4,
) -> Path:
    """A cloud whose fields are `names` of `size` bytes; any but x, y and z are zero."""
    height, width = points.shape[:2]
    columns = [points[..., "xyz".index(name)] if name in "xyz" else np.zeros((height, width)) for name in names]
    records = np.stack([column.ravel() for column in columns], axis=-1).astype(f"<f{size}")
    header = [
        "# .PCD v0.7 - Point Cloud Data file format", "VERSION 0.7", f"FIELDS {' '.join(names)}",
        "SIZE" + f" {size}" * len(names), "TYPE" + " F" * len(names), "COUNT" + " 1" * len(names),
        f"WIDTH {width if organised else records.shape[0]}", f"HEIGHT {height if organised else 1}",
        "VIEWPOINT 0 0 0 1 0 0 0", f"POINTS {records.shape[0]}", f"DATA {form}", "",
    ]  # fmt: skip
    if form == "ascii":
        body = _lines(records)
    elif form == "binary":
        body = records.tobytes()
    else:
        by_field = np.ascontiguousarray(records.T).tobytes()
        packed = imagecodecs.lzf_encode(by_field)
        body = struct.pack("<II", len(packed), len(by_field)) + packed
    path.write_bytes("\n".join(header).encode() + body)
    return path


def _lines(records: Iterable[Iterable[float]]) -> bytes:
    return "".join(" ".join(f"{value:.9g}" for value in record) + "\n" for record in records).encode()


# ------------------------------------------------------------------------------------ one category


def mvtec3d(
    folder: Path,
    *,
    train: int = 3,
    validation: int = 1,
    test: Mapping[str, int] | None = None,
    masks: str = "gt",
) -> Path:
    """MVTec 3D-AD: `test` maps kinds to numbers of parts; `masks` is the folder of ground truth (3D-ADAM: ground_truth)."""
    kinds = {("train", "good"): train, ("validation", "good"): validation}
    kinds |= {("test", kind): count for kind, count in (test or {"good": 1, "hole": 2}).items()}
    for (split, kind), count in kinds.items():
        for index in range(count):
            part, place = sample(index), folder / split / kind
            write_member(place / f"rgb/{index:03}.png", part.rgb)
            write_member(place / f"xyz/{index:03}.tiff", part.points)
            if split == "test":
                write_member(place / f"{masks}/{index:03}.png", part.mask & (kind != "good"))
    return folder


def own_kind(
    folder: Path, names: Iterable[str] = ("a", "b", "c"), *, suffixes: bool = False, members: str = "rgb depth"
) -> Path:
    """One folder of a user's parts: folders for `members` (of "rgb depth mask"), or files NAME_rgb.png and so on."""
    for seed, name in enumerate(names):
        part = sample(seed)
        for member, array, suffix in (("rgb", part.rgb, "png"), ("depth", part.depth, "tiff"), ("mask", part.mask, "png")):
            if member in members.split():
                write_member(folder / (f"{name}_{member}.{suffix}" if suffixes else f"{member}/{name}.{suffix}"), array)
    return folder


def declare(folder: Path, text: str = "depth_unit: m") -> Path:
    """Write dataset.yaml."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.yaml").write_text(text)
    return folder


def own_data(folder: Path) -> Path:
    """A user's own data, sound in all respects: five good parts and two with holes and their ground truth."""
    own_kind(folder / "good", "abcde")
    own_kind(folder / "hole", "ab", members="rgb depth mask")
    return declare(folder)


def eyecandies(folder: Path, *, lights: Iterable[int] = (4,), kinds: Iterable[str] = ("", "dents")) -> Path:
    """Eyecandies: two training parts, one for validation, a test part of each of `kinds` ("" is good, "a+b" has two)."""
    low, high = 0.3, 0.7
    for split, defects in (("train", ["", ""]), ("val", [""]), ("test_public", list(kinds))):
        for index, defect in enumerate(defects):
            part, place = sample(index), f"{split}/data/{index:02}"
            for light in lights:
                write_member(folder / f"{place}_image_{light}.png", np.roll(part.rgb, light - 4, axis=2))
            counts = np.rint((part.depth.clip(low).astype(np.float64) - low) / (high - low) * 65535)
            write_member(folder / f"{place}_depth.png", counts.astype(np.uint16))
            write_member(folder / f"{place}_mask.png", part.mask & bool(defect))
            flags = {"anomalous": bool(defect)}
            flags |= {f"anomalous_{kind}": kind in defect.split("+") for kind in ("bumps", "dents", "colors", "normals")}
            lines = [f"{flag}: {int(on)}" for flag, on in flags.items()]
            (folder / f"{place}_metadata.yaml").write_text("\n".join(lines))
            (folder / f"{place}_info_depth.yaml").write_text(f"normalization:\n  max: {high}\n  min: {low}\n")
    return folder
