"""The service answers what the detector says, records it first, and turns away whatever else comes, with a reason."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
import tifffile
import uvicorn
from builders import write_member
from conftest import PROJECT
from fastapi import UploadFile
from fastapi.testclient import TestClient
from helpers import wait_for
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import SIZE, copy_category, das3d, train_tiny

from das3d._listing import read_yaml
from das3d.demo import CATEGORY
from das3d.detector import Prediction
from das3d.errors import ModelError, SettingsError
from das3d.files import DepthFormat, read_rgb
from das3d.service import Limits, ServedModel, make_app, open_models, serve
from das3d.service import work as das3d_work
from das3d.service.answers import INSPECTION, REFUSAL, InspectionAnswer, RefusalAnswer
from das3d.service.inspections import DATABASE_FILE, DATABASE_SECONDS, Inspections
from das3d.service.queueing import Batches
from das3d.service.retention import DAY, Keep, prune
from das3d.service.uploads import save_upload
from das3d.streaming import full_red
from das3d.threshold import SAME

KEY = "0123456789 a key"
Start = Callable[..., TestClient]


@pytest.fixture(scope="module")
def model(tiny_run: Callable[..., Path]) -> ServedModel:
    return open_models([str(tiny_run())])[0]


@pytest.fixture
def start(model: ServedModel, tmp_path: Path) -> Iterator[Start]:
    """Starts a service, in this process, over the tiny model."""
    clients: list[TestClient] = []

    def begin(models: list[ServedModel] | None = None, **options: Any) -> TestClient:
        folder = tmp_path / f"inspections{len(clients)}"
        app = make_app(models or [model], Inspections(folder), **options)
        client = TestClient(app, raise_server_exceptions=False)
        clients.append(client.__enter__())
        return client

    yield begin
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture(scope="module")
def part(tiny_data: Path) -> tuple[Path, Path]:
    """RGB and points of a part."""
    kind = tiny_data / CATEGORY / "test" / "good"
    return sorted((kind / "rgb").iterdir())[0], sorted((kind / "xyz").iterdir())[0]


def files_of(part: tuple[Path, Path]) -> dict[str, tuple[str, bytes]]:
    return {"rgb": (part[0].name, part[0].read_bytes()), "depth": (part[1].name, part[1].read_bytes())}


def service_of(client: TestClient) -> Any:
    return client.app.state.service  # type: ignore[attr-defined]


def refused(answer: httpx.Response, status: int, *words: str) -> None:
    assert answer.status_code == status, answer.text
    detail = answer.json()["detail"]
    assert isinstance(detail, str) and "\n" not in detail and "incoming" not in detail
    for word in words:
        assert word in detail, detail


# ------------------------------------------------------------------------------------------- verdicts


def test_a_part_gets_the_detectors_verdict_and_all_of_it_is_kept(
    start: Start, model: ServedModel, part: tuple[Path, Path]
) -> None:
    client = start()
    expected = model.detector.predict(read_rgb(part[0]), tifffile.imread(part[1]))
    answer = client.post("/inspections", files=files_of(part), data={"part": "A 17"})
    assert answer.status_code == 201, answer.text
    told = answer.json()
    assert told["score"] == pytest.approx(expected.score, abs=1e-6)
    assert told["verdict"] == ("defective" if expected.defective else "good")
    assert model.detector.threshold is not None
    assert told["compared"] == model.detector.threshold.compared(expected.score) != "", "as predict prints it"
    assert told["part"] == "A 17" and told["model"] == model.name and len(told["model_hash"]) == 64
    assert (told["height"], told["width"]) == SIZE
    assert client.get(f"/inspections/{told['id']}").json() == told
    assert client.get("/inspections").json() == {"items": [told], "total": None, "next": None}
    assert client.get("/inspections?count=true").json()["total"] == 1
    anomaly = tifffile.imread(io.BytesIO(client.get(told["map"]).content))
    np.testing.assert_allclose(anomaly, expected.map, atol=1e-6)
    overlay = client.get(told["overlay"])
    assert overlay.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(overlay.content)).size == SIZE[::-1]
    kept = Inspections(service_of(client).inspections.folder)
    (row,) = kept.page()
    assert kept.file(row.rgb or "").read_bytes() == part[0].read_bytes(), "the upload itself is kept"
    assert not list((kept.folder / "incoming").glob("*/*")), "nothing is left where uploads come in"
    kept.close()


def test_the_view_shows_where_the_model_looked(start: Start, part: tuple[Path, Path]) -> None:
    client = start()
    told = client.post("/inspections", files=files_of(part)).json()
    view = client.get(f"/inspections/{told['id']}/view").json()
    assert view["surface"]["width"] <= 160 and view["surface"]["heat"]
    assert view["picture"].startswith("data:image/jpeg") and view["heat"].startswith("data:image/png")
    assert 0 < view["window"]["side"] <= max(SIZE) and view["scale"] > 0


def test_the_view_of_depth_alone_has_true_proportions_where_the_lens_is_known(
    start: Start, model: ServedModel, part: tuple[Path, Path], tmp_path: Path
) -> None:
    depth = tmp_path / "depth.npy"
    np.save(depth, np.ascontiguousarray(tifffile.imread(part[1])[..., 2]))
    pitches = []
    for lens in (None, 100.0):
        client = start([replace(model, depth_format=DepthFormat(1.0, focal_length=lens))])
        told = client.post("/inspections", files=files_of((part[0], depth))).json()
        pitches.append(client.get(f"/inspections/{told['id']}/view").json()["surface"]["pitch"])
    assert pitches[0] is None and pitches[1] > 0


@pytest.mark.parametrize("known", [None, DepthFormat(1.0, focal_length=200.0)])
def test_a_focal_length_that_is_given_to_serve_counts(
    start: Start, model: ServedModel, part: tuple[Path, Path], tmp_path: Path, known: DepthFormat | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    depth = tmp_path / "depth.npy"
    np.save(depth, np.ascontiguousarray(tifffile.imread(part[1])[..., 2]))
    seen: list[float] = []
    prepare = das3d_work.prepare

    def watched(scan: Any, *rest: Any) -> Any:
        seen.append(scan.camera.fx)
        return prepare(scan, *rest)

    monkeypatch.setattr(das3d_work, "prepare", watched)
    client = start([replace(model, depth_format=known, focal_length=100.0)])
    told = client.post("/inspections", files=files_of((part[0], depth))).json()
    assert seen == [100.0], "for areas in mm2"
    pitch = client.get(f"/inspections/{told['id']}/view").json()["surface"]["pitch"]
    exact = start([replace(model, depth_format=DepthFormat(1.0, focal_length=100.0))])
    told = exact.post("/inspections", files=files_of((part[0], depth))).json()
    assert pitch == exact.get(f"/inspections/{told['id']}/view").json()["surface"]["pitch"] > 0


def test_serve_takes_a_focal_length_as_predict_does(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr("das3d.service.serve", lambda *_, **options: given.update(options))
    assert das3d("serve", "model.onnx", "--focal-length", "615").exit_code == 0
    assert given["focal_length"] == 615


def test_what_an_earlier_model_judged_is_not_shown_by_the_facts_of_the_new_one(
    start: Start, model: ServedModel, part: tuple[Path, Path], tmp_path: Path
) -> None:
    depth = tmp_path / "depth.npy"
    np.save(depth, np.ascontiguousarray(tifffile.imread(part[1])[..., 2]))
    client = start([replace(model, depth_format=DepthFormat(1.0, focal_length=100.0))])
    service = service_of(client)
    told = client.post("/inspections", files=files_of((part[0], depth))).json()
    overlay = client.get(told["overlay"]).content
    assert service.statistics(service.find(told["id"])) is model.detector.statistics
    assert model.detector.threshold is not None
    lower = replace(model.detector.threshold, value=told["threshold"] / 4)
    service.models[model.name] = replace(
        service.models[model.name], hash="another", detector=replace(model.detector, threshold=lower)
    )
    assert client.get(told["overlay"]).content == overlay, "red is what was red"
    view = client.get(f"/inspections/{told['id']}/view").json()
    assert view["scale"] == full_red(told["threshold"]) != client.get("/models").json()[0]["scale"]
    assert view["surface"]["pitch"] is None and service.statistics(service.find(told["id"])) is None
    assert client.get(f"/inspections/{told['id']}").json() == told | {"compared": None}, "by no other model's parts"


def test_a_part_is_marked_as_what_it_was_in_truth(start: Start, part: tuple[Path, Path]) -> None:
    client = start(key=KEY)
    headers = {"X-API-Key": KEY}
    told = client.post("/inspections", files=files_of(part), headers=headers).json()
    assert told["truth"] is None
    address = f"/inspections/{told['id']}/truth"
    refused(client.put(f"{address}?value=good"), 401)
    for value, kept in (("defective", "defective"), ("good", "good"), ("unknown", None)):
        answer = client.put(f"{address}?value={value}", headers=headers)
        assert (answer.status_code, answer.json()) == (200, told | {"truth": kept})
        assert client.get("/inspections", headers=headers).json()["items"] == [told | {"truth": kept}]
        for wanted in ("good", "defective", "unknown"):
            page = client.get(f"/inspections?truth={wanted}&count=true", headers=headers).json()
            assert page["total"] == len(page["items"]) == int(wanted == (kept or "unknown"))
    refused(client.put(f"{address}?value=fine", headers=headers), 422, "value", "'good', 'defective' or 'unknown'", "fine")
    refused(client.put(address, headers=headers), 422, "value")
    refused(client.put("/inspections/7/truth?value=good", headers=headers), 404, "found none with id 7")
    refused(client.put(f"/inspections/{1 << 70}/truth?value=good", headers=headers), 404)
    client.headers.update(headers)
    assert metric(client, 'das3d_requests_total{method="PUT",route="/inspections/{id}/truth",status="200"}') == 3


def test_parts_can_be_without_scans(start: Start, part: tuple[Path, Path]) -> None:
    client = start(keep_scans=False)
    told = client.post("/inspections", files=files_of(part)).json()
    folder = service_of(client).inspections.folder
    assert [path.name for path in folder.glob("*-*-*/*/*")] == ["map.tiff"]
    assert client.get(told["overlay"]).status_code == 200
    assert client.get(f"/inspections/{told['id']}/view").json()["surface"] is None


def test_depth_in_counts_takes_its_unit_from_the_request(start: Start, part: tuple[Path, Path], tmp_path: Path) -> None:
    client = start()
    depth = np.rint(tifffile.imread(part[1])[..., 2] * 1e5).astype(np.uint16)
    path = write_member(tmp_path / "depth.png", depth)
    files = {"rgb": files_of(part)["rgb"], "depth": ("depth.png", path.read_bytes())}
    exact = client.post("/inspections", files=files_of(part)).json()
    told = client.post("/inspections", files=files, data={"depth_unit": "1e-5"}).json()
    assert told["score"] == pytest.approx(exact["score"], abs=0.02)
    assert client.get(f"/inspections/{told['id']}/view").json()["surface"], "read again by the same unit"
    refused(client.post("/inspections", files=files, data={"depth_unit": "feet"}), 422, "depth_unit", "feet")


def test_a_part_is_called_as_training_would_call_it(start: Start, part: tuple[Path, Path], tmp_path: Path) -> None:
    client, (rgb, depth) = start(), files_of(part).values()
    names = {"7_colour.png": "7", "7_IMAGE.png": "7", "7-rgb.png": "7-rgb", "rgb.png": "rgb", "7_z.png": "7_z"}
    for name, called in names.items():
        files = {"rgb": (name, rgb[1]), "depth": depth}
        assert client.post("/inspections", files=files).json()["part"] == called, name
    upload = UploadFile(io.BytesIO(), filename="8_cloud.ply")
    assert save_upload(tmp_path, None, None, upload).part == "8"


def test_models_by_name(start: Start, model: ServedModel, part: tuple[Path, Path]) -> None:
    client = start([model, replace(model, name="other")])
    assert [one["name"] for one in client.get("/models").json()] == [model.name, "other"]
    assert client.post("/inspections", files=files_of(part), data={"model": "other"}).json()["model"] == "other"
    refused(client.post("/inspections", files=files_of(part)), 422, "one of", "other")
    refused(client.post("/inspections", files=files_of(part), data={"model": "third"}), 404, "third")


def test_a_model_of_depth_needs_no_rgb(start: Start, tiny_run: Callable[..., Path], part: tuple[Path, Path]) -> None:
    client, files = start(open_models([f"one={tiny_run('depth')}"])), files_of(part)
    both, alone = (client.post("/inspections", files=sent) for sent in (files, {"depth": files["depth"]}))
    assert (both.status_code, alone.status_code) == (201, 201), alone.text
    assert alone.json()["score"] == both.json()["score"]
    refused(client.post("/inspections", files={"rgb": files["rgb"]}), 422, "expected depth")


def test_a_model_of_rgb_needs_no_depth_but_where_training_had_it(
    start: Start, tiny_run: Callable[..., Path], tiny_data: Path, part: tuple[Path, Path], tmp_path: Path
) -> None:
    files = files_of(part)
    client = start(open_models([f"one={tiny_run('rgb')}"]))  # which takes the foreground from depth
    refused(client.post("/inspections", files={"rgb": files["rgb"]}), 422, "expected depth")
    refused(client.post("/inspections", files={"depth": files["depth"]}), 422, "expected RGB")

    flat = copy_category(tiny_data, tmp_path)
    for folder in list(flat.rglob("xyz")):
        shutil.rmtree(folder)
    client = start(open_models([f"one={train_tiny(flat, tmp_path / 'run', 'rgb')}"]))
    both, alone = (client.post("/inspections", files=sent) for sent in (files, {"rgb": files["rgb"]}))
    assert (both.status_code, alone.status_code) == (201, 201), alone.text
    assert alone.json()["score"] == both.json()["score"]
    refused(client.post("/inspections", files={"depth": files["depth"]}), 422, "expected RGB")
    assert client.get(f"/inspections/{both.json()['id']}/view").json()["surface"], "shown to people all the same"

    # What the model does not see is not read, as predict does not read it, but is kept as it came.
    counts = write_member(tmp_path / "counts.png", np.ones(SIZE, np.uint16)).read_bytes()
    inspections = service_of(client).inspections
    for name, content in (("counts.png", counts), ("junk.npy", b"junk"), ("huge.npy", npy_header(40_000))):
        answer = client.post("/inspections", files={"rgb": files["rgb"], "depth": (name, content)})
        assert answer.status_code == 201, answer.text
        told = answer.json()
        assert told["score"] == alone.json()["score"]
        assert inspections.file(inspections.get(told["id"]).depth).read_bytes() == content
        assert client.get(told["overlay"]).status_code == 200
        view = client.get(f"/inspections/{told['id']}/view")
        assert view.status_code == 200 and view.json()["surface"] is None


def npy_header(side: int) -> bytes:
    """The beginning of an array that would take gigabytes."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (side, side)})
    return buffer.getvalue()


