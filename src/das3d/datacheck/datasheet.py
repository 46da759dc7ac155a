"""What people see of a data check: a table, contact sheets, a JSON file, and settings to edit and train with."""

from __future__ import annotations

import json
import shlex
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import das3d
from das3d.atomic import write_atomically
from das3d.console import counted, percent
from das3d.datacheck import DataCheck, common_shift, median, moved, pixel_pitch, suggested_size
from das3d.datacheck.facts import Facts
from das3d.datacheck.suspects import between, length
from das3d.errors import DataError
from das3d.parts import Part
from das3d.pictures import Image, Tile, contact_sheet, depth_picture, save_picture, shaded_relief
from das3d.prepared import prepare_part
from das3d.settings import settings_to_toml

MOST_PARTS = 300  # on the sheet of all parts; of more, the suspects and an even choice of the others
MOST_SUSPECTS = 60  # on the sheet of the oddest parts
NEXT_ODDEST = 6  # parts in colour, and in shape, that are shown beside the suspects; of small sets a tenth
MOST_SIZES = 3  # of frames that are counted in the table
UNKNOWN = "not known"


# ------------------------------------------------------------------------------------------- the table


def rows_of(check: DataCheck) -> list[tuple[str, str]]:
    """The table: what was measured on the good parts, by name; quantiles stand for 5, 50 and 95 % of them."""
    good = [one for one in check.good if not one.error]
    counts = Counter((str(one.part.split), one.part.defect) for one in check.facts)
    rows = [(f"parts, {split}", _kinds(counts, split)) for split in ("train", "validation", "test")]
    rows += [
        ("frame, pixels", _sizes(check.facts)),
        ("members", _members(check)),
    ]
    if any(one.distance for one in good):
        there = [
            ("depth unit", check.units),
            ("distance of the scene", _spread(good, "distance", length)),
            ("missing depth, frame", _spread(good, "missing", percent)),
            ("background plane", _plane(good)),
            ("part, pixels", f"{_pixels(good, 'length_px')} long, {_pixels(good, 'width_px')} wide"),
            ("size of the part", _lengths(good)),
        ]
        if check.settings.uses_depth:
            there[3:3] = [("missing depth, part", _spread(good, "missing_on_part", percent))]
            there += [
                ("height of the part", _spread(good, "height", length)),
                ("depth noise, part", _spread(good, "surface_noise", length)),
            ]
        rows += there
    if any(one.brightness for one in good):
        rows.append(("brightness of the part", _spread(good, "brightness", "{:.0f}".format) + " of 255"))
    if shift := common_shift(good):
        right, down, scattered = shift
        where = "elsewhere in each part" if scattered else moved(right, down) or "in place"
        fit = np.median([one.alignment.fit for one in good if one.alignment])
        rows.append(("RGB against depth", f"{where}; fit {fit:.2f} of 1"))
    return rows + _prepared_rows(check)


def _prepared_rows(check: DataCheck) -> list[tuple[str, str]]:
    statistics, settings = check.statistics, check.settings
    if statistics is None:
        return [("training", "not possible, see below")]
    size = suggested_size(check)
    side, across = statistics.window_sides(settings.preparation)
    what = f"a window of {statistics.window} pixels around the part" if statistics.window else "the whole frame"
    if statistics.breadth:
        what = f"a window of {side} x {across} pixels along the part"
    rows = [("training sees", f"{what}, as {size} x {size}")]
    pitch = pixel_pitch(check)
    if side and pitch is not None:
        step = length(side / size * pitch)
        if across < side:
            step += f" along the longer side of the window, {length(across / size * pitch)} along the shorter one"
        low, high = settings.synthesis.spot_low * 2 * across * pitch, settings.synthesis.spot_high * 2 * side * pitch
        rows.append(("one prepared pixel", f"{step}; synthetic spots are {length(low)} to {length(high)} across"))
    if statistics.has_depth and settings.uses_depth:
        span = statistics.far - statistics.near
        low, high = settings.synthesis.magnitude_low * span, settings.synthesis.magnitude_high * span
        rows.append(("depth range", f"{length(span)}; synthetic dents and bumps reach {length(low)} to {length(high)}"))
    if statistics.background == "plane":
        rows.append(("background", f"what lies within {length(statistics.distance)} of the plane"))
    if statistics.background == "cleared":
        rows.append(("background", "cleared away before: what has depth is taken for the part, with what it encloses"))
    return rows


