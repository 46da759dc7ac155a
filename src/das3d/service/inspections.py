"""What a service has inspected: one row a verdict or refusal in a database, and one folder a part on disk.

    inspections = Inspections(Path("inspections"))            # SQLite beside the files, or any PostgreSQL by its URL
    for inspection in inspections.page(verdict="defective"):  # newest first
        print(inspection.at, inspection.part, inspection.score, inspections.file(inspection.map))

A part's files come to lie in their place first and its row is committed last, so what a crash leaves behind are folders
that no row names: in `incoming`, which a later start sweeps, or at worst one beside those of the day. When their time is
over, the files go first and their row says so next (`retention.py`). So a row points to files that are there, unless they
are removed at this moment, a crash came in between, or somebody has moved them away.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar
from uuid import uuid4

from sqlalchemy import (
    JSON,
    URL,
    BigInteger,
    ColumnElement,
    DateTime,
    Delete,
    Dialect,
    Engine,
    Integer,
    Select,
    String,
    Update,
    create_engine,
    delete,
    event,
    func,
    inspect,
    make_url,
    or_,
    select,
    update,
)
from sqlalchemy.exc import (
    ArgumentError,
    IntegrityError,
    NoSuchModuleError,
    OperationalError,
    ProgrammingError,
    SQLAlchemyError,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker
from sqlalchemy.types import TypeDecorator

from das3d import atomic
from das3d.errors import Das3dError, SettingsError, explained, one_line
from das3d.files import DepthFormat
from das3d.parts import UNKNOWN, Part

CONNECT_SECONDS = 5  # for a server to answer; whoever waits for it holds a thread
STATEMENT_SECONDS = 20  # for a server to do what it was told, locks included
DATABASE_SECONDS = 35  # that recording a verdict may take at most, and a little more
STARTS = 3  # further tries to make the tables of a new database
ABANDONED = 3600.0  # seconds; no inspection is under way that long
SCHEMA = 1  # raised with every change that versions of before cannot live with; what is merely new is added
MEMBERS = ("map", "rgb", "depth")  # columns that name a part's files
PAGE = 1000  # rows that are looked at or changed at once
DATABASE_FILE = "inspections.sqlite"
Verdict = Literal["good", "defective"]
Truth = Literal["good", "defective", "unknown"]


class UtcTime(TypeDecorator[datetime]):
    """A moment in UTC, aware of it in every database; SQLite itself knows no time zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        try:
            return value.astimezone(UTC)
        except OverflowError:  # on the calendar's first or last day
            return value.replace(tzinfo=UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """The tables."""


class Schema(Base):
    """Which version of the tables a database holds."""

    __tablename__ = "das3d_schema"

    version: Mapped[int] = mapped_column(primary_key=True)


class TakenIn:
    """What is kept of every part that came in, whatever came of it.

    Attributes:
        id: grows with every row and is never given twice.
        at: when the part was taken in, UTC.
        part: what the client calls the part, such as its serial number.
        model, model_hash: name in the service, and SHA-256 of the model file.
        version: of das3d.
        rgb, depth: where the scan itself lies, None where it had no such member or is not kept.
    """

    __table_args__ = {"sqlite_autoincrement": True}  # noqa: RUF012  (SQLAlchemy reads it)

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcTime, index=True)
    part: Mapped[str] = mapped_column(String(200).with_variant(String(200, "C"), "postgresql"), index=True)
    model: Mapped[str] = mapped_column(String(200), index=True)
    model_hash: Mapped[str] = mapped_column(String(64))
    version: Mapped[str] = mapped_column(String(40))
    rgb: Mapped[str | None]
    depth: Mapped[str | None]