# ------------------------------------------------------------------------------------------- limits


@contextmanager
def held(service: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The detector computes only once the event is set."""
    go = threading.Event()
    detector = next(iter(service.models.values())).detector
    compute = type(detector).predict_prepared

    def slow(self: Any, scans: Any) -> Any:
        assert go.wait(20)
        return compute(self, scans)

    with monkeypatch.context() as patch:
        patch.setattr(type(detector), "predict_prepared", slow)
        yield go
        go.set()


def metric(client: TestClient, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def test_a_full_service_says_so_and_what_waits_is_computed_together(
    start: Start, part: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = start(limits=Limits(queue=4, batch=8))
    post = lambda _: client.post("/inspections", files=files_of(part))  # noqa: E731
    with ThreadPoolExecutor(4) as pool, held(service_of(client), monkeypatch) as go:
        first = pool.submit(post, 0)
        wait_for(lambda: metric(client, "das3d_batch_parts_count") == 1)
        others = [pool.submit(post, i) for i in range(3)]
        wait_for(lambda: len(service_of(client).batches._waiting) == 3)
        full = post(4)
        refused(full, 429, "4 inspections are under way")
        assert int(full.headers["retry-after"]) >= 1
        go.set()
        assert [answer.result().status_code for answer in (first, *others)] == [201] * 4
    assert metric(client, "das3d_batch_parts_sum") == 4 and metric(client, "das3d_batch_parts_count") == 2
    assert metric(client, "das3d_inspections_under_way") == 0
    assert metric(client, 'das3d_requests_total{method="POST",route="/inspections",status="201"}') == 4


def test_an_inspection_that_takes_too_long_is_given_up(
    start: Start, part: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = start(limits=Limits(seconds=0.5))
    with held(service_of(client), monkeypatch) as go:
        refused(client.post("/inspections", files=files_of(part)), 503, "longer than 0.5 s")
        go.set()
    assert client.get("/inspections?count=true").json()["total"] == 0
    deadline = time.monotonic() + 60
    while (answer := client.post("/inspections", files=files_of(part))).status_code == 503:  # a slow machine needs longer
        assert time.monotonic() < deadline
    assert answer.status_code == 201 and client.get("/inspections?count=true").json()["total"] == 1


def test_a_recording_that_has_begun_is_waited_for(
    start: Start, part: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = start(limits=Limits(seconds=1))
    inspections, go, entered = service_of(client).inspections, threading.Event(), threading.Event()
    record = inspections.record

    def slow(folder: Path, row: Any) -> Any:
        entered.set()
        assert go.wait(60)
        return record(folder, row)

    monkeypatch.setattr(inspections, "record", slow)
    deadline = time.monotonic() + 120
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.post, "/inspections", files=files_of(part))
        while not entered.wait(0.05):
            assert time.monotonic() < deadline
            if waiting.done():  # a slow machine took too long before
                waiting = pool.submit(client.post, "/inspections", files=files_of(part))
        time.sleep(1.5)  # longer than an inspection may take
        go.set()
        answer = waiting.result()
    assert answer.status_code == 201, "it is in the database, so the client must not send it again"
    assert client.get(answer.json()["map"]).status_code == 200
    assert client.get("/inspections?count=true").json()["total"] == 1


def test_a_recording_that_cannot_begin_is_given_up_and_leaves_nothing(start: Start, part: tuple[Path, Path]) -> None:
    client = start(limits=Limits(seconds=1))
    service, go = service_of(client), threading.Event()
    busy = [service._writers.submit(go.wait, 300) for _ in range(4)]  # as with a database that hangs
    deadline, waited = time.monotonic() + 120, 0
    while not waited:  # a slow machine may take too long before
        assert time.monotonic() < deadline
        refused(client.post("/inspections", files=files_of(part)), 503, "longer than 1 s")
        waited = service._writers._work_queue.qsize()
    go.set()
    assert all(one.result() for one in busy)
    assert client.get("/inspections?count=true").json()["total"] == 0
    assert not list((service.inspections.folder / "incoming").glob("*/*"))


def test_no_map_of_a_whole_frame_stays_in_memory(
    start: Start, part: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Predictions live until the next batch is computed, and all that wait for a writer have one.
    monkeypatch.setattr(Prediction, "map", property(lambda _: pytest.fail("it would be kept with the prediction")))
    assert start().post("/inspections", files=files_of(part)).status_code == 201


def test_files_that_are_gone_and_files_that_cannot_be_read_are_told_apart(
    start: Start, part: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    client = start()
    told = client.post("/inspections", files=files_of(part)).json()
    inspections = service_of(client).inspections
    row = inspections.get(told["id"])
    view = f"/inspections/{told['id']}/view"
    depth, rgb, anomaly = map(inspections.file, (row.depth, row.rgb, row.map))
    depth.write_bytes(b"no TIFF")
    refused(client.get(view), 500, f"inspection {told['id']}: {depth}: expected depth, found a damaged or unknown file")
    assert f"{depth}: expected depth" in caplog.text
    assert client.get(told["overlay"]).status_code == 200, "which shows no depth"
    depth.unlink()
    refused(client.get(view), 404, "no longer where they were put")
    rgb.write_bytes(b"")
    refused(client.get(told["overlay"]), 500, f"{rgb}: expected an RGB image")
    anomaly.write_bytes(b"")
    refused(client.get(told["overlay"]), 500, f"{anomaly}: expected an anomaly map, found")
    anomaly.unlink()
    refused(client.get(told["overlay"]), 404, "no longer where they were put")


def test_an_inspection_whose_files_were_removed_says_so(start: Start, part: tuple[Path, Path]) -> None:
    client = start(keep=Keep(good=DAY, defective=DAY))
    told = client.post("/inspections", files=files_of(part)).json()
    inspections = service_of(client).inspections
    prune(inspections, Keep(good=DAY, defective=DAY), now=datetime.now(UTC) + timedelta(days=2))
    assert client.get(f"/inspections/{told['id']}").json() == told | {"map": None, "overlay": None}
    for path in (told["map"], told["overlay"], f"/inspections/{told['id']}/view"):
        refused(client.get(path), 410, f"the files of inspection {told['id']} were removed")


def test_serve_keeps_all_for_ever_unless_it_is_told(
    start: Start, model: ServedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr("das3d.service.serve", lambda *_, **options: given.update(options))
    assert das3d("serve", "model.onnx").exit_code == 0 and given["keep"].forever
    words = ("--keep-good", "30d", "--keep-defective", "1y", "--keep-rows", "5y")
    assert das3d("serve", "model.onnx", *words).exit_code == 0
    assert given["keep"] == Keep(30 * DAY, 365 * DAY, 365 * DAY, 5 * 365 * DAY)
    assert das3d("serve", "model.onnx", "--keep-refused", "0.5d").exit_code == 1
    inspections = Inspections(tmp_path)
    orphan = tmp_path / "2020-01-01" / ("ab" * 16)
    orphan.mkdir(parents=True)
    with TestClient(make_app([model], inspections, keep=given["keep"])):
        wait_for(lambda: not orphan.exists())


def test_those_who_look_are_limited_and_hold_up_neither_the_line_nor_probes(
    start: Start, part: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = start(limits=Limits(queue=2, readers=1))
    told = client.post("/inspections", files=files_of(part)).json()
    go, entered = threading.Event(), threading.Event()

    def slow(*_: Any) -> bytes:
        entered.set()
        assert go.wait(60)
        return b"picture"

    monkeypatch.setattr("das3d.service.app.overlay_png", slow)
    with ThreadPoolExecutor(2) as pool:
        try:
            looking = [pool.submit(client.get, told["overlay"]) for _ in range(2)]
            assert entered.wait(60)
            deadline = time.monotonic() + 60
            while service_of(client)._looking < 2:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            refused(client.get(told["overlay"]), 429, "2 past scans are being looked at")
            refused(client.get(f"/inspections/{told['id']}/view"), 429, "try again")
            assert client.get("/readyz").status_code == client.get(told["map"]).status_code == 200
            assert client.post("/inspections", files=files_of(part)).status_code == 201
        finally:
            go.set()
        assert [one.result().content for one in looking] == [b"picture"] * 2
    monkeypatch.undo()
    assert client.get(told["overlay"]).status_code == 200


def test_a_database_that_hangs_is_not_ready(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    client = start()
    go = threading.Event()
    monkeypatch.setattr("das3d.service.work.PROBE_SECONDS", 0.1)
    monkeypatch.setattr(service_of(client).inspections, "check", lambda: go.wait(60))
    try:
        refused(client.get("/readyz"), 503, "the database did not answer")
        assert client.get("/healthz").status_code == 200
    finally:
        go.set()


@pytest.mark.parametrize("place", ["new_folder", "form", "upload", "map"])
def test_a_full_disk_is_told_and_leaves_nothing(
    start: Start, part: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str
) -> None:
    client = start()
    inspections = service_of(client).inspections

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(inspections.folder / "incoming" / "map.tiff"))

    targets = {"upload": "das3d.service.uploads._copy", "map": "das3d.service.work.save_map"}
    files = files_of(part)
    with monkeypatch.context() as patch:
        if place == "new_folder":
            patch.setattr(inspections, "new_folder", full)
        elif place == "form":  # which takes more than 1 MB to the folder for temporary files
            patch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
            files["rgb"] = (part[0].name, bytes(2 << 20))
        else:
            patch.setattr(targets[place], full)
        named = tmp_path / "gone" if place == "form" else inspections.folder
        found = "No such file" if place == "form" else "No space left on device"
        told = f"{named}: expected a folder that can be written, found {found}"
        refused(client.post("/inspections", files=files), 507, told)
    assert client.get("/inspections?count=true").json()["total"] == 0
    assert not list(inspections.folder.glob("*/*/*"))
    assert client.post("/inspections", files=files_of(part)).status_code == 201


def test_a_service_on_the_loopback_answers_to_no_other_name(start: Start) -> None:
    client = start(hosts=("127.0.0.1", "::1", "localhost"))
    for host in ("localhost", "localhost:8000", "127.0.0.1:9", "[::1]:8000", "LOCALHOST"):
        assert client.get("/models", headers={"host": host}).status_code == 200, host
    for host in ("attacker.example", "localhost.attacker.example:8000", "[::2]", "[", ""):
        for answer in (client.get("/", headers={"host": host}), client.post("/inspections", headers={"host": host})):
            refused(answer, 421, "expected a request to 127.0.0.1, ::1, localhost")
    assert start().get("/models", headers={"host": "scans.example"}).status_code == 200


def test_a_failure_of_the_networks_is_no_end(
    start: Start, part: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = start()
    with monkeypatch.context() as patch:
        detector = service_of(client).choose(None).detector
        patch.setattr(type(detector), "predict_prepared", lambda self, scans: 1 / 0)
        told = "the networks could not compute this part: ZeroDivisionError: division by zero"
        refused(client.post("/inspections", files=files_of(part), data={"part": "serial-17"}), 503, told)
    (kept,) = client.get("/refused").json()["items"]
    assert (kept["part"], kept["reason"]) == ("serial-17", told), "no part goes without a trace"
    assert client.post("/inspections", files=files_of(part)).status_code == 201
    assert client.get("/inspections?count=true").json()["total"] == 1


def test_networks_that_fail_are_told_by_the_probes_and_heal_by_themselves(
    start: Start, part: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("das3d.service.queueing.RETRY_SECONDS", 0.05)
    client = start()
    batches, detector = service_of(client).batches, service_of(client).choose(None).detector
    healthy, go = type(detector).predict_prepared, threading.Event()

    def lost(self: Any, scans: Any) -> Any:
        if scans[0].name == "warm-up":
            assert go.wait(20)
        raise RuntimeError("CUDA error: unspecified\nlaunch failure")

    monkeypatch.setattr(type(detector), "predict_prepared", lost)
    refused(client.post("/inspections", files=files_of(part)), 503, "could not compute this part", "CUDA error")
    told = "cannot compute, tried again 0 times: RuntimeError: CUDA error: unspecified launch failure"
    refused(client.get("/readyz"), 503, f"the networks of {CATEGORY} {told}")
    assert client.get("/healthz").status_code == 200, "it may come back"
    go.set()
    wait_for(lambda: batches.failures[0].tries >= 3)
    refused(client.get("/healthz"), 503, "tried", "CUDA error")
    refused(client.get("/readyz"), 503, "CUDA error")
    monkeypatch.setattr(type(detector), "predict_prepared", healthy)
    wait_for(lambda: client.get("/readyz").status_code == 200)
    assert client.get("/healthz").status_code == 200 and not batches.failures
    assert client.post("/inspections", files=files_of(part)).status_code == 201


def test_networks_that_compute_all_but_one_part_are_ready(
    start: Start, part: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = start()
    detector = service_of(client).choose(None).detector
    healthy = type(detector).predict_prepared

    def picky(self: Any, scans: Any) -> Any:
        return healthy(self, scans) if scans[0].name == "warm-up" else 1 / 0

    monkeypatch.setattr(type(detector), "predict_prepared", picky)
    for _ in range(4):
        refused(client.post("/inspections", files=files_of(part)), 503)
    wait_for(lambda: client.get("/readyz").status_code == 200)
    assert client.get("/healthz").status_code == 200


class Networks:
    """A detector that computes what `able` lets it."""

    settings = SimpleNamespace(preparation=SimpleNamespace(size=8))

    def __init__(self, able: Callable[[list[str]], bool]) -> None:
        self.able = able
        self.asked: list[list[str]] = []

    def predict_prepared(self, scans: list[Any]) -> list[str]:
        names = [scan.name for scan in scans]
        self.asked.append(names)
        if not self.able(names):
            raise RuntimeError("out of memory")
        return names


@contextmanager
def batches_of(most: int) -> Iterator[Batches]:
    batches = Batches(most)
    yield batches
    batches.close()


def submit(batches: Batches, networks: Networks, names: list[str]) -> list[Future[Any]]:
    """Parts that come to the thread together, as while it is busy."""
    with batches._changed:
        return [batches.submit(networks, SimpleNamespace(name=name)) for name in names]  # type: ignore[arg-type]


def told(answer: Future[Any]) -> str:
    error = answer.exception(20)
    return answer.result() if error is None else str(error)


def test_a_bad_part_spoils_no_other_of_its_batch() -> None:
    networks = Networks(lambda names: "bad" not in names)
    with batches_of(8) as batches:
        for _ in range(2):
            answers = [told(answer) for answer in submit(batches, networks, ["a", "bad", "b"])]
            assert answers == ["a", "the networks could not compute this part: RuntimeError: out of memory", "b"]
        wait_for(lambda: not batches.failures)
    assert networks.asked[0] == networks.asked[5] == ["a", "bad", "b"], "it is the part's fault, not that of their number"


def test_batches_become_smaller_where_so_many_do_not_fit() -> None:
    networks = Networks(lambda names: len(names) < 4)
    names = list("abcdefgh")
    with batches_of(8) as batches:
        for _ in range(4):
            assert [told(answer) for answer in submit(batches, networks, names)] == names
    sizes = [len(asked) for asked in networks.asked]
    assert sizes == [8] + [1] * 8 + [4] + [1] * 4 + [2] * 10, "each size fails once"


def test_dead_networks_are_not_asked_for_every_part_of_a_batch() -> None:
    networks = Networks(lambda names: False)
    with batches_of(8) as batches:
        assert all("out of memory" in told(answer) for answer in submit(batches, networks, list("abcd")))
        (failure,) = batches.failures
        assert failure.tries == 1
    assert networks.asked == [["a", "b", "c", "d"], ["a"], ["warm-up"]]


def test_each_detector_has_a_failure_of_its_own_and_is_tried_again_while_others_are_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("das3d.service.queueing.RETRY_SECONDS", 0.05)
    dead, lame, over = Networks(lambda _: False), Networks(lambda _: False), threading.Event()

    def endless(_: list[str]) -> bool:  # there is always one more part of it
        time.sleep(0.005)
        if not over.is_set():
            submit(batches, healthy, ["next"])
        return True

    healthy = Networks(endless)
    with batches_of(1) as batches:
        try:
            for networks in (dead, lame):
                assert "out of memory" in told(submit(batches, networks, ["a"])[0])
            submit(batches, healthy, ["first"])
            wait_for(lambda: len(batches.failures) == 2)
            lame.able = lambda _: True
            wait_for(lambda: len(dead.asked) > 4 and len(batches.failures) == 1)
        finally:
            over.set()
        assert batches.failures[0].detector is dead, "what one computes says nothing of the other"


def test_readiness_names_each_model_whose_networks_fail(
    start: Start, model: ServedModel, part: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = start([replace(model, name=name, detector=replace(model.detector)) for name in ("nut", "bolt", "gear")])
    monkeypatch.setattr(type(model.detector), "predict_prepared", lambda self, scans: 1 / 0)
    for name in ("nut", "bolt"):
        refused(client.post("/inspections", files=files_of(part), data={"model": name}), 503)
    refused(client.get("/readyz"), 503, "the networks of nut cannot compute", "the networks of bolt cannot compute")
    assert "gear" not in client.get("/readyz").json()["detail"]


def test_networks_that_hang_are_told_by_the_probes(
    start: Start, part: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = start(limits=Limits(seconds=0.5))
    deadline = time.monotonic() + 120
    with held(service_of(client), monkeypatch) as go:
        while not service_of(client).batches.busy:  # a slow machine may take too long before
            assert time.monotonic() < deadline
            refused(client.post("/inspections", files=files_of(part)), 503, "longer than 0.5 s")
        wait_for(lambda: client.get("/readyz").status_code == 503)
        refused(client.get("/readyz"), 503, "the networks cannot compute: expected a batch within")
        wait_for(lambda: client.get("/healthz").status_code == 503)
        refused(client.get("/healthz"), 503, "expected a batch within 1.5 s")
        go.set()
    wait_for(lambda: client.get("/readyz").status_code == client.get("/healthz").status_code == 200)


def test_slow_uploads_are_broken_off(model: ServedModel, tmp_path: Path) -> None:
    app = make_app([model], Inspections(tmp_path), Limits(seconds=0.2))

    async def drip() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"-"
            await asyncio.sleep(0.1)

    async def post() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
            headers = {"content-type": "multipart/form-data; boundary=x"}
            return await client.post("/inspections", content=drip(), headers=headers)

    refused(asyncio.run(post()), 408, "within 0.2 s")
    app.state.service.close()


def test_uploads_have_limits(start: Start, part: tuple[Path, Path]) -> None:
    small = start(limits=Limits(upload=2000))
    refused(small.post("/inspections", files=files_of(part)), 413, "0.00190735 MiB")
    body = b'--x\r\nContent-Disposition: form-data; name="rgb"; filename="a.png"\r\n\r\n' + bytes(4000)
    chunks = (body[i : i + 500] for i in range(0, len(body), 500))
    headers = {"content-type": "multipart/form-data; boundary=x"}
    refused(small.post("/inspections", content=chunks, headers=headers), 413)
    few = start(limits=Limits(pixels=SIZE[0] * SIZE[1] - 1))
    refused(few.post("/inspections", files=files_of(part)), 413, part[0].name, f"{SIZE[1]} x {SIZE[0]}")


def test_a_key_opens_all_but_probes_and_page(
    start: Start, part: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    client = start(key=KEY)
    for path in ("/healthz", "/readyz", "/", "/assets/viewer.js"):
        assert client.get(path).status_code == 200, path
    closed = ("/models", "/inspections", "/inspections/1", "/inspections/1/map.tiff", "/metrics", "/openapi.json")
    for path in closed:
        refused(client.get(path), 401, "X-API-Key")
        refused(client.get(path, headers={"X-API-Key": KEY[:-1]}), 401)
        refused(client.get(path, headers={"Authorization": "Basic abc"}), 401)
        assert client.get(path, headers={"X-API-Key": KEY}).status_code in (200, 404)
    refused(client.post("/inspections", files=files_of(part)), 401)
    assert client.post("/inspections", files=files_of(part), headers={"Authorization": f"Bearer {KEY}"}).status_code == 201
    assert KEY not in caplog.text and KEY not in client.get("/openapi.json", headers={"X-API-Key": KEY}).text


def test_other_pages_cannot_send_parts(start: Start, part: tuple[Path, Path]) -> None:
    client, host = start(), "127.0.0.1:8000"
    for headers in (
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": f"http://{host}"},
        {"Origin": "http://127.0.0.1:3000"},
        {"Origin": "http://127.0.0.1"},
        {"Origin": "null"},
        {"Origin": "https://attacker.example", "X-Forwarded-Host": "scans.example"},
    ):
        answer = client.post("/inspections", files=files_of(part), headers={"Host": host} | headers)
        refused(answer, 403, "expected a request of this service's own page or of a program, found one of")
    refused(client.put("/inspections/1/truth?value=good", headers={"Host": host, "Origin": "null"}), 403)
    for headers in (
        {},
        {"Origin": f"http://{host}"},
        {"Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"},
        {"Origin": "https://scans.example", "Sec-Fetch-Site": "same-origin"},  # through a proxy with TLS
        {"Origin": "http://scans.example", "X-Forwarded-Host": "scans.example"},  # through one without
        {"Origin": "https://scans.example", "Host": "Scans.example:443"},
    ):
        answer = client.post("/inspections", files=files_of(part), headers={"Host": host} | headers)
        assert answer.status_code == 201, (headers, answer.text)
    guarded, headers = start(key=KEY), {"X-API-Key": KEY, "Origin": "http://scans.example"}
    assert guarded.post("/inspections", files=files_of(part), headers=headers).status_code == 201


# ------------------------------------------------------------------------------------------- malformed uploads


@pytest.mark.parametrize("address", ["/", "/healthz", "/readyz"])
def test_probes_may_ask_for_the_head_alone(shared: TestClient, address: str) -> None:
    answer = shared.head(address)
    assert answer.status_code == shared.get(address).status_code == 200


def test_what_no_address_takes_is_refused(shared: TestClient, part: tuple[Path, Path]) -> None:
    # Passed over, `unit` would leave depth in the unit of the training, and `verdicts` list all parts.
    answer = shared.post("/inspections", files=files_of(part), data={"unit": "mm"})
    refused(answer, 422, "unit: expected fields of rgb, depth, model, part, depth_unit")
    refused(shared.post("/inspections?depth_unit=mm", files=files_of(part)), 422, "depth_unit: expected no parameters")
    listed = shared.get("/inspections", params={"verdicts": "defective"})
    refused(listed, 422, "verdicts: expected parameters of model, verdict, truth, part,")


def test_what_comes_twice_is_refused(shared: TestClient, part: tuple[Path, Path]) -> None:
    files = list(files_of(part).items())
    refused(shared.post("/inspections", files=[*files, files[0]]), 422, "rgb: expected it once, found it 2 times")
    listed = shared.get("/inspections", params={"verdict": ["good", "defective"]})
    refused(listed, 422, "verdict: expected it once, found it 2 times")


def test_text_in_the_place_of_a_file_is_told(shared: TestClient) -> None:
    answer = shared.post("/inspections", data={"rgb": "part.png"})
    refused(answer, 422, "rgb: expected a file, found text: 'part.png'")


def test_requests_that_are_no_form(start: Start) -> None:
    client = start()
    refused(client.post("/inspections"), 422, "expected a file in the field rgb, depth or both")
    refused(client.post("/inspections", json={"rgb": "here"}), 422)
    refused(client.post("/inspections", data={"rgb": "no file"}), 422, "rgb")
    broken = {"content-type": "multipart/form-data; boundary=x"}
    refused(client.post("/inspections", content=b"nothing", headers=broken), 400)
    refused(client.post("/inspections", content=b"", headers={"content-type": "multipart/form-data"}), 400)
    refused(client.get("/inspections", params={"limit": 0}), 422, "limit")
    refused(client.get("/inspections", params={"verdict": "so so"}), 422, "verdict")
    for name in ("part", "model"):  # which PostgreSQL cannot be asked for
        refused(client.get("/inspections?count=true", params={name: "a\0b"}), 422, name, "found 'a\\x00b'")
        assert client.get("/inspections", params={name: "a\nb"}).status_code == 200
    refused(client.get("/inspections/one"), 422, "id")
    refused(client.get(f"/inspections/{10**30}"), 404)


def test_files_that_do_not_fit(start: Start, part: tuple[Path, Path], tmp_path: Path) -> None:
    client = start()
    files = files_of(part)

    def post(**changed: tuple[str, bytes]) -> httpx.Response:
        return client.post("/inspections", files=files | changed)

    def made(name: str, array: np.ndarray) -> tuple[str, bytes]:
        return name, write_member(tmp_path / name, array).read_bytes()

    refused(post(rgb=("part.gif", files["rgb"][1])), 415, "part.gif", ".png")
    refused(post(depth=("part", files["depth"][1])), 415, "no suffix")
    refused(post(rgb=("../../etc/passwd.png", b"root")), 422, "passwd.png: expected an RGB image")
    refused(post(rgb=("a.png", b"")), 422, "a.png", "empty file")
    refused(post(rgb=files["depth"]), 422, "expected an RGB image with 8 or 16 bits")
    refused(client.post("/inspections", files={"rgb": files["rgb"]}), 422, "expected depth")
    refused(post(depth=made("nan.npy", np.full(SIZE, np.nan, np.float32))), 422, "nan.npy", "all 5120 pixels missing")
    refused(post(depth=made("other.npy", np.ones((9, 8), np.float32))), 422, "expected both members of one size")
    counts = files | {"depth": made("counts.png", np.ones(SIZE, np.uint16))}
    undeclared = start([replace(service_of(client).choose(None), depth_format=None)])
    refused(undeclared.post("/inspections", files=counts), 422, "counts.png", "send the form field depth_unit")
    refused(post(depth=made("flat.npy", np.ones(SIZE, np.float32))), 422)
    inner = io.BytesIO()
    tifffile.imwrite(inner, np.zeros((*SIZE, 3), np.uint8), photometric="rgb", compression="jpeg")
    refused(post(rgb=("a.tiff", inner.getvalue())), 422, "a.tiff", "codec 7")
    assert client.get("/inspections?count=true").json()["total"] == 0
    assert not list(service_of(client).inspections.folder.glob("incoming/*/*"))
    assert post().status_code == 201


@pytest.mark.parametrize("keep_scans", [True, False])
def test_parts_that_cannot_be_judged_leave_a_trace(
    start: Start, part: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, keep_scans: bool
) -> None:
    client = start(keep_scans=keep_scans)
    model, files, folder = client.get("/models").json()[0], files_of(part), service_of(client).inspections.folder
    empty = write_member(tmp_path / "flat.npy", np.ones(SIZE, np.float32)).read_bytes()
    answers = [
        client.post("/inspections", files=files | {"depth": depth}, data={"part": f"serial-{number}"})
        for number, depth in enumerate([("broken.tiff", b"no TIFF"), ("flat.npy", empty)])
    ]
    client.post("/inspections")  # a form without a part
    client.post("/inspections", files=files | {"rgb": ("part.gif", b"")})
    page = client.get("/refused", params={"limit": 1, "count": True}).json()
    assert page["total"] == 2 and page["next"] == page["items"][0]["id"]
    kept = [*page["items"], *client.get("/refused", params={"before": page["next"]}).json()["items"]]
    for told, answer in zip(reversed(kept), answers, strict=True):
        refused(answer, 422, told["reason"])
        assert (told["model"], told["model_hash"]) == (model["name"], model["hash"])
        assert f"{told['part']}: not judged by {model['name']}: {told['reason']}" in caplog.text
    assert [told["part"] for told in kept] == ["serial-1", "serial-0"]
    if keep_scans:
        assert (folder / kept[1]["depth"]).read_bytes() == b"no TIFF"
        assert (folder / kept[0]["rgb"]).read_bytes() == files["rgb"][1]
    else:
        assert all(told["rgb"] is told["depth"] is None for told in kept) and not list(folder.glob("*-*-*"))
    assert metric(client, f'das3d_inspections_total{{model="{model["name"]}",verdict="refused"}}') == 2
    assert client.get("/inspections?count=true").json()["total"] == 0 and not list(folder.glob("incoming/*/*"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_never_break_the_service(
    shared: TestClient, formats: dict[str, bytes], part: tuple[Path, Path], data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(formats)))
    content = bytearray(formats[name])
    damage = data.draw(st.sampled_from(["cut", "flip", "insert", "another suffix"]))
    if damage == "cut":
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    elif damage == "flip":
        for _ in range(data.draw(st.integers(1, 8))):
            # Most of what matters lies at the beginning.
            most = data.draw(st.sampled_from([64, 1024, len(content)]))
            content[data.draw(st.integers(0, min(most, len(content)) - 1))] = data.draw(st.integers(0, 255))
    elif damage == "insert":
        at = data.draw(st.integers(0, len(content)))
        content[at:at] = data.draw(st.binary(min_size=1, max_size=64))
    else:
        name = name.partition(".")[0] + "." + data.draw(st.sampled_from([one.partition(".")[2] for one in formats]))
    member = name.partition(".")[0]
    answer = shared.post("/inspections", files=files_of(part) | {member: (name, bytes(content))}, data={"depth_unit": "mm"})
    if answer.status_code != 201:
        assert 400 <= answer.status_code < 500, (answer.status_code, answer.text)
        refused(answer, answer.status_code)


@pytest.fixture(scope="module")
def shared(model: ServedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("shared")
    with TestClient(make_app([model], Inspections(folder)), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def formats(part: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The part in every format, depth in tenths of a millimetre."""
    folder = tmp_path_factory.mktemp("formats")
    rgb, points = read_rgb(part[0]), tifffile.imread(part[1]) * 10_000
    for suffix in ("png", "jpg", "tiff", "bmp"):
        write_member(folder / f"rgb.{suffix}", rgb)
    for suffix in ("tiff", "npy", "npz", "ply", "pcd"):
        write_member(folder / f"depth.{suffix}", points.astype(np.float32))
    write_member(folder / "depth.png", points[..., 2].astype(np.uint16))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_format_is_taken(shared: TestClient, formats: dict[str, bytes], part: tuple[Path, Path]) -> None:
    for name, content in formats.items():
        files = files_of(part) | {"depth": ("depth.npy", formats["depth.npy"]), name.partition(".")[0]: (name, content)}
        answer = shared.post("/inspections", files=files, data={"depth_unit": "0.0001"})
        assert answer.status_code == 201, (name, answer.text)


# ------------------------------------------------------------------------------------------- operation


def test_probes(start: Start, monkeypatch: pytest.MonkeyPatch, part: tuple[Path, Path]) -> None:
    client = start()
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}
    inspections = service_of(client).inspections
    with monkeypatch.context() as patch:
        patch.setattr(inspections, "free", lambda: (1 << 30) - 1)
        told = f"{inspections.folder}: expected 1 GiB of free space, found 1023 MiB"
        refused(client.get("/readyz"), 503, told)
        refused(client.post("/inspections", files=files_of(part)), 507, told)
        assert not list(inspections.folder.glob("incoming/*/*"))
    assert inspections.free() > 0 and client.get("/readyz").status_code == 200
    with inspections._engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE inspections RENAME TO away")
        connection.exec_driver_sql("ALTER TABLE das3d_schema RENAME TO also_away")
    assert client.get("/healthz").status_code == 200
    refused(client.get("/readyz"), 503, "database")
    refused(client.post("/inspections", files=files_of(part)), 503, "database does not answer")
    assert not list(inspections.folder.glob("*-*-*/*")), "no files of a verdict that was not recorded"


