"""The three networks: two that repair RGB and depth, one that finds what they had to repair (paper, Section 3.3).

One definition serves every preset; widths, stems and switches differ (`NetworkSettings`). Shapes in comments are
(batch, channels, rows, columns) with S the side of the prepared image and s = S / stem.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

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
        logits: (B, 1, S, S); the sigmoid is the anomaly map. (DRAEM's two-class softmax is the sigmoid of the
            difference of its two logits.)
        rgb: (B, 3, S, S) repaired RGB.
        depth: (B, C, S, S) repaired depth features, the first of which is the depth itself.
    """

    logits: Tensor
    rgb: Tensor | None
    depth: Tensor | None

    def detached(self) -> Output:
        """The same without what a gradient would need."""
        rgb, depth = (None if image is None else image.detach() for image in (self.rgb, self.depth))
        return Output(self.logits.detach(), rgb, depth)


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


def upsample(x: Tensor, size: Sequence[int]) -> Tensor:
    """Features (B, C, H, W) enlarged bilinearly to `size` (rows, columns)."""
    if x.device.type == "cuda" and torch.is_grad_enabled():
        enlarged: Tensor = _Enlarged.apply(x, size)  # type: ignore[no-untyped-call]
        return enlarged
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class _Enlarged(torch.autograd.Function):
    """`upsample` with a gradient for GPUs: two matrix products, as enlarging is linear along rows and along columns.

    PyTorch's own adds up pixel by pixel in whatever order the threads come. On a CPU it is the faster one.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: Sequence[int]) -> Tensor:
        ctx.shape = x.shape
        # On a GPU autocast would enlarge half precision in float32, and the next convolution round it again.
        with torch.autocast(x.device.type, enabled=False):
            return F.interpolate(x, size=size, mode="bilinear", align_corners=False)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        batch, channels, height, width = ctx.shape
        gradient = upstream[0].permute(0, 2, 3, 1).contiguous()  # (B, H', W', C), as channels_last has it
        _, rows, columns, _ = gradient.shape
        gradient = _enlarging(height, rows, gradient) @ gradient.reshape(batch, rows, columns * channels)
        gradient = _enlarging(width, columns, gradient) @ gradient.reshape(batch * height, columns, channels)
        return gradient.reshape(batch, height, width, channels).permute(0, 3, 1, 2), None


def _enlarging(few: int, many: int, like: Tensor) -> Tensor:
    # (few, many): each row is what becomes of a single one among zeros.
    each = F.interpolate(torch.eye(few, device=like.device)[None], size=many, mode="linear", align_corners=False)
    return each[0].to(like.dtype)


class RepairNet(nn.Module):
    """F_Z or F_I: an encoder and a decoder.

    As DRAEM's they have no skips ("UNet-like" is all that the paper says): only what the bottleneck knows comes out again.
    With `skips` the decoder sees the encoder's features and the net predicts what to add to its input, starting from
    nothing; that correction is one more feature for the discriminator.
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
        fine, coarse = (widths[0], stem), (widths[1], 2 * stem)  # channels, pixels a step
        self.tap_shapes = [fine, coarse, coarse, fine, *([(folded, stem)] if skips else [])]
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


class FineLevel(nn.Sequential):
    """A level of the discriminator's decoder as in the paper: a block over the one below, enlarged, and the encoder's."""

    def __init__(self, below: int, skip: int, channels: int) -> None:
        super().__init__(*block(below + skip, channels))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:  # type: ignore[override]
        x = torch.cat([upsample(x, skip.shape[2:]), skip], dim=1)
        for layer in self:
            x = layer(x)
        return x


