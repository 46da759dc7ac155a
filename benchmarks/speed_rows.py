"""The rows of the speed table: each function measures one stage beside its reference and returns its lines."""

from __future__ import annotations

import csv
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import references
import synthesis_oracle as oracle
import torch
from lightning.fabric import Fabric
from measuring import MIB, Row, Timing, mebibytes, not_measured, peak_memory, peak_so_far, side_by_side, timed
from numpy.typing import NDArray
from scipy import ndimage

from das3d._replay import Replayed
from das3d.background import fit_background
from das3d.batches import GoodParts, make_batch
from das3d.demo import CATEGORY, DemoScan, make_demo, render_part
from das3d.detector import Detector, load
from das3d.engines import batch_of
from das3d.engines.torch_engine import TorchEngine, fused
from das3d.errors import Das3dError
from das3d.exporting import export
from das3d.foreground import find_foreground
from das3d.measurement import Statistics, measure
from das3d.metrics import AUPRO_LIMITS, aupro
from das3d.network import DAS3DNet
from das3d.parts import UNKNOWN, Part
from das3d.pictures import overlay, save_picture
from das3d.prediction import predict_part
from das3d.preparation import PreparedScan, prepare
from das3d.recipes import draw_recipe
from das3d.run import keep_freed_memory, precision_for
from das3d.scan import Scan, scan_from_arrays
from das3d.settings import Settings, make_settings
from das3d.streaming import inspect_parts, picture_scale, save_map
from das3d.synthesis import synthesise
from das3d.training import Iteration, advance, losses_of, next_iteration, start, update_average

FIRST_VERSION = "b1295d2"  # the commit of the first version that worked
PROJECT = Path(__file__).resolve().parent.parent


# ------------------------------------------------------------------------------------------- what is measured on


@cache
def rendered(side: int, count: int = 3) -> list[DemoScan]:
    return [render_part((0, "test", "good", i), size=(side, side)) for i in range(count)]


def scans_of(side: int) -> list[Scan]:
    return [scan_from_arrays(one.rgb, one.points, name=f"part {i}") for i, one in enumerate(rendered(side))]


@cache
def statistics_of(side: int, preset: str = "fast") -> Statistics:
    return measure(scans_of(side), make_settings(preset).preparation)  # type: ignore[arg-type]


def prepared_of(settings: Settings, count: int, side: int = 400) -> list[PreparedScan]:
    scans = [prepare(scan, statistics_of(side, settings.preset), settings.preparation) for scan in scans_of(side)]
    return (scans * count)[:count]


def untrained(settings: Settings, *, device: str = "cpu", side: int = 400) -> Detector:
    """A detector with drawn weights, which computes as long as a trained one."""
    torch.manual_seed(0)
    network = DAS3DNet.from_settings(settings).eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Detector(settings, statistics_of(side, settings.preset), TorchEngine(network, settings.score))


