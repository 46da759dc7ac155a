"""Synthetic defects: against the paper's equations in plain NumPy, each setting's effect, and what must hold for all."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sized
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import synthesis_oracle as oracle
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from scipy import ndimage, stats
from torch import Tensor

from das3d import synthesis
from das3d.noise import LATTICE, hash_uniform, perlin, pixel_centres
from das3d.recipes import BLOB, CUT, FAMILIES, SCRATCH, SHIFT, SPOT, WARP, Recipe, draw_recipe, draw_rounds
from das3d.settings import SynthesisSettings, make_settings
from das3d.synthesis import (
    EDGE_REACH,
    Harmed,
    Site,
    apply_in_batch,
    apply_recipes,
    bends,
    centres,
    generated_texture,
    hued,
    rim,
    shaded,
    skew_normal_kernel,
    soft_edged,
    synthesise,
    ternary_mask,
)

PAPER = make_settings("paper").synthesis
Pairs = tuple[Tensor, Tensor, Tensor]


def paper(**changes: Any) -> SynthesisSettings:
    return SynthesisSettings(**{**PAPER.model_dump(), **changes})


def only(family: str, **changes: Any) -> SynthesisSettings:
    plain = {"drop": 0.0, "visible": 0.0, "edge_high": 0.0}
    return SynthesisSettings(**{**dict.fromkeys(FAMILIES, 0.0), family: 1.0, **plain, **changes})


def good_pairs(count: int, side: int, seed: int = 0) -> Pairs:
    """RGB, depth and foreground of discs with a hole, so that neither frame nor part is all foreground."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.arange(side) - side / 2
    distance = torch.hypot(axis[:, None] - 1, axis[None, :] + 2)
    foreground = ((distance < 0.4 * side) & (distance > 0.08 * side)).expand(count, 1, side, side).clone()
    rgb = (0.1 + 0.8 * torch.rand(count, 3, side, side, generator=generator)) * foreground
    depth = torch.where(foreground, 0.3 + 0.5 * torch.rand(count, 1, side, side, generator=generator), 1.0)
    return rgb, depth, foreground


def whole_frames(count: int, side: int) -> Pairs:
    rgb, depth, _ = good_pairs(count, side)
    return rgb, depth, torch.ones(count, 1, side, side, dtype=torch.bool)


def pictures(count: int, side: int) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(99))


def drawn(count: int, settings: SynthesisSettings, seed: int = 0, *, textures: Sized | None = None, **fixed: Any) -> Recipe:
    """A recipe with the entries in `fixed` set by hand."""
    recipe = draw_recipe(count, settings, torch.Generator().manual_seed(seed), textures=textures)
    return replace(recipe, **{name: torch.full_like(getattr(recipe, name), value) for name, value in fixed.items()})


def same(a: Harmed | Recipe, b: Harmed | Recipe) -> bool:
    return all(
        torch.equal(getattr(a, field.name), getattr(b, field.name))
        and getattr(a, field.name).dtype == getattr(b, field.name).dtype
        for field in fields(a)
    )


# ------------------------------------------------------------------------------------------- against the equations


def for_oracle(recipe: Recipe, i: int, side: int) -> oracle.Drawn:
    directions = hash_uniform(recipe.seed[i], torch.arange(LATTICE * LATTICE)).double().numpy() * (2 * math.pi)
    return oracle.Drawn(
        directions=directions.reshape(LATTICE, LATTICE),
        periods=(float(recipe.periods[i, 0]), float(recipe.periods[i, 1])),
        angle=float(recipe.angle[i]),
        threshold=float(recipe.threshold[i]),
        sigma=float(recipe.sigma[i] * side),
        alpha=(float(recipe.alpha[i, 0]), float(recipe.alpha[i, 1])),
        magnitude=float(recipe.magnitude[i]),
        beta=float(recipe.beta[i]),
        keep_rgb=bool(recipe.keep_rgb[i]),
        keep_depth=bool(recipe.keep_depth[i]),
    )


def last_axis(images: Tensor) -> oracle.Array:
    return images.double().permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"skew_filter": False},
        {"sigma_low": 0.03, "sigma_high": 0.15},
        {"sigma_low": 0.002, "sigma_high": 0.003},
        {"threshold_low": 0.1, "threshold_high": 0.8},
        {"perlin_octaves": 2},
        {"magnitude_low": 0.3, "magnitude_high": 0.9},
        {"mask_threshold": 0.03},
        {"opacity_rest": 0.0},
        {"opacity_rest": 1.0, "drop": 0.0},
        {"drop": 1.0},
    ],
    ids=str,
)
def test_the_paper_s_pixels(changes: dict[str, Any]) -> None:
    count, side, settings = 12, 64, paper(**changes)
    rgb, depth, foreground = good_pairs(count, side)
    textures = pictures(4, side)
    recipe = drawn(count, settings, textures=range(4))
    harmed = synthesise(rgb, depth, foreground, recipe, settings, textures)
    noise = perlin(recipe.seed, recipe.periods[:, 0], recipe.periods[:, 1], recipe.angle, side).double().numpy()
    defects = 0
    for i in range(count):
        numbers = for_oracle(recipe, i, side)
        good_rgb, good_depth = last_axis(rgb[i]), depth[i, 0].double().numpy()
        texture = last_axis(textures[recipe.texture[i]])
        made = oracle.synthesise(good_rgb, good_depth, foreground[i, 0].numpy(), noise[i], texture, numbers, settings)
        want_rgb, want_depth, want_mask = oracle.drop(good_rgb, good_depth, made, numbers.keep_rgb, numbers.keep_depth)
        np.testing.assert_allclose(harmed.depth[i, 0], want_depth, atol=2e-6)
        clear = np.abs(np.abs(made.change) - settings.mask_threshold) > 1e-6  # elsewhere float32 may round either way
        assert clear.mean() > 0.99
        np.testing.assert_array_equal(harmed.mask[i, 0].numpy()[clear], want_mask[clear])
        np.testing.assert_allclose(last_axis(harmed.rgb[i])[clear], want_rgb[clear], atol=1e-6)
        defects += bool(want_mask.any())
    assert (defects == 0) == (settings.drop == 1)


