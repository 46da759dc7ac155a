"""The score above which a part is called defective, from good parts that training did not see."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Threshold:
    """A threshold by order statistics of held-out good scores (split conformal; Vovk et al. 2005).

    A further good part, exchangeable with the held-out ones, scores above `value` with probability at most
    `false_alarm_rate`.

    Attributes:
        value: parts that score above it are called defective.
        requested: the false-alarm rate that was asked for.
        false_alarm_rate: the rate that `parts` held-out parts support; above `requested` where they are too few.
        parts: how many held-out good parts it rests on.
    """

    value: float
    requested: float
    false_alarm_rate: float
    parts: int

    def is_defective(self, score: float) -> bool:
        return score > self.value

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def describe(self) -> str:
        """One line for people."""
        text = (
            f"threshold {self.value:.4f} from {self.parts} held-out good parts: at most "
            f"{self.false_alarm_rate:.1%} false alarms expected"
        )
        if self.false_alarm_rate > self.requested:
            needed = math.ceil(1 / self.requested - 1e-9) - 1
            text += f" ({self.requested:.1%} was asked for, which takes {needed} parts)"
        return text


def threshold_from(scores: Sequence[float], false_alarm_rate: float) -> Threshold | None:
    """The smallest score that keeps false alarms at the rate asked for, or the best that so few parts allow.

    Args:
        scores: of held-out good parts.
        false_alarm_rate: in (0, 1).

    Returns:
        None without scores.
    """
    count = len(scores)
    if count == 0:
        return None
    # Above the k-th smallest of n scores lies a further good score with probability at most 1 - k / (n + 1).
    rank = min(max(math.ceil((count + 1) * (1 - false_alarm_rate) - 1e-9), 1), count)
    value = float(np.sort(np.asarray(scores, dtype=np.float64))[rank - 1])
    # One division of whole numbers, so that 19 parts give 0.05 and not a little more.
    return Threshold(value, false_alarm_rate, (count + 1 - rank) / (count + 1), count)
