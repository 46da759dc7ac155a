"""What `synthesis` does, for one pair after the other and pixel by pixel, compiled by Numba: how CPUs make defects.

A pair costs hundreds of operations on tensors of a few thousand pixels, and on a CPU nearly all of that is overhead. Here a
pair looks at no more of the image than its defect can change, and threads make pairs side by side. The results are those of
`synthesis.apply_in_batch`, which GPUs run, but for rounding; tests compare the two.

Images of one pair are (3, S, S) or (S, S), and arrays made for a box have its height and width. Places u (right) and v
(down) are shares of the side, from the middle of the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from das3d._numba import Array, compiled, side_by_side
from das3d.noise import LATTICE, mix
from das3d.recipes import BLOB, CUT, OFFSET, SCRATCH, SPOT, WARP, Recipe
from das3d.settings import SynthesisSettings
from das3d.synthesis import EDGE_REACH, RIM, WARPED, Harmed


class Rules(NamedTuple):
    """What is the same for all pairs. Handed on instead of read where it is used: compiled code is kept between runs."""

    skew_filter: bool
    peak: bool
    mask_threshold: float
    has_soft_edges: bool
    visible: float
    has_cuts: bool
    picture_scale: float  # times which the values of pictures lie in (0, 1)
    lattice: int
    rim: int  # pixels
    edge_reach: int  # pixels
    warped: float
    offset: float


class Box(NamedTuple):
    """First and one past last rows and columns of what is worked on."""

    top: int
    bottom: int
    left: int
    right: int


def apply_recipes(
    rgb: Tensor,
    depth: Tensor,
    foreground: Tensor,
    recipes: Sequence[Recipe],
    settings: SynthesisSettings,
    textures: Tensor | None = None,
) -> Harmed:
    """Harm good pairs by one recipe after the other; arguments and result as for `synthesis.apply_recipes`, on a CPU."""
    count, side = len(rgb), rgb.shape[-1]
    harmed = Harmed(torch.empty(rgb.shape), torch.empty(depth.shape), torch.empty(depth.shape))
    pictures = np.empty((0, 3, side, side), np.float32) if textures is None else textures.contiguous().numpy()
    rules = Rules(
        skew_filter=settings.skew_filter,
        peak=settings.peak,
        # Thresholds of 32 bits, as PyTorch compares with.
        mask_threshold=float(np.float32(settings.mask_threshold)),
        has_soft_edges=settings.edge_high > 0,
        visible=float(np.float32(settings.visible)),
        has_cuts=settings.cuts > 0,
        picture_scale=1 / 255 if pictures.dtype == np.uint8 else 1.0,
        lattice=LATTICE,
        rim=max(1, round(RIM * side / 2)),
        edge_reach=EDGE_REACH,
        warped=WARPED,
        offset=OFFSET,
    )
    good = [member.contiguous().numpy() for member in (rgb.float(), depth[:, 0].float(), foreground[:, 0])]
    made = [member.numpy() for member in (harmed.rgb, harmed.depth[:, 0], harmed.mask[:, 0])]
    tables = [_table(recipe) for recipe in recipes]

    def make(pair: int) -> None:
        good_rgb, good_depth, foreground = (member[pair] for member in good)
        made_rgb, made_depth, mask = (member[pair] for member in made)
        made_rgb[:], made_depth[:], mask[:] = good_rgb, good_depth, 0
        part = foreground.copy()  # of which each round takes what it cuts away
        for table in tables:
            if not (table[pair]["keep_rgb"] and table[pair]["keep_depth"]):
                harm(good_rgb, good_depth, part, made_rgb, made_depth, mask, table[pair], pictures, rules)

    side_by_side(make, count)
    return harmed


def _table(recipe: Recipe) -> Array:
    # One record a pair, with the members of the recipe.
    columns = {field.name: getattr(recipe, field.name).numpy() for field in fields(recipe)}
    table = np.empty(len(recipe), [(name, column.dtype, column.shape[1:]) for name, column in columns.items()])
    for name, column in columns.items():
        table[name] = column
    return table


@compiled
def harm(
    good_rgb: Array,
    good_depth: Array,
    part: Array,
    rgb: Array,
    depth: Array,
    marked: Array,
    recipe: Any,
    pictures: Array,
    rules: Rules,
) -> None:
    """Harm one pair in place, all equations, and take from the part what is cut away.

    Args:
        good_rgb, good_depth: the pair before all rounds, (3, S, S) and (S, S).
        part: (S, S) bool, Mf without what earlier rounds cut away.
        rgb, depth, marked: what earlier rounds made of the pair, (3, S, S), (S, S) and (S, S).
        recipe: one record of `_table`.
        pictures: (N, 3, S, S), or none at all for generated textures.
    """
    row, column = centre_of(part, recipe, rules)
    box = reach_of(part, recipe, row, column, rules)
    if box.top >= box.bottom or box.left >= box.right:
        return
    old_rgb = rgb[:, box.top : box.bottom, box.left : box.right]
    old_depth = depth[box.top : box.bottom, box.left : box.right]
    inside = part[box.top : box.bottom, box.left : box.right]
    new_rgb, new_depth = old_rgb.copy(), old_depth.copy()

    side = len(part)
    centre_u, centre_v = (column + 0.5) / side - 0.5, (row + 0.5) / side - 0.5
    region = ternary_mask(inside, recipe, box, side, centre_u, centre_v, rules)  # Mt
    if recipe.family == BLOB or recipe.family == SPOT or recipe.family == SCRATCH:
        change = change_of_depth(region, inside, recipe, side, rules)  # pz dZ
        mask = marks(change, rules.mask_threshold)  # eq. (7)
        lower(new_depth, change)  # eq. (6)
        if not recipe.keep_rgb:
            covering = soft_edged(mask, inside, recipe.edge, rules)
            if recipe.shade > 0:
                shade(new_rgb, change, covering, recipe, side)
            elif len(pictures):
                picture = pictures[recipe.texture, :, box.top : box.bottom, box.left : box.right]
                blend(new_rgb, picture, covering, recipe.beta, rules)
            else:
                paint(new_rgb, rgb[:, row, column], covering, recipe, box, side, rules)
    else:
        mask = marks(region, 0.5)
        covering = soft_edged(mask, inside, recipe.edge, rules)
        if recipe.family == CUT:
            cut(new_rgb, new_depth, mask, covering, recipe)
        else:
            displace(new_rgb, new_depth, rgb, depth, part, mask, covering, recipe, box, centre_u, centre_v, rules)

    # Eq. (12): a modality that is kept takes nothing of what is made.
    if recipe.keep_rgb:
        new_rgb = old_rgb.copy()
    if recipe.keep_depth:
        new_depth = old_depth.copy()
    if rules.visible > 0:
        unmark_unseen(mask, old_rgb, old_depth, new_rgb, new_depth, rules.visible)
    for i in range(mask.shape[0]):
        for j in range(mask.shape[1]):
            old_depth[i, j] = new_depth[i, j]
            old_rgb[0, i, j], old_rgb[1, i, j], old_rgb[2, i, j] = new_rgb[0, i, j], new_rgb[1, i, j], new_rgb[2, i, j]
            if mask[i, j] > 0:
                marked[box.top + i, box.left + j] = 1
    if rules.has_cuts:
        take_away(part, box, good_rgb, good_depth, rgb, depth)


# ------------------------------------------------------------------------------------------- where


@compiled
def take_away(part: Array, box: Box, rgb: Array, depth: Array, harmed_rgb: Array, harmed_depth: Array) -> None:
    """Leave out of the part, in place, what was cut away: what became background is no part for the rounds that follow."""
    for i in range(box.top, box.bottom):
        for j in range(box.left, box.right):
            behind = (harmed_depth[i, j] >= 1) & (depth[i, j] < 1)
            black = (harmed_rgb[0, i, j] == 0) & (harmed_rgb[1, i, j] == 0) & (harmed_rgb[2, i, j] == 0)
            was_black = (rgb[0, i, j] == 0) & (rgb[1, i, j] == 0) & (rgb[2, i, j] == 0)
            part[i, j] &= not (behind | (black & (not was_black)))


@compiled
def centre_of(part: Array, recipe: Any, rules: Rules) -> tuple[int, int]:
    """Row and column of the pixel that `recipe.centre` chooses: of the outline for every other cut, if there is one."""
    chosen = part
    if recipe.family == CUT and recipe.at_rim:
        outline = rim_of(part, rules.rim)
        if outline.any():
            chosen = outline
    side, total = len(part), 0
    for i in range(side):
        for j in range(side):
            total += chosen[i, j]
    rank = int(np.float32(recipe.centre) * np.float32(total))  # 0 for the first pixel
    for i in range(side):
        for j in range(side):
            if chosen[i, j]:
                if rank == 0:
                    return i, j
                rank -= 1
    return side // 2, side // 2


@compiled
def rim_of(part: Array, reach: int) -> Array:
    """Those pixels of the part from which the outside is no farther than `reach` pixels along both axes."""
    side = len(part)
    near = np.zeros((side, side), np.bool_)  # to the outside, within the row
    rim = np.zeros((side, side), np.bool_)
    for i in range(side):
        for j in range(side):
            near[i, j] = not part[i, max(j - reach, 0) : j + reach + 1].all()
    for i in range(side):
        for j in range(side):
            rim[i, j] = part[i, j] and near[max(i - reach, 0) : i + reach + 1, j].any()
    return rim


@compiled
def reach_of(part: Array, recipe: Any, row: int, column: int, rules: Rules) -> Box:
    """Where a defect with its centre there can change its pair: around the centre and on the part; empty without a part."""
    side = len(part)
    top, bottom, left, right = side, 0, side, 0
    for i in range(side):
        for j in range(side):
            if part[i, j]:
                top, bottom, left, right = min(top, i), i + 1, min(left, j), max(right, j + 1)
    if bottom == 0:
        return Box(0, 0, 0, 0)
    if recipe.family != BLOB:
        if recipe.family == SCRATCH:
            # Bend and grain take a line no farther aside than 0.05.
            half = math.hypot(2 * recipe.radius, recipe.width + 0.05)
        else:
            # Noise of -1 makes a spot that much larger.
            half = (rules.warped if recipe.family == WARP else 1.0) + 0.5
            half *= recipe.radius * math.sqrt(max(recipe.aspect, 1 / recipe.aspect))
        half = min(half, 1.0) * side
        if rules.skew_filter and (recipe.family == SPOT or recipe.family == SCRATCH):
            half += math.ceil(3 * recipe.sigma * side)
        top, bottom = max(top, math.floor(row + 0.5 - half)), min(bottom, math.ceil(row + 0.5 + half))
        left, right = max(left, math.floor(column + 0.5 - half)), min(right, math.ceil(column + 0.5 + half))
    # Beyond that, as far as `shade` and `unmark_unseen` look for changes and edges are blurred.
    more = 2 + (rules.edge_reach if rules.has_soft_edges else 0)
    return Box(max(top - more, 0), min(bottom + more, side), max(left - more, 0), min(right + more, side))


@compiled
def ternary_mask(inside: Array, recipe: Any, box: Box, side: int, centre_u: float, centre_v: float, rules: Rules) -> Array:
    """Mt of eqs. (1) and (2), float32 in {-1, 0, 1}: -1 concave, +1 convex, 0 outside the part."""
    region = np.zeros(inside.shape, np.float32)
    noise = perlin(recipe.seed, recipe.periods[0], recipe.periods[1], recipe.angle, side, box, rules)
    cos, sin, stretch = math.cos(recipe.angle), math.sin(recipe.angle), math.sqrt(recipe.aspect)
    limit = rules.warped if recipe.family == WARP else 1.0
    for i in range(inside.shape[0]):
        v = (box.top + i + 0.5) / side - 0.5 - centre_v
        for j in range(inside.shape[1]):
            if not inside[i, j]:
                continue
            value = noise[i, j]
            if recipe.family == BLOB:  # eq. (1)
                if abs(value) > recipe.threshold:
                    region[i, j] = np.sign(value)
                continue
            u = (box.left + j + 0.5) / side - 0.5 - centre_u
            along, across = cos * u - sin * v, sin * u + cos * v
            if recipe.family == SCRATCH:  # one winding line
                bend = 0.04 * math.sin(along / recipe.radius * 2 + recipe.phase)
                within = abs(across + bend + 0.01 * value) < recipe.width and abs(along) < 2 * recipe.radius
            else:  # one compact spot
                within = math.hypot(along / stretch, across * stretch) / recipe.radius + 0.5 * value < limit
            if within:
                region[i, j] = recipe.sign if recipe.sign != 0 else np.sign(value)
    return region


# ------------------------------------------------------------------------------------------- noise

compiled_mix: Any = compiled(mix)


@compiled
def uniform(seed: int, key: int) -> float:
    """As `noise.hash_uniform`."""
    h = compiled_mix(compiled_mix(compiled_mix((seed + 0x9E3779B9) & 0xFFFFFFFF) ^ key))
    return (h >> 8) / (1 << 24)


@compiled
def nodes_around(start: float, across: float, down: float, lattice: int) -> tuple[int, int, np.int32]:
    """Nodes of the lattice, along one axis, that a box may need which begins at `start`.

    The first of them, their number, and which bits of a distance from the first are the place among them: fields repeat,
    so a box of many cells needs no more than the lattice has, and its first one again.
    """
    first = math.floor(start + min(across, 0.0) + min(down, 0.0)) - 1
    if abs(across) + abs(down) > lattice:
        return first, lattice + 1, np.int32(lattice - 1)
    return first, math.ceil(start + max(across, 0.0) + max(down, 0.0)) + 2 - first, np.int32(-1)


@compiled
def perlin(seed: int, periods_u: float, periods_v: float, angle: float, side: int, box: Box, rules: Rules) -> Array:
    """As `noise.perlin`, one field in a box."""
    # Positions on the lattice, in whose middle the image has its own, are sums of steps to the right and steps down.
    right_x, right_y = math.cos(angle) * periods_u / side, math.sin(angle) * periods_v / side
    down_x, down_y = -math.sin(angle) * periods_u / side, math.cos(angle) * periods_v / side
    u, v = box.left + 0.5 - side / 2, box.top + 0.5 - side / 2
    height, width = box.bottom - box.top, box.right - box.left
    x, y = rules.lattice / 2 + right_x * u + down_x * v, rules.lattice / 2 + right_y * u + down_y * v
    first_x, columns, bits_x = nodes_around(x, right_x * (width - 1), down_x * (height - 1), rules.lattice)
    first_y, rows, bits_y = nodes_around(y, right_y * (width - 1), down_y * (height - 1), rules.lattice)
    gradient_x, gradient_y = np.empty(rows * columns, np.float32), np.empty(rows * columns, np.float32)
    for i in range(rows):
        for j in range(columns):
            node = (first_y + i) % rules.lattice * rules.lattice + (first_x + j) % rules.lattice
            direction = 2 * math.pi * uniform(seed, node)
            gradient_x[i * columns + j] = math.sqrt(2) * math.cos(direction)
            gradient_y[i * columns + j] = math.sqrt(2) * math.sin(direction)

    # In numbers of 32 bits, twice as many of which are computed at a time.
    one, six, ten, fifteen = np.float32(1), np.float32(6), np.float32(10), np.float32(15)
    step_x, step_y, stride = np.float32(right_x), np.float32(right_y), np.int32(columns)
    noise = np.empty((height, width), np.float32)
    for i in range(height):
        start_x, start_y = np.float32(x - first_x + down_x * i), np.float32(y - first_y + down_y * i)
        line = noise[i]
        for j in range(width):
            fx, fy = start_x + step_x * np.float32(j), start_y + step_y * np.float32(j)
            column, row = np.int32(fx), np.int32(fy)
            fx, fy = fx - np.float32(column), fy - np.float32(row)
            weight_x = fx * fx * fx * (fx * (fx * six - fifteen) + ten)
            weight_y = fy * fy * fy * (fy * (fy * six - fifteen) + ten)
            corner = (row & bits_y) * stride + (column & bits_x)
            upper = gradient_x[corner] * fx + gradient_y[corner] * fy
            other = gradient_x[corner + 1] * (fx - one) + gradient_y[corner + 1] * fy
            upper += (other - upper) * weight_x
            corner += stride
            lower = gradient_x[corner] * fx + gradient_y[corner] * (fy - one)
            other = gradient_x[corner + 1] * (fx - one) + gradient_y[corner + 1] * (fy - one)
            lower += (other - lower) * weight_x
            line[j] = upper + (lower - upper) * weight_y
    return noise


# ------------------------------------------------------------------------------------------- relief


@compiled
def change_of_depth(region: Array, inside: Array, recipe: Any, side: int, rules: Rules) -> Array:
    """What eq. (6) takes from the depth, pz dZ, of defects that change the surface where it is."""
    change = region.copy()
    if rules.skew_filter:
        change = skew_filtered(region, float(np.float32(recipe.sigma * side)), recipe.alpha[0], recipe.alpha[1])
    largest = np.float32(1e-6)
    for i in range(change.shape[0]):
        for j in range(change.shape[1]):
            change[i, j] *= inside[i, j]
            largest = max(largest, abs(change[i, j]))
    scale = recipe.magnitude / largest if rules.peak else recipe.magnitude
    for i in range(change.shape[0]):
        for j in range(change.shape[1]):
            change[i, j] *= scale
    return change


@compiled
def lower(depth: Array, change: Array) -> None:
    """Eq. (6), in place; convex is nearer, and depth grows away from the camera."""
    for i in range(depth.shape[0]):
        for j in range(depth.shape[1]):
            depth[i, j] -= change[i, j]


@compiled
def marks(values: Array, least: float) -> Array:
    """A mask, float32: 1 where a value is that far from 0, or farther."""
    mask = np.zeros(values.shape, np.float32)
    for i in range(values.shape[0]):
        for j in range(values.shape[1]):
            mask[i, j] = abs(values[i, j]) >= least
    return mask


@compiled
def skew_filtered(region: Array, sigma: float, alpha_rows: float, alpha_columns: float) -> Array:
    """DZ of eq. (5): the ternary mask under norm(G).

    Along a row of the mask only its steps matter, and they are few: the kernel is added where there is one, times its
    height, and the sums along the rows of what that gives are the filtered mask.
    """
    height, width = region.shape
    kernel = skew_normal_kernel(sigma, alpha_rows, alpha_columns)
    size, reach = len(kernel), len(kernel) // 2
    steps = np.zeros((height, width + size), np.float32)  # wider by the reach on both sides, and for a step at the end
    for i in range(height):
        first, last = max(0, reach - i), min(size, height + reach - i)  # rows of the kernel that lie in the box
        before = np.float32(0)
        for j in range(width + 1):
            here = region[i, j] if j < width else np.float32(0)
            if here != before:
                for k in range(first, last):
                    of, to = kernel[k], steps[i + k - reach, j : j + size]
                    for n in range(size):
                        to[n] += (here - before) * of[n]
            before = here
    filtered = np.empty((height, width), np.float32)
    for i in range(height):
        total = 0.0
        for j in range(reach + width):
            total += steps[i, j]
            if j >= reach:
                filtered[i, j - reach] = total
    return filtered


@compiled
def skew_normal_kernel(sigma: float, alpha_rows: float, alpha_columns: float) -> Array:
    """norm(G) of eqs. (3) and (4), (h, h), of three sigma to each side; sigma in pixels."""
    reach = math.ceil(np.float32(3 * sigma))  # a product of 64 bits may lie beyond the integer that this is
    size, total = 2 * reach + 1, 0.0
    kernel = np.empty((size, size), np.float32)
    for i in range(size):
        for j in range(size):
            down, right = i - reach, j - reach
            density = math.exp(-(down * down + right * right) / (2 * sigma * sigma))
            along = alpha_rows * down + alpha_columns * right
            value = density * math.erfc(-along / math.sqrt(2))  # twice the normal distribution function
            kernel[i, j] = value
            total += value
    for i in range(size):
        for j in range(size):
            kernel[i, j] /= total
    return kernel


@compiled
def soft_edged(mask: Array, inside: Array, sigma: float, rules: Rules) -> Array:
    """The mask under a Gaussian of `sigma` pixels, on the part alone; as it is where edges are not softened."""
    if not rules.has_soft_edges:
        return mask
    height, width = mask.shape
    reach, total = rules.edge_reach, 0.0
    weights = np.empty(2 * reach + 1, np.float32)
    for k in range(2 * reach + 1):
        weights[k] = math.exp(-((k - reach) ** 2) / (2 * max(sigma, 0.1) ** 2))
        total += weights[k]
    for k in range(2 * reach + 1):
        weights[k] /= total
    columns, soft = np.zeros(mask.shape, np.float32), np.zeros(mask.shape, np.float32)
    for i in range(height):
        for k in range(max(-reach, -i), min(reach + 1, height - i)):
            weight, of, to = weights[k + reach], mask[i + k], columns[i]
            for j in range(width):
                to[j] += weight * of[j]
        for k in range(max(-reach, 1 - width), min(reach + 1, width)):
            weight, of, to = weights[k + reach], columns[i, max(0, k) : width + min(0, k)], soft[i, max(0, -k) :]
            for j in range(len(of)):
                to[j] += weight * of[j]
        for j in range(width):
            soft[i, j] *= inside[i, j]
    return soft


# ------------------------------------------------------------------------------------------- colours


@compiled
def lerp(one: float, other: float, share: float) -> float:
    """As `torch.lerp`: a share of 0 is exactly the one, a share of 1 the other."""
    return one + share * (other - one) if share < 0.5 else other - (other - one) * (1 - share)


@compiled
def blend(new_rgb: Array, picture: Array, covering: Array, beta: float, rules: Rules) -> None:
    """Eq. (8) with a picture for Iu."""
    for i in range(covering.shape[0]):
        for j in range(covering.shape[1]):
            if covering[i, j] > 0:
                for channel in range(3):
                    texture = picture[channel, i, j] * rules.picture_scale
                    new_rgb[channel, i, j] = lerp(new_rgb[channel, i, j], texture, covering[i, j] * (1 - beta))


@compiled
def paint(new_rgb: Array, own: Array, covering: Array, recipe: Any, box: Box, side: int, rules: Rules) -> None:
    """Eq. (8) with the texture of `synthesis.generated_texture` for Iu; `own` is the part's colour (3,) at the centre."""
    colours = np.empty((2, 3), np.float32)
    brightness = (own[0] + own[1] + own[2]) / 3
    for k in range(2):
        for channel in range(3):
            hue = own[channel] / brightness if brightness > 0.05 else 1.0
            drawn = lerp(recipe.colour[k, channel], min(recipe.colour[k, 0] * hue, 1.0), recipe.own_hue)
            colours[k, channel] = recipe.own_colour * own[channel] + (1 - recipe.own_colour) * drawn
    periods = 4.0 * 12.0 ** uniform(recipe.seed, 1_000_003)
    down = periods * (0.25 + uniform(recipe.seed, 1_000_004))
    sharp = 1 + 9 * uniform(recipe.seed, 1_000_005)
    noise = perlin(recipe.seed + 1, periods, down, recipe.angle, side, box, rules)
    for i in range(covering.shape[0]):
        for j in range(covering.shape[1]):
            if covering[i, j] > 0:
                grain = 1 / (1 + math.exp(-2 * sharp * noise[i, j]))
                for channel in range(3):
                    texture = lerp(colours[0, channel], colours[1, channel], grain)
                    share = covering[i, j] * (1 - recipe.beta)
                    new_rgb[channel, i, j] = lerp(new_rgb[channel, i, j], texture, share)


