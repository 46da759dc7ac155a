"""Fixtures that several test files share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from browser import CHROMIUM, FLAGS
from helpers import unchanged
from tiny import make_tiny_data, train_tiny

if TYPE_CHECKING:
    from playwright.sync_api import Browser

torch.set_num_threads(1)  # sums in the same order on any machine and in every process of a test

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real scans (`mvtec3d/`, `eyecandies/`); the data sets' licences keep them out of the project."""
    folder = Path(os.environ.get("DAS3D_DATA", PROJECT.parent / "shared" / "data"))
    if not (folder / "mvtec3d").is_dir():
        pytest.skip(f"real scans not found at {folder}; set DAS3D_DATA to the folder that holds mvtec3d/")
    return folder


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Prepared scans of tests stay out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAS3D_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Root of a tiny rendered data set; a test that changes it fails the session at its end."""
    with unchanged(make_tiny_data(tmp_path_factory.mktemp("tiny_data"))) as root:
        yield root


@pytest.fixture(scope="session")
def tiny_run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Path]]:
    """The run folder of a tiny model of a modality, trained when first asked for; tests must not change it either."""
    with ExitStack() as guards:

        @cache
        def run(modality: str = "rgb+depth") -> Path:
            folder = train_tiny(tiny_data, tmp_path_factory.mktemp("tiny_run") / "run", modality)
            return guards.enter_context(unchanged(folder))

        yield run


@pytest.fixture(scope="session")
def tiny_onnx(tiny_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model of RGB and depth as ONNX; tests must not change it."""
    from das3d.exporting import export

    return export(tiny_run(), out=tmp_path_factory.mktemp("tiny_onnx") / "cover.onnx").file


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium, closed with the module: while it runs, no other event loop can in this thread."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield opened
        opened.close()
