"""Synthetic defects in depth and RGB at once: equations (1) to (8) and (12) of the paper, and four families beside them.

Every random choice is drawn first, as a `Recipe`; applying a recipe is deterministic. A recipe makes the same pixels again
from the same good parts, alone or in any batch:

    recipe = draw_recipe(len(rgb), settings, generator)
    harmed = synthesise(rgb, depth, foreground, recipe, settings)

Arrays are batched tensors on any device: RGB (B, 3, S, S) in (0, 1), depth (B, 1, S, S) normalised to (0, 1) and growing
away from the camera, masks (B, 1, S, S) bool.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from das3d.noise import grid, hash_uniform, perlin
from das3d.settings import SynthesisSettings

FAMILIES = ("blobs", "spots", "scratches", "shifts", "cuts")
BLOB, SPOT, SCRATCH, SHIFT, CUT = range(len(FAMILIES))


@dataclass(frozen=True)
class Recipe:
    """How to make B synthetic defects; every member has one entry a pair.

    Attributes:
        seed: int64, of the noise fields.
        family: index into `FAMILIES`.
        periods: (B, 2) Perlin periods across the image along each axis.
        angle: turn of noise and shapes, radians.
        threshold: tp of eq. (1).
        place: (B, 2) uniform numbers that choose the centre among the part's pixels.
        radius: of spots and cuts, half length of scratches, as a share of the side.
        aspect: how much longer than wide a shape is.
        sigma: of eq. (3), as a share of the side.
        alpha: (B, 2) skew of eq. (3).
        magnitude: pz of eq. (6).
        sign: -1 concave, +1 convex, 0 both at once, of the families with a single shape.
        beta: of eq. (8).
        texture: index of the texture picture, where textures are given.
        colour: (B, 2, 3) the two colours of a generated texture.
        own_colour: share of the part's own colour in those.
        shade: how strongly relief shades RGB instead of a texture; 0: texture.
        offset: (B, 2) displacement of shifted regions, as a share of the side.
        keep_rgb, keep_depth: dI and dZ of eq. (12): True leaves that modality unharmed.
    """

    seed: Tensor
    family: Tensor
    periods: Tensor
    angle: Tensor
    threshold: Tensor
    place: Tensor
    radius: Tensor
    aspect: Tensor
    sigma: Tensor
    alpha: Tensor
    magnitude: Tensor
    sign: Tensor
    beta: Tensor
    texture: Tensor
    colour: Tensor
    own_colour: Tensor
    shade: Tensor
    offset: Tensor
    keep_rgb: Tensor
    keep_depth: Tensor

    def __len__(self) -> int:
        return int(self.seed.shape[0])

    def __getitem__(self, index: int | slice | Tensor) -> Recipe:
        if isinstance(index, int):
            index = range(len(self))[index]  # IndexError beyond the last pair, which also ends a for loop
            index = slice(index, index + 1)
        return Recipe(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def to(self, device: torch.device | str) -> Recipe:
        return Recipe(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def to_dicts(self) -> list[dict[str, Any]]:
        """One plain dict a pair, fit for JSON."""
        return [{field.name: getattr(self, field.name)[i].tolist() for field in fields(self)} for i in range(len(self))]

    @classmethod
    def from_dicts(cls, dicts: list[dict[str, Any]]) -> Recipe:
        """The recipe that `to_dicts` wrote."""
        whole = {"seed", "family", "texture"}
        flags = {"keep_rgb", "keep_depth"}

        def column(name: str) -> Tensor:
            dtype = torch.int64 if name in whole else torch.bool if name in flags else torch.float32
            return torch.tensor([one[name] for one in dicts], dtype=dtype)

        return cls(**{field.name: column(field.name) for field in fields(cls)})


@dataclass(frozen=True)
class Harmed:
    """Pairs after synthesis: what eq. (12) calls I~, Z~ and M~."""

    rgb: Tensor
    depth: Tensor
    mask: Tensor  # (B, 1, S, S) float32, 1 on defects


def draw_recipe(
    batch: int,
    settings: SynthesisSettings,
    generator: torch.Generator,
    *,
    rgb: bool = True,
    depth: bool = True,
    textures: int = 0,
) -> Recipe:
    """Draw all random numbers for `batch` pairs.

    Args:
        settings: ranges and frequencies.
        generator: on the CPU, so that a seed gives the same recipe whatever the device.
        rgb, depth: which modalities are used; an unused one counts as unharmed.
        textures: how many texture pictures there are to choose from.
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(batch, *shape, generator=generator)

    def log_uniform(low: float, high: float) -> Tensor:
        low = max(low, 1e-6)
        return low * (high / low) ** torch.rand(batch, generator=generator)

    weights = torch.tensor([getattr(settings, family) for family in FAMILIES])
    octave = torch.randint(0, settings.perlin_octaves + 1, (batch, 2), generator=generator)
    return Recipe(
        seed=torch.randint(0, 2**31, (batch,), generator=generator),
        family=torch.multinomial(weights, batch, replacement=True, generator=generator),
        periods=2.0**octave,
        angle=uniform(-math.pi / 2, math.pi / 2),
        threshold=uniform(settings.threshold_low, settings.threshold_high),
        place=uniform(0, 1, 2),
        radius=log_uniform(settings.spot_low, settings.spot_high),
        aspect=log_uniform(1.0, 3.0),
        sigma=log_uniform(settings.sigma_low, settings.sigma_high),
        alpha=uniform(-0.5, 0.5, 2),  # eq. (4)
        magnitude=uniform(settings.magnitude_low, settings.magnitude_high),
        sign=torch.randint(-1, 2, (batch,), generator=generator).float(),
        beta=uniform(0, settings.opacity_rest),
        texture=torch.randint(0, max(textures, 1), (batch,), generator=generator),
        colour=uniform(0, 1, 2, 3),
        own_colour=uniform(0, 1),
        shade=uniform(0, 1) * (uniform(0, 1) < settings.shaded),
        offset=uniform(-0.15, 0.15, 2),
        keep_rgb=(uniform(0, 1) < settings.drop) if rgb else torch.ones(batch, dtype=torch.bool),
        keep_depth=(uniform(0, 1) < settings.drop) if depth else torch.ones(batch, dtype=torch.bool),
    )


