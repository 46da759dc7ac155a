"""Exported models: that they say what the trained model says, on every engine, and that nothing else is ever written."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tifffile
import torch
from safetensors.torch import load_file
from tiny import SIZE, copy_category, das3d

from das3d import exporting
from das3d.agreement import Agreement, agreement, find_parts, made_up_parts, prepare_some
from das3d.demo import CATEGORY
from das3d.detector import FORMAT, MODEL_FILE, Detector, load
from das3d.engines import seal_of
from das3d.engines.torch_engine import TorchEngine
from das3d.errors import DataError, ModelError, SettingsError
from das3d.exporting import export
from das3d.files import read_rgb

Runs = Callable[..., Path]
ENGINES = ["onnxruntime", "openvino"]


@pytest.fixture(scope="module")
def trained(tiny_run: Runs) -> Detector:
    return load(tiny_run(), "cpu")


@pytest.fixture
def quick(tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports of the tiny model take its graph from a file instead of tracing it anew."""

    def copy(_: Detector, file: Path) -> None:
        model = onnx.load(tiny_onnx)
        del model.metadata_props[:]
        onnx.save(model, file)

    monkeypatch.setattr(exporting, "_write_graph", copy)


def about(file: Path) -> dict[str, Any]:
    return json.loads({entry.key: entry.value for entry in onnx.load(file).metadata_props}["das3d"])


def bytes_of_weights(file: Path) -> int:
    """Its graph and metadata aside; of so small a model int8 leaves the first and last layers, most of it, in float."""
    return sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in onnx.load(file).graph.initializer)


def assert_same(one: Detector, other: Detector, within: float) -> None:
    """Both say the same of any number of parts, whatever is in the batch."""
    scans = made_up_parts(64, 9, seed=3)
    for count in (1, 2, 9):
        found, expected = one.run(scans[:count]), other.run(scans[:count])
        for name in ("map", "score", "rgb", "depth"):
            a, b = getattr(found, name), getattr(expected, name)
            if b is None:
                assert a is None
                continue
            assert a.shape == b.shape and a.dtype == b.dtype == np.float32, name
            assert np.abs(a - b).max() < within, name
    assert len(set(one.run(scans).score.tolist())) > 5  # in half precision two may be rounded to one


# ------------------------------------------------------------------------------------ what is exported


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_computes_what_was_trained(engine: str, tiny_onnx: Path, trained: Detector) -> None:
    exported = load(tiny_onnx, "cpu", engine)
    assert_same(exported, trained, 1e-5)
    for name in ("settings", "statistics", "threshold", "training", "norms", "fingerprints", "calibrations"):
        assert getattr(exported, name) == getattr(trained, name), name
    assert exported.engine.precision == "fp32"


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_finds_the_same_regions(engine: str, tiny_onnx: Path, trained: Detector, tiny_data: Path) -> None:
    assert trained.threshold is not None
    strict = replace(trained.threshold, value=0.01)  # so that something is found by so little training
    kind = tiny_data / CATEGORY / "test" / "dent"
    rgb, points = read_rgb(kind / "rgb" / "000.png"), tifffile.imread(kind / "xyz" / "000.tiff")
    found, expected = (
        replace(one, threshold=strict).predict(rgb, points).regions for one in (load(tiny_onnx, "cpu", engine), trained)
    )
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert one.evidence == other.evidence
        for name in ("centroid", "box", "area_mm2", "height_mm", "height_noise_mm", "colour", "score", "peak", "mean"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), rel=0.01, abs=1e-3), name


@pytest.mark.parametrize("modality", ["rgb", "depth"])
def test_one_modality_has_one_input_and_all_views_are_in_the_graph(modality: str, tiny_run: Runs, tmp_path: Path) -> None:
    plain = load(tiny_run(modality), "cpu")
    views = {"flips": True, "turn": 20.0}
    settings = plain.settings.model_copy(update={"score": plain.settings.score.model_copy(update=views)})
    viewing = Detector(settings, plain.statistics, TorchEngine(plain.network, settings.score), plain.threshold)
    viewing.training = plain.training
    viewing.save(tmp_path / "viewing.safetensors")
    file = export(tmp_path / "viewing.safetensors").file
    graph = onnx.load(file).graph
    assert [member.name for member in graph.input] == [modality]
    assert [member.name for member in graph.output] == ["map", "score", f"repaired_{modality}"]
    for engine in ENGINES:
        assert_same(load(file, "cpu", engine), viewing, 1e-5)
    scans = made_up_parts(64, 2)
    assert np.abs(load(file).run(scans).map - plain.run(scans).map).max() > 1e-4, "or this test would see nothing"


