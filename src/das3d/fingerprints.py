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
    return fingerprint_in(_read(part))


def fingerprint_in(scan: Scan) -> str:
    """The same of a part that has been read already, with all its members."""
    members = (member for member in (scan.rgb, scan.depth) if member is not None)
    return _hash(b"".join(np.ascontiguousarray(member).tobytes() for member in members))


def marks_of(part: Part) -> set[str]:
    """What models of any version may know the part by: its fingerprint, that of its colours alone, and its file's."""
    scan = _read(part)
    alone = fingerprint_in(scan if scan.rgb is None else scan.without(depth=True))
    return {fingerprint_in(scan), alone, file_mark_of(part)}


def file_mark_of(part: Part) -> str:
    """The hash of the part's file, which older models kept instead of a fingerprint."""
    return _hash(file_of(part).read_bytes())


def content_of(part: Part) -> str:
    """A hash of all files of the part: copies have the same, whatever they are called."""
    return _hash(b"".join(_hash(file.read_bytes()).encode() for file in (part.rgb, part.depth) if file is not None))


def _read(part: Part) -> Scan:
    return replace(part, masks=()).read()


def file_of(part: Part) -> Path:
    """The file that stands for the part."""
    file = part.rgb or part.depth
    assert file is not None
    return file.resolve()


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()
