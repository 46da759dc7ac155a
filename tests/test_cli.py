"""The command line: what it says, what it refuses, how soon it answers."""

from __future__ import annotations

import importlib
import inspect
import os
import signal
import time
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from helpers import python
from tiny import das3d

from das3d.arguments import parse_depth_unit, parse_duration
from das3d.cli import reported
from das3d.errors import Das3dError, SettingsError
from das3d.files import DepthFormat
from das3d.service import Limits

HEAVY = ("torch", "lightning", "cv2", "numpy", "scipy", "pydantic")


COMMANDS = (
    "inspect", "synth", "train", "evaluate", "report", "predict", "watch", "drift", "calibrate", "serve", "prune",
    "export", "benchmark", "demo-data", "version",
)  # fmt: skip


def test_help_has_a_line_for_every_command() -> None:
    result = das3d("--help")
    assert result.exit_code == 0
    lines = result.output.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in lines] == list(COMMANDS)
    assert all(len(line.split()) > 3 for line in lines), "and says what it does"


def test_help_comes_without_loading_anything_heavy() -> None:
    code = (
        f"import sys, das3d.cli; loaded = [m for m in {HEAVY} if m in sys.modules]; sys.exit(str(loaded) if loaded else 0)"
    )
    python("-c", code)


@pytest.mark.parametrize(
    ("command", "missing"), [("train", "data"), ("evaluate", "run"), ("predict", "run"), ("demo-data", "folder")]
)
def test_a_command_without_arguments_says_what_is_missing(command: str, missing: str) -> None:
    result = das3d(command)
    assert result.exit_code == 2
    assert "Missing" in result.output and missing in result.output


def test_predict_wants_one_part_or_a_folder(tmp_path: Path) -> None:
    for options in ((), ("--rgb", "a.png", "--data", tmp_path)):
        result = das3d("predict", tmp_path, "--out", tmp_path / "out", *options)
        assert result.exit_code == 2
        assert "expected either --rgb and/or --depth of one part, or --data FOLDER of many" in result.output


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("20m", 1200), ("1.5h", 5400), ("0.5m", 30)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "20", "m", "-5m", "0s", "nanm", "infh", "5 days", "1e12h"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="--budget: expected a time such as 90s, 20m or 1h, found"):
        parse_duration(text)


def test_depth_units() -> None:
    assert parse_depth_unit(None) is None
    assert parse_depth_unit("mm") == DepthFormat.from_unit("mm")
    assert parse_depth_unit("0.0001") == DepthFormat(scale=0.0001)


@pytest.mark.parametrize("text", ["", "inch", "0", "-1", "nan", "5000"])
def test_what_is_no_depth_unit_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="--depth-unit: expected one of m, cm, mm, um, or metres per count"):
        parse_depth_unit(text)


def test_version_is_the_packages() -> None:
    import das3d as package

    assert das3d("version").output.strip() == package.__version__


def test_errors_are_lines_without_a_traceback(tmp_path: Path) -> None:
    result = das3d("train", tmp_path / "none", "--out", tmp_path / "out", "--set", "synthesis.drop=2")
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    assert all(line.startswith("error: ") for line in result.stderr.splitlines())
    assert "synthesis.drop" in result.stderr


MM = DepthFormat.from_unit("mm")
READING = ("--category", "bolt", "--light", "2", "--depth-unit", "mm")
AS_READ = {"category": "bolt", "light": 2, "depth_format": MM}


