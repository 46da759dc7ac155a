"""The record of inspections, on SQLite and, where one is installed, on a real PostgreSQL."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from das3d.errors import MissingPackageError, SettingsError
from das3d.service.inspections import DATABASE_FILE, Inspection, Inspections, Refusal

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
        with record._engine.begin() as connection:
            connection.exec_driver_sql("DROP TABLE inspections; DROP TABLE refused; DROP TABLE das3d_schema")
    record.close()


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
    with pytest.raises(KeyError):
        inspections.page(colour="red")


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
