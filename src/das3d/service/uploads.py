"""Files from strangers, brought to disk within limits and read as one scan.

Names only choose the reader and stand in messages; on disk a file is called what it is. Sizes are taken from headers and
judged before anything is decoded.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from fastapi import HTTPException, UploadFile

from das3d._arrays import open_tiff
from das3d.errors import DataError, one_line
from das3d.files import (
    DEPTH_SUFFIXES,
    HOW_TO_DECLARE,
    RGB_SUFFIXES,
    TIFF_SUFFIXES,
    DepthFormat,
    Size,
    depth_size,
    rgb_size,
)
from das3d.layouts import part_name
from das3d.parts import UNKNOWN, Part
from das3d.prediction import with_focal_length
from das3d.scan import Scan
from das3d.streaming import rgb_alone

# Of TIFF: none, LZW, deflate (two numbers), PackBits, LZMA and Zstandard, whose decoders stop at the size that the TIFF
# header declares. The others hold a whole file with a size of its own, which nobody has judged.
PLAIN_CODECS = frozenset({1, 5, 8, 32946, 32773, 34925, 50000})


@dataclass(frozen=True)
class Upload:
    """A part on disk.

    Attributes:
        part: what the client calls it, or what its files are called.
        rgb, depth: its files; None where there is none.
        names: what the client calls the files, for messages.
    """

    part: str
    rgb: Path | None
    depth: Path | None
    names: dict[str, str]


def save_upload(folder: Path, part: str | None, rgb: UploadFile | None, depth: UploadFile | None) -> Upload:
    """Write the files of a request into a folder.

    Raises:
        HTTPException: 415 where a file is of no known kind, 422 where there is none.
    """
    saved: dict[str, Path] = {}
    names: dict[str, str] = {}
    for member, upload, suffixes in (("rgb", rgb, RGB_SUFFIXES), ("depth", depth, DEPTH_SUFFIXES)):
        if upload is None or not upload.filename:  # browsers send an empty field as a file without a name
            continue
        name = _plain(upload.filename) or member
        saved[member] = folder / (member + _suffix(name, member, suffixes))
        names[str(saved[member])] = name
        _copy(upload.file, saved[member])
    if not saved:
        raise HTTPException(422, "expected a file in the field rgb, depth or both, found none")
    first = next(iter(names.values()))
    called = one_line(part or "", 150) or part_name(PurePosixPath(first))
    return Upload(called, saved.get("rgb"), saved.get("depth"), names)


def read_upload(
    upload: Upload,
    depth_format: DepthFormat | None,
    most_pixels: int,
    focal_length: float | None = None,
    *,
    depth: bool = True,
) -> Scan:
    """The scan in an upload. Its name is the path of its file, which `in_clients_words` takes out of messages.

    `focal_length`, in pixels, gives areas in mm2 where the file holds depth alone. Without `depth`, as for a model that
    sees none, a depth file beside RGB is not looked at, as `predict` does not look at it.

    Raises:
        HTTPException: 413 where it has too many pixels.
        DataError: it cannot be read.
    """
    part = Part(upload.part, "test", UNKNOWN, upload.rgb, upload.depth, (), depth_format)
    if not depth:
        part = rgb_alone(part)
    _check_headers(part, upload.names, most_pixels)
    return with_focal_length([part], focal_length)[0].read()


def in_clients_words(message: str, upload: Upload) -> str:
    """A message of the readers as one line about the client's files."""
    for path, name in upload.names.items():
        message = message.replace(path, name)
    return message.replace(HOW_TO_DECLARE, "send the form field depth_unit, such as mm or 0.0001").replace("\n", "; ")


def _check_headers(part: Part, names: Mapping[str, str], most_pixels: int) -> None:
    size: Size | None = None
    if part.rgb is not None:
        size = rgb_size(part.rgb)
        _check_pixels(names[str(part.rgb)], size, most_pixels)
    if part.depth is not None:
        found = depth_size(part.depth, part.depth_format, size=size)
        _check_pixels(names[str(part.depth)], found, most_pixels)
        if size is not None and found != size:
            seen = f"{size[1]} x {size[0]} in RGB and {found[1]} x {found[0]} in depth"
            raise DataError(f"{part.id}: expected both members of one size, found {seen}")
    for path in (part.rgb, part.depth):
        if path is not None and path.suffix in TIFF_SUFFIXES:
            check_codec(path, most_pixels)


def _check_pixels(name: str, size: Size, most: int) -> None:
    if size[0] * size[1] > most:
        raise HTTPException(413, f"{name}: expected at most {most / 1e6:g} million pixels, found {size[1]} x {size[0]}")


def check_codec(path: Path, most_pixels: int) -> None:
    """Raise DataError where decoding a TIFF could take more memory than its size, of so many pixels at most, tells."""
    with open_tiff(path) as image:
        page = image.keyframe
        codec, tile = int(page.compression), (page.tilewidth, page.tilelength) if page.is_tiled else (0, 0)
    if codec not in PLAIN_CODECS:
        raise DataError(f"{path}: expected TIFF without compression or with LZW, deflate or Zstandard, found codec {codec}")
    if tile[0] * tile[1] > 2 * most_pixels:
        raise DataError(f"{path}: expected tiles no larger than the image, found {tile[0]} x {tile[1]}")


def _suffix(name: str, member: str, suffixes: Set[str]) -> str:
    suffix = PurePosixPath(name).suffix.lower()
    if suffix not in suffixes:
        found = suffix or "no suffix"
        raise HTTPException(415, f"{name}: expected {member} as one of {', '.join(sorted(suffixes))}, found {found}")
    return suffix


def _plain(name: str) -> str:
    # Without folders, which browsers send along, and fit to be shown.
    return one_line(PurePosixPath(name.replace("\\", "/")).name, 150)


def _copy(source: IO[bytes], to: Path) -> None:
    source.seek(0)
    with to.open("wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
