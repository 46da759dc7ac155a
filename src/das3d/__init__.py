"""das3d: find defects in products from RGB + 3D scans, having seen good parts only.

    from das3d import load, train

    train("data", "runs/gland", category="cable_gland")
    detector = load("runs/gland")
    prediction = detector.predict(rgb, depth)  # (H, W, 3) uint8; (H, W) metres, or (H, W, 3) points
    prediction.score, prediction.defective, prediction.map

Names are imported when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from das3d.calibration import calibrate
    from das3d.datacheck import DataCheck, check_data
    from das3d.datasets import Dataset, find_categories, find_dataset
    from das3d.demo import make_demo
    from das3d.detector import Detector, Prediction, load
    from das3d.errors import Das3dError, DataError, MissingPackageError, ModelError, SettingsError
    from das3d.evaluation import evaluate
    from das3d.exporting import export
    from das3d.files import DepthFormat
    from das3d.pairs import SyntheticPairs, harm_pairs
    from das3d.parts import Part
    from das3d.recipes import Recipe, draw_recipe
    from das3d.run import train
    from das3d.scan import Camera, Scan, scan_from_arrays
    from das3d.settings import Settings, make_settings
    from das3d.synthesis import Harmed, apply_recipes, synthesise

_HOMES = {
    "Camera": "scan", "Das3dError": "errors", "DataCheck": "datacheck", "DataError": "errors", "Dataset": "datasets",
    "DepthFormat": "files", "Detector": "detector", "MissingPackageError": "errors", "ModelError": "errors",
    "Part": "parts", "Prediction": "detector", "Recipe": "recipes", "Scan": "scan", "Settings": "settings",
    "SettingsError": "errors", "SyntheticPairs": "pairs", "apply_recipes": "synthesis", "calibrate": "calibration",
    "check_data": "datacheck", "Harmed": "synthesis",
    "draw_recipe": "recipes", "evaluate": "evaluation", "export": "exporting", "find_categories": "datasets",
    "find_dataset": "datasets", "harm_pairs": "pairs", "load": "detector", "make_demo": "demo",
    "make_settings": "settings", "scan_from_arrays": "scan", "synthesise": "synthesis", "train": "run",
}  # fmt: skip

__all__ = [
    "Camera",
    "Das3dError",
    "DataCheck",
    "DataError",
    "Dataset",
    "DepthFormat",
    "Detector",
    "Harmed",
    "MissingPackageError",
    "ModelError",
    "Part",
    "Prediction",
    "Recipe",
    "Scan",
    "Settings",
    "SettingsError",
    "SyntheticPairs",
    "apply_recipes",
    "calibrate",
    "check_data",
    "draw_recipe",
    "evaluate",
    "export",
    "find_categories",
    "find_dataset",
    "harm_pairs",
    "load",
    "make_demo",
    "make_settings",
    "scan_from_arrays",
    "synthesise",
    "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'das3d' has no attribute {name!r}")
    from das3d.errors import explained

    with explained(f"das3d.{name}"):
        return getattr(import_module(f"das3d.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
