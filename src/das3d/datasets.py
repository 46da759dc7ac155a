"""Finding data sets: which layout, which category, which parts, and everything that is wrong with them, all at once.

    dataset = find_dataset("data", "cable_gland")
    scan = dataset.train[0].read()

The layouts themselves are in `layouts`. Whatever names and headers can tell is checked here, before any work starts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from das3d._listing import files_in, folders_in
from das3d.arguments import expect_kind, expect_one_of, path_of
from das3d.console import counted, warn
from das3d.errors import DataError
from das3d.files import HOW_TO_DECLARE, METRES, DepthFormat, depth_size, mask_size, rgb_size
from das3d.layouts import (
    ABOUT_TRUTH,
    DECLARATION,
    LAYOUTS,
    NAMING,
    OWN,
    ROLES,
    Layout,
    Search,
    light_of,
    splits_in,
    unlabelled,
)
from das3d.parts import GOOD, HOLD_OUT, UNKNOWN, Part, Split, name_problem, size_problem

__all__ = ["Dataset", "DepthFormat", "Part", "expect_outside", "find_categories", "find_dataset", "find_folder"]

Progress = Callable[[int, int], None]  # parts done, all parts


@dataclass(frozen=True)
class Dataset:
    """The parts of one category.

    Attributes:
        root: folder of the category.
        layout: name of its layout: "mvtec3d", "3d-adam", "eyecandies" or "folder".
        category: its name.
        parts: of all splits, in the natural order of their names.
        light: which image of Eyecandies parts is their RGB; None in other layouts.
    """

    root: Path
    layout: str
    category: str
    parts: tuple[Part, ...]
    light: int | None = None

    @property
    def train(self) -> tuple[Part, ...]:
        """Good parts to train on."""
        return self._of("train")

    @property
    def validation(self) -> tuple[Part, ...]:
        """Good parts that are held out, for the threshold."""
        return self._of("validation")

    @property
    def test(self) -> tuple[Part, ...]:
        """Good and defective parts, for figures alone."""
        return self._of("test")

    def _of(self, split: Split) -> tuple[Part, ...]:
        return tuple(part for part in self.parts if part.split == split)

    @property
    def depth_format(self) -> DepthFormat | None:
        """How all depth files are read; None where parts differ in it or there is no depth."""
        formats = {part.depth_format for part in self.parts if part.depth}
        return formats.pop() if len(formats) == 1 else None


def find_dataset(
    root: Path | str,
    category: str | None = None,
    *,
    rgb: bool = True,
    depth: bool = True,
    light: int | None = None,
    depth_format: DepthFormat | None = None,
    hold_out: float = HOLD_OUT,
    needs: Split = "train",
    headers: bool = True,
    progress: Progress | None = None,
) -> Dataset:
    """Find the parts of one category, in any layout, and check them by their names and headers.

    Args:
        root: folder of a data set, or of one category of it.
        category: which one; may be left out where there is only one.
        rgb, depth: whether every part must have this member. One that is not needed must be there for all parts or none.
        light: which of the six images of an Eyecandies part is its RGB; 4, lit from all sides, where None.
        depth_format: how depth files are to be read where ``dataset.yaml`` does not say; where it is None, those of MVTec
            3D-AD hold metres.
        hold_out: share of the good parts that becomes validation parts where the data has none (`split_good`).
        needs: the split that must not be empty.
        headers: whether to look into every file; otherwise one that cannot be used shows when it is read.
        progress: called with the number of parts checked and the number of all parts.

    Raises:
        DataError: anything is wrong; every problem has its line, and those of one kind are cut short after ten.
    """
    root = path_of(root, "root")
    if category is not None:
        expect_kind(str, category, "category", DataError)
    expect_one_of(get_args(Split), needs, "needs", DataError)
    search = Search(rgb=rgb, depth=depth, light=light, depth_format=depth_format, hold_out=hold_out)
    folder, layout = _choose(root, category)
    parts = layout.parts(folder, search)
    _check_names(parts, search)
    _check_labels(parts, search)
    if any(part.depth and part.depth_format is None for part in parts):
        but = f" but {file}" if (file := _declared_elsewhere(folder)) else ""
        search.report("no unit", f"{folder}: expected a declared unit for depth, found none{but}; {HOW_TO_DECLARE}")
    if rgb == depth and not parts and "unknown files" in search.problems:
        expected = "expected RGB and depth of each part, told by their names, found none so named"
        hint = "scans of RGB alone, or of depth alone, may be called anything for das3d train --modality rgb, or depth"
        search.report("no names", f"{folder}: {expected}; {hint}")
    _check_complete(folder, parts, search)
    if headers:
        _check_files(parts, search, progress)
    if not search.problems and not any(part.split == needs for part in parts):
        found = f"only {len(parts)} of other splits" if parts else "none"
        search.report("empty split", f"{folder}: expected {needs} parts, found {found}")
    search.raise_if_any()
    lit = light_of(light) if layout.name == "eyecandies" else None
    return Dataset(folder, layout.name, name_of(folder), tuple(parts), lit)


def find_folder(
    folder: Path | str,
    *,
    rgb: bool = True,
    depth: bool = True,
    light: int | None = None,
    depth_format: DepthFormat | None = None,
    hold_out: float = HOLD_OUT,
    progress: Progress | None = None,
    check: bool = True,
    truth: bool = True,
) -> list[Part]:
    """Find parts to predict: all splits of a data set, or a plain folder of parts that nobody has judged.

    In a plain folder lie files ``NAME_rgb.png`` and ``NAME_depth.png``, or folders ``rgb`` and ``depth``. Arguments and
    errors as for `find_dataset`, but float depth without a unit is taken as metres. Without `check` no part is looked at
    closer: one that lacks a member or cannot be read shows when it is used, and does not hold up the others. Without
    `truth` the parts have no ground truth, and what is wrong with it is a warning.
    """
    folder = path_of(folder, "folder")
    search = Search(rgb=rgb, depth=depth, light=light, depth_format=depth_format, hold_out=hold_out)
    _expect_folder(folder)
    plain = files_in(folder) or any(child.name.lower() in ROLES for child in folders_in(folder))
    if plain and not _layout_of(folder):
        parts = unlabelled(folder, search)
    else:
        folder, layout = _choose(folder, None)
        parts = layout.parts(folder, search)
    _check_names(parts, search)
    if not truth:
        parts = [replace(part, masks=()) for part in parts]
        for line in search.without(ABOUT_TRUTH):
            warn(line)
    if check:
        _check_complete(folder, parts, search)
        _check_files(parts, search, progress)
    if not search.problems and not parts:
        search.report("no parts", f"{folder}: expected parts ({NAMING}), found none")
    search.raise_if_any()
    return parts


def find_categories(root: Path | str) -> list[str]:
    """Names of the categories in a folder, in natural order; its own name if it is a category itself.

    Raises:
        DataError: there is no such folder.
    """
    root = path_of(root, "root")
    _expect_folder(root)
    if _layout_of(root):
        return [name_of(root)]
    return [folder.name for folder in folders_in(root) if _layout_of(folder)]


def category_called(folder: Path) -> str | None:
    """What a data set calls the category in a folder; None of own and plain folders, which may be called anything."""
    there = find_categories(folder)
    root = folder if _layout_of(folder) else folder / there[0] if len(there) == 1 else None
    layout = None if root is None else _layout_of(root)
    return None if layout is None or layout.name == OWN else there[0]


def _declared_elsewhere(folder: Path) -> Path | None:
    # A file that looks meant to say how depth is read, where nobody looks: dataset.yml, or dataset.yaml.txt of Notepad.
    files = [file for place in (folder, *folders_in(folder)) for file in sorted(place.iterdir())]
    meant = (file for file in files if re.fullmatch(r"dataset\.ya?ml(\.txt)?", file.name.lower()))
    return next((file for file in meant if file.is_file() and file != folder / DECLARATION), None)


def name_of(folder: Path) -> str:
    """The name of a folder as the user calls it, also where it is a link to another; of "." that of the folder itself."""
    return Path(os.path.abspath(folder)).name


def folder_of(data: Path, category: str | None) -> Path:
    """The folder of a category that may be one of several in `data`; `data` itself where it is none of them."""
    there = category is not None and category in find_categories(data) and (data / category).is_dir()
    return data / str(category) if there else data


def expect_outside(out: Path, root: Path | str, category: str | None = None) -> None:
    """Refuse a folder for results that could later be read as parts.

    Raises:
        DataError: `out` lies in the category's folder, in a plain folder of parts, or in the data set around `root` (which
            may be one of its folders, such as ``gear/test/dent``). Beside train, validation and test it may lie.
    """
    root = Path(root)
    there = find_categories(root)
    folder = (root if _layout_of(root) or not there else root / (category or there[0])).resolve()
    target = out.resolve()
    around = [place for place in folder.parents[:2] if splits_in(place) and _layout_of(place)]
    if (folder.parent / GOOD).is_dir():  # a folder of one kind beside the good parts, which nobody has split
        around.append(folder.parent)
    for place in (folder, *around):
        if place in (target, *target.parents):
            splits, inside = splits_in(place), target.relative_to(place).parts
            if not splits or not inside or inside[0] in splits:
                raise DataError(f"{out}: expected a folder outside the data to write to (--out), found one in {place}")


def _choose(root: Path, category: str | None) -> tuple[Path, Layout]:
    there = find_categories(root)
    layout = _layout_of(root)
    if layout and category in (None, name_of(root)):
        return root, layout
    chosen = there[0] if category is None and len(there) == 1 else category
    if chosen is not None and (layout := _layout_of(root / chosen)):
        return root / chosen, layout
    if there:
        asked = "one category to be chosen, by its folder or --category" if category is None else f"category {category!r}"
        if category is None and {name.lower() for name in there} <= set(ROLES):
            asked = f"members within the kinds, as {GOOD}/{there[0]}, or one of these folders"
        raise DataError(f"{root}: expected {asked}, found {', '.join(there)}")
    folders = ", ".join(child.name for child in folders_in(root)[:8])
    found, hint = f"only {folders}" if folders else "no folders", _hint(root)
    pairs = [part for part in unlabelled(root, Search()) if part.rgb and part.depth]
    if pairs and not hint:  # as predict takes them
        found, hint = f"{counted(len(pairs), 'pair')} directly in it", f"; move those of good parts into {root / GOOD}"
    raise DataError(
        f"{root}: expected a data set (MVTec 3D-AD, 3D-ADAM, Eyecandies, or your own parts in folders good or train/good), "
        f"found {found}{hint}"
    )


def _hint(root: Path) -> str:
    # Where a data set is, for those who are a folder or two beside it, or call its folders otherwise.
    if alike := [child.name for child in folders_in(root) if child.name.lower() in ("good", "ok", "io", "normal")]:
        return f"; is {alike[0]} to be called good?"
    below = [child.name for child in folders_in(root) if find_categories(child)]
    if below:
        return f"; there is one in {', '.join(below)}"
    pairs = [child.name for child in folders_in(root) if any(p.rgb and p.depth for p in unlabelled(child, Search()))]
    if pairs:
        return f"; parts lie in {', '.join(pairs[:8])}: call that of good parts {GOOD}, or give predict one of them"
    above = [folder for folder in list(root.resolve().parents)[:3] if _layout_of(folder)]
    return f"; there is one above, {above[-1]}" if above else ""  # the topmost: train/ of a data set looks like one itself


def _layout_of(folder: Path) -> Layout | None:
    return next((layout for layout in LAYOUTS if layout.fits(folder)), None)


def _expect_folder(folder: Path) -> None:
    if not folder.exists():
        raise DataError(f"{folder}: expected a folder, found nothing there")
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder, found a file")


def _check_names(parts: Sequence[Part], search: Search) -> None:
    for part in parts:
        if problem := name_problem(part):
            search.report("names in another encoding", problem)


def _check_labels(parts: Sequence[Part], search: Search) -> None:
    for part in parts:
        scan = part.rgb or part.depth
        if part.defective and part.split != "test":
            found = f"a part with defect {part.defect!r}"
            search.report("defects outside test", f"{scan}: expected only good parts in {part.split}, found {found}")
        if part.defect == UNKNOWN:
            search.report("kinds called unknown", f"{scan}: expected a kind of defect, found the reserved name {UNKNOWN!r}")


def _check_files(parts: Sequence[Part], search: Search, progress: Progress | None) -> None:
    for done, part in enumerate(parts, start=1):
        _check_headers(part, search)
        if progress:
            progress(done, len(parts))


def _check_complete(folder: Path, parts: Sequence[Part], search: Search) -> None:
    for member, other, needed in (("rgb", "depth", search.rgb), ("depth", "rgb", search.depth)):
        without = [part for part in parts if getattr(part, member) is None]
        if len(without) < len(parts):
            for part in without:
                file = getattr(part, other)
                expected = f"{'an rgb' if member == 'rgb' else 'a depth'} file of the same name"
                search.report(f"parts without {member}", f"{file}: expected {expected}, found none")
        elif needed and parts:
            found = f"only {other}; for such data use --modality {other}"
            search.report(f"no {member}", f"{folder}: expected {member} files, found {found}")


def _check_headers(part: Part, search: Search) -> None:
    # The lack of a unit is reported once for all parts; the rest of each depth file is checked none the less.
    form = METRES if part.depth_format is None and "no unit" in search.problems else part.depth_format
    sizes: dict[Path, tuple[int, int]] = {}

    def check(path: Path | None, size_of: Callable[[Path], tuple[int, int]]) -> None:
        try:
            if path is not None:
                sizes[path] = size_of(path)
        except DataError as error:
            search.report("files that cannot be used", str(error))

    check(part.rgb, rgb_size)
    size = sizes.get(part.rgb) if part.rgb else None
    check(part.depth, lambda path: depth_size(path, form, size=size))
    for mask in part.masks:
        check(mask, mask_size)
    if problem := size_problem(sizes):
        search.report("members that differ in size", problem)