def good_pairs(count: int, side: int, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise on a disc that fills half of the image."""
    generator = torch.Generator().manual_seed(0)
    axis = (torch.arange(side) + 0.5) / side - 0.5
    foreground = (torch.hypot(axis[:, None], axis[None, :]) < 0.4).expand(count, 1, side, side).clone()
    rgb = torch.rand(count, 3, side, side, generator=generator) * foreground
    depth = torch.where(foreground, torch.rand(count, 1, side, side, generator=generator), 1.0)
    return rgb.to(device), depth.to(device), foreground.to(device)


# ------------------------------------------------------------------------------------------- synthesis


def synthesis() -> list[Row]:
    """Synthesis of a batch."""
    against, goal = "plain NumPy/SciPy, a sample at a time", ">= 20x a sample"
    keep_freed_memory()
    count, side, settings = 32, 256, make_settings("paper").synthesis
    pairs, generator = good_pairs(count, side), torch.Generator().manual_seed(0)
    textures = torch.rand(16, 3, side, side, generator=generator)
    rgb, pictures = (images.double().permute(0, 2, 3, 1).numpy() for images in (pairs[0], textures))
    depth, foreground, rng = pairs[1][:, 0].double().numpy(), pairs[2][:, 0].numpy(), np.random.default_rng(0)
    few = 4

    def ours() -> None:
        synthesise(*pairs, draw_recipe(count, settings, generator, textures=textures), settings, textures)

    def plain() -> None:
        for i in range(few):
            oracle.harm(rgb[i], depth[i], foreground[i], pictures[i], oracle.draw(rng, settings, side), settings)

    times = side_by_side({"ours": ours, "plain": plain}, 15, warm=2)
    one, other = times["ours"].over(count), times["plain"].over(few)
    ratio = other.median / one.median
    name = "synthesis, 32 pairs at 256 x 256, CPU"
    memory = mebibytes(peak_memory(ours))
    rows = [Row(name, against, goal, f"{ratio:.1f}x", ratio >= 20, f"{one} a sample", f"{other} a sample", memory)]
    name, goal = "synthesis, 256 pairs at 256 x 256, GPU", ">= 20,000 samples a second"
    if not torch.cuda.is_available():
        return [*rows, not_measured(name, "time", goal, "no GPU")]
    on_gpu, many = [member.repeat(8, 1, 1, 1).cuda() for member in pairs], 8 * count
    pictures_there = textures.cuda()

    def batch() -> None:
        recipe = draw_recipe(many, settings, generator, textures=textures).to("cuda")
        synthesise(*on_gpu, recipe, settings, pictures_there)
        torch.cuda.synchronize()

    pace = timed(batch, 20, warm=5).over(many)
    return [
        *rows,
        Row(name, "time", goal, f"{1 / pace.median:,.0f} a second", pace.median <= 1 / 20_000, f"{pace} a sample"),
    ]


# ------------------------------------------------------------------------------------------- preparation


def preparation() -> list[Row]:
    """Preparation of a raw scan."""
    rows = []
    # The peers' 5 mm, so that both look for the same foreground.
    settings = make_settings("fast", changes=["preparation.background_distance=0.005"]).preparation
    for side, rounds in ((400, 3), (800, 1)):
        scan, points = scans_of(side)[0], rendered(side)[0].points
        statistics = measure(scans_of(side), settings)
        assert scan.depth is not None and scan.valid is not None
        theirs: list[NDArray[np.bool_]] = []
        fit = fit_background(scan.depth, scan.valid)
        assert fit is not None
        ours = find_foreground(scan.depth, scan.valid, fit.plane, statistics.distance, exact=True)
        quick = timed(lambda: prepare(scan, statistics, settings), 15, warm=2)  # noqa: B023
        slow = timed(lambda: theirs.append(references.peers_foreground(points)), rounds, warm=0)  # noqa: B023
        same = references.agreement(ours, theirs[0], scan.valid)
        ratio = slow.median / quick.median
        memory = mebibytes(peak_memory(lambda: prepare(scan, statistics, settings)))  # noqa: B023
        rows.append(
            Row(
                f"preparation of a raw scan, {side} x {side}", "RANSAC 1000 x 50, then DBSCAN (scikit-learn)",
                ">= 20x, same foreground but for a pixel-wide rim",
                f"{ratio:.0f}x, {same:.2%} the same", ratio >= 20 and same > 0.999, str(quick), str(slow), memory,
            )
        )  # fmt: skip
    return rows


# ------------------------------------------------------------------------------------------- networks


def engines_of(detector: Detector, folder: Path) -> dict[str, Detector]:
    """The detector on every engine that is installed."""
    detectors = {detector.engine.describe(): detector}
    detector.save(folder / "model.safetensors")
    for precision in ("fp32", "fp16"):
        for engine in ("onnxruntime", "openvino"):
            try:
                file = folder / f"{precision}.onnx"
                if not file.is_file():
                    export(folder / "model.safetensors", precision=precision, out=file)  # type: ignore[arg-type]
                exported = load(file, engine=engine)
            except Das3dError as error:  # an engine that is not installed must not stop the others
                print(f"{precision} on {engine}: {error}", file=sys.stderr)
            else:
                detectors[exported.engine.describe()] = exported
    return detectors


def network_cpu() -> list[Row]:
    """Networks for one part on the CPU."""
    paper, fast = make_settings("paper"), make_settings("fast")
    reference, detector = untrained(paper).network, untrained(fast)
    inputs = {name: batch_of(prepared_of(one, 1), rgb=True, depth=True) for name, one in (("p", paper), ("f", fast))}
    members = [torch.from_numpy(images).float() for images in inputs["p"].values()]

    def eager() -> None:
        with torch.inference_mode():
            reference(*members)

    slow = timed(eager, 3)
    with tempfile.TemporaryDirectory() as folder:
        detectors = engines_of(detector, Path(folder))
        works = {name: (lambda one=one: one.engine.run(**inputs["f"])) for name, one in detectors.items()}
        times = side_by_side(works, 15, warm=3)
        scores = {name: float(one.engine.run(**inputs["f"]).score[0]) for name, one in detectors.items()}
    best = min(times, key=lambda name: times[name].median)
    ratio = slow.median / times[best].median
    first = detector.engine.describe()
    memory = mebibytes(peak_memory(works[first]))
    rows = [
        Row(
            "network, one part, CPU", "paper preset, PyTorch float32", "fast >= 40x on the best engine",
            f"{ratio:.0f}x ({best})", ratio >= 40, str(times[best]), str(slow), memory,
        )
    ]  # fmt: skip
    for name, timing in times.items():
        apart = abs(scores[name] - scores[first])
        rows.append(Row(f"  fast on {name}", "", "", f"score differs by {apart:.1e}", None, str(timing)))
    return rows


def network_gpu() -> list[Row]:
    """Networks on the GPU."""
    against, name = "paper preset, PyTorch eager, TF32", "network, GPU, fast"
    goals = {1: "one part <= 2 ms", 64: ">= 1,500 parts a second, under 1 GB"}
    if not torch.cuda.is_available():
        return [not_measured(name, against, "; ".join(goals.values()), "no GPU")]
    fast, paper = make_settings("fast"), make_settings("paper")
    torch.cuda.reset_peak_memory_stats()
    detector = untrained(fast, device="cuda")
    paces, memory = {}, {}
    for count in goals:
        inputs = batch_of(prepared_of(fast, count), rgb=True, depth=True)
        paces[count] = timed(lambda: detector.engine.run(**inputs), 20, warm=8).over(count)  # noqa: B023
        memory[count] = torch.cuda.max_memory_allocated() / 1e9
    rows, reference = [], untrained(paper, device="cuda").network
    for count, together in ((1, 1), (64, 8)):
        inputs = batch_of(prepared_of(paper, together), rgb=True, depth=True)

        def eager(inputs: Any = inputs) -> None:
            with torch.inference_mode():
                logits = reference(*(torch.from_numpy(images).cuda().float() for images in inputs.values())).logits
                logits.cpu()

        slow, pace = timed(eager, 10, warm=3).over(together), paces[count]
        met = pace.median <= 2e-3 if count == 1 else pace.median <= 1 / 1500 and memory[count] < 1
        rows.append(
            Row(
                f"{name}, {count} part{'s' * (count > 1)}", f"{against}, {together} at a time", goals[count],
                f"{pace.median * 1e3:.2f} ms, {1 / pace.median:,.0f} a second; {slow.median / pace.median:.0f}x", met,
                f"{pace} a part", f"{slow} a part", f"{memory[count]:.2f} GB on the GPU",
            )
        )  # fmt: skip
    return rows


@contextmanager
def operations_counted() -> Iterator[Callable[[], int]]:
    """How many additions and multiplications networks take in this block, by what is yielded."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        yield counter.get_total_flops


def peak_share() -> list[Row]:
    """Share of the machine's peak that the networks reach."""
    rows = []
    wanted = [("fast", "cpu", 8)] + ([("paper", "cuda", 8)] if torch.cuda.is_available() else [])
    for preset, device, count in wanted:
        settings = make_settings(preset)  # type: ignore[arg-type]
        network = untrained(settings, device=device).network
        inputs = batch_of(prepared_of(settings, count), rgb=True, depth=True)
        batch = torch.from_numpy(inputs["rgb"]).to(device).float() / 255, torch.from_numpy(inputs["depth"]).to(device)
        batch = tuple(images.contiguous(memory_format=torch.channels_last) for images in batch)  # type: ignore[assignment]
        with operations_counted() as counted, torch.no_grad():
            network(*batch)
        operations = counted()
        side = 8192 if device == "cuda" else 2048
        wait = torch.cuda.synchronize if device == "cuda" else lambda: None
        kinds = (torch.bfloat16, torch.float32)
        matrices = {kind: torch.randn(side, side, device=device).to(kind) for kind in kinds}
        networks = {kind: fused(network).to(kind) for kind in kinds}
        batches = {kind: [images.to(kind) for images in batch] for kind in kinds}

        def multiply(kind: torch.dtype, matrices: Any = matrices, wait: Any = wait) -> None:
            matrices[kind] @ matrices[kind]
            wait()

        def infer(kind: torch.dtype, networks: Any = networks, batches: Any = batches, wait: Any = wait) -> None:
            with torch.inference_mode():
                networks[kind](*batches[kind])
            wait()

        works: dict[str, Callable[[], None]] = {
            "peak bf16": lambda: multiply(torch.bfloat16), "peak fp32": lambda: multiply(torch.float32),
            "bf16": lambda: infer(torch.bfloat16), "fp32": lambda: infer(torch.float32),
        }  # fmt: skip
        times = side_by_side(works, 5, warm=2)
        peaks = {kind: 2 * side**3 / times[f"peak {kind}"].median / 1e12 for kind in ("bf16", "fp32")}
        reached = {kind: operations / times[kind].median / 1e12 for kind in ("bf16", "fp32")}
        share = max(reached.values()) / peaks["bf16"]
        rows.append(
            Row(
                f"share of the peak, {preset}'s networks, batch {count}, {'GPU' if device == 'cuda' else 'CPU'}",
                "a bf16 matrix product of the same run",
                ">= 30 %", f"{share:.0%}", share >= 0.3,
                ", ".join(f"{value:.3g} TFLOP/s in {kind}" for kind, value in reached.items()),
                ", ".join(f"{value:.3g} TFLOP/s in {kind}" for kind, value in peaks.items()),
            )
        )  # fmt: skip
    if not torch.cuda.is_available():
        against = "a bf16 matrix product of the same run"
        rows.append(not_measured("share of the peak, paper's networks, GPU", against, ">= 30 %", "no GPU"))
    return rows


# ------------------------------------------------------------------------------------------- from files


@contextmanager
def files(count: int, side: int = 400) -> Iterator[tuple[list[Part], Path]]:
    """Parts as files, and a folder to write into."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = make_demo(folder / "data", train=0, validation=0, good=count, defective=0, size=(side, side))
        good = root / CATEGORY / "test" / "good"
        parts = [
            Part(f"{i:03d}", "test", UNKNOWN, good / "rgb" / f"{i:03d}.png", good / "xyz" / f"{i:03d}.tiff", ())
            for i in range(count)
        ]
        yield parts, folder / "out"


def file_to_verdict() -> list[Row]:
    """From the files of a part to its verdict."""
    settings = make_settings("fast")
    detector = untrained(settings)
    stages: dict[str, list[float]] = {name: [] for name in ("read", "prepare", "infer", "write")}

    def by_stages(part: Part, out: Path) -> None:
        marks = [time.perf_counter()]
        scan = part.read()
        marks.append(time.perf_counter())
        prepared = prepare(scan, detector.statistics, settings.preparation)
        marks.append(time.perf_counter())
        prediction = detector.predict_prepared([prepared], regions=False)[0]
        marks.append(time.perf_counter())
        save_map(out / f"{part.id}.tiff", prediction.map)
        save_picture(out / f"{part.id}.png", overlay(scan, prediction.map, picture_scale(detector)))
        marks.append(time.perf_counter())
        for name, start, end in zip(stages, marks, marks[1:], strict=False):
            stages[name].append(end - start)

    with files(4) as (parts, out):
        whole: list[float] = []
        for round_number in range(8):
            part = parts[round_number % len(parts)]
            by_stages(part, out)
            start = time.perf_counter()
            predict_part(detector, part.rgb, part.depth, out)
            whole.append(time.perf_counter() - start)
            if round_number < 2:  # warm
                whole.clear()
                for values in stages.values():
                    values.clear()
        once = {name: statistics.median(values) for name, values in stages.items()}
        memory = mebibytes(peak_memory(lambda: predict_part(detector, parts[0].rgb, parts[0].depth, out)))

        many = [replace(parts[i % len(parts)], id=f"{i:03d}") for i in range(48)]
        all_of_them = timed(lambda: list(inspect_parts(detector, many, out)), 2).over(len(many))
    total = sum(once.values())
    overhead = statistics.median(whole) / total - 1
    each = ", ".join(f"{name} {seconds * 1e3:.1f} ms" for name, seconds in once.items())
    against = "the sum of its stages"
    return [
        Row("file to verdict, one part, CPU", against, "overhead <= 15 %", f"{overhead:+.0%}", overhead <= 0.15,
            str(Timing(whole)), f"{total * 1e3:.1f} ms: {each}", memory),
        Row("file to verdict, 48 parts, CPU", against, "stages overlap", f"{all_of_them.median / total:.0%} of it, "
            f"{1 / all_of_them.median:.0f} parts a second", all_of_them.median < total, f"{all_of_them} a part"),
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------- training


def training() -> list[Row]:
    """Training, samples a second."""
    stage, against = "training, fast preset, CPU", f"the first version that worked ({FIRST_VERSION})"
    goal = ">= 5x samples a second"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            archive = subprocess.run(
                ["git", "archive", FIRST_VERSION, "src"], cwd=PROJECT, capture_output=True, check=True
            ).stdout
        except (OSError, subprocess.CalledProcessError):
            return [not_measured(stage, against, goal, "needs the git history")]
        with tarfile.open(fileobj=BytesIO(archive)) as tar:
            tar.extractall(folder / "first", filter="data")
        data = make_demo(folder / "data", train=16, validation=2, good=0, defective=0, size=(256, 256))
        paces: dict[str, list[float]] = {"ours": [], "first": []}
        for i in range(2):
            for version, source in (("ours", PROJECT / "src"), ("first", folder / "first" / "src")):
                paces[version] += pace_of(source, data, folder / f"{version}{i}", folder / f"cache_{version}")
    ours, first = (statistics.median(values) for values in paces.values())
    spread = {name: f"{statistics.median(v):.1f} ({min(v):.1f} to {max(v):.1f})" for name, v in paces.items()}
    return [Row(stage, against, goal, f"{ours / first:.2f}x", ours >= 5 * first, f"{spread['ours']} samples a second",
                f"{spread['first']} samples a second"), bound_of_training(first), *step_profile()]  # fmt: skip


def bound_of_training(first: float) -> Row:
    """What the networks' multiply-adds leave possible: were there nothing else, and at the rate of a matrix product."""
    settings, side = make_settings("fast"), 2048
    matrix = torch.randn(side, side).to(torch.bfloat16)
    seconds = timed(lambda: matrix @ matrix, 5, warm=2).median
    size = settings.preparation.size
    with operations_counted() as counted:
        output = DAS3DNet.from_settings(settings)(torch.rand(1, 3, size, size), torch.rand(1, 1, size, size))
        sum(member.mean() for member in output).backward()
    bound = 2 * side**3 / seconds / counted()
    stage = "  its networks' multiply-adds alone, as fast as a bf16 matrix product"
    return Row(stage, "", "", f"{bound / first:.2f}x", None, f"{bound:.0f} samples a second")


def step_profile(steps: int = 12, warm: int = 2) -> list[Row]:
    """Where the time of a training step of `fast` goes."""
    settings, device = make_settings("fast"), torch.device("cpu")
    keep_freed_memory()
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision_for(device, settings))
    fabric.launch()
    parts = GoodParts.from_scans(prepared_of(settings, 16))
    state = start(settings, fabric, total=steps)
    spent: dict[str, list[float]] = {}
    begun = 0.0

    def done(what: str) -> None:
        nonlocal begun
        spent.setdefault(what, []).append(time.perf_counter() - begun)
        begun = time.perf_counter()

    for step in range(steps):
        begun = time.perf_counter()
        batch = make_batch(parts, settings, step)
        done("good parts in new poses, harmed")
        _, losses = losses_of(state.network, batch, settings)
        done("forward pass and losses")
        state.optimizer.zero_grad(set_to_none=True)
        fabric.backward(losses.sum())
        done("backward pass")
        state.optimizer.step()
        done("optimiser")
        update_average(*state.weights, 1 - settings.training.average)
        done("moving average of the weights")
    times = {what: Timing(seconds[warm:]) for what, seconds in spent.items()}
    whole = sum(timing.median for timing in times.values())
    return [Row(f"  a step: {what}", "", "", f"{timing.median / whole:.0%}", None, str(timing))
            for what, timing in times.items()]  # fmt: skip