@compiled
def shade(new_rgb: Array, change: Array, covering: Array, recipe: Any, side: int) -> None:
    """RGB as a lamp from a drawn side shows the changed relief."""
    height, width = covering.shape
    cos, sin, strength = math.cos(recipe.lamp), math.sin(recipe.lamp), 0.6 * recipe.shade
    for i in range(height):
        for j in range(width):
            if covering[i, j] > 0:
                right = change[i, min(j + 1, width - 1)] - change[i, max(j - 1, 0)]
                down = change[min(i + 1, height - 1), j] - change[max(i - 1, 0), j]
                bright = 1 + strength * math.tanh(side / 2 * (cos * right + sin * down))
                for channel in range(3):
                    colour = new_rgb[channel, i, j]
                    new_rgb[channel, i, j] = lerp(colour, min(colour * bright, 1.0), covering[i, j])


# ------------------------------------------------------------------------------------------- what is seen instead


@compiled
def exchange(before: float, behind: float, mask: float, covering: float) -> float:
    """How far one depth takes the place of the other at a pixel.

    Where part and background trade places the edge is sharp: no prepared scan has a depth between the two.
    """
    return mask if (before >= 1) != (behind >= 1) else covering


@compiled
def cut(new_rgb: Array, new_depth: Array, mask: Array, covering: Array, recipe: Any) -> None:
    """Background in the place of the part, or what lies deeper inside."""
    for i in range(mask.shape[0]):
        for j in range(mask.shape[1]):
            if covering[i, j] > 0:
                before, behind, light = new_depth[i, j], 1.0, 0.0
                if recipe.shade > 0:
                    behind, light = min(before + 2 * recipe.magnitude, 1.0), 1 - recipe.shade
                share = exchange(before, behind, mask[i, j], covering[i, j])
                new_depth[i, j] = lerp(before, behind, share)
                for channel in range(3):
                    colour = new_rgb[channel, i, j]
                    new_rgb[channel, i, j] = lerp(colour, colour * light, share)


