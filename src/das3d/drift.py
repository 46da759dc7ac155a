"""Drift: whether parts that are judged now still score as the held-out good parts did, on which the threshold rests.

It is looked for in the middle of the scores and not at the threshold, since the parts of a line are good and defective as
they come: a few defects among them move the highest scores much and the middle next to nothing.
"""

from __future__ import annotations

import csv
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from das3d.console import counted
from das3d.errors import DataError, ModelError, one_line
from das3d.threshold import CONFIDENCE, UNLIKELY, Threshold, above, chance_of_so_many

LEAST = 20  # parts: fewer show next to nothing
OTHER_MODEL, DEFECTIVE = "judged by another model", "known to be defective"  # why a part is left out


@dataclass(frozen=True)
class Drift:
    """Parts beside the held-out good ones.

    Attributes:
        threshold: with the scores of the held-out parts.
        parts: how many parts are compared.
        higher: how many of them score above the held-out median (`median_rank`).
        alarms: how many of them score above the threshold.
        chance: the probability that the middle of so many parts lies as far from that median, on either side, if they are
            like the held-out ones.
        left_out: how many parts that were looked at are not compared, by the reason.
        period: when the first and the last of the parts were taken in, UTC; None where nothing tells.
    """

    threshold: Threshold
    parts: int
    higher: int
    alarms: int
    chance: float
    left_out: Mapping[str, int] = field(default_factory=dict)
    period: tuple[datetime, datetime] | None = None

    @property
    def seen(self) -> bool:
        """Whether chance alone hardly explains it."""
        return self.chance < UNLIKELY

    @property
    def expected(self) -> float:
        """The share of parts like the held-out ones that scores above their median."""
        held_out = self.threshold.parts
        return 1 - median_rank(held_out) / (held_out + 1)

    def explain(self) -> list[str]:
        """In lines for people."""
        known, share = self.threshold, self.higher / self.parts
        shares = (
            f"{counted(self.parts, 'part')} beside {known.parts} held-out ones: {share:.0%} score above the "
            f"held-out median ({self.expected:.0%} expected, chance {_chance_text(self.chance)}), "
            f"{self.alarms / self.parts:.1%} above the threshold ({known.false_alarm_rate:.1%} of good parts expected, "
            f"at most {known.bound:.1%} with {CONFIDENCE:.0%} confidence)"
        )
        if not self.seen:
            said = "no drift to be seen"
        elif share > self.expected:
            said = "parts, light or camera have changed; calibrate with new good parts"
        else:
            said = "lower than by chance: parts, light or camera have changed, or the model was trained on these parts"
        begin, end = (f"{moment:%Y-%m-%d %H:%M}" for moment in self.period) if self.period else ("", "")
        when = [f"taken in from {begin} to {end} UTC"] if self.period else []
        left = [f"left out: {', '.join(f'{count} {why}' for why, count in self.left_out.items())}"] if self.left_out else []
        return [f"{shares}: {said}", *when, *left]


def median_rank(held_out: int) -> int:
    """Which score, from the lowest up, is the median of so many: the lower of two in the middle."""
    return (held_out + 1) // 2


def compare(threshold: Threshold, scores: Iterable[float], left_out: Mapping[str, int] | None = None) -> Drift:
    """Compare scores of new parts with those of the held-out ones.

    If new parts are like them, the number of new ones above the k-th smallest held-out score has a law of its own whatever
    the scores' distribution (`das3d.threshold.chance_of_so_many`). Twice the smaller of the chances on both sides is told.
    Scores that differ from the median by no more than rounding count for neither side. They are counted as they come, and
    none is kept.
    """
    held_out = threshold.parts
    rank = median_rank(held_out)
    median = threshold.good_scores[rank - 1]
    parts = higher = lower = alarms = 0
    for score in scores:
        parts += 1
        higher += above(score, median)
        lower += above(median, score)
        alarms += threshold.is_defective(score)
    sides = (
        chance_of_so_many(higher, parts, held_out + 1 - rank, held_out),
        chance_of_so_many(lower, parts, rank, held_out),
    )
    return Drift(threshold, parts, higher, alarms, min(2 * min(sides), 1.0), left_out or {})


