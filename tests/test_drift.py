"""Drift: the law of the middle of new scores, what is told of it, and tables that cannot be compared."""

from __future__ import annotations

import csv
import math
import tracemalloc
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import mannwhitneyu
from tiny import das3d

from das3d.detector import load, model_hash
from das3d.drift import LEAST, compare, drift_in, median_rank
from das3d.errors import DataError, ModelError
from das3d.service.drift import drift_in_inspections
from das3d.service.inspections import DATABASE_FILE, Inspection, Inspections
from das3d.threshold import SAME, Threshold, chance_of_so_many, threshold_from

Runs = Callable[..., Path]


def threshold_of(scores: Sequence[float]) -> Threshold:
    found = threshold_from(scores, 0.05)
    assert found is not None
    return found


HELD_OUT = threshold_of([0.1 + i / 100 for i in range(41)])  # 0.1 to 0.5, median 0.3


def write_table(path: Path, scores: Sequence[float], threshold: Threshold, **columns: str) -> Path:
    """A table as predict writes it."""
    names = ["id", "path", "label", "defect", "score", "false_alarm_probability", "verdict", "error", *columns]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, dict.fromkeys(names), restval="")
        writer.writeheader()
        for number, score in enumerate(scores):
            chance = threshold.false_alarm_probability(score)
            row = {"id": f"{number:04}", "score": f"{score:.9g}", "false_alarm_probability": f"{chance:.6g}", **columns}
            writer.writerow(row)
    return path


def add_row(path: Path, **columns: str) -> None:
    with path.open(newline="") as file:
        names = next(csv.reader(file))
    with path.open("a", newline="") as file:
        csv.DictWriter(file, names, restval="").writerow(columns)


# ------------------------------------------------------------------------------------ the law


@pytest.mark.parametrize(("held_out", "parts", "rank"), [(12, 8, 6), (12, 8, 2), (7, 30, 4), (60, 20, 30)])
def test_chance_is_the_share_of_orders_in_which_so_many_lie_beyond(held_out: int, parts: int, rank: int) -> None:
    # All orders of exchangeable scores are alike: `count` new ones beyond the rank-th held-out one is a way to interleave.
    everything = math.comb(held_out + parts, parts)
    ways = [
        math.comb(count + rank - 1, count) * math.comb(parts - count + held_out - rank, parts - count)
        for count in range(parts + 1)
    ]
    assert sum(ways) == everything
    for count in range(parts + 1):
        expected = sum(ways[count:]) / everything
        assert chance_of_so_many(count, parts, rank, held_out) == pytest.approx(expected, rel=1e-9)


def test_chances_that_are_tiny_are_not_rounded_away() -> None:
    assert 0 < chance_of_so_many(500, 500, 30, 60) < 1e-30


def test_a_sum_of_many_terms_is_taken_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = chance_of_so_many(40, 1000, 3, 60)
    monkeypatch.setattr("das3d.threshold.TERMS", 7)
    assert chance_of_so_many(40, 1000, 3, 60) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize(("held_out", "parts"), [(9, 25), (10, 25), (23, 40), (60, 200)])
def test_parts_like_the_held_out_ones_are_said_to_have_changed_as_seldom_as_promised(held_out: int, parts: int) -> None:
    rng, runs = np.random.default_rng(11), 3000
    told = np.zeros(3)
    for _ in range(runs):
        scores = rng.beta(2, 8, held_out + parts)
        chance = compare(threshold_of(scores[:held_out].tolist()), scores[held_out:].tolist()).chance
        told += chance < np.array([0.01, 0.05, 0.2])
    for share, promised in zip(told / runs, (0.01, 0.05, 0.2), strict=True):
        spread = math.sqrt(promised * (1 - promised) / runs)
        assert share <= promised + 3 * spread
        assert share > promised / 5, "so seldom would be for want of seeing anything"


@pytest.mark.parametrize("sign", [1, -1])
def test_what_moves_all_scores_is_seen_about_as_well_as_by_a_test_of_ranks(sign: int) -> None:
    rng, runs = np.random.default_rng(5), 200
    ours = theirs = 0
    for _ in range(runs):
        old, new = rng.normal(0.5, 0.05, 60), rng.normal(0.5 + sign * 0.04, 0.05, 200)
        ours += compare(threshold_of(old.tolist()), new.tolist()).seen
        theirs += mannwhitneyu(old, new).pvalue < 0.01
    assert 0.7 * theirs < ours <= theirs + 5 and ours > runs / 2


