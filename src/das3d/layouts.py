"""How data sets lie on disk: from one folder to its parts, paired strictly by name.

A layout is one function and one line in `LAYOUTS`. The function lists the parts of one category. It never stops at a
problem: it reports it to the `Search` and goes on, so that a user sees all of them at once. It opens no image: the members
are checked afterwards, for every layout alike, in `datasets`.
"""

from __future__ import annotations

import contextlib
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import TypedDict

from das3d._listing import files_in, folders_in, is_stray, natural_order, read_yaml
from das3d.arguments import expect_kind, is_number, is_whole, shown
from das3d.errors import DataError, one_line
from das3d.files import DEPTH_SUFFIXES, MASK_SUFFIXES, METRES, RGB_SUFFIXES, DepthFormat
from das3d.parts import GOOD, HOLD_OUT, UNKNOWN, Part, Split, split_good

ABOUT_TRUTH = ("ground truth of no part", "defects without ground truth")  # kinds of problems

DEFAULT_LIGHT = 4  # of an Eyecandies part: lit from all sides


class Reading(TypedDict):
    """How parts are to be found and read: what a `Search` is told, and arguments of `find_dataset` and `find_folder`.

    `Detector.reading` gives it, so that all parts that meet a model are read as those of its training.
    """

    rgb: bool
    depth: bool
    light: int | None
    depth_format: DepthFormat | None
    hold_out: float


@dataclass
class Search:
    """What is asked of a layout, and what is wrong with what it found.

    Attributes:
        rgb, depth: whether parts without this member are of no use.
        light: which of the six images of an Eyecandies part is its RGB; None: `DEFAULT_LIGHT`.
        depth_format: how depth files are to be read where the data does not say.
        hold_out: share of the good parts to hold out where the data has no validation parts.
        problems: kind of problem -> lines that name their files.
        doubled: names of parts that have a member twice.
    """

    rgb: bool = True
    depth: bool = True
    light: int | None = None
    depth_format: DepthFormat | None = None
    hold_out: float = HOLD_OUT
    problems: dict[str, list[str]] = field(default_factory=dict)
    doubled: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        if self.light is not None and not is_whole(self.light, 0):
            raise DataError(f"light: expected the number of an image, such as {DEFAULT_LIGHT}, found {shown(self.light)}")
        if self.depth_format is not None:
            expect_kind(DepthFormat, self.depth_format, "depth_format", DataError, giver="DepthFormat.from_unit")
        if not (is_number(self.hold_out) and 0 <= self.hold_out < 1):
            raise DataError(f"hold_out: expected a share from 0 up and below 1, found {shown(self.hold_out)}")

    def report(self, kind: str, line: str) -> None:
        self.problems.setdefault(kind, []).append(line)

    def raise_if_any(self) -> None:
        """Raise all problems together."""
        if self.problems:
            raise DataError(self.lines())

    def without(self, kinds: Sequence[str]) -> list[str]:
        """Forget the problems of these kinds, and return them."""
        return [line for kind in kinds for line in self.problems.pop(kind, [])]

    def lines(self, most: int = 10) -> list[str]:
        """All problems, the first `most` of each kind."""
        lines: list[str] = []
        for kind, found in self.problems.items():
            lines += found[:most]
            if len(found) > most:
                lines.append(f"... and {len(found) - most} more: {kind}")
        return lines


@dataclass(frozen=True)
class Layout:
    """A way that data sets lie on disk.

    Attributes:
        name: what reports call it.
        marks: patterns below the folder of one category, each of which matches something.
        parts: lists the parts of such a folder.
    """

    name: str
    marks: tuple[str, ...]
    parts: Callable[[Path, Search], list[Part]]

    def fits(self, folder: Path) -> bool:
        def seen(path: Path) -> bool:
            return not any(is_stray(name) for name in path.relative_to(folder).parts)

        return all(any(seen(path) for path in folder.glob(mark)) for mark in self.marks)


