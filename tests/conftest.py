"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real scans (`mvtec3d/`, `eyecandies/`); the data sets' licences keep them out of the project."""
    folder = Path(os.environ.get("DAS3D_DATA", PROJECT.parent / "shared" / "data"))
    if not (folder / "mvtec3d").is_dir():
        pytest.skip(f"real scans not found at {folder}; set DAS3D_DATA to the folder that holds mvtec3d/")
    return folder