def test_the_oracle_agrees_from_the_noise_on() -> None:
    count, side = 12, 96
    rgb, depth, foreground = good_pairs(count, side)
    textures = pictures(3, side)
    recipe = drawn(count, PAPER, textures=range(3))
    noise = perlin(recipe.seed, recipe.periods[:, 0], recipe.periods[:, 1], recipe.angle, side)
    harmed = synthesise(rgb, depth, foreground, recipe, PAPER, textures)
    for i in range(count):
        numbers = for_oracle(recipe, i, side)
        field = oracle.perlin_noise(numbers.directions, numbers.periods, numbers.angle, side)
        np.testing.assert_allclose(noise[i], field, atol=5e-4)  # positions in float32 are that coarse
        texture = last_axis(textures[recipe.texture[i]])
        good_rgb, good_depth = last_axis(rgb[i]), depth[i, 0].double().numpy()
        want = oracle.harm(good_rgb, good_depth, foreground[i, 0].numpy(), texture, numbers, PAPER)
        got = last_axis(harmed.rgb[i]), harmed.depth[i, 0].numpy(), harmed.mask[i, 0].numpy()
        for one, other in zip(got, want, strict=True):
            assert (np.abs(one - other) > 1e-3).mean() < 2e-3  # pixels at which the noise meets its threshold


@pytest.mark.parametrize(
    "settings", [PAPER, SynthesisSettings(), SynthesisSettings(skew=2.0)], ids=["paper", "fast", "skewed"]
)
def test_recipes_and_the_oracle_draw_from_the_same_distributions(settings: SynthesisSettings) -> None:
    count, side, rng = 2000, 100, np.random.default_rng(0)
    recipe = drawn(count, settings)
    numbers = [oracle.draw(rng, settings, side) for _ in range(count)]
    columns = {
        "angle": recipe.angle,
        "threshold": recipe.threshold,
        "sigma": recipe.sigma * side,
        "magnitude": recipe.magnitude,
        "beta": recipe.beta,
        "keep_rgb": recipe.keep_rgb,
        "keep_depth": recipe.keep_depth,
    }
    for name, ours in columns.items():
        theirs = np.array([getattr(one, name) for one in numbers])
        assert stats.ks_2samp(ours.double().numpy(), theirs).pvalue > 1e-3, name
    for axis in (0, 1):
        assert stats.ks_2samp(recipe.alpha[:, axis].numpy(), [one.alpha[axis] for one in numbers]).pvalue > 1e-3
        assert stats.ks_2samp(recipe.periods[:, axis].numpy(), [one.periods[axis] for one in numbers]).pvalue > 1e-3


@given(
    sigma=st.floats(0.5, 8),
    alpha=st.tuples(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5)),
)
@examples(max_examples=25, deadline=None)
def test_the_kernel_is_the_skew_normal_density(sigma: float, alpha: tuple[float, float]) -> None:
    sigmas, reach = torch.tensor([sigma]), 26
    kernel = skew_normal_kernel(sigmas, torch.tensor([alpha]), reach)[0].double().numpy()
    want = oracle.skew_filter(float(sigmas[0]), alpha)
    margin = reach - len(want) // 2
    np.testing.assert_allclose(kernel, np.pad(want, margin), atol=1e-6)
    assert kernel.sum() == pytest.approx(1, abs=1e-5)


def test_the_kernel_leans_where_alpha_points() -> None:
    kernel = skew_normal_kernel(torch.tensor([3.0]), torch.tensor([[0.5, -0.2]]), 12)[0]
    offset = torch.arange(-12.0, 13.0)
    row, column = (kernel.sum(dim=1) * offset).sum(), (kernel.sum(dim=0) * offset).sum()
    assert row > 0.5 and -row < column < -0.2


# ------------------------------------------------------------------------------------------- eq. (12) and other frequencies


@pytest.mark.parametrize("chance", [0.0, 0.3, 0.5, 1.0])
def test_each_modality_is_left_alone_with_the_chance_of_drop_independently(chance: float) -> None:
    count = 20_000
    recipe = drawn(count, paper(drop=chance))
    for kept in (recipe.keep_rgb, recipe.keep_depth):
        assert stats.binomtest(int(kept.sum()), count, chance).pvalue > 1e-3
    both = int((recipe.keep_rgb & recipe.keep_depth).sum())
    assert stats.binomtest(both, count, chance**2).pvalue > 1e-3


@pytest.mark.parametrize("used", ["rgb", "depth"])
def test_an_unused_modality_counts_as_unharmed(used: str) -> None:
    generator = torch.Generator().manual_seed(0)
    recipe = draw_recipe(500, paper(drop=0.4), generator, rgb=used == "rgb", depth=used == "depth")
    unused, other = (recipe.keep_depth, recipe.keep_rgb) if used == "rgb" else (recipe.keep_rgb, recipe.keep_depth)
    assert unused.all()
    assert 0.3 < other.float().mean() < 0.5


def test_families_occur_with_their_frequencies() -> None:
    weights = [0.5, 1.0, 0.0, 2.0, 0.25, 0.75]
    settings = SynthesisSettings(**dict(zip(FAMILIES, weights, strict=True)))
    counts = torch.bincount(drawn(8000, settings).family, minlength=len(FAMILIES)).numpy()
    assert counts[SCRATCH] == 0
    present = [BLOB, SPOT, SHIFT, CUT, WARP]
    expected = np.array(weights)[present] / sum(weights) * 8000
    assert stats.chisquare(counts[present], expected).pvalue > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_can_occur_alone(name: str) -> None:
    assert (drawn(50, only(name)).family == FAMILIES.index(name)).all()


