"""A trained detector: one file in, verdicts on new parts out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import das3d
from das3d.arguments import expect_kind, is_number, is_whole, list_of, path_of, shown
from das3d.atomic import write_atomically
from das3d.engines import BATCH, EXPORTED, Engine, EngineOutput, batch_of, open_exported
from das3d.errors import DataError, ModelError, SettingsError, explained
from das3d.files import DepthFormat
from das3d.fingerprints import fingerprint_of
from das3d.layouts import Reading
from das3d.measurement import Statistics
from das3d.parts import Part
from das3d.preparation import PreparedScan, prepare
from das3d.regions import Region, RegionNorms, find_regions
from das3d.scan import Camera, Scan, scan_from_arrays
from das3d.settings import Settings, missing_settings, settings_from_dict
from das3d.threshold import Threshold
from das3d.window import Window

if TYPE_CHECKING:
    from torch import nn

FORMAT = 4
MODEL_FILE = "model.safetensors"
CHECKPOINT_FILE = "checkpoint.pt"  # of a training that goes on, or could
HASH = "weights_sha256"  # of the weights in such a file; those of earlier versions lack it


@dataclass(frozen=True)
class Prediction:
    """What the detector says of one part.

    Attributes:
        name: of the scan.
        score: anomaly score of the part, 0 to 1; higher is more likely defective.
        image: (S, S) float32 anomaly map as the networks gave it, 0 to 1.
        window: what it shows of the frame.
        defective: the verdict; None where the model carries no threshold.
        false_alarm_probability: the probability that a good part scores as high (`Threshold.false_alarm_probability`); None
            likewise.
        regions: of the defect, the largest first; none where the part is good, or the model cannot tell regions.
    """

    name: str
    score: float
    image: NDArray[np.float32]
    window: Window
    defective: bool | None
    false_alarm_probability: float | None = None
    regions: tuple[Region, ...] = ()

    @cached_property
    def map(self) -> NDArray[np.float32]:
        """(H, W) float32 anomaly map on the pixel grid of the scan, 0 to 1.

        It is made when first asked for: what waits to be written stays small, however large the frame.
        """
        return self.window.put_back(self.image)


@dataclass
class Detector:
    """A trained model on an engine, the statistics it was trained with, and a threshold.

    Several threads may predict with one at once.

    Attributes:
        settings: of the run that trained it.
        statistics: measured on its training parts, used unchanged on every scan.
        engine: computes the networks.
        threshold: None where no good parts were held out.
        training: facts of the run, as ``training.json`` has them. For those who read its parts again: ``data`` (absolute
            path), ``layout``, ``category``, ``light`` (None but for Eyecandies), ``depth_format`` (the fields of a
            `DepthFormat`, or None). For people: ``parts`` and ``held_out`` (how many), ``iterations``, ``batch``,
            ``minutes``, ``precision``, ``device``, ``machine``, ``torch`` and ``das3d`` (versions). Empty where no run
            trained it.
        fingerprints: of the parts that it was trained on ("train") and those that the threshold rests on ("held_out"), by
            `fingerprint_of`.
        norms: what good parts show, by which regions are told; None where no good parts were held out.
        calibrations: when the threshold was set and by what, the latest last: ``at`` (UTC), ``data`` (None: by the scores
            that the model keeps), number of ``parts``, ``value``.
    """

    settings: Settings
    statistics: Statistics
    engine: Engine
    threshold: Threshold | None = None
    training: dict[str, Any] = field(default_factory=dict)
    fingerprints: dict[str, list[str]] = field(default_factory=dict)
    norms: RegionNorms | None = None
    calibrations: list[dict[str, Any]] = field(default_factory=list)

    @property
    def network(self) -> nn.Module:
        """The networks themselves, for those who train. Raises ModelError for an exported model, which has none."""
        from das3d.engines.torch_engine import TorchEngine

        if not isinstance(self.engine, TorchEngine):
            raise ModelError(f"expected a model as it was trained, found an exported one ({self.engine.describe()})")
        return self.engine.network

    @property
    def depth_format(self) -> DepthFormat | None:
        """How numbers in the depth files of its training parts became metres; None where each part told it itself."""
        kept = self.training.get("depth_format")
        return DepthFormat(**kept) if kept else None

    def reading(self, *, light: int | None = None, depth_format: DepthFormat | None = None) -> Reading:
        """How parts are found and read as those of its training were, where not told else.

        Args:
            light: as for `find_dataset`.
            depth_format: likewise; what it does not say is as in training (`DepthFormat.over`).

        Returns:
            Arguments of `find_dataset` and `find_folder`.
        """
        if depth_format is not None:
            expect_kind(DepthFormat, depth_format, "depth_format", DataError, giver="DepthFormat.from_unit")
        return {
            "rgb": self.statistics.has_rgb,
            "depth": self.statistics.has_depth,
            "light": self.training.get("light") if light is None else light,
            "depth_format": depth_format.over(self.depth_format) if depth_format else self.depth_format,
            "hold_out": self.settings.training.hold_out,
        }

    def fingerprint_of(self, part: Part) -> str:
        """What the detector knows a part by: a hash of the members that it needs. Errors are those of `Part.read`."""
        expect_kind(Part, part, "part", DataError)
        return fingerprint_of(part, rgb=self.statistics.has_rgb, depth=self.statistics.has_depth)

    def predict(
        self,
        rgb: NDArray[np.generic] | None = None,
        depth: NDArray[np.generic] | None = None,
        *,
        unit: str | float | DepthFormat | None = "m",
        camera: Camera | None = None,
        name: str = "scan",
    ) -> Prediction:
        """Score one part from arrays.

        Args:
            rgb: (H, W, 3) uint8; grey (H, W), RGBA and uint16 will do as well.
            depth: (H, W) depth or (H, W, 3) points; zero, negative and non-finite values are missing.
            unit: of `depth`: "m", "cm", "mm" or "um"; or metres per count; or a `DepthFormat`, such as the `depth_format`
                of this detector. None, which that is where each file told it itself, takes floats as metres.
            camera: intrinsics of `depth`, for areas in mm2; not needed with points.
            name: what messages call this part.

        Raises:
            DataError: a member is missing, has another size than in training, or shows no part or too little of it.
        """
        if rgb is not None and depth is not None:  # what the model never looks at need not fit
            rgb, depth = rgb if self.statistics.has_rgb else None, depth if self.statistics.has_depth else None
        return next(self.predict_scans([scan_from_arrays(rgb, depth, unit=unit, camera=camera, name=name)]))

    def predict_scans(self, scans: Iterable[Scan], batch: int = BATCH) -> Iterator[Prediction]:
        """Score scans one batch at a time, in their order; no more than a batch is held.

        Args:
            scans: any number of them, prepared as they come.
            batch: how many are judged together. A part of a live camera needs 1, or it waits for those behind it.

        Raises:
            DataError: a scan cannot be made, prepared or judged; the predictions before it have been given.
            ModelError: as of `run`.
            SettingsError: `batch` is no whole number from 1 up.
        """
        if not is_whole(batch, 1):  # with 0 it would take in none and give none
            raise SettingsError(f"batch: expected 1 or more scans at a time, found {shown(batch)}")
        if not isinstance(scans, Iterable):
            raise DataError(f"scans: expected a sequence of Scan, such as a list, found {shown(scans)}")
        stream, problem = iter(scans), None
        while problem is None:
            ready: list[PreparedScan] = []
            try:
                for scan in islice(stream, batch):
                    expect_kind(Scan, scan, "scans", DataError, giver="scan_from_arrays")
                    ready.append(prepare(scan, self.statistics, self.settings.preparation).judgeable)
            except DataError as error:
                problem = error
            if ready:
                yield from self.predict_prepared(ready)
            elif problem is None:
                return
        raise problem

    def predict_prepared(self, scans: Sequence[PreparedScan], *, regions: bool = True) -> list[Prediction]:
        """Score one batch of prepared scans, and find the regions of defective parts: two more passes for each of them.

        No scans have no predictions. Errors are those of `run`.
        """
        if not (scans := list_of(PreparedScan, scans, "scans", DataError)):
            return []
        output = self.run(scans)
        chance = self.threshold.false_alarm_probability if self.threshold else lambda score: None
        found: list[tuple[Region, ...]] = [()] * len(scans)
        if regions and self.threshold is not None and self.norms is not None:
            found = find_regions(self.run, scans, output, self.norms, self.threshold, self.statistics, self.settings.score)
        return [
            Prediction(scan.name, score, image, scan.window, self.verdict(score), chance(score), places)
            for scan, score, image, places in zip(scans, output.score.tolist(), output.map, found, strict=True)
        ]

    def run(self, scans: Sequence[PreparedScan]) -> EngineOutput:
        """Maps, scores and repaired images of one batch of prepared scans, on the networks' own grid.

        Raises:
            DataError: there are no scans, or they are none or not as large as the networks' images.
            ModelError: a score or a map is not finite; no threshold would find it too high, so it would pass for good.
        """
        if not (scans := list_of(PreparedScan, scans, "scans", DataError)):
            raise DataError("scans: expected one prepared scan or more, found none")
        side = self.settings.preparation.size
        for scan in scans:
            if scan.depth.shape != (side, side):
                found = " x ".join(map(str, scan.depth.shape))
                raise DataError(f"{scan.name}: expected a scan that is prepared to {side} x {side} pixels, found {found}")
        output = self.engine.run(**batch_of(scans, rgb=self.settings.uses_rgb, depth=self.settings.uses_depth))
        finite = np.isfinite(output.score) & np.isfinite(output.map).all(axis=(1, 2))
        if not finite.all():
            first = int(np.flatnonzero(~finite)[0])
            raise ModelError(
                f"{scans[first].name}: expected a finite score and map, found score {output.score[first]} "
                f"({self.engine.describe()}): the weights are damaged, or numbers too large for this precision"
            )
        return output

    def verdict(self, score: float) -> bool | None:
        if not is_number(score):
            raise DataError(f"score: expected a number, found {shown(score)}")
        return None if self.threshold is None else self.threshold.is_defective(score)

    def save(self, path: Path | str) -> None:
        """Write weights, their hash, settings, statistics, threshold and version into one safetensors file.

        Raises:
            ModelError: `path` is a folder, or the model an exported one.
        """
        file = path_of(path, "path", ModelError)
        if file.is_dir():
            raise ModelError(f"{file}: expected a file for the model, such as {file / MODEL_FILE}, found a folder")
        from safetensors.torch import save

        from das3d.engines.torch_engine import weights_hash

        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.network.state_dict().items()}
        about = self.about() | {HASH: weights_hash(weights)}
        write_atomically(file, save(weights, metadata={"das3d": json.dumps(about)}))

    def about(self) -> dict[str, Any]:
        """All but the weights, as plain values; every model file carries it."""
        return {
            "format": FORMAT,
            "version": das3d.__version__,
            "settings": self.settings.model_dump(mode="json"),
            "statistics": self.statistics.to_dict(),
            "threshold": None if self.threshold is None else self.threshold.to_dict(),
            "training": self.training,
            "calibrations": self.calibrations,
            "fingerprints": self.fingerprints,
            "norms": None if self.norms is None else self.norms.to_dict(),
        }


def model_file(path: Path) -> Path:
    """The model file of a run folder, or the file itself."""
    return path / MODEL_FILE if path.is_dir() else path


def model_hash(path: Path) -> str:
    """SHA-256 of a model: of its file, or of the two files of an OpenVINO model one behind the other."""
    file = model_file(path)
    files = [file, file.with_suffix(".bin")] if file.suffix == ".xml" else [file]
    digest = hashlib.sha256()
    for one in files:
        with one.open("rb") as content:
            while chunk := content.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def load(path: Path | str, device: str = "auto", engine: str = "auto") -> Detector:
    """The detector in a run folder or a model file.

    Args:
        path: a run folder, a safetensors file that `Detector.save` wrote, or an ONNX or OpenVINO (.xml) file that
            `das3d.export` wrote. Nothing is unpickled.
        device: "auto", "cpu", "cuda", "cuda:1", "mps", or a device that OpenVINO knows.
        engine: "torch", "onnxruntime" or "openvino"; "auto" takes the fastest installed one that can compute the file.

    Raises:
        ModelError: there is no model there, or not one that this version, engine and device can compute.
        MissingPackageError: the library that computes this kind of model is not installed.
    """
    path = path_of(path, "path", ModelError)
    device = str(device)  # PyTorch's own devices are taken, too
    file = model_file(path)
    if not file.is_file():
        hint = "; it has no finished training" if path.is_dir() else ""
        if (path / CHECKPOINT_FILE).is_file():
            hint += ", das3d train with --resume goes on with the one that was stopped"
        raise ModelError(f"{path}: expected a run folder with {MODEL_FILE}, or a model file, found none{hint}")
    if file.suffix in EXPORTED:
        exported = open_exported(file, device, engine)
        return Detector(engine=exported, **_facts(file, exported.about))
    if engine not in ("auto", "torch"):
        raise ModelError(f"{file}: expected engine torch for a model as it was trained, found {engine!r}; or export it")
    about = _about_in(file)
    facts = _facts(file, about)
    with explained(f"{file}: a model as it was trained", hint="; or export it where it was trained (das3d export)"):
        from das3d.engines.torch_engine import TorchEngine

        return Detector(engine=TorchEngine.open(file, facts["settings"], device, about.get(HASH)), **facts)


def _about_in(file: Path) -> Any:
    # What `Detector.about` gave when the file was written. Nothing but NumPy is needed to read it.
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as opened:
            about = json.loads((opened.metadata() or {}).get("das3d", "null"))
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(
            f"{file}: expected a das3d model as .safetensors, .onnx or .xml (OpenVINO), found none of these ({error})"
        ) from None
    return about


def _facts(file: Path, about: Any) -> dict[str, Any]:
    # The fields of a Detector but for its engine.
    if not isinstance(about, dict) or "format" not in about:
        raise ModelError(f"{file}: expected a das3d model, found a {file.suffix[1:]} file of something else")
    if about["format"] != FORMAT:
        raise ModelError(
            f"{file}: expected model format {FORMAT}, found {about['format']} (written by das3d {about.get('version')}); "
            "train it again, or use it with the version that trained it"
        )
    try:
        if missing := missing_settings(about["settings"]):
            raise SettingsError(f"no settings {', '.join(missing)}")
        return {
            "settings": settings_from_dict(about["settings"], source="settings"),
            "statistics": Statistics.from_dict(about["statistics"]),
            "threshold": None if about["threshold"] is None else Threshold(**about["threshold"]),
            "training": dict(about["training"]),
            "calibrations": [dict(entry) for entry in about["calibrations"]],
            "fingerprints": dict(about["fingerprints"]),
            "norms": None if about["norms"] is None else RegionNorms(**about["norms"]),
        }
    except (AttributeError, KeyError, TypeError, ValueError, SettingsError) as error:
        reason = "; ".join(str(error).splitlines())
        raise ModelError(
            f"{file}: expected what this version writes beside the weights, found a problem: {reason}; "
            "train it again, or use it with the version that trained it"
        ) from None