def synthesise(
    rgb: Tensor,
    depth: Tensor,
    foreground: Tensor,
    recipe: Recipe,
    settings: SynthesisSettings,
    textures: Tensor | None = None,
) -> Harmed:
    """Harm good pairs as the recipe says.

    Args:
        rgb: (B, 3, S, S) in (0, 1).
        depth: (B, 1, S, S) normalised; 1 is the background.
        foreground: (B, 1, S, S) bool, Mf.
        recipe: of B pairs, on the same device.
        settings: those that the recipe was drawn with; what is no random choice comes from here.
        textures: (N, 3, S, S) pictures in (0, 1) for Iu; None: generated.
    """
    region = ternary_mask(foreground, recipe)  # Mt: (B, 1, S, S) in {-1, 0, 1}
    change = skew_filtered(region, recipe, settings.sigma_high) if settings.skew_filter else region
    change = change * foreground
    change = change * recipe.magnitude[:, None, None, None]  # pz dZ
    family = recipe.family[:, None, None, None]
    harmed_depth = depth - change  # eq. (6); convex is nearer, and depth grows away from the camera
    mask = (change.abs() >= settings.mask_threshold).float()  # eq. (7)
    texture = generated_texture(rgb, foreground, recipe) if textures is None else textures[recipe.texture]
    beta = recipe.beta[:, None, None, None]
    painted = (1 - beta) * texture + beta * rgb
    shade = recipe.shade[:, None, None, None]
    painted = torch.where((shade > 0) & (family != CUT), shaded(rgb, change, recipe), painted)

    solid = (region != 0).float()
    is_shift, is_cut = family == SHIFT, family == CUT
    if bool((recipe.family >= SHIFT).any()) or rgb.device.type != "cpu":
        moved_rgb, moved_depth = displaced(rgb, depth, recipe)
        painted = torch.where(is_shift, moved_rgb, painted)
        harmed_depth = torch.where(is_shift, torch.where(solid > 0, moved_depth, depth), harmed_depth)
        # Where material is missing the camera sees what lies behind: the background, or deeper inside the part.
        behind = torch.where(shade > 0, (depth + 2 * recipe.magnitude[:, None, None, None]).clamp(max=1), 1.0)
        harmed_depth = torch.where(is_cut, torch.where(solid > 0, behind, depth), harmed_depth)
        painted = torch.where(is_cut, torch.where(shade > 0, rgb * (1 - shade), 0.0), painted)
        mask = torch.where(is_shift | is_cut, solid, mask)
    harmed_rgb = rgb + mask * (painted - rgb)  # eq. (8)

    if settings.visible > 0:
        mask = mask * visible(rgb, depth, harmed_rgb, harmed_depth, recipe, settings.visible)
    keep_rgb, keep_depth = recipe.keep_rgb[:, None, None, None], recipe.keep_depth[:, None, None, None]
    return Harmed(  # eq. (12)
        torch.where(keep_rgb, rgb, harmed_rgb),
        torch.where(keep_depth, depth, harmed_depth),
        torch.where(keep_rgb & keep_depth, 0.0, mask),
    )


