"""Defect regions: where a part is defective, how large, how high or deep, and by which evidence.

A region is a connected piece of the anomaly map above a level that hardly any good pixel reaches. Its height is measured
against the repaired depth. What the finding rests on is told by repairing, too: the networks look again at the part, once
with colour and once with shape repaired inside the regions, and what then remains is compared with what remains of defects
that were put into one modality alone. Arrays are NumPy, (S, S) on the networks' grid unless said otherwise, so all of this
works with any engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from das3d.engines import EngineOutput, Floats
from das3d.masks import bounding_box
from das3d.measurement import Statistics
from das3d.preparation import PreparedScan
from das3d.scan import Mask
from das3d.settings import ScoreSettings
from das3d.threshold import Threshold

Evidence = Literal["colour", "shape", "both", "unclear"]
Run = Callable[[Sequence[PreparedScan]], EngineOutput]

GOOD_PIXELS = 0.999  # share of the good parts' pixels that stay below their level
BINS = 1024  # of the histogram of map values, 0 to 1
BOTH = 0.3  # of the evidence; a modality that gives less than that is not named
ENOUGH = 8  # synthetic defects in one modality alone, below which nothing is said about the evidence
SMALLEST = 9  # pixels: smaller regions are dropped, and a region finds a known defect if it covers this many of its pixels
FEATURES = 4  # see `features`


@dataclass(frozen=True)
class Region:
    """One connected region of a defect. Positions are in pixels of the scan's frame, x to the right and y down.

    Attributes:
        centroid: (x, y).
        box: left, top, width and height.
        outline: corners (x, y) of its largest outer border.
        area_px: pixels of the frame.
        area_mm2: as seen along the optical axis at the part's median depth; a surface tilted by a is larger by 1 / cos a.
            None where nothing tells how large a pixel is: it takes XYZ points, or depth and a focal length.
        height_mm: of the surface over the repaired one, along the optical axis: above 0 it is raised, below 0 material is
            missing; a fifth of the region is higher, or deeper, than this. None without measured depth there.
        height_noise_mm: what the same measurement gives on good parts (95 % stay below); smaller heights mean little.
        evidence: what the finding rests on: "colour", "shape", "both", or "unclear".
        colour, shape: how much each modality contributed, 0 to 1, together 1 (both 0 where unclear): where the region
            lies between synthetic defects in shape alone and in colour alone (`RegionNorms.colour_share`).
        score: largest value of the mean-filtered map, comparable to the part's score and threshold.
        peak, mean: of the map inside.
    """

    centroid: tuple[float, float]
    box: tuple[int, int, int, int]
    outline: tuple[tuple[int, int], ...]
    area_px: int
    area_mm2: float | None
    height_mm: float | None
    height_noise_mm: float | None
    evidence: Evidence
    colour: float
    shape: float
    score: float
    peak: float
    mean: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return asdict(self)

    def describe(self) -> str:
        """Such as "14.2 mm2 at (213, 187), 0.8 mm deep, by shape (93%)"."""
        area = f"{self.area_px} pixels" if self.area_mm2 is None else f"{self.area_mm2:.{int(self.area_mm2 < 100)}f} mm2"
        words = [f"{area} at ({self.centroid[0]:.0f}, {self.centroid[1]:.0f})"]
        if self.height_mm is not None and self.height_noise_mm is not None and abs(self.height_mm) > self.height_noise_mm:
            words.append(f"{abs(self.height_mm):.2g} mm {'high' if self.height_mm > 0 else 'deep'}")
        names = {"both": f"by colour ({self.colour:.0%}) and shape ({self.shape:.0%})", "unclear": "evidence unclear"}
        share = self.colour if self.evidence == "colour" else self.shape
        words.append(names.get(self.evidence, f"by {self.evidence} ({share:.0%})"))
        return ", ".join(words)


@dataclass(frozen=True)
class Moments:
    """Count, sums and sums of products of `FEATURES` numbers over samples: enough for means and spread, and they add up."""

    count: int = 0
    sums: tuple[float, ...] = (0.0,) * FEATURES
    products: tuple[tuple[float, ...], ...] = ((0.0,) * FEATURES,) * FEATURES

    def __post_init__(self) -> None:
        object.__setattr__(self, "sums", tuple(self.sums))  # as JSON gives them
        object.__setattr__(self, "products", tuple(map(tuple, self.products)))

    @classmethod
    def of(cls, samples: Sequence[Floats]) -> Moments:
        rows = np.array(samples, dtype=np.float64).reshape(-1, FEATURES)
        return cls(len(rows), tuple(rows.sum(axis=0).tolist()), tuple(map(tuple, (rows.T @ rows).tolist())))

    def __add__(self, other: Moments) -> Moments:
        sums, products = np.add(self.sums, other.sums), np.add(self.products, other.products)
        return Moments(self.count + other.count, tuple(sums.tolist()), tuple(map(tuple, products.tolist())))

    @property
    def mean(self) -> NDArray[np.float64]:
        return np.array(self.sums) / max(self.count, 1)

    @property
    def scatter(self) -> NDArray[np.float64]:
        return np.array(self.products) - self.count * np.outer(self.mean, self.mean)


@dataclass(frozen=True)
class RegionNorms:
    """What held-out parts show, good and with synthetic defects in one modality alone; part of the model.

    Attributes:
        levels: how many of the good parts' pixels have a map value in each of `BINS` equal steps from 0 to 1.
        heights_mm: for each good part, the height against the repaired surface that 95 % of its patches stay below; empty
            without depth.
        colour, shape: `features` of synthetic defects in colour alone and in shape alone.
    """

    levels: tuple[int, ...]
    heights_mm: tuple[float, ...] = ()
    colour: Moments = Moments()
    shape: Moments = Moments()

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(self.levels))  # as JSON gives them
        object.__setattr__(self, "heights_mm", tuple(self.heights_mm))
        for name in ("colour", "shape"):
            if isinstance(known := getattr(self, name), dict):
                object.__setattr__(self, name, Moments(**known))

    def __add__(self, other: RegionNorms) -> RegionNorms:
        """The norms of both sets of parts together."""
        levels = tuple(int(count) for count in np.add(self.levels, other.levels))
        heights = self.heights_mm + other.heights_mm
        return RegionNorms(levels, heights, self.colour + other.colour, self.shape + other.shape)

    @property
    def good_pixel_level(self) -> float:
        """The map value that one pixel in a thousand of the good parts exceeds."""
        below = np.cumsum(self.levels)
        return float(np.searchsorted(below, GOOD_PIXELS * below[-1]) + 1) / BINS

    @property
    def height_noise_mm(self) -> float | None:
        return float(np.median(self.heights_mm)) if self.heights_mm else None

    def colour_share(self, sample: Floats) -> float | None:
        """Where `features` lie along Fisher's linear discriminant: 0 as defects in shape alone, 1 as in colour alone.

        Returns:
            None where too few such defects were found to tell.
        """
        if min(self.colour.count, self.shape.count) < ENOUGH:
            return None
        within = (self.colour.scatter + self.shape.scatter) / (self.colour.count + self.shape.count - 2)
        spread = np.sqrt(np.maximum(np.diag(within), 1e-12))
        correlation = within / np.outer(spread, spread) + 0.05 * np.eye(FEATURES)  # so few samples need a firm hand
        apart = (self.colour.mean - self.shape.mean) / spread
        axis = np.linalg.solve(correlation, apart)
        place = (np.asarray(sample) - self.shape.mean) / spread @ axis / (apart @ axis)
        return float(np.clip(place, 0, 1))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure_norms(scans: Sequence[PreparedScan], output: EngineOutput, statistics: Statistics) -> RegionNorms:
    """Map values and heights of good parts from what the engine made of them."""
    levels, heights = np.zeros(BINS, dtype=np.int64), []
    for index, scan in enumerate(scans):
        levels += np.histogram(output.map[index][scan.foreground], BINS, (0.0, 1.0))[0]
        if output.depth is not None:
            found = [height_of(patch, scan, output.depth[index], statistics) for patch in _patches(scan.foreground)]
            known = [abs(height) for height in found if height is not None]
            heights += [float(np.quantile(known, 0.95))] if known else []
    return RegionNorms(tuple(levels.tolist()), tuple(heights))


def _patches(part: Mask) -> Iterator[Mask]:
    # The part in squares of a sixteenth of the side, which is about as large as defects are.
    side = max(4, len(part) // 16)
    for top in range(0, len(part), side):
        for left in range(0, len(part), side):
            patch = np.zeros_like(part)
            patch[top : top + side, left : left + side] = True
            if (patch & part).sum() > side * side / 2:
                yield patch & part


def pixel_threshold(norms: RegionNorms, threshold: Threshold) -> float:
    """The map value above which a pixel belongs to a region: the good parts' level, or the threshold where that is lower.

    A score above the threshold takes a pixel above it, so a defective part always has a region.
    """
    return min(norms.good_pixel_level, threshold.value)


def find_regions(
    run: Run,
    scans: Sequence[PreparedScan],
    output: EngineOutput,
    norms: RegionNorms,
    threshold: Threshold,
    statistics: Statistics,
    settings: ScoreSettings,
) -> list[tuple[Region, ...]]:
    """The regions of each part of a batch, the largest first; none for good parts, at least one for defective ones.

    Args:
        run: the engine that made `output`; it runs twice more on the defective parts.
        scans: the parts.
        output: what the engine made of them.
        norms, threshold: of the model.
        statistics, settings: of the model.
    """
    pixel = pixel_threshold(norms, threshold)
    pieces = [
        components(output.map[index], pixel, threshold.value, settings.window)
        if threshold.is_defective(float(output.score[index]))
        else []
        for index in range(len(scans))
    ]
    samples = features(run, scans, output, [[mask for mask, _ in found] for found in pieces])
    regions = []
    for index, found in enumerate(pieces):
        depth = None if output.depth is None else output.depth[index]
        made = []
        for (mask, score), sample in zip(found, samples[index], strict=True):
            share = norms.colour_share(sample) if isinstance(sample, np.ndarray) else float(sample)
            place = _place(mask, scans[index])
            height = None if depth is None else height_of(mask, scans[index], depth, statistics)
            values = output.map[index][mask]
            made.append(
                Region(
                    **place,
                    height_mm=height,
                    height_noise_mm=None if height is None else norms.height_noise_mm,
                    evidence=_named(share),
                    colour=0.0 if share is None else share,
                    shape=0.0 if share is None else 1.0 - share,
                    score=score,
                    peak=float(values.max()),
                    mean=float(values.mean()),
                )
            )
        regions.append(tuple(sorted(made, key=lambda region: -region.area_px)))
    return regions


def components(values: Floats, pixel: float, threshold: float, window: int) -> list[tuple[Mask, float]]:
    """Connected pieces of a defective part's map above `pixel`, with the score of each; gaps of four pixels connect.

    Only those count whose score, the mean-filtered map around them, is above the part's threshold: for these alone it would
    be called defective. There is at least one.
    """
    filtered = mean_filtered(values, window)
    above = values > pixel if (values > pixel).any() else values == values.max()
    # Pieces that nearly touch are one: a few pixels between them lie within the networks' own uncertainty.
    count, labels = cv2.connectedComponents(cv2.dilate(above.astype(np.uint8), np.ones((5, 5))), connectivity=8)
    near = cv2.dilate(labels.astype(np.float32), np.ones((window, window)))  # a window's centre may lie beside the piece
    owner = np.where(labels > 0, labels, near.astype(np.int32))
    every = np.arange(1, count)
    scores = ndimage.maximum(filtered, owner, every)
    sizes = np.bincount(labels[above], minlength=count)[1:]
    kept = every[(scores > threshold) & (sizes >= SMALLEST)]
    if not kept.size:
        kept = every[[scores.argmax()]]
    # A map may fall into thousands of pieces: only those that count get a mask of their own.
    return [(above & (labels == label), float(scores[label - 1])) for label in kept]


def mean_filtered(values: Floats, window: int) -> Floats:
    """The map that the part's score is the maximum of: means over windows, of the pixels inside the image."""
    if window <= 1:
        return values
    options: dict[str, Any] = {"ksize": (window, window), "normalize": False, "borderType": cv2.BORDER_CONSTANT}
    total, number = cv2.boxFilter(values, -1, **options), cv2.boxFilter(np.ones_like(values), -1, **options)
    return np.asarray(total / number, dtype=np.float32)


