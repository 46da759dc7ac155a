"""Good parts to calibrate with: inspections of a service that a person has marked as good in truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from das3d.console import counted, say, warn
from das3d.detector import Detector
from das3d.errors import DataError
from das3d.parts import Part
from das3d.prediction import with_focal_length
from das3d.service.inspections import Inspection, Inspections, Judged, opened
from das3d.threshold import UNLIKELY


def marked_good(detector: Detector, folder: Path, database: str | None = None, *, model: str | None = None) -> list[Part]:
    """The scans of inspections that are marked good, the oldest first, as parts for `das3d.calibrate`.

    Says how many there are, and warns where false alarms are so many among them that somebody seems to have marked these
    above all.

    Args:
        detector: that is to be calibrated.
        folder, database: of the service, as for `opened`.
        model: whose inspections, by its name in the service; where None the only one there is, or the one that is called
            by the category of the detector's training.

    Raises:
        DataError: none is marked good and still has its scan, or those of several models are.
        SettingsError: the folder is not a service's, or the database cannot be used.
    """
    with opened(folder, database) as inspections:
        marked = [row for row in inspections.walk() if row.truth == "good"]
        chosen = _of_model(folder, marked, model, detector.training.get("category"))
        rows = [row for row in map(inspections.get, (one.id for one in reversed(chosen))) if row is not None]
        known = detector.depth_format
        parts = [part for row in rows if (part := _part(inspections, row)) is not None]
        _tell(inspections, rows)
    if gone := len(rows) - len(parts):
        say(f"left out: {counted(gone, 'part')} whose scan is no longer kept")
    if not parts:
        raise DataError(f"{folder}: expected inspections marked good whose scans are kept, found none")
    return with_focal_length(parts, None if known is None else known.focal_length)


def _of_model(folder: Path, marked: Sequence[Judged], model: str | None, category: str | None) -> list[Judged]:
    names = list(dict.fromkeys(row.model for row in marked))
    if model is None and len(names) > 1 and category in names:
        model = category
    if model is None and len(names) == 1:
        (model,) = names
    if not names or model not in names:
        asked = "" if model is None else f" that {model} has judged"
        found = f"those of {', '.join(names)}; choose by --category" if names else "none"
        raise DataError(f"{folder}: expected inspections marked good{asked}, found {found}")
    return [row for row in marked if row.model == model]


def _part(inspections: Inspections, row: Inspection) -> Part | None:
    part = inspections.part_of(row)
    files = [file for file in (part.rgb, part.depth) if file is not None]
    if not files or not all(file.is_file() for file in files):
        return None
    return replace(part, id=f"inspection {row.id} ({row.part})")


def _tell(inspections: Inspections, rows: Sequence[Inspection]) -> None:
    # Who marks false alarms alone gets a threshold from the highest scores of good parts, and nothing is found by it.
    alarms = sum(row.verdict == "defective" for row in rows)
    say(f"{counted(len(rows), 'part')} marked good, {alarms} of which had been judged defective")
    time = {"since": rows[0].at, "until": rows[-1].at + timedelta(microseconds=1), "model": rows[0].model}
    every, judged = inspections.count(**time), inspections.count(**time, verdict="defective")
    from scipy.stats import hypergeom

    if hypergeom.sf(alarms - 1, every, judged, len(rows)) < UNLIKELY:
        warn(
            f"of all {every} parts of that time {judged} had been judged defective: where false alarms are marked above "
            "all, the threshold comes out too high; mark every good part of some hours"
        )
