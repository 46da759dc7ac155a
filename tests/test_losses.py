"""The losses against scikit-image, PyTorch and their definitions."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity
from torch import Tensor

from das3d import losses
from das3d.losses import depth_loss, focal_loss, rgb_loss, ssim


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["compiled", "tensors"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU takes compiled code where Numba is installed, and all else takes operations on tensors."""
    if request.param == "compiled":
        pytest.importorskip("numba")
    else:
        monkeypatch.setattr(losses, "takes_compiled", lambda _: False)
        monkeypatch.setitem(sys.modules, "das3d.compiled_losses", None)


# ------------------------------------------------------------------------------------------- SSIM, eq. (10)


@pytest.mark.parametrize("strength", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("base", ["noise", "flat", "ramp"])
def test_ssim_is_that_of_scikit_image(base: str, strength: float) -> None:
    shape = (2, 3, 24, 40)
    x = {"noise": noise(*shape, seed=1), "flat": torch.full(shape, 0.4), "ramp": torch.linspace(0, 1, 40).expand(shape)}[
        base
    ]
    y = (x + strength * (noise(*shape, seed=2) - 0.5)).clamp(0, 1)
    ours = ssim(x, y)
    assert ours.shape == shape
    inner = (slice(5, -5), slice(5, -5))  # the rims differ: scikit-image mirrors, convolution pads with zeros
    for one, other, map_of_one in zip(x, y, ours, strict=True):
        _, want = structural_similarity(
            one.double().numpy(), other.double().numpy(), channel_axis=0, data_range=1.0, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False, full=True,
        )  # fmt: skip
        np.testing.assert_allclose(map_of_one[:, *inner], want[:, *inner], atol=2e-4)


def test_ssim_of_equal_images_is_one_and_of_inverted_ones_negative() -> None:
    x = noise(1, 3, 32, 32)
    torch.testing.assert_close(ssim(x, x), torch.ones_like(x))
    assert ssim(x, 1 - x)[..., 5:-5, 5:-5].mean() < -0.5
    torch.testing.assert_close(ssim(x, 0.5 * x), ssim(0.5 * x, x))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("strength", [0.01, 0.3, 1.0])
def test_the_gradient_of_the_rgb_loss_is_that_of_its_definition(strength: float) -> None:
    good = noise(3, 2, 20, 28, seed=1)
    one = (good + strength * (noise(3, 2, 20, 28, seed=2) - 0.5)).clamp(0, 1).requires_grad_()
    other = one.detach().clone().requires_grad_()
    loss, want = rgb_loss(one, good), F.mse_loss(other, good) + 1 - ssim(other, good).mean()
    (3 * loss).backward()
    (3 * want).backward()
    assert one.grad is not None and other.grad is not None
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(one.grad, other.grad, atol=1e-4 * float(other.grad.abs().max()), rtol=1e-3)


@pytest.mark.usefixtures("way")
def test_the_rgb_loss_of_half_precision_gives_a_gradient_of_its_input_type() -> None:
    x = noise(1, 3, 24, 24).bfloat16().requires_grad_()
    rgb_loss(x, noise(1, 3, 24, 24, seed=1)).backward()
    assert x.grad is not None and x.grad.dtype == torch.bfloat16 and x.grad.isfinite().all()


@settings(deadline=None)
@given(st.tuples(*[st.integers(1, n) for n in (3, 3, 30, 30)]), st.floats(0, 1), st.integers(0, 99))
def test_compiled_and_as_tensors_the_rgb_loss_is_the_same(shape: tuple[int, ...], strength: float, seed: int) -> None:
    compiled_losses = pytest.importorskip("das3d.compiled_losses")
    y = noise(*shape, seed=seed)
    x = (y + strength * (noise(*shape, seed=seed + 100) - 0.5)).clamp(0, 1)
    loss, gradient = compiled_losses.rgb_loss_and_gradient(x, y)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "takes_compiled", lambda _: False)
        want, slope = losses.rgb_loss_and_gradient(x.double(), y.double())
    torch.testing.assert_close(loss.double(), want, atol=1e-5, rtol=1e-5)
    assert ((gradient - slope).abs() * x.numel()).max() <= 2e-4 * (slope.abs() * x.numel()).max().clamp(min=1)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_ssim_has_finite_gradients_on_flat_images(value: float) -> None:
    x = torch.full((1, 3, 16, 16), value, requires_grad=True)
    rgb_loss(x, torch.full((1, 3, 16, 16), value)).backward()
    assert x.grad is not None and x.grad.isfinite().all()