# ------------------------------------------------------------------------------------------- evidence


def features(
    run: Run, scans: Sequence[PreparedScan], output: EngineOutput, masks: Sequence[Sequence[Mask]]
) -> list[list[Floats | float]]:
    """What tells colour from shape, (`FEATURES`,) for each region of each part; with one modality its share, 1.0 or 0.0.

    By how much of itself the region's mean map value falls when colour is repaired inside the regions, and when shape is;
    and the logarithms of the mean residuals (repaired less seen) of both. The falls are what the networks' own finding
    rests on. But repaired images are blurred, which a network may take for a defect of its own, so neither they nor the
    residuals have a meaning by themselves: `RegionNorms` holds what both are for defects in one modality alone.
    """
    if output.rgb is None or output.depth is None:
        return [[1.0 if output.depth is None else 0.0] * len(found) for found in masks]
    chosen = [index for index, found in enumerate(masks) if found]
    if not chosen:
        return [[] for _ in masks]
    again = []
    for index in chosen:
        weight = _softened(np.logical_or.reduce(list(masks[index])))
        again += [
            _colour_repaired(scans[index], output.rgb[index], weight),
            _shape_repaired(scans[index], output.depth[index], weight),
        ]
    maps = run(again).map
    found: list[list[Floats | float]] = [[] for _ in masks]
    for place, index in enumerate(chosen):
        scan, seen = scans[index], output.map[index]
        residuals = (
            np.abs(output.rgb[index].transpose(1, 2, 0) - scan.rgb / np.float32(255)).mean(axis=2),
            np.abs(output.depth[index] - scan.depth),
        )
        found[index] = [
            np.array(
                [
                    *(1 - maps[2 * place + k][mask].mean() / max(seen[mask].mean(), 1e-6) for k in (0, 1)),
                    *(np.log(residual[mask].mean() + 1e-3) for residual in residuals),
                ],
                dtype=np.float32,
            )
            for mask in masks[index]
        ]
    return found


