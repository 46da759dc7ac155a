"""The optimisers of training: Adam, AdamW, and Muon for the filters with AdamW for all else.

Muon (Jordan et al. 2024) moves a filter bank, seen as a matrix with one row an output channel, along the nearest
orthogonal matrix of its momentum, so that every direction is learnt at the same pace. For the same result AdamW needs
several times as many steps here (docs/results/experiments.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    # On a GPU the count of steps lies there, so that a step can be captured and replayed.
    kind = next(network.parameters()).device.type
    device: dict[str, Any] = {"capturable": kind == "cuda", "fused": kind in ("cuda", "cpu") or None}
    if settings.optimizer != "muon":
        return torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=decay, **device)
    banks = [p for p in network.parameters() if p.ndim == 4 and p.shape[2:].numel() > 1]
    known = {id(bank) for bank in banks}
    rest = [p for p in network.parameters() if id(p) not in known]
    groups = [{"params": banks, "filters": True}, {"params": rest, "filters": False}]
    return Muon(groups, lr=settings.learning_rate, weight_decay=decay, **device)


class Muon(torch.optim.AdamW):
    """Muon for the parameters of groups with `filters`, AdamW for those of the others.

    Steps are scaled by 0.2 sqrt(max(rows, columns)), which gives them the size of AdamW's (Liu et al. 2025), so that one
    learning rate serves both.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:  # here and not in AdamW, which would come to see the gradients of the filters again
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            banks = [bank for bank in group["params"] if bank.grad is not None] if group["filters"] else []
            if not banks:
                continue
            for bank in banks:
                if not self.state[bank]:
                    # AdamW looks for the step when a state is loaded.
                    step = torch.zeros((), device=bank.device if group["capturable"] else "cpu")
                    self.state[bank] = {"step": step, "momentum": torch.zeros_like(bank)}
                self.state[bank]["step"] += 1
            momenta, gradients = [self.state[bank]["momentum"] for bank in banks], [bank.grad for bank in banks]
            torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
            ahead = torch._foreach_lerp(momenta, gradients, 1 - MOMENTUM)  # Nesterov's
            torch._foreach_mul_(banks, 1 - group["lr"] * group["weight_decay"])
            steps = [as_matrix(one, bank) for one, bank in zip(ahead, banks, strict=True)]
            for bank, step, factor in zip(banks, steps, polar_factors(steps), strict=True):
                factor = factor * (0.2 * max(step.shape) ** 0.5 * group["lr"])
                as_matrix(bank, bank).addmm_(*((factor, step) if is_wide(step) else (step, factor)), alpha=-1)
            for bank in banks:
                bank.grad = None  # AdamW leaves alone what has no gradient
        super().step()
        return loss


def as_matrix(values: Tensor, bank: Tensor) -> Tensor:
    """Values of a filter bank (C out, C in, h, w) as a matrix with one row an output channel.

    Its columns come in the order in which the bank lies in memory, so that of the bank itself it is a view.
    """
    if bank.is_contiguous(memory_format=torch.channels_last):
        values, bank = values.permute(0, 2, 3, 1), bank.permute(0, 2, 3, 1)
    assert bank.is_contiguous(), "or a copy would be changed instead of the bank"
    return values.reshape(len(values), -1)


def is_wide(matrix: Tensor) -> bool:
    return matrix.shape[0] <= matrix.shape[1]


def polar_factors(matrices: Sequence[Tensor]) -> list[Tensor]:
    """What makes each (rows, columns) matrix about orthogonal: same singular vectors, singular values near 1.

    A wide matrix is to be multiplied by it from the left, a tall one from the right. Each round of the quintic is a
    polynomial in x x^T times x, so all of them are done on that small square matrix, in a third of the time, and at once
    for all that have one of the same size. It takes float32: eigenvalues that bfloat16 makes negative grow twelvefold a
    round.
    """
    result = list(matrices)
    sides = [min(matrix.shape) for matrix in matrices]
    for side in set(sides):
        same = [i for i, own in enumerate(sides) if own == side]
        wide = [matrices[i] if is_wide(matrices[i]) else matrices[i].T for i in same]
        squares = torch.stack([x @ x.T for x in wide])
        scales = 1 / (squares.diagonal(dim1=1, dim2=2).sum(dim=1).sqrt() + 1e-7)[:, None, None]  # 1 / Frobenius norms
        for i, product in zip(same, _quintic(squares * scales**2) * scales, strict=True):
            result[i] = product
    return result


def _quintic(square: Tensor) -> Tensor:
    # All rounds on x x^T, (B, rows, rows): what to multiply x by.
    def factor(square: Tensor) -> Tensor:
        a, b, c = QUINTIC
        result = torch.baddbmm(square, square, square, beta=b, alpha=c)
        result.diagonal(dim1=1, dim2=2).add_(a)
        return result

    product = last = factor(square)
    for _ in range(ROUNDS - 1):
        square = last @ square @ last
        last = factor(square)
        product = last @ product
    return product
