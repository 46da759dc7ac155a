"""All that a GPU is needed for in one go, from files of prepared parts: train, evaluate, measure.

    python benchmarks/gpu.py pack DATA --category cable_gland --to gland.npz      # where the scans are
    python benchmarks/gpu.py run gland.npz --out results --minutes 10             # where the GPU is

The second needs the packed files, the project, its extra `train` and scikit-learn, but no scans. For each file, modality
and seed it trains, calibrates by the held-out parts as `das3d train` does, scores the test parts at the scans' own
resolution and the laboratory's synthetic defects (`lab.py`), and writes a line of `results/figures.csv`;
`results/speed.md` gets the rows of the speed table that a GPU fills. Small networks leave most of a GPU idle:
`--together 6` trains six at a time, which gains where NVIDIA's multi-process service runs.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from das3d.fingerprints import fingerprint_in
from das3d.measurement import Statistics
from das3d.parts import Part
from das3d.preparation import PreparedScan
from das3d.settings import make_settings, settings_from_dict
from das3d.window import Window

SPEED_ROWS = ("synthesis", "network-gpu", "peak", "training-gpu")
MEMBERS = ("rgb", "depth", "valid", "foreground")
FIGURES = ("i_auroc", "p_auroc", "aupro_30", "aupro_10", "aupro_05", "aupro_01", "found", "false_alarms", "threshold")
COLUMNS = (
    "file", "category", "preset", "modality", "settings", "seed", "iterations", "minutes", "samples_a_second", *FIGURES,
    "synthetic_i_auroc", "synthetic_ap", "colour", "shape", "per_defect", "missed", "alarms", "machine", "precision",
)  # fmt: skip


def pack(data: Path, category: str | None, preset: str, changes: list[str], to: Path) -> None:
    """Prepare a data set and write it into one file, with the settings and statistics that it was prepared by."""
    from das3d.evaluation import LazyMasks
    from das3d.prepared import facts_of_data, find_training_data, prepare_dataset, prepare_part, train_and_held_out

    settings = make_settings(preset, changes=changes)  # type: ignore[arg-type]
    dataset = find_training_data(data, category, settings)
    good = prepare_dataset(dataset, settings)
    test = [prepare_part(part, good.statistics, settings.preparation) for part in dataset.test]
    splits = {"train": good.train, "held_out": good.held_out, "test": test}
    train, held_out = train_and_held_out(dataset)
    parts = {"train": train, "held_out": held_out, "test": dataset.test}
    about = {
        "settings": settings.model_dump(mode="json"),
        "statistics": good.statistics.to_dict(),
        "training": facts_of_data(dataset),
        "names": {split: [part.id for part in ones] for split, ones in parts.items()},
        "marks": {split: [marks_of(part, good.statistics) for part in parts[split]] for split in ("train", "held_out")},
        "windows": {split: [asdict(scan.window) for scan in scans] for split, scans in splits.items()},
        "doubts": {split: [scan.doubt for scan in scans] for split, scans in splits.items()},
        "defective": [part.defective for part in dataset.test],
        "defects": [part.defect for part in dataset.test],
    }
    arrays: dict[str, Any] = {}
    for split, scans in splits.items():
        for member in MEMBERS:
            arrays[f"{split}_{member}"] = np.stack([getattr(scan, member) for scan in scans])
    for number, mask in enumerate(LazyMasks(dataset.test)):
        if mask is not None:
            arrays[f"mask_{number}"] = np.packbits(mask, axis=1)
    np.savez_compressed(to, about=json.dumps(about), **arrays)
    print(f"{len(good.train)} training, {len(good.held_out)} held-out and {len(test)} test parts in {to}")


def marks_of(part: Part, statistics: Statistics) -> dict[str, str]:
    """What a model will know a part by, as `Detector.fingerprint_of`: one that sees RGB, and one that does not."""
    scan = replace(part, masks=()).read(rgb=statistics.has_rgb, depth=statistics.has_depth)
    marks = {"rgb": fingerprint_in(scan)}
    if scan.depth is not None:
        marks["no rgb"] = fingerprint_in(scan.without(rgb=True))
    return marks


def unpack(file: Path) -> tuple[dict[str, Any], dict[str, list[PreparedScan]], list[Any]]:
    """What is in a packed file: facts, scans by their split, and the test parts' masks at the scans' resolution."""
    with np.load(file, allow_pickle=False) as held:
        about = json.loads(str(held["about"]))
        if "marks" not in about:
            sys.exit(f"{file}: expected marks of the parts, found a file of an earlier version; pack it again")
        scans = {}
        for split, called in about["names"].items():
            known = called, about["windows"][split], about["doubts"][split]
            rows = zip(*known, *(held[f"{split}_{member}"] for member in MEMBERS), strict=True)
            scans[split] = [
                PreparedScan(name, *images, None, Window(**{**window, "frame": tuple(window["frame"])}), doubt=doubt)
                for name, window, doubt, *images in rows
            ]
        masks = []
        for number, scan in enumerate(scans["test"]):
            packed = held.get(f"mask_{number}")
            masks.append(None if packed is None else np.unpackbits(packed, axis=1)[:, : scan.window.frame[1]] > 0)
    return about, scans, masks


def train_one(file: Path, out: Path, minutes: float | None, device: str, changes: list[str]) -> None:
    """Train on the packed parts and score the others; the figures go to ``figures.json``."""
    from lab import synthetic_figures
    from lightning.fabric import Fabric

    from das3d.batches import GoodParts
    from das3d.calibration import HeldOut, calibrated
    from das3d.detector import Detector
    from das3d.engines.torch_engine import TorchEngine, choose_device
    from das3d.metrics import evaluate_maps
    from das3d.run import facts_of_training, keep_freed_memory, precision_for
    from das3d.training import describe, fit

    about, scans, masks = unpack(file)
    settings = settings_from_dict(about["settings"]).with_changes(changes)
    assert settings.preparation == settings_from_dict(about["settings"]).preparation, "the parts are prepared already"
    if not settings.uses_rgb:  # as scans are prepared for depth alone
        blank = np.zeros_like(scans["train"][0].rgb)
        scans = {split: [replace(scan, rgb=blank) for scan in ones] for split, ones in scans.items()}
    out.mkdir(parents=True, exist_ok=True)
    chosen = choose_device(device)
    keep_freed_memory()
    precision = precision_for(chosen, settings)
    fabric = Fabric(accelerator=chosen.type, devices=1, precision=precision)
    fabric.launch()
    budget = None if minutes is None else minutes * 60
    state = fit(GoodParts.from_scans(scans["train"]), settings, out, fabric=fabric, budget=budget)
    print(describe(state))
    statistics = replace(Statistics.from_dict(about["statistics"]), has_rgb=settings.uses_rgb)
    detector = Detector(settings, statistics, TorchEngine(state.average, settings.score))
    seen = "rgb" if settings.uses_rgb else "no rgb"
    marks = {split: [part[seen] for part in parts] for split, parts in about["marks"].items()}
    detector.fingerprints = {"train": marks["train"]}
    detector.training = about["training"] | facts_of_training(state, settings, chosen, precision)
    known = zip(about["names"]["held_out"], marks["held_out"], scans["held_out"], strict=True)
    held_out = [HeldOut(name, mark, lambda scan=scan: scan) for name, mark, scan in known]
    detector = calibrated(detector, held_out, settings.score.max_false_alarm, about["training"]["data"])
    detector.save(out / "model.safetensors")

    found = detector.predict_prepared(scans["test"], regions=False)
    defective, names, scores = about["defective"], about["names"]["test"], [one.score for one in found]
    known = [mask if bad else None for mask, bad in zip(masks, defective, strict=True)]
    figures: dict[str, Any] = dict(
        evaluate_maps([one.map for one in found], known, defective, scores, about["defects"], names)
    )
    told = list(zip(names, defective, [bool(one.defective) for one in found], strict=True))
    figures |= synthetic_figures(detector, scans["held_out"]) | {
        "file": file.stem, "category": about["training"]["category"], "preset": settings.preset,
        "modality": settings.modality,
        "settings": " ".join(changes), "seed": settings.seed, "iterations": state.iteration, "minutes": state.seconds / 60,
        "samples_a_second": state.iteration * settings.training.batch / state.seconds,
        "found": sum(said for _, bad, said in told if bad) / sum(defective),
        "false_alarms": sum(said for _, bad, said in told if not bad), "threshold": detector.threshold.value,
        "missed": " ".join(name for name, bad, said in told if bad and not said),
        "alarms": " ".join(name for name, bad, said in told if said and not bad),
        "machine": detector.training["machine"], "precision": precision,
        "scores": dict(zip(names, scores, strict=True)), "held_out": detector.threshold.good_scores,
    }  # fmt: skip
    (out / "figures.json").write_text(json.dumps(figures, indent=2))


def run(files: list[Path], out: Path, together: int, seeds: list[str], modalities: list[str], more: list[str]) -> bool:
    """Train each file, modality and seed in a process of its own, then gather their figures; False if one failed."""
    jobs = [
        (out / f"{file.stem}-{modality}-{seed}", file, modality, seed)
        for file, modality, seed in itertools.product(files, modalities, seeds)
    ]

    def train(job: tuple[Path, Path, str, str]) -> bool:
        folder, file, modality, seed = job
        (folder / "figures.json").unlink(missing_ok=True)  # of a run before
        command = [sys.executable, __file__, "train", str(file), "--out", str(folder), *more]
        command += ["--set", f"modality={modality}", "--set", f"seed={seed}"]
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log.txt").open("w") as log:
            ended = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode
        print(f"{folder.name}: {'done' if ended == 0 else f'failed, see {folder}/log.txt'}", flush=True)
        return ended == 0

    begun = time.monotonic()
    with ThreadPoolExecutor(together) as pool:
        done = list(pool.map(train, jobs))
    with (out / "figures.csv").open("w", newline="", encoding="utf-8") as table:
        writer = csv.DictWriter(table, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for folder, *_ in jobs:
            if (folder / "figures.json").is_file():
                figures = json.loads((folder / "figures.json").read_text())
                rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in figures.items()}
                writer.writerow(rounded)
                print(folder.name, *(f"{name} {rounded.get(name)}" for name in (*FIGURES, "synthetic_ap")), sep="  ")
    print(f"{len(jobs)} trainings in {(time.monotonic() - begun) / 60:.1f} min")
    return all(done)


def measure(out: Path) -> None:
    """The rows of the speed table that need a GPU."""
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
    running.add_argument("files", type=Path, nargs="+")
    running.add_argument("--seeds", default="0")
    running.add_argument("--modalities", default="rgb+depth")
    running.add_argument("--together", type=int, default=1, help="trainings at a time")
    running.add_argument("--no-speed", action="store_true", help="leave out the speed table")
    training = commands.add_parser("train", help="one training of a run")
    training.add_argument("file", type=Path)
    for command in (running, training):
        command.add_argument("--out", type=Path, required=True)
        command.add_argument("--minutes", type=float, help="for each training; without it as many iterations as set")
        command.add_argument("--device", default="auto")
        command.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    if options.command == "pack":
        pack(options.data, options.category, options.preset, options.set, options.to)
    elif options.command == "train":
        train_one(options.file, options.out, options.minutes, options.device, options.set)
    else:
        more = ["--device", options.device, *itertools.chain(*(["--set", change] for change in options.set))]
        more += [] if options.minutes is None else ["--minutes", str(options.minutes)]
        seeds, modalities = options.seeds.split(","), options.modalities.split(",")
        well = run(options.files, options.out, options.together, seeds, modalities, more)
        if not options.no_speed:
            measure(options.out)
        sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
