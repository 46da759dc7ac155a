"""How well defects are found: I-AUROC, P-AUROC and AU-PRO, exact to the last tie.

Every curve here comes from one tally. Lower a threshold from the highest score to the lowest: a curve of what is found
over false positives can rise only at a score that some defect pixel has, and between two such scores it runs level.
So it is enough to know, for each distinct defect score, how many good pixels score more and how many score as much.
Every distinct score of the category thus acts as a threshold, although the good pixels, nearly all of the data, are
only sorted a block at a time, counted and let go. Maps and masks may come from sequences that load them when asked;
each is read more than once and must be the same each time.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from das3d.arguments import is_number, list_of, shown
from das3d.errors import DataError, SettingsError, one_line
from das3d.scan import Mask

Scores = NDArray[np.floating[Any]]  # (N,), higher is more defective
ScoreMap = NDArray[np.floating[Any]]  # (H, W), higher is more defective
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]  # x and y, both rising from 0 to 1

AUPRO_LIMITS = (0.3, 0.1, 0.05, 0.01)
# The figures in `Metrics` and what people call them.
FIGURES = {
    "i_auroc": "I-AUROC", "p_auroc": "P-AUROC", "aupro_30": "AU-PRO@0.3", "aupro_10": "AU-PRO@0.1",
    "aupro_05": "AU-PRO@0.05", "aupro_01": "AU-PRO@0.01",
}  # fmt: skip
_BLOCK = 1 << 25  # good pixels sorted at once: 128 MiB of float32, twice that while a block is put together


class Metrics(TypedDict):
    """What `evaluate_maps` returns, ready for JSON. A figure that the data cannot give is None and `notes` says why."""

    i_auroc: float | None
    p_auroc: float | None
    aupro_30: float | None
    aupro_10: float | None
    aupro_05: float | None
    aupro_01: float | None
    n_good: int
    n_defective: int
    per_defect: dict[str, float | None]
    notes: list[str]


def image_auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve over parts (I-AUROC); a good and a defective part that tie count one half.

    Args:
        labels: (N,) True or 1 for defective parts.
        scores: (N,) one score a part, higher is more defective.

    Raises:
        DataError: labels and scores do not fit, a score is not finite, or all parts are of one class.
    """
    tally = _tally_parts(*_check_parts(labels, scores))
    _need_both(tally, "I-AUROC", "parts")
    return _auroc(tally)


def roc_curve(labels: ArrayLike, scores: ArrayLike) -> Curve:
    """False and true positive rate over parts, from (0, 0) to (1, 1), without points inside level or upright runs.

    Args and errors are those of `image_auroc`.
    """
    tally = _tally_parts(*_check_parts(labels, scores))
    _need_both(tally, "a ROC curve", "parts")
    return _curve(tally, tally.defective)


def pixel_auroc(maps: Sequence[ScoreMap], masks: Sequence[Mask]) -> float:
    """Area under the ROC curve over all pixels of a category (P-AUROC), ties counted one half.

    Args:
        maps: N score maps (H, W), finite floats; sizes may differ between parts.
        masks: N ground truths (H, W) bool, each as large as its map; all False for good parts.

    Raises:
        DataError: maps and masks do not fit, a score is not finite, or all pixels are of one class.
    """
    tally = _Pixels(maps, masks, range(_count("maps", maps))).tally()
    _need_both(tally, "P-AUROC", "pixels")
    return _auroc(tally)


def pro_curve(maps: Sequence[ScoreMap], masks: Sequence[Mask | None], labels: ArrayLike | None = None) -> Curve:
    """False positive rate and per-region overlap, from (0, 0) to (1, 1), without points inside level or upright runs.

    A region is an 8-connected component of one mask. Per-region overlap (PRO) is the mean over all regions of the share
    of the region that reaches the threshold; the false positive rate is over all pixels outside regions, those of good
    parts included. Args and errors are those of `pixel_auroc`; with `labels` (N,), True or 1 for defective parts, good
    parts need no mask.
    """
    good: frozenset[int] = frozenset()
    if labels is not None:
        labels = _array("labels", labels)
        _check_counts(maps=_count("maps", maps), labels=labels.size)
        defective, _ = _check_parts(labels, np.zeros(len(maps)))
        good = frozenset(np.flatnonzero(~defective).tolist())
    tally = _Pixels(maps, masks, range(_count("maps", maps)), good).tally()
    _need_both(tally, "AU-PRO", "pixels")
    return _curve(tally, tally.share)