class CoarseLevel(nn.Module):
    """The same, but what comes from below is convolved before it is enlarged, while it has a quarter of the pixels.

    The first convolution of `FineLevel` is split in two, one for what comes from below and one for the encoder's features,
    which are summed. What was enlarged is smooth, so little is lost, and a training step takes an eighth less on a CPU.
    """

    def __init__(self, below: int, skip: int, channels: int) -> None:
        super().__init__()
        self.below = nn.Conv2d(below, channels, 3, padding=1, bias=False)
        self.skip = nn.Conv2d(skip, channels, 3, padding=1, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(channels)
        self.rest = nn.Sequential(*list(block(channels, channels))[2:])

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.norm(upsample(self.below(x), skip.shape[2:]) + self.skip(skip))
        for layer in self.rest:
            x = layer(x)
        return x


class Discriminator(nn.Module):
    """D: a U-Net with skips over the fused features (eq. 11).

    As in the paper every feature is enlarged to full resolution and concatenated. With `image_channels` the U-Net looks at
    the images themselves, in blocks of `stem` pixels, and each feature joins at the level of its own resolution, projected
    to `fuse_width` channels where that is not 0, so that the finest levels stay narrow.
    """

    def __init__(
        self,
        taps: list[tuple[int, int]],
        widths: tuple[int, ...],
        fuse_width: int,
        stem: int,
        image_channels: int,
        coarse_first: bool,
    ) -> None:
        super().__init__()
        level_above = CoarseLevel if coarse_first else FineLevel
        self.stem, self.direct = stem, image_channels > 0
        self.project = nn.ModuleList(nn.Conv2d(width, fuse_width, 1) for width, _ in taps) if fuse_width else None
        each = [fuse_width or width for width, _ in taps]
        # Where features join: at their own level, or all at the first.
        self.level_of = [max(stride // stem, 1).bit_length() - 1 if self.direct else 0 for _, stride in taps]
        into = [image_channels * stem * stem, *widths[:-1]] if self.direct else [0, *widths[:-1]]
        for level in set(self.level_of):
            joined = [width for width, own in zip(each, self.level_of, strict=True) if own == level]
            into[level] += fuse_width if fuse_width else sum(joined)
        self.encoder = nn.ModuleList(block(a, b) for a, b in zip(into, widths, strict=True))
        self.decoder = nn.ModuleList(
            level_above(below, skip, skip) for below, skip in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.head = nn.Conv2d(widths[0], stem * stem, 3, padding=1)

    def joining(self, taps: list[Tensor], level: int, size: Sequence[int]) -> list[Tensor]:
        """What joins a level: the sum of its projected features, or all of them."""
        here = [i for i, own in enumerate(self.level_of) if own == level]
        features = [taps[i] if self.project is None else self.project[i](taps[i]) for i in here]
        features = [one if one.shape[2:] == size else upsample(one, size) for one in features]
        return features if self.project is None or not features else [sum(features[1:], start=features[0])]

    def forward(self, taps: list[Tensor], images: Tensor) -> Tensor:
        x = F.pixel_unshuffle(images, self.stem)  # (B, C stem^2, s, s)
        skips = []
        for level, layer in enumerate(self.encoder):
            x = F.max_pool2d(x, 2) if level else x
            joined = self.joining(taps, level, x.shape[2:])
            x = layer(torch.cat([x, *joined] if level or self.direct else joined, dim=1))
            skips.append(x)
        for layer, skip in zip(self.decoder, skips[-2::-1], strict=True):
            x = layer(x, skip)
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
        length = 2 * reach + 1
        mean = sums_along(sums_along(around, length, -1), length, -2) / length**2
        relief = (depth - mean) * self.RELIEF
        # tanh, which costs a CPU several times as much.
        return torch.cat([depth, 2 * torch.sigmoid(2 * torch.cat([right, down, relief], dim=1)) - 1], dim=1)


def sums_along(x: Tensor, length: int, axis: int) -> Tensor:
    """Sums of so many neighbours along an axis, where all of them are there.

    Sums of two make those of four and so on, and the powers of two in `length` are put together: on a CPU ten times as
    fast as a pooling layer of PyTorch.
    """
    places = x.shape[axis] - length + 1
    parts, done, power = [], 0, 1
    while done < length:
        if length & power:
            parts.append(x.narrow(axis, done, places))
            done += power
        if done < length:
            reach = x.shape[axis] - power
            x, power = x.narrow(axis, 0, reach) + x.narrow(axis, power, reach), 2 * power
    return sum(parts[1:], start=parts[0])


class DAS3DNet(nn.Module):
    """Both repair nets and the discriminator; with one modality, one repair net and the same discriminator."""

    def __init__(self, settings: NetworkSettings, *, rgb: bool = True, depth: bool = True) -> None:
        super().__init__()
        self.depth_features = DepthFeatures(settings.depth_relief)
        shape = (settings.repair_widths, settings.stem, settings.skips)
        self.repair_rgb = RepairNet(3, *shape) if rgb else None
        self.repair_depth = RepairNet(self.depth_features.channels, *shape) if depth else None
        taps = [tap for net in (self.repair_rgb, self.repair_depth) if net is not None for tap in net.tap_shapes]
        seen = 3 * rgb + self.depth_features.channels * depth
        self.discriminator = Discriminator(
            taps,
            settings.discriminator_widths,
            settings.fuse_width,
            settings.discriminator_stem,
            seen * settings.direct,
            settings.coarse_first,
        )

    @classmethod
    def from_settings(cls, settings: Settings) -> DAS3DNet:
        return cls(settings.network, rgb=settings.uses_rgb, depth=settings.uses_depth)

    def forward(self, rgb: Tensor | None, depth: Tensor | None) -> Output:
        """One pass over RGB (B, 3, S, S) in (0, 1) and normalised depth (B, 1, S, S); of S see `NetworkSettings.steps`."""
        taps: list[Tensor] = []
        images: list[Tensor] = []
        repaired_rgb = repaired_depth = None
        if self.repair_rgb is not None:
            assert rgb is not None
            repaired_rgb = self.repair_rgb(rgb)
            taps += repaired_rgb.taps
            images += [rgb]
        if self.repair_depth is not None:
            assert depth is not None
            features = self.depth_features(depth)
            repaired_depth = self.repair_depth(features)
            taps += repaired_depth.taps
            images += [features]
        logits = self.discriminator(taps, torch.cat(images, dim=1))
        return Output(
            logits,
            None if repaired_rgb is None else repaired_rgb.image,
            None if repaired_depth is None else repaired_depth.image,
        )