def evidence_in(run: Run, scans: Sequence[PreparedScan], pixel: float) -> Moments:
    """`features` of the regions that show known defects: parts with a mask, in which the map above `pixel` meets it."""
    output = run(scans)
    masks: list[list[Mask]] = []
    for scan, values in zip(scans, output.map, strict=True):
        assert scan.mask is not None
        _, labels = cv2.connectedComponents((values > pixel).astype(np.uint8), connectivity=8)
        met = np.bincount(labels[scan.mask], minlength=2)
        met[0] = 0
        masks.append([labels == met.argmax()] if met.max() >= SMALLEST else [])
    found = features(run, scans, output, masks)
    return Moments.of([sample for part in found for sample in part if isinstance(sample, np.ndarray)])


def _named(share: float | None) -> Evidence:
    if share is None:
        return "unclear"
    return "both" if BOTH <= share <= 1 - BOTH else "colour" if share > 0.5 else "shape"


def _softened(mask: Mask) -> Floats:
    # 1 on the mask and a little around it, falling softly to 0.
    reach = max(1, round(len(mask) / 48))
    wide = cv2.dilate(mask.astype(np.float32), np.ones((2 * reach + 1, 2 * reach + 1)))
    return np.asarray(cv2.GaussianBlur(wide, (0, 0), len(mask) / 64), dtype=np.float32)