def test_few_defects_hardly_move_it_and_many_alarms_do_not_count() -> None:
    good = [0.1 + i / 500 for i in range(200)]
    before, after = compare(HELD_OUT, good), compare(HELD_OUT, [*good[:190], *[0.99] * 10])
    assert not before.seen and not after.seen and (before.alarms, after.alarms) == (4, 10)
    assert after.higher == before.higher, "those were above the median as well"


def test_the_median_is_one_of_the_scores_and_rounding_takes_no_side() -> None:
    assert [median_rank(count) for count in (1, 2, 3, 4, 41)] == [1, 1, 2, 2, 21]
    found = compare(HELD_OUT, [0.3 + SAME / 2, 0.3 - SAME / 2, 0.3 + 2 * SAME, *[0.3] * 30])
    assert (found.higher, found.chance) == (1, 1.0)
    assert compare(HELD_OUT, [0.3] * 33).expected == pytest.approx(0.5)
    assert compare(threshold_of([i / 100 for i in range(60)]), [0.3] * 33).expected == pytest.approx(31 / 61)


# ------------------------------------------------------------------------------------ what is told


def test_what_is_said_where_nothing_has_changed() -> None:
    found = compare(HELD_OUT, [0.1 + i / 500 for i in range(200)])
    assert found.explain() == [
        "200 parts beside 41 held-out ones: 50% score above the held-out median (50% expected, chance 100%), 2.0% above "
        "the threshold (4.8% of good parts expected, at most 11.1% with 95% confidence): no drift to be seen"
    ]


def test_what_is_said_where_scores_have_risen_or_fallen() -> None:
    (risen,) = compare(HELD_OUT, [0.29 + i / 500 for i in range(100)]).explain()
    assert "94% score above the held-out median (50% expected, chance 1e-08), " in risen
    assert risen.endswith(": parts, light or camera have changed; calibrate with new good parts")
    (fallen,) = compare(HELD_OUT, [0.12] * 100).explain()
    assert "0% score above the held-out median" in fallen
    assert fallen.endswith("parts, light or camera have changed, or the model was trained on these parts")


# ------------------------------------------------------------------------------------ the command


