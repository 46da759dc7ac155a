"""Watching a folder that a camera drops files into: each part is judged once its files are all there and stand still.

The folder is listed again and again, as network shares tell nobody of changes. Files must stand still because a copy under
way may look like a whole file: under Windows it has its full length from the start, and zeros where nothing has come yet.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from das3d.console import counted, say, warn
from das3d.datasets import expect_outside
from das3d.detector import Detector
from das3d.errors import DataError
from das3d.files import DepthFormat
from das3d.layouts import DECLARATION, LAYOUTS, NAMING, Search, unlabelled
from das3d.parts import Part, name_problem
from das3d.prediction import with_focal_length
from das3d.streaming import SCORE_COLUMNS, Inspected, inspect_parts, reading_of, regions_line, score_row

COLUMNS = (*SCORE_COLUMNS, "time", "model", "files")  # of scores.csv
LONG = 60.0  # seconds after which something that holds up a part is told
SLICE = 0.1  # seconds of waiting after which it is looked whether to stop

State = tuple[Any, ...]  # of a part's files: whatever changes in them changes it


def watch(
    detector: Detector,
    folder: Path,
    out: Path,
    *,
    model: str,
    settle: float = 2.0,
    once: bool = False,
    depth_format: DepthFormat | None = None,
    focal_length: float | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> Iterator[Inspected]:
    """Judge each part of a plain folder when all members that the model needs are there, and give it when it is recorded.

    Maps and overlays are written as by `predict_folder`. ``scores.csv`` grows by a row a part, and ``regions.jsonl`` by a
    line for each with regions. Files that stand in ``scores.csv`` already, told by path, size and time of change, are not
    judged again. A part that fails has its error in its row.

    Args:
        detector: a trained one.
        folder: where files come in, named as in a folder of unjudged parts.
        out: where to write.
        model: the hash of the model (`das3d.detector.model_hash`), for the rows.
        settle: seconds for which the files of a part must stand still.
        once: judge what is there and still, and end.
        depth_format: how depth is read where ``dataset.yaml`` does not say; None: as in training.
        focal_length: in pixels, for areas in mm2 where depth files hold no points.
        stopping: whether to end, after the part at hand.

    Raises:
        DataError: there is no such folder or it holds a data set, `out` lies in it or holds scores of something else. Later
            on, a folder that cannot be read is waited for, but not by `once`.
    """
    _expect_plain(folder, out)
    arguments = reading_of(detector, None, depth_format)
    look = _look(folder, arguments)  # whatever is wrong at the start is refused
    record = Record(out, model)
    if not once:
        say(f"watching {folder}; {counted(len(record.seen), 'part')} judged before")
    still: dict[str, tuple[State, float]] = {}  # of parts that are not judged yet: since when they stand as they do
    patience, first, away = Patience(), 0.0, False
    while not stopping():
        begun = time.monotonic()
        try:
            look = _look(folder, arguments)
        except DataError as error:
            if once:
                raise
            if not away:
                warn(f"{error}; waiting for it")
            away, look = True, Look()
        else:
            if away:
                say(f"{folder}: back")
            away = False
        looked = time.monotonic() - begun
        new = {name: found for name, found in look.parts.items() if found.mark not in record.seen}
        still = {name: _since(found.state, still.get(name)) for name, found in new.items()}
        first = first or time.monotonic()
        for name, found in new.items():
            if stopping():
                return
            if begun - still[name][1] < settle:
                continue
            # Those before it may have taken long.
            result = _judge(detector, found, out, focal_length) if _state_of(found.part) == found.state else None
            if result is not None:
                record.add(result, found.mark)
                yield result
        if once and (not new or begun - first >= settle):
            if left := sum(found.mark not in record.seen for found in new.values()) + len(look.lacking):
                say(f"{counted(left, 'part')} not complete yet, left for the next time")
            return
        if not away:
            patience.tell(look)
        _wait(max(min(settle / 4, 1.0), looked), stopping)  # a slow share is not busy with us all the time


def _expect_plain(folder: Path, out: Path) -> None:
    expect_outside(out, folder)
    target, watched = out.resolve(), folder.resolve()
    if watched in (target, *target.parents):  # whatever lies in it besides
        raise DataError(f"{out}: expected a folder outside the data to write to (--out), found one in {watched}")
    if layout := next((layout.name for layout in LAYOUTS if layout.fits(folder)), None):
        raise DataError(
            f"{folder}: expected a folder that parts are dropped into ({NAMING}), found a data set ({layout}); "
            "das3d predict judges its parts"
        )


# ------------------------------------------------------------------------------------ what is there


@dataclass(frozen=True)
class Found:
    """A part with all members that are needed.

    Attributes:
        part: the part.
        state: of its files.
        mark: a hash of path, size and time of change of the needed ones, by which it is known again.
    """

    part: Part
    state: State
    mark: str


@dataclass
class Look:
    """What lies in the folder.

    Attributes:
        parts: those that are complete, by name.
        lacking: a line for each part without a member that is needed.
        problems: what else is wrong, by kind, as in `Search`.
    """

    parts: dict[str, Found] = field(default_factory=dict)
    lacking: list[str] = field(default_factory=list)
    problems: dict[str, list[str]] = field(default_factory=dict)


def _look(folder: Path, arguments: Mapping[str, Any]) -> Look:
    # Raises DataError where the folder, or what it says of depth, cannot be read.
    search = Search(**arguments)
    try:
        parts = unlabelled(folder, search)
    except OSError as error:  # of a share, which has more ways to be away than a disk
        raise DataError(f"{folder}: expected a readable folder, found {error.strerror or error}") from None
    if declared := search.problems.get(DECLARATION):
        raise DataError(declared)
    look = Look(problems=search.problems)
    for part in parts:
        needed = [(member, getattr(part, member)) for member in ("rgb", "depth") if arguments[member]]
        lacks = [member for member, file in needed if file is None]
        if lacks:
            member = "an rgb" if lacks[0] == "rgb" else "a depth"
            look.lacking.append(f"{part.rgb or part.depth}: expected {member} file of the same name, found none")
        elif part.id not in search.doubled and (state := _state_of(part)) is not None:
            look.parts[part.id] = Found(part, state, _mark([file for _, file in needed], state))
    return look


def _state_of(part: Part) -> State | None:
    # None where a file is not there any more.
    try:
        files = [(file, file.stat()) for file in (part.rgb, part.depth) if file is not None]
    except OSError:
        return None
    return (*((file, stat.st_size, stat.st_mtime_ns) for file, stat in files), part.depth_format)


def _mark(files: list[Path], state: State) -> str:
    told = [(os.path.abspath(file), size, changed) for file, size, changed in state[:-1] if file in files]
    return hashlib.blake2b(repr(told).encode(errors="surrogateescape"), digest_size=8).hexdigest()


def _since(state: State, before: tuple[State, float] | None) -> tuple[State, float]:
    return before if before is not None and before[0] == state else (state, time.monotonic())


def _judge(detector: Detector, found: Found, out: Path, focal_length: float | None) -> Inspected | None:
    # None where its files have gone or changed meanwhile, so that an error says nothing of them.
    (part,) = with_focal_length([found.part], focal_length)
    if problem := name_problem(part):
        return Inspected(part, None, problem)
    (result,) = inspect_parts(detector, [part], out)
    return None if result.error and _state_of(found.part) != found.state else result


class Patience:
    """Tells once what has held up parts for long: a member that does not come, names that say nothing."""

    def __init__(self) -> None:
        self.since: dict[str, float] = {}  # lines that hold now -> since when
        self.told: set[str] = set()  # lines, and kinds of problems: of a camera's own notes there may be thousands

    def tell(self, look: Look) -> None:
        now = time.monotonic()
        kinds = {line: kind for kind, lines in look.problems.items() for line in lines}
        kinds |= {line: line for line in look.lacking}
        self.since = {line: self.since.get(line, now) for line in kinds}
        self.told &= {*kinds, *kinds.values()}
        for line, kind in kinds.items():
            if kind not in self.told and now - self.since[line] >= LONG:
                self.told.add(kind)
                warn(f"waiting: {line}")


def _wait(seconds: float, stopping: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while not stopping() and (left := end - time.monotonic()) > 0:
        time.sleep(min(left, SLICE))


# ------------------------------------------------------------------------------------ what is written


class Record:
    """``scores.csv`` and ``regions.jsonl`` of a watched folder, which grow part by part.

    Attributes:
        seen: marks of the parts that stand there.
    """

    def __init__(self, out: Path, model: str) -> None:
        """Go on with what is there.

        Raises:
            DataError: there are scores that something else wrote.
        """
        self.scores, self.regions, self.model = out / "scores.csv", out / "regions.jsonl", model
        out.mkdir(parents=True, exist_ok=True)
        for file in (self.scores, self.regions):
            _cut_half_line(file)
        self.seen: set[str] = set()
        if self.scores.is_file() and self.scores.stat().st_size:
            with self.scores.open(newline="", encoding="utf-8", errors="replace") as table:
                rows = csv.DictReader(table)
                if tuple(rows.fieldnames or ()) != COLUMNS:
                    raise DataError(
                        f"{self.scores}: expected scores that das3d watch wrote, found others; give another folder (--out)"
                    )
                self.seen = {row["files"] for row in rows if row["files"]}
        else:
            _append(self.scores, ",".join(COLUMNS) + "\n")

    def add(self, result: Inspected, mark: str) -> None:
        """Write what was found, to the disk, before anybody is told."""
        if line := regions_line(result):
            _append(self.regions, line + "\n")
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        text = io.StringIO()
        row = {**score_row(result), "time": now, "model": self.model, "files": mark}
        csv.DictWriter(text, COLUMNS, lineterminator="\n").writerow(row)
        _append(self.scores, text.getvalue())
        self.seen.add(mark)


def _append(path: Path, text: str) -> None:
    try:
        with path.open("ab") as file:
            file.write(text.encode(errors="backslashreplace"))  # names that are no UTF-8, too
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = str(path)
        raise


def _cut_half_line(path: Path) -> None:
    # What was being written when the power failed or the disk was full.
    if not path.is_file():
        return
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(end - (1 << 16), 0)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            end = start + newline + 1
            if newline >= 0:
                break
        file.truncate(end)