# ------------------------------------------------------------------------------------------- eqs. (9) and (10)


def test_repair_losses_are_their_formulas() -> None:
    repaired, good = noise(2, 3, 24, 24, seed=1), noise(2, 3, 24, 24, seed=2)
    square = ((repaired.double() - good.double()) ** 2).mean().float()
    torch.testing.assert_close(depth_loss(repaired, good), square)
    torch.testing.assert_close(rgb_loss(repaired, good), square + 1 - ssim(repaired, good).mean())
    assert float(depth_loss(good, good)) == 0
    assert float(rgb_loss(good, good)) == pytest.approx(0, abs=1e-6)


def test_repair_losses_of_half_precision_networks_are_computed_in_float32() -> None:
    repaired, good = noise(1, 3, 24, 24, seed=1).bfloat16(), noise(1, 3, 24, 24, seed=2)
    for loss in (depth_loss, rgb_loss):
        got = loss(repaired, good)
        assert got.dtype == torch.float32
        assert torch.equal(got, loss(repaired.float(), good))


# ------------------------------------------------------------------------------------------- eq. (11)


@given(st.lists(st.tuples(st.floats(-30, 30, width=32), st.booleans()), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_without_gamma_the_focal_loss_is_binary_cross_entropy(pairs: list[tuple[float, bool]]) -> None:
    logits = torch.tensor([logit for logit, _ in pairs])
    mask = torch.tensor([float(defect) for _, defect in pairs])
    want = F.binary_cross_entropy_with_logits(logits, mask)
    torch.testing.assert_close(focal_loss(logits, mask, gamma=0), want, atol=1e-6, rtol=1e-5)


@given(
    st.lists(st.tuples(st.floats(-15, 15, width=32), st.booleans()), min_size=1, max_size=30),
    st.sampled_from([0.5, 1.0, 2.0, 5.0]),
)
@settings(max_examples=50, deadline=None)
def test_the_focal_loss_is_its_definition(pairs: list[tuple[float, bool]], gamma: float) -> None:
    logits = np.array([logit for logit, _ in pairs])
    defect = np.array([one for _, one in pairs])
    probability = 1 / (1 + np.exp(-logits))
    of_truth = np.where(defect, probability, 1 - probability)
    want = np.mean(-((1 - of_truth) ** gamma) * np.log(of_truth))
    got = focal_loss(torch.from_numpy(logits).float(), torch.from_numpy(defect).float(), gamma)
    assert float(got) == pytest.approx(want, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("size", [0.0, 1.0, 100.0, 1e4])
def test_the_focal_loss_stays_finite_in_value_and_gradient(size: float, gamma: float) -> None:
    logits = torch.tensor([size, -size, size, -size], requires_grad=True)
    loss = focal_loss(logits, torch.tensor([1.0, 1.0, 0.0, 0.0]), gamma)
    loss.backward()
    assert loss.isfinite() and logits.grad is not None and logits.grad.isfinite().all()
    # A wrong pixel is pulled the right way with full strength, however sure the network is of it.
    pull = logits.grad * 4
    assert pull[1] <= 0 <= pull[2]
    if size >= 100:
        assert pull.tolist() == pytest.approx([0, -1, 1, 0], abs=1e-5)
        assert float(loss.detach()) == pytest.approx(size / 2, rel=1e-5)


def test_gamma_takes_weight_from_what_is_easy() -> None:
    easy, hard = torch.tensor([3.0]), torch.tensor([-3.0])
    defect = torch.ones(1)
    shares = [float(focal_loss(easy, defect, gamma) / focal_loss(hard, defect, gamma)) for gamma in (0.0, 1.0, 2.0)]
    assert shares[0] > 10 * shares[1] > 100 * shares[2] > 0


def test_the_focal_loss_of_half_precision_logits_is_computed_in_float32() -> None:
    logits, mask = (8 * noise(1, 1, 8, 8) - 4).bfloat16(), (noise(1, 1, 8, 8, seed=1) > 0.5).float()
    got = focal_loss(logits, mask)
    assert got.dtype == torch.float32
    assert torch.equal(got, focal_loss(logits.float(), mask))
