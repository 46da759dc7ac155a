"""Prepared scans on disk, outside the user's data, so that preparation is paid once.

One TIFF file a scan, named by a hash of everything that it depends on: the part's files (path, size, time of change), how
depth is read, the statistics, the settings and the code that reads and prepares. Whatever changes gives another name, so
nothing is ever stale; and nothing is ever deleted, which is left to whoever empties the folder.
The pages (RGB, depth, flags) open in any viewer; a checksum stands behind them, so a damaged file is written again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from dataclasses import asdict
from functools import cache
from importlib import import_module, resources
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from das3d.errors import DataError
from das3d.preparation import DEPTH_STEP, PreparedScan, Window

# What prepared scans depend on: our code, and the libraries that decode and resize.
CODE = (
    "_arrays.py", "_clouds.py", "background.py", "cache.py", "files.py", "foreground.py", "masks.py", "measurement.py",
    "parts.py", "preparation.py", "scan.py",
)  # fmt: skip
READERS = ("numpy", "scipy", "cv2", "PIL", "tifffile", "imagecodecs", "plyfile")
LOWEST = -0.5  # normalised depth of code 0
VALID, FOREGROUND, MASK, HAS_MASK = 1, 2, 4, 8
CHECKSUM = 16  # bytes


def cache_folder() -> Path:
    """``$DAS3D_CACHE``, or ``das3d`` in the user's cache folder."""
    chosen = os.environ.get("DAS3D_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "das3d"


def key_of(files: list[Path], *what: Any) -> str:
    """Name of what depends on these files and on `what` (plain values)."""
    stats = [(str(file.resolve()), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]
    text = json.dumps([_code(), stats, what], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@cache
def _code() -> str:
    sources = resources.files("das3d")
    versions = [f"{name} {version_of(name)}".encode() for name in READERS]
    return hashlib.sha256(b"\0".join([*versions, *((sources / name).read_bytes() for name in CODE)])).hexdigest()


def version_of(package: str) -> str:
    """Version of a package by its import name, whichever distribution brings it; "" where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:  # as of cv2, or of onnxruntime where onnxruntime-gpu brings it
        with contextlib.suppress(ImportError):
            return str(import_module(package).__version__)
        return ""


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
        pixel_mm2=known.get("pixel_mm2"),
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
        raise DataError(
            f"{path}: expected a cache that can be written, found: {reason}; DAS3D_CACHE chooses another"
        ) from None


def write_atomically(path: Path, content: bytes | memoryview, *, lasting: bool = True) -> None:
    """Write a file so that readers, and a crash at any moment, see the old content or the new, never a part.

    Args:
        path: the file.
        content: what it shall hold.
        lasting: wait until the disk has it, so that not even a power failure leaves an empty file. Without it a file is
            written many times as fast; for files that are checked when read, or made again.
    """
    temporary = _written_beside(path, content, lasting)
    try:
        replace_file(temporary, path)
    except BaseException as error:
        _give_up(error, path, temporary)
        raise


def write_pair(data: tuple[Path, bytes], head: tuple[Path, bytes]) -> None:
    """Write two files of which the head means nothing without the data, as `write_atomically` does.

    Neither is replaced before both are written. A head of before is never seen beside new data: for the moment between
    there is none, and if the data cannot be replaced, the head of before comes back.
    """
    (path, content), (head_path, head_content) = data, head
    temporary = _written_beside(path, content, lasting=True)
    try:
        new_head = _written_beside(head_path, head_content, lasting=True)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    old_head = _temporary_for(head_path)
    try:
        if head_path.is_file():
            replace_file(head_path, old_head)
        replace_file(temporary, path)
    except BaseException as error:
        if old_head.is_file():
            replace_file(old_head, head_path)
        _give_up(error, path, temporary, new_head)
        raise
    try:
        replace_file(new_head, head_path)
    except BaseException as error:
        _give_up(error, head_path, new_head)
        raise
    finally:
        old_head.unlink(missing_ok=True)


def _temporary_for(path: Path) -> Path:
    # Not tempfile's, which nobody but the user may read: a service often runs as somebody else than who trains.
    return path.with_name(f".{path.name}.{uuid4().hex}")


def _written_beside(path: Path, content: bytes | memoryview, lasting: bool) -> Path:
    # The file under another name, or nothing where that fails.
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_for(path)
    try:
        with temporary.open("xb") as file:
            file.write(content)
            if lasting:
                file.flush()
                os.fsync(file.fileno())
    except BaseException as error:
        _give_up(error, path, temporary)
        raise
    return temporary


def _give_up(error: BaseException, path: Path, *temporaries: Path) -> None:
    for temporary in temporaries:
        temporary.unlink(missing_ok=True)
    if isinstance(error, OSError):
        error.filename = str(path)  # what the user knows, not the temporary file


HELD = (5, 32, 33)  # Windows' errors where another program holds a file: access denied, sharing violation, lock violation
WAITS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.8)  # seconds, two in all: as long as a virus scanner looks at a new file


def replace_file(source: Path, target: Path) -> None:
    """Move a file into another's place, for readers at once; on Windows with some patience while a program holds it."""
    for wait in WAITS:
        try:
            os.replace(source, target)
            return
        except OSError as error:
            if getattr(error, "winerror", None) not in HELD:
                raise
        time.sleep(wait)
    os.replace(source, target)
