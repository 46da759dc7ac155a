"""Training, from prepared good parts to a detector: eq. (13), all three networks jointly.

Read `fit` first; it is the whole loop. Everything that an iteration does follows from the settings and its number, so a
run that was killed and resumed ends as one that was not: on a CPU with the same weights, on a GPU as far as its sums, whose
order is not fixed, allow.
"""

from __future__ import annotations

import csv
import io
import math
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor

from das3d import pictures
from das3d._batch_norm import share_batch_norm
from das3d._bundle import Together
from das3d._replay import Replayed
from das3d.atomic import write_atomically
from das3d.batches import Batch, Draw, GoodParts, compose, draw_batch, make_batch
from das3d.console import duration, progress
from das3d.detector import CHECKPOINT_FILE
from das3d.errors import Das3dError, ModelError
from das3d.losses import depth_loss, focal_loss, rgb_loss
from das3d.network import DAS3DNet, Output
from das3d.optimizer import make_optimizer
from das3d.pairs import as_pictures, pairs_sheet
from das3d.settings import Settings, TrainingSettings
from das3d.textures import load_textures
from das3d.tracking import Tracking

LOG_EVERY = 20  # iterations
COLUMNS = (
    "iteration",
    "of",
    "learning_rate",
    "loss_rgb",
    "loss_depth",
    "loss_discriminator",
    "samples_per_second",
    "seconds",
)

TRACKED = ("loss_rgb", "loss_depth", "loss_discriminator", "learning_rate", "samples_per_second")


@dataclass
class State:
    """All that changes while training runs, and so all that a checkpoint holds."""

    network: Any  # DAS3DNet, wrapped by Fabric
    average: DAS3DNet
    optimizer: Any
    iteration: int = 0
    total: int = 0  # 0: not known yet, a time budget is being measured
    seconds: float = 0.0

    @cached_property
    def weights(self) -> tuple[list[Tensor], list[Tensor]]:
        """What `average` and `network` consist of, in the same order; looking for it takes longer than averaging."""
        averaged, current = ([*network.parameters(), *network.buffers()] for network in (self.average, self.network))
        return averaged, current


def fit(
    parts: GoodParts,
    settings: Settings,
    out: Path,
    *,
    fabric: Fabric,
    budget: float | None = None,
    resume: bool = False,
    tracking: Tracking | None = None,
) -> State:
    """Train on good parts and return the final state; `average` in it holds the weights to keep.

    Args:
        parts: prepared good parts; they are moved to the device as a whole.
        settings: of the run.
        out: run folder for ``losses.csv``, ``checkpoint.pt`` and ``pictures/``.
        fabric: launched; knows device, precision and the processes that share the work.
        budget: seconds that training may take; the number of iterations is fitted to it. None: as set.
        resume: go on from the checkpoint in `out`, if there is one.
        tracking: experiment trackers that are told what is logged.
    """
    training = settings.training
    tracking = tracking or Tracking()
    parts = parts.to(fabric.device)
    textures = load_textures(settings.synthesis, parts)
    state = start(settings, fabric, total=0 if budget else training.iterations)
    log = LossLog(out / "losses.csv", training.batch, tracking, writes=fabric.is_global_zero)
    if resume and (out / CHECKPOINT_FILE).is_file():
        unlogged = load_checkpoint(out / CHECKPOINT_FILE, state, settings, fabric)
        if not budget and not state.total:  # stopped before a budget was measured, and now goes on without one
            state.total = training.iterations
        log.resume(state.iteration, unlogged)
    first = state.iteration
    tracking.begin(first)
    if fabric.is_global_zero and first == 0:
        save_pairs(out / "pictures" / "training_pairs.png", parts, settings, textures)
        tracking.picture(out / "pictures" / "training_pairs.png", 0)
    begun, saved = time.monotonic() - state.seconds, time.monotonic()
    pacer = Pacer(budget or 0.0, state.iteration, state.seconds)

    def step_as_it_is(todo: Iteration) -> tuple[Batch, Output, Tensor]:
        return advance(state, todo, parts, settings, fabric, textures)

    graphed = fabric.device.type == "cuda" and fabric.world_size == 1
    step_on_device = Replayed(step_as_it_is, fabric.device) if graphed else step_as_it_is

    with progress("training", state.total or None) as step:
        while state.total == 0 or state.iteration < state.total:
            todo = next_iteration(state, len(parts), settings, fabric, textures)
            batch, output, losses = step_on_device(todo)
            state.iteration += 1
            state.seconds = time.monotonic() - begun

            log.add(mean_over_shares(fabric, losses), float(todo.rate), state)
            if budget and pacer.is_due(state.iteration):
                state.total = pacer.total(state.iteration, agreed(fabric, state.seconds)) or state.total
            step(state.iteration, state.total or None, log.note)
            if time.monotonic() - saved > training.checkpoint_minutes * 60:
                save_checkpoint(out / CHECKPOINT_FILE, state, log.kept, settings, fabric)
                if fabric.is_global_zero:
                    tracking.picture(save_repairs(out / "pictures", state.iteration, batch, output), state.iteration)
                saved = time.monotonic()
    log.flush(state)
    save_checkpoint(out / CHECKPOINT_FILE, state, log.kept, settings, fabric)
    if fabric.is_global_zero and state.iteration > first:
        tracking.picture(save_repairs(out / "pictures", state.iteration, batch, output), state.iteration)
    return state