def test_drawn_numbers_keep_to_the_ranges_of_the_settings() -> None:
    settings = SynthesisSettings(
        threshold_low=0.2, threshold_high=0.25, sigma_low=0.01, sigma_high=0.011, magnitude_low=0.3, magnitude_high=0.31,
        spot_low=0.05, spot_high=0.06, opacity_rest=0.1, perlin_octaves=1, shaded=0.25,
    )  # fmt: skip
    recipe = drawn(4000, settings, textures=range(7))
    for name, low, high in (
        ("threshold", 0.2, 0.25), ("sigma", 0.01, 0.011), ("magnitude", 0.3, 0.31), ("radius", 0.05, 0.06),
        ("beta", 0, 0.1), ("edge", 0, 1.5), ("texture", 0, 6), ("alpha", -0.5, 0.5), ("aspect", 1, 3), ("sign", -1, 1),
        ("width", 0.5 / 128, 1.7 / 128), ("lamp", 0, 2 * math.pi), ("phase", 0, 6.3), ("centre", 0, 1),
    ):  # fmt: skip
        values = getattr(recipe, name).double()
        margin = 0.05 * (high - low)
        assert low - 1e-6 <= values.min() < low + margin, name
        assert high + 1e-6 >= values.max() > high - margin, name
    assert set(recipe.periods.unique().tolist()) == {1.0, 2.0}
    for name, share in (("at_rim", 1 / 2), ("turned", 1 / 3)):
        assert stats.binomtest(int(getattr(recipe, name).sum()), 4000, share).pvalue > 1e-3, name
    assert stats.binomtest(int((recipe.shade > 0).sum()), 4000, 0.25).pvalue > 1e-3
    assert stats.binomtest(int(recipe.own_hue.sum()), 4000, 0.5).pvalue > 1e-3 and set(recipe.own_hue.tolist()) == {
        0.0,
        1.0,
    }
    assert (drawn(500, only("blobs", shaded=0.0)).shade == 0).all()


def test_a_recipe_follows_from_the_generator_alone() -> None:
    assert same(drawn(9, PAPER, seed=3), drawn(9, PAPER, seed=3))
    assert not same(drawn(9, PAPER, seed=3), drawn(9, PAPER, seed=4))


# ------------------------------------------------------------------------------------------- what each family does


@pytest.mark.parametrize(("sign", "nearer"), [(1.0, True), (-1.0, False)])
@pytest.mark.parametrize("family", ["spots", "scratches"])
def test_convex_is_nearer_and_concave_is_farther(family: str, sign: float, nearer: bool) -> None:
    settings = only(family)
    rgb, depth, foreground = good_pairs(8, 64)
    harmed = synthesise(rgb, depth, foreground, drawn(8, settings, sign=sign, magnitude=0.1), settings)
    change = harmed.depth - depth
    assert (change.flatten(1).abs().amax(dim=1) > 0.004).all()
    assert (change <= 1e-6).all() if nearer else (change >= -1e-6).all()


def test_blobs_are_convex_and_concave() -> None:
    settings = only("blobs", perlin_octaves=4)
    values = ternary_mask(Site(whole_frames(40, 64)[2], drawn(40, settings, threshold=0.3))).unique(return_counts=True)
    assert values[0].tolist() == [-1, 0, 1]
    assert 0.5 < values[1][0] / values[1][2] < 2


@given(st.integers(0, 2**31), st.sampled_from(["spots", "scratches"]))
@examples(max_examples=25, deadline=None)
def test_single_shapes_lie_around_a_pixel_of_the_part(seed: int, family: str) -> None:
    side, settings = 64, only(family)
    foreground = good_pairs(4, side)[2]
    recipe = drawn(4, settings, seed)
    for i, (u, v) in enumerate(zip(*centres(foreground, recipe), strict=True)):
        column, row = round(float(u + 0.5) * side - 0.5), round(float(v + 0.5) * side - 0.5)
        assert foreground[i, 0, row, column]
        region = ternary_mask(Site(foreground[i : i + 1], replace(recipe[i], sign=torch.ones(1))))[0, 0]
        if family == "spots":
            assert region[row, column] == 1


def test_places_reach_every_pixel_of_the_part_and_no_other() -> None:
    foreground = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    foreground[0, 0, 2, 1] = foreground[0, 0, 5, 6:8] = True
    chosen = []
    for centre in (0.0, 0.3, 0.34, 0.6, 0.67, 0.999):
        u, v = centres(foreground, drawn(1, PAPER, centre=centre))
        chosen.append((float(v + 0.5) * 8 - 0.5, float(u + 0.5) * 8 - 0.5))
    assert chosen == [(2, 1), (2, 1), (5, 6), (5, 6), (5, 7), (5, 7)]


def test_a_spot_is_a_disc_with_an_uneven_rim() -> None:
    # Its rim lies where distance / radius = 1 - noise / 2, so between half and one and a half radii.
    side, radius = 128, 0.1
    foreground = whole_frames(20, side)[2]
    recipe = drawn(20, only("spots"), radius=radius, aspect=1.0, sign=1.0)
    regions = ternary_mask(Site(foreground, recipe))[:, 0].bool()
    axis = (torch.arange(side) + 0.5) / side - 0.5
    for region, u, v in zip(regions, *centres(foreground, recipe), strict=True):
        distance = torch.hypot(axis[None, :] - u, axis[:, None] - v)
        assert region[distance < 0.5 * radius].all()
        assert not region[distance > 1.5 * radius].any()


