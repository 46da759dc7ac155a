"""Watching a folder: when a part is taken, what is recorded, what is waited for, and how it ends."""

from __future__ import annotations

import csv
import errno
import json
import os
import platform
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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import PROJECT
from doc_blocks import blocks_of
from helpers import scores_of, wait_for
from tiny import das3d

from das3d import watching
from das3d.demo import CATEGORY, KINDS
from das3d.detector import Detector, Prediction, load, model_hash
from das3d.errors import DataError, ModelError
from das3d.parts import UNKNOWN, Part
from das3d.prediction import predict_folder
from das3d.preparation import PreparedScan
from das3d.printing import print_watched
from das3d.regions import Region
from das3d.streaming import Inspected
from das3d.threshold import threshold_from
from das3d.watching import COLUMNS, LONG, SLICE, TRIES, Growing, Record, watch
from das3d.window import Window

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


def once(detector: Detector, drop: Path, out: Path, **options: Any) -> list[Inspected]:
    return list(watch(detector, drop, out, model="a model", settle=SETTLE, once=True, **options))


until = partial(wait_for, seconds=PATIENCE)


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
    told, rows = scores_of(tmp_path / "predicted"), scores_of(out)
    assert [row["id"] for row in rows] == ["9", "10"]
    for row, other in zip(rows, told, strict=True):
        assert tuple(row) == COLUMNS
        assert float(row["score"]) == pytest.approx(float(other["score"]), abs=1e-5)
        assert {**row, "score": ""}.items() >= {**other, "score": ""}.items()
        assert row["model"] == model_hash(tiny_run()) and len(row["files"]) == 16
        judged = datetime.fromisoformat(row["time"])
        assert row["time"].endswith("Z") and 0 <= (datetime.now(UTC) - judged).total_seconds() < PATIENCE
        name = f"{row['time'][:10]}/{row['id']}_{row['files']}"  # a test at midnight may fail
        assert (row["map"], row["overlay"]) == (f"{name}.tiff", f"{name}.png")
        same = tmp_path / "predicted" / f"{row['id']}.png"
        assert (out / row["overlay"]).read_bytes() == same.read_bytes() and (out / row["map"]).is_file()
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
        assert one.keys() == {*other, "files"} and one["regions"][0].keys() == other["regions"][0].keys()
    assert [json.loads(line)["files"] for line in lines] == [row["files"] for row in scores_of(tmp_path / "out")]


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
    assert [row["id"] for row in scores_of(out)] == ["a", "b", "a"]


def test_a_name_that_comes_again_takes_nobodys_place(detector: Detector, drop: Path, tmp_path: Path, part: Put) -> None:
    out = tmp_path / "out"
    for _ in range(3):
        part(drop, "0001")
        assert len(once(detector, drop, out)) == 1
    rows = scores_of(out)
    files = {out / row[column] for row in rows for column in ("map", "overlay")}
    assert len(files) == 6 and all(file.is_file() for file in files)
    assert len({(out / row["overlay"]).read_bytes() for row in rows}) == 3, "each shows its own part"


def test_what_was_taken_away_is_forgotten_in_time_and_what_lies_there_is_not(
    detector: Detector, drop: Path, tmp_path: Path, part: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "RECENT", 2)
    out = tmp_path / "out"
    rgb, depth = part(drop, "a")
    once(detector, drop, out)
    (row,) = scores_of(out)
    with (out / "scores.csv").open("a", newline="") as file:
        csv.DictWriter(file, COLUMNS).writerows({**row, "files": f"{number:016}"} for number in range(1000))
    record = Record(out, "a model", {row["files"]})
    assert record.judged == 1001 and len(record.seen) <= 2 * (2 + 1), "however long the table"
    assert {row["files"], f"{998:016}", f"{999:016}"} <= record.seen.keys()
    assert once(detector, drop, out) == [], "though it was judged a thousand parts ago"
    for file in (rgb, depth):
        file.rename(tmp_path / file.name)
    assert row["files"] not in Record(out, "a model", set()).seen


def test_a_row_that_was_cut_short_is_written_again(detector: Detector, drop: Path, tmp_path: Path, part: Put) -> None:
    out = tmp_path / "out"
    part(drop, "a")
    part(drop, "b")
    once(detector, drop, out)
    whole = scores_of(out)
    content = (out / "scores.csv").read_bytes()
    for cut in (1, 20, 70):
        (out / "scores.csv").write_bytes(content[:-cut])
        assert [result.part.id for result in once(detector, drop, out)] == ["b"]
        assert [row["files"] for row in scores_of(out)] == [row["files"] for row in whole]
    (out / "scores.csv").write_bytes(b"id,pa")
    assert len(once(detector, drop, out)) == 2 and len(scores_of(out)) == 2


