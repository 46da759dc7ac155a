"""Synthetic defects in depth and RGB at once: equations (1) to (8) and (12) of the paper, and five families beside them.

Every random choice is drawn first, as a `Recipe`; applying a recipe is deterministic:

    recipe = draw_recipe(len(rgb), settings, generator)
    harmed = synthesise(rgb, depth, foreground, recipe, settings)

Arrays are batched tensors: RGB (B, 3, S, S) in (0, 1), depth (B, 1, S, S) normalised to (0, 1) and growing away from the
camera, masks (B, 1, S, S) bool. The equations stand here for whole batches, as a GPU takes them; a CPU takes those of
`compiled_synthesis`, where Numba is installed, which make the same pixels but for rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from das3d._bundle import Bundle
from das3d._numba import takes_compiled
from das3d.noise import hash_uniform, perlin, pixel_centres
from das3d.recipes import BLOB, CUT, FAMILIES, OFFSET, SCRATCH, SHIFT, WARP, Recipe
from das3d.settings import SynthesisSettings

ALL = frozenset(range(len(FAMILIES)))
RIM = 0.04  # twice the width of the strip along the outline in which every other cut has its centre, as a share of the side
EDGE_REACH = 4  # how far an edge in RGB is blurred, pixels
WARPED = 2.0  # a warp reaches this many radii


@dataclass(frozen=True)
class Harmed(Bundle):
    """Pairs after synthesis: what eq. (12) calls I~, Z~ and M~."""

    rgb: Tensor
    depth: Tensor
    mask: Tensor  # (B, 1, S, S) float32, 1 on defects


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
        rgb: (B, 3, S, S) float32 in (0, 1).
        depth: (B, 1, S, S) float32, normalised; 1 is the background.
        foreground: (B, 1, S, S) bool, Mf.
        recipe: of B pairs, on the same device.
        settings: those that the recipe was drawn with; what is no random choice comes from here.
        textures: (N, 3, S, S) pictures for Iu, in (0, 1) or uint8; None: generated.
    """
    return apply_recipes(rgb, depth, foreground, [recipe], settings, textures)


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

    Raises:
        ValueError: where shapes or numbers of things do not fit together.
    """
    _check_shapes(rgb, depth, foreground, recipes, textures)
    if takes_compiled(rgb):
        from das3d import compiled_synthesis

        return compiled_synthesis.apply_recipes(rgb, depth, foreground, recipes, settings, textures)
    return apply_in_batch(rgb, depth, foreground, recipes, settings, textures)


def _check_shapes(
    rgb: Tensor, depth: Tensor, foreground: Tensor, recipes: Sequence[Recipe], textures: Tensor | None
) -> None:
    # Compiled code does not look where it reads.
    count, side = len(rgb), rgb.shape[-1]
    expected = {"rgb": (count, 3, side, side), "depth": (count, 1, side, side), "foreground": (count, 1, side, side)}
    for (name, shape), tensor in zip(expected.items(), (rgb, depth, foreground), strict=True):
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} of shape {tuple(tensor.shape)}; expected {shape}")
    if foreground.dtype != torch.bool:
        raise ValueError(f"foreground of {foreground.dtype}; expected torch.bool")
    for recipe in recipes:
        if len(recipe) != count:
            raise ValueError(f"a recipe of {len(recipe)} pairs for {count} pairs")
    if textures is None:
        return
    if tuple(textures.shape[1:]) != (3, side, side):
        raise ValueError(f"textures of shape {tuple(textures.shape)}; expected (N, 3, {side}, {side})")
    there = range(len(textures))
    if rgb.device.type == "cpu" and any(number not in there for recipe in recipes for number in recipe.texture.tolist()):
        raise ValueError(f"a recipe names a texture beyond the {len(textures)} there are")


def apply_in_batch(
    rgb: Tensor,
    depth: Tensor,
    foreground: Tensor,
    recipes: Sequence[Recipe],
    settings: SynthesisSettings,
    textures: Tensor | None = None,
) -> Harmed:
    """What `apply_recipes` does, by operations on the whole batch that never ask the device for a value."""
    families = frozenset(i for i, name in enumerate(FAMILIES) if getattr(settings, name) > 0)
    harmed = Harmed(rgb, depth, torch.zeros_like(depth))
    for number, recipe in enumerate(recipes):
        left = foreground
        if number and settings.cuts > 0:
            gone = (harmed.depth >= 1) & (depth < 1)
            gone |= (harmed.rgb.amax(dim=1, keepdim=True) == 0) & (rgb.amax(dim=1, keepdim=True) > 0)
            left = foreground & ~gone
        pictures = None if textures is None else _in_unit_range(textures.index_select(0, recipe.texture))
        more = _harm(harmed.rgb, harmed.depth, Site(left, recipe, families), settings, pictures)
        harmed = Harmed(more.rgb, more.depth, torch.maximum(harmed.mask, more.mask))
    return harmed


@dataclass(frozen=True)
class Site:
    """What is made, and where: a recipe and the part that it is for.

    Attributes:
        foreground: (B, 1, S, S) bool, Mf.
        recipe: of B pairs, on the same device.
        families: those that the recipe may be of; nothing is done for others.
    """

    foreground: Tensor
    recipe: Recipe
    families: frozenset[int] = ALL

    @property
    def side(self) -> int:
        return self.foreground.shape[-1]

    @cached_property
    def centre(self) -> tuple[Tensor, Tensor]:
        """(B,), (B,) of single shapes, as `centres` finds them."""
        return centres(self.foreground, self.recipe, self.families)

    @cached_property
    def part(self) -> Tensor:
        """(B, 1, S, S) float32, 1 where the part is."""
        return as_float(self.foreground)


def _harm(rgb: Tensor, depth: Tensor, site: Site, settings: SynthesisSettings, pictures: Tensor | None) -> Harmed:
    # All equations. pictures: (B, 3, S, S), Iu of each pair, or None.
    recipe = site.recipe
    keep_rgb, keep_depth, shade, beta = map(_each, (recipe.keep_rgb, recipe.keep_depth, recipe.shade, recipe.beta))
    is_relief = ~_each((recipe.family == SHIFT) | (recipe.family == WARP) | (recipe.family == CUT))
    replaces = bool(site.families & {SHIFT, WARP, CUT})
    region = ternary_mask(site)  # Mt: (B, 1, S, S) in {-1, 0, 1}
    change = _change_of_depth(region, site, settings)  # pz dZ
    harmed_depth = depth - change  # eq. (6); convex is nearer, and depth grows away from the camera
    mask = change.abs().ge_(settings.mask_threshold)  # eq. (7)
    if replaces:
        mask = torch.where(is_relief, mask, region.abs())

    opacity = 1 - beta * (is_relief & (shade == 0))
    painted = generated_texture(rgb, site) if pictures is None else pictures
    if settings.shaded > 0:
        painted = torch.where(shade > 0, shaded(rgb, change, recipe), painted)
    covering = mask
    if settings.edge_high > 0:
        covering = soft_edged(mask, recipe.edge) * site.part
    if replaces:
        painted, seen_depth = _replaced(rgb, depth, painted, site)
        # Where part and background trade places the edge is sharp: no prepared scan has a depth between the two.
        trade_places = ~is_relief & ((depth >= 1) != (seen_depth >= 1))
        covering = torch.where(trade_places, region.abs(), covering)
        harmed_depth = torch.where(is_relief, harmed_depth, torch.lerp(depth, seen_depth, covering))

    # Eqs. (8) and (12): a modality that is kept takes nothing of what is made.
    harmed_rgb = torch.lerp(rgb, painted, covering * (opacity * ~keep_rgb))
    harmed_depth = torch.lerp(depth, harmed_depth, (~keep_depth).float())
    mask = mask * ~(keep_rgb & keep_depth)
    if settings.visible > 0:
        mask = mask * visible(rgb, depth, harmed_rgb, harmed_depth, settings.visible)
    return Harmed(harmed_rgb, harmed_depth, mask)


def _each(values: Tensor) -> Tensor:
    # One value a pair, against images (B, C, S, S).
    return values[:, None, None, None]


def _change_of_depth(region: Tensor, site: Site, settings: SynthesisSettings) -> Tensor:
    # pz dZ of eq. (6), of those defects that change the surface where it is.
    change = region
    if settings.skew_filter:
        change = skew_filtered(region, site.recipe, settings.sigma_high)
    change = change * site.part
    if settings.peak:
        change = change / change.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6)
    return change * _each(site.recipe.magnitude)


def _replaced(rgb: Tensor, depth: Tensor, painted: Tensor, site: Site) -> tuple[Tensor, Tensor]:
    # RGB and depth of what is seen in the place of the part: another piece of it, or what lies behind a cut. Elsewhere RGB
    # is what was painted, and depth that of the part.
    recipe, families, shade = site.recipe, site.families, _each(site.recipe.shade)
    is_moved, is_cut = _each((recipe.family == SHIFT) | (recipe.family == WARP)), _each(recipe.family == CUT)
    seen_rgb, seen_depth = painted, depth
    if families & {SHIFT, WARP}:
        moved_rgb, moved_depth = displaced(rgb, depth, site)
        seen_rgb, seen_depth = torch.where(is_moved, moved_rgb, painted), moved_depth
    if CUT in families:
        # Deeper inside, or background.
        behind = torch.where(shade > 0, (depth + 2 * _each(recipe.magnitude)).clamp(max=1), 1.0)
        seen_depth = torch.where(is_cut, behind, seen_depth)
        seen_rgb = torch.where(is_cut, rgb * (1 - shade) * (shade > 0), seen_rgb)
    return seen_rgb, seen_depth


def _in_unit_range(pictures: Tensor) -> Tensor:
    return pictures.float() / 255 if pictures.dtype == torch.uint8 else pictures


# ------------------------------------------------------------------------------------------- shapes


def ternary_mask(site: Site) -> Tensor:
    """Mt of eqs. (1) and (2), (B, 1, S, S) float32 in {-1, 0, 1}: -1 concave, +1 convex, 0 outside the part."""
    recipe = site.recipe
    noise = perlin(recipe.seed, recipe.periods[:, 0], recipe.periods[:, 1], recipe.angle, site.side)
    threshold = recipe.threshold[:, None, None]
    region = noise.clone().gt_(threshold).sub_(noise.clone().lt_(-threshold))  # eq. (1)
    if site.families - {BLOB}:
        sign = recipe.sign[:, None, None]
        single = shape(site, noise) * torch.where(sign == 0, noise.sign(), sign)
        region = torch.where(recipe.family[:, None, None] == BLOB, region, single)
    return region[:, None] * site.part  # eq. (2)


def shape(site: Site, noise: Tensor) -> Tensor:
    """(B, S, S) float32, 1 within: one compact spot, or one winding line, with its centre on the part."""
    recipe, (u, v), (centre_u, centre_v) = site.recipe, pixel_centres(site.side, noise.device), site.centre
    x, y = u - centre_u[:, None, None], v - centre_v[:, None, None]
    cos, sin = recipe.angle.cos()[:, None, None], recipe.angle.sin()[:, None, None]
    along, across = cos * x - sin * y, sin * x + cos * y
    radius, stretch = recipe.radius[:, None, None], recipe.aspect.sqrt()[:, None, None]
    distance = torch.sqrt((along / stretch) ** 2 + (across * stretch) ** 2) / radius
    spot = distance.add_(noise, alpha=0.5).lt_(torch.where(recipe.family == WARP, WARPED, 1.0)[:, None, None])
    if SCRATCH not in site.families:
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
    if CUT in families:
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


def skew_filtered(region: Tensor, recipe: Recipe, sigma_high: float) -> Tensor:
    """DZ of eq. (5): the ternary mask (B, 1, S, S) under each pair's own kernel, by FFT as kernels are large.

    Args:
        sigma_high: the largest sigma that can be drawn, as a share of the side.
    """
    side = region.shape[-1]
    reach = math.ceil(3 * sigma_high * side)
    kernels = skew_normal_kernel(recipe.sigma * side, recipe.alpha, reach)
    size = _fast_length(side + reach)  # what wraps around stays before `reach`
    filtered = torch.fft.irfft2(_transformed(region[:, 0], size) * _transformed(kernels, size), s=(size, size))
    return filtered[:, None, reach : reach + side, reach : reach + side]


def _transformed(images: Tensor, size: int) -> Tensor:
    # Of real images, zero beyond their edges. As rfft2 does, but rows that are zero are not transformed.
    return torch.fft.fft(torch.fft.rfft(images, n=size, dim=-1), n=size, dim=-2)


def _fast_length(length: int) -> int:
    return -(-length // 32) * 32  # multiples of 32 are fast


# ------------------------------------------------------------------------------------------- colours


def generated_texture(rgb: Tensor, site: Site) -> Tensor:
    """Iu without a picture, (B, 3, S, S): two colours mixed by noise of drawn scale, from flat to grainy.

    Each colour lies between a random one and one of the part's own, so that weak and natural stains occur beside glaring
    ones.
    """
    recipe, side, count = site.recipe, rgb.shape[-1], rgb.shape[0]
    drawn = hash_uniform(recipe.seed[:, None], torch.arange(4, device=rgb.device)[None] + 1_000_003)
    periods = 4.0 * 12.0 ** drawn[:, 0]
    noise = perlin(recipe.seed + 1, periods, periods * (0.25 + drawn[:, 1]), recipe.angle, side)
    sharp = 1 + 9 * drawn[:, 2, None, None]
    mixture = torch.sigmoid(noise * sharp * 2)[:, None]  # (B, 1, S, S)
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
    """A mask (B, 1, S, S) float32 under a Gaussian of each pair's own sigma (B,), pixels.

    No camera shows an edge as sharp as a mask's: networks would learn to look for sharp edges instead of defects.
    """
    offsets = torch.arange(-EDGE_REACH, EDGE_REACH + 1, device=mask.device, dtype=torch.float32)
    weights = torch.exp(-(offsets**2) / (2 * sigma[:, None].clamp(min=0.1) ** 2))
    weights = (weights / weights.sum(dim=1, keepdim=True))[:, None]  # (B, 1, taps)
    pairs = mask[:, 0][None]  # pairs as channels, each with a filter of its own
    blurred = F.conv2d(pairs, weights[..., None], padding=(EDGE_REACH, 0), groups=len(mask))
    return F.conv2d(blurred, weights[:, :, None], padding=(0, EDGE_REACH), groups=len(mask))[0][:, None]


def shaded(rgb: Tensor, change: Tensor, recipe: Recipe) -> Tensor:
    """RGB as a lamp from a drawn side shows the changed relief: slopes towards it brighter, away from it darker."""
    padded = F.pad(change, (1, 1, 1, 1), mode="replicate")
    half = change.shape[-1] / 2
    right = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) * half
    down = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) * half
    slope = _each(recipe.lamp.cos()) * right + _each(recipe.lamp.sin()) * down
    strength = _each(recipe.shade * 0.6)
    bright = torch.sigmoid(2 * slope).mul_(2 * strength).add_(1 - strength)  # 1 + strength tanh(slope), without slow tanh
    return (rgb * bright).clamp_(0, 1)


def displaced(rgb: Tensor, depth: Tensor, site: Site) -> tuple[Tensor, Tensor]:
    """The pairs with their pixels moved, RGB and depth together.

    Shifts show another piece of the part, moved by `offset`; those that are `turned` as well turn about the middle of the
    image, so places far from the middle move farther. Warps bend the part around their centre, most there and less
    with the distance: in one direction or, the rougher, in many.
    """
    recipe, (u, v) = site.recipe, pixel_centres(site.side, rgb.device)
    angle = (recipe.angle * recipe.turned)[:, None, None]
    x = angle.cos() * u - angle.sin() * v + recipe.offset[:, 0, None, None]
    y = angle.sin() * u + angle.cos() * v + recipe.offset[:, 1, None, None]
    is_warp = (recipe.family == WARP)[:, None, None]
    if WARP in site.families:
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
    """How far a warp moves each pixel, (B, S, S) right and down, as a share of the side."""
    recipe = site.recipe
    u, v = pixel_centres(site.side, recipe.seed.device)
    centre_u, centre_v = (centre[:, None, None] for centre in site.centre)
    reach = 1.5 * recipe.radius[:, None, None]
    near = torch.exp(-2 * ((u - centre_u) ** 2 + (v - centre_v) ** 2) / reach**2)
    drawn = hash_uniform(recipe.seed[:, None], torch.arange(2, device=u.device)[None] + 2_000_003)
    rough = (drawn[:, 0, None, None] * 2 - 0.5).clamp(0, 1)  # a quarter bends smoothly, a quarter crumples
    periods = 1.5 / recipe.radius * (0.5 + drawn[:, 1])
    seeds = torch.cat([recipe.seed + 2, recipe.seed + 3])  # one field to the right, one down
    noise = perlin(seeds, periods.repeat(2), periods.repeat(2), recipe.angle.repeat(2), site.side).chunk(2)
    steady = (recipe.offset / OFFSET).unbind(dim=1)
    right, down = (
        near * reach * ((1 - rough) * steady[axis][:, None, None] + 0.7 * rough * noise[axis]) for axis in range(2)
    )
    return right, down


def visible(rgb: Tensor, depth: Tensor, harmed_rgb: Tensor, harmed_depth: Tensor, least: float) -> Tensor:
    """(B, 1, S, S) float32: 1 where a change of `least` shows nearby; what nobody sees is no defect."""
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
