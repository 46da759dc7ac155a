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
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from das3d.console import counted, say, warn
from das3d.datasets import expect_outside
from das3d.detector import Detector
from das3d.errors import DataError, ModelError
from das3d.files import DepthFormat
from das3d.layouts import DECLARATION, LAYOUTS, NAMING, Reading, Search, unlabelled
from das3d.locks import HeldError, locked
from das3d.parts import Part, name_problem, table_text
from das3d.prediction import with_focal_length
from das3d.streaming import SCORE_COLUMNS, Inspected, inspect_parts, output_names, regions_line, score_row, why_not

COLUMNS = (*SCORE_COLUMNS, "time", "model", "files", "map", "overlay")  # of scores.csv
LOCK = "watch.lock"
LONG = 60.0  # seconds after which something that holds up a part is told
RECENT = 100_000  # parts that are known again though their files were taken away
TRIES = 3  # of a part on which the networks fail
PAUSE = 1.0  # seconds between them
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

    A map and an overlay are written into a folder of the day (UTC), under the part's name and the hash of its files, so
    that none takes the place of an earlier one where a camera counts from 1 again. ``scores.csv`` grows by a row a part,
    and ``regions.jsonl`` by a line for each with regions. Files that stand in ``scores.csv`` already, told by path, size
    and time of change, are not judged again. A part that fails has its error in its row, and so has one on which the
    networks fail again and again.

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
        DataError: there is no such folder or it holds a data set, `out` lies in it, holds scores of something else or is
            written to by another. Later on, a folder that cannot be read is waited for, but not by `once`.
        ModelError: the networks fail on two parts in a row.
    """
    _expect_plain(folder, out)
    reading = detector.reading(depth_format=depth_format)
    look = _look(folder, reading)  # whatever is wrong at the start is refused
    with _alone_in(out):
        record = Record(out, model, look.marks)
        if not once:
            say(f"watching {folder}; {counted(record.judged, 'part')} judged before")
        broken = False
        for found in _ready(folder, reading, record, settle, once, stopping):
            result, failure = _tried(detector, found, out, focal_length, stopping)
            if failure and broken:  # recorded, it would not be judged when all is well again
                raise ModelError(f"{failure}; as on the part before, so it is the model or the device")
            broken = bool(failure)
            if result is not None:
                record.add(result, found.mark)
                yield result


@contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    # Two that write into one folder would each judge every part, and cut off what the other is writing.
    try:
        with locked(out / LOCK):
            yield
    except HeldError as held:
        raise DataError(
            f"{out}: expected a folder that no other das3d watch writes to (--out), found {held} in it"
        ) from None


def _ready(
    folder: Path, reading: Reading, record: Record, settle: float, once: bool, stopping: Callable[[], bool]
) -> Iterator[Found]:
    # Parts whose files are all there, stand still and are not in the record, as they come.
    still: dict[str, tuple[State, float]] = {}  # of parts that are not judged yet: since when they stand as they do
    patience, first, away = Patience(), 0.0, False
    while not stopping():
        begun = time.monotonic()
        try:
            look = _look(folder, reading)
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
            record.forget(look.marks)
        looked = time.monotonic() - begun
        new = {name: found for name, found in look.parts.items() if found.mark not in record.seen}
        still = {name: _since(found.state, still.get(name)) for name, found in new.items()}
        first = first or time.monotonic()
        for name, found in new.items():
            if stopping():
                return
            # Those before it may have taken long.
            if begun - still[name][1] >= settle and _state_of(found.part) == found.state:
                yield found
        if once and (not new or begun - first >= settle):
            _tell_what_is_left(look, sum(found.mark not in record.seen for found in new.values()))
            return
        record.catch_up()
        if not away:
            patience.tell(look)
        _wait(max(min(settle / 4, 1.0), looked), stopping)  # a slow share is not busy with us all the time


def _tell_what_is_left(look: Look, unsettled: int) -> None:
    # One line stands for all of its kind, as there may be thousands.
    if left := unsettled + len(look.lacking):
        such_as = f", such as {look.lacking[0]}" if look.lacking else ""
        say(f"{counted(left, 'part')} not complete yet, left for the next time{such_as}")
    for lines in look.problems.values():
        more = f"; {len(lines) - 1} more like this" if len(lines) > 1 else ""
        warn(f"not judged: {lines[0]}{more}")


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

    @property
    def marks(self) -> Set[str]:
        """Of the parts that are complete."""
        return {found.mark for found in self.parts.values()}


def _look(folder: Path, reading: Reading) -> Look:
    # Raises DataError where the folder, or what it says of depth, cannot be read.
    search = Search(**reading)
    try:
        parts = unlabelled(folder, search)
    except OSError as error:  # of a share, which has more ways to be away than a disk
        raise DataError(f"{folder}: expected a readable folder, found {error.strerror or error}") from None
    if declared := search.problems.get(DECLARATION):
        raise DataError(declared)
    look = Look(problems=search.problems)
    for part in parts:
        members = (("rgb", part.rgb, search.rgb), ("depth", part.depth, search.depth))
        needed = [(member, file) for member, file, wanted in members if wanted]
        lacks = [member for member, file in needed if file is None]
        if lacks:
            member = "an rgb" if lacks[0] == "rgb" else "a depth"
            look.lacking.append(f"{part.rgb or part.depth}: expected {member} file of the same name, found none")
        elif part.id not in search.doubled and (state := _state_of(part)) is not None:
            look.parts[part.id] = Found(part, state, _mark([file for _, file in needed if file], state))
        elif dead := [file for _, file in needed if file and file.is_symlink()]:
            look.lacking.append(f"{dead[0]}: expected a file, found a link to none that can be read")
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


def _tried(
    detector: Detector, found: Found, out: Path, focal_length: float | None, stopping: Callable[[], bool]
) -> tuple[Inspected | None, str]:
    # The result, None where there is none to record; and why the networks fail on the part, "" where they do not. Without
    # an end, a part that they cannot compute would hold up all others, also where a service starts it again and again.
    failure = ""
    for attempt in range(TRIES):
        if attempt:
            warn(f"{failure}; trying again")
            _wait(PAUSE, stopping)
            if stopping():
                return None, ""
        try:
            result = _judge(detector, found, out, focal_length)
        except OSError:  # of what is written
            raise
        except Exception as error:  # such as of too little memory
            failure = why_not(found.part, error)
        else:
            if result is None or not result.networks_failed:
                return result, ""
            failure = result.error
    if _state_of(found.part) != found.state:  # it is of something else
        return None, ""
    return Inspected(found.part, None, failure), failure


def _judge(detector: Detector, found: Found, out: Path, focal_length: float | None) -> Inspected | None:
    # None where its files have gone or changed meanwhile, so that an error says nothing of them.
    (part,) = with_focal_length([found.part], focal_length)
    if problem := name_problem(part):
        return Inspected(part, None, problem)
    names = {part.id: f"{output_names([part])[part.id]}_{found.mark}"}
    (result,) = inspect_parts(detector, [part], out / datetime.now(UTC).date().isoformat(), names)
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
        seen: marks of parts that stand there, the latest last: of those whose files may come again.
        judged: how many parts stood there at the start.
    """

    def __init__(self, out: Path, model: str, there: Set[str]) -> None:
        """Go on with what is there.

        Args:
            out: where it is.
            model: for the rows.
            there: marks of the parts in the watched folder.

        Raises:
            DataError: there are scores that something else wrote.
        """
        self.out, self.model = out, model
        self.scores, self.regions = Growing(out / "scores.csv", ",".join(COLUMNS) + "\n"), Growing(out / "regions.jsonl")
        self.seen: dict[str, None] = {}
        self.judged = 0
        for file in (self.scores.path, self.scores.beside):
            self._load(file, there)
        self.catch_up()
        if self.scores.empty:
            self.scores.add("")

    def _load(self, file: Path, there: Set[str]) -> None:
        if not file.is_file() or not file.stat().st_size:
            return
        other = "give another folder (--out)"
        try:
            with file.open(newline="", encoding="utf-8-sig", errors="replace") as table:  # -sig: as Excel saves it
                rows = csv.DictReader(table)
                if tuple(rows.fieldnames or ()) != COLUMNS:
                    raise DataError(f"{file}: expected scores that das3d watch wrote, found others; {other}")
                for row in rows:
                    if row["files"]:
                        self.judged += 1
                        self.seen[row["files"]] = None
                        self.forget(there)
        except csv.Error as error:
            raise DataError(
                f"{file}: expected scores that das3d watch wrote, found a damaged table ({error}); {other}"
            ) from None

    def forget(self, there: Set[str]) -> None:
        """Now and then, drop the marks of parts that lie `there` no more, but for the last `RECENT`."""
        if len(self.seen) > 2 * (RECENT + len(there)):
            latest = set(islice(reversed(self.seen), RECENT))
            self.seen = {mark: None for mark in self.seen if mark in latest or mark in there}

    def add(self, result: Inspected, mark: str) -> None:
        """Write what was found, to the disk, before anybody is told."""
        if line := regions_line(result, files=mark):
            self.regions.add(line + "\n")
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        files = {"map": result.map_file, "overlay": result.overlay_file}
        places = {name: file.relative_to(self.out).as_posix() if file else "" for name, file in files.items()}
        # Names that no table can hold stand there as they do in their error.
        named = {name: table_text(str(text)) for name, text in score_row(result).items()}
        row = {**named, "time": now, "model": self.model, "files": mark, **places}
        text = io.StringIO()
        csv.DictWriter(text, COLUMNS, lineterminator="\n").writerow(row)
        self.scores.add(text.getvalue())
        self.seen[mark] = None

    def catch_up(self) -> None:
        """See `Growing.catch_up`."""
        self.scores.catch_up()
        self.regions.catch_up()


