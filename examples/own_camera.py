"""Save scans of any depth camera as a folder that das3d reads. Replace `scans` by your camera.

python examples/own_camera.py mydata
das3d inspect mydata
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

COUNT = 0.0001  # metres for each count of the depth image


def scans(parts: int = 12) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """RGB (H, W, 3) uint8 and depth (H, W) metres, 0 where nothing was measured: here of rendered parts."""
    from das3d.demo import render_part

    for number in range(parts):
        part = render_part((1, "camera", "good", number), size=(96, 128))
        yield part.rgb, part.points[..., 2]


def save_part(folder: Path, name: str, rgb: np.ndarray, depth: np.ndarray) -> None:
    measured = np.isfinite(depth) & (depth > 0)
    counts = np.where(measured, np.rint(np.where(measured, depth, 0) / COUNT), 0)
    assert counts.max() < 65536, "too far for this COUNT"
    cv2.imwrite(str(folder / f"{name}_rgb.png"), cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    cv2.imwrite(str(folder / f"{name}_depth.png"), counts.astype(np.uint16))


def main(root: Path) -> None:
    good = root / "good"
    good.mkdir(parents=True, exist_ok=True)
    for number, (rgb, depth) in enumerate(scans()):
        save_part(good, f"{number:04}", rgb, depth)
    (root / "dataset.yaml").write_text(f"depth_scale: {COUNT}  # metres for each count\n")
    print(f"{number + 1} parts in {root}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