def test_aspect_stretches_spots_along_the_drawn_angle() -> None:
    side = 128
    foreground = whole_frames(12, side)[2]
    middle = (side // 2 * side + side // 2 + 0.5) / side**2
    for angle, wider, narrower in ((0.0, 0, 1), (math.pi / 2, 1, 0)):
        recipe = drawn(12, only("spots"), radius=0.1, aspect=3.0, angle=angle, sign=1.0, centre=middle)
        regions = ternary_mask(Site(foreground, recipe))[:, 0].bool()
        extent = [regions.any(dim=1 + axis).sum(dim=1) for axis in (0, 1)]  # along columns, along rows
        assert (extent[wider] > 1.5 * extent[narrower]).all()


def test_scratches_are_long_and_thin() -> None:
    side = 128
    foreground = whole_frames(20, side)[2]
    recipe = drawn(20, only("scratches"), radius=0.1, sign=1.0)
    regions = ternary_mask(Site(foreground, recipe))[:, 0].numpy() > 0
    for i, region in enumerate(regions):
        assert region.any()
        # A pixel deep inside would be farther from the rim than the widest line is wide.
        assert ndimage.distance_transform_edt(region).max() <= 5
        lengths = np.ptp(np.argwhere(region), axis=0) + 1
        assert np.hypot(*lengths) <= 4 * 0.1 * side + 20
        assert region.sum() < 0.1 * side**2, i
    assert np.median([np.hypot(*np.ptp(np.argwhere(region), axis=0)) for region in regions]) > 2 * 0.1 * side


def test_shifted_regions_show_the_part_beside_them_in_both_modalities() -> None:
    side, right, down = 64, 5, -3
    settings = only("shifts")
    rgb, depth, foreground = good_pairs(6, side)
    recipe = drawn(6, settings, turned=False)
    recipe = replace(recipe, offset=torch.tensor([[right / side, down / side]]).expand(6, 2))
    harmed = synthesise(rgb, depth, foreground, recipe, settings)
    where = harmed.mask[:, 0] > 0
    assert where.flatten(1).any(dim=1).all()
    for moved, image in ((harmed.rgb, rgb), (harmed.depth, depth)):
        want = image.roll((-down, -right), dims=(2, 3))
        seen = where[:, None].expand_as(image)
        torch.testing.assert_close(moved[seen], want[seen], atol=1e-4, rtol=0)


def test_what_a_shift_brings_in_from_beyond_the_frame_is_background() -> None:
    settings = only("shifts")
    rgb, depth, foreground = whole_frames(4, 32)
    recipe = drawn(4, settings, turned=False, offset=2.0)
    harmed = synthesise(rgb, depth, foreground, recipe, settings)
    assert harmed.mask.any()
    assert (harmed.rgb[(harmed.mask > 0).expand_as(rgb)] == 0).all() and (harmed.depth[harmed.mask > 0] == 1).all()


@pytest.mark.parametrize("family", ["shifts", "warps"])
def test_what_is_moved_is_the_part_or_background_and_no_mixture(family: str) -> None:
    settings = only(family, edge_high=0.0, visible=0.0)
    rgb, _, foreground = good_pairs(12, 48)
    recipe = drawn(12, settings)
    plain = torch.where(foreground, 0.25, 1.0)
    beyond = 0.9 * ~foreground  # colour outside the part, which must not come in either
    harmed = synthesise((0.5 * foreground + beyond).expand_as(rgb), plain, foreground, recipe, settings)
    moved = (harmed.mask > 0) & foreground
    came_in = moved & (harmed.depth == 1)
    assert came_in.any()
    torch.testing.assert_close(harmed.depth[moved & ~came_in], plain[moved & ~came_in])
    want = torch.where(came_in, 0.0, 0.5).expand_as(rgb)
    torch.testing.assert_close(harmed.rgb[moved.expand_as(rgb)], want[moved.expand_as(rgb)])


@pytest.mark.parametrize("family", ["shifts", "warps"])
def test_a_soft_edge_mixes_no_background_into_what_is_moved(family: str) -> None:
    settings = only(family, edge_high=1.5, visible=0.0)
    rgb, _, foreground = good_pairs(40, 64)
    plain = torch.where(foreground, 0.5, 1.0)
    harmed = synthesise((0.6 * foreground).expand_as(rgb), plain, foreground, drawn(40, settings), settings)
    there = foreground & (harmed.depth < 1)
    assert (foreground & ~there).any()
    torch.testing.assert_close(harmed.depth[there], plain[there])
    torch.testing.assert_close(harmed.rgb, (0.6 * there).expand_as(rgb))


@pytest.mark.parametrize("shade", [0.0, 0.3])
def test_a_soft_edge_leaves_no_depth_between_the_part_and_the_background_behind_a_cut(shade: float) -> None:
    settings = only("cuts", edge_high=1.5, visible=0.0)
    rgb, _, foreground = good_pairs(20, 64)
    plain = torch.where(foreground, 0.9, 1.0)
    harmed = synthesise(rgb, plain, foreground, drawn(20, settings, shade=shade, magnitude=0.1), settings)
    gone = foreground & (harmed.mask > 0)
    assert gone.any()
    torch.testing.assert_close(harmed.depth, torch.where(gone, 1.0, plain))
    torch.testing.assert_close(harmed.rgb, torch.where(gone, (1 - shade) * (shade > 0) * rgb, rgb))


def test_cuts_show_the_background_or_deeper_inside() -> None:
    settings = only("cuts")
    rgb, depth, foreground = good_pairs(6, 64)
    depth[:, :, :, :32] = depth[:, :, :, :32].clamp(min=0.9)
    through = synthesise(rgb, depth, foreground, drawn(6, settings, shade=0.0), settings)
    where = through.mask > 0
    assert where.flatten(1).any(dim=1).all()
    assert (through.rgb[where.expand_as(rgb)] == 0).all() and (through.depth[where] == 1).all()
    inside = synthesise(rgb, depth, foreground, drawn(6, settings, shade=0.3, magnitude=0.1), settings)
    assert torch.equal(inside.mask, through.mask)
    torch.testing.assert_close(inside.depth[where], (depth[where] + 0.2).clamp(max=1))
    torch.testing.assert_close(inside.rgb[where.expand_as(rgb)], 0.7 * rgb[where.expand_as(rgb)])


def test_shifts_and_cuts_are_labelled_as_a_whole() -> None:
    for family in ("shifts", "cuts"):
        settings = only(family)
        rgb, depth, foreground = good_pairs(6, 48)
        recipe = drawn(6, settings)
        harmed = synthesise(rgb, depth, foreground, recipe, settings)
        assert torch.equal(harmed.mask, (ternary_mask(Site(foreground, recipe)) != 0).float())


# ------------------------------------------------------------------------------------------- colours


def test_without_opacity_a_defect_is_its_texture() -> None:
    settings = paper(opacity_rest=0.0, drop=0.0, magnitude_low=0.1)
    rgb, depth, foreground = good_pairs(10, 48)
    textures = pictures(5, 48)
    recipe = drawn(10, settings, textures=range(5))
    harmed = synthesise(rgb, depth, foreground, recipe, settings, textures)
    where = (harmed.mask > 0).expand_as(rgb)
    torch.testing.assert_close(harmed.rgb[where], textures[recipe.texture][where])
    assert len(recipe.texture.unique()) > 2


def test_generated_textures_lie_between_their_two_colours() -> None:
    rgb, _, foreground = good_pairs(30, 32)
    foreign = generated_texture(rgb, Site(foreground, drawn(30, PAPER, own_colour=0.0, own_hue=0.0)))
    colour = drawn(30, PAPER).colour[..., None, None]
    low, high = colour.amin(dim=1), colour.amax(dim=1)
    assert (foreign >= low - 1e-6).all() and (foreign <= high + 1e-6).all()
    crossings = ((foreign > (low + high) / 2).float().diff(dim=3) != 0).float().mean(dim=(1, 2, 3))
    assert crossings.max() > 4 * crossings.min() > 0  # from coarse to grainy
    recipe = drawn(30, PAPER, own_colour=1.0)
    own = generated_texture(rgb, Site(foreground, recipe))
    for i, (u, v) in enumerate(zip(*centres(foreground, recipe), strict=True)):
        at_centre = rgb[i, :, int((v + 0.5) * 32), int((u + 0.5) * 32)]
        torch.testing.assert_close(own[i], at_centre[:, None, None].expand(3, 32, 32))


def test_textures_of_the_parts_own_hue_differ_in_brightness_alone() -> None:
    own = torch.tensor([[0.6, 0.3, 0.15], [0.02, 0.0, 0.0]])
    colours = torch.rand(2, 2, 3, generator=torch.Generator().manual_seed(0)) * 0.5
    made = hued(colours, own)
    torch.testing.assert_close(made[0], colours[0, :, :1] * own[0] / own[0].mean())
    torch.testing.assert_close(made[1], colours[1, :, :1].expand(2, 3))  # next to black has no hue

    rgb = torch.tensor([0.6, 0.3, 0.15])[:, None, None].expand(8, 3, 32, 32)
    recipe = drawn(8, PAPER, own_hue=1.0)
    recipe = replace(recipe, colour=recipe.colour / 2, own_hue=torch.ones(8))  # so that none is as bright as white
    texture = generated_texture(rgb, Site(torch.ones(8, 1, 32, 32, dtype=torch.bool), recipe))
    torch.testing.assert_close(texture[:, 1], texture[:, 0] / 2)
    assert texture[:, 0].std() > 0.05


@pytest.mark.parametrize("sigma", [0.0, 0.5, 1.5])
def test_edges_in_rgb_are_as_soft_as_a_gaussian_makes_them(sigma: float) -> None:
    mask = torch.zeros(2, 1, 40, 40)
    mask[0, 0, 12:25, 10:30] = 1
    mask[1, 0, 20, 20] = 1
    soft = soft_edged(mask, torch.full((2,), sigma))
    for one, seen in zip(mask[:, 0], soft[:, 0], strict=True):
        want = ndimage.gaussian_filter(one.double().numpy(), max(sigma, 0.1), mode="constant", radius=EDGE_REACH)
        np.testing.assert_allclose(seen, want, atol=1e-5)


def test_soft_edges_stay_on_the_part_and_leave_depth_and_labels_as_they_are() -> None:
    rgb, depth, foreground = good_pairs(12, 64)
    hard = synthesise(rgb, depth, foreground, drawn(12, only("spots"), edge=1.5), only("spots"))
    soft = synthesise(rgb, depth, foreground, drawn(12, only("spots"), edge=1.5), only("spots", edge_high=2.0))
    assert torch.equal(soft.mask, hard.mask)
    torch.testing.assert_close(soft.depth, hard.depth, atol=1e-6, rtol=0)  # a larger box may round otherwise
    assert not torch.equal(soft.rgb, hard.rgb)
    assert (soft.rgb[~foreground.expand_as(rgb)] == 0).all()


def test_shading_keeps_the_hue_and_follows_the_slope() -> None:
    side = 32
    rgb = torch.full((1, 3, side, side), 0.4) * torch.tensor([1.0, 0.5, 0.25])[:, None, None]
    ramp = (torch.arange(side) / side * 0.5).expand(1, 1, side, side)
    recipe = drawn(1, PAPER, shade=1.0)
    lit = shaded(rgb, ramp, replace(recipe, lamp=torch.tensor([0.0])))
    dark = shaded(rgb, ramp, replace(recipe, lamp=torch.tensor([math.pi])))
    across = shaded(rgb, ramp, replace(recipe, lamp=torch.tensor([math.pi / 2])))
    inner = (..., slice(1, -1))
    assert (lit[inner] > rgb[inner] * 1.2).all() and (dark[inner] < rgb[inner] * 0.8).all()
    torch.testing.assert_close(across, rgb)
    for image in (lit, dark):
        ratio = image / rgb
        torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))


