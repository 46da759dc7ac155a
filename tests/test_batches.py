"""Training batches: a function of seed and iteration, whatever the processes; members that move together."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor

from das3d.batches import (
    BEND_NODES,
    Batch,
    GoodParts,
    Motion,
    _resampled,
    compose,
    draw_batch,
    draw_motion,
    make_batch,
    moved,
)
from das3d.preparation import PreparedScan
from das3d.settings import Settings, TrainingSettings, make_settings
from das3d.synthesis import Harmed, synthesise
from das3d.window import Window

SIDE = 32


def small(*changes: str, **more: Any) -> Settings:
    networks = ["network.stem=1", "network.repair_widths=[8,8,8]", "network.discriminator_widths=[8,8,8]"]
    return make_settings(changes=[f"preparation.size={SIDE}", "training.batch=7", *networks, *changes], **more)


def good_parts(count: int = 5) -> GoodParts:
    """Parts whose depth is 1 minus the grey level of every colour, so that the members tell of each other."""
    generator = torch.Generator().manual_seed(0)
    grey = torch.randint(60, 200, (count, 1, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    foreground = torch.zeros(count, 1, SIDE, SIDE, dtype=torch.bool)
    foreground[:, :, 8:26, 6:21] = True
    grey = grey * foreground
    return GoodParts(grey.repeat(1, 3, 1, 1), 1 - grey.float() / 255, foreground)


def at_rest(count: int, **changes: float) -> Motion:
    values = {"turn": 0.0, "zoom": 1.0, "shift_u": 0.0, "shift_v": 0.0, "mirror": 1.0, **changes}
    bend = torch.zeros(count, 2, BEND_NODES, BEND_NODES)
    return Motion(**{name: torch.full((count,), float(value)) for name, value in values.items()}, bend=bend)


def members(batch: Batch) -> tuple[Tensor, ...]:
    return batch.rgb, batch.depth, batch.harmed.rgb, batch.harmed.depth, batch.harmed.mask


def equal(a: Batch, b: Batch) -> bool:
    return all(torch.equal(one, other) for one, other in zip(members(a), members(b), strict=True))


# ------------------------------------------------------------------------------------------- good parts


def test_good_parts_hold_the_members_of_scans_in_their_order() -> None:
    rng = np.random.default_rng(0)
    scans = [
        PreparedScan(
            name=str(i),
            rgb=rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8),
            depth=rng.random((SIDE, SIDE), dtype=np.float32),
            valid=np.ones((SIDE, SIDE), dtype=bool),
            foreground=rng.random((SIDE, SIDE)) > 0.5,
            mask=None,
            window=Window.square(0, 0, SIDE, (SIDE, SIDE)),
        )
        for i in range(3)
    ]
    parts = GoodParts.from_scans(scans)
    assert len(parts) == 3 and parts.device.type == "cpu"
    assert (parts.rgb.dtype, parts.depth.dtype, parts.foreground.dtype) == (torch.uint8, torch.float32, torch.bool)
    chosen = parts[torch.tensor([2, 0])]
    for part, scan in zip(range(2), (scans[2], scans[0]), strict=True):
        np.testing.assert_array_equal(chosen.rgb[part].permute(1, 2, 0), scan.rgb)
        np.testing.assert_array_equal(chosen.depth[part, 0], scan.depth)
        np.testing.assert_array_equal(chosen.foreground[part, 0], scan.foreground)


# ------------------------------------------------------------------------------------------- motions


@given(
    turn=st.floats(-math.pi, math.pi),
    zoom=st.floats(0.5, 1.5),
    shift=st.tuples(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5)),
    mirror=st.sampled_from([-1.0, 1.0]),
)
@examples(max_examples=30, deadline=None)
def test_rgb_depth_and_foreground_move_together(
    turn: float, zoom: float, shift: tuple[float, float], mirror: float
) -> None:
    parts = good_parts(2)
    rgb, depth, foreground = moved(
        parts, at_rest(2, turn=turn, zoom=zoom, shift_u=shift[0], shift_v=shift[1], mirror=mirror)
    )
    torch.testing.assert_close(1 - depth, rgb[:, :1], atol=1e-5, rtol=0)
    assert torch.equal(rgb[:, 0], rgb[:, 2])
    assert torch.equal(foreground, depth < 1)
    outside = ~foreground
    assert (depth[outside] == 1).all() and (rgb[outside.expand_as(rgb)] == 0).all()


@given(
    turn=st.floats(-math.pi, math.pi),
    zoom=st.floats(0.8, 1.25),
    shift=st.tuples(st.floats(-0.1, 0.1), st.floats(-0.1, 0.1)),
)
@examples(max_examples=30, deadline=None)
def test_the_outline_of_a_moved_part_takes_nothing_from_beyond_it(
    turn: float, zoom: float, shift: tuple[float, float]
) -> None:
    parts = good_parts(2)
    plain = GoodParts(100 * parts.foreground.byte().expand(-1, 3, -1, -1), torch.where(parts.foreground, 0.3, 1.0),
                      parts.foreground)  # fmt: skip
    rgb, depth, foreground = moved(plain, at_rest(2, turn=turn, zoom=zoom, shift_u=shift[0], shift_v=shift[1]))
    assert foreground.any()
    torch.testing.assert_close(depth, torch.where(foreground, 0.3, 1.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(rgb, (100 / 255 * foreground).expand_as(rgb), atol=1e-5, rtol=0)


def test_a_motion_of_nothing_changes_nothing() -> None:
    parts = good_parts()
    rgb, depth, foreground = moved(parts, at_rest(5))
    torch.testing.assert_close(rgb, parts.rgb.float() / 255, atol=1e-4, rtol=0)
    torch.testing.assert_close(depth, parts.depth, atol=1e-4, rtol=0)
    assert torch.equal(foreground, parts.foreground)


@pytest.mark.parametrize(
    ("motion", "expected"),
    [
        ({"mirror": -1}, lambda x: x.flip(3)),
        ({"turn": math.pi / 2}, lambda x: x.rot90(1, (2, 3))),
        ({"turn": math.pi}, lambda x: x.flip(2, 3)),
        ({"shift_u": 3 / SIDE}, lambda x: x.roll(-3, 3)),
        ({"shift_v": -2 / SIDE}, lambda x: x.roll(2, 2)),
    ],
    ids=["mirror", "quarter", "half", "right", "down"],
)
def test_each_number_of_a_motion_does_what_it_says(motion: dict[str, float], expected: Any) -> None:
    parts = good_parts(2)
    _, depth, foreground = moved(parts, at_rest(2, **motion))
    assert torch.equal(foreground, expected(parts.foreground))
    torch.testing.assert_close(depth, expected(parts.depth), atol=1e-3, rtol=0)


def test_parts_that_keep_their_pose_are_as_resampling_leaves_them() -> None:
    # A GPU resamples them all; a batch is the same on every device.
    parts = good_parts(12)
    motion = draw_motion(12, small("training.still=0.5", "training.flip=true").training, torch.Generator().manual_seed(3))
    assert 0 < int(motion.is_any.sum()) < 12
    before = [member.clone() for member in (parts.rgb, parts.depth, parts.foreground)]
    found, want = moved(parts, motion), _resampled(parts, motion)
    for member, other in zip(found, want, strict=True):
        torch.testing.assert_close(member, other, atol=1e-4, rtol=0)
    assert all(torch.equal(x, y) for x, y in zip(before, (parts.rgb, parts.depth, parts.foreground), strict=True))


@pytest.mark.parametrize("member", [field.name for field in fields(Motion)])
def test_each_number_of_a_motion_is_a_motion(member: str) -> None:
    motion = at_rest(3)
    getattr(motion, member)[1] += 0.25
    assert motion.is_any.tolist() == [False, True, False]


@pytest.mark.parametrize("zoom", [0.75, 1.25])
def test_zoom_enlarges(zoom: float) -> None:
    parts = good_parts(1)
    area = moved(parts, at_rest(1, zoom=zoom))[2].sum() / parts.foreground.sum()
    assert float(area) == pytest.approx(zoom**2, rel=0.1)


@given(seed=st.integers(0, 10_000))
@examples(max_examples=20, deadline=None)
def test_a_bend_moves_all_members_smoothly_and_no_further_than_its_nodes(seed: int) -> None:
    largest, parts = 0.05, good_parts(2)
    bend = largest * (2 * torch.rand(2, 2, BEND_NODES, BEND_NODES, generator=torch.Generator().manual_seed(seed)) - 1)
    rgb, depth, foreground = moved(parts, replace(at_rest(2), bend=bend))
    torch.testing.assert_close(1 - depth, rgb[:, :1], atol=1e-5, rtol=0)
    assert torch.equal(foreground, depth < 1) and not torch.equal(foreground, parts.foreground)
    # Between nodes a cubic rises a little beyond them; the outline has moved by no more than that.
    reach = math.ceil(1.3 * largest * SIDE)
    near = torch.nn.functional.max_pool2d(parts.foreground.float(), 2 * reach + 1, stride=1, padding=reach) > 0
    within = torch.nn.functional.max_pool2d((~parts.foreground).float(), 2 * reach + 1, stride=1, padding=reach) == 0
    assert not (foreground & ~near).any() and not (within & ~foreground).any()


def test_an_even_bend_is_a_shift() -> None:
    parts, bend = good_parts(2), torch.zeros(2, 2, BEND_NODES, BEND_NODES)
    bend[:, 0] = 3 / SIDE
    for one, other in zip(
        moved(parts, replace(at_rest(2), bend=bend)), moved(parts, at_rest(2, shift_u=3 / SIDE)), strict=True
    ):
        torch.testing.assert_close(one.float(), other.float(), atol=1e-4, rtol=0)


def test_motions_keep_to_their_settings() -> None:
    limits = TrainingSettings(flip=True, rotation=20, zoom=0.1, shift=0.05, bend=0.02, still=0)
    motion = draw_motion(4000, limits, torch.Generator().manual_seed(0))
    for values, centre, limit in (
        (motion.turn, 0, math.radians(20)), (motion.zoom, 1, 0.1), (motion.shift_u, 0, 0.05), (motion.shift_v, 0, 0.05),
        (motion.bend, 0, 0.02),
    ):  # fmt: skip
        spread = (values - centre).abs()
        assert 0.95 * limit < spread.max() <= limit + 1e-6
        assert float((values - centre).mean()) == pytest.approx(0, abs=limit / 15)
    assert set(motion.mirror.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(motion.mirror.mean())) < 0.06

    still = TrainingSettings(flip=False, rotation=0, zoom=0, shift=0, bend=0)
    motion = draw_motion(50, still, torch.Generator().manual_seed(0))
    assert all(torch.equal(value, getattr(at_rest(50), name)) for name, value in vars(motion).items())


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_share_of_parts_stays_still(share: float) -> None:
    motion = draw_motion(2000, TrainingSettings(still=share), torch.Generator().manual_seed(0))
    still = (motion.turn == 0) & (motion.zoom == 1) & (motion.shift_u == 0) & (motion.shift_v == 0)
    still &= (motion.bend == 0).flatten(1).all(dim=1)
    assert float(still.float().mean()) == pytest.approx(share, abs=0.04)
    moves = (motion.turn != 0) & (motion.zoom != 1) & (motion.shift_u != 0) & (motion.shift_v != 0)
    assert torch.equal(moves, ~still)


# ------------------------------------------------------------------------------------------- batches


def test_a_batch_follows_from_seed_and_iteration_alone() -> None:
    parts, settings = good_parts(), small()
    torch.manual_seed(1)
    first = make_batch(parts, settings, 12)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    make_batch(parts, settings, 11)
    assert equal(make_batch(parts, settings, 12), first)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is neither read nor moved
    assert not equal(make_batch(parts, settings, 13), first)
    assert not equal(make_batch(parts, small(seed=1), 12), first)
    assert not equal(make_batch(parts, small(seed=1), 11), first)  # seeds do not repeat each other later on


def test_shapes_and_types() -> None:
    batch = make_batch(good_parts(), small("training.batch=3"), 0)
    assert [tuple(member.shape) for member in members(batch)] == [
        (3, 3, SIDE, SIDE), (3, 1, SIDE, SIDE), (3, 3, SIDE, SIDE), (3, 1, SIDE, SIDE), (3, 1, SIDE, SIDE),
    ]  # fmt: skip
    assert all(member.dtype == torch.float32 and member.isfinite().all() for member in members(batch))
    assert all(len(recipe) == 3 for recipe in batch.recipes)


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_processes_share_the_batch_that_one_would_make(ranks: int) -> None:
    parts, settings = good_parts(), small("training.flip=true")
    whole = make_batch(parts, settings, 5)
    drawn = [draw_batch(len(parts), settings, 5, rank=rank, ranks=ranks) for rank in range(ranks)]
    shares = [compose(parts, one, settings) for one in drawn]
    sizes = [len(share.rgb) for share in shares]
    assert sum(sizes) == 7 and max(sizes) - min(sizes) <= 1
    for i, member in enumerate(members(whole)):
        assert torch.equal(torch.cat([members(share)[i] for share in shares]), member)
    for i, recipe in enumerate(whole.recipes):
        assert torch.equal(torch.cat([share.recipes[i].seed for share in shares]), recipe.seed)


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_each_round_harms_what_the_last_one_left(rounds: int) -> None:
    # What is cut away is no part for later rounds (test_synthesis.py).
    settings = small(f"synthesis.rounds={rounds}", "training.batch=16", "synthesis.cuts=0")
    batch = make_batch(good_parts(), settings, 3)
    assert len(batch.recipes) == rounds
    foreground = batch.depth < 1
    rgb, depth, mask = batch.rgb, batch.depth, torch.zeros_like(batch.depth)
    for recipe in batch.recipes:
        more = synthesise(rgb, depth, foreground, recipe, settings.synthesis)
        rgb, depth, mask = more.rgb, more.depth, (mask.bool() | more.mask.bool()).float()
    for got, want in zip(members(batch)[2:], (rgb, depth, mask), strict=True):
        assert torch.equal(got, want)
    assert mask.any()


def test_more_rounds_harm_more() -> None:
    shares = [
        make_batch(good_parts(), small(f"synthesis.rounds={rounds}", "training.batch=64"), 0).harmed.mask.mean()
        for rounds in (1, 4)
    ]
    assert shares[1] > 1.5 * shares[0] > 0


@pytest.mark.parametrize("modality", ["rgb", "depth"])
def test_what_the_networks_do_not_see_stays_unharmed(modality: str) -> None:
    batch = make_batch(good_parts(), small(modality=modality), 0)
    assert torch.equal(batch.harmed.depth, batch.depth) == (modality == "rgb")
    assert torch.equal(batch.harmed.rgb, batch.rgb) == (modality == "depth")
    assert batch.harmed.mask.any()


def test_defects_lie_on_the_part_where_it_was_moved_to() -> None:
    batch = make_batch(good_parts(), small("training.rotation=180", "training.batch=32"), 0)
    outside = batch.depth == 1
    assert batch.harmed.mask.any() and not batch.harmed.mask[outside].any()
    assert (batch.harmed.depth[outside] == 1).all() and (batch.harmed.rgb[outside.expand_as(batch.rgb)] == 0).all()


def test_given_textures_are_used_and_chosen_among_all() -> None:
    settings = small("synthesis.opacity_rest=0", "synthesis.shaded=0", "synthesis.drop=0", "synthesis.rounds=1",
                     "synthesis.shifts=0", "synthesis.cuts=0", "synthesis.warps=0", "synthesis.edge_high=0",
                     "training.batch=64")  # fmt: skip
    textures = torch.linspace(0.3, 0.9, 4)[:, None, None, None].expand(4, 3, SIDE, SIDE)
    batch = make_batch(good_parts(), settings, 0, textures)
    assert set(batch.recipes[0].texture.tolist()) == {0, 1, 2, 3}
    where = (batch.harmed.mask > 0).expand_as(batch.rgb)
    torch.testing.assert_close(batch.harmed.rgb[where], textures[batch.recipes[0].texture][where])


def test_harmless_pairs_are_spared_in_every_round() -> None:
    settings = small("synthesis.rounds=3", "synthesis.drop=0", "synthesis.harmless=0.5", "training.batch=60")
    batch = make_batch(good_parts(), settings, 0)
    kept = [recipe.keep_rgb & recipe.keep_depth for recipe in batch.recipes]
    assert torch.equal(kept[0], kept[1]) and torch.equal(kept[0], kept[2]) and 15 < kept[0].sum() < 45


def test_every_part_is_used() -> None:
    parts = good_parts(5)
    marked = replace(
        parts, rgb=parts.foreground.repeat(1, 3, 1, 1).byte() * torch.arange(20, 70, 10)[:, None, None, None].byte()
    )
    still = ["rotation", "zoom", "shift", "brightness", "contrast", "lighting", "glare"]
    settings = small(*[f"training.{name}=0" for name in still])
    seen = torch.cat([make_batch(marked, settings, i).rgb.amax(dim=(1, 2, 3)) * 255 for i in range(8)]).round()
    assert set(seen.tolist()) == {20.0, 30.0, 40.0, 50.0, 60.0}


def test_a_batch_does_not_change_the_good_parts() -> None:
    parts, fresh = good_parts(), good_parts()
    make_batch(parts, small(), 0)
    assert all(torch.equal(value, getattr(fresh, name)) for name, value in vars(parts).items())


@pytest.mark.parametrize(("harmless", "low", "high"), [(0.0, 25, 80), (0.5, 100, 150)])
def test_some_pairs_stay_good(harmless: float, low: int, high: int) -> None:
    settings = small("synthesis.rounds=1", "synthesis.drop=0.5", f"synthesis.harmless={harmless}", "training.batch=200")
    batch = make_batch(good_parts(), settings, 0)
    both_kept = batch.recipes[0].keep_rgb & batch.recipes[0].keep_depth
    assert low < both_kept.sum() < high
    good = Harmed(batch.rgb, batch.depth, torch.zeros_like(batch.depth))
    for name in ("rgb", "depth", "mask"):
        assert torch.equal(getattr(batch.harmed, name)[both_kept], getattr(good, name)[both_kept])