def start(settings: Settings, fabric: Fabric, *, total: int) -> State:
    """Fresh networks and optimiser from the seed."""
    torch.manual_seed(settings.seed)  # PyTorch's layers can only draw their weights from the global generator
    network = DAS3DNet.from_settings(settings).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = DAS3DNet.from_settings(settings)
    average.load_state_dict(network.state_dict())
    if fabric.world_size > 1:
        network = share_batch_norm(network, fabric.device)
    network.to(fabric.device)
    wrapped, optimizer = fabric.setup(network, make_optimizer(network, settings.training))
    average = average.to(fabric.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    return State(wrapped, average, optimizer, total=total)


@dataclass(frozen=True)
class Iteration(Together):
    """All that an iteration takes from the host.

    Attributes:
        drawn: its random choices.
        rate: learning rate, (1,) float64.
        follow: how far the moving average of the weights goes towards those of now, (1,) float64.
    """

    drawn: Draw
    rate: Tensor
    follow: Tensor


def next_iteration(
    state: State, parts: int, settings: Settings, fabric: Fabric, textures: Tensor | None = None
) -> Iteration:
    """What the next iteration does with so many good parts; of the batch, this process's share."""
    training, number = settings.training, state.iteration
    drawn = draw_batch(parts, settings, number, textures, rank=fabric.global_rank, ranks=fabric.world_size)
    rate = learning_rate(number, state.total or training.iterations, training)
    # The average follows closely at first, when all is still changing.
    follow = 1 - min(training.average, (1 + number) / (10 + number))
    return Iteration(drawn, *(torch.tensor([value], dtype=torch.float64) for value in (rate, follow)))


def advance(
    state: State, todo: Iteration, parts: GoodParts, settings: Settings, fabric: Fabric, textures: Tensor | None = None
) -> tuple[Batch, Output, Tensor]:
    """One iteration: its batch, the networks' output, and the three terms of eq. (13) as a (3,) tensor.

    Where the iteration lies on a GPU already nothing here waits for it, so that all can be replayed.
    """
    batch = compose(parts, todo.drawn.to(parts.device), settings, textures)
    for group in state.optimizer.param_groups:
        group["lr"] = _number(todo.rate)
    output, losses = losses_of(state.network, batch, settings)
    state.optimizer.zero_grad(set_to_none=True)
    fabric.backward(losses.sum())
    state.optimizer.step()
    update_average(*state.weights, _number(todo.follow))
    return batch, output.detached(), losses.detach()


def _number(value: Tensor) -> float | Tensor:
    # Of a tensor with one; what lies on another device stays there.
    return float(value) if value.device.type == "cpu" else value[0].float()


def losses_of(network: Any, batch: Batch, settings: Settings) -> tuple[Output, Tensor]:
    """One forward pass and the three terms of eq. (13) as a (3,) tensor: RGB, depth, discriminator."""
    rgb = batch.harmed.rgb.contiguous(memory_format=torch.channels_last)
    output = network(rgb, batch.harmed.depth)
    zero = torch.zeros((), device=rgb.device)
    terms = [zero, zero, focal_loss(output.logits, batch.harmed.mask, settings.training.focal_gamma)]
    if output.rgb is not None:
        terms[0] = rgb_loss(output.rgb, batch.rgb)
    if output.depth is not None:
        terms[1] = depth_loss(output.depth, network.depth_features(batch.depth))
    return output, torch.stack(terms)


def learning_rate(iteration: int, total: int, settings: TrainingSettings) -> float:
    """The rate of one iteration: one-cycle (10 % cosine rise, cosine fall to zero) or DRAEM's steps."""
    done = min(iteration / max(total, 1), 1.0)
    if settings.schedule == "steps":
        return settings.learning_rate * 0.2 ** ((done >= 0.8) + (done >= 0.9))
    if done < 0.1:
        return settings.learning_rate * (0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * done / 0.1)))
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - 0.1) / 0.9))


