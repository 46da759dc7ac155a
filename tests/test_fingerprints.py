"""Which parts a model has seen: told by all that it sees of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import sample, write_member

from das3d.errors import DataError
from das3d.fingerprints import fingerprint_in, fingerprint_of
from das3d.parts import Part


@pytest.fixture
def parts(tmp_path: Path) -> list[Part]:
    """Three parts that differ in depth alone: nobody uses their RGB, which is blank."""
    blank = np.zeros_like(sample().rgb)
    return [
        Part(
            f"{seed}", "train", "good", write_member(tmp_path / f"{seed}.png", blank),
            write_member(tmp_path / f"{seed}.npy", sample(seed).depth),
        )
        for seed in range(3)
    ]  # fmt: skip


def test_parts_of_the_same_rgb_are_told_apart_by_their_depth(parts: list[Part]) -> None:
    assert len({fingerprint_of(part) for part in parts}) == 3
    assert [fingerprint_in(part.read()) for part in parts] == [fingerprint_of(part) for part in parts]


def test_what_is_not_wanted_is_neither_told_nor_read(parts: list[Part]) -> None:
    deep = [fingerprint_of(part, rgb=False) for part in parts]
    assert deep == [fingerprint_of(replace(part, rgb=None)) for part in parts] and len(set(deep)) == 3
    assert parts[0].rgb is not None
    whole = parts[0].rgb.read_bytes()
    parts[0].rgb.unlink()
    assert fingerprint_of(parts[0], rgb=False) == deep[0]
    for length in (9, 45):  # half of its header, and no more than that
        parts[0].rgb.write_bytes(whole[:length])
        assert fingerprint_of(parts[0], rgb=False) == deep[0]
    with pytest.raises(DataError, match=r"0\.png: expected an RGB image"):
        fingerprint_of(parts[0])
    assert len({fingerprint_of(part, depth=False) for part in parts[1:]}) == 1


def test_a_member_alone_is_told_by_itself(parts: list[Part]) -> None:
    assert len({fingerprint_of(replace(part, rgb=None)) for part in parts}) == 3
    assert len({fingerprint_of(replace(part, depth=None)) for part in parts}) == 1
