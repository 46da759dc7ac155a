"""A data set made from nothing: moulded covers as a camera with a depth sensor sees them, good and defective.

It lets a first run happen without a download, and its figures mean something: the defects change the part's shape and
colour before it is seen, with all that follows for light, shadow and missing points; they are not painted on.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from das3d.arguments import is_whole, path_of, shown
from das3d.demo.camera import Light, changed, draw_light, look, meet, sense
from das3d.demo.defects import DEFECTS
from das3d.demo.part import Surface, draw_part, surface_of
from das3d.errors import DataError, one_line

CATEGORY = "moulded_cover"
KINDS = tuple(DEFECTS)
MARKER = "das3d_demo.json"  # tells our own output from a folder that must not be touched
COUNTS = ("train", "validation", "good", "defective")  # of parts, in the marker
SMALLEST = 64  # pixels; below this a rib is thinner than a pixel
LONGEST = 4 / 3  # longer side over shorter: the grid holds no more table
LEAST = 3e-4  # of the picture; a smaller change is not taken for a defect


@dataclass(frozen=True)
class DemoScan:
    """One rendered part.

    Attributes:
        rgb: (H, W, 3) uint8.
        points: (H, W, 3) float32, x, y, z in the camera's frame, metres, (0, 0, 0) where missing.
        mask: (H, W) bool, True where the defect shows.
    """

    rgb: NDArray[np.uint8]
    points: NDArray[np.float32]
    mask: NDArray[np.bool_]


def render_part(
    key: tuple[int, str, str, int], *, size: tuple[int, int] = (256, 256), defect: str | None = None
) -> DemoScan:
    """One part as the sensors see it.

    Args:
        key: (seed, split, kind, index); the part, its pose, light and noise follow from it alone.
        size: height and width in pixels.
        defect: one of `KINDS`, or None. The same key without a defect gives the same part before it was harmed: both
            differ only near the defect.

    Raises:
        DataError: the size or the defect is none that can be rendered.
    """
    problems = _wrong_size(size)
    if defect is not None and defect not in KINDS:
        problems.append(f"defect: expected one of {', '.join(KINDS)}, found {defect!r}")
    if problems:
        raise DataError(problems)
    seed, split, kind, index = key
    rng = np.random.default_rng([seed, zlib.crc32(f"{split}/{kind}".encode()), index])
    part_rng, light_rng, sensor_rng, defect_rng = rng.spawn(4)
    part, light = draw_part(part_rng), draw_light(light_rng)
    surface = surface_of(part)
    harm = None if defect is None else lambda: DEFECTS[defect](part, surface, defect_rng)
    return scanned(surface, harm, light, size, sensor_rng)


def scanned(
    surface: Surface, harm: Callable[[], Surface] | None, light: Light, size: tuple[int, int], rng: np.random.Generator
) -> DemoScan:
    """What the sensors deliver of a surface, or of what `harm` makes of it, with the truth of what shows of that."""
    hits, mask = meet(surface, size), np.zeros(size, dtype=bool)
    if harm is not None:
        good = hits
        while mask.mean() < LEAST:  # a scratch that fell into a hole is no defect: try another
            surface = harm()
            hits = meet(surface, size)
            mask = changed(good, hits)
    return DemoScan(*sense(look(surface, hits, light), rng), mask)


def make_demo(
    folder: Path | str,
    *,
    train: int = 80,
    validation: int = 10,
    good: int = 20,
    defective: int = 8,
    size: tuple[int, int] = (256, 256),
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the demo data set in the layout of MVTec 3D-AD, category `CATEGORY`.

    A part depends on the seed, its split, kind and number only, so fewer or more parts change none of the others.

    Args:
        folder: where to; new, empty, or holding earlier output of this function, which is replaced. Other files in it
            stay.
        train, validation: good parts to train on and to set a threshold by.
        good: good test parts; defective: test parts of each of `KINDS`.
        size: height and width in pixels.
        seed: another seed gives other parts.
        progress: called with the number of parts done and to do.

    Returns:
        The data root, which holds the category's folder.

    Raises:
        DataError: the folder holds something else, also where a part would be written, or a number is out of range.
    """
    folder = path_of(folder, "folder")
    counts = {"train": train, "validation": validation, "good": good, "defective": defective}
    _check(counts, size, seed)
    before = _files_of(folder, _earlier(folder))
    _expect_room(before, _files_of(folder, counts))
    folder.mkdir(parents=True, exist_ok=True)
    about = {"made_by": "das3d demo-data", "category": CATEGORY, "seed": seed, "size": list(size), **counts}
    for file in before:  # old parts would mix with the new ones
        file.unlink(missing_ok=True)
    (folder / MARKER).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")

    parts = _parts(counts)
    for done, (split, kind, index) in enumerate(parts):
        if progress:
            progress(done, len(parts))
        scan = render_part((seed, split, kind, index), size=size, defect=kind if kind in DEFECTS else None)
        write_scan(folder / CATEGORY / split / kind, f"{index:03d}", scan, with_truth=split == "test")
    if progress:
        progress(len(parts), len(parts))
    return folder