def test_shaded_defects_take_no_texture() -> None:
    settings = only("spots", shaded=1.0)
    rgb, depth, foreground = good_pairs(6, 48)
    recipe = drawn(6, settings, seed=1)
    assert (recipe.shade > 0).all()
    harmed = [synthesise(rgb, depth, foreground, recipe, settings, one) for one in (None, pictures(3, 48))]
    assert same(*harmed)
    ratio = (harmed[0].rgb / rgb)[(foreground & (harmed[0].rgb < 1).all(dim=1, keepdim=True)).expand_as(rgb)]
    assert ratio.min() > 0.3 and ratio.max() < 1.7 and (ratio != 1).any()


def nearby(change: Tensor) -> Tensor:
    return torch.from_numpy(np.stack([ndimage.maximum_filter(one, 5, mode="constant") for one in change.numpy()]))


@pytest.mark.parametrize("least", [0.02, 0.2])
def test_labels_cover_what_a_harmed_modality_shows_and_no_more(least: float) -> None:
    settings = SynthesisSettings(visible=least)
    all_of_it = settings.model_copy(update={"visible": 0.0})
    rgb, depth, foreground = good_pairs(60, 48)
    recipe = drawn(60, settings)
    harmed = synthesise(rgb, depth, foreground, recipe, settings)
    whole = synthesise(rgb, depth, foreground, recipe, all_of_it)
    assert torch.equal(harmed.rgb, whole.rgb) and torch.equal(harmed.depth, whole.depth)
    colour, height = (harmed.rgb - rgb).abs().amax(dim=1), 4 * (harmed.depth - depth).abs()[:, 0]
    seen = nearby(torch.maximum(colour, height)) > least
    assert torch.equal(harmed.mask[:, 0] > 0, (whole.mask[:, 0] > 0) & seen)
    assert (harmed.mask < whole.mask).any() and harmed.mask.any()


@pytest.mark.parametrize("skew_filter", [True, False])
def test_with_peak_the_drawn_magnitude_is_the_largest_change(skew_filter: bool) -> None:
    settings = only("spots", peak=True, skew_filter=skew_filter, visible=0.0)
    rgb, depth, foreground = good_pairs(20, 64)
    recipe = drawn(20, settings)
    change = (synthesise(rgb, depth, foreground, recipe, settings).depth - depth).abs().amax(dim=(1, 2, 3))
    torch.testing.assert_close(change[change > 0], recipe.magnitude[change > 0], atol=1e-5, rtol=0)
    assert (change > 0).float().mean() > 0.9


