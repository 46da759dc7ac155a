"""The training loop on a few tiny parts: it learns, it resumes exactly, it keeps to a budget, it says when it fails."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import rows_of
from lightning.fabric import Fabric

from das3d import training
from das3d.batches import GoodParts
from das3d.errors import Das3dError, ModelError
from das3d.settings import Settings, make_settings
from das3d.training import COLUMNS, LOG_EVERY, Pacer, fit, learning_rate

SIDE = 32
TINY = [
    f"preparation.size={SIDE}",
    "network.repair_widths=[8, 8, 8]",
    "network.discriminator_widths=[8, 8, 8]",
    "network.fuse_width=8",
    "training.batch=4",
]


def tiny_settings(*changes: str, modality: str = "rgb+depth") -> Settings:
    return make_settings("demo", modality=modality, changes=[*TINY, *changes])  # type: ignore[arg-type]


def tiny_parts(count: int = 6) -> GoodParts:
    """Bright squares of differing size, raised above the background."""
    foreground = torch.zeros(count, 1, SIDE, SIDE, dtype=torch.bool)
    for index in range(count):
        foreground[index, :, 6 : 24 + index % 3, 8:26] = True
    rgb = foreground * torch.tensor([180, 120, 60], dtype=torch.uint8)[None, :, None, None]
    return GoodParts(rgb, torch.where(foreground, 0.5, 1.0), foreground)


def cpu() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("modality", ["rgb+depth", "rgb", "depth"])
def test_losses_fall_and_are_logged(tmp_path: Path, modality: str) -> None:
    settings = tiny_settings("training.iterations=60", modality=modality)
    state = fit(tiny_parts(), settings, tmp_path, fabric=cpu())
    rows = rows_of(tmp_path / "losses.csv")
    assert tuple(rows[0]) == COLUMNS
    assert [int(row["iteration"]) for row in rows] == [20, 40, 60]
    assert float(rows[-1]["loss_discriminator"]) < float(rows[0]["loss_discriminator"])
    assert (float(rows[-1]["loss_rgb"]) == 0) == (modality == "depth")
    assert (float(rows[-1]["loss_depth"]) == 0) == (modality == "rgb")
    assert state.iteration == state.total == 60
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"training_pairs.png", "repair_000060.png"}


def test_same_seed_same_weights_and_other_seed_other_weights(tmp_path: Path) -> None:
    def train(name: str, seed: int) -> torch.nn.Module:
        settings = tiny_settings("training.iterations=5", f"seed={seed}")
        return fit(tiny_parts(), settings, tmp_path / name, fabric=cpu()).average

    first = train("first", 1)
    assert same_weights(first, train("second", 1))
    assert not same_weights(first, train("third", 2))


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import torch
from pathlib import Path
from types import SimpleNamespace
torch.set_num_threads({threads})
from test_training import cpu, fit, tiny_parts, tiny_settings
fit(tiny_parts(), tiny_settings("training.iterations=60", "training.checkpoint_minutes=0.001"), Path({out!r}), fabric=cpu(),
    resume=True)
"""


def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    changes = ("training.iterations=60", "training.checkpoint_minutes=0.001")
    whole = fit(tiny_parts(), tiny_settings(*changes), tmp_path / "whole", fabric=cpu())

    script = SCRIPT.format(threads=torch.get_num_threads(), tests=str(Path(__file__).parent), out=str(tmp_path / "killed"))
    process = subprocess.Popen([sys.executable, "-c", script], env={**os.environ}, stderr=subprocess.DEVNULL)
    checkpoint = tmp_path / "killed" / "checkpoint.pt"
    while process.poll() is None and not checkpoint.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "training ended before it could be killed"
    assert int(torch.load(checkpoint, weights_only=True)["iteration"]) < 60

    resumed = fit(tiny_parts(), tiny_settings(*changes), tmp_path / "killed", fabric=cpu(), resume=True)
    assert same_weights(whole.average, resumed.average)
    assert same_weights(whole.network, resumed.network)
    timed = {"seconds", "samples_per_second"}
    logs = [
        [{name: row[name] for name in row if name not in timed} for row in rows_of(tmp_path / name / "losses.csv")]
        for name in ("killed", "whole")
    ]
    assert logs[0] == logs[1]


