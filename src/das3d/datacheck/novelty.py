"""Places on a good part that look like no place on the other good parts: stains, foreign matter, dents.

Each place is compared with the same neighbourhood on the parts that lie most alike, and, for parts that are coloured or
turned like no other, with the rest of the part itself; what has no match in either is odd. Nothing is trained: colours and
shapes are measured in units of how much similar parts of this set differ anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from das3d.datacheck.twins import distances
from das3d.preparation import PreparedScan
from das3d.scan import Mask
from das3d.window import Floats

Feature = Literal["colour", "shape"]

GRID = 64  # cells along the prepared image; a cell is about 1.5 % of the part
ALIKE = 8  # parts that each part is compared with
SHIFT = 3  # cells: how far apart the same place of two parts may lie
MATCHES = 2  # parts that must show the like of a place: a single other one may be spoiled the same way
ELSEWHERE = 14  # cells: from here on a place of the same part counts as another place
COMPARING = 4  # parts compared at once; each takes some 100 MB meanwhile
NOWHERE = 1e3  # feature value of cells without part: far from everything


@dataclass(frozen=True)
class Look:
    """How one part looks, cell by cell.

    Attributes:
        colour: (G, G, 3) CIELAB.
        shape: (G, G, 2) normalised depth, and how far it stands out from its surroundings.
        inside: (G, G), cells that show nothing but the part.
    """

    colour: Floats
    shape: Floats
    inside: Mask


def look_of(scan: PreparedScan) -> Look:
    """The look of a prepared part, small enough to keep thousands of them."""
    rgb, depth, share = (_small(image.astype(np.float32)) for image in (scan.rgb, scan.depth, scan.foreground))
    inside: Mask = share > 0.999
    lab = np.asarray(cv2.cvtColor(rgb / 255, cv2.COLOR_RGB2LAB), dtype=np.float32)
    near, around = _smooth(depth, inside, 0.7), _smooth(depth, inside, 3.0)
    return Look(_smooth(lab, inside, 0.7), np.dstack([near, near - around]), inside)


def _small(image: Floats) -> Floats:
    return np.asarray(cv2.resize(image, (GRID, GRID), interpolation=cv2.INTER_AREA), dtype=np.float32)


def _smooth(values: Floats, inside: Mask, sigma: float) -> Floats:
    # Gaussian mean over the part alone.
    weight = cv2.GaussianBlur(inside.astype(np.float32), (0, 0), sigma)
    own = inside if values.ndim == 2 else inside[..., None]
    total = cv2.GaussianBlur(np.where(own, values, 0).astype(np.float32), (0, 0), sigma)
    weight = np.maximum(weight, 1e-3)
    return (total / (weight if values.ndim == 2 else weight[..., None])).astype(np.float32)


def oddness(
    looks: Sequence[Look], feature: Feature, *, progress: Callable[[], None] = lambda: None
) -> list[NDArray[np.float32]]:
    """How odd each cell of each part is, (G, G) a part; 1 is how much parts that lie alike differ anyway.

    Args:
        looks: of all good parts; a part is never compared with itself at the same place.
        feature: "colour" or "shape".
        progress: called after each part.
    """
    if len(looks) <= MATCHES:
        return [np.zeros((GRID, GRID), np.float32) for _ in looks]
    alike = _alike(looks)
    unit = _usual_difference(looks, alike, feature)
    scaled = [
        np.where(look.inside[..., None], getattr(look, feature) / unit, np.float32(NOWHERE)).astype(np.float32)
        for look in looks
    ]

    def of(index: int) -> NDArray[np.float32]:
        odd = _against_others(scaled[index], [scaled[other] for other in alike[index]])
        inside = looks[index].inside
        odd[inside] = np.minimum(odd[inside], _against_itself(scaled[index], inside))
        # The mean over 3 x 3 cells: one odd cell on a steep edge is no stain.
        share = cv2.blur(inside.astype(np.float32), (3, 3))
        return np.where(inside, cv2.blur(np.where(inside, odd, 0), (3, 3)) / np.maximum(share, 1 / 3), 0).astype(np.float32)

    maps = []
    with ThreadPoolExecutor(COMPARING) as pool:
        for odd in pool.map(of, range(len(looks))):
            maps.append(odd)
            progress()
    return maps


def _alike(looks: Sequence[Look]) -> NDArray[np.int64]:
    # For each part the others whose outline and depth lie most alike, (N, K). Colour has no say: a stain must not choose.
    thumbnails = [
        np.dstack([cv2.resize(look.shape[..., 0] * look.inside, (24, 24), interpolation=cv2.INTER_AREA),
                   cv2.resize(look.inside.astype(np.float32), (24, 24), interpolation=cv2.INTER_AREA)])
        for look in looks
    ]  # fmt: skip
    rows = np.stack([thumbnail.ravel() for thumbnail in thumbnails]).astype(np.float64)
    most = min(ALIKE, len(looks) - 1)
    return np.concatenate([np.argsort(block, axis=1)[:, :most] for _, block in distances(rows)])


def _usual_difference(looks: Sequence[Look], alike: NDArray[np.int64], feature: Feature) -> NDArray[np.float32]:
    # What each channel differs by between the parts most alike: its 70 % point, about one sigma.
    differences = []
    for index, look in enumerate(looks):
        for other in alike[index][:2]:
            both = look.inside & looks[other].inside
            differences.append(np.abs(getattr(look, feature) - getattr(looks[other], feature))[both][::7])
    together = np.concatenate(differences)
    if not len(together):
        return np.ones(getattr(looks[0], feature).shape[-1], np.float32)
    return np.maximum(np.quantile(together, 0.7, axis=0), 1e-3).astype(np.float32)


def _against_others(one: Floats, others: Sequence[Floats]) -> NDArray[np.float32]:
    # (G, G): distance to the best match near the same place, on the part with the second best such match.
    pad = ((SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0))
    padded = np.stack([np.pad(other, pad, constant_values=NOWHERE) for other in others])
    best = np.full((len(others), GRID, GRID), np.inf, np.float32)
    for down in range(2 * SHIFT + 1):
        for right in range(2 * SHIFT + 1):
            difference = padded[:, down : down + GRID, right : right + GRID] - one
            np.minimum(best, np.einsum("pijc,pijc->pij", difference, difference), out=best)
    rank = min(MATCHES, len(others)) - 1
    return np.sqrt(np.partition(best, rank, axis=0)[rank])


def _against_itself(one: Floats, inside: Mask) -> NDArray[np.float32]:
    # For each inside cell the distance to the third best match elsewhere on the part, among a sixth of its cells.
    cells, places = one[inside], np.argwhere(inside)
    if not len(cells):
        return np.zeros(0, np.float32)
    sample = slice(None, None, 6)
    squares = (cells**2).sum(axis=1)
    distance = squares[:, None] + squares[None, sample] - 2 * cells @ cells[sample].T
    apart = ((places[:, None] - places[None, sample]) ** 2).sum(axis=2) > ELSEWHERE**2
    distance = np.where(apart, distance, np.float32(NOWHERE**2))
    rank = min(2, distance.shape[1] - 1)
    return np.sqrt(np.maximum(np.partition(distance, rank, axis=1)[:, rank], 0))