def test_warps_move_both_modalities_alike_and_most_at_their_centre() -> None:
    settings = only("warps", visible=0.0)
    side, count = 64, 30
    grey = good_pairs(count, side)[1]
    foreground = torch.ones(count, 1, side, side, dtype=torch.bool)
    recipe = drawn(count, settings)
    harmed = synthesise(grey.expand(-1, 3, -1, -1).contiguous(), grey, foreground, recipe, settings)
    inside = (harmed.mask > 0) & (harmed.depth < 1)  # what comes in from beyond the frame is black background
    torch.testing.assert_close(harmed.rgb[:, :1][inside], harmed.depth[inside], atol=1e-5, rtol=0)
    reach = torch.stack(bends(Site(foreground, recipe))).norm(dim=0)  # (B, S, S)
    assert reach.amax(dim=(1, 2)).mean() > 1 / side
    u, v = centres(foreground, recipe)
    grid_u, grid_v = pixel_centres(side, torch.device("cpu"))
    away = torch.sqrt((grid_u - u[:, None, None]) ** 2 + (grid_v - v[:, None, None]) ** 2) / recipe.radius[:, None, None]
    for one, distance in zip(reach, away, strict=True):
        assert (one[distance > 4] < 1e-3).all() and one.max() > 0


def test_every_other_cut_has_its_centre_along_the_outline() -> None:
    settings = only("cuts")
    _, _, foreground = good_pairs(200, 64)
    recipe = drawn(200, settings)
    edge = rim(foreground)
    assert (edge <= foreground).all() and 0 < edge.sum() < foreground.sum()
    u, v = (((axis + 0.5) * 64).long() for axis in centres(foreground, recipe))
    on_edge = edge[torch.arange(200), 0, v, u]
    assert on_edge[recipe.at_rim].all() and not on_edge.all()


def test_cuts_lie_anywhere_on_a_part_that_fills_the_image() -> None:
    recipe = drawn(200, only("cuts"))
    u, v = centres(torch.ones(200, 1, 64, 64, dtype=torch.bool), recipe)
    assert len(set(zip(u.tolist(), v.tolist(), strict=True))) > 150


def test_own_colour_limits_how_close_a_texture_comes_to_the_part() -> None:
    assert drawn(500, only("spots", own_colour=0.3)).own_colour.max() <= 0.3


def test_spared_pairs_keep_both_modalities() -> None:
    settings = only("spots", drop=0.0)
    rgb, depth, foreground = good_pairs(4, 32)
    recipe = drawn(4, settings).spare(torch.tensor([True, False, True, False]))
    harmed = synthesise(rgb, depth, foreground, recipe, settings)
    for i in (0, 2):
        assert torch.equal(harmed.rgb[i], rgb[i]) and torch.equal(harmed.depth[i], depth[i]) and not harmed.mask[i].any()
    assert harmed.mask[1].any() and harmed.mask[3].any()


# ------------------------------------------------------------------------------------------- what holds for every recipe


@st.composite
def some_settings(draw: st.DrawFn) -> SynthesisSettings:
    weights = draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=6, max_size=6).filter(any))
    return SynthesisSettings(
        **dict(zip(FAMILIES, weights, strict=True)),
        skew_filter=draw(st.booleans()),
        peak=draw(st.booleans()),
        drop=draw(st.sampled_from([0.0, 0.4, 1.0])),
        shaded=draw(st.sampled_from([0.0, 0.5, 1.0])),
        visible=draw(st.sampled_from([0.0, 0.02, 0.1])),
        magnitude_low=0.01,
        magnitude_high=draw(st.sampled_from([0.02, 0.15, 1.0])),
        mask_threshold=draw(st.sampled_from([0.001, 0.004, 0.05])),
        opacity_rest=draw(st.sampled_from([0.0, 0.8, 1.0])),
        own_hue=draw(st.sampled_from([0.0, 0.5, 1.0])),
        edge_high=draw(st.sampled_from([0.0, 1.5])),
    )


def flat(images: Tensor) -> Tensor:
    return images.flatten(1)


@given(some_settings(), st.integers(0, 2**31), st.booleans())
@examples(max_examples=40, deadline=None)
def test_what_every_defect_keeps_to(settings: SynthesisSettings, seed: int, with_pictures: bool) -> None:
    count, side = 10, 32
    rgb, depth, foreground = good_pairs(count, side, seed)
    before = rgb.clone(), depth.clone(), foreground.clone()
    textures = pictures(3, side) if with_pictures else None
    recipe = drawn(count, settings, seed, textures=range(3) if with_pictures else None)
    harmed = synthesise(rgb, depth, foreground, recipe, settings, textures)
    assert all(torch.equal(one, other) for one, other in zip(before, (rgb, depth, foreground), strict=True))

    # Values.
    assert harmed.rgb.dtype == harmed.depth.dtype == harmed.mask.dtype == torch.float32
    assert harmed.rgb.shape == rgb.shape and harmed.depth.shape == harmed.mask.shape == depth.shape
    assert harmed.rgb.min() >= -1e-6 and harmed.rgb.max() <= 1 + 1e-6
    assert set(harmed.mask.unique().tolist()) <= {0.0, 1.0}
    change = (harmed.depth - depth).abs()
    reliefs = recipe.family < SHIFT
    assert (flat(change).amax(dim=1) <= recipe.magnitude + 1e-5)[reliefs].all()
    others = harmed.depth[~reliefs]
    assert (others <= 1 + 1e-6).all() and (others >= -1e-6).all()

    # Only the part is harmed.
    outside = ~foreground
    assert torch.equal(harmed.rgb[outside.expand_as(rgb)], rgb[outside.expand_as(rgb)])
    assert torch.equal(harmed.depth[outside], depth[outside])
    assert (harmed.mask[outside] == 0).all()

    # Dropout.
    assert torch.equal(harmed.rgb[recipe.keep_rgb], rgb[recipe.keep_rgb])
    assert torch.equal(harmed.depth[recipe.keep_depth], depth[recipe.keep_depth])
    assert (harmed.mask[recipe.keep_rgb & recipe.keep_depth] == 0).all()

    # What is not labelled did not change beyond the thresholds, what is labelled did.
    colour = (harmed.rgb - rgb).abs().amax(dim=1, keepdim=True)
    unlabelled = harmed.mask == 0
    reach = EDGE_REACH if settings.edge_high else 0
    far = torch.nn.functional.max_pool2d(harmed.mask, 2 * reach + 1, stride=1, padding=reach) == 0
    assert (colour[far] <= settings.visible).all()
    assert (change[far] < max(settings.mask_threshold, settings.visible / 4) + 1e-6).all()
    if settings.visible:
        seen = nearby(torch.maximum(colour, 4 * change)[:, 0])[:, None]
        assert (seen[~unlabelled] > settings.visible).all()
    raised = (reliefs & ~recipe.keep_depth)[:, None, None, None] & ~unlabelled
    assert (change[raised] >= settings.mask_threshold - 1e-6).all()


