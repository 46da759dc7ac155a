"""The threshold: an order statistic with a guarantee, what it says of itself, and too few parts."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from das3d.threshold import Threshold, threshold_from

SCORES = st.lists(st.floats(0, 1), min_size=1, max_size=60)
RATES = st.sampled_from(
    ["0.001", "0.01", "0.02", "0.05", "0.1", "0.15", "0.2", "0.25", "0.3", "0.5", "0.75", "0.9", "0.999"]
)


@given(scores=SCORES, rate=RATES)
@settings(max_examples=200, deadline=None)
def test_threshold_is_the_smallest_score_that_keeps_the_rate(scores: list[float], rate: str) -> None:
    asked, count = Fraction(rate), len(scores)
    # Exactly: above the k-th smallest lies a further score with probability (n + 1 - k) / (n + 1) at most.
    allowed = [k for k in range(1, count + 1) if Fraction(count + 1 - k, count + 1) <= asked]
    rank = min(allowed, default=count)
    found = threshold_from(scores, float(rate))
    assert found is not None
    assert found.value == sorted(scores)[rank - 1]
    assert found.false_alarm_rate == pytest.approx((count + 1 - rank) / (count + 1), rel=1e-12)
    assert (found.false_alarm_rate <= float(rate)) == bool(allowed), "it says whether the parts suffice"
    assert (found.requested, found.parts) == (float(rate), count)


@given(scores=SCORES, rate=st.floats(1e-12, 1 - 1e-12))
@settings(max_examples=100, deadline=None)
def test_any_rate_gives_one_of_the_scores(scores: list[float], rate: float) -> None:
    found = threshold_from(scores, rate)
    assert found is not None
    assert found.value in scores
    assert 0 < found.false_alarm_rate < 1


@given(scores=SCORES, rates=st.tuples(st.floats(0.001, 0.999), st.floats(0.001, 0.999)), factor=st.floats(0.1, 1))
@settings(max_examples=100, deadline=None)
def test_threshold_falls_with_the_rate_and_follows_the_scores(
    scores: list[float], rates: tuple[float, float], factor: float
) -> None:
    strict, loose = (threshold_from(scores, rate) for rate in sorted(rates))
    assert strict is not None and loose is not None
    assert strict.value >= loose.value
    shrunk = threshold_from([score * factor for score in scores], max(rates))
    assert shrunk is not None
    assert shrunk.value == loose.value * factor
    assert threshold_from(list(reversed(scores)), max(rates)) == loose, "order does not matter"


@pytest.mark.parametrize(("parts", "rate"), [(5, 0.05), (19, 0.05), (20, 0.05), (39, 0.05), (50, 0.1), (99, 0.01)])
def test_guarantee_holds_in_simulation(parts: int, rate: float) -> None:
    rng = np.random.default_rng(7)
    alarms, runs = 0, 4000
    expected = 0.0
    for scores in rng.gamma(2.0, size=(runs, parts + 1)):
        threshold = threshold_from(scores[:-1].tolist(), rate)
        assert threshold is not None
        alarms += threshold.is_defective(float(scores[-1]))
        expected = threshold.false_alarm_rate
    spread = math.sqrt(expected * (1 - expected) / runs)
    assert alarms / runs == pytest.approx(expected, abs=4 * spread), "for continuous scores the bound is met exactly"
    assert expected <= rate or parts < 1 / rate - 1


def test_parts_at_the_threshold_are_good() -> None:
    threshold = threshold_from([0.1, 0.4, 0.2], 0.3)
    assert threshold is not None
    assert threshold.value == 0.4
    assert not threshold.is_defective(0.4)
    assert threshold.is_defective(math.nextafter(0.4, 1))


def test_equal_scores_raise_no_alarm() -> None:
    threshold = threshold_from([0.3] * 12, 0.1)
    assert threshold is not None
    assert not threshold.is_defective(0.3)


def test_no_scores_no_threshold() -> None:
    assert threshold_from([], 0.05) is None


def test_description_says_what_can_be_expected() -> None:
    enough = threshold_from([i / 100 for i in range(19)], 0.05)
    assert enough is not None
    assert enough.describe() == "threshold 0.1800 from 19 held-out good parts: at most 5.0% false alarms expected"
    few = threshold_from([0.1, 0.2, 0.3], 0.05)
    assert few is not None
    assert few.describe() == (
        "threshold 0.3000 from 3 held-out good parts: at most 25.0% false alarms expected "
        "(5.0% was asked for, which takes 19 parts)"
    )


@pytest.mark.parametrize("rate", [*(1 / k for k in range(2, 120)), 0.03, 0.07, 0.15, 0.9])
def test_the_number_of_parts_that_it_names_suffices_and_no_smaller_does(rate: float) -> None:
    few = Threshold(0.5, rate, 1.0, 0)
    needed = int(few.describe().split("takes ")[1].split()[0])
    enough = threshold_from([0.0] * needed, rate)
    assert enough is not None
    assert enough.false_alarm_rate <= rate and "asked for" not in enough.describe()
    fewer = threshold_from([0.0] * (needed - 1), rate)
    assert fewer is None or fewer.false_alarm_rate > rate


def test_threshold_survives_json() -> None:
    threshold = threshold_from([0.123456789, 0.2, 1 / 3], 0.1)
    assert threshold is not None
    assert Threshold(**json.loads(json.dumps(threshold.to_dict()))) == threshold