def aupro(maps: Sequence[ScoreMap], masks: Sequence[Mask], limits: Sequence[float] = AUPRO_LIMITS) -> dict[float, float]:
    """Area under the PRO curve as MVTec defines it, one for each limit of the false positive rate.

    The area is taken by trapezoids from 0 to the limit, interpolated linearly there, and divided by the limit: 1 is
    perfect. Where many pixels tie, one threshold can leap over the limit; then the straight line of the leap counts.

    Args:
        maps: N score maps (H, W), finite floats; sizes may differ between parts.
        masks: N ground truths (H, W) bool, each as large as its map; all False for good parts.
        limits: false positive rates, more than 0 and at most 1.

    Raises:
        DataError: maps and masks do not fit, a score is not finite, or all pixels are of one class.
        SettingsError: a limit is out of range.
    """
    checked: list[Any] = list_of(object, limits, "limits")
    for limit in checked:
        if not (is_number(limit) and 0 < limit <= 1):
            raise SettingsError(f"AU-PRO limit: expected more than 0 and at most 1, found {shown(limit)}")
    return _areas(pro_curve(maps, masks), checked)


def evaluate_maps(
    maps: Sequence[ScoreMap],
    masks: Sequence[Mask | None],
    labels: ArrayLike,
    scores: ArrayLike,
    defects: Sequence[str],
    names: Sequence[str] | None = None,
) -> Metrics:
    """All figures of one category.

    A defective part without a mask counts for the image figures and is left out of the pixel figures, with a note:
    its pixels are neither known good nor known defective. A good part needs no mask.

    Args:
        maps: N score maps (H, W), finite floats; sizes may differ between parts.
        masks: N ground truths (H, W) bool, each as large as its map, or None.
        labels: (N,) True or 1 for defective parts.
        scores: (N,) one score a part.
        defects: N kinds of defect; those of good parts are ignored.
        names: what notes and errors call the parts; their numbers where None.

    Raises:
        DataError: they do not fit each other, a score is not finite, or the mask of a good part marks pixels.
    """
    labels, scores = _array("labels", labels), _array("scores", scores)
    counts = {"maps": _count("maps", maps), "masks": _count("masks", masks), "labels": labels.size, "scores": scores.size}
    _check_counts(**counts, defects=_count("defects", defects))
    if names is not None:
        _check_counts(maps=len(maps), names=_count("names", names))
    defective, values = _check_parts(labels, scores)
    notes: list[str] = []

    images = _tally_parts(defective, values)
    lack_of_parts = _lack(images, "I-AUROC", "parts")
    good = frozenset(np.flatnonzero(~defective).tolist())
    pixels = _Pixels(maps, masks, _parts_with_known_pixels(masks, defective, names, notes), good, names).tally()
    lack_of_pixels = _lack(pixels, "P-AUROC and AU-PRO", "pixels")
    areas = {} if lack_of_pixels else _areas(_curve(pixels, pixels.share), AUPRO_LIMITS)
    return Metrics(
        i_auroc=None if lack_of_parts else _auroc(images),
        p_auroc=None if lack_of_pixels else _auroc(pixels),
        aupro_30=areas.get(0.3),
        aupro_10=areas.get(0.1),
        aupro_05=areas.get(0.05),
        aupro_01=areas.get(0.01),
        n_good=images.n_good,
        n_defective=images.n_defective,
        per_defect=_per_defect(defective, values, defects),
        notes=[*notes, *lack_of_parts, *lack_of_pixels],
    )


def _per_defect(defective: Mask, scores: Scores, defects: Sequence[str]) -> dict[str, float | None]:
    """I-AUROC of each kind of defect against all good parts; None without good parts."""
    kinds = np.array([str(kind) for kind in defects], dtype=object)
    figures: dict[str, float | None] = {}
    for kind in sorted(set(kinds[defective])):
        of_kind = defective & (kinds == kind)
        use = of_kind | ~defective
        figures[kind] = None if defective.all() else _auroc(_tally_parts(of_kind[use], scores[use]))
    return figures


def _parts_with_known_pixels(
    masks: Sequence[Mask | None], defective: Mask, names: Sequence[str] | None, notes: list[str]
) -> list[int]:
    """Indices of the parts whose pixels can be judged; adds notes on the others and on defective parts' empty masks."""
    unknown: list[int] = []
    empty: list[int] = []
    most: list[int] = []
    for i in np.flatnonzero(defective).tolist():
        mask = masks[i]
        if mask is None:
            unknown.append(i)
        elif (mask := _array(f"mask {i if names is None else names[i]}", mask)).dtype != np.bool_:
            continue  # which `_Pixels.read` refuses
        elif not np.any(mask):
            empty.append(i)
        elif np.mean(mask) > 0.5:
            most.append(i)
    total = np.count_nonzero(defective)
    if unknown:
        which = _some(unknown, names)
        notes.append(f"no mask for {len(unknown)} of {total} defective parts, left out of pixel metrics: {which}")
    if empty:
        which = _some(empty, names)
        notes.append(f"empty mask for {len(empty)} of {total} defective parts, all pixels taken as good: {which}")
    if most:
        which = _some(most, names)
        notes.append(f"mask over most of the picture for {len(most)} of {total} defective parts (inverted?): {which}")
    return sorted(set(range(len(masks))) - set(unknown))


