"""Training on several processes: the model that one process would train, written and told once."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import python, rows_of, wait_for
from lightning.fabric import Fabric
from test_training import tiny_parts, tiny_settings
from tiny import CHANGES, das3d
from torch import nn

from das3d import training
from das3d._batch_norm import SharedBatchNorm2d, share_batch_norm
from das3d.detector import load

# Two processes add up in another order than one, and the optimiser soon makes whole digits of the last bit. In double
# precision there are digits enough to tell rounding from a mistake.
SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_processes import fit_in_double
fit_in_double(Path({out!r}), processes=2)
"""


def fit_in_double(out: Path, processes: int) -> None:
    torch.set_num_threads(1)
    training.LOG_EVERY = 1
    fabric = Fabric(accelerator="cpu", devices=processes, precision="64-true")
    fabric.launch()
    training.fit(tiny_parts(), tiny_settings("training.iterations=4"), out, fabric=fabric)


def curve(folder: Path) -> list[list[float]]:
    rows = rows_of(folder / "losses.csv")
    return [[float(row[name]) for name in row if name.startswith("loss")] for row in rows]


def test_two_processes_train_as_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "LOG_EVERY", 1)
    fit_in_double(tmp_path / "one", processes=1)
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), out=str(tmp_path / "two")))
    python(script)
    one, two = curve(tmp_path / "one"), curve(tmp_path / "two")
    assert len(one) == 4 and one[0] != one[-1]
    torch.testing.assert_close(torch.tensor(two), torch.tensor(one), rtol=0, atol=2e-5)  # the log's digits
    states = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["average"] for name in ("one", "two")]
    for name, weights in states[0].items():
        torch.testing.assert_close(states[1][name], weights, rtol=1e-4, atol=1e-5, msg=name)


def test_command_line_trains_on_two_processes_and_speaks_once(tiny_data: Path, tmp_path: Path) -> None:
    changes = [word for change in (*CHANGES, "training.iterations=2") for word in ("--set", change)]
    options = ("--out", tmp_path, "--preset", "demo", "--device", "cpu", "--processes", 2)
    done = python("-m", "das3d", "train", tiny_data, *options, *changes)
    assert done.stdout.count("good parts to train on") == done.stdout.count("trained 2 iterations") == 1
    assert json.loads((tmp_path / "training.json").read_text())["device"] == "cpu x 2"
    assert load(tmp_path, "cpu").threshold is not None


def test_batch_that_cannot_be_shared_equally_is_refused(tiny_data: Path, tmp_path: Path) -> None:
    result = das3d("train", tiny_data, "--out", tmp_path / "run", "--preset", "demo", "--processes", 3)
    assert result.exit_code == 1
    assert "training.batch: expected a multiple of 3, the processes that share it, found 8" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with the one that started it")
def test_a_worker_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    worker = (
        "import os, pathlib, time; from das3d.run import end_with_parent; end_with_parent(); "
        f"pathlib.Path({str(pid)!r}).write_text(str(os.getpid())); time.sleep(600)"
    )
    first = (
        "import os, subprocess, sys, time; "
        f"subprocess.Popen([sys.executable, '-c', {worker!r}], env=os.environ | {{'LOCAL_RANK': '1'}}); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", first]) as process:
        wait_for(lambda: pid.is_file() and pid.read_text() != "")
        process.kill()
    wait_for(lambda: not running(int(pid.read_text())))


def running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.fixture
def one_process(tmp_path: Path) -> object:
    """A process group of this process alone."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_shared_batch_norm_is_batch_norm(one_process: object, offset: float) -> None:
    plain = nn.BatchNorm2d(5)
    nn.init.uniform_(plain.weight)
    nn.init.uniform_(plain.bias)
    shared = share_batch_norm(nn.Sequential(nn.Identity(), plain), torch.device("cpu"))[1]
    assert isinstance(shared, SharedBatchNorm2d)
    assert shared.state_dict().keys() == plain.state_dict().keys()
    generator = torch.Generator().manual_seed(3)
    for _ in range(40):
        x = 2 * torch.randn(4, 5, 6, 7, generator=generator) + offset
        weights = torch.randn(x.shape, generator=generator)
        outputs, gradients = [], []
        for norm in (plain, shared):
            norm.zero_grad()
            leaf = x.clone().requires_grad_()
            outputs.append(norm(leaf))
            (outputs[-1] * weights).sum().backward()
            gradients.append([leaf.grad, norm.weight.grad, norm.bias.grad])
    tolerance = {"rtol": 1e-4, "atol": 1e-4 * (1 + offset / 30)}
    torch.testing.assert_close(outputs[1], outputs[0], **tolerance)
    torch.testing.assert_close(gradients[1], gradients[0], **tolerance)
    torch.testing.assert_close(dict(shared.state_dict()), dict(plain.state_dict()), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(shared.eval()(x), plain.eval()(x), **tolerance)


def test_torchrun_says_how_many_processes_there_are(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "6")
    for change, message in (
        ("training.batch=8", "training.batch: expected a multiple of 6, the processes that share it, found 8"),
        ("training.batch=12", "training.precision: expected float32 or bfloat16 under torchrun, found auto"),
    ):
        result = das3d("train", tiny_data, "--out", tmp_path, "--preset", "demo", "--device", "cpu", "--set", change)
        assert result.exit_code == 1 and message in result.stderr
