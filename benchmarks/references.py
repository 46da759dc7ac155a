"""What others do, written from the descriptions of their procedures, to be measured beside ours."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Points = NDArray[np.float32]  # (H, W, 3) metres, 0 where missing
Mask = NDArray[np.bool_]


def peers_foreground(points: Points, seed: int = 0) -> Mask:
    """Foreground (H, W) as BTF and M3DM find it, with scikit-learn.

    A plane through the strip of 10 pixels along the frame, by RANSAC with 1000 hypotheses of 50 points that hold what lies
    within 4 mm; points within 5 mm of it are background; of the rest the largest cluster by DBSCAN (6 mm, 30 points) stays.
    """
    from sklearn.cluster import DBSCAN
    from sklearn.linear_model import RANSACRegressor

    valid = points[..., 2] > 0
    strip = np.ones(valid.shape, bool)
    strip[10:-10, 10:-10] = False
    border = points[strip & valid].astype(np.float64)
    ransac = RANSACRegressor(
        min_samples=50, residual_threshold=0.004, max_trials=1000, stop_probability=1.0, random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it cannot know that all hypotheses are wanted
        ransac.fit(border[:, :2], border[:, 2])
    a, b = ransac.estimator_.coef_
    distance = np.abs(points @ np.array([a, b, -1.0]) + ransac.estimator_.intercept_) / np.sqrt(a * a + b * b + 1)
    rest = valid & (distance > 0.005)
    labels = DBSCAN(eps=0.006, min_samples=30, algorithm="kd_tree").fit_predict(points[rest])
    out = np.zeros(valid.shape, bool)
    if (labels >= 0).any():
        out[rest] = labels == np.bincount(labels[labels >= 0]).argmax()
    return out


def agreement(one: Mask, other: Mask, where: Mask) -> float:
    """Share of the pixels `where` on which two masks agree, but for a rim one pixel wide on both sides of the edge."""
    kernel = np.ones((3, 3), np.uint8)
    core, reach = cv2.erode(other.astype(np.uint8), kernel) > 0, cv2.dilate(other.astype(np.uint8), kernel) > 0
    differs = (core & ~one) | (one & ~reach)
    return 1 - float(differs[where].sum() / max((one | other)[where].sum(), 1))


def sampled_aupro(
    maps: Sequence[NDArray[np.float32]], masks: Sequence[Mask], limits: Sequence[float], n_thresholds: int = 100
) -> dict[float, float]:
    """AU-PRO as scripts in wide use take it: equally spaced thresholds between the lowest and the highest score.

    At each threshold the maps are binarised, and the covered share of each region and the false positive rate are
    counted over all pixels. Points up to the limit are kept, the rates divided by the largest one kept.
    """
    regions = [ndimage.label(mask, np.ones((3, 3)))[0] for mask in masks]
    thresholds = np.linspace(min(m.min() for m in maps), max(m.max() for m in maps), n_thresholds)
    n_good = sum(np.count_nonzero(~mask) for mask in masks)
    fpr, pro = np.zeros(n_thresholds), np.zeros(n_thresholds)
    for t, threshold in enumerate(thresholds[::-1]):
        covered: list[float] = []
        for score_map, mask, region in zip(maps, masks, regions, strict=True):
            above = score_map >= threshold
            fpr[t] += np.count_nonzero(above & ~mask) / n_good
            covered += (np.bincount(region[above], minlength=region.max() + 1) / np.bincount(region.ravel()))[1:].tolist()
        pro[t] = np.mean(covered)
    areas = {}
    for limit in limits:
        keep = fpr <= limit
        areas[limit] = float(np.trapezoid(pro[keep], fpr[keep])) / max(float(fpr[keep].max()), 1e-12)
    return areas
