"""The score above which a part is called defective, from good parts that training did not see, and how far to trust it.

All of it is order statistics of held-out good scores (split conformal prediction; Vovk et al. 2005). They suppose one
thing: that good parts to come are like the held-out ones. Nothing is supposed about how scores are distributed.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from das3d.arguments import is_number, shown_number
from das3d.console import counted
from das3d.errors import DataError, SettingsError

CONFIDENCE = 0.95  # of the upper bound on the false-alarm rate
UNLIKELY = 0.01  # what further parts do by chance with a smaller probability is told: something has changed
# Engines in full precision agree to within this. The threshold is itself the score of a part, so without it an engine that
# rounds the other way would flip that part's verdict.
SAME = 1e-4
HIGHEST = 1.0  # score that a part can have, as the map is a probability
TERMS = 100_000  # of a sum that are held at a time


def expect_rate(rate: float) -> None:
    """Raise SettingsError where this is no false-alarm rate."""
    if not (is_number(rate) and 0 < rate < 1):
        expected = "a share above 0 and below 1, such as 0.05 for 5%"
        raise SettingsError(f"false-alarm rate: expected {expected}, found {shown_number(rate)}")


def above(score: float, value: float) -> bool:
    """Whether a score lies above a threshold's value, by more than rounding explains."""
    return score - SAME > value