@given(some_settings(), st.integers(0, 2**31))
@examples(max_examples=25, deadline=None)
def test_a_recipe_makes_the_same_pixels_alone_in_any_batch_and_from_json(settings: SynthesisSettings, seed: int) -> None:
    count, side = 7, 32
    rgb, depth, foreground = good_pairs(count, side, seed)
    recipe = drawn(count, settings, seed)
    harmed = synthesise(rgb, depth, foreground, recipe, settings)

    from_json = Recipe.from_dicts(json.loads(json.dumps(recipe.to_dicts())))
    assert same(from_json, recipe)
    assert same(synthesise(rgb, depth, foreground, from_json, settings), harmed)

    order = torch.tensor([4, 0, 6, 6, 2])
    other = synthesise(rgb[order], depth[order], foreground[order], recipe[order], settings)
    assert same(other, Harmed(harmed.rgb[order], harmed.depth[order], harmed.mask[order]))

    for i, one in enumerate(recipe):
        here = slice(i, i + 1)
        alone = synthesise(rgb[here], depth[here], foreground[here], one, settings)
        assert same(alone, Harmed(harmed.rgb[here], harmed.depth[here], harmed.mask[here]))


@given(some_settings(), st.integers(0, 2**31), st.booleans(), st.integers(1, 3))
@examples(max_examples=60, deadline=None)
def test_cpus_and_gpus_make_the_same(settings: SynthesisSettings, seed: int, with_pictures: bool, rounds: int) -> None:
    count, side = 6, 48
    rgb, depth, foreground = good_pairs(count, side, seed)
    textures = pictures(3, side) if with_pictures else None
    recipes = [drawn(count, settings, seed + i, textures=textures) for i in range(rounds)]
    harmed = apply_recipes(rgb, depth, foreground, recipes, settings, textures)
    batch = apply_in_batch(rgb, depth, foreground, recipes, settings, textures)
    # Rounding decides on which side of a threshold a pixel lies, and with soft edges the colour of those around it.
    flipped = 1 - agree(harmed, batch).float().mean(dim=(1, 2, 3))
    assert flipped.median() < 1e-3
    assert flipped.max() < 3 * 81 / side**2


def agree(harmed: Harmed, batch: Harmed) -> Tensor:
    """(B, 1, S, S) bool: where both made the same but for rounding."""
    alike = (harmed.mask == batch.mask) & ((harmed.depth - batch.depth).abs() < 1e-4)
    return alike & ((harmed.rgb - batch.rgb).abs() < 1e-3).all(dim=1, keepdim=True)


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 8])
def test_cpus_and_gpus_make_the_same_of_tiny_images(side: int) -> None:
    settings = SynthesisSettings(edge_high=4.0, drop=0.0, visible=0.0, spot_low=0.1, spot_high=0.5)
    rgb, depth, foreground = whole_frames(30, side)
    foreground = foreground & (torch.rand(30, 1, side, side, generator=torch.Generator().manual_seed(0)) < 0.9)
    recipe = drawn(30, settings, edge=4.0, sign=1.0)  # in the middle of odd images noise is zero and has no sign
    harmed = apply_recipes(rgb, depth, foreground, [recipe], settings)
    assert harmed.mask.any()
    assert agree(harmed, apply_in_batch(rgb, depth, foreground, [recipe], settings)).float().mean() > 0.99


@pytest.mark.parametrize(
    ("family", "changes", "fixed"),
    [
        ("spots", {"skew_filter": False, "mask_threshold": 0.03}, {"magnitude": 0.03}),  # 0.03 is less in 32 bits
        ("spots", {"sigma_low": 0.07, "sigma_high": 0.07}, {"sigma": 0.07, "radius": 0.1}),  # 21 pixels are three sigma
        ("spots", {}, {"aspect": 0.1, "radius": 0.1}),
        ("scratches", {}, {"width": 0.3, "radius": 0.1}),
        ("blobs", {"perlin_octaves": 7, "skew_filter": False}, {"periods": 128.0}),
    ],
)
def test_cpus_and_gpus_make_the_same_of_recipes_that_are_rarely_drawn(
    family: str, changes: dict[str, Any], fixed: dict[str, float]
) -> None:
    settings = only(family, shaded=0.0, **changes)
    rgb, depth, foreground = whole_frames(8, 100)
    recipe = drawn(8, settings, **fixed)
    harmed = apply_recipes(rgb, depth, foreground, [recipe], settings)
    assert harmed.mask.any()
    alike = agree(harmed, apply_in_batch(rgb, depth, foreground, [recipe], settings))
    assert alike.float().mean(dim=(1, 2, 3)).min() > 0.998


def test_the_finest_noise_needs_no_more_memory_than_its_lattice() -> None:
    settings = only("warps")
    rgb, depth, foreground = good_pairs(4, 64)
    harmed = apply_recipes(rgb, depth, foreground, [drawn(4, settings, radius=1e-6)], settings)
    assert ((harmed.depth != depth).sum(dim=(1, 2, 3)) <= 1).all()