def _members(check: DataCheck) -> str:
    if not check.settings.uses_depth and check.dataset.parts[0].depth:  # which all parts have, or none
        return "RGB; depth tells where the part is, and no more"
    return check.settings.modality.replace("+", " + ").replace("rgb", "RGB")


def _kinds(counts: Counter[tuple[str, str]], split: str) -> str:
    kinds = {kind: count for (where, kind), count in sorted(counts.items()) if where == split}
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "none"


def _spread(facts: Sequence[Facts], name: str, show: Any) -> str:
    known = [value for one in facts if (value := getattr(one, name)) is not None]
    if not known:
        return UNKNOWN
    low, middle, high = (show(float(value)) for value in np.quantile(known, (0.05, 0.5, 0.95)))
    return middle if low == middle == high else f"{middle} ({between(low, high)})"


def _sizes(facts: Sequence[Facts]) -> str:
    counts = Counter(one.size for one in facts if one.size).most_common()
    shown = [f"{width} x {height}" for (height, width), _ in counts]
    if len(counts) == 1:
        return shown[0]
    text = ", ".join(f"{count} of {size}" for (_, count), size in zip(counts[:MOST_SIZES], shown, strict=False))
    return text if len(counts) <= MOST_SIZES else f"{text}, and {len(counts) - MOST_SIZES} other sizes"


def _pixels(facts: Sequence[Facts], name: str) -> str:
    return _spread(facts, name, "{:.0f}".format)


def _plane(facts: Sequence[Facts]) -> str:
    found = [one for one in facts if one.plane_support is not None]
    if not found:
        return f"in none of {len(facts)} scans"
    return f"in {len(found)} of {len(facts)} scans, noise {_spread(found, 'plane_noise', length)}"


def _lengths(facts: Sequence[Facts]) -> str:
    if median(facts, "length") is None:
        return "needs XYZ, or focal_length in dataset.yaml"
    return f"{_spread(facts, 'length', length)} long, {_spread(facts, 'width', length)} wide, as the camera sees it"


