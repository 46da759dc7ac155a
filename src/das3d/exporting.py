"""Export of a trained model to one file that says the same without PyTorch, checked before it is kept.

The graph holds all from the prepared part to its score. Beside it stands in the file what `Detector.about` gives, and under
"export" the precision, the versions, the licence, a hash of the weights, what goes in and out, and the result of the check.
"""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import onnx
import torch

import das3d.engines.onnx_engine  # noqa: F401  (switches ONNX Runtime's reporting off before anything imports it)
from das3d.agreement import Agreement, agreement, compute, find_parts, made_up_parts, prepare_some
from das3d.arguments import expect_kind, expect_one_of, is_number, path_of, shown_number
from das3d.atomic import write_atomically, write_pair
from das3d.choices import Precision, Target
from das3d.detector import Detector, load
from das3d.engines import EXPORTED, OUTPUTS, SEALED, batch_of, in_batches, installed, seal_of
from das3d.engines.torch_engine import TorchEngine
from das3d.errors import DataError, ModelError, SettingsError
from das3d.parts import GOOD
from das3d.preparation import PreparedScan
from das3d.threshold import SAME, rate_text
from das3d.versions import version_of

SUFFIX = {"onnx": ".onnx", "openvino": ".xml"}
OPSET = 18
PARTS = 32  # for the check, and as many to calibrate by
# The largest differences of scores and of maps, both 0 to 1, with which an export is kept. In full precision only the order
# of sums differs; below it, these are well beyond what rounding does to a sound model.
LIMITS = {"fp32": (1e-4, 1e-3), "fp16": (0.03, 0.2), "int8": (0.1, 0.5)}
# The share of verdicts that fp16 or int8 may change where no other is asked for: 1 of 32. The threshold is the score of a
# part, so among many parts some lie near it; more than that, and the promise of false alarms no longer holds for the file.
CHANGED = 0.05
KEPT_IN_FLOAT = ("encoder.0.", ".head.")  # layers that int8 leaves alone, by parts of the names of their weights


@dataclass(frozen=True)
class Export:
    """An export that was checked and written.

    Attributes:
        file: the model; of an OpenVINO IR the ``.xml``, beside which lies its ``.bin``.
        parts: how many it was checked on.
        source: where they are from.
        trained_ms: milliseconds a part of the trained model.
        engines: what each installed engine makes of the file.
    """

    file: Path
    parts: int
    source: str
    trained_ms: float
    engines: list[Agreement]

    @property
    def size(self) -> int:
        """Bytes of the model's files."""
        return sum(path.stat().st_size for path in _files(self.file))