def test_a_folder_that_is_gone_is_not_ready(start: Start, part: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    client = start()
    inspections = service_of(client).inspections
    monkeypatch.setattr(inspections, "check", lambda: None)  # as where the database lies elsewhere
    shutil.rmtree(inspections.folder)
    told = f"{inspections.folder}: expected a folder that can be written, found No such file or directory"
    refused(client.get("/readyz"), 503, told)
    refused(client.post("/inspections", files=files_of(part)), 507, told)


@pytest.mark.skipif(os.name == "nt", reason="Windows lets nobody remove a file that is open")
def test_a_database_that_is_removed_under_the_service_takes_no_verdicts(start: Start, part: tuple[Path, Path]) -> None:
    client = start()
    inspections = service_of(client).inspections
    told = client.post("/inspections", files=files_of(part)).json()
    for path in inspections.folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    detail = f"{inspections.folder / DATABASE_FILE}: expected the database that was there at the start, found none"
    refused(client.post("/inspections", files=files_of(part)), 503, detail)
    refused(client.put(f"/inspections/{told['id']}/truth?value=good"), 503, detail)
    refused(client.get("/readyz"), 503, detail)
    assert client.get("/healthz").status_code == 200 and not list(inspections.folder.glob("*-*-*"))


def test_the_description_has_real_examples(start: Start) -> None:
    assert InspectionAnswer.model_validate(INSPECTION).model_dump(mode="json") == INSPECTION
    assert RefusalAnswer.model_validate(REFUSAL).model_dump(mode="json") == REFUSAL
    described = start().get("/openapi.json").json()
    assert {"/inspections", "/inspections/{id}", "/models", "/healthz", "/readyz", "/metrics"} <= set(described["paths"])
    schemas = described["components"]["schemas"]
    assert schemas["InspectionAnswer"]["examples"] == [INSPECTION]
    judged, refused = (schemas[name]["properties"] for name in ("InspectionAnswer", "RefusalAnswer"))
    shared = {name: judged[name] for name in judged.keys() & refused.keys()}
    assert shared.keys() == {"id", "at", "part", "model", "model_hash"}
    assert all("description" in one and one == refused[name] for name, one in shared.items()), "one meaning each"
    assert {"401", "413", "415", "422", "429"} <= set(described["paths"]["/inspections"]["post"]["responses"])
    json.dumps(described, allow_nan=False)


def test_drift_shows_by_the_false_alarm_probability(start: Start, part: tuple[Path, Path]) -> None:
    client, name = start(), "das3d_false_alarm_probability"
    told = client.post("/inspections", files=files_of(part)).json()
    assert metric(client, f'{name}_count{{model="{told["model"]}"}}') == 1
    assert metric(client, f"{name}_sum") == pytest.approx(told["false_alarm_probability"])
    assert metric(client, f'{name}_bucket{{le="0.5"') == (told["false_alarm_probability"] <= 0.5)


def test_the_tolerance_of_verdicts_is_told(start: Start, model: ServedModel) -> None:
    (told,) = start().get("/models").json()
    assert told["threshold"] is not None and told["tolerance"] == SAME
    assert not model.detector.verdict(told["threshold"] + told["tolerance"] / 2)


def test_containers_are_given_the_time_that_a_stop_may_take() -> None:
    services = read_yaml(PROJECT / "compose.yaml")["services"]
    assert int(services["das3d"]["stop_grace_period"].removesuffix("s")) > 2 * Limits().seconds + DATABASE_SECONDS


def test_uploads_do_not_fill_the_memory_of_the_container() -> None:
    service = read_yaml(PROJECT / "compose.yaml")["services"]["das3d"]
    places = [volume.split(":")[1] for volume in service["volumes"] if not volume.endswith(":ro")]
    assert service["environment"]["TMPDIR"] in places and service["environment"]["TMPDIR"] != service["tmpfs"]


def test_a_graceful_stop_finishes_what_was_taken_in(
    model: ServedModel, part: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app([model], Inspections(tmp_path))
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with ThreadPoolExecutor(1) as pool, held(app.state.service, monkeypatch) as go:
        answer = pool.submit(httpx.post, f"{address}/inspections", files=files_of(part), timeout=30)
        wait_for(lambda: bool(app.state.service.metrics.batch._sum.get()))
        server.should_exit = True
        time.sleep(0.2)
        go.set()
        assert answer.result().status_code == 201
    thread.join(20)
    assert not thread.is_alive()
    kept = Inspections(tmp_path)
    assert kept.count() == 1
    kept.close()


def test_a_kill_loses_nothing_that_was_answered(tiny_onnx: Path, part: tuple[Path, Path], tmp_path: Path) -> None:
    # Without PyTorch, as in the container.
    script = "import sys; sys.modules['torch'] = None; from das3d.cli import main; main()"
    words = [sys.executable, "-c", script, "serve", str(tiny_onnx), "--out", str(tmp_path / "out"), "--port", "0"]
    logged = (tmp_path / "log").open("w+")
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=logged, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert process.stdout is not None
    lines = []
    while "listening on" not in (line := process.stdout.readline()):
        assert line, lines
        lines.append(line)
    assert (
        lines[0].startswith(f"{CATEGORY}: O") and ", fp32, " in lines[0] and lines[1].startswith("0 inspections in sqlite:")
    )
    address = line.split()[-1]
    httpx.post(f"{address}/inspections", files=files_of(part) | {"rgb": ("a.png", b"")}, timeout=30)
    logged.seek(0)
    with logged:
        timed = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} WARNING .*not judged by .*a\.png"
        assert re.search(timed, logged.read(), re.MULTILINE), "lines of the log have a time"
    answered: list[dict[str, Any]] = []

    def client() -> None:
        while True:
            try:
                answer = httpx.post(f"{address}/inspections", files=files_of(part), timeout=30)
            except httpx.HTTPError:
                return
            answered.append(answer.json())

    threads = [threading.Thread(target=client) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(answered) >= 6)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    for thread in threads:
        thread.join()
    kept = Inspections(tmp_path / "out")
    recorded = {row.id: row for row in kept.page(limit=500)}
    for told in answered:
        row = recorded[told["id"]]
        assert (row.score, row.part, row.verdict) == (told["score"], told["part"], told["verdict"])
        assert tifffile.imread(kept.file(row.map)).shape == SIZE
    assert all(kept.file(row.map).is_file() for row in recorded.values())
    kept.close()


def test_what_cannot_start_says_why_in_one_line(tiny_run: Callable[..., Path], tmp_path: Path) -> None:
    run = str(tiny_run())
    with pytest.raises(ModelError, match=f"expected another name than {CATEGORY}, which is taken"):
        open_models([run, run])
    assert [one.name for one in open_models([f"a={run}", f"b={run}"])] == ["a", "b"]
    for word in (f"={run}", f" ={run}"):
        with pytest.raises(ModelError, match="expected NAME=PATH, found no name; a path that begins so is given as"):
            open_models([word])
    for word in (f"{tmp_path}/a=b/model.onnx", "C:\\a=b\\model.onnx"):
        with pytest.raises(ModelError, match=re.escape(word)):
            open_models([word])
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(SettingsError, match=r"expected an address that is free, found [^:]"),
    ):
        serve([run], tmp_path, port=taken.getsockname()[1])
    told = das3d("serve", run, "--out", tmp_path, "--database", "postgresql://me:secret@127.0.0.1:1/none")
    assert told.exit_code == 1 and "secret" not in told.output
    assert "error: database postgresql+psycopg://me:***@127.0.0.1:1/none: expected one that can be used" in told.output
    (tmp_path / "key").write_text("short\n")
    told = das3d("serve", run, "--api-key-file", tmp_path / "key")
    assert told.exit_code == 1 and "expected an API key of 8 or more" in told.output and "short" not in told.output
    told = das3d("serve", tmp_path / "nothing")
    assert told.exit_code == 1 and told.output.startswith("error: ") and told.output.count("\n") == 1
