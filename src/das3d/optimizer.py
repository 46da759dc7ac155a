"""The optimisers of training: Adam, AdamW, and Muon for the filters with AdamW for all else.

Muon (Jordan et al. 2024) moves a filter bank, seen as a matrix with one row an output channel, along the nearest
orthogonal matrix of its momentum, so that every direction is learnt at the same pace. Here it learns in the same number
of steps what AdamW takes several times as long for (docs/results/experiments.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from das3d.settings import TrainingSettings

MOMENTUM = 0.95
# Of the quintic that drives all singular values towards 1 (Jordan et al. 2024); five rounds bring them to 0.7 to 1.2.
QUINTIC = (3.4445, -4.7750, 2.0315)
ROUNDS = 5


def make_optimizer(network: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """The optimiser that the settings name, over all parameters."""
    decay = 0.0 if settings.optimizer == "adam" else settings.weight_decay
    if settings.optimizer != "muon":
        return torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=decay)
    banks = [p for p in network.parameters() if p.ndim == 4 and p.shape[2:].numel() > 1]
    known = {id(bank) for bank in banks}
    rest = [p for p in network.parameters() if id(p) not in known]
    groups = [{"params": banks, "filters": True}, {"params": rest, "filters": False}]
    return Muon(groups, lr=settings.learning_rate, weight_decay=decay)


class Muon(torch.optim.AdamW):
    """Muon for the parameters of groups with `filters`, AdamW for those of the others.

    Steps are scaled by 0.2 sqrt(max(rows, columns)), which gives them the size of AdamW's (Liu et al. 2025), so that one
    learning rate serves both.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        for group in self.param_groups:
            for bank in group["params"] if group["filters"] else ():
                if bank.grad is None:
                    continue
                state = self.state[bank]
                if not state:
                    state["step"] = torch.tensor(0.0)  # AdamW looks for it when a state is loaded
                    state["momentum"] = torch.zeros_like(bank)
                state["step"] += 1
                state["momentum"].lerp_(bank.grad, 1 - MOMENTUM)
                ahead = bank.grad.lerp(state["momentum"], MOMENTUM)  # Nesterov's
                matrix = ahead.reshape(len(bank), -1)  # (C out, C in h w)
                step = orthogonal(matrix).reshape(bank.shape)
                rate = group["lr"] * 0.2 * max(matrix.shape) ** 0.5
                bank.mul_(1 - group["lr"] * group["weight_decay"]).sub_(step, alpha=rate)
                bank.grad = None  # AdamW leaves alone what has no gradient
        return super().step(closure)


def orthogonal(matrix: Tensor) -> Tensor:
    """About the orthogonal matrix nearest to a (rows, columns) matrix: same singular vectors, singular values near 1.

    Each round of the quintic is a polynomial in x x^T times x, so all but the last product is done on that small square
    matrix, in a third of the time. It takes float32: eigenvalues that bfloat16 makes negative grow twelvefold a round.
    """
    a, b, c = QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    square = x @ x.T
    product = torch.eye(len(square), dtype=square.dtype, device=square.device)
    for _ in range(ROUNDS):
        factor = torch.addmm(square, square, square, beta=b, alpha=c)
        factor.diagonal().add_(a)
        product = factor @ product
        square = factor @ square @ factor
    x = product @ x
    return x.T if tall else x