@compiled
def displace(
    new_rgb: Array,
    new_depth: Array,
    rgb: Array,
    depth: Array,
    part: Array,
    mask: Array,
    covering: Array,
    recipe: Any,
    box: Box,
    centre_u: float,
    centre_v: float,
    rules: Rules,
) -> None:
    """Another piece of the part in the place of this one, RGB and depth together: `synthesis.displaced` and `bends`."""
    side = len(part)
    is_warp = recipe.family == WARP
    reach, rough = 1.5 * recipe.radius, 0.0
    noise_u = noise_v = np.zeros((1, 1), np.float32)
    if is_warp:
        rough = min(max(uniform(recipe.seed, 2_000_003) * 2 - 0.5, 0.0), 1.0)
        periods = 1.5 / recipe.radius * (0.5 + uniform(recipe.seed, 2_000_004))
        noise_u = perlin(recipe.seed + 2, periods, periods, recipe.angle, side, box, rules)
        noise_v = perlin(recipe.seed + 3, periods, periods, recipe.angle, side, box, rules)
    angle = recipe.angle if recipe.turned else np.float32(0)
    cos, sin = math.cos(angle), math.sin(angle)
    seen = np.empty(3, np.float32)
    for i in range(mask.shape[0]):
        v = (box.top + i + 0.5) / side - 0.5
        for j in range(mask.shape[1]):
            if covering[i, j] == 0:
                continue
            u = (box.left + j + 0.5) / side - 0.5
            if is_warp:
                near = reach * math.exp(-2 * ((u - centre_u) ** 2 + (v - centre_v) ** 2) / reach**2)
                x = u + near * ((1 - rough) * recipe.offset[0] / rules.offset + 0.7 * rough * noise_u[i, j])
                y = v + near * ((1 - rough) * recipe.offset[1] / rules.offset + 0.7 * rough * noise_v[i, j])
            else:
                x, y = cos * u - sin * v + recipe.offset[0], sin * u + cos * v + recipe.offset[1]
            before = new_depth[i, j]
            behind = seen_at((y + 0.5) * side - 0.5, (x + 0.5) * side - 0.5, rgb, depth, part, seen)
            share = exchange(before, behind, mask[i, j], covering[i, j])
            new_depth[i, j] = lerp(before, behind, share)
            for channel in range(3):
                new_rgb[channel, i, j] = lerp(new_rgb[channel, i, j], seen[channel], share)