class Inspection(TakenIn, Base):
    """One verdict and all that explains it later.

    Attributes:
        engine: what computed it.
        score: 0 to 1; higher is more likely defective.
        threshold: of the model then; None where it has none.
        verdict: None where the model has no threshold.
        false_alarm_probability: the probability that a good part scores as high; None where the model cannot tell.
        regions: the places that the verdict rests on.
        height, width: of the scan and its map, pixels.
        seconds: from taking the part in to the verdict.
        map: where the anomaly map lies (float32 TIFF), as all files below the service's folder; "" once they were removed.
        depth_scale, depth_offset, depth_missing: how numbers in the depth file become metres (`DepthFormat`).
        truth: what a person found the part to be, "good" or "defective"; None where nobody has said.
    """

    __tablename__ = "inspections"

    engine: Mapped[str] = mapped_column(String(200))
    score: Mapped[float]
    threshold: Mapped[float | None]
    verdict: Mapped[str | None] = mapped_column(String(20), index=True)
    false_alarm_probability: Mapped[float | None]
    regions: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    height: Mapped[int]
    width: Mapped[int]
    seconds: Mapped[float]
    map: Mapped[str]
    depth_scale: Mapped[float | None]
    depth_offset: Mapped[float | None]
    depth_missing: Mapped[float | None]
    truth: Mapped[str | None] = mapped_column(String(20))


class Refusal(TakenIn, Base):
    """One part that could not be judged: unreadable, without enough depth, of another scene than in training.

    Attributes:
        reason: in one line.
    """

    __tablename__ = "refused"

    reason: Mapped[str]


Row = TypeVar("Row", bound=Inspection | Refusal)


class Judged(NamedTuple):
    """What is asked of very many inspections; the attributes are those of `Inspection`."""

    id: int
    at: datetime
    model: str
    model_hash: str
    score: float
    truth: str | None


class LostDatabaseError(Das3dError):
    """The database's file is no longer that which was opened: what is written goes nowhere, and SQLite does not say so."""


