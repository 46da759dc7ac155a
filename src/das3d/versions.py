"""Which versions of other packages are installed."""

from __future__ import annotations

import contextlib
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version


def version_of(package: str) -> str:
    """Version of a package by its import name, whichever distribution brings it; "" where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:  # as of cv2, or of onnxruntime where onnxruntime-gpu brings it
        with contextlib.suppress(ImportError):
            return str(import_module(package).__version__)
        return ""
