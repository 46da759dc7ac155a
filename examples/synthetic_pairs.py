"""Labelled RGB + depth pairs from good parts alone, for a detector of your own.

das3d demo-data demo/data
python examples/synthetic_pairs.py demo/data
"""

import sys

from torch.utils.data import DataLoader

from das3d import SyntheticPairs, make_settings

if __name__ == "__main__":  # workers are processes, which on some systems read this file again
    settings = make_settings(changes=["preparation.size=128", "synthesis.magnitude_high=0.1"])
    pairs = SyntheticPairs.from_data(sys.argv[1], settings=settings, length=64)
    for batch in DataLoader(pairs, batch_size=16, num_workers=2):
        rgb, depth, mask = batch["rgb"], batch["depth"], batch["mask"]  # (16, 3, 128, 128), (16, 1, 128, 128) twice
        print(f"{int(batch['defective'].sum())} of {len(rgb)} pairs are defective, {mask.mean():.1%} of their pixels")
        # loss = your_detector(torch.cat([rgb, depth], dim=1), mask) ...