def training_gpu(steps: int = 100) -> list[Row]:
    """Training on the GPU: as a graph, and launched kernel by kernel."""
    rows, goal = [], "the GPU never waits for the host"
    for preset in ("fast", "paper"):
        stage, against = f"training, {preset} preset, GPU", "the same without CUDA graphs"
        if not torch.cuda.is_available():
            rows.append(not_measured(stage, against, goal, "no GPU"))
            continue
        settings = make_settings(preset)  # type: ignore[arg-type]
        device, few = torch.device("cuda", 0), steps if preset == "fast" else steps // 5
        fabric = Fabric(accelerator="cuda", devices=1, precision=precision_for(device, settings))
        fabric.launch()
        parts = GoodParts.from_scans(prepared_of(settings, 16)).to(device)
        paces, busy, memory = [], 0.0, 0.0
        torch.cuda.reset_peak_memory_stats()
        for graphed in (True, False):
            state = start(settings, fabric, total=steps)

            def step(todo: Iteration, state: Any = state, parts: Any = parts, settings: Any = settings) -> Any:
                return advance(state, todo, parts, settings, fabric)  # noqa: B023

            work = Replayed(step, device) if graphed else step
            for count in (8, few):  # the first ones set up; of many more the host would wait for the GPU
                torch.cuda.synchronize()
                begun = time.perf_counter()
                for _ in range(count):
                    work(next_iteration(state, len(parts), settings, fabric))
                    state.iteration += 1
                launched = time.perf_counter() - begun
                torch.cuda.synchronize()
                whole = time.perf_counter() - begun
            paces.append(few * settings.training.batch / whole)
            if graphed:
                busy, memory = launched / whole, torch.cuda.max_memory_allocated() / 1e9
        figure = (
            f"{paces[0]:.0f} samples a second, {paces[0] / paces[1]:.1f}x; the host is done after {busy:.0%} of the time"
        )
        rows.append(
            Row(stage, against, goal, figure, busy < 0.95, f"{paces[0]:.0f} samples a second",
                f"{paces[1]:.0f} samples a second", f"{memory:.2f} GB on the GPU")
        )  # fmt: skip
    return rows