@dataclass(frozen=True)
class _Tally:
    """Where good members (parts or pixels) lie among the K distinct scores of defective ones, highest score first.

    Attributes:
        defective: (K,) defective members with this score.
        share: (K,) the shares of their regions that those members make up, summed.
        good_above: (K,) good members with a higher score.
        good_reached: (K,) good members with this score or a higher one.
        n_good: good members in all.
    """

    defective: NDArray[np.int64]
    share: NDArray[np.float64]
    good_above: NDArray[np.int64]
    good_reached: NDArray[np.int64]
    n_good: int

    @property
    def n_defective(self) -> int:
        """Defective members in all."""
        return int(self.defective.sum())


def _tally(defective: Scores, shares: NDArray[np.float64], good_blocks: Iterable[Scores]) -> _Tally:
    """Tally of defective scores (M,), each with its share of its region, and blocks of good ones, sorted in place."""
    thresholds, which, count = np.unique(defective, return_inverse=True, return_counts=True)
    share = np.bincount(which, weights=shares, minlength=thresholds.size).astype(np.float64, copy=False)
    del which
    below = np.zeros(thresholds.size, np.int64)
    not_above = np.zeros(thresholds.size, np.int64)
    n_good = 0
    for block in good_blocks:
        block.sort()
        below += np.searchsorted(block, thresholds, side="left")
        not_above += np.searchsorted(block, thresholds, side="right")
        n_good += block.size
    return _Tally(count[::-1], share[::-1], (n_good - not_above)[::-1], (n_good - below)[::-1], n_good)


def _tally_parts(defective: Mask, scores: Scores) -> _Tally:
    return _tally(scores[defective], np.ones(np.count_nonzero(defective)), [scores[~defective]])


@dataclass(frozen=True)
class _Pixels:
    """The pixels of the parts `use`; parts in `good` may lack a mask, and must not have one that marks pixels.

    Errors call them by `names`, or by their numbers.
    """

    maps: Sequence[ScoreMap]
    masks: Sequence[Mask | None]
    use: Sequence[int]
    good: Container[int] = ()
    names: Sequence[str] | None = None

    def tally(self) -> _Tally:
        """Tally of all pixels; a DataError holds all that is wrong with the maps and masks, before the long work."""
        _check_counts(maps=len(self.maps), masks=_count("masks", self.masks))
        scores: list[Scores] = [np.empty(0, np.float32)]
        shares = [np.empty(0)]
        problems: list[str] = []
        for i in self.use:
            try:
                score_map, mask = self.read(i)
            except DataError as error:
                problems += error.problems
                continue
            regions, _ = ndimage.label(mask, structure=np.ones((3, 3)))  # (H, W), 0 outside the 8-connected regions
            region = regions[mask]
            scores.append(score_map[mask])
            shares.append(1.0 / np.bincount(region)[region])
        if problems:
            raise DataError(problems)
        return _tally(np.concatenate(scores), np.concatenate(shares), self.good_blocks())

    def good_blocks(self) -> Iterator[Scores]:
        """The scores of all good pixels, whole parts at a time."""
        held: list[Scores] = []
        for i in self.use:
            score_map, mask = self.read(i)
            held.append(score_map[~mask])
            if sum(scores.size for scores in held) >= _BLOCK:
                yield np.concatenate(held)
                held.clear()
        if held:
            yield np.concatenate(held)

    def read(self, i: int) -> tuple[ScoreMap, Mask]:
        """Map and mask of part `i`, checked, the map as float32 or float64, whichever holds it exactly."""
        name = i if self.names is None else self.names[i]
        score_map = _array(f"map {name}", self.maps[i])
        if score_map.ndim != 2 or score_map.dtype.kind != "f":
            raise DataError(f"map {name}: expected (H, W) floats, found {score_map.shape} {score_map.dtype}")
        wrong = ~np.isfinite(score_map)
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            first = f"{score_map[row, column]} at row {row}, column {column}"
            raise DataError(f"map {name}: expected finite scores, found {np.count_nonzero(wrong)} others, first {first}")
        mask = self.masks[i]
        if mask is None and i in self.good:
            mask = np.zeros(score_map.shape, bool)
        if mask is None:
            raise DataError(f"mask {name}: expected (H, W) bool, found None")
        mask = _array(f"mask {name}", mask)
        if mask.ndim != 2 or mask.dtype != np.bool_:
            raise DataError(f"mask {name}: expected (H, W) bool, found {mask.shape} {mask.dtype}")
        if mask.shape != score_map.shape:
            sizes = [f"{width} x {height}" for height, width in (mask.shape, score_map.shape)]
            raise DataError(f"map {name}: expected the size of its mask, {sizes[0]}, found {sizes[1]} (width x height)")
        if i in self.good and mask.any():
            raise DataError(f"mask {name}: expected no defect on a good part, found {np.count_nonzero(mask)} marked pixels")
        return score_map.astype(np.float32 if score_map.itemsize <= 4 else np.float64, copy=False), mask


