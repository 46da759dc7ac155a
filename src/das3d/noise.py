"""Random fields that a seed makes again on any device: a hash of the lattice instead of a generator's state."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LATTICE = 64  # fields repeat after this many cells, a power of two; more than any field here shows


def hash_uniform(seed: Tensor, *keys: Tensor | int) -> Tensor:
    """Uniform numbers in [0, 1), float32, one for each element of the broadcast of integer `seed` and `keys`.

    A counter-based generator: the same integers give the same number on every device, in any order and batch. Mixing
    is done on 32 bits inside int64, where multiplication cannot overflow silently into a device-dependent result.
    """
    # Mixed before the first key: by `seed ^ key` alone, neighbouring seeds would share their numbers in another order.
    h = _mix((seed.long() + 0x9E3779B9) & 0xFFFFFFFF)
    for key in keys:
        h = _mix(h ^ ((key if isinstance(key, Tensor) else torch.tensor(key, device=seed.device)).long() & 0xFFFFFFFF))
    return (_mix(h) >> 8).float() / float(1 << 24)


def _mix(h: Tensor) -> Tensor:
    # Two rounds of xor-shift and multiply by odd constants below 2^31, so that products stay below 2^63.
    h = ((h ^ (h >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    h = ((h ^ (h >> 16)) * 0x2C1B3C6D) & 0xFFFFFFFF
    return h ^ (h >> 15)


def grid(side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Coordinates u (right) and v (down) of pixel centres in (-0.5, 0.5), each (1, side, side)."""
    axis = (torch.arange(side, device=device, dtype=torch.float32) + 0.5) / side - 0.5
    return axis.expand(1, side, side), axis[:, None].expand(1, side, side)


def perlin(seed: Tensor, periods_u: Tensor, periods_v: Tensor, angle: Tensor, side: int) -> Tensor:
    """Perlin gradient noise (B, side, side), about -1 to 1 (Perlin 1985; scaled by sqrt 2 as DRAEM does).

    Args:
        seed: (B,) int64.
        periods_u, periods_v: (B,) lattice cells across the image along the two axes of the lattice.
        angle: (B,) turn of the lattice, radians.
    """
    u, v = grid(side, seed.device)
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    x = (cos * u - sin * v) * periods_u[:, None, None] + LATTICE / 2
    y = (sin * u + cos * v) * periods_v[:, None, None] + LATTICE / 2
    x0, y0 = x.floor(), y.floor()
    fx, fy = x - x0, y - y0

    nodes = torch.arange(LATTICE * LATTICE, device=seed.device)
    direction = hash_uniform(seed[:, None], nodes[None, :]) * (2 * math.pi)  # (B, nodes)
    gradient_x, gradient_y = direction.cos(), direction.sin()
    column, row = x0.long(), y0.long()

    def corner(dx: int, dy: int) -> Tensor:
        node = (((row + dy) & (LATTICE - 1)) * LATTICE + ((column + dx) & (LATTICE - 1))).flatten(1)
        gx = gradient_x.gather(1, node).view_as(fx)
        gy = gradient_y.gather(1, node).view_as(fx)
        return gx * (fx - dx) + gy * (fy - dy)

    weight_x, weight_y = _fade(fx), _fade(fy)
    top = torch.lerp(corner(0, 0), corner(1, 0), weight_x)
    bottom = torch.lerp(corner(0, 1), corner(1, 1), weight_x)
    return torch.lerp(top, bottom, weight_y) * math.sqrt(2)


def _fade(t: Tensor) -> Tensor:
    return t * t * t * (t * (t * 6 - 15) + 10)
