"""A whole data set made ready for training: measured once, prepared once, cached."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from das3d import cache
from das3d.console import counted, progress, warn
from das3d.datasets import Dataset, find_dataset
from das3d.errors import DataError
from das3d.files import DepthFormat, depth_size, lacks_grid, rgb_size
from das3d.measurement import Statistics, measure
from das3d.parts import Part
from das3d.preparation import PreparedScan, prepare
from das3d.scan import Scan
from das3d.settings import PreparationSettings, Settings

DARK = 25  # grey levels; below that, steps between them show


@dataclass(frozen=True)
class PreparedData:
    """The good parts of a data set as the networks see them.

    Attributes:
        statistics: measured on the training parts.
        train: what the networks learn from.
        held_out: good parts that no network sees in training; the threshold comes from them.
    """

    statistics: Statistics
    train: list[PreparedScan]
    held_out: list[PreparedScan]


def find_training_data(
    data: Path | str,
    category: str | None,
    settings: Settings,
    *,
    light: int | None = None,
    depth_format: DepthFormat | None = None,
) -> Dataset:
    """The data set that these settings train on: members that the networks see, good parts held out as they say.

    Arguments and errors as for `find_dataset`.
    """
    return find_dataset(
        data, category, rgb=settings.uses_rgb, depth=settings.uses_depth, light=light, depth_format=depth_format,
        hold_out=settings.training.hold_out,
    )  # fmt: skip


def prepare_dataset(dataset: Dataset, settings: Settings) -> PreparedData:
    """Measure and prepare the good parts of a data set, or take them from the cache.

    Raises:
        DataError: too few good parts, or some that cannot be read or prepared; all of those to train on that cannot be
            measured are named, then all that cannot be prepared.
    """
    train, held_out = train_and_held_out(dataset)
    if not held_out and settings.training.hold_out:
        warn(
            f"{dataset.root}: holds no validation parts, so the model will have no threshold; those beside it set one "
            f"where {dataset.root.resolve().parent} is given"
        )
    statistics = measure_parts(train, settings)
    if statistics.frame is None:
        _warn_of_sizes(train, statistics)
    with progress("preparing", len(train) + len(held_out)) as step:
        prepared: list[PreparedScan] = []
        problems: list[str] = []
        for part in [*train, *held_out]:
            try:
                prepared.append(prepare_part(part, statistics, settings.preparation))
            except DataError as error:
                problems += error.problems
            step()
    if problems:
        raise DataError(problems)
    if statistics.has_rgb and (problem := too_dark(_brightness(prepared[: len(train)], statistics))):
        warn(problem)
    return PreparedData(statistics, prepared[: len(train)], prepared[len(train) :])


def _brightness(scans: list[PreparedScan], statistics: Statistics) -> float:
    # Of the part, as the files have it: prepared scans are stretched.
    means = [scan.rgb.max(axis=2)[scan.foreground].mean() for scan in scans if scan.foreground.any()]
    return float(np.median(means)) * statistics.rgb_high / 255 if means else 0.0


def too_dark(brightness: float) -> str | None:
    """One line where a part whose brightest channel has this mean grey level (0 to 255) is too dark, else None."""
    if brightness >= DARK:
        return None
    return (
        f"the part is {brightness:.0f} of 255 bright: too short an exposure? 12-bit numbers in 16-bit files look so, too: "
        "multiplied by 16, they keep their steps."
    )


def _warn_of_sizes(parts: list[Part], statistics: Statistics) -> None:
    sizes = [_size_of(part) for part in parts]
    usual = max(set(sizes), key=sizes.count)
    others = [part.id for part, size in zip(parts, sizes, strict=True) if size != usual]
    # Windows are cut out in pixels, whole frames are shrunk to one size.
    how = "at the same scale in pixels" if statistics.window else "as if all showed the same field"
    warn(
        f"{len(others)} of {len(parts)} training parts have another size than {usual[1]} x {usual[0]} pixels, such as "
        f"{others[0]}; parts of any size will be taken from now on, {how}"
    )


def _size_of(part: Part) -> tuple[int, int]:
    if part.rgb is not None and (part.depth is None or lacks_grid(part.depth)):
        return rgb_size(part.rgb)
    assert part.depth is not None
    return depth_size(part.depth, part.depth_format)


def train_and_held_out(dataset: Dataset) -> tuple[list[Part], list[Part]]:
    """Good parts to train on, and those that no network sees in training.

    Raises:
        DataError: there are fewer than two to train on.
    """
    train, held_out = list(dataset.train), [part for part in dataset.validation if not part.defective]
    if len(train) < 2:
        beside = f", beside {counted(len(held_out), 'part')} held out for the threshold" if held_out else ""
        raise DataError(f"{dataset.root}: expected at least 2 good parts to train on, found {len(train)}{beside}")
    return train, held_out


def facts_of_data(dataset: Dataset) -> dict[str, Any]:
    """Of the data to train on, for people and for those who read its parts again; fields as of `Detector.training`."""
    train, held_out = train_and_held_out(dataset)
    return {
        "data": os.path.abspath(dataset.root),  # whoever looks for it later may stand elsewhere
        "layout": dataset.layout,
        "category": dataset.category,
        "light": dataset.light,
        "depth_format": None if dataset.depth_format is None else asdict(dataset.depth_format),
        "parts": len(train),
        "held_out": len(held_out),
    }


def measure_parts(parts: list[Part], settings: Settings) -> Statistics:
    """Statistics of the training parts, from the cache where nothing has changed.

    RGB that the networks do not see is not measured, so that nobody has to give it later. Depth always is where there is
    some: it tells the part from the background, and if that is all it is for, it need not be as close and fine as here.

    Raises:
        DataError: some parts cannot be read or measured, which are all named; or as of `measure`.
    """
    statistics = _measured(parts, settings)
    return statistics if settings.uses_depth else replace(statistics, density=0.0, step=0.0)


def _measured(parts: list[Part], settings: Settings) -> Statistics:
    files = [file for part in parts for file in part.files(rgb=settings.uses_rgb)]
    formats = [_format_of(part) for part in parts]
    key = cache.key_of(files, settings.preparation, "statistics", formats, settings.uses_rgb)
    if (known := cache.load_json(key)) is not None:
        return Statistics.from_dict(known)
    unreadable: list[DataError] = []

    def readable() -> Iterator[Scan]:
        for part in parts:
            try:
                yield part.read(rgb=settings.uses_rgb)
            except DataError as error:
                unreadable.append(error)

    found: DataError | None = None
    with progress("measuring", len(parts)) as step:
        try:
            statistics = measure(readable(), settings.preparation, progress=step)
        except DataError as error:
            found = error
    if unreadable:
        others = found.problems if found and len(unreadable) < len(parts) else []
        raise DataError([*(problem for error in unreadable for problem in error.problems), *others])
    if found:
        raise found
    cache.save_json(key, statistics.to_dict())
    return statistics


def prepare_part(part: Part, statistics: Statistics, settings: PreparationSettings) -> PreparedScan:
    """One prepared part, from the cache where nothing has changed.

    Raises:
        DataError: a file of the part is not there or cannot be read, or the scan cannot be prepared (`prepare`).
    """
    members = {"rgb": statistics.has_rgb, "depth": statistics.has_depth}
    key = cache.key_of(part.files(**members), settings, part.id, _format_of(part), statistics.to_dict())
    scan = cache.load_scan(key)
    if scan is None:
        scan = prepare(part.read(**members), statistics, settings)
        cache.save_scan(key, scan)
    return scan


def _format_of(part: Part) -> object:
    # As plain values.
    return None if part.depth_format is None else asdict(part.depth_format)
