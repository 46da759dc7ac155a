"""Scans that occur more than once: within the good parts, across splits, or with one member only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from das3d.facts import Facts

Likeness = Literal["same", "nearly the same", "different", "absent"]

GREY_LEVELS = 2.0  # RMS between thumbnails: saving as JPEG changes them by up to 1, other parts differ by 4 and more
NEAR_RGB, NEAR_DEPTH = 0.2, 0.1  # of the distance to the nearest other part that is usual in the set


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
    found = []
    for i, j in np.argwhere(np.triu((rgb > 0) | (depth > 0), 1)):
        words: tuple[Likeness, ...] = ("different", "nearly the same", "same")
        has_rgb, has_depth = facts[i].rgb_hash and facts[j].rgb_hash, facts[i].depth_hash and facts[j].depth_hash
        found.append(
            Twins(
                facts[i], facts[j],
                words[rgb[i, j]] if has_rgb else "absent", words[depth[i, j]] if has_depth else "absent",
            )
        )  # fmt: skip
    return found


def _alike(
    thumbnails: Sequence[NDArray[np.float32] | None], hashes: Sequence[str | None], near: float, most: float
) -> NDArray[np.int64]:
    # (N, N): 2 the same pixels, 1 nearly, 0 different or not there.
    count = len(thumbnails)
    alike = np.zeros((count, count), dtype=np.int64)
    there = [index for index, thumbnail in enumerate(thumbnails) if thumbnail is not None]
    if len(there) < 2:
        return alike
    rows = np.stack([np.asarray(thumbnails[index], dtype=np.float64).ravel() for index in there])
    rows = np.nan_to_num(rows - np.nanmedian(rows))  # what is missing counts as usual
    squares = (rows**2).mean(axis=1)
    product = rows @ rows.T / rows.shape[1]
    distance = np.sqrt(np.maximum(squares[:, None] + squares[None, :] - 2 * product, 0))
    np.fill_diagonal(distance, np.inf)
    usual = float(np.median(distance.min(axis=1)))
    codes = np.unique([str(hashes[index]) for index in there], return_inverse=True)[1]
    same = codes[:, None] == codes[None, :]
    # Of three or fewer scans nobody knows what is usual.
    close = distance < min(most, near * usual) if len(there) > 3 else np.zeros_like(same)
    alike[np.ix_(there, there)] = np.where(same, 2, close.astype(np.int64))
    np.fill_diagonal(alike, 0)
    return alike
