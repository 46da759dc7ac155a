"""Random fields that a seed makes again on any device: a hash of the lattice instead of a generator's state."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LATTICE = 64  # fields repeat after this many cells, a power of two: only the finest, of 1.5 pixels a cell, show it at all


def hash_uniform(seed: Tensor, *keys: Tensor | int) -> Tensor:
    """Uniform numbers in [0, 1), float32, one for each element of the broadcast of integer `seed` and `keys`.

    A counter-based generator: the same integers give the same number on every device, in any order and batch. Mixing
    is done on 32 bits inside int64, where multiplication cannot overflow silently into a device-dependent result.
    """
    # Mixed before the first key: by `seed ^ key` alone, neighbouring seeds would share their numbers in another order.
    h = mix((seed.long() + 0x9E3779B9) & 0xFFFFFFFF)
    for key in keys:
        h = mix(h ^ ((key if isinstance(key, Tensor) else torch.tensor(key, device=seed.device)).long() & 0xFFFFFFFF))
    return (mix(h) >> 8).float() / float(1 << 24)


def mix(h: Tensor) -> Tensor:
    """Spread a change of any bit over all 32, in integers of 64: of tensors here, in compiled code of single numbers."""
    # Two rounds of xor-shift and multiply by odd constants below 2^31, so that products stay below 2^63.
    h = ((h ^ (h >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    h = ((h ^ (h >> 16)) * 0x2C1B3C6D) & 0xFFFFFFFF
    return h ^ (h >> 15)


def pixel_centres(side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Coordinates u (right) (1, 1, side) and v (down) (1, side, 1) of pixel centres, in (-0.5, 0.5) of the image."""
    line = (torch.arange(side, device=device, dtype=torch.float32) + 0.5) / side - 0.5
    return line[None, None, :], line[None, :, None]


def perlin(seed: Tensor, periods_u: Tensor, periods_v: Tensor, angle: Tensor, side: int) -> Tensor:
    """Perlin gradient noise (B, side, side), about -1 to 1 (Perlin 1985; scaled by sqrt 2 as DRAEM does).

    Args:
        seed: (B,) int64.
        periods_u, periods_v: (B,) lattice cells across the image along the two axes of the lattice.
        angle: (B,) turn of the lattice, radians.
        side: of the image.
    """
    u, v = pixel_centres(side, seed.device)
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    periods_u, periods_v = periods_u[:, None, None], periods_v[:, None, None]
    # Sums of a row and a column, so that nearly all of this is done on single lines.
    x = (cos * u * periods_u + LATTICE / 2) - sin * v * periods_u
    y = (sin * u * periods_v + LATTICE / 2) + cos * v * periods_v
    x0, y0 = x.floor(), y.floor()
    fx, fy = x.sub_(x0), y.sub_(y0)
    # One index for all four corners: the others lie at a fixed distance in the table, which ends as it begins.
    stride = LATTICE + 1
    node = (y0.int() & (LATTICE - 1)).mul_(stride).add_(x0.int() & (LATTICE - 1)).long().flatten(1)
    gradient_x, gradient_y = _gradients(seed)

    right, down = (fx, fx - 1), (fy, fy - 1)  # from the nodes to the left and right, above and below

    def corner(dx: int, dy: int) -> Tensor:
        first = dy * stride + dx
        gx = gradient_x[:, first:].gather(1, node).view_as(fx)
        gy = gradient_y[:, first:].gather(1, node).view_as(fx)
        return gx.mul_(right[dx]).addcmul_(gy, down[dy])

    weight_x, weight_y = _fade(fx), _fade(fy)
    top = corner(0, 0).lerp_(corner(1, 0), weight_x)
    bottom = corner(0, 1).lerp_(corner(1, 1), weight_x)
    return top.lerp_(bottom, weight_y).mul_(math.sqrt(2))


def _gradients(seed: Tensor) -> tuple[Tensor, Tensor]:
    # Unit vectors at the nodes of the lattice, x and y each (B, (LATTICE + 1)^2), row by row.
    line = torch.arange(LATTICE + 1, device=seed.device) % LATTICE
    nodes = (line[:, None] * LATTICE + line).flatten()
    direction = hash_uniform(seed[:, None], nodes[None, :]) * (2 * math.pi)
    return direction.cos(), direction.sin()


def _fade(t: Tensor) -> Tensor:
    return (t * 6).sub_(15).mul_(t).add_(10).mul_(t).mul_(t).mul_(t)
