"""How long a service keeps what it has inspected, and the removal of what is older.

    prune(inspections, Keep(good=30 * DAY, rows=5 * 365 * DAY))

The files of a part go before its row, and a row that stays says that it has none. What is cut short is done the next time,
and several services may do it at once.
"""

from __future__ import annotations

import logging
import re
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path

from das3d.console import counted
from das3d.errors import SettingsError, one_line
from das3d.service.inspections import Inspection, Inspections, Refusal, opened

log = logging.getLogger("das3d.service")
DAY = 86400.0  # seconds
AGAIN = 3600.0  # seconds after which a removal that failed is tried again
FOLDER = re.compile("[0-9a-f]{32}")  # of a part


@dataclass(frozen=True)
class Keep:
    """How long what is kept, in seconds; None: for ever.

    Attributes:
        good: files of parts that were judged good.
        defective: files of all others that were judged, also by a model without a threshold.
        refused: files of parts that could not be judged.
        rows: verdicts and refusals in the database. No files are kept longer than their row.

    Raises:
        SettingsError: less than a day.
    """

    good: float | None = None
    defective: float | None = None
    refused: float | None = None
    rows: float | None = None

    def __post_init__(self) -> None:
        for each in fields(self):
            seconds = getattr(self, each.name)
            if seconds is not None and not seconds >= DAY:
                raise SettingsError(f"--keep-{each.name}: expected a day or more, such as 30d, found {seconds:g} s")

    @property
    def forever(self) -> bool:
        """Whether nothing is ever removed."""
        return self == Keep()

    def files(self, name: str) -> float | None:
        """How long the files of parts are kept that are "good", "defective" or "refused"."""
        return min((seconds for seconds in (getattr(self, name), self.rows) if seconds is not None), default=None)


@dataclass
class Removed:
    """What was removed, or would be.

    Attributes:
        good, defective, refused: parts whose files went.
        orphans: folders that no row named.
        size: of all those files, bytes.
        rows: of the database.
        stuck: a folder that could not be removed, None where all could.
    """

    good: int = 0
    defective: int = 0
    refused: int = 0
    orphans: int = 0
    size: int = 0
    rows: int = 0
    stuck: Path | None = None

    def describe(self) -> str:
        parts = f"the files of {self.good} good, {self.defective} defective and {self.refused} refused parts"
        orphans = f" and {counted(self.orphans, 'folder')} without a row" if self.orphans else ""
        return f"{parts}{orphans}, {self.size / 1e6:.1f} MB, and {counted(self.rows, 'row')}"


