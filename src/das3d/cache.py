"""Prepared scans on disk, outside the user's data, so that preparation is paid once.

One TIFF file a scan, named by a hash of everything that it depends on: the part's files (path, size, time of change), how
depth is read, the statistics, the settings and the code that reads and prepares. Whatever changes gives another name, so
nothing is ever stale; and nothing is ever deleted, which is left to whoever empties the folder.
The pages (RGB, depth, flags) open in any viewer; a checksum stands behind them, so a damaged file is written again.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from das3d.atomic import write_atomically
from das3d.errors import Das3dError, DataError
from das3d.preparation import DEPTH_STEP, PreparedScan
from das3d.settings import PreparationSettings
from das3d.versions import version_of
from das3d.window import Window

# What prepared scans depend on: our code, and the libraries that decode and resize.
CODE = (
    "_arrays.py", "_clouds.py", "background.py", "cache.py", "files.py", "foreground.py", "masks.py", "measurement.py",
    "parts.py", "preparation.py", "scan.py", "sparse.py", "window.py",
)  # fmt: skip
READERS = ("numpy", "cv2", "PIL", "tifffile", "imagecodecs", "plyfile")
LOWEST = -0.5  # normalised depth of code 0
VALID, FOREGROUND, MASK, HAS_MASK = 1, 2, 4, 8
CHECKSUM = 16  # bytes


class CacheError(Das3dError):
    """The cache cannot be written. No `DataError`: it says nothing of the part at hand, which would be left out for it."""


def cache_folder() -> Path:
    """``$DAS3D_CACHE``, or ``das3d`` in the user's cache folder."""
    chosen = os.environ.get("DAS3D_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "das3d"


def key_of(files: list[Path], settings: PreparationSettings, *what: Any) -> str:
    """Name of what depends on these files, on all that the settings tell and on `what` (plain values).

    Raises:
        DataError: a file is not there, or cannot be looked at.
    """
    stats = []
    for file in files:
        try:
            stat = file.stat()
        except OSError as error:
            reason = error.strerror or str(error)
            raise DataError(f"{file}: expected a file of a part, found {reason}") from None
        stats.append((str(file.resolve()), stat.st_size, stat.st_mtime_ns))
    text = json.dumps([_code(), stats, _told_by(settings), what], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _told_by(settings: PreparationSettings) -> dict[str, Any]:
    # With what its properties make of its values: their code is not in `CODE`, as other settings share the file.
    made = [name for name, member in vars(type(settings)).items() if isinstance(member, property)]
    return settings.model_dump() | {name: getattr(settings, name) for name in made}


@cache
def _code() -> str:
    sources = resources.files("das3d")
    versions = [f"{name} {version_of(name)}".encode() for name in READERS]
    return hashlib.sha256(b"\0".join([*versions, *((sources / name).read_bytes() for name in CODE)])).hexdigest()


def load_json(key: str) -> Any | None:
    """What `save_json` kept under this key, or None."""
    try:
        return json.loads((cache_folder() / f"{key}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def save_json(key: str, value: Any) -> None:
    _keep(cache_folder() / f"{key}.json", json.dumps(value).encode())


def load_scan(key: str) -> PreparedScan | None:
    """What `save_scan` kept under this key, or None where there is nothing or it cannot be read."""
    import io

    import tifffile

    try:
        content = (cache_folder() / key[:2] / f"{key}.tif").read_bytes()
    except OSError:
        return None
    pages, checksum = content[:-CHECKSUM], content[-CHECKSUM:]
    if _checksum(pages) != checksum:
        return None
    with tifffile.TiffFile(io.BytesIO(pages)) as tiff:
        rgb, depth, flags = (page.asarray() for page in tiff.pages)
        known = json.loads(tiff.pages.first.description)
    return PreparedScan(
        name=known["name"],
        rgb=rgb,
        depth=depth.astype(np.float32) * DEPTH_STEP + LOWEST,
        valid=(flags & VALID) > 0,
        foreground=(flags & FOREGROUND) > 0,
        mask=(flags & MASK) > 0 if (flags & HAS_MASK).any() else None,
        window=Window(**{**known["window"], "frame": tuple(known["window"]["frame"])}),
        pixel_mm2=known["pixel_mm2"],
        doubt=known["doubt"],
    )


def save_scan(key: str, scan: PreparedScan) -> None:
    import io

    import tifffile

    flags = scan.valid * VALID + scan.foreground * FOREGROUND
    if scan.mask is not None:
        flags = flags + scan.mask * MASK + HAS_MASK
    depth = np.round((scan.depth - LOWEST) / DEPTH_STEP).astype(np.uint16)
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as tiff:
        told = {"name": scan.name, "window": asdict(scan.window), "pixel_mm2": scan.pixel_mm2, "doubt": scan.doubt}
        description = json.dumps(told)
        options: dict[str, Any] = {"compression": "zlib", "predictor": True, "metadata": None}
        tiff.write(scan.rgb, photometric="rgb", description=description, **options)
        tiff.write(depth, photometric="minisblack", **options)
        tiff.write(flags.astype(np.uint8), photometric="minisblack", **options)
    pages = buffer.getvalue()
    _keep(cache_folder() / key[:2] / f"{key}.tif", pages + _checksum(pages))


def _checksum(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=CHECKSUM).digest()


def _keep(path: Path, content: bytes) -> None:
    try:
        write_atomically(path, content, lasting=False)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CacheError(
            f"{path}: expected a cache that can be written, found: {reason}; DAS3D_CACHE chooses another"
        ) from None
