"""What tells a part from all others, wherever it lies: a model knows by it which parts it has seen."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from das3d.parts import Part
from das3d.scan import Scan


def fingerprint_of(part: Part) -> str:
    """A hash of the part's colours and depth, as far as it has them; the same in every format without loss."""
    return fingerprint_in(replace(part, masks=()).read())


def fingerprint_in(scan: Scan) -> str:
    """The same of a part that has been read already, with all its members."""
    members = (member for member in (scan.rgb, scan.depth) if member is not None)
    return _hash(b"".join(np.ascontiguousarray(member).tobytes() for member in members))


def content_of(part: Part) -> str:
    """A hash of all files of the part: copies have the same, whatever they are called."""
    return _hash(b"".join(_hash(file.read_bytes()).encode() for file in (part.rgb, part.depth) if file is not None))


def file_of(part: Part) -> Path:
    """The file that stands for the part."""
    file = part.rgb or part.depth
    assert file is not None
    return file.resolve()


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()
