"""Equations (1) to (8) and (12) of the paper for one pair, written down line by line in double precision.

It shares nothing with `das3d.synthesis` but the noise field and the drawn numbers, so it is the oracle for its tests; being
what one would write first with NumPy and SciPy, it is also what its speed is compared with.

Arrays are (S, S) or (S, S, 3); depth grows away from the camera.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import signal, stats

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Drawn:
    """The random numbers of one pair. `sigma` is in pixels, `alpha` along rows and columns."""

    threshold: float
    sigma: float
    alpha: tuple[float, float]
    magnitude: float
    beta: float


@dataclass(frozen=True)
class Synthetic:
    """Za, Ia and M*, and pz dZ, from which the mask was made."""

    depth: Array
    rgb: Array
    mask: Mask
    change: Array


def ternary_mask(noise: Array, foreground: Mask, threshold: float) -> Array:
    """Mt."""
    perlin_mask = np.zeros(noise.shape)
    perlin_mask[noise < -threshold] = -1  # eq. (1), concave
    perlin_mask[noise > threshold] = 1  # convex
    return perlin_mask * foreground  # eq. (2)


def skew_filter(sigma: float, alpha: tuple[float, float]) -> Array:
    """norm(G), h x h with three standard deviations on each side."""
    half = math.ceil(3 * sigma)
    h = 2 * half + 1
    i, j = np.meshgrid(np.arange(h), np.arange(h), indexing="ij")
    x = np.stack([i - h // 2, j - h // 2], axis=-1)
    normal = stats.multivariate_normal(mean=[0, 0], cov=sigma**2 * np.eye(2))
    kernel = 2 * normal.pdf(x) * stats.norm.cdf(x @ np.asarray(alpha))  # eqs. (3) and (4)
    return kernel / kernel.sum()


def synthesise(
    rgb: Array,
    depth: Array,
    foreground: Mask,
    noise: Array,
    texture: Array,
    drawn: Drawn,
    *,
    mask_threshold: float,
    with_skew_filter: bool = True,
) -> Synthetic:
    """Za, Ia and M* of one good pair under the noise field P."""
    region = ternary_mask(noise, foreground, drawn.threshold)
    change = region
    if with_skew_filter:
        change = signal.convolve(region, skew_filter(drawn.sigma, drawn.alpha), mode="same")  # eq. (5)
    # The paper does not print this: the filter carries dZ over the edge of the part, where no surface is that could change.
    change = drawn.magnitude * change * foreground
    harmed_depth = depth - change  # eq. (6); +1 is convex, thus nearer to the camera, and depth grows away from it
    mask = ~(np.abs(change) < mask_threshold)  # eq. (7)
    m = mask[..., None]
    harmed_rgb = (1 - m) * rgb + m * ((1 - drawn.beta) * texture + drawn.beta * rgb)  # eq. (8)
    return Synthetic(harmed_depth, harmed_rgb, mask, change)


def drop(rgb: Array, depth: Array, made: Synthetic, keep_rgb: bool, keep_depth: bool) -> tuple[Array, Array, Array]:
    """I~, Z~ and M~ of eq. (12); `keep_rgb` is dI, `keep_depth` is dZ."""
    d_i, d_z = int(keep_rgb), int(keep_depth)
    return (
        d_i * rgb + (1 - d_i) * made.rgb,
        d_z * depth + (1 - d_z) * made.depth,
        (1 - d_i * d_z) * made.mask.astype(np.float64),
    )