@torch.no_grad()
def update_average(averaged: list[Tensor], current: list[Tensor], follow: float | Tensor) -> None:
    """Move an average of weights and of batch-norm statistics so far towards those of now."""
    kept, now = [], []
    for mean, value in zip(averaged, current, strict=True):
        if mean.dtype.is_floating_point:
            kept.append(mean)
            now.append(value.to(mean.dtype))
        else:
            mean.copy_(value)
    if isinstance(follow, float):
        torch._foreach_lerp_(kept, now, follow)
    else:  # what PyTorch computes for all of them at once
        apart = torch._foreach_sub(now, kept)
        torch._foreach_mul_(apart, follow)
        torch._foreach_add_(kept, apart)


class Pacer:
    """How many iterations a time budget allows, by the pace of the last ten or so log intervals.

    The estimate is renewed throughout, so that a machine that is busy for a while neither cuts the training short nor
    makes it late. With a budget the number of iterations therefore depends on the machine; without one it does not.
    """

    def __init__(self, budget: float, iteration: int, seconds: float) -> None:
        self.budget, self.first, self.begun = budget, iteration, seconds
        self.marks = [(iteration, seconds)]
        self.warm = False

    def is_due(self, iteration: int) -> bool:
        """Whether to ask after this iteration: at first always, as steps of large networks may take minutes."""
        return iteration % LOG_EVERY == 0 or iteration - self.first < 2 * LOG_EVERY

    def total(self, iteration: int, seconds: float) -> int | None:
        """Iterations in all, no fewer than are done and no more once the budget is over; None: too early to tell.

        The first log interval holds what is done once, such as CUDA graphs, which looks as if little could be done. The
        learning rate would soon be past its rise. It only counts where it took a quarter of the time that there was.
        """
        early = iteration - self.first < 2 * LOG_EVERY
        hurry = early and seconds - self.begun > (self.budget - self.begun) / 4
        if iteration % LOG_EVERY and not hurry:
            return None
        self.marks = [*self.marks[-10:], (iteration, seconds)]
        if not self.warm and not hurry:
            self.marks, self.warm = self.marks[-1:], True
            return None
        done, took = iteration - self.marks[0][0], seconds - self.marks[0][1]
        return iteration + max(math.ceil((self.budget - seconds) * done / max(took, 1e-9)), 0)


def mean_over_shares(fabric: Fabric, losses: Tensor) -> Tensor:
    """Losses of the whole batch from those of every process's share."""
    mean = fabric.all_reduce(losses, reduce_op="mean")
    assert isinstance(mean, Tensor)
    return mean


def agreed(fabric: Fabric, value: float) -> float:
    """The first process's value in all processes."""
    return float(fabric.broadcast(value))


# ------------------------------------------------------------------------------------------- log, checkpoints, pictures


class LossLog:
    """``losses.csv``: one row every `LOG_EVERY` iterations with the mean losses since the last.

    Losses stay on the device until a row is due, so that logging never makes the device wait.
    """

    def __init__(self, path: Path, batch: int, tracking: Tracking, *, writes: bool = True) -> None:
        self.path, self.batch, self.tracking, self.writes = path, batch, tracking, writes
        self.rows: list[dict[str, Any]] = []
        self.kept: list[Tensor] = []
        self.rate = 0.0
        self.note = ""
        self.last = (0, 0.0)

    def add(self, losses: Tensor, rate: float, state: State) -> None:
        self.kept.append(losses.clone())  # which the next step may write over
        self.rate = rate
        if state.iteration % LOG_EVERY == 0:
            self.flush(state)

    def flush(self, state: State) -> None:
        if not self.kept:
            return
        rgb, depth, discriminator = torch.stack(self.kept).mean(dim=0).tolist()
        self.kept.clear()
        if not math.isfinite(rgb + depth + discriminator):
            raise Das3dError(
                f"training diverged at iteration {state.iteration}: expected finite losses, found rgb {rgb}, "
                f"depth {depth}, discriminator {discriminator}; lower training.learning_rate, now {self.rate:.1e}"
            )
        done, seconds = state.iteration - self.last[0], max(state.seconds - self.last[1], 1e-9)
        self.last = (state.iteration, state.seconds)
        speed = done * self.batch / seconds
        values = (
            state.iteration, state.total or "", f"{self.rate:.3e}", f"{rgb:.5f}", f"{depth:.6f}", f"{discriminator:.6f}",
            f"{speed:.1f}", f"{state.seconds:.1f}",
        )  # fmt: skip
        self.rows.append(dict(zip(COLUMNS, values, strict=True)))
        self.note = f"loss {rgb + depth + discriminator:.3f}, {speed:.0f} samples/s"
        if not self.writes:
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.path, text.getvalue().encode())
        self.tracking.scalars({name: float(self.rows[-1][name]) for name in TRACKED}, state.iteration)

    def resume(self, iteration: int, kept: list[Tensor]) -> None:
        """Keep the rows up to the checkpoint and the losses since the last; what was logged after it will be again."""
        self.kept = kept
        if self.path.is_file():
            with self.path.open(newline="", encoding="utf-8") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["iteration"]) <= iteration]
        if self.rows:
            self.last = (int(self.rows[-1]["iteration"]), float(self.rows[-1]["seconds"]))


