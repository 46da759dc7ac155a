"""Trackers: they hold what losses.csv holds, a resumed run goes on in them, and none of them can stop a training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from helpers import rows_of
from test_training import cpu, tiny_parts, tiny_settings
from tiny import CHANGES, das3d

from das3d import tracking
from das3d.errors import Das3dError, SettingsError
from das3d.run import train
from das3d.settings import make_settings
from das3d.tracking import TensorBoard, Tracking, check_trackers, open_tracking, record
from das3d.training import fit

LOSSES = ("loss_rgb", "loss_depth", "loss_discriminator")
needs_tensorboard = pytest.mark.usefixtures("tensorboard")
needs_mlflow = pytest.mark.usefixtures("mlflow")
quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what the trackers import


@pytest.fixture
def tensorboard() -> None:
    pytest.importorskip("tensorboard", reason="the extra `tracking` is not installed")


@pytest.fixture
def mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in tracking.PACKAGES["mlflow"]:
        pytest.importorskip(package, reason="the extra `tracking` is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)  # where MLflow puts artifacts


class Notes:
    """A tracker that remembers."""

    place = "memory"

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def begin(self, iteration: int) -> None:
        self.told.append(("begin", iteration))

    def scalars(self, values: Mapping[str, float], iteration: int) -> None:
        self.told.append(("scalars", iteration, dict(values)))

    def picture(self, file: Path, iteration: int) -> None:
        assert file.is_file()
        self.told.append(("picture", iteration, tracking.subject(file)))

    def facts(self, values: Mapping[str, Any]) -> None:
        self.told.append(("facts", dict(values)))

    def close(self, failed: bool) -> None:
        self.told.append(("close", failed))


class Broken(Notes):
    def scalars(self, values: Mapping[str, float], iteration: int) -> None:
        raise ConnectionError("no route to host\nand so on")

    def close(self, failed: bool) -> None:
        super().close(failed)
        raise ConnectionError("still no route")


def test_trackers_are_told_what_the_log_holds(tmp_path: Path) -> None:
    notes = Notes()
    with Tracking({"notes": notes}) as trackers:
        fit(tiny_parts(), tiny_settings("training.iterations=45"), tmp_path, fabric=cpu(), tracking=trackers)
        trackers.facts({"threshold": {"value": 0.5, "of": None}, "machine": "this one", "kinds": ["dent"]})
    assert notes.told[:2] == [("begin", 0), ("picture", 0, "training_pairs")]
    scalars = [(iteration, values) for kind, iteration, *values in notes.told[:-2] if kind == "scalars"]
    rows = rows_of(tmp_path / "losses.csv")
    assert [iteration for iteration, _ in scalars] == [20, 40, 45] == [int(row["iteration"]) for row in rows]
    for (_, (values,)), row in zip(scalars, rows, strict=True):
        assert values == {name: float(row[name]) for name in (*LOSSES, "learning_rate", "samples_per_second")}
    assert notes.told[-3] == ("picture", 45, "repair")
    assert notes.told[-2] == ("facts", {"threshold.value": 0.5, "machine": "this one"})
    assert notes.told[-1] == ("close", False)


def test_tracker_that_fails_is_dropped_and_training_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = Broken()
    trackers = Tracking({"broken": broken, "notes": Notes()})
    state = fit(tiny_parts(), tiny_settings("training.iterations=45"), tmp_path, fabric=cpu(), tracking=trackers)
    assert state.iteration == 45 and list(trackers.trackers) == ["notes"]
    assert capsys.readouterr().err.count("warning: broken: no route to host and so on; going on without it\n") == 1
    assert broken.told[-1] == ("close", True), "its run does not look as if it went on"


def test_a_run_whose_end_cannot_be_told_is_not_called_failed() -> None:
    broken = Broken()
    with Tracking({"broken": broken}):
        pass
    assert broken.told == [("close", False)]


def test_run_that_fails_is_closed_as_failed() -> None:
    notes = Notes()
    with pytest.raises(KeyboardInterrupt), Tracking({"notes": notes}):
        raise KeyboardInterrupt
    assert notes.told == [("close", True)]


def test_no_tracker_leaves_no_trace(tmp_path: Path) -> None:
    with open_tracking(tmp_path, (), make_settings()) as none:
        none.begin(0)
        none.facts({"a": 1})
    assert not list(tmp_path.iterdir())


def test_missing_package_and_unknown_tracker_are_told_before_anything_starts(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError, match="--track: expected tensorboard or mlflow, found 'wandb'"):
        check_trackers(["wandb"])
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    result = das3d("train", tiny_data, "--out", tmp_path / "run", "--track", "mlflow")
    assert result.exit_code == 1
    assert result.stderr == (
        'error: --track mlflow needs mlflow, which is not installed; install it by pip install "das3d[tracking]"\n'
    )
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_is_away_in_the_end_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def away(*_: object) -> None:
        raise SettingsError("--track mlflow: expected a server to answer, found none")

    (tmp_path / tracking.FILE).write_text('{"mlflow": {"run": "1"}}')
    monkeypatch.setattr(tracking, "check_trackers", lambda names: None)
    monkeypatch.setitem(tracking.OPENERS, "mlflow", away)
    tracking.record(tmp_path, make_settings(), {"i_auroc": 1.0}, 3)
    assert capsys.readouterr().err == "warning: --track mlflow: expected a server to answer, found none\n"


# ------------------------------------------------------------------------------------ the real ones


def crash_and_resume(folder: Path, names: list[str], patch: pytest.MonkeyPatch) -> None:
    """12 iterations: a process that died at 9, with its last checkpoint at 5, and one that went on from there."""
    patch.setattr("das3d.training.LOG_EVERY", 4)
    settings = tiny_settings("training.iterations=12", "training.checkpoint_minutes=0.00001")
    checkpoint = folder / "checkpoint.pt"

    class Crash(Notes):
        at_5 = b""

        def picture(self, file: Path, iteration: int) -> None:
            if iteration == 5:
                self.at_5 = checkpoint.read_bytes()
            if iteration == 9:
                checkpoint.write_bytes(self.at_5)
                raise SystemExit  # which is no Exception and so not taken for a failure of the tracker

    with pytest.raises(SystemExit), open_tracking(folder, names, settings) as trackers:  # noqa: PT012
        trackers.trackers["crash"] = Crash()
        fit(tiny_parts(), settings, folder, fabric=cpu(), tracking=trackers)
    with open_tracking(folder, (), settings) as trackers:
        fit(tiny_parts(), settings, folder, fabric=cpu(), resume=True, tracking=trackers)
    record(folder, settings, {"i_auroc": 0.875, "machine": "this one"}, 12)


def test_log_is_whole_after_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash_and_resume(tmp_path, [], monkeypatch)
    assert [row["iteration"] for row in rows_of(tmp_path / "losses.csv")] == ["4", "8", "12"]


@quiet
@needs_tensorboard
def test_tensorboard_holds_each_step_once_after_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    crash_and_resume(tmp_path, ["tensorboard"], monkeypatch)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    rows = rows_of(tmp_path / "losses.csv")
    for name in LOSSES:
        found = [(event.step, event.value) for event in events.Scalars(name.replace("_", "/", 1))]
        assert found == [(int(row["iteration"]), pytest.approx(float(row[name]))) for row in rows]
    assert [event.value for event in events.Scalars("result/i_auroc")] == [0.875]
    tags = events.Tags()
    assert set(tags["images"]) == {"training_pairs", "repair"}
    assert {"settings/text_summary", "result/text_summary"} <= set(tags["tensors"])


@quiet
@needs_mlflow
def test_mlflow_goes_on_in_the_same_run_after_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    folder = tmp_path / "gland"
    crash_and_resume(folder, ["mlflow"], monkeypatch)
    client = MlflowClient()
    experiment = client.get_experiment_by_name("das3d")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "gland" and run.info.status == "FINISHED"
    assert json.loads((folder / tracking.FILE).read_text())["mlflow"]["run"] == run.info.run_id
    for name in LOSSES:
        history = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]
        assert history == [(int(row["iteration"]), float(row[name])) for row in rows_of(folder / "losses.csv")]
    assert run.data.params["training.iterations"] == "12" and run.data.metrics["i_auroc"] == 0.875
    assert run.data.tags["machine"] == "this one"
    pictures = {file.path for file in client.list_artifacts(run.info.run_id, "pictures")}
    assert {"pictures/training_pairs.png", "pictures/repair_000012.png"} <= pictures


def fail_and_begin_anew(data: Path, folder: Path, names: list[str], patch: pytest.MonkeyPatch, *, resume: bool) -> None:
    """A training that failed at iteration 8, before any checkpoint, and another with another rate in its folder."""
    patch.setattr("das3d.training.LOG_EVERY", 4)

    def fail(*_: object) -> None:
        raise Das3dError("training diverged")

    settings = make_settings("demo", changes=[*CHANGES, "training.learning_rate=0.001"])
    with patch.context() as failing:
        failing.setattr("das3d.training.save_checkpoint", fail)
        with pytest.raises(Das3dError, match="diverged"):
            train(data, folder, settings=settings, device="cpu", track=names)
    assert (folder / tracking.FILE).is_file() and not (folder / "checkpoint.pt").exists()
    if resume:
        train(data, folder, device="cpu", resume=True)  # in the trackers that the run has
    else:
        other = make_settings("demo", changes=[*CHANGES, "training.learning_rate=0.002", "training.iterations=4"])
        train(data, folder, settings=other, device="cpu", track=names)


@quiet
@needs_tensorboard
@pytest.mark.parametrize("resume", [False, True])
def test_tensorboard_shows_nothing_of_an_attempt_before(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fail_and_begin_anew(tiny_data, tmp_path, ["tensorboard"], monkeypatch, resume=resume)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in LOSSES:
        found = [(event.step, event.value) for event in events.Scalars(name.replace("_", "/", 1))]
        assert found == [
            (int(row["iteration"]), pytest.approx(float(row[name]))) for row in rows_of(tmp_path / "losses.csv")
        ]
    latest = events.Tensors("settings/text_summary")[-1]  # texts are never hidden
    assert f"learning_rate = {0.001 if resume else 0.002}" in latest.tensor_proto.string_val[0].decode()


@quiet
@needs_mlflow
@pytest.mark.parametrize("resume", [False, True])
def test_mlflow_has_a_run_for_each_attempt(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    from mlflow import MlflowClient

    fail_and_begin_anew(tiny_data, tmp_path / "gland", ["mlflow"], monkeypatch, resume=resume)
    client = MlflowClient()
    second, first = client.search_runs([client.get_experiment_by_name("das3d").experiment_id])  # the latest first
    assert (first.info.status, second.info.status) == ("FAILED", "FINISHED")
    assert json.loads((tmp_path / "gland" / tracking.FILE).read_text())["mlflow"]["run"] == second.info.run_id
    assert second.data.params["training.learning_rate"] == ("0.001" if resume else "0.002")
    history = [metric.step for metric in client.get_metric_history(second.info.run_id, "loss_rgb")]
    assert history == [int(row["iteration"]) for row in rows_of(tmp_path / "gland" / "losses.csv")]
    assert "threshold.value" in second.data.metrics and "threshold.value" not in first.data.metrics


def test_a_training_without_trackers_tells_nothing_to_those_of_an_attempt_before(tmp_path: Path) -> None:
    (tmp_path / tracking.FILE).write_text('{"mlflow": {"run": "1"}}')
    with open_tracking(tmp_path, (), make_settings(), anew=True) as none:
        assert not none.trackers
    assert not tracking.trackers_of(tmp_path)


@quiet
@needs_mlflow
def test_server_that_does_not_answer_is_told_before_training(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    result = das3d("train", tiny_data, "--out", tmp_path / "run", "--preset", "demo", "--track", "mlflow")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: --track mlflow: expected http://127.0.0.1:9 to answer, found ")
    assert not (tmp_path / "run" / "losses.csv").exists()


@quiet
@needs_tensorboard
def test_tensorboard_s_files_are_in_the_order_of_their_names(tmp_path: Path) -> None:
    for iteration in (0, 3):
        writes = TensorBoard(tmp_path, make_settings("demo"))
        writes.begin(iteration)
        writes.close(failed=False)
    seconds = [path.name.split(".")[3] for path in tmp_path.iterdir()]
    assert len(set(seconds)) == 2


@quiet
@needs_tensorboard
def test_evaluation_adds_its_figures_to_the_run(tiny_data: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    changes = [word for change in CHANGES for word in ("--set", change)]
    result = das3d("train", tiny_data, "--out", run, "--preset", "demo", *changes, "--track", "tensorboard")
    assert f"tensorboard: {run / 'tensorboard'}" in result.stdout.splitlines()
    assert das3d("evaluate", run, "--data", tiny_data).exit_code == 0
    metrics = json.loads((run / "evaluation" / "metrics.json").read_text())
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    for name in ("i_auroc", "aupro_30", "per_defect.dent"):
        value = metrics["per_defect"]["dent"] if "." in name else metrics[name]
        assert [event.value for event in events.Scalars(f"result/{name}")] == [pytest.approx(value)]
    assert events.Scalars("result/threshold.value")[0].value == pytest.approx(metrics["threshold"]["value"])
