"""Other light on good parts: RGB alone changes, within its limits, and glare falls on what faces one way."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor

from das3d.light import BRIGHTER, LAMPS, Light, draw_light, facing, lit, slopes
from das3d.settings import TrainingSettings

SIDE = 64


def plain(count: int, **changes: float) -> Light:
    values = {"gain": 1.0, "exponent": 1.0, "glare": 0.0, "gloss": 1.0, "facet": 0.5, "breadth": 0.3, **changes}
    numbers = {name: torch.full((count,), float(value)) for name, value in values.items()}
    return Light(**numbers, field=torch.ones(count, LAMPS, LAMPS))


def line() -> Tensor:
    return (torch.arange(SIDE) + 0.5) / SIDE - 0.5


def disc(radius: float = 0.4) -> Tensor:
    return ((line() ** 2 + line()[:, None] ** 2).sqrt() < radius)[None, None]


def tilted(right: float, down: float) -> Tensor:
    return (0.5 + right * line() + down * line()[:, None])[None, None]


def roof() -> tuple[Tensor, Tensor, Tensor]:
    """Grey RGB, depth and foreground of two facets that meet in a vertical ridge, as steep to the left as to the right."""
    foreground = disc()
    depth = torch.where(foreground, (0.2 + line().abs())[None, None, None].expand(1, 1, SIDE, SIDE), 1.0)
    return 0.4 * foreground.float().expand(1, 3, SIDE, SIDE), depth, foreground


# ------------------------------------------------------------------------------------------- exposure and place


def test_plain_light_changes_nothing() -> None:
    rgb, depth, foreground = roof()
    torch.testing.assert_close(lit(rgb, depth, foreground, plain(1)), rgb)


def test_gain_and_exponent_change_rgb_within_bounds() -> None:
    rgb, depth, foreground = roof()
    for gain in (0.5, 3.0):
        torch.testing.assert_close(lit(rgb, depth, foreground, plain(1, gain=gain)), (rgb * gain).clamp(max=1))
    torch.testing.assert_close(lit(rgb, depth, foreground, plain(1, exponent=1.5)), rgb**1.5)


def test_uneven_light_is_smooth_from_place_to_place() -> None:
    rgb, depth, foreground = roof()
    field = 1 + 0.2 * torch.rand(1, LAMPS, LAMPS, generator=torch.Generator().manual_seed(0))
    gain = lit(rgb, depth, foreground, replace(plain(1), field=field)) / rgb
    on_part = gain[foreground.expand_as(gain)]
    assert 1 <= float(on_part.min()) < float(on_part.max()) <= 1.2
    step = gain.diff(dim=-1).abs()
    assert float(step[step.isfinite()].max()) < 0.2 / (SIDE / (LAMPS - 1)) + 1e-3  # a lamp's whole range over its reach


def test_drawn_light_keeps_to_its_settings() -> None:
    limits = TrainingSettings(brightness=0.2, contrast=0.3, lighting=0.25, glare=0.6)
    light = draw_light(4000, limits, torch.Generator().manual_seed(0))
    for values, centre, limit in (
        (light.gain, 1, 0.2), (light.exponent.log(), 0, 0.3), (light.field, 1, 0.25), (light.glare, 0, 0.6),
        (light.facet, 0.5, 0.5), (light.gloss, 0.5, 0.5), (light.breadth.log10(), -0.5, 0.5),
    ):  # fmt: skip
        spread = (values - centre).abs()
        assert 0.95 * limit < spread.max() <= limit + 1e-6
        assert float((values - centre).mean()) == pytest.approx(0, abs=limit / 15)
    dark = TrainingSettings(brightness=0, contrast=0, lighting=0, glare=0)
    light = draw_light(50, dark, torch.Generator().manual_seed(0))
    assert all(
        torch.equal(getattr(light, name), getattr(plain(50), name)) for name in ("gain", "exponent", "field", "glare")
    )


# ------------------------------------------------------------------------------------------- slopes


@given(right=st.floats(-3, 3), down=st.floats(-3, 3), seed=st.integers(0, 1000))
@examples(max_examples=30, deadline=None)
def test_slopes_of_a_plane_are_its_own_whatever_lies_around(right: float, down: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    foreground = disc() & (torch.rand(1, 1, SIDE, SIDE, generator=generator) > 0.1)  # with holes
    around = torch.rand(1, 1, SIDE, SIDE, generator=generator)
    found = slopes(torch.where(foreground, tilted(right, down), around), foreground)
    assert torch.equal(found[~foreground.expand_as(found)], torch.zeros(2 * int((~foreground).sum())))
    expected = torch.tensor([right, down])[None, :, None, None].expand_as(found)
    enough = F.avg_pool2d(foreground.float(), 3, stride=1, padding=1) > 0.6  # a row of pixels has no slope across it
    where = (foreground & enough).expand_as(found)
    torch.testing.assert_close(found[where], expected[where], atol=0.02, rtol=0.02)


def test_slopes_are_those_of_least_squares() -> None:
    generator = torch.Generator().manual_seed(0)
    depth, foreground = torch.rand(1, 1, SIDE, SIDE, generator=generator), disc()
    found = slopes(depth, foreground)[0]
    for row, column in ((32, 32), (20, 40), (10, 25)):
        window = slice(row - 1, row + 2), slice(column - 1, column + 2)  # one pixel each way at 64 pixels a side
        inside = foreground[0, 0][window].flatten()
        places = torch.stack(torch.meshgrid(line()[window[0]], line()[window[1]], indexing="ij"), dim=-1).flatten(0, 1)
        matrix = torch.cat([places, torch.ones(9, 1)], dim=1)[inside]
        down, right, _ = torch.linalg.lstsq(matrix, depth[0, 0][window].flatten()[inside, None]).solution[:, 0]
        assert found[:, row, column].tolist() == pytest.approx([float(right), float(down)], rel=0.01, abs=0.01)


# ------------------------------------------------------------------------------------------- glare


@pytest.mark.parametrize("glare", [0.8, -0.8])
@pytest.mark.parametrize("facet", [0.3, 0.7])  # in the middle row of the part: left, right
def test_glare_lights_or_darkens_one_facet_and_no_other(glare: float, facet: float) -> None:
    rgb, depth, foreground = roof()
    light = plain(1, glare=glare, facet=0, breadth=0.1)
    left = (line() < -0.05)[None, None, None] & foreground
    right = (line() > 0.05)[None, None, None] & foreground
    rank = facet * foreground.sum()  # of a pixel in the middle rows; the nearest pixel well inside the facet is taken
    places = foreground.flatten().nonzero()[:, 0]
    wanted = (left if facet < 0.5 else right).flatten()[places].nonzero()[:, 0]
    chosen = wanted[(wanted - rank).abs().argmin()]
    light = replace(light, facet=(chosen + 0.5)[None] / foreground.sum())
    lights, spares = (left, right) if facet < 0.5 else (right, left)

    after = lit(rgb, depth, foreground, light)
    expected = 0.4 + 0.8 * (1 - 0.4) if glare > 0 else 0.4 * (1 - 0.8)
    torch.testing.assert_close(after[lights.expand_as(rgb)].mean(), torch.tensor(expected), atol=0.02, rtol=0)
    torch.testing.assert_close(after[spares.expand_as(rgb)], rgb[spares.expand_as(rgb)], atol=1e-3, rtol=0)
    assert (after[~foreground.expand_as(rgb)] == 0).all() and after.min() >= 0 and after.max() <= 1


@pytest.mark.parametrize("grey", [0.1, 0.3, 0.8])
def test_matt_surfaces_keep_their_pattern_in_glare(grey: float) -> None:
    foreground = disc()
    stripes = torch.where(torch.arange(SIDE) % 4 < 2, grey, grey / 2)[:, None] * foreground.float().expand(1, 3, SIDE, SIDE)
    flat = tilted(0.1, 0.0)  # all of it faces one way
    after = lit(stripes, torch.where(foreground, flat, 1.0), foreground, plain(1, glare=1.0, gloss=0.0))
    torch.testing.assert_close(after, (BRIGHTER * stripes).clamp(max=1), atol=1e-3, rtol=0)


@given(seed=st.integers(0, 10_000), facet=st.floats(0, 1, exclude_max=True), radius=st.sampled_from([0.0, 0.02, 0.3]))
@examples(max_examples=40, deadline=None)
def test_the_facet_is_one_of_the_part_and_glares_most(seed: int, facet: float, radius: float) -> None:
    depth = torch.rand(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    foreground = disc(radius)
    found = facing(depth, foreground, plain(1, facet=facet))
    assert found.isfinite().all() and (found[~foreground] == 0).all() and found.max() <= 1
    if foreground.any():
        place = foreground.flatten().nonzero()[min(int(facet * foreground.sum()), int(foreground.sum()) - 1), 0]
        assert float(found.flatten()[place]) == pytest.approx(1)


def test_a_part_is_lit_alike_alone_and_in_a_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    rgb, depth = torch.rand(4, 3, SIDE, SIDE, generator=generator), torch.rand(4, 1, SIDE, SIDE, generator=generator)
    foreground = torch.cat([disc(radius) for radius in (0.2, 0.3, 0.4, 0.5)])
    rgb = rgb * foreground
    light = draw_light(4, TrainingSettings(glare=1), generator)
    together = lit(rgb, depth, foreground, light)
    assert (together - rgb).abs().max() > 0.1
    for i in range(4):
        one = slice(i, i + 1)
        torch.testing.assert_close(lit(rgb[one], depth[one], foreground[one], light[one]), together[one])


def test_turned_parts_glare_as_before_they_were_turned() -> None:
    rgb, depth, foreground = roof()
    light = plain(1, glare=0.7, facet=0.25)
    rank = int(0.25 * foreground.sum())
    place = foreground.flatten().nonzero()[rank, 0]
    turned_place = torch.arange(SIDE * SIDE).reshape(SIDE, SIDE).rot90(1).flatten().eq(place).nonzero()[0, 0]
    turned_rank = foreground.rot90(1, (2, 3)).flatten()[:turned_place].sum()
    turned = [member.rot90(1, (2, 3)) for member in (rgb, depth, foreground)]
    after = lit(*turned, replace(light, facet=(turned_rank + 0.5)[None] / foreground.sum()))
    torch.testing.assert_close(after, lit(rgb, depth, foreground, light).rot90(1, (2, 3)), atol=1e-4, rtol=0)


def test_without_depth_nothing_glares() -> None:
    rgb, depth, foreground = roof()
    torch.testing.assert_close(lit(rgb, torch.ones_like(depth), foreground, plain(1, glare=0.8)), rgb)
