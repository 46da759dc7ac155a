"""Batch norm over the whole batch where several processes share it.

Each process sees its share of a batch only. With statistics of the shares, two processes would train another model than
one; with those of the whole batch they train the same, within rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn


def share_batch_norm(network: nn.Module, device: torch.device) -> nn.Module:
    """The network with every batch norm replaced by one that measures over all processes; weights keep their names."""
    if device.type == "cuda":
        # PyTorch's own, which knows no other device
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    for name, child in network.named_children():
        if isinstance(child, nn.BatchNorm2d):
            shared = SharedBatchNorm2d(child.num_features, child.eps, child.momentum)
            shared.load_state_dict(child.state_dict())
            setattr(network, name, shared)
        else:
            share_batch_norm(child, device)
    return network


class SharedBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` by the mean and variance of all processes' shares (B, C, H, W), which must have one size."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        assert self.momentum is not None and self.running_mean is not None and self.running_var is not None
        # Squares are taken from near the mean: far from it, their difference would lose the variance to rounding.
        near = (x if x.dtype == torch.float64 else x.float()) - self.running_mean[:, None, None].detach()
        moments = torch.stack([near.mean(dim=(0, 2, 3)), near.square().mean(dim=(0, 2, 3))])  # (2, C)
        offset, square = mean_over_processes(moments)
        variance = (square - offset.square()).clamp_min(0)
        with torch.no_grad():
            count = x.numel() // x.shape[1] * distributed.get_world_size()
            self.running_mean += self.momentum * offset
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)  # unbiased, as PyTorch keeps it
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return ((near - offset[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def mean_over_processes(x: Tensor) -> Tensor:
    """The mean of every process's `x`, through which gradients flow back to every process."""
    return _Mean.apply(x)  # type: ignore[no-untyped-call]


class _Mean(torch.autograd.Function):
    # The gradient of a process's loss by the mean concerns the `x` of all: what each got is averaged in the same way.

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _averaged(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _averaged(gradients[0])


def _averaged(x: Tensor) -> Tensor:
    x = x.detach().clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(x)
    return x / distributed.get_world_size()