def _auroc(tally: _Tally) -> float:
    """Share of pairs of a good and a defective member in which the defective one scores more; ties count one half."""
    twice_good_below = 2 * tally.n_good - tally.good_above - tally.good_reached
    pairs = tally.n_good * tally.n_defective
    return int((tally.defective * twice_good_below).sum()) / (2 * pairs)


def _curve(tally: _Tally, gain: NDArray[np.integer[Any] | np.floating[Any]]) -> Curve:
    """The share of all good members reached (x) and of all `gain` reached (y) as a threshold falls, at each bend."""
    reached = np.concatenate(([0.0], np.cumsum(gain, dtype=np.float64)))
    reached /= reached[-1]
    before_and_after = np.stack((tally.good_above, tally.good_reached), axis=1)  # (K, 2), of each defect score
    x = np.concatenate(([0], before_and_after.ravel(), [tally.n_good]))
    y = np.concatenate(([0.0], np.stack((reached[:-1], reached[1:]), axis=1).ravel(), [1.0]))

    new = np.concatenate(([True], (np.diff(x) > 0) | (np.diff(y) > 0)))
    x, y = x[new], y[new]
    right, up = np.diff(x) > 0, np.diff(y) > 0  # of the segment after each point
    bend = np.concatenate(([True], (right[:-1] | right[1:]) & (up[:-1] | up[1:]), [True]))
    return x[bend] / tally.n_good, y[bend]


def _areas(curve: Curve, limits: Sequence[float]) -> dict[float, float]:
    """Area under a curve from x = 0 to each limit, divided by the limit."""
    x, y = curve
    areas: dict[float, float] = {}
    for limit in limits:
        end = int(np.searchsorted(x, limit, side="right"))  # the first point beyond the limit
        at_limit = np.interp(limit, x[end - 1 : end + 1], y[end - 1 : end + 1])
        areas[limit] = float(np.trapezoid(np.append(y[:end], at_limit), np.append(x[:end], limit))) / limit
    return areas


def _check_parts(labels: ArrayLike, scores: ArrayLike) -> tuple[Mask, NDArray[np.float64]]:
    """Labels as bool and scores as float64, both (N,); a DataError holds all that is wrong with them."""
    truth, values = _array("labels", labels), _array("scores", scores)
    for what, array in (("labels", truth), ("scores", values)):
        if array.ndim != 1 or array.dtype.kind not in "biuf":
            raise DataError(f"{what}: expected (N,) numbers, found {array.shape} {array.dtype}")
    _check_counts(labels=truth.size, scores=values.size)
    problems = [
        f"label {i}: expected 0 (good) or 1 (defective), found {truth[i]}"
        for i in np.flatnonzero((truth != 0) & (truth != 1))
    ]
    problems += [f"score {i}: expected a finite number, found {values[i]}" for i in np.flatnonzero(~np.isfinite(values))]
    if problems:
        raise DataError(problems)
    return truth.astype(bool), values.astype(np.float64)


def _array(what: str, given: ArrayLike) -> NDArray[Any]:
    try:
        return np.asarray(given)
    except Exception as error:  # rows that differ in length, or whatever the arrays of other libraries raise
        raise DataError(f"{what}: expected an array, found {type(given).__name__} ({one_line(error)})") from error


def _count(what: str, given: Sequence[Any]) -> int:
    """How many there are; a single text is no sequence of kinds or names."""
    if isinstance(given, str) or not hasattr(given, "__len__"):
        raise DataError(f"{what}: expected a sequence, one for each part, found {shown(given)}")
    return len(given)


def _check_counts(**counts: int) -> None:
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{count} {what}" for what, count in counts.items())
        raise DataError(f"expected one of each for every part, found {found}")


def _lack(tally: _Tally, what: str, members: str) -> list[str]:
    """Why `what` cannot be computed, or nothing."""
    if tally.n_good and tally.n_defective:
        return []
    found = f"{tally.n_good} good and {tally.n_defective} defective"
    return [f"{what}: expected both good and defective {members}, found {found}"]


def _need_both(tally: _Tally, what: str, members: str) -> None:
    if lack := _lack(tally, what, members):
        raise DataError(lack)


def _some(parts: Sequence[int], names: Sequence[str] | None) -> str:
    """The first few parts by name or number, for a message."""
    shown = ", ".join(str(i if names is None else names[i]) for i in parts[:10])
    return ("parts " if names is None else "") + shown + (" and others" if len(parts) > 10 else "")
