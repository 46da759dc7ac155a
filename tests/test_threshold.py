"""The threshold: an order statistic with a guarantee, what it says of itself, and too few parts."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from das3d.errors import DataError, SettingsError
from das3d.threshold import SAME, Threshold, parts_to_be_sure, threshold_from

SCORES = st.lists(st.floats(0, 1), min_size=1, max_size=60)
RATES = st.sampled_from(
    ["0.001", "0.01", "0.02", "0.05", "0.1", "0.15", "0.2", "0.25", "0.3", "0.5", "0.75", "0.9", "0.999"]
)


def resting_on(parts: int, requested: float, supported: float) -> Threshold:
    return Threshold(0.5, requested, supported, (0.5,) * parts, ("",) * parts)


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
    names = list(map(str, scores))
    strict, loose = (threshold_from(scores, rate, names=names) for rate in sorted(rates))
    assert strict is not None and loose is not None
    assert strict.value >= loose.value
    shrunk = threshold_from([score * factor for score in scores], max(rates))
    assert shrunk is not None
    assert shrunk.value == loose.value * factor
    assert threshold_from(scores[::-1], max(rates), names=names[::-1]) == loose, "order does not matter"


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
    assert threshold.is_defective(0.4 + 2 * SAME)


def test_equal_scores_raise_no_alarm() -> None:
    threshold = threshold_from([0.3] * 12, 0.1)
    assert threshold is not None
    assert not threshold.is_defective(0.3)


def test_no_scores_no_threshold() -> None:
    assert threshold_from([], 0.05) is None


@pytest.mark.parametrize("rate", [0.0, 1.0, 5.0, -0.01, math.nan])
def test_what_is_no_share_is_refused(rate: float) -> None:
    told = f"false-alarm rate: expected a share above 0 and below 1, such as 0.05 for 5%, found {rate:g}"
    for scores in ([], [0.1, 0.2]):
        with pytest.raises(SettingsError) as caught:
            threshold_from(scores, rate)
        assert str(caught.value) == told


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_what_is_no_score_sets_no_threshold(score: float) -> None:
    # It would be the highest, and no part would ever be called defective.
    with pytest.raises(DataError, match=f"^held-out scores: expected finite numbers, found 1 others, first {score}$"):
        threshold_from([0.1, score, 0.2], 0.1)


def test_description_says_what_can_be_expected() -> None:
    enough = threshold_from([i / 100 for i in range(19)], 0.05)
    assert enough is not None
    assert enough.describe() == (
        "threshold 0.1800 from 19 held-out good parts: 5.0% false alarms expected, at most 14.6% with 95% confidence"
    )
    highest = "highest: part 18 0.1800, then 0.1700, 0.1600; the threshold is the score of part 18"
    assert enough.explain() == [enough.describe(), highest]
    few = threshold_from([0.1, 0.2, 0.3], 0.05)
    assert few is not None
    assert few.describe() == (
        "threshold 0.3000 from 3 held-out good parts: 25.0% false alarms expected, at most 63.2% with 95% confidence "
        "(5% was asked for, which takes 19 parts)"
    )
    assert few.explain()[1] == (
        "5% was asked for, but 3 parts cannot show it: that takes 19 held-out good parts, and 59 to be 95% sure; "
        "das3d calibrate --merge adds parts"
    )
    hopeless = threshold_from([0.2, 0.99995, 0.3], 0.25, names=["a", "b", "c"])
    assert hopeless is not None and not hopeless.is_defective(1.0)
    assert hopeless.explain()[-1] == (
        "no score can lie above it, so no part would ever be called defective: look at b, and if it is no good part, take "
        "it away and calibrate again"
    )
    told = threshold_from([0.1, 0.2, 0.3], 0.25, {"spots": [0.2, 0.4], "cuts": [0.9, 0.8]})
    assert told is not None
    assert told.explain()[2] == (
        "at this threshold 75% of 4 synthetic defects on those parts are found (spots 50%, cuts 100%); real defects may be "
        "easier or harder"
    )


@pytest.mark.parametrize("rate", [*(1 / k for k in range(2, 120)), 0.03, 0.07, 0.15, 0.9])
def test_the_number_of_parts_that_it_names_suffices_and_no_smaller_does(rate: float) -> None:
    needed = int(resting_on(0, rate, 1.0).describe().split("takes ")[1].split()[0])
    enough = threshold_from([0.0] * needed, rate)
    assert enough is not None
    assert enough.false_alarm_rate <= rate and "asked for" not in enough.describe()
    fewer = threshold_from([0.0] * (needed - 1), rate)
    assert fewer is None or fewer.false_alarm_rate > rate


@given(scores=SCORES, rate=RATES, score=st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_a_part_is_defective_exactly_where_its_false_alarm_probability_is_small(
    scores: list[float], rate: str, score: float
) -> None:
    found = threshold_from(scores, float(rate))
    assert found is not None
    for s in (score, found.value, *scores[:3], found.value + 2 * SAME, found.value - SAME / 2):
        chance = found.false_alarm_probability(s)
        assert chance == (1 + sum(held >= s - SAME for held in scores)) / (1 + len(scores))
        assert found.is_defective(s) == (chance <= found.false_alarm_rate)


@given(scores=SCORES, rate=RATES, rounding=st.floats(-0.9, 0.9))
@settings(max_examples=100, deadline=None)
def test_the_part_that_sets_the_threshold_is_good_however_an_engine_rounds(
    scores: list[float], rate: str, rounding: float
) -> None:
    found = threshold_from(scores, float(rate))
    assert found is not None
    assert not found.is_defective(found.value + rounding * SAME)


def test_false_alarm_probabilities_are_never_too_small() -> None:
    # Under exchangeability P(p <= a) <= a, for every a that n parts can tell: counted over sets of held-out parts.
    rng, count = np.random.default_rng(1), 0
    small = np.zeros(9)
    for scores in rng.gamma(1.5, size=(4000, 10)).round(1):  # ties too
        threshold = threshold_from(scores[:9].tolist(), 0.1)
        assert threshold is not None
        chance = threshold.false_alarm_probability(float(scores[9]))
        small += [chance <= (k + 1) / 10 for k in range(9)]
        count += 1
    allowed = np.arange(1, 10) / 10
    assert (small / count <= allowed + 4 * np.sqrt(allowed * (1 - allowed) / count)).all()


@pytest.mark.parametrize(("parts", "rate"), [(3, 0.05), (23, 0.05), (23, 0.2), (200, 0.05), (300, 0.01)])
def test_bound_holds_in_95_of_100_calibrations(parts: int, rate: float) -> None:
    rng, runs = np.random.default_rng(parts), 4000
    kept = 0
    for scores in rng.random((runs, parts)):  # uniform scores: the true rate above a threshold t is 1 - t
        threshold = threshold_from(scores.tolist(), rate)
        assert threshold is not None
        kept += 1 - threshold.value <= threshold.bound
    assert kept / runs == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / runs))


@pytest.mark.parametrize("alarms", [0, 1, 2, 5])
def test_bound_is_the_clopper_pearson_bound(alarms: int) -> None:
    parts = 40
    threshold = resting_on(parts, 0.01, (alarms + 1) / (parts + 1))
    foreign = binomtest(alarms, parts).proportion_ci(0.90, "exact").high  # two-sided 90 %: each side 5 %
    assert threshold.bound == pytest.approx(foreign, rel=1e-9)


@pytest.mark.parametrize("rate", [0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.001])
def test_parts_to_be_sure_suffice_and_no_smaller_number_does(rate: float) -> None:
    needed = parts_to_be_sure(rate)
    assert resting_on(needed, rate, 1 / (needed + 1)).bound <= rate * (1 + 1e-9)
    assert resting_on(needed - 1, rate, 1 / needed).bound > rate


def test_surprise_is_the_share_of_further_sets_with_so_many_alarms() -> None:
    rng, runs, parts, further = np.random.default_rng(3), 4000, 12, 8
    threshold = threshold_from([i / parts for i in range(parts)], 0.2)
    assert threshold is not None
    above = round(threshold.false_alarm_rate * (parts + 1))
    values = np.sort(rng.random((runs, parts)), axis=1)[:, -above]
    alarms = (rng.random((runs, further)) > values[:, None]).sum(axis=1)
    for count in (0, 1, 3, 6):
        expected = float((alarms >= count).mean())
        assert threshold.surprise(count, further) == pytest.approx(expected, abs=0.04)
    assert threshold.surprise(0, further) == 1


def test_detection_is_the_share_of_synthetic_defects_above() -> None:
    threshold = threshold_from([0.1, 0.2, 0.3], 0.3, {"spots": [0.3, 0.31, 0.9, 0.0], "cuts": [0.5], "shifts": []})
    assert threshold is not None
    assert threshold.detection == {"spots": 0.5, "cuts": 1.0} and threshold.detected == pytest.approx(0.6)
    bare = threshold_from([0.1, 0.2, 0.3], 0.3)
    assert bare is not None and bare.detection == {} and bare.detected is None
    assert json.loads(json.dumps(threshold.summary()))["synthetic_detection_by_kind"] == {"spots": 0.5, "cuts": 1.0}


def test_a_score_is_compared_in_counts() -> None:
    threshold = threshold_from([0.1, 0.2, 0.3], 0.3)
    assert threshold is not None
    assert threshold.compared(0.31) == "higher than all 3 held-out good parts"
    assert threshold.compared(0.3) == threshold.compared(0.25) == "as high as 1 of 3 held-out good parts"
    assert threshold.compared(0.0) == "as high as 3 of 3 held-out good parts"


def test_threshold_survives_json() -> None:
    threshold = threshold_from([0.123456789, 0.2, 1 / 3], 0.1, {"spots": [0.1, 2 / 3]}, ["a", "b", "c"])
    assert threshold is not None
    assert Threshold(**json.loads(json.dumps(threshold.to_dict()))) == threshold