def test_predict_and_report_readers_can_read_the_table(detector: Detector, drop: Path, tmp_path: Path, part: Put) -> None:
    from das3d.report.evaluated import row_of

    part(drop, "a")
    once(detector, drop, tmp_path / "out")
    (row,) = scores_of(tmp_path / "out")
    assert row_of(row, None, ()).id == "a"


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
    assert [(row["id"], row["error"]) for row in scores_of(tmp_path / "out")] == [("a", ""), ("b", error), ("c", "")]
    assert result.stdout.splitlines()[-1].startswith("3 parts, ") and ", 1 not judged; " in result.stdout
    assert das3d(*words).stdout.startswith("0 parts, 0 defective; "), "nor is it tried again as it is"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no file can be called so")
def test_a_name_that_is_no_utf8_is_an_error_of_that_part(detector: Detector, drop: Path, tmp_path: Path, part: Put) -> None:
    part(drop, "gr\udc81n")
    part(drop, "z")
    first, second = once(detector, drop, tmp_path / "out")
    assert "expected a name in UTF-8" in first.error and not second.error
    assert [row["id"] for row in scores_of(tmp_path / "out")] == ["gr\\udc81n", "z"]
    assert once(detector, drop, tmp_path / "out") == []


def test_a_name_with_a_line_break_is_an_error_of_that_part(
    detector: Detector, drop: Path, tmp_path: Path, part: Put
) -> None:
    part(drop, "0005\r")
    part(drop, "z")
    first, second = once(detector, drop, tmp_path / "out")
    assert "0005\\r_rgb.png: expected a name without line breaks, found \\r" in first.error and not second.error
    assert [row["id"] for row in scores_of(tmp_path / "out")] == ["0005\\r", "z"], "and the table is whole"
    assert once(detector, drop, tmp_path / "out") == []


@pytest.mark.parametrize("letters", [67, 80])
def test_a_long_name_stops_nothing(detector: Detector, drop: Path, tmp_path: Path, part: Put, letters: int) -> None:
    names = ["a", "\u4ef6" * letters]
    for name in names:
        part(drop, name)
    assert [(result.part.id, result.error) for result in once(detector, drop, tmp_path / "out")] == [(n, "") for n in names]
    rows = scores_of(tmp_path / "out")
    assert [row["id"] for row in rows] == names
    assert all((tmp_path / "out" / row[file]).is_file() for row in rows for file in ("map", "overlay"))


def test_two_never_write_into_one_folder(detector: Detector, drop: Path, tmp_path: Path, part: Put) -> None:
    out = tmp_path / "out"
    part(drop, "a")
    with watched(detector, drop, out) as found:
        until(lambda: found)
        before = (out / "scores.csv").read_bytes()
        with pytest.raises(DataError) as caught:
            once(detector, drop, out)
        assert str(caught.value) == (
            f"{out}: expected a folder that no other das3d watch writes to (--out), found process {os.getpid()} on "
            f"{platform.node()} in it"
        )
        assert (out / "scores.csv").read_bytes() == before
    assert once(detector, drop, out) == [], "it is free again"