def pace_of(source: Path, data: Path, out: Path, kept: Path) -> list[float]:
    """Samples a second of a training of half a minute by the version that lies in `source`."""
    import os

    environment = {**os.environ, "PYTHONPATH": str(source), "DAS3D_CACHE": str(kept)}
    command = [sys.executable, "-m", "das3d", "train", str(data), "--out", str(out), "--preset", "fast", "--budget", "30s"]
    subprocess.run(command, env=environment, capture_output=True, check=True)
    with (out / "losses.csv").open(newline="", encoding="utf-8") as file:
        rows = [float(row["samples_per_second"]) for row in csv.DictReader(file)]
    return rows[1:] or rows  # the first holds what is done once


# ------------------------------------------------------------------------------------------- AU-PRO


def made_up_maps(count: int, side: int, seed: int = 0) -> tuple[list[NDArray[np.float32]], list[NDArray[np.bool_]]]:
    """Smooth noise, exactly 0 over about a third of each map as on a removed background; a fifth of the parts is good.

    Defects are one to three discs, about 1 % of the pixels; their scores are raised by a random amount.
    """
    rng = np.random.default_rng(seed)
    row, column = np.ogrid[:side, :side]
    maps, masks = [], []
    fields = [ndimage.gaussian_filter(rng.normal(size=(side, side)), side / 80) for _ in range(5)]
    for part in range(count):
        mask = np.zeros((side, side), bool)
        score_map = np.roll(fields[part % 5], rng.integers(0, side, 2), (0, 1))
        score_map = score_map / score_map.std() + 0.4 + 0.01 * rng.random()
        for _ in range(0 if part % 5 == 4 else rng.integers(1, 4)):
            centre, radius = rng.uniform(0.1, 0.9, 2) * side, rng.uniform(0.01, 0.06) * side
            disc = np.hypot(row - centre[0], column - centre[1]) < radius
            mask |= disc
            score_map[disc] += rng.uniform(0, 4)
        maps.append(np.maximum(score_map, 0).astype(np.float32))
        masks.append(mask)
    return maps, masks


