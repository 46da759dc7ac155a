"""The three networks: shapes, the paper's form, what the discriminator sees, where gradients go, the depth features."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor, nn

from das3d.losses import depth_loss, focal_loss, rgb_loss
from das3d.network import (
    CoarseLevel,
    DAS3DNet,
    DepthFeatures,
    FineLevel,
    Output,
    RepairNet,
    _Enlarged,
    sums_along,
    upsample,
)
from das3d.settings import PRESETS, Settings, make_settings

MODALITIES = ("rgb+depth", "rgb", "depth")


def narrow(preset: Any, *changes: str, modality: Any = "rgb+depth") -> Settings:
    """A preset with its number of levels and its switches, but few channels and pixels."""
    network = make_settings(preset).network
    return make_settings(
        preset,
        modality=modality,
        changes=[
            "preparation.size=32",
            f"network.repair_widths={[4 + 2 * i for i in range(len(network.repair_widths))]}",
            f"network.discriminator_widths={[6 + 2 * i for i in range(len(network.discriminator_widths))]}",
            f"network.fuse_width={min(network.fuse_width, 8)}",
            *changes,
        ],
    )


def fresh(settings: Settings, seed: int = 0) -> DAS3DNet:
    torch.manual_seed(seed)
    return DAS3DNet.from_settings(settings)


def images(count: int, side: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, side, side, generator=generator), torch.rand(count, 1, side, side, generator=generator)


def parameters(module: nn.Module | None) -> int:
    assert module is not None
    return sum(one.numel() for one in module.parameters())


def loss_of(network: DAS3DNet, output: Output, rgb: Tensor, depth: Tensor) -> Tensor:
    loss = focal_loss(output.logits, (rgb[:, :1] > 0.5).float())
    if output.rgb is not None:
        loss = loss + rgb_loss(output.rgb, 1 - rgb)
    if output.depth is not None:
        loss = loss + depth_loss(output.depth, network.depth_features(1 - depth))
    return loss


# ------------------------------------------------------------------------------------------- shapes


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("preset", list(PRESETS))
def test_every_preset_and_modality_maps_every_pixel(preset: str, modality: str) -> None:
    settings = narrow(preset, modality=modality)
    network = fresh(settings)
    rgb, depth = images(2, 64)
    output = network(rgb if settings.uses_rgb else None, depth if settings.uses_depth else None)
    assert output.logits.shape == (2, 1, 64, 64)
    assert (network.repair_rgb is not None) == (output.rgb is not None) == settings.uses_rgb
    assert (network.repair_depth is not None) == (output.depth is not None) == settings.uses_depth
    if output.rgb is not None:
        assert output.rgb.shape == rgb.shape
    if output.depth is not None:
        assert output.depth.shape == network.depth_features(depth).shape


@pytest.mark.parametrize("stem", [1, 2, 4])
@pytest.mark.parametrize("levels", [3, 5, 6])
def test_a_side_that_the_settings_allow_passes_through(stem: int, levels: int) -> None:
    side = math.lcm(stem * 2 ** (levels - 1), 32)
    widths = [4] * levels
    settings = narrow("fast", f"network.stem={stem}", f"preparation.size={side}", f"network.repair_widths={widths}")
    with torch.inference_mode():
        output = fresh(settings).eval()(*images(1, side))
    assert output.logits.shape == (1, 1, side, side) and output.logits.isfinite().all()


def test_an_unused_modality_does_not_change_the_output() -> None:
    rgb, depth = images(2, 32)
    for modality, one, other in (("rgb", (rgb, depth), (rgb, None)), ("depth", (rgb, depth), (None, depth))):
        network = fresh(narrow("fast", modality=modality)).eval()
        assert torch.equal(network(*one).logits, network(*other).logits)


def test_a_part_gets_the_same_map_alone_and_in_a_batch() -> None:
    network = fresh(narrow("fast"))
    rgb, depth = images(5, 64)
    network(rgb, depth)  # batch norm sees something
    network.eval()
    together = network(rgb, depth)
    alone = network(rgb[3:4], depth[3:4])
    torch.testing.assert_close(alone.logits, together.logits[3:4], atol=1e-4, rtol=1e-4)


def test_levels_that_convolve_first_are_those_of_the_paper_where_images_are_even() -> None:
    torch.manual_seed(0)
    fine, coarse = FineLevel(6, 4, 5).eval(), CoarseLevel(6, 4, 5).eval()
    first = fine[0].weight.data  # (5, 6 + 4, 3, 3)
    coarse.below.weight.data, coarse.skip.weight.data = first[:, :6], first[:, 6:]
    coarse.norm.load_state_dict(fine[1].state_dict())
    for own, other in zip(coarse.rest, list(fine)[2:], strict=True):
        own.load_state_dict(other.state_dict())
    below, skip = torch.rand(2, 6, 1, 1).expand(-1, -1, 8, 8), torch.rand(2, 4, 16, 16)
    found, wanted = coarse(below, skip), fine(below, skip)
    assert found.shape == wanted.shape == (2, 5, 16, 16)
    inner = (..., slice(6, 10), slice(6, 10))  # the rim differs, as zeros beyond it are enlarged too
    torch.testing.assert_close(found[inner], wanted[inner], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found, wanted, atol=1e-3)


# ------------------------------------------------------------------------------------------- the paper's form


def test_the_paper_preset_has_the_widths_of_draem() -> None:
    with torch.device("meta"):
        network = DAS3DNet.from_settings(make_settings("paper"))
    assert network.repair_rgb is not None and network.repair_depth is not None
    for net in (network.repair_rgb, network.repair_depth):
        # DRAEM's has 69.0 M: one more convolution follows each of its upsamplings.
        assert 0.9 * 69.0e6 < parameters(net) < 69.0e6
        assert len(net.encoder) == 5 and not net.skips and net.stem == 1
    assert network.depth_features.channels == 1
    discriminator = network.discriminator
    assert discriminator.project is None
    assert [layer[0].in_channels for layer in discriminator.encoder] == [2 * (128 + 256 + 256 + 128), 64, 128, 256, 512]
    assert [layer[0].out_channels for layer in discriminator.encoder] == [64, 128, 256, 512, 512]


def test_the_fast_preset_is_far_smaller() -> None:
    with torch.device("meta"):
        assert parameters(DAS3DNet.from_settings(make_settings("fast"))) < 7e6


def through_an_empty_bottleneck(net: RepairNet, image: Tensor) -> Tensor:
    handle = net.encoder[-1].register_forward_hook(lambda module, given, out: torch.zeros_like(out))
    try:
        return net(image).image
    finally:
        handle.remove()


def test_without_skips_the_repair_nets_know_only_their_bottleneck() -> None:
    net = fresh(narrow("paper")).repair_rgb  # in training mode: batch norm keeps the signal of untrained layers up
    assert net is not None
    one, other = images(2, 32, seed=1)[0], images(2, 32, seed=2)[0]
    assert not torch.allclose(net(one).image, net(other).image)
    assert torch.equal(through_an_empty_bottleneck(net, one), through_an_empty_bottleneck(net, other))


def test_with_skips_the_repair_nets_start_as_the_identity_and_see_past_the_bottleneck() -> None:
    net = fresh(narrow("fast", "network.skips=true")).repair_rgb
    assert net is not None
    one, other = images(2, 32, seed=1)[0], images(2, 32, seed=2)[0]
    assert torch.equal(net(one).image, one)
    nn.init.normal_(net.head.weight, std=0.1)
    corrections = [through_an_empty_bottleneck(net, image) - image for image in (one, other)]
    assert not torch.allclose(*corrections)


# ------------------------------------------------------------------------------------------- what the discriminator sees


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("preset", ["fast", "paper"])
def test_the_discriminator_sees_the_first_two_and_last_two_features_of_each_repair_net(preset: str, modality: str) -> None:
    settings = narrow(preset, modality=modality)
    network = fresh(settings).eval()
    features: list[Tensor] = []
    given: list[list[Tensor]] = []
    for net in (network.repair_rgb, network.repair_depth):
        if net is not None:
            for layer in (net.encoder[0], net.encoder[1], net.decoder[-2], net.decoder[-1]):
                layer.register_forward_hook(lambda module, args, out: features.append(out))
    network.discriminator.register_forward_pre_hook(lambda module, args: given.append(args[0]))
    network(*images(1, 64))
    (taps,) = given
    nets = int(settings.uses_rgb) + int(settings.uses_depth)
    assert len(features) == 4 * nets
    assert all(tap.requires_grad for tap in taps)  # eq. (13): trained jointly
    per_net = len(taps) // nets
    assert per_net == 4 + int(settings.network.skips)  # with skips the correction is one more
    for net_index in range(nets):
        for tap, feature in zip(taps[net_index * per_net :], features[net_index * 4 : net_index * 4 + 4], strict=False):
            assert torch.equal(tap, feature)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
@examples(max_examples=40, deadline=None)
def test_matrix_products_give_the_gradient_of_enlarging(h: int, w: int, rows: int, columns: int, channels: int) -> None:
    generator = torch.Generator().manual_seed(h * 100 + w)
    x = torch.randn(2, channels, h, w, generator=generator, dtype=torch.float64, requires_grad=True)
    size = (h * rows, w * columns)
    above = torch.randn(2, channels, *size, generator=generator, dtype=torch.float64)
    found = []
    for enlarge in (upsample, _Enlarged.apply):
        enlarge(x, size).backward(above)
        assert x.grad is not None
        found.append(x.grad.clone())
        x.grad = None
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-5)  # the matrices are made in float32


def test_projecting_before_upsampling_is_a_1x1_convolution_of_the_concatenation() -> None:
    discriminator = fresh(narrow("fast", "network.direct=false")).discriminator
    assert discriminator.project is not None
    taps = features_for(discriminator)
    upsampled = [F.interpolate(tap, size=(16, 16), mode="bilinear", align_corners=False) for tap in taps]
    (fused,) = discriminator.joining(taps, 0, (16, 16))
    torch.testing.assert_close(fused, projected(discriminator, upsampled, range(len(taps))), atol=1e-5, rtol=1e-4)


def test_features_join_a_discriminator_that_looks_at_the_images_where_they_are_as_fine_as_it() -> None:
    discriminator = fresh(narrow("fast", "network.stem=4", "network.discriminator_stem=2")).discriminator
    taps = features_for(discriminator)
    fine, coarse = [i for i in range(len(taps)) if i % 4 in (0, 3)], [i for i in range(len(taps)) if i % 4 in (1, 2)]
    for level, (joined, size) in enumerate([([], 32), (fine, 16), (coarse, 8)]):
        found = discriminator.joining(taps, level, (size, size))
        assert len(found) == (1 if joined else 0)
        for features in found:
            want = projected(discriminator, [taps[i] for i in joined], joined)
            torch.testing.assert_close(features, want, atol=1e-5, rtol=1e-4)


def features_for(discriminator: Any) -> list[Tensor]:
    """What the repair nets would give: of each net two coarse features between two fine ones."""
    generator = torch.Generator().manual_seed(0)
    sizes = [16 if i % 4 in (0, 3) else 8 for i in range(len(discriminator.project))]
    return [
        torch.rand(2, int(layer.in_channels), size, size, generator=generator)
        for layer, size in zip(discriminator.project, sizes, strict=True)
    ]


def projected(discriminator: Any, features: list[Tensor], which: Iterable[int]) -> Tensor:
    """The 1 x 1 convolution of features that lie at one resolution."""
    layers = [discriminator.project[i] for i in which]
    weight = torch.cat([layer.weight for layer in layers], dim=1)
    return F.conv2d(torch.cat(features, dim=1), weight, torch.stack([layer.bias for layer in layers]).sum(dim=0))


def test_without_projection_the_features_are_concatenated_at_one_resolution() -> None:
    discriminator = fresh(narrow("paper")).discriminator
    taps = [torch.rand(1, 3, 16, 16), torch.rand(1, 5, 8, 8)]
    discriminator.level_of = [0, 0]
    first, second = discriminator.joining(taps, 0, (16, 16))
    assert torch.equal(first, taps[0]) and second.shape == (1, 5, 16, 16)
    torch.testing.assert_close(second.mean(), taps[1].mean(), atol=0.02, rtol=0)


# ------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("preset", list(PRESETS))
def test_gradients_reach_every_parameter(preset: str, modality: str) -> None:
    network = fresh(narrow(preset, modality=modality))
    rgb, depth = images(4, 32)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    for _ in range(2):  # corrections start from zero, so what reads them learns from the second step on
        optimizer.zero_grad()
        loss_of(network, network(rgb, depth), rgb, depth).backward()
        optimizer.step()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_the_discriminator_teaches_the_repair_nets() -> None:
    network = fresh(narrow("paper"))
    rgb, depth = images(4, 32)
    focal_loss(network(rgb, depth).logits, (rgb[:, :1] > 0.5).float()).backward()
    for net in (network.repair_rgb, network.repair_depth):
        assert net is not None
        for layer in (*net.encoder, *net.decoder):
            assert layer[0].weight.grad is not None and layer[0].weight.grad.any()
        assert net.head.weight.grad is None  # what it makes of the last feature is no feature of the paper's


def test_a_few_steps_lower_the_loss() -> None:
    network = fresh(narrow("fast"))
    rgb, depth = images(4, 32)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = loss_of(network, network(rgb, depth), rgb, depth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


# ------------------------------------------------------------------------------------------- depth features


def test_without_relief_the_network_sees_depth_alone() -> None:
    depth = images(2, 32)[1]
    features = DepthFeatures(relief=False)
    assert features.channels == 1 and torch.equal(features(depth), depth)


@given(seed=st.integers(0, 1000), offset=st.floats(-1, 1), side=st.sampled_from([32, 96]))
@examples(max_examples=15, deadline=None)
def test_slopes_and_relief_do_not_see_how_far_away_the_part_is(seed: int, offset: float, side: int) -> None:
    depth = images(1, side, seed)[1]
    features = DepthFeatures(relief=True)
    near, far = features(depth), features(depth + offset)
    assert near.shape == (1, features.channels, side, side) == (1, 4, side, side)
    assert torch.equal(near[:, :1], depth)
    torch.testing.assert_close(far[:, 1:], near[:, 1:], atol=2e-4, rtol=0)


def test_slopes_are_depth_ranges_a_side_at_every_resolution() -> None:
    features = DepthFeatures(relief=True)
    for side in (32, 128):
        axis = (torch.arange(side) + 0.5) / side
        plane = (0.7 * axis[None, :] - 0.3 * axis[:, None]).expand(1, 1, side, side)
        inner = features(plane)[0, :, 5:-5, 5:-5]
        torch.testing.assert_close(inner[1], torch.tensor(math.tanh(0.7 * 0.2)).expand_as(inner[1]), atol=1e-4, rtol=0)
        torch.testing.assert_close(inner[2], torch.tensor(math.tanh(-0.3 * 0.2)).expand_as(inner[2]), atol=1e-4, rtol=0)
        torch.testing.assert_close(inner[3], torch.zeros_like(inner[3]), atol=1e-4, rtol=0)


def test_relief_is_the_height_above_the_mean_around_it() -> None:
    side = 96
    depth = (0.5 + 0.01 * images(1, side)[1]).double()
    around = ndimage.uniform_filter(depth[0, 0].numpy(), 2 * round(side / 24 / 2) + 1, mode="nearest")
    want = np.tanh(32 * (depth[0, 0].numpy() - around))
    np.testing.assert_allclose(DepthFeatures(relief=True)(depth)[0, 3], want, atol=1e-9)


@given(length=st.integers(1, 23), more=st.integers(0, 9), axis=st.sampled_from([-1, -2]))
def test_sums_along_are_those_of_windows(length: int, more: int, axis: int) -> None:
    x = torch.rand(2, 3, length + more, length + more, generator=torch.Generator().manual_seed(more))
    want = x.unfold(axis, length, 1).sum(dim=-1)
    torch.testing.assert_close(sums_along(x, length, axis), want)


def test_a_small_dent_is_plainer_in_the_relief_than_in_the_depth() -> None:
    axis = torch.arange(192.0) - 96
    dent = 0.01 * torch.exp(-(axis[:, None] ** 2 + axis[None, :] ** 2) / (2 * 3.0**2))
    ramp = torch.linspace(0.2, 0.8, 192).expand(192, 192)
    features = DepthFeatures(relief=True)
    change = (features((ramp + dent)[None, None]) - features(ramp[None, None])).abs().amax(dim=(0, 2, 3))
    assert (change[1:] > 5 * change[0]).all()


def test_presets_differ_in_size_as_intended() -> None:
    sizes = []
    presets: tuple[Any, ...] = ("demo", "fast", "paper")
    for preset in presets:
        with torch.device("meta"):
            sizes.append(parameters(DAS3DNet.from_settings(make_settings(preset))))
    assert all(2 * small < large for small, large in pairwise(sizes))
