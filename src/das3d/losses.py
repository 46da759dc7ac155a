"""The losses of Section 3.3."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from das3d._numba import takes_compiled

WINDOW, SIGMA = 11, 1.5  # of SSIM's Gaussian, pixels
C1, C2 = 0.01**2, 0.03**2


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity map (B, C, S, S) of images in (0, 1), by a Gaussian window (Wang et al. 2004)."""
    return _Similarity(x.float(), y.float()).map


class _Similarity:
    """The similarity of two images, as two fractions above and below their lines, and what its gradient is made of."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y
        blurred = blur(torch.cat([x, y, x * x + y * y, x * y], dim=1))
        self.mean_x, self.mean_y, mean_squares, mean_product = torch.split(blurred, x.shape[1], dim=1)
        squares = self.mean_x**2 + self.mean_y**2
        product = self.mean_x * self.mean_y
        self.brightness_above, self.brightness_below = 2 * product + C1, squares + C1
        self.structure_above, self.structure_below = 2 * (mean_product - product) + C2, mean_squares - squares + C2
        self.map = self.brightness_above * self.structure_above / (self.brightness_below * self.structure_below)

    def gradient(self) -> Tensor:
        """Of the sum of the map by `x`: x acts through its blurred self, its blurred square and the blurred product."""
        whole = 1 / (self.brightness_below * self.structure_below)
        by_square = -self.map / self.structure_below
        by_product = 2 * self.brightness_above * whole
        by_mean = 2 * self.mean_y * (self.structure_above - self.brightness_above) * whole
        by_mean += 2 * self.mean_x * self.map * (1 / self.structure_below - 1 / self.brightness_below)
        # The window is symmetric, so what spreads a gradient back is the blur itself.
        spread = blur(torch.cat([by_mean, by_square, by_product], dim=1))
        mean, square, product = torch.split(spread, self.x.shape[1], dim=1)
        return mean + 2 * self.x * square + self.y * product


def gaussian(device: torch.device | str = "cpu") -> Tensor:
    """SSIM's window along one axis, (WINDOW,); its sum is 1."""
    offsets = torch.arange(WINDOW, device=device, dtype=torch.float32) - WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    return weights / weights.sum()


def blur(images: Tensor) -> Tensor:
    """Images (B, C, S, S) after SSIM's Gaussian, zero beyond their rim.

    In two one-dimensional passes; a two-dimensional one costs as much as a backward pass of the networks.
    """
    kernel = gaussian(images.device).to(images.dtype).expand(images.shape[1], 1, WINDOW)
    images = F.conv2d(images, kernel[..., None], padding=(WINDOW // 2, 0), groups=images.shape[1])
    return F.conv2d(images, kernel[:, :, None], padding=(0, WINDOW // 2), groups=images.shape[1])


def depth_loss(repaired: Tensor, depth: Tensor) -> Tensor:
    """L_recZ of eq. (9), as a mean over pixels and channels."""
    return F.mse_loss(repaired.float(), depth)


def rgb_loss(repaired: Tensor, rgb: Tensor) -> Tensor:
    """L_recI of eq. (10): squared error and 1 - SSIM, both as means over pixels and channels of images (B, C, S, S).

    Only the repaired images, in (0, 1), take a gradient.
    """
    loss: Tensor = _RgbLoss.apply(repaired.float(), rgb.float())  # type: ignore[no-untyped-call]
    return loss


class _RgbLoss(torch.autograd.Function):
    # Left to autograd, the loss keeps two dozen full-size images a pair and reads them again: on a CPU, 4 % of a step.
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        loss, gradient = rgb_loss_and_gradient(x, y)
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0], None


def rgb_loss_and_gradient(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """`rgb_loss` of float32 images (B, C, S, S), and its gradient by `x`."""
    if takes_compiled(x):
        from das3d import compiled_losses

        return compiled_losses.rgb_loss_and_gradient(x, y)
    similarity, apart = _Similarity(x, y), x - y
    loss = apart.square().mean() + 1 - similarity.map.mean()
    return loss, (2 * apart - similarity.gradient()) / x.numel()


def focal_loss(logits: Tensor, mask: Tensor, gamma: float = 2.0) -> Tensor:
    """L_dis of eq. (11): focal loss (Lin et al. 2017) of logits (B, 1, S, S) against a mask in {0, 1}, mean over pixels.

    Written through log-sigmoid, so that it stays finite in its value and gradient for any logit.
    """
    logits = logits.float()
    towards = torch.where(mask > 0.5, logits, -logits)
    log_p, log_rest = F.logsigmoid(towards), F.logsigmoid(-towards)  # log p and log (1 - p)
    return -((gamma * log_rest).exp() * log_p).mean()