class Repeated(Sequence[Any]):
    """`count` members from a few, each as new: as when maps come from files."""

    def __init__(self, few: list[Any], count: int) -> None:
        self.few, self.count = few, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.count))]
        if not 0 <= index < self.count:
            raise IndexError(index)
        return self.few[index % len(self.few)].copy()


def au_pro() -> list[Row]:
    """AU-PRO at four limits."""
    count, side = 60, 800
    maps, masks = made_up_maps(count, side)
    found: dict[str, dict[float, float]] = {}

    def ours() -> None:
        found["ours"] = aupro(maps, masks)

    def theirs() -> None:
        found["theirs"] = references.sampled_aupro(maps, masks, AUPRO_LIMITS)

    times = {"ours": timed(ours, 3), "theirs": timed(theirs, 1, warm=0)}
    ratio = times["theirs"].median / times["ours"].median
    apart = {limit: found["theirs"][limit] - found["ours"][limit] for limit in AUPRO_LIMITS}
    worst = max(apart, key=lambda limit: abs(apart[limit]))
    figure = f"{ratio:.1f}x; the other is off by {apart[worst]:+.3f} at {worst}"
    memory = peak_memory(ours)
    stage, goal = f"AU-PRO, {count} maps of {side} x {side}, four limits", "faster, and exact"
    rows = [
        Row(stage, "a script with 100 thresholds", goal, figure, ratio > 1, str(times["ours"]), str(times["theirs"]),
            mebibytes(memory))
    ]  # fmt: skip
    seconds: list[float] = []

    def thousand() -> None:
        start = time.perf_counter()
        aupro(Repeated(maps, 1000), Repeated(masks, 1000))
        seconds.append(time.perf_counter() - start)

    most = peak_memory(thousand)
    held = 1000 * side * side * 4 / MIB
    rows.append(
        Row(f"AU-PRO, 1000 maps of {side} x {side}", f"{held:.0f} MiB, which all maps take", "bounded memory",
            f"{mebibytes(most)} beyond the input", None if most is None else most < held / 2, str(Timing(seconds)), "",
            mebibytes(most))
    )  # fmt: skip
    return rows