# ------------------------------------------------------------------------------------------- shapes


def ternary_mask(foreground: Tensor, recipe: Recipe) -> Tensor:
    """Mt of eqs. (1) and (2), (B, 1, S, S) float32 in {-1, 0, 1}: -1 concave, +1 convex, 0 outside the part."""
    side = foreground.shape[-1]
    noise = perlin(recipe.seed, recipe.periods[:, 0], recipe.periods[:, 1], recipe.angle, side)
    threshold = recipe.threshold[:, None, None]
    blobs = (noise > threshold).float() - (noise < -threshold).float()  # eq. (1)
    if bool((recipe.family != BLOB).any()) or foreground.device.type != "cpu":
        sign = recipe.sign[:, None, None]
        single = shape(foreground, noise, recipe).float() * torch.where(sign == 0, noise.sign(), sign)
        blobs = torch.where(recipe.family[:, None, None] == BLOB, blobs, single)
    return (blobs * foreground[:, 0])[:, None]  # eq. (2)


def shape(foreground: Tensor, noise: Tensor, recipe: Recipe) -> Tensor:
    """(B, S, S) bool: one compact spot, or one winding line, with its centre on the part."""
    side = foreground.shape[-1]
    u, v = grid(side, foreground.device)
    centre_u, centre_v = centres(foreground, recipe)
    x, y = u - centre_u[:, None, None], v - centre_v[:, None, None]
    cos, sin = recipe.angle.cos()[:, None, None], recipe.angle.sin()[:, None, None]
    along, across = cos * x - sin * y, sin * x + cos * y
    radius, stretch = recipe.radius[:, None, None], recipe.aspect.sqrt()[:, None, None]
    distance = torch.sqrt((along / stretch) ** 2 + (across * stretch) ** 2) / radius
    spot = distance + 0.5 * noise < 1
    bend = 0.04 * torch.sin(along / radius * 2 + recipe.place[:, :1, None] * 6.3)
    width = (0.5 + 2 * recipe.beta[:, None, None]) / 128  # about half a pixel to two pixels at 128
    line = ((across + bend + 0.01 * noise).abs() < width) & (along.abs() < 2 * radius)
    return torch.where(recipe.family[:, None, None] == SCRATCH, line, spot)


