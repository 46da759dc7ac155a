"""A run: from a data set to a folder with a trained, calibrated model and all that explains it."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import math
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric

import das3d
from das3d import training
from das3d.arguments import expect_kind, is_number, is_whole, list_of, path_of
from das3d.atomic import write_atomically
from das3d.batches import GoodParts
from das3d.cache import cache_folder
from das3d.calibration import HeldOut, calibrated
from das3d.console import counted, is_worker, say
from das3d.datasets import Dataset, expect_outside
from das3d.detector import CHECKPOINT_FILE, MODEL_FILE, Detector, load
from das3d.engines.torch_engine import TorchEngine, choose_device
from das3d.errors import ModelError, SettingsError
from das3d.files import DepthFormat
from das3d.fingerprints import fingerprint_of
from das3d.locks import HeldError, locked
from das3d.measurement import Statistics
from das3d.prepared import PreparedData, facts_of_data, find_training_data, prepare_dataset, train_and_held_out
from das3d.settings import Settings, flatten, make_settings, missing_settings, read_toml, settings_to_toml
from das3d.textures import expect_textures
from das3d.tracking import Tracking, check_trackers, open_tracking, record, trackers_of

SETTINGS_FILE = "settings.toml"
FACTS_FILE = "training.json"


def train(
    data: Path | str,
    out: Path | str,
    *,
    category: str | None = None,
    light: int | None = None,
    depth_format: DepthFormat | None = None,
    settings: Settings | None = None,
    device: str = "auto",
    processes: int = 1,
    budget: float | None = None,
    resume: bool = False,
    track: Sequence[str] = (),
) -> Detector:
    """Train a detector on the good parts of a data set.

    Args:
        data: folder in any layout that `find_dataset` knows.
        out: run folder; settings, log, pictures, checkpoint and model are written there.
        category: which one, where `data` holds several.
        light: which of the six images of an Eyecandies part is its RGB; 4, lit from all sides, where None.
        depth_format: how numbers in the depth files become metres, where the data does not say.
        settings: of the run; where None, those of the run that is resumed, or the `fast` preset.
        device: "auto", "cpu", "cuda", "mps".
        processes: devices, or CPU processes, that share each batch. Under torchrun it says how many, and on how many
            machines.
        budget: seconds for training; the number of iterations is fitted to it.
        resume: go on from the last checkpoint in `out`; a finished run is returned as it is.
        track: experiment trackers, "tensorboard" and "mlflow"; a resumed run has those that it had as well.

    On Linux the process keeps the memory that training frees for its next steps (`keep_freed_memory`), until it ends.

    Raises:
        DataError: something is wrong with the data; every problem is named.
        ModelError: `out` is a file or holds a run that is not to be resumed, or one of other settings or data.
        SettingsError: `settings` or `budget` are none, the processes cannot share the batch equally or have one numbered
            device, precision is "auto" under torchrun on CPUs, or the server of a tracker does not answer.
        Das3dError: training diverged.
        MissingPackageError: the package of a tracker is not installed.
    """
    end_with_parent()
    track = list_of(str, track, "track")
    check_trackers(track)
    _check_given(settings, budget, processes)
    data, out = path_of(data, "data"), path_of(out, "out", ModelError)
    _check_out(out, resume)
    settings = _settings_for(out, settings, resume)
    target = choose_device(str(device))
    processes, nodes = _processes(processes)
    _check_shares(settings, target, processes * nodes)
    dataset = find_training_data(data, category, settings, light=light, depth_format=depth_format)
    if not holds_run(out):
        expect_outside(out, dataset.root)
        expect_textures(settings.synthesis)
    facts = facts_of_data(dataset)
    _check_same_data(out, facts, resume)
    if resume and (out / MODEL_FILE).is_file():  # which may have been calibrated since
        say(f"{out}: finished already")
        return load(out, device)
    prepared = prepare_dataset(dataset, settings)
    trained_on: list[str] = []
    held_out: list[str] = []
    if not is_worker():
        # Before training, which must not be for nothing where the files are away at its end.
        trained_on, held_out = _fingerprints(dataset, prepared.statistics)
        facts["content"] = _digest(trained_on, held_out)
        _check_same_content(out, facts["content"], resume)
    with _alone_in(out, resume):
        keep_freed_memory()
        precision = _precision_of(out, settings, resume) or precision_for(target, settings)
        fabric = Fabric(
            accelerator=target.type,
            devices=[target.index] if target.index is not None and target.type != "cpu" else processes,
            num_nodes=nodes,
            precision=precision,
        )
        if not is_worker():
            write_atomically(out / SETTINGS_FILE, settings_to_toml(settings).encode())
            _write_facts(out, facts | {"precision": precision})
        fabric.launch()
        if fabric.is_global_zero:
            say(_summary(dataset, prepared, f"{fabric.device} in {precision}"))
        anew = not (resume and (out / CHECKPOINT_FILE).is_file())
        asked = [*(trackers_of(out) if resume else ()), *track]
        with open_tracking(out, asked, settings, anew=anew) if fabric.is_global_zero else Tracking() as tracking:
            if tracking.trackers:
                say(tracking.describe())
            parts, statistics = GoodParts.from_scans(prepared.train), prepared.statistics
            del prepared  # the parts are a copy
            state = training.fit(parts, settings, out, fabric=fabric, budget=budget, resume=resume, tracking=tracking)
        detector = Detector(settings, statistics, TorchEngine(state.average, settings.score))
        detector.fingerprints = {"train": trained_on}
        detector.training = facts | facts_of_training(state, settings, target, precision, fabric.world_size)
        return _finished(detector, dataset, held_out, out, state) if fabric.is_global_zero else detector


def facts_of_training(
    state: training.State, settings: Settings, device: torch.device, precision: str, processes: int = 1
) -> dict[str, Any]:
    """Of the training itself, for people; fields as of `Detector.training`."""
    return {
        "iterations": state.iteration,
        "batch": settings.training.batch,
        "minutes": round(state.seconds / 60, 2),
        "precision": precision,
        "device": f"{device.type} x {processes}",
        "machine": machine(device),
        "torch": torch.__version__,
        "das3d": das3d.__version__,
    }


def _fingerprints(dataset: Dataset, statistics: Statistics) -> tuple[list[str], list[str]]:
    # Of the parts to train on and of those held out.
    train, held_out = (
        [fingerprint_of(part, rgb=statistics.has_rgb, depth=statistics.has_depth) for part in parts]
        for parts in train_and_held_out(dataset)
    )
    return train, held_out


def _digest(*marks: list[str]) -> str:
    # Of groups of parts, whatever these are called.
    return hashlib.sha256(json.dumps([sorted(group) for group in marks]).encode()).hexdigest()[:16]


def _finished(detector: Detector, dataset: Dataset, marks: Sequence[str], out: Path, state: training.State) -> Detector:
    # The trained detector with its threshold, saved and told. The held-out parts were read for their marks already.
    _, parts = train_and_held_out(dataset)
    held_out = [HeldOut.of(detector, part, mark) for part, mark in zip(parts, marks, strict=True)]
    detector = calibrated(detector, held_out, detector.settings.score.max_false_alarm, dataset.root)
    detector.save(out / MODEL_FILE)
    _write_facts(out, detector.training)
    record(out, detector.settings, _told(detector), state.iteration)
    say(training.describe(state) + f" -> {out / MODEL_FILE}")
    for line in detector.threshold.explain() if detector.threshold else ():
        say(line)
    return detector


def _told(detector: Detector) -> dict[str, Any]:
    # What experiment trackers are told of a finished training.
    names = ("data", "parts", "held_out", "minutes", "iterations", "precision", "device", "machine", "torch", "das3d")
    told = {name: detector.training[name] for name in names}
    if detector.threshold is not None:
        summary = detector.threshold.summary()
        told["threshold"] = {name: summary[name] for name in ("value", "false_alarm_rate", "false_alarm_bound")}
    return told


def precision_for(device: torch.device, settings: Settings) -> Any:
    """Fabric's name of the precision: as set, or bfloat16 where the chip computes it clearly faster than float32."""
    chosen = settings.training.precision
    if chosen == "auto":
        on_cuda = device.type == "cuda"
        fast = torch.cuda.is_bf16_supported(including_emulation=False) if on_cuda else _bfloat16_gain(device) > 1.3
        chosen = "bfloat16" if fast else "float32"
    return "bf16-mixed" if chosen == "bfloat16" else "32-true"


