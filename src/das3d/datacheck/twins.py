"""Scans that occur more than once: within the good parts, across splits, or with one member only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from das3d.datacheck.facts import Facts

Likeness = Literal["same", "nearly the same", "different", "absent"]

GREY_LEVELS = 2.0  # RMS between thumbnails: saving as JPEG changes them by up to 1, other parts differ by 4 and more
NEAR_RGB, NEAR_DEPTH = 0.2, 0.1  # of the distance to the nearest other part that is usual in the set
BLOCK = 256  # parts compared with all others at a time


@dataclass(frozen=True)
class Twins:
    """Two parts that share a scan, or one member of it.

    Attributes:
        first, second: the parts.
        rgb, depth: how alike the members are.
    """

    first: Facts
    second: Facts
    rgb: Likeness
    depth: Likeness

    @property
    def whole(self) -> bool:
        """Whether all members are alike, rather than one that was copied."""
        return "different" not in (self.rgb, self.depth)

    @property
    def across_splits(self) -> bool:
        return self.first.part.split != self.second.part.split

    def describe(self) -> str:
        def alike(member: Likeness) -> bool:
            return member in ("same", "nearly the same")

        what = " and ".join(
            f"{likeness} {name}" for name, likeness in (("RGB", self.rgb), ("depth", self.depth)) if alike(likeness)
        )
        other = "" if self.whole else f", but different {'depth' if alike(self.rgb) else 'RGB'}"
        return f"{self.first.part.id} and {self.second.part.id}: {what}{other}"


def find_twins(facts: Sequence[Facts]) -> list[Twins]:
    """All pairs of parts that share a scan or a member, in the order of the parts."""
    rgb = _alike([one.rgb_thumbnail for one in facts], [one.rgb_hash for one in facts], NEAR_RGB, GREY_LEVELS)
    depth = _alike([one.depth_thumbnail for one in facts], [one.depth_hash for one in facts], NEAR_DEPTH, np.inf)

    def likeness(pair: tuple[int, int], known: Mapping[tuple[int, int], Likeness], member: str) -> Likeness:
        there = all(getattr(facts[index], f"{member}_hash") for index in pair)
        return known.get(pair, "different") if there else "absent"

    return [
        Twins(facts[i], facts[j], likeness((i, j), rgb, "rgb"), likeness((i, j), depth, "depth"))
        for i, j in sorted(rgb.keys() | depth.keys())
    ]


def _alike(
    thumbnails: Sequence[NDArray[np.float32] | None], hashes: Sequence[str | None], near: float, most: float
) -> dict[tuple[int, int], Likeness]:
    # Pairs, the first part first, whose pixels are the same or nearly so.
    # Depth on pixels too far apart fills no thumbnail.
    known = {index: one for index, one in enumerate(thumbnails) if one is not None and np.isfinite(one).any()}
    alike: dict[tuple[int, int], Likeness] = {}
    if len(known) > 3:  # of three or fewer scans nobody knows what is usual
        rows = np.stack([one.astype(np.float64).ravel() for one in known.values()])
        rows = np.nan_to_num(rows - np.nanmedian(rows))  # what is missing counts as usual
        usual = float(np.median(np.concatenate([block.min(axis=1) for _, block in distances(rows)])))
        places = list(known)
        for first, block in distances(rows):
            for i, j in np.argwhere(block < min(most, near * usual)):
                if first + i < j:
                    alike[places[first + i], places[j]] = "nearly the same"
    by_hash: dict[str, list[int]] = {}
    for index, pixels in enumerate(hashes):
        if pixels is not None:
            by_hash.setdefault(pixels, []).append(index)
    return alike | {pair: "same" for copies in by_hash.values() for pair in combinations(copies, 2)}


def distances(rows: NDArray[np.float64]) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Root mean square differences of rows (N, D) from all others, infinite from themselves.

    They come in blocks of up to (BLOCK, N), each with the row that it begins with: all at once would take memory with the
    square of the number of parts.
    """
    squares = (rows**2).mean(axis=1)
    for first in range(0, len(rows), BLOCK):
        some = rows[first : first + BLOCK]
        product = some @ rows.T / rows.shape[1]
        block = np.sqrt(np.maximum(squares[first : first + BLOCK, None] + squares[None, :] - 2 * product, 0))
        block[np.arange(len(some)), first + np.arange(len(some))] = np.inf
        yield first, block
