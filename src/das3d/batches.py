"""Training batches: good parts, turned a little, in other light, then harmed. All on the device, from (seed, iteration).

Every iteration seeds its own generator, so a resumed run needs no generator state to go on exactly as it would have, and
each of several processes draws the whole batch and takes its share, so their number changes nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from das3d._bundle import Bundle
from das3d.light import Light, draw_light, lit
from das3d.preparation import PreparedScan
from das3d.recipes import Recipe, draw_rounds
from das3d.settings import Settings, TrainingSettings
from das3d.synthesis import Harmed, apply_recipes, resampled

BEND_NODES = 6  # of the grid of displacements that bends a part, along each axis


@dataclass(frozen=True)
class GoodParts(Bundle):
    """Prepared good parts as tensors on one device, all members together.

    Attributes:
        rgb: (N, 3, S, S) uint8.
        depth: (N, 1, S, S) float32, as float16 would lose small defects; normalised.
        foreground: (N, 1, S, S) bool.
    """

    rgb: Tensor
    depth: Tensor
    foreground: Tensor

    @classmethod
    def from_scans(cls, scans: list[PreparedScan], device: torch.device | str = "cpu") -> GoodParts:
        rgb = torch.from_numpy(np.stack([scan.rgb for scan in scans])).permute(0, 3, 1, 2).contiguous()
        depth = torch.from_numpy(np.stack([scan.depth for scan in scans]))[:, None]
        foreground = torch.from_numpy(np.stack([scan.foreground for scan in scans]))[:, None]
        return cls(rgb, depth, foreground).to(device)

    @property
    def device(self) -> torch.device:
        return self.rgb.device


@dataclass(frozen=True)
class Batch:
    """One training batch: the good pairs (I, Z), the harmed pairs (I~, Z~) and the mask M~."""

    rgb: Tensor  # (B, 3, S, S) float32
    depth: Tensor  # (B, 1, S, S) float32
    harmed: Harmed
    recipes: tuple[Recipe, ...]


@dataclass(frozen=True)
class Motion(Bundle):
    """How good parts are moved, drawn before it is applied. All but `bend` (B,)."""

    turn: Tensor  # radians
    zoom: Tensor
    shift_u: Tensor
    shift_v: Tensor
    mirror: Tensor  # +1 or -1
    bend: Tensor  # (B, 2, n, n) displacements right and down at the nodes of a coarse grid, as a share of the side

    @property
    def is_any(self) -> Tensor:
        """(B,) bool: False where a part stays as it is."""
        rigid = (self.turn != 0) | (self.zoom != 1) | (self.shift_u != 0) | (self.shift_v != 0) | (self.mirror != 1)
        return rigid | (self.bend != 0).flatten(1).any(dim=1)


def draw_motion(batch: int, settings: TrainingSettings, generator: torch.Generator) -> Motion:
    def spread(limit: float) -> Tensor:
        return limit * (2 * torch.rand(batch, generator=generator) - 1)

    mirror = torch.rand(batch, generator=generator) < (0.5 if settings.flip else 0.0)
    # Resampling softens, and parts that are judged are not resampled: networks that saw moved parts alone take their
    # sharpness for a defect.
    moves = (torch.rand(batch, generator=generator) >= settings.still).float()
    # No two parts are shaped alike to the pixel. Networks that saw those of training as they are would know them by heart
    # and take the slightest other shape for a defect.
    bend = 2 * torch.rand(batch, 2, BEND_NODES, BEND_NODES, generator=generator) - 1
    bend *= settings.bend * torch.rand(batch, 1, 1, 1, generator=generator)
    return Motion(
        turn=spread(math.radians(settings.rotation)) * moves,
        zoom=1 + spread(settings.zoom) * moves,
        shift_u=spread(settings.shift) * moves,
        shift_v=spread(settings.shift) * moves,
        mirror=torch.where(mirror, -1.0, 1.0),
        bend=bend * moves[:, None, None, None],
    )


def moved(parts: GoodParts, motion: Motion) -> tuple[Tensor, Tensor, Tensor]:
    """RGB in (0, 1), depth and foreground of the parts, moved; what comes into view is background."""
    if parts.device.type != "cpu":  # which must not be asked which parts are moved
        return _resampled(parts, motion)
    members = parts.rgb.float() / 255, parts.depth.clone(), parts.foreground.clone()
    moving = motion.is_any.nonzero()[:, 0]
    if len(moving):
        for member, made in zip(members, _resampled(parts[moving], motion[moving]), strict=True):
            member[moving] = made
    return members


def _resampled(parts: GoodParts, motion: Motion) -> tuple[Tensor, Tensor, Tensor]:
    cos, sin = motion.turn.cos() / motion.zoom, motion.turn.sin() / motion.zoom
    rows = [cos * motion.mirror, -sin, 2 * motion.shift_u, sin * motion.mirror, cos, 2 * motion.shift_v]
    matrix = torch.stack(rows, dim=1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, list(parts.depth.shape), align_corners=False)
    bend = F.interpolate(motion.bend, size=list(grid.shape[1:3]), mode="bicubic", align_corners=False)
    grid = grid + 2 * bend.permute(0, 2, 3, 1)
    return resampled(parts.rgb.float() / 255, parts.depth, parts.foreground, grid)


@dataclass(frozen=True)
class Draw(Bundle):
    """All random choices of one batch, or of the share of it that belongs to one of several processes.

    Attributes:
        index: int64, which good part each pair is made of.
        motion, light: how those are moved and lit.
        rounds: recipes, one a round.
    """

    index: Tensor
    motion: Motion
    light: Light
    rounds: tuple[Recipe, ...]


def draw_batch(
    parts: int, settings: Settings, iteration: int, textures: Tensor | None = None, *, rank: int = 0, ranks: int = 1
) -> Draw:
    """What one iteration does with so many good parts, drawn on the host."""
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + iteration)
    count = settings.training.batch
    drawn = Draw(
        index=torch.randint(parts, (count,), generator=generator),
        motion=draw_motion(count, settings.training, generator),
        light=draw_light(count, settings.training, generator),
        rounds=tuple(
            draw_rounds(
                count, settings.synthesis, generator, rgb=settings.uses_rgb, depth=settings.uses_depth, textures=textures
            )
        ),
    )
    return drawn[rank * count // ranks : (rank + 1) * count // ranks]


def compose(parts: GoodParts, drawn: Draw, settings: Settings, textures: Tensor | None = None) -> Batch:
    """The batch that was drawn; all on one device."""
    rgb, depth, foreground = moved(parts[drawn.index], drawn.motion)
    if settings.uses_rgb:
        rgb = lit(rgb, depth, foreground, drawn.light, glares=settings.training.glare > 0)
    harmed = apply_recipes(rgb, depth, foreground, drawn.rounds, settings.synthesis, textures)
    return Batch(rgb, depth, harmed, drawn.rounds)


def make_batch(parts: GoodParts, settings: Settings, iteration: int, textures: Tensor | None = None) -> Batch:
    """The batch of one iteration."""
    drawn = draw_batch(len(parts), settings, iteration, textures)
    return compose(parts, drawn.to(parts.device), settings, textures)
