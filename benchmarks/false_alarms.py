"""Does the observed rate of false alarms agree with the promised one? On good parts that training did not see.

    python benchmarks/false_alarms.py RUN --data DATA --category cable_gland
    python benchmarks/false_alarms.py RUN --rendered 600        # a run on the demo parts, of which there are any number

Three tables, as Markdown. The first is the test that counts: the threshold from the held-out parts, as training sets it,
on the good test parts (or on newly rendered ones). The second shuffles all unseen good parts over and over into some to
calibrate with and the rest to count false alarms on. There the mean must agree by the theorem, whatever the parts: it
checks the code, and shows how far single calibrations scatter. The third asks the same of a smooth tail fitted to the
scores, which would promise rates that order statistics of so few parts cannot.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import norm

from das3d.console import progress
from das3d.datasets import find_dataset
from das3d.demo import render_part
from das3d.detector import Detector, load
from das3d.prepared import prepare_part
from das3d.scan import Scan, scan_from_arrays
from das3d.threshold import rate_text, threshold_from

RATES = (0.2, 0.1, 0.05, 0.01)
OTHER_SEED = 1000  # of rendered parts; those of the demo data have small ones

Scores = NDArray[np.float64]


def scores_of_files(detector: Detector, data: Path, category: str | None) -> tuple[Scores, Scores]:
    """Scores of the held-out good parts and of the good test parts."""
    dataset = find_dataset(data, category, **detector.reading())
    found: list[Scores] = []
    for parts in (dataset.validation, [part for part in dataset.test if not part.defective]):
        with progress("scoring", len(parts)) as step:
            scores = []
            for part in parts:
                scan = prepare_part(part, detector.statistics, detector.settings.preparation)
                scores.append(detector.predict_prepared([scan], regions=False)[0].score)
                step()
        found.append(np.array(scores))
    return found[0], found[1]


def scores_of_rendered(detector: Detector, count: int) -> Scores:
    """Scores of good demo parts that no data set holds."""

    def scans() -> Iterator[Scan]:
        assert detector.statistics.frame is not None
        with progress("rendering", count) as step:
            for index in range(count):
                made = render_part((OTHER_SEED, "test", "good", index), size=detector.statistics.frame)
                yield scan_from_arrays(made.rgb, made.points, name=f"rendered {index}")
                step()

    return np.array([prediction.score for prediction in detector.predict_scans(scans())])


def as_shipped(held_out: Scores, fresh: Scores) -> Iterator[str]:
    """The threshold from the held-out parts on parts from elsewhere."""
    yield "| asked for | threshold | promised | 95 % bound | observed on fresh good parts | chance of so many or more |"
    yield "|---|---|---|---|---|---|"
    for rate in RATES:
        threshold = threshold_from(held_out.tolist(), rate)
        assert threshold is not None
        alarms = sum(threshold.is_defective(score) for score in fresh.tolist())
        yield (
            f"| {rate_text(rate)} | {threshold.value:.4f} | {threshold.false_alarm_rate:.1%} | {threshold.bound:.1%} "
            f"| {alarms} of {len(fresh)} ({alarms / len(fresh):.1%}) | {threshold.surprise(alarms, len(fresh)):.2f} |"
        )


def shuffled(pool: Scores, calibration: int, splits: int, rng: np.random.Generator) -> Iterator[str]:
    """Thresholds from `calibration` parts of the pool at random, false alarms among the others."""
    yield "| parts | asked for | promised | mean observed | 5 to 95 % of calibrations | 95 % bound | within the bound |"
    yield "|---|---|---|---|---|---|---|"
    for rate in RATES:
        observed, bound, promised = [], 0.0, 0.0
        for _ in range(splits):
            order = rng.permutation(pool)
            threshold = threshold_from(order[:calibration].tolist(), rate)
            assert threshold is not None
            observed.append(float(np.mean([threshold.is_defective(score) for score in order[calibration:].tolist()])))
            promised = threshold.false_alarm_rate
            bound = bound or threshold.bound
        low, high = np.quantile(observed, (0.05, 0.95))
        kept = np.mean(np.array(observed) <= bound)
        yield (
            f"| {calibration} | {rate_text(rate)} | {promised:.2%} | {np.mean(observed):.2%} | {low:.1%} to {high:.1%} "
            f"| {bound:.1%} | {kept:.1%} |"
        )


def smooth_tail(pool: Scores, calibration: int, splits: int, rng: np.random.Generator) -> Iterator[str]:
    """The same, with a normal curve fitted to the logits of the scores instead of their order."""
    yield "| parts | asked for | mean observed | 5 to 95 % of calibrations |"
    yield "|---|---|---|---|"
    for rate in (*RATES, 0.001):
        observed = []
        for _ in range(splits):
            order = rng.permutation(pool)
            fitted = logit(order[:calibration])
            value = expit(norm(fitted.mean(), fitted.std(ddof=1)).isf(rate))
            observed.append(float((order[calibration:] > value).mean()))
        low, high = np.quantile(observed, (0.05, 0.95))
        yield f"| {calibration} | {rate_text(rate)} | {np.mean(observed):.2%} | {low:.1%} to {high:.1%} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--category")
    parser.add_argument("--rendered", type=int, default=0, help="render so many good demo parts instead of reading DATA")
    parser.add_argument("--splits", type=int, default=4000)
    options = parser.parse_args()
    detector, rng = load(options.run, "cpu"), np.random.default_rng(0)
    if options.rendered:
        known = detector.threshold
        held_out = np.array(known.good_scores if known else ())
        fresh = scores_of_rendered(detector, options.rendered)
        pool, sizes = fresh, (10, 23, 100)
        assert len(held_out), "the model keeps no held-out scores: das3d calibrate sets them"
    else:
        held_out, fresh = scores_of_files(detector, options.data, options.category)
        pool = np.concatenate([held_out, fresh])
        sizes = (len(pool) * 2 // 3,)
    print(f"{len(held_out)} held-out good parts, {len(fresh)} fresh ones\n")
    print(*as_shipped(held_out, fresh), sep="\n")
    for size in sizes:
        print(f"\n{options.splits} random splits of {len(pool)} unseen good parts\n")
        print(*shuffled(pool, size, options.splits, rng), sep="\n")
    for size in sizes[-2:]:
        print("\nA normal curve through the logits of the scores\n")
        print(*smooth_tail(pool, size, options.splits, rng), sep="\n")


if __name__ == "__main__":
    main()
