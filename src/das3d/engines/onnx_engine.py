"""ONNX Runtime as an engine for exported models (``*.onnx``)."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Lock

from das3d.engines import (
    OUTPUTS,
    EngineOutput,
    ExportedEngine,
    Members,
    named,
    processors,
    side_by_side,
    size_of,
    threads,
)
from das3d.errors import ModelError, one_line

# Newer builds report to their maker over the network, from the import on, unless told not to before it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime


class OnnxRuntimeEngine(ExportedEngine):
    """A session on the CPU or a CUDA device. Float32 models are computed in float32, without TF32.

    On a CPU as many parts as it has threads, or more, are computed side by side, each by one thread.
    """

    name = "ONNX Runtime"

    def __init__(self, file: Path, device: str = "auto") -> None:
        provider = _provider(device)
        try:
            graph = file.read_bytes()
            self._session = _session(graph, provider, threads())
        except Exception as error:  # its errors have no common base
            raise ModelError(f"{file}: expected a model as ONNX, found: {one_line(error)}") from None
        used = self._session.get_providers()[0]  # the CPU, where a CUDA device cannot be used
        if used != provider[0] and device != "auto":
            raise ModelError(f"device: expected one that ONNX Runtime can use here, found {device!r}")
        inputs = {member.name for member in self._session.get_inputs()}
        outputs = {member.name for member in self._session.get_outputs()}
        super().__init__(file, self._session.get_modelmeta().custom_metadata_map.get("das3d"), inputs, outputs)
        self.precision = self.exported_precision
        self.device = "CPU" if used == CPU else f"CUDA {provider[1]['device_id']}"
        lanes = (threads() or processors()) if used == CPU else 1
        self._lanes = _Lanes(graph, lanes) if lanes > 1 else None

    def _compute(self, members: Members) -> EngineOutput:
        if self._lanes is None or size_of(members) < self._lanes.threads:
            return self._by(self._session, members)
        return side_by_side(self._lanes.pool, partial(self._by, self._lanes.session), members)

    def _by(self, session: onnxruntime.InferenceSession, members: Members) -> EngineOutput:
        names = [name for name in OUTPUTS if name in self._outputs]
        return named(dict(zip(names, session.run(names, members), strict=True)))


class _Lanes:
    # The same graph once more, computed by single threads, for batches of several parts; made when the first one comes.

    def __init__(self, graph: bytes, threads: int) -> None:
        self.threads, self._graph, self._lock = threads, graph, Lock()
        self._session: onnxruntime.InferenceSession | None = None
        self.pool = ThreadPoolExecutor(threads, "das3d networks")

    @property
    def session(self) -> onnxruntime.InferenceSession:
        with self._lock:
            if self._session is None:
                self._session = _session(self._graph, _provider("cpu"), 1)
            return self._session


def _session(graph: bytes, provider: tuple[str, dict[str, str]], threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads  # 0: as many as there are processors
    options.log_severity_level = 3  # errors; what a user must know is raised
    return onnxruntime.InferenceSession(graph, options, providers=[provider])


CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def has_cuda() -> bool:
    """Whether the installed ONNX Runtime was built for CUDA devices."""
    return CUDA in onnxruntime.get_available_providers()


def _provider(device: str) -> tuple[str, dict[str, str]]:
    kind, _, index = device.partition(":")
    if (kind, index) == ("cpu", "") or (device == "auto" and not has_cuda()):
        return CPU, {}
    if kind not in ("auto", "cuda") or not (index or "0").isdecimal() or not has_cuda():
        known = "auto, cpu or cuda" if has_cuda() else "auto or cpu (onnxruntime-gpu brings cuda)"
        raise ModelError(f"device: expected {known} for ONNX Runtime, found {device!r}")
    return CUDA, {"device_id": index or "0", "use_tf32": "0"}