# ------------------------------------------------------------------------------------ Eyecandies

EYECANDIES_FOCAL = 711.11  # pixels, of the virtual camera that rendered them
EYECANDIES_SPLITS: dict[str, Split] = {"train": "train", "val": "validation", "test_public": "test"}


def eyecandies(folder: Path, search: Search) -> list[Part]:
    """``{train,val,test_public}/data/NNN_{image_L.png,depth.png,info_depth.yaml,mask.png,metadata.yaml}``.

    ``test_private`` is not read: it has no ground truth.
    """
    parts = []
    for name, split in EYECANDIES_SPLITS.items():
        data = folder / name / "data"
        samples: dict[str, dict[str, Path]] = {}
        for file in data.glob("*"):
            if match := re.fullmatch(r"(\d+)_(\w+)\.(?:png|yaml)", file.name):
                samples.setdefault(match[1], {})[match[2]] = file
        for number in natural_order(samples):
            try:
                parts.append(_eyecandies_part(data / number, samples[number], split, search))
            except DataError as error:
                search.report("incomplete Eyecandies parts", str(error))
    return _with_held_out(parts, search)


def light_of(told: int | None) -> int:
    """Which image of an Eyecandies part is its RGB: as told, or `DEFAULT_LIGHT`."""
    return DEFAULT_LIGHT if told is None else told


def _eyecandies_part(prefix: Path, files: dict[str, Path], split: Split, search: Search) -> Part:
    def expect(member: str, suffix: str) -> Path:
        if member not in files:
            expected = f"a file {prefix.name}_{member}.{suffix}"
            raise DataError(f"{prefix}: expected {expected}, found other files of this number only")
        return files[member]

    light = light_of(search.light)
    rgb, depth = files.get(f"image_{light}"), files.get("depth")
    if rgb is None and search.rgb:
        lights = ", ".join(sorted(member[-1] for member in files if re.fullmatch(r"image_\d", member))) or "none"
        raise DataError(f"{prefix}: expected an image under light {light}, found lights: {lights}")
    if depth is None and search.depth:
        expect("depth", "png")
    flags = read_yaml(expect("metadata", "yaml"))
    kinds = [str(flag).removeprefix("anomalous_") for flag, on in flags.items() if on and flag != "anomalous"]
    defect = ("+".join(kinds) or "anomalous") if kinds or flags.get("anomalous") else GOOD
    return Part(
        id=f"{split}/{defect}/{prefix.name}",
        split=split,
        defect=defect,
        rgb=rgb,
        depth=depth,
        masks=() if defect == GOOD else (expect("mask", "png"),),
        depth_format=_eyecandies_format(expect("info_depth", "yaml")) if depth else None,
    )


def _eyecandies_format(path: Path) -> DepthFormat:
    declared = read_yaml(path)
    try:
        low, high = (float(declared["normalization"][key]) for key in ("min", "max"))
        return DepthFormat(scale=(high - low) / 65535, offset=low, focal_length=EYECANDIES_FOCAL)
    except (KeyError, TypeError, ValueError, DataError):
        found = one_line(declared) if declared else "none"
        raise DataError(f"{path}: expected normalization with a min below a max, in metres, found {found}") from None


# ------------------------------------------------------------------------------------ a folder for each kind

SPLITS: dict[str, Split] = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}

ROLES = {
    **dict.fromkeys(("rgb", "image", "images", "color", "colour"), "rgb"),
    **dict.fromkeys(("depth", "xyz", "points", "cloud"), "depth"),
    **dict.fromkeys(("mask", "masks", "gt", "ground_truth"), "mask"),
}
SUFFIXES = {"rgb": RGB_SUFFIXES, "depth": DEPTH_SUFFIXES, "mask": MASK_SUFFIXES}
NAMING = "NAME_rgb, NAME_depth and NAME_mask, or folders rgb, depth and mask"
DECLARATION = "dataset.yaml"
KEYS = ("depth_unit", "depth_scale", "depth_missing", "focal_length")  # in it


