"""Organised point clouds: PLY and PCD files whose points lie on the pixel grid of a depth image, row by row.

Every format gives two functions: one that reads the header alone and says the shape, (H, W, 3) where the file declares its
grid and (N, 3) where it does not, and one that reads the points in that shape. Both raise what the decoders raise; `files`
turns it into one line that names the file.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from das3d._arrays import Declared

HEADER_LIMIT = 1 << 16  # bytes; longer headers are not headers
MOST_RECORD = 4096  # bytes a point; memory is taken for all fields, whatever they are called
COLUMNS = ("num_cols", "width", "cols")  # what writers call the grid in comments and obj_info lines
ROWS = ("num_rows", "height", "rows")


def ply_header(path: Path) -> Declared:
    """Shape and type of the points of a PLY file.

    The grid is declared by ``obj_info num_cols W`` and ``obj_info num_rows H``, or ``comment width W`` and
    ``comment height H``.
    """
    grid: dict[str, int] = {}
    counts: dict[str, int] = {}
    types: dict[str, str] = {}
    element = ""
    with path.open("rb") as file:
        if _header_line(file) != "ply":
            raise ValueError("no PLY header")
        while (line := _header_line(file)) != "end_header":
            words = line.split()
            if declared := re.fullmatch(r"(?:comment|obj_info)\s+(\w+)\s*[:=]?\s*(\d+)", line):
                grid[declared[1].lower()] = int(declared[2])
            elif words[:1] == ["element"]:
                element = words[1]
                counts[element] = int(words[2])
            elif words[:1] == ["property"] and element == "vertex":
                types[words[-1]] = words[1]
    others = sum(count for name, count in counts.items() if name not in ("vertex", "range_grid"))
    if others > path.stat().st_size:  # memory is taken for what is declared; a grid is judged by its size
        raise ValueError(f"{others} further elements declared in {path.stat().st_size} bytes")
    missing = [axis for axis in "xyz" if axis not in types]
    if "vertex" not in counts or missing:
        raise ValueError(f"no vertices with x, y and z (missing: {', '.join(missing) or 'vertices'})")
    dtype = np.result_type(*(PLY_TYPES[types[axis]] for axis in "xyz"))
    columns = next((grid[name] for name in COLUMNS if name in grid), 0)
    rows = next((grid[name] for name in ROWS if name in grid), 0)
    if "range_grid" in counts and counts["range_grid"] != rows * columns:
        raise ValueError(f"{counts['range_grid']} grid cells, not {columns} x {rows} as declared")
    if rows * columns and "range_grid" not in counts and rows * columns != counts["vertex"]:
        raise ValueError(f"{counts['vertex']} vertices, not {columns} x {rows} as declared")
    return ((rows, columns, 3) if rows * columns else (counts["vertex"], 3)), dtype


def ply_points(path: Path) -> NDArray[Any]:
    """Points of a PLY file, ASCII or binary; grid cells that a ``range_grid`` leaves empty are (0, 0, 0)."""
    from plyfile import PlyData

    shape, _ = ply_header(path)
    with warnings.catch_warnings():
        # NumPy's word on each empty cell of an ASCII range grid, where nothing is wrong.
        warnings.filterwarnings("ignore", "loadtxt: input contained no data", UserWarning)
        data = PlyData.read(str(path))
    points = np.stack([data["vertex"][axis] for axis in "xyz"], axis=-1)
    if "range_grid" not in data:
        return points.reshape(shape)
    cells = data["range_grid"]["vertex_indices"]
    on_grid = np.zeros((len(cells), 3), points.dtype)
    filled = [(cell, int(indices[0])) for cell, indices in enumerate(cells) if len(indices)]
    if filled:
        where, which = np.array(filled).T
        on_grid[where] = points[which]
    return on_grid.reshape(shape)


PLY_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4", "double": "f8",
    "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4", "float32": "f4",
    "float64": "f8",
}  # fmt: skip


@dataclass(frozen=True)
class _Pcd:
    """What a PCD header says.

    Attributes:
        fields: name, element type and number of elements, in the order of the file.
        shape: (H, W, 3), or (N, 3) where the cloud is not organised.
        encoding: ascii, binary or binary_compressed.
        start: of the points in the file, bytes.
    """

    fields: tuple[tuple[str, np.dtype[Any], int], ...]
    shape: tuple[int, ...]
    encoding: str
    start: int

    @property
    def count(self) -> int:
        return prod(self.shape[:-1])

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.result_type(*(dtype for name, dtype, _ in self.fields if name in XYZ))

    @property
    def record(self) -> np.dtype[Any]:
        # Padding fields are all called "_", which a structured type does not allow.
        named: list[tuple[str, DTypeLike, tuple[int]]] = [
            (name if name in XYZ else f"field{index}", dtype, (count,))
            for index, (name, dtype, count) in enumerate(self.fields)
        ]
        return np.dtype(named)


XYZ = ("x", "y", "z")


def _pcd(path: Path) -> _Pcd:
    known: dict[str, list[str]] = {}
    with path.open("rb") as file:
        while "DATA" not in known:
            words = _header_line(file).split()
            if words and not words[0].startswith("#"):
                known[words[0]] = words[1:]
        start = file.tell()
    names = known["FIELDS"]
    counts = known.get("COUNT", ["1"] * len(names))
    fields = tuple(
        (name, np.dtype(kind.lower() + size), int(count))
        for name, kind, size, count in zip(names, known["TYPE"], known["SIZE"], counts, strict=True)
    )
    if missing := [axis for axis in XYZ if names.count(axis) != 1]:
        raise ValueError(f"no single field {', '.join(missing)}")
    if (record := sum(dtype.itemsize * count for _, dtype, count in fields)) > MOST_RECORD:
        raise ValueError(f"{record} bytes a point")
    width, height = int(known["WIDTH"][0]), int(known["HEIGHT"][0])
    shape = (height, width, 3) if height > 1 else (width * height, 3)
    return _Pcd(fields, shape, known["DATA"][0], start)


def pcd_header(path: Path) -> Declared:
    """Shape and type of the points of a PCD file; ``HEIGHT 1`` means that it is not organised."""
    header = _pcd(path)
    return header.shape, header.dtype


def pcd_points(path: Path) -> NDArray[Any]:
    """Points of a PCD file: ascii, binary or binary_compressed."""
    header = _pcd(path)
    with path.open("rb") as file:
        file.seek(header.start)
        body = file.read()
    readers = {"ascii": _pcd_ascii, "binary": _pcd_binary, "binary_compressed": _pcd_compressed}
    if header.encoding not in readers:
        raise ValueError(f"unknown encoding {header.encoding}")
    axes = readers[header.encoding](body, header)
    if any(len(axis) != header.count for axis in axes):
        raise ValueError(f"{len(axes[0])} points, not {header.count} as declared")
    return np.stack(axes, axis=-1).astype(header.dtype).reshape(header.shape)


def _pcd_ascii(body: bytes, header: _Pcd) -> list[NDArray[Any]]:
    if not body.strip():
        raise ValueError("no points")
    starts = np.cumsum([0, *(count for _, _, count in header.fields)])
    names = [name for name, _, _ in header.fields]
    columns = [int(starts[names.index(axis)]) for axis in XYZ]
    return list(np.loadtxt(io.BytesIO(body), usecols=columns, ndmin=2).T)


def _pcd_binary(body: bytes, header: _Pcd) -> list[NDArray[Any]]:
    records = np.frombuffer(body, header.record, count=header.count)
    return [records[axis][:, 0] for axis in XYZ]


def _pcd_compressed(body: bytes, header: _Pcd) -> list[NDArray[Any]]:
    # Two sizes, then LZF data that holds all values of the first field, then all of the second, and so on.
    import imagecodecs

    packed, size = struct.unpack_from("<II", body)
    if size != header.count * header.record.itemsize:
        raise ValueError(f"{size} bytes of points, not {header.count * header.record.itemsize} as declared")
    unpacked = imagecodecs.lzf_decode(body[8 : 8 + packed], out=size)
    axes: dict[str, NDArray[Any]] = {}
    start = 0
    for name, dtype, count in header.fields:
        axes[name] = np.frombuffer(unpacked, dtype, count=header.count * count, offset=start)
        start += header.count * count * dtype.itemsize
    return [axes[axis] for axis in XYZ]


def _header_line(file: IO[bytes]) -> str:
    line = file.readline(HEADER_LIMIT)
    if not line or file.tell() > HEADER_LIMIT:
        raise ValueError("the header does not end")
    return line.decode("ascii", errors="replace").strip()