@compiled
def seen_at(row: float, column: float, rgb: Array, depth: Array, part: Array, colour: Array) -> float:
    """Depth between pixels, and the colour into `colour`, of those that are of the part; background where most are not.

    As `synthesis.resampled`.
    """
    side, share, total = len(part), 0.0, 0.0
    colour[:] = 0
    for i in range(math.floor(row), math.floor(row) + 2):
        for j in range(math.floor(column), math.floor(column) + 2):
            if 0 <= i < side and 0 <= j < side and part[i, j]:
                weight = (1 - abs(row - i)) * (1 - abs(column - j))
                share += weight
                total += weight * (depth[i, j] - 1)
                for channel in range(3):
                    colour[channel] += weight * rgb[channel, i, j]
    if share <= 0.5:
        colour[:] = 0
        return 1.0
    colour /= share
    return total / share + 1


@compiled
def unmark_unseen(mask: Array, old_rgb: Array, old_depth: Array, new_rgb: Array, new_depth: Array, least: float) -> None:
    """Take from the mask what shows no change of `least` within two pixels: what nobody sees is no defect."""
    height, width = mask.shape
    shows = np.zeros((height, width), np.bool_)
    for i in range(height):
        for j in range(width):
            most = 4 * abs(new_depth[i, j] - old_depth[i, j])  # a step of the depth range is as visible as four of the grey
            for channel in range(3):
                most = max(most, abs(new_rgb[channel, i, j] - old_rgb[channel, i, j]))
            shows[i, j] = most > least
    for i in range(height):
        for j in range(width):
            if mask[i, j] > 0 and not shows[max(i - 2, 0) : i + 3, max(j - 2, 0) : j + 3].any():
                mask[i, j] = 0
