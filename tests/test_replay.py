"""What a GPU is told at once: bundles travel as one, a training step and an engine ask the device for nothing, and a replay
does what the step would. The last of these needs a CUDA device."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from lightning.fabric import Fabric
from torch import Tensor

from das3d import training
from das3d._bundle import Bundle
from das3d._replay import AS_IT_IS, Replayed
from das3d.batches import GoodParts
from das3d.engines import BATCH, EngineOutput
from das3d.engines.torch_engine import Scorer, TorchEngine
from das3d.network import DAS3DNet
from das3d.optimizer import make_optimizer
from das3d.settings import Settings, make_settings
from das3d.training import State, advance, fit, next_iteration, start, update_average

SIDE = 32
DTYPES = (torch.bool, torch.uint8, torch.int64, torch.float32, torch.float64)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@dataclass(frozen=True)
class Inner(Bundle):
    one: Tensor
    two: Tensor | None


@dataclass(frozen=True)
class Outer(Bundle):
    first: Tensor | None
    inner: Inner
    several: tuple[Inner, ...]


def settings_of(preset: str = "fast", modality: str = "rgb+depth", *changes: str) -> Settings:
    small = [f"preparation.size={SIDE}", "training.batch=4", "network.repair_widths=[8, 16, 16]"]
    small += ["network.discriminator_widths=[8, 16, 16]"]
    return make_settings(preset, modality=modality, changes=[*small, *changes])  # type: ignore[arg-type]


def good_parts(count: int = 5, device: str = "cpu") -> GoodParts:
    generator = torch.Generator().manual_seed(0)
    foreground = torch.zeros(count, 1, SIDE, SIDE, dtype=torch.bool)
    foreground[..., 6:26, 4:28] = True
    rgb = (torch.randint(40, 200, (count, 3, SIDE, SIDE), generator=generator) * foreground).to(torch.uint8)
    depth = torch.where(foreground, torch.rand(count, 1, SIDE, SIDE, generator=generator) * 0.2 + 0.4, 1.0)
    return GoodParts(rgb, depth, foreground).to(device)


# ------------------------------------------------------------------------------------------- bundles


@st.composite
def bundles(draw: Any) -> Outer:
    count = draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))

    def tensor() -> Tensor:
        shape = (count, *draw(st.lists(st.integers(1, 4), max_size=3)))
        return torch.randint(0, 2, shape, generator=generator).to(draw(st.sampled_from(DTYPES)))

    def inner() -> Inner:
        return Inner(tensor(), tensor() if draw(st.booleans()) else None)

    first = tensor() if draw(st.booleans()) else None
    return Outer(first, inner(), tuple(inner() for _ in range(draw(st.integers(0, 3)))))


@given(bundles())
@examples(max_examples=60, deadline=None)
def test_what_travelled_packed_is_what_it_was(bundle: Outer) -> None:
    packed = bundle.packed()
    found = bundle.mapped(torch.zeros_like).unpacked(packed.clone())
    assert packed.dtype == torch.uint8 and packed.ndim == 1
    for one, other in zip(bundle.tensors(), found.tensors(), strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)
    assert len(found.several) == len(bundle.several) and (found.first is None) == (bundle.first is None)


def test_parts_of_a_bundle_are_picked_in_all_that_is_in_it() -> None:
    rows = torch.arange(3)
    bundle = Outer(None, Inner(rows, rows * 2), (Inner(rows * 3, None),))
    picked = bundle[torch.tensor([2, 0])]
    assert len(bundle) == 3 and len(picked) == 2
    assert [tensor.tolist() for tensor in picked.tensors()] == [[2, 0], [4, 0], [6, 0]]
    assert [tensor.tolist() for tensor in bundle[1].tensors()] == [[1], [2], [3]]


# ------------------------------------------------------------------------------------------- nothing waits


def without_values(network: DAS3DNet) -> DAS3DNet:
    """Its tensors on a device that keeps none of their values: what asks for one fails, as a GPU would be waited for."""
    return copy.deepcopy(network).to("meta")


@pytest.mark.parametrize("preset", ["fast", "paper"])
@pytest.mark.parametrize("modality", ["rgb+depth", "rgb", "depth"])
def test_a_training_step_asks_the_device_for_no_value(preset: str, modality: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, fabric = settings_of(preset, modality), Fabric(accelerator="cpu", devices=1)
    network, average = (without_values(DAS3DNet.from_settings(settings)) for _ in range(2))
    state = State(network, average, make_optimizer(network, settings.training))
    # AdamW counts its steps on the host here, on a GPU on the device.
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, closure=None: None)
    todo = next_iteration(state, 5, settings, fabric)
    textures = torch.zeros(3, 3, SIDE, SIDE, device="meta") if preset == "paper" else None
    parts = good_parts().mapped(lambda tensor: tensor.to("meta"))
    batch, output, losses = advance(state, todo.mapped(lambda t: t.to("meta")), parts, settings, fabric, textures)
    assert losses.shape == (3,) and batch.harmed.mask.shape == (4, 1, SIDE, SIDE) == output.logits.shape


@pytest.mark.parametrize("modality", ["rgb+depth", "rgb", "depth"])
def test_an_engine_asks_the_device_for_no_value(modality: str) -> None:
    settings = settings_of("fast", modality)
    scorer = Scorer(without_values(DAS3DNet.from_settings(settings).eval()), settings.score)
    rgb = torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8, device="meta") if settings.uses_rgb else None
    depth = torch.zeros(2, 1, SIDE, SIDE, device="meta") if settings.uses_depth else None
    maps, scores, *_ = scorer(rgb, depth)
    assert maps.shape == (2, SIDE, SIDE) and scores.shape == (2,)


@pytest.mark.parametrize("follow", [0.0, 0.005, 0.3, 1.0])
def test_the_average_follows_alike_by_a_number_on_either_side(follow: float) -> None:
    settings = settings_of()
    torch.manual_seed(0)
    network, average = DAS3DNet.from_settings(settings), DAS3DNet.from_settings(settings)
    other = copy.deepcopy(average)
    update_average(*State(network, average, None).weights, follow)
    update_average(*State(network, other, None).weights, torch.tensor(follow))
    for one, another in zip(average.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(one, another)


# ------------------------------------------------------------------------------------------- batches of an engine


def outputs(engine: TorchEngine, count: int, settings: Settings) -> EngineOutput:
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 255, (count, 3, SIDE, SIDE), dtype=np.uint8) if settings.uses_rgb else None
    depth = rng.random((count, 1, SIDE, SIDE), dtype=np.float32) if settings.uses_depth else None
    return engine.run(rgb, depth)


def assert_alike(one: EngineOutput, other: EngineOutput, tolerance: float) -> None:
    for a, b in zip(vars(one).values(), vars(other).values(), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_allclose(a, b, atol=tolerance, rtol=0)


@pytest.mark.parametrize("modality", ["rgb+depth", "rgb", "depth"])
@pytest.mark.parametrize("count", [1, 2, BATCH, BATCH + 1, 2 * BATCH + 3])
def test_parts_come_out_in_their_order_where_batches_are_filled_up_and_cut(modality: str, count: int) -> None:
    settings = settings_of("fast", modality)
    torch.manual_seed(0)
    engine = TorchEngine(DAS3DNet.from_settings(settings).eval(), settings.score)
    plain = outputs(engine, count, settings)
    sizes: list[int] = []

    class Graph:
        """Writes over its results, as a graph does."""

        def __init__(self) -> None:
            self.lock, self.kept = Lock(), None

        def __call__(self, members: Any) -> Sequence[Tensor | None]:
            sizes.append(len(members))
            found = engine._found(members)
            self.kept = self.kept or [None if one is None else one.clone() for one in found]
            for kept, one in zip(self.kept, found, strict=True):
                if kept is not None:
                    kept.copy_(one)
            return self.kept

    engine._graphs = {1: Graph(), BATCH: Graph()}  # type: ignore[dict-item]
    assert_alike(outputs(engine, count, settings), plain, 1e-5)
    assert set(sizes) <= {1, BATCH} and len(sizes) == -(-count // BATCH)


# ------------------------------------------------------------------------------------------- on a GPU


def apart(one: DAS3DNet, other: DAS3DNet) -> float:
    """Distance between weights and batch-norm statistics."""
    weights = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return sum(float((a.cpu().float() - b.cpu().float()).square().sum()) for a, b in weights) ** 0.5


def steps_of(state: State) -> set[float]:
    return {float(kept["step"]) for kept in state.optimizer.state.values()}


@needs_cuda
@pytest.mark.parametrize("preset", ["fast", "paper"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_replayed_steps_learn_what_steps_launched_one_by_one_learn(preset: str, precision: Any) -> None:
    device, settings = torch.device("cuda", 0), settings_of(preset)
    fabric, parts = Fabric(accelerator="cuda", devices=1, precision=precision), good_parts(device="cuda")
    textures = torch.rand(3, 3, SIDE, SIDE, device="cuda") if preset == "paper" else None
    states, losses, count = [], [], AS_IT_IS + 8
    for graphed in (False, True):
        state = start(settings, fabric, total=40)
        first = copy.deepcopy(state.average)

        def step(todo: Any, state: State = state) -> Tensor:
            return advance(state, todo, parts, settings, fabric, textures)[2]

        work = Replayed(step, device) if graphed else step
        found = []
        for _ in range(count):
            found.append(work(next_iteration(state, len(parts), settings, fabric, textures)).clone())
            state.iteration += 1
        states.append(state)
        losses.append(torch.stack(found).cpu())
    # A GPU's sums have no fixed order, and the steps make much of little.
    torch.testing.assert_close(losses[0], losses[1], rtol=2e-2, atol=2e-3)
    assert apart(states[0].average, states[1].average) < 0.2 * apart(states[0].average, first)
    assert apart(states[0].network, states[1].network) < 0.2 * apart(states[0].network, first)
    assert steps_of(states[0]) == steps_of(states[1]) == {count}


@needs_cuda
@pytest.mark.parametrize("modality", ["rgb+depth", "rgb", "depth"])
def test_a_gpu_and_a_cpu_score_alike(modality: str) -> None:
    settings = settings_of("fast", modality)
    torch.manual_seed(0)
    network = DAS3DNet.from_settings(settings).eval()
    there = TorchEngine(copy.deepcopy(network).to("cuda"), settings.score)
    here = TorchEngine(network, settings.score)
    for _ in range(AS_IT_IS + 2):
        for count in (1, BATCH + 3):
            assert_alike(outputs(there, count, settings), outputs(here, count, settings), 5e-3)  # TF32


@needs_cuda
@pytest.mark.parametrize("begun_on", ["cpu", "cuda"])
def test_a_resumed_training_goes_on_in_graphs(begun_on: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of("fast", "rgb+depth", "training.iterations=20", "training.checkpoint_minutes=1e-9")

    def fabric(device: str) -> Fabric:
        return Fabric(accelerator=device, devices=1)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    first = start(settings, fabric("cpu"), total=20).average
    whole = fit(good_parts(), settings, tmp_path / "whole", fabric=fabric("cuda"))
    with monkeypatch.context() as patch:
        patch.setattr(training, "save_repairs", stop)  # which follows the first checkpoint
        with pytest.raises(KeyboardInterrupt):
            fit(good_parts(), settings, tmp_path / "resumed", fabric=fabric(begun_on))
    resumed = fit(good_parts(), settings, tmp_path / "resumed", fabric=fabric("cuda"), resume=True)
    assert resumed.iteration == 20 and steps_of(resumed) == {20}
    assert apart(whole.average, resumed.average) < 0.3 * apart(whole.average, first)