def prune(
    inspections: Inspections,
    keep: Keep,
    *,
    dry_run: bool = False,
    now: datetime | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> Removed:
    """Remove what is older than it shall be kept; with `dry_run` only count it. Ends early once `stopping` says so.

    Raises what SQLAlchemy raises, and OSError where the folder cannot be read.
    """
    work = _Pruning(inspections, keep, datetime.now(UTC) if now is None else now, dry_run, stopping)
    for day in sorted(inspections.folder.iterdir()):  # of old days there are only those that still have files
        if (begin := _date_of(day)) is not None and not stopping():
            work.prune_files(day, begin)
            work.prune_orphans(day, begin)
    for kind in (Inspection, Refusal):
        work.prune_rows(kind)
    return work.removed


@dataclass
class _Pruning:
    inspections: Inspections
    keep: Keep
    now: datetime
    dry_run: bool
    stopping: Callable[[], bool]
    removed: Removed = field(default_factory=Removed)
    known: set[str] = field(default_factory=set)  # folders of parts of the day at hand

    def prune_files(self, day: Path, begin: datetime) -> None:
        self.known.clear()
        for name, kind, conditions in (
            ("good", Inspection, [Inspection.verdict == "good"]),
            ("defective", Inspection, [Inspection.verdict.is_distinct_from("good")]),
            ("refused", Refusal, []),
        ):
            seconds = self.keep.files(name)
            if seconds is None or begin >= (limit := self.now - timedelta(seconds=seconds)):
                continue
            until = min(begin + timedelta(days=1), limit)
            for page in self.inspections.old(kind, begin, until, *conditions, with_files=True):
                # Nothing outside the folder of this day, whatever a row may say.
                gone = [id for id, names in page if all(map(self._remove, _folders(self.inspections, names, day)))]
                setattr(self.removed, name, getattr(self.removed, name) + len(gone))
                if not self.dry_run:
                    self.inspections.forget_files(kind, gone)

    def prune_orphans(self, day: Path, begin: datetime) -> None:
        # Only where no part can still come in, and all that have come are over.
        over = begin + timedelta(days=2)
        longest = [self.keep.files(name) for name in ("good", "defective", "refused")]
        if all(seconds is not None and over + timedelta(seconds=seconds) <= self.now for seconds in longest):
            with suppress(FileNotFoundError):  # another service was faster
                for folder in day.iterdir():
                    if FOLDER.fullmatch(folder.name) and folder.name not in self.known:
                        self.removed.orphans += self._remove(folder)
        if over <= self.now and not self.dry_run:
            with suppress(OSError):  # it is not empty
                day.rmdir()

    def prune_rows(self, kind: type[Inspection | Refusal]) -> None:
        if self.keep.rows is None:
            return
        for page in self.inspections.old(kind, None, self.now - timedelta(seconds=self.keep.rows)):
            if self.stopping():
                return
            if self.dry_run:
                self.removed.rows += len(page)
                continue
            # A folder that could not be removed keeps its row, which alone tells what it is.
            ids = [id for id, names in page if not any(map(Path.is_dir, _folders(self.inspections, names)))]
            self.removed.rows += self.inspections.remove(kind, ids)

    def _remove(self, folder: Path) -> bool:
        if self.stopping():
            return False
        self.known.add(folder.name)
        size = 0
        with suppress(FileNotFoundError, NotADirectoryError):  # gone already, perhaps this moment by another service
            size = sum(file.stat().st_size for file in folder.iterdir())
        if not self.dry_run:
            shutil.rmtree(folder, ignore_errors=True)
            if folder.exists():
                self.removed.stuck = folder
                return False
        self.removed.size += size
        return True


def _folders(inspections: Inspections, names: list[str], day: Path | None = None) -> set[Path]:
    # Of a part: a day, a name that no other has, a file; anything else is not the service's own.
    folders = {inspections.file(name).parent for name in names if name.count("/") == 2}
    return {
        folder for folder in folders if FOLDER.fullmatch(folder.name) and (day is None or folder.parent == day)
    }  # fmt: skip


def _date_of(folder: Path) -> datetime | None:
    # The day whose parts lie in a folder.
    try:
        date = datetime.strptime(folder.name, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        return None
    return date if f"{date:%Y-%m-%d}" == folder.name and folder.is_dir() else None


class Retention:
    """Prunes at its start and once a day, in a thread that a failure does not end."""

    def __init__(self, inspections: Inspections, keep: Keep) -> None:
        self._inspections, self._keep = inspections, keep
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="das3d retention", daemon=True)

    def start(self) -> None:
        """Begin, where anything is ever removed."""
        if not self._keep.forever:
            self._thread.start()

    def close(self) -> None:
        """Stop after the part at hand."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        wait = 0.0
        while not self._over.wait(wait):
            try:
                removed = prune(self._inspections, self._keep, stopping=self._over.is_set)
            except Exception as error:  # a database that is away, a disk that cannot be read: both may come back
                log.error("what is too old could not be removed, tried again in %.0f s: %s", AGAIN, one_line(error, 500))
                wait = AGAIN
                continue
            if removed != Removed():
                log.info("removed as too old: %s", removed.describe())
            if removed.stuck is not None:
                log.error("%s: expected a folder that can be removed", removed.stuck)
            wait = DAY


def prune_folder(folder: Path, database: str | None, keep: Keep, *, dry_run: bool = False) -> Removed:
    """Prune what a service has kept in a folder, whether it runs or not.

    Raises:
        SettingsError: nothing is limited, the folder is not a service's, or the database cannot be used.
    """
    if keep.forever:
        raise SettingsError("expected at least one of --keep-good, --keep-defective, --keep-refused and --keep-rows")
    with opened(folder, database) as inspections:
        return prune(inspections, keep, dry_run=dry_run)
