"""Do exported models say what the trained model says? Every engine and precision on all test parts of a category.

    python benchmarks/parity.py runs/gland --data DATA

The trained model is exported six times into a temporary folder (int8 calibrated on good training parts) and each file is
computed by every engine installed that can read it. Differences are to the trained model in full precision, by PyTorch on
the CPU. Prints a Markdown table; its times are those of the processor, which other work on the machine changes little.
OMP_NUM_THREADS sets the threads of all engines.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from sklearn.metrics import roc_auc_score

from das3d.agreement import Computed, agreement, compute, find_parts
from das3d.detector import Detector, load
from das3d.engines import BATCH, installed, threads
from das3d.errors import ModelError
from das3d.exporting import SUFFIX, export
from das3d.preparation import PreparedScan
from das3d.prepared import prepare_part
from das3d.run import machine
from das3d.versions import version_of


def timed(detector: Detector, scans: Sequence[PreparedScan]) -> tuple[Computed, float]:
    """What a detector makes of the scans, and processor milliseconds a part."""
    begun = time.process_time()
    computed = compute(detector, scans)
    parts = len(scans) + len(scans[:BATCH])  # the first batch is computed twice
    return computed, (time.process_time() - begun) / parts * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(threads() or torch.get_num_threads())

    trained = load(options.run, "cpu", "torch")
    parts = [part for part in find_parts(trained, options.data)[0] if part.split == "test"]
    labels = [part.defective for part in parts]
    scans = [prepare_part(part, trained.statistics, trained.settings.preparation) for part in parts]
    reference, ms = timed(trained, scans)
    versions = ", ".join(f"{name} {version_of(name)}" for name in ("torch", "onnxruntime", "openvino") if installed(name))
    print(f"{len(parts)} test parts of {trained.training.get('category')}, {machine(torch.device('cpu'))}; {versions}\n")
    print("| file | MB | engine | max score difference | max map difference | verdicts changed | I-AUROC | CPU ms a part |")
    print("|---|---|---|---|---|---|---|---|")
    auroc = roc_auc_score(labels, reference.scores)
    print(f"| safetensors | | {trained.engine.describe()} | | | | {auroc:.4f} | {ms:.0f} |")
    with tempfile.TemporaryDirectory() as folder:
        for to, suffix in SUFFIX.items():
            for precision in ("fp32", "fp16", "int8"):
                file = Path(folder) / f"model_{precision}{suffix}"
                try:
                    done = export(options.run, to, precision=precision, data=options.data, out=file, max_changed=1)
                except ModelError as error:  # a failed check is a finding too
                    print(
                        f"| {to} {precision} | | not written: {str(error).partition(', found ')[2]} | | | | | |", flush=True
                    )
                    continue
                for engine in ("onnxruntime", "openvino") if to == "onnx" else ("openvino",):
                    if not installed(engine):
                        continue
                    exported = load(done.file, "cpu", engine)
                    found = agreement(exported, scans, reference)
                    computed, ms = timed(exported, scans)
                    auroc = roc_auc_score(labels, computed.scores)
                    megabytes = done.size / 1e6
                    changed = "-" if found.verdicts_changed is None else f"{found.verdicts_changed} of {len(parts)}"
                    print(
                        f"| {to} {precision} | {megabytes:.1f} | {found.engine} | {found.score:.1e} | {found.map:.1e} "
                        f"| {changed} | {auroc:.4f} | {ms:.0f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
