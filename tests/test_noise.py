"""The hash that stands in for a generator, and the Perlin fields made from it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from synthesis_oracle import perlin_noise
from torch import Tensor

from das3d.noise import LATTICE, hash_uniform, perlin, pixel_centres


def fields(count: int, periods: float, side: int, *, angle: float = 0.0, first_seed: int = 0) -> Tensor:
    each = torch.full((count,), float(periods))
    return perlin(torch.arange(first_seed, first_seed + count), each, each, torch.full((count,), angle), side)


def hash_in_plain_integers(seed: int, *keys: int) -> float:
    def mix(h: int) -> int:
        for factor in (0x45D9F3B, 0x2C1B3C6D):
            h = ((h ^ (h >> 16)) * factor) % 2**32
        return h ^ (h >> 15)

    h = mix((seed + 0x9E3779B9) % 2**32)
    for key in keys:
        h = mix(h ^ key % 2**32)
    return (mix(h) >> 8) / 2**24


# ------------------------------------------------------------------------------------------- hash


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**31 - 1, 2**32 + 5])
@pytest.mark.parametrize("keys", [(), (0,), (1,), (4095,), (2**31, 7)])
def test_the_hash_is_the_same_in_unbounded_integers(seed: int, keys: tuple[int, ...]) -> None:
    assert hash_uniform(torch.tensor([seed]), *keys).item() == hash_in_plain_integers(seed, *keys)


def test_the_hash_keeps_its_values_over_versions() -> None:
    # A recipe written by one version must make the same defect in the next.
    kept = hash_uniform(torch.tensor([0, 1, 2**31 - 1]), torch.tensor([0, 7, 4095]))
    assert kept.tolist() == [0.46980828046798706, 0.30442380905151367, 0.3743022084236145]


def test_a_number_does_not_depend_on_what_is_computed_beside_it() -> None:
    seeds, nodes = torch.arange(50, 57), torch.arange(97)
    whole = hash_uniform(seeds[:, None], nodes[None])
    assert whole.shape == (7, 97) and whole.dtype == torch.float32
    assert torch.equal(whole[3], hash_uniform(seeds[3], nodes))
    assert whole[3, 11] == hash_uniform(seeds[3], 11)
    assert torch.equal(whole.flip(1), hash_uniform(seeds[:, None], nodes.flip(0)[None]))


@pytest.mark.parametrize("along", ["keys", "seeds"])
def test_consecutive_integers_give_uniform_independent_numbers(along: str) -> None:
    counter = torch.arange(1 << 16)
    values = (hash_uniform(torch.tensor(3), counter) if along == "keys" else hash_uniform(counter, 3)).numpy()
    assert values.min() >= 0 and values.max() < 1
    assert stats.kstest(values, "uniform").pvalue > 1e-3
    counts = np.bincount((values * 64).astype(int), minlength=64)
    assert stats.chisquare(counts).pvalue > 1e-3
    for lag in (1, 2, 64, 4096):
        assert abs(np.corrcoef(values[:-lag], values[lag:])[0, 1]) < 4 / math.sqrt(len(values))


def test_neighbouring_seeds_give_unrelated_numbers() -> None:
    values = hash_uniform(torch.arange(40)[:, None], torch.arange(4096)[None]).numpy()
    related = np.corrcoef(values) - np.eye(40)
    assert np.abs(related).max() < 5 / math.sqrt(4096)
    # Nor the same numbers in another order: of 163,840 draws from 2^24 values, few meet by chance.
    assert len(np.unique(values)) > 0.99 * values.size


# ------------------------------------------------------------------------------------------- Perlin


def test_pixel_centres() -> None:
    u, v = pixel_centres(4, torch.device("cpu"))
    assert u.flatten().tolist() == v.flatten().tolist() == [-0.375, -0.125, 0.125, 0.375]
    assert u.shape == (1, 1, 4) and v.shape == (1, 4, 1)


@given(
    seed=st.integers(0, 2**31 - 1),
    periods=st.tuples(st.floats(0.5, 60), st.floats(0.5, 60)),
    angle=st.floats(-math.pi / 2, math.pi / 2),
    side=st.integers(1, 80),
)
@settings(max_examples=25, deadline=None)
def test_perlin_is_the_same_in_plain_numpy(seed: int, periods: tuple[float, float], angle: float, side: int) -> None:
    field = perlin(
        torch.tensor([seed]), torch.tensor([periods[0]]), torch.tensor([periods[1]]), torch.tensor([angle]), side
    )
    nodes = [hash_in_plain_integers(seed, node) for node in range(LATTICE * LATTICE)]
    directions = 2 * math.pi * np.array(nodes).reshape(LATTICE, LATTICE)
    np.testing.assert_allclose(field[0], perlin_noise(directions, periods, angle, side), atol=5e-4)  # float32 positions


@pytest.mark.parametrize("periods", [1, 4, 32])
def test_perlin_is_centred_bounded_and_reaches_its_thresholds(periods: int) -> None:
    noise = fields(64, periods, 48, angle=0.4)
    assert noise.shape == (64, 48, 48) and noise.isfinite().all()
    assert noise.abs().max() <= 1
    assert abs(noise.mean()) < 0.03
    assert 0.2 < noise.std() < 0.5
    assert noise.max() > 0.7 and noise.min() < -0.7  # the largest threshold of any preset still leaves defects


def test_perlin_vanishes_on_the_nodes_of_its_lattice() -> None:
    noise = fields(5, 4, 33)  # with an odd side the middle pixel lies on a node
    assert (noise[:, 16, 16] == 0).all()
    assert (noise[:, 16, 17] != 0).any()


@pytest.mark.parametrize("periods", [1, 2, 8])
def test_perlin_is_continuous(periods: int) -> None:
    # Gradients have length 1 and the fade has slope 15 / 8 at most, so no step exceeds a few lattice cells per pixel.
    side = 128
    noise = fields(16, periods, side, angle=-1.1)
    steps = torch.cat([noise.diff(dim=1).abs().flatten(), noise.diff(dim=2).abs().flatten()])
    assert steps.max() < 5 * periods / side


def test_periods_set_the_scale() -> None:
    changes = [float(fields(16, p, 64).sign().diff(dim=2).abs().mean()) for p in (1, 4, 16)]
    assert changes[0] * 2 < changes[1] and changes[1] * 2 < changes[2]
    stretched = perlin(torch.arange(16), torch.full((16,), 2.0), torch.full((16,), 16.0), torch.zeros(16), 64)
    assert stretched.diff(dim=1).abs().mean() > 3 * stretched.diff(dim=2).abs().mean()


def test_a_quarter_turn_turns_the_field() -> None:
    straight, turned = fields(3, 8, 32), fields(3, 8, 32, angle=math.pi / 2)
    torch.testing.assert_close(turned, straight.flip(2).transpose(1, 2), atol=1e-4, rtol=0)


def test_the_field_is_the_same_at_every_resolution() -> None:
    torch.testing.assert_close(fields(3, 4, 96, angle=0.3)[:, 1::3, 1::3], fields(3, 4, 32, angle=0.3), atol=1e-4, rtol=0)


def test_a_field_is_the_same_alone_and_in_any_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    seed = torch.randint(0, 2**31, (9,), generator=generator)
    periods = 2.0 ** torch.randint(0, 6, (2, 9), generator=generator)
    angle = torch.rand(9, generator=generator)
    whole = perlin(seed, periods[0], periods[1], angle, 40)
    for i in range(9):
        one = slice(i, i + 1)
        assert torch.equal(perlin(seed[one], periods[0, one], periods[1, one], angle[one], 40), whole[one])
    assert torch.equal(whole, perlin(seed, periods[0], periods[1], angle, 40))


def test_neighbouring_seeds_give_unrelated_fields() -> None:
    noise = fields(30, 16, 64).flatten(1).numpy()
    related = np.corrcoef(noise) - np.eye(30)
    assert np.abs(related).max() < 0.25
