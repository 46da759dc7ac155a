"""What lies in a folder, without what systems and people leave there, and small YAML files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from das3d.errors import DataError, one_line

STRAY_NAMES = frozenset({
    "thumbs.db", "desktop.ini", "__macosx", "$recycle.bin", "system volume information", "lost+found", "@eadir", "#recycle",
})  # fmt: skip
STRAY_SUFFIXES = frozenset({  # notes
    ".txt", ".md", ".json", ".yaml", ".yml", ".csv", ".log", ".xml", ".ini", ".pdf", ".xlsx",
})  # fmt: skip


def is_stray(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or left by a system."""
    return name.startswith((".", "~$")) or name.lower() in STRAY_NAMES  # ~$: of a document that Office has open


def files_in(folder: Path) -> list[Path]:
    """Files of a folder that may be members of a part: not hidden, no notes, none that a system left.

    Raises:
        DataError: the folder cannot be read.
    """
    files = [path for path, is_folder in _children(folder) if not is_folder]
    return [file for file in files if file.suffix.lower() not in STRAY_SUFFIXES]


def folders_in(folder: Path) -> list[Path]:
    """Folders of a folder that are not hidden and that no system left, in natural order.

    Raises:
        DataError: the folder cannot be read.
    """
    folders = {path.name: path for path, is_folder in _children(folder) if is_folder}
    return [folders[name] for name in natural_order(folders)]


def _children(folder: Path) -> list[tuple[Path, bool]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((folder / entry.name, _is_folder(entry)) for entry in entries if not is_stray(entry.name))
    except OSError as error:
        raise DataError(f"{folder}: expected a readable folder, found {error.strerror or error}") from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        if entry.is_symlink():  # to itself, or to where nobody may look: it holds up no other, and reading it says why
            return False
        raise


def natural_order(names: Iterable[str]) -> list[str]:
    """Names sorted as people count: 2 before 10."""

    def key(name: str) -> tuple[list[str | int], str]:
        # Text and digits by turns, so that equal places always compare; the name itself decides between 1 and 01.
        return [int(word) if word.isdecimal() else word for word in re.split(r"(\d+)", name)], name

    return sorted(names, key=key)


def read_yaml(path: Path) -> dict[Any, Any]:
    """The names and values in a YAML file; none for an empty one.

    Raises:
        DataError: it cannot be read, or holds something else.
    """
    import yaml

    try:
        values = yaml.load(path.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path}: expected YAML, found {one_line(error)}") from None
    if values is not None and not isinstance(values, dict):
        raise DataError(f"{path}: expected names and values (name: value), found {one_line(values)!r}")
    return values or {}
