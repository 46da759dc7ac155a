"""Synthetic defects in depth and RGB at once: equations (1) to (8) and (12) of the paper, and five families beside them.

Every random choice is drawn first, as a `Recipe`; applying a recipe is deterministic. A recipe makes the same pixels again
from the same good parts, alone or in any batch:

    recipe = draw_recipe(len(rgb), settings, generator)
    harmed = synthesise(rgb, depth, foreground, recipe, settings)

Arrays are batched tensors on any device: RGB (B, 3, S, S) in (0, 1), depth (B, 1, S, S) normalised to (0, 1) and growing
away from the camera, masks (B, 1, S, S) bool.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Sized
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from das3d._bundle import Bundle
from das3d.noise import Box, hash_uniform, perlin
from das3d.settings import SynthesisSettings

FAMILIES = ("blobs", "spots", "scratches", "shifts", "cuts", "warps")
BLOB, SPOT, SCRATCH, SHIFT, CUT, WARP = range(len(FAMILIES))
ALL = frozenset(range(len(FAMILIES)))
OFFSET = 0.15  # largest displacement of a shifted region along either axis, before it is turned, as a share of the side
RIM = 0.04  # twice the width of the strip along the outline in which every other cut has its centre, as a share of the side
EDGE_REACH = 4  # how far an edge in RGB is blurred, pixels
WARPED = 2.0  # a warp reaches this many radii


@dataclass(frozen=True)
class Recipe(Bundle):
    """How to make B synthetic defects; every member has one entry a pair.

    Attributes:
        seed: int64, of the noise fields.
        family: index into `FAMILIES`.
        periods: (B, 2) Perlin periods across the image along each axis.
        angle: turn of noise and shapes, radians.
        threshold: tp of eq. (1).
        centre: uniform number that chooses the centre of a single shape among the part's pixels.
        at_rim: whether a cut lies along the outline.
        radius: of spots and cuts, a quarter of the length of scratches, as a share of the side.
        width: half of that of scratches, as a share of the side.
        phase: of the bends of scratches, radians.
        aspect: how much longer than wide a shape is.
        sigma: of eq. (3), as a share of the side.
        alpha: (B, 2) skew of eq. (3).
        magnitude: pz of eq. (6).
        sign: -1 concave, +1 convex, 0 both at once, of the families with a single shape.
        beta: of eq. (8).
        texture: index of the texture picture, where textures are given.
        colour: (B, 2, 3) the two colours of a generated texture.
        own_colour: share of the part's own colour in those.
        own_hue: how far those have the part's own hue; 1: they differ from it in brightness alone.
        edge: standard deviation of the blur of the defect's edge, in depth too where it is moved or missing, pixels.
        shade: how strongly relief shades RGB instead of a texture; 0: texture.
        lamp: the side that the light of shaded relief comes from, radians.
        offset: (B, 2) displacement of shifted regions, as a share of the side.
        turned: whether shifted regions are turned as well.
        keep_rgb, keep_depth: dI and dZ of eq. (12): True leaves that modality unharmed.
    """

    seed: Tensor
    family: Tensor
    periods: Tensor
    angle: Tensor
    threshold: Tensor
    centre: Tensor
    at_rim: Tensor
    radius: Tensor
    width: Tensor
    phase: Tensor
    aspect: Tensor
    sigma: Tensor
    alpha: Tensor
    magnitude: Tensor
    sign: Tensor
    beta: Tensor
    texture: Tensor
    colour: Tensor
    own_colour: Tensor
    own_hue: Tensor
    edge: Tensor
    shade: Tensor
    lamp: Tensor
    offset: Tensor
    turned: Tensor
    keep_rgb: Tensor
    keep_depth: Tensor

    def spare(self, whole: Tensor) -> Recipe:
        """The recipe with both modalities left unharmed in the pairs that `whole` (B,) marks."""
        return replace(self, keep_rgb=self.keep_rgb | whole, keep_depth=self.keep_depth | whole)

    def to_dicts(self) -> list[dict[str, Any]]:
        """One plain dict a pair, fit for JSON."""
        return [{field.name: getattr(self, field.name)[i].tolist() for field in fields(self)} for i in range(len(self))]

    @classmethod
    def from_dicts(cls, dicts: list[dict[str, Any]]) -> Recipe:
        """The recipe that `to_dicts` wrote."""
        whole = {"seed", "family", "texture"}
        flags = {"at_rim", "turned", "keep_rgb", "keep_depth"}

        def column(name: str) -> Tensor:
            dtype = torch.int64 if name in whole else torch.bool if name in flags else torch.float32
            return torch.tensor([one[name] for one in dicts], dtype=dtype)

        return cls(**{field.name: column(field.name) for field in fields(cls)})


@dataclass(frozen=True)
class Site:
    """What is made, and where: a recipe and the part that it is for.

    Attributes:
        foreground: (B, 1, S, S) bool, Mf.
        recipe: of B pairs, on the same device.
        families: those that the recipe may be of.
        box: of the image that is worked on.
    """

    foreground: Tensor
    recipe: Recipe
    families: frozenset[int]
    box: Box

    @classmethod
    def of(cls, foreground: Tensor, recipe: Recipe, families: frozenset[int] = ALL) -> Site:
        """The whole image."""
        return cls(foreground, recipe, families, Box.whole(foreground.shape[-1]))

    def within(self, box: Box) -> Site:
        """The same in a box of the image; a centre that is known is not looked for again."""
        inside = replace(self, box=box)
        if "centre" in vars(self):
            vars(inside)["centre"] = self.centre
        return inside

    @cached_property
    def centre(self) -> tuple[Tensor, Tensor]:
        """(B,), (B,) of single shapes, as `centres` finds them."""
        return centres(self.foreground, self.recipe, self.families)

    @cached_property
    def part(self) -> Tensor:
        """(B, 1, height, width) float32, 1 where the part is in the box."""
        return as_float(self.box.cut(self.foreground))


@dataclass(frozen=True)
class Harmed(Bundle):
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
    textures: Sized | None = None,
) -> Recipe:
    """Draw all random numbers for `batch` pairs.

    Args:
        settings: ranges and frequencies.
        generator: on the CPU, so that a seed gives the same recipe whatever the device.
        rgb, depth: which modalities are used; an unused one counts as unharmed.
        textures: the pictures there are to choose from; their number counts.
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(batch, *shape, generator=generator)

    def log_uniform(low: float, high: float) -> Tensor:
        low = max(low, 1e-6)
        return low * (high / low) ** torch.rand(batch, generator=generator)

    weights = torch.tensor([getattr(settings, family) for family in FAMILIES])
    octave = torch.randint(0, settings.perlin_octaves + 1, (batch, 2), generator=generator)
    # Numbers that no family needs together are drawn as one: cuts have no lamp, shifts no width.
    return Recipe(
        seed=torch.randint(0, 2**31, (batch,), generator=generator),
        family=torch.multinomial(weights, batch, replacement=True, generator=generator),
        periods=2.0**octave,
        angle=uniform(-math.pi / 2, math.pi / 2),
        threshold=uniform(settings.threshold_low, settings.threshold_high),
        centre=(place := uniform(0, 1, 2))[:, 0],
        at_rim=place[:, 1] < 0.5,
        phase=6.3 * place[:, 0],
        lamp=2 * math.pi * place[:, 1],
        radius=log_uniform(settings.spot_low, settings.spot_high),
        aspect=log_uniform(1.0, 3.0),
        sigma=log_uniform(settings.sigma_low, settings.sigma_high),
        alpha=uniform(-settings.skew, settings.skew, 2),  # eq. (4)
        magnitude=uniform(settings.magnitude_low, settings.magnitude_high),
        sign=torch.randint(-1, 2, (batch,), generator=generator).float(),
        beta=(opacity := uniform(0, 1)) * settings.opacity_rest,
        width=(0.5 + 1.2 * opacity) / 128,  # lines of one to three and a half pixels at 128
        turned=opacity > 2 / 3,
        texture=torch.randint(0, 1 if textures is None else len(textures), (batch,), generator=generator),
        colour=uniform(0, 1, 2, 3),
        own_colour=uniform(0, settings.own_colour),
        own_hue=(uniform(0, 1) < settings.own_hue).float(),
        edge=uniform(0, settings.edge_high),
        shade=uniform(0, 1) * (uniform(0, 1) < settings.shaded),
        offset=uniform(-OFFSET, OFFSET, 2),
        keep_rgb=(uniform(0, 1) < settings.drop) if rgb else torch.ones(batch, dtype=torch.bool),
        keep_depth=(uniform(0, 1) < settings.drop) if depth else torch.ones(batch, dtype=torch.bool),
    )