def _parts(counts: Mapping[str, int]) -> list[tuple[str, str, int]]:
    # Split, kind and index of each.
    groups = [("train", "good", "train"), ("validation", "good", "validation"), ("test", "good", "good")]
    groups += [("test", kind, "defective") for kind in KINDS]
    return [(split, kind, index) for split, kind, name in groups for index in range(counts[name])]


def _check(counts: dict[str, int], size: tuple[int, int], seed: int) -> None:
    problems = [
        f"{name}: expected a number of parts from 0 up, found {shown(n)}"
        for name, n in counts.items()
        if not is_whole(n, 0)
    ]
    problems += _wrong_size(size)
    if not is_whole(seed, 0):
        problems.append(f"seed: expected a number from 0 up, found {shown(seed)}")
    if problems:
        raise DataError(problems)


def _wrong_size(size: tuple[int, int]) -> list[str]:
    if not (isinstance(size, Sequence) and len(size) == 2 and all(is_whole(side, 0) for side in size)):
        return [f"size: expected height and width in pixels, such as (256, 256), found {one_line(repr(size))}"]
    if min(size) < SMALLEST:
        return [f"size: expected at least {SMALLEST} x {SMALLEST} pixels, found {size[1]} x {size[0]}"]
    if max(size) > LONGEST * min(size):
        return [f"size: expected sides in a ratio of at most 4 : 3, found {size[1]} x {size[0]}"]
    return []


def _earlier(folder: Path) -> dict[str, int]:
    # How many parts of each sort an earlier run has written there.
    none = dict.fromkeys(COUNTS, 0)
    if not folder.exists():
        return none
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder for the demo data, found a file")
    file = folder / MARKER
    if not file.is_file():
        if any(folder.iterdir()):
            raise DataError(f"{folder}: expected a new or empty folder or earlier demo data, found other files")
        return none
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        return {name: int(about[name]) for name in COUNTS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        found = one_line(f"{type(error).__name__}: {error}")
        raise DataError(f"{file}: expected what earlier demo data consist of, found {found}; use a new folder") from None


def _expect_room(before: list[Path], wanted: list[Path]) -> None:
    # What the earlier run did not write is somebody's own.
    own = set(before)
    foreign = [f"{file}: expected a free place for a demo part, found a file that is none; move it, or use a new folder"
               for file in wanted if file not in own and file.exists()]  # fmt: skip
    if foreign:
        raise DataError(foreign)


def _files_of(folder: Path, counts: Mapping[str, int]) -> list[Path]:
    return [
        file
        for split, kind, index in _parts(counts)
        for file in _places(folder / CATEGORY / split / kind, f"{index:03d}", with_truth=split == "test")
    ]


def write_scan(folder: Path, number: str, scan: DemoScan, *, with_truth: bool) -> None:
    rgb, xyz, *gt = places = _places(folder, number, with_truth=with_truth)
    for file in places:
        file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scan.rgb).save(rgb, compress_level=3)
    tifffile.imwrite(xyz, scan.points, photometric="minisblack", planarconfig="contig")
    for file in gt:
        Image.fromarray(scan.mask.astype(np.uint8) * 255).save(file)


def _places(folder: Path, number: str, *, with_truth: bool) -> list[Path]:
    # Of RGB, points and, where it is written, the truth.
    places = [folder / "rgb" / f"{number}.png", folder / "xyz" / f"{number}.tiff", folder / "gt" / f"{number}.png"]
    return places if with_truth else places[:2]