def mvtec3d(folder: Path, search: Search) -> list[Part]:
    """``{train,validation,test}/KIND/{rgb/NNN.png,xyz/NNN.tiff,gt/NNN.png}``, metres; 3D-ADAM has ground_truth for gt."""
    return _kinds(folder, search, METRES)


def own_folder(folder: Path, search: Search) -> list[Part]:
    """A user's own data: ``good/`` and a folder for each kind of defect, or the same below train, validation and test.

    In the folder of a kind lie folders for the members (rgb, depth, mask) whose files have equal stems, or files
    ``NAME_rgb.png``, ``NAME_depth.png``, ``NAME_mask.png``. ``dataset.yaml`` tells the unit of depth. Good parts that the
    user has not split are split by `split_good`; so are training parts that have no validation parts beside them.
    """
    return _kinds(folder, search, None)


def unlabelled(folder: Path, search: Search) -> list[Part]:
    """Parts of unknown kind in one folder, named like those in a folder of one kind.

    It may be one folder of a data set, as ``mydata/good`` or ``mydata/test/dent``, so ``dataset.yaml`` may lie above it.
    """
    form = _declared_format(folder, search) or search.depth_format
    return [
        Part(id=stem, split="test", defect=UNKNOWN, rgb=files.get("rgb"), depth=files.get("depth"), depth_format=form)
        for stem, files in _members(folder, search).items()
        if files.keys() & {"rgb", "depth"}
    ]


def _kinds(folder: Path, search: Search, default: DepthFormat | None) -> list[Part]:
    form = _declared_format(folder, search) or search.depth_format or default
    folders = {child.name: child for child in folders_in(folder)}
    splits = splits_in(folder)
    if not splits:
        whole = _split_of(folder)
        parts = [part for kind in folders.values() for part in _kind(kind, whole or "test", search, form)]
        if whole is None:
            return _split_by_name(parts, search)
        # The same training parts are held out as where the data set around is given.
        around = {SPLITS[name] for name in splits_in(folder.resolve().parent)}
        return parts if "validation" in around else _with_held_out(parts, search)
    if GOOD in folders:
        search.report("mixed layouts", f"{folders[GOOD]}: expected parts only in {', '.join(splits)}, found these beside")
    if {"val", "validation"} <= set(splits):
        search.report("mixed layouts", f"{folders['val']}: expected validation parts in one folder, found validation too")
    parts = []
    for name in splits:
        for file in files_in(folders[name]):
            search.report("files of no kind", f"{file}: expected {folders[name] / GOOD} or a kind of defect, found a file")
        parts += [part for kind in folders_in(folders[name]) for part in _kind(kind, SPLITS[name], search, form)]
    return _with_held_out(parts, search)


def splits_in(folder: Path) -> list[str]:
    """Names of the folders of splits in this folder."""
    there = {child.name for child in folders_in(folder)}
    return [name for name in SPLITS if name in there]


def _split_of(folder: Path) -> Split | None:
    # Which split of a data set the folder is itself, as bagel/test is where bagel/train lies beside it.
    folder = folder.resolve()
    return SPLITS[folder.name] if folder.name in SPLITS and splits_in(folder.parent) != [folder.name] else None


def _kind(folder: Path, split: Split, search: Search, form: DepthFormat | None) -> list[Part]:
    if folder.name.lower() in ROLES:
        expected = f"good parts in {folder.parent / GOOD / folder.name}"
        search.report("members of no kind", f"{folder}: expected {expected}, found a folder for members of no kind")
        return []
    defective = folder.name != GOOD
    members = _members(folder, search)
    marked = any("mask" in files for files in members.values())
    parts = []
    for stem, files in members.items():
        rgb, depth = files.get("rgb"), files.get("depth")
        if not (scan := rgb or depth):
            search.report("ground truth of no part", f"{files['mask']}: expected a part of this name, found none")
            continue
        if defective and marked and "mask" not in files:
            search.report("defects without ground truth", f"{scan}: expected ground truth as for others here, found none")
        masks = (files["mask"],) if "mask" in files else ()
        parts.append(Part(f"{split}/{folder.name}/{stem}", split, folder.name, rgb, depth, masks, form))
    if not members and not any(files_in(child) for child in (folder, *folders_in(folder))):
        search.report("folders without parts", f"{folder}: expected parts ({NAMING}), found none")
    return parts


