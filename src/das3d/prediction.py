"""Prediction on new parts from files: one part, or a folder of many."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from das3d.console import warn
from das3d.datasets import expect_outside, find_folder, folder_of
from das3d.detector import Detector
from das3d.errors import DataError
from das3d.files import METRES, DepthFormat, depth_size
from das3d.layouts import format_around, part_name
from das3d.parts import UNKNOWN, Part, name_problem
from das3d.streaming import Inspected, inspect_parts, of_another, warn_of_others, write_regions, write_scores

SECONDS_BETWEEN_TABLES = 60.0


def predict_part(
    detector: Detector,
    rgb: Path | None,
    depth: Path | None,
    out: Path,
    *,
    depth_format: DepthFormat | None = None,
    focal_length: float | None = None,
    tell: Callable[[Inspected], None] | None = None,
) -> Inspected:
    """Score one part from its files and write scores, regions, its map (float TIFF) and its overlay (PNG) into `out`.

    `focal_length`, in pixels, gives areas in mm2 where the files hold depth alone. `depth_format` tells how depth is read
    where the data around the file does not declare it. `tell` is called with the result, also where it is an error.

    Raises:
        DataError: a file is missing, unreadable or does not fit the model, or `out` is the folder of one. Where the part
            cannot be judged, the files in `out` say so first: no verdict on a part before it stays there.
    """
    for file in (rgb, depth):
        if file is not None and not file.is_file():
            raise DataError(f"{file}: expected a file, found none")
    name = part_name(rgb or depth or Path("part"))
    for file in (rgb, depth):
        if file is not None and file.resolve().parent == out.resolve():  # outputs could take the place of scans there
            raise DataError(f"{out}: expected a folder where no file of the part lies (--out), found {file}")
    around = format_around(depth) if depth else None
    if around and depth_format:
        warn(f"{depth}: the data around it declares how depth is read, which is what counts")
    form = around or detector.reading(depth_format=depth_format)["depth_format"]
    part = Part(name, "test", UNKNOWN, rgb, depth, (), form)
    if problem := name_problem(part):
        raise DataError(problem)
    warn_of_others(out / "scores.csv", [part])
    result = next(inspect_parts(detector, with_focal_length([part], focal_length), out))
    if tell:
        tell(result)
    _write_results(out, [result], detector)
    if result.error:
        raise DataError(result.error)
    return result


def predict_folder(
    detector: Detector,
    folder: Path,
    out: Path,
    *,
    light: int | None = None,
    depth_format: DepthFormat | None = None,
    focal_length: float | None = None,
    inspect: Callable[[Sequence[Part], Path], Iterable[Inspected]] | None = None,
    tell: Callable[[Inspected], None] | None = None,
) -> list[Inspected]:
    """Score every part of a folder in any layout; where it holds several categories, of the one trained on.

    Parts that fail are listed with their error in ``scores.csv``.

    `light` and `depth_format` are as for `find_dataset`, and as in training where None; `focal_length`, in pixels, gives
    areas in mm2 where depth files hold no points.

    When interrupted, the files hold the parts that were done; when killed, those of a minute ago. Where another program
    holds ``scores.csv``, as Excel does on Windows, the scores are written into ``scores_2.csv``.

    `inspect` does the work where this process shall not: `das3d.streaming.inspect_on` with its first arguments given.
    `tell` is called with each result as soon as it is there.
    """
    folder = folder_of(folder, detector.training.get("category"))
    expect_outside(out, folder)
    reading = detector.reading(light=light, depth_format=depth_format)
    parts = with_focal_length(find_folder(folder, check=False, truth=False, **reading), focal_length)
    warn_of_others(out / "scores.csv", parts)
    results: list[Inspected] = []
    written = time.monotonic()
    try:
        for result in inspect(parts, out) if inspect else inspect_parts(detector, parts, out):
            results.append(result)
            if tell:
                tell(result)
            if time.monotonic() - written >= SECONDS_BETWEEN_TABLES:
                with contextlib.suppress(PermissionError):  # open in another program, which may be over by the end
                    write_scores(out / "scores.csv", results, verdicts=True)
                    write_regions(out / "regions.json", results, detector)
                written = time.monotonic()
    finally:  # whoever is interrupted after hours keeps what was done, and before the first part what was there
        if results:
            _write_results(out, results, detector)
    if all(result.error for result in results):
        for line in of_another(detector, folder):
            warn(line)
    return results


def _write_results(out: Path, results: Sequence[Inspected], detector: Detector) -> None:
    table, beside = out / "scores.csv", out / "scores_2.csv"
    try:
        write_scores(table, results, verdicts=True)
    except PermissionError as held:
        try:
            write_scores(beside, results, verdicts=True)
        except PermissionError:
            raise held from None
        warn(f"{table} cannot be replaced, as where it is open in another program; the scores are in {beside}")
    write_regions(out / "regions.json", results, detector)


def with_focal_length(parts: list[Part], focal_length: float | None) -> list[Part]:
    """The parts with this focal length in pixels, for areas in mm2 where depth files hold no points; None: as they are."""
    return parts if focal_length is None else [_with_focal_length(part, focal_length) for part in parts]


def _with_focal_length(part: Part, focal_length: float) -> Part:
    if part.depth is None:
        return part
    form = part.depth_format
    if form is None:
        try:
            depth_size(part.depth)
        except DataError:
            return part  # of counts without a unit, or damaged: reading it will say so
        form = METRES
    return replace(part, depth_format=replace(form, focal_length=focal_length))