def set_clock(patch: pytest.MonkeyPatch, step: float) -> None:
    """A clock of our own, which goes on whenever it is looked at, so that a busy machine changes nothing."""
    ticks = itertools.count(step=step)
    patch.setattr(training, "time", SimpleNamespace(monotonic=lambda: next(ticks)))


def stopped(patch: pytest.MonkeyPatch, settings: Settings, out: Path, **options: Any) -> dict[str, Any]:
    """Trains until the first checkpoint, which is given."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with patch.context() as within:
        within.setattr(training, "save_repairs", stop)  # which follows a checkpoint
        with pytest.raises(KeyboardInterrupt):
            fit(tiny_parts(), settings, out, fabric=cpu(), **options)
    return dict(torch.load(out / "checkpoint.pt", weights_only=True))


def test_budget_sets_the_number_of_iterations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_clock(monkeypatch, 0.01)
    settings = tiny_settings()
    state = fit(tiny_parts(), settings, tmp_path, fabric=cpu(), budget=2.0)
    assert state.iteration == state.total != settings.training.iterations
    assert 80 <= state.iteration <= 120  # each looks at the clock twice
    # The schedule fits itself: the last steps are small whatever the number.
    assert float(rows_of(tmp_path / "losses.csv")[-1]["learning_rate"]) < 0.1 * settings.training.learning_rate


def test_a_budget_of_few_steps_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_clock(monkeypatch, 0.1)
    state = fit(tiny_parts(), tiny_settings(), tmp_path, fabric=cpu(), budget=1.6)
    assert 6 <= state.iteration <= 10  # 0.2 s each, and long before the first line of the log


def test_a_budget_that_was_never_measured_gives_way_to_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_clock(monkeypatch, 0.01)
    settings = tiny_settings("training.iterations=9", "training.checkpoint_minutes=0.001")
    assert stopped(monkeypatch, settings, tmp_path, budget=1000.0)["total"] == 0
    state = fit(tiny_parts(), settings, tmp_path, fabric=cpu(), resume=True)
    assert state.iteration == 9


def test_a_budget_that_was_measured_is_kept_by_who_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_clock(monkeypatch, 0.025)
    settings = tiny_settings("training.checkpoint_minutes=0.015")  # 0.9 s of that clock
    whole = fit(tiny_parts(), settings, tmp_path / "whole", fabric=cpu(), budget=2.0)
    kept = stopped(monkeypatch, settings, tmp_path / "stopped", budget=2.0)
    assert 0.3 * whole.iteration < kept["iteration"] < 0.7 * whole.iteration
    for budget in (2.0, None):
        out = Path(shutil.copytree(tmp_path / "stopped", tmp_path / f"resumed {budget}"))
        resumed = fit(tiny_parts(), settings, out, fabric=cpu(), budget=budget, resume=True)
        assert resumed.iteration == resumed.total == pytest.approx(whole.iteration, rel=0.1)
        assert resumed.seconds == pytest.approx(whole.seconds, rel=0.1)
        assert float(rows_of(out / "losses.csv")[-1]["learning_rate"]) < 0.1 * settings.training.learning_rate
    assert resumed.total == kept["total"], "without a budget, the number that was measured"


def test_what_a_gpu_began_goes_on_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny_settings("training.iterations=9", "training.checkpoint_minutes=1e-9")
    whole = fit(tiny_parts(), settings, tmp_path / "whole", fabric=cpu())
    kept = stopped(monkeypatch, settings, tmp_path / "other")
    assert 0 < kept["iteration"] < 9
    for group in kept["optimizer"]["param_groups"]:  # where rate and count of steps lie on the device
        group |= {"capturable": True, "lr": torch.tensor(group["lr"])}
    torch.save(kept, tmp_path / "other" / "checkpoint.pt")
    resumed = fit(tiny_parts(), settings, tmp_path / "other", fabric=cpu(), resume=True)
    assert same_weights(whole.average, resumed.average)


def test_pacer_follows_the_machine() -> None:
    pacer, iteration, seconds, found = Pacer(100.0, 0, 0.0), 0, 0.0, []
    for _ in range(3):  # one second an iteration, as on a busy machine
        iteration, seconds = iteration + LOG_EVERY, seconds + LOG_EVERY
        found.append(pacer.total(iteration, seconds))
    assert found[1:] == [100, 100]
    for _ in range(11):  # then ten times as fast
        iteration, seconds = iteration + LOG_EVERY, seconds + 2
        found.append(pacer.total(iteration, seconds))
    assert found[2] < found[3] < found[-1] == iteration + 10 * (100 - seconds)  # type: ignore[operator]
    assert pacer.total(iteration + LOG_EVERY, 101.0) == iteration + LOG_EVERY


@pytest.mark.parametrize(("first", "before"), [(0, 0.0), (4000, 300.0)])
def test_what_is_done_once_does_not_look_like_the_pace(first: int, before: float) -> None:
    pacer, seconds, told = Pacer(before + 540, first, before), before, []
    for iteration in range(first + 1, first + 3 * LOG_EVERY + 1):
        seconds += 10.0 if iteration == first + 3 else 0.07
        if pacer.is_due(iteration):
            told.append(pacer.total(iteration, seconds))
    known = [total for total in told if total is not None]
    assert len(known) == 2 and all(abs(total - first - (540 - 10) / 0.07) < 10 for total in known)


@pytest.mark.parametrize("first", [0, 7, 40])
def test_a_budget_that_the_first_steps_use_up_is_kept(first: int) -> None:
    pacer, iteration, seconds, total = Pacer(60.0, first, 0.0), first, 0.0, None
    while total is None or iteration < total:
        iteration, seconds = iteration + 1, seconds + 14.0
        if pacer.is_due(iteration):
            total = pacer.total(iteration, seconds) or total
    assert 60 <= seconds < 60 + 14


def test_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    fit(tiny_parts(), tiny_settings("training.iterations=2"), tmp_path, fabric=cpu())
    with pytest.raises(ModelError, match=r"checkpoint\.pt: expected .* the settings of this run, found others"):
        fit(tiny_parts(), tiny_settings("training.iterations=3"), tmp_path, fabric=cpu(), resume=True)


def test_the_averaged_weights_are_looked_up_once_and_stay_those_of_the_networks(tmp_path: Path) -> None:
    settings = tiny_settings("training.iterations=2")
    fit(tiny_parts(), settings, tmp_path, fabric=cpu())
    state = training.start(settings, cpu(), total=2)
    averaged, current = state.weights
    training.load_checkpoint(tmp_path / "checkpoint.pt", state, settings, cpu())
    for found, network in ((averaged, state.average), (current, state.network)):
        there = [*network.parameters(), *network.buffers()]
        assert len(there) == len(network.state_dict()) and all(x is y for x, y in zip(found, there, strict=True))
    assert any(not torch.equal(x, y) for x, y in zip(averaged, current, strict=True))


def test_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"half a file")
    with pytest.raises(ModelError, match=r"checkpoint\.pt: expected a checkpoint, found"):
        fit(tiny_parts(), tiny_settings("training.iterations=2"), tmp_path, fabric=cpu(), resume=True)


def test_divergence_is_reported(tmp_path: Path) -> None:
    settings = tiny_settings("training.iterations=40", "training.learning_rate=0.9", "training.optimizer='adam'")
    parts = tiny_parts(1)
    parts.depth[:] = torch.nan  # what a broken sensor driver could leave in memory
    with pytest.raises(Das3dError, match="training diverged at iteration 20: expected finite losses"):
        fit(parts, settings, tmp_path, fabric=cpu())


def test_learning_rate_schedules() -> None:
    cycle = tiny_settings("training.learning_rate=0.001").training
    rates = [learning_rate(i, 1000, cycle) for i in range(1000)]
    assert max(rates) == pytest.approx(0.001, rel=1e-3)
    assert np.argmax(rates) == pytest.approx(100, abs=2)
    assert rates[0] == pytest.approx(0.00004)
    assert rates[-1] < 1e-8
    steps = make_settings("paper").training
    assert [learning_rate(i, 100, steps) for i in (0, 79, 80, 90)] == pytest.approx([1e-4, 1e-4, 2e-5, 4e-6])