def _members(folder: Path, search: Search) -> dict[str, dict[str, Path]]:
    # Name of a part -> role -> file, in the natural order of names.
    found: dict[str, dict[str, Path]] = {}
    for role, stem, file in _named(folder, search):
        if file.suffix.lower() not in SUFFIXES[role]:
            known = ", ".join(sorted(SUFFIXES[role]))
            search.report("other kinds of file", f"{file}: expected {role} as {known}, found {file.suffix or 'no suffix'}")
            continue
        files = found.setdefault(stem, {})
        if role in files:
            search.doubled.add(stem)
            search.report("doubled members", f"{file}: expected one {role} file of this name, found {files[role].name} too")
        files.setdefault(role, file)
    return {stem: found[stem] for stem in natural_order(found)}


def _named(folder: Path, search: Search) -> Iterator[tuple[str, str, Path]]:
    # As `_as_written`, with letters and their accents in one: systems write them either way.
    for role, stem, file in _as_written(folder, search):
        yield role, unicodedata.normalize("NFC", stem), file


def _as_written(folder: Path, search: Search) -> Iterator[tuple[str, str, Path]]:
    # Role, name of the part, file: by the role's folder, or by the last word of the file's name.
    folders = folders_in(folder)
    by_folder = [child for child in folders if child.name.lower() in ROLES]
    for child in folders:
        if child not in by_folder:
            search.report("unknown folders", f"{child}: expected only folders called {', '.join(ROLES)}, found another")
    for child in by_folder:
        for file in files_in(child):
            yield ROLES[child.name.lower()], file.stem, file
    # Where one member is all that is needed, a name need not tell which it is.
    alone = None if search.rgb == search.depth else "rgb" if search.rgb else "depth"
    for file in files_in(folder):
        role, stem = _told_by_name(file)
        if by_folder:
            search.report("files beside folders", f"{file}: expected it in {by_folder[0]} or another, found it beside them")
        elif role:
            yield role, stem, file
        elif alone:
            yield alone, file.stem, file
        else:
            search.report("unknown files", f"{file}: expected {NAMING}, found a name that tells no member")


def declaration_for(folder: Path) -> Path | None:
    """The ``dataset.yaml`` that says how depth of the parts in a folder is read: there or above, as for mydata/test/dent in
    mydata. Wherever a user points, at the data set, a split, a kind or a file, it is the same.
    """
    if declares(folder):
        return folder / DECLARATION
    places = [folder.resolve(), *folder.resolve().parents[:2]]
    split = [i for i, place in enumerate(places) if splits_in(place)]
    whole = [i for i, place in enumerate(places) if (place / GOOD).is_dir()]  # not split, or a split itself
    ends = split or whole or [len(places) - 1]
    for place in places[1 : ends[0] + 1]:
        with contextlib.suppress(DataError):  # of another program
            if declares(place):
                return place / DECLARATION
    return None


def declares(folder: Path) -> bool:
    """Whether ``dataset.yaml`` in this folder says how depth is read; other programs have files of that name, too."""
    path = folder / DECLARATION
    return path.is_file() and bool(set(KEYS) & {str(key) for key in read_yaml(path)})


def part_name(file: PurePath) -> str:
    """What a part is called by one of its files: 0001 by 0001_rgb.png."""
    told_by_folder = file.parent.name.lower() in ROLES
    return file.stem if told_by_folder else _told_by_name(file)[1]


