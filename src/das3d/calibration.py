"""Calibration: the threshold from good parts that training did not see, and what it will find of synthetic defects.

    detector = calibrate(load("runs/gland"), "good_parts_of_today", max_false_alarm=0.01)
    detector.save("runs/gland/model.safetensors")

Training ends with `calibrated`; `calibrate` does it again, from files, with other parts or for another rate.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from das3d.arguments import expect_kind, list_of, path_of
from das3d.atomic import write_atomically
from das3d.batches import GoodParts
from das3d.console import counted, progress, say, warn
from das3d.datacheck.suspects import expected_beyond
from das3d.datasets import find_categories, find_folder, folder_of
from das3d.detector import Detector
from das3d.engines.torch_engine import TorchEngine
from das3d.errors import DataError, ModelError, SettingsError
from das3d.files import DepthFormat
from das3d.layouts import SPLITS, Reading, splits_in
from das3d.parts import UNKNOWN, Part
from das3d.preparation import PreparedScan
from das3d.prepared import prepare_part
from das3d.recipes import FAMILIES, draw_recipe
from das3d.regions import BINS, Moments, RegionNorms, evidence_in, measure_norms
from das3d.settings import Settings, with_score
from das3d.synthesis import synthesise
from das3d.threshold import Threshold, expect_rate, parts_for, rate_text, threshold_from

SYNTHETIC = 40  # synthetic defects of each kind, about
MOST_COPIES = 4  # of one kind on one part: more would say much of few parts
SMALLEST = 9  # pixels; what synthesis changed less than that is no defect
SPREAD = 0.01  # of scores; a smaller one is none, however alike the parts are
ODD = 0.02  # good parts that would score as high; below it a warning. One sound set in twenty has such a part
KEPT = 5  # copies of the model of before, besides the first
SEED = 20_000_003  # of synthetic defects; the same parts are harmed in the same way every time
DOUBTFUL = "that no verdict would be given on"  # why parts are left out: those of which the reason is told too


@dataclass(frozen=True)
class HeldOut:
    """A good part that training has not seen, as calibration takes it.

    Attributes:
        id: what the threshold calls it.
        mark: what the model will know it by (`Detector.fingerprint_of`).
        prepare: gives the part as the networks see it, as often as it is asked for.
    """

    id: str
    mark: str
    prepare: Callable[[], PreparedScan]

    @classmethod
    def of(cls, detector: Detector, part: Part, mark: str | None = None) -> HeldOut:
        """That of a part on disk, which is read for its mark where nobody tells it.

        Raises:
            DataError: the part cannot be read.
        """
        prepare = partial(prepare_part, part, detector.statistics, detector.settings.preparation)
        return cls(part.id, detector.fingerprint_of(part) if mark is None else mark, prepare)


def calibrate(
    detector: Detector,
    data: Path | str | None = None,
    *,
    max_false_alarm: float | None = None,
    merge: bool = False,
    changes: Sequence[str] = (),
    category: str | None = None,
    light: int | None = None,
    depth_format: DepthFormat | None = None,
    parts: Sequence[Part] | None = None,
) -> Detector:
    """A detector with the same weights and a new threshold.

    Args:
        detector: a trained one; it is not changed.
        data: good parts, as a plain folder or a data set in any layout. Parts that the model was trained on are left out,
            and so are test parts and those that are labelled defective. None: the held-out scores that the model keeps are
            used again, for another rate.
        max_false_alarm: the share of good parts that may be called defective, above 0 and below 1; as it was where None.
        merge: add the new scores to those that the model keeps; otherwise they take their place.
        changes: other settings of the score, such as ``"score.turn=0"``; with them scores of before do not compare.
        category: which one, where `data` holds several; the one trained on where None and it is there.
        light, depth_format: as for `find_dataset`; where None, as in training.
        parts: good ones that were found already, as `das3d.service.marked` does; `data`, which is needed, then only says
            where.

    Raises:
        DataError: parts of a plain folder are labelled defective by the data set around it, parts cannot be read or
            prepared, or none is left.
        ModelError: old scores are needed and the model keeps none, or they would not compare with new ones.
        SettingsError: a change is not of the score, or its value cannot work; `max_false_alarm` is no share; or `parts`
            come without `data`.
    """
    expect_kind(Detector, detector, "detector", ModelError, giver="load")
    data = None if data is None else path_of(data, "data")
    changes = list_of(str, changes, "changes")
    if category is not None:
        expect_kind(str, category, "category", DataError)
    parts = None if parts is None else list_of(Part, parts, "parts", DataError)
    if max_false_alarm is not None:
        expect_rate(max_false_alarm)  # before minutes of work
    if parts is not None and data is None:
        raise SettingsError("calibrate: expected data with parts, the place that they came from, found none")
    if any(change.partition("=")[0].strip() == "score.max_false_alarm" for change in changes):
        raise SettingsError("calibrate: expected the rate as max_false_alarm (--max-false-alarm), found it as a change")
    if changes:
        if data is None or merge:
            raise ModelError(
                "calibrate: expected new good parts alone for other settings of the score, found old scores in use"
            )
        settings = with_score(detector.settings, changes)
        detector = replace(detector, settings=settings, engine=TorchEngine(detector.network, settings.score))
    reading = detector.reading(light=light, depth_format=depth_format)
    after = _calibrated_anew(detector, data, max_false_alarm, merge, category, reading, parts)
    _warn_of_odd(after.threshold)
    return _recorded(after, data)


def _calibrated_anew(
    detector: Detector,
    data: Path | None,
    max_false_alarm: float | None,
    merge: bool,
    category: str | None,
    reading: Reading,
    found: Sequence[Part] | None,
) -> Detector:
    rate = max_false_alarm if max_false_alarm is not None else _rate_of(detector)
    known = detector.threshold
    if (data is None or merge) and known is None:
        raise ModelError("calibrate: expected a model with held-out scores, found one without; give new good parts alone")
    if data is None:
        assert known is not None
        threshold = threshold_from(known.good_scores, rate, known.synthetic_scores, known.good_parts)
        return replace(detector, threshold=threshold)
    if found is None:
        parts = _good_parts(detector, data, category, merge, reading)
    else:
        parts = _unseen(detector, data, found, found, merge)
    fresh = _measured(detector, parts, rate)
    if not merge:
        return fresh
    assert known is not None and fresh.threshold is not None
    added = fresh.threshold
    kinds = {**dict.fromkeys(known.synthetic_scores, ()), **dict.fromkeys(added.synthetic_scores, ())}
    synthetic = {kind: [*known.synthetic_scores.get(kind, ()), *added.synthetic_scores.get(kind, ())] for kind in kinds}
    held_out = [*detector.fingerprints.get("held_out", []), *fresh.fingerprints["held_out"]]
    names = [*known.good_parts, *added.good_parts]
    return replace(
        detector,
        threshold=threshold_from([*known.good_scores, *added.good_scores], rate, synthetic, names),
        fingerprints={**detector.fingerprints, "held_out": held_out},
        norms=detector.norms + fresh.norms if detector.norms and fresh.norms else fresh.norms,
    )


def calibrated(
    detector: Detector, parts: Sequence[Part | HeldOut], max_false_alarm: float, data: Path | str | None = None
) -> Detector:
    """The detector with a threshold and norms from these good parts of `data`, which training must not have seen.

    Those that no verdict would be given on are left out, or one of them could set the threshold. One that scores far above
    the others is told in a warning.

    Raises:
        DataError: a part cannot be read or prepared.
    """
    held_out = [HeldOut.of(detector, part) if isinstance(part, Part) else part for part in parts]
    after = _measured(detector, held_out, max_false_alarm)
    _warn_of_odd(after.threshold)
    return _recorded(after, data)


def _measured(detector: Detector, parts: Sequence[HeldOut], max_false_alarm: float) -> Detector:
    good: list[float] = []
    judged: list[HeldOut] = []
    norms = RegionNorms((0,) * BINS)
    synthetic: dict[str, list[float]] = {}
    settings = detector.settings
    with progress("calibrating", 2 * len(parts)) as step:
        for part in parts:
            scan = part.prepare()
            if scan.doubt:
                warn(f"{part.id}: left out of the threshold: {scan.doubt}")
            else:
                judged.append(part)
                output = detector.run([scan])
                good += output.score.tolist()
                norms += measure_norms([scan], output, detector.statistics)
            step()
        for index, part in enumerate(judged):
            if index % max(len(judged) // SYNTHETIC, 1) == 0:
                scan = part.prepare()
                copies = min(max(math.ceil(SYNTHETIC / len(judged)), 1), MOST_COPIES)
                for kind, defects in harmed(scan, settings, index, copies).items():
                    synthetic.setdefault(kind, []).extend(_scores(detector, defects))
                if settings.uses_rgb and settings.uses_depth:
                    colour, shape = (_one_modality(detector, scan, index, only, norms) for only in ("colour", "shape"))
                    norms = replace(norms, colour=norms.colour + colour, shape=norms.shape + shape)
            step()
    fingerprints = {**detector.fingerprints, "held_out": [part.mark for part in judged]}
    if not judged:
        return replace(detector, threshold=None, fingerprints=fingerprints, norms=None)
    threshold = threshold_from(good, max_false_alarm, synthetic, [part.id for part in judged])
    return replace(detector, threshold=threshold, fingerprints=fingerprints, norms=norms)


def _warn_of_odd(threshold: Threshold | None) -> None:
    # One defective part among the good ones may be the threshold, and then nothing like it is ever found.
    if threshold is None:
        return
    expected = expected_beyond(np.array(threshold.good_scores), SPREAD)
    odd = [
        f"{name} {score:.4f}"
        for name, score, beyond in zip(threshold.good_parts, threshold.good_scores, expected, strict=True)
        if beyond < ODD
    ]
    if odd:
        usual = threshold.good_scores[-len(odd) - 1]
        which = "is it" if len(odd) == 1 else "are they"
        warn(
            f"far above the other held-out good parts, which score {usual:.4f} at most: {', '.join(reversed(odd[-5:]))}; "
            f"{which} good? A defective part among them raises the threshold; calibrate without it"
        )


def _recorded(detector: Detector, data: Path | str | None) -> Detector:
    if detector.threshold is None:
        return detector
    entry = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": None if data is None else os.path.abspath(data),
        "parts": detector.threshold.parts,
        "value": detector.threshold.value,
    }
    return replace(detector, calibrations=[*detector.calibrations, entry])


def expect_no_weaker(file: Path, before: Threshold | None, after: Threshold | None) -> None:
    """Refuse to put a threshold in the place of one that kept the rate asked for, from too few parts to keep it too.

    A handful of parts, or a folder named by mistake, would spoil a good model, and nobody may notice for long.

    Args:
        file: of the model that would be replaced.
        before: its threshold.
        after: that which would take its place.

    Raises:
        ModelError: the scores of before support the rate that is asked for now, and the new ones do not.
    """
    if before is None or after is None or after.false_alarm_rate <= after.requested:
        return
    if before.parts >= (needed := parts_for(after.requested)):
        shown = math.ceil(100 * after.false_alarm_rate)
        expected = f"{needed} or more good parts, as {rate_text(after.requested)} false alarms take them and the threshold"
        raise ModelError(
            f"{file}: expected {expected} there rests on {before.parts}, found {after.parts}; nothing is written: give "
            "more parts, add them to those of before (--merge), ask for what they can show (--max-false-alarm "
            f"{shown}%), or write elsewhere (--out)"
        )


def keep_before(model: Path) -> Path:
    """Copy a model file, before another takes its place, to ``NAME_before_TIME`` beside it (UTC); the copy.

    A threshold that was spoiled by a defective part must not be for ever, nor may the next attempts push out the model that
    worked: of such copies the first and the last `KEPT` stay.
    """
    now = datetime.now(UTC)
    begins = f"{model.stem}_before_"
    kept = model.with_name(f"{begins}{now:%Y-%m-%dT%H-%M-%S}-{now.microsecond // 1000:03}Z{model.suffix}")
    write_atomically(kept, model.read_bytes())
    names = (file.name for file in model.parent.iterdir() if file.suffix == model.suffix and file != kept)
    older = sorted(name for name in names if name.startswith(begins))
    for name in older[1 : 1 - KEPT]:
        with contextlib.suppress(OSError):  # held by another program; the next time will do
            model.with_name(name).unlink()
    return kept


def harmed(
    scan: PreparedScan, settings: Settings, number: int, copies: int, *, only: Literal["colour", "shape"] | None = None
) -> dict[str, list[PreparedScan]]:
    """A good part with synthetic defects as in training, one each: `copies` of every kind that the settings make.

    Args:
        scan: of a good part.
        settings: of the training. Textures are generated, whatever they say: pictures may be gone by now.
        number: of the part; it chooses the random numbers.
        copies: how many to try of each kind; those that left no visible mark are not returned.
        only: the modality that is harmed; None: colour, shape or both, as in training.
    """
    found: dict[str, list[PreparedScan]] = {}
    if not copies:
        return found
    good = GoodParts.from_scans([scan] * copies)
    for place, kind in enumerate(FAMILIES):
        if not getattr(settings.synthesis, kind):
            continue
        alone = settings.synthesis.model_copy(update={other: float(other == kind) for other in FAMILIES})
        generator = torch.Generator().manual_seed(SEED + number * len(FAMILIES) + place)
        recipe = draw_recipe(copies, alone, generator, rgb=settings.uses_rgb, depth=settings.uses_depth)
        if only is not None:
            unharmed = torch.ones(copies, dtype=torch.bool)
            recipe = replace(recipe, keep_rgb=unharmed & (only != "colour"), keep_depth=unharmed & (only != "shape"))
        made = synthesise(good.rgb.float() / 255, good.depth, good.foreground, recipe, alone)
        rgb = (made.rgb.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        masks = made.mask[:, 0].numpy() > 0
        found[kind] = [
            replace(scan, rgb=colours, depth=depth, mask=mask)
            for colours, depth, mask in zip(rgb, made.depth[:, 0].clamp(-0.5, 1.5).numpy(), masks, strict=True)
            if np.count_nonzero(mask) >= SMALLEST
        ]
    return found


def _one_modality(
    detector: Detector, scan: PreparedScan, number: int, only: Literal["colour", "shape"], norms: RegionNorms
) -> Moments:
    # What tells regions of defects in this modality, one of each kind.
    defects = [made for kind in harmed(scan, detector.settings, number, 1, only=only).values() for made in kind]
    return evidence_in(detector.run, defects, norms.good_pixel_level) if defects else Moments()


def _scores(detector: Detector, scans: Sequence[PreparedScan]) -> list[float]:
    return [prediction.score for prediction in detector.predict_prepared(scans, regions=False)] if scans else []


def _rate_of(detector: Detector) -> float:
    return detector.settings.score.max_false_alarm if detector.threshold is None else detector.threshold.requested


def _good_parts(detector: Detector, data: Path, category: str | None, merge: bool, reading: Reading) -> list[HeldOut]:
    # Good parts that the model has not seen; says which ones are left out.
    if category is not None and category not in (there := find_categories(data)):
        raise DataError(f"{data}: expected a category {category!r}, found {', '.join(there) or 'none'}")
    folder = folder_of(data, category or detector.training.get("category"))
    found = _as_split(folder, find_folder(folder, **reading))
    if not detector.fingerprints.get("train") and not any(part.split == "train" for part in found):
        warn(f"{folder}: the model does not say which parts it was trained on; any of them here make the threshold too low")
    labels = _labels_around(folder, reading)
    labelled = [labels.get(_file_of(part), part) for part in found]
    if wrong := [part for part in labelled if part.defective and part.id not in {one.id for one in found}]:
        expected = "expected good parts, found one that the data set around it labels"
        lines = [f"{_file_of(part)}: {expected} {part.defect!r}" for part in wrong[:5]]
        raise DataError(lines + ([f"... and {len(wrong) - 5} more"] if len(wrong) > 5 else []))
    return _unseen(detector, folder, found, labelled, merge)


def _unseen(
    detector: Detector, folder: Path, found: Sequence[Part], labelled: Sequence[Part], merge: bool
) -> list[HeldOut]:
    # Of good parts in a folder those that count, by what a data set says of them; says which ones are left out.
    trained_on, held_out = (set(detector.fingerprints.get(seen, ())) for seen in ("train", "held_out"))

    def why_not(part: Part, label: Part) -> str:
        if label.split == "test" and label.defect != UNKNOWN:
            return "of the test: a threshold from test parts would spoil the test"
        if label.defective:
            return "labelled defective"
        one = HeldOut.of(detector, part)
        if one.mark in trained_on:
            return "of the training: the networks know them"
        # A detector that no run has trained does not tell, and the data set's own word must do.
        if not trained_on and part.split == "train":
            return "that the data set has for training: the model does not say which parts it was trained on"
        if merge and one.mark in held_out:
            return "held out before: the model keeps their scores"
        if one.mark in seen:
            return "twice here: a copy says nothing new"
        seen.add(one.mark)
        if doubt := one.prepare().doubt:
            doubts.append(f"{one.id}: {doubt}")
            return DOUBTFUL
        kept.append(one)
        return ""

    seen: set[str] = set()
    kept: list[HeldOut] = []
    reasons: list[str] = []
    doubts: list[str] = []  # why, of those that are `DOUBTFUL`
    problems: list[str] = []
    for part, label in zip(found, labelled, strict=True):
        try:
            reasons.append(why_not(part, label))
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)
    for reason in dict.fromkeys(filter(None, reasons)):
        say(f"left out: {counted(reasons.count(reason), 'part')} {reason}")
        if reason == DOUBTFUL:
            for doubt in doubts:
                say(f"  {doubt}")
    if not kept:
        raise DataError(f"{folder}: expected good parts that the model has not seen, found none among {len(found)} parts")
    return kept


def _file_of(part: Part) -> Path:
    # That by which a data set around knows it.
    file = part.rgb or part.depth
    assert file is not None
    return file.resolve()


def _labels_around(folder: Path, reading: Reading) -> dict[Path, Part]:
    # A plain folder may belong to a data set that knows more of its parts than the folder tells: test/bent, for instance.
    for around in folder.resolve().parents[:2]:
        if around.name in SPLITS:  # not the whole data set
            continue
        with contextlib.suppress(DataError, OSError):
            if find_categories(around) == [around.name]:
                return {_file_of(part): part for part in find_folder(around, check=False, **reading)}
    return {}


def _as_split(folder: Path, parts: Sequence[Part]) -> list[Part]:
    # Parts for training only where the data set itself says so: what das3d would choose tells of no other training.
    roots = [folder, *(folder / name for name in find_categories(folder) if (folder / name).is_dir())]
    if any(splits_in(root) for root in roots):
        return list(parts)
    return [replace(part, split="validation") if part.split == "train" else part for part in parts]