@pytest.fixture(scope="module")
def run(tiny_run: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with the held-out scores above."""
    detector = load(tiny_run(), "cpu")
    detector.threshold = HELD_OUT
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    detector.save(path)
    return path


def test_the_command_ends_with_0_or_3(run: Path, tmp_path: Path) -> None:
    same = write_table(tmp_path / "same.csv", [0.1 + i / 100 for i in range(40)], HELD_OUT)
    result = das3d("drift", run, "--scores", same)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == compare(HELD_OUT, [0.1 + i / 100 for i in range(40)]).explain()[0] + "\n"
    risen = write_table(tmp_path / "risen.csv", [0.31 + i / 1000 for i in range(40)], HELD_OUT)
    result = das3d("drift", run, "--scores", risen)
    assert (result.exit_code, result.stderr) == (3, "") and "100% score above" in result.stdout


def test_a_table_that_excel_saved_is_read(run: Path, tmp_path: Path) -> None:
    table = write_table(tmp_path / "scores.csv", [0.1 + i / 100 for i in range(40)], HELD_OUT)
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes().replace(b"\n", b"\r\n"))
    assert das3d("drift", run, "--scores", table).exit_code == 0


def test_the_last_parts_alone(run: Path, tmp_path: Path) -> None:
    table = write_table(tmp_path / "scores.csv", [*[0.2, 0.4] * 100, *[0.35] * 25], HELD_OUT)
    assert das3d("drift", run, "--scores", table).exit_code == 0
    result = das3d("drift", run, "--scores", table, "--last", 25)
    assert result.exit_code == 3 and result.stdout.startswith("25 parts beside")


@pytest.mark.parametrize("last", [None, 100])
def test_a_table_of_years_is_read_in_little_memory(last: int | None, tmp_path: Path) -> None:
    table = write_table(tmp_path / "scores.csv", [0.2, 0.4] * 5_000, HELD_OUT, camera="of the line " * 10)
    drift_in(tmp_path, HELD_OUT, table, last=last)  # which imports what it needs
    tracemalloc.start()
    try:
        found = drift_in(tmp_path, HELD_OUT, table, last=last)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.parts == (last or 10_000) and peak < table.stat().st_size


def test_what_says_nothing_is_left_out_and_counted(run: Path, tmp_path: Path) -> None:
    table = write_table(tmp_path / "scores.csv", [0.2, 0.4] * 10, HELD_OUT)
    for number in range(3):
        add_row(table, id=f"broken{number}", error="a.png: expected an RGB image, found an empty file")
    add_row(table, id="dent", label="1", score="0.9", false_alarm_probability="0.0238095")
    result = das3d("drift", run, "--scores", table)
    assert result.exit_code == 0 and result.stdout.startswith("20 parts beside 41 held-out ones: 50% score above")
    assert result.stdout.splitlines()[1] == "left out: 3 not judged, 1 known to be defective"


def test_parts_that_a_model_of_before_judged_are_left_out(tmp_path: Path) -> None:
    table = write_table(tmp_path / "scores.csv", [0.9] * 30, HELD_OUT, model="old")
    for number in range(20):
        row = {"id": str(number), "score": "0.3", "false_alarm_probability": "0.52381", "model": "new"}
        add_row(table, **row)
    found = drift_in(tmp_path, HELD_OUT, table)
    assert (found.parts, found.higher, found.left_out) == (20, 0, {"judged by another model": 30})


def test_a_table_of_another_model_is_refused(run: Path, tmp_path: Path) -> None:
    other = threshold_of([i / 1000 for i in range(41)])
    table = write_table(tmp_path / "scores.csv", [0.3] * 40, other)
    result = das3d("drift", run, "--scores", table)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        f"error: {table}: expected scores by the held-out parts of {run}, found others: 0000 has a false-alarm "
        "probability of 0.0238 and would have 0.524; judge the parts with this model\n"
    )


def test_too_few_parts_are_refused(run: Path, tmp_path: Path) -> None:
    table = write_table(tmp_path / "scores.csv", [0.3] * (LEAST - 1), HELD_OUT)
    add_row(table, id="broken", error="a.png: expected an RGB image, found an empty file")
    result = das3d("drift", run, "--scores", table)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"error: {table}: expected 20 or more parts to compare, found 19 parts, 1 not judged\n"
    (tmp_path / "scores.csv").write_text("id,score\n")
    with pytest.raises(DataError, match="expected 20 or more parts to compare, found 0 parts"):
        drift_in(run, HELD_OUT, table)


@pytest.mark.parametrize("content", ["", "id,verdict\n1,good\n", "\ufeff", "score;id\n0.1;1\n"])
def test_what_is_no_table_of_scores_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(DataError, match=r"a\.csv: expected columns id and score, as das3d predict and watch write them"):
        drift_in(tmp_path, HELD_OUT, tmp_path / "a.csv")


def test_a_table_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv: expected scores .*, found: No such file or directory"):
        drift_in(tmp_path, HELD_OUT, tmp_path / "none.csv")
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="expected scores that das3d predict or watch wrote, found"):
        drift_in(tmp_path, HELD_OUT, tmp_path / "a.csv")


@pytest.mark.parametrize("score", ["nan", "inf", "-0.1", "1.5", "much", ""])
def test_what_is_no_score_is_refused(score: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,score\n" + "7,0.3\n" * 30 + f"8,{score}\n")
    with pytest.raises(DataError, match=r"a\.csv: expected a score from 0 to 1 for 8, found"):
        drift_in(tmp_path, HELD_OUT, tmp_path / "a.csv")


def test_a_model_without_held_out_scores_is_refused(tmp_path: Path) -> None:
    table = write_table(tmp_path / "scores.csv", [0.3] * 30, HELD_OUT)
    with pytest.raises(ModelError, match="expected a model that keeps the scores of held-out good parts, found one with"):
        drift_in(tmp_path, None, table)
    with pytest.raises(ModelError, match="found one without"):
        drift_in_inspections(tmp_path, "", None, tmp_path)


# ------------------------------------------------------------------------------------ what a service has inspected

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "inspections"


def inspected(folder: Path, run: Path, scores: Sequence[float], begin: datetime = NOON, **changed: Any) -> None:
    """Parts that a service with this model has inspected, one a minute."""
    values = {
        "part": "bolt", "model": "cover", "model_hash": model_hash(run), "engine": "none", "version": "0",
        "threshold": HELD_OUT.value, "verdict": "good", "regions": [], "height": 4, "width": 5, "seconds": 0.1, "map": "",
    }  # fmt: skip
    kept = Inspections(folder)
    with kept._session.begin() as session:
        for number, score in enumerate(scores):
            session.add(Inspection(at=begin + timedelta(minutes=number), score=score, **values | changed))
    kept.close()


def test_inspections_of_a_service_are_compared_as_a_table_is(run: Path, folder: Path) -> None:
    same = [0.1 + i / 100 for i in range(40)]
    inspected(folder, run, same)
    result = das3d("drift", run, "--inspections", folder)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        compare(HELD_OUT, same).explain()[0],
        "taken in from 2026-03-01 12:00 to 2026-03-01 12:39 UTC",
    ]


def test_inspections_of_a_time_alone(run: Path, folder: Path) -> None:
    inspected(folder, run, [0.2, 0.4] * 100)
    inspected(folder, run, [0.35] * 25, NOON + timedelta(days=1))
    assert das3d("drift", run, "--inspections", folder).exit_code == 0
    when = "taken in from 2026-03-02 12:00 to 2026-03-02 12:24 UTC"
    for words in (["--last", 25], ["--since", "2026-03-02"]):
        result = das3d("drift", run, "--inspections", folder, *words)
        assert result.exit_code == 3 and result.stdout.startswith("25 parts beside"), words
        assert result.stdout.splitlines()[1:] == [when]
    before = das3d("drift", run, "--inspections", folder, "--until", "2026-03-02T14:00+02:00", "--last", 100)
    assert before.exit_code == 0 and before.stdout.startswith("100 parts beside")
    assert before.stdout.splitlines()[1] == "taken in from 2026-03-01 13:40 to 2026-03-01 15:19 UTC"


def test_inspections_by_another_model_are_left_out(run: Path, folder: Path) -> None:
    inspected(folder, run, [0.9] * 30, model_hash="ab" * 32)
    result = das3d("drift", run, "--inspections", folder)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        f"error: {folder}: expected parts that {run} has judged ({model_hash(run)[:12]}), found none but those of cover "
        "(abababababab); give the very file that is served\n"
    )
    inspected(folder, run, [0.3] * (LEAST - 1))
    told = das3d("drift", run, "--inspections", folder).stderr
    assert told == (f"error: {folder}: expected 20 or more parts to compare, found 19 parts, 30 judged by another model\n")
    inspected(folder, run, [0.3], NOON - timedelta(days=1))
    result = das3d("drift", run, "--inspections", folder, "--last", LEAST)
    assert result.exit_code == 0 and result.stdout.startswith("20 parts beside"), "of this model are so many"
    assert result.stdout.splitlines()[1:] == [
        "taken in from 2026-02-28 12:00 to 2026-03-01 12:18 UTC",
        "left out: 30 judged by another model",
    ]


def test_inspections_of_years_are_read_in_little_memory(run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("das3d.service.inspections.PAGE", 100)
    inspected(folder, run, [0.2, 0.4] * 1_500, regions=[{"outline": [[1, 2]] * 50}])

    def peak_of(last: int) -> int:
        drift_in_inspections(run, model_hash(run), HELD_OUT, folder, last=last)  # which imports what it needs
        tracemalloc.start()
        try:
            found = drift_in_inspections(run, model_hash(run), HELD_OUT, folder, last=last)
            assert found.parts == last
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak_of(3_000) < 1.5 * peak_of(100) + 100_000


def test_what_is_no_service_is_refused(run: Path, folder: Path, tmp_path: Path) -> None:
    result = das3d("drift", run, "--inspections", folder)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"error: {folder}: expected the folder of a service, found no {DATABASE_FILE} there\n"
    assert not folder.exists()
    folder.mkdir()
    (folder / DATABASE_FILE).write_text("no database " * 100)
    told = das3d("drift", run, "--inspections", folder).stderr
    assert "expected one that can be used, found file is not a database" in told and told.count("\n") == 1
    (tmp_path / "empty").mkdir()
    Inspections(tmp_path / "empty").close()
    told = das3d("drift", run, "--inspections", tmp_path / "empty").stderr
    assert told == f"error: {tmp_path / 'empty'}: expected 20 or more parts to compare, found 0 parts\n"


def test_either_a_table_or_a_service(run: Path, tmp_path: Path) -> None:
    for words, complaint in [
        ([], "expected either --scores FILE or --inspections FOLDER"),
        (["--scores", tmp_path, "--inspections", tmp_path], "expected either --scores FILE or --inspections FOLDER"),
        (["--scores", tmp_path, "--since", "2026-03-01"], "expected --inspections FOLDER with them"),
    ]:
        result = das3d("drift", run, *words)
        assert result.exit_code == 2 and complaint in result.output, words
    for since in ("yesterday", "7", "2026-02-30"):
        result = das3d("drift", run, "--inspections", tmp_path, "--since", since)
        told = "expected a day or moment such as 2026-11-20 or 2026-11-20T06:30"
        assert (result.exit_code, result.stderr) == (1, f"error: --since: {told}, found {since!r}\n")


def test_inspections_that_are_marked_defective_are_left_out(run: Path, folder: Path) -> None:
    inspected(folder, run, [0.2, 0.4] * 10, truth="good")
    inspected(folder, run, [0.9] * 30, truth="defective")
    result = das3d("drift", run, "--inspections", folder)
    assert result.exit_code == 0 and result.stdout.startswith("20 parts beside 41 held-out ones: 50% score above")
    assert result.stdout.splitlines()[-1] == "left out: 30 known to be defective"
