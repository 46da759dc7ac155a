"""A tiny data set and tiny models that train in a second, for tests that need a whole run."""

from __future__ import annotations

import shutil
from pathlib import Path

from typer.testing import CliRunner, Result

from das3d.cli import app
from das3d.demo import CATEGORY, make_demo

SIZE = (64, 80)  # height, width
ITERATIONS = 12
CHANGES = (
    f"training.iterations={ITERATIONS}",
    "training.batch=4",
    "training.precision=float32",
    "preparation.size=64",
    "network.repair_widths=[8, 8, 8]",
    "network.discriminator_widths=[8, 8, 8]",
    "network.fuse_width=8",
)


def make_tiny_data(folder: Path) -> Path:
    return make_demo(folder, train=4, validation=2, good=2, defective=1, size=SIZE)


def train_tiny(data: Path, out: Path, modality: str = "rgb+depth", *options: str) -> Path:
    changes = [word for change in CHANGES for word in ("--set", change)]
    result = das3d("train", data, "--out", out, "--preset", "demo", "--modality", modality, *changes, *options)
    assert result.exit_code == 0, result.output
    return out


def das3d(*words: object) -> Result:
    """The command line, in this process."""
    return CliRunner().invoke(app, [str(word) for word in words], prog_name="das3d")


def copy_category(data: Path, to: Path) -> Path:
    """A copy of the tiny category that a test may change."""
    return Path(shutil.copytree(data / CATEGORY, to / CATEGORY))
