"""One part on disk, and how good parts that nobody has split are split."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from das3d.arguments import expect_kind, list_of, path_of
from das3d.errors import DataError
from das3d.files import DepthFormat, lacks_grid, read_depth, read_mask, read_rgb, rgb_size
from das3d.scan import Scan

Split = Literal["train", "validation", "test"]

GOOD = "good"
UNKNOWN = "unknown"  # the kind of a part that nobody has judged


@dataclass(frozen=True)
class Part:
    """One part on disk.

    Attributes:
        id: unique in its data set: "split/kind/name", such as "test/bent/000", or the name alone for unjudged parts.
        split: what the part is for.
        defect: "good", the kind of defect, or "unknown".
        rgb, depth: files of its members, None where there are none.
        masks: files whose union is the ground truth; empty where nobody has marked any. Those of a good part mark nothing.
        depth_format: how the numbers in `depth` become metres; None takes floats as metres and refuses integers.
    """

    id: str
    split: Split
    defect: str
    rgb: Path | None
    depth: Path | None
    masks: tuple[Path, ...] = ()
    depth_format: DepthFormat | None = None

    def __post_init__(self) -> None:
        for name in ("rgb", "depth"):
            if (file := getattr(self, name)) is not None and not isinstance(file, Path):
                object.__setattr__(self, name, path_of(file, name))
        if not (isinstance(self.masks, tuple) and all(isinstance(file, Path) for file in self.masks)):
            masks: list[Any] = list_of(object, self.masks, "masks", DataError)
            object.__setattr__(self, "masks", tuple(path_of(file, "masks") for file in masks))
        if self.depth_format is not None:
            expect_kind(DepthFormat, self.depth_format, "depth_format", DataError, giver="DepthFormat.from_unit")

    @property
    def defective(self) -> bool:
        """Whether it is known to have a defect."""
        return self.defect not in (GOOD, UNKNOWN)

    def files(self, *, rgb: bool = True, depth: bool = True) -> list[Path]:
        """What `read` looks into for the members that exist and are wanted.

        Raises:
            DataError: a depth file that must be looked into to tell cannot be read.
        """
        needs_rgb = rgb or (depth and self.rgb and self.depth and lacks_grid(self.depth))
        return [file for file in (self.rgb if needs_rgb else None, self.depth if depth else None, *self.masks) if file]

    def read(self, *, rgb: bool = True, depth: bool = True) -> Scan:
        """The scan: those members that exist and are wanted.

        The mask of a good part is False everywhere; that of any other part without mask files is None.

        Raises:
            DataError: a file cannot be read, the members differ in size, none is left, or a good part has a defect marked.
        """
        colours = read_rgb(self.rgb) if rgb and self.rgb else None
        metres = valid = camera = None
        if depth and self.depth:
            size = rgb_size(self.rgb) if self.rgb and lacks_grid(self.depth) else None
            metres, valid, camera = read_depth(self.depth, self.depth_format, size=size)
        masks = {path: read_mask(path) for path in self.masks}
        sizes = {path: mask.shape for path, mask in masks.items()}
        for path, member in ((self.depth, metres), (self.rgb, colours)):
            if path is not None and member is not None:
                sizes = {path: member.shape[:2], **sizes}
        if problem := size_problem(sizes):
            raise DataError(problem)
        mask = np.logical_or.reduce(list(masks.values())) if masks else None
        if self.defect == GOOD:  # a marked one among them would be learnt as it is
            for path, marked in masks.items():
                if count := np.count_nonzero(marked):
                    raise DataError(f"{path}: expected no defect on a good part, found {count:,} marked pixels")
        if mask is None and self.defect == GOOD and sizes:
            mask = np.zeros(next(iter(sizes.values())), np.bool_)
        # Nearly all that can be wrong with a scan that was read is wrong with its depth.
        file = self.rgb if metres is None else self.depth
        return Scan(name=str(file or self.id), rgb=colours, depth=metres, valid=valid, mask=mask, camera=camera)


def size_problem(sizes: Mapping[Path, tuple[int, ...]]) -> str | None:
    """One line that names the members of one part and their sizes (height, width) if these differ, else None."""
    if len(set(sizes.values())) < 2:
        return None
    (first, (height, width)), *others = sizes.items()
    found = " and ".join(f"{size[1]} x {size[0]} in {path}" for path, size in others if size != (height, width))
    return f"{first}: expected all members of a part to have one size, found {width} x {height} here and {found}"


def name_problem(part: Part) -> str | None:
    """One line that names a file of the part whose name is no UTF-8 or has a line break, so that no table of results can
    hold it, else None.
    """
    for name in (str(part.rgb), str(part.depth)):
        shown = table_text(name)
        if found := LINE_BREAK.search(name):
            told = f"{_escaped(found)}, as names have that come from a list written under Windows"
            return f"{shown}: expected a name without line breaks, found {told}; rename it"
        if shown != name:
            return (
                f"{shown}: expected a name in UTF-8, found one in another encoding, as archives from Windows may have; "
                "rename it, such as by: convmv -r --notest -f cp850 -t utf-8 FOLDER"
            )
    return None


LINE_BREAK = re.compile(r"[\r\n]")


def table_text(text: str) -> str:
    """Text as any table can hold it: what is no UTF-8, and line breaks, as escapes."""
    return LINE_BREAK.sub(_escaped, text).encode(errors="backslashreplace").decode()


def _escaped(found: re.Match[str]) -> str:
    return "\\r" if found[0] == "\r" else "\\n"


HOLD_OUT = 0.1  # share of the good parts that is held out where nobody says


def split_good(names: Sequence[str], *, test: bool, hold_out: float = HOLD_OUT) -> list[Split]:
    """Split good parts by their names alone: a share `hold_out` for validation, with `test` 10 % for the test, the rest
    for training.

    Each name has a fixed point in (0, 1) and each split a range of it, so further parts never move a part to another
    split. Where chance leaves a split empty, which happens in small sets only, the borders between the splits move past as
    few parts as give each split one; where there are too few parts, training comes first, then validation. A larger share
    holds out the same parts and more, where chance left no split empty.
    """
    # Without test parts their range becomes the lowest, so that the validation parts are the same either way.
    points = [_point(name) if test else (_point(name) + 0.1) % 1 for name in names]
    order = sorted(range(len(names)), key=lambda index: (points[index], names[index]))
    count, needed = len(names), int(test and len(names) >= 3)
    end = 0.9 if test else 1.0
    below = [sum(point < border for point in points) for border in (end - hold_out, end)]
    held_out = int(hold_out > 0)
    train = min(max(below[0], 1), max(1, count - held_out - needed))
    validation = min(max(below[1], train + held_out), count - needed)
    splits: list[Split] = ["test"] * count
    for place, index in enumerate(order):
        splits[index] = "train" if place < train else "validation" if place < validation else "test"
    return splits


def _point(name: str) -> float:
    # Names that are no UTF-8 are refused later, together with all else that is wrong.
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogatepass")).digest()[:6], "big") / 2**48
