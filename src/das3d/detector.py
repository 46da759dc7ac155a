"""A trained detector: one file in, verdicts on new parts out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

import das3d
from das3d.batches import GoodParts
from das3d.cache import write_atomically
from das3d.errors import ModelError, SettingsError
from das3d.network import DAS3DNet
from das3d.preparation import PreparedScan, Statistics, prepare
from das3d.scan import Scan, scan_from_arrays
from das3d.settings import ScoreSettings, Settings, settings_from_dict
from das3d.threshold import Threshold

FORMAT = 1
MODEL_FILE = "model.safetensors"


@dataclass(frozen=True)
class Prediction:
    """What the detector says of one part.

    Attributes:
        name: of the scan.
        score: anomaly score of the part, 0 to 1; higher is more likely defective.
        map: (H, W) float32 anomaly map on the pixel grid of the scan, 0 to 1.
        defective: the verdict; None where the model carries no threshold.
    """

    name: str
    score: float
    map: NDArray[np.float32]
    defective: bool | None


@dataclass
class Detector:
    """Networks, the statistics they were trained with, and a threshold.

    Attributes:
        settings: of the run that trained it.
        statistics: measured on its training parts, used unchanged on every scan.
        network: in evaluation mode, on its device.
        threshold: None where no good parts were held out.
        training: facts for people: data, category, parts, iterations, minutes, machine.
    """

    settings: Settings
    statistics: Statistics
    network: DAS3DNet
    threshold: Threshold | None = None
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def predict(
        self,
        rgb: NDArray[np.generic] | None = None,
        depth: NDArray[np.generic] | None = None,
        *,
        unit: str = "m",
        name: str = "scan",
    ) -> Prediction:
        """Score one part from arrays.

        Args:
            rgb: (H, W, 3) uint8.
            depth: (H, W) depth or (H, W, 3) points; zero, negative and non-finite values are missing.
            unit: of `depth`: "m", "cm", "mm" or "um".
            name: what messages call this part.

        Raises:
            DataError: a member is missing, has another size than in training, or shows no part.
        """
        return next(self.predict_scans([scan_from_arrays(rgb, depth, unit=unit, name=name)]))

    def predict_scans(self, scans: Iterable[Scan], batch: int = 8) -> Iterator[Prediction]:
        """Score scans one batch at a time, in their order; no more than a batch is held."""
        stream = iter(scans)
        while chunk := list(islice(stream, batch)):
            yield from self.predict_prepared([prepare(scan, self.statistics, self.settings.preparation) for scan in chunk])

    def predict_prepared(self, scans: Sequence[PreparedScan]) -> list[Prediction]:
        """Score one batch of prepared scans."""
        maps = self.maps(GoodParts.from_scans(list(scans), self.device))
        scores = part_scores(maps, self.settings.score).tolist()
        return [
            Prediction(scan.name, score, scan.window.put_back(image), self.verdict(score))
            for scan, score, image in zip(scans, scores, maps.cpu().numpy(), strict=True)
        ]

    def maps(self, parts: GoodParts) -> Tensor:
        """Anomaly maps (B, S, S) float32 in (0, 1) of prepared parts on this device."""
        rgb, depth = parts.rgb.float() / 255, parts.depth
        flips: list[list[int]] = [[], [3], [2], [2, 3]] if self.settings.score.flips else [[]]
        with torch.inference_mode():
            return torch.stack([
                self.network(rgb.flip(axes), depth.flip(axes)).logits.float().sigmoid().flip(axes)[:, 0]
                for axes in flips
            ]).mean(dim=0)  # fmt: skip

    def verdict(self, score: float) -> bool | None:
        return None if self.threshold is None else self.threshold.is_defective(score)

    def save(self, path: Path) -> None:
        """Write weights, settings, statistics, threshold and version into one safetensors file."""
        from safetensors.torch import save

        about = {
            "format": FORMAT,
            "version": das3d.__version__,
            "settings": self.settings.model_dump(mode="json"),
            "statistics": self.statistics.to_dict(),
            "threshold": None if self.threshold is None else self.threshold.to_dict(),
            "training": self.training,
        }
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.network.state_dict().items()}
        write_atomically(path, save(weights, metadata={"das3d": json.dumps(about)}))


def part_scores(maps: Tensor, settings: ScoreSettings) -> Tensor:
    """Scores (B,) of maps (B, S, S): the maximum of the mean-filtered map."""
    if settings.window > 1:
        maps = F.avg_pool2d(maps[:, None], settings.window, stride=1, padding=settings.window // 2, count_include_pad=False)
    return maps.flatten(1).amax(dim=1)


def load(path: Path | str, device: str = "auto") -> Detector:
    """The detector in a run folder or a model file.

    Args:
        path: a run folder, or a safetensors file that `Detector.save` wrote. Nothing is unpickled.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".

    Raises:
        ModelError: there is no model there, or not one that this version can read.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    file = path / MODEL_FILE if path.is_dir() else path
    if not file.is_file():
        hint = "; it has no finished training" if path.is_dir() else ""
        raise ModelError(f"{path}: expected a run folder with {MODEL_FILE}, or a model file, found none{hint}")
    try:
        with safe_open(file, framework="pt") as opened:
            about = json.loads((opened.metadata() or {}).get("das3d", "null"))
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (no mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{file}: expected a das3d model as safetensors, found {error}") from None
    if not isinstance(about, dict) or "format" not in about:
        raise ModelError(f"{file}: expected a das3d model, found a safetensors file of something else")
    if about["format"] != FORMAT:
        raise ModelError(
            f"{file}: expected model format {FORMAT}, found {about['format']} (written by das3d {about.get('version')})"
        )
    try:
        settings = settings_from_dict(about["settings"], source="settings")
        statistics = Statistics.from_dict(about["statistics"])
        threshold = None if about["threshold"] is None else Threshold(**about["threshold"])
        training = dict(about["training"])
    except (KeyError, TypeError, ValueError, SettingsError) as error:
        reason = "; ".join(str(error).splitlines())
        raise ModelError(
            f"{file}: expected what this version writes beside the weights, found a problem: {reason}"
        ) from None
    network = DAS3DNet.from_settings(settings)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ModelError(f"{file}: weights do not fit the settings beside them: {str(error).splitlines()[0]}") from None
    network = network.eval().to(choose_device(device), memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Detector(settings, statistics, network, threshold, training)


def choose_device(device: str = "auto") -> torch.device:
    """The device that a user's word means. Raises ModelError where there is none such."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]  # PyTorch goes on for pages
        raise ModelError(f"device: expected auto, cpu or a device of this machine, found {device!r} ({reason})") from None
    return chosen