@pytest.mark.parametrize(
    ("words", "work", "told"),
    [
        (["inspect", "DATA", *READING], "datacheck.check_data", AS_READ),
        (["synth", "DATA", *READING, "--seed", "7"], "preview.preview_pairs", {**AS_READ, "settings.seed": 7}),
        (["synth", "DATA", *READING, "--recipe", "a.json", "--index", "3"], "preview.preview_again",
         {**AS_READ, "recipes": Path("a.json"), "index": 3}),
        (["train", "DATA", "--out", "OUT", *READING, "--seed", "7"], "run.train", {**AS_READ, "settings.seed": 7}),
        (["evaluate", "RUN", "--data", "DATA", *READING], "evaluation.evaluate", AS_READ),
        (["calibrate", "RUN", "--data", "DATA", *READING], "calibration.calibrate", AS_READ),
        (["benchmark", "DATA", "--out", "OUT", *READING[2:], "--categories", "bolt,nut", "--seeds", "7,8"],
         "benchmark.make_plan", {"light": 2, "depth_format": MM, "categories": ["bolt", "nut"], "seeds": (7, 8)}),
        (["predict", "RUN", "--data", "DATA", "--out", "OUT", *READING[2:], "--focal-length", "615"],
         "prediction.predict_folder", {"light": 2, "depth_format": MM, "focal_length": 615.0}),
        (["watch", "RUN", "--data", "DATA", "--out", "OUT", *READING[4:], "--focal-length", "615", "--settle", "3s"],
         "watching.watch", {"depth_format": MM, "focal_length": 615.0, "settle": 3.0, "once": False}),
        *(([command, "RUN", "--data", "DATA", "--out", "OUT", "--device", "cuda:1", "--engine", "onnxruntime"],
           "detector.load", {"path": Path("RUN"), "device": "cuda:1", "engine": "onnxruntime"})
          for command in ("evaluate", "predict", "watch")),
        (["export", "RUN", "--precision", "fp16", "--data", "DATA", "--to", "openvino"], "exporting.export",
         {"precision": "fp16", "data": Path("DATA"), "to": "openvino"}),
        (["serve", "RUN", "--queue", "3", "--batch", "2", "--max-upload", "1.5", "--max-pixels", "2.5", "--max-seconds",
          "4", "--no-keep-scans", "--depth-unit", "mm", "--port", "0"], "service.serve",
         {"limits.queue": 3, "limits.batch": 2, "limits.upload": 3 << 19, "limits.pixels": 2_500_000, "limits.seconds": 4.0,
          "keep_scans": False, "depth_format": MM, "port": 0}),
        (["serve", "RUN"], "service.serve", {"limits": Limits(), "keep_scans": True, "depth_format": None}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)  # fmt: skip
def test_options_arrive_where_the_work_is_done(
    words: list[str], work: str, told: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _, name = f"das3d.{work}".rpartition(".")
    arguments = inspect.signature(getattr(importlib.import_module(module), name))
    heard: list[Any] = []

    def listen(*values: Any, **options: Any) -> None:
        bound = arguments.bind(*values, **options)
        heard.append(SimpleNamespace(**{**bound.arguments, **bound.kwargs}))
        raise Das3dError("that was all")

    (tmp_path / "DATA" / "bolt").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("das3d.detector.load", lambda *_: None)
    monkeypatch.setattr("das3d.detector.model_hash", lambda _: "")
    monkeypatch.setattr(f"das3d.{work}", listen)
    assert das3d(*words).stderr == "error: that was all\n"
    (one,) = heard
    assert {option: attrgetter(option)(one) for option in told} == told


def test_who_is_terminated_ends_as_who_is_interrupted(capsys: pytest.CaptureFixture[str]) -> None:
    kept = []

    @reported
    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            kept.append("what was done")

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(typer.Exit) as ended:
        work()
    assert ended.value.exit_code == 143 and kept and capsys.readouterr().err == "stopped\n"
    assert signal.getsignal(signal.SIGTERM) == before


def test_who_stops_a_training_is_told_how_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    (tmp_path / "DATA").mkdir()
    monkeypatch.setattr("das3d.run.train", stop)
    stopped = das3d("train", tmp_path / "DATA", "--out", tmp_path / "run")
    assert (stopped.exit_code, stopped.stderr) == (130, "stopped; the same command with --resume goes on\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["predict", "run", "--out", "out", "--rgb", "a.png", "--light", "4"], "--data FOLDER"),
        (["calibrate", "run", "--max-false-alarm", "1%", "--light", "4"], "expected --data"),
        (["calibrate", "run", "--data", "good", "--out", "."], "is a directory"),
        (["report", "run", "--out", "."], "is a directory"),
        (["predict", "run", "--data", "good", "--out", __file__], "is a file"),
        (["watch", "run", "--data", "good", "--out", __file__], "is a file"),
        (["evaluate", "run", "--data", "good", "--out", __file__], "is a file"),
        (["serve", "run", "--out", __file__], "is a file"),
        (["benchmark", "good", "--out", __file__], "is a file"),
    ],
)
def test_options_that_could_not_be_heard_are_refused_at_once(words: list[str], said: str) -> None:
    result = das3d(*words)
    assert result.exit_code == 2 and said in " ".join(result.output.split()), result.output