def _bfloat16_gain(device: torch.device) -> float:
    # How many times faster a typical convolution is. It is measured, as instructions tell nothing: of two CPUs with the
    # same AVX512-BF16 one gained 2.2 times and the other lost a third (docs/decisions.md).
    if device.type != "cpu":
        return 0.0
    times = {}
    for dtype in (torch.float32, torch.bfloat16):
        images = torch.ones(8, 64, 48, 48, dtype=dtype).contiguous(memory_format=torch.channels_last)
        weights = torch.ones(64, 64, 3, 3, dtype=dtype)
        rounds = []
        with torch.inference_mode():
            for _ in range(8):
                begun = time.perf_counter()
                torch.nn.functional.conv2d(images, weights, padding=1)
                rounds.append(time.perf_counter() - begun)
        times[dtype] = min(rounds)
    return times[torch.float32] / times[torch.bfloat16]


def keep_freed_memory() -> None:
    """Let the C allocator keep what training frees instead of returning it to the system after every layer.

    Large blocks are otherwise mapped anew in each step, and where page faults are slow, as on virtual machines, that costs
    up to a tenth of the time. Only glibc can be told so; elsewhere nothing happens.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL("libc.so.6").mallopt
            mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
            mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def end_with_parent() -> None:
    """Let a worker end when the process that started it dies.

    One that waits for the others would otherwise do so for half an hour. Workers of torchrun are not ours to end, and only
    Linux can be told so.
    """
    if sys.platform == "linux" and is_worker() and "LOCAL_WORLD_SIZE" not in os.environ:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG; who waits in C++ hears nothing gentler


def machine(device: torch.device) -> str:
    """What computed, for reports."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        models = [line.partition(":")[2].strip() for line in lines if "model name" in line]
        name = models[0] if models else name
    return f"{name}, {counted(torch.get_num_threads(), 'thread')}"


