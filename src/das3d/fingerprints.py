"""What tells a part from all others, wherever it lies: a model knows by it which parts it has seen."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from das3d.parts import Part
from das3d.scan import Scan


def fingerprint_of(part: Part, *, rgb: bool = True, depth: bool = True) -> str:
    """A hash of those members that exist and are wanted: the same in every format without loss.

    A model wants those that it needs of every scan. The others may be missing or damaged by the time that it meets the part
    again, and tell it nothing new.

    Raises:
        DataError: a file cannot be read, or no member is left.
    """
    return fingerprint_in(replace(part, masks=()).read(rgb=rgb, depth=depth))


def fingerprint_in(scan: Scan) -> str:
    """The same of a part that has been read already, with the wanted members alone."""
    members = (member for member in (scan.rgb, scan.depth) if member is not None)
    content = b"".join(np.ascontiguousarray(member).tobytes() for member in members)
    return hashlib.blake2b(content, digest_size=8).hexdigest()
