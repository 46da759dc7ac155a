"""Equations (1) to (8) and (12) of the paper for one pair, written down line by line in double precision.

It shares nothing with `das3d.synthesis` but the settings and the drawn numbers, so it is the oracle for its tests
(tests/test_synthesis.py). Being what one would write first with NumPy and SciPy, it is also the measure of its speed:

    drawn = draw(rng, settings, side=256)
    harmed_rgb, harmed_depth, mask = harm(rgb, depth, foreground, texture, drawn, settings)

Arrays are (S, S) or (S, S, 3); depth grows away from the camera.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import signal, stats

from das3d.settings import SynthesisSettings

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

LATTICE = 64  # nodes of the Perlin lattice along each axis


@dataclass(frozen=True)
class Drawn:
    """The random numbers of one pair.

    Attributes:
        directions: (n, n) angles of the gradients at the nodes of the Perlin lattice.
        periods: cells of that lattice across the image, along its two axes.
        angle: turn of the lattice, radians.
        threshold: tp of eq. (1).
        sigma: of eq. (3), in pixels.
        alpha: of eq. (3), along rows and columns.
        magnitude: pz of eq. (6).
        beta: of eq. (8).
        keep_rgb, keep_depth: dI and dZ of eq. (12).
    """

    directions: Array
    periods: tuple[float, float]
    angle: float
    threshold: float
    sigma: float
    alpha: tuple[float, float]
    magnitude: float
    beta: float
    keep_rgb: bool
    keep_depth: bool


@dataclass(frozen=True)
class Synthetic:
    """Za, Ia and M*, and pz dZ, from which the mask was made."""

    depth: Array
    rgb: Array
    mask: Mask
    change: Array


def draw(rng: np.random.Generator, settings: SynthesisSettings, side: int) -> Drawn:
    """All random numbers of one pair, within the ranges of the settings."""
    octaves = rng.integers(0, settings.perlin_octaves + 1, 2)
    low, high = math.log(settings.sigma_low), math.log(settings.sigma_high)
    alpha = rng.uniform(-settings.skew, settings.skew, 2)  # eq. (4), which prints 0.5
    return Drawn(
        directions=rng.uniform(0, 2 * math.pi, (LATTICE, LATTICE)),
        periods=(2.0 ** octaves[0], 2.0 ** octaves[1]),
        angle=rng.uniform(-math.pi / 2, math.pi / 2),
        threshold=rng.uniform(settings.threshold_low, settings.threshold_high),
        sigma=side * math.exp(rng.uniform(low, high)),
        alpha=(alpha[0], alpha[1]),
        magnitude=rng.uniform(settings.magnitude_low, settings.magnitude_high),
        beta=rng.uniform(0, settings.opacity_rest),
        keep_rgb=rng.random() < settings.drop,
        keep_depth=rng.random() < settings.drop,
    )


def harm(
    rgb: Array, depth: Array, foreground: Mask, texture: Array, drawn: Drawn, settings: SynthesisSettings
) -> tuple[Array, Array, Array]:
    """I~, Z~ and M~ of one good pair: all equations, one after the other."""
    noise = perlin_noise(drawn.directions, drawn.periods, drawn.angle, len(depth))
    made = synthesise(rgb, depth, foreground, noise, texture, drawn, settings)
    return drop(rgb, depth, made, drawn.keep_rgb, drawn.keep_depth)


def perlin_noise(directions: Array, periods: tuple[float, float], angle: float, side: int) -> Array:
    """P (S, S): Perlin's gradient noise, of a lattice turned about the middle of the image, where node (n/2, n/2) lies."""
    n = len(directions)
    centres = (np.arange(side) + 0.5) / side - 0.5
    v, u = np.meshgrid(centres, centres, indexing="ij")
    x = (math.cos(angle) * u - math.sin(angle) * v) * periods[0] + n / 2
    y = (math.sin(angle) * u + math.cos(angle) * v) * periods[1] + n / 2
    column, row = np.floor(x).astype(int), np.floor(y).astype(int)
    noise = np.zeros((side, side))
    for down in (0, 1):
        for right in (0, 1):  # the four nodes around each pixel
            direction = directions[(row + down) % n, (column + right) % n]
            dx, dy = x - (column + right), y - (row + down)
            noise += fade(1 - np.abs(dx)) * fade(1 - np.abs(dy)) * (np.cos(direction) * dx + np.sin(direction) * dy)
    return math.sqrt(2) * noise


def fade(t: Array) -> Array:
    return 6 * t**5 - 15 * t**4 + 10 * t**3


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
    settings: SynthesisSettings,
) -> Synthetic:
    """Za, Ia and M* of one good pair under the noise field P."""
    region = ternary_mask(noise, foreground, drawn.threshold)
    change = region
    if settings.skew_filter:
        change = signal.convolve(region, skew_filter(drawn.sigma, drawn.alpha), mode="same")  # eq. (5)
    # The paper does not print this: the filter carries dZ over the edge of the part, where no surface is that could change.
    change = drawn.magnitude * change * foreground
    harmed_depth = depth - change  # eq. (6); +1 is convex, thus nearer to the camera, and depth grows away from it
    mask = ~(np.abs(change) < settings.mask_threshold)  # eq. (7)
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
