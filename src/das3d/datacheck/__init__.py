"""What a data set is like and what training will do with it, before any training: facts, suspects, twins, advice.

    check = check_data("mydata")
    for suspect in check.suspects:
        print(suspect.part.id, suspect.reasons[0].text)

Every part is judged against the other good parts alone. What cannot be told from the files is said, not guessed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from das3d.arguments import path_of
from das3d.background import RELATIVE_NOISE
from das3d.choices import Modality, Preset
from das3d.console import counted, progress
from das3d.datacheck.facts import Facts, facts_of
from das3d.datacheck.novelty import GRID, Feature, look_of, oddness
from das3d.datacheck.suspects import Reason, beyond_doubt, length, unlike_the_others
from das3d.datacheck.twins import Twins, find_twins
from das3d.datasets import Dataset, find_dataset
from das3d.errors import DataError
from das3d.files import HOW_TO_DECLARE, DepthFormat
from das3d.foreground import most_run_out
from das3d.layouts import DECLARATION, declaration_for, declares
from das3d.measurement import Statistics
from das3d.parts import Part
from das3d.prepared import measure_parts, prepare_part, too_dark, train_and_held_out
from das3d.scan import FARTHEST
from das3d.settings import Settings, make_settings
from das3d.threshold import parts_for
from das3d.window import Floats, Window

COARSE_STEPS = 0.02  # of the depth range: coarser steps of depth are told
SCATTERED = 0.015  # of the frame's longer side, at least 3 pixels: shifts that differ more, in most parts, are chance
NARROWEST = 0.2  # of the frame's longer side: a focal length below that is none in pixels
FEWEST_SHIFTS = 4  # parts; of fewer no chance can be told
READERS = 4  # scans looked at at once; each is in memory meanwhile


@dataclass(frozen=True)
class Suspect:
    """A good part that should be looked at before training, and why."""

    part: Part
    reasons: tuple[Reason, ...]


@dataclass(frozen=True)
class DataCheck:
    """What `check_data` found.

    Attributes:
        dataset: what was looked at.
        settings: for training on it.
        units: how the depth files are read, and who says so.
        facts: of every part of every split.
        statistics: what training will measure, with the gross suspects left out; None where no part could be used.
        suspects: good parts unlike the others, the most certain first.
        twins: parts that share a scan.
        advice: what to look at or change, in words.
    """

    dataset: Dataset
    settings: Settings
    units: str
    facts: tuple[Facts, ...]
    statistics: Statistics | None
    suspects: tuple[Suspect, ...]
    twins: tuple[Twins, ...]
    advice: tuple[str, ...]

    @property
    def good(self) -> list[Facts]:
        """Of the good parts that training uses: to learn from, or held out."""
        return [one for one in self.facts if is_used(one.part)]


def check_data(
    data: Path | str,
    category: str | None = None,
    *,
    preset: Preset | None = None,
    file: Path | str | None = None,
    modality: Modality | None = None,
    light: int | None = None,
    depth_format: DepthFormat | None = None,
) -> DataCheck:
    """Look at every part of a data set and say what is odd about it.

    Args:
        data: folder in any layout that `find_dataset` knows, with RGB, depth or both.
        category: which one, where `data` holds several.
        preset, file, modality: settings to train with later, as for `make_settings`.
        light, depth_format: as for `find_dataset`.

    Raises:
        DataError: the data set as a whole cannot be used; every problem that names and headers show is named.
    """
    settings = make_settings(preset, file=file, modality=modality)
    dataset = find_dataset(
        path_of(data, "data"), category, rgb=settings.modality == "rgb", depth=settings.modality == "depth", light=light,
        depth_format=depth_format, hold_out=settings.training.hold_out,
    )  # fmt: skip
    if settings.modality == "rgb+depth":  # not chosen, or as chosen: what is not there cannot be used
        settings = settings.model_copy(update={"modality": _members_of(dataset)})
    facts = _look_at_all(dataset.parts, settings)
    if most_run_out([one.runs_out for one in facts if is_used(one.part) and one.runs_out is not None]):
        facts = _look_at_all(dataset.parts, settings, runs_out=True)  # the pieces of a rope between gaps are one part
    good = [one for one in facts if is_used(one.part)]
    if all(one.error for one in good):
        raise DataError([one.error for one in good[:10]])
    gross = beyond_doubt(good)
    sound = [one for one, reasons in zip(good, gross, strict=True) if not reasons]
    statistics, sound, refused = _compared(dataset, sound, settings)
    reasons = {one.part.id: those for one, those in zip(good, gross, strict=True) if those} | refused
    reasons |= {one.part.id: those for one, those in zip(sound, unlike_the_others(sound), strict=True) if those}
    compared = {one.part.id: one for one in sound}
    facts = [compared.get(one.part.id, one) for one in facts]
    twins = find_twins(facts)
    for part_id, reason in _copied_members(twins):
        reasons[part_id] = [reason, *reasons.get(part_id, [])]
    by_certainty = sorted(reasons.items(), key=lambda item: min(reason.expected for reason in item[1]))
    parts = {part.id: part for part in dataset.parts}
    check = DataCheck(
        dataset=dataset,
        settings=settings,
        units=_units(dataset, depth_format),
        facts=tuple(facts),
        statistics=statistics,
        suspects=tuple(Suspect(parts[part_id], tuple(those)) for part_id, those in by_certainty),
        twins=tuple(twins),
        advice=(),
    )
    return replace(check, advice=tuple(_advice(check)))


def is_used(part: Part) -> bool:
    """Whether training uses the part, as a good one."""
    return part.split != "test" and not part.defective


def median(facts: Sequence[Facts], name: str) -> float | None:
    """Median of one of the facts over the parts where it is known."""
    known = [value for one in facts if (value := getattr(one, name)) is not None]
    return float(np.median(known)) if known else None


def _members_of(dataset: Dataset) -> Modality:
    # `find_dataset` has seen to it that all parts have the same members.
    has_rgb, has_depth = dataset.parts[0].rgb is not None, dataset.parts[0].depth is not None
    return "rgb+depth" if has_rgb and has_depth else "rgb" if has_rgb else "depth"


def _look_at_all(parts: Sequence[Part], settings: Settings, *, runs_out: bool = False) -> list[Facts]:
    facts = []
    with progress("looking", len(parts)) as step, ThreadPoolExecutor(READERS) as pool:
        for one in pool.map(lambda part: facts_of(part, settings, runs_out=runs_out), parts):
            facts.append(one)
            step()
    return facts


def _compared(
    dataset: Dataset, sound: list[Facts], settings: Settings
) -> tuple[Statistics | None, list[Facts], dict[str, list[Reason]]]:
    # Prepare the parts as training will and find their odd places; those that cannot be prepared, by id, with the reason.
    usable = {one.part.id for one in sound}
    without_gross = replace(dataset, parts=tuple(part for part in dataset.parts if part.id in usable))
    try:
        train, _ = train_and_held_out(without_gross)
    except DataError:
        return None, sound, {}  # fewer than two: training would say the same
    statistics = measure_parts(train, settings)
    prepared, looks, places, refused = [], [], [], {}
    with progress("preparing", len(sound)) as step:
        for one in sound:
            try:
                scan = prepare_part(one.part, statistics, settings.preparation)
            except DataError as error:
                refused[one.part.id] = [Reason("not to be prepared", str(error))]
            else:
                prepared.append(one)
                looks.append(look_of(scan))
                places.append(scan.window)
            step()
    features: list[tuple[Feature, bool]] = [
        ("colour", statistics.has_rgb),
        ("shape", statistics.has_depth and settings.uses_depth),
    ]
    for feature, there in features:
        if there:
            with progress("comparing", len(prepared)) as step:
                maps = oddness(looks, feature, progress=step)
            prepared = [
                _with_odd_place(one, feature, odd, window) for one, odd, window in zip(prepared, maps, places, strict=True)
            ]
    return statistics, prepared, refused


def _with_odd_place(one: Facts, feature: Feature, odd: Floats, window: Window) -> Facts:
    down, right = np.unravel_index(int(odd.argmax()), odd.shape)
    v, u = window.frame_place(float(down), float(right), GRID)
    place = (round(u + 0.5), round(v + 0.5))
    if feature == "colour":
        return replace(one, odd_colour=float(odd.max()), odd_colour_at=place)
    return replace(one, odd_shape=float(odd.max()), odd_shape_at=place)


def _copied_members(twins: Sequence[Twins]) -> list[tuple[str, Reason]]:
    # RGB of one part beside depth of another: of the two parts that have it, the one that it fits worse is the wrong one.
    found = []
    for pair in twins:
        if pair.whole:
            continue
        fits = [one.alignment.fit if one.alignment else -1.0 for one in (pair.first, pair.second)]
        wrong, right = (pair.first, pair.second) if fits[0] < fits[1] else (pair.second, pair.first)
        if not is_used(wrong.part):
            continue
        copied, other = ("RGB", "depth") if pair.depth == "different" else ("depth", "RGB")
        likeness = pair.rgb if copied == "RGB" else pair.depth
        text = f"{likeness} {copied} as {right.part.id}, but different {other}: a file copied or named wrongly"
        found.append((wrong.part.id, Reason("copied member", text)))
    return found


def _units(dataset: Dataset, told: DepthFormat | None) -> str:
    form = dataset.depth_format
    if not any(part.depth for part in dataset.parts):
        return "no depth"
    if dataset.layout == "eyecandies":
        return "as each part's info_depth.yaml says"
    if path := _declaration(dataset.root):
        who = f"declared in {DECLARATION if path.parent == dataset.root else path}"
    elif told is not None:
        who = "as told (--depth-unit)"
    else:
        who = f"as the layout {dataset.layout} has it"
    if form is None:
        return f"differs between parts, {who}"
    return f"{UNIT_NAMES.get(form.scale, f'{form.scale:g} m a count')}, {who}"


UNIT_NAMES = {1.0: "metres", 1e-2: "centimetres", 1e-3: "millimetres", 1e-6: "micrometres"}


def _declaration(root: Path) -> Path | None:
    # That which the layouts go by; a file in the folder itself that says nothing keeps them from looking above.
    if not declares(root) and (root / DECLARATION).is_file():
        return None
    return declaration_for(root)


# ------------------------------------------------------------------------------------------- advice


def _advice(check: DataCheck) -> list[str]:
    lines: list[str] = []
    rules = [_on_suspects, _on_twins, _on_units, _on_lens, _on_numbers, _on_brightness, _on_shift, _on_ceiling, _on_steps]
    for rule in [*rules, _on_missing, _on_window, _on_noise]:
        lines += rule(check)
    return lines


def _on_suspects(check: DataCheck) -> list[str]:
    if not check.suspects:
        return []
    count = f"{len(check.suspects)} of {counted(len(check.good), 'good part')}"
    return [
        f"{count} should be looked at before training: a defective or wrong part among the good ones teaches that its "
        "defect is good. Mend or remove those that are not sound; keep those that are merely rare."
    ]


def _on_twins(check: DataCheck) -> list[str]:
    lines = []
    whole = [pair for pair in check.twins if pair.whole]
    if leaks := [pair for pair in whole if pair.across_splits]:
        splits = Counter(" and ".join(sorted({pair.first.part.split, pair.second.part.split})) for pair in leaks)
        where = ", ".join(f"{count} in {those}" for those, count in splits.items())
        lines.append(f"scans that stand in two splits ({where}): figures on them promise too much; keep each in one split.")
    if within := len(whole) - len(leaks):
        pairs = "one pair of scans within a split is" if within == 1 else f"{within} pairs of scans within a split are"
        lines.append(f"{pairs} (nearly) the same: each such pair counts as one part, not as two.")
    return lines


def _on_units(check: DataCheck) -> list[str]:
    distance = median(check.good, "distance")
    if distance is None or 0.05 <= distance <= 20:
        return []
    return [
        f"the scene lies {length(distance)} from the camera, where 3D cameras for parts work at 5 cm to 20 m "
        f"(beyond {FARTHEST:.0f} m, scans are refused): a wrong unit? To set it, {HOW_TO_DECLARE}."
    ]


def _on_lens(check: DataCheck) -> list[str]:
    form, sides = check.dataset.depth_format, [max(one.size) for one in check.good if one.size]
    if form is None or form.focal_length is None or not sides or form.focal_length >= NARROWEST * max(sides):
        return []
    angle = 2 * math.degrees(math.atan(max(sides) / 2 / form.focal_length))
    return [
        f"focal_length: {form.focal_length:g} would be a lens that sees {angle:.0f} degrees: is that millimetres? It is "
        "fx in pixels, and all sizes and areas in mm rest on it."
    ]


def _on_numbers(check: DataCheck) -> list[str]:
    lines = []
    good = len([one for one in check.good if not one.error])
    if good < 50:
        lines.append(f"{counted(good, 'good part')}: fifty can be enough, two hundred are better.")
    try:
        _, held_out = train_and_held_out(check.dataset)
    except DataError as error:
        return [*lines, str(error)]
    if not held_out:
        return [*lines, "no good part is held out, so the model will have no threshold."]
    rate = 1 / (len(held_out) + 1)
    if rate > check.settings.score.max_false_alarm:
        lines.append(
            f"{counted(len(held_out), 'good part')} held out for the threshold can promise a false-alarm rate of "
            f"{rate:.0%} at best, not the {check.settings.score.max_false_alarm:.0%} of score.max_false_alarm, which takes "
            f"{parts_for(check.settings.score.max_false_alarm)}."
        )
    return lines


def _on_brightness(check: DataCheck) -> list[str]:
    brightness = median(check.good, "brightness")
    problem = None if brightness is None else too_dark(brightness)
    return [problem] if problem else []


def _on_shift(check: DataCheck) -> list[str]:
    shift = common_shift(check.good)
    if shift is None:
        return []
    right, down, scattered = shift
    if scattered:
        return [
            "RGB lies elsewhere against depth in each part, so no shift of one brings them together: is one of the two "
            "mirrored or turned, or is it of another part, as where both count from another number?"
        ]
    if max(abs(right), abs(down)) < 3:
        return []
    return [
        f"in most parts RGB is shifted against depth, {moved(right, down)}: calibrate the cameras to each other, or shift "
        "one; das3d takes both as one pixel grid."
    ]


def common_shift(facts: Sequence[Facts]) -> tuple[float, float, bool] | None:
    """How far RGB lies to the right of depth and below it in the middle of the parts, in frame pixels, and whether most
    parts lie so far from that that they have no shift in common; None where it is not known.
    """
    seen = [(one.alignment, max(one.size)) for one in facts if one.alignment and one.size]
    if not seen:
        return None
    right, down = (float(middle) for middle in np.median([(one.right, one.down) for one, _ in seen], axis=0))
    off = np.median([math.hypot(one.right - right, one.down - down) / max(SCATTERED * side, 3) for one, side in seen])
    return right, down, len(seen) >= FEWEST_SHIFTS and bool(off > 1)


def moved(right: float, down: float) -> str:
    """A shift for people, in whole pixels: 5 pixels to the left and 1 up; "" where there is none."""
    ways = ((round(right), "to the right", "to the left"), (round(down), "down", "up"))
    words = [f"{abs(far)} {ahead if far > 0 else back}" for far, ahead, back in ways if far]
    return " and ".join(words).replace(" ", " pixels ", 1)


def _on_ceiling(check: DataCheck) -> list[str]:
    there = [one.ceiling for one in check.good if one.ceiling is not None]
    if len(there) < max(2, len(check.good) / 4):
        return []
    metres, form = float(np.median(there)), check.dataset.depth_format
    found = (
        f"many pixels are exactly {metres:.6g} m away, and none nearly so far: a number for depth that was not measured?"
    )
    if form is None:
        return [found]
    number = f"{(metres - form.offset) / form.scale:.6g}"  # as the files have it
    return [f'{found} Then write "depth_missing: {number}" into {DECLARATION}, beside the unit.']


def _on_steps(check: DataCheck) -> list[str]:
    statistics = check.statistics
    if statistics is None or not check.settings.uses_depth:
        return []
    share = statistics.step / (statistics.far - statistics.near)
    if share < COARSE_STEPS:
        return []
    return [
        f"depth comes in steps of {length(statistics.step)}, {share:.0%} of its range, so dents and bumps no deeper than "
        "that do not show: does the camera, or the format of the files, have finer ones?"
    ]


def _on_missing(check: DataCheck) -> list[str]:
    missing = median(check.good, "missing_on_part")
    if missing is None or missing < 0.1:
        return []
    where = "show in RGB only" if check.settings.uses_rgb else "do not show"
    return [
        f"{missing:.0%} of the part has no depth. It is filled from its surroundings, so defects there {where}; another "
        "angle, another exposure or a matting spray may help."
    ]


def _on_window(check: DataCheck) -> list[str]:
    statistics, settings = check.statistics, check.settings.preparation
    if statistics is None:
        return []
    lines = []
    if statistics.has_depth and statistics.background == "none":
        lines.append(
            "no background plane around the parts: the whole frame counts as part, and nothing is cut out. Where there is "
            f"a table, its depth is too noisy (over {RELATIVE_NOISE:.1%} of the distance), grows towards the camera, or "
            "parts rise less than that above it, which preparation.background_distance can set (metres)."
        )
    side, across = statistics.window_sides(settings)
    factor = math.sqrt(side * across) / settings.size
    size = f"{side} pixels" if across == side else f"{side} x {across} pixels"
    if factor > 1.5:
        larger = min(-(-round(factor * settings.size / 1.25) // 32) * 32, 1024)
        lines.append(
            f"the window of {size} is shrunk to {settings.size} x {settings.size}, by a factor of {factor:.1f}, so defects "
            f"under {2 * factor:.0f} pixels{_in_mm(check, 2 * factor)} fade; preparation.size = {larger} shows more and "
            f"takes {(larger / settings.size) ** 2:.1f} times as long."
        )
    elif suggested_size(check) != settings.size:
        lines.append(
            f"the window of {size} would be magnified to {settings.size}, which costs time and shows nothing more: "
            f"the settings suggested have preparation.size = {suggested_size(check)}."
        )
    return lines


def _in_mm(check: DataCheck, pixels: float) -> str:
    pitch = pixel_pitch(check)
    return "" if pitch is None else f" ({length(pixels * pitch)})"


def pixel_pitch(check: DataCheck) -> float | None:
    """Metres between two frame pixels on the part; None where the scans hold no XYZ."""
    pitches = [one.length / one.length_px for one in check.good if one.length and one.length_px]
    return float(np.median(pitches)) if pitches else None


def suggested_size(check: DataCheck) -> int:
    """The setting preparation.size, made smaller where the window has fewer pixels anyway."""
    size, statistics = check.settings.preparation.size, check.statistics
    if statistics is None or not statistics.window:
        return size
    step = math.lcm(32, *check.settings.network.steps.values())
    return min(size, max(-(-statistics.window // step) * step, step))


def _on_noise(check: DataCheck) -> list[str]:
    statistics, noise = check.statistics, median(check.good, "surface_noise")
    if statistics is None or noise is None or not statistics.has_depth:
        return []
    span = statistics.far - statistics.near
    least = check.settings.synthesis.mask_threshold * span
    if noise < least:
        return []
    return [
        f"depth on the part is noisy by {length(noise)}, and synthetic defects count from {length(least)} on: many would "
        f"drown; raise synthesis.mask_threshold to {2 * noise / span:.3f}, or average several scans."
    ]