def holds_run(out: Path) -> bool:
    """Whether a folder holds a finished or half-finished run."""
    return (out / CHECKPOINT_FILE).exists() or (out / MODEL_FILE).exists()


def _check_out(out: Path, resume: bool) -> None:
    # Never train over somebody's finished or half-finished run without being told to.
    if out.is_file():
        raise ModelError(f"{out}: expected a folder for the run, found a file")
    if holds_run(out) and not resume:
        raise ModelError(f"{out}: already holds a run; continue it with --resume or choose another --out")


@contextlib.contextmanager
def _alone_in(out: Path, resume: bool) -> Iterator[None]:
    # Two trainings that write into one folder would leave files of both. The lock lies with the cache, so that the folder
    # holds the run alone; one of a process that died is free.
    if is_worker():  # whose first process holds it
        yield
        return
    name = hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:16]
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(cache_folder() / "locks" / name))
        except HeldError as held:
            raise ModelError(
                f"{out}: another training writes there ({held}); wait for it, or choose another --out"
            ) from None
        except OSError:
            pass  # there is no cache to write to
        _check_out(out, resume)  # which another may have written since
        yield


def _check_given(settings: Any, budget: Any, processes: Any) -> None:
    # What would otherwise be found out when all parts are prepared, or not at all.
    if settings is not None:
        expect_kind(Settings, settings, "settings", giver="make_settings")
    if budget is not None and not (is_number(budget) and 0 < budget < math.inf):
        raise SettingsError(f"budget: expected a number of seconds above 0, found {budget!r}")
    if not is_whole(processes, 1):
        raise SettingsError(f"processes: expected a whole number above 0, found {processes!r}")


