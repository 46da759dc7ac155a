"""What works where PyTorch is not installed, and what is said where it is needed."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import python

# Python finds no such package, wherever it looks.
HIDE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "lightning"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
"""
TRAINING = (
    "_batch_norm", "_bundle", "_numba", "_replay", "batches", "benchmark", "calibration", "compiled_losses",
    "compiled_synthesis", "engines.torch_engine", "exporting", "light", "losses", "network", "noise", "optimizer",
    "pairs", "preview", "recipes", "run", "synthesis", "textures", "training",
)  # fmt: skip


def das3d(*words: object) -> subprocess.CompletedProcess[str]:
    command = f"sys.argv[1:] = {[str(word) for word in words]}; from das3d.cli import main; main()"
    return python("-c", HIDE + command, succeeds=False)


def test_all_but_training_can_be_imported() -> None:
    script = (
        "import das3d, pkgutil; from importlib import import_module\n"
        "for module in pkgutil.walk_packages(das3d.__path__, 'das3d.'):\n"
        f"    if module.name.removeprefix('das3d.') not in {(*TRAINING, '__main__')}:\n"
        "        import_module(module.name)\n"
    )
    python("-c", HIDE + script)


def test_training_says_what_to_install(tmp_path: Path) -> None:
    done = das3d("train", tmp_path, "--out", tmp_path / "run")
    needs = 'needs torch, which is not installed; install it by pip install "das3d[train]"'
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"error: das3d train {needs}\n")
    done = python("-c", HIDE + "from das3d import train", succeeds=False)
    assert done.stderr.splitlines()[-1] == f"das3d.errors.MissingPackageError: das3d.train {needs}"


def test_a_wrong_setting_is_told_before_pytorch_is_loaded(tmp_path: Path) -> None:
    result = das3d("train", tmp_path, "--out", tmp_path / "run", "--set", "training.iteration=4")
    assert (result.returncode, result.stderr) == (1, "error: settings: unknown setting 'training.iteration'\n")


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_a_trained_model_says_what_to_install(command: str, tiny_run: Callable[..., Path], tmp_path: Path) -> None:
    done = das3d(command, tiny_run(), "--data", tmp_path, "--out", tmp_path / "out")
    assert (done.returncode, done.stdout) == (1, "")
    needs = 'needs torch, which is not installed; install it by pip install "das3d[train]"'
    where = f"{tiny_run() / 'model.safetensors'}: a model as it was trained"
    assert done.stderr == f"error: {where} {needs}; or export it where it was trained (das3d export)\n"


def test_an_exported_model_predicts_and_evaluates(
    tiny_onnx: Path, tiny_run: Callable[..., Path], tiny_data: Path, tmp_path: Path
) -> None:
    from das3d.detector import load
    from das3d.evaluation import evaluate

    model = Path(shutil.copy(tiny_onnx, tmp_path))
    done = das3d("evaluate", model, "--data", tiny_data, "--engine", "onnxruntime")
    assert (done.returncode, done.stderr) == (0, "")
    folder = tmp_path / f"evaluation_{model.name.replace('.', '_')}"
    assert done.stdout.endswith(f"written to {folder}; computed by ONNX Runtime, fp32, CPU\n")
    found = json.loads((folder / "metrics.json").read_text())
    expected = evaluate(load(tiny_run()), tiny_data, tmp_path / "trained")
    for figure in ("i_auroc", "p_auroc", "aupro_30", "aupro_01", "detected", "false_alarms"):
        assert found[figure] == pytest.approx(expected[figure], abs=1e-3), figure
    assert found["threshold"] == expected["threshold"] and found["training"] == expected["training"]

    done = das3d("predict", model, "--data", tiny_data, "--out", tmp_path / "p", "--engine", "onnxruntime")
    known = "warning: the model saw 4 of 14 parts in training: such scores are too low to say anything\n"
    assert (done.returncode, done.stderr) == (0, known)
    assert (tmp_path / "p" / "scores.csv").read_text().count("\n") > 10
