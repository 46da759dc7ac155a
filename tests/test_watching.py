"""Watching a folder: when a part is taken, what is recorded, what is waited for, and how it ends."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tiny import das3d

from das3d import watching
from das3d.demo import CATEGORY, KINDS
from das3d.detector import Detector, load, model_hash
from das3d.errors import DataError
from das3d.parts import Part
from das3d.prediction import predict_folder
from das3d.streaming import Inspected
from das3d.watching import COLUMNS, LONG, SLICE, watch

Runs = Callable[..., Path]
SETTLE = 0.3  # seconds
PATIENCE = 60.0  # seconds until a test gives up; machines that test are busy


@pytest.fixture(scope="module")
def detector(tiny_run: Runs) -> Detector:
    return load(tiny_run(), "cpu")


@pytest.fixture
def drop(tmp_path: Path) -> Path:
    folder = tmp_path / "drop"
    folder.mkdir()
    return folder


@pytest.fixture
def part(tiny_data: Path) -> Callable[[Path, str], tuple[Path, Path]]:
    """Puts the files of a part into a folder under a name."""
    kinds = iter(sorted(KINDS))

    def put(folder: Path, name: str) -> tuple[Path, Path]:
        kind = tiny_data / CATEGORY / "test" / next(kinds)
        rgb, depth = folder / f"{name}_rgb.png", folder / f"{name}_depth.tiff"
        shutil.copy(kind / "rgb" / "000.png", rgb)
        shutil.copy(kind / "xyz" / "000.tiff", depth)
        return rgb, depth

    return put


Put = Callable[[Path, str], tuple[Path, Path]]


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "scores.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def once(detector: Detector, drop: Path, out: Path, **options: Any) -> list[Inspected]:
    return list(watch(detector, drop, out, model="a model", settle=SETTLE, once=True, **options))


def until(happened: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


class Clock:
    """In the place of `time`: it goes on while the watcher rests, and something happens meanwhile."""

    def __init__(self, patch: pytest.MonkeyPatch, happens: Callable[[float], None]) -> None:
        self.now, self.happens = 0.0, happens
        patch.setattr(watching, "time", self)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.happens(self.now)


@contextmanager
def watched(detector: Detector, drop: Path, out: Path, settle: float = SETTLE) -> Iterator[list[Inspected]]:
    """What is judged while the block runs."""
    found: list[Inspected] = []
    stop = threading.Event()
    results = watch(detector, drop, out, model="a model", settle=settle, stopping=stop.is_set)
    thread = threading.Thread(target=lambda: [found.append(result) for result in results])
    thread.start()
    try:
        until((out / "scores.csv").is_file)
        yield found
    finally:
        stop.set()
        thread.join(PATIENCE)
        assert not thread.is_alive()


# ------------------------------------------------------------------------------------ what is recorded


def test_what_is_there_is_judged_as_by_predict(tiny_run: Runs, drop: Path, tmp_path: Path, part: Put) -> None:
    for name in ("10", "9"):
        part(drop, name)
    out = tmp_path / "out"
    result = das3d("watch", tiny_run(), "--data", drop, "--out", out, "--once", "--settle", "0.3s", "--device", "cpu")
    assert (result.exit_code, result.stderr) == (0, "")
    expected = das3d("predict", tiny_run(), "--data", drop, "--out", tmp_path / "predicted", "--device", "cpu")
    lines = result.stdout.splitlines()
    assert lines[:-1] == [line for line in expected.stdout.splitlines() if line.startswith(("9  ", "10  ", "  "))]
    told, rows = rows_of(tmp_path / "predicted"), rows_of(out)
    assert [row["id"] for row in rows] == ["9", "10"]
    for row, other in zip(rows, told, strict=True):
        assert tuple(row) == COLUMNS
        assert float(row["score"]) == pytest.approx(float(other["score"]), abs=1e-5)
        assert {**row, "score": ""}.items() >= {**other, "score": ""}.items()
        assert row["model"] == model_hash(tiny_run()) and len(row["files"]) == 16
        judged = datetime.fromisoformat(row["time"])
        assert row["time"].endswith("Z") and 0 <= (datetime.now(UTC) - judged).total_seconds() < PATIENCE
        assert {f"{row['id']}.tiff", f"{row['id']}.png"} <= {file.name for file in out.iterdir()}
    defective = sum(row["verdict"] == "defective" for row in rows)
    written = f"scores.csv, regions.jsonl, maps and overlays in {out}; computed by PyTorch, fp32, CPU"
    assert lines[-1] == f"2 parts, {defective} defective; {written}"


def test_regions_are_a_line_a_part(tiny_run: Runs, drop: Path, tmp_path: Path, part: Put) -> None:
    strict = load(tiny_run(), "cpu")
    assert strict.threshold is not None
    strict.threshold = replace(strict.threshold, value=0.01)  # so that something is found by so little training
    for name in ("a", "b", "c"):
        part(drop, name)
    once(strict, drop, tmp_path / "out")
    predict_folder(strict, drop, tmp_path / "predicted")
    expected = json.loads((tmp_path / "predicted" / "regions.json").read_text())["parts"]
    lines = (tmp_path / "out" / "regions.jsonl").read_text().splitlines()
    for one, other in zip(map(json.loads, lines), expected, strict=True):
        assert (one["id"], len(one["regions"])) == (other["id"], len(other["regions"])) and one["regions"]
        assert one.keys() == other.keys() and one["regions"][0].keys() == other["regions"][0].keys()


def test_parts_are_judged_once_and_again_when_their_files_change(
    detector: Detector, drop: Path, tmp_path: Path, part: Put
) -> None:
    out = tmp_path / "out"
    rgb, _ = part(drop, "a")
    assert [result.part.id for result in once(detector, drop, out)] == ["a"]
    assert once(detector, drop, out) == [], "told by what stands in scores.csv"
    part(drop, "b")
    assert [result.part.id for result in once(detector, drop, out)] == ["b"]
    os.utime(rgb, (1, 1))
    assert [result.part.id for result in once(detector, drop, out)] == ["a"]
    assert [row["id"] for row in rows_of(out)] == ["a", "b", "a"]


def test_a_row_that_was_cut_short_is_written_again(detector: Detector, drop: Path, tmp_path: Path, part: Put) -> None:
    out = tmp_path / "out"
    part(drop, "a")
    part(drop, "b")
    once(detector, drop, out)
    whole = rows_of(out)
    content = (out / "scores.csv").read_bytes()
    for cut in (1, 20, 70):
        (out / "scores.csv").write_bytes(content[:-cut])
        assert [result.part.id for result in once(detector, drop, out)] == ["b"]
        assert [row["files"] for row in rows_of(out)] == [row["files"] for row in whole]
    (out / "scores.csv").write_bytes(b"id,pa")
    assert len(once(detector, drop, out)) == 2 and len(rows_of(out)) == 2


def test_predict_and_report_readers_can_read_the_table(detector: Detector, drop: Path, tmp_path: Path, part: Put) -> None:
    from das3d.report.evaluated import row_of

    part(drop, "a")
    once(detector, drop, tmp_path / "out")
    (row,) = rows_of(tmp_path / "out")
    assert row_of(row, 0.5, ()).id == "a"


def test_a_part_that_cannot_be_judged_has_its_error_and_stops_nothing(
    tiny_run: Runs, drop: Path, tmp_path: Path, part: Put
) -> None:
    for name in ("a", "b", "c"):
        part(drop, name)
    (drop / "b_rgb.png").write_bytes(b"")
    words = ("watch", tiny_run(), "--data", drop, "--out", tmp_path / "out", "--once", "--settle", "0.3s")
    result = das3d(*words)
    error = f"{drop / 'b_rgb.png'}: expected an RGB image, found an empty file"
    assert (result.exit_code, result.stderr) == (0, f"warning: not judged: {error}\n")
    assert [(row["id"], row["error"]) for row in rows_of(tmp_path / "out")] == [("a", ""), ("b", error), ("c", "")]
    assert result.stdout.splitlines()[-1].startswith("3 parts, ") and ", 1 not judged; " in result.stdout
    assert das3d(*words).stdout.startswith("0 parts, 0 defective; "), "nor is it tried again as it is"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no file can be called so")
def test_a_name_that_is_no_utf8_is_an_error_of_that_part(detector: Detector, drop: Path, tmp_path: Path, part: Put) -> None:
    part(drop, "gr\udc81n")
    part(drop, "z")
    first, second = once(detector, drop, tmp_path / "out")
    assert "expected a name in UTF-8" in first.error and not second.error
    assert [row["id"] for row in rows_of(tmp_path / "out")] == ["gr\\udc81n", "z"]
    assert once(detector, drop, tmp_path / "out") == []


# ------------------------------------------------------------------------------------ when a part is taken


def test_a_copy_under_way_is_waited_for(
    detector: Detector, drop: Path, tmp_path: Path, part: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle = 1.0
    rgb, depth = part(tmp_path, "a")
    shutil.copy(depth, drop)
    whole, target = rgb.read_bytes(), drop / rgb.name
    half = whole[: len(whole) // 2]
    target.write_bytes(bytes(len(whole)))  # its full length from the start, and zeros inside

    def copy(now: float) -> None:  # chunks come faster than it could seem to stand still
        if now < 3 * settle + SLICE:
            target.write_bytes(whole if now >= 3 * settle else half.ljust(len(whole), b"\0"))
            os.utime(target, (now, now))

    clock = Clock(monkeypatch, copy)
    results = watch(detector, drop, tmp_path / "out", model="", settle=settle, stopping=lambda: clock.now > 20 * settle)
    assert not next(results).error and 4 * settle <= clock.now < 5 * settle
    assert len(rows_of(tmp_path / "out")) == 1 and list(results) == []


def test_foreign_names_are_waited_for(detector: Detector, drop: Path, tmp_path: Path, part: Put) -> None:
    rgb, depth = part(tmp_path, "a")
    with watched(detector, drop, tmp_path / "out") as found:
        part(drop, "b")
        shutil.copy(depth, drop)
        (drop / "a_rgb.png.part").write_bytes(rgb.read_bytes()[:100])
        (drop / "of the camera.xyz").write_text("?")
        until(lambda: found)
        time.sleep(2 * SETTLE)
        assert [result.part.id for result in found] == ["b"]
        shutil.copy(rgb, drop)
        until(lambda: len(found) == 2)
    assert not any(result.error for result in found)


def test_folders_for_members_pair_as_in_own_data(detector: Detector, drop: Path, tmp_path: Path, part: Put) -> None:
    rgb, depth = part(tmp_path, "a")
    for file, role in ((rgb, "rgb"), (depth, "depth")):
        (drop / role).mkdir()
        shutil.copy(file, drop / role / f"0005{file.suffix}")
    (drop / "rgb" / "0006.png").write_bytes(rgb.read_bytes())
    assert [(result.part.id, result.error) for result in once(detector, drop, tmp_path / "out")] == [("0005", "")]


def test_a_part_with_a_member_twice_is_not_guessed(
    detector: Detector, drop: Path, tmp_path: Path, part: Put, capsys: pytest.CaptureFixture[str]
) -> None:
    rgb, _ = part(drop, "a")
    part(drop, "b")
    shutil.copy(rgb, drop / "a_colour.png")
    assert [result.part.id for result in once(detector, drop, tmp_path / "out")] == ["b"]


def test_one_member_is_enough_for_a_model_that_needs_one(tiny_run: Runs, drop: Path, tmp_path: Path, part: Put) -> None:
    single = load(tiny_run("depth"), "cpu")
    rgb, _ = part(drop, "a")
    rgb.rename(tmp_path / rgb.name)
    assert [result.error for result in once(single, drop, tmp_path / "out")] == [""]
    shutil.move(tmp_path / rgb.name, rgb)
    assert once(single, drop, tmp_path / "out") == [], "what comes later and is not needed changes nothing"


def test_once_says_what_it_leaves(
    detector: Detector, drop: Path, tmp_path: Path, part: Put, capsys: pytest.CaptureFixture[str]
) -> None:
    rgb, _ = part(drop, "a")
    rgb.unlink()
    assert once(detector, drop, tmp_path / "out") == []
    assert capsys.readouterr() == ("1 part not complete yet, left for the next time\n", "")


# ------------------------------------------------------------------------------------ what is told while it waits


def told_within(capsys: pytest.CaptureFixture[str], seconds: float) -> str:
    """What comes on standard error, from the first word on for so long."""
    told: list[str] = []
    until(lambda: told.append(capsys.readouterr().err) or "".join(told))
    time.sleep(seconds)
    return "".join([*told, capsys.readouterr().err])


def test_a_member_that_never_comes_is_told_once(
    detector: Detector,
    drop: Path,
    tmp_path: Path,
    part: Put,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, depth = part(drop, "a")
    depth.unlink()
    for name in ("one.bin", "two.bin"):
        (drop / name).write_text("of the camera")
    told: list[tuple[float, str]] = []
    clock = Clock(monkeypatch, lambda now: told.extend((now, line) for line in capsys.readouterr().err.splitlines()))
    assert not list(watch(detector, drop, tmp_path / "out", model="", settle=4, stopping=lambda: clock.now > 3 * LONG))
    assert all(LONG <= now < LONG + 2 for now, _ in told), "until then it may still come"
    assert sorted(line for _, line in told) == sorted(
        [
            f"warning: waiting: {drop / 'a_rgb.png'}: expected a depth file of the same name, found none",
            f"warning: waiting: {drop / 'one.bin'}: expected NAME_rgb, NAME_depth and NAME_mask, or folders rgb, depth and "
            "mask, found a name that tells no member",
        ]
    ), "of files that say nothing, one stands for all"


def test_a_share_that_is_away_is_told_once_and_waited_for(
    detector: Detector, drop: Path, tmp_path: Path, part: Put, capsys: pytest.CaptureFixture[str]
) -> None:
    out, away = tmp_path / "out", tmp_path / "away"
    with watched(detector, drop, out) as found:
        part(drop, "a")
        until(lambda: found)
        drop.rename(away)
        told = told_within(capsys, 1.0)
        part(away, "b")
        away.rename(drop)
        until(lambda: len(found) == 2)
    assert told == (f"warning: {drop}: expected a readable folder, found No such file or directory; waiting for it\n")
    assert capsys.readouterr().out.endswith(f"{drop}: back\n")
    assert [row["id"] for row in rows_of(out)] == ["a", "b"] and not any(row["error"] for row in rows_of(out))


def test_a_share_may_be_away_in_any_way(
    detector: Detector,
    drop: Path,
    tmp_path: Path,
    part: Put,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    part(drop, "a")
    list_parts, calls = watching.unlabelled, iter(range(1000))

    def stale(*arguments: Any) -> list[Part]:
        if next(calls) in (1, 2):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return list_parts(*arguments)

    monkeypatch.setattr(watching, "unlabelled", stale)
    with watched(detector, drop, tmp_path / "out") as found:
        until(lambda: found)
    told = capsys.readouterr()
    assert told.err == f"warning: {drop}: expected a readable folder, found {os.strerror(errno.ESTALE)}; waiting for it\n"
    assert f"{drop}: back\n" in told.out and not found[0].error


def test_a_part_whose_files_go_while_it_is_judged_gets_no_error(
    detector: Detector, drop: Path, tmp_path: Path, part: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    rgb, _ = part(drop, "a")
    judge = watching.inspect_parts

    def gone(*arguments: Any) -> Iterator[Inspected]:
        rgb.unlink(missing_ok=True)
        return judge(*arguments)

    monkeypatch.setattr(watching, "inspect_parts", gone)
    assert once(detector, drop, tmp_path / "out") == [] and rows_of(tmp_path / "out") == []


# ------------------------------------------------------------------------------------ how it ends


@pytest.mark.skipif(os.name == "nt", reason="there, no process is asked to end")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_asks_it_to_end_gets_a_summary(
    tiny_run: Runs, drop: Path, tmp_path: Path, part: Put, number: signal.Signals
) -> None:
    part(drop, "a")
    out = tmp_path / "out"
    words = ["watch", tiny_run(), "--data", drop, "--out", out, "--settle", "0.3s", "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-m", "das3d", *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == f"watching {drop}; 0 parts judged before\n"
        assert process.stdout.readline().startswith("a  score 0.")
        process.send_signal(number)
        rest, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert (process.returncode, errors) == (0, "")
    assert rest.splitlines()[-1].startswith("1 part, ") and rest.splitlines()[-1].endswith("computed by PyTorch, fp32, CPU")
    assert [row["id"] for row in rows_of(out)] == ["a"]


def test_it_ends_after_the_part_at_hand(detector: Detector, drop: Path, tmp_path: Path, part: Put) -> None:
    for name in ("a", "b", "c"):
        part(drop, name)
    found: list[Inspected] = []
    for result in watch(detector, drop, tmp_path / "out", model="", settle=SETTLE, stopping=lambda: bool(found)):
        found.append(result)
    assert [row["id"] for row in rows_of(tmp_path / "out")] == ["a"]


# ------------------------------------------------------------------------------------ what is refused


def test_what_cannot_be_watched_is_refused(tiny_run: Runs, tiny_data: Path, drop: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "scores.csv").write_text("id,path,label,defect,score,false_alarm_probability,verdict,error\n")
    (drop / "done" / "good").mkdir(parents=True)
    outside = "expected a folder outside the data to write to (--out)"
    category = tiny_data / CATEGORY
    cases = {
        (tmp_path / "none", other): f"{tmp_path / 'none'}: expected a folder, found nothing there",
        (other / "scores.csv", drop): f"{other / 'scores.csv'}: expected a folder, found a file",
        (drop, drop): f"{drop}: {outside}, found one in {drop}",
        (drop, drop / "out"): f"{drop / 'out'}: {outside}, found one in {drop}",
        (category, tmp_path / "out"): f"{category}: expected a folder that parts are dropped into (",
        (drop, other): f"{other / 'scores.csv'}: expected scores that das3d watch wrote, found others; give another folder",
    }
    for (data, out), message in cases.items():
        result = das3d("watch", tiny_run(), "--data", data, "--out", out, "--once")
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith(f"error: {message}") and result.stderr.count("\n") == 1, result.stderr
    result = das3d("watch", tiny_run(), "--data", drop, "--out", tmp_path / "out", "--settle", "long")
    assert result.stderr == "error: --settle: expected a time such as 90s, 20m or 1h, found 'long'\n"
    assert not (tmp_path / "out").exists()


def test_a_declaration_that_cannot_be_used_is_refused(detector: Detector, drop: Path, tmp_path: Path) -> None:
    (drop / "dataset.yaml").write_text("depth_unit: inch")
    with pytest.raises(DataError, match=r"dataset\.yaml: depth unit: expected one of m, cm, mm, um"):
        once(detector, drop, tmp_path / "out")
