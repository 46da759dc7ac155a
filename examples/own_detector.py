"""A detector of your own between das3d's synthetic pairs and its threshold, verdicts and figures: here a small network.

das3d demo-data demo/data
python examples/own_detector.py demo/data demo/own
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from das3d import Detector, SyntheticPairs, evaluate, find_dataset, make_settings
from das3d.calibration import calibrated
from das3d.engines.torch_engine import TorchEngine
from das3d.losses import focal_loss
from das3d.network import DepthFeatures, Output, block


class OwnNetwork(nn.Module):
    """Any module will do that takes RGB (B, 3, S, S) and depth (B, 1, S, S) and gives an `Output`."""

    def __init__(self) -> None:
        super().__init__()
        self.features = DepthFeatures(relief=True)  # the depth itself, slopes and local relief
        self.fine, self.coarse = block(3 + self.features.channels, 24), block(24, 48)
        self.head = nn.Conv2d(72, 1, 3, padding=1)

    def forward(self, rgb: Tensor, depth: Tensor) -> Output:
        fine = self.fine(torch.cat([rgb, self.features(depth)], dim=1))
        coarse = self.coarse(nn.functional.avg_pool2d(fine, 4))
        coarse = nn.functional.interpolate(coarse, size=fine.shape[2:], mode="bilinear")
        return Output(self.head(torch.cat([fine, coarse], dim=1)), rgb=None, depth=None)  # it repairs nothing


def main(data: Path, out: Path, steps: int) -> None:
    settings = make_settings("demo")  # of preparation, synthesis and score; those of network and training are not used
    pairs = SyntheticPairs.from_data(data, settings=settings, length=8 * steps)
    torch.manual_seed(settings.seed)
    network = OwnNetwork()
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    for batch in DataLoader(pairs, batch_size=8):
        loss = focal_loss(network(batch["rgb"], batch["depth"]).logits, batch["mask"], gamma=2.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"trained {steps} steps, the last with a loss of {loss.item():.4f}")

    detector = Detector(settings, pairs.statistics, TorchEngine(network.eval(), settings.score))
    held_out = find_dataset(data).validation  # good parts that training has not seen
    detector = calibrated(detector, held_out, settings.score.max_false_alarm)
    figures = evaluate(detector, data, out)  # as of any model: exact AU-PRO, maps and scores on disk
    print(detector.threshold.describe())
    print(f"I-AUROC {figures['i_auroc']:.3f}, AU-PRO@0.3 {figures['aupro_30']:.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 200)
