"""Engines: what computes a trained model. All take and give the same NumPy arrays, so nothing else knows which one runs."""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from das3d.choices import EngineChoice
from das3d.errors import ModelError, explained
from das3d.preparation import PreparedScan

Floats = NDArray[np.float32]
Members = dict[str, NDArray[Any]]  # what the networks see of a batch: those arguments of `Engine.run` that are there

# The outputs of an exported graph in the order of EngineOutput; a repaired image is missing where its modality is not used.
OUTPUTS = ("map", "score", "repaired_rgb", "repaired_depth")
EXPORTED = (".onnx", ".xml")
SEAL, SEALED = "das3d_sha256", "sealed"  # the entry that ends an ONNX file of ours, and where "export" says that it has one
BATCH = 8  # parts that are computed at a time, where there are many

T = TypeVar("T")


def in_batches(items: Iterable[T], size: int = BATCH) -> Iterator[list[T]]:
    """The items in their order, up to `size` at a time; no more than these are held."""
    stream = iter(items)
    while batch := list(islice(stream, size)):
        yield batch


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


def given(rgb: NDArray[np.uint8] | None, depth: Floats | None) -> Members:
    """Those arguments of `Engine.run` that are there."""
    return {name: array for name, array in (("rgb", rgb), ("depth", depth)) if array is not None}


def size_of(members: Members) -> int:
    """How many parts a batch has."""
    return len(next(iter(members.values())))


def side_by_side(pool: Executor, compute: Callable[[Members], EngineOutput], members: Members) -> EngineOutput:
    """What `compute` gives for a batch whose parts are computed by the threads of a pool, each part by one thread.

    With a thread for each processor many parts are done sooner than if all processors share each of them, as most layers
    are too small to be worth sharing (docs/results/speed.md).
    """
    alone = [{name: values[i : i + 1] for name, values in members.items()} for i in range(size_of(members))]
    try:
        found = pool.map(compute, alone)
    except RuntimeError:  # the program has ended but for the thread that calls, and pools take in nothing more
        return compute(members)
    outputs = zip(*((one.map, one.score, one.rgb, one.depth) for one in found), strict=True)
    return EngineOutput(*(None if values[0] is None else np.concatenate(values) for values in outputs))  # type: ignore[arg-type]


class Engine(ABC):
    """Computes one model on one device.

    Attributes:
        name: of the library that computes.
        precision: that it computes in: "fp32", "tf32", "fp16" or "int8".
        device: "CPU", or what its maker calls it.
    """

    name: str
    precision: str
    device: str

    @property
    @abstractmethod
    def weights(self) -> str:
        """SHA-256 of the trained weights, the same in whatever they were exported to."""

    @abstractmethod
    def run(self, rgb: NDArray[np.uint8] | None = None, depth: Floats | None = None) -> EngineOutput:
        """Maps, scores and repaired images of one batch, of any size.

        Args:
            rgb: (B, 3, S, S) prepared; None where the networks see no RGB.
            depth: (B, 1, S, S) prepared; None where they see no depth.
        """

    def describe(self) -> str:
        """Such as "ONNX Runtime, fp32, CPU"."""
        return f"{self.name}, {self.precision}, {self.device}"


def batch_of(scans: Sequence[PreparedScan], *, rgb: bool, depth: bool) -> Members:
    """The arguments of `Engine.run` for prepared scans: those members that the networks see."""
    members: Members = {}
    if rgb:
        members["rgb"] = np.ascontiguousarray(np.stack([scan.rgb for scan in scans]).transpose(0, 3, 1, 2))
    if depth:
        members["depth"] = np.stack([scan.depth for scan in scans])[:, None]
    return members


def named(outputs: Mapping[str, Floats]) -> EngineOutput:
    """The outputs of an exported graph by their names (`OUTPUTS`)."""
    return EngineOutput(*(outputs.get(name) for name in OUTPUTS))  # type: ignore[arg-type]