def export(
    run: Path | str,
    to: Target = "onnx",
    *,
    precision: Precision = "fp32",
    out: Path | str | None = None,
    data: Path | str | None = None,
    licence: str = "",
    max_changed: float = CHANGED,
) -> Export:
    """Export a trained model, and check it at once against what was trained with each engine that is installed.

    Args:
        run: a run folder or a safetensors file.
        to: "onnx", or "openvino" for an IR pair.
        precision: "fp32"; "fp16" keeps 16 bits; "int8" computes convolutions in 8 bits, calibrated on good parts.
        out: file to write; where None, ``model.onnx``, ``model_int8.onnx`` or the like beside the trained model.
        data: folder of parts to check and calibrate by; where None, the training data if it is still where it was, else
            made-up parts, which do not do for int8. Parts that cannot be prepared are left out with a warning.
        licence: of the weights, for those who get the file.
        max_changed: the share of verdicts, 0 to 1, that fp16 or int8 may change: they move scores, and the threshold stays
            that of the trained model. Full precision may change none.

    Raises:
        ModelError: there is no trained model, or the exported one differs from it; then nothing is written.
        DataError: there is something wrong with `data`, or no part in it to check or no good one to calibrate by.
        SettingsError: `to` or `precision` is unknown, `out` does not end as files of `to` do, or `max_changed` is no share.
        MissingPackageError: a package that it takes is not installed.
    """
    run = path_of(run, "run", ModelError)
    out = None if out is None else path_of(out, "out", SettingsError)
    data = None if data is None else path_of(data, "data")
    expect_one_of(get_args(Target), to, "to")
    expect_one_of(get_args(Precision), precision, "precision")
    expect_kind(str, licence, "licence")
    if run.suffix in EXPORTED:
        raise ModelError(f"{run}: expected a model as it was trained, found an exported one")
    if not (is_number(max_changed) and 0 <= max_changed <= 1):
        raise SettingsError(f"max_changed: expected a share of verdicts from 0 to 1, found {shown_number(max_changed)}")
    detector = load(run, "cpu", "torch")
    file = _out_file(run, to, precision, out)
    parts, source = find_parts(detector, data)
    calibration: list[PreparedScan] = []
    if precision == "int8":
        good = [part for part in parts if part.defect == GOOD and part.split != "test"]
        calibration = prepare_some(detector, good, PARTS)
        if not calibration:
            expected = "good parts to calibrate int8 by"
            raise DataError(f"{source or run}: expected {expected}, found none; --data names their folder")
    unseen = [part for part in parts if part.split != "train"] or parts
    scans, checked_on = prepare_some(detector, unseen, PARTS), source
    if not scans and data is not None:
        raise DataError(f"{source}: expected parts to check the export by, found none that can be prepared")
    if not scans:
        scans = made_up_parts(detector.settings.preparation.size, PARTS)
        checked_on = f"made up, as no parts of the training data {source} can be used".replace("  ", " ")

    about = detector.about() | {"export": _facts(detector, precision, licence) | {SEALED: to == "onnx"}}
    with tempfile.TemporaryDirectory(prefix="das3d_export_") as folder:
        graph = Path(folder) / "graph.onnx"
        _write_graph(detector, graph)
        if precision == "fp16":
            _to_fp16(graph)
        elif precision == "int8":
            _to_int8(detector, graph, calibration)
            about["export"]["calibration"] = {"good_parts": len(calibration), "of": source}
        model = Path(folder) / f"model{SUFFIX[to]}"
        _write_model(graph, about, model)
        trained = compute(detector, scans)
        engines = [agreement(load(model, "cpu", engine), scans, trained) for engine in _engines(to)]
        _refuse_what_differs(file, precision, engines)
        _refuse_other_verdicts(file, precision, engines, len(scans), max_changed)
        if to == "openvino":
            from das3d.engines.openvino_engine import BIN_HASH, bin_hash

            about["export"][BIN_HASH] = bin_hash(model)
        about["export"]["check"] = {"parts": len(scans), "of": checked_on, "engines": [asdict(one) for one in engines]}
        _write_model(graph, about, model)
        contents = [(file.with_suffix(written.suffix), written.read_bytes()) for written in _files(model)]
        if to == "openvino":  # an old .xml beside new weights would load, and judge wrongly
            write_pair(*contents)
        else:
            write_atomically(*contents[0])
    return Export(file, len(scans), checked_on, trained.ms, engines)


def _out_file(run: Path, to: Target, precision: Precision, out: Path | None) -> Path:
    if out is None:
        trained = run / "model" if run.is_dir() else run.with_suffix("")
        return trained.with_name(trained.name + ("" if precision == "fp32" else f"_{precision}") + SUFFIX[to])
    if out.suffix != SUFFIX[to]:
        raise SettingsError(f"{out}: expected a file name that ends in {SUFFIX[to]}, as --to {to} writes")
    return out


def _files(model: Path) -> list[Path]:
    # An OpenVINO IR is two files; the one that names the other comes last, so that it never names what is not there.
    return [model.with_suffix(".bin"), model] if model.suffix == ".xml" else [model]


def _engines(to: Target) -> list[str]:
    return [name for name in (("openvino",) if to == "openvino" else ("onnxruntime", "openvino")) if installed(name)]


def _refuse_what_differs(file: Path, precision: Precision, engines: Sequence[Agreement]) -> None:
    score, map_ = LIMITS[precision]
    for one in engines:
        # Written so that NaN fails.
        if not (one.score <= score and one.map <= map_) or (precision == "fp32" and one.verdicts_changed):
            found = f"{one.score:.2g} and {one.map:.2g} with {one.verdicts_changed or 0} verdicts changed"
            raise ModelError(
                f"{file}: expected scores within {score:g} and maps within {map_:g} of the trained model, "
                f"found {found} ({one.engine}); nothing is written"
            )


def _refuse_other_verdicts(
    file: Path, precision: Precision, engines: Sequence[Agreement], parts: int, max_changed: float
) -> None:
    for one in engines:
        if (one.verdicts_changed or 0) > max_changed * parts:
            raise ModelError(
                f"{file}: expected {rate_text(max_changed)} of the trained model's verdicts changed at most, found "
                f"{one.verdicts_changed} of {parts} ({one.engine}), as {precision} moves scores by up to {one.score:.2g} "
                "and the threshold stays; --max-changed allows more, fp32 changes none; nothing is written"
            )


# ------------------------------------------------------------------------------------------- what is written


