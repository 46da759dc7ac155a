"""Muon: orthogonal steps against a singular value decomposition, AdamW for the rest, a state that can be kept."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor, nn

from das3d.optimizer import Muon, as_matrix, is_wide, make_optimizer, polar_factors
from das3d.settings import TrainingSettings


def orthogonal(matrices: list[Tensor]) -> list[Tensor]:
    factors = zip(matrices, polar_factors(matrices), strict=True)
    return [factor @ matrix if is_wide(matrix) else matrix @ factor for matrix, factor in factors]


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 1))


def images() -> Tensor:
    return torch.rand(4, 2, 8, 8, generator=torch.Generator().manual_seed(1))


def train(network: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> float:
    loss = torch.zeros(())
    for _ in range(steps):
        loss = (network(images()) - images()[:, :1]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


@given(st.integers(1, 24), st.integers(1, 24), st.floats(1e-3, 1e3), st.integers(0, 100))
@examples(max_examples=60, deadline=None)
def test_steps_keep_the_singular_vectors_and_even_out_the_values(rows: int, columns: int, scale: float, seed: int) -> None:
    matrix = scale * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    u, values, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    found = orthogonal([matrix])[0].double()
    inside = u.T @ found @ vh.T  # diagonal where the vectors are kept
    torch.testing.assert_close(inside, torch.diag(inside.diagonal()), atol=2e-3, rtol=0)
    torch.testing.assert_close(u @ inside @ vh, found, atol=2e-3, rtol=0)
    clear = values > 0.02 * values.norm()  # those near 0 are raised, but not in five rounds to 1
    assert (inside.diagonal()[clear] > 0.6).all() and (inside.diagonal()[clear] < 1.3).all()


@given(st.integers(2, 64), st.integers(2, 200), st.integers(1, 4), st.integers(0, 100))
@examples(max_examples=60, deadline=None)
def test_steps_are_those_of_the_published_rounds_even_where_most_directions_are_empty(
    rows: int, columns: int, rank: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    sides = torch.randn(rows, rank, generator=generator), torch.randn(rank, columns, generator=generator)
    matrix = sides[0] @ sides[1]  # rounded, so that the empty directions are not quite empty
    x = matrix.double() / matrix.double().norm()
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x - 4.7750 * square @ x + 2.0315 * square @ square @ x
    torch.testing.assert_close(orthogonal([matrix])[0].double(), x, atol=2e-3, rtol=0)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_filters_are_seen_as_matrices_without_a_copy(memory: torch.memory_format) -> None:
    bank = torch.randn(4, 5, 3, 2, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=memory)
    matrix = as_matrix(bank, bank)
    assert matrix.shape == (4, 30) and matrix.data_ptr() == bank.data_ptr()
    assert sorted(matrix[1].tolist()) == sorted(bank[1].flatten().tolist())
    assert torch.equal(as_matrix(bank.contiguous(), bank), matrix), "the same columns whatever the order of its own memory"
    matrix.zero_()
    assert not bank.any()


def test_the_order_in_memory_does_not_change_a_step() -> None:
    plain, other = small_network(), small_network().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for network in (plain, other):
        train(network, make_optimizer(network, TrainingSettings(optimizer="muon", learning_rate=0.01)), 3)
    torch.testing.assert_close(plain[0].weight, other[0].weight, atol=1e-5, rtol=1e-4)


def test_matrices_of_many_sizes_do_not_change_each_other() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = [(4, 9), (9, 4), (4, 20), (9, 9), (1, 7), (4, 9)]
    matrices = [torch.randn(size, generator=generator) for size in sizes]
    for together, matrix in zip(orthogonal(matrices), matrices, strict=True):
        assert together.shape == matrix.shape
        torch.testing.assert_close(together, orthogonal([matrix])[0])


def test_without_filters_it_is_adamw() -> None:
    network, other = small_network(), small_network()
    groups = [{"params": list(network.parameters()), "filters": False}]
    train(network, Muon(groups, lr=0.01, weight_decay=0.1), 5)
    train(other, torch.optim.AdamW(other.parameters(), lr=0.01, weight_decay=0.1), 5)
    for one, two in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_only_filters_larger_than_a_pixel_take_orthogonal_steps() -> None:
    network = small_network()
    optimizer = make_optimizer(network, TrainingSettings(optimizer="muon"))
    filters, rest = optimizer.param_groups
    assert [id(p) for p in filters["params"]] == [id(network[0].weight)]
    assert len(rest["params"]) == len(list(network.parameters())) - 1


def test_a_first_step_is_the_learning_rate_along_the_orthogonal_gradient() -> None:
    network = small_network()
    optimizer = make_optimizer(network, TrainingSettings(optimizer="muon", learning_rate=0.01, weight_decay=0.0))
    before = network[0].weight.detach().clone()
    train(network, optimizer, 1)
    step = (before - network[0].weight.detach()).reshape(4, -1)
    values = torch.linalg.svdvals(step) / (0.01 * 0.2 * 18**0.5)
    assert float(values.min()) > 0.6 and float(values.max()) < 1.3


@pytest.mark.parametrize("name", ["muon", "adamw", "adam"])
def test_it_learns_and_a_kept_state_goes_on_as_if_never_stopped(name: Any) -> None:
    settings = TrainingSettings(optimizer=name, learning_rate=0.01)
    network = small_network()
    optimizer = make_optimizer(network, settings)
    first = train(network, optimizer, 3)
    weights, state = copy.deepcopy(network.state_dict()), copy.deepcopy(optimizer.state_dict())
    assert train(network, optimizer, 20) < first
    other = small_network()
    other.load_state_dict(weights)
    resumed = make_optimizer(other, settings)
    resumed.load_state_dict(state)
    train(other, resumed, 20)
    for one, two in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_closure_is_evaluated_once_and_gives_the_same_step() -> None:
    network, other = small_network(), small_network()
    one, two = (make_optimizer(each, TrainingSettings(optimizer="muon", learning_rate=0.01)) for each in (network, other))
    losses = []

    def closure() -> Tensor:
        loss = (network(images()) - images()[:, :1]).square().mean()
        one.zero_grad()
        loss.backward()
        losses.append(float(loss.detach()))
        return loss

    for _ in range(2):
        assert float(one.step(closure).detach()) == losses[-1] == train(other, two, 1)
    assert len(losses) == 2
    for first, second in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(first, second)


def test_adam_does_not_decay_weights_and_the_others_do() -> None:
    for name, decays in (("muon", True), ("adamw", True), ("adam", False)):
        optimizer = make_optimizer(small_network(), TrainingSettings(optimizer=name, weight_decay=0.3))  # type: ignore[arg-type]
        assert all((group["weight_decay"] == 0.3) is decays for group in optimizer.param_groups)


def test_a_parameter_without_gradient_stays() -> None:
    network = small_network()
    optimizer = make_optimizer(network, TrainingSettings(optimizer="muon"))
    before = copy.deepcopy(network.state_dict())
    optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
