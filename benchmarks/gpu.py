"""All that a GPU is needed for in one go, from one file of prepared parts: train, evaluate, measure.

    python benchmarks/gpu.py pack DATA --category cable_gland --to gland.npz      # where the scans are
    python benchmarks/gpu.py run gland.npz --out results --minutes 10             # where the GPU is

The second needs the packed file, the project and its extra `train`, no scans. `results/` then holds the model, the losses
and pictures of the training, `figures.json` with what the networks reach on the test parts **at their own resolution** (the
published protocol compares at the scans'), and `speed.md` with the rows of the speed table that a GPU fills.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from das3d.preparation import PreparedScan, Statistics, Window
from das3d.settings import make_settings, settings_from_dict

SPEED_ROWS = ("synthesis", "network-gpu", "peak")


def pack(data: Path, category: str | None, preset: str, changes: list[str], to: Path) -> None:
    """Prepare a data set and write it into one file, with the settings and statistics that it was prepared by."""
    from das3d.prepared import find_training_data, prepare_dataset, prepare_part

    settings = make_settings(preset, changes=changes)  # type: ignore[arg-type]
    dataset = find_training_data(data, category, settings)
    good = prepare_dataset(dataset, settings)
    test = [prepare_part(part, good.statistics, settings.preparation) for part in dataset.test]
    about = {
        "settings": settings.model_dump(mode="json"),
        "statistics": good.statistics.to_dict(),
        "category": dataset.category,
        "names": {"train": names(good.train), "held_out": names(good.held_out), "test": names(test)},
        "defective": [part.defective for part in dataset.test],
        "defects": [part.defect for part in dataset.test],
    }
    arrays: dict[str, Any] = {}
    for split, scans in (("train", good.train), ("held_out", good.held_out), ("test", test)):
        for member in ("rgb", "depth", "valid", "foreground", "mask"):
            images = [getattr(scan, member) for scan in scans]
            empty = np.zeros((settings.preparation.size,) * 2, bool)
            arrays[f"{split}_{member}"] = np.stack([empty if image is None else image for image in images])
    np.savez_compressed(to, about=json.dumps(about), **arrays)
    print(f"{len(good.train)} training, {len(good.held_out)} held-out and {len(test)} test parts in {to}")


def names(scans: list[PreparedScan]) -> list[str]:
    return [scan.name for scan in scans]


def unpack(file: Path) -> tuple[dict[str, Any], dict[str, list[PreparedScan]]]:
    with np.load(file, allow_pickle=False) as held:
        about = json.loads(str(held["about"]))
        members = ("rgb", "depth", "valid", "foreground", "mask")
        scans = {}
        for split, called in about["names"].items():
            rows = zip(called, *(held[f"{split}_{member}"] for member in members), strict=True)
            scans[split] = [PreparedScan(name, *images, window_of(images[1])) for name, *images in rows]
    return about, scans


def window_of(image: Any) -> Window:
    return Window(0, 0, len(image), image.shape)


def run(file: Path, out: Path, minutes: float, device: str, changes: list[str]) -> None:
    """Train on the packed parts, score the test parts, measure."""
    from lightning.fabric import Fabric

    from das3d.batches import GoodParts
    from das3d.detector import Detector
    from das3d.engines.torch_engine import TorchEngine, choose_device
    from das3d.metrics import evaluate_maps
    from das3d.run import keep_freed_memory, machine, precision_for
    from das3d.training import describe, fit

    about, scans = unpack(file)
    settings = settings_from_dict(about["settings"]).with_changes(changes)
    assert settings.preparation == settings_from_dict(about["settings"]).preparation, "the parts are prepared already"
    out.mkdir(parents=True, exist_ok=True)
    chosen = choose_device(device)
    keep_freed_memory()
    fabric = Fabric(accelerator=chosen.type, devices=1, precision=precision_for(chosen, settings))
    fabric.launch()
    state = fit(GoodParts.from_scans(scans["train"]), settings, out, fabric=fabric, budget=minutes * 60)
    print(describe(state))
    detector = Detector(settings, Statistics.from_dict(about["statistics"]), TorchEngine(state.average, settings.score))
    detector.training = {"category": about["category"], "iterations": state.iteration, "machine": machine(chosen)}
    detector.save(out / "model.safetensors")

    begun, maps, scores = time.perf_counter(), [], []
    for start in range(0, len(scans["test"]), 32):
        found = detector.run(scans["test"][start : start + 32])
        maps += list(found.map)
        scores += found.score.tolist()
    seconds = time.perf_counter() - begun
    masks = [scan.mask if bad else None for scan, bad in zip(scans["test"], about["defective"], strict=True)]
    figures = dict(evaluate_maps(maps, masks, about["defective"], scores, about["defects"], about["names"]["test"]))
    figures |= {
        "map_size": list(maps[0].shape), "parts_a_second": len(maps) / seconds, "iterations": state.iteration,
        "samples_a_second": state.iteration * settings.training.batch / state.seconds, "minutes": state.seconds / 60,
        "machine": machine(chosen), "precision": str(fabric._precision.precision),
    }  # fmt: skip
    (out / "figures.json").write_text(json.dumps(figures, indent=2))
    for name in ("i_auroc", "p_auroc", "aupro_30", "aupro_01", "samples_a_second", "parts_a_second"):
        print(f"{name:20} {figures[name]:.4g}" if figures[name] is not None else f"{name:20} -")
    speed = [sys.executable, str(Path(__file__).with_name("speed.py")), "--only", *SPEED_ROWS]
    subprocess.run([*speed, "--write", str(out / "speed.md")], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="prepare a data set into one file")
    packing.add_argument("data", type=Path)
    packing.add_argument("--category")
    packing.add_argument("--preset", default="fast")
    packing.add_argument("--set", action="append", default=[])
    packing.add_argument("--to", type=Path, required=True)
    running = commands.add_parser("run", help="train, evaluate and measure")
    running.add_argument("file", type=Path)
    running.add_argument("--out", type=Path, required=True)
    running.add_argument("--minutes", type=float, default=10)
    running.add_argument("--device", default="auto")
    running.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    if options.command == "pack":
        pack(options.data, options.category, options.preset, options.set, options.to)
    else:
        run(options.file, options.out, options.minutes, options.device, options.set)


if __name__ == "__main__":
    main()
