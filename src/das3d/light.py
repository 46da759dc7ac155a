"""Good parts in other light: another lamp, another place under it, another exposure. RGB changes, nothing else does.

The light of a line is never quite that of the training scans, and networks that know good parts by heart take a facet that
happens to mirror the lamp for a defect. Where the depth tells how surfaces lie, all that face one way can be lit at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from das3d._bundle import Bundle
from das3d.settings import TrainingSettings

LAMPS = 5  # an uneven light is drawn at so many points a side and is smooth between them
WINDOW = 1 / 64  # half of the square that a slope is measured over, as a share of the side
RIDGE = 1e-3  # square pixels, against a window of 4 or more; a single row of pixels has no slope across it
BRIGHTER = 3.0  # times; a lamp that shines straight onto a matt surface
EVEN = 0.2  # depth ranges a side; added to a part's mean slope, so that glare on a flat part is not on its noise


@dataclass(frozen=True)
class Light(Bundle):
    """How the light of B parts is varied, drawn before it is applied. All (B,) but `field`.

    Attributes:
        gain: of all of the part.
        exponent: of RGB in (0, 1); above 1 it is harsher, below 1 softer.
        field: (B, LAMPS, LAMPS) gain from place to place.
        glare: of surfaces that face one way; 1 makes them all light, -1 black.
        gloss: how bright glare gets at most, from matt (0: `BRIGHTER` times what is seen) to a mirror (1: white).
        facet: 0 to 1, picks the pixel of the part whose direction glares most.
        breadth: how far slopes may differ from that pixel's, as a share of the part's mean slope.
    """

    gain: Tensor
    exponent: Tensor
    field: Tensor
    glare: Tensor
    gloss: Tensor
    facet: Tensor
    breadth: Tensor


def draw_light(batch: int, settings: TrainingSettings, generator: torch.Generator) -> Light:
    """Draw all random numbers for the light of `batch` parts."""

    def spread(*shape: int) -> Tensor:
        return 2 * torch.rand(batch, *shape, generator=generator) - 1

    gain, exponent, field, glare = spread(), spread(), spread(LAMPS, LAMPS), spread()
    return Light(
        gain=1 + settings.brightness * gain,
        exponent=(settings.contrast * exponent).exp(),
        field=1 + settings.lighting * field,
        glare=settings.glare * glare * glare.abs(),  # weak more often than strong
        gloss=torch.rand(batch, generator=generator),
        facet=torch.rand(batch, generator=generator),
        breadth=0.1 * 10 ** torch.rand(batch, generator=generator),
    )


def lit(rgb: Tensor, depth: Tensor, foreground: Tensor, light: Light, *, glares: bool = True) -> Tensor:
    """RGB (B, 3, S, S) in (0, 1) in other light; depth and foreground (B, 1, S, S) tell where it falls.

    `glares`: False where no glare was drawn, which saves looking for slopes.
    """
    gain, exponent = light.gain[:, None, None, None], light.exponent[:, None, None, None]
    field = F.interpolate(light.field[:, None], size=rgb.shape[2:], mode="bilinear", align_corners=True)
    rgb = (rgb.pow(exponent) * (gain * field)).clamp_(0, 1)
    if not glares:
        return rgb
    strength = light.glare[:, None, None, None] * facing(depth, foreground, light)
    brightest = torch.lerp((BRIGHTER * rgb).clamp(max=1), foreground.float(), light.gloss[:, None, None, None])
    return rgb + strength.clamp(min=0) * (brightest - rgb) + strength.clamp(max=0) * rgb


def facing(depth: Tensor, foreground: Tensor, light: Light) -> Tensor:
    """(B, 1, S, S) in (0, 1): how nearly each pixel's surface faces the way of the chosen one; 0 outside the part and
    where there is no depth.

    A normal distribution over slopes, as of the microfacets of rough surfaces (Beckmann and Spizzichino 1963).
    """
    slope = slopes(depth, foreground)  # (B, 2, S, S)
    share = foreground.flatten(1).float()
    count = share.sum(dim=1, keepdim=True)  # (B, 1)
    rank = torch.minimum((light.facet[:, None] * count).floor(), count - 1) + 0.5  # between the chosen pixel and the next
    chosen = torch.searchsorted(share.cumsum(dim=1), rank).clamp(max=share.shape[1] - 1)  # (B, 1)
    middle = slope.flatten(2).gather(2, chosen[:, None].expand(-1, 2, -1))  # (B, 2, 1)
    steepness = slope.square().sum(dim=1).sqrt().flatten(1)  # (B, S S), 0 outside the part
    mean = steepness.sum(dim=1) / count[:, 0].clamp(min=1)
    breadth = (light.breadth * (mean + EVEN))[:, None, None, None]
    apart = (slope - middle[..., None]).square().sum(dim=1, keepdim=True)
    told = (mean > 0)[:, None, None, None]  # without depth there is nothing to tell one surface from another
    return torch.exp(-apart / (2 * breadth**2)) * (foreground & told)


def slopes(depth: Tensor, foreground: Tensor) -> Tensor:
    """Slopes (B, 2, S, S) to the right and down, depth ranges a side, of the part's pixels; 0 where there is no part.

    Of the least-squares plane through the part's pixels in a square window, so that neither outlines nor the noise of a
    sensor look like slopes.
    """
    side = depth.shape[-1]
    reach = max(1, round(WINDOW * side))
    line = torch.arange(-reach, reach + 1, device=depth.device, dtype=torch.float32)
    u, v = line.expand(len(line), -1), line[:, None].expand(-1, len(line))
    powers = torch.stack([torch.ones_like(u), u, v, u * u, u * v, v * v])
    none = torch.zeros_like(powers)
    # Sums over the window of both members by one convolution, as many small ones take a CPU several times as long.
    kernels = torch.stack([torch.cat([powers, none[:3]]), torch.cat([none, powers[:3]])], dim=1)  # (9, 2, rows, columns)
    share = foreground.float()
    sums = F.conv2d(torch.cat([share, depth * share], dim=1), kernels, padding=reach)
    u, v, uu, uv, vv, z, zu, zv = (sums[:, 1:] / sums[:, :1].clamp(min=1)).unbind(dim=1)  # means
    uu, vv = uu - u * u + RIDGE, vv - v * v + RIDGE
    uv, zu, zv = uv - u * v, zu - z * u, zv - z * v
    both = torch.stack([vv * zu - uv * zv, uu * zv - uv * zu], dim=1) / (uu * vv - uv * uv)[:, None]
    return both * side * share
