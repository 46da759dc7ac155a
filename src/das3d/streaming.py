"""Scoring many parts from files: read, prepare, predict, write; shared by evaluation and prediction.

Reading and preparing run ahead in threads and writing follows in others, each by a bounded number of parts, and of bytes
where scans are large, so the networks do not wait and memory does not grow with the number of parts.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from das3d.atomic import write_atomically
from das3d.console import counted, progress, warn
from das3d.datasets import category_called
from das3d.detector import Detector, Prediction, load
from das3d.engines import BATCH, in_batches
from das3d.errors import Das3dError, DataError, one_line
from das3d.fingerprints import fingerprint_in
from das3d.layouts import OWN
from das3d.measurement import Statistics
from das3d.parts import UNKNOWN, Part
from das3d.pictures import outlined, overlay, save_picture
from das3d.preparation import PreparedScan, prepare
from das3d.regions import pixel_threshold
from das3d.scan import Scan

if TYPE_CHECKING:
    from das3d.cluster import Cluster

AHEAD = 16  # parts read and prepared before they are needed
BEHIND = 8  # parts whose files are still being written
HELD = 512 << 20  # bytes of scans that wait in either place; one may always wait
READERS = 2  # threads that read and prepare
SCORE_COLUMNS = ("id", "path", "label", "defect", "score", "false_alarm_probability", "verdict", "error")
LONGEST = 220  # bytes of a name by `output_names`: most file systems hold 255, and suffixes and marks come behind it
NUMBER = r"\d[\d.,]*(?:e[+-]\d+)?"
CHUNK = 4 * BATCH  # parts that a worker of a cluster takes at a time: whole batches, so that they are those of one machine


@dataclass(frozen=True)
class Inspected:
    """One part after inspection.

    Attributes:
        part: what was inspected.
        prediction: None where the part could not be read, prepared or judged.
        error: why not, else "".
        doubt: why its verdict means nothing, where such parts were wanted too, else "".
        map_file, overlay_file: what was written.
        size: height and width of the map.
        trained_on: whether the model was trained on it.
        networks_failed: whether it is the networks that failed on it, which may lie with them and not with the part.
    """

    part: Part
    prediction: Prediction | None
    error: str = ""
    doubt: str = ""
    map_file: Path | None = None
    overlay_file: Path | None = None
    size: tuple[int, int] | None = None
    trained_on: bool = False
    networks_failed: bool = False

    @property
    def verdict(self) -> str:
        if self.prediction is None or self.prediction.defective is None:
            return ""
        return "defective" if self.prediction.defective else "good"


def inspect_parts(
    detector: Detector,
    parts: Sequence[Part],
    folder: Path,
    names: Mapping[str, str] | None = None,
    *,
    doubtful: bool = False,
) -> Iterator[Inspected]:
    """Score parts in their order and write for each a raw map and an overlay into `folder`, by `output_names` or `names`.

    A part that cannot be read, prepared or, unless `doubtful` ones are wanted too, judged (`PreparedScan.doubt`) comes back
    with its error, and so does one on which the networks fail; the others are not held up. The maps inside the results are
    dropped once written, so that any number of parts fits into memory.
    """
    high = picture_scale(detector)
    called = names or output_names(parts)
    trained, blind = frozenset(detector.fingerprints.get("train", ())), not detector.statistics.has_rgb

    def write(part: Part, scan: Scan | None, found: Prediction | Exception | None, error: str, doubt: str) -> Inspected:
        if isinstance(found, Exception):
            return replace(_failed(part, why_not(part, found), folder, called[part.id]), networks_failed=True)
        if scan is None or found is None:
            return _failed(part, error, folder, called[part.id])
        prediction = found
        map_file, overlay_file = output_files(folder, called[part.id])
        save_map(map_file, prediction.map)
        outlines = [region.outline for region in prediction.regions]
        save_picture(overlay_file, outlined(overlay(scan, prediction.map, high), outlines))
        slim = replace(prediction, image=np.zeros((0, 0), np.float32))
        known = fingerprint_in(scan.without(rgb=blind)) in trained
        return Inspected(part, slim, "", doubt, map_file, overlay_file, scan.size, known)

    begun, done = time.monotonic(), 0
    writing: deque[Future[Inspected]] = deque()
    with progress("inspecting", len(parts)) as step, ThreadPoolExecutor(max_workers=2) as pool:
        for batch in in_batches(_read_ahead(detector, parts, doubtful)):
            ready = [prepared for _, _, prepared, _ in batch if prepared is not None]
            predictions = iter(_predicted(detector, ready))
            for part, scan, prepared, error in batch:
                done += 1
                step(note=f"{done / max(time.monotonic() - begun, 1e-9):.1f} parts/s")
                found, doubt = (None, "") if prepared is None else (next(predictions), prepared.doubt)
                writing.append(pool.submit(write, part, scan, found, error, doubt))
                behind = BEHIND if scan is None else _as_many(BEHIND, scan)
                while writing and (len(writing) > behind or writing[0].done()):  # who waits for a part gets it at once
                    yield writing.popleft().result()
            batch.clear()  # or its scans would stay until the next one is full
        while writing:
            yield writing.popleft().result()


def inspect_on(cluster: Cluster, model: tuple[Any, ...], parts: Sequence[Part], folder: Path) -> Iterator[Inspected]:
    """What `inspect_parts` gives for a model, shared among the workers of a cluster.

    Each loads the model for itself: `model` holds the arguments of `das3d.load`, a path first. Model, parts and `folder`
    must lie where every worker sees them. The parts of a worker that dies are inspected again, and those alone; where that
    fails every time, they come back with an error.
    """
    names = output_names(parts)
    chunks = [parts[start : start + CHUNK] for start in range(0, len(parts), CHUNK)]
    items = [(chunk, {part.id: names[part.id] for part in chunk}) for chunk in chunks]
    results: dict[int, list[Inspected]] = {}
    done = told = 0
    with progress("inspecting", len(parts)) as step:
        for index, inspected, error in cluster.map(partial(_inspect_chunk, model, folder), items):
            results[index] = inspected or [_failed(part, error, folder, names[part.id]) for part in chunks[index]]
            done += len(results[index])
            step(done)
            while told in results:  # in the order of the parts, whichever chunk is ready first
                yield from results.pop(told)
                told += 1


def _predicted(detector: Detector, scans: Sequence[PreparedScan]) -> list[Prediction | Exception]:
    # One on which the networks fail takes none of its batch with it.
    try:
        return list(detector.predict_prepared(scans)) if scans else []
    except Exception as error:  # each engine has its own
        if len(scans) > 1:
            return [found for scan in scans for found in _predicted(detector, [scan])]
        if type(error).__name__ == "OutOfMemoryError":  # of PyTorch, on any part, as all are prepared to one size
            raise
        return [error]


def why_not(part: Part, error: Exception) -> str:
    """One line on why the networks gave nothing for a part."""
    if isinstance(error, Das3dError):  # which names the part
        return str(error).replace("\n", "; ")
    return f"{part.rgb or part.depth}: the networks failed: {one_line(error) or type(error).__name__}"


def _failed(part: Part, error: str, folder: Path, name: str) -> Inspected:
    for file in output_files(folder, name):  # of a run before: they would look like this one's
        file.unlink(missing_ok=True)
    return Inspected(part, None, error)


def _inspect_chunk(model: tuple[Any, ...], folder: Path, item: tuple[Sequence[Part], dict[str, str]]) -> list[Inspected]:
    parts, names = item
    return list(inspect_parts(_loaded(*model), parts, folder, names))


@lru_cache(maxsize=1)
def _loaded(*model: Any) -> Detector:
    # A worker inspects many chunks with one model.
    return load(*model)


def errors_of(results: Sequence[Inspected]) -> list[str]:
    """Why parts were not judged, for people: a line each, or one in all where every part failed for one reason.

    Reasons that differ in numbers are one: of what was found in the wrong unit, for instance.
    """
    failed = [result for result in results if result.error]
    reasons = [_reason(result) for result in failed]
    if len(results) < 2 or len(failed) < len(results) or len({re.sub(NUMBER, "0", reason) for reason in reasons}) > 1:
        return [result.error for result in failed]
    such = "" if len(set(reasons)) == 1 else f", such as {failed[0].part.rgb or failed[0].part.depth}"
    return [f"all {len(results)} parts{such}: {reasons[0]}"]


def _reason(result: Inspected) -> str:
    # An error without the file that it begins with.
    for file in (result.part.depth, result.part.rgb):
        if result.error.startswith(f"{file}: "):
            return result.error.removeprefix(f"{file}: ")
    return result.error


def of_another(detector: Detector, folder: Path) -> list[str]:
    """A line where the data set in a folder is of another category than that which the model was trained on."""
    trained, here = detector.training.get("category"), category_called(folder)
    if not trained or here in (None, trained) or detector.training.get("layout") == OWN:
        return []
    return [f"the model was trained on {trained}; these parts are of {here}"]


def picture_scale(detector: Detector) -> float:
    """The map value that overlays of this detector paint in full red."""
    return full_red(None if detector.threshold is None else detector.threshold.value)


def full_red(threshold: float | None) -> float:
    """The map value that overlays paint in full red: twice the threshold, which spans what separates good from bad."""
    return 1.0 if threshold is None else float(np.clip(2 * threshold, 0.02, 1.0))


def output_names(parts: Sequence[Part]) -> dict[str, str]:
    """A file name for each part's outputs: its id, with folders joined by underscores, unique.

    What is longer than `LONGEST` is cut there and ends by a hash of the id.
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    for part in parts:
        name = part.id.replace("/", "_")
        if len(content := name.encode(errors="surrogatepass")) > LONGEST:
            mark = blake2b(part.id.encode(errors="surrogatepass"), digest_size=4).hexdigest()
            name = f"{content[: LONGEST - 9].decode(errors='ignore')}_{mark}"
        while name in taken:
            name += "_"
        taken.add(name)
        names[part.id] = name
    return names