def _processes(asked: int) -> tuple[int, int]:
    # Processes on each machine, and machines. Only torchrun sets LOCAL_WORLD_SIZE; Fabric's own launcher, which starts the
    # processes of one machine, does not.
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 0))
    return (local, int(os.environ["WORLD_SIZE"]) // local) if local else (asked, 1)


def _check_shares(settings: Settings, target: torch.device, processes: int) -> None:
    if target.index is not None and processes > 1:
        raise SettingsError(f"device: expected one without a number for {processes} processes, found {target}")
    batch = settings.training.batch
    if batch % processes:  # the mean over shares is that of the batch only where the shares are equal
        raise SettingsError(
            f"training.batch: expected a multiple of {processes}, the processes that share it, found {batch}"
        )
    if "LOCAL_WORLD_SIZE" in os.environ and target.type == "cpu" and settings.training.precision == "auto":
        raise SettingsError(
            "training.precision: expected float32 or bfloat16 under torchrun, found auto, which each process would measure "
            "for itself"
        )


def _settings_for(out: Path, settings: Settings | None, resume: bool) -> Settings:
    # What a run began with it must go on with, and its settings.toml must not come to say anything else.
    file = out / SETTINGS_FILE
    if not (resume and file.is_file()):
        return settings or make_settings()
    known = make_settings(file=file)
    finished = (out / MODEL_FILE).is_file()  # and is returned as it is
    if not finished and (missing := missing_settings(read_toml(file))):
        raise ModelError(
            f"{file}: expected all settings of this version, found none of {', '.join(missing)}: the run was begun with an "
            "earlier one; go on with that, or use a new folder"
        )
    if settings is not None and settings != known:
        found = differences(flatten(known.model_dump()), flatten(settings.model_dump()))
        raise ModelError(f"{file}: expected the settings that the run began with, found {found}; use a new folder")
    return known


def _check_same_data(out: Path, facts: dict[str, Any], resume: bool) -> None:
    # The folder may have moved; what is in it must not have changed.
    before = _facts_of_training(out) if resume else {}
    now = {name: value for name, value in facts.items() if name != "data"}
    if before and (found := differences({name: before[name] for name in now if name in before}, now)):
        raise ModelError(f"{out / FACTS_FILE}: expected the data that the run began with, found {found}; use a new folder")


def _check_same_content(out: Path, content: str, resume: bool) -> None:
    # Scans may have been replaced by as many others. Runs that were begun before this was kept cannot tell.
    before = _facts_of_training(out).get("content", content) if resume else content
    if before != content:
        raise ModelError(
            f"{out / FACTS_FILE}: expected the scans that the run began with, found others, with content {content!r} "
            f"instead of {before!r}; use a new folder"
        )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What has changed between flat values, in words; a value that only one of them has is a change."""

    def word(values: Mapping[str, Any], name: str) -> str:
        return repr(values[name]) if name in values else "nothing"

    names = (name for name in {**before, **now} if word(before, name) != word(now, name))
    return ", ".join(f"{name} {word(now, name)} instead of {word(before, name)}" for name in names)


def _write_facts(out: Path, facts: dict[str, Any]) -> None:
    write_atomically(out / FACTS_FILE, json.dumps(facts, indent=2).encode())


def _facts_of_training(out: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        return dict(json.loads((out / FACTS_FILE).read_text(encoding="utf-8")))
    return {}


def _precision_of(out: Path, settings: Settings, resume: bool) -> Any:
    # "auto" is measured once: a resumed run, and all processes of a run, go on with what the first one found.
    measured = settings.training.precision == "auto" and (resume or is_worker())
    return _facts_of_training(out).get("precision") if measured else None


def _summary(dataset: Dataset, prepared: PreparedData, computing: str) -> str:
    statistics = prepared.statistics
    background = {
        "plane": f"background plane removed at {statistics.distance * 1000:.1f} mm",
        "cleared": "background cleared away before",
        "none": "no background plane",
    }[statistics.background]
    return (
        f"{dataset.category}: {len(prepared.train)} good parts to train on, {len(prepared.held_out)} held out; "
        f"{background}; {computing}"
    )
