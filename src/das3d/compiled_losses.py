"""The loss of repaired RGB and its gradient, compiled by Numba: how CPUs compute it.

PyTorch's convolutions take twelve times as long for its narrow windows. What the names mean is told in `losses`, where the
same stands as operations on tensors; tests compare the two. Images are (H, W).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from das3d._numba import Array, compiled, side_by_side
from das3d.losses import C1, C2, WINDOW, gaussian

REACH = WINDOW // 2
assert REACH == 5, "`blur` names its eleven pixels one by one"


def rgb_loss_and_gradient(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of images (B, C, H, W) float32 on a CPU, and its gradient by `x`."""
    gradient = torch.empty(x.shape)
    planes_x, planes_y, planes_gradient = (
        images.detach().contiguous().numpy().reshape(-1, *x.shape[2:]) for images in (x, y, gradient)
    )
    weights = tuple(gaussian().numpy()[REACH:])
    constants = np.float32(1 / x.numel()), np.float32(C1), np.float32(C2)
    sums = np.empty(len(planes_x))

    def work(i: int) -> None:
        sums[i] = loss_of_plane(planes_x[i], planes_y[i], planes_gradient[i], weights, *constants)

    side_by_side(work, len(sums))
    return torch.tensor(1 + sums.sum() / x.numel(), dtype=torch.float32), gradient


@compiled
def loss_of_plane(x: Array, y: Array, gradient: Array, weights: tuple[float, ...], share: Any, c1: Any, c2: Any) -> float:
    """Sum of squared errors less that of the SSIM map of two images; writes its gradient by the first, times `share`."""
    height, width = x.shape
    # What is blurred has zeros beyond its ends.
    maps = np.zeros((4, height, width + 2 * REACH), np.float32)
    blurred, rows = np.empty((4, height, width), np.float32), np.zeros((height + 2 * REACH, width), np.float32)
    one, two = np.float32(1), np.float32(2)
    for i in range(height):
        of_x, of_y = x[i], y[i]
        map_x, map_y, squares, product = maps[0, i, REACH:], maps[1, i, REACH:], maps[2, i, REACH:], maps[3, i, REACH:]
        for j in range(width):
            map_x[j] = of_x[j]
            map_y[j] = of_y[j]
            squares[j] = of_x[j] * of_x[j] + of_y[j] * of_y[j]
            product[j] = of_x[j] * of_y[j]
    for k in range(4):
        blur(maps[k], rows, blurred[k], weights)

    sums = np.zeros(width, np.float32)  # one a column, as a processor adds many numbers at a time
    for i in range(height):
        mean_x, mean_y, mean_squares, mean_product = blurred[0, i], blurred[1, i], blurred[2, i], blurred[3, i]
        by_mean, by_square, by_product = maps[0, i, REACH:], maps[1, i, REACH:], maps[2, i, REACH:]
        for j in range(width):
            squares_of_means, product_of_means = mean_x[j] * mean_x[j] + mean_y[j] * mean_y[j], mean_x[j] * mean_y[j]
            brightness_above, brightness_below = two * product_of_means + c1, squares_of_means + c1
            structure_above = two * (mean_product[j] - product_of_means) + c2
            structure_below = mean_squares[j] - squares_of_means + c2
            whole = one / (brightness_below * structure_below)
            similar = brightness_above * structure_above * whole
            sums[j] -= similar
            by_square[j] = -similar * brightness_below * whole
            by_product[j] = two * brightness_above * whole
            by_mean[j] = (
                two * mean_y[j] * (structure_above - brightness_above)
                + two * mean_x[j] * similar * (brightness_below - structure_below)
            ) * whole
    for k in range(3):
        blur(maps[k], rows, blurred[k], weights)
    for i in range(height):
        mean, square, product, of_x, of_y, to = blurred[0, i], blurred[1, i], blurred[2, i], x[i], y[i], gradient[i]
        for j in range(width):
            apart = of_x[j] - of_y[j]
            sums[j] += apart * apart
            to[j] = share * (two * apart - (mean[j] + two * of_x[j] * square[j] + of_y[j] * product[j]))
    return sums.sum()


@compiled
def blur(padded: Array, rows: Array, result: Array, weights: tuple[float, ...]) -> None:
    """An image, padded with zeros at both ends of its rows, under the window; `rows` serves in between.

    One sum a pixel: adding one weighted image after the other costs seven times as much.
    """
    height, width = result.shape
    w0, w1, w2, w3, w4, w5 = weights
    for i in range(height):
        a, to = padded[i], rows[i + REACH]
        for j in range(width):
            to[j] = (
                w0 * a[j + 5] + w1 * (a[j + 4] + a[j + 6]) + w2 * (a[j + 3] + a[j + 7])
                + w3 * (a[j + 2] + a[j + 8]) + w4 * (a[j + 1] + a[j + 9]) + w5 * (a[j] + a[j + 10])
            )  # fmt: skip
    for i in range(height):
        a, b, c, d, e, f = rows[i], rows[i + 1], rows[i + 2], rows[i + 3], rows[i + 4], rows[i + 5]
        g, h, k, m, n, to = rows[i + 6], rows[i + 7], rows[i + 8], rows[i + 9], rows[i + 10], result[i]
        for j in range(width):
            to[j] = (
                w0 * f[j] + w1 * (e[j] + g[j]) + w2 * (d[j] + h[j])
                + w3 * (c[j] + k[j]) + w4 * (b[j] + m[j]) + w5 * (a[j] + n[j])
            )  # fmt: skip