def _told_by_name(file: PurePath) -> tuple[str | None, str]:
    # Role and part by the last word of a file's name; no role where it is none.
    stem, _, word = file.stem.rpartition("_")
    role = ROLES.get(word.lower()) if stem else None
    return role, stem if role else file.stem


def _declared_format(folder: Path, search: Search) -> DepthFormat | None:
    # Of the parts in a folder. A file there that says nothing of depth is looked at all the same: its keys may be misspelt.
    try:
        own = folder / DECLARATION
        path = own if own.is_file() else declaration_for(folder)
        return None if path is None else _format_from(path)
    except DataError as error:
        search.report(DECLARATION, str(error))
        return METRES  # so that the lack of a unit is not reported as well


def _format_from(path: Path) -> DepthFormat | None:
    declared = read_yaml(path)
    if unknown := [str(key) for key in declared if key not in KEYS]:
        raise DataError(f"{path}: expected only {', '.join(KEYS)}, found {', '.join(unknown)}")
    if not declared:
        return None
    if ("depth_unit" in declared) == ("depth_scale" in declared):
        raise DataError(f"{path}: expected either depth_unit or depth_scale, found {' and '.join(declared)}")
    try:
        if "depth_unit" in declared:
            form = DepthFormat.from_unit(str(declared["depth_unit"]))
        else:
            form = DepthFormat(float(declared["depth_scale"]))  # float(), as YAML takes 1e-4 for text
        more = {name: declared.get(key) for key, name in (("depth_missing", "missing"), ("focal_length", "focal_length"))}
        return replace(form, **{name: float(value) for name, value in more.items() if value is not None})
    except (TypeError, ValueError):
        raise DataError(
            f"{path}: expected numbers for depth_scale, depth_missing and focal_length, found {one_line(declared)}"
        ) from None
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def format_around(depth: Path) -> DepthFormat | None:
    """What the data that a depth file belongs to says of its numbers; None where nothing is said.

    Raises:
        DataError: what is said cannot be used.
    """
    if match := re.fullmatch(r"(\d+)_depth\.png", depth.name):
        info = depth.with_name(f"{match[1]}_info_depth.yaml")
        if info.is_file():
            return _eyecandies_format(info)
    folder = depth.resolve().parent
    path = declaration_for(folder.parent if folder.name.lower() in ROLES else folder)
    return None if path is None else _format_from(path)


def _split_by_name(parts: list[Part], search: Search) -> list[Part]:
    good = [part for part in parts if part.defect == GOOD]
    return _resplit(parts, good, search, test=len(good) < len(parts))


def _with_held_out(parts: list[Part], search: Search) -> list[Part]:
    if any(part.split == "validation" and part.defect == GOOD for part in parts):
        return parts
    good = [part for part in parts if part.split == "train" and part.defect == GOOD]
    return _resplit(parts, good, search, test=False)


def _resplit(parts: list[Part], good: list[Part], search: Search, *, test: bool) -> list[Part]:
    names = [part.id.split("/")[-1] for part in good]
    splits = dict(zip(good, split_good(names, test=test, hold_out=search.hold_out), strict=True))
    moved = [(part, splits.get(part, part.split)) for part in parts]
    return [replace(part, split=split, id="/".join([split, *part.id.split("/")[1:]])) for part, split in moved]


TIFF = "*.[tT][iI][fF]*"

OWN = "folder"  # the layout of a user's own data

# Tried in this order. A new layout is a function as above and a line here.
LAYOUTS = (
    Layout("eyecandies", ("*/data/*_metadata.yaml",), eyecandies),
    *(Layout("3d-adam", (f"{split}/*/xyz/{TIFF}", "*/*/ground_truth"), mvtec3d) for split in SPLITS),
    *(Layout("mvtec3d", (f"{split}/*/xyz/{TIFF}",), mvtec3d) for split in SPLITS),
    Layout(OWN, ("good",), own_folder),
    Layout(OWN, ("train/good",), own_folder),
    Layout(OWN, ("test/*/",), own_folder),
)