def draw_rounds(
    batch: int,
    settings: SynthesisSettings,
    generator: torch.Generator,
    *,
    rgb: bool = True,
    depth: bool = True,
    textures: Sized | None = None,
) -> list[Recipe]:
    """Recipes for all of ``settings.rounds``, one a round; a share of `harmless` pairs is left whole in every one.

    Arguments as for `draw_recipe`.
    """
    whole = torch.rand(batch, generator=generator) < settings.harmless
    return [
        draw_recipe(batch, settings, generator, rgb=rgb, depth=depth, textures=textures).spare(whole)
        for _ in range(settings.rounds)
    ]


def apply_recipes(
    rgb: Tensor,
    depth: Tensor,
    foreground: Tensor,
    recipes: Sequence[Recipe],
    settings: SynthesisSettings,
    textures: Tensor | None = None,
) -> Harmed:
    """Harm pairs by one recipe after the other; arguments as for `synthesise`. The mask covers what any of them harmed.

    What one cut away is no part for those that follow: nothing is painted on it, dented or moved.
    """
    harmed = Harmed(rgb, depth, torch.zeros_like(depth))
    for number, recipe in enumerate(recipes):
        left = foreground
        if number and settings.cuts > 0:
            gone = (harmed.depth >= 1) & (depth < 1)
            gone |= (harmed.rgb.amax(dim=1, keepdim=True) == 0) & (rgb.amax(dim=1, keepdim=True) > 0)
            left = foreground & ~gone
        more = synthesise(harmed.rgb, harmed.depth, left, recipe, settings, textures)
        harmed = Harmed(more.rgb, more.depth, torch.maximum(harmed.mask, more.mask))
    return harmed


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
        textures: (N, 3, S, S) pictures for Iu, in (0, 1) or uint8; None: generated.
    """
    families = frozenset(i for i, name in enumerate(FAMILIES) if getattr(settings, name) > 0)
    if rgb.device.type != "cpu":
        pictures = None if textures is None else _in_unit_range(textures.index_select(0, recipe.texture))
        return _harm(rgb, depth, Site.of(foreground, recipe, families), settings, pictures)
    # On a CPU memory is what synthesis waits for. One pair at a time stays in the cache, and of it only what can change
    # is looked at; the values are the same.
    harmed = Harmed(torch.empty_like(rgb), torch.empty_like(depth), torch.empty_like(depth))
    for i in range(len(recipe)):
        one, this = recipe[i], slice(i, i + 1)
        harmed.rgb[i], harmed.depth[i], harmed.mask[i] = rgb[i], depth[i], 0
        if one.keep_rgb & one.keep_depth:
            continue
        site = Site.of(foreground[this], one, families)
        box = reach_of(site, settings)
        if box is not None:
            pictures = None if textures is None else _in_unit_range(textures.narrow(0, int(one.texture), 1))
            some = _harm(rgb[this], depth[this], site.within(box), settings, pictures)
            for whole, part in zip(harmed.tensors(), some.tensors(), strict=True):
                box.cut(whole[this]).copy_(part)
    return harmed


def _harm(rgb: Tensor, depth: Tensor, site: Site, settings: SynthesisSettings, pictures: Tensor | None) -> Harmed:
    # All equations, in one box of all pairs. pictures: (B, 3, S, S), Iu of each pair, or None.
    recipe, box = site.recipe, site.box
    keep_rgb, keep_depth, shade, beta = map(_each, (recipe.keep_rgb, recipe.keep_depth, recipe.shade, recipe.beta))
    good_rgb, good_depth = box.cut(rgb), box.cut(depth)
    is_relief = ~_each((recipe.family == SHIFT) | (recipe.family == WARP) | (recipe.family == CUT))
    replaces = _any(~is_relief, bool(site.families & {SHIFT, WARP, CUT}))
    region = ternary_mask(site)  # Mt: (B, 1, height, width) in {-1, 0, 1}
    change = _change_of_depth(region, is_relief, site, settings)  # pz dZ
    harmed_depth = good_depth - change  # eq. (6); convex is nearer, and depth grows away from the camera
    mask = change.abs().ge_(settings.mask_threshold)  # eq. (7)
    if replaces:
        mask = torch.where(is_relief, mask, region.abs())

    painted, opacity = good_rgb, 1 - beta * (is_relief & (shade == 0))
    if _any(is_relief & (shade == 0) & ~keep_rgb):
        painted = generated_texture(rgb, site) if pictures is None else box.cut(pictures)
    if _any(is_relief & (shade > 0) & ~keep_rgb, settings.shaded > 0):
        painted = torch.where(shade > 0, shaded(good_rgb, change, recipe, box.side), painted)
    covering = mask
    if settings.edge_high > 0:
        covering = soft_edged(mask, recipe.edge) * site.part
    if replaces:
        painted, seen_depth = _replaced(rgb, depth, painted, site)
        # Where part and background trade places the edge is sharp: no prepared scan has a depth between the two.
        trade_places = ~is_relief & ((good_depth >= 1) != (seen_depth >= 1))
        covering = torch.where(trade_places, region.abs(), covering)
        harmed_depth = torch.where(is_relief, harmed_depth, torch.lerp(good_depth, seen_depth, covering))

    # Eqs. (8) and (12): a modality that is kept takes nothing of what is made.
    harmed_rgb = torch.lerp(good_rgb, painted, covering * (opacity * ~keep_rgb))
    harmed_depth = torch.lerp(good_depth, harmed_depth, (~keep_depth).float())
    mask = mask * ~(keep_rgb & keep_depth)
    if settings.visible > 0:
        mask = mask * visible(good_rgb, good_depth, harmed_rgb, harmed_depth, settings.visible)
    return Harmed(harmed_rgb, harmed_depth, mask)


def _each(values: Tensor) -> Tensor:
    # One value a pair, against images (B, C, height, width).
    return values[:, None, None, None]


def _change_of_depth(region: Tensor, is_relief: Tensor, site: Site, settings: SynthesisSettings) -> Tensor:
    # pz dZ of eq. (6), of those defects that change the surface where it is.
    change = region
    if settings.skew_filter and _any(is_relief):
        change = skew_filtered(region, site.recipe, settings.sigma_high, site.box.side)
    change = change * site.part
    if settings.peak and _any(is_relief):
        change = change / change.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6)
    return change * _each(site.recipe.magnitude)


def _replaced(rgb: Tensor, depth: Tensor, painted: Tensor, site: Site) -> tuple[Tensor, Tensor]:
    # RGB and depth of what is seen in the place of the part: another piece of it, or what lies behind a cut. Elsewhere RGB
    # is what was painted, and depth that of the part.
    recipe, families = site.recipe, site.families
    shade, good_rgb, good_depth = _each(recipe.shade), site.box.cut(rgb), site.box.cut(depth)
    is_moved, is_cut = _each((recipe.family == SHIFT) | (recipe.family == WARP)), _each(recipe.family == CUT)
    seen_rgb, seen_depth = painted, good_depth
    if _any(is_moved, bool(families & {SHIFT, WARP})):
        moved_rgb, seen_depth = displaced(rgb, depth, site)
        seen_rgb = torch.where(is_moved, moved_rgb, seen_rgb)
    if _any(is_cut, CUT in families):
        # Deeper inside, or background.
        behind = torch.where(shade > 0, (good_depth + 2 * _each(recipe.magnitude)).clamp(max=1), 1.0)
        seen_depth = torch.where(is_cut, behind, seen_depth)
        seen_rgb = torch.where(is_cut, good_rgb * (1 - shade) * (shade > 0), seen_rgb)
    return seen_rgb, seen_depth


def _in_unit_range(pictures: Tensor) -> Tensor:
    return pictures.float() / 255 if pictures.dtype == torch.uint8 else pictures


def _any(which: Tensor, possible: bool = True) -> bool:
    """Whether some pair needs this work. On a GPU it is done wherever it is possible: looking would make the host wait."""
    return bool(which.any()) if which.device.type == "cpu" else possible


# ------------------------------------------------------------------------------------------- shapes


def reach_of(site: Site, settings: SynthesisSettings) -> Box | None:
    """Where the one defect of a site can change its pair; None where there is no part."""
    recipe, side = site.recipe, site.box.side
    pixels = site.foreground[0, 0].view(torch.uint8)
    rows, columns = (_span(pixels.amax(dim=1 - axis)) for axis in (0, 1))
    if rows is None or columns is None:
        return None
    if recipe.family != BLOB:
        if recipe.family == SCRATCH:
            half = math.hypot(2 * float(recipe.radius), 0.08)  # bend, grain and width take a line less far than 0.08 aside
        else:
            # Noise of -1 makes a spot that much larger.
            half = (WARPED if recipe.family == WARP else 1) + 0.5
            half *= float(recipe.radius) * math.sqrt(float(recipe.aspect))
        half *= side
        if settings.skew_filter and recipe.family < SHIFT:
            half += _reach(recipe.sigma, side)
        u, v = (float(middle + 0.5) * side for middle in site.centre)
        rows = max(rows[0], math.floor(v - half)), min(rows[1], math.ceil(v + half))
        columns = max(columns[0], math.floor(u - half)), min(columns[1], math.ceil(u + half))
    # Beyond that, as far as `shaded` and `visible` look for changes and edges are blurred.
    more = 2 + (EDGE_REACH if settings.edge_high > 0 else 0)
    rows, columns = ((max(first - more, 0), min(end + more, side)) for first, end in (rows, columns))
    return Box(side, rows, columns)


def _span(used: Tensor) -> tuple[int, int] | None:
    # First and one past last entry of (S,) that is not zero.
    where = used.numpy().nonzero()[0]
    return (int(where[0]), int(where[-1]) + 1) if where.size else None


def ternary_mask(site: Site) -> Tensor:
    """Mt of eqs. (1) and (2), (B, 1, height, width) float32 in {-1, 0, 1}: -1 concave, +1 convex, 0 outside the part."""
    recipe, box = site.recipe, site.box
    noise = perlin(recipe.seed, recipe.periods[:, 0], recipe.periods[:, 1], recipe.angle, box.side, box)
    blobs = noise
    if _any(recipe.family == BLOB, BLOB in site.families):
        threshold = recipe.threshold[:, None, None]
        blobs = noise.clone().gt_(threshold).sub_(noise.clone().lt_(-threshold))  # eq. (1)
    if _any(recipe.family != BLOB, bool(site.families - {BLOB})):
        sign = recipe.sign[:, None, None]
        single = shape(site, noise) * torch.where(sign == 0, noise.sign(), sign)
        blobs = torch.where(recipe.family[:, None, None] == BLOB, blobs, single)
    return blobs[:, None] * site.part  # eq. (2)


def shape(site: Site, noise: Tensor) -> Tensor:
    """(B, height, width) float32, 1 within: one compact spot, or one winding line, with its centre on the part."""
    recipe, (u, v), (centre_u, centre_v) = site.recipe, site.box.grid(noise.device), site.centre
    x, y = u - centre_u[:, None, None], v - centre_v[:, None, None]
    cos, sin = recipe.angle.cos()[:, None, None], recipe.angle.sin()[:, None, None]
    along, across = cos * x - sin * y, sin * x + cos * y
    radius, stretch = recipe.radius[:, None, None], recipe.aspect.sqrt()[:, None, None]
    distance = torch.sqrt((along / stretch) ** 2 + (across * stretch) ** 2) / radius
    spot = distance.add_(noise, alpha=0.5).lt_(torch.where(recipe.family == WARP, WARPED, 1.0)[:, None, None])
    if not _any(recipe.family == SCRATCH, SCRATCH in site.families):
        return spot
    bend = 0.04 * torch.sin(along / radius * 2 + recipe.phase[:, None, None])
    line = (across + bend + 0.01 * noise).abs_().lt_(recipe.width[:, None, None]).mul_(along.abs().lt_(2 * radius))
    return torch.where(recipe.family[:, None, None] == SCRATCH, line, spot)


def as_float(mask: Tensor) -> Tensor:
    """A mask (bool) as float32 zeros and ones. By way of bytes, which is several times as fast."""
    return mask.view(torch.uint8).float()


def centres(foreground: Tensor, recipe: Recipe, families: frozenset[int] = ALL) -> tuple[Tensor, Tensor]:
    """Coordinates (B,), (B,) in (-0.5, 0.5) of the foreground pixel that `centre` chooses; the middle if there is none."""
    side = foreground.shape[-1]
    at_rim = (recipe.family == CUT) & recipe.at_rim
    if _any(at_rim, CUT in families):
        along = rim(foreground)
        # Where the part fills the image it has no outline.
        at_rim = at_rim[:, None, None, None] & along.any(dim=(1, 2, 3), keepdim=True)
        foreground = torch.where(at_rim, along, foreground)
    in_rows = foreground[:, 0].sum(dim=2).cumsum(dim=1)  # (B, S) of foreground pixels up to the end of each row
    total = in_rows[:, -1]
    rank = (recipe.centre * total).floor().long()[:, None]  # 0 for the first foreground pixel
    row = torch.searchsorted(in_rows, rank, right=True).clamp(max=side - 1)
    rank = rank - torch.where(row > 0, in_rows.gather(1, (row - 1).clamp(min=0)), 0)  # within its row
    in_row = foreground[torch.arange(len(row), device=row.device), 0, row[:, 0]].cumsum(dim=1)  # (B, S)
    column = torch.searchsorted(in_row, rank, right=True)
    row, column = (torch.where(total > 0, index[:, 0], side // 2) for index in (row, column))
    return (column + 0.5) / side - 0.5, (row + 0.5) / side - 0.5


def rim(foreground: Tensor) -> Tensor:
    """(B, 1, S, S) bool: those pixels of the part that lie along its outline."""
    reach = max(1, round(RIM * foreground.shape[-1] / 2))
    outside, width = as_float(~foreground), 2 * reach + 1
    outside = F.max_pool2d(outside, (width, 1), stride=1, padding=(reach, 0))  # columns, then rows: the same, and sooner
    outside = F.max_pool2d(outside, (1, width), stride=1, padding=(0, reach))
    return foreground & (outside > 0)


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


def _reach(sigma: Tensor | float, side: int) -> int:
    # How far the largest of some kernels reaches, pixels.
    return math.ceil(3 * float(torch.as_tensor(sigma).max()) * side)


def skew_filtered(region: Tensor, recipe: Recipe, sigma_high: float, side: int) -> Tensor:
    """DZ of eq. (5): the ternary mask (B, 1, height, width) under each pair's own kernel, by FFT as kernels are large.

    On a CPU each pair has a transform of its own that is no larger than its mask needs, so its neighbours in the batch do
    not change how it is rounded.

    Args:
        sigma_high: the largest sigma that can be drawn, as a share of the image's side.
        side: of the image.
    """
    height, width = region.shape[-2:]
    if region.device.type != "cpu":
        reach = _reach(sigma_high, side)
        kernels = skew_normal_kernel(recipe.sigma * side, recipe.alpha, reach)
        size = _fast_length(height + reach), _fast_length(width + reach)  # what wraps around stays before `reach`
        filtered = torch.fft.irfft2(_transformed(region[:, 0], *size) * _transformed(kernels, *size), s=size)
        return filtered[:, None, reach : reach + height, reach : reach + width]
    out = torch.zeros_like(region)
    for one, sigma, alpha, result in zip(region[:, 0], recipe.sigma, recipe.alpha, out[:, 0], strict=True):
        used = one.abs()
        rows, columns = _span(used.amax(dim=1)), _span(used.amax(dim=0))
        if rows is None or columns is None:
            continue
        reach = _reach(sigma, side)
        kernel = skew_normal_kernel(sigma[None] * side, alpha[None], reach)[0]
        # Of what the kernel carries beyond the mask, no more is kept than lies in the image; the rest may wrap around.
        above, below = min(rows[0], reach), min(height - rows[1], reach)
        left, right = min(columns[0], reach), min(width - columns[1], reach)
        lines, line = rows[1] - rows[0], columns[1] - columns[0]
        size = _fast_length(lines + reach + max(above, below)), _fast_length(line + reach + max(left, right))
        spectrum = _transformed(one[slice(*rows), slice(*columns)], *size).mul_(_transformed(kernel, *size))
        filtered = torch.fft.irfft2(spectrum, s=size)
        result[rows[0] - above : rows[1] + below, columns[0] - left : columns[1] + right] = filtered[
            reach - above : reach + lines + below, reach - left : reach + line + right
        ]
    return out


def _transformed(images: Tensor, height: int, width: int) -> Tensor:
    # Of real images, zero beyond their edges. As rfft2 does, but rows that are zero are not transformed.
    return torch.fft.fft(torch.fft.rfft(images, n=width, dim=-1), n=height, dim=-2)


def _fast_length(length: int) -> int:
    return -(-length // 32) * 32  # multiples of 32 are fast


# ------------------------------------------------------------------------------------------- colours


def generated_texture(rgb: Tensor, site: Site) -> Tensor:
    """Iu without a picture, (B, 3, height, width): two colours mixed by noise of drawn scale, from flat to grainy.

    Each colour lies between a random one and one of the part's own, so that weak and natural stains occur beside glaring
    ones.
    """
    recipe, side, count = site.recipe, rgb.shape[-1], rgb.shape[0]
    drawn = hash_uniform(recipe.seed[:, None], torch.arange(4, device=rgb.device)[None] + 1_000_003)
    periods = 4.0 * 12.0 ** drawn[:, 0]
    noise = perlin(recipe.seed + 1, periods, periods * (0.25 + drawn[:, 1]), recipe.angle, side, site.box)
    sharp = 1 + 9 * drawn[:, 2, None, None]
    mixture = torch.sigmoid(noise * sharp * 2)[:, None]  # (B, 1, height, width)
    centre_u, centre_v = site.centre
    column = ((centre_u + 0.5) * side).long().clamp(0, side - 1)
    row = ((centre_v + 0.5) * side).long().clamp(0, side - 1)
    own = rgb[torch.arange(count, device=rgb.device), :, row, column]  # (B, 3)
    share = recipe.own_colour[:, None, None]
    colours = torch.lerp(recipe.colour, hued(recipe.colour, own), recipe.own_hue[:, None, None])
    colours = share * own[:, None] + (1 - share) * colours  # (B, 2, 3)
    first, second = colours[:, 0, :, None, None], colours[:, 1, :, None, None]
    return torch.lerp(first, second, mixture)


def hued(colours: Tensor, own: Tensor) -> Tensor:
    """Colours (B, 2, 3) of the hue of `own` (B, 3), as bright as their first number; grey where that is next to black."""
    brightness = own.mean(dim=1, keepdim=True)
    hue = torch.where(brightness > 0.05, own / brightness.clamp(min=0.05), 1.0)  # (B, 3)
    return (colours[:, :, :1] * hue[:, None]).clamp(max=1)


def soft_edged(mask: Tensor, sigma: Tensor) -> Tensor:
    """A mask (B, 1, height, width) float32 under a Gaussian of each pair's own sigma (B,), pixels.

    No camera shows an edge as sharp as a mask's: networks would learn to look for sharp edges instead of defects.
    """
    offsets = torch.arange(-EDGE_REACH, EDGE_REACH + 1, device=mask.device, dtype=torch.float32)
    weights = torch.exp(-(offsets**2) / (2 * sigma[:, None].clamp(min=0.1) ** 2))
    weights = (weights / weights.sum(dim=1, keepdim=True))[:, None]  # (B, 1, taps)
    pairs = mask[:, 0][None]  # pairs as channels, each with a filter of its own
    blurred = F.conv2d(pairs, weights[..., None], padding=(EDGE_REACH, 0), groups=len(mask))
    return F.conv2d(blurred, weights[:, :, None], padding=(0, EDGE_REACH), groups=len(mask))[0][:, None]


def shaded(rgb: Tensor, change: Tensor, recipe: Recipe, side: int) -> Tensor:
    """RGB as a lamp from a drawn side shows the changed relief: slopes towards it brighter, away from it darker.

    RGB and change may be a box of an image of this side, beyond which nothing changes.
    """
    padded = F.pad(change, (1, 1, 1, 1), mode="replicate")
    right = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) * (side / 2)
    down = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) * (side / 2)
    slope = _each(recipe.lamp.cos()) * right + _each(recipe.lamp.sin()) * down
    strength = _each(recipe.shade * 0.6)
    bright = torch.sigmoid(2 * slope).mul_(2 * strength).add_(1 - strength)  # 1 + strength tanh(slope), without slow tanh
    return (rgb * bright).clamp_(0, 1)


def displaced(rgb: Tensor, depth: Tensor, site: Site) -> tuple[Tensor, Tensor]:
    """A box of the pairs with their pixels moved, RGB and depth together.

    Shifts show another piece of the part, moved by `offset`; those that are `turned` as well turn about the middle of the
    image, so places far from the middle move farther. Warps bend the part around their centre, most there and less
    with the distance: in one direction or, the rougher, in many.
    """
    recipe, (u, v) = site.recipe, site.box.grid(rgb.device)
    angle = (recipe.angle * recipe.turned)[:, None, None]
    x = angle.cos() * u - angle.sin() * v + recipe.offset[:, 0, None, None]
    y = angle.sin() * u + angle.cos() * v + recipe.offset[:, 1, None, None]
    is_warp = (recipe.family == WARP)[:, None, None]
    if _any(is_warp, WARP in site.families):
        bend_u, bend_v = bends(site)
        x, y = torch.where(is_warp, u + bend_u, x), torch.where(is_warp, v + bend_v, y)
    return resampled(rgb, depth, site.foreground, 2 * torch.stack([x, y], dim=-1))[:2]


def resampled(rgb: Tensor, depth: Tensor, foreground: Tensor, grid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """RGB, depth and foreground (B, 1, S, S) bool read at the places of a grid (B, height, width, 2) as of `grid_sample`.

    All members by one resampling, so none can move without the others. What comes into view is black background at depth 1.
    A pixel of the part takes nothing from beyond the outline: mixed with the background, everything that was moved would
    have a step in depth around it that no part that is judged has.
    """
    share = foreground.float()  # and not `as_float`, which cannot be exported
    members = torch.cat([rgb * share, (depth - 1) * share, share], dim=1)  # zero is background, and read beyond the frame
    moved = F.grid_sample(members, grid, mode="bilinear", align_corners=False)
    share = moved[:, 4:]
    inside = share > 0.5
    values = moved[:, :4] / share.clamp(min=0.5) * inside
    return values[:, :3], values[:, 3:] + 1, inside


def bends(site: Site) -> tuple[Tensor, Tensor]:
    """How far a warp moves each pixel of a box, (B, height, width) right and down, as a share of the side."""
    recipe, box = site.recipe, site.box
    u, v = box.grid(recipe.seed.device)
    centre_u, centre_v = (centre[:, None, None] for centre in site.centre)
    reach = 1.5 * recipe.radius[:, None, None]
    near = torch.exp(-2 * ((u - centre_u) ** 2 + (v - centre_v) ** 2) / reach**2)
    drawn = hash_uniform(recipe.seed[:, None], torch.arange(2, device=u.device)[None] + 2_000_003)
    rough = (drawn[:, 0, None, None] * 2 - 0.5).clamp(0, 1)  # a quarter bends smoothly, a quarter crumples
    periods = 1.5 / recipe.radius * (0.5 + drawn[:, 1])
    seeds = torch.cat([recipe.seed + 2, recipe.seed + 3])  # one field to the right, one down
    noise = perlin(seeds, periods.repeat(2), periods.repeat(2), recipe.angle.repeat(2), box.side, box).chunk(2)
    steady = (recipe.offset / OFFSET).unbind(dim=1)
    right, down = (
        near * reach * ((1 - rough) * steady[axis][:, None, None] + 0.7 * rough * noise[axis]) for axis in range(2)
    )
    return right, down


def visible(rgb: Tensor, depth: Tensor, harmed_rgb: Tensor, harmed_depth: Tensor, least: float) -> Tensor:
    """(B, 1, height, width) float32: 1 where a change of `least` shows nearby; what nobody sees is no defect."""
    colour = (harmed_rgb - rgb).abs_().amax(dim=1, keepdim=True)
    height = (harmed_depth - depth).abs_().mul_(4)  # a step of the depth range is as visible as four of the grey range
    return _largest_of_five(_largest_of_five(torch.maximum(colour, height), 2), 3).gt_(least)


def _largest_of_five(x: Tensor, dim: int) -> Tensor:
    # Along one axis of values of at least 0; a pooling layer of PyTorch takes fifty times as long on a CPU.
    x = F.pad(x, (0, 0, 2, 2) if dim == 2 else (2, 2))
    length = x.shape[dim] - 4
    pairs = torch.maximum(x.narrow(dim, 0, length + 2), x.narrow(dim, 1, length + 2))
    fours = torch.maximum(pairs.narrow(dim, 0, length), pairs.narrow(dim, 2, length))
    return torch.maximum(fours, x.narrow(dim, 4, length))