def output_files(folder: Path, name: str) -> tuple[Path, Path]:
    """Map and overlay of the part that is called so in its outputs (`output_names`)."""
    return folder / f"{name}.tiff", folder / f"{name}.png"


def save_map(path: Path, values: NDArray[np.float32]) -> None:
    """Write an anomaly map (H, W), 0 to 1, as a float32 TIFF."""
    import tifffile

    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, compression="zlib", compressionargs={"level": 1}, predictor=True)
    write_atomically(path, buffer.getvalue(), lasting=False)


def read_map(path: Path) -> NDArray[np.float32]:
    """The map (H, W) that `save_map` wrote. Raises DataError where there is none or it is damaged."""
    import tifffile

    try:
        return np.asarray(tifffile.imread(path), dtype=np.float32)
    except Exception as error:  # tifffile raises many kinds for damaged files
        found = one_line(error) or type(error).__name__
        raise DataError(f"{path}: expected an anomaly map, found {found}; evaluate or predict again") from None


def warn_of_others(scores: Path, parts: Sequence[Part]) -> None:
    """Warn where ``scores.csv`` holds parts that are not among these, before it is replaced."""
    if not scores.is_file():
        return
    # Told by their paths: where members are folders, parts of any folder may be called 000.
    there: set[str] = set()
    # A file that cannot be read is no reason not to write another.
    with contextlib.suppress(OSError, csv.Error), scores.open(newline="", encoding="utf-8", errors="replace") as file:
        there = {os.path.abspath(row["path"]) for row in csv.DictReader(file) if row.get("path") and row.get("score")}
    if others := there - {os.path.abspath(str(part.rgb or part.depth)) for part in parts}:
        warn(f"{scores} holds {counted(len(others), 'other part')}; the file is replaced, another --out keeps it")


