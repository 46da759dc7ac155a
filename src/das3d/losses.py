"""The losses of Section 3.3."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def ssim(x: Tensor, y: Tensor, window: int = 11, sigma: float = 1.5) -> Tensor:
    """Structural similarity map (B, C, S, S) of images in (0, 1), by a Gaussian window (Wang et al. 2004).

    The window is applied as two one-dimensional passes; a two-dimensional one costs as much as a backward pass.
    """
    channels = x.shape[1]
    offsets = torch.arange(window, device=x.device, dtype=torch.float32) - window // 2
    weights = torch.exp(-(offsets**2) / (2 * sigma**2))
    weights = weights / weights.sum()

    def blur(t: Tensor) -> Tensor:
        kernel = weights.expand(t.shape[1], 1, window)
        t = F.conv2d(t, kernel[..., None], padding=(window // 2, 0), groups=t.shape[1])
        return F.conv2d(t, kernel[:, :, None], padding=(0, window // 2), groups=t.shape[1])

    x, y = x.float(), y.float()
    blurred = blur(torch.cat([x, y, x * x, y * y, x * y], dim=1))
    mean_x, mean_y, xx, yy, xy = torch.split(blurred, channels, dim=1)
    variance_x, variance_y, covariance = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    return ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    )


def depth_loss(repaired: Tensor, depth: Tensor) -> Tensor:
    """L_recZ of eq. (9), as a mean over pixels and channels."""
    return F.mse_loss(repaired.float(), depth)


def rgb_loss(repaired: Tensor, rgb: Tensor) -> Tensor:
    """L_recI of eq. (10): squared error and 1 - SSIM, both as means over pixels and channels."""
    repaired = repaired.float()
    return F.mse_loss(repaired, rgb) + (1 - ssim(repaired, rgb)).mean()


def focal_loss(logits: Tensor, mask: Tensor, gamma: float = 2.0) -> Tensor:
    """L_dis of eq. (11): focal loss (Lin et al. 2017) of logits (B, 1, S, S) against a mask in {0, 1}, mean over pixels.

    Written through log-sigmoid, so that it stays finite in its value and gradient for any logit.
    """
    logits = logits.float()
    towards = torch.where(mask > 0.5, logits, -logits)
    log_p, log_rest = F.logsigmoid(towards), F.logsigmoid(-towards)  # log p and log (1 - p)
    return -((gamma * log_rest).exp() * log_p).mean()