class ExportedEngine(Engine):
    """An engine for a file that `das3d.export` wrote: normalisation, networks, map and score are all in its graph.

    Attributes:
        about: what the file says of itself beside the graph.
        exported_precision: as asked for in the export.
    """

    def __init__(self, file: Path, about: str | None, inputs: set[str], outputs: set[str]) -> None:
        try:
            self.about: dict[str, Any] = json.loads(about or "null")
            self.exported_precision = str(self.about["export"]["precision"])
            self._weights = str(self.about["export"]["weights_sha256"])
        except (ValueError, KeyError, TypeError):
            raise ModelError(f"{file}: expected a model that das3d exported, found one of something else") from None
        if not {"map", "score"} <= outputs or not inputs <= {"rgb", "depth"}:
            found = f"{', '.join(sorted(inputs))} and {', '.join(sorted(outputs))}"
            raise ModelError(f"{file}: expected inputs rgb, depth and outputs map, score, found {found}")
        if self.about["export"].get(SEALED) and not is_sealed(file.read_bytes()):  # files of before are not
            raise ModelError(
                f"{file}: expected the file as it was exported, found other content, as where it was cut short, damaged or "
                "written again by another program; copy or export it again"
            )
        self._outputs = outputs

    @property
    def weights(self) -> str:
        """See `Engine.weights`."""
        return self._weights

    def run(self, rgb: NDArray[np.uint8] | None = None, depth: Floats | None = None) -> EngineOutput:
        """See `Engine.run`."""
        return self._compute(given(rgb, depth))

    @abstractmethod
    def _compute(self, members: Members) -> EngineOutput: ...


def seal_of(content: bytes) -> bytes:
    """What makes an ONNX file tell its own damage: one more entry of its metadata, with the SHA-256 of all before it.

    A file whose weights are zeros in part is a valid one, and may call every part good. An entry of `metadata_props`, the
    field 14 of ONNX's ModelProto, may stand anywhere in the file, so also at its end.
    """
    entry = b"".join(
        bytes([field, len(text)]) + text
        for field, text in ((0x0A, SEAL.encode()), (0x12, hashlib.sha256(content).hexdigest().encode()))  # key, value
    )
    return bytes([0x72, len(entry)]) + entry


def is_sealed(content: bytes) -> bool:
    """Whether an ONNX file ends by `seal_of` all before its end."""
    end = len(content) - len(seal_of(b""))
    return end > 0 and content[end:] == seal_of(content[:end])


def open_exported(file: Path, device: str = "auto", engine: str = "auto") -> ExportedEngine:
    """The engine for an exported model.

    "auto" takes a CUDA device where ONNX Runtime has one, else OpenVINO where it is installed, which is the fastest on the
    CPUs that were measured (docs/results/parity.md), else ONNX Runtime.

    Raises:
        ModelError: the file, the device and the engine do not go together.
        MissingPackageError: the engine is not installed.
    """
    onnx = file.suffix == ".onnx"
    names = get_args(EngineChoice)
    if engine not in names:
        raise ModelError(f"engine: expected one of {', '.join(names)}, found {engine!r}")
    if engine == "torch" or (engine == "onnxruntime" and not onnx):
        can = "onnxruntime or openvino" if onnx else "openvino"
        raise ModelError(f"{file}: expected engine {can} for such a file, found {engine!r}")
    with explained(f"{file}: an exported model"):
        if engine == "openvino" or (engine == "auto" and not (onnx and _prefers_onnxruntime(device))):
            from das3d.engines.openvino_engine import OpenVinoEngine

            return OpenVinoEngine(file, device)
        from das3d.engines.onnx_engine import OnnxRuntimeEngine

        return OnnxRuntimeEngine(file, device)


def _prefers_onnxruntime(device: str) -> bool:
    if device.startswith("cuda") or not installed("openvino"):
        return True
    if device != "auto" or not installed("onnxruntime"):
        return False
    from das3d.engines.onnx_engine import has_cuda

    return has_cuda()


def installed(package: str) -> bool:
    """Whether a package can be imported, without importing it."""
    try:
        return find_spec(package) is not None
    except ValueError:  # it is there but for its contents, as in tests that hide it
        return False


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads() -> int:
    """Threads that an engine may use: ``OMP_NUM_THREADS``, as PyTorch reads it; 0 leaves it to the engine."""
    text = os.environ.get("OMP_NUM_THREADS", "")
    return int(text) if text.isdecimal() else 0