def test_what_the_file_says_of_itself(tiny_onnx: Path, tiny_run: Runs, trained: Detector, tiny_data: Path) -> None:
    found = about(tiny_onnx)
    assert found["settings"]["modality"] == "rgb+depth" and found["training"]["category"] == CATEGORY
    assert trained.threshold is not None and found["threshold"]["value"] == trained.threshold.value
    facts = found["export"]
    assert facts["precision"] == "fp32" and facts["licence"] == "not stated"
    assert facts["versions"]["torch"] == torch.__version__ and "onnxruntime" in facts["versions"]
    graph = onnx.load(tiny_onnx).graph
    for kind, members in (("inputs", graph.input), ("outputs", graph.output)):
        assert list(facts[kind]) == [member.name for member in members]
        assert all(member.type.tensor_type.shape.dim[0].dim_param for member in members), "any number of parts"
    check = facts["check"]
    assert check["of"] == str(tiny_data / CATEGORY) and check["parts"] == 10
    assert [one["engine"] for one in check["engines"]] == ["ONNX Runtime, fp32, CPU", "OpenVINO, fp32, CPU"]
    assert all(one["score"] < 1e-5 and one["verdicts_changed"] == 0 for one in check["engines"])
    assert str(Path(exporting.__file__).parent) not in tiny_onnx.read_bytes().decode("latin1"), "no path of this machine"


def test_the_hash_is_that_of_the_weights(tiny_onnx: Path, tiny_run: Runs, trained: Detector) -> None:
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(tiny_run() / MODEL_FILE).items()):
        array = tensor.numpy()
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    assert trained.engine.weights == digest.hexdigest()
    for engine in ENGINES:
        assert load(tiny_onnx, "cpu", engine).engine.weights == digest.hexdigest()