def print_check(check: DataCheck) -> None:
    """The table, the suspects, twins and advice, on standard output."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=False, markup=False)  # kinds may be called anything
    table = Table(box=box.SIMPLE_HEAD, show_header=False, title=f"{check.dataset.category}  ({check.dataset.layout})",
                  title_justify="left", padding=(0, 1), caption_justify="left",
                  caption="figures: the median of the good parts (and what 90% of them lie between)")  # fmt: skip
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, value in rows_of(check):
        table.add_row(name, value)
    console.print(table, "")
    print(f"suspects among {counted(len(check.good), 'good part')}: {len(check.suspects) or 'none'}")
    for suspect in check.suspects[:20]:
        print(f"  {suspect.part.id}")
        for reason in suspect.reasons:
            print(textwrap.fill(reason.text, 116, initial_indent="    ", subsequent_indent="      "))
    if len(check.suspects) > 20:
        print(f"  ... and {len(check.suspects) - 20} more, see check.json")
    if next_odd := oddest(check):
        names = ", ".join(one.part.id for one, _, _ in next_odd)
        print(textwrap.fill(f"not suspect, but odder than the rest: {names}", 118, subsequent_indent="  "))
    for pair in check.twins[:10]:
        print(f"twins: {pair.describe()}")
    if len(check.twins) > 10:
        print(f"... and {len(check.twins) - 10} more, see check.json")
    for line in check.advice:
        print(textwrap.fill(line, 118, initial_indent="note: ", subsequent_indent="      "))


# ------------------------------------------------------------------------------------------- files


def write_check(check: DataCheck, folder: Path) -> Path:
    """``check.json``, ``settings.toml``, ``parts.png`` and ``oddest.png``; returns the file of settings.

    Other settings that lie there stay, as people edit them; beside them comes ``settings_suggested.toml``.
    """
    write_atomically(folder / "check.json", json.dumps(as_json(check), indent=2, default=str).encode())
    settings, file, suggested = settings_text(check).encode(), folder / "settings.toml", folder / "settings_suggested.toml"
    suggested.unlink(missing_ok=True)  # that of a check before
    if file.is_file() and file.read_bytes() != settings:
        file = suggested
    write_atomically(file, settings)
    save_picture(folder / "parts.png", parts_sheet(check))
    if check.suspects or oddest(check):
        save_picture(folder / "oddest.png", oddest_sheet(check))
    else:
        (folder / "oddest.png").unlink(missing_ok=True)  # that of a check before
    return file


def as_json(check: DataCheck) -> dict[str, Any]:
    """All of a check as plain values; lengths are metres, places are pixels."""
    return {
        "das3d": das3d.__version__,
        "data": str(check.dataset.root),
        "category": check.dataset.category,
        "layout": check.dataset.layout,
        "units": check.units,
        "table": dict(rows_of(check)),
        "advice": list(check.advice),
        "suspects": [
            {"part": suspect.part.id, "reasons": [asdict(reason) for reason in suspect.reasons]}
            for suspect in check.suspects
        ],
        "oddest": [{"part": one.part.id, "in": what, "at": place} for one, what, place in oddest(check)],
        "twins": [
            {"parts": [pair.first.part.id, pair.second.part.id], "rgb": pair.rgb, "depth": pair.depth}
            for pair in check.twins
        ],
        "statistics": None if check.statistics is None else check.statistics.to_dict(),
        "parts": [_facts_as_json(one) for one in check.facts],
    }


def _facts_as_json(one: Facts) -> dict[str, Any]:
    left_out = {"part", "rgb_thumbnail", "depth_thumbnail", "alignment"}
    values = {name: value for name, value in vars(one).items() if name not in left_out and value not in (None, "")}
    alignment = {} if one.alignment is None else {"alignment": asdict(one.alignment)}
    return {"part": one.part.id, "rgb": one.part.rgb, "depth": one.part.depth, **values, **alignment}


def settings_text(check: DataCheck) -> str:
    """``settings.toml`` for ``das3d train --settings``: what the data suggests, and the reasons above it."""
    preparation = check.settings.preparation.model_copy(update={"size": suggested_size(check)})
    settings = check.settings.model_copy(update={"preparation": preparation})
    head = [
        f"Settings for {check.dataset.category}, from what was measured on its good parts; edit them, then:",
        f"das3d train {shlex.quote(str(check.dataset.root))} --settings THIS_FILE --out RUN",
        "",
        *(f"{name}: {value}" for name, value in _prepared_rows(check)),
        *(f"note: {line}" for line in check.advice),
    ]
    wrapped = [piece for line in head for piece in (textwrap.wrap(line, 116, subsequent_indent="  ") or [""])]
    return "".join(f"# {line}".rstrip() + "\n" for line in wrapped) + "\n" + settings_to_toml(settings)


# ------------------------------------------------------------------------------------------- pictures


def parts_sheet(check: DataCheck, side: int = 96) -> Image:
    """The good parts, RGB above relief, the suspects in red frames."""
    suspects = {suspect.part.id for suspect in check.suspects}
    shown = [one.part for one in check.good]
    if len(shown) > MOST_PARTS:
        others = [part for part in shown if part.id not in suspects]
        chosen = {part.id for part in others[:: -(-len(others) // MOST_PARTS)]} | suspects
        shown = [part for part in shown if part.id in chosen]
    tiles = []
    for part in shown:
        views = _views(check, part, side)
        tiles.append(Tile(np.vstack(views), (part.id.removesuffix(".png").replace("/good", ""),), part.id in suspects))
    return contact_sheet(tiles, columns=12)


def oddest_sheet(check: DataCheck, side: int = 240) -> Image:
    """The suspects in red frames with their reasons, then the oddest of the other parts; odd places are circled."""
    facts = {one.part.id: one for one in check.facts}
    tiles = []
    for suspect in check.suspects[:MOST_SUSPECTS]:
        places = {"odd colour": facts[suspect.part.id].odd_colour_at, "odd shape": facts[suspect.part.id].odd_shape_at}
        circles = [place for reason in suspect.reasons if (place := places.get(reason.check))]
        reasons = (suspect.part.id, *(reason.text for reason in suspect.reasons))
        tiles.append(Tile(np.hstack(_views(check, suspect.part, side, circles)), reasons, True))
    for one, what, place in oddest(check):
        views = _views(check, one.part, side, [] if place is None else [place])
        tiles.append(Tile(np.hstack(views), (one.part.id, f"not suspect, but among the oddest in {what}")))
    return contact_sheet(tiles, columns=3, gap=10)


def oddest(check: DataCheck) -> list[tuple[Facts, str, tuple[int, int] | None]]:
    """The parts that come next to being suspects, oddest first, in colour and in shape: worth a look all the same.

    On rendered parts most stains and foreign bodies among the good parts that are no suspects are found here.
    """
    suspects = {suspect.part.id for suspect in check.suspects}
    most = min(NEXT_ODDEST, len(check.good) // 10)
    found: dict[str, tuple[Facts, str, tuple[int, int] | None]] = {}
    for what in ("colour", "shape"):
        known = [one for one in check.good if getattr(one, f"odd_{what}") is not None and one.part.id not in suspects]
        for one in sorted(known, key=lambda one: -getattr(one, f"odd_{what}"))[:most]:
            found.setdefault(one.part.id, (one, what, getattr(one, f"odd_{what}_at")))
    return list(found.values())


def _views(check: DataCheck, part: Part, side: int, circles: Sequence[tuple[int, int]] = ()) -> list[Image]:
    # As training sees the part; where that is not possible, the frame; where nothing can be read, grey.
    try:
        if check.statistics is None:
            raise DataError("nothing was measured")
        scan = prepare_part(part, check.statistics, check.settings.preparation)
    except DataError:
        return [_fitted(view, side) for view in _frame(check, part)]
    pictures = [scan.rgb] if check.statistics.has_rgb else []
    if check.settings.uses_depth:
        pictures.append(shaded_relief(scan.depth, scan.foreground))
    # Prepared images are square, whatever the window is.
    window = scan.window
    height, width = (max(round(side * length / window.side), 1) for length in (window.height, window.width))
    views = [_fitted(_resized(picture, (height, width)), side) for picture in pictures]
    for right, down in circles:  # edges of pixels
        row, column = window.image_place(down - 0.5, right - 0.5, 1)
        at = (side - width) // 2 + round((column + 0.5) * width), (side - height) // 2 + round((row + 0.5) * height)
        for view in views:
            cv2.circle(view, at, round(side * 0.09), (255, 60, 40), 2, cv2.LINE_AA)
    return views


def _frame(check: DataCheck, part: Part) -> list[Image]:
    grey = np.full((64, 64, 3), 128, np.uint8)
    views = []
    if check.settings.uses_rgb:
        try:
            rgb = part.read(depth=False).rgb
        except DataError:
            rgb = None
        views.append(grey if rgb is None else rgb)
    if check.settings.uses_depth:
        try:
            views.append(depth_picture(part.read(rgb=False)))
        except DataError:
            views.append(grey)
    return views


def _fitted(picture: Image, side: int) -> Image:
    # Inside a square, ratio of sides kept.
    scale = side / max(picture.shape[:2])
    height, width = (max(round(length * scale), 1) for length in picture.shape[:2])
    out = np.zeros((side, side, 3), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    out[top : top + height, left : left + width] = _resized(picture, (height, width))
    return out


def _resized(picture: Image, size: tuple[int, int]) -> Image:
    # Height and width of the prepared image shrink or grow each by its own factor.
    smaller = size[0] * size[1] < picture.shape[0] * picture.shape[1]
    return np.asarray(
        cv2.resize(picture, size[::-1], interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR), np.uint8
    )