def _write_graph(detector: Detector, file: Path) -> None:
    # PyTorch's scorer with named inputs and outputs, for any number of parts.
    assert isinstance(detector.engine, TorchEngine)
    side, uses = detector.settings.preparation.size, detector.settings
    example = {
        "rgb": torch.zeros(2, 3, side, side, dtype=torch.uint8) if uses.uses_rgb else None,
        "depth": torch.zeros(2, 1, side, side) if uses.uses_depth else None,
    }
    any_number = {0: torch.export.Dim("batch", min=1)}
    with _quiet():
        program = torch.onnx.export(
            detector.engine.scorer,
            kwargs=example,
            dynamo=True,
            input_names=[name for name, member in example.items() if member is not None],
            output_names=list(_outputs(detector)),
            dynamic_shapes={name: None if member is None else any_number for name, member in example.items()},
            opset_version=OPSET,
            verbose=False,
        )
        assert program is not None
        program.save(str(file))
    model = onnx.load(file)
    for node in model.graph.node:  # the exporter notes at each where on this machine its source lies
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    model.producer_name = "das3d"
    onnx.save(model, file)


def _to_fp16(file: Path) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with _quiet():
        onnx.save(convert_float_to_float16(onnx.load(file), keep_io_types=True), file)


def _to_int8(detector: Detector, file: Path, good: Sequence[PreparedScan]) -> None:
    # Convolutions alone, which take nearly all of the time; the ranges of what goes in are the extremes over good parts.
    # The first and the last layers of the networks stay as they are: what they see and give has ranges that 8 bits are
    # too coarse for, and an error there is an error of the map.
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = in_batches(good)

        def get_next(self) -> dict[str, Any] | None:
            for scans in self.batches:
                return batch_of(scans, rgb=detector.settings.uses_rgb, depth=detector.settings.uses_depth)
            return None

    kept = [
        node.name for node in onnx.load(file).graph.node
        if node.op_type == "Conv" and any(part in name for name in node.input for part in KEPT_IN_FLOAT)
    ]  # fmt: skip
    with _quiet():
        quantization.quantize_static(
            file, file, Reader(), per_channel=True, op_types_to_quantize=["Conv"], nodes_to_exclude=kept,
            activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
        )  # fmt: skip


def _write_model(graph: Path, about: dict[str, Any], file: Path) -> None:
    # The graph with what is known of it, in the format that the suffix says.
    text = json.dumps(about)
    if file.suffix == ".onnx":
        model = onnx.load(graph)
        onnx.helper.set_model_props(model, {"das3d": text})
        content = model.SerializeToString()
        file.write_bytes(content + seal_of(content))
        return
    import openvino

    model = openvino.Core().read_model(graph)
    model.set_rt_info(text, "das3d")
    openvino.save_model(model, file, compress_to_fp16=False)  # the graph has the precision already


def _facts(detector: Detector, precision: Precision, licence: str) -> dict[str, Any]:
    side, uses = detector.settings.preparation.size, detector.settings
    packages = [name for name in ("das3d", "torch", "onnx", "onnxruntime", "openvino") if installed(name)]
    rgb = {"rgb": f"uint8 (batch, 3, {side}, {side}), prepared"}
    depth = {"depth": f"float32 (batch, 1, {side}, {side}), prepared: 0 at statistics.near, 1 at statistics.far and behind"}
    return {
        "precision": precision,
        "weights_sha256": detector.engine.weights,
        "licence": licence or "not stated",
        "units": "depths in statistics are metres along the optical axis",
        "inputs": (rgb if uses.uses_rgb else {}) | (depth if uses.uses_depth else {}),
        "outputs": _outputs(detector),
        "versions": {name: version_of(name) for name in packages},
    }


def _outputs(detector: Detector) -> dict[str, str]:
    side, uses = detector.settings.preparation.size, detector.settings
    meaning = {
        "map": f"float32 (batch, {side}, {side}), 0 to 1",
        "score": f"float32 (batch), 0 to 1; defective above threshold.value + {SAME:g}",
        "repaired_rgb": f"float32 (batch, 3, {side}, {side}), about 0 to 1",
        "repaired_depth": f"float32 (batch, {side}, {side}), as the input depth",
    }
    used = {"map": True, "score": True, "repaired_rgb": uses.uses_rgb, "repaired_depth": uses.uses_depth}
    return {name: meaning[name] for name in OUTPUTS if used[name]}


@contextmanager
def _quiet() -> Iterator[None]:
    # PyTorch and ONNX Runtime talk much while they convert, all of it about themselves; what goes wrong they raise.
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