@dataclass(frozen=True)
class Threshold:
    """A threshold and the scores that it rests on.

    A further good part, exchangeable with the held-out ones, scores above `value` with probability at most
    `false_alarm_rate`. That is the mean over all sets of so many held-out parts; for the one set at hand the rate may lie
    higher, and `bound` says how much.

    Attributes:
        value: parts that score above it, by more than rounding explains, are called defective.
        requested: the false-alarm rate that was asked for.
        false_alarm_rate: the rate that so many held-out parts support; above `requested` where they are too few.
        good_scores: of the held-out good parts, ascending.
        good_parts: what those parts are called, in the same order.
        synthetic_scores: of the same parts with synthetic defects, for each kind of defect.
    """

    value: float
    requested: float
    false_alarm_rate: float
    good_scores: tuple[float, ...]
    good_parts: tuple[str, ...]
    synthetic_scores: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # As JSON gives them.
        object.__setattr__(self, "good_scores", tuple(self.good_scores))
        object.__setattr__(self, "good_parts", tuple(self.good_parts))
        kinds = {kind: tuple(scores) for kind, scores in self.synthetic_scores.items()}
        object.__setattr__(self, "synthetic_scores", kinds)

    @property
    def parts(self) -> int:
        """How many held-out good parts it rests on."""
        return len(self.good_scores)

    def is_defective(self, score: float) -> bool:
        return above(score, self.value)

    def false_alarm_probability(self, score: float) -> float:
        """The probability that a good part scores `score` or more, as far as the held-out ones can tell.

        That is the conformal p-value, (1 + number of held-out scores of at least `score`) / (n + 1). It is never below
        1 / (n + 1): what is rarer than that, n parts cannot tell. A part is defective exactly where it is at most
        `false_alarm_rate`.
        """
        return (1 + self._as_high(score)) / (1 + self.parts)

    def compared(self, score: float) -> str:
        """Where a score stands among those of held-out good parts, for people.

        In counts, as a probability beside a verdict is soon read as the chance that the verdict is wrong.
        """
        parts = counted(self.parts, "held-out good part")
        return f"as high as {as_high} of {parts}" if (as_high := self._as_high(score)) else f"higher than all {parts}"

    def _as_high(self, score: float) -> int:
        # How many held-out good parts score as high.
        return self.parts - bisect_left(self.good_scores, score - SAME)

    @property
    def bound(self) -> float:
        """The false-alarm rate that the threshold keeps with 95 % confidence.

        The rate above the k-th smallest of n independent scores is distributed as Beta(n + 1 - k, k), whatever the scores'
        distribution, so this is that beta's quantile (the same number as the Clopper-Pearson bound for n - k alarms in n).
        """
        from scipy.special import betaincinv

        higher = self._parts_above
        return float(betaincinv(higher, self.parts + 1 - higher, CONFIDENCE))

    def surprise(self, alarms: int, parts: int) -> float:
        """The probability of `alarms` or more among `parts` further good parts, if these are like the held-out ones.

        A value near 0 says that good parts have changed.
        """
        return chance_of_so_many(alarms, parts, self._parts_above, self.parts)

    @property
    def _parts_above(self) -> int:
        # n + 1 - k, where the threshold is the k-th smallest of n scores.
        return round(self.false_alarm_rate * (self.parts + 1))

    @property
    def detection(self) -> dict[str, float]:
        """The share of synthetic defects above the threshold, for each kind; empty where none were tried."""
        return {
            kind: float(np.mean([self.is_defective(score) for score in scores]))
            for kind, scores in self.synthetic_scores.items()
            if scores
        }

    @property
    def detected(self) -> float | None:
        """The share of all synthetic defects above the threshold; None where none were tried."""
        scores = [score for kind in self.synthetic_scores.values() for score in kind]
        return float(np.mean([self.is_defective(score) for score in scores])) if scores else None

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain values; `Threshold(**values)` makes it again."""
        return asdict(self)

    def summary(self) -> dict[str, Any]:
        """What reports show: the threshold and what may be expected of it, without the scores of synthetic defects."""
        return {
            "value": self.value,
            "requested": self.requested,
            "false_alarm_rate": self.false_alarm_rate,
            "false_alarm_bound": self.bound,
            "confidence": CONFIDENCE,
            "parts": self.parts,
            "good_scores": list(self.good_scores),
            "good_parts": list(self.good_parts),
            "synthetic_detection": self.detected,
            "synthetic_detection_by_kind": self.detection,
        }

    def describe(self) -> str:
        """One line for people."""
        if self.false_alarm_rate <= self.requested:
            return self._promise()
        return (
            f"{self._promise()} ({rate_text(self.requested)} was asked for, which takes {parts_for(self.requested)} parts)"
        )

    def _promise(self) -> str:
        return (
            f"threshold {self.value:.4f} from {counted(self.parts, 'held-out good part')}: {self.false_alarm_rate:.1%} "
            f"false alarms expected, at most {self.bound:.1%} with {CONFIDENCE:.0%} confidence"
        )

    def explain(self) -> list[str]:
        """All that is known, in lines for people: after training and calibration."""
        lines = [self._promise()]
        enough, sure = parts_for(self.requested), parts_to_be_sure(self.requested)
        if self.false_alarm_rate > self.requested:
            lines.append(
                f"{rate_text(self.requested)} was asked for, but {counted(self.parts, 'part')} cannot show it: that takes "
                f"{enough} held-out good parts, and {sure} to be {CONFIDENCE:.0%} sure; das3d calibrate --merge adds parts"
            )
        lines.append(self._highest())
        if not self.is_defective(HIGHEST):
            lines.append(
                f"no score can lie above it, so no part would ever be called defective: look at {self._sets}, and if it is "
                "no good part, take it away and calibrate again"
            )
        if self.detected is not None:
            kinds = ", ".join(f"{kind} {share:.0%}" for kind, share in self.detection.items())
            number = sum(len(scores) for scores in self.synthetic_scores.values())
            lines.append(
                f"at this threshold {self.detected:.0%} of {number} synthetic defects on those parts are found ({kinds}); "
                "real defects may be easier or harder"
            )
        return lines

    def _highest(self) -> str:
        # With few parts the highest score is the threshold, and one defective part among them is enough to spoil it.
        highest, *others = (f"{score:.4f}" for score in self.good_scores[:-4:-1])
        then = f", then {', '.join(others)}" if others else ""
        return f"highest: {self.good_parts[-1]} {highest}{then}; the threshold is the score of {self._sets}"

    @property
    def _sets(self) -> str:
        # The part whose score is the threshold.
        return self.good_parts[-self._parts_above]


def threshold_from(
    scores: Sequence[float],
    requested: float,
    synthetic: Mapping[str, Sequence[float]] | None = None,
    names: Sequence[str] | None = None,
) -> Threshold | None:
    """The smallest score that keeps false alarms at the rate asked for, or the best that so few parts allow.

    Args:
        scores: of held-out good parts.
        requested: false-alarm rate, in (0, 1).
        synthetic: scores of the same parts with synthetic defects, for each kind, to tell what will be found.
        names: of the parts, to tell which of them sets the threshold; where None, they are numbered.

    Returns:
        None without scores.

    Raises:
        SettingsError: the rate is none.
        DataError: a score is not finite; one that is no number would be the highest, and nothing lies above it.
    """
    expect_rate(requested)
    if strange := [score for score in scores if not math.isfinite(score)]:
        raise DataError(f"held-out scores: expected finite numbers, found {len(strange)} others, first {strange[0]}")
    count = len(scores)
    if count == 0:
        return None
    # Above the k-th smallest of n scores lies a further good score with probability at most 1 - k / (n + 1).
    rank = min(max(math.ceil((count + 1) * (1 - requested) - 1e-9), 1), count)
    order = np.argsort(np.asarray(scores, dtype=np.float64), kind="stable")
    ascending = tuple(float(scores[place]) for place in order)
    called = tuple(f"part {place}" if names is None else names[place] for place in order)
    kinds = {kind: tuple(float(score) for score in found) for kind, found in (synthetic or {}).items()}
    # One division of whole numbers, so that 19 parts give 0.05 and not a little more.
    rate = (count + 1 - rank) / (count + 1)
    return Threshold(ascending[rank - 1], requested, rate, ascending, called, kinds)


def chance_of_so_many(count: int, parts: int, rank: int, held_out: int) -> float:
    """The probability that `count` or more of `parts` further scores lie beyond the `rank`-th of `held_out`, counted from
    the end beyond which they lie, if all are alike.

    A beta-binomial tail, as the rate beyond that score is itself distributed as Beta(rank, held_out + 1 - rank).
    """
    from scipy.stats import betabinom

    if count <= 0:
        return 1.0
    # A sum of what is small, as 1 less the rest would be rounded away where it is smallest. Its terms may be millions.
    law = betabinom(parts, rank, held_out + 1 - rank)
    starts = range(count, parts + 1, TERMS)
    return min(sum(float(law.pmf(np.arange(start, min(start + TERMS, parts + 1))).sum()) for start in starts), 1.0)


def parts_for(requested: float) -> int:
    """How many held-out good parts it takes to expect no more than this false-alarm rate."""
    return math.ceil(1 / requested - 1e-9) - 1


def parts_to_be_sure(requested: float) -> int:
    """How many held-out good parts it takes until the highest of their scores bounds the rate with 95 % confidence."""
    return math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-requested) - 1e-9)


def rate_text(rate: float) -> str:
    """A rate as people ask for it: 5%, 0.1%, 12.5%."""
    return f"{100 * rate:.4g}%"
