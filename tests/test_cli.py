"""The command line: what it says, what it refuses, how soon it answers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from tiny import das3d

from das3d.arguments import parse_depth_unit, parse_duration
from das3d.cli import reported
from das3d.errors import SettingsError
from das3d.files import DepthFormat

HEAVY = ("torch", "lightning", "cv2", "numpy", "scipy", "pydantic")


def test_help_names_every_command() -> None:
    result = das3d("--help")
    assert result.exit_code == 0
    for command in (
        "inspect",
        "synth",
        "train",
        "evaluate",
        "predict",
        "watch",
        "drift",
        "benchmark",
        "demo-data",
        "version",
    ):
        assert command in result.output


def test_help_comes_without_loading_anything_heavy() -> None:
    code = (
        f"import sys, das3d.cli; loaded = [m for m in {HEAVY} if m in sys.modules]; sys.exit(str(loaded) if loaded else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["predict", "run", "--out", "out", "--rgb", "a.png", "--light", "4"], "--data FOLDER"),
        (["calibrate", "run", "--max-false-alarm", "1%", "--light", "4"], "expected --data"),
        (["calibrate", "run", "--data", "good", "--out", "."], "is a directory"),
        (["report", "run", "--out", "."], "is a directory"),
    ],
)
def test_options_that_could_not_be_heard_are_refused_at_once(words: list[str], said: str) -> None:
    result = das3d(*words)
    assert result.exit_code == 2 and said in " ".join(result.output.split()), result.output
