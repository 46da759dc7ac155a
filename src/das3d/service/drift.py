"""Drift of what a service has inspected: its scores beside those of the held-out good parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from itertools import islice
from pathlib import Path

from das3d.drift import DEFECTIVE, OTHER_MODEL, Drift, compare, expect_enough, with_scores
from das3d.errors import DataError
from das3d.service.inspections import Inspections, Judged, opened
from das3d.threshold import Threshold


def drift_in_inspections(
    run: Path,
    model_hash: str,
    threshold: Threshold | None,
    folder: Path,
    database: str | None = None,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    last: int | None = None,
) -> Drift:
    """Compare the parts that a service has inspected by a model with those that its threshold rests on.

    The database is read a page at a time, the newest part first, while the service runs or not.

    Args:
        run: the model, as messages call it.
        model_hash: SHA-256 of its file: parts that another one judged are left out, also one that was calibrated since.
        threshold: its threshold.
        folder, database: of the service, as for `opened`.
        since, until: moments between which parts were taken in; `until` is excluded, and None is no limit.
        last: how many of these parts are compared, from the newest on; None: all.

    Raises:
        ModelError: the model keeps no held-out scores.
        DataError: too few parts were judged by this model.
        SettingsError: the folder is not a service's, or the database cannot be used.
    """
    threshold = with_scores(run, threshold)
    left_out: dict[str, int] = {}
    newest: Judged | None = None
    oldest: Judged | None = None
    other: Judged | None = None

    def judged(inspections: Inspections) -> Iterator[float]:
        nonlocal newest, oldest, other
        for row in inspections.walk(since, until):
            if row.model_hash != model_hash:
                other = other or row
            if why := _why_not(row, model_hash):
                left_out[why] = left_out.get(why, 0) + 1
                continue
            newest, oldest = newest or row, row
            yield row.score

    with opened(folder, database) as inspections:
        found = compare(threshold, islice(judged(inspections), last), left_out)
    if newest is None and other is not None:
        raise DataError(
            f"{folder}: expected parts that {run} has judged ({model_hash[:12]}), found none but those of "
            f"{other.model} ({other.model_hash[:12]}); give the very file that is served"
        )
    expect_enough(folder, found)
    return replace(found, period=(oldest.at, newest.at) if oldest and newest else None)


def _why_not(row: Judged, model_hash: str) -> str:
    if row.model_hash != model_hash:
        return OTHER_MODEL
    return DEFECTIVE if row.truth == "defective" else ""
