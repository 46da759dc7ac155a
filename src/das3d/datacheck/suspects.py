"""Which good parts are unlike the others, by how much, and what that may mean.

A part is judged against its own set alone. The upper half of each measure is taken to fall off exponentially, at the pace
seen between its middle and its 90 % point, so up to a tenth of the parts may be spoiled without hiding one another. From
that follows how many sound parts of such a set would lie as far out as a given one; next to none makes it a suspect.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from das3d.console import percent
from das3d.datacheck.facts import Facts
from das3d.measurement import MOST
from das3d.scan import another_unit

FALSE_SUSPECTS = 0.5  # parts of a sound set that may be called suspects, on average over all checks
FEWEST = 10  # parts; below this nobody can tell odd from usual


@dataclass(frozen=True)
class Reason:
    """Why a part is a suspect.

    Attributes:
        check: name of what was looked at.
        text: what was found, what the others have, what it may mean.
        expected: how many sound parts of such a set would be as odd; 0 where the finding is beyond doubt.
    """

    check: str
    text: str
    expected: float = 0.0


@dataclass(frozen=True)
class Check:
    """One measure in which a part may be unlike the others.

    Attributes:
        name: of the measure, for people.
        value: the measure of each part; NaN where it is not known.
        least: differences below this are none, whatever the spread of the set.
        sides: on which side of the others a part is a suspect.
        show: a value for people.
        means: what being unlike the others may mean.
    """

    name: str
    value: Callable[[Sequence[Facts]], NDArray[np.float64]]
    least: float
    sides: Literal["both", "high", "low"]
    show: Callable[[float], str]
    means: str


def expected_beyond(values: NDArray[np.float64], least: float) -> NDArray[np.float64]:
    """For each value: how many of N sound parts would reach it.

    Args:
        values: (N,) one a part; NaN counts as unknown and gives infinity.
        least: smallest spread that is taken for real, in the unit of the values.
    """
    known = values[np.isfinite(values)]
    if len(known) < FEWEST:
        return np.full(len(values), np.inf)
    middle, high = np.quantile(known, (0.5, 0.9))
    spread = max((high - middle) / math.log(5), least)  # exponential: from one half to one tenth in log(5) spreads
    # The lower half is not described by this; there it only has to be much.
    beyond = 0.5 * len(known) * np.exp(np.minimum((middle - values) / spread, 100))
    return np.where(np.isfinite(values), beyond, np.inf)


def unlike_the_others(facts: Sequence[Facts]) -> list[list[Reason]]:
    """Reasons to suspect each of these good parts, the strongest first."""
    reasons: list[list[Reason]] = [[] for _ in facts]
    sides = [
        (check, side) for check in CHECKS for side in (1, -1) if check.sides in ("both", "high" if side > 0 else "low")
    ]
    limit = FALSE_SUSPECTS / len(sides)
    for check, side in sides:
        values = check.value(facts)
        expected = expected_beyond(side * values, check.least)
        for index in np.flatnonzero(expected < limit):
            low, high = np.nanquantile(np.delete(values, index), (0.05, 0.95))
            found, others = check.show(float(values[index])), between(check.show(float(low)), check.show(float(high)))
            text = f"{check.name} {found}, others {others}: {check.means}"
            reasons[index].append(Reason(check.name, text, float(expected[index])))
    return [sorted(those, key=lambda reason: reason.expected) for those in reasons]


def beyond_doubt(facts: Sequence[Facts]) -> list[list[Reason]]:
    """Reasons that need no statistics: unreadable, in another unit, of another size, nothing on the plane."""
    sizes = [one.size for one in facts if one.size]
    usual = max(set(sizes), key=sizes.count) if sizes else None
    one_size = usual is not None and sizes.count(usual) >= MOST * len(sizes)  # parts may well be cut out, each as it is
    distances = [one.distance for one in facts if one.distance]
    middle = float(np.median(distances)) if distances else 0.0
    planes = [one for one in facts if one.distance and one.plane_support is not None]
    measured = sum(bool(one.distance) for one in facts)
    # Flat parts that fill the frame look like planes with nothing on them, all of them.
    with_plane = len(planes) >= MOST * max(measured, 1) and sum(one.area != 0 for one in planes) > 0.5 * len(planes)

    def reasons(one: Facts) -> list[Reason]:
        found = []
        if one.distance and len(distances) > 2 and (unit := another_unit(one.distance / middle)):
            text = f"depth {length(one.distance)} away, others {length(middle)}: {unit}"
            found.append(Reason("unit", text))
        elif one.error:
            found.append(Reason("unreadable", one.error))
        if one_size and one.size and usual and one.size != usual:
            text = (
                f"{one.size[1]} x {one.size[0]} pixels, others {usual[1]} x {usual[0]}: scaled, cut out, or from another "
                "camera? A model that learns from it takes scans of any size"
            )
            found.append(Reason("frame size", text))
        if with_plane and not one.error and one.distance and not found:
            if one.area == 0:
                found.append(Reason("no part", "nothing rises above the background plane: an empty scan?"))
            elif one.plane_support is None:
                text = "no background plane found, others show one: the table is hidden, or another scene"
                found.append(Reason("no plane", text))
        return found

    return [reasons(one) for one in facts]


# ------------------------------------------------------------------------------------------- the measures


NOTHING = 1e-7  # metres


def length(metres: float) -> str:
    """Metres for people: 412 mm, 1.25 m, 0.083 mm; what no camera resolves, as rounding leaves it, is 0 mm."""
    if abs(metres) >= 1:
        return f"{metres:.4g} m"
    if abs(metres) < NOTHING:
        return "0 mm"
    return f"{metres * 1000:.3g} mm"


def between(low: str, high: str) -> str:
    """Two values for people, with their unit once: 39.1 to 42.1 mm, 0 to 2 pixels; one where both are the same."""
    number, _, unit = low.partition(" ")
    if low == high:
        return low
    return f"{number} to {high}" if high.partition(" ")[2] == unit else f"{low} to {high}"


def _of(name: str, *, log: bool = False) -> Callable[[Sequence[Facts]], NDArray[np.float64]]:
    def values(facts: Sequence[Facts]) -> NDArray[np.float64]:
        column = np.array([math.nan if (value := getattr(one, name)) is None else value for one in facts], dtype=np.float64)
        return np.log(np.maximum(column, 1e-12)) if log else column

    return values


def _fit(facts: Sequence[Facts]) -> NDArray[np.float64]:
    return np.array([math.nan if one.alignment is None else one.alignment.fit for one in facts])


def _shift(facts: Sequence[Facts]) -> NDArray[np.float64]:
    # From where RGB lies in most parts: what all have in common is the sensor's. RGB of another part lies nowhere.
    known = [(one.alignment.right, one.alignment.down) if one.alignment else (math.nan, math.nan) for one in facts]
    shifts = np.array(known, dtype=np.float64).reshape(-1, 2)
    elsewhere = expected_beyond(-_fit(facts), FIT_STEP) < 0.05
    shifts[elsewhere] = math.nan
    if np.isnan(shifts).all():
        return shifts[:, 0]
    return np.hypot(*(shifts - np.nanmedian(shifts, axis=0)).T)


def _colour(facts: Sequence[Facts]) -> NDArray[np.float64]:
    colours = np.array([one.colour or (math.nan, math.nan) for one in facts], dtype=np.float64).reshape(-1, 2)
    if np.isnan(colours).all():
        return colours[:, 0]
    return np.hypot(*(colours - np.nanmedian(colours, axis=0)).T)


def _power_of_ten(exponent: float) -> str:
    return f"{10**exponent:.1f}"


def _exp(show: Callable[[float], str]) -> Callable[[float], str]:
    return lambda value: show(math.exp(value))


FIT_STEP = 0.02  # of a correlation
ONE_PERCENT = math.log(1.01)

CHECKS = (
    Check("fit of RGB to depth", _fit, FIT_STEP, "low", "{:.2f}".format, "RGB of another part, or depth of another?"),
    Check("shift of RGB against depth", _shift, 0.7, "high", "{:.0f} pixels".format, "moved against each other"),
    Check("odd colour", _of("odd_colour"), 0.05, "high", "{:.1f}".format,
          "a place coloured like none on the other parts: stain, dirt, or a defect"),
    Check("odd shape", _of("odd_shape", log=True), 0.05, "high", _exp("{:.1f}".format),
          "a place shaped like none on the other parts: dent, foreign matter, or a part that lies like no other"),
    Check("area of the part", _of("area", log=True), ONE_PERCENT, "both", _exp("{:.1%} of the frame".format),
          "another product, a piece missing, or two parts"),
    Check("length of the part", _of("length_px", log=True), ONE_PERCENT, "both", _exp("{:.0f} pixels".format),
          "another product, a piece missing, or two parts"),
    Check("height of the part", _of("height", log=True), ONE_PERCENT, "both", _exp(length),
          "another product, or lying on another side"),
    Check("distance of the frame", _of("distance", log=True), math.log(1.002), "both", _exp(length),
          "camera or table were moved"),
    Check("missing points on the part", _of("missing_on_part"), 0.005, "high", percent,
          "something shiny, dark or in the way"),
    Check("noise of the plane", _of("plane_noise", log=True), math.log(1.05), "high", _exp(length),
          "an uneven table, or a disturbed scan"),
    Check("noise of the surface", _of("surface_noise", log=True), math.log(1.05), "high", _exp(length),
          "a disturbed scan, or a rough surface"),
    Check("brightness of the part", _of("brightness"), 1.0, "both", "{:.0f} grey levels".format,
          "light or exposure changed"),
    Check("colour of the part", _colour, 1.0, "high", "{:.0f} Lab units from the middle".format,
          "another product, or other light"),
    Check("sharpness of RGB", _of("sharpness"), 0.05, "low", _power_of_ten, "out of focus, or moved"),
)  # fmt: skip
