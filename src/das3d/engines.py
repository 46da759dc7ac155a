"""Engines: what computes a trained model. All take and give the same NumPy arrays, so nothing else knows which one runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from das3d.preparation import PreparedScan

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class EngineOutput:
    """What the networks make of a batch of B parts.

    Attributes:
        map: (B, S, S) anomaly map, 0 to 1.
        score: (B,) anomaly score, 0 to 1.
        rgb: (B, 3, S, S) repaired RGB, about 0 to 1; None where the networks see no RGB.
        depth: (B, S, S) repaired depth, normalised; None where the networks see no depth.
    """

    map: Floats
    score: Floats
    rgb: Floats | None
    depth: Floats | None


class Engine(ABC):
    """Computes one model on one device.

    Attributes:
        name: of the library that computes.
        precision: "fp32", "fp16", "bf16" or "int8".
        device: "CPU", or what its maker calls it.
    """

    name: str
    precision: str
    device: str

    @abstractmethod
    def run(self, rgb: NDArray[np.uint8] | None, depth: Floats | None) -> EngineOutput:
        """Maps, scores and repaired images of one batch, of any size.

        Args:
            rgb: (B, 3, S, S) prepared; None where the networks see no RGB.
            depth: (B, 1, S, S) prepared; None where they see no depth.
        """

    def describe(self) -> str:
        """Such as "ONNX Runtime, fp32, CPU"."""
        return f"{self.name}, {self.precision}, {self.device}"


def batch_of(scans: Sequence[PreparedScan], *, rgb: bool, depth: bool) -> tuple[NDArray[np.uint8] | None, Floats | None]:
    """RGB and depth of prepared scans as `Engine.run` takes them; None for a member that the networks do not see."""
    return (
        np.ascontiguousarray(np.stack([scan.rgb for scan in scans]).transpose(0, 3, 1, 2)) if rgb else None,
        np.stack([scan.depth for scan in scans])[:, None] if depth else None,
    )
