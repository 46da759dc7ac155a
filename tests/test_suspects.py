"""What makes a good part a suspect: rarely by chance, always when it is far from all others."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from das3d.datacheck.alignment import Alignment
from das3d.datacheck.facts import Facts
from das3d.datacheck.suspects import (
    CHECKS,
    FALSE_SUSPECTS,
    FEWEST,
    between,
    beyond_doubt,
    expected_beyond,
    length,
    unlike_the_others,
)
from das3d.parts import Part
from das3d.scan import another_unit

Draw = Callable[[np.random.Generator, int], np.ndarray]


def facts(index: int, **changes: object) -> Facts:
    """An ordinary part, a little unlike the others."""
    rng = np.random.default_rng(index)
    part = Part(f"train/good/{index:03}", "train", "good", Path(f"{index}.png"), Path(f"{index}.tiff"))
    values: dict[str, object] = {
        "size": (400, 400), "missing": 0.1, "missing_on_part": 0.02 + 0.002 * rng.normal(), "plane_support": 1.0,
        "distance": 0.65 + 0.001 * rng.normal(), "plane_noise": 5e-4 * math.exp(0.05 * rng.normal()),
        "surface_noise": 5e-5 * math.exp(0.05 * rng.normal()), "area": 0.15 + 0.004 * rng.normal(),
        "length_px": 190 + 5 * rng.normal(), "width_px": 170.0, "height": 0.042 + 0.0005 * rng.normal(),
        "brightness": 120 + 5 * rng.normal(), "colour": (2 + rng.normal(), 1 + rng.normal()),
        "sharpness": 2 + 0.1 * rng.normal(), "odd_colour": rng.gamma(9) / 9, "odd_shape": rng.gamma(9) / 9,
        "alignment": Alignment(float(rng.integers(-1, 2)), float(rng.integers(-1, 2)), 0.45 + 0.03 * rng.normal()),
    }  # fmt: skip
    return Facts(part, **{**values, **changes})  # type: ignore[arg-type]


def named(index: int, *, count: int = 60, **changes: object) -> dict[int, list[str]]:
    """Checks that name each suspect, where the part `index` is changed."""
    parts = [facts(i, **(changes if i == index else {})) for i in range(count)]
    return {i: [reason.check for reason in those] for i, those in enumerate(unlike_the_others(parts)) if those}


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng, n: rng.normal(size=n),
        lambda rng, n: rng.uniform(size=n),
        lambda rng, n: rng.exponential(size=n),
        lambda rng, n: rng.gamma(9, size=n),
        lambda rng, n: rng.normal(size=n) + 9 * (np.arange(n) % 2),
    ],
    ids=["normal", "uniform", "exponential", "gamma", "two kinds"],
)  # fmt: skip
@pytest.mark.parametrize("count", [40, 130])
def test_a_sound_set_has_few_suspects(draw: Draw, count: int) -> None:
    rng = np.random.default_rng(0)
    limit = 0.05
    sets = 300
    flagged = sum(int((expected_beyond(draw(rng, count), 1e-9) < limit).sum()) for _ in range(sets))
    # The spread is itself estimated, so a set of 40 can exceed what is promised for a known one.
    assert flagged / sets <= 5 * limit


@pytest.mark.parametrize("spoiled", [1, 3, 5])
def test_spoiled_parts_do_not_hide_one_another(spoiled: int) -> None:
    values = np.concatenate([np.random.default_rng(1).normal(size=60 - spoiled), np.full(spoiled, 15.0)])
    expected = expected_beyond(values, 1e-9)
    assert (expected[-spoiled:] < 0.02).all() and (expected[:-spoiled] > 0.02).all()


@given(st.lists(st.floats(-1e6, 1e6), min_size=FEWEST, max_size=50))
def test_farther_out_is_never_less_suspect(values: list[float]) -> None:
    expected = expected_beyond(np.array(values), 1e-3)
    assert (np.diff(expected[np.argsort(values, kind="stable")]) <= 0).all()


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        ("39.1 mm", "42.1 mm", "39.1 to 42.1 mm"), ("950 mm", "1.2 m", "950 mm to 1.2 m"), ("0 px", "0 px", "0 px"),
        ("2.7%", "12.6%", "2.7% to 12.6%"), ("14.2% of the frame", "15.9% of the frame", "14.2% to 15.9% of the frame"),
    ],
)  # fmt: skip
def test_the_unit_of_two_values_is_said_once(low: str, high: str, words: str) -> None:
    assert between(low, high) == words


def test_what_rounding_leaves_is_no_length() -> None:
    assert [length(metres) for metres in (1.29e-14, 3.95e-8, 1e-6, 0.0417, 1.25)] == [
        "0 mm",
        "0 mm",
        "0.001 mm",
        "41.7 mm",
        "1.25 m",
    ]


def test_unknown_values_and_small_sets_are_not_judged() -> None:
    values = np.array([*np.zeros(20), math.nan, 100.0])
    expected = expected_beyond(values, 0.1)
    assert math.isinf(expected[-2]) and expected[-1] < 1e-6
    assert np.isinf(expected_beyond(np.array([0.0] * (FEWEST - 2) + [1e9]), 0.1)).all()


def test_differences_below_the_least_are_none() -> None:
    values = np.array([0.0] * 30 + [0.3])
    assert expected_beyond(values, 1.0)[-1] > 1 and expected_beyond(values, 0.01)[-1] < 1e-6


def test_ordinary_parts_are_no_suspects() -> None:
    assert sum(len(named(0, count=count)) for count in (30, 60, 130)) <= 3 * FALSE_SUSPECTS + 1


@pytest.mark.parametrize(
    ("check", "change"),
    [
        ("fit of RGB to depth", {"alignment": Alignment(-17.0, 9.0, 0.1)}),
        ("shift of RGB against depth", {"alignment": Alignment(8.0, 0.0, 0.44)}),
        ("odd colour", {"odd_colour": 9.0}),
        ("odd shape", {"odd_shape": 30.0}),
        ("area of the part", {"area": 0.10}),
        ("length of the part", {"length_px": 300.0}),
        ("height of the part", {"height": 0.06}),
        ("distance of the frame", {"distance": 0.7}),
        ("missing points on the part", {"missing_on_part": 0.2}),
        ("noise of the plane", {"plane_noise": 0.003}),
        ("noise of the surface", {"surface_noise": 0.001}),
        ("brightness of the part", {"brightness": 40.0}),
        ("colour of the part", {"colour": (30.0, -20.0)}),
        ("sharpness of RGB", {"sharpness": 0.5}),
    ],
)
def test_each_check_names_the_part_that_is_spoiled_and_says_why(check: str, change: dict[str, object]) -> None:
    assert check in named(17, **change)[17]
    assert check not in named(17).get(17, [])


def test_sharpness_is_told_as_a_number_and_no_exponent() -> None:
    (reason,) = unlike_the_others([facts(i, **({"sharpness": 0.5} if i == 17 else {})) for i in range(60)])[17]
    assert reason.text.startswith("sharpness of RGB 3.2, others 77.6 to 144.1: ")


def test_every_check_is_tested() -> None:
    (parameters,) = (mark.args[1] for mark in test_each_check_names_the_part_that_is_spoiled_and_says_why.pytestmark)
    assert {check for check, _ in parameters} == {check.name for check in CHECKS}


def test_rgb_of_another_part_is_not_said_to_be_shifted() -> None:
    assert named(5, alignment=Alignment(20.0, -20.0, 0.05))[5] == ["fit of RGB to depth"]


def test_what_all_parts_have_in_common_makes_none_a_suspect() -> None:
    shifted = {"alignment": Alignment(8.0, 0.0, 0.45)}
    parts = [facts(index, **shifted) for index in range(40)]
    assert not any("shift" in reason.check for those in unlike_the_others(parts) for reason in those)


@pytest.mark.parametrize(
    ("ratio", "words"), [(1000, "millimetres"), (998, "millimetres"), (100, "centimetres"), (1e-3, "metres")]
)
def test_another_unit_is_told_by_its_ratio(ratio: float, words: str) -> None:
    assert words in another_unit(ratio)


@pytest.mark.parametrize("ratio", [1, 0.7, 1.5, 3, 0.3])
def test_nearer_or_farther_is_no_other_unit(ratio: float) -> None:
    assert another_unit(ratio) == ""


def test_flat_parts_that_fill_the_frame_are_no_empty_tables() -> None:
    assert beyond_doubt([facts(index, area=0.0) for index in range(6)]) == [[]] * 6


def test_what_needs_no_statistics() -> None:
    parts = [facts(index) for index in range(5)]
    parts += [
        facts(5, distance=650.0), facts(6, size=(300, 400)), facts(7, area=0.0), facts(8, plane_support=None),
        facts(9, error="there: found a damaged file", size=None, distance=None, plane_support=None),
    ]  # fmt: skip
    found = [[reason.check for reason in those] for those in beyond_doubt(parts)]
    assert found == [[]] * 5 + [["unit"], ["frame size"], ["no part"], ["no plane"], ["unreadable"]]
    assert "millimetres" in beyond_doubt(parts)[5][0].text
    assert "400 x 300 pixels, others 400 x 400" in beyond_doubt(parts)[6][0].text


def test_frames_of_many_sizes_make_none_a_suspect() -> None:
    assert beyond_doubt([facts(index, size=(400, 300 + 10 * (index // 3))) for index in range(12)]) == [[]] * 12
