"""OpenVINO as an engine for exported models (``*.onnx`` and ``*.xml``)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from threading import Lock
from typing import Any

import openvino

from das3d.engines import EngineOutput, ExportedEngine, Members, named, threads
from das3d.errors import ModelError, one_line

# The first byte of an ONNX file (the field ir_version) and of an IR (XML).
BEGINS = {".onnx": b"\x08", ".xml": b"<"}
BIN_HASH = "bin_sha256"  # where an IR's "export" keeps the hash of its weights


class OpenVinoEngine(ExportedEngine):
    """A compiled model on a device that OpenVINO knows.

    By default OpenVINO may compute float32 models in bfloat16, whose 8 bits moved scores by up to 0.05, and a verdict
    (docs/results/parity.md). So it is always told the precision: fp16 for models exported in it where the device has it,
    else float32.
    """

    name = "OpenVINO"

    def __init__(self, file: Path, device: str = "auto") -> None:
        core = openvino.Core()
        target = "CPU" if device == "auto" else device.upper()
        if target not in core.available_devices:
            known = ", ".join(["auto", *(name.lower() for name in core.available_devices)])
            raise ModelError(f"device: expected one of {known} for OpenVINO, found {device!r}")
        # Of anything else OpenVINO has all its readers try, and each complains on the terminal.
        with file.open("rb") as content:
            begins = content.read(1)
        if begins != BEGINS[file.suffix]:
            raise ModelError(f"{file}: expected a model as ONNX or OpenVINO IR, found a file of something else")
        try:
            model = core.read_model(file)
        except RuntimeError as error:
            raise ModelError(f"{file}: expected a model as ONNX or OpenVINO IR, found: {one_line(error)}") from None
        inputs = {name for member in model.inputs for name in member.get_names()}
        outputs = {name for member in model.outputs for name in member.get_names()}
        super().__init__(file, _about_in(model), inputs, outputs)
        self._expect_its_own_weights(file)
        hint, self.precision = "f32", self.exported_precision
        if self.exported_precision == "fp16":
            can = "FP16" in core.get_property(target, "OPTIMIZATION_CAPABILITIES")
            hint, self.precision = ("f16", "fp16") if can else ("f32", "fp32")
        hints: dict[str, Any] = {"INFERENCE_PRECISION_HINT": hint}
        if target == "CPU":
            hints["INFERENCE_NUM_THREADS"] = threads()
        self._compiled = core.compile_model(model, target, hints)
        self._lock = Lock()  # a compiled model that is called has one request, whoever calls
        self.device = target if target == "CPU" else str(core.get_property(target, "FULL_DEVICE_NAME"))

    def _expect_its_own_weights(self, file: Path) -> None:
        # Of two files one may be copied alone, or cut short, and those of two exports of one recipe fit each other.
        told = self.about["export"].get(BIN_HASH)  # files of before have none
        if file.suffix == ".xml" and told is not None and told != bin_hash(file):
            raise ModelError(
                f"{file.with_suffix('.bin')}: expected the weights that were exported with {file.name}, found others, as "
                "where one of both is copied alone or cut short; copy both again"
            )

    def _compute(self, members: Members) -> EngineOutput:
        with self._lock:
            found = self._compiled(members)
        return named({name: found[name] for name in self._outputs})


def bin_hash(xml: Path) -> str:
    """SHA-256 of the file with an IR's weights."""
    return hashlib.sha256(xml.with_suffix(".bin").read_bytes()).hexdigest()


def _about_in(model: Any) -> str | None:
    # An IR keeps it as our own entry; of an ONNX file OpenVINO keeps all such entries under "framework".
    for path in (["das3d"], ["framework", "das3d"]):
        if model.has_rt_info(path):
            return str(model.get_rt_info(path).astype(str))
    return None
