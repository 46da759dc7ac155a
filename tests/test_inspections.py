"""The record of inspections, on SQLite and, where one is installed, on a real PostgreSQL."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from tiny import das3d

from das3d.errors import MissingPackageError, SettingsError
from das3d.service.inspections import DATABASE_FILE, Inspection, Inspections, LostDatabaseError, Refusal
from das3d.service.retention import DAY, Keep, Retention, prune

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def postgres_bin() -> Path | None:
    found = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    if postgres := shutil.which("postgres"):
        found.insert(0, Path(postgres).parent)
    return next((folder for folder in found if (folder / "initdb").exists()), None)


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """URL of an empty database in a server of its own, or in the one that DAS3D_TEST_DATABASE names."""
    if url := os.environ.get("DAS3D_TEST_DATABASE"):
        yield url
        return
    programs = postgres_bin()
    if programs is None:
        pytest.skip("no PostgreSQL server on this machine, and DAS3D_TEST_DATABASE names none")
    # PostgreSQL refuses to run as root, so root has to act as another user.
    user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    if user and subprocess.run([*user, "true"], capture_output=True, check=False).returncode:
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o777)
        data = Path(folder, "data")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]

        def run(*words: str) -> None:
            subprocess.run([*user, *words], check=True, capture_output=True, cwd=folder)

        run(str(programs / "initdb"), "-D", str(data), "-U", "das3d", "-A", "trust", "--no-sync")
        options = f"-c listen_addresses=127.0.0.1 -p {port} -k {folder} -c fsync=off"
        run(str(programs / "pg_ctl"), "-D", str(data), "-w", "-l", f"{folder}/log", "-o", options, "start")
        try:
            yield f"postgresql://das3d@127.0.0.1:{port}/postgres"
        finally:
            run(str(programs / "pg_ctl"), "-D", str(data), "-m", "immediate", "stop")


@pytest.fixture(params=["sqlite", "postgres"])
def inspections(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Inspections]:
    url = request.getfixturevalue("postgres") if request.param == "postgres" else None
    record = Inspections(tmp_path, url)
    yield record
    if url:
        drop_tables(record)
    record.close()


def drop_tables(inspections: Inspections) -> None:
    with inspections._engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE inspections; DROP TABLE refused; DROP TABLE das3d_schema")


def inspection(number: int = 0, **changed: object) -> Inspection:
    values = {
        "at": NOON + timedelta(minutes=number), "part": f"part_{number}", "model": "bolt", "model_hash": "ab" * 32,
        "engine": "none", "version": "0", "score": number / 100, "threshold": 0.05,
        "verdict": "defective" if number > 5 else "good", "false_alarm_probability": None,
        "regions": [{"x": 1, "peak": 0.5}],
        "height": 4, "width": 5, "seconds": 0.1, "map": "map.tiff", "rgb": "rgb.png", "depth": None,
    }  # fmt: skip
    return Inspection(**values | changed)


def record(inspections: Inspections, row: Inspection) -> Inspection:
    folder = inspections.new_folder()
    (folder / "map.tiff").write_bytes(b"map")
    (folder / "rgb.png").write_bytes(b"rgb")
    return inspections.record(folder, row)


def test_what_was_recorded_comes_back(inspections: Inspections) -> None:
    east = NOON.astimezone(timezone(timedelta(hours=9)))
    kept = record(inspections, inspection(3, at=east, score=0.1 + 0.2, part="Stück 7"))
    found = inspections.get(kept.id)
    assert found is not None
    assert (found.at, found.score, found.part, found.regions) == (NOON, 0.1 + 0.2, "Stück 7", [{"x": 1, "peak": 0.5}])
    assert found.at.tzinfo is UTC and found.depth is None
    assert inspections.file(found.map).read_bytes() == b"map" and inspections.file(found.rgb or "").read_bytes() == b"rgb"
    assert inspections.get(kept.id + 1) is None and inspections.get(1 << 80) is None


def test_pages_hold_while_parts_come_in_and_filters_narrow_them(inspections: Inspections) -> None:
    for number in range(10):
        record(inspections, inspection(number))
    first = inspections.page(limit=4)
    assert [row.part for row in first] == ["part_9", "part_8", "part_7", "part_6"]
    record(inspections, inspection(10, model="nut"))
    second = inspections.page(before=first[-1].id, limit=4)
    assert [row.part for row in second] == ["part_5", "part_4", "part_3", "part_2"]
    assert inspections.count() == 11 and inspections.count(model="nut") == 1
    assert inspections.count(verdict="defective", model="bolt") == 4
    assert inspections.count(min_score=0.02, max_score=0.04) == 3
    assert inspections.count(since=NOON + timedelta(minutes=2), until=NOON + timedelta(minutes=4)) == 2
    assert inspections.count(part="part_1") == 2 and inspections.count(part="part%") == 0, "no wildcards"
    inspections.mark(first[0].id, "good")
    inspections.mark(first[1].id, "defective")
    assert [row.part for row in inspections.page(truth="good")] == ["part_9"]
    assert inspections.count(truth="defective", verdict="defective") == 1 and inspections.count(truth="unknown") == 9
    with pytest.raises(KeyError):
        inspections.page(colour="red")


def test_all_are_walked_from_the_newest_a_page_at_a_time(inspections: Inspections, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("das3d.service.inspections.PAGE", 3)
    minutes = [4, 4, 1, 2, 4, 4, 4, 0, 3]  # later ids are not later parts, and a page ends within a minute
    kept = [record(inspections, inspection(number, at=NOON + timedelta(minutes=at))) for number, at in enumerate(minutes)]
    newest_first = sorted(kept, key=lambda row: (row.at, row.id), reverse=True)
    walked = list(inspections.walk())
    assert [row.id for row in walked] == [row.id for row in newest_first]
    assert [(row.at, row.score, row.model_hash) for row in walked] == [
        (row.at, row.score, row.model_hash) for row in newest_first
    ]
    some = inspections.walk(NOON + timedelta(minutes=1), NOON + timedelta(minutes=4))
    assert [row.at.minute for row in some] == [3, 2, 1]


def test_parts_are_found_by_their_beginning_alike_in_every_database(inspections: Inspections) -> None:
    last = "\U0010ffff"
    names = ["A1", "a1", "a1-b", "a-1", "a2", "b", "\ud7ffx", "\ue000", "é1", "e1", last, last * 2, "zz" + last]
    for name in names:
        record(inspections, inspection(part=name))
    for beginning in ["a", "A", "a1", "a-", "", "\ud7ff", "\ue000", "é", "e", last, "z", "zz" + last, "%", "_1"]:
        found = {row.part for row in inspections.page(part=beginning)}
        assert found == {name for name in names if name.startswith(beginning)}, beginning


def test_parts_are_found_by_an_index(inspections: Inspections) -> None:
    query = inspections._filtered(select(func.count(Inspection.id)), {"part": "serial-1"})
    sqlite = inspections._engine.dialect.name == "sqlite"
    with inspections._engine.begin() as connection:
        words = str(query.compile(connection, compile_kwargs={"literal_binds": True}))
        if not sqlite:  # which reads a whole table where it is as small as this one
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off; SET LOCAL enable_indexscan = off")
        explain = "EXPLAIN QUERY PLAN" if sqlite else "EXPLAIN"
        plan = " ".join(str(row) for row in connection.exec_driver_sql(f"{explain} {words}"))
    condition = "part>? AND part<?" if sqlite else "Index Cond"
    assert "ix_inspections_part" in plan and condition in plan, plan


def test_a_server_of_another_order_finds_the_same_parts(postgres: str, tmp_path: Path) -> None:
    kept = Inspections(tmp_path, postgres)
    try:
        with kept._engine.begin() as connection:  # as a table of before
            connection.exec_driver_sql('ALTER TABLE inspections ALTER COLUMN part TYPE varchar(200) COLLATE "und-x-icu"')
        for name in ("a1", "A1", "a-1", "a2"):
            record(kept, inspection(part=name))
        assert [row.part for row in kept.page(part="a1")] == ["a1"] and kept.count(part="a") == 3
    finally:
        drop_tables(kept)
        kept.close()


def refusal(number: int = 0, **changed: object) -> Refusal:
    values = {
        "at": NOON + timedelta(minutes=number), "part": f"part_{number}", "model": "bolt", "model_hash": "ab" * 32,
        "version": "0", "reason": "no part on the table", "rgb": None, "depth": None,
    }  # fmt: skip
    return Refusal(**values | changed)


def test_parts_that_could_not_be_judged_are_kept_beside_the_others(inspections: Inspections) -> None:
    folder = inspections.new_folder()
    (folder / "depth.tiff").write_bytes(b"depth")
    kept = inspections.record(folder, refusal(depth="depth.tiff"))
    for number in range(1, 4):
        inspections.record(inspections.new_folder(), refusal(number))
    (first, *rest) = inspections.refused(limit=3)
    assert [row.part for row in (first, *rest)] == ["part_3", "part_2", "part_1"]
    assert first.at == NOON + timedelta(minutes=3)
    (found,) = inspections.refused(before=rest[-1].id)
    assert (found.id, found.reason) == (kept.id, "no part on the table")
    assert inspections.file(found.depth or "").read_bytes() == b"depth"
    assert len(list(inspections.folder.glob("2*/*"))) == 1, "no folders without files"
    assert inspections.count_refused() == 4 and inspections.count() == 0


def test_a_database_from_before_refusals_were_kept_gets_their_table(inspections: Inspections, tmp_path: Path) -> None:
    record(inspections, inspection())
    with inspections._engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE refused")
    other = Inspections(tmp_path, inspections._engine.url.render_as_string(hide_password=False))
    assert other.count() == 1 and other.count_refused() == 0
    other.close()


def test_what_a_person_found_a_part_to_be_is_kept(inspections: Inspections) -> None:
    first, second = record(inspections, inspection(1)), record(inspections, inspection(2))
    assert inspections.mark(first.id, "defective") and inspections.mark(second.id, "good")
    assert [row.truth for row in inspections.page()] == ["good", "defective"] == [one.truth for one in inspections.walk()]
    assert inspections.page()[1].verdict == "good", "the verdict stays"
    assert inspections.mark(first.id, "unknown") and [row.truth for row in inspections.page()] == ["good", None]
    assert not any(inspections.mark(number, "good") for number in (second.id + 1, 0, -1, 1 << 63))


def test_a_database_from_before_parts_were_marked_goes_on_and_back(inspections: Inspections, tmp_path: Path) -> None:
    kept = record(inspections, inspection())
    names = [column.name for column in Inspection.__table__.columns if column.name not in ("id", "truth")]
    with inspections._engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE inspections DROP COLUMN truth")
    other = Inspections(tmp_path, inspections._engine.url.render_as_string(hide_password=False))
    assert other.count() == 1 and other.mark(kept.id, "good")
    with inspections._engine.begin() as connection:  # as a version of before records
        listed = ", ".join(names)
        connection.exec_driver_sql(f"INSERT INTO inspections ({listed}) SELECT {listed} FROM inspections")
    assert [row.truth for row in other.page()] == [None, "good"]
    other.close()


def test_many_threads_record_at_once(inspections: Inspections) -> None:
    with ThreadPoolExecutor(8) as pool:
        kept = list(pool.map(lambda number: record(inspections, inspection(number)), range(40)))
    assert len({row.id for row in kept}) == 40 == inspections.count()


def test_a_row_that_fails_leaves_no_files(inspections: Inspections) -> None:
    with pytest.raises(SQLAlchemyError):
        record(inspections, inspection(part=None))
    assert inspections.count() == 0 and not list(inspections.folder.glob("2*/*"))


def test_a_start_sweeps_what_a_crash_left_and_nothing_else(tmp_path: Path) -> None:
    crashed, idle = Inspections(tmp_path), Inspections(tmp_path)
    for service in (crashed, idle):
        (service.new_folder() / "rgb.png").write_bytes(b"half")
    busy = Inspections(tmp_path)
    half = busy.new_folder()
    for service in (crashed, idle):
        os.utime(service._incoming, (0, 0))
    Inspections(tmp_path).close()
    assert [folder.name for folder in (tmp_path / "incoming").iterdir()] == [busy._incoming.name]
    assert half.is_dir() and record(idle, inspection()).id, "one that only slept goes on"
    for service in (crashed, idle, busy):
        service.close()


@pytest.mark.parametrize("name", ["what?mode=ro", "100%20", "ä #1", "a@b:c"])
def test_the_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    if os.name == "nt" and set(name) & set("?:"):
        pytest.skip("Windows has no such names")
    inspections = Inspections(tmp_path / name)
    inspections.close()
    assert (tmp_path / name / DATABASE_FILE).is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.skipif(os.name == "nt", reason="Windows lets nobody remove a file that is open")
@pytest.mark.parametrize("numbered", [True, False])
def test_nothing_is_recorded_into_a_database_that_is_no_longer_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbered: bool
) -> None:
    if not numbered:  # as some disks of Windows are
        stat = Path.stat

        def unnumbered(path: Path, **words: Any) -> os.stat_result:
            values = list(stat(path, **words))
            return os.stat_result([values[0], 0, *values[2:]])

        monkeypatch.setattr(Path, "stat", unnumbered)
    kept = Inspections(tmp_path)
    record(kept, inspection())
    file, aside = tmp_path / DATABASE_FILE, tmp_path / "aside"
    file.rename(aside)
    told = f"{file}: expected the database that was there at the start, found "
    for ask in (lambda: record(kept, inspection()), kept.check, lambda: kept.mark(1, "good")):
        with pytest.raises(LostDatabaseError, match=re.escape(f"{told}none; start the service again")):
            ask()
    assert [folder.name for folder in tmp_path.glob("*-*-*/*")] == [Path(kept.page()[0].map).parent.name]
    if numbered:
        shutil.copy(aside, file)
        with pytest.raises(LostDatabaseError, match=re.escape(f"{told}another one")):
            kept.check()
        file.unlink()
    aside.rename(file)
    kept.check()
    assert record(kept, inspection()).id == 2
    kept.close()


def test_two_services_share_a_database(inspections: Inspections, tmp_path: Path) -> None:
    other = Inspections(tmp_path, inspections._engine.url.render_as_string(hide_password=False))
    half = inspections.new_folder()
    record(other, inspection())
    other.close()
    assert inspections.count() == 1 and half.is_dir()
    inspections.forget(half)
    assert not half.exists()


def test_services_that_start_together_share_a_new_database(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from das3d.service.inspections import Inspections\n"
        "Inspections(Path(sys.argv[1]))"
    )
    for turn in range(3):
        started = [
            subprocess.Popen([sys.executable, "-c", script, str(tmp_path / str(turn))], stderr=subprocess.PIPE, text=True)
            for _ in range(3)
        ]
        assert [(one.communicate()[1], one.returncode) for one in started] == [("", 0)] * 3


def test_numbers_and_moments_beyond_all_rows_find_none(inspections: Inspections) -> None:
    record(inspections, inspection())
    assert all(inspections.get(number) is None for number in (0, -1, 1 << 63, -(1 << 70)))
    first, last = datetime.min.replace(tzinfo=timezone(timedelta(hours=10))), datetime.max.replace(tzinfo=UTC)
    assert inspections.count(since=first) == 1 and inspections.count(since=last) == 0


def test_files_stay_where_a_commit_may_have_gone_through(inspections: Inspections, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object) -> None:
        raise OperationalError("COMMIT", {}, Exception("connection lost"), connection_invalidated=True)

    monkeypatch.setattr(inspections, "_session", type("Session", (), {"begin": staticmethod(lost)}))
    folder = inspections.new_folder()
    (folder / "map.tiff").write_bytes(b"map")
    with pytest.raises(OperationalError):
        inspections.record(folder, inspection())
    assert [file.read_bytes() for file in inspections.folder.rglob("map.tiff")] == [b"map"]


# ------------------------------------------------------------------------------------------- what is too old goes

RULES = Keep(good=30 * DAY, defective=365 * DAY, refused=90 * DAY, rows=1000 * DAY)


def old(inspections: Inspections, days: float, verdict: str | None = "good", **changed: object) -> Inspection:
    """A part of so many days before noon."""
    at = NOON - timedelta(days=days)
    return record(inspections, inspection(at=at, part=f"{days:g} {verdict}", verdict=verdict, **changed))


def old_refusal(inspections: Inspections, days: float) -> Refusal:
    folder = inspections.new_folder()
    (folder / "rgb.png").write_bytes(b"rgb")
    return inspections.record(folder, refusal(at=NOON - timedelta(days=days), part=f"{days:g}", rgb="rgb.png"))


def folders(inspections: Inspections) -> list[Path]:
    return sorted(inspections.folder.glob("*-*-*/*"))


def test_everything_goes_when_its_time_is_over_and_nothing_before(inspections: Inspections) -> None:
    for verdict, limit in (("good", 30), ("defective", 365), (None, 365)):
        for days in (0, limit - 0.01, limit + 0.01, limit + 5, 1001):
            old(inspections, days, verdict)
    for days in (0, 89.99, 90.01, 1001):
        old_refusal(inspections, days)
    before = folders(inspections)
    told = prune(inspections, RULES, now=NOON, dry_run=True)
    assert folders(inspections) == before and inspections.count() == 15 and inspections.count_refused() == 4
    removed = prune(inspections, RULES, now=NOON)
    assert told == removed
    assert (removed.good, removed.defective, removed.refused, removed.orphans) == (3, 6, 2, 0)
    assert removed.rows == 4 and removed.size == 9 * 6 + 2 * 3
    rows = inspections.page()
    assert {row.part for row in rows if row.map} == {
        "0 good", "29.99 good", "0 defective", "364.99 defective", "0 None", "364.99 None"
    }  # fmt: skip
    assert len(rows) == 12 and all(bool(row.map) == (row.rgb is not None) for row in rows)
    assert {row.part: row.rgb is not None for row in inspections.refused()} == {"0": True, "89.99": True, "90.01": False}
    named = {name for row in [*rows, *inspections.refused()] if (name := getattr(row, "map", None) or row.rgb)}
    assert folders(inspections) == sorted(inspections.file(name).parent for name in named)
    assert len(list(inspections.folder.glob("*-*-*"))) == len({folder.parent for folder in folders(inspections)})
    again = prune(inspections, RULES, now=NOON)
    assert (again.good, again.defective, again.refused, again.rows, again.size) == (0,) * 5


def test_no_files_are_kept_longer_than_their_row_and_go_before_it(
    inspections: Inspections, monkeypatch: pytest.MonkeyPatch
) -> None:
    old(inspections, 11, "defective")
    old_refusal(inspections, 11)
    kept = old(inspections, 9, "defective")
    remove = inspections.remove

    def watched(*words: Any) -> int:
        assert [folder.parent.name for folder in folders(inspections)] == ["2026-02-20"]
        return remove(*words)

    monkeypatch.setattr(inspections, "remove", watched)
    assert prune(inspections, Keep(rows=10 * DAY), now=NOON).rows == 2
    assert [row.id for row in inspections.page()] == [kept.id] and inspections.count_refused() == 0


def test_folders_without_a_row_go_after_the_longest_time(inspections: Inspections) -> None:
    day = inspections.folder / f"{NOON - timedelta(days=400):%Y-%m-%d}"
    young = inspections.folder / f"{NOON - timedelta(days=300):%Y-%m-%d}"
    for folder in (day, young, day.with_name("notes")):
        (folder / ("ab" * 16)).mkdir(parents=True)
        (folder / ("ab" * 16) / "map.tiff").write_bytes(b"map")
    (day / "notes").mkdir()
    told = prune(inspections, RULES, now=NOON, dry_run=True)
    assert told == prune(inspections, RULES, now=NOON) and (told.orphans, told.size) == (1, 3)
    assert sorted(path.name for path in (*day.iterdir(), *young.iterdir())) == ["ab" * 16, "notes"]
    assert (day.with_name("notes") / ("ab" * 16)).is_dir()
    (day / "notes").rmdir()
    prune(inspections, Keep(good=DAY, defective=DAY), now=NOON)
    assert young.is_dir() and not day.exists(), "refused parts are kept for ever"
    assert prune(inspections, Keep(rows=DAY), now=NOON).orphans == 1 and not young.exists()


def test_files_that_are_not_the_services_own_are_never_removed(inspections: Inspections, tmp_path: Path) -> None:
    mine = tmp_path / "2026-01-01" / "mine" / "map.tiff"
    other = tmp_path / "2026-01-02" / ("ab" * 16) / "map.tiff"
    for file in (mine, other, tmp_path / "map.tiff"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"map")
    another_day = other.relative_to(tmp_path).as_posix()
    names = ["map.tiff", "2026-01-01/mine/map.tiff", "2026-01-01/../map.tiff", str(other), another_day]
    with inspections._session.begin() as session:
        at = datetime(2026, 1, 1, tzinfo=UTC)
        session.add_all(inspection(at=at, map=name, rgb=None, verdict="good") for name in names)
    prune(inspections, Keep(good=DAY), now=NOON)
    assert not any(row.map for row in inspections.page())
    assert mine.is_file() and (tmp_path / "map.tiff").is_file() and other.is_file()


def test_rows_are_gone_through_a_page_at_a_time(inspections: Inspections, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("das3d.service.inspections.PAGE", 3)
    for number in range(10):
        old(inspections, 40 if number < 7 else 41)  # seven at one moment
    pages = list(inspections.old(Inspection, None, NOON))
    assert [len(page) for page in pages] == [3, 3, 3, 1] and len({id for page in pages for id, _ in page}) == 10
    removed = prune(inspections, Keep(good=DAY, rows=41 * DAY - 1), now=NOON)
    assert (removed.good, removed.rows, inspections.count()) == (10, 3, 7)


def test_what_was_cut_short_is_done_the_next_time(inspections: Inspections, monkeypatch: pytest.MonkeyPatch) -> None:
    old(inspections, 40)
    with monkeypatch.context() as patch:
        patch.setattr(inspections, "forget_files", None)  # as if the database went away
        with pytest.raises(TypeError):
            prune(inspections, RULES, now=NOON)
    assert not folders(inspections) and inspections.page()[0].map, "the files go first"
    prune(inspections, RULES, now=NOON)
    assert not inspections.page()[0].map and not list(inspections.folder.glob("*-*-*"))
    old(inspections, 40)
    assert prune(inspections, RULES, now=NOON, stopping=lambda: True).good == 0


def test_what_cannot_be_removed_keeps_its_row(inspections: Inspections, monkeypatch: pytest.MonkeyPatch) -> None:
    old(inspections, 1001)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        removed = prune(inspections, RULES, now=NOON)
    assert [removed.stuck] == folders(inspections) and (removed.good, removed.rows) == (0, 0)
    assert inspections.page()[0].map
    assert prune(inspections, RULES, now=NOON).rows == 1 and not folders(inspections)


def test_several_prune_while_others_write(inspections: Inspections, tmp_path: Path) -> None:
    other = Inspections(tmp_path, inspections._engine.url.render_as_string(hide_password=False))
    for number in range(60):
        old(inspections, 1001 if number % 2 else 40, rgb=None)
    with ThreadPoolExecutor(3) as pool:
        pruning = [pool.submit(prune, service, RULES, now=NOON) for service in (inspections, other)]
        writing = pool.submit(lambda: [old(inspections, 0, rgb=None) for _ in range(20)])
        assert sum(one.result().rows for one in pruning) == 30
        assert all(inspections.file(row.map).is_file() for row in writing.result())
    assert sorted(bool(row.map) for row in inspections.page(limit=100)) == [False] * 30 + [True] * 20
    assert len(folders(inspections)) == 20
    other.close()


def test_a_part_lies_in_the_folder_of_its_day_wherever_its_clock_stands(inspections: Inspections) -> None:
    kept = record(inspections, inspection(at=NOON.astimezone(timezone(timedelta(hours=14)))))
    assert kept.map.startswith("2026-03-01/")


def test_a_removal_that_fails_is_told_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("das3d.service.retention.AGAIN", 0.01)
    caplog.set_level("INFO")
    kept, tries, done = Inspections(tmp_path), [0], threading.Event()

    def failing(*words: Any, **options: Any) -> Any:
        tries[0] += 1
        if tries[0] < 3:
            raise OSError("the disk is away")
        removed = prune(*words, **options)
        done.set()
        return removed

    old(kept, 40)
    monkeypatch.setattr("das3d.service.retention.prune", failing)
    retention = Retention(kept, RULES)
    retention.start()
    assert done.wait(60)
    retention.close()
    assert not kept.page()[0].map and caplog.text.count("could not be removed, tried again in") == 2
    assert "removed as too old: the files of 1 good, 0 defective and 0 refused parts, 0.0 MB, and 0 rows" in caplog.text
    idle = Retention(kept, Keep())
    idle.start()
    idle.close()
    assert tries == [3], "a service that keeps all for ever looks at nothing"
    kept.close()


def test_prune_is_a_command(tmp_path: Path) -> None:
    kept = Inspections(tmp_path)
    old(kept, 40)
    told = das3d("prune", tmp_path, "--keep-good", "30d", "--dry-run")
    parts = "the files of 1 good, 0 defective and 0 refused parts, 0.0 MB, and 0 rows"
    assert (told.exit_code, told.output) == (0, f"would remove {parts}\n") and folders(kept)
    assert das3d("prune", tmp_path, "--keep-good", "30d").output == f"removed {parts}\n" and not folders(kept)
    old_refusal(kept, 800)
    assert "and 1 refused parts" in das3d("prune", tmp_path, "--keep-defective", "2y").output, "as defective ones"
    assert das3d("prune", tmp_path, "--keep-rows", "1y").output.endswith("and 1 row\n")
    kept.close()
    for words, complaint in [
        (["--keep-good", "23h"], "--keep-good: expected a day or more, such as 30d, found 82800 s"),
        (["--keep-rows", "30"], "--keep-rows: expected a time such as 30d or 1y, found '30'"),
        ([], "expected at least one of --keep-good, --keep-defective, --keep-refused and --keep-rows"),
    ]:
        told = das3d("prune", tmp_path, *words)
        assert (told.exit_code, told.output) == (1, f"error: {complaint}\n")
    told = das3d("prune", tmp_path / "typo", "--keep-good", "1y")
    assert told.exit_code == 1 and "expected the folder of a service" in told.output and not (tmp_path / "typo").exists()


def test_tables_of_another_version_are_refused(inspections: Inspections, tmp_path: Path) -> None:
    with inspections._engine.begin() as connection:
        connection.exec_driver_sql("UPDATE das3d_schema SET version = 99")
    url = inspections._engine.url.render_as_string(hide_password=False)
    with pytest.raises(SettingsError, match="expected tables of version 1, found version 99"):
        Inspections(tmp_path, url)


def test_a_driver_that_is_not_installed_is_told_with_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("psycopg", "psycopg2"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingPackageError, match=r'needs psycopg, .* pip install "das3d\[postgres\]"'):
        Inspections(tmp_path, "postgresql://me:secret@127.0.0.1:1/name")
    with pytest.raises(SettingsError, match="expected a driver that is installed, found psycopg2, which is not"):
        Inspections(tmp_path, "postgresql+psycopg2://me:secret@127.0.0.1:1/name")


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("my database", "expected a URL such as postgresql://"),
        ("mysql://me:secret@host/name", "expected SQLite or PostgreSQL, found mysql"),
        ("postgresql://me:secret@127.0.0.1:1/name", r"me:\*\*\*@127.0.0.1:1/name: expected one that can be used"),
        ("sqlite:////nowhere/at/all.sqlite", "expected one that can be used, found unable to open database file"),
    ],
)
def test_a_database_that_cannot_be_used_is_told_without_its_password(tmp_path: Path, url: str, told: str) -> None:
    with pytest.raises(SettingsError, match=told) as caught:
        Inspections(tmp_path, url)
    assert "secret" not in str(caught.value)