class Growing:
    """A file that grows by whole lines, each on the disk before anybody is told.

    While another program holds it, as Excel does on Windows, lines wait in a file beside it.

    Attributes:
        path: the file.
        beside: the one beside it.
        waiting: whether lines wait there.
    """

    def __init__(self, path: Path, head: str = "") -> None:
        """Go on with what is there, less half a line at its end; `head` is the first line."""
        self.path, self.beside, self._head = path, path.with_stem(f"{path.stem}_2"), head.encode()
        for file in (path, self.beside):
            _cut_half_line(file)
        self.waiting = self.beside.is_file()

    @property
    def empty(self) -> bool:
        return not self.path.is_file() or not self.path.stat().st_size

    def add(self, text: str) -> None:
        """Add lines."""
        content = text.encode(errors="backslashreplace")  # names that are no UTF-8, too
        self.catch_up()
        try:
            self._append(self.path, content)
        except PermissionError as held:
            try:
                self._append(self.beside, content)
            except PermissionError:
                raise held from None
            if not self.waiting:
                warn(
                    f"{self.path} cannot be written, as where it is open in another program; until it can, what is new is "
                    f"in {self.beside}"
                )
            self.waiting = True

    def catch_up(self) -> None:
        """Move waiting lines to where they belong, if that can be done now."""
        if not self.waiting:
            return
        with suppress(PermissionError):
            try:
                beside = self.beside.open("rb+")
            except FileNotFoundError:  # somebody tidied up; whoever has the lines has the file
                self.waiting = False
                warn(f"{self.beside}: expected the lines that wait for {self.path}, found no file; they are not added")
                return
            with beside as file:
                lines = file.read().removeprefix(self._head)
                if not self._ends_with(lines):  # or it ended between this and the next
                    self._append(self.path, lines)
                file.truncate(0)
            self.waiting = False
            self.beside.unlink(missing_ok=True)
            say(f"{self.path} can be written again")

    def _append(self, path: Path, content: bytes) -> None:
        try:
            with path.open("ab") as file:
                file.write(content if file.tell() else self._head + content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            error.filename = str(path)
            raise

    def _ends_with(self, lines: bytes) -> bool:
        if self.empty:
            return not lines
        with self.path.open("rb") as file:
            file.seek(max(self.path.stat().st_size - len(lines), 0))
            return file.read() == lines


def _cut_half_line(path: Path) -> None:
    # What was being written when the power failed or the disk was full.
    if not path.is_file():
        return
    with path.open("rb") as file:
        end = size = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(end - (1 << 16), 0)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            end = start + newline + 1
            if newline >= 0:
                break
    if end < size:
        os.truncate(path, end)
