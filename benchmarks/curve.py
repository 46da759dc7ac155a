"""How fast a recipe learns: synthetic figures of the averaged weights along the first iterations of a training.

    python benchmarks/curve.py DATA --category cable_gland --iterations 350 --of 1400 --set training.optimizer=adamw
    python benchmarks/curve.py DATA --category tuber,sponge --iterations 2000 --of 2000 --save warm.pt   # one model of both
    python benchmarks/curve.py DATA --category cable_gland --start warm.pt                               # a warm start

A few minutes tell here what takes hours to its end: recipes that differ in how fast they learn differ within the first
350 iterations by several times. The figures are those of lab.py, on held-out good parts and defects that the training
synthesis does not make; real test parts are not looked at.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from lab import synthetic_figures
from lightning.fabric import Fabric

from das3d import training
from das3d.batches import GoodParts
from das3d.detector import Detector
from das3d.engines.torch_engine import TorchEngine, choose_device
from das3d.prepared import find_training_data, prepare_dataset
from das3d.run import precision_for
from das3d.settings import make_settings
from das3d.textures import load_textures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--category", help="or several with commas, whose parts one model is trained on")
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--modality", default="rgb+depth")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--iterations", type=int, default=350, help="how many to train")
    parser.add_argument("--of", type=int, default=1400, help="how many the schedule of the rate is made for")
    parser.add_argument("--every", type=int, default=350, help="iterations between figures")
    parser.add_argument("--start", type=Path, help="weights to begin with, as --save wrote them")
    parser.add_argument("--save", type=Path, help="where the averaged weights go")
    options = parser.parse_args()
    settings = make_settings(options.preset, modality=options.modality, seed=options.seed, changes=options.set)
    names = options.category.split(",") if options.category else [None]
    prepared = [prepare_dataset(find_training_data(options.data, name, settings), settings) for name in names]
    device = choose_device("auto")
    fabric = Fabric(accelerator=device.type, devices=1, precision=precision_for(device, settings))
    fabric.launch()
    parts = GoodParts.from_scans([scan for one in prepared for scan in one.train]).to(fabric.device)
    held_out = [scan for one in prepared for scan in one.held_out]
    textures = load_textures(settings.synthesis, parts)
    state = training.start(settings, fabric, total=options.of)
    if options.start:
        for network in (state.network, state.average):
            network.load_state_dict(torch.load(options.start, weights_only=True))
    seconds, losses = 0.0, torch.zeros(3)
    print("iteration  seconds  samples/s  loss RGB / depth / discriminator  synthetic I-AUROC  P-AUROC  AP")
    for _ in range(options.iterations):
        begun = time.perf_counter()
        todo = training.next_iteration(state, len(parts), settings, fabric, textures)
        losses += training.advance(state, todo, parts, settings, fabric, textures)[2].cpu()
        state.iteration += 1
        seconds += time.perf_counter() - begun
        if state.iteration % options.every == 0 or state.iteration == options.iterations:
            # Statistics play no part in judging what is prepared already.
            detector = Detector(settings, prepared[0].statistics, TorchEngine(state.average, settings.score))
            figures = synthetic_figures(detector, held_out)
            means = " / ".join(f"{loss:.4f}" for loss in (losses / state.iteration).tolist())
            scores = [figures[name] for name in ("synthetic_i_auroc", "synthetic_p_auroc", "synthetic_ap")]
            pace = state.iteration * settings.training.batch / seconds
            columns = [f"{state.iteration:9d}", f"{seconds:7.0f}", f"{pace:9.1f}", f"{means:>32}"]
            print("  ".join(columns + [f"{score:.4f}" for score in scores]), flush=True)
    if options.save:
        torch.save(state.average.state_dict(), options.save)


if __name__ == "__main__":
    main()