def write_scores(path: Path, results: Sequence[Inspected], *, verdicts: bool) -> None:
    """``scores.csv``: id, path, label (1 defective, 0 good, empty unknown), defect kind, score and its false-alarm
    probability; verdict, error.

    Scores have nine digits, which tell all float32 numbers apart: figures can be computed again from the file.
    """
    columns = [column for column in SCORE_COLUMNS if verdicts or column not in ("verdict", "error")]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(score_row(result) for result in results)
    write_atomically(path, text.getvalue().encode())


def score_row(result: Inspected) -> dict[str, Any]:
    """What ``scores.csv`` says of one part, by `SCORE_COLUMNS`."""
    part, prediction = result.part, result.prediction
    known = part.defect != UNKNOWN
    chance = None if prediction is None else prediction.false_alarm_probability
    return {
        "id": part.id,
        "path": str(part.rgb or part.depth),
        "label": int(part.defective) if known else "",
        "defect": part.defect if known else "",
        "score": "" if prediction is None else f"{prediction.score:.9g}",
        "false_alarm_probability": "" if chance is None else f"{chance:.6g}",
        "verdict": result.verdict,
        "error": result.error,
    }


def json_line(result: Inspected) -> str:
    """A part on one line for programs: what ``scores.csv`` and ``regions.json`` say of it; null where there is nothing."""
    part, prediction = result.part, result.prediction
    return json.dumps(
        {
            "name": part.id,
            "path": str(part.rgb or part.depth),
            "score": None if prediction is None else prediction.score,
            "verdict": result.verdict or None,
            "false_alarm_probability": None if prediction is None else prediction.false_alarm_probability,
            "regions": [] if prediction is None else [region.to_dict() for region in prediction.regions],
            "error": result.error or None,
        }
    )


