"""The picture of the README, from what `make demo` left.

python benchmarks/demo_picture.py demo docs/images/demo.jpg
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from das3d import pictures
from das3d.datasets import find_dataset
from das3d.detector import load
from das3d.streaming import output_names, picture_scale, read_map


def main(demo: Path, out: Path) -> None:
    """A column for one part of each kind: its RGB, its depth, what was found and what is true."""
    parts = find_dataset(demo / "data").test
    names = output_names(parts)
    high = picture_scale(load(demo / "run", "cpu"))
    chosen = {part.defect: part for part in reversed(parts)}
    rows: dict[str, list[pictures.Image]] = {"RGB": [], "depth": [], "found": [], "true": []}
    for part in (chosen[kind] for kind in sorted(chosen)):
        scan = part.read()
        assert scan.rgb is not None and scan.mask is not None
        rows["RGB"].append(scan.rgb)
        rows["depth"].append(pictures.depth_picture(scan))
        found = read_map(demo / "run/evaluation/maps" / f"{names[part.id]}.tiff")
        rows["found"].append(pictures.overlay(scan, found, high))
        rows["true"].append(pictures.grey(scan.mask.astype(np.float32)))
    pictures.save_picture(out, pictures.sheet(list(rows.items())))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