def centres(foreground: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Coordinates (B,), (B,) in (-0.5, 0.5) of the foreground pixel that `place` chooses; the middle if there is none."""
    side = foreground.shape[-1]
    flat = foreground.flatten(1).float()
    total = flat.sum(dim=1)
    rank = (recipe.place[:, 0] * total).floor() + 1
    index = torch.searchsorted(flat.cumsum(dim=1), rank[:, None])[:, 0].clamp(max=side * side - 1)
    index = torch.where(total > 0, index, (side * side + side) // 2)
    return (index % side + 0.5) / side - 0.5, (index // side + 0.5) / side - 0.5


def skew_normal_kernel(sigma: Tensor, alpha: Tensor, reach: int) -> Tensor:
    """norm(G) of eqs. (3) to (5), (B, 2 reach + 1, 2 reach + 1), each summing to 1.

    Args:
        sigma: (B,) standard deviation in pixels; Sigma of eq. (3) is sigma^2 times the identity. Each kernel ends at
            three sigma, rounded up: the paper's h is twice that plus 1.
        alpha: (B, 2) skew along rows and columns.
        reach: half width in pixels of the array that all kernels lie in.
    """
    offset = torch.arange(-reach, reach + 1, device=sigma.device, dtype=torch.float32)
    squares = offset[:, None] ** 2 + offset[None, :] ** 2
    density = torch.exp(-squares[None] / (2 * sigma[:, None, None] ** 2))
    inside = offset.abs() <= (3 * sigma[:, None]).ceil()
    density = density * (inside[:, :, None] & inside[:, None, :])
    along = alpha[:, 0, None, None] * offset[None, :, None] + alpha[:, 1, None, None] * offset[None, None, :]
    kernel = density * torch.special.ndtr(along)
    return kernel / kernel.sum(dim=(1, 2), keepdim=True)


def skew_filtered(region: Tensor, recipe: Recipe, sigma_high: float) -> Tensor:
    """DZ of eq. (5): the ternary mask (B, 1, S, S) under each pair's own kernel, by FFT as kernels are large.

    The sizes follow from `sigma_high`, the largest sigma that can be drawn, and each pair has a transform of its own:
    neither its neighbours in the batch nor the device change how a pair is rounded.
    """
    side = region.shape[-1]
    reach = math.ceil(3 * sigma_high * side)
    kernels = skew_normal_kernel(recipe.sigma * side, recipe.alpha, reach)
    size = [-(-(side + reach) // 32) * 32] * 2  # what wraps around stays before `reach`; multiples of 32 are fast
    filtered = [
        torch.fft.irfft2(torch.fft.rfft2(one, s=size) * torch.fft.rfft2(kernel, s=size), s=size)
        for one, kernel in zip(region[:, 0], kernels, strict=True)
    ]
    return torch.stack(filtered)[:, None, reach : reach + side, reach : reach + side]


# ------------------------------------------------------------------------------------------- colours


def generated_texture(rgb: Tensor, foreground: Tensor, recipe: Recipe) -> Tensor:
    """Iu without a picture, (B, 3, S, S): two colours mixed by noise of drawn scale, from flat to grainy.

    Each colour lies between a random one and one of the part's own, so that weak and natural stains occur beside glaring
    ones.
    """
    side = rgb.shape[-1]
    count = rgb.shape[0]
    drawn = hash_uniform(recipe.seed[:, None], torch.arange(4, device=rgb.device)[None] + 1_000_003)
    periods = 4.0 * 12.0 ** drawn[:, 0]
    noise = perlin(recipe.seed + 1, periods, periods * (0.25 + drawn[:, 1]), recipe.angle, side)
    sharp = 1 + 9 * drawn[:, 2, None, None]
    mixture = torch.sigmoid(noise * sharp * 2)[:, None]  # (B, 1, S, S)
    centre_u, centre_v = centres(foreground, recipe)
    column = ((centre_u + 0.5) * side).long().clamp(0, side - 1)
    row = ((centre_v + 0.5) * side).long().clamp(0, side - 1)
    own = rgb[torch.arange(count, device=rgb.device), :, row, column]  # (B, 3)
    share = recipe.own_colour[:, None, None]
    colours = share * own[:, None] + (1 - share) * recipe.colour  # (B, 2, 3)
    first, second = colours[:, 0, :, None, None], colours[:, 1, :, None, None]
    return first + mixture * (second - first)


def shaded(rgb: Tensor, change: Tensor, recipe: Recipe) -> Tensor:
    """RGB as a lamp from a drawn side shows the changed relief: slopes towards it brighter, away from it darker."""
    side = change.shape[-1]
    padded = F.pad(change, (1, 1, 1, 1), mode="replicate")
    right = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) * (side / 2)
    down = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) * (side / 2)
    direction = recipe.place[:, 1] * (2 * math.pi)
    slope = direction.cos()[:, None, None, None] * right + direction.sin()[:, None, None, None] * down
    strength = (recipe.shade * 0.6)[:, None, None, None]
    return (rgb * (1 + strength * torch.tanh(slope))).clamp(0, 1)


def displaced(rgb: Tensor, depth: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """The pairs moved by `offset` and turned a little: RGB and depth together."""
    side = rgb.shape[-1]
    u, v = grid(side, rgb.device)
    angle = recipe.angle[:, None, None] * (recipe.beta[:, None, None] > 0.4)
    x = 2 * (angle.cos() * u - angle.sin() * v + recipe.offset[:, 0, None, None])
    y = 2 * (angle.sin() * u + angle.cos() * v + recipe.offset[:, 1, None, None])
    both = torch.cat([rgb, depth - 1], dim=1)  # beyond the frame is black background at depth 1
    moved = F.grid_sample(both, torch.stack([x, y], dim=-1), mode="bilinear", align_corners=False)
    return moved[:, :3], moved[:, 3:] + 1


def visible(rgb: Tensor, depth: Tensor, harmed_rgb: Tensor, harmed_depth: Tensor, recipe: Recipe, least: float) -> Tensor:
    """(B, 1, S, S) float32: 1 where a harmed modality shows a change of `least` nearby; what nobody sees is no defect."""
    colour = (harmed_rgb - rgb).abs().amax(dim=1, keepdim=True) * ~recipe.keep_rgb[:, None, None, None]
    # A step of the depth range is as visible as four steps of the grey range.
    height = 4 * (harmed_depth - depth).abs() * ~recipe.keep_depth[:, None, None, None]
    return (F.max_pool2d(torch.maximum(colour, height), 5, stride=1, padding=2) > least).float()
