"""The three networks: two that repair RGB and depth, one that finds what they had to repair (paper, Section 3.3).

One definition serves every preset; only widths and two switches differ (`NetworkSettings`). Shapes in comments are
(batch, channels, rows, columns) with S the side of the prepared image and s = S / stem.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from das3d.settings import NetworkSettings, Settings


class Repaired(NamedTuple):
    """What a repair net gives: its image, and the features that the discriminator reads (f_fuse, Section 3.3)."""

    image: Tensor
    taps: list[Tensor]


class Output(NamedTuple):
    """One forward pass. Images that belong to a modality that is not used are None.

    Attributes:
        logits: (B, 1, S, S); the sigmoid is the anomaly map. (The paper's two-class softmax is the sigmoid of the
            difference of its two logits.)
        rgb: (B, 3, S, S) repaired RGB.
        depth: (B, C, S, S) repaired depth features, the first of which is the depth itself.
    """

    logits: Tensor
    rgb: Tensor | None
    depth: Tensor | None


def block(channels_in: int, channels_out: int) -> nn.Sequential:
    """Twice 3 x 3 convolution, batch norm, ReLU."""
    layers: list[nn.Module] = []
    for channels in (channels_in, channels_out):
        layers += [
            nn.Conv2d(channels, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


def upsample(x: Tensor, size: torch.Size | tuple[int, ...]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class RepairNet(nn.Module):
    """F_Z or F_I: an encoder and a decoder.

    As in the paper they have no skips: only what the bottleneck knows comes out again. With `skips` the decoder sees the
    encoder's features and the net predicts what to add to its input, starting from nothing; that correction is one more
    feature for the discriminator.
    """

    def __init__(self, channels: int, widths: tuple[int, ...], stem: int, skips: bool) -> None:
        super().__init__()
        self.stem, self.skips = stem, skips
        folded = channels * stem * stem
        self.encoder = nn.ModuleList(block(a, b) for a, b in zip((folded, *widths), widths, strict=False))
        self.decoder = nn.ModuleList(
            block(a + b if skips else a, b) for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.head = nn.Conv2d(widths[0], folded, 3, padding=1)
        self.tap_widths = [widths[0], widths[1], widths[1], widths[0], *([folded] if skips else [])]
        if skips:
            nn.init.zeros_(self.head.weight)
            assert self.head.bias is not None
            nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Repaired:
        folded = F.pixel_unshuffle(x, self.stem)  # (B, C stem^2, s, s)
        x, features = folded, []
        for level, layer in enumerate(self.encoder):
            x = layer(F.max_pool2d(x, 2) if level else x)
            features.append(x)
        for layer, skip in zip(self.decoder, features[-2::-1], strict=True):
            x = upsample(x, skip.shape[2:])
            x = layer(torch.cat([x, skip], dim=1) if self.skips else x)
            features.append(x)
        out = self.head(x)
        taps = [features[0], features[1], features[-2], features[-1], *([out] if self.skips else [])]
        return Repaired(F.pixel_shuffle(folded + out if self.skips else out, self.stem), taps)  # (B, C, S, S)


class Discriminator(nn.Module):
    """D: a U-Net with skips over the fused features (eq. 11).

    The paper upsamples every feature to full resolution and concatenates them. With `fuse_width` a 1 x 1 convolution of
    that concatenation follows, done where it is cheapest: as a projection of each feature before upsampling, summed.
    """

    def __init__(self, tap_widths: list[int], widths: tuple[int, ...], fuse_width: int, stem: int) -> None:
        super().__init__()
        self.stem = stem
        self.project = nn.ModuleList(nn.Conv2d(tap, fuse_width, 1) for tap in tap_widths) if fuse_width else None
        fused = fuse_width or sum(tap_widths)
        self.encoder = nn.ModuleList(block(a, b) for a, b in zip((fused, *widths), widths, strict=False))
        self.decoder = nn.ModuleList(
            block(below + skip, skip) for below, skip in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.head = nn.Conv2d(widths[0], stem * stem, 3, padding=1)

    def fuse(self, taps: list[Tensor]) -> Tensor:
        size = taps[0].shape[2:]  # (s, s)
        if self.project is not None:
            taps = [layer(tap) for layer, tap in zip(self.project, taps, strict=True)]
        taps = [tap if tap.shape[2:] == size else upsample(tap, size) for tap in taps]
        return torch.cat(taps, dim=1) if self.project is None else sum(taps[1:], start=taps[0])

    def forward(self, taps: list[Tensor]) -> Tensor:
        x = self.fuse(taps)  # (B, fused, s, s)
        skips = []
        for level, layer in enumerate(self.encoder):
            x = layer(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        for layer, skip in zip(self.decoder, skips[-2::-1], strict=True):
            x = layer(torch.cat([upsample(x, skip.shape[2:]), skip], dim=1))
        return F.pixel_shuffle(self.head(x), self.stem)  # (B, 1, S, S)


class DepthFeatures(nn.Module):
    """Depth (B, 1, S, S) as the depth network sees it: alone, or with slopes and local relief (B, 4, S, S).

    A part spans a hundred times the height of a small dent, so in the depth itself the dent is lost; its slopes and its
    height above the neighbourhood are not. Scales are per image side, so they hold for every resolution.
    """

    SLOPE = 0.2  # slopes beyond about 5 depth ranges a side saturate: they are silhouettes
    RELIEF = 32.0  # heights beyond about 1/32 of the depth range saturate
    NEIGHBOURHOOD = 1 / 24  # of the side

    def __init__(self, relief: bool) -> None:
        super().__init__()
        self.relief = relief
        self.channels = 4 if relief else 1

    def forward(self, depth: Tensor) -> Tensor:
        if not self.relief:
            return depth
        side = depth.shape[-1]
        padded = F.pad(depth, (1, 1, 1, 1), mode="replicate")
        right = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) * (side / 2 * self.SLOPE)
        down = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) * (side / 2 * self.SLOPE)
        reach = max(1, round(side * self.NEIGHBOURHOOD / 2))
        around = F.pad(depth, (reach,) * 4, mode="replicate")
        relief = (depth - F.avg_pool2d(around, 2 * reach + 1, stride=1)) * self.RELIEF
        return torch.cat([depth, torch.tanh(torch.cat([right, down, relief], dim=1))], dim=1)


class DAS3DNet(nn.Module):
    """Both repair nets and the discriminator; with one modality, one repair net and the same discriminator."""

    def __init__(self, settings: NetworkSettings, *, rgb: bool = True, depth: bool = True) -> None:
        super().__init__()
        self.depth_features = DepthFeatures(settings.depth_relief)
        shape = (settings.repair_widths, settings.stem, settings.skips)
        self.repair_rgb = RepairNet(3, *shape) if rgb else None
        self.repair_depth = RepairNet(self.depth_features.channels, *shape) if depth else None
        taps = [width for net in (self.repair_rgb, self.repair_depth) if net is not None for width in net.tap_widths]
        self.discriminator = Discriminator(taps, settings.discriminator_widths, settings.fuse_width, settings.stem)

    @classmethod
    def from_settings(cls, settings: Settings) -> DAS3DNet:
        return cls(settings.network, rgb=settings.uses_rgb, depth=settings.uses_depth)

    def forward(self, rgb: Tensor | None, depth: Tensor | None) -> Output:
        """One pass over RGB (B, 3, S, S) in (0, 1) and normalised depth (B, 1, S, S); S a multiple of 16 times stem."""
        taps: list[Tensor] = []
        repaired_rgb = repaired_depth = None
        if self.repair_rgb is not None:
            assert rgb is not None
            repaired_rgb = self.repair_rgb(rgb)
            taps += repaired_rgb.taps
        if self.repair_depth is not None:
            assert depth is not None
            repaired_depth = self.repair_depth(self.depth_features(depth))
            taps += repaired_depth.taps
        logits = self.discriminator(taps)
        return Output(
            logits,
            None if repaired_rgb is None else repaired_rgb.image,
            None if repaired_depth is None else repaired_depth.image,
        )