class Inspections:
    """The database and the folder of a service. Safe to use from several threads, and by several services at once.

    Args:
        folder: where maps and scans are kept; made where it is not there.
        url: of the database, such as "postgresql://user:password@host/name"; a SQLite file in `folder` by default.

    Raises:
        SettingsError: the database cannot be reached or has other tables than this version writes.
        MissingPackageError: the driver of PostgreSQL is not installed.
    """

    def __init__(self, folder: Path, url: str | None = None) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._engine = _connect(folder, url)
        self.place = self._engine.url.render_as_string(hide_password=True)
        self._session = sessionmaker(self._engine, expire_on_commit=False)
        try:
            self._prepare_with_others()
        except (SQLAlchemyError, SettingsError) as error:
            self._engine.dispose()
            if isinstance(error, SettingsError):
                raise
            raise SettingsError(f"database {self.place}: expected one that can be used, found {_reason(error)}") from None
        self._file = _file_of(self._engine.url)
        self._identity = None if self._file is None else _identity(self._file)
        _sweep(folder / "incoming")
        self._incoming = folder / "incoming" / uuid4().hex  # one for each service, so that none closes another's

    def _prepare_with_others(self) -> None:
        # Of several services that start together on a new database, all but one find tables or version in the making.
        for _ in range(STARTS):
            try:
                return self._prepare()
            except (OperationalError, ProgrammingError, IntegrityError) as error:
                if isinstance(error, OperationalError) and self._engine.dialect.name != "sqlite":
                    raise  # a server that cannot be reached
                time.sleep(0.1)
        return self._prepare()

    def _prepare(self) -> None:
        Base.metadata.create_all(self._engine)
        with self._session.begin() as session:
            known = session.scalar(select(Schema.version))
            if known is None:
                session.add(Schema(version=SCHEMA))
            elif known != SCHEMA:
                raise SettingsError(f"database {self.place}: expected tables of version {SCHEMA}, found version {known}")
        # Versions of before neither see a column that may be empty nor mind it, so that one may go back to them.
        if Inspection.truth.key not in {column["name"] for column in inspect(self._engine).get_columns("inspections")}:
            with self._engine.begin() as connection:
                connection.exec_driver_sql("ALTER TABLE inspections ADD COLUMN truth VARCHAR(20)")

    def new_folder(self) -> Path:
        """A new folder for the files of one part, which `record` or `forget` will take away again."""
        folder = self._incoming / uuid4().hex
        folder.mkdir(parents=True)
        return folder

    def forget(self, folder: Path) -> None:
        """Remove a folder of `new_folder` and all that is in it."""
        shutil.rmtree(folder, ignore_errors=True)

    def record(self, folder: Path, row: Row) -> Row:
        """Keep an inspection or refusal: its folder goes to its place, its row is committed, only then does this return.

        Args:
            folder: of `new_folder`, with the files whose names `row` has in `map`, `rgb` and `depth`; it stays where it is
                where there are none.
            row: all but its id.

        Raises:
            LostDatabaseError: the database's file was removed or replaced; nothing is recorded.
        """
        self._expect_file()
        day = self.folder / f"{row.at.astimezone(UTC):%Y-%m-%d}"
        place = day / folder.name
        names = os.listdir(folder)
        if names:
            day.mkdir(exist_ok=True)
            for file in (*(folder / name for name in names), folder):
                _flush(file)
            atomic.replace(folder, place)
            _flush(day)
            _flush(self.folder)
        where = place.relative_to(self.folder)
        for member in MEMBERS:
            if name := getattr(row, member, None):
                setattr(row, member, (where / name).as_posix())
        try:
            with self._session.begin() as session:
                session.add(row)
        except BaseException as error:
            # Where the connection broke, the row may have been committed: the files must stay, though no row may name them.
            if not getattr(error, "connection_invalidated", False):
                shutil.rmtree(place, ignore_errors=True)
            raise
        return row

    def file(self, name: str) -> Path:
        """Where a file of an inspection lies that `map`, `rgb` or `depth` names."""
        return self.folder / name

    def part_of(self, inspection: Inspection) -> Part:
        """The scan as files that nobody has judged, to be read as they were then."""
        rgb, depth = (None if name is None else self.file(name) for name in (inspection.rgb, inspection.depth))
        known = inspection.depth_scale
        form = None if known is None else DepthFormat(known, inspection.depth_offset or 0.0, inspection.depth_missing)
        return Part(inspection.part, "test", UNKNOWN, rgb, depth, (), form)

    def mark(self, id: int, truth: Truth) -> bool:
        """Keep what a person found a part to be; "unknown" takes it back. False where there is no such inspection.

        Raises LostDatabaseError as `record`.
        """
        if not 0 < id < 1 << 63:
            return False
        value = None if truth == "unknown" else truth
        return self._change(Inspection, [id], update(Inspection).values(truth=value)) > 0

    def get(self, id: int) -> Inspection | None:
        """The inspection with this id."""
        if not 0 < id < 1 << 63:
            return None
        with self._session() as session:
            return session.get(Inspection, id)

    def page(self, *, before: int | None = None, limit: int = 50, **filters: Any) -> list[Inspection]:
        """The newest inspections first.

        Args:
            before: only those with a smaller id, which is how to get the next page: pages do not shift while parts come in.
            limit: how many at most.
            filters: as for `count`.
        """
        return self._newest(self._filtered(select(Inspection), filters), Inspection, before, limit)

    def count(self, **filters: Any) -> int:
        """How many inspections there are.

        Args:
            filters: any of `model`, `verdict`, `part` (its beginning), `since` and `until` (moments; `until` is excluded),
                `min_score` and `max_score`, and `truth`, "unknown" where nobody has said.
        """
        with self._session() as session:
            return session.scalar(self._filtered(select(func.count(Inspection.id)), filters)) or 0

    def _filtered(self, query: Select[Any], filters: dict[str, Any]) -> Select[Any]:
        wanted = {name: value for name, value in filters.items() if value is not None}
        if beginning := wanted.pop("part", ""):
            # By the numbers of letters in both databases, which is the order of the index; a server's own order may
            # take A for a, and LIKE uses no index.
            part = Inspection.part.collate("BINARY" if self._engine.dialect.name == "sqlite" else "C")
            query = query.where(part >= beginning)
            if following := _following(beginning):
                query = query.where(part < following)
        return query.where(*(_FILTERS[name](value) for name, value in wanted.items()))

    def refused(self, *, before: int | None = None, limit: int = 50) -> list[Refusal]:
        """The newest refusals first; `before` and `limit` as for `page`."""
        return self._newest(select(Refusal), Refusal, before, limit)

    def _newest(self, query: Select[tuple[Row]], kind: type[Row], before: int | None, limit: int) -> list[Row]:
        query = query.order_by(kind.id.desc()).limit(limit)
        if before is not None:
            query = query.where(kind.id < before)
        with self._session() as session:
            return list(session.scalars(query))

    def count_refused(self) -> int:
        """How many refusals there are."""
        with self._session() as session:
            return session.scalar(select(func.count(Refusal.id))) or 0

    def old(
        self,
        kind: type[Inspection | Refusal],
        since: datetime | None,
        until: datetime,
        *conditions: ColumnElement[bool],
        with_files: bool = False,
    ) -> Iterator[list[tuple[int, list[str]]]]:
        """Ids of a time, the oldest first, each with the names of its files; a page at a time, which may then be removed.

        Args:
            kind: inspections or refusals.
            since, until: moments; `until` is excluded.
            conditions: further ones.
            with_files: only those that have files.
        """
        members = [getattr(kind, member) for member in MEMBERS if hasattr(kind, member)]
        query = select(kind.id, kind.at, *members).where(kind.at < until, *conditions)
        if with_files:
            query = query.where(or_(*(member != "" for member in members)))
        last = 0
        while True:
            page = query.order_by(kind.at, kind.id).limit(PAGE)
            if since is not None:
                page = page.where(kind.at >= since, or_(kind.at > since, kind.id > last))
            with self._session() as session:
                rows = session.execute(page).all()
            if not rows:
                return
            yield [(id, [name for name in names if name]) for id, _, *names in rows]
            last, since = rows[-1][:2]

    def walk(self, since: datetime | None = None, until: datetime | None = None) -> Iterator[Judged]:
        """Every inspection of a time, the newest first; a page at a time is held, without what takes room.

        Args:
            since, until: moments; `until` is excluded, and None is no limit.
        """
        query = select(*(getattr(Inspection, name) for name in Judged._fields))
        if since is not None:
            query = query.where(Inspection.at >= since)
        if until is not None:
            query = query.where(Inspection.at < until)
        query = query.order_by(Inspection.at.desc(), Inspection.id.desc()).limit(PAGE)
        page = query
        while True:
            with self._session() as session:
                rows = [Judged(*row) for row in session.execute(page)]
            yield from rows
            if len(rows) < PAGE:
                return
            last = rows[-1]
            page = query.where(Inspection.at <= last.at, or_(Inspection.at < last.at, Inspection.id < last.id))

    def forget_files(self, kind: type[Inspection | Refusal], ids: Sequence[int]) -> None:
        """Let rows say that they have no files any more."""
        gone = {member: "" if member == "map" else None for member in MEMBERS if hasattr(kind, member)}
        self._change(kind, ids, update(kind).values(gone))

    def remove(self, kind: type[Inspection | Refusal], ids: Sequence[int]) -> int:
        """Remove rows; how many there still were."""
        return self._change(kind, ids, delete(kind))

    def _change(self, kind: type[Inspection | Refusal], ids: Sequence[int], change: Update | Delete) -> int:
        self._expect_file()
        with self._session.begin() as session:
            # In one order, so that two services that change the same rows wait for each other and not in a circle.
            session.execute(select(kind.id).where(kind.id.in_(ids)).order_by(kind.id).with_for_update()).all()
            options = {"synchronize_session": False}  # no row is held in this session
            changed = session.execute(change.where(kind.id.in_(ids)), execution_options=options)
            return int(changed.rowcount)  # type: ignore[attr-defined]

    def check(self) -> None:
        """Ask the database something. Raises what SQLAlchemy raises, and LostDatabaseError."""
        self._expect_file()
        with self._session() as session:
            session.scalar(select(Schema.version))

    def _expect_file(self) -> None:
        # Whoever clears the folder takes the file away from under open connections, which then write to nobody's file.
        if self._file is None or (found := _identity(self._file)) == self._identity:
            return
        what = "none" if found is None else "another one"
        raise LostDatabaseError(
            f"{self._file}: expected the database that was there at the start, found {what}; start the service again"
        )

    def free(self) -> int:
        """Bytes that are free on the disk of the folder. Raises OSError where it is not there."""
        return shutil.disk_usage(self.folder).free

    def close(self) -> None:
        """Let the database go, and sweep away what was never finished."""
        self._engine.dispose()
        shutil.rmtree(self._incoming, ignore_errors=True)