def drift_in(run: Path, threshold: Threshold | None, table: Path, *, last: int | None = None) -> Drift:
    """Compare the parts in a table of scores with those that a model's threshold rests on.

    Parts that were not judged, are known to be defective or were judged by another model than the last part are left out.
    No more rows than the last ones asked for are held.

    Args:
        run: the model, as messages call it.
        threshold: its threshold.
        table: ``scores.csv`` of `predict` or `watch`.
        last: how many of the last rows are looked at; None: all.

    Raises:
        ModelError: the model has no threshold, and so no scores of held-out parts.
        DataError: the table cannot be read, holds too few scores, or those of another model.
    """
    threshold = with_scores(run, threshold)
    kept = deque(_rows_of(table), maxlen=last or 1)
    model = kept[-1].get("model") if kept else None
    left_out: dict[str, int] = {}

    def judged() -> Iterator[float]:
        for row in kept if last else _rows_of(table):  # of a table of years, all rows would not fit into memory
            if why := _why_not(row, model):
                left_out[why] = left_out.get(why, 0) + 1
                continue
            score = _number_in(table, row, "score")
            if row.get("false_alarm_probability"):
                _expect_its_own(run, threshold, table, row, score)
            yield score

    return expect_enough(table, compare(threshold, judged(), left_out))


def with_scores(run: Path, threshold: Threshold | None) -> Threshold:
    """The threshold of a model. Raises ModelError where it has none, and so no scores of held-out parts."""
    if threshold is None:
        raise ModelError(
            f"{run}: expected a model that keeps the scores of held-out good parts, found one without; "
            "das3d calibrate --data GOODPARTS gives it some"
        )
    return threshold


def expect_enough(place: Path, found: Drift) -> Drift:
    """What was found in a table or folder. Raises DataError where too few parts were compared."""
    if found.parts < LEAST:
        there = ", ".join([counted(found.parts, "part"), *(f"{count} {why}" for why, count in found.left_out.items())])
        raise DataError(f"{place}: expected {LEAST} or more parts to compare, found {there}")
    return found


def _rows_of(table: Path) -> Iterator[dict[str, str]]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:  # -sig: as Excel saves it
            reader = csv.DictReader(file)
            names = reader.fieldnames or []
            if "id" not in names or "score" not in names:
                told = one_line(", ".join(names)) or "none"
                raise DataError(
                    f"{table}: expected columns id and score, as das3d predict and watch write them, found {told}"
                )
            yield from reader
    except (OSError, ValueError, csv.Error) as error:
        found = getattr(error, "strerror", None) or one_line(error)
        raise DataError(f"{table}: expected scores that das3d predict or watch wrote, found: {found}") from None


def _why_not(row: Mapping[str, str], model: str | None) -> str:
    if row.get("error"):
        return "not judged"
    if row.get("label") == "1":
        return DEFECTIVE
    return OTHER_MODEL if row.get("model") != model else ""


def _number_in(table: Path, row: Mapping[str, str], column: str) -> float:
    try:
        number = float(row[column])
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number <= 1:
        raise DataError(f"{table}: expected a {column} from 0 to 1 for {row['id']}, found {one_line(row[column])!r}")
    return number


def _expect_its_own(run: Path, threshold: Threshold, table: Path, row: Mapping[str, str], score: float) -> None:
    # Whether the table was written by this model: each score's false-alarm probability is by its held-out scores.
    told = _number_in(table, row, "false_alarm_probability")
    near = [threshold.false_alarm_probability(score + step) for step in (-1e-7, 1e-7)]  # as scores are rounded there
    if not any(math.isclose(own, told, rel_tol=1e-5) for own in near):
        raise DataError(
            f"{table}: expected scores by the held-out parts of {run}, found others: {row['id']} has a false-alarm "
            f"probability of {told:.3g} and would have {near[0]:.3g}; judge the parts with this model"
        )


def _chance_text(chance: float) -> str:
    return f"{chance:.0e}" if chance < 0.001 else f"{chance:.1%}" if chance < 0.1 else f"{chance:.0%}"