@pytest.mark.parametrize("harm", ["zeros", "cut short", "written again"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_damaged_file_is_told(harm: str, engine: str, tiny_onnx: Path, tmp_path: Path) -> None:
    content = bytearray(tiny_onnx.read_bytes())
    if harm == "zeros":  # in the weights, which leaves a graph that loads
        weights = onnx.numpy_helper.to_array(max(onnx.load(tiny_onnx).graph.initializer, key=lambda one: len(one.raw_data)))
        begin = content.index(weights.tobytes())
        content[begin : begin + weights.nbytes // 2] = bytes(weights.nbytes // 2)
    elif harm == "cut short":
        del content[-len(seal_of(b"")) :]
    else:
        content = bytearray(onnx.load(tiny_onnx).SerializeToString() + b"\x72\x00")
    file = tmp_path / "damaged.onnx"
    file.write_bytes(content)
    onnx.checker.check_model(onnx.load(file))
    with pytest.raises(ModelError, match=r"damaged\.onnx: expected the file as it was exported, found other content"):
        load(file, "cpu", engine)


@pytest.mark.usefixtures("quick")
def test_openvino_ir_is_a_pair(tiny_run: Runs, trained: Detector, tmp_path: Path) -> None:
    result = das3d("export", tiny_run(), "--to", "openvino", "--out", tmp_path / "ir" / "cover.xml", "--licence", "MIT")
    assert (result.exit_code, result.stderr) == (0, "")
    assert sorted(file.name for file in (tmp_path / "ir").iterdir()) == ["cover.bin", "cover.xml"]
    exported = load(tmp_path / "ir" / "cover.xml")
    assert_same(exported, trained, 1e-5)
    assert exported.engine.describe() == "OpenVINO, fp32, CPU"
    assert exported.engine.about["export"]["licence"] == "MIT"  # type: ignore[attr-defined]
    weights = (tmp_path / "ir" / "cover.bin").read_bytes()
    other = bytearray(weights)  # as of another training of the same networks, of which one file alone was copied
    other[64:68] = np.array([0.5], np.float32).tobytes()
    (tmp_path / "ir" / "cover.bin").write_bytes(other)
    with pytest.raises(ModelError, match=r"cover\.bin: expected the weights that were exported with cover\.xml, found oth"):
        load(tmp_path / "ir" / "cover.xml")
    (tmp_path / "ir" / "cover.bin").unlink()
    with pytest.raises(ModelError, match=r"cover\.xml: expected a model as ONNX or OpenVINO IR, found: "):
        load(tmp_path / "ir" / "cover.xml")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("precision", "size"), [("fp16", 0.51), ("int8", 0.85)])  # of the weights in float
def test_lower_precision_says_what_it_costs(
    precision: Any, size: float, tiny_run: Runs, tiny_onnx: Path, trained: Detector, tiny_data: Path, tmp_path: Path
) -> None:
    done = export(tiny_run(), precision=precision, out=tmp_path / "small.onnx", data=tiny_data, max_changed=1)
    kinds = {tensor.data_type for tensor in onnx.load(done.file).graph.initializer}
    assert (onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.INT8) in kinds
    assert done.size == done.file.stat().st_size and bytes_of_weights(done.file) < size * bytes_of_weights(tiny_onnx)
    facts = about(done.file)["export"]
    assert facts["precision"] == precision
    costs = {one["engine"].split(",")[0]: one for one in facts["check"]["engines"]}
    assert [one.score for one in done.engines] == [one["score"] for one in costs.values()]
    assert ("calibration" in facts) == (precision == "int8")
    for engine, name in zip(ENGINES, costs, strict=True):
        exported = load(done.file, "cpu", engine)
        expected = {"fp16": ("fp16", "bf16", "fp32"), "int8": ("int8",)}[precision]
        assert exported.engine.precision in expected
        assert 0 < costs[name]["score"] < 0.05
        assert_same(exported, trained, 0.2)


# ------------------------------------------------------------------------------------ what is refused


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("factor", [1.05, float("nan")])
def test_a_graph_that_differs_is_not_written(
    factor: float, tiny_run: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = exporting._write_graph

    def spoiled(detector: Detector, file: Path) -> None:
        write(detector, file)
        model = onnx.load(file)
        weights = max(model.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
        weights.CopyFrom(
            onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weights) * np.float32(factor), weights.name)
        )
        onnx.save(model, file)

    monkeypatch.setattr(exporting, "_write_graph", spoiled)
    result = das3d("export", tiny_run(), "--out", tmp_path / "cover.onnx")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(
        f"error: {tmp_path / 'cover.onnx'}: expected scores within 0.0001 and maps within 0.001 "
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("quick")
def test_a_file_that_changes_too_many_verdicts_is_written_only_where_that_is_asked_for(
    tiny_run: Runs, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = 2

    def moved(*arguments: Any) -> Agreement:
        return replace(agreement(*arguments), verdicts_changed=changed, score=5e-5)

    monkeypatch.setattr(exporting, "agreement", moved)
    file = tmp_path / "small.onnx"
    words = ("export", tiny_run(), "--precision", "fp16", "--data", tiny_data, "--out", file)
    result = das3d(*words)
    assert (result.exit_code, result.stdout, list(tmp_path.iterdir())) == (1, "", [])
    assert result.stderr == (
        f"error: {file}: expected 5% of the trained model's verdicts changed at most, found 2 of 10 (ONNX Runtime, fp16, "
        "CPU), as fp16 moves scores by up to 5e-05 and the threshold stays; --max-changed allows more, fp32 changes none; "
        "nothing is written\n"
    )
    result = das3d(*words, "--max-changed", "0")
    assert result.exit_code == 1 and "expected 0% of the trained model's verdicts changed at most" in result.stderr
    result = das3d(*words, "--max-changed", "20%")
    assert result.exit_code == 0 and file.is_file() and "2 of 10" in result.stdout
    assert result.stderr.startswith("warning: its threshold is that of the trained model, ")
    result = das3d(*words, "--max-changed", "2")
    assert result.stderr == "error: --max-changed: expected a share such as 1% or 0.01, found '2'\n"
    with pytest.raises(SettingsError, match="max_changed: expected a share of verdicts from 0 to 1, found 2"):
        export(tiny_run(), precision="fp16", out=file, max_changed=2)
    changed = 1
    with pytest.raises(ModelError, match="with 1 verdicts changed"):
        export(tiny_run(), out=file, max_changed=1)  # which full precision never does


def test_int8_needs_good_parts(tiny_run: Runs, tiny_data: Path, tmp_path: Path) -> None:
    parts = tiny_data / CATEGORY / "test" / "dent"
    with pytest.raises(DataError, match=r"dent: expected good parts to calibrate int8 by, found none; --data names"):
        export(tiny_run(), precision="int8", data=parts, out=tmp_path / "cover.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("quick")
def test_parts_with_faults_of_their_own_hold_no_export_up(
    tiny_run: Runs, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, empty = copy_category(tiny_data, tmp_path), np.zeros(SIZE, np.float32)
    tifffile.imwrite(data / "validation" / "good" / "xyz" / "000.tiff", empty)
    for member, suffix in (("rgb", "png"), ("xyz", "tiff")):
        file = data / "test" / "dent" / member / f"000.{suffix}"
        shutil.copy(file, file.with_stem("007"))  # of which nobody has marked the defect
    done = export(tiny_run(), data=data, out=tmp_path / "cover.onnx")
    assert done.parts == 10
    truth, left_out = capsys.readouterr().err.splitlines()
    assert "007.png: expected ground truth as for others here, found none" in truth
    assert left_out.startswith("warning: 1 part left out that cannot be prepared, such as ") and "000.tiff" in left_out

    good = data / "validation" / "good"
    tifffile.imwrite(good / "xyz" / "001.tiff", empty)
    with pytest.raises(DataError, match="good: expected parts to check the export by, found none that can be prepared"):
        export(tiny_run(), data=good, out=tmp_path / "none.onnx")


def test_others_take_the_place_of_parts_that_cannot_be_prepared(trained: Detector, tiny_data: Path, tmp_path: Path) -> None:
    data = copy_category(tiny_data, tmp_path)
    parts, _ = find_parts(trained, data)
    assert parts[0].depth is not None
    tifffile.imwrite(parts[0].depth, np.zeros(SIZE, np.float32))
    names = {scan.name for scan in prepare_some(trained, parts, 5)}
    assert len(names) == 5 and not names & {str(parts[0].rgb), str(parts[0].depth)}


def test_no_part_is_left_out_for_a_cache_that_cannot_be_written(
    tiny_run: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run()
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("DAS3D_CACHE", str(tmp_path / "file"))
    result = das3d("export", run, "--out", tmp_path / "model.onnx")
    assert result.exit_code == 1 and not (tmp_path / "model.onnx").exists()
    [line] = result.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path / 'file'}") and line.endswith("DAS3D_CACHE chooses another")


@pytest.mark.usefixtures("quick")
def test_made_up_parts_serve_where_the_data_is_gone(tiny_run: Runs, tmp_path: Path) -> None:
    moved = load(tiny_run(), "cpu")
    moved.training = {**moved.training, "data": str(tmp_path / "gone")}
    moved.save(tmp_path / "moved.safetensors")
    result = das3d("export", tmp_path / "moved.safetensors")
    assert (result.exit_code, result.stderr) == (0, "")
    made_up = f"made up, as no parts of the training data {tmp_path / 'gone'} can be used"
    assert f"checked on 32 parts ({made_up})" in result.stdout
    assert f"written to {tmp_path / 'moved.onnx'} (" in result.stdout
    with pytest.raises(DataError, match=r"gone: expected good parts to calibrate int8 by"):
        export(tmp_path / "moved.safetensors", precision="int8")
    (tmp_path / "gone").mkdir()
    assert export(tmp_path / "moved.safetensors").source.startswith("made up, "), "nothing is left there"


def test_parts_of_a_batch_are_computed_side_by_side_by_the_model_that_was_loaded(
    tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    file = Path(shutil.copy(tiny_onnx, tmp_path))
    exported = load(file, "cpu", "onnxruntime")
    file.write_bytes(b"another model takes its place")
    scans = made_up_parts(exported.settings.preparation.size, 5)
    together, alone = exported.run(scans), [exported.run([scan]) for scan in scans]
    names = {thread.name for thread in threading.enumerate()}
    assert len({name for name in names if name.startswith("das3d networks")}) >= 2
    for member in ("map", "score", "rgb", "depth"):
        np.testing.assert_allclose(
            getattr(together, member), np.concatenate([getattr(one, member) for one in alone]), atol=1e-6
        )


def test_only_a_trained_model_is_exported_and_only_by_its_suffix(tiny_onnx: Path, tiny_run: Runs, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cover\.onnx: expected a model as it was trained, found an exported one"):
        export(tiny_onnx)
    with pytest.raises(SettingsError, match=r"cover\.pb: expected a file name that ends in \.xml, as --to openvino writes"):
        export(tiny_run(), "openvino", out=tmp_path / "cover.pb")
    with pytest.raises(ModelError, match=r"expected a model as it was trained, found an exported one \(.*, fp32, CPU\)"):
        load(tiny_onnx).save(tmp_path / MODEL_FILE)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["empty", "text", "picture", "half", "foreign", "newer"])
def test_files_of_something_else_are_refused(
    kind: str, engine: str, tiny_onnx: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "other.onnx"
    content, model = tiny_onnx.read_bytes(), onnx.load(tiny_onnx)
    if kind == "foreign":
        del model.metadata_props[:]
    if kind == "newer":
        model.metadata_props[0].value = json.dumps({**about(tiny_onnx), "format": FORMAT + 1})
        del model.metadata_props[1:]
    newer = model.SerializeToString()
    contents = {"empty": b"", "text": b"hello\n", "half": content[: len(content) // 2]}
    contents["newer"] = newer + seal_of(newer)
    contents["picture"] = b"\x89PNG\r\n\x1a\n" + bytes(64)
    file.write_bytes(contents.get(kind, newer))
    with pytest.raises(ModelError) as caught:
        load(file, "cpu", engine)
    text = str(caught.value)
    assert text.startswith(f"{file}: expected ") and "\n" not in text
    assert capfd.readouterr().err == ""  # nor do the engines' own readers complain
    assert {"foreign": "that das3d exported", "newer": f"format {FORMAT}, found {FORMAT + 1}"}.get(
        kind, "a model as ONNX"
    ) in text


@pytest.mark.parametrize(
    ("name", "device", "engine", "message"),
    [
        ("cover.onnx", "cpu", "torch", r"cover\.onnx: expected engine onnxruntime or openvino for such a file"),
        ("cover.onnx", "cpu", "tpu", r"engine: expected one of auto, torch, onnxruntime, openvino, found 'tpu'"),
        ("cover.onnx", "mps", "onnxruntime", r"device: expected auto or cpu .* for ONNX Runtime, found 'mps'"),
        ("cover.onnx", "cuda", "auto", r"device: expected auto or cpu .* for ONNX Runtime, found 'cuda'"),
        ("cover.onnx", "npu:7", "openvino", r"device: expected one of auto, cpu.* for OpenVINO, found 'npu:7'"),
        ("cover.xml", "cpu", "onnxruntime", r"cover\.xml: expected engine openvino for such a file, found 'onnxruntime'"),
        (
            MODEL_FILE,
            "cpu",
            "openvino",
            r"expected engine torch for a model as it was trained, found 'openvino'",
        ),
    ],
)
def test_file_device_and_engine_must_go_together(
    name: str, device: str, engine: str, message: str, tiny_onnx: Path, tiny_run: Runs, tmp_path: Path
) -> None:
    shutil.copy(tiny_run() / MODEL_FILE if name == MODEL_FILE else tiny_onnx, tmp_path / name)
    with pytest.raises(ModelError, match=message):
        load(tmp_path / name, device, engine)


def test_without_a_cuda_device_to_use_onnx_runtime_takes_the_cpu_unless_told_otherwise(
    tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As built for CUDA, where no device can be used: it warns and takes the CPU.
    session = onnxruntime.InferenceSession
    monkeypatch.setattr("das3d.engines.onnx_engine.has_cuda", lambda: True)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda file, options, **_: session(file, options))
    assert load(tiny_onnx, "auto", "onnxruntime").engine.device == "CPU"
    with pytest.raises(ModelError, match="expected one that ONNX Runtime can use here, found 'cuda'"):
        load(tiny_onnx, "cuda", "onnxruntime")


@pytest.mark.parametrize(
    ("hidden", "chosen"), [("", "OpenVINO"), ("openvino", "ONNX Runtime"), ("onnxruntime", "OpenVINO")]
)
def test_the_fastest_installed_engine_is_chosen(
    hidden: str, chosen: str, tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if hidden:
        monkeypatch.setitem(sys.modules, hidden, None)
    assert load(tiny_onnx).engine.describe() == f"{chosen}, fp32, CPU"