@contextmanager
def opened(folder: Path, database: str | None = None) -> Iterator[Inspections]:
    """What a service has kept in a folder, whether it runs or not.

    Args:
        folder: of the service, its --out.
        database: URL of the database; a SQLite file in `folder` by default.

    Raises:
        SettingsError: the folder is not a service's, or the database cannot be used, now or meanwhile.
    """
    if not folder.is_dir() or (database is None and not (folder / DATABASE_FILE).is_file()):
        raise SettingsError(f"{folder}: expected the folder of a service, found no {DATABASE_FILE} there")
    inspections = Inspections(folder, database)
    try:
        yield inspections
    except SQLAlchemyError as error:
        raise SettingsError(
            f"database {inspections.place}: expected one that can be used, found {_reason(error)}"
        ) from None
    finally:
        inspections.close()


_FILTERS: dict[str, Callable[[Any], ColumnElement[bool]]] = {
    "model": lambda name: Inspection.model == name,
    "verdict": lambda verdict: Inspection.verdict == verdict,
    "truth": lambda truth: Inspection.truth.is_(None) if truth == "unknown" else Inspection.truth == truth,
    "since": lambda moment: Inspection.at >= moment,
    "until": lambda moment: Inspection.at < moment,
    "min_score": lambda score: Inspection.score >= score,
    "max_score": lambda score: Inspection.score <= score,
}