def test_without_a_recipe_or_a_pair_nothing_is_harmed() -> None:
    rgb, depth, foreground = good_pairs(3, 32)
    textures = pictures(3, 32)
    harmed = apply_recipes(rgb, depth, foreground, [], PAPER, textures)
    assert torch.equal(harmed.rgb, rgb) and torch.equal(harmed.depth, depth) and not harmed.mask.any()
    none = apply_recipes(rgb[:0], depth[:0], foreground[:0], [drawn(3, PAPER)[:0]], PAPER, textures)
    assert none.rgb.shape == (0, 3, 32, 32) and none.mask.shape == (0, 1, 32, 32)


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_pictures_may_be_bytes_on_cpus_and_gpus(kind: torch.dtype) -> None:
    settings = only("spots", shaded=0.0, opacity_rest=0.0)
    rgb, depth, foreground = good_pairs(6, 48)
    textures = (pictures(3, 48) * 255).round()
    textures = textures.to(kind) if kind == torch.uint8 else textures / 255
    recipe = drawn(6, settings, textures=textures)
    for harmed in (f(rgb, depth, foreground, [recipe], settings, textures) for f in (apply_recipes, apply_in_batch)):
        painted = (harmed.mask > 0).expand_as(rgb)
        expected = textures[recipe.texture].float() / (255 if kind == torch.uint8 else 1)
        torch.testing.assert_close(harmed.rgb[painted], expected[painted])


def test_without_numba_a_cpu_takes_the_equations_for_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthesis, "takes_compiled", lambda _: False)
    monkeypatch.setitem(sys.modules, "das3d.compiled_synthesis", None)
    rgb, depth, foreground = good_pairs(4, 32)
    recipe = drawn(4, PAPER)
    made = synthesise(rgb, depth, foreground, recipe, PAPER)
    assert same(made, apply_in_batch(rgb, depth, foreground, [recipe], PAPER))


def test_what_does_not_fit_together_is_refused() -> None:
    rgb, depth, foreground = good_pairs(3, 32)
    textures = pictures(3, 32)
    recipe = drawn(3, PAPER, textures=textures)
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("depth of shape", {"depth": depth[:, 0]}),
        ("rgb of shape", {"rgb": rgb[:, :1]}),
        ("foreground of shape", {"foreground": foreground[:2]}),
        ("torch.float32; expected torch.bool", {"foreground": foreground.float()}),
        ("a recipe of 2 pairs for 3 pairs", {"recipe": recipe[:2]}),
        ("textures of shape", {"textures": pictures(3, 16)}),
        ("beyond the 1 there are", {"textures": textures[:1], "recipe": replace(recipe, texture=torch.arange(3))}),
        ("beyond the 3 there are", {"recipe": replace(recipe, texture=torch.arange(-1, 2))}),
    ]
    fitting = {"rgb": rgb, "depth": depth, "foreground": foreground, "recipe": recipe, "textures": textures}
    synthesise(**fitting, settings=PAPER)
    for said, changes in wrong:
        with pytest.raises(ValueError, match=said):
            synthesise(**{**fitting, **changes}, settings=PAPER)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("radius", 0.0),
        ("radius", math.nan),
        ("periods", [1.0, -2.0]),
        ("periods", [1.0]),
        ("sigma", math.inf),
        ("seed", -1),
    ],
)
def test_entries_that_nothing_can_be_made_of_are_refused(name: str, value: Any) -> None:
    one = {**drawn(1, PAPER).to_dicts()[0], name: value}
    with pytest.raises(ValueError, match=name):
        Recipe.from_dicts([one])


def test_a_scan_without_a_part_stays_as_it_is() -> None:
    settings = SynthesisSettings(drop=0.0)
    rgb, depth, _ = good_pairs(12, 32)
    harmed = synthesise(rgb, depth, torch.zeros(12, 1, 32, 32, dtype=torch.bool), drawn(12, settings), settings)
    assert torch.equal(harmed.rgb, rgb) and torch.equal(harmed.depth, depth) and not harmed.mask.any()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_harms_both_modalities(family: str) -> None:
    settings = only(family, shaded=0.0)
    rgb, depth, foreground = good_pairs(30, 64)
    harmed = synthesise(rgb, depth, foreground, drawn(30, settings), settings)
    labelled = flat(harmed.mask).any(dim=1)
    assert labelled.float().mean() > 0.8  # few blobs have no noise beyond their threshold on the part
    assert (flat(harmed.rgb != rgb).any(dim=1) & flat(harmed.depth != depth).any(dim=1))[labelled].all()


@pytest.mark.parametrize("shown", [{}, {"keep_rgb": True}, {"keep_depth": True}])
def test_what_was_cut_away_is_no_part_for_the_defects_that_follow(shown: dict[str, bool]) -> None:
    settings = make_settings("fast", changes=["synthesis.drop=0.0", "synthesis.edge_high=0.0"]).synthesis
    rgb, depth, foreground = good_pairs(60, 64)
    cut = drawn(60, settings, family=CUT, shade=0.0, keep_rgb=False, keep_depth=False)
    cut = replace(cut, **{name: torch.ones_like(getattr(cut, name)) for name in shown})
    first = synthesise(rgb, depth, foreground, cut, settings)
    in_depth, in_rgb = first.depth >= 1, (first.rgb == 0).all(dim=1, keepdim=True)
    gone = foreground & (in_depth | in_rgb)
    assert gone.flatten(1).any(dim=1).float().mean() > 0.9
    others = draw_rounds(60, settings, torch.Generator().manual_seed(3))
    harmed = apply_recipes(rgb, depth, foreground, [cut, *others], settings)
    assert torch.equal(harmed.depth[gone], first.depth[gone])
    colours = gone.expand_as(rgb)
    assert torch.equal(harmed.rgb[colours], first.rgb[colours])
    assert (harmed.mask >= first.mask).all()


# ------------------------------------------------------------------------------------------- recipes as containers


def test_a_recipe_is_a_sequence_of_recipes() -> None:
    recipe = drawn(5, PAPER)
    assert len(recipe) == 5 and len(recipe[2]) == 1 and len(recipe[1:4]) == 3
    assert same(recipe[-1], recipe[4:5])
    assert len(list(recipe)) == 5  # type: ignore[call-overload]
    with pytest.raises(IndexError):
        recipe[5]
    assert same(recipe.to("cpu"), recipe)


def test_one_dict_a_pair_holds_plain_numbers_under_the_names_of_the_fields() -> None:
    dicts = drawn(3, PAPER).to_dicts()
    assert len(dicts) == 3
    assert set(dicts[0]) == {field.name for field in fields(Recipe)}
    assert isinstance(dicts[0]["seed"], int) and isinstance(dicts[0]["keep_rgb"], bool)
    assert np.shape(dicts[0]["colour"]) == (2, 3)