def test_a_table_that_another_program_holds_stops_nothing(
    detector: Detector,
    drop: Path,
    tmp_path: Path,
    part: Put,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, held = tmp_path / "out", threading.Event()
    append = Growing._append

    def refused(self: Growing, path: Path, content: bytes) -> None:
        if held.is_set() and path.name == "scores.csv":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        append(self, path, content)

    monkeypatch.setattr(Growing, "_append", refused)
    with watched(detector, drop, out) as found:
        held.set()
        for count, name in enumerate("ab", 1):
            part(drop, name)
            until(lambda count=count: len(found) == count)
    assert scores_of(out) == []
    with (out / "scores_2.csv").open(newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == ["a", "b"], "a table of its own"
    told = (
        f"warning: {out / 'scores.csv'} cannot be written, as where it is open in another program; until it can, what is "
    )
    assert capsys.readouterr().err == f"{told}new is in {out / 'scores_2.csv'}\n", "once"
    with watched(detector, drop, out) as found:  # started again, while it is still held
        part(drop, "c")
        until(lambda: found)
        held.clear()
        until(lambda: len(scores_of(out)) == 3)
        until(lambda: not (out / "scores_2.csv").exists())
    assert [result.part.id for result in found] == ["c"]
    assert [row["id"] for row in scores_of(out)] == ["a", "b", "c"]
    assert f"{out / 'scores.csv'} can be written again\n" in capsys.readouterr().out


def test_lines_that_waited_and_were_taken_away_stop_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("head\nold\n")
    (tmp_path / "scores_2.csv").write_text("head\nnew\n")
    growing = Growing(path, "head\n")
    (tmp_path / "scores_2.csv").unlink()
    growing.catch_up()
    growing.add("newer\n")
    assert path.read_text() == "head\nold\nnewer\n" and not growing.waiting
    told = f"{tmp_path / 'scores_2.csv'}: expected the lines that wait for {path}, found no file; they are not added"
    assert capsys.readouterr().err == f"warning: {told}\n"


def test_lines_that_waited_are_not_moved_twice(tmp_path: Path) -> None:
    path, beside = tmp_path / "a.csv", tmp_path / "a_2.csv"
    path.write_bytes(b"head\n1\n2\n")
    beside.write_bytes(b"head\n2\n3")  # it ended after 2 was moved, and of 3 it wrote half
    Growing(path, "head\n").catch_up()
    assert path.read_bytes() == b"head\n1\n2\n" and not beside.exists()
    beside.write_bytes(b"head\n3\n")
    Growing(path, "head\n").add("4\n")
    assert path.read_bytes() == b"head\n1\n2\n3\n4\n" and not beside.exists()


def failing_on(detector: Detector, *names: str, times: int = 1000) -> tuple[Detector, list[str]]:
    """The detector with networks that fail on parts of these names so many times, and where they did."""
    failed: list[str] = []
    broken = replace(detector)

    def predict(scans: list[PreparedScan]) -> list[Prediction]:
        for name in names:
            if Path(scans[0].name).name.startswith(f"{name}_") and len(failed) < times:
                failed.append(name)
                raise RuntimeError("no kernel image\nfor this device")
        return detector.predict_prepared(scans)

    broken.predict_prepared = predict  # type: ignore[method-assign, assignment]
    return broken, failed


def test_a_part_on_which_the_networks_fail_is_tried_again_and_holds_nobody_up(
    detector: Detector,
    drop: Path,
    tmp_path: Path,
    part: Put,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(watching, "PAUSE", 0.01)
    for name in ("a", "b", "c"):
        part(drop, name)
    broken, failed = failing_on(detector, "b")
    error = f"{drop / 'b_rgb.png'}: the networks failed: no kernel image for this device"
    assert [result.error for result in once(broken, drop, tmp_path / "out")] == ["", error, ""]
    assert len(failed) == TRIES
    assert capsys.readouterr().err == f"warning: {error}; trying again\n" * (TRIES - 1)
    assert [(row["id"], row["error"], row["map"] != "") for row in scores_of(tmp_path / "out")] == [
        ("a", "", True), ("b", error, False), ("c", "", True)
    ]  # fmt: skip
    assert once(broken, drop, tmp_path / "out") == [], "nor does it come again after a restart"
    recovered, failed = failing_on(detector, "b", times=TRIES - 1)
    assert not any(result.error for result in once(recovered, drop, tmp_path / "other")) and len(failed) == TRIES - 1


def test_networks_that_fail_on_part_after_part_end_it(
    detector: Detector, drop: Path, tmp_path: Path, part: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "PAUSE", 0.01)
    for name in ("a", "b", "c"):
        part(drop, name)
    broken, _ = failing_on(detector, "a", "b", "c")
    with pytest.raises(
        ModelError, match=r"b_rgb\.png: the networks failed: .*; as on the part before, so it is the model or"
    ):
        once(broken, drop, tmp_path / "out")
    assert [row["id"] for row in scores_of(tmp_path / "out")] == ["a"], "the others are judged when all is well again"


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
    assert len(scores_of(tmp_path / "out")) == 1 and list(results) == []


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
    rgb, depth = part(drop, "a")
    rgb.unlink()
    part(drop, "b")
    shutil.copy(drop / "b_rgb.png", drop / "b_colour.png")
    for name in ("rgb_1.png", "depth_1.png"):
        (drop / name).write_text("named the other way round")
    assert once(detector, drop, tmp_path / "out") == []
    out, err = capsys.readouterr()
    assert out == (
        f"1 part not complete yet, left for the next time, such as {depth}: expected an rgb file of the same name, found "
        "none\n"
    )
    assert err.splitlines() == [
        f"warning: not judged: {drop / 'b_rgb.png'}: expected one rgb file of this name, found b_colour.png too",
        f"warning: not judged: {drop / 'depth_1.png'}: expected NAME_rgb, NAME_depth and NAME_mask, or folders rgb, depth "
        "and mask, found a name that tells no member; 1 more like this",
    ]


def test_links_that_lead_nowhere_hold_nobody_up_and_are_told(
    detector: Detector, drop: Path, tmp_path: Path, part: Put, capsys: pytest.CaptureFixture[str]
) -> None:
    _, depth = part(drop, "a")
    depth.unlink()
    depth.symlink_to(tmp_path / "gone.tiff")
    part(drop, "b")
    (drop / "c_rgb.png").symlink_to("c_rgb.png")
    assert [result.part.id for result in once(detector, drop, tmp_path / "out")] == ["b"]
    assert capsys.readouterr().out == (
        f"2 parts not complete yet, left for the next time, such as {depth}: expected a file, found a link to none that "
        "can be read\n"
    )


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
    assert [row["id"] for row in scores_of(out)] == ["a", "b"] and not any(row["error"] for row in scores_of(out))


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
    assert once(detector, drop, tmp_path / "out") == [] and scores_of(tmp_path / "out") == []


# ------------------------------------------------------------------------------------ what is printed


def test_json_is_that_of_predict(tiny_run: Runs, drop: Path, tmp_path: Path, part: Put) -> None:
    for name in ("a", "b"):
        part(drop, name)
    (drop / "b_rgb.png").write_bytes(b"")
    words = ("--data", drop, "--json", "--device", "cpu")
    result = das3d("watch", tiny_run(), *words, "--out", tmp_path / "out", "--once", "--settle", "0.3s")
    expected = das3d("predict", tiny_run(), *words, "--out", tmp_path / "predicted")
    found, told = ([json.loads(line) for line in one.stdout.splitlines()] for one in (result, expected))
    assert result.exit_code == 0 and len(found) == 2
    assert found[0] == told[0] | {"score": pytest.approx(told[0]["score"], abs=1e-5), "regions": found[0]["regions"]}
    assert found[1] == told[1] and found[1]["error"]
    assert "a  score 0." in result.stderr and "2 parts, " in result.stderr


def test_the_page_shows_what_is_printed(detector: Detector, capsys: pytest.CaptureFixture[str]) -> None:
    page = PROJECT / "docs" / "howto" / "line.md"
    shown = next(block.text for block in blocks_of(page) if block.text.startswith("watching ")).splitlines()
    model = replace(
        detector, threshold=threshold_from([score / 100 for score in (8, 9, 10, 11, 15, 17, 20, 24, 30, 37)], 0.1)
    )
    region = Region(
        centroid=(172.0, 159.0), box=(160, 150, 24, 18), outline=((160, 150), (183, 150), (183, 167)), area_px=432,
        area_mm2=396.0, height_mm=None, height_noise_mm=None, evidence="shape", colour=0.12, shape=0.88, score=0.4901,
        peak=0.6, mean=0.4,
    )  # fmt: skip

    def result_of(name: str, score: float, *regions: Region) -> Inspected:
        verdict, image = model.verdict(score), np.zeros((0, 0), np.float32)
        found = Prediction(name, score, image, Window.square(0, 0, 1, (1, 1)), verdict, regions=regions)
        return Inspected(Part(name, "test", UNKNOWN, Path(name), None, (), None), found)

    unread = "newparts/good/0006_rgb.png: expected an RGB image, found an empty file"
    failed = Inspected(Part("0006", "test", UNKNOWN, Path("0006"), None, (), None), None, unread)
    results = [result_of("0005", 0.4901, region, region), failed, result_of("0007", 0.137)]
    print_watched(iter(results), Path("watched"), model)
    printed = capsys.readouterr()
    assert shown[0] == "watching newparts/good; 12 parts judged before"
    assert [line for line in shown[1:] if not line.startswith("warning: ")] == printed.out.splitlines()
    assert [line for line in shown if line.startswith("warning: ")] == printed.err.splitlines()


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
    assert [row["id"] for row in scores_of(out)] == ["a"]


def test_it_ends_after_the_part_at_hand(detector: Detector, drop: Path, tmp_path: Path, part: Put) -> None:
    for name in ("a", "b", "c"):
        part(drop, name)
    found: list[Inspected] = []
    for result in watch(detector, drop, tmp_path / "out", model="", settle=SETTLE, stopping=lambda: bool(found)):
        found.append(result)
    assert [row["id"] for row in scores_of(tmp_path / "out")] == ["a"]


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


def test_a_table_that_excel_saved_goes_on_and_a_damaged_one_is_refused(
    detector: Detector, drop: Path, tmp_path: Path, part: Put
) -> None:
    part(drop, "a")
    assert len(once(detector, drop, tmp_path / "out")) == 1
    table = tmp_path / "out" / "scores.csv"
    content = table.read_bytes()
    table.write_bytes(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"))
    assert once(detector, drop, tmp_path / "out") == []
    table.write_bytes(content + b'"' + b"x" * 200_000 + b"\n")
    with pytest.raises(
        DataError, match=r"scores\.csv: expected scores that das3d watch wrote, found a damaged table \(field"
    ):
        once(detector, drop, tmp_path / "out")


def test_a_declaration_that_cannot_be_used_is_refused(detector: Detector, drop: Path, tmp_path: Path) -> None:
    (drop / "dataset.yaml").write_text("depth_unit: inch")
    with pytest.raises(DataError, match=r"dataset\.yaml: depth unit: expected one of m, cm, mm, um"):
        once(detector, drop, tmp_path / "out")