def _following(beginning: str) -> str:
    # The first text after all that begin so; "" where there is none.
    kept = beginning.rstrip("\U0010ffff")
    if not kept:
        return ""
    last = ord(kept[-1]) + 1
    return kept[:-1] + chr(0xE000 if last == 0xD800 else last)  # what lies between are no letters


def _connect(folder: Path, url: str | None) -> Engine:
    try:
        parsed = make_url(url) if url else URL.create("sqlite", database=str(folder.absolute() / DATABASE_FILE))
        if parsed.drivername in ("postgres", "postgresql"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        if parsed.get_backend_name() not in ("sqlite", "postgresql"):
            raise SettingsError(f"database: expected SQLite or PostgreSQL, found {parsed.get_backend_name()}")
        options: dict[str, int] = {}
        if parsed.get_driver_name() in ("psycopg", "psycopg2"):
            limits = {"connect_timeout": CONNECT_SECONDS, "tcp_user_timeout": 1000 * STATEMENT_SECONDS}
            options = {name: limit for name, limit in limits.items() if name not in parsed.query}
        with explained("a PostgreSQL database"):
            engine = create_engine(parsed, pool_pre_ping=True, connect_args=options)
    except (ArgumentError, NoSuchModuleError):  # whose texts may show the password
        raise SettingsError("database: expected a URL such as postgresql://user:password@host/name") from None
    except ModuleNotFoundError as error:  # of another driver that the URL names
        raise SettingsError(f"database: expected a driver that is installed, found {error.name}, which is not") from None
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _set_up_sqlite)
    else:
        event.listen(engine, "begin", _limit_statements)
    return engine


def _file_of(url: URL) -> Path | None:
    # That of SQLite; None where a server or the memory holds the tables.
    if url.get_backend_name() != "sqlite" or not url.database or url.database.startswith((":memory:", "file:")):
        return None
    return Path(url.database).absolute()


def _identity(file: Path) -> tuple[int, int] | None:
    # Device and number of a file; None where there is none. Without numbers, as on some disks of Windows, all are alike.
    try:
        found = file.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if found.st_ino else (0, 0)


def _set_up_sqlite(connection: Any, _: Any) -> None:
    # Readers never wait for the writer, and a commit is on the disk when it returns.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=30000"):
        connection.cursor().execute(f"PRAGMA {pragma}")


def _limit_statements(connection: Any) -> None:
    # Of this transaction alone: a pooler in between may give its connection to somebody else next.
    connection.exec_driver_sql(f"SET LOCAL statement_timeout = {1000 * STATEMENT_SECONDS}")


def _sweep(incoming: Path) -> None:
    # What services left behind that did not end as they should; others may be at work beside this one.
    for folder in incoming.glob("*"):
        with suppress(FileNotFoundError):  # another start may sweep at the same moment
            if time.time() - folder.stat().st_mtime > ABANDONED:
                shutil.rmtree(folder, ignore_errors=True)


def _flush(path: Path) -> None:
    # To the disk itself, so that a power failure cannot take what a row points to.
    if os.name == "nt" and path.is_dir():
        return  # which Windows cannot open; its file system keeps the entries of folders itself
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(error: SQLAlchemyError) -> str:
    return one_line(getattr(error, "orig", None) or error)