def _colour_repaired(scan: PreparedScan, repaired: Floats, weight: Floats) -> PreparedScan:
    colours = np.clip(repaired.transpose(1, 2, 0), 0, 1) * 255
    mixed = scan.rgb + weight[..., None] * (colours - scan.rgb)
    return replace(scan, rgb=np.round(mixed).astype(np.uint8))


def _shape_repaired(scan: PreparedScan, repaired: Floats, weight: Floats) -> PreparedScan:
    return replace(scan, depth=(scan.depth + weight * (repaired - scan.depth)).astype(np.float32))


# ------------------------------------------------------------------------------------------- measures


def height_of(mask: Mask, scan: PreparedScan, repaired: Floats, statistics: Statistics) -> float | None:
    """Height in mm over the repaired surface that a fifth of the region exceeds, up or down; None if unmeasured.

    The repaired surface is levelled to what is seen around the region, as repair may shift a part as a whole.
    """
    metres = (repaired - scan.depth) * (statistics.far - statistics.near)
    measured = scan.valid | ~scan.foreground  # where the background shows, material is missing
    inside = mask & measured
    if inside.sum() < max(3, 0.2 * mask.sum()):
        return None
    reach = max(2, round(len(mask) / 32))
    ring = (cv2.dilate(mask.astype(np.uint8), np.ones((2 * reach + 1, 2 * reach + 1))) > 0) & ~mask
    around = metres[ring & scan.valid]
    heights = metres[inside] - (np.median(around) if around.size else 0.0)
    low, high = np.quantile(heights, (0.2, 0.8))  # farther out, blurred edges of the repaired surface would tell
    return 1000 * float(high if high > -low else low)


def _place(mask: Mask, scan: PreparedScan) -> dict[str, Any]:
    # The members of a Region that say where it is and how large, on the frame.
    bounds = scan.window.bounds_on_frame(bounding_box(mask), len(mask))  # frames are large, and regions may be many
    shown = scan.window.put_back(mask.astype(np.float32), bounds)
    if not shown.any():  # beyond the frame, which the window may exceed: the pixel of the frame that is nearest to it
        row, column = (float(axis.mean()) for axis in np.nonzero(mask))
        v, u = scan.window.frame_pixel(row, column, len(mask))
        bounds, shown = (v, v + 1, u, u + 1), np.ones((1, 1), np.float32)
    on_frame = shown >= min(0.5, float(shown.max()))
    top, _, left, _ = bounds
    rows, columns = np.nonzero(on_frame)
    rows, columns = rows + top, columns + left
    external, simple = cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    contours, _ = cv2.findContours(on_frame.astype(np.uint8), external, simple, offset=(left, top))
    border = max(contours, key=cv2.contourArea)[:, 0]
    return {
        "centroid": (float(columns.mean()), float(rows.mean())),
        "box": (int(columns.min()), int(rows.min()), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1),
        "outline": tuple((int(x), int(y)) for x, y in border),
        "area_px": int(on_frame.sum()),
        "area_mm2": None if scan.pixel_mm2 is None else scan.pixel_mm2 * int(on_frame.sum()),
    }
