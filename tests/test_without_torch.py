"""What works where PyTorch is not installed, and what is said where it is needed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# None in sys.modules makes an import fail as if the package were not there.
BLOCK = "import sys; sys.modules['torch'] = sys.modules['lightning'] = None; "
TRAINING = (
    "batches", "calibration", "losses", "network", "noise", "run", "synthesis", "textures", "torch_engine", "training",
)  # fmt: skip


def python(script: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter without PyTorch."""
    return subprocess.run([sys.executable, "-c", BLOCK + script], capture_output=True, text=True, check=False)


def das3d(*words: object) -> subprocess.CompletedProcess[str]:
    return python(f"sys.argv[1:] = {[str(word) for word in words]}; from das3d.cli import main; main()")


def test_all_but_training_can_be_imported() -> None:
    done = python(
        "import das3d, pkgutil; from importlib import import_module\n"
        "for module in pkgutil.iter_modules(das3d.__path__):\n"
        f"    if module.name not in {(*TRAINING, '__main__')}:\n"
        "        import_module(f'das3d.{module.name}')\n"
    )
    assert done.returncode == 0, done.stderr


def test_training_says_what_to_install(tmp_path: Path) -> None:
    done = das3d("train", tmp_path, "--out", tmp_path / "run")
    needs = 'needs torch, which is not installed; install it by pip install "das3d[train]"'
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"error: das3d train {needs}\n")
    done = python("from das3d import train")
    assert done.stderr.splitlines()[-1] == f"das3d.errors.MissingPackageError: das3d.train {needs}"


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_a_trained_model_says_what_to_install(command: str, tiny_run: Callable[..., Path], tmp_path: Path) -> None:
    done = das3d(command, tiny_run(), "--data", tmp_path, "--out", tmp_path / "out")
    assert (done.returncode, done.stdout) == (1, "")
    needs = 'needs torch, which is not installed; install it by pip install "das3d[train]"'
    where = f"{tiny_run() / 'model.safetensors'}: a model as it was trained"
    assert done.stderr == f"error: {where} {needs}; or export it where it was trained (das3d export)\n"
