"""Experiment trackers that training can write to beside ``losses.csv``: TensorBoard and MLflow.

A tracker is told losses, pictures and final figures; what it is told is also in the run folder, so nothing depends on it.
Which trackers a run has stands in its ``tracking.json``: a run that goes on from a checkpoint does so in the same ones, and
`evaluate` adds its figures to them.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from das3d.atomic import write_atomically
from das3d.console import warn
from das3d.errors import Das3dError, SettingsError, missing, one_line
from das3d.settings import Settings, flatten, settings_to_toml

FILE = "tracking.json"
PACKAGES = {"tensorboard": ("tensorboard",), "mlflow": ("mlflow", "sqlalchemy", "alembic")}  # to import, by tracker


class Tracker(Protocol):
    """What training and evaluation tell; a further tracker implements these five and stands in `OPENERS`.

    Attributes:
        place: where the run can be looked at, for people.
    """

    place: str

    def begin(self, iteration: int) -> None:
        """The run starts, or goes on after `iteration`; what was logged beyond is void. Called once, before all else."""

    def scalars(self, values: Mapping[str, float], iteration: int) -> None:
        """Losses, rate and speed at an iteration."""

    def picture(self, file: Path, iteration: int) -> None:
        """A picture that training wrote; its name up to the iteration tells what it shows."""

    def facts(self, values: Mapping[str, Any]) -> None:
        """Figures and words about the finished run, by name."""

    def close(self, failed: bool) -> None:
        """The process is done with the run."""


class Tracking(AbstractContextManager["Tracking"]):
    """All trackers of a run; none in most runs, and then nothing happens.

    Hours of training must not be lost to a server that went away: a tracker that fails is dropped with a warning.
    """

    def __init__(self, trackers: Mapping[str, Tracker] | None = None) -> None:
        self.trackers = dict(trackers or {})

    def describe(self) -> str:
        """Such as "tensorboard: runs/mine/tensorboard"; empty without trackers."""
        return "; ".join(f"{name}: {tracker.place}" for name, tracker in self.trackers.items())

    def begin(self, iteration: int) -> None:
        self._tell(lambda tracker: tracker.begin(iteration))

    def scalars(self, values: Mapping[str, float], iteration: int) -> None:
        self._tell(lambda tracker: tracker.scalars(values, iteration))

    def picture(self, file: Path, iteration: int) -> None:
        self._tell(lambda tracker: tracker.picture(file, iteration))

    def facts(self, values: Mapping[str, Any]) -> None:
        """As `Tracker.facts`; groups are flattened to "group.name", and what is not known is left out."""
        flat = {name: value for name, value in flatten(values).items() if isinstance(value, (str, int, float))}
        self._tell(lambda tracker: tracker.facts(flat))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._tell(lambda tracker: tracker.close(failed=kind is not None), last=True)

    def _tell(self, call: Callable[[Tracker], None], *, last: bool = False) -> None:
        for name, tracker in list(self.trackers.items()):
            try:
                call(tracker)
            except Exception as error:  # whatever these packages raise
                del self.trackers[name]
                if not last:
                    with suppress(Exception):  # so that its run does not look as if it went on
                        tracker.close(failed=True)
                warn(f"{name}: {one_line(error) or type(error).__name__}; going on without it")


def check_trackers(names: Iterable[str]) -> None:
    """Raises SettingsError where a tracker is not known, MissingPackageError where its package is not installed."""
    for name in names:
        if name not in PACKAGES:
            raise SettingsError(f"--track: expected {' or '.join(PACKAGES)}, found {name!r}")
        for package in PACKAGES[name]:
            if find_spec(package) is None:
                raise missing(f"--track {name}", package)


def trackers_of(run: Path) -> dict[str, dict[str, Any]]:
    """The trackers that a run has, with what each needs to go on."""
    try:
        return dict(json.loads((run / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def open_tracking(run: Path, names: Iterable[str], settings: Settings, *, anew: bool = False) -> Tracking:
    """Trackers for a run folder: those named, and those that it has had.

    Args:
        run: the folder.
        names: of trackers.
        settings: of the run.
        anew: training begins. What an attempt before has left in the folder is not gone on with.

    Raises:
        SettingsError: a tracker is not known, or its server does not answer.
        MissingPackageError: its package is not installed.
    """
    known = {} if anew else trackers_of(run)
    names = dict.fromkeys([*known, *names])
    if not names:
        if anew:  # so that what is told of this run does not come to stand with that attempt
            (run / FILE).unlink(missing_ok=True)
        return Tracking()
    check_trackers(names)
    trackers = {}
    for name in names:
        trackers[name], known[name] = OPENERS[name](run, settings, known.get(name, {}))
    write_atomically(run / FILE, json.dumps(known, indent=2).encode())
    return Tracking(trackers)


def record(run: Path, settings: Settings, values: Mapping[str, Any], iteration: int) -> None:
    """Tell the trackers that a finished run has further facts about it, such as the figures of an evaluation.

    A tracker that is away, or whose package is not on this machine, costs a warning: the run has its facts all the same.
    """
    try:
        with open_tracking(run, (), settings) as tracking:
            tracking.begin(iteration)
            tracking.facts(values)
    except Das3dError as error:
        warn(str(error))


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# ------------------------------------------------------------------------------------------- TensorBoard


class TensorBoard:
    """Event files in ``RUN/tensorboard``; ``tensorboard --logdir`` on the folder above shows many runs side by side."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder, self.settings = folder, settings
        self.place = str(folder)
        self.writer: Any = None
        self.iteration = 0

    @classmethod
    def open(cls, run: Path, settings: Settings, known: dict[str, Any]) -> tuple[TensorBoard, dict[str, Any]]:
        return cls(run / "tensorboard", settings), {}

    def begin(self, iteration: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard reads files in the order of their names, which tell the second and not what came first within it.
        while list(self.folder.glob(f"events.out.tfevents.{int(time.time())}.*")):
            time.sleep(0.05)
        # It hides what an earlier process logged from this step on, texts aside: where training begins, all of it.
        self.writer = SummaryWriter(str(self.folder), purge_step=iteration + 1 if iteration else 0)
        self.iteration = iteration
        if not iteration:
            self.writer.add_text("settings", f"```toml\n{settings_to_toml(self.settings)}\n```", 0)

    def scalars(self, values: Mapping[str, float], iteration: int) -> None:
        self.iteration = iteration
        for name, value in values.items():
            group, _, rest = name.partition("_")
            self.writer.add_scalar(f"loss/{rest}" if group == "loss" else f"training/{name}", value, iteration)

    def picture(self, file: Path, iteration: int) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(file) as image:
            self.writer.add_image(subject(file), np.asarray(image.convert("RGB")), iteration, dataformats="HWC")

    def facts(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if is_number(value):
                self.writer.add_scalar(f"result/{name}", value, self.iteration)
        lines = [f"| {name} | {value} |" for name, value in values.items()]
        self.writer.add_text("result", "\n".join(["| | |", "|---|---|", *lines]), self.iteration)

    def close(self, failed: bool) -> None:
        if self.writer is not None:
            self.writer.close()


# ------------------------------------------------------------------------------------------- MLflow


class MLflow:
    """A run on the server that MLFLOW_TRACKING_URI names, or else in ``mlflow.db`` in the working directory.

    The experiment is that of MLFLOW_EXPERIMENT_NAME, or "das3d".
    """

    def __init__(self, client: Any, run_id: str) -> None:
        self.client, self.run_id = client, run_id
        self.place = f"run {run_id} on {client.tracking_uri}"
        self.logged = -1

    @classmethod
    def open(cls, run: Path, settings: Settings, known: dict[str, Any]) -> tuple[MLflow, dict[str, Any]]:
        import mlflow
        from mlflow import MlflowClient
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells at length how it makes its database
        server = known.get("server") or mlflow.get_tracking_uri()
        try:
            client = MlflowClient(tracking_uri=server)
            if "run" in known:
                client.update_run(known["run"], status="RUNNING")
                return cls(client, known["run"]), known
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "das3d")
            experiment = client.get_experiment_by_name(name)
            made = experiment.experiment_id if experiment else client.create_experiment(name)
            run_id = client.create_run(made, run_name=run.resolve().name).info.run_id
            chosen = flatten(settings.model_dump(mode="json")).items()
            client.log_batch(run_id, params=[Param(name, str(value)) for name, value in chosen])
        except MlflowException as error:
            raise SettingsError(f"--track mlflow: expected {server} to answer, found {one_line(error)}") from None
        return cls(client, run_id), {"server": server, "run": run_id}

    def begin(self, iteration: int) -> None:
        # MLflow cannot take anything back. What an earlier process logged beyond its last checkpoint stays; the same
        # iterations give the same losses, so they are not logged twice.
        if iteration:
            past = self.client.get_metric_history(self.run_id, "loss_discriminator")
            self.logged = max((metric.step for metric in past), default=-1)

    def scalars(self, values: Mapping[str, float], iteration: int) -> None:
        from mlflow.entities import Metric

        if iteration > self.logged:
            now = time.time_ns() // 1_000_000
            self.client.log_batch(self.run_id, [Metric(name, value, now, iteration) for name, value in values.items()])

    def picture(self, file: Path, iteration: int) -> None:
        self.client.log_artifact(self.run_id, str(file), "pictures")

    def facts(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            allowed = re.sub(r"[^/\w.\- :]", "_", name)  # kinds of defect may be called anything
            if is_number(value):
                self.client.log_metric(self.run_id, allowed, value)
            else:
                self.client.set_tag(self.run_id, allowed, value)

    def close(self, failed: bool) -> None:
        self.client.set_terminated(self.run_id, "FAILED" if failed else "FINISHED")


def subject(file: Path) -> str:
    """What a picture shows: its name without the iteration."""
    return file.stem.rstrip("0123456789").rstrip("_")


Opener = Callable[[Path, Settings, dict[str, Any]], tuple[Tracker, dict[str, Any]]]
OPENERS: dict[str, Opener] = {"tensorboard": TensorBoard.open, "mlflow": MLflow.open}
