"""Where the texture Iu of eq. (8) comes from, when it is not generated: a folder of pictures, or the training parts."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor

from das3d._listing import is_stray
from das3d.batches import GoodParts
from das3d.errors import DataError
from das3d.files import RGB_SUFFIXES, read_rgb
from das3d.settings import SynthesisSettings

Some = TypeVar("Some", list[Path], Tensor)

MOST = 512  # pictures kept on the device; more add little variety and much memory


def expect_textures(settings: SynthesisSettings) -> None:
    """Refuse settings whose folder of textures is not there, before any long work.

    Raises:
        DataError: the folder is missing or holds no picture.
    """
    if settings.texture == "folder":
        _pictures_in(Path(settings.texture_folder))


def load_textures(settings: SynthesisSettings, parts: GoodParts) -> Tensor | None:
    """Texture pictures (N, 3, S, S) uint8 on the parts' device; None where textures are generated.

    Raises:
        DataError: the folder is missing, holds no picture, or some of those that are taken cannot be read; these are all
            named.
    """
    side = int(parts.rgb.shape[-1])
    if settings.texture == "parts":
        return _some(parts.rgb)
    if settings.texture == "folder":
        return _from_folder(Path(settings.texture_folder), side).to(parts.device)
    return None


def _from_folder(folder: Path, side: int) -> Tensor:
    # Textures look alike whichever way they lie, so those of cameras that were held upright need not be turned.
    pictures, problems = [], []
    for file in _some(_pictures_in(folder)):
        try:
            pictures.append(cv2.resize(read_rgb(file, upright=False), (side, side), interpolation=cv2.INTER_AREA))
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def _pictures_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder of texture pictures, found no such folder")
    there = (file for file in folder.rglob("*") if not is_stray(file.name))
    files = sorted(file for file in there if file.suffix.lower() in RGB_SUFFIXES)
    if not files:
        raise DataError(f"{folder}: expected texture pictures ({', '.join(sorted(RGB_SUFFIXES))}), found none")
    return files


def _some(pictures: Some) -> Some:
    # Evenly, so that no class of a sorted folder is left out.
    return pictures[:: -(-len(pictures) // MOST)]
