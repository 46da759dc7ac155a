"""What the service does with a part: take it in, score it, record it. No address is known here."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fastapi import HTTPException, UploadFile

import das3d
from das3d.detector import Detector, Prediction
from das3d.errors import DataError, one_line
from das3d.files import DepthFormat, Size
from das3d.measurement import Statistics
from das3d.preparation import PreparedScan, prepare
from das3d.service.answers import InspectionAnswer, ModelAnswer, answer
from das3d.service.gate import Limits, Metrics
from das3d.service.inspections import Inspection, Inspections, Refusal, Verdict
from das3d.service.queueing import Batches, ComputeError, Failure
from das3d.service.retention import Keep, Retention
from das3d.service.uploads import Upload, in_clients_words, read_upload, save_upload
from das3d.streaming import picture_scale, save_map
from das3d.threshold import SAME

log = logging.getLogger("das3d.service")
T = TypeVar("T")
PROBE_SECONDS = 5.0  # for the database to answer a probe
TRIES = 3  # of networks that fail, and times the limit of seconds that they may hang, before only a restart helps
LEAST_FREE = 1 << 30  # bytes on the disk of the folder, below which no more parts are taken in


@dataclass(frozen=True)
class ServedModel:
    """A detector under a name.

    Attributes:
        name: by which requests choose it.
        hash: SHA-256 of its file.
        detector: the model itself.
        depth_format: how depth is read where a request does not say; None takes floats as metres and refuses integers.
        focal_length: of the camera in pixels, where files hold depth alone; None: as `depth_format` says.
    """

    name: str
    hash: str
    detector: Detector
    depth_format: DepthFormat | None
    focal_length: float | None = None

    @property
    def engine(self) -> str:
        return self.detector.engine.describe()

    def describe(self) -> ModelAnswer:
        statistics, threshold = self.detector.statistics, self.detector.threshold
        return ModelAnswer(
            name=self.name,
            hash=self.hash,
            engine=self.engine,
            members=[*(["rgb"] if statistics.has_rgb else []), *(["depth"] if statistics.has_depth else [])],
            depth_unit=None if self.depth_format is None else f"{self.depth_format.scale:g}",
            frame=statistics.frame,
            threshold=None if threshold is None else threshold.value,
            tolerance=SAME,
            scale=picture_scale(self.detector),
            about="no threshold" if threshold is None else threshold.describe(),
        )


class Service:
    """What the addresses share.

    Args:
        models: by their names.
        inspections: where verdicts are recorded; closed with the service.
        limits: what it takes on.
        keep_scans: whether uploads are kept beside the maps.
        keep: how long what is kept.
    """

    def __init__(
        self, models: Sequence[ServedModel], inspections: Inspections, limits: Limits, *, keep_scans: bool, keep: Keep
    ) -> None:
        self.models = {model.name: model for model in models}
        self.inspections, self.limits, self.metrics = inspections, limits, Metrics()
        self.keep_scans = keep_scans
        self.batches = Batches(limits.batch, self.metrics.batch.observe)
        self._readers = ThreadPoolExecutor(limits.readers, "das3d reader")
        self._writers = ThreadPoolExecutor(4, "das3d writer")
        self._folders = ThreadPoolExecutor(1, "das3d folders")  # which must not wait for a database that hangs
        # Threads of their own for those who look and those who ask how it goes: the line does not wait for them.
        self._viewers = ThreadPoolExecutor(limits.readers, "das3d viewer")
        self._probe = ThreadPoolExecutor(1, "das3d probe")
        self._looking = 0
        self.retention = Retention(inspections, keep)

    async def inspect(
        self, served: ServedModel, part: str | None, rgb: UploadFile | None, depth: UploadFile | None, unit: str | None
    ) -> Inspection:
        """Read, score and record one part, in this order; when this returns, the verdict is in the database.

        A part that cannot be judged is recorded likewise, as a refusal, and answered by 422, or by 503 where the networks
        fail on it.

        What takes too long before its recording has begun is given up and leaves nothing. Once that has begun it is waited
        for, as long as the database's own limits allow, so that a client who comes again does not double a row.
        """
        told = _depth_format(unit)
        depth_format = told.over(served.depth_format) if told else served.depth_format
        at, begun = datetime.now(UTC), time.perf_counter()
        deadline = asyncio.get_running_loop().time() + self.limits.seconds
        folder = await self._in(self._folders, self._new_folder)
        take_in = partial(_take_in, folder, served, depth_format, self.limits.pixels, part, rgb, depth)
        recording: Future[None] | None = None
        row: Inspection | Refusal
        prediction: Prediction | None = None
        status = 201
        try:
            try:
                async with asyncio.timeout_at(deadline):
                    with self.metrics.stage_seconds.labels("read").time():
                        upload, scan, size = await self._in(self._readers, take_in)
                    with self.metrics.stage_seconds.labels("compute").time():
                        prediction = await self._computed(served, upload, scan)
                row = _row(served, upload, size, depth_format, prediction, at, time.perf_counter() - begun)
            except UnjudgeableError as error:
                row, status = _refusal(served, error, at), error.status
            with self.metrics.stage_seconds.labels("record").time():
                recording = self._writers.submit(self._record, folder, row, prediction)
                recorded = asyncio.wrap_future(recording)
                await asyncio.wait([recorded], timeout=max(deadline - asyncio.get_running_loop().time(), 0.0))
                if recording.cancel():  # it had not begun
                    raise TimeoutError
                await recorded
        except TimeoutError:
            detail = f"this inspection took longer than {self.limits.seconds:g} s; try again"
            raise HTTPException(503, detail, {"Retry-After": "5"}) from None
        finally:
            if recording is None or recording.cancelled():
                await self._in(self._folders, self.inspections.forget, folder)
        if isinstance(row, Refusal):
            self.metrics.inspections.labels(served.name, "refused").inc()
            log.warning("%s: not judged by %s: %s", row.part, served.name, one_line(row.reason, 500))
            raise HTTPException(status, row.reason)
        self.metrics.inspections.labels(served.name, row.verdict or "none").inc()
        self.metrics.scores.labels(served.name).observe(row.score)
        if row.false_alarm_probability is not None:
            self.metrics.false_alarms.labels(served.name).observe(row.false_alarm_probability)
        return row

    async def _computed(self, served: ServedModel, upload: Upload, scan: PreparedScan) -> Prediction:
        try:
            return await asyncio.wrap_future(self.batches.submit(served.detector, scan))
        except ComputeError as error:
            raise UnjudgeableError(upload, str(error), 503) from error

    async def look(self, work: Callable[[], T]) -> T:
        """What `work` makes of a scan that is kept; 429 where too many look already."""
        if self._looking >= self.limits.queue:
            detail = f"{self.limits.queue} past scans are being looked at, as many as this service shows at once; try again"
            raise HTTPException(429, detail, {"Retry-After": "1"})
        self._looking += 1
        try:
            return await self._in(self._viewers, work)
        finally:
            self._looking -= 1

    def check_life(self) -> None:
        """Raise 503 where only a restart helps: what failed so often, or hangs so long, does not come back by itself."""
        busy, most = self.batches.busy, TRIES * self.limits.seconds
        if not self.batches.alive:
            raise HTTPException(503, "the thread that computes has ended")
        if lasting := [failure for failure in self.batches.failures if failure.tries >= TRIES]:
            raise HTTPException(503, self._explain(lasting))
        if busy > most:
            raise HTTPException(503, _hung(busy, most))

    async def check(self) -> None:
        """Raise 503 where it cannot inspect."""
        self.check_life()
        if self.batches.busy > self.limits.seconds:
            raise HTTPException(503, _hung(self.batches.busy, self.limits.seconds))
        if failures := self.batches.failures:
            raise HTTPException(503, self._explain(failures))
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                await self._in(self._probe, self.inspections.check)
                await self._in(self._probe, self._check_room, 503)
        except TimeoutError:
            raise HTTPException(503, f"the database did not answer within {PROBE_SECONDS:g} s") from None

    def _check_room(self, status: int) -> None:
        folder = self.inspections.folder
        try:
            free = self.inspections.free()
        except OSError as error:
            found = error.strerror or type(error).__name__
            raise HTTPException(status, f"{folder}: expected a folder that can be written, found {found}") from None
        if free < LEAST_FREE:
            expected = f"expected {LEAST_FREE >> 30} GiB of free space, found {free >> 20} MiB"
            raise HTTPException(status, f"{folder}: {expected}")

    def _new_folder(self) -> Path:
        # A disk that fills to the last byte takes the database down with it.
        self._check_room(507)
        return self.inspections.new_folder()

    def choose(self, name: str | None) -> ServedModel:
        """The model of this name; without a name the only one."""
        if not name and len(self.models) == 1:
            return next(iter(self.models.values()))
        known = ", ".join(self.models)
        if not name:
            raise HTTPException(422, f"expected a model in the field model, one of {known}, found none")
        if name not in self.models:
            raise HTTPException(404, f"expected a model of this service, one of {known}, found {one_line(name)!r}")
        return self.models[name]

    def find(self, id: int) -> Inspection:
        """The inspection with this id, or 404."""
        inspection = self.inspections.get(id)
        if inspection is None:
            raise HTTPException(404, f"expected an inspection, found none with id {id}")
        return inspection

    def model_of(self, inspection: Inspection) -> ServedModel | None:
        """The model that judged it; None where it is no more served, whatever has its name now."""
        served = self.models.get(inspection.model)
        return None if served is None or served.hash != inspection.model_hash else served

    def answer(self, inspection: Inspection) -> InspectionAnswer:
        """What clients are told of it."""
        served = self.model_of(inspection)
        return answer(inspection, None if served is None else served.detector.threshold)

    def statistics(self, inspection: Inspection) -> Statistics | None:
        """Those of the model; None where it is no more served."""
        served = self.model_of(inspection)
        return None if served is None else served.detector.statistics

    def focal_length(self, inspection: Inspection) -> float | None:
        """Of the camera, pixels, where depth files are known to be of one lens; None where the model is no more served."""
        served = self.model_of(inspection)
        if served is None:
            return None
        form = served.depth_format
        return served.focal_length or (None if form is None else form.focal_length)

    def _explain(self, failures: Sequence[Failure]) -> str:
        # Of every model whose networks fail; the others compute.
        told = []
        for failure in failures:
            names = [name for name, served in self.models.items() if served.detector is failure.detector]
            told.append(
                f"the networks of {', '.join(names)} cannot compute, tried again {failure.tries} times: {failure.reason}"
            )
        return "; ".join(told)

    def close(self) -> None:
        """Finish what was taken in, then let everything go."""
        self._readers.shutdown()
        self._viewers.shutdown()
        self.batches.close()
        self._writers.shutdown()
        self._folders.shutdown()
        self._probe.shutdown(wait=False)
        self.retention.close()
        self.inspections.close()

    def _record(self, folder: Path, row: Inspection | Refusal, prediction: Prediction | None) -> None:
        try:
            if isinstance(row, Inspection) and prediction is not None:
                # Not `prediction.map`, which would stay in memory as long as anybody holds the prediction.
                save_map(folder / row.map, prediction.window.put_back(prediction.image))
            if not self.keep_scans:
                for name in filter(None, (row.rgb, row.depth)):
                    (folder / name).unlink()
                row.rgb = row.depth = None
            self.inspections.record(folder, row)
        finally:
            self.inspections.forget(folder)  # in this thread, as nobody else may touch it before it has come to its place

    async def _in(self, pool: ThreadPoolExecutor, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, partial(work, *args))


class UnjudgeableError(Exception):
    """A part that came in whole and on which there can be no verdict; `status` is what its client gets."""

    def __init__(self, upload: Upload, reason: str, status: int = 422) -> None:
        super().__init__(reason)
        self.upload, self.reason, self.status = upload, reason, status


def _take_in(
    folder: Path,
    served: ServedModel,
    depth_format: DepthFormat | None,
    most_pixels: int,
    part: str | None,
    rgb: UploadFile | None,
    depth: UploadFile | None,
) -> tuple[Upload, PreparedScan, Size]:
    # The scan itself is let go here: what waits to be computed is small, whatever was sent.
    upload = save_upload(folder, part, rgb, depth)
    try:
        statistics = served.detector.statistics
        scan = read_upload(upload, depth_format, most_pixels, served.focal_length, depth=statistics.has_depth)
        prepared = prepare(scan, statistics, served.detector.settings.preparation)
        return upload, prepared.judgeable, scan.size
    except DataError as error:
        raise UnjudgeableError(upload, in_clients_words(str(error), upload)) from error


def _row(
    served: ServedModel,
    upload: Upload,
    size: Size,
    depth_format: DepthFormat | None,
    prediction: Prediction,
    at: datetime,
    seconds: float,
) -> Inspection:
    threshold = served.detector.threshold
    verdicts: dict[bool | None, Verdict | None] = {None: None, True: "defective", False: "good"}
    return Inspection(
        at=at, part=upload.part, model=served.name, model_hash=served.hash, engine=served.engine,
        version=das3d.__version__, score=prediction.score, threshold=None if threshold is None else threshold.value,
        verdict=verdicts[prediction.defective], false_alarm_probability=prediction.false_alarm_probability,
        regions=[region.to_dict() for region in prediction.regions],
        height=size[0], width=size[1], seconds=round(seconds, 4), map="map.tiff",
        rgb=upload.rgb and upload.rgb.name, depth=upload.depth and upload.depth.name,
        depth_scale=depth_format and depth_format.scale, depth_offset=depth_format and depth_format.offset,
        depth_missing=depth_format and depth_format.missing,
    )  # fmt: skip


def _refusal(served: ServedModel, error: UnjudgeableError, at: datetime) -> Refusal:
    upload = error.upload
    return Refusal(
        at=at, part=upload.part, model=served.name, model_hash=served.hash, version=das3d.__version__, reason=error.reason,
        rgb=upload.rgb and upload.rgb.name, depth=upload.depth and upload.depth.name,
    )  # fmt: skip


def _hung(busy: float, most: float) -> str:
    return f"the networks cannot compute: expected a batch within {most:g} s, found one under way for {busy:.0f} s"


def _depth_format(unit: str | None) -> DepthFormat | None:
    if not unit:
        return None
    try:
        return DepthFormat.parse(unit)
    except DataError as error:
        raise HTTPException(422, f"depth_unit: {error}") from None


def served_model(
    name: str,
    hash: str,
    detector: Detector,
    depth_format: DepthFormat | None = None,
    focal_length: float | None = None,
) -> ServedModel:
    """A detector as the service holds it: depth is read as that of its training parts where nobody says else."""
    reading = detector.reading(depth_format=depth_format)
    return ServedModel(name, hash, detector, reading["depth_format"], focal_length)