def write_regions(path: Path, results: Sequence[Inspected], detector: Detector) -> None:
    """``regions.json``: the regions of every defective part, the largest first, in the terms of `Region`."""
    pixel = None
    if detector.norms is not None and detector.threshold is not None:
        pixel = pixel_threshold(detector.norms, detector.threshold)
    lines = ",\n".join(filter(None, map(regions_line, results)))  # one part a line, as outlines are long
    write_atomically(path, f'{{"pixel_threshold": {json.dumps(pixel)}, "parts": [\n{lines}\n]}}\n'.encode())


def regions_line(result: Inspected, **more: str) -> str:
    """What ``regions.json`` says of one part, and `more`, as JSON on one line; "" where it has no regions."""
    prediction = result.prediction
    if prediction is None or not prediction.regions:
        return ""
    regions = [region.to_dict() for region in prediction.regions]
    return json.dumps({"id": result.part.id, **more, "score": prediction.score, "regions": regions})


Read = tuple[Part, Scan | None, PreparedScan | None, str]


def read_to_show(part: Part, statistics: Statistics) -> Scan:
    """The members that a model needs of a part, and its RGB for pictures of it, as long as that can be read.

    Raises:
        DataError: a member that the model needs cannot be read, or none is left.
    """
    shown = part if statistics.has_depth else rgb_alone(part)
    try:
        return shown.read()
    except DataError:
        if statistics.has_rgb or shown.rgb is None or shown.depth is None:
            raise
        return shown.read(rgb=False)


def rgb_alone(part: Part) -> Part:
    """The part without a depth file that nobody looks at; without RGB it stays as it is, so that RGB is found missing."""
    return part if part.rgb is None else replace(part, depth=None)


def _read_ahead(detector: Detector, parts: Iterable[Part], doubtful: bool) -> Iterator[Read]:
    def read(part: Part) -> Read:
        try:
            scan = read_to_show(part, detector.statistics)
            prepared = prepare(scan, detector.statistics, detector.settings.preparation)
            return part, scan, prepared if doubtful else prepared.judgeable, ""
        except DataError as error:
            return part, None, None, str(error).replace("\n", "; ")

    waiting: deque[Future[Read]] = deque()
    ahead = READERS  # until the first scan shows how large they are
    with ThreadPoolExecutor(max_workers=READERS) as pool:
        for part in parts:
            waiting.append(pool.submit(read, part))
            while len(waiting) > ahead:
                found = waiting.popleft().result()
                if found[1] is not None:
                    ahead = _as_many(AHEAD, found[1])
                yield found
        while waiting:
            yield waiting.popleft().result()


def _as_many(most: int, scan: Scan) -> int:
    # So many scans like this one may wait.
    size = sum(member.nbytes for member in (scan.rgb, scan.depth, scan.valid, scan.mask) if member is not None)
    return max(min(most, HELD // max(size, 1)), 1)