# ------------------------------------------------------------------------------------------- growth


def growth() -> list[Row]:
    """Twice the parts, twice the pixels."""
    goal, rows = "<= 2.1x the time", []
    pairs: list[tuple[str, str, Callable[[], Any], Callable[[], Any]]] = []
    settings, generator = make_settings("fast"), torch.Generator()
    keep_freed_memory()

    def harm(count: int, side: int) -> Callable[[], Any]:
        good = good_pairs(count, side)

        def work() -> None:
            synthesise(*good, draw_recipe(count, settings.synthesis, generator.manual_seed(0)), settings.synthesis)

        return work

    pairs.append(("synthesis", "parts", harm(64, 192), harm(128, 192)))
    pairs.append(("synthesis", "pixels", harm(32, 192), harm(32, 272)))

    def ready(side: int) -> Callable[[], Any]:
        scan, known = scans_of(side)[0], statistics_of(side)
        return lambda: prepare(scan, known, settings.preparation)

    pairs.append(("preparation", "pixels", ready(566), ready(800)))

    def infer(count: int, side: int) -> Callable[[], Any]:
        sized = make_settings("fast", changes=[f"preparation.size={side}"])
        detector, inputs = untrained(sized), batch_of(prepared_of(sized, count), rgb=True, depth=True)
        return lambda: detector.engine.run(**inputs)

    pairs.append(("network", "parts", infer(4, 192), infer(8, 192)))
    pairs.append(("network", "pixels", infer(4, 192), infer(4, 288)))  # 2.25 times the pixels

    def area(count: int, side: int) -> Callable[[], Any]:
        made = made_up_maps(count, side)
        return lambda: aupro(*made)

    pairs.append(("AU-PRO", "parts", area(20, 400), area(40, 400)))
    pairs.append(("AU-PRO", "pixels", area(20, 400), area(20, 566)))

    for stage, what, once, twice in pairs:
        times = side_by_side({"once": once, "twice": twice}, 15, warm=2)
        ratio = times["twice"].median / times["once"].median
        if (stage, what) == ("network", "pixels"):
            ratio /= (288 / 192) ** 2 / 2
        rows.append(Row(f"growth of {stage}, twice the {what}", "once", goal, f"{ratio:.2f}x", ratio <= 2.1,
                        str(times["twice"]), str(times["once"])))  # fmt: skip
    return rows