def save_checkpoint(path: Path, state: State, unlogged: list[Tensor], settings: Settings, fabric: Fabric) -> None:
    if not fabric.is_global_zero:
        return
    buffer = io.BytesIO()
    torch.save(
        {
            "settings": settings.model_dump_json(),
            "network": state.network.state_dict(),
            "average": state.average.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "iteration": state.iteration,
            "total": state.total,
            "seconds": state.seconds,
            "unlogged": unlogged,
        },
        buffer,
    )
    write_atomically(path, buffer.getbuffer())


def load_checkpoint(path: Path, state: State, settings: Settings, fabric: Fabric) -> list[Tensor]:
    """Restore `state` and return the losses that were not logged yet.

    Raises:
        ModelError: the checkpoint is damaged or of a run with other settings.
    """
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged files
        first = (str(error).splitlines() or ["nothing readable"])[0]
        raise ModelError(f"{path}: expected a checkpoint, found {first}; delete it to train from the start") from None
    if not isinstance(kept, dict) or "settings" not in kept:
        raise ModelError(
            f"{path}: expected a checkpoint, found a file of something else; delete it to train from the start"
        )
    if kept["settings"] != settings.model_dump_json():
        raise ModelError(f"{path}: expected a checkpoint with the settings of this run, found others; use a new folder")
    for saved, group in zip(kept["optimizer"]["param_groups"], state.optimizer.param_groups, strict=True):
        # Those of this device, which need not be the one that the run began on.
        saved |= {name: group[name] for name in ("capturable", "fused")}
    state.network.load_state_dict(kept["network"])
    state.average.load_state_dict(kept["average"])
    state.optimizer.load_state_dict(kept["optimizer"])
    state.iteration, state.total, state.seconds = kept["iteration"], kept["total"], kept["seconds"]
    return [losses.to(fabric.device) for losses in kept["unlogged"]]


def save_pairs(path: Path, parts: GoodParts, settings: Settings, textures: Tensor | None) -> None:
    """A sheet of the first synthetic training pairs, as the networks get them."""
    batch = make_batch(parts, settings, 0, textures)
    pictures.save_picture(path, pairs_sheet(batch.rgb[:8], batch.depth[:8], batch.harmed[:8]))


def save_repairs(folder: Path, iteration: int, batch: Batch, output: Output) -> Path:
    """A sheet of what the networks made of the last batch; returns its file."""
    path = folder / f"repair_{iteration:06d}.png"
    rows = []
    if output.rgb is not None:
        rows += [("harmed RGB", as_pictures(batch.harmed.rgb[:8])), ("repaired", as_pictures(output.rgb[:8]))]
    if output.depth is not None:
        rows += [
            ("harmed depth", as_pictures(1 - batch.harmed.depth[:8])),
            ("repaired", as_pictures(1 - output.depth[:8, :1])),
        ]
    found = output.logits.detach().float().sigmoid()[:, 0].cpu().numpy()
    rows += [("mask", as_pictures(batch.harmed.mask[:8])), ("found", [pictures.heat(image) for image in found[:8]])]
    pictures.save_picture(path, pictures.sheet(rows))
    return path


def describe(state: State) -> str:
    return f"trained {state.iteration} iterations in {duration(state.seconds)}"