def prediction() -> list[Row]:
    """Many parts from their files: time and memory as their number grows, with the allocator that `das3d predict` has."""
    detector, goal = untrained(make_settings("fast")), "<= 2.1x the time"
    few, many = 250, 750  # the peak creeps up for the first 200 parts or so, as queues happen to fill, and no further
    with files(4) as (parts, out):

        def parts_of(count: int) -> list[Part]:
            return [replace(parts[i % len(parts)], id=f"{i:03d}") for i in range(count)]

        def inspect(count: int) -> Callable[[], Any]:
            return lambda: list(inspect_parts(detector, parts_of(count), out))

        times = side_by_side({"once": inspect(40), "twice": inspect(80)}, 3)
        ratio = times["twice"].median / times["once"].median
        rows = [Row("growth of prediction from files, twice the parts", "once", goal, f"{ratio:.2f}x", ratio <= 2.1,
                    str(times["twice"]), str(times["once"]))]  # fmt: skip
        peaks = [
            peak_so_far() for done, _ in enumerate(inspect_parts(detector, parts_of(many), out), 1) if done in (few, many)
        ]
    if peaks[0] is not None and peaks[1] is not None:
        more = peaks[1] - peaks[0]
        rows.append(Row(f"memory of prediction, after {many} parts", f"after {few} parts", "does not grow with the parts",
                        f"{more:+.0f} MiB", more < 32, "", mebibytes(peaks[0]), mebibytes(peaks[1])))  # fmt: skip
    return rows


ROWS: dict[str, Callable[[], list[Row]]] = {
    "synthesis": synthesis,
    "preparation": preparation,
    "network": network_cpu,
    "network-gpu": network_gpu,
    "peak": peak_share,
    "file-to-verdict": file_to_verdict,
    "training": training,
    "training-gpu": training_gpu,
    "au-pro": au_pro,
    "growth": growth,
    "prediction": prediction,
}
